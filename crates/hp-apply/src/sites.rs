//! The entries of replaced functions and the state byte: what they are, and each step that
//! changes them.
//!
//! The steps, in the order of an apply: *arm* (entry → thunk), *activate* (state = 1: all
//! functions switch at once), *tidy* (entry → new code). A revert goes *untidy*,
//! *deactivate*, *restore*. After any prefix of either the program is wholly old or wholly
//! new, and which of the two is the state byte alone. Every step passes over what is done
//! already, so an interrupted sequence is finished by running it again.
//!
//! In between, *close* leads entries to their gates and *open* leads them back: see `gate`.
//!
//! All threads must be stopped while a step runs, none of them inside the overwritten bytes.

use crate::addr::{LiveAddr, PAGE, page_floor};
use crate::bytes::array;
use crate::failure::{Failure, refused};
use crate::ledger::{Ledger, Replaced, SITE, jump, jump_target};
use crate::prelude::*;
use crate::process::Process;
use crate::sys::Errno;
use core::cell::RefCell;
use core::ops::Range;

/// Where an entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leads {
    /// It has its original bytes.
    Old,
    Thunk,
    /// The gate, which leads on to the thunk.
    Gate,
    New,
    /// Somebody else wrote there, or nothing is mapped there any more; where to, if that is a jump.
    Elsewhere(Option<LiveAddr>),
}

/// The state of one patch, read from memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) active: bool,
    pub(crate) entries: Vec<Leads>,
}

impl Standing {
    pub(crate) fn read(process: &Process, ledger: &Ledger) -> Result<Standing, Failure> {
        let read = || -> Result<Standing, Errno> {
            let state: [u8; 1] = process.mem.array(ledger.state)?;
            Ok(Standing { active: state != [0], entries: entries(process, ledger)? })
        };
        read().map_err(|error| process.io_error("cannot read the patched entries", &error))
    }

    pub(crate) fn all(&self, leads: Leads) -> bool {
        self.entries.iter().all(|&entry| entry == leads)
    }

    /// Whether no entry leads to this patch. Its state says nothing then: a library that was closed and
    /// opened again has its original bytes.
    pub(crate) fn is_unused(&self) -> bool {
        self.entries.iter().all(|leads| matches!(leads, Leads::Old | Leads::Elsewhere(_)))
    }

    /// Names of functions whose entries neither we nor the base nor one of these other patches wrote.
    pub(crate) fn strangers<'l>(&self, ledger: &'l Ledger, others: &[Ledger]) -> Vec<&'l str> {
        let known = |to: LiveAddr| {
            let others = others.iter().filter(|other| other.mapping != ledger.mapping);
            ledger.takeover.contains(to) || others.into_iter().any(|other| other.code.contains(to))
        };
        let strange = |leads: &Leads| matches!(leads, Leads::Elsewhere(to) if !to.is_some_and(known));
        let pairs = self.entries.iter().zip(&ledger.functions);
        pairs.filter(|(leads, _)| strange(leads)).map(|(_, function)| function.name.as_str()).collect()
    }
}

/// Where the entries lead. Neighbours share a page, so pages are read, not entries.
fn entries(process: &Process, ledger: &Ledger) -> Result<Vec<Leads>, Errno> {
    let mut run = Run::default();
    let mut found = Vec::with_capacity(ledger.functions.len());
    for (index, function) in ledger.functions.iter().enumerate() {
        if !run.reaches(function.site) {
            run = Run::read(process, function.site)?;
        }
        let bytes = match run.at(function.site) {
            Some(bytes) => bytes,
            None if run.page.is_empty() => {
                found.push(Leads::Elsewhere(None));
                continue;
            }
            None => process.mem.array(function.site)?,
        };
        found.push(leads(ledger, index, function, bytes));
    }
    Ok(found)
}

/// A page; `None` if nothing is mapped there, as after a library was closed.
fn read_page(process: &Process, start: LiveAddr) -> Result<Option<[u8; PAGE as usize]>, Errno> {
    match process.mem.array(start) {
        Ok(page) => Ok(Some(page)),
        Err(Errno::EIO) if process.is_same() => Ok(None),
        Err(error) => Err(error),
    }
}

fn leads(ledger: &Ledger, index: usize, function: &Replaced, bytes: [u8; SITE]) -> Leads {
    match bytes {
        bytes if bytes == function.site_bytes => Leads::Old,
        bytes if bytes == function.jump_to(function.new) => Leads::New,
        bytes if bytes == function.jump_to(function.thunk) => Leads::Thunk,
        bytes if bytes == function.jump_to(ledger.gate(index)) => Leads::Gate,
        _ => Leads::Elsewhere(jump_target(function.site, bytes)),
    }
}

/// Whether the jump fits into one page, so that one write is one write.
pub(crate) fn is_in_one_page(function: &Replaced) -> bool {
    function.site.0 % PAGE <= PAGE - SITE as u64
}

