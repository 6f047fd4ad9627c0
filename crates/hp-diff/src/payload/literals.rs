//! Constants without a symbol: an equal one of the base, or a copy. Jump tables are written anew.

use hp_pack::{Relocation, RelocationKind, SectionKind, SymbolKind};

use super::{Bound, Payload, Problem};
use crate::arch::{JumpTable, Use};
use crate::build::Build;
use crate::entity::{FunctionId, Target};
use crate::finding::Code;
use crate::image::Word;
use crate::judge::Judge;

/// Literals that lead to one another.
const DEEPEST: usize = 16;
/// In place of a width: a copy together with what is behind it, because code reaches from there to here.
pub(super) const BLOCK: u32 = u32::MAX - 1;
/// The same, because code that reaches it may mean what is behind it.
pub(super) const AHEAD: u32 = u32::MAX - 2;

impl Payload<'_, '_> {
    /// Binds a literal: to an equal one of the old build, else to a copy.
    pub(super) fn literal(&mut self, within: Option<FunctionId>, address: u64, usage: Use) -> Result<Bound, Problem> {
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
    pub(super) fn addressed_literal(&mut self, within: Option<FunctionId>, address: u64) -> Result<Bound, Problem> {
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
        let end = parts.last().map_or(span.1, |p| p.1);
        if let Some(same) = self.same_in_base(within, address, end - address) {
            let symbol = self.base_symbol(&format!(".L{same:x}"), SymbolKind::Object, same, end - address);
            return Ok((symbol, 0));
        }
        for part in &parts {
            let bytes = new.image.bytes(part.0, part.1 - part.0).unwrap_or_default();
            if !is_string(new.map.literal(&new.image, part.0)) {
                self.check_copyable(within, part.0, bytes)?;
            }
        }
        let Some(bytes) = new.image.bytes(address, (end - address).max(1)) else {
            return Err(Problem(Code::UnknownReference, "it reaches beyond the constants".into()));
        };
        let align = parts.iter().map(|p| 1 << p.0.trailing_zeros().min(5)).max().unwrap_or(1);
        self.copy_literal(&parts, bytes, align, 0)
    }

    /// Where the base has a literal that leads to what this one does, if both are used at the same place: by an unchanged function, or
    /// by this one and its old self. What is equal by chance may be another one: it has an address of its own.
    fn same_in_base(&self, within: Option<FunctionId>, address: u64, size: u64) -> Option<u64> {
        let (old, new) = (self.old, self.new);
        // Which words are addresses, only the dynamic linker's relocations tell for certain.
        if old.image.fixed_address || new.image.fixed_address {
            return None;
        }
        let own = within.and_then(|g| self.pairs.functions.old_of(g)).into_iter();
        let sites = own.flat_map(|f| &old.code[f].ranges).flat_map(|c| c.sites.addresses()).map(|s| s.target);
        let is_same = |at: &u64| self.is_same((*at, address), size, &mut Vec::new());
        self.twins.of_new(address).map(|twins| twins.0).chain(sites).find(is_same)
    }

    /// Two literals with the same bytes, and all that they lead to, so far as it has no symbol either. `seen` are those that led
    /// here.
    fn is_same(&self, (a, b): (u64, u64), size: u64, seen: &mut Vec<(u64, u64)>) -> bool {
        let (old, new) = (self.old, self.new);
        let is_literal = |build: &Build<'_>, at| {
            build.map.resolve_address(&build.image, at, Use::Address) == Target::Literal
                && build.map.distances.range(at..at + size).next().is_none()
        };
        if seen.contains(&(a, b)) {
            return true;
        }
        if seen.len() >= DEEPEST || !is_literal(old, a) || !is_literal(new, b) || !self.judge.same_content(a, b, size) {
            return false;
        }
        seen.push((a, b));
        let words = old.image.words.range(a..a + size).zip(new.image.words.range(b..b + size));
        let same = words.map(|(v, w)| (v.1, w.1)).all(|words| {
            let (Word::Address(v), Word::Address(w)) = words else { return true };
            // The base's leads into the old code of a function.
            let is_label = old.map.function_at(*v).is_some_and(|(_, range, offset)| (range, offset) != (0, 0));
            let leads_on = old.map.resolve_address(&old.image, *v, Use::Address) == Target::Literal;
            let (x, y) = (old.map.literal_span(&old.image, *v), new.map.literal_span(&new.image, *w));
            let mut goes_on = || {
                x.1 - x.0 == y.1 - y.0
                    && !self.twins.in_doubt(&self.judge, x, y)
                    && self.is_same((*v, *w), x.1 - x.0, seen)
            };
            !is_label && (!leads_on || goes_on())
        });
        seen.pop();
        same
    }

