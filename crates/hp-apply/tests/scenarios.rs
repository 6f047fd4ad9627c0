//! Situations of targets that the other tests do not have: see docs/SCENARIOS.md.

mod common;
use common::*;
use hp_apply::{Error, apply_patch, revert, targets_of};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

/// A sequence that keeps a busy machine busy is cut after so long, but not before so many rounds.
fn rounds(wanted: u32, limit: Duration, mut round: impl FnMut(u32)) {
    let began = Instant::now();
    for number in (0..wanted).take_while(|number| *number < 8 || began.elapsed() < limit) {
        round(number);
    }
}

/// A function that answers, and a thread that does what the first argument says, again and again.
const BESIDE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#define APART __attribute__((noinline,noclone))
#define NOP __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0")
static volatile long turns, bad;
APART int value(int x) { NOP; return x + 1; }
/* Below it there is always a frame of the vDSO or the C library. */
APART long inside(long x) {
    NOP;
    struct timespec t;
    for (;;) { clock_gettime(CLOCK_MONOTONIC, &t); x += t.tv_nsec; __asm__ volatile("" : "+r"(x)); }
    return x;
}
static void *allocate(void *unused) {
    for (;; turns++) {
        char *all[16];
        for (int i = 0; i < 16; i++) memset(all[i] = malloc(50 << i % 9), i, 50);
        for (int i = 0; i < 16; i++) { if (all[i][49] != i) bad++; free(all[i]); }
    }
    return unused;
}
static void *load(void *unused) {
    for (;; turns++) {
        void *library = dlopen("libm.so.6", RTLD_NOW);
        if (!library || !dlsym(library, "cos")) bad++;
        if (library) dlclose(library);
    }
    return unused;
}
static void *print(void *unused) {
    FILE *file = fopen("/dev/null", "w");
    for (;; turns++) if (fprintf(file, "%ld %s %g\n", turns, "text", 1.5) < 10) bad++;
    return unused;
}
static void *unwind(void *unused) {
    void *frames[50];
    for (;; turns++) if (backtrace(frames, 50) < 2) bad++;
    return unused;
}
static void *cancelled(void *unused) { for (;;) { value(1); usleep(100); pthread_testcancel(); } return unused; }
static void *canceller(void *unused) {
    for (;; turns++) {
        pthread_t thread; void *result;
        if (pthread_create(&thread, 0, cancelled, 0)) { bad++; continue; }
        usleep(rand() % 500);
        pthread_cancel(thread);
        if (pthread_join(thread, &result) || result != PTHREAD_CANCELED) bad++;
    }
    return unused;
}
static void *busy_inside(void *unused) { inside(1); return unused; }
static void *quit(void *unused) { value(1); pthread_exit(unused); }
static void *quitter(void *unused) {
    for (;; turns++) { pthread_t thread; if (pthread_create(&thread, 0, quit, 0) == 0) pthread_join(thread, 0); else bad++; }
    return unused;
}
/* Takes every free place within 2 GiB of the program. */
static void no_room(void) {
    for (int again = 0; again < 4; again++) {
        FILE *maps = fopen("/proc/self/maps", "r");
        unsigned long start, end, before = 0x10000, own = (unsigned long)value & ~4095UL, holes[4000][2]; int count = 0; char line[600];
        while (fgets(line, sizeof line, maps) && count < 3990) {
            sscanf(line, "%lx-%lx", &start, &end);
            unsigned long low = before > own - (1UL << 32) ? before : own - (1UL << 32);
            unsigned long high = start < own + (1UL << 32) ? start : own + (1UL << 32);
            if (start < 0x800000000000 && low < high) { holes[count][0] = low; holes[count++][1] = high; }
            before = end;
        }
        fclose(maps);
        for (int i = 0; i < count; i++)
            mmap((void *)holes[i][0], holes[i][1] - holes[i][0], PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | 0x100000, -1, 0);
    }
}
int main(int argc, char **argv) {
    setvbuf(stdin, 0, _IONBF, 0);
    setvbuf(stdout, 0, _IONBF, 0);
    struct { const char *name; void *(*run)(void *); } kinds[] = {
        { "allocate", allocate }, { "load", load }, { "print", print }, { "unwind", unwind }, { "cancel", canceller },
        { "inside", busy_inside }, { "quit", quitter } };
    pthread_t thread;
    for (int i = 0; i < 7; i++)
        for (int n = argc > 1 && !strcmp(argv[1], kinds[i].name) ? 3 : 0; n > 0; n--) pthread_create(&thread, 0, kinds[i].run, 0);
    if (argc > 1 && !strcmp(argv[1], "full")) no_room();
    if (argc > 1 && !strcmp(argv[1], "mdwe") && prctl(65, 1, 0, 0, 0)) { puts("unsupported"); return 0; }
    puts("ready");
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "exec\n")) { execv("/proc/self/exe", argv); return 1; }
        printf("%d %ld %ld\n", value(0), turns, bad);
    }
    return 0;
}
"#;

