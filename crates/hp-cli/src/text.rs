//! How things look on a terminal: colours, quantities, dates, and text from files made harmless.
//!
//! Colours are written always and taken out by `anstream` where they do not belong: no terminal, `NO_COLOR`.

use crate::args::{Color, TalkArgs};
use anstyle::AnsiColor;
pub(crate) use anstyle::Style;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default().bold();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();

const QUIET: u8 = 1;
const VERBOSE: u8 = 2;
static TALK: AtomicU8 = AtomicU8::new(0);

/// Sets what the flags of every verb ask for.
pub(crate) fn talk(args: TalkArgs) {
    match args.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    TALK.store(if args.quiet { QUIET } else { u8::from(args.verbose) * VERBOSE }, Ordering::Relaxed);
}

/// `-q`: only errors are printed.
pub(crate) fn quiet() -> bool {
    TALK.load(Ordering::Relaxed) == QUIET
}

/// `-v`: more is printed.
pub(crate) fn verbose() -> bool {
    TALK.load(Ordering::Relaxed) == VERBOSE
}

/// Where results go, for people: standard output, or nowhere with `-q`.
pub(crate) fn out() -> Box<dyn Write> {
    if quiet() { Box::new(io::sink()) } else { Box::new(Out(anstream::stdout().lock())) }
}

/// Where results go that are not for people alone: standard output.
pub(crate) fn results() -> impl Write {
    Out(io::stdout().lock())
}

/// Standard output; its errors say so.
struct Out<W>(W);

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(unwritten)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(unwritten)
    }
}

/// An error of standard output says so, but for a reader that went away.
pub(crate) fn unwritten(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, format!("cannot write to standard output: {}", io_reason(&error))),
    }
}

/// Where reports go that are no errors: standard error, or nowhere with `-q`. What cannot be written there is lost, and
/// changes nothing of what is done.
pub(crate) fn notes() -> Box<dyn Write> {
    if quiet() { Box::new(io::sink()) } else { Box::new(Notes(anstream::stderr().lock())) }
}

struct Notes<W>(W);

impl<W: Write> Write for Notes<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Text from a file or process without control characters, which could drive the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The same, with names of C++ and Rust as their source has them.
pub(crate) fn readable(text: &str) -> String {
    hp_diff::readable(&clean(text))
}

/// `1 function`, `2 functions`.
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A pause with two or three digits: `84 µs`, `1.3 ms`.
pub(crate) fn pause(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// `2026-11-23 22:12:09 UTC`.
pub(crate) fn date(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a date in the proleptic Gregorian calendar, in years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// What the system said, without the number: `no such file or directory`.
pub(crate) fn io_reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &anyhow::Error) -> String {
    let words = |e: &(dyn std::error::Error + 'static)| match e.downcast_ref::<io::Error>() {
        Some(e) => io_reason(e),
        None => e.to_string(),
    };
    error.chain().map(words).collect::<Vec<_>>().join(": ")
}

/// Prints one JSON object on stdout. If nobody reads it, that does not change how the command ended.
pub(crate) fn print_json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    let mut out = results();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let at = |seconds| date(Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_704_067_199), "2023-12-31 23:59:59 UTC");
        assert!(!at(u64::MAX).is_empty());
    }

    #[test]
    fn pauses() {
        assert_eq!(pause(999), "999 ns");
        assert_eq!(pause(8_400), "8.4 µs");
        assert_eq!(pause(84_123), "84 µs");
        assert_eq!(pause(12_000_000), "12 ms");
        assert_eq!(pause(1_500_000_000), "1.5 s");
    }

    #[test]
    fn nothing_drives_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\n\u{9b}c"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c");
    }
}
