//! Hosts and programs of an unusual kind: an old kernel, a full disk, a preloaded library, thousands of functions.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::hp::{Answer, HP, apply, diff, hp, revert, run, status};
use support::process::Running;
use support::target::{NEW, OLD, Pair};

/// The small applier, as `build/main.rs` has built it.
const APPLIER: &str = env!("HP_APPLIER");

/// Numbers of system calls from here on are younger than Linux 4.4 (`asm/unistd_64.h`: mlock2 is 325 and came with 4.4).
const YOUNGER: u32 = 326;
/// Requests of ptrace from here on are (`linux/ptrace.h`: 0x420c came with 4.4).
const YOUNGER_REQUEST: u32 = 0x420d;

/// Makes a command run as on Linux 4.4: what that does not have gives the error that it gives.
fn as_on_an_old_kernel(command: &mut Command) -> &mut Command {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let fails = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // struct seccomp_data: the number at 0, the first argument at 16.
    let filter = [
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, 5, 0, YOUNGER),
        step(EQUAL, 0, 2, libc::SYS_ptrace as u32),
        step(LOAD, 0, 0, 16),
        step(AT_LEAST, 1, 0, YOUNGER_REQUEST),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, fails(libc::EIO)),
        step(RETURN, 0, 0, fails(libc::ENOSYS)),
    ];
    // SAFETY: between fork and exec only prctl is called, which is safe there (signal-safety(7)); the filter is moved along.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            let done = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        })
    }
}

#[test]
fn on_a_kernel_that_is_as_old_as_is_allowed() {
    let pair = Pair::make();
    let patch = pair.patch.display().to_string();
    for program in [APPLIER, HP] {
        let mut target = pair.start();
        let pid = target.pid().to_string();
        let old = |words: &[&str]| run(as_on_an_old_kernel(Command::new(program).args(words)));
        old(&["apply", &patch, "--pid", &pid, "--dry-run"]).exits(0);
        old(&["apply", &patch, "--pid", &pid]).exits(0);
        assert_eq!(target.ask(), NEW, "{program}");
        assert!(old(&["status", "--pid", &pid]).exits(0).out.contains("in effect"), "{program}");
        old(&["revert", &patch, "--pid", &pid]).exits(0);
        assert_eq!(target.ask(), OLD, "{program}");
        assert_eq!(status(target.pid()).code, 3, "{program}: nothing is left");
    }
    // The filter does what it is said to do.
    let refused = run(as_on_an_old_kernel(Command::new("python3").args(["-c", "import os; os.pidfd_open(1)"])));
    assert!(refused.err.contains("Errno 38"), "{refused}");
}

/// The patch is written whole or not at all, and nothing is left beside it.
///
/// The disk is a small file system of this test's own. Who may not mount one as himself may in a user namespace.
#[test]
fn a_full_disk() {
    let pair = Pair::make();
    let new = pair.folder.path().join("new");
    let full = pair.folder.path().join("full");
    fs::create_dir(&full).expect("a folder");
    let in_it = |namespaces: &str, first: &str| {
        let script = format!(
            r#"mount -t tmpfs -o size=8k none "$1" || exit 77
{first}"$2" diff "$3" "$4" -o "$1/fix.hpatch"; code=$?
ls -A "$1"
exit $code"#
        );
        let mut command = Command::new("unshare");
        run(command.args([namespaces, "sh", "-c", &script, "sh"]).arg(&full).arg(HP).arg(&pair.old).arg(&new))
    };
    // Smaller than any patch: the file cannot even begin.
    let fill = "head -c 8192 /dev/zero > \"$1/other\"\n";
    let answers = ["-m", "-rm"].map(|namespaces| (namespaces, in_it(namespaces, fill)));
    // What `unshare` itself fails with is 1, and it prints no file.
    let mounted = |answer: &Answer| answer.code != 77 && !answer.err.contains("unshare:");
    let Some((namespaces, answer)) = answers.iter().find(|(_, answer)| mounted(answer)) else {
        panic!("no file system can be mounted, neither by this user nor in a user namespace: {}", answers[1].1);
    };
    assert_eq!((answer.code, answer.out.as_str()), (2, "other\n"), "{answer}");
    assert!(answer.err.to_lowercase().contains("no space left"), "{answer}");
    let answer = in_it(namespaces, "").exits(0);
    assert_eq!(answer.out, "fix.hpatch\n");
    // Nor does half a key stay, which nothing would overwrite.
    let script = r#"mount -t tmpfs -o size=8k none "$1" && head -c 8192 /dev/zero > "$1/other"
"$2" keygen "$1/key" --no-password; code=$?
ls -A "$1"
exit $code"#;
    let mut command = Command::new("unshare");
    let answer = run(command.args([*namespaces, "sh", "-c", script, "sh"]).arg(&full).arg(HP)).exits(2);
    assert!(answer.out == "other\n" && answer.err.contains("no space left"), "{answer}");
}

