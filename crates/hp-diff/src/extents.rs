//! Constants of stripped builds that may reach further than to the next address that something refers to.
//!
//! Without symbols a constant is taken to end where the next reference leads. But that may lead to one element in its middle, and what
//! begins at an address may be the end of another constant. As long as everything around is the same in both builds, it does
//! not matter. Where something near it changed, that must be certain to be another thing: because code reads no more than so many bytes,
//! because a text has ended before, or because in the other build the two lie elsewhere to one another. Else the function
//! might read what changed, and there is no patch.

use rayon::prelude::*;
use rustc_hash::FxHashSet;

use crate::adjoin::Twins;
use crate::ahead::{self, Meant};
use crate::arch::{Site, Use};
use crate::before::before;
use crate::border::{Side, side};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, ObjectId, Target};
use crate::finding::{Code, Finding};
use crate::judge::Judge;
use crate::usage::is_indexed;

/// Bytes around an address that are looked at.
pub(crate) const FAR: u64 = 0x4000;
/// Letters that make a text: fewer may be numbers.
const LETTERS: usize = 2;

/// Functions that may read what changed, though what they refer to is the same as far as it is known; and changed ones that may
/// mean the end of something by an address, which the patch would have elsewhere.
pub(crate) fn doubts(judge: &Judge<'_, '_>, pairs: &Correlation, changes: &Changes, twins: &Twins) -> Vec<Finding> {
    let (old, new) = judge.builds();
    if !old.map.is_stripped() && !new.map.is_stripped() {
        return Vec::new();
    }
    if changes.is_empty() && contents(old) == contents(new) {
        return Vec::new();
    }
    let extents = Extents { judge, old, new, twins, pairs, changes };
    let changed: FxHashSet<FunctionId> = changes.functions.iter().map(|c| c.0).collect();
    let unchanged: Vec<(FunctionId, FunctionId)> = pairs.functions.iter().filter(|p| !changed.contains(&p.0)).collect();
    let all: FxHashSet<(u64, u64)> =
        unchanged.par_iter().flat_map_iter(|pair| extents.sites(*pair).map(|(s, t)| (s.target, t.target))).collect();
    let differs: FxHashSet<(u64, u64)> =
        all.into_par_iter().filter(|(a, b)| extents.differs_behind(*a, *b) || extents.differs_before(*a, *b)).collect();
    let of_pair = |pair: &(FunctionId, FunctionId)| {
        let mut sites = extents.sites(*pair).filter(|(s, t)| differs.contains(&(s.target, t.target)));
        let (s, what) = sites.find_map(|(s, t)| Some((s, extents.may_reach(*pair, &s, &t)?)))?;
        let message = format!(
            "the constant at {:#x} of the old build is the same in the new one as far as the next reference, but what lies {what} it changed, and nothing shows where it ends",
            s.target
        );
        Some(Finding::new(Code::PairingUnproven, old.map.functions[pair.0].name(), message))
    };
    let mut findings: Vec<Finding> = unchanged.par_iter().filter_map(of_pair).collect();
    let ends = |(f, g, _): &(FunctionId, FunctionId, _)| {
        let site = extents.end_elsewhere((*f, *g))?;
        let message = format!(
            "the address {:#x} of the new build may mean the end of what lies before it, which the patch would have elsewhere",
            site.target
        );
        Some(Finding::new(Code::AmbiguousReference, old.map.functions[*f].name(), message))
    };
    findings.par_extend(changes.functions.par_iter().filter_map(ends));
    findings
}

/// How often each byte stands in constants without a name; zeros may be padding. Where both builds have the same, and nothing else
/// differs, only places changed, as they do where files are linked in another order. Elements of one array that changed places with one another are
/// not seen.
fn contents(build: &Build<'_>) -> Vec<usize> {
    let mut times = vec![0; 256];
    for start in build.map.references.as_slice().iter().filter(|at| is_open(build, **at)) {
        let size = build.map.next_reference(*start).saturating_sub(*start);
        let bytes = build.image.bytes_from(*start).iter().take(size as usize).zip(*start..);
        let in_word = |at: u64| build.image.words.range(at.saturating_sub(7).max(*start)..=at).next().is_some();
        let plain = bytes.filter(|(byte, at)| **byte != 0 && !in_word(*at));
        plain.for_each(|(byte, _)| times[usize::from(*byte)] += 1);
    }
    times
}

struct Extents<'e, 'j, 'a> {
    judge: &'e Judge<'j, 'a>,
    old: &'j Build<'a>,
    new: &'j Build<'a>,
    twins: &'e Twins,
    pairs: &'e Correlation,
    changes: &'e Changes,
}

