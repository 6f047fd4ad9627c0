//! Finding a hole in the target's address space for a payload, such that every byte of
//! the base and every byte of the payload reach each other with a signed 32-bit offset.
//!
//! Holes below the base are preferred: above a position-independent executable lies the
//! heap, which must be able to grow. One page is left free on both sides, so that the
//! kernel does not merge the payload with a neighbour, and the room into which the main
//! stack may grow is left alone.

use crate::addr::{LiveAddr, LiveRange, PAGE};
use crate::failure::{Failure, refused};
use crate::maps::Maps;
use crate::prelude::*;

/// How far a signed 32-bit offset reaches, less a margin for addends.
const REACH: u64 = (1 << 31) - (1 << 20);
/// End of the user address space (47 bits).
const USER_END: u64 = 0x7fff_ffff_f000;
/// Lowest address to use, above any usual `vm.mmap_min_addr`.
const USER_START: u64 = 0x11_0000;
/// Room below the main stack that is left to it.
const STACK_ROOM: u64 = 256 << 20;
/// Room above the heap that is left to it, where there is a choice.
const HEAP_ROOM: u64 = 64 << 20;

/// A free range of `size` bytes near `base`.
pub(crate) fn find(maps: &Maps, base: LiveRange, size: u64) -> Result<LiveAddr, Failure> {
    let low = base.end.0.saturating_sub(REACH).max(USER_START);
    let high = base.start.0.saturating_add(REACH).min(USER_END);
    let holes = holes(maps, low, high, size);
    let below = holes.iter().rev().find(|hole| hole.end <= base.start);
    let highest = |hole: &LiveRange| LiveAddr(hole.end.0 - PAGE - size);
    if let Some(hole) = below {
        return Ok(highest(hole));
    }
    // Above: the far end of the last hole, as far from the heap as can be.
    let above = holes.iter().rev().find(|hole| hole.start >= base.end);
    above.map(highest).ok_or_else(|| {
        refused(format_args!("no free range of {size:#x} bytes within 2 GiB of the base at {}", base.start))
    })
}

fn holes(maps: &Maps, low: u64, high: u64, size: u64) -> Vec<LiveRange> {
    let need = size + 2 * PAGE;
    let mut holes = Vec::new();
    let mut from = low;
    let mut add = |start: u64, end: u64| {
        let end = end.min(high);
        if end > start && end - start >= need {
            holes.push(LiveRange { start: LiveAddr(start), end: LiveAddr(end) });
        }
    };
    for mapping in maps.iter() {
        let (before, after) = match mapping.path.as_str() {
            "[stack]" => (STACK_ROOM, 0),
            "[heap]" => (0, HEAP_ROOM),
            _ => (0, 0),
        };
        add(from, mapping.range.start.0.saturating_sub(before));
        from = from.max(mapping.range.end.0.saturating_add(after));
    }
    add(from, high);
    holes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> LiveRange {
        LiveAddr(0x5555_0000_0000).range(0x4000)
    }

    #[test]
    fn below_the_base_with_a_free_page_between() {
        let maps = Maps::parse("555500000000-555500004000 r-xp 0 08:01 1 /x\n");
        assert_eq!(find(&maps, base(), 0x3000).unwrap(), LiveAddr(0x5555_0000_0000 - 0x4000));
    }

    #[test]
    fn above_the_heap_where_nothing_is_free_below_and_never_in_a_full_space() {
        let text = "00000000-555500004000 r-xp 0 08:01 1 /x\n555500004000-555500010000 rw-p 0 0:0 0 [heap]\n";
        let at = find(&Maps::parse(text), base(), 0x3000).unwrap();
        assert!(at.0 > 0x5555_0001_0000 + HEAP_ROOM && at.0 + 0x3000 < base().start.0 + (1 << 31));
        let full = Maps::parse("00000000-7ffffffff000 r-xp 0 08:01 1 /x\n");
        assert!(find(&full, base(), 0x1000).is_err());
    }
}
