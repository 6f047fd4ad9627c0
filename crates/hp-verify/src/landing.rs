//! Exception tables: each function of the patch has the landing pads of its twin, for the same calls, by the same
//! numbers and for the same types; a thunk has those of the old function for the calls that it repeats.
//!
//! The tables are read as the language runtimes read them (Itanium C++ ABI: Exception Handling, level II; LSB, "DWARF
//! exception header encoding"), and compared by what they lead to. The tables of a build and of the patch are written differently.

use std::collections::BTreeMap;

use gimli::{EndianSlice, LittleEndian, Reader};
use hp_pack::{Place as SymbolPlace, SectionKind};

use crate::code::Use;
use crate::entities::Side;
use crate::ground::{Doubt, Trail, Within};
use crate::image::{Image, Word};
use crate::overlay::{Layout, Place};
use crate::report::{Fault, Kind};
use crate::thunk::Piece;
use crate::unwind::{self, Entries};
use crate::walk::Walk;

type Slice<'d> = EndianSlice<'d, LittleEndian>;

const OMITTED: u8 = 0xff;

/// A table; `A` is how it names places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table<A> {
    sites: Vec<Site<A>>,
    /// Types by number; `None` is any.
    types: BTreeMap<u64, Option<Pointer<A>>>,
    personality: Option<Pointer<A>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Site<A> {
    start: u64,
    end: u64,
    landing: Option<A>,
    /// Numbers of the chain, and for negative ones the list of types that may pass.
    actions: Vec<(i64, Vec<u64>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pointer<A> {
    to: A,
    indirect: bool,
}

/// By the start of the code: the table, or why it cannot be read.
pub(crate) type Tables<K, A> = BTreeMap<K, Result<Table<A>, String>>;

impl Side<'_> {
    /// The exception table of the code that begins at a link-time address, or why it cannot be read.
    pub(crate) fn landings(&self, start: u64) -> Option<Result<Table<u64>, String>> {
        let rows = self.entries.get(start)?;
        let at = rows.exceptions.filter(|a| *a != 0)?;
        Some(read(self.image.bytes_from(at), at, start, &rows))
    }
}

/// The tables of the patch, the same in every layout.
pub(crate) fn of_patch(layouts: &[Layout]) -> Result<Tables<Place, Place>, Fault> {
    let all: Vec<_> = layouts.iter().map(in_layout).collect();
    match all.split_first() {
        Some((first, rest)) if rest.iter().all(|other| other == first) => Ok(first.clone()),
        _ => Err(Fault::new("unwind", ".gcc_except_table", "it leads to other places at other load addresses")),
    }
}

fn in_layout(layout: &Layout) -> Tables<Place, Place> {
    let Some(address) = layout.address(SectionKind::EhFrame) else { return BTreeMap::new() };
    let entries = Entries::read(address, layout.bytes_from(SectionKind::EhFrame, 0));
    let mut found = BTreeMap::new();
    for (start, rows) in entries.all() {
        let Ok(rows) = rows else { continue };
        let Some(at) = rows.exceptions.filter(|a| *a != 0) else { continue };
        let table = match layout.place(at) {
            Place::Payload(SectionKind::ExceptTable, offset) if offset >= 0 => {
                read(layout.bytes_from(SectionKind::ExceptTable, offset as u64), at, start, &rows)
            }
            _ => Err("its exception table is not in the patch".into()),
        };
        found.insert(layout.place(start), table.map(|t| t.map(|a| layout.place(a))));
    }
    found
}

/// Calls of a function by their distance from its start, with those of their landing pads, and what they do there.
pub(crate) type Cleanups = Vec<(u64, u64, Option<u64>, Vec<(i64, Vec<u64>)>)>;

impl Table<u64> {
    /// The whole table in a form that is the same wherever the function lies; `None` if it names types.
    pub(crate) fn of_cleanups(&self, start: u64) -> Option<(Cleanups, bool)> {
        let far = |site: &Site<u64>| {
            (site.start, site.end, site.landing.map(|pad| pad.wrapping_sub(start)), site.actions.clone())
        };
        let nameless = self.types.values().all(Option::is_none);
        nameless.then(|| (self.sites.iter().map(far).collect(), self.personality.is_some()))
    }

    fn map<A>(self, place: impl Fn(u64) -> A) -> Table<A> {
        let pointer = |p: Pointer<u64>| Pointer { to: place(p.to), indirect: p.indirect };
        let site =
            |s: Site<u64>| Site { start: s.start, end: s.end, landing: s.landing.map(&place), actions: s.actions };
        Table {
            sites: self.sites.into_iter().map(site).collect(),
            types: self.types.into_iter().map(|(n, p)| (n, p.map(pointer))).collect(),
            personality: self.personality.map(pointer),
        }
    }
}

fn read(bytes: &[u8], address: u64, start: u64, rows: &unwind::Rows) -> Result<Table<u64>, String> {
    let mut table = parse(bytes, address, start).map_err(|e| format!("its exception table cannot be read ({e})"))?;
    table.personality = rows.personality.map(|p| match p {
        gimli::Pointer::Direct(to) => Pointer { to, indirect: false },
        gimli::Pointer::Indirect(to) => Pointer { to, indirect: true },
    });
    Ok(table)
}

fn parse(bytes: &[u8], address: u64, start: u64) -> gimli::Result<Table<u64>> {
    let whole = Slice::new(bytes, LittleEndian);
    let mut r = whole;
    let base = match r.read_u8()? {
        OMITTED => start,
        encoding => {
            let at = address + r.offset_from(whole) as u64;
            encoded(&mut r, encoding, at)?.map_or(0, |p| p.to)
        }
    };
    let encoding = r.read_u8()?;
    let types_end = match encoding {
        OMITTED => None,
        _ => {
            let distance = r.read_uleb128()? as usize;
            Some(r.offset_from(whole).saturating_add(distance))
        }
    };
    let site_encoding = r.read_u8()?;
    let size = r.read_uleb128()? as usize;
    let mut sites = r.split(size)?;
    let tail = Tail { bytes, address, actions: r, types_end, encoding };
    let mut table = Table { sites: Vec::new(), types: BTreeMap::new(), personality: None };
    while !sites.is_empty() {
        let mut value = || number(&mut sites, site_encoding);
        let (from, length, landing) = (value()?, value()?, value()?);
        let first = sites.read_uleb128()?;
        let actions = if landing == 0 || first == 0 { Vec::new() } else { tail.chain(first, &mut table.types)? };
        let landing = (landing != 0).then(|| base.wrapping_add(landing));
        table.sites.push(Site { start: from, end: from.saturating_add(length), landing, actions });
    }
    Ok(table)
}

struct Tail<'d> {
    bytes: &'d [u8],
    address: u64,
    actions: Slice<'d>,
    types_end: Option<usize>,
    encoding: u8,
}

