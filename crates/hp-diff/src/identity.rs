//! What says that variables of two patches are the same one: a symbol beside each new variable, with a digest of where
//! it is declared, its type, its size and its initial value.
//!
//! Two patches of one base with equal digests mean the same variable, and an applier that puts the newer one in place of
//! the older lets it use the older one's object. So a doubt gives no digest: no debug information, a type that has a named
//! structure or enumeration in it (its members may differ between the two new builds, which are never compared with
//! each other), or two variables of one name in one function.

use crate::build::Build;
use crate::correlate::described;
use crate::layout::Variable;
use crate::payload::Payload;
use hp_pack::{Place, SectionKind, Symbol, SymbolKind};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;

/// How the names of these symbols begin; hp-apply knows them.
const PREFIX: &str = "hpatch.variable.";
/// Types that are known by name only.
const NAMED: [&str; 5] = ["struct", "union", "class", "enum", "type"];

/// Adds a symbol for each new variable of which it is certain what it is.
pub(crate) fn mark(payload: &mut Payload<'_, '_>, new: &Build<'_>, variables: &[Variable]) {
    let described = described(&new.map, variables);
    let mut marks: BTreeMap<String, Vec<Symbol>> = BTreeMap::new();
    for (object, symbol) in payload.objects() {
        let symbol = &payload.symbols[symbol as usize];
        let writable = matches!(symbol.place, Place::Payload(SectionKind::Data | SectionKind::Bss));
        let Some(variable) = described.get(&object).filter(|variable| writable && is_plain(&variable.ty)) else {
            continue;
        };
        let object = &new.map.objects[object];
        let name = digest(variable, object.size, new.image.bytes(object.address, object.size).unwrap_or_default());
        let mark = Symbol { name: name.clone(), kind: SymbolKind::Other, size: 0, ..symbol.clone() };
        marks.entry(name).or_default().push(mark);
    }
    for marks in marks.into_values().filter(|marks| marks.len() == 1) {
        payload.symbols.extend(marks);
    }
}

fn is_plain(ty: &str) -> bool {
    !ty.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| NAMED.contains(&word))
}

fn digest(variable: &Variable, size: u64, initial: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [&variable.unit, &variable.function, &variable.name, &variable.ty] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.update(size.to_le_bytes());
    // Zeros are the same, whether the file has them or not.
    let end = initial.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    hash.update(&initial[..end]);
    let digest = hash.finalize();
    digest[..16].iter().fold(PREFIX.to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
