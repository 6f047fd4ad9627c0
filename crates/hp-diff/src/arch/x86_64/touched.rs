//! A place that code certainly reads or writes by way of an address that it makes.
//!
//! Everything that code reaches from one address lies in one object (C11, 6.5.6), so one place that it certainly reaches
//! says which object that is, wherever the address itself lies. A compiler that lets an index run from 1 makes
//! `lea text-1(%rip),r; mov 1,i; mov (r,i),c` of `text[i - 1]`.

use std::collections::VecDeque;

use iced_x86::{Code, ConditionCode, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::derived::{Held, Holder, follow, follow_jumps, follow_result};
use super::indexed::calculates;
use super::passages::{Condition, Passage, passage};
use super::registers::{KEPT, has_memory};
use super::ways::{Decoded, is_computed_jump};

/// Instructions that the origin of an index is looked for in.
const STEPS: usize = 2000;
/// What is asked of a number on the way, at most.
const CONDITIONS: usize = 16;
/// Instructions of a loop between the use of an index and its step.
const NEAR: usize = 64;

/// What a function does with an address that it makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Something is added to it.
    pub calculated: bool,
    /// How far from it the function certainly reads or writes, in bytes.
    pub offset: Option<i64>,
    /// The register beside the address holds a number on one of the ways, whatever is asked of it: the address is no number then.
    pub counted: bool,
    /// The index that leads there is negative as long as it is used.
    pub below: bool,
    /// A computed jump runs while it is held, and nobody knows where that leads; or it is too much to be followed.
    pub lost: bool,
}

/// What a function does with the addresses that the instructions at `made` make.
pub(crate) fn touched(code: &Decoded, made: &[u64]) -> Vec<Touched> {
    let mut origins = Origins::new(code);
    let firsts = made.iter().map(|at| code.at(*at));
    firsts.map(|first| first.map_or_else(Touched::default, |first| of(code, first, &mut origins))).collect()
}

fn of(code: &Decoded, first: usize, origins: &mut Origins<'_>) -> Touched {
    let instruction = &code.instructions[first];
    // The address is the operand's own displacement.
    if has_memory(instruction) && !instruction.is_ip_rel_memory_operand() {
        let registers = (instruction.memory_base(), instruction.memory_index());
        let register = match registers {
            (Register::None, register) | (register, Register::None) => Some(register).filter(|_| accesses(instruction)),
            (base, index) => Some(index).filter(|_| base == index && accesses(instruction)),
        };
        let offset = register.and_then(|register| {
            // `a(%rdi,%rdi)`
            let both = registers.0 == registers.1;
            let base = if both { origins.number(first, register, Heed::Jumps)? } else { 0 };
            Some(origins.scaled(first, register)?.wrapping_add(base))
        });
        let counted = offset.is_some() || register.is_some_and(|r| origins.number(first, r, Heed::Nothing).is_some());
        let below = offset.is_some() && register.is_some_and(|index| origins.ends_at_zero(first, index));
        return Touched {
            calculated: registers != (Register::None, Register::None),
            offset,
            counted,
            below,
            lost: false,
        };
    }
    let mut held: Vec<(usize, Register, i64)> = Vec::new();
    let mut sums: Vec<(usize, Register, i64)> = Vec::new();
    let (mut calculated, mut jumps) = (false, false);
    let mut factory = InstructionInfoFactory::new();
    let whole = follow(code, first, &mut factory, &mut |n, before| {
        let instruction = &code.instructions[n];
        jumps |= is_computed_jump(instruction);
        let Held { holder: Holder::Register(register), offset, stepped } = before else { return };
        calculated |= calculates(instruction, &[register]);
        if !stepped && has_memory(instruction) && accesses(instruction) {
            held.push((n, register, offset));
        }
        if !stepped && adds_registers(instruction) {
            sums.push((n, register, offset));
        }
    });
    let mut lost = false;
    if (jumps || !whole) && !calculated {
        // A place that is reached through a computed jump may not be reached from here, so nothing but this is asked there.
        lost = !follow_jumps(code, first, &mut factory, &mut |n, before| {
            let Holder::Register(register) = before.holder else { return };
            calculated |= calculates(&code.instructions[n], &[register]);
        });
    }
    let place = |(n, register, offset): (usize, Register, i64)| {
        let instruction = &code.instructions[n];
        let is = |r: Register| r != Register::None && r.full_register() == register;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let added = match (is(base), is(index)) {
            (true, false) if index == Register::None => 0,
            (true, false) => origins.scaled(n, index)?,
            (false, true) if instruction.memory_index_scale() == 1 && base != Register::None => {
                origins.scaled(n, base)?
            }
            _ => return None,
        };
        let made = offset.wrapping_add(instruction.memory_displacement64() as i64);
        let beside = if is(base) { index } else { base };
        let below = made == 0 && beside != Register::None && origins.ends_at_zero(n, beside);
        Some((made.wrapping_add(added), below))
    };
    let found = held.into_iter().find_map(place).or_else(|| {
        let reached = sums.into_iter().find_map(|sum| origins.reached_by_sum(sum));
        reached.map(|place| (place, false))
    });
    // `add $text,%rdi`: what is reached from there lies as far from the address as the register says, which nobody knows.
    let sum = !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Mov | Mnemonic::Cmp | Mnemonic::Push);
    let found = found.filter(|_| !sum);
    let (offset, below) = (found.map(|found| found.0), found.is_some_and(|found| found.1));
    Touched { calculated: calculated || sum, offset, counted: offset.is_some(), below, lost }
}

