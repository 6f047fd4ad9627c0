//! References to where one thing ends and another begins.

use super::{Bound, Payload, Problem};
use crate::arch::{Site, Use};
use crate::border::{self, Side};
use crate::entity::{FunctionId, ObjectId, Target};
use crate::finding::Code;
use crate::judge::{Judge, Verdict};
use crate::usage::is_limit;

/// What is meant where one thing ends and another begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Border {
    End(ObjectId),
    /// The object that begins there, or a constant without a symbol.
    Start(Option<ObjectId>),
}

impl Payload<'_, '_> {
    /// What is meant by an address where one thing ends and another begins, of which the patch has one elsewhere than the base, by what
    /// code does with it. `None` if that is not so, or if other rules are to say it.
    pub(super) fn border(&self, id: FunctionId, site: &Site, target: &Target<'_>) -> Result<Option<Border>, Problem> {
        let new = self.new;
        let Some(x) = border::ending(new, site.target).filter(|_| site.usage == Use::Address) else { return Ok(None) };
        let table = new.map.is_table_of_distances(site.target);
        let begins = match target {
            Target::Object(y, 0) => Some(*y),
            Target::Literal if !table && new.map.template_at(site.target).is_none() => None,
            // Nothing begins there, but shortly behind it.
            Target::Object(z, offset) if *z == x && *offset == new.map.objects[x].size as i64 => {
                let behind = new.image.is_constant(site.target) && border::side(new, id, site) == Side::Behind;
                return Ok(Some(Border::End(x)).filter(|_| !behind));
            }
            _ => return Ok(None),
        };
        let side = border::side(new, id, site);
        if self.lie_together(x, begins, site.target) {
            // Of a constant without a symbol the patch may have another one, or a copy; the end of the object is right for both.
            let end = begins.is_none() && side != Side::Behind;
            return Ok(Some(Border::End(x)).filter(|_| end));
        }
        match side {
            Side::Behind => Ok(Some(Border::Start(begins))),
            Side::Before => Ok(Some(Border::End(x))),
            Side::Unknown if is_limit(new, id, site.target) => Ok(None),
            // Of what only lies elsewhere in the base the other uses of the function say it.
            Side::Unknown if !(self.is_changed(x) || begins.is_none_or(|y| self.is_changed(y))) => Ok(None),
            Side::Unknown => match self.meant_by_old(id, x, begins) {
                Some(Side::Behind) => Ok(None),
                Some(Side::Before) => Ok(Some(Border::End(x))),
                _ => {
                    let name = new.map.objects[x].name();
                    let message =
                        format!("it may mean the end of {name} or what begins there, and only one of them changed");
                    Err(Problem(Code::AmbiguousReference, message))
                }
            },
        }
    }

    /// Binds it.
    pub(super) fn bind_border(&mut self, id: FunctionId, address: u64, border: Border) -> Result<Bound, Problem> {
        match border {
            Border::End(x) => {
                let size = self.new.map.objects[x].size as i64;
                self.object(x).map(|symbol| (symbol, size))
            }
            Border::Start(Some(y)) => self.object(y).map(|symbol| (symbol, 0)),
            Border::Start(None) => self.literal(Some(id), address, Use::Address),
        }
    }

    /// The base has side by side what ends at an address and what begins there, and the patch brings neither; or it brings both,
    /// and the base has nothing that would be one of them.
    fn lie_together(&self, x: ObjectId, begins: Option<ObjectId>, address: u64) -> bool {
        let old = self.old;
        let base = |p: ObjectId| self.pairs.objects.old_of(p);
        let kept = |p: ObjectId| base(p).filter(|o| !self.changes.constants.contains(o));
        let judge = Judge::new(old, self.new, self.pairs);
        match (kept(x), begins) {
            (Some(o), Some(y)) => kept(y).is_some_and(|p| old.map.objects[p].address == old.map.objects[o].end()),
            (Some(o), None) => judge.literals(old.map.objects[o].end(), address, Use::Address) == Verdict::Same,
            (None, Some(y)) => base(x).is_none() && kept(y).is_none(),
            (None, None) => false,
        }
    }

    fn is_changed(&self, object: ObjectId) -> bool {
        self.pairs.objects.old_of(object).is_some_and(|o| self.changes.constants.contains(&o))
    }

    /// What the old version of a function means, if that has one of the two and not both.
    fn meant_by_old(&self, id: FunctionId, x: ObjectId, begins: Option<ObjectId>) -> Option<Side> {
        let old = self.old;
        let f = self.pairs.functions.old_of(id)?;
        let makes = |address: u64| {
            let mut sites = old.code[f].ranges.iter().flat_map(|code| &code.sites);
            sites.any(|site| (site.usage, site.target) == (Use::Address, address))
        };
        let end = old.map.objects[self.pairs.objects.old_of(x)?].end();
        let start = old.map.objects[self.pairs.objects.old_of(begins?)?].address;
        match (makes(end), makes(start)) {
            _ if start == end => None,
            (true, false) if old.map.object_at(end).is_none() => Some(Side::Before),
            (false, true) => Some(Side::Behind),
            _ => None,
        }
    }
}
