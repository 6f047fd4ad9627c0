//! Unwinders of all kinds meet new code: several patches at once, a plugin that throws and was opened after the
//! patch, other libraries between an unwinder and the C library, and one that nothing shows the way. And thunks: the
//! applier dies at each point, and exceptions pass through entries that are redirected and still lead to the old code.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use support::hp::{apply, hp, revert};
use support::process::Running;
use support::{lacks, trial};

fn main() -> ExitCode {
    if let Ok(job) = std::env::var(JOB) {
        return apply_and_die(&job);
    }
    let gxx = || lacks("g++");
    let trials = vec![
        trial("a_plugin_opened_later_throws_through_new_code", gxx(), a_plugin_opened_later_throws_through_new_code),
        trial(
            "a_plugin_in_a_namespace_of_its_own_throws_through_new_code",
            gxx(),
            a_plugin_in_a_namespace_of_its_own_throws_through_new_code,
        ),
        trial("through_the_code_of_two_patches", gxx(), through_the_code_of_two_patches),
        trial("another_library_answers_for_the_loader", gxx(), another_library_answers_for_the_loader),
        trial("a_stripped_static_program_is_refused", gxx(), a_stripped_static_program_is_refused),
        trial("a_wrong_call_is_no_call", gxx(), a_wrong_call_is_no_call),
        trial("exceptions_pass_through_thunks", gxx(), exceptions_pass_through_thunks),
        trial("an_unwinder_that_asks_nobody_is_refused", gxx(), an_unwinder_that_asks_nobody_is_refused),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// A C program that knows nothing of exceptions: `outer` and `inner` lie between a plugin's two functions. VERSION 1
/// changes `outer`, VERSION 2 changes `inner`.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int (*back)(int);

__attribute__((noipa)) int inner(int n)
{
#if VERSION & 2
    n += 100;
#endif
    return back(n) + 1;
}

__attribute__((noipa)) int outer(int n)
{
#if VERSION & 1
    n += 1000;
#endif
    return inner(n) + 1;
}

int main(int argc, char **argv)
{
    static int (*enter)(int (*)(int), int);
    char line[256];
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (strchr(line, '/')) {
            void *plugin = *line == '+' ? dlmopen(LM_ID_NEWLM, line + 1, RTLD_NOW) : dlopen(line, RTLD_NOW);
            enter = plugin ? (int (*)(int (*)(int), int))dlsym(plugin, "enter") : NULL;
            back = plugin ? (int (*)(int))dlsym(plugin, "back") : NULL;
            puts(enter && back ? "open" : dlerror());
        } else {
            printf("%d\n", enter(outer, atoi(line)));
        }
    }
    return 0;
}
"#;

/// Catches what it throws itself, with the program's functions in between.
const PLUGIN: &str = r#"
extern "C" int back(int n)
{
    if (n % 10)
        throw n;
    return n;
}

extern "C" int enter(int (*through)(int), int n)
{
    try {
        return through(n);
    } catch (int thrown) {
        return -thrown;
    }
}
"#;

/// Stands between the unwinder and the C library, as libraries that watch programs do.
const BETWEEN: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
struct dl_find_object;
int _dl_find_object(void *pc, struct dl_find_object *result)
{
    static int (*real)(void *, struct dl_find_object *);
    if (!real)
        real = (int (*)(void *, struct dl_find_object *))dlsym(RTLD_NEXT, "_dl_find_object");
    return real(pc, result);
}
"#;

/// Has the name of an unwinder, and no slot by which it could be led to anything.
const MUTE: &str = "int _Unwind_RaiseException(void *object) { return object ? 5 : 9; }";

struct Room {
    folder: tempfile::TempDir,
    base: PathBuf,
    plugin: PathBuf,
}

impl Room {
    fn new() -> Room {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let plugin = compile(folder.path(), "plugin.cc", PLUGIN, "plugin.so", &["-shared", "-fPIC"]);
        let base = program(folder.path(), 0);
        Room { folder, base, plugin }
    }

    /// A patch from the base to a version.
    fn patch(&self, version: u32) -> PathBuf {
        let new = program(self.folder.path(), version);
        let patch = self.folder.path().join(format!("{version}.hpatch"));
        let [base, new, file] = [&self.base, &new, &patch].map(|path| path.display().to_string());
        hp(["diff", &base, &new, "-o", &file]).exits(0);
        patch
    }

    fn library(&self, name: &str, source: &str) -> PathBuf {
        let file = format!("{name}.so");
        compile(self.folder.path(), &format!("{name}.c"), source, &file, &["-shared", "-fPIC"])
    }

    fn start(&self, preload: Option<&Path>) -> Target {
        let mut command = Command::new(&self.base);
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        Target::start(&mut command)
    }
}

fn program(folder: &Path, version: u32) -> PathBuf {
    let define = format!("-DVERSION={version}");
    compile(folder, "program.c", PROGRAM, &format!("program{version}"), &[&define])
}

fn compile(folder: &Path, source: &str, text: &str, to: &str, flags: &[&str]) -> PathBuf {
    let (from, to) = (folder.join(source), folder.join(to));
    fs::write(&from, text).expect("the source can be written");
    let compiler = if source.ends_with(".cc") { "g++" } else { "gcc" };
    let status = Command::new(compiler).args(["-O2", "-g"]).args(flags).arg("-o").args([&to, &from]).status();
    assert!(status.expect("the compiler can be run").success(), "{source} compiles");
    to
}

struct Target {
    process: Running,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    fn start(command: &mut Command) -> Target {
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let questions = process.child.stdin.take().expect("stdin is a pipe");
        let answers = BufReader::new(process.child.stdout.take().expect("stdout is a pipe"));
        let mut target = Target { process, questions, answers };
        assert_eq!(target.line(), "ready");
        target
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the target answers");
        line.trim_end().to_owned()
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.questions, "{question}").expect("the target reads");
        self.line()
    }

    fn open(&mut self, plugin: &Path) {
        assert_eq!(self.ask(&plugin.display().to_string()), "open");
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The C++ runtime and its unwinder come after the patch: they are bound to the finder by the symbol tables.
fn a_plugin_opened_later_throws_through_new_code() {
    let room = Room::new();
    let patch = room.patch(3);
    let mut target = room.start(None);
    apply(&patch, target.pid()).exits(0);
    target.open(&room.plugin);
    assert_eq!(target.ask("10"), "1112");
    assert_eq!(target.ask("7"), "-1107");
    revert(&patch, target.pid()).exits(0);
    assert_eq!(target.ask("10"), "12");
    assert_eq!(target.ask("7"), "-7");
    // And again, with an unwinder that is there.
    apply(&patch, target.pid()).exits(0);
    assert_eq!(target.ask("7"), "-1107");
}

/// It has a C library and an unwinder of its own, which are there when the patch comes.
fn a_plugin_in_a_namespace_of_its_own_throws_through_new_code() {
    let room = Room::new();
    let patch = room.patch(3);
    let mut target = room.start(None);
    assert_eq!(target.ask(&format!("+{}", room.plugin.display())), "open");
    for _ in 0..2 {
        assert_eq!(target.ask("7"), "-7");
        apply(&patch, target.pid()).exits(0);
        assert_eq!(target.ask("10"), "1112");
        assert_eq!(target.ask("7"), "-1107");
        revert(&patch, target.pid()).exits(0);
    }
    assert_eq!(target.ask("7"), "-7");
}

/// Each patch has finders of its own, in a chain. The first may go before the second.
fn through_the_code_of_two_patches() {
    let room = Room::new();
    let (outer, inner) = (room.patch(1), room.patch(2));
    let mut target = room.start(None);
    apply(&outer, target.pid()).exits(0);
    target.open(&room.plugin);
    apply(&inner, target.pid()).exits(0);
    assert_eq!(target.ask("10"), "1112");
    assert_eq!(target.ask("7"), "-1107");
    revert(&outer, target.pid()).exits(0);
    assert_eq!(target.ask("7"), "-107");
    apply(&outer, target.pid()).exits(0);
    revert(&inner, target.pid()).exits(0);
    assert_eq!(target.ask("7"), "-1007");
    revert(&outer, target.pid()).exits(0);
    assert_eq!(target.ask("7"), "-7");
}

fn another_library_answers_for_the_loader() {
    let room = Room::new();
    let patch = room.patch(3);
    let between = room.library("between", BETWEEN);
    for open_first in [true, false] {
        let mut target = room.start(Some(&between));
        if open_first {
            target.open(&room.plugin);
            assert_eq!(target.ask("7"), "-7");
        }
        apply(&patch, target.pid()).exits(0);
        if !open_first {
            target.open(&room.plugin);
        }
        assert_eq!(target.ask("7"), "-1107");
        revert(&patch, target.pid()).exits(0);
        assert_eq!(target.ask("7"), "-7");
    }
}

fn an_unwinder_that_asks_nobody_is_refused() {
    let room = Room::new();
    let patch = room.patch(1);
    let mute = room.library("mute", MUTE);
    let mut target = room.start(Some(&mute));
    apply(&patch, target.pid()).exits(1).says(&["mute.so unwinds stacks", "exception"]);
    target.open(&room.plugin);
    assert_eq!(target.ask("10"), "12");
}

/// A static C++ program in two versions.
const STATIC: &str = r#"
__attribute__((noipa)) static int thrower(int n)
{
    if (n > STEP)
        throw n;
    return n + STEP;
}

int main(int argc, char **)
{
    try {
        return thrower(argc);
    } catch (int thrown) {
        return thrown;
    }
}
"#;

fn static_pair(folder: &Path, flags: &[&str]) -> [String; 2] {
    [1, 2].map(|step| {
        let define = format!("-DSTEP={step}");
        let flags = [&["-static", define.as_str()], flags].concat();
        compile(folder, "static.cc", STATIC, &format!("static{step}"), &flags).display().to_string()
    })
}

/// Without names nothing says which calls of it look for unwind rows.
fn a_stripped_static_program_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let [old, new] = static_pair(folder.path(), &["-s"]);
    let refused = hp(["diff", &old, &new, "-o", "/dev/null", "--allow", "HP0402"]).exits(1);
    assert!(format!("{refused}").contains("HP0313"), "{refused}");
}

fn a_wrong_call_is_no_call() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let [old, new] = static_pair(folder.path(), &[]);
    let file = folder.path().join("fix.hpatch");
    let name = file.display().to_string();
    hp(["diff", &old, &new, "-o", &name]).exits(0);
    let verify = || hp(["verify", &name, "--old", &old, "--new", &new]);
    verify().exits(0);
    let mut patch = hp_pack::read(&fs::read(&file).expect("the patch is there")).expect("it is one");
    let call = patch.symbols.iter_mut().find(|symbol| symbol.name.starts_with("hpatch.asks.")).expect("it is named");
    call.value += 1;
    fs::write(&file, hp_pack::write(&patch).expect("it can be written")).expect("it is written");
    let judged = verify().exits(1);
    assert!(judged.out.contains("no call of the base"), "{judged}");
}

