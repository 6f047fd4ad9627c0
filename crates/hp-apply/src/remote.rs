//! System calls made by a thread of the target on our behalf.
//!
//! The obvious way (point the thread at a `syscall` instruction, put its registers back
//! afterwards) loses the thread when the applier dies in between. Here the thread runs a
//! *stub* that comes back by itself: the system call, then one `mov` for each register
//! that was changed, then a jump to where the thread was. No stack, no flags, no `ret`
//! (shadow stacks), no `rt_sigreturn` (restart blocks). A system call that the stop
//! interrupted is repeated by the stub's values exactly as the kernel would repeat it.
//! While the applier lives it stops the thread at the end of the call and puts all
//! registers back itself, so the rest of the stub never runs.
//!
//! The thread is stopped by system-call tracing, not by single steps: a step that is under
//! way when the applier dies becomes a `SIGTRAP` with nobody to take it, which kills the
//! target. The stop at a call's end does not take part in the kernel's restart of
//! interrupted calls, so before the original registers go back the thread is led into an
//! interrupt stop, which does.
//!
//! The stub lies in the unused rest of the last page of some executable segment, where it
//! replaces uniform filling and is replaced by it again. A stub that a dead applier left
//! is recognised and left alone while any thread could be in it.
//!
//! A signal that comes before a call is taken first: the thread gets its own registers
//! back, the kernel leads it to its handler, and it is stopped again before the handler's
//! first instruction, from where the call is made. So no signal is lost, and a storm of
//! them does not keep us away.
//!
//! Limits: no call is made in a thread that is in an rseq critical section; such a thread
//! is left and another one tried.

use crate::addr::{LiveAddr, LiveRange};
use crate::bytes::u64_at;
use crate::failure::{Failure, unusable};
use crate::image::Image;
use crate::prelude::*;
use crate::process::{self, Process};
use crate::seccomp::{Call, Filters};
use crate::sys::{self, Errno, Mem, Pauses, Regs, StopKind, Wait, number};
use crate::threads::Task;

/// Room for one stub: 2 + 9 × 10 + 6 + 8 bytes, rounded up.
const STUB_ROOM: u64 = 112;
/// How a stub begins: `syscall; movabs $…,%rax`.
const STUB_START: [u8; 4] = [0x0f, 0x05, 0x48, 0xb8];
/// Length of `syscall`.
const SYSCALL_LEN: u64 = 2;
/// How many signals in a row are taken for one call.
const MAX_SIGNALS: u32 = 16;
/// Longest time for one call.
const CALL_LIMIT_NS: u64 = 2_000_000_000;

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// A place for the stub.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    at: LiveAddr,
    fill: u8,
}

impl Slot {
    /// Where the stub's system call comes back to.
    pub(crate) fn after(self) -> LiveAddr {
        self.at.plus(SYSCALL_LEN)
    }
}

/// Places for stubs in the target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    free: Vec<Slot>,
    /// Stubs that a dead applier left.
    pub(crate) left: Vec<LeftStub>,
}

/// A stub that a dead applier left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeftStub {
    pub(crate) range: LiveRange,
    fill: u8,
}

impl Slots {
    /// Looks at the filling of every executable segment's last page.
    pub(crate) fn find(mem: &Mem, images: &[Image]) -> Slots {
        let mut slots = Slots::default();
        for slack in images.iter().flat_map(Image::slack) {
            let Ok(bytes) = mem.bytes(slack.start, slack.len() as usize) else { continue };
            for (index, room) in bytes.chunks_exact(STUB_ROOM as usize).enumerate() {
                let at = slack.start.plus(index as u64 * STUB_ROOM);
                let fill = room[room.len() - 1];
                let uniform = |part: &[u8]| matches!(fill, 0 | 0xcc) && part.iter().all(|&byte| byte == fill);
                if uniform(room) {
                    slots.free.push(Slot { at, fill });
                } else if room.starts_with(&STUB_START) && uniform(&room[STUB_LEN..]) {
                    slots.left.push(LeftStub { range: at.range(STUB_ROOM), fill });
                }
            }
        }
        slots
    }

