//! Is anything left out? Every function of the base that is not replaced must be the same in the new build, or be
//! listed in the manifest with a reason that holds. Of copies of one function of Rust that are not replaced, nothing that is left
//! leads to one that the new build has no equal of.

use std::collections::{BTreeMap, BTreeSet};

use hp_pack::manifest::Manifest;
use rayon::prelude::*;

use crate::report::Fault;
use crate::votes::{Difference, entries};
use crate::walk::Walk;

/// What became of one function.
enum Verdict {
    Same,
    /// It differs in numbers only, and the manifest says so.
    LeftOut,
    Fault(Fault),
}

impl Walk<'_, '_, '_> {
    /// Compares all functions that the patch does not replace.
    pub(crate) fn check_whole(&mut self) {
        let manifest: Manifest = serde_json::from_slice(&self.patch.manifest).unwrap_or_default();
        let listed: BTreeMap<u64, String> =
            manifest.left_out.iter().map(|f| (f.old_address, f.change.clone())).collect();
        let ground = self.ground;
        let kept: Vec<(usize, usize)> = entries(&ground.pairs.ranges, ground.old)
            .into_iter()
            .filter(|(f, _)| ground.replaced_at(ground.old.ranges[*f].address).is_none())
            .collect();
        let judge = |pair: &(usize, usize)| {
            let mut differences: Vec<Difference> = Vec::new();
            ground.compare_functions(*pair, &mut |_| false, &mut |difference| {
                differences.push(difference);
                differences.len() < 4096
            });
            let range = &ground.old.ranges[pair.0];
            let Some(first) = differences.first() else { return Verdict::Same };
            let place = format!("{} ({:#x})", range.name(), range.address);
            match listed.get(&range.address).map(String::as_str) {
                Some("line-only") if differences.iter().all(|d| d.immediate) => Verdict::LeftOut,
                Some(change) => Verdict::Fault(Fault::new(
                    "left-out",
                    place,
                    format!("is left out as {change}, but differs at {:#x} of the new build: {}", first.at, first.what),
                )),
                None => Verdict::Fault(Fault::new(
                    "left-out",
                    place,
                    format!(
                        "changed, and is neither replaced nor listed: at {:#x} of the new build, {}",
                        first.at, first.what
                    ),
                )),
            }
        };
        let verdicts: Vec<Verdict> = kept.par_iter().map(judge).collect();
        let copies: BTreeSet<usize> = ground.copies.iter().map(|(f, _)| *f).collect();
        let mut unchanged = copies.iter().filter(|f| ground.pairs.ranges.new_of(**f).is_none()).count();
        for verdict in verdicts {
            match verdict {
                Verdict::Same => unchanged += 1,
                Verdict::LeftOut => self.proof.left_out += 1,
                Verdict::Fault(fault) => self.faults.push(fault),
            }
        }
        self.proof.unchanged = Some(unchanged);
    }
}
