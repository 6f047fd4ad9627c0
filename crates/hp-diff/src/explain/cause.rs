//! The cause of a difference, its first instruction and its place in the source.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::align::{Pair, align, misled};
use super::tokens::{Lead, Side, Token};
use super::{Explanation, First, Instruction, Reason, Row, RowKind, deadline};
use crate::arch;
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::FunctionId;
use crate::judge::{Judge, Verdict};
use crate::names::readable;
use crate::source::SourceMap;

/// Up to this many instructions squared a function is aligned as a whole to find its cause.
const WHOLE: usize = 1 << 20;
/// Else this many behind the first difference.
const WINDOW: usize = 512;
/// Characters of an instruction in a sentence.
const SHORT: usize = 60;

/// Why one function differs.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub reason: Reason,
    pub words: String,
    /// Name of the inlined function that differs.
    pub inlined: Option<String>,
    pub first: First,
}

/// Finds causes: two builds and what their debug information says about the functions that changed.
pub(crate) struct Causes<'c, 'a> {
    old: Side<'c, 'a>,
    new: Side<'c, 'a>,
    judge: Judge<'c, 'a>,
    sources: (SourceMap, SourceMap),
}

/// A pair of functions, aligned.
struct Aligned<'a> {
    old: Vec<Token<'a>>,
    new: Vec<Token<'a>>,
    rows: Vec<Pair>,
    /// Rows that differ only in where a branch or table within the function leads.
    misled: Vec<usize>,
}

