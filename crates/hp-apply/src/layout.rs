//! Where each part of a payload lies in its one mapping:
//!
//! `[ledger][constants, unwind rows, pointer slots, state byte, next words] r--`
//! `[code, thunks, import stubs, choosers, finders, gates, takeover] r-x` `[variables] rw-`
//!
//! Offsets are from the start of the mapping; they depend on the patch alone, not on the
//! address, so a mapping found in a target can be compared with the patch.

use crate::addr::{LiveAddr, LiveRange, page_ceil};
use crate::chooser::{CHOOSER_SIZE, COMMON_SIZE};
use crate::failure::{Failure, refused};
use crate::finders::{CODE_SIZE, FINDER_ROWS, NEXT_SIZE, ROWS_SIZE, count_rows, index_size};
use crate::gate::GATE_SIZE;
use crate::ledger::CLAIM_SIZE;
use crate::small::{Map, Set};
use hp_pack::{Patch, Place, RelocationKind, Role, SectionKind};

/// Size of one import stub: `jmp *slot(%rip)` and two bytes of filling.
pub(crate) const STUB_SIZE: u64 = 8;
/// Largest payload.
const MAX_SIZE: u64 = 1 << 30;

/// Offsets in the mapping of a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    sections: Map<SectionKind, (u64, u64)>,
    /// Pointer slot of each symbol that needs one.
    slots: Map<u32, u64>,
    /// Import stub of each symbol that needs one.
    stubs: Map<u32, u64>,
    /// Chooser of each symbol that may be an indirect function and is only called.
    choosers: Map<u32, u64>,
    /// What they share.
    pub(crate) choosers_common: u64,
    /// Start of the constants, which end where the code begins or earlier.
    pub(crate) constants: (u64, u64),
    pub(crate) code: (u64, u64),
    /// Rows of the finders, directly before the patch's own.
    pub(crate) finder_rows: (u64, u64),
    /// What the finders show.
    pub(crate) index: (u64, u64),
    pub(crate) finders: (u64, u64),
    /// Where the finders pass on to.
    pub(crate) nexts: (u64, u64),
    /// At the end of the code: one gate for each replaced entry, in order.
    pub(crate) gates: (u64, u64),
    /// Behind them, if older patches are taken over: see `takeover`.
    pub(crate) takeover: (u64, u64),
    pub(crate) variables: (u64, u64),
    pub(crate) state: u64,
    pub(crate) size: u64,
}

impl Layout {
    /// Lays out a patch behind a ledger of this many bytes, with this much room for a takeover.
    pub(crate) fn of(patch: &Patch, ledger_size: u64, takeover_size: u64) -> Result<Layout, Failure> {
        Self::try_of(patch, ledger_size, takeover_size)
            .filter(|layout| layout.size <= MAX_SIZE)
            .ok_or_else(|| refused(format_args!("the patch is larger than 1 GiB")))
    }

