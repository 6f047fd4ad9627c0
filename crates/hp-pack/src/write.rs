//! From the model to the file: deterministic, one pass, sections in the order of [`Part::ALL`].

use crate::elf::*;
use crate::error::Invalid;
use crate::model::*;
use crate::parts::*;
use crate::seal::seal;
use alloc::vec::Vec;
use core::fmt;

/// Why a patch could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The patch breaks a rule of the format, or is not in canonical order.
    Invalid(Invalid),
    /// All names together are longer than 4 GiB.
    NamesTooLong,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Invalid(invalid) => write!(f, "cannot write this patch: {invalid}"),
            WriteError::NamesTooLong => f.write_str("cannot write this patch: its names are longer than 4 GiB"),
        }
    }
}

impl core::error::Error for WriteError {}

/// Serialises a canonical patch (see [`Patch::canonicalize`]), not signed. Equal patches give equal bytes.
///
/// # Errors
/// [`WriteError`] if the patch breaks a rule of [`Patch::validate`].
pub fn write(patch: &Patch) -> Result<Vec<u8>, WriteError> {
    patch.validate().map_err(WriteError::Invalid)?;
    let present: Vec<Part> = Part::ALL.into_iter().filter(|&part| is_present(patch, part)).collect();
    let (symbols, strings) = symbol_table(patch, &present).ok_or(WriteError::NamesTooLong)?;
    let mut section_names = alloc::vec![0u8];
    let mut headers = alloc::vec![SectionHeader::default()];
    let mut out = alloc::vec![0u8; EHDR_SIZE];
    for &part in &present {
        section_names.extend_from_slice(part.name().as_bytes());
        section_names.push(0);
    }
    let mut name = 1;
    for &part in &present {
        let header = place(patch, part, &present, name);
        let header = append(&mut out, header, |out| match part {
            Part::Digest => {
                out.extend_from_slice(&note_header(NT_DIGEST, 32));
                out.extend_from_slice(&[0; 32]);
            }
            Part::Signature => {
                out.extend_from_slice(&note_header(NT_SIGNATURE, SIGNATURE_SIZE as u32));
                out.extend_from_slice(&[0; SIGNATURE_SIZE]);
            }
            Part::Identity => identity(patch, out),
            Part::Payload(kind) => out.extend(patch.section(kind).iter().flat_map(|s| &s.data)),
            Part::Relocations(kind) => relocations(patch, kind, out),
            Part::Base => {}
            Part::Functions => functions(patch, out),
            Part::Manifest => out.extend_from_slice(&patch.manifest),
            Part::Symbols => out.extend_from_slice(&symbols),
            Part::Strings => out.extend_from_slice(&strings),
            Part::SectionNames => out.extend_from_slice(&section_names),
        });
        headers.push(header);
        name += part.name().len() as u32 + 1;
    }
    pad(&mut out, 8);
    let start = file_header(patch.machine, out.len() as u64, headers.len() as u16);
    out[..EHDR_SIZE].copy_from_slice(&start);
    headers.iter().for_each(|h| h.encode(&mut out));
    seal(&mut out);
    Ok(out)
}

fn is_present(patch: &Patch, part: Part) -> bool {
    match part {
        Part::Payload(kind) => patch.section(kind).is_some(),
        Part::Relocations(kind) => patch.relocations.iter().any(|r| r.section == kind),
        _ => true,
    }
}

/// ELF section number of a part; 0 (no section) if the patch does not have it.
fn number(present: &[Part], part: Part) -> u16 {
    present.iter().position(|&p| p == part).map_or(0, |i| i as u16 + 1)
}

/// The part's header, but for its offset, and its size only where it has no bytes.
fn place(patch: &Patch, part: Part, present: &[Part], name: u32) -> SectionHeader {
    let link = |part| u32::from(number(present, part));
    let payload = |f: fn(&Section) -> u64| match part {
        Part::Payload(kind) => patch.section(kind).map_or(0, f),
        _ => 0,
    };
    SectionHeader {
        name,
        kind: part.elf_type(),
        flags: part.flags(),
        size: if part == Part::Base { patch.base.span } else { payload(|s| s.size) },
        link: match part {
            Part::Relocations(_) => link(Part::Symbols),
            Part::Symbols => link(Part::Strings),
            _ => 0,
        },
        info: match part {
            Part::Relocations(kind) => link(Part::Payload(kind)),
            Part::Symbols => 1 + patch.symbols.iter().filter(|s| s.place != Place::Import).count() as u32,
            _ => 0,
        },
        align: part.align().unwrap_or_else(|| payload(|s| s.align)),
        entry_size: part.entry_size(),
        ..SectionHeader::default()
    }
}

