//! How long a text of Rust is, by the number that goes with its address.
//!
//! Rust hands a text on as two words. They end up in two neighbouring registers of arguments, or in two neighbouring words of
//! memory, before the code leaves the run of instructions that makes the address.

use iced_x86::Register::{self, R8, R9, RCX, RDI, RDX, RSI};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};
use rustc_hash::FxHashMap;

/// What is known at one place of a run.
#[derive(Default)]
struct Known {
    numbers: FxHashMap<Register, u64>,
    /// The register that has the address.
    text: Option<Register>,
    /// Words of memory, by base register and offset: a number, or the address.
    words: FxHashMap<(Register, u64), Option<u64>>,
}

/// The number beside the address that the instruction at offset `at` makes.
pub(crate) fn length(bytes: &[u8], at: usize) -> Option<u64> {
    let (mut known, mut made) = (Known::default(), false);
    let mut factory = InstructionInfoFactory::new();
    for i in &mut Decoder::new(64, bytes, DecoderOptions::NONE) {
        let here = i.ip() == at as u64;
        if i.flow_control() != FlowControl::Next {
            if made {
                let hands_on = !matches!(i.flow_control(), FlowControl::ConditionalBranch | FlowControl::Return);
                return known.in_words().or_else(|| known.in_registers().filter(|_| hands_on));
            }
            known = Known::default();
            continue;
        }
        known.see(&i, &mut factory);
        if here {
            if i.mnemonic() != Mnemonic::Lea {
                return None;
            }
            known.text = Some(i.op0_register().full_register());
            made = true;
        }
    }
    None
}

impl Known {
    fn see(&mut self, i: &Instruction, factory: &mut InstructionInfoFactory) {
        let number = match i.op1_kind() {
            OpKind::Immediate32 => Some(u64::from(i.immediate32())),
            OpKind::Immediate64 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(i.immediate(1)),
            _ => None,
        };
        let moves = i.mnemonic() == Mnemonic::Mov;
        if moves && i.op0_kind() == OpKind::Memory && i.memory_index() == Register::None {
            let place = (i.memory_base(), i.memory_displacement64());
            let is_text = i.op1_kind() == OpKind::Register && Some(i.op1_register()) == self.text;
            self.words.remove(&place);
            if i.memory_size().size() == 8 && (is_text || number.is_some()) {
                self.words.insert(place, number);
            }
        }
        for used in factory.info(i).used_registers() {
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None) {
                let register = used.register().full_register();
                self.numbers.remove(&register);
                self.text = self.text.filter(|text| *text != register);
                self.words.retain(|(base, _), _| base.full_register() != register);
            }
        }
        if let (true, OpKind::Register, Some(number)) = (moves, i.op0_kind(), number) {
            self.numbers.insert(i.op0_register().full_register(), number);
        }
    }

    fn in_registers(&self) -> Option<u64> {
        let order = [RDI, RSI, RDX, RCX, R8, R9];
        let (_, beside) = order.iter().zip(&order[1..]).find(|(first, _)| Some(**first) == self.text)?;
        self.numbers.get(beside).copied()
    }

    fn in_words(&self) -> Option<u64> {
        let mut texts = self.words.iter().filter(|(_, word)| word.is_none());
        let ((base, offset), _) = texts.next().filter(|_| texts.next().is_none())?;
        self.words.get(&(*base, offset.wrapping_add(8))).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::length;

    #[test]
    fn a_number_beside_the_address_and_no_other() {
        // lea rdi,[rip]; mov esi,N; call
        let call = |second: u8| [0x48, 0x8d, 0x3d, 0, 0, 0, 0, second, 9, 0, 0, 0, 0xe8, 0, 0, 0, 0];
        assert_eq!(length(&call(0xbe), 0), Some(9));
        assert_eq!(length(&call(0xba), 0), None, "edx is not beside rdi");
        // lea rax,[rip]; mov [rdi+8],rax; mov qword [rdi+16],9; ret
        let stored = [0x48, 0x8d, 5, 0, 0, 0, 0, 0x48, 0x89, 0x47, 8, 0x48, 0xc7, 0x47, 16, 9, 0, 0, 0, 0xc3];
        assert_eq!(length(&stored, 0), Some(9));
        let elsewhere = {
            let mut code = stored;
            code[14] = 24;
            code
        };
        assert_eq!(length(&elsewhere, 0), None);
    }
}
