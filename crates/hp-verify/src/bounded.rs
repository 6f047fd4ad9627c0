//! The bytes that code can read by way of an address that it makes, where an index has a bound.
//!
//! `lea digits(%rip),%rcx; L: and $15,%edx; movzbl (%rcx,%rdx),%eax; jne L` reads sixteen bytes, whatever lies behind them. Every
//! way from where the address is made is walked by itself, with the registers that hold it and the bounds that were set on that way,
//! until nothing holds it any more. If it gets anywhere else, or is read at a place without a bound, nothing is known.

use std::collections::BTreeMap;

use iced_x86::Register;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};
use rustc_hash::FxHashSet;

/// Places on all ways together.
const STEPS: usize = 4000;
const FAR: i64 = 4096;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Way {
    /// Registers that hold the address, and how far behind it.
    held: BTreeMap<Register, i64>,
    /// Registers that hold a number which is not larger.
    most: BTreeMap<Register, u64>,
}

/// From where to where code reads, by how far it lies from the address that the instruction at offset `made` makes. `bytes` is
/// the whole function.
pub(crate) fn reads(bytes: &[u8], made: usize) -> Option<(i64, i64)> {
    let code: BTreeMap<u64, Instruction> =
        Decoder::new(64, bytes, DecoderOptions::NONE).into_iter().map(|i| (i.ip(), i)).collect();
    let first = code.get(&(made as u64)).filter(|i| i.mnemonic() == Mnemonic::Lea && i.is_ip_rel_memory_operand())?;
    let mut way = Way::default();
    way.held.insert(first.op0_register().full_register(), 0);
    let (mut open, mut seen) = (vec![(first.next_ip(), way)], FxHashSet::default());
    let mut found: Option<(i64, i64)> = None;
    let mut factory = InstructionInfoFactory::new();
    while let Some((at, way)) = open.pop() {
        if way.held.is_empty() || !seen.insert((at, way.clone())) {
            continue;
        }
        let i = code.get(&at).filter(|i| !i.is_invalid() && seen.len() < STEPS)?;
        let inside = code.contains_key(&i.near_branch_target());
        let leaves = match i.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => true,
            FlowControl::UnconditionalBranch => !inside,
            _ => false,
        };
        if leaves {
            // No argument is in these; a call leaves something else in them.
            if way.held.keys().any(|register| !matches!(register, Register::RAX | Register::R11)) {
                return None;
            }
            continue;
        }
        let next = match i.flow_control() {
            FlowControl::Next => vec![i.next_ip()],
            FlowControl::ConditionalBranch => vec![i.next_ip(), i.near_branch_target()],
            FlowControl::UnconditionalBranch => vec![i.near_branch_target()],
            FlowControl::Return => {
                let returned = way.held.contains_key(&Register::RAX) || way.held.contains_key(&Register::RDX);
                if returned {
                    return None;
                }
                continue;
            }
            _ => return None,
        };
        if let Some((start, end)) = way.read_by(i, &mut factory)? {
            let (from, to) = found.unwrap_or((start, end));
            found = Some((from.min(start), to.max(end)));
        }
        let behind = way.behind(i, &mut factory)?;
        open.extend(next.into_iter().map(|next| (next, behind.clone())));
    }
    found.filter(|(start, end)| end - start <= FAR)
}

impl Way {
    fn offset(&self, register: Register) -> Option<i64> {
        self.held.get(&register.full_register()).copied()
    }

    fn bound(&self, register: Register) -> Option<u64> {
        self.most.get(&register.full_register()).copied()
    }

