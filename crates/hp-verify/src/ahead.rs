//! Addresses that lie before what they mean.
//!
//! `lea text-1(%rip),%rdx; mov $1,%ecx; mov (%rdx,%rcx),%al` refers to a text by the place before it: whoever compares
//! what lies at the address alone has compared nothing. From where the address is made, the ways of the code are followed once,
//! with the registers that hold it and the numbers that are known on the way.

use std::collections::VecDeque;

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::code::{self, Field, Step, Use};
use crate::entities::{Family, Side, text_length};
use crate::flags::{self, Flags, Way};
use crate::ground::{Answer, Ground, Within};
use crate::image::{Image, Section, Word};
use crate::report::Kind;

/// How far behind an address a constant begins at most that is meant by it, in bytes.
const AHEAD: u64 = 64;
/// How far before an address an array is looked for that its end stands for, in bytes.
const FAR: u64 = 4096;
/// Letters of a text that is taken for what unchanged code means that calculates with its address.
const LONG: usize = 8;

/// What code does with an address that it makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sight {
    /// Something is added to it.
    pub(crate) calculated: bool,
    /// Bytes from it to a place that is read or written on one of the ways.
    pub(crate) reached: Option<i64>,
}

#[derive(Clone, Default)]
struct State {
    /// Registers that hold the address plus a number.
    held: Vec<(Register, i64)>,
    numbers: FxHashMap<Register, i64>,
    /// Registers whose values come from such numbers, though it is not known how.
    mixed: FxHashSet<Register>,
    flags: Flags,
}

impl State {
    /// Goes one of the ways behind a conditional jump; false if the numbers do not go there.
    fn goes(&mut self, jump: &Instruction, taken: bool) -> bool {
        match flags::way(jump, self.flags, taken) {
            Way::Open => return true,
            Way::Closed => return false,
            Way::Doubtful => self.forget(),
        }
        true
    }

    /// No number is known any more.
    fn forget(&mut self) {
        self.numbers.clear();
        self.mixed.clear();
        self.flags = Flags::Apart;
    }
}

/// Code that is decoded where it is needed: the ranges of one function, with their addresses.
pub(crate) struct Ways<'w> {
    ranges: Vec<(u64, &'w [u8])>,
    absolute: bool,
    /// The build, which knows the calls that never come back.
    side: Option<&'w Side<'w>>,
}

impl<'w> Ways<'w> {
    pub(crate) fn new(ranges: Vec<(u64, &'w [u8])>, absolute: bool) -> Ways<'w> {
        Ways { ranges, absolute, side: None }
    }

    /// True if an instruction is a call behind which nothing runs.
    fn stays_away(&self, instruction: &Instruction) -> bool {
        let call = instruction.flow_control() == FlowControl::Call;
        call && self.side.is_some_and(|side| side.stays_away(instruction.near_branch_target()))
    }

    fn range(&self, at: u64) -> Option<(u64, &'w [u8])> {
        self.ranges.iter().copied().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&at))
    }

    pub(crate) fn step(&self, at: u64) -> Option<Step> {
        let (start, bytes) = self.range(at)?;
        code::step(at, &bytes[(at - start) as usize..], self.absolute)
    }

    /// What is known where the instruction at `made` makes an address: back to where another way comes in, nothing is.
    fn state_at(&self, made: u64, factory: &mut InstructionInfoFactory) -> State {
        let Some((start, bytes)) = self.range(made) else { return State::default() };
        let before = &bytes[..(made - start) as usize];
        let mut last: VecDeque<Step> = VecDeque::new();
        for (_, step) in code::steps(start, before, self.absolute) {
            if last.len() == NEAR {
                last.pop_front();
            }
            last.push_back(step);
        }
        let mut state = State::default();
        for step in last {
            set_numbers(&step.instruction, &mut state, factory);
            let conditional = step.instruction.flow_control() == FlowControl::ConditionalBranch;
            if step.ends() || conditional && !state.goes(&step.instruction, false) {
                state = State::default();
            }
        }
        state
    }

