//! Votes: what pairs that are the same otherwise refer to at the same place is a pair too.
//!
//! Round by round, until nothing new is found. Comparing every pair anew in each round would be quadratic: large
//! builds without symbols take dozens of rounds. A verdict rests on fixed content and on pairs, and pairs are
//! never taken apart; so it can change only when something is paired that was alone when the pair was
//! compared. The [`Judge`] notes what it asks about and finds alone, and a pair is compared again when one of those is paired
//! otherwise than it voted, not sooner. Its votes count until then.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::names::Names;
use super::pairs::{Asked, Numbering, Pairs, Question, View};
use super::{Correlation, Settled};
use crate::build::Build;
use crate::judge::{Judge, Verdict};

const END: u32 = u32::MAX;

/// The votes that count at the moment, and who is to vote again.
pub(super) struct Votes<'m> {
    names: Names<'m>,
    numbering: Numbering,
    /// How much of the logs of function and object pairs has been seen.
    seen: (usize, usize),
    /// For each entity the head of the list of those who wait for it.
    waiting: Vec<u32>,
    /// Lists: a voter, by the number of its old entity, the partner that it asked for, and the next one.
    lists: Vec<(u32, u32, u32)>,
    /// Votes of each voter.
    cast: FxHashMap<u32, Vec<Verdict>>,
    functions: Ballot,
    objects: Ballot,
}

impl<'m> Votes<'m> {
    /// `names` are joined by after each round.
    pub(super) fn new(pairs: &Correlation, names: Names<'m>) -> Votes<'m> {
        let numbering = Numbering::of(pairs);
        Votes {
            names,
            numbering,
            seen: (0, 0),
            waiting: vec![END; numbering.total],
            lists: Vec::new(),
            cast: FxHashMap::default(),
            functions: Ballot::default(),
            objects: Ballot::default(),
        }
    }

    /// Votes and pairs until nothing changes.
    pub(super) fn settle(&mut self, old: &Build<'_>, new: &Build<'_>, pairs: &mut Correlation) {
        self.names.join(pairs);
        while self.round(old, new, pairs) {}
    }

    /// True if nobody votes against this pair of objects.
    pub(super) fn allow_objects(&self, old: usize, new: usize) -> bool {
        let (old, new) = (old as u32, new as u32);
        let agrees = |choices: Option<&Choices>, other: u32| choices.is_none_or(|c| c.is_for(other));
        agrees(self.objects.by_old.get(&old), new) && agrees(self.objects.by_new.get(&new), old)
    }

    /// One round. True if it paired anything.
    fn round(&mut self, old: &Build<'_>, new: &Build<'_>, pairs: &mut Correlation) -> bool {
        let voters = self.who_votes(pairs);
        let (numbering, known): (_, &Correlation) = (self.numbering, pairs);
        let ballots: Vec<Vote> = voters.par_iter().map(|voter| vote((old, new), known, numbering, *voter)).collect();
        for (voter, vote) in voters.into_iter().zip(ballots) {
            for Question { entity, partner } in vote.asked {
                self.lists.push((voter, partner, self.waiting[entity as usize]));
                self.waiting[entity as usize] = self.lists.len() as u32 - 1;
            }
            self.replace(voter, vote.verdicts);
            if let Some(function) = pairs.settled.get_mut(voter as usize) {
                *function = vote.settled;
            }
        }
        let joined = self.objects.count(&mut pairs.objects) | self.functions.count(&mut pairs.functions);
        if joined {
            // What a vote leaves over may now be the only one of its name.
            self.names.join(pairs);
        }
        joined
    }

    /// Pairs that are new since the last round, and those whose verdict may be another now.
    fn who_votes(&mut self, pairs: &Correlation) -> Vec<u32> {
        let [f, g, o, p] = self.numbering.starts;
        let functions = pairs.functions.log()[self.seen.0..].iter().map(|(a, b)| (f + a, g + b));
        let objects = pairs.objects.log()[self.seen.1..].iter().map(|(a, b)| (o + a, p + b));
        let mut voters = Vec::new();
        for (old, new) in functions.chain(objects) {
            voters.push(old);
            for (entity, other) in [(old, new), (new, old)] {
                let mut at = std::mem::replace(&mut self.waiting[entity as usize], END);
                while at != END {
                    let (voter, partner, next) = self.lists[at as usize];
                    // Who asked for this very pair has got it, and has nothing to add.
                    if partner != other {
                        voters.push(voter);
                    }
                    at = next;
                }
            }
        }
        self.seen = (pairs.functions.log().len(), pairs.objects.log().len());
        voters.sort_unstable();
        voters.dedup();
        voters
    }

    /// Puts a voter's votes in place of its earlier ones.
    fn replace(&mut self, voter: u32, votes: Vec<Verdict>) {
        let before = if votes.is_empty() { self.cast.remove(&voter) } else { self.cast.insert(voter, votes.clone()) };
        for (votes, cast) in [(votes, true), (before.unwrap_or_default(), false)] {
            for vote in votes {
                match vote {
                    Verdict::Undecided(a, b) => self.objects.change(a as u32, b as u32, cast),
                    Verdict::UndecidedFunctions(a, b) => self.functions.change(a as u32, b as u32, cast),
                    Verdict::Same | Verdict::Different => {}
                }
            }
        }
    }
}

/// The vote of one pair.
struct Vote {
    /// What it votes for, each once.
    verdicts: Vec<Verdict>,
    /// What that depends on.
    asked: Vec<Question>,
    settled: Settled,
}

fn vote((old, new): (&Build<'_>, &Build<'_>), pairs: &Correlation, numbering: Numbering, voter: u32) -> Vote {
    let asked = Asked::new(numbering);
    let judge = Judge::new(old, new, pairs).seeing(View::noted(pairs, &asked)).keeping();
    let mut votes = Vec::new();
    let objects = numbering.starts[2];
    let mut settled = Settled::Open;
    if voter >= objects {
        let o = (voter - objects) as usize;
        votes.extend(pairs.objects.new_of(o).into_iter().flat_map(|p| judge.open_contents((o, p))));
    } else if let Some(g) = pairs.functions.new_of(voter as usize) {
        let difference = judge.difference((voter as usize, g), &mut |_, _, verdict| {
            if verdict == Verdict::Same || verdict == Verdict::Different {
                return verdict == Verdict::Same;
            }
            votes.push(verdict);
            true
        });
        if difference.is_some() {
            votes.clear();
        } else if votes.is_empty() {
            settled = if judge.depends_on_constants() { Settled::SameButForConstants } else { Settled::Same };
        }
    }
    votes.retain(|v| !matches!(v, Verdict::Same | Verdict::Different));
    votes.sort_unstable();
    votes.dedup();
    votes.shrink_to_fit();
    drop(judge);
    Vote { verdicts: votes, asked: asked.into_questions(), settled }
}

/// Votes for pairs of entities.
#[derive(Default)]
struct Ballot {
    by_old: FxHashMap<u32, Choices>,
    by_new: FxHashMap<u32, Choices>,
    /// Old and new entities whose choices changed since the last count.
    changed: (Vec<u32>, Vec<u32>),
}

/// What is voted for as the partner of one entity, and by how many. Nearly always it is one.
#[derive(Default)]
struct Choices {
    first: (u32, u32),
    others: Option<Box<FxHashMap<u32, u32>>>,
}

impl Choices {
    fn change(&mut self, choice: u32, cast: bool) {
        let step = |n: u32| if cast { n + 1 } else { n.saturating_sub(1) };
        if self.first.1 == 0 && self.others.as_ref().is_none_or(|o| !o.contains_key(&choice)) {
            self.first.0 = choice;
        }
        if self.first.0 == choice {
            self.first.1 = step(self.first.1);
            return;
        }
        let others = self.others.get_or_insert_default();
        let count = others.entry(choice).or_default();
        *count = step(*count);
        if *count == 0 {
            others.remove(&choice);
        }
        if others.is_empty() {
            self.others = None;
        }
    }

