//! Stripped equals unstripped: what is found between two builds without any symbol is what is found with them,
//! function by function and by address, or a finding says that it could not be proven.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hp_diff::{ChangeKind, Code, Evidence, Level, Options, Report};

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn compile(room: &Path, name: &str, source: &str, flags: &str) -> PathBuf {
    let folder = room.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let (file, program) = (folder.join("program.c"), folder.join("program"));
    std::fs::write(&file, source).unwrap();
    run(Command::new("gcc").args(flags.split_whitespace()).arg(&file).arg("-o").arg(&program));
    program
}

fn diff(old: &Path, new: &Path) -> Report {
    // What differs in line numbers alone cannot be told without line tables.
    hp_diff::diff(old, new, &Options { exact_lines: true, ..Options::default() }).unwrap()
}

fn stripped(program: &Path) -> PathBuf {
    let to = program.with_extension("stripped");
    run(Command::new("strip").arg("-s").arg(program).arg("-o").arg(&to));
    to
}

/// Old addresses of the changed functions.
fn changed(report: &Report) -> BTreeSet<u64> {
    report.changes.iter().filter(|c| c.kind == ChangeKind::Changed).map(|c| c.old_address).collect()
}

/// Without symbols, a fragment that never comes back counts as a function of its own. Gives the address of the
/// function that it belongs to, by the names of the whole build.
fn parent(program: &Path, address: u64) -> u64 {
    let names = Command::new("nm").arg(program).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    let symbols: Vec<(u64, &str)> = names
        .lines()
        .filter_map(|l| Some((u64::from_str_radix(l.split(' ').next()?, 16).ok()?, l.rsplit(' ').next()?)))
        .collect();
    let body = symbols.iter().filter(|s| s.0 == address).find_map(|s| s.1.strip_suffix(".cold"));
    symbols.iter().find(|s| Some(s.1) == body).map_or(address, |s| s.0)
}

/// A finding says that something could not be proven, beside the layouts.
fn doubts(report: &Report) -> bool {
    report.findings.iter().any(|f| f.level == Level::Error && f.code != Code::LayoutUnproven)
}

/// How much of one pair, or of several, is decided.
#[derive(Clone, Copy, Default)]
struct Decided {
    /// Pairs of which nothing is in doubt.
    pairs: usize,
    /// Functions that no finding names.
    functions: usize,
    all_functions: usize,
}

impl Decided {
    fn add(&mut self, other: Decided) {
        self.pairs += other.pairs;
        self.functions += other.functions;
        self.all_functions += other.all_functions;
    }

    #[track_caller]
    fn are_enough(&self, what: &str, all: usize, percent: usize) {
        println!("{what}: {} of {all}, functions: {} of {}", self.pairs, self.functions, self.all_functions);
        assert!(self.pairs * 100 >= all * percent, "only {} of {all} {what} were decided without symbols", self.pairs);
        let (decided, all) = (self.functions, self.all_functions);
        assert!(decided * 100 >= all * 95, "only {decided} of {all} functions in {what} were decided without symbols");
    }
}

/// Compares a pair with and without symbols.
#[track_caller]
fn same_or_doubted(what: &str, old: &Path, new: &Path) -> Decided {
    let whole = diff(old, new);
    let bare = diff(&stripped(old), &stripped(new));
    assert!(bare.evidence.iter().all(|e| !e.contains_key(&Evidence::SymbolTable)), "{what}: {:?}", bare.evidence);
    let same = changed(&whole) == changed(&bare).into_iter().map(|a| parent(old, a)).collect();
    assert!(same || doubts(&bare), "{what}: {:?} with symbols, {:?} without", whole.changes, bare.changes);
    if std::env::var_os("SHOW").is_some() && doubts(&bare) {
        println!("{what}: {:#?}", bare.findings);
    }
    let unproven = [Code::PairingUnproven, Code::UnknownReference, Code::AmbiguousReference];
    let doubted: BTreeSet<&str> =
        bare.findings.iter().filter(|f| unproven.contains(&f.code)).map(|f| f.subject.as_str()).collect();
    let all_functions = bare.identical + bare.changes.iter().filter(|c| c.kind != ChangeKind::Added).count();
    Decided {
        pairs: usize::from(same && !doubts(&bare)),
        functions: all_functions - doubted.len().min(all_functions),
        all_functions,
    }
}

