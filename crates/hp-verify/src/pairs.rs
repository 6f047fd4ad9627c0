//! Which entity of the old build is which of the new one, by name.
//!
//! A name counts in its scope (the source file of a local symbol), and only where it occurs once on each side.
//! Names of Rust say by themselves whose they are; they count without a file, and then without what follows the version of their crate.
//! A function of Rust of which a build has several copies under one name has no twin: [`copies`](crate::copies) says what of them is
//! the same. The numbers that compilers give to clones (`f.constprop.1`) say nothing and are put aside in a second round; a
//! static local (`count.2`) has no name that counts, and neither has anything in a stripped build: those are left to
//! [`votes`](crate::votes).

use std::borrow::Cow;
use std::hash::Hash;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::entities::{Range, Side, cold_stem};
use crate::rust;

/// A 1:1 relation between indices of the old and the new side.
#[derive(Clone, Debug, Default)]
pub(crate) struct OneToOne {
    new_of: FxHashMap<usize, usize>,
    old_of: FxHashMap<usize, usize>,
}

impl OneToOne {
    pub(crate) fn new_of(&self, old: usize) -> Option<usize> {
        self.new_of.get(&old).copied()
    }

    pub(crate) fn old_of(&self, new: usize) -> Option<usize> {
        self.old_of.get(&new).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut all: Vec<(usize, usize)> = self.new_of.iter().map(|(o, p)| (*o, *p)).collect();
        all.sort_unstable();
        all.into_iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.new_of.len()
    }

    /// Joins two that are both alone; true if they were.
    pub(crate) fn join(&mut self, old: usize, new: usize) -> bool {
        let alone = !self.new_of.contains_key(&old) && !self.old_of.contains_key(&new);
        if alone {
            self.new_of.insert(old, new);
            self.old_of.insert(new, old);
        }
        alone
    }

    /// Joins what has a key that occurs once on each side among those that are alone, unless its keys disagree.
    pub(crate) fn join_by<K: Hash + Eq + Ord>(
        &mut self,
        old: impl Iterator<Item = (K, usize)>,
        new: impl Iterator<Item = (K, usize)>,
    ) {
        let mut keys: FxHashMap<K, (Vec<usize>, Vec<usize>)> = FxHashMap::default();
        for (key, o) in old.filter(|(_, o)| !self.new_of.contains_key(o)) {
            keys.entry(key).or_default().0.push(o);
        }
        for (key, p) in new.filter(|(_, p)| !self.old_of.contains_key(p)) {
            keys.entry(key).or_default().1.push(p);
        }
        let once = |list: &mut Vec<usize>| {
            list.dedup();
            (list.len() == 1).then(|| list[0])
        };
        let found: Vec<(usize, usize)> = keys.values_mut().filter_map(|(a, b)| Some((once(a)?, once(b)?))).collect();
        let (mut of_old, mut of_new): (FxHashMap<usize, Vec<usize>>, FxHashMap<usize, Vec<usize>>) = Default::default();
        for &(o, p) in &found {
            of_old.entry(o).or_default().push(p);
            of_new.entry(p).or_default().push(o);
        }
        let agree = |list: &[usize]| list.iter().all(|x| *x == list[0]);
        for (o, p) in found {
            if agree(&of_old[&o]) && agree(&of_new[&p]) {
                self.join(o, p);
            }
        }
    }
}

/// All pairs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs {
    /// Ranges of code.
    pub(crate) ranges: OneToOne,
    /// Data objects.
    pub(crate) objects: OneToOne,
    /// Places in data without a symbol: old address to new address.
    pub(crate) data: FxHashMap<u64, u64>,
    /// Old and new functions that share their name with another one of their build.
    pub(crate) several: (FxHashSet<usize>, FxHashSet<usize>),
}

impl Pairs {
    /// The pairs that names prove.
    pub(crate) fn by_name(old: &Side<'_>, new: &Side<'_>) -> Pairs {
        let mut pairs = Pairs { several: several(old, new), ..Pairs::default() };
        pairs.join_by_name(old, new);
        pairs
    }

    /// True if two functions may be a pair: not if one of them is one of several copies, unless both are, and the old one is
    /// replaced.
    pub(crate) fn may_pair(&self, old: usize, new: usize, replaced: bool) -> bool {
        match (self.several.0.contains(&old), self.several.1.contains(&new)) {
            (true, true) => replaced,
            (one, other) => !one && !other,
        }
    }

    pub(crate) fn join_by_name(&mut self, old: &Side<'_>, new: &Side<'_>) {
        let (before, now) = (
            open(old.ranges.len(), |f| self.ranges.new_of(f).is_some() || self.several.0.contains(&f)),
            open(new.ranges.len(), |g| self.ranges.old_of(g).is_some() || self.several.1.contains(&g)),
        );
        self.ranges.join_by(range_names(old, &before), range_names(new, &now));
        self.ranges.join_by(quiet_names(old, &before), quiet_names(new, &now));
        self.ranges.join_by(rust_instances(old, &before), rust_instances(new, &now));
        self.ranges.join_by(rust_ranges(old, &before), rust_ranges(new, &now));
        self.join_parts(old, new);
        let (before, now) = (
            open(old.objects.len(), |o| self.objects.new_of(o).is_some()),
            open(new.objects.len(), |p| self.objects.old_of(p).is_some()),
        );
        self.objects.join_by(object_names(old, &before), object_names(new, &now));
        self.objects.join_by(rust_objects(old, &before), rust_objects(new, &now));
    }

