//! What is known of a target before anything is done to it.

use crate::addr::LiveRange;
use crate::bytes::hex;
use crate::failure::{Failure, busy, refused};
use crate::image::{Image, images};
use crate::ledger::{self, Ledger};
use crate::maps::Maps;
use crate::prelude::*;
use crate::process::{self, Process};
use crate::sites::Standing;
use crate::sys::{self, Instant};
use crate::{Done, Error, Stood};
use alloc::rc::Rc;
use core::cell::Cell;
use core::time::Duration;

/// How often a record that is just going is looked at again.
const SETTLE_TRIES: u32 = 3;

/// How often work that failed is begun again because somebody else has changed the patches meanwhile.
const STALE_TRIES: u32 = 3;

/// Opens a process for patching and works on it.
///
/// `stood`: to this is added how long the process stood still.
pub(crate) fn with(
    pid: i32,
    stood: &Cell<Stood>,
    work: &dyn Fn(&Session) -> Result<Done, Failure>,
) -> Result<Done, Failure> {
    let mut done = Done::NotApplied;
    until_settled(pid, Session::open, &mut |session| {
        let result = work(session);
        let mut total = stood.get();
        total.add(session.process.stood.get());
        stood.set(total);
        done = result?;
        Ok(())
    })?;
    Ok(done)
}

/// Opens a process for looking only, and looks; again if that fails because of what somebody does meanwhile.
pub(crate) fn look(pid: i32, look: &mut dyn FnMut(&Session) -> Result<(), Failure>) -> Result<(), Failure> {
    until_settled(pid, Session::open_read, look)
}

/// Works on a process; again if that fails because of what somebody else has done meanwhile: another applier, or a thread that
/// unmaps a payload for one that died.
fn until_settled(
    pid: i32,
    open: fn(i32) -> Result<Session, Failure>,
    work: &mut dyn FnMut(&Session) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let session = open(pid)?;
        match work(&session) {
            Err(failure) if tries < STALE_TRIES && session.is_stale(&failure) => tries += 1,
            result => return result.map_err(|error| session.process.explain(error)),
        }
    }
}

/// A target, read.
pub(crate) struct Session {
    pub(crate) process: Process,
    pub(crate) maps: Rc<Maps>,
    pub(crate) images: Vec<Image>,
    pub(crate) ledgers: Vec<Ledger>,
    /// Mappings of loads that were cut short.
    pub(crate) abandoned: Vec<LiveRange>,
}

impl Session {
    /// Opens a process for patching.
    pub(crate) fn open(pid: i32) -> Result<Session, Failure> {
        Session::of(Process::open(pid)?)
    }

    /// Opens a process for looking only.
    pub(crate) fn open_read(pid: i32) -> Result<Session, Failure> {
        Session::of(Process::open_read(pid)?)
    }

    fn of(process: Process) -> Result<Session, Failure> {
        let mut maps = process.maps()?;
        let mut ledgers = ledger::find(&process.mem, &maps);
        for _ in 0..SETTLE_TRIES {
            if ledgers.iter().all(|ledger| Standing::read(&process, ledger).is_ok()) {
                break;
            }
            // A thread whose applier died may be unmapping a payload just now.
            sys::sleep(Duration::from_millis(1));
            maps = process.maps()?;
            ledgers = ledger::find(&process.mem, &maps);
        }
        let images = images(&process.mem, &maps);
        let abandoned = ledger::abandoned(&process.mem, &maps, &ledgers);
        Ok(Session { process, maps, images, ledgers, abandoned })
    }

    /// Whether no entry leads to a patch, and nobody else has written over one where its base still is.
    pub(crate) fn is_unused(&self, ledger: &Ledger, standing: &Standing) -> bool {
        let base_is_there = self.images.iter().any(|image| is_base(image, ledger));
        standing.is_unused() && (!base_is_there || standing.strangers(ledger, &self.ledgers).is_empty())
    }

    /// Whether work failed because patches are not what they were when this was read: something has found that, or others
    /// are there now.
    fn is_stale(&self, failure: &Error) -> bool {
        if self.process.changed.get() || matches!(failure, Error::Busy(_)) {
            return self.process.changed.get();
        }
        let Ok(maps) = self.process.maps() else { return false };
        // Whoever writes a ledger gives it a number of its own.
        let which = |ledger: &Ledger| (ledger.mapping.start, ledger.sequence);
        let now = ledger::find(&self.process.mem, &maps);
        !now.iter().map(which).eq(self.ledgers.iter().map(which))
    }

    /// The one image with this build ID.
    pub(crate) fn base(&self, build_id: &[u8]) -> Result<&Image, Failure> {
        let pid = self.process.pid;
        let mut found = self.images.iter().filter(|image| image.build_id.as_deref() == Some(build_id));
        match (found.next(), found.next()) {
            (Some(image), None) => Ok(image),
            (None, _) => {
                Err(refused(format_args!("process {pid} does not run the base with build ID {}", hex(build_id))))
            }
            (Some(_), Some(_)) => {
                Err(refused(format_args!("process {pid} maps the base with build ID {} more than once", hex(build_id))))
            }
        }
    }

    /// Waits while another process shares the target's memory: its threads would not be
    /// stopped. A `vfork` child soon goes; whoever stays is in the way.
    pub(crate) fn check_relatives(&self, timeout: Duration) -> Result<(), Failure> {
        let (pid, began) = (self.process.pid, Instant::now());
        loop {
            let relative = process::all_pids()
                .unwrap_or_default()
                .into_iter()
                .find(|&other| other != pid && sys::same_memory(pid, other) == Some(true));
            let Some(other) = relative else { return Ok(()) };
            // A process on its way out has no memory any more, like every kernel thread.
            if !self.process.is_same() || sys::read_link(&format!("/proc/{other}/exe")).is_err() {
                return if self.process.is_same() { Ok(()) } else { Err(process::ended(pid)) };
            }
            if began.elapsed() >= timeout || sys::interrupted() {
                let name = process::comm(other);
                let line = format!("process {other} ({name}) shares its memory with process {pid}");
                return Err(busy(line.into()));
            }
            sys::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether an image still lies where a ledger says that its base lies.
pub(crate) fn is_base(image: &Image, ledger: &Ledger) -> bool {
    let same = |a: LiveRange, b: LiveRange| a.start == b.start;
    same(image.span, ledger.base) && image.build_id.as_deref() == Some(ledger.build_id.as_slice())
}
