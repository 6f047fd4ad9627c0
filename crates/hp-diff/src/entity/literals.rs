//! How far constants reach that no symbol covers.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::Map;
use crate::image::Image;
use crate::rust;

/// What has been found out about the literal at a reference: each number is in bytes, and one is added; 0 as long as nobody has
/// asked.
#[derive(Debug, Default)]
pub(super) struct KnownLiteral {
    length: AtomicU32,
    /// As far as it reaches, padding included.
    pub(super) span: AtomicU32,
    /// Whether constants begin shortly behind it: [`Map::alone`].
    pub(super) alone: AtomicU8,
}

impl KnownLiteral {
    pub(super) fn get(number: &AtomicU32) -> Option<u64> {
        number.load(Ordering::Relaxed).checked_sub(1).map(u64::from)
    }

    fn set(number: &AtomicU32, value: u64) {
        if let Ok(value) = u32::try_from(value + 1) {
            number.store(value, Ordering::Relaxed);
        }
    }
}

impl<'a> Map<'a> {
    /// The literal at `address`, seen as something whose address is taken, without the
    /// zeros at its end that are not its terminator. Words that the dynamic linker fills are
    /// content, though not every linker writes them into the file.
    pub(crate) fn literal(&self, image: &Image<'a>, address: u64) -> &'a [u8] {
        let known = self.known_literal(address);
        let rest = image.bytes_from(address);
        match known.and_then(|known| KnownLiteral::get(&known.length)) {
            Some(length) => &rest[..length as usize],
            None => {
                let length = self.literal_length(image, address);
                known.inspect(|known| KnownLiteral::set(&known.length, length as u64));
                &rest[..length]
            }
        }
    }

    /// What has been noted of an address by [`Map::set_alone`]: no constants begin shortly behind it. `rust`: as a function of
    /// Rust sees it.
    pub(crate) fn is_alone(&self, address: u64, rust: bool) -> bool {
        self.known_literal(address)
            .is_some_and(|known| known.alone.load(Ordering::Relaxed) & (1 << u8::from(rust)) != 0)
    }

    /// Notes that no constants begin shortly behind an address.
    pub(crate) fn set_alone(&self, address: u64, rust: bool) {
        if let Some(known) = self.known_literal(address) {
            known.alone.fetch_or(1 << u8::from(rust), Ordering::Relaxed);
        }
    }

    fn known_literal(&self, address: u64) -> Option<&KnownLiteral> {
        self.references.position(address).and_then(|i| self.literals.get(i))
    }

    fn literal_length(&self, image: &Image<'a>, address: u64) -> usize {
        let (start, end) = self.literal_span(image, address);
        let extent = &image.bytes_from(start)[..(end - start) as usize];
        let last_word = image.words.range(start..end).last().map_or(0, |(at, _)| (at - start) as usize + 8);
        let used = extent.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1).max(last_word);
        used.max(text_length(extent)).min(extent.len())
    }

    /// Start and end of the literal at `address`: it reaches to the next reference. A string
    /// reaches to its terminator even if something refers to its tail.
    pub(crate) fn literal_span(&self, image: &Image<'a>, address: u64) -> (u64, u64) {
        let known = self.known_literal(address);
        if let Some(length) = known.and_then(|known| KnownLiteral::get(&known.span)) {
            return (address, address + length);
        }
        let span = self.find_span(image, address);
        known.inspect(|known| KnownLiteral::set(&known.span, span.1 - address));
        span
    }

    fn find_span(&self, image: &Image<'a>, address: u64) -> (u64, u64) {
        if let Some((_, end)) = self.template_at(address) {
            return (address, end);
        }
        let rest = image.bytes_from(address);
        let last_of_text = (text_length(rest) as u64).saturating_sub(1);
        // What leads somewhere is no text, whatever its bytes look like.
        let last = address + last_of_text;
        let leads =
            self.distances.range(address..last).next().is_some() || image.words.range(address..last).next().is_some();
        let last_of_text = if leads { 0 } else { last_of_text };
        let end = self.next_reference(address + last_of_text);
        (address, end.clamp(address, address + rest.len() as u64))
    }
}

/// Bytes of the text that `bytes` begin with, with its terminator; 0 if it is none. Linkers merge tails of wide
/// strings too, of strings in any encoding, and of Rust's templates of formats: something may refer to the middle of one.
fn text_length(bytes: &[u8]) -> usize {
    let narrow = narrow_text(bytes).unwrap_or(0);
    let format = rust::format_length(bytes).unwrap_or(0);
    narrow.max(format).max(wide_length(bytes, 4)).max(wide_length(bytes, 2))
}

/// Bytes of the text of single bytes that `bytes` begin with, with its terminator.
pub(crate) fn narrow_text(bytes: &[u8]) -> Option<usize> {
    let is_text =
        |text: &[u8]| std::str::from_utf8(text).is_ok() || text.iter().all(|b| matches!(b, 7..=13 | 27 | 32..));
    bytes.iter().position(|b| *b == 0).filter(|n| is_text(&bytes[..*n])).map(|n| n + 1)
}

/// Bytes of the text of units of this width, two letters at least.
fn wide_length(bytes: &[u8], width: usize) -> usize {
    let unit = |c: &[u8]| c.iter().rev().fold(0u32, |n, b| n << 8 | u32::from(*b));
    let letter = |n: &u32| (0x20..0x250).contains(n) || matches!(n, 9 | 10 | 13);
    let letters = bytes.chunks_exact(width).map(unit).take_while(letter).count();
    let ends = bytes.get(letters * width..(letters + 1) * width).is_some_and(|c| unit(c) == 0);
    if letters > 1 && ends { (letters + 1) * width } else { 0 }
}
