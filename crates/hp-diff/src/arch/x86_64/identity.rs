//! Does code ask whether a pointer leads to a certain object?
//!
//! Objects of the running process hold pointers that were made before a patch. Where new code compares such a pointer
//! with the address of an object, or takes the distance between them, the object must be the old one, not a copy.
//! One pass in the order of the addresses; registers that hold an address of the object, or its end, are followed.
//! Two such addresses may be compared with each other: so a loop over the object ends.

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

/// What a register holds of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// The object's end, which may be another one's start.
    End,
    Address,
}

struct Search {
    object: std::ops::Range<u64>,
    registers: [Holds; 16],
}

/// Offset of the first instruction in a range of code that compares some pointer with an address of `object`.
pub(crate) fn compares_address(address: u64, bytes: &[u8], object: std::ops::Range<u64>) -> Option<u32> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut search = Search { object, registers: [Holds::Nothing; 16] };
    let (mut instruction, mut factory) = (Instruction::default(), InstructionInfoFactory::new());
    while decoder.can_decode() {
        let at = decoder.position() as u32;
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            break;
        }
        if search.asks(&instruction) {
            return Some(at);
        }
        search.note(&instruction, &mut factory);
    }
    None
}

impl Search {
    fn address(&self, value: u64) -> Holds {
        match value {
            _ if self.object.contains(&value) => Holds::Address,
            _ if value == self.object.end => Holds::End,
            _ => Holds::Nothing,
        }
    }

    fn register(&self, register: Register) -> Holds {
        let full = register.full_register();
        if full.is_gpr64() { self.registers[full.number()] } else { Holds::Nothing }
    }

    fn operand(&self, instruction: &Instruction, operand: u32) -> Holds {
        match instruction.op_kind(operand) {
            OpKind::Register => self.register(instruction.op_register(operand)),
            OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64 => {
                self.address(instruction.immediate(operand))
            }
            _ => Holds::Nothing,
        }
    }

    fn asks(&self, instruction: &Instruction) -> bool {
        let pair = || (self.operand(instruction, 0), self.operand(instruction, 1));
        match instruction.mnemonic() {
            Mnemonic::Cmp => matches!(pair(), (Holds::Address, Holds::Nothing) | (Holds::Nothing, Holds::Address)),
            Mnemonic::Sub => matches!(pair(), (Holds::Nothing, Holds::Address)),
            _ => false,
        }
    }

    fn note(&mut self, instruction: &Instruction, factory: &mut InstructionInfoFactory) {
        use Register::{R8, R9, R10, R11, RAX, RCX, RDI, RDX, RSI};
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            for register in [RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11] {
                self.registers[register.number()] = Holds::Nothing;
            }
            return;
        }
        let held = self.result(instruction);
        for used in factory.info(instruction).used_registers() {
            let full = used.register().full_register();
            if full.is_gpr64() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                self.registers[full.number()] = Holds::Nothing;
            }
        }
        let target = instruction.op0_register().full_register();
        if instruction.op0_kind() == OpKind::Register && target.is_gpr64() && held != Holds::Nothing {
            self.registers[target.number()] = held;
        }
    }

    /// What the first operand holds afterwards.
    fn result(&self, instruction: &Instruction) -> Holds {
        let either = |a, b| if a == Holds::Nothing { b } else { a };
        match instruction.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test => self.operand(instruction, 0),
            Mnemonic::Mov => self.operand(instruction, 1),
            Mnemonic::Lea if instruction.is_ip_rel_memory_operand() => {
                self.address(instruction.ip_rel_memory_address())
            }
            Mnemonic::Lea => {
                let parts = either(self.register(instruction.memory_base()), self.register(instruction.memory_index()));
                either(parts, self.address(instruction.memory_displacement64()))
            }
            Mnemonic::Add | Mnemonic::Sub => either(self.operand(instruction, 0), self.operand(instruction, 1)),
            // CMOVcc.
            _ if instruction.condition_code() != ConditionCode::None && instruction.op_count() == 2 => {
                either(self.operand(instruction, 0), self.operand(instruction, 1))
            }
            _ => Holds::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::compares_address;

    /// `lea rax,[rip+d]` at the start of 0x1000 leads to 0x2000, then `rest`.
    fn asks(rest: &[u8]) -> bool {
        let mut code = vec![0x48, 0x8d, 0x05, 0xf9, 0x0f, 0, 0];
        code.extend(rest);
        compares_address(0x1000, &code, 0x2000..0x2040).is_some()
    }

    #[test]
    fn a_pointer_from_elsewhere_is_compared() {
        assert!(asks(&[0x48, 0x39, 0x07])); // cmp [rdi],rax
        assert!(asks(&[0x48, 0x39, 0xc7])); // cmp rdi,rax
        assert!(asks(&[0x48, 0x29, 0xc7])); // sub rdi,rax
        assert!(asks(&[0x48, 0x83, 0xc0, 0x10, 0x48, 0x89, 0xc2, 0x48, 0x39, 0xd7])); // add rax,16; mov rdx,rax; cmp rdi,rdx
    }

    #[test]
    fn reading_the_object_and_walking_over_it_ask_nothing() {
        assert!(!asks(&[0x8b, 0x04, 0xb8, 0x83, 0xf8, 5])); // mov eax,[rax+rdi*4]; cmp eax,5
        // lea rdx,[rip+d] → 0x2040; cmp rax,rdx
        assert!(!asks(&[0x48, 0x8d, 0x15, 0x32, 0x10, 0, 0, 0x48, 0x39, 0xd0]));
        assert!(!asks(&[0xe8, 0, 0, 0, 0, 0x48, 0x39, 0xc7])); // call; cmp rdi,rax
    }
}
