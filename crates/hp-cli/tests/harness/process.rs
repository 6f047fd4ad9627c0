//! Commands with a time limit, and programs that answer questions.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::harness::directives::Probe;

/// No command of a test takes longer than this unless it hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// No program thinks longer than this about an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a command left behind.
pub(crate) struct Finished {
    command: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// The whole story, for a failure message.
    pub(crate) fn story(&self) -> String {
        let mut text = format!("  command: {}\n  exit:    {}\n", self.command, exit_text(self.code));
        for (title, content) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !content.trim().is_empty() {
                let _ = writeln!(text, "  {title}:\n    {}", content.trim_end().replace('\n', "\n    "));
            }
        }
        text
    }

    /// An error with the story unless the command exited with `code`.
    pub(crate) fn expect(self, code: i32, what: &str) -> Result<Finished, String> {
        if self.code == Some(code) {
            return Ok(self);
        }
        Err(format!("{what}: expected exit {code}, got {}\n{}", exit_text(self.code), self.story()))
    }
}

fn exit_text(code: Option<i32>) -> String {
    code.map_or_else(|| "a signal, or the time limit".into(), |c| c.to_string())
}

/// Runs a command to its end, or kills it at the time limit.
pub(crate) fn run(command: &mut Command) -> Result<Finished, String> {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let words = words.join(" ");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot run `{words}`: {e}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let deadline = Instant::now() + COMMAND_LIMIT;
    let status = loop {
        match child.try_wait().map_err(|e| format!("waiting for `{words}`: {e}"))? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                break child.wait().map_err(|e| e.to_string())?;
            }
            None => sleep(Duration::from_millis(1)),
        }
    };
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Finished { command: words, code: status.code(), stdout: text(stdout), stderr: text(stderr) })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A running program, killed when the test leaves it.
pub(crate) struct Target {
    child: Child,
    /// Closed on drop, which ends a well-behaved program too.
    input: ChildStdin,
    lines: Receiver<String>,
    program: PathBuf,
    errors: PathBuf,
}

impl Target {
    /// Starts `program`; its standard error goes to a file beside it.
    pub(crate) fn start(program: &Path, args: &[String]) -> Result<Target, String> {
        let fail = |e: std::io::Error| format!("cannot start {}: {e}", program.display());
        let errors = program.with_extension("stderr");
        let mut child = Command::new(program)
            .args(args)
            .current_dir(program.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&errors).map_err(fail)?)
            .spawn()
            .map_err(fail)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the program has no pipes".into());
        };
        let (sender, lines) = channel();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        Ok(Target { child, input, lines, program: program.to_owned(), errors })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks every question and compares the answers.
    pub(crate) fn probe(&mut self, probes: &[Probe], when: &str) -> Result<(), String> {
        for Probe { question, answer } in probes {
            let got = self.ask(question).map_err(|e| format!("{when}: asked `{question}`: {e}"))?;
            if got.trim() != answer {
                return Err(format!("{when}: asked `{question}`\n  expected: {answer}\n  got:      {got}"));
            }
        }
        Ok(())
    }

    /// The program still answers, whatever it says.
    pub(crate) fn ask(&mut self, question: &str) -> Result<String, String> {
        let sent = writeln!(self.input, "{question}").and_then(|()| self.input.flush());
        match (sent, self.lines.recv_timeout(ANSWER_LIMIT)) {
            (Ok(()), Ok(line)) => Ok(line),
            _ => Err(self.autopsy()),
        }
    }

    fn autopsy(&mut self) -> String {
        let state = self.ended().unwrap_or_else(|| format!("no answer in {} s", ANSWER_LIMIT.as_secs()));
        let errors = fs::read_to_string(&self.errors).unwrap_or_default();
        format!("{state} ({}) {}", self.program.display(), errors.trim())
    }

    /// How the program ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<String> {
        sleep(Duration::from_millis(50));
        let status = self.child.try_wait().ok()??;
        Some(format!("the program (process {}) ended: {status}", self.pid()))
    }

    /// The process's mappings, without what moves by itself.
    pub(crate) fn maps(&self) -> Result<String, String> {
        let path = format!("/proc/{}/maps", self.pid());
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let steady = |line: &&str| !line.ends_with("[stack]") && !line.ends_with("[heap]");
        Ok(text.lines().filter(steady).collect::<Vec<_>>().join("\n"))
    }

    /// The bytes of the executable mappings of `image`, from the live process.
    pub(crate) fn code(&self, image: &Path) -> Result<Vec<u8>, String> {
        let path = format!("/proc/{}/mem", self.pid());
        let memory = fs::File::open(&path).map_err(|e| format!("{path}: {e}"))?;
        let suffix = image.to_string_lossy();
        let mut code = Vec::new();
        for line in self.maps()?.lines().filter(|l| l.ends_with(&*suffix) && l.contains(" r-xp ")) {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16).ok();
            let (start, end) = range
                .and_then(|(a, b)| Some((number(a)?, number(b)?)))
                .ok_or_else(|| format!("maps line not understood: {line}"))?;
            let mut bytes = vec![0; usize::try_from(end - start).map_err(|e| e.to_string())?];
            memory.read_exact_at(&mut bytes, start).map_err(|e| format!("{path} at {start:#x}: {e}"))?;
            code.append(&mut bytes);
        }
        if code.is_empty() { Err(format!("{suffix} has no executable mapping left")) } else { Ok(code) }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
