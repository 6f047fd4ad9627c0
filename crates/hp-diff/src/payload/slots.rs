//! Slots of the global offset table, and stubs of the PLT: the base's where it has one, else one that the applier makes.

use hp_pack::SymbolKind;

use super::{Bind, Bound, Payload, Problem};
use crate::arch::{Site, Use};
use crate::finding::Code;
use crate::image::Word;
use crate::judge::{Judge, Verdict};

impl Payload<'_, '_> {
    /// Binds a use of a PLT stub or a GOT slot.
    pub(super) fn bind_slot(&mut self, word: &Word, site: &Site) -> Result<Bind, Problem> {
        let new = self.new;
        let stub = site.usage == Use::Branch || new.image.stubs.contains_key(&site.target);
        if let Word::Symbol(name, 0) = word
            && stub
            && self.becomes_canonical(name, site.usage)
        {
            return Ok(Bind::direct((self.named(name)?, 0)));
        }
        if let Some(bound) = self.old_slot(word, site.target, stub) {
            return Ok(Bind::direct(bound));
        }
        match word {
            Word::Symbol(name, 0) => {
                // What the base exports another module may have put its own in the place of.
                let symbol = match self.old.image.exported.contains(name.as_str()) {
                    true => self.import_symbol(name, SymbolKind::Other),
                    false => self.named(name)?,
                };
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

    pub(super) fn bind_slot_address(&mut self, word: &Word, stub: bool) -> Result<Bound, Problem> {
        if let Word::Symbol(name, 0) = word
            && stub
            && self.becomes_canonical(name, Use::Address)
        {
            return Ok((self.named(name)?, 0));
        }
        self.old_slot(word, 0, stub).ok_or_else(|| Problem(Code::NewSlot, "the old build has no such slot".into()))
    }

    /// The old build's stub or slot for the same word.
    pub(super) fn old_slot(&mut self, word: &Word, address: u64, stub: bool) -> Option<Bound> {
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
}
