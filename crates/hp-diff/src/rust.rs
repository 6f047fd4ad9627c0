//! Names and constants that rustc makes.
//!
//! Legacy names end in a hash, `17h0123456789abcdefE`; v0 names (RFC 2603) have a disambiguator for each crate, `Cs1a2B_4main`.
//! Both change with the compiler's flags, the crate's version or its dependencies, though the code does not.
//! Local symbols of Rust have a file that is named after a codegen unit, which says nothing either.

use std::borrow::Cow;

/// True for the name of a function or static of Rust.
pub(crate) fn is_mangled(name: &str) -> bool {
    name.starts_with("_R") || hash(name).is_some()
}

/// The name of one instance, hash and all, without what LLVM adds to a local name that other units must see; `None` if it is no
/// name of Rust.
pub(crate) fn instance_name(name: &str) -> Option<&str> {
    is_mangled(name).then(|| without_llvm(name))
}

/// The name without what changes from build to build; `None` if it is no name of Rust.
pub(crate) fn quiet_name(name: &str) -> Option<Cow<'_, str>> {
    if let Some(stem) = hash(name) {
        return Some(Cow::Borrowed(stem));
    }
    let mut rest = instance_name(name)?.strip_prefix("_R")?;
    let mut quiet = String::from("_R");
    while let Some(at) = rest.find("Cs") {
        quiet.push_str(&rest[..at + 1]);
        let tail = &rest[at + 2..];
        let number = tail.bytes().take_while(u8::is_ascii_alphanumeric).count();
        rest = match tail[number..].strip_prefix('_') {
            Some(behind) => behind,
            None => {
                quiet.push('s');
                tail
            }
        };
    }
    quiet.push_str(rest);
    Some(Cow::Owned(quiet))
}

/// Bytes of the template of a format, as `format_args!` makes it (`core::fmt::Arguments` of rustc 1.93 on), that `bytes` begin
/// with: pieces of text, each behind its length, and places for arguments, then a zero. No piece follows another one, unless that
/// is as long as a piece can be. `None` if they are no such template.
pub(crate) fn format_length(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut places) = (0, 0);
    let piece = |at: usize, size: usize| {
        let text = bytes.get(at..at + size).filter(|text| !text.contains(&0))?;
        std::str::from_utf8(text).ok()?;
        let goes_on = matches!(bytes.get(at + size)?, 0 | 0xc0..) || size == usize::from(u16::MAX);
        goes_on.then_some(at + size)
    };
    loop {
        match *bytes.get(at)? {
            0 => return (places > 0).then_some(at + 1),
            n @ 1..0x80 => at = piece(at + 1, usize::from(n))?,
            0x80 => at = piece(at + 3, usize::from(u16::from_le_bytes([*bytes.get(at + 1)?, *bytes.get(at + 2)?])))?,
            // The low bits say what follows: flags, width, precision, index. In the flags is a character that fills.
            n @ 0xc0.. => {
                if n & 1 != 0 {
                    let flags = bytes.get(at + 1..at + 5)?.try_into().map(u32::from_le_bytes).ok()?;
                    char::from_u32(flags & 0x1f_ffff)?;
                }
                let following = [(1, 4), (2, 2), (4, 2), (8, 2)].iter().filter(|(bit, _)| n & bit != 0);
                at += 1 + following.map(|(_, size)| size).sum::<usize>();
                places += 1;
            }
            _ => return None,
        }
    }
}

/// The name as rustc makes it.
fn without_llvm(name: &str) -> &str {
    name.split_once(".llvm.").map_or(name, |(plain, _)| plain)
}

/// What stands before the hash of a legacy name.
fn hash(name: &str) -> Option<&str> {
    let name = without_llvm(name);
    let stem = name.strip_suffix('E').filter(|stem| stem.starts_with("_ZN"))?;
    let at = stem.len().checked_sub(19)?;
    let hash = stem.get(at..)?.strip_prefix("17h")?;
    hash.bytes().all(|b| b.is_ascii_hexdigit()).then(|| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::{format_length, instance_name, is_mangled, quiet_name};

    #[test]
    fn templates_of_formats_reach_to_their_end() {
        let template = b"\x13failed printing to \xc0\x02: \xc0\0and more";
        assert_eq!(format_length(template), Some(26));
        assert_eq!(format_length(b"\xc1\x20\0\0\x60\0next"), Some(6));
        assert_eq!(format_length(b"\x80\x03\0abc\xc0\0"), Some(8));
        assert_eq!(format_length(b"\x03abc\0"), None, "no place for an argument");
        assert_eq!(format_length(b"text\0"), None);
        assert_eq!(format_length(b"\x02ab\x01c\xc0\0"), None, "one piece behind another");
        assert_eq!(format_length(b"\xc7\xff\xff\x10\x38\x0a\0\x03\0\0"), Some(10), "filled with U+10FFFF");
        assert_eq!(format_length(&[&[0xff; 22][..], &[0]].concat()), None, "no character has this number");
        assert_eq!(format_length(b"\xc0\x05abc"), None);
    }

    #[test]
    fn hashes_and_disambiguators_are_put_aside() {
        let quiet = |name| quiet_name(name).map(|n| n.into_owned());
        assert_eq!(quiet("_ZN4main4pick17h9224c27d57e980c9E").as_deref(), Some("_ZN4main4pick"));
        assert_eq!(quiet("_ZN8main..A1b17h9224c27d57e980c9E.llvm.1").as_deref(), Some("_ZN8main..A1b"));
        assert_eq!(quiet("_RNvCs1a2B_4main4pick").as_deref(), Some("_RNvC4main4pick"));
        assert_eq!(quiet("_RINvNtCsgE_4core3fmtCs9_4main").as_deref(), Some("_RINvNtC4core3fmtC4main"));
        assert_eq!(quiet("_RNvCs1a2B_4main4pick.llvm.7").as_deref(), Some("_RNvC4main4pick"));
        assert_eq!(quiet("_ZN3foo3barEv"), None);
        assert_eq!(instance_name("_RNvCs1a2B_4main4pick.llvm.12"), Some("_RNvCs1a2B_4main4pick"));
        assert_eq!(instance_name("pick.llvm.12"), None);
        assert!(!is_mangled("main") && !is_mangled("_ZN3foo3barEv") && is_mangled("_RNvCs1a2B_4main4pick"));
    }
}
