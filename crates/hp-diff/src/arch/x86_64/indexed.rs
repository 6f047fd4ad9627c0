//! Is an address the start of something, or what an index is added to?
//!
//! `a[i - 100]` becomes `lea a-400(%rip),r; mov (r,i,4)`: the number leads to whatever lies before `a`. A pointer that is
//! stored, compared or handed on as it is never leads outside of its object or its end (C11, 6.5.6), so only an address
//! that is calculated with is in question. From where the address is made, the code is followed in the order in which it lies, as long as a
//! register holds the address or a copy of it.

use super::registers::KEPT;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// How many instructions the register is followed.
const WINDOW: usize = 96;

/// True if code calculates with the address that the instruction at `offset` of `bytes` makes, in its field at `place`.
pub(crate) fn is_indexed(bytes: &[u8], offset: u32, place: u32) -> bool {
    // What `movq $a,(r)` stores is the address itself, whatever is added to where it is stored.
    !is_stored(bytes, offset, place) && is_calculated_with(bytes, offset, 0)
}

/// True if the field is the number that an instruction writes to memory.
fn is_stored(bytes: &[u8], offset: u32, place: u32) -> bool {
    let Some(rest) = bytes.get(offset as usize..) else { return false };
    let first = Decoder::new(64, rest, DecoderOptions::NONE).decode();
    first.mnemonic() == Mnemonic::Mov
        && first.op0_kind() == OpKind::Memory
        && field(bytes, offset, place) == Field::Immediate
}

/// How many bytes an instruction reads or writes there, if the field at `place` says where, in an operand of memory.
pub(crate) fn width(bytes: &[u8], offset: u32, place: u32) -> Option<u64> {
    let rest = bytes.get(offset as usize..)?;
    let instruction = Decoder::new(64, rest, DecoderOptions::NONE).decode();
    let accesses = !matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
    let size = instruction.memory_size().size() as u64;
    (accesses && size > 0 && field(bytes, offset, place) != Field::Immediate).then_some(size)
}

/// True if all that code adds to the address that the instruction at `offset` of `bytes` makes is a number which leads to
/// another place in an object of this size.
pub(crate) fn stays_inside(bytes: &[u8], offset: u32, size: u64) -> bool {
    !is_calculated_with(bytes, offset, size)
}

/// `inside`: what adds a number below that does not count.
fn is_calculated_with(bytes: &[u8], offset: u32, inside: u64) -> bool {
    let Some(rest) = bytes.get(offset as usize..) else { return false };
    let mut decoder = Decoder::new(64, rest, DecoderOptions::NONE);
    let first = decoder.decode();
    let has_memory = (0..first.op_count()).any(|i| first.op_kind(i) == OpKind::Memory);
    if has_memory && !first.is_ip_rel_memory_operand() {
        return first.memory_base() != Register::None || first.memory_index() != Register::None;
    }
    let makes = matches!(first.mnemonic(), Mnemonic::Lea | Mnemonic::Mov) && first.op0_kind() == OpKind::Register;
    if !makes {
        return matches!(first.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::Imul);
    }
    let mut holders = vec![first.op0_register().full_register()];
    for _ in 0..WINDOW {
        if !decoder.can_decode() || holders.is_empty() {
            return false;
        }
        let instruction = decoder.decode();
        if calculates(&instruction, &holders) {
            if added(&instruction).is_none_or(|n| n >= inside) {
                return true;
            }
            // From here on it is another address.
            holders.retain(|r| *r != instruction.op0_register().full_register());
        }
        follow(&instruction, &mut holders);
    }
    false
}

/// The number that an instruction adds to a register.
fn added(instruction: &Instruction) -> Option<u64> {
    let is_number = matches!(instruction.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64);
    let adds = instruction.mnemonic() == Mnemonic::Add && instruction.op0_kind() == OpKind::Register && is_number;
    adds.then(|| instruction.immediate(1))
}

