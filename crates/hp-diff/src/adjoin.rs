//! Literals that lie directly behind one another: are they two, or parts of one?
//!
//! No symbol says how long a literal is. Text ends at its terminator, unless it is
//! `"abc\0def"` and another function refers to the part behind; then no reader of the image
//! can see that the first function means both. What can be seen: an *unchanged* user of
//! `def` still means the same literal. If in the other build something else lies before
//! what it refers to, the two never were one. So it is with a changed user that has kept
//! the text. Where no user tells, it stays in doubt.

use std::collections::BTreeMap;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::arch::{self, Site, Use};
use crate::before::before;
use crate::build::Build;
use crate::by_address::Spans;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, Target};
use crate::extents;
use crate::finding::{Code, Finding};
use crate::image::Word;
use crate::judge::{Judge, Verdict};
use crate::layout::Variable;
use crate::lines::is_location;

/// What unchanged functions and objects refer to, in both builds, and the texts that a
/// changed function has kept.
pub(crate) struct Twins {
    /// Old and new address, ordered by the old one.
    forward: Vec<(u64, u64)>,
    /// New and old address, ordered by the new one.
    backward: Vec<(u64, u64)>,
    /// Of the old and of the new build.
    described: (Described, Described),
}

/// Where variables begin and end by debug information, such as the tables of methods that rustc makes and names there only.
struct Described(FxHashMap<u64, u64>);

impl Described {
    fn new(variables: &[Variable]) -> Described {
        Described(variables.iter().map(|v| (v.address, v.address.saturating_add(v.size.unwrap_or(u64::MAX)))).collect())
    }

    /// True if what lies from `start` to `end` does not go on behind: it is a variable as a whole, or another one begins.
    fn ends(&self, (start, end): (u64, u64)) -> bool {
        self.0.contains_key(&end) || self.0.get(&start).is_some_and(|last| *last <= end)
    }
}

