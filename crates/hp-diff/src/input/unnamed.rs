//! Functions of a stripped build that no symbol names.
//!
//! Compilers write unwind rows for every function, so each row's range (LSB core
//! specification, "Exception Frames") is a function or a fragment of one. What is left of
//! the code between them, such as start-up code written in assembly, counts as one function
//! for each gap: it is compared, but has no rows, so it is never replaced.

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
    let tables = elf.dynamic_symbols().chain(more.into_iter().flat_map(|m| m.symbols()));
    let named = tables.filter(|s| s.is_definition() && s.kind() == SymbolKind::Text);
    let mut known: Vec<Known> =
        named.map(|s| Known { address: s.address(), from_rows: false, size: s.size() }).collect();
    let rows = rows(elf);
    known.extend(rows.ranges().map(|(address, size)| Known { address, from_rows: true, size }));
    drop(rows);
    // At each address the largest symbol counts, else the rows.
    known.sort_unstable_by_key(|k| (k.address, k.from_rows, std::cmp::Reverse(k.size)));
    known.dedup_by_key(|k| k.address);
    let mut found = Vec::new();
    for section in elf.sections().filter(is_code) {
        let (start, end) = (section.address(), section.address().saturating_add(section.size()));
        let below = |address: u64| known.partition_point(|k| k.address < address);
        let mut at = start;
        let last = Known { address: end, from_rows: false, size: 0 };
        for &Known { address, from_rows, size } in known[below(start)..below(end)].iter().chain([&last]) {
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

/// A range of code that something tells of.
struct Known {
    address: u64,
    from_rows: bool,
    size: u64,
}

/// Sections with functions; the linker's stubs are known otherwise.
fn is_code(section: &object::read::elf::ElfSection64<'_, '_, Endianness>) -> bool {
    let SectionFlags::Elf { sh_flags, .. } = section.flags() else { return false };
    let stubs = section.name().is_ok_and(|n| n.starts_with(".plt") || n == ".iplt");
    sh_flags.contains(elf::SHF_EXECINSTR) && sh_flags.contains(elf::SHF_ALLOC) && !stubs
}

fn rows<'d>(elf: &ElfFile64<'d, Endianness>) -> Rows<'d> {
    let section = elf.section_by_name(".eh_frame");
    section.and_then(|s| Some(Rows::parse(s.address(), s.data().ok()?))).unwrap_or_default()
}

/// The code between two functions, padding put aside.
fn gap(section: &object::read::elf::ElfSection64<'_, '_, Endianness>, start: u64, end: u64) -> Option<Unnamed> {
    let from = (start - section.address()) as usize;
    let bytes = section.data().ok()?.get(from..from + (end - start) as usize)?;
    let lead = arch::padding(bytes);
    if lead == bytes.len() {
        return None;
    }
    let size = arch::unpadded(&bytes[lead..]) as u64;
    if bytes[lead..].iter().all(|b| *b == 0) {
        return None;
    }
    let address = start + lead as u64;
    Some(Unnamed { address, size, name: format!("code_{address:x}"), rows: false })
}
