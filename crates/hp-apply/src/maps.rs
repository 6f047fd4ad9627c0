//! `/proc/PID/maps`, parsed as untrusted text.

use crate::addr::{LiveAddr, LiveRange};
use crate::prelude::*;
use crate::small::sort_by_key;
use crate::sys::{Errno, File};
use alloc::rc::Rc;
use core::cell::RefCell;

/// One line of the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) range: LiveRange,
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) execute: bool,
    pub(crate) shared: bool,
    pub(crate) offset: u64,
    /// Device, as [`device`] makes it, and inode; inode 0 is not a file.
    pub(crate) file: (u64, u64),
    pub(crate) path: String,
}

impl Mapping {
    pub(crate) fn is_file(&self) -> bool {
        self.file.1 != 0
    }

    pub(crate) fn is_anonymous(&self) -> bool {
        self.file.1 == 0 && !self.path.starts_with('[') || self.path.starts_with("[anon:")
    }
}

/// All mappings of a process, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Maps {
    list: Vec<Mapping>,
    fingerprint: u64,
}

/// The file, open, with what it was when it was read last: mostly it is the same.
///
/// It is bound to the address space that the process had when it was opened: after an exec it is empty.
pub(crate) struct MapsFile {
    file: File,
    last: RefCell<(Vec<u8>, Rc<Maps>)>,
}

impl MapsFile {
    pub(crate) fn open(pid: i32) -> Result<MapsFile, Errno> {
        Ok(MapsFile { file: File::open(format!("/proc/{pid}/maps"))?, last: RefCell::default() })
    }

    /// What is mapped now.
    pub(crate) fn read(&self) -> Result<Rc<Maps>, Errno> {
        let text = self.file.read_again()?;
        let mut last = self.last.borrow_mut();
        if last.0 != text {
            let maps = Rc::new(Maps::of_text(&text));
            *last = (text, maps);
        }
        Ok(last.1.clone())
    }
}

impl Maps {
    /// Of a process that is looked at once.
    pub(crate) fn of(pid: i32) -> Result<Rc<Maps>, Errno> {
        MapsFile::open(pid)?.read()
    }

    fn of_text(text: &[u8]) -> Maps {
        // Threads make this long, and names that are no UTF-8 are rare.
        match core::str::from_utf8(text) {
            Ok(text) => Maps::parse(text),
            Err(_) => Maps::parse(&String::from_utf8_lossy(text)),
        }
    }

    /// Lines that do not parse are left out: what they map is then "not mapped" to every check.
    pub(crate) fn parse(text: &str) -> Maps {
        let mut list: Vec<Mapping> = text.lines().filter_map(line).collect();
        sort_by_key(&mut list, |mapping| mapping.range);
        let fingerprint = fingerprint(&list);
        Maps { list, fingerprint }
    }

    pub(crate) fn iter(&self) -> core::slice::Iter<'_, Mapping> {
        self.list.iter()
    }

    /// Changes, but for a chance of 1 in 2^64, when files or code are mapped or go.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    fn index_of(&self, at: LiveAddr) -> Option<usize> {
        let index = self.list.partition_point(|mapping| mapping.range.end <= at);
        self.list.get(index).filter(|mapping| mapping.range.contains(at)).map(|_| index)
    }

    pub(crate) fn at(&self, at: LiveAddr) -> Option<&Mapping> {
        self.index_of(at).and_then(|index| self.list.get(index))
    }

    /// The mapping at `at` and the one that ends exactly where it begins, if any.
    pub(crate) fn with_lower_neighbour(&self, at: LiveAddr) -> Option<(&Mapping, Option<&Mapping>)> {
        let index = self.index_of(at)?;
        let mapping = self.list.get(index)?;
        let below = index.checked_sub(1).and_then(|below| self.list.get(below));
        Some((mapping, below.filter(|below| below.range.end == mapping.range.start)))
    }
}

/// FNV-1a of the mappings of files and of code.
fn fingerprint(list: &[Mapping]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut add = |number: u64| {
        for byte in number.to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for mapping in list.iter().filter(|mapping| mapping.is_file() || mapping.execute) {
        let numbers = [mapping.range.start.0, mapping.range.end.0, mapping.offset, mapping.file.0, mapping.file.1];
        numbers.into_iter().for_each(&mut add);
    }
    hash
}

/// A device as one number.
pub(crate) fn device(major: u64, minor: u64) -> u64 {
    major << 32 | minor
}

fn line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        let trimmed = rest.trim_start_matches(' ');
        let (field, tail) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = tail;
        field
    };
    let (start, end) = field().split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let access = field().as_bytes();
    let offset = u64::from_str_radix(field(), 16).ok()?;
    let (major, minor) = field().split_once(':')?;
    let device = device(u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?);
    let inode = field().parse().ok()?;
    let path = rest.trim_start_matches(' ').to_owned();
    (start < end && access.len() == 4).then(|| Mapping {
        range: LiveRange { start: LiveAddr(start), end: LiveAddr(end) },
        read: access[0] == b'r',
        write: access[1] == b'w',
        execute: access[2] == b'x',
        shared: access[3] == b's',
        offset,
        file: (device, inode),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_in_the_same_place_changes_the_fingerprint() {
        let one = |inode: u32, heap: u32| {
            let text = format!(
                "1000-2000 r--p 00000000 08:01 {inode} /lib/a.so\n3000-{heap}000 rw-p 00000000 00:00 0 [heap]\n"
            );
            Maps::parse(&text).fingerprint()
        };
        assert_eq!(one(5, 4), one(5, 6));
        assert_ne!(one(5, 4), one(6, 4));
    }

    #[test]
    fn parses_paths_with_spaces_and_skips_nonsense() {
        let maps = Maps::parse(
            "00400000-00401000 r-xp 00001000 08:01 12    /a b (deleted)\nnonsense\n\
             00200000-00100000 r--p 0 0:0 0\n7000-8000 rw-p 00000000 00:00 0 \n",
        );
        assert_eq!(maps.list.len(), 2);
        assert!(maps.list[0].is_anonymous());
        let text = maps.at(LiveAddr(0x400fff)).unwrap();
        assert_eq!((text.path.as_str(), text.execute, text.offset), ("/a b (deleted)", true, 0x1000));
        assert!(maps.at(LiveAddr(0x401000)).is_none());
    }
}
