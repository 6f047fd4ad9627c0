//! Instructions rewritten to reach something whose address only a pointer slot holds.
//!
//! Position-dependent code, and code that reaches a library's variable through its own copy of it (`R_X86_64_COPY`), has the
//! address in the instruction. A running process may have the thing at an address that no instruction of 32 bits
//! can hold. Encodings after the Intel SDM, volume 2.
//!
//! ```text
//! lea sym(%rip),%r       mov slot(%rip),%r                   in place
//! mov $sym,%r            mov slot(%rip),%r                   in place where it has room, else in an island
//! op  sym+N(%rip),…      jmp island; island:
//!                        lea -0x80(%rsp),%rsp                past what a leaf function keeps below the stack pointer
//!                        push %x                             a register that the instruction does not use
//!                        mov slot(%rip),%x
//!                        op  N(%x),…                         or `op %x,…` of `op $sym,…`
//!                        pop %x
//!                        lea 0x80(%rsp),%rsp
//!                        jmp back
//! ```
//!
//! None of what is added touches the flags.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use crate::arch::{Site, SlotIsland, ThroughSlot};

/// Bytes that a leaf function may keep below the stack pointer (psABI for AMD64, 3.2.2, the red zone).
const RED_ZONE: u8 = 0x80;
/// Size of `jmp rel32`.
const JUMP: usize = 5;
/// Size of `mov slot(%rip),%r64`.
const LOAD: usize = 7;

/// Registers that no frame is found by.
const SPARE: [Register; 5] = [Register::RAX, Register::RCX, Register::RDX, Register::RSI, Register::RDI];

/// Rewrites the instruction of `site`, one of `code`. Its field means `offset` bytes behind what the slot holds. `None` where
/// that has no form here.
pub(crate) fn through_slot(code: &[u8], site: &Site, offset: i32) -> Option<ThroughSlot> {
    let bytes = code.get(site.instruction as usize..site.end as usize)?;
    let field = (site.offset - site.instruction) as usize;
    let instruction = decoded(bytes)?;
    if instruction.flow_control() != FlowControl::Next {
        return None;
    }
    if instruction.is_ip_rel_memory_operand() {
        return match instruction.mnemonic() {
            Mnemonic::Lea if offset == 0 && field == 3 && bytes[1] == 0x8d => {
                let mut bytes = bytes.to_vec();
                bytes[1] = 0x8b;
                bytes[field..].fill(0);
                Some(ThroughSlot { bytes, slot: Some(field), island: None })
            }
            _ => memory(bytes, field, &instruction, offset),
        };
    }
    if field + usize::from(site.width) != bytes.len() {
        return None;
    }
    let number = [OpKind::Immediate32, OpKind::Immediate32to64, OpKind::Immediate64];
    let moves = instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Register
        && number.contains(&instruction.op1_kind());
    let to = instruction.op0_register().full_register();
    match moves && to != Register::RSP && instruction.op0_register().size() >= 4 {
        true => Some(immediate(bytes.len(), to, offset)),
        false => operand(bytes, field, &instruction, offset),
    }
}

/// `mov $sym+offset,%r`.
fn immediate(length: usize, to: Register, offset: i32) -> ThroughSlot {
    let mut load = load(to);
    if offset == 0 && length >= LOAD {
        load.resize(length, 0x90);
        return ThroughSlot { bytes: load, slot: Some(3), island: None };
    }
    load.extend(add(to, offset));
    leave(length, SlotIsland { code: load, slot: 3, lowered: Vec::new() })
}

/// An instruction with an operand in memory at `sym+offset`.
fn memory(bytes: &[u8], field: usize, instruction: &Instruction, offset: i32) -> Option<ThroughSlot> {
    if instruction.segment_prefix() != Register::None
        || instruction.memory_base() != Register::RIP
        || bytes.len() < JUMP
    {
        return None;
    }
    let used = used(instruction);
    if used.contains(&Register::RSP) {
        return None;
    }
    let spare = SPARE.into_iter().find(|r| !used.contains(r))?;
    let mut moved = bytes.to_vec();
    let modrm = field.checked_sub(1)?;
    moved[modrm] = moved[modrm] & 0x38 | 0x80 | spare.number() as u8;
    moved[field..field + 4].copy_from_slice(&offset.to_le_bytes());
    let again = decoded(&moved)?;
    let same = again.code() == instruction.code()
        && again.memory_base() == spare
        && again.memory_index() == Register::None
        && again.memory_displacement64() == i64::from(offset) as u64
        && again.len() == moved.len();
    if !same {
        return None;
    }
    Some(with_spare(bytes.len(), spare, moved))
}

