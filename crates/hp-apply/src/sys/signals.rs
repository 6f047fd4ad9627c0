//! The signals by which a user ends a command, held back while it works on targets: it gives up what it waits for,
//! leaves the targets as they were, and ends by the signal then.

#[cfg(feature = "std")]
extern crate std;

use super::{raw, sleep};
use crate::sys::Instant;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use linux_raw_sys::general as nr;

const ENDING: [u32; 4] = [nr::SIGHUP, nr::SIGINT, nr::SIGQUIT, nr::SIGTERM];
/// How soon a signal is noticed.
const TICK: Duration = Duration::from_millis(20);

/// The signals that are held back now, as a `sigset_t`; none while nobody is to give up.
static HELD: AtomicU64 = AtomicU64::new(0);
/// Something was given up because of one.
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Signals of this command are held back, in this thread and in those that it starts.
#[derive(Debug)]
pub struct HeldSignals {
    before: u64,
    held: u64,
}

/// Holds back the signals that would end this command: all of hang-up, interrupt, quit and termination that it does not
/// ignore and that are not blocked already. There must be no other thread yet.
pub fn hold_signals() -> HeldSignals {
    let before = mask(nr::SIG_BLOCK, 0);
    let bit = |signal: u32| 1u64 << (signal - 1);
    let held = ENDING.iter().filter(|signal| before & bit(**signal) == 0 && !is_ignored(**signal));
    let set = held.fold(0, |set, signal| set | bit(*signal));
    mask(nr::SIG_BLOCK, set);
    HELD.store(set, Ordering::Relaxed);
    HeldSignals { before, held: set }
}

/// Whether a signal that is held back has come. Who asks and is told so gives up what is left of its work.
pub fn interrupted() -> bool {
    let has_come = has_come();
    GIVEN_UP.fetch_or(has_come, Ordering::Relaxed);
    has_come
}

fn has_come() -> bool {
    let held = HELD.load(Ordering::Relaxed);
    held != 0 && pending() & held != 0
}

impl HeldSignals {
    /// From now on nothing gives up: what has been done is taken back.
    pub fn hold_on(&self) {
        HELD.store(0, Ordering::Relaxed);
    }

    /// The work is at its end. If something was given up, the command ends here, by its signal. One that has come when all
    /// was done changes nothing any more.
    pub fn end(self) {
        if GIVEN_UP.load(Ordering::Relaxed) || !has_come() {
            self.let_come();
        }
    }

    /// The signal by which [`end`](Self::end) will end this command, if it will.
    pub fn ends_by(&self) -> Option<u32> {
        let come = pending() & self.held;
        (GIVEN_UP.load(Ordering::Relaxed) && come != 0).then(|| come.trailing_zeros() + 1)
    }

    /// A part of the work is at its end, and none of the rest is to be taken back: a signal that has come ends the command
    /// here, whether something was given up or not.
    pub fn let_come(self) {
        self.hold_on();
        mask(nr::SIG_SETMASK, self.before);
    }

    /// Has a command of ours start without signals held back.
    #[cfg(feature = "std")]
    pub fn not_in(&self, command: &mut std::process::Command) {
        use std::os::unix::process::CommandExt;
        let before = self.before;
        // SAFETY: the closure makes one system call in the forked child.
        unsafe {
            command.pre_exec(move || {
                mask(nr::SIG_SETMASK, before);
                Ok(())
            });
        }
    }
}

/// Has this thread live on where its writes are above its limit for files (`RLIMIT_FSIZE`), as those to the memory of
/// another process are: they fail.
pub(crate) fn outlive_file_limit() {
    mask(nr::SIG_BLOCK, 1 << (nr::SIGXFSZ - 1));
}

/// Sleeps, but not on when a signal has come that is held back.
pub(crate) fn sleep_unless_interrupted(time: Duration) {
    if HELD.load(Ordering::Relaxed) == 0 {
        return sleep(time);
    }
    let began = Instant::now();
    while !has_come() {
        match time.checked_sub(began.elapsed()) {
            None | Some(Duration::ZERO) => return,
            Some(left) => sleep(left.min(TICK)),
        }
    }
}

/// Changes which signals are blocked; the set before.
fn mask(how: u32, set: u64) -> u64 {
    let (set, mut before) = ([set], [0u64]);
    let arguments = [u64::from(how), set.as_ptr() as u64, before.as_mut_ptr() as u64, 8, 0, 0];
    // SAFETY: both sets have the 8 bytes that the call is told of.
    let _ = unsafe { raw::call(nr::__NR_rt_sigprocmask, arguments) };
    before[0]
}

fn pending() -> u64 {
    let mut set = [0u64];
    // SAFETY: the set has the 8 bytes that the call is told of.
    let _ = unsafe { raw::call(nr::__NR_rt_sigpending, [set.as_mut_ptr() as u64, 8, 0, 0, 0, 0]) };
    set[0]
}

fn is_ignored(signal: u32) -> bool {
    const SIG_IGN: u64 = 1;
    // struct kernel_sigaction: handler, flags, restorer, mask.
    let mut action = [0u64; 4];
    let arguments = [u64::from(signal), 0, action.as_mut_ptr() as u64, 8, 0, 0];
    // SAFETY: the structure has the kernel's layout and is writable; a null pointer changes nothing.
    let _ = unsafe { raw::call(nr::__NR_rt_sigaction, arguments) };
    action[0] == SIG_IGN
}
