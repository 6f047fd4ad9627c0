//! Two builds of a program in, a [`Patch`](hp_pack::Patch) or the findings that forbid one out.
#![forbid(unsafe_op_in_unsafe_fn)]

mod finding;

pub use finding::{Code, Finding, Level};

use std::path::PathBuf;

/// What the user asked of a diff.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Errors that the user accepts: a code, and the subject that it is accepted for (`None`: all).
    pub allow: Vec<(Code, Option<String>)>,
    /// Name of the patch; the old file's name if not given.
    pub name: Option<String>,
    /// What it fixes: CVE ids or free words, for the manifest.
    pub fixes: Vec<String>,
    /// Orders patches of one base: an older one is refused over a newer one.
    pub counter: u64,
}

/// Why two files could not be compared at all (exit code 2).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what this tool reads.
    #[error("{path}: {reason}")]
    Input {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
}

/// How one function differs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Name as in the symbol table.
    pub name: String,
    /// Which kind of change.
    pub kind: ChangeKind,
    /// Why, in words.
    pub cause: String,
    /// Link-time address in the old build, 0 for an added function.
    pub old_address: u64,
    /// Size in the old build in bytes (all fragments), 0 for an added function.
    pub old_size: u64,
    /// Link-time address in the new build, 0 for a removed function.
    pub new_address: u64,
    /// Size in the new build in bytes (all fragments), 0 for a removed function.
    pub new_size: u64,
}

/// The kinds of change (`identical` functions are only counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// In both builds, with other behaviour.
    Changed,
    /// Only in the new build.
    Added,
    /// Only in the old build.
    Removed,
}

/// What a diff found.
#[derive(Debug)]
pub struct Report {
    /// Functions compared and found identical.
    pub identical: usize,
    /// Functions that differ, ordered by name.
    pub changes: Vec<Change>,
    /// All findings, errors first.
    pub findings: Vec<Finding>,
    /// The patch; `None` if an error-level finding forbids it or there is nothing to do.
    pub patch: Option<hp_pack::Patch>,
}

impl Report {
    /// True if an error-level finding that the user did not accept forbids the patch.
    pub fn refused(&self) -> bool {
        self.findings.iter().any(|f| f.level == Level::Error && !f.accepted)
    }
}

/// Compares two builds and makes the patch from `old` to `new`.
///
/// # Errors
/// [`Error`] where a file cannot be read or is no input for this tool. Everything that
/// forbids a patch of two readable builds is a [`Finding`] in the report instead.
pub fn diff(old: &std::path::Path, new: &std::path::Path, options: &Options) -> Result<Report, Error> {
    let _ = (old, new, options);
    unimplemented!()
}
