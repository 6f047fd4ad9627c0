//! Things of libraries whose address the new build has in its instructions: a variable that it copies at start-up
//! (`R_X86_64_COPY`), or a function that it has a canonical PLT entry for. A running process may have neither; there the
//! library's own is the thing, and a slot holds its address.

use hp_pack::{Relocation, RelocationKind, SectionKind, SymbolKind};

use super::{Bound, Payload, Problem};
use crate::arch::{self, Site, Use};
use crate::entity::FunctionId;
use crate::finding::{Code, Finding, Level};
use crate::unwind::{self, Rows, Writer};

/// Code that stands for an instruction of a function.
#[derive(Clone, Debug)]
pub(super) struct Island {
    function: FunctionId,
    range: usize,
    /// Offsets of the instruction and of the next one.
    instruction: (u64, u64),
    symbol: u32,
    size: u64,
    lowered: Vec<(u32, u32)>,
}

impl Payload<'_, '_> {
    /// Makes the instruction of `site` reach an import through a slot. `code` is the symbol of the range that it is in.
    pub(super) fn through_slot(
        &mut self,
        (id, range): (FunctionId, usize),
        code: u32,
        site: &Site,
        (import, offset): Bound,
    ) -> Result<(), Problem> {
        let new = self.new;
        let function = &new.map.functions[id];
        let kind = match self.symbols[import as usize].kind {
            SymbolKind::Object => Code::CopiedVariable,
            _ => Code::NewSlot,
        };
        let no_form = || Problem(kind, "the instruction has no form that reads its address from a slot".into());
        let fields = new.code[id].ranges[range].sites.iter().filter(|s| s.instruction == site.instruction);
        let offset = i32::try_from(offset).ok().filter(|_| fields.count() == 1).ok_or_else(no_form)?;
        let made = arch::through_slot(function.ranges[range].bytes, site, offset).ok_or_else(no_form)?;
        let start = self.symbols[code as usize].value;
        let (at, next) = (start + u64::from(site.instruction), start + u64::from(site.end));
        self.overwrite(at, &made.bytes);
        if let Some(field) = made.slot {
            self.slot_distance(at + field as u64, import);
        }
        let Some(island) = made.island else { return Ok(()) };
        let size = island.code.len() as u64;
        let to = self.place(SectionKind::Text, 1, &island.code);
        self.slot_distance(to + island.slot as u64, import);
        self.jump(at, to)?;
        self.jump(to + size - 5, next)?;
        let name = format!("{}.slot{}", function.name(), self.slot_islands.len());
        let symbol = self.payload_symbol(&name, SymbolKind::Function, SectionKind::Text, to, size);
        let instruction = (u64::from(site.instruction), u64::from(site.end));
        self.slot_islands.push(Island { function: id, range, instruction, symbol, size, lowered: island.lowered });
        Ok(())
    }

    /// The stub of an imported function is the function's address for the whole process in the new build, and not in the old one.
    pub(super) fn becomes_canonical(&self, name: &str, usage: Use) -> bool {
        let (old, new) = (&self.old.image, &self.new.image);
        usage != Use::Branch && new.canonical.contains(name) && !old.canonical.contains(name)
    }

    /// Unwind rows of the islands of a function.
    pub(super) fn slot_island_rows(&mut self, id: FunctionId, rows: &Rows<'_>, writer: &mut Writer) {
        let new = self.new;
        let function = &new.map.functions[id];
        let mine: Vec<Island> = self.slot_islands.iter().filter(|i| i.function == id).cloned().collect();
        for island in mine {
            let Some(fde) = rows.at(function.ranges[island.range].address) else { continue };
            match unwind::lowered_rows(fde, island.instruction, &island.lowered) {
                Some(instructions) => self.rows(writer, island.symbol, fde, island.size, &instructions, None),
                None => {
                    let at = function.ranges[island.range].address + island.instruction.0;
                    let message = format!(
                        "the instruction at {at:#x} of the new build refers to a library's, and its unwind rows are of an unusual kind"
                    );
                    let finding = Finding::new(Code::NoUnwindRows, function.qualified_name(), message);
                    self.findings.push(Finding { level: Level::Error, ..finding });
                }
            }
        }
    }

    fn slot_distance(&mut self, offset: u64, symbol: u32) {
        let (section, kind) = (SectionKind::Text, RelocationKind::GotPcRel);
        self.relocations.push(Relocation { section, offset, kind, symbol, addend: -4 });
    }

    /// Fills in the distance of the jump at an offset of `.text`.
    fn jump(&mut self, at: u64, to: u64) -> Result<(), Problem> {
        let distance = i32::try_from(to as i64 - (at as i64 + 5));
        let distance =
            distance.map_err(|_| Problem(Code::NewSlot, "the patch is too large for a jump in it".into()))?;
        self.overwrite(at + 1, &distance.to_le_bytes());
        Ok(())
    }

    fn overwrite(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(text) = self.sections.get_mut(&SectionKind::Text) {
            text.data[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        }
    }
}
