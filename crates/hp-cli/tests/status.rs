//! What `hp status` says of memory that somebody changed, of the file on disk, and to a user without rights.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use support::hp::{HP, apply, hp, revert, run, status};
use support::process::Running;
use support::target::{NEW, OLD, Pair, Target};
use support::{lacks, trial};

fn main() -> ExitCode {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("a_strangers_bytes_show", gcc(), a_strangers_bytes_show),
        trial("the_file_on_disk", gcc(), the_file_on_disk),
        trial("the_file_on_disk_of_another_root", gcc().or_else(not_root), the_file_on_disk_of_another_root),
        trial("a_user_without_rights", gcc().or_else(not_root), a_user_without_rights),
        trial("no_file_of_ours_is_left", gcc(), no_file_of_ours_is_left),
        trial("a_rehearsal_says_all", gcc(), a_rehearsal_says_all),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

const NOBODY: u32 = 65534;

fn not_root() -> Option<String> {
    // SAFETY: geteuid takes nothing and cannot fail.
    (unsafe { libc::geteuid() } != 0).then(|| "only root can be another user".to_owned())
}

fn number_after(text: &str, key: &str) -> u64 {
    let digits = text.split(key).nth(1).unwrap_or_else(|| panic!("{key} in {text}"));
    digits.trim_start().chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number")
}

/// One byte changed in the new code, in the rest of the old function, at the entry: each is told.
fn a_strangers_bytes_show() {
    let pair = Pair::make();
    let mut target = pair.start();
    let pid = target.pid();
    apply(&pair.patch, pid).exits(0);
    let json = hp(["status", "--json", "--pid", &pid.to_string()]).exits(0).out;
    assert!(json.contains("\"damage\": []"), "{json}");
    let (old, new) = (number_after(&json, "\"old_address\":"), number_after(&json, "\"new_address\":"));
    let memory = fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("our child's");
    // Nothing runs meanwhile: the target waits for a line.
    for (at, words) in [(new + 1, "the patch's code"), (old + 8, "old code of answer"), (old, "entry of answer")] {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, at).expect("it is mapped");
        memory.write_all_at(&[byte[0] ^ 1], at).expect("a tracer may write");
        let said = status(pid).exits(0).out;
        assert!(said.contains("damaged") && said.contains(words), "{words}: {said}");
        memory.write_all_at(&byte, at).expect("a tracer may write");
        assert!(!status(pid).exits(0).out.contains("damaged"), "{words}");
    }
    assert_eq!(target.ask(), NEW);
}

fn the_file_on_disk() {
    let pair = Pair::make();
    let mut target = pair.start();
    let pid = target.pid();
    apply(&pair.patch, pid).exits(0);
    let said = status(pid).exits(0).out;
    assert!(said.contains("a restart would lose the fix"), "{said}");
    // As a package manager does it: another file takes its name.
    let staged = pair.folder.path().join("staged");
    fs::copy(pair.folder.path().join("new"), &staged).expect("it can be copied");
    fs::rename(&staged, &pair.old).expect("it can be renamed");
    let said = status(pid).exits(0).out;
    assert!(said.contains("another build") && !said.contains("lose the fix"), "{said}");
    fs::remove_file(&pair.old).expect("it can be removed");
    assert!(status(pid).exits(0).out.contains("the file is gone"));
    let json = hp(["status", "--json", "--pid", &pid.to_string()]).exits(0).out;
    assert!(json.contains("\"on_disk\": \"gone\""), "{json}");
    revert(&pair.patch, pid).exits(0);
    assert_eq!(target.ask(), OLD);
}

