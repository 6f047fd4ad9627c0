//! Texts that nothing refers to.
//!
//! A compiler that turns `memcmp(p, "REDIS", 5)` into instructions leaves the text behind, and the linker puts it anywhere
//! among the texts. No reference separates it from the one before, so it looks like a part of that: `"%s\0REDIS"`. What shows
//! that it is none: elsewhere in the other build it lies about as well, behind another text.

use std::sync::OnceLock;

use rustc_hash::FxHashSet;
use xxhash_rust::xxh3::xxh3_128;

use crate::arch::Use;
use crate::entity::{Map, Target, narrow_text};
use crate::image::Image;

/// The texts of one build that lie behind other texts and that nothing refers to, by their digests; found when they are first
/// asked for.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(OnceLock<FxHashSet<u128>>);

impl Leftovers {
    /// True if `texts`, which end with zeros or with the last text, are all among them.
    pub(crate) fn contain(&self, map: &Map<'_>, image: &Image<'_>, texts: &[u8]) -> bool {
        let known = self.0.get_or_init(|| find(map, image));
        pieces(texts).all(|text| known.contains(&xxh3_128(text)))
    }
}

/// The contents of all literals of one build, by their digests; found when they are first asked for.
#[derive(Debug, Default)]
pub(crate) struct Contents(OnceLock<FxHashSet<u128>>);

impl Contents {
    /// True if some literal has this content.
    pub(crate) fn contain(&self, map: &Map<'_>, image: &Image<'_>, content: &[u8]) -> bool {
        let known = self.0.get_or_init(|| literals(map, image).map(|(_, content)| xxh3_128(content)).collect());
        known.contains(&xxh3_128(content))
    }
}

fn literals<'m, 'a>(map: &'m Map<'a>, image: &'m Image<'a>) -> impl Iterator<Item = (u64, &'a [u8])> {
    let addresses = map.references.as_slice().iter().copied();
    let literal = |address: &u64| map.resolve_address(image, *address, Use::Address) == Target::Literal;
    addresses.filter(literal).map(|address| (address, map.literal(image, address)))
}

/// What lies behind the first text of a literal; `None` if it begins with none, or holds addresses.
pub(crate) fn behind<'a>(map: &Map<'a>, image: &Image<'a>, literal: (u64, &'a [u8])) -> Option<(&'a [u8], &'a [u8])> {
    let (address, bytes) = literal;
    let span = address..address + bytes.len() as u64;
    let plain = image.words.range(span.clone()).next().is_none() && map.distances.range(span).next().is_none();
    let length = narrow_text(bytes).filter(|_| plain)?;
    Some(bytes.split_at(length))
}

fn find(map: &Map<'_>, image: &Image<'_>) -> FxHashSet<u128> {
    let mut found = FxHashSet::default();
    for literal in literals(map, image) {
        if let Some((_, rest)) = behind(map, image, literal) {
            let texts = pieces(rest).filter(|text| narrow_text(&[text, &[0][..]].concat()).is_some());
            found.extend(texts.map(xxh3_128));
        }
    }
    found
}

fn pieces(texts: &[u8]) -> impl Iterator<Item = &[u8]> {
    texts.split(|b| *b == 0).filter(|text| !text.is_empty())
}
