//! A thread that is parked in the function to be replaced: until the applier gives up, the other threads run on, with
//! short stops only, and what they stood is reported.

mod common;
use common::*;
use hp_apply::{Error, Options, apply_patch};
use std::time::{Duration, Instant};

/// A thread waits inside `value`, in the kernel or in a loop (`spin`); another one looks at the clock without pause. A line
/// asks for its longest gap since the last one, in microseconds, and for the looks that it has had.
const PARKED: &str = r#"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
static atomic_long longest, looks;
static int spin;
__attribute__((noinline,noclone)) long value(long x) {
    __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0");
    while (x) { if (spin) __asm__ volatile("pause"); else pause(); }
    return x + 1;
}
static void *park(void *unused) { value(1); return unused; }
static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000 + t.tv_nsec / 1000; }
static void *look(void *unused) {
    for (long last = now();; looks++) {
        long next = now();
        if (next - last > longest) longest = next - last;
        last = next;
    }
    return unused;
}
int main(int argc, char **argv) {
    pthread_t thread;
    char line[100];
    spin = argc > 1 && !strcmp(argv[1], "spin");
    pthread_create(&thread, 0, park, 0);
    pthread_create(&thread, 0, look, 0);
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) { printf("%ld %ld\n", atomic_exchange(&longest, 0), atomic_exchange(&looks, 0)); fflush(stdout); }
    return 0;
}
"#;

/// Microseconds and looks.
fn ask(target: &mut Process) -> (i64, i64) {
    let line = target.ask("");
    let (gap, looks) = line.split_once(' ').unwrap();
    (gap.parse().unwrap(), looks.parse().unwrap())
}

/// What is in the way does not come out for three seconds. Beside it runs a process that nobody patches: what the machine
/// itself keeps from a thread, it keeps from that one too.
#[test]
fn the_other_threads_are_not_frozen() {
    let program = Program::build(PARKED, &[]);
    let patch = program.patch("long value(long x) { return x + 100; }", &["value"]);
    for how in ["wait", "spin"] {
        let (mut target, mut control) = (program.spawn(&[how]), program.spawn(&[how]));
        std::thread::sleep(Duration::from_millis(200));
        ask(&mut target);
        ask(&mut control);
        let began = Instant::now();
        let outcome = apply_patch(target.pid(), &patch, ID, &Options { timeout: Duration::from_secs(3), ..options() });
        let Err(Error::Busy(lines)) = &outcome.result else { panic!("{how}: {outcome:?}") };
        assert!(lines.iter().all(|line| line.contains("in value+0x")), "{how}: {lines:?}");
        assert!(began.elapsed() >= Duration::from_secs(3), "{how}: it has tried all the time");
        let ((gap, looks), (usual, others)) = (ask(&mut target), ask(&mut control));
        let stood = outcome.stood;
        eprintln!("{how}: longest gap {gap} µs and {looks} looks; undisturbed {usual} µs and {others}; {stood:?}");
        // Threads are held for 20 ms at most, while those inside are given the time to come out.
        assert!(gap < 40_000 + 2 * usual, "{how}: the longest gap is {gap} µs, {usual} µs undisturbed");
        assert!(looks > others / 3, "{how}: {looks} looks, {others} undisturbed");
        let (total, longest) = (Duration::from_nanos(stood.total_ns), Duration::from_nanos(stood.longest_ns));
        assert!(stood.stops > 5 && longest <= total && total <= longest * stood.stops, "{how}: {stood:?}");
        // It has run four times as long after each stop but the last.
        assert!(total - longest < began.elapsed() / 4, "{how}: it has stood still for {total:?}");
        target.assert_free();
    }
}

/// A thread that needs 50 ms each time it is inside, and is hardly ever outside: it comes out while the others are held, if
/// the user allows stops of that length.
#[test]
fn a_longer_hold_is_the_users_choice() {
    let source = PARKED.replace("while (x) {", "for (long end = now() + 50000; x && now() < end;) {");
    let source = source.replace("value(1); return", "for (;;) value(1); return");
    let source = source.replace(
        "__attribute__((noinline,noclone)) long value",
        "static long now(void);\n__attribute__((noinline,noclone)) long value",
    );
    let program = Program::build(&source, &[]);
    let patch = program.patch("long value(long x) { return x + 100; }", &["value"]);
    let target = program.spawn(&["spin"]);
    let most = Some(Duration::from_secs(1));
    let outcome = apply_patch(target.pid(), &patch, ID, &Options { max_pause: most, ..options() });
    let stood = outcome.stood;
    applied(outcome);
    eprintln!("{stood:?}");
    assert!(stood.longest_ns < 1_000_000_000, "{stood:?}");
    target.assert_free();
}
