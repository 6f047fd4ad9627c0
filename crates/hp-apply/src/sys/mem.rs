//! The memory of a target, through `/proc/PID/mem`.

use super::{Errno, File, poke, raw};
use crate::addr::{LiveAddr, LiveRange, page_floor};
use crate::prelude::*;
use crate::small::Map;
use core::cell::RefCell;
use linux_raw_sys::general as nr;

const PAGE: usize = 4096;
/// Most pages that are read together to be kept.
const TOGETHER: usize = 16;
/// Longest range whose pages are kept when it is read as a whole.
const MAX_KEPT: usize = 4 << 20;

/// Most ranges that are read in one call (`UIO_MAXIOV`).
pub(crate) const MAX_RANGES: usize = 1024;

/// Bound to the address space that the process had when it was opened: after an exec every
/// access fails instead of reaching the new program.
pub(crate) struct Mem {
    pid: i32,
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
        Ok(Mem { pid, file: File::open_to_write(&format!("/proc/{pid}/mem"))?, kept: RefCell::default() })
    }

    /// For looking only.
    pub(crate) fn open_read(pid: i32) -> Result<Mem, Errno> {
        Ok(Mem { pid, file: File::open(format!("/proc/{pid}/mem"))?, kept: RefCell::default() })
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

    /// Reads several ranges in one call into the front of a buffer, one behind the other: how many of the first ones came
    /// whole. The others, all of them where the kernel does not allow the call, are to be read one by one. At most
    /// [`MAX_RANGES`].
    ///
    /// Only while every thread of the process stands: the call knows the process by its number.
    pub(crate) fn ranges(&self, ranges: &[LiveRange], buffer: &mut Vec<u8>) -> usize {
        let total = ranges.iter().map(|range| range.len() as usize).sum();
        if buffer.len() < total {
            buffer.resize(total, 0);
        }
        // struct iovec: address and length.
        let local = [buffer.as_mut_ptr() as u64, total as u64];
        let remote: Vec<[u64; 2]> = ranges.iter().map(|range| [range.start.0, range.len()]).collect();
        let (here, there) = (local.as_ptr() as u64, remote.as_ptr() as u64);
        let arguments = [self.pid as u64, here, 1, there, remote.len() as u64, 0];
        // SAFETY: `local` names the front of a writable buffer; the other addresses are the target's.
        let mut got = unsafe { raw::call(nr::__NR_process_vm_readv, arguments) }.unwrap_or(0);
        let is_whole = |range: &&LiveRange| {
            let left = got.checked_sub(range.len());
            got = left.unwrap_or(0);
            left.is_some()
        };
        ranges.iter().take_while(is_whole).count()
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
                self.keep(page, out.len() - done, pages)?;
            }
            let from = (here - page) as usize;
            let count = (PAGE - from).min(out.len() - done);
            let bytes = pages.get(&page)?;
            out.get_mut(done..done + count)?.copy_from_slice(bytes.get(from..from + count)?);
            done += count;
        }
        Some(())
    }

    /// Keeps a page, and in the same read those behind it that are missing and reach no further than `wanted` bytes.
    fn keep(&self, page: u64, wanted: usize, pages: &mut Map<u64, Box<[u8; PAGE]>>) -> Option<()> {
        let behind = |index: usize| page.checked_add((index * PAGE) as u64);
        let missing = |index: &usize| behind(*index).is_some_and(|page| pages.get(&page).is_none());
        let count = 1 + (1..(wanted / PAGE).min(TOGETHER)).take_while(missing).count();
        let bytes = self.bytes(LiveAddr(page), count * PAGE).ok()?;
        for (index, bytes) in bytes.as_chunks::<PAGE>().0.iter().enumerate() {
            pages.insert(behind(index)?, Box::new(*bytes));
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

/// Memory that is looked at once, mostly from below to above: neighbours come with one read.
pub(crate) struct View<'a> {
    mem: &'a Mem,
    start: LiveAddr,
    bytes: Vec<u8>,
}

impl View<'_> {
    /// Read together: larger reads cost more than they save.
    const SIZE: usize = 4 * PAGE;

    pub(crate) fn new(mem: &Mem) -> View<'_> {
        View { mem, start: LiveAddr(0), bytes: Vec::new() }
    }

    pub(crate) fn bytes(&mut self, range: LiveRange) -> Result<Vec<u8>, Errno> {
        let len = range.len() as usize;
        if len > Self::SIZE / 2 {
            return self.mem.bytes(range.start, len);
        }
        if self.seen(range).is_none() {
            self.start = LiveAddr(page_floor(range.start.0));
            self.bytes.resize(Self::SIZE, 0);
            // As far as it is mapped.
            let got = self.mem.read_some(self.start, &mut self.bytes);
            self.bytes.truncate(got.unwrap_or(0));
        }
        self.seen(range).map_or_else(|| self.mem.bytes(range.start, len), |bytes| Ok(bytes.to_vec()))
    }

    fn seen(&self, range: LiveRange) -> Option<&[u8]> {
        let from = usize::try_from(range.start.0.checked_sub(self.start.0)?).ok()?;
        self.bytes.get(from..from.checked_add(range.len() as usize)?)
    }
}

