//! Threads: many, busy ones, blocked ones, ones on odd stacks; and processes in odd states.

mod common;
use common::*;
use hp_apply::{Done, Error, Phase, apply_patch, revert, status};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tests that keep every processor busy go one after another.
static LOAD: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    LOAD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The cycles of one hammered program end after this long, on a busy machine too,
const HAMMER_LIMIT: Duration = Duration::from_secs(8);
/// but not before so many.
const FEWEST_CYCLES: u32 = 12;

fn hammer(threads: &str, breeders: &str, cycles: u32) {
    let _alone = alone();
    let program = Program::build(HAMMER, &[]);
    let mut target = program.spawn(&[threads, breeders]);
    let patch = program.patch(HAMMER_NEW, &["work", "inner"]);
    let mut longest = 0;
    // A thread may have left the function before the flip and count what it got after it.
    let limit = 100;
    let began = Instant::now();
    for round in 0..cycles {
        if round >= FEWEST_CYCLES && began.elapsed() > HAMMER_LIMIT {
            eprintln!("{round} cycles only");
            break;
        }
        let m = applied(apply_patch(target.pid(), &patch, ID, &options()));
        longest = longest.max(m.flip_pause_ns);
        if round % 4 == 0 {
            counts(&mut target);
            std::thread::sleep(Duration::from_millis(20));
            let [old, new, wrong, _] = counts(&mut target);
            assert!(old <= limit && new > limit && wrong == 0, "round {round}: {old} old, {new} new, {wrong} wrong");
        }
        let m = reverted(revert(target.pid(), Some(ID), &options()));
        longest = longest.max(m.flip_pause_ns);
        if round % 4 == 0 {
            counts(&mut target);
            std::thread::sleep(Duration::from_millis(20));
            let [old, new, wrong, _] = counts(&mut target);
            assert!(old > limit && new <= limit && wrong == 0, "round {round}: {old} old, {new} new, {wrong} wrong");
        }
    }
    eprintln!("longest flip pause: {longest} ns");
    assert_eq!(counts(&mut target)[2], 0);
    target.assert_free();
}

#[test]
fn sixty_four_threads_hammer_while_it_comes_and_goes() {
    hammer("64", "0", 200);
}

#[test]
fn threads_are_born_and_die_all_the_while() {
    hammer("2", "4", 100);
}

