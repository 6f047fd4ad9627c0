//! What compilers expect of every program: copying, filling and comparing memory (C11, 7.24), and names for unwinding.

use core::arch::asm;

/// The precompiled `core` and `alloc` name these two; nothing unwinds, so nobody calls them.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[allow(non_snake_case)]
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    // SAFETY: ends the program.
    unsafe { asm!("ud2", options(noreturn, nostack)) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the psABI has the direction flag clear.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: what is overwritten has been read before.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller's promise; from the last byte to the first, and the direction flag is clear afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld",
            inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
            options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let (left, right): (u32, u32);
    // SAFETY: the caller's promise. With a length of 0 the flags say "equal"; else the last two bytes compared decide.
    unsafe {
        asm!(
            "xor {left:e}, {left:e}",
            "xor {right:e}, {right:e}",
            "cmp rcx, rcx",
            "repe cmpsb",
            "je 2f",
            "movzx {left:e}, byte ptr [rsi - 1]",
            "movzx {right:e}, byte ptr [rdi - 1]",
            "2:",
            left = out(reg) left, right = out(reg) right,
            inout("rcx") len => _, inout("rsi") a => _, inout("rdi") b => _,
            options(nostack, readonly),
        );
    }
    left as i32 - right as i32
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, len) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let left: usize;
    // SAFETY: the caller's promise: there is a NUL.
    unsafe {
        asm!("repne scasb", inout("rcx") usize::MAX => left, inout("rdi") text => _, in("al") 0u8,
            options(nostack, readonly));
    }
    usize::MAX - left - 1
}
