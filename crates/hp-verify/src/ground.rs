//! Is a place of the old build the same entity as a place of the new build?
//!
//! Answers with the kind of entity where that is proven: functions and variables by name and offset, imports,
//! slots and stubs by the symbol behind them, constants by their content and what they refer to. Everything else is
//! a [`Doubt`]: either a plain no, or "if these two were a pair", which only a unanimous vote can settle.

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::alike;
use crate::code::{Field, Use};
use crate::entities::{DataObject, Family, Side};
use crate::image::{Image, SymbolType, Word};
use crate::loops;
use crate::moved::Contents;
use crate::pairs::{Pairs, numbered, quiet};
use crate::report::Kind;
use crate::rust;
use crate::startup;

/// Why two places are not known to be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// They are not, or nothing shows it.
    No(String),
    /// They are if these two objects are a pair; both have no name that counts.
    Objects(usize, usize),
    /// They are if these two ranges of code are.
    Ranges(usize, usize),
    /// They are if these two places in data without a symbol are.
    Data(u64, u64),
}

impl Doubt {
    pub(crate) fn no<T>(what: impl Into<String>) -> Result<T, Doubt> {
        Err(Doubt::No(what.into()))
    }
}

pub(crate) type Answer = Result<Kind, Doubt>;

/// In which pair of functions a reference is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Within<'w> {
    pub(crate) old: Option<&'w Family<'w>>,
    pub(crate) new: Option<&'w Family<'w>>,
    /// It belongs to the patch, not to unchanged code: everything about it must be certain.
    pub(crate) patch: bool,
    /// Start-up code of the compiler, which means the linker's symbols.
    pub(crate) startup: bool,
    /// It is code of Rust, or a constant that such code alone knows: constants have no terminators there, and linkers do not
    /// merge their tails, so each ends where the next one begins.
    pub(crate) rust: bool,
}

impl<'w> Within<'w> {
    /// The reference is in these two functions.
    fn are(&self, (f, g): (usize, usize)) -> bool {
        self.old.is_some_and(|old| old.entry == f) && self.new.is_some_and(|new| new.entry == g)
    }

    /// Nothing is known of who refers.
    pub(crate) fn data(patch: bool) -> Within<'w> {
        Within { patch, ..Within::default() }
    }
}

/// A range of old code that the patch replaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replaced {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) entry: bool,
}

/// Both builds and what is known of their entities.
pub(crate) struct Ground<'g, 'a> {
    pub(crate) old: &'g Side<'a>,
    pub(crate) new: &'g Side<'a>,
    pub(crate) pairs: Pairs,
    /// Old and new functions that do the same without being a pair.
    pub(crate) copies: FxHashSet<(usize, usize)>,
    /// Copies in the new build that do the same have the same number.
    alike: FxHashMap<usize, usize>,
    /// Ordered by address.
    pub(crate) replaced: Vec<Replaced>,
    /// Named constants (old side) whose content is another one in the new build.
    changed: FxHashSet<usize>,
    /// Those that have the same.
    unchanged: FxHashSet<usize>,
    /// Old functions that agree with their twin in everything: they have nothing to vote on.
    pub(crate) silent: FxHashSet<usize>,
    /// New objects that debug information knows as a static local of a function.
    pub(crate) identified: FxHashSet<usize>,
    /// What constants without a name contain, in either build.
    pub(crate) contents: [Contents<'a>; 2],
}

/// The constants without a name that lead to where something is compared, the last one first.
pub(crate) struct Trail<'t> {
    /// Starts in the base and in the new build, and how many bytes are compared.
    content: Option<(u64, u64, u64)>,
    above: Option<&'t Trail<'t>>,
    /// How many more may follow.
    left: usize,
}

impl Trail<'_> {
    /// Nothing leads there.
    pub(crate) const START: Trail<'static> = Trail { content: None, above: None, left: 24 };

    fn on(&self, content: Option<(u64, u64, u64)>) -> Trail<'_> {
        Trail { content, above: Some(self), left: self.left.saturating_sub(1) }
    }

    /// These bytes are being compared already: that something leads back to them does not make them differ.
    fn has(&self, (a, n, size): (u64, u64, u64)) -> bool {
        let covers = |content: (u64, u64, u64)| (content.0, content.1) == (a, n) && content.2 >= size;
        std::iter::successors(Some(self), |trail| trail.above).any(|trail| trail.content.is_some_and(covers))
    }
}

impl<'g, 'a> Ground<'g, 'a> {
    pub(crate) fn new(old: &'g Side<'a>, new: &'g Side<'a>, replaced: Vec<Replaced>) -> Ground<'g, 'a> {
        let pairs = Pairs::by_name(old, new);
        Ground {
            old,
            new,
            copies: FxHashSet::default(),
            alike: alike::classes(new, &pairs.several.1),
            pairs,
            replaced,
            changed: FxHashSet::default(),
            unchanged: FxHashSet::default(),
            silent: FxHashSet::default(),
            identified: FxHashSet::default(),
            contents: Default::default(),
        }
    }

    /// Finds the named constants with another content, and those that lead to them.
    pub(crate) fn compare_constants(&mut self) {
        self.unchanged.clear();
        self.compare_open_constants();
    }

