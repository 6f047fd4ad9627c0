//! The command `hp-apply`, as far as it is not the start of a program: arguments in, one call of the engine for each
//! target, lines and an exit code out.
//!
//! The verbs, their flags, words and exit codes are those of `hp`, but for what needs a host around it (JSON, health
//! commands). The same binary with a patch behind it is a bundle, which needs no verb.

mod apply;
mod args;
mod report;
mod revert;
mod status;
mod trust;

use crate::bundle::bundled;
use crate::failure::{Failure, unusable};
use crate::prelude::*;
use crate::small::sort_by_key;
use crate::sys::{self, Errno};
use crate::{Error, Options};
use args::{Args, What};
use core::fmt;
use report::Report;

/// Nobody makes a patch larger than this; a file that is, is something else.
const MAX_PATCH: usize = 1 << 30;

/// Why nothing is done to the targets that are left.
const INTERRUPTED: &str = "interrupted; the other processes are as they were";

/// How a command ended, and the number that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Refused = 1,
    Unusable = 2,
    Nothing = 3,
    Busy = 4,
}

impl Exit {
    fn of_error(error: &Error) -> Exit {
        match error {
            Error::Refused(_) => Exit::Refused,
            Error::Unusable(_) => Exit::Unusable,
            Error::Busy(_) => Exit::Busy,
        }
    }

    /// The worst, in the order 2, 1, 4; else done if one was.
    fn of_all(exits: &[Exit]) -> Exit {
        let order = [Exit::Unusable, Exit::Refused, Exit::Busy, Exit::Done];
        order.into_iter().find(|exit| exits.contains(exit)).unwrap_or(Exit::Nothing)
    }
}

/// What a program is started with.
pub(crate) struct Start<'a> {
    pub(crate) arguments: Vec<&'a [u8]>,
    pub(crate) environment: Vec<&'a [u8]>,
}

impl Start<'_> {
    fn variable(&self, name: &str) -> Option<&[u8]> {
        let value = |entry: &&'_ [u8]| entry.starts_with(name.as_bytes()) && entry.get(name.len()) == Some(&b'=');
        self.environment.iter().copied().find(|entry| value(entry)).and_then(|entry| entry.get(name.len() + 1..))
    }
}

/// A patch and what it is called in messages.
struct PatchFile {
    name: String,
    id: String,
    patch: hp_pack::Patch,
}

impl PatchFile {
    fn parse(name: String, bytes: &[u8]) -> Result<PatchFile, Failure> {
        match hp_pack::read(bytes) {
            Ok(patch) => Ok(PatchFile { name, id: hp_pack::id(bytes), patch }),
            Err(error) => Err(unusable(format_args!("{name}: {error}"))),
        }
    }
}

/// Text that may hold anything, without control characters, which could drive a terminal.
fn clean(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn read_patch_bytes(path: &[u8]) -> Result<Vec<u8>, Failure> {
    let failed = |why: &dyn fmt::Display| unusable(format_args!("cannot read the patch {}: {why}", clean(path)));
    match sys::read_file_up_to(path, MAX_PATCH) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(failed(&"it is larger than 1 GiB; is it a patch?")),
        Err(error) => Err(failed(&error.reason())),
    }
}

/// Does what the arguments say; the exit code.
pub(crate) fn run(start: &Start<'_>) -> u8 {
    let mut report = Report::new(start);
    let result = own_patch().and_then(|patch| carry_out(start, patch, &mut report));
    let (exit, changes) = result.unwrap_or_else(|error| {
        report.error(&format!("hp-apply: {error}"));
        (Exit::of_error(&error), true)
    });
    // What is done is done, whether somebody can read of it or not.
    let lost = report.was_cut() && !changes;
    (if lost { Exit::Unusable } else { exit }) as u8
}

/// The patch behind this very program, if it is a bundle.
fn own_patch() -> Result<Option<Vec<u8>>, Failure> {
    match sys::read_file_up_to(b"/proc/self/exe", MAX_PATCH + (1 << 20)) {
        Ok(file) => Ok(file.as_deref().and_then(bundled).map(<[u8]>::to_vec)),
        // Every verb needs it, so this is the place to say so.
        Err(Errno::ENOENT) => Err(unusable(format_args!("/proc is not mounted here; processes cannot be found"))),
        Err(error) => Err(unusable(format_args!("cannot read /proc/self/exe: {error}"))),
    }
}