impl<'c, 'a> Causes<'c, 'a> {
    /// Reads the debug information of `functions`: pairs, and those that only the new build has.
    pub(crate) fn new(
        old: &'c Build<'a>,
        new: &'c Build<'a>,
        pairs: &'c Correlation,
        changes: &'c Changes,
        functions: &[(FunctionId, FunctionId)],
        added: &[FunctionId],
    ) -> Causes<'c, 'a> {
        let ranges = |build: &Build<'_>, ids: &mut dyn Iterator<Item = FunctionId>| -> Vec<Range<u64>> {
            ids.flat_map(|id| build.map.functions[id].ranges.iter().map(|r| r.address..r.end())).collect()
        };
        let before = ranges(old, &mut functions.iter().map(|p| p.0));
        let now = ranges(new, &mut functions.iter().map(|p| p.1).chain(added.iter().copied()));
        let sources =
            rayon::join(|| SourceMap::read(&old.image.debug, before), || SourceMap::read(&new.image.debug, now));
        let judge = Judge::new(old, new, pairs).with_changed_constants(changes.constants.clone());
        Causes { old: Side::old(old, pairs, changes), new: Side::new(new, pairs), judge, sources }
    }

    /// The causes of these pairs, in their order.
    pub(crate) fn of(&self, functions: &[(FunctionId, FunctionId)]) -> Vec<Cause> {
        functions.par_iter().map(|pair| self.cause(*pair)).collect()
    }

    /// Where a function of the new build begins.
    pub(crate) fn entry(&self, added: FunctionId) -> First {
        let place = self.sources.1.place(self.new.build.map.functions[added].address());
        let tokens = if place.is_some() { self.new.tokens(added) } else { Vec::new() };
        First { old: None, new: tokens.first().map(|t| instruction(t, &self.sources.1)) }
    }

    /// The whole of a pair, side by side.
    pub(crate) fn explain(&self, pair: (FunctionId, FunctionId)) -> Explanation {
        let cause = self.cause(pair);
        let aligned = self.align(pair, usize::MAX, deadline());
        let rows =
            rows_of(&aligned.rows, &aligned.misled, (&aligned.old, &self.sources.0), (&aligned.new, &self.sources.1));
        Explanation {
            name: self.old.build.map.functions[pair.0].name().to_owned(),
            reason: cause.reason,
            cause: cause.words,
            rows,
        }
    }

    fn align(&self, pair: (FunctionId, FunctionId), limit: usize, deadline: Option<std::time::Instant>) -> Aligned<'a> {
        let (old, new) = (self.old.tokens(pair.0), self.new.tokens(pair.1));
        let mut rows = align(&old, &new, limit, deadline);
        for row in rows.iter_mut().filter(|row| row.kind == RowKind::Changed) {
            let Some((x, y)) = same_instruction((&old, &new), row) else { continue };
            if x.leads.iter().zip(&y.leads).all(|(a, b)| self.is_same(pair, a, b)) {
                row.kind = RowKind::Same;
            }
        }
        let misled = misled(&rows, (&old, &new), (&self.old, &self.new), pair);
        Aligned { old, new, rows, misled }
    }

    /// Two fields lead to the same; what they lead to has not always a name that tells.
    fn is_same(&self, pair: (FunctionId, FunctionId), a: &Lead, b: &Lead) -> bool {
        a.key == b.key || self.judge.sites(pair, &a.site, &b.site) == Verdict::Same
    }

    fn cause(&self, pair: (FunctionId, FunctionId)) -> Cause {
        let size = |build: &Build<'_>, id: FunctionId| build.map.functions[id].size() as usize / 4;
        let whole = size(self.old.build, pair.0).saturating_mul(size(self.new.build, pair.1)) <= WHOLE;
        let mut aligned = self.align(pair, if whole { usize::MAX } else { WINDOW }, None);
        if !whole && aligned.differing().next().is_none() {
            aligned = self.align(pair, usize::MAX, deadline());
        }
        let differing: Vec<&Pair> = aligned.differing().collect();
        let Some(first) = differing.first() else {
            let lands = |build: &Build<'_>, id: FunctionId| {
                build.map.functions[id].ranges.iter().any(|r| build.landing.contains_key(&r.address))
            };
            let landings = lands(self.old.build, pair.0) || lands(self.new.build, pair.1);
            return if landings { exceptions() } else { noise() };
        };
        let twins = |row: &&Pair| same_instruction((&aligned.old, &aligned.new), row);
        if let Some(all) = differing.iter().map(twins).collect::<Option<Vec<_>>>() {
            return self.reference(pair, all[0], self.first(&aligned, first));
        }
        let (inlined, row) = self.origin(&aligned, &differing);
        let (first, shown) = (self.first(&aligned, first), self.first(&aligned, row));
        let what = match &inlined {
            Some(name) => format!("inlined {name}"),
            None => "own code".into(),
        };
        let reason = if inlined.is_some() { Reason::InlinedCallee } else { Reason::OwnCode };
        Cause { reason, words: format!("{what} {}", in_words(&shown)), inlined, first }
    }

    /// The same instructions lead elsewhere.
    fn reference(&self, pair: (FunctionId, FunctionId), (x, y): Twins<'_, '_>, first: First) -> Cause {
        let mut leads = x.leads.iter().zip(&y.leads);
        let Some((a, b)) = leads.find(|(a, b)| !self.is_same(pair, a, b)) else {
            let words = format!("own code {}: it jumps elsewhere", place_in_words(&first));
            return Cause { reason: Reason::OwnCode, words, inlined: None, first };
        };
        let code = a.code || b.code;
        let reason = if code { Reason::CalleeReplaced } else { Reason::ChangedConstant };
        let verb = if x.masked.starts_with("call") { "calls" } else { "refers to" };
        let words = if a.name == b.name {
            format!("refers to {}, which changed", clip(&a.name))
        } else {
            format!("{verb} {} instead of {}", clip(&b.name), clip(&a.name))
        };
        Cause { reason, words: format!("{words} {}", place_in_words(&first)), inlined: None, first }
    }

    /// Where most of the differing instructions come from: an inlined function, or the function itself; and the first
    /// of those. The stack frame and the choice of registers follow from the rest, so they do not count where there is
    /// anything else.
    fn origin<'r>(&self, aligned: &Aligned<'_>, differing: &[&'r Pair]) -> (Option<String>, &'r Pair) {
        let tokens = |row: &Pair| [row.old.map(|i| &aligned.old[i]), row.new.map(|j| &aligned.new[j])];
        let telling = |row: &Pair| match tokens(row) {
            [Some(a), Some(b)] => arch::shape(&a.masked) != arch::shape(&b.masked) && !(a.frame && b.frame),
            [a, b] => !a.or(b).is_none_or(|t| t.frame),
        };
        let any = differing.iter().any(|row| telling(row));
        let telling = |row: &Pair| !any || telling(row);
        let from = |row: &Pair| {
            let [old, new] = tokens(row);
            let new = new.and_then(|t| self.sources.1.inlined(t.address));
            new.or_else(|| old.and_then(|t| self.sources.0.inlined(t.address)))
        };
        let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        for row in differing.iter().filter(|row| telling(row)) {
            *counts.entry(from(row)).or_default() += 1;
        }
        let origin = counts.iter().max_by_key(|(name, count)| (**count, name.is_none())).and_then(|(name, _)| *name);
        let shown = differing.iter().find(|row| telling(row) && from(row) == origin);
        (origin.map(str::to_owned), shown.copied().unwrap_or(differing[0]))
    }

    fn first(&self, aligned: &Aligned<'_>, row: &Pair) -> First {
        First {
            old: row.old.map(|i| instruction(&aligned.old[i], &self.sources.0)),
            new: row.new.map(|j| instruction(&aligned.new[j], &self.sources.1)),
        }
    }
}

