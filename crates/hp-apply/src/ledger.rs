//! The record inside a target of one patch: enough to tell, finish and undo what was done
//! with nothing but the process at hand.
//!
//! It lies at the start of the payload's mapping and is found by its magic number in the
//! process's anonymous read-only mappings. It never changes while the patch is there: what
//! has happened so far is read from the state byte and the entries themselves, so there is
//! no second truth that a killed applier could leave stale.
//!
//! A payload whose loading was cut short has no valid ledger yet, only a *claim* at the end
//! of the ledger's pages, written first of all: it tells that the mapping is ours and unused.
//!
//! The target owns this memory, so parsing is strict: checksum, bounds, order, and that
//! every address lies where it may; nothing found here is believed further than that.
//! `docs/APPLY.md` describes the bytes.

use crate::addr::{LiveAddr, LiveRange, PAGE};
use crate::bytes::{array, hex, sha256, u32_at, u64_at};
use crate::failure::{Failure, refused, unusable};
use crate::finders;
use crate::gate::{GATE_SIZE, Gates};
use crate::maps::Maps;
use crate::prelude::*;
use crate::process::Process;
use crate::small::sort_by_key;
use crate::sys::Mem;
use crate::takeover;

const MAGIC: [u8; 8] = *b"HPLEDGER";
const VERSION: u32 = 2;
/// Magic, version, length, SHA-256 of the rest.
const HEADER: usize = 8 + 4 + 4 + 32;
/// Largest ledger.
const MAX_SIZE: usize = 64 << 20;
const MAX_FUNCTIONS: u32 = 1_000_000;
/// How much anonymous read-only memory of a target is searched for ledgers.
const MAX_SEARCH: u64 = 1 << 30;
const CLAIM_MAGIC: [u8; 8] = *b"HPCLAIM\0";
/// Magic, start and end of the mapping, SHA-256 of these.
pub(crate) const CLAIM_SIZE: usize = 8 + 16 + 32;
/// Length of the jump at an entry.
pub(crate) const SITE: usize = 5;

/// A range of old code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OldRange {
    pub(crate) range: LiveRange,
    pub(crate) digest: [u8; 32],
}

/// One replaced function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replaced {
    pub(crate) name: String,
    /// The body first, then the fragments.
    pub(crate) old: Vec<OldRange>,
    pub(crate) site: LiveAddr,
    pub(crate) site_bytes: [u8; SITE],
    pub(crate) thunk: LiveAddr,
    pub(crate) new: LiveAddr,
}

/// Of what the payload makes addresses that may outlive the instruction that uses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HandsOut {
    /// Code, otherwise than by calling it: such addresses may be known where no search of
    /// memory looks (a signal handler is known to the kernel only).
    pub(crate) code: bool,
    pub(crate) constants: bool,
    pub(crate) variables: bool,
}

impl HandsOut {
    fn byte(self) -> u8 {
        u8::from(self.code) | u8::from(self.constants) << 1 | u8::from(self.variables) << 2
    }

    fn from_byte(byte: u8) -> Option<HandsOut> {
        let hands_out = HandsOut { code: byte & 1 != 0, constants: byte & 2 != 0, variables: byte & 4 != 0 };
        (hands_out.byte() == byte).then_some(hands_out)
    }
}

/// An entry that this patch has taken, or is about to take, from an older one: see `takeover`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bridged {
    pub(crate) name: String,
    pub(crate) site: LiveAddr,
    /// The base's own bytes there.
    pub(crate) site_bytes: [u8; SITE],
    /// The older patch's new function.
    pub(crate) before: LiveAddr,
    /// For a function that this patch leaves alone: what runs the base's function without its
    /// entry. Zero for one that this patch replaces itself.
    pub(crate) after: LiveAddr,
}

/// A variable that a patch has brought, or taken over from an older one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) range: LiveRange,
    /// What the diff says that it is: equal words, equal variables. Empty if it says nothing.
    pub(crate) identity: String,
}

