//! The command line. Words are bytes: a path need not be text.

use crate::prelude::*;
use core::time::Duration;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) const HELP: &str = "\
Patches running programs, and takes patches out again. Needs nothing but /proc.

hp-apply apply PATCH... (--pid N... | --all | --exe PATH) [--each] [--relaxed] [--trust FILE] [HOW]
hp-apply revert (ID | PATCH | --everything) (--pid N... | --all | --exe PATH) [HOW]
hp-apply status [--pid N...]
  HOW: --dry-run  --timeout TIME (10s)  --max-pause TIME

Exit codes:
  0  done, for at least one target
  1  refused: nothing was changed
  2  bad usage, unreadable or malformed input, missing rights
  3  nothing to do
  4  no safe point within the timeout; the target is unchanged";

pub(super) const BUNDLE_HELP: &str = "\
Applies the patch that it carries to running programs. Needs nothing but /proc.

(--pid N... | --all | --exe PATH) [--each] [--relaxed] [--trust FILE] [HOW]     apply it
--revert (--pid N... | --all | --exe PATH) [HOW]                    take it out again
--status [--pid N...]                                               show which processes are patched
  HOW: --dry-run  --timeout TIME (10s)  --max-pause TIME

Exit codes:
  0  done, for at least one target
  1  refused: nothing was changed
  2  bad usage, unreadable or malformed input, missing rights
  3  nothing to do
  4  no safe point within the timeout; the target is unchanged";

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Apply,
    Revert,
    Status,
    Help,
    Version,
}

/// A command line, parsed.
#[derive(Debug)]
pub(super) struct Args<'a> {
    pub(super) what: What,
    /// Patches, or what names one.
    pub(super) words: Vec<&'a [u8]>,
    pub(super) pids: Vec<i32>,
    pub(super) all: bool,
    pub(super) exe: Option<&'a [u8]>,
    pub(super) everything: bool,
    pub(super) each: bool,
    pub(super) dry_run: bool,
    pub(super) relaxed: bool,
    pub(super) timeout: Duration,
    pub(super) max_pause: Option<Duration>,
    pub(super) trust: Vec<&'a [u8]>,
}

/// Parses a command line, of a bundle or with a verb.
pub(super) fn parse<'a>(words: &[&'a [u8]], is_bundle: bool) -> Result<Args<'a>, String> {
    let mut args = Args {
        what: What::Apply,
        words: Vec::new(),
        pids: Vec::new(),
        all: false,
        exe: None,
        everything: false,
        each: false,
        dry_run: false,
        relaxed: false,
        timeout: DEFAULT_TIMEOUT,
        max_pause: None,
        trust: Vec::new(),
    };
    let mut rest = words.iter().copied();
    if !is_bundle {
        args.what = match rest.next() {
            Some(b"apply") => What::Apply,
            Some(b"revert") => What::Revert,
            Some(b"status") => What::Status,
            Some(b"--help" | b"-h" | b"help") => What::Help,
            Some(b"--version" | b"-V") => What::Version,
            Some(word) => return Err(format!("there is no verb {}", super::clean(word))),
            None => return Err("a verb is missing: apply, revert or status".to_owned()),
        };
    }
    let mut last_was_pid = false;
    while let Some(word) = rest.next() {
        let takes_pid = core::mem::take(&mut last_was_pid);
        if word.starts_with(b"-") && word.len() > 1 {
            last_was_pid = args.option(word, &mut rest, is_bundle)?;
        } else if takes_pid && word.iter().all(|byte| byte.is_ascii_digit() || *byte == b',') {
            args.add_pids(word)?;
            last_was_pid = true;
        } else {
            args.words.push(word);
        }
    }
    args.check(is_bundle)?;
    Ok(args)
}

