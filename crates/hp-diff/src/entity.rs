//! What references lead to: functions, data objects, GOT slots, PLT stubs, literals.
//!
//! A [`Map`] divides one image into entities and answers, for an address and the way it
//! is used, which entity it leads to. Symbols give the boundaries. What no symbol covers
//! in a constant section is *literal* data (strings, floating constants, jump tables): it
//! has no identity, only content, and reaches at most to the next address that anything
//! refers to.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use object::SymbolKind;
use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::arch::{self, Site, Use};
use crate::by_address::{ByAddress, Spans, Starts};
use crate::image::{Evidence, Image, Section, Symbol, Word, is_constant_section};
use crate::{names, rust};

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
        matches!(self.name(), "__abi_tag" | "_IO_stdin_used" | "__GNU_EH_FRAME_HDR" | "__FRAME_END__")
    }

    /// What compilers make for the C++ runtime (Itanium C++ ABI, 5.1.4.1): type infos and their names, virtual tables,
    /// guards. Their addresses are taken as they are, never one past the end or before the start.
    pub(crate) fn is_runtime_record(&self) -> bool {
        ["_ZTI", "_ZTS", "_ZTV", "_ZTT", "_ZTC", "_ZGV"].iter().any(|prefix| self.name().starts_with(prefix))
    }
}

/// How far before an object's start the address of `&a[i - n]` usually lies, in bytes.
const BEFORE: u64 = 32;

/// How far it may lie where code calculates with it.
const REACH: u64 = 0x4000;

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

/// What has been found out about the literal at a reference: each number is in bytes, and one is added; 0 as long as nobody has
/// asked.
#[derive(Debug, Default)]
struct KnownLiteral {
    length: AtomicU32,
    /// As far as it reaches, padding included.
    span: AtomicU32,
    /// Whether constants begin shortly behind it: [`Map::alone`].
    alone: AtomicU8,
}

impl KnownLiteral {
    fn get(number: &AtomicU32) -> Option<u64> {
        number.load(Ordering::Relaxed).checked_sub(1).map(u64::from)
    }

