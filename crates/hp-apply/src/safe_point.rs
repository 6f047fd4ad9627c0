//! Whether a stopped target stands at a safe point: no thread is in, or will return into,
//! the code that is about to change its meaning.
//!
//! For each thread the stack in use is searched for words that could be return addresses
//! into the watched code. None at all, on the thread's own stack: safe, without a walk.
//! Otherwise a walk decides, but only a *proven* one; an unproven walk leaves the thread
//! busy. So dead values on a stack cost a walk, never a wrong answer, and a doubt is "busy".
//!
//! Limits: stacks that no thread stands on (coroutines parked with `swapcontext`) are not
//! seen.

use crate::InTheWay;
use crate::addr::{LiveAddr, LiveRange};
use crate::gate::Gates;
use crate::maps::Maps;
use crate::prelude::*;
use crate::process::{self, Process};
use crate::small::sort_by_key;
use crate::sys::{MAX_RANGES, Regs};
use crate::threads::Task;
use crate::unwind::{Frame, Unwinder, Walk};
use linux_raw_sys::general as nr;

/// Bytes below the stack pointer that a function may use (psABI, red zone).
const RED_ZONE: u64 = 128;
/// Most of a stack that is searched.
const MAX_STACK: u64 = 64 << 20;
const CHUNK: u64 = 1 << 20;
/// Most bytes of several stacks that are read together: larger buffers cost more than the calls.
const TOGETHER: u64 = 64 << 10;

/// Code in which no thread may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) range: LiveRange,
    /// What it is called in messages.
    pub(crate) name: String,
    /// Where that name starts.
    pub(crate) origin: LiveAddr,
    /// Standing exactly at one of these is not being inside: nothing has been executed yet.
    pub(crate) outside: [LiveAddr; 2],
    /// The name is only that of a larger whole; a better one in an outer frame is preferred.
    pub(crate) vague: bool,
    /// Only code that is just being executed counts, not what is returned to.
    pub(crate) running: bool,
}

impl Watched {
    pub(crate) fn plain(range: LiveRange, name: &str) -> Watched {
        let outside = [LiveAddr(0); 2];
        Watched { range, name: name.to_owned(), origin: range.start, outside, vague: true, running: false }
    }

    /// Code that nobody may just be executing.
    pub(crate) fn running(range: LiveRange, name: &str) -> Watched {
        Watched { running: true, ..Watched::plain(range, name) }
    }

    fn holds(&self, frame: Frame) -> bool {
        let LiveRange { start, end } = self.range;
        match frame.exact {
            true => self.range.contains(frame.pc) && !self.outside.contains(&frame.pc),
            // A call at a function's very end returns to its end.
            false => !self.running && start < frame.pc && frame.pc <= end,
        }
    }
}

/// All watched code, ready for many look-ups.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    /// By start, with the highest end so far.
    list: Vec<(Watched, u64)>,
    /// Hull of all ranges.
    low: u64,
    high: u64,
}

impl Watch {
    pub(crate) fn new(mut list: Vec<Watched>) -> Watch {
        list.retain(|watched| !watched.range.is_empty());
        sort_by_key(&mut list, |watched| watched.range);
        let low = list.first().map_or(u64::MAX, |first| first.range.start.0);
        let high = list.iter().map(|watched| watched.range.end.0).max().unwrap_or(0);
        let mut reach = 0;
        let list = list
            .into_iter()
            .map(|watched| {
                reach = reach.max(watched.range.end.0);
                (watched, reach)
            })
            .collect();
        Watch { list, low, high }
    }

    /// These ranges too.
    pub(crate) fn and(self, more: impl Iterator<Item = Watched>) -> Watch {
        Watch::new(self.list.into_iter().map(|(watched, _)| watched).chain(more).collect())
    }