/// A program with one path inside of its root and another one outside, alone and in mounts of its own; and one that has gone
/// into an empty root since it was started. What lies on disk is told by what the process would find.
fn the_file_on_disk_of_another_root() {
    let pair = Pair::make();
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let inside = root.path().join("app/bin/server");
    fs::create_dir_all(inside.parent().expect("it has one")).expect("it can be made");
    let copy_all = "cp --parents $(ldd \"$1\" | grep -o '/[^ ]*') \"$2\"";
    run(Command::new("sh").args(["-c", copy_all, "sh"]).arg(&pair.old).arg(root.path())).exits(0);
    let chroot = |command: &mut Command| {
        command.arg("chroot").arg(root.path()).arg("/app/bin/server");
        Target::start(command)
    };
    for with_mounts in [false, true] {
        fs::copy(&pair.old, &inside).expect("it can be copied");
        let mut command = Command::new("env");
        if with_mounts {
            command = Command::new("unshare");
            command.arg("--mount");
        }
        let mut target = chroot(&mut command);
        let [pid, patch] = [target.pid().to_string(), pair.patch.display().to_string()];
        if with_mounts {
            hp(["apply", &patch, "--pid", &pid]).exits(0);
        } else {
            // By its path outside.
            hp(["apply", &patch, "--exe", &inside.display().to_string()]).exits(0);
        }
        assert_eq!(target.ask(), NEW);
        let said = status(target.pid()).exits(0).out;
        assert!(said.contains("a restart would lose the fix"), "{with_mounts}: {said}");
        fs::remove_file(&inside).expect("it can be removed");
        assert!(status(target.pid()).exits(0).out.contains("the file is gone"));
        fs::copy(pair.folder.path().join("new"), &inside).expect("it can be copied");
        let said = status(target.pid()).exits(0).out;
        assert!(said.contains("another build"), "{with_mounts}: {said}");
        revert(&pair.patch, target.pid()).exits(0);
        assert_eq!(target.ask(), OLD);
        fs::remove_file(&inside).expect("it can be removed");
    }
}

/// Sees the processes of its own, patched by root, and is told of others that it may not look at them.
fn a_user_without_rights() {
    let pair = Pair::make();
    let others = pair.start();
    let mut command = Command::new(&pair.old);
    command.arg("20000000").uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).stdout(Stdio::null());
    let own = Running::start(&mut command);
    for pid in [own.pid(), others.pid()] {
        apply(&pair.patch, pid).exits(0);
    }
    let program = pair.folder.path().join("hp");
    fs::copy(HP, &program).expect("hp can be copied");
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        run(command.args(arguments).uid(NOBODY).gid(NOBODY).env("HOME", pair.folder.path()))
    };
    let said = as_nobody(&["status"]).exits(0).out;
    assert!(said.contains(&format!("[{}]", own.pid())) && said.contains("in effect"), "{said}");
    assert!(said.contains("by user 0") && !said.contains(&format!("[{}]", others.pid())), "{said}");
    let refusal = as_nobody(&["status", "--pid", &others.pid().to_string()]).exits(2);
    refusal.says(&["not permitted", &others.pid().to_string(), "belongs to uid 0", "CAP_SYS_PTRACE"]);
}

fn no_file_of_ours_is_left() {
    let pair = Pair::make();
    let target = pair.start();
    let empty = tempfile::tempdir().expect("a temporary folder can be made");
    let [pid, patch] = [target.pid().to_string(), pair.patch.display().to_string()];
    let before = names(pair.folder.path());
    for arguments in [
        &["apply", &patch, "--dry-run", "--pid", &pid][..],
        &["apply", &patch, "--pid", &pid],
        &["apply", "/nowhere", "--pid", &pid],
        &["status"],
        &["revert", &patch, "--pid", &pid],
    ] {
        let mut command = Command::new(HP);
        run(command.args(arguments).current_dir(&empty).env("HOME", empty.path()).env("TMPDIR", empty.path()));
    }
    assert_eq!(names(empty.path()), Vec::<String>::new());
    assert_eq!(names(pair.folder.path()), before);
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("it can be listed");
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn a_rehearsal_says_all() {
    let pair = Pair::make();
    let mut target = pair.start();
    let [pid, patch] = [target.pid().to_string(), pair.patch.display().to_string()];
    let said = hp(["apply", &patch, "--dry-run", "--pid", &pid]).exits(0).out;
    for words in ["map ", "redirect answer", "relocations", "imports", "threads", "safe point exists now", "took"] {
        assert!(said.contains(words), "“{words}” in {said}");
    }
    assert_eq!(target.ask(), OLD);
}
