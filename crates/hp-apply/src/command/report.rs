//! What is said of each target: on stdout of one that was changed or would be, on stderr of every other.
//!
//! Text of files and processes is made harmless before it comes here.

use super::{Exit, Start, clean};
use crate::prelude::*;
use crate::sys::Errno;
use crate::{Done, Error, Measured, Outcome, Stood, sys};
use core::cell::Cell;

/// Escape sequences for a terminal (ECMA-48, SGR); empty elsewhere.
#[derive(Clone, Copy, Default)]
struct Style {
    bold: &'static str,
    good: &'static str,
    bad: &'static str,
    plain: &'static str,
}

const COLOURS: Style = Style { bold: "\x1b[1m", good: "\x1b[1m\x1b[32m", bad: "\x1b[1m\x1b[31m", plain: "\x1b[0m" };

/// The patch that a line is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
}

impl Subject {
    fn words(&self) -> String {
        self.name.as_deref().or(self.id.as_deref()).map_or("every patch".to_owned(), |text| clean(text.as_bytes()))
    }
}

/// Says what happens and remembers how it ended.
pub(super) struct Report {
    out: Style,
    err: Style,
    exits: Vec<Exit>,
    /// Why a line could not be written.
    unwritten: Cell<Option<Errno>>,
}

impl Report {
    pub(super) fn new(start: &Start<'_>) -> Report {
        let plain = start.variable("NO_COLOR").is_some_and(|value| !value.is_empty())
            || start.variable("TERM").is_none_or(|term| term == b"dumb");
        let style = |fd| if !plain && sys::is_terminal(fd) { COLOURS } else { Style::default() };
        Report { out: style(1), err: style(2), exits: Vec::new(), unwritten: Cell::new(None) }
    }

    /// Says, if it is so, that not all could be written; whether that was so.
    pub(super) fn was_cut(&self) -> bool {
        let why = self.unwritten.get();
        if let Some(error) = why {
            self.error(&format!("hp-apply: cannot write to standard output: {}", error.reason()));
        }
        why.is_some()
    }

    /// On stdout.
    pub(super) fn line(&self, text: &str) {
        if let Err(error) = sys::write_all(1, format!("{text}\n").as_bytes()) {
            self.unwritten.set(Some(error));
        }
    }

    /// On stderr.
    pub(super) fn error(&self, text: &str) {
        let _ = sys::write_all(2, format!("{text}\n").as_bytes());
    }

    /// How something ended that is said elsewhere.
    pub(super) fn ended(&mut self, exit: Exit) {
        self.exits.push(exit);
    }

    /// There was no target.
    pub(super) fn nothing(&mut self, text: &str) {
        self.exits.push(Exit::Nothing);
        self.error(text);
    }

    /// The exit code so far.
    pub(super) fn exit(&self) -> Exit {
        Exit::of_all(&self.exits)
    }

    /// Takes one target's outcome.
    pub(super) fn add(&mut self, verb: Verb, subject: &Subject, outcome: &Outcome) {
        let exit = exit_of(&outcome.result);
        self.exits.push(exit);
        let style = if exit == Exit::Done { self.out } else { self.err };
        let words = words(style, verb, subject, outcome);
        let line = format!("{}{}{}: {words}", style.bold, target(&outcome.comm, outcome.pid), style.plain);
        if exit == Exit::Done { self.line(&line) } else { self.error(&line) }
    }

    /// Takes the outcome of a revert of what this very command had applied.
    pub(super) fn taken_back(&mut self, subject: &Subject, outcome: &Outcome) {
        let what = match &outcome.result {
            Ok(_) => format!("taken back {}", subject.words()),
            Err(error) => {
                self.exits.push(Exit::of_error(error));
                format!("not taken back: {}", clean(error.to_string().as_bytes()))
            }
        };
        self.error(&format!("{}: {what}", target(&outcome.comm, outcome.pid)));
    }
}

/// Which command reports.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Apply,
    Revert,
}

fn exit_of(result: &Result<Done, Error>) -> Exit {
    match result {
        Ok(Done::Applied(_) | Done::Reverted(_) | Done::Rehearsed(_)) => Exit::Done,
        Ok(Done::AlreadyApplied | Done::NotApplied) => Exit::Nothing,
        Err(error) => Exit::of_error(error),
    }
}

