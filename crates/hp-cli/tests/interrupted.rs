//! Commands that a signal ends while they work on a process: what they have begun is taken back, and they end by it.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;
use support::hp::{HP, apply, diff, revert, run, status};
use support::process::{Running, signal, until};
use support::target::{NEW, OLD, Pair};

/// As `build/main.rs` has built it.
const APPLIER: &str = env!("HP_APPLIER");

/// Says its version. From `enter` to `done` it is inside a replaced function.
const SOURCE: &str = r#"
#include <stdio.h>
#include <string.h>
static char line[32];
__attribute__((noinline)) void say(void) { printf("%d\n", VERSION); }
__attribute__((noinline)) void work(void)
{
    do
        printf("%d\n", VERSION);
    while (fgets(line, sizeof line, stdin) && strcmp(line, "done\n"));
    printf("%d\n", VERSION);
}
int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        if (!strcmp(line, "enter\n"))
            work();
        else
            say();
    return 0;
}
"#;

struct Busy {
    folder: tempfile::TempDir,
    patch: PathBuf,
}

impl Busy {
    fn new() -> Busy {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("target.c"), SOURCE).unwrap();
        for version in ["1", "2"] {
            let mut gcc = Command::new("gcc");
            gcc.args(["-O2", "-g", "-Wl,--build-id=sha1", &format!("-DVERSION={version}"), "-o"]);
            run(gcc.arg(at(version)).arg(at("target.c"))).exits(0);
        }
        let patch = at("fix.hpatch");
        diff(&at("1"), &at("2"), &patch).exits(0);
        Busy { folder, patch }
    }

    fn start(&self) -> Target {
        let mut command = Command::new(self.folder.path().join("1"));
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let questions = process.child.stdin.take().unwrap();
        let answers = BufReader::new(process.child.stdout.take().unwrap());
        let mut target = Target { process, questions, answers };
        assert_eq!(target.line(), "ready");
        target
    }
}

struct Target {
    process: Running,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    }

    fn ask(&mut self, line: &str) -> String {
        self.questions.write_all(format!("{line}\n").as_bytes()).unwrap();
        self.line()
    }
}

fn mappings(pid: u32) -> usize {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines().count()
}

/// Starts a command, sends the signal as soon as it is time, and waits for the end.
fn interrupt(program: &str, arguments: &[&str], number: i32, mut is_time: impl FnMut() -> bool) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env("XDG_CONFIG_HOME", "/nowhere").env("HOME", "/nowhere").stdin(Stdio::null());
    // Who starts the tests in the background may have them ignore some, and so all that they start.
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(|| {
            for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::signal(number, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    let mut process = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    assert!(until(Duration::from_secs(20), &mut is_time), "{arguments:?}: it was never time");
    signal(process.pid(), number);
    assert!(until(Duration::from_secs(10), || !process.lives()), "{arguments:?}: it goes on");
    let status = process.child.wait().unwrap();
    let read = |pipe: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let stdout = read(process.child.stdout.as_mut().unwrap());
    let stderr = read(process.child.stderr.as_mut().unwrap());
    Output { status, stdout, stderr }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn while_it_waits_for_a_safe_point() {
    let busy = Busy::new();
    let patch = text(&busy.patch);
    for (program, number) in [
        (HP, libc::SIGINT),
        (HP, libc::SIGTERM),
        (HP, libc::SIGHUP),
        (APPLIER, libc::SIGINT),
        (APPLIER, libc::SIGTERM),
        (APPLIER, libc::SIGQUIT),
    ] {
        let mut target = busy.start();
        let pid = target.process.pid();
        assert_eq!(target.ask("enter"), "1");
        let before = mappings(pid);
        let words = ["apply", &patch, "--pid", &pid.to_string(), "--timeout", "60s"];
        let output = interrupt(program, &words, number, || status(pid).code == 0);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(number), "{output:?}");
        assert!(said.contains("interrupted") && said.contains("work"), "{said}");
        status(pid).exits(3);
        assert_eq!(mappings(pid), before, "{program} {number}");
        assert_eq!((target.ask("1"), target.ask("done")), ("1".into(), "1".into()));
        // Nothing is in the way of the next.
        apply(&busy.patch, pid).exits(0);
        assert_eq!(target.ask("1"), "2");
    }
}

/// A patch that cannot go yet stays in effect.
#[test]
fn while_a_revert_waits() {
    let busy = Busy::new();
    for program in [HP, APPLIER] {
        let mut target = busy.start();
        let pid = target.process.pid();
        apply(&busy.patch, pid).exits(0);
        assert_eq!(target.ask("enter"), "2");
        let words = ["revert", &text(&busy.patch), "--pid", &pid.to_string(), "--timeout", "60s"];
        let began = std::time::Instant::now();
        let output = interrupt(program, &words, libc::SIGINT, || began.elapsed() > Duration::from_millis(500));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGINT), "{output:?}");
        assert!(said.contains("interrupted") && said.contains("work"), "{said}");
        assert!(status(pid).exits(0).out.contains("  in effect"));
        assert_eq!((target.ask("1"), target.ask("done")), ("2".into(), "2".into()));
        revert(&busy.patch, pid).exits(0);
        assert_eq!(target.ask("1"), "1");
    }
}

