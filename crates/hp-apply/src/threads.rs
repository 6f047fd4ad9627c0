//! Stopping and releasing the tasks of a target.
//!
//! All threads are first seized, which does not disturb them, and only then interrupted,
//! so the stop is no longer than it must be. When all known threads stand, the process says
//! how many it has. If that is more, the list is read again: a thread that was being born
//! while its maker ran is found then, and a standing thread makes no more of them.
//!
//! A stop by `PTRACE_INTERRUPT` is invisible to the parent and leaves group stops and
//! pending signals as they are: a signal that was about to be delivered is delivered at
//! release, a thread of a stopped process falls back into its group stop when detached.
//!
//! A thread that does not stop in time (`vfork` parent, uninterruptible sleep) cannot be
//! detached while it runs. It is remembered, and comes free at the latest when the
//! engine's own thread, its tracer, ends: the kernel then detaches everything. The same
//! happens if the applier is killed.

use crate::failure::{Failure, unusable};
use crate::prelude::*;
use crate::process::{self, Process};
use crate::small::Set;
use crate::sys::{self, Errno, Pauses, Priority, Regs, StopKind, Wait};
use core::time::Duration;

/// Longest wait for threads to stop.
const STOP_LIMIT: Duration = Duration::from_millis(100);
/// Longest wait beyond that for threads which wait for a processor.
const STARVED_LIMIT: Duration = Duration::from_secs(1);
/// How often the list of threads is read again before a storm of births counts as busy.
const MAX_ROUNDS: u32 = 64;

/// How often a thread that should be gone is looked for, a millisecond apart.
const GONE_TRIES: u32 = 50;

/// A stopped thread.
pub(crate) struct Task {
    pub(crate) tid: i32,
    /// Signal to deliver when it goes on.
    pub(crate) signal: i32,
    pub(crate) regs: Regs,
}

/// Threads that this thread of ours traces.
pub(crate) struct Tracer<'p> {
    pub(crate) process: &'p Process,
    /// Seized, but not stopped in time: still ours.
    running: Set<i32>,
    /// Stops so far.
    pub(crate) stops: u32,
    /// Longest of them.
    pub(crate) longest_ns: u64,
}

/// Why a stop did not come about although the process lives.
pub(crate) struct NotNow(pub(crate) String);

/// A stop in force; ends with [`Stopped::release`] or when dropped.
pub(crate) struct Stopped<'t, 'p> {
    tracer: &'t mut Tracer<'p>,
    pub(crate) tasks: Vec<Task>,
    began_ns: u64,
    counted: bool,
}

/// How long threads may be held while others go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Without any of them coming out.
    pub(crate) idle: Duration,
    /// Altogether.
    pub(crate) total: Duration,
}

enum Stop {
    Stopped(Box<Task>),
    Gone,
    Late,
}

impl<'p> Tracer<'p> {
    pub(crate) fn new(process: &'p Process) -> Self {
        Tracer { process, running: Set::new(), stops: 0, longest_ns: 0 }
    }

    /// Whether the thread was seized and has not been let go: it did not stop in time.
    pub(crate) fn holds(&self, tid: i32) -> bool {
        self.running.contains(tid)
    }

    /// Takes note of threads that have ended. The kernel keeps a thread until its tracer has, and as long
    /// another thread of the process cannot finish an exec.
    fn bury(&mut self) {
        let pid = self.process.pid;
        self.running.retain(|&tid| !matches!(sys::wait(tid, tid == pid), Ok(Wait::Gone)));
    }

    /// Stops every thread.
    pub(crate) fn stop_all(&mut self) -> Result<Result<Stopped<'_, 'p>, NotNow>, Failure> {
        let pid = self.process.pid;
        self.bury();
        let mut known = Set::new();
        let mut fresh = self.seize_new(&mut known)?;
        while self.process.thread_count() != Some(known.len()) {
            let more = self.seize_new(&mut known)?;
            if more.is_empty() {
                break;
            }
            fresh.extend(more);
        }
        let mut stopped = self.begin();
        for _ in 0..MAX_ROUNDS {
            if fresh.is_empty() {
                break;
            }
            if let Err(late) = stopped.stop(&fresh)? {
                return Ok(Err(late));
            }
            // Nobody is left who could make another.
            if stopped.tracer.process.thread_count() == Some(stopped.tasks.len()) {
                return Ok(Ok(stopped));
            }
            fresh = stopped.tracer.seize_new(&mut known)?;
        }
        if !fresh.is_empty() {
            return Ok(Err(NotNow(format!("process {pid} makes new threads faster than they can be stopped"))));
        }
        if stopped.tasks.is_empty() || !stopped.tracer.process.is_same() {
            return Err(process::ended(pid));
        }
        Ok(Ok(stopped))
    }

