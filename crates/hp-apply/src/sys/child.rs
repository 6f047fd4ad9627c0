//! The calls for programs that we start ourselves: a traced child, its stops, and its end.

use super::ptrace;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Signals that a parent passes on to the program that it has started.
const PASSED_ON: [i32; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// These and the one that tells of a child's end.
fn awaited() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset(3) initialises the set, sigaddset(3) adds to it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in PASSED_ON.into_iter().chain([libc::SIGCHLD]) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Starts a program traced by this thread; its first stop is that of its exec. Blocks the
/// signals of [`wait_for_child`] in this thread from now on, not in the program. The
/// program dies when this thread does.
pub(crate) fn spawn_traced(command: &mut Command) -> io::Result<Child> {
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are valid for the call.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &awaited(), before.as_mut_ptr()) };
    // SAFETY: zeroed or filled by the kernel, and plain data.
    let before = unsafe { before.assume_init() };
    let prepare = move || {
        // SAFETY: plain calls that are safe after fork(2): no memory is allocated.
        let failed = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1
                || libc::ptrace(libc::PTRACE_TRACEME, 0, 0usize, 0usize) == -1
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes only calls that are safe in a forked child.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// A traced program is killed when its tracer ends.
pub(crate) fn die_with_us(pid: i32) -> io::Result<()> {
    ptrace(u64::from(libc::PTRACE_SETOPTIONS), pid, 0, libc::PTRACE_O_EXITKILL as u64).map(drop)
}

/// What a blocking wait for a traced child came to.
pub(crate) enum Waited {
    /// It stands, with this signal.
    Stopped(i32),
    /// It is no more; its parent still has to reap it.
    Ended,
}

pub(crate) fn wait_for_stop(pid: i32) -> io::Result<Waited> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is a writable siginfo_t.
    let look = |options, info: *mut libc::siginfo_t| unsafe { libc::waitid(libc::P_PID, pid as u32, info, options) };
    // The end is left for `wait_for_child`.
    if look(libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::__WALL, info.as_mut_ptr()) == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the kernel; for waitid the SIGCHLD members are the valid ones.
    let (code, status) = unsafe { (info.assume_init_ref().si_code, info.assume_init_ref().si_status()) };
    if !matches!(code, libc::CLD_TRAPPED | libc::CLD_STOPPED) {
        return Ok(Waited::Ended);
    }
    look(libc::WSTOPPED | libc::__WALL, info.as_mut_ptr());
    Ok(Waited::Stopped(status & 0x7f))
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
pub(crate) fn wait_for_child(pid: i32) -> io::Result<Ended> {
    let set = awaited();
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable.
        match unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } {
            0 => {}
            -1 => return Err(io::Error::last_os_error()),
            _ if libc::WIFSIGNALED(status) => return Ok(Ended::Killed(libc::WTERMSIG(status))),
            _ => return Ok(Ended::Exited(libc::WEXITSTATUS(status))),
        }
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: both are valid for the call, and `info` is filled when it succeeds.
        let signal = unsafe { libc::sigwaitinfo(&set, info.as_mut_ptr()) };
        // SAFETY: zeroed or filled by the kernel.
        let code = unsafe { info.assume_init_ref().si_code };
        if signal > 0 && signal != libc::SIGCHLD && code <= libc::SI_USER {
            let _ = send(pid, signal);
        }
    }
}

/// Sends a signal.
pub(crate) fn send(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes plain numbers only.
    if unsafe { libc::kill(pid, signal) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the program file of a process has capabilities of its own (capabilities(7)).
pub(crate) fn has_capabilities(pid: i32) -> bool {
    let Ok(path) = CString::new(format!("/proc/{pid}/exe")) else { return true };
    // SAFETY: both strings end with NUL; a null buffer of length 0 asks for the size only.
    let size = unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    size >= 0
}
