//! The patch laid over its base at several load addresses, relocated by the rules of the format.
//!
//! What a relocated field means must not depend on where things happen to lie. So the judge looks at several
//! layouts of memory at once, reads each field as the processor would, and translates the address back into a
//! [`Place`]. A field that is not the same place in every layout leads nowhere.

use hp_pack::{Patch, Place as SymbolPlace, RelocationKind, SectionKind};

use crate::report::Fault;

/// Where an address of the patched process lies, whatever the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Link-time address in the base.
    Base(u64),
    /// Offset in (or shortly before or behind) a section of the payload.
    Payload(SectionKind, i64),
    /// An imported symbol, by index, and an offset from it.
    Import(u32, i64),
    /// The pointer slot that the applier makes for this symbol.
    Slot(u32),
    /// The stub that it makes for calls to this import.
    Stub(u32),
    /// Somewhere else.
    Nowhere(u64),
}

impl Place {
    /// The place so many bytes behind this one.
    pub(crate) fn behind(self, bytes: u64) -> Place {
        self.before(bytes.wrapping_neg())
    }

    /// The place so many bytes before this one.
    pub(crate) fn before(self, bytes: u64) -> Place {
        match self {
            Place::Base(at) => Place::Base(at.wrapping_sub(bytes)),
            Place::Payload(kind, at) => Place::Payload(kind, at.wrapping_sub_unsigned(bytes)),
            other => other,
        }
    }
}

/// Distance between things that must not be mistaken for each other.
const GAP: u64 = 1 << 16;
/// How far outside of a section an address still belongs to it (`&a[i - 1]`).
const SLACK: u64 = 1 << 12;

/// One layout of memory.
#[derive(Debug)]
pub(crate) struct Layout {
    bias: u64,
    span: u64,
    sections: Vec<Section>,
    slots: u64,
    stubs: u64,
    imports: u64,
    symbols: u64,
}

#[derive(Debug)]
struct Section {
    kind: SectionKind,
    address: u64,
    size: u64,
    bytes: Vec<u8>,
}

/// The patch in every layout.
///
/// # Errors
/// Relocations whose value does not fit.
pub(crate) fn lay(patch: &Patch) -> Result<Vec<Layout>, Vec<Fault>> {
    let size: u64 = patch.sections.iter().map(|s| s.size.next_multiple_of(GAP) + 2 * GAP).sum::<u64>()
        + 2 * (patch.symbols.len() as u64 * 8).next_multiple_of(GAP)
        + 4 * GAP;
    let span = patch.base.span.next_multiple_of(GAP);
    // The farthest that 32 bits reach, with room for the payload and the base.
    let far = (1u64 << 31).saturating_sub(span + size + (1 << 20)) / GAP * GAP;
    let places: Vec<(u64, u64)> = if patch.base.fixed_address {
        vec![(0, span + (1 << 20)), (0, span + (1 << 20) + far.min(1 << 28))]
    } else {
        let (low, high) = (0x5555_5555_4000, 0x7f3a_1234_5000_u64);
        vec![
            (low, low + span + (1 << 20)),
            (high, high - size.next_multiple_of(GAP) - far / 2),
            (1 << 33, (1 << 33) + span + far),
        ]
    };
    let mut faults = Vec::new();
    let layouts = places.into_iter().map(|(bias, at)| Layout::new(patch, bias, at, &mut faults)).collect();
    if faults.is_empty() { Ok(layouts) } else { Err(faults) }
}

