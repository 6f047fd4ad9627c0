//! Unwind rows and exception tables of the payload.
//!
//! Rows of a new function are the NEW build's. A function with landing pads gets its exception
//! table written anew: call sites and actions as they are, types by what they lead to. The
//! runtime that reads the table finds types and the personality routine through slots: those
//! of the base where it has them, else slots that the applier makes.

use hp_pack::{Relocation, RelocationKind, SectionKind, SymbolKind};

use super::{ISLAND, Payload, Problem};
use crate::arch::Site;
use crate::entity::FunctionId;
use crate::finding::{Code, Finding, Level};
use crate::image::Word;
use crate::lsda::{self, CallSite, Landings, Lsda};
use crate::unwind::{self, Fde, Pointer, Row, Rows, Writer};

/// A field that leads to a slot: how, and by which symbol.
type Slot = (RelocationKind, u32);

/// An exception table in the payload: its symbol, and the slot of the personality.
pub(crate) struct Table {
    symbol: u32,
    personality: Slot,
}

impl Payload<'_, '_> {
    /// Writes the unwind rows of every payload function. What the new build has without rows has none in the patch, but a
    /// function that had some must not lose them: exceptions and walks of stacks go through it.
    pub(crate) fn unwind_rows(&mut self, (before, rows): (&Rows<'_>, &Rows<'_>), writer: &mut Writer) {
        for (id, symbols) in self.functions.clone() {
            let function = &self.new.map.functions[id];
            for (i, symbol) in symbols.iter().enumerate() {
                let Some(fde) = rows.at(function.ranges[i].address) else {
                    let message = format!("the new build has none at {:#x}", function.ranges[i].address);
                    let old_self = self.pairs.functions.old_of(id).map(|f| &self.old.map.functions[f]);
                    let had = old_self.is_some_and(|f| f.ranges.iter().any(|r| before.at(r.address).is_some()));
                    let finding = Finding::new(Code::NoUnwindRows, function.qualified_name(), message);
                    self.findings.push(if had { Finding { level: Level::Error, ..finding } } else { finding });
                    continue;
                };
                match self.table_of_function(id, i) {
                    Ok(table) => self.rows(writer, *symbol, fde, fde.size, fde.instructions, table.as_ref()),
                    Err(Problem(code, why)) => self.finding(code, function.qualified_name(), why),
                }
            }
            self.island_rows(id, rows, writer);
            self.slot_island_rows(id, rows, writer);
        }
    }

    /// An island has the row of the branch that it serves.
    fn island_rows(&mut self, id: FunctionId, rows: &Rows<'_>, writer: &mut Writer) {
        let new = self.new;
        let function = &new.map.functions[id];
        for (_, symbol, site) in self.islands.clone().into_iter().filter(|i| i.0 == id) {
            let serves = |s: Site| (s.instruction, s.offset, s.target) == (site.instruction, site.offset, site.target);
            let range = new.code[id].ranges.iter().position(|c| c.sites.iter().any(serves)).unwrap_or(0);
            let Some(fde) = rows.at(function.ranges[range].address) else { continue };
            match unwind::row_at(fde, u64::from(site.instruction)) {
                Some(instructions) => self.rows(writer, symbol, fde, ISLAND, &instructions, None),
                None => {
                    let message = "a short branch leaves it where its unwind rows are of an unusual kind";
                    let finding = Finding::new(Code::NoUnwindRows, function.qualified_name(), message);
                    self.findings.push(Finding { level: Level::Error, ..finding });
                }
            }
        }
    }

    /// Writes the rows of one range of payload code.
    pub(crate) fn rows(
        &mut self,
        writer: &mut Writer,
        code: u32,
        fde: &Fde<'_>,
        size: u64,
        instructions: &[u8],
        table: Option<&Table>,
    ) {
        let personality = table.map(|t| t.personality.1);
        let fields = writer.add(&Row { cie: &fde.cie, size, instructions, personality });
        self.pc_relative(SectionKind::EhFrame, fields.start, code, 0);
        if let (Some(table), Some(field)) = (table, fields.lsda) {
            self.pc_relative(SectionKind::EhFrame, field, table.symbol, 0);
            if let Some(field) = fields.personality {
                self.slot_field(SectionKind::EhFrame, field, table.personality);
            }
        }
    }

