//! Which copy of a function of Rust a replaced one becomes.
//!
//! Where a build has several functions of one name, nothing but the patch says which of the new ones it puts in the place of an old
//! one. It is asked: the code that it brings for that has the bytes of some of them, and leads where only one of them does. A
//! wrong answer proves nothing wrong, since every reference to the old function must lead to what is chosen here.

use std::collections::BTreeMap;

use hp_pack::{Patch, Role, SectionKind, Symbol};

use crate::code::{self, Use};
use crate::entities::{Family, text_length};
use crate::ground::{Doubt, Ground, Within};
use crate::overlay::{Layout, Place};

/// A replaced copy that has no twin yet.
struct Open {
    old: usize,
    /// Offset of its new code in `.text` of the patch.
    offset: u64,
    candidates: Vec<usize>,
}

impl Ground<'_, '_> {
    /// Joins replaced copies with the only ones of the new build that they may become; with `guess`, where there is none such,
    /// with the first.
    pub(crate) fn choose(&mut self, patch: &Patch, layout: &Layout, guess: bool) {
        let entries: BTreeMap<i64, usize> = self.entries(patch).map(|(f, symbol)| (symbol.value as i64, f)).collect();
        let mut open: Vec<Open> = self.open_copies(patch, layout);
        loop {
            let fitting: Vec<Vec<usize>> = open
                .iter()
                .map(|one| {
                    let free = one.candidates.iter().copied().filter(|g| self.pairs.ranges.old_of(*g).is_none());
                    free.filter(|g| self.may_be(one.offset, *g, layout, &entries)).collect()
                })
                .collect();
            let single = fitting.iter().position(|list| list.len() == 1);
            let any = || fitting.iter().position(|list| guess && !list.is_empty());
            let Some(next) = single.or_else(any) else { return };
            self.pairs.ranges.join(open[next].old, fitting[next][0]);
            open.remove(next);
        }
    }

    /// The functions that are replaced, and their new code.
    fn entries<'p>(&self, patch: &'p Patch) -> impl Iterator<Item = (usize, &'p Symbol)> {
        patch.functions.iter().filter_map(|record| match (record.role, self.old.range_at(record.old_address)) {
            (Role::Entry(entry), Some((f, 0))) => Some((f, &patch.symbols[entry.new_symbol as usize])),
            _ => None,
        })
    }

    /// The replaced copies without a twin, and what each may be by its bytes.
    fn open_copies(&self, patch: &Patch, layout: &Layout) -> Vec<Open> {
        let open = self.entries(patch).filter_map(|(old, symbol)| {
            if !self.pairs.several.0.contains(&old) || self.pairs.ranges.new_of(old).is_some() {
                return None;
            }
            let alike = |g: &usize| {
                self.have_one_name(old, *g)
                    && self.new.ranges[*g].bytes.len() as u64 == symbol.size
                    && self.has_bytes_of(symbol.value, *g, layout)
            };
            let mut candidates: Vec<usize> = self.pairs.several.1.iter().copied().filter(alike).collect();
            candidates.sort_unstable();
            Some(Open { old, offset: symbol.value, candidates })
        });
        open.collect()
    }

    /// The code of the patch at an offset is that of a new function, but for what leads somewhere.
    fn has_bytes_of(&self, offset: u64, g: usize, layout: &Layout) -> bool {
        let here = layout.bytes_from(SectionKind::Text, offset);
        self.new.steps(g).all(|(at, step)| {
            let bytes = &self.new.ranges[g].bytes[at..at + step.len()];
            (0..bytes.len()).all(|i| step.fields.cover(i) || here.get(at + i) == Some(&bytes[i]))
        })
    }

    /// What the code of the patch at an offset leads to is what a new function leads to, as far as that can be seen.
    fn may_be(&self, offset: u64, g: usize, layout: &Layout, entries: &BTreeMap<i64, usize>) -> bool {
        let family = Family::of(self.new, g);
        let within = Within { new: Some(&family), patch: true, rust: true, ..Within::default() };
        let base = layout.address(SectionKind::Text).unwrap_or_default();
        self.new.steps(g).all(|(at, step)| {
            let at = offset + at as u64;
            let mine = code::step(base + at, layout.bytes_from(SectionKind::Text, at), self.new.image.fixed);
            let fields = mine.iter().flat_map(|mine| mine.fields).zip(step.fields);
            fields.into_iter().all(|(mine, new)| match layout.place(mine.target) {
                Place::Base(a) => self.may_lead((a, new.target, new.usage), within),
                Place::Payload(SectionKind::Text, to) => match self.new.range_at(new.target) {
                    Some((target, 0)) if target != g => self.may_be_brought(to, target, layout, entries),
                    _ => true,
                },
                Place::Payload(SectionKind::Rodata, to) if new.usage == Use::Address => {
                    let text = self.new.literal(new.target);
                    let same = || layout.bytes_from(SectionKind::Rodata, to as u64).starts_with(text);
                    to < 0 || text_length(text) == 0 || same()
                }
                _ => true,
            })
        })
    }

    /// The code at an offset of the patch may be a new function: what it replaces becomes that, or it has its bytes.
    fn may_be_brought(&self, offset: i64, g: usize, layout: &Layout, entries: &BTreeMap<i64, usize>) -> bool {
        let known = entries.get(&offset).and_then(|f| self.pairs.ranges.new_of(*f));
        known.map_or_else(|| self.has_bytes_of(offset as u64, g, layout), |known| self.are_alike(known, g))
    }

    /// Nothing speaks against a place of the base being one of the new build. Of copies not everything is known yet.
    fn may_lead(&self, (a, n, usage): (u64, u64, Use), within: Within<'_>) -> bool {
        let several = &self.pairs.several;
        let (old, new) = (self.old.range_at(a), self.new.range_at(n));
        match (old, new) {
            (Some((f, at)), Some((g, there))) if several.0.contains(&f) && several.1.contains(&g) => {
                let open = self.pairs.ranges.new_of(f).is_none();
                let replaced = self.replaced_at(a).is_some();
                let known = || self.same(a, n, usage, within).is_ok();
                at == there && (known() || open && replaced && self.have_one_name(f, g))
            }
            _ => !matches!(self.same(a, n, usage, within), Err(Doubt::No(_))),
        }
    }

    fn have_one_name(&self, f: usize, g: usize) -> bool {
        let (x, y) = (&self.old.ranges[f], &self.new.ranges[g]);
        y.instances().any(|name| x.instances().any(|other| other == name))
    }
}