    fn set(number: &AtomicU32, value: u64) {
        if let Ok(value) = u32::try_from(value + 1) {
            number.store(value, Ordering::Relaxed);
        }
    }
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

impl<'a> Map<'a> {
    pub(crate) fn new(image: &Image<'a>) -> Map<'a> {
        let functions = functions(image);
        let (objects, markers) = objects(image);
        let mut map = Map {
            functions,
            objects,
            markers,
            code_index: Vec::new(),
            code_starts: Starts::default(),
            object_starts: Starts::default(),
            references: Starts::default(),
            distances: ByAddress::default(),
            literals: Vec::new(),
            templates: Vec::new(),
        };
        map.index_code();
        map.index_objects();
        map
    }

    /// To be called when the ranges of functions have changed.
    pub(crate) fn index_code(&mut self) {
        let ranges = self.functions.iter().enumerate();
        self.code_index = ranges
            .flat_map(|(id, f)| f.ranges.iter().enumerate().map(move |(i, r)| (r.address, r.end(), id, i)))
            .collect();
        self.code_index.sort_unstable();
        self.code_starts = Starts::new(self.code_index.iter().map(|e| e.0).collect());
    }

    fn index_objects(&mut self) {
        self.object_starts = Starts::new(self.objects.iter().map(|o| o.address).collect());
    }

    /// True if functions are known that have no name: the build is stripped.
    pub(crate) fn is_stripped(&self) -> bool {
        self.functions.iter().any(|f| !f.evidence.has_name())
    }

    /// Tells the map which addresses are referred to, `from_code` and from data; literals end there. There are none in
    /// code, so what leads into code does not count.
    pub(crate) fn set_references(&mut self, image: &Image<'a>, from_code: impl ParallelIterator<Item = u64>) {
        let code = image.sections.iter().filter(|s| s.executable).map(|s| (s.address, s.end()));
        let code = Spans::new(code.collect());
        let in_data = |address: &u64| !code.contains(*address);
        let mut targets: Vec<u64> = from_code.filter(in_data).collect();
        targets.extend(image.words.values().filter_map(|w| match w {
            Word::Address(a) => Some(*a).filter(in_data),
            _ => None,
        }));
        targets.extend(static_addresses(image));
        targets.par_sort_unstable();
        targets.dedup();
        let mut all = targets.clone();
        all.extend(self.objects.iter().flat_map(|o| [o.address, o.end()]));
        let anonymous = image.symbols.iter().filter(|s| is_anonymous(image, s));
        all.extend(anonymous.flat_map(|s| [s.address, s.address.saturating_add(s.size)]));
        all.extend(image.sections.iter().flat_map(|s| [s.address, s.end()]));
        all.par_sort_unstable();
        all.dedup();
        self.references = Starts::new(all);
        self.add_unnamed_variables(image, &targets);
    }

    /// Finds tables of distances to constant data, which rustc and clang make of arrays of texts, at the places where code that
    /// reads such tables takes addresses. A table reaches to the next address that something refers to; it
    /// is one if all its entries lead to constant data outside of it.
    pub(crate) fn add_distances(&mut self, image: &Image<'a>, starts: &[(u64, FunctionId)]) {
        let mut tables: BTreeMap<u64, bool> = BTreeMap::new();
        for (table, user) in starts {
            *tables.entry(*table).or_insert(true) &= self.functions[*user].rust;
        }
        let mut found = Vec::new();
        for (table, rust) in tables {
            let limit = match self.object_at(table) {
                Some(id) => self.objects[id].end(),
                None => self.next_reference(table),
            };
            let constant = |a: u64| image.section_at(a).is_some_and(|s| is_constant_section(s) && s.content);
            if !constant(table) || self.function_at(table).is_some() {
                continue;
            }
            let bytes = image.bytes(table, limit - table).unwrap_or_default();
            let distances = bytes.chunks_exact(4).map(|c| i32::from_le_bytes(c.try_into().unwrap_or_default()));
            let leads = |d: &i32| {
                let target = table.wrapping_add_signed(i64::from(*d));
                !(table..limit).contains(&target) && constant(target) && self.function_at(target).is_none()
            };
            let run: Vec<i32> = distances.take_while(leads).collect();
            // What follows the last entry is padding at most.
            let padded = bytes[run.len() * 4..].iter().all(|b| *b == 0);
            if run.len() > 1 && padded {
                found.extend(run.iter().enumerate().map(|(i, d)| {
                    (table + 4 * i as u64, Distance { table, target: table.wrapping_add_signed(i64::from(*d)), rust })
                }));
            }
        }
        self.distances = found.into();
        self.add_references(self.distances.values().map(|d| d.target).collect());
        self.forget_literals();
    }

    /// True if a table of distances begins there: code adds its start to what it reads, so it means that and nothing else.
    pub(crate) fn is_table_of_distances(&self, address: u64) -> bool {
        self.distances.get(&address).is_some_and(|distance| distance.table == address)
    }

    /// Adds addresses at which something begins that was found later.
    pub(crate) fn add_references(&mut self, found: Vec<u64>) {
        if found.is_empty() {
            return;
        }
        let mut found = found;
        found.sort_unstable();
        found.dedup();
        let before = std::mem::take(&mut self.references).into_vec();
        let mut literals = std::mem::take(&mut self.literals);
        // What nothing new begins in is as it was.
        for (address, known) in before.iter().zip(&mut literals) {
            let end = address.saturating_add(KnownLiteral::get(&known.span).unwrap_or(u64::MAX));
            let next = found.partition_point(|start| start <= address);
            if found.get(next).is_some_and(|start| *start < end) {
                *known = KnownLiteral::default();
            }
            known.alone = AtomicU8::new(0);
        }
        literals.resize_with(before.len(), KnownLiteral::default);
        let mut all: Vec<(u64, KnownLiteral)> = before.into_iter().zip(literals).collect();
        all.extend(found.into_iter().map(|start| (start, KnownLiteral::default())));
        // Stable: of two for one address the one that was there stays.
        all.sort_by_key(|(start, _)| *start);
        all.dedup_by_key(|(start, _)| *start);
        let references;
        (references, self.literals) = all.into_iter().unzip();
        self.references = Starts::new(references);
    }

    /// Initial values of local arrays are no objects.
    pub(crate) fn set_templates(&mut self, templates: Vec<(u64, u64)>) {
        let is_template = |at: u64| templates.binary_search_by_key(&at, |t| t.0).is_ok();
        self.objects.retain(|o| !(o.unnamed && is_template(o.address)));
        self.templates = templates;
        self.index_objects();
        self.forget_literals();
    }

    /// To be called when literals may have other lengths.
    fn forget_literals(&mut self) {
        self.literals = self.references.as_slice().iter().map(|_| KnownLiteral::default()).collect();
    }

    /// Writable data without a symbol, such as the initial value of a local array that the
    /// code copies to the stack: one object for each address that is referred to.
    fn add_unnamed_variables(&mut self, image: &Image<'a>, targets: &[u64]) {
        let mut found = Vec::new();
        // Constants that hold addresses may lead back to themselves, so they need an identity.
        let stripped = self.is_stripped();
        let is_variable = |s: &&Section<'_>| {
            let named_elsewhere = is_constant_section(s) && !(stripped && s.writable);
            !named_elsewhere && s.content && !s.executable && !s.is_got()
        };
        for section in image.sections.iter().filter(is_variable) {
            let inside = |bound: u64| targets.partition_point(|t| *t < bound);
            for &address in &targets[inside(section.address)..inside(section.end())] {
                let known = self.object_at(address).is_some() || self.markers.contains_key(&address);
                let size = self.next_reference(address).min(section.end()) - address;
                let zero = image.bytes(address, size).is_none_or(|b| b.iter().all(|x| *x == 0));
                let empty = zero && image.words.range(address..address + size).next().is_none();
                // The end of an object is not the start of another one, if nothing is there; but where most variables
                // have no symbol, one without an initial value may well be there.
                if !(known || !stripped && empty && self.ending_at(address).is_some()) {
                    found.push((address, size, is_constant_section(section)));
                }
            }
        }
        self.objects.extend(found.into_iter().map(|(address, size, constant)| DataObject {
            names: vec!["(unnamed)"],
            file: "",
            local: true,
            address,
            size,
            constant,
            unnamed: true,
        }));
        self.objects.sort_by_key(|o| o.address);
        self.index_objects();
    }

