//! `hp demo`: the whole path once, on a small server that leaks memory.
//!
//! Every number that it prints is measured in this run, and a step that did not hold ends it with an error:
//! a client that got no answer, one answer of the wrong kind, a patch that could not be taken back.
//! Not for benchmarks: the clients share the machine with the server.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anstream::println;
use anyhow::{Context, anyhow, bail, ensure};
use hp_apply::{Done, Outcome};

use crate::exit::Exit;
use crate::targets::exit_of_error;
use crate::text::{BAD, BOLD, DIM, GOOD, WARN, clean, count, pause};

const SOURCE: &str = include_str!("../../../testdata/demo/server.c");
const FLAGS: [&str; 3] = ["-O2", "-g", "-pthread"];
/// Asks for more than it sends: the old build answers with what lies behind the text.
const QUESTION: &str = "echo 36 hello";
/// What lies there.
const SECRET: &str = "hunter2";
const CLIENTS: usize = 4;
/// How long the clients ask in each of the three states.
const PHASE: Duration = Duration::from_millis(500);
/// No answer takes this long unless the server hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// `hp demo`
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Leave the source, both builds and the patch where they are
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Runs the demonstration.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut folder = tempfile::Builder::new().prefix("hp-demo-").tempdir().context("cannot make a temporary folder")?;
    folder.disable_cleanup(args.keep);
    let exit = play(folder.path())?;
    if args.keep {
        println!("{}", step("kept", &folder.path().display().to_string()));
    }
    println!();
    Ok(exit.into())
}

fn play(folder: &Path) -> anyhow::Result<Exit> {
    let (old, new) = build(folder)?;
    let server = Server::start(&old)?;
    let load = Load::start(server.port)?;
    println!("{}", step("run", &format!("process {}, {CLIENTS} clients asking without a pause", server.pid())));
    server.show(Answer::Leak)?;
    sleep(PHASE);

    let Some(patch) = diff(&old, &new)? else { return Ok(Exit::Refused) };
    std::fs::write(folder.join("fix.hpatch"), &patch).context("cannot write the patch")?;

    let options =
        hp_apply::Options { timeout: Duration::from_secs(5), max_pause: None, dry_run: false, relaxed: false };
    match measured(hp_apply::apply(server.pid(), &patch, &options)) {
        Ok(cost) => println!("{}", step("apply", &cost)),
        Err(exit) => return Ok(exit),
    }
    server.show(Answer::Refusal)?;
    sleep(PHASE);

    match measured(hp_apply::revert(server.pid(), Some(&hp_pack::id(&patch)), &options)) {
        Ok(cost) => println!("{}", step("revert", &cost)),
        Err(exit) => return Ok(exit),
    }
    server.show(Answer::Leak)?;
    sleep(PHASE);

    summary(&load.stop()?)?;
    Ok(Exit::Done)
}

fn step(name: &str, text: &str) -> String {
    format!("  {BOLD}{name:<8}{BOLD:#}{text}")
}

/// A further line of a step.
fn detail(text: impl std::fmt::Display) {
    println!("          {text}");
}

/// Builds the server without and with the fix, as anyone would.
fn build(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let began = Instant::now();
    std::fs::write(folder.join("server.c"), SOURCE).context("cannot write the source of the server")?;
    let compile = |name: &str, define: &[&str]| -> anyhow::Result<PathBuf> {
        let mut command = Command::new("cc");
        command.args(FLAGS).args(define).args(["-o", name, "server.c"]).current_dir(folder);
        let done = match command.output() {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                bail!("the demonstration needs a C compiler: there is no `cc` on the PATH")
            }
            done => done.context("cannot run cc")?,
        };
        ensure!(done.status.success(), "cc failed: {}", clean(&String::from_utf8_lossy(&done.stderr)));
        Ok(folder.join(name))
    };
    let builds = (compile("server", &[])?, compile("server-fixed", &["-DFIXED"])?);
    let took = pause(began.elapsed().as_nanos() as u64);
    println!("\n  {BOLD}A server with a bug, fixed while it runs{BOLD:#}\n");
    let command = format!("cc {} server.c, without and with -DFIXED", FLAGS.join(" "));
    println!("{} {DIM}({took}){DIM:#}", step("build", &command));
    Ok(builds)
}

/// Makes the patch file in memory and says what is in it; `None` if the builds allow none.
fn diff(old: &Path, new: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let began = Instant::now();
    let options = hp_diff::Options { fixes: vec!["leak of session memory".into()], ..Default::default() };
    let report = hp_diff::diff(old, new, &options)?;
    let Some(patch) = &report.patch else {
        println!("{}{BAD}no patch{BAD:#}", step("diff", ""));
        for finding in &report.findings {
            detail(format_args!("{} {}: {}", finding.code, clean(&finding.subject), clean(&finding.message)));
        }
        return Ok(None);
    };
    let bytes = hp_pack::write(patch).context("the patch cannot be written")?;
    let took = pause(began.elapsed().as_nanos() as u64);
    let same = count(report.identical, "function");
    println!("{}{same} the same, a patch of {} bytes {DIM}({took}){DIM:#}", step("diff", ""), bytes.len());
    for change in &report.changes {
        let kind = format!("{:?}", change.kind).to_lowercase();
        let sizes = format!("{} → {} bytes", change.old_size, change.new_size);
        detail(format_args!(
            "{WARN}{kind}{WARN:#} {BOLD}{}{BOLD:#}: {}, {sizes}",
            clean(&change.name),
            clean(&change.cause)
        ));
    }
    Ok(Some(bytes))
}

