//! Data without a symbol in a writable section that code only copies from: initial values of local arrays.
//!
//! Such data is a constant if no instruction and no pointer of the image leads to it but those that read it there, and
//! it is as long as the longest of these reads. What counts as a read: an operand that is read and not written,
//! or `lea x(%rip),%rsi` with a string copy of known length behind it, on a straight line that nothing else enters.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use rayon::prelude::*;

use crate::code::{Step, Use};
use crate::entities::{Family, Side};
use crate::image::Word;
use crate::scan::Scan;

/// Start and end of each, ordered.
pub(crate) fn find(side: &Side<'_>, scans: &[Scan]) -> Vec<(u64, u64)> {
    if side.image.stripped || side.image.fixed {
        return Vec::new();
    }
    let leading: Vec<usize> = (0..side.ranges.len()).filter(|range| scans[*range].templates).collect();
    let reads: Vec<(u64, Option<u64>)> = leading.into_par_iter().flat_map_iter(|range| reads(side, range)).collect();
    let pointers = side.image.words.values().filter_map(|w| match w {
        Word::Address(a) if is_candidate(side, *a) => Some((*a, None)),
        _ => None,
    });
    let mut lengths: BTreeMap<u64, Option<u64>> = BTreeMap::new();
    for (start, length) in reads.into_iter().chain(pointers) {
        let known = lengths.entry(start).or_insert(length);
        *known = known.and_then(|longest| length.map(|l| l.max(longest)));
    }
    let fits = |(start, length): (&u64, &Option<u64>)| {
        let end = start + (*length)?;
        let others = lengths.range(start + 1..end).any(|(_, length)| length.is_none());
        let free = !others && side.objects.iter().all(|o| o.end() <= *start || o.address >= end);
        let inside = side.image.section_at(*start).is_some_and(|s| end <= s.end());
        (free && inside).then_some((*start, end))
    };
    lengths.iter().filter_map(fits).collect()
}

/// Writable data that no symbol covers.
pub(crate) fn is_candidate(side: &Side<'_>, address: u64) -> bool {
    let plain = |s: &crate::image::Section<'_>| {
        s.writable && !s.is_constant() && !s.code && !s.tls && !s.is_slots() && !s.data.is_empty()
    };
    side.image.section_at(address).is_some_and(plain) && side.object_at(address).is_none()
}

/// Each candidate that a range of code leads to, and how much is read there; `None` if it is not only read.
fn reads(side: &Side<'_>, range: usize) -> Vec<(u64, Option<u64>)> {
    let base = side.ranges[range].address;
    let steps: Vec<(u64, Step)> = side.steps(range).map(|(at, step)| (base + at as u64, step)).collect();
    let (mut found, mut labels) = (Vec::new(), None);
    for (i, (_, step)) in steps.iter().enumerate() {
        for field in step.fields.iter().filter(|f| f.usage != Use::Branch && is_candidate(side, f.target)) {
            let length = match field.usage {
                Use::Access(n) => only_reads(step).then_some(n),
                _ => copied(&steps, i, labels.get_or_insert_with(|| self::labels(side, range)).as_ref()),
            };
            found.push((field.target, length));
        }
    }
    found
}

fn only_reads(step: &Step) -> bool {
    let mut factory = InstructionInfoFactory::new();
    factory.info(&step.instruction).used_memory().iter().all(|m| m.access() == OpAccess::Read)
}

/// Every place in the code of a function that a jump leads to; `None` if a computed jump has no table that is known.
fn labels(side: &Side<'_>, range: usize) -> Option<BTreeSet<u64>> {
    let family = Family::of(side, range);
    let branches = side.family(range).iter().flat_map(|part| side.steps(*part)).flat_map(|(_, step)| step.fields);
    let mut all: BTreeSet<u64> = branches.filter(|f| f.usage == Use::Branch).map(|f| f.target).collect();
    if family.jumps_by_table() {
        let tables = family.targets().iter().filter_map(|(target, _)| family.table(*target));
        let from_tables: Vec<u64> = tables.flat_map(|(_, labels)| labels).collect();
        if from_tables.is_empty() {
            return None;
        }
        all.extend(from_tables);
    }
    Some(all)
}