const NEW: &str = "int value(int x) { return x + 100; }";

/// What `value` gives and how often the other threads have been round; nothing was wrong with them.
#[track_caller]
fn ask(target: &mut Process) -> (i64, i64) {
    let line = target.ask("");
    let numbers: Vec<i64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers[2], 0, "{line}");
    (numbers[0], numbers[1])
}

/// Threads that are in the allocator, the loader, the streams, the unwinder, or come to an end: no deadlock, nothing damaged.
#[test]
fn threads_that_hold_the_c_librarys_locks() {
    let program = Program::build(BESIDE, &["-rdynamic", "-ldl"]);
    let patch = program.patch(NEW, &["value"]);
    for what in ["allocate", "load", "print", "unwind", "cancel", "quit"] {
        let mut target = program.spawn(&[what]);
        let mut turns = 0;
        rounds(200, Duration::from_secs(6), |round| {
            applied(apply_patch(target.pid(), &patch, ID, &options()));
            if round % 8 == 0 {
                assert_eq!(ask(&mut target).0, 100, "{what}");
            }
            reverted(revert(target.pid(), Some(ID), &options()));
            if round % 8 == 0 {
                let now = ask(&mut target);
                assert_eq!(now.0, 1, "{what}");
                turns = now.1;
            }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while ask(&mut target).1 <= turns {
            assert!(Instant::now() < deadline, "{what}: the threads stand still");
        }
        target.assert_free();
    }
}

/// A replaced function below the vDSO is always found: an unwinder that fails open would patch under it.
#[test]
fn a_replaced_function_below_the_vdso_is_busy_every_time() {
    let program = Program::build(BESIDE, &["-ldl"]);
    let mut target = program.spawn(&["inside"]);
    let patch = program.patch("long inside(long x) { return x; }", &["inside"]);
    let quick = hp_apply::Options { timeout: Duration::from_millis(20), ..options() };
    for attempt in 0..30 {
        match apply_patch(target.pid(), &patch, ID, &quick).result {
            Err(Error::Busy(lines)) => {
                assert!(lines.iter().all(|line| line.contains("in inside+0x")), "{attempt}: {lines:?}");
            }
            other => panic!("{attempt}: {other:?}"),
        }
    }
    assert_eq!(ask(&mut target).0, 1);
    target.assert_free();
}

#[test]
fn no_room_within_reach() {
    let program = Program::build(BESIDE, &["-ldl"]);
    let mut target = program.spawn(&["full"]);
    let before = target.maps();
    let text = refused(apply_patch(target.pid(), &program.patch(NEW, &["value"]), ID, &options()));
    assert!(text.contains("within 2 GiB of the base"), "{text}");
    assert_eq!((ask(&mut target).0, target.maps()), (1, before));
}

/// `MemoryDenyWriteExecute` as systemd has it: `PR_SET_MDWE` with `PR_MDWE_REFUSE_EXEC_GAIN`.
#[test]
fn memory_deny_write_execute() {
    let program = Program::build(BESIDE, &["-ldl"]);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let version: Vec<u32> = kernel.split(['.', '-']).take(2).map(|part| part.parse().unwrap_or(0)).collect();
    if version < vec![6, 3] {
        eprintln!("this kernel has no PR_SET_MDWE");
        return;
    }
    let mut target = program.spawn(&["mdwe"]);
    let patch = program.patch(NEW, &["value"]);
    let before = target.maps();
    for _ in 0..3 {
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        assert_eq!(ask(&mut target).0, 100);
        reverted(revert(target.pid(), Some(ID), &options()));
        assert_eq!((ask(&mut target).0, target.maps()), (1, before.clone()));
    }
}

#[test]
fn never_writable_and_executable() {
    let program = Program::build(BESIDE, &["-ldl"]);
    let target = program.spawn(&["print"]);
    let patch = program.patch(NEW, &["value"]);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (pid, done) = (target.pid(), &done);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let mut seen = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
                assert!(
                    !maps.lines().any(|line| line.split(' ').nth(1).is_some_and(|p| p.starts_with("rwx"))),
                    "{maps}"
                );
                seen += 1;
            }
            seen
        });
        rounds(30, Duration::from_secs(5), |_| {
            applied(apply_patch(target.pid(), &patch, ID, &options()));
            reverted(revert(target.pid(), Some(ID), &options()));
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(watcher.join().unwrap() > 10);
    });
}

