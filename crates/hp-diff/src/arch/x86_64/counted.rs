//! The length of a text of Rust, where code has it beside the text's address.
//!
//! A `&str` is two words: an address and a length. Code that hands one on puts them into two registers for arguments that
//! follow each other, or into two words of memory that do (psABI for AMD64, section 3.2.3).

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use super::registers::written;

/// Registers of arguments, in their order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// The number that code puts beside the address that the instruction at `offset` makes, if one stands in the same run of
/// instructions without a jump.
pub(crate) fn counted(bytes: &[u8], offset: u32) -> Option<u64> {
    let code: Vec<Instruction> = Decoder::new(64, bytes, DecoderOptions::NONE).into_iter().collect();
    let at = code.iter().position(|i| i.ip() == u64::from(offset))?;
    let made = &code[at];
    if made.mnemonic() != Mnemonic::Lea || !made.is_ip_rel_memory_operand() {
        return None;
    }
    let goes_on = |i: &&Instruction| i.flow_control() == FlowControl::Next;
    let start = at - code[..at].iter().rev().take_while(goes_on).count();
    let run = code[at + 1..].iter().take_while(goes_on).count();
    let end = code.get(at + 1 + run);
    let address = made.op0_register().full_register();
    let mut factory = InstructionInfoFactory::new();
    as_argument(&code[start..at + 1 + run], end, (at - start, address), &mut factory)
        .or_else(|| in_memory(&code[start..at + 1 + run], (at - start, address), &mut factory))
}

/// The address and the number are arguments of the call, or jump, that ends the run.
fn as_argument(
    run: &[Instruction],
    end: Option<&Instruction>,
    (made, address): (usize, Register),
    factory: &mut InstructionInfoFactory,
) -> Option<u64> {
    let calls = |i: &&Instruction| {
        use FlowControl::{Call, IndirectBranch, IndirectCall, UnconditionalBranch};
        matches!(i.flow_control(), Call | IndirectCall | UnconditionalBranch | IndirectBranch)
    };
    end.filter(calls)?;
    let place = ARGUMENTS.iter().position(|r| *r == address)?;
    let beside = *ARGUMENTS.get(place + 1)?;
    let kept = run[made + 1..].iter().all(|i| !written(i, factory).contains(&address));
    let last = run.iter().rev().find(|i| written(i, factory).contains(&beside)).filter(|_| kept)?;
    let sets = last.mnemonic() == Mnemonic::Mov && last.op0_register().full_register() == beside;
    sets.then(|| number(last)).flatten()
}

/// The address and the number are stored into two words.
fn in_memory(
    run: &[Instruction],
    (made, address): (usize, Register),
    factory: &mut InstructionInfoFactory,
) -> Option<u64> {
    let word = |i: &Instruction| {
        let stores = i.mnemonic() == Mnemonic::Mov && i.op0_kind() == OpKind::Memory;
        (stores && i.memory_index() == Register::None && i.memory_size().size() == 8)
            .then(|| (i.memory_base(), i.memory_displacement64()))
    };
    let until = run[made + 1..].iter().position(|i| written(i, factory).contains(&address));
    let held = &run[made + 1..until.map_or(run.len(), |n| made + 1 + n)];
    let store = held.iter().find(|i| word(i).is_some() && i.op1_register().full_register() == address)?;
    let (base, offset) = word(store)?;
    let beside = run.iter().rev().find(|i| word(i) == Some((base, offset.wrapping_add(8))))?;
    let moved = run.iter().any(|i| written(i, factory).contains(&base.full_register()));
    if moved { None } else { number(beside) }
}

fn number(instruction: &Instruction) -> Option<u64> {
    match instruction.op1_kind() {
        OpKind::Immediate32 => Some(u64::from(instruction.immediate32())),
        OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate64 => Some(instruction.immediate(1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    /// `lea rsi,[rip+0x100]`
    const MAKES: [u8; 7] = [0x48, 0x8d, 0x35, 0, 1, 0, 0];

    #[test]
    fn the_argument_behind_the_address() {
        // mov edx,10; lea rsi; mov rdi,rbx; call
        let call = [0xe8, 0, 0, 0, 0];
        let code = [&[0xba, 10, 0, 0, 0][..], &MAKES, &[0x48, 0x89, 0xdf], &call].concat();
        assert_eq!(counted(&code, 5), Some(10));
        // lea rsi; mov edx,10; mov edx,ecx; call
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0x89, 0xca], &call].concat();
        assert_eq!(counted(&code, 0), None);
        // lea rsi; mov edx,10; mov rsi,rax; call
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0x48, 0x89, 0xc6], &call].concat();
        assert_eq!(counted(&code, 0), None);
        // mov edx,10; call; lea rsi; call: the first call has changed it
        let code = [&[0xba, 10, 0, 0, 0][..], &call, &MAKES, &call].concat();
        assert_eq!(counted(&code, 10), None);
        // lea rsi; mov edx,10; jmp
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0xeb, 0]].concat();
        assert_eq!(counted(&code, 0), Some(10));
        // lea rsi; mov edx,10; je
        let code = [&MAKES[..], &[0xba, 10, 0, 0, 0, 0x74, 0]].concat();
        assert_eq!(counted(&code, 0), None);
    }

    #[test]
    fn the_word_behind_the_address() {
        // lea rsi; mov [rsp+16],rsi; mov qword [rsp+24],7; jne
        let stores = [0x48, 0x89, 0x74, 0x24, 16, 0x48, 0xc7, 0x44, 0x24, 24, 7, 0, 0, 0];
        assert_eq!(counted(&[&MAKES[..], &stores, &[0x75, 0]].concat(), 0), Some(7));
        // Not the word before it, and not with another base.
        let mut other = stores;
        other[9] = 8;
        assert_eq!(counted(&[&MAKES[..], &other, &[0xc3]].concat(), 0), None);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for start in (0..program.len()).step_by(4099) {
            counted(&[&MAKES[..], &program[start..program.len().min(start + 512)]].concat(), 0);
        }
    }
}
