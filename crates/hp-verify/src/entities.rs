//! The named things of a build: ranges of code, data objects, markers; and where anything refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock};

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::ahead::Meant;
use crate::code::{self, Use};
use crate::image::{Image, Section, Symbol, SymbolType, Word};
use crate::scan::{self, Scan};
use crate::unwind::Entries;
use crate::{rust, templates, unnamed};

/// One contiguous piece of code: a function, or a part of one that was moved away (`.cold`).
#[derive(Debug)]
pub(crate) struct Range<'a> {
    pub(crate) address: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) names: Vec<&'a str>,
    pub(crate) file: &'a str,
    /// Known by its unwind rows or as what lies between others; it has no name.
    pub(crate) unnamed: bool,
    /// Written in Rust, by its name or by debug information.
    pub(crate) rust: bool,
    /// The function that it is a part of; itself if it is an entry.
    pub(crate) parent: usize,
}

impl Range<'_> {
    pub(crate) fn end(&self) -> u64 {
        self.address + self.bytes.len() as u64
    }

    pub(crate) fn name(&self) -> &str {
        self.names.first().copied().unwrap_or("(no name)")
    }

    /// Its names of Rust, as [`rust::instance`] has them.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter_map(|name| rust::instance(name))
    }
}

/// A data object with a symbol.
#[derive(Debug)]
pub(crate) struct DataObject<'a> {
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) names: Vec<&'a str>,
    pub(crate) file: &'a str,
    pub(crate) local: bool,
    pub(crate) constant: bool,
}

impl DataObject<'_> {
    /// Made by the compiler for the C++ runtime: type information, its names, virtual tables, guards (Itanium C++
    /// ABI, "Virtual Tables and RTTI", "Guard Variables"). They are no arrays.
    pub(crate) fn is_for_runtime(&self) -> bool {
        let name = self.names[0];
        name.starts_with("_ZGV") || name.starts_with("_ZT") && name[3..].starts_with(['I', 'S', 'V', 'T', 'C'])
    }

    pub(crate) fn end(&self) -> u64 {
        self.address + self.size
    }
}

/// How far before an object compilers place the address of `&a[i - n]`, in bytes.
const BEFORE: u64 = 32;

/// A build with its entities.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    pub(crate) image: Image<'a>,
    /// What unwinders know of its code.
    pub(crate) entries: Entries<'a>,
    /// Ordered by address.
    pub(crate) ranges: Vec<Range<'a>>,
    /// Parts of each entry, itself first, by index of the entry.
    pub(crate) parts: FxHashMap<usize, Vec<usize>>,
    pub(crate) objects: Vec<DataObject<'a>>,
    pub(crate) markers: BTreeMap<u64, Vec<&'a str>>,
    /// Where something in data begins or ends: every place that code or data refers to, and every border of an
    /// object or section. Ordered.
    pub(crate) borders: Vec<u64>,
    /// Where tables of distances begin that some function reads.
    pub(crate) tables: BTreeSet<u64>,
    /// Data in writable sections that is only copied from: start and end, ordered.
    templates: Vec<(u64, u64)>,
    /// Where calls lead of which it has been asked whether they come back, and the answers.
    pub(crate) away: Mutex<FxHashMap<u64, bool>>,
    /// Each place that was watched and that code or a word leads to, and where from.
    pub(crate) incoming: BTreeMap<u64, u64>,
}

/// Where a table of distances begins, and where its entries lead.
type Table = (u64, Vec<u64>);

