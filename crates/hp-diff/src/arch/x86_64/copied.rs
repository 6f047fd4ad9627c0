//! How much does code copy from an address, and does it do anything else with it?
//!
//! `lea x(%rip),%rsi; mov $54,%ecx; rep movsq` is how a compiler sets up a local array. The code is followed in the order
//! in which it lies; where anything may lead to, and where control goes elsewhere, nothing is known of the registers.
//! Behind the copy RSI leads behind what was copied; whatever is still read there belongs to it.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

/// For each place that takes an address and only copies from there, or only reads there: offset of the instruction
/// and how many bytes. `is_label` says of an address whether something may lead to it.
pub(crate) fn copied(address: u64, bytes: &[u8], is_label: impl Fn(u64) -> bool) -> Vec<(u32, u64)> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut follow = Follow::default();
    let (mut instruction, mut factory) = (Instruction::default(), InstructionInfoFactory::new());
    while decoder.can_decode() {
        let at = decoder.position() as u32;
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            break;
        }
        if is_label(instruction.ip()) {
            follow.forget();
        }
        follow.step(at, &instruction, factory.info(&instruction));
    }
    follow.forget();
    follow.found
}

#[derive(Default)]
struct Follow {
    /// The instruction that put an address into RSI.
    source: Option<Source>,
    /// What RCX holds.
    count: Option<u64>,
    found: Vec<(u32, u64)>,
}

#[derive(Clone, Copy)]
struct Source {
    at: u32,
    /// How far behind the address RSI leads.
    passed: u64,
    copied: u64,
}

impl Follow {
    fn forget(&mut self) {
        self.end();
        self.count = None;
    }

    /// RSI leads there no longer.
    fn end(&mut self) {
        let source = self.source.take();
        self.found.extend(source.filter(|s| s.copied > 0).map(|s| (s.at, s.copied)));
    }

    fn step(&mut self, at: u32, instruction: &Instruction, info: &InstructionInfo) {
        if instruction.flow_control() != FlowControl::Next {
            return self.forget();
        }
        if let Some(width) = moved(instruction) {
            let times = if instruction.has_rep_prefix() { self.count.take() } else { Some(1) };
            return self.copy(times.and_then(|n| n.checked_mul(width)));
        }
        if instruction.is_ip_rel_memory_operand() && instruction.mnemonic() != Mnemonic::Lea {
            self.read(at, instruction, info);
        }
        self.note_uses(instruction, info);
        let sets = |full: Register| {
            instruction.op0_kind() == OpKind::Register && instruction.op0_register().full_register() == full
        };
        if sets(Register::RSI) && instruction.mnemonic() == Mnemonic::Lea && instruction.is_ip_rel_memory_operand() {
            self.source = Some(Source { at, passed: 0, copied: 0 });
        }
        if sets(Register::RCX) && instruction.mnemonic() == Mnemonic::Mov {
            self.count = match instruction.op1_kind() {
                OpKind::Immediate32 => Some(u64::from(instruction.immediate32())),
                OpKind::Immediate32to64 => u64::try_from(instruction.immediate32to64()).ok(),
                _ => None,
            };
        }
    }

    /// RSI moves on by so many bytes, which are copied.
    fn copy(&mut self, bytes: Option<u64>) {
        match (&mut self.source, bytes) {
            (Some(source), Some(bytes)) => {
                source.passed += bytes;
                source.copied = source.copied.max(source.passed);
            }
            _ => self.source = None,
        }
    }

    /// An instruction that reads at a fixed place.
    fn read(&mut self, at: u32, instruction: &Instruction, info: &InstructionInfo) {
        let size = instruction.memory_size().size() as u64;
        if size > 0 && info.used_memory().iter().all(|m| m.access() == OpAccess::Read) {
            self.found.push((at, size));
        }
    }

