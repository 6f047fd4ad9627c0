//! `hp apply --relaxed`: a thread that never leaves an old function goes on in it where the patch gives its word, and for
//! what reasons the word is not given.

mod support;

use hp_pack::Role;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use support::hp::{Answer, hp, run, status};
use support::process::Running;
use support::{lacks, trial};

fn main() -> ExitCode {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("a_loop_goes_on_and_calls_lead_to_the_new_code", gcc(), a_loop_goes_on),
        trial("the_small_applier_leaves_it_too", gcc(), the_small_applier_leaves_it_too),
        trial("a_rehearsal_says_who_would_go_on", gcc(), a_rehearsal_says_who_would_go_on),
        trial("a_contract_with_another_function_must_be_accepted", gcc(), a_contract_must_be_accepted),
        trial("what_stands_against_it", gcc(), what_stands_against_it),
        trial("the_judge_sees_a_word_that_is_wrong", gcc(), the_judge_sees_a_wrong_word),
        trial("registers_that_callers_count_on", gcc(), registers_that_callers_count_on),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// Two threads can be in the loop: the second starts when the first is asked for it.
const LOOP: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static int pipes[2];
int serve(int from, int number);
static void *second(void *unused) { serve(pipes[0], 2); return unused; }
__attribute__((noinline)) void start(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, second, NULL);
    dprintf(1, "started\n");
}
__attribute__((noinline)) void forward(const char *line) {
    if (write(pipes[1], line, 1) != 1) _exit(1);
}
#if NEW & 2
__attribute__((noinline)) int handle(int c) { return c - '0' + 1000; }
#else
__attribute__((noinline)) int handle(int c) { return c - '0'; }
#endif
__attribute__((noinline)) int serve(int from, int number) {
    char line[8];
    for (;;) {
        if (read(from, line, sizeof line) <= 0) _exit(0);
        if (line[0] == 's') { start(); continue; }
        if (line[0] == '>') { forward(line + 1); continue; }
        int n = handle(line[0]);
#if NEW & 1
        if (n > 5) n = 5;
#endif
        dprintf(1, "%d: %d\n", number, n);
    }
}
int main(void) {
    if (pipe(pipes)) return 1;
    puts("ready"); fflush(stdout);
    return serve(0, 1);
}
"#;

/// Two builds of one source, in a folder of their own.
struct Pair {
    folder: tempfile::TempDir,
}

impl Pair {
    /// `NEW` is 0 in the old build, and this in the new one.
    fn of(source: &str, new: u32) -> Pair {
        let pair = Pair { folder: tempfile::tempdir().expect("a temporary folder") };
        fs::write(pair.path("program.c"), source).expect("the source can be written");
        for (name, version) in [("old", 0), ("new", new)] {
            let status = Command::new("gcc")
                .args(["-O2", "-g", "-pthread", &format!("-DNEW={version}"), "program.c", "-o", name])
                .current_dir(pair.folder.path())
                .status();
            assert!(status.expect("gcc can be run").success(), "{name} compiles");
        }
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn diff(&self, more: &[&str]) -> PathBuf {
        let patch = self.path("fix.hpatch");
        let (old, new) = (self.path("old"), self.path("new"));
        let mut arguments = vec!["diff".as_ref(), old.as_os_str(), new.as_os_str(), "-o".as_ref(), patch.as_os_str()];
        arguments.extend(more.iter().map(|word| std::ffi::OsStr::new(*word)));
        hp(arguments).exits(0);
        patch
    }

    /// What the patch says of a function: `yes`, or why not.
    fn word(&self, patch: &Path, function: &str) -> String {
        let file = fs::read(patch).expect("the patch");
        let patch = hp_pack::read(&file).expect("a patch");
        let manifest: hp_pack::manifest::Manifest = serde_json::from_slice(&patch.manifest).expect("a manifest");
        let info = manifest.functions.iter().find(|info| info.name == function).expect("it is in the patch");
        let record = patch.functions.iter().find(|record| record.old_address == info.old_address).expect("a record");
        let Role::Entry(entry) = record.role else { panic!("no entry") };
        assert_eq!(entry.may_go_on, info.goes_on == "yes", "{info:?}");
        info.goes_on.clone()
    }
}

/// `hp apply` or `hp revert` of a patch in one process.
fn change(verb: &str, target: &Target, patch: &Path, more: &[&str]) -> Answer {
    let pid = target.pid().to_string();
    let mut arguments = vec![verb.as_ref(), patch.as_os_str(), "--pid".as_ref(), pid.as_ref()];
    arguments.extend(more.iter().map(|word| std::ffi::OsStr::new(*word)));
    hp(arguments)
}

struct Target {
    process: Running,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    fn start(program: &Path) -> Target {
        let mut process = Running::start(Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()));
        let questions = process.child.stdin.take().expect("a pipe");
        let answers = BufReader::new(process.child.stdout.take().expect("a pipe"));
        let mut target = Target { process, questions, answers };
        assert_eq!(target.line(), "ready");
        // It says so before it is in its loop, and answers from there.
        assert_eq!(target.ask("1"), "1: 1");
        target
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, words: &str) {
        self.questions.write_all(words.as_bytes()).expect("the target reads");
        self.questions.flush().expect("the target reads");
    }

