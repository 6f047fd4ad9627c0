//! The command line where no process is needed: usage, inputs that are none, how files are written, what is printed.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// What a run of `hp` gave.
#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Answer {
    #[track_caller]
    fn exits(self, code: i32) -> Answer {
        assert_eq!(self.code, Some(code), "{}", self.err);
        self
    }

    /// One line on stderr with all of these words.
    #[track_caller]
    fn says(self, words: &[&str]) -> Answer {
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        self.mentions(words)
    }

    #[track_caller]
    fn mentions(self, words: &[&str]) -> Answer {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in: {}", self.err);
        }
        self
    }

    fn text(&self) -> String {
        String::from_utf8(self.out.clone()).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap()
    }
}

fn hp(args: &[&str]) -> Answer {
    run(Command::new(env!("CARGO_BIN_EXE_hp")).args(args))
}

fn run(command: &mut Command) -> Answer {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Answer { code: output.status.code(), out: output.stdout, err: String::from_utf8(output.stderr).unwrap() }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Two builds, and the same without debug information.
struct Builds {
    folder: PathBuf,
}

impl Builds {
    fn get() -> &'static Builds {
        static BUILDS: OnceLock<Builds> = OnceLock::new();
        BUILDS.get_or_init(|| {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).unwrap();
            let source = "#include <stdio.h>\n__attribute__((noinline)) int answer(int n) {\n\
                          int sum = 0; for (int i = 1; i <= n; i++) sum += i * FACTOR; return sum; }\n\
                          int main(int argc, char **argv) { printf(\"%d\\n\", answer(argc + 9)); return 0; }\n";
            fs::write(folder.join("answer.c"), source).unwrap();
            for (name, factor, debug) in
                [("old", 3, "-g"), ("new", 5, "-g"), ("plain-old", 3, "-g0"), ("plain-new", 5, "-g0")]
            {
                let define = format!("-DFACTOR={factor}");
                let args = ["-O2", "-Wl,--build-id", debug, define.as_str(), "-o", name, "answer.c"];
                let status = Command::new("gcc").args(args).current_dir(&folder).status();
                assert!(status.unwrap().success());
            }
            Builds { folder }
        })
    }

    fn file(&self, name: &str) -> String {
        path(&self.folder.join(name)).to_owned()
    }
}

/// The builds, their patch, and a folder to write to.
fn patch() -> (String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = path(&folder.path().join("fix.hpatch")).to_owned();
    let b = Builds::get();
    hp(&["diff", &b.file("old"), &b.file("new"), "-o", &file]).exits(0);
    (file, folder)
}

