//! Applying a patch: preflight, stage, then arm, flip and tidy at a safe point.
//!
//! Nothing is written before the whole preflight has passed. Whatever an earlier, killed
//! apply left is found by its ledger and carried on from where it is.

use crate::addr::{Bias, LinkAddr, LiveAddr, LiveRange, page_floor};
use crate::base_file::substitute;
use crate::bytes::sha256;
use crate::failure::{Failure, refused, unusable};
use crate::finders;
use crate::image::Image;
use crate::layout::Layout;
use crate::ledger::{Bridged, HandsOut, Ledger, OldRange, Replaced, SITE, Seal, Variable, changed_meanwhile};
use crate::prelude::*;
use crate::relocate::{Imports, Payload, hands_out};
use crate::remote::Slots;
use crate::safe_point::{Watch, Watched};
use crate::session::{self, Session, is_base};
use crate::sites::{Leads, Standing, Writer, is_in_one_page, stranger};
use crate::small::Map;
use crate::stops::{Acted, Stops, Terms, looked, site_bytes, site_watch};
use crate::sys::Instant;
use crate::sys::View;
use crate::takeover::{self, Touched};
use crate::threads::Stopped;
use crate::{
    Done, Error, InTheWay, Measured, Options, Stood, cleanup, gate, inherit, place, revert, scope, seccomp, stage, sys,
};
use core::cell::Cell;
use core::ops::Range;
use core::time::Duration;
use hp_pack::{Entry, FunctionRecord, Patch, Place, Role, SectionKind};

/// In how many pages entries are written in one stop; beyond that they get stops of their own.
const BATCH: usize = 32;

/// How long a strict safe point is looked for before a relaxed one will do.
const STRICT_FIRST: Duration = Duration::from_millis(300);

/// How long a program that has changed under our eyes is left alone before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Applies a patch with this ID to a process.
pub(crate) fn apply(
    pid: i32,
    patch: &Patch,
    id: &str,
    options: &Options,
    stood: &Cell<Stood>,
) -> Result<Done, Failure> {
    patch.validate().map_err(|invalid| unusable(format_args!("invalid patch: {invalid}")))?;
    if patch.functions.is_empty() {
        return Err(refused(format_args!("the patch replaces no function: there is nothing that it could do")));
    }
    let began = Instant::now();
    loop {
        let result = session::with(pid, stood, &|session| apply_in(session, patch, id, options));
        // A program that starts binds its unwinders meanwhile: it is looked at anew.
        let anew = result.as_ref().is_err_and(|failure| is_about(failure, finders::BOUND_ANEW));
        if !anew || began.elapsed() >= options.timeout {
            return result;
        }
        sys::sleep(LOOK_AGAIN);
    }
}

fn is_about(failure: &Error, what: &str) -> bool {
    matches!(failure, Error::Busy(lines) if lines.iter().any(|line| **line == *what))
}

