//! The length of a text of Rust, where code has it beside the text's address.
//!
//! A `&str` is two words: an address and a length. Code that hands one on puts them into two registers for arguments that
//! follow each other, or into two words of memory that do (psABI for AMD64, section 3.2.3).

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use rustc_hash::FxHashMap;

use super::registers::written;

/// Registers of arguments, in their order.
pub(super) const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Instructions that are followed from the address on.
const NEAR: usize = 64;

/// The number that code puts beside the address that the instruction at `offset` makes, before it goes on elsewhere than to one
/// certain place.
pub(crate) fn counted(bytes: &[u8], offset: u32) -> Option<u64> {
    let code: Vec<Instruction> = Decoder::new(64, bytes, DecoderOptions::NONE).into_iter().collect();
    let at = code.iter().position(|i| i.ip() == u64::from(offset))?;
    if code[at].mnemonic() != Mnemonic::Lea || !code[at].is_ip_rel_memory_operand() {
        return None;
    }
    let mut factory = InstructionInfoFactory::new();
    let mut words = Words::default();
    let before = code[..at].iter().rev().take_while(|i| i.flow_control() == FlowControl::Next).count();
    code[at - before..at].iter().for_each(|i| words.pass(i, &mut factory));
    words.pass(&code[at], &mut factory);
    words.registers.insert(code[at].op0_register().full_register(), Word::Text);
    let mut n = at + 1;
    for _ in 0..NEAR {
        let instruction = code.get(n)?;
        match instruction.flow_control() {
            FlowControl::Next => {
                words.pass(instruction, &mut factory);
                n += 1;
            }
            FlowControl::UnconditionalBranch => {
                // A jump to code of another function is a call.
                match code.binary_search_by_key(&instruction.near_branch_target(), Instruction::ip) {
                    Ok(target) => n = target,
                    Err(_) => return words.argument(),
                }
            }
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::IndirectBranch => {
                return words.argument().or_else(|| words.stored());
            }
            _ => return words.stored(),
        }
    }
    None
}

/// Half of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Text,
    Number(u64),
}

/// What is known of registers, and of words of memory by base register and offset.
#[derive(Default)]
struct Words {
    registers: FxHashMap<Register, Word>,
    memory: BTreeMap<(Register, u64), Word>,
}

impl Words {
    fn pass(&mut self, i: &Instruction, factory: &mut InstructionInfoFactory) {
        let moves = i.mnemonic() == Mnemonic::Mov;
        let value = match i.op1_kind() {
            OpKind::Register if i.op1_register().size() == 8 => self.registers.get(&i.op1_register()).copied(),
            _ => number(i).map(Word::Number),
        };
        for register in written(i, factory) {
            self.registers.remove(&register);
            self.memory.retain(|(base, _), _| *base != register);
        }
        if moves && i.op0_kind() == OpKind::Register {
            self.registers.extend(value.map(|value| (i.op0_register().full_register(), value)));
        }
        if moves && i.op0_kind() == OpKind::Memory && i.memory_index() == Register::None {
            let place = (i.memory_base().full_register(), i.memory_displacement64());
            self.memory.remove(&place);
            self.memory.extend(value.filter(|_| i.memory_size().size() == 8).map(|value| (place, value)));
        }
    }

    /// The number in the argument behind the one that has the address.
    fn argument(&self) -> Option<u64> {
        let pairs = ARGUMENTS.iter().zip(&ARGUMENTS[1..]);
        let beside = |(first, second): (&Register, &Register)| match self.registers.get(second)? {
            Word::Number(number) if self.registers.get(first) == Some(&Word::Text) => Some(*number),
            _ => None,
        };
        pairs.into_iter().find_map(beside)
    }

    /// The number in the word behind the one that has the address.
    fn stored(&self) -> Option<u64> {
        let (base, offset) = self.memory.iter().find(|(_, word)| **word == Word::Text)?.0;
        match self.memory.get(&(*base, offset.wrapping_add(8)))? {
            Word::Number(number) => Some(*number),
            Word::Text => None,
        }
    }
}

fn number(instruction: &Instruction) -> Option<u64> {
    match instruction.op1_kind() {
        OpKind::Immediate32 => Some(u64::from(instruction.immediate32())),
        OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(instruction.immediate(1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    /// `lea rsi,[rip+0x100]`
    const MAKES: [u8; 7] = [0x48, 0x8d, 0x35, 0, 1, 0, 0];

    #[test]
    fn the_argument_behind_the_address() {
        // mov edx,10; lea rsi; mov rdi,rbx; call
        let call = [0xe8, 0, 0, 0, 0];
        let code = [&[0xba, 10, 0, 0, 0][..], &MAKES, &[0x48, 0x89, 0xdf], &call].concat();
        assert_eq!(counted(&code, 5), Some(10));
        // lea rsi; mov edx,10; mov edx,ecx; call
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0x89, 0xca], &call].concat();
        assert_eq!(counted(&code, 0), None);
        // lea rsi; mov edx,10; mov rsi,rax; call
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0x48, 0x89, 0xc6], &call].concat();
        assert_eq!(counted(&code, 0), None);
        // mov edx,10; call; lea rsi; call: the first call has changed it
        let code = [&[0xba, 10, 0, 0, 0][..], &call, &MAKES, &call].concat();
        assert_eq!(counted(&code, 10), None);
        // lea rsi; mov edx,10; jmp to another function
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0xe9, 0, 1, 0, 0]].concat();
        assert_eq!(counted(&code, 0), Some(10));
        // mov ecx,10; lea rsi; jmp L; int3; L: mov rdx,rcx; mov rdi,rsi; mov rsi,rdx; call
        let copies = [0xeb, 1, 0xcc, 0x48, 0x89, 0xca, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6];
        let code = [&[0xb9, 10, 0, 0, 0][..], &MAKES, &copies, &call].concat();
        assert_eq!(counted(&code, 5), Some(10));
        // lea rsi; mov edx,10; je
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0x74, 0]].concat();
        assert_eq!(counted(&code, 0), None);
    }

    #[test]
    fn the_word_behind_the_address() {
        // lea rsi; mov [rsp+16],rsi; mov qword [rsp+24],7; jne
        let stores = [0x48, 0x89, 0x74, 0x24, 16, 0x48, 0xc7, 0x44, 0x24, 24, 7, 0, 0, 0];
        assert_eq!(counted(&[&MAKES[..], &stores, &[0x75, 0]].concat(), 0), Some(7));
        // Not the word before it, and not with another base.
        let mut other = stores;
        other[9] = 8;
        assert_eq!(counted(&[&MAKES[..], &other, &[0xc3]].concat(), 0), None);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for start in (0..program.len()).step_by(4099) {
            counted(&[&MAKES[..], &program[start..program.len().min(start + 512)]].concat(), 0);
        }
    }
}
