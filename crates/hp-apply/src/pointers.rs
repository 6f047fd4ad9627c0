//! Looking for pointers into a payload in all that a program can write: only when there is
//! none may the payload be unmapped.
//!
//! Two kinds of words matter. A word that leads into the payload's *code* can only be a
//! return address or an interrupted one, because a patch that hands out addresses of its
//! code is never unmapped ([`hidden_holder`]). Such words are stale on the stack of a thread
//! of which the safe-point check has just said that none of its frames is in the payload;
//! anywhere else (a parked coroutine) they keep the payload. A word that leads into its
//! *data* may be a pointer wherever it lies, but for the dead part of a stack: what is below
//! the stack pointer and the red zone. There is none to look for if no instruction of the
//! patch makes an address of its data.
//!
//! A word anywhere else that looks like a pointer keeps the payload, so the search can err
//! only to the safe side; it says where it found one.

use crate::addr::{LiveAddr, LiveRange, PAGE};
use crate::bytes::u64_at;
use crate::landing;
use crate::ledger::Ledger;
use crate::maps::{Mapping, Maps};
use crate::prelude::*;
use crate::process::{self, Process};
use crate::sys::{self, File, Mem};
use crate::threads::Task;
use crate::unwind::Unwinder;

/// Most memory that is searched.
const MAX_MEMORY: u64 = 256 << 20;
const CHUNK: u64 = 1 << 20;
const RED_ZONE: u64 = 128;

/// What a search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    Clean,
    /// Why the payload stays: what was found, or that not everything could be looked at.
    Kept(String),
}

/// What a word must lead into to count.
#[derive(Clone, Debug, Default)]
struct Sought {
    code: Option<LiveRange>,
    /// Landing pads, sorted: such words in the code are notes of exceptions that are over.
    pads: Vec<LiveAddr>,
    data: Vec<LiveRange>,
}

impl Sought {
    fn of(mem: &Mem, ledger: &Ledger) -> Sought {
        let mut data = Vec::new();
        // Unwind rows and pointer slots, which follow the constants proper, are only read in place.
        let rows = Some(ledger.eh_frame.start).filter(|_| !ledger.eh_frame.is_empty());
        let constants = LiveRange { start: ledger.constants.start, end: rows.unwrap_or(ledger.constants.end) };
        if ledger.hands_out.constants && !constants.is_empty() {
            data.push(constants);
        }
        if ledger.hands_out.variables && !ledger.variables.is_empty() {
            data.push(ledger.variables);
        }
        Sought { code: Some(ledger.code), pads: landing::pads(mem, ledger), data }
    }

    /// The same, but only words that are pointers even on a stack which is known frame by frame.
    fn data_only(&self) -> Sought {
        Sought { code: None, pads: Vec::new(), data: self.data.clone() }
    }

    /// A pointer one past the end counts too, and a call at the end of the code returns there.
    fn holds(&self, word: u64) -> bool {
        let within = |range: &LiveRange| range.start.0 <= word && word <= range.end.0;
        self.code.iter().any(within) && self.pads.binary_search(&LiveAddr(word)).is_err()
            || self.data.iter().any(within)
    }

    /// The lowest word that may count, and how far above it the highest is.
    fn span(&self) -> Option<(u64, u64)> {
        let ranges = || self.code.iter().chain(&self.data);
        let (low, high) = (ranges().map(|range| range.start.0).min()?, ranges().map(|range| range.end.0).max()?);
        Some((low, high - low))
    }

    fn is_nothing(&self) -> bool {
        self.code.is_none() && self.data.is_empty()
    }
}

/// Why pointers into the payload may exist that no search of memory finds.
pub(crate) fn hidden_holder(process: &Process, ledger: &Ledger) -> Option<&'static str> {
    if ledger.hands_out.code {
        return Some("the patch hands out addresses of its code (signal handlers are known to the kernel alone)");
    }
    if ledger.variables.is_empty() || !ledger.hands_out.variables {
        return None;
    }
    let folder = format!("/proc/{}/fd", process.pid);
    let kept_by_kernel = |fd: i32| {
        let link = sys::read_link(&format!("{folder}/{fd}"));
        let kinds: [&[u8]; 3] = [b"anon_inode:[eventpoll]", b"anon_inode:[io_uring]", b"anon_inode:[userfaultfd]"];
        link.is_ok_and(|link| kinds.contains(&link.as_slice()))
    };
    let Ok(descriptors) = sys::numbers_in(&folder) else {
        return Some("its descriptors cannot be listed");
    };
    let holder = descriptors.into_iter().any(kept_by_kernel);
    holder.then_some("an epoll or io_uring instance may hold addresses of its data")
}

