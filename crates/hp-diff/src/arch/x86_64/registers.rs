//! Which registers code changes, beside those that it must give back.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};
use rustc_hash::FxHashSet;

/// Registers that a function must leave as they were (psABI for AMD64, figure 3.4), beside the stack pointer.
pub(super) const KEPT: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// The whole registers that an instruction may write, in its own operands or by its nature.
pub(super) fn written(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Vec<Register> {
    let used = factory.info(instruction).used_registers().iter();
    let writes = used.filter(|u| !matches!(u.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None));
    writes.map(|u| u.register().full_register()).collect()
}

/// `AH` and its like are not the low end of their register.
pub(super) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// True if an operand is memory.
pub(super) fn has_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory)
}

/// Numbers of the registers that these instructions may change and need not give back; `None` if they call through a
/// pointer, which may change all.
pub(crate) fn changed_registers(bytes: &[u8]) -> Option<FxHashSet<u32>> {
    let mut info = InstructionInfoFactory::new();
    let mut changed = FxHashSet::default();
    for instruction in &mut Decoder::new(64, bytes, DecoderOptions::NONE) {
        if instruction.is_invalid() || instruction.flow_control() == FlowControl::IndirectCall {
            return None;
        }
        for used in info.info(&instruction).used_registers() {
            let register = used.register().full_register();
            let writes =
                !matches!(used.access(), OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            if writes && register != Register::RSP && !KEPT.contains(&register) {
                changed.insert(register as u32);
            }
        }
    }
    Some(changed)
}

/// Whether the instruction at an offset is a call.
pub(crate) fn is_call(bytes: &[u8], at: u32) -> bool {
    let rest = bytes.get(at as usize..).unwrap_or_default();
    let instruction = Decoder::new(64, rest, DecoderOptions::NONE).decode();
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

/// Whether one of the instructions returns, or jumps through a pointer.
pub(crate) fn returns(bytes: &[u8]) -> bool {
    let leaves = |control| matches!(control, FlowControl::Return | FlowControl::IndirectBranch);
    Decoder::new(64, bytes, DecoderOptions::NONE).iter().any(|instruction| leaves(instruction.flow_control()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_counts_and_what_is_kept_does_not() {
        // mov r8d,1; push rbx; mov ebx,ecx; movaps xmm3,xmm1; cmp rsi,rdi; pop rbx; ret
        let code = [0x41, 0xb8, 1, 0, 0, 0, 0x53, 0x89, 0xcb, 0x0f, 0x28, 0xd9, 0x48, 0x39, 0xfe, 0x5b, 0xc3];
        let expected = [Register::R8, Register::ZMM3].map(|register| register as u32);
        assert_eq!(changed_registers(&code), Some(expected.into_iter().collect()));
        // call rax
        assert_eq!(changed_registers(&[0xff, 0xd0]), None);
    }
}
