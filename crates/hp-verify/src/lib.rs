//! An independent judge: is the old build, with the patch in it, the new build?
//!
//! `hp-diff` makes patches; this crate does not believe it. It is written against `docs/FORMAT.md` and the ELF, DWARF and
//! instruction set manuals alone, and shares no code with `hp-diff`, so that a mistake has to be made twice to go
//! unnoticed. It takes two builds and a [`Patch`], and gives a [`Report`]: what it proved, in numbers, and every
//! [`Fault`]. What it cannot prove is a fault, too.
//!
//! # What it proves
//! 1. The patch is laid over the old image at several load addresses and relocated. Each field is read as the processor
//!    reads it, and means the same place in every layout of memory.
//! 2. From the replaced functions on, every function that the patch brings is walked beside its twin in the new build,
//!    instruction by instruction: the same bytes, but for fields that lead somewhere; and each of these reaches the same
//!    entity. Of functions of Rust that occur several times, any does that has the same code and leads to the same. Functions and
//!    variables are the same by name (in the file, for local ones), by the owner that debug
//!    information gives a static local, or by the unanimous references of all functions that are otherwise
//!    equal; imports, slots and stubs by the symbol and version behind them; texts, numbers, tables and other constants
//!    by content, each entry of a jump table and each pointer followed. Only where the new build has the address of a thing
//!    of a library in an instruction, which it copies or has a stub for, other instructions may be in its place: those
//!    that do the same by a slot.
//! 3. Data that the patch brings is equal to the new build's. A variable that the base has is never brought a second
//!    time; an address of a function that the base has is never one of the patch.
//! 4. Each record is true of the old file (address, size, digest, parts, the bytes under the jump), nothing of the base
//!    leads under a jump, and each thunk tests the state byte, goes to the right new function, repeats
//!    the right instructions and goes on at the right place.
//! 5. Unwind rows of new code mean what the new build's mean, those of a thunk what the base's mean at the
//!    instructions that it repeats; and there are no others.
//! 6. With [`Scope::Whole`]: every function of the base that is not replaced is the same in the new build, or is
//!    listed in the manifest as left out for a reason that holds.
//!
//! # What it does not prove
//! - That a running process may change over: layouts of types, initial values of variables that exist, and threads
//!   inside of functions are the business of `hp-diff` and `hp-apply`.
//! - Where a constant without a symbol ends. It is taken to reach to the next place that anything refers to; a text at
//!   least to its terminator.
//! - Which of two arrays an address in data means that lie end to start: it is taken for the start of the second. In code it must be seen
//!   that something is read there, or that only one of the two is possible.
//! - That a number which is left out as `line-only` is a line; it sees that nothing but immediate operands differs, or line and
//!   column of a `core::panic::Location`, or one number of a named constant that names a file, too.
#![forbid(unsafe_code)]

mod ahead;
mod alike;
mod asks;
mod below;
mod border;
mod bounded;
mod choice;
mod code;
mod copies;
mod counted;
mod derived;
mod descriptor;
mod distances;
mod elsewhere;
mod endless;
mod entities;
mod flags;
mod ground;
mod image;
mod landing;
mod language;
mod leaning;
mod loops;
mod moved;
mod near;
mod overlay;
mod pairs;
mod report;
mod rows;
mod rust;
mod scan;
mod slotted;
mod startup;
mod statics;
mod templates;
mod thunk;
mod unnamed;
mod unused;
mod unwind;
mod votes;
mod walk;
mod whole;

pub use report::{Fault, Kind, Proof, Report};

use std::collections::BTreeMap;

use entities::Side;
use ground::{Ground, Replaced};
use hp_pack::{Patch, Role};
use image::Image;
use statics::Statics;
use walk::Walk;

/// A build, as bytes.
#[derive(Clone, Copy, Debug)]
pub struct Build<'a> {
    /// The program or shared object.
    pub image: &'a [u8],
    /// Its separate debug file, if it has one.
    pub debug: Option<&'a [u8]>,
    /// What its section `.gnu_debugdata` holds, unpacked, if it has one.
    pub mini: Option<&'a [u8]>,
}

/// How much is to be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What the patch brings and replaces.
    Patch,
    /// That, and that it leaves out nothing.
    Whole,
}

/// Why nothing could be judged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A build cannot be read.
    #[error("the {which} build {what}")]
    Build {
        /// `old` or `new`.
        which: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// Judges a patch.
///
/// # Errors
/// If a build cannot be read. Everything that speaks against the patch is a [`Fault`] in the report.
pub fn verify(patch: &Patch, old: &Build<'_>, new: &Build<'_>, scope: Scope) -> Result<Report, Error> {
    let images = (Image::read(old, "old")?, Image::read(new, "new")?);
    let mut faults = identity(patch, &images.0, &images.1);
    if let Err(invalid) = patch.validate() {
        faults.push(Fault::new("format", "the patch", invalid.to_string()));
    }
    let layouts = match overlay::lay(patch) {
        Ok(layouts) if faults.is_empty() => layouts,
        Ok(_) => return Ok(Report { faults, ..Report::default() }),
        Err(more) => {
            faults.extend(more);
            return Ok(Report { faults, ..Report::default() });
        }
    };
    let sites = thunk::sites(patch);
    let sides = rayon::join(|| Side::new(images.0, &sites), || Side::new(images.1, &BTreeMap::new()));
    let (old_side, new_side) = (&sides.0, &sides.1);
    let replaced = patch.functions.iter().map(|r| Replaced {
        start: r.old_address,
        end: r.old_address + r.old_size,
        entry: matches!(r.role, Role::Entry(_)),
    });
    let mut ground = Ground::new(old_side, new_side, replaced.collect());
    ground.compare_constants();
    let records = thunk::check(patch, old_side, &layouts);
    faults.extend(asks::check(patch, old_side));
    let judge = |ground: &Ground<'_, '_>| {
        let mut walk = Walk::new(patch, ground, &layouts);
        walk.run();
        walk.check_rows(&records);
        if scope == Scope::Whole {
            walk.check_whole();
        }
        (walk.proof, walk.faults)
    };
    let (mut proof, mut found) = judge(&ground);
    if !found.is_empty() {
        // Names alone do not prove it: everything that can be known is asked.
        let statics = rayon::join(|| Statics::read(old), || Statics::read(new));
        let choose = |ground: &mut Ground<'_, '_>, guess| ground.choose(patch, &layouts[0], guess);
        ground.settle((&statics.0, &statics.1), &choose, &|ground| scope == Scope::Patch && judge(ground).1.is_empty());
        (proof, found) = judge(&ground);
    }
    proof.thunks = records.thunks.len();
    proof.redirected_bytes = records.redirected;
    found.extend(records.faults);
    found.extend(faults);
    found.sort();
    found.dedup();
    Ok(Report { proof, faults: found })
}

/// The builds are those that the patch is for and from.
fn identity(patch: &Patch, old: &Image<'_>, new: &Image<'_>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut check = |ok: bool, what: &str| {
        if !ok {
            faults.push(Fault::new("identity", "the base", what));
        }
    };
    check(patch.base.build_id == old.build_id, "the old build has another build ID than the patch is for");
    check(patch.base.span == old.span, "the old build ends elsewhere than the patch says");
    check(patch.base.fixed_address == old.fixed, "patch and old build disagree on whether its address is fixed");
    check(old.fixed == new.fixed, "one build has a fixed address, the other has not");
    faults
}
