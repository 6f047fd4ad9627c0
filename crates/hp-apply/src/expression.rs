//! DWARF expressions in unwind rows (DWARF 5, 2.5 and 6.4.2): those that compilers and linkers write there, which
//! is arithmetic on registers, the CFA and memory. Anything else proves nothing.

use crate::prelude::*;
use gimli::{EndianSlice, LittleEndian, Reader};

/// Longest stack of values.
const MAX_DEPTH: usize = 64;

/// What an expression may ask for.
pub(crate) trait Context {
    /// A register by its DWARF number, if its value is known.
    fn register(&self, number: u64) -> Option<u64>;
    /// A word of memory.
    fn word(&self, at: u64) -> Option<u64>;
}

/// The value of an expression that starts with `initial` on the stack.
pub(crate) fn evaluate(bytes: &[u8], initial: Option<u64>, context: &impl Context) -> Option<u64> {
    let mut code = EndianSlice::new(bytes, LittleEndian);
    let mut stack: Vec<u64> = initial.into_iter().collect();
    // There are no jumps, so this ends.
    while !code.is_empty() {
        let operation = code.read_u8().ok()?;
        step(operation, &mut code, &mut stack, context)?;
        if stack.len() > MAX_DEPTH {
            return None;
        }
    }
    stack.pop()
}

fn step(
    operation: u8,
    code: &mut EndianSlice<'_, LittleEndian>,
    stack: &mut Vec<u64>,
    context: &impl Context,
) -> Option<()> {
    let value = match operation {
        // DW_OP_const1u to DW_OP_consts
        0x08 => u64::from(code.read_u8().ok()?),
        0x09 => code.read_u8().ok()? as i8 as u64,
        0x0a => u64::from(code.read_u16().ok()?),
        0x0b => code.read_u16().ok()? as i16 as u64,
        0x0c => u64::from(code.read_u32().ok()?),
        0x0d => code.read_u32().ok()? as i32 as u64,
        0x0e | 0x0f => code.read_u64().ok()?,
        0x10 => code.read_uleb128().ok()?,
        0x11 => code.read_sleb128().ok()? as u64,
        // DW_OP_dup
        0x12 => *stack.last()?,
        // DW_OP_deref
        0x06 => context.word(stack.pop()?)?,
        // DW_OP_not, DW_OP_neg
        0x20 => !stack.pop()?,
        0x1f => stack.pop()?.wrapping_neg(),
        // DW_OP_plus_uconst
        0x23 => stack.pop()?.wrapping_add(code.read_uleb128().ok()?),
        // DW_OP_lit0 to DW_OP_lit31
        0x30..=0x4f => u64::from(operation - 0x30),
        // DW_OP_breg0 to DW_OP_breg31
        0x70..=0x8f => context.register(u64::from(operation - 0x70))?.wrapping_add(code.read_sleb128().ok()? as u64),
        _ => {
            let (right, left) = (stack.pop()?, stack.pop()?);
            binary(operation, left, right)?
        }
    };
    stack.push(value);
    Some(())
}

fn binary(operation: u8, left: u64, right: u64) -> Option<u64> {
    let (signed_left, signed_right) = (left as i64, right as i64);
    Some(match operation {
        0x1a => left & right,
        0x1c => left.wrapping_sub(right),
        0x1e => left.wrapping_mul(right),
        0x21 => left | right,
        0x22 => left.wrapping_add(right),
        0x24 => left.checked_shl(u32::try_from(right).ok()?)?,
        0x25 => left.checked_shr(u32::try_from(right).ok()?)?,
        0x26 => signed_left.checked_shr(u32::try_from(right).ok()?)? as u64,
        0x27 => left ^ right,
        0x29 => u64::from(left == right),
        0x2a => u64::from(signed_left >= signed_right),
        0x2b => u64::from(signed_left > signed_right),
        0x2c => u64::from(signed_left <= signed_right),
        0x2d => u64::from(signed_left < signed_right),
        0x2e => u64::from(left != right),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Context for Fixed {
        fn register(&self, number: u64) -> Option<u64> {
            [(6, 0x2000), (7, 0x1000), (16, 0x40_102b)].iter().find(|known| known.0 == number).map(|known| known.1)
        }

        fn word(&self, at: u64) -> Option<u64> {
            (at == 0x1ff8).then_some(77)
        }
    }

    #[test]
    fn what_compilers_and_linkers_write() {
        // A PLT stub: breg7+8, breg16+0, lit15, and, lit11, ge, lit3, shl, plus: 8 bytes more from its 11th byte on.
        let stub = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];
        assert_eq!(evaluate(&stub, None, &Fixed), Some(0x1010));
        // A realigned stack: breg6-8, deref.
        assert_eq!(evaluate(&[0x76, 0x78, 0x06], None, &Fixed), Some(77));
        // A register saved at an offset of the CFA.
        assert_eq!(evaluate(&[0x11, 0x70, 0x22], Some(0x100), &Fixed), Some(0xf0));
    }

    #[test]
    fn what_is_not_known_proves_nothing() {
        // A jump, an unknown register, a cut operand, an empty stack, memory that is not there, endless growth.
        for wrong in [&[0x2f, 0, 0][..], &[0x70, 0], &[0x0a, 1], &[0x22], &[0x30, 0x06], &[], &[0x30; 100]] {
            assert_eq!(evaluate(wrong, None, &Fixed), None, "{wrong:x?}");
        }
    }
}
