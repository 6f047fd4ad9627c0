//! Opening the DWARF of a build: one place that knows how debug sections lie in a file.
//!
//! Sections may be compressed (`SHF_COMPRESSED` or the older `.zdebug_*`), of either byte order, and in a
//! relocatable object they still wait for their relocations: there a name is the string at offset 0 until the
//! relocation is applied, so reading such sections as they lie would make every type equal to every other.
//!
//! A supplementary file (`.gnu_debugaltlink`, made by `dwz`) has units that those of the main file refer to.
//!
//! Not handled: split DWARF (`.dwo`, `.dwp`). Readers report it.

use gimli::{Abbreviations, DebugAbbrevOffset, DwarfSections, RunTimeEndian, SectionId};
use object::{CompressionFormat, Object, ObjectKind, ObjectSection, ObjectSymbol, RelocationKind, RelocationTarget};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

/// How the rest of the crate reads DWARF: slices of the sections, so names borrow from them.
pub(crate) type Reader<'d> = gimli::EndianSlice<'d, RunTimeEndian>;

/// What types, variables and functions need; location and range lists stay untouched (and compressed).
pub(crate) const DESCRIPTIONS: &[SectionId] = &[
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
    SectionId::DebugTypes,
];

/// What units need: who made them, their ranges of code and their lines.
pub(crate) const UNITS: &[SectionId] = &[
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// The files that hold the debug information of a build: itself or its debug file, and what that shares with others.
#[derive(Debug)]
pub(crate) struct Source<'data> {
    pub(crate) main: object::File<'data>,
    pub(crate) supplement: Option<object::File<'data>>,
    /// For a relocatable object: where its sections were placed, by index; empty if they were not.
    pub(crate) bases: Vec<u64>,
    /// The abbreviations of the main file's units, read once for all who read units.
    abbreviations: OnceLock<Arc<Tables>>,
}

/// Tables of abbreviations, by where they lie in their section.
type Tables = Vec<(DebugAbbrevOffset, Arc<Abbreviations>)>;

impl<'data> From<object::File<'data>> for Source<'data> {
    fn from(main: object::File<'data>) -> Self {
        Source::new(main, None)
    }
}

impl<'data> Source<'data> {
    pub(crate) fn new(main: object::File<'data>, supplement: Option<object::File<'data>>) -> Self {
        Source { main, supplement, bases: Vec::new(), abbreviations: OnceLock::new() }
    }
}

/// The debug sections of one build, decompressed and relocated. [`Sections::dwarf`] borrows a reader from it.
pub(crate) struct Sections<'data> {
    sections: DwarfSections<Cow<'data, [u8]>>,
    supplement: Option<DwarfSections<Cow<'data, [u8]>>>,
    abbreviations: Arc<Tables>,
    endian: RunTimeEndian,
    relocatable: bool,
}

impl<'data> Sections<'data> {
    /// Loads those of the `wanted` sections that the file has; `None` if it has no `.debug_info`.
    ///
    /// # Errors
    /// A message naming the section that could not be read, decompressed or relocated.
    pub(crate) fn load(source: &Source<'data>, wanted: &[SectionId]) -> Result<Option<Self>, String> {
        let file = &source.main;
        if file.section_by_name(".debug_info").is_none_or(|s| s.size() == 0) {
            return Ok(None);
        }
        let endian = if file.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let load = |file: &object::File<'data>| {
            DwarfSections::load(|id| {
                if wanted.contains(&id) { content(file, id.name(), &source.bases) } else { Ok(Cow::Borrowed(&[][..])) }
            })
        };
        let sections = load(file)?;
        let supplement = source.supplement.as_ref().map(load).transpose()?;
        let read = || Arc::new(tables(&sections.borrow(|bytes| Reader::new(bytes, endian))));
        let abbreviations = Arc::clone(source.abbreviations.get_or_init(read));
        Ok(Some(Sections {
            sections,
            supplement,
            abbreviations,
            endian,
            relocatable: file.kind() == ObjectKind::Relocatable && source.bases.is_empty(),
        }))
    }

    /// A reader over the loaded sections.
    pub(crate) fn dwarf(&self) -> gimli::Dwarf<Reader<'_>> {
        let mut dwarf = self.sections.borrow(|bytes| Reader::new(bytes, self.endian));
        for (offset, table) in self.abbreviations.iter() {
            dwarf.abbreviations_cache.set::<Reader<'_>>(*offset, Arc::clone(table));
        }
        if let Some(supplement) = self.supplement() {
            dwarf.set_sup(supplement);
        }
        dwarf
    }

    /// A reader over the supplementary file, if there is one.
    pub(crate) fn supplement(&self) -> Option<gimli::Dwarf<Reader<'_>>> {
        self.supplement.as_ref().map(|s| s.borrow(|bytes| Reader::new(bytes, self.endian)))
    }

    /// True for an object file whose sections have no place: its addresses are offsets in sections.
    pub(crate) fn relocatable(&self) -> bool {
        self.relocatable
    }
}

