//! Payloads that lie unused in a process, because something in it still leads there: who is in one runs code that knows nothing
//! of any other patch, so another patch of the same functions waits for it.

mod common;
use common::*;
use hp_apply::{Error, Fault, Options, Outcome, apply, fault_at, revert, status};
use hp_pack::Patch;
use std::time::Duration;

/// How long one is held up, and until when it has come there.
const HELD_UP: Duration = Duration::from_millis(600);
const ARRIVES: Duration = Duration::from_millis(100);

/// `work` calls `rest` and then `inner`. Told an address, the program keeps it; told to `go`, a thread calls that, and stays in `rest`
/// until it is told to `come`. Each line is answered by what `work` says and what that thread came back with.
const KEEPS: &str = r#"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define NOP __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0")
static long (*kept)(long);
static atomic_int resting, rests;
static atomic_long answer;
__attribute__((noinline,noclone)) void rest(void) {
    rests = 1;
    while (resting) usleep(1000);
    rests = 0;
}
__attribute__((noinline,noclone)) long inner(long x) { NOP; return x + 1; }
__attribute__((noinline,noclone)) long work(long x) { NOP; rest(); return 1000 + inner(x); }
static void *call(void *unused) { answer = kept(0); return unused; }
int main(void) {
    pthread_t thread;
    char line[100];
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "go", 2)) {
            resting = 1;
            pthread_create(&thread, 0, call, 0);
            while (!rests) usleep(1000);
        } else if (!strncmp(line, "come", 4)) {
            resting = 0;
            pthread_join(thread, 0);
            kept = 0;
        } else if (!strncmp(line, "keep", 4)) {
            kept = (long (*)(long))strtol(line + 4, 0, 0);
        }
        printf("%ld %ld\n", resting ? 0 : work(0), (long)answer);
        fflush(stdout);
    }
    return 0;
}
"#;

fn number(program: &Program, version: u32, counter: u64) -> Patch {
    let source = format!(
        "void rest(void);
         long inner(long x) {{ return x + {version}; }}
         long work(long x) {{ rest(); return {version}000 + inner(x); }}"
    );
    Patch { counter, ..program.patch(&source, &["work", "inner"]) }
}

fn versions(program: &Program) -> [Vec<u8>; 2] {
    [(2, 1), (3, 2)].map(|(version, counter)| hp_pack::write(&number(program, version, counter)).unwrap())
}

/// Version 2 is applied and taken out again, but the program has kept the address of its `work`, and a thread runs it.
fn leave_a_thread_in_version_2(target: &mut Process, version_2: &[u8]) {
    applied(apply(target.pid(), version_2, &options()));
    let entries = status(target.pid()).unwrap();
    let work = entries[0].functions.iter().find(|function| function.name == "work").unwrap();
    assert_eq!(target.ask(&format!("keep {:#x}", work.new_address)), "2002 0");
    let left = reverted(revert(target.pid(), None, &options()));
    assert_eq!(left.kept.len(), 1, "{left:?}");
    assert_eq!(target.ask("go"), "0 0");
}

/// It has not been applied because of that thread; it is once the thread has come out.
fn waits_for_the_thread(target: &mut Process, outcome: Outcome, version_3: &[u8]) {
    let Err(Error::Busy(lines)) = &outcome.result else { panic!("{outcome:?}") };
    assert!(lines.iter().any(|line| line.contains(" in work+")), "{lines:?}");
    assert_eq!(target.ask("come"), "1001 2002");
    applied(apply(target.pid(), version_3, &options()));
    assert_eq!(target.ask(""), "3003 2002");
    reverted(revert(target.pid(), None, &options()));
    assert_eq!(target.ask(""), "1001 2002");
    assert!(status(target.pid()).unwrap().is_empty());
}

fn soon() -> Options {
    Options { timeout: Duration::from_millis(300), ..options() }
}

#[test]
fn who_runs_a_payload_that_is_not_in_use_is_waited_for() {
    let program = Program::build_telling(KEEPS, &[]);
    let [version_2, version_3] = versions(&program);
    let mut target = program.spawn(&[]);
    leave_a_thread_in_version_2(&mut target, &version_2);
    let outcome = apply(target.pid(), &version_3, &soon());
    waits_for_the_thread(&mut target, outcome, &version_3);
}

/// One applier brings version 3 and is held up in the middle, at several points in turn; `meanwhile` is what another one does there,
/// `then` what is to come out.
fn while_one_is_held_up(
    program: &Program,
    version_3: &[u8],
    mut meanwhile: impl FnMut(&mut Process),
    mut then: impl FnMut(&mut Process, Outcome),
) {
    static FAULTS: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = FAULTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let target = program.spawn(&[]);
    fault_at(u64::MAX, Fault::DieBefore);
    applied(apply(target.pid(), version_3, &options()));
    let calls = hp_apply::calls();
    let mut tried = 0;
    for part in 1..8 {
        let mut target = program.spawn(&[]);
        let (pid, patch) = (target.pid(), version_3.to_vec());
        fault_at(calls * part / 8, Fault::Delay(HELD_UP));
        let slow = std::thread::spawn(move || apply(pid, &patch, &soon()));
        std::thread::sleep(ARRIVES);
        // Where the slow one holds a thread already, or has applied, there is nothing to be seen.
        let state = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        if state.contains("TracerPid:\t0\n") && status(pid).unwrap().is_empty() {
            meanwhile(&mut target);
            assert!(!slow.is_finished(), "the delay is too short for this machine");
            then(&mut target, slow.join().unwrap());
            tried += 1;
        }
    }
    fault_at(0, Fault::DieBefore);
    assert!(tried > 1, "{calls} calls");
}

/// The same if another applier has left it there only after this one had looked at the process.
#[test]
fn who_runs_a_payload_that_came_meanwhile_is_waited_for() {
    let program = Program::build_telling(KEEPS, &[]);
    let [version_2, version_3] = versions(&program);
    while_one_is_held_up(
        &program,
        &version_3,
        |target| leave_a_thread_in_version_2(target, &version_2),
        |target, outcome| waits_for_the_thread(target, outcome, &version_3),
    );
}

/// Another applier is faster with the older version: what this one has read is no more. It reads it anew, and takes the older
/// one's place.
#[test]
fn an_apply_that_was_overtaken_is_made_anew() {
    let program = Program::build_telling(KEEPS, &[]);
    let [version_2, version_3] = versions(&program);
    while_one_is_held_up(
        &program,
        &version_3,
        |target| drop(applied(apply(target.pid(), &version_2, &options()))),
        |target, outcome| {
            assert_eq!(applied(outcome).replaced.len(), 1);
            assert_eq!(target.ask(""), "3003 0");
        },
    );
}
