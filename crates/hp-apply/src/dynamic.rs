//! The dynamic symbols of one loaded module, looked up in the target's memory the way the
//! dynamic linker does it (gABI chapter 5; the GNU extensions for hashing and versions).

use crate::addr::{Bias, LinkAddr, LiveAddr, LiveRange};
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::prelude::*;
use crate::sys::Mem;

const DT_PLTRELSZ: u64 = 2;
const DT_HASH: u64 = 4;
const DT_PLTGOT: u64 = 3;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_RELA: u64 = 7;
const DT_RELASZ: u64 = 8;
const DT_STRSZ: u64 = 10;
const DT_DEBUG: u64 = 21;
const DT_JMPREL: u64 = 23;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const DT_VERSYM: u64 = 0x6fff_fff0;
const DT_VERDEF: u64 = 0x6fff_fffc;
const DT_VERDEFNUM: u64 = 0x6fff_fffd;
const DT_VERNEED: u64 = 0x6fff_fffe;
const DT_VERNEEDNUM: u64 = 0x6fff_ffff;

/// `STT_FUNC`
pub(crate) const STT_FUNC: u8 = 2;
/// `STT_TLS`
pub(crate) const STT_TLS: u8 = 6;
/// `STT_GNU_IFUNC`
pub(crate) const STT_GNU_IFUNC: u8 = 10;
const SHN_UNDEF: u16 = 0;
const SHN_ABS: u16 = 0xfff1;

/// Most entries of a dynamic section, and most steps along any chain in a target's tables.
const MAX_ENTRIES: usize = 4096;
const MAX_CHAIN: u32 = 100_000;
/// Largest table that is read in one piece.
const MAX_TABLE: u64 = 256 << 20;
const MAX_STRINGS: u64 = 256 << 20;

/// One loaded module's tables.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    pub(crate) bias: Bias,
    /// `DT_DEBUG`: where the dynamic linker's record is; and the place of that word.
    pub(crate) debug: LiveAddr,
    pub(crate) debug_at: LiveAddr,
    symbols: LiveAddr,
    strings: LiveRange,
    gnu_hash: Option<LiveAddr>,
    hash: Option<LiveAddr>,
    versions: Option<LiveAddr>,
    version_names: Vec<(u16, Vec<u8>)>,
    plt_got: Option<LiveAddr>,
    pub(crate) relocations: [LiveRange; 2],
}

/// A definition that a name led to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Definition {
    /// Run-time address; for an ifunc that of its resolver.
    pub(crate) address: LiveAddr,
    /// Link-time value.
    pub(crate) value: u64,
    /// Where that value is kept.
    pub(crate) value_at: LiveAddr,
    /// Bias of its module.
    pub(crate) bias: Bias,
    /// `STT_…`
    pub(crate) kind: u8,
}

/// A dynamic relocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rela {
    pub(crate) place: LiveAddr,
    pub(crate) kind: u32,
    pub(crate) symbol: u32,
    pub(crate) addend: u64,
}

/// A symbol's name and the version that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) version: Option<&'a [u8]>,
}

impl<'a> Name<'a> {
    /// From `name`, `name@VERSION` or `name@@VERSION`.
    pub(crate) fn parse(text: &'a str) -> Name<'a> {
        match text.split_once('@') {
            Some((name, version)) if !name.is_empty() => {
                Name { name: name.as_bytes(), version: Some(version.trim_start_matches('@').as_bytes()) }
            }
            _ => Name { name: text.as_bytes(), version: None },
        }
    }
}

impl Module {
    /// Reads the dynamic section at `dynamic` of a module with this bias.
    pub(crate) fn read(mem: &Mem, bias: Bias, dynamic: LiveAddr) -> Option<Module> {
        let entries = entries(mem, dynamic)?;
        let get = |tag| entries.iter().find(|entry| entry.0 == tag).map(|entry| entry.1);
        // glibc relocates these pointers in place, musl and the vDSO do not.
        let pointer = |tag| get(tag).filter(|&value| value != 0).map(|value| relocated(bias, value));
        let table = |start, size| match (pointer(start), get(size)) {
            (Some(start), Some(size)) if size <= MAX_TABLE => start.range(size),
            _ => LiveRange::default(),
        };
        let mut module = Module {
            bias,
            debug: LiveAddr(get(DT_DEBUG).unwrap_or(0)),
            debug_at: entries
                .iter()
                .position(|entry| entry.0 == DT_DEBUG)
                .map_or(dynamic, |index| dynamic.plus(index as u64 * 16 + 8)),
            symbols: pointer(DT_SYMTAB)?,
            strings: pointer(DT_STRTAB)?.range(get(DT_STRSZ)?.min(MAX_STRINGS)),
            gnu_hash: pointer(DT_GNU_HASH),
            hash: pointer(DT_HASH),
            versions: pointer(DT_VERSYM),
            version_names: Vec::new(),
            plt_got: pointer(DT_PLTGOT),
            relocations: [table(DT_JMPREL, DT_PLTRELSZ), table(DT_RELA, DT_RELASZ)],
        };
        if let (Some(at), Some(count)) = (pointer(DT_VERDEF), get(DT_VERDEFNUM)) {
            module.read_definitions(mem, at, count);
        }
        if let (Some(at), Some(count)) = (pointer(DT_VERNEED), get(DT_VERNEEDNUM)) {
            module.read_needs(mem, at, count);
        }
        Some(module)
    }

