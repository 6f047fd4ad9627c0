//! Which changed numbers are line numbers, and which only look like one.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{ChangeKind, Options, Report};

struct Builds(tempfile::TempDir);

impl Builds {
    fn new() -> Builds {
        Builds(tempfile::tempdir().unwrap())
    }

    fn build(&self, name: &str, file: &str, compiler: &[&str], source: &str) -> PathBuf {
        let folder = self.0.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(file), source).unwrap();
        let mut command = Command::new(compiler[0]);
        command.args(&compiler[1..]).args([file, "-o", "program"]).current_dir(&folder);
        assert!(command.status().unwrap().success());
        folder.join("program")
    }

    fn gcc(&self, name: &str, source: &str) -> PathBuf {
        self.build(name, "part.c", &["gcc", "-O2", "-g", "-fno-inline"], source)
    }

    fn rustc(&self, name: &str, source: &str) -> PathBuf {
        self.build(name, "part.rs", &["rustc", "--edition=2021", "-O", "-g"], source)
    }
}

/// How each function of the program differs: its name without mangling, and the kind.
fn kinds(old: &Path, new: &Path) -> Vec<(String, ChangeKind)> {
    let report: Report = hp_diff::diff(old, new, &Options::default()).unwrap();
    report.changes.iter().map(|c| (c.name.clone(), c.kind)).collect()
}

fn kind_of(all: &[(String, ChangeKind)], name: &str) -> Option<ChangeKind> {
    all.iter().find(|(n, _)| n.contains(name)).map(|(_, kind)| *kind)
}

const HEAD: &str = "#include <stdio.h>\n#include <stdlib.h>\n#include <assert.h>\n\
    __attribute__((noinline)) void limit(int n) { printf(\"%d\\n\", n); }\n\
    __attribute__((noinline)) void report(const char *file, int line, int more) { printf(\"%s:%d %d\\n\", file, line, more); }\n\
    __attribute__((noinline)) int corrupt(int line) { fprintf(stderr, \"damaged, line %d\\n\", line); return 11; }\n";

fn at_line(line: usize, text: &str) -> String {
    let blank = line - HEAD.lines().count() - 1;
    format!("{HEAD}{}{text}", "\n".repeat(blank))
}

#[test]
fn a_corrected_bound_is_no_line_however_near_it_lies() {
    let builds = Builds::new();
    for (line, bound) in [(60, 64), (64, 64), (30, 64)] {
        let program = |line: usize, bound: u32| {
            at_line(line, &format!("void user(void) {{ limit({bound}); }}\nint main(void) {{ user(); return 0; }}\n"))
        };
        let old = builds.gcc(&format!("old{line}"), &program(line, bound));
        let new = builds.gcc(&format!("new{line}"), &program(line + 1, bound + 1));
        assert_eq!(kind_of(&kinds(&old, &new), "user"), Some(ChangeKind::Changed), "bound {bound} at line {line}");
    }
}

#[test]
fn a_bound_beside_the_line_is_no_line() {
    let builds = Builds::new();
    let program = |line: usize, bound: u32| {
        at_line(
            line,
            &format!(
                "void user(void) {{ report(__FILE__, __LINE__, {bound}); }}\nint main(void) {{ user(); return 0; }}\n"
            ),
        )
    };
    let old = builds.gcc("old", &program(60, 64));
    let moved = builds.gcc("moved", &program(61, 64));
    let bound = builds.gcc("bound", &program(61, 65));
    assert_eq!(kind_of(&kinds(&old, &moved), "user"), Some(ChangeKind::LineOnly));
    assert_eq!(kind_of(&kinds(&old, &bound), "user"), Some(ChangeKind::Changed));
}

#[test]
fn assertions_and_logs_move_with_their_lines() {
    let builds = Builds::new();
    let program = |line: usize| {
        at_line(
            line,
            "int checked(int x) { assert(x > 3); return x * 2; }\n\
             int logged(int x) {\n    report(\n        __FILE__, __LINE__,\n        7);\n    return x;\n}\n\
             int main(int argc, char **argv) { return checked(argc + 9) + logged(argc) + (argv == 0); }\n",
        )
    };
    let all = kinds(&builds.gcc("old", &program(40)), &builds.gcc("new", &program(43)));
    assert_eq!(kind_of(&all, "checked"), Some(ChangeKind::LineOnly), "{all:?}");
    assert_eq!(kind_of(&all, "logged"), Some(ChangeKind::LineOnly), "{all:?}");
}