/// The abbreviations of all units. Who reads a unit whose table is malformed says so.
fn tables(dwarf: &gimli::Dwarf<Reader<'_>>) -> Tables {
    let (mut offsets, mut units) = (Vec::new(), dwarf.units());
    while let Ok(Some(header)) = units.next() {
        offsets.push(header.debug_abbrev_offset());
    }
    offsets.sort_unstable_by_key(|offset| offset.0);
    offsets.dedup();
    let table = |offset| Some((offset, Arc::new(dwarf.debug_abbrev.abbreviations(offset).ok()?)));
    offsets.into_par_iter().filter_map(table).collect()
}

/// One section's bytes as the linker would have left them; empty if the file has no such section.
fn content<'data>(file: &object::File<'data>, name: &str, bases: &[u64]) -> Result<Cow<'data, [u8]>, String> {
    let Some(section) = file.section_by_name(name) else { return Ok(Cow::Borrowed(&[])) };
    let failed = |e: object::Error| format!("section {name} cannot be read: {e}");
    let compressed = section.compressed_data().map_err(failed)?;
    // The header's word alone must not make us allocate: no more than the format can pack into so many bytes.
    let densest = match compressed.format {
        CompressionFormat::Zlib => 1032,
        _ => 1 << 16,
    };
    if compressed.format != CompressionFormat::None
        && compressed.uncompressed_size / densest > compressed.data.len() as u64 + 1
    {
        return Err(format!("section {name} claims {} bytes, more than it can hold", compressed.uncompressed_size));
    }
    let mut bytes = compressed.decompress().map_err(failed)?;
    if file.kind() == ObjectKind::Relocatable {
        relocate(file, &section, bytes.to_mut(), bases).map_err(|what| format!("section {name}: {what}"))?;
    }
    Ok(bytes)
}

/// Applies a relocatable object's absolute relocations, all that debug sections use on x86-64 and aarch64.
fn relocate(
    file: &object::File<'_>,
    section: &object::Section<'_, '_>,
    bytes: &mut [u8],
    bases: &[u64],
) -> Result<(), String> {
    for (offset, relocation) in section.relocations() {
        let base = match relocation.target() {
            RelocationTarget::Symbol(index) => match file.symbol_by_index(index) {
                Ok(symbol) => {
                    let place = symbol.section_index().and_then(|s| bases.get(s.0));
                    symbol.address().wrapping_add(place.copied().unwrap_or(0))
                }
                Err(e) => return Err(format!("relocation at {offset:#x}: {e}")),
            },
            _ => 0,
        };
        let width = match relocation.size() {
            32 => 4,
            64 => 8,
            _ => 0,
        };
        let field = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at..at.checked_add(width)?));
        match (relocation.kind(), field) {
            (RelocationKind::None, _) => {}
            (RelocationKind::Absolute, Some(field)) if width != 0 && !relocation.has_implicit_addend() => {
                let value = base.wrapping_add_signed(relocation.addend());
                if file.is_little_endian() {
                    field.copy_from_slice(&value.to_le_bytes()[..width]);
                } else {
                    field.copy_from_slice(&value.to_be_bytes()[8 - width..]);
                }
            }
            // Thread-local offsets and the like: they say where a variable lies, never what a type is.
            (_, Some(_)) => {}
            (_, None) => return Err(format!("relocation at {offset:#x} lies outside of it")),
        }
    }
    Ok(())
}