/// One patch in a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) build_id: Vec<u8>,
    pub(crate) counter: u64,
    pub(crate) uid: u32,
    pub(crate) applied_at: u64,
    /// Higher than that of every ledger that was there when this one was written.
    pub(crate) sequence: u64,
    /// The base image.
    pub(crate) base: LiveRange,
    /// The whole payload.
    pub(crate) mapping: LiveRange,
    /// Constants, unwind rows and pointer slots, with their digest.
    pub(crate) constants: LiveRange,
    pub(crate) constants_digest: [u8; 32],
    /// `.text`, thunks and import stubs, with their digest.
    pub(crate) code: LiveRange,
    pub(crate) code_digest: [u8; 32],
    pub(crate) text: LiveRange,
    pub(crate) thunks: LiveRange,
    /// One gate for each function, at the end of the code.
    pub(crate) gates: LiveRange,
    /// Gates and bridges of a takeover.
    pub(crate) takeover: LiveRange,
    pub(crate) variables: LiveRange,
    pub(crate) eh_frame: LiveRange,
    /// The finders, in the code; and the words by which they pass on.
    pub(crate) finders: LiveRange,
    pub(crate) nexts: LiveRange,
    /// Distances of calls in the base that are led to the finders.
    pub(crate) calls: Vec<LiveAddr>,
    pub(crate) state: LiveAddr,
    pub(crate) hands_out: HandsOut,
    pub(crate) functions: Vec<Replaced>,
    pub(crate) bridged: Vec<Bridged>,
    pub(crate) named: Vec<Variable>,
}

impl Replaced {
    /// First byte of the function.
    pub(crate) fn entry(&self) -> LiveAddr {
        self.old.first().map_or(self.site, |old| old.range.start)
    }

    pub(crate) fn site_range(&self) -> LiveRange {
        self.site.range(SITE as u64)
    }

    /// The jump that leads from the entry to `target`.
    pub(crate) fn jump_to(&self, target: LiveAddr) -> [u8; SITE] {
        jump(self.site, target)
    }
}

/// The jump at `site` that leads to `target`.
pub(crate) fn jump(site: LiveAddr, target: LiveAddr) -> [u8; SITE] {
    let distance = target.0.wrapping_sub(site.0.wrapping_add(SITE as u64)) as u32;
    let [a, b, c, d] = distance.to_le_bytes();
    [0xe9, a, b, c, d]
}

/// Where the bytes at `site` lead, if they are a jump.
pub(crate) fn jump_target(site: LiveAddr, bytes: [u8; SITE]) -> Option<LiveAddr> {
    let [0xe9, a, b, c, d] = bytes else { return None };
    let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
    Some(LiveAddr(site.0.wrapping_add(SITE as u64).wrapping_add(distance as u64)))
}

