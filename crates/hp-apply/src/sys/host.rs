//! What the command `hp-apply` needs of the kernel beside the engine.

use super::{Errno, raw};
use linux_raw_sys::general as nr;

/// `ioctl` that only terminals know: reads their settings.
const TCGETS: u64 = 0x5401;

/// Writes all of a text to an open file, as far as anybody reads it.
///
/// # Errors
/// What the kernel says; none if nobody reads.
pub(crate) fn write_all(fd: i32, mut text: &[u8]) -> Result<(), Errno> {
    while !text.is_empty() {
        let arguments = [fd as u64, text.as_ptr() as u64, text.len() as u64, 0, 0, 0];
        // SAFETY: the text is readable and has that length.
        match unsafe { raw::call(nr::__NR_write, arguments) } {
            Ok(put @ 1..) => text = text.get(put as usize..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::EBADF) | Ok(0) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether an open file is a terminal.
pub(crate) fn is_terminal(fd: i32) -> bool {
    let mut settings = [0u32; 64];
    // SAFETY: the buffer is larger than a `struct termios`.
    unsafe { raw::call(nr::__NR_ioctl, [fd as u64, TCGETS, settings.as_mut_ptr() as u64, 0, 0, 0]) }.is_ok()
}

/// Whose rights we have.
pub(crate) fn effective_user_id() -> u32 {
    // SAFETY: geteuid(2) touches no memory.
    unsafe { raw::call(nr::__NR_geteuid, [0; 6]) }.map_or(u32::MAX, |id| id as u32)
}

/// A reader of our output that goes away is no reason to end.
#[cfg(feature = "applier")]
pub(crate) fn outlive_readers() {
    const SIG_IGN: u64 = 1;
    // struct kernel_sigaction: handler, flags, restorer, mask.
    let action = [SIG_IGN, 0, 0, 0];
    // SAFETY: the structure has the kernel's layout, and no handler is called.
    let _ = unsafe { raw::call(nr::__NR_rt_sigaction, [u64::from(nr::SIGPIPE), action.as_ptr() as u64, 0, 8, 0, 0]) };
}

/// Ends the process.
#[cfg(feature = "applier")]
pub(crate) fn exit(code: u8) -> ! {
    loop {
        // SAFETY: does not come back.
        let _ = unsafe { raw::call(nr::__NR_exit_group, [u64::from(code), 0, 0, 0, 0, 0]) };
    }
}
