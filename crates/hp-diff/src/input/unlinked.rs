//! A relocatable object, laid out as if it were linked.
//!
//! Its relocations *are* its references (System V psABI for AMD64, chapter "Relocation"): each one says by symbol and
//! addend where a field leads. So every loaded section gets a place of its own, far from its neighbours, every symbol that
//! is defined elsewhere a place too, and the relocations are applied. From there on the object is an image like
//! any other, with two advantages: no address has two meanings across sections, and which absolute fields are
//! addresses is known (`fields`).
//!
//! Thread-local variables get an address like other data: what counts here is which variable a field means.
//!
//! Limits: relocations of the large code model and of 32-bit data are refused by name. The linker may still choose
//! among several definitions of one symbol; this reads one object.

use std::collections::BTreeMap;

use object::read::elf::{ElfFile64, Rela, SectionHeader, Sym};
use object::{Endianness, SectionIndex, SymbolIndex, elf};

/// Where the first section lies; between two of them there is at least as much.
const GAP: u64 = 0x1000;
/// Room behind a symbol of another object, for addends.
const ROOM: u64 = 0x4000;
/// What the slot of "this module" holds, which every thread-local symbol stands for alike.
pub(crate) const MODULE: u64 = u64::MAX;

/// A field of four or eight bytes in code that holds an address, not a distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub width: u8,
    /// Zero-extended, not sign-extended.
    pub unsigned: bool,
    /// Where it leads.
    pub target: u64,
}

/// A loaded section with its place.
#[derive(Debug)]
pub(crate) struct Placed {
    pub name: String,
    pub address: u64,
    pub size: u64,
    /// Relocated; empty for `SHT_NOBITS`.
    pub data: Vec<u8>,
    pub executable: bool,
    pub writable: bool,
}

/// A symbol that another object defines, or a common one.
#[derive(Debug)]
pub(crate) struct Outside {
    pub name: String,
    pub address: u64,
    pub size: u64,
    /// Not defined here.
    pub imported: bool,
    pub weak: bool,
}

/// An object with every section in its place.
#[derive(Debug, Default)]
pub(crate) struct Unlinked {
    pub sections: Vec<Placed>,
    /// By section index: what to add to an address in it.
    pub bases: Vec<u64>,
    pub outside: Vec<Outside>,
    /// Words of data that hold addresses.
    pub words: BTreeMap<u64, u64>,
    /// Slots that code reads addresses from: slot to what it holds.
    pub slots: BTreeMap<u64, u64>,
    /// Absolute fields in code, by their own address.
    pub fields: BTreeMap<u64, Field>,
    /// End of everything.
    pub end: u64,
}

type Elf<'d> = ElfFile64<'d, Endianness>;

impl Unlinked {
    /// Lays `file` out and applies its relocations.
    pub(crate) fn new(file: &Elf<'_>) -> Result<Unlinked, String> {
        let mut layout = Unlinked { end: GAP, ..Unlinked::default() };
        layout.place_sections(file)?;
        let symbols = layout.place_symbols(file)?;
        let mut slots: BTreeMap<u64, u64> = BTreeMap::new();
        let table = layout.end;
        let endian = file.endian();
        for (index, section) in file.elf_section_table().enumerate() {
            let Ok(Some((relocations, _))) = section.rela(endian, file.data()) else { continue };
            let target = SectionIndex(section.sh_info(endian) as usize);
            if let Some(at) = layout.loaded(target) {
                for relocation in relocations {
                    let one = Relocation::read(relocation, endian, &symbols)
                        .ok_or_else(|| format!("relocation section {} names a symbol that is not there", index.0))?;
                    layout.apply(at, one, (table, &mut slots))?;
                }
            }
        }
        layout.slots = slots.iter().map(|(value, slot)| (*slot, *value)).collect();
        layout.end = table + 8 * slots.len() as u64 + GAP;
        Ok(layout)
    }

    /// Where the table of slots lies: address and size.
    pub(crate) fn slot_table(&self) -> (u64, u64) {
        (self.slots.keys().next().copied().unwrap_or(0), 8 * self.slots.len() as u64)
    }

    fn loaded(&self, index: SectionIndex) -> Option<usize> {
        let base = *self.bases.get(index.0).filter(|base| **base != 0)?;
        self.sections.iter().position(|s| s.address == base)
    }

    fn place_sections(&mut self, file: &Elf<'_>) -> Result<(), String> {
        let (endian, table) = (file.endian(), file.elf_section_table());
        self.bases = vec![0; table.len()];
        for (index, section) in table.enumerate() {
            let flags = section.sh_flags(endian);
            if !flags.contains(elf::SHF_ALLOC) {
                continue;
            }
            let name = String::from_utf8_lossy(table.section_name(endian, section).unwrap_or_default()).into_owned();
            let size = section.sh_size(endian);
            let data =
                section.data(endian, file.data()).map_err(|_| format!("section {name} lies outside of the file"))?;
            let address = self.reserve(size, section.sh_addralign(endian)).ok_or("its sections are too large")?;
            self.bases[index.0] = address;
            self.sections.push(Placed {
                name,
                address,
                size,
                data: data.to_vec(),
                executable: flags.contains(elf::SHF_EXECINSTR),
                writable: flags.contains(elf::SHF_WRITE),
            });
        }
        Ok(())
    }