fn apply_in(session: &Session, patch: &Patch, id: &str, options: &Options) -> Result<Done, Failure> {
    let mut plan = Plan::make(session, patch, id)?;
    if options.dry_run && takeover::is_pending(session)? {
        let what = "finish what an applier left that died while it replaced a patch; then look again".to_owned();
        return Ok(Done::Rehearsed(vec![what]));
    }
    takeover::settle(session, options)?;
    let found = plan.found()?;
    (plan.older, plan.unused) = plan.check_neighbours(found.as_ref().map(|(ledger, _)| *ledger))?;
    if let Some((ledger, standing)) = &found {
        let strangers = standing.strangers(ledger, &session.ledgers);
        if !strangers.is_empty() {
            return Err(stranger(&strangers));
        }
        if standing.active && standing.all(Leads::New) {
            return Ok(Done::AlreadyApplied);
        }
        if !standing.is_unused() && !plan.older.is_empty() {
            let what = "an apply of this patch was interrupted before an older one was applied; revert it first";
            return Err(refused(format_args!("{what}")));
        }
    }
    plan.check_bytes(found.as_ref().map(|(ledger, _)| *ledger))?;
    plan.lay_out()?;
    // A payload that lies unused can be taken up again only if it has the size that is needed now.
    let found = found.filter(|(ledger, standing)| !standing.is_unused() || ledger.mapping.len() == plan.layout.size);
    session.check_relatives(options.timeout)?;
    let imports = scope::resolve(session, patch)?;
    let mut stops = Stops::new(session, options)?;
    // Who stands in a gate of one of these is past the entry.
    stops.forget_gates(&plan.older);
    stops.forget_gates(&plan.unused);
    let slots = Slots::find(&session.process.mem, &session.images);
    let at = match found {
        Some((ledger, _)) => ledger.mapping.start,
        None => place::find(&session.maps, plan.reach(), plan.layout.size)?,
    };
    let calls = if found.is_some() { Vec::new() } else { stage::calls(at, &plan.layout, slots.any()) };
    let gate = gate::call(at.plus(plan.layout.gates.0));
    let survey = seccomp::survey(&mut stops.tracer, &calls, &gate, options.timeout)?;
    stops.may_close = survey.gates;
    let restrictions = survey.line();
    let helpers = survey.helpers;
    let base = plan.base;
    let work = Work { plan, at, imports, slots, helpers, restrictions, options };
    let mut result = match options.dry_run {
        true => work.rehearse(stops, found.map(|(ledger, _)| ledger)),
        false => work.carry_out(stops, found),
    };
    match &mut result {
        Ok(Done::Applied(Measured { left: lines, .. })) => in_base(lines, base),
        Err(failure) => {
            if let Error::Busy(lines) = &mut **failure {
                in_base(lines, base);
            }
        }
        _ => {}
    }
    result
}

/// Places in the code of the base as link-time addresses; others are nobody's.
fn in_base(lines: &mut [InTheWay], base: &Image) {
    for line in lines {
        line.at = line.at.filter(|at| base.span.contains(LiveAddr(*at))).map(|at| at.wrapping_sub(base.bias.0));
    }
}

/// A ledger of this very patch that is there already, and how it stands.
type Found<'a> = (&'a Ledger, Standing);

/// What is to be done, as far as it does not depend on where the payload will lie.
struct Plan<'a> {
    session: &'a Session,
    patch: &'a Patch,
    id: &'a str,
    base: &'a Image,
    layout: Layout,
    /// The patches that this one takes the place of.
    older: Vec<&'a Ledger>,
    /// Patches of the same functions that lie there and are not in use: who is still in one, by a pointer or in its gates and
    /// thunks, runs code that knows nothing of this one.
    unused: Vec<&'a Ledger>,
    bridged: Vec<Bridged>,
    /// Variables that lie in older payloads, by symbol.
    inherited: Map<u32, LiveAddr>,
    finders: finders::Slots,
}