/// Each command is a thread that blocks somewhere and says how it came out.
const BLOCKER: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
static int pipe_fds[2], sockets[2];
static sem_t semaphore;
__attribute__((noinline,noclone)) long value(long x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
__attribute__((noinline,noclone)) long held(long x) {
    __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0");
    char byte;
    long got = read(pipe_fds[0], &byte, 1);
    return x + got;
}
// Never returns to its caller by an ordinary call at its end.
__attribute__((noinline,noclone)) long deep(long x) {
    __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0");
    if (x == 0) { char byte; return read(pipe_fds[0], &byte, 1); }
    long result = deep(x - 1);
    __asm__ volatile("" : "+r"(result));
    return result + 1;
}
static void handler(int signal) { char byte; (void)signal; if (read(pipe_fds[0], &byte, 1) != 1) abort(); }
static long long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000LL + t.tv_nsec / 1000000; }
static void say(const char *what, long result, int error) {
    flockfile(stdout); printf("%s %ld %s\n", what, result, result < 0 ? strerrorname_np(error) : "ok"); fflush(stdout); funlockfile(stdout);
}
static void *run(void *arg) {
    char *what = arg, byte;
    prctl(PR_SET_NAME, what);
    long result = -2;
    if (!strcmp(what, "held")) result = held(0);
    else if (!strcmp(what, "deep")) result = deep(40);
    else if (!strcmp(what, "read")) result = read(pipe_fds[0], &byte, 1);
    else if (!strcmp(what, "poll")) { struct pollfd p = { pipe_fds[0], POLLIN, 0 }; result = poll(&p, 1, 60000); }
    else if (!strcmp(what, "select")) { fd_set s; FD_ZERO(&s); FD_SET(pipe_fds[0], &s); struct timeval t = { 60, 0 }; result = select(pipe_fds[0] + 1, &s, 0, 0, &t); }
    else if (!strcmp(what, "recv")) result = recv(sockets[0], &byte, 1, 0);
    else if (!strcmp(what, "futex")) result = sem_wait(&semaphore);
    else if (!strcmp(what, "futextimed")) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); t.tv_sec += 60; result = sem_timedwait(&semaphore, &t); }
    else if (!strcmp(what, "sleep")) {
        long long start = now();
        struct timespec t = { 1, 500000000 };
        result = nanosleep(&t, 0);
        long long took = now() - start;
        if (took < 1490 || took > 2500) result = -took;
    } else if (!strcmp(what, "altstack")) {
        stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
        sigaltstack(&stack, 0);
        struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
        sigaction(SIGUSR1, &action, 0);
        raise(SIGUSR1);
        result = 1;
    } else if (!strcmp(what, "vdso")) {
        struct timespec t;
        volatile long sum = 0;
        long long end = now() + 1500;
        while (now() < end) { clock_gettime(CLOCK_MONOTONIC, &t); sum += t.tv_nsec; }
        result = 1;
    } else if (!strcmp(what, "vfork")) {
        pid_t child = vfork();
        if (child == 0) { struct timespec t = { 0, 700000000 }; nanosleep(&t, 0); _exit(7); }
        int status; result = waitpid(child, &status, 0) == child ? WEXITSTATUS(status) : -1;
    }
    say(what, result, errno);
    free(what);
    return 0;
}
int main(void) {
    if (pipe(pipe_fds) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) return 1;
    sem_init(&semaphore, 0, 0);
    puts("ready"); fflush(stdout);
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "value")) { say("value", value(1), 0); continue; }
        if (!strcmp(line, "byte")) { if (write(pipe_fds[1], "x", 1) != 1) return 1; continue; }
        if (!strcmp(line, "socket")) { if (write(sockets[1], "x", 1) != 1) return 1; continue; }
        if (!strcmp(line, "post")) { sem_post(&semaphore); continue; }
        pthread_t thread;
        pthread_create(&thread, 0, run, strdup(line));
        pthread_detach(thread);
    }
    return 0;
}
"#;

const VALUE_NEW: &str = "long value(long x) { return x + 100; }";

