//! The applier killed before and after each thing that it does: the target lives, is wholly of one version, which
//! `status` names, no thread of it stands, and the next command finishes.
//!
//! A *moment* is before or after a call. Ordinary runs try those calls that change something of the target, all of
//! them or a part; with `HP_KILLED=all` it is all of them always (minutes), and with `HP_KILLED=calls` every call that
//! is made at all, reading ones too, between which nothing happens to the target; `MOST` of them, spread, for a command
//! that makes more than twice as many.

mod common;
use common::*;
use hp_apply::{Done, Fault, Phase, apply, revert, status};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

/// Not a test by itself: the applier of the others, in a process that may be killed.
#[test]
fn applier() {
    let Ok(job) = std::env::var("HP_APPLY_TEST_JOB") else { return };
    let mut words = job.split(' ');
    let mut next = || words.next().unwrap().to_owned();
    let (what, pid, kind, number, file) = (next(), next().parse().unwrap(), next(), next().parse().unwrap(), next());
    match kind.as_str() {
        "point" => hp_apply::die_at(number),
        "before" => hp_apply::fault_at(number, Fault::DieBefore),
        _ => hp_apply::fault_at(number, Fault::DieAfter),
    }
    let outcome = match what.as_str() {
        "apply" => apply(pid, &std::fs::read(file).unwrap(), &options()),
        _ => revert(pid, None, &options()),
    };
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
}

