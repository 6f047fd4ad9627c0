//! What code does with an address where one thing ends and another begins.
//!
//! One number may be both `&a[64]` and `&b[0]`. Who reads there, or behind, means `b`, and who reads before it `a` (C11, 6.5.6): that is
//! looked for on all ways from where the address is made, and in the functions that get it. Where nobody reads it is not known.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use rustc_hash::FxHashSet;

use crate::ahead::Ways;
use crate::below::Backwards;
use crate::code::{Step, Use};
use crate::entities::Side;
use crate::image::Word;
use crate::loops;

/// Things known of one address, at most.
const FACTS: usize = 4000;
/// Bytes before an address or behind it that are looked at.
const FAR: i64 = 4096;
/// Functions that hand an address on to one another.
const CALLS: usize = 4;
/// How far before the end of an array its last element begins at most, in bytes: who reads there with an index reads no other.
const LAST: i64 = -16;

const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
const KEPT: [Register; 6] = [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

/// What is meant where something ends and something begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leans {
    ToEnd,
    ToStart,
    Nowhere,
}

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Register(Register),
    /// In the frame: so far from `rsp` or `rbp`.
    Word(Register, i64),
}

/// Before the instruction at `at`, a place has the address plus an offset.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Fact {
    at: u64,
    place: Place,
    offset: i64,
    stepped: bool,
}

/// What was seen of an address.
#[derive(Default)]
struct Seen {
    before: bool,
    behind: bool,
    /// With an index that is not known, and a number besides: the least one and the greatest.
    by_index: Option<(i64, i64)>,
    /// Where the index is used, and the register that it is in.
    indices: Vec<(u64, Register)>,
    /// It is compared as it is.
    compared: bool,
    /// Something is subtracted from it.
    taken_off: bool,
    /// Who gets it: where that begins, and in which register.
    handed: Vec<(u64, Register)>,
}

impl Seen {
    fn index(&mut self, number: i64) {
        let (least, greatest) = self.by_index.unwrap_or((number, number));
        self.by_index = Some((least.min(number), greatest.max(number)));
    }
}

