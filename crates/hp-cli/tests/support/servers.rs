//! redis and nginx as targets: started on a free port in a folder of their own, put under load, asked for the
//! behaviour that a fix changes.

use super::load::{Client, Connection, Load, expect};
use super::support::port::Port;
use super::support::process::{Running, children, until};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A running server.
pub(crate) struct Server {
    /// The process that was started.
    pub(crate) process: Running,
    /// Where it listens.
    pub(crate) port: u16,
    /// Dropped after the process has ended.
    _claim: Port,
    folder: TempDir,
    _backend: Option<Backend>,
}

impl Server {
    /// Every process of it, the first one first.
    pub(crate) fn pids(&self) -> Vec<u32> {
        std::iter::once(self.process.pid()).chain(children(self.process.pid())).collect()
    }

    /// What it wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A new connection to it.
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.port).expect("the server accepts connections")
    }
}

impl Drop for Server {
    /// A failed test is easier to understand with the server's last words.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the server's log:\n{}", lines[lines.len().saturating_sub(10)..].join("\n"));
        }
    }
}

// ---------------------------------------------------------------- redis

/// Starts redis without persistence.
pub(crate) fn redis(program: &Path) -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let claim = Port::claim();
    let port = claim.number;
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
    command.arg(folder.path()).arg("--logfile").arg(folder.path().join("log"));
    // The server's own tests use it.
    command.args(["--enable-debug-command", "local"]);
    let process = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    let server = Server { process, port, _claim: claim, folder, _backend: None };
    let answers = || Connection::open(port).and_then(|mut c| c.redis(&["PING"])).is_ok_and(|reply| reply == "+PONG");
    assert!(until(Duration::from_secs(20), answers), "redis does not start: {}", server.log());
    server
}

/// Writes, reads back, counts, and runs scripts that go through the lexer, the parser, tables and `unpack`.
struct RedisClient {
    connection: Connection,
    number: usize,
    count: u64,
}

impl Client for RedisClient {
    fn request(&mut self, turn: u64) -> Result<(), String> {
        let (key, value) = (format!("key:{}:{}", self.number, turn % 100), format!("value {turn}"));
        expect("SET", &self.connection.redis(&["SET", &key, &value])?, &["+OK".to_string()])?;
        expect("GET", &self.connection.redis(&["GET", &key])?, &[value])?;
        self.count += 1;
        let counter = format!("counter:{}:{}", self.number, std::process::id());
        if self.count == 1 {
            self.connection.redis(&["SET", &counter, "0"])?;
        }
        expect("INCR", &self.connection.redis(&["INCR", &counter])?, &[format!(":{}", self.count)])?;
        let unpack = "local a, b, c = unpack({7, 8, 9}, 1, 3); return a + b + c";
        expect("unpack", &self.connection.redis(&["EVAL", unpack, "0"])?, &[":24".to_string()])?;
        let parse = "return loadstring('local s = [==[x]==] -- '.. ARGV[1] ..'\\nreturn #s + ' .. ARGV[1])()";
        let answer = self.connection.redis(&["EVAL", parse, "0", &turn.to_string()])?;
        expect("loadstring", &answer, &[format!(":{}", turn + 1)])
    }
}

/// Clients of our own for redis.
pub(crate) fn redis_load(server: &Server) -> Load {
    let (mut load, port) = (Load::new(), server.port);
    for number in 0..4 {
        load.add(Duration::ZERO, move || Ok(RedisClient { connection: Connection::open(port)?, number, count: 0 }));
    }
    load
}

// ---------------------------------------------------------------- nginx

/// Starts nginx with a master and two workers.
pub(crate) fn nginx(program: &Path) -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (claim, backend) = (Port::claim(), Backend::start());
    let port = claim.number;
    fs::create_dir(folder.path().join("dav")).expect("a folder can be made");
    fs::write(folder.path().join("dav/a"), "hi\n").expect("a file can be written");
    fs::write(folder.path().join("nginx.conf"), nginx_configuration(folder.path(), port, backend.port))
        .expect("a file can be written");
    let mut command = Command::new(program);
    command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
    command.arg("-e").arg(folder.path().join("log"));
    let process = Running::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
    let server = Server { process, port, _claim: claim, folder, _backend: Some(backend) };
    let answers = || {
        let reply = Connection::open(port).and_then(|mut c| c.http("GET", "/health", ""));
        reply.is_ok_and(|(status, _)| status == 200) && server.pids().len() == 3
    };
    assert!(until(Duration::from_secs(20), answers), "nginx does not start: {}", server.log());
    server
}

