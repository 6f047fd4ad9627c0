//! Copies of one function of Rust.
//!
//! rustc compiles a crate in parts, and each part that uses a generic or inlined function may get a copy of its own, under
//! one name or, where equal functions were merged, under another one. Which copy a caller has depends on how the crate was divided, so it is no
//! change if it calls another one in the new build, as long as that one does the same. No pair of them can be told by name, and
//! some that names or callers told may call the others crosswise; but any of the old ones may stand for any of the new ones that is
//! equal to it, since Rust gives no meaning to the address of a function.
//!
//! What is equal is found by assuming that all are that have one code, and putting aside those that differ, until none is left that does.
//! Only those count that somebody asked about: functions of one code are many, and those that anything leads to crosswise few.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Mutex;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use crate::build::Build;
use crate::compare::{changed_objects, own_difference};
use crate::correlate::{Correlation, Settled};
use crate::entity::FunctionId;
use crate::judge::Judge;
use crate::rust;

/// Pairs of one name that are compared; what has more copies is left to its callers, which count as changed.
const MANY: usize = 4096;

type Pair = (FunctionId, FunctionId);

/// Old and new functions that do the same, though neither need be the other's pair.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    equal: FxHashSet<Pair>,
    /// The first old one that is equal to a new one.
    first: FxHashMap<FunctionId, FunctionId>,
    old: FxHashSet<FunctionId>,
    /// While it is being found out which are equal.
    open: Option<Open>,
}

/// Functions of one code, which are equal until it turns out that they are not.
#[derive(Debug, Default)]
struct Open {
    /// A number of each function's code, of the old and of the new build; `None` for what is not of Rust.
    codes: (Vec<Option<u64>>, Vec<Option<u64>>),
    /// Of one name; these need not have the very same code.
    named: FxHashSet<Pair>,
    unequal: FxHashSet<Pair>,
    asked: Mutex<FxHashSet<Pair>>,
}

impl Copies {
    pub(crate) fn find(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> Copies {
        let codes = (codes(old), codes(new));
        if codes.0.iter().all(Option::is_none) || codes.1.iter().all(Option::is_none) {
            return Copies::default();
        }
        let named = candidates(old, new, pairs);
        let open = Open { codes, asked: Mutex::new(named.clone()), named, ..Open::default() };
        let mut copies = Copies { open: Some(open), ..Copies::default() };
        loop {
            let (asked, unequal) = copies.round(old, new, pairs);
            let open = copies.open.as_mut().expect("it is still being found out");
            if unequal.is_empty() {
                return Copies::new(asked.into_iter().filter(|pair| open.may_be_equal(*pair)).collect());
            }
            open.unequal.extend(unequal);
        }
    }

    /// The pairs that were asked about so far, and those of them that now turn out to differ.
    fn round(&self, old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> (FxHashSet<Pair>, Vec<Pair>) {
        let constants = changed_objects(old, new, pairs, self, FxHashSet::default()).0;
        let judge = Judge::new(old, new, pairs).with_changed_constants(constants).with_copies(self);
        // One that differs from its own pair is replaced: whoever is led to it gets what that does.
        let is_replaced = |pair: &Pair| own_difference(&judge, pairs, *pair).is_some();
        let own: Vec<Pair> = pairs.functions.iter().filter(|pair| pairs.settled[pair.0] != Settled::Same).collect();
        let replaced: FxHashSet<FunctionId> = own.into_par_iter().filter(is_replaced).map(|pair| pair.0).collect();
        let is_replaced = |f: FunctionId| {
            let settled = pairs.settled[f] == Settled::Same;
            replaced.contains(&f) || settled && pairs.functions.new_of(f).is_some_and(|g| is_replaced(&(f, g)))
        };
        let open = self.open.as_ref().expect("it is still being found out");
        let mut seen = FxHashSet::default();
        let mut unequal = Vec::new();
        loop {
            let asked = open.asked.lock().expect("no thread that holds it fails").clone();
            let fresh: Vec<Pair> = asked.iter().copied().filter(|pair| seen.insert(*pair)).collect();
            if fresh.is_empty() {
                return (asked, unequal);
            }
            let fresh = fresh.into_par_iter().filter(|pair| open.may_be_equal(*pair));
            unequal.par_extend(fresh.filter(|pair| is_replaced(pair.0) || judge.any_difference(*pair).is_some()));
        }
    }

    fn new(equal: FxHashSet<Pair>) -> Copies {
        let mut first: FxHashMap<FunctionId, FunctionId> = FxHashMap::default();
        for &(f, g) in &equal {
            first.entry(g).and_modify(|known| *known = (*known).min(f)).or_insert(f);
        }
        let old = equal.iter().map(|pair| pair.0).collect();
        Copies { equal, first, old, open: None }
    }

    pub(crate) fn are_equal(&self, old: FunctionId, new: FunctionId) -> bool {
        match &self.open {
            Some(open) => open.ask((old, new)),
            None => self.equal.contains(&(old, new)),
        }
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

impl Open {
    /// True if nothing is known to speak against it.
    fn may_be_equal(&self, pair: Pair) -> bool {
        !self.unequal.contains(&pair)
    }

    fn ask(&self, (f, g): Pair) -> bool {
        let alike = self.codes.0[f].is_some() && self.codes.0[f] == self.codes.1[g] || self.named.contains(&(f, g));
        let equal = alike && self.may_be_equal((f, g));
        if equal {
            self.asked.lock().expect("no thread that holds it fails").insert((f, g));
        }
        equal
    }
}

/// A number of the code of each function of Rust, but for where it leads.
fn codes(build: &Build<'_>) -> Vec<Option<u64>> {
    let code = |id: FunctionId| {
        let function = &build.map.functions[id];
        rust::is_mangled(function.name()).then(|| {
            let mut hasher = FxHasher::default();
            for (range, code) in function.ranges.iter().zip(&build.code[id].ranges) {
                let mut bytes = range.bytes.to_vec();
                code.sites.blank(&mut bytes);
                bytes.hash(&mut hasher);
            }
            hasher.finish()
        })
    };
    (0..build.map.functions.len()).into_par_iter().map(code).collect()
}

/// All pairs of one name of which some copy is alone.
fn candidates(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> FxHashSet<Pair> {
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
    let size = |pair: &Pair| {
        old.map.functions[pair.0].size() == new.map.functions[pair.1].size()
            || pairs.functions.new_of(pair.0) == Some(pair.1)
    };
    all.filter(size).collect()
}