/// Searches a running program: cheap, and enough to know that unmapping has no chance now.
/// Stacks are left out.
pub(crate) fn search_running(process: &Process, maps: &Maps, ledger: &Ledger, deadline_ns: u64) -> Search {
    let sought = Sought::of(&process.mem, ledger);
    let areas = searched(maps, ledger.mapping).filter(|mapping| !is_bounded_stack(maps, mapping)).map(|mapping| Area {
        mapping,
        range: mapping.range,
        sought: &sought,
    });
    search(process, areas.collect(), deadline_ns)
}

/// Searches a stopped program, registers included. No thread has a frame in the payload:
/// that has been proven of each.
pub(crate) fn search_stopped(
    process: &Process,
    maps: &Maps,
    tasks: &[Task],
    unwinder: &Unwinder<'_>,
    ledger: &Ledger,
    deadline_ns: u64,
) -> Search {
    let everything = Sought::of(&process.mem, ledger);
    let data = everything.data_only();
    for task in tasks.iter().filter(|_| !data.is_nothing()) {
        let r = &task.regs;
        let general = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.fs_base, r.gs_base,
        ];
        let Ok(extended) = sys::extended_state(task.tid) else {
            return Search::Kept(format!("the registers of thread {} cannot be read", task.tid));
        };
        if general.into_iter().any(|word| data.holds(word)) || position(&extended, &data).is_some() {
            return Search::Kept(format!("a register of thread {} leads to its data", task.tid));
        }
    }
    let stacks: Vec<LiveRange> =
        tasks.iter().filter_map(|task| live_stack(process, maps, tasks, task, unwinder)).collect();
    let areas = searched(maps, ledger.mapping).map(|mapping| {
        match stacks.iter().find(|live| live.end == mapping.range.end && mapping.range.covers(**live)) {
            Some(&range) => Area { mapping, range, sought: &data },
            None => Area { mapping, range: mapping.range, sought: &everything },
        }
    });
    search(process, areas.filter(|area| !area.sought.is_nothing()).collect(), deadline_ns)
}

/// A part of a mapping, and what is looked for in it.
struct Area<'a> {
    mapping: &'a Mapping,
    range: LiveRange,
    sought: &'a Sought,
}

/// All writable mappings but the payload itself and memory of devices.
fn searched(maps: &Maps, payload: LiveRange) -> impl Iterator<Item = &Mapping> {
    maps.iter().filter(move |mapping| {
        let device = mapping.path.starts_with("/dev/")
            && !["/dev/zero", "/dev/shm/"].iter().any(|memory| mapping.path.starts_with(memory));
        mapping.write && !device && !mapping.range.overlaps(payload)
    })
}

/// A stack whose lower end is certain: the main one, or one above an inaccessible guard.
fn is_bounded_stack(maps: &Maps, mapping: &Mapping) -> bool {
    let guarded = || {
        let below = maps.with_lower_neighbour(mapping.range.start).and_then(|(_, below)| below);
        below.is_some_and(|below| !below.read && !below.write && !below.execute)
    };
    mapping.path == "[stack]" || mapping.is_anonymous() && guarded()
}

/// The part in use, to its upper end, of the stack that belongs to a thread and to no other.
///
/// A thread that stands on another stack (a signal handler on an alternate one) is followed
/// back to its own by a proven walk.
fn live_stack(
    process: &Process,
    maps: &Maps,
    tasks: &[Task],
    task: &Task,
    unwinder: &Unwinder<'_>,
) -> Option<LiveRange> {
    let main = task.tid == process.pid;
    let mapping = match main {
        true => maps.iter().find(|mapping| mapping.path == "[stack]")?,
        // The thread control block lies at the upper end of a thread's stack.
        false => maps.at(LiveAddr(task.regs.fs_base)).filter(|mapping| mapping.write)?,
    };
    let on_it = |pointer: u64| mapping.range.contains(LiveAddr(pointer));
    let alone = tasks.iter().all(|other| other.tid == task.tid || !on_it(other.regs.rsp) && !on_it(other.regs.fs_base));
    if !is_bounded_stack(maps, mapping) || !alone {
        return None;
    }
    let lowest = match on_it(task.regs.rsp) {
        true => task.regs.rsp,
        false => {
            let walk = unwinder.walk(&task.regs, maps);
            walk.stack_pointers.iter().copied().filter(|&pointer| walk.proven && on_it(pointer)).min()?
        }
    };
    if !main && lowest >= task.regs.fs_base {
        return None;
    }
    let start = LiveAddr(lowest.saturating_sub(RED_ZONE) & !7).max(mapping.range.start);
    Some(LiveRange { start, end: mapping.range.end })
}

