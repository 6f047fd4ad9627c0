//! Which tables of 32-bit numbers may hold distances from their own start, as compilers make them of arrays of texts.
//!
//! A function that reads distances says so: it adds the table's start to what it read. Where that start was made is not seen in
//! any case, so each address that such a function makes may be it; but not one from which numbers are read that the address is
//! never added to, on no way that the code can take.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use rustc_hash::FxHashSet;

use super::derived::{Held, Holder, follow_result};
use super::jump_table::starts;
use super::registers::has_memory;
use super::ways::Decoded;

/// An address that code makes: which instruction does, and the address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub at: u64,
    pub target: u64,
}

/// What is read from an address that code makes, seen from one place that makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Distances,
    Numbers,
    Unknown,
}

/// The addresses at which a table of distances may begin, ordered; those put aside that are `known` to be something else.
pub(super) fn perhaps(ranges: &[(u64, &[u8])], mut made: Vec<Made>, known: &dyn Fn(u64) -> bool) -> Vec<u64> {
    let code = Decoded::new(ranges.iter().copied());
    let mut factory = InstructionInfoFactory::new();
    made.retain(|made| !known(made.target));
    made.sort_by_key(|made| (made.target, made.at));
    let candidates = made.chunk_by(|a, b| a.target == b.target).filter(|same| {
        let tables: Vec<Table> = same.iter().map(|made| table(&code, made.at, &mut factory)).collect();
        tables.contains(&Table::Distances) || !tables.contains(&Table::Numbers)
    });
    candidates.map(|same| same[0].target).collect()
}

/// What the table holds whose start the instruction at `made` makes.
fn table(code: &Decoded, made: u64, factory: &mut InstructionInfoFactory) -> Table {
    let Some(first) = code.at(made) else { return Table::Unknown };
    let mut held_in: FxHashSet<(usize, Register)> = FxHashSet::default();
    let mut whole = follow_result(code, first, factory, &mut |n, held| {
        held_in.extend(register(held).map(|register| (n, register)));
    });
    let mut reads: Vec<usize> =
        held_in.iter().filter(|(n, start)| reads_entry(&code.instructions[*n], *start)).map(|(n, _)| *n).collect();
    reads.sort_unstable();
    let (mut distances, mut numbers) = (false, false);
    for read in reads {
        let instruction = &code.instructions[read];
        if instruction.memory_size().size() != 4 || !loads(instruction) {
            numbers = true;
            continue;
        }
        let mut widened = instruction.mnemonic() == Mnemonic::Movsxd;
        whole &= follow_result(code, read, factory, &mut |n, held| {
            let Some(number) = register(held) else { return };
            let i = &code.instructions[n];
            distances |= sum(i).is_some_and(|(x, y)| {
                x == number && held_in.contains(&(n, y)) || y == number && held_in.contains(&(n, x))
            });
            // A number of 32 bits that becomes one of 64 is followed no further.
            widened |= match i.mnemonic() {
                Mnemonic::Movsxd => i.op1_kind() == OpKind::Register && i.op1_register().full_register() == number,
                Mnemonic::Cdqe => number == Register::RAX,
                _ => false,
            };
        });
        numbers |= instruction.mnemonic() == Mnemonic::Movsxd || !widened;
    }
    match (distances, numbers && whole) {
        (true, _) => Table::Distances,
        (false, true) => Table::Numbers,
        (false, false) => Table::Unknown,
    }
}

/// The register that holds just the address.
fn register(held: Held) -> Option<Register> {
    match held {
        Held { holder: Holder::Register(register), offset: 0, .. } => Some(register),
        _ => None,
    }
}

/// Reads one of many numbers that lie from the address in `start` on.
fn reads_entry(instruction: &Instruction, start: Register) -> bool {
    has_memory(instruction)
        && instruction.mnemonic() != Mnemonic::Lea
        && instruction.memory_index() != Register::None
        && starts(instruction).any(|register| register.full_register() == start)
        && instruction.memory_displacement64() == 0
}

