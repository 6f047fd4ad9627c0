//! Looking for pointers into a payload in all that a program can write: only when there is
//! none may the payload be unmapped.
//!
//! A word anywhere that looks like such a pointer keeps the payload, so the search can err
//! only to the safe side. What memory does not show is excluded otherwise: see
//! [`hidden_holder`]. The part of a stack below its stack pointer is dead, and full of stale
//! return addresses; it is left out where the stack's lower end is certain.

use crate::addr::{LiveRange, PAGE};
use crate::bytes::u64_at;
use crate::ledger::Ledger;
use crate::maps::{Mapping, Maps};
use crate::process::Process;
use crate::sys;
use crate::threads::Task;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Most memory that is searched.
const MAX_MEMORY: u64 = 256 << 20;
const CHUNK: u64 = 1 << 20;
const RED_ZONE: u64 = 128;

/// What a search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Search {
    Clean,
    Found,
    /// Too much memory, too little time, or unreadable.
    Unknown,
}

/// Why pointers into the payload may exist that no search of memory finds.
pub(crate) fn hidden_holder(process: &Process, ledger: &Ledger) -> Option<&'static str> {
    if ledger.keeps_code {
        return Some("the patch hands out addresses of its code (signal handlers are known to the kernel alone)");
    }
    let kept_by_kernel = |link: std::path::PathBuf| {
        let text = link.to_string_lossy().into_owned();
        ["anon_inode:[eventpoll]", "anon_inode:[io_uring]", "anon_inode:[userfaultfd]"].contains(&text.as_str())
    };
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{}/fd", process.pid)) else {
        return Some("its descriptors cannot be listed");
    };
    let holder = descriptors.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(kept_by_kernel);
    (holder && !ledger.variables.is_empty()).then_some("an epoll or io_uring instance may hold addresses of its data")
}

/// Searches a running program: cheap, and enough to know that unmapping has no chance now.
/// Stacks are left out.
pub(crate) fn search_running(process: &Process, maps: &Maps, payload: LiveRange, deadline_ns: u64) -> Search {
    let areas = searched(maps, payload).filter(|mapping| !is_bounded_stack(maps, mapping));
    search(process, areas.map(|mapping| (mapping, mapping.range)).collect(), payload, deadline_ns)
}

/// Searches a stopped program, registers included.
pub(crate) fn search_stopped(
    process: &Process,
    maps: &Maps,
    tasks: &[Task],
    payload: LiveRange,
    deadline_ns: u64,
) -> Search {
    for task in tasks {
        let r = &task.regs;
        let general = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15, r.rip, r.fs_base, r.gs_base,
        ];
        let Ok(extended) = sys::extended_state(task.tid) else { return Search::Unknown };
        let inside = |word: u64| payload.contains(crate::addr::LiveAddr(word));
        if general.into_iter().any(inside) || holds_pointer(&extended, payload) {
            return Search::Found;
        }
    }
    let areas = searched(maps, payload).map(|mapping| (mapping, live_part(maps, mapping, tasks)));
    search(process, areas.collect(), payload, deadline_ns)
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

/// A mapping without the dead part of the stack that it holds.
fn live_part(maps: &Maps, mapping: &Mapping, tasks: &[Task]) -> LiveRange {
    let on_it = |task: &&Task| mapping.range.contains(crate::addr::LiveAddr(task.regs.rsp));
    let mut standing = tasks.iter().filter(on_it);
    let (Some(task), None) = (standing.next(), standing.next()) else { return mapping.range };
    let own = mapping.path == "[stack]"
        || mapping.range.contains(crate::addr::LiveAddr(task.regs.fs_base)) && task.regs.fs_base > task.regs.rsp;
    if !own || !is_bounded_stack(maps, mapping) {
        return mapping.range;
    }
    let start = crate::addr::LiveAddr(task.regs.rsp.saturating_sub(RED_ZONE) & !7).max(mapping.range.start);
    LiveRange { start, end: mapping.range.end }
}

fn search(process: &Process, areas: Vec<(&Mapping, LiveRange)>, payload: LiveRange, deadline_ns: u64) -> Search {
    let pagemap = File::open(format!("/proc/{}/pagemap", process.pid)).ok();
    let mut budget = MAX_MEMORY;
    for (mapping, area) in areas {
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
                if budget == 0 || sys::now_ns() > deadline_ns {
                    return Search::Unknown;
                }
                match process.mem.bytes(part.start, part.len() as usize) {
                    Ok(bytes) if holds_pointer(&bytes, payload) => return Search::Found,
                    Ok(_) => {}
                    Err(_) => return Search::Unknown,
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
        let page = crate::addr::LiveAddr((first + index as u64) * PAGE).range(PAGE);
        let part = LiveRange { start: page.start.max(range.start), end: page.end.min(range.end) };
        match parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => parts.push(part),
        }
    }
    parts
}

fn holds_pointer(bytes: &[u8], payload: LiveRange) -> bool {
    let len = payload.len();
    bytes.chunks_exact(8).any(|word| u64_at(word, 0).is_some_and(|word| word.wrapping_sub(payload.start.0) < len))
}
