//! Are an old and a new entity the same?
//!
//! Two functions are the same if their bytes agree outside of the fields that lead
//! somewhere, and each pair of fields leads to the same entity: paired functions and
//! objects by identity, imports by name and version, literals and jump tables by content.
//! Constant objects are the same if their content is, words that hold addresses being
//! compared by what they lead to.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use rustc_hash::FxHashSet;

use crate::ahead::{self, Ahead, Meant};
use crate::arch::{self, Encoding, JumpTable, Site, Use};
use crate::before::{self, Before, before};
use crate::build::Build;
use crate::copies::Copies;
use crate::correlate::{Correlation, Relation, Settled, View};
use crate::entity::{CodeRange, Distance, FunctionId, ObjectId, Target};
use crate::image::{Evidence, Section, Word, is_constant_section};
use crate::leftovers;
use crate::lsda::{self, CallSite, Lsda};
use crate::rust;
use crate::unwind::Pointer;

/// What a pair of references is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Same,
    Different,
    /// The same if these two objects, both still alone, are.
    Undecided(ObjectId, ObjectId),
    /// The same if these two functions, both still alone, are.
    UndecidedFunctions(FunctionId, FunctionId),
}

impl Verdict {
    /// Both: the first that is not `Same`, except that `Different` outweighs undecided.
    fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Different, _) | (_, Verdict::Different) => Verdict::Different,
            (Verdict::Same, other) => other,
            (first, _) => first,
        }
    }
}

impl From<bool> for Verdict {
    fn from(same: bool) -> Verdict {
        if same { Verdict::Same } else { Verdict::Different }
    }
}

/// Where two functions first differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Index of the range; `usize::MAX` if the number of ranges differs.
    pub range: usize,
    /// Offset of the first differing byte or instruction in the range.
    pub offset: u32,
}

/// Compares entities under a given correlation.
pub(crate) struct Judge<'j, 'a> {
    old: &'j Build<'a>,
    new: &'j Build<'a>,
    pairs: View<'j>,
    copies: &'j Copies,
    /// Old constant objects whose content differs.
    changed: FxHashSet<ObjectId>,
    /// Some verdict depended on which these are.
    asked_changed: AtomicBool,
}

impl<'j, 'a> Judge<'j, 'a> {
    pub(crate) fn new(old: &'j Build<'a>, new: &'j Build<'a>, pairs: &'j Correlation) -> Judge<'j, 'a> {
        let (changed, asked_changed) = (FxHashSet::default(), AtomicBool::new(false));
        Judge { old, new, pairs: View::of(pairs), copies: &pairs.copies, changed, asked_changed }
    }

    /// Takes these for equal.
    pub(crate) fn with_copies(mut self, copies: &'j Copies) -> Self {
        self.copies = copies;
        self
    }

    /// Sees the correlation through `pairs`, which notes what is asked.
    pub(crate) fn seeing(mut self, pairs: View<'j>) -> Self {
        self.pairs = pairs;
        self
    }

    pub(crate) fn builds(&self) -> (&'j Build<'a>, &'j Build<'a>) {
        (self.old, self.new)
    }

    /// Takes into account that these old constant objects have another content now, so
    /// that what refers to them differs too.
    pub(crate) fn with_changed_constants(mut self, changed: FxHashSet<ObjectId>) -> Self {
        self.changed = changed;
        self
    }

    /// True if a verdict so far may be another one where other constants have changed.
    pub(crate) fn depends_on_constants(&self) -> bool {
        self.asked_changed.load(Ordering::Relaxed)
    }

    /// Both functions are of Rust.
    fn are_rust(&self, (f, g): (FunctionId, FunctionId)) -> bool {
        ahead::is_rust(self.old, f) && ahead::is_rust(self.new, g)
    }

    fn is_kept(&self, constant: ObjectId) -> bool {
        // Many threads may ask: they only read once it is known.
        if !self.depends_on_constants() {
            self.asked_changed.store(true, Ordering::Relaxed);
        }
        !self.changed.contains(&constant)
    }

    /// First difference of a pair of functions. `accept` says for each pair of references
    /// whether it counts as equal; it is not asked about branches within the body that go equally far.
    pub(crate) fn difference(
        &self,
        pair: (FunctionId, FunctionId),
        accept: &mut dyn FnMut(&Site, &Site, Verdict) -> bool,
    ) -> Option<Difference> {
        let (f, g) = (&self.old.map.functions[pair.0], &self.new.map.functions[pair.1]);
        if f.ranges.len() != g.ranges.len() {
            return Some(Difference { range: usize::MAX, offset: 0 });
        }
        let codes = self.old.code[pair.0].ranges.iter().zip(&self.new.code[pair.1].ranges);
        for (range, ((a, b), (x, y))) in f.ranges.iter().zip(&g.ranges).zip(codes).enumerate() {
            if x.invalid.is_some() && a.bytes != b.bytes {
                return Some(Difference { range, offset: 0 });
            }
            let steps = range == 0 && !(f.overlaps || g.overlaps);
            let judged = |s: &Site, t: &Site| accept(s, t, self.sites(pair, s, t));
            let first = arch::first_difference((a.bytes, x), (b.bytes, y), steps, judged);
            if let Some(offset) = first {
                return Some(Difference { range, offset });
            }
        }
        None
    }