/// `add %rdx,%rax`, as code without optimisation adds an index.
fn adds_registers(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Add
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register().size() == 8
}

fn accesses(instruction: &Instruction) -> bool {
    let idle = instruction.mnemonic() == Mnemonic::Lea || instruction.is_string_instruction();
    !idle && !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Prefetcht0 | Mnemonic::Prefetchnta)
}

/// Where registers have their values from.
pub(super) struct Origins<'c> {
    code: &'c Decoded,
    factory: InstructionInfoFactory,
}

impl<'c> Origins<'c> {
    pub(super) fn new(code: &'c Decoded) -> Origins<'c> {
        Origins { code, factory: InstructionInfoFactory::new() }
    }

    /// What a register that is part of the operand of an instruction adds to it, if a number is certain.
    pub(super) fn scaled(&mut self, at: usize, register: Register) -> Option<i64> {
        let instruction = &self.code.instructions[at];
        let is_index = register == instruction.memory_index();
        let scale = if is_index { i64::from(instruction.memory_index_scale()) } else { 1 };
        Some(self.number(at, register, Heed::Jumps)?.wrapping_mul(scale))
    }

    /// A place that is read or written by way of the sum of two registers, of which `held` has the address plus `offset`.
    fn reached_by_sum(&mut self, (n, held, offset): (usize, Register, i64)) -> Option<i64> {
        let code = self.code;
        let instruction = &code.instructions[n];
        let (to, from) = (instruction.op0_register().full_register(), instruction.op1_register().full_register());
        let other = if held == to { from } else { to };
        let made = offset.wrapping_add(self.number(n, other, Heed::Jumps).filter(|_| to != from)?);
        let mut reached = None;
        follow_result(code, n, &mut InstructionInfoFactory::new(), &mut |n, before| {
            let Held { holder: Holder::Register(register), offset, stepped: false } = before else { return };
            let instruction = &code.instructions[n];
            let base = instruction.memory_base();
            let plain = instruction.memory_index() == Register::None && base != Register::None;
            if plain && has_memory(instruction) && accesses(instruction) && base.full_register() == register {
                let place = made.wrapping_add(offset).wrapping_add(instruction.memory_displacement64() as i64);
                reached = reached.or(Some(place));
            }
        });
        reached
    }

    /// True if the index of an operand runs up to zero and is not used there: right behind the operand's instruction a number is added to
    /// it, and the jump back rests on the sum.
    fn ends_at_zero(&mut self, at: usize, index: Register) -> bool {
        let code = self.code;
        let index = index.full_register();
        let first = code.instructions[at].ip();
        for n in at + 1..code.instructions.len().min(at + NEAR) {
            let instruction = &code.instructions[n];
            if instruction.flow_control() != FlowControl::Next {
                return false;
            }
            if code.may_write(n, index, &mut self.factory) {
                let steps = match instruction.mnemonic() {
                    Mnemonic::Inc => true,
                    Mnemonic::Add => matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64),
                    _ => false,
                };
                let whole = instruction.op0_kind() == OpKind::Register && instruction.op0_register() == index;
                let jump = code.instructions.get(n + 1);
                return steps
                    && whole
                    && jump.is_some_and(|j| {
                        j.condition_code() == ConditionCode::ne
                            && j.flow_control() == FlowControl::ConditionalBranch
                            && j.near_branch_target() <= first
                    });
            }
        }
        false
    }