impl Tail<'_> {
    fn chain(
        &self,
        first: u64,
        types: &mut BTreeMap<u64, Option<Pointer<u64>>>,
    ) -> gimli::Result<Vec<(i64, Vec<u64>)>> {
        let (mut at, mut chain) = (first - 1, Vec::new());
        loop {
            let mut r = self.actions;
            r.skip(at as usize)?;
            let number = r.read_sleb128()?;
            let here = r.offset_from(self.actions) as u64;
            let next = r.read_sleb128()?;
            let list = if number < 0 { self.list(number)? } else { Vec::new() };
            for n in list.iter().copied().chain(u64::try_from(number).ok().filter(|n| *n > 0)) {
                types.insert(n, self.type_at(n)?);
            }
            chain.push((number, list));
            if next == 0 || chain.len() > self.actions.len() {
                return Ok(chain);
            }
            at = here.wrapping_add_signed(next);
        }
    }

    fn beside_types(&self, distance: i64) -> gimli::Result<(Slice<'_>, u64)> {
        let bad = gimli::Error::OffsetOutOfBounds(distance as u64);
        let at = self.types_end.and_then(|end| end.checked_add_signed(distance as isize)).ok_or(bad)?;
        let bytes = self.bytes.get(at..).ok_or(bad)?;
        Ok((Slice::new(bytes, LittleEndian), self.address + at as u64))
    }

    fn list(&self, number: i64) -> gimli::Result<Vec<u64>> {
        let (mut r, _) = self.beside_types((number + 1).wrapping_neg())?;
        let mut list = Vec::new();
        loop {
            match r.read_uleb128()? {
                0 => return Ok(list),
                n => list.push(n),
            }
        }
    }

    fn type_at(&self, n: u64) -> gimli::Result<Option<Pointer<u64>>> {
        let width = match self.encoding & 0x0f {
            0x02 | 0x0a => 2,
            0x03 | 0x0b => 4,
            _ => 8,
        };
        let (mut r, at) = self.beside_types((n as i64).wrapping_mul(-width))?;
        encoded(&mut r, self.encoding, at)
    }
}

