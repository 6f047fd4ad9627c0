//! What registers hold behind calls: what a callee left there, or what they kept (psABI for AMD64, section 3.2.1).

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::registers::{KEPT, written};
use super::ways::Decoded;

/// The calls of a function of these ranges (address, bytes) that do not set this register though a call before has left anything in
/// it: where they lead takes no argument there. Functions of a variable number of arguments put aside.
pub(crate) fn calls_without<'a>(ranges: impl Iterator<Item = (u64, &'a [u8])>, register: Register) -> FxHashSet<u64> {
    let code = Decoded::new(ranges);
    let mut found = FxHashSet::default();
    if code.instructions.iter().any(|i| i.flow_control() == FlowControl::IndirectBranch) {
        return found;
    }
    let (joins, mut factory) = (joins(&code), InstructionInfoFactory::new());
    let (mut undefined, mut variable) = (false, false);
    for (n, instruction) in code.instructions.iter().enumerate() {
        undefined &= follows(&code, n) && !joins.contains(&instruction.ip());
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            let target = match instruction.is_ip_rel_memory_operand() {
                true => instruction.ip_rel_memory_address(),
                false => instruction.near_branch_target(),
            };
            found.extend(Some(target).filter(|_| undefined && !variable));
            (undefined, variable) = (true, false);
        } else {
            let written = written(instruction, &mut factory);
            undefined &= !written.contains(&register);
            // A function of a variable number of arguments is told in `al` how many vector registers it gets.
            variable |= written.contains(&Register::RAX);
        }
    }
    found
}

/// Where a register gets an address that it keeps over calls, and where it is copied: the addresses of the instruction that makes it
/// and of the copy. Nothing else is ever put into that register, or nothing in between.
pub(crate) fn kept_addresses<'a>(ranges: impl Iterator<Item = (u64, &'a [u8])>) -> Vec<(u64, u64)> {
    let code = Decoded::new(ranges);
    let (joins, mut factory) = (joins(&code), InstructionInfoFactory::new());
    let writes: Vec<Vec<Register>> = code.instructions.iter().map(|i| written(i, &mut factory)).collect();
    let makes = |n: usize| {
        let instruction = &code.instructions[n];
        instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand()
    };
    // Those that put something into a register; at the end of the function it gets its caller's value again.
    let setters = KEPT.map(|register| {
        let sets = |n: &usize| code.instructions[*n].mnemonic() != Mnemonic::Pop && writes[*n].contains(&register);
        (register, (0..writes.len()).filter(sets).collect::<Vec<usize>>())
    });
    let mut found = Vec::new();
    for (n, copy) in code.instructions.iter().enumerate() {
        let copies = copy.mnemonic() == Mnemonic::Mov && copy.op1_kind() == OpKind::Register;
        let Some((register, setters)) = setters.iter().find(|(r, _)| copies && *r == copy.op1_register()) else {
            continue;
        };
        let last =
            (0..n).rev().take_while(|m| follows(&code, m + 1) && !joins.contains(&code.instructions[m + 1].ip()));
        let last = last.into_iter().find(|m| writes[*m].contains(register));
        let made: Vec<usize> = match last {
            Some(last) => vec![last],
            None => setters.clone(),
        };
        if made.iter().all(|m| makes(*m)) {
            found.extend(made.iter().map(|m| (code.instructions[*m].ip(), copy.ip())));
        }
    }
    found
}

/// Where code is jumped to. Behind a call that never returns such a place follows.
fn joins(code: &Decoded) -> FxHashSet<u64> {
    let jumps = |i: &&Instruction| {
        matches!(i.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
    };
    code.instructions.iter().filter(jumps).map(Instruction::near_branch_target).collect()
}

/// True if an instruction is reached from the one before it.
fn follows(code: &Decoded, n: usize) -> bool {
    let Some(before) = n.checked_sub(1).map(|before| &code.instructions[before]) else { return false };
    let ends = matches!(
        before.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return
    );
    before.next_ip() == code.instructions[n].ip() && !ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_left_in_a_register_is_no_argument() {
        // call 0x2000; mov rdi,rax; call 0x3000; mov ecx,1; call 0x4000; jmp +0; call 0x5000
        let code = [
            0xe8, 0xfb, 0x0f, 0, 0, 0x48, 0x89, 0xc7, 0xe8, 0xf3, 0x1f, 0, 0, 0xb9, 1, 0, 0, 0, 0xe8, 0xe9, 0x2f, 0, 0,
            0xeb, 0, 0xe8, 0xe2, 0x3f, 0, 0,
        ];
        let found = calls_without([(0x1000, &code[..])].into_iter(), Register::RCX);
        assert_eq!(found.into_iter().collect::<Vec<u64>>(), [0x3000]);
    }

    #[test]
    fn behind_a_call_that_never_returns_nothing_is_known() {
        // jne L; call 0x2000; L: call 0x3000
        let code = [0x75, 5, 0xe8, 0xf9, 0x0f, 0, 0, 0xe8, 0xf4, 0x1f, 0, 0];
        assert_eq!(calls_without([(0x1000, &code[..])].into_iter(), Register::RCX).len(), 0);
    }

    #[test]
    fn an_address_that_a_register_keeps_is_copied_from_there() {
        // lea r14,[rip]; mov rsi,r14; mov [rsp],r14; pop r14; lea rbx,[rip]; xor ebx,ebx; mov rsi,rbx
        // lea rbp,[rip]; call +0; mov rcx,rbp; mov rbp,[rsp]; mov rcx,rbp
        let code = [
            0x4c, 0x8d, 0x35, 0, 0, 0, 0, 0x4c, 0x89, 0xf6, 0x4c, 0x89, 0x34, 0x24, 0x41, 0x5e, 0x48, 0x8d, 0x1d, 0, 0,
            0, 0, 0x31, 0xdb, 0x48, 0x89, 0xde, 0x48, 0x8d, 0x2d, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xe9, 0x48,
            0x8b, 0x2c, 0x24, 0x48, 0x89, 0xe9,
        ];
        assert_eq!(
            kept_addresses([(0x1000, &code[..])].into_iter()),
            [(0x1000, 0x1007), (0x1000, 0x100a), (0x101c, 0x1028)]
        );
    }
}