    /// A number that a register holds at an instruction on one of the ways there: the one that was set nearest to it.
    fn number(&mut self, at: usize, register: Register, heed: Heed) -> Option<i64> {
        let code = self.code;
        let mut open: VecDeque<Carried> = VecDeque::new();
        let mut seen: FxHashSet<(usize, Sum)> = FxHashSet::default();
        let first = Sum { register: register.full_register(), times: 1, added: 0 };
        self.step_back(at, first, &[], heed, (&mut open, &mut seen));
        while let Some(Carried { at, sum, asked }) = open.pop_front() {
            let from = match origin(code, at, sum.register, &mut self.factory) {
                Origin::Number(number) => {
                    let number = sum.of(number);
                    if asked.iter().all(|condition| condition.holds(number)) {
                        return Some(number);
                    }
                    continue;
                }
                Origin::Unknown => continue,
                Origin::From(register, number) => Sum { register, added: sum.of(number), ..sum },
                Origin::Minus(register, number) => {
                    Sum { register, times: sum.times.wrapping_neg(), added: sum.of(number) }
                }
                Origin::Times(register, by) => Sum { register, times: sum.times.wrapping_mul(by), ..sum },
                Origin::Difference(register, less) => match self.set_before(at, register) {
                    Some(number) => Sum { register: less, times: sum.times.wrapping_neg(), added: sum.of(number) },
                    None => continue,
                },
            };
            self.step_back(at, from, &asked, heed, (&mut open, &mut seen));
        }
        None
    }

    /// Goes on with what may run right before an instruction, where what is asked of the number on the way is understood.
    fn step_back(
        &mut self,
        at: usize,
        sum: Sum,
        asked: &[Condition],
        heed: Heed,
        (open, seen): (&mut VecDeque<Carried>, &mut FxHashSet<(usize, Sum)>),
    ) {
        for before in self.code.before(at) {
            if seen.len() >= STEPS || seen.contains(&(before, sum)) {
                continue;
            }
            let mut asked = asked.to_vec();
            match passage(self.code, (before, at), (sum.register, sum.added), &mut self.factory) {
                _ if heed == Heed::Nothing => {}
                Passage::Free => {}
                Passage::If(condition) if sum.times == 1 && asked.len() < CONDITIONS => asked.push(condition),
                _ => continue,
            }
            seen.insert((before, sum));
            open.push_back(Carried { at: before, sum, asked });
        }
    }

