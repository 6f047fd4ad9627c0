//! An independent judge: is the old build, with the patch in it, the new build?
#![forbid(unsafe_code)]

mod code;
mod entities;
mod ground;
mod image;
mod overlay;
mod pairs;
mod report;
mod rows;
mod statics;
mod thunk;
mod unwind;
mod votes;
mod walk;
mod whole;

pub use report::{Fault, Kind, Proof, Report};

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
    let sides = rayon::join(|| Side::new(images.0), || Side::new(images.1));
    let (old_side, new_side) = (&sides.0, &sides.1);
    let replaced = patch.functions.iter().map(|r| Replaced {
        start: r.old_address,
        end: r.old_address + r.old_size,
        entry: matches!(r.role, Role::Entry(_)),
    });
    let mut ground = Ground::new(old_side, new_side, replaced.collect());
    ground.compare_constants();
    let records = thunk::check(patch, old_side, &layouts);
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
        ground.settle((&statics.0, &statics.1));
        (proof, found) = judge(&ground);
    }
    proof.thunks = records.thunks.len();
    proof.redirected_bytes = records.redirected;
    found.extend(records.faults);
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
