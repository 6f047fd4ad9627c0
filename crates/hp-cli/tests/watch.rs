//! `hp watch`, and control groups as targets.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use support::hp::{HP, hp, status};
use support::process::{Running, until};
use support::target::{NEW, OLD, Pair, Target};
use support::{lacks, trial};

/// In the environment and the arguments of a process: no event has it.
const SECRET: &str = "correct-horse-battery-staple";
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/keys/");

fn main() -> ExitCode {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("what_runs_and_what_starts_later", gcc(), what_runs_and_what_starts_later),
        trial("asked_of_proc_where_the_kernel_does_not_tell", gcc(), asked_of_proc_where_the_kernel_does_not_tell),
        trial("a_program_that_another_one_becomes", gcc(), a_program_that_another_one_becomes),
        trial("files_come_are_replaced_and_go", gcc(), files_come_are_replaced_and_go),
        trial("only_what_is_trusted", gcc(), only_what_is_trusted),
        trial("a_library_that_is_opened_later", gcc(), a_library_that_is_opened_later),
        trial("a_storm_of_short_lives", gcc(), a_storm_of_short_lives),
        trial("what_it_cannot_watch", None, what_it_cannot_watch),
        trial("the_unit_is_sound", lacks("systemd-analyze"), the_unit_is_sound),
        trial("a_control_group", gcc().or_else(|| Group::make("probe").err()), a_control_group),
        trial("what_is_no_control_group", gcc(), what_is_no_control_group),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// A running `hp watch`.
struct Watcher {
    _process: Running,
    lines: Receiver<String>,
}

impl Watcher {
    fn start(folder: &Path, more: &[&str]) -> Watcher {
        let mut command = Command::new(HP);
        command.arg("watch").arg(folder).args(more).stdout(Stdio::piped()).env_remove("XDG_CONFIG_HOME");
        let mut process = Running::start(command.env("HOME", folder));
        let output = BufReader::new(process.child.stdout.take().expect("stdout is a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop)
        });
        let watcher = Watcher { _process: process, lines };
        watcher.until(&["\"watching\""]);
        watcher
    }

    /// The next line with all of these words.
    #[track_caller]
    fn until(&self, words: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            assert!(line.starts_with('{') && line.ends_with('}') && line.contains("\"time\":"), "{line}");
            assert!(!line.contains(SECRET), "{line}");
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            seen.push(line);
        }
        panic!("no event with {words:?}, only {seen:#?}");
    }

    fn of(&self, target: &Target, word: &str) -> String {
        self.until(&[&format!("\"pid\":{}", target.pid()), word])
    }
}

fn folder_with(patch: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    fs::copy(patch, folder.path().join("fix.hpatch")).expect("the patch can be copied");
    folder
}

fn watches_from_here_on(more: &[&str]) {
    let pair = Pair::make();
    let folder = folder_with(&pair.patch);
    let mut first = pair.start();
    let watcher = Watcher::start(folder.path(), more);
    watcher.of(&first, "\"applied\"");
    assert_eq!(first.ask(), NEW);
    for _ in 0..3 {
        let mut later = pair.start();
        assert!(until(Duration::from_secs(15), || later.ask() == NEW));
        watcher.of(&later, "\"applied\"");
    }
    let mut secretive = Command::new(&pair.old);
    secretive.args(["20000000", "0", SECRET]).env("TOKEN", SECRET).stdin(Stdio::null()).stdout(Stdio::null());
    let secretive = Running::start(&mut secretive);
    watcher.until(&[&format!("\"pid\":{}", secretive.pid()), "\"applied\""]);
    // The new build is none of its business.
    let new = Running::start(Command::new(pair.folder.path().join("new")).stdin(Stdio::piped()).stdout(Stdio::null()));
    std::thread::sleep(Duration::from_millis(600));
    status(new.pid()).exits(3);
}

fn what_runs_and_what_starts_later() {
    watches_from_here_on(&[]);
}

fn asked_of_proc_where_the_kernel_does_not_tell() {
    watches_from_here_on(&["--poll", "100ms"]);
}

