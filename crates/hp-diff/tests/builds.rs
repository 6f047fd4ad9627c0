//! Nothing invented, nothing missed: pairs of builds of one small program, compared.
//!
//! The program has what makes builds differ without a change in the source: static locals,
//! a jump table, strings, a table of pointers, a constant table, imports.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{ChangeKind, Code, Options, Report};

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct entry { const char *name; int (*call)(int); };
static int twice(int x) { return 2 * x; }
static int next(int x) { static int calls; return x + ++calls; }
static int last(int x) { static int calls = 7; return x - ++calls; }
static const struct entry table[] = {{"twice", twice}, {"next", next}, {"last", last}};
static const unsigned char weights[] = {3, 1, 4, 1, 5, 9, 2, 6};
double scale = 0.5;
__attribute__((noinline)) const char *word(int n) {
    switch (n) {
    case 0: return "zero"; case 1: return "one"; case 2: return "two"; case 3: return "three";
    case 4: return "four"; case 5: abort(); case 6: puts("six"); return "six"; case 7: return getenv("SEVEN");
    }
    return "many";
}
__attribute__((noinline)) double weigh(int n) { return weights[n & 7] * scale + 1.25; }
int main(int argc, char **argv) {
    for (unsigned i = 0; i < sizeof table / sizeof *table; i++)
        printf("%s %d %s %g\n", table[i].name, table[i].call(argc), word(argc + i), weigh(argc));
    return strlen(argv[0]) > 100;
}
"#;

struct Builds(tempfile::TempDir);

impl Builds {
    fn new() -> Builds {
        Builds(tempfile::tempdir().unwrap())
    }

    /// Compiles `source` with gcc and gives the program's path.
    fn build(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let directory = self.0.path().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("program.c"), source).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-g", "program.c", "-o", "program"]).args(flags).current_dir(&directory);
        assert!(gcc.status().unwrap().success(), "gcc failed for {name}");
        directory.join("program")
    }
}

fn diff(old: &Path, new: &Path) -> Report {
    hp_diff::diff(old, new, &Options::default()).unwrap()
}

fn names(report: &Report) -> Vec<&str> {
    report.changes.iter().map(|c| c.name.as_str()).collect()
}

