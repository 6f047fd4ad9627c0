//! The one seam to the kernel: every system call that the engine makes passes through here.
//!
//! *Semantics*: thin wrappers, one call each, no policy; no C library is asked. *Error model*:
//! [`Errno`]; callers add what and where. *Faults*: `raw` is the only door, and behind it tests can
//! have any call fail, wait, or be our last (`seam`), which is how "the target survives us" is
//! proven rather than hoped. *Platform*: x86-64, calls that Linux 4.4 has.
//!
//! This is the only module of the engine with `unsafe` code.
#![allow(unsafe_code)]

#[cfg(feature = "std")]
pub(crate) mod child;
mod clock;
mod cpu;
mod errno;
mod file;
#[cfg(feature = "applier")]
pub(crate) mod heap;
#[cfg(any(feature = "applier", test))]
mod host;
mod mem;
mod raw;
#[cfg(feature = "std")]
pub(crate) mod seam;
mod signals;
#[cfg(any(not(feature = "std"), test))]
mod task;
mod trace;

pub(crate) use clock::{Instant, epoch_seconds, now_ns, sleep};
pub(crate) use cpu::cpuid;
pub(crate) use errno::Errno;
pub(crate) use file::{File, about, numbers_in, read_file, read_link, read_piece};
#[cfg(any(feature = "applier", test))]
pub(crate) use file::{names_in, read_file_up_to};
#[cfg(any(feature = "applier", test))]
pub(crate) use host::{effective_user_id, is_terminal, write_all};
#[cfg(feature = "applier")]
pub(crate) use host::{exit, outlive_readers};
pub(crate) use mem::{MAX_RANGES, Mem, Seen, View};
pub use signals::{HeldSignals, hold_signals, interrupted};
pub(crate) use signals::{outlive_file_limit, sleep_unless_interrupted};
#[cfg(not(feature = "std"))]
pub(crate) use task::run_on_its_own;
use trace::poke;
pub(crate) use trace::{
    Regs, StopKind, Wait, bury, detach, extended_state, go_on, go_to_syscall, interrupt, registers, rseq_area,
    seccomp_filter, seize, set_registers, wait,
};

use core::time::Duration;
use linux_raw_sys::general as nr;
use linux_raw_sys::prctl::PR_SET_TIMERSLACK;

/// Numbers of the calls that are made in a target, or looked for in one.
pub(crate) mod number {
    use linux_raw_sys::general as nr;

    pub(crate) const MMAP: i64 = nr::__NR_mmap as i64;
    pub(crate) const MUNMAP: i64 = nr::__NR_munmap as i64;
    pub(crate) const GETPPID: i64 = nr::__NR_getppid as i64;
    pub(crate) const RESTART_SYSCALL: i64 = nr::__NR_restart_syscall as i64;
    #[cfg(feature = "std")]
    pub(crate) const PRCTL: i64 = nr::__NR_prctl as i64;
}

const KCMP_VM: u64 = 1;

/// Whether two processes share one address space; `None` where the kernel does not say.
pub(crate) fn same_memory(a: i32, b: i32) -> Option<bool> {
    // SAFETY: kcmp(2) takes plain numbers only.
    let result = unsafe { raw::call(nr::__NR_kcmp, [a as u64, b as u64, KCMP_VM, 0, 0, 0]) };
    result.ok().map(|order| order == 0)
}

/// Real user ID of the applier.
pub(crate) fn user_id() -> u32 {
    // SAFETY: getuid(2) touches no memory.
    unsafe { raw::call(nr::__NR_getuid, [0; 6]) }.map_or(u32::MAX, |id| id as u32)
}

/// How a thread of ours is scheduled.
pub(crate) struct Priority {
    is_ordinary: bool,
}

impl Priority {
    /// Asks for the processor before all ordinary threads, until dropped: for letting several
    /// threads go. Else each of them takes the processor from us, and the last one waits for
    /// all. Not for waiting: we would keep the processor from those that we wait for.
    /// Without the right to do so nothing happens.
    pub(crate) fn raise() -> Priority {
        // SAFETY: takes plain numbers only; 0 is the calling thread.
        let before = unsafe { raw::call(nr::__NR_sched_getscheduler, [0; 6]) };
        let is_ordinary = before == Ok(u64::from(nr::SCHED_NORMAL));
        if is_ordinary {
            set_scheduler(nr::SCHED_RR | nr::SCHED_RESET_ON_FORK, 1);
        }
        Priority { is_ordinary }
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        if self.is_ordinary {
            set_scheduler(nr::SCHED_NORMAL, 0);
        }
    }
}

fn set_scheduler(policy: u32, priority: i32) {
    // struct sched_param
    let parameters = [priority];
    let arguments = [0, u64::from(policy), parameters.as_ptr() as u64, 0, 0, 0];
    // SAFETY: `parameters` is read during the call; 0 is the calling thread.
    let _ = unsafe { raw::call(nr::__NR_sched_setscheduler, arguments) };
}

/// Has this thread wake from short sleeps when they are over: the kernel adds 50 µs to each otherwise (`man 2 prctl`,
/// `PR_SET_TIMERSLACK`), and while we wait for a thread to stop all others stand.
pub(crate) fn wake_in_time() {
    // SAFETY: takes plain numbers only, and concerns the calling thread.
    let _ = unsafe { raw::call(nr::__NR_prctl, [u64::from(PR_SET_TIMERSLACK), 1, 0, 0, 0, 0]) };
}

/// Pauses between looks at whether a thread has done what it is about to do. The first are short, for mostly it has;
/// the later ones leave the processor to those that are waited for.
pub(crate) struct Pauses(u64);

impl Pauses {
    const FIRST_NS: u64 = 5_000;
    const LONGEST_NS: u64 = 50_000;

    pub(crate) fn new() -> Pauses {
        Pauses(Self::FIRST_NS)
    }

    pub(crate) fn pause(&mut self) {
        pause_ns(self.0);
        self.0 = (self.0 * 2).min(Self::LONGEST_NS);
    }
}

/// Gives the processor away for about this long.
pub(crate) fn pause_ns(nanoseconds: u64) {
    sleep(Duration::from_nanos(nanoseconds));
}
