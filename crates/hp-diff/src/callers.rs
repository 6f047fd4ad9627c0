//! Who calls a function, where calls are all that leads to it.

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::arch::Use;
use crate::build::Build;
use crate::by_address::Spans;
use crate::entity::FunctionId;
use crate::image::{Evidence, Word};
use crate::unwind;

/// Functions to which nothing leads but direct calls and jumps to their entries, and what these are in; themselves left out.
pub(crate) type Callers = FxHashMap<FunctionId, FxHashSet<FunctionId>>;

/// Finds the callers of those of these functions without a name that nothing else leads to.
pub(crate) fn callers(build: &Build<'_>, functions: &[FunctionId]) -> Callers {
    let (image, map) = (&build.image, &build.map);
    let unreadable = || build.code.par_iter().any(|code| code.ranges.iter().any(|range| range.invalid.is_some()));
    // Only the dynamic linker's relocations tell for certain which words are addresses.
    if functions.is_empty() || image.fixed_address || !image.linked || unreadable() {
        return Callers::default();
    }
    let evidence =
        |f: &&FunctionId| map.functions[**f].evidence == Evidence::UnwindRows && !map.functions[**f].overlaps;
    let mut found: Callers = functions.iter().filter(evidence).map(|f| (*f, FxHashSet::default())).collect();
    let ranges = found.keys().flat_map(|f| &map.functions[*f].ranges);
    let places = Spans::new(ranges.map(|range| (range.address, range.end())).collect());
    // Who leads to what: nobody but a caller may.
    type Way = (Option<FunctionId>, FunctionId);
    let way = |from: Option<FunctionId>, target: u64, calls: bool| -> Option<Way> {
        let (to, range, offset) = map.function_at(target).filter(|_| places.contains(target))?;
        let calls = calls && (range, offset) == (0, 0);
        match from {
            Some(from) if from == to && ((range, offset) != (0, 0) || calls) => None,
            from => Some((from.filter(|_| calls), to)),
        }
    };
    let of_code = |from: FunctionId| {
        let code = &build.code[from];
        let sites = code.ranges.iter().flat_map(|range| &range.sites).map(|s| (s.target, s.usage == Use::Branch));
        let tables = code.tables.iter().flat_map(|table| &table.targets).map(|target| (*target, false));
        let ways = sites.chain(tables).filter(|(target, _)| places.contains(*target));
        ways.filter_map(|(target, calls)| way(Some(from), target, calls)).collect::<Vec<Way>>()
    };
    let mut ways: Vec<Way> = (0..build.code.len()).into_par_iter().flat_map_iter(of_code).collect();
    let words = image.words.values().filter_map(|word| match word {
        Word::Address(target) | Word::Resolver(target) => Some(*target),
        _ => None,
    });
    let rows = unwind::Rows::read(image);
    let personalities = rows.iter().filter_map(|(_, row)| row.cie.personality.as_ref().map(|p| p.address));
    let distances = map.distances.values().map(|distance| distance.target);
    let others = words.chain(distances).chain(personalities).chain(image.entries.iter().copied());
    ways.extend(others.filter_map(|target| way(None, target, false)));
    for (from, to) in ways {
        match from {
            Some(from) => drop(found.get_mut(&to).map(|callers| callers.insert(from))),
            None => drop(found.remove(&to)),
        }
    }
    found
}

/// Those that nothing runs once all of `replaced` are.
pub(crate) fn out_of_use(callers: &Callers, replaced: &FxHashSet<FunctionId>) -> FxHashSet<FunctionId> {
    let mut unused: FxHashSet<FunctionId> = callers.keys().copied().collect();
    loop {
        let before = unused.len();
        let run = |f: &FunctionId| callers[f].iter().all(|from| replaced.contains(from) || unused.contains(from));
        let rest: FxHashSet<FunctionId> = unused.iter().copied().filter(run).collect();
        if rest.len() == before {
            return rest;
        }
        unused = rest;
    }
}
