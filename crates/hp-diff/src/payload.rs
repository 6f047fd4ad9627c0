//! The closure: from changed functions to the sections, symbols and relocations of a patch.
//!
//! A changed function is copied from the NEW build; each of its references becomes a
//! relocation. What the old build has already is a symbol of the base; the rest (new
//! functions, new literals, new variables, jump tables) is copied too, and what that
//! refers to, until nothing is missing. Anything that cannot be bound is a finding.
//!
//! Calls go to the new version of a changed function; its *address*, where it is taken,
//! stays the old one, so that pointers compare equal before, during and after the patch.

mod ahead;
mod before;
mod border;
mod code;
mod data;
mod imported;
mod islands;
mod landing;
mod literals;
mod live;
mod meaning;
mod slots;
mod unused;

pub(crate) use landing::Table;
pub(crate) use unused::fold;

use std::collections::{BTreeMap, VecDeque};

use hp_pack::{Place, Relocation, RelocationKind, Section, SectionKind, Symbol, SymbolKind};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::adjoin::Twins;
use crate::arch::{Site, Touched, Use};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{CodeRange, FunctionId, Map, ObjectId, Target};
use crate::finding::{Code, Finding};
use crate::image::Word;
use crate::judge::Judge;
use crate::slots::Slots;

/// The payload of a patch under construction.
pub(crate) struct Payload<'p, 'a> {
    old: &'p Build<'a>,
    new: &'p Build<'a>,
    pairs: &'p Correlation,
    changes: &'p Changes,
    twins: &'p Twins,
    /// Takes into account which constants changed.
    judge: Judge<'p, 'a>,
    slots: Slots<'p>,
    /// New functions that differ from their old selves.
    changed: FxHashSet<FunctionId>,
    sections: BTreeMap<SectionKind, Content>,
    pub symbols: Vec<Symbol>,
    pub relocations: Vec<Relocation>,
    /// Payload functions in the order in which they were placed, with the symbols of their ranges.
    pub functions: Vec<(FunctionId, Vec<u32>)>,
    function_symbols: FxHashMap<FunctionId, Vec<u32>>,
    object_symbols: FxHashMap<ObjectId, u32>,
    literal_symbols: FxHashMap<(u64, u32), u32>,
    base_symbols: FxHashMap<(u64, String), u32>,
    import_symbols: FxHashMap<String, u32>,
    /// Content of the old build's literals, to find equal ones.
    old_literals: FxHashMap<&'a [u8], u64>,
    /// See [`Payload::exception_slots`]; made when first needed.
    exception_slots: Option<FxHashMap<Word, u64>>,
    /// Function, symbol and the branch that it serves.
    islands: Vec<(FunctionId, u32, Site)>,
    slot_islands: Vec<imported::Island>,
    todo: VecDeque<FunctionId>,
    /// What one function does with the addresses near which constants begin.
    touched: (Option<FunctionId>, Vec<(Site, Touched)>),
    pub findings: Vec<Finding>,
}

#[derive(Default)]
struct Content {
    align: u64,
    data: Vec<u8>,
    /// For `.bss`, which has no bytes.
    size: u64,
}

/// Where a reference of the patch leads: a symbol and an offset from it.
type Bound = (u32, i64);

impl<'p, 'a> Payload<'p, 'a> {
    pub(crate) fn new(
        old: &'p Build<'a>,
        new: &'p Build<'a>,
        pairs: &'p Correlation,
        changes: &'p Changes,
        twins: &'p Twins,
    ) -> Payload<'p, 'a> {
        let mut old_literals = FxHashMap::default();
        for &address in old.map.references.as_slice().iter().rev() {
            let literal = old.map.resolve_address(&old.image, address, Use::Address) == Target::Literal;
            let plain = |size: u64| {
                old.image.words.range(address..=address + size).next().is_none()
                    && old.map.distances.range(address..=address + size).next().is_none()
            };
            if literal && plain(8) {
                old_literals.insert(old.map.literal(&old.image, address), address);
            }
        }
        Payload {
            old,
            new,
            pairs,
            changes,
            twins,
            judge: Judge::new(old, new, pairs).with_changed_constants(changes.constants.clone()),
            slots: Slots::new(old),
            changed: changes.functions.iter().map(|c| c.1).collect(),
            sections: BTreeMap::new(),
            symbols: Vec::new(),
            relocations: Vec::new(),
            functions: Vec::new(),
            function_symbols: FxHashMap::default(),
            object_symbols: FxHashMap::default(),
            literal_symbols: FxHashMap::default(),
            base_symbols: FxHashMap::default(),
            import_symbols: FxHashMap::default(),
            old_literals,
            exception_slots: None,
            islands: Vec::new(),
            slot_islands: Vec::new(),
            todo: VecDeque::new(),
            touched: (None, Vec::new()),
            findings: Vec::new(),
        }
    }