/// Waits until a thread of that name sleeps (or runs, if it is one that never sleeps).
fn wait_for_thread(target: &Process, name: &str, state: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        for task in std::fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap().flatten() {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            if stat.contains(&format!("({name}) {state}")) {
                std::thread::sleep(Duration::from_millis(20));
                return;
            }
        }
        assert!(Instant::now() < deadline, "no thread {name} in state {state}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn blocked_system_calls_go_on_as_if_nothing_had_been() {
    let program = Program::build(BLOCKER, &[]);
    let patch = program.patch(VALUE_NEW, &["value"]);
    for (what, wake, answer) in [
        ("read", "byte", "read 1 ok"),
        ("poll", "byte", "poll 1 ok"),
        ("select", "byte", "select 1 ok"),
        ("recv", "socket", "recv 1 ok"),
        ("futex", "post", "futex 0 ok"),
        ("futextimed", "post", "futextimed 0 ok"),
        ("sleep", "", "sleep 0 ok"),
    ] {
        let mut target = program.spawn(&[]);
        let before = target.maps();
        target.send(what);
        wait_for_thread(&target, what, "S");
        for _ in 0..10 {
            applied(apply_patch(target.pid(), &patch, ID, &options()));
            reverted(revert(target.pid(), Some(ID), &options()));
        }
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        if !wake.is_empty() {
            target.send(wake);
        }
        assert_eq!(target.line(), answer);
        assert_eq!(target.ask("value"), "value 101 ok");
        reverted(revert(target.pid(), Some(ID), &options()));
        assert_eq!(target.ask("value"), "value 2 ok");
        // A thread's arena and stack may have come; nothing of ours may have stayed.
        assert!(!target.maps().lines().any(|line| line.contains("r-xp") && line.ends_with("00:00 0 ")), "{before}");
    }
}

fn quick() -> hp_apply::Options {
    hp_apply::Options { timeout: Duration::from_millis(300), ..options() }
}

#[track_caller]
fn busy(outcome: hp_apply::Outcome) -> Vec<String> {
    match outcome.result {
        Err(Error::Busy(lines)) => lines.iter().map(|line| line.to_string()).collect(),
        other => panic!("not busy: {other:?}"),
    }
}

#[test]
fn a_busy_function_is_named_and_the_target_unchanged() {
    let program = Program::build(BLOCKER, &[]);
    for (what, function) in [("held", "held"), ("deep", "deep")] {
        let mut target = program.spawn(&[]);
        target.send(what);
        wait_for_thread(&target, what, "S");
        let before = target.maps();
        let source = format!("long {function}(long x) {{ return x + 7; }}");
        let patch = program.patch(&source, &[function]);
        let address = target.bias(&program) + program.symbol(function).unwrap().0;
        let code = target.memory(address, 32);
        let lines = busy(apply_patch(target.pid(), &patch, ID, &quick()));
        assert!(lines.len() == 1, "{lines:?}");
        let line = &lines[0];
        assert!(line.contains(&format!("({what}) in {function}+0x")) && line.contains("(blocked in read)"), "{line}");
        assert_eq!(target.maps(), before);
        assert_eq!(target.memory(address, 32), code);
        assert_eq!(status(target.pid()).unwrap(), []);
        // Released in the middle of the waiting: then it is patched.
        std::thread::scope(|scope| {
            let pid = target.pid();
            let patch = &patch;
            let applier = scope.spawn(move || apply_patch(pid, patch, ID, &options()));
            std::thread::sleep(Duration::from_millis(200));
            target.send("byte");
            assert_eq!(target.line(), format!("{what} {} ok", if what == "deep" { 41 } else { 1 }));
            applied(applier.join().unwrap());
        });
        target.send(what);
        assert_eq!(target.line(), format!("{what} {} ok", if what == "deep" { 47 } else { 7 }));
    }
}

/// Nothing can be walked, so every word of a stack that could lead back counts.
#[test]
fn a_thread_inside_is_found_without_unwind_rows() {
    let program = Program::build(BLOCKER, &["-fno-asynchronous-unwind-tables"]);
    let mut target = program.spawn(&[]);
    target.send("held");
    wait_for_thread(&target, "held", "S");
    let patch =
        program.patch_with("long held(long x) { return x + 7; }", &["held"], &["-fno-asynchronous-unwind-tables"]);
    let (address, before) = (target.bias(&program) + program.symbol("held").unwrap().0, target.maps());
    let code = target.memory(address, 32);
    let lines = busy(apply_patch(target.pid(), &patch, ID, &quick()));
    assert!(lines.len() == 1 && lines[0].contains("(held)") && lines[0].contains("(blocked in read)"), "{lines:?}");
    assert_eq!((target.maps(), target.memory(address, 32)), (before, code));
    target.send("byte");
    assert_eq!(target.line(), "held 1 ok");
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    target.send("held");
    assert_eq!(target.line(), "held 7 ok");
}

#[test]
fn a_thread_in_new_code_holds_a_revert_up() {
    let program = Program::build(BLOCKER, &[]);
    let mut target = program.spawn(&[]);
    let source = r#"
        #include <unistd.h>
        extern int pipe_fds[2];
        __attribute__((noinline)) static long wait_inside(void) { char byte; long got = read(pipe_fds[0], &byte, 1); __asm__ volatile("" : "+r"(got)); return got; }
        long held(long x) { return x + 10 * wait_inside(); }
    "#;
    let patch = program.patch(source, &["held"]);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    target.send("held");
    wait_for_thread(&target, "held", "S");
    let lines = busy(revert(target.pid(), Some(ID), &quick()));
    assert!(lines[0].contains("(held) in held+0x") && lines[0].contains("blocked in read"), "{lines:?}");
    assert_eq!(status(target.pid()).unwrap()[0].phase, Phase::Active);
    target.send("byte");
    assert_eq!(target.line(), "held 10 ok");
    reverted(revert(target.pid(), Some(ID), &options()));
}

#[test]
fn a_handler_on_another_stack_is_walked_through() {
    let program = Program::build(BLOCKER, &[]);
    let mut target = program.spawn(&[]);
    target.send("altstack");
    wait_for_thread(&target, "altstack", "S");
    let patch = program.patch(VALUE_NEW, &["value"]);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(target.ask("value"), "value 101 ok");
    target.send("byte");
    assert_eq!(target.line(), "altstack 1 ok");
}

#[test]
fn a_thread_in_the_vdso_is_no_obstacle() {
    let program = Program::build(BLOCKER, &[]);
    let mut target = program.spawn(&[]);
    target.send("vdso");
    wait_for_thread(&target, "vdso", "R");
    let patch = program.patch(VALUE_NEW, &["value"]);
    for _ in 0..50 {
        applied(apply_patch(target.pid(), &patch, ID, &quick()));
        reverted(revert(target.pid(), Some(ID), &quick()));
    }
    assert_eq!(target.line(), "vdso 1 ok");
}

#[test]
fn a_vfork_is_waited_for() {
    let program = Program::build(BLOCKER, &[]);
    let mut target = program.spawn(&[]);
    target.send("vfork");
    std::thread::sleep(Duration::from_millis(100));
    let patch = program.patch(VALUE_NEW, &["value"]);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(target.line(), "vfork 7 ok");
    assert_eq!(target.ask("value"), "value 101 ok");
    target.assert_free();
}

/// Who waits in the kernel for longer than the timeout, and cannot be interrupted there: the others are held for a moment
/// only, it goes on as if nothing had been, and the patch comes in later.
#[test]
fn a_thread_that_cannot_be_stopped_is_left_alone() {
    let source = BLOCKER.replace("{ 0, 700000000 }", "{ 4, 0 }");
    let program = Program::build(&source, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    target.send("vfork");
    wait_for_thread(&target, "vfork", "D");
    let threads_before = target.maps().lines().count();
    let patch = program.patch(VALUE_NEW, &["value"]);
    let lines = busy(apply_patch(target.pid(), &patch, ID, &quick()));
    assert!(lines.len() == 1 && lines[0].contains("shares its memory"), "{lines:?}");
    assert_eq!(target.maps().lines().count(), threads_before, "{before}");
    assert_eq!(target.ask("value"), "value 2 ok");
    target.assert_free();
    assert_eq!(target.line(), "vfork 7 ok");
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(target.ask("value"), "value 101 ok");
}

/// A control group in which processes are frozen; it goes with this value.
struct Freezer {
    folder: PathBuf,
    /// Of the first kind (`freezer.state`): who is frozen sleeps in the kernel, and no tracer wakes it.
    deep: bool,
}

impl Freezer {
    /// `None` where none can be made.
    fn make() -> Option<Freezer> {
        let kinds = [("/sys/fs/cgroup/freezer", true), ("/sys/fs/cgroup", false), ("/sys/fs/cgroup/unified", false)];
        kinds.into_iter().find_map(|(mount, deep)| {
            let folder = PathBuf::from(mount).join(format!("hp-test-frozen-{}", std::process::id()));
            std::fs::create_dir(&folder).ok()?;
            let freezer = Freezer { folder, deep };
            freezer.folder.join(freezer.file()).exists().then_some(freezer)
        })
    }

    fn file(&self) -> &'static str {
        if self.deep { "freezer.state" } else { "cgroup.freeze" }
    }

    fn freeze(&self, on: bool) {
        let word = match (self.deep, on) {
            (true, true) => "FROZEN",
            (true, false) => "THAWED",
            (false, on) => ["0", "1"][usize::from(on)],
        };
        std::fs::write(self.folder.join(self.file()), word).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = std::fs::write(self.folder.join(self.file()), if self.deep { "THAWED" } else { "0" });
        // Whoever is in it lives longer than this.
        let inside = std::fs::read_to_string(self.folder.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            let _ = std::fs::write(self.folder.with_file_name("cgroup.procs"), pid);
        }
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// In a sleep that nothing interrupts: the command says so and gives up, and when the process wakes nobody holds it. Where a
/// frozen process can be stopped all the same, it is patched and stays frozen.
#[test]
fn a_process_in_a_sleep_that_nothing_interrupts() {
    let program = Program::build(BLOCKER, &[]);
    let patch = program.patch(VALUE_NEW, &["value"]);
    let mut target = program.spawn(&[]);
    // It thaws before the target is ended and waited for.
    let Some(freezer) = Freezer::make() else {
        eprintln!("no control group can be made here");
        return;
    };
    let before = target.maps();
    target.send("read");
    wait_for_thread(&target, "read", "S");
    let maps = target.maps();
    std::fs::write(freezer.folder.join("cgroup.procs"), target.pid().to_string()).unwrap();
    freezer.freeze(true);
    target.send("value");
    let began = Instant::now();
    let outcome = apply_patch(target.pid(), &patch, ID, &quick());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let answer = if freezer.deep {
        let lines = busy(outcome);
        assert!(lines.len() == 1 && lines[0].contains("does not stop (state D"), "{lines:?}");
        assert_eq!(target.maps(), maps, "{before}");
        "value 2 ok"
    } else {
        applied(outcome);
        "value 101 ok"
    };
    freezer.freeze(false);
    assert_eq!(target.line(), answer);
    target.assert_free();
    let again = apply_patch(target.pid(), &patch, ID, &options()).result;
    assert!(matches!(again, Ok(Done::Applied(_) | Done::AlreadyApplied)), "{again:?}");
    assert_eq!(target.ask("value"), "value 101 ok");
    target.send("byte");
    assert_eq!(target.line(), "read 1 ok");
}

/// Another process that runs in the same memory: its stack is not one of ours to stop, so nothing is changed while it lives.
#[test]
fn a_process_that_shares_the_memory_is_in_the_way() {
    const SHARER: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
static int run(void *unused) { prctl(PR_SET_PDEATHSIG, SIGKILL); for (;;) pause(); return 0; }
int main(void) {
    char line[100];
    pid_t child = clone(run, (char *)malloc(65536) + 65536, CLONE_VM | SIGCHLD, 0);
    printf("ready\n%d\n", child); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "end\n")) { kill(child, SIGKILL); waitpid(child, 0, 0); }
        printf("%d\n", value(0)); fflush(stdout);
    }
    return 0;
}
"#;
    let program = Program::build(SHARER, &[]);
    let mut target = program.spawn(&[]);
    let child: i32 = target.line().parse().unwrap();
    let patch = program.patch("int value(int x) { return x + 100; }", &["value"]);
    let before = target.maps();
    for (pid, other) in [(target.pid(), child), (child, target.pid())] {
        let lines = busy(apply_patch(pid, &patch, ID, &quick()));
        assert!(
            lines.len() == 1 && lines[0].contains(&format!("process {other} (target) shares its memory")),
            "{lines:?}"
        );
    }
    assert_eq!((target.ask(""), target.maps()), ("1".into(), before));
    assert_eq!(target.ask("end"), "1");
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(target.ask(""), "100");
}

