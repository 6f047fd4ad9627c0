//! The small applier, packed: unpacks the program `hp-apply` into memory and goes on in it.
//!
//! The image is an arithmetic code by the probabilities of `model.rs`, and the operands of calls in its code are
//! absolute (see `hp-cli/build/pack.rs`). It is written to memory that is not executable; the code is made so, and
//! read-only, before anything of it runs. The stack is left as the kernel made it, and so is `/proc/self/exe`, where
//! the program finds the patch of a bundle.
#![no_std]
#![no_main]

mod memory;
mod model;

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;
use model::{MEMORY, Model};

static PACKED: &[u8] = include_bytes!(env!("HP_APPLIER_PACKED"));

/// Length of the numbers before the compressed image.
const HEADER: usize = 24;
const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const MUNMAP: u64 = 11;
const EXIT_GROUP: u64 = 231;
/// `write`
const WRITE_CALL: u64 = 1;
const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;
/// `MAP_PRIVATE | MAP_ANONYMOUS`
const MAP: u64 = 0x22;
const MAP_FIXED: u64 = 0x10;
const PAGE: u64 = 4096;

// psABI 3.4.1: the stack pointer leads to the number of arguments, which the program wants as it is.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {unpack}",
    "mov rsp, rbx",
    "jmp rax",
    unpack = sym unpack,
);

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    fail()
}

/// A host that has no memory left, or lets no memory be executed that was written.
const FAILED: &[u8] =
    b"hp-apply: cannot unpack itself: it needs 15 MiB of memory, a part of which it writes and then executes; use hp\n";

fn fail() -> ! {
    // SAFETY: the text is readable and has that length.
    unsafe { system_call(WRITE_CALL, [2, FAILED.as_ptr() as u64, FAILED.len() as u64, 0, 0, 0]) };
    loop {
        // SAFETY: does not come back.
        unsafe { system_call(EXIT_GROUP, [2, 0, 0, 0, 0, 0]) };
    }
}

/// # Safety
/// The kernel believes the arguments.
unsafe fn system_call(number: u64, [rdi, rsi, rdx, r10, r8, r9]: [u64; 6]) -> u64 {
    let result;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number => result,
            in("rdi") rdi, in("rsi") rsi, in("rdx") rdx, in("r10") r10, in("r8") r8, in("r9") r9,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

fn number(index: usize) -> u64 {
    let bytes = PACKED.get(index * 4..index * 4 + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes).into()
}

/// Unpacks the program; its entry point.
extern "C" fn unpack() -> u64 {
    let [base, len, memory, code, code_end, entry] = [0, 1, 2, 3, 4, 5].map(number);
    // SAFETY: this program lies elsewhere, and nothing else is mapped at low addresses when a program starts.
    let at = unsafe { system_call(MMAP, [base, memory, READ | WRITE, MAP | MAP_FIXED, u64::MAX, 0]) };
    if at != base {
        fail();
    }
    // SAFETY: just mapped with at least this length, and nobody else knows of it.
    let image = unsafe { core::slice::from_raw_parts_mut(base as *mut u8, len as usize) };
    let len = (MEMORY * size_of::<u32>()) as u64;
    // SAFETY: new memory, at a place of the kernel's choice.
    let at = unsafe { system_call(MMAP, [0, len, READ | WRITE, MAP, u64::MAX, 0]) };
    // What the kernel gives for a failure is one of the last addresses.
    if at >= PAGE.wrapping_neg() {
        fail();
    }
    // SAFETY: just mapped with this length, zero, and nobody else knows of it.
    let memory = unsafe { core::slice::from_raw_parts_mut(at as *mut u32, MEMORY) };
    decode(PACKED.get(HEADER..).unwrap_or_default(), image, Model::over(memory, code as usize..code_end as usize));
    // SAFETY: the same memory, which nobody looks at any more.
    unsafe { system_call(MUNMAP, [at, len, 0, 0, 0, 0]) };
    make_relative(image.get_mut(code as usize..code_end as usize).unwrap_or_default());
    // Constants lie before the code, from the first page on, and variables after it; none shares a page.
    let (code_page, code_len) = (code & !(PAGE - 1), code_end - (code & !(PAGE - 1)));
    // SAFETY: the pages of this image that hold code, and those before them.
    let refused = unsafe {
        system_call(MPROTECT, [base + code_page, code_len, READ | EXECUTE, 0, 0, 0])
            | system_call(MPROTECT, [base, code_page, READ, 0, 0, 0])
    };
    if refused != 0 {
        fail();
    }
    base + entry
}

/// Undoes what packing did to calls and jumps.
fn make_relative(code: &mut [u8]) {
    let size = code.len() as i64;
    let mut at = 0;
    while let Some([operation, operand @ ..]) = code.get_mut(at..at + 5) {
        if !matches!(*operation, 0xe8 | 0xe9) {
            at += 1;
            continue;
        }
        let here = at as i64;
        let changed = i64::from(i32::from_le_bytes([operand[0], operand[1], operand[2], operand[3]]));
        let distance = match changed {
            place if (0..size).contains(&place) => place - here,
            far if (-here..0).contains(&far) => far + size,
            other => other,
        };
        operand.copy_from_slice(&(distance as i32).to_le_bytes());
        at += 5;
    }
}

/// The bytes of an arithmetic code: where in what is left of the numbers of 32 bits it points.
struct Bits<'a> {
    input: core::slice::Iter<'a, u8>,
    low: u32,
    high: u32,
    code: u32,
}

impl Bits<'_> {
    fn byte(&mut self) -> u32 {
        self.input.next().map_or(0, |byte| u32::from(*byte))
    }

    /// `likely` is how likely a one is, in 4096ths.
    fn bit(&mut self, likely: u32) -> u32 {
        let middle = self.low + ((self.high - self.low) >> 12) * likely;
        let bit = u32::from(self.code <= middle);
        if bit == 1 {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            (self.low, self.high) = (self.low << 8, self.high << 8 | 255);
            self.code = self.code << 8 | self.byte();
        }
        bit
    }
}

/// Fills `image`.
fn decode(input: &[u8], image: &mut [u8], mut model: Model<'_>) {
    let mut bits = Bits { input: input.iter(), low: 0, high: u32::MAX, code: 0 };
    for _ in 0..4 {
        bits.code = bits.code << 8 | bits.byte();
    }
    for at in 0..image.len() {
        image[at] = loop {
            let likely = model.predict(&image[..at]);
            if let Some(byte) = model.update(bits.bit(likely)) {
                break byte;
            }
        };
        model.next_byte(&image[..=at]);
    }
}