impl<'a> Plan<'a> {
    fn make(session: &'a Session, patch: &'a Patch, id: &'a str) -> Result<Plan<'a>, Failure> {
        let base = session.base(&patch.base.build_id)?;
        if patch.base.fixed_address && base.bias != Bias(0) {
            return Err(refused(format_args!(
                "the patch is for a base at a fixed address, but it is mapped elsewhere"
            )));
        }
        // The size of a ledger does not depend on the addresses in it.
        let empty = Layout::of(patch, 0, 0)?;
        let finders = finders::Slots::find(session, base, patch)?;
        if finders.is_empty() && patch.section(SectionKind::ExceptTable).is_some() {
            return Err(refused(format_args!(
                "new functions handle exceptions, but no unwinder of the process can be led to them"
            )));
        }
        finders.check_all_led()?;
        let mut plan = Plan {
            session,
            patch,
            id,
            base,
            layout: empty,
            older: Vec::new(),
            unused: Vec::new(),
            bridged: Vec::new(),
            inherited: Map::default(),
            finders,
        };
        plan.lay_out()?;
        for (record, _) in plan.entries() {
            if !base.span.covers(plan.range(record)) {
                return Err(refused(format_args!("function at {} is outside the base", LinkAddr(record.old_address))));
            }
        }
        Ok(plan)
    }

    /// Lays the payload out, with what a takeover needs.
    fn lay_out(&mut self) -> Result<(), Failure> {
        let functions = self.ledger(LiveAddr(0), &[])?.functions;
        let hands_out = hands_out(self.patch).variables;
        self.inherited = inherit::inherited(self.patch, &self.older, &self.session.ledgers, hands_out)?;
        self.bridged = takeover::bridged(&self.session.process, &self.older, &functions)?;
        let size = self.ledger(LiveAddr(0), &[])?.bytes()?.len() as u64;
        let takeover = takeover::size(functions.iter().map(|function| function.site), &self.bridged);
        self.layout = Layout::of(self.patch, size, takeover)?;
        Ok(())
    }

    /// The ledger of this patch for this base: the one in use, else any.
    fn found(&self) -> Result<Option<Found<'a>>, Failure> {
        let mut unused = None;
        for ledger in self.session.ledgers.iter().filter(|ledger| ledger.id == self.id && is_base(self.base, ledger)) {
            let standing = Standing::read(&self.session.process, ledger)?;
            if !self.session.is_unused(ledger, &standing) {
                return Ok(Some((ledger, standing)));
            }
            unused = Some((ledger, standing));
        }
        Ok(unused)
    }

    /// What the payload must be near to: the base, and the payloads that its bridges lead to.
    fn reach(&self) -> LiveRange {
        let mappings = self.older.iter().map(|ledger| ledger.mapping);
        mappings.fold(self.base.span, |hull, mapping| LiveRange {
            start: hull.start.min(mapping.start),
            end: hull.end.max(mapping.end),
        })
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
    fn ledger(&self, at: LiveAddr, content: &[u8]) -> Result<Ledger, Failure> {
        let (patch, layout, base) = (self.patch, &self.layout, self.base);
        let part = |(start, end): (u64, u64)| at.plus(start).range(end - start);
        let digest = |(start, end): (u64, u64)| sha256(content.get(start as usize..end as usize).unwrap_or_default());
        let out = hands_out(patch);
        let functions =
            self.entries().map(|(record, entry)| self.replaced(at, record, entry)).collect::<Result<_, _>>()?;
        Ok(Ledger {
            id: self.id.to_owned(),
            name: patch.name.clone(),
            build_id: patch.base.build_id.clone(),
            counter: patch.counter,
            uid: sys::user_id(),
            applied_at: sys::epoch_seconds(),
            sequence: 1 + self.session.ledgers.iter().map(|ledger| ledger.sequence).max().unwrap_or(0),
            base: base.span,
            mapping: at.range(layout.size),
            constants: part(layout.constants),
            constants_digest: digest(layout.constants),
            code: part(layout.code),
            code_digest: digest(layout.code),
            text: layout.live(at, SectionKind::Text),
            thunks: layout.live(at, SectionKind::Thunks),
            gates: part(layout.gates),
            takeover: if self.bridged.is_empty() { LiveRange::default() } else { part(layout.takeover) },
            variables: part(layout.variables),
            eh_frame: rows(part(layout.finder_rows), layout.live(at, SectionKind::EhFrame)),
            finders: part(layout.finders),
            nexts: part(layout.nexts),
            calls: self.finders.calls.clone(),
            state: at.plus(layout.state),
            hands_out: HandsOut { code: out.code || self.finders.hands_out(), ..out },
            functions,
            bridged: self.bridged.clone(),
            named: self.variables(at),
        })
    }

    fn variables(&self, at: LiveAddr) -> Vec<Variable> {
        let place = |index: u32, symbol: &hp_pack::Symbol| match (self.inherited.get(&index), symbol.place) {
            (Some(&address), _) => address,
            (None, Place::Payload(kind)) => at.plus(self.layout.section(kind).0).plus(symbol.value),
            (None, _) => at,
        };
        let variable = |(index, symbol, identity): (u32, &hp_pack::Symbol, String)| {
            let name = crate::process::printable(&symbol.name);
            Variable { name, range: place(index, symbol).range(symbol.size), identity }
        };
        let short = |variable: &Variable| variable.name.len() <= 4096 && variable.identity.len() <= 4096;
        inherit::variables(self.patch).map(variable).filter(short).collect()
    }

    fn replaced(&self, at: LiveAddr, record: &FunctionRecord, entry: &Entry) -> Result<Replaced, Failure> {
        let place = |symbol: u32, kind: SectionKind| {
            let value = self.patch.symbols.get(symbol as usize).map_or(0, |symbol| symbol.value);
            at.plus(self.layout.section(kind).0).plus(value)
        };
        let own = self.patch.functions.iter().position(|other| core::ptr::eq(other, record));
        let fragments = self
            .patch
            .functions
            .iter()
            .filter(|other| matches!(other.role, Role::Fragment(parent) if Some(parent as usize) == own));
        let old = core::iter::once(record)
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
            false => Err(refused(format_args!("the entry of {} crosses a page boundary", replaced.name))),
        }
    }

