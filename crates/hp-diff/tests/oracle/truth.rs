//! What the linker knew: the relocations of the objects, at the places where the map says that it put them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use object::{Object, ObjectSection, ObjectSymbol};

use crate::map::{self, Placed};
use crate::objects::{self, ObjectFile};

/// A field that the linker filled in.
pub(crate) struct Fact {
    /// Link-time address of the field.
    pub(crate) field: u64,
    pub(crate) kind: u32,
    pub(crate) addend: i64,
    pub(crate) aim: Aim,
    /// For messages: object file, section and offset.
    pub(crate) place: String,
    pub(crate) executable: bool,
}

/// What the field's relocation names.
pub(crate) enum Aim {
    /// A place in the image.
    Place {
        /// Link-time address of the symbol, or of the section if the relocation names that.
        start: u64,
        /// The entities that it may belong to: start and size. One only if the objects say which.
        entities: Vec<(u64, u64)>,
        /// Name, if it is a symbol that other modules may replace.
        name: String,
    },
    /// What the linker merges with equal content: the section's bytes and the place in them.
    Content {
        bytes: Vec<u8>,
        /// Where in `bytes` the merged piece is that is meant.
        at: i64,
        /// How far behind the start of that piece the relocation leads.
        shift: i64,
        width: u64,
        strings: bool,
    },
    /// A symbol that none of the objects defines.
    Name(String),
    /// Something that the map does not show: folded, discarded, allocated by the linker.
    Elsewhere(String),
}

/// Where an image has its symbols.
pub(crate) type Names = HashMap<String, Vec<u64>>;

pub(crate) struct Truth {
    pub(crate) facts: Vec<Fact>,
    /// Input sections with code: start and end.
    pub(crate) code: Vec<(u64, u64)>,
    pub(crate) names: Names,
    /// Content of the image: address and bytes of each section.
    pub(crate) content: Vec<(u64, Vec<u8>)>,
    /// Where the image has sections, and its end.
    pub(crate) span: std::ops::RangeInclusive<u64>,
}

struct Inputs {
    files: Vec<(String, ObjectFile)>,
    /// Address of (file, section).
    placed: HashMap<(usize, usize), u64>,
    /// Where global symbols are defined: file, section, value, size.
    globals: HashMap<String, (usize, usize, u64, u64)>,
    names: Names,
}

/// Reads the truth about `image` from its map, and the objects that the map names.
pub(crate) fn read(image: &Path, map: &Path) -> Truth {
    let directory = image.parent().unwrap();
    let placed = map::read(&String::from_utf8_lossy(&std::fs::read(map).unwrap()));
    let inputs = inputs(&placed, directory, names(image));
    let mut truth = Truth {
        facts: Vec::new(),
        code: Vec::new(),
        names: HashMap::new(),
        content: content(image),
        span: span(image),
    };
    for (&(file, section), &address) in &inputs.placed {
        let (name, object) = &inputs.files[file];
        let input = &object.sections[section];
        if input.executable {
            truth.code.push((address, address + input.size));
        }
        if input.name.starts_with(".eh_frame") || input.name.starts_with(".gcc_except_table") {
            continue;
        }
        for relocation in &input.relocations {
            truth.facts.push(Fact {
                field: address + relocation.offset,
                kind: relocation.kind,
                addend: relocation.addend,
                aim: aim(&inputs, file, relocation),
                place: format!("{name}:{}+{:#x}", input.name, relocation.offset),
                executable: input.executable,
            });
        }
    }
    truth.facts.sort_by_key(|f| f.field);
    truth.code.sort_unstable();
    truth.names = inputs.names;
    truth
}

fn names(image: &Path) -> Names {
    let data = std::fs::read(image).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let mut names = Names::new();
    for symbol in file.symbols().filter(|s| !s.is_undefined()) {
        let name = symbol.name().unwrap_or_default().split('@').next().unwrap_or_default();
        names.entry(name.to_owned()).or_default().push(symbol.address());
    }
    names
}

