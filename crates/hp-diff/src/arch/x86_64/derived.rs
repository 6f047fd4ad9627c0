//! How far before an address code reaches that it makes other addresses from.
//!
//! A compiler that needs the start and the end of a text makes `lea end(%rip),r` and `lea -40(r),q` of it, the start is
//! nowhere else. So what a reference leads to may lie before it. From where the address is made, all ways that the code
//! can take are followed, as long as a register or a word of the frame holds the address or one made from it.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::registers::{KEPT, has_memory};
use super::ways::Decoded;

/// Distances that are followed, in bytes; a loop may go on for ever.
const FAR: i64 = 4096;
/// Facts that are followed from one address.
const FACTS: usize = 4000;
/// The same through computed jumps, from where all of a large function is reached.
const FACTS_THROUGH_JUMPS: usize = 8_000;

/// Where a function reaches from an address that it makes, in bytes. What it adds an index to is not known and does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Bytes before the address: the nearest and the farthest place; 0 if there is none.
    pub near: u16,
    pub far: u16,
    /// Something before the address is read or written.
    pub accessed: bool,
    /// Something at the address or behind it is read or written.
    pub behind: bool,
    /// A loop goes on back, nobody knows how far.
    pub open: bool,
}

impl Reach {
    fn to(&mut self, offset: i64) {
        if (-FAR..=-1).contains(&offset) {
            let distance = offset.unsigned_abs() as u16;
            self.near = if self.near == 0 { distance } else { self.near.min(distance) };
            self.far = self.far.max(distance);
        }
    }
}

/// Where an address is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Register(Register),
    /// So far from the stack pointer.
    Stack(i64),
    /// So far from `rbp`, as code without optimisation has its variables.
    Frame(i64),
}

/// Something holds the address plus a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub holder: Holder,
    pub offset: i64,
    /// The number was added to it where it was. A loop may do that for ever, so it is followed once.
    pub stepped: bool,
}

/// Where a function reaches from the addresses that the instructions at `made` make.
pub(crate) fn reach(code: &Decoded, made: &[u64]) -> Vec<Reach> {
    let mut factory = InstructionInfoFactory::new();
    made.iter().map(|at| reach_from(code, *at, &mut factory)).collect()
}

fn reach_from(code: &Decoded, at: u64, factory: &mut InstructionInfoFactory) -> Reach {
    let mut reach = Reach::default();
    if let Some(first) = code.at(at) {
        follow(code, first, factory, &mut |n, held| note(&code.instructions[n], held, &mut reach));
    }
    reach
}

/// Follows the address that the instruction `first` makes: calls `see` for each instruction before which something holds it. False if
/// there is more than was followed.
pub(super) fn follow(
    code: &Decoded,
    first: usize,
    factory: &mut InstructionInfoFactory,
    see: &mut dyn FnMut(usize, Held),
) -> bool {
    let makes = matches!(code.instructions[first].mnemonic(), Mnemonic::Lea | Mnemonic::Mov);
    !makes || follow_result(code, first, factory, see)
}

/// The same of what any instruction leaves in its first operand, if that is a register or a `mov` to a word of the frame. False if there is more than was followed.
pub(super) fn follow_result(
    code: &Decoded,
    first: usize,
    factory: &mut InstructionInfoFactory,
    see: &mut dyn FnMut(usize, Held),
) -> bool {
    match held_by(&code.instructions[first]) {
        Some(held) => {
            let open = code.behind(first).map(|next| (next, held)).collect();
            follow_from(code, open, Jumps::Ignored, factory, see)
        }
        None => false,
    }
}

/// The same, through computed jumps as well. False also if nobody knows where one of them leads.
pub(super) fn follow_jumps(
    code: &Decoded,
    first: usize,
    factory: &mut InstructionInfoFactory,
    see: &mut dyn FnMut(usize, Held),
) -> bool {
    let Some(held) = held_by(&code.instructions[first]) else { return false };
    let mut known = true;
    let open = code.behind(first).map(|next| (next, held)).collect();
    let whole = follow_from(code, open, Jumps::Followed, factory, &mut |n, held| {
        known &= code.jumped_to(n).is_some();
        see(n, held);
    });
    whole && known
}

