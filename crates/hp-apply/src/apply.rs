//! Applying a patch: preflight, stage, then arm, flip and tidy at a safe point.
//!
//! Nothing is written before the whole preflight has passed. Whatever an earlier, killed
//! apply left is found by its ledger and carried on from where it is.

use crate::addr::{Bias, LinkAddr, LiveAddr, LiveRange};
use crate::base_file::substitute;
use crate::bytes::sha256;
use crate::image::Image;
use crate::layout::Layout;
use crate::ledger::{Ledger, OldRange, Replaced, SITE};
use crate::relocate::{Imports, Payload, hands_out};
use crate::remote::Slots;
use crate::safe_point::{Watch, Watched};
use crate::session::{Session, is_base, read_maps};
use crate::sites::{Leads, Standing, Writer, is_in_one_page, stranger};
use crate::stops::{Acted, Stops, site_bytes, site_watch};
use crate::threads::Stopped;
use crate::unwind::Unwinder;
use crate::{Done, Error, Measured, Options, cleanup, gate, place, revert, scope, seccomp, stage, sys};
use hp_pack::{Entry, FunctionRecord, Patch, Role, SectionKind};
use std::ops::Range;
use std::time::Instant;

/// How many entries are written in one stop; beyond that they get stops of their own.
const BATCH: usize = 64;

/// Applies a patch with this ID to a process.
pub(crate) fn apply(pid: i32, patch: &Patch, id: &str, options: &Options) -> Result<Done, Error> {
    patch.validate().map_err(|invalid| Error::Unusable(format!("invalid patch: {invalid}")))?;
    let session = Session::open(pid)?;
    apply_in(&session, patch, id, options).map_err(|error| session.process.explain(error))
}

fn apply_in(session: &Session, patch: &Patch, id: &str, options: &Options) -> Result<Done, Error> {
    let plan = Plan::make(session, patch, id)?;
    let found = session.ledgers.iter().find(|ledger| ledger.id == id && is_base(plan.base, ledger));
    plan.check_neighbours(found)?;
    let standing = match found {
        Some(ledger) => Some(Standing::read(&session.process, ledger)?),
        None => None,
    };
    if let (Some(ledger), Some(standing)) = (found, &standing) {
        let strangers = standing.strangers(ledger);
        if !strangers.is_empty() {
            return Err(stranger(&strangers));
        }
        if standing.active && standing.all(Leads::New) {
            return Ok(Done::AlreadyApplied);
        }
    }
    plan.check_bytes(found)?;
    session.check_relatives(options.timeout)?;
    let imports = scope::resolve(&session.process, &session.maps, &session.images, patch)?;
    let unwinder = Unwinder::new(&session.process.mem, &session.images, &session.ledgers);
    let mut stops = Stops::new(&session.process, unwinder, options);
    for ledger in &session.ledgers {
        stops.learn(ledger);
    }
    let slots = Slots::find(&session.process.mem, &session.images);
    let at = match found {
        Some(ledger) => ledger.mapping.start,
        None => place::find(&session.maps, plan.base.span, plan.layout.size)?,
    };
    let calls = if found.is_some() { Vec::new() } else { stage::calls(at, &plan.layout, slots.any()) };
    let gate = gate::call(at.plus(plan.layout.gates.0));
    let survey = seccomp::survey(&mut stops.tracer, &calls, &gate, options.timeout)?;
    stops.may_close = survey.gates;
    let helpers = survey.helpers;
    let work = Work { plan, imports, slots, helpers, options };
    match options.dry_run {
        true => work.rehearse(stops, found),
        false => work.carry_out(stops, found.cloned().zip(standing)),
    }
}

/// What is to be done, as far as it does not depend on where the payload will lie.
struct Plan<'a> {
    session: &'a Session,
    patch: &'a Patch,
    id: &'a str,
    base: &'a Image,
    layout: Layout,
}

