//! Exception tables (`.gcc_except_table`): which calls of a function have a landing pad, and
//! what they catch.
//!
//! The unwind rows of a function point to its language-specific data area (LSDA). It is the
//! same for C++ and Rust, from every compiler (Itanium C++ ABI: Exception Handling, 2.5;
//! GCC's `unwind-pe.h` for the encodings): a header, call sites, chains of actions, types and
//! lists of types. It is read into [`Lsda`], where nothing depends on the place or the
//! encoding any more, and [written](Lsda::write) anew for new code and for thunks.
//!
//! What is not understood gives a reason instead of a table: the function is then refused.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::image::{Image, Word};
use crate::unwind::{Encoded, Pointer, Reader, Rows, sleb, uleb};

/// `DW_EH_PE_omit`
const OMIT: u8 = 0xff;
/// `DW_EH_PE_uleb128`
const ULEB128: u8 = 0x01;
/// `DW_EH_PE_pcrel | DW_EH_PE_sdata4`
const DIRECT: u8 = 0x1b;
/// `DW_EH_PE_indirect | DW_EH_PE_pcrel | DW_EH_PE_sdata4`
const THROUGH_SLOT: u8 = 0x9b;
/// Most actions that one call site may have.
const MAX_ACTIONS: usize = 4096;

/// The exception table of one range of code.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lsda {
    pub sites: Vec<CallSite>,
    /// The routine that reads the table.
    pub personality: Option<Pointer>,
    /// The types that actions name, by their number; `None` catches everything.
    pub types: BTreeMap<u32, Option<Pointer>>,
}

/// Calls in `start..start + length` from the start of the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallSite {
    pub start: u64,
    pub length: u64,
    /// Link-time address of the landing pad.
    pub landing: Option<u64>,
    pub actions: Vec<Action>,
}

/// One action of a chain. The number is what the landing pad sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Action {
    /// Zero: a cleanup. Positive: catches this type. Negative: unless it is one of `list`.
    pub filter: i64,
    pub list: Vec<u32>,
}

/// The exception tables of an image, by the start of the code: the table, or why it cannot be read.
pub(crate) type Tables = FxHashMap<u64, Result<Lsda, &'static str>>;

/// Reads the tables of all functions that have one.
pub(crate) fn tables(image: &Image<'_>) -> Tables {
    if !image.sections.iter().any(|s| s.name.starts_with(".gcc_except_table")) {
        return Tables::default();
    }
    let rows = Rows::read(image);
    let with_table = rows.iter().filter_map(|(start, fde)| Some((start, fde, fde.lsda?)));
    with_table
        .map(|(start, fde, at)| {
            let table = read(image.bytes_from(at), at, start..start + fde.size);
            (start, table.map(|t| Lsda { personality: fde.cie.personality, ..t }))
        })
        .collect()
}

/// What the dynamic linker, or the linker, puts where a type or a personality is looked for.
pub(crate) fn meaning(image: &Image<'_>, pointer: Pointer) -> Option<Word> {
    let Pointer { address, indirect } = pointer;
    if !indirect {
        return Some(Word::Address(address));
    }
    image.words.get(&address).cloned().or_else(|| {
        let value = image.u64_at(address).filter(|_| image.fixed_address)?;
        Some(Word::Address(value))
    })
}

fn read(bytes: &[u8], address: u64, code: std::ops::Range<u64>) -> Result<Lsda, &'static str> {
    const CUT: &str = "its exception table is cut off";
    let here = |r: &Reader<'_>| address + (bytes.len() - r.0.len()) as u64;
    let mut r = Reader(bytes);
    let encoding = r.byte().ok_or(CUT)?;
    let landing_base = match encoding {
        OMIT => code.start,
        encoding => {
            let at = here(&r);
            match r.pointer(encoding, at) {
                Some(Encoded::To(Pointer { address, indirect: false })) => address,
                _ => return Err("the start of its landing pads has an unknown encoding"),
            }
        }
    };
    let encoding = r.byte().ok_or(CUT)?;
    let types_end = match encoding {
        OMIT => None,
        _ => {
            let distance = r.uleb().ok_or(CUT)?;
            Some((bytes.len() - r.0.len()).checked_add(distance as usize).ok_or(CUT)?)
        }
    };
    let site_encoding = r.byte().ok_or(CUT)?;
    let size = r.uleb().ok_or(CUT)? as usize;
    let mut entries = Reader(r.take(size).ok_or(CUT)?);
    let tail = Tail { bytes, address, actions: r.0, types_end, encoding };
    let mut table = Lsda::default();
    while !entries.0.is_empty() {
        let mut number = || entries.number(site_encoding);
        let (Some(start), Some(length), Some(landing)) = (number(), number(), number()) else {
            return Err("its call sites have an unknown encoding");
        };
        let first = entries.uleb().ok_or(CUT)?;
        if start.checked_add(length).is_none_or(|end| end > code.end - code.start) {
            return Err("a call site of its exception table lies outside of it");
        }
        let landing = (landing != 0).then(|| landing_base.wrapping_add(landing));
        let actions = if landing.is_some() { tail.chain(first, &mut table.types)? } else { Vec::new() };
        table.sites.push(CallSite { start, length, landing, actions });
    }
    Ok(table)
}