#[test]
fn a_thousand_threads() {
    // A thousand that mostly wait, where the test of versions has them busy.
    let source =
        VERSIONED.replace("for (;;) {\n        long result", "for (;;) {\n        usleep(20000);\n        long result");
    let source = format!("#include <unistd.h>\n{source}");
    let program = Program::build(&source, &[]);
    let mut target = program.spawn(&["999"]);
    let patch = version(&program, 2, 1);
    rounds(8, Duration::from_secs(20), |_| {
        let measured = applied(apply_patch(target.pid(), &patch, ID, &options()));
        assert_eq!((measured.threads, version_of(&mut target)), (1000, 2));
        reverted(revert(target.pid(), Some(ID), &options()));
        assert_eq!(version_of(&mut target), 1);
    });
    target.assert_free();
}

/// The parent of a target waits for stopped children too: it sees nothing of us.
#[test]
fn a_parent_that_waits_for_stops_sees_none() {
    const PARENT: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
int main(void) {
    pid_t child = fork();
    if (child == 0) { char line[100]; while (fgets(line, sizeof line, stdin)) { printf("%d\n", value(0)); fflush(stdout); } _exit(0); }
    printf("ready\n%d\n", child); fflush(stdout);
    int status;
    pid_t got = waitpid(child, &status, WUNTRACED | WCONTINUED);
    printf("%s\n", got == child && WIFEXITED(status) ? "exited" : "something else"); fflush(stdout);
    sleep(60);
    return 0;
}
"#;
    let program = Program::build(PARENT, &[]);
    let mut parent = program.spawn(&[]);
    let child: i32 = parent.line().parse().unwrap();
    let patch = program.patch(NEW, &["value"]);
    for _ in 0..20 {
        applied(apply_patch(child, &patch, ID, &options()));
        assert_eq!(parent.ask(""), "100");
        reverted(revert(child, Some(ID), &options()));
        assert_eq!(parent.ask(""), "1");
    }
    run_tool("kill", &["-TERM", &child.to_string()]);
    assert_eq!(parent.line(), "something else", "killed, and nothing before that");
}

