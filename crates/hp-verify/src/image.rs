//! One build as the judge sees it: bytes at link-time addresses, what the dynamic linker writes into
//! words, stubs of the PLT, and names.
//!
//! Nothing here decides anything; it is a reading of ELF (gABI, psABI for AMD64) with no more opinion than
//! "this symbol covers these bytes".

use std::collections::BTreeMap;

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use object::{Endianness, Object, ObjectSection, SectionFlags, elf};

use crate::code;
use crate::language::Languages;
use crate::rust;
use crate::{Build, Error};

/// A loaded section.
#[derive(Debug)]
pub(crate) struct Section<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// In bytes: no more can be relied on for what lies in it.
    pub(crate) align: u64,
    /// Empty for `SHT_NOBITS`.
    pub(crate) data: &'a [u8],
    pub(crate) code: bool,
    pub(crate) writable: bool,
    pub(crate) tls: bool,
}

impl Section<'_> {
    pub(crate) fn end(&self) -> u64 {
        self.address + self.size
    }

    /// The program cannot write it once it runs.
    pub(crate) fn is_constant(&self) -> bool {
        !self.writable || self.name.starts_with(".data.rel.ro")
    }

    /// Tables that the unwinder reads; no code of the program has the address of anything in them.
    pub(crate) fn is_of_unwinder(&self) -> bool {
        matches!(self.name, ".eh_frame_hdr" | ".eh_frame" | ".gcc_except_table")
    }

    pub(crate) fn is_stubs(&self) -> bool {
        self.code && (self.name.starts_with(".plt") || self.name == ".iplt")
    }

    pub(crate) fn is_slots(&self) -> bool {
        self.name.starts_with(".got")
    }
}

/// What the dynamic linker, or the static one in its place, puts into a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// A place in the image.
    Address(u64),
    /// A symbol (`name@VERSION` if it is imported) and an addend.
    Symbol(String, i64),
    /// What the resolver at this address returns.
    Resolver(u64),
    /// Thread-local: relocation type, symbol (may be empty), addend.
    Tls(u32, String, i64),
    /// The start of a variable that is copied from a library.
    Copy(String),
    /// Another relocation, or a slot that the linker filled with a number.
    Other(u32, String, i64),
}

/// A symbol that is defined in the image.
#[derive(Clone, Debug)]
pub(crate) struct Symbol<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) kind: SymbolType,
    /// Source file of a local symbol, empty for others.
    pub(crate) file: &'a str,
    pub(crate) local: bool,
}

/// The types of symbols that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SymbolType {
    Function,
    Object,
    Tls,
    Other,
}

/// One build.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    pub(crate) build_id: Vec<u8>,
    pub(crate) fixed: bool,
    /// Where the kernel begins to run it.
    pub(crate) entry: u64,
    pub(crate) start: u64,
    pub(crate) span: u64,
    pub(crate) sections: Vec<Section<'a>>,
    pub(crate) symbols: Vec<Symbol<'a>>,
    /// There is no whole symbol table, so functions may have no name.
    pub(crate) stripped: bool,
    /// Of functions; empty where no name is one of Rust.
    pub(crate) languages: Languages,
    /// Imports that may stay unresolved.
    pub(crate) weak: rustc_hash::FxHashSet<String>,
    /// Imports whose stub in this image is their address for the whole process.
    pub(crate) canonical: rustc_hash::FxHashSet<String>,
    pub(crate) words: BTreeMap<u64, Word>,
    /// Stub to slot.
    pub(crate) stubs: BTreeMap<u64, u64>,
    /// Address, size in the file, size in memory, alignment.
    pub(crate) tls: Option<(u64, u64, u64, u64)>,
}

