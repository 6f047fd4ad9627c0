//! Are addresses the same where one thing ends and another begins, and the base has these apart, or one of the two changed?

use crate::code::{Field, Use};
use crate::entities::Side;
use crate::ground::{Answer, Doubt, Ground, Within};
use crate::leaning::Leans;
use crate::loops;

impl Side<'_> {
    /// The object that ends at an address, and whether an object or a constant without a symbol begins there.
    fn ending(&self, at: u64) -> Option<(usize, bool)> {
        if self.markers.contains_key(&at) || self.tables.contains(&at) || self.template_at(at).is_some() {
            return None;
        }
        let begins = match self.object_at(at) {
            Some((_, 0)) => true,
            None if self.is_constant(at) => self.is_filled(at, self.literal_span(at)),
            _ => return None,
        };
        let start_files = ["__abi_tag", "_IO_stdin_used", "__GNU_EH_FRAME_HDR", "__FRAME_END__"];
        let ends = |r: &(usize, i64)| {
            r.1 > 0 && r.1 as u64 == self.objects[r.0].size && !start_files.contains(&self.objects[r.0].names[0])
        };
        self.readings(at).into_iter().find(ends).map(|r| (r.0, begins))
    }
}

/// What a reference of the patch means at a border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Border {
    /// The end of this object of the new build.
    End(usize),
    /// What begins there.
    Start,
    /// Other rules say it.
    Other,
}

impl Ground<'_, '_> {
    fn unchanged_of(&self, p: usize) -> Option<usize> {
        self.pairs.objects.old_of(p).filter(|o| self.is_unchanged(*o))
    }

    /// What the instruction at `here` in range `range` of the new build means by `n`, if something ends there.
    pub(crate) fn border(&self, n: u64, (range, here): (usize, u64), within: Within<'_>) -> Result<Border, Doubt> {
        let Some((x, begins)) = self.new.ending(n) else { return Ok(Border::Other) };
        if begins && self.are_side_by_side(x, n) {
            return Ok(Border::Other);
        }
        match self.new.leans(range, here, n) {
            Leans::ToStart => return Ok(if begins { Border::Start } else { Border::Other }),
            Leans::ToEnd => return Ok(Border::End(x)),
            Leans::Nowhere if !begins => return Ok(Border::End(x)),
            Leans::Nowhere => {}
        }
        // Of what only lies elsewhere in the base the other uses of the function say it.
        let changed = |p: usize| self.pairs.objects.old_of(p).is_some_and(|o| !self.is_unchanged(o));
        let changed = changed(x) || self.new.object_at(n).is_none_or(|(y, _)| changed(y));
        if !changed || within.new.is_some_and(|f| loops::end_with(self.new, f, n)) {
            return Ok(Border::Other);
        }
        // What the old function of the same name has.
        let end = self.pairs.objects.old_of(x).map(|o| self.old.objects[o].end());
        let start = self.new.object_at(n).and_then(|(y, _)| self.pairs.objects.old_of(y));
        let start = start.map(|o| self.old.objects[o].address);
        let made = |at: Option<u64>| within.old.is_some_and(|f| at.is_some_and(|at| f.makes(at)));
        match (made(end), made(start)) {
            (true, false) if start.is_some() && end.is_some_and(|end| self.old.object_at(end).is_none()) => {
                Ok(Border::End(x))
            }
            (false, true) if end.is_some() => Ok(Border::Other),
            _ => {
                let name = self.new.objects[x].names[0];
                Err(Doubt::No(format!(
                    "{n:#x} of the new build may also be the end of {name}, and the base has that elsewhere"
                )))
            }
        }
    }

    /// The base has unchanged what ends at a place of the new build, and behind it what begins there; or it has neither.
    fn are_side_by_side(&self, x: usize, n: u64) -> bool {
        match (self.unchanged_of(x), self.new.object_at(n)) {
            (Some(o), Some((y, _))) => {
                self.unchanged_of(y).is_some_and(|p| self.old.objects[p].address == self.old.objects[o].end())
            }
            (Some(o), None) => self.same(self.old.objects[o].end(), n, Use::Address, Within::data(false)).is_ok(),
            (None, Some((y, _))) => self.pairs.objects.old_of(x).is_none() && self.unchanged_of(y).is_none(),
            (None, None) => false,
        }
    }

    /// An object behind `n` that the instruction at `here` in range `range` may mean, and that does not lie as far behind `a` in the base.
    pub(crate) fn other_behind(&self, a: u64, n: u64, (range, here): (usize, u64)) -> Option<&str> {
        let there = |p: usize| {
            let distance = self.new.objects[p].address.wrapping_sub(n);
            self.unchanged_of(p).is_some_and(|o| self.old.objects[o].address.wrapping_sub(a) == distance)
        };
        // Most have the same behind them in both builds, and need no look at the code.
        self.new.objects_near(n).find(|p| self.new.objects[*p].address > n && !there(*p))?;
        let other = self.new.perhaps_behind(range, here, n).into_iter().find(|p| !there(*p))?;
        Some(self.new.objects[other].names[0])
    }

    /// Unchanged code may mean by two addresses, where the same begins, the end of a constant that changed.
    pub(crate) fn same_border(
        &self,
        (old, new): (&Field, &Field),
        (f, there): (usize, u64),
        (g, here): (usize, u64),
        within: Within<'_>,
    ) -> Option<Answer> {
        if self.none_changed() {
            return None;
        }
        if self.new.means_elsewhere(new, (g, here)) {
            return Some(self.same_around(old.target, new.target));
        }
        if !self.makes_address(new, within) {
            return None;
        }
        if let Some(name) = self.other_behind(old.target, new.target, (g, here)) {
            return Some(Doubt::no(format!("may also mean {name}, which begins behind it")));
        }
        let ((o, _), (p, begins)) = (self.old.ending(old.target)?, self.new.ending(new.target)?);
        let changed = self.pairs.objects.old_of(p) == Some(o) && !self.is_unchanged(o);
        let certain = || {
            self.old.leans(f, there, old.target) == Leans::ToStart
                && self.new.leans(g, here, new.target) == Leans::ToStart
        };
        (begins && changed && !certain()).then(|| {
            let name = self.old.objects[o].names[0];
            Doubt::no(format!("may also mean the end of {name}, which changed"))
        })
    }
}
