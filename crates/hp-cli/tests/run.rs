//! `hp run`: programs that start patched.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use support::hp::{HP, hp, run};
use support::process::{Running, children, signal, status_field, until};
use support::target::Pair;
use support::{lacks, trial};
use tempfile::TempDir;

fn main() -> ExitCode {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("from_the_first_instruction_of_main", gcc(), from_the_first_instruction_of_main),
        trial("a_library", gcc(), a_library),
        trial("static_and_musl", gcc().or_else(|| lacks("musl-gcc")), static_and_musl),
        trial("how_it_ends", gcc(), how_it_ends),
        trial("it_is_an_ordinary_process", gcc(), it_is_an_ordinary_process),
        trial("signals_are_passed_on", gcc(), signals_are_passed_on),
        trial("it_outlives_hp", gcc(), it_outlives_hp),
        trial("what_does_not_fit_is_not_run", gcc(), what_does_not_fit_is_not_run),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// Says at once which build it is, and does what its argument says.
const SOURCE: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#ifndef LIBRARY
static
#else
extern
#endif
__attribute__((noinline)) const char *version(int n)
#ifndef LIBRARY
{ return n > 100 ? "?" : n > VERSION ? "old" : "new"; }
#else
;
#endif
static void terminated(int number) { (void)number; if (write(1, "term\n", 5) != 5) abort(); _exit(9); }
int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IONBF, 0);
    puts(version(5));
    if (argc < 2) return 0;
    if (!strcmp(argv[1], "exit")) return atoi(argv[2]);
    if (!strcmp(argv[1], "kill")) raise(SIGKILL);
    if (!strcmp(argv[1], "touch")) { fclose(fopen(argv[2], "w")); return 0; }
    if (!strcmp(argv[1], "wait")) { signal(SIGTERM, terminated); puts("waiting"); for (;;) pause(); }
    if (!strcmp(argv[1], "tell")) {
        int death = -1; sigset_t set; char line[200];
        prctl(PR_GET_PDEATHSIG, &death);
        sigprocmask(SIG_BLOCK, 0, &set);
        FILE *status = fopen("/proc/self/status", "r");
        while (fgets(line, sizeof line, status)) if (!strncmp(line, "TracerPid", 9)) fputs(line, stdout);
        printf("death %d blocked %d%d %s\n", death, sigismember(&set, SIGTERM), sigismember(&set, SIGCHLD), argv[2]);
    }
    return 0;
}
"#;

struct Builds {
    folder: TempDir,
    old: PathBuf,
    patch: PathBuf,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn compile(compiler: &str, flags: &[&str], source: &Path, output: &Path) {
    let status = Command::new(compiler)
        .args(["-O2", "-g", "-Wl,--build-id"])
        .args(flags)
        .args(["-o".as_ref(), output.as_os_str(), source.as_os_str()])
        .status();
    assert!(status.expect("the compiler can be run").success(), "{compiler} {flags:?}");
}

fn builds(compiler: &str, flags: &[&str]) -> Builds {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let source = folder.path().join("program.c");
    fs::write(&source, SOURCE).expect("the source can be written");
    let [old, new, patch] = ["old", "new", "fix.hpatch"].map(|name| folder.path().join(name));
    for (version, path) in [("-DVERSION=3", &old), ("-DVERSION=7", &new)] {
        compile(compiler, &[flags, &[version]].concat(), &source, path);
    }
    hp(["diff", &text(&old), &text(&new), "-o", &text(&patch), "--allow", "HP0402"]).exits(0);
    Builds { folder, old, patch }
}

/// `hp run --patch PATCH -- OLD ARGUMENTS`
fn command(builds: &Builds, arguments: &[&str]) -> Command {
    let mut command = Command::new(HP);
    command.arg("run").arg("--patch").arg(&builds.patch).arg("--").arg(&builds.old).args(arguments);
    command
}

fn from_the_first_instruction_of_main() {
    let builds = builds("gcc", &[]);
    assert_eq!(run(&mut Command::new(&builds.old)).exits(0).out, "old\n");
    for _ in 0..20 {
        assert_eq!(run(&mut command(&builds, &[])).exits(0).out, "new\n");
    }
}

fn a_library() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (source, library) = (folder.path().join("program.c"), folder.path().join("library.c"));
    fs::write(&source, SOURCE).expect("the source can be written");
    fs::write(&library, "const char *version(int n) { return n > 100 ? \"?\" : n > VERSION ? \"old\" : \"new\"; }")
        .expect("written");
    let [old, new, patch] = ["libversion.so", "new.so", "fix.hpatch"].map(|name| folder.path().join(name));
    for (version, path) in [("-DVERSION=3", &old), ("-DVERSION=7", &new)] {
        compile("gcc", &["-shared", "-fPIC", version], &library, path);
    }
    let program = folder.path().join("program");
    let status = Command::new("gcc")
        .args(["-O2", "-g", "-DLIBRARY", "-o"])
        .args([&program, &source])
        .args([
            "-L".to_string() + &text(folder.path()),
            "-lversion".into(),
            format!("-Wl,-rpath,{}", text(folder.path())),
        ])
        .status();
    assert!(status.expect("gcc can be run").success());
    hp(["diff", &text(&old), &text(&new), "-o", &text(&patch)]).exits(0);
    let builds = Builds { folder, old: program, patch };
    assert_eq!(run(&mut Command::new(&builds.old)).exits(0).out, "old\n");
    assert_eq!(run(&mut command(&builds, &[])).exits(0).out, "new\n");
}