/// `get` reads another variable, and nothing else says which is which.
#[test]
fn another_variable_of_the_same_shape_is_never_explained_away() {
    let room = tempfile::tempdir().unwrap();
    let whole = |used: &str, setter: &str| {
        format!(
            "#include <stdlib.h>
            #include <stdio.h>
            static volatile int a, b;
            static __attribute__((noinline, noclone)) int get(void) {{ return {used}; }}
            {setter}
            int main(int c, char **v) {{ set(c, atoi(v[0])); return printf(\"%d\\n\", get()); }}"
        )
    };
    let both = "static __attribute__((noinline)) void set(int x, int y) { a = x; b = y; }";
    let other =
        "static __attribute__((noinline)) void set(int x, int y) { if (x > 7) b = y; a = x + y; puts(\"set\"); }";
    let apart = "static __attribute__((noinline)) void one(int x) { a = x; }
        static __attribute__((noinline)) void two(int x) { b = x; }
        static __attribute__((noinline)) void set(int x, int y) { one(x); two(y); }";
    let alone = "static __attribute__((noinline)) void set(int x, int y) { printf(\"%d\\n\", x + y); }";
    for (name, setter, new_setter) in [
        ("main is unchanged", both, both),
        ("the other user changed too", both, other),
        ("the other user changed too, reversed", other, both),
        ("setters of the same shape", apart, apart),
        ("setters of the same shape, gone", apart, both),
        ("initialised only", alone, alone),
    ] {
        for flags in ["-O2", "-O0", "-O2 -no-pie -fno-pie"] {
            let file = |side: &str| format!("{side}-{}-{}", name.replace([' ', ','], "-"), flags.replace(' ', ""));
            let old = compile(room.path(), &file("old"), &whole("a", setter), flags);
            let new = compile(room.path(), &file("new"), &whole("b", new_setter), flags);
            let whole = diff(&old, &new);
            let get = whole.changes.iter().find(|c| c.name == "get").expect("with symbols it is found");
            let bare = diff(&stripped(&old), &stripped(&new));
            // In the last case nothing ever writes either variable: calling `b` `a` is no change.
            assert!(
                name == "initialised only" || changed(&bare).contains(&get.old_address) || doubts(&bare),
                "{name} {flags}: {:?} {:?}",
                bare.changes,
                bare.findings
            );
        }
    }
}

/// Two thread-local variables changed places: threads that run have the old ones.
#[test]
fn thread_local_variables_that_moved_are_seen() {
    let room = tempfile::tempdir().unwrap();
    let whole = |order: &str| {
        format!(
            "#include <stdio.h>
            static __thread long {order};
            __attribute__((noipa)) void one(int n) {{ a += n; }}
            __attribute__((noipa)) void two(int n) {{ b += 3 * n; }}
            int main(int c, char **v) {{ one(c); two(c); return printf(\"%ld %ld\\n\", a, b); }}"
        )
    };
    for flags in ["-O2", "-O2 -no-pie -fno-pie", "-O2 -fPIC -shared"] {
        let name = |side: &str| format!("{side}-{}", flags.replace(' ', ""));
        let old = compile(room.path(), &name("old"), &whole("a = 0, b = 0"), flags);
        let new = compile(room.path(), &name("new"), &whole("b = 0, a = 0"), flags);
        assert!(changed(&diff(&old, &new)).len() >= 2, "{flags}: they changed places");
        let bare = diff(&stripped(&old), &stripped(&new));
        assert!(doubts(&bare), "{flags}: {:?} {:?}", bare.changes, bare.findings);
    }
}

/// A program with what a compiler moves and merges.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define APART static __attribute__((noinline, noclone))
APART int twice(int x) { return 2 * x; }
APART int next(int x) { static int calls; return x + ++calls; }
APART int last(int x) { static int calls = 7; return x - ++calls; }
static int (*const table[])(int) = {twice, next, last};
APART __attribute__((cold)) void fail(const char *why) { fprintf(stderr, "%s\n", why); abort(); }
APART const char *word(int n) {
    if (__builtin_expect(n > 99, 0)) fail("too large");
    switch (n) {
    case 0: return "zero"; case 1: return "one"; case 2: return "two"; case 3: return "three";
    case 4: return "four"; case 5: abort(); case 6: puts("six"); return "six"; case 7: return getenv("SEVEN");
    }
    return "many";
}
APART int walk(const char *text) {
    int sum = 0;
    for (; *text; text++) {
        if (__builtin_expect(*text == '#', 0)) { fprintf(stderr, "comment %d\n", sum); if (sum > 1000) fail(text); sum ^= 7; }
        sum = sum * 31 + *text;
    }
    return sum;
}
int main(int argc, char **argv) {
    for (unsigned i = 0; i < 3; i++) printf("%d %s %d\n", table[i](argc), word(argc + i), walk(argv[0]));
    return 0;
}
"#;

/// The function uses a table, and another object begins where that ends: in each build another one. Where it only compares the
/// address, the end is meant, and nothing changed.
#[test]
fn another_object_behind_a_table_is_no_end_of_the_table() {
    let room = tempfile::tempdir().unwrap();
    let whole = |order: &str, used: &str| {
        format!(
            "#include <stdio.h>
            #include <stdlib.h>
            #define APART __attribute__((noipa)) static
            struct kind {{ char name[32]; }};
            static long sizes[4] = {{7, 11, 13, 17}};
            {order}
            APART struct kind *same(struct kind *k) {{ return k; }}
            APART struct kind *kind(int n) {{ sizes[n]++; return same({used}); }}
            APART long all(void) {{ long n = 0; for (long *p = sizes; p != sizes + 4; p++) {{ n += *p; asm volatile(\"\" : \"+r\"(p)); }} return n; }}
            APART void fill(char *one, char *two) {{ one[0] = 'c'; two[0] = 's'; puts(one); puts(two); }}
            int main(int c, char **v) {{ fill(circle.name, square.name); printf(\"%s %ld\\n\", kind(c % 4)->name, all()); }}"
        )
    };
    let (circle, square) = ("static struct kind circle = {\"c\"};", "static struct kind square = {\"s\"};");
    for flags in ["-O2 -fno-toplevel-reorder", "-O2 -fno-toplevel-reorder -no-pie -fno-pie"] {
        let build = |side: &str, order: String, used| {
            compile(room.path(), &format!("{side}-{}", flags.replace(' ', "")), &whole(&order, used), flags)
        };
        let old = build("old", format!("{circle} {square}"), "&circle");
        let new = build("new", format!("{square} {circle}"), "&square");
        let named = |report: &Report| {
            let changed = report.changes.iter().filter(|c| c.kind == ChangeKind::Changed);
            changed.map(|c| c.name.clone()).collect::<Vec<_>>()
        };
        let whole = diff(&old, &new);
        assert_eq!(named(&whole), ["kind"], "{flags}");
        let at = whole.changes.iter().find(|c| c.name == "kind").map(|c| c.old_address);
        let bare = diff(&stripped(&old), &stripped(&new));
        assert!(at.is_some_and(|at| changed(&bare).contains(&at)), "{flags}: {:?}", bare.changes);
    }
}

#[test]
fn edits_are_found_without_symbols() {
    let room = tempfile::tempdir().unwrap();
    let edits = [
        ("constant", "sum * 31", "sum * 33"),
        ("cold", "sum ^= 7", "sum ^= 9"),
        ("string", "\"three\"", "\"THREE\""),
        ("case", "case 5: abort();", "case 5: exit(3);"),
        ("callee", "return 2 * x", "return 5 * x"),
        ("callee-cold", "too large", "much too large"),
        (
            "inserted",
            "APART int next",
            "__attribute__((noinline, used)) int extra(int x) { static int calls; return puts(\"extra\") + ++calls * x; }\nAPART int next",
        ),
        ("import", "case 5: abort();", "case 5: return ctermid(0);"),
    ];
    let mut decided = Decided::default();
    let mut count = 0;
    for flags in ["-O2", "-O1", "-O0", "-Os", "-O3 -fcf-protection -fstack-protector-strong", "-O2 -no-pie -fno-pie"] {
        let name = |n: &str| format!("{n}{}", flags.replace(' ', ""));
        let old = compile(room.path(), &name("old"), PROGRAM, flags);
        let report = diff(&stripped(&old), &stripped(&old));
        assert!(report.changes.is_empty() && !doubts(&report), "{flags}: {:?} {:?}", report.changes, report.findings);
        for (edit, from, to) in edits {
            assert!(PROGRAM.contains(from));
            let new = compile(room.path(), &name(edit), &PROGRAM.replace(from, to), flags);
            count += 1;
            decided.add(same_or_doubted(&format!("{edit} {flags}"), &old, &new));
        }
    }
    decided.are_enough("edits", count, 95);
}

/// Code that a compiler moves away because it never returns: entered at several places, or on a condition at its start
/// only. And functions of the same shape that nothing refers to: what they call tells them apart.
const APART: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#define WHOLE __attribute__((noinline, noclone, used))
static __attribute__((noinline, cold)) void report(int level, const char *text) { if (level > 2) { puts(text); exit(level); } }
static int depth;
WHOLE static int check(const int *p, int n) {
    if (__builtin_expect(p == 0, 0)) { report(5, "no memory"); __builtin_unreachable(); }
    if (__builtin_expect(n > 9, 0)) { report(6, "too many"); __builtin_unreachable(); }
    return p[n] + depth;
}
WHOLE static int known(int kind, int a, int b) {
    switch (kind) {
    case 1: return a + b;
    case 2: return a - b;
    case 3: return a * b;
    case 4: return printf("%d", a);
    case 7: return a ^ b;
    }
    report(7, "unknown kind"); __builtin_unreachable();
}
WHOLE static int enter(int n) { return depth += n; }
WHOLE static int leave(int n) { return depth -= n; }
WHOLE static void enter_one(void) { if (depth) enter(1); }
WHOLE static void leave_one(void) { if (depth) leave(1); }
WHOLE static int edited(int x) { return x * 3 + printf("%d", x); }
int main(int argc, char **argv) {
    return check(&argc, argc - 1) + known(argc, 1, 2) + enter(argc) + leave(argc) + edited(argc);
}
"#;

#[test]
fn what_never_returns_is_a_part_of_its_function_without_symbols() {
    let room = tempfile::tempdir().unwrap();
    let edits = [
        ("body", "x * 3", "x * 5"),
        ("check", "p[n] + depth", "p[n] - depth"),
        ("check-cold", "\"too many\"", "\"far too many\""),
        ("known", "return a ^ b", "return a | b"),
        ("known-cold", "report(7", "report(8"),
    ];
    for flags in ["-O2", "-O3", "-Os", "-O2 -no-pie -fno-pie"] {
        let name = |n: &str| format!("{n}{}", flags.replace(' ', ""));
        let old = compile(room.path(), &name("old"), APART, flags);
        for (edit, from, to) in edits {
            assert!(APART.contains(from));
            let new = compile(room.path(), &name(edit), &APART.replace(from, to), flags);
            let bare = diff(&stripped(&old), &stripped(&new));
            let errors: Vec<_> = bare.findings.iter().filter(|f| f.level == Level::Error).collect();
            assert!(!doubts(&bare), "{edit} {flags}: {errors:?}");
            let one = bare.changes.iter().all(|c| c.kind == ChangeKind::Changed) && bare.changes.len() == 1;
            assert!(one, "{edit} {flags}: {:?}", bare.changes);
            assert_eq!(changed(&bare), changed(&diff(&old, &new)), "{edit} {flags}");
        }
    }
}

/// Where a loop over the last table stops, no constant begins, and another section does.
#[test]
fn the_end_of_the_last_table_is_no_change() {
    let room = tempfile::tempdir().unwrap();
    let source = |last: &str, edit: &str| {
        format!(
            "struct entry {{ int key, value; }};
            static const struct entry table[] = {{ [0 ... 38] = {{ 1, 2 }}, {{ 7, {last} }} }};
            __attribute__((noipa)) int get(int key) {{
                for (const struct entry *e = table; e != table + 40; e++) if (e->key == key) return e->value;
                return 0; }}
            __attribute__((noipa)) int edited(int n) {{ return n {edit}; }}
            int main(int c, char **v) {{ (void)v; return get(c) + edited(c); }}"
        )
    };
    for flags in ["-O2", "-O1", "-Os -fno-pie -no-pie"] {
        let name = |n: &str| format!("{n}{}", flags.replace(' ', ""));
        let build = |n: &str, last: &str, edit: &str| compile(room.path(), &name(n), &source(last, edit), flags);
        let old = build("old", "9", "* 77 + 5");
        for (what, new, expected) in [
            ("code", build("code", "9", "* 77 + n / 3 + 5"), "edited"),
            ("table", build("table", "10", "* 77 + 5"), "get"),
        ] {
            let (whole, bare) = (diff(&old, &new), diff(&stripped(&old), &stripped(&new)));
            let names: Vec<_> = whole.changes.iter().map(|c| c.name.as_str()).collect();
            assert_eq!(
                (names, changed(&whole)),
                (vec![expected], changed(&bare)),
                "{what} {flags}: {:?}",
                bare.changes
            );
            assert!(!doubts(&bare), "{what} {flags}: {:?}", bare.findings);
        }
    }
}

/// Without debug information a grown structure shows in the distances that code reaches into it.
#[test]
fn a_structure_that_grew_is_suspected() {
    let room = tempfile::tempdir().unwrap();
    let source = |members: &str, kept: &str| {
        format!(
            "#include <stdlib.h>
            struct thing {{ {members} }};
            __attribute__((noinline)) long kept(struct thing *t) {{ return t->{kept} + 1; }}
            int main(void) {{ struct thing *t = calloc(1, sizeof *t); return (int)kept(t); }}"
        )
    };
    let old = source("long first, last, other;", "last");
    for (what, new, suspected) in [
        ("grown", source("long first, second, last, other;", "last"), true),
        ("another member", source("long first, last, other;", "other"), true),
        ("another number", source("long first, last, other;", "last + 1"), false),
    ] {
        for flags in ["-O2 -rdynamic", "-O0 -rdynamic", "-O2 -rdynamic -g"] {
            let old = compile(room.path(), &format!("old{what}{flags}"), &old, flags);
            let new = compile(room.path(), &format!("new{what}{flags}"), &new, flags);
            for (with_symbols, report) in [(true, diff(&old, &new)), (false, diff(&stripped(&old), &stripped(&new)))] {
                let found: Vec<_> = report.findings.iter().filter(|f| f.code == Code::LayoutSuspected).collect();
                let described = flags.ends_with("-g") && with_symbols;
                assert_eq!(!found.is_empty(), suspected && !described, "{what} {flags}: {:?}", report.findings);
                assert!(found.iter().all(|f| f.level == Level::Error), "{what} {flags}: {found:?}");
            }
        }
    }
}

/// All fixtures, old against new.
#[test]
fn fixtures_give_the_same_without_symbols() {
    let room = tempfile::tempdir().unwrap();
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/fixtures"));
    let mut fixtures: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    fixtures.retain(|f| f.extension().is_some_and(|e| e == "c" || e == "cc"));
    fixtures.sort();
    assert!(fixtures.len() > 50);
    let (next, decided, failed) = (AtomicUsize::new(0), Mutex::new(Decided::default()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from).min(4) {
            scope.spawn(|| {
                while let Some(fixture) = fixtures.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (old, new) =
                        (build_fixture(fixture, "OLD", room.path()), build_fixture(fixture, "NEW", room.path()));
                    let name = fixture.file_name().unwrap().to_string_lossy().into_owned();
                    match std::panic::catch_unwind(|| same_or_doubted(&name, &old, &new)) {
                        Ok(found) => decided.lock().unwrap().add(found),
                        Err(_) => failed.lock().unwrap().push(name),
                    }
                }
            });
        }
    });
    let (decided, failed) = (decided.into_inner().unwrap(), failed.into_inner().unwrap());
    assert!(failed.is_empty(), "{failed:?}");
    decided.are_enough("fixtures", fixtures.len(), 60);
}

/// Builds the part of a fixture that is patched, with its first build line.
fn build_fixture(fixture: &Path, side: &str, room: &Path) -> PathBuf {
    let text = std::fs::read_to_string(fixture).unwrap();
    let directive = |key: &str| text.lines().find_map(|l| l.strip_prefix(&format!("//# {key}: ")));
    let cc = fixture.extension().is_some_and(|e| e == "cc");
    let line = directive("lib").or(directive("build")).unwrap_or(if cc { "g++ -O2 -g" } else { "gcc -O2 -g" });
    let (compiler, flags) = line.split_once(' ').unwrap();
    let stem = fixture.file_stem().unwrap().to_string_lossy();
    let program = room.join(format!("{stem}-{side}"));
    let mut objects = Vec::new();
    let mut parts = vec![vec![]];
    if directive("lib").is_some() {
        parts = vec![vec!["-DLIB"]];
    } else if directive("parts").is_some() {
        parts.push(vec!["-DPART2"]);
    }
    let flags: Vec<&str> = flags.split_whitespace().collect();
    for (i, part) in parts.iter().enumerate() {
        let object = room.join(format!("{stem}-{side}-{i}.o"));
        let mut command = Command::new(compiler);
        command.args(flags.iter().filter(|f| **f != "-shared")).args(part).arg(format!("-D{side}"));
        run(command.arg("-c").arg(fixture).arg("-o").arg(&object));
        objects.push(object);
    }
    let mut command = Command::new(compiler);
    // The language is that of the source, not of the objects.
    let flags = flags.iter().filter(|f| !f.starts_with("-x"));
    run(command.args(flags).args(&objects).arg("-o").arg(&program).args(["-lm", "-lpthread", "-ldl"]));
    program
}
