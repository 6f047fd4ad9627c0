//! Variables and whose they are, from debug information (DWARF 5, sections 2.6, 3.3 and 4.1).

use std::borrow::Cow;
use std::collections::BTreeMap;

use gimli::{AttributeValue, EndianSlice, LittleEndian, constants as dw};
use object::{Object, ObjectSection};

use crate::Build;

type Slice<'d> = EndianSlice<'d, LittleEndian>;

/// Address of each variable: its source file, function (empty for none) and name.
#[derive(Debug, Default)]
pub(crate) struct Statics(pub(crate) BTreeMap<u64, (String, String, String)>);

impl Statics {
    /// Reads the debug information of a build, or of its debug file. What is missing or malformed is left out: then a
    /// variable stays without a name, which proves nothing.
    pub(crate) fn read(build: &Build<'_>) -> Statics {
        let files = [Some(build.image), build.debug].into_iter().flatten();
        let mut found = Statics::default();
        for file in files {
            let _ = found.read_file(file);
        }
        found
    }

    fn read_file(&mut self, file: &[u8]) -> Option<()> {
        let elf = object::File::parse(file).ok()?;
        let load = |id: gimli::SectionId| -> Result<Cow<'_, [u8]>, gimli::Error> {
            let section = elf.section_by_name(id.name());
            Ok(section.and_then(|s| s.uncompressed_data().ok()).unwrap_or_default())
        };
        let sections = gimli::DwarfSections::load(load).ok()?;
        let dwarf = sections.borrow(|data| EndianSlice::new(data, LittleEndian));
        let mut units = dwarf.units();
        while let Ok(Some(header)) = units.next() {
            let Ok(unit) = dwarf.unit(header) else { continue };
            let _ = self.read_unit(&dwarf, &unit);
        }
        Some(())
    }

    fn read_unit(&mut self, dwarf: &gimli::Dwarf<Slice<'_>>, unit: &gimli::Unit<Slice<'_>>) -> gimli::Result<()> {
        let file = match &unit.name {
            Some(name) => name.to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned(),
            None => String::new(),
        };
        let mut owners: Vec<(isize, Option<gimli::UnitOffset>)> = Vec::new();
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            let depth = entry.depth();
            owners.retain(|(d, _)| *d < depth);
            match entry.tag() {
                dw::DW_TAG_subprogram => owners.push((depth, Some(entry.offset()))),
                dw::DW_TAG_namespace => owners.push((depth, None)),
                dw::DW_TAG_variable => {
                    let Some(address) = place(dwarf, unit, entry) else { continue };
                    let names = [dw::DW_AT_linkage_name, dw::DW_AT_name];
                    let function = match owners.last() {
                        None => Some(String::new()),
                        Some((_, owner)) => owner.and_then(|owner| text(dwarf, unit, owner, &names)),
                    };
                    let name = text(dwarf, unit, entry.offset(), &[dw::DW_AT_name]);
                    if let (Some(name), Some(function)) = (name, function) {
                        self.0.insert(address, (file.clone(), function, name));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The fixed address of a variable.
fn place(
    dwarf: &gimli::Dwarf<Slice<'_>>,
    unit: &gimli::Unit<Slice<'_>>,
    entry: &gimli::DebuggingInformationEntry<Slice<'_>>,
) -> Option<u64> {
    let AttributeValue::Exprloc(expression) = entry.attr_value(dw::DW_AT_location)? else { return None };
    let mut operations = expression.operations(unit.encoding());
    let address = match operations.next().ok()?? {
        gimli::Operation::Address { address } => address,
        gimli::Operation::AddressIndex { index } => dwarf.address(unit, index).ok()?,
        _ => return None,
    };
    operations.next().ok()?.is_none().then_some(address)
}

/// The first of some attributes that an entry or what it stands for has.
fn text(
    dwarf: &gimli::Dwarf<Slice<'_>>,
    unit: &gimli::Unit<Slice<'_>>,
    offset: gimli::UnitOffset,
    names: &[gimli::DwAt],
) -> Option<String> {
    for name in names {
        let mut here = Some(offset);
        for _ in 0..8 {
            let Some(at) = here else { break };
            let entry = unit.entry(at).ok()?;
            if let Some(value) = entry.attr_value(*name) {
                let text = dwarf.attr_string(unit, value).ok()?;
                return Some(text.to_string_lossy().into_owned());
            }
            let link =
                entry.attr_value(dw::DW_AT_abstract_origin).or_else(|| entry.attr_value(dw::DW_AT_specification));
            here = match link {
                Some(AttributeValue::UnitRef(offset)) => Some(offset),
                _ => None,
            };
        }
    }
    None
}
