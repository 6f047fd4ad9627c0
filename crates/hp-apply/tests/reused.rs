//! The number of a process is given to another one while we work: nothing is written there on the strength of what was found
//! in the first.

mod common;
use common::*;
use hp_apply::{Done, Error, Fault, apply_patch, calls, fault_at, revert, status};
use std::path::Path;
use std::time::Duration;

/// Keeps one child, whose questions and answers it passes on. `swap PROGRAM` ends it and starts another one with the
/// same number (clone3(2), `set_tid`); the answer is the number, or an errno below zero.
const KEEPER: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static FILE *to, *from;
static pid_t start(const char *program, pid_t number) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) return -1;
    struct clone_args arguments = { .exit_signal = SIGCHLD };
    if (number) arguments.set_tid = (uintptr_t)&number, arguments.set_tid_size = 1;
    pid_t child = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child == 0) {
        dup2(in[0], 0); dup2(out[1], 1);
        execl(program, program, "0", "0", (char *)0);
        _exit(9);
    }
    if (child < 0) child = -errno;
    close(in[0]); close(out[1]);
    to = fdopen(in[1], "w"); from = fdopen(out[0], "r");
    return child;
}
int main(void) {
    char line[500], answer[500];
    pid_t child = 0;
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        char *argument = strchr(line, ' ');
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "swap ", 5)) {
            if (child > 0) { kill(child, SIGKILL); waitpid(child, 0, 0); fclose(to); fclose(from); }
            for (int tries = 0; tries < 200; tries++) {
                pid_t next = start(argument + 1, child);
                if (next > 0 || next != -EEXIST) { child = next; break; }
                usleep(100);
            }
            if (child > 0 && (!fgets(answer, sizeof answer, from) || strcmp(answer, "ready\n"))) child = -EPROTO;
            printf("%d\n", child);
        } else {
            fprintf(to, "%s\n", line); fflush(to);
            printf("%s", fgets(answer, sizeof answer, from) ? answer : "gone\n");
        }
        fflush(stdout);
    }
    if (child > 0) { kill(child, SIGKILL); waitpid(child, 0, 0); }
    return 0;
}
"#;

/// Longer than it takes to end a process and to start another.
const LONG: Duration = Duration::from_millis(40);

fn swap(keeper: &mut Process, program: &Path) -> i32 {
    keeper.ask(&format!("swap {}", program.display())).parse().unwrap()
}

#[test]
fn in_the_middle_of_an_apply_and_of_a_revert() {
    let keeper = Program::build(&KEEPER.replace("#include <errno.h>", "#include <errno.h>\n#include <fcntl.h>"), &[]);
    let program = Program::build(VERSIONED, &[]);
    // Another program with the same words, at the same link-time addresses but for one function.
    let other = Program::build(&VERSIONED.replace("x + 1; }", "x + 1 + (x > 1000000); }"), &[]);
    let patch = version(&program, 2, 1);
    let mut keeper = keeper.spawn(&[]);
    let first = swap(&mut keeper, &program.exe);
    assert!(first > 0, "the first child: {first}");
    if swap(&mut keeper, &program.exe) != first {
        eprintln!("this kernel does not let us choose the number of a process");
        return;
    }
    let (mut tried, mut ended) = (0, 0);
    for reverting in [false, true] {
        let mut call = 1;
        for turn in 0.. {
            let pid = swap(&mut keeper, &program.exe);
            assert_eq!(pid, first);
            if reverting {
                applied(apply_patch(pid, &patch, ID, &options()));
            }
            let next = if turn % 2 == 0 { &other } else { &program };
            fault_at(call, Fault::Delay(LONG));
            let (outcome, reached) = std::thread::scope(|scope| {
                let work = scope.spawn(|| match reverting {
                    false => apply_patch(pid, &patch, ID, &options()),
                    true => revert(pid, Some(ID), &options()),
                });
                while calls() < call && !work.is_finished() {
                    std::hint::spin_loop();
                }
                let reached = calls() >= call;
                // What is traced is not gone before its tracer has noticed, which is while this waits.
                assert_eq!(swap(&mut keeper, &next.exe), first);
                (work.join().unwrap(), reached)
            });
            fault_at(0, Fault::DieBefore);
            if !reached {
                break;
            }
            tried += 1;
            let when = format!("reverting: {reverting}, call {call}: {:?}", outcome.result);
            let fine = match &outcome.result {
                Ok(_) | Err(Error::Busy(_)) => true,
                Err(Error::Unusable(text)) => {
                    ended += 1;
                    text.contains("ended") || text.contains("no such process") || text.contains("another program")
                }
                Err(Error::Refused(text)) => text.contains("does not run the base"),
            };
            assert!(fine, "{when}");
            // The second one is wholly what it was, or, if it came before we had looked, wholly patched.
            let entries = status(pid).unwrap();
            let line = keeper.ask("");
            let patched =
                next.exe == program.exe && matches!(outcome.result, Ok(Done::Applied(_))) && !entries.is_empty();
            assert_eq!(line, if patched { "0 2002" } else { "0 1001" }, "{when}, {entries:?}");
            assert!(patched || entries.is_empty(), "{when}: {entries:?}");
            assert!(entries.iter().all(|entry| entry.damage.is_empty()), "{when}: {entries:?}");
            call += 5 + call / 40;
        }
    }
    eprintln!("{tried} times another process had the number, {ended} times that was noticed");
    assert!(tried >= 20 && ended >= 5, "{tried}, {ended}");
}