    /// First referenced address above `address`.
    pub(crate) fn next_reference(&self, address: u64) -> u64 {
        self.references.as_slice().get(self.references.up_to(address)).copied().unwrap_or(address)
    }

    pub(crate) fn function_at(&self, address: u64) -> Option<(FunctionId, usize, u64)> {
        let i = self.code_starts.up_to(address);
        let (start, end, id, range) = *self.code_index[..i].last()?;
        (address < end).then_some((id, range, address - start))
    }

    /// Start of the first function range at or after `address`.
    pub(crate) fn next_code(&self, address: u64) -> Option<u64> {
        self.code_index.get(self.code_starts.below(address)).map(|e| e.0)
    }

    /// Data that hand-written code has beside itself: from `address` to the next function, without padding. `None` if the address
    /// is none of code, or of a function.
    pub(crate) fn data_in_code(&self, image: &Image<'a>, address: u64) -> Option<&'a [u8]> {
        let section = image.section_at(address).filter(|s| s.executable && self.function_at(address).is_none())?;
        let behind = self.code_ranges().map(|range| range.0).filter(|start| *start > address).min();
        let end = behind.map_or(section.end(), |start| start.min(section.end()));
        let bytes = image.bytes(address, end - address)?;
        let used = bytes.iter().rposition(|b| ![0, 0x90, 0xcc].contains(b)).map_or(0, |last| last + 1);
        Some(&bytes[..used])
    }

    /// All ranges of code, ordered: start and end.
    pub(crate) fn code_ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.code_index.iter().map(|e| (e.0, e.1))
    }