impl Aligned<'_> {
    /// Rows that differ; where only branches lead elsewhere, those.
    fn differing(&self) -> impl Iterator<Item = &Pair> {
        let is_padding =
            |row: &Pair| row.old.is_none_or(|i| self.old[i].padding) && row.new.is_none_or(|j| self.new[j].padding);
        let plain: Vec<&Pair> = self.rows.iter().filter(|row| row.kind != RowKind::Same && !is_padding(row)).collect();
        let misled = if plain.is_empty() { self.misled.as_slice() } else { &[] };
        plain.into_iter().chain(misled.iter().map(|n| &self.rows[*n]))
    }
}

/// One instruction in both builds, which may lead elsewhere.
type Twins<'t, 'a> = (&'t Token<'a>, &'t Token<'a>);

/// The instruction of a row, if it is the same in both builds but for where it leads.
fn same_instruction<'t, 'a>((old, new): (&'t [Token<'a>], &'t [Token<'a>]), row: &Pair) -> Option<Twins<'t, 'a>> {
    let (a, b) = (&old[row.old?], &new[row.new?]);
    (a.masked == b.masked && a.leads.len() == b.leads.len()).then_some((a, b))
}

/// No instruction differs, but what the function does with exceptions.
fn exceptions() -> Cause {
    Cause { reason: Reason::OwnCode, words: "own code: it catches or cleans up otherwise".into(), ..noise() }
}

/// Rows of instructions, for people.
pub(super) fn rows_of(
    rows: &[Pair],
    misled: &[usize],
    (old, before): (&[Token<'_>], &SourceMap),
    (new, now): (&[Token<'_>], &SourceMap),
) -> Vec<Row> {
    let side = |tokens: &[Token<'_>], at: Option<usize>, source| at.map(|i| instruction(&tokens[i], source));
    let row = |(n, row): (usize, &Pair)| Row {
        kind: if misled.contains(&n) { RowKind::Changed } else { row.kind },
        old: side(old, row.old, before),
        new: side(new, row.new, now),
    };
    rows.iter().enumerate().map(row).collect()
}

fn noise() -> Cause {
    Cause {
        reason: Reason::CompilerNoise,
        words: "compiler noise: the same instructions, placed, padded or encoded in another way".into(),
        inlined: None,
        first: First::default(),
    }
}

pub(super) fn instruction(token: &Token<'_>, source: &SourceMap) -> Instruction {
    Instruction {
        offset: token.offset,
        cold: token.cold,
        text: token.text(),
        place: source.place(token.address),
        inlined: source.inlined(token.address).map(str::to_owned),
    }
}

/// With readable names, which is what makes the most of the room.
fn clip(text: &str) -> String {
    let text = readable(text);
    if text.chars().count() <= SHORT { text } else { text.chars().take(SHORT - 1).chain(['…']).collect() }
}

/// `at cold part +0x31 (file.c:12)`.
fn place_in_words(first: &First) -> String {
    let Some(shown) = first.new.as_ref().or(first.old.as_ref()) else { return String::new() };
    let offset = first.old.as_ref().unwrap_or(shown);
    let part = if offset.cold { "cold part " } else { "" };
    let source = match &shown.place {
        Some(place) => format!(" ({place})"),
        None => String::new(),
    };
    format!("at {part}+{:#x}{source}", offset.offset)
}

fn in_words(first: &First) -> String {
    let place = place_in_words(first);
    match (&first.old, &first.new) {
        (Some(a), Some(b)) => format!("{place}: `{}` became `{}`", clip(&a.text), clip(&b.text)),
        (Some(a), None) => format!("{place}: `{}` is gone", clip(&a.text)),
        (None, Some(b)) => format!("{place}: `{}` is new", clip(&b.text)),
        (None, None) => place,
    }
}
