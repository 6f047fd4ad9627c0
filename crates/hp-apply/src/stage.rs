//! Bringing a payload into a target, and taking its mapping away again.
//!
//! One thread stands for a moment and maps the memory (others that could not keep standing with it); then the contents are written, and
//! last of all the ledger. Until its checksum fits, the mapping is nothing to anybody.

use crate::addr::{LiveAddr, LiveRange};
use crate::failure::{Failure, busy, refused};
use crate::layout::Layout;
use crate::ledger::{CLAIM_SIZE, Ledger, claim};
use crate::prelude::*;
use crate::process;
use crate::process::Process;
use crate::remote::{CallError, Remote, Slot, Slots};
use crate::seccomp::Call;
use crate::sys::{self, Errno, Instant, number};
use crate::threads::{Stopped, Tracer, does_not_stop};
use core::time::Duration;
use linux_raw_sys::general as nr;

const PROT_READ: u64 = nr::PROT_READ as u64;
const NO_FILE: u64 = u64::MAX;
const MAP_NEW: u64 = (nr::MAP_PRIVATE | nr::MAP_ANONYMOUS | nr::MAP_FIXED_NOREPLACE) as u64;
const MAP_OVER: u64 = (nr::MAP_PRIVATE | nr::MAP_ANONYMOUS | nr::MAP_FIXED) as u64;
const BACKOFF: Duration = Duration::from_millis(2);
/// How often a hole that somebody else took first is looked for again.
const PLACE_TRIES: u32 = 5;

/// What is put where.
pub(crate) struct Load<'a> {
    pub(crate) layout: &'a Layout,
    /// Everything but the ledger.
    pub(crate) content: &'a [u8],
    pub(crate) ledger: &'a [u8],
}

/// Reserves a mapping near the base and fills it. `place` gives an address, and another one when somebody else was
/// faster there; `make` the content and the ledger for it. The ledger that was written.
pub(crate) fn load(
    tracer: &mut Tracer<'_>,
    helpers: &[i32],
    slots: &Slots,
    layout: &Layout,
    deadline: Instant,
    place: impl Fn(u32) -> Result<LiveAddr, Failure>,
    make: impl Fn(LiveAddr) -> Result<(Vec<u8>, Ledger), Failure>,
) -> Result<Ledger, Failure> {
    let target = tracer.process;
    let mut taken = 0;
    'place: loop {
        let at = place(taken)?;
        let (content, ledger) = make(at)?;
        let bytes = ledger.bytes()?;
        loop {
            let mut late = None;
            // The first one that can be had keeps standing: all appliers begin with it, so no two load at the same time.
            let mut stopped = tracer.begin();
            for &tid in helpers {
                if !stopped.add(tid)? {
                    late = late.or(Some(tid).filter(|tid| stopped.waits_for(*tid)));
                    // Each of them may have been waited for.
                    if Instant::now() >= deadline {
                        break;
                    }
                    continue;
                }
                let slot = slots.any_now(&target.mem).ok_or_else(no_slot)?;
                match load_by(&mut stopped, slot, at, &Load { layout, content: &content, ledger: &bytes }) {
                    Ok(()) => return Ok(ledger),
                    Err(CallError::NotNow) => {}
                    Err(CallError::Errno(Errno::EEXIST)) if taken < PLACE_TRIES => {
                        taken += 1;
                        continue 'place;
                    }
                    Err(CallError::Errno(errno)) => return Err(refused_call(target.pid, errno)),
                    Err(CallError::Fatal(error)) => return Err(error),
                }
            }
            drop(stopped);
            if !target.is_same() {
                return Err(process::ended(target.pid));
            }
            if Instant::now() >= deadline {
                let why = late.map_or(String::new(), |tid| format!(": {}", does_not_stop(target.pid, tid)));
                return Err(busy(format!("no thread can map memory for the patch now{why}").into()));
            }
            sys::sleep(BACKOFF);
        }
    }
}

fn load_by(stopped: &mut Stopped<'_, '_>, slot: Slot, at: LiveAddr, load: &Load<'_>) -> Result<(), CallError> {
    let (process, task) = stopped.last();
    let mut remote = Remote::begin(process, task, slot)?;
    reserve(&mut remote, at, load.layout)?;
    let tid = remote.tid();
    let claim_at = at.plus(load.layout.constants.0 - CLAIM_SIZE as u64);
    let claimed = write(process, tid, claim_at, &claim(at.range(load.layout.size)));
    if let Err(error) = claimed {
        let _ = unmap_by(&mut remote, at.range(load.layout.size));
        return Err(CallError::Fatal(error));
    }
    map_parts(&mut remote, at, load.layout)?;
    let filled = fill(process, remote.tid(), at, load);
    if filled.is_err() {
        // Nothing leads there yet: take it back rather than leave it.
        let _ = unmap_by(&mut remote, at.range(load.layout.size));
    }
    filled.map_err(CallError::Fatal)
}

