//! Redirecting the entry of a replaced function: its thunk, its record, and the proof
//! that nothing else leads into the bytes under the jump.

use hp_pack::{Entry, FunctionRecord, Place, Role, SectionKind, Symbol, SymbolKind};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::arch::{self, NoThunk, Thunk, ThunkInput, ThunkTarget};
use crate::build::Build;
use crate::by_address::Spans;
use crate::entity::FunctionId;
use crate::finding::{Code, Finding};
use crate::image::Word;
use crate::lsda::CallSite;
use crate::payload::{Payload, Problem, Table};
use crate::unwind;

/// Size of the jump that is written over the entry.
const JUMP: u64 = 5;

/// Every address in the bodies of these functions, and in the padding behind them, that code or data of the
/// image leads to: sorted.
pub(crate) fn incoming(build: &Build<'_>, functions: impl Iterator<Item = FunctionId>) -> Vec<u64> {
    let bodies = functions.map(|f| &build.map.functions[f].ranges[0]);
    let places = bodies.map(|body| (body.address, body.end() + padding_after(build, body.end()).len() as u64));
    let places = Spans::new(places.collect());
    let code = build.code.par_iter();
    let from_code = code.flat_map_iter(|f| {
        let sites = f.ranges.iter().flat_map(|c| c.sites.targets());
        sites.chain(f.tables.iter().flat_map(|t| t.targets.iter().copied()))
    });
    let mut all: Vec<u64> = from_code.filter(|target| places.contains(*target)).collect();
    all.extend(build.image.words.values().filter_map(|w| match w {
        Word::Address(a) => Some(*a),
        _ => None,
    }));
    let tables = build.landing.values().filter_map(|t| t.as_ref().ok());
    all.extend(tables.flat_map(|t| t.sites.iter().filter_map(|s| s.landing)));
    all.retain(|target| places.contains(*target));
    all.sort_unstable();
    all.dedup();
    all
}

/// How the entry of one function is redirected.
pub(crate) struct Plan<'r, 'a> {
    thunk: Thunk,
    /// Unwind rows of the function's body, and the call frame instructions that make the thunk's of them. Code that was built
    /// without has none, and then its thunk has none.
    rows: Option<(&'r unwind::Fde<'a>, Vec<u8>)>,
    padding: &'a [u8],
}

/// Decides how the entry of `function` is redirected, or says what forbids it.
pub(crate) fn plan<'r, 'a>(
    old: &Build<'a>,
    function: FunctionId,
    rows: &'r unwind::Rows<'a>,
    incoming: &[u64],
) -> Result<Plan<'r, 'a>, Finding> {
    let body = &old.map.functions[function];
    let refuse = |code, message: String| Finding::new(code, body.qualified_name(), message);
    if body.overlaps {
        return Err(refuse(Code::BoundaryUnclear, "its symbol's range overlaps another one's in the old build".into()));
    }
    if old.code[function].ranges.iter().any(|c| c.invalid.is_some()) {
        return Err(refuse(Code::Undecodable, "bytes of the old function are no instruction".into()));
    }
    let range = &body.ranges[0];
    let padding = padding_after(old, range.end());
    let thunk = arch::thunk(&ThunkInput { address: range.address, body: range.bytes, padding }).map_err(|why| {
        let crossing = || format!("the jump at {:#x} would cross a page", range.address);
        match why {
            NoThunk::TooShort(why) => refuse(Code::EntryTooShort, why),
            NoThunk::FlagsLive(why) => refuse(Code::FlagsLive, why),
            NoThunk::CannotDisplace(why) => refuse(Code::CannotDisplace, why),
            NoThunk::CrossesPage => refuse(Code::EntryCrossesPage, crossing()),
        }
    })?;
    let site = range.address + u64::from(thunk.site_offset);
    let i = incoming.partition_point(|a| *a <= site);
    if let Some(target) = incoming.get(i).filter(|a| **a < site + JUMP) {
        return Err(refuse(Code::BranchIntoEntry, format!("{target:#x} of the old build is referred to")));
    }
    let unusual = || refuse(Code::CannotDisplace, "its first unwind rows are of an unusual kind".into());
    let rows = match rows.at(range.address) {
        Some(fde) => Some((fde, unwind::thunk_instructions(fde, &thunk.boundaries).ok_or_else(unusual)?)),
        None => None,
    };
    Ok(Plan { thunk, rows, padding })
}

