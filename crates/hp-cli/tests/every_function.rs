//! Nearly every function of a real server replaced at once, and the server's own test suite asked whether it is still the same server.
//!
//! The new build is the old one with its instructions in other encodings (`support/reencode.rs`): it behaves the same, and every
//! function differs. So the patch carries thousands of functions with all of their references, and what the suite of the
//! server's authors finds in the patched process is a mistake of ours.

#[path = "support/load.rs"]
#[allow(dead_code, reason = "the clients are other tests'")]
mod load;
#[path = "support/reencode.rs"]
mod reencode;
#[path = "support/servers.rs"]
#[allow(dead_code, reason = "one server of several")]
mod servers;
mod support;

use reencode::reencode;
use serde_json::Value;
use servers::Server;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use support::hp::{Answer, hp, revert, status};
use support::process::program_text;
use support::{lacks, trial};

/// The pair whose new build is the old one here.
const CASE: &str = "redis-cve-2025-46817";

/// Units of the suite that need no server of their own and wait for little. In one server they stand in
/// each other's way (limits and encodings stay as a unit has set them): these pass in this order without a patch.
const UNITS: &[&str] = &[
    "unit/protocol",
    "unit/type/string",
    "unit/type/incr",
    "unit/type/hash",
    "unit/type/list",
    "unit/type/set",
    "unit/type/zset",
    "unit/type/stream",
    "unit/scripting",
    "unit/functions",
    "unit/sort",
    "unit/bitops",
    "unit/multi",
    "unit/keyspace",
];

fn main() -> ExitCode {
    let pairs = std::env::var_os("HP_REAL_PAIRS").map(PathBuf::from);
    let built =
        pairs.is_some_and(|pairs| pairs.join(CASE).join("stamp").exists() && pairs.join("tools/tests").exists());
    let missing = (!built).then(|| "redis and its tests are not there; `cargo xtask test` makes them".to_string());
    let redis = trial("redis_passes_its_own_tests", missing.or_else(|| lacks("tclsh")), redis_passes_its_own_tests);
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), vec![redis]).exit_code()
}

fn redis_passes_its_own_tests() {
    let pairs = PathBuf::from(std::env::var_os("HP_REAL_PAIRS").expect("run `cargo xtask test`"));
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    // With all fixes, for the suite tests them; a copy, for other tests patch every process of the original.
    let old = folder.path().join("redis-server");
    fs::copy(pairs.join(CASE).join("new/redis-server"), &old).expect("the build can be copied");
    let server = servers::redis(&old);
    let pid = server.process.pid();
    let before = program_text(pid);
    let (patch, replaced) = applied(&old, pid, folder.path());
    assert!(replaced > 3000, "only {replaced} functions are in the patch");
    let shown = status(pid).exits(0).out;
    assert!(shown.contains("in effect") && shown.contains("more; -v lists all"), "{shown}");

    let passed = suite(&server, &pairs.join("tools/tests"), folder.path());
    println!("{replaced} functions replaced, {passed} tests of redis passed");
    assert!(server.process.lives(), "the log: {}", server.log());
    revert(&patch, pid).exits(0);
    assert!(program_text(pid) == before, "the code is not what it was before");
    assert_eq!(server.connect().redis(&["PING"]).expect("redis answers"), "+PONG");
}

/// The patch that could be applied, and how many functions it replaces. Functions that `hp diff` refuses, since nothing but
/// unchanged functions would identify what they refer to, and those that never leave a stack stay as they are.
fn applied(old: &Path, pid: u32, folder: &Path) -> (PathBuf, usize) {
    let program = fs::read(old).expect("the old build");
    let (new, patch) = (folder.join("new"), folder.join("every.hpatch"));
    let mut keep = BTreeSet::new();
    for _ in 0..6 {
        let (bytes, changed) = reencode(&program, &keep);
        fs::write(&new, bytes).expect("the new build can be written");
        let diff = hp(["diff", "--json", text(old), text(&new), "-o", text(&patch)]);
        if diff.code == 1 {
            keep.extend(subjects(&diff));
            continue;
        }
        diff.exits(0);
        let apply = hp(["apply", "--json", "--timeout", "1s", text(&patch), "--pid", &pid.to_string()]);
        if apply.code == 4 {
            keep.extend(in_the_way(&apply));
            continue;
        }
        apply.exits(0);
        return (patch, changed.len());
    }
    panic!("still refused without {keep:?}");
}

fn json(answer: &Answer) -> Value {
    serde_json::from_str(&answer.out).unwrap_or_else(|error| panic!("{error} in {answer}"))
}

/// What the errors of a report are about, without the file's name before a local function's.
fn subjects(diff: &Answer) -> Vec<String> {
    let report = json(diff);
    let findings = report["findings"].as_array().expect("a list of findings");
    let errors = findings.iter().filter(|finding| finding["level"] == "error");
    let subjects = errors.map(|finding| finding["subject"].as_str().expect("a subject"));
    subjects.map(|subject| subject.rsplit(':').next().unwrap_or(subject).to_string()).collect()
}

/// The functions whose frames were in the way.
fn in_the_way(apply: &Answer) -> Vec<String> {
    let report = json(apply);
    let frames = report["targets"][0]["frames"].as_array().unwrap_or_else(|| panic!("frames in {apply}"));
    let place =
        |frame: &Value| frame.as_str()?.split_once(") in ")?.1.split_once("+0x").map(|(name, _)| name.to_string());
    frames.iter().map(|frame| place(frame).unwrap_or_else(|| panic!("a function in {frame}"))).collect()
}

/// Runs the server's own tests against it and returns how many passed; one that fails is a failure here.
fn suite(server: &Server, tests: &Path, folder: &Path) -> usize {
    let copied = Command::new("cp").arg("-r").arg(tests).arg(folder).status().expect("cp runs");
    assert!(copied.success(), "the tests can be copied");
    let mut command = Command::new("tclsh");
    command.args(["tests/test_helper.tcl", "--host", "127.0.0.1", "--port", &server.port.to_string()]);
    command
        .args(["--tags", "-slow", "--clients", "1", "--timeout", "60"])
        .args(UNITS.iter().flat_map(|unit| ["--single", unit]));
    let output = command.current_dir(folder).stdin(Stdio::null()).output().expect("tclsh runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = said.lines().filter(|line| line.contains("ok\u{1b}[0m]")).count();
    let other: Vec<&str> = said.lines().filter(|line| !line.contains("\u{1b}[0m]: ") || line.contains("err")).collect();
    assert!(output.status.success() && passed > 1000, "{passed} tests passed; else: {}", other.join("\n"));
    passed
}

fn text(path: &Path) -> &str {
    OsStr::new(path).to_str().expect("a path in Unicode")
}
