//! Changes that are a line number only: `__LINE__` in an assertion or a log call moves with the text above it, and so do
//! the functions that contain it. In Rust it is the `Location` that a panic is given.
//!
//! A number alone never tells: a corrected bound may be near a line, and move like one. So each differing number needs
//! all of this, in both builds:
//! - whatever way the code takes from it, it is an argument of calls of one function or forgotten, and everything else
//!   in the function is equal;
//! - the line table (DWARF 5, section 6.2) has the instruction at that line or at most [`REACH`] lines before (a macro's
//!   line is where its call ends), or so has the call of the inlined function that it belongs to (`fprintf` of a fortified
//!   C library), and number and line moved by the same amount;
//! - the call takes lines: it is given the name of the source file too, as assertions and logs are, or a format that prints
//!   a line; or *every* call of the same function that gives it a constant there gives it its line, in at least [`ENOUGH`] places.
//!
//! A `core::panic::Location` is a constant of text, length, line and column, the text being the name of a Rust source file
//! of just that length. Two that differ in line and column only are the same if the line table has, in the functions
//! that refer to them, that line of that file.
//!
//! Numbers that are stored to memory other than arguments on the stack are never taken for lines.

use std::ops::Range;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::arch::{self, CallArgument, Site, Use};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, ObjectId};
use crate::image::Word;
use crate::judge::{Judge, Verdict};
use crate::source::{Place, SourceMap};

/// Lines over which one call may stretch.
const REACH: u64 = 40;
/// Calls with different lines that show what a parameter means.
const ENOUGH: usize = 3;
/// Size of a `Location`: text, length, line, column.
const LOCATION: u64 = 24;

/// A changed function that differs in arguments and locations only.
struct Candidate {
    pair: (FunctionId, FunctionId),
    arguments: Vec<[Argument; 2]>,
    locations: Vec<[Location; 2]>,
}

/// A number that a call is given, in one build.
struct Argument {
    call: CallArgument,
    /// What the call is given that may be the name of a source file: address and length.
    texts: Vec<(u64, u64)>,
    /// The call is given a format that prints a line: `"%s at line %d"`, `"os_unix.c:%d: ..."`.
    printed: bool,
}

impl Argument {
    /// True if the call may be given the name of a source file too, or a format that prints a line.
    fn is_named(&self) -> bool {
        self.printed || !self.texts.is_empty()
    }
}

/// A panic's place, in one build.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Location {
    /// Address and length of the file's name.
    text: (u64, u64),
    line: u32,
}

/// The old functions among the changed ones that differ in line numbers only. `descriptors` are the old objects that do.
pub(crate) fn line_only(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
    descriptors: &FxHashSet<ObjectId>,
) -> FxHashSet<FunctionId> {
    let others: FxHashSet<ObjectId> = changes.constants.difference(descriptors).copied().collect();
    let judge = Judge::new(old, new, pairs).with_changed_constants(others);
    let mut candidates: Vec<Candidate> =
        changes.functions.iter().filter_map(|(f, g, _)| candidate(&judge, (*f, *g))).collect();
    // Where nothing is left, descriptors are all that differs.
    candidates.retain(|c| !descriptors.is_empty() || !c.arguments.is_empty() || !c.locations.is_empty());
    if candidates.is_empty() {
        return FxHashSet::default();
    }
    let panics = candidates.iter().any(|c| !c.locations.is_empty());
    let all: Vec<&Candidate> = candidates.iter().collect();
    let mut proven = Evidence::new(old, new, &all, panics).proven(&all);
    // A call of a function that was inlined has its line where that one was called; few need that, and it takes time to read.
    let rest: Vec<&Candidate> = candidates.iter().filter(|c| !proven.contains(&c.pair.0)).collect();
    if !panics && !rest.is_empty() {
        proven.extend(Evidence::new(old, new, &rest, true).proven(&rest));
    }
    proven
}

/// What is known of both builds.
struct Evidence<'s, 'a> {
    before: Side<'s, 'a>,
    now: Side<'s, 'a>,
}

impl<'s, 'a> Evidence<'s, 'a> {
    fn new(old: &'s Build<'a>, new: &'s Build<'a>, candidates: &[&Candidate], inlined: bool) -> Evidence<'s, 'a> {
        let side = |n: usize, build| {
            let functions = candidates.iter().map(|c| if n == 0 { c.pair.0 } else { c.pair.1 });
            Side::new(build, functions, inlined, candidates.iter().flat_map(|c| c.arguments.iter().map(|a| &a[n])))
        };
        Evidence { before: side(0, old), now: side(1, new) }
    }

