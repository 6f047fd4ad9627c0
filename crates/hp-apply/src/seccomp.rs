//! Seccomp filters, read and evaluated before anything is done (`man 2 seccomp`, `man 2 ptrace`).
//!
//! A thread with a filter makes no call for us that the filter does not let through, and is
//! not stopped for a patch at all if the filter refuses `restart_syscall`: the kernel itself
//! makes that call for a thread whose timed wait a stop has interrupted, and a thread that
//! is killed for it would pay for our stop.
//!
//! A filter is a program for the classic BPF machine over one structure: the call's number,
//! the architecture, the address of the instruction and the six arguments. It is run here
//! with the arguments that the call will really have. Several filters: the strictest counts.
//!
//! Reading them takes `CAP_SYS_ADMIN`, a stopped thread, and a kernel with checkpoint support.

use crate::addr::LiveAddr;
use crate::bytes::{u16_at, u32_at};
use crate::failure::{Failure, busy, refused, unusable};
use crate::prelude::*;
use crate::process::{self, Process};
use crate::small::sort_by_key;
use crate::sys::{self, Errno, Instant, Regs, number};
use crate::threads::Tracer;
use core::time::Duration;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const ACTION: u32 = 0xffff_0000;
const BACKOFF: Duration = Duration::from_millis(1);
/// Most filters that one thread may have.
const MAX_FILTERS: u64 = 4096;

/// One system call, as a filter sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
    /// Address after the `syscall` instruction.
    pub(crate) after: LiveAddr,
}