/// What follows the call sites.
struct Tail<'a> {
    bytes: &'a [u8],
    address: u64,
    actions: &'a [u8],
    /// Offset in `bytes` of the end of the types, where the lists of types begin.
    types_end: Option<usize>,
    encoding: u8,
}

impl Tail<'_> {
    /// The chain of actions that begins at `first`, counted from 1; 0 is a lone cleanup.
    fn chain(&self, first: u64, types: &mut BTreeMap<u32, Option<Pointer>>) -> Result<Vec<Action>, &'static str> {
        const BROKEN: &str = "the actions of its exception table are broken";
        let mut chain = Vec::new();
        let Some(mut at) = first.checked_sub(1) else { return Ok(chain) };
        loop {
            let mut r = Reader(self.actions.get(at as usize..).ok_or(BROKEN)?);
            let filter = r.sleb().ok_or(BROKEN)?;
            let from = (self.actions.len() - r.0.len()) as u64;
            let next = r.sleb().ok_or(BROKEN)?;
            let list = if filter < 0 { self.list(filter).ok_or(BROKEN)? } else { Vec::new() };
            for &number in list.iter().chain(u32::try_from(filter).ok().filter(|n| *n > 0).iter()) {
                types.insert(number, self.type_number(number)?);
            }
            chain.push(Action { filter, list });
            if next == 0 {
                return Ok(chain);
            }
            at = from.wrapping_add_signed(next);
            if chain.len() > MAX_ACTIONS {
                return Err(BROKEN);
            }
        }
    }

    fn list(&self, filter: i64) -> Option<Vec<u32>> {
        let offset = usize::try_from(filter.checked_neg()? - 1).ok()?;
        let mut r = Reader(self.bytes.get(self.types_end?.checked_add(offset)?..)?);
        let mut list = Vec::new();
        loop {
            match u32::try_from(r.uleb()?).ok()? {
                0 => return Some(list),
                number => list.push(number),
            }
        }
    }

    fn type_number(&self, number: u32) -> Result<Option<Pointer>, &'static str> {
        const UNKNOWN: &str = "the types of its exception table have an unknown encoding";
        let width = crate::unwind::pointer_size(self.encoding).ok_or(UNKNOWN)?;
        let back = (number as usize).checked_mul(width).ok_or(UNKNOWN)?;
        let at = self.types_end.and_then(|end| end.checked_sub(back)).ok_or(UNKNOWN)?;
        let mut r = Reader(self.bytes.get(at..).ok_or(UNKNOWN)?);
        match r.pointer(self.encoding, self.address + at as u64) {
            Some(Encoded::Null) => Ok(None),
            Some(Encoded::To(pointer)) => Ok(Some(pointer)),
            None => Err(UNKNOWN),
        }
    }
}

/// A table, written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub bytes: Vec<u8>,
    /// Offset of the 32-bit distance to where landing pads count from, if that is not the code's own start.
    pub landing_base: Option<u64>,
    /// Offset of the 32-bit distance to a slot with a pointer to the type, and the type's number.
    pub types: Vec<(u64, u32)>,
}

/// Where the landing pads of a written table lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Landings {
    /// Behind the start of the code that the table is for.
    Own,
    /// Behind another place, for which there will be a relocation.
    Elsewhere,
}

impl Lsda {
    /// Writes a table with these call sites, whose landing pads are distances: from the
    /// start of the code, or from another place.
    pub(crate) fn write(sites: &[CallSite], landings: Landings) -> Written {
        let mut calls = Vec::new();
        let mut tail = Vec::new();
        let mut chains: BTreeMap<Vec<(i64, &[u32])>, u64> = BTreeMap::new();
        let mut lists: Vec<u8> = Vec::new();
        let mut highest = 0;
        for site in sites {
            for number in [site.start, site.length, site.landing.unwrap_or(0)] {
                uleb(&mut calls, number);
            }
            let key: Vec<(i64, &[u32])> = site.actions.iter().map(|a| (a.filter, a.list.as_slice())).collect();
            let first = match chains.get(&key) {
                Some(known) => *known,
                None if key.is_empty() => 0,
                None => {
                    let first = tail.len() as u64 + 1;
                    for (i, action) in site.actions.iter().enumerate() {
                        highest =
                            action.list.iter().copied().chain(u32::try_from(action.filter)).fold(highest, u32::max);
                        put_list(&mut lists, action);
                        sleb(&mut tail, action.filter);
                        // The next action follows directly.
                        sleb(&mut tail, i64::from(i + 1 < site.actions.len()));
                    }
                    chains.insert(key, first);
                    first
                }
            };
            uleb(&mut calls, first);
        }
        assemble(&calls, &tail, &lists, highest, landings)
    }
}

