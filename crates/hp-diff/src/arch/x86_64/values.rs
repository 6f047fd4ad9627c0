//! Numbers that code writes into memory that outlives the function, masks it with, or compares it with.
//!
//! One pass from the first instruction to the last, with a note for each register: it holds a number, an address in
//! the stack frame, or what was loaded from some memory. Memory is known by its offset from whatever register leads to
//! it, so that another choice of registers changes nothing. This is a search, no proof: what comes together from two
//! branches is seen as the nearer one left it.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::arch::{Cell, Deed, MemoryNumber};

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// An address in the frame.
    Frame,
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

/// The general registers' notes.
struct Registers([Known; 16]);

impl Registers {
    fn new() -> Registers {
        let mut all = [Known::Nothing; 16];
        all[Register::RSP.number()] = Known::Frame;
        Registers(all)
    }

    fn get(&self, register: Register) -> Known {
        match register.full_register() {
            full if full.is_gpr64() && !is_high_byte(register) => self.0[full.number()],
            _ => Known::Nothing,
        }
    }

    fn set(&mut self, register: Register, known: Known) {
        let full = register.full_register();
        if full.is_gpr64() && full != Register::RSP {
            self.0[full.number()] = if is_high_byte(register) { Known::Nothing } else { known };
        }
    }

    /// Forgets what a called function may change (psABI for AMD64, section 3.2.1).
    fn after_call(&mut self) {
        use Register::{R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI};
        for register in [RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11] {
            self.set(register, Known::Nothing);
        }
    }

    /// Forgets all but the frame: what follows is reached from elsewhere.
    fn after_jump(&mut self) {
        for known in self.0.iter_mut().filter(|k| **k != Known::Frame) {
            *known = Known::Nothing;
        }
    }
}

/// All of them in one range of code, in order.
pub(crate) fn memory_numbers(address: u64, bytes: &[u8]) -> Vec<MemoryNumber> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let (mut registers, mut factory) = (Registers::new(), InstructionInfoFactory::new());
    let (mut instruction, mut found) = (Instruction::default(), Vec::new());
    while decoder.can_decode() {
        let at = decoder.position() as u32;
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            break;
        }
        let push = |(deed, cell, width, number): (Deed, Cell, u8, u64)| {
            let mask = if width >= 8 { u64::MAX } else { (1 << (8 * u32::from(width))) - 1 };
            found.push(MemoryNumber { at, deed, cell, width, number: number & mask });
        };
        numbers_of(&instruction, &registers).into_iter().for_each(push);
        if let Some(callee) = callee(&instruction).filter(|c| !(address..address + bytes.len() as u64).contains(c)) {
            let passed =
                passed(&registers).map(|cell| MemoryNumber { at, deed: Deed::Passes, cell, width: 8, number: callee });
            found.extend(passed);
        }
        note(&instruction, &mut registers, &mut factory);
    }
    found
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
fn passed(registers: &Registers) -> impl Iterator<Item = Cell> {
    [Register::RDI, Register::RSI, Register::RDX].into_iter().filter_map(|register| match registers.get(register) {
        Known::Loaded(Loaded { cell, width: 8, plus: 0, shift: 0 }) => Some(cell),
        _ => None,
    })
}

/// What one instruction does with a number and lasting memory, or with what was loaded from there.
fn numbers_of(instruction: &Instruction, registers: &Registers) -> Vec<(Deed, Cell, u8, u64)> {
    let mut deed = match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_kind() == OpKind::Memory => Deed::Stores,
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test => Deed::Masks,
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => Deed::Masks,
        Mnemonic::Cmp => Deed::Compares,
        _ => return Vec::new(),
    };
    let number_in = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Register => match registers.get(instruction.op_register(operand)) {
            Known::Number(n) => Some(n),
            _ => None,
        },
        kind if is_immediate(kind) => Some(instruction.immediate(operand)),
        _ => None,
    };
    let memory_in = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Memory => Some(Loaded::new(cell(instruction, registers)?, instruction)),
        OpKind::Register if deed != Deed::Stores => match registers.get(instruction.op_register(operand)) {
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
fn note(instruction: &Instruction, registers: &mut Registers, factory: &mut InstructionInfoFactory) {
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::IndirectCall => return registers.after_call(),
        FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch => {
            return registers.after_jump();
        }
        _ => {}
    }
    let known = result(instruction, registers);
    let target = instruction.op0_register();
    let keeps = matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt);
    for used in factory.info(instruction).used_registers() {
        let written = matches!(
            used.access(),
            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
        );
        if written && !keeps {
            registers.set(used.register(), Known::Nothing);
        }
    }
    if let Some(known) = known.filter(|_| instruction.op0_kind() == OpKind::Register) {
        registers.set(target, known);
    }
}

/// What the first operand, a register, holds afterwards; `None` if that is not known.
fn result(instruction: &Instruction, registers: &Registers) -> Option<Known> {
    let own = registers.get(instruction.op0_register());
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => match instruction.op1_kind() {
            OpKind::Memory => cell(instruction, registers).map(|c| Known::Loaded(Loaded::new(c, instruction))),
            OpKind::Register => Some(registers.get(instruction.op1_register())),
            kind if is_immediate(kind) => Some(Known::Number(instruction.immediate(1))),
            _ => None,
        },
        Mnemonic::Xor | Mnemonic::Sub if instruction.op0_register() == instruction.op1_register() => {
            Some(Known::Number(0))
        }
        Mnemonic::Lea => match registers.get(instruction.memory_base()) {
            Known::Frame => Some(Known::Frame),
            Known::Loaded(loaded) if instruction.memory_index() == Register::None => {
                Some(loaded.plus(instruction.memory_displacement64() as i64))
            }
            _ => None,
        },
        Mnemonic::Add | Mnemonic::Sub if own == Known::Frame => Some(own),
        Mnemonic::Sub | Mnemonic::Add if is_immediate(instruction.op1_kind()) => {
            let Known::Loaded(loaded) = own else { return None };
            let number = instruction.immediate(1) as i64;
            Some(loaded.plus(if instruction.mnemonic() == Mnemonic::Sub { number.wrapping_neg() } else { number }))
        }
        Mnemonic::Shr | Mnemonic::Sar if is_immediate(instruction.op1_kind()) => {
            let Known::Loaded(loaded) = own else { return None };
            Some(Known::Loaded(Loaded { shift: loaded.shift + instruction.immediate(1) as u32, ..loaded }))
        }
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor if is_immediate(instruction.op1_kind()) => {
            matches!(own, Known::Loaded(_)).then_some(own)
        }
        _ => None,
    }
}

/// The lasting memory that an instruction's memory operand means; `None` for the frame.
fn cell(instruction: &Instruction, registers: &Registers) -> Option<Cell> {
    let displacement = instruction.memory_displacement64();
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if instruction.is_ip_rel_memory_operand() {
        return Some(Cell::Fixed(instruction.ip_rel_memory_address()));
    }
    if registers.get(base) == Known::Frame || registers.get(index) == Known::Frame {
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

/// `AH` and its like are not the low end of their register.
fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
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
