//! Files: the few that the engine reads, of `/proc` most of them.

use super::{Errno, raw};
use crate::prelude::*;
use linux_raw_sys::general as nr;

/// A chunk of a file of unknown size; `/proc` gives a page at once.
const CHUNK: usize = 4096;
/// Longest path of a link.
const MAX_LINK: usize = 4096;

/// Types of files (`man 7 inode`).
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;

/// An open file.
#[derive(Debug)]
pub(crate) struct File(i32);

/// What is known of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) mode: u32,
}

impl About {
    pub(crate) fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }
}

/// A path as the kernel takes it.
fn terminated(path: &[u8]) -> Result<Vec<u8>, Errno> {
    if path.contains(&0) {
        return Err(Errno::EINVAL);
    }
    let mut path = path.to_vec();
    path.push(0);
    Ok(path)
}

fn here() -> u64 {
    nr::AT_FDCWD as i64 as u64
}

fn open(path: &[u8], flags: u32) -> Result<File, Errno> {
    let path = terminated(path)?;
    let flags = u64::from(flags | nr::O_CLOEXEC);
    // SAFETY: the path ends with NUL.
    let fd = unsafe { raw::call(nr::__NR_openat, [here(), path.as_ptr() as u64, flags, 0, 0, 0]) }?;
    Ok(File(fd as i32))
}

impl File {
    /// For reading.
    pub(crate) fn open(path: impl AsRef<[u8]>) -> Result<File, Errno> {
        open(path.as_ref(), nr::O_RDONLY)
    }

    /// For reading and writing.
    pub(crate) fn open_to_write(path: &str) -> Result<File, Errno> {
        open(path.as_bytes(), nr::O_RDWR)
    }

    fn fd(&self) -> u64 {
        self.0 as u64
    }

