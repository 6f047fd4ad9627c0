//! Numbers that code hands to a call: the only places where a line number is expected.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// A pair of arguments, equal in place and kind, with different numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DifferingArgument {
    /// Offset of the instruction.
    pub offset: u32,
    pub old: u32,
    pub new: u32,
}

/// Where two ranges of equal length differ, fields that lead somewhere put aside
/// (`is_site`, by offset), if they differ in constant arguments of calls only.
pub(crate) fn differing_arguments(
    old: &[u8],
    new: &[u8],
    is_site: impl Fn(usize) -> bool,
) -> Option<Vec<DifferingArgument>> {
    if old.len() != new.len() {
        return None;
    }
    let mut found = Vec::new();
    let (mut a, mut b) = (Decoder::new(64, old, DecoderOptions::NONE), Decoder::new(64, new, DecoderOptions::NONE));
    while a.can_decode() {
        let (at, x, y) = (a.position(), a.decode(), b.decode());
        let end = a.position();
        if x.is_invalid() || b.position() != end {
            return None;
        }
        let differing: Vec<usize> = (at..end).filter(|i| old[*i] != new[*i] && !is_site(*i)).collect();
        let (Some(first), Some(last)) = (differing.first(), differing.last()) else { continue };
        let field = a.get_constant_offsets(&x);
        let start = at + field.immediate_offset();
        if !field.has_immediate() || *first < start || *last >= start + field.immediate_size() {
            return None;
        }
        found.push(DifferingArgument { offset: at as u32, old: argument(&x)?, new: argument(&y)? });
    }
    Some(found)
}

/// A constant that a call is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallArgument {
    /// Offset of the instruction that sets it.
    pub at: u32,
    /// Where it is put: a register, or a place on the stack.
    pub place: Register,
    pub slot: u64,
    pub value: u32,
    /// Offset behind the call before, where this call's arguments begin; and of this call.
    pub window: (u32, u32),
    /// Where the call leads.
    pub target: u64,
}

/// The constants that each direct call in `bytes` is given, as far as they stand before it without another call between.
pub(crate) fn call_arguments(address: u64, bytes: &[u8]) -> Vec<CallArgument> {
    let mut found = Vec::new();
    let mut pending: Vec<CallArgument> = Vec::new();
    let mut start = 0;
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    while decoder.can_decode() {
        let at = decoder.position() as u32;
        let instruction = decoder.decode();
        if let Some(value) = argument(&instruction) {
            let (place, slot) = place(&instruction);
            pending.retain(|p| (p.place, p.slot) != (place, slot));
            pending.push(CallArgument { at, place, slot, value, window: (0, 0), target: 0 });
            continue;
        }
        let leaves = match instruction.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall | FlowControl::IndirectBranch | FlowControl::Return => true,
            FlowControl::UnconditionalBranch => {
                let to = instruction.near_branch_target();
                !(address..address + bytes.len() as u64).contains(&to)
            }
            _ => false,
        };
        if leaves {
            if matches!(instruction.op0_kind(), OpKind::NearBranch64) {
                let target = instruction.near_branch_target();
                found.extend(pending.iter().map(|p| CallArgument { window: (start, at), target, ..*p }));
            }
            pending.clear();
            start = decoder.position() as u32;
        } else if instruction.op0_kind() == OpKind::Register && instruction.mnemonic() != Mnemonic::Cmp {
            pending.retain(|p| p.place != instruction.op0_register().full_register());
        }
    }
    found
}

/// Where an argument is put.
fn place(instruction: &Instruction) -> (Register, u64) {
    match instruction.op0_kind() {
        OpKind::Register => (instruction.op0_register().full_register(), 0),
        OpKind::Memory => (Register::None, instruction.memory_displacement64()),
        // Pushed: which of the arguments it is depends on the pushes behind it.
        _ => (Register::RSP, 0),
    }
}

/// The number that the instruction puts into a register or stack slot for a call.
fn argument(instruction: &Instruction) -> Option<u32> {
    use Register::{ECX, EDI, EDX, ESI, R8D, R9D, RSP};
    match instruction.code() {
        Code::Mov_r32_imm32 if [EDI, ESI, EDX, ECX, R8D, R9D].contains(&instruction.op0_register()) => {
            Some(instruction.immediate32())
        }
        Code::Mov_rm32_imm32 if instruction.op0_kind() == OpKind::Memory && instruction.memory_base() == RSP => {
            Some(instruction.immediate32())
        }
        Code::Pushq_imm32 => u32::try_from(instruction.immediate32to64()).ok(),
        Code::Pushq_imm8 => u32::try_from(instruction.immediate8to64()).ok(),
        _ => None,
    }
}
