//! What became of addresses that functions make, once it has been followed.
//!
//! Following an address takes the decoded instructions of its function, and many stages ask the same of the same function. So
//! each answer is kept, and of some functions that were asked about last the instructions, which are large.

use std::collections::BTreeSet;
use std::sync::{Arc, LockResult, Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxHashMap, FxHashSet};

use crate::arch::{self, Decoded, Leaning, Reach, Touched};
use crate::build::FunctionCode;
use crate::entity::{FunctionId, Map};

/// Functions are spread over so many parts, so that threads do not wait for one another.
const PARTS: usize = 16;
/// Of larger functions only the last one is kept, for its instructions are large too; in bytes of code.
const LARGE: u64 = 1 << 14;

/// Answers, by the address of the instruction that makes the address in question and its function.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    parts: [Mutex<Part>; PARTS],
    large: Mutex<Option<Last>>,
    /// Where the computed jumps lead of functions with such, by function, if that is known of all of them.
    jumps: FxHashMap<u32, Box<[u64]>>,
    /// Where calls lead that never return.
    endless: FxHashSet<u64>,
    /// Code of another build that does the same with its addresses.
    alike: Option<Alike>,
}

/// Functions that are like some of another build.
#[derive(Debug)]
pub(crate) struct Alike {
    /// What is known there.
    pub followed: Arc<Followed>,
    /// By function: that of the other build.
    pub functions: Vec<Option<u32>>,
    /// Starts of ranges and of those that they are like; ordered.
    pub starts: Vec<(u64, u64)>,
}

impl Alike {
    /// The other function, and the address there that is like one here.
    fn place(&self, map: &Map<'_>, function: FunctionId, address: u64) -> Option<(FunctionId, u64)> {
        let other = (*self.functions.get(function)?)? as FunctionId;
        let range = map.functions[function].ranges.iter().find(|r| (r.address..r.end()).contains(&address))?;
        let at = self.starts.binary_search_by_key(&range.address, |start| start.0).ok()?;
        Some((other, self.starts[at].1 + (address - range.address)))
    }
}

/// What is asked about: the address of the instruction that makes the address in question, and its function.
type Made = (u64, u32);

/// A function that was asked about.
type Last = (FunctionId, Arc<Decoded>);

#[derive(Debug, Default)]
struct Part {
    /// The last function that is not a large one.
    decoded: Option<Last>,
    reach: FxHashMap<Made, Reach>,
    touched: FxHashMap<Made, Touched>,
    bounded: FxHashMap<Made, Option<(i64, i64)>>,
}

impl Followed {
    /// `endless`: where calls lead that never return.
    pub(crate) fn new(code: &[FunctionCode], endless: FxHashSet<u64>) -> Followed {
        let complete = code.iter().enumerate().filter(|(_, function)| function.complete);
        let jumps = complete.map(|(id, function)| {
            let targets: BTreeSet<u64> = function.tables.iter().flat_map(|table| &table.targets).copied().collect();
            (id as u32, targets.into_iter().collect())
        });
        Followed { jumps: jumps.collect(), endless, ..Followed::default() }
    }

    /// From now on asks first what is known of code that is alike.
    pub(crate) fn ask_first(&mut self, alike: Alike) {
        self.alike = Some(alike);
    }

    /// True if a call that leads there never returns.
    pub(crate) fn is_endless(&self, target: u64) -> bool {
        self.endless.contains(&target)
    }

    #[cfg(test)]
    pub(crate) fn how_many_alike(&self) -> usize {
        self.alike.iter().flat_map(|alike| &alike.functions).flatten().count()
    }

    /// An answer of this build, or of code that is alike.
    fn known<A>(
        &self,
        map: &Map<'_>,
        function: FunctionId,
        made: u64,
        get: impl Fn(&Part, Made) -> Option<A>,
    ) -> Option<A> {
        let here = get(&self.part(function), (made, function as u32));
        here.or_else(|| {
            let alike = self.alike.as_ref()?;
            let (other, made) = alike.place(map, function, made)?;
            get(&alike.followed.part(other), (made, other as u32))
        })
    }