impl<'a> Extents<'_, '_, 'a> {
    /// Where two functions that are the same take addresses of constants without a name.
    fn sites(&self, (f, g): (FunctionId, FunctionId)) -> impl Iterator<Item = (Site, Site)> {
        let ranges = self.old.code[f].ranges.iter().zip(&self.new.code[g].ranges);
        ranges.flat_map(|(x, y)| x.sites.iter().zip(&y.sites)).filter(move |(s, t)| {
            (s.usage, t.usage) == (Use::Address, Use::Address)
                && self.old.table(f, s.target).is_none()
                && is_open(self.old, s.target)
                && is_open(self.new, t.target)
        })
    }

    /// True if something in front of the next certain border behind two addresses differs.
    fn differs_behind(&self, a: u64, b: u64) -> bool {
        if is_text(self.old, a) && is_text(self.new, b) {
            return false;
        }
        let mut at = 0;
        while at < FAR {
            let (p, q) = (a + at, b + at);
            if at > 0 && (self.is_border(a, b, p, q) || is_text(self.old, p) || is_text(self.new, q)) {
                return false;
            }
            let (x, y) = (self.old.map.next_reference(p), self.new.map.next_reference(q));
            let size = x.saturating_sub(p).min(y.saturating_sub(q));
            if size == 0 {
                return false;
            }
            if !self.judge.same_content(p, q, size) {
                return true;
            }
            at += size;
        }
        false
    }

    /// The same in front of two addresses.
    fn differs_before(&self, a: u64, b: u64) -> bool {
        let mut at = 0;
        while at < FAR {
            let previous = |build: &Build<'_>, address: u64| {
                let starts = build.map.references.as_slice();
                build.map.references.below(address).checked_sub(1).map(|i| starts[i])
            };
            let (Some(x), Some(y)) = (previous(self.old, a - at), previous(self.new, b - at)) else { return false };
            let size = (a - at - x).min(b - at - y);
            let (p, q) = (a - at - size, b - at - size);
            if !is_open(self.old, p) || !is_open(self.new, q) || at > 0 && is_text(self.old, p) {
                return false;
            }
            if !self.judge.same_content(p, q, size) {
                return !self.moved_apart(a, b, p, q);
            }
            if self.moved_apart(a, b, p, q) {
                return false;
            }
            at += size;
        }
        false
    }

    /// True if what begins at `p` of the old build, or at `q` of the new one, is certainly another thing than what `a` and `b` lead to.
    fn is_border(&self, a: u64, b: u64, p: u64, q: u64) -> bool {
        !is_open(self.old, p) || !is_open(self.new, q) || self.moved_apart(a, b, p, q)
    }

    /// An unchanged user of the one finds it elsewhere in the other build, as seen from the address.
    fn moved_apart(&self, a: u64, b: u64, p: u64, q: u64) -> bool {
        let as_far = |(x, y): (u64, u64)| x.wrapping_sub(a) == y.wrapping_sub(b);
        !self.twins.of_old(p).all(as_far) || !self.twins.of_new(q).all(as_far)
    }

    /// Where the function may read what differs, if it is not certain that it does not.
    fn may_reach(&self, pair: (FunctionId, FunctionId), s: &Site, t: &Site) -> Option<&'static str> {
        let (a, b) = (s.target, t.target);
        let bounds = (ahead::bounded(self.old, pair.0, s), ahead::bounded(self.new, pair.1, t));
        if let (Some((start, end)), true) = (bounds.0, bounds.0 == bounds.1) {
            let place = |address: u64| address.wrapping_add_signed(start);
            let same = self.judge.same_content(place(a), place(b), end.abs_diff(start));
            return (!same).then_some("behind");
        }
        if self.differs_behind(a, b) {
            return Some("behind");
        }
        let sides = || (side(self.old, pair.0, s), side(self.new, pair.1, t));
        let known = || before(self.old, pair.0, s).is_some() && before(self.new, pair.1, t).is_some();
        (self.differs_before(a, b) && sides() != (Side::Behind, Side::Behind) && !known()).then_some("before")
    }

    /// An address that a changed function makes and that may be the end of something, if the base has not the same before and
    /// behind it.
    fn end_elsewhere(&self, (f, g): (FunctionId, FunctionId)) -> Option<Site> {
        let (old, new) = (self.old, self.new);
        let addresses = |build: &Build<'a>, id: FunctionId| {
            let sites = build.code[id].ranges.iter().flat_map(|code| &code.sites);
            let taken = |site: &Site| site.usage == Use::Address && is_open(build, site.target);
            sites.filter(taken).collect::<Vec<Site>>()
        };
        let (before_of, sites) = (addresses(old, f), addresses(new, g));
        let in_front = |b: u64| self.may_reach_up_to(b, &|p| sites.iter().any(|t| t.target == p));
        let may_be_end = |t: &Site| match side(new, g, t) {
            Side::Behind => false,
            Side::Before => before(new, g, t).is_none(),
            Side::Unknown => (in_front(t.target) || is_indexed(new, g, t)) && before(new, g, t).is_none(),
        };
        let kept = |t: &Site| match new.map.object_at(t.target) {
            Some(object) => self.lie_together(object, t.target),
            // Zeros are found in many places, and a copy is made of what may have more of them, or of what begins behind.
            None if !self.is_whole(t.target) || self.is_copied(g, t) => false,
            None => {
                let same =
                    |s: &Site| !self.differs_behind(s.target, t.target) && !self.differs_before(s.target, t.target);
                before_of.iter().any(same)
            }
        };
        let mut open = sites.iter().filter(|t| new.table(g, t.target).is_none() && !is_text(new, t.target));
        open.find(|t| !kept(t) && may_be_end(t)).copied()
    }

    /// True if one of these addresses may be the start of what ends at another one: no text lies between them.
    fn may_reach_up_to(&self, end: u64, is_start: &dyn Fn(u64) -> bool) -> bool {
        let starts = self.new.map.references.as_slice();
        let before = starts[..self.new.map.references.below(end)].iter().rev().copied();
        let mut near = before.take_while(|p| end - p < FAR);
        near.find_map(|p| (is_start(p) || is_long_text(self.new, p, end)).then(|| is_start(p))).unwrap_or(false)
    }

    /// True if the constant at an address of the new build is no more than what its bytes show, or a text's last letters.
    fn is_whole(&self, address: u64) -> bool {
        let content = self.new.map.literal(&self.new.image, address);
        let span = self.new.map.literal_span(&self.new.image, address);
        content.len() as u64 == span.1 - span.0 && content.iter().any(|b| *b != 0) || is_tail(self.new, address)
    }

    /// True if the patch has a copy of what lies at the address and behind it: nothing says which of that is meant.
    fn is_copied(&self, g: FunctionId, site: &Site) -> bool {
        let new = self.new;
        ahead::ahead(new, site.target, ahead::is_rust(new, g)).is_some()
            && ahead::meant_by(new, g, site) == Some(Meant::Unclear)
    }

    /// The base has an object and what ends where it begins side by side, too.
    fn lie_together(&self, object: ObjectId, address: u64) -> bool {
        let (old, new) = (&self.old.map, &self.new.map);
        let kept = |p: ObjectId| self.pairs.objects.old_of(p).filter(|o| !self.changes.constants.contains(o));
        match new.ending_at(address).filter(|_| new.objects[object].address == address) {
            Some(before) => kept(before)
                .is_some_and(|x| kept(object).is_some_and(|y| old.objects[x].end() == old.objects[y].address)),
            None => true,
        }
    }
}