    fn slot_field(&mut self, section: SectionKind, offset: u64, (kind, symbol): Slot) {
        self.relocations.push(Relocation { section, offset, kind, symbol, addend: 0 });
    }

    /// The exception table of a range of a new function, if it has one.
    fn table_of_function(&mut self, id: FunctionId, range: usize) -> Result<Option<Table>, Problem> {
        let new = self.new;
        let function = &new.map.functions[id];
        let start = function.ranges[range].address;
        let table = match new.landing.get(&start) {
            None => return Ok(None),
            Some(Ok(table)) => table,
            Some(Err(why)) => return Err(Problem(Code::Exceptions, format!("at {start:#x} of the new build {why}"))),
        };
        let Some((to, first)) = landing_range(table, |a| {
            new.map.function_at(a).filter(|f| f.0 == id).map(|(_, range, offset)| (range, offset))
        })?
        else {
            return self.table(&table.sites, table, None, function.name()).map(Some);
        };
        let base = function.ranges[to].address;
        let sites = |from: u64| -> Vec<CallSite> {
            let relative = |s: &CallSite| CallSite { landing: s.landing.map(|a| a - from), ..s.clone() };
            table.sites.iter().map(relative).collect()
        };
        if to == range && first > 0 {
            return self.table(&sites(base), table, None, function.name()).map(Some);
        }
        // A distance of zero means that there is no landing pad: so they count from the byte before.
        let symbol = self.function_symbols[&id][to];
        self.table(&sites(base - 1), table, Some((symbol, -1)), function.name()).map(Some)
    }

    /// The exception table of the thunk of an old function: calls that the thunk repeats have
    /// the landing pads of the old function. `sites` are those calls.
    pub(crate) fn table_of_thunk(
        &mut self,
        table: &Lsda,
        sites: &[CallSite],
        old_code: (u64, u32),
        name: &str,
    ) -> Result<Option<Table>, Problem> {
        let (base, symbol) = old_code;
        let mut relative = Vec::new();
        for site in sites {
            let landing = match site.landing {
                Some(address) => {
                    let distance = address.checked_sub(base).and_then(|d| d.checked_add(1));
                    Some(distance.ok_or_else(|| unknown("a landing pad before the function"))?)
                }
                None => None,
            };
            relative.push(CallSite { landing, ..site.clone() });
        }
        self.table(&relative, table, Some((symbol, -1)), &format!("{name}.thunk")).map(Some)
    }

    /// Writes a table into the payload. `base`: where its landing pads count from, if not from its own code.
    fn table(
        &mut self,
        sites: &[CallSite],
        types: &Lsda,
        base: Option<(u32, i64)>,
        name: &str,
    ) -> Result<Table, Problem> {
        let is_old = self.old.landing.values().any(|t| t.as_ref().is_ok_and(|t| std::ptr::eq(t, types)));
        let personality = types.personality.ok_or_else(|| unknown("an exception table without a personality"))?;
        let personality = self.slot(personality, is_old)?;
        let landings = if base.is_some() { Landings::Elsewhere } else { Landings::Own };
        let written = Lsda::write(sites, landings);
        let at = self.place(SectionKind::ExceptTable, 4, &written.bytes);
        let size = written.bytes.len() as u64;
        let name = format!("{name}.lsda");
        let symbol = self.payload_symbol(&name, SymbolKind::Object, SectionKind::ExceptTable, at, size);
        if let (Some(field), Some((code, offset))) = (written.landing_base, base) {
            // The distance is counted from its own field.
            self.pc_relative(SectionKind::ExceptTable, at + field, code, offset);
        }
        for (field, number) in written.types {
            // A number that no action has stays zero.
            if let Some(Some(pointer)) = types.types.get(&number) {
                let slot = self.slot(*pointer, is_old)?;
                self.slot_field(SectionKind::ExceptTable, at + field, slot);
            }
        }
        Ok(Table { symbol, personality })
    }

