//! Jump tables, as gcc and clang write them for `switch`.
//!
//! - relative: `lea T(%rip),b; movslq (b,i,4),r; add b,r; jmp *r`: 32-bit distances from `T`;
//!   hand-written code has `lea (b,r),r` in place of `add`;
//! - absolute (position-dependent code): `jmp *T(,i,8)` or `mov T(,i,8),r; jmp *r`.
//!
//! A table's extent is the longest run of entries that lead to instruction boundaries of
//! the function, up to the function's next table. The true table is a prefix of that run,
//! since each true entry leads into the function; a longer copy does no harm, for the code
//! never reads beyond the true end. Other references do not end it: `a[i - 1]` makes one
//! that lies before `a`, in whatever precedes it. (A bound from a `cmp` would have to be
//! proven to belong to the same jump; too short would be fatal, too long is not.)

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind,
    Register,
};

use super::distances::{self, Made};
use super::registers::written;
use super::ways::is_computed_jump;
use crate::arch::{Code, Encoding, JumpTable, Tables, Use};

/// The function and what surrounds its tables.
pub(crate) struct Context<'c> {
    /// The function's ranges: link-time address and bytes.
    pub ranges: &'c [(u64, &'c [u8])],
    /// Bytes from an address to the end of its read-only section.
    pub bytes_from: &'c dyn Fn(u64) -> &'c [u8],
}

/// Finds the tables that a function reads: those of its computed jumps, and where such may begin that lead to data.
pub(crate) fn tables(codes: &[&Code], context: &Context<'_>) -> Tables {
    let ranges = || context.ranges.iter().zip(codes);
    // A fragment may have no jumps of its own, and be where those of the body lead.
    let silent: Vec<Option<Jumps>> =
        ranges().map(|((at, bytes), code)| code.jumps.is_none().then(|| Jumps::read(*at, bytes))).collect();
    let jumps: Vec<(u64, &Jumps)> = ranges()
        .zip(&silent)
        .filter_map(|((range, code), silent)| Some((range.0, code.jumps.as_deref().or(silent.as_ref())?)))
        .collect();
    let is_boundary = |address: u64| jumps.iter().any(|(start, jumps)| jumps.is_boundary(address.wrapping_sub(*start)));
    let shapes: Vec<&Shape> = jumps.iter().flat_map(|(_, jumps)| &jumps.shapes).collect();
    let any_relative = shapes.iter().any(|s| matches!(s, Shape::Relative(_)));
    let sites = ranges().flat_map(|((start, _), code)| code.sites.iter().map(move |site| (start, site)));
    let sites = sites.filter(|(_, s)| s.usage == Use::Address && s.encoding == Encoding::PcRelative);
    let made: Vec<Made> =
        sites.map(|(start, s)| Made { at: start + u64::from(s.instruction), target: s.target }).collect();
    let mut starts: Vec<(u64, bool)> = shapes
        .iter()
        .filter_map(|s| match s {
            Shape::Absolute(_, table) => Some((*table, false)),
            Shape::Relative(_) => None,
        })
        .collect();
    if any_relative {
        starts.extend(made.iter().map(|made| (made.target, true)));
    }
    starts.sort_unstable();
    starts.dedup();
    let mut tables: Vec<JumpTable> = Vec::new();
    // From the last one down, so that each knows where the next one begins.
    for (address, relative) in starts.into_iter().rev() {
        let end = tables.last().map_or(u64::MAX, |t| t.address);
        let targets = run(address, relative, end, context, &is_boundary);
        if !targets.is_empty() && end > address {
            tables.push(JumpTable { address, relative, targets });
        }
    }
    tables.reverse();
    let known = |shape: &Shape| match shape {
        Shape::Relative(_) => tables.iter().any(|t| t.relative),
        Shape::Absolute(_, table) => tables.iter().any(|t| t.address == *table),
    };
    let unresolved = shapes.iter().find(|s| !known(s)).map(|shape| match shape {
        Shape::Relative(jump) | Shape::Absolute(jump, _) => *jump,
    });
    let distances = match codes.iter().any(|c| c.distances) {
        true => distances::perhaps(context.ranges, made, &|address| tables.iter().any(|t| t.address == address)),
        false => Vec::new(),
    };
    // Each jump has a table of its own, or one of them may not have been found.
    let relative = shapes.iter().filter(|s| matches!(s, Shape::Relative(_))).count();
    let complete = unresolved.is_none()
        && jumps.iter().all(|(_, jumps)| jumps.shapes.len() == jumps.computed)
        && tables.iter().filter(|t| t.relative).count() >= relative;
    Tables { jumps: tables, unresolved_jump: unresolved, complete, distances }
}

