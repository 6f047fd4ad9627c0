//! The calls for programs that we start ourselves: a traced child, its stops, and its end.

extern crate std;

use super::trace::{ptrace, wait_id};
use super::{Errno, raw};
use crate::prelude::*;
use linux_raw_sys::{general as nr, prctl, ptrace as request};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Signals that a parent passes on to the program that it has started.
const PASSED_ON: [u32; 6] = [nr::SIGTERM, nr::SIGINT, nr::SIGHUP, nr::SIGQUIT, nr::SIGUSR1, nr::SIGUSR2];
/// `SI_USER`: at most this where a process, not the kernel, has sent a signal.
const SI_USER: i32 = 0;

/// These and the one that tells of a child's end, as a `sigset_t`.
fn awaited() -> u64 {
    PASSED_ON.into_iter().chain([nr::SIGCHLD]).fold(0, |set, signal| set | 1 << (signal - 1))
}

/// Blocks signals, or sets which are blocked; gives the set before.
fn signal_mask(how: u32, set: u64) -> Result<u64, Errno> {
    let (set, mut before) = ([set], [0u64]);
    let arguments = [u64::from(how), set.as_ptr() as u64, before.as_mut_ptr() as u64, 8, 0, 0];
    // SAFETY: both sets have the 8 bytes that the call is told of.
    unsafe { raw::call(nr::__NR_rt_sigprocmask, arguments) }?;
    Ok(before[0])
}

/// Starts a program traced by this thread; its first stop is that of its exec. Blocks the
/// signals of [`wait_for_child`] in this thread from now on, not in the program. The
/// program dies when this thread does.
pub(crate) fn spawn_traced(command: &mut Command) -> io::Result<Child> {
    let before = signal_mask(nr::SIG_BLOCK, awaited()).map_err(io_error)?;
    let prepare = move || {
        signal_mask(nr::SIG_SETMASK, before).map_err(io_error)?;
        let arguments = [u64::from(prctl::PR_SET_PDEATHSIG), u64::from(nr::SIGKILL), 0, 0, 0, 0];
        // SAFETY: takes plain numbers only.
        unsafe { raw::call(nr::__NR_prctl, arguments) }.map_err(io_error)?;
        ptrace(request::PTRACE_TRACEME, 0, 0, 0).map(drop).map_err(io_error)
    };
    // SAFETY: the closure makes only calls that are safe in a forked child: no memory is allocated.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

fn io_error(error: Errno) -> io::Error {
    io::Error::from_raw_os_error(i32::from(error.0))
}

/// A traced program is killed when its tracer ends.
pub(crate) fn die_with_us(pid: i32) -> Result<(), Errno> {
    ptrace(request::PTRACE_SETOPTIONS, pid, 0, u64::from(request::PTRACE_O_EXITKILL)).map(drop)
}

/// What a blocking wait for a traced child came to.
pub(crate) enum Waited {
    /// It stands, with this signal.
    Stopped(i32),
    /// It is no more; its parent still has to reap it.
    Ended,
}

pub(crate) fn wait_for_stop(pid: i32) -> Result<Waited, Errno> {
    // The end is left for `wait_for_child`.
    let found = loop {
        match wait_id(pid, nr::WSTOPPED | nr::WEXITED | nr::WNOWAIT | nr::__WALL) {
            Err(Errno::EINTR) => {}
            found => break found?,
        }
    };
    match found {
        Some((nr::CLD_TRAPPED | nr::CLD_STOPPED, status)) => {
            let _ = wait_id(pid, nr::WSTOPPED | nr::__WALL);
            Ok(Waited::Stopped(status & 0x7f))
        }
        _ => Ok(Waited::Ended),
    }
}

/// How a child ended.
pub(crate) enum Ended {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Waits until a child ends. What somebody sends us meanwhile is passed on to it; what the
/// terminal sends, it has got itself.
pub(crate) fn wait_for_child(pid: i32) -> Result<Ended, Errno> {
    loop {
        match wait_id(pid, nr::WEXITED | nr::WNOHANG)? {
            Some((nr::CLD_EXITED, code)) => return Ok(Ended::Exited(code)),
            Some((_, signal)) => return Ok(Ended::Killed(signal)),
            None => {}
        }
        let (signal, code) = wait_for_signal()?;
        if signal != nr::SIGCHLD && code <= SI_USER {
            let _ = send(pid, signal as i32);
        }
    }
}

/// Waits for one of the awaited signals: its number, and how it came (`si_code`).
fn wait_for_signal() -> Result<(u32, i32), Errno> {
    let (set, mut info) = ([awaited()], [0i32; 32]);
    let arguments = [set.as_ptr() as u64, info.as_mut_ptr() as u64, 0, 8, 0, 0];
    loop {
        // SAFETY: `info` is as large as a siginfo_t, the set has 8 bytes; a null pointer is no timeout.
        match unsafe { raw::call(nr::__NR_rt_sigtimedwait, arguments) } {
            Err(Errno::EINTR) => {}
            result => return result.map(|signal| (signal as u32, info[2])),
        }
    }
}

/// Sends a signal.
pub(crate) fn send(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill(2) takes plain numbers only.
    unsafe { raw::call(nr::__NR_kill, [pid as u64, signal as u64, 0, 0, 0, 0]) }.map(drop)
}

/// Whether the program file of a process has capabilities of its own (capabilities(7)).
pub(crate) fn has_capabilities(pid: i32) -> bool {
    let (path, name) = (format!("/proc/{pid}/exe\0"), c"security.capability");
    let arguments = [path.as_ptr() as u64, name.as_ptr() as u64, 0, 0, 0, 0];
    // SAFETY: both strings end with NUL; a null buffer of length 0 asks for the size only.
    unsafe { raw::call(nr::__NR_getxattr, arguments) }.is_ok()
}
