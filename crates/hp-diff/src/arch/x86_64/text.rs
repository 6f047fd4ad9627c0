//! Instructions as text, with names in the place of addresses.

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind, Register, SymbolResolver,
    SymbolResult,
};
use rustc_hash::FxHashMap;

/// Names of what fields lead to: by address of the instruction and address in the field.
pub(crate) type Names = FxHashMap<(u64, u64), String>;

/// One instruction.
#[derive(Debug)]
pub(crate) struct Text {
    /// From the start of the range.
    pub offset: u32,
    /// Length in bytes; 0 for what is no instruction.
    pub length: u8,
    /// The text with each name blotted out: what is left is operation, registers and numbers.
    pub masked: String,
    /// Does nothing.
    pub padding: bool,
    /// Makes or removes the stack frame, saves or restores a register: it follows what the rest of the function needs.
    pub frame: bool,
}

/// What stands for a name that was blotted out.
const BLOT: &str = "·";

/// The instructions in `bytes`, whose fields at these places lead to something with a name. What is no instruction ends
/// them: one last text for the rest.
pub(crate) fn texts(address: u64, bytes: &[u8], named: impl Iterator<Item = (u64, u64)>) -> Vec<Text> {
    let mut blotted = formatter(named.map(|place| (place, BLOT.to_owned())).collect());
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut found = Vec::new();
    while decoder.can_decode() {
        let offset = decoder.position() as u32;
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            let masked = format!("bytes that are no instruction: {:02x?}", &bytes[offset as usize..]);
            found.push(Text { offset, length: 0, masked, padding: false, frame: false });
            break;
        }
        let mut masked = String::new();
        blotted.format(&instruction, &mut masked);
        let padding = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
        let length = instruction.len() as u8;
        found.push(Text { offset, length, masked, padding, frame: is_frame(&instruction) });
    }
    found
}

/// The text of one instruction, with names.
pub(crate) fn text(address: u64, bytes: &[u8], names: Names) -> String {
    let mut text = String::new();
    formatter(names).format(&Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode(), &mut text);
    text
}

/// What is left of a masked text without the choice of registers and of places on the stack, which one change
/// somewhere makes differ everywhere.
pub(crate) fn shape(masked: &str) -> String {
    let (mut shape, mut rest) = (String::new(), masked);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let end = match first {
            '[' => rest.find(']').map_or(rest.len(), |n| n + 1),
            _ => word.max(first.len_utf8()),
        };
        let (piece, tail) = rest.split_at(end);
        match piece {
            _ if is_register(piece) => shape.push('%'),
            _ if piece.starts_with("[rsp") || piece.starts_with("[rbp") => shape.push_str("[frame]"),
            _ if first == '[' => {
                let inner = piece[1..].trim_end_matches(']');
                shape.push('[');
                shape.push_str(&self::shape(inner));
                shape.push(']');
            }
            _ => shape.push_str(piece),
        }
        rest = tail;
    }
    shape
}

fn is_register(word: &str) -> bool {
    let numbered = |prefix: &str| {
        let digits = word.strip_prefix(prefix).map(|w| w.trim_end_matches(['d', 'w', 'b']));
        digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
    };
    let stem = word.strip_prefix(['r', 'e']).unwrap_or(word);
    let old = matches!(stem, "ax" | "bx" | "cx" | "dx" | "si" | "di" | "bp" | "sp" | "sil" | "dil" | "bpl" | "spl");
    let byte = matches!(word, "al" | "ah" | "bl" | "bh" | "cl" | "ch" | "dl" | "dh");
    old || byte || ["r", "xmm", "ymm", "zmm", "k"].into_iter().any(numbered)
}

fn is_frame(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop => instruction.op0_kind() == OpKind::Register,
        Mnemonic::Sub | Mnemonic::Add => instruction.op0_register() == Register::RSP,
        Mnemonic::Lea => instruction.op0_register() == Register::RSP,
        Mnemonic::Leave => true,
        _ => false,
    }
}

fn formatter(names: Names) -> NasmFormatter {
    let mut formatter = NasmFormatter::with_options(Some(Box::new(Resolver(names))), None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    // Short or near: a matter of distance.
    options.set_show_branch_size(false);
    options.set_space_after_operand_separator(true);
    formatter
}

struct Resolver(Names);

impl SymbolResolver for Resolver {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        _instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        self.0.get(&(instruction.ip(), address)).map(|name| SymbolResult::with_str(address, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_forgets_registers_and_stack_places_and_nothing_else() {
        for (a, b, same) in [
            ("mov eax, r12d", "mov ecx, edx", true),
            ("mov [rsp+0x18], rax", "mov [rsp+0x20], rbx", true),
            ("mov eax, [rdi+rax*4+8]", "mov ecx, [rsi+rbx*4+8]", true),
            ("mov eax, [rdi+0x18]", "mov eax, [rdi+0x20]", false),
            ("add eax, 1", "add eax, 2", false),
            ("movaps xmm0, xmm1", "movaps xmm7, xmm12", true),
            ("jl ·", "jg ·", false),
        ] {
            assert_eq!(shape(a) == shape(b), same, "{a} / {b}");
        }
    }

    #[test]
    fn names_take_the_place_of_addresses() {
        // call +0x100; mov eax,[rip+0x10]; nop; sub rsp,8
        let code = [0xe8, 0xfb, 0, 0, 0, 0x8b, 0x05, 0x10, 0, 0, 0, 0x90, 0x48, 0x83, 0xec, 8];
        let names = [((0x1000, 0x1100), "callee".to_owned()), ((0x1005, 0x101b), "variable".to_owned())];
        let found = texts(0x1000, &code, names.iter().map(|n| n.0));
        let one = |t: &Text| {
            let bytes = &code[t.offset as usize..][..usize::from(t.length)];
            text(0x1000 + u64::from(t.offset), bytes, names.iter().cloned().collect())
        };
        let all: Vec<String> = found.iter().map(one).collect();
        assert_eq!(all, ["call callee", "mov eax, [rel variable]", "nop", "sub rsp, 8"]);
        assert_eq!(found[0].masked, "call ·");
        assert_eq!(found[1].masked, "mov eax, [rel ·]");
        assert_eq!(
            found.iter().map(|t| (t.padding, t.frame)).collect::<Vec<_>>(),
            [(false, false), (false, false), (true, false), (false, true)]
        );
    }
}