impl Layout {
    fn new(patch: &Patch, bias: u64, start: u64, faults: &mut Vec<Fault>) -> Layout {
        let mut at = start.next_multiple_of(4096);
        let mut take = |size: u64| {
            let here = at;
            at += size.next_multiple_of(GAP) + GAP;
            here
        };
        let symbols = patch.symbols.len() as u64;
        let (slots, stubs) = (take(symbols * 8), take(symbols * 8));
        let sections = patch.sections.iter().map(|s| {
            let bytes = if s.data.is_empty() { vec![0; s.size as usize] } else { s.data.clone() };
            Section { kind: s.kind, address: take(s.size), size: s.size, bytes }
        });
        let sections = sections.collect();
        let mut layout =
            Layout { bias, span: patch.base.span, sections, slots, stubs, imports: 0x7fff_0000_0000_0000, symbols };
        for relocation in &patch.relocations {
            let Some(section) = layout.sections.iter().position(|s| s.kind == relocation.section) else { continue };
            let place = layout.sections[section].address + relocation.offset;
            match layout.field(patch, relocation, place) {
                Some(field) => {
                    let from = relocation.offset as usize;
                    layout.sections[section].bytes[from..from + field.len()].copy_from_slice(&field);
                }
                None => faults.push(Fault::new(
                    "relocation",
                    format!("{}+{:#x}", relocation.section.name(), relocation.offset),
                    format!("its value does not fit where the base lies at {bias:#x}"),
                )),
            }
        }
        layout
    }

    /// The bytes of a relocated field (docs/FORMAT.md, "Relocations").
    fn field(&self, patch: &Patch, relocation: &hp_pack::Relocation, place: u64) -> Option<Vec<u8>> {
        let symbol = patch.symbols.get(relocation.symbol as usize)?;
        let index = u64::from(relocation.symbol);
        let value = match symbol.place {
            SymbolPlace::Base => self.bias.wrapping_add(symbol.value),
            SymbolPlace::Payload(kind) => self.address(kind)?.wrapping_add(symbol.value),
            SymbolPlace::Import => self.imports + index * GAP,
        };
        let target = match relocation.kind {
            RelocationKind::GotPcRel => self.slots + index * 8,
            RelocationKind::Plt32 if symbol.place == SymbolPlace::Import => self.stubs + index * 8,
            _ => value,
        };
        let absolute = target.wrapping_add_signed(relocation.addend);
        let distance = absolute.wrapping_sub(place) as i64;
        Some(match relocation.kind {
            RelocationKind::Abs64 => absolute.to_le_bytes().to_vec(),
            RelocationKind::Pc64 => distance.to_le_bytes().to_vec(),
            RelocationKind::Pc32 | RelocationKind::Plt32 | RelocationKind::GotPcRel => {
                i32::try_from(distance).ok()?.to_le_bytes().to_vec()
            }
            RelocationKind::Abs32 => u32::try_from(absolute).ok()?.to_le_bytes().to_vec(),
            RelocationKind::Abs32Signed => i32::try_from(absolute as i64).ok()?.to_le_bytes().to_vec(),
        })
    }

    /// Where a section of the payload lies.
    pub(crate) fn address(&self, kind: SectionKind) -> Option<u64> {
        self.sections.iter().find(|s| s.kind == kind).map(|s| s.address)
    }

    /// Relocated bytes from an offset to the end of a section.
    pub(crate) fn bytes_from(&self, kind: SectionKind, offset: u64) -> &[u8] {
        let section = self.sections.iter().find(|s| s.kind == kind);
        section.and_then(|s| s.bytes.get(usize::try_from(offset).ok()?..)).unwrap_or_default()
    }

    /// Translates an address of this layout back.
    pub(crate) fn place(&self, address: u64) -> Place {
        if (self.bias..=self.bias + self.span).contains(&address) {
            return Place::Base(address - self.bias);
        }
        for section in &self.sections {
            if (section.address - SLACK..=section.address + section.size + SLACK).contains(&address) {
                return Place::Payload(section.kind, address.wrapping_sub(section.address) as i64);
            }
        }
        let table = |start: u64| {
            let offset = address.checked_sub(start).filter(|o| o % 8 == 0 && o / 8 < self.symbols)?;
            Some((offset / 8) as u32)
        };
        if let Some(symbol) = table(self.slots) {
            return Place::Slot(symbol);
        }
        if let Some(symbol) = table(self.stubs) {
            return Place::Stub(symbol);
        }
        let distance = address.checked_add(SLACK).and_then(|a| a.checked_sub(self.imports));
        if let Some(distance) = distance.filter(|d| d / GAP < self.symbols) {
            return Place::Import((distance / GAP) as u32, (distance % GAP) as i64 - SLACK as i64);
        }
        Place::Nowhere(address)
    }
}