impl Side<'_> {
    /// What the instruction at `made` in range `range`, which makes an address, means by it.
    pub(crate) fn leans(&self, range: usize, made: u64, address: u64) -> Leans {
        let ways = self.ways(range);
        match ways.sight(made).reached {
            Some(..0) => return Leans::ToEnd,
            Some(_) => return Leans::ToStart,
            None => {}
        }
        let Some(step) = ways.step(made) else { return Leans::Nowhere };
        let i = &step.instruction;
        let mut seen = Seen::default();
        let place = match (i.op0_kind(), i.mnemonic()) {
            (OpKind::Register, Mnemonic::Lea | Mnemonic::Mov) if i.is_ip_rel_memory_operand() || !has_memory(i) => {
                Some(Place::Register(i.op0_register().full_register()))
            }
            (OpKind::Memory, Mnemonic::Mov) => word(i).filter(|_| i.op1_kind() != OpKind::Register),
            _ => None,
        };
        match place {
            Some(place) => {
                let first = Fact { at: i.next_ip(), place, offset: 0, stepped: false };
                follow(&ways, first, &mut seen);
            }
            None if has_memory(i) && !i.is_ip_rel_memory_operand() => {
                let index = (i.memory_base(), i.memory_index()) != (Register::None, Register::None);
                seen.by_index = index.then_some((0, 0));
                let parts = [i.memory_base(), i.memory_index()].into_iter().filter(|r| *r != Register::None);
                seen.indices.extend(parts.map(|r| (made, r)));
            }
            None => {}
        }
        seen.compared |= i.mnemonic() == Mnemonic::Cmp && !has_memory(i);
        match self.verdict(range, &seen, CALLS) {
            Leans::Nowhere if seen.compared && !loops::ends_with(self, range, made) => Leans::ToStart,
            Leans::Nowhere if self.text_begins(address) || self.is_only_use(made, address) => Leans::ToStart,
            leans => leans,
        }
    }

    fn verdict(&self, range: usize, seen: &Seen, left: usize) -> Leans {
        let negative = || {
            let code = Backwards::of(self, range);
            seen.indices.iter().any(|(at, register)| code.is_below(*at, *register))
        };
        match (seen.before, seen.behind) {
            (true, true) => return Leans::Nowhere,
            (true, false) => return Leans::ToEnd,
            (false, true) => return Leans::ToStart,
            (false, false) => match seen.by_index {
                Some((1.., _)) => return Leans::ToStart,
                Some((least, greatest)) if (least == 0 || greatest >= LAST) && !seen.taken_off && !negative() => {
                    return Leans::ToStart;
                }
                _ => {}
            },
        }
        let handed = seen.handed.iter().filter(|_| left > 0).filter_map(|(to, register)| {
            let (range, inside) = self.range_at(*to)?;
            (inside == 0).then_some((range, *register))
        });
        for (range, register) in handed {
            let ways = self.ways(range);
            let at = self.ranges[range].address;
            let mut inner = Seen::default();
            match ways.sight_of_argument(at, register).reached {
                Some(reached) => (inner.before, inner.behind) = (reached < 0, reached >= 0),
                None => {
                    let first = Fact { at, place: Place::Register(register), offset: 0, stepped: false };
                    follow(&ways, first, &mut inner);
                }
            }
            match self.verdict(range, &inner, left - 1) {
                Leans::Nowhere => {}
                found => return found,
            }
        }
        Leans::Nowhere
    }

    /// A text without a symbol begins there, where hardly something else is meant by chance.
    fn text_begins(&self, address: u64) -> bool {
        let bytes = self.image.bytes_from(address);
        let letters = bytes.iter().take_while(|b| matches!(b, b'\t'..=b'\r' | b' '..=b'~')).count();
        letters > 1 && bytes.get(letters) == Some(&0) && self.object_at(address).is_none()
    }

    /// Nothing else leads to what begins at an address, which would not be there if nobody used it.
    fn is_only_use(&self, made: u64, address: u64) -> bool {
        let end = match self.object_at(address) {
            Some((object, _)) if !self.objects[object].local => return false,
            Some((object, _)) => self.objects[object].end(),
            None => address + self.literal_span(address).max(1),
        };
        let inside = address..end;
        let leads = |word: &Word| matches!(word, Word::Address(to) if inside.contains(to));
        let other = |range: usize| {
            self.steps(range).any(|(at, step)| {
                let here = self.ranges[range].address + at as u64;
                here != made && step.fields.iter().any(|f| f.usage != Use::Branch && inside.contains(&f.target))
            })
        };
        !self.image.fixed && !self.image.words.values().any(leads) && !(0..self.ranges.len()).any(other)
    }
}

fn has_memory(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory)
}

/// The word of the frame that is an operand.
fn word(i: &Instruction) -> Option<Place> {
    let frame = matches!(i.memory_base(), Register::RSP | Register::RBP) && i.memory_index() == Register::None;
    (has_memory(i) && frame).then(|| Place::Word(i.memory_base(), i.memory_displacement64().cast_signed()))
}

fn follow(ways: &Ways<'_>, first: Fact, seen: &mut Seen) {
    let mut factory = InstructionInfoFactory::new();
    let mut known: FxHashSet<Fact> = FxHashSet::default();
    let mut open = vec![first];
    while let Some(fact) = open.pop() {
        if known.len() >= FACTS || !known.insert(fact) {
            continue;
        }
        let Some(step) = ways.step(fact.at) else { continue };
        look(&step, fact, ways, seen);
        let target = match step.instruction.flow_control() {
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                Some(step.instruction.near_branch_target())
            }
            _ => None,
        };
        let next = (!step.ends()).then(|| step.instruction.next_ip());
        for (place, offset, stepped) in behind(&step.instruction, fact, &mut factory) {
            if offset.abs() <= FAR {
                open.extend(target.into_iter().chain(next).map(|at| Fact { at, place, offset, stepped }));
            }
        }
    }
}

