//! The ELF sections of a patch, in file order, with every header field that has one valid value.
//!
//! Writer and reader both walk this table, so they cannot disagree about it. A [`Part`] that is not
//! [`required`](Part::required) is left out when it would be empty.

use crate::elf::*;
use crate::model::{Access, SectionKind};

/// Start of the digest note: right after the ELF header, in every version of the format.
pub(crate) const DIGEST_NOTE_AT: usize = EHDR_SIZE;
/// Header of a note owned by "hpatch": name size, descriptor size, type, name.
pub(crate) const NOTE_HEADER: usize = 20;
/// The 32 bytes of the digest itself.
pub(crate) const DIGEST_AT: usize = DIGEST_NOTE_AT + NOTE_HEADER;
/// Start of the signature note: right after the digest note, in every version of the format.
pub(crate) const SIGNATURE_NOTE_AT: usize = DIGEST_AT + 32;
/// The signature: algorithm, key ID, Ed25519 signature; all zero if there is none.
pub(crate) const SIGNATURE_AT: usize = SIGNATURE_NOTE_AT + NOTE_HEADER;
/// Its end; two zero bytes of padding follow.
pub(crate) const SIGNATURE_END: usize = SIGNATURE_AT + 2 + 8 + 64;
/// Size of the signature note's descriptor.
pub(crate) const SIGNATURE_SIZE: usize = 76;
/// Start of the identity note: right after the signature note, in every version of the format.
pub(crate) const IDENTITY_NOTE_AT: usize = SIGNATURE_AT + SIGNATURE_SIZE;
/// Its descriptor, which begins with the format version.
pub(crate) const IDENTITY_AT: usize = IDENTITY_NOTE_AT + NOTE_HEADER;
/// Fixed part of that descriptor.
pub(crate) const IDENTITY_FIXED: usize = 24;
/// Note type of the identity.
pub(crate) const NT_IDENTITY: u32 = 1;
/// Note type of the digest.
pub(crate) const NT_DIGEST: u32 = 2;
/// Note type of the signature.
pub(crate) const NT_SIGNATURE: u32 = 3;
/// Header of `.hpatch.functions`.
pub(crate) const FUNCTIONS_HEADER: usize = 8;
/// One record in `.hpatch.functions`.
pub(crate) const FUNCTION_SIZE: usize = 72;
/// Parent field of a record that is an entry.
pub(crate) const NO_PARENT: u32 = u32::MAX;

/// The header of a note: sizes, type and the owner "hpatch".
pub(crate) fn note_header(kind: u32, descriptor_size: u32) -> [u8; NOTE_HEADER] {
    let mut h = [0u8; NOTE_HEADER];
    h[0..4].copy_from_slice(&7u32.to_le_bytes());
    h[4..8].copy_from_slice(&descriptor_size.to_le_bytes());
    h[8..12].copy_from_slice(&kind.to_le_bytes());
    h[12..18].copy_from_slice(b"hpatch");
    h
}

/// True if the file has the headers of the digest and signature notes where every patch has them.
pub(crate) fn is_start_of_patch(file: &[u8]) -> bool {
    let has = |at: usize, bytes: &[u8]| file.get(at..at + bytes.len()) == Some(bytes);
    has(0, b"\x7fELF")
        && has(DIGEST_NOTE_AT, &note_header(NT_DIGEST, 32))
        && has(SIGNATURE_NOTE_AT, &note_header(NT_SIGNATURE, SIGNATURE_SIZE as u32))
}

/// One section of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Digest,
    Signature,
    Identity,
    Payload(SectionKind),
    Relocations(SectionKind),
    Base,
    Functions,
    Manifest,
    Symbols,
    Strings,
    SectionNames,
}

impl Part {
    /// Number of entries in [`Part::ALL`].
    pub(crate) const COUNT: usize = 2 * SectionKind::ALL.len() + 9;

    /// Every part, in file order.
    pub(crate) const ALL: [Part; Part::COUNT] = {
        let mut all = [Part::Digest; Part::COUNT];
        all[1] = Part::Signature;
        all[2] = Part::Identity;
        let mut i = 0;
        while i < SectionKind::ALL.len() {
            all[3 + 2 * i] = Part::Payload(SectionKind::ALL[i]);
            all[4 + 2 * i] = Part::Relocations(SectionKind::ALL[i]);
            i += 1;
        }
        let rest = 3 + 2 * i;
        all[rest] = Part::Base;
        all[rest + 1] = Part::Functions;
        all[rest + 2] = Part::Manifest;
        all[rest + 3] = Part::Symbols;
        all[rest + 4] = Part::Strings;
        all[rest + 5] = Part::SectionNames;
        all
    };

