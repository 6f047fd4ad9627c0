//! Object files and members of archives: their relocations are the references.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{ChangeKind, Code, Options, Reason, Report};

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
extern int outside, other_outside[8];
extern __thread int there;
int shared_by_all(int);
static __thread int first = 1, second = 2;
static int one = 1, two = 2;
static const int weights[] = {1, 2, 3, 4};
int common;
const char *names[] = {"alpha", "beta", "gamma"};
static int twice(int x) { return 2 * x; }
int (*table[])(int) = {twice, abs, shared_by_all};
__attribute__((noinline)) int reads(void) { return one; }
__attribute__((noinline)) int reads_first(void) { return first; }
__attribute__((noinline)) int reads_second(void) { return second - first; }
__attribute__((noinline)) int writes(int x) { first = x; second = x + there; one += x; two -= x; return ++common; }
__attribute__((noinline)) int far_away(int x) { return outside + other_outside[3] + shared_by_all(x); }
__attribute__((noinline)) const char *word(int n) {
    switch (n) {
    case 0: return "zero"; case 1: return "one"; case 2: return names[1]; case 3: return "three";
    case 4: return "four"; case 5: abort(); case 6: puts("six"); return "six"; case 7: return getenv("SEVEN");
    }
    return "many";
}
int weigh(int n) { return weights[n & 3] + table[n & 1](n) + reads() + reads_first() + reads_second(); }
"#;

const VARIANTS: &[&[&str]] = &[
    &["-O2"],
    &["-O0"],
    &["-O2", "-fPIC"],
    &["-O2", "-fno-pic", "-mcmodel=small"],
    &["-O2", "-ffunction-sections", "-fdata-sections"],
    &["-O2", "-fPIC", "-mtls-dialect=gnu2"],
    &["-O2", "-fno-plt", "-fPIC"],
];

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn object(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("part.c"), source).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-g", "-c", "part.c"]).args(flags).current_dir(&folder);
        assert!(gcc.status().unwrap().success());
        folder.join("part.o")
    }
}

fn diff(old: &Path, new: &Path) -> Report {
    hp_diff::diff(old, new, &Options::default()).unwrap()
}

fn changed(report: &Report) -> Vec<&str> {
    report.changes.iter().filter(|c| c.kind == ChangeKind::Changed).map(|c| c.name.as_str()).collect()
}

#[test]
fn nothing_is_invented_when_everything_moves() {
    let folder = Folder::new();
    for (i, flags) in VARIANTS.iter().enumerate() {
        let old = folder.object(&format!("a{i}"), PROGRAM, flags);
        let moved = PROGRAM.replace(
            "static int twice",
            "int front(int x) { puts(\"in front\"); return x ^ 0x1234; }\nstatic int twice",
        );
        let new = folder.object(&format!("b{i}"), &moved, flags);
        let same = diff(&old, &old);
        assert!(same.changes.is_empty() && same.findings.is_empty() && !same.refused(), "{flags:?} {same:#?}");
        let report = diff(&old, &new);
        let names: Vec<&str> = report.changes.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["front"], "{flags:?} {:#?}", report.changes);
    }
}

#[test]
fn each_edit_is_found_with_its_cause() {
    let edits: &[(&str, &str, &str, Reason)] = &[
        ("{ return one; }", "{ return two; }", "reads", Reason::ChangedConstant),
        ("{ return first; }", "{ return second; }", "reads_first", Reason::ChangedConstant),
        ("return ++common", "return --common", "writes", Reason::OwnCode),
        ("other_outside[3]", "other_outside[5]", "far_away", Reason::OwnCode),
        ("+ shared_by_all(x)", "+ abs_of(x)", "far_away", Reason::CalleeReplaced),
        ("\"three\"", "\"thrice\"", "word", Reason::ChangedConstant),
        ("{1, 2, 3, 4}", "{1, 2, 7, 4}", "weigh", Reason::ChangedConstant),
    ];
    let folder = Folder::new();
    for (i, flags) in VARIANTS.iter().enumerate() {
        let old = folder.object(&format!("a{i}"), PROGRAM, flags);
        for (n, (from, to, name, reason)) in edits.iter().enumerate() {
            let edited = PROGRAM.replace(from, to).replace("int common;", "int common; int abs_of(int);");
            assert!(edited.contains(to), "{to}");
            let report = diff(&old, &folder.object(&format!("b{i}-{n}"), &edited, flags));
            assert_eq!(changed(&report), [*name], "{flags:?} {to}: {:#?}", report.changes);
            // Without optimisation and in small leaf functions more than a name may change.
            if flags.contains(&"-O2") && *reason != Reason::OwnCode && !to.contains("abs_of") {
                assert_eq!(report.changes[0].reason, *reason, "{flags:?} {to}: {:#?}", report.changes);
            }
            assert!(report.refused() && report.patch.is_none(), "{to}");
            assert!(report.findings.iter().any(|f| f.code == Code::NotLinked), "{:#?}", report.findings);
        }
    }
}

#[test]
fn layouts_and_initial_values_are_compared_too() {
    let folder = Folder::new();
    let with = |fields: &str, value: &str| {
        format!(
            "struct pair {{ {fields} }};\nstruct pair all = {{ {value} }};\nint sum(struct pair *p) {{ return p->a + p->b; }}\n"
        )
    };
    let old = folder.object("a", &with("int a, b;", "1, 2"), &["-O2"]);
    let swapped = diff(&old, &folder.object("b", &with("int b, a;", "1, 2"), &["-O2"]));
    assert!(swapped.findings.iter().any(|f| f.code == Code::LayoutChanged), "{:#?}", swapped.findings);
    let value = diff(&old, &folder.object("c", &with("int a, b;", "1, 3"), &["-O2"]));
    assert!(
        value.findings.iter().any(|f| f.code == Code::InitialValueChanged && f.subject == "all"),
        "{:#?}",
        value.findings
    );
}

#[test]
fn members_of_archives_are_builds_of_their_own() {
    let folder = Folder::new();
    let (old, new) = (
        folder.object("a", PROGRAM, &["-O2"]),
        folder.object("b", &PROGRAM.replace("return one;", "return two;"), &["-O2"]),
    );
    let archive = |name: &str, object: &Path| {
        let path = folder.0.path().join(name);
        assert!(Command::new("ar").arg("rcs").arg(&path).arg(object).status().unwrap().success());
        path
    };
    let (old, new) = (archive("old.a", &old), archive("new.a", &new));
    assert_eq!(hp_diff::members(&old).unwrap(), ["part.o"]);
    let member = |archive: &Path| PathBuf::from(format!("{}(part.o)", archive.display()));
    assert_eq!(changed(&diff(&member(&old), &member(&new))), ["reads"]);
    let missing =
        hp_diff::diff(&PathBuf::from(format!("{}(none.o)", old.display())), &member(&new), &Options::default());
    assert!(missing.unwrap_err().to_string().contains("has no member none.o"));
}

#[test]
fn an_object_and_a_program_are_no_pair() {
    let folder = Folder::new();
    let object = folder.object("a", "int main(void) { return 0; }", &["-O2"]);
    let program = folder.0.path().join("program");
    assert!(Command::new("gcc").arg(&object).arg("-o").arg(&program).status().unwrap().success());
    let report = diff(&object, &program);
    assert!(report.findings.iter().any(|f| f.code == Code::KindDiffers), "{:#?}", report.findings);
}
