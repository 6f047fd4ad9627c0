//! The old build's GOT slots and PLT stubs, and the new build's global names, by what they stand for.

use std::cell::OnceCell;

use rustc_hash::FxHashMap;

use crate::build::Build;
use crate::entity::{FunctionId, ObjectId};
use crate::image::Word;

/// A slot, or a stub that jumps through it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<'b> {
    /// Link-time address of the stub or slot.
    pub at: u64,
    /// The slot's own.
    pub slot: u64,
    pub word: &'b Word,
}

/// Slots by their words. Words that hold an address of the image lie together: only a
/// [`Judge`](crate::judge::Judge) can compare those.
type ByWord<'b> = FxHashMap<Option<&'b Word>, Vec<Slot<'b>>>;

/// What a patch can take from the old build, to be looked up many times.
pub(crate) struct Slots<'b> {
    stubs: ByWord<'b>,
    got: ByWord<'b>,
    functions: OnceCell<FxHashMap<&'b str, FunctionId>>,
    objects: OnceCell<FxHashMap<&'b str, ObjectId>>,
}

fn key(word: &Word) -> Option<&Word> {
    (!matches!(word, Word::Address(_) | Word::Resolver(_))).then_some(word)
}

impl<'b> Slots<'b> {
    pub(crate) fn new(old: &'b Build<'_>) -> Slots<'b> {
        let image = &old.image;
        let stubs = image
            .stubs
            .iter()
            .filter_map(|(at, slot)| Some(Slot { at: *at, slot: *slot, word: image.words.get(slot)? }));
        let sections = image.sections.iter().filter(|s| s.name.starts_with(".got"));
        let words = sections.flat_map(|s| image.words.range(s.address..s.end()));
        let got = words.map(|(at, word)| Slot { at: *at, slot: *at, word });
        Slots { stubs: by_word(stubs), got: by_word(got), functions: OnceCell::new(), objects: OnceCell::new() }
    }

    /// Stubs that may stand for `word`, ordered by address.
    pub(crate) fn stubs<'s>(&'s self, word: &'s Word) -> &'s [Slot<'s>] {
        self.stubs.get(&key(word)).map_or(&[], Vec::as_slice)
    }

    /// Slots of the GOT that may hold `word`, ordered by address.
    pub(crate) fn got<'s>(&'s self, word: &'s Word) -> &'s [Slot<'s>] {
        self.got.get(&key(word)).map_or(&[], Vec::as_slice)
    }

    /// The first global function of this name in `new`.
    pub(crate) fn global_function(&self, new: &'b Build<'_>, name: &str) -> Option<FunctionId> {
        let functions = self.functions.get_or_init(|| {
            let global = new.map.functions.iter().enumerate().filter(|(_, f)| !f.local);
            first_of_each(global.flat_map(|(id, f)| f.names.iter().map(move |n| (*n, id))))
        });
        functions.get(name).copied()
    }

    /// The first global object of this name in `new`.
    pub(crate) fn global_object(&self, new: &'b Build<'_>, name: &str) -> Option<ObjectId> {
        let objects = self.objects.get_or_init(|| {
            let global = new.map.objects.iter().enumerate().filter(|(_, o)| !o.local);
            first_of_each(global.flat_map(|(id, o)| o.names.iter().map(move |n| (*n, id))))
        });
        objects.get(name).copied()
    }
}

fn by_word<'b>(slots: impl Iterator<Item = Slot<'b>>) -> ByWord<'b> {
    let mut found = ByWord::default();
    for slot in slots {
        found.entry(key(slot.word)).or_default().push(slot);
    }
    found
}

fn first_of_each<'b>(names: impl Iterator<Item = (&'b str, usize)>) -> FxHashMap<&'b str, usize> {
    let mut found = FxHashMap::default();
    for (name, id) in names {
        found.entry(name).or_insert(id);
    }
    found
}