    /// First difference of a pair of functions in code or in landing pads.
    pub(crate) fn any_difference(&self, pair: (FunctionId, FunctionId)) -> Option<Difference> {
        let code = self.difference(pair, &mut |_, _, v| v == Verdict::Same);
        code.or_else(|| self.landing_difference(pair))
    }

    /// First difference in what a pair of functions does with exceptions: the calls that have a
    /// landing pad, where that is, what it catches and by which numbers.
    pub(crate) fn landing_difference(&self, pair: (FunctionId, FunctionId)) -> Option<Difference> {
        let (f, g) = (&self.old.map.functions[pair.0], &self.new.map.functions[pair.1]);
        f.ranges.iter().zip(&g.ranges).enumerate().find_map(|(range, (a, b))| {
            let offset = match (self.old.landing.get(&a.address), self.new.landing.get(&b.address)) {
                (None, None) => None,
                (Some(Ok(x)), Some(Ok(y))) => self.landings(pair, x, y),
                _ => Some(0),
            };
            offset.map(|offset| Difference { range, offset })
        })
    }

    fn landings(&self, pair: (FunctionId, FunctionId), x: &Lsda, y: &Lsda) -> Option<u32> {
        let same_pointer = |p: Option<Pointer>, q: Option<Pointer>| match (p, q) {
            (None, None) => true,
            (Some(p), Some(q)) => match (lsda::meaning(&self.old.image, p), lsda::meaning(&self.new.image, q)) {
                (Some(v), Some(w)) => match self.words(&v, &w) {
                    Verdict::Undecided(o, p) => self.object_contents((o, p)) == Verdict::Same,
                    verdict => verdict == Verdict::Same,
                },
                _ => false,
            },
            _ => false,
        };
        let place = |build: &Build<'_>, id, at: Option<u64>| {
            at.map(|a| build.map.function_at(a).filter(|t| t.0 == id).map(|(_, range, offset)| (range, offset)))
        };
        let numbers = |s: &CallSite| {
            let filters = s.actions.iter().flat_map(|a| u32::try_from(a.filter).ok().filter(|n| *n > 0));
            filters.chain(s.actions.iter().flat_map(|a| a.list.iter().copied())).collect::<Vec<u32>>()
        };
        let same = |s: &CallSite, t: &CallSite| {
            let types = |n: u32| (x.types.get(&n).copied().flatten(), y.types.get(&n).copied().flatten());
            (s.start, s.length, &s.actions) == (t.start, t.length, &t.actions)
                && place(self.old, pair.0, s.landing) == place(self.new, pair.1, t.landing)
                && numbers(s).into_iter().map(types).all(|(p, q)| same_pointer(p, q))
        };
        if !same_pointer(x.personality, y.personality) || x.sites.len() != y.sites.len() {
            return Some(0);
        }
        x.sites.iter().zip(&y.sites).find(|(s, t)| !same(s, t)).map(|(s, _)| s.start as u32)
    }

    /// Compares where two sites of a pair of functions lead.
    pub(crate) fn sites(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> Verdict {
        if self.is_same_step(pair, a, b) {
            return Verdict::Same;
        }
        if let (Some(x), Some(y)) = (self.old.table(pair.0, a.target), self.new.table(pair.1, b.target)) {
            return self.tables(pair, x, y).into();
        }
        let mut verdict = self.addresses(Some(pair), (a.target, b.target), a.usage);
        if verdict != Verdict::Same && a.usage == Use::Address && self.is_startup_code(pair.0) {
            // The compiler's own start-up code means the linker's symbols, even where an
            // object begins at the same address.
            let names = self.new.map.markers_at(b.target);
            let shared = self.old.map.markers_at(a.target).iter().any(|n| names.contains(n));
            let both_end = self.old.image.is_end_of_data(a.target) && self.new.image.is_end_of_data(b.target);
            verdict = (shared || both_end && !self.old.map.functions[pair.0].evidence.has_name()).into();
        }
        if verdict == Verdict::Different && self.is_startup_code(pair.0) && self.same_weak_import(a, b) {
            return Verdict::Same;
        }
        let number = is_number(self.old, pair.0, a) && is_number(self.new, pair.1, b);
        if number {
            return (a.target == b.target).into();
        }
        let same = verdict == Verdict::Different
            && match a.usage {
                Use::Address => {
                    self.same_in_reach(pair, a, b)
                        || self.same_rust_constant(pair, a.target, b.target)
                        || self.same_counted_argument(pair, a, b)
                        || self.same_bounded(pair, a, b)
                        || self.same_before_leftovers(a.target, b.target)
                }
                Use::Access(size) => self.same_rust_access(pair, (a, b), u64::from(size)),
                _ => false,
            };
        let verdict = if same { Verdict::Same } else { verdict };
        if let Some(verdict) = self.ahead(pair, a, b, verdict) {
            return verdict;
        }
        let step = || before::step(self.old, pair.0);
        match verdict {
            Verdict::Same if a.usage == Use::Address && !self.alike_before(a.target, b.target, step()) => {
                self.before(pair, a, b).unwrap_or(verdict)
            }
            Verdict::Different if a.usage == Use::Address && step() > 0 && self.are_ends(pair, a, b) => {
                self.before(pair, a, b).unwrap_or(verdict)
            }
            _ => verdict,
        }
    }

    /// Is the constant the same that begins behind two addresses, if code means that and not what lies at them? `None` if the
    /// verdict stands.
    fn ahead(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site, verdict: Verdict) -> Option<Verdict> {
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
    fn same_bounded(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
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
    fn before(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> Option<Verdict> {
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
    fn are_ends(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let is_end = |before: Option<Before>| before.is_some_and(|before| before.object.is_none() && !before.behind);
        is_end(before(self.old, pair.0, a)) && is_end(before(self.new, pair.1, b))
    }

    /// True if what lies in front of two addresses is the same without a look at who reaches there.
    fn alike_before(&self, a: u64, b: u64, step: u64) -> bool {
        let holder = |build: &Build<'_>, address: u64| {
            let id = build.map.object_at(address.wrapping_sub(1))?;
            Some((id, address - build.map.objects[id].address))
        };
        match (holder(self.old, a), holder(self.new, b)) {
            _ if step == 0 => true,
            (Some((o, m)), Some((p, n))) => m == n && self.is_kept(o) && self.pairs.objects.new_of(o) == Some(p),
            (None, None) => {
                let bytes = |build: &'j Build<'a>, address: u64| build.image.bytes(address.wrapping_sub(step), step);
                bytes(self.old, a) == bytes(self.new, b)
            }
            _ => false,
        }
    }

    /// Rust's texts and other constants have no terminators, and linkers do not merge their tails: for a function of
    /// Rust a constant reaches to the next one, though letters follow. Templates of formats have both.
    pub(crate) fn same_rust_constant(&self, pair: (FunctionId, FunctionId), a: u64, b: u64) -> bool {
        self.are_rust(pair) && self.same_to_next(a, b)
    }

    /// What a function of Rust reads of a constant is the same, and so are the constants of Rust that this leads to.
    fn same_rust_access(&self, pair: (FunctionId, FunctionId), (a, b): (&Site, &Site), size: u64) -> bool {
        let literal = |build: &Build<'_>, site: &Site| build.map.resolve(&build.image, site) == Target::Literal;
        self.are_rust(pair) && literal(self.old, a) && literal(self.new, b) && self.same_bytes(a.target, b.target, size)
    }

    /// Equal texts behind which, in one of the builds at least, lie others that nothing refers to, as they do elsewhere in the
    /// other build. Whether they are a part of the text stays in doubt: [`crate::adjoin`] says so.
    pub(crate) fn same_before_leftovers(&self, a: u64, b: u64) -> bool {
        let text = |build: &'j Build<'a>, at: u64| {
            let literal = build.map.resolve_address(&build.image, at, Use::Address) == Target::Literal;
            let bytes = build.map.literal(&build.image, at);
            leftovers::behind(&build.map, &build.image, (at, bytes)).filter(|_| literal)
        };
        let known = |build: &Build<'a>, rest: &[u8]| build.leftovers.contain(&build.map, &build.image, rest);
        match (text(self.old, a), text(self.new, b)) {
            (Some((x, rest)), Some((y, other))) => {
                x == y && rest != other && known(self.new, rest) && known(self.old, other)
            }
            _ => false,
        }
    }

    /// Constants that are equal as far as the next one; where they have different room, there are zeros behind.
    fn same_to_next(&self, a: u64, b: u64) -> bool {
        let (old, new) = (self.old, self.new);
        let literal =
            |build: &Build<'_>, at: u64| build.map.resolve_address(&build.image, at, Use::Address) == Target::Literal;
        let (x, y) = (old.map.next_reference(a).wrapping_sub(a), new.map.next_reference(b).wrapping_sub(b));
        let size = x.min(y);
        let padded = |build: &Build<'_>, at: u64, room: u64| {
            build.image.bytes(at + size, room - size).is_some_and(|rest| rest.iter().all(|b| *b == 0))
        };
        let ends = |build: &Build<'_>, at: u64, room: u64| {
            rust::format_length(build.image.bytes_from(at)).is_none_or(|length| length as u64 <= room)
        };
        literal(old, a)
            && literal(new, b)
            && size > 0
            && ends(old, a, x)
            && ends(new, b, y)
            && self.same_bytes(a, b, size)
            && (x == y || padded(old, a, x) && padded(new, b, y))
    }

    /// A text whose length stands beside its address, in both builds, and ends where another reference leads.
    fn same_counted_text(&self, a: u64, b: u64, size: u64) -> bool {
        let (x, y) = (self.old.map.next_reference(a).wrapping_sub(a), self.new.map.next_reference(b).wrapping_sub(b));
        let is_rust = |build: &Build<'_>| build.image.compilers.iter().any(|c| c.starts_with("rustc"));
        let text = |bytes: &[u8]| !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
        let ends = size > 0 && size <= x && size <= y && (size == x || size == y);
        ends && is_rust(self.old)
            && is_rust(self.new)
            && self.old.image.bytes(a, size).is_some_and(text)
            && self.same_bytes(a, b, size)
    }

    /// A text whose length the code has beside its address.
    fn same_counted_argument(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let (old, new) = (self.old, self.new);
        let literal = |build: &Build<'_>, site: &Site| build.map.resolve(&build.image, site) == Target::Literal;
        let length = |build: &Build<'_>, id, site: &Site| {
            range_of(build, id, site).and_then(|range| arch::counted(range.bytes, site.instruction))
        };
        self.are_rust(pair)
            && literal(old, a)
            && literal(new, b)
            && length(old, pair.0, a)
                .is_some_and(|n| length(new, pair.1, b) == Some(n) && self.same_counted_text(a.target, b.target, n))
    }

    /// Two words, and the numbers behind them, that lead to one text.
    fn same_text_words(&self, (v, p): (&Word, Option<u64>), (w, q): (&Word, Option<u64>), rust: bool) -> bool {
        match (v, w) {
            (Word::Address(a), Word::Address(b)) => {
                p.is_some_and(|size| p == q && self.same_counted_text(*a, *b, size))
                    || rust && self.same_to_next(*a, *b)
            }
            _ => false,
        }
    }

    fn same_bytes(&self, a: u64, b: u64, size: u64) -> bool {
        match (self.old.image.bytes(a, size), self.new.image.bytes(b, size)) {
            (Some(x), Some(y)) => self.contents((a, x), (b, y), true) == Verdict::Same,
            _ => false,
        }
    }

    /// `a[i - 100]` leads to whatever lies before `a`. The same is meant if everything in reach is the same
    /// at the same distance.
    fn same_in_reach(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let (old, new) = (self.old, self.new);
        let (before, now) = (old.map.within_reach(a.target), new.map.within_reach(b.target));
        let outside = |build: &Build<'_>, site: &Site| {
            let target = build.map.resolve(&build.image, site);
            !build.map.is_start(&target) && target != Target::Literal && build.map.object_at(site.target).is_none()
        };
        let same = |(x, y): (&(ObjectId, i64), &(ObjectId, i64))| {
            self.pairs.objects.new_of(x.0) == Some(y.0) && x.1 == y.1 && self.is_kept(x.0)
        };
        !before.is_empty()
            && before.len() == now.len()
            && before.iter().zip(&now).all(same)
            && outside(old, a)
            && outside(new, b)
            && is_indexed(old, pair.0, a)
            && is_indexed(new, pair.1, b)
    }

    /// True for a branch within the body that goes equally far: most sites are such, and nothing has to be
    /// looked up for them.
    fn is_same_step(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let (f, g) = (&self.old.map.functions[pair.0], &self.new.map.functions[pair.1]);
        let (x, y) = (&f.ranges[0], &g.ranges[0]);
        (a.usage, a.encoding) == (Use::Branch, Encoding::PcRelative)
            && (b.usage, b.encoding) == (a.usage, a.encoding)
            && !(f.overlaps || g.overlaps)
            && (x.address..x.end()).contains(&a.target)
            && (y.address..y.end()).contains(&b.target)
            && a.target - x.address == b.target - y.address
    }

    /// What the compiler's own start-up and exit code asks for if it is there, as `__cxa_finalize`, gets a version as soon as
    /// the image needs the library that has it. The old code goes on as it was linked.
    fn same_weak_import(&self, a: &Site, b: &Site) -> bool {
        fn import<'b>(build: &'b Build<'_>, site: &Site) -> Option<&'b str> {
            match build.map.resolve(&build.image, site) {
                Target::Stub(Word::Symbol(name, 0)) | Target::Slot(Word::Symbol(name, 0)) => {
                    build.image.weak.contains(name).then_some(name)
                }
                _ => None,
            }
        }
        match (import(self.old, a), import(self.new, b)) {
            (Some(x), Some(y)) => {
                let versions = (x.split_once('@'), y.split_once('@'));
                matches!(versions, (None, Some((name, _))) if name == x)
                    || matches!(versions, (Some((name, _)), None) if name == y)
            }
            _ => false,
        }
    }

    fn is_startup_code(&self, old: FunctionId) -> bool {
        // Without symbols: it begins with the comparison of `__TMC_END__` with itself.
        let compares_itself = || {
            let sites = &self.old.code[old].ranges[0].sites;
            let (Some(s), Some(t)) = (sites.get(0), sites.get(1)) else { return false };
            s.target == t.target && (s.usage, t.usage) == (Use::Address, Use::Address) && t.end < 32
        };
        match self.old.map.functions[old].evidence {
            Evidence::Gap => compares_itself(),
            _ => self.old.map.functions[old].file == "crtstuff.c",
        }
    }

    fn tables(&self, pair: (FunctionId, FunctionId), x: &JumpTable, y: &JumpTable) -> bool {
        x.relative == y.relative
            && x.targets.len() == y.targets.len()
            && x.targets.iter().zip(&y.targets).all(|(p, q)| {
                let inside = |found: Option<(FunctionId, usize, u64)>, id| {
                    found.filter(|f| f.0 == id).map(|(_, range, offset)| (range, offset))
                };
                let from = inside(self.old.map.function_at(*p), pair.0);
                from.is_some() && from == inside(self.new.map.function_at(*q), pair.1)
            })
    }

    fn addresses(&self, within: Option<(FunctionId, FunctionId)>, (a, b): (u64, u64), usage: Use) -> Verdict {
        let x = self.old.map.resolve_address(&self.old.image, a, usage);
        let y = self.new.map.resolve_address(&self.new.image, b, usage);
        match (x, y) {
            (Target::Function(f, i, m), Target::Function(g, j, n)) => {
                if (i, m) != (j, n) || within == Some((f, g)) {
                    return ((i, m) == (j, n)).into();
                }
                match self.pairs.functions.relation(f, g) {
                    Relation::Pair => Verdict::Same,
                    _ if self.copies.are_equal(f, g) => Verdict::Same,
                    Relation::Open => Verdict::UndecidedFunctions(f, g),
                    Relation::Apart => Verdict::Different,
                }
            }
            (Target::Object(o, m), Target::Object(p, n)) => self.objects(within, (o, m), (p, n), (a, b), usage),
            (Target::Stub(v), Target::Stub(w)) => self.words(v, w),
            (Target::Slot(_), Target::Slot(w)) if !self.slot_tails(a, b, w) => Verdict::Different,
            (Target::Slot(v), Target::Slot(w)) => self.words(v, w),
            (Target::Literal, Target::Literal) => self.literals(a, b, usage),
            (Target::Marker(m), Target::Marker(n)) => (m == n).into(),
            (Target::Header(m), Target::Header(n)) => (m == n).into(),
            // An unresolved weak symbol.
            (Target::Unknown, Target::Unknown) if a == 0 && b == 0 => Verdict::Same,
            (Target::Unknown, Target::Unknown) => {
                let ends = || usage == Use::Address && within.is_some_and(|pair| self.ends_of_constants(pair, a, b));
                (self.data_in_code(within, (a, b), usage) || ends()).into()
            }
            _ => Verdict::Different,
        }
    }

    /// The ends of the constants of both builds, which end with what the two functions use, and that is the same: where a loop
    /// over the last table stops.
    fn ends_of_constants(&self, (f, g): (FunctionId, FunctionId), a: u64, b: u64) -> bool {
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
    fn data_in_code(&self, within: Option<(FunctionId, FunctionId)>, (a, b): (u64, u64), usage: Use) -> bool {
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

    fn objects(
        &self,
        within: Option<(FunctionId, FunctionId)>,
        x: (ObjectId, i64),
        y: (ObjectId, i64),
        (a, b): (u64, u64),
        usage: Use,
    ) -> Verdict {
        let paired = |o: (ObjectId, i64), p: (ObjectId, i64)| {
            self.pairs.objects.new_of(o.0) == Some(p.0) && o.1 == p.1 && self.is_kept(o.0)
        };
        if paired(x, y) {
            return Verdict::Same;
        }
        if usage == Use::Address && self.pairs.objects.new_of(x.0) != Some(y.0) {
            // `&a[64]` and `&b[0]` may be one number: a meaning that both share is the meaning, if the function uses
            // that object otherwise too. Else the objects behind it changed places, and it means another one now.
            let meanings = self.new.map.candidates(b);
            let used =
                |o: ObjectId, p: ObjectId| within.is_some_and(|(f, g)| uses(self.old, f, o) && uses(self.new, g, p));
            let shared = |o: &(ObjectId, i64), p: &(ObjectId, i64)| paired(*o, *p) && used(o.0, p.0);
            let before = self.old.map.candidates(a);
            if before.iter().any(|o| meanings.iter().any(|p| shared(o, p))) {
                return Verdict::Same;
            }
            // So it is with objects without a symbol, once they are a pair.
            let unnamed = |o: ObjectId, p: ObjectId| self.old.map.objects[o].unnamed && self.new.map.objects[p].unnamed;
            let open =
                |o: (ObjectId, i64), p: (ObjectId, i64)| unnamed(o.0, p.0) && self.may_be_pair(o, p) && used(o.0, p.0);
            let found = before.iter().find_map(|o| Some((o.0, meanings.iter().find(|p| open(*o, **p))?.0)));
            if let Some((o, p)) = found.filter(|_| !self.may_be_pair(x, y)) {
                return Verdict::Undecided(o, p);
            }
        }
        if self.may_be_pair(x, y) { Verdict::Undecided(x.0, y.0) } else { Verdict::Different }
    }

    /// True if two objects are both still alone, and nothing speaks against their being one.
    fn may_be_pair(&self, x: (ObjectId, i64), y: (ObjectId, i64)) -> bool {
        let alone = self.pairs.objects.new_of(x.0).is_none() && self.pairs.objects.old_of(y.0).is_none();
        let (o, p) = (&self.old.map.objects[x.0], &self.new.map.objects[y.0]);
        let same_size = o.size == p.size || o.unnamed && p.unnamed;
        alone && x.1 == y.1 && same_size && o.constant == p.constant
    }

    /// Compares two literals by content.
    pub(crate) fn literals(&self, a: u64, b: u64, usage: Use) -> Verdict {
        let (x, y) = match usage {
            Use::Access(n) => {
                let (x, y) = (self.old.image.bytes(a, u64::from(n)), self.new.image.bytes(b, u64::from(n)));
                match (x, y) {
                    (Some(x), Some(y)) => (x, y),
                    _ => return Verdict::Different,
                }
            }
            _ => (self.old.map.literal(&self.old.image, a), self.new.map.literal(&self.new.image, b)),
        };
        let verdict = self.contents((a, x), (b, y), false);
        if let Verdict::UndecidedFunctions(f, _) = verdict {
            // More may be open behind it, so whatever becomes of it must be noted.
            self.pairs.functions.new_of(f);
        }
        verdict
    }

    /// True if `size` bytes of the two builds are the same, words that hold addresses by what they lead to.
    pub(crate) fn same_content(&self, a: u64, b: u64, size: u64) -> bool {
        match (self.old.image.bytes(a, size), self.new.image.bytes(b, size)) {
            (Some(x), Some(y)) => self.contents((a, x), (b, y), false) == Verdict::Same,
            _ => false,
        }
    }

    /// Compares two pieces of data: bytes, and words that hold addresses. Undecided only
    /// if everything else is the same. `rust`: only Rust knows of this data.
    fn contents(&self, a: (u64, &[u8]), b: (u64, &[u8]), rust: bool) -> Verdict {
        let mut all = Verdict::Same;
        self.pieces(a, b, rust, &mut |verdict| {
            all = all.and(verdict);
            all != Verdict::Different
        });
        all
    }

    /// The verdicts of all pieces of two pieces of data, until `go_on` has heard enough.
    fn pieces(&self, (a, x): (u64, &[u8]), (b, y): (u64, &[u8]), rust: bool, go_on: &mut dyn FnMut(Verdict) -> bool) {
        if x.len() != y.len() {
            go_on(Verdict::Different);
            return;
        }
        let (mut old_fields, mut new_fields) = (fields(self.old, a, x.len()), fields(self.new, b, y.len()));
        let mut at = 0;
        loop {
            let (end, width, field) = match (old_fields.next(), new_fields.next()) {
                (None, None) => (x.len(), 0, Verdict::Same),
                (Some((i, v)), Some((j, w))) if i == j && i >= at => match (v, w) {
                    (DataField::Word(v), DataField::Word(w)) => {
                        let verdict = self.words(v, w);
                        let texts = verdict == Verdict::Different
                            && self.same_text_words((v, count(x, i)), (w, count(y, i)), rust);
                        (i, 8, if texts { Verdict::Same } else { verdict })
                    }
                    (DataField::Distance(v), DataField::Distance(w)) => {
                        let verdict = self.addresses(None, (v.target, w.target), Use::Address);
                        let text = v.rust && w.rust && verdict == Verdict::Different;
                        (i, 4, if text && self.same_to_next(v.target, w.target) { Verdict::Same } else { verdict })
                    }
                    _ => (i, 0, Verdict::Different),
                },
                _ => (x.len(), 0, Verdict::Different),
            };
            let bytes = if field == Verdict::Different { field } else { self.plain_bytes((a, x), (b, y), at..end) };
            if !go_on(bytes) || !go_on(field) || end == x.len() {
                return;
            }
            at = (end + width).min(x.len());
        }
    }

    /// What is open in the content of a pair of objects, if everything else in it is the same.
    pub(crate) fn open_contents(&self, (o, p): (ObjectId, ObjectId)) -> Vec<Verdict> {
        let mut open = Vec::new();
        let mut same = true;
        self.object_pieces((o, p), &mut |verdict| {
            same &= verdict != Verdict::Different;
            open.extend(Some(verdict).filter(|v| *v != Verdict::Same));
            same
        });
        if same { open } else { Vec::new() }
    }

    /// Bytes without dynamic relocations. In a position-dependent image an aligned word
    /// may be an address all the same.
    fn plain_bytes(&self, (a, x): (u64, &[u8]), (b, y): (u64, &[u8]), span: std::ops::Range<usize>) -> Verdict {
        let (p, q) = (&x[span.clone()], &y[span.clone()]);
        let (a, b) = (a + span.start as u64, b + span.start as u64);
        let lead = ((8 - a % 8) % 8).min(p.len() as u64) as usize;
        if !(self.old.image.fixed_address && self.new.image.fixed_address) || a % 8 != b % 8 || p[..lead] != q[..lead] {
            return (p == q).into();
        }
        p[lead..].chunks(8).zip(q[lead..].chunks(8)).fold(Verdict::Same, |verdict, (v, w)| {
            verdict.and(match (v.try_into().map(u64::from_le_bytes), w.try_into().map(u64::from_le_bytes)) {
                (Ok(m), Ok(n)) if is_known(self.old, m) || is_known(self.new, n) => {
                    self.addresses(None, (m, n), Use::Address)
                }
                _ => (v == w).into(),
            })
        })
    }

    /// Compares what the dynamic linker puts into two words.
    pub(crate) fn words(&self, v: &Word, w: &Word) -> Verdict {
        match (v, w) {
            (Word::Address(a), Word::Address(b)) | (Word::Resolver(a), Word::Resolver(b)) => {
                if std::mem::discriminant(v) != std::mem::discriminant(w) {
                    return Verdict::Different;
                }
                self.addresses(None, (*a, *b), Use::Address)
            }
            _ => (v == w).into(),
        }
    }

    /// A thread-local slot has two words: module and offset. Compares the second ones,
    /// which the linker fills in where it knows the variable.
    pub(crate) fn slot_tails(&self, a: u64, b: u64, word: &Word) -> bool {
        if !matches!(word, Word::Tls(kind, ..) if *kind == object::elf::R_X86_64_DTPMOD64.0) {
            return true;
        }
        let (a, b) = (a + 8, b + 8);
        self.old.image.words.get(&a) == self.new.image.words.get(&b)
            && self.old.image.bytes(a, 8) == self.new.image.bytes(b, 8)
    }

    /// Compares the content of a pair of objects. References to constants that are known
    /// to have changed count as different.
    pub(crate) fn object_contents(&self, pair: (ObjectId, ObjectId)) -> Verdict {
        let mut all = Verdict::Same;
        self.object_pieces(pair, &mut |verdict| {
            all = all.and(verdict);
            all != Verdict::Different
        });
        all
    }

    fn object_pieces(&self, (o, p): (ObjectId, ObjectId), go_on: &mut dyn FnMut(Verdict) -> bool) {
        let (x, y) = (&self.old.map.objects[o], &self.new.map.objects[p]);
        // Without a symbol an object reaches to the next address that something refers to.
        let shorter = x.size.min(y.size);
        if x.size != y.size && !(x.unnamed && y.unnamed) {
            go_on(Verdict::Different);
            return;
        }
        match (self.old.image.bytes(x.address, shorter), self.new.image.bytes(y.address, shorter)) {
            (Some(p), Some(q)) => {
                let rust = rust::is_mangled(x.name()) && rust::is_mangled(y.name());
                self.pieces((x.address, p), (y.address, q), rust, go_on)
            }
            (None, None) => {}
            // One of them moved between `.bss` and `.data`.
            (Some(bytes), None) | (None, Some(bytes)) => {
                go_on(bytes.iter().all(|b| *b == 0).into());
            }
        }
    }
}

/// The number behind a word: of a text in Rust, its length.
fn count(bytes: &[u8], word: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(word + 8..word + 16)?.try_into().ok()?))
}

