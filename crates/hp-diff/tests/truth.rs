//! What is easily missed or invented: tables of distances, texts of Rust, names with hashes, thread-local variables.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{ChangeKind, Code, Options, Report};

const SHAPES: &str = include_str!("../../../testdata/oracle/shapes.rs");

/// Writes `source` to a folder of its own and runs the compiler there; gives the program's path.
fn build(room: &Path, name: &str, source: &str, compiler: &str) -> PathBuf {
    let folder = room.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut words = compiler.split_whitespace();
    let program = words.next().unwrap();
    let file = if program == "rustc" { "main.rs" } else { "main.c" };
    std::fs::write(folder.join(file), source).unwrap();
    let output = Command::new(program).args(words).args([file, "-o", "program"]).current_dir(&folder).output().unwrap();
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
    folder.join("program")
}

fn diff(old: &Path, new: &Path) -> Report {
    hp_diff::diff(old, new, &Options { exact_lines: true, ..Options::default() }).unwrap()
}

fn changed(report: &Report) -> Vec<&str> {
    report.changes.iter().filter(|c| c.kind == ChangeKind::Changed).map(|c| c.name.as_str()).collect()
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|d| d.join(tool).is_file())
}

/// Code and table stay the same, only the bytes of a text differ.
#[test]
fn a_text_in_a_table_of_distances_is_found() {
    let room = tempfile::tempdir().unwrap();
    let source = |word: &str| {
        format!(
            "__attribute__((noinline)) const char *name(int n) {{ switch (n) {{ case 1: return \"one\"; case 2: return \"{word}\";
            case 3: return \"three\"; case 4: return \"four\"; case 5: return \"five\"; }} return \"none\"; }}
            int puts(const char *);
            __attribute__((noinline)) int other(void) {{ return puts(\"another text\"); }}
            int main(int c, char **v) {{ return puts(name(c)) + other(); }}"
        )
    };
    for compiler in
        ["clang -O2 -fPIE -pie", "gcc -O2 -fPIE -pie", "gcc -O2 -fno-pie -no-pie", "clang -O2 -fno-pie -no-pie"]
    {
        if !on_path(compiler.split(' ').next().unwrap()) {
            continue;
        }
        let old = build(room.path(), "old", &source("two"), compiler);
        for (word, expected) in [("TWO", &["name"][..]), ("twenty", &["name"]), ("two", &[])] {
            let new = build(room.path(), "new", &source(word), compiler);
            assert_eq!(changed(&diff(&old, &new)), expected, "{compiler} {word}");
        }
    }
}

/// A program of Rust, one edit: exactly that function.
#[test]
fn one_edit_of_a_rust_program_is_one_function() {
    let room = tempfile::tempdir().unwrap();
    for names in ["legacy", "v0"] {
        let stable = format!("rustc --edition 2021 -C opt-level=2 -g -C symbol-mangling-version={names}");
        let compiler = if names == "legacy" { "rustc --edition 2021 -C opt-level=2 -g" } else { &stable };
        let old = build(room.path(), "old", SHAPES, compiler);
        let edits = [
            ("self.0 * self.0 * 3.14159", "self.0 * self.0 * 3.25", "Circle"),
            ("4 => \"violet\"", "4 => \"VIOLET\"", "4word"),
            ("2 => \"blue\"", "2 => \"turquoise\"", "4word"),
        ];
        for (from, to, function) in edits {
            assert!(SHAPES.contains(from));
            let report = diff(&old, &build(room.path(), "new", &SHAPES.replace(from, to), compiler));
            let names = changed(&report);
            let causes: Vec<&str> = report.changes.iter().map(|c| c.cause.as_str()).collect();
            assert!(names.len() == 1 && names[0].contains(function), "{compiler} {to}: {names:?} {causes:?}");
        }
    }
}

/// Another version of the crate: every name of it has another hash, and nothing changed.
#[test]
fn other_hashes_in_names_of_rust_are_no_change() {
    let room = tempfile::tempdir().unwrap();
    for names in ["", " -C symbol-mangling-version=v0"] {
        let compiler = |version: &str| {
            format!("rustc --edition 2021 -C opt-level=2 -C codegen-units=1 -C metadata={version}{names}")
        };
        let old = build(room.path(), "old", SHAPES, &compiler("one"));
        let report = diff(&old, &build(room.path(), "new", SHAPES, &compiler("two")));
        assert!(report.changes.is_empty(), "{names}: {:?}", report.changes);
    }
}

/// Equal code means another variable.
#[test]
fn thread_local_variables_that_changed_places_are_refused() {
    let room = tempfile::tempdir().unwrap();
    let source = |order: &str, used: &str| {
        format!(
            "static __thread int {order};
            __attribute__((noinline)) int get(void) {{ return {used}; }}
            int main(int c, char **v) {{ (void)v; a = c; b = 2 * c; return get(); }}"
        )
    };
    let compiler = "gcc -O2 -g -fno-toplevel-reorder";
    let old = build(room.path(), "old", &source("a = 1, b = 2", "a"), compiler);
    let new = build(room.path(), "new", &source("b = 1, a = 2", "b"), compiler);
    let report = diff(&old, &new);
    let refused = |r: &Report| r.findings.iter().any(|f| f.code == Code::ThreadLocalChanged && r.refused());
    assert!(changed(&report).contains(&"get") || refused(&report), "{:?} {:?}", report.changes, report.findings);
    let same = build(room.path(), "same", &source("a = 1, b = 2", "a + 1"), compiler);
    assert!(!refused(&diff(&old, &same)));
}

/// Numbers of 32 bits that become 64 bits wide are no distances, though every one of them would lead to a constant: nothing adds
/// the table's start to them.
#[test]
fn a_table_of_numbers_is_no_table_of_distances() {
    let room = tempfile::tempdir().unwrap();
    let source = |plus: &str, text: &str| {
        format!(
            "#include <stdio.h>
            static const int limits[] = {{ 1000, 2000, 3000, 4000 }};
            const char filler[] = {{ [0 ... 8999] = '{text}', 0 }};
            __attribute__((noinline)) long limit(unsigned i) {{ return limits[i & 3] {plus}; }}
            int main(int c, char **v) {{ (void)v; return printf(\"%ld %s\\n\", limit(c), filler + c); }}"
        )
    };
    for compiler in ["gcc -O2 -g -fno-toplevel-reorder", "gcc -O1 -g", "clang -O2 -g"] {
        if !on_path(compiler.split(' ').next().unwrap()) {
            continue;
        }
        let old = build(room.path(), "old", &source("", "x"), compiler);
        let report = diff(&old, &build(room.path(), "new", &source("+ 1", "x"), compiler));
        assert_eq!(changed(&report), ["limit"], "{compiler}: {:?}", report.findings);
        let patch = report.patch.unwrap_or_else(|| panic!("{compiler}: {:?}", report.findings));
        let fields = patch.relocations.iter().filter(|r| r.section == hp_pack::SectionKind::Rodata).count();
        assert_eq!(fields, 0, "{compiler}: numbers are relocated");
        let report = diff(&old, &build(room.path(), "other", &source("", "y"), compiler));
        assert!(!changed(&report).contains(&"limit"), "{compiler}: {:?}", report.changes);
    }
}
