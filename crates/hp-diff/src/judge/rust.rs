//! Constants of Rust, which end without a terminator: where the next begins, or at the length that stands beside their address.

use super::Judge;
use crate::arch::{self, Site, Use};
use crate::build::Build;
use crate::entity::{FunctionId, Target};
use crate::image::Word;
use crate::rust;
use crate::usage::range_of;

impl<'j, 'a> Judge<'j, 'a> {
    /// Rust's texts and other constants have no terminators, and linkers do not merge their tails: for a function of
    /// Rust a constant reaches to the next one, though letters follow. Templates of formats have both.
    pub(crate) fn same_rust_constant(&self, pair: (FunctionId, FunctionId), a: u64, b: u64) -> bool {
        self.are_rust(pair) && self.same_to_next(a, b)
    }

    /// What a function of Rust reads of a constant is the same, and so are the constants of Rust that this leads to.
    pub(super) fn same_rust_access(&self, pair: (FunctionId, FunctionId), (a, b): (&Site, &Site), size: u64) -> bool {
        let literal = |build: &Build<'_>, site: &Site| build.map.resolve(&build.image, site) == Target::Literal;
        self.are_rust(pair) && literal(self.old, a) && literal(self.new, b) && self.same_bytes(a.target, b.target, size)
    }

    /// Constants that are equal as far as the next one; where they have different room, there are zeros behind.
    pub(super) fn same_to_next(&self, a: u64, b: u64) -> bool {
        let (old, new) = (self.old, self.new);
        let literal =
            |build: &Build<'_>, at: u64| build.map.resolve_address(&build.image, at, Use::Address) == Target::Literal;
        let (x, y) = (old.map.next_reference(a).wrapping_sub(a), new.map.next_reference(b).wrapping_sub(b));
        let size = x.min(y);
        let padded = |build: &Build<'_>, at: u64, room: u64| {
            build.image.bytes(at + size, room - size).is_some_and(|rest| rest.iter().all(|b| *b == 0))
        };
        let ends = |build: &Build<'_>, at: u64, room: u64| {
            rust::format_length(build.image.bytes_from(at)).is_none_or(|length| length as u64 <= room)
        };
        literal(old, a)
            && literal(new, b)
            && size > 0
            && ends(old, a, x)
            && ends(new, b, y)
            && self.same_bytes(a, b, size)
            && (x == y || padded(old, a, x) && padded(new, b, y))
    }

    /// A text whose length stands beside its address, in both builds, and ends where another reference leads.
    fn same_counted_text(&self, a: u64, b: u64, size: u64) -> bool {
        let (x, y) = (self.old.map.next_reference(a).wrapping_sub(a), self.new.map.next_reference(b).wrapping_sub(b));
        let is_rust = |build: &Build<'_>| build.image.compilers.iter().any(|c| c.starts_with("rustc"));
        let text = |bytes: &[u8]| !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
        let ends = size > 0 && size <= x && size <= y && (size == x || size == y);
        ends && is_rust(self.old)
            && is_rust(self.new)
            && self.old.image.bytes(a, size).is_some_and(text)
            && self.same_bytes(a, b, size)
    }

    /// A text whose length the code has beside its address.
    pub(crate) fn same_counted_argument(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let (old, new) = (self.old, self.new);
        let literal = |build: &Build<'_>, site: &Site| build.map.resolve(&build.image, site) == Target::Literal;
        let length = |build: &Build<'_>, id, site: &Site| {
            range_of(build, id, site).and_then(|range| arch::counted(range.bytes, site.instruction))
        };
        self.are_rust(pair)
            && literal(old, a)
            && literal(new, b)
            && length(old, pair.0, a)
                .is_some_and(|n| length(new, pair.1, b) == Some(n) && self.same_counted_text(a.target, b.target, n))
    }

    /// Two words, and the numbers behind them, that lead to one text.
    pub(crate) fn same_text_words(
        &self,
        (v, p): (&Word, Option<u64>),
        (w, q): (&Word, Option<u64>),
        rust: bool,
    ) -> bool {
        match (v, w) {
            (Word::Address(a), Word::Address(b)) => {
                p.is_some_and(|size| p == q && self.same_counted_text(*a, *b, size))
                    || rust && self.same_to_next(*a, *b)
            }
            _ => false,
        }
    }
}
