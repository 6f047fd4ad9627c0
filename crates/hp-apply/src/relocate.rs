//! Making the bytes of a payload for the address at which it will lie (psABI for AMD64, 4.4).

use crate::Error;
use crate::addr::{Bias, LinkAddr, LiveAddr};
use crate::gate;
use crate::layout::Layout;
use hp_pack::{Patch, Place, Relocation, RelocationKind, Role, SectionKind};
use std::collections::BTreeMap;

/// Live addresses of the imports, by symbol.
#[derive(Clone, Debug, Default)]
pub(crate) struct Imports {
    /// What a call leads to, for symbols that are only called.
    pub(crate) calls: BTreeMap<u32, LiveAddr>,
    /// For all others: the address as the program sees it (a canonical PLT entry, a copied object).
    pub(crate) addresses: BTreeMap<u32, LiveAddr>,
}

/// All inputs that decide the bytes.
pub(crate) struct Payload<'a> {
    pub(crate) patch: &'a Patch,
    pub(crate) layout: &'a Layout,
    pub(crate) base: LiveAddr,
    pub(crate) bias: Bias,
    pub(crate) imports: &'a Imports,
}

impl Payload<'_> {
    /// The whole mapping's content except the ledger, which is left zero.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Error> {
        let mut image = vec![0u8; self.layout.size as usize];
        for section in &self.patch.sections {
            let (offset, _) = self.layout.section(section.kind);
            put(&mut image, offset, &section.data)?;
        }
        for (symbol, offset) in self.layout.slots() {
            // Where the address is needed as such it serves for calls as well.
            let value = match self.imports.addresses.get(&symbol).or_else(|| self.imports.calls.get(&symbol)) {
                Some(&value) => value,
                None => self.value(symbol)?,
            };
            put(&mut image, offset, &value.0.to_le_bytes())?;
        }
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
        Ok(image)
    }

    /// `S`: where a symbol lies.
    pub(crate) fn value(&self, symbol: u32) -> Result<LiveAddr, Error> {
        let found = self.patch.symbols.get(symbol as usize).ok_or_else(inconsistent)?;
        match found.place {
            Place::Base => Ok(self.bias.live(LinkAddr(found.value))),
            Place::Payload(kind) => Ok(self.base.plus(self.layout.section(kind).0).plus(found.value)),
            Place::Import => self.imports.addresses.get(&symbol).copied().ok_or_else(inconsistent),
        }
    }

    fn thunks(&self) -> impl Iterator<Item = Result<LiveAddr, Error>> + '_ {
        self.patch.functions.iter().filter_map(|record| match &record.role {
            Role::Entry(entry) => Some(self.value(entry.thunk_symbol)),
            Role::Fragment(_) => None,
        })
    }

    fn field(&self, relocation: &Relocation, place: LiveAddr) -> Result<Vec<u8>, Error> {
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

    fn own(&self, offset: Option<u64>) -> Result<LiveAddr, Error> {
        offset.map(|offset| self.base.plus(offset)).ok_or_else(inconsistent)
    }

    fn overflow(&self, relocation: &Relocation) -> Error {
        let name = self.patch.symbols.get(relocation.symbol as usize).map_or("?", |symbol| symbol.name.as_str());
        let (kind, section, offset) = (relocation.kind, relocation.section.name(), relocation.offset);
        Error::Refused(format!("{section}+{offset:#x}: {kind:?} cannot reach {name} from where the patch would lie"))
    }
}

/// Whether the payload may hand out addresses of its own code in other ways than by
/// calling it: then a pointer may live where no scan of memory sees it (a signal handler
/// is known to the kernel only).
pub(crate) fn takes_code_address(patch: &Patch) -> bool {
    patch.relocations.iter().any(|relocation| {
        let leads_to_code = patch
            .symbols
            .get(relocation.symbol as usize)
            .is_some_and(|symbol| matches!(symbol.place, Place::Payload(SectionKind::Text | SectionKind::Thunks)));
        let exempt = matches!(relocation.section, SectionKind::EhFrame | SectionKind::Thunks);
        leads_to_code && !exempt && !is_branch(patch, relocation)
    })
}

/// Whether the relocated field belongs to a direct call or jump: `e8`, `e9` or `0f 80`-`0f 8f` before it.
fn is_branch(patch: &Patch, relocation: &Relocation) -> bool {
    if !matches!(relocation.kind, RelocationKind::Pc32 | RelocationKind::Plt32)
        || relocation.section != SectionKind::Text
    {
        return false;
    }
    let Some(section) = patch.section(relocation.section) else { return false };
    let before = |distance: u64| {
        let at = relocation.offset.checked_sub(distance)?;
        section.data.get(usize::try_from(at).ok()?).copied()
    };
    // A ModRM byte of a RIP-relative operand has the form 00rrr101, so it is none of these.
    matches!((before(2), before(1)), (_, Some(0xe8 | 0xe9)) | (Some(0x0f), Some(0x80..=0x8f)))
}

fn put(image: &mut [u8], offset: u64, bytes: &[u8]) -> Result<(), Error> {
    let start = usize::try_from(offset).map_err(|_| inconsistent())?;
    let end = start.checked_add(bytes.len()).ok_or_else(inconsistent)?;
    image.get_mut(start..end).ok_or_else(inconsistent)?.copy_from_slice(bytes);
    Ok(())
}

fn inconsistent() -> Error {
    Error::Refused("the patch is inconsistent: a reference leads nowhere".to_owned())
}
