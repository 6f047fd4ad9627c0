//! From bytes to [`Site`]s.
//!
//! In position-independent code every field that depends on where things lie is
//! RIP-relative, so the list is exact. In position-dependent code an immediate or a
//! displacement may also be an address: such a field becomes a site if its value lies
//! in the image (`image` is that address range), and later stages must prove it.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::derived::{counts_back, steps_back};
use super::jump_table::Window;
use super::registers::has_memory;
use super::switches::may_take;
use super::ways::is_computed_jump;
use crate::arch::alike::first_differing;
use crate::arch::sites::{Beside, Relation};
use crate::arch::{Branch, Code, Encoding, Site, Sites, Use};

/// The stack protector's word, `%fs:0x28` (glibc's `tcbhead_t.stack_guard`).
const STACK_GUARD: u64 = 0x28;

/// What decoding needs room for, to be used again and again.
#[derive(Default)]
pub(crate) struct DecodeRoom {
    sites: Vec<Site>,
    window: Window,
}

/// Decodes one range of code.
pub(crate) fn decode(
    address: u64,
    bytes: &[u8],
    absolute: Option<&std::ops::Range<u64>>,
    room: &mut DecodeRoom,
) -> Code {
    let mut code = Code::default();
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let DecodeRoom { sites, window } = room;
    sites.clear();
    window.clear(bytes.len());
    while decoder.can_decode() {
        let start = decoder.position() as u32;
        let instruction = window.next(start);
        decoder.decode_out(instruction);
        // Behind the first byte that is no instruction nothing counts; but a table may be said to lead there.
        let valid = code.invalid.is_none() && !instruction.is_invalid();
        if valid {
            note(&mut code, sites, &decoder, instruction, start, absolute);
        } else {
            code.invalid.get_or_insert(start);
        }
        let adds = valid && (instruction.mnemonic() == Mnemonic::Add || adds_to_reach(instruction));
        code.may_return |= matches!(instruction.flow_control(), FlowControl::Return | FlowControl::IndirectBranch);
        if instruction.flow_control() == FlowControl::IndirectBranch {
            code.computed_jumps |= valid && is_computed_jump(instruction);
            window.note_jump();
        }
        if adds {
            window.note_addition();
        }
    }
    code.may_return |= code.invalid.is_some() || may_go_on(window.last());
    code.distances = window.reads_distances();
    if code.computed_jumps || code.distances {
        code.jumps = Some(Box::new(window.jumps()));
    }
    code.sites = Sites::new(address, bytes.len(), sites);
    code
}

/// True if what lies behind an instruction may run next, unless it is a direct call.
fn may_go_on(instruction: &Instruction) -> bool {
    let ends = matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::Call | FlowControl::Exception
    );
    !ends && instruction.mnemonic() != Mnemonic::Hlt
}

/// True if a memory operand is the sum of two registers.
fn adds_to_reach(instruction: &Instruction) -> bool {
    let none = Register::None;
    has_memory(instruction)
        && (instruction.memory_base() != none && instruction.memory_index() != none)
        && instruction.memory_index_scale() == 1
}

/// Notes what one instruction does.
fn note(
    code: &mut Code,
    sites: &mut Vec<Site>,
    decoder: &Decoder<'_>,
    instruction: &Instruction,
    start: u32,
    absolute: Option<&std::ops::Range<u64>>,
) {
    let end = decoder.position() as u32;
    code.takes_stack |= may_take(instruction);
    if is_near_branch(instruction) {
        let width = if has_short_field(instruction) { 1 } else { 4 };
        sites.push(Site {
            instruction: start,
            offset: end - u32::from(width),
            end,
            width,
            encoding: Encoding::PcRelative,
            usage: Use::Branch,
            target: instruction.near_branch_target(),
        });
        return;
    }
    if instruction.segment_prefix() == Register::FS && has_memory(instruction) {
        let plain = instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None
            && instruction.memory_displacement64() == STACK_GUARD;
        code.thread_local |= !plain;
        // What is stored there may be an address all the same.
        if let Some(image) = absolute {
            absolute_sites(decoder, instruction, start, end, false, image, sites);
        }
        return;
    }
    code.steps_back = code.steps_back.max(steps_back(instruction) as u16);
    code.counts_back = code.counts_back.max(counts_back(instruction));
    if instruction.is_ip_rel_memory_operand() {
        let offsets = decoder.get_constant_offsets(instruction);
        sites.push(Site {
            instruction: start,
            offset: start + offsets.displacement_offset() as u32,
            end,
            width: offsets.displacement_size() as u8,
            encoding: Encoding::PcRelative,
            usage: memory_use(instruction),
            target: instruction.ip_rel_memory_address(),
        });
    }
    if let Some(image) = absolute {
        absolute_sites(decoder, instruction, start, end, has_memory(instruction), image, sites);
    }
}

/// Offset and length of each instruction, up to the first byte that is none.
pub(crate) fn instructions(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    std::iter::from_fn(move || {
        let at = decoder.position();
        decoder.decode_out(&mut instruction);
        (!instruction.is_invalid()).then(|| (at, instruction.len()))
    })
}