fn start(what: &str, target: &Process, moment: &str, file: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "applier", "--nocapture"])
        .env("HP_APPLY_TEST_JOB", format!("{what} {} {moment} {}", target.pid(), file.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the applier until it is killed, or to its end; whether it was killed.
fn run(what: &str, target: &Process, moment: &str, file: &Path) -> bool {
    let output = start(what, target, moment, file).wait_with_output().unwrap();
    let killed = output.status.signal() == Some(9);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(killed || output.status.success(), "{what}, {moment}: {text}");
    killed
}

/// How many calls of a command are tried with `HP_KILLED=calls`: all of them, or as many that are spread over it.
const MOST: u64 = 4000;

/// What a killed applier leaves in a target are mappings, which every command looks at, with more calls: above so many
/// of them there is another target, or the end would move away as fast as the calls are tried.
const LEFT_BEHIND: usize = 8;

fn every_call() -> bool {
    std::env::var("HP_KILLED").is_ok_and(|what| what == "calls")
}

/// A command that is killed: what it is, and the versions before and after it.
#[derive(Clone, Copy, Debug)]
struct Job {
    what: &'static str,
    from: i64,
    to: i64,
}

const APPLY: Job = Job { what: "apply", from: 1, to: 2 };
const REVERT: Job = Job { what: "revert", from: 2, to: 1 };
/// A newer patch takes the place of an older one.
const REPLACE: Job = Job { what: "apply", from: 2, to: 3 };
/// And goes, back to the base.
const REVERT_REPLACED: Job = Job { what: "revert", from: 3, to: 1 };
const JOBS: [Job; 4] = [APPLY, REVERT, REPLACE, REVERT_REPLACED];

struct Trial {
    program: Rc<Program>,
    arguments: Vec<String>,
    target: Process,
    /// Of a target to which nothing has been done.
    mappings: usize,
    /// What was left in earlier targets.
    left: usize,
    /// Versions 2 and 3.
    patches: [tempfile::NamedTempFile; 2],
    ids: [String; 2],
}

impl Trial {
    /// `make` gives the patch of a version with a counter.
    fn new(program: Rc<Program>, arguments: &[&str], make: impl Fn(u32, u64) -> hp_pack::Patch) -> Trial {
        let files = [make(2, 1), make(3, 2)].map(|patch| hp_pack::write(&patch).unwrap());
        let ids = [0, 1].map(|index| hp_pack::id(&files[index]));
        let patches = files.map(|file| {
            let patch = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(patch.path(), file).unwrap();
            patch
        });
        let target = program.spawn(arguments);
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mappings = target.maps().lines().count();
        Trial { program, arguments, target, mappings, left: 0, patches, ids }
    }

    /// Another target, if this one has gathered too much.
    fn renew(&mut self) {
        let left = self.left_now();
        if left > LEFT_BEHIND {
            self.left += left;
            let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
            self.target = self.program.spawn(&arguments);
            self.mappings = self.target.maps().lines().count();
        }
    }

    /// How many mappings more than at first the target has.
    fn left_now(&self) -> usize {
        self.target.maps().lines().count().saturating_sub(self.mappings)
    }

    /// Threads that call the replaced functions without pause, and threads that make such threads.
    fn hammered(arguments: &[&str]) -> Trial {
        let program = Rc::new(Program::build_telling(VERSIONED, &[]));
        Trial::new(program.clone(), arguments, |number, counter| version(&program, number, counter))
    }

    fn path(&self, version: i64) -> &Path {
        self.patches[version as usize - 2].path()
    }

    /// Which version the target is of; `status` must say the same.
    fn version(&mut self, when: &str) -> i64 {
        self.target.assert_free();
        let number = version_of(&mut self.target);
        let entries = status(self.target.pid()).unwrap();
        assert!(entries.iter().all(|entry| entry.damage.is_empty()), "{when}: {entries:?}");
        let active: Vec<String> = entries.into_iter().filter(|e| e.phase == Phase::Active).map(|e| e.id).collect();
        let expected = if number == 1 { Vec::new() } else { vec![self.ids[number as usize - 2].clone()] };
        assert_eq!(active, expected, "{when}");
        number
    }

    fn apply(&mut self, version: i64, when: &str) {
        let file = std::fs::read(self.path(version)).unwrap();
        let result = apply(self.target.pid(), &file, &options()).result;
        assert!(matches!(result, Ok(Done::Applied(_) | Done::AlreadyApplied)), "{when}: {result:?}");
        assert_eq!(self.version(when), version, "{when}");
        let result = apply(self.target.pid(), &file, &options()).result;
        assert_eq!(result, Ok(Done::AlreadyApplied), "{when}");
    }

    fn revert(&mut self, when: &str) {
        let result = revert(self.target.pid(), None, &options()).result;
        assert!(matches!(result, Ok(Done::Reverted(_) | Done::NotApplied)), "{when}: {result:?}");
        assert_eq!(self.version(when), 1, "{when}");
        assert_eq!(revert(self.target.pid(), None, &options()).result, Ok(Done::NotApplied), "{when}");
    }

    /// Of several patches one at most is in effect; to revert another changes nothing.
    fn revert_one(&mut self, version: i64, when: &str) {
        let before = self.version(when);
        let result = revert(self.target.pid(), Some(&self.ids[version as usize - 2]), &options()).result;
        assert!(matches!(result, Ok(Done::Reverted(_) | Done::NotApplied)), "{when}: {result:?}");
        assert_eq!(self.version(when), if before == version { 1 } else { before }, "{when}");
    }

    /// One command killed at one moment, and one of several ways to go on; whether it was killed.
    fn one(&mut self, job: Job, moment: &str, way: u64) -> bool {
        let when = format!("{job:?}, {moment}");
        if job.from > 1 {
            self.apply(job.from, &when);
        }
        let path = self.path(if job.what == "apply" { job.to } else { 2 }).to_owned();
        let killed = run(job.what, &self.target, moment, &path);
        let left = self.version(&when);
        assert!(left == job.to || killed && left == job.from, "{when}: version {left}");
        match (way % 3, job.to) {
            (0, 1) => self.revert(&when),
            (0, to) => self.apply(to, &when),
            (1, _) => self.revert_one(job.from.max(job.to), &when),
            _ => {}
        }
        self.revert(&when);
        killed
    }

    /// Every `step`-th moment of a command, or what `HP_KILLED` wants.
    fn moments(&mut self, job: Job, step: u64) -> u64 {
        if every_call() {
            return self.calls(job);
        }
        let step = if std::env::var("HP_KILLED").is_ok_and(|what| what == "all") { 1 } else { step };
        let mut tried = 0;
        for number in (1..).step_by(step as usize) {
            if !self.one(job, &format!("point {number}"), tried) {
                break;
            }
            tried += 1;
        }
        tried
    }

    /// Before each call of a command, or `MOST` of them, and after the last of these. What is after one call is
    /// before the next.
    fn calls(&mut self, job: Job) -> u64 {
        let (mut end, mut step) = (1, 1);
        while self.one(job, &format!("before {end}"), end) {
            end *= 2;
        }
        if end > 2 * MOST {
            step = end.div_ceil(2 * MOST);
        }
        let (mut tried, mut number) = (0, 1);
        while self.one(job, &format!("before {number}"), tried) {
            (tried, number) = (tried + 1, number + step);
            self.renew();
        }
        tried + u64::from(self.one(job, &format!("after {}", number.saturating_sub(step).max(1)), tried))
    }

    /// One target goes through all of it, which also shows that nothing adds up.
    fn every_moment(mut self, jobs: &[Job], step: u64, least: u64) {
        for &job in jobs {
            let tried = self.moments(job, step);
            eprintln!("{job:?}: killed at {tried} moments");
            assert!(tried >= least, "{job:?}: only {tried} moments");
        }
        // A mapping leaks where the applier dies between the call that makes it and its first write.
        let left = self.left + self.left_now();
        eprintln!("{left} mappings left behind");
        assert!(left <= 16 * jobs.len(), "{left} left behind, the last target has\n{}", self.target.maps());
    }
}

#[test]
fn at_every_moment_with_one_thread() {
    Trial::hammered(&["0"]).every_moment(&JOBS, 1, 16);
}

#[test]
fn with_eight_busy_threads_and_some_that_are_born_and_die() {
    Trial::hammered(&["8", "1", "50"]).every_moment(&JOBS, 13, 5);
}

#[test]
fn with_sixty_four_busy_threads() {
    Trial::hammered(&["64", "1", "1000"]).every_moment(&JOBS, 101, 3);
}

/// Entries in more pages than are written in one stop: several stops arm, and several tidy.
const MANY: usize = 40;

fn functions(body: impl Fn(usize) -> String) -> String {
    (0..MANY).map(body).collect()
}

/// `work` calls all of the others, and is replaced like them.
fn many_work(version: u32) -> String {
    let calls = functions(|i| format!("    if (f{i}(x) != first) return -1;\n"));
    format!("long work(long x) {{ {NOPS} long first = f0(x);\n{calls}    return first * 1000 + {version}; }}\n")
}

const NOPS: &str = "__asm__ volatile(\".byte 0x0f,0x1f,0x44,0,0\");";

fn many() -> Program {
    let (_, rest) = VERSIONED.split_once("static void *hammer").unwrap();
    let head: String =
        VERSIONED.lines().take_while(|line| !line.contains("noinline")).map(|l| format!("{l}\n")).collect();
    let leaf = |i| format!("__attribute__((noinline,noclone)) long f{i}(long x) {{ {NOPS} return x + 1; }}\n");
    let work = many_work(1);
    Program::build(
        &format!("{head}{}__attribute__((noinline,noclone)) {work}static void *hammer{rest}", functions(leaf)),
        &["-falign-functions=4096"],
    )
}

#[test]
fn with_more_functions_than_one_stop_redirects() {
    let program = Rc::new(many());
    let mut names: Vec<String> = (0..MANY).map(|i| format!("f{i}")).collect();
    names.push("work".to_owned());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let make = |version: u32, counter| {
        let leaf = |i| format!("__attribute__((noinline,noclone)) long f{i}(long x) {{ return x + {version}; }}\n");
        let source = functions(leaf) + &many_work(version);
        hp_pack::Patch { counter, ..program.patch(&source, &names) }
    };
    Trial::new(program.clone(), &["2", "1", "100"], make).every_moment(&JOBS, 17, 10);
}

/// The main thread, which makes the system calls for us, sleeps and counts the sleeps that failed, were too short, or
/// were longer than the machine makes them: another thread, which takes many short naps at the same time, says how late
/// naps come back just then. A sleep that were begun anew after a stop, and not gone on with, would be late by as much as
/// had passed.
const SLEEPER: &str = r#"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static volatile long sleeps, bad;
static _Atomic long usual_us;
__attribute__((noinline,noclone)) long inner(long x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
__attribute__((noinline,noclone)) long work(long x) {
    __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0");
    char buffer[64];
    snprintf(buffer, sizeof buffer, "%ld", x);
    return strtol(buffer, 0, 10) + 1000 + inner(0);
}
static long nap(long us, int *result) {
    struct timespec before, after, time = { 0, us * 1000 };
    clock_gettime(CLOCK_MONOTONIC, &before);
    *result = nanosleep(&time, 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    return (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000 - us;
}
static void *control(void *unused) {
    for (int result;;) {
        long late = nap(5000, &result);
        if (late > usual_us) usual_us = late;
    }
    return unused;
}
static void *talk(void *unused) {
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 's') printf("%ld\n", sleeps);
        else printf("%ld %ld\n", bad, work(0));
        fflush(stdout);
    }
    return unused;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, talk, 0);
    pthread_create(&thread, 0, control, 0);
    puts("ready"); fflush(stdout);
    for (;;) {
        int result;
        usual_us = 0;
        long late = nap(400000, &result);
        if (result != 0 || late < 0 || late > 60000 + 4 * usual_us) bad++;
        sleeps++;
    }
}
"#;

#[test]
fn while_the_main_thread_sleeps() {
    let program = Rc::new(Program::build(SLEEPER, &[]));
    let mut trial = Trial::new(program.clone(), &[], |number, counter| version(&program, number, counter));
    for job in JOBS {
        let tried = trial.moments(job, 3);
        eprintln!("{job:?}: killed at {tried} moments");
        assert!(tried >= 10, "only {tried} moments");
    }
    let mut sleeps = || -> i64 { trial.target.ask("s").parse().unwrap() };
    let before = sleeps();
    while sleeps() < before + 3 {
        std::thread::sleep(Duration::from_millis(100));
    }
    trial.version("at the end");
}

#[test]
fn at_any_time() {
    let mut trial = Trial::hammered(&["2"]);
    let mut killed = 0;
    for round in 0..120u64 {
        let job = JOBS[round as usize % JOBS.len()];
        let when = format!("{job:?}, killed in round {round}");
        if job.from > 1 {
            trial.apply(job.from, &when);
        }
        let path = trial.path(if job.what == "apply" { job.to } else { 2 }).to_owned();
        let mut child = start(job.what, &trial.target, "point 0", &path);
        std::thread::sleep(Duration::from_micros(2000 + (round * 7919) % 20_000));
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        let left = trial.version(&when);
        assert!(left == job.to || left == job.from, "{when}: version {left}");
        trial.revert(&when);
    }
    eprintln!("killed {killed} times");
}