    fn ask(&mut self, words: &str) -> String {
        self.tell(words);
        self.line()
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }
}

fn a_loop_goes_on() {
    let pair = Pair::of(LOOP, 1);
    let patch = pair.diff(&[]);
    assert_eq!(pair.word(&patch, "serve"), "yes");
    let mut target = Target::start(&pair.path("old"));
    assert_eq!(target.ask("9"), "1: 9");
    let strict = change("apply", &target, &patch, &["--timeout", "300ms"]);
    let strict = strict.exits(4);
    let said = strict.err;
    let line = LOOP.lines().position(|line| line.contains("read(from")).expect("it reads") + 1;
    assert!(said.contains("in serve+0x") && said.contains(&format!("program.c:{line}")), "{said}");
    assert!(said.contains("--relaxed"), "{said}");
    assert!(said.contains(" stops, ") && said.contains(" altogether, "), "{said}");
    assert_eq!(target.ask("9"), "1: 9");

    let relaxed = change("apply", &target, &patch, &["--relaxed"]);
    let relaxed = relaxed.exits(0);
    let said = relaxed.out;
    assert!(said.contains("goes on in the old code: thread") && said.contains("program.c:"), "{said}");
    assert!(status(target.pid()).out.contains("in effect"));
    assert_eq!(target.ask("9"), "1: 9", "the thread that was inside goes on as before");
    assert_eq!(target.ask("s"), "started");
    assert_eq!(target.ask(">9"), "2: 5", "one that comes in finds the new code");
    assert_eq!(target.ask("9"), "1: 9");

    // The second thread never leaves the new code: a revert has no relaxed form.
    change("revert", &target, &patch, &["--timeout", "300ms"]).exits(4);
    assert_eq!(target.ask(">9"), "2: 5");
    assert_eq!(target.ask("9"), "1: 9");
}

/// A bundle, and the applier by itself: strict, relaxed, where the patch gives no word, and where the verb has no such thing.
fn the_small_applier_leaves_it_too() {
    let pair = Pair::of(LOOP, 1);
    let patch = pair.diff(&[]);
    let file = pair.path("fix.run");
    hp(["bundle".as_ref(), patch.as_os_str(), "-o".as_ref(), file.as_os_str()]).exits(0);
    let path = patch.display().to_string();
    for (program, first) in [(file.as_path(), None), (Path::new(env!("HP_APPLIER")), Some(["apply", path.as_str()]))] {
        let mut target = Target::start(&pair.path("old"));
        let pid = target.pid().to_string();
        let small = |more: &[&str]| {
            let mut command = Command::new(program);
            command.args(first.into_iter().flatten()).args(["--pid", &pid]).args(more);
            run(command.env("XDG_CONFIG_HOME", "/nowhere"))
        };
        let strict = small(&["--timeout", "300ms"]).exits(4);
        assert!(strict.err.contains("in serve+0x"), "{strict}");
        let said = small(&["--dry-run", "--relaxed"]).exits(0).out;
        assert!(
            said.contains("a safe point exists now") && said.contains("would go on in the old code: thread"),
            "{said}"
        );
        assert_eq!(target.ask("9"), "1: 9");
        let said = small(&["--relaxed"]).exits(0).out;
        assert!(said.contains("goes on in the old code: thread") && said.contains("in serve+0x"), "{said}");
        assert_eq!(target.ask("9"), "1: 9", "the thread that was inside goes on as before");
        assert_eq!(target.ask("s"), "started");
        assert_eq!(target.ask(">9"), "2: 5", "one that comes in finds the new code");
        small(&["--relaxed"]).exits(3);
        assert_eq!(target.ask("9"), "1: 9");
    }
    let mut target = Target::start(&pair.path("old"));
    let pid = target.pid().to_string();
    let mut revert = Command::new(&file);
    let refused = run(revert.args(["--revert", "--relaxed", "--pid", &pid])).exits(2);
    assert!(refused.err.contains("--relaxed belongs to apply"), "{refused}");

    // Without the patch's word it is as strict as ever.
    let pair = Pair::of(LOOP, 3);
    let patch = pair.diff(&[]).display().to_string();
    let mut other = Target::start(&pair.path("old"));
    let pid = other.pid().to_string();
    let arguments = ["apply", &patch, "--pid", &pid, "--relaxed", "--timeout", "300ms"];
    run(Command::new(env!("HP_APPLIER")).args(arguments).env("XDG_CONFIG_HOME", "/nowhere")).exits(4);
    assert_eq!([target.ask("9"), other.ask("9")], ["1: 9", "1: 9"]);
}

