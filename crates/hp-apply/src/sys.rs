//! The one seam to the kernel: every system call that the engine makes passes through here.
//!
//! *Semantics*: thin wrappers, one call each, no policy. *Error model*: the errno, as
//! [`io::Error`]; callers add what and where. *Faults*: every call that changes a target
//! counts as two points, before and after; a test can have the applier killed at the n-th
//! ([`die_at`]), which is how "the target survives us" is proven rather than hoped.
//!
//! This is the only module of the crate with `unsafe` code.
#![allow(unsafe_code)]

mod child;

use crate::addr::LiveAddr;
pub(crate) use child::{
    Ended, Waited, die_with_us, has_capabilities, send, spawn_traced, wait_for_child, wait_for_stop,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

const PTRACE_SEIZE: u64 = 0x4206;
const PTRACE_INTERRUPT: u64 = 0x4207;
const PTRACE_GETREGSET: u64 = 0x4204;
const PTRACE_GET_RSEQ_CONFIGURATION: u64 = 0x420f;
const PTRACE_SECCOMP_GET_FILTER: u64 = 0x420c;
const NT_X86_XSTATE: u64 = 0x202;
const KCMP_VM: u64 = 1;
/// `/proc` gives a page at once.
const PROC_CHUNK: usize = 4096;

static DIE_AT: AtomicU64 = AtomicU64::new(0);
static POINTS: AtomicU64 = AtomicU64::new(0);

/// For tests: this process kills itself at the n-th point from now, counted from 1.
/// 0 switches that off.
#[doc(hidden)]
pub fn die_at(n: u64) {
    POINTS.store(0, Ordering::SeqCst);
    DIE_AT.store(n, Ordering::SeqCst);
}

/// For tests: how many points were passed since [`die_at`].
#[doc(hidden)]
pub fn points() -> u64 {
    POINTS.load(Ordering::SeqCst)
}

fn point() {
    let here = POINTS.fetch_add(1, Ordering::Relaxed) + 1;
    if DIE_AT.load(Ordering::Relaxed) == here {
        // SAFETY: kill(2) and getpid(2) touch no memory of ours.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        loop {
            std::thread::park();
        }
    }
}

/// A changing call between its two points.
fn changing<T>(call: impl FnOnce() -> T) -> T {
    point();
    let result = call();
    point();
    result
}

/// General registers of a stopped thread.
pub(crate) type Regs = libc::user_regs_struct;

fn ptrace(request: u64, tid: i32, addr: u64, data: u64) -> io::Result<i64> {
    // SAFETY: requests used in this module either take no pointer, or get one from a
    // wrapper below that owns a buffer of the right size for the length of the call.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request, i64::from(tid), addr, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Traces a thread without stopping it. System-call stops will carry bit 7 in their
/// signal: such a stop is no signal to anybody, also if we die in it.
pub(crate) fn seize(tid: i32) -> io::Result<()> {
    changing(|| ptrace(PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACESYSGOOD as u64)).map(drop)
}

pub(crate) fn interrupt(tid: i32) -> io::Result<()> {
    changing(|| ptrace(PTRACE_INTERRUPT, tid, 0, 0)).map(drop)
}

pub(crate) fn detach(tid: i32, signal: i32) -> io::Result<()> {
    changing(|| ptrace(u64::from(libc::PTRACE_DETACH), tid, 0, signal as u64)).map(drop)
}

/// Lets a stopped thread go on to its next system-call stop, a signal or an interrupt.
pub(crate) fn go_to_syscall(tid: i32, signal: i32) -> io::Result<()> {
    changing(|| ptrace(u64::from(libc::PTRACE_SYSCALL), tid, 0, signal as u64)).map(drop)
}

/// Lets a stopped thread go on, with this signal if it is not 0.
pub(crate) fn go_on(tid: i32, signal: i32) -> io::Result<()> {
    changing(|| ptrace(u64::from(libc::PTRACE_CONT), tid, 0, signal as u64)).map(drop)
}

pub(crate) fn registers(tid: i32) -> io::Result<Regs> {
    let mut regs = MaybeUninit::<Regs>::zeroed();
    ptrace(u64::from(libc::PTRACE_GETREGS), tid, 0, regs.as_mut_ptr() as u64)?;
    // SAFETY: all-zero is a valid value of this plain structure, and the kernel filled it.
    Ok(unsafe { regs.assume_init() })
}

pub(crate) fn set_registers(tid: i32, regs: &Regs) -> io::Result<()> {
    changing(|| ptrace(u64::from(libc::PTRACE_SETREGS), tid, 0, std::ptr::from_ref(regs) as u64)).map(drop)
}

/// The extended state (x87, SSE, AVX, ...) of a stopped thread, as raw bytes.
pub(crate) fn extended_state(tid: i32) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; 16 * 1024];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, std::ptr::from_mut(&mut vector) as u64)?;
    buffer.truncate(vector.iov_len);
    Ok(buffer)
}