/// What a call comes to when it is interrupted by us is what it comes to after SIGSTOP and SIGCONT.
#[test]
fn calls_come_out_as_after_sigstop_and_sigcont() {
    const CALLS: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
static const char *what;
static void *run(void *unused) {
    long result = -2;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    struct timespec t = { 0, 900000000 };
    struct epoll_event event = { .events = EPOLLIN };
    int fds[2];
    if (pipe(fds)) return unused;
    if (!strcmp(what, "accept")) { bind(fd, (void *)&name, sizeof(sa_family_t)); listen(fd, 1); alarm(0); result = accept(fd, 0, 0); }
    if (!strcmp(what, "epoll")) { int e = epoll_create1(0); epoll_ctl(e, EPOLL_CTL_ADD, fds[0], &event); result = epoll_wait(e, &event, 1, 900); }
    if (!strcmp(what, "poll")) { struct pollfd p = { fds[0], POLLIN, 0 }; result = poll(&p, 1, 900); }
    if (!strcmp(what, "ppoll")) { struct pollfd p = { fds[0], POLLIN, 0 }; result = ppoll(&p, 1, &t, 0); }
    if (!strcmp(what, "all")) {
        // Of ten bytes four are there, and no more come.
        int s[2]; char bytes[10]; struct timeval limit = { 0, 900000 };
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) || write(s[1], "abcd", 4) != 4) return unused;
        setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        result = recv(s[0], bytes, sizeof bytes, MSG_WAITALL);
    }
    if (!strcmp(what, "write")) {
        // More than a pipe takes, and nobody reads it before a second is over.
        static char bytes[200000];
        if (fork() == 0) { static char all[200000]; close(fds[1]); usleep(900000); for (long n = 0, got; n < 200000 && (got = read(fds[0], all, sizeof all)) > 0;) n += got; _exit(0); }
        close(fds[0]);
        signal(SIGPIPE, SIG_IGN);
        result = write(fds[1], bytes, sizeof bytes);
    }
    if (!strcmp(what, "nanosleep")) result = nanosleep(&t, 0);
    if (!strcmp(what, "clock_nanosleep")) result = clock_nanosleep(CLOCK_MONOTONIC, 0, &t, 0);
    if (!strcmp(what, "sigwait")) { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); result = sigtimedwait(&set, 0, &t); }
    printf("%s %ld %d\n", what, result, result < 0 ? errno : 0); fflush(stdout);
    return unused;
}
int main(int argc, char **argv) {
    pthread_t thread;
    what = argv[1];
    puts("ready"); fflush(stdout);
    pthread_create(&thread, 0, run, 0);
    for (;;) { sleep(1); value(argc); }
}
"#;
    let program = Program::build(CALLS, &[]);
    let patch = program.patch(NEW, &["value"]);
    for what in ["accept", "epoll", "poll", "ppoll", "nanosleep", "clock_nanosleep", "sigwait", "all", "write"] {
        let stopped = program.spawn(&[what]);
        let ours = program.spawn(&[what]);
        std::thread::sleep(Duration::from_millis(150));
        for _ in 0..3 {
            run_tool("kill", &["-STOP", &stopped.pid().to_string()]);
            std::thread::sleep(Duration::from_millis(20));
            run_tool("kill", &["-CONT", &stopped.pid().to_string()]);
            applied(apply_patch(ours.pid(), &patch, ID, &options()));
            reverted(revert(ours.pid(), Some(ID), &options()));
        }
        if what == "accept" {
            // It goes on waiting: after a while both threads still do.
            std::thread::sleep(Duration::from_millis(300));
            for process in [&stopped, &ours] {
                let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap().count();
                assert_eq!(tasks, 2);
            }
            continue;
        }
        assert_eq!(ours.line(), stopped.line());
    }
}

/// A program that replaces itself all the while: patched or not, but never hurt and never left standing.
#[test]
fn exec_under_way() {
    let program = Program::build(BESIDE, &["-ldl"]);
    let patch = program.patch(NEW, &["value"]);
    let mut target = program.spawn(&["quit"]);
    let pid = target.pid();
    let stop = AtomicBool::new(false);
    let applied = AtomicU32::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while began.elapsed() < Duration::from_secs(60) && !stop.load(Relaxed) {
                let outcome = apply_patch(pid, &patch, ID, &options()).result;
                applied.fetch_add(u32::from(outcome.is_ok()), Relaxed);
                let harmless = matches!(outcome, Ok(_) | Err(Error::Unusable(_) | Error::Refused(_)));
                assert!(harmless, "{outcome:?}");
                let _ = revert(pid, Some(ID), &options());
            }
        });
        rounds(60, Duration::from_secs(10), |_| {
            target.send("exec");
            assert_eq!(target.line(), "ready");
        });
        // On a loaded machine no attempt may fit between two of them; the next that meets no exec goes through.
        while applied.load(Relaxed) == 0 && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Relaxed);
    });
    assert!(applied.into_inner() > 0);
    let _ = revert(pid, None, &options());
    assert_eq!(ask(&mut target).0, 1);
    target.assert_free();
}

