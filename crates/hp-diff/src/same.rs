//! The fast path: builds whose loaded content is the same, byte for byte and place for place.
//!
//! Everything that is mapped when the program runs is compared, code and data alike, with the symbols; only notes
//! (the build ID is one) may differ. Then no reference can lead elsewhere and nothing has to be decoded. Any doubt, such as
//! an input that is not linked or not readable, means `None`: the ordinary way gives the answer.

use std::path::Path;

use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, SectionFlags, elf};

use crate::entity::Map;
use crate::finding::Level;
use crate::image::Image;
use crate::input::{Input, map};
use crate::{Error, Options, Report, check, evidence};

type Elf<'d> = ElfFile64<'d, Endianness>;

/// The report on two builds that are the same; `None` if they are not.
pub(crate) fn report(old: &Path, new: &Path, options: &Options) -> Result<Option<Report>, Error> {
    let same = match (map(old), map(new)) {
        (Ok(a), Ok(b)) => matches!((Elf::parse(&a[..]), Elf::parse(&b[..])), (Ok(a), Ok(b)) if same(&a, &b)),
        _ => false,
    };
    if !same {
        return Ok(None);
    }
    let input = Input::open(old, options.old_debug.as_deref(), &options.places)?;
    let image = Image::without_words(&input)?;
    let mut findings = check::images(&image, &image);
    if findings.iter().any(check::is_fatal) {
        return Ok(None);
    }
    // What forbids a patch does not matter where none is needed.
    findings.retain(|f| f.level != Level::Error);
    let functions = Map::new(&image);
    let counts = evidence(&functions);
    Ok(Some(Report {
        identical: functions.functions.len(),
        changes: Vec::new(),
        evidence: [counts.clone(), counts],
        findings,
        explanations: Vec::new(),
        patch: None,
    }))
}

fn same(a: &Elf<'_>, b: &Elf<'_>) -> bool {
    let linked = |e: &Elf<'_>| matches!(e.elf_header().e_type(e.endian()), elf::ET_EXEC | elf::ET_DYN);
    let (mut x, mut y) = (compared(a), compared(b));
    linked(a)
        && a.elf_header().e_type(a.endian()) == b.elf_header().e_type(b.endian())
        && a.elf_header().e_machine(a.endian()) == b.elf_header().e_machine(b.endian())
        && loop {
            match (x.next(), y.next()) {
                (None, None) => break true,
                (Some(s), Some(t)) if s.is_some() && s == t => {}
                _ => break false,
            }
        }
}

/// Name, flags, place, size and content of each section that counts; `None` for one that cannot be read.
fn compared<'e>(elf: &'e Elf<'_>) -> impl Iterator<Item = Option<(&'e str, u64, u64, u64, &'e [u8])>> {
    elf.sections().filter_map(|section| {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { return Some(None) };
        let Ok(name) = section.name() else { return Some(None) };
        let loaded = sh_flags.contains(elf::SHF_ALLOC) && !name.starts_with(".note");
        if !loaded && !matches!(name, ".symtab" | ".strtab" | ".gnu_debugdata") {
            return None;
        }
        let flags = sh_flags.0;
        Some(section.data().ok().map(|data| (name, flags, section.address(), section.size(), data)))
    })
}
