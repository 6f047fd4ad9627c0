//! Which processes a command is for, and what is said of each when it is done.
//!
//! A target that was changed (or would be) is reported on stdout; every other one on stderr, in one line. A reader
//! that goes away does not keep the remaining targets from being treated.

use crate::args::TargetArgs;
use crate::exit::Exit;
use crate::text::{BAD, BOLD, DIM, GOOD, clean, count, io_reason, pause, print_json};
use hp_apply::{Done, Error, HeldSignals, Measured, Outcome, Stood};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The patch that a line is about: its ID, and its name where that is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
}

impl Subject {
    fn words(&self) -> String {
        self.name.as_deref().or(self.id.as_deref()).map_or("every patch".into(), clean)
    }
}

/// Reports outcomes as they come and remembers them for the exit code and the JSON.
pub(crate) struct Reporter {
    json: bool,
    verb: Verb,
    exits: Vec<Exit>,
    entries: Vec<Value>,
    notes: Vec<String>,
    /// Why a line could not be written.
    unwritten: Option<String>,
}

/// Which command reports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Apply,
    Revert,
}

impl Reporter {
    pub(crate) fn new(verb: Verb, json: bool) -> Reporter {
        Reporter { json, verb, exits: Vec::new(), entries: Vec::new(), notes: Vec::new(), unwritten: None }
    }

    /// Takes one target's outcome.
    pub(crate) fn add(&mut self, subject: &Subject, outcome: &Outcome) {
        let exit = exit_of(&outcome.result);
        self.exits.push(exit);
        if self.json {
            self.entries.push(entry(subject, outcome));
            return;
        }
        let target = format!("{BOLD}{}{BOLD:#}", target(&outcome.comm, outcome.pid));
        let line = format!("{target}: {}", self.line(subject, outcome));
        match exit {
            Exit::Done => self.written(writeln!(crate::text::out(), "{line}")),
            _ => drop(writeln!(anstream::stderr(), "{line}")),
        }
    }