fn number(r: &mut Slice<'_>, encoding: u8) -> gimli::Result<u64> {
    match encoding & 0x0f {
        0x00 | 0x04 | 0x0c => r.read_u64(),
        0x01 => r.read_uleb128(),
        0x02 => r.read_u16().map(u64::from),
        0x03 => r.read_u32().map(u64::from),
        0x09 => r.read_sleb128().map(|n| n as u64),
        0x0a => r.read_i16().map(|n| i64::from(n) as u64),
        0x0b => r.read_i32().map(|n| i64::from(n) as u64),
        _ => Err(gimli::Error::UnknownPointerEncoding(gimli::DwEhPe(encoding))),
    }
}

fn encoded(r: &mut Slice<'_>, encoding: u8, at: u64) -> gimli::Result<Option<Pointer<u64>>> {
    let value = number(r, encoding)?;
    let to = match encoding & 0x70 {
        _ if value == 0 => return Ok(None),
        0x00 => value,
        0x10 => at.wrapping_add(value),
        _ => return Err(gimli::Error::UnknownPointerEncoding(gimli::DwEhPe(encoding))),
    };
    Ok(Some(Pointer { to, indirect: encoding & 0x80 != 0 }))
}

/// What is behind a pointer of a build's table.
fn word(image: &Image<'_>, pointer: Pointer<u64>) -> Option<Word> {
    match (pointer.indirect, image.words.get(&pointer.to)) {
        (true, Some(word)) => Some(word.clone()),
        (true, None) => image.u64_at(pointer.to).filter(|_| image.fixed).map(Word::Address),
        (false, _) => Some(Word::Address(pointer.to)),
    }
}

