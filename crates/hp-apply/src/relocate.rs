//! Making the bytes of a payload for the address at which it will lie (psABI for AMD64, 4.4).

use crate::addr::{Bias, LinkAddr, LiveAddr};
use crate::chooser;
use crate::failure::{Failure, refused};
use crate::finders;
use crate::gate;
use crate::layout::Layout;
use crate::ledger::HandsOut;
use crate::prelude::*;
use crate::small::Map;
use hp_pack::{Patch, Place, Relocation, RelocationKind, Role, SectionKind, Symbol};

/// Live addresses of the imports, by symbol.
#[derive(Clone, Debug, Default)]
pub(crate) struct Imports {
    /// What a call leads to, for symbols that are only called.
    pub(crate) calls: Map<u32, LiveAddr>,
    /// For all others: the address as the program sees it (a canonical PLT entry, a copied object).
    pub(crate) addresses: Map<u32, LiveAddr>,
    /// Resolvers of indirect functions that are only called and that the target has bound nowhere.
    pub(crate) resolvers: Map<u32, LiveAddr>,
}

/// All inputs that decide the bytes.
pub(crate) struct Payload<'a> {
    pub(crate) patch: &'a Patch,
    pub(crate) layout: &'a Layout,
    pub(crate) base: LiveAddr,
    pub(crate) bias: Bias,
    pub(crate) imports: &'a Imports,
    /// Variables that lie in older payloads, by symbol.
    pub(crate) inherited: &'a Map<u32, LiveAddr>,
    /// Where the finders pass on to.
    pub(crate) nexts: [LiveAddr; finders::COUNT],
    pub(crate) link_map: LiveAddr,
}

