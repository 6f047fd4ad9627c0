//! The small applier: one static file without a C library, to be copied to any x86-64 host with Linux 4.4 or later.
//!
//! Here is only what a program needs to exist: its entry point, the functions that compilers expect of every
//! program, the allocator. All else is the library's `command`.
//!
//! Built by `hp-cli`'s build script with the features and flags that it needs; not part of an ordinary build.
#![no_std]
#![no_main]

mod memory;

#[cfg(feature = "std")]
compile_error!("the small applier is built without the standard library: --no-default-features --features applier");

use core::arch::global_asm;
use core::panic::PanicInfo;

#[global_allocator]
static HEAP: hp_apply::applier::Heap = hp_apply::applier::Heap::new();

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // Where it was would cost a tenth of the size.
    hp_apply::applier::give_up()
}

// psABI 3.4.1: the stack pointer leads to the number of arguments; rbp is to be marked as the outermost frame.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

extern "C" fn begin(stack: *const u64) -> ! {
    // SAFETY: the entry point above passes its stack pointer.
    unsafe { hp_apply::applier::begin(stack) }
}
