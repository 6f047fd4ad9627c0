//! The small applier and bundles: their size, that they need nothing, and that they do what `hp` does.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::hp::{Answer, HP, hp, run, status};
use support::target::{NEW, OLD, Pair, Target};

/// As `build/main.rs` has built it.
const APPLIER: &str = env!("HP_APPLIER");
const LIMIT: u64 = 128 * 1024;
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/keys/");

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn applier<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Answer {
    run(Command::new(APPLIER).args(arguments).env("XDG_CONFIG_HOME", "/nowhere"))
}

fn bundle(pair: &Pair) -> PathBuf {
    let file = pair.folder.path().join("fix.run");
    hp(["bundle", &text(&pair.patch), "-o", &text(&file)]).exits(0).says(&["fix.run", "applier", "bytes"]);
    file
}

#[test]
fn it_is_small() {
    let size = fs::metadata(APPLIER).unwrap().len();
    eprintln!("hp-apply: {size} bytes of {LIMIT}");
    assert!(size <= LIMIT, "{size} bytes");
}

#[test]
fn it_needs_no_library() {
    let headers = run(Command::new("readelf").args(["-lW", APPLIER])).exits(0).out;
    assert!(headers.contains("EXEC") && !headers.contains("INTERP") && !headers.contains("DYNAMIC"), "{headers}");
    assert!(!headers.contains("RWE"), "a segment that can be written and executed: {headers}");
}

#[test]
fn it_does_and_says_what_hp_does() {
    let pair = Pair::make();
    let (mut one, mut other) = (pair.start(), pair.start());
    let (patch, pids) = (text(&pair.patch), [one.pid().to_string(), other.pid().to_string()]);
    let both = [&["apply", &patch, "--pid", &pids[0]], &["apply", &patch, "--pid", &pids[1]]];
    let alike = |arguments: [&[&str]; 2], code| {
        // The same words, but for the process, addresses and times.
        let plain = |answer: Answer, pid: &str| {
            let all = (answer.out + &answer.err)
                .replace(pid, "PID")
                .replace("hp-apply:", "hp:")
                .replace("`hp status`", "`status`");
            let digits = all
                .split(|c: char| !c.is_ascii_alphanumeric())
                .filter(|word| !word.starts_with(['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']));
            digits
                .filter(|word| !["s", "ms", "ns", "µs"].contains(word) && word.len() > 1)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let ours = plain(applier(arguments[0]).exits(code), &pids[0]);
        let mut theirs = hp(arguments[1]).exits(code);
        // The one thing that it leaves to `hp`: what a restart would run.
        theirs.out =
            theirs.out.lines().filter(|line| !line.trim_start().starts_with("disk ")).collect::<Vec<_>>().join("\n");
        let theirs = plain(theirs, &pids[1]);
        assert_eq!(ours, theirs);
    };
    let dry: Vec<Vec<&str>> = both.iter().map(|words| [&words[..], &["--dry-run"]].concat()).collect();
    alike([&dry[0], &dry[1]], 0);
    assert_eq!([one.ask(), other.ask()], [OLD; 2]);
    alike([both[0], both[1]], 0);
    assert_eq!([one.ask(), other.ask()], [NEW; 2]);
    alike([both[0], both[1]], 3);
    alike([&["status", "--pid", &pids[0]], &["status", "--pid", &pids[1]]], 0);
    let id = status(one.pid()).exits(0).out.split("id ").nth(1).unwrap()[..6].to_owned();
    alike([&["revert", &id, "--pid", &pids[0]], &["revert", &id, "--pid", &pids[1]]], 0);
    assert_eq!([one.ask(), other.ask()], [OLD; 2]);
    alike([&["revert", "--everything", "--pid", &pids[0]], &["revert", "--everything", "--pid", &pids[1]]], 3);
    alike([&["status", "--pid", &pids[0]], &["status", "--pid", &pids[1]]], 3);
    alike([&["apply", "/nowhere", "--all"], &["apply", "/nowhere", "--all"]], 2);
    alike([&["apply", "/etc/passwd", "--all"], &["apply", "/etc/passwd", "--all"]], 2);
    alike([&["apply", &patch, "--pid", "1999999999"], &["apply", &patch, "--pid", "1999999999"]], 2);
    alike([&["revert", "xyz", "--all"], &["revert", "xyz", "--all"]].map(|words| &words[..]), 2);
}

/// Three functions that have patches of their own: VERSION n is the base with another function n.
const THREE: &str = r#"
#include <stdio.h>
__attribute__((noinline)) int one(int n) { return n * 3 + 5 + (VERSION == 1); }
__attribute__((noinline)) int two(int n) { return n * 5 + 7 + (VERSION == 2); }
__attribute__((noinline)) int three(int n) { return n * 7 + 9 + (VERSION == 3); }
int main(void)
{
    char line[32];
    setvbuf(stdout, NULL, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        printf("%d %d %d\n", one(0), two(0), three(0));
    return 0;
}
"#;

/// Patches are listed as they came, wherever in memory there was room for each.
#[test]
fn patches_are_listed_in_the_order_in_which_they_were_applied() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("target.c"), THREE).unwrap();
    for version in 0..=3 {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-g", "-Wl,--build-id=sha1", &format!("-DVERSION={version}"), "-o"]);
        run(gcc.arg(at(&format!("build{version}"))).arg(at("target.c"))).exits(0);
    }
    let patch = |version: u32| at(&format!("fix{version}.hpatch"));
    for version in 1..=3 {
        hp([
            "diff",
            &text(&at("build0")),
            &text(&at(&format!("build{version}"))),
            "-o",
            &text(&patch(version)),
            "--name",
            &format!("fix-{version}"),
        ])
        .exits(0);
    }
    let mut target = Target::start(&mut Command::new(at("build0")));
    let pid = target.pid().to_string();
    let listed = |expected: &[u32]| {
        for said in [applier(["status", "--pid", &pid]), hp(["status", "--pid", &pid])] {
            let names = said.out.lines().filter_map(|line| line.trim_start().strip_prefix("fix-"));
            let order: Vec<u32> = names.map(|rest| rest[..1].parse().unwrap()).collect();
            assert_eq!(order, expected, "{said}");
        }
    };
    for version in [2, 1, 3] {
        hp(["apply", &text(&patch(version)), "--pid", &pid]).exits(0);
    }
    listed(&[2, 1, 3]);
    // The next one comes to lie where the one that went has made room.
    for version in [2, 1, 3] {
        hp(["revert", &text(&patch(version)), "--pid", &pid]).exits(0);
        hp(["apply", &text(&patch(version)), "--pid", &pid]).exits(0);
        listed(match version {
            2 => &[1, 3, 2],
            1 => &[3, 2, 1],
            _ => &[2, 1, 3],
        });
    }
    assert_eq!(target.ask(), "6 8 10");
}

