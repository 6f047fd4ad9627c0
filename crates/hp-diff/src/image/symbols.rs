//! The symbols of an image, and where each one comes from.
//!
//! A stripped image has its symbols elsewhere: in a separate debug file, which has a
//! whole `.symtab`; or in `.gnu_debugdata`, which has those functions that `.dynsym` has not.

use object::read::elf::SectionHeader;
use object::read::elf::{ElfFile64, Sym};
use object::{Endianness, Object, ObjectSymbol, SectionIndex, SymbolKind, elf};

/// What says where a function lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The build's own `.symtab`.
    SymbolTable,
    /// `.symtab` of a separate debug file.
    DebugFile,
    /// `.symtab` in `.gnu_debugdata` (MiniDebugInfo).
    MiniDebugInfo,
    /// `.dynsym`: names that other modules bind to.
    DynamicSymbols,
    /// The range of unwind rows in `.eh_frame`; the function has no name.
    UnwindRows,
    /// Code that lies between functions; it has no name.
    Gap,
}

impl Evidence {
    /// True if the function has a name by which it can be known in another build.
    pub(crate) fn has_name(self) -> bool {
        !matches!(self, Evidence::UnwindRows | Evidence::Gap)
    }
}

/// A symbol of `.symtab`.
#[derive(Clone, Debug)]
pub(crate) struct Symbol<'a> {
    pub name: &'a str,
    pub address: u64,
    pub size: u64,
    pub kind: SymbolKind,
    /// Index of the section that it lies in.
    pub section: usize,
    /// Source file that owns a local symbol (`STT_FILE`); empty for globals.
    pub file: &'a str,
    pub local: bool,
    /// Resolver of an indirect function (`STT_GNU_IFUNC`).
    pub resolver: bool,
    pub evidence: Evidence,
}

/// True if the file's own symbol table has functions, as opposed to none or a few markers.
pub(crate) fn has_functions(elf: &ElfFile64<'_, Endianness>) -> bool {
    elf.symbols().any(|s| s.kind() == SymbolKind::Text && s.is_definition())
}

/// The symbols of `.symtab` of one file.
pub(super) fn symbols<'a>(elf: &ElfFile64<'a, Endianness>, evidence: Evidence) -> object::Result<Vec<Symbol<'a>>> {
    let table = elf.elf_symbol_table();
    read(elf, elf.symbols(), |i| table.symbol(i), evidence)
}

/// The symbols of `.dynsym`.
pub(super) fn dynamic<'a>(elf: &ElfFile64<'a, Endianness>) -> object::Result<Vec<Symbol<'a>>> {
    let table = elf.elf_dynamic_symbol_table();
    read(elf, elf.dynamic_symbols(), |i| table.symbol(i), Evidence::DynamicSymbols)
}

fn read<'a, 'f, 's>(
    elf: &'f ElfFile64<'a, Endianness>,
    table: impl Iterator<Item = object::read::elf::ElfSymbol64<'a, 'f, Endianness>>,
    raw: impl Fn(object::SymbolIndex) -> object::Result<&'s elf::Sym64<Endianness>>,
    evidence: Evidence,
) -> object::Result<Vec<Symbol<'a>>> {
    let endian = elf.endian();
    // LTO of gcc leaves symbols of sections that are not loaded: their values are no addresses.
    let sections = elf.elf_section_table();
    let is_loaded = |i: SectionIndex| sections.section(i).map_or(true, |s| s.sh_flags(endian).contains(elf::SHF_ALLOC));
    let mut symbols = Vec::new();
    let mut file = "";
    for symbol in table {
        let raw = raw(symbol.index())?;
        let name = symbol.name()?;
        if raw.st_type() == elf::STT_FILE {
            file = name;
            continue;
        }
        let local = raw.st_bind() == elf::STB_LOCAL;
        // A global symbol that the linker made local belongs to no file, wherever it is in the table.
        let hidden = matches!(raw.st_visibility(), elf::STV_HIDDEN | elf::STV_INTERNAL);
        let Some(SectionIndex(section @ 1..)) = symbol.section_index() else { continue };
        if raw.st_type() == elf::STT_SECTION || !is_loaded(SectionIndex(section)) {
            continue;
        }
        let kind = match raw.st_type() {
            elf::STT_FUNC | elf::STT_GNU_IFUNC => SymbolKind::Text,
            elf::STT_OBJECT => SymbolKind::Data,
            elf::STT_TLS => SymbolKind::Tls,
            _ => SymbolKind::Unknown,
        };
        symbols.push(Symbol {
            name,
            address: raw.st_value(endian),
            // No further than to the last address.
            size: raw.st_size(endian).min(!raw.st_value(endian)),
            kind,
            section,
            file: if local && !hidden { file } else { "" },
            local,
            resolver: raw.st_type() == elf::STT_GNU_IFUNC,
            evidence,
        });
    }
    Ok(symbols)
}