/// Lists of types keep their places, as these are what a landing pad sees.
fn put_list(lists: &mut Vec<u8>, action: &Action) {
    if action.filter >= 0 {
        return;
    }
    let mut encoded = Vec::new();
    action.list.iter().for_each(|n| uleb(&mut encoded, u64::from(*n)));
    encoded.push(0);
    let at = (-action.filter - 1) as usize;
    lists.resize(lists.len().max(at + encoded.len()), 0);
    lists[at..at + encoded.len()].copy_from_slice(&encoded);
}

fn assemble(calls: &[u8], actions: &[u8], lists: &[u8], highest: u32, landings: Landings) -> Written {
    let mut written = Written::default();
    let out = &mut written.bytes;
    match landings {
        Landings::Own => out.push(OMIT),
        Landings::Elsewhere => {
            out.push(DIRECT);
            written.landing_base = Some(1);
            out.extend([0; 4]);
        }
    }
    let mut middle = vec![ULEB128];
    uleb(&mut middle, calls.len() as u64);
    middle.extend_from_slice(calls);
    middle.extend_from_slice(actions);
    if highest == 0 && lists.is_empty() {
        out.push(OMIT);
        out.extend(middle);
        return written;
    }
    out.push(THROUGH_SLOT);
    // Types are aligned; the distance to their end is written before them, in as many bytes as it needs.
    let size = 4 * highest as usize;
    let (mut distance, mut filling) = (Vec::new(), 0);
    while distance.is_empty() || !(out.len() + distance.len() + middle.len() + filling).is_multiple_of(4) {
        filling = if distance.is_empty() { 0 } else { filling + 1 };
        distance.clear();
        uleb(&mut distance, (middle.len() + filling + size) as u64);
    }
    out.extend(distance);
    out.extend(middle);
    out.resize(out.len() + filling + size, 0);
    let end = out.len() as u64;
    out.extend_from_slice(lists);
    written.types = (1..=highest).map(|number| (end - 4 * u64::from(number), number)).collect();
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catch(filter: i64, list: &[u32]) -> Action {
        Action { filter, list: list.to_vec() }
    }

    fn site(start: u64, landing: Option<u64>, actions: Vec<Action>) -> CallSite {
        CallSite { start, length: 5, landing, actions }
    }

    /// Every type slot gets an address that tells its number.
    fn read_back(written: &Written, start: u64) -> Lsda {
        let mut bytes = written.bytes.clone();
        for (at, number) in &written.types {
            let value = 0x1000 * *number - *at as u32;
            bytes[*at as usize..][..4].copy_from_slice(&value.to_le_bytes());
        }
        bytes.push(0xee);
        read(&bytes, 0, start..start + 100).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let sites = vec![
            site(0, None, vec![]),
            site(5, Some(0x40), vec![]),
            site(10, Some(0x44), vec![catch(2, &[]), catch(1, &[]), catch(0, &[])]),
            site(20, Some(0x48), vec![catch(1, &[])]),
            site(30, Some(0x4c), vec![catch(-1, &[1, 3])]),
            site(40, Some(0x50), vec![catch(-4, &[])]),
            site(50, Some(0x44), vec![catch(2, &[]), catch(1, &[]), catch(0, &[])]),
        ];
        let written = Lsda::write(&sites, Landings::Own);
        assert_eq!(written.types.iter().map(|t| t.0 % 4).max(), Some(0));
        let found = read_back(&written, 0);
        assert_eq!(found.sites, sites);
        let numbers: Vec<_> = found.types.iter().map(|(n, p)| (*n, p.map(|p| (p.address, p.indirect)))).collect();
        assert_eq!(numbers, [1, 2, 3].map(|n| (n, Some((0x1000 * u64::from(n), true)))));
    }

    #[test]
    fn every_size_gives_aligned_types() {
        for count in 1..60 {
            let sites: Vec<_> = (0..count).map(|i| site(i, Some(9), vec![catch(1, &[])])).collect();
            let written = Lsda::write(&sites, Landings::Own);
            assert!(written.types[0].0.is_multiple_of(4), "{count}");
            assert_eq!(read_back(&written, 0).sites, sites);
        }
    }

    #[test]
    fn no_cut_table_panics() {
        let sites = vec![site(10, Some(0x44), vec![catch(2, &[]), catch(-1, &[1])])];
        let bytes = Lsda::write(&sites, Landings::Own).bytes;
        for cut in 0..bytes.len() {
            let _ = read(&bytes[..cut], 0, 0..100);
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            let _ = read(&damaged, 0, 0..100);
        }
    }
}
