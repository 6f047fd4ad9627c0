//! Do two addresses mean the same if code may mean what lies before or behind them?

use super::{Judge, Verdict};
use crate::ahead::{self, Ahead, Meant, MeantObject};
use crate::arch::{Site, Use};
use crate::before::{Before, before};
use crate::border::{self, Side};
use crate::build::Build;
use crate::entity::{FunctionId, ObjectId, REACH, Target};
use crate::image::{Section, is_constant_section};
use crate::leftovers;
use crate::usage::is_indexed;

impl<'j, 'a> Judge<'j, 'a> {
    /// Is the object the same that begins behind two addresses, or ends at them, if code means that and not what lies at
    /// them? `None` if the verdict stands.
    pub(super) fn object_ahead(
        &self,
        pair: (FunctionId, FunctionId),
        a: &Site,
        b: &Site,
        verdict: Verdict,
    ) -> Option<Verdict> {
        if a.usage != Use::Address || self.old.map.function_at(a.target).is_some() {
            return None;
        }
        let (mut x, mut y) = (ahead::objects(self.old, a.target), ahead::objects(self.new, b.target));
        let start = |o: ObjectId| self.old.map.objects[o].address;
        let other = |p: ObjectId| self.new.map.objects[p].address;
        let as_far = |o, p| start(o).wrapping_sub(a.target) == other(p).wrapping_sub(b.target);
        let mut any = false;
        let alike = loop {
            match (x.next(), y.next()) {
                (None, None) if !any => return None,
                (None, None) => break true,
                (Some(o), Some(p)) => {
                    any = true;
                    let paired = self.pairs.objects.new_of(o) == Some(p) && self.is_kept(o);
                    if !paired || !as_far(o, p) {
                        break false;
                    }
                }
                _ => break false,
            }
        };
        if alike && verdict == Verdict::Same {
            return None;
        }
        self.note_local();
        let touched = |build: &Build<'a>, id, site: &Site| ahead::touched(build, id, std::slice::from_ref(site))[0];
        let meant = |build: &Build<'a>, id, site: &Site| ahead::meant_object(build, site, touched(build, id, site));
        let perhaps =
            |build: &Build<'a>, id, site: &Site| ahead::perhaps_behind(build, id, site, touched(build, id, site));
        let same = |o, p| match as_far(o, p) {
            true => self.addresses(Some(pair), (start(o), other(p)), Use::Address),
            false => Verdict::Different,
        };
        match (meant(self.old, pair.0, a), meant(self.new, pair.1, b)) {
            (None, None) => {
                let (x, y) = (perhaps(self.old, pair.0, a), perhaps(self.new, pair.1, b));
                let paired = |(o, p): (&ObjectId, &ObjectId)| {
                    self.pairs.objects.new_of(*o) == Some(*p) && self.is_kept(*o) && as_far(*o, *p)
                };
                let all = x.len() == y.len() && x.iter().zip(&y).all(paired);
                (!all).then_some(Verdict::Different)
            }
            (Some(MeantObject::Certain(o)), Some(MeantObject::Certain(p))) => Some(same(o, p)),
            (Some(MeantObject::Perhaps(o)), Some(MeantObject::Perhaps(p))) => Some(verdict.and(same(o, p))),
            _ => Some(Verdict::Different),
        }
    }

    /// True if two addresses, where the same begins, are the ends of a constant that changed as well, and code does not
    /// certainly mean what begins there.
    pub(super) fn may_be_changed_end(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        if a.usage != Use::Address {
            return false;
        }
        let changed = |o: &ObjectId| self.old.map.objects[*o].constant && !self.is_kept(*o);
        let Some(o) = border::ending(self.old, a.target).filter(changed) else { return false };
        let ends = |p: ObjectId| self.pairs.objects.old_of(p) == Some(o);
        self.note_local();
        border::ending(self.new, b.target).is_some_and(ends)
            && !(border::side(self.old, pair.0, a) == Side::Behind && border::side(self.new, pair.1, b) == Side::Behind)
    }