    /// The old functions of which all that differs is a line.
    fn proven(&self, candidates: &[&Candidate]) -> FxHashSet<FunctionId> {
        let is_place = |pair: (FunctionId, FunctionId), [a, b]: &[Location; 2]| {
            self.before.has_line(pair.0, a) && self.now.has_line(pair.1, b)
        };
        let proven = candidates.iter().filter(|c| {
            c.arguments.iter().all(|a| self.is_line(&c.arguments, a))
                && c.locations.iter().all(|pair| is_place(c.pair, pair))
        });
        proven.map(|c| c.pair.0).collect()
    }

    fn is_line(&self, all: &[[Argument; 2]], [a, b]: &[Argument; 2]) -> bool {
        let (places, places_now) = (self.before.sources.places(a.call.at), self.now.sources.places(b.call.at));
        let (m, n) = (u64::from(a.call.value), u64::from(b.call.value));
        let moved_alike = |x: u64, y: u64| (x..=x + REACH).contains(&m) && m - x == n.wrapping_sub(y);
        // Of two numbers beside the file's name only one is the line, and which one is not known.
        let beside = |other: &[Argument; 2]| {
            let apart = !a.call.is_in_place_of(&other[0].call);
            apart && (a.call.beside(other[0].call.at) || other[0].call.way.contains(&a.call.at))
        };
        let alone = !all.iter().any(|other| other[0].call.at != a.call.at && beside(other));
        let takes_lines = || self.before.takes_lines(a) && self.now.takes_lines(b);
        places.len() == places_now.len()
            && places.iter().zip(&places_now).any(|(x, y)| {
                let named = || self.before.names_file(a, x) && self.now.names_file(b, y);
                let named = || alone && (a.printed && b.printed || named());
                moved_alike(x.line.into(), y.line.into()) && (named() || takes_lines())
            })
    }
}

fn candidate(judge: &Judge<'_, '_>, pair: (FunctionId, FunctionId)) -> Option<Candidate> {
    let (old, new) = judge.builds();
    let (f, g) = (&old.map.functions[pair.0], &new.map.functions[pair.1]);
    if f.ranges.len() != g.ranges.len() {
        return None;
    }
    let mut found = Candidate { pair, arguments: Vec::new(), locations: Vec::new() };
    let mut differing = Vec::new();
    let codes = old.code[pair.0].ranges.iter().zip(&new.code[pair.1].ranges);
    for ((a, b), (x, y)) in f.ranges.iter().zip(&g.ranges).zip(codes) {
        if x.invalid.is_some() || x.sites.len() != y.sites.len() {
            return None;
        }
        for (s, t) in x.sites.iter().zip(&y.sites) {
            if (s.offset, s.end, s.width, s.encoding, s.usage) != (t.offset, t.end, t.width, t.encoding, t.usage) {
                return None;
            }
            if judge.sites(pair, &s, &t) != Verdict::Same {
                found.locations.push(locations(judge, &s, &t)?);
            }
        }
        let is_site = |at: usize| x.sites.at(at).is_some();
        let places = arch::differing_arguments(a.bytes, b.bytes, is_site)?.into_iter().map(|d| u64::from(d.offset));
        differing.extend(places.map(|at| [a.address + at, b.address + at]));
    }
    found.arguments = arguments(judge.builds(), pair, &differing)?;
    judge.landing_difference(pair).is_none().then_some(found)
}

