//! The walk: every function that the patch brings, beside its twin in the new build.
//!
//! It starts at the replaced functions, whose twins names (or votes) prove, and goes where references lead: if an
//! instruction of the patch leads to a place of the payload and the same instruction of the new build leads to a
//! function or an object, the two must be twins, and are compared in their turn. So nothing in the payload is
//! believed by its name, and what nothing leads to is not proven.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hp_pack::{Patch, Place as SymbolPlace, Role, SectionKind, Symbol};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::ahead::Meant;
use crate::border::Border;
use crate::code::{self, Field, Step, Use};
use crate::derived::{Back, Derived};
use crate::entities::Family;
use crate::ground::{Doubt, Ground, Within, is_number};
use crate::image::{SymbolType, Word};
use crate::landing::{self, Tables};
use crate::near::{Near, Span};
use crate::overlay::{Layout, Place};
use crate::report::{Fault, Kind, Proof};
use crate::slotted::Apart;

/// A range of payload code and the range of the new build that it equals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Twin {
    pub(crate) end: u64,
    /// Index of the new range.
    pub(crate) range: usize,
}

/// The walk and what it has found so far.
pub(crate) struct Walk<'w, 'g, 'a> {
    pub(crate) patch: &'w Patch,
    pub(crate) ground: &'w Ground<'g, 'a>,
    pub(crate) layouts: &'w [Layout],
    /// By offset in `.text`.
    pub(crate) code: BTreeMap<u64, Twin>,
    /// The offset in `.text` of each new range that has a twin.
    offsets: FxHashMap<usize, u64>,
    /// Offset in `.text` and size of each symbol there.
    code_symbols: FxHashSet<(u64, u64)>,
    near: Near,
    /// Jumps that stand for a short branch: offset in `.text`, and the branches of the new build that use them.
    pub(crate) islands: BTreeMap<u64, BTreeSet<u64>>,
    /// Code that stands for one instruction: by its offset in `.text`.
    pub(crate) apart: BTreeMap<u64, Apart>,
    /// Payload objects (by symbol) and the new addresses that they equal.
    data: BTreeMap<u32, BTreeSet<u64>>,
    /// The one payload object of each new variable.
    variables: FxHashMap<u64, u32>,
    code_todo: VecDeque<u64>,
    data_todo: VecDeque<(u32, u64, Option<usize>)>,
    families: FxHashMap<(bool, usize), std::rc::Rc<Family<'g>>>,
    /// Fields that are relocated.
    relocated: BTreeSet<(SectionKind, u64)>,
    thread_locals: BTreeSet<String>,
    /// Replaced functions of which nothing says what they became, and where in `.text` the patch has that.
    unknown: Vec<(usize, u64)>,
    /// The words looked at lead to the start or the inside of things, never to an end.
    pub(crate) exact: bool,
    /// Exception tables of the patch that were not compared yet.
    pub(crate) landings: Tables<Place, Place>,
    pub(crate) proof: Proof,
    pub(crate) faults: Vec<Fault>,
}

/// What is said of a replaced function that may have become another one.
const UNKNOWN: &str = "nothing proves which function of the new build it is";

type Answer = Result<Kind, Doubt>;

fn is_code(symbol: &Symbol) -> bool {
    symbol.place == SymbolPlace::Payload(SectionKind::Text)
}

