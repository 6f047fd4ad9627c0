//! One build, opened: the facts of an ELF image that later stages ask for.
//!
//! Everything is indexed by *link-time address*. Dynamic relocations are folded into one
//! map from the address of a word to what the dynamic linker puts there, PLT stubs into
//! a map from stub to GOT slot, so that no later stage has to know about ELF tables.

mod relocations;
mod sections;
mod symbols;
mod unlinked;

pub(crate) use sections::check_header;
pub use symbols::Evidence;
pub(crate) use symbols::{Symbol, has_functions};

use std::collections::BTreeMap;

use object::elf;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};

use crate::Error;
use crate::by_address::ByAddress;
use crate::dwarf::Source;
use crate::input::{Field, Input, has_types};

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
    /// Never written once it has been relocated.
    pub constant: bool,
    /// Part of the global offset table.
    pub got: bool,
    pub tls: bool,
    /// Code and data that the program refers to, as opposed to tables for the dynamic linker and the unwinder.
    pub content: bool,
}

impl Section<'_> {
    /// Part of the global offset table.
    pub(crate) fn is_got(&self) -> bool {
        self.got
    }

    pub(crate) fn end(&self) -> u64 {
        self.address + self.size
    }
}

/// True for a section that becomes read-only after relocation, or always is.
fn is_constant_name(name: &str, writable: bool) -> bool {
    !writable || name.starts_with(".data.rel.ro")
}

/// True for a section of this name if code refers to what it has.
fn is_content(name: &str, tls: bool) -> bool {
    let table = matches!(
        name,
        ".interp" | ".hash" | ".gnu.hash" | ".dynsym" | ".dynstr" | ".eh_frame" | ".eh_frame_hdr" | ".dynamic"
    );
    let tables = [".note", ".rel", ".gnu.version", ".gcc_except_table"];
    !tls && !table && !tables.iter().any(|start| name.starts_with(start))
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
    /// Where its debug information lies.
    pub debug: Source<'a>,
    pub file_name: String,
    pub build_id: Vec<u8>,
    /// False for a relocatable object, whose addresses are made up.
    pub linked: bool,
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
    /// Those of them whose stub in this image is their address for the whole process (psABI for AMD64, 5.2, "Procedure
    /// Linkage Table": the undefined symbol has a value).
    pub canonical: rustc_hash::FxHashSet<String>,
    /// Every dynamic relocation, by address.
    pub words: ByAddress<Word>,
    /// PLT stub address to GOT slot address.
    pub stubs: ByAddress<u64>,
    /// The fields in code that hold addresses, not distances, where relocations say.
    pub fields: Option<&'a BTreeMap<u64, Field>>,
    /// The code itself is relocated at load time.
    pub text_relocations: bool,
    /// The TLS segment: address, file size, memory size, alignment.
    pub tls: Option<(u64, u64, u64, u64)>,
    /// Where the kernel or the dynamic linker begins to run it.
    pub entries: Vec<u64>,
    /// `.comment`: which compilers made the image.
    pub compilers: Vec<String>,
}