    /// The object that contains `address`.
    pub(crate) fn object_at(&self, address: u64) -> Option<ObjectId> {
        let i = self.object_starts.up_to(address).checked_sub(1)?;
        (address < self.objects[i].end()).then_some(i)
    }

    /// Where a site leads.
    pub(crate) fn resolve<'m>(&'m self, image: &'m Image<'a>, site: &Site) -> Target<'m> {
        self.resolve_address(image, site.target, site.usage)
    }

    /// Where an address leads, if used in this way.
    pub(crate) fn resolve_address<'m>(&'m self, image: &'m Image<'a>, address: u64, usage: Use) -> Target<'m> {
        if let Some((id, range, offset)) = self.function_at(address) {
            return Target::Function(id, range, offset);
        }
        if let Some(slot) = image.stubs.get(&address) {
            return image.words.get(slot).map_or(Target::Unknown, Target::Stub);
        }
        let Some(section) = image.section_at(address) else {
            let first = image.sections.first().map_or(0, |s| s.address);
            return match address.checked_sub(image.start) {
                Some(offset) if address < first => Target::Header(offset),
                _ => self.at_boundary(address),
            };
        };
        if section.is_got() {
            return match image.words.get(&address) {
                // Code takes the address of a slot for thread-local variables only.
                Some(word) if usage != Use::Address || matches!(word, Word::Tls(..)) => Target::Slot(word),
                word => match (self.at_boundary(address), word) {
                    (Target::Unknown, Some(word)) => Target::Slot(word),
                    (boundary, _) => boundary,
                },
            };
        }
        if let Some(id) = self.object_at(address) {
            return Target::Object(id, (address - self.objects[id].address) as i64);
        }
        if self.template_at(address).is_some() {
            return Target::Literal;
        }
        if is_constant_section(section) && section.content && !section.executable {
            if usage != Use::Address || self.is_literal_start(image, address) {
                return Target::Literal;
            }
            // Nothing is there: the end of the object before, or an empty text.
            return match self.ending_at(address).filter(|id| !self.objects[*id].is_runtime_record()) {
                Some(id) => Target::Object(id, self.objects[id].size as i64),
                None => Target::Literal,
            };
        }
        self.at_boundary(address)
    }

    /// The template that contains `address`: start and end.
    pub(crate) fn template_at(&self, address: u64) -> Option<(u64, u64)> {
        let i = self.templates.partition_point(|t| t.0 <= address).checked_sub(1)?;
        Some(self.templates[i]).filter(|t| address < t.1)
    }

    fn at_boundary<'m>(&'m self, address: u64) -> Target<'m> {
        if let Some(name) = self.markers_at(address).first() {
            return Target::Marker(name);
        }
        match self.ending_at(address) {
            Some(id) => Target::Object(id, self.objects[id].size as i64),
            None => Target::Unknown,
        }
    }

    /// True if bytes other than zero follow before the next object.
    fn is_literal_start(&self, image: &Image<'a>, address: u64) -> bool {
        let end = self.next_reference(address);
        let filled = image.words.range(address..end).next().is_some();
        filled || image.bytes(address, end - address).is_some_and(|b| b.iter().any(|x| *x != 0))
    }

    pub(crate) fn ending_at(&self, address: u64) -> Option<ObjectId> {
        let i = self.object_starts.below(address).checked_sub(1)?;
        (self.objects[i].end() == address).then_some(i)
    }

    /// Every entity that an *address* (not an access) could mean: the object that contains
    /// it, the one that ends there, and one that starts shortly after, which code reaches
    /// by a positive offset.
    pub(crate) fn candidates(&self, address: u64) -> Vec<(ObjectId, i64)> {
        let after = self.object_starts.up_to(address);
        let mut found: Vec<(ObjectId, i64)> = Vec::new();
        for id in after.saturating_sub(2)..self.objects.len() {
            let object = &self.objects[id];
            if object.address > address + BEFORE {
                break;
            }
            let exact_start = self.objects.get(after.wrapping_sub(1)).is_some_and(|o| o.address == address);
            if object.address > address && exact_start {
                break;
            }
            let inside = (object.address..object.end()).contains(&address);
            let before = address < object.address;
            if inside || address <= object.end() && !object.is_runtime_record() && !(before && object.is_section()) {
                found.push((id, address.wrapping_sub(object.address) as i64));
            }
        }
        found
    }

    /// All that an address may mean, if used in this way: where it leads first, then what else would give the
    /// same number.
    pub(crate) fn meanings<'m>(&'m self, image: &'m Image<'a>, address: u64, usage: Use) -> Vec<Target<'m>> {
        let mut found = vec![self.resolve_address(image, address, usage)];
        let data = matches!(found[0], Target::Object(..) | Target::Literal | Target::Marker(_));
        if usage == Use::Address && data {
            for (id, offset) in self.candidates(address) {
                if !found.contains(&Target::Object(id, offset)) {
                    found.push(Target::Object(id, offset));
                }
            }
            let ends = matches!(found[0], Target::Object(id, offset) if offset == self.objects[id].size as i64);
            if ends && image.is_constant(address) && image.bytes(address, 1).is_some() {
                found.push(Target::Literal);
            }
        }
        found
    }

    /// Every object that an address may belong to which code calculates with: the one that contains it first, then
    /// those that end not far before it or start not far behind it, such as `a` of `&a[i - 100]`.
    pub(crate) fn within_reach(&self, address: u64) -> Vec<(ObjectId, i64)> {
        let containing = self.object_at(address);
        let first = self.objects.partition_point(|o| o.end() + REACH < address);
        let near = (first..self.objects.len()).take_while(|id| self.objects[*id].address <= address + REACH);
        let start = |id: ObjectId| (id, address.wrapping_sub(self.objects[id].address) as i64);
        let near = near.filter(|id| Some(*id) != containing && !self.objects[*id].is_of_start_files());
        containing.into_iter().chain(near).map(start).collect()
    }

    /// True if the address is what it leads to by itself: the start of an entity. Only elsewhere is it in question
    /// whether code reaches something behind it by adding an index.
    pub(crate) fn is_start(&self, target: &Target<'_>) -> bool {
        matches!(
            target,
            Target::Function(_, 0, 0) | Target::Object(_, 0) | Target::Stub(_) | Target::Slot(Word::Tls(..))
        )
    }

    /// Symbols without size at `address`, such as `_end`, ordered by name.
    pub(crate) fn markers_at(&self, address: u64) -> &[&'a str] {
        self.markers.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn marker_address(&self, name: &str) -> Option<u64> {
        self.markers.iter().find(|(_, names)| names.contains(&name)).map(|(a, _)| *a)
    }

    /// The literal at `address`, seen as something whose address is taken, without the
    /// zeros at its end that are not its terminator. Words that the dynamic linker fills are
    /// content, though not every linker writes them into the file.
    pub(crate) fn literal(&self, image: &Image<'a>, address: u64) -> &'a [u8] {
        let known = self.known_literal(address);
        let rest = image.bytes_from(address);
        match known.and_then(|known| KnownLiteral::get(&known.length)) {
            Some(length) => &rest[..length as usize],
            None => {
                let length = self.literal_length(image, address);
                known.inspect(|known| KnownLiteral::set(&known.length, length as u64));
                &rest[..length]
            }
        }
    }

    /// What has been noted of an address by [`Map::set_alone`]: no constants begin shortly behind it. `rust`: as a function of
    /// Rust sees it.
    pub(crate) fn is_alone(&self, address: u64, rust: bool) -> bool {
        self.known_literal(address)
            .is_some_and(|known| known.alone.load(Ordering::Relaxed) & (1 << u8::from(rust)) != 0)
    }

    /// Notes that no constants begin shortly behind an address.
    pub(crate) fn set_alone(&self, address: u64, rust: bool) {
        if let Some(known) = self.known_literal(address) {
            known.alone.fetch_or(1 << u8::from(rust), Ordering::Relaxed);
        }
    }

    fn known_literal(&self, address: u64) -> Option<&KnownLiteral> {
        self.references.position(address).and_then(|i| self.literals.get(i))
    }

    fn literal_length(&self, image: &Image<'a>, address: u64) -> usize {
        let (start, end) = self.literal_span(image, address);
        let extent = &image.bytes_from(start)[..(end - start) as usize];
        let last_word = image.words.range(start..end).last().map_or(0, |(at, _)| (at - start) as usize + 8);
        let used = extent.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1).max(last_word);
        used.max(text_length(extent)).min(extent.len())
    }

    /// Start and end of the literal at `address`: it reaches to the next reference. A string
    /// reaches to its terminator even if something refers to its tail.
    pub(crate) fn literal_span(&self, image: &Image<'a>, address: u64) -> (u64, u64) {
        let known = self.known_literal(address);
        if let Some(length) = known.and_then(|known| KnownLiteral::get(&known.span)) {
            return (address, address + length);
        }
        let span = self.find_span(image, address);
        known.inspect(|known| KnownLiteral::set(&known.span, span.1 - address));
        span
    }

    fn find_span(&self, image: &Image<'a>, address: u64) -> (u64, u64) {
        if let Some((_, end)) = self.template_at(address) {
            return (address, end);
        }
        let rest = image.bytes_from(address);
        let last_of_text = (text_length(rest) as u64).saturating_sub(1);
        // What leads somewhere is no text, whatever its bytes look like.
        let last = address + last_of_text;
        let leads =
            self.distances.range(address..last).next().is_some() || image.words.range(address..last).next().is_some();
        let last_of_text = if leads { 0 } else { last_of_text };
        let end = self.next_reference(address + last_of_text);
        (address, end.clamp(address, address + rest.len() as u64))
    }
}