    /// Index in [`Part::ALL`].
    pub(crate) const fn rank(self) -> usize {
        let rest = 3 + 2 * SectionKind::ALL.len();
        match self {
            Part::Digest => 0,
            Part::Signature => 1,
            Part::Identity => 2,
            Part::Payload(kind) => 3 + 2 * kind as usize,
            Part::Relocations(kind) => 4 + 2 * kind as usize,
            Part::Base => rest,
            Part::Functions => rest + 1,
            Part::Manifest => rest + 2,
            Part::Symbols => rest + 3,
            Part::Strings => rest + 4,
            Part::SectionNames => rest + 5,
        }
    }

    /// The part with this section name.
    pub(crate) fn named(name: &[u8]) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.name().as_bytes() == name)
    }

    /// The section name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Part::Digest => ".note.hpatch.digest",
            Part::Signature => ".note.hpatch.signature",
            Part::Identity => ".note.hpatch",
            Part::Payload(kind) => kind.name(),
            Part::Relocations(SectionKind::Text) => ".rela.text",
            Part::Relocations(SectionKind::Thunks) => ".rela.text.hpatch.thunks",
            Part::Relocations(SectionKind::Rodata) => ".rela.rodata",
            Part::Relocations(SectionKind::DataRelRo) => ".rela.data.rel.ro",
            Part::Relocations(SectionKind::EhFrame) => ".rela.eh_frame",
            Part::Relocations(SectionKind::ExceptTable) => ".rela.gcc_except_table",
            Part::Relocations(SectionKind::State) => ".rela.hpatch.state",
            Part::Relocations(SectionKind::Data) => ".rela.data",
            Part::Relocations(SectionKind::Bss) => ".rela.bss",
            Part::Base => ".hpatch.base",
            Part::Functions => ".hpatch.functions",
            Part::Manifest => ".hpatch.manifest",
            Part::Symbols => ".symtab",
            Part::Strings => ".strtab",
            Part::SectionNames => ".shstrtab",
        }
    }

    /// True if every patch has it.
    pub(crate) const fn required(self) -> bool {
        !matches!(self, Part::Payload(_) | Part::Relocations(_))
    }

    /// `sh_type`. The notes are `SHT_PROGBITS`, like `.note.GNU-stack`: `eu-elflint` takes a note
    /// of any owner that it does not know for an error.
    pub(crate) const fn elf_type(self) -> u32 {
        match self {
            Part::Base | Part::Payload(SectionKind::Bss) => SHT_NOBITS,
            Part::Digest | Part::Signature | Part::Identity => SHT_PROGBITS,
            Part::Payload(_) | Part::Functions | Part::Manifest => SHT_PROGBITS,
            Part::Relocations(_) => SHT_RELA,
            Part::Symbols => SHT_SYMTAB,
            Part::Strings | Part::SectionNames => SHT_STRTAB,
        }
    }

    /// `sh_flags`. `.data.rel.ro` is marked writable as in any object file: it is written once, when relocated.
    pub(crate) const fn flags(self) -> u64 {
        match self {
            Part::Payload(SectionKind::DataRelRo) => SHF_ALLOC | SHF_WRITE,
            Part::Payload(kind) => match kind.access() {
                Access::Execute => SHF_ALLOC | SHF_EXECINSTR,
                Access::Read => SHF_ALLOC,
                Access::Write => SHF_ALLOC | SHF_WRITE,
            },
            Part::Relocations(_) => SHF_INFO_LINK,
            Part::Base => SHF_ALLOC,
            _ => 0,
        }
    }

    /// `sh_addralign`; `None` where the patch decides.
    pub(crate) const fn align(self) -> Option<u64> {
        match self {
            Part::Payload(_) => None,
            Part::Base => Some(4096),
            Part::Digest | Part::Signature | Part::Identity => Some(4),
            Part::Relocations(_) | Part::Functions | Part::Symbols => Some(8),
            Part::Manifest | Part::Strings | Part::SectionNames => Some(1),
        }
    }

    /// `sh_entsize`.
    pub(crate) const fn entry_size(self) -> u64 {
        match self {
            Part::Relocations(_) => RELA_SIZE as u64,
            Part::Symbols => SYM_SIZE as u64,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_is_the_index_in_all() {
        for (i, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part.rank(), i, "{part:?}");
            assert_eq!(Part::named(part.name().as_bytes()), Some(part));
        }
    }
}
