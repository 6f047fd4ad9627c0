//! The `syscall` instruction (psABI for AMD64, appendix A.2), and the only door to it.

use super::Errno;
#[cfg(feature = "std")]
use super::seam;

/// Makes one system call.
///
/// # Safety
/// The kernel believes the arguments: pointers among them must be valid for what the call does with them.
pub(super) unsafe fn call(number: u32, arguments: [u64; 6]) -> Result<u64, Errno> {
    #[cfg(feature = "std")]
    seam::before(number, arguments[0])?;
    // SAFETY: the caller's promise.
    let result = unsafe { instruction(number, arguments) };
    #[cfg(feature = "std")]
    seam::after(number, arguments[0]);
    match result as i64 {
        error @ -4095..=-1 => Err(Errno(-error as u16)),
        _ => Ok(result),
    }
}

/// # Safety
/// See [`call`].
pub(super) unsafe fn instruction(number: u32, [rdi, rsi, rdx, r10, r8, r9]: [u64; 6]) -> u64 {
    let result;
    // SAFETY: the kernel changes rax, rcx and r11 only, and the memory that the caller vouches for.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") u64::from(number) => result,
            in("rdi") rdi, in("rsi") rsi, in("rdx") rdx, in("r10") r10, in("r8") r8, in("r9") r9,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}
