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
    seals: Vec<Seal>,
    searched: Vec<LiveRange>,
}

impl Known {
    /// These ledgers were found in these maps.
    pub(crate) fn of(maps: &Maps, ledgers: &[Ledger]) -> Result<Known, Failure> {
        let seals = ledgers.iter().map(Seal::of).collect::<Result<_, _>>()?;
        Ok(Known { seals, searched: ledger::candidates(maps).map(|mapping| mapping.range).collect() })
    }

    /// This one too.
    pub(crate) fn add(&mut self, seal: Seal) {
        self.seals.push(seal);
    }

    /// What came meanwhile and is not in effect. Everything stands, and this is mapped.
    ///
    /// # Errors
    /// [`crate::Error::Unusable`] if entries lead to something that came.
    pub(crate) fn newcomers(&self, process: &Process, maps: &Maps) -> Result<Vec<Ledger>, Failure> {
        let fresh = ledger::candidates(maps).map(|mapping| mapping.range);
        let mut found = ledger::find_within(&process.mem, fresh.filter(|range| !self.searched.contains(range)));
        let is_known = |at: LiveAddr| self.seals.iter().any(|seal| seal.at == at && seal.check(process).is_ok());
        found.retain(|ledger| !is_known(ledger.mapping.start));
        for Seal { at, .. } in self.seals.iter().filter(|seal| !is_known(seal.at)) {
            let place = maps.at(*at).map(|mapping| LiveRange { start: *at, end: mapping.range.end });
            found.extend(place.and_then(|place| ledger::read_at(&process.mem, place)));
        }
        for ledger in &found {
            if !Standing::read(process, ledger)?.is_unused() {
                return Err(changed_meanwhile(process));
            }
        }
        Ok(found)
    }
}