/// What it cost, or the exit code after saying why it was not done.
fn measured(outcome: Outcome) -> Result<String, Exit> {
    match outcome.result {
        Ok(Done::Applied(m) | Done::Reverted(m)) => {
            let stood =
                format!("{GOOD}done{GOOD:#}, the process stood still for {BOLD}{}{BOLD:#}", pause(m.flip_pause_ns));
            let threads = count(m.threads as usize, "thread");
            Ok(format!("{stood} {DIM}({threads}; longest other stop {}){DIM:#}", pause(m.longest_other_pause_ns)))
        }
        Ok(other) => {
            println!("  {BAD}nothing was done{BAD:#}: {other:?}");
            Err(Exit::Refused)
        }
        Err(error) => {
            println!("  {BAD}not done{BAD:#}: {}", clean(&error.to_string()));
            Err(exit_of_error(&error))
        }
    }
}

/// The kinds of answer to [`QUESTION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Memory of the session that nobody should see.
    Leak,
    /// What the fixed server says.
    Refusal,
}

impl Answer {
    fn of(line: &str) -> Option<Answer> {
        match line {
            _ if line.contains(SECRET) => Some(Answer::Leak),
            _ if line.starts_with("error: 36 bytes asked for, 5 sent") => Some(Answer::Refusal),
            _ => None,
        }
    }
}

/// The running server, killed when the demonstration is over.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path) -> anyhow::Result<Server> {
        let mut command = Command::new(program);
        // It ends by itself when its standard input does, however we end.
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the server")?;
        let output = child.stdout.take();
        let mut server = Server { child, port: 0 };
        let mut line = String::new();
        BufReader::new(output.context("the server has no output")?).read_line(&mut line)?;
        server.port = line.trim().parse().context("the server did not say its port")?;
        Ok(server)
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Asks once, shows question and answer, and insists on the kind of answer.
    fn show(&self, expected: Answer) -> anyhow::Result<()> {
        let answer = Client::connect(self.port)?.ask()?;
        let style = if expected == Answer::Leak { BAD } else { GOOD };
        detail(format_args!("{DIM}>{DIM:#} {QUESTION}"));
        detail(format_args!("{DIM}<{DIM:#} {style}{}{style:#}", clean(&answer)));
        ensure!(Answer::of(&answer) == Some(expected), "the server should have answered with a {expected:?}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection.
struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Client {
    fn connect(port: u16) -> anyhow::Result<Client> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect to the server")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Client { lines: BufReader::new(stream.try_clone()?), stream })
    }

    /// One request, one answer, no second try.
    fn ask(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stream.write_all(format!("{QUESTION}\n").as_bytes()).context("a request could not be sent")?;
        self.lines.read_line(&mut line).context("a request got no answer")?;
        ensure!(line.ends_with('\n'), "the server hung up on a client");
        Ok(line.trim_end().to_owned())
    }
}

/// Answers of one kind that a client got one after the other.
struct Streak {
    answer: Answer,
    count: u64,
}

/// Clients that ask all the time.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<anyhow::Result<Vec<Streak>>>>,
}

impl Load {
    fn start(port: u16) -> anyhow::Result<Load> {
        let mut load = Load { stop: Arc::default(), clients: Vec::new() };
        for _ in 0..CLIENTS {
            let (client, stop) = (Client::connect(port)?, Arc::clone(&load.stop));
            load.clients.push(spawn(move || ask_until(client, &stop)));
        }
        Ok(load)
    }

    /// Ends the clients; an error if one request of one of them failed.
    fn stop(mut self) -> anyhow::Result<Vec<Vec<Streak>>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.clients.drain(..).map(JoinHandle::join);
        ended.map(|result| result.map_err(|_| anyhow!("a client gave up"))?).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask_until(mut client: Client, stop: &AtomicBool) -> anyhow::Result<Vec<Streak>> {
    let mut streaks: Vec<Streak> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let line = client.ask()?;
        let answer = Answer::of(&line).with_context(|| format!("a client got neither answer: {}", clean(&line)))?;
        match streaks.last_mut() {
            Some(streak) if streak.answer == answer => streak.count += 1,
            _ => streaks.push(Streak { answer, count: 1 }),
        }
    }
    Ok(streaks)
}

/// Each client must have seen old, new and old answers, and the change between two requests.
fn summary(clients: &[Vec<Streak>]) -> anyhow::Result<()> {
    let mut totals = [0; 3];
    for streaks in clients {
        let kinds: Vec<Answer> = streaks.iter().map(|s| s.answer).collect();
        ensure!(
            kinds == [Answer::Leak, Answer::Refusal, Answer::Leak],
            "a client saw the answers change {} times, not twice",
            kinds.len().saturating_sub(1)
        );
        for (total, streak) in totals.iter_mut().zip(streaks) {
            *total += streak.count;
        }
    }
    let [before, patched, after] = totals;
    let all = before + patched + after;
    println!("{}", step("clients", &format!("{before} wrong answers, then {patched} right, then {after} wrong again")));
    detail(format_args!("{GOOD}{all} requests, none failed{GOOD:#}; each client saw the change between two requests"));
    Ok(())
}
