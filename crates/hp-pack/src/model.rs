//! The patch in memory. Both the writer and the reader speak in these types, so that
//! `read(write(patch)) == patch` can be tested as an identity.

use alloc::string::String;
use alloc::vec::Vec;

/// The format's major version: a reader refuses any other.
pub const FORMAT_MAJOR: u16 = 1;
/// The format's minor version: a newer one only adds what an older reader may ignore.
pub const FORMAT_MINOR: u16 = 0;

/// `e_machine` of x86-64 (System V ABI, AMD64 supplement, section 4.1).
pub const EM_X86_64: u16 = 62;

/// Longest file name, symbol name or patch name that a patch may carry, in bytes.
pub const MAX_NAME: usize = 64 * 1024;

/// A whole patch: everything that brings one base image to its new behaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Short name for people, such as `nginx`; at most 255 bytes of UTF-8.
    pub name: String,
    /// `e_machine` of the base.
    pub machine: u16,
    /// A patch with a lower counter is refused over one with a higher counter.
    pub counter: u64,
    /// The image that the patch applies to.
    pub base: Base,
    /// The payload, at most one section of each kind, in [`SectionKind`] order.
    pub sections: Vec<Section>,
    /// All symbols that relocations and function records name.
    pub symbols: Vec<Symbol>,
    /// Ordered by section, then by offset.
    pub relocations: Vec<Relocation>,
    /// What is replaced, ordered by old address.
    pub functions: Vec<FunctionRecord>,
    /// The JSON manifest, as bytes; see the `manifest` module for a typed view.
    pub manifest: Vec<u8>,
}

/// Identity of the image that a patch applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// GNU build ID (`NT_GNU_BUILD_ID`), 1 to 64 bytes.
    pub build_id: Vec<u8>,
    /// End of the image's highest loadable segment, as a link-time address: the size of
    /// the `.hpatch.base` section, whose run-time address is the load bias.
    pub span: u64,
    /// True for `ET_EXEC`: the load bias is zero and absolute 32-bit relocations are valid.
    pub fixed_address: bool,
}

/// The payload sections that a patch may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    /// `.text`: new code.
    Text,
    /// `.text.hpatch.thunks`: one thunk for each replaced entry; counts as old code.
    Thunks,
    /// `.rodata`: new constants without relocations.
    Rodata,
    /// `.data.rel.ro`: new constants that hold addresses.
    DataRelRo,
    /// `.eh_frame`: unwind rows of the new code and the thunks.
    EhFrame,
    /// `.gcc_except_table`: landing pads and what they catch, for the language runtimes.
    ExceptTable,
    /// `.hpatch.state`: one byte, 0 = old, 1 = new; the thunks test it.
    State,
    /// `.data`: new initialised variables.
    Data,
    /// `.bss`: new zeroed variables; has a size and no bytes.
    Bss,
}

impl SectionKind {
    /// Every kind, in the order in which sections appear in a patch.
    pub const ALL: [SectionKind; 9] = [
        SectionKind::Text,
        SectionKind::Thunks,
        SectionKind::Rodata,
        SectionKind::DataRelRo,
        SectionKind::EhFrame,
        SectionKind::ExceptTable,
        SectionKind::State,
        SectionKind::Data,
        SectionKind::Bss,
    ];

    /// The ELF section name.
    pub const fn name(self) -> &'static str {
        match self {
            SectionKind::Text => ".text",
            SectionKind::Thunks => ".text.hpatch.thunks",
            SectionKind::Rodata => ".rodata",
            SectionKind::DataRelRo => ".data.rel.ro",
            SectionKind::EhFrame => ".eh_frame",
            SectionKind::ExceptTable => ".gcc_except_table",
            SectionKind::State => ".hpatch.state",
            SectionKind::Data => ".data",
            SectionKind::Bss => ".bss",
        }
    }

    /// Memory protection in the target.
    pub const fn access(self) -> Access {
        match self {
            SectionKind::Text | SectionKind::Thunks => Access::Execute,
            SectionKind::Data | SectionKind::Bss => Access::Write,
            _ => Access::Read,
        }
    }
}

/// Final protection of a payload section in the target; never two of them at once
/// beyond reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// `r-x`
    Execute,
    /// `r--`
    Read,
    /// `rw-`
    Write,
}

/// One payload section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Which one.
    pub kind: SectionKind,
    /// Alignment in bytes: a power of two, at most 4096.
    pub align: u64,
    /// Size in bytes; equals `data.len()` for every kind but [`SectionKind::Bss`].
    pub size: u64,
    /// The content; empty for [`SectionKind::Bss`].
    pub data: Vec<u8>,
}

