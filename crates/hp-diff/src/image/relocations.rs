//! What the dynamic linker and the static linker put into the words of an image.

use object::read::elf::{ElfFile64, Rela, SectionHeader, Sym};
use object::{Endianness, Object, ObjectSection, elf};

use super::{Image, Word};
use crate::arch;

/// What has been found so far, with its address. Of several for one address the last counts.
type Words = Vec<(u64, Word)>;

impl<'a> Image<'a> {
    /// Finds what lies in the words of the image, and its PLT stubs.
    pub(super) fn read_words(&mut self, elf: &ElfFile64<'a, Endianness>) -> object::Result<()> {
        let code = self.sections.iter().filter(|s| s.executable && (s.name.starts_with(".plt") || s.name == ".iplt"));
        let mut stubs: Vec<(u64, u64)> = code.flat_map(|s| arch::plt_stubs(s.address, s.data)).collect();
        let mut words = dead_slots(&stubs);
        self.fill_static_slots(&mut words);
        let filled = words.len();
        self.read_relocations(elf, &mut words)?;
        let code: Vec<_> = self.sections.iter().filter(|s| s.executable).map(|s| s.address..s.end()).collect();
        self.text_relocations = words[filled..].iter().any(|(at, _)| code.iter().any(|range| range.contains(at)));
        self.words = words.into();
        stubs.retain(|(_, slot)| self.words.contains_key(slot));
        self.stubs = stubs.into();
        Ok(())
    }

    /// Finds the names that the image imports.
    pub(super) fn read_imports(&mut self, elf: &ElfFile64<'a, Endianness>) -> object::Result<()> {
        let endian = elf.endian();
        let names = Names::of(elf)?;
        for (index, symbol) in elf.elf_dynamic_symbol_table().enumerate() {
            if symbol.st_shndx(endian) == elf::SHN_UNDEF {
                let name = names.of_symbol(index, false)?;
                if symbol.st_bind() == elf::STB_WEAK {
                    self.weak.insert(name.clone());
                }
                if symbol.st_value(endian) != 0 {
                    self.canonical.insert(name.clone());
                }
                self.imported.push(name);
            }
        }
        Ok(())
    }

    fn read_relocations(&mut self, elf: &ElfFile64<'a, Endianness>, words: &mut Words) -> object::Result<()> {
        let (endian, data) = (elf.endian(), elf.data());
        let table = elf.elf_section_table();
        let names = Names::of(elf)?;
        for section in table.iter() {
            let allocated = section.sh_flags(endian).contains(elf::SHF_ALLOC);
            if let (true, Some((relas, _))) = (allocated, section.rela(endian, data)?) {
                for rela in relas {
                    let address = rela.r_offset(endian);
                    let addend = rela.r_addend(endian);
                    let kind = rela.r_type(endian, false);
                    let copied = kind == elf::R_X86_64_COPY;
                    let symbol = || names.of_symbol(object::SymbolIndex(rela.r_sym(endian, false) as usize), copied);
                    let word = match kind {
                        elf::R_X86_64_RELATIVE => Word::Address(addend as u64),
                        elf::R_X86_64_IRELATIVE => Word::Resolver(addend as u64),
                        elf::R_X86_64_64 | elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT => {
                            Word::Symbol(symbol()?, addend)
                        }
                        elf::R_X86_64_COPY => Word::Copy(symbol()?),
                        elf::R_X86_64_DTPMOD64
                        | elf::R_X86_64_DTPOFF64
                        | elf::R_X86_64_TPOFF64
                        | elf::R_X86_64_TLSDESC => Word::Tls(kind.0, symbol()?, addend),
                        other => Word::Other(other.0, symbol()?, addend),
                    };
                    words.push((address, word));
                }
            }
        }
        self.read_relr(elf, words)
    }

    /// Some GOT slots the linker itself fills in, without a dynamic relocation: with a thread-local offset, with 0 for
    /// a weak symbol that nothing defines, and in a position-dependent image with an address.
    fn fill_static_slots(&self, words: &mut Words) {
        for section in self.sections.iter().filter(|s| s.name.starts_with(".got")) {
            for (i, word) in section.data.chunks_exact(8).enumerate() {
                let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
                let word = if self.fixed_address && (self.start..self.span).contains(&value) {
                    Word::Address(value)
                } else {
                    Word::Other(elf::R_X86_64_NONE.0, String::new(), value as i64)
                };
                words.push((section.address + 8 * i as u64, word));
            }
        }
    }

    /// `DT_RELR`: relative relocations packed as addresses and bitmaps (gABI, "Relative
    /// relocation table"). The addend is the word itself.
    fn read_relr(&self, elf: &ElfFile64<'a, Endianness>, words: &mut Words) -> object::Result<()> {
        let Some(section) = elf.section_by_name(".relr.dyn") else { return Ok(()) };
        let mut next = 0u64;
        let mut found = Vec::new();
        for entry in section.data()?.chunks_exact(8) {
            let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
            if entry & 1 == 0 {
                found.push(entry);
                next = entry.wrapping_add(8);
            } else {
                found.extend((0..63).filter(|i| entry >> (i + 1) & 1 == 1).map(|i| next.wrapping_add(8 * i)));
                next = next.wrapping_add(8 * 63);
            }
        }
        for address in found {
            if let Some(value) = self.u64_at(address) {
                words.push((address, Word::Address(value)));
            }
        }
        Ok(())
    }
}

/// For a weak symbol that nothing defines, GNU ld gives a static-PIE a stub that jumps through no slot: the
/// program tests the symbol, so nothing ever gets there. All such stubs are the same. Other stubs need a slot.
fn dead_slots(stubs: &[(u64, u64)]) -> Words {
    let slots = stubs.iter().map(|(_, slot)| *slot).filter(|slot| slot % 8 != 0);
    slots.map(|slot| (slot, Word::Other(elf::R_X86_64_NONE.0, String::new(), 0))).collect()
}

/// Names of dynamic symbols: `name@VERSION` for those that are imported or copied from a library.
struct Names<'e, 'a> {
    elf: &'e ElfFile64<'a, Endianness>,
    versions: Option<object::read::elf::VersionTable<'a, object::elf::FileHeader64<Endianness>>>,
}

impl<'e, 'a> Names<'e, 'a> {
    fn of(elf: &'e ElfFile64<'a, Endianness>) -> object::Result<Names<'e, 'a>> {
        Ok(Names { elf, versions: elf.elf_section_table().versions(elf.endian(), elf.data())? })
    }

    fn of_symbol(&self, index: object::SymbolIndex, copied: bool) -> object::Result<String> {
        if index.0 == 0 {
            return Ok(String::new());
        }
        let (endian, symbols) = (self.elf.endian(), self.elf.elf_dynamic_symbol_table());
        let symbol = symbols.symbol(index)?;
        let name = String::from_utf8_lossy(symbols.symbol_name(endian, symbol)?).into_owned();
        let version = match &self.versions {
            Some(v) => v.version(v.version_index(endian, index).index())?,
            None => None,
        };
        Ok(match version {
            Some(v) if copied || symbol.st_shndx(endian) == elf::SHN_UNDEF => {
                format!("{name}@{}", String::from_utf8_lossy(v.name()))
            }
            _ => name,
        })
    }
}
