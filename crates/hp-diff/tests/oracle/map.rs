//! The linkers' maps: where each input section lies.

/// An input section in the image.
#[derive(Debug)]
pub(crate) struct Placed {
    /// Object file, or `archive(member)`.
    pub(crate) file: String,
    pub(crate) section: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// Reads the map of any of the four linkers.
pub(crate) fn read(text: &str) -> Vec<Placed> {
    if text.trim_start().starts_with("VMA") { columns(text) } else { script(text) }
}

/// lld and mold: a line for each, `ADDRESS... SIZE ALIGN   file.o:(.section)`; lld counts in hexadecimal.
fn columns(text: &str) -> Vec<Placed> {
    let lld = text.lines().next().is_some_and(|l| l.contains("LMA"));
    let number = |word: &str, hexadecimal: bool| match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => u64::from_str_radix(word, if hexadecimal { 16 } else { 10 }).ok(),
    };
    let line = |line: &str| {
        let (file, section) = line.trim_end().strip_suffix(')')?.rsplit_once(":(")?;
        let mut words = file.split_whitespace();
        let address = number(words.next()?, true)?;
        if lld {
            words.next()?;
        }
        let size = number(words.next()?, lld)?;
        words.next()?;
        Some(Placed { file: words.next()?.to_owned(), section: section.to_owned(), address, size })
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// bfd and gold: ` .section   0xADDRESS   0xSIZE file.o`, the name on a line of its own if it is long.
fn script(text: &str) -> Vec<Placed> {
    let start = text.find("\nMemory map").or_else(|| text.find("\nLinker script and memory map")).unwrap_or(0);
    let mut found = Vec::new();
    let mut name = None;
    for line in text[start..].lines() {
        let is_input = line.starts_with(" .") || line.starts_with(" COMMON");
        let mut words = line.split_whitespace().peekable();
        if is_input {
            name = words.next();
            if words.peek().is_none() {
                continue;
            }
        } else if !line.starts_with("   ") {
            name = None;
        }
        let Some(section) = name.take() else { continue };
        let mut number = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        if let (Some(address), Some(size)) = (number(), number()) {
            let file = words.collect::<Vec<_>>().join(" ");
            found.push(Placed { file, section: section.to_owned(), address, size });
        }
    }
    found
}