impl Ledger {
    /// The bytes, for any addresses of the same length.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Failure> {
        let mut out = vec![0; HEADER];
        for text in [self.id.as_bytes(), self.name.as_bytes(), &self.build_id] {
            put_bytes(&mut out, text);
        }
        out.extend(self.counter.to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.applied_at.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        for range in [
            self.base,
            self.mapping,
            self.constants,
            self.code,
            self.text,
            self.thunks,
            self.gates,
            self.takeover,
            self.variables,
            self.eh_frame,
            self.finders,
            self.nexts,
        ] {
            put_range(&mut out, range);
        }
        out.extend(self.state.0.to_le_bytes());
        out.extend(self.constants_digest);
        out.extend(self.code_digest);
        out.push(self.hands_out.byte());
        out.extend((self.calls.len() as u32).to_le_bytes());
        for call in &self.calls {
            out.extend(call.0.to_le_bytes());
        }
        out.extend((self.functions.len() as u32).to_le_bytes());
        for function in &self.functions {
            put_bytes(&mut out, function.name.as_bytes());
            out.extend(function.site.0.to_le_bytes());
            out.extend(function.site_bytes);
            out.extend(function.thunk.0.to_le_bytes());
            out.extend(function.new.0.to_le_bytes());
            out.extend((function.old.len() as u32).to_le_bytes());
            for old in &function.old {
                put_range(&mut out, old.range);
                out.extend(old.digest);
            }
        }
        out.extend((self.bridged.len() as u32).to_le_bytes());
        for bridged in &self.bridged {
            put_bytes(&mut out, bridged.name.as_bytes());
            out.extend(bridged.site.0.to_le_bytes());
            out.extend(bridged.site_bytes);
            out.extend(bridged.before.0.to_le_bytes());
            out.extend(bridged.after.0.to_le_bytes());
        }
        out.extend((self.named.len() as u32).to_le_bytes());
        for variable in &self.named {
            put_bytes(&mut out, variable.name.as_bytes());
            put_range(&mut out, variable.range);
            put_bytes(&mut out, variable.identity.as_bytes());
        }
        if out.len() > MAX_SIZE {
            return Err(refused(format_args!("the patch has too many functions for its ledger")));
        }
        let digest = sha256(&out[HEADER..]);
        let len = out.len() as u32;
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&len.to_le_bytes());
        out[16..HEADER].copy_from_slice(&digest);
        Ok(out)
    }

    /// Parses the ledger whose first byte lies at `at`; `None` for anything but a valid one.
    pub(crate) fn parse(bytes: &[u8], at: LiveAddr) -> Option<Ledger> {
        let len = header(bytes)?;
        let bytes = bytes.get(..len)?;
        let body = bytes.get(HEADER..)?;
        if array::<32>(bytes, 16)? != sha256(body) {
            return None;
        }
        let mut reader = Reader { rest: body };
        let ledger = reader.ledger()?;
        (reader.rest.is_empty() && ledger.is_sound(at, len as u64)).then_some(ledger)
    }

    fn is_sound(&self, at: LiveAddr, len: u64) -> bool {
        let id = !self.id.is_empty() && self.id.len() <= 64 && self.id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let aligned = |address: LiveAddr| address.0.is_multiple_of(PAGE);
        let inner = LiveRange { start: at.plus(len), end: self.mapping.end };
        let parts = [
            self.constants,
            self.code,
            self.text,
            self.thunks,
            self.gates,
            self.variables,
            self.eh_frame,
            self.takeover,
            self.nexts,
        ];
        let held = |outer: LiveRange, part: LiveRange| part == LiveRange::default() || outer.covers(part);
        let mut sites: Vec<LiveAddr> = self.functions.iter().map(|function| function.site).collect();
        sort_by_key(&mut sites, |site| *site);
        id && (1..=255).contains(&self.name.len())
            && (1..=64).contains(&self.build_id.len())
            && self.mapping.start == at
            && aligned(at)
            && aligned(self.mapping.end)
            && self.mapping.len() <= 2 << 30
            && len <= self.mapping.len()
            && !self.base.overlaps(self.mapping)
            && self.base.start < self.base.end
            && parts.iter().all(|&part| held(inner, part))
            && held(self.code, self.text)
            && held(self.code, self.thunks)
            && held(self.code, self.gates)
            && held(self.code, self.takeover)
            && self.takeover.len() == takeover::size(self.functions.iter().map(|f| f.site), &self.bridged)
            && self.bridged.iter().all(|bridged| self.is_sound_bridge(bridged, &sites))
            && finders::is_sound(self.code, self.finders, self.nexts)
            && self.calls.iter().all(|call| self.base.covers(call.range(4)))
            && self.gates.len() == self.functions.len() as u64 * GATE_SIZE
            && inner.contains(self.state)
            && !self.code.contains(self.state)
            && self.functions.iter().all(|function| self.is_sound_function(function))
    }

    fn is_sound_function(&self, function: &Replaced) -> bool {
        let Some(body) = function.old.first() else { return false };
        let offset = function.site.0.wrapping_sub(body.range.start.0);
        (1..=4096).contains(&function.name.len())
            && function.old.iter().all(|old| !old.range.is_empty() && self.base.covers(old.range))
            && self.base.covers(function.site_range())
            && matches!(offset, 0 | 4)
            && self.thunks.contains(function.thunk)
            && self.text.contains(function.new)
    }

    /// `sites`: those of the functions, ascending.
    fn is_sound_bridge(&self, bridged: &Bridged, sites: &[LiveAddr]) -> bool {
        let own = sites.binary_search(&bridged.site).is_ok();
        (1..=4096).contains(&bridged.name.len())
            && self.base.covers(bridged.site.range(SITE as u64))
            && own == (bridged.after == LiveAddr(0))
            && !self.base.contains(bridged.before)
            && !self.mapping.contains(bridged.before)
    }

    /// Address of the gate of function number `index`.
    pub(crate) fn gate(&self, index: usize) -> LiveAddr {
        self.gates.start.plus(index as u64 * GATE_SIZE)
    }

    pub(crate) fn gates(&self) -> Gates {
        Gates { range: self.gates, entries: self.functions.iter().map(|function| function.site).collect() }
    }

    pub(crate) fn build_id_hex(&self) -> String {
        hex(&self.build_id)
    }
}