impl<'w, 'g, 'a> Walk<'w, 'g, 'a> {
    pub(crate) fn new(patch: &'w Patch, ground: &'w Ground<'g, 'a>, layouts: &'w [Layout]) -> Walk<'w, 'g, 'a> {
        Walk {
            patch,
            ground,
            layouts,
            code: BTreeMap::new(),
            offsets: FxHashMap::default(),
            code_symbols: patch.symbols.iter().filter(|s| is_code(s)).map(|s| (s.value, s.size)).collect(),
            near: Near::new(patch),
            islands: BTreeMap::new(),
            apart: BTreeMap::new(),
            data: BTreeMap::new(),
            variables: FxHashMap::default(),
            code_todo: VecDeque::new(),
            data_todo: VecDeque::new(),
            families: FxHashMap::default(),
            relocated: patch.relocations.iter().map(|r| (r.section, r.offset)).collect(),
            thread_locals: BTreeSet::new(),
            unknown: Vec::new(),
            exact: false,
            landings: BTreeMap::new(),
            proof: Proof { layouts: layouts.len(), ..Proof::default() },
            faults: Vec::new(),
        }
    }

    /// Goes through everything that the replaced functions lead to.
    pub(crate) fn run(&mut self) {
        match landing::of_patch(self.layouts) {
            Ok(tables) => self.landings = tables,
            Err(fault) => self.faults.push(fault),
        }
        for record in &self.patch.functions {
            if let Role::Entry(entry) = record.role {
                self.replaced(record.old_address, entry.new_symbol);
            }
        }
        self.proof.replaced = self.code.len();
        loop {
            if let Some(start) = self.code_todo.pop_front() {
                self.walk_code(start);
                self.walk_landings(start, self.code[&start].range);
            } else if let Some((symbol, address, within)) = self.data_todo.pop_front() {
                self.walk_data(symbol, address, within);
            } else if !self.adjoin() {
                break;
            }
        }
        self.proof.added = self.code.values().filter(|t| self.is_added(t.range)).count();
        self.check_unknown();
        self.check_thread_locals();
        self.unreached();
    }

    /// What nothing says of a function that was replaced does not matter if nobody runs it any more.
    fn check_unknown(&mut self) {
        let used = self.ground.still_used(&self.unknown.iter().map(|(f, _)| *f).collect());
        for (f, start) in std::mem::take(&mut self.unknown) {
            if used.contains(&f) || !self.code.contains_key(&start) {
                self.fault("record", self.ground.old.ranges[f].name().to_owned(), UNKNOWN);
            } else {
                self.proof.replaced += 1;
                self.proof.added -= 1;
            }
        }
    }

    fn is_added(&self, range: usize) -> bool {
        let new = self.ground.new;
        new.ranges[range].parent == range && self.ground.pairs.ranges.old_of(range).is_none()
    }

    fn fault(&mut self, part: &'static str, place: impl Into<String>, what: impl Into<String>) {
        self.faults.push(Fault::new(part, place, what));
    }

    fn replaced(&mut self, old_address: u64, symbol: u32) {
        let symbol = &self.patch.symbols[symbol as usize];
        let old = self.ground.old.range_at(old_address).filter(|(_, offset)| *offset == 0);
        let Some((f, _)) = old else {
            return self.fault("record", format!("{old_address:#x}"), "no function of the base begins there");
        };
        let name = self.ground.old.ranges[f].name().to_owned();
        let Some(g) = self.ground.pairs.ranges.new_of(f) else {
            if self.ground.old.ranges[f].unnamed && self.ground.old.ranges[f].parent == f {
                return self.unknown.push((f, symbol.value));
            }
            return self.fault("record", name, UNKNOWN);
        };
        if let Err(Doubt::No(what)) = self.join_code(symbol.value, g) {
            self.fault("record", name, what);
        }
    }

    /// Makes payload code at `start` the twin of a new range, or says why it is not.
    fn join_code(&mut self, start: u64, range: usize) -> Result<(), Doubt> {
        let twin = &self.ground.new.ranges[range];
        if let Some(known) = self.code.get(&start) {
            if self.ground.are_alike(known.range, range) {
                return Ok(());
            }
            let other = self.ground.new.ranges[known.range].name();
            return Doubt::no(format!(".text+{start:#x} cannot be both {other} and {}", twin.name()));
        }
        if let Some(at) = self.offsets.get(&range).filter(|_| !self.ground.pairs.several.1.contains(&range)) {
            return Doubt::no(format!("{} is in the patch twice, at .text+{at:#x} and +{start:#x}", twin.name()));
        }
        let size = twin.bytes.len() as u64;
        if !self.code_symbols.contains(&(start, size)) {
            return Doubt::no(format!("no symbol of the patch at .text+{start:#x} is as long as {}", twin.name()));
        }
        let end = start + size;
        let before = self.code.range(..end).next_back();
        if before.is_some_and(|(_, t)| t.end > start) {
            return Doubt::no(format!("{} overlaps other code of the patch", twin.name()));
        }
        self.code.insert(start, Twin { end, range });
        self.offsets.insert(range, start);
        self.code_todo.push_back(start);
        Ok(())
    }

    fn family(&mut self, new: bool, range: usize) -> std::rc::Rc<Family<'g>> {
        let side = if new { self.ground.new } else { self.ground.old };
        let parent = side.ranges[range].parent;
        self.families.entry((new, parent)).or_insert_with(|| Family::of(side, parent).into()).clone()
    }

    fn walk_code(&mut self, start: u64) {
        let (new, range) = (self.ground.new, self.code[&start].range);
        let twin = &new.ranges[range];
        let family = self.family(true, range);
        let old = self.ground.pairs.ranges.old_of(twin.parent).map(|f| self.family(false, f));
        let within = Within {
            old: old.as_deref(),
            new: Some(&family),
            patch: true,
            startup: twin.file == "crtstuff.c",
            rust: twin.rust,
        };
        let (mut end, mut derived) = (0, Derived::new());
        for (at, step) in new.steps(range) {
            end = at + step.len();
            let bytes = &twin.bytes[at..end];
            let here = (twin.address + at as u64, bytes, &step);
            if let Err(what) = self.same_step(start + at as u64, here, &mut derived, within) {
                self.fault("code", format!("{}+{at:#x}", twin.name()), what);
                // After a wrong instruction everything may be shifted.
                if self.faults.len() > 64 {
                    return;
                }
            }
            self.proof.instructions += 1;
            if step.is_thread_local() {
                self.thread_locals.insert(twin.name().to_owned());
            }
        }
        self.proof.code_bytes += end as u64;
        if end != twin.bytes.len() {
            self.fault("code", format!("{}+{end:#x}", twin.name()), "the new build has no instruction there");
        }
    }