    /// Is the constant the same that begins behind two addresses, if code means that and not what lies at them? `None` if the
    /// verdict stands.
    pub(super) fn ahead(
        &self,
        pair: (FunctionId, FunctionId),
        a: &Site,
        b: &Site,
        verdict: Verdict,
    ) -> Option<Verdict> {
        if a.usage != Use::Address {
            return None;
        }
        let rust = self.are_rust(pair);
        let (x, y) = (ahead::ahead(self.old, a.target, rust), ahead::ahead(self.new, b.target, rust));
        let alike = match (&x, &y) {
            (None, None) => return None,
            (Some(x), Some(y)) => {
                let place = (x.start.wrapping_sub(a.target), x.end.wrapping_sub(a.target));
                place == (y.start.wrapping_sub(b.target), y.end.wrapping_sub(b.target))
                    && self.same_content(x.start, y.start, x.end - x.start)
            }
            _ => false,
        };
        // Of a table of distances it is known where it begins: code adds its start to what it reads.
        let tables = self.old.map.is_table_of_distances(a.target) && self.new.map.is_table_of_distances(b.target);
        if alike && verdict == Verdict::Same || tables {
            return None;
        }
        self.note_local();
        match (ahead::meant_by(self.old, pair.0, a)?, ahead::meant_by(self.new, pair.1, b)?) {
            (Meant::Here, Meant::Here) => None,
            (Meant::There(s), Meant::There(t)) if s - a.target == t - b.target => {
                Some(self.addresses(Some(pair), (s, t), Use::Address))
            }
            (Meant::Unclear, Meant::Unclear) if alike => Some(Verdict::Same),
            (Meant::Unclear, Meant::Unclear) if self.same_bounded(pair, a, b) => Some(Verdict::Same),
            // Where a long text begins, hardly something else is meant by chance.
            (Meant::Unclear, Meant::Unclear) => {
                let long = ahead::letters(self.old, a.target).min(ahead::letters(self.new, b.target)) >= ahead::LONG;
                let moved = || verdict == Verdict::Same && self.neighbours_moved((&x, &y), (a.target, b.target));
                if long || moved() { None } else { Some(Verdict::Different) }
            }
            _ => Some(Verdict::Different),
        }
    }

    /// True if all that code can read by way of two addresses is the same.
    pub(super) fn same_bounded(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let Some((start, end)) = ahead::bounded(self.old, pair.0, a) else { return false };
        let place = |site: &Site| site.target.wrapping_add_signed(start);
        ahead::bounded(self.new, pair.1, b) == Some((start, end))
            && self.same_content(place(a), place(b), end.abs_diff(start))
    }

    /// True if two sites lead to equal constants and are no pair all the same, because code may mean what begins behind these.
    pub(crate) fn may_mean_more(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        a.usage == Use::Address
            && self.old.map.resolve(&self.old.image, a) == Target::Literal
            && self.new.map.resolve(&self.new.image, b) == Target::Literal
            && self.literals(a.target, b.target, Use::Address) == Verdict::Same
            && self.sites(pair, a, b) == Verdict::Different
    }

    /// True if constants that begin shortly behind two equal ones have only changed places: both builds have all of them. If code
    /// meant one of those, it would mean another one now, which the same constant happened to lie before.
    fn neighbours_moved(&self, (x, y): (&Option<Ahead>, &Option<Ahead>), (a, b): (u64, u64)) -> bool {
        let literal = |build: &Build<'a>, at: u64| build.map.literal(&build.image, at);
        let known = |ahead: &Option<Ahead>, here: &Build<'a>, address: u64, there: &Build<'a>| {
            let others = ahead.iter().flat_map(|ahead| &ahead.parts).filter(|part| part.0 > address);
            let mut others = others.map(|part| (part.0, literal(here, part.0)));
            // What holds addresses is not known by its bytes.
            others.all(|(at, content)| {
                let span = at..at + content.len() as u64;
                here.image.words.range(span.clone()).next().is_none()
                    && here.map.distances.range(span).next().is_none()
                    && there.contents.contain(&there.map, &there.image, content)
            })
        };
        let here = literal(self.old, a).iter().any(|b| *b != 0);
        here && known(x, self.old, a, self.new) && known(y, self.new, b, self.old)
    }

    /// Is what lies before two addresses the same, as far as code reaches there? `None` if it does not.
    pub(super) fn before(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> Option<Verdict> {
        match (before(self.old, pair.0, a), before(self.new, pair.1, b)) {
            (None, None) => None,
            (Some(x), Some(y)) if a.target - x.start == b.target - y.start => Some(match (x.object, y.object) {
                (None, None) => self.same_content(x.start, y.start, a.target - x.start).into(),
                _ => self.addresses(Some(pair), (x.start, y.start), Use::Address),
            }),
            _ => Some(Verdict::Different),
        }
    }

    /// True if two addresses are ends of literals and nothing else: code reaches back from them, and no further.
    pub(super) fn are_ends(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let is_end = |before: Option<Before>| before.is_some_and(|before| before.object.is_none() && !before.behind);
        is_end(before(self.old, pair.0, a)) && is_end(before(self.new, pair.1, b))
    }

    /// True if what lies in front of two addresses is the same without a look at who reaches there.
    pub(super) fn alike_before(&self, a: u64, b: u64, step: u64) -> bool {
        let holder = |build: &Build<'_>, address: u64| {
            let id = build.map.object_at(address.wrapping_sub(1))?;
            Some((id, address - build.map.objects[id].address))
        };
        match (holder(self.old, a), holder(self.new, b)) {
            _ if step == 0 => true,
            (Some((o, m)), Some((p, n))) => m == n && self.is_kept(o) && self.pairs.objects.new_of(o) == Some(p),
            (None, None) => {
                let bytes = |build: &'j Build<'a>, address: u64| build.image.bytes(address.wrapping_sub(step), step);
                bytes(self.old, a).is_some_and(|before| bytes(self.new, b) == Some(before))
            }
            _ => false,
        }
    }