/// Notes what an instruction does with what is held before it.
fn look(step: &Step, fact: Fact, ways: &Ways<'_>, seen: &mut Seen) {
    let Place::Register(register) = fact.place else { return };
    let i = &step.instruction;
    let is = |r: Register| r != Register::None && r.full_register() == register;
    let (base, index) = (i.memory_base(), i.memory_index());
    let idle = matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Prefetcht0 | Mnemonic::Prefetchnta);
    let place = fact.offset.saturating_add(i.memory_displacement64().cast_signed());
    let with_index = is(index) || is(base) && index != Register::None;
    if has_memory(i) && i.mnemonic() != Mnemonic::Nop && with_index {
        seen.index(place);
        seen.indices.push((i.ip(), if is(base) { index } else { base }));
    } else if has_memory(i) && !idle && is(base) {
        match place {
            ..0 => seen.before = true,
            _ => seen.behind = true,
        }
    }
    let register_of = |n: u32| (n < i.op_count() && i.op_kind(n) == OpKind::Register).then(|| i.op_register(n));
    let either = || register_of(0).is_some_and(is) || register_of(1).is_some_and(is);
    seen.compared |= i.mnemonic() == Mnemonic::Cmp && fact.offset == 0 && !fact.stepped && either();
    if matches!(i.mnemonic(), Mnemonic::Add | Mnemonic::Sub) {
        let other = i.op_count() > 1 && i.try_immediate(1).is_err();
        if other && (register_of(0).is_some_and(is) || register_of(1).is_some_and(is)) {
            seen.index(fact.offset.min(0));
            let others = [register_of(0), register_of(1)].into_iter().flatten().filter(|r| !is(*r));
            seen.indices.extend(others.map(|r| (i.ip(), r)));
            seen.taken_off |= i.mnemonic() == Mnemonic::Sub;
        }
    }
    let string = |kind, r| (0..i.op_count()).any(|n| i.op_kind(n) == kind) && register == r;
    seen.behind |=
        fact.offset >= 0 && (string(OpKind::MemoryESRDI, Register::RDI) || string(OpKind::MemorySegRSI, Register::RSI));
    let leaves = match i.flow_control() {
        FlowControl::Call => true,
        FlowControl::UnconditionalBranch => ways.step(i.near_branch_target()).is_none(),
        _ => false,
    };
    if leaves && fact.offset == 0 && !fact.stepped && ARGUMENTS.contains(&register) {
        seen.handed.push((i.near_branch_target(), register));
    }
}

/// The number that an instruction adds to its first operand.
fn adds(i: &Instruction) -> Option<i64> {
    let number = || i.try_immediate(1).ok().map(u64::cast_signed);
    match i.mnemonic() {
        Mnemonic::Add => number(),
        Mnemonic::Sub => number().map(i64::wrapping_neg),
        Mnemonic::Inc => Some(1),
        Mnemonic::Dec => Some(-1),
        _ => None,
    }
}