impl<'a> Side<'a> {
    /// Reads a build. What leads to places inside of `watched`, ordered ranges of addresses, is remembered.
    pub(crate) fn new(image: Image<'a>, watched: &BTreeMap<u64, u64>) -> Side<'a> {
        let (objects, markers) = objects(&image);
        let mut ranges = ranges(&image);
        let entries = Entries::of_build(&image);
        let unnamed = if image.stripped { unnamed::add(&image, &entries, &mut ranges) } else { BTreeSet::new() };
        let mut side = Side {
            image,
            entries,
            ranges,
            parts: FxHashMap::default(),
            objects,
            markers,
            borders: Vec::new(),
            tables: BTreeSet::new(),
            templates: Vec::new(),
            away: Mutex::default(),
            incoming: BTreeMap::new(),
        };
        let inside = |a: u64| watched.range(..a).next_back().is_some_and(|(_, end)| a < *end);
        let scan = |range| scan::range(&side, range, &inside);
        let scans: Vec<Scan> = (0..side.ranges.len()).into_par_iter().map(scan).collect();
        let mut parents = cold_parents(&side.ranges);
        if side.image.stripped {
            unnamed::find_parents(&side, &scans, &unnamed, &mut parents);
        }
        side.parts = attach_parts(&mut side.ranges, parents);
        side.incoming = side.find_incoming(&scans, &inside);
        side.borders = side.find_borders(&scans);
        let (tables, texts) = side.calculated_places(&scans);
        side.tables = tables;
        if !texts.is_empty() {
            side.borders.extend(texts);
            side.borders.par_sort_unstable();
            side.borders.dedup();
        }
        side.templates = templates::find(&side, &scans);
        side
    }

    /// The range that contains `address`, and the offset in it.
    pub(crate) fn range_at(&self, address: u64) -> Option<(usize, u64)> {
        let i = self.ranges.partition_point(|r| r.address <= address);
        let around = i.saturating_sub(4)..i;
        let found = around.rev().find(|i| address < self.ranges[*i].end())?;
        Some((found, address - self.ranges[found].address))
    }

    /// The object that contains `address`, and the offset in it.
    pub(crate) fn object_at(&self, address: u64) -> Option<(usize, u64)> {
        let i = self.objects.partition_point(|o| o.address <= address).checked_sub(1)?;
        let object = &self.objects[i];
        (address < object.end()).then(|| (i, address - object.address))
    }

    /// Every object that an address can be made from: the one that contains it comes first, then the one that
    /// ends there, then those that begin shortly behind it.
    pub(crate) fn readings(&self, address: u64) -> Vec<(usize, i64)> {
        let mut found: Vec<(usize, i64)> =
            self.object_at(address).map(|(o, offset)| (o, offset as i64)).into_iter().collect();
        let starts_here = found.first().is_some_and(|f| f.1 == 0);
        let i = self.objects.partition_point(|o| o.address < address);
        if let Some(before) = i.checked_sub(1).filter(|b| self.objects[*b].end() == address) {
            found.push((before, self.objects[before].size as i64));
        }
        let behind = self.objects[i..].iter().enumerate().take_while(|(_, o)| o.address <= address + BEFORE);
        let behind = behind.filter(|(_, o)| o.address > address && !starts_here);
        found.extend(behind.map(|(k, o)| (i + k, address.wrapping_sub(o.address) as i64)));
        // Nobody makes an address outside of such an object from it.
        found.retain(|(o, offset)| {
            let object = &self.objects[*o];
            !object.is_for_runtime() || (0..object.size as i64).contains(offset)
        });
        found
    }

    /// Nothing ever writes there: the section says so, or that nobody does is known.
    pub(crate) fn is_constant(&self, address: u64) -> bool {
        let section = self.image.section_at(address);
        section.is_some_and(|s| s.is_constant() && !s.code) || self.template_at(address).is_some()
    }

    /// The end of the template that contains `address`.
    pub(crate) fn template_at(&self, address: u64) -> Option<u64> {
        let i = self.templates.partition_point(|t| t.0 <= address).checked_sub(1)?;
        Some(self.templates[i].1).filter(|end| address < *end)
    }

    /// Something other than zeros is there once the image is loaded.
    pub(crate) fn is_filled(&self, address: u64, size: u64) -> bool {
        let nonzero = self.image.bytes(address, size).is_some_and(|b| b.iter().any(|b| *b != 0));
        nonzero || self.image.words.range(address..address + size).next().is_some()
    }

    pub(crate) fn next_border(&self, address: u64) -> u64 {
        self.borders.get(self.borders.partition_point(|b| *b <= address)).copied().unwrap_or(u64::MAX)
    }

    /// Where the last thing begins or ends before an address.
    pub(crate) fn last_border(&self, address: u64) -> u64 {
        self.borders.partition_point(|b| *b < address).checked_sub(1).map_or(0, |i| self.borders[i])
    }

    /// How long the constant without a symbol at `address` is at most: to where the next thing begins; a text
    /// reaches to its terminator even if something refers to its tail.
    pub(crate) fn literal_span(&self, address: u64) -> u64 {
        if let Some(end) = self.template_at(address) {
            return end - address;
        }
        let rest = self.image.bytes_from(address);
        let text = text_length(rest) as u64;
        let end = self.next_border(address + text.saturating_sub(1));
        (end - address).min(rest.len() as u64)
    }

    /// The content of that constant: zeros at its end do not count, but a text's terminator does, and so do words
    /// that are zero in the file because the dynamic linker fills them.
    pub(crate) fn literal(&self, address: u64) -> &'a [u8] {
        let span = &self.image.bytes_from(address)[..self.literal_span(address) as usize];
        let words = self.image.words.range(address..address + span.len() as u64);
        let last_word = words.last().map_or(0, |(at, _)| (at - address) as usize + 8);
        let used = span.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1).max(last_word);
        &span[..used.max(text_length(span)).min(span.len())]
    }

    /// All ranges of the function of which `range` is one.
    pub(crate) fn family(&self, range: usize) -> &[usize] {
        self.parts.get(&self.ranges[range].parent).map_or(&[], Vec::as_slice)
    }

    /// Steps through one range.
    pub(crate) fn steps(&self, range: usize) -> impl Iterator<Item = (usize, code::Step)> {
        let range = &self.ranges[range];
        code::steps(range.address, range.bytes, self.image.fixed)
    }

    /// Where all tables of distances begin, and where constants begin that nothing but a calculation leads to: by the entries
    /// of such tables, back from the end of a text, or from an address before it.
    fn calculated_places(&self, scans: &[Scan]) -> (BTreeSet<u64>, Vec<u64>) {
        let of_range = |(r, scan): (usize, &Scan)| {
            let odd = scan.odd.iter().filter(|(_, n)| self.ahead(*n).is_some());
            let ahead = odd.filter_map(|(here, n)| match self.meant(r, *here, *n) {
                Meant::There(start) => Some(start),
                _ => None,
            });
            let starts: Vec<u64> = scan.texts.iter().copied().chain(ahead).collect();
            let tables: Vec<Table> = scan.places.iter().filter_map(|at| Some((*at, self.distances(*at)?))).collect();
            (tables, starts)
        };
        let found: Vec<(Vec<Table>, Vec<u64>)> = scans.par_iter().enumerate().map(of_range).collect();
        let tables = found.iter().flat_map(|(tables, _)| tables.iter().map(|t| t.0)).collect();
        let entries = |(tables, starts): (Vec<Table>, Vec<u64>)| {
            tables.into_iter().flat_map(|t| t.1).chain(starts).collect::<Vec<_>>()
        };
        (tables, found.into_iter().flat_map(entries).collect())
    }

    /// True if the `size` bytes before a place are letters of a text, which ends there.
    pub(crate) fn is_end_of_text(&self, end: u64, size: u64) -> bool {
        let text = end.checked_sub(size).and_then(|start| self.image.bytes(start, size));
        self.is_constant(end) && self.image.bytes(end, 1) == Some(&[0]) && text.is_some_and(|text| !text.contains(&0))
    }

    /// Where the entries of the table at `address` lead, if that can be one of 32-bit distances from its start to constants, as
    /// rustc and clang make of arrays of texts. It reaches to the next border.
    pub(crate) fn distances(&self, address: u64) -> Option<Vec<u64>> {
        // Nothing but an unwinder reads its rows, which say nothing of texts.
        let text = |s: &Section<'_>| !s.code && !s.is_of_unwinder();
        let is_data = |a: u64| self.is_constant(a) && self.image.section_at(a).is_some_and(text);
        if !is_data(address) || self.image.words.contains_key(&address) {
            return None;
        }
        let end = self.next_border(address);
        let bytes = self.image.bytes(address, end.checked_sub(address)?)?;
        let entries = bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        let targets = entries.map(|distance| address.wrapping_add_signed(i64::from(distance)));
        let found: Vec<u64> = targets.take_while(|t| is_data(*t) && !(address..end).contains(t)).collect();
        let padded = bytes[4 * found.len()..].iter().all(|b| *b == 0);
        (found.len() > 1 && padded).then_some(found)
    }

    fn find_incoming(&self, scans: &[Scan], inside: &dyn Fn(u64) -> bool) -> BTreeMap<u64, u64> {
        let from_words = self.image.words.iter().filter_map(|(at, word)| match word {
            Word::Address(a) | Word::Resolver(a) => Some((*a, *at)),
            _ => None,
        });
        let from_code = scans.iter().flat_map(|scan| scan.watched.iter().copied());
        from_code.chain(from_words.filter(|(a, _)| inside(*a))).collect()
    }

    fn find_borders(&self, scans: &[Scan]) -> Vec<u64> {
        let mut all: Vec<u64> = scans.iter().flat_map(|scan| &scan.data).copied().collect();
        all.extend(self.image.words.values().filter_map(|w| match w {
            Word::Address(a) => Some(*a),
            _ => None,
        }));
        all.extend(self.texts_in_words());
        all.extend(self.objects.iter().flat_map(|o| [o.address, o.end()]));
        // What LLVM names itself is no object, but it says where a constant lies.
        let anonymous = self.image.symbols.iter().filter(|s| s.local && s.size > 0 && is_anonymous(s.name));
        all.extend(anonymous.flat_map(|s| [s.address, s.address.saturating_add(s.size)]));
        all.extend(self.image.sections.iter().flat_map(|s| [s.address, s.end()]));
        all.par_sort_unstable();
        all.dedup();
        all
    }
}