    /// What the code does with the address that the instruction at `made` makes.
    pub(crate) fn sight(&self, made: u64) -> Sight {
        let mut factory = InstructionInfoFactory::new();
        let Some(first) = self.step(made) else { return Sight::default() };
        let instruction = &first.instruction;
        let memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        if memory && !instruction.is_ip_rel_memory_operand() {
            let (base, index) = (instruction.memory_base(), instruction.memory_index());
            let state = self.state_at(made, &mut factory);
            return Sight {
                calculated: (base, index) != (Register::None, Register::None),
                reached: sum(instruction, &state, base, index).filter(|_| reads(instruction)),
            };
        }
        let makes = matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Mov);
        if !makes || instruction.op0_kind() != OpKind::Register {
            return Sight { calculated: true, reached: None };
        }
        // Most addresses are handed on as they are.
        let found = self.follow(&first, State::default(), &mut factory);
        if !found.calculated || found.reached.is_some() {
            return found;
        }
        let state = self.state_at(made, &mut factory);
        self.follow(&first, state, &mut factory)
    }

    /// What code that begins at `entry` does with an address that is in a register there.
    pub(crate) fn sight_of_argument(&self, entry: u64, register: Register) -> Sight {
        let state = State { held: vec![(register, 0)], ..State::default() };
        self.follow_from(entry, state, &mut InstructionInfoFactory::new())
    }

    fn follow(&self, first: &Step, mut state: State, factory: &mut InstructionInfoFactory) -> Sight {
        set_numbers(&first.instruction, &mut state, factory);
        state.held = vec![(first.instruction.op0_register().full_register(), 0)];
        self.follow_from(first.instruction.next_ip(), state, factory)
    }

    fn follow_from(&self, at: u64, state: State, factory: &mut InstructionInfoFactory) -> Sight {
        let mut found = Sight::default();
        let mut seen: FxHashSet<u64> = FxHashSet::default();
        let mut open = vec![(at, state)];
        // Where these numbers do not go others may.
        let mut later = Vec::new();
        while let Some((mut at, mut state)) = open.pop().or_else(|| later.pop()) {
            while !state.held.is_empty() && seen.insert(at) {
                let Some(step) = self.step(at) else { break };
                look(&step.instruction, &state, &mut found);
                go_on(&step.instruction, &mut state, factory);
                let jumps = matches!(
                    step.instruction.flow_control(),
                    FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
                );
                let target = jumps.then(|| step.instruction.near_branch_target());
                if step.ends() || !state.held.is_empty() && self.stays_away(&step.instruction) {
                    open.extend(target.map(|target| (target, state)));
                    break;
                }
                if let Some(target) = target {
                    let mut there = state.clone();
                    if there.goes(&step.instruction, true) {
                        open.push((target, there));
                    } else {
                        there.forget();
                        later.push((target, there));
                    }
                    if !state.goes(&step.instruction, false) {
                        state.forget();
                        later.push((step.instruction.next_ip(), state));
                        break;
                    }
                }
                at = step.instruction.next_ip();
            }
        }
        found
    }
}

/// Instructions before the one that makes the address in which numbers are looked for.
const NEAR: usize = 48;

fn reads(instruction: &Instruction) -> bool {
    !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) && !instruction.is_string_instruction()
}

/// The sum of what two parts of an operand hold, if both are known.
fn sum(instruction: &Instruction, state: &State, base: Register, index: Register) -> Option<i64> {
    let number = |r: Register| match r {
        Register::None => Some(0),
        r => state.numbers.get(&r.full_register()).copied(),
    };
    Some(number(base)?.wrapping_add(number(index)?.wrapping_mul(i64::from(instruction.memory_index_scale()))))
}

