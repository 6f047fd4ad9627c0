//! Constants that name a place in the source, and differ in its line only.

use crate::entities::Side;
use crate::ground::{Ground, Trail};
use crate::image::Word;

/// Bytes of a text that may name a place.
const LONGEST: u64 = 4096;

impl Ground<'_, '_> {
    /// Two named constants, one of whose words leads to the same text with a dot, such as the name of a file, and of which nothing
    /// differs but one number of four bytes, which may stand in texts, too. That it is a line, nobody can see here.
    pub(crate) fn same_but_for_number(&self, a: u64, n: u64) -> bool {
        let (Some((o, 0)), Some((p, 0))) = (self.old.object_at(a), self.new.object_at(n)) else { return false };
        let size = self.new.objects[p].size;
        let alike = self.old.objects[o].size == size && self.old.is_constant(a) && self.new.is_constant(n);
        let contents = (self.old.image.initial(a, size), self.new.image.initial(n, size));
        let (Some(x), Some(y), true) = (contents.0, contents.1, alike) else { return false };
        let (mut at, mut named, mut number) = (0, false, None);
        let mut is_the_one = |pair: (u32, u32)| *number.get_or_insert(pair) == pair;
        while at < x.len() {
            let (behind, other) = (x.get(at + 8..).unwrap_or_default(), y.get(at + 8..).unwrap_or_default());
            let words = (self.old.image.words.get(&(a + at as u64)), self.new.image.words.get(&(n + at as u64)));
            let (same, width) = match words {
                (None, None) => {
                    let width = (x.len() - at).min(4);
                    let (p, q) = (&x[at..at + width], &y[at..at + width]);
                    (p == q || four(p).zip(four(q)).is_some_and(&mut is_the_one), width)
                }
                (Some(v), Some(w)) if self.same_word(v, w, &Trail::START).is_ok() => {
                    named |= texts(self.new, w, other).any(|(text, _)| text.contains('.'));
                    (true, 8)
                }
                (Some(v), Some(w)) => {
                    let also = || texts(self.new, w, other);
                    let pairs = texts(self.old, v, behind)
                        .flat_map(|t| also().filter(move |u| u.1 == t.1).map(move |u| (t, u)));
                    let numbers = pairs.filter_map(|((t, counted), (u, _))| {
                        let (t, u) = (numbered(t)?, numbered(u)?);
                        ((t.0, t.2) == (u.0, u.2)).then_some(((t.1, u.1), counted))
                    });
                    let numbers = numbers.last();
                    let counted = numbers.is_some_and(|n| n.1);
                    (numbers.is_some_and(|n| is_the_one(n.0)), if counted { 16 } else { 8 })
                }
                _ => (false, 8),
            };
            if !same {
                return false;
            }
            at += width;
        }
        named
    }
}

fn four(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_le_bytes)
}

/// The texts that a word may lead to: one whose length stands `behind` the word, which is told beside it, and one that ends with a
/// terminator.
fn texts<'a>(side: &Side<'a>, word: &Word, behind: &[u8]) -> impl Iterator<Item = (&'a str, bool)> {
    let at = match word {
        Word::Address(at) if side.is_constant(*at) => Some(*at),
        _ => None,
    };
    let of = |at: u64, size: u64| side.image.bytes(at, size).and_then(|b| std::str::from_utf8(b).ok());
    let length = behind.first_chunk().map(|b| u64::from_le_bytes(*b)).filter(|n| (1..LONGEST).contains(n));
    let counted = at.zip(length).and_then(|(at, n)| of(at, n)).filter(|text| !text.contains('\0'));
    let end = at.and_then(|at| (0..LONGEST).find(|n| side.image.bytes(at + n, 1) == Some(&[0])));
    let terminated = at.zip(end).and_then(|(at, n)| of(at, n));
    counted.map(|text| (text, true)).into_iter().chain(terminated.map(|text| (text, false)))
}

/// What stands before and behind the last number in a text, and the number.
fn numbered(text: &str) -> Option<(&str, u32, &str)> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = text[..end].trim_end_matches(|c: char| c.is_ascii_digit()).len();
    Some((&text[..start], text[start..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn the_last_number_of_a_text() {
        assert_eq!(numbered("event a.rs:120"), Some(("event a.rs:", 120, "")));
        assert_eq!(numbered("7 of 8 left"), Some(("7 of ", 8, " left")));
        assert_eq!(numbered("none"), None);
        assert_eq!(numbered("99999999999"), None);
    }
}