    /// A place to use, if there is any.
    pub(crate) fn any(&self) -> Option<Slot> {
        self.free.first().copied()
    }

    /// The same, for use now: another applier may have died in the meantime, with a thread in its stub. None can be at work
    /// while a thread that it needs stands for us.
    pub(crate) fn any_now(&self, mem: &Mem) -> Option<Slot> {
        let is_free = |slot: &&Slot| mem.array(slot.at) == Ok([slot.fill; STUB_ROOM as usize]);
        self.free.iter().find(is_free).copied()
    }
}

impl LeftStub {
    /// Puts the filling back; only when no thread can return into the stub.
    pub(crate) fn wipe(&self, mem: &Mem, tid: i32) -> Result<(), Errno> {
        mem.write(tid, self.range.start, &[self.fill; STUB_ROOM as usize])
    }
}

/// Exact length of a stub.
const STUB_LEN: usize = 2 + 9 * 10 + 6 + 8;

/// The values with which a stopped thread goes on if nobody interferes: where the stop
/// interrupted a system call, those that repeat it (`arch_do_signal_or_restart` in the kernel).
fn resume_values(regs: &Regs) -> Regs {
    let mut values = *regs;
    if regs.orig_rax as i64 >= 0 {
        match regs.rax as i64 {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                values.rax = regs.orig_rax;
                values.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
            }
            ERESTART_RESTARTBLOCK => {
                values.rax = number::RESTART_SYSCALL as u64;
                values.rip = regs.rip.wrapping_sub(SYSCALL_LEN);
            }
            _ => {}
        }
    }
    values
}

/// The stub that leads a thread with these registers back.
fn stub(regs: &Regs) -> Vec<u8> {
    let back = resume_values(regs);
    let moves: [([u8; 2], u64); 9] = [
        ([0x48, 0xb8], back.rax),
        ([0x48, 0xb9], back.rcx),
        ([0x48, 0xba], back.rdx),
        ([0x48, 0xbe], back.rsi),
        ([0x48, 0xbf], back.rdi),
        ([0x49, 0xb8], back.r8),
        ([0x49, 0xb9], back.r9),
        ([0x49, 0xba], back.r10),
        ([0x49, 0xbb], back.r11),
    ];
    let mut code = vec![0x0f, 0x05];
    for (opcode, value) in moves {
        code.extend(opcode);
        code.extend(value.to_le_bytes());
    }
    code.extend([0xff, 0x25, 0, 0, 0, 0]);
    code.extend(back.rip.to_le_bytes());
    code
}

/// Why a call was not made; the thread is as it was.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The kernel refused it, with this errno.
    Errno(Errno),
    /// This thread cannot do it now.
    NotNow,
    /// Nothing can.
    Fatal(Failure),
}

/// A stopped thread that makes system calls for us until this is dropped.
pub(crate) struct Remote<'t> {
    process: &'t Process,
    task: &'t mut Task,
    slot: Slot,
    /// Seccomp filters of the thread.
    filters: Filters,
    /// The thread may stand in the stub, which it then needs to come back.
    astray: bool,
}

impl<'t> Remote<'t> {
    /// Writes the stub. `NotNow` if this thread must not be used.
    pub(crate) fn begin(process: &'t Process, task: &'t mut Task, slot: Slot) -> Result<Self, CallError> {
        let filters = match process::thread_status(process.pid, task.tid).map(|status| status.seccomp) {
            Some(0) => Filters::default(),
            Some(2) => Filters::of(task.tid).map_err(|_| CallError::NotNow)?,
            _ => return Err(CallError::NotNow),
        };
        let mut remote = Remote { process, task, slot, filters, astray: false };
        remote.take_signals()?;
        if in_rseq_section(process, remote.task) {
            return Err(CallError::NotNow);
        }
        remote.write_stub()?;
        Ok(remote)
    }

