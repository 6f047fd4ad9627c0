//! The landing pads of a payload.
//!
//! The C++ runtime notes in the header of each exception where it will be caught, and leaves
//! the note there when it gives the memory back. So after a catch the heap has words that
//! look like pointers into the payload's code and lead nowhere any more: they count only
//! between the two phases of unwinding, while the payload's frame is on the stack.
//!
//! Read are the exception tables as the diff writes them (`docs/FORMAT.md`). A landing pad
//! behind a call is left out: the same address may be that call's return address.

use crate::addr::{LiveAddr, LiveRange};
use crate::ledger::Ledger;
use crate::prelude::*;
use crate::small::sort_by_key;
use crate::sys::Mem;
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, Pointer, UnwindSection};

/// Largest exception table of a function.
const MAX_TABLE: u64 = 1 << 20;

/// Sorted addresses of landing pads that cannot be anything else.
pub(crate) fn pads(mem: &Mem, ledger: &Ledger) -> Vec<LiveAddr> {
    let mut pads = Vec::new();
    let Ok(bytes) = mem.bytes(ledger.eh_frame.start, ledger.eh_frame.len() as usize) else { return pads };
    let bases = BaseAddresses::default().set_eh_frame(ledger.eh_frame.start.0);
    let section = EhFrame::new(&bytes, LittleEndian);
    let mut entries = section.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
            && let Some(Pointer::Direct(at)) = fde.lsda()
        {
            let code = LiveAddr(fde.initial_address()).range(fde.len());
            let _ = table(mem, ledger, LiveAddr(at), code, &mut pads);
        }
    }
    pads.retain(|pad| ledger.code.contains(*pad) && !is_behind_a_call(mem, *pad));
    sort_by_key(&mut pads, |pad| *pad);
    pads
}

fn table(mem: &Mem, ledger: &Ledger, at: LiveAddr, code: LiveRange, pads: &mut Vec<LiveAddr>) -> Option<()> {
    let held = ledger.constants.contains(at).then_some(ledger.constants.end.0.checked_sub(at.0)?)?;
    let bytes = mem.bytes(at, held.min(MAX_TABLE) as usize).ok()?;
    let mut r = Reader(&bytes);
    let base = match r.byte()? {
        0xff => code.start,
        0x1b => at.plus(1).plus(r.int()? as i64 as u64),
        _ => return None,
    };
    if r.byte()? != 0xff {
        r.uleb()?;
    }
    (r.byte()? == 0x01).then_some(())?;
    let size = r.uleb()?;
    let mut sites = Reader(r.0.get(..usize::try_from(size).ok()?)?);
    while !sites.0.is_empty() {
        let (_start, _length, landing, _action) = (sites.uleb()?, sites.uleb()?, sites.uleb()?, sites.uleb()?);
        if landing != 0 {
            pads.push(base.plus(landing));
        }
    }
    Some(())
}

/// Whether the bytes before an address may be a call: `e8` and a distance, or `ff /2` in any length.
fn is_behind_a_call(mem: &Mem, at: LiveAddr) -> bool {
    let Ok(before) = mem.array::<7>(LiveAddr(at.0.wrapping_sub(7))) else { return true };
    let indirect = |pair: &[u8]| matches!(pair, [0xff, modrm] if modrm >> 3 & 7 == 2);
    before[2] == 0xe8 || before.windows(2).any(indirect)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn int(&mut self) -> Option<i32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(i32::from_le_bytes(*head))
    }

    fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}