/// A field of data that leads somewhere.
enum DataField<'b> {
    Word(&'b Word),
    Distance(&'b Distance),
}

/// The fields of `size` bytes of data, by offset.
fn fields<'b>(build: &'b Build<'_>, start: u64, size: usize) -> impl Iterator<Item = (usize, DataField<'b>)> {
    let span = start..start + size as u64;
    let mut words = build.image.words.range(span.clone()).peekable();
    let mut distances = build.map.distances.range(span).peekable();
    std::iter::from_fn(move || {
        let word_first = match (words.peek(), distances.peek()) {
            (Some(w), Some(d)) => w.0 < d.0,
            (word, _) => word.is_some(),
        };
        let field = if word_first {
            words.next().map(|(at, w)| (at, DataField::Word(w)))
        } else {
            distances.next().map(|(at, d)| (at, DataField::Distance(d)))
        };
        field.map(|(at, f)| ((at - start) as usize, f))
    })
}

/// True if a function refers to an object, not only to its end.
pub(crate) fn uses(build: &Build<'_>, function: FunctionId, object: ObjectId) -> bool {
    let object = &build.map.objects[object];
    let mut sites = build.code[function].ranges.iter().flat_map(|c| &c.sites);
    sites.any(|s| (object.address..object.end()).contains(&s.target))
}

