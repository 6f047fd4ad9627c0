//! Everything that depends on the instruction set.
//!
//! The rest of the crate speaks of [`Site`]s: places in code that lead somewhere. What
//! an instruction looks like, how a thunk is written and how a PLT stub is recognised
//! is known in one folder for each architecture. There is one so far; a second one
//! turns these re-exports into a trait.

mod alike;
mod sites;
mod x86_64;

pub(crate) use alike::alike;
pub(crate) use sites::Sites;

pub(crate) use x86_64::{
    CallArgument, DecodeRoom, Decoded, Field, JumpTableContext, Jumps, Leaning, Reach, Touched, acts, add_known,
    bounded, branch, call_arguments, calls_without, changed_registers, compares_address, copied, counted, decode,
    differing_arguments, displaced, field, first_difference, instructions, is_call, is_indexed, is_limit,
    is_plain_call, kept_addresses, leaning, leaning_of_argument, memory_numbers, numbers, padding, plt_stubs, reach,
    returns, shape, stays_inside, switches_stacks, tables, text, texts, through_slot, thunk, touched, unpadded, width,
};

/// How a field in an instruction encodes its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Distance from the end of the instruction.
    PcRelative,
    /// Zero-extended address of 32 bits.
    Absolute32,
    /// Sign-extended address of 32 bits.
    Absolute32Signed,
    /// Address of 64 bits.
    Absolute64,
}

/// What an instruction does with its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Transfers control to it.
    Branch,
    /// Reads or writes this many bytes exactly there.
    Access(u32),
    /// Takes its address, or computes another address from it.
    Address,
}

/// A place in code that leads to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// Offset of the instruction in its range.
    pub instruction: u32,
    /// Offset of the field.
    pub offset: u32,
    /// Offset of the next instruction.
    pub end: u32,
    /// Width of the field in bytes.
    pub width: u8,
    pub encoding: Encoding,
    pub usage: Use,
    /// Link-time address that the field encodes.
    pub target: u64,
}

/// How an instruction transfers control to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branch {
    Call,
    Jump,
    Conditional,
    /// Not at all.
    None,
}

/// One range of code, decoded.
#[derive(Debug, Default)]
pub(crate) struct Code {
    /// Ordered by offset.
    pub sites: Sites,
    /// Offset of the first byte that is no instruction.
    pub invalid: Option<u32>,
    /// Jumps through a register or an indexed table.
    pub computed_jumps: bool,
    /// Reads 32-bit distances from a table and adds the table's start to them.
    pub distances: bool,
    /// Where it does either: what it says about its tables.
    pub jumps: Option<Box<Jumps>>,
    /// How far one instruction at most leads before an address that a register holds, in bytes.
    pub steps_back: u16,
    /// How far an index that an instruction makes negative leads back at most, in bytes; 0 where none does.
    pub counts_back: u16,
    /// It returns, goes on behind its end, or jumps where only a register or memory says.
    pub may_return: bool,
    /// Reads or writes thread-local storage other than the stack protector's word.
    pub thread_local: bool,
    /// Gives the stack pointer a value that may be none of its own: see [`switches_stacks`].
    pub takes_stack: bool,
}

/// A table of code addresses that a computed jump reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JumpTable {
    /// Link-time address of the first entry.
    pub address: u64,
    /// Entries are 32-bit distances from `address`; else 64-bit addresses.
    pub relative: bool,
    /// Link-time addresses that the entries lead to.
    pub targets: Vec<u64>,
}

/// The tables that a function reads.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub jumps: Vec<JumpTable>,
    /// A computed jump that certainly reads a table which was not found.
    pub unresolved_jump: Option<u64>,
    /// Every computed jump reads one of the tables that were found.
    pub complete: bool,
    /// Where tables of distances to data may begin.
    pub distances: Vec<u64>,
}

impl JumpTable {
    /// Size of the table in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.targets.len() as u64 * if self.relative { 4 } else { 8 }
    }
}

/// What a thunk needs to know of the function that it stands before.
pub(crate) struct ThunkInput<'a> {
    /// Link-time address of the body.
    pub address: u64,
    /// The body's bytes, padding not included.
    pub body: &'a [u8],
    /// Proven padding bytes after the body.
    pub padding: &'a [u8],
}

