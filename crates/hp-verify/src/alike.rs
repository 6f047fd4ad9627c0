//! Which copies of a function of Rust do the same in the new build.
//!
//! Functions of the same bytes are taken for alike, and told apart as long as two of a class lead to
//! different places: the coarsest division in which all of a class lead to the same, other classes included.

use std::hash::Hash;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest, Sha256};

use crate::code::Use;
use crate::entities::{Family, Side};

/// The first function of the class of each of these.
pub(crate) fn classes(side: &Side<'_>, copies: &FxHashSet<usize>) -> FxHashMap<usize, usize> {
    if copies.is_empty() {
        return FxHashMap::default();
    }
    let mut order: Vec<usize> = copies.iter().copied().collect();
    order.sort_unstable();
    let families: FxHashMap<usize, Family<'_>> = order.par_iter().map(|g| (*g, Family::of(side, *g))).collect();
    let mut class = grouped(&order, |g| own_code(side, g).ok_or(g));
    loop {
        let finer = grouped(&order, |g| (class[&g], leads(side, g, &families[&g], &class)));
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
pub(crate) fn own_code(side: &Side<'_>, g: usize) -> Option<(Vec<u8>, String)> {
    let range = &side.ranges[g];
    let mut bytes = range.bytes.to_vec();
    for (at, step) in side.steps(g) {
        step.fields.iter().for_each(|field| bytes[at + field.at..at + field.at + field.width].fill(0));
    }
    let cleanups = match side.landings(range.address) {
        None => None,
        Some(table) => Some(table.ok()?.of_cleanups(range.address)?),
    };
    Some((bytes, format!("{cleanups:?}")))
}

/// Where each of its fields leads.
fn leads(side: &Side<'_>, g: usize, family: &Family<'_>, class: &FxHashMap<usize, usize>) -> [u8; 32] {
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
            // The labels of a jump table are the function's own.
            None => match constant(side, target, field.usage).filter(|_| family.table(target).is_none()) {
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::Build;
    use crate::image::Image;

    /// A jump through a table of one entry, at `table`.
    fn function(name: &str, table: &str) -> String {
        format!(
            ".type {name}, @function\n.balign 64\n{name}: lea {table}(%rip), %rax\n\
             movslq (%rax,%rdi,4), %rcx\nadd %rax, %rcx\njmp *%rcx\n.balign 8\nmov $1, %eax\nret\n.balign 8\n\
             mov $2, %eax\nret\n.size {name}, . - {name}\n"
        )
    }

    #[test]
    fn tables_of_jumps_with_the_same_bytes_lead_to_different_labels() {
        // The functions lie 64 bytes apart and their tables 72: the same distance leads to the next label of the second one.
        let source = format!(
            "{}{}.section .rodata\n.balign 8\n.Lone: .long one + 16 - .Lone\n.skip 68\n.Ltwo: .long one + 16 - .Lone\n",
            function("one", ".Lone"),
            function("two", ".Ltwo")
        );
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (part, library) = (folder.path().join("part.s"), folder.path().join("part.so"));
        std::fs::write(&part, source).expect("a file can be written");
        let built = Command::new("gcc").args(["-shared", "-nostdlib", "-o"]).args([&library, &part]).status();
        assert!(built.expect("gcc can be run").success());
        let file = std::fs::read(&library).expect("it was built");
        let image = Image::read(&Build { image: &file, debug: None, mini: None }, "new").expect("it can be read");
        let side = Side::new(image, &Default::default());
        let copies: Vec<usize> =
            (0..side.ranges.len()).filter(|i| ["one", "two"].contains(&side.ranges[*i].name())).collect();
        let labels = |g: usize| {
            let table = side.steps(g).find_map(|(_, step)| Some(step.fields.first()?.target)).expect("it has a field");
            let (_, labels) = Family::of(&side, g).table(table).expect("it has a table");
            labels.iter().map(|label| label - side.ranges[g].address).collect::<Vec<u64>>()
        };
        assert_eq!([labels(copies[0]), labels(copies[1])], [[16], [24]]);
        let class = classes(&side, &copies.iter().copied().collect());
        assert_ne!(class[&copies[0]], class[&copies[1]]);
    }
}