/// What is done is done, and the exit code tells; what was only to be said is not done if it cannot be said.
#[test]
fn standard_output_on_a_full_disk() {
    let pair = Pair::make();
    let mut target = pair.start();
    let (patch, pid) = (text(&pair.patch), target.pid().to_string());
    let why = "cannot write to standard output: no space left on device";
    for program in [APPLIER, HP] {
        let to_full = |arguments: &[&str], code, says: bool| {
            let mut command = Command::new(program);
            command.args(arguments).env("XDG_CONFIG_HOME", "/nowhere").stdin(Stdio::null());
            let output = command.stdout(fs::File::create("/dev/full").unwrap()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{program} {arguments:?}: {said}");
            assert_eq!(said.matches(why).count(), usize::from(says), "{program} {arguments:?}: {said}");
        };
        to_full(&["apply", &patch, "--pid", &pid, "--dry-run"], 0, true);
        to_full(&["apply", &patch, "--pid", &pid], 0, true);
        assert_eq!(target.ask(), NEW);
        to_full(&["apply", &patch, "--pid", &pid], 3, false);
        to_full(&["status", "--pid", &pid], 2, true);
        to_full(&["status"], 2, true);
        to_full(&["revert", &patch, "--pid", &pid], 0, true);
        assert_eq!(target.ask(), OLD);
        if program == HP {
            to_full(&["apply", &patch, "--pid", &pid, "--json"], 0, true);
            to_full(&["revert", &patch, "--pid", &pid, "--json"], 0, true);
            to_full(&["status", "--pid", &pid, "--json"], 2, true);
        }
    }
}

/// Limits of the applier itself: the target lives, and one line says what is wrong.
#[test]
fn limits_of_its_own() {
    let pair = Pair::make();
    let mut target = pair.start();
    let (patch, pid) = (text(&pair.patch), target.pid().to_string());
    let limited = |limit: &str, program: &str, verb: &str| {
        let script = format!("ulimit {limit}; exec {program} {verb} {patch} --pid {pid}");
        run(Command::new("sh").args(["-c", &script]).env("XDG_CONFIG_HOME", "/nowhere"))
    };
    limited("-v 8000", APPLIER, "apply").exits(2).says(&["cannot unpack", "memory"]);
    for program in [APPLIER, HP] {
        // Addresses in a process are beyond any limit for the size of files.
        limited("-f 1000", program, "apply").exits(0);
        assert_eq!(target.ask(), NEW);
        limited("-f 0", program, "revert").exits(0);
        assert_eq!(target.ask(), OLD);
        // Whoever may open no more files is told so, and not that the process has ended.
        for files in 4..9 {
            let applied = limited(&format!("-n {files}"), program, "apply");
            let (said, code) = (format!("{}{}", applied.out, applied.err), applied.code);
            assert!(code == 0 || code == 2 && !said.contains("ended") && !said.contains("no such"), "{files}: {said}");
            assert_eq!(target.ask(), if code == 0 { NEW } else { OLD });
            limited("-n 100", program, "revert").exits(if code == 0 { 0 } else { 3 });
        }
    }
}

#[test]
fn usage() {
    for wrong in [&[][..], &["fly"], &["apply", "--all"], &["apply", "x"], &["status", "--all"]] {
        applier(wrong).exits(2).says(&["--help"]);
    }
    let help = applier(["--help"]).exits(0).out;
    for word in ["apply", "revert", "status", "--dry-run", "--max-pause", "Exit codes"] {
        assert!(help.contains(word), "{help}");
    }
    applier(["--version"]).exits(0);
}

/// In its own mount and process namespace, in a root with nothing but itself, the patch, and `/proc`.
#[test]
fn in_an_empty_root() {
    let pair = Pair::make();
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("proc")).unwrap();
    for (file, name) in [(Path::new(APPLIER), "hp-apply"), (&pair.patch, "fix.hpatch"), (&bundle(&pair), "fix.run")] {
        fs::copy(file, root.path().join(name)).unwrap();
    }
    // The target waits for lines of a pipe that the script holds open. Its answers and what the applier says
    // go to one file in turns.
    let script = r#"
        set -eu
        mount -t proc proc "$ROOT/proc"
        mkfifo "$WORK/in"
        "$OLD" <"$WORK/in" >"$WORK/out" &
        exec 3>"$WORK/in"
        ask() { echo 10 >&3; sleep 0.3; tail -n 1 "$WORK/out"; }
        run() { code=0; chroot "$ROOT" "$@" >"$WORK/said" 2>&1 || code=$?; echo "$1 $code"; }
        ask
        run /hp-apply apply /fix.hpatch --all; ask
        run /hp-apply status
        run /hp-apply revert /fix.hpatch --all; ask
        run /fix.run --all --dry-run; ask
        run /fix.run --all; ask
        run /fix.run --status; grep -c "in effect" "$WORK/said"
        run /fix.run --revert --all; ask
        run /fix.run --revert --all
    "#;
    let work = tempfile::tempdir().unwrap();
    let old = pair.old.with_file_name(pair.old.file_name().unwrap());
    let answer = run(Command::new("unshare")
        .args(["-m", "-p", "-f", "--kill-child", "sh", "-c", script])
        .env("ROOT", root.path())
        .env("WORK", work.path())
        .env("OLD", old));
    let expected = [
        OLD,
        "/hp-apply 0",
        NEW,
        "/hp-apply 0",
        "/hp-apply 0",
        OLD,
        "/fix.run 0",
        OLD,
        "/fix.run 0",
        NEW,
        "/fix.run 0",
        "1",
        "/fix.run 0",
        OLD,
        "/fix.run 3",
    ];
    assert_eq!(answer.out.lines().collect::<Vec<_>>(), expected, "{answer}");
}

