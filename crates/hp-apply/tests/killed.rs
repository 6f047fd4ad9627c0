//! The applier killed at every point where it has done, or is about to do, something to a
//! target: the target lives, is wholly old or wholly new, and the next command finishes.

mod common;
use common::*;
use hp_apply::{Done, Phase, apply, revert, status};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Not a test by itself: the applier of the others, in a process that may be killed.
#[test]
fn applier() {
    let Ok(job) = std::env::var("HP_APPLY_TEST_JOB") else { return };
    let mut words = job.split(' ');
    let mut next = || words.next().unwrap().to_owned();
    let (what, pid, point, file) = (next(), next().parse().unwrap(), next().parse().unwrap(), next());
    hp_apply::die_at(point);
    let outcome = match what.as_str() {
        "apply" => apply(pid, &std::fs::read(file).unwrap(), &options()),
        _ => revert(pid, None, &options()),
    };
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    eprintln!("points {}", hp_apply::points());
}

fn start(what: &str, target: &Process, point: u64, file: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "applier", "--nocapture"])
        .env("HP_APPLY_TEST_JOB", format!("{what} {} {point} {}", target.pid(), file.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs the applier until it is killed at a point, or to its end: then the number of points.
fn run(what: &str, target: &Process, point: u64, file: &Path) -> Option<u64> {
    let output = start(what, target, point, file).wait_with_output().unwrap();
    if output.status.signal() == Some(9) {
        return None;
    }
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} at {point}: {text}");
    let line = text.lines().find(|line| line.starts_with("points ")).unwrap();
    Some(line[7..].parse().unwrap())
}

struct Trial {
    target: Process,
    patch: tempfile::NamedTempFile,
    id: String,
}

impl Trial {
    fn new(threads: &str, breeders: &str) -> Trial {
        let program = Program::build(HAMMER, &[]);
        Trial::with(&program, &[threads, breeders])
    }

    fn with(program: &Program, arguments: &[&str]) -> Trial {
        let target = program.spawn(arguments);
        let file = hp_pack::write(&program.patch(HAMMER_NEW, &["work", "inner"])).unwrap();
        let patch = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(patch.path(), &file).unwrap();
        Trial { target, patch, id: hp_pack::id(&file) }
    }

    /// The target lives and nothing in it is wrong; whether the patch is in effect.
    fn check(&mut self, when: &str) -> bool {
        self.target.assert_free();
        let entries = status(self.target.pid()).unwrap();
        for entry in &entries {
            assert_eq!(entry.damage, Vec::<String>::new(), "{when}");
        }
        let [_, _, wrong, _] = counts(&mut self.target);
        assert_eq!(wrong, 0, "{when}");
        entries.iter().any(|entry| entry.id == self.id && entry.phase == Phase::Active)
    }

    fn finish_apply(&mut self, when: &str) {
        let file = std::fs::read(self.patch.path()).unwrap();
        let result = apply(self.target.pid(), &file, &options()).result;
        assert!(matches!(result, Ok(Done::Applied(_) | Done::AlreadyApplied)), "{when}: {result:?}");
        assert!(self.check(when), "{when}");
        let result = apply(self.target.pid(), &file, &options()).result;
        assert_eq!(result, Ok(Done::AlreadyApplied), "{when}");
    }

    fn finish_revert(&mut self, when: &str) {
        let result = revert(self.target.pid(), None, &options()).result;
        assert!(matches!(result, Ok(Done::Reverted(_) | Done::NotApplied)), "{when}: {result:?}");
        assert!(!self.check(when), "{when}");
        assert_eq!(revert(self.target.pid(), None, &options()).result, Ok(Done::NotApplied), "{when}");
    }

    /// Every point of an apply and of a revert in turn. A new target would be cleaner, but one
    /// that goes through all of it also shows that nothing adds up.
    fn every_point(&mut self, step: u64) -> u64 {
        let path = self.patch.path().to_owned();
        let mut tried = 0;
        let (mut apply_ended, mut revert_ended) = (false, false);
        let mut point = 1;
        while !(apply_ended && revert_ended) {
            if !apply_ended {
                apply_ended = run("apply", &self.target, point, &path).is_some();
                tried += u64::from(!apply_ended);
                let when = format!("apply killed at point {point}");
                self.check(&when);
                if point.is_multiple_of(2) {
                    self.finish_revert(&when);
                }
                self.finish_apply(&when);
            }
            if !revert_ended {
                self.finish_apply("before the revert");
                revert_ended = run("revert", &self.target, point, &path).is_some();
                tried += u64::from(!revert_ended);
                let when = format!("revert killed at point {point}");
                self.check(&when);
                if point.is_multiple_of(2) {
                    self.finish_apply(&when);
                }
            }
            self.finish_revert("at the end");
            point += step;
        }
        tried
    }
}

#[test]
fn killed_at_every_point_with_one_thread() {
    let mut trial = Trial::new("0", "0");
    let before = trial.target.maps().lines().count();
    let tried = trial.every_point(1);
    eprintln!("killed at {tried} points");
    assert!(tried >= 80, "only {tried} points");
    // A mapping can leak where the applier dies between the call that makes it and its first write.
    let after = trial.target.maps().lines().count();
    eprintln!("{before} mappings before, {after} after");
    assert!(after <= before + 16, "{before} mappings before, {after} after:\n{}", trial.target.maps());
}

#[test]
fn killed_at_many_points_with_eight_busy_threads() {
    let mut trial = Trial::new("8", "1");
    let tried = trial.every_point(7);
    eprintln!("killed at {tried} points");
    assert!(tried >= 10, "only {tried} points");
}

/// The main thread, which makes the system calls for us, sleeps and counts the sleeps that
/// failed or were too short; the counts come from another thread.
const SLEEPER: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <time.h>
static volatile long sleeps, bad;
__attribute__((noinline,noclone)) long inner(long x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
__attribute__((noinline,noclone)) long work(long x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x * 10 + inner(0); }
static void *talk(void *unused) {
    char line[100];
    while (fgets(line, sizeof line, stdin)) { printf("%ld %ld %ld 0\n", work(0), sleeps, bad); fflush(stdout); }
    return unused;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, talk, 0);
    puts("ready"); fflush(stdout);
    for (;;) {
        struct timespec before, after, nap = { 0, 400000000 };
        clock_gettime(CLOCK_MONOTONIC, &before);
        int result = nanosleep(&nap, 0);
        clock_gettime(CLOCK_MONOTONIC, &after);
        double took = after.tv_sec - before.tv_sec + (after.tv_nsec - before.tv_nsec) / 1e9;
        if (result != 0 || took < 0.3999 || took > 3) bad++;
        sleeps++;
    }
}
"#;

#[test]
fn killed_while_the_main_thread_sleeps() {
    let mut trial = Trial::with(&Program::build(SLEEPER, &[]), &[]);
    let tried = trial.every_point(1);
    let [_, before, ..] = counts(&mut trial.target);
    std::thread::sleep(Duration::from_secs(2));
    let [_, after, ..] = counts(&mut trial.target);
    eprintln!("killed at {tried} points");
    assert!(tried >= 80 && after > before, "{tried} points, {before} sleeps before, {after} after");
}

#[test]
fn killed_at_any_time() {
    let mut trial = Trial::new("2", "0");
    let path = trial.patch.path().to_owned();
    let mut killed = 0;
    for round in 0..60u64 {
        for what in ["apply", "revert"] {
            if what == "revert" {
                trial.finish_apply("before");
            }
            let mut child = start(what, &trial.target, 0, &path);
            std::thread::sleep(Duration::from_micros(2000 + (round * 7919) % 20_000));
            child.kill().unwrap();
            killed += u32::from(!child.wait().unwrap().success());
            let when = format!("{what} killed in round {round}");
            trial.check(&when);
            if what == "revert" {
                trial.finish_revert(&when);
            }
        }
    }
    eprintln!("killed {killed} times");
}

/// A newer patch takes the place of an older one: wholly the one or the other, and status says which.
struct Replacement {
    target: Process,
    files: [tempfile::NamedTempFile; 2],
}

impl Replacement {
    fn new(threads: &str) -> Replacement {
        let program = Program::build(VERSIONED, &[]);
        let file = |number, counter| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), hp_pack::write(&version(&program, number, counter)).unwrap()).unwrap();
            file
        };
        Replacement { target: program.spawn(&[threads]), files: [file(2, 1), file(3, 2)] }
    }

    fn id(&self, number: i64) -> String {
        hp_pack::id(&std::fs::read(self.files[number as usize - 2].path()).unwrap())
    }

    fn apply(&self, number: i64) -> Result<Done, hp_apply::Error> {
        apply(self.target.pid(), &std::fs::read(self.files[number as usize - 2].path()).unwrap(), &options()).result
    }

    /// Which version it is, and that `status` says the same.
    fn version(&mut self, when: &str) -> i64 {
        self.target.assert_free();
        let number = version_of(&mut self.target);
        let entries = status(self.target.pid()).unwrap();
        assert!(entries.iter().all(|entry| entry.damage.is_empty()), "{when}: {entries:?}");
        let active: Vec<String> = entries.into_iter().filter(|e| e.phase == Phase::Active).map(|e| e.id).collect();
        let expected = if number == 1 { Vec::new() } else { vec![self.id(number)] };
        assert_eq!(active, expected, "{when}");
        number
    }

    fn every_point(&mut self, step: u64) -> u64 {
        let path = self.files[1].path().to_owned();
        let (mut point, mut tried) = (1, 0);
        loop {
            assert!(matches!(self.apply(2), Ok(Done::Applied(_))), "point {point}");
            let ended = run("apply", &self.target, point, &path).is_some();
            let when = format!("killed at point {point}");
            let left = self.version(&when);
            assert!(left == 3 || left == 2 && !ended, "{when}: {left}");
            match point % 3 {
                0 => {
                    let result = self.apply(3);
                    assert!(matches!(result, Ok(Done::Applied(_) | Done::AlreadyApplied)), "{when}: {result:?}");
                    assert_eq!(self.version(&when), 3, "{when}");
                }
                which => {
                    // Of the two, one is in effect; to revert the other changes nothing.
                    let result = revert(self.target.pid(), Some(&self.id(1 + which as i64)), &options()).result;
                    let expected = if left == 1 + which as i64 { 1 } else { left };
                    assert!(matches!(result, Ok(Done::Reverted(_) | Done::NotApplied)), "{when}: {result:?}");
                    assert_eq!(self.version(&when), expected, "{when}");
                }
            }
            let result = revert(self.target.pid(), None, &options()).result;
            assert!(matches!(result, Ok(Done::Reverted(_) | Done::NotApplied)), "{when}: {result:?}");
            assert_eq!(self.version(&when), 1, "{when}");
            if ended {
                return tried;
            }
            (point, tried) = (point + step, tried + 1);
        }
    }
}

#[test]
fn killed_at_every_point_of_a_replacement() {
    let tried = Replacement::new("0").every_point(1);
    eprintln!("killed at {tried} points");
    assert!(tried >= 40, "only {tried} points");
}

#[test]
fn killed_at_many_points_of_a_replacement_with_eight_busy_threads() {
    let tried = Replacement::new("8").every_point(5);
    eprintln!("killed at {tried} points");
    assert!(tried >= 8, "only {tried} points");
}
