//! How long a text of Rust is, by the number that goes with its address.
//!
//! Rust hands a text on as two words. They end up in two neighbouring registers of arguments, or in two neighbouring words of
//! memory, before the code leaves the run of instructions that makes the address.

use iced_x86::Register::{self, R8, R9, RCX, RDI, RDX, RSI};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};
use rustc_hash::{FxHashMap, FxHashSet};

/// What is known at one place of the way.
#[derive(Default)]
struct Known {
    numbers: FxHashMap<Register, u64>,
    /// The registers that have the address.
    texts: FxHashSet<Register>,
    /// Words of memory, by base register and offset: a number, or the address.
    words: FxHashMap<(Register, u64), Option<u64>>,
}

/// Jumps that are followed.
const JUMPS: usize = 8;

/// The number beside the address that the instruction at offset `at` makes.
pub(crate) fn length(bytes: &[u8], at: usize) -> Option<u64> {
    let mut known = Known::default();
    let mut factory = InstructionInfoFactory::new();
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let made = loop {
        let i = decoder.can_decode().then(|| decoder.decode())?;
        if i.flow_control() != FlowControl::Next {
            known = Known::default();
            continue;
        }
        known.see(&i, &mut factory);
        if i.ip() == at as u64 {
            break i;
        }
    };
    if made.mnemonic() != Mnemonic::Lea {
        return None;
    }
    known.texts.insert(made.op0_register().full_register());
    let mut jumps = 0;
    while decoder.can_decode() {
        let i = decoder.decode();
        match i.flow_control() {
            FlowControl::Next => known.see(&i, &mut factory),
            FlowControl::UnconditionalBranch if (i.near_branch_target() as usize) < bytes.len() && jumps < JUMPS => {
                jumps += 1;
                decoder.set_position(i.near_branch_target() as usize).ok()?;
                decoder.set_ip(i.near_branch_target());
            }
            FlowControl::ConditionalBranch | FlowControl::Return => return known.in_words(),
            _ => return known.in_words().or_else(|| known.in_registers()),
        }
    }
    None
}

impl Known {
    fn see(&mut self, i: &Instruction, factory: &mut InstructionInfoFactory) {
        let whole = i.op1_kind() == OpKind::Register && i.op1_register().size() == 8;
        let number = match i.op1_kind() {
            OpKind::Immediate32 => Some(u64::from(i.immediate32())),
            OpKind::Immediate64 | OpKind::Immediate8to64 | OpKind::Immediate32to64 => Some(i.immediate(1)),
            OpKind::Register if whole => self.numbers.get(&i.op1_register()).copied(),
            _ => None,
        };
        let is_text = whole && self.texts.contains(&i.op1_register());
        let moves = i.mnemonic() == Mnemonic::Mov;
        if moves && i.op0_kind() == OpKind::Memory && i.memory_index() == Register::None {
            let place = (i.memory_base(), i.memory_displacement64());
            self.words.remove(&place);
            if i.memory_size().size() == 8 && (is_text || number.is_some()) {
                self.words.insert(place, number);
            }
        }
        for used in factory.info(i).used_registers() {
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None) {
                let register = used.register().full_register();
                self.numbers.remove(&register);
                self.texts.remove(&register);
                self.words.retain(|(base, _), _| base.full_register() != register);
            }
        }
        if moves && i.op0_kind() == OpKind::Register {
            let to = i.op0_register().full_register();
            self.numbers.extend(number.map(|number| (to, number)));
            self.texts.extend(is_text.then_some(to));
        }
    }

    fn in_registers(&self) -> Option<u64> {
        let order = [RDI, RSI, RDX, RCX, R8, R9];
        let mut pairs = order.iter().zip(&order[1..]).filter(|(first, _)| self.texts.contains(first));
        pairs.find_map(|(_, beside)| self.numbers.get(beside).copied())
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