const VARIANTS: &[&[&str]] = &[
    &[],
    &["-O0"],
    &["-no-pie", "-fno-pie"],
    &["-fcf-protection", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now"],
    &["-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections"],
    &["-fno-plt"],
    &["-static"],
];

#[test]
fn a_build_does_not_differ_from_itself_or_a_rebuild() {
    let builds = Builds::new();
    for (i, flags) in VARIANTS.iter().enumerate() {
        let (a, b) = (builds.build(&format!("a{i}"), PROGRAM, flags), builds.build(&format!("b{i}"), PROGRAM, flags));
        for other in [&a, &b] {
            let report = diff(&a, other);
            assert!(report.changes.is_empty() && report.patch.is_none(), "{flags:?}: {:?}", report.changes);
            assert!(!report.refused(), "{flags:?}: {:?}", report.findings);
            assert!(report.identical > 5, "{flags:?}: only {} functions", report.identical);
        }
    }
}

#[test]
fn an_unrelated_function_in_front_changes_nothing_else() {
    let builds = Builds::new();
    let inserted = PROGRAM.replace(
        "static int twice",
        "__attribute__((used, noinline)) int extra(int x) { static int calls; return puts(\"extra\") + ++calls * x; }\nstatic int twice",
    );
    for (i, flags) in VARIANTS.iter().enumerate().filter(|(_, f)| !f.contains(&"-Wl,--gc-sections")) {
        let old = builds.build(&format!("old{i}"), PROGRAM, flags);
        let new = builds.build(&format!("new{i}"), &inserted, flags);
        let report = diff(&old, &new);
        assert_eq!(names(&report), ["extra"], "{flags:?}: {:?}", report.changes);
        assert!(!report.refused(), "{flags:?}: {:?}", report.findings);
    }
}

#[test]
fn every_kind_of_small_change_is_found() {
    let builds = Builds::new();
    // What to replace, by what, and the functions whose behaviour it changes.
    let edits: &[(&str, &str, &[&str])] = &[
        ("\"three\"", "\"THREE\"", &["word"]),
        ("1.25", "1.5", &["weigh"]),
        ("3, 1, 4", "3, 1, 5", &["weigh"]),
        ("getenv(\"SEVEN\")", "getenv(\"SEVEM\")", &["word"]),
        (
            "case 3: return \"three\";\n    case 4: return \"four\"",
            "case 4: return \"three\";\n    case 3: return \"four\"",
            &["word"],
        ),
        ("return 2 * x", "return 3 * x", &["twice"]),
        ("x + ++calls", "x + --calls", &["next"]),
    ];
    for (i, flags) in VARIANTS.iter().enumerate() {
        let old = builds.build(&format!("old{i}"), PROGRAM, flags);
        for (n, (from, to, expected)) in edits.iter().enumerate() {
            assert!(PROGRAM.contains(from), "{from}");
            let new = builds.build(&format!("new{i}-{n}"), &PROGRAM.replace(from, to), flags);
            let report = diff(&old, &new);
            assert_eq!(names(&report), *expected, "{flags:?} {to}: {:?}", report.changes);
            assert!(report.patch.is_some(), "{flags:?} {to}: {:?}", report.findings);
        }
    }
}

#[test]
fn what_lies_behind_a_text_is_in_doubt_only_where_no_other_user_tells() {
    let builds = Builds::new();
    let program = |name, first: &str, second: &str| {
        let source = format!(
            "#include <stdio.h>\n#define APART __attribute__((noipa)) const char\n\
             APART *first(void) {{ return {first}; }}\n\
             APART *second(void) {{ {second}; }}\n\
             APART *third(void) {{ return \"third\"; }}\n\
             int main(void) {{ return printf(\"%s %s %s\", first(), second(), third()); }}\n"
        );
        builds.build(name, &source, &[])
    };
    let doubts = |report: &Report| -> Vec<String> {
        report.findings.iter().filter(|f| f.code == Code::LiteralEnd).map(|f| f.subject.clone()).collect()
    };
    let none: Vec<String> = Vec::new();
    // A new text between two that have the same users as before.
    let old = program("old", "\"abc\"", "return \"second\"");
    let report = diff(&old, &program("new", "\"abc\"", "puts(\"new\"); return \"second\""));
    assert_eq!((names(&report), doubts(&report)), (vec!["second"], none));
    // One literal: the first function has its address, the second that of its other half.
    let one = |name, text: &str| program(name, text, &format!("return {text} + 4"));
    let report = diff(&one("one", r#""abc\0def""#), &one("other", r#""abc\0xyz""#));
    assert_eq!((names(&report), doubts(&report)), (vec!["second"], vec!["first".to_owned()]));
}

#[test]
fn a_new_initial_value_of_a_variable_is_refused() {
    let builds = Builds::new();
    let old = builds.build("old", PROGRAM, &[]);
    let new = builds.build("new", &PROGRAM.replace("scale = 0.5", "scale = 0.25"), &[]);
    let report = diff(&old, &new);
    assert!(report.findings.iter().any(|f| f.code == Code::InitialValueChanged && f.subject == "scale"));
    assert!(report.refused() && report.patch.is_none());
}

#[test]
fn the_same_two_builds_give_the_same_bytes_on_any_number_of_threads() {
    let builds = Builds::new();
    let old = builds.build("old", PROGRAM, &[]);
    let new = builds.build("new", &PROGRAM.replace("2 * x", "5 * x").replace("\"two\"", "\"TWO\""), &[]);
    let bytes = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| hp_pack::write(&diff(&old, &new).patch.unwrap()).unwrap())
    };
    assert!(bytes(1) == bytes(4), "the patch depends on the number of threads");
}

/// The object behind `scale` and the one that `pick` means change places: the address is still that of the end of `scale`.
#[test]
fn another_object_behind_the_same_one_is_a_change() {
    let builds = Builds::new();
    let source = |order: &str, used: &str| {
        format!(
            "__attribute__((aligned(16))) int scale[4] = {{1, 2, 3, 4}}, {order};
            __attribute__((noinline)) int *pick(void) {{ return {used}; }}
            int main(int c, char **v) {{ (void)v; scale[c] = a[c] = b[c] = c; return *pick(); }}"
        )
    };
    let (a, b) = ("a[4] = {5, 6, 7, 8}", "b[4] = {5, 6, 7, 9}");
    for flags in [&["-fno-toplevel-reorder"][..], &["-fno-toplevel-reorder", "-no-pie", "-fno-pie"]] {
        let old = builds.build("old", &source(&format!("{a}, {b}"), "a"), flags);
        let new = builds.build("new", &source(&format!("{b}, {a}"), "b"), flags);
        assert_eq!(names(&diff(&old, &new)), ["pick"], "{flags:?}");
    }
}

#[test]
fn half_a_debug_build_is_not_taken_for_a_whole_one() {
    let builds = Builds::new();
    let sources = |body: &str| {
        let directory = builds.0.path().join(if body.contains('2') { "new" } else { "old" });
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("a.c"), "int f(int); int main(int c, char **v) { (void)v; return f(c); }")
            .unwrap();
        std::fs::write(directory.join("b.c"), body).unwrap();
        let run =
            |args: &[&str]| assert!(Command::new("gcc").args(args).current_dir(&directory).status().unwrap().success());
        run(&["-O2", "-g", "-c", "a.c"]);
        run(&["-O2", "-c", "b.c"]);
        run(&["a.o", "b.o", "-o", "program"]);
        directory.join("program")
    };
    let report = diff(&sources("int f(int x) { return x + 1; }"), &sources("int f(int x) { return x * 2; }"));
    assert!(
        report.findings.iter().any(|f| f.code == Code::LayoutUnproven && f.subject == "f"),
        "{:?}",
        report.findings
    );
}

