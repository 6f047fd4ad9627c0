//! `cargo xtask bench apply`: what patching costs a target.
//!
//! Three parts, in one run on one machine, so that the numbers can be compared with each other:
//! `cargo bench -p hp-apply` measures the stops of small programs with 1 to 1,000 threads beside an empty
//! stop-and-go and a debugger's attach-and-detach; the whole command is timed beside the gaps that threads of its target
//! see ([`command`]); and a loaded redis, of the pairs that the tests use, is
//! measured from its clients: before, during applies and reverts, after. `redis-benchmark` counts the
//! latencies; a request that fails ends it, and the bench with it.
//!
//! Not timed: building, starting, making the patch.

mod command;

use crate::cache::Cache;
use anyhow::{Context, Result, bail};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The pair whose old build runs.
const CASE: &str = "redis-cve-2025-46817";
/// Applies, and as many reverts.
const CYCLES: u32 = 100;
/// Requests of one measurement.
const REQUESTS: &str = "200000";
const CLIENTS: &str = "50";
/// Goal: the 99th percentile beside that of the undisturbed run.
const GOAL: f64 = 1.1;

/// The parts, as they can be asked for.
const PARTS: [&str; 3] = ["stops", "command", "redis"];

/// Runs these parts, or all; false if the loaded server missed its goal.
pub(crate) fn run(cache: &Cache, parts: &[&str]) -> Result<bool> {
    if let Some(word) = parts.iter().find(|word| !PARTS.contains(word)) {
        bail!("{word}: a part is one of {}", PARTS.join(", "));
    }
    let wanted = |part| parts.is_empty() || parts.contains(&part);
    let hp = release_build()?;
    if wanted("stops") {
        stops()?;
    }
    if wanted("command") {
        in_a_folder(|folder| command::run(&hp, folder))?;
    }
    if wanted("redis") { redis(cache, &hp) } else { Ok(true) }
}

fn stops() -> Result<()> {
    let benched = crate::succeeds(&mut crate::cargo(&["bench", "--quiet", "-p", "hp-apply", "--bench", "pauses"]))?;
    if !benched {
        bail!("the bench of the pauses failed");
    }
    Ok(())
}

fn redis(cache: &Cache, hp: &Path) -> Result<bool> {
    let pair = cache.pairs().join(CASE);
    let benchmark = cache.pairs().join("tools/redis-benchmark");
    if !pair.join("old/redis-server").is_file() || !benchmark.is_file() {
        eprintln!("xtask: no pair of redis here (cargo xtask pairs): the loaded server is left out");
        return Ok(true);
    }
    in_a_folder(|folder| loaded(folder, hp, &pair, &benchmark))
}

