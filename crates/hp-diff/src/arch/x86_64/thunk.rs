//! Thunks: what runs between arming and flip.
//!
//! ```text
//! thunk: cmpb $0, state(%rip)     7 bytes
//!        jne  new                 6 bytes
//!        <displaced instructions> the ones under the 5-byte jump, relocated
//!        jmp  old + displaced     5 bytes, unless the last one never falls through
//! ```
//!
//! `cmpb` writes the status flags, so they must be dead at entry: the psABI passes
//! nothing in them, and [`flags_are_dead`] checks it for hand-written code too.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

use crate::arch::{NoThunk, Thunk, ThunkInput, ThunkTarget};

/// Size of `jmp rel32`, the detour.
const JUMP: usize = 5;
const PAGE: u64 = 4096;

/// Makes the thunk of a function, or says why its entry cannot be redirected.
pub(crate) fn thunk(input: &ThunkInput<'_>) -> Result<Thunk, NoThunk> {
    let site = if input.body.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) { 4 } else { 0 };
    if input.body.len() + input.padding.len() < site + JUMP {
        return Err(NoThunk::TooShort(format!(
            "the function has {} bytes and {} of padding follow; the jump needs {}",
            input.body.len(),
            input.padding.len(),
            site + JUMP
        )));
    }
    let address = input.address + site as u64;
    if address / PAGE != (address + JUMP as u64 - 1) / PAGE {
        return Err(NoThunk::CrossesPage);
    }
    let displaced = displaced(input, site)?;
    flags_are_dead(input, site)?;

    let mut thunk = Thunk {
        // cmpb $0, state(%rip): the displacement is followed by the immediate byte.
        code: vec![0x80, 0x3d, 0, 0, 0, 0, 0x00, 0x0f, 0x85, 0, 0, 0, 0],
        fixups: vec![(2, -5, ThunkTarget::State), (9, -4, ThunkTarget::NewFunction)],
        site_offset: site as u8,
        displaced: 0,
        boundaries: Vec::new(),
        has_call: false,
    };
    let mut at = site;
    let mut falls_through = true;
    for instruction in &displaced {
        thunk.boundaries.push((at as u32, thunk.code.len() as u32));
        let bytes = &input.body[at..at + instruction.len()];
        emit(&mut thunk, instruction, bytes, address..address + JUMP as u64)?;
        falls_through = !matches!(
            instruction.flow_control(),
            FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch
        );
        at += instruction.len();
    }
    thunk.boundaries.push((at as u32, thunk.code.len() as u32));
    thunk.displaced = (at - site) as u8;
    if falls_through {
        thunk.code.extend([0xe9, 0, 0, 0, 0]);
        let field = thunk.code.len() as u64 - 4;
        thunk.fixups.push((field, -4, ThunkTarget::Base(input.address + at as u64)));
    }
    Ok(thunk)
}

/// The whole instructions under the jump.
fn displaced(input: &ThunkInput<'_>, site: usize) -> Result<Vec<Instruction>, NoThunk> {
    let mut decoder = Decoder::with_ip(64, &input.body[site..], input.address + site as u64, DecoderOptions::NONE);
    let mut instructions = Vec::new();
    while decoder.position() < JUMP && decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(NoThunk::CannotDisplace("bytes at the entry are no instruction".into()));
        }
        instructions.push(instruction);
    }
    if decoder.position() < JUMP {
        let last = instructions.last().map(Instruction::flow_control);
        if !matches!(last, Some(FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch)) {
            return Err(NoThunk::TooShort("a short function that does not end in a return or a jump".into()));
        }
    }
    Ok(instructions)
}

fn emit(
    thunk: &mut Thunk,
    instruction: &Instruction,
    bytes: &[u8],
    overwritten: std::ops::Range<u64>,
) -> Result<(), NoThunk> {
    let is_branch = matches!(instruction.op0_kind(), OpKind::NearBranch64) && instruction.op_count() > 0;
    if is_branch {
        let target = instruction.near_branch_target();
        if overwritten.contains(&target) && target != overwritten.start {
            return Err(NoThunk::CannotDisplace(format!("{} branches into the redirected bytes", text(instruction))));
        }
        match instruction.flow_control() {
            FlowControl::Call => {
                thunk.code.push(0xe8);
                thunk.has_call = true;
            }
            FlowControl::UnconditionalBranch => thunk.code.push(0xe9),
            FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() => {
                thunk.code.extend([0x0f, 0x80 | condition(instruction, bytes)]);
            }
            _ => return Err(NoThunk::CannotDisplace(format!("{} has no long form", text(instruction)))),
        }
        thunk.code.extend([0; 4]);
        thunk.fixups.push((thunk.code.len() as u64 - 4, -4, ThunkTarget::Base(target)));
        return Ok(());
    }
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::Return | FlowControl::IndirectBranch => {}
        FlowControl::IndirectCall => thunk.has_call = true,
        _ => return Err(NoThunk::CannotDisplace(format!("{} cannot be moved", text(instruction)))),
    }
    let start = thunk.code.len() as u64;
    thunk.code.extend_from_slice(bytes);
    if instruction.is_ip_rel_memory_operand() {
        let mut decoder = Decoder::with_ip(64, bytes, instruction.ip(), DecoderOptions::NONE);
        let offsets = {
            let i = decoder.decode();
            decoder.get_constant_offsets(&i)
        };
        let field = offsets.displacement_offset() as u64;
        let at = (start + field) as usize;
        thunk.code[at..at + 4].fill(0);
        let addend = -(bytes.len() as i64 - field as i64);
        thunk.fixups.push((start + field, addend, ThunkTarget::Base(instruction.ip_rel_memory_address())));
    }
    Ok(())
}

/// The condition's four bits, the same in the short (`7x`) and the near (`0f 8x`) form.
fn condition(instruction: &Instruction, bytes: &[u8]) -> u8 {
    let displacement = if instruction.is_jcc_short() { 1 } else { 4 };
    bytes[bytes.len() - displacement - 1] & 0x0f
}

/// Follows the code from the site until every status flag has been written or control
/// leaves the straight line.
fn flags_are_dead(input: &ThunkInput<'_>, site: usize) -> Result<(), NoThunk> {
    const STATUS: u32 = iced_x86::RflagsBits::OF
        | iced_x86::RflagsBits::SF
        | iced_x86::RflagsBits::ZF
        | iced_x86::RflagsBits::AF
        | iced_x86::RflagsBits::CF
        | iced_x86::RflagsBits::PF;
    let mut dead = 0;
    let decoder = Decoder::with_ip(64, &input.body[site..], input.address + site as u64, DecoderOptions::NONE);
    for instruction in decoder {
        if instruction.is_invalid() {
            break;
        }
        // A system call only leaves a copy of them in R11, which no caller can have an interest in.
        let copies = matches!(instruction.mnemonic(), Mnemonic::Syscall);
        let reads = instruction.rflags_read() & STATUS & !dead != 0 || instruction.mnemonic() == Mnemonic::Pushfq;
        if reads && !copies {
            return Err(NoThunk::FlagsLive(text(&instruction)));
        }
        dead |= instruction.rflags_modified();
        if dead & STATUS == STATUS || instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    Ok(())
}

fn text(instruction: &Instruction) -> String {
    format!("instruction `{instruction}`")
}
