//! What became of addresses that functions make, once it has been followed.
//!
//! Following an address takes the decoded instructions of its function, and many stages ask the same of the same function. So
//! each answer is kept, and of some functions that were asked about last the instructions, which are large.

use std::sync::{Arc, LockResult, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use crate::arch::{self, Decoded, Reach, Touched};
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
}

/// A function that was asked about.
type Last = (FunctionId, Arc<Decoded>);

#[derive(Debug, Default)]
struct Part {
    /// The last function that is not a large one.
    decoded: Option<Last>,
    reach: FxHashMap<(u64, u32), Reach>,
    touched: FxHashMap<(u64, u32), Touched>,
    bounded: FxHashMap<(u64, u32), Option<(i64, i64)>>,
}

impl Followed {
    /// Where a function reaches from the address that the instruction at `made` makes.
    pub(crate) fn reach(&self, map: &Map<'_>, function: FunctionId, made: u64) -> Reach {
        if let Some(known) = self.part(function).reach.get(&(made, function as u32)) {
            return *known;
        }
        let found = arch::reach(&self.decoded(map, function), &[made]).into_iter().next().unwrap_or_default();
        self.part(function).reach.insert((made, function as u32), found);
        found
    }

    /// What a function does with the addresses that the instructions at `made` make.
    pub(crate) fn touched(&self, map: &Map<'_>, function: FunctionId, made: &[u64]) -> Vec<Touched> {
        let part = self.part(function);
        let known: Option<Vec<Touched>> =
            made.iter().map(|at| part.touched.get(&(*at, function as u32)).copied()).collect();
        drop(part);
        if let Some(known) = known {
            return known;
        }
        let found = arch::touched(&self.decoded(map, function), made);
        self.part(function).touched.extend(made.iter().map(|at| (*at, function as u32)).zip(found.iter().copied()));
        found
    }

    /// How much a function can read by way of the address that the instruction at `made` makes; see [`arch::bounded`].
    pub(crate) fn bounded(&self, map: &Map<'_>, function: FunctionId, made: u64) -> Option<(i64, i64)> {
        if let Some(known) = self.part(function).bounded.get(&(made, function as u32)) {
            return *known;
        }
        let found = arch::bounded(&self.decoded(map, function), made);
        self.part(function).bounded.insert((made, function as u32), found);
        found
    }

    fn decoded(&self, map: &Map<'_>, function: FunctionId) -> Arc<Decoded> {
        let is_large = map.functions[function].size() >= LARGE;
        let known = |last: &Option<Last>| last.as_ref().filter(|last| last.0 == function).map(|last| last.1.clone());
        let found = if is_large { known(&whole(self.large.lock())) } else { known(&self.part(function).decoded) };
        found.unwrap_or_else(|| {
            let ranges = map.functions[function].ranges.iter().map(|r| (r.address, r.bytes));
            let code = Arc::new(Decoded::new(ranges));
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
