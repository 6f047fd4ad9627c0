//! Functions of a stripped build that no symbol names.
//!
//! Compilers write unwind rows for every function, so each row's range (LSB core
//! specification, "Exception Frames") is a function or a fragment of one. What is left of
//! the code between them, such as start-up code written in assembly, counts as one function
//! for each gap: it is compared, but has no rows, so it is never replaced.

use std::collections::BTreeMap;

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SectionFlags, SymbolKind, elf};

use crate::arch;
use crate::unwind::Rows;

/// A function without a name.
#[derive(Debug)]
pub(crate) struct Unnamed {
    pub address: u64,
    pub size: u64,
    /// What to call it: it says where it lies, so it must not be used to pair.
    pub name: String,
    /// From unwind rows; else from a gap between functions.
    pub rows: bool,
}

/// All functions of `elf` that neither its dynamic symbols nor those of `more` name.
pub(super) fn functions(elf: &ElfFile64<'_, Endianness>, more: Option<&ElfFile64<'_, Endianness>>) -> Vec<Unnamed> {
    let mut named: BTreeMap<u64, u64> = BTreeMap::new();
    let tables = elf.dynamic_symbols().chain(more.into_iter().flat_map(|m| m.symbols()));
    for symbol in tables.filter(|s| s.is_definition() && s.kind() == SymbolKind::Text) {
        let size = named.entry(symbol.address()).or_default();
        *size = (*size).max(symbol.size());
    }
    let rows = rows(elf);
    let mut found = Vec::new();
    for section in elf.sections().filter(is_code) {
        let (start, end) = (section.address(), section.address().saturating_add(section.size()));
        let mut ranges: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        ranges.extend(rows.range(start..end).map(|(a, size)| (*a, (*size, true))));
        ranges.extend(named.range(start..end).map(|(a, size)| (*a, (*size, false))));
        let mut at = start;
        for (address, (size, from_rows)) in ranges.into_iter().chain([(end, (0, false))]) {
            if at < address {
                found.extend(gap(&section, at, address));
            }
            if from_rows && at <= address && size > 0 && address + size <= end {
                found.push(Unnamed { address, size, name: format!("function_{address:x}"), rows: true });
            }
            at = at.max(address.saturating_add(size));
        }
    }
    found
}

/// Sections with functions; the linker's stubs are known otherwise.
fn is_code(section: &object::read::elf::ElfSection64<'_, '_, Endianness>) -> bool {
    let SectionFlags::Elf { sh_flags, .. } = section.flags() else { return false };
    let stubs = section.name().is_ok_and(|n| n.starts_with(".plt") || n == ".iplt");
    sh_flags.contains(elf::SHF_EXECINSTR) && sh_flags.contains(elf::SHF_ALLOC) && !stubs
}

fn rows(elf: &ElfFile64<'_, Endianness>) -> BTreeMap<u64, u64> {
    let Some(section) = elf.section_by_name(".eh_frame") else { return BTreeMap::new() };
    let Ok(data) = section.data() else { return BTreeMap::new() };
    Rows::parse(section.address(), data).ranges().collect()
}

/// The code between two functions, padding put aside.
fn gap(section: &object::read::elf::ElfSection64<'_, '_, Endianness>, start: u64, end: u64) -> Option<Unnamed> {
    let from = (start - section.address()) as usize;
    let bytes = section.data().ok()?.get(from..from + (end - start) as usize)?;
    let lead = arch::padding(bytes);
    let size = arch::unpadded(&bytes[lead..]) as u64;
    if bytes[lead..].iter().all(|b| *b == 0) {
        return None;
    }
    let address = start + lead as u64;
    Some(Unnamed { address, size, name: format!("code_{address:x}"), rows: false })
}
