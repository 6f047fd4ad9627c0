//! The source lines of some ranges of a build's code, for who writes debug information for copies of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use object::SymbolKind;

use crate::Error;
use crate::image::Image;
use crate::input::BuildFile;
use crate::source::{Place, SourceMap};

/// One range of code with a name, and where its instructions come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeLines {
    /// Its name in the symbol table.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Offsets in the range, ordered, and the place in the source that they come from.
    pub rows: Vec<(Range<u64>, Place)>,
}

impl BuildFile {
    /// The places in the source that these link-time addresses come from, as far as the debug information knows them.
    ///
    /// # Errors
    /// If the build cannot be parsed.
    pub fn places(&self, addresses: &[u64]) -> Result<BTreeMap<u64, Place>, Error> {
        let image = Image::parse(&self.0)?;
        let wanted: BTreeSet<u64> = addresses.iter().copied().collect();
        let map = SourceMap::lines(&image.debug, wanted.iter().map(|at| *at..*at + 1).collect());
        Ok(wanted.into_iter().filter_map(|at| Some((at, map.place(at)?))).collect())
    }

    /// The lines of those ranges of code whose symbol has one of these names and sizes, as far as the debug information
    /// knows them. A name and size that several symbols share is left out: which one is meant is not known.
    ///
    /// # Errors
    /// If the build cannot be parsed.
    pub fn code_lines(&self, wanted: &[(&str, u64)]) -> Result<Vec<CodeLines>, Error> {
        let image = Image::parse(&self.0)?;
        let code = image.symbols.iter().filter(|s| s.kind == SymbolKind::Text);
        let mut found: Vec<(&str, u64, u64)> = code.map(|s| (s.name, s.size, s.address)).collect();
        found.retain(|(name, size, _)| wanted.contains(&(name, *size)));
        found.sort_unstable();
        found.dedup();
        let alike = |a: &(&str, u64, u64), b: &(&str, u64, u64)| (a.0, a.1) == (b.0, b.1);
        let unique = found.chunk_by(alike).filter_map(|group| match group {
            [one] => Some(*one),
            _ => None,
        });
        let unique: Vec<(&str, u64, u64)> = unique.collect();
        let map = SourceMap::read(&image.debug, unique.iter().map(|(_, size, at)| *at..*at + *size).collect());
        let lines = unique.iter().map(|&(name, size, at)| CodeLines {
            name: name.to_owned(),
            size,
            rows: map.rows(at..at + size).map(|(range, place)| (range.start - at..range.end - at, place)).collect(),
        });
        Ok(lines.filter(|lines| !lines.rows.is_empty()).collect())
    }
}
