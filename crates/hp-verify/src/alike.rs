//! Which copies of a function of Rust do the same in the new build.
//!
//! Functions of the same bytes are taken for alike, and told apart as long as two of a class lead to
//! different places: the coarsest division in which all of a class lead to the same, other classes included.

use std::hash::Hash;

use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest, Sha256};

use crate::code::Use;
use crate::entities::Side;
use crate::landing;

/// The first function of the class of each of these.
pub(crate) fn classes(side: &Side<'_>, copies: &FxHashSet<usize>) -> FxHashMap<usize, usize> {
    if copies.is_empty() {
        return FxHashMap::default();
    }
    let mut order: Vec<usize> = copies.iter().copied().collect();
    order.sort_unstable();
    let tables = landing::of_build(&side.image);
    let mut class = grouped(&order, |g| own_code(side, g, &tables).ok_or(g));
    loop {
        let finer = grouped(&order, |g| (class[&g], leads(side, g, &class)));
        if finer == class {
            return class;
        }
        class = finer;
    }
}

fn grouped<K: Hash + Eq>(order: &[usize], key: impl Fn(usize) -> K) -> FxHashMap<usize, usize> {
    let mut first: FxHashMap<K, usize> = FxHashMap::default();
    order.iter().map(|g| (*g, *first.entry(key(*g)).or_insert(*g))).collect()
}

/// A function's bytes without the fields that lead somewhere, and what it does when an exception passes; `None` if that names types.
pub(crate) fn own_code(side: &Side<'_>, g: usize, tables: &landing::Tables<u64, u64>) -> Option<(Vec<u8>, String)> {
    let range = &side.ranges[g];
    let mut bytes = range.bytes.to_vec();
    for (at, step) in side.steps(g) {
        step.fields.iter().for_each(|field| bytes[at + field.at..at + field.at + field.width].fill(0));
    }
    let cleanups = match tables.get(&range.address) {
        None => None,
        Some(table) => Some(table.as_ref().ok()?.of_cleanups(range.address)?),
    };
    Some((bytes, format!("{cleanups:?}")))
}

/// Where each of its fields leads.
fn leads(side: &Side<'_>, g: usize, class: &FxHashMap<usize, usize>) -> [u8; 32] {
    let range = &side.ranges[g];
    let mut hash = Sha256::new();
    for field in side.steps(g).flat_map(|(_, step)| step.fields) {
        let target = field.target;
        let own = (range.address..range.end()).contains(&target);
        let (what, numbers, bytes) = match side.range_at(target) {
            _ if own => (0u8, [target - range.address, 0], &[][..]),
            Some((other, inside)) => match class.get(&other) {
                Some(other) => (1, [*other as u64, inside], &[][..]),
                None => (2, [other as u64, inside], &[][..]),
            },
            None => match constant(side, target, field.usage) {
                Some(bytes) => (3, [bytes.len() as u64, 0], bytes),
                None => (4, [target, 0], &[][..]),
            },
        };
        hash.update([what]);
        numbers.iter().for_each(|n| hash.update(n.to_le_bytes()));
        hash.update(bytes);
    }
    hash.finalize().into()
}

/// The bytes of a constant without a name that leads nowhere.
fn constant<'a>(side: &Side<'a>, target: u64, usage: Use) -> Option<&'a [u8]> {
    if !side.is_constant(target) || side.object_at(target).is_some() || side.tables.contains(&target) {
        return None;
    }
    let bytes = match usage {
        Use::Access(size) => side.image.bytes(target, size)?,
        _ => side.literal(target),
    };
    side.image.words.range(target.saturating_sub(7)..target + bytes.len() as u64).next().is_none().then_some(bytes)
}