/// The numbers that the instructions at these addresses hand to calls, if all of them do nothing else.
fn arguments(
    (old, new): (&Build<'_>, &Build<'_>),
    pair: (FunctionId, FunctionId),
    addresses: &[[u64; 2]],
) -> Option<Vec<[Argument; 2]>> {
    if addresses.is_empty() {
        return Some(Vec::new());
    }
    let (before, now) = (call_arguments(old, pair.0), call_arguments(new, pair.1));
    let kept = |build: &Build<'_>, id: FunctionId| {
        arch::kept_addresses(build.map.functions[id].ranges.iter().map(|r| (r.address, r.bytes)))
    };
    let kept = [kept(old, pair.0), kept(new, pair.1)];
    let one = |n: usize, at: u64| {
        let (build, function, all) = if n == 0 { (old, pair.0, &before) } else { (new, pair.1, &now) };
        let mut given = all.iter().filter(|c| c.at == at && takes(build, c));
        let (Some(call), None) = (given.next(), given.next()) else { return None };
        let texts = texts(build, function, &kept[n], call);
        let is_file = |text: &&(u64, u64)| build.image.bytes(text.0, text.1).is_some_and(is_file_name);
        let prints = |text: &(u64, u64)| build.image.bytes(text.0, text.1).is_some_and(prints_line);
        let printed = texts.iter().any(prints);
        let texts = texts.iter().filter(is_file).copied().collect();
        Some(Argument { texts, printed, call: call.clone() }).filter(|a| a.call.sure)
    };
    addresses.iter().map(|[a, b]| Some([one(0, *a)?, one(1, *b)?])).collect()
}

/// False if a call only runs while the number is in its place, and takes no argument there: elsewhere it is made with what another
/// call has left in that register.
fn takes(build: &Build<'_>, call: &CallArgument) -> bool {
    if call.others.is_empty() || !call.place.is_gpr64() {
        return true;
    }
    let without = |(code, function): (&crate::build::FunctionCode, &crate::entity::Function<'_>)| {
        code.ranges.iter().any(|c| c.sites.targets().any(|target| target == call.target))
            && arch::calls_without(function.ranges.iter().map(|r| (r.address, r.bytes)), call.place)
                .contains(&call.target)
    };
    !build.code.iter().zip(&build.map.functions).any(without)
}

/// The constants that a function's calls are given.
fn call_arguments(build: &Build<'_>, function: FunctionId) -> Vec<CallArgument> {
    arch::call_arguments(build.map.functions[function].ranges.iter().map(|r| (r.address, r.bytes)))
}

/// The texts among a call's arguments: address and length.
fn texts(build: &Build<'_>, function: FunctionId, kept: &[(u64, u64)], call: &CallArgument) -> Vec<(u64, u64)> {
    let ranges = build.map.functions[function].ranges.iter().zip(&build.code[function].ranges);
    let beside = ranges.flat_map(|(range, code)| {
        code.sites.iter().filter(|s| s.usage == Use::Address).filter(|s| {
            let at = range.address + u64::from(s.instruction);
            call.beside(at) || kept.iter().any(|(made, copy)| *made == at && call.beside(*copy))
        })
    });
    let text = |s: Site| {
        let length = build.image.bytes_from(s.target).iter().position(|b| *b == 0)?;
        build.image.is_constant(s.target).then_some((s.target, length as u64))
    };
    beside.filter_map(text).collect()
}

/// True for a text that may be the name of a source file.
pub(crate) fn is_file_name(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let suffix = text.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map_or(0, |(_, suffix)| suffix.len());
    (1..=4).contains(&suffix) && !text.contains(' ')
}

/// True for a format that prints a number as a line of a source file.
fn prints_line(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let file = |before: &str| before.rsplit([' ', '(', '[']).next().is_some_and(|name| is_file_name(name.as_bytes()));
    let number = |format: &str| format.starts_with("%d") || format.starts_with("%u") || format.starts_with("%i");
    let named = text.match_indices(":%").any(|(at, _)| number(&text[at + 1..]) && file(&text[..at]));
    let lower = text.to_ascii_lowercase();
    named || lower.match_indices("line %").any(|(at, _)| number(&lower[at + 5..]))
}

/// Two sites that lead to locations which differ in line and column only.
fn locations(judge: &Judge<'_, '_>, s: &Site, t: &Site) -> Option<[Location; 2]> {
    let (old, new) = judge.builds();
    let (x, y) = (location(old, s)?, location(new, t)?);
    let text = |build: &Build<'_>, l: &Location| build.image.bytes(l.text.0, l.text.1).map(<[u8]>::to_vec);
    (text(old, &x) == text(new, &y)).then_some([x, y])
}

/// True if a site leads to what has the form of a `Location`.
pub(crate) fn is_location(build: &Build<'_>, site: &Site) -> bool {
    location(build, site).is_some()
}

