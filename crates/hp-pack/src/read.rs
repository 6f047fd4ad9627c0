//! From the file to the model. The reader trusts nothing: it checks the digest first, then that the
//! file is laid out in the one way that the format allows (so nothing can overlap or hide between
//! sections), then every field, then what they mean together.
//!
//! It never panics and allocates no more than a small multiple of the file's size. A newer minor
//! version may add sections that are not loaded; this reader passes over those.

use crate::elf::*;
use crate::error::ReadError;
use crate::model::*;
use crate::parts::*;
use crate::seal::digest;
use alloc::string::String;
use alloc::vec::Vec;

/// Most sections that a file may have: ours, and some of newer minor versions.
const MAX_SECTIONS: u16 = 64;

/// Reads a patch file.
///
/// # Errors
/// [`ReadError`] for every file that [`write`](crate::write) could not have made, except for
/// sections that a newer minor version adds.
pub fn read(file: &[u8]) -> Result<Patch, ReadError> {
    let minor = check_start(file)?;
    let layout = Layout::read(file, minor)?;
    check_digest_form(&layout)?;
    check_signature_form(&layout)?;
    let identity = Identity::read(&layout)?;
    let mut patch = Patch {
        name: identity.name,
        machine: identity.machine,
        counter: identity.counter,
        base: Base {
            build_id: identity.build_id,
            span: layout.header(Part::Base).size,
            fixed_address: identity.fixed_address,
        },
        sections: layout.payload(),
        symbols: symbols(&layout)?,
        relocations: Vec::new(),
        functions: functions(&layout)?,
        manifest: layout.bytes(Part::Manifest).to_vec(),
    };
    for kind in SectionKind::ALL {
        relocations(&layout, kind, &mut patch.relocations)?;
    }
    patch.validate()?;
    Ok(patch)
}

fn malformed<T>(part: Part, offset: u64, what: &'static str) -> Result<T, ReadError> {
    Err(ReadError::Malformed { section: part.name(), offset, what })
}

/// Checks what is at the same place in every version, and the digest; gives the minor version.
fn check_start(file: &[u8]) -> Result<u16, ReadError> {
    let not = |what| Err(ReadError::NotAPatch(what));
    if !file.starts_with(b"\x7fELF") {
        return not("the file is not an ELF file");
    }
    let Some(stored) = bytes_at::<32>(file, DIGEST_AT) else { return not("the file is too short") };
    if !is_start_of_patch(file) {
        return not("the ELF file has no hpatch note");
    }
    if digest(file) != Some(stored) {
        return Err(ReadError::Damaged);
    }
    let (Some(major), Some(minor)) = (u16_at(file, IDENTITY_AT), u16_at(file, IDENTITY_AT + 2)) else {
        return not("the file is too short");
    };
    if major == FORMAT_MAJOR { Ok(minor) } else { Err(ReadError::Version { major, minor }) }
}

/// Where everything is: the checked section headers.
struct Layout<'a> {
    file: &'a [u8],
    /// By [`Part::rank`]: ELF section number and header.
    found: [Option<(u16, SectionHeader)>; Part::COUNT],
}