    /// One instruction of the patch and its twin: the same bytes, and fields that lead to the same.
    fn same_step(
        &mut self,
        offset: u64,
        (address, bytes, step): (u64, &[u8], &Step),
        derived: &mut Derived<(Place, u64)>,
        within: Within<'_>,
    ) -> Result<(), String> {
        let absolute = self.patch.base.fixed_address;
        let mut fields: Vec<Vec<(Place, Field)>> = vec![Vec::new(); step.fields.len()];
        for layout in self.layouts {
            let base = layout.address(SectionKind::Text).unwrap_or_default();
            let here = layout.bytes_from(SectionKind::Text, offset);
            let Some(mine) = code::step(base + offset, here, absolute) else {
                return Err("the patch has no instruction there".into());
            };
            let equal =
                mine.len() == bytes.len() && (0..bytes.len()).all(|i| step.fields.cover(i) || here[i] == bytes[i]);
            let shape = |f: &Field| (f.at, f.width, f.relative, f.usage);
            if !equal
                || mine.fields.len() != step.fields.len()
                || !mine.fields.iter().zip(step.fields.iter()).all(|(f, g)| shape(f) == shape(g))
            {
                return match self.same_through_slot(offset, (address, bytes, step), within) {
                    Some(answer) => {
                        let describe = |doubt| format!("`{}`: {}", step.instruction, self.ground.describe(&doubt));
                        answer.map_err(describe).map(|kind| self.proof.count(kind))
                    }
                    None => {
                        Err(format!("`{}` in the patch, `{}` in the new build", mine.instruction, step.instruction))
                    }
                };
            }
            for (list, field) in fields.iter_mut().zip(mine.fields.iter()) {
                list.push((layout.place(field.target), *field));
            }
        }
        let made = step.fields.iter().zip(&fields).find(|(new, _)| self.ground.makes_address(new, within));
        let made = made.map(|(new, mine)| (mine[0].0, new.target));
        for Back { from: (place, n), bytes, accessed } in derived.see(step, made) {
            if !accessed && !self.ground.new.is_end_of_text(n, bytes) {
                continue;
            }
            let before = n.wrapping_sub(bytes);
            let answer = self.same_place(place.before(bytes), before, self.ground.use_before(before, bytes), within);
            answer.map_err(|doubt| {
                let why = self.ground.describe(&doubt);
                format!("`{}` leads {bytes} bytes before {n:#x} of the new build: {why}", step.instruction)
            })?;
        }
        for (new, mine) in step.fields.iter().zip(fields) {
            let answer = self.same_field(offset, address, new, &mine, within);
            let kind = answer.map_err(|doubt| format!("`{}`: {}", step.instruction, self.ground.describe(&doubt)))?;
            self.proof.count(kind);
        }
        Ok(())
    }

    fn same_field(
        &mut self,
        offset: u64,
        address: u64,
        new: &Field,
        mine: &[(Place, Field)],
        within: Within<'_>,
    ) -> Answer {
        let relocated = self.relocated.contains(&(SectionKind::Text, offset + new.at as u64));
        // The old version has this value, which is no address there: an address would be another one now.
        let was_number = || {
            let has = |f: &&Family<'_>| f.makes(new.target);
            within.old.filter(has).is_some_and(|f| is_number(self.ground.old, Some(f), new.target))
        };
        if !new.certain && relocated && was_number() {
            return Doubt::no("a number, which the patch takes for an address");
        }
        let range = self.ground.new.range_at(address).map(|(range, _)| (range, address));
        if range.is_some_and(|range| self.ground.new.means_elsewhere(new, range)) {
            let value = mine[0].1.target;
            let whole = match mine[0].0 {
                Place::Base(a) if mine.iter().all(|m| m.0 == Place::Base(a)) => a,
                _ if !relocated && mine.iter().all(|m| m.1.target == value) => value,
                _ => return Doubt::no("an address where nothing is that an index could be added to, elsewhere"),
            };
            return self.ground.same_around(whole, new.target);
        }
        if !new.relative && !relocated {
            let value = mine[0].1.target;
            if value != new.target {
                return Doubt::no("another number");
            }
            if !self.ground.new.image.contains(value) && !self.ground.old.image.contains(value)
                || is_number(self.ground.new, within.new, value)
                || was_number()
            {
                return Ok(Kind::Number);
            }
            return self.ground.same(value, value, new.usage, within);
        }
        let place = mine[0].0;
        if mine.iter().any(|m| m.0 != place) {
            return Doubt::no("does not lead to the same place at every load address");
        }
        if new.width == 1 && self.is_island(place, new.target) {
            let Place::Payload(_, at) = place else { return Doubt::no("leads nowhere") };
            self.islands.entry(at as u64).or_default().insert(address);
            let target = self.jump_of(at as u64)?;
            return self.same_place(target, new.target, Use::Branch, within);
        }
        self.same_meaning(place, (address, new), within)
    }