impl<'a> Image<'a> {
    /// Reads a build.
    pub(crate) fn read(build: &Build<'a>, which: &'static str) -> Result<Image<'a>, Error> {
        let bad = |what: String| Error::Build { which, what };
        let malformed = |e: object::Error| bad(format!("malformed ELF file ({e})"));
        let elf = ElfFile64::<Endianness>::parse(build.image).map_err(malformed)?;
        let endian = elf.endian();
        let header = elf.elf_header();
        let kind = header.e_type(endian);
        if header.e_machine(endian) != elf::EM_X86_64 || !matches!(kind, elf::ET_EXEC | elf::ET_DYN) {
            return Err(bad("is no program or shared object for x86-64".into()));
        }
        let mut image = Image {
            build_id: elf.build_id().map_err(malformed)?.unwrap_or_default().to_vec(),
            fixed: kind == elf::ET_EXEC,
            entry: header.e_entry(endian),
            start: u64::MAX,
            span: 0,
            sections: sections(&elf).map_err(malformed)?,
            symbols: Vec::new(),
            stripped: false,
            languages: Languages::default(),
            weak: Default::default(),
            canonical: Default::default(),
            words: BTreeMap::new(),
            stubs: BTreeMap::new(),
            tls: None,
        };
        for segment in elf.elf_program_headers() {
            let (address, size) = (segment.p_vaddr(endian), segment.p_memsz(endian));
            match segment.p_type(endian) {
                elf::PT_LOAD => {
                    image.start = image.start.min(address);
                    image.span = image.span.max(address.saturating_add(size));
                }
                elf::PT_TLS => {
                    image.tls = Some((address, segment.p_filesz(endian), size, segment.p_align(endian)));
                }
                _ => {}
            }
        }
        (image.symbols, image.stripped) = own_symbols(&elf, build).map_err(malformed)?;
        if image.symbols.iter().any(|s| s.kind == SymbolType::Function && rust::is_name(s.name)) {
            image.languages = Languages::read(build);
        }
        image.read_words(&elf).map_err(malformed)?;
        image.fill_slots();
        let stubs = image.sections.iter().filter(|s| s.is_stubs()).flat_map(|s| code::stubs(s.address, s.data));
        image.stubs = stubs.filter(|(_, slot)| image.words.contains_key(slot)).collect();
        Ok(image)
    }

    /// The section that contains `address`.
    pub(crate) fn section_at(&self, address: u64) -> Option<&Section<'a>> {
        let i = self.sections.partition_point(|s| s.address <= address);
        self.sections[..i].iter().rev().find(|s| !(s.tls && s.data.is_empty()) && address < s.end())
    }

    /// Bytes from `address` to the end of its section; empty where the file has none.
    pub(crate) fn bytes_from(&self, address: u64) -> &'a [u8] {
        self.section_at(address).and_then(|s| s.data.get((address - s.address) as usize..)).unwrap_or_default()
    }

    /// `size` bytes at `address`; `None` where the file has none.
    pub(crate) fn bytes(&self, address: u64, size: u64) -> Option<&'a [u8]> {
        self.bytes_from(address).get(..usize::try_from(size).ok()?)
    }

    /// `size` bytes as they are when the program starts, zeros of `.bss` included.
    pub(crate) fn initial(&self, address: u64, size: u64) -> Option<std::borrow::Cow<'a, [u8]>> {
        let section = self.section_at(address).filter(|s| address + size <= s.end())?;
        if section.data.is_empty() {
            return Some(vec![0; size as usize].into());
        }
        self.bytes(address, size).map(Into::into)
    }

    /// The word at `address`, if it holds the address of something.
    pub(crate) fn u64_at(&self, address: u64) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(address, 8)?.try_into().ok()?))
    }

    pub(crate) fn i32_at(&self, address: u64) -> Option<i32> {
        Some(i32::from_le_bytes(self.bytes(address, 4)?.try_into().ok()?))
    }

    /// A stub of a weak symbol that the linker of a static program found nowhere: nothing fills its slot. GNU ld leads
    /// such a stub between two slots (it keeps a mark in the lowest bit of the slot's address); nobody calls it.
    pub(crate) fn is_empty_stub(&self, address: u64) -> bool {
        let known = self.section_at(address).is_some_and(Section::is_stubs);
        let stub =
            self.bytes(address, 8).filter(|_| known).and_then(|code| code::stubs(address, code).first().copied());
        stub.is_some_and(|(_, slot)| {
            !slot.is_multiple_of(8) || !self.words.contains_key(&slot) && self.bytes(slot, 8) == Some(&[0; 8])
        })
    }

    /// The slot's word behind the stub at `address`.
    pub(crate) fn stub_word(&self, address: u64) -> Option<&Word> {
        self.words.get(self.stubs.get(&address)?)
    }

    /// Symbols without a size at `address`, such as `_end`.
    pub(crate) fn contains(&self, address: u64) -> bool {
        (self.start..self.span).contains(&address)
    }

    fn read_words(&mut self, elf: &ElfFile64<'a, Endianness>) -> object::Result<()> {
        let (endian, data) = (elf.endian(), elf.data());
        let table = elf.elf_section_table();
        let versions = table.versions(endian, data)?;
        let dynamic = elf.elf_dynamic_symbol_table();
        let name_of = |index: object::SymbolIndex, copied: bool| -> object::Result<String> {
            if index.0 == 0 {
                return Ok(String::new());
            }
            let symbol = dynamic.symbol(index)?;
            let name = String::from_utf8_lossy(dynamic.symbol_name(endian, symbol)?).into_owned();
            let version = versions.as_ref().map(|v| v.version(v.version_index(endian, index).index())).transpose()?;
            Ok(match version.flatten() {
                Some(v) if copied || symbol.st_shndx(endian) == elf::SHN_UNDEF => {
                    format!("{name}@{}", String::from_utf8_lossy(v.name()))
                }
                _ => name,
            })
        };
        for (index, symbol) in dynamic.enumerate() {
            if symbol.st_shndx(endian) != elf::SHN_UNDEF {
                continue;
            }
            if symbol.st_bind() == elf::STB_WEAK {
                self.weak.insert(name_of(index, false)?);
            }
            if symbol.st_value(endian) != 0 {
                self.canonical.insert(name_of(index, false)?);
            }
        }
        for section in table.iter().filter(|s| s.sh_flags(endian).contains(elf::SHF_ALLOC)) {
            for rela in section.rela(endian, data)?.map(|(relas, _)| relas).unwrap_or_default() {
                let addend = rela.r_addend(endian);
                let kind = rela.r_type(endian, false);
                let symbol =
                    || name_of(object::SymbolIndex(rela.r_sym(endian, false) as usize), kind == elf::R_X86_64_COPY);
                let word = match kind {
                    elf::R_X86_64_RELATIVE => Word::Address(addend as u64),
                    elf::R_X86_64_IRELATIVE => Word::Resolver(addend as u64),
                    elf::R_X86_64_64 | elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT => {
                        Word::Symbol(symbol()?, addend)
                    }
                    elf::R_X86_64_COPY => Word::Copy(symbol()?),
                    elf::R_X86_64_DTPMOD64 | elf::R_X86_64_DTPOFF64 | elf::R_X86_64_TPOFF64 | elf::R_X86_64_TLSDESC => {
                        Word::Tls(kind.0, symbol()?, addend)
                    }
                    other => Word::Other(other.0, symbol()?, addend),
                };
                self.words.insert(rela.r_offset(endian), word);
            }
        }
        if let Some(section) = elf.section_by_name(".relr.dyn") {
            for address in packed_relative(section.data()?) {
                if let Some(value) = self.u64_at(address) {
                    self.words.insert(address, Word::Address(value));
                }
            }
        }
        Ok(())
    }

    /// In an image with a fixed address the linker fills slots without a relocation.
    fn fill_slots(&mut self) {
        if !self.fixed {
            return;
        }
        let mut filled = Vec::new();
        for section in self.sections.iter().filter(|s| s.is_slots()) {
            for (i, word) in section.data.chunks_exact(8).enumerate() {
                let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
                let word = match self.contains(value) {
                    true => Word::Address(value),
                    false => Word::Other(0, String::new(), value as i64),
                };
                filled.push((section.address + 8 * i as u64, word));
            }
        }
        for (address, word) in filled {
            self.words.entry(address).or_insert(word);
        }
    }
}

