//! A stack walk that proves what it says, by call-frame information alone.
//!
//! Each frame must validate: its unwind row is found, its return address lies in an
//! executable mapping, and the frames' addresses grow (signal frames excepted, as a
//! handler may run on another stack). Only a walk that ends at an undefined return
//! address (`_start`, `clone`) is *proven*; whatever else happens, the walk proves
//! nothing. Frame pointers and guesses are never used.
//!
//! Rows are found through each module's `.eh_frame_hdr` by binary search in the target's
//! memory; the pages read are kept, since unwind tables do not change, so the second
//! thread in the same functions costs almost nothing. Payloads of patches have no such
//! index; their few rows are listed from the ledger. Neither has a program that `gcc -static`
//! links: there the section itself is searched for, and counts only if every entry of it is
//! whole and covers code of that image.

use crate::addr::{LiveAddr, LiveRange};
use crate::bytes::u32_at;
use crate::expression;
use crate::image::Image;
use crate::ledger::Ledger;
use crate::maps::Maps;
use crate::prelude::*;
use crate::sys::{Mem, Regs};
use gimli::{
    BaseAddresses, CfaRule, EhFrame, EhFrameOffset, LittleEndian, Register, RegisterRule, UnwindContext,
    UnwindExpression, UnwindSection,
};

/// Most frames of one stack.
const MAX_FRAMES: usize = 4096;
/// Largest unwind entry.
const MAX_ENTRY: u32 = 1 << 20;
/// Largest segment that is searched for rows, and most places that are tried as their start.
const MAX_SEARCHED: u64 = 256 << 20;
const MAX_STARTS: usize = 64;
/// Number of DWARF registers that matter: the 16 general ones and the return address.
const REGISTERS: usize = 17;
const RSP: usize = 7;
const RIP: usize = 16;

/// One frame: where it goes on, and whether that is exact or a return address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) pc: LiveAddr,
    /// True for the innermost frame and for one that a signal interrupted.
    pub(crate) exact: bool,
}

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walk {
    pub(crate) frames: Vec<Frame>,
    /// The stack pointer in each of them, as far as it is known.
    pub(crate) stack_pointers: Vec<u64>,
    /// The walk reached the outermost frame with every step validated.
    pub(crate) proven: bool,
}

/// Unwind tables of a target; kept over several stops.
pub(crate) struct Unwinder<'p> {
    mem: &'p Mem,
    tables: Vec<Table>,
}

enum Rows {
    /// Sorted `(start, entry)` pairs at this place: two signed 32-bit offsets each from `from`.
    Indexed { from: LiveAddr, pairs: LiveAddr, count: u64 },
    /// `(code, entry)`, listed.
    Listed(Vec<(LiveRange, LiveAddr)>),
}

struct Table {
    code: LiveRange,
    rows: Rows,
}

