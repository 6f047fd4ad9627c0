//! How the target's unwinders find the rows of a payload.
//!
//! An exception, `pthread_cancel` or `backtrace()` needs the unwind rows of every frame on
//! the way. Each unwinder asks the C library where a module's rows are: newer libgcc and
//! LLVM's libunwind call `_dl_find_object`, older ones walk the modules with
//! `dl_iterate_phdr`. Both calls go through a pointer slot of the module that makes them.
//! While a patch is loaded, these slots lead to a *finder* in its payload, which answers for
//! addresses in the payload and passes everything else on to where the slot led before.
//!
//! So no code of the target runs for us, nothing is allocated and no lock is taken: each
//! slot is one aligned word that is written while everything stands. A finder that nobody
//! calls yet, or of a payload that nobody runs any more, is harmless, so an applier may die at
//! any point. (The other way, `__register_frame_info`, would have to be called by a thread
//! that is proven to be outside the allocator: newer versions of libgcc allocate there, older
//! ones release memory when it is taken back. LLVM's does nothing. And an unwinder that is
//! linked into a stripped module is found by its slots only.)
//!
//! Several patches form a chain: slot → finder of the newest → … → the C library. The
//! words by which it goes on (*next*) lie behind the state byte.
//!
//! Limits: an unwinder that is opened later does not see payloads that are loaded already:
//! for it the stack ends there. A static program has no such slots.

use crate::Error;
use crate::addr::{LiveAddr, LiveRange};
use crate::dynamic::{Module, Name};
use crate::image::Image;
use crate::ledger::Ledger;
use crate::prelude::*;
use crate::process::Process;
use crate::safe_point::Watched;
use crate::scope;
use crate::session::Session;

mod content;

pub(crate) use content::{CODE_SIZE, Content, FINDER_ROWS, NEXT_SIZE, ROWS_SIZE, SIZE, count_rows, index_size};

/// Finders for each question: one for each place that slots of the kind lead to.
const EACH: usize = 2;
/// Finders in a payload.
pub(crate) const COUNT: usize = 2 * EACH;
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;
/// Longest resolver of the dynamic linker (`_dl_runtime_resolve_xsavec` has about 200 bytes).
const RESOLVER_SIZE: u64 = 1024;

/// The two questions that unwinders ask, in the order of the finders.
const FIND_OBJECT: &[u8] = b"_dl_find_object";
const ITERATE: &[u8] = b"dl_iterate_phdr";
const QUESTIONS: [&[u8]; 2] = [FIND_OBJECT, ITERATE];
/// What every unwinder defines, and whoever uses another module's unwinder does not.
const UNWINDER: &[u8] = b"_Unwind_RaiseException";

/// A pointer slot by which a module asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    at: LiveAddr,
    /// Index in [`QUESTIONS`].
    question: usize,
    /// What it holds.
    value: LiveAddr,
    /// Where it leads, or will lead when it is bound.
    leads: LiveAddr,
    /// The code around it may keep a copy of its value.
    copied: bool,
}

/// The slots of a process, and what must not run while they are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    list: Vec<Slot>,
    /// The dynamic linker may be about to write a slot while a thread is in these.
    binders: Vec<LiveRange>,
    /// The `struct link_map` of the base, for whoever asks.
    pub(crate) link_map: LiveAddr,
}

impl Slots {
    /// Looks for the slots. `base` is asked too if it is no client of another unwinder.
    pub(crate) fn find(session: &Session, base: &Image) -> Slots {
        let mem = &session.process.mem;
        let mut slots = Slots { link_map: scope::link_map(&session.process, base), ..Slots::default() };
        for image in session.images.iter().filter(|image| image.path != "[vdso]") {
            let Some(module) = image.dynamic.and_then(|at| Module::read(mem, image.bias, at.start)) else { continue };
            let references = module.references(mem, &QUESTIONS);
            if references.is_empty() {
                continue;
            }
            let is_unwinder = module.find(mem, Name { name: UNWINDER, version: None }, false).is_some()
                || core::ptr::eq(image, base) && !module.names(mem, UNWINDER);
            for (question, rela) in references {
                let asks = QUESTIONS.get(question) == Some(&FIND_OBJECT) || is_unwinder;
                if asks && matches!(rela.kind, R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT) {
                    slots.add(session, image, &module, question, (rela.place, rela.kind));
                }
            }
        }
        slots
    }

