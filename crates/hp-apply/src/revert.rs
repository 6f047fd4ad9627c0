//! Taking patches out again: the apply backwards, with nothing but the ledger.
//!
//! At a safe point (no thread in the payload's code): entries → thunks, state = 0, original
//! bytes. Then, if no pointer into the payload is left anywhere, it is unmapped; else it
//! stays, unused, and a later apply of the same patch takes it up again.

use crate::addr::{LiveAddr, LiveRange};
use crate::base_file::check_originals;
use crate::failure::{Failure, refused};
use crate::finders::{self, Holders};
use crate::ledger::{Ledger, Seal, changed_meanwhile};
use crate::pointers::{Search, hidden_holder, search_running, search_stopped};
use crate::prelude::*;
use crate::process::Process;
use crate::remote::Slots;
use crate::safe_point::{Judge, Watch, Watched};
use crate::session::{self, Session, is_base};
use crate::sites::{Standing, Writer, stranger};
use crate::small::sort_by_key;
use crate::stops::{Acted, Stops, Terms, looked};
use crate::threads::NotNow;
use crate::{Done, Measured, Options, Stood, cleanup, gate, inherit, seccomp, stage, sys, takeover};
use core::cell::Cell;
use core::time::Duration;

/// Longest stop for the last search before unmapping.
const UNMAP_PAUSE: Duration = Duration::from_millis(10);
/// Longest search while the program runs.
const SEARCH_LIMIT: Duration = Duration::from_secs(2);
/// How often a moment is looked for at which a payload can be unmapped.
const RECLAIM_TRIES: u32 = 6;
/// Time between the first two looks; it doubles.
const FIRST_RETRY: Duration = Duration::from_millis(1);
/// How often an undo looks for a moment to unmap.
const UNDO_TRIES: u32 = 10;

/// Takes out one patch, or all of them.
pub(crate) fn revert(pid: i32, id: Option<&str>, options: &Options, stood: &Cell<Stood>) -> Result<Done, Failure> {
    session::with(pid, stood, &|session| revert_in(session, id, options))
}

fn revert_in(session: &Session, id: Option<&str>, options: &Options) -> Result<Done, Failure> {
    if options.dry_run && takeover::is_pending(session)? {
        let what = "finish what an applier left that died while it replaced a patch; then look again".to_owned();
        return Ok(Done::Rehearsed(vec![what]));
    }
    takeover::settle(session, options)?;
    let wanted: Vec<&Ledger> = session.ledgers.iter().filter(|ledger| id.is_none_or(|id| ledger.id == id)).collect();
    let mut standing = Vec::new();
    for ledger in &wanted {
        standing.push(Standing::read(&session.process, ledger)?);
    }
    let work: Vec<(&Ledger, &Standing)> = wanted.into_iter().zip(&standing).collect();
    let unused = |ledger: &Ledger, standing: &Standing| session.is_unused(ledger, standing);
    for (ledger, _) in work.iter().filter(|(ledger, standing)| !unused(ledger, standing)) {
        check(session, ledger)?;
    }
    session.check_relatives(options.timeout)?;
    let mut stops = Stops::new(session, options)?;
    let gate = gate::call(session.ledgers.first().map_or(LiveAddr(0), |ledger| ledger.gates.start));
    let survey = seccomp::survey(&mut stops.tracer, &[], &gate, options.timeout)?;
    stops.may_close = survey.gates;
    let helpers = survey.helpers;
    if options.dry_run {
        return rehearse(&mut stops, work.into_iter().filter(|(ledger, standing)| !unused(ledger, standing)).collect());
    }
    let mut measured = Measured::default();
    let mut any = false;
    for (ledger, standing) in work {
        let in_use = !unused(ledger, standing);
        let holders = Holders::find(&session.process, ledger)?;
        if in_use {
            let flip = flip_back(session, &mut stops, ledger, standing.active, &holders)?;
            any = true;
            measured.flip_pause_ns = measured.flip_pause_ns.max(flip.pause_ns);
            measured.threads = measured.threads.max(flip.threads);
            measured.functions += ledger.functions.len() as u32;
        }
        if let Err(why) = reclaim_from(session, &mut stops, &helpers, ledger, options, holders)?
            && in_use
        {
            measured.mapped_bytes += ledger.mapping.len();
            measured.kept.push(why);
        }
    }
    // What an older payload was kept for may be gone now.
    let users = session.ledgers.iter().filter(|ledger| id.is_none_or(|id| ledger.id == id));
    let others = session.ledgers.iter().filter(|other| id.is_some_and(|id| other.id != id));
    let owners = others.filter(|other| users.clone().any(|user| inherit::uses(user, other)));
    for owner in owners {
        if session.is_unused(owner, &Standing::read(&session.process, owner)?)
            && let Err(why) = reclaim(session, &mut stops, &helpers, owner, options)?
        {
            measured.kept.push(why);
        }
    }
    cleanup::clean(session, &mut stops, &helpers)?;
    measured.stops = stops.tracer.stops;
    measured.longest_other_pause_ns = stops.tracer.longest_ns;
    Ok(if any { Done::Reverted(measured) } else { Done::NotApplied })
}

