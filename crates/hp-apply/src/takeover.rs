//! A newer patch in the place of older ones of the same base, in one flip.
//!
//! Arming a patch the usual way leads an entry to a thunk that still runs the *base's* function. Where an
//! older patch is in effect that would be wrong even for a moment. So each entry that an older patch has is
//! led to a *bridge* in the newer one's payload, which tests the newer one's state byte: as long as it is
//! zero, the bridge goes on to the older patch's function, so arming changes nothing. Once it is set, it
//! goes to the newer patch's function, or, where that leaves the function alone, to the part of the older one's
//! thunk that runs the base's function. So one byte switches all functions, those that come, change and go.
//! Entries that no older patch has get the usual thunk, which tests the same byte.
//!
//! For this time the newer patch's ledger is seen through [`view`]: a ledger whose "original bytes" are the
//! jump to the older function, whose "thunk" is the bridge, with gates of their own. All steps work on it
//! as on any other. Afterwards the older states are cleared; before that, a state byte that is set counts as
//! superseded if a ledger written later has bridged its entries and is set itself. So an applier may die
//! between any two writes: [`settle`] finishes what has been flipped and takes back what has not.

use crate::Options;
use crate::addr::{LiveAddr, LiveRange};
use crate::failure::{Failure, refused};
use crate::gate::{self, GATE_SIZE};
use crate::ledger::{Bridged, Ledger, OldRange, Replaced, SITE, Seal};
use crate::prelude::*;
use crate::process::Process;
use crate::safe_point::{Watch, Watched};
use crate::session::Session;
use crate::sites::{Leads, Standing, Writer};
use crate::small::{Map, sort_by_key};
use crate::stops::{Stops, Terms};

/// `cmpb $0,state(%rip); jne after; jmp before`, filled up.
const BRIDGE_SIZE: u64 = 24;
/// Length of the test and the branch at the start of every thunk.
const THUNK_TEST: u64 = 13;

/// Bytes that the gates and bridges take: one of each for every entry of either patch.
pub(crate) fn size(own: impl Iterator<Item = LiveAddr>, bridged: &[Bridged]) -> u64 {
    if bridged.is_empty() {
        return 0;
    }
    let own = own.count() as u64;
    let gone = bridged.iter().filter(|bridged| bridged.after != LiveAddr(0)).count() as u64;
    own.saturating_add(gone).saturating_mul(GATE_SIZE + BRIDGE_SIZE)
}

/// What a patch that replaces `functions` has to bridge to take the place of these older ones.
pub(crate) fn bridged(process: &Process, older: &[&Ledger], functions: &[Replaced]) -> Result<Vec<Bridged>, Failure> {
    let touched = Touched::by(functions);
    let mut all = Vec::new();
    for ledger in older {
        for function in &ledger.functions {
            let own = touched.find(function);
            let same = own.is_none_or(|own| own.site == function.site && own.entry() == function.entry());
            if !same {
                let (name, id) = (&function.name, &ledger.id);
                return Err(refused(format_args!("patch {id} redirects {name} in another way; revert it first")));
            }
            let after = if own.is_some() { LiveAddr(0) } else { old_part(process, ledger, function)? };
            all.push(Bridged {
                name: function.name.clone(),
                site: function.site,
                site_bytes: function.site_bytes,
                before: function.new,
                after,
            });
        }
    }
    Ok(all)
}

/// What functions redirect or replace, ready for many look-ups.
pub(crate) struct Touched<'f> {
    /// By start, each with the highest end so far.
    ranges: Vec<(LiveRange, LiveAddr, &'f Replaced)>,
}

impl<'f> Touched<'f> {
    pub(crate) fn by(functions: &'f [Replaced]) -> Touched<'f> {
        let each = functions.iter().flat_map(|function| touched(function).map(move |range| (range, function)));
        let mut sorted: Vec<(LiveRange, &Replaced)> = each.collect();
        sort_by_key(&mut sorted, |(range, _)| *range);
        let mut reach = LiveAddr(0);
        let mut ranges = Vec::with_capacity(sorted.len());
        for (range, function) in sorted {
            reach = reach.max(range.end);
            ranges.push((range, reach, function));
        }
        Touched { ranges }
    }

    /// One of them that shares bytes with another patch's function.
    pub(crate) fn find(&self, other: &Replaced) -> Option<&'f Replaced> {
        touched(other).find_map(|range| {
            let below = self.ranges.partition_point(|(own, ..)| own.start < range.end);
            let reaching = self.ranges[..below].iter().rev().take_while(|(_, reach, _)| *reach > range.start);
            reaching.into_iter().find(|(own, ..)| own.overlaps(range)).map(|(.., function)| *function)
        })
    }
}