/// The same process number, another program: what was said of the first does not count for the second.
fn a_program_that_another_one_becomes() {
    let pair = Pair::make();
    let folder = folder_with(&pair.patch);
    let watcher = Watcher::start(folder.path(), &["--poll", "100ms"]);
    let script = format!("{0} 1500000 & wait $!; exec {0}", pair.old.display());
    let mut shell =
        Running::start(Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()));
    watcher.until(&["\"applied\""]);
    watcher.until(&["\"applied\"", &format!("\"pid\":{}", shell.pid())]);
    let _ = shell.child.stdin.take().map(|mut input| input.write_all(b"1\n"));
}

fn files_come_are_replaced_and_go() {
    let (pair, other) = (Pair::make(), Pair::make());
    let folder = folder_with(&other.patch);
    let watcher = Watcher::start(folder.path(), &["--poll", "30s"]);
    watcher.until(&["\"file\"", "fix.hpatch"]);
    let mut target = pair.start();
    fs::write(folder.path().join("not whole.hpatch"), b"\x7fELF").expect("a file can be written");
    watcher.until(&["\"file-refused\"", "not whole"]);
    // Nobody ever writes to it, and nobody waits for that.
    let pipe = folder.path().join("pipe.part");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("coreutils has it").success());
    fs::rename(pipe, folder.path().join("pipe.hpatch")).expect("it can be renamed");
    watcher.until(&["\"file-refused\"", "pipe.hpatch is no regular file"]);
    let path = folder.path().join("second.hpatch");
    fs::copy(&pair.patch, folder.path().join("second.part")).expect("the patch can be copied");
    fs::rename(folder.path().join("second.part"), &path).expect("it can be renamed");
    watcher.of(&target, "\"applied\"");
    assert_eq!(target.ask(), NEW);
    // The same fix under a higher counter takes its place.
    let newer = folder.path().join("third.hpatch");
    let [old, new] = [&pair.old, &pair.folder.path().join("new")].map(|path| path.display().to_string());
    hp(["diff", &old, &new, "--counter", "7", "-o", &newer.display().to_string()]).exits(0);
    assert!(watcher.of(&target, "\"applied\"").contains("\"replaced\":[\""));
    fs::remove_file(&path).expect("it can be removed");
    watcher.until(&["\"file-gone\"", "second.hpatch"]);
    assert_eq!(target.ask(), NEW);
}

fn only_what_is_trusted() {
    let pair = Pair::make();
    let folder = folder_with(&pair.patch);
    let [public, secret] = ["plain.pub", "plain.key"].map(|name| format!("{KEYS}{name}"));
    let mut target = pair.start();
    let watcher = Watcher::start(folder.path(), &["--trust", &public, "--poll", "100ms"]);
    watcher.until(&["\"file-refused\"", "not signed"]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(target.ask(), OLD);
    hp(["sign", &folder.path().join("fix.hpatch").display().to_string(), "--key", &secret]).exits(0);
    watcher.of(&target, "\"applied\"");
    assert_eq!(target.ask(), NEW);
}

/// The patch is for a library that the program opens when it is told to, long after it was started and looked at.
fn a_library_that_is_opened_later() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("lib.c"), "__attribute__((noinline)) int value(int x) { return x * FACTOR + 1; }\n")
        .expect("it can be written");
    let program = "#include <dlfcn.h>\n#include <stdio.h>\nint main(int argc, char **argv) { char line[9]; int (*value)(int) = 0;\n\
        setvbuf(stdout, 0, _IONBF, 0); puts(\"ready\");\n\
        while (fgets(line, sizeof line, stdin)) {\n\
            if (!value) value = (int (*)(int))dlsym(dlopen(argv[1], RTLD_NOW), \"value\");\n\
            printf(\"%d\\n\", value(10)); }\n return argc - 2; }\n";
    fs::write(path("program.c"), program).expect("it can be written");
    let gcc = |arguments: &[&str]| {
        let mut command = Command::new("gcc");
        let built = command.args(["-O2", "-g"]).args(arguments).current_dir(folder.path()).status();
        assert!(built.expect("gcc can be run").success(), "{arguments:?}");
    };
    gcc(&["-fPIC", "-shared", "-DFACTOR=3", "lib.c", "-o", "old.so"]);
    gcc(&["-fPIC", "-shared", "-DFACTOR=7", "lib.c", "-o", "new.so"]);
    gcc(&["program.c", "-o", "program", "-ldl"]);
    let patches = folder.path().join("patches");
    fs::create_dir(&patches).expect("a folder can be made");
    hp(["diff", &path("old.so"), &path("new.so"), "-o", &path("patches/fix.hpatch")]).exits(0);
    let watcher = Watcher::start(&patches, &["--poll", "100ms"]);
    let mut target = Target::start(Command::new(path("program")).arg(path("old.so")));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(target.ask(), "31");
    watcher.of(&target, "\"applied\"");
    assert_eq!(target.ask(), "71");
}

