//! Data objects: those that the base has, those that are copied, and the fields that hold addresses.

use hp_pack::{Relocation, RelocationKind, SectionKind, SymbolKind};

use super::{Payload, Problem};
use crate::arch::Use;
use crate::correlate::numbered_stem;
use crate::entity::{ObjectId, Target};
use crate::finding::Code;
use crate::image::Word;
use crate::judge::{Judge, Verdict};

impl Payload<'_, '_> {
    pub(super) fn object(&mut self, p: ObjectId) -> Result<u32, Problem> {
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
            // The new build would copy it at start-up; to a process that runs, the library's own is the variable.
            return Ok(self.import_symbol(name, SymbolKind::Object));
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
    pub(super) fn equal_old_constant(&self, p: ObjectId) -> Option<ObjectId> {
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
    pub(super) fn fields(&mut self, address: u64, bytes: &[u8]) -> Vec<(u64, Word)> {
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
    pub(super) fn relocate_fields(
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
                Word::Symbol(name, addend) => (self.named(&name)?, addend),
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
    pub(super) fn relocate_distances(
        &mut self,
        section: SectionKind,
        at: u64,
        span: std::ops::Range<u64>,
    ) -> Result<(), Problem> {
        let new = self.new;
        for (field, distance) in new.map.distances.range(span.clone()) {
            let (symbol, offset) = self.bind_address(None, distance.target, Use::Address)?;
            let addend = offset + (field - distance.table) as i64;
            self.pc_relative(section, at + field - span.start, symbol, addend);
        }
        Ok(())
    }

    /// A symbol by the name that a dynamic relocation gives: of this image, or an import.
    pub(super) fn named(&mut self, name: &str) -> Result<u32, Problem> {
        let new = self.new;
        if let Some(g) = self.slots.global_function(new, name) {
            return Ok(self.function(g, Use::Address));
        }
        match self.slots.global_object(new, name) {
            Some(p) => self.object(p),
            None => Ok(self.import_symbol(name, SymbolKind::Other)),
        }
    }
}
