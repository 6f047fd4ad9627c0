//! Numbers that code writes into memory that outlives the function, masks it with, or compares it with, and what it hands
//! from there to other functions.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind};

use super::notes::{ARGUMENTS, Blocks, Known, Loaded, Notes, callee, cell, code, is_immediate, note};
use crate::arch::{Cell, Deed, MemoryNumber};

/// All of them in one range of code, in order.
pub(crate) fn memory_numbers(address: u64, bytes: &[u8]) -> Vec<MemoryNumber> {
    let code = code(address, bytes);
    let mut factory = InstructionInfoFactory::new();
    let mut found = Vec::new();
    let blocks = Blocks::new(&code);
    for (first, mut notes) in blocks.notes(&Notes::at_entry(false), &mut factory) {
        for instruction in blocks.instructions(first) {
            let at = (instruction.ip() - address) as u32;
            let push = |(deed, cell, width, number): (Deed, Cell, u8, u64)| {
                let mask = if width >= 8 { u64::MAX } else { (1 << (8 * u32::from(width))) - 1 };
                found.push(MemoryNumber { at, deed, cell, width, number: number & mask });
            };
            numbers_of(instruction, &notes).into_iter().for_each(push);
            if let Some(callee) = callee(instruction).filter(|c| !(address..address + bytes.len() as u64).contains(c)) {
                let passed = passed(&notes).map(|(argument, cell)| MemoryNumber {
                    at,
                    deed: Deed::Passes(argument),
                    cell,
                    width: 8,
                    number: callee,
                });
                found.extend(passed);
            }
            note(instruction, &mut notes, &mut factory);
        }
    }
    found
}

/// Lasting memory whose whole content is in one of the first three arguments, and which, from 0.
fn passed(notes: &Notes) -> impl Iterator<Item = (u8, Cell)> {
    (0..3).zip(ARGUMENTS).filter_map(|(argument, register)| match notes.get(register) {
        Known::Loaded(Loaded { cell, width: 8, plus: 0, shift: 0 }) => Some((argument, cell)),
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
        assert_eq!(
            found,
            [(Deed::Passes(1), Cell::Field(0x28), 0x2000), (Deed::Passes(0), Cell::Field(8), 0x1000 + 19)]
        );
    }

    #[test]
    fn what_is_kept_in_the_frame_is_found_again() {
        // mov rax,[rbx+0x28]; mov [rsp+8],rax; call +0; mov rdi,[rsp+8]; call 0x2000
        let found = all(&[
            0x48, 0x8b, 0x43, 0x28, 0x48, 0x89, 0x44, 0x24, 8, 0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x7c, 0x24, 8, 0xe8, 0xe8,
            0x0f, 0, 0,
        ]);
        assert_eq!(found, [(Deed::Passes(0), Cell::Field(0x28), 0x2000)]);
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
        assert_eq!(all(&code(8)), [(Deed::Passes(0), Cell::Field(8), 0x2000)]);
    }

    #[test]
    fn nothing_comes_from_padding() {
        // mov rdi,[rbx+8]; test eax,eax; je L; ret; padding; L: call 0x2000
        for padding in [[0x66, 0x90], [0xcc, 0xcc]] {
            let mut code = vec![0x48, 0x8b, 0x7b, 8, 0x85, 0xc0, 0x74, 3, 0xc3];
            code.extend(padding);
            code.extend([0xe8, 0xf0, 0x0f, 0, 0]);
            assert_eq!(all(&code), [(Deed::Passes(0), Cell::Field(8), 0x2000)]);
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
