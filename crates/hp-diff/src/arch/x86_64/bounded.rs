//! How much of a constant code can read by way of the address that it makes.
//!
//! A table that one function alone uses has no symbol, so nothing in the image says how long it is. The code may:
//! `lea table(%rip),%rcx; and $15,%edx; movzbl (%rcx,%rdx),%edx` reads sixteen bytes from there, whatever ran before. All
//! ways of the code are followed with what each register holds, until nothing new is found. The answer stands only if the address is
//! never handed on, stored or calculated with in a way that is not known.

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::registers::{KEPT, has_memory, is_high_byte};
use super::ways::Decoded;

/// Instructions of a function that is followed, at most.
const LONG: usize = 4096;
/// Bytes that a constant may have, at most.
const LARGE: i64 = 4096;

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Anything,
    /// A number without a sign that is not larger.
    AtMost(u64),
    /// The address, and so many bytes more.
    Address(i64),
    /// The address perhaps, on one of the ways.
    Doubtful,
}

impl Held {
    fn meet(self, other: Held) -> Held {
        match (self, other) {
            (one, two) if one == two => one,
            (Held::Address(_) | Held::Doubtful, _) | (_, Held::Address(_) | Held::Doubtful) => Held::Doubtful,
            (Held::AtMost(one), Held::AtMost(two)) => Held::AtMost(one.max(two)),
            _ => Held::Anything,
        }
    }

    fn is_address(self) -> bool {
        matches!(self, Held::Address(_) | Held::Doubtful)
    }
}

type State = [Held; 16];

/// The first byte that code can read by way of the address that its instruction at `made` makes, and the one behind the last, by how far
/// they lie from that address; `None` if that is not certain.
pub(crate) fn bounded(code: &Decoded, made: u64) -> Option<(i64, i64)> {
    let made = code.at(made)?;
    let jumps = |i: &Instruction| i.flow_control() == FlowControl::IndirectBranch || i.is_invalid();
    if code.instructions.len() > LONG || code.instructions.iter().any(jumps) {
        return None;
    }
    // Landing pads are entered out of calls, over which nothing may hold the address: nothing of it is known there.
    let enters = |n: &usize| *n == 0 || code.before(*n).next().is_none();
    let mut states: Vec<Option<State>> = vec![None; code.instructions.len()];
    let mut open: Vec<usize> = (0..code.instructions.len()).filter(enters).collect();
    open.iter().for_each(|n| states[*n] = Some([Held::Anything; 16]));
    let mut factory = InstructionInfoFactory::new();
    while let Some(n) = open.pop() {
        let Some(mut state) = states[n] else { continue };
        go_on(&code.instructions[n], n == made, &mut state, &mut factory);
        for next in code.behind(n) {
            let met = match &states[next] {
                Some(known) => std::array::from_fn(|r| known[r].meet(state[r])),
                None => state,
            };
            if states[next] != Some(met) {
                states[next] = Some(met);
                open.push(next);
            }
        }
    }
    let mut read: Option<(i64, i64)> = None;
    for (n, state) in states.iter().enumerate().filter_map(|(n, state)| Some((n, state.as_ref()?))) {
        let instruction = &code.instructions[n];
        let leaves = code.behind(n).next().is_none();
        match use_of(instruction, state, leaves, &mut factory) {
            Use::None => {}
            Use::Read(start, end) => {
                let (first, last) = read.unwrap_or((start, end));
                read = Some((first.min(start), last.max(end)));
            }
            Use::Other => return None,
        }
    }
    read.filter(|(start, end)| start < end && end - start <= LARGE)
}

enum Use {
    None,
    Read(i64, i64),
    /// It leaves the registers that are followed, or something unknown is added to it.
    Other,
}

fn number(register: Register) -> Option<usize> {
    let full = register.full_register();
    full.is_gpr64().then(|| full.number())
}

fn of(state: &State, register: Register) -> Held {
    number(register).map_or(Held::Anything, |n| state[n])
}

/// A number that is added to or put into a register, as 64 bits.
fn immediate(instruction: &Instruction) -> Option<i64> {
    match instruction.op1_kind() {
        OpKind::Immediate8 => Some(i64::from(instruction.immediate8())),
        OpKind::Immediate32 => Some(i64::from(instruction.immediate32())),
        OpKind::Immediate8to32 => Some(i64::from(instruction.immediate8to32() as u32)),
        OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(instruction.immediate(1) as i64),
        _ => None,
    }
}