/// In a position-dependent image no relocation marks the words that hold addresses. Those that lead to the start of
/// something constant by all appearances: behind a terminator, or well aligned.
fn static_addresses<'i>(image: &'i Image<'_>) -> impl Iterator<Item = u64> + 'i {
    let data = image.sections.iter().filter(|s| image.fixed_address && s.content && !s.executable);
    let words = data.flat_map(|s| {
        let first = (s.address.next_multiple_of(8) - s.address) as usize;
        s.data.get(first..).unwrap_or_default().chunks_exact(8)
    });
    words.map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default())).filter(|a| {
        (image.start..image.span).contains(a)
            && image.is_constant(*a)
            && image.section_at(*a).is_some_and(|s| !s.executable)
            && (a.is_multiple_of(8) || image.bytes(a - 1, 1) == Some(&[0]))
    })
}

/// Bytes of the text that `bytes` begin with, with its terminator; 0 if it is none. Linkers merge tails of wide
/// strings too, of strings in any encoding, and of Rust's templates of formats: something may refer to the middle of one.
fn text_length(bytes: &[u8]) -> usize {
    let narrow = narrow_text(bytes).unwrap_or(0);
    let format = rust::format_length(bytes).unwrap_or(0);
    narrow.max(format).max(wide_length(bytes, 4)).max(wide_length(bytes, 2))
}