/// What holds the result of an instruction, if that is followed.
fn held_by(made: &Instruction) -> Option<Held> {
    let holder = match made.op0_kind() {
        OpKind::Register => Holder::Register(made.op0_register().full_register()),
        // `movq $a,-8(%rbp)`
        _ => match word(made) {
            Some(word) if made.mnemonic() == Mnemonic::Mov => word,
            _ => return None,
        },
    };
    Some(Held { holder, offset: 0, stepped: false })
}

/// Follows what a register holds before the instruction `first`.
pub(super) fn follow_argument(
    code: &Decoded,
    first: usize,
    register: Register,
    factory: &mut InstructionInfoFactory,
    see: &mut dyn FnMut(usize, Held),
) {
    let held = Held { holder: Holder::Register(register), offset: 0, stepped: false };
    follow_from(code, vec![(first, held)], Jumps::Ignored, factory, see);
}

/// Whether computed jumps are followed. Of several tables in a function each is taken for what each of these jumps reads: what
/// then is seen may happen, but need not be possible.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Jumps {
    Followed,
    Ignored,
}

/// Follows what is held before these instructions. False if there is more than was followed.
fn follow_from(
    code: &Decoded,
    mut open: Vec<(usize, Held)>,
    jumps: Jumps,
    factory: &mut InstructionInfoFactory,
    see: &mut dyn FnMut(usize, Held),
) -> bool {
    let most = if jumps == Jumps::Followed { FACTS_THROUGH_JUMPS } else { FACTS };
    let mut whole = true;
    let mut seen: FxHashSet<(u64, i64)> = open.iter().map(|(n, held)| key(*n, *held)).collect();
    while let Some((n, before)) = open.pop() {
        see(n, before);
        let behind = after(code, n, before.holder, before.offset, factory);
        let jumped_to = code.jumped_to(n).filter(|_| jumps == Jumps::Followed).unwrap_or_default();
        for next in code.behind(n).chain(jumped_to.iter().copied()) {
            for (holder, offset, steps) in behind.iter() {
                let held = Held { holder, offset, stepped: before.stepped || steps };
                let followed = (-FAR..=FAR).contains(&offset) && !(before.stepped && steps);
                if followed && seen.len() < most && seen.insert(key(next, held)) {
                    open.push((next, held));
                }
                whole &= seen.len() < most;
            }
        }
    }
    whole
}

/// True if an instruction may lead before an address that some register holds. `lea` and `mov` of other things than the
/// frame do, and what subtracts.
pub(crate) fn steps_back(instruction: &Instruction) -> u64 {
    let distance = match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None | Register::RSP | Register::RIP, _) => 0,
        (_, Register::None) => (instruction.memory_displacement64() as i64).wrapping_neg(),
        _ => 0,
    };
    let own = instruction.op0_kind() == OpKind::Register || word(instruction).is_some();
    let subtracted = match instruction.mnemonic() {
        Mnemonic::Sub | Mnemonic::Add if own => number(instruction),
        _ => None,
    };
    let step = distance.max(subtracted.map_or(0, i64::wrapping_neg));
    if step <= FAR { step.max(0) as u64 } else { 0 }
}

/// How far back an index leads that an instruction makes negative, in bytes; 0 if it does not. Elements have up to eight bytes.
pub(super) fn counts_back(instruction: &Instruction) -> u16 {
    /// What is only known to be negative leads so far.
    const NEAR: u16 = 64;
    let whole = || match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() == 8,
        _ => word(instruction).is_some() && instruction.memory_size().size() == 8,
    };
    match instruction.mnemonic() {
        Mnemonic::Not | Mnemonic::Neg if whole() => NEAR,
        Mnemonic::Or | Mnemonic::Xor if whole() && immediate(instruction).is_some_and(|n| n < 0) => NEAR,
        Mnemonic::Mov if whole() => match immediate(instruction) {
            Some(n @ ..0) => n.saturating_mul(-8).min(FAR) as u16,
            _ => 0,
        },
        _ => 0,
    }
}