#[test]
fn a_stopped_process_stays_stopped() {
    let program = Program::build(BLOCKER, &[]);
    let mut target = program.spawn(&[]);
    target.send("sleep");
    wait_for_thread(&target, "sleep", "S");
    let patch = program.patch(VALUE_NEW, &["value"]);
    let pid = target.pid().to_string();
    run_tool("kill", &["-STOP", &pid]);
    wait_for_thread(&target, "sleep", "T");
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    wait_for_thread(&target, "sleep", "T");
    wait_for_thread(&target, "target", "T");
    target.assert_free();
    run_tool("kill", &["-CONT", &pid]);
    assert_eq!(target.ask("value"), "value 101 ok");
    run_tool("kill", &["-STOP", &pid]);
    wait_for_thread(&target, "target", "T");
    reverted(revert(target.pid(), Some(ID), &options()));
    wait_for_thread(&target, "target", "T");
    run_tool("kill", &["-CONT", &pid]);
    assert_eq!(target.ask("value"), "value 2 ok");
    assert!(target.line().starts_with("sleep"));
}

#[test]
fn a_traced_process_is_left_to_its_tracer() {
    let program = Program::build(BLOCKER, &[]);
    let target = program.spawn(&[]);
    let patch = program.patch(VALUE_NEW, &["value"]);
    let mut gdb = Command::new("gdb")
        .args(["-q", "-nx", "-batch", "-p", &target.pid().to_string(), "-ex", "shell sleep 3"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_thread(&target, "target", "t");
    let result = apply_patch(target.pid(), &patch, ID, &options()).result;
    let Err(Error::Unusable(text)) = result else { panic!("{result:?}") };
    assert!(text.contains("already traced by process") && text.contains("(gdb)"), "{text}");
    gdb.kill().unwrap();
    gdb.wait().unwrap();
}

#[test]
fn processes_that_cannot_be_patched() {
    let program = Program::build(BLOCKER, &[]);
    let patch = program.patch(VALUE_NEW, &["value"]);
    let unusable = |pid: i32| match apply_patch(pid, &patch, ID, &options()).result {
        Err(Error::Unusable(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(unusable(i32::MAX).contains("no such process"));
    assert!(unusable(2).contains("kernel thread"));
    let mut zombie = Command::new("true").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(unusable(zombie.id() as i32).contains("zombie"));
    zombie.wait().unwrap();
    assert!(matches!(unusable(-1), text if text.contains("no such process")));
}

#[test]
fn two_appliers_at_once_do_not_harm_each_other() {
    let _alone = alone();
    let program = Program::build(HAMMER, &[]);
    let mut target = program.spawn(&["8", "1"]);
    let patch = program.patch(HAMMER_NEW, &["work", "inner"]);
    let pid = target.pid();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let began = Instant::now();
                for _ in (0..30).take_while(|round| *round < 5 || began.elapsed() < HAMMER_LIMIT) {
                    let result = apply_patch(pid, &patch, ID, &options()).result;
                    let harmless = matches!(&result, Ok(_) | Err(Error::Unusable(_) | Error::Refused(_)));
                    assert!(harmless, "{result:?}");
                    let _ = revert(pid, Some(ID), &options());
                }
            });
        }
    });
    revert(pid, None, &options()).result.unwrap();
    assert_eq!(counts(&mut target)[2], 0);
    assert!(matches!(revert(pid, None, &options()).result, Ok(Done::NotApplied)));
    target.assert_free();
}

#[test]
fn a_process_that_ends_in_the_middle_hangs_nobody() {
    let _alone = alone();
    let program = Program::build(HAMMER, &[]);
    let patch = program.patch(HAMMER_NEW, &["work", "inner"]);
    for delay in 0..20 {
        let target = program.spawn(&["8", "0"]);
        let pid = target.pid();
        std::thread::scope(|scope| {
            let applier = scope.spawn(|| {
                loop {
                    let result = apply_patch(pid, &patch, ID, &options()).result;
                    result?;
                    revert(pid, None, &options()).result?;
                }
            });
            std::thread::sleep(Duration::from_micros(2000 + delay * 701));
            run_tool("kill", &["-KILL", &pid.to_string()]);
            let result: Result<(), Error> = applier.join().unwrap();
            assert!(matches!(result, Err(Error::Unusable(_))), "{result:?}");
        });
    }
}