fn look(instruction: &Instruction, state: &State, found: &mut Sight) {
    let held = |r: Register| {
        let full = r.full_register();
        state.held.iter().find(|(holder, _)| r != Register::None && *holder == full).map(|(_, offset)| *offset)
    };
    let memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if memory && instruction.mnemonic() != Mnemonic::Nop {
        let by_index = held(index).filter(|_| instruction.memory_index_scale() == 1);
        found.calculated |= held(index).is_some() || held(base).is_some() && index != Register::None;
        let place = match (held(base), by_index) {
            (Some(offset), None) => sum(instruction, state, Register::None, index).map(|n| n.wrapping_add(offset)),
            (None, Some(offset)) if base != Register::None => {
                sum(instruction, state, base, Register::None).map(|n| n.wrapping_add(offset))
            }
            _ => None,
        };
        if reads(instruction) && found.reached.is_none() {
            found.reached = place.map(|p| p.wrapping_add(instruction.memory_displacement64() as i64));
        }
    }
    let operand = |n: u32| instruction.op_count() > n && instruction.op_kind(n) == OpKind::Register;
    let adds = matches!(instruction.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::Inc | Mnemonic::Dec);
    found.calculated |= adds
        && (operand(0) && held(instruction.op0_register()).is_some()
            || operand(1) && held(instruction.op1_register()).is_some());
}

/// The second operand as a number; one of 32 bits only if it is the same with a sign.
fn immediate(instruction: &Instruction) -> Option<i64> {
    match instruction.op1_kind() {
        OpKind::Immediate32 => i32::try_from(instruction.immediate32()).ok().map(i64::from),
        OpKind::Immediate8to32 => Some(i64::from(instruction.immediate8to32())).filter(|n| *n >= 0),
        OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(instruction.immediate(1) as i64),
        _ => None,
    }
}

/// What a register holds behind an instruction that sets it, of what is known.
fn result(instruction: &Instruction, numbers: &FxHashMap<Register, i64>) -> Option<i64> {
    let (to, two) = (instruction.op0_register(), instruction.op_count() > 1);
    let from = || (two && instruction.op1_kind() == OpKind::Register).then(|| instruction.op1_register());
    let known = |r: Register| numbers.get(&r.full_register()).copied();
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movsxd => immediate(instruction).or_else(|| known(from()?)),
        Mnemonic::Xor if from() == Some(to) => Some(0),
        // Zero is in what bits are taken of, and all ones in what bits are added to.
        Mnemonic::And if immediate(instruction).is_some_and(|n| n >= 0) => Some(0),
        Mnemonic::Or if to.size() == 8 => immediate(instruction).filter(|n| *n < 0),
        Mnemonic::Not if to.size() == 8 => known(to).map(|n| !n),
        Mnemonic::Neg if to.size() == 8 => known(to).map(i64::wrapping_neg),
        Mnemonic::Shl if to.size() == 8 && instruction.op1_kind() == OpKind::Immediate8 => {
            Some(known(to)?.wrapping_shl(u32::from(instruction.immediate8())))
        }
        Mnemonic::Sub if to.size() == 8 && from().is_some() => Some(known(to)?.wrapping_sub(known(from()?)?)),
        Mnemonic::Add => Some(known(to)?.wrapping_add(immediate(instruction)?)),
        Mnemonic::Sub => Some(known(to)?.wrapping_sub(immediate(instruction)?)),
        Mnemonic::Inc => Some(known(to)?.wrapping_add(1)),
        Mnemonic::Dec => Some(known(to)?.wrapping_sub(1)),
        Mnemonic::Lea
            if instruction.memory_index() == Register::None && instruction.memory_base() != Register::None =>
        {
            Some(known(instruction.memory_base())?.wrapping_add(instruction.memory_displacement64() as i64))
        }
        Mnemonic::Lea
            if instruction.memory_base() == Register::None
                && instruction.memory_index() != Register::None
                && to.size() == 8 =>
        {
            let times = i64::from(instruction.memory_index_scale());
            let number = known(instruction.memory_index())?.wrapping_mul(times);
            Some(number.wrapping_add(instruction.memory_displacement64() as i64))
        }
        _ => None,
    }
}

