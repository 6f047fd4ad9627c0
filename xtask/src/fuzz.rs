//! `cargo xtask fuzz`: libFuzzer over the readers of everything that comes from outside.
//!
//! The fuzzer needs coverage counters in the code, which the stable compiler can put in by its
//! flags; address sanitising is left out, for what is fuzzed forbids unsafe code. New inputs are
//! gathered beside the build and only those that add coverage go to `fuzz/corpus`.

use crate::{cargo, root, succeeds};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
const HOST: &str = "x86_64-unknown-linux-gnu";
/// Longer inputs only make it slower; every structure of the format fits.
const LONGEST: u32 = 4096;

/// Runs a target for so many executions, starting from its corpus. True if it found nothing.
pub(crate) fn run(target: &str, runs: u64) -> Result<bool> {
    let program = build(target)?;
    let (kept, grown) = (root().join("fuzz/corpus").join(target), root().join("target/fuzz").join(target));
    std::fs::create_dir_all(&grown).with_context(|| format!("cannot make {}", grown.display()))?;
    let limits = [format!("-runs={runs}"), format!("-max_len={LONGEST}"), "-print_final_stats=1".into()];
    let mut fuzzer = Command::new(&program);
    fuzzer.args(limits).arg("-use_value_profile=0").args([&grown, &kept]).current_dir(&grown);
    succeeds(&mut fuzzer)
}

/// Adds to the kept corpus what adds coverage to it. True if that worked.
pub(crate) fn keep(target: &str) -> Result<bool> {
    let program = build(target)?;
    let (kept, grown) = (root().join("fuzz/corpus").join(target), root().join("target/fuzz").join(target));
    succeeds(
        Command::new(program)
            .current_dir(&grown)
            .arg("-merge=1")
            .arg(format!("-max_len={LONGEST}"))
            .args([&kept, &grown]),
    )
}

fn build(target: &str) -> Result<PathBuf> {
    let folder = root().join("fuzz");
    if !folder.join("fuzz_targets").join(target).with_extension("rs").is_file() {
        bail!("no such fuzz target: {target}; there are those in fuzz/fuzz_targets");
    }
    let built = root().join("target/fuzz/build");
    let mut cargo = cargo(&["build", "--release", "--quiet", "--target", HOST, "--bin", target]);
    cargo.current_dir(folder).env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", &built);
    if !succeeds(&mut cargo)? {
        bail!("the fuzz target {target} does not build");
    }
    Ok(built.join(HOST).join("release").join(target))
}
