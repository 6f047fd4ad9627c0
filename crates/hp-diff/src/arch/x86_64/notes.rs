//! What registers and words of the frame hold, on the ways that code can take.
//!
//! For each register and each word of the frame there is a note: it holds a number, an address, an argument, what a call
//! answered, or what was loaded from some memory. The notes follow the ways that the code can take, and where two ways come
//! together only what both say is kept. Memory is known by its offset from whatever register leads to it, so that another
//! choice of registers changes nothing. This is a search, no proof: what a call does to a word of the frame whose address it
//! was given is not seen, and nothing is known where a jump through a table leads.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use rustc_hash::FxHashMap;

use super::registers::is_high_byte;
use crate::arch::Cell;

/// The registers of a function's first arguments that are numbers or addresses (psABI for AMD64, section 3.2.3).
pub(super) const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// The instructions of a range of code.
pub(super) fn code(address: u64, bytes: &[u8]) -> Vec<Instruction> {
    let decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    decoder.into_iter().take_while(|instruction| !instruction.is_invalid()).collect()
}

/// What a register or a word of the frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Nothing,
    /// An address in the frame: how far from the stack pointer at the entry, if that is known.
    Frame(Option<i64>),
    Number(u64),
    /// An address of the image.
    Address(u64),
    /// The argument of that number, from 0, that the function was called with.
    Argument(u8),
    /// What a call answered: of the function there, or that the table slot there leads to.
    Answer(Option<u64>),
    Loaded(Loaded),
}

/// What was read from memory of `width` bytes, plus a number, or shifted right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) cell: Cell,
    pub(super) width: u8,
    pub(super) plus: i64,
    pub(super) shift: u32,
}

impl Loaded {
    pub(super) fn new(cell: Cell, instruction: &Instruction) -> Loaded {
        Loaded { cell, width: width(instruction), plus: 0, shift: 0 }
    }

    fn plus(self, number: i64) -> Known {
        Known::Loaded(Loaded { plus: self.plus.wrapping_add(number), ..self })
    }

    /// The bits of memory that a number has to do with.
    pub(super) fn bits(&self, number: u64) -> u64 {
        number.checked_shl(self.shift).unwrap_or(0)
    }
}

/// The notes at one place in the code.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Notes {
    registers: [Known; 16],
    /// What lies in the frame, by how far it lies from the stack pointer at the entry, with its width in bytes.
    frame: BTreeMap<i64, (i64, Known)>,
}

impl Notes {
    /// Those at the entry of a function, or of a part of it that lies elsewhere.
    pub(super) fn at_entry(of_function: bool) -> Notes {
        let mut notes = Notes::with_stack_at(Some(0));
        if of_function {
            (0..).zip(ARGUMENTS).for_each(|(n, register)| notes.set(register, Known::Argument(n)));
        }
        notes
    }

    /// Those at a place that is reached from who knows where.
    fn anywhere() -> Notes {
        Notes::with_stack_at(None)
    }

    fn with_stack_at(offset: Option<i64>) -> Notes {
        let mut registers = [Known::Nothing; 16];
        registers[Register::RSP.number()] = Known::Frame(offset);
        Notes { registers, frame: BTreeMap::new() }
    }

    pub(super) fn get(&self, register: Register) -> Known {
        match register.full_register() {
            full if full.is_gpr64() && !is_high_byte(register) => self.registers[full.number()],
            _ => Known::Nothing,
        }
    }

    fn set(&mut self, register: Register, known: Known) {
        let full = register.full_register();
        if full.is_gpr64() {
            self.registers[full.number()] = if is_high_byte(register) { Known::Nothing } else { known };
        }
    }

    /// Forgets what a called function may change (psABI for AMD64, section 3.2.1).
    fn after_call(&mut self) {
        use Register::{R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI};
        for register in [RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11] {
            self.set(register, Known::Nothing);
        }
    }

    /// Notes a write of `width` bytes into the frame.
    fn store(&mut self, offset: i64, width: i64, known: Known) {
        self.frame.retain(|at, (size, _)| at.saturating_add(*size) <= offset || offset.saturating_add(width) <= *at);
        if known != Known::Nothing {
            self.frame.insert(offset, (width, known));
        }
    }

    /// Where a memory operand lies in the frame; `None` if it does not, or it is not known where.
    fn in_frame(&self, instruction: &Instruction) -> Option<i64> {
        match self.get(instruction.memory_base()) {
            Known::Frame(Some(offset)) if instruction.memory_index() == Register::None => {
                Some(offset.wrapping_add(instruction.memory_displacement64() as i64))
            }
            _ => None,
        }
    }

    /// What a memory operand in the frame holds.
    pub(super) fn load(&self, instruction: &Instruction) -> Option<Known> {
        let (width, known) = self.frame.get(&self.in_frame(instruction)?)?;
        (*width == instruction.memory_size().size() as i64).then_some(*known)
    }

    /// The stack pointer moves by `by` bytes.
    fn move_stack(&mut self, by: i64) {
        let moved = match self.get(Register::RSP) {
            Known::Frame(Some(offset)) => Known::Frame(Some(offset.wrapping_add(by))),
            _ => Known::Frame(None),
        };
        self.set(Register::RSP, moved);
    }

