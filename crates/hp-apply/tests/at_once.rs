//! Two appliers at once. One is held up at a call, and meanwhile another does all that it has to do: what the first has
//! read by then may not hold any more. Nothing may come of that but an error of the first.
//!
//! Ordinary runs hold it up at a part of its calls, with `HP_KILLED=calls` at each.

mod common;
use common::*;
use hp_apply::{Done, Fault, Phase, apply, revert, status};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the first one is held up: the second needs a few milliseconds.
const HELD_UP: Duration = Duration::from_millis(120);
/// From its start to the call at which it is held up.
const ARRIVES: Duration = Duration::from_millis(25);
/// It is held up at each of its first calls, which read what it rests on, and at about so many of the others.
const FIRST: u64 = 80;
const MOMENTS: u64 = 25;

/// Not a test by itself: the applier that is held up, in a process of its own.
#[test]
fn slow() {
    let Ok(job) = std::env::var("HP_APPLY_TEST_SLOW") else { return };
    let mut words = job.split(' ');
    let mut next = || words.next().unwrap().to_owned();
    let (what, pid, kind, number, file) = (next(), next().parse().unwrap(), next(), next().parse().unwrap(), next());
    match kind.as_str() {
        "killed" => hp_apply::die_at(number),
        _ => hp_apply::fault_at(number, Fault::Delay(HELD_UP)),
    }
    println!("begins");
    let outcome = match what.as_str() {
        "apply" => apply(pid, &std::fs::read(file).unwrap(), &options()),
        _ => revert(pid, None, &options()),
    };
    println!("{:?}", outcome.result);
    println!("calls {}", hp_apply::calls());
}

/// Starts it; it has begun its work.
fn start(what: &str, target: &Process, moment: &str, file: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "slow", "--nocapture"])
        .env("HP_APPLY_TEST_SLOW", format!("{what} {} {moment} {}", target.pid(), file.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("begins") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0);
    }
    (child, output)
}

/// What the target has before both begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Has {
    Nothing,
    /// The patch, not in effect: loaded by an applier that died.
    Loaded,
    Patch,
}

/// `point`: where an applier must die so that the patch is loaded and no more, as far as that is known.
fn prepare(target: &Process, patch: &Path, has: Has, point: &mut u64) {
    revert(target.pid(), None, &options()).result.unwrap();
    match has {
        Has::Nothing => {}
        Has::Patch => drop(applied(apply(target.pid(), &std::fs::read(patch).unwrap(), &options()))),
        Has::Loaded => {
            for number in *point.. {
                *point = number;
                let (mut child, _) = start("apply", target, &format!("killed {number}"), patch);
                assert!(!child.wait().unwrap().success(), "it ended before anything was loaded");
                match status(target.pid()).unwrap().as_slice() {
                    [entry] if entry.phase == Phase::Inactive => return,
                    // Only a claim, which goes with the next one.
                    found => assert!(found.is_empty(), "{found:?}"),
                }
            }
        }
    }
}

fn while_one_is_held_up(has: Has, slow: &str, meanwhile: &[&str]) {
    let program = Program::build_telling(VERSIONED, &[]);
    let mut target = program.spawn(&["4", "1"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), hp_pack::write(&version(&program, 2, 1)).unwrap()).unwrap();
    let every = std::env::var("HP_KILLED").is_ok_and(|what| what == "calls");
    let (mut number, mut calls, mut tried, mut point) = (1, u64::MAX, 0, 1);
    while number <= calls {
        prepare(&target, file.path(), has, &mut point);
        let (mut child, mut output) = start(slow, &target, &format!("held {number}"), file.path());
        std::thread::sleep(ARRIVES);
        for what in meanwhile {
            // It may find that the other holds the threads.
            let result = match *what {
                "apply" => apply(target.pid(), &std::fs::read(file.path()).unwrap(), &options()),
                _ => revert(target.pid(), None, &options()),
            };
            println!("{what}: {:?}", result.result);
        }
        let mut text = String::new();
        std::io::Read::read_to_string(&mut output, &mut text).unwrap();
        assert!(child.wait().unwrap().success());
        let moment = format!("{has:?}, {slow} held up at call {number}, meanwhile {meanwhile:?}");
        println!("{moment}");
        target.assert_free();
        // Nothing was wrong, and the record says what is the case.
        let now = version_of(&mut target);
        let active = status(target.pid()).unwrap().iter().any(|entry| entry.phase == Phase::Active);
        assert_eq!(active, now == 2, "{moment}");
        let after = revert(target.pid(), None, &options()).result;
        assert!(matches!(after, Ok(Done::Reverted(_) | Done::NotApplied)), "{moment}: {after:?}");
        assert_eq!(version_of(&mut target), 1, "{moment}");
        println!("{text}");
        let made = text.lines().find_map(|line| line.strip_prefix("calls ")?.parse().ok());
        calls = made.unwrap_or_else(|| panic!("{moment}: {text}"));
        number += if every || number < FIRST { 1 } else { 1 + calls / MOMENTS };
        tried += 1;
    }
    println!("{has:?}, {slow}, meanwhile {meanwhile:?}: held up at {tried} of {calls} calls");
}

#[test]
fn a_revert_while_another_one_reverts() {
    while_one_is_held_up(Has::Patch, "revert", &["revert"]);
}

#[test]
fn a_revert_while_another_one_reverts_and_applies_again() {
    while_one_is_held_up(Has::Patch, "revert", &["revert", "apply"]);
}

#[test]
fn a_revert_of_what_another_one_brings_into_effect() {
    while_one_is_held_up(Has::Loaded, "revert", &["apply"]);
}

#[test]
fn an_apply_while_another_one_applies_and_reverts() {
    while_one_is_held_up(Has::Nothing, "apply", &["apply", "revert"]);
}

#[test]
fn an_apply_of_what_another_one_takes_out() {
    while_one_is_held_up(Has::Loaded, "apply", &["revert", "apply"]);
}