    /// A field of the instruction at `address` of the new build leads to the same in the patched process, also where it
    /// means something that begins behind the address.
    fn same_meaning(&mut self, place: Place, (address, field): (u64, &Field), within: Within<'_>) -> Answer {
        let (new, n) = (self.ground.new, field.target);
        let range = new.range_at(address).filter(|_| self.ground.makes_address(field, within));
        let meant = match range.map_or(Meant::Here, |(range, _)| new.meant(range, address, n)) {
            Meant::There(at) if at < n => Meant::There(at),
            // A jump through a table has the table's start.
            _ if within.new.is_some_and(|family| family.table(n).is_some()) => Meant::Here,
            meant => meant,
        };
        if let (Meant::Here, Some((range, _))) = (&meant, range) {
            match place {
                // Where nothing lies all that may be meant must be there.
                Place::Payload(..) if new.object_at(n).is_none() => {
                    for other in new.perhaps_behind(range, address, n) {
                        let at = new.objects[other].address;
                        self.same_place(place.behind(at - n), at, Use::Address, within)?;
                    }
                }
                Place::Payload(..) | Place::Base(_) => {
                    let first = || new.perhaps_behind(range, address, n).first().map(|o| new.objects[*o].names[0]);
                    let other = match place {
                        Place::Base(a) => self.ground.other_behind(a, n, (range, address)),
                        _ => first(),
                    };
                    if let Some(other) = other {
                        return Doubt::no(format!("may also mean {other}, which begins behind it, and lies elsewhere"));
                    }
                }
                _ => {}
            }
        }
        let there = |at: u64| (place.behind(at.wrapping_sub(n)), at);
        if let (Meant::Here, Some((range, _))) = (&meant, range) {
            match self.ground.border(n, (range, address), within)? {
                Border::End(object) => return self.same_end(place, object, within),
                Border::Start => return self.same_start(place, n, within),
                Border::Other => {}
            }
        }
        match meant {
            Meant::Here if field.usage == Use::Address && self.may_be_other_end(place, n, within) => {
                Doubt::no(format!("{n:#x} of the new build may also be where an array ends that the function uses"))
            }
            Meant::Here => self.same_place(place, n, field.usage, within),
            Meant::Before(bytes) => {
                let before = n.wrapping_sub(bytes);
                self.same_place(place.before(bytes), before, self.ground.use_before(before, bytes), within)?;
                self.same_place(place, n, field.usage, within)
            }
            Meant::There(at) => self.same_place(there(at).0, at, Use::Address, within),
            Meant::Any(starts) => {
                let mut kind = Kind::Literal;
                if new.is_constant(n) || new.object_at(n).is_some() {
                    kind = self.same_place(place, n, field.usage, within)?;
                }
                for (place, at) in starts.into_iter().map(there) {
                    self.same_place(place, at, Use::Address, within)?;
                }
                Ok(kind)
            }
        }
    }

    /// A place is where an object ends.
    fn same_end(&mut self, place: Place, object: usize, within: Within<'_>) -> Answer {
        let found = &self.ground.new.objects[object];
        match place {
            Place::Base(a) => self.ground.same_reading(a, (object, found.size as i64)),
            place => self.same_place(place.before(found.size), found.address, Use::Address, within),
        }
    }

    /// A place is what begins at an address, whatever ends there.
    fn same_start(&mut self, place: Place, n: u64, within: Within<'_>) -> Answer {
        match (place, self.ground.new.object_at(n)) {
            (Place::Base(a), Some((object, 0))) => self.ground.same_reading(a, (object, 0)),
            _ => self.same_place(place, n, Use::Address, within),
        }
    }

    /// A place in constants that the patch brings is where an object begins in the new build, and another one ends there which the function
    /// uses: what it means is not known, unless the patch has that one before it.
    fn may_be_other_end(&self, place: Place, n: u64, within: Within<'_>) -> bool {
        let Place::Payload(kind @ (SectionKind::Rodata | SectionKind::DataRelRo), offset) = place else { return false };
        let new = self.ground.new;
        let ends = |r: &(usize, i64)| r.1 > 0 && r.1 as u64 == new.objects[r.0].size;
        let readings = new.readings(n);
        let begins = readings.first().is_some_and(|r| r.1 == 0);
        let Some((other, size)) = readings.into_iter().find(ends).filter(|_| begins) else { return false };
        let object = &new.objects[other];
        let here = self.near.to(kind, offset, 0).any(|span| span.end == offset && span.end - span.start == size);
        !here && within.new.is_some_and(|family| family.uses(object.address, object.end()))
    }

    /// A short branch to another function cannot reach it from the payload; it goes to a jump beside its own.
    fn is_island(&self, place: Place, target: u64) -> bool {
        let Place::Payload(SectionKind::Text, at) = place else { return false };
        let twin = self.twin_at(at as u64);
        twin.is_none_or(|(start, twin)| {
            let range = &self.ground.new.ranges[twin.range];
            range.address + (at as u64 - start) != target
        }) && self.layouts[0].bytes_from(SectionKind::Text, at as u64).first() == Some(&0xe9)
    }

    fn twin_at(&self, offset: u64) -> Option<(u64, Twin)> {
        let (start, twin) = self.code.range(..=offset).next_back()?;
        (offset < twin.end).then_some((*start, *twin))
    }

    /// Where the 5-byte jump at an offset of `.text` leads.
    fn jump_of(&self, offset: u64) -> Result<Place, Doubt> {
        let mut places = self.layouts.iter().map(|layout| {
            let base = layout.address(SectionKind::Text)?;
            let step = code::step(base + offset, layout.bytes_from(SectionKind::Text, offset), false)?;
            step.fields.first().filter(|f| f.usage == Use::Branch && step.len() == 5).map(|f| layout.place(f.target))
        });
        match places.next().flatten() {
            Some(first) if places.all(|p| p == Some(first)) => Ok(first),
            _ => Doubt::no("does not lead to the same place at every load address"),
        }
    }