    /// The patches of the same base that this one takes the place of, and those of its functions that are not in use.
    /// Refuses what others stand against.
    fn check_neighbours(&self, own: Option<&Ledger>) -> Result<(Vec<&'a Ledger>, Vec<&'a Ledger>), Failure> {
        let functions = self.ledger(LiveAddr(0), &[])?.functions;
        let touched = Touched::by(&functions);
        let (mut older, mut unused) = (Vec::new(), Vec::new());
        let others = self.session.ledgers.iter().filter(|ledger| is_base(self.base, ledger));
        for other in others.filter(|other| own.is_none_or(|own| own.mapping != other.mapping)) {
            let standing = Standing::read(&self.session.process, other)?;
            if self.session.is_unused(other, &standing) {
                let same = other.functions.iter().any(|function| touched.find(function).is_some());
                unused.extend(same.then_some(other));
                continue;
            }
            let (id, name) = (&other.id, &other.name);
            if other.counter > self.patch.counter {
                return Err(refused(format_args!("a newer patch of the same base is applied: {name} ({id})")));
            }
            let mut names: Vec<&str> =
                other.functions.iter().filter_map(|function| touched.find(function)).map(|own| &*own.name).collect();
            names.dedup();
            if names.is_empty() {
                continue;
            }
            if other.counter == self.patch.counter {
                let names = names.join(", ");
                return Err(refused(format_args!(
                    "patch {name} ({id}) has already replaced {names}; revert it first, or give this one a higher counter"
                )));
            }
            if !standing.active || !standing.all(Leads::New) {
                return Err(refused(format_args!("an apply of patch {name} ({id}) was interrupted; revert it first")));
            }
            older.push(other);
        }
        Ok((older, unused))
    }

