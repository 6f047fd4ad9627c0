//! Is an index below zero, by how code makes it?
//!
//! Looked for backwards from where it is used, on all ways there: a sign that is changed, a number below zero, a number from which
//! something is subtracted. What comes from memory or from a caller is taken for an index as it should be.

use iced_x86::{ConditionCode, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::entities::Side;

/// Where a number is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Cell {
    Register(Register),
    Frame(Register, i64),
}

/// The code of one function, backwards.
pub(crate) struct Backwards {
    steps: Vec<Instruction>,
    /// By address: the places in `steps` from which code goes there.
    from: FxHashMap<u64, Vec<usize>>,
}

impl Backwards {
    /// The function that a range belongs to.
    pub(crate) fn of(side: &Side<'_>, range: usize) -> Backwards {
        let ranges = side.family(side.ranges[range].parent).iter();
        let steps: Vec<Instruction> =
            ranges.flat_map(|range| side.steps(*range).map(|(_, step)| step.instruction)).collect();
        let mut from: FxHashMap<u64, Vec<usize>> = FxHashMap::default();
        for (n, i) in steps.iter().enumerate() {
            let flow = i.flow_control();
            if !matches!(flow, FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch) {
                from.entry(i.next_ip()).or_default().push(n);
            }
            if matches!(flow, FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch) {
                from.entry(i.near_branch_target()).or_default().push(n);
            }
        }
        Backwards { steps, from }
    }

    fn before(&self, at: u64) -> &[usize] {
        self.from.get(&at).map_or(&[], Vec::as_slice)
    }

    /// What a register holds where the instruction at an address begins may be below zero.
    pub(crate) fn is_below(&self, at: u64, register: Register) -> bool {
        const MOST: usize = 4000;
        let mut factory = InstructionInfoFactory::new();
        let mut seen: FxHashSet<(usize, Cell)> = FxHashSet::default();
        let first = Cell::Register(register.full_register());
        let mut open: Vec<(usize, Cell)> = self.before(at).iter().map(|n| (*n, first)).collect();
        while let Some((n, cell)) = open.pop() {
            if seen.len() >= MOST || !seen.insert((n, cell)) {
                continue;
            }
            let i = &self.steps[n];
            let parts = match writes(i, cell, &mut factory) {
                false => Some(vec![cell]),
                true => self.parts(n),
            };
            let Some(parts) = parts else { return true };
            for before in self.before(i.ip()) {
                open.extend(parts.iter().map(|part| (*before, *part)));
            }
        }
        false
    }

    /// What an instruction makes its result of; `None` if it may be below zero by that.
    fn parts(&self, n: usize) -> Option<Vec<Cell>> {
        let i = &self.steps[n];
        let two = i.op_count() > 1;
        let number = if two { i.try_immediate(1).ok().map(u64::cast_signed) } else { None };
        let negative = |n: i64| n < 0 || (n >> 31) == 1;
        let size = match i.op0_kind() {
            _ if i.op_count() == 0 => 8,
            OpKind::Register => i.op0_register().size(),
            _ => i.memory_size().size(),
        };
        let (to, with) = (cell(i, 0), cell(i, 1));
        let list = |cells: &[Option<Cell>]| Some(cells.iter().flatten().copied().collect());
        match i.mnemonic() {
            _ if size < 4 => list(&[]),
            Mnemonic::Not | Mnemonic::Neg => None,
            Mnemonic::Mov | Mnemonic::Or | Mnemonic::Xor if number.is_some_and(negative) => None,
            Mnemonic::Sub if number.is_none() && to.is_some_and(|to| self.is_set_to_number(n, to)) => None,
            Mnemonic::Mov | Mnemonic::Movsxd => list(&[with]),
            Mnemonic::And if number.is_some_and(|n| n >= 0) => list(&[]),
            Mnemonic::Cdqe => list(&[Some(Cell::Register(Register::RAX))]),
            Mnemonic::Lea => {
                let part = |r: Register| {
                    let general = !matches!(r, Register::None | Register::RIP | Register::RSP);
                    general.then(|| Cell::Register(r.full_register()))
                };
                list(&[part(i.memory_base()), part(i.memory_index())])
            }
            Mnemonic::Add | Mnemonic::Imul | Mnemonic::Or | Mnemonic::Xor => list(&[to, with]),
            Mnemonic::And | Mnemonic::Sub | Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Shl | Mnemonic::Sar => {
                list(&[to])
            }
            _ if i.condition_code() != ConditionCode::None => list(&[to, with]),
            _ => list(&[]),
        }
    }

    /// On the only way to an instruction a register was set to a number shortly before.
    fn is_set_to_number(&self, n: usize, cell: Cell) -> bool {
        let mut factory = InstructionInfoFactory::new();
        let mut at = self.steps[n].ip();
        for _ in 0..8 {
            let [last] = self.before(at) else { return false };
            let i = &self.steps[*last];
            if writes(i, cell, &mut factory) {
                let two = i.op_count() > 1;
                let zero = two
                    && i.mnemonic() == Mnemonic::Xor
                    && i.op_kind(1) == OpKind::Register
                    && i.op_register(0) == i.op_register(1);
                return zero || two && i.mnemonic() == Mnemonic::Mov && i.try_immediate(1).is_ok();
            }
            at = i.ip();
        }
        false
    }
}

/// The register or the word of the frame that an operand is.
fn cell(i: &Instruction, n: u32) -> Option<Cell> {
    if n >= i.op_count() {
        return None;
    }
    match i.op_kind(n) {
        OpKind::Register => Some(Cell::Register(i.op_register(n).full_register())),
        OpKind::Memory if i.memory_index() == Register::None => match i.memory_base() {
            base @ (Register::RSP | Register::RBP) => Some(Cell::Frame(base, i.memory_displacement64().cast_signed())),
            _ => None,
        },
        _ => None,
    }
}

fn writes(i: &Instruction, of: Cell, factory: &mut InstructionInfoFactory) -> bool {
    match of {
        Cell::Register(register) => factory.info(i).used_registers().iter().any(|used| {
            let changed = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            changed && used.register().full_register() == register
        }),
        Cell::Frame(..) => {
            let idle = matches!(i.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
            !idle && i.op_count() > 0 && i.op0_kind() == OpKind::Memory && cell(i, 0) == Some(of)
        }
    }
}