    /// Copies literals of the new build that lie side by side. Each keeps its alignment.
    pub(super) fn copy_literal(
        &mut self,
        parts: &[(u64, u64)],
        bytes: &[u8],
        align: u64,
        width: u32,
    ) -> Result<Bound, Problem> {
        let address = parts[0].0;
        let fields = self.fields(address, bytes);
        let kind = if fields.is_empty() { SectionKind::Rodata } else { SectionKind::DataRelRo };
        let lead = if matches!(width, 0 | BLOCK | AHEAD) { address % align } else { 0 };
        let at = self.place(kind, align, &[&vec![0; lead as usize], bytes].concat()) + lead;
        // A part that has been copied before keeps its symbol there; here it belongs to the one before it.
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for part in parts {
            match pieces.last_mut() {
                Some(last) if self.literal_symbols.contains_key(&(part.0, width)) => last.1 = part.1,
                _ => pieces.push(*part),
            }
        }
        for (start, end) in pieces.iter().rev() {
            let name = format!(".LC{}", self.literal_symbols.len());
            let symbol = self.payload_symbol(&name, SymbolKind::Object, kind, at + start - address, end - start);
            self.literal_symbols.insert((*start, width), symbol);
        }
        let symbol = self.literal_symbols[&(address, width)];
        self.relocate_fields(kind, at, fields, false)?;
        self.relocate_distances(kind, at, address..address + bytes.len() as u64)?;
        Ok((symbol, 0))
    }

    /// Data that is not text may be a table whose entries count from where it lies: a jump
    /// table that was not recognised, or distances to strings. A copy of it would lead
    /// elsewhere. All of its entries lead somewhere; what lies behind the last one may be
    /// taken for a part of it.
    pub(super) fn check_copyable(&self, within: Option<FunctionId>, address: u64, bytes: &[u8]) -> Result<(), Problem> {
        let new = self.new;
        if new.map.distances.contains_key(&address) {
            return Ok(());
        }
        // A table has no pointers in it, and no entry that leads to the table itself.
        let filled = |at: u64| new.image.words.range(at.saturating_sub(7)..at + 4).next().is_some();
        let entries = bytes.chunks_exact(4).zip((address..).step_by(4)).take_while(|(_, at)| !filled(*at));
        let entries: Vec<i32> = entries.map(|(c, _)| i32::from_le_bytes(c.try_into().unwrap_or_default())).collect();
        if entries.first().is_none_or(|first| *first == 0) {
            return Ok(());
        }
        let leads_somewhere = |distance: &i32| {
            let target = address.wrapping_add_signed(i64::from(*distance));
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
        let used = || entries.iter().copied().filter(|e| *e != 0);
        let leading = used().take_while(leads_somewhere).count();
        let computed = within.is_some_and(|id| new.code[id].ranges.iter().any(|c| c.computed_jumps));
        if leading > 1 && (leading == used().count() || computed) {
            return Err(Problem(
                Code::UnknownReference,
                "it looks like a table of distances from its own place".into(),
            ));
        }
        Ok(())
    }

    pub(super) fn jump_table(&mut self, id: FunctionId, table: &JumpTable) -> u32 {
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
}

/// Text with a terminator.
fn is_string(content: &[u8]) -> bool {
    content.split_last().is_some_and(|(end, text)| *end == 0 && !text.contains(&0) && std::str::from_utf8(text).is_ok())
}