/// `op $sym+offset,…` of 64 bits, where the number is one operand of a move or of arithmetic.
fn operand(bytes: &[u8], field: usize, instruction: &Instruction, offset: i32) -> Option<ThroughSlot> {
    if instruction.op_count() != 2 || instruction.op1_kind() != OpKind::Immediate32to64 {
        return None;
    }
    let used = used(instruction);
    let spare = SPARE.into_iter().find(|r| !used.contains(r))?;
    let number = spare.number() as u8;
    let (opcode, rest) = match bytes.get(..field)? {
        // `op $n,%rax` has an opcode without a ModRM byte.
        [0x48, op @ (0x05 | 0x0d | 0x25 | 0x2d | 0x35 | 0x3d)] => ([0x48, op & 0x38 | 1], vec![0xc0]),
        [rex @ 0x48..=0x4b, op @ (0x81 | 0xc7), rest @ ..] => {
            let modrm = *rest.first()?;
            let new = if *op == 0xc7 { 0x89 } else { modrm & 0x38 | 1 };
            let mut rest = rest.to_vec();
            rest[0] &= !0x38;
            if instruction.memory_base() == Register::RSP {
                // The stack pointer is lower there.
                let distance = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
                let below = i32::from(RED_ZONE) + 8;
                rest = vec![0x84, *rest.get(1)?];
                rest.extend(distance.checked_add(below)?.to_le_bytes());
            } else if used.contains(&Register::RSP) {
                return None;
            }
            ([*rex, new], rest)
        }
        _ => return None,
    };
    let mut moved = opcode.to_vec();
    moved.extend(rest);
    moved[2] |= number << 3;
    let again = decoded(&moved)?;
    let same = again.mnemonic() == instruction.mnemonic()
        && again.op0_kind() == instruction.op0_kind()
        && again.op1_kind() == OpKind::Register
        && again.op1_register() == spare;
    let code = [add(spare, offset), moved].concat();
    same.then(|| with_spare(bytes.len(), spare, code))
}

/// The whole registers that an instruction reads or writes.
fn used(instruction: &Instruction) -> Vec<Register> {
    let mut info = InstructionInfoFactory::new();
    info.info(instruction).used_registers().iter().map(|u| u.register().full_register()).collect()
}

/// An island in which `code` may use a register after a slot was read into it.
fn with_spare(length: usize, spare: Register, then: Vec<u8>) -> ThroughSlot {
    let number = spare.number() as u8;
    let mut code = vec![0x48, 0x8d, 0x64, 0x24, RED_ZONE, 0x50 | number];
    let slot = code.len() + 3;
    code.extend(load(spare));
    code.extend(then);
    code.push(0x58 | number);
    let (popped, below) = (code.len() as u32, u32::from(RED_ZONE));
    code.extend([0x48, 0x8d, 0xa4, 0x24, RED_ZONE, 0, 0, 0]);
    let lowered = vec![(5, below), (6, below + 8), (popped, below), (code.len() as u32, 0)];
    leave(length, SlotIsland { code, slot, lowered })
}

/// `lea offset(%r),%r`; nothing for no offset.
fn add(to: Register, offset: i32) -> Vec<u8> {
    if offset == 0 {
        return Vec::new();
    }
    let number = to.number() as u8;
    let (high, low) = (number >> 3, number & 7);
    let mut code = vec![0x48 | high << 2 | high, 0x8d, 0x80 | low << 3 | low];
    // R12 as a base needs a SIB byte.
    code.extend((low == 4).then_some(0x24));
    code.extend(offset.to_le_bytes());
    code
}

/// A jump to an island, as long as the instruction in whose place it is; and the island's jump back.
fn leave(length: usize, mut island: SlotIsland) -> ThroughSlot {
    let mut bytes = vec![0xe9, 0, 0, 0, 0];
    bytes.resize(length.max(JUMP), 0xcc);
    island.code.extend([0xe9, 0, 0, 0, 0]);
    ThroughSlot { bytes, slot: None, island: Some(island) }
}

/// `mov slot(%rip),%r64`.
fn load(to: Register) -> Vec<u8> {
    let number = to.number() as u8;
    vec![0x48 | (number >> 3) << 2, 0x8b, 0x05 | (number & 7) << 3, 0, 0, 0, 0]
}

