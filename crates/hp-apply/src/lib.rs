//! The applier: from a patch to a live process, and back.
//!
//! [`apply`] checks everything before it writes anything, brings the payload into the
//! target, and switches all functions at once at a *safe point*: a moment at which no
//! thread is in a function that is replaced, or will return into one. [`revert`] does the
//! same backwards, with nothing but the record (*ledger*) that lies in the target.
//! The applier may be killed at any instruction: the target goes on, wholly old or wholly
//! new, and the next call finishes or undoes what was begun.
//!
//! The way of a patch, a module each: `session` (what is known of the target: `process`,
//! `maps`, `image`, `ledger`) → `scope` (imports) → `layout`, `place`, `relocate` (the
//! payload's bytes) → `stage` (into the target, by `remote` system calls) → `stops`
//! (`threads`, `safe_point`, `unwind`, `gate`) → `sites` (the entries). A newer patch
//! takes the place of an older one as `takeover` says. `finders` lets unwinders find the
//! payload's rows. All system calls are in `sys`.
//!
//! *Not* for judging whether a patch is right for its base: that is the diff's work; and
//! not for stacks that no thread stands on (parked coroutines), which it does not see.
//! `docs/APPLY.md` has the steps, the invariants and the ledger's bytes.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
// Not for the engine itself, so that it keeps working without.
#[cfg(test)]
extern crate std;

mod addr;
#[cfg(feature = "applier")]
#[doc(hidden)]
pub mod applier;
mod apply;
mod base_file;
mod bundle;
mod bytes;
mod chooser;
mod cleanup;
mod code;
#[cfg(any(feature = "applier", test))]
mod command;
mod dynamic;
mod exec_watch;
mod expression;
mod failure;
mod finders;
mod gate;
mod image;
mod inherit;
mod landing;
mod layout;
mod ledger;
mod maps;
mod newcomers;
mod place;
mod pointers;
mod prelude;
mod process;
mod relocate;
mod remote;
mod revert;
mod safe_point;
mod scope;
mod seccomp;
mod session;
mod sites;
mod small;
mod stage;
#[cfg(feature = "std")]
mod start;
mod status;
mod stops;
mod sys;
mod takeover;
mod threads;
mod unwind;

pub use bundle::{bundle, bundled};
pub use code::{LoadedCode, LoadedFunction};
#[cfg(feature = "std")]
pub use start::{Started, start};
#[cfg(feature = "std")]
#[doc(hidden)]
pub use sys::seam::{Fault, calls, calls_in_target, die_at, failed_call, fault_at, points, refuse_in_target};
pub use sys::{HeldSignals, hold_signals, interrupted};

use core::cell::Cell;
use core::time::Duration;
use failure::Failure;
use hp_pack::Patch;
use prelude::*;

/// All processes that map an image with this build ID, ascending.
///
/// Processes that the caller may not read are left out.
///
/// # Errors
/// [`Error::Unusable`] if `/proc` cannot be read.
pub fn targets_of(build_id: &[u8]) -> Result<Vec<i32>, Error> {
    Ok(status::targets_of(build_id)?)
}

/// All processes that hold the record of a patch, in effect or not, ascending.
///
/// # Errors
/// [`Error::Unusable`] if `/proc` cannot be read.
pub fn patched_processes() -> Result<Vec<i32>, Error> {
    Ok(status::patched_processes()?)
}

/// All processes, ascending.
///
/// # Errors
/// [`Error::Unusable`] if `/proc` cannot be read.
pub fn all_processes() -> Result<Vec<i32>, Error> {
    Ok(status::all_pids()?)
}

/// The build IDs of all images that a process maps.
///
/// # Errors
/// [`Error::Unusable`] if there is no such process or it may not be read.
pub fn builds_of(pid: i32) -> Result<Vec<Vec<u8>>, Error> {
    Ok(status::builds_of(pid)?)
}

/// The patches in one process, read from the process alone.
///
/// # Errors
/// [`Error::Unusable`] if there is no such process or it may not be read.
pub fn status(pid: i32) -> Result<Vec<LedgerEntry>, Error> {
    Ok(status::status(pid)?)
}

/// The code that patches have brought into one process, for debuggers and profilers.
///
/// # Errors
/// [`Error::Unusable`] if there is no such process or it may not be read.
pub fn loaded_code(pid: i32) -> Result<Vec<LoadedCode>, Error> {
    Ok(code::of_process(pid)?)
}