    /// Every byte of every function to be replaced must be what the diff saw.
    fn check_bytes(&self, own: Option<&Ledger>) -> Result<(), Failure> {
        let process = &self.session.process;
        let mut view = View::new(&process.mem);
        let mut read = |range: LiveRange| -> Result<Vec<u8>, Failure> {
            let mut bytes = view
                .bytes(range)
                .map_err(|error| process.io_error(&format!("cannot read its code at {}", range.start), &error))?;
            for ledger in own.iter().chain(&self.older) {
                substitute(&mut bytes, range, ledger);
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
            false => Err(refused(format_args!(
                "the code in memory is not what the patch was made for: {}",
                different.join(", ")
            ))),
        }
    }

    /// Content and ledger for an address.
    fn payload(&self, at: LiveAddr, imports: &Imports) -> Result<(Vec<u8>, Ledger), Failure> {
        let (process, own) = (&self.session.process, self.session.ledgers.iter().find(|l| l.mapping.start == at));
        let nexts = self.finders.nexts(process, own)?;
        let (patch, layout, bias, link_map) = (self.patch, &self.layout, self.base.bias, self.finders.link_map);
        let inherited = &self.inherited;
        let payload = Payload { patch, layout, base: at, bias, imports, inherited, nexts, link_map };
        let mut content = payload.bytes()?;
        if let Some(view) = takeover::view(&self.ledger(at, &[])?) {
            let far = || refused(format_args!("the payload would lie too far from the patch that it replaces"));
            let code = takeover::code(&view).ok_or_else(far)?;
            let (start, end) = self.layout.takeover;
            content
                .get_mut(start as usize..end as usize)
                .filter(|room| room.len() == code.len())
                .ok_or_else(far)?
                .copy_from_slice(&code);
        }
        let ledger = self.ledger(at, &content)?;
        Ok((content, ledger))
    }
}

/// Where no thread may be at a relaxed flip, and the functions in which one may.
type Relaxed = (Watch, Vec<LiveAddr>);

struct Work<'a> {
    plan: Plan<'a>,
    /// Where the payload lies, or will lie if nobody takes that place.
    at: LiveAddr,
    imports: Imports,
    slots: Slots,
    helpers: Vec<i32>,
    /// What limits the process, for people.
    restrictions: String,
    options: &'a Options,
}

