//! What `hp` says of processes and patches that it cannot work with.
//!
//! Each case asserts three things: the exit code, one line on stderr that names the process and the reason, and
//! that the target's mappings and code are what they were.

mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::hp::{HP, apply, hp, on_all, revert, run, status};
use support::process::{Running, Snapshot, signal, status_field, until};
use support::target::{NEW, OLD, Pair};
use support::{lacks, trial};

fn main() {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("no_such_process", gcc(), no_such_process),
        trial("not_permitted", gcc(), not_permitted),
        trial("no_more_threads", gcc().or_else(|| lacks("prlimit")), no_more_threads),
        trial("traced_by_another_program", gcc(), traced_by_another_program),
        trial("traced_processes_can_be_looked_at", gcc(), traced_processes_can_be_looked_at),
        trial("traced_by_gdb", gcc().or_else(|| lacks("gdb")), traced_by_gdb),
        trial("another_build", gcc(), another_build),
        trial("zombie", gcc(), zombie),
        trial("process_of_32_bits", gcc().or_else(no_32_bits), process_of_32_bits),
        trial("process_ends_by_itself_meanwhile", gcc(), process_ends_by_itself_meanwhile),
        trial("process_is_killed_meanwhile", gcc(), process_is_killed_meanwhile),
        trial("patch_cut_off", gcc(), patch_cut_off),
        trial("patch_with_a_flipped_bit", gcc(), patch_with_a_flipped_bit),
        trial("patch_that_changes_while_it_is_read", gcc(), patch_that_changes_while_it_is_read),
        trial("relative_paths", gcc(), relative_paths),
        trial("patch_that_is_none", gcc(), patch_that_is_none),
        trial("no_patch_file", gcc(), no_patch_file),
        trial("no_target", gcc(), no_target),
        trial("applied_twice", gcc(), applied_twice),
        trial("reverted_without_being_applied", gcc(), reverted_without_being_applied),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit();
}

fn no_such_process() {
    let pair = Pair::make();
    let pid = {
        let ended = pair.start();
        ended.pid()
    };
    let name = pid.to_string();
    apply(&pair.patch, pid).exits(2).says(&[&name, "no such process"]);
    revert(&pair.patch, pid).exits(2).says(&[&name, "no such process"]);
    status(pid).exits(2).says(&[&name, "no such process"]);
}

/// The engine works on a thread of its own. Root has no limit for threads, so as another user.
fn no_more_threads() {
    const NOBODY: u32 = 65534;
    let pair = Pair::make();
    let mut target = pair.start();
    let pid = target.pid().to_string();
    let open = std::os::unix::fs::PermissionsExt::from_mode;
    fs::set_permissions(pair.folder.path(), open(0o755)).expect("our folder");
    let hp = pair.folder.path().join("hp");
    fs::copy(HP, &hp).expect("hp can be copied");
    let mut command = Command::new("prlimit");
    command.arg("--nproc=1").arg(&hp).arg("apply").arg(&pair.patch).args(["--pid", &pid]);
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.env("HOME", pair.folder.path()).env_remove("XDG_CONFIG_HOME");
    // One of this user's threads is `hp` itself.
    run(&mut command).exits(2).says(&[&pid, "cannot make a thread"]);
    assert_eq!(target.ask(), OLD);
}

/// As root: `hp` runs as a user without rights on a process of root's. As another user: on init.
fn not_permitted() {
    const NOBODY: u32 = 65534;
    let pair = Pair::make();
    let mut target = pair.start();
    // SAFETY: geteuid takes nothing and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let pid = if root { target.pid() } else { 1 };
    // The build's folder may be one that only its owner can enter.
    let program = pair.folder.path().join("hp");
    fs::copy(HP, &program).expect("hp can be copied");
    let before = Snapshot::of(target.pid());
    for verb in ["apply", "revert"] {
        let mut command = Command::new(&program);
        command.arg(verb).arg(&pair.patch).args(["--pid", &pid.to_string()]);
        if root {
            // And not with our configuration.
            command.uid(NOBODY).gid(NOBODY).env("HOME", pair.folder.path()).env_remove("XDG_CONFIG_HOME");
        }
        run(&mut command).exits(2).says(&[&pid.to_string(), "permi"]);
    }
    before.still_holds(target.pid());
    assert_eq!(target.ask(), OLD);
}