    /// The stub that leads back to where the thread stands now.
    fn write_stub(&self) -> Result<(), CallError> {
        self.process
            .mem
            .write(self.task.tid, self.slot.at, &stub(&self.task.regs))
            .map_err(|error| CallError::Fatal(self.process.io_error("cannot write the system-call stub", &error)))
    }

    /// The stopped thread.
    pub(crate) fn tid(&self) -> i32 {
        self.task.tid
    }

    /// Makes one system call, if no filter of the thread is against it.
    pub(crate) fn call(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, CallError> {
        if self.filters.refuses(&Call { number, arguments, after: self.slot.after() }).is_some() {
            return Err(CallError::Errno(Errno::EPERM));
        }
        for _ in 0..MAX_SIGNALS {
            if self.take_signals()? {
                self.write_stub()?;
            }
            match self.call_once(number, arguments) {
                Err(CallError::NotNow) if self.task.signal != 0 => {}
                result => return result,
            }
        }
        Err(CallError::NotNow)
    }

    fn call_once(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, CallError> {
        let mut regs = self.task.regs;
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9) = (rdi, rsi, rdx, r10, r8, r9);
        let refused = refused_by_a_test();
        // There is no call with the number -1: the kernel does nothing.
        regs.rax = if refused.is_some() { u64::MAX } else { number as u64 };
        regs.orig_rax = u64::MAX;
        regs.rip = self.slot.at.0;
        self.astray = true;
        let result = self.run(&regs);
        // Whatever came out: the thread is again what it was before anything else happens.
        let restored = self.restore();
        let result = result?;
        restored?;
        if let Some(errno) = refused {
            return Err(CallError::Errno(errno));
        }
        match result as i64 {
            error @ -4095..=-1 => Err(CallError::Errno(Errno(-error as u16))),
            _ => Ok(result),
        }
    }

    /// Lets the thread, which has its own registers, take the signal that it is about to
    /// take. True if it stands somewhere else now.
    fn take_signals(&mut self) -> Result<bool, CallError> {
        let tid = self.task.tid;
        let mut any = false;
        for _ in 0..MAX_SIGNALS {
            let signal = core::mem::take(&mut self.task.signal);
            if signal == 0 {
                return Ok(any);
            }
            any = true;
            // The interrupt comes before the handler's first instruction.
            sys::interrupt(tid).and_then(|()| sys::go_on(tid, signal)).map_err(|error| self.fatal(&error))?;
            if let StopKind::Signal(next) = self.wait()? {
                self.task.signal = next;
            }
            self.task.regs = sys::registers(tid).map_err(|error| self.fatal(&error))?;
        }
        Err(CallError::NotNow)
    }

    fn run(&mut self, regs: &Regs) -> Result<u64, CallError> {
        let tid = self.task.tid;
        sys::set_registers(tid, regs).map_err(|error| self.fatal(&error))?;
        // Into the call, and to its end; an interrupt that was still pending is passed over.
        let mut ends = 0;
        for _ in 0..8 {
            sys::go_to_syscall(tid, 0).map_err(|error| self.fatal(&error))?;
            match self.wait()? {
                StopKind::SystemCall => ends += 1,
                StopKind::Interrupt => {}
                StopKind::Signal(signal) => {
                    self.task.signal = signal;
                    return Err(CallError::NotNow);
                }
            }
            if ends == 2 {
                return Ok(sys::registers(tid).map_err(|error| self.fatal(&error))?.rax);
            }
        }
        Err(CallError::NotNow)
    }

    /// Leads the thread to a stop from which the kernel goes on as from the first one, and
    /// puts its registers back there.
    fn restore(&mut self) -> Result<(), CallError> {
        let tid = self.task.tid;
        // About to take a signal is such a stop already.
        if self.task.signal == 0 {
            sys::interrupt(tid).and_then(|()| sys::go_on(tid, 0)).map_err(|error| self.fatal(&error))?;
            if let StopKind::Signal(signal) = self.wait()? {
                self.task.signal = signal;
            }
        }
        sys::set_registers(tid, &self.task.regs).map_err(|error| self.fatal(&error))?;
        self.astray = false;
        Ok(())
    }

    fn wait(&self) -> Result<StopKind, CallError> {
        let (tid, began) = (self.task.tid, sys::now_ns());
        let ended = || CallError::Fatal(process::ended(self.process.pid));
        let (mut tries, mut pauses) = (0u32, Pauses::new());
        loop {
            match sys::wait(tid, tid == self.process.pid).map_err(|error| self.fatal(&error))? {
                Wait::Stopped(kind) => return Ok(kind),
                Wait::Gone => return Err(ended()),
                Wait::Nothing => {}
            }
            tries += 1;
            if sys::now_ns().saturating_sub(began) > CALL_LIMIT_NS {
                let text = format!("process {}: a system call made for us does not come back", self.process.pid);
                return Err(CallError::Fatal(unusable(format_args!("{text}"))));
            }
            if tries > 2 {
                pauses.pause();
            }
        }
    }

    fn fatal(&self, error: &Errno) -> CallError {
        CallError::Fatal(self.process.io_error("cannot make a system call in it", error))
    }
}

impl Drop for Remote<'_> {
    fn drop(&mut self) {
        if self.astray {
            // The stub leads it back; who comes next finds it and takes it away.
            return;
        }
        // No thread can be in the stub: it was stepped with its own registers put back,
        // and no signal was delivered meanwhile.
        let _ = self.process.mem.write(self.task.tid, self.slot.at, &[self.slot.fill; STUB_LEN]);
    }
}

