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
    for &address in map.references.as_slice() {
        if map.resolve_address(image, address, Use::Address) == Target::Literal
            && let Some((_, rest)) = behind(map, image, (address, map.literal(image, address)))
        {
            let texts = pieces(rest).filter(|text| narrow_text(&[text, &[0][..]].concat()).is_some());
            found.extend(texts.map(xxh3_128));
        }
    }
    found
}

fn pieces(texts: &[u8]) -> impl Iterator<Item = &[u8]> {
    texts.split(|b| *b == 0).filter(|text| !text.is_empty())
}
