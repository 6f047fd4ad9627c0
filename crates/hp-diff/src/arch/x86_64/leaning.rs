//! On which side of an address lies what code means by it?
//!
//! Where one array ends another one begins, and one number is both. What code does with the number says which it is: C has nothing
//! to read at the end of an array, and nothing before its start (C11, 6.5.6). Code that only hands it on says nothing, but whom
//! it calls may.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::counted::ARGUMENTS;
use super::derived::{Held, Holder, follow, follow_argument};
use super::indexed::calculates;
use super::negative::may_be_negative;
use super::registers::has_memory;
use super::touched::Origins;
use super::ways::Decoded;

/// What code does with an address that it makes or gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaning {
    /// Something at the address or behind it is read or written.
    pub behind: bool,
    /// Something before it is.
    pub before: bool,
    /// Something that is not known here is added to it.
    pub indexed: bool,
    /// The least and the greatest number that are added besides, in bytes.
    pub least: i64,
    pub greatest: i64,
    /// The index may be below zero.
    pub negative: bool,
    /// It is compared as it is.
    pub compared: bool,
    /// Code that gets it as it is: where that begins, and in which argument.
    pub calls: Vec<(u64, usize)>,
}

impl Leaning {
    fn index(&mut self, besides: i64) {
        self.least = if self.indexed { self.least.min(besides) } else { besides };
        self.greatest = if self.indexed { self.greatest.max(besides) } else { besides };
        self.indexed = true;
    }
}

/// What code does with the address that the instruction at `made` makes.
pub(crate) fn leaning(code: &Decoded, made: u64) -> Leaning {
    let mut found = Leaning::default();
    let Some(first) = code.at(made) else { return found };
    let instruction = &code.instructions[first];
    let beside = (instruction.memory_base(), instruction.memory_index());
    found.compared = instruction.mnemonic() == Mnemonic::Cmp && !has_memory(instruction);
    let absolute = has_memory(instruction) && !instruction.is_ip_rel_memory_operand();
    if absolute && beside != (Register::None, Register::None) && word_is_not_set(instruction) {
        found.index(0);
        let factory = &mut InstructionInfoFactory::new();
        let mut parts = [beside.0, beside.1].into_iter().filter(|r| *r != Register::None);
        found.negative = parts.any(|register| may_be_negative(code, first, register, factory));
    }
    let mut held = Vec::new();
    follow(code, first, &mut InstructionInfoFactory::new(), &mut |n, before| held.push((n, before)));
    look_at_all(code, &held, &mut found);
    found
}

/// `movq $a,-8(%rbp)` keeps the address there; of any other operand of memory it is a part.
fn word_is_not_set(instruction: &Instruction) -> bool {
    let number = instruction.op_count() > 1 && instruction.op1_kind() != OpKind::Register;
    !(instruction.mnemonic() == Mnemonic::Mov && instruction.op0_kind() == OpKind::Memory && number)
}

/// What code that begins at `entry` does with its argument of this number.
pub(crate) fn leaning_of_argument(code: &Decoded, entry: u64, argument: usize) -> Leaning {
    let mut found = Leaning::default();
    if let (Some(first), Some(register)) = (code.at(entry), ARGUMENTS.get(argument)) {
        let mut held = Vec::new();
        let factory = &mut InstructionInfoFactory::new();
        follow_argument(code, first, *register, factory, &mut |n, before| held.push((n, before)));
        look_at_all(code, &held, &mut found);
    }
    found
}

fn look_at_all(code: &Decoded, held: &[(usize, Held)], found: &mut Leaning) {
    let mut origins = Origins::new(code);
    held.iter().for_each(|(n, held)| look(code, *n, *held, &mut origins, found));
}

