//! May an index be below zero?
//!
//! Only with one that is does code lead before the address that it adds it to. Where the number itself is not known, how it is made may
//! say it: `e[-1 - (n & 3)]` takes a `not`, and a run from `-n` up a `neg`. What is read from memory or handed over is taken for none.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use rustc_hash::FxHashSet;

use super::derived::{Holder, word};
use super::registers::has_memory;
use super::ways::Decoded;

/// Places that are looked at.
const STEPS: usize = 4000;

/// True if what a register holds before the instruction `at` may be below zero by how code makes it.
pub(super) fn may_be_negative(
    code: &Decoded,
    at: usize,
    register: Register,
    factory: &mut InstructionInfoFactory,
) -> bool {
    let mut seen: FxHashSet<(usize, Holder)> = FxHashSet::default();
    let mut open: Vec<(usize, Holder)> =
        code.before(at).map(|before| (before, Holder::Register(register.full_register()))).collect();
    while let Some((n, holder)) = open.pop() {
        if seen.len() >= STEPS || !seen.insert((n, holder)) {
            continue;
        }
        let instruction = &code.instructions[n];
        let sets = match holder {
            Holder::Register(register) => code.may_write(n, register, factory),
            word_of_frame => {
                let first = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
                first && changes(instruction) && word(instruction) == Some(word_of_frame)
            }
        };
        let from = if sets { made_from(code, n, factory) } else { Made { negative: false, from: vec![holder] } };
        if from.negative {
            return true;
        }
        for before in code.before(n) {
            open.extend(from.from.iter().map(|holder| (before, *holder)));
        }
    }
    false
}

/// What an instruction makes its result from.
struct Made {
    negative: bool,
    from: Vec<Holder>,
}

fn changes(instruction: &Instruction) -> bool {
    !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push)
}

fn made_from(code: &Decoded, n: usize, factory: &mut InstructionInfoFactory) -> Made {
    let instruction = &code.instructions[n];
    let operand = |n: u32| match instruction.op_kind(n) {
        _ if n >= instruction.op_count() => None,
        OpKind::Register => Some(Holder::Register(instruction.op_register(n).full_register())),
        OpKind::Memory => word(instruction),
        _ => None,
    };
    let number =
        if instruction.op_count() > 1 { instruction.try_immediate(1).ok().map(u64::cast_signed) } else { None };
    // 32 bits are a number with a sign as soon as they are made 64 ones.
    let below = |n: i64| n < 0 || n == i64::from(n as u32) && (n as i32) < 0;
    let both = || operand(0).into_iter().chain(operand(1)).collect();
    let wide = instruction.op_count() > 0
        && match instruction.op0_kind() {
            OpKind::Register => instruction.op0_register().size() >= 4,
            _ => instruction.memory_size().size() >= 4,
        };
    let made = |negative: bool, from: Vec<Holder>| Made { negative, from };
    if !wide {
        return made(false, Vec::new());
    }
    match instruction.mnemonic() {
        Mnemonic::Neg | Mnemonic::Not => made(true, Vec::new()),
        Mnemonic::Mov => match number {
            Some(number) => made(below(number), Vec::new()),
            None => made(false, operand(1).into_iter().collect()),
        },
        Mnemonic::Or | Mnemonic::Xor if number.is_some_and(below) => made(true, Vec::new()),
        // Nobody takes more bits of a number than it has.
        Mnemonic::And if number.is_some_and(|n| n >= 0) => made(false, Vec::new()),
        Mnemonic::Sub if number.is_none() => {
            let known = operand(0).is_some_and(|to| is_number(code, n, to, factory) || is_part(code, n, to, factory));
            made(known, operand(0).into_iter().collect())
        }
        Mnemonic::Movsxd => made(false, operand(1).into_iter().collect()),
        Mnemonic::Cdqe => made(false, vec![Holder::Register(Register::RAX)]),
        Mnemonic::Lea => {
            let parts = [instruction.memory_base(), instruction.memory_index()];
            let parts = parts.into_iter().filter(|r| !matches!(r, Register::None | Register::RIP | Register::RSP));
            made(false, parts.map(|r| Holder::Register(r.full_register())).collect())
        }
        Mnemonic::Add | Mnemonic::Imul | Mnemonic::Or | Mnemonic::Xor => made(false, both()),
        Mnemonic::And | Mnemonic::Sub | Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Shl | Mnemonic::Sar => {
            made(false, operand(0).into_iter().collect())
        }
        _ if instruction.condition_code() != iced_x86::ConditionCode::None => made(false, both()),
        _ => made(false, Vec::new()),
    }
}