fn content(image: &Path) -> Vec<(u64, Vec<u8>)> {
    let data = std::fs::read(image).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let sections = file.sections().filter(|s| s.address() > 0);
    sections.map(|s| (s.address(), s.data().unwrap_or_default().to_vec())).filter(|s| !s.1.is_empty()).collect()
}

impl Truth {
    /// The image's bytes from `address` on.
    pub(crate) fn bytes(&self, address: u64) -> &[u8] {
        let found = self.content.iter().find(|(start, b)| (*start..*start + b.len() as u64).contains(&address));
        found.map_or(&[], |(start, b)| &b[(address - start) as usize..])
    }
}

fn span(image: &Path) -> std::ops::RangeInclusive<u64> {
    let data = std::fs::read(image).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let sections = || file.sections().filter(|s| s.address() > 0);
    sections().map(|s| s.address()).min().unwrap()..=sections().map(|s| s.address() + s.size()).max().unwrap()
}

fn inputs(placed: &[Placed], directory: &Path, names: Names) -> Inputs {
    let mut by_file: BTreeMap<&str, Vec<&Placed>> = BTreeMap::new();
    for place in placed {
        by_file.entry(&place.file).or_default().push(place);
    }
    let mut inputs = Inputs { files: Vec::new(), placed: HashMap::new(), globals: HashMap::new(), names };
    for (name, places) in by_file {
        let Some(object) = objects::read(name, directory) else { continue };
        let file = inputs.files.len();
        let mut taken = vec![false; object.sections.len()];
        for place in places {
            let mut all = object.sections.iter().enumerate();
            let wanted = all.find(|(i, s)| {
                !taken[*i] && s.allocated && s.merged == 0 && s.name == place.section && s.size == place.size
            });
            if let Some((i, _)) = wanted {
                taken[i] = true;
                inputs.placed.insert((file, i), place.address);
            }
        }
        for symbol in object.symbols.iter().filter(|s| !s.local) {
            if let Some(section) = symbol.section.filter(|s| taken[*s]) {
                inputs.globals.entry(symbol.name.clone()).or_insert((file, section, symbol.value, symbol.size));
            }
        }
        inputs.files.push((name.to_owned(), object));
    }
    inputs
}

fn aim(inputs: &Inputs, file: usize, relocation: &objects::Relocation) -> Aim {
    let object = &inputs.files[file].1;
    let symbol = &object.symbols[relocation.symbol];
    let own = symbol.section.map(|section| (file, section, symbol.value, symbol.size));
    let found = if symbol.local { own } else { inputs.globals.get(&symbol.name).copied().or(own) };
    let Some((file, section, value, size)) = found else { return Aim::Name(symbol.name.clone()) };
    let target = &inputs.files[file].1.sections[section];
    if target.merged > 0 {
        let (width, strings) = (target.merged, target.strings);
        let (at, shift) = if symbol.is_section { (relocation.addend, 0) } else { (0, relocation.addend) };
        return Aim::Content { bytes: target.data.clone(), at: value as i64 + at, shift, width, strings };
    }
    let Some(address) = inputs.placed.get(&(file, section)) else {
        return Aim::Elsewhere(if symbol.is_section { target.name.clone() } else { symbol.name.clone() });
    };
    let entities = if symbol.is_section || size == 0 {
        entities(&inputs.files[file].1, section, *address)
    } else {
        vec![(address + value, size)]
    };
    let name = if symbol.local { String::new() } else { symbol.name.clone() };
    Aim::Place { start: address + value, entities, name }
}

/// The symbols with a size in a section.
fn entities(object: &ObjectFile, section: usize, address: u64) -> Vec<(u64, u64)> {
    let inside = object.symbols.iter().filter(|s| s.section == Some(section) && s.size > 0);
    let mut found: Vec<(u64, u64)> = inside.map(|s| (address + s.value, s.size)).collect();
    found.sort_unstable();
    found.dedup();
    found
}