    fn read_definitions(&mut self, mem: &Mem, mut at: LiveAddr, count: u64) {
        for _ in 0..count.min(MAX_ENTRIES as u64) {
            let Some(entry) = mem.kept_array::<20>(at) else { return };
            let (flags, index) = (u16_at(&entry, 2).unwrap_or(0), u16_at(&entry, 4).unwrap_or(0));
            let (aux, next) = (u32_at(&entry, 12).unwrap_or(0), u32_at(&entry, 16).unwrap_or(0));
            // The base definition names the file, not a version.
            if flags & 1 == 0
                && let Some(name) = mem.kept_u32(at.plus(u64::from(aux)))
                && let Some(name) = self.string(mem, name)
            {
                self.version_names.push((index & 0x7fff, name));
            }
            if next == 0 {
                return;
            }
            at = at.plus(u64::from(next));
        }
    }

    fn read_needs(&mut self, mem: &Mem, mut at: LiveAddr, count: u64) {
        for _ in 0..count.min(MAX_ENTRIES as u64) {
            let Some(entry) = mem.kept_array::<16>(at) else { return };
            let names = u16_at(&entry, 2).unwrap_or(0);
            let (aux, next) = (u32_at(&entry, 8).unwrap_or(0), u32_at(&entry, 12).unwrap_or(0));
            let mut aux_at = at.plus(u64::from(aux));
            for _ in 0..names {
                let Some(need) = mem.kept_array::<16>(aux_at) else { break };
                let index = u16_at(&need, 6).unwrap_or(0);
                if let Some(name) = self.string(mem, u32_at(&need, 8).unwrap_or(0)) {
                    self.version_names.push((index & 0x7fff, name));
                }
                match u32_at(&need, 12).unwrap_or(0) {
                    0 => break,
                    next => aux_at = aux_at.plus(u64::from(next)),
                }
            }
            if next == 0 {
                return;
            }
            at = at.plus(u64::from(next));
        }
    }

    /// A string of the module, at most 4 KiB long.
    fn string(&self, mem: &Mem, offset: u32) -> Option<Vec<u8>> {
        let start = self.strings.start.plus(u64::from(offset));
        let end = self.strings.end.0.min(start.0.saturating_add(4096));
        let mut text = Vec::new();
        for at in start.0..end {
            match mem.kept_array(LiveAddr(at))? {
                [0] => return Some(text),
                [byte] => text.push(byte),
            }
        }
        None
    }

    /// Looks a name up. `as_address`: also an undefined symbol with a value, which is the
    /// canonical PLT entry of a position-dependent executable.
    pub(crate) fn find(&self, mem: &Mem, name: Name<'_>, as_address: bool) -> Option<Definition> {
        match (self.gnu_hash, self.hash) {
            (Some(table), _) => self.find_gnu(mem, table, name, as_address),
            (None, Some(table)) => self.find_sysv(mem, table, name, as_address),
            (None, None) => None,
        }
    }