/// What an instruction adds to its first operand.
fn number(instruction: &Instruction) -> Option<i64> {
    match instruction.mnemonic() {
        Mnemonic::Add if instruction.op0_register() != Register::RSP => immediate(instruction),
        Mnemonic::Sub if instruction.op0_register() != Register::RSP => Some(immediate(instruction)?.wrapping_neg()),
        Mnemonic::Inc => Some(1),
        Mnemonic::Dec => Some(-1),
        _ => None,
    }
}

/// The second operand of 64 bits, if it is a number.
fn immediate(instruction: &Instruction) -> Option<i64> {
    let is_number = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    (instruction.op_count() > 1 && is_number).then(|| instruction.immediate(1) as i64)
}

/// The word of the frame that an operand of memory is, if there is one.
pub(super) fn word(instruction: &Instruction) -> Option<Holder> {
    let plain = has_memory(instruction) && instruction.memory_index() == Register::None;
    let at = instruction.memory_displacement64() as i64;
    match instruction.memory_base() {
        Register::RSP if plain => Some(Holder::Stack(at)),
        Register::RBP if plain => Some(Holder::Frame(at)),
        _ => None,
    }
}

/// What an instruction adds to this word of the frame.
fn added(instruction: &Instruction, holder: Holder) -> Option<i64> {
    let own = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
    number(instruction).filter(|_| own && word(instruction) == Some(holder))
}

/// Notes where one instruction reaches.
fn note(instruction: &Instruction, held: Held, reach: &mut Reach) {
    let Held { holder, offset, stepped } = held;
    let Holder::Register(register) = holder else {
        reach.open |= stepped && added(instruction, holder).is_some_and(|n| n < 0);
        return;
    };
    let steps = || match instruction.mnemonic() {
        Mnemonic::Lea => {
            let own = instruction.memory_base() == register && instruction.memory_index() == Register::None;
            (instruction.memory_displacement64() as i64).min(0) * i64::from(own)
        }
        _ => number(instruction).unwrap_or(0),
    };
    let own = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register;
    reach.open |= stepped && own && instruction.op0_register() == register && steps() < 0;
    let used = |r: Register| r != Register::None && r.full_register() == register;
    if has_memory(instruction) && is_plain(instruction) && used(instruction.memory_base()) {
        let at = offset.saturating_add(instruction.memory_displacement64() as i64);
        let access = instruction.mnemonic() != Mnemonic::Lea;
        reach.to(at);
        reach.accessed |= access && at < 0;
        reach.behind |= access && at >= 0;
    }
}

/// True if nothing is added to the base register but a number.
fn is_plain(instruction: &Instruction) -> bool {
    instruction.memory_base() != Register::None && instruction.memory_index() == Register::None
}

/// In place of a register's number; there are less registers.
const FRAME: u64 = 0x3ff;

/// One number for an instruction and what is held before it. Offsets are small ones, and so are the numbers of registers.
fn key(n: usize, held: Held) -> (u64, i64) {
    let (register, stack) = match held.holder {
        Holder::Register(register) => (register as u64 + 1, 0),
        Holder::Stack(at) => (0, at),
        Holder::Frame(at) => (FRAME, at),
    };
    let offset = (held.offset + FAR) as u64;
    (n as u64 | register << 32 | offset << 42 | u64::from(held.stepped) << 63, stack)
}

/// Where an address is held behind an instruction: at most one place that is new, beside the one where it was.
#[derive(Default)]
struct Behind([Option<(Holder, i64, bool)>; 3]);

