//! Functions of stripped builds.
//!
//! Unwind rows say where code begins and ends; what lies between two of their ranges is taken for one piece of code
//! without rows. A piece with rows that nothing but the jumps of one other function lead to is a part of that function if
//! control passes between the two as it does inside of a function only: into the middle of one of them, or to the piece on a
//! condition.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashSet;

use crate::code;
use crate::entities::{Range, Side, without_padding};
use crate::image::{Image, Word};
use crate::scan::Scan;
use crate::unwind::Entries;

/// Adds the ranges that no symbol names, and orders all of them. Gives the starts of those that have unwind rows.
pub(crate) fn add<'a>(image: &Image<'a>, entries: &Entries<'a>, ranges: &mut Vec<Range<'a>>) -> BTreeSet<u64> {
    let mut known: BTreeMap<u64, (u64, bool)> = entries.ranges().map(|(start, size)| (start, (size, false))).collect();
    known.extend(ranges.iter().map(|r| (r.address, (r.bytes.len() as u64, true))));
    let (mut found, mut with_rows) = (Vec::new(), BTreeSet::new());
    let unnamed = |address: u64, size: u64| -> Option<Range<'a>> {
        let bytes = image.bytes(address, size).filter(|b| !b.is_empty())?;
        Some(Range { address, bytes, names: Vec::new(), file: "", unnamed: true, rust: false, parent: 0 })
    };
    for section in image.sections.iter().filter(|s| s.code && !s.is_stubs()) {
        let mut at = section.address;
        let inside = known.range(section.address..section.end()).map(|(start, known)| (*start, *known));
        for (start, (size, named)) in inside.chain([(section.end(), (0, true))]) {
            if let Some(gap) = image.bytes(at, start.saturating_sub(at)).filter(|g| g.iter().any(|b| *b != 0)) {
                let lead = code::padding(gap);
                found.extend(unnamed(at + lead as u64, without_padding(&gap[lead..]) as u64));
            }
            if !named && at <= start && start + size <= section.end() {
                found.extend(unnamed(start, size));
                with_rows.insert(start);
            }
            at = at.max(start + size);
        }
    }
    ranges.extend(found);
    ranges.sort_by_key(|r| r.address);
    with_rows
}

/// Finds the function of each part that has no name, among the ranges that begin at `candidates`.
pub(crate) fn find_parents(side: &Side<'_>, scans: &[Scan], candidates: &BTreeSet<u64>, parents: &mut [Option<usize>]) {
    let ranges = &side.ranges;
    let pointers = side.image.words.values().filter_map(|w| match w {
        Word::Address(a) | Word::Resolver(a) => side.range_at(*a).map(|r| r.0),
        _ => None,
    });
    let mut taken: FxHashSet<usize> = pointers.collect();
    taken.extend(scans.iter().flat_map(|scan| &scan.taken));
    let mut entered = BTreeMap::<usize, BTreeSet<usize>>::new();
    let mut bound = BTreeMap::<usize, BTreeSet<usize>>::new();
    for (from, jump) in scans.iter().enumerate().flat_map(|(from, scan)| scan.jumps.iter().map(move |j| (from, j))) {
        entered.entry(jump.to).or_default().insert(from);
        if jump.middle || jump.conditional {
            bound.entry(jump.to).or_default().insert(from);
        }
        if jump.middle {
            bound.entry(from).or_default().insert(jump.to);
        }
    }
    let belongs = |part: usize, to: usize| {
        let only = entered.get(&part).is_none_or(|from| from.iter().all(|f| *f == to));
        candidates.contains(&ranges[part].address) && !taken.contains(&part) && only
    };
    let single = bound.iter().filter(|(_, to)| to.len() == 1).filter_map(|(part, to)| Some((*part, *to.first()?)));
    let found: BTreeMap<usize, usize> =
        single.filter(|(part, to)| belongs(*part, *to) && !belongs(*to, *part)).collect();
    for (part, to) in &found {
        if !found.contains_key(to) {
            parents[*part] = Some(*to);
        }
    }
}