/// A thunk, before relocation: `cmpb $0, state; jne new; <displaced>; jmp old`.
#[derive(Debug)]
pub(crate) struct Thunk {
    pub code: Vec<u8>,
    /// Fields to relocate: offset in `code`, addend, where to. All are PC-relative, 32 bits.
    pub fixups: Vec<(u64, i64, ThunkTarget)>,
    /// Offset of the 5-byte jump from the function's address.
    pub site_offset: u8,
    /// Length of the displaced instructions.
    pub displaced: u8,
    /// For each displaced instruction, and the end: offset in the function, offset in `code`.
    pub boundaries: Vec<(u32, u32)>,
    /// A displaced instruction is a call, so a return address can lie in the thunk.
    pub has_call: bool,
}

/// An instruction that reaches something through a pointer slot.
#[derive(Debug)]
pub(crate) struct ThroughSlot {
    /// In place of the instruction, and as long.
    pub bytes: Vec<u8>,
    /// Where in it the distance to the slot is, 32 bits from the end of its instruction; `None` if it is a jump to the island.
    pub slot: Option<usize>,
    pub island: Option<SlotIsland>,
}

/// What runs instead of the instruction, elsewhere.
#[derive(Debug)]
pub(crate) struct SlotIsland {
    /// Ends in a jump back.
    pub code: Vec<u8>,
    /// Where the distance to the slot is.
    pub slot: usize,
    /// From which offset on the stack pointer is so many bytes lower than at the instruction.
    pub lowered: Vec<(u32, u32)>,
}

/// Where a thunk's field leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThunkTarget {
    State,
    NewFunction,
    /// A link-time address of the base.
    Base(u64),
}

/// Why an entry cannot be redirected.
#[derive(Debug)]
pub(crate) enum NoThunk {
    TooShort(String),
    FlagsLive(String),
    CannotDisplace(String),
    CrossesPage,
}

/// What an instruction does with a number and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    Stores,
    Masks,
    Compares,
    /// Hands what it read there, as its argument of that number, from 0, to the function at that address, or that the table
    /// slot there leads to.
    Passes(u8),
}

/// Memory that outlives the function that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    /// So many bytes from where some register leads.
    Field(i64),
    /// At this link-time address.
    Fixed(u64),
}

/// What code makes use of, as far as it can be told where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Unknown,
    /// An address in the function's own frame.
    Frame,
    Number(u64),
    /// A link-time address.
    Address(u64),
    /// The function's argument of that number, from 0.
    Argument(u8),
    /// What a call answered: of the function at that address, or that the table slot there leads to.
    Answer(Option<u64>),
    /// What was read from lasting memory of `width` bytes, plus a number, or shifted right.
    Loaded {
        cell: Cell,
        width: u8,
        plus: i64,
        shift: u32,
    },
}

/// What an instruction does to what outlives its function, and what it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Calls the function at that address, or that the table slot there leads to; `None`: it is not known which.
    Calls {
        callee: Option<u64>,
        /// What the registers for the first arguments hold, whether the callee has so many or not.
        arguments: [Value; 6],
    },
    /// Stores into so many bytes of lasting memory, found through one or two registers; `how` is the instruction's kind.
    Stores { cell: Option<Cell>, through: [Value; 2], width: u32, how: u32, value: Value },
    /// Reads so many bytes of lasting memory, found through one or two registers.
    Reads { cell: Option<Cell>, through: [Value; 2], width: u32 },
    /// Compares two values; `how` is the instruction's kind.
    Tests { how: u32, values: [Value; 2] },
    /// Goes on elsewhere under a condition; `how` is the instruction's kind.
    Branches { how: u32 },
    /// Computes something, with a number as one operand or with none; `how` is the instruction's kind.
    Computes { how: u32, number: Option<u64> },
    /// Puts a number or an address into the frame.
    Keeps(Value),
    /// Returns that to the caller.
    Answers(Value),
}

/// A number that an instruction stores into lasting memory, masks it with, or compares it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryNumber {
    /// Offset of the instruction in its range.
    pub at: u32,
    pub deed: Deed,
    pub cell: Cell,
    /// Width of the memory in bytes.
    pub width: u8,
    pub number: u64,
}
