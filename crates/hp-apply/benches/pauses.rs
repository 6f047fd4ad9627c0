//! How long a target stands still: `cargo bench -p hp-apply`.
//!
//! The floor is an empty stop-and-go of all threads, by the same engine, in the same process,
//! in turns with applies and reverts. The threads wait in frames eight deep, and two of them
//! run all the time; the main one answers. `gdb` is a debugger's attach and detach of the same
//! process, started anew each time as a person would; the whole apply is inside one program.

#[path = "../tests/common/mod.rs"]
mod common;
use common::*;
use hp_apply::{apply_patch, revert, stop_and_go};

/// Waiting threads in frames, two busy ones, and so many functions.
fn program(functions: usize) -> String {
    let mut text = String::from(
        r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int pipe_fds[2];
static volatile long sum;
"#,
    );
    for number in 0..functions {
        text += &format!(
            "__attribute__((noinline,noclone)) long f{number}(long x) {{ __asm__ volatile(\".byte 0x0f,0x1f,0x44,0,0\"); return x + {number}; }}\n"
        );
    }
    text += r#"
__attribute__((noinline,noclone)) static long deep(long x) {
    char byte;
    long got = x > 0 ? deep(x - 1) : read(pipe_fds[0], &byte, 1);
    __asm__ volatile("" : "+r"(got));
    return got + 1;
}
static void *wait_deep(void *unused) { deep(8); return unused; }
static void *busy(void *unused) { for (;;) sum += f0(1); return unused; }
int main(int argc, char **argv) {
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    if (argc < 2 || pipe(pipe_fds)) return 1;
    int count = atoi(argv[1]) - 1;
    for (int i = 0; i < count; i++) pthread_create(&thread, &attributes, i < 2 ? busy : wait_deep, 0);
    usleep(200000);
    puts("ready"); fflush(stdout);
    char line[100];
    while (fgets(line, sizeof line, stdin)) { printf("%ld\n", f0(1)); fflush(stdout); }
    return 0;
}
"#;
    text
}

fn middle_and_worst(mut nanoseconds: Vec<u64>) -> String {
    nanoseconds.sort_unstable();
    let at = |index: usize| nanoseconds.get(index).copied().unwrap_or(0) as f64 / 1e3;
    format!("{:9.0} {:9.0}", at(nanoseconds.len() / 2), at(nanoseconds.len().saturating_sub(1)))
}

/// Microseconds of a debugger's attach and detach, the median of three.
fn debugger(pid: i32) -> f64 {
    let mut times: Vec<f64> = (0..3)
        .map(|_| {
            let began = std::time::Instant::now();
            let mut gdb = std::process::Command::new("gdb");
            gdb.args(["-q", "-nx", "-batch", "-ex", "set debuginfod enabled off", "-p", &pid.to_string()]);
            let status = gdb.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
            if status.is_ok_and(|status| status.success()) { began.elapsed().as_secs_f64() * 1e6 } else { f64::NAN }
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[1]
}

fn main() {
    println!("µs, median and worst of 40; memory in KiB");
    println!(
        "threads functions     floor     worst      flip     worst  flip back    worst   whole apply  worst       gdb  memory"
    );
    for (threads, functions) in
        [(1, 1), (1, 500), (8, 1), (8, 500), (64, 1), (64, 500), (500, 1), (1000, 1), (1000, 500)]
    {
        let source = program(functions);
        let program = Program::build(&source, &[]);
        let mut target = program.spawn(&[&threads.to_string()]);
        let names: Vec<String> = (0..functions).map(|number| format!("f{number}")).collect();
        let new: String = names.iter().map(|name| format!("long {name}(long x) {{ return x + 1000; }}\n")).collect();
        let patch = program.patch(&new, &names.iter().map(String::as_str).collect::<Vec<_>>());
        let (mut floor, mut flip, mut back, mut whole) = (vec![], vec![], vec![], vec![]);
        let mut memory = 0;
        for _ in 0..40 {
            floor.push(stop_and_go(target.pid()).expect("it can be stopped"));
            let began = std::time::Instant::now();
            let measured = applied(apply_patch(target.pid(), &patch, ID, &options()));
            memory = measured.mapped_bytes / 1024;
            flip.push(measured.flip_pause_ns);
            whole.push(began.elapsed().as_nanos() as u64);
            back.push(reverted(revert(target.pid(), Some(ID), &options())).flip_pause_ns);
        }
        assert_eq!(target.ask("?"), "1");
        let [floor, flip, back, whole] = [floor, flip, back, whole].map(middle_and_worst);
        let gdb = debugger(target.pid());
        println!("{threads:7} {functions:9} {floor} {flip} {back} {whole} {gdb:9.0} {memory:7}");
    }
}
