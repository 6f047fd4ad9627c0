//! Patches to test with: one small by hand, many from a seed.
#![allow(dead_code)] // each test file uses some of these

use hp_pack::*;

/// A patch with one of everything.
pub(crate) fn small() -> Patch {
    let section = |kind, align, data: &[u8]| Section { kind, align, size: data.len() as u64, data: data.to_vec() };
    let symbol =
        |name: &str, kind, place, value, size| Symbol { name: name.into(), kind, place, value, size, weak: false };
    let payload = Place::Payload;
    let mut patch = Patch {
        name: "demo".into(),
        machine: EM_X86_64,
        counter: 7,
        base: Base { build_id: vec![0xab; 20], span: 0x5000, fixed_address: false },
        sections: vec![
            // call puts; call helper; lea rax,[rip+table]; mov rax,[rip+got]; ret
            section(
                SectionKind::Text,
                16,
                &[0xe8, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x8d, 0x05, 0, 0, 0, 0, 0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3],
            ),
            // cmp byte ptr [rip+state],0; jne new; (displaced) push rbp; mov rbp,rsp; nop; jmp old
            section(
                SectionKind::Thunks,
                16,
                &[0x80, 0x3d, 0, 0, 0, 0, 0, 0x0f, 0x85, 0, 0, 0, 0, 0x55, 0x48, 0x89, 0xe5, 0x90, 0xe9, 0, 0, 0, 0],
            ),
            section(SectionKind::Rodata, 1, b"hello\0"),
            section(SectionKind::DataRelRo, 8, &[0; 8]),
            section(SectionKind::EhFrame, 8, &EH_FRAME),
            // no landing pad; one type, behind a pointer slot
            section(SectionKind::ExceptTable, 4, &[0xff, 0x9b, 6, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
            section(SectionKind::State, 1, &[0]),
            section(SectionKind::Data, 4, &[1, 0, 0, 0]),
            Section { kind: SectionKind::Bss, align: 32, size: 64, data: vec![] },
        ],
        symbols: vec![
            symbol("handle", SymbolKind::Function, payload(SectionKind::Text), 0, 25),
            symbol("handle", SymbolKind::Function, payload(SectionKind::Thunks), 0, 23),
            symbol("handle", SymbolKind::Function, Place::Base, 0x1000, 0x40),
            symbol("helper", SymbolKind::Function, Place::Base, 0x1200, 0x10),
            symbol("", SymbolKind::Object, payload(SectionKind::DataRelRo), 0, 8),
            symbol("", SymbolKind::Other, payload(SectionKind::State), 0, 1),
            symbol("scratch", SymbolKind::Object, payload(SectionKind::Bss), 0, 64),
            symbol("per_thread", SymbolKind::Tls, Place::Base, 0x6000, 8),
            symbol("puts@GLIBC_2.2.5", SymbolKind::Function, Place::Import, 0, 0),
            Symbol { weak: true, ..symbol("maybe", SymbolKind::Other, Place::Import, 0, 0) },
        ],
        relocations: vec![
            reloc(SectionKind::Text, 1, RelocationKind::Plt32, 8, -4),
            reloc(SectionKind::Text, 6, RelocationKind::Plt32, 3, -4),
            reloc(SectionKind::Text, 13, RelocationKind::Pc32, 4, -4),
            reloc(SectionKind::Text, 20, RelocationKind::GotPcRel, 9, -4),
            reloc(SectionKind::Thunks, 2, RelocationKind::Pc32, 5, -5),
            reloc(SectionKind::Thunks, 9, RelocationKind::Plt32, 0, -4),
            reloc(SectionKind::Thunks, 19, RelocationKind::Plt32, 2, 5),
            reloc(SectionKind::DataRelRo, 0, RelocationKind::Abs64, 6, 0),
            reloc(SectionKind::EhFrame, 28, RelocationKind::Pc32, 0, 0),
            reloc(SectionKind::ExceptTable, 8, RelocationKind::GotPcRel, 9, 0),
        ],
        functions: vec![
            FunctionRecord {
                old_address: 0x1000,
                old_size: 0x40,
                digest: [0x11; 32],
                role: Role::Entry(Entry {
                    new_symbol: 0,
                    thunk_symbol: 1,
                    site_offset: 0,
                    site_bytes: [0x55, 0x48, 0x89, 0xe5, 0x90],
                    displaced: 5,
                    may_go_on: true,
                }),
            },
            FunctionRecord { old_address: 0x1800, old_size: 0x20, digest: [0x22; 32], role: Role::Fragment(0) },
        ],
        manifest: br#"{"name":"demo"}"#.to_vec(),
    };
    patch.canonicalize();
    patch
}

/// One CIE and one FDE for 25 bytes of `.text`, then the terminator.
const EH_FRAME: [u8; 48] = [
    16, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, // CIE: CFA = rsp + 8
    20, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // FDE
    0, 0, 0, 0,
];

fn reloc(section: SectionKind, offset: u64, kind: RelocationKind, symbol: u32, addend: i64) -> Relocation {
    Relocation { section, offset, kind, symbol, addend }
}

/// A small generator of numbers (splitmix64), so that a failing seed can be run again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn bytes(&mut self, n: u64) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// A valid patch in a random, not canonical, order.
pub(crate) fn random(seed: u64) -> Patch {
    let r = &mut Random(seed);
    let fixed_address = r.below(2) == 0;
    let span = 0x10_0000 + r.below(1 << 30);
    let mut kinds = SectionKind::ALL.to_vec();
    kinds.retain(|&k| matches!(k, SectionKind::Text | SectionKind::Thunks | SectionKind::State) || r.below(2) == 0);
    let rotation = r.below(kinds.len() as u64) as usize;
    kinds.rotate_left(rotation);
    let sections: Vec<Section> = kinds.into_iter().map(|kind| random_section(kind, r)).collect();
    let symbols = random_symbols(&sections, span, r);
    let relocations = random_relocations(&sections, &symbols, fixed_address, r);
    let functions = random_functions(&symbols, r);
    let id_len = 1 + r.below(64);
    Patch {
        name: "näme".repeat(1 + r.below(40) as usize),
        machine: EM_X86_64,
        counter: r.next(),
        base: Base { build_id: r.bytes(id_len), span, fixed_address },
        sections,
        symbols,
        relocations,
        functions,
        manifest: if r.below(4) == 0 { vec![] } else { b"{}".to_vec() },
    }
}

fn random_section(kind: SectionKind, r: &mut Random) -> Section {
    let align = if kind == SectionKind::State { 1 } else { 1 << r.below(13) };
    let size = if kind == SectionKind::State { 1 } else { 64 + r.below(500) };
    let data = match kind {
        SectionKind::State => vec![0],
        SectionKind::Bss => vec![],
        _ => r.bytes(size),
    };
    Section { kind, align, size, data }
}

fn random_symbols(sections: &[Section], span: u64, r: &mut Random) -> Vec<Symbol> {
    let place_of = |kind| Place::Payload(kind);
    let mut symbols = Vec::new();
    let mut add = |name: String, kind, place, value, size, weak| {
        symbols.push(Symbol { name, kind, place, value, size, weak });
    };
    add("new".into(), SymbolKind::Function, place_of(SectionKind::Text), 3, 9, false);
    add("thunk".into(), SymbolKind::Function, place_of(SectionKind::Thunks), 0, 0, false);
    for i in 0..r.below(20) {
        let kind = [SymbolKind::Function, SymbolKind::Object, SymbolKind::Other][r.below(3) as usize];
        match r.below(3) {
            0 => add(format!("import{}", i % 7), SymbolKind::Other, Place::Import, 0, 0, i % 7 == 3),
            1 => add(format!("base{i}"), kind, Place::Base, r.below(span), 0, false),
            _ => {
                let section = &sections[r.below(sections.len() as u64) as usize];
                let value = r.below(section.size);
                add(String::new(), kind, place_of(section.kind), value, section.size - value, false);
            }
        }
    }
    symbols
}

fn random_relocations(sections: &[Section], symbols: &[Symbol], fixed: bool, r: &mut Random) -> Vec<Relocation> {
    let kinds = [1, 2, 4, 9, 24, 10, 11].map(|n| RelocationKind::from_number(n).unwrap());
    let mut relocations = Vec::new();
    for s in sections.iter().filter(|s| !matches!(s.kind, SectionKind::Bss | SectionKind::State)) {
        let mut offset = r.below(20);
        while offset + 8 <= s.size {
            let kind = kinds[r.below(if fixed { 7 } else { 5 }) as usize];
            let symbol = r.below(symbols.len() as u64) as u32;
            relocations.push(reloc(s.kind, offset, kind, symbol, r.next() as i64));
            offset += kind.width() + r.below(40);
        }
    }
    relocations.reverse();
    relocations
}

fn random_functions(symbols: &[Symbol], r: &mut Random) -> Vec<FunctionRecord> {
    assert!(symbols.len() >= 2);
    let count = 1 + r.below(6);
    // The parent of every fragment is the first record, wherever that ends up.
    (0..count)
        .map(|i| {
            let digest = [r.next() as u8; 32];
            let site_bytes = [1, 2, 3, 4, r.next() as u8];
            let site_offset = 4 * r.below(2) as u8;
            let entry = Entry {
                new_symbol: 0,
                thunk_symbol: 1,
                site_offset,
                site_bytes,
                displaced: 5,
                may_go_on: r.below(2) == 1,
            };
            let role = if i == 0 || r.below(3) > 0 { Role::Entry(entry) } else { Role::Fragment(0) };
            FunctionRecord { old_address: 0x8000 - i * 0x100, old_size: 9 + r.below(0x80), digest, role }
        })
        .collect()
}
