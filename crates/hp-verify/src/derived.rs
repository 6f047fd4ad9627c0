//! Addresses that code makes from an address, and that lie before it.
//!
//! `lea end(%rip),%rdx; lea -40(%rdx),%rsi` refers to a text by its end: whoever compares what lies at the end alone has
//! compared nothing. Registers are followed in the order in which the code lies, to the next place that is only jumped to. A variable of
//! the frame, as code without optimisation has them, is one on all ways.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::code::{Step, Use};

/// Registers that hold something made from an address; `T` says which one.
pub(crate) struct Derived<T> {
    held: Vec<(Register, T, i64)>,
    /// Words of the frame that do, by how far they lie from `rbp`.
    words: Vec<(i64, T, i64)>,
    factory: InstructionInfoFactory,
}

/// How far code reaches back from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Back<T> {
    pub(crate) from: T,
    pub(crate) bytes: u64,
    /// Something is read or written there. Else a pointer is calculated, which may get an index later.
    pub(crate) accessed: bool,
}

/// How far back it is followed.
const FAR: i64 = 4096;

impl<T: Copy + PartialEq> Derived<T> {
    pub(crate) fn new() -> Derived<T> {
        Derived { held: Vec::new(), words: Vec::new(), factory: InstructionInfoFactory::new() }
    }

    /// The address that a register holds, if nothing was added to it.
    pub(crate) fn held(&self, register: Register) -> Option<T> {
        self.held.iter().find(|held| held.0 == register && held.2 == 0).map(|held| held.1)
    }

    /// True if a register other than this one holds an address, with nothing added to it.
    pub(crate) fn is_held_elsewhere(&self, address: T, register: Register) -> bool {
        self.held.iter().any(|held| held.0 != register && (held.1, held.2) == (address, 0))
    }

    /// Follows one instruction. `made` is what its field leads to, if it makes an address of it. Returns from which
    /// addresses it reaches back, and how far.
    pub(crate) fn see(&mut self, step: &Step, made: Option<T>) -> Vec<Back<T>> {
        let i = &step.instruction;
        let to = (i.op_count() > 0 && i.op0_kind() == OpKind::Register).then(|| i.op0_register().full_register());
        let mut found = Vec::new();
        let mut next: Vec<(Register, T, i64)> = Vec::new();
        let word = word(i);
        let stored = word.is_some() && i.op0_kind() == OpKind::Memory;
        let source = (i.mnemonic() == Mnemonic::Mov && i.op1_kind() == OpKind::Register)
            .then(|| i.op1_register().full_register());
        let kept = self.held.iter().filter(|held| stored && source == Some(held.0));
        let kept: Vec<(i64, T, i64)> = kept.filter_map(|held| Some((word?, held.1, held.2))).collect();
        if !self.held.is_empty() {
            let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
            let base = Some(i.memory_base().full_register())
                .filter(|_| memory && i.memory_base() != Register::None && i.memory_index() == Register::None);
            for &(register, from, offset) in &self.held {
                if base == Some(register) {
                    let offset = offset.saturating_add(i.memory_displacement64() as i64);
                    if (-FAR..0).contains(&offset) {
                        let accessed = i.mnemonic() != Mnemonic::Lea;
                        found.push(Back { from, bytes: offset.unsigned_abs(), accessed });
                    }
                    next.extend(to.filter(|_| i.mnemonic() == Mnemonic::Lea).map(|to| (to, from, offset)));
                }
                if source == Some(register) {
                    next.extend(to.map(|to| (to, from, offset)));
                }
            }
            self.forget(step);
        }
        let makes = matches!(i.mnemonic(), Mnemonic::Lea | Mnemonic::Mov)
            && step.fields.iter().any(|f| f.usage == Use::Address);
        if let (Some(to), Some(made)) = (to.filter(|_| makes), made) {
            self.held.retain(|held| held.0 != to);
            next.push((to, made, 0));
        }
        if let (Some(word), true) = (word, i.mnemonic() == Mnemonic::Mov && i.op0_kind() == OpKind::Register) {
            next.extend(self.words.iter().filter(|held| held.0 == word).filter_map(|held| Some((to?, held.1, held.2))));
        }
        if let Some(word) = word.filter(|_| stored) {
            match (i.mnemonic(), i.try_immediate(1).map(u64::cast_signed)) {
                (Mnemonic::Cmp | Mnemonic::Test, _) => {}
                (Mnemonic::Add, Ok(n)) => self.step(word, n),
                (Mnemonic::Sub, Ok(n)) => self.step(word, n.wrapping_neg()),
                _ => self.words.retain(|held| held.0 != word),
            }
            self.words.extend(kept);
            self.words.extend(made.filter(|_| makes && source.is_none()).map(|made| (word, made, 0)));
        }
        if to == Some(Register::RBP) && !matches!(i.mnemonic(), Mnemonic::Push | Mnemonic::Pop) {
            self.words.clear();
        }
        self.held.extend(next);
        found
    }

    /// A number is added to a word of the frame.
    fn step(&mut self, word: i64, number: i64) {
        for held in self.words.iter_mut().filter(|held| held.0 == word) {
            held.2 = held.2.saturating_add(number);
        }
    }

    /// Drops what the instruction overwrites.
    fn forget(&mut self, step: &Step) {
        const KEPT: [Register; 6] =
            [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
        if step.ends() {
            self.held.clear();
        } else if matches!(step.instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            self.held.retain(|held| KEPT.contains(&held.0));
        } else {
            for used in self.factory.info(&step.instruction).used_registers() {
                let writes = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
                let register = used.register().full_register();
                self.held.retain(|held| !writes || held.0 != register);
            }
        }
    }
}

/// How far the word of the frame lies from `rbp` that is an operand.
fn word(i: &Instruction) -> Option<i64> {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let frame = memory && i.memory_base() == Register::RBP && i.memory_index() == Register::None;
    frame.then(|| i.memory_displacement64().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::Derived;
    use crate::code::steps;

    fn back(code: &[u8]) -> Vec<(usize, u64, bool)> {
        let mut derived = Derived::new();
        let all = steps(0x1000, code, false).flat_map(|(at, step)| derived.see(&step, Some(at)));
        all.map(|back| (back.from, back.bytes, back.accessed)).collect()
    }

    #[test]
    fn a_start_that_is_made_from_an_end() {
        // lea rdx,[rip+0x100]; mov rdi,rdx; call +0; lea rbx,[rip+0x100]; call +0; lea rsi,[rbx-0x28]; mov al,[rsi-8]
        let code = [
            0x48, 0x8d, 0x15, 0, 1, 0, 0, 0x48, 0x89, 0xd7, 0xe8, 0, 0, 0, 0, 0x48, 0x8d, 0x1d, 0, 1, 0, 0, 0xe8, 0, 0,
            0, 0, 0x48, 0x8d, 0x73, 0xd8, 0x8a, 0x46, 0xf8,
        ];
        assert_eq!(back(&code), [(15, 0x28, false), (15, 0x30, true)]);
    }

    #[test]
    fn what_is_overwritten_or_only_jumped_to_is_not_followed() {
        // lea rdx,[rip+0x100]; mov rdx,[rdx+8]; mov al,[rdx-8]
        assert_eq!(back(&[0x48, 0x8d, 0x15, 0, 1, 0, 0, 0x48, 0x8b, 0x52, 8, 0x8a, 0x42, 0xf8]), []);
        // lea rdx,[rip+0x100]; ret; mov al,[rdx-8]
        assert_eq!(back(&[0x48, 0x8d, 0x15, 0, 1, 0, 0, 0xc3, 0x8a, 0x42, 0xf8]), []);
    }
}