/// Set for this program as an applier that dies: `PID POINT PATCH`.
const JOB: &str = "HP_UNWINDERS_JOB";

fn apply_and_die(job: &str) -> ExitCode {
    let words: Vec<&str> = job.splitn(3, ' ').collect();
    let [pid, point, patch] = words[..] else { return ExitCode::FAILURE };
    hp_apply::die_at(point.parse().expect("a number"));
    let options = hp_apply::Options {
        timeout: std::time::Duration::from_secs(10),
        max_pause: None,
        dry_run: false,
        relaxed: false,
    };
    let file = fs::read(patch).expect("the patch is there");
    let outcome = hp_apply::apply(pid.parse().expect("a number"), &file, &options);
    outcome.result.map_or(ExitCode::FAILURE, |_| ExitCode::SUCCESS)
}

/// Both functions begin with a call that throws, so their thunks repeat it: one lets the exception pass, one catches it
/// in a landing pad of the old function.
const THROUGH: &str = r#"
#include <stdio.h>
__attribute__((noipa)) void thrower(int n) { if (n > 0) throw n; }
__attribute__((noipa)) int passes(int n) { thrower(n); return VERSION; }
__attribute__((noipa)) int caught(int n)
{
    try {
        thrower(n);
        return 0;
    } catch (int thrown) {
        return 10 * VERSION + thrown;
    }
}
int main()
{
    char line[256];
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        int passed = 0;
        try {
            passes(5);
        } catch (int thrown) {
            passed = thrown;
        }
        printf("%d %d %d\n", passed, caught(7), passes(0));
    }
}
"#;

