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
//! An unwinder that is opened later (by `dlopen`, or by the first `pthread_exit` or
//! `backtrace()`) is bound by the symbol tables of the C library. So the values of the two
//! symbols count as slots, too: a word each, relative to the module's bias. Who binds them
//! while a patch is loaded gets the finder, and is led back when it goes.
//!
//! Several patches form a chain: slot → finder of the newest → … → the C library. The
//! words by which it goes on (*next*) lie behind the state byte.
//!
//! A static program has no slots: its unwinder calls these functions directly. The diff names
//! each such call in the patch, and its four bytes of distance are led like a slot.
//!
//! Limits: where the dynamic linker is the C library itself (musl), symbols are left alone,
//! for a thread is never seen outside of it: an unwinder that is opened later does not see
//! payloads that are loaded already. The same holds for namespaces of `dlmopen`.

use crate::addr::{Bias, LinkAddr, LiveAddr, LiveRange};
use crate::bytes::u64_at;
use crate::dynamic::{Module, Name};
use crate::failure::{Failure, busy, refused};
use crate::image::{Image, images};
use crate::ledger::Ledger;
use crate::maps::Maps;
use crate::prelude::*;
use crate::process::Process;
use crate::safe_point::Watched;
use crate::scope::{self, Linked};
use crate::session::Session;
use crate::sys::{Errno, Mem};
use hp_pack::{Patch, Place};

mod content;
mod holders;

pub(crate) use content::{CODE_SIZE, Content, FINDER_ROWS, NEXT_SIZE, ROWS_SIZE, SIZE, count_rows, index_size};
pub(crate) use holders::Holders;

/// Finders for each question: one for each place that slots of the kind lead to.
const EACH: usize = 2;
/// Finders in a payload.
pub(crate) const COUNT: usize = 2 * EACH;
/// Why a commit stops where an unwinder does not lead where it did when it was looked at.
pub(crate) const BOUND_ANEW: &str = "an unwinder was bound anew meanwhile";
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;
/// Longest resolver of the dynamic linker (`_dl_runtime_resolve_xsavec` has about 200 bytes).
const RESOLVER_SIZE: u64 = 1024;

/// The two questions that unwinders ask, in the order of the finders.
const FIND_OBJECT: &[u8] = b"_dl_find_object";
const ITERATE: &[u8] = b"dl_iterate_phdr";
const QUESTIONS: [&[u8]; 2] = [FIND_OBJECT, ITERATE];
/// Most calls of a static program that are led.
pub(crate) const MAX_CALLS: u32 = 64;
/// What a patch names such a call by: this, and the question.
const CALL: &str = "hpatch.asks.";
/// What every unwinder defines, and whoever uses another module's unwinder does not.
const UNWINDER: &[u8] = b"_Unwind_RaiseException";

/// What leads to code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// A word, and what is added to it: the bias of its module for a symbol's value, else zero.
    Word(LiveAddr, Bias),
    /// The four bytes of distance in a call of a static program.
    Call(LiveAddr),
}

impl Holder {
    fn pointer(at: LiveAddr) -> Holder {
        Holder::Word(at, Bias(0))
    }

    fn read(self, mem: &Mem) -> Result<LiveAddr, Errno> {
        match self {
            Holder::Word(at, bias) => mem.u64(at).map(|word| bias.live(LinkAddr(word))),
            Holder::Call(at) => mem.u32(at).map(|word| at.plus(4).plus(i64::from(word as i32) as u64)),
        }
    }

    fn write(self, process: &Process, tid: i32, value: LiveAddr) -> Result<(), Failure> {
        let written = match self {
            Holder::Word(at, bias) => process.mem.write(tid, at, &value.0.wrapping_sub(bias.0).to_le_bytes()),
            Holder::Call(at) => {
                let distance = i32::try_from(value.0.wrapping_sub(at.plus(4).0) as i64);
                let far = |_| refused(format_args!("its unwinder lies too far from the patch"));
                process.mem.write(tid, at, &distance.map_err(far)?.to_le_bytes())
            }
        };
        written.map_err(|error| process.io_error("cannot lead its unwinder to the patch", &error))
    }
}