fn decoded(bytes: &[u8]) -> Option<Instruction> {
    let instruction = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    (!instruction.is_invalid() && instruction.len() == bytes.len()).then_some(instruction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{DecodeRoom, decode};

    /// The instruction as it becomes, and its island, in words. The variable lies at 0x40_0000.
    fn rewritten(bytes: &[u8], offset: i32) -> Option<(Vec<String>, Vec<String>)> {
        let code = decode(0x1000, bytes, Some(&(0x40_0000..0x40_1000)), &mut DecodeRoom::default());
        let site = code.sites.get(0).expect("a site");
        let made = through_slot(bytes, &site, offset)?;
        assert_eq!(made.bytes.len(), bytes.len());
        let text = |bytes: &[u8]| Decoder::new(64, bytes, DecoderOptions::NONE).iter().map(|i| i.to_string()).collect();
        Some((text(&made.bytes), made.island.map(|i| text(&i.code)).unwrap_or_default()))
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn an_address_is_loaded_in_place_where_it_has_room() {
        // lea rdi,[rip+..]; mov rax,imm32; mov r9,imm64
        for (code, register) in [
            (&[0x48, 0x8d, 0x3d, 0xf9, 0xef, 0x3f, 0][..], "rdi"),
            (&[0x48, 0xc7, 0xc0, 0, 0, 0x40, 0], "rax"),
            (&[0x49, 0xb9, 0, 0, 0x40, 0, 0, 0, 0, 0], "r9"),
        ] {
            let (here, island) = rewritten(code, 0).expect(register);
            assert_eq!(here[0], format!("mov {register},[rel 7]"));
            assert!(here[1..].iter().all(|i| i == "nop") && island.is_empty(), "{here:?}");
        }
    }

    #[test]
    fn a_short_move_and_one_with_an_offset_get_an_island() {
        // mov edi,imm32; mov r12d,imm32
        let (here, island) = rewritten(&[0xbf, 0, 0, 0x40, 0], 0).expect("edi");
        assert_eq!((here[0].as_str(), island), ("jmp 5", words(&["mov rdi,[rel 7]", "jmp 000000000000000Ch"])));
        let (_, island) = rewritten(&[0x41, 0xbc, 0, 0, 0x40, 0], 0x18).expect("r12d");
        assert_eq!(island[..2], words(&["mov r12,[rel 7]", "lea r12,[r12+18h]"]));
    }

    #[test]
    fn an_operand_in_memory_is_reached_by_a_register_that_is_free() {
        // add rax,[rip+..]
        let (here, island) = rewritten(&[0x48, 0x03, 0x05, 0xf9, 0xef, 0x3f, 0], 8).expect("add");
        assert_eq!(here[0], "jmp 5");
        let expected =
            ["lea rsp,[rsp-80h]", "push rcx", "mov rcx,[rel 0Dh]", "add rax,[rcx+8]", "pop rcx", "lea rsp,[rsp+80h]"];
        assert_eq!(island[..6], words(&expected));
        // cmpxchg16b [rip+..] uses four; movl $5,[rip+..]; vaddpd ymm1,ymm2,[rip+..]; lock inc [rip+..]
        let more: [(&[u8], &str); 4] = [
            (&[0xf0, 0xff, 0x05, 0xf9, 0xef, 0x3f, 0], "lock inc dword [rax+8]"),
            (&[0x48, 0x0f, 0xc7, 0x0d, 0xf8, 0xef, 0x3f, 0], "cmpxchg16b [rsi+8]"),
            (&[0xc7, 0x05, 0xf6, 0xef, 0x3f, 0, 5, 0, 0, 0], "mov dword [rax+8],5"),
            (&[0xc5, 0xed, 0x58, 0x0d, 0xf8, 0xef, 0x3f, 0], "vaddpd ymm1,ymm2,[rax+8]"),
        ];
        for (code, moved) in more {
            assert!(rewritten(code, 8).expect(moved).1.contains(&moved.to_owned()));
        }
    }

    #[test]
    fn a_number_that_is_compared_or_stored_becomes_a_register() {
        // cmp rax,imm32; cmp r13,imm32; mov qword [rsp+8],imm32; mov qword [rdi+rcx*8],imm32; add qword [rbp-8],imm32
        let forms: [(&[u8], &str); 5] = [
            (&[0x48, 0x3d, 0, 0, 0x40, 0], "cmp rax,rcx"),
            (&[0x49, 0x81, 0xfd, 0, 0, 0x40, 0], "cmp r13,rax"),
            (&[0x48, 0xc7, 0x44, 0x24, 8, 0, 0, 0x40, 0], "mov [rsp+90h],rax"),
            (&[0x48, 0xc7, 0x04, 0xcf, 0, 0, 0x40, 0], "mov [rdi+rcx*8],rax"),
            (&[0x48, 0x81, 0x45, 0xf8, 0, 0, 0x40, 0], "add [rbp-8],rax"),
        ];
        for (code, moved) in forms {
            let (here, island) = rewritten(code, 0).expect(moved);
            assert!(here[0].starts_with("jmp") && island[3] == moved, "{island:?}");
            assert_eq!(rewritten(code, 8).expect(moved).1[4], moved);
        }
    }

    #[test]
    fn what_has_no_form_stays_refused() {
        // push [rip+..]; call [rip+..]; mov rsp,[rip+..]; mov rsp,imm32; push imm32; add rsp,imm32
        let refused: [&[u8]; 6] = [
            &[0xff, 0x35, 0xfa, 0xef, 0x3f, 0],
            &[0xff, 0x15, 0xfa, 0xef, 0x3f, 0],
            &[0x48, 0x8b, 0x25, 0xf9, 0xef, 0x3f, 0],
            &[0x48, 0xc7, 0xc4, 0, 0, 0x40, 0],
            &[0x68, 0, 0, 0x40, 0],
            &[0x48, 0x81, 0xc4, 0, 0, 0x40, 0],
        ];
        for code in refused {
            assert_eq!(rewritten(code, 0), None, "{code:x?}");
        }
    }
}