/// `fprintf` of a fortified C library is inlined, so that its instructions have a line of its header.
#[test]
fn the_line_of_a_call_that_was_inlined_and_of_one_through_a_pointer() {
    let builds = Builds::new();
    let program = |line: usize, bound: u32| {
        at_line(
            line,
            &format!(
                "void (*volatile hook)(const char *, int, int) = report;\n\
                 int printed(int x) {{ if (x > 3) fprintf(stderr, \"%s:%d: too many\", __FILE__, __LINE__); return x; }}\n\
                 int hooked(int x) {{ hook(__FILE__, __LINE__, x); return x; }}\n\
                 int bounded(int x) {{ if (x > 3) fprintf(stderr, \"%d is too many\", {bound}); return x; }}\n\
                 int main(int argc, char **argv) {{ return printed(argc) + hooked(argc) + bounded(argc) + (argv == 0); }}\n"
            ),
        )
    };
    let gcc =
        |name: &str, source: &str| builds.build(name, "part.c", &["gcc", "-O2", "-g", "-D_FORTIFY_SOURCE=2"], source);
    // The bound is the line of its call, in both builds, but no name of a file stands beside it.
    let all = kinds(&gcc("old", &program(40, 43)), &gcc("new", &program(42, 45)));
    assert_eq!(kind_of(&all, "printed"), Some(ChangeKind::LineOnly), "{all:?}");
    assert_eq!(kind_of(&all, "hooked"), Some(ChangeKind::LineOnly), "{all:?}");
    assert_eq!(kind_of(&all, "bounded"), Some(ChangeKind::Changed), "{all:?}");
}

#[test]
fn lines_of_calls_at_the_end_of_formats_and_beside_other_calls() {
    let builds = Builds::new();
    let program = |line: usize, bound: u32| {
        at_line(
            line,
            &format!(
                "void (*volatile hook)(const char *, const char *, int, int) = 0; int close(int); int (*volatile pass)(int);\n\
                 __attribute__((noinline)) void note(int code, const char *format, ...) {{ printf(format, code); }}\n\
                 __attribute__((noinline)) void other(int code, const char *format, ...) {{ puts(format); limit(code); }}\n\
                 int last(int x) {{ if (x > 3) hook(\"%s:%d\", __FILE__, __LINE__, x); return x; }}\n\
                 int format(int x) {{ if (x > 3) note(7, \"cannot open file at line %d of [%s]\", __LINE__, \"x\"); return x; }}\n\
                 int named(int x) {{ if (x > 3) note(7, \"os.c:%d: (%d)\", __LINE__, x); return x; }}\n\
                 int checked(int x) {{ if (x > 3) note(1, \"%s:%d: %s\", __FILE__, __LINE__, \"x\"); close(x); close(x + 1); return x; }}\n\
                 int plain(int x) {{ if (x > 3) other(7, \"more than %d of %s\", {bound}, \"x\"); return x; }}\n\
                 int passed(int x) {{ pass = plain; return x > 3 ? pass({bound}) : 1; }}\n\
                 int many(int x) {{ for (int i = 0; i < x; i++) {{ if (close(i)) report(__FILE__, __LINE__, i); if (close(x)) report(__FILE__, __LINE__, x); }} return x; }}\n\
                 int main(int argc, char **argv) {{ return last(argc) + format(argc) + named(argc) + checked(argc) + plain(argc) + passed(argc) + many(argc) + (argv == 0); }}\n"
            ),
        )
    };
    // The bound is the line of its call.
    let all = kinds(&builds.gcc("old", &program(40, 47)), &builds.gcc("new", &program(42, 49)));
    for name in ["last", "format", "named", "checked", "many"] {
        assert_eq!(kind_of(&all, name), Some(ChangeKind::LineOnly), "{name}: {all:?}");
    }
    assert_eq!(kind_of(&all, "plain"), Some(ChangeKind::Changed), "{all:?}");
    let bound = kinds(&builds.gcc("before", &program(40, 48)), &builds.gcc("after", &program(42, 50)));
    assert_eq!(kind_of(&bound, "passed"), Some(ChangeKind::Changed), "{bound:?}");
}

