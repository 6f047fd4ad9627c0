//! Sites at fields of which a relocation says that they hold an address.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::arch::{Code, Encoding, Site, Sites, Use};
use crate::input::Field;

/// Adds a site for each of `fields` (by offset in the range) to `code`, whose bytes these are and which lies at `address`.
pub(crate) fn add_known(code: &mut Code, address: u64, bytes: &[u8], fields: &[(u32, Field)]) {
    let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut fields = fields.iter().peekable();
    let mut sites: Vec<Site> = code.sites.iter().collect();
    while decoder.can_decode() && fields.peek().is_some() {
        let start = decoder.position() as u32;
        decoder.decode_out(&mut instruction);
        let end = decoder.position() as u32;
        while let Some((offset, field)) = fields.next_if(|f| f.0 < end) {
            let encoding = match (field.width, field.unsigned) {
                (8, _) => Encoding::Absolute64,
                (_, true) => Encoding::Absolute32,
                (_, false) => Encoding::Absolute32Signed,
            };
            let constants = decoder.get_constant_offsets(&instruction);
            let displacement =
                start + constants.displacement_offset() as u32 == *offset && constants.has_displacement();
            let plain = displacement && !instruction.has_index_or_base();
            let usage = match instruction.memory_size().size() {
                n @ 1.. if plain => Use::Access(n as u32),
                _ => Use::Address,
            };
            sites.push(Site {
                instruction: start,
                offset: *offset,
                end,
                width: field.width,
                encoding,
                usage,
                target: field.target,
            });
        }
    }
    sites.sort_by_key(|s| s.offset);
    code.sites = Sites::new(address, bytes.len(), &sites);
}

trait Operands {
    fn has_index_or_base(&self) -> bool;
}

impl Operands for Instruction {
    fn has_index_or_base(&self) -> bool {
        use iced_x86::Register::None;
        self.memory_base() != None || self.memory_index() != None
    }
}
