//! Another build of a program without its source: every function different, and none does anything else.
//!
//! An operation on two registers has two encodings, for the operand that may be in memory can be either
//! one (Intel SDM volume 2, "ModR/M and SIB bytes": opcodes that differ in the direction bit). So `mov`, `add`, `sub`,
//! `and`, `or`, `xor` and `cmp` between registers are turned into their other encoding, byte by byte in place. What comes out
//! must behave as what went in; a patch between the two moves every function, with all that it refers to.

use std::collections::BTreeSet;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// The build, and the names of the functions that differ. Functions named in `keep` (and their fragments) stay as they are.
pub(crate) fn reencode(program: &[u8], keep: &BTreeSet<String>) -> (Vec<u8>, BTreeSet<String>) {
    let file = object::File::parse(program).expect("an ELF file");
    let mut out = program.to_vec();
    let mut names = BTreeSet::new();
    let kept: BTreeSet<u64> = functions(&file).filter(|f| keep.contains(stem(f.name))).map(|f| f.address).collect();
    let mut seen = BTreeSet::new();
    for function in functions(&file).filter(|f| !kept.contains(&f.address)) {
        if seen.insert(function.address) && in_other_encodings(&mut out, &function) {
            names.insert(function.name.to_string());
        }
    }
    let id = file.build_id().expect("well-formed notes").expect("a build ID");
    let at = id.as_ptr().addr() - program.as_ptr().addr();
    out[at] ^= 0xff;
    (out, names)
}

/// A function and where its code lies in the file.
struct Function<'a> {
    name: &'a str,
    address: u64,
    file: usize,
    size: usize,
}

fn functions<'a>(file: &'a object::File<'a>) -> impl Iterator<Item = Function<'a>> {
    let text = file.section_by_name(".text").expect("a section .text");
    let (start, size) = text.file_range().expect(".text is in the file");
    let (first, end) = (text.address(), text.address() + size);
    let code = file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0);
    code.filter(move |s| s.address() >= first && s.address() + s.size() <= end).map(move |s| Function {
        name: s.name().expect("a name"),
        address: s.address(),
        file: usize::try_from(s.address() - first + start).expect("it is in memory"),
        size: usize::try_from(s.size()).expect("it is in memory"),
    })
}

/// The name without what the compiler appends to those of fragments.
fn stem(name: &str) -> &str {
    name.strip_suffix(".cold").unwrap_or(name)
}

fn in_other_encodings(out: &mut [u8], function: &Function<'_>) -> bool {
    let code = &mut out[function.file..][..function.size];
    let original = code.to_vec();
    let mut decoder = Decoder::with_ip(64, &original, function.address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let at = decoder.position();
        decoder.decode_out(&mut instruction);
        in_other_encoding(&mut code[at..][..instruction.len()]);
    }
    code != original
}

/// Swaps the operands' places and turns the direction bit, if the instruction is one of two registers.
fn in_other_encoding(code: &mut [u8]) {
    let (rex, rest) = match code {
        [rex, rest @ ..] if *rex & 0xf0 == 0x40 => (Some(rex), rest),
        rest => (None, rest),
    };
    let [
        opcode @ (0x01 | 0x03 | 0x09 | 0x0b | 0x21 | 0x23 | 0x29 | 0x2b | 0x31 | 0x33 | 0x39 | 0x3b | 0x89 | 0x8b),
        modrm,
    ] = rest
    else {
        return;
    };
    if *modrm >> 6 != 3 {
        return;
    }
    *opcode ^= 2;
    *modrm = 0xc0 | (*modrm & 7) << 3 | (*modrm >> 3) & 7;
    if let Some(rex) = rex {
        // The bits R and B extend the two fields.
        *rex = *rex & !5 | (*rex & 1) << 2 | (*rex >> 2) & 1;
    }
}