/// What can be known before anything is written.
fn check(session: &Session, ledger: &Ledger) -> Result<(), Failure> {
    if !session.images.iter().any(|image| is_base(image, ledger)) {
        let name = &ledger.name;
        return Err(refused(format_args!("the base of patch {name} is not mapped where it was patched any more")));
    }
    let standing = Standing::read(&session.process, ledger)?;
    let strangers = standing.strangers(ledger, &session.ledgers);
    if !strangers.is_empty() {
        return Err(stranger(&strangers));
    }
    check_originals(&session.process, &session.maps, ledger)
}

fn rehearse(stops: &mut Stops<'_>, work: Vec<(&Ledger, &Standing)>) -> Result<Done, Failure> {
    if work.is_empty() {
        return Ok(Done::NotApplied);
    }
    let mut lines = Vec::new();
    for (ledger, _) in work {
        for function in &ledger.functions {
            lines.push(format!("restore {} at {}", function.name, function.entry()));
        }
        let (busy, pause_ns) = stops.look(&new_code(ledger))?;
        lines.push(looked(&busy, pause_ns));
    }
    Ok(Done::Rehearsed(lines))
}

fn flip_back(
    session: &Session,
    stops: &mut Stops<'_>,
    ledger: &Ledger,
    active: bool,
    holders: &Holders<'_>,
) -> Result<Acted, Failure> {
    // With state = 0 nobody can be in the new code; the entries are jumps either way.
    let watch = if active { new_code(ledger) } else { Watch::default() };
    let process = &session.process;
    let seals = [Seal::of(ledger)?];
    stops.at_safe_point(Terms { watch: &watch, seals: &seals, gated: Some(ledger), special: true }, |stopped, maps| {
        // The watched code was chosen by that.
        if Standing::read(process, ledger)?.active != active {
            return Err(changed_meanwhile(process));
        }
        let writer = Writer::new(process, stopped.tid(), ledger);
        writer.untidy()?;
        writer.set_state(false)?;
        writer.restore()?;
        // Code of the payload may still be called if its address is known elsewhere.
        if active && !ledger.hands_out.code { holders.take_out(process, maps, stopped.tid()) } else { Ok(()) }
    })
}