    fn add(&mut self, session: &Session, image: &Image, module: &Module, question: usize, slot: (LiveAddr, u32)) {
        let mem = &session.process.mem;
        let Ok(value) = mem.u64(slot.0).map(LiveAddr) else { return };
        let mut leads = value;
        if image.span.contains(value) {
            // Not bound yet: it leads back into its own module, and on to the dynamic linker.
            let name = Name { name: QUESTIONS.get(question).copied().unwrap_or_default(), version: None };
            let Some(found) = scope::definition(session, name) else { return };
            leads = found;
            self.binders.extend(image.segments.iter().filter(|s| s.execute).map(|s| s.memory));
            self.binders.extend(module.resolver(mem).map(|at| at.range(RESOLVER_SIZE)));
        }
        self.list.push(Slot { at: slot.0, question, value, leads, copied: slot.1 == R_X86_64_GLOB_DAT });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether an address of a finder may be left where no search of memory finds it.
    pub(crate) fn hands_out(&self) -> bool {
        self.list.iter().any(|slot| slot.copied)
    }

    /// Where nobody may be while slots are written that are not bound yet.
    pub(crate) fn watched(&self) -> impl Iterator<Item = Watched> + '_ {
        self.binders.iter().map(|range| Watched::plain(*range, "the dynamic linker's binding of an unwinder"))
    }

    /// Where each finder passes on to; zero for one that is not needed. `own`: the ledger of
    /// this payload if it is loaded already, so that its finders may be in use.
    pub(crate) fn nexts(&self, process: &Process, own: Option<&Ledger>) -> Result<[LiveAddr; COUNT], Error> {
        let mut nexts = [LiveAddr(0); COUNT];
        for slot in &self.list {
            let leads = match own.and_then(|own| own.finder_at(slot.leads)) {
                Some((_, next)) => process.mem.u64(next).map(LiveAddr).map_err(|e| unreadable(process, &e))?,
                None => slot.leads,
            };
            let of_kind = nexts.iter_mut().skip(slot.question * EACH).take(EACH);
            let free = of_kind.into_iter().find(|next| next.0 == 0 || **next == leads);
            *free.ok_or_else(|| Error::Refused("its unwinders ask in too many different ways".to_owned()))? = leads;
        }
        Ok(nexts)
    }

    /// Leads the slots to the finders of a payload. Everything stands.
    pub(crate) fn lead_to(&self, process: &Process, tid: i32, ledger: &Ledger) -> Result<(), Error> {
        for slot in &self.list {
            let now = process.mem.u64(slot.at).map(LiveAddr).map_err(|e| unreadable(process, &e))?;
            if ledger.finder_at(now).is_some() {
                continue;
            }
            let finder = ledger.finder_of(process, slot.question * EACH..(slot.question + 1) * EACH, slot.leads)?;
            let (Some(finder), true) = (finder, now == slot.value || now == slot.leads) else {
                return Err(Error::Busy(vec!["an unwinder was bound anew meanwhile".to_owned()]));
            };
            write(process, tid, slot.at, finder)?;
        }
        Ok(())
    }
}

