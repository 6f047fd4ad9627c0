//! What changed between two builds, under a given correlation.

use rayon::prelude::*;
use rustc_hash::FxHashSet;

use crate::build::Build;
use crate::copies::Copies;
use crate::correlate::{Correlation, Settled};
use crate::entity::{FunctionId, ObjectId};
use crate::image::Word;
use crate::judge::{Difference, Judge, Verdict};

/// What changed between two builds, by identity of entities.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Pairs of functions that differ, and where; ordered by old function.
    pub functions: Vec<(FunctionId, FunctionId, Difference)>,
    /// Pairs that do not.
    pub identical: usize,
    /// Old constant objects whose content differs.
    pub constants: FxHashSet<ObjectId>,
    /// Old writable objects whose initial content or size differs.
    pub variables: Vec<(ObjectId, ObjectId)>,
    /// Old writable objects that hold the address of a label inside a changed function.
    pub label_variables: Vec<ObjectId>,
}

impl Changes {
    /// True if nothing differs.
    pub(crate) fn is_empty(&self) -> bool {
        self.functions.is_empty() && self.variables.is_empty() && self.constants.is_empty()
    }
}

/// Compares all pairs. Functions that others may be led to in place of their pairs stay as they are: where one of them turns out to
/// be changed after all, none is taken for another one.
pub(crate) fn compare(old: &Build<'_>, new: &Build<'_>, pairs: &mut Correlation) -> Changes {
    let changes = compare_all(old, new, pairs);
    if !changes.functions.iter().any(|c| pairs.copies.has_old(c.0)) {
        return changes;
    }
    pairs.copies = Copies::default();
    compare_all(old, new, pairs)
}

/// Compares all pairs.
///
/// A constant that leads to a changed constant is changed, and so is one that holds the
/// address of a label inside a changed function (computed `goto`); functions that refer
/// to a changed constant are changed. So this repeats until nothing new is found.
fn compare_all(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> Changes {
    let mut constants = FxHashSet::default();
    loop {
        let mut changes = compare_once(old, new, pairs, constants);
        let labels = label_tables(old, &changes);
        let before = changes.constants.len();
        changes.constants.extend(labels.iter().copied().filter(|o| old.map.objects[*o].constant));
        if changes.constants.len() == before {
            changes.label_variables = labels.into_iter().filter(|o| !old.map.objects[*o].constant).collect();
            return changes;
        }
        constants = changes.constants;
    }
}

/// Old objects that hold the address of a label inside a function that changed.
fn label_tables(old: &Build<'_>, changes: &Changes) -> Vec<ObjectId> {
    let changed: FxHashSet<FunctionId> = changes.functions.iter().map(|c| c.0).collect();
    let is_label = |a: u64| {
        old.map.function_at(a).is_some_and(|(f, range, offset)| (range, offset) != (0, 0) && changed.contains(&f))
    };
    let words = old.image.words.iter().filter(|(_, w)| matches!(w, Word::Address(a) if is_label(*a)));
    let mut found: Vec<ObjectId> = words.filter_map(|(at, _)| old.map.object_at(*at)).collect();
    if old.image.fixed_address {
        found.extend(old.map.objects.iter().enumerate().filter_map(|(id, object)| {
            let bytes = old.image.bytes(object.address.next_multiple_of(8), object.size & !7)?;
            let mut words = bytes.chunks_exact(8).filter_map(|w| w.try_into().ok().map(u64::from_le_bytes));
            words.any(is_label).then_some(id)
        }));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Constant objects whose content differs, these beside others; and writable ones.
pub(crate) fn changed_objects(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    copies: &Copies,
    mut constants: FxHashSet<ObjectId>,
) -> (FxHashSet<ObjectId>, Vec<(ObjectId, ObjectId)>) {
    let object_pairs: Vec<(ObjectId, ObjectId)> = pairs.objects.iter().collect();
    loop {
        let judge = Judge::new(old, new, pairs).with_changed_constants(constants.clone()).with_copies(copies);
        let differing: Vec<(ObjectId, ObjectId)> =
            object_pairs.par_iter().copied().filter(|pair| judge.object_contents(*pair) != Verdict::Same).collect();
        let (constant, writable): (Vec<_>, Vec<_>) =
            differing.into_iter().partition(|(o, p)| old.map.objects[*o].constant && new.map.objects[*p].constant);
        let before = constants.len();
        constants.extend(constant.into_iter().map(|(o, _)| o));
        if constants.len() == before {
            return (constants, writable);
        }
    }
}

fn compare_once(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation, constants: FxHashSet<ObjectId>) -> Changes {
    let (constants, variables) = changed_objects(old, new, pairs, &pairs.copies, constants);
    let judge = Judge::new(old, new, pairs).with_changed_constants(constants.clone());
    let function_pairs: Vec<(FunctionId, FunctionId)> = pairs.functions.iter().collect();
    let difference = |pair: &(FunctionId, FunctionId)| own_difference(&judge, pairs, *pair);
    let differences: Vec<Option<Difference>> = function_pairs.par_iter().map(difference).collect();
    let mut changes = Changes { constants, variables, ..Changes::default() };
    for ((f, g), difference) in function_pairs.into_iter().zip(differences) {
        match difference {
            Some(d) => changes.functions.push((f, g, d)),
            None => changes.identical += 1,
        }
    }
    changes
}

/// First difference of two functions that are a pair.
pub(crate) fn own_difference(
    judge: &Judge<'_, '_>,
    pairs: &Correlation,
    pair: (FunctionId, FunctionId),
) -> Option<Difference> {
    // What the last vote on a pair found still holds, unless it depended on constants that turned out to have changed.
    let is_known = match pairs.settled[pair.0] {
        Settled::Same => true,
        Settled::SameButForConstants => judge.knows_no_changed_constants(),
        Settled::Open => false,
    };
    if is_known { judge.landing_difference(pair) } else { judge.any_difference(pair) }
}