    /// Keeps what `other` says too; true if that was less.
    fn meet(&mut self, other: &Notes) -> bool {
        let mut less = false;
        for (known, also) in self.registers.iter_mut().zip(&other.registers) {
            let both = match (*known, *also) {
                (one, two) if one == two => one,
                (Known::Frame(_), Known::Frame(_)) => Known::Frame(None),
                _ => Known::Nothing,
            };
            less |= *known != both;
            *known = both;
        }
        let words = self.frame.len();
        self.frame.retain(|at, known| other.frame.get(at) == Some(known));
        less || self.frame.len() < words
    }
}

/// A range of code, cut where ways part or come together.
pub(super) struct Blocks<'c> {
    code: &'c [Instruction],
    /// Index of the instruction at an address.
    at: FxHashMap<u64, usize>,
    /// Indices of the first instructions.
    starts: BTreeSet<usize>,
}

impl<'c> Blocks<'c> {
    pub(super) fn new(code: &'c [Instruction]) -> Blocks<'c> {
        let at: FxHashMap<u64, usize> = code.iter().enumerate().map(|(n, instruction)| (instruction.ip(), n)).collect();
        let mut starts: BTreeSet<usize> = (!code.is_empty()).then_some(0).into_iter().collect();
        for (n, instruction) in code.iter().enumerate().filter(|(_, instruction)| parts(instruction)) {
            starts.extend(at.get(&instruction.near_branch_target()));
            starts.extend(Some(n + 1).filter(|next| *next < code.len()));
        }
        Blocks { code, at, starts }
    }

    pub(super) fn instructions(&self, first: usize) -> &'c [Instruction] {
        let end = self.starts.range(first + 1..).next().copied().unwrap_or(self.code.len());
        &self.code[first..end]
    }

    /// True if a block that nothing leads to only fills the room before the next one.
    fn is_padding(&self, start: usize) -> bool {
        start > 0 && self.instructions(start).iter().all(|i| matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3))
    }

    /// The notes at the start of each block.
    pub(super) fn notes(&self, entry: &Notes, factory: &mut InstructionInfoFactory) -> BTreeMap<usize, Notes> {
        let mut all: BTreeMap<usize, Notes> = BTreeMap::new();
        // What holds at every jump through a table: that is how those are reached that nothing else leads to.
        let mut at_tables: Option<Notes> = None;
        for &start in &self.starts {
            if all.contains_key(&start) || self.is_padding(start) {
                continue;
            }
            let notes = if start == 0 { entry.clone() } else { at_tables.clone().unwrap_or_else(Notes::anywhere) };
            all.insert(start, notes);
            let mut open = vec![start];
            while let Some(first) = open.pop() {
                let mut notes = all[&first].clone();
                let block = self.instructions(first);
                block.iter().for_each(|instruction| note(instruction, &mut notes, factory));
                if block.last().is_some_and(|last| last.flow_control() == FlowControl::IndirectBranch) {
                    at_tables.get_or_insert_with(|| notes.clone()).meet(&notes);
                }
                for next in self.behind(first + block.len() - 1) {
                    let changed = match all.get_mut(&next) {
                        Some(known) => known.meet(&notes),
                        None => all.insert(next, notes.clone()).is_none(),
                    };
                    if changed {
                        open.push(next);
                    }
                }
            }
        }
        all
    }

    /// The blocks that the last instruction of one leads to.
    fn behind(&self, last: usize) -> impl Iterator<Item = usize> {
        let instruction = &self.code[last];
        let flow = instruction.flow_control();
        let jumps = matches!(flow, FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
        let target = self.at.get(&instruction.near_branch_target()).copied().filter(|_| jumps);
        let falls = !parts(instruction) || flow == FlowControl::ConditionalBranch;
        target.into_iter().chain(Some(last + 1).filter(|next| falls && *next < self.code.len()))
    }
}

/// True if what follows an instruction in memory may not follow it in time.
fn parts(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// Where a call, or a jump that may be one, leads: a function, or the slot that holds its address.
pub(super) fn callee(instruction: &Instruction) -> Option<u64> {
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::UnconditionalBranch => Some(instruction.near_branch_target()),
        FlowControl::IndirectCall | FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
            Some(instruction.ip_rel_memory_address())
        }
        _ => None,
    }
}