impl<'a> Image<'a> {
    /// Parses an opened build.
    pub(crate) fn parse(input: &'a Input) -> Result<Image<'a>, Error> {
        Image::of(input, true)
    }

    /// Parses an opened build, and leaves out what lies in its words, and whether its code is relocated.
    pub(crate) fn without_words(input: &'a Input) -> Result<Image<'a>, Error> {
        Image::of(input, false)
    }

    fn of(input: &'a Input, words: bool) -> Result<Image<'a>, Error> {
        let (path, data) = (&input.path, &input.data[..]);
        let bad = |reason: String| Error::Input { path: path.to_owned(), reason };
        let malformed = |e: object::Error| bad(format!("malformed ELF file ({e}); is it complete?"));
        let elf = ElfFile64::<Endianness>::parse(data).map_err(malformed)?;
        if let Some(layout) = &input.unlinked {
            return Image::of_object(input, &elf, layout);
        }
        let endian = elf.endian();
        let header = elf.elf_header();
        match header.e_type(endian) {
            elf::ET_EXEC | elf::ET_DYN => {}
            t => return Err(bad(format!("has ELF type {}; give a program or a shared object", t.0))),
        }
        let (mut start, mut span) = (u64::MAX, 0);
        let (mut tls, mut entries) = (None, vec![header.e_entry(endian)]);
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
                elf::PT_DYNAMIC => {
                    let dynamic = segment.dynamic(endian, data).map_err(malformed)?.unwrap_or_default();
                    let begins =
                        dynamic.iter().filter(|entry| [elf::DT_INIT, elf::DT_FINI].contains(&entry.d_tag(endian)));
                    entries.extend(begins.map(|entry| entry.d_val(endian)));
                }
                _ => {}
            }
        }
        if span == 0 {
            return Err(bad("has no loadable segment; is it a debug file? give the program itself".into()));
        }
        let mut image = Image {
            debug: debug_source(input, &elf)?,
            file_name: input.file_name(),
            linked: true,
            build_id: elf.build_id().map_err(malformed)?.unwrap_or_default().to_vec(),
            fixed_address: header.e_type(endian) == elf::ET_EXEC,
            start,
            span,
            sections: sections::sections(&elf, &bad)?,
            symbols: all_symbols(input, &elf)?,
            exported: elf.dynamic_symbols().filter(|s| s.is_definition()).filter_map(|s| s.name().ok()).collect(),
            imported: Vec::new(),
            weak: Default::default(),
            canonical: Default::default(),
            words: ByAddress::default(),
            stubs: ByAddress::default(),
            fields: None,
            text_relocations: false,
            tls,
            entries,
            compilers: Vec::new(),
        };
        image.read_imports(&elf).map_err(malformed)?;
        if words {
            image.read_words(&elf).map_err(malformed)?;
        }
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

    /// The section that contains `address`.
    pub(crate) fn section_at(&self, address: u64) -> Option<&Section<'a>> {
        let i = self.sections.partition_point(|s| s.address <= address);
        // `.tbss` has addresses that later sections use too.
        self.sections[..i].iter().rev().find(|s| !(s.tls && s.data.is_empty()) && address < s.end())
    }

    /// Where `__TMC_END__` of the compiler's start-up code lies.
    pub(crate) fn is_end_of_data(&self, address: u64) -> bool {
        self.sections.iter().any(|s| s.name == ".data" && s.end().next_multiple_of(8) == address)
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
    section.constant
}

/// The build's own symbols; else those of its debug file; else what is left of them.
fn all_symbols<'a>(input: &'a Input, elf: &ElfFile64<'a, Endianness>) -> Result<Vec<Symbol<'a>>, Error> {
    let read =
        |path: &std::path::Path, symbols: object::Result<Vec<Symbol<'a>>>| symbols.map_err(|e| malformed(path, &e));
    if has_functions(elf) {
        return read(&input.path, symbols::symbols(elf, Evidence::SymbolTable));
    }
    if let Some(file) = &input.debug {
        let debug = ElfFile64::parse(&file.data[..]).map_err(|e| malformed(&file.path, &e))?;
        if has_functions(&debug) {
            return read(&file.path, symbols::symbols(&debug, Evidence::DebugFile));
        }
    }
    let mut found = read(&input.path, symbols::dynamic(elf))?;
    if let Some(mini) = &input.mini {
        let mini = ElfFile64::parse(&mini[..]).map_err(|e| malformed(&input.path, &e))?;
        found.extend(read(&input.path, symbols::symbols(&mini, Evidence::MiniDebugInfo))?);
    }
    found.extend(input.unnamed.iter().map(|f| Symbol {
        name: &f.name,
        address: f.address,
        size: f.size,
        kind: object::SymbolKind::Text,
        section: 0,
        file: "",
        local: true,
        resolver: false,
        evidence: if f.rows { Evidence::UnwindRows } else { Evidence::Gap },
    }));
    Ok(found)
}

fn debug_source<'a>(input: &'a Input, elf: &ElfFile64<'a, Endianness>) -> Result<Source<'a>, Error> {
    let open = |path: &std::path::Path, data: &'a [u8]| object::File::parse(data).map_err(|e| malformed(path, &e));
    let main = match &input.debug {
        Some(file) if !has_types(elf) => open(&file.path, &file.data)?,
        _ => open(&input.path, &input.data)?,
    };
    let supplement = match &input.supplement {
        Some(file) => Some(open(&file.path, &file.data)?),
        None => None,
    };
    Ok(Source::new(main, supplement))
}

fn malformed(path: &std::path::Path, e: &object::Error) -> Error {
    Error::Input { path: path.to_owned(), reason: format!("malformed ELF file ({e}); is it complete?") }
}
