//! The image of a relocatable object that was laid out.

use object::read::elf::ElfFile64;
use object::{Endianness, SymbolKind, elf};

use super::{Evidence, Image, Section, Symbol, Word, debug_source, is_constant_name, is_content, malformed};
use crate::Error;
use crate::input::{Input, MODULE, Unlinked};

impl<'a> Image<'a> {
    /// The image of `input`, whose `layout` this is.
    pub(super) fn of_object(
        input: &'a Input,
        elf: &ElfFile64<'a, Endianness>,
        layout: &'a Unlinked,
    ) -> Result<Image<'a>, Error> {
        let mut debug = debug_source(input, elf)?;
        debug.bases.clone_from(&layout.bases);
        let word = |value: &u64| match *value {
            MODULE => Word::Other(elf::R_X86_64_TLSLD.0, String::new(), 0),
            address => Word::Address(address),
        };
        let slots = layout.slots.iter().map(|(at, value)| (*at, word(value)));
        let words = layout.words.iter().map(|(at, value)| (*at, Word::Address(*value)));
        let words: Vec<(u64, Word)> = words.chain(slots).collect();
        let imported = layout.outside.iter().filter(|o| o.imported);
        Ok(Image {
            debug,
            file_name: input.file_name(),
            build_id: Vec::new(),
            linked: false,
            fixed_address: false,
            start: 0,
            span: layout.end,
            sections: sections(layout),
            symbols: symbols(elf, layout).map_err(|e| malformed(&input.path, &e))?,
            exported: Default::default(),
            imported: imported.clone().map(|o| o.name.clone()).collect(),
            weak: imported.filter(|o| o.weak).map(|o| o.name.clone()).collect(),
            canonical: Default::default(),
            words: words.into(),
            stubs: Default::default(),
            fields: Some(&layout.fields),
            text_relocations: false,
            tls: None,
            entries: Vec::new(),
            compilers: Vec::new(),
        })
    }
}

fn sections(layout: &Unlinked) -> Vec<Section<'_>> {
    let plain = |name, address, size| Section {
        name,
        address,
        size,
        data: &[][..],
        executable: false,
        writable: true,
        constant: is_constant_name(name, true),
        got: name.starts_with(".got"),
        tls: false,
        content: is_content(name, false),
    };
    let (slots, size) = layout.slot_table();
    let mut all: Vec<Section<'_>> = layout
        .sections
        .iter()
        .map(|s| Section {
            data: &s.data,
            executable: s.executable,
            writable: s.writable,
            constant: is_constant_name(&s.name, s.writable),
            ..plain(s.name.as_str(), s.address, s.size)
        })
        .chain(layout.outside.iter().map(|o| plain(if o.imported { "elsewhere" } else { "COMMON" }, o.address, o.size)))
        .chain((size > 0).then(|| plain(".got", slots, size)))
        .collect();
    all.sort_by_key(|s| (s.address, s.size));
    all
}

fn symbols<'a>(elf: &ElfFile64<'a, Endianness>, layout: &'a Unlinked) -> object::Result<Vec<Symbol<'a>>> {
    let mut all = super::symbols::symbols(elf, Evidence::SymbolTable)?;
    all.retain_mut(|symbol| match layout.bases.get(symbol.section) {
        Some(base) if *base != 0 => {
            symbol.address += base;
            // A thread-local variable has a place like any other here.
            if symbol.kind == SymbolKind::Tls {
                symbol.kind = SymbolKind::Data;
            }
            true
        }
        _ => false,
    });
    all.extend(layout.outside.iter().map(|o| Symbol {
        section: 0,
        name: &o.name,
        address: o.address,
        size: o.size,
        kind: SymbolKind::Data,
        file: "",
        local: false,
        resolver: false,
        evidence: Evidence::SymbolTable,
    }));
    Ok(all)
}
