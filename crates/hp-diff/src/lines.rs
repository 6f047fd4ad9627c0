//! Changes that are a line number only: `__LINE__` in an assertion or a log call moves with
//! the text above it, and so do the functions that contain it.
//!
//! The evidence for each differing instruction: it is an argument of a call; the line table of
//! the debug information (DWARF 5, section 6.2) has it, in both builds, at that line or at most
//! [`REACH`] lines before (a macro's line is where its call ends); and number and line moved by
//! the same amount. Everything else in the function is equal.

use gimli::SectionId;
use rustc_hash::FxHashSet;

use crate::arch::{self, DifferingArgument};
use crate::build::Build;
use crate::compare::{Changes, Judge, Verdict};
use crate::correlate::Correlation;
use crate::dwarf::{Sections, Source};
use crate::entity::FunctionId;

/// Lines over which one call may stretch.
const REACH: u64 = 40;

const LINES: &[SectionId] = &[
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// A changed function that differs in arguments only: where they are, in both builds.
struct Candidate {
    pair: (FunctionId, FunctionId),
    arguments: Vec<(u64, u64, DifferingArgument)>,
}

/// The old functions among the changed ones that differ in line numbers only.
pub(crate) fn line_only(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
) -> FxHashSet<FunctionId> {
    let judge = Judge::new(old, new, pairs).with_changed_constants(changes.constants.clone());
    let candidates: Vec<Candidate> =
        changes.functions.iter().filter_map(|(f, g, _)| candidate(&judge, (*f, *g))).collect();
    let addresses = |pick: fn(&(u64, u64, DifferingArgument)) -> u64| {
        let mut all: Vec<u64> = candidates.iter().flat_map(|c| c.arguments.iter().map(pick)).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    if candidates.is_empty() {
        return FxHashSet::default();
    }
    let before = Table::read(&old.image.debug, addresses(|a| a.0));
    let now = Table::read(&new.image.debug, addresses(|a| a.1));
    let is_line = |(a, b, argument): &(u64, u64, DifferingArgument)| {
        let (Some(x), Some(y)) = (before.line(*a), now.line(*b)) else { return false };
        let (m, n) = (u64::from(argument.old), u64::from(argument.new));
        (x..=x + REACH).contains(&m) && m - x == n.wrapping_sub(y)
    };
    let proven = candidates.iter().filter(|c| c.arguments.iter().all(is_line));
    proven.map(|c| c.pair.0).collect()
}

fn candidate(judge: &Judge<'_, '_>, pair: (FunctionId, FunctionId)) -> Option<Candidate> {
    let (old, new) = judge.builds();
    let (f, g) = (&old.map.functions[pair.0], &new.map.functions[pair.1]);
    if f.ranges.len() != g.ranges.len() {
        return None;
    }
    let mut arguments = Vec::new();
    let codes = old.code[pair.0].ranges.iter().zip(&new.code[pair.1].ranges);
    for ((a, b), (x, y)) in f.ranges.iter().zip(&g.ranges).zip(codes) {
        let same = |(s, t): (&arch::Site, &arch::Site)| {
            (s.offset, s.end, s.width, s.encoding, s.usage) == (t.offset, t.end, t.width, t.encoding, t.usage)
                && judge.sites(pair, s, t) == Verdict::Same
        };
        if x.invalid.is_some() || x.sites.len() != y.sites.len() || !x.sites.iter().zip(&y.sites).all(same) {
            return None;
        }
        let is_site = |at: usize| {
            let next = x.sites.partition_point(|s| s.offset as usize <= at);
            next.checked_sub(1).is_some_and(|i| at < x.sites[i].offset as usize + usize::from(x.sites[i].width))
        };
        for argument in arch::differing_arguments(a.bytes, b.bytes, is_site)? {
            let offset = u64::from(argument.offset);
            arguments.push((a.address + offset, b.address + offset, argument));
        }
    }
    (!arguments.is_empty()).then_some(Candidate { pair, arguments })
}

/// The lines of some addresses.
struct Table {
    addresses: Vec<u64>,
    lines: Vec<Option<u64>>,
}

impl Table {
    /// Reads the line programs of the units that contain `addresses`, which are ordered.
    fn read(source: &Source<'_>, addresses: Vec<u64>) -> Table {
        let mut table = Table { lines: vec![None; addresses.len()], addresses };
        if let Ok(Some(sections)) = Sections::load(source, LINES) {
            // What cannot be read stays without a line, so nothing is proven by it.
            let _ = table.fill(&sections);
        }
        table
    }

    fn line(&self, address: u64) -> Option<u64> {
        self.lines[self.addresses.binary_search(&address).ok()?]
    }

    fn fill(&mut self, sections: &Sections<'_>) -> gimli::Result<()> {
        let dwarf = sections.dwarf();
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            let unit = dwarf.unit(header)?;
            let (mut ranges, mut wanted) = (dwarf.unit_ranges(&unit)?, false);
            while let Some(range) = ranges.next()? {
                wanted |= !self.span(range.begin, range.end).is_empty();
            }
            let Some(program) = unit.line_program.clone().filter(|_| wanted) else { continue };
            let (mut rows, mut before) = (program.rows(), None::<(u64, Option<u64>)>);
            while let Some((_, row)) = rows.next_row()? {
                if let Some((start, line)) = before {
                    for i in self.span(start, row.address()) {
                        self.lines[i] = line;
                    }
                }
                before = (!row.end_sequence()).then(|| (row.address(), row.line().map(|l| l.get())));
            }
        }
        Ok(())
    }

    /// Indices of the addresses from `start` to before `end`.
    fn span(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let first = self.addresses.partition_point(|a| *a < start);
        first..first.max(self.addresses.partition_point(|a| *a < end))
    }
}
