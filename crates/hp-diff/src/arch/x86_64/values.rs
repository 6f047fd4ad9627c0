//! Numbers that code writes into memory that outlives the function, masks it with, or compares it with.
//!
//! For each register and each word of the frame there is a note: it holds a number, an address in the frame, or what was
//! loaded from some memory. The notes follow the ways that the code can take, and where two ways come together only
//! what both say is kept. Memory is known by its offset from whatever register leads to it, so that another choice of
//! registers changes nothing. This is a search, no proof: what a call does to a word of the frame whose address it was
//! given is not seen, and nothing is known where a jump through a table leads.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use rustc_hash::FxHashMap;

use super::registers::is_high_byte;
use crate::arch::{Cell, Deed, MemoryNumber};

/// What a register or a word of the frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// An address in the frame: how far from the stack pointer at the entry, if that is known.
    Frame(Option<i64>),
    Number(u64),
    Loaded(Loaded),
}

/// What was read from memory of `width` bytes, plus a number, or shifted right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loaded {
    cell: Cell,
    width: u8,
    plus: i64,
    shift: u32,
}

impl Loaded {
    fn new(cell: Cell, instruction: &Instruction) -> Loaded {
        Loaded { cell, width: width(instruction), plus: 0, shift: 0 }
    }

    fn plus(self, number: i64) -> Known {
        Known::Loaded(Loaded { plus: self.plus.wrapping_add(number), ..self })
    }

    /// The bits of memory that a number has to do with.
    fn bits(&self, number: u64) -> u64 {
        number.checked_shl(self.shift).unwrap_or(0)
    }
}

/// The notes at one place in the code.
#[derive(Clone, PartialEq, Eq)]
struct Notes {
    registers: [Known; 16],
    /// What lies in the frame, by how far it lies from the stack pointer at the entry, with its width in bytes.
    frame: BTreeMap<i64, (i64, Known)>,
}

impl Notes {
    /// Those at the entry.
    fn at_entry() -> Notes {
        Notes::with_stack_at(Some(0))
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

    fn get(&self, register: Register) -> Known {
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
    fn load(&self, instruction: &Instruction) -> Option<Known> {
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

/// All of them in one range of code, in order.
pub(crate) fn memory_numbers(address: u64, bytes: &[u8]) -> Vec<MemoryNumber> {
    let decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let code: Vec<Instruction> = decoder.into_iter().take_while(|instruction| !instruction.is_invalid()).collect();
    let mut factory = InstructionInfoFactory::new();
    let mut found = Vec::new();
    let blocks = Blocks::new(&code);
    for (first, mut notes) in blocks.notes(&mut factory) {
        for instruction in blocks.instructions(first) {
            let at = (instruction.ip() - address) as u32;
            let push = |(deed, cell, width, number): (Deed, Cell, u8, u64)| {
                let mask = if width >= 8 { u64::MAX } else { (1 << (8 * u32::from(width))) - 1 };
                found.push(MemoryNumber { at, deed, cell, width, number: number & mask });
            };
            numbers_of(instruction, &notes).into_iter().for_each(push);
            if let Some(callee) = callee(instruction).filter(|c| !(address..address + bytes.len() as u64).contains(c)) {
                let passed =
                    passed(&notes).map(|cell| MemoryNumber { at, deed: Deed::Passes, cell, width: 8, number: callee });
                found.extend(passed);
            }
            note(instruction, &mut notes, &mut factory);
        }
    }
    found
}

/// A range of code, cut where ways part or come together.
struct Blocks<'c> {
    code: &'c [Instruction],
    /// Index of the instruction at an address.
    at: FxHashMap<u64, usize>,
    /// Indices of the first instructions.
    starts: BTreeSet<usize>,
}

impl<'c> Blocks<'c> {
    fn new(code: &'c [Instruction]) -> Blocks<'c> {
        let at: FxHashMap<u64, usize> = code.iter().enumerate().map(|(n, instruction)| (instruction.ip(), n)).collect();
        let mut starts: BTreeSet<usize> = (!code.is_empty()).then_some(0).into_iter().collect();
        for (n, instruction) in code.iter().enumerate().filter(|(_, instruction)| parts(instruction)) {
            starts.extend(at.get(&instruction.near_branch_target()));
            starts.extend(Some(n + 1).filter(|next| *next < code.len()));
        }
        Blocks { code, at, starts }
    }

    fn instructions(&self, first: usize) -> &'c [Instruction] {
        let end = self.starts.range(first + 1..).next().copied().unwrap_or(self.code.len());
        &self.code[first..end]
    }

    /// True if a block that nothing leads to only fills the room before the next one.
    fn is_padding(&self, start: usize) -> bool {
        start > 0 && self.instructions(start).iter().all(|i| matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3))
    }

    /// The notes at the start of each block.
    fn notes(&self, factory: &mut InstructionInfoFactory) -> BTreeMap<usize, Notes> {
        let mut all: BTreeMap<usize, Notes> = BTreeMap::new();
        // What holds at every jump through a table: that is how those are reached that nothing else leads to.
        let mut at_tables: Option<Notes> = None;
        for &start in &self.starts {
            if all.contains_key(&start) || self.is_padding(start) {
                continue;
            }
            let notes = if start == 0 { Notes::at_entry() } else { at_tables.clone().unwrap_or_else(Notes::anywhere) };
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
fn callee(instruction: &Instruction) -> Option<u64> {
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::UnconditionalBranch => Some(instruction.near_branch_target()),
        FlowControl::IndirectCall | FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
            Some(instruction.ip_rel_memory_address())
        }
        _ => None,
    }
}

/// Lasting memory whose whole content is in the first three arguments.
fn passed(notes: &Notes) -> impl Iterator<Item = Cell> {
    [Register::RDI, Register::RSI, Register::RDX].into_iter().filter_map(|register| match notes.get(register) {
        Known::Loaded(Loaded { cell, width: 8, plus: 0, shift: 0 }) => Some(cell),
        _ => None,
    })
}

/// What one instruction does with a number and lasting memory, or with what was loaded from there.
fn numbers_of(instruction: &Instruction, notes: &Notes) -> Vec<(Deed, Cell, u8, u64)> {
    let mut deed = match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_kind() == OpKind::Memory => Deed::Stores,
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test => Deed::Masks,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => Deed::Masks,
        Mnemonic::Cmp => Deed::Compares,
        _ => return Vec::new(),
    };
    let number_in = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Register => match notes.get(instruction.op_register(operand)) {
            Known::Number(n) => Some(n),
            _ => None,
        },
        kind if is_immediate(kind) => Some(instruction.immediate(operand)),
        _ => None,
    };
    let memory_in = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Memory => match notes.load(instruction) {
            Some(Known::Loaded(loaded)) if deed != Deed::Stores => Some(loaded),
            _ => Some(Loaded::new(cell(instruction, notes)?, instruction)),
        },
        OpKind::Register if deed != Deed::Stores => match notes.get(instruction.op_register(operand)) {
            Known::Loaded(loaded) => Some(loaded),
            _ => None,
        },
        _ => None,
    };
    let same = instruction.op0_kind() == OpKind::Register && instruction.op0_register() == instruction.op1_register();
    let both = |m, n| Some((memory_in(m)?, number_in(n)?)).filter(|_| !same);
    let Some((loaded, mut number)) = both(0, 1).or_else(|| both(1, 0)) else { return Vec::new() };
    let Loaded { cell, width, plus, .. } = loaded;
    if matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc) {
        number = 1u64.checked_shl(number as u32).unwrap_or(0);
    }
    if plus == 0 {
        return vec![(deed, cell, width, loaded.bits(number))];
    }
    // `x - 5 <= 3` compares with both ends of a range.
    deed = Deed::Compares;
    vec![
        (deed, cell, width, plus.wrapping_neg() as u64),
        (deed, cell, width, number.wrapping_add_signed(plus.wrapping_neg())),
    ]
}