    /// The same, but for those that were found unchanged before. Pairs that are found later do not change these.
    pub(crate) fn compare_open_constants(&mut self) {
        let constants = self.pairs.objects.iter().filter(|(o, p)| {
            (self.old.objects[*o].constant || self.new.objects[*p].constant) && !self.unchanged.contains(o)
        });
        let pairs: Vec<(usize, usize)> = constants.collect();
        self.changed.clear();
        loop {
            let differs = |pair: &&(usize, usize)| !self.changed.contains(&pair.0) && !self.same_object(**pair);
            let found: Vec<usize> = pairs.par_iter().filter(differs).map(|pair| pair.0).collect();
            if found.is_empty() {
                let unchanged = pairs.iter().map(|pair| pair.0).filter(|o| !self.changed.contains(o));
                self.unchanged.extend(unchanged);
                return;
            }
            self.changed.extend(found);
        }
    }

    /// What would have to be pairs for a named constant to be the same in the new build, if nothing else differs.
    pub(crate) fn doubts_of_constant(&self, (o, p): (usize, usize)) -> Vec<Doubt> {
        let (x, y) = (&self.old.objects[o], &self.new.objects[p]);
        let mut doubts = Vec::new();
        if x.size != y.size || !x.constant || !y.constant {
            return doubts;
        }
        let within = Within::data(false);
        let whole =
            self.content_with((x.address, y.address), x.size, within, &Trail::START, &mut |doubt| doubts.push(doubt));
        if whole.is_err() {
            doubts.clear();
        }
        doubts
    }

    fn same_object(&self, (o, p): (usize, usize)) -> bool {
        let (x, y) = (&self.old.objects[o], &self.new.objects[p]);
        let within = Within { rust: rust::is_name(x.names[0]) && rust::is_name(y.names[0]), ..Within::default() };
        let table = || {
            self.named_distances((o, p)).map(|entries| self.same_distances(x.address, &entries, within, &Trail::START))
        };
        let content = || self.same_content((x.address, y.address), x.size, within, &Trail::START);
        x.size == y.size
            && x.constant == y.constant
            && table().map_or_else(|| content().is_ok(), |answer| answer.is_ok())
    }

    /// Where the entries of a named table of distances lead in the new build, if both are such tables from end to end.
    fn named_distances(&self, (o, p): (usize, usize)) -> Option<Vec<u64>> {
        let (x, y) = (&self.old.objects[o], &self.new.objects[p]);
        let both = self.old.tables.contains(&x.address) && self.new.tables.contains(&y.address);
        let entries = self.new.distances(y.address).filter(|_| both)?;
        (4 * entries.len() as u64 == y.size).then_some(entries)
    }

    /// Pairs of named constants that are not known to be the same.
    pub(crate) fn open_constants(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pairs.objects.iter().filter(|(o, _)| self.changed.contains(o))
    }

    /// The content of a named constant is the same in both builds.
    pub(crate) fn is_unchanged(&self, old: usize) -> bool {
        !self.changed.contains(&old)
    }

    pub(crate) fn none_changed(&self) -> bool {
        self.changed.is_empty()
    }

    /// Is old place `a` the same as new place `n`, used in this way?
    pub(crate) fn same(&self, a: u64, n: u64, usage: Use, within: Within<'_>) -> Answer {
        self.same_at(a, n, usage, within, &Trail::START)
    }

    /// True if a field of the new build makes an address of it, and is no number.
    pub(crate) fn makes_address(&self, field: &Field, within: Within<'_>) -> bool {
        let number = || !self.new.image.contains(field.target) || is_number(self.new, within.new, field.target);
        field.usage == Use::Address && (field.relative || !number())
    }

    /// Is what lies `back` bytes before old place `a` the same as before new place `n`?
    pub(crate) fn same_before(&self, a: u64, n: u64, back: u64, within: Within<'_>) -> Answer {
        let (a, n) = (a.wrapping_sub(back), n.wrapping_sub(back));
        self.same(a, n, self.use_before(n, back), within)
    }

    /// How what lies `back` bytes before a new place is compared: an object by what it is, a literal by its content.
    pub(crate) fn use_before(&self, n: u64, back: u64) -> Use {
        Use::Access(if self.new.object_at(n).is_some() { 1 } else { back })
    }