    /// Copies every changed function and whatever they need.
    pub(crate) fn close(&mut self) {
        let mut seeds: Vec<FunctionId> = self.changed.iter().copied().collect();
        seeds.sort_unstable();
        for function in seeds {
            self.payload_function(function);
        }
        while let Some(function) = self.todo.pop_front() {
            self.relocate_function(function);
        }
    }

    /// Data objects that the payload has, in order, with their symbols.
    pub(crate) fn objects(&self) -> Vec<(ObjectId, u32)> {
        let mut objects: Vec<(ObjectId, u32)> = self.object_symbols.iter().map(|(&p, &symbol)| (p, symbol)).collect();
        objects.sort_unstable();
        objects
    }

    /// The symbols of copied constants.
    pub(crate) fn literals(&self) -> FxHashSet<u32> {
        self.literal_symbols.values().copied().collect()
    }

    /// The symbol of a payload function's entry.
    pub(crate) fn entry_symbol(&self, function: FunctionId) -> Option<u32> {
        self.function_symbols.get(&function).map(|s| s[0])
    }

    /// Ends the payload: its sections, in order.
    pub(crate) fn sections(&mut self) -> Vec<Section> {
        std::mem::take(&mut self.sections)
            .into_iter()
            .map(|(kind, c)| {
                let size = if kind == SectionKind::Bss { c.size } else { c.data.len() as u64 };
                Section { kind, align: c.align.max(1), size, data: c.data }
            })
            .collect()
    }

    /// Appends bytes to a section and gives their offset.
    pub(crate) fn place(&mut self, kind: SectionKind, align: u64, bytes: &[u8]) -> u64 {
        let content = self.sections.entry(kind).or_default();
        content.align = content.align.max(align);
        let filler = if matches!(kind, SectionKind::Text | SectionKind::Thunks) { 0xcc } else { 0 };
        while !(content.data.len() as u64).is_multiple_of(align) {
            content.data.push(filler);
        }
        let at = content.data.len() as u64;
        content.data.extend_from_slice(bytes);
        at
    }

    fn reserve(&mut self, align: u64, size: u64) -> u64 {
        let content = self.sections.entry(SectionKind::Bss).or_default();
        content.align = content.align.max(align);
        let at = content.size.next_multiple_of(align);
        content.size = at + size;
        at
    }

    pub(crate) fn symbol(&mut self, symbol: Symbol) -> u32 {
        self.symbols.push(symbol);
        self.symbols.len() as u32 - 1
    }

    fn payload_symbol(&mut self, name: &str, kind: SymbolKind, place: SectionKind, value: u64, size: u64) -> u32 {
        self.symbol(Symbol { name: name.into(), kind, place: Place::Payload(place), value, size, weak: false })
    }

    /// A symbol of the base image.
    pub(crate) fn base_symbol(&mut self, name: &str, kind: SymbolKind, address: u64, size: u64) -> u32 {
        if let Some(known) = self.base_symbols.get(&(address, name.to_owned())) {
            return *known;
        }
        let symbol =
            self.symbol(Symbol { name: name.into(), kind, place: Place::Base, value: address, size, weak: false });
        self.base_symbols.insert((address, name.into()), symbol);
        symbol
    }

    fn import_symbol(&mut self, name: &str, kind: SymbolKind) -> u32 {
        if let Some(known) = self.import_symbols.get(name) {
            return *known;
        }
        let weak = self.new.image.weak.contains(name);
        let symbol = self.symbol(Symbol { name: name.into(), kind, place: Place::Import, value: 0, size: 0, weak });
        self.import_symbols.insert(name.into(), symbol);
        symbol
    }

    fn finding(&mut self, code: Code, subject: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::new(code, subject, message));
    }

    pub(crate) fn pc_relative(&mut self, section: SectionKind, offset: u64, symbol: u32, addend: i64) {
        self.relocations.push(Relocation { section, offset, kind: RelocationKind::Pc32, symbol, addend });
    }
}

/// A bound reference of code.
struct Bind {
    symbol: u32,
    offset: i64,
    /// The code reads a pointer that the applier must provide.
    through_slot: bool,
}

impl Bind {
    fn direct((symbol, offset): Bound) -> Bind {
        Bind { symbol, offset, through_slot: false }
    }
}

/// Why a reference could not be bound.
#[derive(Debug)]
pub(crate) struct Problem(pub(crate) Code, pub(crate) String);

/// Size of `jmp rel32`.
const ISLAND: u64 = 5;

/// A branch inside its own range keeps its distance when the range is copied.
fn stays_inside(map: &Map<'_>, site: &Site, range: &CodeRange<'_>) -> bool {
    site.usage == Use::Branch && map.stays_inside(range, site.target)
}