/// What an instruction that copies or moves the address leaves in its first operand.
fn copied(instruction: &Instruction, state: &State) -> Option<i64> {
    let to = instruction.op0_kind() == OpKind::Register && instruction.op0_register().size() == 8;
    let address = |register| match of(state, register) {
        Held::Address(offset) => Some(offset),
        _ => None,
    };
    match instruction.mnemonic() {
        Mnemonic::Mov if to && instruction.op1_kind() == OpKind::Register => address(instruction.op1_register()),
        Mnemonic::Lea if instruction.code() == Code::Lea_r64_m && instruction.memory_index() == Register::None => {
            Some(address(instruction.memory_base())?.wrapping_add(instruction.memory_displacement64() as i64))
        }
        Mnemonic::Add if to => Some(address(instruction.op0_register())?.wrapping_add(immediate(instruction)?)),
        _ => None,
    }
}

fn use_of(instruction: &Instruction, state: &State, leaves: bool, factory: &mut InstructionInfoFactory) -> Use {
    let calls = matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
    if calls || leaves {
        // What a function returns; or what one that comes next may see: all but two registers that carry no argument, of which
        // the one says how many vector registers do (psABI for AMD64, figure 3.4).
        let is = |r: usize, list: [Register; 2]| list.iter().any(|register| register.number() == r);
        let seen = |r: usize| match instruction.flow_control() {
            FlowControl::Return => is(r, [Register::RAX, Register::RDX]),
            _ => !is(r, [Register::RAX, Register::R11]),
        };
        if state.iter().enumerate().any(|(r, held)| held.is_address() && seen(r)) {
            return Use::Other;
        }
    }
    let reads = |used: &iced_x86::UsedRegister| !matches!(used.access(), OpAccess::Write | OpAccess::None);
    let used = factory.info(instruction).used_registers().iter().filter(|u| reads(u));
    if !used.map(|u| of(state, u.register())).any(Held::is_address) || copied(instruction, state).is_some() {
        return Use::None;
    }
    let operand = |n: u32| instruction.op_count() > n && instruction.op_kind(n) == OpKind::Register;
    let holds = |n: u32| operand(n) && of(state, instruction.op_register(n)).is_address();
    // A register that is overwritten by what is read is no use of the address.
    let written_only = |n: u32| {
        n == 0 && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd)
    };
    let stray = (0..instruction.op_count()).any(|n| holds(n) && !written_only(n));
    if stray
        || !has_memory(instruction)
        || instruction.is_string_instruction()
        || instruction.mnemonic() == Mnemonic::Lea
    {
        return Use::Other;
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let scale = u64::from(instruction.memory_index_scale());
    let added = match (of(state, base), of(state, index)) {
        (Held::Address(offset), _) if index == Register::None => Some((offset, 0)),
        (Held::Address(offset), Held::AtMost(most)) => Some((offset, most.saturating_mul(scale))),
        (Held::AtMost(most), Held::Address(offset)) if scale == 1 => Some((offset, most)),
        _ => None,
    };
    let Some((offset, most)) = added.filter(|(_, most)| *most <= LARGE as u64) else { return Use::Other };
    let start = offset.wrapping_add(instruction.memory_displacement64() as i64);
    let size = instruction.memory_size().size() as i64;
    if size == 0 || start.abs() > LARGE { Use::Other } else { Use::Read(start, start + most as i64 + size) }
}

/// What the registers hold behind an instruction.
fn go_on(instruction: &Instruction, makes: bool, state: &mut State, factory: &mut InstructionInfoFactory) {
    let to = (instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register)
        .then(|| instruction.op0_register())
        .filter(|to| to.size() >= 4 && number(*to).is_some());
    let held = to.map(|to| match copied(instruction, state) {
        _ if makes => Held::Address(0),
        Some(offset) => Held::Address(offset),
        None => at_most(instruction, state, to).map_or(Held::Anything, Held::AtMost),
    });
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        for (r, held) in state.iter_mut().enumerate() {
            if !KEPT.iter().any(|kept| kept.number() == r) {
                *held = Held::Anything;
            }
        }
        return;
    }
    for used in factory.info(instruction).used_registers() {
        if let Some(r) = number(used.register())
            .filter(|_| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None))
        {
            let certain = matches!(used.access(), OpAccess::Write | OpAccess::ReadWrite) && used.register().size() >= 4;
            state[r] = if certain { Held::Anything } else { state[r].meet(Held::Anything) };
        }
    }
    if let (Some(to), Some(held)) = (to, held)
        && instruction.condition_code() == iced_x86::ConditionCode::None
        && let Some(r) = number(to)
    {
        state[r] = held;
    }
}