    fn same_at(&self, a: u64, n: u64, usage: Use, within: Within<'_>, trail: &Trail<'_>) -> Answer {
        if (a, n) == (0, 0) {
            // A weak symbol that the linker found nowhere.
            return Ok(Kind::Marker);
        }
        if let Some(at) = self.new.range_at(n) {
            return self.same_code(a, at, within);
        }
        if within.startup && self.same_optional_import(a, n) {
            return Ok(Kind::Import);
        }
        if within.startup
            && usage == Use::Address
            && startup::is_end_of_data(&self.old.image, a)
            && startup::is_end_of_data(&self.new.image, n)
        {
            return Ok(Kind::Marker);
        }
        if let Some(word) = self.new.image.stub_word(n) {
            return match self.old.image.stub_word(a) {
                Some(_) if usage == Use::Address && within.patch && self.becomes_canonical(word) => {
                    Doubt::no(format!("the stub for {} is its address in the new build only", shown(word)))
                }
                Some(old) => self.same_word(old, word, trail),
                None => Doubt::no(format!("the base has no stub there, the new build has one for {}", shown(word))),
            };
        }
        if self.new.image.is_empty_stub(n) && self.old.image.is_empty_stub(a) || self.same_relocations(a, n) {
            return Ok(Kind::Marker);
        }
        if usage == Use::Branch {
            return Doubt::no(format!("the new build goes to {n:#x}, where no function is known"));
        }
        if within.startup
            && usage == Use::Address
            && let Some(kind) = self.same_marker(a, n)
        {
            return Ok(kind);
        }
        match self.new.image.section_at(n) {
            // Where the slots begin, the last variable may end, and the last constant where the unwinder's tables do.
            Some(section)
                if (section.is_slots() || section.is_of_unwinder()) && usage == Use::Address && self.ends_there(n) =>
            {
                self.same_address(a, n, &self.new.readings(n), within)
            }
            Some(section) if section.is_slots() => self.same_slot(a, n, trail),
            Some(section) if section.code && self.same_data_in_code(a, n, usage) => Ok(Kind::Literal),
            Some(section) if section.code => Doubt::no(format!("{n:#x} of the new build is code without a symbol")),
            section => {
                let constant = section.is_some_and(|s| s.is_constant()) || self.new.is_constant(n);
                self.same_data(a, n, usage, within, (section.is_some(), constant), trail)
            }
        }
    }