/// Memory that something was concluded from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    ranges: Vec<LiveRange>,
    bytes: Vec<Vec<u8>>,
}

impl Seen {
    pub(crate) fn add(&mut self, at: LiveAddr, bytes: &[u8]) {
        self.ranges.push(at.range(bytes.len() as u64));
        self.bytes.push(bytes.to_vec());
    }

    /// Whether it is all the same now. Every thread of the process stands.
    pub(crate) fn holds(&self, mem: &Mem) -> bool {
        self.ranges.chunks(MAX_RANGES).zip(self.bytes.chunks(MAX_RANGES)).all(|(ranges, before)| {
            let mut now = Vec::new();
            let count = mem.ranges(ranges, &mut now);
            let mut now = now.as_slice();
            let (read, others) = before.split_at(count);
            let is_same = |before: &Vec<u8>| {
                let (bytes, rest) = now.split_at_checked(before.len()).unwrap_or_default();
                now = rest;
                bytes == before
            };
            let is_same_alone = |(range, before): (&LiveRange, &Vec<u8>)| {
                mem.bytes(range.start, range.len() as usize).as_ref() == Ok(before)
            };
            read.iter().all(is_same) && ranges.iter().skip(count).zip(others).all(is_same_alone)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(bytes: &[u8]) -> LiveRange {
        LiveAddr(bytes.as_ptr() as u64).range(bytes.len() as u64)
    }

    #[test]
    fn ranges_come_in_their_order_up_to_the_first_that_cannot_be_read() {
        let mem = Mem::open_read(std::process::id() as i32).unwrap();
        let (one, two) = (vec![1u8; 5000], vec![2u8; 3]);
        let nowhere = LiveAddr(16).range(8);
        let mut buffer = vec![9u8; 5007];
        assert_eq!(mem.ranges(&[at(&two), at(&one), at(&two)], &mut buffer), 3);
        assert_eq!(buffer, [&two[..], &one, &two, &[9]].concat());
        let mut buffer = Vec::new();
        assert_eq!(mem.ranges(&[at(&one), nowhere, at(&two)], &mut buffer), 1);
        assert_eq!(buffer.get(..5000), Some(one.as_slice()));
        assert_eq!((mem.ranges(&[nowhere], &mut buffer), mem.ranges(&[], &mut buffer)), (0, 0));
    }

    #[test]
    fn a_view_shows_what_is_there() {
        let mem = Mem::open_read(std::process::id() as i32).unwrap();
        let bytes: Vec<u8> = (0..9 * PAGE).map(|index| (index / 5) as u8).collect();
        let mut view = View::new(&mem);
        for (from, len) in
            [(5, 100), (90, 4000), (0, 1), (3 * PAGE, 3 * PAGE), (8 * PAGE - 1, 2), (70, 0), (8 * PAGE, PAGE)]
        {
            let part = &bytes[from..from + len];
            assert_eq!(view.bytes(at(part)).unwrap(), part, "{from} {len}");
        }
        assert!(view.bytes(LiveAddr(16).range(8)).is_err());
        assert!(view.bytes(LiveAddr(u64::MAX - 3).range(2)).is_err());
    }

    #[test]
    fn pages_are_kept_as_they_were() {
        let mem = Mem::open_read(std::process::id() as i32).unwrap();
        let mut bytes: Vec<u8> = (0..40 * PAGE).map(|index| (index / 7) as u8).collect();
        let start = at(&bytes).start;
        let before = bytes.clone();
        assert_eq!(
            mem.kept_array::<3>(start.plus(20 * PAGE as u64 + 5)).as_ref(),
            bytes[20 * PAGE + 5..].first_chunk()
        );
        assert_eq!(mem.kept_bytes(start.plus(1), bytes.len() - 2), Some(before[1..before.len() - 1].to_vec()));
        bytes.fill(0);
        assert_eq!(mem.kept_bytes(start.plus(1), bytes.len() - 2), Some(before[1..before.len() - 1].to_vec()));
        assert_eq!(mem.kept_bytes(LiveAddr(16), 2 * PAGE), None);
    }

    #[test]
    fn what_was_seen_holds_until_a_byte_of_it_changes() {
        let mem = Mem::open_read(std::process::id() as i32).unwrap();
        let mut bytes = vec![7u8; 4 * MAX_RANGES];
        let mut seen = Seen::default();
        for part in bytes.chunks(3) {
            seen.add(at(part).start, part);
        }
        assert!(seen.holds(&mem));
        for place in [0, 3 * MAX_RANGES - 1, 3 * MAX_RANGES, 4 * MAX_RANGES - 1] {
            bytes[place] = 8;
            assert!(!seen.holds(&mem), "byte {place}");
            bytes[place] = 7;
        }
        seen.add(LiveAddr(16), &[0]);
        assert!(!seen.holds(&mem));
    }
}
