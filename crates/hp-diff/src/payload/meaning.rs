//! What an address means, and what the patch has in its place: a symbol of the base, or one of its own. An address that
//! may mean two things which the old build has apart is a finding.

use hp_pack::SymbolKind;

use super::{Bound, Payload, Problem};
use crate::arch::Use;
use crate::describe::offset;
use crate::entity::{FunctionId, ObjectId, Target};
use crate::finding::Code;
use crate::judge::{Judge, Verdict};
use crate::usage::{is_limit, means_two, uses};

impl Payload<'_, '_> {
    /// Binds an address by what it leads to. `within` is the function that uses it.
    pub(super) fn bind_address(
        &mut self,
        within: Option<FunctionId>,
        address: u64,
        usage: Use,
    ) -> Result<Bound, Problem> {
        let (old, new) = (self.old, self.new);
        if address == 0 && new.image.section_at(0).is_none() {
            // A weak symbol that the linker found nowhere: code asks for it before it goes there.
            return Ok((self.base_symbol("", SymbolKind::Other, 0, 0), 0));
        }
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
    pub(super) fn end_of_object(
        &mut self,
        within: Option<FunctionId>,
        address: u64,
        usage: Use,
    ) -> Result<Option<Bound>, Problem> {
        let (old, new) = (self.old, self.new);
        let table = new.map.is_table_of_distances(address);
        let is_end = |p: &ObjectId| usage == Use::Address && !table && !new.map.objects[*p].is_runtime_record();
        let ending = new.map.ending_at(address).filter(is_end);
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
    pub(super) fn bind_exactly(&mut self, address: u64) -> Result<Bound, Problem> {
        match self.new.map.object_at(address) {
            Some(p) => {
                let offset = address - self.new.map.objects[p].address;
                Ok((self.object(p)?, offset as i64))
            }
            None => self.bind_address(None, address, Use::Address),
        }
    }

    pub(super) fn function(&mut self, g: FunctionId, usage: Use) -> u32 {
        let new_function = &self.new.map.functions[g];
        match self.pairs.functions.old_of(g).or_else(|| self.pairs.copies.old_of(g)) {
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
    pub(super) fn meaning(
        &self,
        within: Option<FunctionId>,
        chosen: (ObjectId, i64),
        address: u64,
    ) -> Result<(ObjectId, i64), Problem> {
        let (old, new) = (self.old, self.new);
        // A constant that changed has no place in the base any more: the patch has it.
        let old_address = |(p, offset): (ObjectId, i64)| {
            let kept = self.pairs.objects.old_of(p).filter(|o| !self.changes.constants.contains(o));
            kept.map(|o| old.map.objects[o].address.wrapping_add_signed(offset))
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
        // Which of its instructions means which, an address does not say.
        if within.is_some_and(|g| means_two(new, g, address)) {
            let name = new.map.objects[other.0].name();
            let message = format!("it means {name}{} at one place and not at another", offset(other.1));
            return Err(Problem(Code::AmbiguousReference, message));
        }
        // The patch has one of the two, and the base the other: the function may have both ends of an array, or hand it on with the next one.
        let in_patch = |m: &(ObjectId, i64)| old_address(*m).is_none() && self.pairs.objects.old_of(m.0).is_some();
        let ends_here =
            |m: &&(ObjectId, i64)| m.1 > 0 && within.is_some_and(|g| uses(new, g, m.0) && !is_limit(new, g, address));
        let apart = meanings.iter().any(in_patch);
        if let Some(end) = meanings.iter().filter(|m| apart && chosen.1 == 0 && m.0 != chosen.0).find(ends_here) {
            let name = new.map.objects[end.0].name();
            let message = format!("it may also mean the end of {name}, and only one of the two changed");
            return Err(Problem(Code::AmbiguousReference, message));
        }
        let old_self = within.and_then(|id| self.pairs.functions.old_of(id));
        let meant_before: Vec<(ObjectId, i64)> = old_self.map_or_else(Vec::new, |f| {
            let sites = old.code[f].ranges.iter().flat_map(|c| &c.sites).filter(|s| s.usage == Use::Address);
            sites.flat_map(|s| old.map.candidates(s.target)).collect()
        });
        // An end or a place before a start may be meant by chance: where another object begins in the new build, if no loop
        // ends with it, and where the function does not use the object otherwise.
        let begins = || chosen.1 == 0 && !within.is_some_and(|g| is_limit(new, g, address));
        let is_sure = |(p, offset): (ObjectId, i64), o: ObjectId| {
            let inside = u64::try_from(offset).is_ok_and(|offset| offset < new.map.objects[p].size);
            let used = || within.is_some_and(|g| uses(new, g, p)) && old_self.is_some_and(|f| uses(old, f, o));
            inside || used() && !begins()
        };
        let is_common = |m: &&(ObjectId, i64)| {
            let before = self.pairs.objects.old_of(m.0);
            before.is_some_and(|o| meant_before.contains(&(o, m.1)) && is_sure(**m, o))
        };
        let mut common = meanings.iter().filter(is_common);
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
            format!("it may also mean {}{}, which the old build has elsewhere", object.name(), offset(other.1)),
        ))
    }
}