impl<'a> Layout<'a> {
    fn read(file: &'a [u8], minor: u16) -> Result<Layout<'a>, ReadError> {
        let table = header_table(file)?;
        let names = section_names(file, &table)?;
        let mut layout = Layout { file, found: [None; Part::COUNT] };
        let mut next_rank = 0;
        let mut next_name = 1usize;
        let mut end = EHDR_SIZE as u64;
        for (i, header) in table.headers.iter().enumerate().skip(1) {
            let at = table.offset + (i * SHDR_SIZE) as u64;
            let bad = |what| ReadError::Malformed { section: "section headers", offset: at, what };
            if header.name as usize != next_name {
                return Err(bad("names are not stored in the order of the sections"));
            }
            let Some(name) = string_at(names, next_name) else { return Err(bad("name is not ended by NUL")) };
            next_name += name.len() + 1;
            end = check_extent(file, header, end).map_err(bad)?;
            match Part::named(name) {
                Some(part) if part.rank() < next_rank => return Err(bad("section is there twice or out of order")),
                Some(part) => {
                    check_header(part, header).map_err(bad)?;
                    next_rank = part.rank() + 1;
                    layout.found[part.rank()] = Some((i as u16, *header));
                }
                None if minor > FORMAT_MINOR && header.flags & SHF_ALLOC == 0 && next_rank > 1 => {}
                None => return Err(bad("section is unknown")),
            }
        }
        if next_name != names.len() {
            return malformed(Part::SectionNames, layout.header(Part::SectionNames).offset, "has names of no section");
        }
        layout.check_end(&table, end)?;
        layout.check_links(&table)?;
        Ok(layout)
    }

    /// The section headers follow the last section, and the file ends with them; every required part is there.
    fn check_end(&self, table: &HeaderTable, end: u64) -> Result<(), ReadError> {
        let padding = self.file.get(end as usize..table.offset as usize);
        if align_up(end, 8) != Some(table.offset) || padding.is_none_or(|p| p.iter().any(|&b| b != 0)) {
            let what = "do not follow the last section";
            return Err(ReadError::Malformed { section: "section headers", offset: table.offset, what });
        }
        match Part::ALL.into_iter().find(|part| part.required() && self.found[part.rank()].is_none()) {
            Some(missing) => malformed(missing, table.offset, "section is missing"),
            None => Ok(()),
        }
    }

    fn check_links(&self, table: &HeaderTable) -> Result<(), ReadError> {
        for part in Part::ALL {
            let Some((number, header)) = self.found[part.rank()] else { continue };
            let (link, info) = match part {
                Part::Relocations(kind) => (self.number(Part::Symbols), self.number(Part::Payload(kind)).into()),
                Part::Symbols => (self.number(Part::Strings), header.info),
                _ => (0, 0),
            };
            let dangling = matches!(part, Part::Relocations(_)) && info == 0;
            if header.link != u32::from(link) || header.info != info || dangling {
                let at = table.offset + u64::from(number) * SHDR_SIZE as u64;
                return malformed(part, at, "header links to the wrong section");
            }
        }
        Ok(())
    }

    /// ELF section number; 0 if the part is not there.
    fn number(&self, part: Part) -> u16 {
        self.found[part.rank()].map_or(0, |(number, _)| number)
    }

    /// The header; an empty one if the part is not there.
    fn header(&self, part: Part) -> SectionHeader {
        self.found[part.rank()].map_or_else(SectionHeader::default, |(_, header)| header)
    }

    /// The content; empty if the part is not there or has none.
    fn bytes(&self, part: Part) -> &'a [u8] {
        let header = self.header(part);
        if header.kind == SHT_NOBITS {
            return &[];
        }
        let start = header.offset as usize;
        self.file.get(start..start.saturating_add(header.size as usize)).unwrap_or(&[])
    }

    fn payload(&self) -> Vec<Section> {
        let there = SectionKind::ALL.into_iter().filter(|&kind| self.number(Part::Payload(kind)) != 0);
        there
            .map(|kind| {
                let part = Part::Payload(kind);
                let header = self.header(part);
                Section { kind, align: header.align, size: header.size, data: self.bytes(part).to_vec() }
            })
            .collect()
    }
}

/// The section header table as it lies in the file.
struct HeaderTable {
    offset: u64,
    headers: Vec<SectionHeader>,
}

fn header_table(file: &[u8]) -> Result<HeaderTable, ReadError> {
    let bad = |offset, what| Err(ReadError::Malformed { section: "file header", offset, what });
    let (Some(machine), Some(offset), Some(count)) = (u16_at(file, 18), u64_at(file, 40), u16_at(file, 60)) else {
        return bad(0, "is cut off");
    };
    if machine != EM_X86_64 {
        return bad(18, "names another architecture than x86-64");
    }
    if file.get(..EHDR_SIZE) != Some(&file_header(machine, offset, count)[..]) {
        return bad(0, "is not that of a patch (ELF64, little-endian, relocatable, section names last)");
    }
    let size = u64::from(count) * SHDR_SIZE as u64;
    if !(2..=MAX_SECTIONS).contains(&count) || offset.checked_add(size) != Some(file.len() as u64) {
        return bad(40, "names a section header table that does not end with the file");
    }
    let start = offset as usize;
    let decoded = (0..usize::from(count)).map(|i| SectionHeader::decode(file, start + i * SHDR_SIZE));
    let Some(headers) = decoded.collect::<Option<Vec<_>>>() else {
        return bad(40, "names section headers past the end");
    };
    if headers[0] != SectionHeader::default() {
        return Err(ReadError::Malformed { section: "section headers", offset, what: "section 0 is not null" });
    }
    Ok(HeaderTable { offset, headers })
}

