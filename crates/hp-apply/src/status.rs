//! What is in effect in a process, and which processes there are, read from them alone.

use crate::addr::LiveRange;
use crate::base_file::substitute;
use crate::bytes::sha256;
use crate::failure::{Failure, unusable};
use crate::image::images;
use crate::ledger::{self, Ledger, OldRange};
use crate::maps::Maps;
use crate::prelude::*;
use crate::process::{self, Process};
use crate::session::{self, Session, is_base};
use crate::sites::{Leads, Standing};
use crate::small::sort_by_key;
use crate::sys::Mem;
use crate::takeover;
use crate::{LedgerEntry, PatchedFunction, Phase};

/// Every patch of one process, in the order in which they were applied.
pub(crate) fn status(pid: i32) -> Result<Vec<LedgerEntry>, Failure> {
    let mut entries = Vec::new();
    session::look(pid, &mut |session| {
        let mut ledgers: Vec<&Ledger> = session.ledgers.iter().collect();
        sort_by_key(&mut ledgers, |ledger| ledger.sequence);
        entries = ledgers.into_iter().map(|ledger| entry(session, ledger)).collect::<Result<_, _>>()?;
        Ok(())
    })?;
    Ok(entries)
}

fn entry(session: &Session, ledger: &Ledger) -> Result<LedgerEntry, Failure> {
    let standing = Standing::read(&session.process, ledger)?;
    let base = session.images.iter().find(|image| is_base(image, ledger));
    let superseded = takeover::is_superseded(&session.process, ledger, &session.ledgers)?;
    // Of a library that was closed, perhaps opened again since, nothing leads to the patch any more.
    let active = standing.active && !superseded && base.is_some() && !standing.all(Leads::Old);
    let standing = Standing { active, ..standing };
    Ok(LedgerEntry {
        id: ledger.id.clone(),
        name: ledger.name.clone(),
        build_id: ledger.build_id_hex(),
        base_path: base.map(|image| image.path.clone()).unwrap_or_default(),
        phase: if standing.active { Phase::Active } else { Phase::Inactive },
        applied_at: ledger.applied_at,
        uid: ledger.uid,
        counter: ledger.counter,
        functions: ledger
            .functions
            .iter()
            .map(|function| PatchedFunction {
                name: function.name.clone(),
                old_address: function.entry().0,
                new_address: function.new.0,
            })
            .collect(),
        damage: damage(session, ledger, &standing, base.is_some()),
    })
}

fn damage(session: &Session, ledger: &Ledger, standing: &Standing, base_is_there: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if !base_is_there {
        lines.push("the base is not mapped where it was patched any more".to_owned());
    }
    let strangers = if base_is_there { standing.strangers(ledger, &session.ledgers) } else { Vec::new() };
    for name in strangers {
        lines.push(format!("somebody else has changed the entry of {name}"));
    }
    for (function, _) in
        ledger.functions.iter().zip(&standing.entries).filter(|(_, leads)| standing.active && **leads == Leads::Old)
    {
        lines.push(format!("{} runs its old code although the patch is in effect", function.name));
    }
    for name in changed_bodies(session, ledger, standing) {
        lines.push(format!("somebody else has changed the old code of {name}"));
    }
    for (what, range, digest) in
        [("code", ledger.code, ledger.code_digest), ("constants", ledger.constants, ledger.constants_digest)]
    {
        if digest_of(&session.process, range) != Some(digest) {
            lines.push(format!("the patch's {what} in memory are not what was loaded"));
        }
    }
    lines
}

/// Functions whose entry leads to the patch and whose other bytes are not those that the diff saw.
fn changed_bodies<'l>(session: &Session, ledger: &'l Ledger, standing: &Standing) -> Vec<&'l str> {
    let ours = |leads: &Leads| !matches!(leads, Leads::Old | Leads::Elsewhere(_));
    let same = |old: &OldRange| {
        let Ok(mut bytes) = session.process.mem.bytes(old.range.start, old.range.len() as usize) else { return false };
        substitute(&mut bytes, old.range, ledger);
        sha256(&bytes) == old.digest
    };
    let pairs = ledger.functions.iter().zip(&standing.entries).filter(|(_, leads)| ours(leads));
    pairs.filter(|(function, _)| !function.old.iter().all(same)).map(|(function, _)| &*function.name).collect()
}

fn digest_of(process: &Process, range: LiveRange) -> Option<[u8; 32]> {
    process.mem.bytes(range.start, range.len() as usize).ok().map(|bytes| sha256(&bytes))
}

/// All processes that map an image with this build ID, as far as rights allow to see.
pub(crate) fn targets_of(build_id: &[u8]) -> Result<Vec<i32>, Failure> {
    all(&|mem, maps| images(mem, maps).iter().any(|image| image.build_id.as_deref() == Some(build_id)))
}

/// All processes that hold a ledger.
pub(crate) fn patched_processes() -> Result<Vec<i32>, Failure> {
    all(&|mem, maps| !ledger::find(mem, maps).is_empty())
}

/// The build IDs of all images that a process maps.
pub(crate) fn builds_of(pid: i32) -> Result<Vec<Vec<u8>>, Failure> {
    let process = Process::open_read(pid)?;
    let images = images(&process.mem, &*process.maps()?);
    Ok(images.into_iter().filter_map(|image| image.build_id).collect())
}

pub(crate) fn all_pids() -> Result<Vec<i32>, Failure> {
    process::all_pids().map_err(|error| unusable(format_args!("cannot read /proc: {error}")))
}

fn all(matches: &dyn Fn(&Mem, &Maps) -> bool) -> Result<Vec<i32>, Failure> {
    Ok(all_pids()?
        .into_iter()
        .filter(|&pid| match (Maps::of(pid), Mem::open_read(pid)) {
            (Ok(maps), Ok(mem)) => matches(&mem, &maps),
            _ => false,
        })
        .collect())
}