    /// Whether a word could be a return address, or an interrupted address, in the watched code.
    fn may_hold(&self, word: u64) -> bool {
        if word < self.low || word > self.high {
            return false;
        }
        self.at_or_below(word).any(|watched| {
            !watched.running && word <= watched.range.end.0 && !watched.outside.contains(&LiveAddr(word))
        })
    }

    /// All ranges that start at or below a word and may reach it.
    fn at_or_below(&self, word: u64) -> impl Iterator<Item = &Watched> {
        let below = self.list.partition_point(|(watched, _)| watched.range.start.0 <= word);
        let reaching = self.list[..below].iter().rev().take_while(move |(_, reach)| *reach >= word);
        reaching.map(|(watched, _)| watched)
    }

    fn find(&self, frame: Frame) -> Option<&Watched> {
        let near = self.low <= frame.pc.0 && frame.pc.0 <= self.high;
        if !near {
            return None;
        }
        let holding = || self.at_or_below(frame.pc.0).filter(|watched| watched.holds(frame));
        holding().find(|watched| !watched.vague).or_else(|| holding().next())
    }
}

/// Where a thread stands.
struct Place {
    /// Its registers, as they were before it came into a gate.
    regs: Regs,
    /// The used part of its own stack, if it stands on that.
    home: Option<LiveRange>,
}

impl Place {
    /// The same, if it is read in one piece.
    fn short_home(&self) -> Option<LiveRange> {
        self.home.filter(|home| home.len() <= TOGETHER)
    }
}

/// Of how many of the first of these threads the stacks are read in one call: one by one they take longer.
fn read_together(places: &[(&Task, Place)]) -> usize {
    let mut room = TOGETHER;
    let fits = |(_, place): &&(&Task, Place)| {
        let left = room.checked_sub(place.short_home().map_or(0, LiveRange::len));
        room = left.unwrap_or(0);
        left.is_some()
    };
    places.iter().take(MAX_RANGES).take_while(fits).count().max(1)
}

/// Whether no word could lead into the watched code.
fn is_clean(stack: &[u8], watch: &Watch) -> bool {
    !stack.as_chunks::<8>().0.iter().any(|word| watch.may_hold(u64::from_le_bytes(*word)))
}

/// The same for the registers in which an epilogue or a PLT stub may hold a return address.
fn registers_are_clean(regs: &Regs, watch: &Watch) -> bool {
    ![regs.rax, regs.rcx, regs.rdx, regs.r11].iter().any(|&word| watch.may_hold(word))
}

/// A place for one thread's verdict.
pub(crate) struct Judge<'a> {
    pub(crate) process: &'a Process,
    pub(crate) unwinder: &'a Unwinder<'a>,
    pub(crate) maps: &'a Maps,
    pub(crate) gates: &'a [Gates],
}

