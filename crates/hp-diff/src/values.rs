//! What a value in a live object means, no tool can prove; but it can be searched for.
//!
//! A flag that moved to another bit, a state that got another number, or only a corrected bound: all show as a number
//! that a changed function stores into memory that outlives it, masks it with or compares it with, where the old
//! function did the same to the same offset with another number. Numbers that only one of the two has for a place
//! (a check that was added) are no finding.
//!
//! Likewise who owns what a pointer leads to: new code that releases what the old code left alone may find objects that
//! the old code made, where two pointers lead to one thing. So calls are searched that release what a function read
//! from lasting memory, where the old function, and what it called that the new one does not call, releases nothing from that place.

mod additions;
mod callees;
mod releases;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rayon::prelude::*;

use self::additions::only_releases;
use self::callees::{Search, inlined};
use self::releases::{Both, Release, added, releases};
use crate::ahead::is_rust;
use crate::arch::{self, Cell, Deed};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, ObjectId};
use crate::finding::{Code, Finding, Level};
use crate::layout::Moved;
use crate::source::SourceMap;

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

/// Two builds, and what is the same in both.
struct Sides<'s, 'a> {
    old: &'s Build<'a>,
    new: &'s Build<'a>,
    pairs: &'s Correlation,
}

impl Sides<'_, '_> {
    fn in_old(&self, cell: Cell) -> Option<Place> {
        match cell {
            Cell::Field(offset) => Some(Place::Field(offset)),
            Cell::Fixed(address) => {
                let id = self.old.map.object_at(address)?;
                Some(Place::Variable(id, address - self.old.map.objects[id].address))
            }
        }
    }

    fn in_new(&self, cell: Cell) -> Option<Place> {
        match cell {
            Cell::Field(offset) => Some(Place::Field(offset)),
            Cell::Fixed(address) => {
                let id = self.new.map.object_at(address)?;
                Some(Place::Variable(self.pairs.objects.old_of(id)?, address - self.new.map.objects[id].address))
            }
        }
    }
}

/// Warnings and errors for each changed function in which such a number or release changed.
///
/// What only came to lie elsewhere with a member of a type that is refused for it ([`Code::LayoutChanged`]) is not said again.
pub(crate) fn changed_values(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
    moved: &Moved,
) -> Vec<Finding> {
    let sides = Sides { old, new, pairs };
    let search = [Search::new(old), Search::new(new)];
    let as_new = |numbers: &Numbers| elsewhere(numbers, moved.iter().copied());
    // Many functions have the same ones inlined.
    let of_callees: Vec<OnceLock<Vec<Release<'_>>>> = old.map.functions.iter().map(|_| OnceLock::new()).collect();
    let of_callee = |callee: FunctionId| {
        let read = || releases(old, &as_new(&numbers(old, callee, |cell| sides.in_old(cell))));
        of_callees[callee].get_or_init(read)
    };
    let of_function = |&(f, g, _): &(FunctionId, FunctionId, _)| {
        let (before, now) = (numbers(old, f, |cell| sides.in_old(cell)), numbers(new, g, |cell| sides.in_new(cell)));
        let (known, kept) = (as_new(&before), elsewhere(&now, moved.iter().map(|&(was, is)| (is, was))));
        let plain = before.iter().filter(|(key, _)| !matches!(key.2, Deed::Passes(_)));
        let changed = plain.filter_map(|(key, was)| {
            let (come, gone) = (without(now.get(key)?, known.get(key)), without(was, kept.get(key)));
            describe(old, *key, &gone, &come)
        });
        let changed: Vec<Seen> = changed.collect();
        // In Rust the type says who releases, and types are compared: only where that is done moves from function to function.
        let rust = is_rust(old, f) && is_rust(new, g);
        let mut was = releases(old, &known);
        let is = if rust { Vec::new() } else { releases(new, &now) };
        if is.iter().any(|release| was.iter().all(|other| other.place != release.place)) {
            for callee in inlined(&search, pairs, (f, g)) {
                was.extend(of_callee(callee).iter().cloned());
            }
        }
        (changed, (was, is))
    };
    let found: Vec<(Vec<Seen>, Both<'_>)> = changes.functions.par_iter().map(of_function).collect();
    let (changed, released): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let released = added(new, released);
    let mends = released.iter().any(|all| !all.is_empty()) && moved.is_empty();
    let mends = mends && only_releases(&sides, changes, &released);
    let functions = changes.functions.iter().map(|(f, ..)| old.map.functions[*f].qualified_name());
    let said = |release: &Release<'_>| Seen {
        at: release.at,
        what: format!("{} gets what {} leads to", release.callee, shown(old, release.place, 8)),
    };
    let of_each = functions.zip(changed).zip(released).flat_map(|((name, changed), released)| {
        let released: Vec<Seen> = released.iter().map(said).collect();
        [(name.clone(), Code::NumberChanged, changed), (name, Code::ReleaseAdded, released)]
    });
    let found: Vec<(String, Code, Vec<Seen>)> = of_each.filter(|(.., seen)| !seen.is_empty()).collect();
    let places = found.iter().flat_map(|(.., seen)| seen.iter().take(SHOWN)).map(|seen| seen.at..seen.at + 1);
    let source = SourceMap::lines(&new.image.debug, places.collect());
    let said = |(name, code, seen): (String, Code, Vec<Seen>)| match code {
        Code::ReleaseAdded if mends => {
            let message = format!("{}; the change does nothing else, so it mends a leak", few(&seen, &source));
            Finding { level: Level::Note, ..Finding::new(code, name, message) }
        }
        _ => Finding::new(code, name, few(&seen, &source)),
    };
    found.into_iter().map(said).collect()
}

