//! Code that differs only in how far into an object it reaches: what a changed structure leaves behind.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// An instruction that reaches another distance into the object that a register leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Displaced {
    /// Offset of the instruction in the old range.
    pub at: u32,
    /// The distances, in bytes.
    pub old: i64,
    pub new: i64,
}

/// The instructions of two ranges that reach another distance into an object, if nothing else differs between the two but
/// where their fields lead to and where they keep their own variables on the stack.
pub(crate) fn displaced(old: &[u8], new: &[u8]) -> Option<Vec<Displaced>> {
    let (mut a, mut b) = (Decoder::new(64, old, DecoderOptions::NONE), Decoder::new(64, new, DecoderOptions::NONE));
    let frame = [has_frame_pointer(old), has_frame_pointer(new)].contains(&true);
    let (mut found, mut fixed) = (Vec::new(), Vec::<Register>::new());
    while a.can_decode() && b.can_decode() {
        let at = a.position() as u32;
        let (x, y) = (a.decode(), b.decode());
        if x.is_invalid() || y.is_invalid() || !is_same_otherwise(&x, &y) {
            return None;
        }
        let (from, to) = (distance(&x), distance(&y));
        let is_object = |base: Register| match base {
            // A thread-local variable, by its distance from the thread pointer.
            Register::None => x.segment_prefix() == Register::FS,
            Register::RSP | Register::RIP => false,
            Register::RBP => !frame,
            _ => true,
        };
        // What lies before a fixed address is no member of an object there.
        let before_fixed = from < 0 && to < 0 && fixed.contains(&x.memory_base());
        fixed.retain(|register| x.op_count() == 0 || x.op0_kind() != OpKind::Register || x.op0_register() != *register);
        if x.mnemonic() == Mnemonic::Lea && x.is_ip_rel_memory_operand() {
            fixed.push(x.op0_register());
        }
        if from != to && is_object(x.memory_base()) && !before_fixed {
            found.push(Displaced { at, old: from, new: to });
        }
    }
    (!a.can_decode() && !b.can_decode()).then_some(found)
}

fn distance(instruction: &Instruction) -> i64 {
    instruction.memory_displacement64() as i64
}

fn has_frame_pointer(code: &[u8]) -> bool {
    Decoder::new(64, code, DecoderOptions::NONE).iter().any(|i| {
        let sets = matches!(i.mnemonic(), Mnemonic::Mov | Mnemonic::Lea) && i.op0_register() == Register::RBP;
        sets && (i.op1_register() == Register::RSP || i.memory_base() == Register::RSP)
    })
}

/// The same operation on the same registers and numbers.
fn is_same_otherwise(x: &Instruction, y: &Instruction) -> bool {
    if x.mnemonic() != y.mnemonic() || x.op_count() != y.op_count() {
        return false;
    }
    let rip = x.is_ip_rel_memory_operand() && y.is_ip_rel_memory_operand();
    let memory = |i: &Instruction| {
        (i.memory_base(), i.memory_index(), i.memory_index_scale(), i.segment_prefix(), i.memory_size())
    };
    x.op_kinds().zip(y.op_kinds()).enumerate().all(|(n, (p, q))| {
        let n = n as u32;
        match (p, q) {
            _ if p != q => false,
            (OpKind::Register, _) => x.op_register(n) == y.op_register(n),
            (OpKind::Memory, _) => rip || memory(x) == memory(y),
            (OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64, _) => true,
            _ => x.try_immediate(n).ok() == y.try_immediate(n).ok(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mov rax,[rdi+8]; mov [rsp+8],rax; cmp eax,5; ret`.
    const OLD: &[u8] = &[0x48, 0x8b, 0x47, 8, 0x48, 0x89, 0x44, 0x24, 8, 0x83, 0xf8, 5, 0xc3];

    fn with(at: usize, byte: u8) -> Vec<u8> {
        let mut code = OLD.to_vec();
        code[at] = byte;
        code
    }

    #[test]
    fn only_distances_into_objects_count() {
        assert_eq!(displaced(OLD, OLD), Some(vec![]));
        assert_eq!(displaced(OLD, &with(3, 16)), Some(vec![Displaced { at: 0, old: 8, new: 16 }]));
        assert_eq!(displaced(OLD, &with(8, 16)), Some(vec![]), "a place on the stack");
        assert_eq!(displaced(OLD, &with(11, 6)), None, "another number");
        assert_eq!(displaced(OLD, &with(2, 0x4f)), None, "another register");
        assert_eq!(displaced(OLD, &OLD[..12]), None, "an instruction less");
    }

    /// `lea rdx,[rip+0]; lea rsi,[rdx-8]; ret`: the start of a text, from its end.
    #[test]
    fn what_lies_before_a_fixed_address_is_no_member() {
        let code = |back: u8| [0x48, 0x8d, 0x15, 0, 0, 0, 0, 0x48, 0x8d, 0x72, back, 0xc3];
        assert_eq!(displaced(&code(0xf8), &code(0xf0)), Some(vec![]));
        assert_eq!(displaced(&code(8), &code(16)), Some(vec![Displaced { at: 7, old: 8, new: 16 }]));
    }

    /// `mov rax,fs:[-8]; ret`, and the same by another distance from the thread pointer.
    #[test]
    fn places_of_thread_local_variables_count() {
        let code = |back: u8| [0x64, 0x48, 0x8b, 0x04, 0x25, back, 0xff, 0xff, 0xff, 0xc3];
        assert_eq!(displaced(&code(0xf8), &code(0xf0)), Some(vec![Displaced { at: 0, old: -8, new: -16 }]));
    }

    /// A distance that needs a wider field makes the function longer.
    #[test]
    fn wider_fields_are_followed() {
        let new = [&[0x48, 0x8b, 0x87, 0x90, 0, 0, 0], &OLD[4..]].concat();
        assert_eq!(displaced(OLD, &new), Some(vec![Displaced { at: 0, old: 8, new: 0x90 }]));
    }
}