/// Offset of the first byte in which two ranges differ, given their sites and a judge
/// for pairs of them; `None` where everything is equal. With `steps`, branches within the ranges that go
/// equally far are not asked about.
pub(crate) fn first_difference(
    old: (&[u8], &Code),
    new: (&[u8], &Code),
    steps: bool,
    mut same: impl FnMut(&Site, &Site) -> bool,
) -> Option<u32> {
    if let Some(mut sites) = old.1.sites.shared(&new.1.sites, steps) {
        return sites.find(|(x, y)| !same(x, y)).map(|(x, _)| x.instruction);
    }
    let (a, b) = (old.0, new.0);
    let mut at = 0;
    // The first byte from `at` on that differs; beyond a field that is looked for anew.
    let mut differs = first_differing(a, b, at);
    for Beside { field, width, relation } in old.1.sites.beside(&new.1.sites, steps) {
        if differs < at {
            differs = first_differing(a, b, at);
        }
        if matches!(relation, Relation::OtherShape) || differs < field {
            return Some(differs as u32);
        }
        match relation {
            Relation::Sites(x, y) if !same(&x, &y) => return Some(x.instruction),
            _ => at = field + width,
        }
    }
    if differs < at {
        differs = first_differing(a, b, at);
    }
    let equal = old.1.sites.len() == new.1.sites.len() && a.len() == b.len() && differs >= a.len();
    (!equal).then_some(differs as u32)
}

fn is_near_branch(instruction: &Instruction) -> bool {
    matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

/// Short branches end in one displacement byte; recognised by opcode, since an
/// instruction with prefixes may be as long as a near one.
fn has_short_field(instruction: &Instruction) -> bool {
    instruction.is_jmp_short()
        || instruction.is_jcc_short()
        || instruction.is_loop()
        || instruction.is_loopcc()
        || instruction.is_jcx_short()
}

fn memory_use(instruction: &Instruction) -> Use {
    match instruction.mnemonic() {
        iced_x86::Mnemonic::Lea => Use::Address,
        _ => match instruction.memory_size().size() {
            // FXSAVE and the like have no fixed size.
            0 => Use::Address,
            n => Use::Access(n as u32),
        },
    }
}

/// How far outside of the image an address may lie that an index leads into it from, in bytes.
const FAR: u64 = 0x4000;

fn absolute_sites(
    decoder: &Decoder<'_>,
    instruction: &Instruction,
    start: u32,
    end: u32,
    has_memory: bool,
    image: &std::ops::Range<u64>,
    sites: &mut Vec<Site>,
) {
    let offsets = decoder.get_constant_offsets(instruction);
    let around = image.start.saturating_sub(FAR)..image.end.saturating_add(FAR);
    let mut push = |offset: usize, width: usize, encoding, usage, target: u64, image: &std::ops::Range<u64>| {
        if image.contains(&target) {
            let offset = start + offset as u32;
            sites.push(Site { instruction: start, offset, end, width: width as u8, encoding, usage, target });
        }
    };
    if has_memory && !instruction.is_ip_rel_memory_operand() && offsets.displacement_size() >= 4 {
        let indexed = instruction.memory_base() != Register::None || instruction.memory_index() != Register::None;
        let usage = if indexed { Use::Address } else { memory_use(instruction) };
        let encoding = if offsets.displacement_size() == 8 { Encoding::Absolute64 } else { Encoding::Absolute32Signed };
        let target = instruction.memory_displacement64();
        // With nothing but an index it is an address, from which that may lead into the image.
        let base = instruction.memory_base();
        let alone = indexed && base == Register::None && instruction.mnemonic() != Mnemonic::Lea;
        let image = if alone { &around } else { image };
        push(offsets.displacement_offset(), offsets.displacement_size(), encoding, usage, target, image);
    }
    for operand in 0..instruction.op_count() {
        let (encoding, target) = match instruction.op_kind(operand) {
            OpKind::Immediate32 if takes_number(instruction) => continue,
            OpKind::Immediate32 => (Encoding::Absolute32, u64::from(instruction.immediate32())),
            OpKind::Immediate32to64 => (Encoding::Absolute32Signed, instruction.immediate32to64() as u64),
            OpKind::Immediate64 => (Encoding::Absolute64, instruction.immediate64()),
            _ => continue,
        };
        push(offsets.immediate_offset(), offsets.immediate_size(), encoding, Use::Address, target, image);
    }
}

/// True for what nobody does with the lower half of an address: it asks for flags such as `O_TMPFILE`, or the like.
fn takes_number(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic::{And, Cmp, Imul, Or, Test, Xor};
    matches!(instruction.mnemonic(), And | Or | Xor | Test | Cmp | Imul)
}

/// How the instruction of `site` in the range `bytes` transfers control.
pub(crate) fn branch(bytes: &[u8], site: &Site) -> Branch {
    if site.usage != Use::Branch {
        return Branch::None;
    }
    if is_plain_call(bytes, site) {
        return Branch::Call;
    }
    let mut decoder = Decoder::new(64, &bytes[site.instruction as usize..], DecoderOptions::NONE);
    match decoder.decode().flow_control() {
        FlowControl::Call | FlowControl::IndirectCall => Branch::Call,
        FlowControl::ConditionalBranch => Branch::Conditional,
        _ => Branch::Jump,
    }
}

/// True if the instruction of `site` is a call of an address.
pub(crate) fn is_plain_call(bytes: &[u8], site: &Site) -> bool {
    // The last byte before the field is the opcode's.
    let opcode = (site.offset as usize).checked_sub(1).and_then(|at| bytes.get(at));
    site.usage == Use::Branch && site.width == 4 && opcode == Some(&0xe8)
}

/// Length of the run of no-operations and traps at the start of `bytes`.
pub(crate) fn padding(bytes: &[u8]) -> usize {
    let start = usual_padding(bytes);
    let mut decoder = Decoder::new(64, &bytes[start..], DecoderOptions::NONE);
    let mut end = start;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if !matches!(instruction.mnemonic(), iced_x86::Mnemonic::Nop | iced_x86::Mnemonic::Int3) {
            break;
        }
        end = start + decoder.position();
    }
    end
}

