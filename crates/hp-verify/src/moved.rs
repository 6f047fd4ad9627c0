//! Constants without a name whose neighbours are others in the new build.
//!
//! Of two equal constants it is not known how far code reads behind them, so what lies there counts as a part of them. But the linker
//! puts texts and tables next to each other as it likes. If each of the two builds has all that follows in the other one,
//! somewhere, then these neighbours have only changed places: had the code meant one of them, it would mean another one now,
//! which the same constant happened to lie before. That is enough for code which has not changed; what a patch brings never
//! rests on it.

use std::sync::OnceLock;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::entities::{Side, text_length};
use crate::ground::{Ground, Within};

/// What constants without a name contain, in one build.
#[derive(Debug, Default)]
pub(crate) struct Contents<'a>(OnceLock<Known<'a>>);

#[derive(Debug, Default)]
struct Known<'a> {
    /// Whole constants that something refers to.
    whole: FxHashSet<&'a [u8]>,
    /// Texts that lie behind the first one of a constant, so that nothing refers to them; and which first ones those are.
    behind: FxHashMap<&'a [u8], FxHashSet<&'a [u8]>>,
}

impl<'a> Contents<'a> {
    fn known(&self, side: &Side<'a>) -> &Known<'a> {
        self.0.get_or_init(|| {
            let unnamed = |at: &u64| side.is_plain(*at, 1) && side.object_at(*at).is_none();
            let literal = |at: &u64| {
                let bytes = side.literal(*at);
                side.is_plain(*at, bytes.len() as u64).then_some(bytes)
            };
            let whole: FxHashSet<&[u8]> =
                side.borders.par_iter().filter(|at| unnamed(at)).filter_map(literal).collect();
            let mut behind: FxHashMap<&[u8], FxHashSet<&[u8]>> = FxHashMap::default();
            for (first, rest) in whole.iter().filter_map(|bytes| split(bytes)) {
                texts(rest).for_each(|text| _ = behind.entry(text).or_default().insert(first));
            }
            Known { whole, behind }
        })
    }
}

impl<'a> Side<'a> {
    /// Constant data in which no word is filled by the dynamic linker.
    fn is_plain(&self, at: u64, size: u64) -> bool {
        let constant = self.image.section_at(at).is_some_and(|s| s.is_constant() && !s.code && !s.is_slots());
        constant && self.image.words.range(at.saturating_sub(7)..at.saturating_add(size)).next().is_none()
    }

    /// The text at the start of a constant, and the texts behind it that nothing refers to.
    fn text_and_rest(&self, at: u64) -> Option<(&'a [u8], &'a [u8])> {
        let bytes = self.literal(at);
        split(bytes).filter(|_| self.is_plain(at, bytes.len() as u64))
    }
}

/// The text at the start of a constant, with its terminator, and the rest. Without a letter, or with something that is none, it may be a
/// number.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = text_length(bytes);
    (length > 1 && written(&bytes[..length - 1])).then(|| bytes.split_at(length))
}

/// Nothing but what people write.
fn written(text: &[u8]) -> bool {
    text.iter().all(|b| !b.is_ascii_control() || matches!(b, 7..=13 | 27))
}

/// Texts with zeros between them.
fn texts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|b| *b == 0).filter(|text| !text.is_empty())
}

impl<'a> Ground<'_, 'a> {
    fn known_of_old(&self) -> &Known<'a> {
        self.contents[0].known(self.old)
    }

    fn known_of_new(&self) -> &Known<'a> {
        self.contents[1].known(self.new)
    }

    /// The same text begins in both builds, and what only one of them has behind it lies behind other texts in the other build. A single letter
    /// lies behind some text in any build, and is no evidence.
    pub(crate) fn same_text_elsewhere(&self, a: u64, n: u64) -> bool {
        let (Some((x, rest)), Some((y, other))) = (self.old.text_and_rest(a), self.new.text_and_rest(n)) else {
            return false;
        };
        let all = (texts(rest).collect::<Vec<_>>(), texts(other).collect::<Vec<_>>());
        let shared =
            |list: &[&'a [u8]], than: &[&'a [u8]]| list.iter().partition::<Vec<&[u8]>, _>(|text| than.contains(text));
        let ((kept, gone), (still, come)) = (shared(&all.0, &all.1), shared(&all.1, &all.0));
        let elsewhere = |side: &Known<'_>, list: &[&[u8]]| {
            list.iter().all(|text| {
                let firsts = side.behind.get(text);
                text.len() > 1 && written(text) && firsts.is_some_and(|firsts| firsts.iter().any(|first| *first != x))
            })
        };
        let differ = rest != other && kept == still;
        x == y && differ && elsewhere(self.known_of_new(), &gone) && elsewhere(self.known_of_old(), &come)
    }

    /// The same constant, not empty, lies at two addresses, and both builds have all constants that begin shortly behind them.
    pub(crate) fn same_neighbours(&self, a: u64, n: u64, within: Within<'_>) -> bool {
        let known = |here: &Side<'_>, address: u64, there: &Known<'_>| {
            let starts = here.ahead(address).map(|found| found.0).unwrap_or_default();
            starts.into_iter().all(|at| {
                let bytes = here.literal(at);
                here.is_plain(at, bytes.len() as u64) && there.whole.contains(bytes)
            })
        };
        self.new.is_constant(n)
            && self.new.literal(n).iter().any(|b| *b != 0)
            && self.same(a, n, crate::code::Use::Address, within).is_ok()
            && known(self.old, a, self.known_of_new())
            && known(self.new, n, self.known_of_old())
    }
}