#[test]
fn usage_errors_exit_with_2() {
    let cases: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["diff", "old"],
        &["diff", "old", "new", "--allow", "HP9999"],
        &["diff", "old", "new", "--allow", "HP0402="],
        &["diff", "old", "new", "--allow", "HP0301"],
        &["diff", "old", "new", "--name", ""],
        &["inspect"],
        &["apply", "fix.hpatch"],
        &["apply", "--all"],
        &["apply", "fix.hpatch", "--all", "--pid", "1"],
        &["apply", "fix.hpatch", "--pid", "0"],
        &["apply", "fix.hpatch", "--pid", "-1"],
        &["apply", "fix.hpatch", "--pid", "x"],
        &["apply", "fix.hpatch", "--all", "--timeout", "10"],
        &["apply", "fix.hpatch", "--all", "--max-pause", "fast"],
        &["revert", "--all"],
        &["revert", "--everything"],
        &["revert", "abcd", "--everything", "--all"],
    ];
    for case in cases {
        let answer = hp(case);
        assert_eq!(answer.code, Some(2), "{case:?}");
        assert!(answer.out.is_empty() && !answer.err.is_empty(), "{case:?}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    assert!(hp(&["--version"]).exits(0).text().starts_with("hp "));
    for verb in ["diff", "inspect", "apply", "status", "revert", "explain", "demo"] {
        assert!(hp(&[verb, "--help"]).exits(0).text().contains("Usage"), "{verb}");
    }
}

/// Each is named, whether it is given as the old or as the new build.
#[test]
fn inputs_that_are_no_builds() {
    let b = Builds::get();
    let folder = tempfile::tempdir().unwrap();
    let elf = fs::read(b.file("old")).unwrap();
    let mut arm = elf.clone();
    arm[18..20].copy_from_slice(&183u16.to_le_bytes());
    let mut narrow = elf.clone();
    narrow[4] = 1;
    let cases: &[(&str, &[u8])] = &[
        ("empty", b""),
        ("text", b"#!/bin/sh\necho hello\n"),
        ("half-a-header", &elf[..40]),
        ("no-section-headers", &elf[..elf.len() / 2]),
        ("last-byte-missing", &elf[..elf.len() - 1]),
        ("aarch64", &arm),
        ("elf32", &narrow),
    ];
    for (name, bytes) in cases {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        let output = folder.path().join("fix.hpatch");
        for (old, new) in [(path(&file), b.file("new").as_str()), (b.file("old").as_str(), path(&file))] {
            hp(&["diff", old, new, "-o", path(&output)]).exits(2).says(&[path(&file)]);
        }
        assert!(!output.exists(), "{name}");
    }
    let absent = folder.path().join("absent");
    hp(&["diff", path(&absent), &b.file("new"), "-o", "x"]).exits(2).says(&[path(&absent)]);
    hp(&["diff", path(folder.path()), &b.file("new"), "-o", "x"]).exits(2).says(&[path(folder.path())]);
}

#[test]
fn another_architecture_is_named() {
    let b = Builds::get();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("arm");
    let mut elf = fs::read(b.file("old")).unwrap();
    elf[18..20].copy_from_slice(&183u16.to_le_bytes());
    fs::write(&file, elf).unwrap();
    hp(&["diff", path(&file), path(&file), "-o", "x"]).exits(2).says(&["x86-64"]);
}

#[test]
fn files_that_are_no_patches() {
    let (file, folder) = patch();
    let bytes = fs::read(&file).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    let longer = [&bytes[..], b"\0"].concat();
    let cases: &[(&str, &[u8], &str)] = &[
        ("empty", b"", "not a patch"),
        ("text", b"hello", "not a patch"),
        ("cut", &bytes[..bytes.len() - 1], "damaged patch"),
        ("start", &bytes[..100], "not a patch"),
        ("flipped", &flipped, "damaged patch"),
        ("longer", &longer, "damaged patch"),
        ("program", &fs::read(Builds::get().file("old")).unwrap(), "not a patch"),
    ];
    let me = std::process::id().to_string();
    for (name, bytes, reason) in cases {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        hp(&["inspect", path(&file)]).exits(2).says(&[path(&file), reason]);
        hp(&["apply", path(&file), "--pid", &me]).exits(2).says(&[path(&file), reason]);
        hp(&["revert", path(&file), "--pid", &me]).exits(2).says(&[path(&file), reason]);
        let json = hp(&["inspect", "--json", path(&file)]).exits(2).json();
        assert_eq!(json["exit"], 2);
        assert!(json["error"].as_str().unwrap().contains(reason));
    }
    hp(&["inspect", "absent.hpatch"]).exits(2).says(&["absent.hpatch: no such file or directory"]);
    hp(&["inspect", path(folder.path())]).exits(2).says(&["is a directory"]);
}

/// What is no build is said in one line, and at once: to open a pipe nobody writes to would wait for ever.
#[test]
fn inputs_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let new = Builds::get().file("new");
    hp(&["diff", path(&pipe), &new]).exits(2).says(&["pipe: is no regular file"]);
    hp(&["diff", &new, "/dev/zero"]).exits(2).says(&["/dev/zero: is no regular file"]);
    let absent = hp(&["diff", "absent", &new]).exits(2).says(&["cannot read absent: no such file or directory"]);
    assert_eq!(absent.err.matches("no such file").count(), 1);
}

