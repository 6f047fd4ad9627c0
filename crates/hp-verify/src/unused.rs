//! Replaced functions of stripped builds of which nothing says what they became.
//!
//! If nothing but replaced functions calls such a function, nobody runs it any more, and it does not matter what the patch has in its
//! place; what it has there must be proven all the same, where something else leads to it.

use gimli::Pointer;
use rayon::prelude::*;
use rustc_hash::FxHashSet;

use crate::code::Use;
use crate::ground::Ground;
use crate::image::Word;

impl Ground<'_, '_> {
    /// Those of some old functions that something leads to which is not replaced, or otherwise than by a call or jump to the entry.
    pub(crate) fn still_used(&self, functions: &FxHashSet<usize>) -> FxHashSet<usize> {
        let (old, image) = (self.old, &self.old.image);
        if functions.is_empty() {
            return FxHashSet::default();
        }
        // Which words are addresses is not known there.
        if image.fixed {
            return functions.clone();
        }
        let parent = |target: u64| {
            let (to, offset) = old.range_at(target)?;
            let whole = old.ranges[to].parent;
            functions.contains(&whole).then_some((whole, to == whole && offset == 0))
        };
        let of_range = |from: usize| {
            let range = &old.ranges[from];
            let is_replaced = self.replaced_at(range.address).is_some();
            let (mut found, mut end) = (Vec::new(), 0);
            for (at, step) in old.steps(from) {
                end = at + step.len();
                for field in step.fields {
                    let Some((to, is_entry)) = parent(field.target) else { continue };
                    let calls = field.usage == Use::Branch && is_entry;
                    let own = to == range.parent && (calls || !is_entry);
                    if !(own || calls && is_replaced) {
                        found.push(to);
                    }
                }
            }
            (found, end == range.bytes.len())
        };
        let found: Vec<(Vec<usize>, bool)> = (0..old.ranges.len()).into_par_iter().map(of_range).collect();
        if !found.iter().all(|(_, readable)| *readable) {
            return functions.clone();
        }
        let words = image.words.values().filter_map(|word| match word {
            Word::Address(target) | Word::Resolver(target) => Some(*target),
            _ => None,
        });
        let personalities = old.entries.all().filter_map(|(_, rows)| match rows.ok()?.personality? {
            Pointer::Direct(target) | Pointer::Indirect(target) => Some(target),
        });
        let others = words.chain(personalities).chain([image.entry]).filter_map(|target| Some(parent(target)?.0));
        others.chain(found.iter().flat_map(|(found, _)| found.iter().copied())).collect()
    }
}