#[cfg(feature = "std")]
fn refused_by_a_test() -> Option<Errno> {
    sys::seam::refused_in_target()
}

#[cfg(not(feature = "std"))]
fn refused_by_a_test() -> Option<Errno> {
    None
}

/// Whether the thread is inside a restartable sequence (rseq(2)); moving it away would
/// abort that as a preemption does not.
fn in_rseq_section(process: &Process, task: &Task) -> bool {
    let inside = || -> Result<bool, Errno> {
        let Some(area) = sys::rseq_area(task.tid)? else { return Ok(false) };
        let section = process.mem.u64(area.plus(8))?;
        if section == 0 {
            return Ok(false);
        }
        let descriptor: [u8; 32] = process.mem.array(LiveAddr(section))?;
        let start = u64_at(&descriptor, 8).unwrap_or(0);
        let len = u64_at(&descriptor, 16).unwrap_or(0);
        Ok(task.regs.rip.wrapping_sub(start) < len)
    };
    // What cannot be read counts as inside.
    inside().unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Regs {
        Regs {
            r11: 11,
            r10: 10,
            r9: 9,
            r8: 8,
            rax: 1,
            rcx: 2,
            rdx: 3,
            rsi: 4,
            rdi: 5,
            orig_rax: u64::MAX,
            rip: 0x1000,
            ..Regs::default()
        }
    }

    #[test]
    fn a_stub_has_the_length_that_is_kept_free_for_it() {
        assert_eq!(stub(&registers()).len(), STUB_LEN);
        assert!(STUB_LEN as u64 <= STUB_ROOM);
        assert!(stub(&registers()).starts_with(&STUB_START));
    }

    #[test]
    fn an_interrupted_system_call_is_repeated() {
        let mut regs = registers();
        assert_eq!(resume_values(&regs).rip, 0x1000);
        (regs.orig_rax, regs.rax) = (7, ERESTARTNOHAND as u64);
        assert_eq!((resume_values(&regs).rip, resume_values(&regs).rax), (0xffe, 7));
        regs.rax = ERESTART_RESTARTBLOCK as u64;
        assert_eq!((resume_values(&regs).rip, resume_values(&regs).rax), (0xffe, 219));
        regs.rax = -4i64 as u64;
        assert_eq!(resume_values(&regs).rip, 0x1000);
    }
}
