//! One door to every chore: `cargo xtask test`, `cargo xtask ci`, `cargo xtask pairs`.
//!
//! The tests themselves are ordinary cargo tests. What this program adds is their
//! surroundings: system packages that they need, and pairs of builds of real servers. Both
//! are made at the time of the test and kept outside the repository; see `docs/TESTING.md`.

#![deny(unsafe_code)]

mod again;
mod bench;
mod bench_apply;
mod cache;
mod fuzz;
mod install;
mod pair;
mod recipe;
mod source;

use anyhow::{Context, Result, bail};
use cache::Cache;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
usage: cargo xtask <task>

  test [--quick] [-- ARGS]   every test of the workspace; ARGS go to the test programs.
                             --quick: installs and builds nothing, what is missing is ignored
  ci                         what .ci/run does: format, lints, documentation, every test
  fuzz TARGET [RUNS]         runs a fuzz target for so many executions (default 1000000)
  fuzz TARGET keep           adds the inputs that it grew to fuzz/corpus, as far as they add coverage
  bench apply [PART...]      what patching costs a target: its stops, the whole command, latencies of a loaded redis
  bench diff [--full] [WORD...]   what hp diff costs, on the pairs whose names contain a word, beside one decode, objdump
                             with diff, and bsdiff (--full: on large pairs too); see docs/BENCHMARKS.md
  pairs                      builds the old/new pairs of real servers and prints where they are

Pairs and sources are kept in $HP_CACHE, else $XDG_CACHE_HOME/hp, else ~/.cache/hp.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<bool> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test", rest @ ..] => {
            let (ours, theirs) = match rest.iter().position(|word| *word == "--") {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &[][..]),
            };
            match ours {
                [] => test(false, theirs),
                ["--quick"] => test(true, theirs),
                _ => bail!("unknown option {}\n{USAGE}", ours.join(" ")),
            }
        }
        ["ci"] => ci(),
        ["bench", "apply", parts @ ..] => bench_apply::run(&Cache::open()?, parts),
        ["bench", rest @ ..] => bench::run(rest),
        ["fuzz", target] => fuzz::run(target, 1_000_000),
        ["fuzz", target, "keep"] => fuzz::keep(target),
        ["fuzz", target, runs] => fuzz::run(target, runs.parse().context("RUNS is a number")?),
        ["pairs"] => {
            let cache = Cache::open()?;
            let complete = prepare(&cache);
            println!("{}", cache.pairs().display());
            Ok(complete)
        }
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(true)
        }
        _ => bail!("no such task\n{USAGE}"),
    }
}

/// Runs every test; true if all passed and everything that could be prepared was.
fn test(quick: bool, arguments: &[&str]) -> Result<bool> {
    let cache = Cache::open()?;
    let prepared = quick || prepare(&cache);
    let mut cargo = cargo(&["test", "--workspace", "--no-fail-fast"]);
    cargo.env("HP_REAL_PAIRS", cache.pairs());
    if !arguments.is_empty() {
        cargo.arg("--").args(arguments);
    }
    let passed = succeeds(&mut cargo)?;
    if !prepared {
        eprintln!("xtask: preparing the tests of real programs failed, see the lines above the tests");
    }
    Ok(passed && prepared)
}

/// Installs tools and builds pairs. False if something that should have worked failed; what
/// cannot be had on this machine is said in one line, and its tests are then ignored.
fn prepare(cache: &Cache) -> bool {
    if let Err(reason) = install::tools() {
        eprintln!("xtask: {reason}");
    }
    let recipes = match recipe::load_all(&root().join("testdata/recipes")) {
        Ok(recipes) => recipes,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            return false;
        }
    };
    let mut good = true;
    for recipe in &recipes {
        match pair::build(cache, recipe) {
            Ok(pair::Outcome::Ready) => {}
            Ok(pair::Outcome::Unavailable(reason)) => {
                eprintln!("xtask: tests of {} will be ignored: {reason}", recipe.package);
            }
            Err(error) => {
                eprintln!("xtask: {}: {error:#}", recipe.package);
                good = false;
            }
        }
    }
    good
}

/// Format, lints, documentation, tests, in the order of what fails fastest.
fn ci() -> Result<bool> {
    let applier = ["clippy", "--profile", "applier", "--package", "hp-apply", "--no-default-features"];
    let applier = [&applier[..], &["--features", "applier", "--bin", "hp-apply", "--", "-D", "warnings"]].concat();
    let steps: [&[&str]; 4] = [
        &["fmt", "--all", "--check"],
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        &applier,
        &["doc", "--workspace", "--no-deps"],
    ];
    for step in steps {
        eprintln!("xtask: cargo {}", step.join(" "));
        if !succeeds(cargo(step).env("RUSTDOCFLAGS", "-D warnings"))? {
            return Ok(false);
        }
    }
    test(false, &[])
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

fn succeeds(command: &mut Command) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    Ok(command.status().with_context(|| format!("cannot run {program}"))?.success())
}

/// The workspace's folder.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