    /// Stops one thread.
    pub(crate) fn stop_one(&mut self, tid: i32) -> Result<Option<Stopped<'_, 'p>>, Failure> {
        let mut stopped = self.begin();
        Ok(stopped.add(tid)?.then_some(stopped))
    }

    /// A stop of no thread yet.
    pub(crate) fn begin(&mut self) -> Stopped<'_, 'p> {
        Stopped { tracer: self, tasks: Vec::new(), began_ns: sys::now_ns(), counted: true }
    }

    /// Seizes the threads that are not in `known` and adds them to it.
    fn seize_new(&mut self, known: &mut Set<i32>) -> Result<Vec<i32>, Failure> {
        let mut fresh = Vec::new();
        for tid in process::threads(self.process.pid) {
            if known.insert(tid) && self.seize(tid)? {
                fresh.push(tid);
            }
        }
        Ok(fresh)
    }

    /// False if the thread has ended.
    fn seize(&mut self, tid: i32) -> Result<bool, Failure> {
        if self.running.contains(tid) {
            return Ok(true);
        }
        let pid = self.process.pid;
        let mut result = sys::seize(tid);
        // Who traced it may have let it go by now.
        if result == Err(Errno::EPERM) && self.traced().is_ok() {
            result = sys::seize(tid);
        }
        match result {
            Ok(()) => {
                self.running.insert(tid);
                Ok(true)
            }
            Err(Errno::ESRCH) => self.gone(tid).map(|_| false),
            Err(_) if matches!(process::thread_state(pid, tid), None | Some('Z' | 'X')) => Ok(false),
            Err(Errno::EPERM) => Err(self.refused_to_trace()),
            Err(error) => Err(self.process.io_error("cannot trace it", &error)),
        }
    }

    /// An error that says who traces it, or that it is a zombie by now, if so.
    fn traced(&self) -> Result<(), Failure> {
        Process::open_read(self.process.pid).and_then(|process| process.check_tracer())
    }

    fn refused_to_trace(&self) -> Failure {
        match self.traced() {
            Err(error) => error,
            Ok(()) => unusable(format_args!("{}", process::not_permitted(self.process.pid, &self.process.status))),
        }
    }

    /// Waits until an interrupted thread stands.
    fn wait(&mut self, tid: i32, deadline_ns: u64, pauses: &mut Pauses) -> Result<Stop, Failure> {
        let mut tries = 0u32;
        loop {
            match sys::wait(tid, tid == self.process.pid)
                .map_err(|error| self.process.io_error("cannot wait for it", &error))?
            {
                Wait::Stopped(kind) => return self.stopped(tid, kind),
                Wait::Gone => return self.gone(tid),
                Wait::Nothing => {}
            }
            tries += 1;
            if sys::now_ns() > deadline_ns {
                // One that only waits for a processor will stop; the others may never.
                let starved = process::thread_state(self.process.pid, tid) == Some('R');
                if !starved || sys::now_ns() > deadline_ns + STARVED_LIMIT.as_nanos() as u64 {
                    return Ok(Stop::Late);
                }
            }
            if tries > 2 {
                pauses.pause();
            }
        }
    }

    fn gone(&mut self, tid: i32) -> Result<Stop, Failure> {
        self.check_gone(tid)?;
        self.running.remove(tid);
        Ok(Stop::Gone)
    }

    /// A thread that the kernel does not know any more must not be left out on a mere error: whoever runs on unseen may
    /// be where nobody may be.
    fn check_gone(&self, tid: i32) -> Result<(), Failure> {
        let pid = self.process.pid;
        for _ in 0..GONE_TRIES {
            if matches!(process::thread_state(pid, tid), None | Some('Z' | 'X')) {
                return Ok(());
            }
            sys::pause_ns(1_000_000);
        }
        Err(unusable(format_args!("process {pid}: thread {tid} cannot be traced although it lives")))
    }