impl Side<'_> {
    /// Where aligned words of data lead to the start of a text, in an image at a fixed address: nothing else says that they are
    /// pointers there.
    fn texts_in_words(&self) -> Vec<u64> {
        let data = self.image.sections.iter().filter(|s| self.image.fixed && !s.code && !s.data.is_empty());
        let words = data.flat_map(|s| {
            let lead = (s.address.next_multiple_of(8) - s.address) as usize;
            s.data.get(lead..).unwrap_or_default().chunks_exact(8)
        });
        let values = words.map(|w| u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]));
        let text = |a: &u64| {
            self.image.section_at(*a).is_some_and(|s| s.is_constant() && !s.code)
                && self.image.bytes(a.wrapping_sub(1), 1) == Some(&[0])
                && text_length(self.image.bytes_from(*a)) > 1
        };
        values.filter(text).collect()
    }
}

/// What one function refers to, and where its instructions begin; found when it is asked for.
#[derive(Debug)]
pub(crate) struct Family<'s> {
    side: &'s Side<'s>,
    /// The range that enters it.
    pub(crate) entry: usize,
    known: OnceLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Every instruction's address. Ordered.
    starts: Vec<u64>,
    /// Data that it refers to. Ordered.
    targets: Vec<(u64, Use)>,
    /// It jumps through a register or a table.
    computed: bool,
}

