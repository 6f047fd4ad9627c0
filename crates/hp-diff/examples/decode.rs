//! The yardstick of `cargo xtask bench`: decodes `.text` of each file once, and does nothing with what it reads.

use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectSection};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args_os().skip(1) {
        let data = std::fs::read(path)?;
        let file = object::File::parse(&data[..])?;
        let text = file.section_by_name(".text").ok_or("no .text")?;
        let mut decoder = Decoder::with_ip(64, text.data()?, text.address(), DecoderOptions::NONE);
        let (mut instruction, mut count) = (Instruction::default(), 0u64);
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            count += u64::from(!instruction.is_invalid());
        }
        println!("{count} instructions");
    }
    Ok(())
}