fn written(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Vec<Register> {
    let used = factory.info(instruction).used_registers().iter();
    let writes = used.filter(|u| !matches!(u.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None));
    writes.map(|u| u.register().full_register()).collect()
}

const KEPT: [Register; 6] = [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

fn set_numbers(instruction: &Instruction, state: &mut State, factory: &mut InstructionInfoFactory) {
    let to = (instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register)
        .then(|| instruction.op0_register())
        .filter(|to| to.size() >= 4);
    let number = to.and_then(|to| Some((to.full_register(), result(instruction, &state.numbers)?)));
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        state.numbers.retain(|register, _| KEPT.contains(register));
        state.mixed.retain(|register| KEPT.contains(register));
        state.flags = Flags::Apart;
        return;
    }
    let used = factory.info(instruction).used_registers().iter();
    let reads = |access| !matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::None);
    let has = |r: Register| state.numbers.contains_key(&r) || state.mixed.contains(&r);
    let has_part = used.filter(|u| reads(u.access())).any(|u| has(u.register().full_register()));
    if instruction.rflags_modified() != 0 {
        let known = |n: u32| match n < instruction.op_count() {
            true if instruction.op_kind(n) == OpKind::Register => {
                state.numbers.get(&instruction.op_register(n).full_register()).copied()
            }
            true => instruction.try_immediate(n).ok().map(u64::cast_signed),
            false => None,
        };
        // What a place in memory has that a known number leads to may go with the number.
        let place = [instruction.memory_base(), instruction.memory_index()];
        let apart = |n: u32| match instruction.op_kind(n) {
            OpKind::Register => !has(instruction.op_register(n).full_register()),
            OpKind::Memory => !place.iter().any(|r| has(r.full_register())),
            _ => true,
        };
        state.flags = flags::behind(instruction, &known, &apart, has_part);
    }
    for register in written(instruction, factory) {
        state.numbers.remove(&register);
        match has_part {
            true => state.mixed.insert(register),
            false => state.mixed.remove(&register),
        };
    }
    if let Some((register, number)) = number {
        state.mixed.remove(&register);
        state.numbers.insert(register, number);
    }
}

/// What is known behind an instruction.
fn go_on(instruction: &Instruction, state: &mut State, factory: &mut InstructionInfoFactory) {
    let to = (instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register)
        .then(|| instruction.op0_register().full_register());
    let held = |r: Register| state.held.iter().find(|(h, _)| *h == r.full_register()).map(|(_, offset)| *offset);
    let conditional = instruction.condition_code() != iced_x86::ConditionCode::None;
    let copied = match instruction.mnemonic() {
        Mnemonic::Lea if instruction.memory_index() == Register::None => {
            held(instruction.memory_base()).map(|n| n.wrapping_add(instruction.memory_displacement64() as i64))
        }
        _ if instruction.op_count() < 2 || instruction.op1_kind() != OpKind::Register => None,
        Mnemonic::Mov => held(instruction.op1_register()),
        _ if conditional => held(instruction.op1_register()),
        _ => None,
    };
    let moved = match (instruction.mnemonic(), to.and_then(held)) {
        (Mnemonic::Add, Some(n)) => {
            let register =
                || (instruction.op1_kind() == OpKind::Register).then(|| instruction.op1_register().full_register());
            let other = || state.numbers.get(&register()?).copied();
            immediate(instruction).or_else(other).map(|i| n.wrapping_add(i))
        }
        (Mnemonic::Sub, Some(n)) => immediate(instruction).map(|i| n.wrapping_sub(i)),
        (Mnemonic::Inc, Some(n)) => Some(n.wrapping_add(1)),
        (Mnemonic::Dec, Some(n)) => Some(n.wrapping_sub(1)),
        _ => None,
    };
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        state.held.retain(|(register, _)| KEPT.contains(register));
    } else if !conditional {
        let written = written(instruction, factory);
        state.held.retain(|(register, _)| !written.contains(register));
    }
    if let (Some(to), Some(offset)) = (to, copied.or(moved)) {
        state.held.retain(|(register, _)| *register != to);
        state.held.push((to, offset));
    }
    set_numbers(instruction, state, factory);
}