/// What a symbol is, for `nm` and for the applier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SymbolKind {
    /// `STT_FUNC`
    Function,
    /// `STT_OBJECT`
    Object,
    /// `STT_TLS`: value is an offset in the base's TLS segment.
    Tls,
    /// `STT_NOTYPE`
    Other,
}

/// Where a symbol lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// In the base image; the value is a link-time address of the base.
    Base,
    /// In a payload section; the value is an offset in it.
    Payload(SectionKind),
    /// Defined elsewhere: the target's own scope resolves `name` or `name@VERSION`.
    Import,
}

/// A symbol. Local binding, except imports, which are global (or weak) and undefined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Name; an import of a versioned symbol is `name@VERSION`.
    pub name: String,
    /// What it is.
    pub kind: SymbolKind,
    /// Where it lies.
    pub place: Place,
    /// See [`Place`]; 0 for imports.
    pub value: u64,
    /// Size in bytes, 0 where unknown.
    pub size: u64,
    /// An import that may stay unresolved (its address is then 0).
    pub weak: bool,
}

/// The relocation types that a patch may use (psABI for AMD64, table 4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelocationKind {
    /// `R_X86_64_64`: 64-bit `S + A`.
    Abs64,
    /// `R_X86_64_PC32`: 32-bit `S + A - P`.
    Pc32,
    /// `R_X86_64_PLT32`: 32-bit `L + A - P`; a call or jump. For an import, `L` is a stub
    /// that the applier makes.
    Plt32,
    /// `R_X86_64_GOTPCREL`: 32-bit `G + A - P`, where `G` is a pointer slot that the applier makes.
    GotPcRel,
    /// `R_X86_64_32`: zero-extended 32-bit `S + A`; only where the base has a fixed address.
    Abs32,
    /// `R_X86_64_32S`: sign-extended 32-bit `S + A`; only where the base has a fixed address.
    Abs32Signed,
    /// `R_X86_64_PC64`: 64-bit `S + A - P`.
    Pc64,
}

impl RelocationKind {
    /// The psABI's number.
    pub const fn number(self) -> u32 {
        match self {
            RelocationKind::Abs64 => 1,
            RelocationKind::Pc32 => 2,
            RelocationKind::Plt32 => 4,
            RelocationKind::GotPcRel => 9,
            RelocationKind::Abs32 => 10,
            RelocationKind::Abs32Signed => 11,
            RelocationKind::Pc64 => 24,
        }
    }

    /// The kind with this number of the psABI.
    pub const fn from_number(number: u32) -> Option<RelocationKind> {
        Some(match number {
            1 => RelocationKind::Abs64,
            2 => RelocationKind::Pc32,
            4 => RelocationKind::Plt32,
            9 => RelocationKind::GotPcRel,
            10 => RelocationKind::Abs32,
            11 => RelocationKind::Abs32Signed,
            24 => RelocationKind::Pc64,
            _ => return None,
        })
    }

    /// Size of the relocated field in bytes.
    pub const fn width(self) -> u64 {
        match self {
            RelocationKind::Abs64 | RelocationKind::Pc64 => 8,
            _ => 4,
        }
    }
}

/// One relocation in a payload section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The section that holds the field.
    pub section: SectionKind,
    /// Offset of the field in that section.
    pub offset: u64,
    /// How to compute it.
    pub kind: RelocationKind,
    /// Index into [`Patch::symbols`].
    pub symbol: u32,
    /// `A`.
    pub addend: i64,
}

/// One range of old code that the patch replaces: a function's body, which has the
/// entry, or another fragment of it (`.cold`), which has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionRecord {
    /// Link-time address of the first byte in the base.
    pub old_address: u64,
    /// Size of the range in bytes, padding not included.
    pub old_size: u64,
    /// SHA-256 of the range's bytes in the base.
    pub digest: [u8; 32],
    /// Body or fragment.
    pub role: Role,
}

/// What a [`FunctionRecord`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The body, whose entry is redirected.
    Entry(Entry),
    /// A further range of the function that record number `.0` enters.
    Fragment(u32),
}

/// How an entry is redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index into [`Patch::symbols`]: the new function, in `.text`.
    pub new_symbol: u32,
    /// Index into [`Patch::symbols`]: its thunk, in `.text.hpatch.thunks`.
    pub thunk_symbol: u32,
    /// Offset of the 5-byte jump from `old_address`: 0, or 4 after `endbr64`.
    pub site_offset: u8,
    /// The bytes that the jump replaces; bytes past `old_size` are proven padding.
    pub site_bytes: [u8; 5],
    /// Length in bytes of the whole instructions that the thunk repeats, from the site on.
    pub displaced: u8,
    /// The diff's word that a thread may go on inside the old function while calls already lead to the new one.
    pub may_go_on: bool,
}