/// It tells the two cases apart as an apply does: who would go on, and who is in the way.
fn a_rehearsal_says_who_would_go_on() {
    let pair = Pair::of(LOOP, 1);
    let patch = pair.diff(&[]);
    let mut target = Target::start(&pair.path("old"));
    let strict = change("apply", &target, &patch, &["--dry-run"]).exits(0).out;
    assert!(strict.contains("no safe point now") && strict.contains("in serve+0x"), "{strict}");
    assert!(!strict.contains("go on in the old code"), "{strict}");
    let relaxed = change("apply", &target, &patch, &["--dry-run", "--relaxed"]).exits(0).out;
    assert!(relaxed.contains("a safe point exists now"), "{relaxed}");
    assert!(relaxed.contains("would go on in the old code: thread") && relaxed.contains("in serve+0x"), "{relaxed}");
    status(target.pid()).exits(3);
    assert_eq!(target.ask("9"), "1: 9");

    let pair = Pair::of(LOOP, 3);
    let patch = pair.diff(&[]);
    let mut target = Target::start(&pair.path("old"));
    let said = change("apply", &target, &patch, &["--dry-run", "--relaxed"]).exits(0).out;
    assert!(said.contains("no safe point now") && !said.contains("go on in the old code"), "{said}");
    assert_eq!(target.ask("9"), "1: 9");
}

fn a_contract_must_be_accepted() {
    let pair = Pair::of(LOOP, 3);
    let patch = pair.diff(&[]);
    assert!(pair.word(&patch, "serve").contains("calls handle"), "{}", pair.word(&patch, "serve"));
    let mut target = Target::start(&pair.path("old"));
    let refused = change("apply", &target, &patch, &["--relaxed", "--timeout", "500ms"]);
    let refused = refused.exits(4);
    assert!(refused.err.contains("--relaxed is not for serve: it calls handle"), "{}", refused.err);
    assert_eq!(target.ask("9"), "1: 9");

    let patch = pair.diff(&["--allow", "HP0507=serve"]);
    assert_eq!(pair.word(&patch, "serve"), "yes");
    change("apply", &target, &patch, &["--timeout", "300ms"]).exits(4);
    change("apply", &target, &patch, &["--relaxed"]).exits(0);
    assert_eq!(target.ask("9"), "1: 1009", "old loop, new function");
    assert_eq!(target.ask("s"), "started");
    assert_eq!(target.ask(">9"), "2: 5", "new loop, new function");
    let inspected = hp(["inspect".as_ref(), patch.as_os_str()]).out;
    assert!(inspected.contains("--relaxed: a thread may go on"), "{inspected}");
}