/// The bytes of `.shstrtab`, which is the last section.
fn section_names<'a>(file: &'a [u8], table: &HeaderTable) -> Result<&'a [u8], ReadError> {
    let header = table.headers.last().copied().unwrap_or_default();
    let end = header.offset.saturating_add(header.size);
    let bytes = if end <= table.offset { file.get(header.offset as usize..end as usize) } else { None };
    match bytes {
        Some(bytes) if bytes.first() == Some(&0) => Ok(bytes),
        _ => malformed(Part::SectionNames, header.offset, "lies outside the file or does not begin with NUL"),
    }
}

/// A section begins at the first aligned byte after the one before it, padding is zero; gives its end.
fn check_extent(file: &[u8], header: &SectionHeader, end: u64) -> Result<u64, &'static str> {
    if !header.align.is_power_of_two() || header.align > crate::validate::MAX_ALIGN {
        return Err("alignment is no power of two up to 4096");
    }
    if header.address != 0 {
        return Err("address is not zero");
    }
    if header.kind == SHT_NOBITS {
        return if header.offset == end { Ok(end) } else { Err("section does not follow the one before") };
    }
    if align_up(end, header.align) != Some(header.offset) {
        return Err("section does not follow the one before");
    }
    let next = header.offset.checked_add(header.size).filter(|&next| next <= file.len() as u64);
    let padding = file.get(end as usize..header.offset as usize);
    match (next, padding) {
        (Some(next), Some(padding)) if padding.iter().all(|&b| b == 0) => Ok(next),
        (Some(_), Some(_)) => Err("padding before the section is not zero"),
        _ => Err("section reaches past the end of the file"),
    }
}

/// Fields that have one valid value.
fn check_header(part: Part, header: &SectionHeader) -> Result<(), &'static str> {
    if header.kind != part.elf_type() {
        return Err("section has the wrong type");
    }
    if header.flags != part.flags() {
        return Err("section has the wrong flags");
    }
    if part.align().is_some_and(|align| align != header.align) {
        return Err("section has the wrong alignment");
    }
    if header.entry_size != part.entry_size() {
        return Err("section has the wrong entry size");
    }
    if header.entry_size != 0 && !header.size.is_multiple_of(header.entry_size) {
        return Err("size is not a whole number of entries");
    }
    if header.size == 0 && part != Part::Manifest {
        return Err("section is empty");
    }
    Ok(())
}

/// The string at `at` without its NUL; `None` if there is no NUL.
fn string_at(table: &[u8], at: usize) -> Option<&[u8]> {
    let rest = table.get(at..)?;
    rest.get(..rest.iter().position(|&b| b == 0)?)
}

/// The digest note ends with the digest; a shorter one would hide a byte of it between the sections.
fn check_digest_form(layout: &Layout<'_>) -> Result<(), ReadError> {
    let header = layout.header(Part::Digest);
    if (header.offset, header.size) == (DIGEST_NOTE_AT as u64, (SIGNATURE_NOTE_AT - DIGEST_NOTE_AT) as u64) {
        return Ok(());
    }
    malformed(Part::Digest, header.offset, "has another size than a digest")
}

/// Only the form; [`verify`](crate::verify) says whether it is a signature of this file.
fn check_signature_form(layout: &Layout<'_>) -> Result<(), ReadError> {
    let header = layout.header(Part::Signature);
    let note = layout.bytes(Part::Signature);
    let place = header.offset == SIGNATURE_NOTE_AT as u64 && note.len() == NOTE_HEADER + SIGNATURE_SIZE;
    let (field, padding) = note.split_at(note.len().min(NOTE_HEADER + SIGNATURE_SIZE - 2));
    let field = field.get(NOTE_HEADER..).unwrap_or_default();
    let known = field.starts_with(b"ED") || field.iter().all(|&b| b == 0);
    if place && known && padding == [0; 2] {
        return Ok(());
    }
    malformed(Part::Signature, header.offset, "is not empty, and no signature of a known form")
}

/// The content of `.note.hpatch`.
struct Identity {
    machine: u16,
    fixed_address: bool,
    counter: u64,
    build_id: Vec<u8>,
    name: String,
}

