//! Which calls a number is handed to.
//!
//! Compilers set an argument long before its call, on one side of a branch only, or for several calls whose common end
//! they keep once. So from each number the ways that the code can take are followed until something else is put in its
//! place, or to a call. What is read from the place on the way, or leads where no one can see, makes the answer unsure.
//! What is pushed or stored to the stack counts as handed on; nobody looks whether it is read before.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use rustc_hash::FxHashSet;

use super::immediates::argument;
use super::ways::Decoded;

/// Instructions that are looked at on the ways from one number.
const STEPS: usize = 400;

/// A constant that a call is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallArgument {
    /// Address of the instruction that sets it.
    pub at: u64,
    /// Where it is put: a register, or a place on the stack.
    pub place: Register,
    pub slot: u64,
    pub value: u32,
    /// Where the straight code that leads to `at` begins: behind a call, a jump or a return.
    pub start: u64,
    /// Addresses of the instructions that may run between `at` and its calls.
    pub way: FxHashSet<u64>,
    /// Where the call leads: a function, the slot that holds its address, or else the call itself: that leads where a
    /// pointer says.
    pub target: u64,
    /// Where else calls lead that run while the number is in its place.
    pub others: Vec<u64>,
    /// Nothing but calls gets the number.
    pub sure: bool,
}

impl CallArgument {
    /// True if one call is never given both numbers.
    pub(crate) fn is_in_place_of(&self, other: &CallArgument) -> bool {
        self.place != Register::RSP && (self.place, self.slot) == (other.place, other.slot)
    }

    /// True if the instruction at `address` may set up the same call.
    pub(crate) fn beside(&self, address: u64) -> bool {
        (self.start..self.at).contains(&address) || self.way.contains(&address)
    }
}

/// The constants that calls are given in a function that consists of these ranges (address, bytes): each constant with
/// each target that it may be given to.
pub(crate) fn call_arguments<'a>(ranges: impl Iterator<Item = (u64, &'a [u8])>) -> Vec<CallArgument> {
    let code = Decoded::new(ranges);
    let mut factory = InstructionInfoFactory::new();
    let mut found = Vec::new();
    let mut start = 0;
    for (n, instruction) in code.instructions.iter().enumerate() {
        if n == 0 || code.instructions[n - 1].next_ip() != instruction.ip() || ends(&code.instructions[n - 1]) {
            start = instruction.ip();
        }
        let Some(value) = argument(instruction) else { continue };
        let (place, slot) = place(instruction);
        let walk = Walk::from(&code, n, &mut factory);
        let sure = walk.sure;
        found.extend(walk.targets.iter().map(|&target| CallArgument {
            at: instruction.ip(),
            place,
            slot,
            value,
            start,
            way: walk.seen.clone(),
            target,
            others: walk.targets.iter().copied().filter(|other| *other != target).collect(),
            sure,
        }));
    }
    found
}

/// What becomes of one number.
struct Walk {
    /// Addresses of the instructions behind it that may run while it is in its place.
    seen: FxHashSet<u64>,
    /// In the order of discovery.
    targets: Vec<u64>,
    sure: bool,
}

impl Walk {
    fn from(code: &Decoded, n: usize, factory: &mut InstructionInfoFactory) -> Walk {
        let first = &code.instructions[n];
        let place = place(first);
        let mut walk = Walk { seen: FxHashSet::default(), targets: Vec::new(), sure: true };
        let mut open = vec![first.next_ip()];
        while let Some(address) = open.pop() {
            if walk.seen.contains(&address) {
                continue;
            }
            let Some(at) = code.at(address).filter(|_| walk.seen.len() < STEPS) else {
                walk.sure = false;
                continue;
            };
            walk.seen.insert(address);
            let instruction = &code.instructions[at];
            if walk.keeps(instruction, place, factory) {
                walk.step(code, at, place.0, &mut open);
            }
        }
        walk
    }

    /// Whether the number is still in its place behind the instruction.
    fn keeps(
        &mut self,
        instruction: &Instruction,
        place: (Register, u64),
        factory: &mut InstructionInfoFactory,
    ) -> bool {
        if matches!(place.0, Register::None | Register::RSP) {
            return argument(instruction).is_none() || self::place(instruction) != place;
        }
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            return true;
        }
        let mut kept = true;
        for used in factory.info(instruction).used_registers() {
            if used.register().full_register() != place.0 {
                continue;
            }
            // A write to 32 bits clears the others (Intel SDM, volume 1, section 3.4.1.1).
            let whole = used.access() == OpAccess::Write && used.register().size() >= 4;
            self.sure &= whole;
            kept &= !whole;
        }
        kept
    }

    /// Goes on behind an instruction that leaves the number in its place.
    fn step(&mut self, code: &Decoded, at: usize, place: Register, open: &mut Vec<u64>) {
        let instruction = &code.instructions[at];
        let direct = instruction.op0_kind() == OpKind::NearBranch64;
        let to = instruction.near_branch_target();
        match instruction.flow_control() {
            FlowControl::Next => open.push(instruction.next_ip()),
            FlowControl::Call if direct => self.given_to(to),
            FlowControl::IndirectCall => {
                self.sure &= !reads(instruction, place);
                let slot = instruction.is_ip_rel_memory_operand();
                self.given_to(if slot { instruction.ip_rel_memory_address() } else { instruction.ip() });
            }
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch if direct => {
                if code.at(to).is_some() {
                    open.push(to);
                } else {
                    self.given_to(to);
                }
                if instruction.flow_control() == FlowControl::ConditionalBranch {
                    open.push(instruction.next_ip());
                }
            }
            // Two registers carry what a function returns, and this may be one (psABI for AMD64, section 3.2.3).
            FlowControl::Return => self.sure &= place != Register::RDX,
            FlowControl::Exception => {}
            FlowControl::IndirectBranch if is_tail_call(code, at) => {
                self.sure &= !reads(instruction, place);
                self.given_to(instruction.ip());
            }
            _ => self.sure = false,
        }
    }

    fn given_to(&mut self, target: u64) {
        if !self.targets.contains(&target) {
            self.targets.push(target);
        }
    }
}

