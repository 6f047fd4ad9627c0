//! What packing and unpacking share: how likely the next bit of the image is a one, by all that came before it.
//!
//! Each context (the last bytes, the part of an instruction that comes next, what stood there before) keeps a
//! probability for each bit that may follow; they are mixed by weights that learn which of them are right here, and
//! where the same bytes have been seen before, with what followed them there. Whole numbers only: both sides must get
//! the same. The decoding of instructions only says where in one a byte lies; a mistake costs room, nothing else.

use core::ops::Range;

const CONTEXTS: usize = 7;
/// What is mixed: a number for each context, one for the match, and a constant.
const INPUTS: usize = CONTEXTS + 2;
/// A context has so many lines, each with the 15 probabilities of half a byte.
const LINES: u32 = 15;
const LINE: usize = 16;
const SLOTS: usize = CONTEXTS << LINES << 4;
/// Weights by the bits of this byte and the match, and by the place in the instruction.
const BY_BITS: usize = 3 * 256;
const BY_PLACE: usize = 65 * 8;
const WEIGHTS: usize = (BY_BITS + BY_PLACE) * INPUTS;
const STRETCH: usize = 4096;
const HEADS: usize = 1 << 16;
const MATCHES: usize = 64;
/// Words of memory that a model needs, all zero.
pub(crate) const MEMORY: usize = SLOTS + WEIGHTS + STRETCH + HEADS + MATCHES;

/// 4096 / (1 + e^-x), for x from -8 to 8 by halves.
const SQUASH: [u16; 33] = [
    1, 2, 4, 6, 10, 17, 27, 45, 74, 120, 194, 311, 488, 747, 1102, 1546, 2048, 2550, 2994, 3349, 3608, 3785, 3902,
    3976, 4022, 4051, 4069, 4079, 4086, 4090, 4092, 4094, 4095,
];

/// A probability in 4096ths; `x` in 256ths.
fn squash(x: i32) -> i32 {
    let x = x.clamp(-2047, 2047) + 2048;
    let (at, rest) = ((x >> 7) as usize, x & 127);
    (i32::from(SQUASH[at]) * (128 - rest) + i32::from(SQUASH[at + 1]) * rest + 64) >> 7
}

/// Half, as zero pages have it.
const HALF: u32 = 1 << 31;
/// How often a probability has moved is counted up to here; then it goes on moving by as little.
const COUNT: u32 = 255;
/// The part of the way, in 65536ths, that a probability moves after so many times.
const STEPS: [u16; COUNT as usize + 1] = {
    let mut steps = [0; COUNT as usize + 1];
    let mut count = 0;
    while count < steps.len() {
        steps[count] = (2 * 65536 / (2 * count + 3)) as u16;
        count += 1;
    }
    steps
};
/// How fast weights learn.
const RATE: i32 = 6;
const FIRST_WEIGHT: i32 = 11000;
const LONGEST: u32 = 31;

pub(crate) struct Model<'m> {
    slots: &'m mut [u32],
    weights: &'m mut [u32],
    stretch: &'m mut [u32],
    heads: &'m mut [u32],
    matches: &'m mut [u32],
    code: Range<usize>,
    place: Place,
    contexts: [u32; CONTEXTS],
    /// Where the lines of this half of a byte begin, and the place in each.
    lines: [usize; CONTEXTS],
    within: usize,
    inputs: [i32; INPUTS],
    by_bits: usize,
    by_place: usize,
    /// Bits of this byte so far, below a one.
    seen: u32,
    bits: u32,
    /// Where what followed the same bytes lies, and how many were the same; none if 0.
    hit: usize,
    len: u32,
    matched: usize,
    probability: i32,
}

fn mix(a: u32, b: u32) -> u32 {
    let sum = (a ^ b).wrapping_mul(0x2c1b_3c6d);
    (sum ^ sum >> 15).wrapping_mul(0x85eb_ca6b)
}

