//! Every reference that was recovered from one build, as a list that can be printed.
//!
//! A linked image no longer says what a field leads to; this crate works it out. [`references`] shows the result
//! for each field: the entities that it may mean, the likeliest first. A field with one meaning is bound. A field with
//! several has one number for all of them, such as `&a[64]` and `&b[0]`; which one it is only shows in comparison
//! with another build, where they lie apart. It is meant for tests that hold the list against what the linker knew, and
//! for people who ask why a function counts as changed.

use std::fmt;
use std::path::Path;

use rayon::prelude::*;

use crate::arch::{self, Encoding, Site, Use};
use crate::build::Build;
use crate::describe::offset;
use crate::entity::{CodeRange, FunctionId, Target};
use crate::image::{Image, Word};
use crate::input::Input;
use crate::usage::{is_known, is_number};
use crate::{Error, Options};

/// A field of code or data that leads somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Link-time address of the field.
    pub field: u64,
    /// Width of the field in bytes.
    pub width: u8,
    /// Link-time address that a PC-relative distance counts from; 0 if the field holds an address.
    pub base: u64,
    /// Link-time address that the field leads to.
    pub target: u64,
    /// How many bytes the code reads or writes at the target; 0 if it takes the address, or branches.
    pub access: u32,
    /// The function or object that has the field, as in the symbol table.
    pub owner: String,
    /// What it may mean, the likeliest first; empty if nothing is known.
    pub meanings: Vec<Meaning>,
}

