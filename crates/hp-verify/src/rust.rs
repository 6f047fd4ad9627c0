//! Names that rustc makes, after the comments in its `rustc_symbol_mangling`, and RFC 2603.
//!
//! The older ones end in a hash, `_ZN4main4pick17h9224c27d57e980c9E`. The newer ones begin with `_R` and have, in base 62, a number
//! for each crate: `_RNvCs1a2B_4main4pick`. Both follow the version of the crate, not its code.

use std::borrow::Cow;

const HASH: usize = "17h0123456789abcdefE".len();

/// True for the name of a function or variable of Rust.
pub(crate) fn is_name(name: &str) -> bool {
    without_hash(name).is_some() || name.starts_with("_R")
}

/// The name of one instance of a function or variable, hash and all: without what LLVM adds when it takes it out of its file.
pub(crate) fn instance(name: &str) -> Option<&str> {
    is_name(name).then(|| without_llvm(name))
}

/// What a source file's name says of where a local symbol belongs: of a codegen unit of rustc, `demo.e5f594449933ed36-cgu.3`, the
/// crate.
pub(crate) fn scope(file: &str) -> &str {
    let Some((unit, number)) = file.split_once("-cgu.") else { return file };
    match unit.rfind('.') {
        Some(dot) if number.bytes().all(|b| b.is_ascii_digit()) => &unit[..dot],
        _ => file,
    }
}

/// The name without what follows the version of the crate; `None` if it is no name of Rust.
pub(crate) fn unversioned(name: &str) -> Option<Cow<'_, str>> {
    if let Some(stem) = without_hash(name) {
        return Some(stem.into());
    }
    let mut pieces = instance(name)?.strip_prefix("_R")?.split("Cs");
    let mut found = format!("_R{}", pieces.next()?);
    for piece in pieces {
        found.push('C');
        match piece.split_once('_') {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_alphanumeric()) => found.push_str(rest),
            _ => found.extend(["s", piece]),
        }
    }
    Some(found.into())
}

fn without_llvm(name: &str) -> &str {
    name.find(".llvm.").map_or(name, |at| &name[..at])
}

fn without_hash(name: &str) -> Option<&str> {
    let plain = without_llvm(name);
    let at = plain.len().checked_sub(HASH).filter(|_| plain.starts_with("_ZN"))?;
    let digits = plain.get(at..)?.strip_prefix("17h")?.strip_suffix('E')?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| &plain[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_version_is_put_aside() {
        let plain = |name| unversioned(name).map(Cow::into_owned);
        assert_eq!(plain("_ZN4main4pick17h9224c27d57e980c9E").as_deref(), Some("_ZN4main4pick"));
        assert_eq!(plain("_ZN4main4pick17h9224c27d57e980c9E.llvm.123").as_deref(), Some("_ZN4main4pick"));
        assert_eq!(plain("_RINvNtCsgE_4core3fmtCs9_4main").as_deref(), Some("_RINvNtC4core3fmtC4main"));
        assert_eq!(plain("_ZN3foo3barEv"), None);
        assert_eq!(instance("_ZN1a1b17h9224c27d57e980c9E.llvm.123"), Some("_ZN1a1b17h9224c27d57e980c9E"));
        assert_eq!(plain("_RNvCs1a2B_4main4pick.llvm.7").as_deref(), Some("_RNvC4main4pick"));
        assert_eq!((scope("demo.e5f594449933ed36-cgu.3"), scope("main.c")), ("demo", "main.c"));
        assert_eq!(instance("main.llvm.123"), None);
        assert!(is_name("_RNvCs1a2B_4main4pick") && !is_name("main"));
    }
}
