//! One build, opened: the facts of an ELF image that later stages ask for.
//!
//! Everything is indexed by *link-time address*. Dynamic relocations are folded into one
//! map from the address of a word to what the dynamic linker puts there, PLT stubs into
//! a map from stub to GOT slot, so that no later stage has to know about ELF tables.

use std::collections::BTreeMap;
use std::path::Path;

use object::elf;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SectionFlags, SectionIndex, SymbolKind};

use crate::Error;
use crate::arch;

/// A loadable section.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    pub name: &'a str,
    pub address: u64,
    pub size: u64,
    /// Bytes in the file; empty for `SHT_NOBITS`.
    pub data: &'a [u8],
    pub executable: bool,
    pub writable: bool,
    pub tls: bool,
}

impl Section<'_> {
    pub(crate) fn end(&self) -> u64 {
        self.address + self.size
    }

    /// Code and data that the program refers to, as opposed to tables for the dynamic
    /// linker and the unwinder.
    pub(crate) fn is_content(&self) -> bool {
        !self.tls
            && !matches!(
                self.name,
                ".interp" | ".hash" | ".gnu.hash" | ".dynsym" | ".dynstr" | ".eh_frame" | ".eh_frame_hdr" | ".dynamic"
            )
            && !self.name.starts_with(".note")
            && !self.name.starts_with(".rel")
            && !self.name.starts_with(".gnu.version")
            && !self.name.starts_with(".gcc_except_table")
    }
}

/// A symbol of `.symtab`.
#[derive(Clone, Debug)]
pub(crate) struct Symbol<'a> {
    pub name: &'a str,
    pub address: u64,
    pub size: u64,
    pub kind: SymbolKind,
    /// Source file that owns a local symbol (`STT_FILE`); empty for globals.
    pub file: &'a str,
    pub local: bool,
}

/// What the dynamic linker puts into a word of the image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    /// Load bias plus this link-time address.
    Address(u64),
    /// Address of a symbol, by `name@VERSION`, plus an addend.
    Symbol(String, i64),
    /// Result of the resolver at this address.
    Resolver(u64),
    /// A thread-local quantity: relocation type, symbol (may be empty), addend.
    Tls(u32, String, i64),
    /// Start of a variable copied from a library: `name@VERSION`.
    Copy(String),
    /// Some other type, by number.
    Other(u32, String, i64),
}

/// An opened image.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    pub file: object::File<'a>,
    pub file_name: String,
    pub build_id: Vec<u8>,
    /// `ET_EXEC`.
    pub fixed_address: bool,
    /// Start of the lowest `PT_LOAD`.
    pub start: u64,
    /// End of the highest `PT_LOAD`.
    pub span: u64,
    pub sections: Vec<Section<'a>>,
    pub symbols: Vec<Symbol<'a>>,
    /// Names that the dynamic symbol table defines, for other modules to bind to.
    pub exported: rustc_hash::FxHashSet<&'a str>,
    /// Names (`name@VERSION`) that it imports.
    pub imported: Vec<String>,
    /// Those of them that may stay unresolved.
    pub weak: rustc_hash::FxHashSet<String>,
    /// Every dynamic relocation, by address.
    pub words: BTreeMap<u64, Word>,
    /// PLT stub address to GOT slot address.
    pub stubs: BTreeMap<u64, u64>,
    /// Resolvers of indirect functions (`STT_GNU_IFUNC`).
    pub resolvers: Vec<u64>,
    /// The code itself is relocated at load time.
    pub text_relocations: bool,
    /// The TLS segment: address, file size, memory size, alignment.
    pub tls: Option<(u64, u64, u64, u64)>,
    /// `.comment`: which compilers made the image.
    pub compilers: Vec<String>,
}

