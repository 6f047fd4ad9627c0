//! Are an old and a new entity the same?
//!
//! Two functions are the same if their bytes agree outside of the fields that lead
//! somewhere, and each pair of fields leads to the same entity: paired functions and
//! objects by identity, imports by name and version, literals and jump tables by content.
//! Constant objects are the same if their content is, words that hold addresses being
//! compared by what they lead to.
//!
//! Here: where references lead. [`code`] compares functions, [`content`] data, [`around`] what code may mean beside the place that
//! its address leads to, [`rust`] what only Rust has, [`startup`] what compilers bring along. [`agreed`] keeps what is the same.

mod agreed;
mod around;
mod code;
mod content;
mod rust;
mod startup;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use rustc_hash::FxHashSet;

use crate::ahead;
use crate::arch::{Encoding, JumpTable, Site, Use};
use crate::before;
use crate::build::Build;
use crate::copies::Copies;
use crate::correlate::{Correlation, Relation, View};
use crate::elsewhere;
use crate::entity::{FunctionId, ObjectId, Target};
use crate::image::Word;
use crate::usage::{is_limit, is_number, uses};

pub(crate) use agreed::Agreed;
pub(crate) use code::Difference;
pub(crate) use content::count;

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
    /// What is known to be the same wherever it is asked about.
    agreed: &'j Agreed,
    /// More of that is kept; then one thread asks alone.
    keeps: bool,
    /// Some verdict depended on the functions that the sites are in.
    local: AtomicBool,
}

impl<'j, 'a> Judge<'j, 'a> {
    pub(crate) fn new(old: &'j Build<'a>, new: &'j Build<'a>, pairs: &'j Correlation) -> Judge<'j, 'a> {
        Judge {
            old,
            new,
            pairs: View::of(pairs),
            copies: &pairs.copies,
            changed: FxHashSet::default(),
            asked_changed: AtomicBool::new(false),
            agreed: &pairs.agreed,
            keeps: false,
            local: AtomicBool::new(false),
        }
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

    /// Keeps for all others what it finds to be the same. To be asked by one thread alone.
    pub(crate) fn keeping(mut self) -> Self {
        self.keeps = true;
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

    /// True if no constant object is known to have changed.
    pub(crate) fn knows_no_changed_constants(&self) -> bool {
        self.changed.is_empty()
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

    /// Compares where two sites of a pair of functions lead.
    pub(crate) fn sites(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> Verdict {
        if self.is_same_step(pair, a, b) {
            return Verdict::Same;
        }
        if let (Some(x), Some(y)) = (self.old.table(pair.0, a.target), self.new.table(pair.1, b.target)) {
            // What a loop reads by the end of an array that lies before the table is not the table.
            let verdict = self.tables(pair, x, y).into();
            return self.object_ahead(pair, a, b, verdict).unwrap_or(verdict);
        }
        let lead = self.or_agreed(self.question(pair, a, b), || self.lead(pair, a, b));
        let verdict = match lead {
            ControlFlow::Break(verdict) => return verdict,
            ControlFlow::Continue(verdict) => verdict,
        };
        if verdict == Verdict::Same && self.may_be_changed_end(pair, a, b) {
            return Verdict::Different;
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

    /// The same, what lies before the addresses put aside: a verdict that stands, or one that this may change.
    fn lead(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> ControlFlow<Verdict, Verdict> {
        let mut verdict = self.addresses(Some(pair), (a.target, b.target), a.usage);
        if verdict != Verdict::Same {
            self.note_local();
        }
        if verdict != Verdict::Same && self.is_startup_code(pair.0) {
            if a.usage == Use::Address {
                verdict = self.same_linker_symbol(pair.0, a, b).into();
            }
            if verdict == Verdict::Different && self.same_weak_import(a, b) {
                return ControlFlow::Break(Verdict::Same);
            }
        }
        match (is_number(self.old, pair.0, a), is_number(self.new, pair.1, b)) {
            (true, true) => return ControlFlow::Break((a.target == b.target).into()),
            // An address would be another one now.
            (true, false) | (false, true) if a.target == b.target => {
                self.note_local();
                return ControlFlow::Break(Verdict::Same);
            }
            _ => {}
        }
        if verdict == Verdict::Same && elsewhere::means_elsewhere(self.old, pair.0, a) {
            self.note_local();
            return ControlFlow::Break(self.same_reach_of_constants(a, b).into());
        }
        let same = verdict == Verdict::Different
            && match a.usage {
                Use::Address => {
                    self.same_in_reach(pair, a, b)
                        || self.same_rust_constant(pair, a.target, b.target)
                        || self.same_counted_argument(pair, a, b)
                        || self.same_bounded(pair, a, b)
                        || !self.are_rust(pair) && self.same_before_leftovers(a.target, b.target)
                }
                Use::Access(size) => self.same_rust_access(pair, (a, b), u64::from(size)),
                _ => false,
            };
        let verdict = if same { Verdict::Same } else { verdict };
        if let Some(verdict) = self.object_ahead(pair, a, b, verdict) {
            return ControlFlow::Break(verdict);
        }
        self.ahead(pair, a, b, verdict).map_or(ControlFlow::Continue(verdict), ControlFlow::Break)
    }

    /// True for a branch within the body that goes equally far: most sites are such, and nothing has to be
    /// looked up for them.
    fn is_same_step(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> bool {
        let (f, g) = (&self.old.map.functions[pair.0], &self.new.map.functions[pair.1]);
        let (x, y) = (&f.ranges[0], &g.ranges[0]);
        (a.usage, a.encoding) == (Use::Branch, Encoding::PcRelative)
            && (b.usage, b.encoding) == (a.usage, a.encoding)
            && !(f.overlaps || g.overlaps)
            && self.old.map.stays_inside(x, a.target)
            && self.new.map.stays_inside(y, b.target)
            && a.target - x.address == b.target - y.address
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
                    self.note_local();
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
                self.note_local();
                let ends = || usage == Use::Address && within.is_some_and(|pair| self.ends_of_constants(pair, a, b));
                (self.data_in_code(within, (a, b), usage) || ends()).into()
            }
            _ => Verdict::Different,
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
            // that object otherwise too. Else the objects behind it changed places, and it means another one now. So it may
            // where others begin: compilers lay out objects in the order in which they are used. Only what a loop ends with
            // is an end in any case.
            let is_end = |(f, g): (FunctionId, FunctionId)| is_limit(self.old, f, a) && is_limit(self.new, g, b);
            let begin = || x.1 == 0 && y.1 == 0 && !within.is_some_and(is_end);
            let meanings = self.new.map.candidates(b);
            let used =
                |o: ObjectId, p: ObjectId| within.is_some_and(|(f, g)| uses(self.old, f, o) && uses(self.new, g, p));
            let shared = |o: &(ObjectId, i64), p: &(ObjectId, i64)| paired(*o, *p) && used(o.0, p.0);
            let before = self.old.map.candidates(a);
            self.note_local();
            if before.iter().any(|o| meanings.iter().any(|p| shared(o, p))) && !begin() {
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
}