/// Bytes of the text of single bytes that `bytes` begin with, with its terminator.
pub(crate) fn narrow_text(bytes: &[u8]) -> Option<usize> {
    let is_text =
        |text: &[u8]| std::str::from_utf8(text).is_ok() || text.iter().all(|b| matches!(b, 7..=13 | 27 | 32..));
    bytes.iter().position(|b| *b == 0).filter(|n| is_text(&bytes[..*n])).map(|n| n + 1)
}

/// Bytes of the text of units of this width, two letters at least.
fn wide_length(bytes: &[u8], width: usize) -> usize {
    let unit = |c: &[u8]| c.iter().rev().fold(0u32, |n, b| n << 8 | u32::from(*b));
    let letter = |n: &u32| (0x20..0x250).contains(n) || matches!(n, 9 | 10 | 13);
    let letters = bytes.chunks_exact(width).map(unit).take_while(letter).count();
    let ends = bytes.get(letters * width..(letters + 1) * width).is_some_and(|c| unit(c) == 0);
    if letters > 1 && ends { (letters + 1) * width } else { 0 }
}

/// The name without the fragment suffix `.cold` or `.cold.N`.
pub(crate) fn cold_parent(name: &str) -> Option<&str> {
    let numbered = name.rsplit_once('.').filter(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()));
    numbered.map_or(name, |(stem, _)| stem).strip_suffix(".cold")
}

