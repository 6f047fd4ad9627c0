//! The start and the end of the program `hp-apply`, which has no standard library and no C library.
#![allow(unsafe_code)]

pub use crate::sys::heap::Heap;

use crate::command::{self, Start};
use crate::prelude::*;
use crate::sys;
use core::ffi::{CStr, c_char};

/// Runs the command with what the kernel has put on the stack.
///
/// # Safety
/// `stack` must be the stack pointer at the program's entry point (psABI, 3.4.1).
pub unsafe fn begin(stack: *const u64) -> ! {
    sys::outlive_readers();
    // SAFETY: the number of arguments, these, a null pointer, the environment, a null pointer.
    let start = unsafe {
        let count = stack.read() as usize;
        let arguments = strings(stack.add(1));
        Start { arguments, environment: strings(stack.add(count + 2)) }
    };
    sys::exit(command::run(&start))
}

/// # Safety
/// `list` must lead to addresses of strings, the last of them null.
unsafe fn strings<'a>(mut list: *const u64) -> Vec<&'a [u8]> {
    let mut strings = Vec::new();
    // SAFETY: the caller's promise; the strings stay as long as the program.
    unsafe {
        while list.read() != 0 {
            strings.push(CStr::from_ptr(list.read() as *const c_char).to_bytes());
            list = list.add(1);
        }
    }
    strings
}

/// What a panic, or memory running out, comes to.
pub fn give_up() -> ! {
    let _ = sys::write_all(2, b"hp-apply: internal error, or out of memory\n");
    sys::exit(2)
}
