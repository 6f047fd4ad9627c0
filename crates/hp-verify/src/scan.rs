//! What one pass over the code of a build finds: where it says that something begins.
//!
//! All code is decoded here once, each range by itself, and what is found waits for what all ranges together say.

use iced_x86::FlowControl;

use crate::code::{Field, Step, Use};
use crate::derived::Derived;
use crate::distances::Distances;
use crate::entities::Side;
use crate::templates;

/// What one range of code says.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Data that it leads to. Ordered.
    pub(crate) data: Vec<u64>,
    /// Addresses that it makes, if it keeps distances from some of them.
    pub(crate) places: Vec<u64>,
    /// Where texts begin that it reaches by their ends.
    pub(crate) texts: Vec<u64>,
    /// Addresses that it makes at which nothing begins, and where.
    pub(crate) odd: Vec<(u64, u64)>,
    /// It leads to data that may be a template.
    pub(crate) templates: bool,
    /// Which of the places that are watched it leads to, and where from.
    pub(crate) watched: Vec<(u64, u64)>,
    /// Other ranges that it calls or makes an address in, if functions may have no name. Ordered.
    pub(crate) taken: Vec<usize>,
    /// Its jumps to other ranges, if functions may have no name.
    pub(crate) jumps: Vec<Jump>,
}

/// A jump from one range to another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jump {
    pub(crate) to: usize,
    /// Not to where that one begins.
    pub(crate) middle: bool,
    pub(crate) conditional: bool,
}

/// Goes through one range. `watched` says of a place whether it is to be remembered.
pub(crate) fn range(side: &Side<'_>, range: usize, watched: &dyn Fn(u64) -> bool) -> Scan {
    let (mut scan, mut distances, mut derived) = (Scan::default(), Distances::default(), Derived::new());
    let (base, end) = (side.ranges[range].address, side.ranges[range].end());
    let mut made = Vec::new();
    for (at, step) in side.steps(range) {
        let here = base + at as u64;
        distances.see(&step, &derived);
        let address = step.fields.iter().find(|f| f.usage == Use::Address).map(|f| f.target);
        let back = derived.see(&step, address).into_iter().filter(|b| side.is_end_of_text(b.from, b.bytes));
        scan.texts.extend(back.map(|b| b.from - b.bytes));
        for field in step.fields {
            scan.watched.extend(Some((field.target, here)).filter(|_| watched(field.target)));
            if field.usage == Use::Address {
                made.push((field.target, here));
            }
            if (base..end).contains(&field.target) {
                continue;
            }
            if field.usage != Use::Branch {
                scan.data.push(field.target);
            }
            if side.image.stripped {
                scan.leads(side, range, field, &step);
            }
        }
    }
    if distances.found() {
        scan.places = made.iter().map(|(target, _)| *target).filter(|at| distances.may_begin_at(*at)).collect();
    }
    made.sort_unstable();
    for same in made.chunk_by(|x, y| x.0 == y.0).filter(|same| side.may_be_odd(same[0].0)) {
        scan.odd.extend(same.iter().map(|(target, here)| (*here, *target)));
    }
    scan.data.sort_unstable();
    scan.data.dedup();
    scan.data.retain(|a| side.image.section_at(*a).is_some_and(|s| !s.code));
    scan.templates = scan.data.iter().any(|a| templates::is_candidate(side, *a));
    scan.taken.sort_unstable();
    scan.taken.dedup();
    scan
}

impl Scan {
    /// Remembers which other range an instruction leads to.
    fn leads(&mut self, side: &Side<'_>, range: usize, field: Field, step: &Step) {
        let Some((to, offset)) = side.range_at(field.target).filter(|(to, _)| *to != range) else { return };
        let flow = step.instruction.flow_control();
        if field.usage == Use::Branch && flow != FlowControl::Call {
            self.jumps.push(Jump { to, middle: offset > 0, conditional: flow == FlowControl::ConditionalBranch });
        } else {
            self.taken.push(to);
        }
    }
}
