//! Copies of one function of Rust.
//!
//! rustc compiles a crate in parts, and each part that uses a generic or inlined function may get a copy of its own, under
//! one name. Which copy a caller has depends on how the crate was divided, so it is no change if it calls another one in the
//! new build, as long as that one does the same. No pair of them can be told by name; but any of the old ones may stand for any
//! of the new ones that is equal to it, since Rust gives no meaning to the address of a function.
//!
//! What is equal is found by assuming that all of one name are, and putting aside those that differ, until none is left that does.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::build::Build;
use crate::compare::changed_constants;
use crate::correlate::Correlation;
use crate::entity::FunctionId;
use crate::judge::Judge;
use crate::rust;

/// Pairs of one name that are compared; what has more copies is left to its callers, which count as changed.
const MANY: usize = 4096;

/// Old and new functions that do the same, under one name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    equal: FxHashSet<(FunctionId, FunctionId)>,
    /// The first old one that is equal to a new one.
    first: FxHashMap<FunctionId, FunctionId>,
    old: FxHashSet<FunctionId>,
}

impl Copies {
    pub(crate) fn find(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> Copies {
        let mut copies = Copies::new(candidates(old, new, pairs));
        if copies.equal.is_empty() {
            return copies;
        }
        let constants = changed_constants(old, new, pairs);
        loop {
            let judge = Judge::new(old, new, pairs).with_changed_constants(constants.clone()).with_copies(&copies);
            let all: Vec<_> = copies.equal.par_iter().copied().collect();
            let differing: FxHashSet<_> =
                all.into_par_iter().filter(|pair| judge.any_difference(*pair).is_some()).collect();
            if differing.is_empty() {
                return copies;
            }
            // One that differs from its own pair is replaced: whoever is led to it gets what that does.
            let replaced = |f: FunctionId| pairs.functions.new_of(f).is_some_and(|g| differing.contains(&(f, g)));
            let kept = copies.equal.iter().copied().filter(|pair| !differing.contains(pair) && !replaced(pair.0));
            copies = Copies::new(kept.collect());
        }
    }

    fn new(equal: FxHashSet<(FunctionId, FunctionId)>) -> Copies {
        let mut first: FxHashMap<FunctionId, FunctionId> = FxHashMap::default();
        for &(f, g) in &equal {
            first.entry(g).and_modify(|known| *known = (*known).min(f)).or_insert(f);
        }
        let old = equal.iter().map(|pair| pair.0).collect();
        Copies { equal, first, old }
    }

    pub(crate) fn are_equal(&self, old: FunctionId, new: FunctionId) -> bool {
        self.equal.contains(&(old, new))
    }

    /// An old function that does what a new one does.
    pub(crate) fn old_of(&self, new: FunctionId) -> Option<FunctionId> {
        self.first.get(&new).copied()
    }

    /// True if the new build has a function that does the same.
    pub(crate) fn has_old(&self, old: FunctionId) -> bool {
        self.old.contains(&old)
    }
}

/// All pairs of one name of which some copy is alone.
fn candidates(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> FxHashSet<(FunctionId, FunctionId)> {
    let mut names: BTreeMap<Cow<'_, str>, (Vec<FunctionId>, Vec<FunctionId>)> = BTreeMap::new();
    for (f, function) in old.map.functions.iter().enumerate() {
        if let Some(name) = rust::quiet_name(function.name()) {
            names.entry(name).or_default().0.push(f);
        }
    }
    for (g, function) in new.map.functions.iter().enumerate() {
        if let Some(copies) = rust::quiet_name(function.name()).and_then(|name| names.get_mut(&name)) {
            copies.1.push(g);
        }
    }
    let alone = |(before, now): &(Vec<FunctionId>, Vec<FunctionId>)| {
        before.len().saturating_mul(now.len()) <= MANY
            && (before.iter().any(|f| pairs.functions.new_of(*f).is_none())
                || now.iter().any(|g| pairs.functions.old_of(*g).is_none()))
    };
    let names = names.into_values().filter(alone);
    let all = names
        .flat_map(|(before, now)| before.into_iter().flat_map(move |f| now.clone().into_iter().map(move |g| (f, g))));
    let size = |pair: &(FunctionId, FunctionId)| {
        old.map.functions[pair.0].size() == new.map.functions[pair.1].size()
            || pairs.functions.new_of(pair.0) == Some(pair.1)
    };
    all.filter(size).collect()
}