    /// Is a place of the patched process the same as a place of the new build?
    pub(crate) fn same_place(&mut self, place: Place, n: u64, usage: Use, within: Within<'_>) -> Answer {
        match place {
            Place::Base(a) => self.ground.same(a, n, usage, within),
            Place::Payload(SectionKind::Text, offset) => self.same_code(offset, n, usage),
            Place::Payload(
                kind @ (SectionKind::Rodata | SectionKind::DataRelRo | SectionKind::Data | SectionKind::Bss),
                offset,
            ) => self.same_data(kind, offset, n, usage, within),
            Place::Payload(kind, _) => Doubt::no(format!("leads into {} of the patch", kind.name())),
            Place::Stub(symbol) => self.same_import(symbol, self.ground.new.image.stub_word(n)),
            Place::Slot(symbol) => self.same_slot(symbol, n),
            Place::Import(symbol, added) => self.same_of_library((symbol, added), n, usage, within),
            Place::Nowhere(address) => Doubt::no(format!("leads to {address:#x}, where nothing is")),
        }
    }

    fn same_code(&mut self, offset: i64, n: u64, usage: Use) -> Answer {
        let new = self.ground.new;
        let Some((range, inside)) = new.range_at(n) else {
            // The end of the same code, where nothing begins.
            let twin = offset.checked_sub(1).and_then(|last| self.twin_at(u64::try_from(last).ok()?));
            let own = twin.map(|(start, twin)| (start, &new.ranges[twin.range]));
            if own.is_some_and(|(start, own)| own.end() == n && start + own.bytes.len() as u64 == offset as u64) {
                return Ok(Kind::Label);
            }
            return Doubt::no(format!("leads to code of the patch, {n:#x} of the new build is none"));
        };
        let name = new.ranges[range].name();
        let offset = u64::try_from(offset).map_err(|_| Doubt::No("leads before the code of the patch".into()))?;
        let entry = inside == 0 && new.ranges[range].parent == range;
        if let Some((start, twin)) = self.twin_at(offset) {
            let same = twin.range == range || entry && self.ground.are_alike(twin.range, range);
            if !same || offset - start != inside {
                let other = new.ranges[twin.range].name();
                return Doubt::no(format!(
                    "leads to {other}+{:#x} of the patch instead of {name}+{inside:#x}",
                    offset - start
                ));
            }
        } else {
            let start = offset.checked_sub(inside);
            self.join_code(start.ok_or_else(|| Doubt::No("leads before the code of the patch".into()))?, range)?;
        }
        let keeps_address = !self.ground.pairs.several.1.contains(&range);
        if entry && usage != Use::Branch && keeps_address && self.ground.pairs.ranges.old_of(range).is_some() {
            return Doubt::no(format!("makes an address of the new {name}; pointers must keep the base's"));
        }
        Ok(if entry { Kind::Function } else { Kind::Label })
    }

    pub(crate) fn same_import(&mut self, symbol: u32, word: Option<&Word>) -> Answer {
        let import = &self.patch.symbols[symbol as usize];
        match word {
            Some(Word::Symbol(name, 0)) if *name == import.name => {
                if import.weak != self.ground.new.image.weak.contains(name) {
                    return Doubt::no(format!("{name} may stay unresolved in only one of patch and new build"));
                }
                Ok(Kind::Import)
            }
            _ => Doubt::no(format!("the new build does not reach {} there", import.name)),
        }
    }

    fn same_slot(&mut self, symbol: u32, n: u64) -> Answer {
        let new = self.ground.new;
        let found = &self.patch.symbols[symbol as usize];
        let Some(word) = new.image.words.get(&n) else { return Doubt::no("the new build reads no slot there") };
        let place = match found.place {
            SymbolPlace::Import => return self.same_import(symbol, Some(word)),
            SymbolPlace::Base => Place::Base(found.value),
            SymbolPlace::Payload(kind) => Place::Payload(kind, found.value as i64),
        };
        self.same_word(place, word)
    }

    /// A pointer of the patch to `place`, and what the new build has in its stead.
    pub(crate) fn same_word(&mut self, place: Place, word: &Word) -> Answer {
        match word {
            Word::Address(n) => self.same_place(place, *n, Use::Address, Within::data(!self.exact)),
            Word::Symbol(name, addend) => {
                if let Place::Import(symbol, offset) = place {
                    return match offset == *addend {
                        true => self.same_import(symbol, Some(&Word::Symbol(name.clone(), 0))),
                        false => Doubt::no(format!("another offset from {name}")),
                    };
                }
                let own = self.ground.new.image.symbols.iter().find(|s| !s.local && s.name == name);
                let Some(own) = own.filter(|s| s.kind != SymbolType::Tls) else {
                    return Doubt::no(format!("the new build has the import {name} there"));
                };
                self.same_place(place, own.address.wrapping_add_signed(*addend), Use::Address, Within::data(true))
            }
            _ => Doubt::no("the new build has a word there that is made at start-up"),
        }
    }

