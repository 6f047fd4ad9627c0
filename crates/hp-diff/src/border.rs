//! Addresses where one thing ends and another begins.
//!
//! `&a[64]` and `&b[0]` may be one number. As long as both builds have both things, and the same, it does not matter which is
//! meant. Else what code does with the address says it, or the code that it hands it on to; where nothing says it, it is a doubt.

use rayon::prelude::*;

use crate::ahead;
use crate::arch::{Leaning, Site, Use};
use crate::build::Build;
use crate::entity::{FunctionId, ObjectId, is_of_start_files};
use crate::image::Word;
use crate::usage::range_of;

/// Calls that an address is followed through, one in another.
const DEPTH: usize = 4;
/// How far before its end the last element of an array begins, at most; in bytes.
const LAST: i64 = -16;

/// What is meant by an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// What begins there.
    Behind,
    /// What ends there.
    Before,
    Unknown,
}

/// The object with a symbol that ends at an address where something else may begin.
pub(crate) fn ending(build: &Build<'_>, address: u64) -> Option<ObjectId> {
    let may_end = |id: &ObjectId| {
        let object = &build.map.objects[*id];
        !object.is_runtime_record() && !is_of_start_files(object.name())
    };
    let ending = build.map.ending_at(address).filter(may_end);
    ending.filter(|_| build.map.markers_at(address).is_empty())
}

/// What `function` means by the address that its site makes, where one thing ends and another begins.
pub(crate) fn side(build: &Build<'_>, function: FunctionId, site: &Site) -> Side {
    let Some(range) = range_of(build, function, site).filter(|_| site.usage == Use::Address) else {
        return Side::Behind;
    };
    let touched = ahead::touched(build, function, std::slice::from_ref(site))[0];
    match touched.offset {
        Some(0..) => return Side::Behind,
        Some(_) => return Side::Before,
        None => {}
    }
    let made = range.address + u64::from(site.instruction);
    let leaning = build.followed.leaning(&build.map, function, made);
    // A pointer that a loop steps is compared with an end, any other one with an object.
    let is_limit = || build.followed.is_limit(&build.map, function, made);
    match leans(build, &leaning, DEPTH) {
        Side::Unknown if leaning.compared && !is_limit() => Side::Behind,
        // With an index below zero, what begins there is meant by chance as well as anything.
        Side::Unknown if leaning.indexed && leaning.negative => Side::Unknown,
        Side::Unknown if begins_text(build, site.target) || is_only_user(build, made, site.target) => Side::Behind,
        side => side,
    }
}

/// True if a text without a symbol begins there: hardly something else is meant by chance.
fn begins_text(build: &Build<'_>, address: u64) -> bool {
    let bytes = build.map.literal(&build.image, address);
    let printable = |b: &u8| matches!(b, 9..=13 | 32..=126);
    let letters =
        bytes.split_last().is_some_and(|(end, text)| *end == 0 && text.len() > 1 && text.iter().all(printable));
    letters && build.map.object_at(address).is_none()
}

/// True if nothing else in the image leads to what begins at an address than the instruction at `made`: a compiler leaves out
/// what nobody uses, so that is what this one means.
fn is_only_user(build: &Build<'_>, made: u64, address: u64) -> bool {
    let (map, image) = (&build.map, &build.image);
    let end = match map.object_at(address) {
        Some(object) if !map.objects[object].local => return false,
        Some(object) => map.objects[object].end(),
        None => map.literal_span(image, address).1,
    };
    let inside = address..end.max(address + 1);
    let in_words = image.words.values().any(|word| matches!(word, Word::Address(to) if inside.contains(to)));
    let other = |(id, code): (FunctionId, &crate::build::FunctionCode)| {
        let ranges = code.ranges.iter().zip(&map.functions[id].ranges);
        ranges.into_iter().any(|(code, range)| {
            let mut sites = code.sites.iter().filter(|site| inside.contains(&site.target));
            sites.any(|site| range.address + u64::from(site.instruction) != made)
        })
    };
    !in_words && !image.fixed_address && !build.code.par_iter().enumerate().any(other)
}

fn leans(build: &Build<'_>, leaning: &Leaning, depth: usize) -> Side {
    // Only an index that is made negative leads before an address. What is read shortly before it with one that is not would be the last
    // of an array and no other.
    let index =
        leaning.indexed && (leaning.least > 0 || !leaning.negative && (leaning.least == 0 || leaning.greatest >= LAST));
    let found = match (leaning.behind, leaning.before) {
        (true, true) => return Side::Unknown,
        (true, false) => Side::Behind,
        (false, true) => Side::Before,
        (false, false) if index => Side::Behind,
        (false, false) => Side::Unknown,
    };
    if found != Side::Unknown || depth == 0 {
        return found;
    }
    let mut called = leaning.calls.iter().filter_map(|(target, argument)| {
        let (callee, range, offset) = build.map.function_at(*target)?;
        ((range, offset) == (0, 0)).then_some((callee, *argument))
    });
    let known = called.find_map(|(callee, argument)| {
        let leaning = build.followed.leaning_of_argument(&build.map, callee, argument);
        Some(leans(build, &leaning, depth - 1)).filter(|side| *side != Side::Unknown)
    });
    known.unwrap_or(Side::Unknown)
}
