//! What every verb can be told about talking, and what packages install: `--color`, `-q`, `-v`, completions, manual pages.
//! And that the same inputs give the same bytes on any number of cores.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn hp(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hp")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Builds(tempfile::TempDir);

const PROGRAM: &str = "#include <stdio.h>\n\
    static const char *names[] = {\"a\", \"b\", \"c\"};\n\
    __attribute__((noinline)) int one(int x) { return x + 1; }\n\
    __attribute__((noinline)) int two(int x) { puts(names[x & 1]); return one(x) * 3; }\n\
    __attribute__((noinline)) int three(int x) { return two(x) - 4; }\n\
    int main(int argc, char **argv) { return three(argc) + (argv[0] == 0); }\n";

impl Builds {
    fn new() -> Builds {
        Builds(tempfile::tempdir().unwrap())
    }

    fn build(&self, name: &str, source: &str, flags: &[&str]) -> String {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("program.c"), source).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-g", "program.c", "-o", "program"]).args(flags).current_dir(&folder);
        assert!(gcc.status().unwrap().success());
        folder.join("program").display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn edited() -> String {
    PROGRAM.replace("x + 1", "x + 2").replace("* 3", "* 5").replace("\"c\"", "\"d\"")
}

#[test]
fn the_same_bytes_on_any_number_of_cores() {
    let builds = Builds::new();
    let (old, new) = (builds.build("old", PROGRAM, &["-O2"]), builds.build("new", &edited(), &["-O2"]));
    let run = |threads: &str| {
        let file = builds.path(&format!("{threads}.hpatch"));
        let done = Command::new(env!("CARGO_BIN_EXE_hp"))
            .args(["diff", &old, &new, "--json", "--explain", "one", "-o"])
            .arg(&file)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        let report = text(&done.stdout).replace(&file.display().to_string(), "FILE");
        (report, std::fs::read(file).unwrap())
    };
    let first = run("1");
    for threads in ["2", "7"] {
        let other = run(threads);
        assert_eq!(first.0, other.0, "the report with {threads} threads");
        assert!(first.1 == other.1, "the patch with {threads} threads");
    }
}

#[test]
fn colours_can_be_asked_for_and_turned_off() {
    let escape = |arguments: &[&str]| hp(arguments).stdout.contains(&0x1b);
    assert!(!escape(&["explain"]), "a pipe is no terminal");
    assert!(escape(&["explain", "--color", "always"]));
    assert!(escape(&["--color=always", "explain"]), "the flag may come first");
    assert!(!escape(&["explain", "--color", "never"]));
    let wrong = hp(&["explain", "--color", "blue"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn quiet_leaves_errors_and_exit_codes() {
    let builds = Builds::new();
    let (old, new) = (builds.build("old", PROGRAM, &["-O2"]), builds.build("new", &edited(), &["-O2"]));
    let file = builds.path("x.hpatch").display().to_string();
    let done = hp(&["diff", &old, &new, "-o", &file, "-q"]);
    assert_eq!((done.status.code(), text(&done.stdout), text(&done.stderr)), (Some(0), String::new(), String::new()));
    assert!(Path::new(&file).exists());
    let shown = hp(&["inspect", &file, "-q"]);
    assert_eq!((shown.status.code(), text(&shown.stdout)), (Some(0), String::new()));
    let bare = builds.build("bare", &edited(), &["-O2", "-g0"]);
    let refused = hp(&["diff", "-q", &old, &bare, "-o", &file]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("HP0402"), "{}", text(&refused.stderr));
    assert!(!text(&refused.stderr).contains("identical functions"), "{}", text(&refused.stderr));
    let missing = hp(&["inspect", "-q", "/nowhere"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("/nowhere"));
}

#[test]
fn verbose_says_where_functions_come_from() {
    let builds = Builds::new();
    let old = builds.build("old", PROGRAM, &["-O2"]);
    let said = |flags: &[&str]| text(&hp(&[&["diff", &old, &old][..], flags].concat()).stderr);
    assert!(said(&["-v"]).contains("functions of the old build: "), "{}", said(&["-v"]));
    assert!(!said(&[]).contains("functions of the old build: "));
}

#[test]
fn other_flags_are_said_before_what_they_changed() {
    let builds = Builds::new();
    let (old, new) = (builds.build("old", PROGRAM, &["-O2"]), builds.build("new", PROGRAM, &["-O0", "-fno-inline"]));
    let said = text(&hp(&["diff", &old, &new, "-o", "/dev/null"]).stderr);
    let first = said.lines().next().unwrap_or_default();
    assert!(first.starts_with("warning HP0108"), "{said}");
    assert!(first.contains("old: -O2;") && first.contains("new: -O0 -fno-inline"), "{said}");
    let same = text(&hp(&["diff", &old, &old]).stderr);
    assert!(!same.contains("HP0108"), "{same}");
}

#[test]
fn completions_for_each_shell() {
    for (shell, words) in [("bash", "complete -F _hp"), ("zsh", "#compdef hp"), ("fish", "complete -c hp")] {
        let done = hp(&["completions", shell]);
        assert_eq!(done.status.code(), Some(0));
        assert!(text(&done.stdout).contains(words), "{shell}");
        assert!(text(&done.stdout).contains("exact-lines"), "{shell} knows the flags of verbs");
    }
    assert_eq!(hp(&["completions", "tcl"]).status.code(), Some(2));
}

#[test]
fn manual_pages_for_hp_and_each_verb() {
    let page = |arguments: &[&str]| {
        let done = hp(&[&["man"], arguments].concat());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
        text(&done.stdout)
    };
    assert!(page(&[]).contains(".TH hp 1"), "{}", page(&[]));
    let diff = page(&["diff"]);
    assert!(diff.contains(".TH hp-diff 1"), "{diff}");
    assert!(diff.contains("exact\\-lines"), "{diff}");
    let wrong = hp(&["man", "nothing"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(text(&wrong.stderr).contains("nothing is no verb of hp"));
}
