//! The small applier, packed: unpacks the program `hp-apply` into memory and goes on in it.
//!
//! The image is compressed with LZMA (lc 4, lp 0, pb 0, no header), and the operands of calls in its code are
//! absolute (see `hp-cli/build/pack.rs`). It is written to memory that is not executable; the code is made so, and
//! read-only, before anything of it runs. The stack is left as the kernel made it, and so is `/proc/self/exe`, where
//! the program finds the patch of a bundle.
#![no_std]
#![no_main]

mod memory;

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

static PACKED: &[u8] = include_bytes!(env!("HP_APPLIER_PACKED"));

/// Length of the numbers before the compressed image.
const HEADER: usize = 24;
const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const EXIT_GROUP: u64 = 231;
const READ: u64 = 1;
const WRITE: u64 = 2;
const EXECUTE: u64 = 4;
/// `MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS`
const MAP: u64 = 0x32;
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

fn fail() -> ! {
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
    let at = unsafe { system_call(MMAP, [base, memory, READ | WRITE, MAP, u64::MAX, 0]) };
    if at != base {
        fail();
    }
    // SAFETY: just mapped with at least this length, and nobody else knows of it.
    let image = unsafe { core::slice::from_raw_parts_mut(base as *mut u8, len as usize) };
    decode(PACKED.get(HEADER..).unwrap_or_default(), image);
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

const HALF: u16 = 1 << 10;
const LITERAL: usize = 0x300 << 4;
const STATES: usize = 12;
const LENGTHS: usize = 2 + 8 + 8 + 256;
const MODEL: usize = LITERAL + 6 * STATES + 4 * 64 + 128 + 16 + 2 * LENGTHS;

/// Probabilities of bits, by what has been seen.
struct Model<'m> {
    literal: &'m mut [u16],
    is_match: &'m mut [u16],
    is_rep: &'m mut [u16],
    is_rep_0: &'m mut [u16],
    is_rep_1: &'m mut [u16],
    is_rep_2: &'m mut [u16],
    is_long: &'m mut [u16],
    slots: &'m mut [u16],
    distances: &'m mut [u16],
    align: &'m mut [u16],
    lengths: &'m mut [u16],
    rep_lengths: &'m mut [u16],
}

impl<'m> Model<'m> {
    fn over(mut rest: &'m mut [u16]) -> Model<'m> {
        let mut part = |len| {
            let (part, others) = core::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            part
        };
        Model {
            literal: part(LITERAL),
            is_match: part(STATES),
            is_rep: part(STATES),
            is_rep_0: part(STATES),
            is_rep_1: part(STATES),
            is_rep_2: part(STATES),
            is_long: part(STATES),
            slots: part(4 * 64),
            distances: part(128),
            align: part(16),
            lengths: part(LENGTHS),
            rep_lengths: part(LENGTHS),
        }
    }
}

/// The range decoder.
struct Bits<'a> {
    input: &'a [u8],
    range: u32,
    code: u32,
}