impl<'s> Family<'s> {
    pub(crate) fn of(side: &'s Side<'s>, range: usize) -> Family<'s> {
        Family { side, entry: side.ranges[range].parent, known: OnceLock::new() }
    }

    fn known(&self) -> &Known {
        self.known.get_or_init(|| {
            let mut known = Known::default();
            for part in self.side.family(self.entry) {
                let base = self.side.ranges[*part].address;
                for (at, step) in self.side.steps(*part) {
                    known.starts.push(base + at as u64);
                    known.computed |= step.is_computed_jump();
                    let data = step.fields.iter().filter(|f| f.usage != Use::Branch);
                    known.targets.extend(data.map(|f| (f.target, f.usage)));
                }
            }
            known.starts.sort_unstable();
            known.targets.sort_unstable();
            known
        })
    }

    /// One of its instructions begins there.
    pub(crate) fn has_instruction(&self, address: u64) -> bool {
        self.known().starts.binary_search(&address).is_ok()
    }

    /// It jumps through a register or a table.
    pub(crate) fn jumps_by_table(&self) -> bool {
        self.known().computed
    }

    /// Each place in data that it refers to, and how.
    pub(crate) fn targets(&self) -> &[(u64, Use)] {
        &self.known().targets
    }

    /// It makes this address.
    pub(crate) fn makes(&self, address: u64) -> bool {
        self.known().targets.binary_search(&(address, Use::Address)).is_ok()
    }

    /// The function refers to a place in `start..end`.
    pub(crate) fn uses(&self, start: u64, end: u64) -> bool {
        let first = self.targets().partition_point(|t| t.0 < start);
        self.targets().get(first).is_some_and(|t| t.0 < end)
    }

    /// The next place behind `address` that the function refers to.
    fn next_use(&self, address: u64) -> u64 {
        self.targets().get(self.targets().partition_point(|t| t.0 <= address)).map_or(u64::MAX, |t| t.0)
    }

    /// The labels of the jump table at `address`, if that is one: entries that lead to instructions of the
    /// function, as distances of 32 bits from the table or as addresses of 64 bits. Gives the entries' width, too.
    pub(crate) fn table(&self, address: u64) -> Option<(u64, Vec<u64>)> {
        let side = self.side;
        let constant = side.image.section_at(address).is_some_and(|s| s.is_constant() && !s.code);
        if !constant || !self.jumps_by_table() {
            return None;
        }
        let distance = |i: u64| {
            let distance = side.image.i32_at(address + 4 * i)?;
            Some(address.wrapping_add_signed(i64::from(distance)))
        };
        let absolute = |i: u64| match side.image.words.get(&(address + 8 * i)) {
            Some(Word::Address(a)) => Some(*a),
            _ => side.image.u64_at(address + 8 * i).filter(|_| side.image.fixed),
        };
        // Where another object begins, its own pointers may lead to this function, too.
        let behind = side.objects.partition_point(|o| o.address <= address);
        let next = side.objects.get(behind).map_or(u64::MAX, |o| o.address);
        let own = side.object_at(address).map_or(u64::MAX, |(o, _)| side.objects[o].end());
        let end = self.next_use(address).min(next).min(own);
        let run = |width: u64, entry: &dyn Fn(u64) -> Option<u64>| -> Vec<u64> {
            let inside = (0..).take_while(|i| address + width * (i + 1) <= end);
            inside.map_while(entry).take_while(|t| self.has_instruction(*t)).collect()
        };
        [(4, run(4, &distance)), (8, run(8, &absolute))].into_iter().find(|(_, labels)| !labels.is_empty())
    }
}

