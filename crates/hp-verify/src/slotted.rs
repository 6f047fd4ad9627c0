//! Instructions of the patch that reach a thing of a library by a slot, where the new build has the thing's address in the
//! instruction: a variable that it copies at start-up, or a function for which its own stub stands everywhere.
//!
//! Three forms are accepted, and nothing else. The slot is read in place; or in code apart, to which the instruction has become a
//! jump and which jumps back behind it; or the code apart frees a register, reads the slot into it, does what
//! the instruction does with the register in the place of the instruction pointer or of the number, and gives the
//! register back. The stack pointer is first moved past the 128 bytes that a function may use below it (psABI for
//! AMD64, 3.2.2).

use hp_pack::{Place as SymbolPlace, SectionKind};
use iced_x86::{Code, FlowControl, InstructionInfoFactory, OpKind, Register};

use crate::code::{self, Field, Step, Use};
use crate::ground::{Doubt, Within, is_number};
use crate::image::Word;
use crate::overlay::{Layout, Place};
use crate::report::Kind;
use crate::walk::Walk;

/// Code that stands for one instruction of the new build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Apart {
    pub(crate) size: u64,
    /// The instruction's address in the new build, and that of the next one.
    pub(crate) instruction: (u64, u64),
    pub(crate) lowered: Lowered,
}

/// What the patch has for an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// Whose slot it reads.
    symbol: u32,
    /// Into which register.
    register: Register,
    /// The instruction that then uses the register; without one the register is what is wanted.
    then: Option<Vec<u8>>,
    /// What is added to what the slot holds.
    added: i64,
    /// Offset in `.text` of the code apart, its size, and where it lowers the stack pointer.
    apart: Option<(u64, u64, Lowered)>,
}

/// From which offset on the stack pointer is so many bytes lower.
type Lowered = Vec<(u64, u64)>;

const RED_ZONE: i64 = 128;

impl Walk<'_, '_, '_> {
    /// Judges an instruction of the patch, at an offset of `.text`, that is another one than in the new build. `None` if it is of
    /// none of the forms.
    pub(crate) fn same_through_slot(
        &mut self,
        offset: u64,
        (address, bytes, step): (u64, &[u8], &Step),
        within: Within<'_>,
    ) -> Option<Result<Kind, Doubt>> {
        let mut all = self.layouts.iter().map(|layout| read(layout, offset, bytes.len()));
        let found = all.next()??;
        if !all.all(|other| other.as_ref() == Some(&found)) {
            return None;
        }
        Some(self.judge(&found, (address, bytes, step), within))
    }

    fn judge(
        &mut self,
        found: &Found,
        (address, bytes, step): (u64, &[u8], &Step),
        within: Within<'_>,
    ) -> Result<Kind, Doubt> {
        let field = match &found.then {
            None => loads_address(step, found.register)?,
            Some(then) => same_but_for_base(then, found, bytes, step)
                .or_else(|_| same_but_for_number(then, found, bytes, step))?,
        };
        for other in step.fields.iter().filter(|f| f.at != field.at) {
            let place = self.ground.new.image.contains(other.target) || self.ground.old.image.contains(other.target);
            if other.relative || place && !is_number(self.ground.new, within.new, other.target) {
                return Doubt::no("more than one of its fields leads somewhere");
            }
        }
        let kind = self.same_of_library((found.symbol, found.added), field.target, field.usage, within)?;
        if let Some((at, size, lowered)) = &found.apart {
            let instruction = (address, address + bytes.len() as u64);
            let apart = Apart { size: *size, instruction, lowered: lowered.clone() };
            let known = self.apart.entry(*at).or_insert_with(|| apart.clone());
            if *known != apart || self.code.contains_key(at) {
                return Doubt::no(format!("the code at .text+{at:#x} stands for more than one instruction"));
            }
        }
        Ok(kind)
    }

    /// Is so many bytes behind an import what the new build has at `n`?
    pub(crate) fn same_of_library(
        &mut self,
        (symbol, added): (u32, i64),
        n: u64,
        usage: Use,
        within: Within<'_>,
    ) -> Result<Kind, Doubt> {
        let (import, new) = (&self.patch.symbols[symbol as usize], self.ground.new);
        if import.place != SymbolPlace::Import {
            return Doubt::no("reads the slot of something that is no import");
        }
        let start = n.wrapping_sub(added as u64);
        let Some(Word::Copy(name)) = new.image.words.get(&start) else {
            return match added {
                0 => self.same_import(symbol, new.image.stub_word(n)),
                _ => Doubt::no("leads to an offset from an import"),
            };
        };
        if *name != import.name || import.weak {
            return Doubt::no(format!("the new build has a copy of {name} there, not {}", import.name));
        }
        let own = new.objects.iter().find(|o| o.address == start).map_or(0, |o| o.size as i64);
        if let Use::Access(size) = usage {
            let inside = added >= 0 && added.checked_add_unsigned(size).is_some_and(|end| end <= own);
            return if inside { Ok(Kind::Import) } else { Doubt::no("the access reaches beyond its object") };
        }
        let others = new.readings(n).into_iter().filter(|r| r.1 >= 0 && new.objects[r.0].address != start);
        let mut others = others.map(|r| &new.objects[r.0]);
        if let Some(other) = others.find(|o| within.new.is_none_or(|f| f.uses(o.address, o.end()))) {
            return Doubt::no(format!("may also mean {}, which lies elsewhere in the base", other.names[0]));
        }
        let marked = new.markers.get(&n).into_iter().flatten();
        let known = |name: &&&str| self.ground.old.markers.values().any(|names| names.contains(name));
        if let Some(name) = marked.clone().find(known).filter(|_| within.patch && !within.startup) {
            return Doubt::no(format!("may also mean the linker's {name}, which lies elsewhere in the base"));
        }
        Ok(Kind::Import)
    }
}

