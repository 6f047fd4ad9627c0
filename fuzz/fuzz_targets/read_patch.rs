//! The reader of patches: any bytes, with the digest made right so that they get past it.
#![no_main]

#[path = "../../crates/hp-pack/tests/fuzzed/mod.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzed::patch(data));
