//! What the conditional jumps on a way say of a number that is carried along it.
//!
//! `xor %eax,%eax; L: cmp $1,%rax; jbe M; movzbl text-2(%rax),%ecx; M: inc %rax`: there is a way from where the number is 0 to where the
//! text is read, but nobody goes it with a 0. A number is known at a place only if it passes all that is asked of it on the way.

use iced_x86::{ConditionCode, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::touched::{Origin, origin};
use super::ways::Decoded;

/// How many instructions before a jump its comparison, and what that compares, is looked for.
const NEAR: usize = 16;

/// What a number must be for code to go on to the next instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    code: ConditionCode,
    /// The number where it is compared is so much less than at the end of the way.
    less: i64,
    limit: i64,
    /// Of them is compared.
    bits: u32,
}

impl Condition {
    /// True if this number at the end of the way has passed here.
    pub(super) fn holds(&self, number: i64) -> bool {
        use ConditionCode::{a, ae, b, be, e, g, ge, l, le, ne, ns, s};
        let cut = |n: i64| if self.bits == 64 { n } else { i64::from(n as i32) };
        let (x, y) = (cut(number.wrapping_sub(self.less)), cut(self.limit));
        let order = x.cmp(&y);
        // With a sign in front, both stay in this order without one.
        let plain = x.cast_unsigned().cmp(&y.cast_unsigned());
        match self.code {
            e => order.is_eq(),
            ne => order.is_ne(),
            a => plain.is_gt(),
            ae => plain.is_ge(),
            b => plain.is_lt(),
            be => plain.is_le(),
            g => order.is_gt(),
            ge => order.is_ge(),
            l => order.is_lt(),
            le => order.is_le(),
            s => cut(x.wrapping_sub(y)) < 0,
            ns => cut(x.wrapping_sub(y)) >= 0,
            _ => false,
        }
    }
}

/// How code goes from one instruction to the next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Passage {
    /// The number has no part in it.
    Free,
    If(Condition),
    /// It has a part that is not understood.
    Unknown,
}

/// From instruction `n` to `next`, behind which `register` holds a number that is `added` less than at the end of the way.
pub(super) fn passage(
    code: &Decoded,
    (n, next): (usize, usize),
    (register, added): (Register, i64),
    factory: &mut InstructionInfoFactory,
) -> Passage {
    let jump = &code.instructions[n];
    if jump.flow_control() != FlowControl::ConditionalBranch {
        return Passage::Free;
    }
    let taken = code.at(jump.near_branch_target()) == Some(next);
    if taken && code.at(jump.next_ip()) == Some(next) {
        return Passage::Free;
    }
    let mut asked = *jump;
    if !taken {
        asked.negate_condition_code();
    }
    let condition = asked.condition_code();
    let (mut at, mut held) = (n, (register, added));
    for _ in 0..NEAR {
        let Some(before) = only_before(code, at) else { return Passage::Unknown };
        let sets = code.instructions[before].rflags_modified() != 0;
        let was = match origin(code, before, held.0, factory) {
            Origin::From(register, number) => (register, held.1.wrapping_add(number)),
            // It is made behind the comparison, or by what sets the flags.
            _ => return Passage::Free,
        };
        if sets {
            return compared(code, before, was, condition, factory);
        }
        (at, held) = (before, was);
    }
    Passage::Unknown
}

fn only_before(code: &Decoded, n: usize) -> Option<usize> {
    let mut before = code.before(n);
    let first = before.next()?;
    before.next().is_none().then_some(first)
}