/// A pointer slot by which a module asks, or a symbol by which it will be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    holder: Holder,
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
    /// The code of the dynamic linker, where symbols are led.
    loader: Vec<LiveRange>,
    /// What was linked when this was read.
    linked: Linked,
    /// The calls among the slots.
    pub(crate) calls: Vec<LiveAddr>,
    /// A module that unwinds and has no slot.
    unled: Option<String>,
    /// The `struct link_map` of the base, for whoever asks.
    pub(crate) link_map: LiveAddr,
}

impl Slots {
    /// Looks for the slots. `base` is asked too if it is no client of another unwinder.
    pub(crate) fn find(session: &Session, base: &Image, patch: &Patch) -> Result<Slots, Failure> {
        let process = &session.process;
        let linked = Linked::read(process);
        let mut slots = Slots { link_map: linked.link_map(base), linked, ..Slots::default() };
        slots.look(session, &session.images);
        for symbol in patch.symbols.iter().filter(|symbol| symbol.place == Place::Base) {
            let asked = symbol.name.strip_prefix(CALL);
            if let Some(question) = asked.and_then(|name| QUESTIONS.iter().position(|q| *q == name.as_bytes())) {
                slots.add_call(process, base, base.bias.live(LinkAddr(symbol.value)), question)?;
            }
        }
        Ok(slots)
    }

    /// A call in the base, which must be one, and lead into the base or to another patch's finder.
    fn add_call(&mut self, process: &Process, base: &Image, at: LiveAddr, question: usize) -> Result<(), Failure> {
        let holder = Holder::Call(at);
        let opcode = process.mem.array::<1>(LiveAddr(at.0.wrapping_sub(1))).map_err(|e| unreadable(process, &e))?;
        let leads = holder.read(&process.mem).map_err(|e| unreadable(process, &e))?;
        if !base.span.covers(at.range(4)) || !matches!(opcode, [0xe8 | 0xe9]) || self.calls.len() >= MAX_CALLS as usize
        {
            return Err(refused(format_args!("its unwinder is not what the patch was made for")));
        }
        self.calls.push(at);
        self.list.push(Slot { holder, question, value: leads, leads, copied: false });
        Ok(())
    }

    fn look(&mut self, session: &Session, images: &[Image]) {
        let mem = &session.process.mem;
        for (image, module) in modules(mem, images) {
            let raises = defines(mem, &module, UNWINDER);
            let before = self.list.len();
            // Who uses another module's unwinder may ask for other reasons.
            let is_client = !raises && module.names(mem, UNWINDER);
            for (question, rela) in module.references(mem, &QUESTIONS) {
                let asks = QUESTIONS.get(question) == Some(&FIND_OBJECT) || !is_client;
                if asks && matches!(rela.kind, R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT) {
                    self.add(session, image, &module, question, (rela.place, rela.kind));
                }
            }
            if raises && self.list.len() == before {
                self.unled = Some(image.path.clone());
            }
        }
        self.loader = loader(mem, images);
        if !self.loader.is_empty() {
            self.add_symbols(session);
        }
    }

    fn add_symbols(&mut self, session: &Session) {
        for (question, name) in QUESTIONS.iter().enumerate() {
            let Some(found) = scope::symbol(session, Name { name, version: None }) else { continue };
            let holder = Holder::Word(found.value_at, found.bias);
            let leads = found.address;
            self.list.push(Slot { holder, question, value: leads, leads, copied: false });
        }
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
        let holder = Holder::pointer(slot.0);
        self.list.push(Slot { holder, question, value, leads, copied: slot.1 == R_X86_64_GLOB_DAT });
    }

    /// No unwinder that is there, or that comes, can be led to a payload.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Refuses a process with an unwinder that would not see new code: for an exception
    /// that passes through it, the stack would end there.
    pub(crate) fn check_all_led(&self) -> Result<(), Failure> {
        match &self.unled {
            None => Ok(()),
            Some(path) => Err(refused(format_args!(
                "{path} unwinds stacks and nothing shows how it finds unwind rows: an exception that passes through \
                 new code would end the program"
            ))),
        }
    }

    /// Whether an address of a finder may be left where no search of memory finds it.
    pub(crate) fn hands_out(&self) -> bool {
        self.list.iter().any(|slot| slot.copied)
    }

