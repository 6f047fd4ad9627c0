//! A newer fix over an older one, both made by `hp diff` from one base: values of what the older one added are kept.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use support::hp::{apply, hp, revert, status};
use support::process::Running;
use support::{lacks, trial};

fn main() -> ExitCode {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("values_are_kept", gcc(), values_are_kept),
        trial("another_type_is_refused", gcc(), another_type_is_refused),
        trial("two_of_one_name_are_told_apart", gcc(), two_of_one_name_are_told_apart),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// VERSION 0 is the base; the others count in a variable of type COUNT.
const SOURCE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#ifndef COUNT
#define COUNT int
#endif
#if VERSION > 0
static COUNT calls = FIRST;
#endif
__attribute__((noinline)) int answer(int n)
{
    int sum = 0;
    for (int i = 1; i <= n; i++)
        sum += i;
#if VERSION > 0
    static int hits;
    hits++;
    return sum + (int)++calls * 1000 + hits * 100000 + VERSION * 10000000;
#else
    return sum;
#endif
}
__attribute__((noinline)) int other(int n)
{
    int sum = n;
    for (int i = 1; i <= n; i++)
        sum ^= i * 3;
#if VERSION > 1
    static int hits = 50;
    hits++;
    return sum + hits;
#else
    return sum + 1;
#endif
}
int main(void)
{
    char line[32];
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        printf("%d %d\n", answer(atoi(line)), other(0));
    return 0;
}
"#;

struct Room {
    folder: tempfile::TempDir,
    base: PathBuf,
}

impl Room {
    fn new() -> Room {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::write(folder.path().join("target.c"), SOURCE).expect("the source can be written");
        let base = compile(folder.path(), "base", &["-DVERSION=0"]);
        Room { folder, base }
    }

    fn patch(&self, version: u32, flags: &[&str]) -> PathBuf {
        let name = format!("new{version}");
        let define = format!("-DVERSION={version}");
        let flags = [&[define.as_str()], flags].concat();
        let new = compile(self.folder.path(), &name, &flags);
        let patch = self.folder.path().join(format!("{name}.hpatch"));
        let [base, new, file] = [&self.base, &new, &patch].map(|path| path.display().to_string());
        hp(["diff", &base, &new, "-o", &file, "--counter", &version.to_string()]).exits(0);
        patch
    }

    fn start(&self) -> Target {
        let mut command = Command::new(&self.base);
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let questions = process.child.stdin.take().expect("stdin is a pipe");
        let answers = BufReader::new(process.child.stdout.take().expect("stdout is a pipe"));
        let mut target = Target { process, questions, answers };
        assert_eq!(target.line(), "ready");
        target
    }
}

fn compile(folder: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-Wl,--build-id=sha1"]).args(flags).arg("-o").arg(&path).arg(folder.join("target.c"));
    assert!(gcc.status().expect("gcc can be run").success());
    path
}

struct Target {
    process: Running,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    fn ask(&mut self) -> String {
        self.questions.write_all(b"3\n").expect("the target reads");
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the target answers");
        line.trim_end().to_string()
    }
}

fn values_are_kept() {
    let room = Room::new();
    let mut target = room.start();
    let pid = target.process.pid();
    let first = room.patch(1, &["-DFIRST=5"]);
    apply(&first, pid).exits(0);
    assert_eq!((target.ask(), target.ask()), ("10106006 1".into(), "10207006 1".into()));
    // The same file-scope variable and the same static local; one more of its name elsewhere.
    let second = room.patch(2, &["-DFIRST=5"]);
    let said = apply(&second, pid).exits(0).out;
    assert!(said.contains("in place of"), "{said}");
    assert_eq!((target.ask(), target.ask()), ("20308006 51".into(), "20409006 52".into()));
    assert_eq!(status(pid).exits(0).out.matches("in effect").count(), 2, "one of them not");
    apply(&first, pid).exits(1).says(&["a newer patch"]);
    revert(&second, pid).exits(0);
    assert_eq!(target.ask(), "6 1");
}

fn another_type_is_refused() {
    let room = Room::new();
    let mut target = room.start();
    let pid = target.process.pid();
    apply(&room.patch(1, &["-DFIRST=5"]), pid).exits(0);
    assert_eq!(target.ask(), "10106006 1");
    apply(&room.patch(2, &["-DFIRST=5", "-DCOUNT=float"]), pid).exits(1).says(&["variable calls", "revert it first"]);
    apply(&room.patch(3, &["-DFIRST=6"]), pid).exits(1).says(&["variable calls", "revert it first"]);
    assert_eq!(target.ask(), "10207006 1");
}

/// The compiler numbers static locals: `hits.0` of one build may be `hits.1` of the next.
fn two_of_one_name_are_told_apart() {
    let room = Room::new();
    let mut target = room.start();
    let pid = target.process.pid();
    apply(&room.patch(2, &["-DFIRST=0"]), pid).exits(0);
    assert_eq!((target.ask(), target.ask()), ("20101006 51".into(), "20202006 52".into()));
    apply(&room.patch(3, &["-DFIRST=0"]), pid).exits(0);
    assert_eq!(target.ask(), "30303006 53");
}
