//! `hp symbols`: debuggers and profilers name patched code, alive and dead.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use support::hp::{apply, diff, hp, status};
use support::process::{Running, until};
use support::{lacks, trial};
use tempfile::TempDir;

fn main() -> ExitCode {
    let tools = || lacks("gcc").or_else(|| lacks("gdb"));
    let trials = vec![
        trial("gdb_names_the_frames", tools(), gdb_names_the_frames),
        trial(
            "a_script_that_cannot_be_written_leaves_nothing",
            lacks("gcc"),
            a_script_that_cannot_be_written_leaves_nothing,
        ),
        trial("a_core_dump_too", tools(), a_core_dump_too),
        trial("the_map_says_where_new_code_lies", lacks("gcc"), the_map_says_where_new_code_lies),
        trial("perf_names_the_new_code", lacks("gcc").or_else(|| lacks("perf")), perf_names_the_new_code),
        trial("what_is_not_there", lacks("gcc"), what_is_not_there),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// The new `work` goes into a new function and stays there: waiting, or busy for a while.
const SOURCE: &str = r#"
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#define APART __attribute__((noinline, noclone))
volatile int sink;
#ifdef NEW
APART int stay_here(int busy) {
    if (busy)
        while (clock() < 20 * CLOCKS_PER_SEC)
            for (int i = 0; i < 1000000; i++) sink += i;
    else
        sink += pause();
    return sink + 1;
}
#endif
APART int work(int busy) {
#ifdef NEW
    sink += stay_here(busy);
#endif
    return sink + 2;
}
int main(int argc, char **argv) {
    alarm(60);
    for (;;) { sink += work(argc > 1); usleep(1000); }
}
"#;

struct Patched {
    folder: TempDir,
    patch: PathBuf,
    program: Running,
}

impl Patched {
    /// A running program whose only thread is in the new code.
    fn start(arguments: &[&str]) -> Patched {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let source = folder.path().join("wait.c");
        fs::write(&source, SOURCE).expect("the source is written");
        let build = |word: &str| {
            let out = folder.path().join(word);
            let define = format!("-D{}", word.to_uppercase());
            let gcc = Command::new("gcc").args(["-O2", "-g", &define, "-o"]).arg(&out).arg(&source).status();
            assert!(gcc.is_ok_and(|status| status.success()), "gcc builds {word}");
            out
        };
        let (old, new, patch) = (build("old"), build("new"), folder.path().join("fix.hpatch"));
        diff(&old, &new, &patch).exits(0);
        let program = Running::start(Command::new(&old).args(arguments));
        apply(&patch, program.pid()).exits(0);
        let patched = Patched { folder, patch, program };
        assert!(until(Duration::from_secs(10), || patched.is_inside()), "the new code is not reached");
        patched
    }

    fn pid(&self) -> String {
        self.program.pid().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// True once it waits in `pause`, or runs.
    fn is_inside(&self) -> bool {
        let call = fs::read_to_string(format!("/proc/{}/syscall", self.pid())).unwrap_or_default();
        call.starts_with("34 ") || call.starts_with("running")
    }
}

fn gdb(arguments: &[&str], script: Option<&Path>) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off"]).args(arguments);
    if let Some(script) = script {
        gdb.arg("-x").arg(script);
    }
    let output = gdb.args(["-ex", "bt"]).output().expect("gdb runs");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The functions of a backtrace, innermost first.
fn frames(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| line.starts_with('#'));
    lines
        .filter_map(|line| line.split(" in ").nth(1).or_else(|| line.split_whitespace().nth(1)))
        .map(first_word)
        .collect()
}

fn first_word(text: &str) -> &str {
    text.split([' ', '(']).next().unwrap_or_default()
}

#[track_caller]
fn assert_named(text: &str) {
    let frames = frames(text);
    let at = frames.iter().position(|name| *name == "stay_here");
    let rest = at.map(|at| &frames[at..]);
    assert_eq!(rest, Some(&["stay_here", "work", "main"][..]), "{text}");
}

/// Where `stay_here` waits, and where `work` calls it.
#[track_caller]
fn assert_lines(text: &str) {
    let line = |words: &str| 1 + SOURCE.lines().position(|line| line.contains(words)).expect("it is there");
    for line in [line("pause()"), line("stay_here(busy)")] {
        assert!(text.contains(&format!("wait.c:{line}")), "line {line}: {text}");
    }
}

/// The script cannot be written: the object file that it would have named is not left behind.
fn a_script_that_cannot_be_written_leaves_nothing() {
    let patched = Patched::start(&[]);
    let script = patched.path("folder.gdb");
    fs::create_dir(&script).unwrap();
    let before = fs::read_dir(script.parent().unwrap()).unwrap().count();
    hp(["symbols", "--pid", &patched.pid(), "--gdb", &script.display().to_string()]).exits(2);
    assert_eq!(fs::read_dir(script.parent().unwrap()).unwrap().count(), before);
}

fn gdb_names_the_frames() {
    let patched = Patched::start(&[]);
    let pid = patched.pid();
    assert!(!frames(&gdb(&["-p", &pid], None)).contains(&"stay_here"), "the test would pass without hp");
    let script = patched.path("alone.gdb");
    hp(["symbols", "--pid", &pid, "--gdb", &script.display().to_string()]).exits(0);
    // The record names what was replaced; what is new besides is known from the patch.
    let text = gdb(&["-p", &pid], Some(&script));
    assert!(frames(&text).ends_with(&["work", "main"]), "{text}");
    let (script, patch) = (patched.path("patch.gdb"), patched.patch.display().to_string());
    hp(["symbols", "--pid", &pid, "--patch", &patch, "--gdb", &script.display().to_string()]).exits(0);
    let text = gdb(&["-p", &pid], Some(&script));
    assert_named(&text);
    let new = patched.path("new").display().to_string();
    let arguments =
        ["symbols", "--pid", &pid, "--patch", &patch, "--new", &new, "--gdb", &script.display().to_string()];
    hp(arguments).exits(0);
    let text = gdb(&["-p", &pid], Some(&script));
    assert_named(&text);
    assert_lines(&text);
}

fn a_core_dump_too() {
    let patched = Patched::start(&[]);
    let core = patched.path("core");
    let save = format!("gcore {}", core.display());
    let saved = gdb(&["-p", &patched.pid(), "-ex", &save], None);
    assert!(core.is_file(), "{saved}");
    let (script, patch) = (patched.path("core.gdb"), patched.patch.display().to_string());
    let core = core.display().to_string();
    hp(["symbols", &core, "--patch", &patch, "--gdb", &script.display().to_string()]).exits(0);
    let program = patched.path("old").display().to_string();
    assert_named(&gdb(&[&program, &core], Some(&script)));
    let new = patched.path("new").display().to_string();
    let script = patched.path("lines.gdb");
    hp(["symbols", &core, "--patch", &patch, "--new", &new, "--gdb", &script.display().to_string()]).exits(0);
    let text = gdb(&[&program, &core], Some(&script));
    assert_named(&text);
    assert_lines(&text);
    let script = patched.path("alone.gdb");
    hp(["symbols", &core, "--gdb", &script.display().to_string()]).exits(0);
    let text = gdb(&[&program, &core], Some(&script));
    assert!(frames(&text).ends_with(&["work", "main"]), "{text}");
}

fn the_map_says_where_new_code_lies() {
    let patched = Patched::start(&[]);
    let pid = patched.pid();
    let shown = status(patched.program.pid()).exits(0).out;
    let new = shown.split("→ 0x").nth(1).and_then(|rest| rest.lines().next()).expect("status has the address");
    let map = hp(["symbols", "--pid", &pid]).exits(0).out;
    assert!(map.lines().any(|line| line.starts_with(&format!("{new} ")) && line.ends_with(" work")), "{map}");
    assert!(map.lines().any(|line| line.ends_with(" work.thunk")), "{map}");
    // Nothing is given the name of its neighbour.
    assert!(map.lines().any(|line| line.contains(" old+0x")), "{map}");
    let exact = hp(["symbols", "--pid", &pid, "--patch", &patched.patch.display().to_string()]).exits(0).out;
    assert!(exact.lines().any(|line| line.ends_with(" stay_here")), "{exact}");
}

fn perf_names_the_new_code() {
    let patched = Patched::start(&["busy"]);
    let (pid, data) = (patched.pid(), patched.path("perf.data"));
    // perf reads the map from this place only.
    let map = PathBuf::from(format!("/tmp/perf-{pid}.map"));
    let patch = patched.patch.display().to_string();
    hp(["symbols", "--pid", &pid, "--patch", &patch, "-o", &map.display().to_string()]).exits(0);
    let record = ["record", "-q", "-e", "cpu-clock", "-p", &pid, "-o"];
    let recorded = Command::new("perf").args(record).arg(&data).args(["--", "sleep", "1"]).output();
    let report = ["report", "--stdio", "-q", "--sort", "symbol", "-i"];
    let report = Command::new("perf").args(report).arg(&data).output();
    let _ = fs::remove_file(&map);
    let recorded = recorded.expect("perf runs");
    assert!(recorded.status.success(), "{}", String::from_utf8_lossy(&recorded.stderr));
    let text = String::from_utf8_lossy(&report.expect("perf runs").stdout).into_owned();
    assert!(text.contains("stay_here"), "{text}");
}

fn what_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let child = Running::start(Command::new("sleep").arg("60"));
    hp(["symbols", "--pid", &child.pid().to_string()]).exits(3).says(&["sleep", "not patched"]);
    hp(["symbols", "/bin/true"]).exits(2).says(&["/bin/true", "no core dump"]);
    let none = folder.path().join("none").display().to_string();
    hp(["symbols", &none]).exits(2).says(&["cannot read", &none]);
    let text = folder.path().join("text");
    fs::write(&text, "hello").expect("the file is written");
    hp(["symbols", &text.display().to_string()]).exits(2).says(&["no core dump"]);
    hp(["symbols"]).exits(2);
}
