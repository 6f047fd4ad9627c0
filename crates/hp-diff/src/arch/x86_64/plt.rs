//! PLT stubs: small pieces of code that jump through one GOT slot.
//!
//! Every linker writes them as an optional `endbr64`, with mold `mov $n,%r11d`, then `jmp *slot(%rip)` (with or
//! without `bnd`/`notrack`), at a multiple of 8 or 16 bytes. The stub's start is the
//! aligned address before the jump; what follows the jump (lazy binding) is of no
//! interest.

use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind, Register};

/// `(stub, slot)` for every stub of a PLT section.
pub(crate) fn plt_stubs(address: u64, data: &[u8]) -> Vec<(u64, u64)> {
    let mut stubs = Vec::new();
    let mut at = 0usize;
    while at < data.len() {
        match stub_at(address + at as u64, &data[at..]) {
            Some(slot) => {
                stubs.push((address + at as u64, slot));
                at += 8;
            }
            None => at += 8,
        }
    }
    stubs
}

fn stub_at(address: u64, data: &[u8]) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, data, address, DecoderOptions::NONE);
    let mut instruction = decoder.decode();
    if instruction.mnemonic() == Mnemonic::Endbr64 {
        instruction = decoder.decode();
    }
    // mold puts the number for lazy binding before the jump.
    if instruction.code() == Code::Mov_r32_imm32 && instruction.op0_register() == Register::R11D {
        instruction = decoder.decode();
    }
    let jumps = instruction.mnemonic() == Mnemonic::Jmp
        && instruction.op0_kind() == OpKind::Memory
        && instruction.is_ip_rel_memory_operand();
    jumps.then(|| instruction.ip_rel_memory_address())
}
