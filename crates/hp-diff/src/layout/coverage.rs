//! Which code the debug information describes.
//!
//! A program may be built partly with `-g`: then types are compared, but a changed
//! function of the part without may use types that nothing describes. A unit's own ranges
//! (DWARF 5, section 2.17) say what it covers.

use std::ops::Range;

use crate::dwarf::{Sections, Source, UNITS};

/// The code that units describe: ranges of link-time addresses, ordered. Empty where there
/// is no debug information or it cannot be read.
pub(crate) fn described_code(file: &Source<'_>) -> Vec<Range<u64>> {
    let mut found = match Sections::load(file, UNITS) {
        Ok(Some(sections)) => ranges(&sections).unwrap_or_default(),
        _ => Vec::new(),
    };
    found.sort_by_key(|r| (r.start, r.end));
    found
}

fn ranges(sections: &Sections<'_>) -> gimli::Result<Vec<Range<u64>>> {
    let dwarf = sections.dwarf();
    let mut found = Vec::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let mut ranges = dwarf.unit_ranges(&unit)?;
        while let Some(range) = ranges.next()? {
            found.push(range.begin..range.end);
        }
    }
    Ok(found)
}

/// True if one of the ordered `ranges` contains `address`.
pub(crate) fn contains(ranges: &[Range<u64>], address: u64) -> bool {
    let before = ranges.partition_point(|r| r.start <= address);
    ranges[..before].iter().rev().take(64).any(|r| r.contains(&address))
}