impl Judge<'_> {
    /// One line for each thread that is in the way; none at a safe point.
    pub(crate) fn busy(&self, tasks: &[Task], watch: &Watch) -> Vec<InTheWay> {
        let places: Vec<(&Task, Place)> = tasks.iter().map(|task| (task, self.place(task))).collect();
        let (mut lines, mut buffer) = (Vec::new(), Vec::new());
        let mut rest = places.as_slice();
        while !rest.is_empty() {
            let (group, more) = rest.split_at(read_together(rest));
            let stacks: Vec<LiveRange> = group.iter().filter_map(|(_, place)| place.short_home()).collect();
            let count = self.process.mem.ranges(&stacks, &mut buffer);
            let read = stacks.iter().take(count).map(|stack| stack.len()).sum::<u64>();
            let mut unseen = buffer.get(..read as usize).unwrap_or_default();
            for (task, place) in group {
                let stack = place.short_home().and_then(|home| unseen.split_off(..home.len() as usize));
                lines.extend(self.judge_at(task, place, stack, watch));
            }
            rest = more;
        }
        lines
    }

    /// Whether any of these threads waits inside the kernel: it will not leave by itself.
    pub(crate) fn any_blocked(&self, tasks: &[Task], watch: &Watch) -> bool {
        tasks.iter().any(|task| blocked_in(&task.regs).is_some() && self.judge(task, watch).is_some())
    }

    /// What is in the way of this thread's being outside.
    pub(crate) fn judge(&self, task: &Task, watch: &Watch) -> Option<InTheWay> {
        self.judge_at(task, &self.place(task), None, watch)
    }

    fn place(&self, task: &Task) -> Place {
        let regs = self.without_gate(&task.regs);
        Place { regs, home: self.home(task.tid, &regs) }
    }

    /// `stack`: the used part of its own, if that has been read.
    fn judge_at(&self, task: &Task, place: &Place, stack: Option<&[u8]>, watch: &Watch) -> Option<InTheWay> {
        let Place { regs, home } = place;
        let innermost = watch.find(Frame { pc: LiveAddr(regs.rip), exact: true });
        if let Some(inside) = innermost.filter(|inside| !inside.vague) {
            return Some(self.inside(task, inside, Frame { pc: LiveAddr(regs.rip), exact: true }));
        }
        let clean = home.is_some_and(|home| match stack {
            Some(stack) => is_clean(stack, watch),
            None => self.is_clean(home, watch),
        });
        let clean = clean && registers_are_clean(regs, watch);
        if clean && innermost.is_none() {
            return None;
        }
        let walk = self.unwinder.walk(regs, self.maps);
        let found: Vec<(&Watched, Frame)> =
            walk.frames.iter().filter_map(|&frame| watch.find(frame).map(|watched| (watched, frame))).collect();
        let named = found.iter().find(|(watched, _)| !watched.vague).or(found.first());
        match (named, walk.proven) {
            (Some((watched, frame)), _) => Some(self.inside(task, watched, *frame)),
            (None, true) => None,
            (None, false) => Some(self.line(task, &self.doubt(&walk, *home)).into()),
        }
    }

    /// A thread in a gate stands, to us, at the entry that led it there.
    fn without_gate(&self, regs: &Regs) -> Regs {
        let undone = self.gates.iter().find_map(|gates| gates.undone(LiveAddr(regs.rip)));
        let (rip, pushed) = undone.unwrap_or((LiveAddr(regs.rip), 0));
        Regs { rip: rip.0, rsp: regs.rsp.wrapping_add(pushed), ..*regs }
    }

    /// The used part of the stack that the thread owns, if it stands on it.
    fn home(&self, tid: i32, regs: &Regs) -> Option<LiveRange> {
        let rsp = LiveAddr(regs.rsp);
        let stack = self.maps.at(rsp).filter(|map| map.read && map.write)?;
        let main = tid == self.process.pid && stack.path == "[stack]";
        // The thread control block lies at the upper end of a thread's stack.
        let own = main || stack.range.contains(LiveAddr(regs.fs_base)) && regs.fs_base > rsp.0;
        let start = LiveAddr(rsp.0.checked_sub(RED_ZONE)? & !7).max(stack.range.start);
        let used = LiveRange { start, end: stack.range.end };
        (own && used.len() <= MAX_STACK).then_some(used)
    }

    /// Whether no word of a stack could lead into the watched code.
    fn is_clean(&self, stack: LiveRange, watch: &Watch) -> bool {
        let mut at = stack.start;
        while at < stack.end {
            let len = (stack.end.0 - at.0).min(CHUNK);
            let bytes = self.process.mem.bytes(at, len as usize);
            if !bytes.is_ok_and(|bytes| is_clean(&bytes, watch)) {
                return false;
            }
            at = at.plus(len);
        }
        true
    }

    fn inside(&self, task: &Task, watched: &Watched, frame: Frame) -> InTheWay {
        let offset = frame.pc.0.wrapping_sub(watched.origin.0);
        let line = self.line(task, &format!("in {}+{offset:#x}", watched.name));
        InTheWay::new(line, Some(frame.pc.0 - u64::from(!frame.exact)))
    }

    fn line(&self, task: &Task, what: &str) -> String {
        let name = process::thread_comm(self.process.pid, task.tid);
        let blocked = blocked_in(&task.regs).map_or(String::new(), |call| format!(" (blocked in {call})"));
        format!("thread {} ({name}) {what}{blocked}", task.tid)
    }

    fn doubt(&self, walk: &Walk, home: Option<LiveRange>) -> String {
        let last = walk.frames.last().map_or(LiveAddr(0), |frame| frame.pc);
        let module = self.maps.at(last).map_or("nowhere", |map| map.path.rsplit('/').next().unwrap_or(""));
        let module = process::printable(module);
        let stack = if home.is_none() { ", and it is not on its own stack" } else { "" };
        format!("cannot be proven to be outside: its stack has no unwind information from {last} in {module} on{stack}")
    }
}

