//! Names that rustc makes.
//!
//! Legacy names end in a hash, `17h0123456789abcdefE`; v0 names (RFC 2603) have a disambiguator for each crate, `Cs1a2B_4main`.
//! Both change with the compiler's flags, the crate's version or its dependencies, though the code does not.
//! Local symbols of Rust have a file that is named after a codegen unit, which says nothing either.

use std::borrow::Cow;

/// True for the name of a function or static of Rust.
pub(crate) fn is_mangled(name: &str) -> bool {
    name.starts_with("_R") || hash(name).is_some()
}

/// The name without what changes from build to build; `None` if it is no name of Rust.
pub(crate) fn quiet_name(name: &str) -> Option<Cow<'_, str>> {
    if let Some(stem) = hash(name) {
        return Some(Cow::Borrowed(stem));
    }
    let mut rest = name.strip_prefix("_R")?;
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

/// What stands before the hash of a legacy name.
fn hash(name: &str) -> Option<&str> {
    let name = name.split(".llvm.").next().filter(|n| n.starts_with("_ZN"))?;
    let stem = name.strip_suffix('E')?;
    let at = stem.len().checked_sub(19)?;
    let hash = stem.get(at..)?.strip_prefix("17h")?;
    hash.bytes().all(|b| b.is_ascii_hexdigit()).then(|| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::{is_mangled, quiet_name};

    #[test]
    fn hashes_and_disambiguators_are_put_aside() {
        let quiet = |name| quiet_name(name).map(|n| n.into_owned());
        assert_eq!(quiet("_ZN4main4pick17h9224c27d57e980c9E").as_deref(), Some("_ZN4main4pick"));
        assert_eq!(quiet("_ZN8main..A1b17h9224c27d57e980c9E.llvm.1").as_deref(), Some("_ZN8main..A1b"));
        assert_eq!(quiet("_RNvCs1a2B_4main4pick").as_deref(), Some("_RNvC4main4pick"));
        assert_eq!(quiet("_RINvNtCsgE_4core3fmtCs9_4main").as_deref(), Some("_RINvNtC4core3fmtC4main"));
        assert_eq!(quiet("_ZN3foo3barEv"), None);
        assert!(!is_mangled("main") && !is_mangled("_ZN3foo3barEv") && is_mangled("_RNvCs1a2B_4main4pick"));
    }
}
