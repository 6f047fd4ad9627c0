//! Starting a program so that it can be patched before its first instruction runs.
//!
//! The program is started traced and stopped at the executable's entry point: the loader has
//! mapped and relocated all libraries that it needs then (and has run their constructors).
//! There it is left stopped, as by `SIGSTOP`, which is a state that every apply works on.
//! Until it is let go it dies with us: nobody wants a program that hangs half started.
//! Afterwards it is an ordinary child, and we wait for it and pass on what it is sent.
//!
//! Tracing belongs to a thread: everything here must be called by one and the same.
//!
//! Limits: a program that runs with other rights than its caller's (set-user-ID) would not
//! get them under a tracer, so only root can start those. A script's interpreter is the
//! program that is stopped.

extern crate std;

use crate::Error;
use crate::addr::LiveAddr;
use crate::bytes::u64_at;
use crate::failure::{Failure, unusable};
use crate::prelude::*;
use crate::process::{self, Process};
use crate::remote::{Remote, Slots};
use crate::session::Session;
use crate::sys::child::{self, Ended, Waited};
use crate::sys::{self, Errno, Instant, number};
use crate::threads::Tracer;
use core::time::Duration;
use linux_raw_sys::general::{SIGCONT, SIGSTOP, SIGTRAP};
use linux_raw_sys::prctl::PR_SET_PDEATHSIG;
use std::process::{Child, Command};

const AT_ENTRY: u64 = 9;
const BREAKPOINT: u8 = 0xcc;
/// Longest wait for the stop at the entry point to become an ordinary one.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How often a moment is looked for at which the program can make a call for us.
const TRIES: u32 = 50;

/// A program that stands before its first instruction. Killed if dropped.
#[derive(Debug)]
pub struct Started {
    child: Option<Child>,
    pid: i32,
}

/// Starts a program and stops it at its entry point.
///
/// From here on to [`Started::run`], termination signals for this process are held back.
///
/// # Errors
/// [`Error::Unusable`] if it cannot be started, or ends on the way.
pub fn start(command: &mut Command) -> Result<Started, Error> {
    let name = process::printable(&command.get_program().to_string_lossy());
    let failed = |error: Errno| unusable(format_args!("cannot run {name}: {error}"));
    let child = child::spawn_traced(command).map_err(|error| unusable(format_args!("cannot run {name}: {error}")))?;
    let started = Started { pid: child.id() as i32, child: Some(child) };
    let pid = started.pid;
    started.to_exec()?;
    child::die_with_us(pid).map_err(failed)?;
    let file = sys::about(format!("/proc/{pid}/exe")).map_err(failed)?;
    if sys::user_id() != 0 && (file.mode & 0o6000 != 0 || child::has_capabilities(pid)) {
        return Err(
            unusable(format_args!("{name} runs with more rights than yours; only root can start it patched")).into()
        );
    }
    started.to_entry()?;
    Ok(started)
}

impl Started {
    /// The program's process number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets the program go and waits until it ends. Termination signals that are sent to
    /// us meanwhile are passed on. The exit code, or 128 and the number of the signal that
    /// killed it.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it cannot be let go; it is killed then.
    pub fn run(mut self) -> Result<i32, Error> {
        let pid = self.pid;
        let outlive = || outlive_us(pid);
        std::thread::scope(|scope| scope.spawn(outlive).join()).unwrap_or_else(|_| Err(process::ended(pid)))?;
        child::send(pid, SIGCONT as i32).map_err(|error| unusable(format_args!("process {pid}: {error}")))?;
        let ended = child::wait_for_child(pid).map_err(|error| unusable(format_args!("process {pid}: {error}")))?;
        self.child = None;
        Ok(match ended {
            Ended::Exited(code) => code,
            Ended::Killed(signal) => 128 + signal,
        })
    }

    fn wait(&self) -> Result<i32, Failure> {
        match child::wait_for_stop(self.pid) {
            Ok(Waited::Stopped(signal)) => Ok(signal),
            Ok(Waited::Ended) => Err(self.ended()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// The stop that tells of the new program.
    fn to_exec(&self) -> Result<(), Failure> {
        loop {
            match self.wait()? {
                signal if signal == SIGTRAP as i32 => return Ok(()),
                signal => sys::go_on(self.pid, signal).map_err(|error| self.failed(&error))?,
            }
        }
    }

    fn to_entry(&self) -> Result<(), Failure> {
        let pid = self.pid;
        let failed = |error: Errno| self.failed(&error);
        // Looks at what kind of program it is, too.
        let process = Process::open_read(pid)?;
        let mem = sys::Mem::open(pid).map_err(failed)?;
        let auxv = sys::read_file(&format!("/proc/{pid}/auxv")).map_err(failed)?;
        let pairs = auxv.chunks_exact(16).find(|pair| u64_at(pair, 0) == Some(AT_ENTRY));
        let entry = pairs.and_then(|pair| u64_at(pair, 8)).map(LiveAddr);
        let entry = entry.ok_or_else(|| unusable(format_args!("process {pid} has no entry point")))?;
        let original: [u8; 1] = process.mem.array(entry).map_err(failed)?;
        mem.write(pid, entry, &[BREAKPOINT]).map_err(failed)?;
        let mut signal = 0;
        let mut regs = loop {
            sys::go_on(pid, signal).map_err(failed)?;
            signal = self.wait()?;
            let regs = sys::registers(pid).map_err(failed)?;
            if signal == SIGTRAP as i32 && regs.rip == entry.0 + 1 {
                break regs;
            }
        };
        mem.write(pid, entry, &original).map_err(failed)?;
        regs.rip = entry.0;
        sys::set_registers(pid, &regs).map_err(failed)?;
        sys::detach(pid, SIGSTOP as i32).map_err(failed)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while process::thread_state(pid, pid) != Some('T') {
            if Instant::now() > deadline || !process.is_same() {
                return Err(self.ended());
            }
            sys::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    fn ended(&self) -> Failure {
        unusable(format_args!("process {}: the program ended before its first instruction", self.pid))
    }

    fn failed(&self, error: &Errno) -> Failure {
        unusable(format_args!("process {}: cannot lead it to its entry point: {error}", self.pid))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The stopped program itself takes back that it dies with us.
fn outlive_us(pid: i32) -> Result<(), Failure> {
    let session = Session::open(pid)?;
    let slots = Slots::find(&session.process.mem, &session.images);
    let mut tracer = Tracer::new(&session.process);
    for _ in 0..TRIES {
        if let (Some(mut stopped), Some(slot)) = (tracer.stop_one(pid)?, slots.any()) {
            let (process, task) = stopped.first();
            let arguments = [u64::from(PR_SET_PDEATHSIG), 0, 0, 0, 0, 0];
            let done = Remote::begin(process, task, slot).and_then(|mut remote| remote.call(number::PRCTL, arguments));
            if done.is_ok() {
                return Ok(());
            }
        }
        sys::sleep(Duration::from_millis(1));
    }
    Err(unusable(format_args!("process {pid} cannot be let go")))
}
