//! Targets with seccomp filters: what a filter allows is done, and nothing else; none of them is harmed.

mod common;
use common::*;
use hp_apply::{Done, Error, Phase, apply_patch, revert, status};
use std::time::Duration;

/// Puts itself under the filter that its argument names, then answers lines. It waits for
/// them in `poll` with a time limit, which the kernel restarts by a call of its own.
const SERVER: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#define NR (offsetof(struct seccomp_data, nr))
#define ARG(n) (offsetof(struct seccomp_data, args[n]))
#define LOAD(at) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at)
#define RET(what) BPF_STMT(BPF_RET | BPF_K, what)
#define IS(k, jt, jf) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, k, jt, jf)
#define ALLOW RET(SECCOMP_RET_ALLOW)
#define ON(call, what) LOAD(NR), IS(call, 0, 1), RET(what), ALLOW
static void filter(struct sock_filter *code, int len) {
    struct sock_fprog program = { len, code };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) exit(3);
}
#define FILTER(...) do { struct sock_filter code[] = { __VA_ARGS__ }; filter(code, sizeof code / sizeof *code); } while (0)
#define ONLY(call) IS(call, 0, 1), ALLOW
// Strict mode takes the clock away too.
static int has_clock = 1;
__attribute__((noinline,noclone)) long work(long x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); struct timespec t = {1, 0}; if (has_clock) clock_gettime(CLOCK_MONOTONIC, &t); return x * 10 + (t.tv_sec == 0); }
static void *hammer(void *arg) { for (long x = 0;; x++) if (work(x) / 10 != x && work(x) / 10 != x * 2) abort(); return arg; }
int main(int argc, char **argv) {
    char *what = argv[1], line[100];
    setvbuf(stdout, 0, _IONBF, 0);
    setvbuf(stdin, 0, _IONBF, 0);
    if (!strcmp(what, "strict list")) FILTER(LOAD(NR), ONLY(SYS_read), ONLY(SYS_write), ONLY(SYS_poll), ONLY(SYS_mmap),
        ONLY(SYS_munmap), ONLY(SYS_restart_syscall), ONLY(SYS_getppid), ONLY(SYS_exit_group), RET(SECCOMP_RET_KILL_PROCESS));
    if (!strcmp(what, "two")) { FILTER(ON(SYS_ptrace, SECCOMP_RET_ERRNO | 1)); FILTER(ON(SYS_kexec_load, SECCOMP_RET_KILL_PROCESS)); }
    if (!strcmp(what, "no code")) FILTER(LOAD(NR), IS(SYS_mmap, 0, 3), LOAD(ARG(2)), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1), RET(SECCOMP_RET_KILL_PROCESS), ALLOW);
    if (!strcmp(what, "no mmap")) FILTER(ON(SYS_mmap, SECCOMP_RET_ERRNO | ENOSYS));
    if (!strcmp(what, "trap")) FILTER(ON(SYS_mmap, SECCOMP_RET_TRAP));
    if (!strcmp(what, "asked")) FILTER(ON(SYS_mmap, SECCOMP_RET_TRACE));
    if (!strcmp(what, "no munmap")) FILTER(ON(SYS_munmap, SECCOMP_RET_ERRNO | EPERM));
    if (!strcmp(what, "no restart")) FILTER(ON(SYS_restart_syscall, SECCOMP_RET_KILL_PROCESS));
    if (!strcmp(what, "hammer")) {
        pthread_t thread;
        for (int i = 0; i < 8; i++) pthread_create(&thread, 0, hammer, 0);
        struct sock_filter code[] = { ON(SYS_getppid, SECCOMP_RET_KILL_PROCESS) };
        struct sock_fprog program = { 4, code };
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program)) exit(3);
    }
    puts("ready");
    if (!strcmp(what, "mode 1")) { has_clock = 0; prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT); }
    for (;;) {
        struct pollfd input = { 0, POLLIN, 0 };
        if (strcmp(what, "mode 1") && poll(&input, 1, 60000) <= 0) exit(4);
        if (!fgets(line, sizeof line, stdin)) return 0;
        line[0] = '0' + work(3) % 100 / 10; line[1] = '\n';
        if (write(1, line, 2) != 2) exit(5);
    }
}
"#;

const NEW: &str = "long work(long x) { return x * 20; }";

fn start(what: &str) -> (Program, Process) {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[what]);
    // Asleep in poll, where a stop is restarted.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(target.ask("?"), "3");
    std::thread::sleep(Duration::from_millis(50));
    (program, target)
}

#[test]
fn what_a_filter_allows_is_done() {
    for what in ["strict list", "two"] {
        let (program, mut target) = start(what);
        let patch = program.patch(NEW, &["work"]);
        let before = target.maps();
        for _ in 0..3 {
            applied(apply_patch(target.pid(), &patch, ID, &options()));
            assert_eq!(target.ask("?"), "6");
            let measured = reverted(revert(target.pid(), None, &options()));
            assert_eq!(measured.kept, Vec::<String>::new());
            assert_eq!(target.ask("?"), "3");
        }
        assert_eq!(target.maps(), before);
        target.assert_free();
    }
}

#[test]
fn what_a_filter_refuses_is_not_tried() {
    for (what, words) in [
        ("no code", "refuses mmap (it would be killed)"),
        ("no mmap", "refuses mmap (Function not implemented"),
        ("trap", "refuses mmap (it would get SIGSYS)"),
        ("asked", "refuses mmap (another process would be asked)"),
        ("no munmap", "refuses munmap (Operation not permitted"),
        ("no restart", "refuses restart_syscall (it would be killed)"),
        ("mode 1", "strict seccomp mode"),
    ] {
        let (program, mut target) = start(what);
        let patch = program.patch(NEW, &["work"]);
        let before = target.maps();
        for dry_run in [true, false, false] {
            let text = refused(apply_patch(target.pid(), &patch, ID, &hp_apply::Options { dry_run, ..options() }));
            assert!(text.contains(words), "{what}: {text}");
            target.assert_free();
        }
        assert_eq!(target.maps(), before, "{what}");
        assert_eq!(target.ask("?"), "3", "{what}");
        assert_eq!(status(target.pid()).unwrap(), []);
    }
}

/// The filter kills who asks for its parent, which is what a gate does: so there are no gates for it.
#[test]
fn gates_are_not_used_where_they_would_kill() {
    let (program, mut target) = start("hammer");
    let patch = program.patch(NEW, &["work"]);
    let quick = hp_apply::Options { timeout: Duration::from_millis(700), ..options() };
    for _ in 0..3 {
        match apply_patch(target.pid(), &patch, ID, &quick).result {
            Ok(Done::Applied(_) | Done::AlreadyApplied) | Err(Error::Busy(_)) => {}
            other => panic!("{other:?}"),
        }
        let active = status(target.pid()).unwrap().iter().any(|entry| entry.phase == Phase::Active);
        assert_eq!(target.ask("?"), if active { "6" } else { "3" });
        let _ = revert(target.pid(), None, &quick);
    }
    target.assert_free();
}