/// Where ledgers may lie.
pub(crate) fn candidates(maps: &Maps) -> impl Iterator<Item = &crate::maps::Mapping> {
    maps.iter().filter(|mapping| {
        mapping.read && !mapping.write && !mapping.execute && !mapping.shared && mapping.is_anonymous()
    })
}

/// Every valid ledger of a process.
pub(crate) fn find(mem: &Mem, maps: &Maps) -> Vec<Ledger> {
    find_within(mem, candidates(maps).map(|mapping| mapping.range), &|_| None)
}

/// Every valid ledger in these mappings but those that are known: `known` gives the end of the payload of such a one.
pub(crate) fn find_within(
    mem: &Mem,
    ranges: impl Iterator<Item = LiveRange>,
    known: &dyn Fn(LiveAddr) -> Option<LiveAddr>,
) -> Vec<Ledger> {
    let mut found = Vec::new();
    let mut budget = MAX_SEARCH;
    for range in ranges {
        // A neighbour with the same protection may have been merged with it: look at every page.
        let mut at = range.start;
        while at < range.end && budget > 0 {
            budget = budget.saturating_sub(PAGE);
            if let Some(end) = known(at) {
                at = end;
                continue;
            }
            match read_at(mem, LiveRange { start: at, end: range.end }) {
                Some(ledger) => {
                    at = ledger.mapping.end;
                    found.push(ledger);
                }
                None => at = at.plus(PAGE),
            }
        }
    }
    found
}

/// What tells whether a ledger still lies where it was read, or has just been written. Between two looks at a process
/// somebody else may have taken a payload out, and its place may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) at: LiveAddr,
    /// It has a digest of all that follows.
    header: [u8; HEADER],
}

impl Seal {
    pub(crate) fn of(ledger: &Ledger) -> Result<Seal, Failure> {
        let bytes = ledger.bytes()?;
        let header = array(&bytes, 0).ok_or_else(|| refused(format_args!("the record of a patch is too short")))?;
        Ok(Seal { at: ledger.mapping.start, header })
    }

    /// To be asked when everything stands, before anything is written that rests on the ledger.
    ///
    /// # Errors
    /// [`crate::Error::Unusable`] if it is another one by now, or none.
    pub(crate) fn check(&self, process: &Process) -> Result<(), Failure> {
        if self.holds(&process.mem) { Ok(()) } else { Err(changed_meanwhile(process)) }
    }

    /// Whether it is that ledger still.
    pub(crate) fn holds(&self, mem: &Mem) -> bool {
        mem.array(self.at) == Ok(self.header)
    }
}

/// That what was read of a patch does not hold any more.
pub(crate) fn changed_meanwhile(process: &Process) -> Failure {
    process.changed.set(true);
    unusable(format_args!("process {}: somebody else has changed its patches meanwhile", process.pid))
}

