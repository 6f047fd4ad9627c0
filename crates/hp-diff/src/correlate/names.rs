//! Pairing by name: the same name in the same file scope, then the name without the compiler's numbering. Names of Rust say by
//! themselves whose they are (the file of a local one is a codegen unit), so they pair without a file, and then without
//! hashes.
//!
//! Names are asked again whenever something was paired, for what that leaves over may be the only one of its
//! name. So only names that both builds still have alone are kept.

use std::borrow::Cow;
use std::hash::Hash;

use rustc_hash::FxHashSet;

use super::pairs::Pairs;
use super::{Correlation, numbered_stem, quiet_name};
use crate::build::Build;
use crate::entity::Map;
use crate::rust;

/// A name with its file scope.
type Name<'m> = (&'m str, &'m str);

/// Names that may still join something.
pub(super) struct Names<'m> {
    functions: Both<Name<'m>>,
    quiet_functions: Both<Name<'m>>,
    objects: Both<Name<'m>>,
    rust_functions: Both<&'m str>,
    rust_objects: Both<&'m str>,
    quiet_rust_functions: Both<Cow<'m, str>>,
    quiet_rust_objects: Both<Cow<'m, str>>,
}

impl<'m> Names<'m> {
    pub(super) fn new(old: &'m Build<'_>, new: &'m Build<'_>) -> Names<'m> {
        let functions_of_rust = (names_of_rust(function_names(&old.map)), names_of_rust(function_names(&new.map)));
        let objects_of_rust = (names_of_rust(object_names(&old.map)), names_of_rust(object_names(&new.map)));
        Names {
            quiet_rust_functions: quiet(&functions_of_rust.0, &functions_of_rust.1),
            quiet_rust_objects: quiet(&objects_of_rust.0, &objects_of_rust.1),
            rust_functions: Both(functions_of_rust.0, functions_of_rust.1),
            rust_objects: Both(objects_of_rust.0, objects_of_rust.1),
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
        self.rust_functions.join(&mut pairs.functions);
        self.rust_objects.join(&mut pairs.objects);
        self.quiet_rust_functions.join(&mut pairs.functions);
        self.quiet_rust_objects.join(&mut pairs.objects);
    }
}

/// Names of the old and of the new build.
struct Both<K>(Vec<(K, usize)>, Vec<(K, usize)>);

impl<K: Hash + Eq + Clone> Both<K> {
    fn join(&mut self, pairs: &mut Pairs) {
        self.0.retain(|(_, id)| pairs.new_of(*id).is_none());
        self.1.retain(|(_, id)| pairs.old_of(*id).is_none());
        pairs.join_by_key(self.0.iter().cloned(), self.1.iter().cloned());
        self.0.retain(|(_, id)| pairs.new_of(*id).is_none());
        self.1.retain(|(_, id)| pairs.old_of(*id).is_none());
        let before: FxHashSet<K> = self.0.iter().map(|n| n.0.clone()).collect();
        self.1.retain(|(name, _)| before.contains(name));
        let now: FxHashSet<K> = self.1.iter().map(|n| n.0.clone()).collect();
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

fn function_names<'m>(map: &'m Map<'_>) -> impl Iterator<Item = (&'m str, usize)> {
    map.functions.iter().enumerate().flat_map(|(id, f)| f.names.iter().map(move |n| (*n, id)))
}

fn object_names<'m>(map: &'m Map<'_>) -> impl Iterator<Item = (&'m str, usize)> {
    map.objects.iter().enumerate().flat_map(|(id, o)| o.names.iter().map(move |n| (*n, id)))
}

fn names_of_rust<'m>(names: impl Iterator<Item = (&'m str, usize)>) -> Vec<(&'m str, usize)> {
    names.filter_map(|(name, id)| Some((rust::instance_name(name)?, id))).collect()
}

/// Names without hashes, of what the other build has not under its whole name: that is another instance, or one copy more or less.
fn quiet<'m>(old: &[(&'m str, usize)], new: &[(&'m str, usize)]) -> Both<Cow<'m, str>> {
    let quiet = |names: &[(&'m str, usize)], others: &[(&'m str, usize)]| {
        let others: FxHashSet<&str> = others.iter().map(|(name, _)| *name).collect();
        let alone = names.iter().filter(|(name, _)| !others.contains(name));
        alone.filter_map(|(name, id)| Some((rust::quiet_name(name)?, *id))).collect()
    };
    Both(quiet(old, new), quiet(new, old))
}
