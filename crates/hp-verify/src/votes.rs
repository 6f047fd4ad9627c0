//! Pairing what has no name that counts: static locals, data without a symbol, functions of stripped builds.
//!
//! Two functions that are a pair and agree in everything else name, by each reference, a pair of entities. Such votes
//! must be unanimous over the whole program: one contrary vote on either side, and nothing is proven. Debug information
//! names the owner of a static local, which is as good as a name. Position is no evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use rayon::prelude::*;
use rustc_hash::FxHashMap;
use sha2::{Digest, Sha256};

use crate::bounded;
use crate::code::{self, Use};
use crate::counted;
use crate::derived::{Back, Derived};
use crate::entities::{Family, Range, Side};
use crate::ground::{Doubt, Ground, Within};
use crate::image::Word;
use crate::pairs::{OneToOne, numbered};
use crate::rust;
use crate::startup;
use crate::statics::Statics;

/// Why two functions are not the same: where in the new one, and what.
pub(crate) struct Difference {
    pub(crate) at: u64,
    pub(crate) what: String,
    /// Only the number that an instruction has as an immediate operand, or line and column of a place in a source of Rust.
    pub(crate) immediate: bool,
}

impl Ground<'_, '_> {
    /// Compares the function that range `f` enters with the one that `g` enters. `undecided` says of each reference
    /// that only a missing pair makes unequal whether it may count as equal.
    pub(crate) fn compare_functions(
        &self,
        (f, g): (usize, usize),
        undecided: &mut dyn FnMut(Doubt) -> bool,
        differs: &mut dyn FnMut(Difference) -> bool,
    ) {
        let families = (Family::of(self.old, f), Family::of(self.new, g));
        self.compare_known((f, g), (&families.0, &families.1), undecided, differs);
    }

    /// The same, where it is known what they refer to.
    pub(crate) fn compare_known(
        &self,
        (f, g): (usize, usize),
        (old, new): (&Family<'_>, &Family<'_>),
        undecided: &mut dyn FnMut(Doubt) -> bool,
        differs: &mut dyn FnMut(Difference) -> bool,
    ) {
        let (parts, twins) = (self.old.family(f), self.new.family(g));
        let start = self.new.ranges[g].address;
        if parts.len() != twins.len() {
            differs(Difference { at: start, what: "it is divided into other parts".into(), immediate: false });
            return;
        }
        let startup = startup::is_startup(self.new, g);
        let rust = self.old.ranges[f].rust && self.new.ranges[g].rust;
        let within = Within { old: Some(old), new: Some(new), patch: false, startup, rust };
        for (part, twin) in parts.iter().zip(twins) {
            if !self.compare_ranges((*part, *twin), within, undecided, differs) {
                return;
            }
        }
    }

