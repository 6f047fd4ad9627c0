//! Gates: how threads that call a function without pause are caught outside it.
//!
//! With many threads that spend nearly all their time in the functions to be replaced, no
//! stop ever finds all of them outside: they would have to be out at the same moment. So
//! after a few ordinary tries the entries are led to *gates* while everything stands, the
//! threads that are outside keep standing, and the others go on until each has left. A
//! thread that calls again passes the gate, and the gate makes one harmless system call,
//! where a traced thread stops: outside.
//!
//! A gate is no trap. It saves what a system call changes, calls `getppid`, and goes on to
//! the thunk. So if the applier dies, or gives up, a gate costs its caller some nanoseconds
//! and changes nothing. (Breakpoints and single steps would kill the target then.)
//!
//! How long threads are held is bounded: one that is outside may hold a lock that one
//! inside waits for.

use crate::addr::{LiveAddr, LiveRange};
use crate::prelude::*;
use crate::seccomp::Call;
use crate::sys::number;

/// Length of one gate.
pub(crate) const GATE_SIZE: u64 = 24;

/// `push %rax; push %rcx; push %r11; mov $getppid,%eax; syscall; pop %r11; pop %rcx; pop %rax; jmp …`
const CODE: [u8; 16] =
    [0x50, 0x51, 0x41, 0x53, 0xb8, number::GETPPID as u8, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0x58, 0xe9];

/// The system call in the gate at `at`, as a filter sees it. It changes nothing, so it may fail.
pub(crate) fn call(at: LiveAddr) -> Call {
    Call { number: number::GETPPID, arguments: [0; 6], after: at.plus(11) }
}

/// The gate at `at` that leads to `thunk`; `None` if that is out of reach.
pub(crate) fn code(at: LiveAddr, thunk: LiveAddr) -> Option<[u8; GATE_SIZE as usize]> {
    let next = at.plus(CODE.len() as u64 + 4);
    let distance = i32::try_from(thunk.0.wrapping_sub(next.0) as i64).ok()?;
    let mut gate = [0xcc; GATE_SIZE as usize];
    gate[..CODE.len()].copy_from_slice(&CODE);
    gate[CODE.len()..CODE.len() + 4].copy_from_slice(&distance.to_le_bytes());
    Some(gate)
}

/// The gates of one payload, and the entries that lead to them.
#[derive(Clone, Debug)]
pub(crate) struct Gates {
    pub(crate) range: LiveRange,
    pub(crate) entries: Vec<LiveAddr>,
}

impl Gates {
    /// For a thread that stands in a gate: where it would stand without it, and how many
    /// bytes the gate has put on its stack.
    pub(crate) fn undone(&self, pc: LiveAddr) -> Option<(LiveAddr, u64)> {
        if !self.range.contains(pc) {
            return None;
        }
        let offset = pc.0 - self.range.start.0;
        let entry = self.entries.get((offset / GATE_SIZE) as usize)?;
        let pushed = match offset % GATE_SIZE {
            0 | 15.. => 0,
            1 | 14 => 8,
            2..=3 | 13 => 16,
            4..=12 => 24,
        };
        Some((*entry, pushed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_leads_to_its_thunk_and_knows_its_stack() {
        let at = LiveAddr(0x1000);
        let gate = code(at, LiveAddr(0x900)).unwrap();
        assert_eq!(gate[15], 0xe9);
        let after = (call(at).after.0 - at.0) as usize;
        assert_eq!(gate[after - 2..after], [0x0f, 0x05]);
        assert_eq!(i32::from_le_bytes(gate[16..20].try_into().unwrap()), 0x900 - 0x1014);
        assert!(code(at, LiveAddr(1 << 40)).is_none());
        let gates = Gates { range: at.range(48), entries: vec![LiveAddr(1), LiveAddr(2)] };
        assert_eq!(gates.undone(LiveAddr(0x1000 + 24 + 11)), Some((LiveAddr(2), 24)));
        assert_eq!(gates.undone(LiveAddr(0x1000)), Some((LiveAddr(1), 0)));
        assert_eq!(gates.undone(LiveAddr(0x1000 + 13)), Some((LiveAddr(1), 16)));
        assert_eq!(gates.undone(LiveAddr(0x1030)), None);
    }
}