    /// What the instruction does with RSI and RCX.
    fn note_uses(&mut self, instruction: &Instruction, info: &InstructionInfo) {
        let (mut keeps, mut ends) = (true, false);
        for memory in info.used_memory().iter().filter(|m| m.base() == Register::RSI || m.index() == Register::RSI) {
            let end = memory.displacement().wrapping_add(memory.memory_size().size() as u64);
            match &mut self.source {
                Some(s) if memory.access() == OpAccess::Read && memory.index() == Register::None && end <= 1 << 16 => {
                    s.copied = s.copied.max(s.passed + end);
                }
                _ => keeps = false,
            }
        }
        let reads_it = (0..instruction.op_count()).any(|i| {
            let read = !(i == 0 && matches!(info.op0_access(), OpAccess::Write));
            read && instruction.op_kind(i) == OpKind::Register
                && instruction.op_register(i).full_register() == Register::RSI
        });
        for used in info.used_registers() {
            let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
            match used.register().full_register() {
                Register::RSI if writes => ends = true,
                Register::RCX if writes => self.count = None,
                _ => {}
            }
        }
        if !keeps || reads_it || instruction.mnemonic() == Mnemonic::Lea && instruction.memory_base() == Register::RSI {
            self.source = None;
        } else if ends {
            self.end();
        }
    }
}

/// Bytes that one step of MOVS moves.
fn moved(instruction: &Instruction) -> Option<u64> {
    match instruction.mnemonic() {
        Mnemonic::Movsb => Some(1),
        Mnemonic::Movsw => Some(2),
        Mnemonic::Movsd if instruction.is_string_instruction() => Some(4),
        Mnemonic::Movsq => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::copied;

    /// `lea rsi,[rip+d]` and then `rest`.
    fn all(rest: &[u8]) -> Vec<(u32, u64)> {
        let mut code = vec![0x48, 0x8d, 0x35, 0xf9, 0x0f, 0, 0];
        code.extend(rest);
        copied(0x1000, &code, |_| false)
    }

    const COUNT: [u8; 5] = [0xb9, 0x36, 0, 0, 0]; // mov ecx,54
    const COPY: [u8; 3] = [0xf3, 0x48, 0xa5]; // rep movsq

    #[test]
    fn a_copy_has_a_length() {
        assert_eq!(all(&[&COUNT[..], &COPY].concat()), [(0, 432)]);
        // … and one more word, and four bytes by a register.
        assert_eq!(all(&[&COUNT[..], &COPY, &[0x48, 0xa5, 0x8b, 0x06]].concat()), [(0, 444)]);
        // mov eax,[rip+d]; a load reads four bytes, and a store none.
        assert_eq!(copied(0x1000, &[0x8b, 0x05, 0, 0, 0, 0, 0x89, 0x05, 0, 0, 0, 0], |_| false), [(0, 4)]);
    }

    #[test]
    fn what_else_is_done_with_the_address_makes_it_no_copy() {
        let without = |rest: &[u8]| assert_eq!(all(rest), [], "{rest:x?}");
        without(&[]);
        without(&COPY); // how much is not known
        without(&[&COUNT[..], &[0x48, 0x89, 0xf0], &COPY].concat()); // mov rax,rsi
        without(&[&COUNT[..], &[0x56], &COPY].concat()); // push rsi
        without(&[&COUNT[..], &[0x89, 0x06], &COPY].concat()); // mov [rsi],eax
        without(&[&COUNT[..], &[0x48, 0x8d, 0x46, 8], &COPY].concat()); // lea rax,[rsi+8]
        without(&[&COUNT[..], &[0xe8, 0, 0, 0, 0], &COPY].concat()); // a call
        without(&[&COUNT[..], &[0xff, 0xc1], &COPY].concat()); // inc ecx
    }

    #[test]
    fn where_something_leads_nothing_is_known() {
        let mut code = vec![0x48, 0x8d, 0x35, 0xf9, 0x0f, 0, 0];
        code.extend(COUNT);
        code.extend(COPY);
        assert_eq!(copied(0x1000, &code, |a| a == 0x100c), []);
        assert_eq!(copied(0x1000, &code, |a| a == 0x1000), [(0, 432)]);
    }
}