/// Bytes of the text that `bytes` begin with, its terminator included; 0 if it is none.
pub(crate) fn text_length(bytes: &[u8]) -> usize {
    let end = bytes.iter().position(|b| *b == 0).filter(|n| std::str::from_utf8(&bytes[..*n]).is_ok());
    end.map_or(0, |n| n + 1)
}

/// `f` of `f.cold` and `f.cold.1`.
pub(crate) fn cold_stem(name: &str) -> Option<&str> {
    let (stem, rest) = name.rsplit_once(".cold")?;
    let number = rest.strip_prefix('.').unwrap_or(rest);
    let plain = rest.is_empty() || rest.len() > number.len() && number.bytes().all(|b| b.is_ascii_digit());
    plain.then_some(stem)
}

fn ranges<'a>(image: &Image<'a>) -> Vec<Range<'a>> {
    let mut at: BTreeMap<u64, (u64, Vec<&Symbol<'a>>)> = BTreeMap::new();
    let in_code = |a| image.section_at(a).is_some_and(|s| s.code && !s.is_stubs());
    for symbol in image.symbols.iter().filter(|s| s.kind == SymbolType::Function && in_code(s.address)) {
        let entry = at.entry(symbol.address).or_default();
        entry.0 = entry.0.max(symbol.size);
        entry.1.push(symbol);
    }
    let starts: Vec<u64> = at.keys().copied().collect();
    let mut ranges = Vec::new();
    for (i, (address, (size, mut symbols))) in at.into_iter().enumerate() {
        let rest = image.bytes_from(address);
        let size = match size {
            0 => {
                let next = starts.get(i + 1).map_or(rest.len(), |n| (n - address) as usize);
                without_padding(&rest[..next.min(rest.len())])
            }
            n => (n as usize).min(rest.len()),
        };
        symbols.sort_by_key(|s| s.local);
        let mut names: Vec<&str> = symbols.iter().map(|s| s.name).collect();
        let mut seen = FxHashSet::default();
        names.retain(|n| seen.insert(*n));
        let file = if symbols[0].local { symbols[0].file } else { "" };
        let rust = rust::is_name(names[0]) || image.languages.is_rust(address, address + size as u64);
        ranges.push(Range { address, bytes: &rest[..size], names, file, unnamed: false, rust, parent: i });
    }
    ranges
}

