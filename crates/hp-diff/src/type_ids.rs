//! Did the identities of Rust's types change?
//!
//! `core::any::TypeId` is a number that rustc makes of a type and of the crate that has it, and a crate gets another
//! number with another version, other features, other dependencies or another compiler. A running program keeps such numbers: in maps by
//! type, and in what `Any::type_id` of the old build answers for values of it. New code with new numbers finds none of that.
//!
//! A build shows them in the functions that answer with one: `type_id` of `Any`, of `Error`, and of traits that do alike.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::arch::Use;
use crate::build::Build;
use crate::entity::FunctionId;
use crate::finding::{Code, Finding};
use crate::names::readable;
use crate::rust;

/// Such a function only loads a number of 16 bytes; one with more code does something else too.
const SHORT: u64 = 64;

/// A function's code without where it leads, and the constants that it reads.
type Answer = (Vec<u8>, Vec<u8>);

/// One finding if functions that answer with a type's identity do so with other numbers than before.
pub(crate) fn changed(old: &Build<'_>, new: &Build<'_>) -> Option<Finding> {
    let (before, now) = (answers(old), answers(new));
    let other = |(name, was): &(&Cow<'_, str>, &BTreeSet<Answer>)| {
        now.get(*name).is_some_and(|is| was.difference(is).next().is_some() && is.difference(was).next().is_some())
    };
    let names: BTreeSet<String> = before.iter().filter(other).map(|(name, _)| shown(name)).collect();
    let first = names.first()?;
    let more = match names.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let message = format!("{first}{more} answers with another core::any::TypeId than in the old build");
    Some(Finding::new(Code::TypeIdChanged, first, message))
}

/// The name as people write it; a legacy one has lost its hash, and ends in front of it.
fn shown(quiet: &str) -> String {
    if quiet.starts_with("_R") { readable(quiet) } else { readable(&format!("{quiet}E")) }
}

/// What each function of such a name answers with.
fn answers<'b>(build: &'b Build<'_>) -> BTreeMap<Cow<'b, str>, BTreeSet<Answer>> {
    let mut all: BTreeMap<Cow<'_, str>, BTreeSet<Answer>> = BTreeMap::new();
    for (id, function) in build.map.functions.iter().enumerate() {
        let [range] = &function.ranges[..] else { continue };
        if range.bytes.len() as u64 > SHORT || !function.name().contains("type_id") {
            continue;
        }
        if let Some(name) = rust::quiet_name(function.name()) {
            all.entry(name).or_default().insert(answer(build, id));
        }
    }
    all
}

fn answer(build: &Build<'_>, id: FunctionId) -> Answer {
    let (range, code) = (&build.map.functions[id].ranges[0], &build.code[id].ranges[0]);
    let (mut bytes, mut constants) = (range.bytes.to_vec(), Vec::new());
    for site in &code.sites {
        let field = site.offset as usize..site.offset as usize + usize::from(site.width);
        bytes.get_mut(field).into_iter().flatten().for_each(|byte| *byte = 0);
        if let Use::Access(size) = site.usage {
            constants.extend_from_slice(build.image.bytes(site.target, u64::from(size)).unwrap_or_default());
        }
    }
    (bytes, constants)
}