#[test]
fn a_bundle_is_whole_and_for_its_own_patch() {
    let pair = Pair::make();
    let mut target = pair.start();
    let (file, pid) = (bundle(&pair), target.pid().to_string());
    assert!(fs::metadata(&file).unwrap().permissions().mode() & 0o100 != 0);
    let run_it = |words: &[&str]| run(Command::new(&file).args(words).env("XDG_CONFIG_HOME", "/nowhere"));
    run_it(&["--pid", &pid, "--dry-run"]).exits(0);
    assert_eq!(target.ask(), OLD);
    run_it(&["--pid", &pid, "--max-pause", "5s", "--timeout", "5s"]).exits(0);
    assert_eq!(target.ask(), NEW);
    run_it(&["--pid", &pid]).exits(3).says(&["already has"]);
    run_it(&["--status", "--pid", &pid]).exits(0);
    run_it(&["--revert", "--exe", &text(&pair.old)]).exits(0);
    assert_eq!(target.ask(), OLD);
    for wrong in [&[][..], &["--revert"], &["other.hpatch", "--all"], &["--everything", "--revert", "--all"]] {
        run_it(wrong).exits(2);
    }
    // The patch inside is checked like a file: it is damaged, or it is cut off.
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 600;
    bytes[at] ^= 1;
    fs::write(&file, &bytes).unwrap();
    run_it(&["--pid", &pid]).exits(2).says(&["bundled patch", "damaged"]);
    assert_eq!(target.ask(), OLD);
}

