//! What compilers, linkers and edits do to symbols and data: each row is one pair of builds and what must come of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{ChangeKind, Level, Options};

/// Sources are built with `OLD` or `NEW` defined.
struct Row {
    name: &'static str,
    files: &'static [&'static str],
    /// Flags for gcc.
    old: &'static [&'static str],
    new: &'static [&'static str],
    expected: Expected,
}

#[derive(Debug, PartialEq, Eq)]
enum Expected {
    /// Equivalent: exit code 3.
    Nothing,
    /// A patch that replaces exactly these functions.
    Replaces(&'static [&'static str]),
    /// Exactly these errors, as `CODE SUBJECT`.
    Refused(&'static [&'static str]),
}

use Expected::{Nothing, Refused, Replaces};

const USER: &str = r#"
int shared = 3;
extern int other(int);
__attribute__((noipa)) int mine(int n) { static int calls; return n + shared + ++calls; }
int main(int argc, char **argv) { return mine(argc) + other(argc); }
"#;
const USED: &str = r#"
static int calls = 7;
__attribute__((noipa)) int other(int n) { return n * 5 + calls++; }
"#;

const ROWS: &[Row] = &[
    Row {
        name: "the same files linked in another order",
        files: &[USER, USED],
        old: &["0.c", "1.c"],
        new: &["1.c", "0.c"],
        expected: Nothing,
    },
    Row {
        name: "assertions in another directory, mapped away",
        files: &[r#"#include <assert.h>
            int main(int argc, char **argv) { assert(argc < 9); return 0; }"#],
        old: &["0.c"],
        new: &["elsewhere/../0.c", "-ffile-prefix-map=elsewhere/../=", "-fmacro-prefix-map=elsewhere/../="],
        expected: Nothing,
    },
    Row {
        name: "a date that an expression contains",
        files: &[r#"#include <stdio.h>
            __attribute__((noipa)) void version(void) { puts(STAMP); }
            int main(void) { version(); return 0; }"#],
        old: &["0.c", "-DSTAMP=\"Jan  1 2026\""],
        new: &["0.c", "-DSTAMP=\"Jan  2 2026\""],
        expected: Replaces(&["version"]),
    },
    Row {
        name: "a static local removed",
        files: &[r#"
            __attribute__((noipa)) int a(int n) { static int x = 1; return n + x++; }
            __attribute__((noipa)) int b(int n) {
            #ifdef OLD
                static int x = 2; return n + x++;
            #else
                return n + 2;
            #endif
            }
            __attribute__((noipa)) int c(int n) { static int x = 3; return n * x++; }
            int main(int argc, char **argv) { return a(argc) + b(argc) + c(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["b"]),
    },
    Row {
        name: "a writable structure with another string in it",
        files: &[r#"
            struct option { const char *name; int value; };
            #ifdef OLD
            static struct option options[] = {{"alpha", 1}, {"beta", 2}};
            #else
            static struct option options[] = {{"alpha", 1}, {"gamma", 2}};
            #endif
            __attribute__((noipa)) const char *name(int i) { return options[i & 1].name; }
            int main(int argc, char **argv) { options[0].value = argc; return *name(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0305 options"]),
    },
    Row {
        name: "a constant structure with another string in it",
        files: &[r#"
            struct option { const char *name; int value; };
            #ifdef OLD
            static const struct option options[] = {{"alpha", 1}, {"beta", 2}};
            #else
            static const struct option options[] = {{"alpha", 1}, {"gamma", 2}};
            #endif
            __attribute__((noipa)) const char *name(int i) { return options[i & 1].name; }
            __attribute__((noipa)) int value(int i) { return options[i & 1].value; }
            __attribute__((noipa)) int none(int i) { return i; }
            int main(int argc, char **argv) { return *name(argc) + value(argc) + none(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["name", "value"]),
    },
    Row {
        name: "a changed constant whose address live pointers are compared with",
        files: &[r#"
            struct kind { const char *name; int cost; };
            #ifdef OLD
            static const struct kind kinds[] = {{"small", 1}, {"large", 2}};
            #else
            static const struct kind kinds[] = {{"small", 1}, {"large", 3}};
            #endif
            static const struct kind *current;
            __attribute__((noipa)) void choose(int i) { current = &kinds[i & 1]; }
            __attribute__((noipa)) int is_small(void) { return current == &kinds[0]; }
            int main(int argc, char **argv) { choose(argc); return is_small(); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0304 kinds"]),
    },
    Row {
        name: "a changed constant that is only walked over",
        files: &[r#"
            #include <string.h>
            struct kind { const char *name; int cost; };
            #ifdef OLD
            static const struct kind kinds[] = {{"small", 1}, {"medium", 2}, {"large", 3}, {"huge", 4}, {"whole", 5}};
            #else
            static const struct kind kinds[] = {{"small", 1}, {"medium", 2}, {"large", 3}, {"huge", 6}, {"whole", 7}};
            #endif
            __attribute__((noipa)) int cost(const char *name) {
                for (const struct kind *k = kinds; k < kinds + 5; k++)
                    if (!strcmp(k->name, name)) return k->cost;
                return -1;
            }
            __attribute__((noipa)) int last(int n) { return n * 77 + 5; }
            int main(int argc, char **argv) { return cost(argv[0]); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["cost"]),
    },
    Row {
        name: "an array of another size",
        files: &[r#"
            #include <string.h>
            #ifdef OLD
            static char name[64];
            #else
            static char name[128];
            #endif
            __attribute__((noipa)) void set(const char *s) { strncpy(name, s, sizeof name - 1); }
            int main(int argc, char **argv) { set(argv[0]); return name[0]; }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0305 name"]),
    },
    Row {
        name: "a constructor that came",
        files: &[r#"
            static int start;
            #ifdef NEW
            __attribute__((constructor)) static void begin(void) { start = 5; }
            #endif
            __attribute__((noipa)) int now(int n) { return n + start; }
            int main(int argc, char **argv) { start = argc; return now(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0307 .init_array"]),
    },
    Row {
        name: "one more entry in a section that the program walks",
        files: &[r#"
            typedef int (*test)(int);
            extern const test __start_tests[], __stop_tests[];
            static int one(int n) { return n; }
            static const test t1 __attribute__((section("tests"), used)) = one;
            #ifdef NEW
            static int two(int n) { return 2 * n; }
            static const test t2 __attribute__((section("tests"), used)) = two;
            #endif
            int main(int argc, char **argv) {
                int sum = 0;
                for (const test *t = __start_tests; t < __stop_tests; t++) sum += (*t)(argc);
                return sum;
            }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0311 tests"]),
    },
    Row {
        name: "two names of one function that are two functions now",
        files: &[r#"
            __attribute__((noipa)) int f(int n) { return n + 1; }
            #ifdef OLD
            int g(int n) __attribute__((alias("f")));
            #else
            __attribute__((noipa)) int g(int n) { return n + 2; }
            #endif
            int main(int argc, char **argv) { return f(argc) + g(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0209 g"]),
    },
    Row {
        name: "a function that became static, with a static local of its own",
        files: &[r#"
            #ifdef NEW
            static
            #endif
            __attribute__((noipa)) int next(int n) { static int calls; return n + ++calls; }
            __attribute__((noipa)) int use(int n) {
            #ifdef NEW
                if (n > 100) return 0;
            #endif
                return next(n);
            }
            __attribute__((noipa)) int last(int n) { return n * 77 + 5; }
            int main(int argc, char **argv) { return use(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["use"]),
    },
    Row {
        name: "a variable in another section",
        files: &[r#"
            #ifdef NEW
            __attribute__((section("elsewhere")))
            #endif
            int limit = 4;
            __attribute__((noipa)) int over(int n) {
            #ifdef NEW
                if (n < 0) return 1;
            #endif
                return n > limit;
            }
            int main(int argc, char **argv) { limit += argc; return over(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["over"]),
    },
    Row {
        name: "a variable that became thread-local",
        files: &[r#"
            #ifdef NEW
            __thread
            #endif
            int state = 3;
            __attribute__((noipa)) int next(int n) { return state += n; }
            int main(int argc, char **argv) { return next(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0306 next"]),
    },
    Row {
        name: "a variable that may have another name now",
        files: &[r#"
            #ifdef NEW
            static int total = 1;
            __attribute__((noipa)) int next(void) { return total += 2; }
            #else
            static int count = 1;
            __attribute__((noipa)) int next(void) { return ++count; }
            #endif
            int main(int argc, char **argv) { return next(); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0312 total"]),
    },
    Row {
        name: "a variable of one function went and one of another function came",
        files: &[r#"
            __attribute__((noipa)) int a(int n) {
            #ifdef OLD
                static int seen; return n + ++seen;
            #else
                return n + 1;
            #endif
            }
            __attribute__((noipa)) int b(int n) {
            #ifdef NEW
                static int kept; return n + ++kept;
            #else
                return n + 1;
            #endif
            }
            __attribute__((noipa)) int last(int n) { return n * 77 + 5; }
            int main(int argc, char **argv) { return a(argc) + b(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["a", "b"]),
    },
    Row {
        name: "functions made equal and folded by the compiler",
        files: &[r#"
            __attribute__((noinline)) static int f(int n) { return n * 7 + 1; }
            __attribute__((noinline)) static int g(int n) {
            #ifdef OLD
                return n * 7 + 2;
            #else
                return n * 7 + 1;
            #endif
            }
            __attribute__((noipa)) int call(int n) { return f(n) ^ g(n + 2); }
            int main(int argc, char **argv) { return call(argc); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["call"]),
    },
    Row {
        name: "numbers of enumerators that moved",
        files: &[r#"
            #ifdef OLD
            enum state { IDLE, BUSY, DONE };
            #else
            enum state { IDLE, WAITING, BUSY, DONE };
            #endif
            enum state current;
            __attribute__((noipa)) int done(void) { return current == DONE; }
            int main(int argc, char **argv) { current = argc; return done(); }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Refused(&["HP0401 state"]),
    },
    Row {
        name: "an enumerator that came at the end",
        files: &[r#"
            #ifdef OLD
            enum state { IDLE, BUSY };
            #else
            enum state { IDLE, BUSY, LOST };
            #endif
            enum state current;
            __attribute__((noipa)) void lose(void) {
            #ifdef NEW
                current = LOST;
            #else
                current = IDLE;
            #endif
            }
            int main(int argc, char **argv) { current = argc; lose(); return current; }"#],
        old: &["0.c"],
        new: &["0.c"],
        expected: Replaces(&["lose"]),
    },
];

fn build(directory: &Path, row: &Row, side: &str, flags: &[&str]) -> PathBuf {
    let program = directory.join(format!("program.{side}"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-Wl,--build-id"]).arg(format!("-D{side}")).args(flags).arg("-o").arg(&program);
    assert!(gcc.current_dir(directory).status().unwrap().success(), "{}: gcc failed", row.name);
    program
}

/// What came of a row, in the words of [`Expected`].
fn outcome(row: &Row) -> String {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("elsewhere")).unwrap();
    for (i, text) in row.files.iter().enumerate() {
        std::fs::write(directory.path().join(format!("{i}.c")), text).unwrap();
    }
    let old = build(directory.path(), row, "OLD", row.old);
    let new = build(directory.path(), row, "NEW", row.new);
    let report = hp_diff::diff(&old, &new, &Options::default()).unwrap();
    let errors: BTreeSet<String> = report
        .findings
        .iter()
        .filter(|f| f.level == Level::Error)
        .map(|f| format!("{} {}", f.code, f.subject))
        .collect();
    let changed = report.changes.iter().filter(|c| c.kind == ChangeKind::Changed);
    let replaced: Vec<&str> = changed.map(|c| c.name.as_str()).collect();
    match (&report.patch, errors.is_empty()) {
        (Some(_), true) => format!("Replaces({replaced:?})"),
        (None, true) => "Nothing".into(),
        (_, false) => format!("Refused({:?})", errors.into_iter().collect::<Vec<_>>()),
    }
}

#[test]
fn every_row_comes_out_as_it_must() {
    let differing: Vec<String> = ROWS
        .iter()
        .map(|row| (row, outcome(row)))
        .filter(|(row, outcome)| *outcome != format!("{:?}", row.expected))
        .map(|(row, outcome)| format!("{}: {outcome}, not {:?}", row.name, row.expected))
        .collect();
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