/// True if `function` calculates with the address that its site makes.
pub(crate) fn is_indexed(build: &Build<'_>, function: FunctionId, site: &Site) -> bool {
    range_of(build, function, site).is_some_and(|range| arch::is_indexed(range.bytes, site.instruction, site.offset))
}

/// The code that contains a site.
pub(crate) fn range_of<'b, 'a>(build: &'b Build<'a>, function: FunctionId, site: &Site) -> Option<&'b CodeRange<'a>> {
    let same = |s: Site| (s.offset, s.target, s.end) == (site.offset, site.target, site.end);
    let mut codes = build.code[function].ranges.iter().zip(&build.map.functions[function].ranges);
    codes.find(|(code, _)| code.sites.at(site.offset as usize).is_some_and(same)).map(|(_, range)| range)
}

/// True for a field in position-dependent code that is no address though its value lies in
/// the image: it leads nowhere, or into the middle of another function, where no
/// compiler takes addresses.
pub(crate) fn is_number(build: &Build<'_>, function: FunctionId, site: &Site) -> bool {
    if site.encoding == Encoding::PcRelative || build.image.fields.is_some() {
        return false;
    }
    let nowhere = match build.map.resolve(&build.image, site) {
        Target::Unknown => true,
        Target::Function(f, range, offset) => f != function && (range, offset) != (0, 0),
        _ => false,
    };
    // What an index is added to may lie anywhere.
    let displacement =
        |range: &CodeRange<'_>| arch::field(range.bytes, site.instruction, site.offset) == arch::Field::Displacement;
    nowhere && !range_of(build, function, site).is_some_and(displacement)
}

