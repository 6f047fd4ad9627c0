//! Instructions, and the fields in them that lead somewhere.
//!
//! Encodings after the Intel SDM, volume 2. In code that can lie anywhere, every such field is relative to
//! the instruction pointer. In code with a fixed address an immediate or a displacement may be an address
//! too; which one is, the judge decides, not this module.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// What an instruction does with a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Use {
    /// Goes there.
    Branch,
    /// Reads or writes this many bytes there.
    Access(u64),
    /// Makes an address of it.
    Address,
}

/// A field of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// Offset in the instruction.
    pub(crate) at: usize,
    pub(crate) width: usize,
    /// Relative to the instruction pointer; else a number that may be an address.
    pub(crate) relative: bool,
    /// An address in any case: relative, or what an operand of memory has instead of a base register.
    pub(crate) certain: bool,
    pub(crate) usage: Use,
    /// Address that it encodes.
    pub(crate) target: u64,
}

/// The fields of one instruction: a displacement and an immediate at most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fields(Option<Field>, Option<Field>);

impl Fields {
    fn push(&mut self, field: Field) {
        *if self.0.is_none() { &mut self.0 } else { &mut self.1 } = Some(field);
    }

    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Field> {
        self.0.iter().chain(&self.1)
    }

    pub(crate) fn first(&self) -> Option<&Field> {
        self.0.as_ref()
    }

    /// One of them covers a byte of the instruction.
    pub(crate) fn cover(&self, at: usize) -> bool {
        self.iter().any(|f| (f.at..f.at + f.width).contains(&at))
    }
}

impl IntoIterator for Fields {
    type Item = Field;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Field>, std::option::IntoIter<Field>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().chain(self.1)
    }
}

/// A decoded instruction.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) instruction: Instruction,
    pub(crate) fields: Fields,
}

impl Step {
    pub(crate) fn len(&self) -> usize {
        self.instruction.len()
    }

    /// The fields of the instruction at `address` that begins `bytes`, if that is this one, whose own bytes begin `own`, but for
    /// where it leads. `None` also where that is not seen without decoding it.
    pub(crate) fn fields_elsewhere(&self, own: &[u8], bytes: &[u8], address: u64) -> Option<Fields> {
        let (own, bytes) = (own.get(..self.len())?, bytes.get(..self.len())?);
        let Some(field) = self.fields.first() else { return (own == bytes).then_some(self.fields) };
        if self.fields.iter().all(|f| !f.relative) && own == bytes {
            return Some(self.fields);
        }
        let narrow =
            self.instruction.memory_base() == Register::EIP || self.instruction.op0_kind() == OpKind::NearBranch16;
        let end = field.at + field.width;
        let same = own[..field.at] == bytes[..field.at] && own[end..] == bytes[end..];
        if !same || !field.relative || narrow || self.fields.1.is_some() {
            return None;
        }
        let distance = match field.width {
            1 => i64::from(bytes[field.at] as i8),
            4 => i64::from(i32::from_le_bytes(bytes[field.at..end].try_into().ok()?)),
            _ => return None,
        };
        let target = address.wrapping_add(self.len() as u64).wrapping_add_signed(distance);
        Some(Fields(Some(Field { target, ..*field }), None))
    }

    /// Control never reaches what follows.
    pub(crate) fn ends(&self) -> bool {
        use FlowControl::{IndirectBranch, Return, UnconditionalBranch};
        matches!(self.instruction.flow_control(), Return | UnconditionalBranch | IndirectBranch)
    }

    /// A jump through a register or a table.
    pub(crate) fn is_computed_jump(&self) -> bool {
        self.instruction.flow_control() == FlowControl::IndirectBranch && self.fields.iter().all(|f| !f.relative)
    }

    /// Reads or writes thread-local storage, the stack protector's word (`%fs:0x28`) put aside.
    pub(crate) fn is_thread_local(&self) -> bool {
        let i = &self.instruction;
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        let guard = i.memory_base() == Register::None
            && i.memory_index() == Register::None
            && i.memory_displacement64() == 0x28;
        memory && i.segment_prefix() == Register::FS && !guard
    }
}

/// Decodes the instruction at the start of `bytes`, which lies at `address`. `None` if it is none. Only
/// with `absolute` are numbers that are not relative taken for fields.
pub(crate) fn step(address: u64, bytes: &[u8], absolute: bool) -> Option<Step> {
    next(&mut Decoder::with_ip(64, bytes, address, DecoderOptions::NONE), absolute)
}

/// Where the immediate operand of the instruction that is `bytes` lies: offset and width.
pub(crate) fn immediate(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let offsets = decoder.get_constant_offsets(&instruction);
    let has = !is_near_branch(&instruction) && offsets.has_immediate();
    has.then(|| (offsets.immediate_offset(), offsets.immediate_size()))
}