/// Leaves what it reads in a register as it is.
fn loads(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Movsxd) && instruction.op0_kind() == OpKind::Register
}

/// The two registers that an instruction adds to each other.
fn sum(i: &Instruction) -> Option<(Register, Register)> {
    let registers = i.op_count() == 2 && i.op0_kind() == OpKind::Register && i.op1_kind() == OpKind::Register;
    let (x, y) = match i.mnemonic() {
        Mnemonic::Add if registers => (i.op0_register(), i.op1_register()),
        _ if has_memory(i) && i.memory_index_scale() == 1 => (i.memory_base(), i.memory_index()),
        _ => return None,
    };
    Some((x.full_register(), y.full_register()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lea rdx,[rip+0x100]` and then this, which ends with `ret`: is it a candidate?
    fn is_candidate(code: &[u8]) -> bool {
        let code = [&[0x48, 0x8d, 0x15, 0, 1, 0, 0][..], code, &[0xc3]].concat();
        let found = perhaps(&[(0x1000, &code)], vec![Made { at: 0x1000, target: 0x1107 }], &|_| false);
        found == [0x1107]
    }

    /// `movsxd rcx,[rdx+rcx*4]`
    const READS: [u8; 4] = [0x48, 0x63, 0x0c, 0x8a];

    #[test]
    fn the_start_that_is_added_to_what_was_read_is_one() {
        // movsxd rsi,[rax+rdx]; add rsi,rdx
        assert!(is_candidate(&[0x48, 0x63, 0x34, 0x10, 0x48, 0x01, 0xd6]));
        // add rcx,rdx. The other way round. lea rax,[rcx+rdx]. mov al,[rcx+rdx]
        for adds in [&[0x48, 0x01, 0xd1][..], &[0x48, 0x01, 0xca], &[0x48, 0x8d, 0x04, 0x11], &[0x8a, 0x04, 0x11]] {
            assert!(is_candidate(&[&READS[..], adds].concat()), "{adds:x?}");
        }
        // By way of other registers: mov rsi,rdx; movsxd rcx,[rdx+rcx*4]; xor edx,edx; jmp +0; add rcx,rsi
        let code = [&[0x48, 0x89, 0xd6][..], &READS, &[0x31, 0xd2, 0xeb, 0, 0x48, 0x01, 0xf1]].concat();
        assert!(is_candidate(&code));
    }

    #[test]
    fn what_nothing_is_seen_to_be_read_from_may_be_one() {
        // Nothing; mov rdi,rdx; mov eax,[rdx]
        assert!(is_candidate(&[]) && is_candidate(&[0x48, 0x89, 0xd7]) && is_candidate(&[0x8b, 0x02]));
        // mov ecx,[rdx+rcx*4]; movsxd rcx,ecx; add rcx,rdx
        assert!(is_candidate(&[0x8b, 0x0c, 0x8a, 0x48, 0x63, 0xc9, 0x48, 0x01, 0xd1]));
    }

    #[test]
    fn what_numbers_are_read_from_is_none() {
        // movsxd rsi,[rax+rdx]; add rsi,rax: the other register
        assert!(!is_candidate(&[0x48, 0x63, 0x34, 0x10, 0x48, 0x01, 0xc6]));
        // lea rdx,[rbx+rbx*8]; lea rax,[rcx+rdx]: another value by then
        assert!(!is_candidate(&[&READS[..], &[0x48, 0x8d, 0x14, 0xdb, 0x48, 0x8d, 0x04, 0x11]].concat()));
        // add rax,rcx; mov eax,[rdx+rcx*4]; add eax,[rdx+rcx*4]; movzx eax,byte [rdx+rcx]
        assert!(!is_candidate(&[&READS[..], &[0x48, 0x01, 0xc8]].concat()));
        for reads in [&[0x8b, 0x04, 0x8a][..], &[0x03, 0x04, 0x8a], &[0x0f, 0xb6, 0x04, 0x0a]] {
            assert!(!is_candidate(reads), "{reads:x?}");
        }
    }
}