    fn compare_ranges(
        &self,
        (f, g): (usize, usize),
        within: Within<'_>,
        undecided: &mut dyn FnMut(Doubt) -> bool,
        differs: &mut dyn FnMut(Difference) -> bool,
    ) -> bool {
        let (x, y) = (&self.old.ranges[f], &self.new.ranges[g]);
        if x.bytes.len() != y.bytes.len() {
            return differs(Difference { at: y.address, what: "another length".into(), immediate: false });
        }
        let (mut end, mut derived) = (0, Derived::new());
        for (at, t) in self.new.steps(g) {
            let here = y.address + at as u64;
            let same = t.fields_elsewhere(&y.bytes[at..], &x.bytes[at..], x.address + at as u64);
            let fields = match same {
                Some(fields) => fields,
                None => {
                    let Some(s) = code::step(x.address + at as u64, &x.bytes[at..], self.old.image.fixed) else {
                        break;
                    };
                    let (a, b) = (&x.bytes[at..at + s.len()], &y.bytes[at..at + t.len()]);
                    let shape = s.fields.len() == t.fields.len()
                        && s.fields
                            .iter()
                            .zip(t.fields.iter())
                            .all(|(f, g)| (f.at, f.width, f.usage) == (g.at, g.width, g.usage));
                    let plain = |i: &usize| a[*i] != b[*i] && !s.fields.cover(*i);
                    if a.len() != b.len() || !shape || s.instruction.code() != t.instruction.code() {
                        return differs(Difference { at: here, what: "another instruction".into(), immediate: false });
                    }
                    if (0..a.len()).any(|i| plain(&i)) {
                        let number = |(from, width): (usize, usize)| {
                            (0..a.len()).filter(plain).all(|i| (from..from + width).contains(&i))
                        };
                        let immediate = code::immediate(a).is_some_and(number);
                        if !differs(Difference { at: here, what: "another instruction".into(), immediate }) {
                            return false;
                        }
                    }
                    s.fields
                }
            };
            let made = fields.iter().zip(t.fields.iter()).find(|(_, f)| self.makes_address(f, within));
            for Back { from: (a, n), bytes, accessed } in derived.see(&t, made.map(|(f, g)| (f.target, g.target))) {
                if (accessed || self.new.is_end_of_text(n, bytes))
                    && let Err(Doubt::No(what)) = self.same_before(a, n, bytes, within)
                    && !differs(Difference { at: here, what, immediate: false })
                {
                    return false;
                }
            }
            for (old, new) in fields.iter().zip(t.fields.iter()) {
                // The end, where nothing begins, is where clang goes from what cannot be reached.
                let inside = |side: &Side<'_>, range: &Range<'_>, at: u64| {
                    let ends = || at == range.end() && side.range_at(at).is_none();
                    (range.address..range.end()).contains(&at) || ends()
                };
                let own = inside(self.old, x, old.target) && inside(self.new, y, new.target);
                let short = new.usage == Use::Branch && own && old.target - x.address == new.target - y.address;
                if short {
                    continue;
                }
                let places = ((f, x.address + at as u64), (g, here));
                let border = self.same_border((old, new), places.0, places.1, within);
                let meant = border.or_else(|| self.same_ahead((old, new), (g, here), within));
                let counted = || {
                    let length = within.rust.then(|| counted::length(x.bytes, at)).flatten();
                    length.is_some_and(|n| {
                        counted::length(y.bytes, at) == Some(n) && self.same_counted(old.target, new.target, n)
                    })
                };
                // Code that is the same reads as far in both builds.
                let bounded = || {
                    let reads = bounded::reads(y.bytes, at).filter(|_| self.new.family(g).len() == 1);
                    reads.is_some_and(|(start, end)| self.same_bytes_at(old.target, new.target, (start, end)))
                };
                match meant.unwrap_or_else(|| self.same_field(old, new, within)) {
                    Ok(_) => {}
                    Err(Doubt::No(_))
                        if new.usage == Use::Address
                            && (counted()
                                || bounded()
                                || !within.rust && self.same_text_elsewhere(old.target, new.target)) => {}
                    Err(Doubt::No(what)) => {
                        let immediate = !new.relative
                            || self.same_but_for_line(old.target, new.target, within)
                            || self.same_but_for_number(old.target, new.target);
                        if !differs(Difference { at: here, what, immediate }) {
                            return false;
                        }
                    }
                    Err(doubt) => {
                        let what = self.describe(&doubt);
                        if !undecided(doubt) && !differs(Difference { at: here, what, immediate: false }) {
                            return false;
                        }
                    }
                }
            }
            end = at + t.len();
        }
        if x.bytes[end..] != y.bytes[end..] {
            return differs(Difference {
                at: y.address + end as u64,
                what: "bytes that are no instruction".into(),
                immediate: false,
            });
        }
        true
    }

    /// Words for a doubt that no vote has settled.
    pub(crate) fn describe(&self, doubt: &Doubt) -> String {
        match doubt {
            Doubt::No(what) => what.clone(),
            Doubt::Objects(o, p) => {
                let (x, y) = (self.old.objects[*o].names[0], self.new.objects[*p].names[0]);
                format!("nothing proves that {x} of the base is {y} of the new build")
            }
            Doubt::Ranges(f, g) => {
                let (x, y) = (self.old.ranges[*f].address, self.new.ranges[*g].address);
                format!("nothing proves that the function at {x:#x} of the base is the one at {y:#x} of the new build")
            }
            Doubt::Data(a, n) => {
                format!("nothing proves that the data at {a:#x} of the base is that at {n:#x} of the new build")
            }
        }
    }