/// Every valid ledger in a copy of memory that lay at `at`.
pub(crate) fn find_in(memory: &[u8], at: LiveAddr) -> Vec<Ledger> {
    let pages = (0..memory.len()).step_by(PAGE as usize);
    pages
        .filter_map(|page| {
            memory.get(page..page + header(memory.get(page..page + HEADER)?)?).map(|bytes| (page, bytes))
        })
        .filter_map(|(page, bytes)| Ledger::parse(bytes, at.plus(page as u64)))
        .collect()
}

/// The claim on a mapping.
pub(crate) fn claim(mapping: LiveRange) -> [u8; CLAIM_SIZE] {
    let mut claim = [0; CLAIM_SIZE];
    claim[..8].copy_from_slice(&CLAIM_MAGIC);
    claim[8..16].copy_from_slice(&mapping.start.0.to_le_bytes());
    claim[16..24].copy_from_slice(&mapping.end.0.to_le_bytes());
    let digest = sha256(&claim[..24]);
    claim[24..].copy_from_slice(&digest);
    claim
}

/// Mappings that were claimed and in which no ledger was even begun: what appliers left that died while loading.
///
/// Nothing leads there then. Where a ledger was begun that is not understood, be it damaged or of another version,
/// or where the place cannot be read, code may be in use: that is left alone.
pub(crate) fn abandoned(mem: &Mem, maps: &Maps, ledgers: &[Ledger]) -> Vec<LiveRange> {
    let mut found: Vec<LiveRange> = Vec::new();
    let mut budget = MAX_SEARCH;
    for mapping in candidates(maps) {
        let mut page = mapping.range.start;
        while page < mapping.range.end && budget > 0 {
            budget = budget.saturating_sub(PAGE);
            let Ok(bytes) = mem.array::<CLAIM_SIZE>(page.plus(PAGE - CLAIM_SIZE as u64)) else { break };
            let claimed = LiveRange {
                start: LiveAddr(u64_at(&bytes, 8).unwrap_or(0)),
                end: LiveAddr(u64_at(&bytes, 16).unwrap_or(0)),
            };
            let whole = claimed.start == mapping.range.start
                && claimed.len().is_multiple_of(PAGE)
                && (PAGE..=2 << 30).contains(&claimed.len());
            let known = || ledgers.iter().any(|ledger| ledger.mapping.overlaps(claimed));
            if whole && bytes == claim(claimed) && !known() && mem.array(claimed.start) == Ok([0u8; HEADER]) {
                found.push(claimed);
            }
            page = page.plus(PAGE);
        }
    }
    found
}

/// The ledger at the start of a range, if a valid one lies there.
pub(crate) fn read_at(mem: &Mem, range: LiveRange) -> Option<Ledger> {
    let at = range.start;
    // A read may fail for a moment; a record that was passed over would count as no patch at all.
    let start: [u8; HEADER] = mem.array(at).or_else(|_| mem.array(at)).ok()?;
    let len = header(&start)?;
    if len as u64 > range.len() {
        return None;
    }
    Ledger::parse(&mem.bytes(at, len).or_else(|_| mem.bytes(at, len)).ok()?, at)
}