    /// The compiler's own code asks for some functions if they are there: one name, with a version in one of the builds only.
    fn same_optional_import(&self, a: u64, n: u64) -> bool {
        fn name<'w>(image: &'w Image<'_>, at: u64) -> Option<(&'w str, bool)> {
            match image.stub_word(at).or_else(|| image.words.get(&at))? {
                Word::Symbol(name, 0) if image.weak.contains(name) => {
                    Some((name.split('@').next().unwrap_or(name), name.contains('@')))
                }
                _ => None,
            }
        }
        match (name(&self.old.image, a), name(&self.new.image, n)) {
            (Some((x, with)), Some((y, too))) => x == y && with != too,
            _ => false,
        }
    }

    /// An object of the new build ends at this place, and nothing fills the word there.
    fn ends_there(&self, n: u64) -> bool {
        let ends = |&(p, offset): &(usize, i64)| self.new.objects[p].size as i64 == offset;
        !self.new.image.words.contains_key(&n) && self.new.readings(n).iter().any(ends)
    }

    /// Data between functions, as hand-written assembly has it: the same bytes as far as the next function.
    fn same_data_in_code(&self, a: u64, n: u64, usage: Use) -> bool {
        let data = |side: &Side<'a>, at: u64| {
            let section = side.image.section_at(at).filter(|s| s.code && side.range_at(at).is_none())?;
            let behind = side.ranges.get(side.ranges.partition_point(|r| r.address <= at)).map(|r| r.address);
            let room = behind.unwrap_or(u64::MAX).min(section.end()) - at;
            let bytes = side.image.bytes(at, room)?;
            match usage {
                Use::Access(size) => bytes.get(..size as usize),
                _ => {
                    Some(&bytes[..bytes.iter().rposition(|b| ![0, 0x90, 0xcc].contains(b)).map_or(0, |last| last + 1)])
                }
            }
        };
        data(self.old, a).is_some_and(|x| data(self.new, n) == Some(x))
    }

    /// Two functions of the new build are one, or copies that do the same.
    pub(crate) fn are_alike(&self, g: usize, other: usize) -> bool {
        g == other || self.alike.get(&g).is_some_and(|class| self.alike.get(&other) == Some(class))
    }

    fn same_code(&self, a: u64, (g, offset): (usize, u64), within: Within<'_>) -> Answer {
        let name = self.new.ranges[g].name();
        let Some((f, there)) = self.old.range_at(a) else {
            return Doubt::no(format!("{a:#x} of the base is no function, the new build has {name} there"));
        };
        let old_name = self.old.ranges[f].name();
        if offset != there {
            return Doubt::no(format!("leads to {old_name}+{there:#x} of the base instead of {name}+{offset:#x}"));
        }
        let entry = offset == 0 && self.new.ranges[g].parent == g;
        let replaced = self.replaced_at(a);
        if let Some(replaced) = replaced
            && !(entry && replaced.entry && replaced.start == a)
        {
            return Doubt::no(format!("leads into the old code of {old_name}, which is replaced"));
        }
        match (self.pairs.ranges.new_of(f), self.pairs.ranges.old_of(g)) {
            (Some(pair), _) if pair == g || entry && self.are_alike(pair, g) => {
                Ok(if entry { Kind::Function } else { Kind::Label })
            }
            _ if entry && self.copies.contains(&(f, g)) => Ok(Kind::Function),
            _ if !entry && !within.patch && within.are((self.old.ranges[f].parent, self.new.ranges[g].parent)) => {
                Ok(Kind::Label)
            }
            (None, None) if self.pairs.may_pair(f, g, replaced.is_some()) => Err(Doubt::Ranges(f, g)),
            _ => Doubt::no(format!("leads to {old_name} of the base instead of {name}")),
        }
    }

    /// The whole process has the stub of an import for its address, in the new build only.
    fn becomes_canonical(&self, word: &Word) -> bool {
        let known = |image: &Image<'_>, name| image.canonical.contains(name);
        matches!(word, Word::Symbol(name, _) if known(&self.new.image, name) && !known(&self.old.image, name))
    }

    pub(crate) fn replaced_at(&self, a: u64) -> Option<&Replaced> {
        let i = self.replaced.partition_point(|r| r.start <= a).checked_sub(1)?;
        Some(&self.replaced[i]).filter(|r| a < r.end)
    }

    fn same_slot(&self, a: u64, n: u64, trail: &Trail<'_>) -> Answer {
        let old_slot = self.old.image.section_at(a).is_some_and(|s| s.is_slots());
        match (self.old.image.words.get(&a), self.new.image.words.get(&n)) {
            _ if !old_slot => Doubt::no(format!("{a:#x} of the base is no table slot")),
            (Some(v), Some(w)) => {
                let kind = self.same_word(v, w, trail)?;
                self.same_tail(a + 8, n + 8, w).map(|()| kind)
            }
            // An unresolved weak symbol, or the table's own start.
            (None, None) if self.old.image.bytes(a, 8) == self.new.image.bytes(n, 8) => {
                Ok(self.same_marker(a, n).unwrap_or(Kind::Slot))
            }
            _ => Doubt::no(format!("slot {a:#x} of the base and slot {n:#x} of the new build hold different things")),
        }
    }

    /// The second word of a thread-local slot, which the linker fills in where it knows the variable.
    fn same_tail(&self, a: u64, n: u64, first: &Word) -> Result<(), Doubt> {
        if !matches!(first, Word::Tls(kind, ..) if *kind == object::elf::R_X86_64_DTPMOD64.0) {
            return Ok(());
        }
        let known = |image: &Image<'_>, at: u64| match image.words.get(&at) {
            Some(Word::Tls(_, name, addend)) if name.is_empty() => thread_local(image, *addend as u64),
            Some(Word::Tls(_, name, addend)) => Some((name.clone(), *addend as u64)),
            Some(_) => None,
            None => image.u64_at(at).and_then(|offset| thread_local(image, offset)),
        };
        // Without symbols a variable is the place where it lies, as in the code of programs; the layouts are compared apart.
        let nameless = |image: &Image<'_>| image.symbols.iter().all(|s| s.kind != SymbolType::Tls);
        let place = |image: &Image<'_>, at: u64| match image.words.get(&at) {
            Some(Word::Tls(_, name, addend)) if name.is_empty() => Some(*addend as u64),
            Some(_) => None,
            None => image.u64_at(at),
        };
        match (known(&self.old.image, a), known(&self.new.image, n)) {
            (Some(x), Some(y)) if x == y => Ok(()),
            (None, None)
                if nameless(&self.old.image)
                    && nameless(&self.new.image)
                    && place(&self.old.image, a).is_some_and(|x| place(&self.new.image, n) == Some(x)) =>
            {
                Ok(())
            }
            _ => Doubt::no("a thread-local slot is for another variable"),
        }
    }

    /// Do two words, as the dynamic linker fills them, hold the same?
    pub(crate) fn same_word(&self, v: &Word, w: &Word, trail: &Trail<'_>) -> Answer {
        self.same_word_within(v, w, false, trail)
    }

    fn same_word_within(&self, v: &Word, w: &Word, rust: bool, trail: &Trail<'_>) -> Answer {
        let differ = || Doubt::no(format!("the base has {} there, the new build {}", shown(v), shown(w)));
        match (v, w) {
            (Word::Address(a), Word::Address(n)) | (Word::Resolver(a), Word::Resolver(n)) => {
                if std::mem::discriminant(v) != std::mem::discriminant(w) || trail.left == 0 {
                    return differ();
                }
                self.same_at(*a, *n, Use::Address, Within { rust, ..Within::data(false) }, trail)
            }
            (Word::Symbol(x, i), Word::Symbol(y, j)) if (x, i) == (y, j) => Ok(Kind::Import),
            (Word::Copy(x), Word::Copy(y)) if x == y => Ok(Kind::Import),
            (Word::Tls(k, x, i), Word::Tls(l, y, j)) if k == l && x == y => {
                let place = |image, offset: i64| thread_local(image, offset as u64);
                let same = i == j && (!x.is_empty() || *i == 0)
                    || x.is_empty()
                        && place(&self.old.image, *i).is_some_and(|p| Some(p) == place(&self.new.image, *j));
                if same { Ok(Kind::ThreadLocal) } else { differ() }
            }
            (Word::Other(k, x, i), Word::Other(l, y, j)) if (k, x, i) == (l, y, j) => Ok(Kind::Slot),
            _ => differ(),
        }
    }

    /// A static program goes through its own table of relocations when it starts.
    fn same_relocations(&self, a: u64, n: u64) -> bool {
        match (self.old.image.section_at(a), self.new.image.section_at(n)) {
            (Some(x), Some(y)) => x.name.starts_with(".rela.") && x.name == y.name && a - x.address == n - y.address,
            _ => false,
        }
    }

    fn same_marker(&self, a: u64, n: u64) -> Option<Kind> {
        let (x, y) = (self.old.markers.get(&a)?, self.new.markers.get(&n)?);
        x.iter().any(|name| y.contains(name)).then_some(Kind::Marker)
    }

    /// Data: variables, named constants, literals, and what no symbol covers.
    fn same_data(
        &self,
        a: u64,
        n: u64,
        usage: Use,
        within: Within<'_>,
        (inside, constant): (bool, bool),
        trail: &Trail<'_>,
    ) -> Answer {
        let readings = self.new.readings(n);
        let contained = self.new.object_at(n).is_some();
        if let Use::Access(size) = usage
            && contained
        {
            let (p, offset) = readings[0];
            if offset as u64 + size > self.new.objects[p].size {
                return Doubt::no("the access reaches beyond its object");
            }
            return self.same_reading(a, (p, offset));
        }
        if contained {
            return self.same_address(a, n, &readings, within);
        }
        if inside && constant {
            let filled = self.new.is_filled(n, self.new.literal_span(n));
            if matches!(usage, Use::Access(_)) || filled || readings.is_empty() {
                return self.same_literal(a, n, usage, within, trail);
            }
        }
        if let Some(kind) = self.same_marker(a, n) {
            return Ok(kind);
        }
        if usage == Use::Address
            && let Some(reading) = readings.iter().find(|r| r.1 != 0 && self.mapped(**r) == Some(a))
        {
            return self.same_reading(a, *reading);
        }
        if !inside && n < self.new.image.sections.first().map_or(0, |s| s.address) {
            let same = a.wrapping_sub(self.old.image.start) == n.wrapping_sub(self.new.image.start);
            return if same { Ok(Kind::Marker) } else { Doubt::no("leads to another part of the image's headers") };
        }
        self.same_unnamed(a, n, inside)
    }

    /// Where in the base an offset from a new object is.
    fn mapped(&self, (p, offset): (usize, i64)) -> Option<u64> {
        self.pairs.objects.old_of(p).map(|o| self.old.objects[o].address.wrapping_add_signed(offset))
    }

    pub(crate) fn same_reading(&self, a: u64, (p, offset): (usize, i64)) -> Answer {
        let y = &self.new.objects[p];
        let name = y.names[0];
        let Some(o) = self.pairs.objects.old_of(p) else {
            return match self.old.object_at(a) {
                Some((o, there)) if there as i64 == offset && self.same_numbered(o, p) => Ok(Kind::Constant),
                Some((o, there)) if self.may_pair(o, p) && there as i64 == offset => Err(Doubt::Objects(o, p)),
                _ => Doubt::no(format!("nothing shows that {a:#x} of the base is {name}")),
            };
        };
        let x = &self.old.objects[o];
        if x.address.wrapping_add_signed(offset) != a {
            let there = a.wrapping_sub(x.address) as i64;
            return Doubt::no(format!("leads to {name}{there:+#x} of the base instead of {name}{offset:+#x}"));
        }
        if x.constant != y.constant || x.size != y.size {
            return Doubt::no(format!("{name} is of another size or kind in the base"));
        }
        if x.constant && self.changed.contains(&o) {
            return Doubt::no(format!("the content of {name} is another one in the base"));
        }
        Ok(if x.constant { Kind::Constant } else { Kind::Variable })
    }

    /// What the compiler numbers (`__func__.3`, `CSWTCH.7`) and never writes has no identity but its content.
    fn same_numbered(&self, o: usize, p: usize) -> bool {
        let (x, y) = (&self.old.objects[o], &self.new.objects[p]);
        let stem = numbered(y.names[0]);
        let alike = stem.is_some() && numbered(x.names[0]) == stem && x.local && y.local && x.file == y.file;
        alike
            && x.constant
            && y.constant
            && x.size == y.size
            && self.same_content((x.address, y.address), x.size, Within::default(), &Trail::START).is_ok()
    }

    /// Neither has a pair, and they look alike.
    fn may_pair(&self, o: usize, p: usize) -> bool {
        let (x, y) = (&self.old.objects[o], &self.new.objects[p]);
        self.pairs.objects.new_of(o).is_none()
            && self.pairs.objects.old_of(p).is_none()
            && x.size == y.size
            && x.constant == y.constant
    }

    /// The base may have this variable of the new build, though they are no pair.
    pub(crate) fn may_exist(&self, p: usize) -> bool {
        let object = &self.new.objects[p];
        let stem = quiet(object.names[0]);
        let alike = |(o, x): (usize, &DataObject<'_>)| {
            let named = x.names.iter().any(|n| object.names.contains(n) || x.local && quiet(n) == stem);
            // One that became static or global is in another scope.
            let scope = x.file == object.file || !x.local || !object.local;
            !x.constant && named && scope && self.pairs.objects.new_of(o).is_none()
        };
        self.old.objects.iter().enumerate().any(alike) && !self.identified.contains(&p)
    }

    /// An address that a named object contains; it may also mean the end of the object before, or a place before
    /// the next one. If the base has these apart, only what the function uses elsewhere can tell.
    fn same_address(&self, a: u64, n: u64, readings: &[(usize, i64)], within: Within<'_>) -> Answer {
        let first = self.same_reading(a, readings[0]);
        let here = self.mapped(readings[0]);
        // A constant that changed is in the patch, wherever the base has its old content.
        let moves = |p: usize| within.patch && self.pairs.objects.old_of(p).is_some_and(|o| self.changed.contains(&o));
        let apart = |r: &&(usize, i64)| self.mapped(**r) != here || moves(r.0) || moves(readings[0].0);
        let other = readings[1..].iter().find(|r| r.1 >= 0 && apart(r));
        if within.patch && !within.startup {
            let elsewhere = |name: &&&str| self.old.markers.iter().any(|(at, names)| *at != a && names.contains(name));
            if let Some(name) = self.new.markers.get(&n).into_iter().flatten().find(elsewhere) {
                return Doubt::no(format!("may also mean the linker's {name}, which the base has elsewhere"));
            }
        }
        let Some(other) = other else { return first };
        // Which of its instructions means which, an address does not say.
        if within.patch && within.new.is_some_and(|f| loops::mean_two(self.new, f, n)) {
            let name = self.new.objects[other.0].names[0];
            return Doubt::no(format!(
                "means {name}{:+#x} at one place and not at another, and the base has it elsewhere",
                other.1
            ));
        }
        // Compilers lay out objects in the order in which code uses them. So where an object begins, another one may end by
        // chance, and in the base too.
        let starts = readings[0].1 == 0 && (within.patch || self.old.object_at(a).is_some_and(|there| there.1 == 0));
        let in_new = || within.new.is_some_and(|f| loops::end_with(self.new, f, n));
        let in_old = || within.patch || within.old.is_some_and(|f| loops::end_with(self.old, f, a));
        let begins = || starts && !(in_new() && in_old());
        let in_both = |r: &(usize, i64)| {
            let of_new = within.new.is_some_and(|f| f.uses(self.new.objects[r.0].address, self.new.objects[r.0].end()));
            let of_old = |o: usize| {
                let object = &self.old.objects[o];
                within.old.is_some_and(|f| f.uses(object.address, object.end()))
            };
            of_new && self.pairs.objects.old_of(r.0).is_some_and(of_old)
        };
        let is_inside = |r: &(usize, i64)| r.1 < self.new.objects[r.0].size as i64;
        // What the old function of the same name means, at the same offset.
        let meant = |r: &&(usize, i64)| {
            let place = self.mapped(**r);
            within.old.is_some_and(|f| place.is_some_and(|p| f.makes(p))) && (is_inside(r) || in_both(r) && !begins())
        };
        let mut common = readings.iter().filter(|r| r.1 >= 0).filter(meant);
        if let (Some(only), None) = (common.next(), common.next()) {
            return self.same_reading(a, *only);
        }
        let object = &self.new.objects[other.0];
        let uses = |object: usize| {
            let object = &self.new.objects[object];
            within.new.is_none_or(|f| f.uses(object.address, object.end()))
        };
        if first.is_ok() && (!within.patch || !uses(other.0)) {
            return first;
        }
        if let Some(r) = readings[1..].iter().find(|r| self.mapped(**r) == Some(a))
            && within.new.is_some()
            && uses(r.0)
            && (!within.patch || !uses(readings[0].0))
            && !begins()
        {
            return self.same_reading(a, *r);
        }
        first?;
        Doubt::no(format!("may also mean {}{:+#x}, which the base has elsewhere", object.names[0], other.1))
    }

    /// A constant without a symbol, which is what it contains.
    fn same_literal(&self, a: u64, n: u64, usage: Use, within: Within<'_>, trail: &Trail<'_>) -> Answer {
        if !self.old.is_constant(a) {
            return Doubt::no(format!("{a:#x} of the base is no constant"));
        }
        if let Use::Access(size) = usage {
            return self.same_content((a, n), size, within, trail).map(|()| Kind::Literal);
        }
        if let Some(family) = within.new
            && let Some(table) = family.table(n)
        {
            return self.same_table(a, &table, within);
        }
        if self.new.tables.contains(&n)
            && let Some(entries) = self.new.distances(n)
        {
            return self.same_distances(a, &entries, within, trail);
        }
        if within.rust && self.same_to_border(a, n, within, trail) {
            return Ok(Kind::Literal);
        }
        let (x, y) = (self.old.literal(a), self.new.literal(n));
        if x.len() != y.len() && !(within.patch && x.len() > y.len()) {
            return Doubt::no(format!("{a:#x} of the base has another content than {n:#x} of the new build"));
        }
        // Zeros behind it may belong to it: the base must have them, too.
        let size = if within.patch { self.new.literal_span(n) } else { y.len() as u64 };
        if within.patch && x.len() as u64 > size {
            return Doubt::no(format!("the constant at {a:#x} of the base goes on behind that of the new build"));
        }
        self.same_content((a, n), size.max(y.len() as u64), within, trail).map(|()| Kind::Literal)
    }

    /// A table of distances in the base leads to the same places.
    fn same_distances(&self, a: u64, entries: &[u64], within: Within<'_>, trail: &Trail<'_>) -> Answer {
        let within = Within { old: None, new: None, ..within };
        let trail = trail.on(None);
        for (i, entry) in entries.iter().enumerate() {
            let distance = self.old.image.i32_at(a + 4 * i as u64);
            let Some(distance) = distance.filter(|_| trail.left > 0) else {
                return Doubt::no(format!("the table of distances at {a:#x} of the base is shorter"));
            };
            self.same_at(a.wrapping_add_signed(i64::from(distance)), *entry, Use::Address, within, &trail)?;
        }
        Ok(Kind::Literal)
    }

    /// Constants that are equal to where the next one begins in the new build. In the base it may begin later if nothing but
    /// padding follows; and in unchanged code it may begin earlier for the same reason.
    fn same_to_border(&self, a: u64, n: u64, within: Within<'_>, trail: &Trail<'_>) -> bool {
        let (x, y) = (self.old.next_border(a).wrapping_sub(a), self.new.next_border(n).wrapping_sub(n));
        let size = if within.patch { y } else { x.min(y) };
        let padded = |side: &Side<'_>, at: u64, room: u64| {
            let rest = side.image.bytes(at + size, room.saturating_sub(size));
            rest.is_some_and(|rest| rest.iter().all(|b| *b == 0))
        };
        size > 0
            && (x == y || padded(self.old, a, x) && padded(self.new, n, y))
            && self.same_content((a, n), size, within, trail).is_ok()
    }

    /// The same text of so many bytes: it ends where something else begins in one of the builds, and earlier in none.
    pub(crate) fn same_counted(&self, a: u64, n: u64, size: u64) -> bool {
        let room = (self.old.next_border(a).wrapping_sub(a), self.new.next_border(n).wrapping_sub(n));
        let text = self.new.image.bytes(n, size).filter(|b| !b.contains(&0) && std::str::from_utf8(b).is_ok());
        let constant = self.old.is_constant(a) && self.new.is_constant(n);
        size > 0 && size == room.0.min(room.1) && constant && text.is_some() && self.old.image.bytes(a, size) == text
    }

    /// Two constants of Rust that may be `core::panic::Location`s (address and length of a file's name, line, column), and differ
    /// in nothing but line and column.
    pub(crate) fn same_but_for_line(&self, a: u64, n: u64, within: Within<'_>) -> bool {
        let word = |side: &Side<'a>, at: u64| match side.image.words.get(&at) {
            Some(Word::Address(to)) if side.image.words.range(at + 1..at + 24).next().is_none() => Some(*to),
            _ => None,
        };
        let length = self.new.image.u64_at(n + 8);
        let constant = within.rust && self.old.is_constant(a) && self.new.is_constant(n);
        let (Some(x), Some(y), Some(size)) = (word(self.old, a), word(self.new, n), length.filter(|_| constant)) else {
            return false;
        };
        let inside = self.new.image.bytes(n, 24).is_some() && self.old.image.bytes(a, 24).is_some();
        inside && self.old.image.u64_at(a + 8) == length && size > 0 && self.same_bytes_at(x, y, (0, size as i64))
    }

    /// The same constant bytes, from `start` to `end` by how far they lie from two addresses; no pointers.
    pub(crate) fn same_bytes_at(&self, a: u64, n: u64, (start, end): (i64, i64)) -> bool {
        let bytes = |side: &Side<'a>, at: u64| {
            let from = at.wrapping_add_signed(start);
            let to = from.wrapping_add(end.abs_diff(start));
            let inside = side.is_constant(from) && side.is_constant(to.wrapping_sub(1));
            let plain = side.image.words.range(from.saturating_sub(7)..to).next().is_none();
            side.image.bytes(from, end.abs_diff(start)).filter(|_| inside && plain)
        };
        let new = bytes(self.new, n);
        new.is_some() && bytes(self.old, a) == new
    }

    fn same_table(&self, a: u64, (width, labels): &(u64, Vec<u64>), within: Within<'_>) -> Answer {
        for (i, label) in labels.iter().enumerate() {
            let at = a + width * i as u64;
            let target = match width {
                4 => self.old.image.i32_at(at).map(|d| a.wrapping_add_signed(i64::from(d))),
                _ => match self.old.image.words.get(&at) {
                    Some(Word::Address(target)) => Some(*target),
                    _ => self.old.image.u64_at(at).filter(|_| self.old.image.fixed),
                },
            };
            let Some(target) = target else { return Doubt::no("a jump table is shorter in the base") };
            self.same(target, *label, Use::Branch, within)?;
        }
        Ok(Kind::Literal)
    }

    /// `size` bytes at `a` and `n`: equal, and words that hold addresses lead to the same.
    fn same_content(&self, at: (u64, u64), size: u64, within: Within<'_>, trail: &Trail<'_>) -> Result<(), Doubt> {
        let mut undecided = None;
        self.content_with(at, size, within, trail, &mut |doubt| undecided = Some(doubt))?;
        undecided.map_or(Ok(()), Err)
    }

    /// The same, where `undecided` gets each word that only a missing pair makes unequal.
    fn content_with(
        &self,
        (a, n): (u64, u64),
        size: u64,
        within: Within<'_>,
        trail: &Trail<'_>,
        undecided: &mut dyn FnMut(Doubt),
    ) -> Result<(), Doubt> {
        let differ = || Doubt::No(format!("{a:#x} of the base has another content than {n:#x} of the new build"));
        if trail.left == 0 {
            return Doubt::no("constants lead into one another too deeply to follow");
        }
        if trail.has((a, n, size)) {
            return Ok(());
        }
        let trail = &trail.on(Some((a, n, size)));
        let (Some(x), Some(y)) = (self.old.image.initial(a, size), self.new.image.initial(n, size)) else {
            return Err(differ());
        };
        let mut at = 0usize;
        while at < x.len() {
            let here = (self.old.image.words.get(&(a + at as u64)), self.new.image.words.get(&(n + at as u64)));
            let answer = match here {
                (None, None) => self.same_plain((a, n), at, (&x, &y), trail),
                (Some(v), Some(w)) => self.same_word_within(v, w, within.rust, trail).map(|_| 8),
                _ => Err(differ()),
            };
            match answer {
                Ok(width) => at += width,
                Err(doubt @ Doubt::No(_)) => return Err(doubt),
                Err(doubt) => {
                    undecided(doubt);
                    at += 8;
                }
            }
        }
        Ok(())
    }

    /// One byte that is no word, or in an image with a fixed address a word that may be one.
    fn same_plain(
        &self,
        (a, n): (u64, u64),
        at: usize,
        (x, y): (&[u8], &[u8]),
        trail: &Trail<'_>,
    ) -> Result<usize, Doubt> {
        let differ = || {
            Doubt::No(format!(
                "byte {:#x} of the base differs from {:#x} of the new build",
                a + at as u64,
                n + at as u64
            ))
        };
        let word = |bytes: &[u8]| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let aligned = (a + at as u64).is_multiple_of(8) && (n + at as u64).is_multiple_of(8);
        if let (true, true, Some(v), Some(w)) =
            (self.old.image.fixed && self.new.image.fixed, aligned, word(x), word(y))
            && (leads_somewhere(self.old, v) || leads_somewhere(self.new, w))
        {
            return self.same_at(v, w, Use::Address, Within::data(false), trail).map(|_| 8);
        }
        if x[at] == y[at] { Ok(1) } else { Err(differ()) }
    }

    fn same_unnamed(&self, a: u64, n: u64, inside: bool) -> Answer {
        if self.pairs.data.get(&a) == Some(&n) {
            return Ok(Kind::Variable);
        }
        let writable = |image: &Image<'_>, at| image.section_at(at).is_some_and(|s| !s.code && !s.is_slots());
        if inside
            && writable(&self.old.image, a)
            && self.old.object_at(a).is_none()
            && !self.pairs.data.contains_key(&a)
        {
            return Err(Doubt::Data(a, n));
        }
        Doubt::no(format!("no symbol covers {n:#x} of the new build"))
    }

    /// A field of unchanged code, or of new code that refers to the base.
    pub(crate) fn same_field(&self, old: &Field, new: &Field, within: Within<'_>) -> Answer {
        if new.relative {
            return self.same(old.target, new.target, new.usage, within);
        }
        let spans = self.old.image.contains(old.target) || self.new.image.contains(new.target);
        if !spans {
            return if old.target == new.target { Ok(Kind::Number) } else { Doubt::no("another number") };
        }
        self.same(old.target, new.target, new.usage, within).or_else(|doubt| {
            // Of two equal values, one of which is no address, neither is: an address would be another one in the other build.
            let number = is_number(self.old, within.old, old.target) || is_number(self.new, within.new, new.target);
            if number && old.target == new.target { Ok(Kind::Number) } else { Err(doubt) }
        })
    }
}