impl Walk<'_, '_, '_> {
    /// The exception table of a piece of payload code and that of the new range that it equals.
    pub(crate) fn walk_landings(&mut self, start: u64, range: usize) {
        let new = &self.ground.new.ranges[range];
        let mine = self.landings.remove(&Place::Payload(SectionKind::Text, start as i64));
        let theirs = self.ground.new.landings(new.address);
        let problem = match (mine, theirs) {
            (None, None) => return,
            (Some(Ok(mine)), Some(Ok(theirs))) => self.same_landings(&mine, &theirs),
            (Some(Err(what)), _) | (_, Some(Err(what))) => Doubt::no(what),
            (Some(_), None) => Doubt::no("has an exception table, the new build's has none"),
            (None, Some(_)) => Doubt::no("has no exception table, the new build's has one"),
        };
        if let Err(doubt) = problem {
            let what = self.ground.describe(&doubt);
            self.faults.push(Fault::new("unwind", new.name(), what));
        }
    }

    fn same_landings(&mut self, mine: &Table<Place>, theirs: &Table<u64>) -> Result<(), Doubt> {
        let shape = |s: &Site<Place>, t: &Site<u64>| {
            (s.start, s.end, &s.actions, s.landing.is_some()) == (t.start, t.end, &t.actions, t.landing.is_some())
        };
        if mine.sites.len() != theirs.sites.len() || !mine.sites.iter().zip(&theirs.sites).all(|(s, t)| shape(s, t)) {
            return Doubt::no("catches or cleans up for other calls than in the new build");
        }
        for (s, t) in mine.sites.iter().zip(&theirs.sites) {
            if let (Some(place), Some(n)) = (s.landing, t.landing) {
                self.same_place(place, n, Use::Branch, Within::data(true))?;
                self.proof.count(Kind::Label);
            }
        }
        self.same_pointer(mine.personality, theirs.personality)?;
        for (n, theirs) in &theirs.types {
            self.same_pointer(mine.types.get(n).copied().flatten(), *theirs)?;
        }
        Ok(())
    }

    fn same_pointer(&mut self, mine: Option<Pointer<Place>>, theirs: Option<Pointer<u64>>) -> Result<(), Doubt> {
        let ground = self.ground;
        let (mine, theirs) = match (mine, theirs) {
            (None, None) => return Ok(()),
            (Some(mine), Some(theirs)) if mine.indirect => (mine.to, theirs),
            _ => return Doubt::no("catches another type than the new build"),
        };
        let image = &ground.new.image;
        let Some(is) = word(image, theirs) else { return Doubt::no("a type that nothing identifies") };
        self.exact = true;
        let kind = match mine {
            Place::Slot(symbol) => match self.patch.symbols[symbol as usize].place {
                SymbolPlace::Import => match image.words.get(&theirs.to) {
                    // What is copied at start-up, or the copy of it in the target.
                    Some(Word::Copy(name)) if !theirs.indirect => {
                        self.same_import(symbol, Some(&Word::Symbol(name.clone(), 0)))?
                    }
                    _ => self.same_import(symbol, Some(&is))?,
                },
                SymbolPlace::Base => self.same_word(Place::Base(self.patch.symbols[symbol as usize].value), &is)?,
                SymbolPlace::Payload(kind) => {
                    self.same_word(Place::Payload(kind, self.patch.symbols[symbol as usize].value as i64), &is)?
                }
            },
            Place::Base(a) => match word(&ground.old.image, Pointer { to: a, indirect: true }) {
                Some(was) => ground.same_word(&was, &is, &Trail::START)?,
                None => return Doubt::no("a type behind a word of the base that holds no address"),
            },
            _ => return Doubt::no("a type that is neither behind a slot nor behind a word of the base"),
        };
        self.exact = false;
        self.proof.count(kind);
        Ok(())
    }

    /// The exception table of a thunk: for the instructions that it repeats, that of the old function.
    pub(crate) fn check_thunk_landings(&mut self, start: u64, pieces: &[Piece]) -> Result<(), String> {
        let mine = self.landings.remove(&Place::Payload(SectionKind::Thunks, start as i64)).transpose()?;
        let function = pieces.first().and_then(|p| self.ground.old.range_at(p.old_address));
        let function = function.map_or(0, |(f, _)| self.ground.old.ranges[f].address);
        let theirs = self.ground.old.landings(function).transpose()?;
        let Some(theirs) = theirs else {
            return if mine.is_none() {
                Ok(())
            } else {
                Err("it has an exception table, the old function has none".into())
            };
        };
        for piece in pieces.iter().filter(|p| self.is_call(p.start)) {
            let old_at = piece.old_address - function;
            let was = theirs.sites.iter().find(|s| s.start <= old_at && old_at < s.end);
            let at = piece.end - 1 - start;
            let is = mine.as_ref().and_then(|m| m.sites.iter().find(|s| s.start <= at && at < s.end));
            let same = match (was, is) {
                (None, None) => true,
                (Some(was), Some(is)) => {
                    is.landing == was.landing.map(Place::Base)
                        && is.actions == was.actions
                        && was.actions.iter().flat_map(|a| a.1.iter().copied().chain(u64::try_from(a.0))).all(|n| {
                            let (p, q) = (mine.as_ref().and_then(|m| m.types.get(&n)), theirs.types.get(&n));
                            let place = |p: &Option<Pointer<u64>>| p.map(|p| (Place::Base(p.to), p.indirect));
                            n == 0 || p.map(|p| p.map(|p| (p.to, p.indirect))) == q.map(place)
                        })
                }
                _ => false,
            };
            if !same {
                return Err(format!("the call at {:#x} of the base has another landing pad in it", piece.old_address));
            }
        }
        Ok(())
    }

    fn is_call(&self, thunk: u64) -> bool {
        let bytes = self.layouts[0].bytes_from(SectionKind::Thunks, thunk);
        let mut decoder = iced_x86::Decoder::with_ip(64, &bytes[..bytes.len().min(16)], thunk, 0);
        let flow = decoder.decode().flow_control();
        matches!(flow, iced_x86::FlowControl::Call | iced_x86::FlowControl::IndirectCall)
    }
}