/// A pipe is read to its end, but not waited for.
#[test]
fn patches_from_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    hp(&["inspect", path(&pipe)]).exits(2).says(&["it is a pipe, and nobody has written into it"]);
    hp(&["apply", path(&pipe), "--all"]).exits(2).says(&["it is a pipe, and nobody has written into it"]);
    let (file, _folder) = patch();
    let script = r#"(sleep 0.3; cat "$1") | "$0" inspect /dev/stdin"#;
    let read = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_hp"), &file]).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
}

/// One bad patch among several: nothing is applied, the good ones neither.
#[test]
fn all_patches_are_read_before_the_first_is_applied() {
    let (file, _folder) = patch();
    let me = std::process::id().to_string();
    hp(&["apply", &file, "absent.hpatch", "--pid", &me]).exits(2).says(&["absent.hpatch"]);
}

#[test]
fn a_patch_goes_to_stdout_or_to_a_file_and_is_the_same() {
    use std::os::unix::fs::PermissionsExt;
    let (file, folder) = patch();
    let b = Builds::get();
    let answer = hp(&["diff", &b.file("old"), &b.file("new")]).exits(0);
    assert_eq!(answer.out, fs::read(&file).unwrap());
    answer.mentions(&["old: 1 changed, 0 added, 0 removed", "answer"]);
    // Nothing is left beside it, and others may read it as the umask says.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode(Path::new(&file)), mode(&plain));
}

#[test]
fn a_refusal_writes_nothing() {
    let b = Builds::get();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("fix.hpatch");
    fs::write(&output, "precious").unwrap();
    let (old, new) = (b.file("plain-old"), b.file("plain-new"));
    hp(&["diff", &old, &new, "-o", path(&output)]).exits(1).mentions(&["HP0402", "refused", "hp explain HP0402"]);
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(hp(&["diff", &old, &new]).exits(1).out.is_empty());
    let json = hp(&["diff", &old, &new, "--json", "-o", path(&output)]).exits(1).json();
    assert_eq!((&json["exit"], &json["patch"]), (&1.into(), &serde_json::Value::Null));
    // Accepted, it is made, and the patch says so.
    hp(&["diff", &old, &new, "-o", path(&output), "--allow", "HP0402"]).exits(0).mentions(&["accepted HP0402"]);
    assert!(hp(&["inspect", path(&output)]).exits(0).text().contains("accepted HP0402"));
}

#[test]
fn equal_builds_are_nothing_to_do() {
    let b = Builds::get();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("fix.hpatch");
    hp(&["diff", &b.file("old"), &b.file("old"), "-o", path(&output)]).exits(3).mentions(&["nothing to do"]);
    assert!(!output.exists());
    assert!(hp(&["diff", &b.file("old"), &b.file("old")]).exits(3).out.is_empty());
}