    fn stopped(&mut self, tid: i32, kind: StopKind) -> Result<Stop, Failure> {
        self.running.remove(tid);
        let regs = match sys::registers(tid) {
            Ok(regs) => regs,
            // Killed while it stood.
            Err(Errno::ESRCH) => {
                self.running.insert(tid);
                return self.check_gone(tid).map(|()| Stop::Gone);
            }
            Err(error) => return Err(self.process.io_error("cannot read registers", &error)),
        };
        let signal = if let StopKind::Signal(signal) = kind { signal } else { 0 };
        Ok(Stop::Stopped(Box::new(Task { tid, signal, regs })))
    }
}

impl Stopped<'_, '_> {
    fn stop(&mut self, tids: &[i32]) -> Result<Result<(), NotNow>, Failure> {
        let mut waiting = Vec::with_capacity(tids.len());
        for &tid in tids {
            match sys::interrupt(tid) {
                Ok(()) => waiting.push(tid),
                // It is ending, and will be buried.
                Err(Errno::ESRCH) => self.tracer.check_gone(tid)?,
                Err(error) => return Err(self.tracer.process.io_error("cannot stop it", &error)),
            }
        }
        // Every thread is collected even when one is late: one that stands must be released.
        let deadline_ns = sys::now_ns() + STOP_LIMIT.as_nanos() as u64;
        let (mut late, mut pauses) = (None, Pauses::new());
        for tid in waiting {
            match self.tracer.wait(tid, deadline_ns, &mut pauses)? {
                Stop::Stopped(task) => self.tasks.push(*task),
                Stop::Gone => {}
                Stop::Late => late = late.or(Some(tid)),
            }
        }
        let Some(tid) = late else { return Ok(Ok(())) };
        Ok(Err(NotNow(does_not_stop(self.tracer.process.pid, tid))))
    }

    /// Stops one more thread; false if that cannot be now.
    pub(crate) fn add(&mut self, tid: i32) -> Result<bool, Failure> {
        if !self.tracer.seize(tid)? {
            return Ok(false);
        }
        let before = self.tasks.len();
        let _ = self.stop(&[tid])?;
        Ok(self.tasks.len() > before)
    }

    /// Whether a thread was to be stopped and still runs.
    pub(crate) fn waits_for(&self, tid: i32) -> bool {
        self.tracer.holds(tid)
    }

    /// The process and the thread that was stopped last.
    pub(crate) fn last(&mut self) -> (&Process, &mut Task) {
        let process = self.tracer.process;
        // Whoever asks has stopped one.
        (process, self.tasks.last_mut().expect("a stop holds at least one thread"))
    }

    /// The process and its first stopped thread.
    pub(crate) fn first(&mut self) -> (&Process, &mut Task) {
        let process = self.tracer.process;
        // A stop without a thread is never handed out.
        (process, self.tasks.first_mut().expect("a stop holds at least one thread"))
    }

