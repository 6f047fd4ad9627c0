//! What a value in a live object means, no tool can prove; but it can be searched for.
//!
//! A flag that moved to another bit, a state that got another number, or only a corrected bound: all show as a number
//! that a changed function stores into memory that outlives it, masks it with or compares it with, where the old
//! function did the same to the same offset with another number. Numbers that only one of the two has for a place
//! (a check that was added) are no finding.

use std::collections::{BTreeMap, BTreeSet};

use crate::arch::{self, Cell, Deed};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, ObjectId};
use crate::finding::{Code, Finding};

/// Places shown in one finding.
const SHOWN: usize = 6;

/// Memory, by what both builds agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Field(i64),
    /// An object of the old build, and the offset in it.
    Variable(ObjectId, u64),
}

type Numbers = BTreeMap<(Place, u8, Deed), BTreeMap<u64, u64>>;

/// One warning for each changed function in which such a number changed.
pub(crate) fn changed_numbers(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
) -> Vec<Finding> {
    let place_in_new = |cell| match cell {
        Cell::Field(offset) => Some(Place::Field(offset)),
        Cell::Fixed(address) => {
            let id = new.map.object_at(address)?;
            Some(Place::Variable(pairs.objects.old_of(id)?, address - new.map.objects[id].address))
        }
    };
    let place_in_old = |cell| match cell {
        Cell::Field(offset) => Some(Place::Field(offset)),
        Cell::Fixed(address) => {
            old.map.object_at(address).map(|id| Place::Variable(id, address - old.map.objects[id].address))
        }
    };
    let of_function = |&(f, g, _): &(FunctionId, FunctionId, _)| {
        let (before, now) = (numbers(old, f, place_in_old), numbers(new, g, place_in_new));
        let changed: Vec<String> =
            before.iter().filter_map(|(key, was)| describe(old, *key, was, now.get(key)?)).collect();
        let shown = changed.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
        let more = match changed.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let name = old.map.functions[f].qualified_name();
        (!changed.is_empty()).then(|| Finding::new(Code::NumberChanged, name, format!("{shown}{more}")))
    };
    changes.functions.iter().filter_map(of_function).collect()
}

/// The numbers of one function, each with the address of the first instruction that has it.
fn numbers(build: &Build<'_>, function: FunctionId, place: impl Fn(Cell) -> Option<Place>) -> Numbers {
    let mut all = Numbers::new();
    for range in &build.map.functions[function].ranges {
        for found in arch::memory_numbers(range.address, range.bytes) {
            if let Some(place) = place(found.cell) {
                let known = all.entry((place, found.width, found.deed)).or_default();
                known.entry(found.number).or_insert(range.address + u64::from(found.at));
            }
        }
    }
    all
}

/// Says in words what became of the numbers of one place; `None` where none took the place of another.
fn describe(
    old: &Build<'_>,
    (place, width, deed): (Place, u8, Deed),
    was: &BTreeMap<u64, u64>,
    now: &BTreeMap<u64, u64>,
) -> Option<String> {
    let gone: BTreeSet<u64> = was.keys().filter(|n| !now.contains_key(n)).copied().collect();
    let come: Vec<(u64, u64)> = now.iter().filter(|(n, _)| !was.contains_key(n)).map(|(n, at)| (*n, *at)).collect();
    let (first, _) = (come.first()?, gone.first()?);
    let hex = |numbers: Vec<u64>| numbers.iter().map(|n| format!("{n:#x}")).collect::<Vec<_>>().join(", ");
    let (come_numbers, gone_numbers) = (hex(come.iter().map(|c| c.0).collect()), hex(gone.into_iter().collect()));
    let what = match place {
        Place::Field(offset) => format!(
            "{} at offset {offset:#x} of an object",
            if width == 1 { "the byte".into() } else { format!("the {width} bytes") }
        ),
        Place::Variable(id, 0) => old.map.objects[id].name().to_owned(),
        Place::Variable(id, offset) => format!("{}+{offset:#x}", old.map.objects[id].name()),
    };
    let verb = match deed {
        Deed::Stores => format!("stores {come_numbers} into {what}"),
        Deed::Masks => format!("masks {what} with {come_numbers}"),
        Deed::Compares => format!("compares {what} with {come_numbers}"),
    };
    Some(format!("at {:#x} of the new build it {verb}, the old build with {gone_numbers}", first.1))
}