#[test]
fn outputs_that_cannot_be_written() {
    let b = Builds::get();
    let (old, new) = (b.file("old"), b.file("new"));
    hp(&["diff", &old, &new, "-o", "/nowhere/fix.hpatch"]).exits(2).mentions(&["cannot write /nowhere/fix.hpatch"]);
    hp(&["diff", &old, &new, "-o", "/"]).exits(2).mentions(&["cannot write /"]);
    let before = fs::read(&new).unwrap();
    hp(&["diff", &old, &new, "-o", &new]).exits(2).says(&["is one of the builds"]);
    assert_eq!(fs::read(&new).unwrap(), before);
    // A device is written, not replaced.
    hp(&["diff", &old, &new, "-o", "/dev/null"]).exits(0);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let mut full = Command::new(env!("CARGO_BIN_EXE_hp"));
    full.args(["diff", &old, &new]).stdin(Stdio::null()).stdout(File::create("/dev/full").unwrap());
    let output = full.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_cannot_be_written_is_said() {
    let b = Builds::get();
    let patch = b.file("full.hpatch");
    hp(&["diff", &b.file("old"), &b.file("new"), "-o", &patch]).exits(0);
    let to_full = |arguments: &[&str]| {
        let mut hp = Command::new(env!("CARGO_BIN_EXE_hp"));
        let output = hp.args(arguments).stdin(Stdio::null()).stdout(File::create("/dev/full").unwrap()).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for arguments in [
        &["inspect", &patch][..],
        &["inspect", &patch, "--json"],
        &["verify", &patch],
        &["explain"],
        &["man"],
        &["--help"],
        &["apply", "--help"],
        &["--version"],
    ] {
        let (code, said) = to_full(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert_eq!(said, "hp: cannot write to standard output: no space left on device\n", "{arguments:?}");
    }
    // What is said on standard error is not what was asked for.
    let full = File::create("/dev/full").unwrap();
    let mut bundle = Command::new(env!("CARGO_BIN_EXE_hp"));
    bundle.args(["bundle", &patch, "-o", &b.file("full.run")]).stdout(Stdio::null()).stderr(full);
    assert_eq!(bundle.status().unwrap().code(), Some(0));
}

#[test]
fn json_without_a_file_makes_no_patch() {
    let b = Builds::get();
    let json = hp(&["diff", "--json", &b.file("old"), &b.file("new")]).exits(0).json();
    assert_eq!(json["exit"], 0);
    assert_eq!(json["changes"][0]["name"], "answer");
    assert_eq!(json["changes"][0]["kind"], "changed");
    assert_eq!(json["patch"]["file"], serde_json::Value::Null);
}

/// A pseudo-terminal stands for stdout.
#[test]
fn a_patch_is_never_written_to_a_terminal() {
    let b = Builds::get();
    let (mut main, mut terminal) = (-1, -1);
    // SAFETY: openpty writes two descriptors and takes null for name, attributes and size (openpty(3)).
    let result =
        unsafe { libc::openpty(&mut main, &mut terminal, std::ptr::null_mut(), std::ptr::null(), std::ptr::null()) };
    assert_eq!(result, 0);
    // SAFETY: both descriptors are new and nobody else's.
    let (main, terminal) = unsafe { (OwnedFd::from_raw_fd(main), OwnedFd::from_raw_fd(terminal)) };
    let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
    command.args(["diff", &b.file("old"), &b.file("new")]).stdin(Stdio::null()).stdout(terminal);
    let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    drop(command); // and with it our side of the terminal
    assert_eq!(output.status.code(), Some(2));
    let message = "hp: refusing to write a patch to a terminal; use -o FILE or > FILE\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), message);
    let mut shown = Vec::new();
    let _ = File::from(main).read_to_end(&mut shown); // ends with EIO when the other side is closed
    assert!(shown.is_empty());
}

/// A pseudo-terminal stands for stderr. The command is held up now and then, so that it takes longer than a second.
#[test]
fn long_work_shows_a_bar_on_a_terminal_and_takes_it_away() {
    let folder = tempfile::tempdir().unwrap();
    let program = |side: &str| {
        let source = folder.path().join(format!("{side}.c"));
        let text =
            format!("#include <stdio.h>\nint main(int c, char **v) {{ return printf(\"{side}%d%s\", c, v[0]); }}\n");
        std::fs::write(&source, text).unwrap();
        let output = folder.path().join(side);
        let status = Command::new("gcc").args(["-static", "-g", path(&source), "-o", path(&output)]).status().unwrap();
        assert!(status.success());
        output
    };
    let (old, new) = (program("old"), program("new"));
    let (mut main, mut terminal) = (-1, -1);
    // SAFETY: openpty writes two descriptors and takes null for name, attributes and size (openpty(3)).
    let result =
        unsafe { libc::openpty(&mut main, &mut terminal, std::ptr::null_mut(), std::ptr::null(), std::ptr::null()) };
    assert_eq!(result, 0);
    // SAFETY: both descriptors are new and nobody else's.
    let (main, terminal) = unsafe { (OwnedFd::from_raw_fd(main), OwnedFd::from_raw_fd(terminal)) };
    let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
    command.args(["diff", "-o", path(&folder.path().join("fix.hpatch")), path(&old), path(&new)]);
    let mut child =
        command.env("TERM", "xterm").stdin(Stdio::null()).stdout(Stdio::null()).stderr(terminal).spawn().unwrap();
    drop(command); // and with it our side of the terminal
    let reader = std::thread::spawn(move || {
        let mut shown = Vec::new();
        let _ = File::from(main).read_to_end(&mut shown); // ends with EIO when the other side is closed
        String::from_utf8_lossy(&shown).into_owned()
    });
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    while child.try_wait().unwrap().is_none() {
        // SAFETY: a signal to our own child, which has not been waited for.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        std::thread::sleep(Duration::from_millis(250));
        // SAFETY: as above.
        unsafe { libc::kill(pid, libc::SIGCONT) };
        std::thread::sleep(Duration::from_millis(10));
    }
    let shown = reader.join().unwrap();
    let steps = format!("/{} ", hp_diff::Stage::ALL.len());
    let bar = shown.rfind(&steps).unwrap_or_else(|| panic!("no bar in {shown:?}"));
    let words = hp_diff::Stage::ALL.map(|s| s.words());
    assert!(words.iter().any(|w| shown.contains(w)), "no stage in {shown:?}");
    // It is erased before the report begins.
    let report = shown.find("identical functions").unwrap();
    assert!(bar < report && shown[bar..report].contains("\x1b[2K"), "{shown:?}");
}

/// Names of C++ are shown as the source has them; JSON has both. What is said several times about one function is one line.
#[test]
fn reports_have_names_as_in_the_source_and_each_finding_once() {
    let folder = tempfile::tempdir().unwrap();
    let program = |side: &str, number: &str| {
        let source = folder.path().join(format!("{side}.cc"));
        let text = format!(
            "#include <cstdio>
            struct Shape {{ int sides; __attribute__((noinline)) int area(int n) const; }};
            int Shape::area(int n) const {{ std::puts(\"one\"); std::puts(\"two\"); std::puts(\"three\"); return n * sides + {number}; }}
            int main(int c, char **) {{ Shape s{{c}}; return s.area(c); }}"
        );
        std::fs::write(&source, text).unwrap();
        let output = folder.path().join(side);
        let words = ["-O2", "-g", "-fno-pie", "-no-pie", path(&source), "-o", path(&output)];
        assert!(Command::new("g++").args(words).status().unwrap().success());
        output
    };
    let (old, new) = (program("old", "3"), program("new", "4"));
    let file = folder.path().join("fix.hpatch");
    let report = hp(&["diff", path(&old), path(&new), "-o", path(&file)]).exits(0).err;
    assert!(report.contains("changed  Shape::area(int) const  "), "{report}");
    let warnings = report.lines().filter(|l| l.contains("HP0207 Shape::area(int) const: ")).collect::<Vec<_>>();
    assert!(warnings.len() == 1 && warnings[0].contains("more places; -v lists them)"), "{report}");
    let all = hp(&["diff", "-v", path(&old), path(&new), "-o", path(&file)]).exits(0).err;
    assert!(all.lines().filter(|l| l.contains("HP0207 Shape::area(int) const: ")).count() > 2, "{all}");
    let json = hp(&["diff", "--json", path(&old), path(&new)]).exits(0).json();
    assert_eq!(json["changes"][0]["name"], "_ZNK5Shape4areaEi");
    assert_eq!(json["changes"][0]["readable"], "Shape::area(int) const");
    let text = hp(&["inspect", path(&file)]).exits(0).text();
    assert!(text.contains("changed  Shape::area(int) const"), "{text}");
    let asm = hp(&["inspect", "--asm", path(&file)]).exits(0).text();
    assert!(asm.starts_with("Shape::area(int) const: "), "{asm}");
    for name in ["Shape::area(int) const", "_ZNK5Shape4areaEi"] {
        let text = hp(&["diff", "--explain", name, path(&old), path(&new)]).exits(0).text();
        assert!(text.starts_with("Shape::area(int) const: "), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }
}

#[test]
fn inspect_shows_what_a_patch_does() {
    let b = Builds::get();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fix.hpatch");
    let words = ["--name", "answer-fix", "--fixes", "CVE-2021-23017", "--counter", "7"];
    hp(&[&["diff", &b.file("old"), &b.file("new"), "-o", path(&file)][..], &words].concat()).exits(0);
    let text = hp(&["inspect", path(&file)]).exits(0).text();
    for expected in ["answer-fix  id ", "CVE-2021-23017", "counter  7", "changed  answer", "objdump -dr"] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    assert!(!text.contains('\x1b'), "no colours in a pipe");
    let json = hp(&["inspect", "--json", path(&file)]).exits(0).json();
    assert_eq!(json["id"], hp_pack::id(&fs::read(&file).unwrap()));
    assert_eq!((&json["name"], &json["counter"]), (&"answer-fix".into(), &7.into()));
    assert_eq!(json["manifest"]["fixes"][0], "CVE-2021-23017");
    assert_eq!(json["records"][0]["name"], "answer");
}

#[test]
fn a_patch_without_targets_is_nothing_to_do() {
    // A base that nobody has loaded.
    let folder = tempfile::tempdir().unwrap();
    let (file, _made) = patch();
    let mut patch = hp_pack::read(&fs::read(file).unwrap()).unwrap();
    patch.base.build_id = b"nobody runs this one".to_vec();
    let file = folder.path().join("fix.hpatch");
    fs::write(&file, hp_pack::write(&patch).unwrap()).unwrap();
    hp(&["apply", path(&file), "--all"]).exits(3).says(&["no process"]);
    hp(&["apply", path(&file), "--exe", "/nowhere/program"]).exits(3).says(&["no process runs /nowhere/program"]);
    hp(&["revert", path(&file), "--all"]).exits(3).says(&["no process"]);
    let json = hp(&["apply", path(&file), "--all", "--json"]).exits(3).json();
    assert_eq!((&json["exit"], &json["targets"]), (&3.into(), &serde_json::json!([])));
}

#[test]
fn what_to_revert_is_a_file_or_an_id() {
    hp(&["revert", "nginx.hpatch", "--all"]).exits(2).says(&["nginx.hpatch is neither", "hp status"]);
    hp(&["revert", "abc", "--all"]).exits(2).says(&["abc is neither"]);
    hp(&["revert", "0123456789abcdef0", "--all"]).exits(2).says(&["neither"]);
}

#[test]
fn explain() {
    let all = hp(&["explain"]).exits(0).text();
    for code in hp_diff::Code::ALL {
        assert!(all.contains(code.as_str()) && all.contains(code.title()), "{code}");
        let one = hp(&["explain", code.as_str()]).exits(0).text();
        assert!(one.contains(code.title()) && one.contains(code.help()), "{code}");
    }
    assert!(hp(&["explain", "hp0402"]).exits(0).text().contains("HP0402"));
    hp(&["explain", "HP0499"]).exits(2).says(&["HP0499 is not a finding code", "HP0401", "HP0402"]);
    hp(&["explain", "segfault"]).exits(2).says(&["hp explain"]);
    assert_eq!(hp(&["explain", "HP0401", "--json"]).exits(0).json()["codes"][0]["code"], "HP0401");
}

/// A reader that goes away is no error.
#[test]
fn broken_pipes() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
    let child = command.arg("explain").stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// The report may go unread; the patch is made all the same.
#[test]
fn a_report_that_nobody_reads() {
    let b = Builds::get();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("fix.hpatch");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
    command.args(["diff", &b.file("old"), &b.file("new"), "-o", path(&file)]).stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(0));
    hp(&["inspect", path(&file)]).exits(0);
}

/// Names in a patch come from who made it; they must not drive the terminal of who looks at it.
#[test]
fn names_cannot_drive_the_terminal() {
    let (file, _folder) = patch();
    let mut patch = hp_pack::read(&fs::read(&file).unwrap()).unwrap();
    let text = String::from_utf8(patch.manifest).unwrap().replace("own code", "own\\u001b[31mcode");
    patch.manifest = text.into_bytes();
    fs::write(&file, hp_pack::write(&patch).unwrap()).unwrap();
    let text = hp(&["inspect", &file]).exits(0).text();
    assert!(text.contains("own\u{fffd}[31mcode") && !text.contains('\x1b'), "{text}");
}