impl Side<'_> {
    /// Where the constants without a symbol begin that lie shortly behind an address, at which none reaches as far itself,
    /// and where the last one of them ends.
    pub(crate) fn ahead(&self, address: u64) -> Option<(Vec<u64>, u64)> {
        if self.is_label_table(address) {
            return None;
        }
        let constant = |at: u64| self.image.section_at(at).filter(|s| s.is_constant() && !s.code && !s.is_slots());
        let begin = |s: &&Section<'_>| {
            s.is_constant() && !s.code && !s.is_slots() && s.address.checked_sub(address).is_some_and(|n| n <= AHEAD)
        };
        let (start, section) = match constant(address) {
            Some(section) => (address, section),
            None => self.image.sections.iter().find(begin).map(|s| (s.address, s))?,
        };
        let limit = address.saturating_add(AHEAD).min(section.end());
        let (mut at, mut starts, mut last) = (start, Vec::new(), start);
        while at < limit {
            if let Some((object, _)) = self.object_at(at) {
                at = self.objects[object].end().max(at + 1);
                continue;
            }
            let span = self.literal_span(at).max(1);
            // Code has the start of a table of distances, since it adds that to what it reads.
            let table = self.is_label_table(at) || self.tables.contains(&at);
            if !table && self.is_filled(at, span) {
                starts.extend(Some(at).filter(|at| *at > address));
                last = at + self.literal(at).len() as u64;
            }
            at += span;
        }
        (!starts.is_empty()).then_some((starts, last))
    }
}

/// What the new build means by an address near which constants begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    /// What lies there.
    Here,
    /// The constant that begins at another address, and not what lies there.
    There(u64),
    /// What lies there or one of these.
    Any(Vec<u64>),
    /// A constant without a symbol that lies before it, so many bytes at least.
    Before(u64),
}