    /// Pairs what names do not, until that is `enough`. `choose` says of copies that are replaced what they become: where the patch
    /// leaves no choice, or what it may be.
    pub(crate) fn settle(
        &mut self,
        statics: (&Statics, &Statics),
        choose: &dyn Fn(&mut Self, bool),
        enough: &dyn Fn(&Self) -> bool,
    ) {
        self.join_statics(statics);
        self.compare_constants();
        if enough(self) {
            return;
        }
        // What one round pairs, others do not part again.
        while self.vote() {
            if enough(self) {
                return;
            }
        }
        if self.old.ranges.iter().any(|r| r.unnamed) {
            let prints = (fingerprints(self.old), fingerprints(self.new));
            for smallest in [64, 0] {
                self.join_by_content(smallest, (&prints.0, &prints.1));
            }
        }
        self.join_rust_by_content();
        self.join_lone_statics(statics);
        while self.vote() {}
        let candidates = self.candidates();
        let mut guess = false;
        loop {
            self.compare_constants();
            self.find_copies(&candidates);
            if self.pairs.several.0.is_empty() {
                return;
            }
            // What calls copies is the same once these are.
            let before = self.pairs.ranges.len();
            choose(self, guess);
            let any = self.vote() || self.pairs.ranges.len() > before;
            if !any && guess || enough(self) {
                return;
            }
            guess = !any;
        }
    }

