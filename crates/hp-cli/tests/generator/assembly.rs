//! What the compiler made of two versions: the same functions or others, without a linker and without hp.

use std::collections::BTreeMap;

/// Every function of the one is in the other, and what else the other has is a stranger.
pub(crate) fn same_code(old: &[String], new: &[String]) -> bool {
    let functions = |texts: &[String]| {
        let all = texts.iter().enumerate().flat_map(|(file, text)| functions(text).into_iter().map(move |f| (file, f)));
        all.map(|(file, (name, code))| ((file, name), code)).collect::<BTreeMap<_, _>>()
    };
    let (old, mut new) = (functions(old), functions(new));
    new.retain(|(_, name), _| !name.contains("stranger_"));
    old == new
}

/// The instructions of each function, its own labels numbered in the order in which it has them.
fn functions(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut labels = BTreeMap::new();
    let mut current: Option<(String, Vec<String>)> = None;
    let mut kinds = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(rest) = line.strip_prefix(".type") {
            let rest = rest.trim();
            kinds.extend(rest.strip_suffix("@function").map(|name| name.trim().trim_end_matches(',').to_owned()));
        } else if let Some(name) = line.strip_suffix(':')
            && kinds.iter().any(|kind| kind == name)
        {
            labels.clear();
            current = Some((name.to_owned(), Vec::new()));
        } else if line.starts_with(".size") {
            all.extend(current.take());
        } else if let Some((_, code)) = &mut current
            && !line.is_empty()
            && (!line.starts_with('.') || line.ends_with(':') || line.starts_with(".long") || line.starts_with(".quad"))
        {
            code.push(numbered(line, &mut labels));
        }
    }
    all
}

/// Every local label by its number.
fn numbered(line: &str, labels: &mut BTreeMap<String, usize>) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(".L") {
        out.push_str(&rest[..at]);
        let label = &rest[at..];
        let end = label[2..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(label.len(), |n| n + 2);
        let next = labels.len();
        out.push_str(&format!("<{}>", labels.entry(label[..end].to_owned()).or_insert(next)));
        rest = &label[end..];
    }
    out + rest
}
