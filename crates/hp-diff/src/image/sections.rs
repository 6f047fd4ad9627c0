//! The headers of an ELF file: is it for us, and which sections are loaded?

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, SectionFlags, elf};

use super::{Section, is_constant_name, is_content};
use crate::Error;

pub(crate) fn check_header(data: &[u8]) -> Result<(), String> {
    if data.len() < 64 || !data.starts_with(b"\x7fELF") {
        let what = if data.is_empty() {
            "is empty"
        } else if data.starts_with(b"\x7fELF") {
            "is a truncated ELF file"
        } else if data.starts_with(b"!<thin>\n") {
            return Err("is a thin archive: it holds no code; compare the object files that it names".into());
        } else {
            "is not an ELF file"
        };
        return Err(format!("{what}; give a program or a shared object"));
    }
    let machine = u16::from_le_bytes([data[18], data[19]]);
    match (data[4], data[5], machine) {
        (2, 1, hp_pack::EM_X86_64) => Ok(()),
        (1, _, _) => Err("is a 32-bit ELF file; this version handles x86-64".into()),
        (_, 2, _) => Err("is a big-endian ELF file; this version handles x86-64".into()),
        _ => Err(format!("is for another architecture (e_machine {machine}); this version handles x86-64 (62)")),
    }
}

pub(super) fn sections<'a>(
    elf: &ElfFile64<'a, Endianness>,
    bad: &dyn Fn(String) -> Error,
) -> Result<Vec<Section<'a>>, Error> {
    let mut sections = Vec::new();
    for section in elf.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        if !sh_flags.contains(elf::SHF_ALLOC) {
            continue;
        }
        let name = section.name().map_err(|e| bad(format!("a section has no readable name ({e})")))?;
        let data =
            section.data().map_err(|_| bad(format!("section {name} lies outside of the file; is it truncated?")))?;
        if section.address().checked_add(section.size()).is_none() {
            return Err(bad(format!("section {name} wraps around the address space")));
        }
        sections.push(Section {
            name,
            address: section.address(),
            size: section.size(),
            data,
            executable: sh_flags.contains(elf::SHF_EXECINSTR),
            writable: sh_flags.contains(elf::SHF_WRITE),
            constant: is_constant_name(name, sh_flags.contains(elf::SHF_WRITE)),
            got: name.starts_with(".got"),
            tls: sh_flags.contains(elf::SHF_TLS),
            content: is_content(name, sh_flags.contains(elf::SHF_TLS)),
        });
    }
    sections.sort_by_key(|s| (s.address, s.size));
    Ok(sections)
}