fn next(decoder: &mut Decoder<'_>, absolute: bool) -> Option<Step> {
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut fields = Fields::default();
    if is_near_branch(&instruction) {
        let width = branch_width(&instruction);
        let at = instruction.len() - width;
        let target = instruction.near_branch_target();
        fields.push(Field { at, width, relative: true, certain: true, usage: Use::Branch, target });
        return Some(Step { instruction, fields });
    }
    let relative = instruction.is_ip_rel_memory_operand();
    if !relative && !absolute {
        return Some(Step { instruction, fields });
    }
    let offsets = decoder.get_constant_offsets(&instruction);
    let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    let thread_local = instruction.segment_prefix() == Register::FS;
    let (at, width) = (offsets.displacement_offset(), offsets.displacement_size());
    if memory && relative {
        let target = instruction.ip_rel_memory_address();
        fields.push(Field { at, width, relative: true, certain: true, usage: memory_use(&instruction), target });
    } else if memory && !thread_local && width >= 4 {
        let indexed = instruction.memory_base() != Register::None || instruction.memory_index() != Register::None;
        let usage = if indexed { Use::Address } else { memory_use(&instruction) };
        let target = instruction.memory_displacement64();
        // `lea 8(,%rax,4),%rax` may be a calculation.
        let (base, lea) = (instruction.memory_base(), instruction.mnemonic() == Mnemonic::Lea);
        let certain = !lea && (base == Register::None || base == instruction.memory_index());
        fields.push(Field { at, width, relative: false, certain, usage, target });
    }
    // Nobody does these with 32 bits of an address.
    use Mnemonic::{And, Cmp, Imul, Or, Test, Xor};
    let number = matches!(instruction.mnemonic(), And | Or | Xor | Test | Cmp | Imul);
    if absolute && offsets.has_immediate() {
        let target = (0..instruction.op_count()).find_map(|i| match instruction.op_kind(i) {
            OpKind::Immediate32 => (!number).then(|| u64::from(instruction.immediate32())),
            OpKind::Immediate32to64 => Some(instruction.immediate32to64() as u64),
            OpKind::Immediate64 => Some(instruction.immediate64()),
            _ => None,
        });
        let (at, width) = (offsets.immediate_offset(), offsets.immediate_size());
        if let Some(target) = target {
            fields.push(Field { at, width, relative: false, certain: false, usage: Use::Address, target });
        }
    }
    Some(Step { instruction, fields })
}

/// All instructions of `bytes`; ends early at bytes that are none.
pub(crate) fn steps(address: u64, bytes: &[u8], absolute: bool) -> impl Iterator<Item = (usize, Step)> {
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    std::iter::from_fn(move || {
        let here = decoder.position();
        let step = if decoder.can_decode() { next(&mut decoder, absolute) } else { None }?;
        Some((here, step))
    })
}

fn is_near_branch(instruction: &Instruction) -> bool {
    let near = [OpKind::NearBranch16, OpKind::NearBranch32, OpKind::NearBranch64];
    instruction.op_count() > 0 && near.contains(&instruction.op0_kind())
}

fn branch_width(instruction: &Instruction) -> usize {
    let short = instruction.is_jmp_short()
        || instruction.is_jcc_short()
        || instruction.is_loop()
        || instruction.is_loopcc()
        || instruction.is_jcx_short();
    if short { 1 } else { 4 }
}

fn memory_use(instruction: &Instruction) -> Use {
    match instruction.memory_size().size() {
        // LEA, and instructions such as FXSAVE that do not say how much they touch.
        _ if instruction.mnemonic() == Mnemonic::Lea => Use::Address,
        0 => Use::Address,
        n => Use::Access(n as u64),
    }
}

/// `(stub, slot)`: every place of a PLT section, at a multiple of 8, from which an optional `endbr64`, an optional
/// `mov $n,%r11d` (mold's number for lazy binding) and a jump through a slot run.
pub(crate) fn stubs(address: u64, data: &[u8]) -> Vec<(u64, u64)> {
    let stub = |at: usize| {
        let mut steps = steps(address + at as u64, &data[at..], false);
        let mut first = steps.next()?.1;
        if first.instruction.mnemonic() == Mnemonic::Endbr64 {
            first = steps.next()?.1;
        }
        let number = first.instruction.code() == iced_x86::Code::Mov_r32_imm32;
        if number && first.instruction.op0_register() == Register::R11D {
            first = steps.next()?.1;
        }
        let jumps = first.instruction.mnemonic() == Mnemonic::Jmp;
        let slot = first.fields.first().filter(|f| jumps && f.relative && f.usage != Use::Branch)?;
        Some((address + at as u64, slot.target))
    };
    (0..data.len()).step_by(8).filter_map(stub).collect()
}

/// Length of the no-operations and traps at the start of `bytes`.
pub(crate) fn padding(bytes: &[u8]) -> usize {
    let is_padding = |s: &Step| matches!(s.instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
    steps(0, bytes, false).take_while(|(_, s)| is_padding(s)).last().map_or(0, |(at, s)| at + s.len())
}