/// The system call in which the stop found a thread.
fn blocked_in(regs: &Regs) -> Option<String> {
    let interrupted = matches!(regs.rax as i64, -512 | -513 | -514 | -516);
    if !interrupted || (regs.orig_rax as i64) < 0 {
        return None;
    }
    let number = regs.orig_rax as i64;
    let name = CALLS.iter().find(|call| i64::from(call.0) == number).map(|call| call.1.to_owned());
    Some(name.unwrap_or_else(|| format!("system call {number}")))
}

/// The calls in which programs usually wait.
const CALLS: [(u32, &str); 27] = [
    (nr::__NR_read, "read"),
    (nr::__NR_write, "write"),
    (nr::__NR_poll, "poll"),
    (nr::__NR_ppoll, "ppoll"),
    (nr::__NR_select, "select"),
    (nr::__NR_pselect6, "pselect6"),
    (nr::__NR_pause, "pause"),
    (nr::__NR_nanosleep, "nanosleep"),
    (nr::__NR_clock_nanosleep, "clock_nanosleep"),
    (nr::__NR_accept, "accept"),
    (nr::__NR_accept4, "accept4"),
    (nr::__NR_connect, "connect"),
    (nr::__NR_recvfrom, "recvfrom"),
    (nr::__NR_recvmsg, "recvmsg"),
    (nr::__NR_sendto, "sendto"),
    (nr::__NR_sendmsg, "sendmsg"),
    (nr::__NR_wait4, "wait4"),
    (nr::__NR_waitid, "waitid"),
    (nr::__NR_flock, "flock"),
    (nr::__NR_futex, "futex"),
    (nr::__NR_epoll_wait, "epoll_wait"),
    (nr::__NR_epoll_pwait, "epoll_pwait"),
    (nr::__NR_readv, "readv"),
    (nr::__NR_writev, "writev"),
    (nr::__NR_rt_sigtimedwait, "rt_sigtimedwait"),
    (nr::__NR_rt_sigsuspend, "rt_sigsuspend"),
    (nr::__NR_io_getevents, "io_getevents"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_inside() {
        let range = LiveAddr(0x1000).range(0x10);
        let mut watched = Watched::plain(range, "f");
        watched.outside = [LiveAddr(0x1000), LiveAddr(0x1004)];
        let exact = |pc| watched.holds(Frame { pc: LiveAddr(pc), exact: true });
        let back = |pc| watched.holds(Frame { pc: LiveAddr(pc), exact: false });
        assert_eq!([exact(0xfff), exact(0x1000), exact(0x1004), exact(0x1010)], [false; 4]);
        assert_eq!([exact(0x1001), exact(0x100f), back(0x1001), back(0x1010)], [true; 4]);
        assert_eq!([back(0x1000), back(0x1011)], [false; 2]);
    }

    #[test]
    fn words_that_may_lead_there() {
        let watch = Watch::new(vec![Watched::plain(LiveAddr(0x1000).range(16), "f")]);
        assert!(watch.may_hold(0x1010) && watch.may_hold(0x1001));
        assert!(!watch.may_hold(0x1011) && !watch.may_hold(0xfff));
    }
}
