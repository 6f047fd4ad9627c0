//! Pairs of which it does no harm if they are none.
//!
//! A function without a name that changed, and that changed functions alone call, is named by no vote: those are taken of functions that
//! are the same. Where changed functions call it by an instruction that they have in both builds, and no such instruction says
//! otherwise, the two are taken for a pair, so that they are compared as one. If they are none, nothing is wrong: all that calls the old
//! one is replaced, so nothing runs it any more, and the new one is in the patch as it is. What such a pair refers to is
//! nobody's vote.

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::Correlation;
use super::instructions::Versions;
use super::stripped::left_over;
use crate::arch::{Site, Use};
use crate::build::Build;
use crate::callers::{callers, out_of_use};
use crate::compare::Changes;
use crate::entity::{FunctionId, Target};
use crate::finding::{Code, Finding};

/// Pairs such functions, if `changes` are what differs. True if there were any: then it has to be compared anew.
pub(crate) fn presume(old: &Build<'_>, new: &Build<'_>, pairs: &mut Correlation, changes: &Changes) -> bool {
    if !old.map.is_stripped() && !new.map.is_stripped() {
        return false;
    }
    let (before, now) = left_over((old, new), pairs);
    if before.is_empty() || now.is_empty() {
        return false;
    }
    let unused = out_of_use(&callers(old, &before), &replaced(changes));
    let called: FxHashSet<FunctionId> = callers(new, &now).into_keys().collect();
    if unused.is_empty() || called.is_empty() {
        return false;
    }
    // What an instruction leads to that both versions of a changed function have.
    let calls = |&(f, g, _): &(FunctionId, FunctionId, _)| {
        let versions = Versions::new((old, new), (f, g));
        let common = versions.common().filter_map(|(s, t)| Some((entered(old, s)?, entered(new, t)?)));
        common.filter(|(x, y)| unused.contains(x) || called.contains(y)).collect::<Vec<_>>()
    };
    let calls: Vec<(FunctionId, FunctionId)> = changes.functions.par_iter().flat_map_iter(calls).collect();
    let (mut of_old, mut of_new) = (FxHashMap::<_, FxHashSet<_>>::default(), FxHashMap::<_, FxHashSet<_>>::default());
    for (x, y) in &calls {
        of_old.entry(*x).or_default().insert(*y);
        of_new.entry(*y).or_default().insert(*x);
    }
    let mut found: Vec<(FunctionId, FunctionId)> = calls
        .into_iter()
        .filter(|(x, y)| unused.contains(x) && called.contains(y) && of_old[x].len() == 1 && of_new[y].len() == 1)
        .collect();
    found.sort_unstable();
    found.dedup();
    for (x, y) in &found {
        pairs.functions.join(*x, *y);
        pairs.presumed.insert(*x);
    }
    !found.is_empty()
}

/// The function that an instruction calls or jumps to.
fn entered(build: &Build<'_>, site: &Site) -> Option<FunctionId> {
    match build.map.resolve(&build.image, site) {
        Target::Function(f, 0, 0) if site.usage == Use::Branch => Some(f),
        _ => None,
    }
}

fn replaced(changes: &Changes) -> FxHashSet<FunctionId> {
    changes.functions.iter().map(|c| c.0).collect()
}

/// Pairs that were presumed and differ, but that something still calls.
pub(super) fn doubts(old: &Build<'_>, pairs: &Correlation, changes: &Changes) -> Vec<Finding> {
    let replaced = replaced(changes);
    let mut presumed: Vec<FunctionId> = pairs.presumed.iter().copied().filter(|f| replaced.contains(f)).collect();
    presumed.sort_unstable();
    if presumed.is_empty() {
        return Vec::new();
    }
    let unused = out_of_use(&callers(old, &presumed), &replaced);
    let in_use = presumed.into_iter().filter(|f| !unused.contains(f));
    let message = "nothing shows which function of the new build it became, if any, and unchanged code calls it";
    in_use.map(|f| Finding::new(Code::PairingUnproven, old.map.functions[f].name(), message)).collect()
}