impl<'a> Plan<'a> {
    fn make(session: &'a Session, patch: &'a Patch, id: &'a str) -> Result<Plan<'a>, Error> {
        let base = session.base(&patch.base.build_id)?;
        if patch.base.fixed_address && base.bias != Bias(0) {
            return Err(Error::Refused(
                "the patch is for a base at a fixed address, but it is mapped elsewhere".into(),
            ));
        }
        // The size of a ledger does not depend on the addresses in it.
        let empty = Layout::of(patch, 0)?;
        let mut plan = Plan { session, patch, id, base, layout: empty };
        let size = plan.ledger(LiveAddr(0), &[])?.bytes()?.len() as u64;
        plan.layout = Layout::of(patch, size)?;
        for (record, _) in plan.entries() {
            if !base.span.covers(plan.range(record)) {
                return Err(Error::Refused(format!(
                    "function at {} is outside the base",
                    LinkAddr(record.old_address)
                )));
            }
        }
        Ok(plan)
    }

    fn entries(&self) -> impl Iterator<Item = (&'a FunctionRecord, &'a Entry)> {
        self.patch.functions.iter().filter_map(|record| match &record.role {
            Role::Entry(entry) => Some((record, entry)),
            Role::Fragment(_) => None,
        })
    }

    fn range(&self, record: &FunctionRecord) -> LiveRange {
        self.base.bias.live(LinkAddr(record.old_address)).range(record.old_size)
    }

    /// The name of the function that a record belongs to.
    fn name(&self, record: &FunctionRecord) -> String {
        let symbol = |entry: &Entry| self.patch.symbols.get(entry.new_symbol as usize).map(|symbol| &symbol.name);
        let name = match &record.role {
            Role::Entry(entry) => symbol(entry),
            Role::Fragment(parent) => match self.patch.functions.get(*parent as usize).map(|parent| &parent.role) {
                Some(Role::Entry(entry)) => symbol(entry),
                _ => None,
            },
        };
        let name = name
            .filter(|name| !name.is_empty())
            .cloned()
            .unwrap_or_else(|| format!("function_{:x}", record.old_address));
        let mut printable = crate::process::printable(&name);
        let mut end = printable.len().min(4096);
        while !printable.is_char_boundary(end) {
            end -= 1;
        }
        printable.truncate(end);
        printable
    }

    /// The ledger of the payload at `at` with this content.
    fn ledger(&self, at: LiveAddr, content: &[u8]) -> Result<Ledger, Error> {
        let (patch, layout, base) = (self.patch, &self.layout, self.base);
        let part = |(start, end): (u64, u64)| at.plus(start).range(end - start);
        let digest = |(start, end): (u64, u64)| sha256(content.get(start as usize..end as usize).unwrap_or_default());
        let functions =
            self.entries().map(|(record, entry)| self.replaced(at, record, entry)).collect::<Result<_, _>>()?;
        Ok(Ledger {
            id: self.id.to_owned(),
            name: patch.name.clone(),
            build_id: patch.base.build_id.clone(),
            counter: patch.counter,
            uid: sys::user_id(),
            applied_at: sys::epoch_seconds(),
            base: base.span,
            mapping: at.range(layout.size),
            constants: part(layout.constants),
            constants_digest: digest(layout.constants),
            code: part(layout.code),
            code_digest: digest(layout.code),
            text: layout.live(at, SectionKind::Text),
            thunks: layout.live(at, SectionKind::Thunks),
            gates: part(layout.gates),
            variables: part(layout.variables),
            eh_frame: layout.live(at, SectionKind::EhFrame),
            state: at.plus(layout.state),
            hands_out: hands_out(patch),
            functions,
        })
    }

    fn replaced(&self, at: LiveAddr, record: &FunctionRecord, entry: &Entry) -> Result<Replaced, Error> {
        let place = |symbol: u32, kind: SectionKind| {
            let value = self.patch.symbols.get(symbol as usize).map_or(0, |symbol| symbol.value);
            at.plus(self.layout.section(kind).0).plus(value)
        };
        let own = self.patch.functions.iter().position(|other| std::ptr::eq(other, record));
        let fragments = self
            .patch
            .functions
            .iter()
            .filter(|other| matches!(other.role, Role::Fragment(parent) if Some(parent as usize) == own));
        let old = std::iter::once(record)
            .chain(fragments)
            .map(|record| OldRange { range: self.range(record), digest: record.digest })
            .collect();
        let replaced = Replaced {
            name: self.name(record),
            old,
            site: self.range(record).start.plus(u64::from(entry.site_offset)),
            site_bytes: entry.site_bytes,
            thunk: place(entry.thunk_symbol, SectionKind::Thunks),
            new: place(entry.new_symbol, SectionKind::Text),
        };
        match is_in_one_page(&replaced) {
            true => Ok(replaced),
            false => Err(Error::Refused(format!("the entry of {} crosses a page boundary", replaced.name))),
        }
    }

    /// Refuses what other patches of the same base stand against.
    fn check_neighbours(&self, own: Option<&Ledger>) -> Result<(), Error> {
        let others = self.session.ledgers.iter().filter(|ledger| is_base(self.base, ledger));
        for other in others.filter(|other| own.is_none_or(|own| own.mapping != other.mapping)) {
            let standing = Standing::read(&self.session.process, other)?;
            if !standing.active && standing.all(Leads::Old) {
                continue;
            }
            let (id, name) = (&other.id, &other.name);
            if other.counter > self.patch.counter {
                return Err(Error::Refused(format!("a newer patch of the same base is applied: {name} ({id})")));
            }
            let touched = |record: &&FunctionRecord| {
                let range = self.range(record);
                other.functions.iter().any(|function| {
                    function.site_range().overlaps(range) || function.old.iter().any(|old| old.range.overlaps(range))
                })
            };
            let names: Vec<String> = self.patch.functions.iter().filter(touched).map(|r| self.name(r)).collect();
            if !names.is_empty() {
                let names = names.join(", ");
                return Err(Error::Refused(format!(
                    "patch {name} ({id}) has already replaced {names}; revert it first"
                )));
            }
        }
        Ok(())
    }

    /// Every byte of every function to be replaced must be what the diff saw.
    fn check_bytes(&self, own: Option<&Ledger>) -> Result<(), Error> {
        let process = &self.session.process;
        let read = |range: LiveRange| -> Result<Vec<u8>, Error> {
            let mut bytes = process
                .mem
                .bytes(range.start, range.len() as usize)
                .map_err(|error| process.io_error(&format!("cannot read its code at {}", range.start), &error))?;
            if let Some(own) = own {
                substitute(&mut bytes, range, own);
            }
            Ok(bytes)
        };
        let mut different = Vec::new();
        for record in &self.patch.functions {
            let mut same = sha256(&read(self.range(record))?) == record.digest;
            if let Role::Entry(entry) = &record.role {
                let site = self.range(record).start.plus(u64::from(entry.site_offset));
                same &= read(site.range(SITE as u64))? == entry.site_bytes;
            }
            if !same {
                different.push(self.name(record));
            }
        }
        different.dedup();
        match different.is_empty() {
            true => Ok(()),
            false => Err(Error::Refused(format!(
                "the code in memory is not what the patch was made for: {}",
                different.join(", ")
            ))),
        }
    }

    /// Content and ledger for an address.
    fn payload(&self, at: LiveAddr, imports: &Imports) -> Result<(Vec<u8>, Ledger), Error> {
        let payload = Payload { patch: self.patch, layout: &self.layout, base: at, bias: self.base.bias, imports };
        let content = payload.bytes()?;
        let ledger = self.ledger(at, &content)?;
        Ok((content, ledger))
    }
}

struct Work<'a> {
    plan: Plan<'a>,
    imports: Imports,
    slots: Slots,
    helpers: Vec<i32>,
    options: &'a Options,
}

