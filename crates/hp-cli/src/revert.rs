//! `hp revert`: a patch is named by its file or by the first digits of its ID; the processes are asked what they have.

use crate::apply::{INTERRUPTED, no_process_of};
use crate::args::RevertArgs;
use crate::exit::Exit;
use crate::patch_file::PatchFile;
use crate::targets::{Reporter, Subject, Verb, in_group, named, unseen};
use crate::text::clean;
use anyhow::bail;
use hp_apply::{Error, LedgerEntry, Outcome};
use std::collections::BTreeSet;
use std::path::Path;

/// Digits of a whole ID.
const ID_DIGITS: usize = 16;
/// Fewest digits that name a patch.
const MIN_DIGITS: usize = 4;

/// What to take out.
enum What {
    Everything,
    /// Every digit is known.
    Patch {
        id: String,
        name: Option<String>,
        /// Build ID of its base, if the patch file is at hand: no other process can have it.
        base: Option<Vec<u8>>,
    },
    /// The first digits of an ID.
    Prefix(String),
}

/// Reverts in each target.
pub(crate) fn run(args: &RevertArgs) -> anyhow::Result<Exit> {
    let what = args.patch.as_deref().map_or(Ok(What::Everything), what)?;
    let named = named(&args.targets);
    let mut reporter = Reporter::new(Verb::Revert, args.how.json);
    if let (Some(path), Some([])) = (&args.targets.exe, named.as_deref()) {
        reporter.nothing(&no_process_of(path));
        return reporter.finish();
    }
    let all = named.is_none();
    let pids = match (named, &what) {
        (Some(named), _) => named,
        (None, What::Patch { base: Some(base), .. }) => in_group(&args.targets, hp_apply::targets_of(base)?)?,
        (None, _) => in_group(&args.targets, hp_apply::patched_processes()?)?,
    };
    // What a process has is asked only where that decides something.
    let held: Vec<(i32, Result<Vec<LedgerEntry>, Error>)> = match &what {
        _ if all => pids.into_iter().map(|pid| (pid, hp_apply::status(pid))).filter(still_there).collect(),
        What::Prefix(_) => pids.into_iter().map(|pid| (pid, hp_apply::status(pid))).collect(),
        _ => pids.into_iter().map(|pid| (pid, Ok(Vec::new()))).collect(),
    };
    let what = whole(what, &held)?;
    let subject = what.subject();
    let mut targets = 0;
    let signals = hp_apply::hold_signals();
    for (pid, patches) in held {
        if hp_apply::interrupted() {
            reporter.note(INTERRUPTED);
            targets += 1;
            break;
        }
        let outcome = match patches {
            Err(error) => Outcome::untouched(pid, Err(error)),
            Ok(patches) if all && !patches.iter().any(|patch| what.is(&patch.id)) => continue,
            Ok(_) => hp_apply::revert(pid, subject.id.as_deref(), &args.how.options()),
        };
        targets += 1;
        reporter.add(&subject, &outcome);
    }
    if targets == 0 {
        let patch = subject.name.or(subject.id).map_or("a patch".into(), |name| clean(&name));
        reporter.nothing(&format!("no process has {patch}{}", unseen()));
    }
    let exit = reporter.finish_under(&signals);
    signals.end();
    exit
}

impl What {
    fn subject(&self) -> Subject {
        match self {
            What::Everything => Subject::default(),
            What::Patch { id, name, .. } => Subject { id: Some(id.clone()), name: name.clone() },
            What::Prefix(digits) => Subject { id: Some(digits.clone()), name: None },
        }
    }

    fn is(&self, id: &str) -> bool {
        match self {
            What::Everything => true,
            What::Patch { id: wanted, .. } => wanted == id,
            What::Prefix(digits) => id.starts_with(digits.as_str()),
        }
    }
}

/// A file if there is one, else digits of an ID.
fn what(word: &Path) -> anyhow::Result<What> {
    if word.exists() {
        let file = PatchFile::read(word)?;
        return Ok(What::Patch { id: file.id, name: Some(file.patch.name), base: Some(file.patch.base.build_id) });
    }
    let digits = word.to_string_lossy().to_ascii_lowercase();
    let right_length = (MIN_DIGITS..=ID_DIGITS).contains(&digits.len());
    if !right_length || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!(
            "{} is neither a patch file nor the first {MIN_DIGITS} or more digits of a patch ID; `hp status` shows the IDs",
            clean(&word.display().to_string())
        );
    }
    Ok(if digits.len() == ID_DIGITS {
        What::Patch { id: digits, name: None, base: None }
    } else {
        What::Prefix(digits)
    })
}

/// Completes an ID from what the targets have.
fn whole(what: What, held: &[(i32, Result<Vec<LedgerEntry>, Error>)]) -> anyhow::Result<What> {
    let What::Prefix(digits) = &what else { return Ok(what) };
    let patches = held.iter().filter_map(|(_, patches)| patches.as_ref().ok()).flatten();
    let matching: Vec<&LedgerEntry> = patches.filter(|patch| patch.id.starts_with(digits.as_str())).collect();
    let ids: BTreeSet<&str> = matching.iter().map(|patch| patch.id.as_str()).collect();
    if ids.len() > 1 {
        let ids: Vec<&str> = ids.into_iter().collect();
        bail!("{digits} is the beginning of several patch IDs; give more digits: {}", ids.join(", "));
    }
    match matching.first() {
        Some(patch) => Ok(What::Patch { id: patch.id.clone(), name: Some(patch.name.clone()), base: None }),
        None => Ok(what),
    }
}

/// False for a process that ended between being found and being asked.
fn still_there((pid, patches): &(i32, Result<Vec<LedgerEntry>, Error>)) -> bool {
    patches.is_ok() || Path::new(&format!("/proc/{pid}")).exists()
}