impl<'a> Image<'a> {
    /// Parses `data`, the content of the file at `path`.
    pub(crate) fn parse(path: &Path, data: &'a [u8]) -> Result<Image<'a>, Error> {
        let bad = |reason: String| Error::Input { path: path.to_owned(), reason };
        check_header(data).map_err(bad)?;
        let malformed = |e: object::Error| bad(format!("malformed ELF file ({e}); is it complete?"));
        let elf = ElfFile64::<Endianness>::parse(data).map_err(malformed)?;
        let endian = elf.endian();
        let header = elf.elf_header();
        match header.e_type(endian) {
            elf::ET_EXEC | elf::ET_DYN => {}
            elf::ET_REL => {
                return Err(bad("is a relocatable object; give the linked program or shared object".into()));
            }
            t => return Err(bad(format!("has ELF type {}; give a program or a shared object", t.0))),
        }
        let (mut start, mut span) = (u64::MAX, 0);
        let mut tls = None;
        for segment in elf.elf_program_headers() {
            let (address, size) = (segment.p_vaddr(endian), segment.p_memsz(endian));
            let end =
                address.checked_add(size).ok_or_else(|| bad("a segment wraps around the address space".into()))?;
            match segment.p_type(endian) {
                elf::PT_LOAD => {
                    segment
                        .data(endian, data)
                        .map_err(|()| bad("a loadable segment lies outside of the file; is it truncated?".into()))?;
                    span = span.max(end);
                    start = start.min(address);
                }
                elf::PT_TLS => {
                    tls = Some((address, segment.p_filesz(endian), size, segment.p_align(endian)));
                }
                _ => {}
            }
        }
        if span == 0 {
            return Err(bad("has no loadable segment; is it a debug file? give the program itself".into()));
        }
        let mut image = Image {
            file: object::File::parse(data).map_err(malformed)?,
            file_name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            build_id: elf.build_id().map_err(malformed)?.unwrap_or_default().to_vec(),
            fixed_address: header.e_type(endian) == elf::ET_EXEC,
            start,
            span,
            sections: sections(&elf, &bad)?,
            symbols: symbols(&elf).map_err(malformed)?,
            exported: elf.dynamic_symbols().filter(|s| s.is_definition()).filter_map(|s| s.name().ok()).collect(),
            imported: Vec::new(),
            weak: Default::default(),
            words: BTreeMap::new(),
            stubs: BTreeMap::new(),
            resolvers: elf
                .elf_symbol_table()
                .iter()
                .filter(|s| s.st_type() == elf::STT_GNU_IFUNC)
                .map(|s| s.st_value(endian))
                .collect(),
            text_relocations: false,
            tls,
            compilers: Vec::new(),
        };
        image.read_relocations(&elf).map_err(malformed)?;
        image.fill_static_slots();
        image.stubs = image
            .sections
            .iter()
            .filter(|s| s.executable && (s.name.starts_with(".plt") || s.name == ".iplt"))
            .flat_map(|s| arch::plt_stubs(s.address, s.data))
            .filter(|(_, slot)| image.words.contains_key(slot))
            .collect();
        if let Some(comment) = elf.section_by_name(".comment") {
            let text = comment.data().map_err(malformed)?;
            image.compilers = text
                .split(|b| *b == 0)
                .filter(|s| !s.is_empty())
                .map(|s| String::from_utf8_lossy(s).into_owned())
                .collect();
            image.compilers.sort();
        }
        Ok(image)
    }

    fn read_relocations(&mut self, elf: &ElfFile64<'a, Endianness>) -> object::Result<()> {
        let (endian, data) = (elf.endian(), elf.data());
        let table = elf.elf_section_table();
        let versions = table.versions(endian, data)?;
        let dynsyms = elf.elf_dynamic_symbol_table();
        let name_of = |index: object::SymbolIndex| -> object::Result<String> {
            if index.0 == 0 {
                return Ok(String::new());
            }
            let symbol = dynsyms.symbol(index)?;
            let name = String::from_utf8_lossy(dynsyms.symbol_name(endian, symbol)?).into_owned();
            let version = match &versions {
                Some(v) => v.version(v.version_index(endian, index).index())?,
                None => None,
            };
            Ok(match version {
                Some(v) if symbol.st_shndx(endian) == elf::SHN_UNDEF => {
                    format!("{name}@{}", String::from_utf8_lossy(v.name()))
                }
                _ => name,
            })
        };
        for (index, symbol) in dynsyms.enumerate() {
            if symbol.st_shndx(endian) == elf::SHN_UNDEF {
                let name = name_of(index)?;
                if symbol.st_bind() == elf::STB_WEAK {
                    self.weak.insert(name.clone());
                }
                self.imported.push(name);
            }
        }
        for section in table.iter() {
            let allocated = section.sh_flags(endian).contains(elf::SHF_ALLOC);
            if let (true, Some((relas, _))) = (allocated, section.rela(endian, data)?) {
                for rela in relas {
                    let address = rela.r_offset(endian);
                    let addend = rela.r_addend(endian);
                    let kind = rela.r_type(endian, false);
                    let symbol = || name_of(object::SymbolIndex(rela.r_sym(endian, false) as usize));
                    let word = match kind {
                        elf::R_X86_64_RELATIVE => Word::Address(addend as u64),
                        elf::R_X86_64_IRELATIVE => Word::Resolver(addend as u64),
                        elf::R_X86_64_64 | elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT => {
                            Word::Symbol(symbol()?, addend)
                        }
                        elf::R_X86_64_COPY => Word::Copy(copied_name(elf, rela, &name_of)?),
                        elf::R_X86_64_DTPMOD64
                        | elf::R_X86_64_DTPOFF64
                        | elf::R_X86_64_TPOFF64
                        | elf::R_X86_64_TLSDESC => Word::Tls(kind.0, symbol()?, addend),
                        other => Word::Other(other.0, symbol()?, addend),
                    };
                    self.words.insert(address, word);
                }
            }
        }
        self.read_relr(elf)?;
        self.text_relocations = self
            .sections
            .iter()
            .filter(|s| s.executable)
            .any(|s| self.words.range(s.address..s.end()).next().is_some());
        Ok(())
    }

    /// In a position-dependent image the linker itself fills GOT slots in, without a
    /// dynamic relocation: with an address, or with a thread-local offset.
    fn fill_static_slots(&mut self) {
        if !self.fixed_address {
            return;
        }
        for section in self.sections.iter().filter(|s| s.name.starts_with(".got")) {
            for (i, word) in section.data.chunks_exact(8).enumerate() {
                let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
                let word = if (self.start..self.span).contains(&value) {
                    Word::Address(value)
                } else {
                    Word::Other(elf::R_X86_64_NONE.0, String::new(), value as i64)
                };
                self.words.entry(section.address + 8 * i as u64).or_insert(word);
            }
        }
    }

    /// `DT_RELR`: relative relocations packed as addresses and bitmaps (gABI, "Relative
    /// relocation table"). The addend is the word itself.
    fn read_relr(&mut self, elf: &ElfFile64<'a, Endianness>) -> object::Result<()> {
        let Some(section) = elf.section_by_name(".relr.dyn") else { return Ok(()) };
        let mut next = 0u64;
        let mut found = Vec::new();
        for entry in section.data()?.chunks_exact(8) {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            if entry & 1 == 0 {
                found.push(entry);
                next = entry.wrapping_add(8);
            } else {
                found.extend((0..63).filter(|i| entry >> (i + 1) & 1 == 1).map(|i| next.wrapping_add(8 * i)));
                next = next.wrapping_add(8 * 63);
            }
        }
        for address in found {
            if let Some(value) = self.u64_at(address) {
                self.words.insert(address, Word::Address(value));
            }
        }
        Ok(())
    }

    /// The section that contains `address`.
    pub(crate) fn section_at(&self, address: u64) -> Option<&Section<'a>> {
        let i = self.sections.partition_point(|s| s.address <= address);
        // `.tbss` has addresses that later sections use too.
        self.sections[..i].iter().rev().find(|s| !(s.tls && s.data.is_empty()) && address < s.end())
    }

