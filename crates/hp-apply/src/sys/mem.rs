//! The memory of a target, through `/proc/PID/mem`.

use super::{Errno, File, poke};
use crate::addr::{LiveAddr, page_floor};
use crate::prelude::*;
use crate::small::Map;
use core::cell::RefCell;

const PAGE: usize = 4096;
/// Longest range whose pages are kept when it is read as a whole.
const MAX_KEPT: usize = 4 << 20;

/// Bound to the address space that the process had when it was opened: after an exec every
/// access fails instead of reaching the new program.
pub(crate) struct Mem {
    file: File,
    kept: RefCell<Kept>,
}

/// Pages that were read of what does not change as long as the same is mapped.
#[derive(Default)]
struct Kept {
    mapped: u64,
    pages: Map<u64, Box<[u8; PAGE]>>,
}

impl Mem {
    pub(crate) fn open(pid: i32) -> Result<Mem, Errno> {
        Ok(Mem { file: File::open_to_write(&format!("/proc/{pid}/mem"))?, kept: RefCell::default() })
    }

    /// For looking only.
    pub(crate) fn open_read(pid: i32) -> Result<Mem, Errno> {
        Ok(Mem { file: File::open(format!("/proc/{pid}/mem"))?, kept: RefCell::default() })
    }

    /// Reads as much as is there; 0 where nothing is mapped any more.
    pub(crate) fn read_some(&self, at: LiveAddr, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.file.read_at(buffer, at.0)
    }

    pub(crate) fn read(&self, at: LiveAddr, buffer: &mut [u8]) -> Result<(), Errno> {
        self.file.read_exact_at(buffer, at.0)
    }

    pub(crate) fn bytes(&self, at: LiveAddr, len: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; len];
        self.read(at, &mut buffer)?;
        Ok(buffer)
    }

    pub(crate) fn array<const N: usize>(&self, at: LiveAddr) -> Result<[u8; N], Errno> {
        let mut buffer = [0; N];
        self.read(at, &mut buffer)?;
        Ok(buffer)
    }

    pub(crate) fn u64(&self, at: LiveAddr) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.array(at)?))
    }

    pub(crate) fn u32(&self, at: LiveAddr) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.array(at)?))
    }

    /// What is mapped now, as a number: where it is another one than before, what was kept is forgotten. A library may
    /// have been closed, and another one lie in its place.
    pub(crate) fn is_mapped(&self, mapped: u64) {
        let mut kept = self.kept.borrow_mut();
        if kept.mapped != mapped {
            *kept = Kept { mapped, pages: Map::default() };
        }
    }

    /// Reads from memory that does not change (tables of a module, unwind rows), by whole pages that are kept.
    pub(crate) fn kept(&self, at: LiveAddr, out: &mut [u8]) -> Option<()> {
        let pages = &mut self.kept.borrow_mut().pages;
        let mut done = 0;
        while done < out.len() {
            let here = at.0.checked_add(done as u64)?;
            let page = page_floor(here);
            if pages.get(&page).is_none() {
                pages.insert(page, Box::new(self.array(LiveAddr(page)).ok()?));
            }
            let from = (here - page) as usize;
            let count = (PAGE - from).min(out.len() - done);
            let bytes = pages.get(&page)?;
            out.get_mut(done..done + count)?.copy_from_slice(bytes.get(from..from + count)?);
            done += count;
        }
        Some(())
    }

    pub(crate) fn kept_array<const N: usize>(&self, at: LiveAddr) -> Option<[u8; N]> {
        let mut buffer = [0; N];
        self.kept(at, &mut buffer)?;
        Some(buffer)
    }

    pub(crate) fn kept_bytes(&self, at: LiveAddr, len: usize) -> Option<Vec<u8>> {
        if len > MAX_KEPT {
            return self.bytes(at, len).ok();
        }
        let mut buffer = vec![0; len];
        self.kept(at, &mut buffer)?;
        Some(buffer)
    }

    pub(crate) fn kept_u64(&self, at: LiveAddr) -> Option<u64> {
        Some(u64::from_le_bytes(self.kept_array(at)?))
    }

    pub(crate) fn kept_u32(&self, at: LiveAddr) -> Option<u32> {
        Some(u32::from_le_bytes(self.kept_array(at)?))
    }

    /// Writes, also to pages that the program itself may only read. `tid` is a stopped
    /// thread of the target through which to write where the kernel forbids forced writes here.
    pub(crate) fn write(&self, tid: i32, at: LiveAddr, bytes: &[u8]) -> Result<(), Errno> {
        match self.file.write_all_at(bytes, at.0) {
            // The last one: addresses count as places in a file, and files of ours may have a limit.
            Err(Errno::EIO | Errno::EPERM | Errno::EACCES | Errno::EFBIG) => self.poke_all(tid, at, bytes),
            result => result,
        }
    }

    fn poke_all(&self, tid: i32, at: LiveAddr, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0usize;
        while done < bytes.len() {
            let here = at.plus(done as u64);
            let word_at = LiveAddr(here.0 & !7);
            let skip = (here.0 & 7) as usize;
            let count = (8 - skip).min(bytes.len() - done);
            let mut word: [u8; 8] = self.array(word_at)?;
            word[skip..skip + count].copy_from_slice(&bytes[done..done + count]);
            poke(tid, word_at, u64::from_le_bytes(word))?;
            done += count;
        }
        Ok(())
    }
}
