//! What goes into the linker: sections, symbols and relocations of object files.

use std::collections::HashMap;
use std::path::Path;

use object::read::archive::ArchiveFile;
use object::read::elf::{ElfFile64, SectionHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionFlags, elf};

pub(crate) struct ObjectFile {
    pub(crate) sections: Vec<Section>,
    pub(crate) symbols: Vec<Symbol>,
}

pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) allocated: bool,
    pub(crate) executable: bool,
    /// Size of what the linker merges here; 0 if it does not.
    pub(crate) merged: u64,
    pub(crate) strings: bool,
    pub(crate) relocations: Vec<Relocation>,
}

pub(crate) struct Relocation {
    pub(crate) offset: u64,
    pub(crate) kind: u32,
    pub(crate) symbol: usize,
    pub(crate) addend: i64,
}

pub(crate) struct Symbol {
    pub(crate) name: String,
    /// Index in `sections`; `None` if it is defined elsewhere.
    pub(crate) section: Option<usize>,
    pub(crate) value: u64,
    pub(crate) size: u64,
    pub(crate) is_section: bool,
    pub(crate) local: bool,
}

/// Reads an object file, or one member of an archive: `path(member)`. `None` if there are several of that name.
pub(crate) fn read(name: &str, directory: &Path) -> Option<ObjectFile> {
    let (path, member) = match name.strip_suffix(')').and_then(|n| n.rsplit_once('(')) {
        Some((path, member)) => (path, Some(member)),
        None => (name, None),
    };
    let data = std::fs::read(directory.join(path)).ok()?;
    let Some(member) = member else { return Some(parse(&data)) };
    let archive = ArchiveFile::parse(&*data).ok()?;
    let mut found = archive.members().flatten().filter(|m| m.name() == member.as_bytes());
    let only = found.next()?;
    found.next().is_none().then(|| parse(only.data(&*data).unwrap()))
}

fn parse(data: &[u8]) -> ObjectFile {
    let file = ElfFile64::<Endianness>::parse(data).unwrap();
    let mut index = HashMap::new();
    let mut sections = Vec::new();
    for section in file.sections() {
        index.insert(section.index(), sections.len());
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { panic!() };
        let merged = sh_flags.contains(elf::SHF_MERGE);
        let strings = sh_flags.contains(elf::SHF_STRINGS);
        let relocations: Vec<Relocation> = section
            .relocations()
            .filter_map(|(offset, r)| match (r.target(), r.flags()) {
                (RelocationTarget::Symbol(symbol), RelocationFlags::Elf { r_type }) => {
                    Some(Relocation { offset, kind: r_type.0, symbol: symbol.0, addend: r.addend() })
                }
                _ => None,
            })
            .collect();
        // Constants that hold addresses are told apart by those, and no linker merges them.
        let merged = merged && relocations.is_empty();
        sections.push(Section {
            name: section.name().unwrap().to_owned(),
            size: section.size(),
            data: section.data().unwrap_or_default().to_vec(),
            allocated: sh_flags.contains(elf::SHF_ALLOC),
            executable: sh_flags.contains(elf::SHF_EXECINSTR),
            merged: if merged { section.elf_section_header().sh_entsize(file.endian()) } else { 0 },
            strings,
            relocations,
        });
    }
    let mut symbols = Vec::new();
    for symbol in file.symbols() {
        symbols.resize_with(symbol.index().0.max(symbols.len()), Symbol::none);
        symbols.push(Symbol {
            name: symbol.name().unwrap_or_default().to_owned(),
            section: symbol.section_index().and_then(|i| index.get(&i).copied()),
            value: symbol.address(),
            size: symbol.size(),
            is_section: symbol.kind() == object::SymbolKind::Section,
            local: symbol.is_local(),
        });
    }
    ObjectFile { sections, symbols }
}

impl Symbol {
    fn none() -> Symbol {
        Symbol { name: String::new(), section: None, value: 0, size: 0, is_section: false, local: true }
    }
}