impl<'p> Unwinder<'p> {
    /// Prepares for these images and the payloads of these patches.
    pub(crate) fn new(mem: &'p Mem, images: &[Image], ledgers: &[Ledger]) -> Unwinder<'p> {
        let mut unwinder = Unwinder { mem, tables: Vec::new() };
        let modules = images.iter().filter_map(|image| indexed(mem, image).or_else(|| searched(mem, image)));
        let mut tables: Vec<Table> = modules.collect();
        tables.extend(ledgers.iter().filter_map(|ledger| unwinder.listed(ledger)));
        unwinder.tables = tables;
        unwinder
    }

    /// Adds the rows of a payload that was loaded meanwhile.
    pub(crate) fn add(&mut self, ledger: &Ledger) {
        self.tables.retain(|table| !table.code.overlaps(ledger.mapping));
        let table = self.listed(ledger);
        self.tables.extend(table);
    }

    fn listed(&self, ledger: &Ledger) -> Option<Table> {
        let bytes = self.mem.bytes(ledger.eh_frame.start, ledger.eh_frame.len() as usize).ok()?;
        Some(Table { code: ledger.code, rows: Rows::Listed(entries(&bytes, ledger.eh_frame.start).0) })
    }

    /// Walks the stack of a thread that stands with these registers.
    pub(crate) fn walk(&self, regs: &Regs, maps: &Maps) -> Walk {
        let mut walk = Walk::default();
        let mut state = dwarf_registers(regs);
        let mut frame = Frame { pc: LiveAddr(regs.rip), exact: true };
        for _ in 0..MAX_FRAMES {
            walk.frames.push(frame);
            walk.stack_pointers.extend(state.get(RSP));
            match self.step(&state, frame, maps) {
                Some(Step::Outermost) => {
                    walk.proven = true;
                    break;
                }
                Some(Step::Caller(caller, registers)) => (frame, state) = (caller, registers),
                None => break,
            }
        }
        walk
    }

    fn step(&self, registers: &Registers, frame: Frame, maps: &Maps) -> Option<Step> {
        let lookup = if frame.exact { frame.pc.0 } else { frame.pc.0.checked_sub(1)? };
        let fde_at = self.entry_for(LiveAddr(lookup))?;
        let buffer = self.entry_bytes(fde_at)?;
        let bases = BaseAddresses::default().set_eh_frame(fde_at.0.checked_sub(buffer.fde as u64)?);
        let section = EhFrame::new(&buffer.bytes, LittleEndian);
        let fde = section.fde_from_offset(&bases, EhFrameOffset(buffer.fde), EhFrame::cie_from_offset).ok()?;
        if fde.cie().return_address_register() != Register(RIP as u16) {
            return None;
        }
        let signal = fde.is_signal_trampoline();
        let mut context = UnwindContext::new();
        let row = fde.unwind_info_for_address(&section, &bases, &mut context, lookup).ok()?;
        let context = Known { unwinder: self, registers };
        let evaluate = |expression: &UnwindExpression<usize>, cfa: Option<u64>| {
            expression::evaluate(expression.get(&section).ok()?.0.slice(), cfa, &context)
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                registers.get(usize::from(register.0))?.wrapping_add(*offset as u64)
            }
            CfaRule::Expression(expression) => evaluate(expression, None)?,
        };
        if row.register(Register(RIP as u16)) == Some(RegisterRule::Undefined) {
            return Some(Step::Outermost);
        }
        let mut caller = *registers;
        for index in 0..REGISTERS {
            let value = match row.register(Register(index as u16)) {
                // The psABI's default: the stack pointer is the CFA, the rest is as it was.
                None if index == RSP => Some(cfa),
                None if index == RIP => return None,
                None | Some(RegisterRule::SameValue) => registers.get(index),
                Some(RegisterRule::Undefined) => None,
                Some(RegisterRule::Offset(offset)) => Some(self.word(cfa.wrapping_add(offset as u64))?),
                Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add(offset as u64)),
                Some(RegisterRule::Register(other)) => registers.get(usize::from(other.0)),
                Some(RegisterRule::Expression(expression)) => Some(self.word(evaluate(&expression, Some(cfa))?)?),
                Some(RegisterRule::ValExpression(expression)) => Some(evaluate(&expression, Some(cfa))?),
                Some(_) => return None,
            };
            caller.set(index, value);
        }
        let pc = LiveAddr(caller.get(RIP)?);
        let grows = signal || registers.get(RSP).is_some_and(|rsp| cfa > rsp);
        (grows && maps.at(pc).is_some_and(|map| map.execute)).then_some(())?;
        Some(Step::Caller(Frame { pc, exact: signal }, caller))
    }

    fn word(&self, at: u64) -> Option<u64> {
        self.mem.u64(LiveAddr(at)).ok()
    }

    /// The unwind entry that may cover an address.
    fn entry_for(&self, pc: LiveAddr) -> Option<LiveAddr> {
        let table = self.tables.iter().find(|table| table.code.contains(pc))?;
        match &table.rows {
            Rows::Listed(rows) => rows.iter().find(|(code, _)| code.contains(pc)).map(|(_, entry)| *entry),
            Rows::Indexed { from, pairs, count } => {
                let pair = |index: u64| self.mem.kept_u64(pairs.plus(index * 8));
                let offset = |half: u32| from.plus(half as i32 as i64 as u64);
                // The last pair that starts at or before the address.
                let (mut low, mut high) = (0, *count);
                while low < high {
                    let middle = low + (high - low) / 2;
                    if offset(pair(middle)? as u32) <= pc { low = middle + 1 } else { high = middle }
                }
                Some(offset((pair(low.checked_sub(1)?)? >> 32) as u32))
            }
        }
    }

    /// The common entry and the entry at `fde_at`, side by side in one buffer with the link
    /// between them adjusted, so that neither the distance nor the rest of the table matters.
    fn entry_bytes(&self, fde_at: LiveAddr) -> Option<Entry> {
        let fde = self.one_entry(fde_at)?;
        let back = u32_at(&fde, 4).filter(|&back| back != 0)?;
        let cie = self.one_entry(LiveAddr(fde_at.0.checked_add(4)?.checked_sub(u64::from(back))?))?;
        if u32_at(&cie, 4)? != 0 {
            return None;
        }
        let mut bytes = cie;
        let at = bytes.len();
        bytes.extend(fde);
        let link = (at + 4) as u32;
        bytes.get_mut(at + 4..at + 8)?.copy_from_slice(&link.to_le_bytes());
        Some(Entry { bytes, fde: at })
    }

    fn one_entry(&self, at: LiveAddr) -> Option<Vec<u8>> {
        let mut start = [0; 4];
        self.mem.kept(at, &mut start)?;
        let len = u32::from_le_bytes(start);
        if !(8..=MAX_ENTRY).contains(&len) {
            return None;
        }
        let mut bytes = vec![0; len as usize + 4];
        self.mem.kept(at, &mut bytes)?;
        Some(bytes)
    }
}