/// A value in an image with a fixed address that leads nowhere, or into the middle of a function that is not the
/// one that has it.
pub(crate) fn is_number(side: &Side<'_>, own: Option<&Family<'_>>, value: u64) -> bool {
    match side.range_at(value) {
        Some((_, 0)) => false,
        Some(_) => own.is_some_and(|f| !f.has_instruction(value)),
        None => !leads_somewhere(side, value),
    }
}

fn leads_somewhere(side: &Side<'_>, value: u64) -> bool {
    let data = |a| side.image.section_at(a).is_some_and(|s| !s.code && !s.tls);
    side.range_at(value).is_some()
        || side.image.stubs.contains_key(&value)
        || side.markers.contains_key(&value)
        || side.object_at(value).is_some()
        || data(value) && side.image.section_at(value).is_some_and(|s| s.is_constant() || s.is_slots())
        || side.readings(value).iter().any(|r| r.1 > 0)
}

/// Name and offset in it of the thread-local variable at an offset of the image's segment.
pub(crate) fn thread_local(image: &Image<'_>, offset: u64) -> Option<(String, u64)> {
    let symbols = image.symbols.iter().filter(|s| s.kind == SymbolType::Tls);
    let mut found = symbols.filter(|s| (s.address..s.address + s.size.max(1)).contains(&offset));
    found.next().map(|s| (s.name.to_owned(), offset - s.address))
}

fn shown(word: &Word) -> String {
    match word {
        Word::Address(a) => format!("the address {a:#x}"),
        Word::Symbol(name, 0) => name.clone(),
        Word::Symbol(name, addend) => format!("{name}{addend:+#x}"),
        Word::Resolver(a) => format!("what the resolver at {a:#x} chooses"),
        Word::Tls(_, name, offset) => format!("thread-local {name}{offset:+#x}"),
        Word::Copy(name) => format!("a copy of {name}"),
        Word::Other(kind, name, value) => format!("{name} {value:#x} of relocation type {kind}"),
    }
}