    /// A place in data that the patch brings.
    fn same_data(&mut self, kind: SectionKind, offset: i64, n: u64, usage: Use, within: Within<'_>) -> Answer {
        let mut candidates: Vec<(i64, u32)> = Vec::new();
        for Span { start, end, symbol } in self.near.to(kind, offset, 64) {
            let rank = if (start..end).contains(&offset) { 0 } else { 1 + (offset - start).abs() };
            candidates.push((rank, symbol));
        }
        candidates.sort_unstable();
        let mut why = Doubt::No(format!("leads to {}+{offset:#x} of the patch, where nothing is", kind.name()));
        for (rank, symbol) in candidates {
            let found = &self.patch.symbols[symbol as usize];
            if let Use::Access(size) = usage
                && (rank > 0 || offset as u64 + size > found.value + found.size)
            {
                continue;
            }
            let start = n.wrapping_sub((offset - found.value as i64) as u64);
            match self.join_data(symbol, kind, start, (n, usage), within) {
                Ok(kind) => return Ok(kind),
                Err(doubt) => why = if rank == 0 { doubt } else { why },
            }
        }
        Err(why)
    }

    /// Makes a payload object the twin of the new data at `start`.
    fn join_data(
        &mut self,
        symbol: u32,
        kind: SectionKind,
        start: u64,
        (n, usage): (u64, Use),
        within: Within<'_>,
    ) -> Answer {
        let new = self.ground.new;
        let found = &self.patch.symbols[symbol as usize];
        let writable = matches!(kind, SectionKind::Data | SectionKind::Bss);
        let fits = |s: &crate::image::Section<'_>| !s.code && !s.is_slots() && new.is_constant(start) != writable;
        if !new.image.section_at(start).is_some_and(fits) {
            return Doubt::no(format!("{} of the patch is not what the new build has at {start:#x}", found.name));
        }
        let table = within.new.filter(|_| usage == Use::Address && n == start).and_then(|f| f.table(n).map(|t| (f, t)));
        let result = match new.object_at(start) {
            Some((p, 0)) => self.may_bring(p, symbol, writable)?,
            Some(_) => return Doubt::no(format!("{} of the patch is only a part of an object", found.name)),
            None if writable => return Doubt::no(format!("no symbol covers {start:#x} of the new build")),
            None => {
                let needed = match (usage, &table) {
                    (_, Some((_, (width, labels)))) => width * labels.len() as u64,
                    (Use::Access(size), _) => n.wrapping_sub(start).wrapping_add(size),
                    _ => n.wrapping_sub(start).wrapping_add(new.literal(n).len() as u64),
                };
                let whole = table.is_some() && found.size != needed;
                if whole || !self.covers(symbol, needed) {
                    return Doubt::no(format!("{} has {} bytes, the new build's has {needed}", found.name, found.size));
                }
                Kind::Literal
            }
        };
        let aligned = match (usage, &table) {
            (_, Some((_, (width, _)))) => *width,
            (Use::Access(size), _) => size.next_power_of_two().min(64),
            _ => 16,
        };
        if !self.is_aligned(kind, found.value, start, aligned) {
            return Doubt::no(format!("{} is less aligned than in the new build", found.name));
        }
        if self.data.get(&symbol).is_some_and(|known| known.contains(&start)) {
            return Ok(result);
        }
        if table.is_none() && !self.is_plausible(symbol, kind, start) {
            return Doubt::no(format!(
                "{} of the patch has another content than {start:#x} of the new build",
                found.name
            ));
        }
        self.data.entry(symbol).or_default().insert(start);
        let user = table.and_then(|_| Some(within.new?.entry));
        self.data_todo.push_back((symbol, start, user));
        Ok(result)
    }

    /// The payload keeps the alignment that data has in the new build, as far as code may rely on it.
    fn is_aligned(&self, kind: SectionKind, offset: u64, start: u64, most: u64) -> bool {
        let promised = self.ground.new.image.section_at(start).map_or(64, |s| s.align);
        let needed = (1u64 << start.trailing_zeros().min(6)).min(most).min(promised);
        let section = self.patch.section(kind).map_or(1, |s| s.align);
        section >= needed && offset.is_multiple_of(needed)
    }

    /// From a symbol on, symbols cover so many bytes without a gap.
    fn covers(&self, symbol: u32, size: u64) -> bool {
        let first = &self.patch.symbols[symbol as usize];
        let end = |symbol: u32| self.patch.symbols[symbol as usize].value + self.patch.symbols[symbol as usize].size;
        std::iter::successors(Some(symbol), |last| self.behind(*last)).any(|last| end(last) - first.value >= size)
    }

    /// The symbol with content that begins where another one ends.
    fn behind(&self, symbol: u32) -> Option<u32> {
        let found = &self.patch.symbols[symbol as usize];
        let SymbolPlace::Payload(kind) = found.place else { return None };
        let end = (found.value + found.size) as i64;
        let begins = |span: &Span| span.start == end && span.end > end;
        self.near.to(kind, end, 0).filter(begins).map(|span| span.symbol).min()
    }

    /// May the patch bring its own copy of this object of the new build?
    fn may_bring(&mut self, p: usize, symbol: u32, writable: bool) -> Answer {
        let (ground, found) = (self.ground, &self.patch.symbols[symbol as usize]);
        let object = &ground.new.objects[p];
        let name = object.names[0];
        if found.size != object.size {
            return Doubt::no(format!(
                "{name} has {} bytes in the patch and {} in the new build",
                found.size, object.size
            ));
        }
        let old = ground.pairs.objects.old_of(p);
        if !writable {
            return match old {
                Some(o) if ground.is_unchanged(o) => Doubt::no(format!("brings a copy of {name}, which the base has")),
                _ => Ok(Kind::Constant),
            };
        }
        if old.is_some() {
            return Doubt::no(format!("brings a second {name}; the base's would lose its value"));
        }
        if ground.may_exist(p) {
            return Doubt::no(format!("nothing proves that {name} is new; the base has a variable of that name"));
        }
        match self.variables.insert(object.address, symbol) {
            Some(other) if other != symbol => Doubt::no(format!("brings {name} twice")),
            _ => Ok(Kind::Variable),
        }
    }

