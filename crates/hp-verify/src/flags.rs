//! Which way a conditional jump goes that follows from numbers that are known.
//!
//! `xor %eax,%eax; L: cmp $1,%rax; jbe M; movzbl text-2(%rax),%ecx; M: inc %rax`: the number is 0 where the loop begins, and it is not 0
//! where the text is read. Whoever follows the code with a number must go where that number goes.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

/// What the flags say of numbers that are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Flags {
    /// Nothing that is known has a part in them.
    #[default]
    Apart,
    /// Two numbers were compared, with so many bits.
    Compared(i64, i64, u32),
    /// A number was added to one, to which it says what a comparison with its negative would, but for orders without a sign.
    Stepped(i64, i64, u32),
    /// A number was compared with what is not known.
    First,
    /// The same, the other way round.
    Second,
    /// They come from known numbers in some other way.
    Mixed,
}

/// A way behind a conditional jump, for the numbers that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    /// No number goes there.
    Closed,
    /// Who knows; behind it the numbers say nothing any more.
    Doubtful,
}

/// What is behind the jump, `taken` or not.
pub(crate) fn way(jump: &Instruction, flags: Flags, taken: bool) -> Way {
    use ConditionCode::{a, ae, b, be, e, g, ge, l, le, ne, ns, s};
    let condition = if taken { jump.condition_code() } else { negated(jump.condition_code()) };
    match flags {
        Flags::Apart => Way::Open,
        Flags::Stepped(..) if matches!(condition, a | ae | b | be) => Way::Doubtful,
        Flags::Compared(x, y, bits) | Flags::Stepped(x, y, bits) => {
            let (i, j) = (x << (64 - bits) >> (64 - bits), y << (64 - bits) >> (64 - bits));
            let (u, v) = ((i.cast_unsigned()) << (64 - bits), (j.cast_unsigned()) << (64 - bits));
            let goes = match condition {
                e => i == j,
                ne => i != j,
                a => u > v,
                ae => u >= v,
                b => u < v,
                be => u <= v,
                g => i > j,
                ge => i >= j,
                l => i < j,
                le => i <= j,
                s => i.wrapping_sub(j) < 0,
                ns => i.wrapping_sub(j) >= 0,
                _ => return Way::Doubtful,
            };
            if goes { Way::Open } else { Way::Closed }
        }
        // A number that is too large for it never gets there later, when it is larger.
        Flags::First if matches!(condition, b | be | l | le) => Way::Open,
        Flags::Second if matches!(condition, a | ae | g | ge) => Way::Open,
        _ => Way::Doubtful,
    }
}

fn negated(condition: ConditionCode) -> ConditionCode {
    use ConditionCode::{None, a, ae, b, be, e, g, ge, l, le, ne, ns, s};
    match condition {
        e => ne,
        ne => e,
        a => be,
        be => a,
        b => ae,
        ae => b,
        g => le,
        le => g,
        l => ge,
        ge => l,
        s => ns,
        ns => s,
        _ => None,
    }
}

/// What the flags say behind an instruction that sets them. `known` gives the number that an operand has, `apart` says of one that no known
/// number has a part in it, and `has_part` that one has a part in the instruction.
pub(crate) fn behind(
    i: &Instruction,
    known: &dyn Fn(u32) -> Option<i64>,
    apart: &dyn Fn(u32) -> bool,
    has_part: bool,
) -> Flags {
    let bits = match i.op_count() {
        0 => 64,
        _ if i.op0_register().size() > 0 => i.op0_register().size() as u32 * 8,
        _ => i.memory_size().size() as u32 * 8,
    };
    let whole = matches!(bits, 8 | 16 | 32 | 64);
    match (i.mnemonic(), known(0), known(1)) {
        _ if !whole && has_part => Flags::Mixed,
        (Mnemonic::Cmp | Mnemonic::Sub, Some(x), Some(y)) => Flags::Compared(x, y, bits),
        (Mnemonic::Dec, Some(x), _) => Flags::Stepped(x, 1, bits),
        (Mnemonic::Inc, Some(x), _) => Flags::Stepped(x, -1, bits),
        (Mnemonic::Add, Some(x), Some(y)) => Flags::Stepped(x, y.wrapping_neg(), bits),
        (Mnemonic::Cmp, Some(_), None) if apart(1) => Flags::First,
        (Mnemonic::Cmp, None, Some(_)) if has_part && apart(0) => Flags::Second,
        (Mnemonic::Test, Some(x), Some(y)) if x == y && i.op0_register() == i.op1_register() => {
            Flags::Compared(x, 0, bits)
        }
        _ if has_part => Flags::Mixed,
        _ => Flags::Apart,
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, Way, way};
    use iced_x86::{Decoder, DecoderOptions};

    #[test]
    fn where_a_number_goes() {
        // jbe +0
        let jump = Decoder::new(64, &[0x76, 0], DecoderOptions::NONE).decode();
        let goes = |flags| [way(&jump, flags, true), way(&jump, flags, false)];
        assert_eq!(goes(Flags::Compared(0, 1, 64)), [Way::Open, Way::Closed]);
        assert_eq!(goes(Flags::Compared(-2, 6, 32)), [Way::Closed, Way::Open]);
        assert_eq!(goes(Flags::Stepped(0, 1, 64)), [Way::Doubtful; 2]);
        assert_eq!(goes(Flags::First), [Way::Open, Way::Doubtful]);
        assert_eq!(goes(Flags::Second), [Way::Doubtful, Way::Open]);
        assert_eq!(goes(Flags::Mixed), [Way::Doubtful; 2]);
        assert_eq!(goes(Flags::Apart), [Way::Open; 2]);
        // je +0
        let jump = Decoder::new(64, &[0x74, 0], DecoderOptions::NONE).decode();
        assert_eq!([true, false].map(|taken| way(&jump, Flags::Stepped(9, 1, 64), taken)), [Way::Closed, Way::Open]);
    }
}
