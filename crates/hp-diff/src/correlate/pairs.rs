//! 1:1 relations between entities, and who asks about what is still open in them.

use std::hash::Hash;
use std::sync::Mutex;

use rustc_hash::FxHashMap;

use super::Correlation;

const NONE: u32 = u32::MAX;

/// A 1:1 relation between indices.
#[derive(Debug, Default)]
pub(crate) struct Pairs {
    forward: Vec<u32>,
    backward: Vec<u32>,
    /// All joins in the order in which they were made.
    log: Vec<(u32, u32)>,
}

/// The one index that has a key, if only one has.
#[derive(Clone, Copy)]
enum Only {
    Nobody,
    One(u32),
    Many,
}

impl Only {
    fn add(&mut self, id: u32) {
        *self = match *self {
            Only::Nobody => Only::One(id),
            Only::One(other) if other == id => return,
            _ => Only::Many,
        };
    }
}

impl Pairs {
    pub(super) fn new(old: usize, new: usize) -> Pairs {
        Pairs { forward: vec![NONE; old], backward: vec![NONE; new], log: Vec::new() }
    }

    pub(super) fn join(&mut self, old: usize, new: usize) {
        if self.forward[old] == NONE && self.backward[new] == NONE {
            self.forward[old] = new as u32;
            self.backward[new] = old as u32;
            self.log.push((old as u32, new as u32));
        }
    }

    pub(crate) fn new_of(&self, old: usize) -> Option<usize> {
        Some(self.forward[old] as usize).filter(|n| *n != NONE as usize)
    }

    pub(crate) fn old_of(&self, new: usize) -> Option<usize> {
        Some(self.backward[new] as usize).filter(|n| *n != NONE as usize)
    }

    /// All pairs, ordered by the old index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        let all = self.forward.iter().enumerate().filter(|(_, new)| **new != NONE);
        all.map(|(old, new)| (old, *new as usize))
    }

    /// All pairs in the order in which they were joined; nothing is ever taken out.
    pub(super) fn log(&self) -> &[(u32, u32)] {
        &self.log
    }

    /// Numbers of indices on the two sides.
    pub(super) fn sides(&self) -> (usize, usize) {
        (self.forward.len(), self.backward.len())
    }

    /// Joins what has the same key, where the key occurs once on each side among the
    /// entities that are still alone.
    pub(super) fn join_by_key<K: Hash + Eq>(
        &mut self,
        old: impl Iterator<Item = (K, usize)>,
        new: impl Iterator<Item = (K, usize)>,
    ) {
        let mut keys: FxHashMap<K, (Only, Only)> = FxHashMap::default();
        for (key, id) in old.filter(|(_, id)| self.forward[*id] == NONE) {
            keys.entry(key).or_insert((Only::Nobody, Only::Nobody)).0.add(id as u32);
        }
        // A key of the new build alone joins nothing.
        for (key, id) in new.filter(|(_, id)| self.backward[*id] == NONE) {
            if let Some(sides) = keys.get_mut(&key) {
                sides.1.add(id as u32);
            }
        }
        let mut unique: Vec<(u32, u32)> = keys
            .into_values()
            .filter_map(|sides| match sides {
                (Only::One(a), Only::One(b)) => Some((a, b)),
                _ => None,
            })
            .collect();
        unique.sort_unstable();
        for (a, b) in unique {
            self.join(a as usize, b as usize);
        }
    }
}

/// Where each kind of entity begins in one common numbering: functions of the old and of the new
/// build, objects of the old and of the new build.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbering {
    pub starts: [u32; 4],
    pub total: usize,
}

impl Numbering {
    pub(super) fn of(pairs: &Correlation) -> Numbering {
        let ((f, g), (o, p)) = (pairs.functions.sides(), pairs.objects.sides());
        let starts = [0, f, f + g, f + g + o];
        Numbering { starts: starts.map(|n| n as u32), total: f + g + o + p }
    }
}

/// An entity that a [`Judge`](crate::judge::Judge) asked about while it was alone, by its common number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    pub entity: u32,
    /// The question was whether it and this one are a pair, and the verdict is `Same` if they are;
    /// [`Question::ANY`] for every other question.
    pub partner: u32,
}

impl Question {
    pub(super) const ANY: u32 = u32::MAX;
}

/// All that was asked about what was alone. A verdict can only change when one of these is paired.
#[derive(Debug)]
pub(crate) struct Asked {
    numbering: Numbering,
    questions: Mutex<Vec<Question>>,
}

impl Asked {
    pub(super) fn new(numbering: Numbering) -> Asked {
        Asked { numbering, questions: Mutex::default() }
    }

    fn note(&self, questions: &[Question]) {
        self.questions.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(questions);
    }

    fn len(&self) -> usize {
        self.questions.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len()
    }

    /// What was asked, each question once.
    pub(super) fn into_questions(self) -> Vec<Question> {
        let mut all = self.questions.into_inner().unwrap_or_default();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What two entities are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// A pair.
    Pair,
    /// Both are alone, so they may become one.
    Open,
    /// One of them has another partner.
    Apart,
}

/// What a [`Judge`](crate::judge::Judge) sees of a correlation: pairs, and nothing that would not be noted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'p> {
    pub functions: PairsView<'p>,
    pub objects: PairsView<'p>,
}

/// One of the two relations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairsView<'p> {
    pairs: &'p Pairs,
    /// Who notes what is asked, and the place of old and new entities in the common numbering.
    asked: Option<(&'p Asked, u32, u32)>,
}

impl<'p> View<'p> {
    pub(crate) fn of(pairs: &'p Correlation) -> View<'p> {
        let plain = |pairs| PairsView { pairs, asked: None };
        View { functions: plain(&pairs.functions), objects: plain(&pairs.objects) }
    }

    /// How many questions have been noted so far.
    pub(crate) fn questions(&self) -> usize {
        self.functions.asked.map_or(0, |(asked, ..)| asked.len())
    }

    /// A view whose open questions are noted in `asked`.
    pub(super) fn noted(pairs: &'p Correlation, asked: &'p Asked) -> View<'p> {
        let [f, g, o, p] = asked.numbering.starts;
        View {
            functions: PairsView { pairs: &pairs.functions, asked: Some((asked, f, g)) },
            objects: PairsView { pairs: &pairs.objects, asked: Some((asked, o, p)) },
        }
    }
}

impl PairsView<'_> {
    pub(crate) fn new_of(&self, old: usize) -> Option<usize> {
        let found = self.pairs.new_of(old);
        if let (None, Some((asked, start, _))) = (found, self.asked) {
            asked.note(&[Question { entity: start + old as u32, partner: Question::ANY }]);
        }
        found
    }

    pub(crate) fn old_of(&self, new: usize) -> Option<usize> {
        let found = self.pairs.old_of(new);
        if let (None, Some((asked, _, start))) = (found, self.asked) {
            asked.note(&[Question { entity: start + new as u32, partner: Question::ANY }]);
        }
        found
    }

    /// What two entities are to each other. The verdict must be `Same` for a pair and a vote for the pair
    /// where that is open.
    pub(crate) fn relation(&self, old: usize, new: usize) -> Relation {
        match (self.pairs.new_of(old), self.pairs.old_of(new)) {
            (Some(partner), _) if partner == new => Relation::Pair,
            (None, None) => {
                if let Some((asked, olds, news)) = self.asked {
                    let (a, b) = (olds + old as u32, news + new as u32);
                    asked.note(&[Question { entity: a, partner: b }, Question { entity: b, partner: a }]);
                }
                Relation::Open
            }
            _ => Relation::Apart,
        }
    }
}
