//! Base64 as minisign writes it: the standard alphabet with padding, nothing else (RFC 4648, section 4).

#[cfg(feature = "sign")]
use alloc::string::String;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Exactly `N` bytes; `None` for any other text, also for one that another encoder would have written differently.
pub(crate) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let padding = (3 - N % 3) % 3;
    let digits = text.as_bytes();
    let (digits, end) = digits.split_at_checked(digits.len().checked_sub(padding)?)?;
    if digits.len() + padding != N.div_ceil(3) * 4 || end.iter().any(|&b| b != b'=') {
        return None;
    }
    let mut out = [0u8; N];
    let mut written = 0;
    let (mut bits, mut count) = (0u32, 0u32);
    for digit in digits {
        let value = ALPHABET.iter().position(|a| a == digit)? as u32;
        bits = bits << 6 | value;
        count += 6;
        if count >= 8 {
            count -= 8;
            *out.get_mut(written)? = (bits >> count) as u8;
            written += 1;
        }
        bits &= (1 << count) - 1;
    }
    (written == N && bits == 0).then_some(out)
}

/// The text for some bytes.
#[cfg(feature = "sign")]
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0u8; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for i in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_the_rfc() {
        assert_eq!(decode(""), Some([]));
        assert_eq!(decode("Zg=="), Some(*b"f"));
        assert_eq!(decode("Zm8="), Some(*b"fo"));
        assert_eq!(decode("Zm9v"), Some(*b"foo"));
        assert_eq!(decode("Zm9vYmFy"), Some(*b"foobar"));
        for wrong in ["Zg=", "Zg", "Zh==", "Zg==\n", "Z===", "Zm9v", "Zm8=", "=Zg=", "Zg-="] {
            assert_eq!(decode::<1>(wrong), None, "{wrong}");
        }
    }

    #[cfg(feature = "sign")]
    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(encode(b"f"), "Zg==");
        assert_eq!(decode(&encode(b"fo")), Some(*b"fo"));
        let bytes: [u8; 158] = core::array::from_fn(|i| (i * 37) as u8);
        assert_eq!(decode(&encode(&bytes)), Some(bytes));
    }
}