    /// What is done is done, whether somebody can read of it or not: the exit code tells.
    fn written(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            self.unwritten = Some(io_reason(&error));
        }
    }

    /// Takes the outcome of a revert of what this very command had applied.
    pub(crate) fn taken_back(&mut self, subject: &Subject, outcome: &Outcome) {
        if let Err(error) = &outcome.result {
            self.exits.push(exit_of_error(error));
        }
        if self.json {
            let mut entry = entry(subject, outcome);
            if outcome.result.is_ok() {
                entry["result"] = "taken-back".into();
            }
            self.entries.push(entry);
            return;
        }
        let what = match &outcome.result {
            Ok(_) => format!("taken back {}", subject.words()),
            Err(error) => format!("{BAD}not taken back{BAD:#}: {}", clean(&error.to_string())),
        };
        let _ = writeln!(anstream::stderr(), "{BOLD}{}{BOLD:#}: {what}", target(&outcome.comm, outcome.pid));
    }

    /// Says on stderr why what was done is not to stay.
    pub(crate) fn failed(&mut self, message: &str) {
        self.exits.push(Exit::Refused);
        self.note(message);
    }

    /// Says something on stderr that is not about one target.
    pub(crate) fn note(&mut self, message: &str) {
        self.notes.push(message.to_owned());
        if !self.json {
            let _ = writeln!(anstream::stderr(), "{}", clean(message));
        }
    }

    /// Says on stderr that there was no target.
    pub(crate) fn nothing(&mut self, message: &str) {
        self.exits.push(Exit::Nothing);
        self.notes.push(message.to_owned());
        let _ = writeln!(anstream::stderr(), "{message}");
    }

    /// Prints the JSON, if asked for, and gives the exit code.
    pub(crate) fn finish(self) -> anyhow::Result<Exit> {
        self.finish_by(None)
    }

    /// The same for a command that may be about to end by a signal: then the JSON has the exit code that a shell makes
    /// of that.
    pub(crate) fn finish_under(self, signals: &HeldSignals) -> anyhow::Result<Exit> {
        self.finish_by(signals.ends_by())
    }

    fn finish_by(mut self, signal: Option<u32>) -> anyhow::Result<Exit> {
        let exit = Exit::of_all(self.exits.iter().copied());
        if self.json {
            let entries = std::mem::take(&mut self.entries);
            let code = signal.map_or(u32::from(exit.code()), |signal| 128 + signal);
            self.written(print_json(&json!({ "exit": code, "targets": entries, "notes": self.notes })));
        }
        if let Some(why) = self.unwritten {
            let _ = writeln!(anstream::stderr(), "hp: {why}");
        }
        Ok(exit)
    }

    fn line(&self, subject: &Subject, outcome: &Outcome) -> String {
        let patch = subject.words();
        let not = if self.verb == Verb::Apply { "not applied" } else { "not reverted" };
        match &outcome.result {
            Ok(Done::Applied(m)) => format!("{GOOD}applied{GOOD:#} {patch} {}{}", cost(m), in_place(m)),
            Ok(Done::Reverted(m)) => {
                let kept = m.kept.iter().map(|why| {
                    format!("\n  {} stay mapped, unused: {}", count(m.mapped_bytes as usize, "byte"), clean(why))
                });
                kept.fold(format!("{GOOD}reverted{GOOD:#} {patch} {}", cost(m)), |text, line| text + &line)
            }
            Ok(Done::AlreadyApplied) => format!("already has {patch}"),
            Ok(Done::NotApplied) if subject.id.is_none() => "has no patch".into(),
            Ok(Done::NotApplied) => format!("does not have {patch}"),
            Ok(Done::Rehearsed(words)) => {
                let would = if self.verb == Verb::Apply { "would apply" } else { "would revert" };
                words.iter().fold(format!("{would} {patch}"), |text, line| text + "\n  " + &clean(line))
            }
            Err(error) => {
                format!("{BAD}{not}{BAD:#}: {}{}", clean(&error.to_string()), waited(error, outcome.stood))
            }
        }
    }
}

/// What a wait for nothing has cost.
fn waited(error: &Error, Stood { stops, total_ns, longest_ns }: Stood) -> String {
    match error {
        Error::Busy(_) if stops > 0 => {
            let stops = count(stops as usize, "stop");
            format!(" ({stops}, {} altogether, {} at most)", pause(total_ns), pause(longest_ns))
        }
        _ => String::new(),
    }
}

/// `nginx[1234]`, or `process 1234` if its name is not known.
pub(crate) fn target(comm: &str, pid: i32) -> String {
    if comm.is_empty() { format!("process {pid}") } else { format!("{}[{pid}]", clean(comm)) }
}

/// The command name of a process, empty if it cannot be read.
pub(crate) fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim_end().to_owned()).unwrap_or_default()
}

fn cost(m: &Measured) -> String {
    let (functions, threads) = (count(m.functions as usize, "function"), count(m.threads as usize, "thread"));
    format!("({functions}), paused {BOLD}{}{BOLD:#} {DIM}({threads}){DIM:#}", pause(m.flip_pause_ns))
}

/// Which patches went when this one came, and what of them stays.
fn in_place(m: &Measured) -> String {
    let mut text = String::new();
    if !m.replaced.is_empty() {
        text = format!(", in place of {}", clean(&m.replaced.join(", ")));
    }
    for why in &m.kept {
        text += &format!("\n  memory of an older patch stays mapped, unused: {}", clean(why));
    }
    for line in &m.left {
        text += &format!("\n  goes on in the old code: {}", clean(line));
    }
    text
}

fn exit_of(result: &Result<Done, Error>) -> Exit {
    match result {
        Ok(Done::Applied(_) | Done::Reverted(_) | Done::Rehearsed(_)) => Exit::Done,
        Ok(Done::AlreadyApplied | Done::NotApplied) => Exit::Nothing,
        Err(error) => exit_of_error(error),
    }
}