    /// Everything that is not relocated is the same.
    fn is_plausible(&self, symbol: u32, kind: SectionKind, start: u64) -> bool {
        let found = &self.patch.symbols[symbol as usize];
        let Some(expected) = self.ground.new.image.initial(start, found.size) else { return false };
        let mine = self.layouts[0].bytes_from(kind, found.value);
        (0..found.size).all(|i| {
            let field = self.patch_field(kind, found.value + i).is_some();
            field || mine.get(i as usize) == expected.get(i as usize)
        })
    }

    /// The relocation that covers a byte.
    fn patch_field(&self, kind: SectionKind, offset: u64) -> Option<&hp_pack::Relocation> {
        let i = self.patch.relocations.partition_point(|r| (r.section, r.offset) <= (kind, offset));
        let found = self.patch.relocations.get(i.checked_sub(1)?)?;
        (found.section == kind && offset < found.offset + found.kind.width()).then_some(found)
    }

    fn walk_data(&mut self, symbol: u32, start: u64, user: Option<usize>) {
        let found = &self.patch.symbols[symbol as usize];
        let SymbolPlace::Payload(kind) = found.place else { return };
        self.proof.data_bytes += found.size;
        let labels = user.and_then(|range| {
            let family = self.family(true, range);
            family.table(start)
        });
        if let Some(table) = labels {
            return self.walk_table(symbol, kind, table);
        }
        let Some(expected) = self.ground.new.image.initial(start, found.size) else { return };
        self.exact = self.ground.new.object_at(start).is_some_and(|(p, _)| self.ground.new.objects[p].is_for_runtime());
        let mut at = 0u64;
        while at < found.size {
            let here = found.value + at;
            let step = match self.patch_field(kind, here) {
                Some(field) if field.offset == here => {
                    let width = field.kind.width();
                    let answer = self.walk_pointer(kind, (found.value, here), (start, start + at), width);
                    answer.map(|kind| {
                        self.proof.count(kind);
                        width
                    })
                }
                Some(_) => Doubt::no("a relocation begins before the object"),
                None => self.walk_plain(kind, here, (start + at, expected[at as usize])).map(|()| 1),
            };
            match step {
                Ok(width) => at += width,
                Err(doubt) => {
                    let what = self.ground.describe(&doubt);
                    return self.fault("data", format!("{}+{at:#x}", found.name), what);
                }
            }
        }
    }

    /// A pointer in an object of the patch, and in its twin: where the object begins, and the pointer. A narrow one is a distance
    /// from the start, as in the tables of texts that rustc and clang make.
    fn walk_pointer(
        &mut self,
        kind: SectionKind,
        (first, offset): (u64, u64),
        (start, n): (u64, u64),
        width: u64,
    ) -> Answer {
        let new = self.ground.new;
        if width != 8 {
            if !new.tables.contains(&start) {
                return Doubt::no("a narrow pointer in data that is no table of distances");
            }
            let place = self.distance(kind, offset, first)?;
            let distance = new.image.i32_at(n).ok_or_else(|| Doubt::No("no distance in the new build".into()))?;
            let target = start.wrapping_add_signed(i64::from(distance));
            return self.same_place(place, target, Use::Address, Within::data(true));
        }
        let place = self.pointer(kind, offset)?;
        let word = match new.image.words.get(&n) {
            Some(word) => word.clone(),
            None if new.image.fixed => Word::Address(new.image.u64_at(n).unwrap_or_default()),
            None => return Doubt::no("a pointer where the new build has none"),
        };
        self.same_word(place, &word)
    }

    /// What the pointer at an offset of the payload leads to.
    fn pointer(&self, kind: SectionKind, offset: u64) -> Result<Place, Doubt> {
        let mut places = self.layouts.iter().map(|layout| {
            let bytes = layout.bytes_from(kind, offset).get(..8)?;
            Some(layout.place(u64::from_le_bytes(bytes.try_into().ok()?)))
        });
        match places.next().flatten() {
            Some(first) if places.all(|p| p == Some(first)) => Ok(first),
            _ => Doubt::no("a pointer does not lead to the same place at every load address"),
        }
    }

    fn walk_plain(&mut self, kind: SectionKind, offset: u64, (n, byte): (u64, u8)) -> Result<(), Doubt> {
        let new = self.ground.new;
        if new.image.words.contains_key(&n) {
            return Doubt::no("a bare number where the new build has a pointer");
        }
        if new.image.fixed && n % 8 == 0 {
            let value = new.image.u64_at(n).unwrap_or_default();
            if value != 0 && new.image.contains(value) && !is_number(new, None, value) {
                self.ground.same(value, value, Use::Address, Within::data(true))?;
            }
        }
        let same = self.layouts.iter().all(|l| l.bytes_from(kind, offset).first() == Some(&byte));
        if same { Ok(()) } else { Doubt::no("another byte than in the new build") }
    }

