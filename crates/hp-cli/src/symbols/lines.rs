//! DWARF for patched code: one unit, a subprogram for each function, and the rows of the new build's line table moved
//! to where the patch has its copies. Addresses are those in the process: gdb adds nothing to them in a relocatable
//! object, it expects relocations to have made them.

use super::Symbol;
use gimli::write::{Address, AttributeValue, Dwarf, EndianVec, FileId, LineProgram, LineString, Sections, Unit};
use gimli::{Encoding, Format, LineEncoding, LittleEndian, SectionId, constants as dw};
use hp_diff::{BuildFile, CodeLines};
use std::collections::HashMap;
use std::ops::Range;

const ENCODING: Encoding = Encoding { format: Format::Dwarf32, version: 4, address_size: 8 };

/// The debug sections for these symbols of a patch's `.text`; none where no build knows lines of them.
pub(super) fn sections(
    text: &Range<u64>,
    symbols: &[Symbol],
    builds: &[BuildFile],
) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let wanted: Vec<(&str, u64)> = symbols.iter().map(|symbol| (symbol.name.as_str(), symbol.size)).collect();
    let mut known = HashMap::new();
    for build in builds {
        known.extend(build.code_lines(&wanted)?.into_iter().map(|lines| ((lines.name.clone(), lines.size), lines)));
    }
    if known.is_empty() {
        return Ok(Vec::new());
    }
    let mut unit = Unit::new(ENCODING, line_program());
    describe(&mut unit, text, symbols);
    for symbol in symbols {
        if let Some(lines) = known.get(&(symbol.name.clone(), symbol.size)) {
            add_rows(&mut unit.line_program, symbol.address, lines);
        }
    }
    let mut dwarf = Dwarf::new();
    dwarf.units.add(unit);
    let mut written = Sections::new(EndianVec::new(LittleEndian));
    dwarf.write(&mut written)?;
    let mut found = Vec::new();
    written.for_each(|id: SectionId, content| {
        if !content.slice().is_empty() {
            found.push((id.name(), content.slice().to_vec()));
        }
        gimli::write::Result::Ok(())
    })?;
    Ok(found)
}

fn line_program() -> LineProgram {
    let string = |text: &str| LineString::String(text.as_bytes().to_vec());
    LineProgram::new(ENCODING, LineEncoding::default(), string(""), None, string("patch"), None)
}

/// The unit covers all of `.text`, and each function has a name and a range.
fn describe(unit: &mut Unit, text: &Range<u64>, symbols: &[Symbol]) {
    let root = unit.root();
    range(unit, root, text.start, text.end - text.start);
    unit.get_mut(root).set(dw::DW_AT_name, AttributeValue::String(b"patch".to_vec()));
    unit.get_mut(root).set(dw::DW_AT_language, AttributeValue::Language(dw::DW_LANG_C99));
    for symbol in symbols {
        let entry = unit.add(root, dw::DW_TAG_subprogram);
        range(unit, entry, symbol.address, symbol.size);
        unit.get_mut(entry).set(dw::DW_AT_name, AttributeValue::String(symbol.name.as_bytes().to_vec()));
    }
}

fn range(unit: &mut Unit, entry: gimli::write::UnitEntryId, start: u64, size: u64) {
    let entry = unit.get_mut(entry);
    entry.set(dw::DW_AT_low_pc, AttributeValue::Address(Address::Constant(start)));
    entry.set(dw::DW_AT_high_pc, AttributeValue::Udata(size));
}

/// One sequence of rows: a function's lines, from `start` on.
fn add_rows(program: &mut LineProgram, start: u64, lines: &CodeLines) {
    program.begin_sequence(Some(Address::Constant(start)));
    for (range, place) in &lines.rows {
        let row = program.row();
        (row.address_offset, row.line) = (range.start, u64::from(place.line));
        let file = file(program, &place.file);
        program.row().file = file;
        program.generate_row();
    }
    program.end_sequence(lines.size);
}

fn file(program: &mut LineProgram, path: &str) -> FileId {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = match folder {
        "" => program.default_directory(),
        folder => program.add_directory(LineString::String(folder.as_bytes().to_vec())),
    };
    program.add_file(LineString::String(name.as_bytes().to_vec()), directory, None)
}