/// The part of it that is made of what compilers and assemblers write: the no-operations that the Intel SDM recommends (volume 2, "NOP"),
/// with prefixes in front of them, and `INT3`.
fn usual_padding(bytes: &[u8]) -> usize {
    let mut end = 0;
    loop {
        let rest = &bytes[end..];
        let prefixes = rest.iter().take_while(|b| **b == 0x66).count();
        let segment = usize::from(rest.get(prefixes) == Some(&0x2e));
        let length = match &rest[prefixes + segment..] {
            [0x90 | 0xcc, ..] if prefixes + segment == 0 => 1,
            [0x90, ..] if segment == 0 => 1,
            [0x0f, 0x1f, 0x00, ..] => 3,
            [0x0f, 0x1f, 0x40, _, ..] => 4,
            [0x0f, 0x1f, 0x44, _, _, ..] => 5,
            [0x0f, 0x1f, 0x80, _, _, _, _, ..] => 7,
            [0x0f, 0x1f, 0x84, _, _, _, _, _, ..] => 8,
            _ => return end,
        };
        // No instruction has more than 15 bytes.
        if prefixes + segment + length > 15 {
            return end;
        }
        end += prefixes + segment + length;
    }
}

/// Length of code of unknown size without the padding at its end.
pub(crate) fn unpadded(bytes: &[u8]) -> usize {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let mut end = 0;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return bytes.len();
        }
        if !matches!(instruction.mnemonic(), iced_x86::Mnemonic::Nop | iced_x86::Mnemonic::Int3) {
            end = decoder.position();
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_padding_is_padding() {
        let forms: [&[u8]; 7] = [
            &[0x90],
            &[0xcc],
            &[0x0f, 0x1f, 0x00],
            &[0x0f, 0x1f, 0x40, 0x80],
            &[0x0f, 0x1f, 0x44, 0x25, 0xff],
            &[0x0f, 0x1f, 0x80, 1, 2, 3, 0xff],
            &[0x0f, 0x1f, 0x84, 0xff, 4, 3, 2, 1],
        ];
        let mut usual = 0;
        for form in forms {
            for prefixes in 0..16 {
                for segment in [&[][..], &[0x2e], &[0x3e]] {
                    for end in 0..=form.len() {
                        let code = [&vec![0x66; prefixes], segment, &form[..end]].concat();
                        let mut decoder = Decoder::new(64, &code, DecoderOptions::NONE);
                        let all: Vec<Instruction> = decoder.iter().collect();
                        let is_padding = |i: &&Instruction| matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
                        let expected: usize = all.iter().take_while(is_padding).map(Instruction::len).sum();
                        assert_eq!(padding(&code), expected, "{code:02x?}");
                        assert!(usual_padding(&code) <= expected, "{code:02x?}");
                        usual += usual_padding(&code);
                    }
                }
            }
        }
        assert!(usual > 1000, "{usual}");
    }

    #[test]
    fn what_takes_bits_or_compares_half_a_word_makes_no_address() {
        // and eax,imm32; test edi,imm32; cmp eax,imm32; cmp rax,imm32
        let sites = |code: &[u8]| {
            decode(0x1000, code, Some(&(0x40_0000..0x40_1000)), &mut DecodeRoom::default()).sites.iter().count()
        };
        assert_eq!(sites(&[0x25, 0, 0, 0x40, 0]), 0);
        assert_eq!(sites(&[0xf7, 0xc7, 0, 0, 0x40, 0]), 0);
        assert_eq!(sites(&[0x3d, 0, 0, 0x40, 0]), 0);
        assert_eq!(sites(&[0x48, 0x3d, 0, 0, 0x40, 0]), 1);
    }
}
