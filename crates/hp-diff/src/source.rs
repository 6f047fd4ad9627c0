//! Source lines and inlined functions of some ranges of code, from the debug information.
//!
//! Lines come from the line table (DWARF 5, section 6.2), inlined functions from `DW_TAG_inlined_subroutine` (3.3.8.2).
//! Only units that own one of the ranges are read. What cannot be read is not known: nothing is proven by it.

use std::collections::BTreeMap;
use std::ops::Range;

use gimli::{AttributeValue, UnitOffset, constants as dw};

use crate::dwarf::{Reader, Sections, Source, UNITS};

/// How many references lead from an inlined function to its name at most.
const HOPS: usize = 6;

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Place {
    /// The file as the compiler was given it, with its directory where that is known.
    pub file: String,
    /// The line, counted from 1.
    pub line: u32,
}

impl std::fmt::Display for Place {
    /// The file's name without directories, and the line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.rsplit('/').next().unwrap_or_default(), self.line)
    }
}

/// The lines and inlined functions of one build, where they were asked for.
#[derive(Debug, Default)]
pub(crate) struct SourceMap {
    files: Vec<String>,
    /// Start to end, file, line.
    lines: BTreeMap<u64, (u64, u32, u32)>,
    inlined: Vec<Inlined>,
}

/// One range of code that came from another function.
#[derive(Debug)]
struct Inlined {
    range: Range<u64>,
    depth: isize,
    name: String,
    /// Its name as the linker knows it, where that is another one.
    linked: Option<String>,
    /// Where it was called.
    call: Place,
}

impl SourceMap {
    /// Reads what the debug information says about `ranges`, which do not overlap.
    pub(crate) fn read(source: &Source<'_>, ranges: Vec<Range<u64>>) -> SourceMap {
        SourceMap::of(source, ranges, true)
    }

    /// Reads the lines alone.
    pub(crate) fn lines(source: &Source<'_>, ranges: Vec<Range<u64>>) -> SourceMap {
        SourceMap::of(source, ranges, false)
    }

    fn of(source: &Source<'_>, mut ranges: Vec<Range<u64>>, inlined: bool) -> SourceMap {
        let mut map = SourceMap::default();
        ranges.sort_unstable_by_key(|r| (r.start, r.end));
        if let (false, Ok(Some(sections))) = (ranges.is_empty(), Sections::load(source, UNITS)) {
            let dwarf = sections.dwarf();
            let _ = map.fill(&Dwarf { supplement: sections.supplement(), dwarf: &dwarf }, &ranges, inlined);
        }
        map
    }

    /// Where the instruction at `address` comes from.
    pub(crate) fn place(&self, address: u64) -> Option<Place> {
        let (_, &(end, file, line)) = self.lines.range(..=address).next_back()?;
        (address < end && line > 0).then(|| Place { file: self.files[file as usize].clone(), line })
    }

    /// Where the instruction at `address` comes from, and where the inlined functions that it belongs to were called, the
    /// innermost first.
    pub(crate) fn places(&self, address: u64) -> Vec<Place> {
        self.place(address).into_iter().chain(self.inlined_at(address).into_iter().map(|i| i.call.clone())).collect()
    }

    /// The rows of the line table that lie in `range`, cut to it, in order.
    pub(crate) fn rows(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Place)> {
        let first = self.lines.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        self.lines.range(first..range.end).filter_map(move |(&start, &(end, file, line))| {
            let (start, end) = (start.max(range.start), end.min(range.end));
            let place = || Place { file: self.files[file as usize].clone(), line };
            (start < end && line > 0).then(|| (start..end, place()))
        })
    }

    /// True if an instruction in `range` comes from this line of a file whose path ends in `file`, or from a function
    /// that was inlined there.
    pub(crate) fn has(&self, range: Range<u64>, file: &str, line: u32) -> bool {
        let is_file = |n: u32| self.files[n as usize].ends_with(file);
        let called = |i: &Inlined| i.call.line == line && i.call.file.ends_with(file);
        self.inlined.iter().any(|i| range.contains(&i.range.start) && called(i))
            || self.lines.range(range).any(|(_, row)| row.2 == line && is_file(row.1))
    }