    /// A slot that holds what a pointer of the old or of the new build leads to.
    fn slot(&mut self, pointer: Pointer, of_old: bool) -> Result<Slot, Problem> {
        let (old, new) = (self.old, self.new);
        if of_old {
            return match lsda::meaning(&old.image, pointer) {
                Some(_) if pointer.indirect => Ok((RelocationKind::Pc32, self.old_word(pointer.address))),
                Some(Word::Address(a)) => {
                    let (symbol, offset) = crate::detour::base_place(self, old, a);
                    let exact = (offset == 0).then_some((RelocationKind::GotPcRel, symbol));
                    exact.ok_or_else(|| unknown("a type in the middle of something"))
                }
                _ => Err(unknown("a type that nothing identifies")),
            };
        }
        let word = lsda::meaning(&new.image, pointer).ok_or_else(|| unknown("a type that nothing identifies"))?;
        if let Some(known) = self.exception_slots().get(&word).copied() {
            return Ok((RelocationKind::Pc32, self.old_word(known)));
        }
        let symbol = match &word {
            Word::Symbol(name, 0) => self.named(name)?,
            Word::Address(a) => match new.image.words.get(a) {
                // Copied at start-up; a running process may have no such copy, but what it is a copy of.
                Some(Word::Copy(name)) if !self.is_paired(*a) => self.import_symbol(name, SymbolKind::Object),
                _ => {
                    let (symbol, offset) = self.bind_exactly(*a)?;
                    (offset == 0).then_some(symbol).ok_or_else(|| unknown("a type in the middle of something"))?
                }
            },
            _ => return Err(unknown("a type that is made at start-up")),
        };
        Ok((RelocationKind::GotPcRel, symbol))
    }

    fn is_paired(&self, address: u64) -> bool {
        self.new.map.object_at(address).is_some_and(|p| self.pairs.objects.old_of(p).is_some())
    }

    /// A symbol for a word of the base that its exception tables read.
    fn old_word(&mut self, address: u64) -> u32 {
        let old = self.old;
        let name = match old.map.object_at(address).map(|o| &old.map.objects[o]) {
            Some(object) if !object.unnamed && object.address == address => object.name().to_owned(),
            _ => format!(".L{address:x}"),
        };
        self.base_symbol(&name, SymbolKind::Object, address, 8)
    }

    /// The slots by which exception tables of the old build find imported types and personalities.
    fn exception_slots(&mut self) -> &rustc_hash::FxHashMap<Word, u64> {
        let old = self.old;
        self.exception_slots.get_or_insert_with(|| {
            let rows = Rows::read(&old.image);
            let routines = rows.iter().filter(|(_, fde)| fde.lsda.is_some()).filter_map(|(_, fde)| fde.cie.personality);
            let types = old.landing.values().filter_map(|t| t.as_ref().ok()).flat_map(|t| t.types.values().flatten());
            let mut pointers: Vec<Pointer> = routines.chain(types.copied()).filter(|p| p.indirect).collect();
            pointers.sort_unstable();
            let mut slots = rustc_hash::FxHashMap::default();
            for pointer in pointers {
                if let Some(word @ Word::Symbol(..)) = old.image.words.get(&pointer.address) {
                    slots.entry(word.clone()).or_insert(pointer.address);
                }
            }
            slots
        })
    }
}

fn unknown(what: &str) -> Problem {
    Problem(Code::Exceptions, format!("its exception table names {what}"))
}

/// The range in which all landing pads lie, and the least offset; `None` if there are none.
fn landing_range(table: &Lsda, place: impl Fn(u64) -> Option<(usize, u64)>) -> Result<Option<(usize, u64)>, Problem> {
    let mut found: Option<(usize, u64)> = None;
    for address in table.sites.iter().filter_map(|s| s.landing) {
        let (range, offset) = place(address).ok_or_else(|| unknown("a landing pad outside of the function"))?;
        match found {
            Some((other, _)) if other != range => return Err(unknown("landing pads in several places")),
            Some((_, least)) => found = Some((range, least.min(offset))),
            None => found = Some((range, offset)),
        }
    }
    Ok(found)
}