/// True if an instruction adds something to an address that one of these registers holds.
pub(super) fn calculates(instruction: &Instruction, holders: &[Register]) -> bool {
    if instruction.mnemonic() == Mnemonic::Nop {
        return false;
    }
    let holds = |r: Register| r != Register::None && holders.contains(&r.full_register());
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    if memory && (holds(index) || holds(base) && index != Register::None) {
        return true;
    }
    let operand = |i: u32| instruction.op_count() > i && instruction.op_kind(i) == OpKind::Register;
    let arithmetic = matches!(instruction.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::Inc | Mnemonic::Dec);
    arithmetic && (operand(0) && holds(instruction.op0_register()) || operand(1) && holds(instruction.op1_register()))
}

fn follow(instruction: &Instruction, holders: &mut Vec<Register>) {
    if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
        holders.retain(|r| KEPT.contains(r));
        return;
    }
    let writes = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
    if !writes {
        return;
    }
    let to = instruction.op0_register().full_register();
    // A conditional move may leave the address where it is.
    let conditional = instruction.condition_code() != iced_x86::ConditionCode::None;
    let copies = instruction.mnemonic() == Mnemonic::Mov || conditional;
    let copied = match instruction.mnemonic() {
        _ if copies && instruction.op1_kind() == OpKind::Register => instruction.op1_register(),
        Mnemonic::Lea if instruction.code() == Code::Lea_r64_m => instruction.memory_base(),
        _ => Register::None,
    };
    let holds = copied != Register::None && holders.contains(&copied.full_register());
    holders.retain(|r| *r != to || conditional);
    if holds {
        holders.push(to);
    }
}

/// Constants that a register is set to, or that is added to one or compared with it: what an index may begin at.
pub(crate) fn numbers(bytes: &[u8]) -> impl Iterator<Item = i64> {
    let wanted = |m| matches!(m, Mnemonic::Mov | Mnemonic::Add | Mnemonic::Sub | Mnemonic::Cmp | Mnemonic::Push);
    let number = move |i: &Instruction| {
        let operand = (0..i.op_count()).find(|n| {
            matches!(i.op_kind(*n), OpKind::Immediate32 | OpKind::Immediate64)
                || matches!(i.op_kind(*n), OpKind::Immediate8to32 | OpKind::Immediate8to64 | OpKind::Immediate32to64)
        })?;
        // 32 bits are extended as the sign that they may mean.
        let value = i.immediate(operand);
        let value = if i.op_kind(operand) == OpKind::Immediate32 { i64::from(value as i32) } else { value as i64 };
        (wanted(i.mnemonic()) && value != 0 && value.unsigned_abs() < 1 << 32).then_some(value)
    };
    let decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    decoder.into_iter().filter_map(move |i| number(&i)).collect::<Vec<_>>().into_iter()
}

/// What a field that holds an address of the image is in its instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// The displacement of an operand without a base register: certainly an address.
    Displacement,
    /// The displacement beside a base register, or in a calculation: an address, an offset in something very large, or a number.
    Offset,
    /// An immediate number: an address, or any number.
    Immediate,
}

