//! Kinds of targets: how they are linked, and what surrounds them.

mod common;
use common::*;
use hp_apply::{apply_patch, revert, status, targets_of};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const SERVER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
int counter = 3;
__attribute__((noinline,noclone)) int helper(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); counter++; return x * 2; }
__attribute__((noinline,noclone)) int answer(int x) {
    __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0");
    char text[50];
    snprintf(text, sizeof text, "%d", x);
    return helper(x) + atoi(text) * 0 + 1;
}
int main(void) {
    char line[100];
    setvbuf(stdout, 0, _IONBF, 0);
    setvbuf(stdin, 0, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) printf("%d\n", answer(atoi(line)));
    return 0;
}
"#;

/// Uses a function of the C library, one of the base, a variable of the base, and data of its own.
const NEW: &str = r#"
#include <stdio.h>
extern int counter;
int helper(int);
static int calls = 1000;
int answer(int x) {
    char text[50];
    snprintf(text, sizeof text, "%d", x * 10);
    int number = 0;
    for (const char *digit = text; *digit; digit++) number = number * 10 + *digit - '0';
    return number + helper(0) + (counter > 0) + calls;
}
"#;

/// In and out, several times; everything is as it was.
fn cycles(target: &mut Process, patch: &hp_pack::Patch) {
    let before = target.maps();
    assert_eq!(target.ask("5"), "11");
    for _ in 0..3 {
        applied(apply_patch(target.pid(), patch, ID, &options()));
        assert_eq!(target.ask("5"), "1051");
        assert_eq!(status(target.pid()).unwrap()[0].damage, Vec::<String>::new());
        let measured = reverted(revert(target.pid(), Some(ID), &options()));
        assert_eq!(measured.kept, Vec::<String>::new());
        assert_eq!(target.ask("5"), "11");
    }
    assert_eq!(target.maps(), before);
    target.assert_free();
}

fn linked(compiler: &str, flags: &[&str], kind: &str) {
    let program = Program::build_with(compiler, SERVER, flags);
    let headers = run_tool("readelf", &["-lhW", program.exe.to_str().unwrap()]);
    assert!(headers.contains(kind), "{headers}");
    assert_eq!(headers.contains("INTERP"), !flags.iter().any(|flag| flag.starts_with("-static")), "{headers}");
    let patch_flags = if kind.contains("EXEC") { ["-fno-pie"] } else { ["-fPIE"] };
    let patch = program.patch_with(NEW, &["answer"], &patch_flags);
    let mut target = program.spawn(&[]);
    assert!(targets_of(&program.build_id()).unwrap().contains(&target.pid()));
    cycles(&mut target, &patch);
}

#[test]
fn static_programs() {
    linked("gcc", &["-static"], "EXEC (Executable file)");
    linked("gcc", &["-static-pie", "-fPIE"], "DYN (Position-Independent Executable file)");
}

#[test]
fn programs_with_musl() {
    linked("musl-gcc", &["-pie", "-fPIE"], "DYN (Position-Independent Executable file)");
    linked("musl-gcc", &["-no-pie", "-fno-pie"], "EXEC (Executable file)");
    linked("musl-gcc", &["-static", "-no-pie", "-fno-pie"], "EXEC (Executable file)");
}

#[test]
fn a_static_program_lacks_what_it_did_not_link() {
    let program = Program::build(SERVER, &["-static"]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let patch = program.patch("int sethostid(long); int answer(int x) { return sethostid(x); }", &["answer"]);
    let text = refused(apply_patch(target.pid(), &patch, ID, &options()));
    assert!(text.contains("sethostid: the program is static"), "{text}");
    assert_eq!((target.ask("5").as_str(), target.maps()), ("11", before));
}

#[test]
fn the_file_is_deleted_or_replaced() {
    for replaced in [false, true] {
        let program = Program::build(SERVER, &[]);
        let patch = program.patch(NEW, &["answer"]);
        let mut target = program.spawn(&[]);
        std::fs::remove_file(&program.exe).unwrap();
        if replaced {
            std::fs::copy("/bin/true", &program.exe).unwrap();
        }
        assert!(targets_of(&program.build_id()).unwrap().contains(&target.pid()));
        cycles(&mut target, &patch);
    }
}

/// A command in a new mount namespace, as root by right or in a user namespace of its own.
fn unshared() -> Command {
    let mut command = Command::new("unshare");
    command.arg("--mount");
    if run_tool("id", &["-u"]).trim() != "0" {
        command.args(["--user", "--map-root-user"]);
    }
    command
}

#[test]
fn another_root_and_another_mount_namespace() {
    let program = Program::build(SERVER, &["-static"]);
    let patch = program.patch_with(NEW, &["answer"], &["-fno-pie"]);
    let mut command = unshared();
    command.arg("chroot").arg(program.dir.path()).arg("/target");
    cycles(&mut Process::spawn(&mut command), &patch);

    // The program and its libraries lie where nobody else can see them.
    let program = Program::build(SERVER, &[]);
    let patch = program.patch(NEW, &["answer"]);
    let mut command = unshared();
    let script = "mount -t tmpfs none /mnt && cp \"$0\" /mnt/hidden && exec /mnt/hidden";
    command.args(["sh", "-c", script]).arg(&program.exe);
    let mut target = Process::spawn(&mut command);
    assert!(!Path::new("/mnt/hidden").exists());
    cycles(&mut target, &patch);
}

#[test]
fn no_new_privileges() {
    let program = Program::build(SERVER, &[]);
    let patch = program.patch(NEW, &["answer"]);
    let mut command = Command::new("setpriv");
    command.arg("--no-new-privs").arg(&program.exe);
    let mut target = Process::spawn(&mut command);
    let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"));
    cycles(&mut target, &patch);
}

#[test]
fn another_user() {
    let program = Program::build(SERVER, &[]);
    if run_tool("id", &["-u"]).trim() != "0" {
        // Only root can patch what belongs to others; that it is refused to all others is a test of `hp`.
        return;
    }
    run_tool("chmod", &["755", program.dir.path().to_str().unwrap()]);
    let patch = program.patch(NEW, &["answer"]);
    let mut command = Command::new(&program.exe);
    command.uid(65534).gid(65534);
    cycles(&mut Process::spawn(&mut command), &patch);
}
