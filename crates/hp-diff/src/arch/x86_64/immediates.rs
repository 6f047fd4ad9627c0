//! Numbers that code sets for a call: the only places where a line number is expected.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

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

/// The number that the instruction puts into a register or stack slot for a call.
pub(super) fn argument(instruction: &Instruction) -> Option<u32> {
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
