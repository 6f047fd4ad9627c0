//! The closure: from changed functions to the sections, symbols and relocations of a patch.
//!
//! A changed function is copied from the NEW build; each of its references becomes a
//! relocation. What the old build has already is a symbol of the base; the rest (new
//! functions, new literals, new variables, jump tables) is copied too, and what that
//! refers to, until nothing is missing. Anything that cannot be bound is a finding.
//!
//! Calls go to the new version of a changed function; its *address*, where it is taken,
//! stays the old one, so that pointers compare equal before, during and after the patch.

mod landing;
mod live;

pub(crate) use landing::Table;

use std::collections::{BTreeMap, VecDeque};

use hp_pack::{Place, Relocation, RelocationKind, Section, SectionKind, Symbol, SymbolKind};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::adjoin::Twins;
use crate::arch::{self, Encoding, JumpTable, Site, Sites, Use};
use crate::build::Build;
use crate::compare::{Changes, Judge, Verdict, describe, is_indexed, is_number, uses};
use crate::correlate::{Correlation, numbered_stem};
use crate::entity::{CodeRange, FunctionId, ObjectId, Target};
use crate::finding::{Code, Finding};
use crate::image::Word;
use crate::slots::Slots;

/// The payload of a patch under construction.
pub(crate) struct Payload<'p, 'a> {
    old: &'p Build<'a>,
    new: &'p Build<'a>,
    pairs: &'p Correlation,
    changes: &'p Changes,
    twins: &'p Twins,
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
    todo: VecDeque<FunctionId>,
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
        for &address in old.map.references.iter().rev() {
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
            todo: VecDeque::new(),
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

    /// Places a function in the payload, once, and gives the symbols of its ranges.
    fn payload_function(&mut self, id: FunctionId) -> Vec<u32> {
        if let Some(known) = self.function_symbols.get(&id) {
            return known.clone();
        }
        let new = self.new;
        let function = &new.map.functions[id];
        let mut symbols = Vec::new();
        for (i, range) in function.ranges.iter().enumerate() {
            let align: u64 = 1 << range.address.trailing_zeros().clamp(4, 6);
            let mut bytes = range.bytes.to_vec();
            for site in &new.code[id].ranges[i].sites {
                if !stays_inside(&site, range.address, range.end()) {
                    let field = site.offset as usize..(site.offset + u32::from(site.width)) as usize;
                    if site.encoding == Encoding::PcRelative {
                        bytes[field].fill(0);
                    }
                }
            }
            let size = bytes.len() as u64;
            let islands = islands(&new.code[id].ranges[i].sites, range);
            let before = islands.iter().filter(|s| s.target < range.address).count() as u64;
            let behind = islands.len() as u64 - before;
            let lead = (before * ISLAND).next_multiple_of(align);
            let mut block = vec![0xcc; lead as usize];
            block.extend(bytes);
            block.resize(block.len() + (behind * ISLAND) as usize, 0);
            let at = self.place(SectionKind::Text, align, &block) + lead;
            symbols.push(self.payload_symbol(range.name, SymbolKind::Function, SectionKind::Text, at, size));
            self.place_islands(id, &islands, at, at + size);
        }
        self.function_symbols.insert(id, symbols.clone());
        self.functions.push((id, symbols.clone()));
        self.todo.push_back(id);
        symbols
    }

    /// Writes the islands of a range that lies at `start..end` of `.text`: a short branch
    /// to a neighbour cannot reach it from the payload, but it reaches an island beside
    /// its own range, which jumps on.
    fn place_islands(&mut self, id: FunctionId, islands: &[Site], start: u64, end: u64) {
        let (mut before, mut behind) = (start, end);
        for site in islands {
            let forward = site.target >= self.new.map.functions[id].address();
            let at = if forward { behind } else { before - ISLAND };
            if forward {
                behind += ISLAND
            } else {
                before -= ISLAND
            }
            let field = start + u64::from(site.offset);
            let distance = at as i64 - (start + u64::from(site.end)) as i64;
            let name = format!("{}.island{}", self.new.map.functions[id].name(), self.islands.len());
            let symbol = self.payload_symbol(&name, SymbolKind::Function, SectionKind::Text, at, ISLAND);
            let Ok(displacement) = i8::try_from(distance) else {
                let name = self.new.map.functions[id].qualified_name();
                self.finding(Code::IntoFunction, name, "too many short branches leave the function");
                return;
            };
            if let Some(text) = self.sections.get_mut(&SectionKind::Text) {
                text.data[field as usize] = displacement as u8;
                text.data[at as usize] = 0xe9;
            }
            self.islands.push((id, symbol, *site));
        }
    }

    /// Relocates the islands of a function.
    fn relocate_islands(&mut self, id: FunctionId) {
        let mine: Vec<(u32, Site)> =
            self.islands.iter().filter(|i| i.0 == id).map(|(_, symbol, site)| (*symbol, *site)).collect();
        for (symbol, site) in mine {
            let is_entry =
                matches!(self.new.map.resolve(&self.new.image, &site), Target::Function(_, 0, 0) | Target::Stub(_));
            let problem = match self.bind(id, &site) {
                Ok(bound) if is_entry => {
                    let offset = self.symbols[symbol as usize].value + 1;
                    let addend = bound.offset - 4;
                    self.relocations.push(Relocation {
                        section: SectionKind::Text,
                        offset,
                        kind: RelocationKind::Plt32,
                        symbol: bound.symbol,
                        addend,
                    });
                    continue;
                }
                Ok(_) => Problem(Code::IntoFunction, "a short branch into the middle of another function".into()),
                Err(problem) => problem,
            };
            self.finding(problem.0, self.new.map.functions[id].qualified_name(), problem.1);
        }
    }

    fn relocate_function(&mut self, id: FunctionId) {
        self.relocate_islands(id);
        let new = self.new;
        let function = &new.map.functions[id];
        let name = function.qualified_name();
        if function.overlaps {
            self.finding(Code::BoundaryUnclear, &name, "its symbol's range overlaps another one's");
        }
        let code = &new.code[id];
        if let Some(jump) = code.unresolved_jump {
            self.finding(
                Code::UnresolvedJump,
                &name,
                format!("the jump at {jump:#x} of the new build reads a table that was not found"),
            );
        }
        let symbols = self.function_symbols[&id].clone();
        for (i, range) in function.ranges.iter().enumerate() {
            if let Some(offset) = code.ranges[i].invalid {
                self.finding(
                    Code::Undecodable,
                    &name,
                    format!("no instruction at {:#x} of the new build", range.address + u64::from(offset)),
                );
            }
            for site in &code.ranges[i].sites {
                if !stays_inside(&site, range.address, range.end()) && site.width > 1 {
                    self.relocate_site(id, i, symbols[i], &site);
                }
            }
        }
    }

    fn relocate_site(&mut self, id: FunctionId, range: usize, symbol: u32, site: &Site) {
        let new = self.new;
        let name = new.map.functions[id].qualified_name();
        let at = new.map.functions[id].ranges[range].address + u64::from(site.instruction);
        if site.encoding != Encoding::PcRelative && !self.is_address(id, site, at) {
            return;
        }
        let bound = match self.bind(id, site) {
            Ok(bound) => bound,
            Err(Problem(code, why)) => {
                let what = describe(new, id, site);
                self.finding(
                    code,
                    &name,
                    format!("the instruction at {at:#x} of the new build refers to {what}: {why}"),
                );
                return;
            }
        };
        let Bind { symbol: target, offset, through_slot } = bound;
        if site.encoding != Encoding::PcRelative && self.symbols[target as usize].place == Place::Import {
            let message = format!(
                "the instruction at {at:#x} of the new build holds the address of an import that the old build did not use"
            );
            self.finding(Code::NewSlot, &name, message);
            return;
        }
        let tail = i64::from(site.end) - i64::from(site.offset);
        let (kind, addend) = match site.encoding {
            Encoding::PcRelative if through_slot => (RelocationKind::GotPcRel, offset - tail),
            Encoding::PcRelative if site.usage == Use::Branch => (RelocationKind::Plt32, offset - tail),
            Encoding::PcRelative => (RelocationKind::Pc32, offset - tail),
            Encoding::Absolute32 => (RelocationKind::Abs32, offset),
            Encoding::Absolute32Signed => (RelocationKind::Abs32Signed, offset),
            Encoding::Absolute64 => (RelocationKind::Abs64, offset),
        };
        let field = self.symbols[symbol as usize].value + u64::from(site.offset);
        self.relocations.push(Relocation { section: SectionKind::Text, offset: field, kind, symbol: target, addend });
    }

    /// Decides whether a number in position-dependent code is an address.
    fn is_address(&mut self, id: FunctionId, site: &Site, at: u64) -> bool {
        let new = self.new;
        let name = new.map.functions[id].qualified_name();
        if is_number(new, id, site) {
            return false;
        }
        let is_start = match new.map.resolve(&new.image, site) {
            Target::Function(_, _, offset) => offset == 0,
            // The address point of a virtual table lies inside of it.
            Target::Object(p, offset) => offset <= 0 || new.map.objects[p].is_runtime_record() && offset % 8 == 0,
            Target::Literal => {
                new.table(id, site.target).is_some()
                    || new.image.bytes(site.target.wrapping_sub(1), 1).is_none_or(|b| b == [0])
            }
            _ => true,
        };
        let displacement = site.usage != Use::Address || site.offset + u32::from(site.width) < site.end;
        if displacement || new.table(id, site.target).is_some() {
            return true;
        }
        if is_start {
            let what = describe(new, id, site);
            self.finding(
                Code::ImmediateAddress,
                &name,
                format!("{:#x} at {at:#x} of the new build is taken for the address of {what}", site.target),
            );
        } else {
            self.finding(Code::ImmediateUnclear, &name, format!("{:#x} at {at:#x} of the new build", site.target));
        }
        is_start
    }

    fn bind(&mut self, id: FunctionId, site: &Site) -> Result<Bind, Problem> {
        let new = self.new;
        if let Some(table) = new.table(id, site.target) {
            return Ok(Bind::direct((self.jump_table(id, table), 0)));
        }
        let target = new.map.resolve(&new.image, site);
        if site.usage == Use::Address
            && !self.starts_something(id, site, &target)
            && is_indexed(new, id, site)
            && let Some(bound) = self.in_reach(id, site, &target)?
        {
            return Ok(Bind::direct(bound));
        }
        match target {
            Target::Function(g, range, offset) if g == id && (range, offset) != (0, 0) => {
                Ok(Bind::direct((self.function_symbols[&id][range], offset as i64)))
            }
            Target::Stub(word) | Target::Slot(word) => self.bind_slot(word, site),
            _ => self.bind_address(Some(id), site.target, site.usage).map(Bind::direct),
        }
    }

    /// True if the start of something is meant, and not what an index added to it reaches. A compiler makes
    /// `(&a[9])[i]` of `a[i]` where `i` runs up to 0 from a number that the function then has, and so
    /// `(&a[-9])[i]`; in position-dependent code the displacement may be anything.
    fn starts_something(&self, id: FunctionId, site: &Site, target: &Target<'_>) -> bool {
        let map = &self.new.map;
        if !map.is_start(target) || !matches!(target, Target::Object(..)) {
            return map.is_start(target);
        }
        if site.encoding != Encoding::PcRelative {
            return false;
        }
        let others = map.within_reach(site.target).into_iter().filter(|m| m.1 != 0);
        let others: Vec<_> = others.map(|(p, _)| &map.objects[p]).collect();
        if others.is_empty() {
            return true;
        }
        let numbers = map.functions[id].ranges.iter().flat_map(|r| arch::numbers(r.bytes));
        let mut places: Vec<u64> =
            numbers.flat_map(|n| [1, 2, 4, 8].map(|scale| site.target.wrapping_add_signed(n * scale))).collect();
        places.sort_unstable();
        let explained = |start: u64, end: u64| {
            places.get(places.partition_point(|place| *place < start)).is_some_and(|place| *place < end)
        };
        !others.iter().any(|o| explained(o.address, o.end()))
    }

    /// Binds an address that code calculates with and that is the start of nothing: of all that it may reach, the
    /// old build must have it at one and the same place, or the old version of the function decides. `None`
    /// if it is a literal and nothing else.
    fn in_reach(&mut self, id: FunctionId, site: &Site, target: &Target<'_>) -> Result<Option<Bound>, Problem> {
        let (old, new) = (self.old, self.new);
        let mut meanings = new.map.within_reach(site.target);
        if *target == Target::Literal {
            let near = new.map.candidates(site.target);
            meanings.retain(|m| near.contains(m));
        }
        let Some(&first) = meanings.first() else { return Ok(None) };
        let old_address = |&(p, offset): &(ObjectId, i64)| {
            let kept = self.pairs.objects.old_of(p).filter(|o| !self.changes.constants.contains(o));
            kept.map(|o| old.map.objects[o].address.wrapping_add_signed(offset))
        };
        let places: Vec<Option<u64>> = meanings.iter().map(old_address).collect();
        let own = self.pairs.functions.old_of(id);
        let known_place = |place: u64| {
            own.is_some_and(|f| {
                let mut sites = old.code[f].ranges.iter().flat_map(|c| &c.sites);
                sites.any(|s| s.usage == Use::Address && s.target == place)
            })
        };
        let mut known: Vec<u64> = places.iter().flatten().copied().filter(|a| known_place(*a)).collect();
        known.dedup();
        let place = match (places[0], known.as_slice()) {
            (Some(place), _) if places.iter().all(|p| *p == Some(place)) => place,
            (_, &[place]) => place,
            _ => {
                let name = new.map.objects[first.0].name();
                let message =
                    format!("code adds an index to it; it may mean {name}{:+#x} or something behind", first.1);
                return Err(Problem(Code::AmbiguousReference, message));
            }
        };
        // The old function may have meant a constant that changed: the base has its old content there.
        let outdated = |&&(p, offset): &&(ObjectId, i64)| {
            let changed = self.pairs.objects.old_of(p).filter(|o| self.changes.constants.contains(o));
            changed.is_some_and(|o| old.map.objects[o].address.wrapping_add_signed(offset) == place)
        };
        if meanings.iter().any(|m| outdated(&m)) {
            return Ok(None);
        }
        // What lies before an object may be a literal of its own: then the old build must have it there too.
        if *target == Target::Literal {
            let size = first.1.unsigned_abs();
            if first.1 >= 0 || old.image.bytes(place, size) != new.image.bytes(site.target, size) {
                return Ok(None);
            }
        }
        let chosen = meanings[places.iter().position(|p| *p == Some(place)).unwrap_or(0)];
        self.object(chosen.0).map(|symbol| Some((symbol, chosen.1)))
    }

    /// Binds an address by what it leads to. `within` is the function that uses it.
    fn bind_address(&mut self, within: Option<FunctionId>, address: u64, usage: Use) -> Result<Bound, Problem> {
        let (old, new) = (self.old, self.new);
        match new.map.resolve_address(&new.image, address, usage) {
            Target::Function(g, 0, 0) => Ok((self.function(g, usage), 0)),
            // A label in a table of a computed `goto`.
            Target::Function(g, range, offset) if within.is_none() && self.function_symbols.contains_key(&g) => {
                Ok((self.function_symbols[&g][range], offset as i64))
            }
            Target::Function(..) => Err(Problem(Code::IntoFunction, "a label inside another function".into())),
            Target::Object(p, offset) => {
                let (p, offset) =
                    if usage == Use::Address { self.meaning(within, (p, offset), address)? } else { (p, offset) };
                self.object(p).map(|symbol| (symbol, offset))
            }
            Target::Literal => match self.end_of_object(within, address, usage)? {
                Some(bound) => Ok(bound),
                None => self.literal(within, address, usage),
            },
            Target::Marker(name) => match old.map.marker_address(name) {
                Some(address) => Ok((self.base_symbol(name, SymbolKind::Other, address, 0), 0)),
                None => Err(Problem(Code::UnknownReference, "the old build has no such symbol".into())),
            },
            Target::Header(offset) if new.image.start != 0 => {
                Ok((self.base_symbol("__ehdr_start", SymbolKind::Other, old.image.start, 0), offset as i64))
            }
            Target::Header(_) => Err(Problem(Code::UnknownReference, "an address below the image's content".into())),
            Target::Stub(word) => self.bind_slot_address(word, true),
            Target::Slot(word) => self.bind_slot_address(word, false),
            Target::Unknown => Err(Problem(Code::UnknownReference, "no symbol covers it".into())),
        }
    }

    /// A literal that begins where an object ends which the function uses: only if the old build has it there
    /// too, one address is right for both.
    fn end_of_object(
        &mut self,
        within: Option<FunctionId>,
        address: u64,
        usage: Use,
    ) -> Result<Option<Bound>, Problem> {
        let (old, new) = (self.old, self.new);
        let ending = new.map.ending_at(address).filter(|_| usage == Use::Address);
        let used = |p: &ObjectId| within.is_some_and(|id| uses(new, id, *p));
        let Some(p) = ending.filter(used) else { return Ok(None) };
        let unclear = || {
            let name = new.map.objects[p].name();
            Problem(Code::AmbiguousReference, format!("it may mean the end of {name} or the constant behind it"))
        };
        let o = self.pairs.objects.old_of(p).filter(|o| !self.changes.constants.contains(o)).ok_or_else(unclear)?;
        let place = old.map.objects[o].end();
        let judge = Judge::new(old, new, self.pairs);
        if judge.literals(place, address, Use::Address) != Verdict::Same {
            return Err(unclear());
        }
        self.object(p).map(|symbol| Some((symbol, new.map.objects[p].size as i64)))
    }

    /// The same for an address that cannot mean the end of an object, nor a place before one.
    fn bind_exactly(&mut self, address: u64) -> Result<Bound, Problem> {
        match self.new.map.object_at(address) {
            Some(p) => {
                let offset = address - self.new.map.objects[p].address;
                Ok((self.object(p)?, offset as i64))
            }
            None => self.bind_address(None, address, Use::Address),
        }
    }

    fn function(&mut self, g: FunctionId, usage: Use) -> u32 {
        let new_function = &self.new.map.functions[g];
        match self.pairs.functions.old_of(g) {
            Some(f) if usage != Use::Branch || !self.changed.contains(&g) => {
                let function = &self.old.map.functions[f];
                let (address, size) = (function.address(), function.ranges[0].bytes.len() as u64);
                self.base_symbol(new_function.names[0], SymbolKind::Function, address, size)
            }
            _ => self.payload_function(g)[0],
        }
    }

    /// `&a[64]` and `&b[0]` may be one number in the new build, and so may `&a[15]` and
    /// `&b[-1]`. If the old build has them apart, the address is bound to the one that the
    /// old version of the function can mean too; a function that has none must not refer
    /// to the other object at all.
    fn meaning(
        &self,
        within: Option<FunctionId>,
        chosen: (ObjectId, i64),
        address: u64,
    ) -> Result<(ObjectId, i64), Problem> {
        let (old, new) = (self.old, self.new);
        let old_address = |(p, offset): (ObjectId, i64)| {
            self.pairs.objects.old_of(p).map(|o| old.map.objects[o].address.wrapping_add_signed(offset))
        };
        let here = old_address(chosen);
        for name in new.map.markers_at(address) {
            let there = old.map.marker_address(name);
            if there.is_some() && there != here {
                return Err(Problem(
                    Code::AmbiguousReference,
                    format!("it may also mean the linker's symbol {name}, which the old build has elsewhere"),
                ));
            }
        }
        let meanings = new.map.candidates(address);
        let Some(other) = meanings.iter().find(|m| m.0 != chosen.0 && (here.is_none() || old_address(**m) != here))
        else {
            return Ok(chosen);
        };
        let old_self = within.and_then(|id| self.pairs.functions.old_of(id));
        let meant_before: Vec<(ObjectId, i64)> = old_self.map_or_else(Vec::new, |f| {
            let sites = old.code[f].ranges.iter().flat_map(|c| &c.sites).filter(|s| s.usage == Use::Address);
            sites.flat_map(|s| old.map.candidates(s.target)).collect()
        });
        let mut common = meanings
            .iter()
            .filter(|m| self.pairs.objects.old_of(m.0).is_some_and(|o| meant_before.contains(&(o, m.1))));
        if let (Some(only), None) = (common.next(), common.next()) {
            return Ok(*only);
        }
        let object = &new.map.objects[other.0];
        let uses_other = within.is_none_or(|id| {
            let mut sites = new.code[id].ranges.iter().flat_map(|c| &c.sites);
            sites.any(|s| (object.address..object.end()).contains(&s.target))
        });
        // The start of one object, where another one ends that the function does not use.
        if chosen.1 == 0 && other.1 > 0 && !uses_other {
            return Ok(chosen);
        }
        Err(Problem(
            Code::AmbiguousReference,
            format!("it may also mean {}{:+#x}, which the old build has elsewhere", object.name(), other.1),
        ))
    }

    fn object(&mut self, p: ObjectId) -> Result<u32, Problem> {
        let (old, new) = (self.old, self.new);
        let object = &new.map.objects[p];
        if let Some(o) = self.pairs.objects.old_of(p).filter(|o| !self.changes.constants.contains(o)) {
            let (address, size) = (old.map.objects[o].address, old.map.objects[o].size);
            return Ok(self.base_symbol(object.names[0], SymbolKind::Object, address, size));
        }
        if let Some(known) = self.object_symbols.get(&p) {
            return Ok(*known);
        }
        if let Some(Word::Copy(name)) = new.image.words.get(&object.address) {
            return Err(Problem(Code::CopiedVariable, format!("{name} is copied from a library at start-up")));
        }
        if self.pairs.objects.old_of(p).is_none() {
            if let Some(equal) = self.equal_old_constant(p) {
                let (address, size) = (old.map.objects[equal].address, old.map.objects[equal].size);
                return Ok(self.base_symbol(object.names[0], SymbolKind::Object, address, size));
            }
            self.check_is_new(p)?;
            self.note_namesake(p);
        } else if object.constant {
            self.note_replaced(p);
        }
        let align = 1u64 << object.address.trailing_zeros().min(6);
        let name = object.names[0];
        let Some(bytes) = new.image.bytes(object.address, object.size) else {
            let at = self.reserve(align, object.size);
            let symbol = self.payload_symbol(name, SymbolKind::Object, SectionKind::Bss, at, object.size);
            self.object_symbols.insert(p, symbol);
            return Ok(symbol);
        };
        if object.constant {
            self.check_copyable(None, object.address, bytes)?;
        }
        let fields = self.fields(object.address, bytes);
        let kind = match (object.constant, fields.is_empty()) {
            (true, true) => SectionKind::Rodata,
            (true, false) => SectionKind::DataRelRo,
            (false, _) => SectionKind::Data,
        };
        let at = self.place(kind, align, bytes);
        let symbol = self.payload_symbol(name, SymbolKind::Object, kind, at, object.size);
        self.object_symbols.insert(p, symbol);
        self.relocate_fields(kind, at, fields, object.is_runtime_record())?;
        self.relocate_distances(kind, at, object.address..object.end())?;
        Ok(symbol)
    }

    /// An old constant of the same stem, file and content: what the compiler numbers
    /// (`__func__.3`, `CSWTCH.7`) has no identity of its own.
    fn equal_old_constant(&self, p: ObjectId) -> Option<ObjectId> {
        let new_object = &self.new.map.objects[p];
        let stem = numbered_stem(new_object.name()).filter(|_| new_object.constant && new_object.local)?;
        let judge = Judge::new(self.old, self.new, self.pairs).with_changed_constants(self.changes.constants.clone());
        (0..self.old.map.objects.len()).find(|o| {
            let object = &self.old.map.objects[*o];
            object.constant
                && object.file == new_object.file
                && object.size == new_object.size
                && numbered_stem(object.name()) == Some(stem)
                && judge.object_contents((*o, p)) == Verdict::Same
        })
    }

    /// Fields of a piece of data that hold addresses: offset in it and the word.
    fn fields(&mut self, address: u64, bytes: &[u8]) -> Vec<(u64, Word)> {
        let new = self.new;
        let words = new.image.words.range(address..address + bytes.len() as u64);
        let mut fields: Vec<(u64, Word)> = words.map(|(a, w)| (a - address, w.clone())).collect();
        if new.image.fixed_address {
            let first = address.next_multiple_of(8);
            for at in (first..(address + bytes.len() as u64).saturating_sub(7)).step_by(8) {
                let value = new.image.u64_at(at).unwrap_or_default();
                let known = new.map.resolve_address(&new.image, value, Use::Address) != Target::Unknown;
                if known && fields.iter().all(|f| f.0 != at - address) {
                    self.finding(
                        Code::ImmediateAddress,
                        format!("{at:#x}"),
                        format!("the word {value:#x} in data is taken for an address"),
                    );
                    fields.push((at - address, Word::Address(value)));
                }
            }
        }
        fields
    }

    /// Relocates fields of data. `exact`: none of them leads to the end of something, or before it.
    fn relocate_fields(
        &mut self,
        section: SectionKind,
        at: u64,
        fields: Vec<(u64, Word)>,
        exact: bool,
    ) -> Result<(), Problem> {
        for (offset, word) in fields {
            let (symbol, addend) = match word {
                Word::Address(a) if exact => self.bind_exactly(a)?,
                Word::Address(a) => self.bind_address(None, a, Use::Address)?,
                Word::Symbol(name, addend) => (self.named(&name), addend),
                _ => {
                    return Err(Problem(
                        Code::NewSlot,
                        "new data holds a word of a kind that is made at start-up".into(),
                    ));
                }
            };
            let at = at + offset;
            self.relocations.push(Relocation { section, offset: at, kind: RelocationKind::Abs64, symbol, addend });
        }
        Ok(())
    }

    /// The copy of a table of distances counts from its own place.
    fn relocate_distances(&mut self, section: SectionKind, at: u64, span: std::ops::Range<u64>) -> Result<(), Problem> {
        let new = self.new;
        for (field, distance) in new.map.distances.range(span.clone()) {
            let (symbol, offset) = self.bind_address(None, distance.target, Use::Address)?;
            let addend = offset + (field - distance.table) as i64;
            self.pc_relative(section, at + field - span.start, symbol, addend);
        }
        Ok(())
    }

    /// A symbol by the name that a dynamic relocation gives: of this image, or an import.
    fn named(&mut self, name: &str) -> u32 {
        let new = self.new;
        if let Some(g) = self.slots.global_function(new, name) {
            return self.function(g, Use::Address);
        }
        if let Some(p) = self.slots.global_object(new, name)
            && let Ok(symbol) = self.object(p)
        {
            return symbol;
        }
        self.import_symbol(name, SymbolKind::Other)
    }

    /// Binds a literal: to an equal one of the old build, else to a copy.
    fn literal(&mut self, within: Option<FunctionId>, address: u64, usage: Use) -> Result<Bound, Problem> {
        let width = match usage {
            Use::Access(n) => n,
            _ => 0,
        };
        if let Some(known) = self.literal_symbols.get(&(address, width)) {
            return Ok((*known, 0));
        }
        let Use::Access(n) = usage else { return self.addressed_literal(within, address) };
        let Some(bytes) = self.new.image.bytes(address, u64::from(n)) else {
            return Err(Problem(Code::UnknownReference, "it reaches beyond the constants".into()));
        };
        let align = u64::from(n).next_power_of_two().min(64);
        self.copy_literal(&[(address, address + u64::from(n))], bytes, align, width)
    }

    /// Binds a literal whose address is taken.
    fn addressed_literal(&mut self, within: Option<FunctionId>, address: u64) -> Result<Bound, Problem> {
        let new = self.new;
        let judge = Judge::new(self.old, new, self.pairs);
        let span = new.map.literal_span(&new.image, address);
        let content = new.map.literal(&new.image, address);
        let plain = new.image.words.range(span.0..span.1).next().is_none()
            && new.map.distances.range(span.0..span.1).next().is_none();
        let same = self.old_literals.get(content).filter(|same| {
            plain && !self.twins.in_doubt(&judge, self.old.map.literal_span(&self.old.image, **same), span)
        });
        // Zeros behind the text may belong to it: then only a copy is certain to have them.
        if content.len() as u64 == span.1 - span.0
            && let Some(same) = same
        {
            if !is_string(content) {
                self.check_copyable(within, address, content)?;
            }
            let symbol = self.base_symbol(&format!(".L{same:x}"), SymbolKind::Object, *same, content.len() as u64);
            return Ok((symbol, 0));
        }
        let parts = if same.is_some() { vec![span] } else { self.twins.parts(&judge, span) };
        for part in &parts {
            let bytes = new.image.bytes(part.0, part.1 - part.0).unwrap_or_default();
            if !is_string(new.map.literal(&new.image, part.0)) {
                self.check_copyable(within, part.0, bytes)?;
            }
        }
        let end = parts.last().map_or(span.1, |p| p.1);
        let Some(bytes) = new.image.bytes(address, (end - address).max(1)) else {
            return Err(Problem(Code::UnknownReference, "it reaches beyond the constants".into()));
        };
        let align = parts.iter().map(|p| 1 << p.0.trailing_zeros().min(5)).max().unwrap_or(1);
        self.copy_literal(&parts, bytes, align, 0)
    }

    /// Copies literals of the new build that lie side by side. Each keeps its alignment.
    fn copy_literal(&mut self, parts: &[(u64, u64)], bytes: &[u8], align: u64, width: u32) -> Result<Bound, Problem> {
        let address = parts[0].0;
        let fields = self.fields(address, bytes);
        let kind = if fields.is_empty() { SectionKind::Rodata } else { SectionKind::DataRelRo };
        let lead = if width == 0 { address % align } else { 0 };
        let at = self.place(kind, align, &[&vec![0; lead as usize], bytes].concat()) + lead;
        for (start, end) in parts.iter().rev() {
            if !self.literal_symbols.contains_key(&(*start, width)) {
                let name = format!(".LC{}", self.literal_symbols.len());
                let symbol = self.payload_symbol(&name, SymbolKind::Object, kind, at + start - address, end - start);
                self.literal_symbols.insert((*start, width), symbol);
            }
        }
        let symbol = self.literal_symbols[&(address, width)];
        self.relocate_fields(kind, at, fields, false)?;
        self.relocate_distances(kind, at, address..address + bytes.len() as u64)?;
        Ok((symbol, 0))
    }

    /// Data that is not text may be a table whose entries count from where it lies: a jump
    /// table that was not recognised, or distances to strings. A copy of it would lead
    /// elsewhere.
    fn check_copyable(&self, within: Option<FunctionId>, address: u64, bytes: &[u8]) -> Result<(), Problem> {
        let new = self.new;
        if new.map.distances.contains_key(&address) {
            return Ok(());
        }
        let computed = within.is_some_and(|id| new.code[id].ranges.iter().any(|c| c.computed_jumps));
        let entries: Vec<i32> =
            bytes.chunks_exact(4).map(|c| i32::from_le_bytes(c.try_into().unwrap_or_default())).collect();
        let leads_somewhere = |distance: &&i32| {
            let target = address.wrapping_add_signed(i64::from(**distance));
            match new.map.resolve_address(&new.image, target, Use::Address) {
                Target::Function(..) => true,
                Target::Object(_, offset) => offset == 0,
                Target::Literal => {
                    !(address..address + bytes.len() as u64).contains(&target)
                        && new.image.bytes(target.wrapping_sub(1), 1) == Some(&[0])
                        && new.image.bytes(target, 1).is_some_and(|b| b != [0])
                }
                _ => false,
            }
        };
        let used = entries.iter().filter(|e| **e != 0);
        let (all, hits) = (used.clone().count(), used.filter(leads_somewhere).count());
        if all > 1 && (hits == all || computed && hits > 0) {
            return Err(Problem(
                Code::UnknownReference,
                "it looks like a table of distances from its own place".into(),
            ));
        }
        Ok(())
    }

    fn jump_table(&mut self, id: FunctionId, table: &JumpTable) -> u32 {
        if let Some(known) = self.literal_symbols.get(&(table.address, u32::MAX)) {
            return *known;
        }
        let symbols = self.function_symbols[&id].clone();
        let (section, entry) = if table.relative { (SectionKind::Rodata, 4) } else { (SectionKind::DataRelRo, 8u64) };
        let at = self.place(section, entry, &vec![0; table.size() as usize]);
        let name = format!("{}.table{}", self.new.map.functions[id].name(), self.literal_symbols.len());
        let symbol = self.payload_symbol(&name, SymbolKind::Object, section, at, table.size());
        self.literal_symbols.insert((table.address, u32::MAX), symbol);
        for (i, target) in table.targets.iter().enumerate() {
            let Some((_, range, offset)) = self.new.map.function_at(*target).filter(|f| f.0 == id) else { continue };
            let from_start = i as u64 * entry;
            // A relative entry counts from the table's start, a relocation from the field.
            let (kind, addend) = if table.relative {
                (RelocationKind::Pc32, offset as i64 + from_start as i64)
            } else {
                (RelocationKind::Abs64, offset as i64)
            };
            let target = symbols[range];
            self.relocations.push(Relocation { section, offset: at + from_start, kind, symbol: target, addend });
        }
        symbol
    }

    /// Binds a use of a PLT stub or a GOT slot.
    fn bind_slot(&mut self, word: &Word, site: &Site) -> Result<Bind, Problem> {
        let new = self.new;
        let stub = site.usage == Use::Branch || new.image.stubs.contains_key(&site.target);
        if let Some(bound) = self.old_slot(word, site.target, stub) {
            return Ok(Bind::direct(bound));
        }
        match word {
            Word::Symbol(name, 0) => {
                let symbol = self.named(name);
                if site.usage == Use::Address && !stub {
                    return Err(Problem(Code::NewSlot, "the address of a table slot is taken".into()));
                }
                Ok(Bind { symbol, offset: 0, through_slot: !stub })
            }
            Word::Address(address) if !stub => {
                let (symbol, offset) = self.bind_address(None, *address, Use::Address)?;
                if offset != 0 {
                    return Err(Problem(Code::NewSlot, "a slot with an offset".into()));
                }
                Ok(Bind { symbol, offset: 0, through_slot: true })
            }
            Word::Tls(..) => Err(Problem(
                Code::ThreadLocalChanged,
                "the old build has no slot for this thread-local variable".into(),
            )),
            _ => Err(Problem(Code::NewSlot, "the old build has no such slot".into())),
        }
    }

    fn bind_slot_address(&mut self, word: &Word, stub: bool) -> Result<Bound, Problem> {
        self.old_slot(word, 0, stub).ok_or_else(|| Problem(Code::NewSlot, "the old build has no such slot".into()))
    }

    /// The old build's stub or slot for the same word.
    fn old_slot(&mut self, word: &Word, address: u64, stub: bool) -> Option<Bound> {
        let (old, new) = (self.old, self.new);
        let judge = Judge::new(old, new, self.pairs).with_changed_constants(self.changes.constants.clone());
        let same = |slot: u64, v: &Word| {
            judge.words(v, word) == Verdict::Same && (stub || judge.slot_tails(slot, address, word))
        };
        let shown = match word {
            Word::Symbol(name, _) | Word::Tls(_, name, _) => name.as_str(),
            _ => "local",
        };
        if stub {
            let at = self.slots.stubs(word).iter().find(|s| same(s.slot, s.word))?.at;
            return Some((self.base_symbol(&format!("{shown}.plt"), SymbolKind::Function, at, 0), 0));
        }
        let at = self.slots.got(word).iter().find(|s| same(s.slot, s.word))?.at;
        Some((self.base_symbol(&format!("{shown}.got"), SymbolKind::Object, at, 8), 0))
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
pub(crate) struct Problem(pub(crate) Code, pub(crate) String);

/// Text with a terminator.
fn is_string(content: &[u8]) -> bool {
    content.split_last().is_some_and(|(end, text)| *end == 0 && !text.contains(&0) && std::str::from_utf8(text).is_ok())
}

/// Size of `jmp rel32`.
const ISLAND: u64 = 5;

/// The short branches of a range that leave it.
fn islands(sites: &Sites, range: &CodeRange<'_>) -> Vec<Site> {
    sites.iter().filter(|s| s.width == 1 && !stays_inside(s, range.address, range.end())).collect()
}

/// A branch inside its own range keeps its distance when the range is copied.
fn stays_inside(site: &Site, start: u64, end: u64) -> bool {
    site.usage == Use::Branch && (start..end).contains(&site.target)
}