    /// The innermost inlined function that the instruction at `address` belongs to.
    pub(crate) fn inlined(&self, address: u64) -> Option<&str> {
        let around = self.inlined.iter().filter(|i| i.range.contains(&address));
        around.max_by_key(|i| i.depth).map(|i| i.name.as_str())
    }

    /// The inlined functions that the instruction at `address` belongs to, the innermost first: their names as the linker knows
    /// them, where these are others than in the source.
    pub(crate) fn around(&self, address: u64) -> impl Iterator<Item = Option<&str>> {
        self.inlined_at(address).into_iter().map(|i| i.linked.as_deref())
    }

    /// The inlined functions that the instruction at `address` belongs to, the innermost first.
    fn inlined_at(&self, address: u64) -> Vec<&Inlined> {
        let mut around: Vec<&Inlined> = self.inlined.iter().filter(|i| i.range.contains(&address)).collect();
        around.sort_by_key(|i| std::cmp::Reverse(i.depth));
        around
    }

    fn fill(&mut self, dwarf: &Dwarf<'_, '_>, wanted: &[Range<u64>], inlined: bool) -> gimli::Result<()> {
        let mut units = dwarf.dwarf.units();
        while let Some(header) = units.next()? {
            let unit = dwarf.dwarf.unit(header)?;
            let mut ranges = dwarf.dwarf.unit_ranges(&unit)?;
            let mut owns = false;
            while let Some(range) = ranges.next()? {
                owns |= touches(wanted, range.begin, range.end);
            }
            if owns {
                self.read_lines(dwarf.dwarf, &unit, wanted)?;
                if inlined {
                    self.read_inlined(dwarf, &unit, wanted)?;
                }
            }
        }
        Ok(())
    }

    fn read_lines<'d>(
        &mut self,
        dwarf: &gimli::Dwarf<Reader<'d>>,
        unit: &gimli::Unit<Reader<'d>>,
        wanted: &[Range<u64>],
    ) -> gimli::Result<()> {
        let Some(program) = unit.line_program.clone() else { return Ok(()) };
        let mut numbers: BTreeMap<u64, u32> = BTreeMap::new();
        let (mut rows, mut before) = (program.rows(), None::<(u64, u64, u32)>);
        while let Some((header, row)) = rows.next_row()? {
            if let Some((start, file, line)) = before.filter(|b| touches(wanted, b.0, row.address())) {
                let number = match numbers.get(&file) {
                    Some(number) => *number,
                    None => {
                        self.files.push(file_name(dwarf, unit, header, file));
                        let number = self.files.len() as u32 - 1;
                        numbers.insert(file, number);
                        number
                    }
                };
                self.lines.insert(start, (row.address(), number, line));
            }
            let line = row.line().map_or(0, |l| u32::try_from(l.get()).unwrap_or(0));
            before = (!row.end_sequence()).then(|| (row.address(), row.file_index(), line));
        }
        Ok(())
    }

    fn read_inlined<'d>(
        &mut self,
        dwarf: &Dwarf<'_, 'd>,
        unit: &gimli::Unit<Reader<'d>>,
        wanted: &[Range<u64>],
    ) -> gimli::Result<()> {
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            if entry.tag() != dw::DW_TAG_inlined_subroutine {
                continue;
            }
            let (depth, mut name) = (entry.depth(), None);
            let mut ranges = dwarf.dwarf.die_ranges(unit, entry)?;
            while let Some(range) = ranges.next()? {
                if touches(wanted, range.begin, range.end) {
                    let read = || (dwarf.name(unit, entry), dwarf.linked(unit, entry), call(dwarf, unit, entry));
                    let (name, linked, call) = name.get_or_insert_with(read).clone();
                    self.inlined.push(Inlined { range: range.begin..range.end, depth, name, linked, call });
                }
            }
        }
        Ok(())
    }
}

/// Where an inlined function was called; line 0 if that is not said.
fn call<'d>(dwarf: &Dwarf<'_, 'd>, unit: &gimli::Unit<Reader<'d>>, entry: &Entry<'d>) -> Place {
    let file = match entry.attr_value(dw::DW_AT_call_file) {
        Some(AttributeValue::FileIndex(index)) => Some(index),
        other => other.and_then(|v| v.udata_value()),
    };
    let line = entry.attr_value(dw::DW_AT_call_line).and_then(|v| v.udata_value());
    let header = unit.line_program.as_ref().map(|p| p.header());
    let name = file.zip(header).map(|(index, header)| file_name(dwarf.dwarf, unit, header, index));
    Place { file: name.unwrap_or_default(), line: line.and_then(|l| u32::try_from(l).ok()).unwrap_or(0) }
}