/// Address of the thread's `struct rseq`, if it registered one and the kernel can tell.
pub(crate) fn rseq_area(tid: i32) -> io::Result<Option<LiveAddr>> {
    let mut config = [0u64; 3];
    match ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of::<[u64; 3]>() as u64, config.as_mut_ptr() as u64) {
        Ok(_) => Ok((config[0] != 0).then_some(LiveAddr(config[0]))),
        // Kernels before 5.13 do not have the request.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A seccomp filter of a stopped thread, the newest at index 0, as `struct sock_filter`s.
pub(crate) fn seccomp_filter(tid: i32, index: u64) -> io::Result<Option<Vec<u8>>> {
    let count = match ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, 0) {
        Ok(count) => count,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut buffer = vec![0u8; count as usize * 8];
    ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, buffer.as_mut_ptr() as u64)?;
    Ok(Some(buffer))
}

/// Writes one word through ptrace, for kernels that forbid forced writes to `/proc/PID/mem`.
fn poke(tid: i32, at: LiveAddr, word: u64) -> io::Result<()> {
    changing(|| ptrace(u64::from(libc::PTRACE_POKEDATA), tid, at.0, word)).map(drop)
}

/// Why a traced thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopKind {
    /// Interrupted by us, or with its whole process by a stop signal.
    Interrupt,
    /// At the beginning or end of a system call.
    SystemCall,
    /// About to take this signal.
    Signal(i32),
}

/// What a wait for one thread found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing new yet.
    Nothing,
    /// Stopped.
    Stopped(StopKind),
    /// The thread is no more.
    Gone,
}

fn wait_id(tid: i32, options: i32) -> io::Result<Option<(i32, i32)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is a writable siginfo_t; waitid(2) fills it or leaves it zeroed.
    let result =
        unsafe { libc::waitid(libc::P_PID, tid as u32, info.as_mut_ptr(), options | libc::__WALL | libc::WNOHANG) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed or filled by the kernel; for waitid the SIGCHLD members are the valid ones.
    let (pid, code, status) = unsafe {
        let info = info.assume_init();
        (info.si_pid(), info.si_code, info.si_status())
    };
    Ok((pid != 0).then_some((code, status)))
}

/// Looks, without blocking, whether a traced thread has stopped or ended. Never reaps the
/// end of a thread-group leader, which belongs to the parent.
///
/// A stop is looked at without consuming it: the kernel then still knows which signal the
/// thread was about to take, and delivers it if we die before we let it go on.
pub(crate) fn wait(tid: i32, is_leader: bool) -> io::Result<Wait> {
    match wait_id(tid, libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT) {
        Ok(Some((libc::CLD_TRAPPED | libc::CLD_STOPPED, status))) => {
            Ok(Wait::Stopped(match (status & 0xff, status >> 8) {
                (signal, 0) if signal & 0x80 != 0 => StopKind::SystemCall,
                (signal, 0) => StopKind::Signal(signal),
                _ => StopKind::Interrupt,
            }))
        }
        Ok(Some(_)) => {
            if !is_leader {
                let _ = wait_id(tid, libc::WEXITED);
            }
            Ok(Wait::Gone)
        }
        Ok(None) => Ok(Wait::Nothing),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(Wait::Gone),
        Err(error) => Err(error),
    }
}

/// The memory of a target, through `/proc/PID/mem`. Bound to the address space that the
/// process had when it was opened: after an exec every access fails instead of reaching
/// the new program.
pub(crate) struct Mem {
    file: File,
}