#[test]
fn stripped_builds_and_mixed_kinds_are_refused_by_code() {
    let builds = Builds::new();
    let old = builds.build("old", PROGRAM, &[]);
    let fixed = builds.build("fixed", PROGRAM, &["-no-pie"]);
    let stripped = builds.build("stripped", PROGRAM, &["-s"]);
    let has = |report: &Report, code| report.findings.iter().any(|f| f.code == code);
    assert!(has(&diff(&old, &stripped), Code::NoSymbols));
    assert!(has(&diff(&old, &fixed), Code::KindDiffers));
}

#[test]
fn a_static_local_of_another_function_is_not_taken_for_the_old_one() {
    let builds = Builds::new();
    let program = |name, first: &str, second: &str| {
        let source = format!(
            "#define APART __attribute__((noipa)) int\n\
             APART first(void) {{ {first} }}\nAPART second(void) {{ {second} }}\n\
             int main(void) {{ return first() + second(); }}\n"
        );
        builds.build(name, &source, &["-g0"])
    };
    let counts = "static int count; return ++count;";
    let options = Options { allow: vec![(Code::LayoutUnproven, None)], ..Options::default() };
    let old = program("old", counts, "return 1;");
    let same = program("same", "static int count; return count += 2;", "return 1;");
    let patch = hp_diff::diff(&old, &same, &options).unwrap().patch.unwrap();
    assert!(patch.symbols.iter().any(|s| s.name.starts_with("count") && s.place == hp_pack::Place::Base));
    let report = hp_diff::diff(&old, &program("moved", "return 1;", counts), &options).unwrap();
    assert!(report.findings.iter().any(|f| f.code == Code::UnpairedVariable), "{:?}", report.findings);
}

#[test]
fn a_line_number_alone_is_no_change_but_any_other_number_is() {
    let builds = Builds::new();
    let program = |name, blank: &str, number: &str| {
        let source = format!(
            "__attribute__((noipa)) int report(const char *file, int line, int n) {{ return *file + line + n; }}\n{blank}\
             __attribute__((noipa)) int logged(int n) {{\n    return report(__FILE__, __LINE__, n) + 1;\n}}\n\
             __attribute__((noipa)) int fixed(int n) {{\n    return report(__FILE__, {number}, n) + 1;\n}}\n\
             int main(void) {{ return logged(1) + fixed(2); }}\n"
        );
        builds.build(name, &source, &[])
    };
    let kinds = |report: &Report| report.changes.iter().map(|c| (c.name.clone(), c.kind)).collect::<Vec<_>>();
    let old = program("old", "", "500");
    let shifted = program("shifted", "\n\n\n", "500");
    assert_eq!(kinds(&diff(&old, &shifted)), [("logged".to_owned(), ChangeKind::LineOnly)]);
    assert!(diff(&old, &shifted).patch.is_none());
    let exact = Options { exact_lines: true, ..Options::default() };
    let report = hp_diff::diff(&old, &shifted, &exact).unwrap();
    assert_eq!(kinds(&report), [("logged".to_owned(), ChangeKind::Changed)]);
    assert!(report.patch.is_some());
    // A number that moved by as much as the lines did, but is no line.
    let report = diff(&old, &program("number", "\n\n\n", "503"));
    let expected = [("fixed".to_owned(), ChangeKind::Changed), ("logged".to_owned(), ChangeKind::LineOnly)];
    assert_eq!(kinds(&report), expected);
}

#[test]
fn runtimes_that_would_not_survive_are_refused_by_code() {
    let builds = Builds::new();
    // As the linker of Go lays them out, in a program of any language.
    for section in [".go.buildinfo,\\\"aw\\\"", ".note.go.buildid,\\\"a\\\"", ".gopclntab,\\\"aw\\\""] {
        let go = format!("__asm__(\".section {section}\\n.quad 1\\n.text\");\n{PROGRAM}");
        let old = builds.build("go", &go, &[]);
        let new = builds.build("new", PROGRAM, &[]);
        for report in [diff(&old, &new), diff(&new, &old)] {
            assert!(report.refused() && report.patch.is_none(), "{section}");
            assert!(report.findings.iter().any(|f| f.code == Code::ForeignRuntime), "{section}: {:?}", report.findings);
        }
    }
    let deep = "int f(int n) { volatile char room[9999]; room[n % 9999] = n; return n ? f(n - 1) + room[0] : 0; }
        int main(int c, char **v) { (void)v; return f(c); }";
    let split = builds.build("split", deep, &["-fsplit-stack"]);
    let report = diff(&split, &split);
    assert!(report.findings.iter().any(|f| f.code == Code::ForeignRuntime), "{:?}", report.findings);
}