impl<'m> Model<'m> {
    /// `memory` holds `MEMORY` zeros; `code` is where in the image instructions lie.
    pub(crate) fn over(memory: &'m mut [u32], code: Range<usize>) -> Model<'m> {
        let (slots, memory) = memory.split_at_mut(SLOTS);
        let (weights, memory) = memory.split_at_mut(WEIGHTS);
        let (stretch, memory) = memory.split_at_mut(STRETCH);
        let (heads, matches) = memory.split_at_mut(HEADS);
        weights.fill(FIRST_WEIGHT as u32);
        let mut next = 0;
        for x in -2047..=2047 {
            let end = if x == 2047 { 4095 } else { squash(x) as usize };
            while next <= end {
                stretch[next] = x as u32;
                next += 1;
            }
        }
        let mut model = Model {
            slots,
            weights,
            stretch,
            heads,
            matches,
            code,
            place: Place::default(),
            contexts: [0; CONTEXTS],
            lines: [0; CONTEXTS],
            within: 0,
            inputs: [0; INPUTS],
            by_bits: 0,
            by_place: 0,
            seen: 1,
            bits: 0,
            hit: 0,
            len: 0,
            matched: 0,
            probability: 0,
        };
        model.next_byte(&[]);
        model
    }

    /// How likely the next bit is a one, in 4096ths, from 1 to 4095; `done` are the bytes before this one.
    pub(crate) fn predict(&mut self, done: &[u8]) -> u32 {
        // Half a byte stays within one line of memory.
        self.within = match self.bits.checked_sub(4) {
            None => self.seen,
            Some(more) => self.seen & ((1 << more) - 1) | 1 << more,
        } as usize;
        if self.bits & 3 == 0 {
            let half = if self.bits == 0 { 0 } else { self.seen };
            for (index, (line, context)) in self.lines.iter_mut().zip(self.contexts).enumerate() {
                *line = (index << LINES | (mix(context, half) >> (32 - LINES)) as usize) * LINE;
            }
        }
        for (line, input) in self.lines.iter().zip(&mut self.inputs) {
            let slot = self.slots[line + self.within] ^ HALF;
            *input = self.stretch[(slot >> 20) as usize] as i32;
        }
        let expected = if self.len > 0 { u32::from(done[self.hit]) | 0x100 } else { 0 };
        let mut state = 0;
        self.matched = 0;
        self.inputs[CONTEXTS] = 0;
        if expected >> (8 - self.bits) == self.seen {
            let one = expected >> (7 - self.bits) & 1;
            self.matched = (self.len.min(LONGEST) * 2 + one) as usize;
            self.inputs[CONTEXTS] = self.stretch[((self.matches[self.matched] ^ HALF) >> 20) as usize] as i32;
            state = if self.len > 15 { 2 } else { 1 };
        } else {
            self.len = 0;
        }
        self.inputs[CONTEXTS + 1] = 256;
        self.by_bits = (state * 256 + self.seen as usize) * INPUTS;
        self.by_place = (BY_BITS + self.place.number() * 8 + self.bits as usize) * INPUTS;
        let mut sum = 0;
        let sets = self.weights[self.by_bits..][..INPUTS].iter().zip(&self.weights[self.by_place..][..INPUTS]);
        for (input, (a, b)) in self.inputs.iter().zip(sets) {
            let weight = *a as i32 + *b as i32;
            sum += (input * (weight >> 2)) >> 12;
        }
        self.probability = squash(sum >> 2).clamp(1, 4095);
        self.probability as u32
    }

    /// Learns what the bit was. After eight bits, gives the byte; then `next_byte` is to be called.
    pub(crate) fn update(&mut self, bit: u32) -> Option<u8> {
        let missed = ((bit << 12) as i32 - self.probability) * RATE;
        for set in [self.by_bits, self.by_place] {
            for (weight, input) in self.weights[set..][..INPUTS].iter_mut().zip(&self.inputs) {
                *weight = weight.wrapping_add(((input * missed + 0x2000) >> 14) as u32);
            }
        }
        let goal = if bit == 1 { (1 << 22) - 1 } else { 0 };
        for line in self.lines {
            let slot = &mut self.slots[line + self.within];
            let known = *slot ^ HALF;
            let (count, probability) = (known & COUNT, (known >> 10) as i32);
            let step = (i64::from(goal - probability) * i64::from(STEPS[count as usize])) >> 16;
            let probability = probability + step as i32;
            *slot = ((probability as u32) << 10 | (count + u32::from(count < COUNT))) ^ HALF;
        }
        if self.matched > 0 {
            let slot = self.matches[self.matched] ^ HALF;
            self.matches[self.matched] = HALF ^ if bit == 1 { slot + (!slot >> 6) } else { slot - (slot >> 6) };
        }
        self.seen = self.seen << 1 | bit;
        self.bits += 1;
        if self.bits < 8 {
            return None;
        }
        let byte = self.seen as u8;
        (self.seen, self.bits) = (1, 0);
        Some(byte)
    }

    /// Makes ready for the byte after `done`, whose last one has just become known.
    pub(crate) fn next_byte(&mut self, done: &[u8]) {
        let back = |by: usize| done.len().checked_sub(by).map_or(0, |at| u32::from(done[at]));
        let last = [back(1), back(2), back(3)];
        if !self.code.contains(&done.len()) {
            self.place = Place::outside(done.len());
        } else if done.len() == self.code.start {
            self.place = Place::default();
        } else {
            self.place.after(last[0] as u8);
        }
        self.follow(done);
        let Place { field, so_far, operand, operation, before, registers, .. } = self.place.clone();
        let (part, whole) = (mix(field, operation), mix(mix(field, operation), mix(operand, so_far)));
        let operations = before.map(|instruction| instruction & 1023);
        self.contexts = [
            last[0],
            last[0] << 8 | last[1],
            last[1] << 8 | last[2],
            mix(whole, mix(mix(operations[0], operations[1]), operations[2])),
            mix(part, mix(last[0], operations[0])),
            mix(field, so_far),
            mix(whole, mix(registers, before[0] >> 10)),
        ];
        for (context, number) in self.contexts.iter_mut().zip(1..) {
            *context = mix(*context, number);
        }
    }

    /// Finds where the last five bytes stood before.
    fn follow(&mut self, done: &[u8]) {
        let Some(last) = done.last_chunk::<5>() else { return };
        if self.len > 0 && done[self.hit] == last[4] {
            (self.len, self.hit) = (self.len + 1, self.hit + 1);
        } else {
            self.len = 0;
        }
        let head = &mut self.heads[(last.iter().fold(0, |sum, byte| mix(sum, u32::from(*byte))) >> 16) as usize];
        if self.len == 0 {
            let there = *head as usize;
            let same =
                done.iter().rev().zip(done[..there].iter().rev()).take_while(|(a, b)| a == b).take(LONGEST as usize);
            (self.len, self.hit) = (same.count() as u32, there);
        }
        *head = done.len() as u32;
    }
}

/// Where in an instruction the next byte lies (Intel SDM volume 2, 2.1).
#[derive(Clone, Default)]
struct Place {
    phase: u32,
    /// All that says which field this is.
    field: u32,
    /// Bytes of this field so far.
    so_far: u32,
    index: u32,
    /// How many bytes of it are left.
    left: u32,
    /// What prefixes say: REX.W, 0x66, others, the map of operations, in this order from the lowest bit.
    prefixes: u32,
    registers: u32,
    operation: u32,
    /// ModRM, and SIB above it.
    operand: u32,
    immediate: u32,
    /// The instructions before: operation, map, ModRM.
    before: [u32; 3],
}

// Phases; 0 is prefixes and operation.
const MODRM: u32 = 1;
const SIB: u32 = 2;
const DISPLACEMENT: u32 = 3;
const IMMEDIATE: u32 = 4;
const OUTSIDE: u32 = 5;

const WIDE: u32 = 1;
const SHORT: u32 = 2;
const OTHER: u32 = 4;
const MAP_2: u32 = 8;
const MAP_3: u32 = 16;

impl Place {
    fn outside(at: usize) -> Place {
        Place { phase: OUTSIDE, field: 1 << 16 | at as u32 & 7, ..Place::default() }
    }