fn traced_by_another_program() {
    let pair = Pair::make();
    let mut target = pair.start();
    let pid = target.pid();
    let tracer = Tracer::of(pid);
    let before = Snapshot::of(pid);
    apply(&pair.patch, pid).exits(2).says(&[&pid.to_string(), "traced", &status_field(pid, "TracerPid")]);
    before.still_holds(pid);
    assert_eq!(target.ask(), OLD);
    drop(tracer);
    apply(&pair.patch, pid).exits(0);
    assert_eq!(target.ask(), NEW);
}

/// Traces a process until this is dropped.
struct Tracer {
    done: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Tracer {
    /// The tracer is a thread of this test: tracing belongs to a thread, not to a process.
    fn of(pid: u32) -> Tracer {
        let (done, until_done) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let (pid, none) = (pid.cast_signed(), std::ptr::null_mut::<libc::c_void>());
            // SAFETY: PTRACE_SEIZE does not stop the target and reads no memory of ours. The tracing ends with this thread.
            let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) };
            assert_eq!(seized, 0, "our own child can be traced");
            let _ = until_done.recv();
        });
        assert!(until(Duration::from_secs(5), || status_field(pid, "TracerPid") != "0"), "the tracer has attached");
        Tracer { done: Some(done), thread: Some(thread) }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        drop(self.done.take());
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Looking needs no tracing: `hp status` tells of a traced process, and one without the patch is passed over.
fn traced_processes_can_be_looked_at() {
    let pair = Pair::make();
    let (mut patched, mut other) = (pair.start(), pair.start());
    apply(&pair.patch, patched.pid()).exits(0);
    let id = hp(["inspect", "--json", &pair.patch.display().to_string()]).exits(0).out;
    let id = id.split("\"id\": \"").nth(1).and_then(|text| text.get(..16)).expect("an ID").to_owned();
    let tracer = Tracer::of(other.pid());
    status(other.pid()).exits(3);
    hp(["revert", &id, "--all"]).exits(0);
    assert_eq!([patched.ask(), other.ask()], [OLD, OLD]);

    apply(&pair.patch, patched.pid()).exits(0);
    let before = Snapshot::of(other.pid());
    let traced = Tracer::of(patched.pid());
    assert!(status(patched.pid()).exits(0).out.contains("in effect"));
    let who = status_field(patched.pid(), "TracerPid");
    for what in [id.as_str(), &pair.patch.display().to_string()] {
        hp(["revert", what, "--all"]).exits(2).says(&[&patched.pid().to_string(), "traced", &who]);
    }
    before.still_holds(other.pid());
    assert_eq!(patched.ask(), NEW);
    drop(traced);
    hp(["revert", &id, "--all"]).exits(0);
    assert_eq!(patched.ask(), OLD);
    drop(tracer);
}

fn traced_by_gdb() {
    let pair = Pair::make();
    let mut target = pair.start();
    let pid = target.pid();
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-nx", "-p", &pid.to_string()]).env("DEBUGINFOD_URLS", "");
    let gdb = Running::start(gdb.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()));
    let held = || status_field(pid, "TracerPid") == gdb.pid().to_string();
    assert!(until(Duration::from_secs(20), held), "gdb has attached");
    let stopped = || status_field(pid, "State").starts_with('t');
    assert!(until(Duration::from_secs(20), stopped), "gdb has stopped the target");
    let before = Snapshot::of(pid);
    apply(&pair.patch, pid).exits(2).says(&[&pid.to_string(), "traced", "gdb", &gdb.pid().to_string()]);
    before.still_holds(pid);
    drop(gdb);
    assert!(until(Duration::from_secs(5), || status_field(pid, "TracerPid") == "0"), "gdb has let go");
    assert_eq!(target.ask(), OLD);
}

fn another_build() {
    let (pair, other) = (Pair::make(), Pair::make());
    let mut target = pair.start();
    let before = Snapshot::of(target.pid());
    apply(&other.patch, target.pid()).exits(1).says(&[&target.pid().to_string(), "build"]);
    before.still_holds(target.pid());
    assert_eq!(target.ask(), OLD);
}

fn zombie() {
    let pair = Pair::make();
    let target = pair.start_for(0, 0);
    let pid = target.pid();
    assert!(until(Duration::from_secs(5), || status_field(pid, "State").starts_with('Z')), "the target has ended");
    apply(&pair.patch, pid).exits(2).says(&[&pid.to_string(), "ended"]);
}

