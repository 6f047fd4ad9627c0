//! The health command of `hp apply`: it decides whether what was applied stays.

use hp_apply::HeldSignals;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Time between two runs.
const INTERVAL: Duration = Duration::from_secs(1);
/// Longest time for one run.
const RUN_LIMIT: Duration = Duration::from_secs(60);
/// How soon a signal is noticed.
const TICK: Duration = Duration::from_millis(20);

/// Runs the command by the shell, once or again and again for a time. It gets the processes in `HP_PIDS`,
/// separated by spaces.
///
/// # Errors
/// In words: the command failed or hung, or one of the processes has ended.
pub(crate) fn check(command: &str, pids: &[i32], time: Duration, signals: &HeldSignals) -> Result<(), String> {
    let began = Instant::now();
    loop {
        once(command, pids, signals)?;
        if let Some(pid) = pids.iter().find(|pid| !lives(**pid)) {
            return Err(format!("process {pid} has ended"));
        }
        let left = time.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + left.min(INTERVAL);
        while Instant::now() < until {
            std::thread::sleep(TICK);
            check_signals()?;
        }
    }
}

fn check_signals() -> Result<(), String> {
    if hp_apply::interrupted() { Err("interrupted before its end".to_owned()) } else { Ok(()) }
}

fn once(command: &str, pids: &[i32], signals: &HeldSignals) -> Result<(), String> {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    let mut shell = Command::new("/bin/sh");
    // Standard output is for the report.
    shell.args(["-c", command]).env("HP_PIDS", pids.join(" ")).stdin(Stdio::null()).stdout(std::io::stderr());
    signals.not_in(&mut shell);
    let mut child = shell.spawn().map_err(|error| format!("cannot run /bin/sh: {error}"))?;
    let status = ended(&mut child, command).inspect_err(|_| {
        let _ = child.kill();
        let _ = child.wait();
    })?;
    if status.success() { Ok(()) } else { Err(format!("`{command}`: {status}")) }
}

/// How the command ended, if it did within the limit.
fn ended(child: &mut Child, command: &str) -> Result<ExitStatus, String> {
    let began = Instant::now();
    while began.elapsed() < RUN_LIMIT {
        if let Some(status) = child.try_wait().map_err(|error| format!("cannot wait for the command: {error}"))? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
        check_signals()?;
    }
    Err(format!("`{command}` takes longer than {} s", RUN_LIMIT.as_secs()))
}

/// Whether a process runs, as far as `/proc` tells (proc(5)).
pub(crate) fn lives(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find(|line| line.starts_with("State:")).is_some_and(|line| !line.contains(['Z', 'X']))
}
