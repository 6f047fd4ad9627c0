//! `revert`: a patch is named by its file or by the first digits of its ID; the processes are asked what they have.

use super::report::{Report, Subject, Verb};
use super::{Args, Exit, INTERRUPTED, PatchFile, clean, lives, no_process_of, read_patch_bytes, unseen};
use crate::failure::{Failure, unusable};
use crate::prelude::*;
use crate::small::Set;
use crate::{Error, LedgerEntry, Outcome, sys};

/// Digits of a whole ID.
const ID_DIGITS: usize = 16;
/// Fewest digits that name a patch.
const MIN_DIGITS: usize = 4;

/// What to take out.
struct Wanted {
    /// The first digits of an ID, or all of them; `None`: everything.
    id: Option<String>,
    name: Option<String>,
    /// Build ID of its base, if the patch file is at hand: no other process can have it.
    base: Option<Vec<u8>>,
}

type Held = Vec<(i32, Result<Vec<LedgerEntry>, Error>)>;

pub(super) fn run(args: &Args<'_>, bundled: Option<Vec<u8>>, report: &mut Report) -> Result<Exit, Failure> {
    let mut wanted = Wanted::of(args, bundled)?;
    let named = args.named();
    if let (Some(path), Some([])) = (args.exe, named.as_deref()) {
        report.nothing(&no_process_of(path));
        return Ok(Exit::Nothing);
    }
    let all = named.is_none();
    let pids = match (named, &wanted.base) {
        (Some(named), _) => named,
        (None, Some(base)) => crate::targets_of(base)?,
        (None, None) => crate::patched_processes()?,
    };
    let held = held(pids, all, wanted.is_prefix());
    wanted.complete(&held)?;
    let subject = Subject { id: wanted.id.clone(), name: wanted.name.clone() };
    let mut targets = 0;
    let signals = sys::hold_signals();
    for (pid, patches) in held {
        if sys::interrupted() {
            report.error(INTERRUPTED);
            targets += 1;
            break;
        }
        let outcome = match patches {
            Err(error) => Outcome::untouched(pid, Err(error)),
            Ok(patches) if all && !patches.iter().any(|patch| wanted.is(&patch.id)) => continue,
            Ok(_) => crate::revert(pid, wanted.id.as_deref(), &args.options()),
        };
        targets += 1;
        report.add(Verb::Revert, &subject, &outcome);
    }
    signals.end();
    if targets == 0 {
        let patch = subject.name.or(subject.id).map_or("a patch".to_owned(), |name| clean(name.as_bytes()));
        report.nothing(&format!("no process has {patch}{}", unseen()));
    }
    Ok(report.exit())
}

/// What each process has, where that decides something.
fn held(pids: Vec<i32>, all: bool, is_prefix: bool) -> Held {
    let ask = |pid| (pid, if all || is_prefix { crate::status(pid) } else { Ok(Vec::new()) });
    let asked = pids.into_iter().map(ask);
    // One that ended between being found and being asked is no target.
    asked.filter(|(pid, patches)| !all || patches.is_ok() || lives(*pid)).collect()
}

impl Wanted {
    fn of(args: &Args<'_>, bundled: Option<Vec<u8>>) -> Result<Wanted, Failure> {
        let word = args.words.first().copied();
        let file = match (bundled, word) {
            (Some(bytes), _) => PatchFile::parse("the bundled patch".to_owned(), &bytes)?,
            (None, None) => return Ok(Wanted { id: None, name: None, base: None }),
            (None, Some(word)) if sys::about(word).is_err() => return Wanted::digits(word),
            (None, Some(word)) => PatchFile::parse(clean(word), &read_patch_bytes(word)?)?,
        };
        Ok(Wanted { id: Some(file.id), name: Some(file.patch.name), base: Some(file.patch.base.build_id) })
    }

    fn digits(word: &[u8]) -> Result<Wanted, Failure> {
        let digits = clean(word).to_ascii_lowercase();
        let right_length = (MIN_DIGITS..=ID_DIGITS).contains(&digits.len());
        if !right_length || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(unusable(format_args!(
                "{} is neither a patch file nor the first {MIN_DIGITS} or more digits of a patch ID; `status` shows the IDs",
                clean(word)
            )));
        }
        Ok(Wanted { id: Some(digits), name: None, base: None })
    }

    fn is_prefix(&self) -> bool {
        self.id.as_ref().is_some_and(|id| id.len() < ID_DIGITS)
    }

    fn is(&self, id: &str) -> bool {
        self.id.as_deref().is_none_or(|wanted| id.starts_with(wanted))
    }

    /// Completes an ID from what the targets have.
    fn complete(&mut self, held: &Held) -> Result<(), Failure> {
        let Some(digits) = self.id.clone().filter(|_| self.is_prefix()) else { return Ok(()) };
        let patches = held.iter().filter_map(|(_, patches)| patches.as_ref().ok()).flatten();
        let matching: Vec<&LedgerEntry> = patches.filter(|patch| patch.id.starts_with(digits.as_str())).collect();
        let mut ids: Set<&str> = Set::new();
        for patch in &matching {
            ids.insert(&patch.id);
        }
        let ids: Vec<&str> = ids.iter().copied().collect();
        if ids.len() > 1 {
            return Err(unusable(format_args!(
                "{digits} is the beginning of several patch IDs; give more digits: {}",
                ids.join(", ")
            )));
        }
        if let Some(patch) = matching.first() {
            (self.id, self.name) = (Some(patch.id.clone()), Some(patch.name.clone()));
        }
        Ok(())
    }
}