/// What the comparison `at` asks of the number that is in `held.0` before it.
fn compared(
    code: &Decoded,
    at: usize,
    held: (Register, i64),
    condition: ConditionCode,
    factory: &mut InstructionInfoFactory,
) -> Passage {
    use ConditionCode::{a, ae, b, be, e, g, ge, l, le, ne};
    let i = &code.instructions[at];
    let reads = read(i, factory);
    if !reads.contains(&held.0) {
        return derived(code, at, held, (reads, condition), factory);
    }
    let is = |n: u32| n < i.op_count() && i.op_kind(n) == OpKind::Register && whole(i.op_register(n)) == held.0;
    let memory = [i.memory_base(), i.memory_index()].iter().any(|r| *r != Register::None && whole(*r) == held.0);
    let equality = matches!(condition, e | ne);
    let ask = |limit: i64| asks(i, condition, held.1, limit);
    match i.mnemonic() {
        _ if memory => Passage::Unknown,
        Mnemonic::Cmp | Mnemonic::Sub if is(0) && !is(1) => match i.try_immediate(1) {
            Ok(limit) => ask(limit.cast_signed()),
            // What is too large for it never gets there later, when it is larger.
            Err(_) if i.mnemonic() == Mnemonic::Cmp && matches!(condition, b | be | l | le) => Passage::Free,
            Err(_) => Passage::Unknown,
        },
        Mnemonic::Cmp if is(1) && !is(0) && matches!(condition, a | ae | g | ge) => Passage::Free,
        Mnemonic::Test if is(0) && is(1) => ask(0),
        Mnemonic::Dec if is(0) && equality => ask(1),
        Mnemonic::Inc if is(0) && equality => ask(-1),
        Mnemonic::Add if is(0) && !is(1) && equality => match i.try_immediate(1) {
            Ok(number) => ask(number.cast_signed().wrapping_neg()),
            Err(_) => Passage::Unknown,
        },
        _ => Passage::Unknown,
    }
}

fn asks(i: &Instruction, code: ConditionCode, less: i64, limit: i64) -> Passage {
    match i.op0_register().size() {
        4 => Passage::If(Condition { code, less, limit, bits: 32 }),
        8 => Passage::If(Condition { code, less, limit, bits: 64 }),
        _ => Passage::Unknown,
    }
}

/// The same where what is compared may come from the number: `lea -2(%rax),%edx; cmp $5,%edx`.
fn derived(
    code: &Decoded,
    compares: usize,
    mut held: (Register, i64),
    (mut traced, condition): (Vec<Register>, ConditionCode),
    factory: &mut InstructionInfoFactory,
) -> Passage {
    let i = &code.instructions[compares];
    let limit = match i.mnemonic() {
        Mnemonic::Cmp if i.op0_kind() == OpKind::Register => i.try_immediate(1).ok().map(u64::cast_signed),
        Mnemonic::Test if i.op0_kind() == OpKind::Register && i.op0_register() == i.op1_register() => Some(0),
        _ => None,
    };
    let mut at = compares;
    // What is compared is still as it was made.
    let mut as_made = true;
    for _ in 0..NEAR {
        let Some(before) = only_before(code, at) else { return Passage::Free };
        let made = &code.instructions[before];
        let sets = traced.iter().any(|r| code.may_write(before, *r, factory));
        held = match origin(code, before, held.0, factory) {
            Origin::From(register, number) => (register, held.1.wrapping_add(number)),
            _ => return Passage::Free,
        };
        if sets {
            let from = read(made, factory);
            if from.contains(&held.0) {
                let simple = made.op_count() == 2 && made.op0_kind() == OpKind::Register && as_made;
                let plus = match made.mnemonic() {
                    Mnemonic::Mov if made.op1_kind() == OpKind::Register => Some(0),
                    Mnemonic::Lea if made.memory_index() == Register::None => {
                        Some((made.memory_displacement64()).cast_signed())
                    }
                    _ => None,
                };
                let same = whole(made.op0_register()) == whole(i.op0_register());
                return match (limit, plus.filter(|_| simple && same)) {
                    (Some(limit), Some(plus)) => asks(i, condition, held.1.wrapping_sub(plus), limit),
                    _ => Passage::Unknown,
                };
            }
            traced.retain(|r| !code.writes(before, *r, factory));
            traced.extend(from);
            as_made = false;
        }
        at = before;
    }
    Passage::Free
}

fn whole(register: Register) -> Register {
    register.full_register()
}

/// The whole registers that an instruction reads.
fn read(i: &Instruction, factory: &mut InstructionInfoFactory) -> Vec<Register> {
    let used = factory.info(i).used_registers().iter();
    let reads = used.filter(|u| !matches!(u.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::None));
    reads.map(|u| whole(u.register())).collect()
}