/// True for a jump through a register that holds a pointer to a function: it was loaded from a place, or copied. Where a `switch`
/// leads is read from a table, by an index, or added up.
fn is_tail_call(code: &Decoded, jump: usize) -> bool {
    if code.instructions[jump].op0_kind() != OpKind::Register {
        return false;
    }
    let register = code.instructions[jump].op0_register().full_register();
    for instruction in code.instructions[..jump].iter().rev() {
        let to = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register;
        if ends(instruction) {
            return false;
        }
        if to && instruction.op0_register().full_register() == register && instruction.mnemonic() != Mnemonic::Push {
            let source = instruction.op1_kind() == OpKind::Register
                || instruction.op1_kind() == OpKind::Memory && instruction.memory_index() == Register::None;
            return instruction.mnemonic() == Mnemonic::Mov && instruction.op0_register().size() == 8 && source;
        }
    }
    false
}

/// True if an instruction with one operand finds it by this register.
fn reads(instruction: &Instruction, register: Register) -> bool {
    let operand = match instruction.op0_kind() {
        OpKind::Register => [instruction.op0_register(), Register::None],
        _ => [instruction.memory_base(), instruction.memory_index()],
    };
    operand.iter().any(|used| *used != Register::None && used.full_register() == register)
}

/// True if the code behind the instruction is not reached from it with the same arguments.
fn ends(instruction: &Instruction) -> bool {
    !matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn found(code: &[u8]) -> Vec<(u64, u32, u64, bool)> {
        let all = call_arguments([(0x1000, code)].into_iter());
        all.iter().map(|c| (c.at - 0x1000, c.value, c.target, c.sure && c.others.is_empty())).collect()
    }

    #[test]
    fn a_call_that_two_ways_share_gets_the_number_of_each() {
        // mov edx,1; jmp L; mov edx,2; L: call 0x2000; call 0x3000
        let code = [0xba, 1, 0, 0, 0, 0xeb, 5, 0xba, 2, 0, 0, 0, 0xe8, 0xef, 0x0f, 0, 0, 0xe8, 0xea, 0x1f, 0, 0];
        assert_eq!(found(&code), [(0, 1, 0x2000, true), (7, 2, 0x2000, true)]);
    }

    #[test]
    fn a_number_for_two_calls_is_unsure() {
        // mov edx,1; je L; call 0x2000; L: call 0x3000
        let code = [0xba, 1, 0, 0, 0, 0x74, 5, 0xe8, 0xf4, 0x0f, 0, 0, 0xe8, 0xef, 0x1f, 0, 0];
        let all: Vec<_> = found(&code).iter().map(|c| (c.2, c.3)).collect();
        assert_eq!(all.len(), 2);
        assert!(all.contains(&(0x2000, false)) && all.contains(&(0x3000, false)), "{all:x?}");
    }

    #[test]
    fn a_call_through_a_pointer_is_a_target_of_its_own() {
        // mov ecx,1; call [r8]; mov ecx,2; call [rip+0]; mov ecx,3; call [rcx]
        let code = [
            0xb9, 1, 0, 0, 0, 0x41, 0xff, 0x10, 0xb9, 2, 0, 0, 0, 0xff, 0x15, 0, 0, 0, 0, 0xb9, 3, 0, 0, 0, 0xff, 0x11,
        ];
        assert_eq!(found(&code), [(0, 1, 0x1005, true), (8, 2, 0x1013, true), (19, 3, 0x1018, false)]);
    }

    #[test]
    fn a_jump_through_a_pointer_at_the_end_is_a_call() {
        // mov ecx,1; mov r8,rbx; pop rbx; jmp r8
        assert_eq!(found(&[0xb9, 1, 0, 0, 0, 0x49, 0x89, 0xd8, 0x5b, 0x41, 0xff, 0xe0]), [(0, 1, 0x1009, true)]);
        // mov ecx,1; movsxd rax,[rdx+rax*4]; add rax,rdx; jmp rax
        assert_eq!(found(&[0xb9, 1, 0, 0, 0, 0x48, 0x63, 0x04, 0x82, 0x48, 0x01, 0xd0, 0xff, 0xe0]), []);
    }

    #[test]
    fn a_number_that_is_stored_too_is_unsure() {
        // mov edx,1; mov [rdi],edx; call 0x2000
        let code = [0xba, 1, 0, 0, 0, 0x89, 0x17, 0xe8, 0xf4, 0x0f, 0, 0];
        assert_eq!(found(&code), [(0, 1, 0x2000, false)]);
    }

    #[test]
    fn what_is_put_in_its_place_ends_a_way() {
        // mov edx,1; mov edx,edi; call 0x2000
        let code = [0xba, 1, 0, 0, 0, 0x89, 0xfa, 0xe8, 0xf4, 0x0f, 0, 0];
        assert_eq!(found(&code), []);
    }
}