    fn join_statics(&mut self, statics: (&Statics, &Statics)) {
        let keys = |statics: &Statics, side: &Side<'_>| -> Vec<((String, String, String), usize)> {
            let known = statics.0.iter().filter_map(|(address, owner)| {
                let (object, offset) = side.object_at(*address)?;
                (offset == 0).then(|| (owner.clone(), object))
            });
            known.collect()
        };
        let (old, new) = (keys(statics.0, self.old), keys(statics.1, self.new));
        // A file may have a namesake, a function of a file has not.
        let locals = new.iter().filter(|((_, function, _), _)| !function.is_empty());
        self.identified = locals.map(|(_, object)| *object).collect();
        self.pairs.objects.join_by(old.into_iter(), new.into_iter());
    }

    /// A static local that is the only one of its name in its file, in both builds, of which debug information knows
    /// nothing, and that one function uses in both.
    fn join_lone_statics(&mut self, statics: (&Statics, &Statics)) {
        let lone = |side: &Side<'_>, statics: &Statics| -> BTreeMap<(String, String), usize> {
            let mut found: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
            for (i, object) in side.objects.iter().enumerate().filter(|(_, o)| o.local) {
                if let Some(stem) = numbered(object.names[0]) {
                    found.entry((object.file.to_owned(), stem.to_owned())).or_default().push(i);
                }
            }
            let single = found.into_iter().filter(|(_, list)| list.len() == 1).map(|(key, list)| (key, list[0]));
            single.filter(|(_, o)| !statics.0.contains_key(&side.objects[*o].address)).collect()
        };
        let (old, new) = (lone(self.old, statics.0), lone(self.new, statics.1));
        let pairs: Vec<(usize, usize)> = old.iter().filter_map(|(key, o)| Some((*o, *new.get(key)?))).collect();
        let users = |side: &Side<'_>, wanted: &BTreeSet<usize>| -> FxHashMap<usize, BTreeSet<usize>> {
            let mut users: FxHashMap<usize, BTreeSet<usize>> = FxHashMap::default();
            for range in (0..side.ranges.len()).filter(|_| !wanted.is_empty()) {
                for field in side.steps(range).flat_map(|(_, s)| s.fields) {
                    if let Some((object, _)) = side.object_at(field.target).filter(|o| wanted.contains(&o.0)) {
                        users.entry(object).or_default().insert(side.ranges[range].parent);
                    }
                }
            }
            users
        };
        let before = users(self.old, &pairs.iter().map(|p| p.0).collect());
        let now = users(self.new, &pairs.iter().map(|p| p.1).collect());
        for (o, p) in pairs {
            let shared =
                |f: &usize| self.pairs.ranges.new_of(*f).is_some_and(|g| now.get(&p).is_some_and(|u| u.contains(&g)));
            if before.get(&o).is_some_and(|users| users.iter().any(shared)) {
                self.pairs.objects.join(o, p);
            }
        }
    }

    /// One round; true if it paired anything.
    fn vote(&mut self) -> bool {
        self.compare_open_constants();
        let open = |(f, _): &(usize, usize)| self.old.ranges[*f].parent == *f && !self.silent.contains(f);
        let entries: Vec<(usize, usize)> = self.pairs.ranges.iter().filter(open).collect();
        // `None` of those that differ.
        let votes: Vec<Option<Vec<Doubt>>> = entries
            .par_iter()
            .map(|pair| {
                let (mut votes, mut differs) = (Vec::new(), false);
                let mut undecided = |doubt| {
                    votes.push(doubt);
                    true
                };
                self.compare_functions(*pair, &mut undecided, &mut |_| {
                    differs = true;
                    false
                });
                (!differs).then_some(votes)
            })
            .collect();
        let agree = entries.iter().zip(&votes).filter(|(_, votes)| votes.as_ref().is_some_and(Vec::is_empty));
        self.silent.extend(agree.map(|((f, _), _)| *f));
        let (mut objects, mut ranges, mut data) = (Ballot::default(), Ballot::default(), Ballot::default());
        // What else a constant leads to that is a pair and agrees in the rest is one, too: a table of static locals.
        let constants = self.open_constants().flat_map(|pair| self.doubts_of_constant(pair));
        for doubt in votes.into_iter().flatten().flatten().chain(constants) {
            match doubt {
                Doubt::Objects(o, p) => objects.cast(o, p),
                Doubt::Ranges(f, g) => ranges.cast(f, g),
                Doubt::Data(a, n) => data.cast(a, n),
                Doubt::No(_) => {}
            }
        }
        let before = self.pairs.objects.len() + self.pairs.ranges.len() + self.pairs.data.len();
        for (o, p) in objects.unanimous() {
            self.pairs.objects.join(o, p);
        }
        for (f, g) in ranges.unanimous() {
            self.pairs.ranges.join(f, g);
        }
        let taken: BTreeSet<u64> = self.pairs.data.values().copied().collect();
        self.pairs.data.extend(data.unanimous().into_iter().filter(|(_, n)| !taken.contains(n)));
        self.pairs.join_by_name(self.old, self.new);
        self.pairs.objects.len() + self.pairs.ranges.len() + self.pairs.data.len() > before
    }

    /// Functions of Rust whose name, without its version, and content together occur once in each build: instances of one generic
    /// function for several types have one name.
    fn join_rust_by_content(&mut self) {
        let keys = |side: &Side<'_>, alone: &dyn Fn(usize) -> bool| {
            let entries = (0..side.ranges.len()).filter(|i| side.ranges[*i].parent == *i && alone(*i));
            let named = entries.filter_map(|i| {
                let name = rust::unversioned(side.ranges[i].name()).filter(|_| !side.ranges[i].unnamed)?;
                Some(((name.into_owned(), fingerprint(side, i)), i))
            });
            named.collect::<Vec<_>>()
        };
        let several = &self.pairs.several;
        let old = keys(self.old, &|i| self.pairs.ranges.new_of(i).is_none() && !several.0.contains(&i));
        let new = keys(self.new, &|i| self.pairs.ranges.old_of(i).is_none() && !several.1.contains(&i));
        self.pairs.ranges.join_by(old.into_iter(), new.into_iter());
        while self.vote() {}
    }

    /// Functions without a name whose content, with what that leads to where it has a name or a content of its own,
    /// occurs once in each build.
    fn join_by_content(&mut self, smallest: usize, (old, new): (&[Fingerprint], &[Fingerprint])) {
        loop {
            let before = self.pairs.ranges.len();
            let keys = |side: &Side<'_>, prints: &[Fingerprint]| -> Vec<Fingerprint> {
                prints.iter().filter(|(_, i)| side.ranges[*i].bytes.len() >= smallest).copied().collect()
            };
            let (old, new) = (keys(self.old, old), keys(self.new, new));
            self.pairs.ranges.join_by(old.into_iter(), new.into_iter());
            while self.vote() {}
            if self.pairs.ranges.len() == before {
                return;
            }
        }
    }
}

