//! Pairing by name: the same name in the same file scope, then the name without the compiler's numbering.
//!
//! Names are asked again whenever something was paired, for what that leaves over may be the only one of its
//! name. So only names that both builds still have alone are kept.

use rustc_hash::FxHashSet;

use super::pairs::Pairs;
use super::{Correlation, numbered_stem, quiet_name};
use crate::build::Build;
use crate::entity::Map;

/// A name with its file scope.
type Name<'m> = (&'m str, &'m str);

/// Names that may still join something.
pub(super) struct Names<'m> {
    functions: Both<'m>,
    quiet_functions: Both<'m>,
    objects: Both<'m>,
}

impl<'m> Names<'m> {
    pub(super) fn new(old: &'m Build<'_>, new: &'m Build<'_>) -> Names<'m> {
        Names {
            functions: Both(functions(&old.map), functions(&new.map)),
            quiet_functions: Both(quiet_functions(&old.map), quiet_functions(&new.map)),
            objects: Both(objects(&old.map), objects(&new.map)),
        }
    }

    /// Joins what is alone with its name in both builds.
    pub(super) fn join(&mut self, pairs: &mut Correlation) {
        self.functions.join(&mut pairs.functions);
        self.quiet_functions.join(&mut pairs.functions);
        self.objects.join(&mut pairs.objects);
    }
}

/// Names of the old and of the new build.
struct Both<'m>(Vec<(Name<'m>, usize)>, Vec<(Name<'m>, usize)>);

impl Both<'_> {
    fn join(&mut self, pairs: &mut Pairs) {
        self.0.retain(|(_, id)| pairs.new_of(*id).is_none());
        self.1.retain(|(_, id)| pairs.old_of(*id).is_none());
        pairs.join_by_key(self.0.iter().copied(), self.1.iter().copied());
        self.0.retain(|(_, id)| pairs.new_of(*id).is_none());
        self.1.retain(|(_, id)| pairs.old_of(*id).is_none());
        let before: FxHashSet<Name<'_>> = self.0.iter().map(|n| n.0).collect();
        self.1.retain(|(name, _)| before.contains(name));
        let now: FxHashSet<Name<'_>> = self.1.iter().map(|n| n.0).collect();
        self.0.retain(|(name, _)| now.contains(name));
    }
}

fn functions<'m>(map: &'m Map<'_>) -> Vec<(Name<'m>, usize)> {
    let named = map.functions.iter().enumerate().filter(|(_, f)| f.evidence.has_name());
    named.flat_map(|(id, f)| f.names.iter().map(move |n| ((f.file, *n), id))).collect()
}

fn quiet_functions<'m>(map: &'m Map<'_>) -> Vec<(Name<'m>, usize)> {
    let named = map.functions.iter().enumerate().filter(|(_, f)| f.evidence.has_name());
    named.map(|(id, f)| ((f.file, quiet_name(f.name())), id)).collect()
}

fn objects<'m>(map: &'m Map<'_>) -> Vec<(Name<'m>, usize)> {
    let named = map.objects.iter().enumerate().flat_map(|(id, o)| {
        let known = o.names.iter().filter(|n| !o.unnamed && (!o.local || numbered_stem(n).is_none()));
        known.map(move |n| ((o.file, *n), id))
    });
    named.collect()
}
