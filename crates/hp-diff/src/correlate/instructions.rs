//! Two versions of one function, instruction by instruction: which of them both have.

use std::ops::Range;

use rustc_hash::FxHashMap;

use crate::arch::{self, Site};
use crate::build::Build;
use crate::entity::FunctionId;

/// What two versions of a function have in common, and what only one of them has.
pub(super) struct Versions {
    pub old: Tokens,
    pub new: Tokens,
    steps: Vec<similar::DiffOp>,
}

impl Versions {
    pub(super) fn new((old, new): (&Build<'_>, &Build<'_>), pair: (FunctionId, FunctionId)) -> Versions {
        let (old, new) = (tokens(old, pair.0), tokens(new, pair.1));
        // Equal instructions have the same number.
        let mut numbers: FxHashMap<&[u8], usize> = FxHashMap::default();
        let mut number = |token| {
            let next = numbers.len();
            *numbers.entry(token).or_insert(next)
        };
        let [x, y] = [&old, &new].map(|all| all.tokens.iter().map(|t| number(all.bytes_of(t))).collect::<Vec<usize>>());
        // Without a deadline: the answer must not depend on how busy the machine is.
        let steps = similar::capture_diff_slices(similar::Algorithm::Myers, &x, &y);
        Versions { old, new, steps }
    }

    /// What the instructions lead to that both have, in the old version and in the new one.
    pub(super) fn common(&self) -> impl Iterator<Item = (&Site, &Site)> {
        let equal = self.steps.iter().filter(|step| matches!(step, similar::DiffOp::Equal { .. }));
        equal.flat_map(|step| {
            let (_, from, to) = step.as_tag_tuple();
            let both = self.old.tokens[from].iter().zip(&self.new.tokens[to]);
            both.flat_map(|(a, b)| self.old.sites_of(a).iter().zip(self.new.sites_of(b)))
        })
    }

    /// What those lead to that only the old version has, and those that only the new one has.
    pub(super) fn apart(&self) -> (Vec<&Site>, Vec<&Site>) {
        let (mut left, mut come) = (Vec::new(), Vec::new());
        for step in self.steps.iter().filter(|step| !matches!(step, similar::DiffOp::Equal { .. })) {
            let (_, from, to) = step.as_tag_tuple();
            left.extend(self.old.tokens[from].iter().flat_map(|t| self.old.sites_of(t)));
            come.extend(self.new.tokens[to].iter().flat_map(|t| self.new.sites_of(t)));
        }
        (left, come)
    }
}

/// The instructions of a function, without the fields that lead somewhere.
#[derive(Default)]
pub(super) struct Tokens {
    /// The function's bytes, the fields being zero.
    bytes: Vec<u8>,
    pub sites: Vec<Site>,
    tokens: Vec<Token>,
}

/// An instruction: which of the bytes and sites are its own.
struct Token {
    bytes: Range<u32>,
    sites: Range<u32>,
}

impl Tokens {
    fn bytes_of(&self, token: &Token) -> &[u8] {
        &self.bytes[token.bytes.start as usize..token.bytes.end as usize]
    }

    fn sites_of(&self, token: &Token) -> &[Site] {
        &self.sites[token.sites.start as usize..token.sites.end as usize]
    }
}

fn tokens(build: &Build<'_>, id: FunctionId) -> Tokens {
    let mut all = Tokens::default();
    for (range, code) in build.map.functions[id].ranges.iter().zip(&build.code[id].ranges) {
        let base = all.bytes.len();
        all.bytes.extend(range.bytes);
        code.sites.blank(&mut all.bytes[base..]);
        let mut sites = code.sites.iter().peekable();
        for (at, length) in arch::instructions(range.bytes) {
            let first = all.sites.len() as u32;
            all.sites.extend(std::iter::from_fn(|| sites.next_if(|s| (s.instruction as usize) < at + length)));
            let bytes = (base + at) as u32..(base + at + length) as u32;
            all.tokens.push(Token { bytes, sites: first..all.sites.len() as u32 });
        }
    }
    all
}
