//! The whole command, from its start to its end, beside what a thread of the target sees of it.
//!
//! A program of the given number of threads, each waiting nine frames deep but one, or two, that run all the time: the longest
//! gap between two looks of these at the clock is what the target saw. On a machine that does something else too, a gap is also
//! what the scheduler keeps from a thread, so the same is measured with no command at all. Where as many threads run as there are
//! processors, the command itself has to wait for its turn, and they for theirs.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Applies, and as many reverts.
const ROUNDS: usize = 60;
/// Calls of a function that are timed together, and how often; the least counts.
const CALLS: u32 = 10_000_000;
const TIMES: u32 = 10;

const SOURCE: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#define APART __attribute__((noinline,noclone))
#define VALUE(name) APART long name(long x) { __asm__ volatile(""); return x * STEP + 1; }
FUNCTIONS
static volatile long sum, longest, stop;
static int nothing[2];
static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000L + t.tv_nsec; }
APART static long deep(long x) { char b; long got = x > 0 ? deep(x - 1) : read(nothing[0], &b, 1); __asm__ volatile("" : "+r"(got)); return got + 1; }
static void *waits(void *unused) { deep(8); return unused; }
static void *runs(void *unused) {
    for (long last = now();;) {
        sum += f0(1);
        while (stop) usleep(1000), last = now();
        long next = now();
        if (next - last > longest) longest = next - last;
        last = next;
    }
    return unused;
}
int main(int argc, char **argv) {
    pthread_attr_t small; pthread_t thread; char line[100];
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    int others = atoi(argv[1]) - 1, running = atoi(argv[2]);
    if (pipe(nothing)) return 1;
    for (int i = 0; i < others; i++) pthread_create(&thread, &small, i < running ? runs : waits, 0);
    usleep(200000);
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (*line == 'g') { printf("%ld\n", longest); longest = 0; }
        else {
            long calls = atol(line + 1), began;
            stop = 1; usleep(5000); began = now();
            for (long i = 0; i < calls; i++) sum += f0(1);
            printf("%ld\n", now() - began); stop = 0;
        }
        fflush(stdout);
    }
    return 0;
}
"#;

/// Prints a table: threads and functions as in the reference points, and what a call costs before and after.
pub(crate) fn run(hp: &Path, folder: &Path) -> Result<()> {
    println!(
        "\nthe whole command, ms: least and median of {ROUNDS}; gap: median and worst that a running thread saw of an apply"
    );
    println!("threads running functions     apply          revert         gap            no command");
    for (threads, running, functions) in [(1, 0, 1), (2, 1, 1), (100, 1, 1), (100, 1, 100), (100, 2, 1), (100, 2, 100)]
    {
        let pair = Pair::build(hp, folder, functions)?;
        let mut target = Target::start(&pair.old, threads, running)?;
        let (mut apply, mut revert, mut gap, mut idle) = (vec![], vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            target.gap()?;
            apply.push(command(hp, "apply", &pair.patch, target.process.id())?);
            gap.push(target.gap()?);
            revert.push(command(hp, "revert", &pair.patch, target.process.id())?);
            target.gap()?;
            std::thread::sleep(apply.last().copied().unwrap_or_default());
            idle.push(target.gap()?);
        }
        let [apply, revert] = [apply, revert].map(|list| shown(list, 0, ROUNDS / 2));
        let [gap, idle] = [gap, idle].map(|list| shown(list, ROUNDS / 2, ROUNDS - 1));
        println!("{threads:7} {running:7} {functions:9}  {apply}  {revert}  {gap}  {idle}");
        if (threads, functions) == (2, 1) {
            let before = target.call_ns()?;
            command(hp, "apply", &pair.patch, target.process.id())?;
            let after = target.call_ns()?;
            println!("  a call of the function: {before:.2} ns before, {after:.2} ns while it is patched");
        }
    }
    Ok(())
}

/// Two of a list in order, in milliseconds.
fn shown(mut list: Vec<Duration>, first: usize, second: usize) -> String {
    list.sort();
    let at = |index: usize| list.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3;
    format!("{:6.2} {:6.2}", at(first), at(second))
}

fn command(hp: &Path, verb: &str, patch: &Path, pid: u32) -> Result<Duration> {
    let mut command = Command::new(hp);
    command.arg(verb).arg(patch).args(["--pid", &pid.to_string()]).stdout(Stdio::null());
    let began = Instant::now();
    let status = command.status().context("hp")?;
    let took = began.elapsed();
    if status.success() { Ok(took) } else { bail!("hp {verb}: {status}") }
}

struct Pair {
    old: std::path::PathBuf,
    patch: std::path::PathBuf,
}

impl Pair {
    fn build(hp: &Path, folder: &Path, functions: usize) -> Result<Pair> {
        let list: String = (0..functions).map(|number| format!("VALUE(f{number})\n")).collect();
        let source = folder.join("program.c");
        std::fs::write(&source, SOURCE.replace("FUNCTIONS", &list))?;
        let [old, new, patch] = ["program.old", "program.new", "program.hpatch"].map(|name| folder.join(name));
        for (output, step) in [(&old, "1"), (&new, "7")] {
            let mut gcc = Command::new("gcc");
            gcc.args(["-O2", "-g", "-pthread", "-Wl,--build-id", &format!("-DSTEP={step}"), "-o"]);
            if !crate::succeeds(gcc.arg(output).arg(&source))? {
                bail!("the program does not compile");
            }
        }
        let mut diff = Command::new(hp);
        diff.arg("diff").args([&old, &new]).arg("-o").arg(&patch).stderr(Stdio::null());
        if !crate::succeeds(&mut diff)? {
            bail!("no patch for the program");
        }
        Ok(Pair { old, patch })
    }
}

/// A running program that ends with this value.
struct Target {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Target {
    fn start(program: &Path, threads: u32, running: u32) -> Result<Target> {
        let mut command = Command::new(program);
        command.args([threads.to_string(), running.to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let (input, output) = (input.context("its input")?, BufReader::new(output.context("its output")?));
        let mut target = Target { process, input, output };
        target.line()?;
        Ok(target)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }

    fn ask(&mut self, what: &str) -> Result<f64> {
        writeln!(self.input, "{what}")?;
        Ok(self.line()?.trim().parse()?)
    }

    /// The longest since it was last asked for.
    fn gap(&mut self) -> Result<Duration> {
        Ok(Duration::from_nanos(self.ask("g")? as u64))
    }

    fn call_ns(&mut self) -> Result<f64> {
        let mut least = f64::INFINITY;
        for _ in 0..TIMES {
            least = least.min(self.ask(&format!("c{CALLS}"))?);
        }
        Ok(least / f64::from(CALLS))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