/// How it ended, and whether it was there to change something.
fn carry_out(start: &Start<'_>, bundled: Option<Vec<u8>>, report: &mut Report) -> Result<(Exit, bool), Failure> {
    let args = match args::parse(start.arguments.get(1..).unwrap_or_default(), bundled.is_some()) {
        Ok(args) => args,
        Err(why) => return Err(unusable(format_args!("{why}; --help shows what can be asked"))),
    };
    match args.what {
        What::Help => report.line(if bundled.is_some() { args::BUNDLE_HELP } else { args::HELP }),
        What::Version => report.line(concat!("hp-apply ", env!("CARGO_PKG_VERSION"))),
        What::Status => return status::run(&args, report).map(|exit| (exit, false)),
        What::Revert => return revert::run(&args, bundled, report).map(|exit| (exit, true)),
        What::Apply => {
            let patches = trust::read_patches(start, &args, bundled)?;
            return apply::run(&args, &patches, report).map(|exit| (exit, true));
        }
    }
    Ok((Exit::Done, false))
}

impl Args<'_> {
    fn options(&self) -> Options {
        Options { timeout: self.timeout, max_pause: self.max_pause, dry_run: self.dry_run, relaxed: self.relaxed }
    }

    /// The processes that were named; `None` for `--all`.
    fn named(&self) -> Option<Vec<i32>> {
        match self.exe {
            _ if self.all => None,
            Some(path) => Some(running(path)),
            None => {
                let mut pids = self.pids.clone();
                sort_by_key(&mut pids, |pid| *pid);
                pids.dedup();
                Some(pids)
            }
        }
    }
}

/// Processes whose program is `path`, also if the file has been replaced or removed since they were started.
fn running(path: &[u8]) -> Vec<i32> {
    let wanted = sys::File::open(path).and_then(|file| file.path()).unwrap_or_else(|_| absolute(path));
    let program = |pid: &i32| {
        let link = sys::read_link(&format!("/proc/{pid}/exe")).unwrap_or_default();
        link.strip_suffix(b" (deleted)").unwrap_or(&link) == wanted
    };
    let pids = crate::process::all_pids().unwrap_or_default();
    pids.into_iter().filter(program).collect()
}

/// A path from the root, not looked up.
fn absolute(path: &[u8]) -> Vec<u8> {
    if path.starts_with(b"/") {
        return path.to_vec();
    }
    let folder = sys::read_link("/proc/self/cwd").unwrap_or_default();
    [folder.as_slice(), b"/", path].concat()
}

/// Whether a process runs, as far as `/proc` tells.
fn lives(pid: i32) -> bool {
    !matches!(crate::process::thread_state(pid, pid), None | Some('Z' | 'X'))
}

/// What to add to "no process …" if there may be some that this user cannot see.
fn unseen() -> &'static str {
    if sys::effective_user_id() == 0 { "" } else { " that you may look at; run it as root to see all" }
}

fn no_process_of(path: &[u8]) -> String {
    format!("no process runs {}{}", clean(path), unseen())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_wins() {
        assert_eq!(Exit::of_all(&[]), Exit::Nothing);
        assert_eq!(Exit::of_all(&[Exit::Nothing, Exit::Done]), Exit::Done);
        assert_eq!(Exit::of_all(&[Exit::Done, Exit::Busy]), Exit::Busy);
        assert_eq!(Exit::of_all(&[Exit::Refused, Exit::Busy]), Exit::Refused);
        assert_eq!(Exit::of_all(&[Exit::Refused, Exit::Unusable]), Exit::Unusable);
    }

    #[test]
    fn exit_codes_of_a_whole_run() {
        let code = |words: &str| {
            let arguments = core::iter::once(&b"hp-apply"[..]).chain(words.split(' ').map(str::as_bytes)).collect();
            run(&Start { arguments, environment: vec![b"HOME=/nowhere"] })
        };
        assert_eq!(code("--version"), 0);
        assert_eq!(code("fly"), 2);
        assert_eq!(code("status --pid 1999999999"), 2);
        assert_eq!(code("revert --everything --pid 1999999999"), 2);
        assert_eq!(code("revert 0123456789abcdef --exe /nowhere"), 3);
        assert_eq!(code("apply /proc/self/exe --all"), 2);
        assert_eq!(code("apply /nowhere --all"), 2);
    }

    #[test]
    fn variables_are_found_by_their_whole_name() {
        let start = Start { arguments: vec![], environment: vec![b"HOMEPAGE=x", b"HOME=/root", b"EMPTY="] };
        assert_eq!(start.variable("HOME"), Some(&b"/root"[..]));
        assert_eq!(start.variable("EMPTY"), Some(&b""[..]));
        assert_eq!(start.variable("HOM"), None);
    }
}