    /// The one part of a function is the one part of its twin.
    fn join_parts(&mut self, old: &Side<'_>, new: &Side<'_>) {
        let entries: Vec<(usize, usize)> = self.ranges.iter().collect();
        for (f, g) in entries {
            if let ([_, a], [_, b]) = (old.family(f), new.family(g)) {
                self.ranges.join(*a, *b);
            }
        }
    }
}

/// The functions of Rust that occur several times under one name in one of the builds and at least once in the other; and those
/// that share another name with one of these, as functions do that the compiler has merged.
fn several(old: &Side<'_>, new: &Side<'_>) -> (FxHashSet<usize>, FxHashSet<usize>) {
    let mut names: FxHashMap<&str, (Vec<usize>, Vec<usize>)> = FxHashMap::default();
    let (all_old, all_new) = (open(old.ranges.len(), |_| false), open(new.ranges.len(), |_| false));
    for (name, f) in rust_instances(old, &all_old).filter(|(_, f)| old.ranges[*f].parent == *f) {
        names.entry(name).or_default().0.push(f);
    }
    for (name, g) in rust_instances(new, &all_new).filter(|(_, g)| new.ranges[*g].parent == *g) {
        names.entry(name).or_default().1.push(g);
    }
    names.retain(|_, (f, g)| !f.is_empty() && !g.is_empty());
    let (mut before, mut now) = (FxHashSet::default(), FxHashSet::default());
    let mut found = true;
    while std::mem::take(&mut found) {
        names.retain(|_, (f, g)| {
            let any = f.iter().any(|f| before.contains(f)) || g.iter().any(|g| now.contains(g));
            let joins = any || f.len() + g.len() > 2;
            if joins {
                before.extend(f.iter().copied());
                now.extend(g.iter().copied());
            }
            found |= joins;
            !joins
        });
    }
    (before, now)
}

/// Those of so many things that are not `taken`.
fn open(count: usize, taken: impl Fn(usize) -> bool) -> Vec<usize> {
    (0..count).filter(|i| !taken(*i)).collect()
}

fn range_names<'s>(side: &'s Side<'_>, open: &'s [usize]) -> impl Iterator<Item = ((&'s str, &'s str), usize)> {
    let ranges = open.iter().map(|i| (*i, &side.ranges[*i]));
    ranges.flat_map(|(i, r)| r.names.iter().map(move |n| ((r.file, *n), i)))
}

/// Ranges that have a name and are no part of another one by it.
fn named<'s, 'a>(side: &'s Side<'a>, open: &'s [usize]) -> impl Iterator<Item = (usize, &'s Range<'a>)> {
    let ranges = open.iter().map(|i| (*i, &side.ranges[*i]));
    ranges.filter(|(_, r)| !r.unnamed && cold_stem(r.name()).is_none())
}

fn quiet_names<'s>(side: &'s Side<'_>, open: &'s [usize]) -> impl Iterator<Item = ((&'s str, &'s str), usize)> {
    named(side, open).map(|(i, r)| ((r.file, quiet(r.name())), i))
}

fn rust_instances<'s>(side: &'s Side<'_>, open: &'s [usize]) -> impl Iterator<Item = (&'s str, usize)> {
    named(side, open).flat_map(|(i, r)| r.instances().map(move |name| (name, i)))
}

fn rust_ranges<'s>(side: &'s Side<'_>, open: &'s [usize]) -> impl Iterator<Item = (Cow<'s, str>, usize)> {
    named(side, open).flat_map(|(i, r)| r.names.iter().filter_map(move |n| Some((rust::unversioned(n)?, i))))
}

fn rust_objects<'s>(side: &'s Side<'_>, open: &'s [usize]) -> impl Iterator<Item = (Cow<'s, str>, usize)> {
    let objects = open.iter().map(|i| (*i, &side.objects[*i]));
    objects.flat_map(|(i, o)| o.names.iter().filter_map(move |n| Some((rust::unversioned(n)?, i))))
}

/// `f.constprop` of `f.constprop.0`.
pub(crate) fn quiet(name: &str) -> &str {
    numbered(name).unwrap_or(name)
}

/// `count` of `count.0`.
pub(crate) fn numbered(name: &str) -> Option<&str> {
    let (stem, number) = name.rsplit_once('.')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (is_number && !stem.is_empty()).then_some(stem)
}

fn object_names<'s>(side: &'s Side<'_>, open: &'s [usize]) -> impl Iterator<Item = ((&'s str, &'s str), usize)> {
    open.iter().map(|i| (*i, &side.objects[*i])).flat_map(|(i, o)| {
        let counts = move |n: &&&str| !o.local || numbered(n).is_none();
        o.names.iter().filter(counts).map(move |n| ((o.file, *n), i))
    })
}