/// Code and place of each entry in rows that lie at `at`; and whether all of them could be read.
fn entries(bytes: &[u8], at: LiveAddr) -> (Vec<(LiveRange, LiveAddr)>, bool) {
    let bases = BaseAddresses::default().set_eh_frame(at.0);
    let section = EhFrame::new(bytes, LittleEndian);
    let mut rows = Vec::new();
    let mut entries = section.entries(&bases);
    loop {
        match entries.next() {
            Ok(Some(gimli::CieOrFde::Fde(partial))) => match partial.parse(EhFrame::cie_from_offset) {
                Ok(fde) => rows.push((LiveAddr(fde.initial_address()).range(fde.len()), at.plus(fde.offset() as u64))),
                Err(_) => return (rows, false),
            },
            Ok(Some(gimli::CieOrFde::Cie(_))) => {}
            end => return (rows, end.is_ok()),
        }
    }
}

/// The rows of a static program that has no index of them.
fn searched(mem: &Mem, image: &Image) -> Option<Table> {
    if image.dynamic.is_some() || image.eh_frame_hdr.is_some() {
        return None;
    }
    let segments = image.segments.iter().filter(|segment| !segment.execute && segment.memory.len() <= MAX_SEARCHED);
    let rows = segments.into_iter().find_map(|segment| {
        let bytes = mem.bytes(segment.memory.start, segment.memory.len() as usize).ok()?;
        let starts = (0..bytes.len().saturating_sub(16)).step_by(4).filter(|&at| starts_with_common(&bytes[at..]));
        starts.into_iter().take(MAX_STARTS).find_map(|at| {
            let (rows, whole) = entries(&bytes[at..], segment.memory.start.plus(at as u64));
            let known = |code: LiveRange| image.segments.iter().any(|s| s.execute && s.memory.covers(code));
            (whole && !rows.is_empty() && rows.iter().all(|(code, _)| known(*code))).then_some(rows)
        })
    })?;
    Some(Table { code: image.span, rows: Rows::Listed(rows) })
}

/// A common entry of version 1 whose augmentation has a size: length, zero, version, `z`.
fn starts_with_common(bytes: &[u8]) -> bool {
    let length = u32_at(bytes, 0).unwrap_or(0);
    (12..256).contains(&length) && length.is_multiple_of(4) && bytes.get(4..10) == Some(&[0, 0, 0, 0, 1, b'z'])
}

/// The binary search table of a module (LSB, "Exception Frames"), if it has the usual form.
fn indexed(mem: &Mem, image: &Image) -> Option<Table> {
    let at = image.eh_frame_hdr?;
    let header: [u8; 12] = mem.array(at.start).ok()?;
    // Version 1, count as udata4, table as sdata4 relative to the header; the pointer to
    // .eh_frame must be 4 bytes long.
    if header[0] != 1 || header[1] & 0x0f != 0x0b || header[2] != 0x03 || header[3] != 0x3b {
        return None;
    }
    let count = u64::from(u32_at(&header, 8)?);
    (count * 8 + 12 <= at.len()).then_some(())?;
    Some(Table { code: image.span, rows: Rows::Indexed { from: at.start, pairs: at.start.plus(12), count } })
}

struct Entry {
    bytes: Vec<u8>,
    fde: usize,
}

/// A frame, as an expression may ask for it.
struct Known<'a> {
    unwinder: &'a Unwinder<'a>,
    registers: &'a Registers,
}

impl expression::Context for Known<'_> {
    fn register(&self, number: u64) -> Option<u64> {
        self.registers.get(usize::try_from(number).ok()?)
    }

    fn word(&self, at: u64) -> Option<u64> {
        self.unwinder.word(at)
    }
}

enum Step {
    Outermost,
    Caller(Frame, Registers),
}

/// Values by DWARF number (psABI figure 3.36), those only that are known.
#[derive(Clone, Copy)]
struct Registers {
    values: [u64; REGISTERS],
    known: u32,
}

impl Registers {
    fn get(&self, index: usize) -> Option<u64> {
        let value = self.values.get(index)?;
        (self.known & (1 << index) != 0).then_some(*value)
    }

    fn set(&mut self, index: usize, value: Option<u64>) {
        let Some(slot) = self.values.get_mut(index) else { return };
        *slot = value.unwrap_or(0);
        self.known = self.known & !(1 << index) | u32::from(value.is_some()) << index;
    }
}

fn dwarf_registers(regs: &Regs) -> Registers {
    let r = regs;
    let values = [
        r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
        r.rip,
    ];
    Registers { values, known: (1 << REGISTERS) - 1 }
}