impl Call {
    fn data(&self) -> [u32; 16] {
        let mut words = [0; 16];
        words[..2].copy_from_slice(&[self.number as u32, AUDIT_ARCH_X86_64]);
        for (index, value) in core::iter::once(self.after.0).chain(self.arguments).enumerate() {
            words[2 + index * 2] = value as u32;
            words[3 + index * 2] = (value >> 32) as u32;
        }
        words
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allowed,
    /// It fails with this errno and does nothing.
    Errno(u32),
    /// Anything else: death, a signal, a question to another process, a filter that cannot be evaluated.
    Refused(&'static str),
}

impl Verdict {
    fn words(self) -> String {
        match self {
            Verdict::Allowed => "it does not".to_owned(),
            Verdict::Errno(errno) => Errno(errno as u16).to_string(),
            Verdict::Refused(what) => what.to_owned(),
        }
    }
}

/// All filters of one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Filters(Vec<Vec<u8>>);

impl Filters {
    /// Those of a stopped thread.
    pub(crate) fn of(tid: i32) -> Result<Filters, Errno> {
        let mut filters = Vec::new();
        while let Some(filter) = sys::seccomp_filter(tid, filters.len() as u64)? {
            filters.push(filter);
            if filters.len() as u64 > MAX_FILTERS {
                return Err(Errno::EINVAL);
            }
        }
        Ok(Filters(filters))
    }

    /// What a call comes to, if it is not made.
    pub(crate) fn refuses(&self, call: &Call) -> Option<Verdict> {
        Some(self.judge(call)).filter(|verdict| *verdict != Verdict::Allowed)
    }

    fn judge(&self, call: &Call) -> Verdict {
        let data = call.data();
        let mut strictest = RET_ALLOW;
        for filter in &self.0 {
            let Some(result) = run(filter, &data) else { return Verdict::Refused("a filter that cannot be evaluated") };
            // The kernel compares actions as signed numbers: killing the process is the lowest.
            if ((result & ACTION) as i32) < (strictest & ACTION) as i32 {
                strictest = result;
            }
        }
        match strictest & ACTION {
            RET_ALLOW | RET_LOG => Verdict::Allowed,
            RET_ERRNO => Verdict::Errno((strictest & 0xffff).min(4095)),
            RET_KILL_PROCESS | RET_KILL_THREAD => Verdict::Refused("it would be killed"),
            RET_TRAP => Verdict::Refused("it would get SIGSYS"),
            _ => Verdict::Refused("another process would be asked"),
        }
    }
}

/// The classic BPF machine, with what a seccomp filter may contain. `None` for anything else.
fn run(filter: &[u8], data: &[u32; 16]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0usize;
    loop {
        let code = u16_at(filter, at * 8)?;
        let (jt, jf, k) = (*filter.get(at * 8 + 2)?, *filter.get(at * 8 + 3)?, u32_at(filter, at * 8 + 4)?);
        // Programs only jump forward, so this ends.
        at += 1;
        let operand = if code & 0x08 != 0 { x } else { k };
        let mut jump = |taken: bool| at += usize::from(if taken { jt } else { jf });
        match code {
            // 0x21 is how the kernel writes a load of the data after it has checked it.
            0x20 | 0x21 if k % 4 == 0 => a = *data.get(k as usize / 4)?,
            0x80 => a = 64,
            0x81 => x = 64,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = *memory.get(k as usize)?,
            0x61 => x = *memory.get(k as usize)?,
            0x02 => *memory.get_mut(k as usize)? = a,
            0x03 => *memory.get_mut(k as usize)? = x,
            0x07 => x = a,
            0x87 => a = x,
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            // A division by zero in the register ends the program with 0.
            0x34 | 0x3c => match a.checked_div(operand) {
                Some(quotient) => a = quotient,
                None => return Some(0),
            },
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0x64 | 0x6c => a = a.wrapping_shl(operand),
            0x74 | 0x7c => a = a.wrapping_shr(operand),
            0xa4 | 0xac => a ^= operand,
            0x84 => a = a.wrapping_neg(),
            0x05 => at = at.checked_add(k as usize)?,
            0x15 | 0x1d => jump(a == operand),
            0x25 | 0x2d => jump(a > operand),
            0x35 | 0x3d => jump(a >= operand),
            0x45 | 0x4d => jump(a & operand != 0),
            0x06 => return Some(k),
            0x16 => return Some(a),
            _ => return None,
        }
    }
}

/// What the threads of a target may do.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// Threads that may make the calls that we need, the main one first.
    pub(crate) helpers: Vec<i32>,
    /// No thread comes to harm in a gate.
    pub(crate) gates: bool,
    /// Threads that were looked at, and how many of them have filters.
    pub(crate) threads: usize,
    pub(crate) filtered: usize,
}

impl Survey {
    /// What it found, for people.
    pub(crate) fn line(&self) -> String {
        let Survey { helpers, gates, threads, filtered } = self;
        let calls = format!("{} of {threads} threads can make the calls that loading takes", helpers.len());
        match (filtered, gates) {
            (0, _) => format!("{calls}; none has a seccomp filter"),
            (_, true) => format!("{calls}; {filtered} have a seccomp filter that allows them"),
            (_, false) => {
                format!("{calls}; the seccomp filter of one forbids the call by which busy threads are caught")
            }
        }
    }
}

/// Looks at every thread: that nobody else traces it, and what filters it has (one short stop for each that has
/// some). `calls`: what we need of a helper; `gate`: the call in a gate.
///
/// # Errors
/// [`Error::Refused`] if no thread may make the calls, or one cannot be stopped without harm; [`Error::Unusable`] if
/// somebody else traces one.
pub(crate) fn survey(
    tracer: &mut Tracer<'_>,
    calls: &[Call],
    gate: &Call,
    timeout: Duration,
) -> Result<Survey, Failure> {
    let target = tracer.process;
    let pid = target.pid;
    let mut threads = process::threads(pid);
    // The main thread first: some kernels let only its tracer write to the memory.
    sort_by_key(&mut threads, |&tid| (tid != pid, tid));
    let mut survey = Survey { helpers: Vec::new(), gates: true, threads: threads.len(), filtered: 0 };
    let mut refusal = None;
    let deadline = Instant::now().checked_add(timeout);
    for tid in threads {
        let Some(status) = process::thread_status(pid, tid) else { continue };
        if !tracer.holds(tid) {
            status.check_tracer(pid)?;
        }
        match status.seccomp {
            0 => survey.helpers.push(tid),
            2 => {
                survey.filtered += 1;
                let Some(filters) = read(tracer, tid, deadline)? else { continue };
                survey.gates &= !matches!(filters.judge(gate), Verdict::Refused(_));
                match calls.iter().find_map(|call| filters.refuses(call).map(|verdict| (call, verdict))) {
                    None => survey.helpers.push(tid),
                    Some((call, verdict)) => {
                        let name = if call.number == number::MMAP { "mmap" } else { "munmap" };
                        refusal = Some(filtered(pid, name, verdict, "which loading a patch needs"));
                    }
                }
            }
            // Strict mode knows four calls, and none of them is ours.
            _ => {
                survey.gates = false;
                let text =
                    format!("process {pid} is in strict seccomp mode, which allows no call that loading a patch needs");
                refusal = refusal.or(Some(refused(format_args!("{text}"))));
            }
        }
    }
    match refusal.filter(|_| survey.helpers.is_empty()) {
        Some(error) => Err(error),
        None => Ok(survey),
    }
}

/// The filters of one thread; `None` if it has ended.
fn read(tracer: &mut Tracer<'_>, tid: i32, deadline: Option<Instant>) -> Result<Option<Filters>, Failure> {
    let target = tracer.process;
    let mut stopped = loop {
        if let Some(stopped) = tracer.stop_one(tid)? {
            break stopped;
        }
        if process::thread_state(target.pid, tid).is_none_or(|state| matches!(state, 'Z' | 'X')) {
            return Ok(None);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(busy(format!("thread {tid} does not stop, so its seccomp filter cannot be read").into()));
        }
        sys::sleep(BACKOFF);
    };
    let (_, task) = stopped.first();
    let filters = Filters::of(tid).map_err(|error| unreadable(target, &error))?;
    let restart = Call { number: number::RESTART_SYSCALL, arguments: [0; 6], after: LiveAddr(task.regs.rip) };
    if let Some(verdict) = filters.refuses(&restart) {
        if let Some(regs) = repeated(&task.regs) {
            sys::set_registers(tid, &regs).map_err(|error| target.io_error("cannot write registers", &error))?;
        }
        return Err(filtered(target.pid, "restart_syscall", verdict, "so that stopping it may harm it"));
    }
    Ok(Some(filters))
}

/// Registers that repeat a timed wait as such, in place of the restart that the filter refuses.
fn repeated(regs: &Regs) -> Option<Regs> {
    const ERESTART_RESTARTBLOCK: i64 = -516;
    let interrupted = regs.rax as i64 == ERESTART_RESTARTBLOCK && regs.orig_rax as i64 >= 0;
    interrupted.then(|| Regs { rax: regs.orig_rax, rip: regs.rip.wrapping_sub(2), orig_rax: u64::MAX, ..*regs })
}

fn filtered(pid: i32, call: &str, verdict: Verdict, so: &str) -> Failure {
    refused(format_args!("process {pid}: its seccomp filter refuses {call} ({}), {so}", verdict.words()))
}

fn unreadable(target: &Process, error: &Errno) -> Failure {
    let pid = target.pid;
    match *error {
        Errno::EACCES | Errno::EPERM => unusable(format_args!(
            "not permitted: process {pid} has a seccomp filter, and CAP_SYS_ADMIN is needed to read what it allows"
        )),
        Errno::ESRCH => process::ended(pid),
        _ => refused(format_args!(
            "process {pid} has a seccomp filter, and this kernel cannot tell what it allows: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(program: &[(u16, u8, u8, u32)]) -> Filters {
        let bytes =
            |(code, jt, jf, k): &(u16, u8, u8, u32)| [&code.to_le_bytes()[..], &[*jt, *jf], &k.to_le_bytes()].concat();
        Filters(vec![program.iter().flat_map(bytes).collect()])
    }

    fn call(number: i64, arguments: [u64; 6]) -> Call {
        Call { number, arguments, after: LiveAddr(0x7000_1234_5678) }
    }

    #[test]
    fn numbers_arguments_and_places_are_compared() {
        // mmap: only without PROT_EXEC (third argument at 32); all others: fails with EACCES.
        let no_code = filter(&[
            (0x20, 0, 0, 0),
            (0x15, 0, 3, 9),
            (0x20, 0, 0, 32),
            (0x45, 1, 0, 4),
            (0x06, 0, 0, RET_ALLOW),
            (0x06, 0, 0, RET_ERRNO | 13),
        ]);
        assert_eq!(no_code.judge(&call(9, [0, 0, 1, 0, 0, 0])), Verdict::Allowed);
        assert_eq!(no_code.judge(&call(9, [0, 0, 5, 0, 0, 0])), Verdict::Errno(13));
        assert_eq!(no_code.judge(&call(11, [0; 6])), Verdict::Errno(13));
        // The upper half of the instruction's address.
        let place = filter(&[(0x20, 0, 0, 12), (0x15, 0, 1, 0x7000), (0x06, 0, 0, RET_ALLOW), (0x06, 0, 0, 0)]);
        assert_eq!(place.judge(&call(0, [0; 6])), Verdict::Allowed);
        let other = Call { after: LiveAddr(0x1000), ..call(0, [0; 6]) };
        assert!(matches!(place.judge(&other), Verdict::Refused(_)));
    }

    #[test]
    fn arithmetic_and_memory() {
        // (nr + 5) * 3 kept in memory, compared through the index register; a shift and a negation.
        let program = filter(&[
            (0x20, 0, 0, 0),
            (0x04, 0, 0, 5),
            (0x24, 0, 0, 3),
            (0x02, 0, 0, 7),
            (0x01, 0, 0, 42),
            (0x00, 0, 0, 0),
            (0x60, 0, 0, 7),
            (0x1d, 0, 1, 0),
            (0x06, 0, 0, RET_ALLOW),
            (0x06, 0, 0, RET_TRAP),
        ]);
        assert_eq!(program.judge(&call(9, [0; 6])), Verdict::Allowed);
        assert!(matches!(program.judge(&call(8, [0; 6])), Verdict::Refused(_)));
    }

    #[test]
    fn the_strictest_counts_and_nonsense_is_refused() {
        let mut both = filter(&[(0x06, 0, 0, RET_ALLOW)]);
        both.0.extend(filter(&[(0x06, 0, 0, RET_KILL_PROCESS)]).0);
        both.0.extend(filter(&[(0x06, 0, 0, RET_ERRNO | 1)]).0);
        assert_eq!(both.judge(&call(9, [0; 6])), Verdict::Refused("it would be killed"));
        for nonsense in [&[(0xffu16, 0u8, 0u8, 0u32)][..], &[(0x05, 0, 0, 9)], &[(0x20, 0, 0, 64)], &[]] {
            assert!(matches!(filter(nonsense).judge(&call(9, [0; 6])), Verdict::Refused(_)));
        }
        assert_eq!(Filters::default().judge(&call(9, [0; 6])), Verdict::Allowed);
    }
}