fn search(process: &Process, areas: Vec<Area<'_>>, deadline_ns: u64) -> Search {
    let pagemap = File::open(format!("/proc/{}/pagemap", process.pid)).ok();
    let mut budget = MAX_MEMORY;
    for Area { mapping, range: area, sought } in areas {
        let sparse = (mapping.is_anonymous() || mapping.path.starts_with('[')) && !mapping.shared;
        let mut at = area.start;
        while at < area.end {
            let len = (area.end.0 - at.0).min(CHUNK);
            let range = at.range(len);
            at = range.end;
            let present = match &pagemap {
                Some(pagemap) if sparse => present(pagemap, range),
                _ => vec![range],
            };
            for part in present {
                budget = budget.saturating_sub(part.len());
                if budget == 0 {
                    return Search::Kept(format!(
                        "its memory is too large to be searched for pointers: more than {} MiB",
                        MAX_MEMORY >> 20
                    ));
                }
                if sys::now_ns() > deadline_ns {
                    let read = (MAX_MEMORY - budget) >> 20;
                    return Search::Kept(format!(
                        "the search of its memory for pointers took longer than a stop may be ({read} MiB were read)"
                    ));
                }
                let Ok(bytes) = process.mem.bytes(part.start, part.len() as usize) else {
                    return Search::Kept(format!("its memory at {} cannot be read", part.start));
                };
                if let Some(offset) = position(&bytes, sought) {
                    let (at, place) = (part.start.plus(offset), process::printable(&mapping.path));
                    let place = if place.is_empty() { "anonymous memory" } else { &place };
                    return Search::Kept(format!("the word at {at} ({place}) may be a pointer into it"));
                }
            }
        }
    }
    Search::Clean
}

/// The parts of an anonymous range that have content (`Documentation/admin-guide/mm/pagemap.rst`).
fn present(pagemap: &File, range: LiveRange) -> Vec<LiveRange> {
    let first = range.start.0 / PAGE;
    let pages = range.end.0.div_ceil(PAGE) - first;
    let mut entries = vec![0u8; pages as usize * 8];
    if pagemap.read_exact_at(&mut entries, first * 8).is_err() {
        return vec![range];
    }
    let mut parts: Vec<LiveRange> = Vec::new();
    for (index, entry) in entries.chunks_exact(8).enumerate() {
        // Bit 63: in memory; bit 62: swapped out.
        if u64_at(entry, 0).is_some_and(|entry| entry >> 62 == 0) {
            continue;
        }
        let page = LiveAddr((first + index as u64) * PAGE).range(PAGE);
        let part = LiveRange { start: page.start.max(range.start), end: page.end.min(range.end) };
        match parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => parts.push(part),
        }
    }
    parts
}

/// Words that are looked at together: nearly all are far from the payload.
const LINE: usize = 8 * 8;

/// Offset of the first aligned word that counts.
fn position(bytes: &[u8], sought: &Sought) -> Option<u64> {
    let (low, len) = sought.span()?;
    let is_near = |line: &[u8]| {
        let words = line.as_chunks::<8>().0.iter();
        words.fold(false, |near, word| near | (u64::from_le_bytes(*word).wrapping_sub(low) <= len))
    };
    for (index, line) in bytes.chunks(LINE).enumerate().filter(|(_, line)| is_near(line)) {
        let found = line.as_chunks::<8>().0.iter().position(|word| sought.holds(u64::from_le_bytes(*word)));
        if let Some(word) = found {
            return Some((index * LINE + word * 8) as u64);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first and the last word that count in each range, and their neighbours, at every place of a line and after.
    #[test]
    fn words_that_count_are_found_wherever_they_lie() {
        let code = LiveAddr(0x5000).range(0x100);
        let data = vec![LiveAddr(0x9000).range(0x10), LiveAddr(0x7000).range(0x20)];
        let sought = Sought { code: Some(code), pads: vec![LiveAddr(0x5010)], data };
        let counts = [0x5000, 0x5100, 0x7000, 0x7020, 0x9000, 0x9010];
        let others = [0, 0x4fff, 0x5010, 0x5101, 0x6fff, 0x7021, 0x8fff, 0x9011, u64::MAX];
        for words in [1, 7, 8, 9, 40] {
            for at in 0..words {
                for (word, found) in counts.map(|w| (w, true)).into_iter().chain(others.map(|w| (w, false))) {
                    let mut bytes = vec![0u8; words * 8 + 3];
                    bytes[at * 8..at * 8 + 8].copy_from_slice(&u64::to_le_bytes(word));
                    assert_eq!(
                        position(&bytes, &sought),
                        found.then_some(at as u64 * 8),
                        "{word:#x} at {at} of {words}"
                    );
                }
            }
        }
        assert_eq!(position(&0x5000u64.to_le_bytes(), &Sought::default()), None);
    }
}