/// The system calls that loading takes, in order: the whole range is reserved, then the
/// parts are mapped anew over it instead of changing its protection. That is allowed where
/// gaining execute permission later is not (`PR_SET_MDWE`).
fn maps(at: LiveAddr, layout: &Layout) -> Vec<[u64; 6]> {
    let end = layout.variables.0;
    let parts =
        [(layout.code.0, end, nr::PROT_READ | nr::PROT_EXEC), (end, layout.size, nr::PROT_READ | nr::PROT_WRITE)];
    let parts = parts.into_iter().filter(|part| part.0 < part.1);
    let over = parts.map(|(start, end, access)| [at.0 + start, end - start, u64::from(access), MAP_OVER, NO_FILE, 0]);
    core::iter::once([at.0, layout.size, PROT_READ, MAP_NEW, NO_FILE, 0]).chain(over).collect()
}

/// The same and the call that takes it all away, as a seccomp filter sees them.
pub(crate) fn calls(at: LiveAddr, layout: &Layout, slot: Option<Slot>) -> Vec<Call> {
    let after = slot.map_or(LiveAddr(0), Slot::after);
    let call = |number, arguments| Call { number, arguments, after };
    let maps = maps(at, layout).into_iter().map(|arguments| call(number::MMAP, arguments));
    maps.chain([call(number::MUNMAP, [at.0, layout.size, 0, 0, 0, 0])]).collect()
}

fn reserve(remote: &mut Remote<'_>, at: LiveAddr, layout: &Layout) -> Result<(), CallError> {
    let Some(&arguments) = maps(at, layout).first() else { return Ok(()) };
    let got = remote.call(number::MMAP, arguments)?;
    if got != at.0 {
        // Kernels before 4.17 take the address as a hint only.
        let _ = unmap_by(remote, LiveAddr(got).range(layout.size));
        return Err(CallError::Errno(Errno::EEXIST));
    }
    Ok(())
}

fn map_parts(remote: &mut Remote<'_>, at: LiveAddr, layout: &Layout) -> Result<(), CallError> {
    for arguments in maps(at, layout).into_iter().skip(1) {
        if let Err(error) = remote.call(number::MMAP, arguments) {
            let _ = unmap_by(remote, at.range(layout.size));
            return Err(error);
        }
    }
    Ok(())
}

/// Writes everything, the ledger last.
pub(crate) fn fill(process: &Process, tid: i32, at: LiveAddr, load: &Load<'_>) -> Result<(), Failure> {
    let Layout { constants, code, variables, nexts, .. } = *load.layout;
    for (start, end) in [(constants.0, nexts.1), code, variables] {
        let bytes = load.content.get(start as usize..end as usize).unwrap_or_default();
        // Fresh memory is zero already.
        if bytes.iter().any(|&byte| byte != 0) {
            write(process, tid, at.plus(start), bytes)?;
        }
    }
    write(process, tid, at, load.ledger)
}

fn write(process: &Process, tid: i32, at: LiveAddr, bytes: &[u8]) -> Result<(), Failure> {
    process.mem.write(tid, at, bytes).map_err(|error| process.io_error("cannot write the patch into it", &error))
}

/// Has one of the stopped threads unmap a payload. False if none can now.
pub(crate) fn unmap(
    stopped: &mut Stopped<'_, '_>,
    slots: &Slots,
    helpers: &[i32],
    payload: LiveRange,
) -> Result<bool, Failure> {
    let (process, _) = stopped.first();
    let Some(slot) = slots.any_now(&process.mem) else { return Ok(false) };
    for (process, task) in stopped.each().filter(|(_, task)| helpers.contains(&task.tid)) {
        let result = Remote::begin(process, task, slot).and_then(|mut remote| unmap_by(&mut remote, payload));
        match result {
            Ok(()) => return Ok(true),
            Err(CallError::NotNow | CallError::Errno(_)) => {}
            Err(CallError::Fatal(error)) => return Err(error),
        }
    }
    Ok(false)
}

fn unmap_by(remote: &mut Remote<'_>, range: LiveRange) -> Result<(), CallError> {
    remote.call(number::MUNMAP, [range.start.0, range.len(), 0, 0, 0, 0]).map(drop)
}

fn refused_call(pid: i32, errno: Errno) -> Failure {
    let why = match errno {
        Errno::ENOMEM => "it has no memory left to map (address-space or overcommit limit)".to_owned(),
        Errno::EACCES | Errno::EPERM => "a security policy forbids it to map executable memory".to_owned(),
        _ => errno.to_string(),
    };
    refused(format_args!("process {pid} cannot map memory for the patch: {why}"))
}

fn no_slot() -> Failure {
    refused(format_args!("no executable segment of the process has room for the system-call stub"))
}