    /// The number that a register holds at an instruction, if it is set on the only way there.
    fn set_before(&mut self, at: usize, register: Register) -> Option<i64> {
        let mut n = at;
        loop {
            let mut before = self.code.before(n);
            let (Some(last), None) = (before.next(), before.next()) else { return None };
            match origin(self.code, last, register, &mut self.factory) {
                Origin::Number(number) => return Some(number),
                Origin::From(same, 0) if same == register && last < n => n = last,
                _ => return None,
            }
        }
    }
}

/// What a number must go by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heed {
    Jumps,
    Nothing,
}

/// A register behind an instruction, on a way to where the number in it is used.
struct Carried {
    at: usize,
    sum: Sum,
    asked: Vec<Condition>,
}

/// So many times what a register holds, plus a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sum {
    register: Register,
    times: i64,
    added: i64,
}

impl Sum {
    /// The sum where the register holds this number.
    fn of(self, number: i64) -> i64 {
        self.added.wrapping_add(number.wrapping_mul(self.times))
    }
}

/// Where the value of a register behind an instruction comes from.
pub(super) enum Origin {
    Number(i64),
    /// What this register held before it, plus a number.
    From(Register, i64),
    /// A number less what this register held before it.
    Minus(Register, i64),
    /// So many times what this register held before it.
    Times(Register, i64),
    /// What the one register held before it, less the other.
    Difference(Register, Register),
    Unknown,
}