/// User, pid, mount and network namespaces of its own.
#[test]
fn other_namespaces() {
    let program = Program::build(BESIDE, &["-ldl"]);
    let patch = program.patch(NEW, &["value"]);
    let mut command = Command::new("unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--net",
        "--ipc",
        "--uts",
        "--pid",
        "--fork",
        "--kill-child",
    ]);
    command.arg(&program.exe);
    let allowed = Command::new("unshare").args(["--user", "--map-root-user", "--pid", "--fork", "true"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("namespaces are not allowed here");
        return;
    }
    let mut outer = Process::spawn(&mut command);
    let found = targets_of(&program.build_id()).unwrap();
    assert_eq!(found.len(), 1, "only the program itself runs the base: {found:?}");
    let pid = found[0];
    assert_ne!(pid, outer.pid());
    applied(apply_patch(pid, &patch, ID, &options()));
    assert_eq!(ask(&mut outer).0, 100);
    reverted(revert(pid, Some(ID), &options()));
    assert_eq!(ask(&mut outer).0, 1);
}

/// `sh -c PROGRAM`: the program is found and patched, the shell is no target.
#[test]
fn started_by_a_shell_and_fifty_at_once() {
    let program = Program::build(BESIDE, &["-ldl"]);
    let patch = program.patch(NEW, &["value"]);
    let script = format!("{} && true", program.exe.display());
    let mut wrapped = Process::spawn(Command::new("sh").args(["-c", &script]).process_group(0));
    let mut others: Vec<Process> = (0..49).map(|_| program.spawn(&[])).collect();
    let found = targets_of(&program.build_id()).unwrap();
    assert_eq!(found.len(), 50);
    assert!(!found.contains(&wrapped.pid()));
    let text = refused(apply_patch(wrapped.pid(), &patch, ID, &options()));
    assert!(text.contains("does not run the base"), "{text}");
    for &pid in &found {
        applied(apply_patch(pid, &patch, ID, &options()));
    }
    assert_eq!(ask(&mut wrapped).0, 100);
    for other in &mut others {
        assert_eq!(ask(other).0, 100);
    }
    let inner = found.into_iter().find(|pid| others.iter().all(|other| other.pid() != *pid)).unwrap();
    run_tool("kill", &["-KILL", &inner.to_string()]);
}

/// Not dumpable: root may, and the process stays as it was.
#[test]
fn not_dumpable() {
    const HIDDEN: &str = r#"
#include <stdio.h>
#include <sys/prctl.h>
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
int main(void) {
    char line[100];
    prctl(PR_SET_DUMPABLE, 0);
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) { printf("%d %d\n", value(0), prctl(PR_GET_DUMPABLE)); fflush(stdout); }
    return 0;
}
"#;
    let program = Program::build(HIDDEN, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(NEW, &["value"]);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(target.ask(""), "100 0");
    reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!(target.ask(""), "1 0");
}