/// How much is copied from the address that the instruction `i` puts into RSI.
fn copied(steps: &[(u64, Step)], i: usize, labels: Option<&BTreeSet<u64>>) -> Option<u64> {
    let labels = labels?;
    let puts = |step: &Step, register| {
        let i = &step.instruction;
        i.op0_kind() == OpKind::Register && i.op0_register().full_register() == register
    };
    let lea = &steps[i].1;
    if lea.instruction.mnemonic() != Mnemonic::Lea || !puts(lea, Register::RSI) {
        return None;
    }
    // The straight line around it: nothing leads to any of its instructions but the first, and none leads away.
    let enters = |k: usize| labels.contains(&steps[k].0);
    let leaves = |k: usize| steps[k].1.instruction.flow_control() != FlowControl::Next;
    let first = (0..i).rev().find(|k| leaves(*k) || enters(k + 1)).map_or(0, |k| k + 1);
    let last = (i + 1..steps.len()).find(|k| leaves(*k) || enters(*k)).unwrap_or(steps.len());
    let (mut length, mut passed) = (0, 0);
    for k in i + 1..last {
        let step = &steps[k].1;
        if let Some(width) = string_copy(step) {
            let repeats = step.instruction.has_rep_prefix();
            let times = if repeats { count(&steps[first..k]) } else { Some(1) };
            passed += times.filter(|n| *n < 1 << 32)? * width;
            length = length.max(passed);
        } else if puts(step, Register::RSI) && !mentions(step) {
            break;
        } else if let Some(end) = reads_behind(step) {
            length = length.max(passed + end);
        } else if mentions(step) {
            return None;
        }
    }
    (length > 0).then_some(length)
}

/// What RCX holds behind these instructions.
fn count(before: &[(u64, Step)]) -> Option<u64> {
    let mut factory = InstructionInfoFactory::new();
    let writes = |step: &Step, factory: &mut InstructionInfoFactory| {
        let used = factory.info(&step.instruction).used_registers().iter();
        let mut written = used.filter(|r| !matches!(r.access(), OpAccess::Read | OpAccess::CondRead));
        written.any(|r| r.register().full_register() == Register::RCX)
    };
    let (_, setter) = before.iter().rev().find(|(_, step)| writes(step, &mut factory))?;
    let i = &setter.instruction;
    match (i.mnemonic(), i.op1_kind()) {
        (Mnemonic::Mov, OpKind::Immediate32) => Some(u64::from(i.immediate32())),
        (Mnemonic::Mov, OpKind::Immediate32to64) => u64::try_from(i.immediate32to64()).ok(),
        _ => None,
    }
}

fn string_copy(step: &Step) -> Option<u64> {
    use iced_x86::Code;
    match step.instruction.code() {
        Code::Movsb_m8_m8 => Some(1),
        Code::Movsw_m16_m16 => Some(2),
        Code::Movsd_m32_m32 => Some(4),
        Code::Movsq_m64_m64 => Some(8),
        _ => None,
    }
}

/// How far behind RSI a plain load reads.
fn reads_behind(step: &Step) -> Option<u64> {
    let i = &step.instruction;
    let plain = i.memory_base() == Register::RSI && i.memory_index() == Register::None;
    let loads = i.mnemonic() != Mnemonic::Lea && i.op1_kind() == OpKind::Memory && only_reads(step);
    let register = i.op0_kind() == OpKind::Register && i.op0_register().full_register() != Register::RSI;
    let end = i.memory_displacement64().checked_add(i.memory_size().size() as u64)?;
    (i.op_count() == 2 && plain && loads && register && end <= 1 << 16).then_some(end)
}

/// The instruction has to do with what RSI holds.
fn mentions(step: &Step) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&step.instruction);
    let in_memory = info.used_memory().iter().any(|m| [m.base(), m.index()].contains(&Register::RSI));
    let reads = |r: &iced_x86::UsedRegister| {
        r.register().full_register() == Register::RSI && !matches!(r.access(), OpAccess::Write)
    };
    in_memory || info.used_registers().iter().any(reads)
}