/// What the field at `field` is in the instruction at `offset` of `bytes`.
pub(crate) fn field(bytes: &[u8], offset: u32, field: u32) -> Field {
    let Some(rest) = bytes.get(offset as usize..) else { return Field::Immediate };
    let mut decoder = Decoder::new(64, rest, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let places = decoder.get_constant_offsets(&instruction);
    if !places.has_displacement() || places.displacement_offset() as u32 != field - offset {
        return Field::Immediate;
    }
    // A register that is also the index is no address either: `(%rax,%rax,2)` is three times a number.
    // And `lea 8(,%rax,4),%rax` may be a calculation.
    let (base, lea) = (instruction.memory_base(), instruction.mnemonic() == Mnemonic::Lea);
    let alone = base == Register::None || base == instruction.memory_index();
    if alone && !lea { Field::Displacement } else { Field::Offset }
}

#[cfg(test)]
mod tests {
    use super::{Field, field, is_indexed, stays_inside, width};

    #[test]
    fn addresses_that_code_calculates_with() {
        // lea 0(%rip),%rax; mov (%rax,%rdi,4),%eax
        assert!(is_indexed(&[0x48, 0x8d, 5, 0, 0, 0, 0, 0x8b, 4, 0xb8], 0, 3));
        // lea 0(%rip),%rax; mov 4(%rax),%eax; ret
        assert!(!is_indexed(&[0x48, 0x8d, 5, 0, 0, 0, 0, 0x8b, 0x40, 4, 0xc3], 0, 3));
        // lea 0(%rip),%rax; mov %rax,%rdx; add %rcx,%rdx
        assert!(is_indexed(&[0x48, 0x8d, 5, 0, 0, 0, 0, 0x48, 0x89, 0xc2, 0x48, 1, 0xca], 0, 3));
        // lea 0(%rip),%rax; xor %eax,%eax; add %rcx,%rax
        assert!(!is_indexed(&[0x48, 0x8d, 5, 0, 0, 0, 0, 0x31, 0xc0, 0x48, 1, 0xc8], 0, 3));
        // lea 0(%rip),%rax; call *(%rax); add %fs:0,%rax: a descriptor of a thread-local variable
        let descriptor = [0x48, 0x8d, 5, 0, 0, 0, 0, 0xff, 0x10, 0x64, 0x48, 3, 4, 0x25, 0, 0, 0, 0];
        assert!(!is_indexed(&descriptor, 0, 3));
        // mov 0x404000(,%rdi,4),%eax and mov 0x404000,%eax
        assert!(is_indexed(&[0x8b, 4, 0xbd, 0, 0x40, 0x40, 0], 0, 3));
        assert!(!is_indexed(&[0x8b, 4, 0x25, 0, 0x40, 0x40, 0], 0, 3));
        // movq $0x404010,(%rax): the number, and movl $1,0x404000(%rax): the place
        assert!(!is_indexed(&[0x48, 0xc7, 0, 0x10, 0x40, 0x40, 0], 0, 3));
        assert!(is_indexed(&[0xc7, 0x80, 0, 0x40, 0x40, 0, 1, 0, 0, 0], 0, 2));
    }

    #[test]
    fn an_address_point_is_inside_of_its_table() {
        // lea 0(%rip),%rax; add $0x10,%rax; mov %rax,(%rdi); ret
        let made = [0x48, 0x8d, 5, 0, 0, 0, 0, 0x48, 0x83, 0xc0, 0x10, 0x48, 0x89, 7, 0xc3];
        assert!(is_indexed(&made, 0, 3) && stays_inside(&made, 0, 0x18) && !stays_inside(&made, 0, 0x10));
        // lea 0(%rip),%rax; mov (%rax,%rdi,8),%rax
        assert!(!stays_inside(&[0x48, 0x8d, 5, 0, 0, 0, 0, 0x48, 0x8b, 4, 0xf8], 0, 0x18));
    }

    #[test]
    fn what_an_instruction_reaches() {
        // mov 0x404000(,%rdi,8),%rax; movb $1,0x404000(%rdi): the place and the number; lea 0x404000(%rdi),%rax
        assert_eq!(width(&[0x48, 0x8b, 4, 0xfd, 0, 0x40, 0x40, 0], 0, 4), Some(8));
        let store = [0xc6, 0x87, 0, 0x40, 0x40, 0, 1];
        assert_eq!((width(&store, 0, 2), width(&store, 0, 6)), (Some(1), None));
        assert_eq!(width(&[0x48, 0x8d, 0x87, 0, 0x40, 0x40, 0], 0, 3), None);
    }

    #[test]
    fn fields_of_an_instruction() {
        // movl $0x404010,0x404000(,%rdi,4); mov 0x404000(%rdi),%eax
        let store = [0xc7, 4, 0xbd, 0, 0x40, 0x40, 0, 0x10, 0x40, 0x40, 0];
        assert_eq!((field(&store, 0, 3), field(&store, 0, 7)), (Field::Displacement, Field::Immediate));
        // mov 0x2006a7(%rax,%rax,2),%al; mov 0x2006a7(%rax,%rcx,2),%al
        assert_eq!(field(&[0x8a, 0x84, 0x40, 0xa7, 6, 0x20, 0], 0, 3), Field::Displacement);
        assert_eq!(field(&[0x8a, 0x84, 0x48, 0xa7, 6, 0x20, 0], 0, 3), Field::Offset);
        assert_eq!(field(&[0x8b, 0x87, 0, 0x40, 0x40, 0], 0, 2), Field::Offset);
        // lea 0x404000(,%rdi,4),%rax
        assert_eq!(field(&[0x48, 0x8d, 4, 0xbd, 0, 0x40, 0x40, 0], 0, 4), Field::Offset);
    }
}
