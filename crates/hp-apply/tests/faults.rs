//! Each system call of an apply and of a revert fails, with each errno that it may give: the target lives, is wholly
//! old or wholly new, no thread of it is left standing, and the next command finishes the job.
//!
//! The clock and sleeping are left out: they fail in no way that matters.

mod common;
use common::*;
use hp_apply::{Done, Error, Fault, Options, Outcome, Phase, apply, failed_call, fault_at, revert, status};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a command with a fault looks for a safe point: a failure may leave it without what it needs to find one.
const PATIENCE: Duration = Duration::from_millis(300);

/// What failures leave in a target are mappings, which every command looks at, with more calls: above so many of them
/// there is another target, or the end would move away as fast as the calls are tried.
const LEFT_BEHIND: usize = 8;

/// How many calls of a command are tried with `HP_FAULTS=all`: all of them, or as many that are spread over it.
const MOST: u64 = 400;

/// Time for the failures of one command without that.
const LIMIT: Duration = Duration::from_secs(40);

/// System calls by their numbers on x86-64 (`asm/unistd_64.h`).
const READ: u32 = 0;
const CLOSE: u32 = 3;
const PREAD: u32 = 17;
const PWRITE: u32 = 18;
const PTRACE: u32 = 101;
const GETDENTS: u32 = 217;
const WAITID: u32 = 247;
const OPENAT: u32 = 257;
const STAT: u32 = 262;
const READLINK: u32 = 267;
const KCMP: u32 = 312;

const EPERM: u16 = 1;
const ENOENT: u16 = 2;
const ESRCH: u16 = 3;
const EINTR: u16 = 4;
const EIO: u16 = 5;
const EBADF: u16 = 9;
const ECHILD: u16 = 10;
const EAGAIN: u16 = 11;
const ENOMEM: u16 = 12;
const EACCES: u16 = 13;
const EFAULT: u16 = 14;
const EINVAL: u16 = 22;
const EMFILE: u16 = 24;
const ENOSYS: u16 = 38;

/// What the manual pages say that a call may give.
fn errnos(call: u32) -> &'static [u16] {
    match call {
        PTRACE => &[ESRCH, EPERM, EIO, EFAULT, EINVAL],
        PWRITE => &[EIO, EPERM, EFAULT, EINTR, ENOMEM, EAGAIN],
        PREAD | READ => &[EIO, EFAULT, EINTR, EACCES, ENOMEM],
        WAITID => &[ECHILD, EINTR],
        OPENAT => &[ENOENT, EACCES, EMFILE, ENOMEM, ESRCH],
        GETDENTS => &[ENOENT, EINVAL],
        STAT | READLINK => &[ENOENT, EACCES, ENOMEM],
        CLOSE => &[EIO, EBADF],
        KCMP => &[EPERM, ESRCH, ENOSYS],
        _ => &[EPERM],
    }
}

/// The errno of each kind in turn.
fn nth<const N: usize>(call: u32, _: u64) -> Option<u16> {
    errnos(call).get(N).copied()
}

const EACH: [fn(u32, u64) -> Option<u16>; 6] = [nth::<0>, nth::<1>, nth::<2>, nth::<3>, nth::<4>, nth::<5>];

fn every_call() -> bool {
    std::env::var("HP_FAULTS").is_ok_and(|what| what == "all")
}

/// Faults are for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what was tried if the test fails just then.
struct Note<'a>(&'a str);

impl Drop for Note<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

struct Trial {
    program: Program,
    threads: &'static str,
    target: Process,
    /// Of a target to which nothing has been done.
    mappings: usize,
    file: Vec<u8>,
    id: String,
    tried: u64,
}

impl Trial {
    fn new(threads: &'static str) -> Trial {
        let program = Program::build_telling(HAMMER, &[]);
        let file = hp_pack::write(&program.patch(HAMMER_NEW, &["work", "inner"])).unwrap();
        let target = program.spawn(&[threads, "0"]);
        let mappings = target.maps().lines().count();
        Trial { program, threads, target, mappings, id: hp_pack::id(&file), file, tried: 0 }
    }

    /// Another target, if this one has gathered too much.
    fn renew(&mut self) {
        if self.target.maps().lines().count() > self.mappings + LEFT_BEHIND {
            self.target = self.program.spawn(&[self.threads, "0"]);
            self.mappings = self.target.maps().lines().count();
        }
    }

    fn run(&self, new: bool, options: &Options) -> Outcome {
        let pid = self.target.pid();
        if new { apply(pid, &self.file, options) } else { revert(pid, None, options) }
    }

