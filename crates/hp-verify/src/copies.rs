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
use rustc_hash::{FxHashMap, FxHashSet};

use crate::alike::own_code;
use crate::entities::{Family, Side};
use crate::ground::Ground;
use crate::landing;
use crate::rust;

/// Pairs of one kind that are compared at most.
const LIMIT: usize = 4096;

/// Old and new functions that may do the same.
type Group = (Vec<usize>, Vec<usize>);

impl Ground<'_, '_> {
    /// Finds the pairs of old and new functions that do the same though neither is the other's twin. An old one that the patch
    /// replaces is none of them: whoever calls it gets what its twin does.
    pub(crate) fn find_copies(&mut self) {
        let groups = self.groups();
        let families = |side: &Side<'_>, members: BTreeSet<usize>| -> FxHashMap<usize, Family> {
            members.into_par_iter().map(|i| (i, Family::of(side, i))).collect()
        };
        let old = families(self.old, groups.iter().flat_map(|group| group.0.iter().copied()).collect());
        let new = families(self.new, groups.iter().flat_map(|group| group.1.iter().copied()).collect());
        let all = groups.iter().flat_map(|(old, new)| old.iter().flat_map(|f| new.iter().map(|g| (*f, *g))));
        self.copies = all.filter(|&(f, g)| self.pairs.ranges.new_of(f) != Some(g)).collect();
        loop {
            let equal = |pair: &&(usize, usize)| {
                let mut same = true;
                self.compare_known(**pair, (&old[&pair.0], &new[&pair.1]), &mut |_| false, &mut |_| {
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

    /// Functions of the same bytes; where there are too many of them, of one name too.
    fn groups(&self) -> Vec<Group> {
        let kept = |f: &usize| self.replaced_at(self.old.ranges[*f].address).is_none();
        let mut by_code: BTreeMap<_, Group> = BTreeMap::new();
        for (code, f) in codes(self.old).filter(|(_, f)| kept(f)) {
            by_code.entry(code).or_default().0.push(f);
        }
        for (code, g) in codes(self.new) {
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

/// The functions of Rust with their code, but for those whose exception tables name types.
fn codes<'s>(side: &'s Side<'_>) -> impl Iterator<Item = ((Vec<u8>, String), usize)> + 's {
    let tables = landing::of_build(&side.image);
    let is_rust = |i: &usize| {
        let range = &side.ranges[*i];
        range.parent == *i && !range.unnamed && range.names.iter().any(|name| rust::is_name(name))
    };
    (0..side.ranges.len()).filter(is_rust).filter_map(move |i| Some((own_code(side, i, &tables)?, i)))
}

fn names(side: &Side<'_>, i: usize) -> BTreeSet<String> {
    side.ranges[i].names.iter().filter_map(|name| rust::unversioned(name)).map(Cow::into_owned).collect()
}