/// The field of an instruction that makes an address and nothing else of it, in this register.
fn loads_address(step: &Step, register: Register) -> Result<Field, Doubt> {
    let i = &step.instruction;
    let whole = i.op0_kind() == OpKind::Register && i.op0_register().full_register() == register;
    let form = match i.code() {
        Code::Lea_r64_m => i.is_ip_rel_memory_operand(),
        Code::Mov_r32_imm32 | Code::Mov_r64_imm64 | Code::Mov_rm64_imm32 | Code::Mov_rm32_imm32 => true,
        _ => false,
    };
    match step.fields.first() {
        Some(field) if step.fields.len() == 1 && whole && form && field.usage == Use::Address => Ok(*field),
        _ => Doubt::no(format!("the patch reads a slot where the new build has `{i}`")),
    }
}

/// The field of an instruction that the patch repeats with a register for the instruction pointer.
fn same_but_for_base(then: &[u8], found: &Found, bytes: &[u8], step: &Step) -> Result<Field, Doubt> {
    let other = || Doubt::No(format!("the code apart does not do what `{}` does", step.instruction));
    let field = step.fields.iter().find(|f| f.relative && f.usage != Use::Branch && f.width == 4).ok_or_else(other)?;
    let modrm = field.at.checked_sub(1).ok_or_else(other)?;
    let plain = |at: &usize| !(modrm..field.at + 4).contains(at);
    let equal = then.len() == bytes.len()
        && (0..bytes.len()).filter(plain).all(|at| then[at] == bytes[at])
        && then[modrm] & 0x38 == bytes[modrm] & 0x38;
    let mine = code::step(0, then, false).ok_or_else(other)?.instruction;
    let theirs = &step.instruction;
    let mut info = InstructionInfoFactory::new();
    let used: Vec<Register> = info.info(theirs).used_registers().iter().map(|u| u.register().full_register()).collect();
    let right = equal
        && mine.code() == theirs.code()
        && mine.memory_base() == found.register
        && mine.memory_index() == Register::None
        && mine.memory_displacement64() as i64 == found.added
        && mine.segment_prefix() == Register::None
        && theirs.flow_control() == FlowControl::Next
        && theirs.memory_base() == Register::RIP
        && !used.contains(&found.register)
        && !used.contains(&Register::RSP);
    if right { Ok(*field) } else { Err(other()) }
}

/// The number of an instruction of 64 bits, in the place of which the patch has a register.
fn same_but_for_number(then: &[u8], found: &Found, bytes: &[u8], step: &Step) -> Result<Field, Doubt> {
    /// By how much the stack pointer is lower there.
    const LOWER: u64 = 136;
    let other = || Doubt::No(format!("the code apart does not do what `{}` does", step.instruction));
    let mine = code::step(0, then, false).ok_or_else(other)?.instruction;
    let theirs = &step.instruction;
    let mut info = InstructionInfoFactory::new();
    let used = info.info(theirs).used_registers().to_vec();
    let uses = |register| used.iter().any(|u| u.register().full_register() == register);
    let on_stack = theirs.op0_kind() == OpKind::Memory && theirs.memory_base() == Register::RSP;
    let lower = if on_stack { LOWER } else { 0 };
    let same_first = match (mine.op0_kind(), theirs.op0_kind()) {
        (OpKind::Register, OpKind::Register) => {
            mine.op0_register() == theirs.op0_register() && mine.op0_register().is_gpr64()
        }
        (OpKind::Memory, OpKind::Memory) => {
            let parts = |i: &iced_x86::Instruction| {
                (i.memory_base(), i.memory_index(), i.memory_index_scale(), i.segment_prefix(), i.memory_size().size())
            };
            parts(&mine) == parts(theirs)
                && theirs.memory_base() != Register::RIP
                && mine.memory_displacement64() == theirs.memory_displacement64().wrapping_add(lower)
                && theirs.memory_size().size() == 8
        }
        _ => false,
    };
    let right = same_first
        && mine.mnemonic() == theirs.mnemonic()
        && [mine.op_count(), theirs.op_count()] == [2, 2]
        && mine.op1_kind() == OpKind::Register
        && mine.op1_register() == found.register
        && theirs.op1_kind() == OpKind::Immediate32to64
        && !mine.has_lock_prefix()
        && !theirs.has_lock_prefix()
        && theirs.flow_control() == FlowControl::Next
        && !uses(found.register)
        && (on_stack || !uses(Register::RSP));
    let at = code::immediate(bytes).filter(|_| right).ok_or_else(other)?.0;
    step.fields.iter().find(|f| f.at == at).copied().ok_or_else(other)
}

