//! Does a change only add releases?
//!
//! Then no object can be released twice because it was made before. Let the new program be right when it is started fresh, and think
//! of both programs side by side with the same inputs, the old one until it is patched. As long as each function stores, calls,
//! reads, hands on and answers the same in both, they are in the same state, but that the new one released more. So whatever
//! the patched process releases, the new one would have released as well by then, each as often.
//!
//! So it is asked that each changed function does the same in the same order, call by call, store by store and condition by condition,
//! as far as it can be told where what they use comes from, and that what it calls more are functions that only release what
//! they get. That nothing is stored in place of what is released is no matter: if it were used again, the new program would be
//! wrong in itself. To store nothing there would be another state than the old program's, so that is no such change.
//!
//! The change of another file is not seen. So the old build must be known to release from the same place otherwise: an owner
//! that is the same in both.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::releases::{Release, is_end, name, releases};
use super::{Place, Sides, numbers};
use crate::arch::{self, Act, Cell, Use, Value};
use crate::build::Build;
use crate::compare::Changes;
use crate::entity::{FunctionId, ObjectId, Target};
use crate::image::Word;
use crate::prototypes::Prototypes;

/// What code uses, by what both builds agree on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Nothing,
    Frame,
    Number(u64),
    Argument(u8),
    Field(i64),
    /// A function of the old build, and the range and offset in it.
    Function(FunctionId, usize, u64),
    /// An object of the old build, and the offset in it.
    Object(ObjectId, i64),
    /// What the dynamic linker finds by this name, or a marker of the linker's.
    Name(String),
    Constant(Vec<u8>),
    Answer(Box<Known>),
    Loaded(Box<Known>, u8, i64, u32),
    /// Something at that address of the new build that the old one does not have.
    New(u64),
    /// The same the other way round.
    Old(u64),
}

/// What a function does that may change what others find, in the order of its code.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Calls(Known, Vec<Known>),
    /// Place, what leads there, width, instruction, value.
    Stores(Known, [Known; 2], u32, u32, Known),
    Tests(u32, [Known; 2]),
    Branches(u32),
    Computes(u32, Option<u64>),
}

/// All acts of one function.
#[derive(Debug, Default)]
struct Acts {
    steps: Vec<Step>,
    /// Place, what leads there, width.
    reads: BTreeSet<(Known, [Known; 2], u32)>,
    keeps: BTreeSet<Known>,
    answers: BTreeSet<Known>,
}

/// True if the change does nothing but to release more, and each of the `added` releases is one that the old build knows, too.
pub(super) fn only_releases(sides: &Sides<'_, '_>, changes: &Changes, added: &[Vec<Release<'_>>]) -> bool {
    let data = !changes.constants.is_empty() || !changes.variables.is_empty() || !changes.label_variables.is_empty();
    if data || !added.iter().flatten().all(|release| is_end(release.callee)) {
        return false;
    }
    let functions = &changes.functions;
    let addresses = functions.iter().map(|(_, g, _)| sides.new.map.functions[*g].ranges[0].address).collect();
    let names = functions.iter().flat_map(|(_, g, _)| callees(sides.new, *g)).collect();
    let prototypes = Prototypes::read(&sides.new.image.debug, &addresses, &names);
    let same = |((f, g, _), added): (&(FunctionId, FunctionId, _), &Vec<Release<'_>>)| {
        let side = |is_new, id| Side { sides, prototypes: &prototypes, is_new }.acts(id);
        adds_releases(sides.old, &side(false, *f), &side(true, *g), added)
    };
    functions.par_iter().zip(added).all(same) && added.iter().flatten().all(|release| is_known(sides, release))
}

/// True if a function's new version does the same as the old one, but that it releases more.
fn adds_releases(build: &Build<'_>, old: &Acts, new: &Acts, added: &[Release<'_>]) -> bool {
    let places: Vec<Known> = added.iter().map(|release| known_place(release.place)).collect();
    let from_place = |known: &Known| matches!(known, Known::Loaded(place, 8, 0, 0) if places.contains(place));
    let ends = |callee: &Known| match callee {
        Known::Name(name) => is_end(name),
        Known::Function(id, 0, 0) => is_end(build.map.functions[*id].names[0]),
        _ => false,
    };
    let mut rest = old.steps.iter().peekable();
    let mut asked = false;
    for step in &new.steps {
        let is_old = rest.next_if_eq(&step).is_some();
        let only_releases = match step {
            Step::Calls(callee, arguments) => ends(callee) && arguments.iter().any(from_place),
            Step::Tests(_, [value, other]) => from_place(value) && (value == other || *other == Known::Number(0)),
            // Whether there is something to release.
            Step::Branches(_) => asked,
            Step::Stores(..) | Step::Computes(..) => false,
        };
        if !is_old && !only_releases {
            return false;
        }
        asked = !is_old && matches!(step, Step::Tests(..));
    }
    let nothing = |known: &Known| matches!(known, Known::Answer(callee) if ends(callee));
    rest.peek().is_none()
        && new.reads.iter().all(|read| old.reads.contains(read) || places.contains(&read.0))
        && new.keeps.is_subset(&old.keeps)
        && new.answers.iter().all(|known| old.answers.contains(known) || nothing(known))
}