/// Brings the notes up to date.
fn note(instruction: &Instruction, notes: &mut Notes, factory: &mut InstructionInfoFactory) {
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        return notes.after_call();
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
fn cell(instruction: &Instruction, notes: &Notes) -> Option<Cell> {
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

fn is_immediate(kind: OpKind) -> bool {
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

#[cfg(test)]
mod tests {
    use super::memory_numbers;
    use crate::arch::{Cell, Deed};

    /// Assembled with GNU as, Intel syntax.
    fn all(bytes: &[u8]) -> Vec<(Deed, Cell, u64)> {
        memory_numbers(0x1000, bytes).into_iter().map(|n| (n.deed, n.cell, n.number)).collect()
    }

    #[test]
    fn stores_masks_and_comparisons_in_place() {
        // mov dword [rdi+8],5; and byte [rdi+0x40],0xf3; cmp word [rip+0],7
        let found = all(&[0xc7, 0x47, 8, 5, 0, 0, 0, 0x80, 0x67, 0x40, 0xf3, 0x66, 0x83, 0x3d, 0, 0, 0, 0, 7]);
        let fixed = 0x1000 + 19;
        assert_eq!(
            found,
            [
                (Deed::Stores, Cell::Field(8), 5),
                (Deed::Masks, Cell::Field(0x40), 0xf3),
                (Deed::Compares, Cell::Fixed(fixed), 7)
            ]
        );
    }

    #[test]
    fn what_was_loaded_is_followed_through_registers() {
        // mov eax,[rdi+4]; mov ecx,eax; and ecx,6; cmp ecx,2; sub eax,10; cmp eax,3
        let found = all(&[0x8b, 0x47, 4, 0x89, 0xc1, 0x83, 0xe1, 6, 0x83, 0xf9, 2, 0x83, 0xe8, 10, 0x83, 0xf8, 3]);
        let cell = Cell::Field(4);
        assert_eq!(
            found,
            [(Deed::Masks, cell, 6), (Deed::Compares, cell, 2), (Deed::Compares, cell, 10), (Deed::Compares, cell, 13)]
        );
    }

    #[test]
    fn what_is_handed_to_another_function_is_found() {
        // mov rsi,[rbx+0x28]; call 0x2000; mov rdi,[rbx+8]; jmp [rip+0]
        let found = all(&[0x48, 0x8b, 0x73, 0x28, 0xe8, 0xf7, 0x0f, 0, 0, 0x48, 0x8b, 0x7b, 8, 0xff, 0x25, 0, 0, 0, 0]);
        assert_eq!(found, [(Deed::Passes, Cell::Field(0x28), 0x2000), (Deed::Passes, Cell::Field(8), 0x1000 + 19)]);
    }

    #[test]
    fn what_is_kept_in_the_frame_is_found_again() {
        // mov rax,[rbx+0x28]; mov [rsp+8],rax; call +0; mov rdi,[rsp+8]; call 0x2000
        let found = all(&[
            0x48, 0x8b, 0x43, 0x28, 0x48, 0x89, 0x44, 0x24, 8, 0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x7c, 0x24, 8, 0xe8, 0xe8,
            0x0f, 0, 0,
        ]);
        assert_eq!(found, [(Deed::Passes, Cell::Field(0x28), 0x2000)]);
        // The same with mov dword [rsp+12],1 before the second load, and with push rax there.
        for between in [&[0xc7, 0x44, 0x24, 12, 1, 0, 0, 0][..], &[0x50]] {
            let mut code = vec![0x48, 0x8b, 0x43, 0x28, 0x48, 0x89, 0x44, 0x24, 8];
            code.extend(between);
            code.extend([0x48, 0x8b, 0x7c, 0x24, 8, 0xe8, 0, 0x10, 0, 0]);
            assert_eq!(all(&code), []);
        }
    }

    #[test]
    fn where_ways_come_together_both_must_agree() {
        // mov rdi,[rbx+8]; test eax,eax; je L; mov rdi,[rbx+16 or 8]; L: call 0x2000
        let code =
            |other: u8| [0x48, 0x8b, 0x7b, 8, 0x85, 0xc0, 0x74, 4, 0x48, 0x8b, 0x7b, other, 0xe8, 0xef, 0x0f, 0, 0];
        assert_eq!(all(&code(16)), []);
        assert_eq!(all(&code(8)), [(Deed::Passes, Cell::Field(8), 0x2000)]);
    }

    #[test]
    fn nothing_comes_from_padding() {
        // mov rdi,[rbx+8]; test eax,eax; je L; ret; padding; L: call 0x2000
        for padding in [[0x66, 0x90], [0xcc, 0xcc]] {
            let mut code = vec![0x48, 0x8b, 0x7b, 8, 0x85, 0xc0, 0x74, 3, 0xc3];
            code.extend(padding);
            code.extend([0xe8, 0xf0, 0x0f, 0, 0]);
            assert_eq!(all(&code), [(Deed::Passes, Cell::Field(8), 0x2000)]);
        }
    }

    #[test]
    fn a_loop_that_changes_a_register_leaves_nothing_known_of_it() {
        // mov rdi,[rbx+8]; L: cmp rdi,5; call +0; mov rdi,rax; jmp L
        let code = [0x48, 0x8b, 0x7b, 8, 0x48, 0x83, 0xff, 5, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xc7, 0xeb, 0xf2];
        assert_eq!(all(&code), []);
        // Without the jump back.
        assert_eq!(all(&code[..16]), [(Deed::Compares, Cell::Field(8), 5)]);
    }

    #[test]
    fn bytes_of_registers_belong_to_their_registers() {
        // movzx eax,byte [rdi+1]; mov r8b,al; cmp r8b,9; mov ah,3; cmp ah,4; cmp al,5
        let found = all(&[0x0f, 0xb6, 0x47, 1, 0x41, 0x88, 0xc0, 0x41, 0x80, 0xf8, 9, 0xb4, 3, 0x80, 0xfc, 4, 0x3c, 5]);
        assert_eq!(found, [(Deed::Compares, Cell::Field(1), 9)]);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for start in (0..program.len()).step_by(511) {
            memory_numbers(0, &program[start..program.len().min(start + 512)]);
        }
    }

    #[test]
    fn a_bit_that_is_shifted_down_first_is_the_same_bit() {
        // mov eax,[rdi+8]; shr eax,3; and eax,1
        assert_eq!(all(&[0x8b, 0x47, 8, 0xc1, 0xe8, 3, 0x83, 0xe0, 1]), [(Deed::Masks, Cell::Field(8), 8)]);
    }

    #[test]
    fn the_frame_and_what_a_call_returns_do_not_outlive_the_function() {
        // mov dword [rsp+8],5; lea rbx,[rsp+16]; mov byte [rbx],1; mov eax,[rdi]; call +0; cmp eax,3
        let found = all(&[
            0xc7, 0x44, 0x24, 8, 5, 0, 0, 0, 0x48, 0x8d, 0x5c, 0x24, 16, 0xc6, 3, 1, 0x8b, 7, 0xe8, 0, 0, 0, 0, 0x83,
            0xf8, 3,
        ]);
        assert_eq!(found, []);
    }
}
