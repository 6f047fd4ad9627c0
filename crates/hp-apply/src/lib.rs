//! The applier: from a patch to a live process, and back.

use std::time::Duration;

/// What the user asked of an apply or revert.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to look for a safe point.
    pub timeout: Duration,
    /// Longest single stop of the target that is acceptable; `None`: no limit.
    pub max_pause: Option<Duration>,
    /// Rehearse only: write nothing.
    pub dry_run: bool,
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
    /// Memory mapped in the target for the patch, in bytes.
    pub mapped_bytes: u64,
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
    #[error("no safe point within the timeout: {}", .0.join("; "))]
    Busy(Vec<String>),
}