    fn walk_table(&mut self, symbol: u32, kind: SectionKind, (width, labels): (u64, Vec<u64>)) {
        let found = &self.patch.symbols[symbol as usize];
        for (i, label) in labels.iter().enumerate() {
            let offset = found.value + width * i as u64;
            let place = match width {
                8 => self.pointer(kind, offset),
                _ => self.distance(kind, offset, found.value),
            };
            let answer = place.and_then(|place| self.same_place(place, *label, Use::Branch, Within::data(true)));
            match answer {
                Ok(kind) => self.proof.count(kind),
                Err(doubt) => {
                    let what = self.ground.describe(&doubt);
                    self.fault("data", format!("{}[{i}]", found.name), what);
                }
            }
        }
    }

    /// What the 32-bit distance from `start` at an offset of the payload leads to.
    fn distance(&self, kind: SectionKind, offset: u64, start: u64) -> Result<Place, Doubt> {
        let mut places = self.layouts.iter().map(|layout| {
            let bytes = layout.bytes_from(kind, offset).get(..4)?;
            let distance = i32::from_le_bytes(bytes.try_into().ok()?);
            Some(layout.place((layout.address(kind)? + start).wrapping_add_signed(i64::from(distance))))
        });
        match places.next().flatten() {
            Some(first) if places.all(|p| p == Some(first)) => Ok(first),
            _ => Doubt::no("an entry does not lead to the same place at every load address"),
        }
    }

    /// Constants that lie directly behind another one came along because they may be a part of it. What has another content than
    /// is behind that in the new build lies there by chance, and something that is yet to be walked leads to it.
    fn adjoin(&mut self) -> bool {
        let (mut more, mut others) = (Vec::new(), Vec::new());
        for (symbol, starts) in &self.data {
            let found = &self.patch.symbols[*symbol as usize];
            if let SymbolPlace::Payload(kind @ (SectionKind::Rodata | SectionKind::DataRelRo)) = found.place
                && let Some(next) = self.behind(*symbol)
                && !self.data.contains_key(&next)
            {
                let all = starts.iter().map(|start| (next, start + found.size));
                let (fitting, rest): (Vec<_>, Vec<_>) =
                    all.partition(|(_, start)| self.is_plausible(next, kind, *start));
                more.extend(fitting);
                others.extend(rest);
            }
        }
        if more.is_empty() {
            more = others;
        }
        let any = !more.is_empty();
        for (symbol, start) in more {
            self.data.entry(symbol).or_default().insert(start);
            self.data_todo.push_back((symbol, start, None));
        }
        any
    }

    /// New code that uses thread-local storage has the offsets of the new build in it.
    fn check_thread_locals(&mut self) {
        let (old, new) = (&self.ground.old.image, &self.ground.new.image);
        let slots = self.proof.references.contains_key(&Kind::ThreadLocal);
        if self.thread_locals.is_empty() && !slots {
            return;
        }
        let layout = |image: &crate::image::Image<'_>| {
            let symbols = image.symbols.iter().filter(|s| s.kind == SymbolType::Tls);
            let mut all: Vec<(String, u64, u64)> = symbols.map(|s| (s.name.to_owned(), s.address, s.size)).collect();
            all.sort_unstable();
            (all, image.tls.map(|t| (t.2, t.3)))
        };
        if layout(old) == layout(new) {
            self.proof.references.entry(Kind::ThreadLocal).or_default();
            return;
        }
        for name in std::mem::take(&mut self.thread_locals) {
            self.fault("code", name, "uses thread-local variables, whose layout differs between the builds");
        }
        if slots {
            self.fault("code", "thread-local slots", "the layout of thread-local variables differs between the builds");
        }
    }

    /// A symbol that says of a variable what it is (docs/FORMAT.md) brings no bytes; the variable must be proven.
    fn marks_a_variable(&self, mark: &hp_pack::Symbol) -> bool {
        let same = |(i, symbol): (usize, &hp_pack::Symbol)| {
            let place = (symbol.place, symbol.value) == (mark.place, mark.value);
            place && symbol.size > 0 && self.data.contains_key(&(i as u32))
        };
        mark.size == 0 && mark.name.starts_with("hpatch.variable.") && self.patch.symbols.iter().enumerate().any(same)
    }

    /// What nothing leads to is not proven.
    fn unreached(&mut self) {
        for (i, symbol) in self.patch.symbols.iter().enumerate() {
            let SymbolPlace::Payload(kind) = symbol.place else { continue };
            let reached = match kind {
                SectionKind::Text => {
                    let at = &symbol.value;
                    self.code.contains_key(at) || self.islands.contains_key(at) || self.apart.contains_key(at)
                }
                SectionKind::Rodata | SectionKind::DataRelRo | SectionKind::Data | SectionKind::Bss => {
                    self.data.contains_key(&(i as u32)) || self.marks_a_variable(symbol)
                }
                SectionKind::Thunks | SectionKind::State => true,
                SectionKind::EhFrame | SectionKind::ExceptTable => true,
            };
            if !reached {
                self.faults.push(Fault::new("payload", symbol.name.clone(), "nothing that was proven leads to it"));
            }
        }
    }
}