impl Behind {
    fn push(&mut self, held: (Holder, i64, bool)) {
        if let Some(free) = self.0.iter_mut().find(|place| place.is_none()) {
            *free = Some(held);
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Holder, i64, bool)> {
        self.0.iter().flatten().copied()
    }
}

/// Where the address, and what is made from it, is held behind an instruction.
fn after(code: &Decoded, n: usize, holder: Holder, offset: i64, factory: &mut InstructionInfoFactory) -> Behind {
    let instruction = &code.instructions[n];
    let mut held = Behind::default();
    // The word of the frame that a memory operand means; of the stack by where its pointer is before the instruction.
    let word = word(instruction);
    let moved = match (instruction.mnemonic(), instruction.op0_register()) {
        (Mnemonic::Sub | Mnemonic::Add, Register::RSP) => match immediate(instruction) {
            Some(number) if instruction.mnemonic() == Mnemonic::Sub => number.wrapping_neg(),
            number => number.unwrap_or(0),
        },
        _ => i64::from(instruction.stack_pointer_increment()),
    };
    let calls = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    match holder {
        Holder::Stack(_) | Holder::Frame(_) => {
            let reads = instruction.mnemonic() == Mnemonic::Mov
                && instruction.op1_kind() == OpKind::Memory
                && instruction.op0_kind() == OpKind::Register;
            if reads && word == Some(holder) {
                held.push((Holder::Register(instruction.op0_register().full_register()), offset, false));
            }
            let pops = instruction.mnemonic() == Mnemonic::Pop && instruction.op0_kind() == OpKind::Register;
            if pops && holder == Holder::Stack(0) {
                held.push((Holder::Register(instruction.op0_register().full_register()), offset, false));
            }
            let added = added(instruction, holder);
            let overwritten = instruction.op0_kind() == OpKind::Memory
                && word == Some(holder)
                && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
            let behind = match holder {
                Holder::Stack(at) => Some(Holder::Stack(if calls { at } else { at.wrapping_sub(moved) })),
                _ => Some(holder).filter(|_| !code.writes(n, Register::RBP, factory)),
            };
            match behind {
                Some(behind) if !overwritten => held.push((behind, offset, false)),
                Some(behind) => {
                    added.into_iter().for_each(|n| held.push((behind, offset.saturating_add(n), true)));
                }
                None => {}
            }
        }
        Holder::Register(register) => {
            let is = |r: Register| r != Register::None && r.full_register() == register;
            let copied = instruction.op_count() > 1 && instruction.op1_kind() == OpKind::Register;
            let copies = copied && is(instruction.op1_register());
            let conditional = instruction.condition_code() != iced_x86::ConditionCode::None;
            let to_register = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register;
            let to = to_register.then(|| Holder::Register(instruction.op0_register().full_register()));
            match (instruction.mnemonic(), to) {
                (Mnemonic::Lea, Some(to)) if is(instruction.memory_base()) && is_plain(instruction) => {
                    held.push((to, offset.saturating_add(instruction.memory_displacement64() as i64), false));
                }
                (Mnemonic::Mov, Some(to)) if copies => held.push((to, offset, false)),
                (_, Some(to)) if conditional && copies => held.push((to, offset, false)),
                (Mnemonic::Mov, None) if copies => word.into_iter().for_each(|word| held.push((word, offset, false))),
                (Mnemonic::Push, Some(from)) if from == holder => held.push((Holder::Stack(0), offset, false)),
                (_, Some(to)) if to == holder => {
                    let stepped = number(instruction).map(|n| (holder, offset.saturating_add(n), true));
                    stepped.into_iter().for_each(|stepped| held.push(stepped));
                }
                _ => {}
            }
            if !code.writes(n, register, factory) && (!calls || KEPT.contains(&register)) {
                held.push((holder, offset, false));
            }
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use super::{Decoded, Reach, reach};

    fn of(code: &[u8]) -> Reach {
        reach(&Decoded::new([(0x1000, code)].into_iter()), &[0x1000])[0]
    }

    /// `lea rdx,[rip+0x100]`
    const MAKES: [u8; 7] = [0x48, 0x8d, 0x15, 0, 1, 0, 0];

    #[test]
    fn an_address_that_is_only_handed_on() {
        // mov rdi,rdx; call +0; mov rax,[rdx-8]: the call has changed rdx
        let code = [&MAKES[..], &[0x48, 0x89, 0xd7, 0xe8, 0, 0, 0, 0, 0x48, 0x8b, 0x42, 0xf8]].concat();
        assert_eq!(of(&code), Reach::default());
    }

    #[test]
    fn the_start_of_a_text_made_from_its_end() {
        // mov rdi,r15; lea rsi,[rdx-0x28]
        let code = [&MAKES[..], &[0x4c, 0x89, 0xff, 0x48, 0x8d, 0x72, 0xd8]].concat();
        assert_eq!(of(&code), Reach { near: 0x28, far: 0x28, ..Reach::default() });
    }

    #[test]
    fn an_index_may_make_up_for_what_is_subtracted() {
        // mov eax,[rdx+rcx*4-4]; lea rdi,[rdx+rcx-4]; mov eax,[rdi-4]
        let code = [&MAKES[..], &[0x8b, 0x44, 0x8a, 0xfc, 0x48, 0x8d, 0x7c, 0x0a, 0xfc, 0x8b, 0x47, 0xfc]].concat();
        assert_eq!(of(&code), Reach::default());
    }

    #[test]
    fn through_the_frame_and_behind_a_jump() {
        // mov [rsp+8],rdx; jmp L; (int3); L: push rax; mov rcx,[rsp+16]; mov eax,[rcx-4]
        let code = [
            &MAKES[..],
            &[0x48, 0x89, 0x54, 0x24, 8, 0xeb, 1, 0xcc, 0x50, 0x48, 0x8b, 0x4c, 0x24, 16, 0x8b, 0x41, 0xfc],
        ]
        .concat();
        assert_eq!(of(&code), Reach { near: 4, far: 4, accessed: true, ..Reach::default() });
    }

    #[test]
    fn a_loop_that_counts_down() {
        // L: sub rdx,8; mov rax,[rdx]; test rax,rax; jne L; ret
        let code = [&MAKES[..], &[0x48, 0x83, 0xea, 8, 0x48, 0x8b, 0x02, 0x48, 0x85, 0xc0, 0x75, 0xf4, 0xc3]].concat();
        assert_eq!(of(&code), Reach { near: 8, far: 8, accessed: true, open: true, ..Reach::default() });
    }

    #[test]
    fn a_pointer_before_its_object_may_be_used_behind_it_only() {
        // L: mov ecx,[rdx+0x18]; sub rdx,4; mov [rdx+0x20],ecx; cmp rdx,rax; jne L; ret
        let code = [
            &MAKES[..],
            &[0x8b, 0x4a, 0x18, 0x48, 0x83, 0xea, 4, 0x89, 0x4a, 0x20, 0x48, 0x39, 0xc2, 0x75, 0xf1, 0xc3],
        ]
        .concat();
        assert_eq!(of(&code), Reach { behind: true, open: true, ..Reach::default() });
    }

    #[test]
    fn any_bytes_are_followed_without_a_panic() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for start in (0..program.len()).step_by(4099) {
            let code = [&MAKES[..], &program[start..program.len().min(start + 512)]].concat();
            of(&code);
        }
    }

    #[test]
    fn what_is_read_behind_it_is_seen() {
        // mov eax,[rdx+4]; add rdx,16; mov eax,[rdx-20]
        let code = [&MAKES[..], &[0x8b, 0x42, 4, 0x48, 0x83, 0xc2, 16, 0x8b, 0x42, 0xec]].concat();
        assert_eq!(of(&code), Reach { near: 4, far: 4, accessed: true, behind: true, ..Reach::default() });
    }
}