/// Needs no C library, so a plain compiler can do it; the kernel must let it run.
fn build_32_bits(folder: &std::path::Path) -> Option<std::path::PathBuf> {
    let (source, program) = (folder.join("wait.c"), folder.join("wait32"));
    let text = "void _start(void) { for (;;) __asm__ volatile(\"int $0x80\" : : \"a\"(29) : \"memory\"); }\n";
    fs::write(&source, text).ok()?;
    let mut gcc = Command::new("gcc");
    gcc.args(["-m32", "-nostdlib", "-static", "-ffreestanding", "-fno-pie", "-no-pie", "-Wl,--build-id", "-o"]);
    let built = gcc.args([&program, &source]).stderr(Stdio::null()).status().ok()?.success();
    built.then_some(program)
}

fn no_32_bits() -> Option<String> {
    let folder = tempfile::tempdir().ok()?;
    let starts = build_32_bits(folder.path()).is_some_and(|program| {
        let process = Running::start(&mut Command::new(program));
        std::thread::sleep(Duration::from_millis(20));
        process.lives()
    });
    (!starts).then(|| "programs of 32 bits cannot be built or run here".to_string())
}

fn process_of_32_bits() {
    let pair = Pair::make();
    let program = build_32_bits(pair.folder.path()).expect("it was built before");
    let target = Running::start(&mut Command::new(program));
    let before = Snapshot::of(target.pid());
    apply(&pair.patch, target.pid()).exits(2).says(&[&target.pid().to_string(), "32-bit"]);
    before.still_holds(target.pid());
}

/// Either the patch was in before the process ended, or the message says that it ended; never a hang.
fn process_ends_by_itself_meanwhile() {
    let pair = Pair::make();
    let mut ended = 0;
    for round in 0..60 {
        let target = pair.start_for(round * 500, round % 4);
        let pid = target.pid();
        let answer = apply(&pair.patch, pid);
        if answer.code != 0 {
            answer.exits(2).says(&[&pid.to_string(), "ended"]);
            ended += 1;
        }
    }
    assert!(ended > 0, "no process ended in time to be noticed");
}

fn process_is_killed_meanwhile() {
    let pair = Pair::make();
    let mut ended = 0;
    for round in 0..60 {
        let target = pair.start_for(60_000_000, round % 4);
        let pid = target.pid();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(u64::from(round) * 400));
            signal(pid, libc::SIGKILL);
        });
        let answer = apply(&pair.patch, pid);
        killer.join().expect("the killer does not panic");
        if answer.code != 0 {
            answer.exits(2).says(&[&pid.to_string(), "ended"]);
            ended += 1;
        }
    }
    assert!(ended > 0, "no process ended in time to be noticed");
}

fn patch_cut_off() {
    let pair = Pair::make();
    let mut target = pair.start();
    let before = Snapshot::of(target.pid());
    let whole = fs::read(&pair.patch).expect("the patch can be read");
    let cut = pair.folder.path().join("cut.hpatch");
    for length in (0..whole.len()).step_by(whole.len() / 40 + 1).chain([whole.len() - 1]) {
        fs::write(&cut, &whole[..length]).expect("a file can be written");
        apply(&cut, target.pid()).exits(2).says(&["cut.hpatch"]);
    }
    before.still_holds(target.pid());
    assert_eq!(target.ask(), OLD);
}

fn patch_with_a_flipped_bit() {
    let pair = Pair::make();
    let mut target = pair.start();
    let before = Snapshot::of(target.pid());
    let mut bytes = fs::read(&pair.patch).expect("the patch can be read");
    let flipped = pair.folder.path().join("flipped.hpatch");
    // An odd step, so that every bit position and every field alignment has its turn.
    for at in (0..bytes.len()).step_by((bytes.len() / 80) | 1) {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        fs::write(&flipped, &bytes).expect("a file can be written");
        apply(&flipped, target.pid()).exits(2).says(&["flipped.hpatch"]);
        bytes[at] ^= bit;
    }
    before.still_holds(target.pid());
    assert_eq!(target.ask(), OLD);
}

