//! Which ranges are one function, where symbols do not say so.
//!
//! Compilers move unlikely code of a function elsewhere, where it has unwind rows of its own and, in a
//! symbol table, the name `f.cold`. Without symbols it is known by what compilers do inside of one function only:
//! it jumps into the middle of the function that it belongs to, or that one into its middle, or to its start on a
//! condition; and nothing else leads to it. What is reached by one plain jump and never comes back
//! may be a function: it is left as it is, for all that it needs is what it finds when it is jumped to.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::arch::{self, Branch, Code, Site, Use};
use crate::by_address::Marks;
use crate::entity::{FunctionId, Map, cold_parent};
use crate::image::{Evidence, Image, Word};

/// Attaches the fragments that are left over to their functions, and puts the code in the order of the functions again.
pub(super) fn attach(map: &mut Map<'_>, image: &Image<'_>, mut code: Vec<Vec<Code>>) -> Vec<Vec<Code>> {
    let mut parents = if map.is_stripped() { parents(map, image, &code) } else { FxHashMap::default() };
    parents.extend(parents_by_name(map, &code));
    if parents.is_empty() {
        return code;
    }
    let mut functions: Vec<_> = std::mem::take(&mut map.functions).into_iter().map(Some).collect();
    let mut order: Vec<(FunctionId, FunctionId)> = parents.into_iter().collect();
    order.sort_unstable();
    for (fragment, parent) in order {
        let Some(taken) = functions[fragment].take() else { continue };
        let taken_code = std::mem::take(&mut code[fragment]);
        if let Some(function) = &mut functions[parent] {
            function.overlaps |= taken.overlaps;
            function.ranges.extend(taken.ranges);
            code[parent].extend(taken_code);
        }
    }
    let kept: Vec<bool> = functions.iter().map(Option::is_some).collect();
    map.functions = functions.into_iter().flatten().collect();
    map.index_code();
    code.into_iter().zip(kept).filter_map(|(c, kept)| kept.then_some(c)).collect()
}

/// Parents of fragments `f.cold` where the symbol table has several functions `f` that it may belong to: the one
/// that branches to it.
fn parents_by_name(map: &Map<'_>, code: &[Vec<Code>]) -> Vec<(FunctionId, FunctionId)> {
    let fragments: FxHashMap<FunctionId, &str> =
        map.functions.iter().enumerate().filter_map(|(f, function)| Some((f, cold_parent(function.name())?))).collect();
    if fragments.is_empty() {
        return Vec::new();
    }
    let mut found: FxHashMap<FunctionId, FxHashSet<FunctionId>> = FxHashMap::default();
    for (g, ranges) in code.iter().enumerate() {
        for site in ranges.iter().flat_map(|c| &c.sites).filter(|s| s.usage == Use::Branch) {
            if let Some((f, _, _)) = map.function_at(site.target)
                && fragments.get(&f).is_some_and(|stem| map.functions[g].names.contains(stem))
            {
                found.entry(f).or_default().insert(g);
            }
        }
    }
    let single = found.into_iter().filter(|(_, parents)| parents.len() == 1);
    single.flat_map(|(f, parents)| parents.into_iter().map(move |g| (f, g))).collect()
}

/// Functions that do something to one: none, a single one, or several.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    One(u32),
    Several,
}

impl Who {
    fn add(&mut self, function: FunctionId) {
        let function = function as u32;
        *self = match *self {
            Who::Nobody => Who::One(function),
            Who::One(one) if one == function => return,
            _ => Who::Several,
        };
    }
}

/// How the code of others leads to a range.
#[derive(Clone)]
struct Entrances {
    /// Who jumps to it.
    users: Who,
    /// Who of them does what compilers do inside of a function only: it jumps into the middle, or on a condition; and whose
    /// middle this range jumps into.
    bound: Who,
    /// Something calls it or refers to it in another way.
    escapes: bool,
}

/// The parent of each fragment.
fn parents(map: &Map<'_>, image: &Image<'_>, code: &[Vec<Code>]) -> FxHashMap<FunctionId, FunctionId> {
    let entrances = entrances(map, image, code);
    let is_fragment_of = |f: FunctionId, parent: FunctionId| {
        let users = entrances[f].users;
        map.functions[f].evidence == Evidence::UnwindRows
            && !entrances[f].escapes
            && (users == Who::Nobody || users == Who::One(parent as u32))
    };
    let mut found = FxHashMap::default();
    for (f, entrances) in entrances.iter().enumerate() {
        if let Who::One(parent) = entrances.bound {
            let parent = parent as FunctionId;
            if is_fragment_of(f, parent) && !is_fragment_of(parent, f) {
                found.insert(f, parent);
            }
        }
    }
    // A fragment of a fragment does not occur; where it seems to, nothing is known.
    let fragments: FxHashSet<FunctionId> = found.keys().copied().collect();
    found.retain(|_, parent| !fragments.contains(parent));
    found
}

fn entrances(map: &Map<'_>, image: &Image<'_>, code: &[Vec<Code>]) -> Vec<Entrances> {
    let nothing = Entrances { users: Who::Nobody, bound: Who::Nobody, escapes: false };
    let mut found = vec![nothing; map.functions.len()];
    let mut called = Marks::new(map.code_span());
    for (f, ranges) in code.iter().enumerate() {
        let function = &map.functions[f];
        let is_own = |target: u64| function.ranges.iter().any(|r| (r.address..r.end()).contains(&target));
        for (range, code) in function.ranges.iter().zip(ranges) {
            let mut note = |site: Site| {
                // Of whom a call leads to it is asked at the end, for there are so many.
                let calls = !function.overlaps && arch::is_plain_call(range.bytes, &site);
                if calls && (is_own(site.target) || called.insert(site.target)) {
                    return;
                }
                let Some((g, _, offset)) = map.function_at(site.target).filter(|(g, _, _)| *g != f) else { return };
                match arch::branch(range.bytes, &site) {
                    Branch::Call | Branch::None => found[g].escapes = true,
                    Branch::Jump | Branch::Conditional if offset > 0 => {
                        found[g].bound.add(f);
                        found[f].bound.add(g);
                    }
                    Branch::Conditional => found[g].bound.add(f),
                    Branch::Jump => {}
                }
                found[g].users.add(f);
            };
            match function.overlaps {
                true => code.sites.iter().for_each(&mut note),
                false => code.sites.leaving().for_each(&mut note),
            }
        }
    }
    for (g, part) in map.code_parts() {
        found[g].escapes |= called.any(part);
    }
    for word in image.words.values() {
        if let Word::Address(a) | Word::Resolver(a) = word
            && let Some((f, _, _)) = map.function_at(*a)
        {
            found[f].escapes = true;
        }
    }
    found
}