/// The old entries of all functions of the patch in a process are jumps.
fn are_redirected(pid: u32) -> bool {
    use std::os::unix::fs::FileExt;
    let shown = hp(["status", "--pid", &pid.to_string(), "--json"]).out;
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let functions = shown.pointer("/processes/0/patches/0/functions").and_then(|f| f.as_array().cloned());
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("the memory can be read");
    let is_jump = |function: &serde_json::Value| {
        let mut byte = [0];
        let at = function["old_address"].as_u64().expect("an address");
        memory.read_exact_at(&mut byte, at).is_ok() && byte == [0xe9]
    };
    functions.is_some_and(|f| f.len() == 2 && f.iter().all(is_jump))
}

fn exceptions_pass_through_thunks() {
    use std::os::unix::process::ExitStatusExt;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let [old, new] = [1, 2].map(|version| {
        let define = format!("-DVERSION={version}");
        compile(folder.path(), "through.cc", THROUGH, &format!("through{version}"), &[&define])
    });
    let patch = folder.path().join("fix.hpatch");
    let [before, after, file] = [&old, &new, &patch].map(|path| path.display().to_string());
    hp(["diff", &before, &after, "-o", &file]).exits(0);
    let thunks = Command::new("objdump").args(["-d", "-j", ".text.hpatch.thunks", &file]).output().expect("objdump");
    let calls = String::from_utf8_lossy(&thunks.stdout).matches("\tcall ").count();
    assert_eq!(calls, 2, "the thunks repeat calls");
    let mut target = Target::start(&mut Command::new(&old));
    let mut redirected = 0;
    for point in 1.. {
        let job = format!("{} {point} {file}", target.pid());
        let own = std::env::current_exe().expect("this program");
        let status = Command::new(own).env(JOB, job).status().expect("it can be run");
        let answer = target.ask("go");
        let is_old = answer == "5 17 1";
        assert!(is_old || answer == "5 27 2", "killed at point {point}: {answer}");
        redirected += usize::from(is_old && are_redirected(target.pid()));
        if status.signal() != Some(9) {
            assert!(status.success() && !is_old, "{status}");
            break;
        }
        hp(["revert", "--everything", "--pid", &target.pid().to_string()]);
        assert_eq!(target.ask("go"), "5 17 1", "taken back after point {point}");
    }
    assert!(redirected > 0, "no applier died between arming and flip");
}