/// Somebody writes the file anew, in place, again and again: it is one patch or the other, or it is damaged; never a mixture.
fn patch_that_changes_while_it_is_read() {
    let pair = Pair::make();
    let mut target = pair.start();
    let one = fs::read(&pair.patch).expect("the patch can be read");
    let second = pair.folder.path().join("second.hpatch");
    let [old, new, path] = [&pair.old, &pair.folder.path().join("new"), &second].map(|path| path.display().to_string());
    hp(["diff", &old, &new, "--name", "a longer name than the other one has", "-o", &path]).exits(0);
    let two = fs::read(&second).expect("the patch can be read");
    let file = pair.folder.path().join("changing.hpatch");
    fs::write(&file, &one).expect("a file can be written");
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut applied, mut damaged) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            use std::io::{Seek, Write};
            let mut output = fs::OpenOptions::new().write(true).open(&file).expect("it can be written");
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                for content in [&one, &two] {
                    output.set_len(0).and_then(|()| output.rewind()).expect("it can be written");
                    // Half of the time it is whole, and half of the time it is not.
                    for half in content.chunks(content.len().div_ceil(2)) {
                        for part in half.chunks(97) {
                            output.write_all(part).expect("it can be written");
                        }
                        std::thread::sleep(Duration::from_millis(3));
                    }
                }
            }
        });
        for _ in 0..60 {
            let answer = apply(&file, target.pid());
            let expected = match answer.code {
                0 => NEW,
                _ => {
                    damaged += 1;
                    answer.exits(2).says(&["changing.hpatch"]);
                    OLD
                }
            };
            assert_eq!(target.ask(), expected);
            if expected == NEW {
                applied += 1;
                hp(["revert", "--everything", "--pid", &target.pid().to_string()]).exits(0);
            }
            assert_eq!(target.ask(), OLD);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().expect("it writes");
    });
    assert!(applied > 0 && damaged > 0, "{applied} times whole, {damaged} times damaged");
}

/// Patches and programs are named from where the command is run.
fn relative_paths() {
    let pair = Pair::make();
    let mut target = pair.start();
    let folder = pair.folder.path();
    fs::create_dir(folder.join("deep")).expect("a folder can be made");
    std::os::unix::fs::symlink("../fix.hpatch", folder.join("deep/link.hpatch")).expect("a link can be made");
    let pid = target.pid().to_string();
    let here = |at: &str, words: &[&str]| run(Command::new(HP).args(words).current_dir(folder.join(at)));
    for (at, patch, exe) in
        [("", "fix.hpatch", "old"), ("deep", "../fix.hpatch", "../old"), ("deep", "link.hpatch", ".././old")]
    {
        here(at, &["apply", patch, "--pid", &pid]).exits(0);
        assert_eq!(target.ask(), NEW);
        here(at, &["revert", patch, "--exe", exe]).exits(0);
        assert_eq!(target.ask(), OLD);
        here(at, &["apply", patch, "--exe", exe]).exits(0);
        here(at, &["revert", patch, "--pid", &pid]).exits(0);
        assert_eq!(target.ask(), OLD);
    }
    here("deep", &["apply", "fix.hpatch", "--pid", &pid]).exits(2).says(&["fix.hpatch", "no such file"]);
    // No patch of a relative name is looked for in what belongs to the target.
    here("/", &["apply", "fix.hpatch", "--pid", &pid]).exits(2);
}

fn patch_that_is_none() {
    let pair = Pair::make();
    let target = pair.start();
    let before = Snapshot::of(target.pid());
    apply(&pair.old, target.pid()).exits(2).says(&["old", "patch"]);
    before.still_holds(target.pid());
}

fn no_patch_file() {
    let pair = Pair::make();
    let target = pair.start();
    let before = Snapshot::of(target.pid());
    apply(&pair.folder.path().join("absent.hpatch"), target.pid()).exits(2).says(&["absent.hpatch", "no such file"]);
    before.still_holds(target.pid());
}

fn no_target() {
    let pair = Pair::make();
    on_all("apply", &pair.patch).exits(3).says(&["no process"]);
    on_all("revert", &pair.patch).exits(3).says(&["no process"]);
}

fn applied_twice() {
    let pair = Pair::make();
    let mut target = pair.start();
    let name = target.pid().to_string();
    apply(&pair.patch, target.pid()).exits(0);
    let before = Snapshot::of(target.pid());
    apply(&pair.patch, target.pid()).exits(3).says(&[&name, "already"]);
    on_all("apply", &pair.patch).exits(3).says(&[&name, "already"]);
    before.still_holds(target.pid());
    assert_eq!(target.ask(), NEW);
}

fn reverted_without_being_applied() {
    let pair = Pair::make();
    let mut target = pair.start();
    let before = Snapshot::of(target.pid());
    revert(&pair.patch, target.pid()).exits(3).says(&[&target.pid().to_string()]);
    before.still_holds(target.pid());
    hp(["revert", "--everything", "--pid", &target.pid().to_string()]).exits(3);
    before.still_holds(target.pid());
    assert_eq!(target.ask(), OLD);
}