    fn find_gnu(&self, mem: &Mem, table: LiveAddr, name: Name<'_>, as_address: bool) -> Option<Definition> {
        let header: [u8; 16] = mem.kept_array(table)?;
        let (buckets, first) = (u32_at(&header, 0)?, u32_at(&header, 4)?);
        let (bloom_words, shift) = (u32_at(&header, 8)?, u32_at(&header, 12)?);
        if buckets == 0 || bloom_words == 0 {
            return None;
        }
        let hash = gnu_hash(name.name);
        let bloom_at = table.plus(16);
        let word = mem.kept_u64(bloom_at.plus(u64::from(hash / 64 % bloom_words) * 8))?;
        let bits = (1u64 << (hash % 64)) | (1u64 << (hash.checked_shr(shift).unwrap_or(0) % 64));
        if word & bits != bits {
            return None;
        }
        let buckets_at = bloom_at.plus(u64::from(bloom_words) * 8);
        let chains_at = buckets_at.plus(u64::from(buckets) * 4);
        let mut symbol = mem.kept_u32(buckets_at.plus(u64::from(hash % buckets) * 4))?;
        for _ in 0..MAX_CHAIN {
            let entry = mem.kept_u32(chains_at.plus(u64::from(symbol.checked_sub(first)?) * 4))?;
            if entry | 1 == hash | 1
                && let Some(found) = self.matching(mem, symbol, name, as_address)
            {
                return Some(found);
            }
            if entry & 1 != 0 {
                return None;
            }
            symbol = symbol.checked_add(1)?;
        }
        None
    }

    fn find_sysv(&self, mem: &Mem, table: LiveAddr, name: Name<'_>, as_address: bool) -> Option<Definition> {
        let buckets = mem.kept_u32(table).filter(|&buckets| buckets != 0)?;
        let chains_at = table.plus(8 + u64::from(buckets) * 4);
        let mut symbol = mem.kept_u32(table.plus(8 + u64::from(sysv_hash(name.name) % buckets) * 4))?;
        for _ in 0..MAX_CHAIN {
            if symbol == 0 {
                return None;
            }
            if let Some(found) = self.matching(mem, symbol, name, as_address) {
                return Some(found);
            }
            symbol = mem.kept_u32(chains_at.plus(u64::from(symbol) * 4))?;
        }
        None
    }

    fn matching(&self, mem: &Mem, symbol: u32, name: Name<'_>, as_address: bool) -> Option<Definition> {
        let entry_at = self.symbols.plus(u64::from(symbol) * 24);
        let entry: [u8; 24] = mem.array(entry_at).ok()?;
        let (info, section, value) = (entry[4], u16_at(&entry, 6)?, u64_at(&entry, 8)?);
        let (binding, kind) = (info >> 4, info & 15);
        if binding == 0 || section == SHN_UNDEF && !(as_address && value != 0) {
            return None;
        }
        if value == 0 && section != SHN_ABS && kind != STT_TLS {
            return None;
        }
        if self.string(mem, u32_at(&entry, 0)?)? != name.name || !self.version_fits(mem, symbol, name.version) {
            return None;
        }
        let address = if section == SHN_ABS { LiveAddr(value) } else { self.bias.live(LinkAddr(value)) };
        let kind = if section == SHN_UNDEF { 2 } else { kind };
        Some(Definition { address, value, value_at: entry_at.plus(8), bias: self.bias, kind })
    }

    /// The dynamic linker's rule (`check_match` in glibc's `dl-lookup.c`).
    fn version_fits(&self, mem: &Mem, symbol: u32, version: Option<&[u8]>) -> bool {
        let Some(versions) = self.versions else { return true };
        let Some(entry) = mem.kept_array::<2>(versions.plus(u64::from(symbol) * 2)) else { return false };
        let entry = u16::from_le_bytes(entry);
        let (index, hidden) = (entry & 0x7fff, entry & 0x8000 != 0);
        let name = self.version_names.iter().find(|(known, _)| *known == index).map(|(_, name)| name.as_slice());
        match (version, name) {
            (Some(version), Some(name)) => version == name,
            (Some(_), None) | (None, _) => !hidden,
        }
    }

    /// The name and version of a symbol by number, as a relocation refers to it.
    pub(crate) fn symbol_is(&self, mem: &Mem, symbol: u32, name: Name<'_>) -> bool {
        let Ok(entry) = mem.array::<24>(self.symbols.plus(u64::from(symbol) * 24)) else { return false };
        let Some(text) = u32_at(&entry, 0).and_then(|offset| self.string(mem, offset)) else { return false };
        text == name.name && self.version_fits(mem, symbol, name.version)
    }

