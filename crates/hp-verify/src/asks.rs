//! Calls of a static program that are led to the patch's unwind rows: each is what its name says.

use hp_pack::{Patch, Place, Symbol};

use crate::entities::Side;
use crate::report::Fault;

const PREFIX: &str = "hpatch.asks.";

/// Every named call must be a call or jump of the base to the function of that name.
pub(crate) fn check(patch: &Patch, old: &Side<'_>) -> Vec<Fault> {
    let named = patch.symbols.iter().filter_map(|s| Some((s, s.name.strip_prefix(PREFIX)?)));
    let wrong = named.filter(|(symbol, function)| !is_call(symbol, function, old));
    wrong.map(|(symbol, _)| Fault::new("symbol", symbol.name.clone(), "no call of the base lies there")).collect()
}

fn is_call(symbol: &Symbol, function: &str, old: &Side<'_>) -> bool {
    let Some(&[0xe8 | 0xe9, a, b, c, d]) = old.image.bytes(symbol.value.wrapping_sub(1), 5) else { return false };
    let target = (symbol.value + 4).wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
    let callee = old.range_at(target).filter(|(_, offset)| *offset == 0);
    symbol.place == Place::Base
        && symbol.size == 4
        && callee.is_some_and(|(f, _)| old.ranges[f].names.contains(&function))
}