/// Takes back an apply that has not come into effect: nobody has run the new code, so only
/// the thunks can be in use.
pub(crate) fn undo(
    session: &Session,
    stops: &mut Stops<'_>,
    helpers: &[i32],
    ledger: &Ledger,
    seal: &Seal,
) -> Result<(), Failure> {
    let process = &session.process;
    let slots = Slots::find(&process.mem, &session.images);
    let watch = unmap_watch(session, Watched::plain(ledger.code, "the payload"));
    for _ in 0..UNDO_TRIES {
        let holders = Holders::find(process, ledger)?;
        if let Ok(mut stopped) = stops.tracer.stop_all()? {
            seal.check(process)?;
            let standing = Standing::read(process, ledger)?;
            if standing.active {
                return Ok(());
            }
            Writer::new(process, stopped.tid(), ledger).restore()?;
            let maps = process.maps()?;
            let judge = Judge { process, unwinder: &stops.unwinder, maps: &maps, gates: &[] };
            let idle = judge.busy(&stopped.tasks, &watch).is_empty();
            if idle {
                holders.take_out(process, &maps, stopped.tid())?;
            }
            if idle && stage::unmap(&mut stopped, &slots, helpers, ledger.mapping)? {
                return Ok(());
            }
        }
        sys::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// All code of the payload but the gates: who is in a thunk may still go to the new code.
pub(crate) fn new_code(ledger: &Ledger) -> Watch {
    let code = LiveRange { start: ledger.code.start, end: ledger.gates.start };
    let mut list = vec![Watched::plain(code, &format!("patch {}", ledger.name))];
    // A bridge that somebody still stands in leads to an older patch once the state is cleared.
    list.push(Watched::plain(ledger.takeover, "a bridge"));
    // Names for the new functions: each reaches to the next one.
    let mut starts: Vec<_> = ledger.functions.iter().map(|function| (function.new, &function.name)).collect();
    sort_by_key(&mut starts, |(start, _)| *start);
    for (index, (start, name)) in starts.iter().enumerate() {
        let end = starts.get(index + 1).map_or(ledger.text.end, |next| next.0);
        list.push(Watched { vague: false, ..Watched::plain(LiveRange { start: *start, end }, name) });
    }
    Watch::new(list)
}

/// Where nobody may be when a payload goes: in it, or where an address of its finders may just be looked up.
fn unmap_watch(session: &Session, payload: Watched) -> Watch {
    let loader = finders::loader(&session.process.mem, &session.images);
    let looking = loader.into_iter().map(|range| Watched::running(range, "the dynamic linker"));
    Watch::new(vec![payload]).and(looking)
}

/// Makes unwinders pass a payload over that is not in effect, if nobody is in it.
fn take_out(
    process: &Process,
    stops: &mut Stops<'_>,
    (ledger, seal): (&Ledger, &Seal),
    holders: &Holders<'_>,
    watch: &Watch,
) -> Result<(), Failure> {
    if !holders.lead(process) {
        return Ok(());
    }
    let Ok(stopped) = stops.tracer.stop_all()? else { return Ok(()) };
    if seal.check(process).is_err() || !Standing::read(process, ledger)?.is_unused() {
        return Ok(());
    }
    let maps = process.maps()?;
    let judge = Judge { process, unwinder: &stops.unwinder, maps: &maps, gates: &[] };
    match judge.busy(&stopped.tasks, watch).is_empty() {
        true => holders.take_out(process, &maps, stopped.tid()),
        false => Ok(()),
    }
}

/// Unmaps a payload that nothing leads to any more; else says why it has to stay.
pub(crate) fn reclaim(
    session: &Session,
    stops: &mut Stops<'_>,
    helpers: &[i32],
    ledger: &Ledger,
    options: &Options,
) -> Result<Result<(), String>, Failure> {
    let holders = Holders::find(&session.process, ledger)?;
    reclaim_from(session, stops, helpers, ledger, options, holders)
}

/// The same with what may lead to its finders, which has been looked for just now.
fn reclaim_from<'l>(
    session: &Session,
    stops: &mut Stops<'_>,
    helpers: &[i32],
    ledger: &'l Ledger,
    options: &Options,
    mut holders: Holders<'l>,
) -> Result<Result<(), String>, Failure> {
    let process = &session.process;
    let in_use = |other: &Ledger| {
        let standing = Standing::read(process, other);
        standing.is_ok_and(|standing| !session.is_unused(other, &standing))
    };
    let watch = unmap_watch(session, Watched::plain(ledger.mapping, "the payload"));
    let seal = Seal::of(ledger)?;
    if let Some(user) = inherit::user(ledger, &session.ledgers, in_use) {
        if !ledger.hands_out.code {
            take_out(process, stops, (ledger, &seal), &holders, &watch)?;
        }
        return Ok(Err(format!("patch {} uses its variables", user.name)));
    }
    if let Some(why) = hidden_holder(process, ledger) {
        return Ok(Err(why.to_owned()));
    }
    let deadline = |limit: Duration| sys::now_ns().saturating_add(limit.as_nanos() as u64);
    let slots = Slots::find(&process.mem, &session.images);
    let limit = options.max_pause.unwrap_or(UNMAP_PAUSE).min(UNMAP_PAUSE);
    let mut why = String::new();
    for attempt in 0..RECLAIM_TRIES {
        if attempt > 0 {
            sys::sleep(FIRST_RETRY * ((1 << attempt) - 1));
            holders = Holders::find(process, ledger)?;
        }
        take_out(process, stops, (ledger, &seal), &holders, &watch)?;
        if let Search::Kept(found) = search_running(process, &*process.maps()?, ledger, deadline(SEARCH_LIMIT)) {
            why = found;
            continue;
        }
        let mut stopped = match stops.tracer.stop_all()? {
            Ok(stopped) => stopped,
            Err(NotNow(line)) => {
                why = line;
                continue;
            }
        };
        let maps = process.maps()?;
        let judge = Judge { process, unwinder: &stops.unwinder, maps: &maps, gates: &[] };
        if seal.check(process).is_err() {
            // Somebody else was faster.
            return Ok(Ok(()));
        }
        let standing = Standing::read(process, ledger)?;
        if !standing.is_unused() {
            return Ok(Err("somebody has applied it again".to_owned()));
        }
        if let Some(line) = judge.busy(&stopped.tasks, &watch).into_iter().next() {
            why = line.to_string();
            continue;
        }
        holders.take_out(process, &maps, stopped.tid())?;
        let searched = search_stopped(process, &maps, &stopped.tasks, &stops.unwinder, ledger, deadline(limit));
        if let Search::Kept(found) = searched {
            why = found;
            continue;
        }
        if stage::unmap(&mut stopped, &slots, helpers, ledger.mapping)? {
            return Ok(Ok(()));
        }
        why = "no thread can make the call that unmaps it now (a seccomp filter may refuse it)".to_owned();
    }
    Ok(Err(why))
}