#[test]
fn a_bundle_on_a_host_with_trusted_keys() {
    let pair = Pair::make();
    let mut target = pair.start();
    let pid = target.pid().to_string();
    let config = tempfile::tempdir().unwrap();
    let folder = config.path().join("hp/trusted.d");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(format!("{KEYS}plain.pub"), folder.join("ours.pub")).unwrap();
    let run_it =
        |file: &Path, words: &[&str], config: &Path| run(Command::new(file).args(words).env("XDG_CONFIG_HOME", config));
    let unsigned = bundle(&pair);
    let apply = ["--pid", pid.as_str()];
    run_it(&unsigned, &apply, config.path()).exits(1).says(&["not signed", "signed patches only"]);
    let trust = ["--pid", &pid, "--trust", &format!("{KEYS}plain.pub")];
    run_it(&unsigned, &trust, Path::new("/nowhere")).exits(1);
    assert_eq!(target.ask(), OLD);
    hp(["sign", &text(&pair.patch), "--key", &format!("{KEYS}plain.key")]).exits(0);
    let signed = bundle(&pair);
    let other = ["--pid", &pid, "--trust", &format!("{KEYS}locked.pub")];
    run_it(&signed, &other, Path::new("/nowhere")).exits(1).says(&["not trusted"]);
    assert_eq!(target.ask(), OLD);
    run_it(&signed, &apply, config.path()).exits(0);
    assert_eq!(target.ask(), NEW);
    // A key that cannot be read is an error, never passed over.
    fs::write(folder.join("broken.pub"), "no key").unwrap();
    run_it(&signed, &apply, config.path()).exits(2).says(&["broken.pub"]);
    run(Command::new(APPLIER).args(["apply", &text(&pair.patch), "--pid", &pid]).env("XDG_CONFIG_HOME", config.path()))
        .exits(2)
        .says(&["broken.pub"]);
}

/// One process refuses: none is changed.
#[test]
fn all_or_none() {
    let (pair, stranger) = (Pair::make(), Pair::make());
    let (mut first, mut second) = (pair.start(), stranger.start());
    let pids = format!("{},{}", first.pid(), second.pid());
    let patch = text(&pair.patch);
    let refused = applier(["apply", &patch, "--pid", &pids]).exits(1).err;
    let lines: Vec<&str> = refused.lines().collect();
    assert_eq!(lines.len(), 2, "{refused}");
    assert!(lines[0].contains("does not run the base"), "{refused}");
    assert!(lines[1].contains("nothing was applied to the other processes"), "{refused}");
    assert_eq!([first.ask(), second.ask()], [OLD; 2]);
    applier(["apply", &patch, "--pid", &pids, "--each"]).exits(1);
    assert_eq!([first.ask(), second.ask()], [NEW, OLD]);
}

/// The target replaces itself while the applier attaches to its threads: the exec waits for the tracer of the threads that
/// it ends, and attaching waits for the exec.
#[test]
fn an_exec_and_the_applier_do_not_wait_for_one_another() {
    let pair = Pair::make();
    let mut target = pair.start();
    let file = bundle(&pair);
    for _ in 0..10 {
        target.say("exec");
        assert_eq!(target.line(), "armed");
        let mut command = Command::new(&file);
        command.args(["--pid", &target.pid().to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut applier = command.spawn().unwrap();
        let began = Instant::now();
        while applier.try_wait().unwrap().is_none() {
            if began.elapsed() > Duration::from_secs(30) {
                applier.kill().unwrap();
                applier.wait().unwrap();
                panic!("the applier and the exec wait for one another");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // Where it was never seen traced, it goes on now.
        target.say("");
        assert_eq!(target.line(), "ready");
        let answer = target.ask();
        assert!([OLD, NEW].contains(&&*answer), "{answer}");
    }
}

#[test]
fn hp_says_where_it_writes() {
    let pair = Pair::make();
    let nowhere = "/nowhere/fix.run";
    hp(["bundle", &text(&pair.patch), "-o", nowhere]).exits(2).says(&["cannot write", nowhere]);
    hp(["bundle", "/etc/passwd", "-o", nowhere]).exits(2).says(&["/etc/passwd"]);
    assert!(!run(Command::new(HP).arg("bundle")).out.contains("panicked"));
}