/// What a layout of the patch has in place of an instruction of `length` bytes.
fn read(layout: &Layout, offset: u64, length: usize) -> Option<Found> {
    let base = layout.address(SectionKind::Text)?;
    let step_at = |at: u64| code::step(base + at, layout.bytes_from(SectionKind::Text, at), false);
    let jump_at = |at: u64| {
        let step = step_at(at).filter(|s| s.len() == 5 && s.ends())?;
        let target = step.fields.first().filter(|f| f.usage == Use::Branch)?.target;
        match layout.place(target) {
            Place::Payload(SectionKind::Text, to) => u64::try_from(to).ok(),
            _ => None,
        }
    };
    let load = |step: &Step| match step.fields.first().map(|f| layout.place(f.target)) {
        Some(Place::Slot(symbol)) if step.instruction.code() == Code::Mov_r64_rm64 => {
            Some((symbol, step.instruction.op0_register()))
        }
        _ => None,
    };
    let first = step_at(offset)?;
    if let Some((symbol, register)) = load(&first) {
        let rest = layout.bytes_from(SectionKind::Text, offset).get(first.len()..length)?;
        let filled = code::padding(rest) == rest.len();
        return filled.then_some(Found { symbol, register, then: None, added: 0, apart: None });
    }
    let start = jump_at(offset).filter(|_| length >= 5)?;
    let back = offset + length as u64;
    let mut at = start;
    let mut next = || {
        let step = step_at(at)?;
        at += step.len() as u64;
        Some((at - start, step))
    };
    let (freed, step) = next()?;
    if let Some((symbol, register)) = load(&step) {
        let (mut end, step) = next()?;
        let mut added = 0;
        if let Some((.., distance)) = address(&step).filter(|a| a.0 == register && a.1 == register) {
            (added, end) = (distance, next()?.0);
        }
        let (jump, size) = (start + end - 5, end);
        let apart = Some((start, size, Vec::new()));
        return (jump_at(jump)? == back).then_some(Found { symbol, register, then: None, added, apart });
    }
    let moves = |step: &Step, by| address(step) == Some((Register::RSP, Register::RSP, by));
    let (lowered, (pushed, push), (_, read)) = (moves(&step, -RED_ZONE).then_some(freed)?, next()?, next()?);
    let (symbol, register) = load(&read)?;
    let (mut end, mut then) = next()?;
    let mut added = None;
    if let Some((.., distance)) = address(&then).filter(|a| a.0 == register && a.1 == register) {
        added = Some(distance);
        (end, then) = next()?;
    }
    let (popped, pop) = next()?;
    let (raised, up) = next()?;
    let (size, _) = next()?;
    let right = push.instruction.code() == Code::Push_r64
        && pop.instruction.code() == Code::Pop_r64
        && [&push, &pop].iter().all(|s| s.instruction.op0_register() == register)
        && moves(&up, RED_ZONE)
        && jump_at(start + size - 5)? == back;
    let from = (start + end) as usize - then.len();
    let repeated = layout.bytes_from(SectionKind::Text, from as u64).get(..then.len())?.to_vec();
    // Of an operand in memory that the register leads to, the displacement says it.
    let uses = then.instruction.memory_base() == register;
    let added = added.unwrap_or(if uses { then.instruction.memory_displacement64() as i64 } else { 0 });
    let lowered = vec![(lowered, 128), (pushed, 136), (popped, 128), (raised, 0)];
    let apart = Some((start, size, lowered));
    right.then_some(Found { symbol, register, then: Some(repeated), added, apart })
}

/// `lea distance(%base),%to`.
fn address(step: &Step) -> Option<(Register, Register, i64)> {
    let i = &step.instruction;
    let plain = i.code() == Code::Lea_r64_m && i.memory_index() == Register::None && !i.is_ip_rel_memory_operand();
    plain.then(|| (i.memory_base(), i.op0_register(), i.memory_displacement64() as i64))
}