/// The addresses that `DT_RELR` names (gABI, "Relative relocation table").
fn packed_relative(data: &[u8]) -> Vec<u64> {
    let (mut next, mut found) = (0u64, Vec::new());
    for entry in data.chunks_exact(8).map(|e| u64::from_le_bytes(e.try_into().unwrap_or_default())) {
        if entry & 1 == 0 {
            found.push(entry);
            next = entry.wrapping_add(8);
            continue;
        }
        found.extend((0..63).filter(|bit| entry >> (bit + 1) & 1 == 1).map(|bit| next.wrapping_add(8 * bit)));
        next = next.wrapping_add(8 * 63);
    }
    found
}

fn sections<'a>(elf: &ElfFile64<'a, Endianness>) -> object::Result<Vec<Section<'a>>> {
    let mut sections = Vec::new();
    for section in elf.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        if !sh_flags.contains(elf::SHF_ALLOC) || section.address().checked_add(section.size()).is_none() {
            continue;
        }
        sections.push(Section {
            align: section.align().max(1),
            name: section.name()?,
            address: section.address(),
            size: section.size(),
            data: section.data()?,
            code: sh_flags.contains(elf::SHF_EXECINSTR),
            writable: sh_flags.contains(elf::SHF_WRITE),
            tls: sh_flags.contains(elf::SHF_TLS),
        });
    }
    sections.sort_by_key(|s| (s.address, s.size));
    Ok(sections)
}