/// Each is one function with a fix, and something that forbids it to go on.
fn what_stands_against_it() {
    let program = |body: &str| {
        format!(
            "#include <pthread.h>\n#include <unistd.h>\n#include <stdlib.h>\npthread_mutex_t lock; struct s {{ int a, b; }} *s; long sum;\n{body}\nint main(void) {{ return serve(1); }}\n"
        )
    };
    let cases = [
        (
            "is fine",
            "yes",
            "__attribute__((noipa)) int serve(int n) { for (;;) { n = getppid() & 0xff;
#if NEW
            if (n > 9) n = 9;
#endif
            sum += n; } }",
        ),
        (
            "its locks",
            "its calls",
            "__attribute__((noipa)) int serve(int n) { for (;;) { n = getppid();
#if NEW
            pthread_mutex_lock(&lock);
#endif
            sum += n;
#if NEW
            pthread_mutex_unlock(&lock);
#endif
            } }",
        ),
        (
            "an atomic access",
            "its calls",
            "__attribute__((noipa)) int serve(int n) { for (;;) { n = getppid();
#if NEW
            __atomic_fetch_add(&sum, n, __ATOMIC_SEQ_CST);
#else
            sum += n;
#endif
            } }",
        ),
        (
            "its own entry",
            "its entry",
            "__attribute__((noipa)) int serve(int n) { if (n > 100000) return n; n += getppid();
#if NEW
            n += 2;
#endif
            return serve(n) / 3 + getppid(); }",
        ),
        (
            "a variable more",
            "variables",
            "__attribute__((noipa)) int serve(int n) { for (;;) { n = getppid();
#if NEW
            static long seen; seen += n; if (seen > 100) n = 0;
#endif
            sum += n; } }",
        ),
        (
            "a number",
            "HP0403",
            "__attribute__((noipa)) int serve(int n) { for (;;) { n = getppid();
#if NEW
            s->a = 8; s->b += n;
#else
            s->a = 4; s->b += n;
#endif
            } }",
        ),
        (
            "another function",
            "also is replaced",
            "__attribute__((noipa)) int also(int n) { return n * (3 + NEW); }
            __attribute__((noipa)) int serve(int n) { for (;;) { n = getppid();
#if NEW
            if (n > 9) n = 9;
#endif
            sum += n; } }
            int (*pointer)(int) = also;",
        ),
    ];
    for (what, expected, body) in cases {
        let pair = Pair::of(&program(body), 1);
        let patch = pair.diff(&[]);
        let word = pair.word(&patch, "serve");
        assert!(word.contains(expected), "{what}: {word}");
    }
}

/// A word that nothing proves is found by code that shares nothing with what gave it.
fn the_judge_sees_a_wrong_word() {
    let recursive = "int printf(const char *, ...);\n__attribute__((noipa)) int serve(int n) { if (n > 9) return n; return serve(n + printf(\"%d\", n)) / 3 + printf(\"%d\", NEW); }\nint main(void) { return serve(1); }\n";
    let pair = Pair::of(recursive, 1);
    let path = pair.diff(&[]);
    let mut patch = hp_pack::read(&fs::read(&path).expect("the patch")).expect("a patch");
    for record in &mut patch.functions {
        if let Role::Entry(entry) = &mut record.role {
            assert!(!entry.may_go_on);
            entry.may_go_on = true;
        }
    }
    fs::write(&path, hp_pack::write(&patch).expect("it can be written")).expect("the patch");
    let [old, new] = ["old", "new"].map(|name| pair.path(name));
    let arguments =
        ["verify".as_ref(), path.as_os_str(), "--old".as_ref(), old.as_os_str(), "--new".as_ref(), new.as_os_str()];
    let judged = hp(arguments);
    let judged = judged.exits(1);
    let said = format!("{judged}");
    assert!(said.contains("leads to its own entry"), "{said}");
}

/// GCC keeps values in registers that it knows a callee to leave alone; new code of the callee may not.
fn registers_that_callers_count_on() {
    let source = r#"
int printf(const char *, ...);
int getppid(void);
volatile long sum;
__attribute__((noinline, noclone)) long leaf(long x) {
#if NEW
    long y = x * 3, z = x * 5, v = x * 7, w = x * 9;
    __asm__ volatile("" : "+r"(y), "+r"(z), "+r"(v), "+r"(w));
    __asm__ volatile("xor %%r8d, %%r8d; xor %%r9d, %%r9d" ::: "r8", "r9");
    return y ^ z ^ v ^ w;
#else
    return x + 1;
#endif
}
__attribute__((noinline, noclone)) long serve(long n) {
    for (;;) {
        n = getppid() & 0xff;
#if NEW
        if (n > 9) n = 9;
#endif
        for (long i = 0; i < n; i++) sum += leaf(i) + n;
    }
}
int main(void) { return serve(1); }
"#;
    let pair = Pair::of(source, 1);
    let patch = pair.diff(&["--allow", "HP0507=serve"]);
    let word = pair.word(&patch, "serve");
    assert!(word.contains("leaf") && word.contains("registers"), "{word}");
}