/// All or none, for interrupted commands too.
#[test]
fn what_it_has_applied_to_others_is_taken_back() {
    let (pair, busy) = (Pair::make(), Busy::new());
    for program in [HP, APPLIER] {
        let (mut idle, mut target) = (pair.start(), busy.start());
        let pids = [idle.pid(), target.process.pid()];
        assert_eq!((target.ask("enter").as_str(), idle.ask().as_str()), ("1", OLD));
        let before = pids.map(mappings);
        let words = ["apply", &text(&pair.patch), &text(&busy.patch), "--all", "--timeout", "60s"];
        let output = interrupt(program, &words, libc::SIGTERM, || status(pids[1]).code == 0);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGTERM), "{output:?}");
        assert!(said.contains("taken back"), "{said}");
        assert_eq!((idle.ask().as_str(), target.ask("1").as_str()), (OLD, "1"));
        for pid in pids {
            status(pid).exits(3);
        }
        assert_eq!(pids.map(mappings), before);
    }
}

/// The command that is asked gets its signals as ever.
#[test]
fn while_it_watches_over_the_health() {
    let pair = Pair::make();
    let mut target = pair.start();
    let pid = target.pid();
    let blocked = pair.folder.path().join("blocked");
    let health = format!("grep SigBlk /proc/self/status > {}", blocked.display());
    let number = pid.to_string();
    let words = ["apply", &text(&pair.patch), "--pid", &number, "--health", &health, "--health-for", "60s"];
    let output = interrupt(HP, &words, libc::SIGINT, || fs::read_to_string(&blocked).is_ok_and(|b| !b.is_empty()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGINT), "{output:?}");
    assert!(said.contains("interrupted") && said.contains("taken back"), "{said}");
    assert_eq!(target.ask(), OLD);
    let blocked = fs::read_to_string(&blocked).unwrap();
    assert_eq!(blocked.split_whitespace().nth(1), Some("0000000000000000"), "{blocked}");
}

/// `nohup` has programs ignore a signal; they are not ended by it then.
#[test]
fn a_signal_that_is_ignored_changes_nothing() {
    let (busy, pair) = (Busy::new(), Pair::make());
    for program in [HP, APPLIER] {
        let mut target = busy.start();
        let pid = target.process.pid();
        assert_eq!(target.ask("enter"), "1");
        let script = format!(r#"trap "" HUP; exec {program} apply {} --pid {pid} --timeout 2s"#, busy.patch.display());
        let output = interrupt("sh", &["-c", &script], libc::SIGHUP, || status(pid).code == 0);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert_eq!(target.ask("1"), "1");
    }
    let mut target = pair.start();
    apply(&pair.patch, target.pid()).exits(0);
    assert_eq!(target.ask(), NEW);
}

/// The JSON has the exit code that a shell makes of the signal.
#[test]
fn the_json_of_an_interrupted_command_says_so() {
    let busy = Busy::new();
    for (what, number) in [("apply", libc::SIGINT), ("revert", libc::SIGTERM)] {
        let mut target = busy.start();
        let pid = target.process.pid();
        if what == "revert" {
            apply(&busy.patch, pid).exits(0);
        }
        target.ask("enter");
        let words = [what, &text(&busy.patch), "--json", "--pid", &pid.to_string(), "--timeout", "60s"];
        let began = std::time::Instant::now();
        let output = interrupt(HP, &words, number, || began.elapsed() > Duration::from_millis(500));
        assert_eq!(output.status.signal(), Some(number), "{output:?}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["exit"], 128 + number, "{answer}");
    }
}

/// `hp watch` is ended while it waits for a safe point.
#[test]
fn a_watch_leaves_nothing_half_done() {
    let busy = Busy::new();
    let mut target = busy.start();
    let pid = target.process.pid();
    assert_eq!(target.ask("enter"), "1");
    let before = mappings(pid);
    let words = ["watch", &text(busy.folder.path()), "--timeout", "60s"];
    let output = interrupt(HP, &words, libc::SIGTERM, || status(pid).code == 0);
    assert_eq!(output.status.signal(), Some(libc::SIGTERM), "{output:?}");
    status(pid).exits(3);
    assert_eq!(mappings(pid), before);
    assert_eq!((target.ask("1"), target.ask("done")), ("1".into(), "1".into()));
}

/// All or none, and what a patch had replaced does not come back: the small applier says so, too.
#[test]
fn a_replaced_patch_that_is_gone_is_named() {
    let (pair, busy) = (Pair::make(), Busy::new());
    for program in [HP, APPLIER] {
        let (mut idle, mut target) = (pair.start(), busy.start());
        let pids = [idle.pid(), target.process.pid()];
        let newer = pair.folder.path().join("newer.hpatch");
        let new = pair.folder.path().join("new");
        run(Command::new(HP).arg("diff").args([&pair.old, &new]).args(["--counter", "7", "-o"]).arg(&newer)).exits(0);
        apply(&pair.patch, pids[0]).exits(0);
        assert_eq!((idle.ask().as_str(), target.ask("enter").as_str()), (NEW, "1"));
        let words = ["apply", &text(&newer), &text(&busy.patch), "--all", "--timeout", "60s"];
        let output = interrupt(program, &words, libc::SIGTERM, || status(pids[1]).code == 0);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("is gone too; apply it again"), "{program}: {said}");
        assert_eq!(idle.ask(), OLD);
    }
}
