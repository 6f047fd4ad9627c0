//! Records and thunks: does each say of the old file what is true, and does each thunk do what the old entry did?

use std::collections::{BTreeMap, BTreeSet};

use hp_pack::{Entry, FunctionRecord, Patch, Place as SymbolPlace, Role, SectionKind};
use iced_x86::{FlowControl, Instruction, Mnemonic};
use sha2::{Digest, Sha256};

use crate::code::{self, Step, Use};
use crate::entities::Side;
use crate::overlay::{Layout, Place};
use crate::report::Fault;

/// Size of the jump that redirects an entry.
const JUMP: u64 = 5;
/// A site is written in one piece, so it must not cross one of these.
const PAGE: u64 = 4096;

/// A piece of a thunk, and the instruction of the old function whose unwind row holds there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Offset in the section of thunks.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) old_address: u64,
}

/// What was found about all records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) faults: Vec<Fault>,
    /// Pieces of each thunk, by its start.
    pub(crate) thunks: BTreeMap<u64, Vec<Piece>>,
    pub(crate) redirected: u64,
}

/// Checks every record of the patch against the old build.
pub(crate) fn check(patch: &Patch, old: &Side<'_>, layouts: &[Layout]) -> Records {
    let mut found = Records::default();
    for (i, record) in patch.functions.iter().enumerate() {
        let name = old.range_at(record.old_address).map_or("?", |(f, _)| old.ranges[f].name());
        let place = format!("{name} ({:#x})", record.old_address);
        let check = match record.role {
            Role::Entry(entry) => check_body(old, record).and_then(|f| {
                check_parts(patch, old, f, i)?;
                check_site(old, record, &entry)?;
                check_goes_on(patch, old, f, &entry)?;
                found.redirected += JUMP;
                check_thunk(patch, old, layouts, record, &entry).map(|pieces| {
                    let start = patch.symbols[entry.thunk_symbol as usize].value;
                    if found.thunks.insert(start, pieces).is_some() {
                        found.faults.push(Fault::new(
                            "thunk",
                            place.clone(),
                            "it shares its thunk with another function",
                        ));
                    }
                })
            }),
            Role::Fragment(parent) => check_body(old, record).and_then(|f| check_fragment(patch, old, f, parent)),
        };
        if let Err((part, what)) = check {
            found.faults.push(Fault::new(part, place, what));
        }
    }
    found
}

type Check<T> = Result<T, (&'static str, String)>;

fn wrong<T>(part: &'static str, what: impl Into<String>) -> Check<T> {
    Err((part, what.into()))
}

/// Address, size and digest; gives the range.
fn check_body(old: &Side<'_>, record: &FunctionRecord) -> Check<usize> {
    let Some((f, 0)) = old.range_at(record.old_address) else {
        return wrong("record", "no code of the base begins there");
    };
    let range = &old.ranges[f];
    if record.old_size != range.bytes.len() as u64 {
        return wrong("record", format!("says {} bytes, the base has {}", record.old_size, range.bytes.len()));
    }
    let next = old.ranges.get(f + 1).is_some_and(|n| n.address < range.end());
    if next || f > 0 && old.ranges[f - 1].end() > range.address {
        return wrong("record", "its extent is not certain: symbols overlap");
    }
    if Sha256::digest(range.bytes)[..] != record.digest {
        return wrong("record", "its digest is not that of the base");
    }
    Ok(f)
}

/// Every part of a replaced function must have a record.
fn check_parts(patch: &Patch, old: &Side<'_>, f: usize, index: usize) -> Check<()> {
    if old.ranges[f].parent != f {
        return wrong("record", "is a part of another function, but redirected as an entry");
    }
    let is_fragment = |r: &FunctionRecord| r.role == Role::Fragment(index as u32);
    let recorded: BTreeSet<u64> = patch.functions.iter().filter(|r| is_fragment(r)).map(|r| r.old_address).collect();
    let parts: BTreeSet<u64> = old.family(f)[1..].iter().map(|p| old.ranges[*p].address).collect();
    if let Some(missing) = parts.difference(&recorded).next() {
        return wrong("record", format!("its part at {missing:#x} has no record"));
    }
    for part in old.family(f) {
        for (_, step) in old.steps(*part) {
            let jumps = step.instruction.flow_control() != FlowControl::Call;
            for target in step.fields.iter().filter(|f| f.usage == Use::Branch && jumps).map(|f| f.target) {
                if let Some((g, offset)) = old.range_at(target)
                    && offset != 0
                    && !old.family(f).contains(&g)
                {
                    return wrong(
                        "record",
                        format!("goes on inside {}, which is not recorded with it", old.ranges[g].name()),
                    );
                }
            }
        }
    }
    Ok(())
}

fn check_fragment(patch: &Patch, old: &Side<'_>, f: usize, parent: u32) -> Check<()> {
    let entry = &old.ranges[old.ranges[f].parent];
    let parent = patch.functions.get(parent as usize).map(|r| r.old_address);
    if old.ranges[f].parent == f || parent != Some(entry.address) {
        return wrong("record", "is not a part of the function that it is recorded for");
    }
    Ok(())
}

/// Start and end of each place in the base that a jump is written over.
pub(crate) fn sites(patch: &Patch) -> BTreeMap<u64, u64> {
    let starts = patch.functions.iter().filter_map(|r| match r.role {
        Role::Entry(e) => Some(r.old_address + u64::from(e.site_offset)),
        Role::Fragment(_) => None,
    });
    starts.map(|site| (site, site + JUMP)).collect()
}

fn check_site(old: &Side<'_>, record: &FunctionRecord, entry: &Entry) -> Check<()> {
    let body = old.image.bytes(record.old_address, record.old_size).unwrap_or_default();
    let marked = body.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]);
    if entry.site_offset != if marked { 4 } else { 0 } {
        return wrong("record", "its jump is not at the entry, behind an endbr64 if there is one");
    }
    let site = record.old_address + u64::from(entry.site_offset);
    if old.image.bytes(site, JUMP) != Some(&entry.site_bytes[..]) {
        return wrong("record", "the bytes under its jump are not those of the base");
    }
    let end = record.old_address + record.old_size;
    let beyond = (site + JUMP).saturating_sub(end);
    if beyond > 0 {
        let gap = old.image.bytes(end, beyond).unwrap_or_default();
        let taken = (end..site + JUMP).any(|a| old.range_at(a).is_some());
        let rest = old.image.bytes_from(end);
        if taken || code::padding(rest) < gap.len() {
            return wrong("record", "its jump reaches beyond the function into what is no padding");
        }
    }
    if site / PAGE != (site + JUMP - 1) / PAGE {
        return wrong("record", "its jump crosses a page");
    }
    if let Some((target, from)) = old.incoming.range(site + 1..site + JUMP).next() {
        return wrong("record", format!("{from:#x} of the base leads to {target:#x}, under its jump"));
    }
    flags_are_dead(old, site, end)
}