fn touched(function: &Replaced) -> impl Iterator<Item = LiveRange> + '_ {
    function.old.iter().map(|old| old.range).chain([function.site_range()])
}

/// The part of a thunk that follows its test: the displaced instructions and the way back.
fn old_part(process: &Process, ledger: &Ledger, function: &Replaced) -> Result<LiveAddr, Failure> {
    let thunk = function.thunk;
    let now: [u8; THUNK_TEST as usize] =
        process.mem.array(thunk).map_err(|error| process.io_error("cannot read a thunk", &error))?;
    match test(thunk, ledger.state, function.new) {
        Some(expected) if expected == now => Ok(thunk.plus(THUNK_TEST)),
        _ => {
            let (name, id) = (&function.name, &ledger.id);
            Err(refused(format_args!("the thunk of {name} in patch {id} has an unknown form; revert it first")))
        }
    }
}

/// `cmpb $0,state(%rip); jne target`, at `at`.
fn test(at: LiveAddr, state: LiveAddr, target: LiveAddr) -> Option<[u8; THUNK_TEST as usize]> {
    let mut code = [0x80, 0x3d, 0, 0, 0, 0, 0, 0x0f, 0x85, 0, 0, 0, 0];
    code[2..6].copy_from_slice(&distance(at.plus(7), state)?);
    code[9..13].copy_from_slice(&distance(at.plus(THUNK_TEST), target)?);
    Some(code)
}

fn distance(from: LiveAddr, to: LiveAddr) -> Option<[u8; 4]> {
    i32::try_from(to.0.wrapping_sub(from.0) as i64).ok().map(i32::to_le_bytes)
}

/// A ledger as the steps of a takeover see it; `None` if it takes nothing over.
pub(crate) fn view(ledger: &Ledger) -> Option<Ledger> {
    if ledger.bridged.is_empty() {
        return None;
    }
    let gone = ledger.bridged.iter().filter(|bridged| bridged.after != LiveAddr(0));
    let count = (ledger.functions.len() + gone.clone().count()) as u64;
    let bridges = ledger.takeover.start.plus(count * GATE_SIZE);
    let bridge = |index: usize| bridges.plus(index as u64 * BRIDGE_SIZE);
    let by_site = by_site(ledger);
    let mut functions = ledger.functions.clone();
    for (index, function) in functions.iter_mut().enumerate() {
        if let Some(bridged) = by_site.get(&function.site) {
            function.site_bytes = function.jump_to(bridged.before);
            function.thunk = bridge(index);
        }
    }
    for bridged in gone {
        let function = Replaced {
            name: bridged.name.clone(),
            old: vec![OldRange { range: bridged.site.range(SITE as u64), digest: [0; 32] }],
            site: bridged.site,
            site_bytes: [0; SITE],
            thunk: bridge(functions.len()),
            new: bridged.after,
        };
        functions.push(Replaced { site_bytes: function.jump_to(bridged.before), ..function });
    }
    let gates = ledger.takeover.start.range(count * GATE_SIZE);
    Some(Ledger { functions, gates, ..ledger.clone() })
}

fn by_site(ledger: &Ledger) -> Map<LiveAddr, &Bridged> {
    let mut map = Map::default();
    for bridged in &ledger.bridged {
        map.insert(bridged.site, bridged);
    }
    map
}

/// The bridges of a takeover: who stands in one goes on as the state byte says.
pub(crate) fn bridges(view: &Ledger) -> LiveRange {
    LiveRange { start: view.gates.end, end: view.takeover.end }
}