impl Work<'_> {
    fn rehearse(&self, mut stops: Stops<'_>, found: Option<&Ledger>) -> Result<Done, Error> {
        let session = self.plan.session;
        let at = match found {
            Some(ledger) => ledger.mapping.start,
            None => place::find(&read_maps(&session.process)?, self.plan.base.span, self.plan.layout.size)?,
        };
        let (_, ledger) = self.plan.payload(at, &self.imports)?;
        let (busy, pause_ns) = stops.look(&flip_watch(&ledger))?;
        let size = self.plan.layout.size;
        let mut lines = vec![match found {
            Some(_) => format!("use the {size} bytes at {at} that an earlier apply left"),
            None => format!("map {size} bytes at {at}"),
        }];
        for function in &ledger.functions {
            lines.push(format!("redirect {} at {} to {}", function.name, function.entry(), function.new));
        }
        let pause = pause_ns as f64 / 1e6;
        lines.push(match busy.is_empty() {
            true => format!("a safe point exists now; stopping and checking took {pause:.3} ms"),
            false => format!("no safe point now (a stop took {pause:.3} ms): {}", busy.join("; ")),
        });
        Ok(Done::Rehearsed(lines))
    }

    fn carry_out(&self, mut stops: Stops<'_>, found: Option<(Ledger, Standing)>) -> Result<Done, Error> {
        let (ledger, standing) = self.staged(&mut stops, found)?;
        stops.learn(&ledger);
        self.commit(&mut stops, &ledger, &standing).inspect_err(|_| {
            // What cannot be undone now is undone or finished by the next apply or revert.
            let _ = revert::undo(self.plan.session, &mut stops, &self.helpers, &ledger);
        })
    }

    /// Arm, flip, tidy.
    fn commit(&self, stops: &mut Stops<'_>, ledger: &Ledger, standing: &Standing) -> Result<Done, Error> {
        let process = &self.plan.session.process;
        let mut measured = Measured {
            functions: ledger.functions.len() as u32,
            mapped_bytes: ledger.mapping.len(),
            ..Measured::default()
        };
        let batches = ledger.functions.len() > BATCH;
        if batches && !standing.active {
            for (which, functions) in chunks(ledger) {
                stops.at_safe_point(&site_watch(functions), false, None, |stopped| {
                    writer(stopped, process, ledger).arm(which.clone())
                })?;
            }
        }
        // An active patch is only tidied: nothing changes its meaning.
        let watch = if standing.active { site_watch(&ledger.functions) } else { flip_watch(ledger) };
        let flip = self.flip(stops, &watch, ledger, batches)?;
        (measured.flip_pause_ns, measured.threads) = (flip.pause_ns, flip.threads);
        if batches {
            for (which, _) in chunks(ledger) {
                stops.at_safe_point(&Watch::default(), false, None, |stopped| {
                    writer(stopped, process, ledger).tidy(which.clone())
                })?;
            }
        }
        // The patch is in effect whatever comes of this.
        let _ = cleanup::clean(self.plan.session, stops, &self.helpers);
        measured.stops = stops.tracer.stops;
        measured.longest_other_pause_ns = stops.tracer.longest_ns;
        Ok(Done::Applied(measured))
    }

    /// The payload in the target, ledger written.
    fn staged(&self, stops: &mut Stops<'_>, found: Option<(Ledger, Standing)>) -> Result<(Ledger, Standing), Error> {
        if let Some((ledger, standing)) = found {
            // Armed or active: its memory is in use as it is.
            if standing.active || !standing.all(Leads::Old) {
                return Ok((ledger, standing));
            }
            let fresh = self.refill(stops, &ledger)?;
            return Ok((fresh, standing));
        }
        let deadline = Instant::now().checked_add(self.options.timeout).unwrap_or_else(Instant::now);
        let (plan, imports) = (&self.plan, &self.imports);
        let at =
            stage::load(&mut stops.tracer, &self.helpers, &self.slots, plan.base.span, &plan.layout, deadline, |at| {
                let (content, ledger) = plan.payload(at, imports)?;
                Ok((content, ledger.bytes()?))
            })?;
        let (_, ledger) = plan.payload(at, imports)?;
        let standing = Standing::read(&plan.session.process, &ledger)?;
        Ok((ledger, standing))
    }

    /// Brings a payload that lies unused in the target up to date. Its variables keep their values.
    fn refill(&self, stops: &mut Stops<'_>, old: &Ledger) -> Result<Ledger, Error> {
        let plan = &self.plan;
        let (mut content, ledger) = plan.payload(old.mapping.start, &self.imports)?;
        if ledger.mapping != old.mapping {
            return Err(Error::Refused("an earlier apply left a payload of another size under the same ID".to_owned()));
        }
        let (start, end) = plan.layout.variables;
        // Zeros are not written.
        content.get_mut(start as usize..end as usize).unwrap_or_default().fill(0);
        let bytes = ledger.bytes()?;
        let process = &plan.session.process;
        stops.at_safe_point(&Watch::default(), false, None, |stopped| {
            let load = stage::Load { layout: &plan.layout, content: &content, ledger: &bytes };
            stage::fill(process, stopped.tid(), old.mapping.start, &load)
        })?;
        Ok(ledger)
    }

    fn flip(&self, stops: &mut Stops<'_>, watch: &Watch, ledger: &Ledger, batches: bool) -> Result<Acted, Error> {
        let process = &self.plan.session.process;
        stops.at_safe_point(watch, true, Some(ledger), |stopped| {
            let standing = Standing::read(process, ledger)?;
            let strangers = standing.strangers(ledger);
            if !strangers.is_empty() {
                return Err(stranger(&strangers));
            }
            let writer = writer(stopped, process, ledger);
            if !standing.active {
                writer.arm(0..ledger.functions.len())?;
                writer.set_state(true)?;
            }
            if !batches {
                writer.tidy(0..ledger.functions.len())?;
            }
            Ok(())
        })
    }
}

/// The functions in batches, with their numbers.
fn chunks(ledger: &Ledger) -> impl Iterator<Item = (Range<usize>, &[Replaced])> {
    ledger.functions.chunks(BATCH).enumerate().map(|(index, functions)| {
        let start = index * BATCH;
        (start..start + functions.len(), functions)
    })
}

fn writer<'a>(stopped: &Stopped<'_, '_>, process: &'a crate::process::Process, ledger: &'a Ledger) -> Writer<'a> {
    Writer { process, tid: stopped.tid(), ledger }
}

/// Old code: the replaced functions and the thunks.
fn flip_watch(ledger: &Ledger) -> Watch {
    let mut list = vec![Watched::plain(ledger.thunks, "a thunk")];
    for function in &ledger.functions {
        list.push(site_bytes(function));
        for (index, old) in function.old.iter().enumerate() {
            let (name, origin) = (function.name.clone(), function.entry());
            let outside = if index == 0 { [function.entry(), function.site] } else { [LiveAddr(0); 2] };
            list.push(Watched { range: old.range, name, origin, outside, vague: false });
        }
    }
    Watch::new(list)
}