/// True if a constant without a name is there, of which nothing says how far it reaches.
fn is_open(build: &Build<'_>, address: u64) -> bool {
    if !build.image.is_constant(address) || build.is_table(address) || build.map.distances.contains_key(&address) {
        return false;
    }
    match build.map.resolve_address(&build.image, address, Use::Address) {
        Target::Literal => build.map.template_at(address).is_none(),
        Target::Object(object, _) => build.map.objects[object].unnamed,
        _ => false,
    }
}

fn is_letter(byte: u8) -> bool {
    matches!(byte, 9..=13 | 27 | 32..=126)
}

/// How many letters lie between an address and the terminator behind it, if nothing else does.
fn letters(build: &Build<'_>, address: u64) -> Option<usize> {
    let rest = build.image.bytes_from(address);
    let letters = rest.iter().take_while(|b| is_letter(**b)).count();
    (rest.get(letters) == Some(&0)).then_some(letters)
}

/// True if a text begins at an address, and nothing but its terminator lies behind its letters.
pub(crate) fn is_text(build: &Build<'_>, address: u64) -> bool {
    letters(build, address).is_some_and(|letters| letters >= LETTERS)
}

/// True if a text begins at an address that no table of numbers has by chance, and ends before `end`.
fn is_long_text(build: &Build<'_>, address: u64, end: u64) -> bool {
    letters(build, address).is_some_and(|letters| letters >= ahead::LONG && address + (letters as u64) < end)
}

/// True if an address lies behind the first letter of a text, perhaps at its terminator: an empty text may lie there.
fn is_tail(build: &Build<'_>, address: u64) -> bool {
    let is_letter = |at: u64| build.image.bytes(at, 1).is_some_and(|b| is_letter(b[0]));
    let before = (1..=LETTERS as u64 + 1).take_while(|n| address.checked_sub(*n).is_some_and(is_letter)).count();
    before > 0 && letters(build, address).is_some_and(|behind| before + behind > LETTERS)
}