/// True if one of the ordered `ranges` shares an address with `start..end`.
fn touches(ranges: &[Range<u64>], start: u64, end: u64) -> bool {
    let next = ranges.partition_point(|r| r.end <= start);
    start < end && ranges.get(next).is_some_and(|r| r.start < end)
}

fn file_name<'d>(
    dwarf: &gimli::Dwarf<Reader<'d>>,
    unit: &gimli::Unit<Reader<'d>>,
    header: &gimli::LineProgramHeader<Reader<'d>>,
    index: u64,
) -> String {
    let text = |value| dwarf.attr_string(unit, value).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(file) = header.file(index) else { return String::new() };
    let mut path =
        std::path::PathBuf::from(unit.comp_dir.map(|d| d.to_string_lossy().into_owned()).unwrap_or_default());
    if let Some(directory) = file.directory(header) {
        path.push(text(directory));
    }
    path.push(text(file.path_name()));
    path.to_string_lossy().into_owned()
}

/// The debug information and what it shares with other files.
struct Dwarf<'s, 'd> {
    dwarf: &'s gimli::Dwarf<Reader<'d>>,
    supplement: Option<gimli::Dwarf<Reader<'d>>>,
}

type Entry<'d> = gimli::DebuggingInformationEntry<Reader<'d>>;

impl<'d> Dwarf<'_, 'd> {
    /// The name of the function that `entry` stands for.
    fn name(&self, unit: &gimli::Unit<Reader<'d>>, entry: &Entry<'d>) -> String {
        self.named(self.dwarf, unit, entry, dw::DW_AT_name, HOPS).unwrap_or_else(|| "a function without a name".into())
    }

    /// The same as the linker knows it, where that is another one.
    fn linked(&self, unit: &gimli::Unit<Reader<'d>>, entry: &Entry<'d>) -> Option<String> {
        self.named(self.dwarf, unit, entry, dw::DW_AT_linkage_name, HOPS)
    }

    fn named(
        &self,
        dwarf: &gimli::Dwarf<Reader<'d>>,
        unit: &gimli::Unit<Reader<'d>>,
        entry: &Entry<'d>,
        at: gimli::DwAt,
        hops: usize,
    ) -> Option<String> {
        if let Some(name) = entry.attr_value(at) {
            return Some(dwarf.attr_string(unit, name).ok()?.to_string_lossy().into_owned());
        }
        let hops = hops.checked_sub(1)?;
        let origin =
            [dw::DW_AT_abstract_origin, dw::DW_AT_specification].into_iter().find_map(|a| entry.attr_value(a))?;
        match origin {
            AttributeValue::UnitRef(offset) => self.named(dwarf, unit, &unit.entry(offset).ok()?, at, hops),
            AttributeValue::DebugInfoRef(offset) => self.elsewhere(dwarf, offset, at, hops),
            AttributeValue::DebugInfoRefSup(offset) => self.elsewhere(self.supplement.as_ref()?, offset, at, hops),
            _ => None,
        }
    }

    fn elsewhere(
        &self,
        dwarf: &gimli::Dwarf<Reader<'d>>,
        offset: gimli::DebugInfoOffset,
        at: gimli::DwAt,
        hops: usize,
    ) -> Option<String> {
        let mut units = dwarf.units();
        while let Some(header) = units.next().ok()? {
            let start = header.debug_info_offset()?.0;
            if (start..start + header.length_including_self()).contains(&offset.0) {
                let unit = dwarf.unit(header).ok()?;
                let entry = unit.entry(UnitOffset(offset.0 - start)).ok()?;
                return self.named(dwarf, &unit, &entry, at, hops);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::touches;

    #[test]
    fn ranges_touch_where_they_share_an_address() {
        let ranges = [10..20, 30..40];
        for (start, end, expected) in [
            (0, 10, false),
            (0, 11, true),
            (19, 30, true),
            (20, 30, false),
            (25, 35, true),
            (40, 50, false),
            (15, 15, false),
        ] {
            assert_eq!(touches(&ranges, start, end), expected, "{start}..{end}");
        }
    }
}
