//! Running the `hp` under test, with a watchdog: a command that hangs is a failure, not a hung test.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Far beyond what any command of a test needs.
const WATCHDOG: Duration = Duration::from_secs(60);

/// The program under test.
pub(crate) const HP: &str = env!("CARGO_BIN_EXE_hp");

/// What a run of `hp` gave.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Exit code; a death by a signal is 128 plus its number.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
    /// The command line.
    pub(crate) line: String,
}

impl Answer {
    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Answer {
        assert_eq!(self.code, code, "exit code of {self}");
        self
    }

    /// Asserts that the message is one line on stderr that has every one of `words`, whatever their case.
    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Answer {
        let lines: Vec<&str> = self.err.lines().filter(|line| !line.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "one line was to be on stderr of {self}");
        let line = lines[0].to_lowercase();
        for word in words {
            assert!(line.contains(&word.to_lowercase()), "“{word}” was to be in the message of {self}");
        }
        self
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Answer { code, out, err, line } = self;
        write!(f, "`{line}`: exit code {code}\n--- stdout\n{out}--- stderr\n{err}---")
    }
}

/// Runs `hp` with these arguments.
#[track_caller]
pub(crate) fn hp<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Answer {
    run(Command::new(HP).args(arguments))
}

/// Makes a patch with `hp diff`.
#[track_caller]
pub(crate) fn diff(old: &Path, new: &Path, patch: &Path) -> Answer {
    hp([OsStr::new("diff"), old.as_os_str(), new.as_os_str(), OsStr::new("-o"), patch.as_os_str()])
}

/// Applies a patch to one process.
#[track_caller]
pub(crate) fn apply(patch: &Path, pid: u32) -> Answer {
    on_one("apply", patch, pid)
}

/// Reverts a patch in one process.
#[track_caller]
pub(crate) fn revert(patch: &Path, pid: u32) -> Answer {
    on_one("revert", patch, pid)
}

/// `hp VERB PATCH --all`.
#[track_caller]
pub(crate) fn on_all(verb: &str, patch: &Path) -> Answer {
    hp([OsStr::new(verb), patch.as_os_str(), OsStr::new("--all")])
}

/// `hp status --pid PID`.
#[track_caller]
pub(crate) fn status(pid: u32) -> Answer {
    hp(["status", "--pid", &pid.to_string()])
}

fn on_one(verb: &str, patch: &Path, pid: u32) -> Answer {
    hp([OsStr::new(verb), patch.as_os_str(), OsStr::new("--pid"), OsStr::new(&pid.to_string())])
}

/// Runs a prepared command to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Answer {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let line = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let code = wait(&mut child).unwrap_or_else(|| panic!("`{line}` hung; it was ended after {WATCHDOG:?}"));
    let text = |reader: JoinHandle<String>| reader.join().expect("the reader does not panic");
    Answer { code, out: text(out), err: text(err), line }
}

/// Reads a pipe to its end while the command runs, so that it cannot block on a full one.
fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The exit code, or `None` if the watchdog had to end it.
fn wait(child: &mut Child) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + WATCHDOG;
    loop {
        if let Some(status) = child.try_wait().expect("a child of ours can be waited for") {
            return Some(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