/// Length of code without the no-operations at its end.
pub(crate) fn without_padding(bytes: &[u8]) -> usize {
    let (mut end, mut seen) = (0, 0);
    for (at, step) in code::steps(0, bytes, false) {
        seen = at + step.len();
        if code::padding(&bytes[at..seen]) == 0 {
            end = seen;
        }
    }
    if seen == bytes.len() { end } else { bytes.len() }
}

/// The function of each `.cold` part.
fn cold_parents(ranges: &[Range<'_>]) -> Vec<Option<usize>> {
    let mut by_name: FxHashMap<(&str, &str), Vec<usize>> = FxHashMap::default();
    for (i, range) in ranges.iter().enumerate() {
        for name in &range.names {
            by_name.entry((range.file, name)).or_default().push(i);
        }
    }
    let parent = |range: &Range<'_>| {
        let stem = cold_stem(range.names.first()?)?;
        let found = by_name.get(&(range.file, stem)).or_else(|| by_name.get(&("", stem)))?;
        found.first().copied().filter(|_| found.len() == 1)
    };
    ranges.iter().map(parent).collect()
}

/// Sets the parent of every range; gives the parts of every function, itself first.
fn attach_parts(ranges: &mut [Range<'_>], parents: Vec<Option<usize>>) -> FxHashMap<usize, Vec<usize>> {
    let mut parts: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    for (i, parent) in parents.into_iter().enumerate() {
        let parent = parent.unwrap_or(i);
        ranges[i].parent = parent;
        let list = parts.entry(parent).or_insert_with(|| vec![parent]);
        if parent != i {
            list.push(i);
        }
    }
    parts
}

/// True for `anon.HASH.NUMBER`, with or without `.llvm.NUMBER`: what LLVM calls a constant without a name that more than one
/// part of a crate uses. The next build may call it otherwise, or leave it without a symbol.
fn is_anonymous(name: &str) -> bool {
    let mut parts = name.split('.');
    let hash = |part: &str| part.len() == 32 && part.chars().all(|c| c.is_ascii_hexdigit());
    let number = |part: &str| part.parse::<u64>().is_ok();
    parts.next() == Some("anon")
        && parts.next().is_some_and(hash)
        && parts.next().is_some_and(number)
        && parts.next().is_none_or(|llvm| llvm == "llvm" && parts.next().is_some_and(number))
        && parts.next().is_none()
}

type Markers<'a> = BTreeMap<u64, Vec<&'a str>>;

fn objects<'a>(image: &Image<'a>) -> (Vec<DataObject<'a>>, Markers<'a>) {
    let (mut found, mut markers) = (Vec::new(), Markers::new());
    for symbol in &image.symbols {
        let section = image.section_at(symbol.address);
        // mold keeps the compiler's own names of constants, and gold gives sizes to the linker's tables.
        let of_linker = section.is_some_and(|s| s.is_slots() || s.name == ".dynamic");
        let anonymous = symbol.local && is_anonymous(symbol.name) && section.is_some_and(Section::is_constant);
        if symbol.name.starts_with(".L") || anonymous || of_linker && symbol.size > 0 {
            continue;
        }
        // Where constants end unwind information begins, and the last array ends: of its names no program knows.
        if symbol.local && matches!(symbol.name, "__GNU_EH_FRAME_HDR" | "__FRAME_END__") {
            continue;
        }
        match (symbol.kind, symbol.size, section) {
            (SymbolType::Object | SymbolType::Other, 0, _) if !symbol.name.starts_with('.') => {
                markers.entry(symbol.address).or_default().push(symbol.name);
            }
            (SymbolType::Object, 1.., Some(s)) if !s.tls => found.push(DataObject {
                address: symbol.address,
                size: symbol.size,
                names: vec![symbol.name],
                file: symbol.file,
                local: symbol.local,
                constant: s.is_constant(),
            }),
            _ => {}
        }
    }
    let key = |o: &DataObject<'a>| (o.address, u64::MAX - o.size, o.local, o.names[0]);
    found.sort_by_key(key);
    let mut objects: Vec<DataObject<'a>> = Vec::new();
    for object in found {
        match objects.last_mut() {
            Some(last) if last.address == object.address => last.names.push(object.names[0]),
            // A symbol for a part of an object.
            Some(last) if object.end() <= last.end() => {}
            _ => objects.push(object),
        }
    }
    (objects, markers)
}