/// True if a number was put there right before: code then subtracts from that what it does not know.
fn is_number(code: &Decoded, n: usize, holder: Holder, factory: &mut InstructionInfoFactory) -> bool {
    /// Instructions that are looked at.
    const NEAR: usize = 8;
    let Holder::Register(register) = holder else { return false };
    let mut at = n;
    for _ in 0..NEAR {
        let mut before = code.before(at);
        let (Some(last), None) = (before.next(), before.next()) else { return false };
        if code.may_write(last, register, factory) {
            let i = &code.instructions[last];
            let number = i.op_count() > 1 && !has_memory(i) && i.try_immediate(1).is_ok();
            let zero = i.mnemonic() == Mnemonic::Xor
                && i.op1_kind() == OpKind::Register
                && i.op0_register() == i.op1_register();
            return zero || i.mnemonic() == Mnemonic::Mov && number;
        }
        at = last;
    }
    false
}

/// True if what the instruction subtracts is what the other operand is a part of: `a / 12 * 12 - a` is `-(a % 12)`.
fn is_part(code: &Decoded, n: usize, holder: Holder, factory: &mut InstructionInfoFactory) -> bool {
    /// Instructions that are looked at: a division by a number takes some ten.
    const NEAR: usize = 16;
    let subtracts = &code.instructions[n];
    let (Holder::Register(register), OpKind::Register) = (holder, subtracts.op1_kind()) else { return false };
    let whole = subtracts.op1_register().full_register();
    let (mut from, mut is_less, mut at) = (vec![register], false, n);
    for _ in 0..NEAR {
        let mut before = code.before(at);
        let (Some(last), None) = (before.next(), before.next()) else { return false };
        let i = &code.instructions[last];
        let writes = from.iter().any(|r| code.may_write(last, *r, factory));
        if writes {
            // What only takes more of it is no part of it: `8 * a - a`.
            is_less |= match i.mnemonic() {
                Mnemonic::Shr | Mnemonic::Sar | Mnemonic::And | Mnemonic::Mul | Mnemonic::Div | Mnemonic::Idiv => true,
                Mnemonic::Imul => i.op_count() == 1,
                _ => false,
            };
            let used = factory.info(i).used_registers().iter();
            let read = used.filter(|u| !matches!(u.access(), OpAccess::Write | OpAccess::CondWrite));
            from.extend(read.map(|u| u.register().full_register()));
            if from.contains(&whole) {
                return is_less;
            }
        }
        if code.may_write(last, whole, factory) {
            return false;
        }
        at = last;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the code, at the end of which is `mov al,[rdx+rcx]`, has in rcx.
    fn of(code: &[u8]) -> bool {
        let code = [code, &[0x8a, 4, 0x0a]].concat();
        let decoded = Decoded::new([(0x1000, code.as_slice())].into_iter());
        let last = decoded.instructions.len() - 1;
        may_be_negative(&decoded, last, Register::RCX, &mut InstructionInfoFactory::new())
    }

    #[test]
    fn what_is_negated_may_be() {
        // mov rcx,rdi; neg rcx. not rdi; lea rcx,[rdi*8]. mov ecx,2; sub rcx,rdi. mov ecx,-8; movsxd rcx,ecx
        assert!(of(&[0x48, 0x89, 0xf9, 0x48, 0xf7, 0xd9]));
        assert!(of(&[0x48, 0xf7, 0xd7, 0x48, 0x8d, 0x0c, 0xfd, 0, 0, 0, 0]));
        assert!(of(&[0xb9, 2, 0, 0, 0, 0x48, 0x29, 0xf9]));
        assert!(of(&[0xb9, 0xf8, 0xff, 0xff, 0xff, 0x48, 0x63, 0xc9]));
        // mov rax,rdi; mul rdx; and rdx,-4; lea rcx,[rdx+rdx*2]; sub rcx,rdi
        assert!(of(&[
            0x48, 0x89, 0xf8, 0x48, 0xf7, 0xe2, 0x48, 0x83, 0xe2, 0xfc, 0x48, 0x8d, 0x0c, 0x52, 0x48, 0x29, 0xf9
        ]));
        // movq [rbp-16],-8; mov rcx,[rbp-16]
        assert!(of(&[0x48, 0xc7, 0x45, 0xf0, 0xf8, 0xff, 0xff, 0xff, 0x48, 0x8b, 0x4d, 0xf0]));
    }

    #[test]
    fn what_another_register_has_does_not_count() {
        // neg rsi; movsxd rcx,edi. mov eax,-1; movzx ecx,byte [rdi]. sub rcx,rdi
        assert!(!of(&[0x48, 0xf7, 0xde, 0x48, 0x63, 0xcf]));
        assert!(!of(&[0xb8, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xb6, 0x0f]));
        assert!(!of(&[0x48, 0x29, 0xf9]));
        // lea rcx,[rdi*8]; sub rcx,rdi. mov rcx,rdi; shr rcx,2; sub rdi,rcx; mov rcx,rdi
        assert!(!of(&[0x48, 0x8d, 0x0c, 0xfd, 0, 0, 0, 0, 0x48, 0x29, 0xf9]));
        assert!(!of(&[0x48, 0x89, 0xf9, 0x48, 0xc1, 0xe9, 2, 0x48, 0x29, 0xcf, 0x48, 0x89, 0xf9]));
        // neg rdi; and ecx,3
        assert!(!of(&[0x48, 0xf7, 0xdf, 0x83, 0xe1, 3]));
    }
}
