//! With which flags the builds were made, as compilers note it in the debug information (`DW_AT_producer`).

use std::collections::BTreeSet;

use gimli::{AttributeValue, SectionId, constants as dw};

use crate::dwarf::{Sections, Source};
use crate::finding::{Code, Finding};
use crate::image::Image;

const WANTED: &[SectionId] = &[
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// Options that say where files lie, not how code is made.
const PLACES: [&str; 4] = ["-ffile-prefix-map", "-fdebug-prefix-map", "-fmacro-prefix-map", "-frandom-seed"];

/// Flags that each build was made with and the other was not.
pub(crate) fn flags(old: &Image<'_>, new: &Image<'_>) -> Option<Finding> {
    if old.compilers != new.compilers {
        return None; // said already
    }
    let (before, now) = (flag_sets(&old.debug), flag_sets(&new.debug));
    let only = |a: &BTreeSet<Vec<String>>, b: &BTreeSet<Vec<String>>| a.difference(b).next().cloned();
    let (x, y) = (only(&before, &now)?, only(&now, &before)?);
    let list = |a: &[String], b: &[String]| {
        let found: Vec<&str> = a.iter().filter(|flag| !b.contains(flag)).map(String::as_str).collect();
        if found.is_empty() { "nothing else".to_owned() } else { found.join(" ") }
    };
    let message = format!("old: {}; new: {}", list(&x, &y), list(&y, &x));
    Some(Finding::new(Code::FlagsDiffer, &old.file_name, message))
}

/// The flags of each unit; one entry for units made alike.
fn flag_sets(source: &Source<'_>) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    if let Ok(Some(sections)) = Sections::load(source, WANTED) {
        // What cannot be read says nothing about flags; other stages report it.
        let _ = read(&sections, &mut found);
    }
    found
}

fn read(sections: &Sections<'_>, found: &mut BTreeSet<Vec<String>>) -> gimli::Result<()> {
    let dwarf = sections.dwarf();
    let mut units = dwarf.units();
    let mut seen = BTreeSet::new();
    while let Some(header) = units.next()? {
        let abbreviations = dwarf.abbreviations(&header)?;
        let mut entries = header.entries(&abbreviations);
        let Some(root) = entries.next_dfs()? else { continue };
        let Some(value) = root.attr_value(dw::DW_AT_producer) else { continue };
        let text = match value {
            AttributeValue::DebugStrRef(offset) if !seen.insert(offset.0) => continue,
            AttributeValue::DebugStrRef(offset) => dwarf.string(offset)?,
            _ => dwarf.attr_string(&dwarf.unit(header)?, value)?,
        };
        found.insert(options(&text.to_string_lossy()));
    }
    Ok(())
}

/// The words of a producer that are options.
fn options(producer: &str) -> Vec<String> {
    let words = producer.split_whitespace().filter(|w| w.starts_with('-') && !PLACES.iter().any(|p| w.starts_with(p)));
    words.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::options;

    #[test]
    fn options_without_those_that_name_places() {
        let gnu = "GNU C17 12.2.0 -mtune=generic -O2 -ffile-prefix-map=/a=. -fPIC";
        assert_eq!(options(gnu), ["-mtune=generic", "-O2", "-fPIC"]);
        assert!(options("clang LLVM (rustc version 1.90.0)").is_empty());
    }
}
