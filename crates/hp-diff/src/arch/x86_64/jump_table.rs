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

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

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
    let mut boundaries = rustc_hash::FxHashSet::default();
    let mut shapes = Vec::new();
    for (address, bytes) in context.ranges {
        let instructions: Vec<Instruction> =
            Decoder::with_ip(64, bytes, *address, DecoderOptions::NONE).into_iter().collect();
        boundaries.extend(instructions.iter().map(Instruction::ip));
        shapes.extend((0..instructions.len()).filter_map(|i| shape_of(&instructions, i)));
    }
    let any_relative = shapes.iter().any(|s| matches!(s, Shape::Relative(_)));
    let sites = codes.iter().flat_map(|c| &c.sites);
    let made: Vec<u64> =
        sites.filter(|s| s.usage == Use::Address && s.encoding == Encoding::PcRelative).map(|s| s.target).collect();
    let mut starts: Vec<(u64, bool)> = shapes
        .iter()
        .filter_map(|s| match s {
            Shape::Absolute(_, table) => Some((*table, false)),
            Shape::Relative(_) => None,
        })
        .collect();
    if any_relative {
        starts.extend(made.iter().map(|target| (*target, true)));
    }
    starts.sort_unstable();
    starts.dedup();
    let mut tables: Vec<JumpTable> = Vec::new();
    // From the last one down, so that each knows where the next one begins.
    for (address, relative) in starts.into_iter().rev() {
        let end = tables.last().map_or(u64::MAX, |t| t.address);
        let targets = run(address, relative, end, context, &boundaries);
        if !targets.is_empty() && end > address {
            tables.push(JumpTable { address, relative, targets });
        }
    }
    tables.reverse();
    let known = |shape: &&Shape| match shape {
        Shape::Relative(_) => tables.iter().any(|t| t.relative),
        Shape::Absolute(_, table) => tables.iter().any(|t| t.address == *table),
    };
    let unresolved = shapes.iter().find(|s| !known(s)).map(|shape| match shape {
        Shape::Relative(jump) | Shape::Absolute(jump, _) => *jump,
    });
    let mut distances = if codes.iter().any(|c| c.distances) { made } else { Vec::new() };
    distances.retain(|address| tables.iter().all(|t| t.address != *address));
    distances.sort_unstable();
    distances.dedup();
    Tables { jumps: tables, unresolved_jump: unresolved, distances }
}

/// The entries from `address` on that lead into the function.
fn run(
    address: u64,
    relative: bool,
    end: u64,
    context: &Context<'_>,
    boundaries: &rustc_hash::FxHashSet<u64>,
) -> Vec<u64> {
    let width = if relative { 4 } else { 8 };
    let target = |entry: &[u8]| match entry.try_into().map(i32::from_le_bytes) {
        Ok(distance) if relative => address.wrapping_add_signed(i64::from(distance)),
        _ => u64::from_le_bytes(entry.try_into().unwrap_or_default()),
    };
    (context.bytes_from)(address)
        .chunks_exact(width)
        .take(((end - address) / width as u64).try_into().unwrap_or(usize::MAX))
        .map(target)
        .take_while(|t| boundaries.contains(t))
        .collect()
}

/// A computed jump that reads a table: its own address, and the table's where the
/// instruction itself names it.
enum Shape {
    Relative(u64),
    Absolute(u64, u64),
}

/// How far back the load of a table entry may be from its jump, in instructions.
const WINDOW: usize = 16;

fn shape_of(instructions: &[Instruction], i: usize) -> Option<Shape> {
    let jump = &instructions[i];
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
    for before in instructions[..i].iter().rev().take(WINDOW) {
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
