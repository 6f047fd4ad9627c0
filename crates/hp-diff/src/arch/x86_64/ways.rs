//! The ways that a function's code can take, instruction by instruction.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::registers::written;

/// The instructions of a function, and which of them is at an address.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(super) instructions: Vec<Instruction>,
    at: Vec<Starts>,
    before: OnceLock<Before>,
    /// The instructions that computed jumps may lead to, if that is known of all of them.
    jumps: Option<Vec<usize>>,
    /// The calls that never return, in order.
    endless: Vec<usize>,
    /// For each instruction the general registers that it writes; see [`Written`].
    written: Vec<AtomicU64>,
}

/// The general registers that an instruction writes, bit by bit: in any case, from bit 0 on, and perhaps, from bit 16 on.
#[derive(Clone, Copy)]
struct Written(u64);

impl Written {
    /// It is known; nothing is where nobody has asked.
    const KNOWN: u64 = 1 << 63;

    fn of(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Written {
        let used = factory.info(instruction).used_registers().iter();
        Written(used.fold(Written::KNOWN, |mask, used| {
            let Some(bit) = general(used.register()) else { return mask };
            mask | match used.access() {
                OpAccess::Read | OpAccess::CondRead | OpAccess::None => 0,
                OpAccess::Write | OpAccess::ReadWrite => bit | bit << 16,
                _ => bit << 16,
            }
        }))
    }
}

/// The bit of a general register or a part of one.
fn general(register: Register) -> Option<u64> {
    let number = (register.full_register() as u32).checked_sub(Register::RAX as u32)?;
    (number < 16).then(|| 1 << number)
}

/// Which instruction begins at each byte of a range, counted from 1; 0 where none does.
#[derive(Debug)]
struct Starts {
    address: u64,
    numbers: Box<[u32]>,
}

/// The instructions that may run right before each one: where the list of each ends, and the lists.
#[derive(Debug)]
struct Before {
    ends: Vec<u32>,
    lists: Vec<u32>,
}

impl Decoded {
    /// Decodes these ranges: address, bytes.
    pub(crate) fn new<'a>(ranges: impl Iterator<Item = (u64, &'a [u8])>) -> Decoded {
        let mut instructions: Vec<Instruction> = Vec::new();
        let mut at = Vec::new();
        for (address, bytes) in ranges {
            let mut numbers = vec![0; bytes.len()].into_boxed_slice();
            // Four bytes are about the mean length of an instruction.
            instructions.reserve(bytes.len() / 4);
            let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
            while decoder.can_decode() {
                let start = decoder.position();
                instructions.push(decoder.decode());
                numbers[start] = instructions.len() as u32;
            }
            at.push(Starts { address, numbers });
        }
        let written = instructions.iter().map(|_| AtomicU64::new(0)).collect();
        Decoded { instructions, at, before: OnceLock::new(), jumps: None, endless: Vec::new(), written }
    }

    /// The same with all addresses to which the computed jumps lead, if they are known, and with the calls that never return.
    pub(crate) fn with_ways(self, jumps: Option<&[u64]>, is_endless: &dyn Fn(u64) -> bool) -> Decoded {
        let jumps = jumps.and_then(|targets| targets.iter().map(|target| self.at(*target)).collect());
        let ends = |i: &Instruction| i.flow_control() == FlowControl::Call && is_endless(i.near_branch_target());
        let endless = (0..self.instructions.len()).filter(|n| ends(&self.instructions[*n])).collect();
        Decoded { jumps, endless, ..self }
    }

    /// The instruction at an address.
    pub(super) fn at(&self, address: u64) -> Option<usize> {
        // Of ranges that overlap the last one counts.
        self.at.iter().rev().find_map(|starts| {
            let offset = usize::try_from(address.checked_sub(starts.address)?).ok()?;
            starts.numbers.get(offset)?.checked_sub(1).map(|n| n as usize)
        })
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
        let falls = falls && (flow != FlowControl::Call || self.endless.binary_search(&n).is_err());
        let target = jumps.then(|| self.at(instruction.near_branch_target())).flatten();
        target.into_iter().chain(falls.then(|| self.at(instruction.next_ip())).flatten())
    }

    /// The instructions that a computed jump may lead to, which are those of all tables of the function; `None` if that is not known.
    pub(super) fn jumped_to(&self, n: usize) -> Option<&[usize]> {
        if is_computed_jump(&self.instructions[n]) { self.jumps.as_deref() } else { Some(&[]) }
    }

    /// The instructions that may run right before one, ordered.
    pub(super) fn before(&self, n: usize) -> impl Iterator<Item = usize> {
        let Before { ends, lists } = self.before.get_or_init(|| self.find_before());
        let start = n.checked_sub(1).map_or(0, |last| ends[last]);
        lists[start as usize..ends[n] as usize].iter().map(|n| *n as usize)
    }

    /// True if an instruction writes a register or a part of it in any case. `register` is a whole one.
    pub(super) fn writes(&self, n: usize, register: Register, factory: &mut InstructionInfoFactory) -> bool {
        match general(register) {
            Some(bit) => self.written(n, factory).0 & bit != 0,
            None => factory.info(&self.instructions[n]).used_registers().iter().any(|used| {
                let writes = matches!(used.access(), OpAccess::Write | OpAccess::ReadWrite);
                writes && register != Register::None && used.register().full_register() == register
            }),
        }
    }

    /// True if an instruction may write a register or a part of it. `register` is a whole one.
    pub(super) fn may_write(&self, n: usize, register: Register, factory: &mut InstructionInfoFactory) -> bool {
        match general(register) {
            Some(bit) => self.written(n, factory).0 >> 16 & bit != 0,
            None => written(&self.instructions[n], factory).contains(&register),
        }
    }

    fn written(&self, n: usize, factory: &mut InstructionInfoFactory) -> Written {
        match self.written[n].load(Ordering::Relaxed) {
            0 => {
                let found = Written::of(&self.instructions[n], factory);
                self.written[n].store(found.0, Ordering::Relaxed);
                found
            }
            known => Written(known),
        }
    }

    fn find_before(&self) -> Before {
        let mut ends = vec![0u32; self.instructions.len()];
        let all = || (0..self.instructions.len()).flat_map(|n| self.behind(n).map(move |next| (n, next)));
        all().for_each(|(_, next)| ends[next] += 1);
        let mut total = 0;
        for end in &mut ends {
            // For now where the list begins.
            total += std::mem::replace(end, total);
        }
        let mut lists = vec![0; total as usize];
        for (n, next) in all() {
            lists[ends[next] as usize] = n as u32;
            ends[next] += 1;
        }
        Before { ends, lists }
    }
}

