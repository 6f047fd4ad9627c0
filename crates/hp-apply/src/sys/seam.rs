//! Faults that tests put into system calls: what a call passes before and after it is made.
//!
//! Calls are counted, but for looking at the clock and for sleeping: these change nothing, and how often they
//! happen is chance. A call that changes a target, or a thread of it, counts as two *points* as well, before
//! and after.
//!
//! Absent from the small applier, which has no standard library.

extern crate std;

use super::{Errno, raw};
use linux_raw_sys::general as nr;
use linux_raw_sys::ptrace;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What happens at a call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// We are killed instead of making it.
    DieBefore,
    /// We are killed when it has been made.
    DieAfter,
    /// It is made later.
    Delay(Duration),
    /// It is not made and fails with the errno that this function gives for the call's number and first
    /// argument, if any.
    Fail(fn(u32, u64) -> Option<u16>),
}

static DIE_AT: AtomicU64 = AtomicU64::new(0);
static POINTS: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);
static ARMED: AtomicBool = AtomicBool::new(false);
static PLAN: Mutex<Option<(u64, Fault)>> = Mutex::new(None);
static FIRED: Mutex<Option<(u32, u64, u16)>> = Mutex::new(None);
static REFUSED: Mutex<Option<(u64, u64, u16)>> = Mutex::new(None);
static REMOTE_CALLS: AtomicU64 = AtomicU64::new(0);

/// This process kills itself at the n-th point from now, counted from 1. 0 switches that off.
pub fn die_at(n: u64) {
    POINTS.store(0, Ordering::SeqCst);
    DIE_AT.store(n, Ordering::SeqCst);
}

/// How many points were passed since [`die_at`].
pub fn points() -> u64 {
    POINTS.load(Ordering::SeqCst)
}

/// At the n-th call from now, counted from 1, this happens. 0 switches that off.
pub fn fault_at(n: u64, fault: Fault) {
    *lock(&PLAN) = (n > 0).then_some((n, fault));
    *lock(&FIRED) = None;
    CALLS.store(0, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
}

/// How many calls were made since [`fault_at`].
pub fn calls() -> u64 {
    CALLS.load(Ordering::SeqCst)
}

/// Which call a fault of [`fault_at`] made fail: number, first argument, errno.
pub fn failed_call() -> Option<(u32, u64, u16)> {
    *lock(&FIRED)
}

/// Calls that threads of a target make for us are refused in the target with this errno, from the n-th to the last of
/// these numbers, counted from 1 and from now, as a security module refuses them: no filter tells of it before.
pub fn refuse_in_target(first: u64, last: u64, errno: u16) {
    *lock(&REFUSED) = (first <= last).then_some((first, last, errno));
    REMOTE_CALLS.store(0, Ordering::SeqCst);
}

/// How many calls threads of targets have made for us since [`refuse_in_target`].
pub fn calls_in_target() -> u64 {
    REMOTE_CALLS.load(Ordering::SeqCst)
}

/// What a call that is about to be made in a target comes to without being made, if that is wanted.
pub(crate) fn refused_in_target() -> Option<Errno> {
    let here = REMOTE_CALLS.fetch_add(1, Ordering::SeqCst) + 1;
    lock(&REFUSED).filter(|(first, last, _)| (*first..=*last).contains(&here)).map(|(.., errno)| Errno(errno))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether a call changes something of a target.
fn is_changing(number: u32, first: u64) -> bool {
    match number {
        nr::__NR_pwrite64 | nr::__NR_kill => true,
        nr::__NR_ptrace => !matches!(
            first as u32,
            ptrace::PTRACE_GETREGS
                | ptrace::PTRACE_GETREGSET
                | ptrace::PTRACE_GET_RSEQ_CONFIGURATION
                | ptrace::PTRACE_SECCOMP_GET_FILTER
        ),
        _ => false,
    }
}

fn is_counted(number: u32) -> bool {
    !matches!(number, nr::__NR_clock_gettime | nr::__NR_nanosleep)
}

pub(super) fn before(number: u32, first: u64) -> Result<(), Errno> {
    if is_changing(number, first) {
        point();
    }
    if !ARMED.load(Ordering::Relaxed) || !is_counted(number) {
        return Ok(());
    }
    let here = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    let planned = *lock(&PLAN);
    match planned.filter(|(n, _)| *n == here) {
        Some((_, Fault::DieBefore)) => die(),
        Some((_, Fault::Delay(time))) => std::thread::sleep(time),
        Some((_, Fault::Fail(choose))) => {
            if let Some(errno) = choose(number, first) {
                *lock(&FIRED) = Some((number, first, errno));
                return Err(Errno(errno));
            }
        }
        _ => {}
    }
    Ok(())
}

pub(super) fn after(number: u32, first: u64) {
    if is_changing(number, first) {
        point();
    }
    if ARMED.load(Ordering::Relaxed) && is_counted(number) {
        let planned = *lock(&PLAN);
        if matches!(planned, Some((n, Fault::DieAfter)) if n == CALLS.load(Ordering::Relaxed)) {
            die();
        }
    }
}

fn point() {
    let here = POINTS.fetch_add(1, Ordering::Relaxed) + 1;
    if DIE_AT.load(Ordering::Relaxed) == here {
        die();
    }
}

fn die() -> ! {
    let own = u64::from(std::process::id());
    loop {
        // SAFETY: kill(2) touches no memory of ours.
        unsafe { raw::instruction(nr::__NR_kill, [own, u64::from(nr::SIGKILL), 0, 0, 0, 0]) };
    }
}