/// Two builds of one source, with `NEW` in the second, and the patch between them.
struct Own {
    folder: tempfile::TempDir,
    patch: PathBuf,
}

impl Own {
    fn make(source: &str) -> Own {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("program.c"), source).expect("the source");
        for (name, define) in [("old", "-DOLD"), ("new", "-DNEW")] {
            compile(folder.path(), &["-O1", "-falign-functions=16", "-g", define, "program.c", "-o", name]);
        }
        let patch = folder.path().join("fix.hpatch");
        diff(&folder.path().join("old"), &folder.path().join("new"), &patch).exits(0);
        Own { folder, patch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn compile(folder: &Path, arguments: &[&str]) {
    let status = Command::new("gcc").args(arguments).current_dir(folder).status();
    assert!(status.expect("gcc can be run").success(), "{arguments:?}");
}

/// A program that answers a line with a line.
struct Asked {
    process: Running,
    answers: BufReader<std::process::ChildStdout>,
}

impl Asked {
    fn start(command: &mut Command) -> Asked {
        let mut process = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let answers = BufReader::new(process.child.stdout.take().expect("a pipe"));
        Asked { process, answers }
    }

    fn ask(&mut self, question: &str) -> String {
        let input = self.process.child.stdin.as_mut().expect("a pipe");
        writeln!(input, "{question}").expect("the target reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }
}

/// New code calls what the process itself would call: the preloaded definition where there is one.
#[test]
fn a_preloaded_library_comes_first() {
    let own = Own::make(
        r#"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((noinline)) int answer(int x) {
#ifdef NEW
    return x + getpagesize() + getdtablesize() * 0;
#else
    return x + atoi("5");
#endif
}
int main(void) {
    char line[100];
    while (fgets(line, sizeof line, stdin)) { printf("%d\n", answer(1)); fflush(stdout); }
    return 0;
}
"#,
    );
    fs::write(own.path("before.c"), "int getpagesize(void) { return 70; }\nint getdtablesize(void) { return 1; }\n")
        .expect("the source");
    compile(own.folder.path(), &["-O1", "-shared", "-fPIC", "before.c", "-o", "before.so"]);
    let mut plain = Asked::start(&mut Command::new(own.path("old")));
    let mut preloaded = Asked::start(Command::new(own.path("old")).env("LD_PRELOAD", own.path("before.so")));
    assert_eq!([plain.ask("?"), preloaded.ask("?")], ["6", "6"]);
    for process in [&plain, &preloaded] {
        apply(&own.patch, process.process.pid()).exits(0);
    }
    let page = fs::read_to_string("/proc/self/smaps").expect("a map");
    assert!(page.contains("KernelPageSize:        4 kB"), "{page}");
    assert_eq!([plain.ask("?"), preloaded.ask("?")], ["4097", "71"]);
    for process in [&plain, &preloaded] {
        revert(&own.patch, process.process.pid()).exits(0);
    }
    assert_eq!([plain.ask("?"), preloaded.ask("?")], ["6", "6"]);
}

/// All of them switch, and all of them switch back.
#[test]
fn five_thousand_functions() {
    const COUNT: usize = 5000;
    let mut source =
        String::from("#include <stdio.h>\n#include <stdlib.h>\n#ifdef NEW\n#define V 2\n#else\n#define V 1\n#endif\n");
    for number in 0..COUNT {
        source += &format!("__attribute__((noipa)) long f{number}(long x) {{ return x * {number} + V; }}\n");
    }
    let list: String = (0..COUNT).map(|number| format!("f{number}, ")).collect();
    source += &format!(
        r#"static long (*const all[])(long) = {{ {list} }};
int main(void) {{
    char line[100];
    while (fgets(line, sizeof line, stdin)) {{
        int versions[3] = {{ 0 }};
        for (long i = 0; i < {COUNT}; i++) {{
            long version = all[i](3) - 3 * i;
            versions[version == 1 || version == 2 ? version : 0]++;
        }}
        printf("%d %d %d\n", versions[0], versions[1], versions[2]);
        fflush(stdout);
    }}
    return 0;
}}
"#
    );
    let own = Own::make(&source);
    let mut target = Asked::start(&mut Command::new(own.path("old")));
    let pid = target.process.pid();
    assert_eq!(target.ask("?"), "0 5000 0");
    for _ in 0..2 {
        let said = apply(&own.patch, pid).exits(0).out;
        assert!(said.contains("5000 functions"), "{said}");
        assert_eq!(target.ask("?"), "0 0 5000");
        assert!(!status(pid).exits(0).out.contains("damaged"));
        revert(&own.patch, pid).exits(0);
        assert_eq!(target.ask("?"), "0 5000 0");
    }
    hp(["status", "--pid", &pid.to_string()]).exits(3);
}