fn static_and_musl() {
    for (compiler, flags) in [("gcc", &["-static"][..]), ("musl-gcc", &[]), ("musl-gcc", &["-static"])] {
        let builds = builds(compiler, flags);
        assert_eq!(run(&mut command(&builds, &["exit", "3"])).exits(3).out, "new\n", "{compiler} {flags:?}");
    }
}

fn how_it_ends() {
    let builds = builds("gcc", &[]);
    for code in ["0", "1", "42", "255"] {
        run(&mut command(&builds, &["exit", code])).exits(code.parse().expect("a number"));
    }
    run(&mut command(&builds, &["kill"])).exits(128 + 9);
}

/// Nobody traces it, it dies with nobody, it has the signals of its starter, and its arguments as they are.
fn it_is_an_ordinary_process() {
    let builds = builds("gcc", &[]);
    let answer = run(&mut command(&builds, &["tell", "--two words"])).exits(0);
    assert_eq!(answer.out, "new\nTracerPid:\t0\ndeath 0 blocked 00 --two words\n");
}

fn program_of(hp: &Running) -> u32 {
    assert!(until(Duration::from_secs(10), || children(hp.pid()).len() == 1), "the program has been started");
    children(hp.pid())[0]
}

/// Starts one that waits; when this returns it does.
fn waiting(builds: &Builds, output: &Path) -> Running {
    let file = fs::File::create(output).expect("a file can be made");
    let hp = Running::start(command(builds, &["wait"]).stdin(Stdio::null()).stdout(file));
    let said = || fs::read_to_string(output).is_ok_and(|text| text == "new\nwaiting\n");
    assert!(until(Duration::from_secs(10), said), "the program waits");
    hp
}

fn signals_are_passed_on() {
    let builds = builds("gcc", &[]);
    let output = builds.folder.path().join("output");
    let mut hp = waiting(&builds, &output);
    signal(hp.pid(), libc::SIGTERM);
    assert_eq!(hp.child.wait().expect("hp ends").code(), Some(9));
    assert_eq!(fs::read_to_string(&output).expect("the output"), "new\nwaiting\nterm\n");
}

fn it_outlives_hp() {
    let builds = builds("gcc", &[]);
    let output = builds.folder.path().join("output");
    let mut hp = waiting(&builds, &output);
    let program = program_of(&hp);
    hp.child.kill().expect("hp can be killed");
    hp.child.wait().expect("hp ends");
    std::thread::sleep(Duration::from_millis(100));
    assert!(status_field(program, "State").starts_with('S'), "it goes on");
    signal(program, libc::SIGTERM);
    assert!(until(Duration::from_secs(5), || fs::read_to_string(&output).is_ok_and(|text| text.ends_with("term\n"))));
}

fn what_does_not_fit_is_not_run() {
    let builds = builds("gcc", &[]);
    let mark = builds.folder.path().join("mark");
    let other = Pair::make();
    let run_it = |patch: &Path, program: &Path| {
        let mut command = Command::new(HP);
        command.arg("run").arg("--patch").arg(patch).arg("--").arg(program).args(["touch", &text(&mark)]);
        run(&mut command)
    };
    run_it(&other.patch, &builds.old).exits(1).says(&["was not run", "build ID"]);
    run_it(&builds.folder.path().join("absent"), &builds.old).exits(2).says(&["absent"]);
    run_it(&builds.patch, &builds.folder.path().join("nothing")).exits(2).says(&["cannot run", "nothing"]);
    assert!(!mark.exists(), "the program has not run");
    run_it(&builds.patch, &builds.old).exits(0);
    assert!(mark.exists());
}