fn functions<'a>(image: &Image<'a>) -> Vec<Function<'a>> {
    let in_code = |s: &&Section<'_>| s.executable && !s.name.starts_with(".plt") && s.name != ".iplt";
    let mut symbols: Vec<&Symbol<'a>> = image.symbols.iter().filter(|s| s.kind == SymbolKind::Text).collect();
    symbols.sort_by_key(|s| s.address);
    let entries = symbols.chunk_by(|a, b| a.address == b.address);
    let entries: Vec<&[&Symbol<'a>]> =
        entries.filter(|e| image.section_at(e[0].address).filter(in_code).is_some()).collect();
    let mut functions = Vec::with_capacity(entries.len());
    let mut end_before = 0;
    for (i, entry) in entries.iter().enumerate() {
        let address = entry[0].address;
        let rest = image.bytes_from(address);
        let next = entries.get(i + 1).map(|e| e[0].address);
        let size = match entry.iter().map(|s| s.size).max().unwrap_or_default() {
            0 => {
                let room = next.map_or(rest.len() as u64, |n| n - address);
                arch::unpadded(&rest[..(room as usize).min(rest.len())])
            }
            n => (n as usize).min(rest.len()),
        };
        let mut function = named(entry);
        function.overlaps = address < end_before || next.is_some_and(|n| address + size as u64 > n);
        end_before = end_before.max(address + size as u64);
        function.ranges.push(CodeRange { address, bytes: &rest[..size], name: function.names[0] });
        functions.push(function);
    }
    attach_fragments(functions)
}

/// A function with all names of its entry: the global ones first, else in their order.
fn named<'a>(entry: &[&Symbol<'a>]) -> Function<'a> {
    let first = entry[0];
    let mut function = Function {
        names: Vec::with_capacity(entry.len()),
        file: first.file,
        local: first.local,
        ranges: Vec::with_capacity(1),
        overlaps: false,
        rust: false,
        evidence: first.evidence,
    };
    for symbol in entry {
        if function.local && !symbol.local {
            (function.local, function.file) = (false, symbol.file);
            function.names.insert(0, symbol.name);
        } else {
            function.names.push(symbol.name);
        }
    }
    function.names.dedup();
    function.rust = rust::is_mangled(function.name());
    function
}