    /// Whether a symbol of the module, defined or not, can have this name.
    pub(crate) fn names(&self, mem: &Mem, name: &[u8]) -> bool {
        let strings = self.all_strings(mem);
        strings.windows(name.len() + 1).any(|w| w.starts_with(name) && w.ends_with(&[0]))
    }

    fn all_strings(&self, mem: &Mem) -> Vec<u8> {
        mem.kept_bytes(self.strings.start, self.strings.len() as usize).unwrap_or_default()
    }

    /// The relocations against symbols of these names, whatever version: number of the name, relocation.
    pub(crate) fn references(&self, mem: &Mem, names: &[&[u8]]) -> Vec<(usize, Rela)> {
        let strings = self.all_strings(mem);
        let named = |offset: u32| {
            let text = strings.get(offset as usize..)?;
            names.iter().position(|name| text.starts_with(name) && text.get(name.len()) == Some(&0))
        };
        let any = |name: &&[u8]| strings.windows(name.len() + 1).any(|w| w.starts_with(name) && w.ends_with(&[0]));
        if !names.iter().any(any) {
            return Vec::new();
        }
        let relocations = self.each_relocation(mem);
        let Some(last) = relocations.iter().map(|rela| rela.symbol).max() else { return Vec::new() };
        let symbols = (u64::from(last) + 1).saturating_mul(24);
        if symbols > MAX_TABLE {
            return Vec::new();
        }
        let Some(symbols) = mem.kept_bytes(self.symbols, symbols as usize) else { return Vec::new() };
        let name_of = |rela: &Rela| named(u32_at(&symbols, rela.symbol as usize * 24)?);
        relocations.into_iter().filter(|r| r.symbol != 0).filter_map(|r| Some((name_of(&r)?, r))).collect()
    }

    /// The code of the dynamic linker that binds this module's functions when they are first called.
    pub(crate) fn resolver(&self, mem: &Mem) -> Option<LiveAddr> {
        mem.u64(self.plt_got?.plus(16)).ok().filter(|at| *at != 0).map(LiveAddr)
    }

    /// All relocations with addends, of both tables.
    pub(crate) fn each_relocation(&self, mem: &Mem) -> Vec<Rela> {
        let mut all = Vec::new();
        for table in self.relocations {
            let Some(bytes) = mem.kept_bytes(table.start, table.len() as usize) else { continue };
            all.extend(bytes.chunks_exact(24).filter_map(|entry| {
                let info = u64_at(entry, 8)?;
                Some(Rela {
                    place: self.bias.live(LinkAddr(u64_at(entry, 0)?)),
                    kind: info as u32,
                    symbol: (info >> 32) as u32,
                    addend: u64_at(entry, 16)?,
                })
            }));
        }
        all
    }
}

fn relocated(bias: Bias, value: u64) -> LiveAddr {
    if value >= bias.0 { LiveAddr(value) } else { bias.live(LinkAddr(value)) }
}

/// The dynamic section, which ends with a zero.
fn entries(mem: &Mem, dynamic: LiveAddr) -> Option<Vec<(u64, u64)>> {
    let mut entries = Vec::new();
    let mut buffer = [0u8; 1024];
    while entries.len() < MAX_ENTRIES {
        let got = mem.read_some(dynamic.plus(entries.len() as u64 * 16), &mut buffer).ok()?;
        let read = buffer.get(..got)?.chunks_exact(16);
        if read.len() == 0 {
            break;
        }
        for entry in read {
            match (u64_at(entry, 0)?, u64_at(entry, 8)?) {
                (0, _) => return Some(entries),
                pair => entries.push(pair),
            }
        }
    }
    Some(entries)
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash: u32, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)))
}

fn sysv_hash(name: &[u8]) -> u32 {
    name.iter().fold(0u32, |hash, &byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ (high >> 24)) & !high
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_the_specifications() {
        assert_eq!((gnu_hash(b""), gnu_hash(b"printf")), (0x1505, 0x156b_2bb8));
        assert_eq!((sysv_hash(b""), sysv_hash(b"printf")), (0, 0x077905a6));
    }

    #[test]
    fn names_with_and_without_version() {
        let name = Name::parse("puts@GLIBC_2.2.5");
        assert_eq!((name.name, name.version), (&b"puts"[..], Some(&b"GLIBC_2.2.5"[..])));
        assert_eq!(Name::parse("puts@@V").version, Some(&b"V"[..]));
        assert_eq!(Name::parse("puts").version, None);
    }
}