/// Appends a section's bytes, aligned, and completes its header.
fn append(out: &mut Vec<u8>, mut header: SectionHeader, content: impl FnOnce(&mut Vec<u8>)) -> SectionHeader {
    if header.kind != SHT_NOBITS {
        pad(out, header.align as usize);
    }
    header.offset = out.len() as u64;
    content(out);
    if header.kind != SHT_NOBITS {
        header.size = out.len() as u64 - header.offset;
    }
    header
}

fn pad(out: &mut Vec<u8>, align: usize) {
    out.resize(out.len().next_multiple_of(align), 0);
}

/// `.note.hpatch`: which base this patch is for.
fn identity(patch: &Patch, out: &mut Vec<u8>) {
    let text = patch.base.build_id.len() + patch.name.len();
    let size = (IDENTITY_FIXED + text).next_multiple_of(4);
    out.extend_from_slice(&note_header(NT_IDENTITY, size as u32));
    for v in [FORMAT_MAJOR, FORMAT_MINOR, patch.machine, u16::from(patch.base.fixed_address)] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.extend_from_slice(&patch.counter.to_le_bytes());
    out.extend_from_slice(&(patch.base.build_id.len() as u32).to_le_bytes());
    out.extend_from_slice(&(patch.name.len() as u32).to_le_bytes());
    out.extend_from_slice(&patch.base.build_id);
    out.extend_from_slice(patch.name.as_bytes());
    pad(out, 4);
}

fn relocations(patch: &Patch, kind: SectionKind, out: &mut Vec<u8>) {
    for r in patch.relocations.iter().filter(|r| r.section == kind) {
        let info = (u64::from(r.symbol) + 1) << 32 | u64::from(r.kind.number());
        out.extend_from_slice(&r.offset.to_le_bytes());
        out.extend_from_slice(&info.to_le_bytes());
        out.extend_from_slice(&r.addend.to_le_bytes());
    }
}

fn functions(patch: &Patch, out: &mut Vec<u8>) {
    out.extend_from_slice(&(FUNCTION_SIZE as u32).to_le_bytes());
    out.extend_from_slice(&(patch.functions.len() as u32).to_le_bytes());
    for f in &patch.functions {
        out.extend_from_slice(&f.old_address.to_le_bytes());
        out.extend_from_slice(&f.old_size.to_le_bytes());
        out.extend_from_slice(&f.digest);
        let (new, thunk, parent, bytes, flags) = match f.role {
            Role::Entry(e) => {
                let site = [0, e.site_offset, e.displaced, e.site_bytes.len() as u8];
                (e.new_symbol + 1, e.thunk_symbol + 1, NO_PARENT, (site, e.site_bytes), u8::from(e.may_go_on))
            }
            Role::Fragment(parent) => (0, 0, parent, ([1, 0, 0, 0], [0; 5]), 0),
        };
        for v in [new, thunk, parent] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&bytes.0);
        out.extend_from_slice(&bytes.1);
        out.extend_from_slice(&[flags, 0, 0]);
    }
}

/// `.symtab` and `.strtab`; `None` if the names do not fit.
fn symbol_table(patch: &Patch, present: &[Part]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut table = alloc::vec![0u8; SYM_SIZE];
    let mut strings = alloc::vec![0u8];
    for symbol in &patch.symbols {
        let name = if symbol.name.is_empty() { 0 } else { u32::try_from(strings.len()).ok()? };
        if name != 0 {
            strings.extend_from_slice(symbol.name.as_bytes());
            strings.push(0);
        }
        let binding = match (symbol.place, symbol.weak) {
            (Place::Import, false) => STB_GLOBAL,
            (Place::Import, true) => STB_WEAK,
            _ => STB_LOCAL,
        };
        let kind = match symbol.kind {
            SymbolKind::Function => STT_FUNC,
            SymbolKind::Object => STT_OBJECT,
            SymbolKind::Tls => STT_TLS,
            SymbolKind::Other => STT_NOTYPE,
        };
        let section = match symbol.place {
            Place::Import => SHN_UNDEF,
            Place::Base if symbol.kind == SymbolKind::Tls => SHN_ABS,
            Place::Base => number(present, Part::Base),
            Place::Payload(kind) => number(present, Part::Payload(kind)),
        };
        table.extend_from_slice(&name.to_le_bytes());
        table.extend_from_slice(&[binding << 4 | kind, 0]);
        table.extend_from_slice(&section.to_le_bytes());
        table.extend_from_slice(&symbol.value.to_le_bytes());
        table.extend_from_slice(&symbol.size.to_le_bytes());
    }
    Some((table, strings))
}