/// Where the address is behind an instruction, before which it is in one place.
fn behind(i: &Instruction, fact: Fact, factory: &mut InstructionInfoFactory) -> Vec<(Place, i64, bool)> {
    let Fact { place, offset, stepped, .. } = fact;
    let calls = matches!(i.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    let to = (i.op_count() > 0 && i.op0_kind() == OpKind::Register).then(|| i.op0_register().full_register());
    let writes = |r: Register, factory: &mut InstructionInfoFactory| {
        let used = factory.info(i).used_registers().iter();
        used.into_iter()
            .any(|u| matches!(u.access(), OpAccess::Write | OpAccess::ReadWrite) && u.register().full_register() == r)
    };
    let moved = match to {
        Some(Register::RSP) => adds(i).unwrap_or(0),
        _ if calls => 0,
        _ => i64::from(i.stack_pointer_increment()),
    };
    let mut found = Vec::new();
    let first = i.op_count() > 0
        && match place {
            Place::Register(register) => to == Some(register),
            Place::Word(..) => i.op0_kind() == OpKind::Memory && word(i) == Some(place),
        };
    if let Some(added) = adds(i).filter(|_| first && !stepped) {
        found.push((place, offset.saturating_add(added), true));
    }
    match place {
        Place::Register(register) => {
            let second =
                i.op_count() > 1 && i.op1_kind() == OpKind::Register && i.op1_register().full_register() == register;
            match (i.mnemonic(), to) {
                (Mnemonic::Mov, Some(to)) if second => found.push((Place::Register(to), offset, stepped)),
                (Mnemonic::Mov, None) if second => found.extend(word(i).map(|word| (word, offset, stepped))),
                (Mnemonic::Push, Some(from)) if from == register => {
                    found.push((Place::Word(Register::RSP, -8), offset, stepped));
                }
                (Mnemonic::Lea, Some(to))
                    if i.memory_base().full_register() == register && i.memory_index() == Register::None =>
                {
                    let made = offset.saturating_add(i.memory_displacement64().cast_signed());
                    found.push((Place::Register(to), made, stepped));
                }
                (_, Some(to)) if second && i.condition_code() != iced_x86::ConditionCode::None => {
                    found.push((Place::Register(to), offset, stepped));
                }
                _ => {}
            }
            let lost = if calls { !KEPT.contains(&register) } else { writes(register, factory) };
            if !lost {
                found.push((place, offset, stepped));
            }
        }
        Place::Word(base, _) => {
            let reads = i.op_count() > 1 && i.op1_kind() == OpKind::Memory && word(i) == Some(place);
            let pops = i.mnemonic() == Mnemonic::Pop && place == Place::Word(Register::RSP, 0);
            if let Some(to) = to.filter(|_| reads && i.mnemonic() == Mnemonic::Mov || pops) {
                found.push((Place::Register(to), offset, stepped));
            }
            let set = first && !matches!(i.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
            let stays = base == Register::RSP || calls || !writes(base, factory);
            if !set && stays {
                found.push((place, offset, stepped));
            }
        }
    }
    // Words are counted from where the stack pointer is then.
    for (place, ..) in &mut found {
        if let Place::Word(Register::RSP, at) = place {
            *at = at.wrapping_sub(moved);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Fact, Place, Seen, follow};
    use crate::ahead::Ways;
    use iced_x86::Register;

    /// What is seen of an address that rdi has where this code begins.
    fn of(code: &[u8]) -> Seen {
        let mut seen = Seen::default();
        let first = Fact { at: 0x1000, place: Place::Register(Register::RDI), offset: 0, stepped: false };
        follow(&Ways::new(vec![(0x1000, code)], false), first, &mut seen);
        seen
    }

    #[test]
    fn what_is_read_says_it() {
        // mov al,[rdi+4]; ret. mov al,[rdi-4]; ret. lea rsi,[rdi-8]; mov al,[rsi]; ret
        let seen = of(&[0x8a, 0x47, 4, 0xc3]);
        assert!(seen.behind && !seen.before);
        assert!(of(&[0x8a, 0x47, 0xfc, 0xc3]).before);
        assert!(of(&[0x48, 0x8d, 0x77, 0xf8, 0x8a, 6, 0xc3]).before);
        // mov [rbp-16],rdi; sub qword [rbp-16],8; mov rax,[rbp-16]; mov al,[rax]; ret
        let frame = [0x48, 0x89, 0x7d, 0xf0, 0x48, 0x83, 0x6d, 0xf0, 8, 0x48, 0x8b, 0x45, 0xf0, 0x8a, 0, 0xc3];
        let seen = of(&frame);
        assert!(seen.before && !seen.behind);
    }

    #[test]
    fn what_is_only_handed_on_does_not() {
        // call 0x2000; ret
        let seen = of(&[0xe8, 0xfb, 0x0f, 0, 0, 0xc3]);
        assert!(!seen.before && !seen.behind && seen.by_index.is_none());
        assert_eq!(seen.handed, [(0x2000, Register::RDI)]);
        // mov al,[rdi+rsi-8]; ret
        let seen = of(&[0x8a, 0x44, 0x37, 0xf8, 0xc3]);
        assert_eq!((seen.by_index, seen.indices), (Some((-8, -8)), vec![(0x1000, Register::RSI)]));
    }
}
