//! Functions of stripped builds.
//!
//! Unwind rows say where code begins and ends; what lies between two of their ranges is taken for one piece of code
//! without rows. A piece that jumps into the middle of one other function, and that nothing but this function leads to,
//! is a part of it.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::code::{self, Use};
use crate::entities::{Range, without_padding};
use crate::image::{Image, Word};
use crate::unwind;

/// Adds the ranges that no symbol names, and orders all of them.
pub(crate) fn add<'a>(image: &Image<'a>, ranges: &mut Vec<Range<'a>>) {
    let rows = image.sections.iter().find(|s| s.name == ".eh_frame").map(|s| unwind::read(s.address, s.data).0);
    let mut known: BTreeMap<u64, (u64, bool)> =
        rows.unwrap_or_default().into_iter().map(|(start, rows)| (start, (rows.size, false))).collect();
    known.extend(ranges.iter().map(|r| (r.address, (r.bytes.len() as u64, true))));
    let mut found = Vec::new();
    let unnamed = |address: u64, size: u64| -> Option<Range<'a>> {
        let bytes = image.bytes(address, size).filter(|b| !b.is_empty())?;
        Some(Range { address, bytes, names: Vec::new(), file: "", unnamed: true, parent: 0 })
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
            }
            at = at.max(start + size);
        }
    }
    ranges.extend(found);
    ranges.sort_by_key(|r| r.address);
}

/// Finds the function of each part that has no name.
pub(crate) fn find_parents(image: &Image<'_>, ranges: &[Range<'_>], parents: &mut [Option<usize>]) {
    let at = |address: u64| {
        let i = ranges.partition_point(|r| r.address <= address).checked_sub(1)?;
        (address < ranges[i].end()).then(|| (i, address - ranges[i].address))
    };
    let leads = |i: usize| -> Vec<(usize, usize, bool, bool)> {
        let fields = code::steps(ranges[i].address, ranges[i].bytes, image.fixed).flat_map(|(_, s)| s.fields);
        let to = fields.filter_map(|f| at(f.target).map(|(to, offset)| (i, to, offset == 0, f.usage == Use::Branch)));
        to.filter(|(from, to, ..)| from != to).collect()
    };
    let all: Vec<_> = (0..ranges.len()).into_par_iter().flat_map_iter(leads).collect();
    let (mut entered, mut inside) =
        (BTreeMap::<usize, BTreeSet<usize>>::new(), BTreeMap::<usize, BTreeSet<usize>>::new());
    let pointers = image.words.values().filter_map(|w| match w {
        Word::Address(a) | Word::Resolver(a) => at(*a).map(|r| r.0),
        _ => None,
    });
    let mut taken: BTreeSet<usize> = pointers.collect();
    for (from, to, start, branch) in all {
        match (start, branch) {
            (true, true) => drop(entered.entry(to).or_default().insert(from)),
            (true, false) => drop(taken.insert(to)),
            (false, true) => drop(inside.entry(from).or_default().insert(to)),
            (false, false) => {}
        }
    }
    let belongs = |part: usize, to: usize| {
        let only = entered.get(&part).is_none_or(|from| from.iter().all(|f| *f == to));
        ranges[part].unnamed && !taken.contains(&part) && only
    };
    let single = inside.iter().filter(|(_, to)| to.len() == 1).filter_map(|(part, to)| Some((*part, *to.first()?)));
    let found: BTreeMap<usize, usize> =
        single.filter(|(part, to)| belongs(*part, *to) && !belongs(*to, *part)).collect();
    for (part, to) in &found {
        if !found.contains_key(to) {
            parents[*part] = Some(*to);
        }
    }
}