fn release_build() -> Result<PathBuf> {
    if !crate::succeeds(&mut crate::cargo(&["build", "--quiet", "--release", "-p", "hp-cli"]))? {
        bail!("hp does not build");
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    Ok(target.join("release/hp"))
}

/// Percentiles of the latency in milliseconds, as `redis-benchmark --csv` has them.
#[derive(Clone, Copy, Debug)]
struct Latency {
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

/// Gives work a folder that goes with it.
fn in_a_folder<T>(work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = std::env::temp_dir().join(format!("hp-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = work(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn loaded(folder: &Path, hp: &Path, pair: &Path, benchmark: &Path) -> Result<bool> {
    let patch = folder.join("fix.hpatch");
    let [old, new] = ["old/redis-server", "new/redis-server"].map(|name| pair.join(name));
    if !crate::succeeds(Command::new(hp).arg("diff").args([&old, &new]).arg("-o").arg(&patch).stderr(Stdio::null()))? {
        bail!("no patch for {CASE}");
    }
    let server = Server::start(&old, folder)?;
    let measure = || latency(benchmark, server.port);
    measure()?;
    let before = measure()?;
    let mut load = start(benchmark, server.port)?;
    let mut cost = Cost::default();
    for _ in 0..CYCLES {
        cost.add(hp, &["apply"], &patch, server.process.id())?;
        cost.add(hp, &["revert"], &patch, server.process.id())?;
        if let Some(status) = load.try_wait()? {
            read(load, status.success())?;
            load = start(benchmark, server.port)?;
        }
    }
    // Whole runs within the cycles would be luck: the last one is measured beside further cycles.
    let during = loop {
        cost.add(hp, &["apply"], &patch, server.process.id())?;
        cost.add(hp, &["revert"], &patch, server.process.id())?;
        if let Some(status) = load.try_wait()? {
            break read(load, status.success())?;
        }
    };
    let after = measure()?;
    println!("\na loaded redis, {CLIENTS} clients: latency in ms");
    println!("              p50      p95      p99      max");
    for (name, l) in [("before", before), ("during", during), ("after", after)] {
        println!("{name:8} {:8.3} {:8.3} {:8.3} {:8.3}", l.p50, l.p95, l.p99, l.max);
    }
    cost.print();
    let ratio = after.p99 / before.p99;
    println!(
        "p99 after beside before: {ratio:.2} (goal {GOAL}); during, pauses included: {:.2}",
        during.p99 / before.p99
    );
    println!("every request was answered");
    Ok(ratio <= GOAL)
}

/// What the commands took, in milliseconds.
#[derive(Default)]
struct Cost {
    whole: Vec<f64>,
    pauses: Vec<f64>,
}

impl Cost {
    fn add(&mut self, hp: &Path, verb: &[&str], patch: &Path, pid: u32) -> Result<()> {
        let began = Instant::now();
        let output = Command::new(hp)
            .args(verb)
            .arg(patch)
            .args(["--json", "--pid", &pid.to_string()])
            .output()
            .context("hp")?;
        self.whole.push(began.elapsed().as_secs_f64() * 1e3);
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("hp {verb:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        }
        let report: serde_json::Value = serde_json::from_str(&text)?;
        let pause = report["targets"][0]["measured"]["flip_pause_ns"].as_f64().context("no pause in the report")?;
        self.pauses.push(pause / 1e6);
        Ok(())
    }

    fn print(mut self) {
        for (name, list) in [("whole command", &mut self.whole), ("pause at the flip", &mut self.pauses)] {
            list.sort_by(f64::total_cmp);
            let worst = list.last().copied().unwrap_or(0.0);
            println!("{name}: median {:.3} ms, worst {worst:.3} ms of {}", list[list.len() / 2], list.len());
        }
    }
}

/// A redis that ends with this value.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path, folder: &Path) -> Result<Server> {
        // A port that is free now; nobody else is expected to take it in this moment.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(program)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(folder)
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server")?;
        let server = Server { process, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if began.elapsed() > Duration::from_secs(10) {
                bail!("redis-server does not answer");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(benchmark: &Path, port: u16) -> Result<Child> {
    Command::new(benchmark)
        .args(["-p", &port.to_string(), "-t", "set", "-n", REQUESTS, "-c", CLIENTS, "-d", "100", "--csv"])
        .stdout(Stdio::piped())
        .spawn()
        .context("redis-benchmark")
}

fn latency(benchmark: &Path, port: u16) -> Result<Latency> {
    let mut child = start(benchmark, port)?;
    let status = child.wait()?;
    read(child, status.success())
}

/// `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"`
fn read(child: Child, succeeded: bool) -> Result<Latency> {
    let mut text = String::new();
    child.stdout.context("its output")?.read_to_string(&mut text)?;
    let line = text.lines().last().unwrap_or_default();
    let numbers: Vec<f64> = line.split(',').filter_map(|field| field.trim_matches('"').parse().ok()).collect();
    match numbers[..] {
        [_, _, _, p50, p95, p99, max] if succeeded => Ok(Latency { p50, p95, p99, max }),
        _ => bail!("redis-benchmark failed: {text}"),
    }
}
