//! Error numbers and their words (`man 3 errno`).

use core::fmt;
use linux_raw_sys::errno;

/// Why a system call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) u16);

impl Errno {
    /// No error number: what was read ended early.
    pub(crate) const ENDED: Errno = Errno(0);
    pub(crate) const EPERM: Errno = Errno(errno::EPERM as u16);
    pub(crate) const ENOENT: Errno = Errno(errno::ENOENT as u16);
    pub(crate) const ESRCH: Errno = Errno(errno::ESRCH as u16);
    #[cfg(any(feature = "applier", test))]
    pub(crate) const EBADF: Errno = Errno(errno::EBADF as u16);
    pub(crate) const EINTR: Errno = Errno(errno::EINTR as u16);
    #[cfg(any(feature = "applier", test))]
    pub(crate) const EPIPE: Errno = Errno(errno::EPIPE as u16);
    pub(crate) const EIO: Errno = Errno(errno::EIO as u16);
    pub(crate) const ECHILD: Errno = Errno(errno::ECHILD as u16);
    pub(crate) const ENOMEM: Errno = Errno(errno::ENOMEM as u16);
    #[cfg(any(feature = "applier", test))]
    pub(crate) const ENOTDIR: Errno = Errno(errno::ENOTDIR as u16);
    pub(crate) const EACCES: Errno = Errno(errno::EACCES as u16);
    pub(crate) const EEXIST: Errno = Errno(errno::EEXIST as u16);
    pub(crate) const EFBIG: Errno = Errno(errno::EFBIG as u16);
    pub(crate) const EINVAL: Errno = Errno(errno::EINVAL as u16);
    #[cfg(any(not(feature = "std"), test))]
    pub(crate) const ETIMEDOUT: Errno = Errno(errno::ETIMEDOUT as u16);
    pub(crate) const ENAMETOOLONG: Errno = Errno(errno::ENAMETOOLONG as u16);

    /// What the system says, without the number: `no such file or directory`.
    #[cfg(any(feature = "applier", test))]
    pub(crate) fn reason(self) -> crate::prelude::String {
        let mut text = match self.words() {
            Some(words) => crate::prelude::ToOwned::to_owned(words),
            None => crate::prelude::format!("os error {}", self.0),
        };
        if let Some(first) = text.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        text
    }

    fn words(self) -> Option<&'static str> {
        let (_, words) = WORDS.iter().find(|(number, _)| *number == u32::from(self.0))?;
        Some(words)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.words()) {
            (Errno::ENDED, _) => f.write_str("unexpected end of file"),
            (_, Some(words)) => write!(f, "{words} (os error {})", self.0),
            (_, None) => write!(f, "os error {}", self.0),
        }
    }
}

/// Those that the calls which are made here can give.
const WORDS: [(u32, &str); 36] = [
    (errno::EPERM, "Operation not permitted"),
    (errno::ENOENT, "No such file or directory"),
    (errno::ESRCH, "No such process"),
    (errno::EINTR, "Interrupted system call"),
    (errno::EIO, "Input/output error"),
    (errno::ENXIO, "No such device or address"),
    (errno::E2BIG, "Argument list too long"),
    (errno::ENOEXEC, "Exec format error"),
    (errno::EBADF, "Bad file descriptor"),
    (errno::ECHILD, "No child processes"),
    (errno::EAGAIN, "Resource temporarily unavailable"),
    (errno::ENOMEM, "Cannot allocate memory"),
    (errno::EACCES, "Permission denied"),
    (errno::EFAULT, "Bad address"),
    (errno::EBUSY, "Device or resource busy"),
    (errno::EEXIST, "File exists"),
    (errno::ENODEV, "No such device"),
    (errno::ENOTDIR, "Not a directory"),
    (errno::EISDIR, "Is a directory"),
    (errno::EINVAL, "Invalid argument"),
    (errno::ENFILE, "Too many open files in system"),
    (errno::EMFILE, "Too many open files"),
    (errno::ENOTTY, "Inappropriate ioctl for device"),
    (errno::ETXTBSY, "Text file busy"),
    (errno::EFBIG, "File too large"),
    (errno::ENOSPC, "No space left on device"),
    (errno::EROFS, "Read-only file system"),
    (errno::EPIPE, "Broken pipe"),
    (errno::ERANGE, "Numerical result out of range"),
    (errno::ENAMETOOLONG, "File name too long"),
    (errno::ENOSYS, "Function not implemented"),
    (errno::ELOOP, "Too many levels of symbolic links"),
    (errno::ENODATA, "No data available"),
    (errno::EOVERFLOW, "Value too large for defined data type"),
    (errno::EOPNOTSUPP, "Operation not supported"),
    (errno::ETIMEDOUT, "Connection timed out"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prelude::*;

    #[test]
    fn the_words_are_those_of_the_c_library() {
        for (number, _) in WORDS {
            let theirs = std::io::Error::from_raw_os_error(number as i32).to_string();
            assert_eq!(Errno(number as u16).to_string(), theirs);
        }
        assert_eq!(Errno(4000).to_string(), "os error 4000");
    }
}