    /// The target lives and nothing in it is wrong; whether the patch is in effect.
    fn check(&mut self, when: &str) -> bool {
        self.target.assert_free();
        let entries = status(self.target.pid()).unwrap_or_else(|error| panic!("{when}: {error}"));
        assert!(entries.iter().all(|entry| entry.damage.is_empty()), "{when}: {entries:?}");
        assert_eq!(counts(&mut self.target)[2], 0, "{when}");
        entries.iter().any(|entry| entry.id == self.id && entry.phase == Phase::Active)
    }

    fn settle(&mut self, new: bool, when: &str) {
        let outcome = self.run(new, &options());
        let fine = matches!(
            outcome.result,
            Ok(Done::Applied(_) | Done::AlreadyApplied | Done::Reverted(_) | Done::NotApplied)
        );
        assert!(fine, "{when}: {:?}", outcome.result);
        assert_eq!(self.check(when), new, "{when}");
    }

    /// One command with a fault at one call; false if there is no such call, or it has no such errno.
    fn one(&mut self, new: bool, call: u64, choose: fn(u32, u64) -> Option<u16>) -> Option<bool> {
        self.renew();
        self.settle(!new, "before");
        fault_at(call, Fault::Fail(choose));
        let outcome = self.run(new, &Options { timeout: PATIENCE, ..options() });
        let (made, fired) = (hp_apply::calls(), failed_call());
        fault_at(0, Fault::DieBefore);
        let Some((number, first, errno)) = fired else { return (made >= call).then_some(false) };
        self.tried += 1;
        let what = if new { "apply" } else { "revert" };
        let when = format!("{what}, call {call} ({number}, {first:#x}) fails with {errno}: {:?}", outcome.result);
        assert!(
            !outcome
                .result
                .as_ref()
                .is_err_and(|error| matches!(error, Error::Unusable(text) if text.contains("internal error"))),
            "{when}"
        );
        let _note = Note(&when);
        let in_effect = self.check(&when);
        // What the command says is so.
        match outcome.result {
            Ok(Done::Applied(_) | Done::AlreadyApplied) => assert!(in_effect, "{when}"),
            Ok(Done::Reverted(_) | Done::NotApplied) => assert!(!in_effect, "{when}"),
            _ => {}
        }
        self.settle(new, &when);
        Some(true)
    }

    /// How many calls a command makes to which nothing happens.
    fn length(&mut self, new: bool) -> u64 {
        self.renew();
        self.settle(!new, "before");
        fault_at(u64::MAX, Fault::DieBefore);
        let outcome = self.run(new, &options());
        let made = hp_apply::calls();
        fault_at(0, Fault::DieBefore);
        assert!(outcome.result.is_ok(), "undisturbed: {:?}", outcome.result);
        made
    }

    /// Every `step`-th call from the first to the last, or what `HP_FAULTS` wants, with each errno.
    fn calls(&mut self, new: bool, step: u64) -> u64 {
        let (before, began) = (self.tried, Instant::now());
        let whole = every_call();
        let made = self.length(new);
        let step = if whole { made.div_ceil(MOST) } else { step };
        for call in (1..).step_by(step as usize) {
            if !whole && began.elapsed() > LIMIT {
                break;
            }
            if whole && call % (16 * step) == 1 {
                eprintln!("call {call} of about {made}, {:.0?}, {} failures", began.elapsed(), self.tried - before);
            }
            for choose in EACH {
                match self.one(new, call, choose) {
                    None => {
                        eprintln!("every {step}th of about {made} calls, in {:.0?}", began.elapsed());
                        return self.tried - before;
                    }
                    Some(true) => {}
                    Some(false) => break,
                }
            }
        }
        self.tried - before
    }
}

/// A target that dies is not taken for one that is only slow.
#[test]
fn a_target_that_dies_is_told_of() {
    let mut target = Program::build(HAMMER, &[]).spawn(&["0", "0"]);
    assert_eq!(target.fate(), "it lives");
    run_tool("kill", &["-SEGV", &target.pid().to_string()]);
    assert!(target.fate().starts_with("it ended: signal: 11 (SIGSEGV)"), "{}", target.fate());
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target.ask("")));
    assert!(asked.unwrap_err().downcast_ref::<String>().unwrap().contains("SIGSEGV"));
}

#[test]
fn every_call_fails_with_one_thread() {
    let _alone = alone();
    let mut trial = Trial::new("0");
    let (applies, reverts) = (trial.calls(true, 7), trial.calls(false, 7));
    eprintln!("{applies} failures of an apply and {reverts} of a revert tried");
    assert!(applies >= 20 && reverts >= 20, "{applies}, {reverts}");
}

#[test]
fn calls_fail_with_eight_busy_threads() {
    let _alone = alone();
    let mut trial = Trial::new("8");
    let (applies, reverts) = (trial.calls(true, 61), trial.calls(false, 61));
    eprintln!("{applies} failures of an apply and {reverts} of a revert tried");
    assert!(applies >= 3 && reverts >= 3, "{applies}, {reverts}");
}