pub(super) fn origin(code: &Decoded, n: usize, register: Register, factory: &mut InstructionInfoFactory) -> Origin {
    let instruction = &code.instructions[n];
    let called = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    if called && !KEPT.contains(&register) {
        return Origin::Unknown;
    }
    if !code.may_write(n, register, factory) {
        return Origin::From(register, 0);
    }
    let to = instruction.op0_register();
    let whole = instruction.op0_kind() == OpKind::Register && to.full_register() == register && to.size() >= 4;
    if !whole {
        return Origin::Unknown;
    }
    let immediate = || match instruction.op1_kind() {
        // Whether 32 bits are a negative number is not known here.
        OpKind::Immediate32 => i32::try_from(instruction.immediate32()).ok().map(i64::from),
        OpKind::Immediate8to32 => Some(i64::from(instruction.immediate8to32())).filter(|n| *n >= 0),
        OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(instruction.immediate(1) as i64),
        _ => None,
    };
    let copied = || (instruction.op1_kind() == OpKind::Register).then(|| instruction.op1_register());
    match instruction.mnemonic() {
        Mnemonic::Mov => match (immediate(), copied()) {
            (Some(number), _) => Origin::Number(number),
            (None, Some(from)) if from.size() >= 4 => Origin::From(from.full_register(), 0),
            _ => Origin::Unknown,
        },
        Mnemonic::Movsxd => match copied() {
            Some(from) => Origin::From(from.full_register(), 0),
            None => Origin::Unknown,
        },
        Mnemonic::Cdqe => Origin::From(register, 0),
        Mnemonic::Xor if copied() == Some(to) => Origin::Number(0),
        // Zero is in what bits are taken of, and all ones in what bits are added to.
        Mnemonic::And if immediate().is_some_and(|n| n >= 0) => Origin::Number(0),
        Mnemonic::Or if to.size() == 8 => immediate().filter(|n| *n < 0).map_or(Origin::Unknown, Origin::Number),
        Mnemonic::Shl if to.size() == 8 && instruction.op1_kind() == OpKind::Immediate8 => {
            Origin::Times(register, 1 << (instruction.immediate8() & 63))
        }
        Mnemonic::Lea
            if instruction.code() == Code::Lea_r64_m
                && instruction.memory_base() == Register::None
                && instruction.memory_displacement64() == 0
                && instruction.memory_index() != Register::None =>
        {
            Origin::Times(instruction.memory_index().full_register(), i64::from(instruction.memory_index_scale()))
        }
        Mnemonic::Not if to.size() == 8 => Origin::Minus(register, -1),
        Mnemonic::Xor if to.size() == 8 && immediate() == Some(-1) => Origin::Minus(register, -1),
        Mnemonic::Neg if to.size() == 8 => Origin::Minus(register, 0),
        // A negative number in 32 bits is none any more in 64.
        Mnemonic::Add if to.size() == 8 => immediate().map_or(Origin::Unknown, |n| Origin::From(register, n)),
        Mnemonic::Sub if to.size() == 8 => match (immediate(), copied()) {
            (Some(number), _) => Origin::From(register, number.wrapping_neg()),
            (None, Some(less)) => Origin::Difference(register, less.full_register()),
            (None, None) => Origin::Unknown,
        },
        Mnemonic::Inc if to.size() == 8 => Origin::From(register, 1),
        Mnemonic::Dec if to.size() == 8 => Origin::From(register, -1),
        Mnemonic::Lea if instruction.code() == Code::Lea_r64_m && instruction.memory_index() == Register::None => {
            match instruction.memory_base() {
                Register::None | Register::RIP => Origin::Unknown,
                base => Origin::From(base.full_register(), instruction.memory_displacement64() as i64),
            }
        }
        _ => Origin::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::Decoded;

    fn all<'a>(ranges: impl Iterator<Item = (u64, &'a [u8])>, made: &[u64]) -> Vec<super::Touched> {
        super::touched(&Decoded::new(ranges), made)
    }

    fn touched(code: &[u8], made: u64) -> Option<i64> {
        all([(0x1000, code)].into_iter(), &[made])[0].offset
    }

    fn of(code: &[u8]) -> Option<i64> {
        touched(code, 0x1000)
    }

    /// `lea rdx,[rip+0x100]`
    const MAKES: [u8; 7] = [0x48, 0x8d, 0x15, 0, 1, 0, 0];

    #[test]
    fn an_index_that_runs_from_one() {
        // mov ecx,1; L: movzx eax,byte [rdx+rcx]; add rcx,1; test al,al; jne L; ret
        let code =
            [&MAKES[..], &[0xb9, 1, 0, 0, 0, 0x0f, 0xb6, 4, 0x0a, 0x48, 0x83, 0xc1, 1, 0x84, 0xc0, 0x75, 0xf4, 0xc3]]
                .concat();
        assert_eq!(of(&code), Some(1));
    }

    #[test]
    fn an_index_that_is_larger_where_it_is_used() {
        // xor ecx,ecx; lea rdx,[rip+0x100]; L: cmp rcx,1; jbe M; mov al,[rdx+rcx]; M: add rcx,1; cmp rcx,rsi; jne L; ret
        let loops =
            [0x48, 0x83, 0xf9, 1, 0x76, 3, 0x8a, 4, 0x0a, 0x48, 0x83, 0xc1, 1, 0x48, 0x39, 0xf1, 0x75, 0xee, 0xc3];
        let code = [&[0x31, 0xc9][..], &MAKES, &loops].concat();
        assert_eq!(touched(&code, 0x1002), None);
        // cmp rsi,rcx; ja L: each number is below one that nobody knows
        let mut counted = loops;
        counted[13..18].copy_from_slice(&[0x48, 0x39, 0xce, 0x77, 0xee]);
        assert_eq!(touched(&[&[0x31, 0xc9][..], &MAKES, &counted].concat(), 0x1002), Some(2));
        // From 2 on it is used.
        assert_eq!(touched(&[&[0xb9, 2, 0, 0, 0][..], &MAKES, &loops].concat(), 0x1005), Some(2));
        // xor ecx,ecx; lea esi,[rcx-2]; cmp esi,5; ja (the ret); lea rdx,[rip+0x100]; mov al,[rdx+rcx]; ret
        let other = [&[0x31, 0xc9, 0x8d, 0x71, 0xfe, 0x83, 0xfe, 5, 0x77, 10][..], &MAKES, &[0x8a, 4, 0x0a, 0xc3]];
        assert_eq!(touched(&other.concat(), 0x100a), None);
        // xor ecx,ecx; imul esi,ecx,3; cmp esi,5; jb (the ret); lea rdx,[rip+0x100]; mov al,[rdx+rcx]; ret
        let other = [&[0x31, 0xc9, 0x6b, 0xf1, 3, 0x83, 0xfe, 5, 0x72, 10][..], &MAKES, &[0x8a, 4, 0x0a, 0xc3]];
        assert_eq!(touched(&other.concat(), 0x100a), None);
    }

    #[test]
    fn a_register_that_the_address_is_added_to() {
        // add rdi,0x401000; movzx eax,byte [rdi]; ret
        let code = [0x48, 0x81, 0xc7, 0, 0x10, 0x40, 0, 0x0f, 0xb6, 7, 0xc3];
        let found = all([(0x1000, &code[..])].into_iter(), &[0x1000])[0];
        assert_eq!(found, super::Touched { calculated: true, offset: None, counted: false, below: false, lost: false });
    }

    #[test]
    fn an_index_of_four_bytes_set_before_the_address() {
        // mov ecx,3; lea rdx,[rip+0x100]; jmp L; L: mov eax,[rdx+rcx*4]; ret
        let code = [&[0xb9, 3, 0, 0, 0][..], &MAKES, &[0xeb, 0, 0x8b, 4, 0x8a, 0xc3]].concat();
        assert_eq!(touched(&code, 0x1005), Some(12));
    }

    #[test]
    fn an_index_that_nobody_knows() {
        // movsxd rcx,edi; movzx eax,byte [rdx+rcx]; ret
        let code = [&MAKES[..], &[0x48, 0x63, 0xcf, 0x0f, 0xb6, 4, 0x0a, 0xc3]].concat();
        assert_eq!(of(&code), None);
        // mov ecx,1; call +0; movzx eax,byte [rdx+rcx]: the call has changed both
        let code = [&MAKES[..], &[0xb9, 1, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x0f, 0xb6, 4, 0x0a, 0xc3]].concat();
        assert_eq!(of(&code), None);
    }

    #[test]
    fn a_pointer_that_goes_on() {
        // mov al,[rdx]; add rdx,1; mov al,[rdx+4]; ret
        let code = [&MAKES[..], &[0x8a, 2, 0x48, 0x83, 0xc2, 1, 0x8a, 0x42, 4, 0xc3]].concat();
        assert_eq!(of(&code), Some(0));
        // L: mov al,[rdx+2]; add rdx,1; test al,al; jne L; ret
        let code = [&MAKES[..], &[0x8a, 0x42, 2, 0x48, 0x83, 0xc2, 1, 0x84, 0xc0, 0x75, 0xf5, 0xc3]].concat();
        assert_eq!(of(&code), Some(2));
    }

    #[test]
    fn what_is_added_to_an_address_is_seen_and_padding_is_not() {
        let calculated = |code: &[u8]| all([(0x1000, code)].into_iter(), &[0x1000])[0].calculated;
        // movsxd rcx,edi; movzx eax,byte [rdx+rcx]; ret
        assert!(calculated(&[&MAKES[..], &[0x48, 0x63, 0xcf, 0x0f, 0xb6, 4, 0x0a, 0xc3]].concat()));
        // nop [rdx+rdx]; mov al,[rdx]; ret; nop; mov al,[rdx+rcx]
        let code = [&MAKES[..], &[0x0f, 0x1f, 0x04, 0x12, 0x8a, 2, 0xc3, 0x90, 0x8a, 4, 0x0a]].concat();
        assert!(!calculated(&code));
    }

    #[test]
    fn a_displacement_in_a_fixed_image() {
        // xor eax,eax; mov cl,[rax+0x404000]
        let code = [0x31, 0xc0, 0x8a, 0x88, 0, 0x40, 0x40, 0];
        assert_eq!(touched(&code, 0x1002), Some(0));
    }
}
