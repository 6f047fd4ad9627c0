//! All or none: several processes, several patches, and a health command that decides.

mod support;

use std::process::ExitCode;
use support::hp::{hp, status};
use support::target::{NEW, OLD, Pair};
use support::{lacks, trial};

fn main() -> ExitCode {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("one_process_refuses_before", gcc(), one_process_refuses_before),
        trial("one_patch_refuses_in_the_middle", gcc(), one_patch_refuses_in_the_middle),
        trial("healthy", gcc(), healthy),
        trial("not_healthy", gcc(), not_healthy),
        trial("a_replaced_patch_does_not_come_back", gcc(), a_replaced_patch_does_not_come_back),
        trial("not_healthy_later", gcc(), not_healthy_later),
        trial("a_process_ends_meanwhile", gcc(), a_process_ends_meanwhile),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// One that runs another build: found before anything is changed.
fn one_process_refuses_before() {
    let (pair, other) = (Pair::make(), Pair::make());
    let (mut first, mut second, mut third) = (pair.start(), other.start(), pair.start());
    let pids = [first.pid(), second.pid(), third.pid()].map(|pid| pid.to_string()).join(",");
    let answer = hp(["apply", &text(&pair.patch), "--pid", &pids]).exits(1);
    assert!(answer.err.contains(&second.pid().to_string()) && answer.err.contains("--each"), "{answer}");
    assert_eq!([first.ask(), second.ask(), third.ask()], [OLD; 3]);
    for target in [&first, &third] {
        status(target.pid()).exits(3);
    }
    hp(["apply", &text(&pair.patch), "--each", "--pid", &pids]).exits(1);
    assert_eq!([first.ask(), second.ask(), third.ask()], [NEW, OLD, NEW]);
}

/// Each of two patches fits, but not on top of the other.
fn one_patch_refuses_in_the_middle() {
    let pair = Pair::make();
    let (mut first, mut second) = (pair.start(), pair.start());
    let again = pair.folder.path().join("again.hpatch");
    let new = pair.folder.path().join("new");
    hp(["diff", &text(&pair.old), &text(&new), "--name", "again", "-o", &text(&again)]).exits(0);
    let answer = hp(["apply", &text(&pair.patch), &text(&again), "--all"]).exits(1);
    assert!(answer.err.contains("already replaced answer"), "{answer}");
    assert_eq!(answer.err.matches("taken back").count(), 2, "{answer}");
    assert_eq!([first.ask(), second.ask()], [OLD, OLD]);
    status(first.pid()).exits(3);
    let json = hp(["apply", &text(&pair.patch), &text(&again), "--all", "--json"]).exits(1).out;
    assert_eq!(json.matches("\"taken-back\"").count(), 2, "{json}");
    // What was there before stays.
    hp(["apply", &text(&pair.patch), "--pid", &first.pid().to_string()]).exits(0);
    hp(["apply", &text(&pair.patch), &text(&again), "--all"]).exits(1);
    assert_eq!([first.ask(), second.ask()], [NEW, OLD]);
}

fn healthy() {
    let pair = Pair::make();
    let mut target = pair.start();
    let check = format!("echo checked; test \"$HP_PIDS\" = {}", target.pid());
    let answer = hp(["apply", &text(&pair.patch), "--all", "--health", &check]).exits(0);
    assert!(answer.err.contains("checked") && !answer.out.contains("checked"), "{answer}");
    assert_eq!(target.ask(), NEW);
}

fn not_healthy() {
    let pair = Pair::make();
    let (mut first, mut second) = (pair.start(), pair.start());
    hp(["apply", &text(&pair.patch), "--pid", &first.pid().to_string()]).exits(0);
    let answer = hp(["apply", &text(&pair.patch), "--all", "--health", "exit 3"]).exits(1);
    assert!(answer.err.contains("health check failed") && answer.err.contains("exit status: 3"), "{answer}");
    // Only what this command had applied is taken back.
    assert_eq!([first.ask(), second.ask()], [NEW, OLD]);
}

/// The older patch is lost when the newer one is taken back, and that is said.
fn a_replaced_patch_does_not_come_back() {
    let pair = Pair::make();
    let mut target = pair.start();
    let newer = pair.folder.path().join("newer.hpatch");
    let new = pair.folder.path().join("new");
    hp(["diff", &text(&pair.old), &text(&new), "--counter", "2", "-o", &text(&newer)]).exits(0);
    hp(["apply", &text(&pair.patch), "--all"]).exits(0);
    let answer = hp(["apply", &text(&newer), "--all", "--health", "exit 3"]).exits(1);
    let replaced = answer.out.split("in place of ").nth(1).expect("it says what it replaced").trim();
    assert!(answer.err.contains(&format!("{replaced}, which the patch had replaced, is gone too")), "{answer}");
    assert_eq!(target.ask(), OLD);
    status(target.pid()).exits(3);
    hp(["apply", &text(&pair.patch), "--all"]).exits(0);
    assert_eq!(target.ask(), NEW);
}

fn not_healthy_later() {
    let pair = Pair::make();
    let mut target = pair.start();
    let count = pair.folder.path().join("count");
    let check = format!("echo x >> {0}; test $(wc -l < {0}) -lt 3", count.display());
    let answer = hp(["apply", &text(&pair.patch), "--all", "--health", &check, "--health-for", "20s"]).exits(1);
    assert_eq!(std::fs::read_to_string(count).expect("the command ran").lines().count(), 3, "{answer}");
    assert_eq!(target.ask(), OLD);
}

/// One that the patch may have killed: the others are changed back.
fn a_process_ends_meanwhile() {
    let pair = Pair::make();
    let (mut first, second) = (pair.start(), pair.start());
    let check = format!("kill -9 {}; sleep 0.2", second.pid());
    let answer = hp(["apply", &text(&pair.patch), "--all", "--health", &check]).exits(1);
    assert!(answer.err.contains(&format!("process {} has ended", second.pid())), "{answer}");
    assert_eq!(first.ask(), OLD);
}