impl Twins {
    pub(crate) fn new(
        old: &Build<'_>,
        new: &Build<'_>,
        pairs: &Correlation,
        changes: &Changes,
        variables: (&[Variable], &[Variable]),
    ) -> Twins {
        let functions = unchanged(pairs, changes);
        let code = Spans::new(old.map.code_ranges().collect());
        let constant = |a: u64| !code.contains(a) && old.image.is_constant(a) && old.map.object_at(a).is_none();
        let targets = |&(f, g): &(FunctionId, FunctionId)| {
            let ranges = old.code[f].ranges.iter().zip(&new.code[g].ranges);
            ranges.flat_map(|(x, y)| x.sites.targets().zip(y.sites.targets()))
        };
        let from_code = functions.par_iter().flat_map_iter(targets);
        let mut forward: Vec<(u64, u64)> = from_code.filter(|(a, _)| constant(*a)).collect();
        let rewritten: FxHashSet<_> = changes.variables.iter().map(|v| v.0).chain(changes.constants.clone()).collect();
        for (o, p) in pairs.objects.iter().filter(|pair| !rewritten.contains(&pair.0)) {
            let (x, y) = (&old.map.objects[o], &new.map.objects[p]);
            let words = |build: &Build<'_>, start, end| {
                let words = build.image.words.range(start..end);
                words
                    .filter_map(|(_, w)| match w {
                        Word::Address(a) => Some(*a),
                        _ => None,
                    })
                    .collect::<Vec<u64>>()
            };
            forward.extend(words(old, x.address, x.end()).into_iter().zip(words(new, y.address, y.end())));
        }
        for (f, g, _) in &changes.functions {
            let texts = (own_texts(old, *f), own_texts(new, *g));
            forward.extend(texts.0.iter().filter_map(|(text, a)| Some((*a, *texts.1.get(text)?))));
        }
        forward.sort_unstable();
        forward.dedup();
        let mut backward: Vec<(u64, u64)> = forward.iter().map(|(a, b)| (*b, *a)).collect();
        backward.sort_unstable();
        Twins { forward, backward, described: (Described::new(variables.0), Described::new(variables.1)) }
    }

    /// The places in the new build of what unchanged code and data find at an address of the old one, as pairs.
    pub(crate) fn of_old(&self, address: u64) -> impl Iterator<Item = (u64, u64)> {
        of(&self.forward, address)
    }

    /// The same for an address of the new build; the old one comes first.
    pub(crate) fn of_new(&self, address: u64) -> impl Iterator<Item = (u64, u64)> {
        of(&self.backward, address).map(|(b, a)| (a, b))
    }

    /// True if the literals `x` of the old and `y` of the new build, each from start to end,
    /// equal so far as they are known, may go on with different content.
    pub(crate) fn in_doubt(&self, judge: &Judge<'_, '_>, x: (u64, u64), y: (u64, u64)) -> bool {
        let (old, new) = judge.builds();
        // In a stripped build a border may be no more than an element that code reads alone.
        let goes_through = (old.map.is_stripped() || new.map.is_stripped()) && !extents::is_text(new, y.0);
        let (mut c, mut d) = (x.1, y.1);
        loop {
            let ends = (self.described.0.ends((x.0, c)), self.described.1.ends((y.0, d)));
            let goes_on = (!ends.0 && starts_literal(old, c), !ends.1 && starts_literal(new, d));
            let same = goes_on == (true, true) && judge.literals(c, d, Use::Address) == Verdict::Same;
            if goes_on == (false, false) || same && !goes_through || d - y.0 > extents::FAR {
                return false;
            }
            if apart((old, (x.0, c)), new, &self.forward) || apart((new, (y.0, d)), old, &self.backward) {
                return false;
            }
            if !same {
                return true;
            }
            let ends = (old.map.literal_span(&old.image, c).1, new.map.literal_span(&new.image, d).1);
            if ends.0 - c != ends.1 - d || ends.1 == d {
                return true;
            }
            (c, d) = ends;
        }
    }

    /// The literals of the new build that may be one with the one of this span, which comes
    /// first.
    pub(crate) fn parts(&self, judge: &Judge<'_, '_>, span: (u64, u64)) -> Vec<(u64, u64)> {
        let (old, new) = judge.builds();
        let (mut parts, mut end) = (vec![span], span.1);
        let goes_on = |end: u64| !self.described.1.ends((span.0, end)) && starts_literal(new, end);
        while goes_on(end) && !apart((new, (span.0, end)), old, &self.backward) {
            let part = new.map.literal_span(&new.image, end);
            parts.push(part);
            end = part.1;
        }
        parts
    }
}

fn of(twins: &[(u64, u64)], address: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = twins.partition_point(|t| t.0 < address);
    twins[first..].iter().copied().take_while(move |t| t.0 == address)
}

/// The texts that a function refers to, and where they are.
fn own_texts<'b>(build: &'b Build<'_>, function: FunctionId) -> BTreeMap<&'b [u8], u64> {
    let sites = build.code[function].ranges.iter().flat_map(|r| &r.sites).filter(|s| s.usage == Use::Address);
    let literals = sites.filter(|s| build.map.resolve(&build.image, s) == Target::Literal);
    literals.map(|s| (build.map.literal(&build.image, s.target), s.target)).collect()
}

/// True if an unchanged user of what lies at the literal's end finds something else than
/// the literal before it in the other build.
fn apart((here, (start, end)): (&Build<'_>, (u64, u64)), there: &Build<'_>, twins: &[(u64, u64)]) -> bool {
    let length = end - start;
    let first = twins.partition_point(|t| t.0 < end);
    twins[first..]
        .iter()
        .take_while(|t| t.0 == end)
        .any(|(_, twin)| there.image.bytes(twin.wrapping_sub(length), length) != here.image.bytes(start, length))
}

/// True if something refers to `address` and means a literal that may go on from another one. A table of distances does not:
/// they count from its start.
fn starts_literal(build: &Build<'_>, address: u64) -> bool {
    build.map.references.contains(address)
        && !build.is_table(address)
        && !build.map.distances.contains_key(&address)
        && build.map.resolve_address(&build.image, address, Use::Access(1)) == Target::Literal
}

fn unchanged(pairs: &Correlation, changes: &Changes) -> Vec<(FunctionId, FunctionId)> {
    let changed: FxHashSet<FunctionId> = changes.functions.iter().map(|c| c.0).collect();
    pairs.functions.iter().filter(|pair| !changed.contains(&pair.0)).collect()
}

/// Pairs of what two unchanged functions refer to.
fn sites<'b>(
    old: &'b Build<'_>,
    new: &'b Build<'_>,
    (f, g): (FunctionId, FunctionId),
) -> impl Iterator<Item = (Site, Site)> {
    let ranges = old.code[f].ranges.iter().zip(&new.code[g].ranges);
    ranges.flat_map(|(x, y)| x.sites.iter().zip(&y.sites))
}