impl Identity {
    fn read(layout: &Layout<'_>) -> Result<Identity, ReadError> {
        let at = layout.header(Part::Identity).offset;
        let note = layout.bytes(Part::Identity);
        let bad = |offset: usize, what| malformed(Part::Identity, at + offset as u64, what);
        let size = note.len().saturating_sub(NOTE_HEADER);
        if at != IDENTITY_NOTE_AT as u64 || note.get(..NOTE_HEADER) != Some(&note_header(NT_IDENTITY, size as u32)[..])
        {
            return bad(0, "is not one note of owner hpatch and type 1");
        }
        let d = &note[NOTE_HEADER..];
        let fields = (u16_at(d, 4), u16_at(d, 6), u64_at(d, 8), u32_at(d, 16), u32_at(d, 20));
        let (Some(machine), Some(flags), Some(counter), Some(id_len), Some(name_len)) = fields else {
            return bad(NOTE_HEADER, "is too short");
        };
        if flags > 1 {
            return bad(NOTE_HEADER + 6, "has unknown flags");
        }
        let id_end = IDENTITY_FIXED as u64 + u64::from(id_len);
        let end = id_end + u64::from(name_len);
        if align_up(end, 4) != Some(size as u64) {
            return bad(NOTE_HEADER + 16, "has lengths that do not add up to its size");
        }
        let (id_end, end) = (id_end as usize, end as usize);
        if d[end..].iter().any(|&b| b != 0) {
            return bad(NOTE_HEADER + end, "padding is not zero");
        }
        let Ok(name) = core::str::from_utf8(&d[id_end..end]) else {
            return bad(NOTE_HEADER + id_end, "name is not UTF-8");
        };
        let build_id = d[IDENTITY_FIXED..id_end].to_vec();
        Ok(Identity { machine, fixed_address: flags == 1, counter, build_id, name: name.into() })
    }
}

fn symbols(layout: &Layout<'_>) -> Result<Vec<Symbol>, ReadError> {
    let header = layout.header(Part::Symbols);
    let strings = layout.bytes(Part::Strings);
    let bad = |i: usize, what| malformed(Part::Symbols, header.offset + (i * SYM_SIZE) as u64, what);
    if strings.first() != Some(&0) {
        return malformed(Part::Strings, layout.header(Part::Strings).offset, "does not begin with NUL");
    }
    let mut symbols = Vec::with_capacity(layout.bytes(Part::Symbols).len() / SYM_SIZE);
    let mut next_name = 1;
    let mut locals = 0;
    for (i, entry) in layout.bytes(Part::Symbols).chunks_exact(SYM_SIZE).enumerate() {
        if i == 0 {
            if entry.iter().any(|&b| b != 0) {
                return bad(i, "symbol 0 is not null");
            }
            continue;
        }
        let symbol = match symbol(layout, entry, strings, &mut next_name) {
            Ok(symbol) => symbol,
            Err(what) => return bad(i, what),
        };
        locals += u32::from(symbol.place != Place::Import);
        symbols.push(symbol);
    }
    if header.info != locals + 1 {
        return bad(0, "header has the wrong number of local symbols");
    }
    if next_name != strings.len() {
        return malformed(Part::Strings, layout.header(Part::Strings).offset, "has names of no symbol");
    }
    Ok(symbols)
}