impl Payload<'_> {
    /// The whole mapping's content except the ledger, which is left zero.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Failure> {
        let mut image = vec![0u8; self.layout.size as usize];
        for section in &self.patch.sections {
            let (offset, _) = self.layout.section(section.kind);
            put(&mut image, offset, &section.data)?;
        }
        for (symbol, offset) in self.layout.slots() {
            // Where the address is needed as such it serves for calls as well.
            let known = self.imports.addresses.get(&symbol).or_else(|| self.imports.calls.get(&symbol));
            let value = match (known, self.imports.resolvers.get(&symbol)) {
                (Some(&value), _) => value,
                (None, Some(_)) => self.own(self.layout.chooser(symbol))?,
                (None, None) => self.value(symbol)?,
            };
            put(&mut image, offset, &value.0.to_le_bytes())?;
        }
        self.put_choosers(&mut image)?;
        for (symbol, offset) in self.layout.stubs() {
            let slot = self.layout.slot(symbol).ok_or_else(inconsistent)?;
            let distance = slot.wrapping_sub(offset + 6) as i64;
            let distance = i32::try_from(distance).map_err(|_| inconsistent())?;
            let mut code = vec![0xff, 0x25];
            code.extend(distance.to_le_bytes());
            code.extend([0xcc, 0xcc]);
            put(&mut image, offset, &code)?;
        }
        for (index, thunk) in self.thunks().enumerate() {
            let offset = self.layout.gates.0 + index as u64 * gate::GATE_SIZE;
            let code = gate::code(self.base.plus(offset), thunk?).ok_or_else(inconsistent)?;
            put(&mut image, offset, &code)?;
        }
        for relocation in &self.patch.relocations {
            let (section, size) = self.layout.section(relocation.section);
            if relocation.offset.checked_add(relocation.kind.width()).is_none_or(|end| end > size) {
                return Err(inconsistent());
            }
            let offset = section + relocation.offset;
            put(&mut image, offset, &self.field(relocation, self.base.plus(offset))?)?;
        }
        self.put_finders(&mut image)?;
        Ok(image)
    }

    /// Choosers for the indirect functions that the target has not bound.
    fn put_choosers(&self, image: &mut [u8]) -> Result<(), Failure> {
        let common = self.layout.choosers_common;
        if self.imports.resolvers.iter().next().is_some() {
            put(image, common, &chooser::common())?;
        }
        for (symbol, offset) in self.layout.choosers() {
            let Some(&resolver) = self.imports.resolvers.get(&symbol) else { continue };
            let code = chooser::code(self.base.plus(offset), resolver, self.base.plus(common));
            put(image, offset, &code.ok_or_else(inconsistent)?)?;
        }
        Ok(())
    }

    /// The finders and what they show, made from the relocated rows.
    fn put_finders(&self, image: &mut [u8]) -> Result<(), Failure> {
        let layout = self.layout;
        let part = |(start, end): (u64, u64)| self.base.plus(start).range(end - start);
        let content = finders::Content {
            mapping: self.base.range(layout.size),
            code: part(layout.code),
            finders: part(layout.finders).start,
            nexts: part(layout.nexts).start,
            index: part(layout.index).start,
            rows: part(layout.finder_rows).start,
            link_map: self.link_map,
        };
        put(image, layout.finders.0, &content.code().ok_or_else(inconsistent)?)?;
        for (index, next) in self.nexts.iter().enumerate() {
            put(image, layout.nexts.0 + 8 * index as u64, &next.0.to_le_bytes())?;
        }
        put(image, layout.finder_rows.0, &content.rows().ok_or_else(inconsistent)?)?;
        let end = match layout.section(SectionKind::EhFrame) {
            (_, 0) => layout.finder_rows.1,
            (start, size) => start + size,
        };
        let rows = image.get(layout.finder_rows.0 as usize..end as usize).ok_or_else(inconsistent)?;
        let index = content.index(rows).ok_or_else(inconsistent)?;
        if index.len() as u64 != layout.index.1 - layout.index.0 {
            return Err(inconsistent());
        }
        put(image, layout.index.0, &index)
    }

    /// `S`: where a symbol lies.
    pub(crate) fn value(&self, symbol: u32) -> Result<LiveAddr, Failure> {
        let found = self.patch.symbols.get(symbol as usize).ok_or_else(inconsistent)?;
        match found.place {
            Place::Base => Ok(self.bias.live(LinkAddr(found.value))),
            Place::Payload(_) if self.inherited.get(&symbol).is_some() => {
                self.inherited.get(&symbol).copied().ok_or_else(inconsistent)
            }
            Place::Payload(kind) => Ok(self.base.plus(self.layout.section(kind).0).plus(found.value)),
            Place::Import => self.imports.addresses.get(&symbol).copied().ok_or_else(inconsistent),
        }
    }

    fn thunks(&self) -> impl Iterator<Item = Result<LiveAddr, Failure>> + '_ {
        self.patch.functions.iter().filter_map(|record| match &record.role {
            Role::Entry(entry) => Some(self.value(entry.thunk_symbol)),
            Role::Fragment(_) => None,
        })
    }

    fn field(&self, relocation: &Relocation, place: LiveAddr) -> Result<Vec<u8>, Failure> {
        let target = match relocation.kind {
            RelocationKind::GotPcRel => self.own(self.layout.slot(relocation.symbol))?,
            RelocationKind::Plt32 => match self.layout.stub(relocation.symbol) {
                Some(stub) => self.own(Some(stub))?,
                None => self.value(relocation.symbol)?,
            },
            _ => self.value(relocation.symbol)?,
        };
        let absolute = target.0.wrapping_add(relocation.addend as u64);
        let relative = absolute.wrapping_sub(place.0) as i64;
        let overflow = || self.overflow(relocation);
        Ok(match relocation.kind {
            RelocationKind::Abs64 => absolute.to_le_bytes().to_vec(),
            RelocationKind::Pc64 => relative.to_le_bytes().to_vec(),
            RelocationKind::Pc32 | RelocationKind::Plt32 | RelocationKind::GotPcRel => {
                i32::try_from(relative).map_err(|_| overflow())?.to_le_bytes().to_vec()
            }
            RelocationKind::Abs32 => u32::try_from(absolute).map_err(|_| overflow())?.to_le_bytes().to_vec(),
            RelocationKind::Abs32Signed => {
                i32::try_from(absolute as i64).map_err(|_| overflow())?.to_le_bytes().to_vec()
            }
        })
    }

    fn own(&self, offset: Option<u64>) -> Result<LiveAddr, Failure> {
        offset.map(|offset| self.base.plus(offset)).ok_or_else(inconsistent)
    }

    fn overflow(&self, relocation: &Relocation) -> Failure {
        let name = self.patch.symbols.get(relocation.symbol as usize).map_or("?", |symbol| symbol.name.as_str());
        let (kind, section, offset) = (relocation.kind, relocation.section.name(), relocation.offset);
        refused(format_args!("{section}+{offset:#x}: {kind:?} cannot reach {name} from where the patch would lie"))
    }
}

