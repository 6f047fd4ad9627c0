//! What makes `hp diff` fast must not change what it says: the fast path for builds with the same content, and threads.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{Level, Options, Report};

const PROGRAM: &str = r#"
#include <stdio.h>
int limit = 1234;
__attribute__((noinline)) int price(int n) { return n > limit ? limit : n * 3; }
__attribute__((noinline)) int show(const char *what, int n) { return printf("%s: %d of %d\n", what, n, limit); }
int main(int argc, char **argv) { return show("needle in a haystack", price(argc)) + show(argv[0], argc); }
"#;

fn build(folder: &Path, name: &str, source: &str, build_id: &str) -> PathBuf {
    let program = folder.join(name);
    std::fs::write(folder.join("program.c"), source).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "program.c", "-o"]).arg(&program).arg(format!("-Wl,--build-id={build_id}"));
    assert!(gcc.current_dir(folder).status().unwrap().success());
    program
}

fn diff(old: &Path, new: &Path) -> Report {
    hp_diff::diff(old, new, &Options::default()).unwrap()
}

/// A copy of `program` with the first `old` in it made `new`.
fn edited(program: &Path, old: &[u8], new: &[u8]) -> PathBuf {
    let mut bytes = std::fs::read(program).unwrap();
    let at = bytes.windows(old.len()).position(|w| w == old).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
    let copy = program.with_extension("edited");
    std::fs::write(&copy, bytes).unwrap();
    copy
}

#[test]
fn builds_that_differ_in_their_build_id_alone_are_equivalent() {
    let folder = tempfile::tempdir().unwrap();
    let old = build(folder.path(), "old", PROGRAM, "0x1111111111111111");
    let new = build(folder.path(), "new", PROGRAM, "0x2222222222222222");
    let report = diff(&old, &new);
    assert!(report.changes.is_empty() && report.patch.is_none(), "{report:?}");
    assert!(report.findings.iter().all(|f| f.level != Level::Error), "{report:?}");
    assert!(report.identical >= 3, "{report:?}");
}

#[test]
fn one_byte_of_data_beside_equal_code_is_not_overlooked() {
    let folder = tempfile::tempdir().unwrap();
    let old = build(folder.path(), "old", PROGRAM, "sha1");
    let text = diff(&old, &edited(&old, b"needle in", b"needle on"));
    assert_eq!(text.changes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["main"], "{text:?}");
    let value = diff(&old, &edited(&old, &1234u32.to_le_bytes(), &1235u32.to_le_bytes()));
    assert!(value.findings.iter().any(|f| f.subject == "limit"), "{value:?}");
}

/// The vote of a pair says that its code is the same; it must not be believed where a constant that it leads to has changed.
#[test]
fn a_function_differs_if_only_a_constant_that_it_reads_does() {
    let folder = tempfile::tempdir().unwrap();
    let program = |price: u32| {
        format!(
            "#include <stdio.h>\nconst int prices[] = {{ 3, 5, {price}, 11, 13, 17, 19, 23 }};\n{}\n{}\n",
            "__attribute__((noinline)) int pick(int n) { return prices[n & 7]; }",
            "int main(int argc, char **argv) { return printf(\"%d %s\", pick(argc), argv[0]); }"
        )
    };
    let old = build(folder.path(), "old", &program(7), "sha1");
    let new = build(folder.path(), "new", &program(8), "sha1");
    let report = diff(&old, &new);
    assert_eq!(report.changes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["pick"], "{report:?}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let old = build(folder.path(), "old", PROGRAM, "sha1");
    let new = build(
        folder.path(),
        "new",
        &PROGRAM
            .replace("n * 3", "n * 5 - helper(n)")
            .replace("int limit", "static int helper(int n) { return n & 6; }\nint limit"),
        "sha1",
    );
    let made = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let report = pool.install(|| diff(&old, &new));
        let patch = hp_pack::write(report.patch.as_ref().unwrap()).unwrap();
        (format!("{:?} {:?}", report.changes, report.findings), patch)
    };
    let alone = made(1);
    assert!([2, 3, 8].into_iter().all(|threads| made(threads) == alone));
}