/// The image's own symbols; without functions among them, those of its debug file; else the dynamic ones and those that
/// `.gnu_debugdata` adds to them. Says, too, whether the table is not whole.
fn own_symbols<'a>(elf: &ElfFile64<'a, Endianness>, build: &Build<'a>) -> object::Result<(Vec<Symbol<'a>>, bool)> {
    let has_functions = |symbols: &[Symbol<'_>]| symbols.iter().any(|s| s.kind == SymbolType::Function);
    let own = symbols(elf, true)?;
    if has_functions(&own) {
        return Ok((own, false));
    }
    if let Some(debug) = build.debug {
        let apart = symbols(&ElfFile64::parse(debug)?, true)?;
        if has_functions(&apart) {
            return Ok((apart, false));
        }
    }
    let mut found = symbols(elf, false)?;
    if let Some(mini) = build.mini {
        found.extend(symbols(&ElfFile64::parse(mini)?, true)?);
    }
    Ok((found, true))
}

fn symbols<'a>(elf: &ElfFile64<'a, Endianness>, full: bool) -> object::Result<Vec<Symbol<'a>>> {
    let endian = elf.endian();
    let table = if full { elf.elf_symbol_table() } else { elf.elf_dynamic_symbol_table() };
    let (mut found, mut file) = (Vec::new(), "");
    for (index, symbol) in table.enumerate() {
        let name = std::str::from_utf8(table.symbol_name(endian, symbol)?).unwrap_or_default();
        let kind = match symbol.st_type() {
            elf::STT_FILE => {
                file = rust::scope(name);
                continue;
            }
            elf::STT_SECTION => continue,
            elf::STT_FUNC | elf::STT_GNU_IFUNC => SymbolType::Function,
            elf::STT_OBJECT => SymbolType::Object,
            elf::STT_TLS => SymbolType::Tls,
            _ => SymbolType::Other,
        };
        let section = symbol.st_shndx(endian);
        // Symbols of sections that are not loaded have no addresses.
        let at = table.symbol_section(endian, symbol, index)?;
        let header = at.and_then(|at| elf.elf_section_table().section(at).ok());
        let apart = header.is_some_and(|header| !header.sh_flags(endian).contains(elf::SHF_ALLOC));
        if section == elf::SHN_UNDEF || section == elf::SHN_ABS || name.is_empty() || apart {
            continue;
        }
        let local = symbol.st_bind() == elf::STB_LOCAL;
        let (address, size) = (symbol.st_value(endian), symbol.st_size(endian));
        found.push(Symbol { name, address, size, kind, file: if local { file } else { "" }, local });
    }
    Ok(found)
}