/// The location that a site leads to.
fn location(build: &Build<'_>, site: &Site) -> Option<Location> {
    let image = &build.image;
    if site.usage != Use::Address || !image.is_constant(site.target) {
        return None;
    }
    let start = match image.words.range(site.target..site.target + LOCATION).collect::<Vec<_>>().as_slice() {
        [(at, Word::Address(text))] if **at == site.target => *text,
        [] if image.fixed_address => image.u64_at(site.target)?,
        _ => return None,
    };
    let length = image.u64_at(site.target + 8)?;
    let numbers = image.u64_at(site.target + 16)?;
    let (line, column) = (numbers as u32, (numbers >> 32) as u32);
    let text = std::str::from_utf8(image.bytes(start, length)?).ok()?;
    (text.ends_with(".rs") && line > 0 && column > 0).then_some(Location { text: (start, length), line })
}

/// What is known of one build: lines, and the constants that some functions are called with.
struct Side<'s, 'a> {
    build: &'s Build<'a>,
    sources: SourceMap,
    /// By target and place of the argument: address of the instruction, number.
    calls: FxHashMap<(u64, u32, u64), Vec<(u64, u32)>>,
}

impl<'s, 'a> Side<'s, 'a> {
    fn new<'c>(
        build: &'s Build<'a>,
        functions: impl Iterator<Item = FunctionId>,
        inlined: bool,
        arguments: impl Iterator<Item = &'c Argument>,
    ) -> Side<'s, 'a> {
        let targets: FxHashSet<u64> = arguments.filter(|a| !a.is_named()).map(|a| a.call.target).collect();
        let near =
            targets.iter().min().map_or(0..=0, |first| *first..=targets.iter().max().map_or(*first, |last| *last));
        let mut wanted: FxHashSet<FunctionId> = functions.collect();
        let mut calls: FxHashMap<_, Vec<(u64, u32)>> = FxHashMap::default();
        for (id, code) in build.code.iter().enumerate() {
            // Nearly everything leads to neither of the few.
            let calling = |c: &arch::Code| c.sites.targets().any(|t| near.contains(&t) && targets.contains(&t));
            if targets.is_empty() || !code.ranges.iter().any(calling) {
                continue;
            }
            wanted.insert(id);
            for call in call_arguments(build, id).into_iter().filter(|c| targets.contains(&c.target)) {
                calls.entry(key(&call)).or_default().push((call.at, call.value));
            }
        }
        let ranges: Vec<Range<u64>> =
            wanted.iter().flat_map(|f| build.map.functions[*f].ranges.iter().map(|r| r.address..r.end())).collect();
        let read = if inlined { SourceMap::read } else { SourceMap::lines };
        Side { build, sources: read(&build.image.debug, ranges), calls }
    }

    /// True if the call is given the name of the file that it comes from.
    fn names_file(&self, argument: &Argument, place: &Place) -> bool {
        let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let file = base(&place.file);
        argument.texts.iter().any(|&(at, length)| {
            let text = self.build.image.bytes(at, length).and_then(|t| std::str::from_utf8(t).ok());
            text.map(base).as_deref() == Some(file.as_str())
        })
    }

    /// True if every call of the same function that has a constant there has its line there.
    fn takes_lines(&self, argument: &Argument) -> bool {
        let Some(calls) = self.calls.get(&key(&argument.call)) else { return false };
        // Some hand on the negative line, to say that it is another kind of place.
        let is_line = |(at, value): &(u64, u32)| {
            let value = u64::from(value.cast_signed().unsigned_abs());
            let line = |place: &Place| (u64::from(place.line)..=u64::from(place.line) + REACH).contains(&value);
            self.sources.places(*at).iter().any(line)
        };
        let different: FxHashSet<u32> = calls.iter().map(|c| c.1).collect();
        different.len() >= ENOUGH && calls.iter().all(is_line)
    }

    /// True if the line table has the location's line, of its file, in the function.
    fn has_line(&self, function: FunctionId, location: &Location) -> bool {
        let Some(text) = self.build.image.bytes(location.text.0, location.text.1) else { return false };
        let Ok(file) = std::str::from_utf8(text) else { return false };
        let ranges = self.build.map.functions[function].ranges.iter();
        ranges.into_iter().any(|r| self.sources.has(r.address..r.end(), file, location.line))
    }
}

/// What tells the parameters of functions apart.
fn key(call: &CallArgument) -> (u64, u32, u64) {
    (call.target, call.place as u32, call.slot)
}