    /// Reads once, from a place.
    pub(crate) fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
        let arguments = [self.fd(), buffer.as_mut_ptr() as u64, buffer.len() as u64, at, 0, 0];
        loop {
            // SAFETY: the buffer is writable and has that length.
            match unsafe { raw::call(nr::__NR_pread64, arguments) } {
                Err(Errno::EINTR) => {}
                result => return result.map(|got| (got as usize).min(buffer.len())),
            }
        }
    }

    /// Reads all of a buffer, from a place.
    pub(crate) fn read_exact_at(&self, mut buffer: &mut [u8], mut at: u64) -> Result<(), Errno> {
        while !buffer.is_empty() {
            match self.read_at(buffer, at)? {
                0 => return Err(Errno::ENDED),
                got => {
                    buffer = buffer.get_mut(got..).unwrap_or_default();
                    at = at.wrapping_add(got as u64);
                }
            }
        }
        Ok(())
    }

    /// Writes all of a buffer, to a place.
    pub(crate) fn write_all_at(&self, mut buffer: &[u8], mut at: u64) -> Result<(), Errno> {
        while !buffer.is_empty() {
            let arguments = [self.fd(), buffer.as_ptr() as u64, buffer.len() as u64, at, 0, 0];
            // SAFETY: the buffer is readable and has that length.
            match unsafe { raw::call(nr::__NR_pwrite64, arguments) } {
                Err(Errno::EINTR) => {}
                Ok(0) => return Err(Errno::ENDED),
                Ok(put) => {
                    buffer = buffer.get(put as usize..).unwrap_or_default();
                    at = at.wrapping_add(put);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads on from where the last read ended.
    fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let arguments = [self.fd(), buffer.as_mut_ptr() as u64, buffer.len() as u64, 0, 0, 0];
        loop {
            // SAFETY: the buffer is writable and has that length.
            match unsafe { raw::call(nr::__NR_read, arguments) } {
                Err(Errno::EINTR) => {}
                result => return result.map(|got| (got as usize).min(buffer.len())),
            }
        }
    }

    /// The rest of the file, with as few reads as can be; `None` if it is longer than allowed.
    fn read_all(&self, chunk: usize, most: usize) -> Result<Option<Vec<u8>>, Errno> {
        let mut bytes = Vec::new();
        loop {
            let len = bytes.len();
            bytes.resize(len + chunk, 0);
            let got = self.read(bytes.get_mut(len..).unwrap_or_default())?;
            bytes.truncate(len + got);
            if got == 0 || bytes.len() > most {
                return Ok((got == 0).then_some(bytes));
            }
        }
    }

    /// The whole of a file of `/proc` that stays open, as it is now.
    pub(crate) fn read_again(&self) -> Result<Vec<u8>, Errno> {
        // SAFETY: takes plain numbers only.
        unsafe { raw::call(nr::__NR_lseek, [self.fd(), 0, 0, 0, 0, 0]) }?;
        self.read_all(CHUNK, usize::MAX).map(Option::unwrap_or_default)
    }

    /// The path of an open file, links resolved.
    #[cfg(any(feature = "applier", test))]
    pub(crate) fn path(&self) -> Result<Vec<u8>, Errno> {
        read_link(&format!("/proc/self/fd/{}", self.0))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: closes what only this value owns.
        let _ = unsafe { raw::call(nr::__NR_close, [self.fd(), 0, 0, 0, 0, 0]) };
    }
}

/// The whole of a file of `/proc`.
pub(crate) fn read_file(path: &str) -> Result<Vec<u8>, Errno> {
    File::open(path)?.read_all(CHUNK, usize::MAX).map(Option::unwrap_or_default)
}

/// The whole of a file of `/proc` that the kernel writes in one piece (`stat`, `status`, `auxv`, not `maps`): a read that
/// did not fill its buffer was the last one.
pub(crate) fn read_piece(path: &str) -> Result<Vec<u8>, Errno> {
    let file = File::open(path)?;
    let mut bytes = vec![0u8; CHUNK];
    let got = file.read(&mut bytes)?;
    bytes.truncate(got);
    if got == CHUNK {
        bytes.extend(file.read_all(CHUNK, usize::MAX)?.unwrap_or_default());
    }
    Ok(bytes)
}

/// The whole of a file; `None` if it is longer than allowed.
#[cfg(any(feature = "applier", test))]
pub(crate) fn read_file_up_to(path: &[u8], most: usize) -> Result<Option<Vec<u8>>, Errno> {
    // A pipe that nobody has opened for writing is not waited for, but one that somebody has is read to its end.
    let file = open(path, nr::O_RDONLY | nr::O_NONBLOCK)?;
    // SAFETY: takes plain numbers only.
    unsafe { raw::call(nr::__NR_fcntl, [file.fd(), u64::from(nr::F_SETFL), 0, 0, 0, 0]) }?;
    file.read_all(64 * CHUNK, most)
}

/// The names in a directory but `.` and `..`, in no order.
pub(crate) fn names_in(path: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, Errno> {
    let directory = open(path.as_ref(), nr::O_RDONLY | nr::O_DIRECTORY)?;
    let mut names = Vec::new();
    let mut buffer = vec![0u8; 8 * CHUNK];
    loop {
        let arguments = [directory.fd(), buffer.as_mut_ptr() as u64, buffer.len() as u64, 0, 0, 0];
        // SAFETY: the buffer is writable and has that length.
        let got = unsafe { raw::call(nr::__NR_getdents64, arguments) }? as usize;
        let mut entries = buffer.get(..got).unwrap_or_default();
        if entries.is_empty() {
            return Ok(names);
        }
        while let Some((name, rest)) = entry(entries) {
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
            entries = rest;
        }
    }
}

/// The name of the first entry of a directory, and the others (`man 2 getdents64`).
fn entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from(crate::bytes::u16_at(entries, 16)?);
    let (entry, rest) = entries.split_at_checked(len)?;
    Some((crate::bytes::c_string(entry, 19)?, rest))
}

/// The numbers among the names in a directory, ascending.
pub(crate) fn numbers_in(path: &str) -> Result<Vec<i32>, Errno> {
    let number = |name: Vec<u8>| core::str::from_utf8(&name).ok()?.parse().ok();
    let mut numbers: Vec<i32> = names_in(path)?.into_iter().filter_map(number).collect();
    crate::small::sort_by_key(&mut numbers, |number| *number);
    Ok(numbers)
}

/// Where a symbolic link leads.
pub(crate) fn read_link(path: &str) -> Result<Vec<u8>, Errno> {
    let path = terminated(path.as_bytes())?;
    let mut buffer = vec![0u8; MAX_LINK];
    let arguments = [here(), path.as_ptr() as u64, buffer.as_mut_ptr() as u64, buffer.len() as u64, 0, 0];
    // SAFETY: the path ends with NUL, and the buffer is writable and has that length.
    let got = unsafe { raw::call(nr::__NR_readlinkat, arguments) }? as usize;
    if got >= buffer.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    buffer.truncate(got);
    Ok(buffer)
}

/// What is known of the file at a path, links followed.
pub(crate) fn about(path: impl AsRef<[u8]>) -> Result<About, Errno> {
    let path = terminated(path.as_ref())?;
    // struct stat of x86-64 (`asm/stat.h`): st_dev, st_ino, st_nlink; st_mode, st_uid; ...
    let mut stat = [0u64; 18];
    let arguments = [here(), path.as_ptr() as u64, stat.as_mut_ptr() as u64, 0, 0, 0];
    // SAFETY: the path ends with NUL, and `stat` is as large as the structure.
    unsafe { raw::call(nr::__NR_newfstatat, arguments) }?;
    let [device, inode, _, mode_and_uid, ..] = stat;
    Ok(About { device, inode, mode: mode_and_uid as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_are_what_the_standard_library_says() {
        let theirs = std::fs::metadata("/proc/self/exe").unwrap();
        let ours = about("/proc/self/exe").unwrap();
        assert_eq!((ours.device, ours.inode), (theirs.dev(), theirs.ino()));
        assert_eq!((ours.mode, ours.is_file()), (theirs.mode(), true));
        assert!(!about("/proc").unwrap().is_file());
        let path = std::fs::read_link("/proc/self/exe").unwrap();
        assert_eq!(read_link("/proc/self/exe").unwrap(), path.as_os_str().as_encoded_bytes());
        assert_eq!(read_file("/proc/self/exe").unwrap(), std::fs::read(path).unwrap());
    }

    #[test]
    fn names_and_numbers() {
        let own = std::process::id() as i32;
        assert!(numbers_in("/proc").unwrap().contains(&own));
        assert!(names_in("/proc/self").unwrap().contains(&b"maps".to_vec()));
        assert_eq!(names_in("/nowhere"), Err(Errno::ENOENT));
        assert_eq!(read_file("/proc\0").err(), Some(Errno::EINVAL));
    }
}