/// Joins fragments with the only function that they can belong to by their names. Functions are ordered.
fn attach_fragments(functions: Vec<Function<'_>>) -> Vec<Function<'_>> {
    let parents = parents(&functions);
    if parents.is_empty() {
        return functions;
    }
    let mut left: Vec<Option<Function<'_>>> = functions.into_iter().map(Some).collect();
    for &(fragment, parent) in &parents {
        // What belongs to a fragment is left as it is.
        if parents.binary_search_by_key(&parent, |p| p.0).is_err()
            && let Some(Some(taken)) = left.get_mut(fragment).map(Option::take)
            && let Some(Some(function)) = left.get_mut(parent)
        {
            function.overlaps |= taken.overlaps;
            function.ranges.extend(taken.ranges);
        }
    }
    left.into_iter().flatten().collect()
}

/// Fragments and the functions that they belong to, by index; ordered.
fn parents(functions: &[Function<'_>]) -> Vec<(usize, usize)> {
    let stems = functions.iter().enumerate().filter_map(|(i, f)| Some((i, cold_parent(f.name())?)));
    let stems: Vec<(usize, &str)> = stems.collect();
    let wanted: FxHashSet<&str> = stems.iter().map(|s| s.1).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut named: FxHashMap<(&str, &str), Vec<usize>> = FxHashMap::default();
    for (i, function) in functions.iter().enumerate() {
        for name in function.names.iter().filter(|name| wanted.contains(**name)) {
            named.entry((function.file, name)).or_default().push(i);
        }
    }
    let parent = |(fragment, stem): (usize, &str)| {
        // The fragment's symbol is local even if its parent is global.
        let same_file = named.get(&(functions[fragment].file, stem));
        match same_file.or_else(|| named.get(&("", stem)))?.as_slice() {
            [one] => Some((fragment, *one)),
            _ => None,
        }
    };
    stems.into_iter().filter_map(parent).collect()
}

/// True for a constant that has no name in its source, and one that LLVM gave it so that parts of a crate that were compiled by
/// themselves can share it (NameAnonGlobalPass): the name changes with anything in that part, and nothing rests on its address.
fn is_anonymous(image: &Image<'_>, symbol: &Symbol<'_>) -> bool {
    symbol.local
        && names::is_anonymous(symbol.name)
        && image.section_at(symbol.address).is_some_and(is_constant_section)
}

fn objects<'a>(image: &Image<'a>) -> (Vec<DataObject<'a>>, BTreeMap<u64, Vec<&'a str>>) {
    let mut found: Vec<DataObject<'a>> = Vec::new();
    let mut markers: BTreeMap<u64, Vec<&'a str>> = BTreeMap::new();
    for symbol in &image.symbols {
        // What begins with `.L` is the compiler's name for a constant without an identity; mold keeps those.
        let nameless = symbol.name.is_empty() || symbol.name.starts_with(".L") || is_anonymous(image, symbol);
        if !matches!(symbol.kind, SymbolKind::Data | SymbolKind::Unknown) || nameless {
            continue;
        }
        // gold gives sizes to the linker's own tables.
        let linkers = |s: &Section<'_>| s.name == ".dynamic" || s.name.starts_with(".got");
        if symbol.size == 0 || image.section_at(symbol.address).is_some_and(linkers) {
            if !symbol.name.starts_with('.') {
                markers.entry(symbol.address).or_default().push(symbol.name);
            }
            continue;
        }
        let Some(section) = image.section_at(symbol.address) else { continue };
        if symbol.kind == SymbolKind::Data && !section.tls {
            found.push(DataObject {
                names: vec![symbol.name],
                file: symbol.file,
                local: symbol.local,
                address: symbol.address,
                size: symbol.size,
                constant: is_constant_section(section),
                unnamed: false,
            });
        }
    }
    for names in markers.values_mut() {
        names.sort_unstable();
    }
    for section in &image.sections {
        if matches!(section.name, ".init_array" | ".fini_array" | ".preinit_array" | ".ctors" | ".dtors") {
            found.push(DataObject {
                names: vec![section.name],
                file: "",
                local: false,
                address: section.address,
                size: section.size,
                constant: true,
                unnamed: false,
            });
        }
    }
    // Outermost first among those that start together; globals before locals.
    found.sort_by(|a, b| {
        (a.address, std::cmp::Reverse(a.size), a.local, a.names[0]).cmp(&(
            b.address,
            std::cmp::Reverse(b.size),
            b.local,
            b.names[0],
        ))
    });
    let mut objects: Vec<DataObject<'a>> = Vec::new();
    for object in found {
        match objects.last_mut() {
            Some(last) if object.address == last.address => last.names.push(object.names[0]),
            // A symbol inside an object: part of it.
            Some(last) if object.end() <= last.end() => {}
            _ => objects.push(object),
        }
    }
    (objects, markers)
}