/// One thing that a reference may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    /// What kind of thing.
    pub kind: EntityKind,
    /// Its name, with the version for an import; empty if it has none.
    pub name: String,
    /// Link-time address of its start. For a slot or stub: of what it leads to in this image, 0 if that is an import.
    pub address: u64,
    /// Its size in bytes as far as that is known, else 0.
    pub size: u64,
    /// Distance from its start to what the reference leads to.
    pub addend: i64,
    /// For data: the bytes of the literal by which it is compared, or of the object from here on.
    pub content: Vec<u8>,
}

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntityKind {
    /// Code.
    Function,
    /// Data with a symbol, or writable data without one.
    Object,
    /// Constant data that has content but no name.
    Literal,
    /// A table of code addresses that a computed jump reads.
    JumpTable,
    /// A stub of the procedure linkage table.
    Stub,
    /// A slot of the global offset table.
    Slot,
    /// A symbol without size, such as `_end`.
    Marker,
    /// The image's own ELF header.
    Header,
    /// A number that looks like an address of the image and is none.
    Number,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({}) -> {:#x}", self.field, self.owner, self.target)?;
        for (i, meaning) in self.meanings.iter().enumerate() {
            write!(f, "{} {meaning}", if i == 0 { ":" } else { " or" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, if self.name.is_empty() { "-" } else { &self.name })?;
        f.write_str(&offset(self.addend))
    }
}

/// The references of the build at `path`, ordered by field. Options say where debug files lie.
///
/// # Errors
/// [`Error`] where the file cannot be read or is no input for this tool.
pub fn references(path: &Path, options: &Options) -> Result<Vec<Reference>, Error> {
    let input = Input::open(path, options.old_debug.as_deref(), &options.places)?;
    let image = Image::parse(&input)?;
    let start = image.sections.iter().map(|s| s.address).find(|a| *a != 0).unwrap_or(0);
    let numbers = image.fixed_address.then_some(start..image.span + 1);
    let build = Build::new(image, numbers);
    let mut found: Vec<Reference> =
        (0..build.map.functions.len()).into_par_iter().flat_map_iter(|f| of_function(&build, f)).collect();
    found.extend(of_data(&build));
    found.extend(of_static_data(&build));
    found.extend(build.map.distances.iter().map(|(at, distance)| Reference {
        field: *at,
        width: 4,
        base: distance.table,
        target: distance.target,
        access: 0,
        owner: build.map.object_at(*at).map_or("", |o| build.map.objects[o].name()).to_owned(),
        meanings: meanings(&build, distance.target, Use::Address),
    }));
    found.sort_by_key(|r| r.field);
    Ok(found)
}

fn of_function(build: &Build<'_>, id: FunctionId) -> Vec<Reference> {
    let function = &build.map.functions[id];
    let mut found = Vec::new();
    for (range, code) in function.ranges.iter().zip(&build.code[id].ranges) {
        for site in &code.sites {
            let relative = site.encoding == Encoding::PcRelative;
            let meanings = match build.table(id, site.target) {
                Some(table) => vec![Meaning {
                    kind: EntityKind::JumpTable,
                    name: String::new(),
                    address: table.address,
                    size: table.size(),
                    addend: 0,
                    content: Vec::new(),
                }],
                None => of_site(build, id, range, &site),
            };
            found.push(Reference {
                field: range.address + u64::from(site.offset),
                width: site.width,
                base: if relative { range.address + u64::from(site.end) } else { 0 },
                target: site.target,
                access: match site.usage {
                    Use::Access(n) => n,
                    _ => 0,
                },
                owner: function.name().to_owned(),
                meanings,
            });
        }
    }
    for table in &build.code[id].tables {
        let width = table.size() / (table.targets.len() as u64).max(1);
        found.extend(table.targets.iter().enumerate().map(|(i, target)| Reference {
            field: table.address + i as u64 * width,
            width: width as u8,
            base: if table.relative { table.address } else { 0 },
            target: *target,
            access: 0,
            owner: format!("{}, jump table", function.name()),
            meanings: meanings(build, *target, Use::Branch),
        }));
    }
    found
}

fn of_site(build: &Build<'_>, id: FunctionId, range: &CodeRange<'_>, site: &Site) -> Vec<Meaning> {
    let number = || meaning(build, &Target::Unknown, site.target, site.usage);
    if is_number(build, id, site) {
        return vec![number()];
    }
    let mut found = meanings(build, site.target, site.usage);
    let first = build.map.resolve(&build.image, site);
    let data = !matches!(first, Target::Function(..) | Target::Stub(_));
    if site.usage == Use::Address && data && arch::is_indexed(range.bytes, site.instruction, site.offset) {
        let objects = build.map.within_reach(site.target).into_iter();
        let further = objects.map(|(o, n)| meaning(build, &Target::Object(o, n), site.target, site.usage));
        let further: Vec<Meaning> = further.filter(|m| !found.contains(m)).collect();
        found.extend(further);
    }
    let field = || arch::field(range.bytes, site.instruction, site.offset);
    if site.encoding != Encoding::PcRelative && field() != arch::Field::Displacement {
        found.push(number());
    }
    found
}

/// The words that the dynamic linker fills in, slots put aside.
fn of_data<'b>(build: &'b Build<'_>) -> impl Iterator<Item = Reference> + 'b {
    let slot = |a: u64| build.image.section_at(a).is_none_or(|s| s.name.starts_with(".got"));
    build.image.words.iter().filter(move |(at, _)| !slot(**at)).map(|(at, word)| {
        let (target, meanings) = match word {
            Word::Address(a) => (*a, meanings(build, *a, Use::Address)),
            other => (0, vec![of_word(build, EntityKind::Slot, other)]),
        };
        let owner = build.map.object_at(*at).map_or("", |o| build.map.objects[o].name());
        Reference { field: *at, width: 8, base: 0, target, access: 0, owner: owner.to_owned(), meanings }
    })
}

/// In a position-dependent image nothing marks the words that hold addresses.
fn of_static_data<'b>(build: &'b Build<'_>) -> impl Iterator<Item = Reference> + 'b {
    let image = &build.image;
    let data = image
        .sections
        .iter()
        .filter(|s| image.fixed_address && (s.content || s.tls) && !s.executable && !s.name.starts_with(".got"));
    let words = data.flat_map(|s| {
        let first = s.address.next_multiple_of(8);
        let bytes = s.data.get((first - s.address) as usize..).unwrap_or_default();
        bytes.chunks_exact(8).enumerate().map(move |(i, w)| (first + 8 * i as u64, w))
    });
    words.filter_map(move |(at, word)| {
        let target = u64::from_le_bytes(word.try_into().unwrap_or_default());
        let known = !image.words.contains_key(&at) && is_known(build, target);
        let owner = build.map.object_at(at).map_or("", |o| build.map.objects[o].name());
        known.then(|| Reference {
            field: at,
            width: 8,
            base: 0,
            target,
            access: 0,
            owner: owner.to_owned(),
            meanings: meanings(build, target, Use::Address),
        })
    })
}

fn meanings(build: &Build<'_>, address: u64, usage: Use) -> Vec<Meaning> {
    let targets = build.map.meanings(&build.image, address, usage);
    targets.iter().map(|t| meaning(build, t, address, usage)).collect()
}

fn meaning(build: &Build<'_>, target: &Target<'_>, address: u64, usage: Use) -> Meaning {
    let known = |kind, name: &str, size: u64, addend: i64| Meaning {
        kind,
        name: name.to_owned(),
        address: address.wrapping_add_signed(-addend),
        size,
        addend,
        content: Vec::new(),
    };
    match target {
        Target::Function(f, range, offset) => {
            let range = &build.map.functions[*f].ranges[*range];
            known(EntityKind::Function, range.name, range.bytes.len() as u64, *offset as i64)
        }
        Target::Object(o, offset) => {
            let object = &build.map.objects[*o];
            let rest = build.image.bytes(address, object.end().saturating_sub(address)).unwrap_or_default();
            Meaning { content: rest.to_vec(), ..known(EntityKind::Object, object.name(), object.size, *offset) }
        }
        Target::Literal => {
            let content = match usage {
                Use::Access(n) => build.image.bytes(address, u64::from(n)).unwrap_or_default(),
                _ => build.map.literal(&build.image, address),
            };
            Meaning { content: content.to_vec(), ..known(EntityKind::Literal, "", content.len() as u64, 0) }
        }
        Target::Stub(word) => of_word(build, EntityKind::Stub, word),
        Target::Slot(word) => of_word(build, EntityKind::Slot, word),
        Target::Marker(name) => known(EntityKind::Marker, name, 0, 0),
        Target::Header(offset) => known(EntityKind::Header, "", 0, *offset as i64),
        Target::Unknown => known(EntityKind::Number, "", 0, 0),
    }
}

fn of_word(build: &Build<'_>, kind: EntityKind, word: &Word) -> Meaning {
    let (name, address, addend) = match word {
        Word::Address(a) | Word::Resolver(a) => {
            let inner = meanings(build, *a, Use::Address);
            (inner.first().map(|m| m.name.clone()).unwrap_or_default(), *a, 0)
        }
        Word::Symbol(name, addend) | Word::Tls(_, name, addend) | Word::Other(_, name, addend) => {
            (name.clone(), 0, *addend)
        }
        Word::Copy(name) => (name.clone(), 0, 0),
    };
    Meaning { kind, name, address, size: 8, addend, content: Vec::new() }
}
