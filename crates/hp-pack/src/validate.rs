//! The rules that every patch obeys, whoever made it: checked before writing and after reading.
//!
//! They make the model safe to use: after [`Patch::validate`] every index leads somewhere, every offset
//! lies inside its section, nothing overlaps, and everything is in canonical order. They say nothing
//! about whether the patch is *right* for its base; the bytes of the base are not known here.

use crate::error::{Invalid, Item};
use crate::model::*;
use alloc::collections::BTreeSet;

/// Largest payload section, in bytes: a payload has to lie within 2 GiB of its base.
pub(crate) const MAX_SECTION: u64 = 1 << 30;
/// Largest alignment of a payload section: a page.
pub(crate) const MAX_ALIGN: u64 = 4096;
/// End of the user address space (x86-64 with four-level paging).
pub(crate) const MAX_SPAN: u64 = 1 << 47;
/// Most bytes that a thunk may repeat: four bytes of a 5-byte site, then the longest instruction.
pub(crate) const MAX_DISPLACED: u8 = 4 + 15;
/// Length of the jump that redirects an entry.
const SITE_LEN: u64 = 5;

impl Patch {
    /// Checks every rule of the format that does not depend on how the bytes are written down.
    ///
    /// # Errors
    /// The first rule that is broken, and by which element.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.check_identity()?;
        self.check_sections()?;
        self.check_symbols()?;
        self.check_relocations()?;
        self.check_functions()
    }

    /// The payload section of this kind, if the patch has one.
    pub fn section(&self, kind: SectionKind) -> Option<&Section> {
        self.sections.iter().find(|s| s.kind == kind)
    }

    fn check_identity(&self) -> Result<(), Invalid> {
        let patch = |ok, what| require(ok, Item::Patch, what);
        let base = |ok, what| require(ok, Item::Base, what);
        patch(self.machine == EM_X86_64, "is for another architecture than x86-64")?;
        patch((1..=255).contains(&self.name.len()), "has a name that is not 1 to 255 bytes long")?;
        patch(!self.name.chars().any(char::is_control), "has a control character in its name")?;
        patch(core::str::from_utf8(&self.manifest).is_ok(), "has a manifest that is not UTF-8")?;
        base((1..=64).contains(&self.base.build_id.len()), "has a build ID that is not 1 to 64 bytes long")?;
        base((1..=MAX_SPAN).contains(&self.base.span), "has a span that is zero or beyond the address space")
    }

    fn check_sections(&self) -> Result<(), Invalid> {
        let mut last = None;
        for s in &self.sections {
            let check = |ok, what| require(ok, Item::Section(s.kind), what);
            check(last < Some(s.kind), "is there twice or out of order")?;
            last = Some(s.kind);
            check(
                s.align.is_power_of_two() && s.align <= MAX_ALIGN,
                "has an alignment that is no power of two up to 4096",
            )?;
            check((1..=MAX_SECTION).contains(&s.size), "is empty or larger than 1 GiB")?;
            let held = if s.kind == SectionKind::Bss { 0 } else { s.size };
            check(s.data.len() as u64 == held, "has another size than its content")?;
            check(s.kind != SectionKind::State || s.data == [0], "is not a single zero byte")?;
        }
        let state = self.functions.is_empty() || self.section(SectionKind::State).is_some();
        require(state, Item::Section(SectionKind::State), "is missing")
    }

    fn check_symbols(&self) -> Result<(), Invalid> {
        let mut imports = BTreeSet::new();
        require(self.symbols.len() < u32::MAX as usize, Item::Patch, "has too many symbols")?;
        for (i, s) in self.symbols.iter().enumerate() {
            let check = |ok, what| require(ok, Item::Symbol(i), what);
            check(s.name.len() <= MAX_NAME, "has a name longer than 64 KiB")?;
            check(!s.name.contains('\0'), "has a NUL in its name")?;
            check(!s.weak || s.place == Place::Import, "is weak, but no import")?;
            check(s.place == Place::Import || imports.is_empty(), "is local and comes after an import")?;
            let end = s.value.checked_add(s.size);
            match s.place {
                Place::Base if s.kind == SymbolKind::Tls => {
                    check(end.is_some_and(|end| end <= MAX_SPAN), "lies outside any TLS segment")?;
                }
                Place::Base => check(end.is_some_and(|end| end <= self.base.span), "lies outside the base")?,
                Place::Payload(kind) => {
                    let size = self.section(kind).map(|s| s.size);
                    check(size.is_some() && end.is_some() && end <= size, "lies outside its section")?;
                    check(s.kind != SymbolKind::Tls, "is thread-local in a section that is not")?;
                }
                Place::Import => {
                    check(!s.name.is_empty(), "is an import without a name")?;
                    check(s.value == 0, "is an import with a value")?;
                    check(imports.insert(s.name.as_str()), "is a second import of the same name")?;
                }
            }
        }
        Ok(())
    }

    fn check_relocations(&self) -> Result<(), Invalid> {
        let mut last = None;
        for (i, r) in self.relocations.iter().enumerate() {
            let check = |ok, what| require(ok, Item::Relocation(i), what);
            let held = !matches!(r.section, SectionKind::Bss | SectionKind::State);
            check(held, "is in a section that cannot have any")?;
            check(last <= Some((r.section, r.offset)), "overlaps the one before or is out of order")?;
            let end = r.offset.checked_add(r.kind.width());
            let size = self.section(r.section).map(|s| s.size);
            check(size.is_some() && end.is_some() && end <= size, "lies outside its section")?;
            last = end.map(|end| (r.section, end));
            let symbol = self.symbols.get(r.symbol as usize);
            check(symbol.is_some(), "names a symbol that does not exist")?;
            check(symbol.is_some_and(|s| s.kind != SymbolKind::Tls), "names a thread-local symbol")?;
            let narrow = matches!(r.kind, RelocationKind::Abs32 | RelocationKind::Abs32Signed);
            check(!narrow || self.base.fixed_address, "is a 32-bit address, but the base can lie anywhere")?;
        }
        Ok(())
    }

    fn check_functions(&self) -> Result<(), Invalid> {
        require(self.functions.len() < u32::MAX as usize, Item::Patch, "has too many functions")?;
        let mut taken = 0;
        for (i, f) in self.functions.iter().enumerate() {
            let check = |ok, what| require(ok, Item::Function(i), what);
            check(f.old_size > 0, "is empty")?;
            check(f.old_address >= taken, "overlaps the one before or is out of order")?;
            let end = f.old_address.saturating_add(f.old_size);
            check(end <= self.base.span, "lies outside the base")?;
            taken = end;
            match f.role {
                Role::Entry(entry) => {
                    self.check_entry(i, f, &entry)?;
                    let site_end = f.old_address + u64::from(entry.site_offset) + SITE_LEN;
                    check(site_end <= self.base.span, "has its jump outside the base")?;
                    taken = end.max(site_end);
                }
                Role::Fragment(parent) => {
                    let entry = self.functions.get(parent as usize).is_some_and(|p| matches!(p.role, Role::Entry(_)));
                    check(entry, "is a fragment of something that is no entry")?;
                }
            }
        }
        Ok(())
    }

    fn check_entry(&self, i: usize, f: &FunctionRecord, entry: &Entry) -> Result<(), Invalid> {
        let check = |ok, what| require(ok, Item::Function(i), what);
        let leads_to = |symbol: u32, kind| {
            let Some(symbol) = self.symbols.get(symbol as usize) else { return false };
            let size = self.section(kind).map_or(0, |s| s.size);
            symbol.place == Place::Payload(kind) && symbol.value < size
        };
        check(leads_to(entry.new_symbol, SectionKind::Text), "has no new code in .text")?;
        check(leads_to(entry.thunk_symbol, SectionKind::Thunks), "has no thunk in .text.hpatch.thunks")?;
        check(matches!(entry.site_offset, 0 | 4), "has its jump neither at the entry nor after an endbr64")?;
        check((1..=MAX_DISPLACED).contains(&entry.displaced), "displaces no instruction or too many")?;
        let displaced_end = u64::from(entry.site_offset) + u64::from(entry.displaced);
        check(displaced_end <= f.old_size, "displaces instructions beyond its end")
    }
}

fn require(ok: bool, item: Item, what: &'static str) -> Result<(), Invalid> {
    if ok { Ok(()) } else { Err(Invalid { item, what }) }
}