/// A thread that goes on in the old function must not come to its entry again, nor meet variables that it does not know.
fn check_goes_on(patch: &Patch, old: &Side<'_>, f: usize, entry: &Entry) -> Check<()> {
    if !entry.may_go_on {
        return Ok(());
    }
    if [SectionKind::Data, SectionKind::Bss].iter().any(|kind| patch.section(*kind).is_some()) {
        return wrong("record", "says that old code may go on beside variables that it does not know");
    }
    let entry = old.ranges[f].address;
    let fields = old.family(f).iter().flat_map(|part| old.steps(*part)).flat_map(|(_, step)| step.fields);
    match fields.into_iter().any(|field| field.usage == Use::Branch && (entry..=entry + 4).contains(&field.target)) {
        true => wrong("record", "says that old code may go on, which leads to its own entry"),
        false => Ok(()),
    }
}

/// The thunk's test writes the status flags: nothing may read them before they are written again.
fn flags_are_dead(old: &Side<'_>, site: u64, end: u64) -> Check<()> {
    let bytes = old.image.bytes(site, end - site).unwrap_or_default();
    const STATUS: u32 = 0b11_1111;
    let status = |bits: u32| {
        use iced_x86::RflagsBits as F;
        [F::OF, F::SF, F::ZF, F::AF, F::CF, F::PF]
            .iter()
            .enumerate()
            .filter(|(_, f)| bits & **f != 0)
            .fold(0u32, |s, (i, _)| s | 1 << i)
    };
    let mut written = 0;
    for (_, step) in code::steps(site, bytes, false) {
        let i = &step.instruction;
        if status(i.rflags_read()) & !written != 0
            || matches!(i.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfq | Mnemonic::Lahf)
        {
            return wrong("thunk", format!("`{i}` reads flags that the thunk has changed"));
        }
        written |= status(i.rflags_modified());
        if written == STATUS || i.flow_control() != FlowControl::Next {
            break;
        }
    }
    Ok(())
}

/// A thunk is read at every load address at once.
struct Reader<'r> {
    layouts: &'r [Layout],
    at: u64,
}

impl Reader<'_> {
    /// The next instruction, and where its first field leads.
    fn next(&mut self) -> Check<(Step, Option<Place>, u64)> {
        let mut first: Option<(Step, Option<Place>)> = None;
        for layout in self.layouts {
            let bytes = layout.bytes_from(SectionKind::Thunks, self.at);
            let base = layout.address(SectionKind::Thunks).unwrap_or_default();
            let Some(step) = code::step(base + self.at, bytes, false) else {
                return wrong("thunk", format!("no instruction at offset {:#x} of the thunks", self.at));
            };
            let place = step.fields.first().map(|f| layout.place(f.target));
            match &first {
                None => first = Some((step, place)),
                Some((other, there)) if other.len() == step.len() && *there == place => {}
                Some(_) => return wrong("thunk", "does not lead to the same place at every load address"),
            }
        }
        let Some((step, place)) = first else { return wrong("thunk", "no layout") };
        let start = self.at;
        self.at += step.len() as u64;
        Ok((step, place, start))
    }

    fn bytes(&self, start: u64) -> &[u8] {
        &self.layouts[0].bytes_from(SectionKind::Thunks, start)[..(self.at - start) as usize]
    }
}

