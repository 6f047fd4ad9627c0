//! Code that keeps distances instead of addresses: it reads a number from a table, and adds the table's start to it.

use std::collections::BTreeSet;

use iced_x86::{ConditionCode, FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::code::Step;
use crate::derived::Derived;

/// How many instructions there may be between reading a distance and adding to it.
const NEAR: usize = 16;

/// What is seen of one range of code, instruction by instruction.
#[derive(Debug, Default)]
pub(crate) struct Distances {
    /// The last numbers that were read.
    read: Vec<Read>,
    /// The last sum of the two that no jump has gone to yet, and how many instructions ago.
    sum: Option<(Register, usize)>,
    found: bool,
    /// Tables whose start was added to what was read from them, and those of which a number was read that is none.
    added: BTreeSet<u64>,
    numbers: BTreeSet<u64>,
}

/// A 32-bit number that was read from a table.
#[derive(Debug)]
struct Read {
    /// The registers that hold the number and the start of the table.
    number: Register,
    table: Register,
    /// The table, if code before says which it is.
    start: Option<u64>,
    /// It has 64 bits already.
    wide: bool,
    /// How many instructions ago that was.
    ago: usize,
    /// Control came here from there in any case.
    straight: bool,
}

impl Distances {
    /// Follows one instruction. `derived` knows which addresses registers hold before it.
    pub(crate) fn see(&mut self, step: &Step, derived: &Derived<u64>) {
        self.read.iter_mut().for_each(|read| read.ago += 1);
        self.read.retain(|read| read.ago < NEAR);
        self.leave(step);
        self.add(step);
        self.overwrite(step, derived);
        self.begin(step, derived);
    }

    /// True if the code that was seen keeps distances to data; those of a jump through a table are none.
    pub(crate) fn found(&self) -> bool {
        self.found || self.sum.is_some()
    }

    /// True if nothing says that the table at an address holds other numbers than distances.
    pub(crate) fn may_begin_at(&self, table: u64) -> bool {
        self.added.contains(&table) || !self.numbers.contains(&table)
    }

    /// A jump goes to the last sum.
    fn leave(&mut self, step: &Step) {
        let jumps_to = step.is_computed_jump() && step.instruction.op0_kind() == OpKind::Register;
        self.sum = match self.sum {
            Some((sum, ago)) if jumps_to && sum == step.instruction.op0_register() && ago < NEAR => None,
            Some((sum, ago)) => Some((sum, ago + 1)),
            None => None,
        };
    }

    /// The start of a table is added to what was read from it.
    fn add(&mut self, step: &Step) {
        let Some((x, y, sum)) = adds(step).filter(|(x, y, _)| x != y) else { return };
        let both = |read: &&Read| read.wide && [(x, y), (y, x)].contains(&(read.number, read.table));
        let tables: Vec<Option<u64>> = self.read.iter().filter(both).map(|read| read.start).collect();
        if !tables.is_empty() {
            self.added.extend(tables.iter().flatten());
            // One before this one was no jump's, and what is only read or written is none.
            self.found |= self.sum.is_some() || sum.is_none();
            self.sum = sum.map(|sum| (sum, 0));
        }
    }

    /// What was read is used up: one of the two registers gets another value, and no way leads around that.
    fn overwrite(&mut self, step: &Step, derived: &Derived<u64>) {
        if self.read.is_empty() {
            return;
        }
        let i = &step.instruction;
        if i.flow_control() != FlowControl::Next {
            self.read.iter_mut().for_each(|read| read.straight = false);
            return;
        }
        let mut factory = InstructionInfoFactory::new();
        let used: Vec<(Register, OpAccess)> =
            factory.info(i).used_registers().iter().map(|u| (u.register().full_register(), u.access())).collect();
        let writes = |register: Register| {
            let sure = i.condition_code() == ConditionCode::None;
            sure && used
                .iter()
                .any(|(r, access)| *r == register && matches!(access, OpAccess::Write | OpAccess::ReadWrite))
        };
        let widens =
            i.mnemonic() == Mnemonic::Cdqe || i.mnemonic() == Mnemonic::Movsxd && i.op1_kind() == OpKind::Register;
        for read in self.read.iter_mut().filter(|read| read.ago > 0) {
            let uses = used.iter().any(|(r, _)| *r == read.number);
            // It may go on under another name.
            if uses && (widens || i.mnemonic() == Mnemonic::Mov) {
                read.start = None;
            }
        }
        let numbers = &mut self.numbers;
        self.read.retain(|read| {
            let (number, table) = (writes(read.number), writes(read.table));
            let asked = matches!(i.mnemonic(), Mnemonic::Cmp | Mnemonic::Test);
            let narrow = !read.wide && !asked && used.iter().any(|(r, _)| *r == read.number);
            if !read.straight || !(number || table || narrow) {
                return true;
            }
            // Another register may still hold the start.
            let other = || read.start.is_some_and(|start| derived.is_held_elsewhere(start, read.table));
            if number || narrow || !other() {
                numbers.extend(read.start);
            }
            false
        });
    }

    /// An instruction reads from a table: from one of many numbers behind a register, `(b,i,4)`, or behind either one of `(b,i)`.
    fn begin(&mut self, step: &Step, derived: &Derived<u64>) {
        let i = &step.instruction;
        let (base, index) = (i.memory_base(), i.memory_index());
        if base == Register::None || index == Register::None || i.mnemonic() == Mnemonic::Lea {
            return;
        }
        let number = match i.mnemonic() {
            Mnemonic::Movsxd | Mnemonic::Mov if i.op0_kind() == OpKind::Register && i.memory_size().size() == 4 => {
                Some(i.op0_register().full_register())
            }
            _ => None,
        };
        let wide = i.mnemonic() == Mnemonic::Movsxd;
        let other = Some(index).filter(|_| i.memory_index_scale() == 1);
        for table in [Some(base), other].into_iter().flatten() {
            let start = derived.held(table).filter(|_| i.memory_displacement64() == 0);
            match number {
                Some(number) if number != table => {
                    if wide && matches!(i.memory_index_scale(), 1 | 4) || start.is_some() {
                        self.read.push(Read { number, table, start, wide, ago: 0, straight: true });
                    }
                }
                _ => self.numbers.extend(start),
            }
        }
    }
}

/// Adds one register to another one: which they are, and where the sum is, if it is kept.
fn adds(step: &Step) -> Option<(Register, Register, Option<Register>)> {
    let i = &step.instruction;
    let registers = i.op_count() == 2 && [i.op0_kind(), i.op1_kind()] == [OpKind::Register; 2];
    if registers && i.mnemonic() == Mnemonic::Add {
        return Some((i.op0_register(), i.op1_register(), Some(i.op0_register())));
    }
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let two = i.memory_base() != Register::None && i.memory_index() != Register::None;
    let sum = (i.mnemonic() == Mnemonic::Lea).then(|| i.op0_register());
    (memory && two && i.memory_index_scale() == 1).then(|| (i.memory_base(), i.memory_index(), sum))
}

#[cfg(test)]
mod tests {
    use super::{Derived, Distances};
    use crate::code::steps;

    /// `lea rdx,[rip+0x100]` and then this: are distances read at all, and may it be from there?
    fn of(code: &[u8]) -> (bool, bool) {
        let code = [&[0x48, 0x8d, 0x15, 0, 1, 0, 0][..], code].concat();
        let (mut distances, mut derived) = (Distances::default(), Derived::new());
        for (_, step) in steps(0x1000, &code, false) {
            distances.see(&step, &derived);
            derived.see(&step, step.fields.first().map(|f| f.target));
        }
        (distances.found(), distances.may_begin_at(0x1107))
    }

    /// `movsxd rcx,[rdx+rcx*4]`
    const READS: [u8; 4] = [0x48, 0x63, 0x0c, 0x8a];

    #[test]
    fn the_start_of_a_table_is_added_to_what_was_read() {
        // add rcx,rdx; the other way round; lea rax,[rcx+rdx]; mov al,[rcx+rdx]
        for adds in [&[0x48, 0x01, 0xd1][..], &[0x48, 0x01, 0xca], &[0x48, 0x8d, 0x04, 0x11], &[0x8a, 0x04, 0x11]] {
            assert_eq!(of(&[&READS[..], adds].concat()), (true, true), "{adds:x?}");
        }
        // The start is the index: movsxd rsi,[rax+rdx]; add rsi,rdx
        assert_eq!(of(&[0x48, 0x63, 0x34, 0x10, 0x48, 0x01, 0xd6]), (true, true));
        // A jump goes there: add rcx,rdx; jmp rcx
        assert_eq!(of(&[&READS[..], &[0x48, 0x01, 0xd1, 0xff, 0xe1]].concat()), (false, true));
        // Perhaps not overwritten: je +7; lea rdx,[rbx+rbx*8+0]; add rcx,rdx
        let around = [&READS[..], &[0x74, 4, 0x48, 0x8d, 0x14, 0xdb, 0x48, 0x01, 0xd1]].concat();
        assert_eq!(of(&around), (true, true));
    }

    #[test]
    fn another_value_in_one_of_the_registers_is_no_start() {
        // lea rdx,[rbx+rbx*8]; lea rax,[rcx+rdx]
        assert_eq!(of(&[&READS[..], &[0x48, 0x8d, 0x14, 0xdb, 0x48, 0x8d, 0x04, 0x11]].concat()), (false, false));
        // mov rsi,rdx; xor edx,edx; the start is still in rsi
        assert_eq!(of(&[&[0x48, 0x89, 0xd6][..], &READS, &[0x31, 0xd2]].concat()), (false, true));
        // mov rsi,rcx; xor ecx,ecx; the number is still in rsi
        assert_eq!(of(&[&READS[..], &[0x48, 0x89, 0xce, 0x31, 0xc9]].concat()), (false, true));
    }

    #[test]
    fn numbers_that_are_read_are_none() {
        // mov eax,[rdx+rcx*4]; imul eax,esi. movzx eax,byte [rdx+rcx]. add eax,[rdx+rcx*4]
        for reads in [&[0x8b, 0x04, 0x8a, 0x0f, 0xaf, 0xc6][..], &[0x0f, 0xb6, 0x04, 0x0a], &[0x03, 0x04, 0x8a]] {
            assert_eq!(of(reads), (false, false), "{reads:x?}");
        }
        // mov eax,[rdx+rcx*4]; cdqe; add rax,rdx: nobody says so
        assert!(of(&[0x8b, 0x04, 0x8a, 0x48, 0x98, 0x48, 0x01, 0xd0]).1);
    }
}