impl Work<'_> {
    fn rehearse(&self, mut stops: Stops<'_>, found: Option<&Ledger>) -> Result<Done, Failure> {
        let at = self.at;
        let (_, ledger) = self.plan.payload(at, &self.imports)?;
        let view = takeover::view(&ledger);
        let (mut busy, mut pause_ns) = stops.look(&self.flip_watch(&ledger, view.as_ref(), &[]))?;
        let mut left = Vec::new();
        if let Some(functions) = self.may_go_on(&ledger).filter(|_| !busy.is_empty()) {
            (busy, pause_ns) = stops.look(&self.flip_watch(&ledger, view.as_ref(), &functions))?;
            left = stops.look(&Watch::new(bodies(&ledger, &functions)))?.0;
        }
        let size = self.plan.layout.size;
        let mut lines = vec![match found {
            Some(_) => format!("use the {size} bytes at {at} that an earlier apply left"),
            None => format!("map {size} bytes at {at}"),
        }];
        for function in &ledger.functions {
            lines.push(format!("redirect {} at {} to {}", function.name, function.entry(), function.new));
        }
        for older in &self.plan.older {
            lines.push(format!("take the place of patch {} ({})", older.name, older.id));
        }
        let patch = self.plan.patch;
        let imports = self.imports.addresses.len() + self.imports.calls.len() + self.imports.resolvers.len();
        lines.push(format!("compute {} relocations, with {imports} imports resolved", patch.relocations.len()));
        lines.push(self.restrictions.clone());
        lines.push(looked(&busy, pause_ns));
        lines.extend(left.iter().map(|line| format!("would go on in the old code: {}", &**line)));
        Ok(Done::Rehearsed(lines))
    }

    fn carry_out(&self, mut stops: Stops<'_>, found: Option<Found<'_>>) -> Result<Done, Failure> {
        let (ledger, standing) = self.staged(&mut stops, found)?;
        stops.learn(&ledger);
        // With the payload in it; in the stop it is mostly the same then, and need not be parsed.
        self.plan.session.process.maps()?;
        let seals = self.seals(&ledger)?;
        if let Some(&own) = seals.first() {
            stops.expect(own, ledger.mapping);
        }
        let view = takeover::view(&ledger).filter(|_| !standing.active);
        if let Some(view) = &view {
            stops.learn(view);
        }
        let seen = view.as_ref().unwrap_or(&ledger);
        let watch = match standing.active {
            // An active patch is only tidied: nothing changes its meaning.
            true => site_watch(&ledger.functions),
            false => self.flip_watch(&ledger, view.as_ref(), &[]),
        };
        let relaxed = self.may_go_on(&ledger).filter(|_| !standing.active);
        let relaxed = relaxed.map(|functions| (self.flip_watch(&ledger, view.as_ref(), &functions), functions));
        let committed = self.commit(&mut stops, (&watch, relaxed.as_ref()), seen, &seals, standing.active);
        let mut measured = committed.inspect_err(|_| {
            // What cannot be undone now is undone or finished by the next apply or revert.
            if let Some(seal) = seals.first() {
                let _ = revert::undo(self.plan.session, &mut stops, &self.helpers, seen, seal);
            }
        })?;
        // The patch is in effect whatever comes of this.
        measured.replaced = self.plan.older.iter().map(|older| older.id.clone()).collect();
        measured.kept = self.leave_older(&mut stops, &ledger);
        let _ = cleanup::clean(self.plan.session, &mut stops, &self.helpers);
        measured.functions = ledger.functions.len() as u32;
        measured.stops = stops.tracer.stops;
        measured.longest_other_pause_ns = stops.tracer.longest_ns;
        Ok(Done::Applied(measured))
    }

    /// Takes away what is left of the patches that this one has taken the place of; why some of it has to stay.
    fn leave_older(&self, stops: &mut Stops<'_>, ledger: &Ledger) -> Vec<String> {
        let mut kept = Vec::new();
        if self.plan.older.is_empty() {
            return kept;
        }
        // Read anew: the new payload uses variables of the older ones, and its finders pass on to theirs.
        let Ok(session) = Session::open(self.plan.session.process.pid) else { return kept };
        for older in &self.plan.older {
            let left = revert::reclaim(&session, stops, &self.helpers, older, self.options);
            if let Ok(Err(why)) = left
                && !inherit::uses(ledger, older)
            {
                kept.push(why);
            }
        }
        kept
    }

    /// Arm, flip, tidy.
    fn commit(
        &self,
        stops: &mut Stops<'_>,
        (watch, relaxed): (&Watch, Option<&Relaxed>),
        ledger: &Ledger,
        seals: &[Seal],
        active: bool,
    ) -> Result<Measured, Failure> {
        let process = &self.plan.session.process;
        let mut measured = Measured { mapped_bytes: ledger.mapping.len(), ..Measured::default() };
        let chunks = chunks(ledger);
        let batches = chunks.len() > 1;
        if batches && !active {
            for which in &chunks {
                let watch = self.with_finders(site_watch(ledger.functions.get(which.clone()).unwrap_or_default()));
                stops.at_safe_point(Terms::new(&watch, seals), |stopped, maps| {
                    self.plan.finders.lead_to(self.plan.session, maps, stopped.tid(), ledger)?;
                    writer(stopped, process, ledger).arm(which.clone())
                })?;
            }
        }
        let watch = self.with_finders(watch.clone());
        let flip = |watch: &Watch, stops: &mut Stops<'_>| self.flip(stops, watch, ledger, seals, active, batches);
        let flip = match relaxed {
            None => flip(&watch, stops)?,
            Some((with, functions)) => match stops.within(STRICT_FIRST, |stops| flip(&watch, stops)) {
                Err(failure) if matches!(*failure, Error::Busy(_)) => {
                    let flip = flip(&self.with_finders(with.clone()), stops)?;
                    // Who is inside now was inside before: nothing leads there any more.
                    measured.left = stops.look(&Watch::new(bodies(ledger, functions)))?.0;
                    flip
                }
                result => result?,
            },
        };
        (measured.flip_pause_ns, measured.threads) = (flip.pause_ns, flip.threads);
        if batches {
            for which in &chunks {
                stops.at_safe_point(Terms::new(&Watch::default(), seals), |stopped, _| {
                    writer(stopped, process, ledger).tidy(which.clone())
                })?;
            }
            stops.at_safe_point(Terms::new(&Watch::default(), seals), |stopped, _| {
                writer(stopped, process, ledger).finish_takeover(&self.plan.older)
            })?;
        }
        Ok(measured)
    }

    /// The replaced functions in which threads may go on, if that is wanted and there are any.
    fn may_go_on(&self, ledger: &Ledger) -> Option<Vec<LiveAddr>> {
        let allowed = self.plan.entries().filter(|(_, entry)| self.options.relaxed && entry.may_go_on);
        let entries: Vec<LiveAddr> = allowed.map(|(record, _)| self.plan.range(record).start).collect();
        ledger.functions.iter().any(|function| entries.contains(&function.entry())).then_some(entries)
    }

    /// Old code: the replaced functions but these, the thunks and bridges, and the patches that go.
    fn flip_watch(&self, ledger: &Ledger, view: Option<&Ledger>, but: &[LiveAddr]) -> Watch {
        let mut list = vec![Watched::plain(ledger.thunks, "a thunk")];
        list.extend(ledger.functions.iter().map(site_bytes));
        let watched = ledger.functions.iter().map(Replaced::entry).filter(|entry| !but.contains(entry));
        list.extend(bodies(ledger, &watched.collect::<Vec<_>>()));
        list.extend(takeover::old_code(self.plan.unused.iter().copied()));
        if let Some(view) = view {
            list.push(Watched::plain(takeover::bridges(view), "a bridge"));
            list.extend(view.functions.iter().map(site_bytes));
            list.extend(takeover::old_code(self.plan.older.iter().copied()));
        }
        Watch::new(list)
    }

    /// Also where nobody may be while slots of unwinders are written.
    fn with_finders(&self, watch: Watch) -> Watch {
        watch.and(self.plan.finders.watched())
    }

    /// The payload in the target, ledger written.
    fn staged(&self, stops: &mut Stops<'_>, found: Option<Found<'_>>) -> Result<(Ledger, Standing), Failure> {
        if let Some((ledger, standing)) = found {
            // Armed or active: its memory is in use as it is.
            if !standing.is_unused() {
                return Ok((ledger.clone(), standing));
            }
            if standing.active {
                // Nothing leads there: its library was closed and opened again.
                let process = &self.plan.session.process;
                stops.at_safe_point(Terms::new(&revert::new_code(ledger), &[Seal::of(ledger)?]), |stopped, _| {
                    if !Standing::read(process, ledger)?.is_unused() {
                        return Err(changed_meanwhile(process));
                    }
                    writer(stopped, process, ledger).set_state(false)
                })?;
            }
            let fresh = self.refill(stops, ledger)?;
            return Ok((fresh, Standing { active: false, ..standing }));
        }
        let deadline = Instant::now().checked_add(self.options.timeout).unwrap_or_else(Instant::now);
        let (plan, imports) = (&self.plan, &self.imports);
        let (tracer, layout) = (&mut stops.tracer, &plan.layout);
        let place = |taken| match taken {
            0 => Ok(self.at),
            _ => place::find(&*plan.session.process.maps()?, plan.reach(), layout.size),
        };
        let make = |at| plan.payload(at, imports);
        let ledger = stage::load(tracer, &self.helpers, &self.slots, layout, deadline, place, make)?;
        let standing = Standing::read(&plan.session.process, &ledger)?;
        Ok((ledger, standing))
    }

    /// Brings a payload that lies unused in the target up to date. Its variables keep their values.
    fn refill(&self, stops: &mut Stops<'_>, old: &Ledger) -> Result<Ledger, Failure> {
        let plan = &self.plan;
        let (mut content, ledger) = plan.payload(old.mapping.start, &self.imports)?;
        if ledger.mapping != old.mapping {
            return Err(refused(format_args!("an earlier apply left a payload of another size under the same ID")));
        }
        let (start, end) = plan.layout.variables;
        // Zeros are not written.
        content.get_mut(start as usize..end as usize).unwrap_or_default().fill(0);
        let bytes = ledger.bytes()?;
        let process = &plan.session.process;
        stops.at_safe_point(Terms::new(&Watch::default(), &[Seal::of(old)?]), |stopped, _| {
            if !Standing::read(process, old)?.is_unused() {
                return Err(changed_meanwhile(process));
            }
            let load = stage::Load { layout: &plan.layout, content: &content, ledger: &bytes };
            stage::fill(process, stopped.tid(), old.mapping.start, &load)
        })?;
        Ok(ledger)
    }

    /// The seals of a new payload and of those that it takes the place of.
    fn seals(&self, ledger: &Ledger) -> Result<Vec<Seal>, Failure> {
        core::iter::once(ledger).chain(self.plan.older.iter().copied()).map(Seal::of).collect()
    }

    /// `active`: what the patch was when the watched code was chosen.
    fn flip(
        &self,
        stops: &mut Stops<'_>,
        watch: &Watch,
        ledger: &Ledger,
        seals: &[Seal],
        active: bool,
        batches: bool,
    ) -> Result<Acted, Failure> {
        let process = &self.plan.session.process;
        stops.at_safe_point(Terms { watch, seals, gated: Some(ledger), special: true }, |stopped, maps| {
            let standing = Standing::read(process, ledger)?;
            if active && !standing.active {
                return Err(changed_meanwhile(process));
            }
            let strangers = standing.strangers(ledger, &[]);
            if !strangers.is_empty() {
                return Err(stranger(&strangers));
            }
            self.plan.finders.lead_to(self.plan.session, maps, stopped.tid(), ledger)?;
            let writer = writer(stopped, process, ledger);
            if !standing.active {
                writer.arm(0..ledger.functions.len())?;
                writer.set_state(true)?;
            }
            if !batches {
                writer.tidy(0..ledger.functions.len())?;
                writer.finish_takeover(&self.plan.older)?;
            }
            Ok(())
        })
    }
}

