//! Texts that nothing refers to.
//!
//! A compiler that turns `memcmp(p, "REDIS", 5)` into instructions leaves the text behind, and the linker puts it anywhere
//! among the texts. No reference separates it from the one before, so it looks like a part of that: `"%s\0REDIS"`. What shows
//! that it is none: elsewhere in the other build it lies about as well, behind another text. Numbers in a table without a name look
//! like texts as well, short ones or such with control characters: those are none.

use std::sync::OnceLock;

use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_128;

use crate::arch::Use;
use crate::entity::{Map, Target, narrow_text};
use crate::image::Image;

/// Bytes of a text; what is shorter may be a number.
const SHORTEST: usize = 2;

/// The texts of one build that lie behind other texts and that nothing refers to, by their digests, each with that of the text that it
/// lies behind, `None` where that are several; found when they are first asked for.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(OnceLock<FxHashMap<u128, Option<u128>>>);

impl Leftovers {
    /// True if all of `texts` are among them, each behind another text than `first`.
    pub(crate) fn contain(&self, map: &Map<'_>, image: &Image<'_>, first: &[u8], texts: &[&[u8]]) -> bool {
        let known = self.0.get_or_init(|| find(map, image));
        texts.iter().all(|text| known.get(&xxh3_128(text)).is_some_and(|behind| *behind != Some(xxh3_128(first))))
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
    let length = narrow_text(bytes).filter(|length| plain && printable(&bytes[..length - 1]))?;
    Some(bytes.split_at(length))
}

/// Of texts that lie behind two equal ones, those that only one of the two has, or in another order; neither ends with its last zero.
pub(crate) fn unlike<'a>(a: &'a [u8], b: &'a [u8]) -> (Vec<&'a [u8]>, Vec<&'a [u8]>) {
    let (x, y): (Vec<_>, Vec<_>) = (pieces(a).collect(), pieces(b).collect());
    let start = x.iter().zip(&y).take_while(|(p, q)| p == q).count();
    let (x, y) = (&x[start..], &y[start..]);
    let end = x.iter().rev().zip(y.iter().rev()).take_while(|(p, q)| p == q).count();
    (x[..x.len() - end].to_vec(), y[..y.len() - end].to_vec())
}

fn find(map: &Map<'_>, image: &Image<'_>) -> FxHashMap<u128, Option<u128>> {
    let mut found: FxHashMap<u128, Option<u128>> = FxHashMap::default();
    for literal in literals(map, image) {
        if let Some((first, rest)) = behind(map, image, literal) {
            let first = xxh3_128(first);
            for text in pieces(rest).filter(|text| is_text(text)) {
                let known = found.entry(xxh3_128(text)).or_insert(Some(first));
                *known = known.filter(|known| *known == first);
            }
        }
    }
    found
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.len() >= SHORTEST && printable(bytes)
}

fn printable(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, 7..=13 | 27 | 32..=126 | 128..))
}

fn pieces(texts: &[u8]) -> impl Iterator<Item = &[u8]> {
    texts.split(|b| *b == 0).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::unlike;

    #[test]
    fn what_both_have_in_one_order_is_put_aside() {
        let nothing: Vec<&[u8]> = Vec::new();
        assert_eq!(unlike(b"one\0two\0", b"one\0two"), (nothing.clone(), nothing.clone()));
        assert_eq!(unlike(b"one\0two\0", b"two\0"), (vec![&b"one"[..]], nothing.clone()));
        assert_eq!(unlike(b"one\0two\0", b"two\0one\0"), (vec![&b"one"[..], b"two"], vec![&b"two"[..], b"one"]));
        assert_eq!(unlike(b"\0\0a\0", b"a\0b\0"), (nothing, vec![&b"b"[..]]));
    }
}
