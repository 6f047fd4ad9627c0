//! Islands: a short branch to a neighbour cannot reach it from the payload, but it reaches a jump beside its own range,
//! which goes on to any distance.

use hp_pack::{Relocation, RelocationKind, SectionKind, SymbolKind};

use super::{ISLAND, Payload, Problem, stays_inside};
use crate::arch::{Site, Sites};
use crate::entity::{CodeRange, FunctionId, Map, Target};
use crate::finding::Code;

impl Payload<'_, '_> {
    /// Writes the islands of range `range` of a function, which lies at `start..end` of `.text`: a short branch
    /// to a neighbour cannot reach it from the payload, but it reaches an island beside
    /// its own range, which jumps on.
    pub(super) fn place_islands(
        &mut self,
        (id, range): (FunctionId, usize),
        islands: &[Site],
        (start, end): (u64, u64),
    ) {
        let (mut before, mut behind) = (start, end);
        for site in islands {
            let forward = site.target >= self.new.map.functions[id].ranges[range].address;
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
    pub(super) fn relocate_islands(&mut self, id: FunctionId) {
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
}

/// The short branches of a range that leave it.
pub(super) fn islands(map: &Map<'_>, sites: &Sites, range: &CodeRange<'_>) -> Vec<Site> {
    sites.iter().filter(|s| s.width == 1 && !stays_inside(map, s, range)).collect()
}