impl Bits<'_> {
    fn byte(&mut self) -> u8 {
        match self.input {
            [first, rest @ ..] => {
                self.input = rest;
                *first
            }
            [] => 0,
        }
    }

    fn normalize(&mut self) {
        if self.range < 1 << 24 {
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(self.byte());
        }
    }

    fn bit(&mut self, probability: &mut u16) -> u32 {
        self.normalize();
        let bound = (self.range >> 11) * u32::from(*probability);
        if self.code < bound {
            self.range = bound;
            *probability += (2048 - *probability) >> 5;
            0
        } else {
            self.range -= bound;
            self.code -= bound;
            *probability -= *probability >> 5;
            1
        }
    }

    fn direct(&mut self, count: u32) -> u32 {
        (0..count).fold(0, |value, _| {
            self.normalize();
            self.range >>= 1;
            let one = self.code >= self.range;
            if one {
                self.code -= self.range;
            }
            value << 1 | u32::from(one)
        })
    }

    fn tree(&mut self, probabilities: &mut [u16], count: u32) -> u32 {
        let mut symbol = 1;
        for _ in 0..count {
            symbol = symbol << 1 | self.bit(&mut probabilities[symbol as usize]);
        }
        symbol - (1 << count)
    }

    fn reverse_tree(&mut self, probabilities: &mut [u16], base: u32, count: u32) -> u32 {
        let (mut symbol, mut value) = (1, 0);
        for index in 0..count {
            let bit = self.bit(&mut probabilities[(base + symbol) as usize]);
            symbol = symbol << 1 | bit;
            value |= bit << index;
        }
        value
    }

    /// Two choices, then 8 short lengths, 8 middle ones and 256 long ones.
    fn length(&mut self, lengths: &mut [u16]) -> u32 {
        if self.bit(&mut lengths[0]) == 0 {
            self.tree(&mut lengths[2..], 3)
        } else if self.bit(&mut lengths[1]) == 0 {
            8 + self.tree(&mut lengths[10..], 3)
        } else {
            16 + self.tree(&mut lengths[18..], 8)
        }
    }

    fn distance(&mut self, model: &mut Model<'_>, length: u32) -> u32 {
        let slot = self.tree(&mut model.slots[64 * length.min(3) as usize..], 6);
        if slot < 4 {
            return slot;
        }
        let count = (slot >> 1) - 1;
        let base = (2 | slot & 1) << count;
        if slot < 14 {
            base + self.reverse_tree(model.distances, base - slot, count)
        } else {
            base + (self.direct(count - 4) << 4) + self.reverse_tree(model.align, 0, 4)
        }
    }

    /// Brings the distance that is used again to the front; false if it is for one byte only.
    fn repeated(&mut self, model: &mut Model<'_>, state: usize, reps: &mut [u32; 4]) -> bool {
        if self.bit(&mut model.is_rep_0[state]) == 0 {
            return self.bit(&mut model.is_long[state]) == 1;
        }
        let index = match self.bit(&mut model.is_rep_1[state]) {
            0 => 1,
            _ => 2 + self.bit(&mut model.is_rep_2[state]) as usize,
        };
        reps[..=index].rotate_right(1);
        true
    }

    fn literal(&mut self, probabilities: &mut [u16], matched: Option<u8>) -> u8 {
        let mut symbol = 1u32;
        let mut matched = matched.map(u32::from);
        while symbol < 0x100 {
            let offset = match &mut matched {
                Some(byte) => {
                    *byte <<= 1;
                    0x100 + (*byte & 0x100)
                }
                None => 0,
            };
            let bit = self.bit(&mut probabilities[(offset + symbol) as usize]);
            symbol = symbol << 1 | bit;
            if offset != 0 && (offset >> 8) - 1 != bit {
                matched = None;
            }
        }
        symbol as u8
    }
}

/// Fills `out` from an LZMA stream (the format is in the public domain: `lzma-specification.txt` of the LZMA SDK).
fn decode(input: &[u8], out: &mut [u8]) {
    let mut flat = [HALF; MODEL];
    let mut model = Model::over(&mut flat);
    let mut bits = Bits { input, range: u32::MAX, code: 0 };
    for _ in 0..5 {
        bits.code = bits.code << 8 | u32::from(bits.byte());
    }
    let mut reps = [0u32; 4];
    let (mut state, mut at) = (0usize, 0usize);
    while at < out.len() {
        let back = |distance: u32| at.wrapping_sub(distance as usize + 1);
        if bits.bit(&mut model.is_match[state]) == 0 {
            let before = out.get(at.wrapping_sub(1)).copied().unwrap_or(0);
            let probabilities = &mut model.literal[0x300 * usize::from(before >> 4)..];
            let matched = out.get(back(reps[0])).copied().filter(|_| state >= 7);
            out[at] = bits.literal(probabilities, matched);
            at += 1;
            state = match state {
                0..4 => 0,
                4..10 => state - 3,
                _ => state - 6,
            };
            continue;
        }
        let len;
        if bits.bit(&mut model.is_rep[state]) == 0 {
            len = bits.length(model.lengths) + 2;
            reps = [bits.distance(&mut model, len - 2), reps[0], reps[1], reps[2]];
            state = if state < 7 { 7 } else { 10 };
        } else if !bits.repeated(&mut model, state, &mut reps) {
            len = 1;
            state = if state < 7 { 9 } else { 11 };
        } else {
            len = bits.length(model.rep_lengths) + 2;
            state = if state < 7 { 8 } else { 11 };
        }
        for _ in 0..len.min((out.len() - at) as u32) {
            out[at] = out[at.wrapping_sub(reps[0] as usize + 1)];
            at += 1;
        }
    }
}