impl Side<'_> {
    /// The object that ends at an address, and those that begin shortly behind it.
    pub(crate) fn objects_near(&self, address: u64) -> impl Iterator<Item = usize> {
        let first = self.objects.partition_point(|o| o.address < address);
        let ending = first.checked_sub(1).filter(|last| self.objects[*last].end() == address);
        let behind = self.objects[first..].iter().enumerate().skip_while(move |(_, o)| o.address == address);
        let near = behind.take_while(move |(_, o)| o.address - address <= AHEAD);
        ending.into_iter().chain(near.map(move |(i, _)| first + i))
    }

    /// What code of range `range` does with the address that its instruction at `made` makes.
    fn sight(&self, range: usize, made: u64) -> Sight {
        self.ways(range).sight(made)
    }

    /// The ways of the function that a range belongs to.
    pub(crate) fn ways(&self, range: usize) -> Ways<'_> {
        let part = |part: &usize| (self.ranges[*part].address, self.ranges[*part].bytes);
        let parts = self.family(self.ranges[range].parent).iter().map(part).collect();
        Ways { side: Some(self), ..Ways::new(parts, self.image.fixed) }
    }

    /// What code of range `range` means by `address`, which its instruction at `made` makes.
    pub(crate) fn meant(&self, range: usize, made: u64, address: u64) -> Meant {
        let (starts, objects) = (self.ahead(address), self.objects_near(address).next().is_some());
        if starts.is_none() && !objects && !self.is_unnamed(address.wrapping_sub(1)) {
            return Meant::Here;
        }
        let seen = self.sight(range, made);
        if !seen.calculated {
            return Meant::Here;
        }
        let place = seen.reached.map(|reached| address.wrapping_add_signed(reached));
        if let Some((object, _)) =
            place.and_then(|place| self.object_at(place)).filter(|_| objects && !self.markers.contains_key(&address))
        {
            let start = self.objects[object].address;
            // An index may have the number of an array's elements and not be used then.
            let ends = |(here, _): (usize, _)| Some(self.objects[here].end()) == place;
            match self.object_at(address).is_some_and(ends) {
                // An index that runs up to the end.
                _ if self.objects[object].end() == address => return Meant::There(start),
                _ if start <= address => {}
                true => return Meant::Any(vec![start]),
                false => return Meant::There(start),
            }
        }
        if let Some(place) = place.filter(|place| *place < address && self.is_unnamed(*place)) {
            return Meant::Before(address - place);
        }
        let Some((starts, _)) = starts else { return Meant::Here };
        let there = |from: u64, place: u64| match self.start_by(from, place) {
            Some(start) if start == address => Meant::Here,
            Some(start) => Meant::There(start),
            None => Meant::Any(starts.clone()),
        };
        if let Some((object, _)) = self.object_at(address) {
            let end = self.objects[object].end();
            return place.filter(|place| *place > end).map_or(Meant::Here, |place| there(end, place));
        }
        let Some(place) = place else { return Meant::Any(starts) };
        if place <= address {
            return Meant::Here;
        }
        match self.image.section_at(address).filter(|s| !s.code) {
            Some(_) => there(address, place),
            None => there(self.image.section_at(place).map_or(place, |s| s.address), place),
        }
    }

    /// The objects behind `address` that code may mean which adds to that what nobody knows, though it lies in another object, or where
    /// nothing is.
    pub(crate) fn perhaps_behind(&self, range: usize, made: u64, address: u64) -> Vec<usize> {
        let inside = match self.object_at(address) {
            Some((_, offset)) => offset > 0,
            None => self.is_constant(address) && !self.is_filled(address, self.literal_span(address)),
        };
        if !inside || self.markers.contains_key(&address) {
            return Vec::new();
        }
        let behind: Vec<usize> = self.objects_near(address).filter(|o| self.objects[*o].address > address).collect();
        if behind.is_empty() {
            return behind;
        }
        let seen = self.sight(range, made);
        if !seen.calculated || seen.reached.is_some() {
            return Vec::new();
        }
        // Who has the start of the one, and nothing of the other, means that.
        let family = Family::of(self, self.ranges[range].parent);
        let start = self.object_at(address).map(|(here, _)| self.objects[here].address);
        let has_start = start.is_some_and(|start| family.uses(start, start + 1));
        let used = |o: &usize| family.uses(self.objects[*o].address, self.objects[*o].end());
        behind.into_iter().filter(|o| !has_start || used(o)).collect()
    }

    /// Constant data that no symbol covers.
    fn is_unnamed(&self, place: u64) -> bool {
        let data = self.image.section_at(place).is_some_and(|s| !s.code && !s.is_slots());
        data && self.is_constant(place) && self.object_at(place).is_none()
    }

    /// Where what is at `place` begins, from `from` on: behind the last terminator, if a text reaches from there to the place.
    fn start_by(&self, from: u64, place: u64) -> Option<u64> {
        let before = self.image.bytes(from, place.checked_sub(from)?)?;
        let Some(last) = before.iter().rposition(|b| *b == 0) else { return Some(from) };
        let start = from + last as u64 + 1;
        (start + self.letters(start) as u64 > place).then_some(start)
    }

    /// True if an address is no usual start of a constant, so that code which makes it may mean one that begins behind it.
    pub(crate) fn may_be_odd(&self, address: u64) -> bool {
        let section = self.image.section_at(address).filter(|s| !s.code);
        let data = section.is_none_or(|s| s.is_constant() && self.object_at(address).is_none());
        data && self.range_at(address).is_none() && self.letters(address) == 0
    }

    /// Letters of a text that begins there, and does not only go on.
    pub(crate) fn letters(&self, place: u64) -> usize {
        let begins = self.image.bytes(place.wrapping_sub(1), 1).is_some_and(|b| matches!(b[0], 0 | 0xf8..));
        if begins { text_length(self.image.bytes_from(place)).saturating_sub(1) } else { 0 }
    }

    /// Two entries at least that lead from here to one and the same function: distances, or addresses inside of it, which
    /// nothing but a jump reads.
    pub(crate) fn is_label_table(&self, at: u64) -> bool {
        let parent = |range: usize| self.ranges[range].parent;
        let distance = |n: u64| {
            let distance = self.image.i32_at(at + 4 * n)?;
            let (range, _) = self.range_at(at.wrapping_add_signed(i64::from(distance)))?;
            Some(parent(range))
        };
        let label = |n: u64| {
            let target = match self.image.words.get(&(at + 8 * n)) {
                Some(Word::Address(target)) => Some(*target),
                _ => self.image.u64_at(at + 8 * n).filter(|_| self.image.fixed),
            };
            let (range, inside) = self.range_at(target?)?;
            (inside > 0).then(|| parent(range))
        };
        let two = |entry: &dyn Fn(u64) -> Option<usize>| entry(0).is_some_and(|first| entry(1) == Some(first));
        two(&distance) || at.is_multiple_of(8) && two(&label)
    }
}

