//! Addresses that loops end with.
//!
//! Where a table ends another object begins, and one number is both. A function that steps a pointer through the table and compares it
//! with that number means the end, for C has no other use for such a comparison (C11, 6.5.8).

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::code::{Step, Use};
use crate::entities::{Family, Side};

/// How many instructions around a comparison belong to it.
const AROUND: usize = 8;

/// True if all that a function makes of `address` is what loops end with.
pub(crate) fn end_with(side: &Side<'_>, function: &Family<'_>, address: u64) -> bool {
    made(side, function, address) == (true, false)
}

/// True if a function makes `address` twice at least, as what a loop ends with and as something else.
pub(crate) fn mean_two(side: &Side<'_>, function: &Family<'_>, address: u64) -> bool {
    made(side, function, address) == (true, true)
}

/// True if a loop ends with the address that the instruction at `made` in this range makes.
pub(crate) fn ends_with(side: &Side<'_>, range: usize, made: u64) -> bool {
    let code: Vec<Step> = side.steps(range).map(|(_, step)| step).collect();
    code.iter().position(|step| step.instruction.ip() == made).is_some_and(|at| ends(&code, at))
}

/// Whether a function makes of `address` what loops end with, and anything else.
fn made(side: &Side<'_>, function: &Family<'_>, address: u64) -> (bool, bool) {
    let (mut limit, mut other) = (false, false);
    for part in side.family(function.entry) {
        let code: Vec<Step> = side.steps(*part).map(|(_, step)| step).collect();
        let makes = |step: &Step| step.fields.iter().any(|f| f.target == address && f.usage == Use::Address);
        for at in (0..code.len()).filter(|at| makes(&code[*at])) {
            match ends(&code, at) {
                true => limit = true,
                false => other = true,
            }
        }
    }
    (limit, other)
}

fn ends(code: &[Step], made: usize) -> bool {
    let first = &code[made].instruction;
    if first.mnemonic() == Mnemonic::Cmp {
        return is_loop(code, made, 0);
    }
    if first.op0_kind() != OpKind::Register {
        return false;
    }
    let register = first.op0_register().full_register();
    for (at, step) in code.iter().enumerate().skip(made + 1) {
        let i = &step.instruction;
        let is = |n: u32| n < i.op_count() && operand(i, n) == Some((register, 0));
        match i.mnemonic() {
            Mnemonic::Cmp if is(0) => return is_loop(code, at, 1),
            Mnemonic::Cmp if is(1) => return is_loop(code, at, 0),
            Mnemonic::Test => {}
            // It is another value from here on.
            _ if is(0) => return false,
            _ => {}
        }
    }
    false
}

/// A register or a word of the frame.
fn operand(i: &Instruction, n: u32) -> Option<(Register, u64)> {
    let frame = matches!(i.memory_base(), Register::RSP | Register::RBP) && i.memory_index() == Register::None;
    match i.op_kind(n) {
        OpKind::Register => Some((i.op_register(n).full_register(), 0)),
        OpKind::Memory if frame => Some((i.memory_base(), i.memory_displacement64())),
        _ => None,
    }
}

/// A number is added to what is compared there, before that or where the jump behind it goes back to.
fn is_loop(code: &[Step], at: usize, n: u32) -> bool {
    let Some(pointer) = operand(&code[at].instruction, n) else { return false };
    let mut behind = code[at + 1..].iter().take(AROUND).map(|step| &step.instruction);
    let Some(jump) = behind.find(|i| i.flow_control() != FlowControl::Next) else { return false };
    let back = jump.near_branch_target();
    let adds = |i: &Instruction| match i.mnemonic() {
        Mnemonic::Add | Mnemonic::Sub => {
            !matches!(i.op1_kind(), OpKind::Register | OpKind::Memory) && operand(i, 0) == Some(pointer)
        }
        Mnemonic::Inc | Mnemonic::Dec => operand(i, 0) == Some(pointer),
        Mnemonic::Lea => {
            let own = i.memory_base() == pointer.0 && i.memory_index() == Register::None;
            own && operand(i, 0) == Some(pointer)
        }
        _ => false,
    };
    let belongs = |(k, step): &(usize, &Step)| k + AROUND >= at || step.instruction.ip() >= back;
    let conditional = jump.flow_control() == FlowControl::ConditionalBranch;
    conditional && code[..at].iter().enumerate().filter(belongs).any(|(_, step)| adds(&step.instruction))
}