/// Numbers of the functions in batches: those whose entries lie in few pages.
fn chunks(ledger: &Ledger) -> Vec<Range<usize>> {
    let mut chunks: Vec<Range<usize>> = Vec::new();
    let (mut pages, mut last) = (0, None);
    for (index, function) in ledger.functions.iter().enumerate() {
        let page = Some(page_floor(function.site.0));
        pages += usize::from(page != last);
        last = page;
        match chunks.last_mut() {
            Some(chunk) if pages <= BATCH => chunk.end = index + 1,
            _ => {
                pages = 1;
                chunks.push(index..index + 1);
            }
        }
    }
    chunks
}

fn writer<'a>(stopped: &Stopped<'_, '_>, process: &'a crate::process::Process, ledger: &'a Ledger) -> Writer<'a> {
    Writer::new(process, stopped.tid(), ledger)
}

/// All rows in a payload: those of the finders, and directly behind them the patch's.
fn rows(finders: LiveRange, patch: LiveRange) -> LiveRange {
    LiveRange { start: finders.start, end: finders.end.max(patch.end) }
}

/// The old code of the functions with these entries.
fn bodies(ledger: &Ledger, entries: &[LiveAddr]) -> Vec<Watched> {
    let mut list = Vec::new();
    for function in ledger.functions.iter().filter(|function| entries.contains(&function.entry())) {
        for (index, old) in function.old.iter().enumerate() {
            let (name, origin) = (function.name.clone(), function.entry());
            let outside = if index == 0 { [function.entry(), function.site] } else { [LiveAddr(0); 2] };
            list.push(Watched { range: old.range, name, origin, outside, vague: false, running: false });
        }
    }
    list
}