    /// Where nobody may be while slots are written that are not bound yet.
    pub(crate) fn watched(&self) -> impl Iterator<Item = Watched> + '_ {
        let what = "the dynamic linker's binding of an unwinder";
        let binders = self.binders.iter().map(move |range| Watched::plain(*range, what));
        binders.chain(self.loader.iter().map(move |range| Watched::running(*range, what)))
    }

    /// Where each finder passes on to; zero for one that is not needed. `own`: the ledger of
    /// this payload if it is loaded already, so that its finders may be in use.
    pub(crate) fn nexts(&self, process: &Process, own: Option<&Ledger>) -> Result<[LiveAddr; COUNT], Failure> {
        let mut nexts = [LiveAddr(0); COUNT];
        for slot in &self.list {
            let leads = match own.and_then(|own| own.finder_at(slot.leads)) {
                Some((_, next)) => process.mem.u64(next).map(LiveAddr).map_err(|e| unreadable(process, &e))?,
                None => slot.leads,
            };
            let of_kind = nexts.iter_mut().skip(slot.question * EACH).take(EACH);
            let free = of_kind.into_iter().find(|next| next.0 == 0 || **next == leads);
            *free.ok_or_else(|| refused(format_args!("its unwinders ask in too many different ways")))? = leads;
        }
        Ok(nexts)
    }

    /// Leads the slots to the finders of a payload. Everything stands, and this is mapped.
    pub(crate) fn lead_to(&self, session: &Session, maps: &Maps, tid: i32, ledger: &Ledger) -> Result<(), Failure> {
        let process = &session.process;
        if !self.linked.is_the_same(process) {
            // An unwinder may have come. What led to it before is led by its slots.
            let mut anew = Slots { linked: Linked::read(process), ..Slots::default() };
            anew.look(session, &images(&process.mem, maps));
            anew.check_all_led()?;
            return anew.lead_to(session, maps, tid, ledger);
        }
        if self.list.is_empty() {
            return Ok(());
        }
        let nexts = process.mem.array(ledger.nexts.start).map_err(|e| unreadable(process, &e))?;
        for slot in &self.list {
            let now = slot.holder.read(&process.mem).map_err(|e| unreadable(process, &e))?;
            if ledger.finder_at(now).is_some() {
                continue;
            }
            let finder = ledger.finder_of(&nexts, slot.question, slot.leads);
            let (Some(finder), true) = (finder, now == slot.value || now == slot.leads) else {
                return Err(busy(BOUND_ANEW.to_owned().into()));
            };
            slot.holder.write(process, tid, finder)?;
        }
        Ok(())
    }
}

/// The modules that may ask or answer.
fn modules<'i>(mem: &'i Mem, images: &'i [Image]) -> impl Iterator<Item = (&'i Image, Module)> {
    let known = images.iter().filter(|image| image.path != "[vdso]");
    known.filter_map(move |image| Some((image, Module::read(mem, image.bias, image.dynamic?.start)?)))
}

fn defines(mem: &Mem, module: &Module, name: &[u8]) -> bool {
    module.find(mem, Name { name, version: None }, false).is_some()
}

/// The code of the dynamic linker, if it is a module of its own.
pub(crate) fn loader(mem: &Mem, images: &[Image]) -> Vec<LiveRange> {
    let is = |module: &Module| defines(mem, module, b"__tls_get_addr") && !defines(mem, module, b"printf");
    let found = modules(mem, images).find(|(_, module)| is(module));
    found.map_or_else(Vec::new, |(image, _)| image.segments.iter().filter(|s| s.execute).map(|s| s.memory).collect())
}

/// Where an address leads that may be a finder of one of the patches in a process.
pub(crate) fn behind(process: &Process, ledgers: &[Ledger], mut at: LiveAddr) -> LiveAddr {
    for _ in 0..=ledgers.len() {
        let next = ledgers.iter().find_map(|ledger| ledger.finder_at(at));
        let Some(word) = next.and_then(|(_, next)| process.mem.u64(next).ok()) else { break };
        at = LiveAddr(word);
    }
    at
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

    /// The finder for a question that passes on to `leads`, by all the words by which they do.
    fn finder_of(&self, nexts: &[u8; COUNT * 8], question: usize, leads: LiveAddr) -> Option<LiveAddr> {
        let mut of_kind = (0..COUNT).skip(question * EACH).take(EACH);
        let index = of_kind.find(|index| u64_at(nexts, index * 8) == Some(leads.0))?;
        Some(self.finders.start.plus(index as u64 * SIZE))
    }
}

fn unreadable(process: &Process, error: &Errno) -> Failure {
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
