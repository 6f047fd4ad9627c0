//! Does code only compare an address that it makes, as a loop does with the end of what it goes over?

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::derived::{Held, Holder, follow};
use super::registers::has_memory;
use super::ways::Decoded;

/// True if all that becomes of the address that the instruction at `made` makes is that it is compared with others, or that
/// something before it is read or written.
pub(crate) fn is_limit(code: &Decoded, made: u64) -> bool {
    let Some(first) = code.at(made) else { return false };
    let instruction = &code.instructions[first];
    if instruction.mnemonic() == Mnemonic::Cmp {
        return !has_memory(instruction);
    }
    let (mut compared, mut other) = (false, false);
    let (mut factory, mut info) = (InstructionInfoFactory::new(), InstructionInfoFactory::new());
    follow(code, first, &mut factory, &mut |n, held| {
        let Held { holder: Holder::Register(register), offset, .. } = held else { return };
        let instruction = &code.instructions[n];
        let leaves = code.behind(n).next().is_none();
        other |= is_handed_on(instruction, register, leaves);
        if !reads(instruction, register, &mut info) {
            return;
        }
        match instruction.mnemonic() {
            _ if is_in_address(instruction, register) => other |= !is_before(instruction, register, offset),
            Mnemonic::Cmp | Mnemonic::Sub => compared = true,
            // Where it is from then on has been followed.
            Mnemonic::Mov if instruction.op0_kind() == OpKind::Register => {}
            Mnemonic::Mov => other |= instruction.memory_base() != Register::RSP,
            _ if instruction.condition_code() != iced_x86::ConditionCode::None => {}
            _ => other = true,
        }
    });
    compared && !other
}

/// Another function may get what a register holds: as an argument, or as the result (psABI for AMD64, figure 3.4).
fn is_handed_on(instruction: &Instruction, register: Register, leaves: bool) -> bool {
    use Register::{R8, R9, RAX, RCX, RDI, RDX, RSI};
    let is_argument = matches!(register, RDI | RSI | RDX | RCX | R8 | R9);
    match instruction.flow_control() {
        FlowControl::Call | FlowControl::IndirectCall | FlowControl::IndirectBranch => is_argument,
        FlowControl::Return => matches!(register, RAX | RDX),
        _ => leaves && is_argument,
    }
}

fn reads(instruction: &Instruction, register: Register, factory: &mut InstructionInfoFactory) -> bool {
    let used = factory.info(instruction).used_registers().iter();
    used.filter(|used| used.register().full_register() == register)
        .any(|used| !matches!(used.access(), OpAccess::None | OpAccess::Write | OpAccess::CondWrite))
}

fn is_in_address(instruction: &Instruction, register: Register) -> bool {
    let is = |part: Register| part != Register::None && part.full_register() == register;
    has_memory(instruction) && (is(instruction.memory_base()) || is(instruction.memory_index()))
}

/// What the operand in memory means lies before the address: a loop that goes backwards.
fn is_before(instruction: &Instruction, register: Register, offset: i64) -> bool {
    let base = instruction.memory_base().full_register() == register;
    let at = offset.saturating_add(instruction.memory_displacement64() as i64);
    base && instruction.memory_index() == Register::None && at < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &[u8]) -> bool {
        is_limit(&Decoded::new([(0x1000, code)].into_iter()), 0x1000)
    }

    #[test]
    fn an_end_is_compared_and_what_is_meant_is_handed_on() {
        let lea = [0x48, 0x8d, 0x15, 0, 0, 0, 0];
        // lea 0(%rip),%rcx; add $8,%rax; cmp %rcx,%rax; jne back to the add; ret. In %rdx it may be a result.
        let into_rcx = [0x48, 0x8d, 0x0d, 0, 0, 0, 0];
        assert!(of(&[&into_rcx[..], &[0x48, 0x83, 0xc0, 8, 0x48, 0x39, 0xc8, 0x75, 0xf7, 0xc3]].concat()));
        assert!(!of(&[&lea[..], &[0x48, 0x83, 0xc0, 8, 0x48, 0x39, 0xd0, 0x75, 0xf7, 0xc3]].concat()));
        // The same and then a call, which may get it.
        assert!(!of(&[&lea[..], &[0x48, 0x39, 0xd0, 0xe8, 0, 0, 0, 0, 0xc3]].concat()));
        // lea 0(%rip),%rdx; mov (%rdx),%rax; cmp %rdx,%rax; mov 0,%edx; ret. And -8(%rdx) instead.
        assert!(!of(&[&lea[..], &[0x48, 0x8b, 2, 0x48, 0x39, 0xd0, 0xba, 0, 0, 0, 0, 0xc3]].concat()));
        assert!(of(&[&lea[..], &[0x48, 0x8b, 0x42, 0xf8, 0x48, 0x39, 0xd0, 0xba, 0, 0, 0, 0, 0xc3]].concat()));
        // lea 0(%rip),%rdx; mov %rdx,(%rdi); cmp %rdx,%rax; mov 0,%edx; ret
        assert!(!of(&[&lea[..], &[0x48, 0x89, 0x17, 0x48, 0x39, 0xd0, 0xba, 0, 0, 0, 0, 0xc3]].concat()));
        // cmp $imm,%rax
        assert!(of(&[0x48, 0x3d, 0, 0, 0x40, 0, 0xc3]));
    }
}