/// A bound of the number that an instruction puts into a register of 4 or 8 bytes.
fn at_most(instruction: &Instruction, state: &State, to: Register) -> Option<u64> {
    let known = |register: Register| match of(state, register) {
        Held::AtMost(most) if register.size() >= 4 => Some(most),
        Held::AtMost(most) if !is_high_byte(register) && most < 1 << (8 * register.size()) => Some(most),
        _ => None,
    };
    let from = || (instruction.op1_kind() == OpKind::Register).then(|| instruction.op1_register());
    let whole = if to.size() == 4 { u64::from(u32::MAX) } else { u64::MAX };
    match instruction.mnemonic() {
        Mnemonic::And => {
            let mask = immediate(instruction).and_then(|n| u64::try_from(n).ok());
            [mask, known(to)].into_iter().flatten().min()
        }
        Mnemonic::Movzx => {
            let width = if instruction.op1_kind() == OpKind::Memory {
                instruction.memory_size().size()
            } else {
                instruction.op1_register().size()
            };
            let most = (1 << (8 * width.min(4))) - 1;
            Some(from().and_then(known).map_or(most, |known| known.min(most)))
        }
        Mnemonic::Mov => match from() {
            Some(from) => known(from).filter(|most| *most <= whole),
            None => immediate(instruction).and_then(|n| u64::try_from(n).ok()),
        },
        Mnemonic::Xor if from() == Some(to) => Some(0),
        Mnemonic::Shr => match instruction.op1_kind() {
            OpKind::Immediate8 => {
                let by = u32::from(instruction.immediate8()) & (8 * to.size() as u32 - 1);
                Some(known(to).unwrap_or(whole).min(whole) >> by)
            }
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::ways::Decoded;
    use super::bounded as all;

    fn bounded(code: &[u8]) -> Option<(i64, i64)> {
        all(&Decoded::new([(0x1000, code)].into_iter()), 0x1000)
    }

    /// `lea rcx,[rip+0x100]`
    const MAKES: [u8; 7] = [0x48, 0x8d, 0x0d, 0, 1, 0, 0];

    #[test]
    fn a_masked_index_in_a_loop() {
        // L: mov edx,eax; and edx,15; shr rax,4; movzx edx,byte [rdx+rcx]; test rax,rax; jne L; mov ecx,2; call; ret
        let digits = [
            0x89, 0xc2, 0x83, 0xe2, 15, 0x48, 0xc1, 0xe8, 4, 0x0f, 0xb6, 0x14, 0x0a, 0x48, 0x85, 0xc0, 0x75, 0xee,
            0xb9, 2, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0xc3,
        ];
        assert_eq!(bounded(&[&MAKES[..], &digits].concat()), Some((0, 16)));
        // Another mask, words of four bytes: and edx,7; mov eax,[rcx+rdx*4+8]; xor ecx,ecx; xor eax,eax; ret
        let words = [0x83, 0xe2, 7, 0x8b, 0x44, 0x91, 8, 0x31, 0xc9, 0x31, 0xc0, 0xc3];
        assert_eq!(bounded(&[&MAKES[..], &words].concat()), Some((8, 40)));
    }

    #[test]
    fn what_is_not_certain_has_no_bound() {
        let end = [0x31, 0xc9, 0x31, 0xc0, 0xc3];
        let of = |code: &[u8]| bounded(&[&MAKES[..], code, &end].concat());
        // and edx,15; movzx eax,byte [rcx+rdx]
        assert_eq!(of(&[0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x11]), Some((0, 16)));
        // The same without the mask; with a mask on one way only; with the address stored, pushed, handed to a call, incremented.
        assert_eq!(of(&[0x0f, 0xb6, 4, 0x11]), None);
        assert_eq!(of(&[0x74, 3, 0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x11]), None);
        assert_eq!(of(&[0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x11, 0x48, 0x89, 0x0e]), None);
        assert_eq!(of(&[0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x11, 0x51]), None);
        assert_eq!(of(&[0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x11, 0xe8, 0, 0, 0, 0]), None);
        assert_eq!(of(&[0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x11, 0x48, 0xff, 0xc1]), None);
        // and edx,-16: mov dl,[rdi] behind the mask
        assert_eq!(of(&[0x83, 0xe2, 0xf0, 0x0f, 0xb6, 4, 0x11]), None);
        assert_eq!(of(&[0x83, 0xe2, 15, 0x8a, 0x17, 0x0f, 0xb6, 4, 0x11]), None);
    }

    #[test]
    fn any_bytes_are_followed_without_a_panic() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for start in (0..program.len()).step_by(4099) {
            bounded(&[&MAKES[..], &program[start..program.len().min(start + 512)]].concat());
        }
    }
}