/// True if the old build somewhere hands what lies at the same place to the same function.
fn is_known(sides: &Sides<'_, '_>, release: &Release<'_>) -> bool {
    let build = sides.old;
    (0..build.map.functions.len()).into_par_iter().any(|id| {
        callees(build, id).contains(release.callee)
            && releases(build, &numbers(build, id, |cell| sides.in_old(cell))).iter().any(|other| {
                (other.place, other.argument, other.callee) == (release.place, release.argument, release.callee)
            })
    })
}

/// The names of what a function calls, or takes the address of.
fn callees<'b>(build: &'b Build<'_>, function: FunctionId) -> BTreeSet<&'b str> {
    let sites = build.code[function].ranges.iter().flat_map(|code| code.sites.leaving_targets());
    sites.filter_map(|target| name(build, target)).collect()
}

fn known_place(place: Place) -> Known {
    match place {
        Place::Field(offset) => Known::Field(offset),
        Place::Variable(id, offset) => Known::Object(id, offset as i64),
    }
}

/// One of two builds.
struct Side<'s, 'p, 'a> {
    sides: &'s Sides<'p, 'a>,
    prototypes: &'s Prototypes,
    is_new: bool,
}

impl<'s, 'a> Side<'s, '_, 'a> {
    fn build(&self) -> &'s Build<'a> {
        if self.is_new { self.sides.new } else { self.sides.old }
    }

    fn acts(&self, id: FunctionId) -> Acts {
        let (function, mut all) = (&self.build().map.functions[id], Acts::default());
        let inside =
            |address| function.ranges.iter().any(|r| (r.address..r.address + r.bytes.len() as u64).contains(&address));
        for (n, range) in function.ranges.iter().enumerate() {
            for act in arch::acts(range.address, range.bytes, n == 0, inside) {
                self.add(&mut all, act);
            }
        }
        all
    }

    fn add(&self, all: &mut Acts, act: Act) {
        match act {
            Act::Calls { callee, arguments } => {
                let named = callee.and_then(|callee| name(self.build(), callee));
                let taken = named.and_then(|name| self.prototypes.arguments(name)).unwrap_or(arguments.len());
                let arguments = arguments.into_iter().take(taken).map(|value| self.known(value)).collect();
                all.steps.push(Step::Calls(self.callee(callee), arguments));
            }
            Act::Stores { cell, through, width, how, value } => {
                let through = through.map(|value| self.known(value));
                all.steps.push(Step::Stores(self.cell(cell), through, width, how, self.known(value)));
            }
            Act::Tests { how, values } => all.steps.push(Step::Tests(how, values.map(|value| self.known(value)))),
            Act::Branches { how } => all.steps.push(Step::Branches(how)),
            Act::Computes { how, number } => all.steps.push(Step::Computes(how, number)),
            Act::Reads { cell, through, width } => {
                let through = through.map(|value| self.known(value));
                all.reads.insert((self.cell(cell), through, width));
            }
            Act::Keeps(value) => {
                all.keeps.insert(self.known(value));
            }
            Act::Answers(value) => {
                all.answers.insert(self.known(value));
            }
        }
    }

    fn callee(&self, callee: Option<u64>) -> Known {
        callee.map_or(Known::Nothing, |callee| self.address(callee, Use::Branch))
    }

    fn cell(&self, cell: Option<Cell>) -> Known {
        match cell {
            None => Known::Nothing,
            Some(Cell::Field(offset)) => Known::Field(offset),
            Some(Cell::Fixed(address)) => self.address(address, Use::Address),
        }
    }

    fn known(&self, value: Value) -> Known {
        match value {
            Value::Unknown => Known::Nothing,
            Value::Frame => Known::Frame,
            // In position-dependent code an address looks like any number.
            Value::Number(number)
                if self.build().image.fixed_address && self.build().image.bytes(number, 1).is_some() =>
            {
                self.address(number, Use::Address)
            }
            Value::Number(number) => Known::Number(number),
            Value::Address(address) => self.address(address, Use::Address),
            Value::Argument(n) => Known::Argument(n),
            Value::Answer(callee) => Known::Answer(Box::new(self.callee(callee))),
            Value::Loaded { cell, width, plus, shift } => {
                Known::Loaded(Box::new(self.cell(Some(cell))), width, plus, shift)
            }
        }
    }

    fn address(&self, address: u64, usage: Use) -> Known {
        let (build, pairs) = (self.build(), self.sides.pairs);
        let alone = || if self.is_new { Known::New(address) } else { Known::Old(address) };
        match build.map.resolve_address(&build.image, address, usage) {
            Target::Function(id, range, offset) => {
                let old = if self.is_new { pairs.functions.old_of(id) } else { Some(id) };
                old.map_or_else(alone, |id| Known::Function(id, range, offset))
            }
            Target::Object(id, offset) => {
                let old = if self.is_new { pairs.objects.old_of(id) } else { Some(id) };
                old.map_or_else(alone, |id| Known::Object(id, offset))
            }
            Target::Stub(Word::Symbol(name, 0)) | Target::Slot(Word::Symbol(name, 0)) => Known::Name(name.clone()),
            Target::Marker(name) => Known::Name(name.to_owned()),
            Target::Literal => {
                let literal = build.map.literal(&build.image, address);
                let words = build.image.words.range(address..address + literal.len() as u64);
                if words.count() == 0 { Known::Constant(literal.to_vec()) } else { alone() }
            }
            _ => alone(),
        }
    }
}