/// Of what the payload makes addresses, other than for a call, a jump, a load or a store.
pub(crate) fn hands_out(patch: &Patch) -> HandsOut {
    let mut out = HandsOut::default();
    for relocation in &patch.relocations {
        // Unwind rows and exception tables are read in place; thunks jump, and look at the state byte.
        if matches!(relocation.section, SectionKind::EhFrame | SectionKind::ExceptTable | SectionKind::Thunks) {
            continue;
        }
        let Some(symbol) = patch.symbols.get(relocation.symbol as usize) else { continue };
        match symbol.place {
            Place::Payload(SectionKind::Text | SectionKind::Thunks) => {
                out.code |= !is_branch(patch, relocation) && !is_label(patch, relocation, symbol);
            }
            Place::Payload(SectionKind::Data | SectionKind::Bss) => out.variables |= !is_access(patch, relocation),
            Place::Payload(_) => out.constants |= !is_access(patch, relocation),
            Place::Base | Place::Import => {}
        }
    }
    out
}

/// The two bytes before a relocated field of an instruction; zeros before the section.
fn before(patch: &Patch, relocation: &Relocation) -> Option<[u8; 2]> {
    let data = &patch.section(SectionKind::Text)?.data;
    let byte = |distance| Some(*data.get(usize::try_from(relocation.offset.checked_sub(distance)?).ok()?)?);
    Some([byte(2).unwrap_or(0), byte(1)?])
}

/// Whether the field is an entry of a table of places inside functions (`switch`, computed
/// `goto`): only the function itself can use those, so they do not outlive its frames.
fn is_label(patch: &Patch, relocation: &Relocation, symbol: &Symbol) -> bool {
    let base = match relocation.kind {
        RelocationKind::Abs64 => Some(0),
        // Counted from the start of the table.
        RelocationKind::Pc32 => patch.symbols.iter().find_map(|table| {
            let inside = table.place == Place::Payload(relocation.section)
                && relocation.offset.checked_sub(table.value).is_some_and(|offset| offset < table.size);
            inside.then(|| relocation.offset - table.value)
        }),
        _ => None,
    };
    let tables = matches!(relocation.section, SectionKind::Rodata | SectionKind::DataRelRo);
    let (true, Some(base)) = (tables, base) else { return false };
    let target = symbol.value.wrapping_add(relocation.addend as u64).wrapping_sub(base);
    let code = |symbol: &&Symbol| matches!(symbol.place, Place::Payload(SectionKind::Text | SectionKind::Thunks));
    !patch.symbols.iter().filter(code).any(|start| start.value == target)
}

/// Whether the relocated field is the displacement of an operand in memory that the
/// instruction loads or stores, rather than takes the address of (`8d`, `lea`).
fn is_access(patch: &Patch, relocation: &Relocation) -> bool {
    if relocation.kind != RelocationKind::Pc32 || relocation.section != SectionKind::Text {
        return false;
    }
    // A ModRM byte of a RIP-relative operand has the form 00rrr101.
    before(patch, relocation).is_some_and(|[opcode, modrm]| modrm & 0xc7 == 0x05 && opcode != 0x8d)
}

/// Whether the relocated field leads a call or jump to a slot: `ff 15` or `ff 25` before it.
pub(crate) fn goes_through_slot(patch: &Patch, relocation: &Relocation) -> bool {
    let slot = relocation.kind == RelocationKind::GotPcRel && relocation.section == SectionKind::Text;
    slot && matches!(before(patch, relocation), Some([0xff, 0x15 | 0x25]))
}

/// Whether the relocated field belongs to a direct call or jump: `e8`, `e9` or `0f 80`-`0f 8f` before it.
fn is_branch(patch: &Patch, relocation: &Relocation) -> bool {
    if !matches!(relocation.kind, RelocationKind::Pc32 | RelocationKind::Plt32)
        || relocation.section != SectionKind::Text
    {
        return false;
    }
    // A ModRM byte of a RIP-relative operand has the form 00rrr101, so it is none of these.
    matches!(before(patch, relocation), Some([_, 0xe8 | 0xe9] | [0x0f, 0x80..=0x8f]))
}

fn put(image: &mut [u8], offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    let start = usize::try_from(offset).map_err(|_| inconsistent())?;
    let end = start.checked_add(bytes.len()).ok_or_else(inconsistent)?;
    image.get_mut(start..end).ok_or_else(inconsistent)?.copy_from_slice(bytes);
    Ok(())
}

fn inconsistent() -> Failure {
    refused(format_args!("the patch is inconsistent: a reference leads nowhere"))
}
