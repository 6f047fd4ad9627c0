//! A small target in an old and a new build, with a patch between them, for tests that are about the process
//! and not about the patch.

use super::hp;
use super::process::Running;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// Answers `answer(N)` for each line `N`; a first argument is a time to live in microseconds instead, a second one a
/// number of threads beside the first. At the line `exec` it makes many threads, says `armed`, and replaces itself in the
/// moment in which it finds the first of them traced, or at an empty line. Other empty lines mean nothing.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((noinline)) int answer(int n)
{
    int sum = 0;
    for (int i = 1; i <= n; i++)
        sum += i * FACTOR;
    return sum;
}

static void *idle(void *unused)
{
    for (volatile int sum = 0;; usleep(100))
        sum += answer(3);
    return unused;
}

static volatile int first;

static void *rest(void *unused)
{
    if (!first)
        first = gettid();
    for (;;)
        pause();
    return unused;
}

static void exec_when_traced(char *program)
{
    char path[64], status[4096], *tracer;
    pthread_attr_t small;
    pthread_t thread;

    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    pthread_create(&thread, &small, rest, NULL);
    while (!first)
        usleep(100);
    for (int i = 0; i < 600; i++)
        pthread_create(&thread, &small, rest, NULL);
    puts("armed");
    sprintf(path, "/proc/self/task/%d/status", first);
    int file = open(path, O_RDONLY);
    struct pollfd input = { .fd = 0, .events = POLLIN };
    do {
        if (poll(&input, 1, 0) == 1 && read(0, path, 1) == 1)
            break;
        ssize_t size = pread(file, status, sizeof status - 1, 0);
        status[size > 0 ? size : 0] = 0;
        tracer = strstr(status, "TracerPid:");
    } while (!tracer || atoi(tracer + 10) == 0);
    execl(program, program, (char *)NULL);
    abort();
}

int main(int argc, char **argv)
{
    char line[32];
    pthread_t thread;

    /* No buffers: a target that waits must not allocate when a test looks at its mappings. */
    setvbuf(stdout, NULL, _IONBF, 0);
    setvbuf(stdin, NULL, _IONBF, 0);
    for (int i = argc > 2 ? atoi(argv[2]) : 0; i > 0; i--)
        pthread_create(&thread, NULL, idle, NULL);
    puts("ready");
    if (argc > 1) {
        usleep(atoi(argv[1]));
        return 0;
    }
    while (fgets(line, sizeof line, stdin))
        if (!strcmp(line, "exec\n"))
            exec_when_traced(argv[0]);
        else if (*line != '\n')
            printf("%d\n", answer(atoi(line)));
    return 0;
}
"#;

/// Both builds and the patch, in a folder that goes with this value.
pub(crate) struct Pair {
    /// The folder; anybody may read it.
    pub(crate) folder: TempDir,
    /// The build that runs.
    pub(crate) old: PathBuf,
    /// The patch from old to new.
    pub(crate) patch: PathBuf,
}

impl Pair {
    /// Builds both and makes the patch. No two pairs have the same build ID, so that `--all` of one test never
    /// finds a target of another.
    pub(crate) fn make() -> Pair {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir();
        let folder = folder.expect("a temporary folder can be made");
        let old = compile(folder.path(), "old", 3);
        let new = compile(folder.path(), "new", 5);
        let patch = folder.path().join("fix.hpatch");
        hp::diff(&old, &new, &patch).exits(0);
        Pair { folder, old, patch }
    }

    /// Starts the old build; it waits for lines.
    pub(crate) fn start(&self) -> Target {
        Target::start(&mut Command::new(&self.old))
    }

    /// Starts the old build; it ends by itself.
    pub(crate) fn start_for(&self, microseconds: u32, threads: u32) -> Target {
        Target::start(Command::new(&self.old).args([microseconds.to_string(), threads.to_string()]))
    }
}

fn compile(folder: &Path, version: &str, factor: u32) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let source = folder.join("target.c");
    fs::write(&source, SOURCE).expect("the source can be written");
    let path = folder.join(version);
    let nanos = std::time::UNIX_EPOCH.elapsed().expect("the clock is past 1970").as_nanos();
    let id = format!("{nanos:024x}{:08x}{:08x}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let status = Command::new("gcc")
        .args(["-O2", "-g", "-pthread", &format!("-DFACTOR={factor}"), &format!("-Wl,--build-id=0x{id}"), "-o"])
        .args([&path, &source])
        .status();
    assert!(status.expect("gcc can be run").success(), "the target compiles");
    path
}

/// A running target.
pub(crate) struct Target {
    /// The process.
    pub(crate) process: Running,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    /// Starts a command that is or becomes a build of a [`Pair`].
    pub(crate) fn start(command: &mut Command) -> Target {
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let questions = process.child.stdin.take().expect("stdin is a pipe");
        let answers = BufReader::new(process.child.stdout.take().expect("stdout is a pipe"));
        let mut target = Target { process, questions, answers };
        assert_eq!(target.line(), "ready");
        target
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What `answer(10)` gives in it: 165 in the old build, 275 in the new one.
    pub(crate) fn ask(&mut self) -> String {
        self.say("10");
        self.line()
    }

    /// Gives it a line.
    pub(crate) fn say(&mut self, line: &str) {
        self.questions.write_all(format!("{line}\n").as_bytes()).expect("the target reads");
    }

    /// Its next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the target answers");
        line.trim_end().to_string()
    }
}

/// The old build's answer.
pub(crate) const OLD: &str = "165";
/// The new build's answer.
pub(crate) const NEW: &str = "275";
