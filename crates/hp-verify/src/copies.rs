//! Copies that rustc makes of one function, one for each part of a crate that uses it.
//!
//! They have one name, so no name says which old copy is which new one. None need be: a function's address means nothing
//! in Rust, so a caller may as well be led to any copy that does the same. Two copies do the same if their code is equal and leads
//! to the same, copies that do the same included. The largest set of which that holds is what is left when all that
//! are unequal have been taken out.

use std::collections::BTreeMap;

use rayon::prelude::*;
use rustc_hash::FxHashSet;

use crate::ground::Ground;
use crate::landing;
use crate::rust;

/// Pairs of one name that are compared at most.
const LIMIT: usize = 4096;

impl Ground<'_, '_> {
    /// Finds the pairs of old and new functions that do the same though neither is the other's twin. An old one that the patch
    /// replaces is none of them: whoever calls it gets what its twin does.
    pub(crate) fn find_copies(&mut self) {
        let mut names: BTreeMap<_, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
        let entry = |side: &crate::entities::Side<'_>, i: usize| side.ranges[i].parent == i && !side.ranges[i].unnamed;
        for f in (0..self.old.ranges.len()).filter(|f| entry(self.old, *f)) {
            let range = &self.old.ranges[f];
            if let Some(name) = rust::unversioned(range.name()).filter(|_| self.replaced_at(range.address).is_none()) {
                names.entry(name).or_default().0.push(f);
            }
        }
        for g in (0..self.new.ranges.len()).filter(|g| entry(self.new, *g)) {
            if let Some(copies) = rust::unversioned(self.new.ranges[g].name()).and_then(|name| names.get_mut(&name)) {
                copies.1.push(g);
            }
        }
        let tables = (landing::of_build(&self.old.image), landing::of_build(&self.new.image));
        let alike = |f: usize, g: usize| {
            let (x, y) = (&self.old.ranges[f], &self.new.ranges[g]);
            let table = |tables: &landing::Tables<u64, u64>, start| match tables.get(&start) {
                None => Some(None),
                Some(table) => table.as_ref().ok().and_then(|table| table.of_cleanups(start)).map(Some),
            };
            let (p, q) = (table(&tables.0, x.address), table(&tables.1, y.address));
            x.bytes.len() == y.bytes.len() && p.is_some() && p == q
        };
        let few = |copies: &&(Vec<usize>, Vec<usize>)| copies.0.len().saturating_mul(copies.1.len()) <= LIMIT;
        let all =
            names.values().filter(few).flat_map(|(old, new)| old.iter().flat_map(|f| new.iter().map(|g| (*f, *g))));
        let copies: FxHashSet<(usize, usize)> =
            all.filter(|&(f, g)| self.pairs.ranges.new_of(f) != Some(g) && alike(f, g)).collect();
        self.copies = copies;
        loop {
            let equal = |pair: &&(usize, usize)| {
                let mut same = true;
                self.compare_functions(**pair, &mut |_| false, &mut |_| {
                    same = false;
                    false
                });
                same
            };
            let kept: FxHashSet<(usize, usize)> = self.copies.par_iter().filter(equal).copied().collect();
            let all_are = kept.len() == self.copies.len();
            self.copies = kept;
            if all_are {
                return;
            }
        }
    }
}
