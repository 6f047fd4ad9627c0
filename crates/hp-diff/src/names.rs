//! Names of C++ and Rust as people write them, and names that compilers make up.

/// True for `anon.`, a hash of the module, `.` and a number, and maybe what LLVM adds to names that it makes visible to other
/// modules: its name for a constant that has none.
pub(crate) fn is_anonymous(name: &str) -> bool {
    let Some((hash, rest)) = name.strip_prefix("anon.").and_then(|rest| rest.split_once('.')) else { return false };
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (number, visible) = rest.split_once(".llvm.").unwrap_or((rest, "0"));
    hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit()) && digits(number) && digits(visible)
}

/// `text` with each mangled name in it (Itanium C++ ABI; Rust, legacy without its hash and v0) as its source has it. A suffix
/// of the compiler, such as `.cold`, stays. What is no such name stays as it is.
pub fn readable(text: &str) -> String {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    let mut all = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c| !letter(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(word);
        match demangled(name) {
            Some(name) => all.push_str(&name),
            None => all.push_str(name),
        }
        let gap = behind.find(letter).unwrap_or(behind.len());
        all.push_str(&behind[..gap]);
        rest = &behind[gap..];
    }
    all
}

/// One name; `None` if it is not mangled.
fn demangled(name: &str) -> Option<String> {
    if !name.starts_with("_Z") && !name.starts_with("_R") {
        return None;
    }
    if let Ok(name) = rustc_demangle::try_demangle(name) {
        return Some(format!("{name:#}"));
    }
    let stem = name.find('.').map_or(name, |at| &name[..at]);
    let symbol = cpp_demangle::Symbol::new(stem).ok()?;
    let options = cpp_demangle::DemangleOptions::new().no_return_type();
    Some(symbol.demangle_with_options(&options).ok()? + &name[stem.len()..])
}

#[cfg(test)]
mod tests {
    use super::{is_anonymous, readable};

    #[test]
    fn names_of_constants_that_have_none() {
        assert!(is_anonymous("anon.723d7c64bd0930ce9951ad0d7b543bc6.4.llvm.1827964619526725557"));
        assert!(is_anonymous("anon.723d7c64bd0930ce9951ad0d7b543bc6.12"));
        for named in ["anon.short.1", "anon", "anonymous", "anon.723d7c64bd0930ce9951ad0d7b543bc6.x", "anon.5.6"] {
            assert!(!is_anonymous(named), "{named}");
        }
    }

    #[test]
    fn names_are_shown_as_the_source_has_them() {
        assert_eq!(readable("_Z5riskyi"), "risky(int)");
        assert_eq!(readable("_Z5riskyi.cold"), "risky(int).cold");
        assert_eq!(readable("_Z7largestIiET_PKS0_i"), "largest<int>(int const*, int)");
        assert_eq!(readable("_ZN4main4pick17h9224c27d57e980c9E"), "main::pick");
        assert_eq!(readable("_RNvCs1a2B_4main4pick"), "main::pick");
        assert_eq!(readable("calls _Z5riskyi+0x10, not main"), "calls risky(int)+0x10, not main");
        assert_eq!(readable("_ZTI5Shape@GLIBCXX_3.4"), "typeinfo for Shape@GLIBCXX_3.4");
        for plain in ["main", "", "_Z9short", "_Rest", "a _Z b", "é → _Z!", "page.part.0"] {
            assert_eq!(readable(plain), plain);
        }
    }
}