/// The program's own code lies in anonymous memory (as where it was moved to huge pages): nothing says that
/// this is the base, so it is left alone.
#[test]
fn code_that_was_moved_to_huge_pages_is_refused() {
    const MOVED: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
extern char __executable_start, etext;
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
int main(void) {
    char line[100];
    unsigned long start = (unsigned long)value & ~4095UL, end = ((unsigned long)&etext + 4095) & ~4095UL;
    void *copy = mmap(0, end - start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(copy, (void *)start, end - start);
    madvise(copy, end - start, MADV_HUGEPAGE);
    mprotect(copy, end - start, PROT_READ | PROT_EXEC);
    mremap(copy, end - start, end - start, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start);
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) { printf("%d\n", value(0)); fflush(stdout); }
    return 0;
}
"#;
    let program = Program::build(MOVED, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let text = refused(apply_patch(target.pid(), &program.patch(NEW, &["value"]), ID, &options()));
    assert!(text.contains("does not run the base"), "{text}");
    assert_eq!((target.ask(""), target.maps()), ("1".into(), before));
}

/// Five bytes of which three lie in one page and two in the next are two writes, between which an applier can die; five
/// that end with their page are one.
#[test]
fn an_entry_that_crosses_a_page_is_refused() {
    for (filling, crosses) in [(4093, true), (4091, false)] {
        let source = format!(
            r#"
#include <stdio.h>
__asm__(".text\n.balign 4096\n.fill {filling}, 1, 0xcc\n.globl edge\n.type edge, @function\nedge:\n.cfi_startproc\n"
        ".byte 0x0f,0x1f,0x44,0,0\nlea 1(%rdi), %eax\nret\n.cfi_endproc\n.size edge, . - edge\n.balign 4096\n");
int edge(int);
int main(void) {{
    char line[100];
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {{ printf("%d\n", edge(0)); fflush(stdout); }}
    return 0;
}}
"#
        );
        let program = Program::build(&source, &[]);
        assert_eq!(program.symbol("edge").unwrap().0 % 4096, filling);
        let patch = program.patch("int edge(int x) { return x + 100; }", &["edge"]);
        let mut target = program.spawn(&[]);
        let before = target.maps();
        if crosses {
            let text = refused(apply_patch(target.pid(), &patch, ID, &options()));
            assert!(text.contains("the entry of edge crosses a page boundary"), "{text}");
        } else {
            applied(apply_patch(target.pid(), &patch, ID, &options()));
            assert_eq!(target.ask(""), "100");
            reverted(revert(target.pid(), Some(ID), &options()));
        }
        assert_eq!((target.ask("").as_str(), target.maps()), ("1", before));
    }
}

/// The leader of a session of its own, blocked while it reads from its terminal: the read goes on, the terminal
/// keeps its group in the foreground, and no signal of job control comes.
#[test]
fn a_child_in_its_own_session_with_a_terminal() {
    const SESSION: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
static volatile int signals;
static void count(int number) { (void)number; signals++; }
static void session(void) {
    int all[] = { SIGCONT, SIGHUP, SIGTSTP, SIGTTIN, SIGTTOU, SIGWINCH };
    struct sigaction action = { .sa_handler = count };
    for (int i = 0; i < 6; i++) sigaction(all[i], &action, 0);
    char line[100];
    for (;;) {
        ssize_t got = read(0, line, sizeof line);
        int leads = getsid(0) == getpid() && tcgetpgrp(0) == getpgrp();
        printf("%d %zd %d %d %d\n", value(0), got, got < 0 ? errno : 0, signals, leads); fflush(stdout);
        if (got <= 0) _exit(0);
    }
}
int main(void) {
    int terminal;
    pid_t child = forkpty(&terminal, 0, 0, 0);
    if (child == 0) session();
    char line[200];
    printf("ready\n%d\n", child); fflush(stdout);
    FILE *answers = fdopen(terminal, "r");
    while (fgets(line, sizeof line, stdin)) {
        // The terminal gives back what is typed, then the answer.
        if (write(terminal, line, strlen(line)) < 0 || !fgets(line, sizeof line, answers) || !fgets(line, sizeof line, answers)) return 1;
        line[strcspn(line, "\r\n")] = 0;
        puts(line); fflush(stdout);
    }
    return 0;
}
"#;
    let program = Program::build(SESSION, &["-lutil"]);
    let mut parent = program.spawn(&[]);
    let child: i32 = parent.line().parse().unwrap();
    let patch = program.patch(NEW, &["value"]);
    for _ in 0..10 {
        assert_eq!(parent.ask("abc"), "1 4 0 0 1");
        applied(apply_patch(child, &patch, ID, &options()));
        assert_eq!(parent.ask("abc"), "100 4 0 0 1");
        reverted(revert(child, Some(ID), &options()));
    }
    assert_eq!(parent.ask("abc"), "1 4 0 0 1");
}

/// A child that was forked while the patch was in has it too, and each of the two is reverted for itself.
#[test]
fn a_forked_child_is_reverted_alone() {
    const FORKER: &str = r#"
#include <stdio.h>
#include <string.h>
#include <unistd.h>
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
int main(void) {
    char line[100], byte; int number, ask[2], tell[2];
    if (pipe(ask) || pipe(tell)) return 1;
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "fork\n")) {
            pid_t child = fork();
            if (child == 0) close(ask[1]);
            while (child == 0) { if (read(ask[0], &byte, 1) != 1) _exit(0); number = value(0); if (write(tell[1], &number, sizeof number) < 0) _exit(1); }
            close(ask[0]);
            printf("%d\n", child);
        } else {
            number = 0;
            if (!strcmp(line, "both\n") && (write(ask[1], "x", 1) != 1 || read(tell[0], &number, sizeof number) < 0)) return 1;
            printf("%d %d\n", value(0), number);
        }
        fflush(stdout);
    }
    return 0;
}
"#;
    let program = Program::build(FORKER, &[]);
    let patch = program.patch(NEW, &["value"]);
    for child_first in [true, false] {
        let mut target = program.spawn(&[]);
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        let child: i32 = target.ask("fork").parse().unwrap();
        assert_eq!(target.ask("both"), "100 100");
        let ids: Vec<_> = [child, target.pid()].map(|pid| hp_apply::status(pid).unwrap().len()).into();
        assert_eq!(ids, [1, 1]);
        let (pid, then, answer) =
            if child_first { (child, target.pid(), "100 1") } else { (target.pid(), child, "1 100") };
        reverted(revert(pid, Some(ID), &options()));
        assert_eq!(target.ask("both"), answer);
        reverted(revert(then, Some(ID), &options()));
        assert_eq!(target.ask("both"), "1 1");
    }
}