fn look(code: &Decoded, n: usize, held: Held, origins: &mut Origins<'_>, found: &mut Leaning) {
    let Held { holder: Holder::Register(register), offset, stepped } = held else { return };
    let instruction = &code.instructions[n];
    let is = |r: Register| r != Register::None && r.full_register() == register;
    let idle = matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop)
        || matches!(instruction.mnemonic(), Mnemonic::Prefetcht0 | Mnemonic::Prefetchnta);
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    // What copies or compares strings goes up from there (psABI for AMD64, 3.2.1: the direction flag is clear).
    if instruction.is_string_instruction() && (is(Register::RSI) || is(Register::RDI)) {
        found.behind |= offset >= 0;
        found.before |= offset < 0;
    }
    let mut factory = InstructionInfoFactory::new();
    let mut negative = |register: Register| may_be_negative(code, n, register, &mut factory);
    if has_memory(instruction) && !idle && (is(base) || is(index)) {
        let made = offset.saturating_add(instruction.memory_displacement64() as i64);
        let added = match (is(base), is(index)) {
            (true, false) if index == Register::None => Some(0),
            (true, false) => origins.scaled(n, index),
            (false, true) if instruction.memory_index_scale() == 1 && base != Register::None => origins.scaled(n, base),
            _ => None,
        };
        match added {
            Some(added) => {
                let at = made.saturating_add(added);
                found.behind |= at >= 0;
                found.before |= at < 0;
            }
            None => {
                found.index(made);
                found.negative |= negative(if is(base) { index } else { base });
            }
        }
    } else if adds_unknown(instruction, register) {
        found.index(offset.min(0));
        let operands = (0..instruction.op_count()).filter(|n| instruction.op_kind(*n) == OpKind::Register);
        let others = operands.map(|n| instruction.op_register(n)).filter(|r| !is(*r));
        let parts = [base, index].into_iter().filter(|r| has_memory(instruction) && !is(*r));
        let sets = matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Mov);
        let mut all = parts.chain(others.filter(|_| !sets)).filter(|r| *r != Register::None);
        found.negative |= instruction.mnemonic() == Mnemonic::Sub || all.any(negative);
    }
    let ends = [OpKind::MemoryESRDI, OpKind::MemorySegRSI];
    let kinds = (0..instruction.op_count()).map(|n| instruction.op_kind(n));
    let mut strings = kinds.filter(|kind| ends.contains(kind)).map(|kind| match kind {
        OpKind::MemoryESRDI => Register::RDI,
        _ => Register::RSI,
    });
    found.behind |= offset >= 0 && strings.any(|r| r == register);
    let compares = instruction.mnemonic() == Mnemonic::Cmp && offset == 0 && !stepped;
    let operands = (0..instruction.op_count()).filter(|n| instruction.op_kind(*n) == OpKind::Register);
    found.compared |= compares && operands.map(|n| instruction.op_register(n)).any(is);
    let called = match instruction.flow_control() {
        FlowControl::Call => Some(instruction.near_branch_target()),
        FlowControl::UnconditionalBranch => Some(instruction.near_branch_target()).filter(|to| code.at(*to).is_none()),
        _ => None,
    };
    let argument = ARGUMENTS.iter().position(|r| *r == register).filter(|_| offset == 0 && !stepped);
    if let (Some(called), Some(argument)) = (called, argument)
        && !found.calls.contains(&(called, argument))
    {
        found.calls.push((called, argument));
    }
}

/// Something other than a number is added to what the register holds.
fn adds_unknown(instruction: &Instruction, register: Register) -> bool {
    let number = instruction.op_count() > 1 && !matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory)
        || matches!(instruction.mnemonic(), Mnemonic::Inc | Mnemonic::Dec);
    let in_place = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register;
    calculates(instruction, &[register]) && !(in_place && number && !has_memory(instruction))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What code does with its first argument.
    fn of(code: &[u8]) -> Leaning {
        leaning_of_argument(&Decoded::new([(0x1000, code)].into_iter()), 0x1000, 0)
    }

    #[test]
    fn what_is_read_says_it() {
        // mov al,[rdi+4]; ret. mov al,[rdi-4]; ret. xor edx,edx; mov al,[rdi+rdx-8]; ret
        assert_eq!(of(&[0x8a, 0x47, 4, 0xc3]), Leaning { behind: true, ..Leaning::default() });
        assert_eq!(of(&[0x8a, 0x47, 0xfc, 0xc3]), Leaning { before: true, ..Leaning::default() });
        assert!(of(&[0x31, 0xd2, 0x8a, 0x44, 0x17, 0xf8, 0xc3]).before);
        // mov [rbp-16],rdi; sub qword [rbp-16],8; mov rax,[rbp-16]; mov al,[rax]; ret
        let frame = [0x48, 0x89, 0x7d, 0xf0, 0x48, 0x83, 0x6d, 0xf0, 8, 0x48, 0x8b, 0x45, 0xf0, 0x8a, 0, 0xc3];
        assert!(of(&frame).before && !of(&frame).behind);
    }

    #[test]
    fn what_is_only_handed_on_does_not() {
        // call 0x2000; ret
        let handed = Leaning { calls: vec![(0x2000, 0)], ..Leaning::default() };
        assert_eq!(of(&[0xe8, 0xfb, 0x0f, 0, 0, 0xc3]), handed);
        // mov al,[rdi+rsi-8]; ret. neg rsi; mov al,[rdi+rsi]; ret
        let indexed = Leaning { indexed: true, least: -8, greatest: -8, ..Leaning::default() };
        assert_eq!(of(&[0x8a, 0x44, 0x37, 0xf8, 0xc3]), indexed);
        assert!(of(&[0x48, 0xf7, 0xde, 0x8a, 4, 0x37, 0xc3]).negative);
    }
}