impl Ground<'_, '_> {
    /// The object that begins shortly behind `n`, or ends there, is what the instruction at `here` in range `g` of the new build
    /// means, and is the same; `None` if it does not mean that, or the same objects are there in both builds.
    fn same_object_ahead(&self, (a, n): (u64, u64), (g, here): (usize, u64), within: Within<'_>) -> Option<Answer> {
        let near = |side: &Side<'_>, from: u64| {
            let all: Vec<usize> = side.objects_near(from).collect();
            let distances: Vec<u64> = all.iter().map(|o| side.objects[*o].address.wrapping_sub(from)).collect();
            (all, distances)
        };
        let ((old, x), (new, y)) = (near(self.old, a), near(self.new, n));
        let paired = |(o, p): (usize, usize)| self.pairs.objects.new_of(o) == Some(p) && self.is_unchanged(o);
        if x == y && old.into_iter().zip(new).all(paired) {
            return None;
        }
        let same = |at: u64| self.same(a.wrapping_add(at.wrapping_sub(n)), at, Use::Address, within);
        match self.new.meant(g, here, n) {
            Meant::There(at) if self.new.object_at(at).is_some() => Some(same(at)),
            Meant::Any(all) if all.iter().any(|at| self.new.object_at(*at).is_some()) => {
                all.into_iter().map(same).find(Result::is_err)
            }
            _ => None,
        }
    }

    /// What lies before `n` is the same, if an index leads there and the bytes differ; else `None`.
    fn same_before_index(&self, (a, n): (u64, u64), (g, here): (usize, u64), within: Within<'_>) -> Option<Answer> {
        if !self.new.is_unnamed(n.wrapping_sub(1)) {
            return None;
        }
        let room = n - self.new.last_border(n).max(n.saturating_sub(FAR));
        let bytes = |image: &Image<'_>, from: u64| image.bytes(from.wrapping_sub(room), room).map(<[u8]>::to_vec);
        let plain = self.new.image.words.range(n - room..n).next().is_none();
        if plain && bytes(&self.old.image, a) == bytes(&self.new.image, n) {
            return None;
        }
        match self.new.meant(g, here, n) {
            Meant::Before(bytes) => Some(self.same_before(a, n, bytes, within)),
            _ => None,
        }
    }

    /// What a field of the instruction at `here` in range `g` of the new build means is the same, if that may begin behind
    /// the address and the bytes there differ; else `None`.
    pub(crate) fn same_ahead(
        &self,
        (old, new): (&Field, &Field),
        (g, here): (usize, u64),
        within: Within<'_>,
    ) -> Option<Answer> {
        let (a, n) = (old.target, new.target);
        if !self.makes_address(new, within) {
            return None;
        }
        if let Some(answer) = self.same_object_ahead((a, n), (g, here), within) {
            return Some(answer);
        }
        if let Some(answer) = self.same_before_index((a, n), (g, here), within) {
            return Some(answer);
        }
        let (starts, end) = self.new.ahead(n)?;
        let start = if self.new.is_constant(n) { n } else { starts[0] };
        let bytes = |image: &Image<'_>, from: u64| image.bytes(from, end - start).map(<[u8]>::to_vec);
        let plain = self.new.image.words.range(start..end).next().is_none();
        let alike = plain && bytes(&self.old.image, a.wrapping_add(start - n)) == bytes(&self.new.image, start);
        if alike && start == n {
            return None;
        }
        match self.new.meant(g, here, n) {
            Meant::Here | Meant::Before(_) => None,
            Meant::There(at) => Some(self.same(a.wrapping_add(at.wrapping_sub(n)), at, Use::Address, within)),
            // Where a long text begins, hardly something else is meant by chance.
            Meant::Any(_) if self.old.letters(a).min(self.new.letters(n)) >= LONG => None,
            Meant::Any(starts) => {
                let each = starts
                    .into_iter()
                    .try_for_each(|at| self.same(a.wrapping_add(at - n), at, Use::Address, within).map(|_| ()));
                let each = each.or_else(|doubt| if self.same_neighbours(a, n, within) { Ok(()) } else { Err(doubt) });
                each.err().map(Err).or_else(|| (start != n).then_some(Ok(Kind::Literal)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Sight, Ways};

    fn of(code: &[u8], made: u64) -> Sight {
        Ways::new(vec![(0x1000, code)], true).sight(0x1000 + made)
    }

    /// `lea rdx,[rip+0x100]`
    const MAKES: [u8; 7] = [0x48, 0x8d, 0x15, 0, 1, 0, 0];

    #[test]
    fn an_index_that_runs_from_one() {
        // mov ecx,1; lea rdx,[rip+0x100]; L: mov al,[rdx+rcx]; add rcx,1; test al,al; jne L; ret
        let code =
            [&[0xb9, 1, 0, 0, 0][..], &MAKES, &[0x8a, 4, 0x0a, 0x48, 0x83, 0xc1, 1, 0x84, 0xc0, 0x75, 0xf5, 0xc3]]
                .concat();
        assert_eq!(of(&code, 5), Sight { calculated: true, reached: Some(1) });
    }

    #[test]
    fn an_index_that_is_larger_where_it_is_used() {
        // xor ecx,ecx; lea rdx,[rip+0x100]; L: cmp rcx,1; jbe M; mov al,[rdx+rcx]; M: add rcx,1; cmp rcx,rsi; jne L; ret
        let loops =
            [0x48, 0x83, 0xf9, 1, 0x76, 3, 0x8a, 4, 0x0a, 0x48, 0x83, 0xc1, 1, 0x48, 0x39, 0xf1, 0x75, 0xee, 0xc3];
        let code = [&[0x31, 0xc9][..], &MAKES, &loops].concat();
        assert_eq!(of(&code, 2), Sight { calculated: true, reached: None });
        // From 2 on it is used.
        let code = [&[0xb9, 2, 0, 0, 0][..], &MAKES, &loops].concat();
        assert_eq!(of(&code, 5), Sight { calculated: true, reached: Some(2) });
        // xor ecx,ecx; lea esi,[rcx-2]; cmp esi,5; ja (the ret); lea rdx,[rip+0x100]; mov al,[rdx+rcx]; ret
        let code =
            [&[0x31, 0xc9, 0x8d, 0x71, 0xfe, 0x83, 0xfe, 5, 0x77, 10][..], &MAKES, &[0x8a, 4, 0x0a, 0xc3]].concat();
        assert_eq!(of(&code, 10), Sight { calculated: true, reached: None });
        // xor ecx,ecx; imul esi,ecx,3; cmp esi,5; jb (the ret); lea rdx,[rip+0x100]; mov al,[rdx+rcx]; ret
        let code = [&[0x31, 0xc9, 0x6b, 0xf1, 3, 0x83, 0xfe, 5, 0x72, 10][..], &MAKES, &[0x8a, 4, 0x0a, 0xc3]].concat();
        assert_eq!(of(&code, 10), Sight { calculated: true, reached: None });
    }

    #[test]
    fn an_index_that_nobody_knows_and_none() {
        // mov al,[rdx+rdi]; ret
        assert_eq!(of(&[&MAKES[..], &[0x8a, 4, 0x3a, 0xc3]].concat(), 0), Sight { calculated: true, reached: None });
        // mov rdi,rdx; call +0; mov al,[rdx+rcx]: the call has changed rdx
        let code = [&MAKES[..], &[0x48, 0x89, 0xd7, 0xe8, 0, 0, 0, 0, 0x8a, 4, 0x0a]].concat();
        assert_eq!(of(&code, 0), Sight::default());
    }

    #[test]
    fn behind_a_jump() {
        // jmp L; int3; L: mov al,[rdx+2]; inc rdx; ret
        let code = [&MAKES[..], &[0xeb, 1, 0xcc, 0x8a, 0x42, 2, 0x48, 0xff, 0xc2, 0xc3]].concat();
        assert_eq!(of(&code, 0), Sight { calculated: true, reached: Some(2) });
    }

    #[test]
    fn a_displacement_in_a_fixed_image() {
        // xor eax,eax; mov cl,[rax+0x404000]
        assert_eq!(of(&[0x31, 0xc0, 0x8a, 0x88, 0, 0x40, 0x40, 0], 2), Sight { calculated: true, reached: Some(0) });
    }
}
