//! Waiting for a safe point: stop, look, act or let go and try again later.

use crate::Error;
use crate::addr::{LiveAddr, LiveRange};
use crate::bytes::millis;
use crate::failure::{Failure, refused};
use crate::gate::Gates;
use crate::ledger::{Ledger, Replaced, SITE, Seal};
use crate::maps::Maps;
use crate::newcomers::Known;
use crate::prelude::*;
use crate::process::Process;
use crate::safe_point::{Judge, Watch, Watched};
use crate::session::Session;
use crate::sites::Writer;
use crate::sys::Instant;
use crate::takeover::old_code;
use crate::threads::{NotNow, Patience, Stopped, Tracer};
use crate::unwind::Unwinder;
use crate::{InTheWay, Options, joined, sys};
use core::time::Duration;

const FIRST_BACKOFF: Duration = Duration::from_millis(1);
const LONGEST_BACKOFF: Duration = Duration::from_millis(50);
/// How many stops may exceed `--max-pause` before the attempt is given up.
const PAUSE_TRIES: u32 = 3;
/// Ordinary stops before gates are used,
const PLAIN_TRIES: u32 = 3;
/// unless so many threads are inside that chance will not find them all outside.
const MANY_BUSY: usize = 4;
/// How long threads are held while others are to come out, where the user has not said how long a stop may be: altogether,
/// and without any coming out. Who spins inside does not come out however long the others are held.
const HOLD: Patience = Patience { idle: Duration::from_millis(20), total: Duration::from_millis(100) };
/// The same where that has been said, within what has been said.
const LONG_HOLD: Patience = Patience { idle: Duration::from_millis(100), total: Duration::from_millis(500) };
const FIRST_IDLE: Duration = Duration::from_millis(10);
/// After a stop that was of no use the target runs for at least so many times as long.
const REST: u32 = 4;

/// Stops a target as often as needed within the user's limits.
pub(crate) struct Stops<'p> {
    pub(crate) tracer: Tracer<'p>,
    pub(crate) unwinder: Unwinder<'p>,
    pub(crate) gates: Vec<Gates>,
    known: Known,
    /// Gates may be used: no thread has a filter that would harm it there.
    pub(crate) may_close: bool,
    max_pause: Option<Duration>,
    deadline: Instant,
}

/// How far the search for a safe point has come.
struct Attempt {
    tries: u32,
    too_long: u32,
    /// Entries lead to gates.
    closed: bool,
    /// How long threads outside may be held while no other comes out.
    idle: Duration,
    /// How long the last stop was, which was of no use.
    stopped: Duration,
}

/// What a stop for acting is about.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// Where no thread may be.
    pub(crate) watch: &'a Watch,
    /// The records that the act rests on. That one is no more, or another, is an error.
    pub(crate) seals: &'a [Seal],
    /// The patch whose gates may be used when ordinary stops do not find a safe point. Its seal is the first one.
    pub(crate) gated: Option<&'a Ledger>,
    /// The caller reports this stop apart from the others.
    pub(crate) special: bool,
}

impl<'a> Terms<'a> {
    /// An ordinary stop.
    pub(crate) fn new(watch: &'a Watch, seals: &'a [Seal]) -> Terms<'a> {
        Terms { watch, seals, gated: None, special: false }
    }
}

/// What is done while everything stands, with what is mapped then.
type Act<'a> = dyn FnMut(&mut Stopped<'_, '_>, &Maps) -> Result<(), Failure> + 'a;

/// What a stop for acting cost.
pub(crate) struct Acted {
    pub(crate) pause_ns: u64,
    pub(crate) threads: u32,
}