    /// For weights: below 65.
    fn number(&self) -> usize {
        (self.phase * 8 + self.index.min(7)) as usize
    }

    fn after(&mut self, byte: u8) {
        let number = u32::from(byte);
        self.so_far = mix(self.so_far, number + 1);
        self.index += 1;
        match self.phase {
            MODRM => {
                self.operand = number;
                let tests = self.prefixes & (MAP_2 | MAP_3) == 0 && byte & 0x30 == 0;
                match self.operation {
                    0xf6 if tests => self.immediate = 1,
                    0xf7 if tests => self.immediate = self.word(),
                    _ => {}
                }
                let distance = match (byte >> 6, byte & 7) {
                    (1, _) => 1,
                    (2, _) | (0, 5) => 4,
                    _ => 0,
                };
                if byte < 0xc0 && byte & 7 == 4 {
                    self.enter(SIB, distance);
                } else {
                    self.displacement(distance);
                }
            }
            SIB => {
                let bare = self.operand >> 6 == 0 && byte & 7 == 5;
                self.operand |= number << 8;
                self.displacement(if bare { 4 } else { self.left });
            }
            DISPLACEMENT | IMMEDIATE => {
                self.left = self.left.saturating_sub(1);
                match (self.left, self.phase) {
                    (0, DISPLACEMENT) => self.literal(),
                    (0, _) => self.end(),
                    _ => {}
                }
            }
            _ => self.operation(byte),
        }
        self.field = self.phase | self.index << 3 | self.prefixes << 6;
    }