    /// Bytes from `address` to the end of its section's file content; empty in `.bss`.
    pub(crate) fn bytes_from(&self, address: u64) -> &'a [u8] {
        self.section_at(address).and_then(|s| s.data.get((address - s.address) as usize..)).unwrap_or_default()
    }

    /// `size` bytes at `address`, if the file has them.
    pub(crate) fn bytes(&self, address: u64, size: u64) -> Option<&'a [u8]> {
        self.bytes_from(address).get(..usize::try_from(size).ok()?)
    }

    pub(crate) fn u64_at(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(address, 8)?.try_into().ok()?))
    }

    /// True where the image never writes once it has been relocated.
    pub(crate) fn is_constant(&self, address: u64) -> bool {
        self.section_at(address).is_some_and(is_constant_section)
    }
}

/// Read-only sections, and those that become read-only after relocation.
pub(crate) fn is_constant_section(section: &Section<'_>) -> bool {
    !section.writable || section.name.starts_with(".data.rel.ro")
}

fn copied_name(
    elf: &ElfFile64<'_, Endianness>,
    rela: &elf::Rela64<Endianness>,
    name_of: &dyn Fn(object::SymbolIndex) -> object::Result<String>,
) -> object::Result<String> {
    name_of(object::SymbolIndex(rela.r_sym(elf.endian(), false) as usize))
}