/// Follows a thunk: the test of the state byte, the way to the new code, the displaced instructions, the way back.
fn check_thunk(
    patch: &Patch,
    old: &Side<'_>,
    layouts: &[Layout],
    record: &FunctionRecord,
    entry: &Entry,
) -> Check<Vec<Piece>> {
    let symbol = &patch.symbols[entry.thunk_symbol as usize];
    let new = &patch.symbols[entry.new_symbol as usize];
    let (SymbolPlace::Payload(SectionKind::Text), SymbolPlace::Payload(SectionKind::Thunks)) =
        (new.place, symbol.place)
    else {
        return wrong("thunk", "is not in the section of thunks, or its function not in .text");
    };
    let mut reader = Reader { layouts, at: symbol.value };
    let (test, state, _) = reader.next()?;
    let tests = test.instruction.code() == iced_x86::Code::Cmp_rm8_imm8 && test.instruction.immediate8() == 0;
    if !tests || test.instruction.memory_size().size() != 1 || state != Some(Place::Payload(SectionKind::State, 0)) {
        return wrong("thunk", format!("`{}` does not test the state byte", test.instruction));
    }
    let (branch, target, _) = reader.next()?;
    if branch.instruction.mnemonic() != Mnemonic::Jne
        || target != Some(Place::Payload(SectionKind::Text, new.value as i64))
    {
        return wrong("thunk", format!("`{}` does not go to the new function", branch.instruction));
    }
    let site = record.old_address + u64::from(entry.site_offset);
    let mut pieces = vec![Piece { start: symbol.value, end: reader.at, old_address: site }];
    let displaced = old.image.bytes(site, u64::from(entry.displaced)).unwrap_or_default();
    let (mut at, mut ends) = (0usize, false);
    while at < displaced.len() {
        let Some(step) = code::step(site + at as u64, &displaced[at..], false) else {
            return wrong("thunk", "what it repeats of the base ends inside an instruction");
        };
        if ends {
            return wrong("thunk", "repeats more than runs");
        }
        let start = reader.at;
        check_displaced(&mut reader, &displaced[at..at + step.len()], &step, site)?;
        pieces.push(Piece { start, end: reader.at, old_address: site + at as u64 });
        ends = step.ends();
        at += step.len();
    }
    if at < JUMP as usize && !ends {
        return wrong("thunk", "repeats fewer instructions than the jump covers");
    }
    let covered = code::steps(site, displaced, false).take_while(|(at, _)| *at < JUMP as usize).count();
    if covered != code::steps(site, displaced, false).count() {
        return wrong("thunk", "repeats more instructions than the jump covers");
    }
    if !ends {
        let (back, target, start) = reader.next()?;
        let jumps =
            back.instruction.mnemonic() == Mnemonic::Jmp && back.fields.first().is_some_and(|f| f.usage == Use::Branch);
        if !jumps || target != Some(Place::Base(site + at as u64)) {
            return wrong("thunk", format!("`{}` does not go back behind what it repeats", back.instruction));
        }
        pieces.push(Piece { start, end: reader.at, old_address: site + at as u64 });
    }
    if reader.at != symbol.value + symbol.size {
        return wrong("thunk", format!("its symbol has {} bytes, its code {}", symbol.size, reader.at - symbol.value));
    }
    Ok(pieces)
}

/// One displaced instruction: the same, or the long form of the same branch.
fn check_displaced(reader: &mut Reader<'_>, bytes: &[u8], old: &Step, site: u64) -> Check<()> {
    let (mine, place, start) = reader.next()?;
    let differ = |mine: &Instruction| wrong("thunk", format!("`{mine}` where the base has `{}`", old.instruction));
    let Some(field) = old.fields.first() else {
        let movable = matches!(
            old.instruction.flow_control(),
            FlowControl::Next | FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall
        );
        return if movable && reader.bytes(start) == bytes { Ok(()) } else { differ(&mine.instruction) };
    };
    if place != Some(Place::Base(field.target)) {
        return wrong(
            "thunk",
            format!("`{}` does not lead where the base's does, to {:#x}", mine.instruction, field.target),
        );
    }
    if field.usage == Use::Branch {
        if (site + 1..site + JUMP).contains(&field.target) {
            return wrong("thunk", "a branch leads under the jump");
        }
        let same = mine.instruction.mnemonic() == old.instruction.mnemonic()
            && mine.instruction.flow_control() == old.instruction.flow_control()
            && mine.fields.first().is_some_and(|f| f.usage == Use::Branch && f.width == 4);
        return if same { Ok(()) } else { differ(&mine.instruction) };
    }
    let here = reader.bytes(start);
    let outside = |i: &usize| !(field.at..field.at + field.width).contains(i);
    let same = here.len() == bytes.len() && (0..bytes.len()).filter(outside).all(|i| here[i] == bytes[i]);
    if same { Ok(()) } else { differ(&mine.instruction) }
}