/// The same from memory that a core dump has kept: `memory` lay at `address`, a multiple of the page size.
pub fn loaded_code_in(memory: &[u8], address: u64) -> Vec<LoadedCode> {
    code::in_memory(memory, address)
}

/// Applies the patch in `patch_file`, the bytes of a `.hpatch` file, to a process.
pub fn apply(pid: i32, patch_file: &[u8], options: &Options) -> Outcome {
    match hp_pack::read(patch_file) {
        Ok(patch) => apply_patch(pid, &patch, &hp_pack::id(patch_file), options),
        Err(error) => Outcome::untouched(pid, Err(Error::Unusable(error.to_string()))),
    }
}

/// The same for a patch that has been read already; `id` is that of its file ([`hp_pack::id`]).
pub fn apply_patch(pid: i32, patch: &Patch, id: &str, options: &Options) -> Outcome {
    outcome(pid, |stood| apply::apply(pid, patch, id, options, stood))
}

/// Takes the patch with this ID, or every patch, out of a process.
pub fn revert(pid: i32, id: Option<&str>, options: &Options) -> Outcome {
    outcome(pid, |stood| revert::revert(pid, id, options, stood))
}

/// For measuring: stops all threads of a process and lets them go, nothing else. The
/// length of the stop in nanoseconds.
#[doc(hidden)]
pub fn stop_and_go(pid: i32) -> Result<u64, Error> {
    let work = || {
        sys::wake_in_time();
        let process = process::Process::open(pid)?;
        let mut tracer = threads::Tracer::new(&process);
        match tracer.stop_all()? {
            Ok(stopped) => Ok(stopped.release(false)),
            Err(threads::NotNow(line)) => Err(failure::busy(line.into())),
        }
    };
    Ok(on_its_own(pid, work)?)
}

fn outcome(pid: i32, work: impl FnOnce(&Cell<Stood>) -> Result<Done, Failure> + Send) -> Outcome {
    let comm = process::comm(pid);
    let work = || {
        sys::outlive_file_limit();
        sys::wake_in_time();
        let stood = Cell::default();
        let result = work(&stood);
        Ok((result, stood.get()))
    };
    let (result, stood) = on_its_own(pid, work).unwrap_or_else(|failure| (Err(failure), Stood::default()));
    Outcome { pid, comm, result: result.map_err(Error::from), stood }
}

/// Runs the engine on a thread of its own. Tracing belongs to that thread, so when it ends,
/// however it ends, the kernel releases whatever it still holds.
#[cfg(feature = "std")]
fn on_its_own<T: Send>(pid: i32, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    extern crate std;
    let (done, finished) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let work = move || {
            let result = work();
            drop(done);
            result
        };
        let tracer = match std::thread::Builder::new().spawn_scoped(scope, work) {
            Ok(tracer) => tracer,
            Err(error) => return Err(no_thread(pid, &error)),
        };
        let mut watch = exec_watch::Watch::new(pid);
        while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = finished.recv_timeout(exec_watch::TICK) {
            watch.look();
        }
        tracer.join().unwrap_or_else(|_| Err(failure::unusable(format_args!("process {pid}: internal error"))))
    })
}

/// The same without the standard library.
#[cfg(not(feature = "std"))]
fn on_its_own<T: Send>(pid: i32, work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    let mut watch = exec_watch::Watch::new(pid);
    sys::run_on_its_own(work, exec_watch::TICK, &mut || watch.look()).map_err(|error| no_thread(pid, &error))?
}

fn no_thread(pid: i32, error: &dyn core::fmt::Display) -> Failure {
    failure::unusable(format_args!("process {pid}: cannot make a thread to trace it: {error}"))
}

/// What the user asked of an apply or revert.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to look for a safe point.
    pub timeout: Duration,
    /// Longest single stop of the target that is acceptable; `None`: no limit.
    pub max_pause: Option<Duration>,
    /// Rehearse only: write nothing.
    pub dry_run: bool,
    /// Where the patch allows it (`may_go_on`), do not wait for threads to leave an old function: they go on in it, and
    /// calls lead to the new one.
    pub relaxed: bool,
}

/// A function of a patch, as the ledger names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchedFunction {
    /// Name of the new function.
    pub name: String,
    /// Address of the old entry in the target.
    pub old_address: u64,
    /// Address of the new entry in the target.
    pub new_address: u64,
}

/// How far a patch has come in a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Loaded or armed, not in effect: an interrupted apply or revert, or a reverted patch whose memory stays.
    Inactive,
    /// In effect.
    Active,
}

