//! What is wrong with a patch, and where. Errors hold no text of the file, so they are safe to print.

use crate::model::SectionKind;
use core::fmt;

/// Why a file was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadError {
    /// The file is something else.
    NotAPatch(&'static str),
    /// The digest in the file is not the digest of the file.
    Damaged,
    /// The file has a major version that this reader does not know.
    Version {
        /// The file's major version.
        major: u16,
        /// The file's minor version.
        minor: u16,
    },
    /// A field has a value that the format does not allow.
    Malformed {
        /// The section that it is in; `file header` and `section headers` are named so.
        section: &'static str,
        /// Offset in the file, in bytes.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The file is well formed, but what it says makes no sense.
    Invalid(Invalid),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::NotAPatch(what) => write!(f, "not a patch: {what}"),
            ReadError::Damaged => {
                f.write_str("damaged patch: its contents do not match its digest (cut off or altered); get it again")
            }
            ReadError::Version { major, minor } => {
                let known = crate::FORMAT_MAJOR;
                write!(f, "format version {major}.{minor}; this reader knows {known}.x: use a newer hp")
            }
            ReadError::Malformed { section, offset, what } => {
                write!(f, "malformed patch: {section}, at offset {offset:#x}: {what}")
            }
            ReadError::Invalid(invalid) => write!(f, "invalid patch: {invalid}"),
        }
    }
}

impl core::error::Error for ReadError {}

impl From<Invalid> for ReadError {
    fn from(invalid: Invalid) -> ReadError {
        ReadError::Invalid(invalid)
    }
}

/// A rule that a [`Patch`](crate::Patch) breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The element that breaks it.
    pub item: Item,
    /// How.
    pub what: &'static str,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.item, self.what)
    }
}

impl core::error::Error for Invalid {}

/// An element of a patch; numbers are indices into the lists of [`Patch`](crate::Patch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The patch as a whole.
    Patch,
    /// Its base.
    Base,
    /// A payload section.
    Section(SectionKind),
    /// A symbol.
    Symbol(usize),
    /// A relocation.
    Relocation(usize),
    /// A function record.
    Function(usize),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Patch => f.write_str("the patch"),
            Item::Base => f.write_str("the base"),
            Item::Section(kind) => write!(f, "section {}", kind.name()),
            Item::Symbol(i) => write!(f, "symbol {i}"),
            Item::Relocation(i) => write!(f, "relocation {i}"),
            Item::Function(i) => write!(f, "function {i}"),
        }
    }
}
