//! Variables that an older patch has added and a newer one has too: the newer one uses the same object, so values
//! and pointers to it stay right.
//!
//! That two variables are the same is the diff's word: beside a variable's symbol, a patch has one at the same place
//! named `hpatch.variable.` and a digest of where it is declared, its type, size and initial value. Equal digests are
//! equal variables. A variable of an older patch that has a namesake here without that proof is a refusal.

use crate::addr::LiveAddr;
use crate::failure::{Failure, refused};
use crate::ledger::{Ledger, Variable};
use crate::prelude::*;
use crate::small::Map;
use hp_pack::{Patch, Place, SectionKind, Symbol, SymbolKind};

/// How the symbols begin that say what a variable is.
const IDENTITY: &str = "hpatch.variable.";

/// The variables of a patch: number of the symbol, the symbol, its identity.
pub(crate) fn variables(patch: &Patch) -> impl Iterator<Item = (u32, &Symbol, String)> {
    let is_variable = |symbol: &Symbol| matches!(symbol.place, Place::Payload(SectionKind::Data | SectionKind::Bss));
    let mut identities: Map<(Place, u64), &str> = Map::default();
    for symbol in patch.symbols.iter().filter(|symbol| is_variable(symbol)) {
        if let Some(identity) = symbol.name.strip_prefix(IDENTITY) {
            identities.insert((symbol.place, symbol.value), identity);
        }
    }
    let named = patch.symbols.iter().enumerate().filter(move |(_, symbol)| {
        is_variable(symbol) && symbol.kind == SymbolKind::Object && symbol.size > 0 && !symbol.name.is_empty()
    });
    named.map(move |(index, symbol)| {
        let identity = identities.get(&(symbol.place, symbol.value)).copied().unwrap_or_default();
        (index as u32, symbol, identity.to_owned())
    })
}

/// Where those variables of a patch lie that it takes over from older ones, by symbol. `all`: every ledger of the
/// process; a variable must lie in one of them. `hands_out`: the patch makes addresses of its variables.
pub(crate) fn inherited(
    patch: &Patch,
    older: &[&Ledger],
    all: &[Ledger],
    hands_out: bool,
) -> Result<Map<u32, LiveAddr>, Failure> {
    let mut found = Map::default();
    for ledger in older {
        for variable in &ledger.named {
            let same = variables(patch).find(|(_, symbol, identity)| {
                !identity.is_empty() && *identity == variable.identity && symbol.size == variable.range.len()
            });
            let namesake = variables(patch).any(|(_, symbol, _)| stem(&symbol.name) == stem(&variable.name));
            let (name, id) = (&variable.name, &ledger.id);
            match same {
                Some((symbol, ..)) if holds(all, variable) => {
                    if hands_out && !all.iter().any(|other| holds_it(other, variable) && other.hands_out.variables) {
                        let why = "keeps its address, which the older patch does not; revert that first";
                        return Err(refused(format_args!("variable {name} of patch {id}: this patch {why}")));
                    }
                    found.insert(symbol, variable.range.start);
                }
                None if !namesake => {}
                _ => {
                    let why = "nothing proves that this patch's variable of that name is the same; revert it first";
                    return Err(refused(format_args!("variable {name} of patch {id}: {why}")));
                }
            }
        }
    }
    Ok(found)
}

/// The patch in use, other than its owner, that uses variables in a payload.
pub(crate) fn user<'l>(owner: &Ledger, all: &'l [Ledger], is_in_use: impl Fn(&Ledger) -> bool) -> Option<&'l Ledger> {
    let others = all.iter().filter(|other| other.mapping != owner.mapping);
    others.into_iter().find(|other| uses(other, owner) && is_in_use(other))
}

/// Whether a patch uses variables in another one's payload.
pub(crate) fn uses(one: &Ledger, owner: &Ledger) -> bool {
    one.mapping != owner.mapping && one.named.iter().any(|variable| owner.mapping.covers(variable.range))
}

fn holds(all: &[Ledger], variable: &Variable) -> bool {
    all.iter().any(|ledger| holds_it(ledger, variable))
}

fn holds_it(ledger: &Ledger, variable: &Variable) -> bool {
    ledger.variables.covers(variable.range)
}

/// A static local's name without the compiler's number.
fn stem(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, number)) if !stem.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => stem,
        _ => name,
    }
}