/// The gates and bridges of a payload.
pub(crate) fn code(view: &Ledger) -> Option<Vec<u8>> {
    let mut code = Vec::new();
    for (index, function) in view.functions.iter().enumerate() {
        code.extend(gate::code(view.gate(index), function.thunk)?);
    }
    let by_site = by_site(view);
    for (index, function) in view.functions.iter().enumerate() {
        let at = bridges(view).start.plus(index as u64 * BRIDGE_SIZE);
        let mut bridge = [0xcc; BRIDGE_SIZE as usize];
        if let Some(bridged) = by_site.get(&function.site) {
            bridge[..13].copy_from_slice(&test(at, view.state, function.new)?);
            bridge[13] = 0xe9;
            bridge[14..18].copy_from_slice(&distance(at.plus(18), bridged.before)?);
        }
        code.extend(bridge);
    }
    Some(code)
}

/// All code of these patches, in which no thread may be when another one comes into effect.
pub(crate) fn old_code<'l>(ledgers: impl IntoIterator<Item = &'l Ledger>) -> Vec<Watched> {
    let mut list = Vec::new();
    for ledger in ledgers {
        list.push(Watched::plain(ledger.code, &format!("patch {}", ledger.name)));
        // Names for its functions: each reaches to the next one.
        let mut starts: Vec<_> = ledger.functions.iter().map(|function| (function.new, &function.name)).collect();
        sort_by_key(&mut starts, |(start, _)| *start);
        for (index, (start, name)) in starts.iter().enumerate() {
            let end = starts.get(index + 1).map_or(ledger.text.end, |next| next.0);
            list.push(Watched { vague: false, ..Watched::plain(LiveRange { start: *start, end }, name) });
        }
    }
    list
}

/// Whether a newer patch has taken the place of this one, even if its state byte is still set.
pub(crate) fn is_superseded(process: &Process, ledger: &Ledger, all: &[Ledger]) -> Result<bool, Failure> {
    for newer in all.iter().filter(|newer| newer.sequence > ledger.sequence && takes_over(newer, ledger)) {
        if Standing::read(process, newer)?.active {
            return Ok(true);
        }
    }
    Ok(false)
}

fn takes_over(newer: &Ledger, older: &Ledger) -> bool {
    let same = |bridged: &Bridged| older.functions.iter().any(|f| f.site == bridged.site && f.new == bridged.before);
    newer.bridged.iter().any(same)
}

/// A takeover that an applier left unfinished.
struct Pending<'s> {
    ledger: &'s Ledger,
    view: Ledger,
    /// Older ones whose state byte is still set.
    older: Vec<&'s Ledger>,
}

fn pending(session: &Session) -> Result<Vec<Pending<'_>>, Failure> {
    let mut found = Vec::new();
    for ledger in &session.ledgers {
        let Some(view) = view(ledger) else { continue };
        let standing = Standing::read(&session.process, &view)?;
        let mut older = Vec::new();
        for other in session.ledgers.iter().filter(|other| other.sequence < ledger.sequence) {
            if takes_over(ledger, other) && Standing::read(&session.process, other)?.active {
                older.push(other);
            }
        }
        let gone = standing.entries.iter().skip(ledger.functions.len()).any(|leads| *leads == Leads::New);
        let between = standing.entries.iter().any(|leads| matches!(leads, Leads::Thunk | Leads::Gate));
        if between || standing.active && (gone || !older.is_empty()) {
            found.push(Pending { ledger, view, older });
        }
    }
    Ok(found)
}

/// Whether an applier died in the middle of a takeover.
pub(crate) fn is_pending(session: &Session) -> Result<bool, Failure> {
    Ok(!pending(session)?.is_empty())
}

/// Finishes or takes back takeovers that an applier left unfinished; what the program does stays the same.
pub(crate) fn settle(session: &Session, options: &Options) -> Result<(), Failure> {
    let pending = pending(session)?;
    if pending.is_empty() {
        return Ok(());
    }
    session.check_relatives(options.timeout)?;
    let process = &session.process;
    let mut stops = Stops::new(session, options)?;
    for Pending { ledger, view, older } in pending {
        let seals: Vec<Seal> =
            core::iter::once(ledger).chain(older.iter().copied()).map(Seal::of).collect::<Result<_, _>>()?;
        stops.at_safe_point(Terms::new(&Watch::default(), &seals), |stopped, _| {
            let tid = stopped.tid();
            let writer = Writer::new(process, tid, &view);
            if !Standing::read(process, ledger)?.active {
                return writer.restore();
            }
            writer.tidy(0..view.functions.len())?;
            writer.finish_takeover(&older)
        })?;
    }
    Ok(())
}