/// The entries from `address` on that lead into the function.
fn run(address: u64, relative: bool, end: u64, context: &Context<'_>, is_boundary: &dyn Fn(u64) -> bool) -> Vec<u64> {
    let width = if relative { 4 } else { 8 };
    let target = |entry: &[u8]| match entry.try_into().map(i32::from_le_bytes) {
        Ok(distance) if relative => address.wrapping_add_signed(i64::from(distance)),
        _ => u64::from_le_bytes(entry.try_into().unwrap_or_default()),
    };
    (context.bytes_from)(address)
        .chunks_exact(width)
        .take(((end - address) / width as u64).try_into().unwrap_or(usize::MAX))
        .map(target)
        .take_while(|t| is_boundary(*t))
        .collect()
}

/// A computed jump that reads a table: its own address, and the table's where the
/// instruction itself names it.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Relative(u64),
    Absolute(u64, u64),
}

/// How far back the load of a table entry may be from its jump, in instructions.
const WINDOW: usize = 16;

/// What a range of code says about its tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jumps {
    shapes: Vec<Shape>,
    /// How many jumps are computed, with or without a table.
    computed: usize,
    /// One bit for each byte: an instruction begins there.
    boundaries: Vec<u64>,
}

impl Jumps {
    fn read(address: u64, bytes: &[u8]) -> Jumps {
        let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
        let mut window = Window::default();
        window.clear(bytes.len());
        while decoder.can_decode() {
            let instruction = window.next(decoder.position() as u32);
            decoder.decode_out(instruction);
            if instruction.flow_control() == FlowControl::IndirectBranch {
                window.note_jump();
            }
        }
        window.jumps
    }

    /// The same of code that lies so much further on.
    pub(crate) fn moved(&self, by: u64) -> Jumps {
        let shapes = self.shapes.iter().map(|shape| match *shape {
            Shape::Relative(jump) => Shape::Relative(jump.wrapping_add(by)),
            Shape::Absolute(jump, table) => Shape::Absolute(jump.wrapping_add(by), table),
        });
        Jumps { shapes: shapes.collect(), computed: self.computed, boundaries: self.boundaries.clone() }
    }

    fn is_boundary(&self, offset: u64) -> bool {
        let word = usize::try_from(offset / 64).ok().and_then(|i| self.boundaries.get(i));
        word.is_some_and(|word| word >> (offset % 64) & 1 == 1)
    }
}

/// The last instructions of a range that is being decoded.
#[derive(Default)]
pub(super) struct Window {
    last: [Instruction; WINDOW + 1],
    /// How many there have been.
    count: usize,
    jumps: Jumps,
    /// How often a table's start was added to what was read from it, where no jump goes to the sum.
    distances: usize,
    /// The last such sum: the register, and which instruction made it.
    sum: Option<(Register, usize)>,
}

impl Window {
    /// Begins with a range of so many bytes.
    pub(super) fn clear(&mut self, size: usize) {
        self.count = 0;
        self.distances = 0;
        self.sum = None;
        self.jumps.shapes.clear();
        self.jumps.computed = 0;
        self.jumps.boundaries.clear();
        self.jumps.boundaries.resize(size.div_ceil(64), 0);
    }

    /// Room for the instruction at this offset.
    pub(super) fn next(&mut self, offset: u32) -> &mut Instruction {
        self.jumps.boundaries[offset as usize / 64] |= 1 << (offset % 64);
        self.count += 1;
        &mut self.last[(self.count - 1) % (WINDOW + 1)]
    }

    /// The last instruction.
    pub(super) fn last(&self) -> &Instruction {
        &self.last[self.count.saturating_sub(1) % (WINDOW + 1)]
    }

