//! What a restart would run: the build that lies on disk where a process has its base from.

use crate::mapped_file::reachable;
use hp_apply::LedgerEntry;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
/// Longest note segment that is looked through.
const MAX_NOTES: u64 = 64 * 1024;

/// The file at the base's path, as the process itself would open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OnDisk {
    /// The old build: a restart would lose the fix.
    Old,
    /// Another build, with this build ID.
    Other(String),
    /// No such file any more.
    Gone,
    /// It cannot be told, for this reason.
    Unknown(String),
}

impl OnDisk {
    /// Looks at the file of a patch's base.
    pub(crate) fn of(pid: i32, patch: &LedgerEntry) -> OnDisk {
        let path = patch.base_path.strip_suffix(" (deleted)").unwrap_or(&patch.base_path);
        if !path.starts_with('/') {
            return OnDisk::Unknown("the base has no file".to_owned());
        }
        let Some(path) = reachable(pid, path) else {
            return OnDisk::Unknown("it is in other mounts, outside of the process's root".to_owned());
        };
        match build_id(&path) {
            Ok(Some(id)) if id == patch.build_id => OnDisk::Old,
            Ok(Some(id)) => OnDisk::Other(id),
            Ok(None) => OnDisk::Other("none".to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => OnDisk::Gone,
            Err(error) => OnDisk::Unknown(crate::text::io_reason(&error)),
        }
    }

    /// In one word, for JSON.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            OnDisk::Old => "old",
            OnDisk::Other(_) => "other",
            OnDisk::Gone => "gone",
            OnDisk::Unknown(_) => "unknown",
        }
    }
}

/// The GNU build ID of an ELF file, in hexadecimal; none if it has none or is no ELF file.
pub(crate) fn build_id(path: &str) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let read = |at: u64, len: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    };
    let short = |error: io::Error| match error.kind() {
        ErrorKind::UnexpectedEof => Ok(Vec::new()),
        _ => Err(error),
    };
    let header = read(0, 64).or_else(short)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(None);
    }
    let (table, count) = (number(&header, 32, 8), number(&header, 56, 2));
    let programs = read(table, count * 56).or_else(short)?;
    for entry in programs.chunks_exact(56).filter(|entry| number(entry, 0, 4) == u64::from(PT_NOTE)) {
        let notes = read(number(entry, 8, 8), number(entry, 32, 8).min(MAX_NOTES)).or_else(short)?;
        if let Some(id) = id_in(&notes) {
            return Ok(Some(crate::text::hex(id)));
        }
    }
    Ok(None)
}

/// The build ID in a note segment (ELF gABI, "Note Section").
fn id_in(mut notes: &[u8]) -> Option<&[u8]> {
    while notes.len() >= 12 {
        let [name, len, kind] = [0, 4, 8].map(|at| number(notes, at, 4) as usize);
        let data = name.checked_next_multiple_of(4)?.checked_add(12)?;
        let end = data.checked_add(len)?;
        if kind == NT_GNU_BUILD_ID as usize && notes.get(12..16)? == b"GNU\0" {
            return notes.get(data..end).filter(|id| !id.is_empty());
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

/// A little-endian number; zero where the bytes end before.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
