//! Several appliers at work on one process, each in a process of its own, truly at the same time: none knows of the
//! others, each is held up for a moment or killed at a call that chance picks, and what they want is not the same. Each may fail,
//! saying why; the target may not: it goes on, no call sees one function old and the other new, and its record says what is
//! the case.
//!
//! For some seconds; `HP_SIDE_BY_SIDE=600` for ten minutes, `HP_SEED` begins elsewhere.

mod common;
use common::*;
use hp_apply::{Done, Fault, Options, Phase, apply, revert, status};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// How many of them there are.
const APPLIERS: u64 = 3;
/// For how long, if nobody says otherwise.
const SECONDS: u64 = 5;
/// How many calls an apply or revert makes, about.
const CALLS: u64 = 250;
/// One in so many is killed, at one of so many points.
const KILLED: u64 = 10;
const POINTS: u64 = 120;
/// Longest delay of one of them.
const DELAY: Duration = Duration::from_millis(12);

/// What one of them says of each thing that it has done.
const DONE: &str = "done";

/// The numbers that chance picks (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

/// Not a test by itself: one of the appliers, in a process of its own.
#[test]
fn one_of_them() {
    let Ok(job) = std::env::var("HP_APPLY_TEST_ONE_OF_THEM") else { return };
    let words: Vec<&str> = job.split(' ').collect();
    let [pid, milliseconds, seed, patches @ ..] = words.as_slice() else { panic!("{job}") };
    let (pid, milliseconds) = (pid.parse().unwrap(), milliseconds.parse().unwrap());
    let patches: Vec<Vec<u8>> = patches.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let options = Options { timeout: Duration::from_secs(1), ..options() };
    let (mut chance, began) = (Chance(seed.parse().unwrap()), Instant::now());
    while began.elapsed() < Duration::from_millis(milliseconds) {
        let delay = Duration::from_micros(chance.below(DELAY.as_micros() as u64));
        let (call, point) = (1 + chance.below(CALLS), 1 + chance.below(POINTS));
        hp_apply::fault_at(call, Fault::Delay(delay));
        hp_apply::die_at(if chance.below(KILLED) == 0 { point } else { 0 });
        let what = chance.below(patches.len() as u64 + 1) as usize;
        let result = match patches.get(what) {
            Some(patch) => apply(pid, patch, &options).result,
            None => revert(pid, None, &options).result,
        };
        match &result {
            Ok(Done::Applied(_) | Done::Reverted(_)) => println!("{DONE}"),
            Ok(_) => {}
            // Another holds the threads, has changed what was read, or has applied the newer patch.
            Err(error) => println!("{what} held up at {call} for {delay:?}: {error}"),
        }
    }
}

/// Runs one of them, and when it has been killed the next, until the time is over. What they have done.
fn run(target: i32, until: Instant, mut seed: u64, patches: &str) -> usize {
    let mut done = 0;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_of_them", "--nocapture"])
            .env("HP_APPLY_TEST_ONE_OF_THEM", format!("{target} {} {seed} {patches}", left.as_millis()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{text}");
        let killed = output.status.signal() == Some(9);
        assert!(output.status.success() || killed, "{text}{}", String::from_utf8_lossy(&output.stderr));
        done += text.lines().filter(|line| *line == DONE).count();
        seed += APPLIERS;
    }
    done
}

#[test]
fn appliers_side_by_side_harm_nobody() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seconds, seed) = (number("HP_SIDE_BY_SIDE").unwrap_or(SECONDS), number("HP_SEED").unwrap_or(1));
    let program = Program::build_telling(VERSIONED, &[]);
    let mut target = program.spawn(&["3", "1"]);
    let files = [(2, 1), (3, 2)].map(|(number, counter)| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), hp_pack::write(&version(&program, number, counter)).unwrap()).unwrap();
        file
    });
    let patches = files.iter().map(|file| file.path().display().to_string()).collect::<Vec<_>>().join(" ");
    let (pid, until) = (target.pid(), Instant::now() + Duration::from_secs(seconds));
    let done: usize = std::thread::scope(|scope| {
        let patches = &patches;
        let each: Vec<_> =
            (0..APPLIERS).map(|which| scope.spawn(move || run(pid, until, seed + which, patches))).collect();
        each.into_iter().map(|applier| applier.join().unwrap()).sum()
    });
    println!("{done} applies and reverts in {seconds} s, from {seed}");
    target.assert_free();
    // Nothing was wrong, and the record says what is the case.
    let now = version_of(&mut target);
    let active = status(pid).unwrap().iter().filter(|entry| entry.phase == Phase::Active).count();
    assert_eq!(active, usize::from(now > 1), "it is of version {now}");
    let last = revert(pid, None, &options()).result;
    assert!(matches!(last, Ok(Done::Reverted(_) | Done::NotApplied)), "{last:?}");
    assert_eq!(version_of(&mut target), 1);
    assert!(done as u64 >= seconds, "they only got in each other's way");
}