fn nginx_configuration(folder: &Path, port: u16, backend: u16) -> String {
    let folder = folder.display();
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = if unsafe { libc::geteuid() } == 0 { "user root;" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        "daemon off;
{user}
worker_processes 2;
pid {folder}/pid;
error_log {folder}/log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
{temporary}    server {{
        listen 127.0.0.1:{port};
        location /health {{ return 200 ok; }}
        location /rewrite {{ rewrite ^/rewrite(.*) /new?c=1; set $captured $1; return 200 $captured; }}
        location /plain {{ proxy_pass http://127.0.0.1:{backend}; proxy_next_upstream off; }}
        location /secure {{ proxy_pass https://127.0.0.1:{backend}; proxy_next_upstream off; }}
        location /dav/long/location/ {{
            alias {folder}/dav/;
            dav_methods PUT DELETE MKCOL COPY MOVE;
            create_full_put_path on;
        }}
    }}
}}
"
    )
}

/// What a fix may change in a reply, in the words that the load accepts.
pub(crate) const REWRITE: &str = "/rewrite/a%25b+c";
/// The captures are escaped, wrongly, and cut.
pub(crate) const REWRITE_OLD: &str = "/a%25b";
/// The captures as they are.
pub(crate) const REWRITE_NEW: &str = "/a%b+c";

/// Asks for a constant, a rewritten path and a copied file, in turn.
struct NginxClient {
    connection: Connection,
    number: usize,
}

impl Client for NginxClient {
    fn request(&mut self, turn: u64) -> Result<(), String> {
        let reply = |status: u16, body: &str| (status, body.to_string());
        match turn % 4 {
            0 => {
                let header = format!("Destination: http://test/dav/long/location/copy{}\r\n", self.number);
                let (status, _) = self.connection.http("COPY", "/dav/long/location/a", &header)?;
                expect("COPY", &status, &[201, 204])
            }
            1 => {
                let wanted = [reply(200, REWRITE_OLD), reply(200, REWRITE_NEW)];
                expect("rewrite", &self.connection.http("GET", REWRITE, "")?, &wanted)
            }
            _ => expect("health", &self.connection.http("GET", "/health", "")?, &[reply(200, "ok")]),
        }
    }
}

/// Asks for what nginx fetches from another server.
struct ProxyClient(Connection);

impl Client for ProxyClient {
    fn request(&mut self, _turn: u64) -> Result<(), String> {
        expect("proxy", &self.0.http("GET", "/plain", "")?, &[(200, BACKEND_BODY.to_string())])
    }
}

/// Opens a connection for each request.
struct ShortClient(u16);

impl Client for ShortClient {
    fn request(&mut self, _turn: u64) -> Result<(), String> {
        let reply = Connection::open(self.0)?.http("GET", "/health", "Connection: close\r\n")?;
        expect("health", &reply, &[(200, "ok".to_string())])
    }
}

/// Clients of our own for nginx.
pub(crate) fn nginx_load(server: &Server) -> Load {
    let (mut load, port) = (Load::new(), server.port);
    for number in 0..4 {
        load.add(Duration::ZERO, move || Ok(NginxClient { connection: Connection::open(port)?, number }));
    }
    // Each of these takes a port out of use for a minute.
    load.add(Duration::from_millis(5), move || Ok(ProxyClient(Connection::open(port)?)));
    load.add(Duration::from_millis(5), move || Ok(ShortClient(port)));
    load
}

/// A server that answers every connection in plain text, before it has read anything.
struct Backend {
    port: u16,
}

const BACKEND_BODY: &str = "plaintext";

impl Backend {
    fn start() -> Backend {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let reply = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{BACKEND_BODY}", BACKEND_BODY.len());
                // The request is read after the reply is out, so that closing does not reset the connection.
                let _ = stream.write_all(reply.as_bytes());
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = stream.read(&mut [0; 4096]);
            }
        });
        Backend { port }
    }
}

// ---------------------------------------------------------------- load generators that others wrote

/// A load generator of another project: ends with a report, or before its time if something goes wrong.
pub(crate) struct Foreign {
    process: Running,
    report: PathBuf,
    _folder: TempDir,
}

impl Foreign {
    fn start(command: &mut Command) -> Foreign {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let report = folder.path().join("report");
        let out = fs::File::create(&report).expect("a file can be made");
        let err = out.try_clone().expect("a file can be opened twice");
        let process = Running::start(command.stdin(Stdio::null()).stdout(out).stderr(err));
        Foreign { process, report, _folder: folder }
    }

    /// Ends it; its report, and whether it was still at work.
    fn finish(mut self) -> (String, bool) {
        let worked = self.process.lives();
        super::support::process::signal(self.process.pid(), libc::SIGINT);
        let _ = until(Duration::from_secs(5), || !self.process.lives());
        let _ = self.process.child.kill();
        (String::from_utf8_lossy(&fs::read(&self.report).unwrap_or_default()).into_owned(), worked)
    }
}

/// redis's own load generator; it gives up at the first error.
pub(crate) fn redis_benchmark(program: &Path, server: &Server) -> Foreign {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &server.port.to_string(), "-t", "get,set", "-c", "8"]);
    Foreign::start(command.args(["-n", "1000000000", "-r", "1000", "-d", "64", "-e", "-q"]))
}

/// Asserts that it ran to the end without an error.
pub(crate) fn redis_benchmark_is_content(benchmark: Foreign) {
    let (report, worked) = benchmark.finish();
    let last = report.rsplit(['\r', '\n']).find(|line| !line.trim().is_empty()).unwrap_or("").to_string();
    assert!(worked, "redis-benchmark gave up: {last}");
    assert!(!report.contains("Error") && !report.contains("closed"), "redis-benchmark had an error: {last}");
}

/// The load generator of the Apache project, if it is installed.
pub(crate) fn ab(server: &Server) -> Option<Foreign> {
    super::support::lacks("ab").is_none().then(|| {
        let mut command = Command::new("ab");
        command.args(["-q", "-k", "-c", "2", "-t", "3600", "-n", "5000000"]);
        Foreign::start(command.arg(format!("http://127.0.0.1:{}/health", server.port)))
    })
}

/// Asserts that it ran to the end and counted no failure.
pub(crate) fn ab_is_content(ab: Foreign) {
    let (report, worked) = ab.finish();
    assert!(worked, "ab gave up: {report}");
    let number = |label: &str| {
        let value = report.lines().find_map(|line| line.strip_prefix(label));
        value.and_then(|value| value.trim().parse::<u64>().ok())
    };
    assert!(number("Complete requests:") > Some(0), "ab completed nothing: {report}");
    assert_eq!(number("Failed requests:"), Some(0), "ab counted failures: {report}");
    assert_eq!(number("Non-2xx responses:"), None, "ab saw errors: {report}");
}
