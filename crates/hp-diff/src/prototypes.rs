//! How many arguments functions take, from the debug information of those who call them.
//!
//! Compilers describe the functions that a unit calls (`DW_TAG_subprogram`, DWARF 5, section 3.3.1) with their parameters. A
//! description without prototype (C's `void f()`), with unnamed further parameters, or with parameters that may take
//! more than one register, says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use gimli::{AttributeValue, constants as dw};

use crate::dwarf::{Reader, Sections, Source, UNITS};

/// How many references lead from a parameter to its type at most.
const HOPS: usize = 16;

/// Numbers of parameters, by the function's name as the linker knows it; the largest, where descriptions differ.
#[derive(Debug, Default)]
pub(crate) struct Prototypes(BTreeMap<String, Option<usize>>);

impl Prototypes {
    /// Reads those of the functions called `names` in the units that own one of the `addresses`. What cannot be read is not known.
    pub(crate) fn read(source: &Source<'_>, addresses: &BTreeSet<u64>, names: &BTreeSet<&str>) -> Prototypes {
        let mut all = Prototypes::default();
        if let (false, Ok(Some(sections))) = (addresses.is_empty(), Sections::load(source, UNITS)) {
            let dwarf = sections.dwarf();
            let _ = all.fill(&dwarf, addresses, names);
        }
        all
    }

    /// How many arguments a function takes in registers at most; `None` if that is not known.
    pub(crate) fn arguments(&self, name: &str) -> Option<usize> {
        *self.0.get(plain(name))?
    }

    fn fill(
        &mut self,
        dwarf: &gimli::Dwarf<Reader<'_>>,
        addresses: &BTreeSet<u64>,
        names: &BTreeSet<&str>,
    ) -> gimli::Result<()> {
        let wanted: BTreeSet<&str> = names.iter().map(|name| plain(name)).collect();
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            let unit = dwarf.unit(header)?;
            let (mut ranges, mut owns) = (dwarf.unit_ranges(&unit)?, false);
            while let Some(Range { start, end }) = ranges.next()?.map(|r| r.begin..r.end) {
                owns |= start < end && addresses.range(start..end).next().is_some();
            }
            if owns {
                self.read_unit(dwarf, &unit, &wanted)?;
            }
        }
        Ok(())
    }

    fn read_unit(
        &mut self,
        dwarf: &gimli::Dwarf<Reader<'_>>,
        unit: &gimli::Unit<Reader<'_>>,
        wanted: &BTreeSet<&str>,
    ) -> gimli::Result<()> {
        let mut entries = unit.entries();
        // The function that is being described, how deep, and how many parameters it has so far.
        let mut open: Option<(String, isize, Option<usize>)> = None;
        while let Some(entry) = entries.next_dfs()? {
            if let Some((name, depth, count)) = &mut open {
                if entry.depth() > *depth {
                    match entry.tag() {
                        _ if entry.depth() > *depth + 1 => {}
                        dw::DW_TAG_formal_parameter if takes_a_register(unit, entry) => {
                            *count = count.map(|n| n + 1);
                        }
                        dw::DW_TAG_formal_parameter | dw::DW_TAG_unspecified_parameters => *count = None,
                        _ => {}
                    }
                    continue;
                }
                let name = std::mem::take(name);
                self.add(name, *count);
                open = None;
            }
            if entry.tag() != dw::DW_TAG_subprogram {
                continue;
            }
            let text = |at| {
                let value = entry.attr_value(at)?;
                dwarf.attr_string(unit, value).ok().map(|s| s.to_string_lossy().into_owned())
            };
            let linked = text(dw::DW_AT_linkage_name);
            let prototyped = linked.is_some() || entry.attr_value(dw::DW_AT_prototyped).is_some();
            if let Some(name) = linked.or_else(|| text(dw::DW_AT_name)).filter(|n| wanted.contains(n.as_str())) {
                open = Some((name, entry.depth(), prototyped.then_some(0)));
            }
        }
        if let Some((name, _, count)) = open {
            self.add(name, count);
        }
        Ok(())
    }

    fn add(&mut self, name: String, count: Option<usize>) {
        let known = self.0.entry(name).or_insert(count);
        *known = known.zip(count).map(|(one, other)| one.max(other));
    }
}

/// A name without the version that an import has.
fn plain(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

/// True for a parameter that takes one register at most.
fn takes_a_register(unit: &gimli::Unit<Reader<'_>>, parameter: &gimli::DebuggingInformationEntry<Reader<'_>>) -> bool {
    let mut next = parameter.attr_value(dw::DW_AT_type);
    for _ in 0..HOPS {
        let Some(AttributeValue::UnitRef(offset)) = next else { return false };
        let Ok(entry) = unit.entry(offset) else { return false };
        match entry.tag() {
            dw::DW_TAG_pointer_type | dw::DW_TAG_reference_type | dw::DW_TAG_enumeration_type => return true,
            dw::DW_TAG_base_type => {
                let size = entry.attr_value(dw::DW_AT_byte_size).and_then(|v| v.udata_value());
                return size.is_some_and(|size| size <= 8);
            }
            dw::DW_TAG_typedef | dw::DW_TAG_const_type | dw::DW_TAG_volatile_type | dw::DW_TAG_restrict_type => {
                next = entry.attr_value(dw::DW_AT_type);
            }
            _ => return false,
        }
    }
    false
}