/// Programs that end while they are looked at: nothing is said of them, and none is left stopped.
fn a_storm_of_short_lives() {
    let pair = Pair::make();
    let folder = folder_with(&pair.patch);
    let watcher = Watcher::start(folder.path(), &["--poll", "20ms"]);
    for round in 0..40u32 {
        let mut short = Running::start(
            Command::new(&pair.old).arg((round * 997 % 30_000).to_string()).stdin(Stdio::null()).stdout(Stdio::null()),
        );
        assert!(until(Duration::from_secs(10), || short.child.try_wait().is_ok_and(|ended| ended.is_some())));
    }
    let last = pair.start();
    watcher.of(&last, "\"applied\"");
}

fn what_it_cannot_watch() {
    hp(["watch", "/nowhere"]).exits(2).says(&["/nowhere", "no such file"]);
    hp(["watch", "/etc/passwd"]).exits(2).says(&["/etc/passwd", "not a directory"]);
}

fn the_unit_is_sound() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../contrib/hp-watch.service");
    // The program need not be installed where this is checked.
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let copy = folder.path().join("hp-watch.service");
    let text = fs::read_to_string(unit).expect("the unit is there").replace("/usr/bin/hp", HP);
    fs::write(&copy, text).expect("it can be copied");
    let output = Command::new("systemd-analyze").arg("verify").arg(&copy).output().expect("it can be run");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A control group, if the machine lets us make one; it goes with this value.
struct Group(PathBuf);

impl Group {
    fn make(name: &str) -> Result<Group, String> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"];
        let mount = mounts.into_iter().find(|mount| Path::new(mount).join("cgroup.procs").is_file());
        let Some(mount) = mount else { return Err("no control groups here".to_owned()) };
        let folder = Path::new(mount).join(format!("hp-test-{name}-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("no control group can be made: {error}"))?;
        Ok(Group(folder))
    }

    fn take(&self, target: &Target) {
        fs::write(self.0.join("cgroup.procs"), target.pid().to_string()).expect("a process can be moved");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended, but the kernel may take a moment to say so.
        let _ = until(Duration::from_secs(3), || fs::remove_dir(&self.0).is_ok());
    }
}

fn a_control_group() {
    let group = Group::make("outer").expect("it could be made before");
    let inner = Group(group.0.join("inner"));
    fs::create_dir(&inner.0).expect("one below it too");
    let (pair, other) = (Pair::make(), Pair::make());
    let (mut outside, mut first, mut second, mut another) = (pair.start(), pair.start(), pair.start(), other.start());
    group.take(&first);
    inner.take(&second);
    group.take(&another);
    let [patch, path] = [&pair.patch, &group.0].map(|path| path.display().to_string());
    hp(["apply", &patch, "--cgroup", &path]).exits(0);
    assert_eq!([outside.ask(), first.ask(), second.ask(), another.ask()], [OLD, NEW, NEW, OLD]);
    // By the name that /proc/PID/cgroup gives it.
    let name = format!("/{}", inner.0.strip_prefix(group.0.parent().unwrap()).unwrap().display());
    if group.0.starts_with("/sys/fs/cgroup/pids") {
        assert!(fs::read_to_string("/proc/self/cgroup").unwrap().contains("pids"));
    } else {
        hp(["revert", &patch, "--cgroup", &name]).exits(0);
        assert_eq!([first.ask(), second.ask()], [NEW, OLD]);
    }
    hp(["revert", "--everything", "--cgroup", &path]).exits(0);
    assert_eq!([first.ask(), second.ask()], [OLD, OLD]);
    hp(["apply", &patch, "--pid", &outside.pid().to_string()]).exits(0);
    hp(["revert", &patch, "--cgroup", &path]).exits(3);
    assert_eq!(outside.ask(), NEW);
    drop((first, second, another));
}

fn what_is_no_control_group() {
    let pair = Pair::make();
    let patch = pair.patch.display().to_string();
    hp(["apply", &patch, "--cgroup", "/tmp"]).exits(2).says(&["/tmp", "no control group"]);
}
