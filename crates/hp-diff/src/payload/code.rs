//! Copies of functions: their bytes, and a relocation for each reference that leaves a range.

use hp_pack::{Place, Relocation, RelocationKind, SectionKind, SymbolKind};

use super::border::Border;
use super::islands::islands;
use super::{Bind, Bound, ISLAND, Payload, Problem, stays_inside};
use crate::arch::{self, Encoding, Site, Use};
use crate::build::Build;
use crate::describe::{describe, offset};
use crate::elsewhere::means_elsewhere;
use crate::entity::{CodeRange, FunctionId, ObjectId, Target};
use crate::finding::Code;
use crate::judge::Judge;
use crate::usage::{is_indexed, is_number, range_of};

impl Payload<'_, '_> {
    /// Places a function in the payload, once, and gives the symbols of its ranges.
    pub(super) fn payload_function(&mut self, id: FunctionId) -> Vec<u32> {
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
                if !stays_inside(&new.map, &site, range) {
                    let field = site.offset as usize..(site.offset + u32::from(site.width)) as usize;
                    if site.encoding == Encoding::PcRelative {
                        bytes[field].fill(0);
                    }
                }
            }
            let size = bytes.len() as u64;
            let islands = islands(&new.map, &new.code[id].ranges[i].sites, range);
            let before = islands.iter().filter(|s| s.target < range.address).count() as u64;
            let behind = islands.len() as u64 - before;
            let lead = (before * ISLAND).next_multiple_of(align);
            let mut block = vec![0xcc; lead as usize];
            block.extend(bytes);
            block.resize(block.len() + (behind * ISLAND) as usize, 0);
            let at = self.place(SectionKind::Text, align, &block) + lead;
            symbols.push(self.payload_symbol(range.name, SymbolKind::Function, SectionKind::Text, at, size));
            self.place_islands((id, i), &islands, (at, at + size));
        }
        self.function_symbols.insert(id, symbols.clone());
        self.functions.push((id, symbols.clone()));
        self.todo.push_back(id);
        symbols
    }

    pub(super) fn relocate_function(&mut self, id: FunctionId) {
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
                if !stays_inside(&new.map, &site, range) && site.width > 1 {
                    self.relocate_site(id, i, symbols[i], &site);
                }
            }
        }
    }

    pub(super) fn relocate_site(&mut self, id: FunctionId, range: usize, symbol: u32, site: &Site) {
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
        let plain = !through_slot && site.usage != Use::Branch;
        if plain && self.symbols[target as usize].place == Place::Import {
            if let Err(Problem(code, why)) = self.through_slot((id, range), symbol, site, (target, offset)) {
                let what = describe(new, id, site);
                let message = format!("the instruction at {at:#x} of the new build refers to {what}: {why}");
                self.finding(code, &name, message);
            }
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
    pub(super) fn is_address(&mut self, id: FunctionId, site: &Site, at: u64) -> bool {
        let new = self.new;
        let name = new.map.functions[id].qualified_name();
        if is_number(new, id, site) || self.was_number(id, site.target) {
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
        let displacement = displacement || self.is_indexed_by_number(id, site);
        if displacement || new.table(id, site.target).is_some() {
            return true;
        }
        if !is_start && self.is_the_same_either_way(id, site) {
            return false;
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

    /// What may be a number or the address of a text's tail is right as it is, whichever it is: the base has the same text there.
    fn is_the_same_either_way(&mut self, id: FunctionId, site: &Site) -> bool {
        let (old, new, address) = (self.old, self.new, site.target);
        let literal = |build: &Build<'_>| build.map.resolve(&build.image, site) == Target::Literal;
        if !literal(old) || !literal(new) || !old.image.fixed_address || self.touched(id, site).calculated {
            return false;
        }
        let (start, end) = new.map.literal_span(&new.image, address);
        let as_long = old.map.literal(&old.image, address).len() == new.map.literal(&new.image, address).len();
        as_long && Judge::new(old, new, self.pairs).same_content(start, start, end - start)
    }

    /// The old version of the function has this value, which is no address there: an address would be another one now.
    fn was_number(&self, id: FunctionId, value: u64) -> bool {
        let old = self.old;
        self.pairs.functions.old_of(id).is_some_and(|f| {
            let mut sites = old.code[f].ranges.iter().flat_map(|code| &code.sites);
            sites.any(|site| site.target == value && is_number(old, f, &site))
        })
    }

    pub(super) fn bind(&mut self, id: FunctionId, site: &Site) -> Result<Bind, Problem> {
        let new = self.new;
        if let Some(table) = new.table(id, site.target).filter(|_| !self.means_end(id, site)) {
            return Ok(Bind::direct((self.jump_table(id, table), 0)));
        }
        if means_elsewhere(new, id, site) {
            return self.elsewhere(site).map(Bind::direct);
        }
        if let Some(bound) = self.end(id, site)? {
            return Ok(Bind::direct(bound));
        }
        let target = new.map.resolve(&new.image, site);
        let border = self.border(id, site, &target)?;
        if let Some(border @ Border::End(_)) = border {
            return self.bind_border(id, site.target, border).map(Bind::direct);
        }
        if let Some(bound) = self.ahead(id, site)? {
            return Ok(Bind::direct(bound));
        }
        if new.map.template_at(site.target).is_some() {
            return self.literal(Some(id), site.target, site.usage).map(Bind::direct);
        }
        if site.usage == Use::Address
            && !self.starts_something(id, site, &target)
            && is_indexed(new, id, site)
            && self.touched(id, site).calculated
            && let Some(bound) = self.in_reach(id, site, &target)?
        {
            return Ok(Bind::direct(bound));
        }
        match target {
            Target::Function(g, range, offset) if g == id && (range, offset) != (0, 0) => {
                Ok(Bind::direct((self.function_symbols[&id][range], offset as i64)))
            }
            Target::Stub(word) | Target::Slot(word) => self.bind_slot(word, site),
            _ => match border {
                Some(border) => self.bind_border(id, site.target, border).map(Bind::direct),
                None => self.bind_address(Some(id), site.target, site.usage).map(Bind::direct),
            },
        }
    }

    /// True if the start of something is meant, and not what an index added to it reaches. A compiler makes
    /// `(&a[9])[i]` of `a[i]` where `i` runs up to 0 from a number that the function then has, and so
    /// `(&a[-9])[i]`; in position-dependent code the displacement may be anything.
    pub(super) fn starts_something(&self, id: FunctionId, site: &Site, target: &Target<'_>) -> bool {
        let map = &self.new.map;
        if map.is_table_of_distances(site.target) {
            return true;
        }
        let Target::Object(object, 0) = target else { return map.is_start(target) };
        // Position-independent code takes the address of a virtual table and adds how far its address point lies in it.
        let object = &map.objects[*object];
        let inside = |range: &CodeRange<'_>| arch::stays_inside(range.bytes, site.instruction, object.size);
        if object.is_runtime_record() && range_of(self.new, id, site).is_some_and(inside) {
            return true;
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

    /// True if of all that an address may reach, the old version of the function refers to what lies at the address and to
    /// nothing else. Constants that changed have no place in the base that says so; but two neighbours of which one grew
    /// lie at another distance, and what the code adds to the one to reach the other did not change with it.
    fn meant_before(
        &self,
        meanings: &[(ObjectId, i64)],
        target: &Target<'_>,
        known_place: impl Fn(u64) -> bool,
    ) -> bool {
        let old_address = |&(p, offset): &(ObjectId, i64)| {
            let kept = self.pairs.objects.old_of(p)?;
            Some(((p, offset), self.old.map.objects[kept].address.wrapping_add_signed(offset)))
        };
        let Some(places) = meanings.iter().map(old_address).collect::<Option<Vec<_>>>() else { return false };
        let mut known = places.into_iter().filter(|(_, place)| known_place(*place)).map(|(meaning, _)| meaning);
        match (known.next(), known.next(), target) {
            (Some(meaning), None, Target::Object(object, offset)) => meaning == (*object, *offset),
            _ => false,
        }
    }

    /// Binds an address at which nothing lies that code means: the base must have all that it may mean at one and the same place.
    fn elsewhere(&mut self, site: &Site) -> Result<Bound, Problem> {
        let (old, new) = (self.old, self.new);
        let meanings = new.map.within_reach(site.target);
        let place = |&(p, offset): &(ObjectId, i64)| {
            let kept = self.pairs.objects.old_of(p).filter(|o| !self.changes.constants.contains(o))?;
            Some(old.map.objects[kept].address.wrapping_add_signed(offset))
        };
        let first = meanings.first().and_then(place);
        let alike = |place: u64| {
            let there = Site { target: place, ..*site };
            Judge::new(old, new, self.pairs).same_reach_of_constants(&there, site)
        };
        match (meanings.first(), first) {
            (Some((p, offset)), Some(there)) if meanings.iter().all(|m| place(m) == first) && alike(there) => {
                self.object(*p).map(|symbol| (symbol, *offset))
            }
            _ => Err(Problem(
                Code::AmbiguousReference,
                "code adds an index to it, and what lies there is nothing that it could mean".into(),
            )),
        }
    }

    /// Binds an address that code calculates with and that is the start of nothing: of all that it may reach, the
    /// old build must have it at one and the same place, or the old version of the function decides. `None`
    /// if it is a literal and nothing else.
    pub(super) fn in_reach(
        &mut self,
        id: FunctionId,
        site: &Site,
        target: &Target<'_>,
    ) -> Result<Option<Bound>, Problem> {
        let (old, new) = (self.old, self.new);
        let mut meanings = new.map.within_reach(site.target);
        if *target == Target::Literal {
            let near = new.map.candidates(site.target);
            meanings.retain(|m| near.contains(m));
        }
        // What is read or written lies in the object as a whole.
        let width = range_of(new, id, site).and_then(|r| arch::width(r.bytes, site.instruction, site.offset));
        meanings.retain(|m| new.map.objects[m.0].size >= width.unwrap_or(0));
        let Some(&first) = meanings.first() else { return Ok(None) };
        // The linker's own name for the start of a section, whose objects the program goes through.
        let walked = new.map.markers_at(site.target).iter().find(|name| name.starts_with("__start_"));
        if let Some((name, start)) = walked.and_then(|name| Some((name, old.map.marker_address(name)?))) {
            return Ok(Some((self.base_symbol(name, SymbolKind::Other, start, 0), 0)));
        }
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
        // Where another object begins in the old build, its old version hardly meant this one.
        let begins = |place: u64, (p, _): (ObjectId, i64)| {
            let other = old.map.object_at(place).filter(|o| old.map.objects[*o].address == place);
            other.is_some_and(|o| self.pairs.objects.old_of(p) != Some(o))
        };
        let likely = |(place, meaning): (&Option<u64>, &(ObjectId, i64))| {
            place.filter(|place| known_place(*place) && !begins(*place, *meaning))
        };
        let mut known: Vec<u64> = places.iter().zip(&meanings).filter_map(likely).collect();
        known.dedup();
        // A constant that changed has no place in the base any more.
        let replaced = |meaning: &(ObjectId, i64)| {
            let changed = self.pairs.objects.old_of(meaning.0).filter(|o| self.changes.constants.contains(o));
            let place = changed.map(|o| old.map.objects[o].address.wrapping_add_signed(meaning.1));
            place.is_some_and(|place| known_place(place) && !begins(place, *meaning))
        };
        let place = match (places[0], known.as_slice()) {
            (Some(place), _) if places.iter().all(|p| *p == Some(place)) => place,
            (_, &[place]) => place,
            (_, []) if meanings.iter().any(replaced) => return Ok(None),
            _ if self.meant_before(&meanings, target, known_place) => return Ok(None),
            _ => {
                let name = new.map.objects[first.0].name();
                let message =
                    format!("code adds an index to it; it may mean {name}{} or something behind", offset(first.1));
                return Err(Problem(Code::AmbiguousReference, message));
            }
        };
        // The old function may have meant a constant that changed: the base has its old content there.
        let outdated = |&&(p, offset): &&(ObjectId, i64)| {
            let changed = self.pairs.objects.old_of(p).filter(|o| self.changes.constants.contains(o));
            changed.is_some_and(|o| old.map.objects[o].address.wrapping_add_signed(offset) == place)
        };
        if meanings.iter().any(|m| outdated(&m)) {
            // Another object lies at the same distance from there in both builds: only where the code reaches says which is meant.
            let kept = places.contains(&Some(place)) && !matches!(target, Target::Object(_, 0));
            let reached = self.touched(id, site).offset.map(|offset| site.target.wrapping_add_signed(offset));
            let inside = reached.is_some_and(|reached| new.map.object_at(reached) == Some(first.0));
            if kept && !inside {
                let name = new.map.objects[first.0].name();
                let message = format!("code adds an index to it; it may mean {name}{}, which changed", offset(first.1));
                return Err(Problem(Code::AmbiguousReference, message));
            }
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
}
