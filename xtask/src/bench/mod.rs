//! `cargo xtask bench`: what `hp` costs. Never a test: numbers depend on the machine, so all that counts are
//! ratios within one run.
//!
//! Each benchmark is a module of its own, with one entry point.

mod diff;
mod edit;
mod inputs;
mod measure;

use crate::cache::Cache;
use anyhow::{Result, bail};

pub(crate) const USAGE: &str = "bench diff [--full] [WORD...]";

/// Runs the benchmark that the first word names; the others are its own.
pub(crate) fn run(words: &[&str]) -> Result<bool> {
    let cache = Cache::open()?;
    match words {
        [] => diff::run(&cache, &[]),
        ["diff", rest @ ..] => diff::run(&cache, rest),
        _ => bail!("usage: cargo xtask {USAGE}"),
    }
}
