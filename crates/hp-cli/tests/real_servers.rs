//! Security fixes of real servers, patched in and out under load.
//!
//! Each case is a pair of ordinary builds of a distribution's package, with and without one fix, which
//! `cargo xtask test` makes. The old build runs under load; the patch goes into every process of it and out
//! again, many times. No request may fail, and the behaviour must be the new one and the old one by turns, where
//! the old one is harmless to look at.

#[path = "support/load.rs"]
mod load;
#[path = "support/servers.rs"]
mod servers;
mod support;

use load::Load;
use servers::{Foreign, REWRITE, REWRITE_NEW, REWRITE_OLD, Server};
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::hp::{apply, diff, on_all, revert, status};
use support::port::{self, Port};
use support::process::{anonymous_code, children, program_text, signal, until};
use support::trial;

/// How often a patch goes in and out under load.
const CYCLES: u32 = 20;

/// A fix and what it does to a running server.
struct Case {
    /// The pair's name in `testdata/recipes`.
    name: &'static str,
    /// Functions that must be in the patch.
    functions: &'static [&'static str],
    /// Asserts the new behaviour; the old build may not survive being asked.
    new: fn(&Server),
    /// Asserts the old behaviour, where that can be seen and harms nothing.
    old: fn(&Server),
}

const REDIS: &[Case] = &[
    Case {
        name: "redis-cve-2025-46817",
        functions: &["luaB_unpack", "luaH_getnum"],
        new: |server| {
            let script = "return {unpack({1, 2, 3}, -2, 2147483647)}";
            let reply = server.connect().redis(&["EVAL", script, "0"]).expect("the server survives");
            assert!(reply.contains("too many results to unpack"), "{reply}");
        },
        old: |_| {},
    },
    Case {
        name: "redis-cve-2025-46819",
        functions: &["luaX_setinput", "llex"],
        new: |server| lua_still_parses(server),
        old: |server| lua_still_parses(server),
    },
    Case {
        name: "redis-cve-2025-49844",
        functions: &["luaY_parser"],
        new: |server| lua_still_parses(server),
        old: |server| lua_still_parses(server),
    },
];

const NGINX: &[Case] = &[
    Case {
        name: "nginx-cve-2026-42945",
        functions: &["ngx_http_script_regex_end_code"],
        new: |server| rewrites_to(server, REWRITE_NEW),
        old: |server| rewrites_to(server, REWRITE_OLD),
    },
    Case {
        name: "nginx-cve-2026-1642",
        functions: &["ngx_http_upstream_process_header"],
        new: |server| {
            // The old build lets some of many through; it is a race.
            for _ in 0..200 {
                let (status, _) = server.connect().http("GET", "/secure", "").expect("nginx answers");
                assert_eq!(status, 502, "a plain answer of a TLS server was let through");
            }
        },
        old: |_| {},
    },
    Case {
        name: "nginx-cve-2026-27654",
        functions: &["ngx_http_dav_copy_move_handler"],
        new: |server| {
            let reply = server.connect().http("COPY", "/dav/long/location/a", "Destination: http://test/x\r\n");
            assert_eq!(reply.expect("the worker survives").0, 400);
        },
        old: |_| {},
    },
];

/// Long strings, comments and nesting, and an error with its line: what both fixes must leave as it is.
fn lua_still_parses(server: &Server) {
    let mut connection = server.connect();
    let script = "--[==[ a\ncomment ]==]\nlocal t = {[ [[a]] ] = [=[b]c]=]}\nreturn t.a";
    assert_eq!(connection.redis(&["EVAL", script, "0"]).expect("redis answers"), "b]c");
    let reply = connection.redis(&["EVAL", "return [=x", "0"]).expect("redis answers");
    assert!(reply.contains("invalid long string delimiter near '[='"), "{reply}");
}

fn rewrites_to(server: &Server, wanted: &str) {
    // One connection goes to one worker; a few reach both.
    for _ in 0..12 {
        let reply = server.connect().http("GET", REWRITE, "").expect("nginx answers");
        assert_eq!(reply, (200, wanted.to_string()));
    }
}

fn main() {
    let pairs = std::env::var_os("HP_REAL_PAIRS").map(PathBuf::from);
    let mut trials = Vec::new();
    for case in REDIS {
        trials.push(trial(case.name, missing(pairs.as_deref(), case), || redis_case(case)));
    }
    for case in NGINX {
        trials.push(trial(case.name, missing(pairs.as_deref(), case), || nginx_case(case)));
    }
    let fork = trial("nginx-fork", missing(pairs.as_deref(), &NGINX[0]), || new_workers_inherit(&NGINX[0]));
    trials.push(fork);
    trials.push(trial("ports", None, ports_stay_free));
    let mut arguments = libtest_mimic::Arguments::from_args();
    // Each case keeps all cores busy by itself.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}

/// Servers bind their ports after these were chosen: neither another test nor a client may have one by then.
fn ports_stay_free() {
    let outgoing = port::outgoing();
    let held: Vec<Port> = (0..50).map(|_| Port::claim()).collect();
    let mut numbers: Vec<u16> = held.iter().map(|port| port.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), held.len(), "a port was claimed twice");
    for number in numbers {
        assert!(!outgoing.contains(&number), "{number} is one of {outgoing:?}, which the kernel gives to clients");
        for _ in 0..2 {
            let listens = TcpListener::bind(("127.0.0.1", number));
            assert!(listens.is_ok(), "{number} cannot be listened at, again and again: {listens:?}");
        }
        assert!(UdpSocket::bind(("127.0.0.1", number)).is_err(), "another process could claim {number}");
    }
}

