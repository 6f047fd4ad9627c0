//! Functions of Rust that do the same as others.
//!
//! Each part of a crate that uses a function may get a copy of it, all under one name; and functions that turn out to be the same
//! are merged, or not, under the name of any of them. So no name says which old one is which new one. None need be: a
//! function's address means nothing in Rust, so a caller may as well be led to any that does the same. Two do the same if
//! their code is equal and leads to the same, such pairs included. The largest set of which that holds is what is left
//! when all that are unequal have been taken out.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::alike::own_code;
use crate::entities::{Family, Side};
use crate::ground::Ground;
use crate::rust;

/// Pairs of one kind that are compared at most.
const LIMIT: usize = 4096;

/// Old and new functions that may do the same.
type Group = (Vec<usize>, Vec<usize>);

/// The groups of two builds, whatever its functions are paired with.
#[derive(Debug, Default)]
pub(crate) struct Candidates<'s> {
    groups: Vec<Group>,
    old: FxHashMap<usize, Family<'s>>,
    new: FxHashMap<usize, Family<'s>>,
}

impl<'s> Candidates<'s> {
    fn new(old: &'s Side<'s>, new: &'s Side<'s>, groups: Vec<Group>) -> Candidates<'s> {
        let families = |side: &'s Side<'s>, members: BTreeSet<usize>| -> FxHashMap<usize, Family<'s>> {
            members.into_par_iter().map(|i| (i, Family::of(side, i))).collect()
        };
        Candidates {
            old: families(old, groups.iter().flat_map(|group| group.0.iter().copied()).collect()),
            new: families(new, groups.iter().flat_map(|group| group.1.iter().copied()).collect()),
            groups,
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.groups.iter().flat_map(|(old, new)| old.iter().flat_map(|f| new.iter().map(|g| (*f, *g))))
    }
}

impl<'g> Ground<'g, '_> {
    /// The functions that [`Ground::find_copies`] looks at.
    pub(crate) fn candidates(&self) -> Candidates<'g> {
        Candidates::new(self.old, self.new, self.groups())
    }

    /// Finds the pairs of old and new functions that do the same though neither is the other's twin. An old one that the patch
    /// replaces is none of them: whoever calls it gets what its twin does. Those that were found before stay: pairs that are found
    /// later only make more references lead to the same.
    pub(crate) fn find_copies(&mut self, candidates: &Candidates<'_>) {
        let (old, new) = (&candidates.old, &candidates.new);
        let pairs = candidates.pairs().filter(|&(f, g)| self.pairs.ranges.new_of(f) != Some(g));
        let (found, mut open): (Vec<_>, Vec<_>) = pairs.partition(|pair| self.copies.contains(pair));
        self.copies = found.into_iter().chain(open.iter().copied()).collect();
        loop {
            let equal = |pair: &&(usize, usize)| {
                let mut same = true;
                self.compare_known(**pair, (&old[&pair.0], &new[&pair.1]), &mut |_| false, &mut |_| {
                    same = false;
                    false
                });
                same
            };
            let (kept, lost): (Vec<_>, Vec<_>) = open.par_iter().partition(equal);
            if lost.is_empty() {
                return;
            }
            lost.iter().for_each(|pair| _ = self.copies.remove(pair));
            open = kept;
        }
    }

    /// Functions of the same bytes; where there are too many of them, of one name too.
    fn groups(&self) -> Vec<Group> {
        let mut before = of_rust(self.old);
        before.retain(|f| self.replaced_at(self.old.ranges[*f].address).is_none());
        let now = of_rust(self.new);
        if before.is_empty() || now.is_empty() {
            return Vec::new();
        }
        let mut by_code: BTreeMap<_, Group> = BTreeMap::new();
        for (code, f) in codes(self.old, before) {
            by_code.entry(code).or_default().0.push(f);
        }
        for (code, g) in codes(self.new, now) {
            if let Some(group) = by_code.get_mut(&code) {
                group.1.push(g);
            }
        }
        let mut groups = Vec::new();
        for group in by_code.into_values() {
            if group.0.len().saturating_mul(group.1.len()) <= LIMIT {
                groups.push(group);
                continue;
            }
            let mut by_name: BTreeMap<String, Group> = BTreeMap::new();
            for f in group.0 {
                names(self.old, f).into_iter().for_each(|name| by_name.entry(name).or_default().0.push(f));
            }
            for g in group.1 {
                names(self.new, g).into_iter().for_each(|name| by_name.entry(name).or_default().1.push(g));
            }
            groups.extend(by_name.into_values().filter(|(f, g)| f.len().saturating_mul(g.len()) <= LIMIT));
        }
        groups
    }
}

/// The functions of Rust that have a name.
fn of_rust(side: &Side<'_>) -> Vec<usize> {
    let is_rust = |i: &usize| {
        let range = &side.ranges[*i];
        range.parent == *i && !range.unnamed && range.names.iter().any(|name| rust::is_name(name))
    };
    (0..side.ranges.len()).filter(is_rust).collect()
}

/// These functions with their code, but for those whose exception tables name types.
fn codes(side: &Side<'_>, functions: Vec<usize>) -> Vec<((Vec<u8>, String), usize)> {
    functions.into_par_iter().filter_map(|i| Some((own_code(side, i)?, i))).collect()
}

fn names(side: &Side<'_>, i: usize) -> BTreeSet<String> {
    side.ranges[i].names.iter().filter_map(|name| rust::unversioned(name)).map(Cow::into_owned).collect()
}