    fn word(&self) -> u32 {
        if self.prefixes & SHORT == 0 { 4 } else { 2 }
    }

    fn operation(&mut self, byte: u8) {
        let escaped = self.prefixes & MAP_2 != 0;
        if self.prefixes & (MAP_2 | MAP_3) == 0 {
            match byte {
                0x66 => return self.prefix(SHORT),
                0x64 | 0x65 | 0x2e | 0xf0 | 0xf2 | 0xf3 => return self.prefix(OTHER),
                0x40..=0x4f => {
                    self.registers = u32::from(byte);
                    return self.prefix(u32::from(byte >> 3 & 1));
                }
                0x0f => return self.prefix(MAP_2),
                _ => {}
            }
        } else if escaped && matches!(byte, 0x38 | 0x3a) && self.prefixes & MAP_3 == 0 {
            self.immediate = u32::from(byte >> 1 & 1);
            return self.prefix(MAP_3);
        }
        self.operation = u32::from(byte);
        let has_operand = if self.prefixes & MAP_3 != 0 {
            true
        } else if escaped {
            self.immediate = match byte {
                0x80..=0x8f => 4,
                0xba | 0xa4 | 0xac | 0xc2 | 0xc4..=0xc6 | 0x70..=0x73 => 1,
                _ => 0,
            };
            !matches!(byte, 0x80..=0x8f | 0x05 | 0x0b | 0xa2 | 0xc8..=0xcf | 0x31 | 0x77)
        } else {
            self.immediate = match byte {
                0..=0x3f if byte & 7 == 4 => 1,
                0..=0x3f if byte & 7 == 5 => self.word(),
                0x68 | 0x69 | 0x81 | 0xc7 | 0xa9 => self.word(),
                0xe8 | 0xe9 => 4,
                0x6a | 0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 | 0xa8 | 0xeb | 0x70..=0x7f | 0xb0..=0xb7 => 1,
                0xb8..=0xbf if self.prefixes & WIDE != 0 => 8,
                0xb8..=0xbf => self.word(),
                0xc2 => 2,
                _ => 0,
            };
            match byte {
                0..=0x3f => byte & 7 < 4,
                0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xd8..=0xdf => true,
                _ => matches!(byte, 0xf6 | 0xf7 | 0xfe | 0xff),
            }
        };
        if has_operand {
            self.enter(MODRM, 1);
        } else {
            self.literal();
        }
    }

    fn prefix(&mut self, what: u32) {
        self.prefixes |= what;
        (self.index, self.so_far) = (0, 0);
    }

    fn enter(&mut self, phase: u32, left: u32) {
        (self.phase, self.left, self.index, self.so_far) = (phase, left, 0, 0);
    }

    fn displacement(&mut self, bytes: u32) {
        if bytes > 0 {
            self.enter(DISPLACEMENT, bytes);
        } else {
            self.literal();
        }
    }

    fn literal(&mut self) {
        if self.immediate > 0 {
            self.enter(IMMEDIATE, self.immediate);
        } else {
            self.end();
        }
    }

    fn end(&mut self) {
        let [first, second, _] = self.before;
        let this = self.operation | (self.prefixes >> 3 & 3) << 8 | self.operand << 10 | self.prefixes << 26;
        *self = Place { before: [this, first, second], ..Place::default() };
    }
}