    /// A place of `size` bytes with nothing beside it.
    fn reserve(&mut self, size: u64, align: u64) -> Option<u64> {
        let address = self.end.checked_next_multiple_of(align.clamp(1, GAP))?;
        self.end = address.checked_add(size)?.checked_add(GAP)?;
        // Distances in code have 32 bits, and so has what may come of it.
        (self.end < 1 << 31).then_some(address)
    }

    /// The address of each symbol, by index, and its size.
    fn place_symbols(&mut self, file: &Elf<'_>) -> Result<Vec<Option<(u64, u64)>>, String> {
        let (endian, table) = (file.endian(), file.elf_symbol_table());
        let mut places = vec![Some((0, 0))];
        for (index, symbol) in table.enumerate().filter(|(index, _)| index.0 > 0) {
            let size = symbol.st_size(endian);
            let name = || String::from_utf8_lossy(table.symbol_name(endian, symbol).unwrap_or_default()).into_owned();
            let place = match symbol.st_shndx(endian) {
                elf::SHN_ABS => Some((symbol.st_value(endian), size)),
                elf::SHN_COMMON | elf::SHN_UNDEF => {
                    let imported = symbol.st_shndx(endian) == elf::SHN_UNDEF;
                    let size = if imported { ROOM } else { size };
                    let address = self.reserve(size, 64).ok_or("it has too many symbols")?;
                    let weak = symbol.st_bind() == elf::STB_WEAK;
                    self.outside.push(Outside { name: name(), address, size, imported, weak });
                    Some((address, size))
                }
                _ => {
                    let section = table.symbol_section(endian, symbol, index).ok().flatten();
                    let base = section.and_then(|s| self.bases.get(s.0).copied());
                    base.map(|base| (base.wrapping_add(symbol.st_value(endian)), size))
                }
            };
            places.resize(index.0, None);
            places.push(place);
        }
        Ok(places)
    }

    fn apply(
        &mut self,
        section: usize,
        one: Relocation,
        (table, slots): (u64, &mut BTreeMap<u64, u64>),
    ) -> Result<(), String> {
        let placed = &mut self.sections[section];
        let place = placed.address.wrapping_add(one.offset);
        let target = one.symbol.wrapping_add_signed(one.addend);
        let distance = |to: u64| (4, to.wrapping_sub(place));
        let next = table + 8 * slots.len() as u64;
        let (width, value) = match one.kind {
            elf::R_X86_64_NONE | elf::R_X86_64_TLSDESC_CALL => return Ok(()),
            elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => distance(target),
            elf::R_X86_64_PC64 => (8, target.wrapping_sub(place)),
            elf::R_X86_64_PC16 => (2, target.wrapping_sub(place)),
            elf::R_X86_64_PC8 => (1, target.wrapping_sub(place)),
            elf::R_X86_64_GOTPCREL
            | elf::R_X86_64_GOTPCRELX
            | elf::R_X86_64_REX_GOTPCRELX
            | elf::R_X86_64_GOTTPOFF
            | elf::R_X86_64_TLSGD
            | elf::R_X86_64_TLSLD
            | elf::R_X86_64_GOTPC32_TLSDESC => {
                let meaning = if one.kind == elf::R_X86_64_TLSLD { MODULE } else { one.symbol };
                let slot = *slots.entry(meaning).or_insert(next);
                distance(slot.wrapping_add_signed(one.addend))
            }
            elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_TPOFF32 | elf::R_X86_64_DTPOFF32 => {
                let unsigned = one.kind == elf::R_X86_64_32;
                self.fields.insert(place, Field { width: 4, unsigned, target });
                (4, target)
            }
            elf::R_X86_64_64 | elf::R_X86_64_TPOFF64 | elf::R_X86_64_DTPOFF64 => {
                if placed.executable {
                    self.fields.insert(place, Field { width: 8, unsigned: true, target });
                } else {
                    self.words.insert(place, target);
                }
                (8, target)
            }
            elf::R_X86_64_SIZE32 => (4, one.size.wrapping_add_signed(one.addend)),
            elf::R_X86_64_SIZE64 => (8, one.size.wrapping_add_signed(one.addend)),
            other => {
                return Err(format!(
                    "relocation type {} at {:#x} of section {} is not supported",
                    other.0, one.offset, placed.name
                ));
            }
        };
        let field = usize::try_from(one.offset).ok().and_then(|at| placed.data.get_mut(at..at.checked_add(width)?));
        let Some(field) = field else {
            return Err(format!("a relocation at {:#x} lies outside of section {}", one.offset, placed.name));
        };
        field.copy_from_slice(&value.to_le_bytes()[..width]);
        Ok(())
    }
}

/// A relocation with its symbol looked up.
#[derive(Clone, Copy)]
struct Relocation {
    kind: elf::RelocationType,
    offset: u64,
    symbol: u64,
    size: u64,
    addend: i64,
}

impl Relocation {
    fn read(rela: &elf::Rela64<Endianness>, endian: Endianness, symbols: &[Option<(u64, u64)>]) -> Option<Relocation> {
        let index = SymbolIndex(rela.r_sym(endian, false) as usize);
        let (symbol, size) = (*symbols.get(index.0)?)?;
        Some(Relocation {
            kind: rela.r_type(endian, false),
            offset: rela.r_offset(endian),
            symbol,
            size,
            addend: rela.r_addend(endian),
        })
    }
}