/// The length that a header claims.
fn header(bytes: &[u8]) -> Option<usize> {
    let ours = bytes.starts_with(&MAGIC) && u32_at(bytes, 8)? == VERSION;
    let len = u32_at(bytes, 12)? as usize;
    (ours && (HEADER..=MAX_SIZE).contains(&len)).then_some(len)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(4096)];
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn put_range(out: &mut Vec<u8>, range: LiveRange) {
    out.extend(range.start.0.to_le_bytes());
    out.extend(range.end.0.to_le_bytes());
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(len)?;
        self.rest = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        u32_at(self.take(4)?, 0)
    }

    fn u64(&mut self) -> Option<u64> {
        u64_at(self.take(8)?, 0)
    }

    fn address(&mut self) -> Option<LiveAddr> {
        self.u64().map(LiveAddr)
    }

    fn range(&mut self) -> Option<LiveRange> {
        let range = LiveRange { start: self.address()?, end: self.address()? };
        (range.start <= range.end && range.end.0 < 1 << 47).then_some(range)
    }

    fn byte_string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(usize::try_from(len).ok().filter(|&len| len <= 4096)?)
    }

    fn text(&mut self) -> Option<String> {
        let text = core::str::from_utf8(self.byte_string()?).ok()?;
        (!text.chars().any(char::is_control)).then(|| text.to_owned())
    }

    fn ledger(&mut self) -> Option<Ledger> {
        // Field order is the file order: struct expressions evaluate as they are written.
        let mut ledger = Ledger {
            id: self.text()?,
            name: self.text()?,
            build_id: self.byte_string()?.to_vec(),
            counter: self.u64()?,
            uid: self.u32()?,
            applied_at: self.u64()?,
            sequence: self.u64()?,
            base: self.range()?,
            mapping: self.range()?,
            constants: self.range()?,
            code: self.range()?,
            text: self.range()?,
            thunks: self.range()?,
            gates: self.range()?,
            takeover: self.range()?,
            variables: self.range()?,
            eh_frame: self.range()?,
            finders: self.range()?,
            nexts: self.range()?,
            state: self.address()?,
            constants_digest: self.array()?,
            code_digest: self.array()?,
            hands_out: HandsOut::from_byte(self.take(1)?.first().copied()?)?,
            calls: self.calls()?,
            functions: Vec::new(),
            bridged: Vec::new(),
            named: Vec::new(),
        };
        let count = self.u32().filter(|&count| count <= MAX_FUNCTIONS)?;
        for _ in 0..count {
            ledger.functions.push(self.function()?);
        }
        let count = self.u32().filter(|&count| count <= MAX_FUNCTIONS)?;
        for _ in 0..count {
            ledger.bridged.push(self.bridged()?);
        }
        let count = self.u32().filter(|&count| count <= MAX_FUNCTIONS)?;
        for _ in 0..count {
            let (name, range) = (self.text()?, self.range()?);
            ledger.named.push(Variable { name, range, identity: self.text()? });
        }
        Some(ledger)
    }

    fn calls(&mut self) -> Option<Vec<LiveAddr>> {
        let count = self.u32().filter(|&count| count <= finders::MAX_CALLS)?;
        (0..count).map(|_| self.address()).collect()
    }

    fn bridged(&mut self) -> Option<Bridged> {
        Some(Bridged {
            name: self.text()?,
            site: self.address()?,
            site_bytes: self.array()?,
            before: self.address()?,
            after: self.address()?,
        })
    }

    fn function(&mut self) -> Option<Replaced> {
        let mut function = Replaced {
            name: self.text()?,
            site: self.address()?,
            site_bytes: self.array()?,
            thunk: self.address()?,
            new: self.address()?,
            old: Vec::new(),
        };
        let count = self.u32()?;
        for _ in 0..count {
            let old = OldRange { range: self.range()?, digest: self.array()? };
            function.old.push(old);
        }
        Some(function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Ledger {
        let at = LiveAddr(0x10_0000);
        Ledger {
            id: "0123456789abcdef".to_owned(),
            name: "fix".to_owned(),
            build_id: vec![7; 20],
            counter: 3,
            uid: 1000,
            applied_at: 5,
            base: LiveAddr(0x40_0000).range(0x3000),
            mapping: at.range(0x4000),
            constants: at.plus(0x1000).range(0x80),
            code: at.plus(0x2000).range(0x100),
            text: at.plus(0x2000).range(0x80),
            thunks: at.plus(0x2080).range(0x40),
            gates: at.plus(0x20c0).range(GATE_SIZE),
            variables: at.plus(0x3000).range(8),
            eh_frame: LiveRange::default(),
            state: at.plus(0x1080),
            calls: vec![LiveAddr(0x40_1801)],
            functions: vec![Replaced {
                name: "f".to_owned(),
                old: vec![OldRange { range: LiveAddr(0x40_1000).range(32), digest: [1; 32] }],
                site: LiveAddr(0x40_1004),
                site_bytes: [1, 2, 3, 4, 5],
                thunk: at.plus(0x2080),
                new: at.plus(0x2000),
            }],
            ..Ledger::default()
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let ledger = sample();
        assert_eq!(Ledger::parse(&ledger.bytes().unwrap(), ledger.mapping.start), Some(ledger));
    }

    #[test]
    fn no_cut_or_flipped_byte_passes_and_nothing_panics() {
        let ledger = sample();
        let bytes = ledger.bytes().unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(Ledger::parse(&bytes[..cut], ledger.mapping.start), None);
        }
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x80;
            assert_eq!(Ledger::parse(&damaged, ledger.mapping.start), None, "byte {index}");
            // The same with a checksum that fits again: must not panic, whatever it gives.
            let digest = sha256(&damaged[HEADER..]);
            damaged[16..HEADER].copy_from_slice(&digest);
            let _ = Ledger::parse(&damaged, ledger.mapping.start);
        }
    }

    /// Numbers that look random, the same in every run (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % end as u64) as usize
        }
    }

    /// A ledger as a hostile target would write it: the checksum fits.
    fn damaged(random: &mut Random, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=random.below(3) {
            let at = HEADER + random.below(bytes.len() - HEADER);
            match random.below(6) {
                0 => bytes[at] ^= 1 << random.below(8),
                1 => bytes[at] = [0, 1, 0x7f, 0xff][random.below(4)],
                2 => drop(bytes.splice(at..at, [0; 4])),
                3 => bytes.truncate(at.max(HEADER + 1)),
                4 => {
                    let value = [0, 1, u64::MAX, 1 << 47, 0x10_0000, 0x40_1000][random.below(6)];
                    let end = (at + 8).min(bytes.len());
                    bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                }
                _ => {
                    let from = HEADER + random.below(bytes.len() - HEADER);
                    let piece = bytes[from..(from + random.below(60)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let len = (bytes.len() as u32).to_le_bytes();
        bytes[12..16].copy_from_slice(&len);
        let digest = sha256(&bytes[HEADER..]);
        bytes[16..HEADER].copy_from_slice(&digest);
        bytes
    }

    /// What a hostile target writes is refused, or it is a sound ledger that has no other form.
    #[test]
    fn a_hostile_ledger_is_refused_or_sound() {
        let (mut random, mut taken) = (Random(0x9e37_79b9_7f4a_7c15), 0);
        let ledger = sample();
        let bytes = ledger.bytes().unwrap();
        for _ in 0..60_000 {
            let bytes = damaged(&mut random, bytes.clone());
            let Some(parsed) = Ledger::parse(&bytes, ledger.mapping.start) else { continue };
            taken += 1;
            assert_eq!(parsed.bytes().unwrap(), bytes);
            assert_eq!(parsed.mapping.start, ledger.mapping.start);
            for function in &parsed.functions {
                assert!(parsed.base.covers(function.site_range()) && parsed.mapping.contains(function.new));
            }
        }
        assert!(taken > 1000, "only {taken} were sound: the damage is too great to say anything");
    }

    #[test]
    fn addresses_that_lead_elsewhere_are_refused() {
        let change = |edit: fn(&mut Ledger)| {
            let mut ledger = sample();
            edit(&mut ledger);
            Ledger::parse(&ledger.bytes().unwrap(), LiveAddr(0x10_0000))
        };
        assert!(change(|_| {}).is_some());
        assert!(change(|l| l.mapping.start = LiveAddr(0x10_1000)).is_none());
        assert!(change(|l| l.functions[0].site = LiveAddr(0x50_0000)).is_none());
        assert!(change(|l| l.functions[0].site = LiveAddr(0x40_1002)).is_none());
        assert!(change(|l| l.functions[0].thunk = l.functions[0].new).is_none());
        assert!(change(|l| l.functions[0].old.clear()).is_none());
        assert!(change(|l| l.state = LiveAddr(0x10_2000)).is_none());
        assert!(change(|l| l.base = l.mapping).is_none());
    }
}
