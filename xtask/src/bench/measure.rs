//! What a process cost: getrusage(2) numbers that the kernel gives when it is waited for.

#![allow(unsafe_code)]

use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one process and those that it waited for cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// User and system time.
    pub(crate) cpu: Duration,
    /// From start to end.
    pub(crate) wall: Duration,
    /// Largest resident set in bytes, of the largest one.
    pub(crate) peak: u64,
    /// Exit code.
    pub(crate) exit: i32,
}

/// Runs `command` to its end, its output thrown away.
pub(crate) fn run(command: &mut Command) -> Result<Cost> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let mut status = 0;
    // SAFETY: all zeros is a value of this structure of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live variables of the right type; the child is ours and nobody else waits for it.
    let waited = unsafe { libc::wait4(child.id().cast_signed(), &mut status, 0, &mut usage) };
    let wall = start.elapsed();
    if waited < 0 || !libc::WIFEXITED(status) {
        bail!("{name} did not end by itself (status {status:#x})");
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec.unsigned_abs(), t.tv_usec as u32 * 1000);
    Ok(Cost {
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        wall,
        peak: usage.ru_maxrss.unsigned_abs() << 10,
        exit: libc::WEXITSTATUS(status),
    })
}

/// The cheapest of several runs: what else the machine does only ever adds.
pub(crate) fn best(times: u32, mut command: impl FnMut() -> Command) -> Result<Cost> {
    let mut best = run(&mut command())?;
    for _ in 1..times {
        let cost = run(&mut command())?;
        best.cpu = best.cpu.min(cost.cpu);
        best.wall = best.wall.min(cost.wall);
        best.peak = best.peak.max(cost.peak);
    }
    Ok(best)
}
