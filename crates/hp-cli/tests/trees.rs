//! `hp diff` of directory trees: a patch for each file that changed, a table, and the worst exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Trees(tempfile::TempDir);

impl Trees {
    fn new() -> Trees {
        Trees(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// A program that answers `factor` times the number of its arguments.
    fn build(&self, name: &str, factor: u32, flags: &[&str]) -> PathBuf {
        let (source, program) = (self.path("source.c"), self.path(name));
        let text = format!(
            "#include <stdio.h>\nstruct s {{ int n; }} state;\n\
             __attribute__((noinline)) int answer(int n) {{ state.n += n; return n * {factor} + state.n; }}\n\
             int main(int c, char **v) {{ (void)v; return printf(\"%d\\n\", answer(c)); }}\n"
        );
        fs::write(&source, text).unwrap();
        let status = Command::new("gcc").args(["-O2", "-g"]).args(flags).arg(&source).arg("-o").arg(&program).status();
        assert!(status.unwrap().success());
        program
    }

    fn diff(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
        command.arg("diff").arg(self.0.path().join("old")).arg(self.0.path().join("new"));
        command.args(flags).output().unwrap()
    }
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// `(path, result, exit)` of each file.
fn results(output: &Output) -> Vec<(String, String, u64)> {
    let files = json(output)["files"].as_array().unwrap().clone();
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    files.iter().map(|f| (text(&f["path"]), text(&f["result"]), f["exit"].as_u64().unwrap())).collect()
}

fn row(path: &str, result: &str, exit: u64) -> (String, String, u64) {
    (path.to_owned(), result.to_owned(), exit)
}

fn patches(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path().strip_prefix(folder).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn each_changed_file_gets_a_patch() {
    let trees = Trees::new();
    for (side, factor) in [("old", 3), ("new", 5)] {
        trees.build(&format!("{side}/usr/bin/changed"), factor, &[]);
        trees.build(&format!("{side}/usr/bin/rebuilt"), 7, &[]);
        let library = trees.build(&format!("{side}/usr/lib/libchanged.so.1"), factor, &["-shared", "-fPIC"]);
        std::os::unix::fs::symlink("libchanged.so.1", library.with_file_name("libchanged.so")).unwrap();
        fs::write(trees.path(&format!("{side}/etc/text")), side).unwrap();
        fs::write(trees.path(&format!("{side}/etc/empty")), "").unwrap();
        trees.build(&format!("{side}/only-{side}"), 1, &[]);
    }
    let out = trees.path("patches");
    let answer = trees.diff(&["--json", "-o", out.to_str().unwrap()]);
    assert_eq!(answer.status.code(), Some(0), "{}", String::from_utf8_lossy(&answer.stderr));
    let expected = [
        row("only-new", "only-new", 3),
        row("only-old", "only-old", 3),
        row("usr/bin/changed", "patch", 0),
        row("usr/bin/rebuilt", "identical", 3),
        row("usr/lib/libchanged.so.1", "patch", 0),
    ];
    assert_eq!(results(&answer), expected);
    assert_eq!(patches(&out), ["usr/bin/changed.hpatch", "usr/lib/libchanged.so.1.hpatch"]);

    // The patch is the one that the two files alone make.
    let single = trees.path("single.hpatch");
    let status = Command::new(env!("CARGO_BIN_EXE_hp"))
        .args(["diff", "-o"])
        .args([&single, &trees.path("old/usr/bin/changed"), &trees.path("new/usr/bin/changed")])
        .output()
        .unwrap();
    assert!(status.status.success());
    assert!(fs::read(single).unwrap() == fs::read(out.join("usr/bin/changed.hpatch")).unwrap());

    let report = trees.diff(&[]);
    let text = String::from_utf8(report.stderr).unwrap();
    for line in ["patch      usr/bin/changed", "only-old   only-old", "2 patches, 0 refused, 1 equivalent; give -o DIR"]
    {
        assert!(text.contains(line), "{line:?} is not in: {text}");
    }
    assert!(report.stdout.is_empty());
    assert!(text.lines().all(|l| !l.contains("rebuilt")), "{text}");
}

#[test]
fn the_worst_exit_code_counts_and_the_other_patches_are_made() {
    let trees = Trees::new();
    for (side, factor) in [("old", 3), ("new", 5)] {
        trees.build(&format!("{side}/good"), factor, &[]);
        trees.build(&format!("{side}/no-types"), factor, &["-g0"]);
    }
    let out = trees.path("patches");
    let to = ["--json", "-o", out.to_str().unwrap()];
    let answer = trees.diff(&to);
    assert_eq!(answer.status.code(), Some(1));
    assert_eq!(results(&answer), [row("good", "patch", 0), row("no-types", "refused", 1)]);
    assert_eq!(patches(&out), ["good.hpatch"]);
    assert_eq!(trees.diff(&[&to[..], &["--allow", "HP0402"]].concat()).status.code(), Some(0));
    assert_eq!(patches(&out), ["good.hpatch", "no-types.hpatch"]);
    // A folder is where the patch should be.
    fs::remove_file(out.join("good.hpatch")).unwrap();
    fs::create_dir(out.join("good.hpatch")).unwrap();
    let answer = trees.diff(&to);
    assert_eq!((answer.status.code(), &results(&answer)[0]), (Some(2), &row("good", "unwritten", 2)));

    for (side, length) in [("old", 1000), ("new", 1001)] {
        let whole = fs::read(trees.path("old/good")).unwrap();
        fs::write(trees.path(&format!("{side}/cut-off")), &whole[..length]).unwrap();
    }
    let answer = trees.diff(&["--json"]);
    assert_eq!(answer.status.code(), Some(2));
    assert_eq!(results(&answer)[0], row("cut-off", "unreadable", 2));
    assert!(json(&answer)["files"][0]["error"].as_str().unwrap().contains("cut-off"));
    // An error is said even if nothing else is.
    let answer = trees.diff(&["-q"]);
    let said = String::from_utf8_lossy(&answer.stderr);
    assert!(said.contains("\nhp: cut-off: ") && said.contains("HP0402") && said.lines().count() == 2, "{said}");
}

#[test]
fn debug_files_in_the_trees_are_used_and_are_no_builds() {
    let trees = Trees::new();
    for (side, factor) in [("old", 3), ("new", 5)] {
        let program = trees.build(&format!("{side}/bin/program"), factor, &["-Wl,--build-id"]);
        let notes = Command::new("readelf").arg("-n").arg(&program).output().unwrap();
        let notes = String::from_utf8(notes.stdout).unwrap();
        let id = notes.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        let debug = trees.path(&format!("{side}/usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]));
        let run = |command: &mut Command| assert!(command.status().unwrap().success());
        run(Command::new("objcopy").arg("--only-keep-debug").args([&program, &debug]));
        run(Command::new("strip").arg("-s").arg(&program));
    }
    let answer = trees.diff(&["--json"]);
    assert_eq!(answer.status.code(), Some(0), "{:?}", json(&answer));
    assert_eq!(results(&answer), [row("bin/program", "patch", 0)]);
    assert_eq!(json(&answer)["files"][0]["changes"][0]["name"], "answer");
}

#[test]
fn wrong_usage_is_said_in_one_line() {
    let trees = Trees::new();
    let file = trees.build("old/program", 3, &[]);
    trees.build("new/program", 3, &[]);
    let file = file.to_str().unwrap();
    for (flags, words) in [
        (&["--name", "x"][..], "--name is for one file"),
        (&["--old-debug", file], "--old-debug is for one file"),
        (&["-o", file], "is no directory"),
    ] {
        let answer = trees.diff(flags);
        let text = String::from_utf8(answer.stderr).unwrap();
        assert_eq!(answer.status.code(), Some(2), "{text}");
        assert!(text.lines().count() == 1 && text.contains(words), "{text}");
    }
    let mixed = Command::new(env!("CARGO_BIN_EXE_hp")).args(["diff", file]).arg(trees.0.path().join("new")).output();
    let mixed = mixed.unwrap();
    assert_eq!(mixed.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&mixed.stderr).contains("give two files or two directories"));
    assert_eq!(trees.diff(&[]).status.code(), Some(3));
}

#[test]
fn archives_are_trees_of_members_and_refuse_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let archive = |name: &str, value: &str| {
        let root = folder.path().join(name);
        std::fs::create_dir_all(&root).unwrap();
        for (part, body) in [("same", "return x;"), ("edited", value)] {
            let source = root.join(format!("{part}.c"));
            std::fs::write(&source, format!("int {part}(int x) {{ {body} }}\n")).unwrap();
            let object = root.join(format!("{part}.o"));
            let status = Command::new("gcc").args(["-O2", "-g", "-c", "-o"]).args([&object, &source]).status();
            assert!(status.unwrap().success());
        }
        let path = root.join("libx.a");
        let objects = [root.join("same.o"), root.join("edited.o")];
        assert!(Command::new("ar").arg("rcs").arg(&path).args(objects).status().unwrap().success());
        std::fs::remove_file(root.join("same.o")).unwrap();
        path
    };
    let (old, new) = (archive("old", "return x + 1;"), archive("new", "return x + 2;"));
    let table = |old: &Path, new: &Path| {
        let done = Command::new(env!("CARGO_BIN_EXE_hp")).arg("diff").args([old, new]).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, text) = table(&old, &new);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("object     edited.o"), "{text}");
    assert!(text.contains("own code at +0x0 (edited.c:1)") && text.contains("HP0107"), "{text}");
    let (code, text) = table(old.parent().unwrap(), new.parent().unwrap());
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("object     edited.o") && text.contains("object     libx.a(edited.o)"), "{text}");
    let (code, text) = table(&old.with_file_name("edited.o"), &new.with_file_name("edited.o"));
    assert_eq!(code, Some(1), "one object alone is refused: {text}");
    let (code, text) = table(&old, &new.with_file_name("edited.o"));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("is an archive and"), "{text}");
}