/// Makes the records of one replaced function: its body first, then its fragments.
/// `None` where findings were made instead.
pub(crate) fn redirect(
    payload: &mut Payload<'_, '_>,
    old: &Build<'_>,
    function: FunctionId,
    new_symbol: u32,
    context: &mut Context<'_, '_>,
) -> Option<Vec<FunctionRecord>> {
    let body = &old.map.functions[function];
    let plan = match plan(old, function, context.rows, context.incoming) {
        Ok(plan) => plan,
        Err(finding) => {
            payload.findings.push(finding);
            return None;
        }
    };
    let Plan { thunk, rows, padding } = plan;
    let range = &body.ranges[0];
    if let Some(range) = body.ranges.iter().find(|range| context.rows.at(range.address).is_none()) {
        let message = format!("the old build has none at {:#x}", range.address);
        payload.findings.push(Finding::new(Code::NoUnwindRows, body.qualified_name(), message));
    }

    let at = payload.place(SectionKind::Thunks, 16, &thunk.code);
    let size = thunk.code.len() as u64;
    let thunk_symbol = payload.symbol(Symbol {
        name: format!("{}.thunk", body.name()),
        kind: SymbolKind::Function,
        place: Place::Payload(SectionKind::Thunks),
        value: at,
        size,
        weak: false,
    });
    for (offset, addend, target) in thunk.fixups {
        let (symbol, distance) = match target {
            ThunkTarget::State => (context.state_symbol, 0),
            ThunkTarget::NewFunction => (new_symbol, 0),
            ThunkTarget::Base(address) => base_place(payload, old, address),
        };
        payload.pc_relative(SectionKind::Thunks, at + offset, symbol, addend + distance);
    }
    let table = match thunk_table(payload, old, function, (&thunk.boundaries, thunk.has_call)) {
        Ok(table) => table,
        Err(Problem(code, why)) => {
            payload.findings.push(Finding::new(code, body.qualified_name(), why));
            return None;
        }
    };
    if let Some((fde, instructions)) = rows {
        payload.rows(context.writer, thunk_symbol, fde, size, &instructions, table.as_ref());
    }

    let mut site_bytes = [0; JUMP as usize];
    let from_site = range.bytes[usize::from(thunk.site_offset)..].iter().chain(padding);
    for (to, from) in site_bytes.iter_mut().zip(from_site) {
        *to = *from;
    }
    let (site_offset, displaced) = (thunk.site_offset, thunk.displaced);
    let entry = Entry { new_symbol, thunk_symbol, site_offset, site_bytes, displaced, may_go_on: false };
    let record = |range: &crate::entity::CodeRange<'_>, role| FunctionRecord {
        old_address: range.address,
        old_size: range.bytes.len() as u64,
        digest: Sha256::digest(range.bytes).into(),
        role,
    };
    let mut records = vec![record(range, Role::Entry(entry))];
    records.extend(body.ranges[1..].iter().map(|r| record(r, Role::Fragment(context.next_record))));
    context.next_record += records.len() as u32;
    Some(records)
}

/// The exception table of a thunk that repeats a call: the call's landing pad is the old one.
fn thunk_table(
    payload: &mut Payload<'_, '_>,
    old: &Build<'_>,
    function: FunctionId,
    (boundaries, has_call): (&[(u32, u32)], bool),
) -> Result<Option<Table>, Problem> {
    let body = &old.map.functions[function];
    let start = body.address();
    let table = match old.landing.get(&start).filter(|_| has_call) {
        None => return Ok(None),
        Some(Ok(table)) => table,
        Some(Err(why)) => return Err(Problem(Code::Exceptions, format!("at {start:#x} of the old build {why}"))),
    };
    let mut sites = Vec::new();
    for pair in boundaries.windows(2) {
        let ((from, to), (end, to_end)) = (pair[0], pair[1]);
        let covers = |s: &&CallSite| s.start < u64::from(end) && u64::from(from) < s.start + s.length;
        if let Some(site) = table.sites.iter().find(covers) {
            sites.push(CallSite { start: to.into(), length: (to_end - to).into(), ..site.clone() });
        }
    }
    let lowest = sites.iter().filter_map(|s| s.landing).min();
    // All landing pads of a function lie behind the start of one of its ranges.
    let base =
        body.ranges.iter().filter(|r| lowest.is_none_or(|l| (r.address..r.end()).contains(&l))).map(|r| r.address);
    let base = base.min().unwrap_or(start);
    let (symbol, _) = base_place(payload, old, base);
    payload.table_of_thunk(table, &sites, (base, symbol), body.name())
}

/// What all functions of one patch share.
pub(crate) struct Context<'c, 'a> {
    /// Unwind rows of the old build.
    pub rows: &'c unwind::Rows<'a>,
    pub incoming: &'c [u64],
    pub writer: &'c mut unwind::Writer,
    pub state_symbol: u32,
    /// Index of the next record, which fragments name as their parent.
    pub next_record: u32,
}

/// A symbol of the base at or before `address`, and the distance from it.
pub(crate) fn base_place(payload: &mut Payload<'_, '_>, old: &Build<'_>, address: u64) -> (u32, i64) {
    if let Some((id, range, offset)) = old.map.function_at(address) {
        let range = &old.map.functions[id].ranges[range];
        let symbol = payload.base_symbol(range.name, SymbolKind::Function, range.address, range.bytes.len() as u64);
        return (symbol, offset as i64);
    }
    if let Some(id) = old.map.object_at(address) {
        let object = &old.map.objects[id];
        let symbol = payload.base_symbol(object.name(), SymbolKind::Object, object.address, object.size);
        return (symbol, (address - object.address) as i64);
    }
    (payload.base_symbol(&format!(".L{address:x}"), SymbolKind::Other, address, 0), 0)
}

/// Bytes after `end` that are proven to be padding: nothing but no-operations up to the
/// next function.
fn padding_after<'a>(old: &Build<'a>, end: u64) -> &'a [u8] {
    let rest = old.image.bytes_from(end);
    let next = old.map.next_code(end).map_or(rest.len() as u64, |n| n - end);
    let gap = &rest[..(next as usize).min(rest.len())];
    &gap[..arch::padding(gap)]
}