/// What identifies a function by its content, and the range that enters it.
type Fingerprint = ([u8; 32], usize);

/// Those of all functions without a name.
fn fingerprints(side: &Side<'_>) -> Vec<Fingerprint> {
    let all = (0..side.ranges.len()).into_par_iter();
    let entries = all.filter(|i| side.ranges[*i].unnamed && side.ranges[*i].parent == *i);
    entries.map(|i| (fingerprint(side, i), i)).collect()
}

fn fingerprint(side: &Side<'_>, entry: usize) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in side.family(entry) {
        let range = &side.ranges[*part];
        hash.update((range.bytes.len() as u64).to_le_bytes());
        for (at, step) in side.steps(*part) {
            let mut bytes = range.bytes[at..at + step.len()].to_vec();
            for field in step.fields {
                bytes[field.at..field.at + field.width].fill(0);
                hash.update(content_of(side, range, field.target, field.usage));
            }
            hash.update(&bytes);
        }
    }
    hash.finalize().into()
}

/// What a place says of itself, wherever it lies.
fn content_of(side: &Side<'_>, own: &Range<'_>, target: u64, usage: Use) -> Vec<u8> {
    if (own.address..own.end()).contains(&target) {
        return (target - own.address).to_le_bytes().to_vec();
    }
    let word = side.image.stub_word(target).or_else(|| side.image.words.get(&target));
    match word {
        Some(Word::Symbol(name, _) | Word::Copy(name)) => return name.clone().into_bytes(),
        Some(_) => return Vec::new(),
        None => {}
    }
    if let Some((range, offset)) = side.range_at(target) {
        let range = &side.ranges[range];
        return if range.unnamed { Vec::new() } else { format!("{}+{offset}", range.name()).into_bytes() };
    }
    let constant = side.image.section_at(target).is_some_and(|s| s.is_constant() && !s.code);
    if !constant || side.image.fixed {
        return Vec::new();
    }
    let bytes = match usage {
        Use::Access(n) => side.image.bytes(target, n).unwrap_or_default(),
        _ => side.literal(target),
    };
    let plain = side.image.words.range(target..target + bytes.len() as u64).next().is_none();
    // A table of distances looks different wherever it lies.
    let text = crate::entities::text_length(bytes) == bytes.len() || usage != Use::Address;
    if plain && text { bytes.to_vec() } else { Vec::new() }
}

/// Votes for pairs.
struct Ballot<T> {
    by_old: BTreeMap<T, BTreeSet<T>>,
    by_new: BTreeMap<T, BTreeSet<T>>,
}

impl<T: Ord + Copy + Hash> Default for Ballot<T> {
    fn default() -> Self {
        Ballot { by_old: BTreeMap::new(), by_new: BTreeMap::new() }
    }
}

impl<T: Ord + Copy + Hash> Ballot<T> {
    fn cast(&mut self, old: T, new: T) {
        self.by_old.entry(old).or_default().insert(new);
        self.by_new.entry(new).or_default().insert(old);
    }

    fn unanimous(&self) -> Vec<(T, T)> {
        let single = self.by_old.iter().filter(|(_, choices)| choices.len() == 1);
        let pairs = single.filter_map(|(old, choices)| Some((*old, *choices.first()?)));
        pairs.filter(|(_, new)| self.by_new[new].len() == 1).collect()
    }
}

/// All entries that are pairs: for those who go through the whole program.
pub(crate) fn entries(ranges: &OneToOne, old: &Side<'_>) -> Vec<(usize, usize)> {
    ranges.iter().filter(|(f, _)| old.ranges[*f].parent == *f).collect()
}
