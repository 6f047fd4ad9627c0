//! The ways that a function's code can take, instruction by instruction.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use rustc_hash::FxHashMap;

/// The instructions of a function, and which of them is at an address.
pub(super) struct Decoded {
    pub(super) instructions: Vec<Instruction>,
    pub(super) at: FxHashMap<u64, usize>,
}

impl Decoded {
    /// Decodes these ranges: address, bytes.
    pub(super) fn new<'a>(ranges: impl Iterator<Item = (u64, &'a [u8])>) -> Decoded {
        let mut instructions = Vec::new();
        for (address, bytes) in ranges {
            instructions.extend(&mut Decoder::with_ip(64, bytes, address, DecoderOptions::NONE));
        }
        let at = instructions.iter().enumerate().map(|(n, i)| (i.ip(), n)).collect();
        Decoded { instructions, at }
    }

    /// The instructions that may run right after one; those of a jump through a table are not known.
    pub(super) fn behind(&self, n: usize) -> impl Iterator<Item = usize> {
        let instruction = &self.instructions[n];
        let flow = instruction.flow_control();
        let jumps = matches!(flow, FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
        let falls = matches!(
            flow,
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall | FlowControl::ConditionalBranch
        );
        let target = jumps.then(|| self.at.get(&instruction.near_branch_target()).copied()).flatten();
        target.into_iter().chain(falls.then(|| self.at.get(&instruction.next_ip()).copied()).flatten())
    }
}
