//! Are two functions the same?

use super::{Judge, Verdict};
use crate::arch::{self, Site};
use crate::build::Build;
use crate::entity::FunctionId;
use crate::lsda::{self, CallSite, Lsda};
use crate::unwind::Pointer;

/// Where two functions first differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Index of the range; `usize::MAX` if the number of ranges differs.
    pub range: usize,
    /// Offset of the first differing byte or instruction in the range.
    pub offset: u32,
}

impl<'j, 'a> Judge<'j, 'a> {
    /// First difference of a pair of functions. `accept` says for each pair of references
    /// whether it counts as equal; it is not asked about branches within the body that go equally far.
    pub(crate) fn difference(
        &self,
        pair: (FunctionId, FunctionId),
        accept: &mut dyn FnMut(&Site, &Site, Verdict) -> bool,
    ) -> Option<Difference> {
        let (f, g) = (&self.old.map.functions[pair.0], &self.new.map.functions[pair.1]);
        if f.ranges.len() != g.ranges.len() {
            return Some(Difference { range: usize::MAX, offset: 0 });
        }
        let codes = self.old.code[pair.0].ranges.iter().zip(&self.new.code[pair.1].ranges);
        for (range, ((a, b), (x, y))) in f.ranges.iter().zip(&g.ranges).zip(codes).enumerate() {
            if x.invalid.is_some() && a.bytes != b.bytes {
                return Some(Difference { range, offset: 0 });
            }
            let steps = range == 0 && !(f.overlaps || g.overlaps);
            let judged = |s: &Site, t: &Site| accept(s, t, self.sites(pair, s, t));
            let first = arch::first_difference((a.bytes, x), (b.bytes, y), steps, judged);
            if let Some(offset) = first {
                return Some(Difference { range, offset });
            }
        }
        None
    }

    /// First difference of a pair of functions in code or in landing pads.
    pub(crate) fn any_difference(&self, pair: (FunctionId, FunctionId)) -> Option<Difference> {
        let code = self.difference(pair, &mut |_, _, v| v == Verdict::Same);
        code.or_else(|| self.landing_difference(pair))
    }

    /// First difference in what a pair of functions does with exceptions: the calls that have a
    /// landing pad, where that is, what it catches and by which numbers.
    pub(crate) fn landing_difference(&self, pair: (FunctionId, FunctionId)) -> Option<Difference> {
        let (f, g) = (&self.old.map.functions[pair.0], &self.new.map.functions[pair.1]);
        f.ranges.iter().zip(&g.ranges).enumerate().find_map(|(range, (a, b))| {
            let offset = match (self.old.landing.get(&a.address), self.new.landing.get(&b.address)) {
                (None, None) => None,
                (Some(Ok(x)), Some(Ok(y))) => self.landings(pair, x, y),
                _ => Some(0),
            };
            offset.map(|offset| Difference { range, offset })
        })
    }

    fn landings(&self, pair: (FunctionId, FunctionId), x: &Lsda, y: &Lsda) -> Option<u32> {
        let same_pointer = |p: Option<Pointer>, q: Option<Pointer>| match (p, q) {
            (None, None) => true,
            (Some(p), Some(q)) => match (lsda::meaning(&self.old.image, p), lsda::meaning(&self.new.image, q)) {
                (Some(v), Some(w)) => match self.words(&v, &w) {
                    Verdict::Undecided(o, p) => self.object_contents((o, p)) == Verdict::Same,
                    verdict => verdict == Verdict::Same,
                },
                _ => false,
            },
            _ => false,
        };
        let place = |build: &Build<'_>, id, at: Option<u64>| {
            at.map(|a| build.map.function_at(a).filter(|t| t.0 == id).map(|(_, range, offset)| (range, offset)))
        };
        let numbers = |s: &CallSite| {
            let filters = s.actions.iter().flat_map(|a| u32::try_from(a.filter).ok().filter(|n| *n > 0));
            filters.chain(s.actions.iter().flat_map(|a| a.list.iter().copied())).collect::<Vec<u32>>()
        };
        let same = |s: &CallSite, t: &CallSite| {
            let types = |n: u32| (x.types.get(&n).copied().flatten(), y.types.get(&n).copied().flatten());
            (s.start, s.length, &s.actions) == (t.start, t.length, &t.actions)
                && place(self.old, pair.0, s.landing) == place(self.new, pair.1, t.landing)
                && numbers(s).into_iter().map(types).all(|(p, q)| same_pointer(p, q))
        };
        if !same_pointer(x.personality, y.personality) || x.sites.len() != y.sites.len() {
            return Some(0);
        }
        x.sites.iter().zip(&y.sites).find(|(s, t)| !same(s, t)).map(|(s, _)| s.start as u32)
    }
}
