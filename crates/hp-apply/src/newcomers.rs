//! Patches that somebody else has brought since a process was looked at.
//!
//! What an applier knows of a process it has read before it stops it for the first time. Another one may work at the same
//! time; that cannot be kept out, for the two may see the process from different namespaces. So in each stop it is asked
//! what came meanwhile. Where another patch is in effect, all that was planned rests on what is no more. Where one lies
//! there unused, some thread may still be in it, on its way to a function of the base: that is in the way like any frame of old
//! code.
//!
//! To be cheap in a stop, only what was mapped since is searched, and the places at which ledgers are known.

use crate::addr::{LiveAddr, LiveRange};
use crate::failure::Failure;
use crate::ledger::{self, Ledger, Seal, changed_meanwhile};
use crate::maps::Maps;
use crate::prelude::*;
use crate::process::Process;
use crate::sites::Standing;

/// What was there when a process was looked at, and what we have brought ourselves.
pub(crate) struct Known {
    /// Each with the end of its payload.
    ledgers: Vec<(Seal, LiveAddr)>,
    searched: Vec<LiveRange>,
}

impl Known {
    /// These ledgers were found in these maps.
    pub(crate) fn of(maps: &Maps, ledgers: &[Ledger]) -> Result<Known, Failure> {
        let searched = ledger::candidates(maps).map(|mapping| mapping.range).collect();
        let mut known = Known { ledgers: Vec::new(), searched };
        ledgers.iter().try_for_each(|ledger| Seal::of(ledger).map(|seal| known.add(seal, ledger.mapping)))?;
        Ok(known)
    }

    /// This one too.
    pub(crate) fn add(&mut self, seal: Seal, mapping: LiveRange) {
        self.ledgers.push((seal, mapping.end));
    }

    /// What came meanwhile and is not in effect. Everything stands, and this is mapped.
    ///
    /// # Errors
    /// [`crate::Error::Unusable`] if one of `rests_on` is not what it was, or entries lead to something that came.
    pub(crate) fn newcomers(&self, process: &Process, maps: &Maps, rests_on: &[Seal]) -> Result<Vec<Ledger>, Failure> {
        let mem = &process.mem;
        let there: Vec<&(Seal, LiveAddr)> = self.ledgers.iter().filter(|(seal, _)| seal.holds(mem)).collect();
        if !rests_on.iter().all(|seal| there.iter().any(|(known, _)| known == seal)) {
            return Err(changed_meanwhile(process));
        }
        let known = |at: LiveAddr| there.iter().find(|(seal, _)| seal.at == at).map(|(_, end)| *end);
        let fresh =
            ledger::candidates(maps).map(|mapping| mapping.range).filter(|range| !self.searched.contains(range));
        let mut found = ledger::find_within(mem, fresh, &known);
        // What was searched before may hold another one in the place of one that was known.
        for (Seal { at, .. }, _) in self.ledgers.iter().filter(|(seal, _)| known(seal.at).is_none()) {
            let place = maps.at(*at).map(|mapping| LiveRange { start: *at, end: mapping.range.end });
            found.extend(place.and_then(|place| ledger::read_at(mem, place)));
        }
        for ledger in &found {
            if !Standing::read(process, ledger)?.is_unused() {
                return Err(changed_meanwhile(process));
            }
        }
        Ok(found)
    }
}