/// One entry of `.symtab`; names lie in the order of the symbols, `next_name` is where the next one must be.
fn symbol(layout: &Layout<'_>, entry: &[u8], strings: &[u8], next_name: &mut usize) -> Result<Symbol, &'static str> {
    let fields = (u32_at(entry, 0), bytes_at::<2>(entry, 4), u16_at(entry, 6), u64_at(entry, 8), u64_at(entry, 16));
    let (Some(name_at), Some([info, other]), Some(section), Some(value), Some(size)) = fields else {
        return Err("symbol is cut off");
    };
    let kind = match info & 15 {
        STT_FUNC => SymbolKind::Function,
        STT_OBJECT => SymbolKind::Object,
        STT_TLS => SymbolKind::Tls,
        STT_NOTYPE => SymbolKind::Other,
        _ => return Err("symbol has an unknown type"),
    };
    let payload = SectionKind::ALL.into_iter().find(|&k| layout.number(Part::Payload(k)) == section);
    let place = match (section, payload) {
        (SHN_UNDEF, _) => Place::Import,
        (SHN_ABS, _) if kind == SymbolKind::Tls => Place::Base,
        (_, Some(kind)) => Place::Payload(kind),
        (n, None) if n == layout.number(Part::Base) && kind != SymbolKind::Tls => Place::Base,
        _ => return Err("symbol is in a section that has no symbols"),
    };
    let weak = match (info >> 4, place) {
        (STB_GLOBAL, Place::Import) => false,
        (STB_WEAK, Place::Import) => true,
        (STB_LOCAL, place) if place != Place::Import => false,
        _ => return Err("symbol has the wrong binding"),
    };
    if other != 0 {
        return Err("symbol has a visibility");
    }
    let mut name: &[u8] = &[];
    if name_at != 0 {
        if name_at as usize != *next_name {
            return Err("names are not stored in the order of the symbols");
        }
        name = string_at(strings, *next_name).filter(|name| !name.is_empty()).ok_or("name is empty or has no end")?;
        *next_name += name.len() + 1;
    }
    let name = core::str::from_utf8(name).map_err(|_| "name is not UTF-8")?.into();
    Ok(Symbol { name, kind, place, value, size, weak })
}

fn relocations(layout: &Layout<'_>, section: SectionKind, out: &mut Vec<Relocation>) -> Result<(), ReadError> {
    let part = Part::Relocations(section);
    let bytes = layout.bytes(part);
    out.reserve(bytes.len() / RELA_SIZE);
    for (i, entry) in bytes.chunks_exact(RELA_SIZE).enumerate() {
        let bad = |what| malformed(part, layout.header(part).offset + (i * RELA_SIZE) as u64, what);
        let (Some(offset), Some(info), Some(addend)) = (u64_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16)) else {
            return bad("relocation is cut off");
        };
        let Some(kind) = RelocationKind::from_number(info as u32) else { return bad("relocation has an unknown type") };
        let Some(symbol) = ((info >> 32) as u32).checked_sub(1) else { return bad("relocation names no symbol") };
        out.push(Relocation { section, offset, kind, symbol, addend: addend as i64 });
    }
    Ok(())
}

fn functions(layout: &Layout<'_>) -> Result<Vec<FunctionRecord>, ReadError> {
    let part = Part::Functions;
    let at = layout.header(part).offset;
    let bytes = layout.bytes(part);
    let (Some(record_size), Some(count)) = (u32_at(bytes, 0), u32_at(bytes, 4)) else {
        return malformed(part, at, "is too short");
    };
    let records = &bytes[FUNCTIONS_HEADER..];
    if record_size as usize != FUNCTION_SIZE || u64::from(count) * FUNCTION_SIZE as u64 != records.len() as u64 {
        return malformed(part, at, "has a header that does not match its size");
    }
    let mut functions = Vec::with_capacity(records.len() / FUNCTION_SIZE);
    for (i, record) in records.chunks_exact(FUNCTION_SIZE).enumerate() {
        let offset = at + (FUNCTIONS_HEADER + i * FUNCTION_SIZE) as u64;
        match function(record) {
            Some(function) => functions.push(function),
            None => return malformed(part, offset, "record is neither an entry nor a fragment"),
        }
    }
    Ok(functions)
}

/// One record; `None` if a field that has one valid value has another.
fn function(r: &[u8]) -> Option<FunctionRecord> {
    let (new, thunk, parent) = (u32_at(r, 48)?, u32_at(r, 52)?, u32_at(r, 56)?);
    let [role, site_offset, displaced, site_len] = bytes_at::<4>(r, 60)?;
    let site_bytes = bytes_at::<5>(r, 64)?;
    let [flags, padding @ ..] = bytes_at::<3>(r, 69)?;
    let role = match role {
        0 if parent == NO_PARENT && usize::from(site_len) == site_bytes.len() => Role::Entry(Entry {
            new_symbol: new.checked_sub(1)?,
            thunk_symbol: thunk.checked_sub(1)?,
            site_offset,
            site_bytes,
            displaced,
            may_go_on: flags == 1,
        }),
        1 if flags == 0
            && [new, thunk] == [0; 2]
            && [site_offset, displaced, site_len] == [0; 3]
            && site_bytes == [0; 5] =>
        {
            Role::Fragment(parent)
        }
        _ => return None,
    };
    let function =
        FunctionRecord { old_address: u64_at(r, 0)?, old_size: u64_at(r, 8)?, digest: bytes_at(r, 16)?, role };
    (flags <= 1 && padding == [0; 2]).then_some(function)
}