/// One patch in one target, read from the process alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Patch ID: the first 8 bytes of the SHA-256 of the patch file, in hexadecimal.
    pub id: String,
    /// Name of the patch.
    pub name: String,
    /// Build ID of the base, in hexadecimal.
    pub build_id: String,
    /// File that the base was mapped from, as the target's maps name it.
    pub base_path: String,
    /// Whether the patch is in effect.
    pub phase: Phase,
    /// When it was applied, in seconds since the epoch.
    pub applied_at: u64,
    /// Real user ID that applied it.
    pub uid: u32,
    /// Counter of the patch.
    pub counter: u64,
    /// What it replaced.
    pub functions: Vec<PatchedFunction>,
    /// Differences between the ledger and the memory, in words; empty when all is as it should be.
    pub damage: Vec<String>,
}

/// What happened to one target.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The process.
    pub pid: i32,
    /// Its command name (`/proc/PID/comm`).
    pub comm: String,
    /// What was done, or why not.
    pub result: Result<Done, Error>,
    /// What it cost the process, whatever came of it.
    pub stood: Stood,
}

impl Outcome {
    /// Of a process that was not stopped.
    #[must_use]
    pub fn untouched(pid: i32, result: Result<Done, Error>) -> Outcome {
        Outcome { pid, comm: process::comm(pid), result, stood: Stood::default() }
    }
}

/// How long threads of a target stood still for one apply or revert: all of them, or the one that made calls for us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stood {
    /// How often.
    pub stops: u32,
    /// Altogether, in nanoseconds.
    pub total_ns: u64,
    /// At most at a time, in nanoseconds.
    pub longest_ns: u64,
}

impl Stood {
    fn add(&mut self, more: Stood) {
        self.stops += more.stops;
        self.total_ns = self.total_ns.saturating_add(more.total_ns);
        self.longest_ns = self.longest_ns.max(more.longest_ns);
    }
}

/// What was done to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// The patch is in effect now.
    Applied(Measured),
    /// The patch is out now.
    Reverted(Measured),
    /// The target already has the patch.
    AlreadyApplied,
    /// The target does not have the patch.
    NotApplied,
    /// A dry run: everything was found in order; these words say what would be done.
    Rehearsed(Vec<String>),
}

/// What an apply or revert cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Stop in which the patch took effect, in nanoseconds.
    pub flip_pause_ns: u64,
    /// Longest other stop, in nanoseconds.
    pub longest_other_pause_ns: u64,
    /// Stops in total.
    pub stops: u32,
    /// Threads stopped at the flip.
    pub threads: u32,
    /// Entries redirected.
    pub functions: u32,
    /// Memory mapped in the target for the patch, in bytes; after a revert what had to stay of it.
    pub mapped_bytes: u64,
    /// For each patch that was taken out and whose memory had to stay, why. It is not in effect, and
    /// the next apply of the same patch uses it.
    pub kept: Vec<String>,
    /// IDs of the older patches that this one has taken the place of.
    pub replaced: Vec<String>,
    /// After a relaxed apply, the threads that go on in old functions.
    pub left: Vec<InTheWay>,
}

/// A thread or process for which there is no safe point, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InTheWay {
    words: String,
    /// The place where the thread is in the code of the base: the link-time address of an instruction, or of the last
    /// byte of a call.
    pub at: Option<u64>,
}

impl InTheWay {
    /// Says more of it.
    pub fn add(&mut self, words: &str) {
        self.words += words;
    }

    /// At this place, which is known to belong to the base only later.
    fn new(words: String, at: Option<u64>) -> InTheWay {
        InTheWay { words, at }
    }
}

impl From<String> for InTheWay {
    fn from(words: String) -> InTheWay {
        InTheWay { words, at: None }
    }
}

impl core::ops::Deref for InTheWay {
    type Target = str;

    fn deref(&self) -> &str {
        &self.words
    }
}

fn joined(lines: &[InTheWay]) -> String {
    let lines: Vec<&str> = lines.iter().map(|line| &**line).collect();
    lines.join("; ")
}

/// Why a target was left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Exit 1: identity, ledger, or a coded restriction of the target.
    #[error("{0}")]
    Refused(String),
    /// Exit 2: no such process, no rights, traced by another, unreadable.
    #[error("{0}")]
    Unusable(String),
    /// Exit 4: threads and frames in the way, one line for each.
    #[error("no safe point within the timeout: {}", joined(.0))]
    Busy(Vec<InTheWay>),
}