/// Running again and again, processes that are stopped, forked and ended: none is left standing.
#[test]
fn children_are_born_all_the_while() {
    const FORKER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
__attribute__((noinline,noclone)) int value(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
static long mixed;
int main(void) {
    char line[100];
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        for (int i = 0; i < 200; i++) {
            pid_t child = fork();
            if (child == 0) {
                // Old or new each time; it may be patched or reverted meanwhile.
                int a = value(0);
                usleep(rand() % 3000);
                int b = value(0);
                _exit((a == 1 || a == 100) && (b == 1 || b == 100) ? 1 : 77);
            }
            int status; waitpid(child, &status, 0);
            if (!WIFEXITED(status) || WEXITSTATUS(status) != 1) mixed = status;
        }
        printf("%ld\n", mixed); fflush(stdout);
    }
    return 0;
}
"#;
    let program = Program::build(FORKER, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(NEW, &["value"]);
    let build_id = program.build_id();
    target.send("go");
    let began = Instant::now();
    let mut cycles = 0;
    while began.elapsed() < Duration::from_secs(2) {
        for pid in targets_of(&build_id).unwrap() {
            let outcome = apply_patch(pid, &patch, ID, &options()).result;
            assert!(matches!(outcome, Ok(_) | Err(Error::Unusable(_))), "{outcome:?}");
        }
        for pid in targets_of(&build_id).unwrap() {
            let _ = revert(pid, None, &options());
        }
        cycles += 1;
    }
    assert!(cycles > 0);
    assert_eq!(target.line(), "0");
    let _ = revert(target.pid(), None, &options());
    assert_eq!(targets_of(&build_id).unwrap(), [target.pid()]);
}

/// Whatever `docs/SCENARIOS.md` names exists.
#[test]
fn the_table_names_what_exists() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let table = std::fs::read_to_string(format!("{root}/docs/SCENARIOS.md")).unwrap();
    let crates = ["hp-apply", "hp-cli", "hp-diff"].map(|name| format!("{root}/crates/{name}/tests"));
    let mut named = 0;
    for word in table.split('`').skip(1).step_by(2) {
        if let Some(fixture) = word.strip_prefix("fixtures/").filter(|name| name.contains('.')) {
            assert!(std::fs::exists(format!("{root}/testdata/fixtures/{fixture}")).unwrap(), "{word}");
            named += 1;
        }
        let Some((file, test)) = word.split_once("::").filter(|(file, _)| *file != "FILE") else { continue };
        let texts = crates.iter().filter_map(|folder| std::fs::read_to_string(format!("{folder}/{file}.rs")).ok());
        assert!(texts.into_iter().any(|text| text.contains(&format!("fn {test}("))), "{word}");
        named += 1;
    }
    assert!(named > 90, "only {named}");
}
