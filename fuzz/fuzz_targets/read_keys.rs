//! The readers of keys and of signatures beside a file.
#![no_main]

#[path = "../../crates/hp-pack/tests/fuzzed/mod.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzed::keys(data));