/// What an instruction of the new build does.
struct Seen {
    at: u64,
    what: String,
}

impl Seen {
    fn shown(&self, source: &SourceMap) -> String {
        let Seen { at, what } = self;
        match source.place(*at) {
            Some(place) => format!("at {at:#x} of the new build ({place}) {what}"),
            None => format!("at {at:#x} of the new build {what}"),
        }
    }
}

/// The first few of them in one line.
fn few(all: &[Seen], source: &SourceMap) -> String {
    let shown = all.iter().take(SHOWN).map(|seen| seen.shown(source)).collect::<Vec<_>>().join("; ");
    match all.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// A place, in words.
fn shown(old: &Build<'_>, place: Place, width: u8) -> String {
    match place {
        Place::Field(offset) => {
            let (sign, offset) = (if offset < 0 { "-" } else { "" }, offset.unsigned_abs());
            let bytes = if width == 1 { "byte".to_owned() } else { format!("{width} bytes") };
            format!("the {bytes} at offset {sign}{offset:#x} of an object")
        }
        Place::Variable(id, 0) => old.map.objects[id].name().to_owned(),
        Place::Variable(id, offset) => format!("{}+{offset:#x}", old.map.objects[id].name()),
    }
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

/// Numbers of places of one build, at the same places and where members of types went that moved.
fn elsewhere(numbers: &Numbers, moved: impl Iterator<Item = (i64, i64)> + Clone) -> Numbers {
    let mut all = numbers.clone();
    for ((place, width, deed), known) in numbers {
        let Place::Field(offset) = *place else { continue };
        for (_, there) in moved.clone().filter(|(here, _)| *here == offset) {
            all.entry((Place::Field(there), *width, *deed)).or_default().extend(known);
        }
    }
    all
}

/// The numbers that the other build does not have.
fn without(numbers: &BTreeMap<u64, u64>, other: Option<&BTreeMap<u64, u64>>) -> BTreeMap<u64, u64> {
    let mut rest = numbers.clone();
    rest.retain(|number, _| other.is_none_or(|other| !other.contains_key(number)));
    rest
}

/// Says in words what became of the numbers of one place; `None` where none took the place of another.
fn describe(
    old: &Build<'_>,
    (place, width, deed): (Place, u8, Deed),
    gone: &BTreeMap<u64, u64>,
    come: &BTreeMap<u64, u64>,
) -> Option<Seen> {
    let ((_, first), _) = (come.first_key_value()?, gone.first_key_value()?);
    let hex = |numbers: &BTreeMap<u64, u64>| numbers.keys().map(|n| format!("{n:#x}")).collect::<Vec<_>>().join(", ");
    let (come_numbers, gone_numbers) = (hex(come), hex(gone));
    let what = shown(old, place, width);
    let verb = match deed {
        Deed::Stores => format!("stores {come_numbers} into {what}"),
        Deed::Masks => format!("masks {what} with {come_numbers}"),
        Deed::Compares => format!("compares {what} with {come_numbers}"),
        Deed::Passes(_) => return None,
    };
    Some(Seen { at: *first, what: format!("it {verb}, the old build with {gone_numbers}") })
}
