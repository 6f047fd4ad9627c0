//! Waiting for a safe point: stop, look, act or let go and try again later.

use crate::Error;
use crate::ledger::Ledger;
use crate::process::Process;
use crate::safe_point::{Judge, Watch};
use crate::session::read_maps;
use crate::threads::{NotNow, Stopped, Tracer};
use crate::unwind::Unwinder;
use crate::{Options, sys};
use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_millis(1);
const LONGEST_BACKOFF: Duration = Duration::from_millis(50);
/// How many stops may exceed `--max-pause` before the attempt is given up.
const PAUSE_TRIES: u32 = 3;

/// Stops a target as often as needed within the user's limits.
pub(crate) struct Stops<'p> {
    pub(crate) tracer: Tracer<'p>,
    pub(crate) unwinder: Unwinder<'p>,
    max_pause: Option<Duration>,
    deadline: Instant,
}

/// What a stop for acting cost.
pub(crate) struct Acted {
    pub(crate) pause_ns: u64,
    pub(crate) threads: u32,
}

impl<'p> Stops<'p> {
    pub(crate) fn new(process: &'p Process, unwinder: Unwinder<'p>, options: &Options) -> Stops<'p> {
        // A timeout beyond what the clock can count is no timeout that anybody lives to see.
        let now = Instant::now();
        let deadline = now.checked_add(options.timeout).unwrap_or(now + Duration::from_secs(1 << 30));
        Stops { tracer: Tracer::new(process), unwinder, max_pause: options.max_pause, deadline }
    }

    pub(crate) fn process(&self) -> &'p Process {
        self.tracer.process
    }

    /// Knows the unwind rows of a payload from now on.
    pub(crate) fn learn(&mut self, ledger: &Ledger) {
        self.unwinder.add(ledger);
    }

    /// Stops everything and acts at the first safe point. `special`: the caller reports
    /// this stop apart from the others.
    pub(crate) fn at_safe_point(
        &mut self,
        watch: &Watch,
        special: bool,
        mut act: impl FnMut(&mut Stopped<'_, '_>) -> Result<(), Error>,
    ) -> Result<Acted, Error> {
        let process = self.process();
        let mut backoff = FIRST_BACKOFF;
        let mut too_long = 0;
        loop {
            let in_the_way = match self.tracer.stop_all()? {
                Err(NotNow(line)) => vec![line],
                Ok(mut stopped) => {
                    let maps = read_maps(process)?;
                    let judge = Judge { process, unwinder: &self.unwinder, maps: &maps };
                    let busy = judge.busy(&stopped.tasks, watch);
                    let elapsed = Duration::from_nanos(stopped.elapsed_ns());
                    match self.max_pause {
                        _ if !busy.is_empty() => {}
                        Some(most) if elapsed > most => {
                            too_long += 1;
                            stopped.release(false);
                            if too_long >= PAUSE_TRIES {
                                return Err(too_long_error(elapsed, most));
                            }
                            continue;
                        }
                        _ => {
                            let threads = stopped.tasks.len() as u32;
                            act(&mut stopped)?;
                            let pause_ns = stopped.release(special);
                            return Ok(Acted { pause_ns, threads });
                        }
                    }
                    stopped.release(false);
                    busy
                }
            };
            let now = Instant::now();
            if now >= self.deadline {
                return Err(Error::Busy(in_the_way));
            }
            std::thread::sleep(jittered(backoff).min(self.deadline - now));
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// One stop and one look, nothing else: who would be in the way now, and the pause.
    pub(crate) fn look(&mut self, watch: &Watch) -> Result<(Vec<String>, u64), Error> {
        let process = self.process();
        let stopped = match self.tracer.stop_all()? {
            Err(NotNow(line)) => return Ok((vec![line], 0)),
            Ok(stopped) => stopped,
        };
        let maps = read_maps(process)?;
        let judge = Judge { process, unwinder: &self.unwinder, maps: &maps };
        let busy = judge.busy(&stopped.tasks, watch);
        Ok((busy, stopped.release(false)))
    }
}

fn too_long_error(elapsed: Duration, most: Duration) -> Error {
    let (elapsed, most) = (elapsed.as_secs_f64() * 1e3, most.as_secs_f64() * 1e3);
    Error::Refused(format!("stopping the process takes {elapsed:.3} ms, allowed are {most:.3} ms; nothing was changed"))
}

/// Between half and all of a time, so that two appliers or a periodic target do not stay in step.
fn jittered(time: Duration) -> Duration {
    let spread = (sys::now_ns() / 64 % 512) as u32;
    time / 2 + time / 1024 * spread
}
