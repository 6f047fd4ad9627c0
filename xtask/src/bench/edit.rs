//! A changed function without its source: one number that an instruction loads becomes another one.

use anyhow::{Context, Result};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectSection};

/// A copy of the ELF file `data` in which the first small number that code after the middle of `.text` puts into a
/// register differs by one bit. Nothing else changes, so one function differs.
pub(crate) fn one_number(data: &[u8]) -> Result<Vec<u8>> {
    let file = object::File::parse(data)?;
    let text = file.section_by_name(".text").context("no .text")?;
    let (start, _) = text.file_range().context(".text is not in the file")?;
    let bytes = text.data()?;
    let mut decoder = Decoder::with_ip(64, bytes, text.address(), DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        let at = decoder.position();
        decoder.decode_out(&mut instruction);
        let small = instruction.code() == Code::Mov_r32_imm32 && (2..0x400).contains(&instruction.immediate32());
        if small && at > bytes.len() / 2 {
            let field = at + decoder.get_constant_offsets(&instruction).immediate_offset();
            let mut edited = data.to_vec();
            edited[start as usize + field] ^= 1;
            return Ok(edited);
        }
    }
    anyhow::bail!("no instruction to change")
}