fn check_header(data: &[u8]) -> Result<(), String> {
    if data.len() < 64 || !data.starts_with(b"\x7fELF") {
        let what = if data.is_empty() {
            "is empty"
        } else if data.starts_with(b"\x7fELF") {
            "is a truncated ELF file"
        } else {
            "is not an ELF file"
        };
        return Err(format!("{what}; give a program or a shared object"));
    }
    let machine = u16::from_le_bytes([data[18], data[19]]);
    match (data[4], data[5], machine) {
        (2, 1, hp_pack::EM_X86_64) => Ok(()),
        (1, _, _) => Err("is a 32-bit ELF file; this version handles x86-64".into()),
        (_, 2, _) => Err("is a big-endian ELF file; this version handles x86-64".into()),
        _ => Err(format!("is for another architecture (e_machine {machine}); this version handles x86-64 (62)")),
    }
}

fn sections<'a>(elf: &ElfFile64<'a, Endianness>, bad: &dyn Fn(String) -> Error) -> Result<Vec<Section<'a>>, Error> {
    let mut sections = Vec::new();
    for section in elf.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        if !sh_flags.contains(elf::SHF_ALLOC) {
            continue;
        }
        let name = section.name().map_err(|e| bad(format!("a section has no readable name ({e})")))?;
        let data =
            section.data().map_err(|_| bad(format!("section {name} lies outside of the file; is it truncated?")))?;
        if section.address().checked_add(section.size()).is_none() {
            return Err(bad(format!("section {name} wraps around the address space")));
        }
        sections.push(Section {
            name,
            address: section.address(),
            size: section.size(),
            data,
            executable: sh_flags.contains(elf::SHF_EXECINSTR),
            writable: sh_flags.contains(elf::SHF_WRITE),
            tls: sh_flags.contains(elf::SHF_TLS),
        });
    }
    sections.sort_by_key(|s| (s.address, s.size));
    Ok(sections)
}

fn symbols<'a>(elf: &ElfFile64<'a, Endianness>) -> object::Result<Vec<Symbol<'a>>> {
    let endian = elf.endian();
    let table = elf.elf_symbol_table();
    let mut symbols = Vec::new();
    let mut file = "";
    for symbol in elf.symbols() {
        let raw = table.symbol(symbol.index())?;
        let name = symbol.name()?;
        if raw.st_type() == elf::STT_FILE {
            file = name;
            continue;
        }
        let local = raw.st_bind() == elf::STB_LOCAL;
        let defined = matches!(symbol.section_index(), Some(SectionIndex(i)) if i != 0);
        if !defined || raw.st_type() == elf::STT_SECTION {
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
            size: raw.st_size(endian),
            kind,
            file: if local { file } else { "" },
            local,
        });
    }
    Ok(symbols)
}