/// True if the function has this number, such as the length of a text that it hands on.
fn has_number(build: &Build<'_>, function: FunctionId, number: u64) -> bool {
    let mut ranges = build.map.functions[function].ranges.iter();
    ranges.any(|r| arch::numbers(r.bytes).any(|n| n as u64 == number))
}

/// Unchanged functions of which that is in doubt, because what lies behind a literal that
/// they use changed.
pub(crate) fn doubts(judge: &Judge<'_, '_>, pairs: &Correlation, changes: &Changes, twins: &Twins) -> Vec<Finding> {
    let (old, new) = judge.builds();
    let in_doubt = |&(a, b): &(u64, u64)| {
        old.map.resolve_address(&old.image, a, Use::Address) == Target::Literal
            && (judge.same_before_leftovers(a, b)
                || twins.in_doubt(judge, old.map.literal_span(&old.image, a), new.map.literal_span(&new.image, b)))
    };
    // Every pair of literals that unchanged functions use is one of the twins, templates put aside; and many use the same.
    let doubtful: FxHashSet<(u64, u64)> = twins.forward.par_iter().copied().filter(in_doubt).collect();
    let is_template = |a: u64| old.map.template_at(a).is_some();
    // Same only as far as the next constant: the length must stand somewhere.
    let cut_short = |pair, a, b| {
        judge.same_rust_constant(pair, a, b)
            && old.map.resolve_address(&old.image, a, Use::Address) == Target::Literal
            && judge.literals(a, b, Use::Address) == Verdict::Different
    };
    let is_rust = old.map.functions.iter().any(|f| f.rust);
    if doubtful.is_empty() && old.map.templates.is_empty() && !is_rust {
        return Vec::new();
    }
    // The place of a panic has a size that everybody knows.
    let are_panics = |pair: (FunctionId, FunctionId), s: &Site, t: &Site| {
        let is_panic = |build: &Build<'_>, f: FunctionId, site| build.map.functions[f].rust && is_location(build, site);
        is_panic(old, pair.0, s) && is_panic(new, pair.1, t)
    };
    let of_pair = |pair: &(FunctionId, FunctionId)| {
        // The end of a text is not the start of what lies behind it.
        let is_end = |site: &Site| before(old, pair.0, site).is_some_and(|before| !before.behind);
        let doubtful = sites(old, new, *pair).find(|(s, t)| {
            let (a, b) = (s.target, t.target);
            s.usage == Use::Address
                && old.table(pair.0, a).is_none()
                && (doubtful.contains(&(a, b))
                    || is_template(a) && in_doubt(&(a, b))
                    || cut_short(*pair, a, b) && !has_number(old, pair.0, old.map.next_reference(a) - a))
                && !is_end(s)
                && !(judge.same_counted_argument(*pair, s, t) || are_panics(*pair, s, t))
        })?;
        let text = String::from_utf8_lossy(old.map.literal(&old.image, doubtful.0.target));
        let text: String = text.trim_end_matches('\0').chars().take(40).collect();
        let message = format!("it uses {text:?}, and the constant data directly behind that changed");
        Some(Finding::new(Code::LiteralEnd, old.map.functions[pair.0].qualified_name(), message))
    };
    unchanged(pairs, changes).par_iter().filter_map(of_pair).collect()
}