/// Writes entries while everything stands, no longer than that.
pub(crate) struct Writer<'a> {
    process: &'a Process,
    /// One of the stopped threads.
    tid: i32,
    ledger: &'a Ledger,
    /// The page in which entries were written last, as it is now: from the first step of a writer to its last nobody else writes.
    page: RefCell<Run>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(process: &'a Process, tid: i32, ledger: &'a Ledger) -> Writer<'a> {
        Writer { process, tid, ledger, page: RefCell::default() }
    }

    /// Entry → thunk, for those of these functions that lead to old code.
    pub(crate) fn arm(&self, which: Range<usize>) -> Result<(), Failure> {
        self.redirect(which, &[Leads::Old], &|_, function| function.jump_to(function.thunk))
    }

    /// Entry → gate, wherever it leads: the thunk behind the gate decides as before.
    pub(crate) fn close(&self) -> Result<(), Failure> {
        self.redirect(self.every(), &[Leads::Old, Leads::Thunk, Leads::New], &|index, function| {
            function.jump_to(self.ledger.gate(index))
        })
    }

    /// Entry → new code, for those that lead to the thunk.
    pub(crate) fn tidy(&self, which: Range<usize>) -> Result<(), Failure> {
        self.redirect(which, &[Leads::Thunk, Leads::Gate], &|_, function| function.jump_to(function.new))
    }

    /// Entry → thunk, for all that lead to new code.
    pub(crate) fn untidy(&self) -> Result<(), Failure> {
        self.redirect(self.every(), &[Leads::New], &|_, function| function.jump_to(function.thunk))
    }

    /// Original bytes, for all that lead to the thunk.
    pub(crate) fn restore(&self) -> Result<(), Failure> {
        self.redirect(self.every(), &[Leads::Thunk, Leads::Gate], &|_, function| function.site_bytes)
    }

    /// Undoes a [`close`](Self::close): entries lead where the state says that they should.
    pub(crate) fn open(&self) -> Result<(), Failure> {
        let standing = Standing::read(self.process, self.ledger)?;
        self.redirect(self.every(), &[Leads::Gate], &|_, function| {
            if standing.active { function.jump_to(function.new) } else { function.jump_to(function.thunk) }
        })
    }

    /// Old (false) or new (true) for all functions at once.
    pub(crate) fn set_state(&self, active: bool) -> Result<(), Failure> {
        self.write(self.ledger.state, &[u8::from(active)])
    }

    /// After a takeover: the base's own bytes at the entries that the older patches had and this
    /// one leaves alone, and no state but this one's that says "new".
    pub(crate) fn finish_takeover(&self, older: &[&Ledger]) -> Result<(), Failure> {
        // This writes past the page that is kept.
        self.page.take();
        for bridged in self.ledger.bridged.iter().filter(|bridged| bridged.after != LiveAddr(0)) {
            let now: [u8; SITE] = self
                .process
                .mem
                .array(bridged.site)
                .map_err(|error| self.process.io_error("cannot read the patched entries", &error))?;
            if now == jump(bridged.site, bridged.after) {
                self.write(bridged.site, &bridged.site_bytes)?;
            }
        }
        older.iter().try_for_each(|ledger| self.write(ledger.state, &[0]))
    }

    fn every(&self) -> Range<usize> {
        0..self.ledger.functions.len()
    }

    fn redirect(
        &self,
        which: Range<usize>,
        from: &[Leads],
        bytes: &dyn Fn(usize, &Replaced) -> [u8; SITE],
    ) -> Result<(), Failure> {
        let mut run = self.page.take();
        for index in which {
            let Some(function) = self.ledger.functions.get(index) else { break };
            if !run.reaches(function.site) {
                self.put(&mut run)?;
                run = Run::read(self.process, function.site)
                    .map_err(|error| self.process.io_error("cannot read the patched entries", &error))?;
            }
            let leads = run.at(function.site).map(|bytes| leads(self.ledger, index, function, bytes));
            match leads.unwrap_or(Leads::Elsewhere(None)) {
                Leads::Elsewhere(_) => return self.put(&mut run).and(Err(stranger(&[&function.name]))),
                leads if from.contains(&leads) => run.set(function.site, bytes(index, function)),
                _ => {}
            }
        }
        self.put(&mut run)?;
        self.page.replace(run);
        Ok(())
    }

    fn put(&self, run: &mut Run) -> Result<(), Failure> {
        let changed = core::mem::take(&mut run.changed);
        let bytes = run.page.get(changed.clone()).unwrap_or_default();
        if bytes.is_empty() { Ok(()) } else { self.write(run.start.plus(changed.start as u64), bytes) }
    }

    fn write(&self, at: LiveAddr, bytes: &[u8]) -> Result<(), Failure> {
        self.process
            .mem
            .write(self.tid, at, bytes)
            .map_err(|error| self.process.io_error("cannot write to its memory", &error))
    }
}

/// Sites in one page, with what lies between them: one write for all. Nothing else writes there while everything stands.
#[derive(Default)]
struct Run {
    start: LiveAddr,
    page: Vec<u8>,
    changed: Range<usize>,
}

impl Run {
    /// The page of a site, as it is now; without content if nothing is mapped there.
    fn read(process: &Process, site: LiveAddr) -> Result<Run, Errno> {
        let start = LiveAddr(page_floor(site.0));
        let page = read_page(process, start)?.map_or_else(Vec::new, |page| page.to_vec());
        Ok(Run { start, page, changed: 0..0 })
    }

    /// The bytes at a site.
    fn at(&self, site: LiveAddr) -> Option<[u8; SITE]> {
        array(&self.page, (site.0 - self.start.0) as usize)
    }

    fn reaches(&self, site: LiveAddr) -> bool {
        !self.page.is_empty() && self.start.0 == page_floor(site.0)
    }

    fn set(&mut self, site: LiveAddr, bytes: [u8; SITE]) {
        let at = (site.0 - self.start.0) as usize;
        let Some(place) = self.page.get_mut(at..at + SITE) else { return };
        place.copy_from_slice(&bytes);
        let first = if self.changed.is_empty() { at } else { self.changed.start.min(at) };
        self.changed = first..self.changed.end.max(at + SITE);
    }
}

/// That somebody else has written over entries.
pub(crate) fn stranger(names: &[&str]) -> Failure {
    refused(format_args!("somebody else has changed the entry of {}", names.join(", ")))
}
