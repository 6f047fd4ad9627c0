//! `hp watch`: processes that start later are patched too, for as long as they run the old build.
//!
//! The kernel tells of each program that starts, and of changes of the folder. A program is looked at several times
//! in its first seconds, because its libraries are mapped and bound little by little; what is refused at first
//! may fit a moment later, so only the last refusal is reported. All processes are looked at when the watch begins, when
//! the folder changes, when the kernel says that it has lost news, after a patch was applied (its process may have
//! forked just before), and at long intervals (for libraries that are opened late, of which nobody tells).
//!
//! A process that runs the new build does not map the old one: nothing is done to it. Nothing is reverted when a file
//! goes away, or when the watch ends. Each event is one JSON line on standard output.

mod folder;
mod kernel;

use crate::args::WatchArgs;
use crate::exit::Exit;
use crate::health::lives;
use crate::targets::{Subject, entry};
use crate::text::{clean, io_reason};
use anyhow::anyhow;
use folder::{Folder, News};
use hp_apply::{Done, Error, Options, Outcome};
use kernel::Kernel;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

/// When a program that has just started is looked at.
const LOOKS: [Duration; 4] =
    [Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(400), Duration::from_secs(2)];
/// Between two looks at all processes where the kernel tells of programs that start.
const RARE: Duration = Duration::from_secs(60);
/// Where it does not.
const OFTEN: Duration = Duration::from_secs(5);
/// From a patch that was applied to the look at all processes.
const SOON: Duration = Duration::from_millis(100);

/// Watches until it is ended by a signal, or nobody reads what it says.
pub(crate) fn run(args: &WatchArgs) -> anyhow::Result<Exit> {
    let name = clean(&args.folder.display().to_string());
    let failed = |error: std::io::Error| anyhow!("cannot watch {name}: {}", io_reason(&error));
    // Listening before looking: nothing is missed in between.
    let mut kernel = Kernel::new(&args.folder).map_err(failed)?;
    let told = match args.poll {
        Some(_) => Err("--poll was given".to_owned()),
        None => kernel.hear_programs(),
    };
    let interval = args.poll.unwrap_or(if told.is_ok() { RARE } else { OFTEN });
    say(json!({
        "event": "watching", "folder": name, "programs": if told.is_ok() { "kernel" } else { "poll" },
        "poll_seconds": interval.as_secs_f64(), "message": told.err(),
    }))?;
    let options = Options { timeout: args.timeout, max_pause: args.max_pause, dry_run: false, relaxed: false };
    let mut watch = Watch { folder: Folder::default(), options, known: BTreeMap::new(), due: BTreeSet::new() };
    let mut news = watch.folder.read(&args.folder, &args.trust).map_err(failed)?;
    let mut next_round = Instant::now();
    loop {
        for item in news.drain(..) {
            say(file_event(item))?;
        }
        let now = Instant::now();
        if now >= next_round {
            next_round = now + interval;
            watch.everyone()?;
        }
        if watch.due_ones()? {
            next_round = next_round.min(Instant::now() + SOON);
        }
        let next = watch.due.first().map_or(next_round, |(when, ..)| next_round.min(*when));
        let heard = kernel.wait(next.saturating_duration_since(Instant::now()).min(interval))?;
        let now = Instant::now();
        for pid in heard.started {
            watch.known.remove(&pid);
            watch.due.insert((now + LOOKS[0], pid, 0));
        }
        if heard.folder {
            news = watch.folder.read(&args.folder, &args.trust).map_err(failed)?;
            next_round = now;
        } else if heard.lost {
            next_round = now;
        }
    }
}

struct Watch {
    folder: Folder,
    options: Options,
    known: BTreeMap<i32, Known>,
    /// When to look at which process, and the how manieth look of its first seconds that is.
    due: BTreeSet<(Instant, i32, usize)>,
}

/// A process of which something has been said.
struct Known {
    /// Tells it from a later process, or program, with the same number.
    identity: String,
    /// Patches of which nothing more is to be said.
    settled: BTreeSet<String>,
}

impl Watch {
    fn everyone(&mut self) -> anyhow::Result<()> {
        let pids = hp_apply::all_processes()?;
        self.known.retain(|pid, _| pids.binary_search(pid).is_ok());
        for pid in pids {
            self.look(pid, true)?;
        }
        Ok(())
    }

    /// Looks at those whose time has come. True if a patch was applied.
    fn due_ones(&mut self) -> anyhow::Result<bool> {
        let mut any = false;
        while let Some(&(when, pid, number)) = self.due.first() {
            if when > Instant::now() {
                break;
            }
            self.due.pop_first();
            let next = LOOKS.get(number + 1);
            any |= self.look(pid, next.is_none())?;
            if let Some(&next) = next.filter(|_| lives(pid)) {
                self.due.insert((when - LOOKS[number] + next, pid, number + 1));
            }
        }
        Ok(any)
    }

    /// Applies to a process what it lacks. `last`: a refusal is final.
    fn look(&mut self, pid: i32, last: bool) -> anyhow::Result<bool> {
        let Some(identity) = identity(pid) else { return Ok(false) };
        let settled = match self.known.get(&pid) {
            Some(known) if known.identity == identity => known.settled.clone(),
            _ => BTreeSet::new(),
        };
        let builds = match self.folder.patches.iter().all(|file| settled.contains(&file.id)) {
            true => return Ok(false),
            false => hp_apply::builds_of(pid).unwrap_or_default(),
        };
        let mut now_settled = settled.clone();
        let mut any = false;
        for file in &self.folder.patches {
            if settled.contains(&file.id) || !builds.contains(&file.patch.base.build_id) {
                continue;
            }
            // Who ends the watch now does not leave half an apply.
            let signals = hp_apply::hold_signals();
            let outcome = hp_apply::apply_patch(pid, &file.patch, &file.id, &self.options);
            signals.let_come();
            any |= matches!(outcome.result, Ok(Done::Applied(_)));
            let wait = match &outcome.result {
                Ok(_) => false,
                Err(_) if !lives(pid) => return Ok(any),
                // Tried again in the next round.
                Err(Error::Busy(_)) => true,
                Err(_) => !last,
            };
            if !wait {
                now_settled.insert(file.id.clone());
            }
            if !wait || last {
                let subject = Subject { id: Some(file.id.clone()), name: Some(file.patch.name.clone()) };
                say(process_event(&subject, &outcome))?;
            }
        }
        self.known.insert(pid, Known { identity, settled: now_settled });
        Ok(any)
    }
}

/// Start time, and addresses that differ from program to program: of code and of the stack (proc(5), `stat`).
fn identity(pid: i32) -> Option<String> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&stat).into_owned();
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let kept = [19, 23, 25].map(|index| fields.get(index).copied().unwrap_or(""));
    (!matches!(*fields.first()?, "Z" | "X")).then(|| kept.join(" "))
}

fn process_event(subject: &Subject, outcome: &Outcome) -> Value {
    let mut event = entry(subject, outcome);
    event["event"] = "process".into();
    event
}

fn file_event(news: News) -> Value {
    json!({ "event": news.event, "file": news.file, "id": news.id, "message": news.message })
}

/// Prints one line, with the time.
fn say(mut event: Value) -> std::io::Result<()> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    event["time"] = now.as_secs_f64().into();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{event}")?;
    out.flush()
}