    /// To be called when the last instruction is an addition, or reaches what the sum of two registers leads to: perhaps it
    /// adds a table's start to a number that was read from that table, `movslq (b,i,4),r; add b,r` or `movsbl (r,b),r`.
    /// Only this tells a distance from any other number of 32 bits.
    pub(super) fn note_addition(&mut self) {
        let nth = |n: usize| &self.last[(self.count - n) % (WINDOW + 1)];
        let add = nth(1);
        let registers = add.op0_kind() == OpKind::Register && add.op1_kind() == OpKind::Register;
        let (x, y) = match add.mnemonic() {
            Mnemonic::Add if registers => (add.op0_register(), add.op1_register()),
            _ => (add.memory_base(), add.memory_index()),
        };
        if [x, y].contains(&Register::None) {
            return;
        }
        let adds_base = (2..=self.count.min(WINDOW + 1)).any(|n| {
            let load = nth(n);
            let distance = load.mnemonic() == Mnemonic::Movsxd && load.op1_kind() == OpKind::Memory;
            let both = |table| [(x, y), (y, x)].contains(&(load.op0_register(), table));
            distance && starts(load).any(both) && x != y && !overwritten((2..n).rev().map(nth), [x, y])
        });
        if adds_base {
            self.distances += 1;
            // What is read or written by the sum is no sum any more.
            let kept = matches!(add.mnemonic(), Mnemonic::Add | Mnemonic::Lea) && add.op0_kind() == OpKind::Register;
            self.sum = kept.then(|| (add.op0_register(), self.count)).or(self.sum);
        }
    }

    /// True if code reads distances from a table, other than those of jumps.
    pub(super) fn reads_distances(&self) -> bool {
        self.distances > 0
    }

    /// To be called when the last instruction is an indirect jump.
    pub(super) fn note_jump(&mut self) {
        let jump = &self.last[(self.count - 1) % (WINDOW + 1)];
        let by = (jump.op0_kind() == OpKind::Register).then(|| jump.op0_register());
        if self.sum.is_some_and(|(register, at)| Some(register) == by && self.count - at <= WINDOW) {
            self.distances -= 1;
            self.sum = None;
        }
        self.jumps.computed += usize::from(is_computed_jump(jump));
        let before = (2..=self.count.min(WINDOW + 1)).map(|n| &self.last[(self.count - n) % (WINDOW + 1)]);
        self.jumps.shapes.extend(shape_of(&self.last[(self.count - 1) % (WINDOW + 1)], before));
    }

    pub(super) fn jumps(&self) -> Jumps {
        self.jumps.clone()
    }
}

/// The registers of a memory operand that may lead to the start of a table: `(b,i,4)`, or either one of `(b,i)`.
pub(super) fn starts(instruction: &Instruction) -> impl Iterator<Item = Register> + use<> {
    let index = (instruction.memory_index_scale() == 1).then(|| instruction.memory_index());
    [Some(instruction.memory_base()), index].into_iter().flatten().filter(|register| *register != Register::None)
}

/// True if one of the registers is another value behind these instructions, as far as they run one after the other in any case.
fn overwritten<'i>(code: impl Iterator<Item = &'i Instruction>, registers: [Register; 2]) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let straight = |i: &&Instruction| matches!(i.flow_control(), FlowControl::Next);
    code.take_while(straight).any(|i| {
        written(i, &mut factory).iter().any(|r| registers.contains(r) && i.condition_code() == ConditionCode::None)
    })
}

/// The table that a jump reads, seen from what comes `before` it, last first.
fn shape_of<'i>(jump: &Instruction, before: impl Iterator<Item = &'i Instruction>) -> Option<Shape> {
    if jump.mnemonic() != Mnemonic::Jmp {
        return None;
    }
    if jump.op0_kind() == OpKind::Memory {
        return absolute_table(jump).map(|table| Shape::Absolute(jump.ip(), table));
    }
    if jump.op0_kind() != OpKind::Register {
        return None;
    }
    let register = jump.op0_register();
    for before in before {
        if before.op_count() == 0 || before.op0_kind() != OpKind::Register {
            continue;
        }
        if before.op0_register().full_register() != register.full_register() || before.mnemonic() == Mnemonic::Cmp {
            continue;
        }
        return match before.mnemonic() {
            Mnemonic::Add if before.op1_kind() == OpKind::Register => Some(Shape::Relative(jump.ip())),
            Mnemonic::Lea if before.memory_index() != Register::None && before.memory_base() != Register::None => {
                Some(Shape::Relative(jump.ip()))
            }
            Mnemonic::Mov if before.op1_kind() == OpKind::Memory => {
                absolute_table(before).map(|table| Shape::Absolute(jump.ip(), table))
            }
            _ => None,
        };
    }
    None
}

/// The table of an operand `T(,i,8)`.
fn absolute_table(instruction: &Instruction) -> Option<u64> {
    let indexed = instruction.memory_base() == Register::None
        && instruction.memory_index() != Register::None
        && instruction.memory_index_scale() == 8;
    indexed.then(|| instruction.memory_displacement64())
}