    fn try_of(patch: &Patch, ledger_size: u64, takeover_size: u64) -> Option<Layout> {
        let mut layout = Layout::default();
        // The claim takes the end of the ledger's pages.
        let mut at = page_ceil(ledger_size.checked_add(CLAIM_SIZE as u64)?)?;
        layout.constants.0 = at;
        for kind in [SectionKind::Rodata, SectionKind::DataRelRo] {
            layout.put(patch, kind, &mut at)?;
        }
        // The rows of the patch begin where those of the finders end.
        let align = patch.section(SectionKind::EhFrame).map_or(8, |section| section.align.max(8));
        at = at.checked_add(ROWS_SIZE)?.checked_next_multiple_of(align)? - ROWS_SIZE;
        layout.finder_rows = take(&mut at, ROWS_SIZE)?;
        for kind in [SectionKind::EhFrame, SectionKind::ExceptTable] {
            layout.put(patch, kind, &mut at)?;
        }
        at = at.checked_next_multiple_of(8)?;
        let rows = patch.section(SectionKind::EhFrame).map_or(0, |s| count_rows(&s.data));
        layout.index = take(&mut at, index_size(rows + FINDER_ROWS))?;
        at = at.checked_next_multiple_of(8)?;
        let (slots, stubs) = needed(patch);
        for &symbol in slots.iter() {
            layout.slots.insert(symbol, at);
            at = at.checked_add(8)?;
        }
        layout.constants.1 = at;
        layout.state = at;
        layout.sections.insert(SectionKind::State, (at, 1));
        at = at.checked_add(1)?.checked_next_multiple_of(8)?;
        layout.nexts = take(&mut at, NEXT_SIZE)?;
        at = page_ceil(at)?;
        layout.code.0 = at;
        for kind in [SectionKind::Text, SectionKind::Thunks] {
            layout.put(patch, kind, &mut at)?;
        }
        at = at.checked_next_multiple_of(STUB_SIZE)?;
        for &symbol in stubs.iter() {
            layout.stubs.insert(symbol, at);
            at = at.checked_add(STUB_SIZE)?;
        }
        layout.choosers_common = at;
        if slots.iter().any(|&symbol| is_import(patch, symbol)) {
            at = at.checked_add(COMMON_SIZE)?;
        }
        for &symbol in slots.iter().filter(|&&symbol| is_import(patch, symbol)) {
            layout.choosers.insert(symbol, at);
            at = at.checked_add(CHOOSER_SIZE)?;
        }
        layout.finders = take(&mut at, CODE_SIZE)?;
        layout.gates.0 = at;
        let entries = patch.functions.iter().filter(|record| matches!(record.role, Role::Entry(_))).count() as u64;
        at = at.checked_add(entries.checked_mul(GATE_SIZE)?)?;
        layout.gates.1 = at;
        layout.takeover = (at, at.checked_add(takeover_size)?);
        at = layout.takeover.1;
        layout.code.1 = at;
        at = page_ceil(at)?;
        layout.variables.0 = at;
        for kind in [SectionKind::Data, SectionKind::Bss] {
            layout.put(patch, kind, &mut at)?;
        }
        layout.variables.1 = at;
        layout.size = page_ceil(at)?;
        Some(layout)
    }

    fn put(&mut self, patch: &Patch, kind: SectionKind, at: &mut u64) -> Option<()> {
        if let Some(section) = patch.section(kind) {
            *at = at.checked_next_multiple_of(section.align)?;
            self.sections.insert(kind, (*at, section.size));
            *at = at.checked_add(section.size)?;
        }
        Some(())
    }

    /// Offset and size of a section; an empty one at the start where the patch has none.
    pub(crate) fn section(&self, kind: SectionKind) -> (u64, u64) {
        self.sections.get(&kind).copied().unwrap_or_default()
    }

    /// The same, in a mapping that starts at `base`.
    pub(crate) fn live(&self, base: LiveAddr, kind: SectionKind) -> LiveRange {
        match self.sections.get(&kind) {
            Some(&(offset, size)) => base.plus(offset).range(size),
            None => LiveRange::default(),
        }
    }

    pub(crate) fn slot(&self, symbol: u32) -> Option<u64> {
        self.slots.get(&symbol).copied()
    }

    pub(crate) fn stub(&self, symbol: u32) -> Option<u64> {
        self.stubs.get(&symbol).copied()
    }

    pub(crate) fn chooser(&self, symbol: u32) -> Option<u64> {
        self.choosers.get(&symbol).copied()
    }

    pub(crate) fn choosers(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.choosers.iter().map(|(&symbol, &offset)| (symbol, offset))
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.slots.iter().map(|(&symbol, &offset)| (symbol, offset))
    }

    pub(crate) fn stubs(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.stubs.iter().map(|(&symbol, &offset)| (symbol, offset))
    }
}

/// The next `size` bytes.
fn take(at: &mut u64, size: u64) -> Option<(u64, u64)> {
    let start = *at;
    *at = at.checked_add(size)?;
    Some((start, *at))
}

fn is_import(patch: &Patch, symbol: u32) -> bool {
    patch.symbols.get(symbol as usize).is_some_and(|s| s.place == Place::Import)
}

/// The symbols that need a pointer slot, and those that need an import stub too.
fn needed(patch: &Patch) -> (Set<u32>, Set<u32>) {
    let mut slots = Set::new();
    let mut stubs = Set::new();
    for relocation in &patch.relocations {
        match relocation.kind {
            RelocationKind::GotPcRel => {
                slots.insert(relocation.symbol);
            }
            RelocationKind::Plt32 if is_import(patch, relocation.symbol) => {
                slots.insert(relocation.symbol);
                stubs.insert(relocation.symbol);
            }
            _ => {}
        }
    }
    (slots, stubs)
}