/// The exit code that an error of the applier stands for.
pub(crate) fn exit_of_error(error: &Error) -> Exit {
    match error {
        Error::Refused(_) => Exit::Refused,
        Error::Unusable(_) => Exit::Unusable,
        Error::Busy(_) => Exit::Busy,
    }
}

/// One target's outcome in JSON.
pub(crate) fn entry(subject: &Subject, outcome: &Outcome) -> Value {
    let measured = |m: &Measured| {
        json!({
            "flip_pause_ns": m.flip_pause_ns,
            "longest_other_pause_ns": m.longest_other_pause_ns,
            "stops": m.stops,
            "threads": m.threads,
            "functions": m.functions,
            "mapped_bytes": m.mapped_bytes,
            "kept": m.kept,
            "replaced": m.replaced,
            "left": m.left.iter().map(|line| &**line).collect::<Vec<_>>(),
        })
    };
    let (result, detail) = match &outcome.result {
        Ok(Done::Applied(m)) => ("applied", json!({ "measured": measured(m) })),
        Ok(Done::Reverted(m)) => ("reverted", json!({ "measured": measured(m) })),
        Ok(Done::AlreadyApplied) => ("already-applied", json!({})),
        Ok(Done::NotApplied) => ("not-applied", json!({})),
        Ok(Done::Rehearsed(words)) => ("rehearsed", json!({ "plan": words })),
        Err(Error::Refused(message)) => ("refused", json!({ "message": message })),
        Err(Error::Unusable(message)) => ("unusable", json!({ "message": message })),
        Err(Error::Busy(frames)) => {
            let frames: Vec<&str> = frames.iter().map(|frame| &**frame).collect();
            ("busy", json!({ "message": "no safe point within the timeout", "frames": frames }))
        }
    };
    let mut entry = json!({
        "pid": outcome.pid,
        "comm": outcome.comm,
        "patch": { "id": subject.id, "name": subject.name },
        "result": result,
        "stood": {
            "stops": outcome.stood.stops,
            "total_ns": outcome.stood.total_ns,
            "longest_ns": outcome.stood.longest_ns,
        },
    });
    if let (Value::Object(entry), Value::Object(detail)) = (&mut entry, detail) {
        entry.extend(detail);
    }
    entry
}

/// The processes that were named; `None` where each patch finds its own (`--all`, `--cgroup`).
pub(crate) fn named(args: &TargetArgs) -> Option<Vec<i32>> {
    if args.all || args.cgroup.is_some() {
        return None;
    }
    let pids: BTreeSet<i32> = match &args.exe {
        Some(path) => running(path).into_iter().collect(),
        None => args.pid.iter().copied().collect(),
    };
    Some(pids.into_iter().collect())
}

/// Those of these processes that are in the control group, if one was named.
pub(crate) fn in_group(args: &TargetArgs, mut pids: Vec<i32>) -> anyhow::Result<Vec<i32>> {
    if let Some(group) = &args.cgroup {
        let members = crate::cgroup::members(group)?;
        pids.retain(|pid| members.contains(pid));
    }
    Ok(pids)
}

/// Processes whose program is `path`, also if the file has been replaced or removed since they were started.
fn running(path: &Path) -> Vec<i32> {
    let wanted = path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| program(*pid).is_some_and(|program| program == wanted)).collect()
}

/// The path of a process's program, as `/proc/PID/exe` has it (proc(5)).
fn program(pid: i32) -> Option<PathBuf> {
    let link = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let bytes = link.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    Some(PathBuf::from(OsStr::from_bytes(bytes)))
}

/// What to add to "no process …" if there may be some that this user cannot see.
pub(crate) fn unseen() -> &'static str {
    use std::os::unix::fs::MetadataExt;
    let root = std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    if root { "" } else { " that you may look at; run hp as root to see all" }
}