/// Takes the finders of a payload out of all slots and chains. Everything stands, and nobody
/// is in the payload.
pub(crate) fn take_out(session: &Session, tid: i32, ledger: &Ledger) -> Result<(), Error> {
    let process = &session.process;
    if ledger.finders.is_empty() {
        return Ok(());
    }
    let mut holders: Vec<LiveAddr> = Vec::new();
    for image in &session.images {
        let Some(module) = image.dynamic.and_then(|at| Module::read(&process.mem, image.bias, at.start)) else {
            continue;
        };
        holders.extend(module.references(&process.mem, &QUESTIONS).into_iter().map(|(_, rela)| rela.place));
    }
    let others = session.ledgers.iter().filter(|other| other.mapping != ledger.mapping);
    holders.extend(others.flat_map(|other| (0..COUNT).map(|index| other.next(index))));
    for holder in holders {
        let Ok(value) = process.mem.u64(holder) else { continue };
        if let Some((_, next)) = ledger.finder_at(LiveAddr(value)) {
            let next = process.mem.u64(next).map(LiveAddr).map_err(|e| unreadable(process, &e))?;
            let code = session.maps.at(next).is_some_and(|map| map.execute);
            if !code {
                return Err(Error::Refused(format!("the patch's memory is damaged: {next} is no code")));
            }
            write(process, tid, holder, next)?;
        }
    }
    Ok(())
}

/// Whether any slot or chain leads to the finders of a payload.
pub(crate) fn is_led_to(session: &Session, ledger: &Ledger) -> bool {
    let mem = &session.process.mem;
    let leads = |at: LiveAddr| mem.u64(at).is_ok_and(|value| ledger.finders.contains(LiveAddr(value)));
    let others = session.ledgers.iter().filter(|other| other.mapping != ledger.mapping && !other.finders.is_empty());
    !ledger.finders.is_empty()
        && (others.into_iter().any(|other| (0..COUNT).any(|index| leads(other.next(index))))
            || session.images.iter().any(|image| {
                let module = image.dynamic.and_then(|at| Module::read(mem, image.bias, at.start));
                module.is_some_and(|m| m.references(mem, &QUESTIONS).into_iter().any(|(_, rela)| leads(rela.place)))
            }))
}

impl Ledger {
    /// Where the finder with this index passes on to: the place of that word.
    pub(crate) fn next(&self, index: usize) -> LiveAddr {
        self.nexts.start.plus(index as u64 * 8)
    }

    /// The finder that starts at `at`, and the place of its next word.
    fn finder_at(&self, at: LiveAddr) -> Option<(usize, LiveAddr)> {
        let offset = at.0.checked_sub(self.finders.start.0).filter(|_| self.finders.contains(at))?;
        let index = (offset / SIZE) as usize;
        offset.is_multiple_of(SIZE).then(|| (index, self.next(index)))
    }

    /// The finder among these that passes on to `leads`.
    fn finder_of(
        &self,
        process: &Process,
        which: core::ops::Range<usize>,
        leads: LiveAddr,
    ) -> Result<Option<LiveAddr>, Error> {
        for index in which {
            let next = process.mem.u64(self.next(index)).map_err(|e| unreadable(process, &e))?;
            if LiveAddr(next) == leads {
                return Ok(Some(self.finders.start.plus(index as u64 * SIZE)));
            }
        }
        Ok(None)
    }
}

fn write(process: &Process, tid: i32, at: LiveAddr, value: LiveAddr) -> Result<(), Error> {
    let written = process.mem.write(tid, at, &value.0.to_le_bytes());
    written.map_err(|error| process.io_error("cannot lead its unwinder to the patch", &error))
}

fn unreadable(process: &Process, error: &crate::sys::Errno) -> Error {
    process.io_error("cannot read where its unwinder looks", error)
}

/// The two ranges that a ledger keeps for its finders are of the right size and place.
pub(crate) fn is_sound(code: LiveRange, finders: LiveRange, nexts: LiveRange) -> bool {
    let none = finders == LiveRange::default() && nexts == LiveRange::default();
    none || code.covers(finders)
        && finders.len() == CODE_SIZE
        && nexts.len() == NEXT_SIZE
        && nexts.start.0.is_multiple_of(8)
        && !code.overlaps(nexts)
}