/// True if `address` leads to an entity.
pub(crate) fn is_known(build: &Build<'_>, address: u64) -> bool {
    build.map.resolve_address(&build.image, address, Use::Address) != Target::Unknown
}

/// What changed between two builds, by identity of entities.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Pairs of functions that differ, and where; ordered by old function.
    pub functions: Vec<(FunctionId, FunctionId, Difference)>,
    /// Pairs that do not.
    pub identical: usize,
    /// Old constant objects whose content differs.
    pub constants: FxHashSet<ObjectId>,
    /// Old writable objects whose initial content or size differs.
    pub variables: Vec<(ObjectId, ObjectId)>,
    /// Old writable objects that hold the address of a label inside a changed function.
    pub label_variables: Vec<ObjectId>,
}

/// Compares all pairs.
///
/// A constant that leads to a changed constant is changed, and so is one that holds the
/// address of a label inside a changed function (computed `goto`); functions that refer
/// to a changed constant are changed. So this repeats until nothing new is found.
pub(crate) fn compare(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> Changes {
    let mut constants = FxHashSet::default();
    loop {
        let mut changes = compare_once(old, new, pairs, constants);
        let labels = label_tables(old, &changes);
        let before = changes.constants.len();
        changes.constants.extend(labels.iter().copied().filter(|o| old.map.objects[*o].constant));
        if changes.constants.len() == before {
            changes.label_variables = labels.into_iter().filter(|o| !old.map.objects[*o].constant).collect();
            return changes;
        }
        constants = changes.constants;
    }
}

/// Old objects that hold the address of a label inside a function that changed.
fn label_tables(old: &Build<'_>, changes: &Changes) -> Vec<ObjectId> {
    let changed: FxHashSet<FunctionId> = changes.functions.iter().map(|c| c.0).collect();
    let is_label = |a: u64| {
        old.map.function_at(a).is_some_and(|(f, range, offset)| (range, offset) != (0, 0) && changed.contains(&f))
    };
    let words = old.image.words.iter().filter(|(_, w)| matches!(w, Word::Address(a) if is_label(*a)));
    let mut found: Vec<ObjectId> = words.filter_map(|(at, _)| old.map.object_at(*at)).collect();
    if old.image.fixed_address {
        found.extend(old.map.objects.iter().enumerate().filter_map(|(id, object)| {
            let bytes = old.image.bytes(object.address.next_multiple_of(8), object.size & !7)?;
            let mut words = bytes.chunks_exact(8).filter_map(|w| w.try_into().ok().map(u64::from_le_bytes));
            words.any(is_label).then_some(id)
        }));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Old constant objects whose content differs.
pub(crate) fn changed_constants(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> FxHashSet<ObjectId> {
    changed_objects(old, new, pairs, FxHashSet::default()).0
}

/// Constant objects whose content differs, these beside others; and writable ones.
fn changed_objects(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    mut constants: FxHashSet<ObjectId>,
) -> (FxHashSet<ObjectId>, Vec<(ObjectId, ObjectId)>) {
    let object_pairs: Vec<(ObjectId, ObjectId)> = pairs.objects.iter().collect();
    loop {
        let judge = Judge::new(old, new, pairs).with_changed_constants(constants.clone());
        let differing: Vec<(ObjectId, ObjectId)> =
            object_pairs.par_iter().copied().filter(|pair| judge.object_contents(*pair) != Verdict::Same).collect();
        let (constant, writable): (Vec<_>, Vec<_>) =
            differing.into_iter().partition(|(o, p)| old.map.objects[*o].constant && new.map.objects[*p].constant);
        let before = constants.len();
        constants.extend(constant.into_iter().map(|(o, _)| o));
        if constants.len() == before {
            return (constants, writable);
        }
    }
}

fn compare_once(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation, constants: FxHashSet<ObjectId>) -> Changes {
    let (constants, variables) = changed_objects(old, new, pairs, constants);
    let judge = Judge::new(old, new, pairs).with_changed_constants(constants.clone());
    let function_pairs: Vec<(FunctionId, FunctionId)> = pairs.functions.iter().collect();
    // What the last vote on a pair found still holds, unless it depended on constants that turned out to have changed.
    let is_known = |f: FunctionId| match pairs.settled[f] {
        Settled::Same => true,
        Settled::SameButForConstants => constants.is_empty(),
        Settled::Open => false,
    };
    let difference = |pair: &(FunctionId, FunctionId)| {
        if is_known(pair.0) { judge.landing_difference(*pair) } else { judge.any_difference(*pair) }
    };
    let differences: Vec<Option<Difference>> = function_pairs.par_iter().map(difference).collect();
    let mut changes = Changes { constants, variables, ..Changes::default() };
    for ((f, g), difference) in function_pairs.into_iter().zip(differences) {
        match difference {
            Some(d) => changes.functions.push((f, g, d)),
            None => changes.identical += 1,
        }
    }
    changes
}

/// Names where a site leads, for people.
pub(crate) fn describe(build: &Build<'_>, function: FunctionId, site: &Site) -> String {
    if build.table(function, site.target).is_some() {
        return "its jump table".into();
    }
    let offset = |n: i64| if n == 0 { String::new() } else { format!("{n:+#x}") };
    match build.map.resolve(&build.image, site) {
        Target::Function(id, _, 0) => build.map.functions[id].name().to_owned(),
        Target::Function(id, _, n) => format!("{}{}", build.map.functions[id].name(), offset(n as i64)),
        Target::Object(id, n) => format!("{}{}", build.map.objects[id].name(), offset(n)),
        Target::Stub(Word::Symbol(name, _)) | Target::Slot(Word::Symbol(name, _)) => name.clone(),
        Target::Stub(_) | Target::Slot(_) => "a table slot".into(),
        Target::Marker(name) => name.to_owned(),
        Target::Literal => literal_text(build, site),
        Target::Header(_) | Target::Unknown => format!("{:#x}", site.target),
    }
}

fn literal_text(build: &Build<'_>, site: &Site) -> String {
    let bytes = match site.usage {
        Use::Access(n) => build.image.bytes(site.target, u64::from(n)).unwrap_or_default(),
        _ => build.map.literal(&build.image, site.target),
    };
    match (site.usage, bytes.split_last()) {
        (Use::Address, Some((0, text))) if text.iter().all(|b| (0x20..0x7f).contains(b) || b.is_ascii_whitespace()) => {
            let text: String = String::from_utf8_lossy(text).chars().take(40).collect();
            format!("{text:?}")
        }
        _ => format!("a constant of {} bytes", bytes.len()),
    }
}
