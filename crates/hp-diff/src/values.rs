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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::ahead::is_rust;
use crate::arch::{self, Cell, Deed, Use};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, ObjectId, Target};
use crate::finding::{Code, Finding};
use crate::image::Word;
use crate::layout::Moved;
use crate::source::SourceMap;

/// Places shown in one finding.
const SHOWN: usize = 6;

/// Functions that are looked at because they may have been inlined into one.
const INLINED: usize = 64;

/// Memory, by what both builds agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Field(i64),
    /// An object of the old build, and the offset in it.
    Variable(ObjectId, u64),
}

type Numbers = BTreeMap<(Place, u8, Deed), BTreeMap<u64, u64>>;

/// Warnings for each changed function in which such a number or release changed.
///
/// What only came to lie elsewhere with a member of a type that is refused for it ([`Code::LayoutChanged`]) is not said again.
pub(crate) fn changed_values(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
    moved: &Moved,
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
    let search = [Search::new(old), Search::new(new)];
    let in_new = |numbers: &Numbers| elsewhere(numbers, moved.iter().copied());
    // Many functions have the same ones inlined.
    let of_callees: Vec<OnceLock<Vec<Place>>> = old.map.functions.iter().map(|_| OnceLock::new()).collect();
    let of_callee = |callee: FunctionId| {
        let places = || releases(old, &in_new(&numbers(old, callee, place_in_old))).into_keys().collect();
        of_callees[callee].get_or_init(places)
    };
    let of_function = |&(f, g, _): &(FunctionId, FunctionId, _)| {
        let name = old.map.functions[f].qualified_name();
        let (before, now) = (numbers(old, f, place_in_old), numbers(new, g, place_in_new));
        let (known, kept) = (in_new(&before), elsewhere(&now, moved.iter().map(|&(was, is)| (is, was))));
        let plain = before.iter().filter(|(key, _)| key.2 != Deed::Passes);
        let changed = plain.filter_map(|(key, was)| {
            let (come, gone) = (without(now.get(key)?, known.get(key)), without(was, kept.get(key)));
            describe(old, *key, &gone, &come)
        });
        let changed: Vec<Seen> = changed.collect();
        let (was, is) = (releases(old, &known), releases(new, &now));
        let mut was: BTreeSet<Place> = was.into_keys().collect();
        // In Rust the type says who releases, and types are compared: only where that is done moves from function to function.
        let rust = is_rust(old, f) && is_rust(new, g);
        let is = if rust { BTreeMap::new() } else { is };
        if is.keys().any(|place| !was.contains(place)) {
            for callee in inlined(&search, pairs, (f, g)) {
                was.extend(of_callee(callee));
            }
        }
        let released = is.into_iter().filter(|(place, _)| !was.contains(place));
        let released: Vec<Seen> = released
            .map(|(place, (callee, at))| Seen {
                at,
                what: format!("{callee} gets what {} leads to", shown(old, place, 8)),
            })
            .collect();
        let both = [(Code::NumberChanged, changed), (Code::ReleaseAdded, released)];
        both.into_iter().filter(|(_, seen)| !seen.is_empty()).map(move |(code, seen)| (name.clone(), code, seen))
    };
    let found: Vec<(String, Code, Vec<Seen>)> = changes.functions.par_iter().flat_map_iter(of_function).collect();
    let places = found.iter().flat_map(|(.., seen)| seen.iter().take(SHOWN)).map(|seen| seen.at..seen.at + 1);
    let source = SourceMap::lines(&new.image.debug, places.collect());
    found.into_iter().map(|(name, code, seen)| Finding::new(code, name, few(&seen, &source))).collect()
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

/// Functions that old `f` calls and its new version does not, with all that they call: what they release is released in the
/// new version too, if that is because they are inlined there.
fn inlined(
    [old, new]: &[Search<'_, '_>; 2],
    pairs: &Correlation,
    (f, g): (FunctionId, FunctionId),
) -> BTreeSet<FunctionId> {
    let kept: BTreeSet<FunctionId> = new.callees(g).iter().filter_map(|id| pairs.functions.old_of(*id)).collect();
    let mut open: Vec<FunctionId> = old.callees(f).iter().copied().filter(|id| !kept.contains(id)).collect();
    let mut found: BTreeSet<FunctionId> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        let next = old.callees(id).iter().copied().filter(|id| found.len() < INLINED && found.insert(*id));
        open.extend(next.collect::<Vec<_>>());
    }
    found
}

/// Who calls whom in one build, as far as somebody asked.
struct Search<'s, 'a> {
    build: &'s Build<'a>,
    /// The first function of each name.
    names: OnceLock<FxHashMap<&'s str, FunctionId>>,
    callees: Vec<OnceLock<Vec<FunctionId>>>,
}

impl<'s, 'a> Search<'s, 'a> {
    fn new(build: &'s Build<'a>) -> Self {
        let callees = build.map.functions.iter().map(|_| OnceLock::new()).collect();
        Search { build, names: OnceLock::new(), callees }
    }

    /// The functions of the build that one calls or jumps to, ordered.
    fn callees(&self, function: FunctionId) -> &[FunctionId] {
        self.callees[function].get_or_init(|| {
            let build = self.build;
            let sites = build.code[function].ranges.iter().flat_map(|code| code.sites.leaving());
            let branches = sites.filter(|site| site.usage == Use::Branch);
            let called = branches.filter_map(|site| match build.map.resolve(&build.image, &site) {
                Target::Function(id, 0, 0) if id != function => Some(id),
                // A library may call its own functions through a stub.
                Target::Stub(Word::Symbol(name, 0)) => self.names().get(name.as_str()).copied(),
                _ => None,
            });
            called.collect::<BTreeSet<FunctionId>>().into_iter().collect()
        })
    }

    fn names(&self) -> &FxHashMap<&'s str, FunctionId> {
        self.names.get_or_init(|| {
            let functions = self.build.map.functions.iter().enumerate().rev();
            functions.flat_map(|(id, function)| function.names.iter().map(move |name| (*name, id))).collect()
        })
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

/// From which places a function hands something to a function that releases it: that one's name, and the address of the call.
fn releases<'b>(build: &'b Build<'_>, numbers: &Numbers) -> BTreeMap<Place, (&'b str, u64)> {
    let passes = numbers.iter().filter(|((_, _, deed), _)| *deed == Deed::Passes);
    let calls = passes.flat_map(|((place, ..), callees)| callees.iter().map(|(callee, at)| (*place, *callee, *at)));
    let named = calls.filter_map(|(place, callee, at)| {
        let name = match build.map.resolve_address(&build.image, callee, Use::Branch) {
            Target::Function(id, 0, 0) => build.map.functions[id].names[0],
            Target::Stub(Word::Symbol(name, _)) | Target::Slot(Word::Symbol(name, _)) => name,
            _ => return None,
        };
        is_release(name).then_some((place, (name, at)))
    });
    named.collect()
}

/// Names that say that what they get is gone afterwards; `_Zd` begins C++'s `operator delete`.
fn is_release(name: &str) -> bool {
    const WORDS: [&str; 9] = ["free", "release", "destroy", "delete", "unref", "dispose", "close", "munmap", "cleanup"];
    let lower = name.to_ascii_lowercase();
    lower.starts_with("_zd") || WORDS.iter().any(|word| lower.contains(word))
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
        Deed::Passes => return None,
    };
    Some(Seen { at: *first, what: format!("it {verb}, the old build with {gone_numbers}") })
}