impl<'a> Args<'a> {
    /// One option with its value; true if further process numbers may follow.
    fn option(
        &mut self,
        word: &'a [u8],
        rest: &mut impl Iterator<Item = &'a [u8]>,
        is_bundle: bool,
    ) -> Result<bool, String> {
        let split = word.iter().position(|&byte| byte == b'=');
        let (name, given) = match split {
            Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..)),
            None => (word, None),
        };
        let shown = super::clean(name);
        let mut value = || given.or_else(|| rest.next()).ok_or_else(|| format!("{shown} needs a value"));
        match name {
            b"--pid" => {
                let value = value()?;
                self.add_pids(value)?;
                return Ok(true);
            }
            b"--exe" => self.exe = Some(value()?),
            b"--trust" => self.trust.push(value()?),
            b"--timeout" => self.timeout = duration(value()?)?,
            b"--max-pause" => self.max_pause = Some(duration(value()?)?),
            _ if given.is_some() => return Err(format!("{shown} takes no value, or is unknown")),
            b"--all" => self.all = true,
            b"--each" => self.each = true,
            b"--everything" => self.everything = true,
            b"--dry-run" => self.dry_run = true,
            b"--relaxed" => self.relaxed = true,
            b"--revert" if is_bundle => self.what = What::Revert,
            b"--status" if is_bundle => self.what = What::Status,
            b"--help" | b"-h" => self.what = What::Help,
            b"--version" | b"-V" => self.what = What::Version,
            _ => return Err(format!("there is no option {shown}")),
        }
        Ok(false)
    }

    fn add_pids(&mut self, value: &[u8]) -> Result<(), String> {
        for number in value.split(|&byte| byte == b',') {
            let pid = core::str::from_utf8(number).ok().and_then(|number| number.parse().ok()).filter(|&pid| pid > 0);
            self.pids.push(pid.ok_or_else(|| format!("{} is no process number", super::clean(number)))?);
        }
        Ok(())
    }

    fn check(&self, is_bundle: bool) -> Result<(), String> {
        let ways = usize::from(!self.pids.is_empty()) + usize::from(self.all) + usize::from(self.exe.is_some());
        let wrong = match self.what {
            What::Help | What::Version => None,
            What::Status if self.all || self.exe.is_some() || !self.words.is_empty() => {
                Some("status takes --pid and nothing else")
            }
            What::Status => None,
            _ if ways == 0 => Some("which processes? --pid N, --all or --exe PATH"),
            _ if ways > 1 => Some("only one of --pid, --all and --exe can be given"),
            What::Revert if self.relaxed => Some("--relaxed belongs to apply"),
            _ if is_bundle && (!self.words.is_empty() || self.everything) => Some("a bundle is for its own patch only"),
            _ if is_bundle => None,
            What::Apply if self.words.is_empty() => Some("a patch file is missing"),
            What::Apply if self.everything => Some("--everything belongs to revert"),
            What::Revert if (self.words.len() == 1) == self.everything || self.words.len() > 1 => {
                Some("which patch? one ID, one patch file, or --everything")
            }
            _ => None,
        };
        wrong.map_or(Ok(()), |wrong| Err(wrong.to_owned()))
    }
}

/// `10s`, `5ms`, `500us`, `1.5s`.
fn duration(word: &[u8]) -> Result<Duration, String> {
    let wrong = || format!("{}: give a number and a unit: 10s, 5ms or 500us", super::clean(word));
    parse_duration(word).ok_or_else(wrong)
}

fn parse_duration(word: &[u8]) -> Option<Duration> {
    let text = core::str::from_utf8(word).ok()?;
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit_ns: u64 = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let mut ns = whole.parse::<u64>().ok()?.checked_mul(unit_ns)?;
    let mut place_ns = unit_ns;
    for digit in fraction.chars() {
        place_ns /= 10;
        ns = ns.checked_add(u64::from(digit.to_digit(10)?) * place_ns)?;
    }
    Some(Duration::from_nanos(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&[u8]> {
        text.split(' ').map(str::as_bytes).collect()
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration(b"10s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration(b"5ms"), Some(Duration::from_millis(5)));
        assert_eq!(parse_duration(b"500us"), Some(Duration::from_micros(500)));
        assert_eq!(parse_duration(b"1.5s"), Some(Duration::from_millis(1500)));
        for wrong in ["", "10", "s", "-1s", "1.2.3s", "1h30", "99999999999999999999999s", "µ"] {
            assert_eq!(parse_duration(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn verbs_targets_and_limits() {
        let all = words("apply a.hpatch --pid 1,2 3 --timeout=1s b.hpatch --max-pause 5ms");
        let args = parse(&all, false).unwrap();
        assert_eq!((args.what, args.pids, args.words), (What::Apply, vec![1, 2, 3], words("a.hpatch b.hpatch")));
        assert_eq!((args.timeout, args.max_pause), (Duration::from_secs(1), Some(Duration::from_millis(5))));
        assert!(parse(&words("revert --everything --all"), false).unwrap().everything);
        assert_eq!(parse(&words("status"), false).unwrap().what, What::Status);
        assert_eq!(parse(&words("--revert --all --dry-run"), true).unwrap().what, What::Revert);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for wrong in [
            "",
            "fly",
            "apply --all",
            "apply x",
            "apply x --pid 0",
            "apply x --pid",
            "apply x --all --pid 1",
            "apply x --all --everything",
            "revert --all",
            "revert a b --all",
            "revert a --everything --all",
            "status x",
            "apply x --all --dry-run=yes",
            "apply x --all --frobnicate",
            "apply x --all --timeout 5",
        ] {
            assert!(parse(&words(wrong), false).is_err(), "{wrong}");
        }
        for wrong in ["x --all", "--revert", "--all --everything", "--revert --all --relaxed"] {
            assert!(parse(&words(wrong), true).is_err(), "{wrong}");
        }
    }
}