    /// Where a function reaches from the address that the instruction at `made` makes.
    pub(crate) fn reach(&self, map: &Map<'_>, function: FunctionId, made: u64) -> Reach {
        if let Some(known) = self.known(map, function, made, |part, made| part.reach.get(&made).copied()) {
            return known;
        }
        let found = arch::reach(&self.decoded(map, function), &[made]).into_iter().next().unwrap_or_default();
        self.part(function).reach.insert((made, function as u32), found);
        found
    }

    /// What a function does with the addresses that the instructions at `made` make.
    pub(crate) fn touched(&self, map: &Map<'_>, function: FunctionId, made: &[u64]) -> Vec<Touched> {
        let known = |at: &u64| self.known(map, function, *at, |part, made| part.touched.get(&made).copied());
        let known: Option<Vec<Touched>> = made.iter().map(known).collect();
        if let Some(known) = known {
            return known;
        }
        let found = arch::touched(&self.decoded(map, function), made);
        self.part(function).touched.extend(made.iter().map(|at| (*at, function as u32)).zip(found.iter().copied()));
        found
    }

    /// How much a function can read by way of the address that the instruction at `made` makes; see [`arch::bounded`].
    pub(crate) fn bounded(&self, map: &Map<'_>, function: FunctionId, made: u64) -> Option<(i64, i64)> {
        if let Some(known) = self.known(map, function, made, |part, made| part.bounded.get(&made).copied()) {
            return known;
        }
        let found = arch::bounded(&self.decoded(map, function), made);
        self.part(function).bounded.insert((made, function as u32), found);
        found
    }

    /// Whether loops end with the address that the instruction at `made` makes; see [`arch::is_limit`].
    pub(crate) fn is_limit(&self, map: &Map<'_>, function: FunctionId, made: u64) -> bool {
        arch::is_limit(&self.decoded(map, function), made)
    }

    /// What a function does with the address that the instruction at `made` makes; see [`arch::leaning`].
    pub(crate) fn leaning(&self, map: &Map<'_>, function: FunctionId, made: u64) -> Leaning {
        arch::leaning(&self.decoded(map, function), made)
    }

    /// What it does with its argument of this number.
    pub(crate) fn leaning_of_argument(&self, map: &Map<'_>, function: FunctionId, argument: usize) -> Leaning {
        arch::leaning_of_argument(&self.decoded(map, function), map.functions[function].address(), argument)
    }

    fn decoded(&self, map: &Map<'_>, function: FunctionId) -> Arc<Decoded> {
        let is_large = map.functions[function].size() >= LARGE;
        let known = |last: &Option<Last>| last.as_ref().filter(|last| last.0 == function).map(|last| last.1.clone());
        let found = if is_large { known(&whole(self.large.lock())) } else { known(&self.part(function).decoded) };
        found.unwrap_or_else(|| {
            let ranges = map.functions[function].ranges.iter().map(|r| (r.address, r.bytes));
            let jumps = self.jumps.get(&(function as u32)).map(|targets| &**targets);
            let code = Arc::new(Decoded::new(ranges).with_ways(jumps, &|target| self.is_endless(target)));
            let last = Some((function, code.clone()));
            if is_large {
                *whole(self.large.lock()) = last;
            } else {
                self.part(function).decoded = last;
            }
            code
        })
    }

    fn part(&self, function: FunctionId) -> MutexGuard<'_, Part> {
        whole(self.parts[function % PARTS].lock())
    }
}

/// What such a lock guards is whole at any time.
fn whole<T>(lock: LockResult<MutexGuard<'_, T>>) -> MutexGuard<'_, T> {
    lock.unwrap_or_else(PoisonError::into_inner)
}