    /// The bytes that an instruction reads by the address; the outer `None` if it does something else with it.
    #[expect(clippy::option_option, reason = "no use is something else than an unknown one")]
    fn read_by(&self, i: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Option<(i64, i64)>> {
        let uses = |used: &&iced_x86::UsedRegister| {
            !matches!(used.access(), OpAccess::Write | OpAccess::None) && self.offset(used.register()).is_some()
        };
        if !factory.info(i).used_registers().iter().any(|used| uses(&used)) || self.moved(i).is_some() {
            return Some(None);
        }
        let loads = matches!(
            i.mnemonic(),
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd | Mnemonic::Movups | Mnemonic::Movaps
        );
        if !loads || i.op0_kind() != OpKind::Register || i.op1_kind() != OpKind::Memory {
            return None;
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        let times = u64::from(i.memory_index_scale());
        let (offset, most) = match (self.offset(base), self.offset(index)) {
            (Some(offset), None) if index == Register::None => (offset, 0),
            (Some(offset), None) => (offset, self.bound(index)?.checked_mul(times)?),
            (None, Some(offset)) if times == 1 && base != Register::None => (offset, self.bound(base)?),
            _ => return None,
        };
        let start = offset.checked_add(i.memory_displacement64() as i64).filter(|n| n.abs() < FAR)?;
        let most = i64::try_from(most).ok().filter(|most| *most < FAR)?;
        Some(Some((start, start + most + i.memory_size().size() as i64)))
    }

    /// Where the address is moved to, and by how much.
    fn moved(&self, i: &Instruction) -> Option<i64> {
        if i.op_count() < 2 || i.op0_kind() != OpKind::Register || i.op0_register().size() != 8 {
            return None;
        }
        match (i.mnemonic(), i.op1_kind()) {
            (Mnemonic::Mov, OpKind::Register) => self.offset(i.op1_register()),
            (Mnemonic::Lea, _) if i.memory_index() == Register::None => {
                self.offset(i.memory_base())?.checked_add(i.memory_displacement64() as i64)
            }
            _ => None,
        }
    }

    fn behind(&self, i: &Instruction, factory: &mut InstructionInfoFactory) -> Option<Way> {
        let to = (i.op_count() > 0 && i.op0_kind() == OpKind::Register).then(|| i.op0_register());
        let moved = self.moved(i);
        let most = to.filter(|to| to.size() >= 4).and_then(|to| self.limit(i, to));
        let mut way = self.clone();
        for used in factory.info(i).used_registers() {
            let register = used.register().full_register();
            match used.access() {
                OpAccess::None | OpAccess::Read | OpAccess::CondRead => {}
                // A part of the address, or perhaps the whole, is overwritten.
                OpAccess::CondWrite | OpAccess::ReadCondWrite if way.held.contains_key(&register) => return None,
                _ if used.register().size() < 4 && way.held.contains_key(&register) => return None,
                _ => {
                    way.held.remove(&register);
                    way.most.remove(&register);
                }
            }
        }
        let to = to.map(Register::full_register);
        way.held.extend(to.zip(moved));
        way.most.extend(to.zip(most).filter(|_| moved.is_none()));
        Some(way)
    }

    /// A number that a register does not exceed behind an instruction.
    fn limit(&self, i: &Instruction, to: Register) -> Option<u64> {
        let constant = match i.op1_kind() {
            OpKind::Immediate8to32 => Some(u64::from(i.immediate8to32() as u32)),
            OpKind::Immediate32 => Some(u64::from(i.immediate32())),
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => u64::try_from(i.immediate(1) as i64).ok(),
            _ => None,
        };
        match i.mnemonic() {
            Mnemonic::And => constant.into_iter().chain(self.bound(to)).min(),
            Mnemonic::Mov if i.op1_kind() == OpKind::Register && i.op1_register().size() == to.size() => {
                self.bound(i.op1_register()).filter(|most| *most <= u64::from(u32::MAX))
            }
            Mnemonic::Mov => constant,
            Mnemonic::Movzx => {
                let bytes = match i.op1_kind() {
                    OpKind::Register => i.op1_register().size(),
                    _ => i.memory_size().size(),
                };
                let whole = (1u64 << (8 * bytes.min(4))) - 1;
                let low = i.op1_kind() == OpKind::Register && !high(i.op1_register());
                Some(low.then(|| self.bound(i.op1_register())).flatten().map_or(whole, |most| most.min(whole)))
            }
            Mnemonic::Xor if i.op1_kind() == OpKind::Register && i.op1_register() == to => Some(0),
            Mnemonic::Shr if to.size() == 4 && i.op1_kind() == OpKind::Immediate8 => {
                Some(u64::from(u32::MAX) >> (i.immediate8() & 31))
            }
            Mnemonic::Shr if i.op1_kind() == OpKind::Immediate8 => Some(u64::MAX >> (i.immediate8() & 63)),
            _ => None,
        }
    }
}

fn high(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

#[cfg(test)]
mod tests {
    use super::reads;

    /// `lea rcx,[rip]`, then this, then `ret`.
    fn of(code: &[u8]) -> Option<(i64, i64)> {
        reads(&[&[0x48, 0x8d, 0x0d, 0, 0, 0, 0][..], code, &[0xc3]].concat(), 0)
    }

    #[test]
    fn an_index_with_a_mask_and_one_without() {
        // and edx,15; movzx eax,byte [rdx+rcx]
        let masked = [0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x0a];
        assert_eq!(of(&masked), Some((0, 16)));
        assert_eq!(of(&masked[3..]), None);
        // je past the mask
        assert_eq!(of(&[&[0x74, 3][..], &masked].concat()), None);
        // and edx,7; mov eax,[rcx+rdx*4+8]
        assert_eq!(of(&[0x83, 0xe2, 7, 0x8b, 0x44, 0x91, 8]), Some((8, 40)));
    }

    #[test]
    fn an_address_that_gets_elsewhere() {
        let masked = [0x83, 0xe2, 15, 0x0f, 0xb6, 4, 0x0a];
        // mov rax,rcx; mov [rsi],rcx; push rcx; call; inc rcx; jmp rax
        let ways: [&[u8]; 6] = [
            &[0x48, 0x89, 0xc8],
            &[0x48, 0x89, 0x0e],
            &[0x51],
            &[0xe8, 0, 0, 0, 0],
            &[0x48, 0xff, 0xc1],
            &[0xff, 0xe0],
        ];
        for elsewhere in ways {
            assert_eq!(of(&[&masked[..], elsewhere].concat()), None, "{elsewhere:x?}");
        }
        // mov ecx,2; call
        assert_eq!(of(&[&masked[..], &[0xb9, 2, 0, 0, 0, 0xe8, 0, 0, 0, 0]].concat()), Some((0, 16)));
    }
}