#[test]
fn a_function_that_is_always_given_its_line_takes_lines() {
    let builds = Builds::new();
    let program = |line: usize, users: usize| {
        let users: Vec<String> =
            (0..users).map(|n| format!("int user{n}(int x) {{ return x > {n} ? corrupt(__LINE__) : x; }}\n")).collect();
        at_line(
            line,
            &format!("{}int main(int argc, char **argv) {{ return user0(argc) + (argv == 0); }}\n", users.concat()),
        )
    };
    let all = kinds(&builds.gcc("old", &program(40, 5)), &builds.gcc("new", &program(42, 5)));
    for n in 0..5 {
        assert_eq!(kind_of(&all, &format!("user{n}")), Some(ChangeKind::LineOnly), "{all:?}");
    }
    let few = kinds(&builds.gcc("few", &program(40, 2)), &builds.gcc("later", &program(42, 2)));
    assert_eq!(kind_of(&few, "user0"), Some(ChangeKind::Changed), "two calls show nothing: {few:?}");
}

/// Three reports whose calls the compiler makes one of, so that each number comes to it by a jump.
fn merged(line: usize, bound: u32) -> String {
    let text = "__attribute__((noinline)) void full(const char *file, const char *function, int line, int a, int b) {\n\
            printf(\"%s:%s:%d %d\\n\", file, function, line, a + b); }\n\
        int merged(int x, int y) {\n\
            if (x > 3) {\n\
                if (puts(\"big\") < 0)\n    full(__FILE__, __func__, __LINE__, y, 2);\n\
                else if (puts(\"still\") < 0)\n    full(__FILE__, __func__, __LINE__, x, 2);\n\
                else if (y > 9)\n    full(__FILE__, __func__, __LINE__, BOUND, 2);\n\
                return 1;\n\
            }\n\
            return 0;\n\
        }\n\
        int main(int argc, char **argv) { return merged(argc, argv == 0); }\n";
    at_line(line, &text.replace("BOUND", &bound.to_string()))
}

#[test]
fn lines_come_to_a_call_that_several_places_share() {
    let builds = Builds::new();
    let small = |name: &str, line, bound| {
        builds.build(name, "part.c", &["gcc", "-Os", "-g", "-fno-inline"], &merged(line, bound))
    };
    let old = small("old", 60, 70);
    assert_eq!(kind_of(&kinds(&old, &small("moved", 63, 70)), "merged"), Some(ChangeKind::LineOnly));
    assert_eq!(kind_of(&kinds(&old, &small("bound", 63, 73)), "merged"), Some(ChangeKind::Changed));
}

const RUST: &str = "use std::collections::HashMap;\n\
    #[inline(never)]\npub fn at(all: &[u32], n: usize) -> u32 {\n    all[n] + 1\n}\n\
    #[inline(never)]\npub fn first(text: &str) -> u32 {\n    text.chars()\n        .next()\n        .unwrap() as u32\n}\n\
    #[inline(never)]\npub fn small(n: u32) -> u32 {\n    assert!(n < 77, \"too much\");\n    n * LIMIT\n}\n\
    fn main() {\n    let n = std::env::args().count();\n    let mut m = HashMap::new();\n    m.insert(n, n);\n    \
    println!(\"{} {} {} {}\", at(&[1, 2, 3], n), first(&std::env::args().next().unwrap()), small(n as u32), m[&1]);\n}\n";

#[test]
fn panics_of_rust_move_with_their_lines() {
    let builds = Builds::new();
    let source = RUST.replace("LIMIT", "5");
    let old = builds.rustc("old", &source);
    let all = kinds(&old, &builds.rustc("moved", &source.replacen("#[inline", "\n\n\n#[inline", 1)));
    for name in ["2at", "5small", "4main"] {
        assert_eq!(kind_of(&all, name), Some(ChangeKind::LineOnly), "{name}: {all:?}");
    }
    let edited = RUST.replace("LIMIT", "6").replacen("#[inline", "\n\n\n#[inline", 1);
    let all = kinds(&old, &builds.rustc("edited", &edited));
    assert_eq!(kind_of(&all, "5small"), Some(ChangeKind::Changed), "{all:?}");
    assert_eq!(kind_of(&all, "2at"), Some(ChangeKind::LineOnly), "{all:?}");
}

#[test]
fn a_panic_in_code_that_was_inlined_has_the_line_of_its_call() {
    let builds = Builds::new();
    let source = RUST.replace("LIMIT", "5");
    let old = builds.rustc("old", &source);
    let all = kinds(&old, &builds.rustc("moved", &source.replacen("#[inline", "\n\n\n#[inline", 1)));
    assert_eq!(kind_of(&all, "5first"), Some(ChangeKind::LineOnly), "{all:?}");
}
