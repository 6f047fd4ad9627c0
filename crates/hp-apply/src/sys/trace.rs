//! ptrace(2) and the waiting that belongs to it.

use super::{Errno, raw};
use crate::addr::LiveAddr;
use crate::bytes::u32_at;
use crate::prelude::*;
use core::ptr::{from_mut, from_ref};
use linux_raw_sys::{elf_uapi, general as nr, ptrace as request};

/// Size of `siginfo_t`.
const SIGINFO: usize = 128;
/// Largest extended state.
const MAX_STATE: usize = 16 * 1024;

/// General registers of a stopped thread (`struct user_regs_struct` of `sys/user.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct Regs {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) orig_rax: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) eflags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    pub(crate) ds: u64,
    pub(crate) es: u64,
    pub(crate) fs: u64,
    pub(crate) gs: u64,
}

pub(super) fn ptrace(request: u32, tid: i32, addr: u64, data: u64) -> Result<u64, Errno> {
    let arguments = [u64::from(request), tid as i64 as u64, addr, data, 0, 0];
    // SAFETY: requests used in this crate either take no pointer, or get one from a
    // wrapper below that owns a buffer of the right size for the length of the call.
    unsafe { raw::call(nr::__NR_ptrace, arguments) }
}

/// Traces a thread without stopping it. System-call stops will carry bit 7 in their
/// signal: such a stop is no signal to anybody, also if we die in it.
pub(crate) fn seize(tid: i32) -> Result<(), Errno> {
    ptrace(request::PTRACE_SEIZE, tid, 0, u64::from(request::PTRACE_O_TRACESYSGOOD)).map(drop)
}

pub(crate) fn interrupt(tid: i32) -> Result<(), Errno> {
    ptrace(request::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

pub(crate) fn detach(tid: i32, signal: i32) -> Result<(), Errno> {
    ptrace(request::PTRACE_DETACH, tid, 0, signal as u64).map(drop)
}

/// Lets a stopped thread go on to its next system-call stop, a signal or an interrupt.
pub(crate) fn go_to_syscall(tid: i32, signal: i32) -> Result<(), Errno> {
    ptrace(request::PTRACE_SYSCALL, tid, 0, signal as u64).map(drop)
}

/// Lets a stopped thread go on, with this signal if it is not 0.
pub(crate) fn go_on(tid: i32, signal: i32) -> Result<(), Errno> {
    ptrace(request::PTRACE_CONT, tid, 0, signal as u64).map(drop)
}

pub(crate) fn registers(tid: i32) -> Result<Regs, Errno> {
    let mut regs = Regs::default();
    ptrace(request::PTRACE_GETREGS, tid, 0, from_mut(&mut regs) as u64)?;
    Ok(regs)
}

pub(crate) fn set_registers(tid: i32, regs: &Regs) -> Result<(), Errno> {
    ptrace(request::PTRACE_SETREGS, tid, 0, from_ref(regs) as u64).map(drop)
}

/// The extended state (x87, SSE, AVX, ...) of a stopped thread, as raw bytes.
pub(crate) fn extended_state(tid: i32) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0u8; MAX_STATE];
    // struct iovec
    let mut vector = [buffer.as_mut_ptr() as u64, buffer.len() as u64];
    ptrace(request::PTRACE_GETREGSET, tid, u64::from(elf_uapi::NT_X86_XSTATE), vector.as_mut_ptr() as u64)?;
    buffer.truncate(vector[1] as usize);
    Ok(buffer)
}

/// Address of the thread's `struct rseq`, if it registered one and the kernel can tell.
pub(crate) fn rseq_area(tid: i32) -> Result<Option<LiveAddr>, Errno> {
    let mut config = [0u64; 3];
    match ptrace(request::PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of_val(&config) as u64, config.as_mut_ptr() as u64) {
        Ok(_) => Ok((config[0] != 0).then_some(LiveAddr(config[0]))),
        // Kernels before 5.13 do not have the request.
        Err(Errno::EIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A seccomp filter of a stopped thread, the newest at index 0, as `struct sock_filter`s.
pub(crate) fn seccomp_filter(tid: i32, index: u64) -> Result<Option<Vec<u8>>, Errno> {
    let count = match ptrace(request::PTRACE_SECCOMP_GET_FILTER, tid, index, 0) {
        Ok(count) => count,
        Err(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut buffer = vec![0u8; count as usize * 8];
    ptrace(request::PTRACE_SECCOMP_GET_FILTER, tid, index, buffer.as_mut_ptr() as u64)?;
    Ok(Some(buffer))
}

/// Writes one word through ptrace, for kernels that forbid forced writes to `/proc/PID/mem`.
pub(super) fn poke(tid: i32, at: LiveAddr, word: u64) -> Result<(), Errno> {
    ptrace(request::PTRACE_POKEDATA, tid, at.0, word).map(drop)
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

/// `si_code` and `si_status` of a change of a child's or traced thread's state, if there is one.
pub(super) fn wait_id(tid: i32, options: u32) -> Result<Option<(u32, i32)>, Errno> {
    let mut info = [0u8; SIGINFO];
    let arguments = [u64::from(nr::P_PID), tid as u64, info.as_mut_ptr() as u64, u64::from(options), 0, 0];
    // SAFETY: `info` is as large as a siginfo_t; a null pointer asks for no usage.
    unsafe { raw::call(nr::__NR_waitid, arguments) }?;
    // si_signo, si_errno, si_code; at 16, for a child: si_pid, si_uid, si_status.
    let field = |at| u32_at(&info, at).unwrap_or(0);
    Ok((field(12 + 4) != 0).then_some((field(8), field(24) as i32)))
}

/// Looks, without blocking, whether a traced thread has stopped or ended. Never reaps the
/// end of a thread-group leader, which belongs to the parent.
///
/// A stop is looked at without consuming it: the kernel then still knows which signal the
/// thread was about to take, and delivers it if we die before we let it go on.
pub(crate) fn wait(tid: i32, is_leader: bool) -> Result<Wait, Errno> {
    let look = |options| wait_id(tid, options | nr::__WALL | nr::WNOHANG);
    match look(nr::WSTOPPED | nr::WEXITED | nr::WNOWAIT) {
        Ok(Some((nr::CLD_TRAPPED | nr::CLD_STOPPED, status))) => {
            Ok(Wait::Stopped(match (status & 0xff, status >> 8) {
                (signal, 0) if signal & 0x80 != 0 => StopKind::SystemCall,
                (signal, 0) => StopKind::Signal(signal),
                _ => StopKind::Interrupt,
            }))
        }
        Ok(Some(_)) => {
            if !is_leader {
                let _ = look(nr::WEXITED);
            }
            Ok(Wait::Gone)
        }
        Ok(None) => Ok(Wait::Nothing),
        Err(Errno::ECHILD) => Ok(Wait::Gone),
        Err(error) => Err(error),
    }
}

/// Takes note of the end of a thread that this process traces. Not a part of the engine's work, so no test makes it fail.
pub(crate) fn bury(tid: i32) {
    let options = u64::from(nr::__WALL | nr::WNOHANG);
    // SAFETY: the call is given no pointer.
    unsafe { raw::instruction(nr::__NR_wait4, [tid as u64, 0, options, 0, 0, 0]) };
}