    /// Equal texts behind which, in one of the builds at least, lie others that nothing refers to, as they do elsewhere in the
    /// other build. Whether they are a part of the text stays in doubt: [`crate::adjoin`] says so.
    pub(crate) fn same_before_leftovers(&self, a: u64, b: u64) -> bool {
        let text = |build: &'j Build<'a>, at: u64| {
            let literal = build.map.resolve_address(&build.image, at, Use::Address) == Target::Literal;
            let bytes = build.map.literal(&build.image, at);
            leftovers::behind(&build.map, &build.image, (at, bytes)).filter(|_| literal)
        };
        let known = |build: &Build<'a>, first: &[u8], texts: &[&[u8]]| {
            build.leftovers.contain(&build.map, &build.image, first, texts)
        };
        match (text(self.old, a), text(self.new, b)) {
            (Some((x, rest)), Some((y, other))) => {
                let (gone, come) = leftovers::unlike(rest, other);
                x == y && rest != other && known(self.new, y, &gone) && known(self.old, x, &come)
            }
            _ => false,
        }
    }

    /// `a[i - 100]` leads to whatever lies before `a`. The same is meant if everything in reach is the same
    /// at the same distance.
    pub(super) fn same_in_reach(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let (old, new) = (self.old, self.new);
        let outside = |build: &Build<'_>, site: &Site| {
            let target = build.map.resolve(&build.image, site);
            !build.map.is_start(&target) && target != Target::Literal && build.map.object_at(site.target).is_none()
        };
        self.same_reach(a, b)
            && outside(old, a)
            && outside(new, b)
            && is_indexed(old, pair.0, a)
            && is_indexed(new, pair.1, b)
    }

    /// True if every object that code may reach from two addresses is the same, at the same distance.
    pub(super) fn same_reach(&self, a: &Site, b: &Site) -> bool {
        let (before, now) = (self.old.map.within_reach(a.target), self.new.map.within_reach(b.target));
        let same = |(x, y): (&(ObjectId, i64), &(ObjectId, i64))| {
            self.pairs.objects.new_of(x.0) == Some(y.0) && x.1 == y.1 && self.is_kept(x.0)
        };
        !before.is_empty() && before.len() == now.len() && before.iter().zip(&now).all(same)
    }

    /// The same where constants have no symbols: then all that is constant must be the same, too.
    pub(crate) fn same_reach_of_constants(&self, a: &Site, b: &Site) -> bool {
        let stripped = self.old.map.is_stripped() || self.new.map.is_stripped();
        let constants = |build: &Build<'a>, at: u64| {
            let constant = |s: &&Section<'_>| is_constant_section(s) && s.content && !s.executable;
            let near = build.image.sections.iter().filter(constant).filter_map(|s| {
                let (start, end) = (s.address.max(at.saturating_sub(REACH)), s.end().min(at.saturating_add(REACH)));
                let bytes = build.image.bytes(start, end.checked_sub(start)?)?;
                Some((start.wrapping_sub(at), bytes.to_vec()))
            });
            near.collect::<Vec<(u64, Vec<u8>)>>()
        };
        self.same_reach(a, b) && !(stripped && constants(self.old, a.target) != constants(self.new, b.target))
    }

    /// The ends of the constants of both builds, which end with what the two functions use, and that is the same: where a loop
    /// over the last table stops.
    pub(super) fn ends_of_constants(&self, (f, g): (FunctionId, FunctionId), a: u64, b: u64) -> bool {
        let ending = |build: &Build<'a>, end: u64, function: FunctionId| {
            let constant = |s: &&Section<'_>| is_constant_section(s) && s.content && !s.executable;
            let section = build.image.sections.iter().filter(constant).find(|s| s.end() == end)?;
            let targets = build.code[function].ranges.iter().flat_map(|c| c.sites.targets());
            let last = targets.filter(|t| (section.address..end).contains(t)).max()?;
            Some((section.name.to_owned(), last))
        };
        match (ending(self.old, a, f), ending(self.new, b, g)) {
            (Some((x, start)), Some((y, other))) => {
                x == y && a - start == b - other && self.same_content(start, other, a - start)
            }
            _ => false,
        }
    }

    /// Data that a function of hand-written assembly has beside itself, at the same distance in both builds.
    pub(super) fn data_in_code(
        &self,
        within: Option<(FunctionId, FunctionId)>,
        (a, b): (u64, u64),
        usage: Use,
    ) -> bool {
        let (old, new) = (self.old, self.new);
        let beside = within.is_some_and(|(f, g)| {
            a.wrapping_sub(old.map.functions[f].address()) == b.wrapping_sub(new.map.functions[g].address())
        });
        let data = |build: &Build<'a>, at: u64| build.map.data_in_code(&build.image, at);
        match (usage, beside) {
            (Use::Access(n), true) => {
                let bytes = |build: &Build<'a>, at: u64| build.image.bytes(at, u64::from(n));
                data(old, a).is_some() && data(new, b).is_some() && bytes(old, a) == bytes(new, b)
            }
            (Use::Address, true) => data(old, a).is_some_and(|x| data(new, b) == Some(x)),
            _ => false,
        }
    }
}