impl<'p> Stops<'p> {
    /// With what was known when the process was looked at.
    pub(crate) fn new(session: &'p Session, options: &Options) -> Result<Stops<'p>, Failure> {
        let Session { process, maps, images, ledgers, .. } = session;
        // A timeout beyond what the clock can count is no timeout that anybody lives to see.
        let now = Instant::now();
        let deadline = now.checked_add(options.timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        Ok(Stops {
            tracer: Tracer::new(process),
            unwinder: Unwinder::new(&process.mem, images, ledgers),
            gates: ledgers.iter().map(Ledger::gates).collect(),
            known: Known::of(maps, ledgers)?,
            may_close: true,
            max_pause: options.max_pause,
            deadline,
        })
    }

    pub(crate) fn process(&self) -> &'p Process {
        self.tracer.process
    }

    /// Knows the unwind rows and the gates of a payload from now on.
    pub(crate) fn learn(&mut self, ledger: &Ledger) {
        self.unwinder.add(ledger);
        self.gates.push(ledger.gates());
    }

    /// A payload that we have brought is no stranger's.
    pub(crate) fn expect(&mut self, seal: Seal, mapping: LiveRange) {
        self.known.add(seal, mapping);
    }

    /// Standing in a gate of these is no longer standing at the entry.
    pub(crate) fn forget_gates(&mut self, ledgers: &[&Ledger]) {
        self.gates.retain(|gates| !ledgers.iter().any(|ledger| ledger.gates == gates.range));
    }

    /// Stops everything and acts at the first safe point.
    pub(crate) fn at_safe_point(
        &mut self,
        terms: Terms<'_>,
        mut act: impl FnMut(&mut Stopped<'_, '_>, &Maps) -> Result<(), Failure>,
    ) -> Result<Acted, Failure> {
        self.until_safe(terms, &mut act)
    }

    /// The same work with this much less patience.
    pub(crate) fn within<T>(
        &mut self,
        patience: Duration,
        work: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = self.deadline;
        self.deadline = Instant::now().checked_add(patience).map_or(deadline, |sooner| sooner.min(deadline));
        let result = work(self);
        self.deadline = deadline;
        result
    }

    /// The same, once for all kinds of acts.
    fn until_safe(&mut self, terms: Terms<'_>, act: &mut Act<'_>) -> Result<Acted, Failure> {
        let mut attempt = Attempt { tries: 0, too_long: 0, closed: false, idle: FIRST_IDLE, stopped: Duration::ZERO };
        let mut backoff = FIRST_BACKOFF;
        loop {
            let in_the_way = match self.attempt(terms, &mut attempt, act)? {
                Ok(acted) => return Ok(acted),
                Err(lines) => lines,
            };
            let (now, interrupted) = (Instant::now(), sys::interrupted());
            if now >= self.deadline || interrupted {
                self.open_gates(&mut attempt, terms);
                return Err(match interrupted {
                    true => refused(format_args!("interrupted before there was a safe point: {}", joined(&in_the_way))),
                    false => Error::Busy(in_the_way).into(),
                });
            }
            let rest = jittered(backoff).max(attempt.stopped * REST);
            sys::sleep_unless_interrupted(rest.min(self.deadline - now));
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    fn attempt(
        &mut self,
        terms: Terms<'_>,
        attempt: &mut Attempt,
        act: &mut Act<'_>,
    ) -> Result<Result<Acted, Vec<InTheWay>>, Failure> {
        let Terms { watch, seals, gated, special } = terms;
        let (process, max_pause) = (self.process(), self.max_pause);
        let mut stopped = match self.tracer.stop_all()? {
            Err(NotNow(line)) => return Ok(Err(vec![line.into()])),
            Ok(stopped) => stopped,
        };
        let maps = process.maps()?;
        let newcomers = self.known.newcomers(process, &maps, seals)?;
        let judge = Judge { process, unwinder: &self.unwinder, maps: &maps, gates: &self.gates };
        if let Some(ledger) = gated.filter(|_| attempt.closed) {
            Writer::new(process, stopped.tid(), ledger).open()?;
            attempt.closed = false;
        }
        attempt.tries += 1;
        // Who is in one of these is on the way to the base's function, past its entry.
        let wider = (!newcomers.is_empty()).then(|| watch.clone().and(old_code(&newcomers).into_iter()));
        let watch = wider.as_ref().unwrap_or(watch);
        let mut busy = judge.busy(&stopped.tasks, watch);
        let hopeless = attempt.tries > PLAIN_TRIES || busy.len() >= MANY_BUSY;
        let gates = gated.filter(|_| self.may_close && hopeless && !judge.any_blocked(&stopped.tasks, watch));
        if let Some(ledger) = gates.filter(|_| !busy.is_empty())
            && judge.busy(&stopped.tasks, &site_watch(&ledger.functions)).is_empty()
        {
            Writer::new(process, stopped.tid(), ledger).close()?;
            attempt.closed = true;
            let most = max_pause.map_or(HOLD, |most| Patience { total: most.min(LONG_HOLD.total), ..LONG_HOLD });
            let patience = Patience { idle: attempt.idle, ..most };
            attempt.idle = (attempt.idle * 2).min(most.idle);
            if stopped.converge(patience, &|task| judge.judge(task, watch).is_some())? {
                busy = judge.busy(&stopped.tasks, watch);
            }
        }
        if !busy.is_empty() {
            attempt.stopped = Duration::from_nanos(stopped.release(false));
            return Ok(Err(busy));
        }
        let elapsed = Duration::from_nanos(stopped.elapsed_ns());
        if let Some(most) = max_pause.filter(|most| elapsed > *most) {
            stopped.release(false);
            attempt.too_long += 1;
            if attempt.too_long < PAUSE_TRIES {
                return Ok(Err(vec![too_long(elapsed, most).into()]));
            }
            self.open_gates(attempt, terms);
            return Err(refused(format_args!("{}; nothing was changed", too_long(elapsed, most))));
        }
        let threads = stopped.tasks.len() as u32;
        act(&mut stopped, &maps)?;
        Ok(Ok(Acted { pause_ns: stopped.release(special), threads }))
    }

    /// Leads the entries past the gates again. Gates that stay change nothing but speed.
    fn open_gates(&mut self, attempt: &mut Attempt, terms: Terms<'_>) {
        let process = self.process();
        let (Some(ledger), Some(seal)) = (terms.gated, terms.seals.first()) else { return };
        for _ in 0..PLAIN_TRIES {
            if !attempt.closed {
                return;
            }
            if let Ok(Ok(stopped)) = self.tracer.stop_all() {
                if seal.check(process).is_err() {
                    return;
                }
                attempt.closed = Writer::new(process, stopped.tid(), ledger).open().is_err();
            }
        }
    }

    /// One stop and one look, nothing else: who would be in the way now, and the pause.
    pub(crate) fn look(&mut self, watch: &Watch) -> Result<(Vec<InTheWay>, u64), Failure> {
        let process = self.process();
        let stopped = match self.tracer.stop_all()? {
            Err(NotNow(line)) => return Ok((vec![line.into()], 0)),
            Ok(stopped) => stopped,
        };
        let maps = process.maps()?;
        let judge = Judge { process, unwinder: &self.unwinder, maps: &maps, gates: &self.gates };
        let busy = judge.busy(&stopped.tasks, watch);
        Ok((busy, stopped.release(false)))
    }
}

/// What [`Stops::look`] found, in words.
pub(crate) fn looked(busy: &[InTheWay], pause_ns: u64) -> String {
    let pause = millis(pause_ns);
    match busy.is_empty() {
        true => format!("a safe point exists now; stopping and checking took {pause}"),
        false => format!("no safe point now (a stop took {pause}): {}", joined(busy)),
    }
}

fn too_long(elapsed: Duration, most: Duration) -> String {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    format!("stopping the process takes {}, allowed are {}", millis(ns(elapsed)), millis(ns(most)))
}

/// The bytes that jumps overwrite: nobody may stand or return between them.
pub(crate) fn site_watch(functions: &[Replaced]) -> Watch {
    Watch::new(functions.iter().map(site_bytes).collect())
}

pub(crate) fn site_bytes(function: &Replaced) -> Watched {
    Watched {
        range: function.site.plus(1).range(SITE as u64 - 1),
        name: function.name.clone(),
        origin: function.entry(),
        outside: [LiveAddr(0); 2],
        vague: false,
        running: false,
    }
}

/// Between half and all of a time, so that two appliers or a periodic target do not stay in step.
fn jittered(time: Duration) -> Duration {
    let spread = (sys::now_ns() / 64 % 512) as u32;
    time / 2 + time / 1024 * spread
}