    /// The process with each stopped thread.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = (&Process, &mut Task)> {
        let process = self.tracer.process;
        self.tasks.iter_mut().map(move |task| (process, task))
    }

    /// A stopped thread through which memory can be written: the main one where it stands.
    pub(crate) fn tid(&self) -> i32 {
        let main = self.tracer.process.pid;
        match self.tasks.first() {
            Some(first) if self.tasks.iter().all(|task| task.tid != main) => first.tid,
            _ => main,
        }
    }

    /// Lets the threads for which `is_busy` go on until each stands at a system call, or is
    /// interrupted, where it is not busy any more; the others keep standing. Threads that
    /// are born meanwhile are stopped too. True if that came about within the patience;
    /// else all threads stand somewhere.
    pub(crate) fn converge(&mut self, patience: Patience, is_busy: &dyn Fn(&Task) -> bool) -> Result<bool, Failure> {
        let deadline_ns = sys::now_ns().saturating_add(patience.total.as_nanos() as u64);
        let mut known = Set::new();
        for tid in process::threads(self.tracer.process.pid) {
            if self.tasks.iter().any(|task| task.tid == tid) {
                known.insert(tid);
            }
        }
        loop {
            let (busy, standing) = core::mem::take(&mut self.tasks).into_iter().partition(|task| is_busy(task));
            self.tasks = standing;
            if !self.run(busy, patience.idle, deadline_ns, is_busy)? {
                return Ok(false);
            }
            let fresh = self.tracer.seize_new(&mut known)?;
            if fresh.is_empty() && !self.tasks.iter().any(is_busy) {
                return Ok(true);
            }
            if self.stop(&fresh)?.is_err() || sys::now_ns() > deadline_ns {
                return Ok(false);
            }
        }
    }

    fn run(
        &mut self,
        busy: Vec<Task>,
        idle: Duration,
        deadline_ns: u64,
        is_busy: &dyn Fn(&Task) -> bool,
    ) -> Result<bool, Failure> {
        let mut running: Vec<i32> = Vec::with_capacity(busy.len());
        for task in busy {
            if sys::go_to_syscall(task.tid, task.signal).is_err() {
                self.tracer.check_gone(task.tid)?;
                continue;
            }
            self.tracer.running.insert(task.tid);
            running.push(task.tid);
        }
        let (mut progress_ns, mut pauses) = (sys::now_ns(), Pauses::new());
        while !running.is_empty() {
            let now_ns = sys::now_ns();
            if now_ns > deadline_ns || now_ns - progress_ns > idle.as_nanos() as u64 {
                break;
            }
            let before = running.len();
            for tid in core::mem::take(&mut running) {
                if !self.look_at(tid, is_busy)? {
                    running.push(tid);
                }
            }
            match running.len() == before {
                true => pauses.pause(),
                false => progress_ns = sys::now_ns(),
            }
        }
        // What still runs is stopped where it is; the caller releases everything.
        let late = !running.is_empty();
        Ok(self.stop(&running)?.is_ok() && !late)
    }

    /// True if a running thread stands now where it is not busy, or has ended.
    fn look_at(&mut self, tid: i32, is_busy: &dyn Fn(&Task) -> bool) -> Result<bool, Failure> {
        let wait = sys::wait(tid, tid == self.tracer.process.pid);
        let kind = match wait.map_err(|error| self.tracer.process.io_error("cannot wait for it", &error))? {
            Wait::Stopped(kind) => kind,
            Wait::Gone => {
                self.tracer.gone(tid)?;
                return Ok(true);
            }
            Wait::Nothing => return Ok(false),
        };
        let Stop::Stopped(task) = self.tracer.stopped(tid, kind)? else { return Ok(true) };
        // A signal is taken first: its handler must not wait for us.
        if task.signal == 0 && !is_busy(&task) {
            self.tasks.push(*task);
            return Ok(true);
        }
        if sys::go_to_syscall(tid, task.signal).is_err() {
            return self.tracer.check_gone(tid).map(|()| true);
        }
        self.tracer.running.insert(tid);
        Ok(false)
    }

    /// How long the threads have been standing.
    pub(crate) fn elapsed_ns(&self) -> u64 {
        sys::now_ns().saturating_sub(self.began_ns)
    }

    /// Lets all threads go on; gives the length of the stop. `special`: do not count it
    /// among the others, the caller reports it apart.
    pub(crate) fn release(mut self, special: bool) -> u64 {
        self.counted = !special;
        self.let_go()
    }

    fn let_go(&mut self) -> u64 {
        if self.tasks.is_empty() {
            return 0;
        }
        let _priority = (self.tasks.len() > 1).then(Priority::raise);
        for task in self.tasks.drain(..) {
            // An error means that the thread was killed meanwhile: nothing is left to release.
            if sys::detach(task.tid, task.signal).is_err() {
                self.tracer.running.insert(task.tid);
            }
        }
        self.tracer.bury();
        let pause = self.elapsed_ns();
        self.tracer.process.has_stood(pause);
        self.tracer.stops += 1;
        if self.counted {
            self.tracer.longest_ns = self.tracer.longest_ns.max(pause);
        }
        pause
    }
}

/// Of a thread that has not stopped in time.
pub(crate) fn does_not_stop(pid: i32, tid: i32) -> String {
    let state = process::thread_state(pid, tid).unwrap_or('?');
    let name = process::thread_comm(pid, tid);
    format!("thread {tid} ({name}) does not stop (state {state}: vfork or uninterruptible sleep)")
}

impl Drop for Stopped<'_, '_> {
    fn drop(&mut self) {
        self.let_go();
    }
}