fn words(style: Style, verb: Verb, subject: &Subject, outcome: &Outcome) -> String {
    let Style { good, bad, plain, .. } = style;
    let patch = subject.words();
    match (&outcome.result, verb) {
        (Ok(Done::Applied(m)), _) => format!("{good}applied{plain} {patch} {}{}", cost(style, m), in_place(m)),
        (Ok(Done::Reverted(m)), _) => {
            let mut text = format!("{good}reverted{plain} {patch} {}", cost(style, m));
            for why in &m.kept {
                text +=
                    &format!("\n  {} stay mapped, unused: {}", count(m.mapped_bytes, "byte"), clean(why.as_bytes()));
            }
            text
        }
        (Ok(Done::AlreadyApplied), _) => format!("already has {patch}"),
        (Ok(Done::NotApplied), _) if subject.id.is_none() => "has no patch".to_owned(),
        (Ok(Done::NotApplied), _) => format!("does not have {patch}"),
        (Ok(Done::Rehearsed(lines)), verb) => {
            let would = if verb == Verb::Apply { "would apply" } else { "would revert" };
            lines.iter().fold(format!("{would} {patch}"), |text, line| text + "\n  " + &clean(line.as_bytes()))
        }
        (Err(error), verb) => {
            let not = if verb == Verb::Apply { "not applied" } else { "not reverted" };
            format!("{bad}{not}{plain}: {}{}", clean(error.to_string().as_bytes()), waited(error, outcome.stood))
        }
    }
}

/// What a wait for nothing has cost.
fn waited(error: &Error, Stood { stops, total_ns, longest_ns }: Stood) -> String {
    match error {
        Error::Busy(_) if stops > 0 => {
            let stops = count(u64::from(stops), "stop");
            format!(" ({stops}, {} altogether, {} at most)", pause(total_ns), pause(longest_ns))
        }
        _ => String::new(),
    }
}

/// `nginx[1234]`, or `process 1234` if its name is not known.
pub(super) fn target(comm: &str, pid: i32) -> String {
    if comm.is_empty() { format!("process {pid}") } else { format!("{}[{pid}]", clean(comm.as_bytes())) }
}

/// `1 function`, `2 functions`.
fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn cost(style: Style, m: &Measured) -> String {
    let (functions, threads) = (count(u64::from(m.functions), "function"), count(u64::from(m.threads), "thread"));
    format!("({functions}), paused {}{}{} ({threads})", style.bold, pause(m.flip_pause_ns), style.plain)
}

fn in_place(m: &Measured) -> String {
    let mut text = String::new();
    if !m.replaced.is_empty() {
        text = format!(", in place of {}", clean(m.replaced.join(", ").as_bytes()));
    }
    for why in &m.kept {
        text += &format!("\n  memory of an older patch stays mapped, unused: {}", clean(why.as_bytes()));
    }
    for line in &m.left {
        text += &format!("\n  goes on in the old code: {}", clean(line.as_bytes()));
    }
    text
}

/// A pause with two or three digits: `84 µs`, `1.3 ms`.
fn pause(ns: u64) -> String {
    let (unit_ns, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let tenths = ns.saturating_add(unit_ns / 20) / (unit_ns / 10);
    match tenths {
        0..100 => format!("{}.{} {unit}", tenths / 10, tenths % 10),
        _ => format!("{} {unit}", ns.saturating_add(unit_ns / 2) / unit_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses() {
        assert_eq!(pause(999), "999 ns");
        assert_eq!(pause(8_400), "8.4 µs");
        assert_eq!(pause(9_949), "9.9 µs");
        assert_eq!(pause(84_123), "84 µs");
        assert_eq!(pause(12_000_000), "12 ms");
        assert_eq!(pause(1_500_000_000), "1.5 s");
    }

    #[test]
    fn lines_say_what_happened() {
        let fix = Subject { id: Some("ab".to_owned()), name: Some("fix".to_owned()) };
        let stood = Stood { stops: 3, total_ns: 1_500_000, longest_ns: 900_000 };
        let line = |verb, result: &Result<Done, Error>| {
            let outcome = Outcome { stood, ..Outcome::untouched(0, result.clone()) };
            words(Style::default(), verb, &fix, &outcome)
        };
        let measured = Measured { flip_pause_ns: 84_000, threads: 2, functions: 1, ..Measured::default() };
        assert_eq!(
            line(Verb::Apply, &Ok(Done::Applied(measured))),
            "applied fix (1 function), paused 84 µs (2 threads)"
        );
        assert_eq!(line(Verb::Revert, &Ok(Done::NotApplied)), "does not have fix");
        let refused = Err(Error::Refused("a\x1bb".to_owned()));
        assert_eq!(line(Verb::Revert, &refused), "not reverted: a\u{fffd}b");
        let busy = Err(Error::Busy(vec!["thread 7 in f".to_owned().into()]));
        let words =
            "not applied: no safe point within the timeout: thread 7 in f (3 stops, 1.5 ms altogether, 900 µs at most)";
        assert_eq!(line(Verb::Apply, &busy), words);
    }
}
