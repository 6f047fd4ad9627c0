//! What references lead to: functions, data objects, GOT slots, PLT stubs, literals.
//!
//! A [`Map`] divides one image into entities and answers, for an address and the way it
//! is used, which entity it leads to. Symbols give the boundaries. What no symbol covers
//! in a constant section is *literal* data (strings, floating constants, jump tables): it
//! has no identity, only content, and reaches at most to the next address that anything
//! refers to.
//!
//! [`symbols`] finds functions and objects, [`divide`] makes the map, [`lookup`] answers where addresses lead, and [`literals`] how
//! far literals reach.

mod divide;
mod literals;
mod lookup;
mod symbols;

use std::collections::BTreeMap;

use literals::KnownLiteral;

use crate::by_address::{ByAddress, Starts};
use crate::image::{Evidence, Word};

pub(crate) use literals::narrow_text;
pub(crate) use lookup::REACH;
pub(crate) use symbols::cold_parent;

/// Index of a function in its [`Map`].
pub(crate) type FunctionId = usize;
/// Index of a data object in its [`Map`].
pub(crate) type ObjectId = usize;

/// One contiguous range of a function.
#[derive(Debug)]
pub(crate) struct CodeRange<'a> {
    pub address: u64,
    pub bytes: &'a [u8],
    /// Name of the fragment's own symbol.
    pub name: &'a str,
}

impl CodeRange<'_> {
    pub(crate) fn end(&self) -> u64 {
        self.address + self.bytes.len() as u64
    }
}

/// One entry with its code: the body first, then `.cold` fragments.
#[derive(Debug)]
pub(crate) struct Function<'a> {
    /// All names of the entry; the first is the one to show.
    pub names: Vec<&'a str>,
    pub file: &'a str,
    pub local: bool,
    pub ranges: Vec<CodeRange<'a>>,
    /// Its range overlaps another function's.
    pub overlaps: bool,
    /// A function of Rust, by its name or by debug information.
    pub rust: bool,
    /// What says where it lies.
    pub evidence: Evidence,
}

impl Function<'_> {
    pub(crate) fn name(&self) -> &str {
        self.names[0]
    }

    pub(crate) fn address(&self) -> u64 {
        self.ranges[0].address
    }

    /// Bytes in all ranges.
    pub(crate) fn size(&self) -> u64 {
        self.ranges.iter().map(|r| r.bytes.len() as u64).sum()
    }

    /// Code that the compiler brings along; it knows no type of the program. Arithmetic of
    /// libgcc is hidden in the image and follows a naming scheme (GCC internals, "The GCC
    /// low-level runtime library"): `__udivti3`, two underscores, operation, machine
    /// modes, number of operands.
    pub(crate) fn is_compiler_runtime(&self) -> bool {
        const MODES: [&str; 10] = ["si", "di", "ti", "hf", "sf", "df", "xf", "tf", "sc", "dc"];
        let arithmetic = |name: &str| {
            let stem = name.strip_prefix("__")?.strip_suffix(['2', '3', '4'])?;
            let plain = stem.bytes().all(|b| b.is_ascii_lowercase());
            (plain && MODES.iter().any(|m| stem.ends_with(m))).then_some(())
        };
        match self.file {
            "crtstuff.c" | "libgcc2.c" => true,
            "" => self.local && arithmetic(self.name()).is_some(),
            _ => false,
        }
    }

    /// The name with its file where the name alone may not be unique.
    pub(crate) fn qualified_name(&self) -> String {
        if self.local && !self.file.is_empty() { format!("{}:{}", self.file, self.name()) } else { self.name().into() }
    }
}

/// A data object with a symbol, or a whole section of code pointers such as `.init_array`.
#[derive(Debug)]
pub(crate) struct DataObject<'a> {
    pub names: Vec<&'a str>,
    pub file: &'a str,
    pub local: bool,
    pub address: u64,
    pub size: u64,
    pub constant: bool,
    /// No symbol covers it; its extent is from one reference to the next.
    pub unnamed: bool,
}

impl DataObject<'_> {
    pub(crate) fn name(&self) -> &str {
        self.names[0]
    }

    pub(crate) fn end(&self) -> u64 {
        self.address + self.size
    }

    /// A whole section: nobody makes an address before its start.
    fn is_section(&self) -> bool {
        self.name().starts_with('.')
    }

    /// What the C library's start files and the linker put into every image (glibc's `csu`, gcc's `crtstuff.c`): no code of the
    /// program makes addresses of it. It lies at the same place in most builds, which says nothing.
    fn is_of_start_files(&self) -> bool {
        is_of_start_files(self.name())
    }

    /// What compilers make for the C++ runtime (Itanium C++ ABI, 5.1.4.1): type infos and their names, virtual tables,
    /// guards. Their addresses are taken as they are, never one past the end or before the start.
    pub(crate) fn is_runtime_record(&self) -> bool {
        ["_ZTI", "_ZTS", "_ZTV", "_ZTT", "_ZTC", "_ZGV"].iter().any(|prefix| self.name().starts_with(prefix))
    }
}

/// True for the name of something that the C library's start files and the linker put into every image.
pub(crate) fn is_of_start_files(name: &str) -> bool {
    matches!(name, "__abi_tag" | "_IO_stdin_used" | "__GNU_EH_FRAME_HDR" | "__FRAME_END__")
}

/// Where an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target<'m> {
    /// Function, range and offset in it.
    Function(FunctionId, usize, u64),
    /// Object and offset; the offset may equal the size, or be negative.
    Object(ObjectId, i64),
    /// A PLT stub for this word.
    Stub(&'m Word),
    /// A GOT slot that holds this word.
    Slot(&'m Word),
    /// Constant data without a symbol.
    Literal,
    /// A symbol without size, such as `_end` or `__TMC_END__`.
    Marker(&'m str),
    /// The image's own ELF header, and the offset from its start.
    Header(u64),
    /// Nothing that this map knows.
    Unknown,
}

/// The entities of one image.
#[derive(Debug)]
pub(crate) struct Map<'a> {
    pub functions: Vec<Function<'a>>,
    pub objects: Vec<DataObject<'a>>,
    markers: BTreeMap<u64, Vec<&'a str>>,
    /// Start, end, function, range; ordered by start.
    code_index: Vec<(u64, u64, FunctionId, usize)>,
    /// The starts in it.
    code_starts: Starts,
    /// The starts of the objects.
    object_starts: Starts,
    /// Every address that code or data refers to, and every entity boundary.
    pub references: Starts,
    /// Fields of 32 bits in constant data that hold a distance.
    pub distances: ByAddress<Distance>,
    /// What is known of the literal at each reference.
    literals: Vec<KnownLiteral>,
    /// Initial values of local arrays in writable sections, which nobody writes: start and end, ordered.
    pub templates: Vec<(u64, u64)>,
}

/// A field that holds the distance from the start of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Distance {
    /// Link-time address of the table.
    pub table: u64,
    /// Link-time address that the field leads to.
    pub target: u64,
    /// Only functions of Rust read the table.
    pub rust: bool,
}
