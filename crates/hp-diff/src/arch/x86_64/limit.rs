//! Is an address that code makes the end of what a loop goes over?
//!
//! A loop over a table compares a pointer that steps through it with the table's end. Who asks whether a pointer leads to a certain
//! object compares, too, but a pointer that does not step. Compilers do not know that the end of one object is the start of
//! another, so an instruction makes the one or the other and never both.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::derived::{Held, Holder, follow};
use super::ways::Decoded;

/// Instructions between a step and the comparison, and between that and the jump which rests on it.
const NEAR: usize = 8;

/// True if a pointer that steps is compared with the address that the instruction at `made` makes.
pub(crate) fn is_limit(code: &Decoded, made: u64) -> bool {
    let Some(first) = code.at(made) else { return false };
    if code.instructions[first].mnemonic() == Mnemonic::Cmp {
        return ends_loop(code, first, 0);
    }
    let mut found = false;
    follow(code, first, &mut InstructionInfoFactory::new(), &mut |n, held| {
        let Held { holder: Holder::Register(register), offset: 0, .. } = held else { return };
        let instruction = &code.instructions[n];
        let is = |operand: u32| {
            instruction.op_kind(operand) == OpKind::Register
                && instruction.op_register(operand).full_register() == register
        };
        if !found && instruction.mnemonic() == Mnemonic::Cmp && (is(0) || is(1)) {
            found = ends_loop(code, n, u32::from(is(0)));
        }
    });
    found
}

/// The comparison decides on a jump, and to what its `operand` is something was added: right before, or where the jump goes back to.
fn ends_loop(code: &Decoded, comparison: usize, operand: u32) -> bool {
    let compares = &code.instructions[comparison];
    let mut behind = code.instructions.iter().skip(comparison + 1).take(NEAR);
    let jump = behind.find(|i| i.flow_control() != FlowControl::Next);
    let Some(jump) = jump.filter(|i| i.flow_control() == FlowControl::ConditionalBranch) else { return false };
    let back = Some(jump.near_branch_target()).filter(|to| *to <= compares.ip()).and_then(|to| code.at(to));
    let start = back.unwrap_or(comparison).min(comparison.saturating_sub(NEAR));
    let Some(pointer) = place(compares, operand) else { return false };
    let before = code.instructions.get(start..comparison).unwrap_or_default();
    before.iter().any(|i| steps(i, pointer))
}

/// What a register or a word of the frame is called.
fn place(instruction: &Instruction, operand: u32) -> Option<(Register, u64)> {
    match instruction.op_kind(operand) {
        OpKind::Register => Some((instruction.op_register(operand).full_register(), 0)),
        OpKind::Memory if matches!(instruction.memory_base(), Register::RBP | Register::RSP) => {
            let plain = instruction.memory_index() == Register::None;
            plain.then(|| (instruction.memory_base(), instruction.memory_displacement64()))
        }
        _ => None,
    }
}

/// A number is added to it.
fn steps(instruction: &Instruction, pointer: (Register, u64)) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Add | Mnemonic::Sub => {
            let number = !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory);
            number && place(instruction, 0) == Some(pointer)
        }
        Mnemonic::Inc | Mnemonic::Dec => place(instruction, 0) == Some(pointer),
        Mnemonic::Lea => {
            let plain = instruction.memory_index() == Register::None;
            plain && place(instruction, 0) == Some(pointer) && instruction.memory_base() == pointer.0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// lea 0(%rip),%rcx; then this; ret
    fn of(code: &[u8]) -> bool {
        let code = [&[0x48, 0x8d, 0x0d, 0, 0, 0, 0][..], code, &[0xc3]].concat();
        is_limit(&Decoded::new([(0x1000, code.as_slice())].into_iter()), 0x1000)
    }

    #[test]
    fn an_end_is_what_a_pointer_that_steps_is_compared_with() {
        // add $8,%rax; cmp %rcx,%rax; jne back to the add. The other way round. With lea 8(%rax),%rax.
        assert!(of(&[0x48, 0x83, 0xc0, 8, 0x48, 0x39, 0xc8, 0x75, 0xf7]));
        assert!(of(&[0x48, 0x83, 0xc0, 8, 0x48, 0x39, 0xc1, 0x75, 0xf7]));
        assert!(of(&[0x48, 0x8d, 0x40, 8, 0x48, 0x39, 0xc8, 0x75, 0xf7]));
        // The pointer is on the stack: addq $8,-8(%rbp); cmp %rcx,-8(%rbp); jne back
        assert!(of(&[0x48, 0x83, 0x45, 0xf8, 8, 0x48, 0x39, 0x4d, 0xf8, 0x75, 0xf5]));
        // The loop goes on behind the comparison: add $8,%rax; cmp %rcx,%rax; je 2 on; jmp back
        assert!(of(&[0x48, 0x83, 0xc0, 8, 0x48, 0x39, 0xc8, 0x74, 2, 0xeb, 0xf5]));
    }

    #[test]
    fn an_object_is_what_other_pointers_are_compared_with_or_what_is_used() {
        // cmp %rcx,%rax; jne +0. mov (%rax),%rax; cmp %rcx,%rax; jne back: a list. add %rdx,%rax; cmp %rcx,%rax; jne back
        assert!(!of(&[0x48, 0x39, 0xc8, 0x75, 0]));
        assert!(!of(&[0x48, 0x8b, 0, 0x48, 0x39, 0xc8, 0x75, 0xf8]));
        assert!(!of(&[0x48, 0x01, 0xd0, 0x48, 0x39, 0xc8, 0x75, 0xf8]));
        // call; mov (%rcx),%rsi
        assert!(!of(&[0xe8, 0, 0, 0, 0]) && !of(&[0x48, 0x8b, 0x31]));
    }
}