impl Mem {
    pub(crate) fn open(pid: i32) -> io::Result<Mem> {
        Ok(Mem { file: OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))? })
    }

    /// For looking only.
    pub(crate) fn open_read(pid: i32) -> io::Result<Mem> {
        Ok(Mem { file: File::open(format!("/proc/{pid}/mem"))? })
    }

    /// Reads as much as is there; 0 where nothing is mapped any more.
    pub(crate) fn read_some(&self, at: LiveAddr, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buffer, at.0)
    }

    pub(crate) fn read(&self, at: LiveAddr, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, at.0)
    }

    pub(crate) fn bytes(&self, at: LiveAddr, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        self.read(at, &mut buffer)?;
        Ok(buffer)
    }

    pub(crate) fn array<const N: usize>(&self, at: LiveAddr) -> io::Result<[u8; N]> {
        let mut buffer = [0; N];
        self.read(at, &mut buffer)?;
        Ok(buffer)
    }

    pub(crate) fn u64(&self, at: LiveAddr) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn u32(&self, at: LiveAddr) -> io::Result<u32> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    /// Writes, also to pages that the program itself may only read. `tid` is a stopped
    /// thread of the target through which to write where the kernel forbids forced writes here.
    pub(crate) fn write(&self, tid: i32, at: LiveAddr, bytes: &[u8]) -> io::Result<()> {
        match changing(|| self.file.write_all_at(bytes, at.0)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EPERM | libc::EACCES)) => {
                self.poke_all(tid, at, bytes)
            }
            result => result,
        }
    }

    fn poke_all(&self, tid: i32, at: LiveAddr, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0usize;
        while done < bytes.len() {
            let here = at.plus(done as u64);
            let word_at = LiveAddr(here.0 & !7);
            let skip = (here.0 & 7) as usize;
            let count = (8 - skip).min(bytes.len() - done);
            let mut word: [u8; 8] = self.array(word_at)?;
            word[skip..skip + count].copy_from_slice(&bytes[done..done + count]);
            poke(tid, word_at, u64::from_le_bytes(word))?;
            done += count;
        }
        Ok(())
    }
}

/// A file of `/proc`, which says nothing of its size: with as few reads as can be.
pub(crate) fn read_proc(path: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::with_capacity(PROC_CHUNK);
    loop {
        let len = bytes.len();
        bytes.resize(len + PROC_CHUNK, 0);
        match io::Read::read(&mut file, &mut bytes[len..]) {
            Ok(got) => {
                bytes.truncate(len + got);
                if got == 0 {
                    return Ok(bytes);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => bytes.truncate(len),
            Err(error) => return Err(error),
        }
    }
}

/// Whether two processes share one address space; `None` where the kernel does not say.
pub(crate) fn same_memory(a: i32, b: i32) -> Option<bool> {
    // SAFETY: kcmp(2) takes plain numbers only.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, i64::from(a), i64::from(b), KCMP_VM, 0u64, 0u64) };
    (result >= 0).then_some(result == 0)
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a writable timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

/// Seconds since the epoch.
pub(crate) fn epoch_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Real user ID of the applier.
pub(crate) fn user_id() -> u32 {
    // SAFETY: getuid(2) cannot fail and touches no memory.
    unsafe { libc::getuid() }
}

/// How a thread of ours is scheduled.
pub(crate) struct Priority(i32);

impl Priority {
    /// Asks for the processor before all ordinary threads, until dropped: for letting many
    /// threads go. Else each of them takes the processor from us, and the last one waits for
    /// all. Not for waiting: we would keep the processor from those that we wait for.
    /// Without the right to do so nothing happens.
    pub(crate) fn raise() -> Priority {
        // SAFETY: takes plain numbers only; 0 is the calling thread.
        let before = unsafe { libc::sched_getscheduler(0) };
        if before == libc::SCHED_OTHER {
            set_scheduler(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, 1);
        }
        Priority(before)
    }
}

impl Drop for Priority {
    fn drop(&mut self) {
        if self.0 == libc::SCHED_OTHER {
            set_scheduler(libc::SCHED_OTHER, 0);
        }
    }
}

fn set_scheduler(policy: i32, priority: i32) {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: `parameters` is read during the call; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, policy, &parameters) };
}

/// Gives the processor away for about this long.
pub(crate) fn pause_ns(nanoseconds: u64) {
    std::thread::sleep(std::time::Duration::from_nanos(nanoseconds));
}
