//! Load that forgives nothing: each client keeps one connection busy, checks every reply to the last byte, never
//! retries, and counts whatever is not as it should be.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A reply that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// One client: makes its next request and checks the reply.
pub(crate) trait Client {
    /// Makes request number `turn`. The error says what was wrong with the reply.
    fn request(&mut self, turn: u64) -> Result<(), String>;
}

/// Clients at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// No clients yet.
    pub(crate) fn new() -> Load {
        Load { stop: Arc::default(), served: Arc::default(), clients: Vec::new() }
    }

    /// Sets a client to work; `make` connects it, and again after a failure.
    pub(crate) fn add<C: Client + 'static>(
        &mut self,
        pause: Duration,
        make: impl Fn() -> Result<C, String> + Send + 'static,
    ) {
        let (stop, served) = (Arc::clone(&self.stop), Arc::clone(&self.served));
        self.clients.push(std::thread::spawn(move || {
            let (mut failures, mut client, mut turn) = (Vec::new(), None, 0);
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                let result = match client.take().map_or_else(&make, Ok) {
                    Ok(mut connected) => connected.request(turn).map(|()| client = Some(connected)),
                    Err(reason) => Err(format!("cannot connect: {reason}")),
                };
                match result {
                    Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                    Err(reason) => failures.push(format!("request {turn}: {reason}")),
                }
                std::thread::sleep(pause);
            }
            failures
        }));
    }

    /// Requests served so far.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until more requests have been served.
    pub(crate) fn serves_on(&self) {
        let (before, deadline) = (self.served(), Instant::now() + PATIENCE);
        while self.served() < before + 20 {
            assert!(Instant::now() < deadline, "the server no longer serves");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the load; every failure, in words.
    pub(crate) fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
    }
}

/// A connection to a server on this machine.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(port: u16) -> Result<Connection, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(words)?;
        stream.set_nodelay(true).map_err(words)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(words)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.get_mut().write_all(bytes).map_err(words)
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).map_err(words)?;
        let text = line.strip_suffix(b"\r\n").ok_or("closed without an answer")?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn exactly(&mut self, length: usize) -> Result<String, String> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).map_err(words)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// An HTTP/1.1 request on a connection that stays open; the reply's status and body.
    pub(crate) fn http(&mut self, method: &str, path: &str, header: &str) -> Result<(u16, String), String> {
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: test\r\n{header}\r\n").as_bytes())?;
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status line")?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                return Ok((status, self.exactly(length)?));
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(|_| format!("odd header {line}"))?;
            }
        }
    }

    /// A redis command; the reply's first line, or the string it announces.
    pub(crate) fn redis(&mut self, words: &[&str]) -> Result<String, String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.send(request.as_bytes())?;
        let line = self.line()?;
        let Some(length) = line.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok()) else {
            return Ok(line);
        };
        let mut value = self.exactly(length + 2)?;
        value.truncate(length);
        Ok(value)
    }
}

/// Asserts that a reply is the one expected.
pub(crate) fn expect<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, wanted: &[T]) -> Result<(), String> {
    if wanted.contains(got) { Ok(()) } else { Err(format!("{what}: {got:?} instead of {wanted:?}")) }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn words(error: std::io::Error) -> String {
    error.to_string()
}
