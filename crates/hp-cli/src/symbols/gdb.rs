//! A gdb script that loads symbols for patched code, and the object files that it loads: the names of the patch or of
//! the record in the process, the unwind rows in memory, and source lines where the new build is at hand.

use super::{Code, Symbol, lines};
use crate::patch_file::write_file;
use crate::text::{clean, io_reason};
use anyhow::anyhow;
use hp_diff::BuildFile;
use object::write::{Object, SectionId, Symbol as ObjectSymbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionFlags, SectionKind, SymbolFlags, SymbolScope, elf};
use std::ffi::OsString;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Writes the script, and beside it the object files that it needs: all of them or none.
pub(super) fn write(codes: &[Code], script: &Path, builds: &[BuildFile]) -> anyhow::Result<()> {
    let mut new = Vec::new();
    let written = write_all(codes, script, builds, &mut new);
    if written.is_err() {
        new.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
    written
}

/// `new`: files that were not there before.
fn write_all(codes: &[Code], script: &Path, builds: &[BuildFile], new: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let mut text = String::from("# Symbols of patched code. In gdb: source THIS-FILE\nset confirm off\n");
    for code in codes {
        let object = write_object(code, script, builds, new)?;
        let loaded = &code.loaded;
        // The file name is quoted as gdb reads it.
        let name = object.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
        write!(text, "add-symbol-file \"{name}\" {:#x}", loaded.text.start)?;
        for (section, range) in [(".text.hpatch.thunks", &loaded.thunks), (".eh_frame", &loaded.eh_frame)] {
            if !range.is_empty() {
                write!(text, " -s {section} {:#x}", range.start)?;
            }
        }
        text.push('\n');
    }
    text.push_str("set confirm on\n");
    put(script, text.as_bytes())
}

fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    write_file(path, bytes)
        .map_err(|e| anyhow!("cannot write {}: {}", clean(&path.display().to_string()), io_reason(&e)))
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).map_err(|e| anyhow!("{}: {}", clean(&path.display().to_string()), io_reason(&e)))
}

/// `SCRIPT.ID.o`: the symbols, unwind rows and lines of one patch.
fn write_object(code: &Code, script: &Path, builds: &[BuildFile], new: &mut Vec<PathBuf>) -> anyhow::Result<PathBuf> {
    let mut name: OsString = script.as_os_str().to_owned();
    name.push(format!(".{}.o", code.loaded.id));
    let path = PathBuf::from(name);
    let content = object_file(code, builds)?;
    if std::fs::symlink_metadata(&path).is_err() {
        new.push(path.clone());
    }
    put(&path, &content)?;
    absolute(&path)
}

fn object_file(code: &Code, builds: &[BuildFile]) -> anyhow::Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let loaded = &code.loaded;
    let symbols = code.symbols();
    for (name, range) in [(".text", &loaded.text), (".text.hpatch.thunks", &loaded.thunks)] {
        if !range.is_empty() {
            let section = code_section(&mut object, name, range);
            for symbol in symbols.iter().filter(|symbol| range.contains(&symbol.address)) {
                add_symbol(&mut object, section, range, symbol);
            }
        }
    }
    if !loaded.unwind_rows.is_empty() {
        let section = object.add_section(Vec::new(), b".eh_frame".to_vec(), SectionKind::ReadOnlyData);
        object.append_section_data(section, &loaded.unwind_rows, 8);
    }
    let in_text: Vec<Symbol> = symbols.into_iter().filter(|symbol| loaded.text.contains(&symbol.address)).collect();
    for (name, content) in lines::sections(&loaded.text, &in_text, builds)? {
        let section = object.add_section(Vec::new(), name.as_bytes().to_vec(), SectionKind::Debug);
        object.append_section_data(section, &content, 1);
    }
    Ok(object.write()?)
}

/// The code itself is in the process: only its place and size are told.
fn code_section(object: &mut Object<'_>, name: &str, range: &Range<u64>) -> SectionId {
    let section = object.add_section(Vec::new(), name.as_bytes().to_vec(), SectionKind::UninitializedData);
    object.append_section_bss(section, range.end - range.start, 16);
    let sh_flags = elf::SHF_ALLOC | elf::SHF_EXECINSTR;
    object.section_mut(section).flags = SectionFlags::Elf { sh_type: elf::SHT_NOBITS, sh_flags };
    section
}

fn add_symbol(object: &mut Object<'_>, section: SectionId, range: &Range<u64>, symbol: &Symbol) {
    object.add_symbol(ObjectSymbol {
        name: symbol.name.as_bytes().to_vec(),
        value: symbol.address - range.start,
        size: symbol.size,
        kind: object::SymbolKind::Text,
        scope: SymbolScope::Compilation,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
}