/// Brings the notes up to date.
pub(super) fn note(instruction: &Instruction, notes: &mut Notes, factory: &mut InstructionInfoFactory) {
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        notes.after_call();
        return notes.set(Register::RAX, Known::Answer(callee(instruction)));
    }
    let known = result(instruction, notes);
    let keeps = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt);
    if let Some(offset) = notes.in_frame(instruction).filter(|_| instruction.op0_kind() == OpKind::Memory && !keeps) {
        let stored = match (instruction.mnemonic(), instruction.op1_kind()) {
            (Mnemonic::Mov, OpKind::Register) => notes.get(instruction.op1_register()),
            (Mnemonic::Mov, kind) if is_immediate(kind) => Known::Number(instruction.immediate(1)),
            _ => Known::Nothing,
        };
        notes.store(offset, instruction.memory_size().size() as i64, stored);
    }
    let pushed = (instruction.op0_kind() == OpKind::Register).then(|| notes.get(instruction.op0_register()));
    for used in factory.info(instruction).used_registers() {
        let written = matches!(
            used.access(),
            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
        );
        if written && !keeps && used.register().full_register() != Register::RSP {
            notes.set(used.register(), Known::Nothing);
        }
    }
    match instruction.mnemonic() {
        Mnemonic::Push => {
            notes.move_stack(-8);
            if let Known::Frame(Some(top)) = notes.get(Register::RSP) {
                notes.store(top, 8, pushed.unwrap_or(Known::Nothing));
            }
        }
        Mnemonic::Pop => {
            let top = match notes.get(Register::RSP) {
                Known::Frame(Some(top)) => notes.frame.get(&top).filter(|(width, _)| *width == 8).map(|top| top.1),
                _ => None,
            };
            notes.move_stack(8);
            if let Some(top) = top.filter(|_| instruction.op0_kind() == OpKind::Register) {
                notes.set(instruction.op0_register(), top);
            }
        }
        _ if instruction.op0_kind() != OpKind::Register || keeps => {
            if instruction.stack_pointer_increment() != 0 {
                notes.set(Register::RSP, Known::Frame(None));
            }
        }
        _ if instruction.op0_register() == Register::RSP => {
            let moved = known.filter(|known| matches!(known, Known::Frame(_)));
            notes.set(Register::RSP, moved.unwrap_or(Known::Frame(None)));
        }
        _ => notes.set(instruction.op0_register(), known.unwrap_or(notes.get(instruction.op0_register()))),
    }
}

/// What the first operand, a register, holds afterwards; `None` if that is not known.
fn result(instruction: &Instruction, notes: &Notes) -> Option<Known> {
    let own = notes.get(instruction.op0_register());
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => match instruction.op1_kind() {
            OpKind::Memory => notes
                .load(instruction)
                .or_else(|| cell(instruction, notes).map(|c| Known::Loaded(Loaded::new(c, instruction)))),
            OpKind::Register => Some(notes.get(instruction.op1_register())),
            kind if is_immediate(kind) => Some(Known::Number(instruction.immediate(1))),
            _ => None,
        },
        Mnemonic::Xor | Mnemonic::Sub if instruction.op0_register() == instruction.op1_register() => {
            Some(Known::Number(0))
        }
        Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => {
            Some(Known::Address(instruction.ip_rel_memory_address()))
        }
        Mnemonic::Lea => match notes.get(instruction.memory_base()) {
            Known::Frame(_) => Some(Known::Frame(notes.in_frame(instruction))),
            Known::Loaded(loaded) if instruction.memory_index() == Register::None => {
                Some(loaded.plus(instruction.memory_displacement64() as i64))
            }
            _ => None,
        },
        Mnemonic::Add | Mnemonic::Sub if is_immediate(instruction.op1_kind()) => {
            let number = instruction.immediate(1) as i64;
            let number = if instruction.mnemonic() == Mnemonic::Sub { number.wrapping_neg() } else { number };
            match own {
                Known::Frame(offset) => Some(Known::Frame(offset.map(|offset| offset.wrapping_add(number)))),
                Known::Loaded(loaded) => Some(loaded.plus(number)),
                _ => None,
            }
        }
        Mnemonic::Add | Mnemonic::Sub | Mnemonic::And if matches!(own, Known::Frame(_)) => Some(Known::Frame(None)),
        Mnemonic::Shr | Mnemonic::Sar if is_immediate(instruction.op1_kind()) => {
            let Known::Loaded(loaded) = own else { return None };
            Some(Known::Loaded(Loaded {
                shift: loaded.shift.saturating_add(instruction.immediate(1) as u32),
                ..loaded
            }))
        }
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor if is_immediate(instruction.op1_kind()) => {
            matches!(own, Known::Loaded(_)).then_some(own)
        }
        _ => None,
    }
}

/// The lasting memory that an instruction's memory operand means; `None` for the frame.
pub(super) fn cell(instruction: &Instruction, notes: &Notes) -> Option<Cell> {
    let displacement = instruction.memory_displacement64();
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if instruction.is_ip_rel_memory_operand() {
        return Some(Cell::Fixed(instruction.ip_rel_memory_address()));
    }
    if [base, index].iter().any(|register| matches!(notes.get(*register), Known::Frame(_))) {
        return None;
    }
    match (base, index, instruction.segment_prefix()) {
        (Register::None, Register::None, Register::None) => Some(Cell::Fixed(displacement)),
        _ => Some(Cell::Field(displacement as i64)),
    }
}

/// Size of the memory operand in bytes.
fn width(instruction: &Instruction) -> u8 {
    instruction.memory_size().size().min(8) as u8
}

pub(super) fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate32to64
            | OpKind::Immediate64
    )
}