    /// True if nobody wants another partner than this one.
    fn is_for(&self, partner: u32) -> bool {
        (self.first.1 == 0 || self.first.0 == partner)
            && self.others.as_ref().is_none_or(|o| o.keys().all(|p| *p == partner))
    }

    /// The partner, if all agree on it.
    fn unanimous(&self) -> Option<u32> {
        match (&self.others, self.first.1) {
            (None, 0) => None,
            (None, _) => Some(self.first.0),
            (Some(others), 0) if others.len() == 1 => others.keys().next().copied(),
            _ => None,
        }
    }
}

impl Ballot {
    fn change(&mut self, old: u32, new: u32, cast: bool) {
        self.by_old.entry(old).or_default().change(new, cast);
        self.by_new.entry(new).or_default().change(old, cast);
        self.changed.0.push(old);
        self.changed.1.push(new);
    }

    /// Joins what all votes agree on.
    fn count(&mut self, pairs: &mut Pairs) -> bool {
        let (olds, news) = std::mem::take(&mut self.changed);
        let agreed = |old: u32| {
            let new = self.by_old.get(&old)?.unanimous()?;
            (self.by_new.get(&new)?.unanimous() == Some(old)).then_some((old, new))
        };
        let from_new = news.into_iter().filter_map(|new| self.by_new.get(&new)?.unanimous());
        let mut found: Vec<(u32, u32)> = olds.into_iter().chain(from_new).filter_map(agreed).collect();
        found.retain(|(old, new)| pairs.new_of(*old as usize).is_none() && pairs.old_of(*new as usize).is_none());
        found.sort_unstable();
        found.dedup();
        for (old, new) in &found {
            pairs.join(*old as usize, *new as usize);
        }
        !found.is_empty()
    }
}