/// True for a jump that may lead to several places; one through a slot of the linker leaves the function.
pub(super) fn is_computed_jump(instruction: &Instruction) -> bool {
    let slot = || instruction.op0_kind() == OpKind::Memory && instruction.is_ip_rel_memory_operand();
    instruction.flow_control() == FlowControl::IndirectBranch && !slot()
}

#[cfg(test)]
mod tests {
    use super::{Decoded, OpAccess, Register, written};
    use iced_x86::InstructionInfoFactory;

    #[test]
    fn what_runs_before_an_instruction_is_what_it_runs_behind() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for start in (0..program.len()).step_by(9973) {
            let piece = &program[start..program.len().min(start + 600)];
            let (a, b) = piece.split_at(piece.len().min(300));
            // They overlap, as ranges of hand-written code do.
            let code = Decoded::new([(0x1000, a), (0x10ff, b)].into_iter());
            for n in 0..code.instructions.len() {
                let expected =
                    (0..code.instructions.len()).flat_map(|m| code.behind(m).filter(|to| *to == n).map(move |_| m));
                assert!(code.before(n).eq(expected), "{n} of {start:#x}");
            }
            let mut factory = InstructionInfoFactory::new();
            for (n, instruction) in code.instructions.iter().enumerate() {
                for register in [Register::RAX, Register::RBX, Register::RSP, Register::R15, Register::ZMM1] {
                    let perhaps = written(instruction, &mut factory).contains(&register);
                    assert_eq!(code.may_write(n, register, &mut factory), perhaps, "{n} of {start:#x}");
                    let used = factory.info(instruction).used_registers().to_vec();
                    let surely = used.iter().any(|u| {
                        u.register().full_register() == register
                            && [OpAccess::Write, OpAccess::ReadWrite].contains(&u.access())
                    });
                    assert_eq!(code.writes(n, register, &mut factory), surely, "{n} of {start:#x}");
                }
                let last = code.instructions.iter().rposition(|other| other.ip() == instruction.ip());
                assert_eq!(code.at(instruction.ip()), last, "{n} of {start:#x}");
            }
        }
    }
}
