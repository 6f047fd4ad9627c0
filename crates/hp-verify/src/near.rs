//! The symbols of a patch by where they lie in its sections.

use std::collections::BTreeMap;

use hp_pack::{Patch, Place, SectionKind};

/// What a symbol covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    /// Offset in the section.
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Index of the symbol.
    pub(crate) symbol: u32,
}

/// The spans of each section by their starts, each with the farthest end of all up to it.
pub(crate) struct Near(BTreeMap<SectionKind, Vec<(Span, i64)>>);

impl Near {
    pub(crate) fn new(patch: &Patch) -> Near {
        let mut sections: BTreeMap<SectionKind, Vec<(Span, i64)>> = BTreeMap::new();
        for (i, symbol) in patch.symbols.iter().enumerate() {
            if let Place::Payload(kind) = symbol.place {
                let (start, end) = (symbol.value as i64, (symbol.value + symbol.size) as i64);
                sections.entry(kind).or_default().push((Span { start, end, symbol: i as u32 }, end));
            }
        }
        sections.values_mut().for_each(|spans| order(spans));
        Near(sections)
    }

    /// The symbols of a section that begin at most `ahead` bytes after an offset and do not end before it.
    pub(crate) fn to(&self, kind: SectionKind, offset: i64, ahead: i64) -> impl Iterator<Item = Span> + '_ {
        let spans = self.0.get(&kind).map_or(&[][..], Vec::as_slice);
        let from = spans.partition_point(|(span, _)| span.start <= offset + ahead);
        let near = spans[..from].iter().rev().take_while(move |(_, reach)| *reach >= offset);
        near.map(|(span, _)| *span).filter(move |span| span.end >= offset)
    }
}

fn order(spans: &mut [(Span, i64)]) {
    spans.sort_unstable();
    let mut farthest = i64::MIN;
    for (_, reach) in spans {
        farthest = farthest.max(*reach);
        *reach = farthest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long and short ones, nested and apart: the same as by looking at all of them.
    #[test]
    fn the_same_as_a_plain_search() {
        let mut state = 7u32;
        let mut next = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            i64::from((state >> 8) % below)
        };
        let mut spans = Vec::new();
        for symbol in 0..200 {
            let start = next(2000);
            let end = start + if symbol % 20 == 0 { next(900) } else { next(20) };
            spans.push((Span { start, end, symbol }, end));
        }
        let plain = spans.clone();
        order(&mut spans);
        let near = Near(BTreeMap::from([(SectionKind::Rodata, spans)]));
        for offset in -80..3000 {
            let mut found: Vec<Span> = near.to(SectionKind::Rodata, offset, 64).collect();
            found.sort_unstable();
            let is_near = |span: &Span| (span.start - 64..=span.end).contains(&offset);
            let mut wanted: Vec<Span> = plain.iter().map(|(span, _)| *span).filter(is_near).collect();
            wanted.sort_unstable();
            assert_eq!(found, wanted, "at {offset}");
        }
        assert_eq!(near.to(SectionKind::Data, 0, 64).count(), 0);
    }
}