fn missing(pairs: Option<&Path>, case: &Case) -> Option<String> {
    let built = pairs.is_some_and(|pairs| pairs.join(case.name).join("stamp").exists());
    (!built).then(|| "its builds are not there; `cargo xtask test` makes them".to_string())
}

/// The two builds, the patch between them, and the right to run the old one: `--all` means every process of a
/// build, so two runs of a test must not overlap.
struct Prepared {
    old: PathBuf,
    tools: PathBuf,
    patch: PathBuf,
    _folder: tempfile::TempDir,
    _lock: File,
}

fn prepare(case: &Case, program: &str) -> Prepared {
    let pairs = PathBuf::from(std::env::var_os("HP_REAL_PAIRS").expect("run `cargo xtask test`"));
    let pair = pairs.join(case.name);
    let lock = File::create(pair.join("lock")).expect("the pair's folder can be written");
    lock.lock().expect("a file can be locked");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (old, new) = (pair.join("old").join(program), pair.join("new").join(program));
    let patch = folder.path().join(format!("{}.hpatch", case.name));
    let answer = diff(&old, &new, &patch).exits(0);
    for function in case.functions {
        assert!(answer.err.contains(function), "{function} was to be in the report of {answer}");
    }
    Prepared { old, tools: pairs.join("tools"), patch, _folder: folder, _lock: lock }
}

fn redis_case(case: &Case) {
    let prepared = prepare(case, "redis-server");
    let server = servers::redis(&prepared.old);
    let load = servers::redis_load(&server);
    let benchmark = servers::redis_benchmark(&prepared.tools.join("redis-benchmark"), &server);
    in_and_out(case, &prepared, &server, load, Some((benchmark, servers::redis_benchmark_is_content)));
}

fn nginx_case(case: &Case) {
    let prepared = prepare(case, "nginx");
    let server = servers::nginx(&prepared.old);
    let load = servers::nginx_load(&server);
    let ab = servers::ab(&server).map(|ab| (ab, servers::ab_is_content as fn(Foreign)));
    in_and_out(case, &prepared, &server, load, ab);
}

/// The patch goes in and out under load, many times; then everything is as it was at first.
fn in_and_out(case: &Case, prepared: &Prepared, server: &Server, load: Load, other: Option<(Foreign, fn(Foreign))>) {
    let pids = server.pids();
    load.serves_on();
    let before: Vec<_> = pids.iter().map(|pid| program_text(*pid)).collect();
    (case.old)(server);
    let mut last = String::new();
    for cycle in 0..CYCLES {
        on_all("apply", &prepared.patch).exits(0);
        load.serves_on();
        (case.new)(server);
        if cycle == 0 {
            pids.iter().for_each(|pid| is_patched(*pid, case));
        }
        last = on_all("revert", &prepared.patch).exits(0).out;
        load.serves_on();
        (case.old)(server);
    }
    if let Some((foreign, is_content)) = other {
        is_content(foreign);
    }
    let served = load.served();
    let failures = load.finish();
    let some = &failures[..failures.len().min(5)];
    assert!(failures.is_empty(), "{} of {served} requests failed: {some:#?}", failures.len());
    assert_eq!(server.pids(), pids, "no process has ended or been started; the log: {}", server.log());
    for (pid, text) in pids.into_iter().zip(before) {
        assert!(program_text(pid) == text, "the code of process {pid} is not what it was before");
        // nginx keeps pointers to the strings of its functions (`log->action`): then one payload stays, and hp says so.
        let mut report = last.lines().skip_while(|line| !line.contains(&format!("[{pid}]: reverted"))).skip(1);
        let kept = report.next().is_some_and(|line| line.contains("may be a pointer into it"));
        let payloads = anonymous_code(pid);
        assert_eq!(payloads.len(), usize::from(kept), "of process {pid}: {payloads:#?} {last}");
        assert!(!status(pid).out.contains("  in effect"), "process {pid} still has the patch");
    }
}

fn is_patched(pid: u32, case: &Case) {
    let answer = status(pid).exits(0);
    for function in case.functions {
        assert!(answer.out.contains(function), "{function} was to be in {answer}");
    }
}

/// Workers that the patched master starts have the patch too, and can be reverted like the others.
fn new_workers_inherit(case: &Case) {
    let prepared = prepare(case, "nginx");
    let server = servers::nginx(&prepared.old);
    let master = server.process.pid();
    let first = children(master);
    apply(&prepared.patch, master).exits(0);
    signal(master, libc::SIGHUP);
    let renewed = || {
        let now = children(master);
        now.len() == 2 && now.iter().all(|pid| !first.contains(pid))
    };
    assert!(until(Duration::from_secs(20), renewed), "nginx has renewed its workers");
    rewrites_to(&server, REWRITE_NEW);
    for pid in server.pids() {
        is_patched(pid, case);
        revert(&prepared.patch, pid).exits(0);
    }
    rewrites_to(&server, REWRITE_OLD);
}
