//! What is easily missed or invented: tables of distances, texts of Rust, names with hashes, thread-local variables.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{ChangeKind, Code, Finding, Level, Options, Report};

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

/// Edits that are easily missed: text to replace, by what, and the functions of which at least one must be named.
#[test]
fn what_hides_in_equal_lengths_names_and_folding_is_found() {
    struct Case {
        what: &'static str,
        compilers: &'static [&'static str],
        source: &'static str,
        edit: (&'static str, &'static str),
        expected: &'static [&'static str],
    }
    const FOLDED: &str = "#define APART __attribute__((noinline, noclone))
        int a, b;
        APART int one(int n) { return n * 7 + a; }
        APART int two(int n) { return n * 7 /* two */ + a; }
        APART int three(int n) { return one(n) - 2; }
        APART int four(int n) { return two(n) - 3; }
        int main(int c, char **v) { a = c; b = c + 1; return three(c) ^ four(c); }";
    const CLONED: &str = "int puts(const char *);
        static __attribute__((noinline)) int scale(int n, int by) { for (int i = 0; i < n; i++) by += puts(\"x\") * by; return by; }
        __attribute__((noinline)) int first(int n) { return scale(n, 3) + 1; }
        __attribute__((noinline)) int second(int n) { return scale(n, 3) + 2; }
        int main(int c, char **v) { return first(c) + second(c); }";
    let cases = [
        Case {
            what: "callee of the same length",
            compilers: &["gcc -O2", "clang -O2", "gcc -O0"],
            source: "int abs(int); int puts(const char *);
                __attribute__((noinline)) int f(int n) { return n * 3 + puts(\"f\"); }
                __attribute__((noinline)) int g(int n) { return n * 5 + puts(\"g\"); }
                __attribute__((noinline)) int user(int n) { return f(n) + 9; }
                int main(int c, char **v) { return user(c) + g(c); }",
            edit: ("return f(n) + 9", "return g(n) + 9"),
            expected: &["user"],
        },
        Case {
            what: "members of the same size that changed places",
            compilers: &["gcc -O2 -g", "gcc -O0 -g", "clang -O2 -g", "gcc -O2"],
            source: "struct pair { int width; int height; };
                __attribute__((noinline)) int width(struct pair *p) { return p->width; }
                int main(int c, char **v) { struct pair p = { c, 2 * c }; return width(&p); }",
            edit: ("int width; int height;", "int height; int width;"),
            // It fills them in.
            expected: &["width", "main"],
        },
        Case {
            what: "default argument",
            compilers: &["g++ -x c++ -O2", "g++ -x c++ -O0", "clang++ -x c++ -O2"],
            source: "int puts(const char *);
                __attribute__((noinline)) int scaled(int n, int by = 3) { asm volatile(\"\" : \"+r\"(by)); return n * by; }
                __attribute__((noinline)) int user(int n) { return scaled(n) + 1; }
                int main(int c, char **v) { return user(c) + scaled(c, 9); }",
            edit: ("by = 3", "by = 4"),
            expected: &["_Z4useri"],
        },
        Case {
            what: "one name of a folded function",
            compilers: &[
                "clang -O2 -ffunction-sections -fuse-ld=lld -Wl,--icf=all",
                "gcc -O2 -ffunction-sections -fuse-ld=lld -Wl,--icf=all",
                "gcc -O2 -ffunction-sections -fuse-ld=gold -Wl,--icf=all",
                "gcc -O2 -ffunction-sections -fuse-ld=mold -Wl,--icf=all",
                "gcc -O2",
            ],
            source: FOLDED,
            edit: ("n * 7 /* two */ + a", "n * 7 + b"),
            expected: &["two", "four"],
        },
        Case {
            what: "the other name of a folded function",
            compilers: &["clang -O2 -ffunction-sections -fuse-ld=lld -Wl,--icf=all", "gcc -O2"],
            source: FOLDED,
            edit: ("int one(int n) { return n * 7 + a", "int one(int n) { return n * 7 + b"),
            // The old function goes on as one of the two; who calls the other is led there.
            expected: &["one", "three", "four"],
        },
        Case {
            what: "a clone for a constant vanishes",
            compilers: &["gcc -O2", "gcc -O3"],
            source: CLONED,
            edit: ("scale(n, 3) + 2", "scale(n, n) + 2"),
            // The first now hands on the number that the clone had in it.
            expected: &["first", "second"],
        },
        Case {
            what: "the constant of a clone",
            compilers: &["gcc -O2", "gcc -O3", "clang -O2"],
            source: CLONED,
            edit: ("return by;", "return by + 1;"),
            expected: &["scale.constprop.0", "scale", "first", "second"],
        },
    ];
    let room = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let tools = |compiler: &str| {
        let linker = compiler.split_whitespace().find_map(|w| w.strip_prefix("-fuse-ld="));
        on_path(compiler.split(' ').next().unwrap()) && linker.is_none_or(|l| on_path(&format!("ld.{l}")))
    };
    for case in cases {
        assert!(case.source.contains(case.edit.0), "{}", case.what);
        for compiler in case.compilers.iter().filter(|c| tools(c)) {
            // Both ways: what vanishes one way appears the other.
            let one = build(room.path(), "old", case.source, compiler);
            let two = build(room.path(), "new", &case.source.replace(case.edit.0, case.edit.1), compiler);
            for (old, new) in [(&one, &two), (&two, &one)] {
                let report = diff(old, new);
                let named = |n: &&str| case.expected.contains(n);
                let refused = report.findings.iter().any(|f| f.level == Level::Error && f.code == Code::LayoutChanged);
                let found = changed(&report).iter().any(named) || refused;
                let extra: Vec<&str> = changed(&report).into_iter().filter(|n| !named(n)).collect();
                let bare = diff(&stripped(old), &stripped(new));
                let open = |f: &Finding| f.level == Level::Error && f.code != Code::LayoutUnproven;
                let told = !bare.changes.is_empty() || bare.findings.iter().any(open);
                if !found || !extra.is_empty() || !told {
                    let (changes, what) = (changed(&report), case.what);
                    wrong.push(format!("{what}, {compiler}: {changes:?} of {:?}; stripped: {told}", case.expected));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The build without symbols and debug information.
fn stripped(program: &Path) -> PathBuf {
    let bare = program.with_extension("stripped");
    let status = Command::new("strip").arg("-o").args([&bare, program]).status().unwrap();
    assert!(status.success());
    bare
}

/// Two texts of which the linker makes one: the change in the tail is one of both, in any encoding.
#[test]
fn a_change_in_a_merged_tail_is_one_of_both_texts() {
    let room = tempfile::tempdir().unwrap();
    let source = |tail: &str| {
        format!(
            "int puts(const char *);
            __attribute__((noinline)) int whole(void) {{ return puts(\"caf\\xe9\" {tail}); }}
            __attribute__((noinline)) int part(void) {{ return puts({tail}); }}
            __attribute__((noinline)) int other(void) {{ return puts(\"\\x82\\xa0 other\"); }}
            int main(void) {{ return whole() + part() + other(); }}"
        )
    };
    for compiler in ["gcc -O2", "gcc -O2 -fno-pie -no-pie", "clang -O2", "clang -O2 -fuse-ld=lld -Wl,-O2"] {
        if !on_path(compiler.split(' ').next().unwrap()) {
            continue;
        }
        let old = build(room.path(), "old", &source("\" noir\""), compiler);
        let new = build(room.path(), "new", &source("\" vert\""), compiler);
        let mut found = changed(&diff(&old, &new)).into_iter().map(str::to_owned).collect::<Vec<_>>();
        found.sort();
        assert_eq!(found, ["part", "whole"], "{compiler}");
    }
}

/// rustc's templates of formats end with a zero, so that linkers merge their tails.
#[test]
fn a_change_in_the_merged_tail_of_a_format_is_one_of_both() {
    let room = tempfile::tempdir().unwrap();
    let source = |between: &str| {
        format!(
            "#[inline(never)] fn whole(a: &str, b: &i32) {{ println!(\"a longer piece of text {{}}{between}{{}}\", a, b); }}
            #[inline(never)] fn part(a: &str, b: &i32) {{ println!(\"{{}}{between}{{}}\", a, b); }}
            #[inline(never)] fn other(a: &str) {{ println!(\"{{}} and the other\", a); }}
            fn main() {{ let n = std::env::args().count() as i32; whole(\"x\", &n); part(\"y\", &n); other(\"z\"); }}"
        )
    };
    let compiler = "rustc --edition 2021 -C opt-level=2 -g";
    let old = build(room.path(), "old", &source(": "), compiler);
    let report = diff(&old, &build(room.path(), "new", &source("; "), compiler));
    let found = changed(&report);
    let has = |name: &str| found.iter().any(|f| f.contains(name));
    assert!(found.len() == 2 && has("5whole") && has("4part"), "{found:?}");
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
/// A server's function that writes logs, as `tracing` has them write: the place of each is a variable that leads to a constant.
const PLACES: &str = r#"
use std::sync::atomic::{AtomicUsize, Ordering};
struct Meta { name: &'static str, file: &'static str, line: u32 }
struct Site { meta: &'static Meta, hits: AtomicUsize }
macro_rules! event { () => {{
    static META: Meta = Meta { name: concat!("event ", file!(), ":", line!()), file: file!(), line: NUMBER };
    static SITE: Site = Site { meta: &META, hits: AtomicUsize::new(0) };
    hit(std::hint::black_box(&SITE))
}} }
#[inline(never)] fn hit(site: &'static Site) -> usize {
    println!("{} {} {}", site.meta.name, site.meta.file, site.meta.line);
    site.hits.fetch_add(1, Ordering::Relaxed)
}
struct Shown(usize);
impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "<{}>", self.0) }
}
#[inline(never)] fn show(what: &dyn std::fmt::Debug) { println!("{what:?}"); }
#[inline(never)] fn limit(n: usize) -> usize {
    EDIT
    show(std::hint::black_box(&Shown(n) as &dyn std::fmt::Debug)); n * 3
}
#[inline(never)] fn work(n: usize) -> usize { if n > 2 { event!() } else { n } }
fn main() { let n = std::env::args().count(); println!("{}", limit(n) + work(n)); }
"#;

#[test]
fn the_place_of_a_log_is_no_change_and_a_table_of_methods_stays_in_the_base() {
    let room = tempfile::tempdir().unwrap();
    let build = |name: &str, edit: &str, number: &str| {
        build(room.path(), name, &PLACES.replace("EDIT", edit).replace("NUMBER", number), "rustc -O -g")
    };
    let compare = |old: &Path, new: &Path| hp_diff::diff(old, new, &Options::default()).unwrap();
    let variable = |report: &Report| -> Vec<Level> {
        report.findings.iter().filter(|f| f.code == Code::InitialValueChanged).map(|f| f.level).collect()
    };
    let old = build("old", "", "line!()");
    let report = compare(&old, &build("new", "if n > 7 {\n return 7;\n }", "line!()"));
    let names: Vec<String> = changed(&report).into_iter().map(hp_diff::readable).collect();
    assert!(matches!(names.as_slice(), [name] if name.ends_with("limit")), "{names:?} {:?}", report.findings);
    assert_eq!(variable(&report), [Level::Note], "{:?}", report.findings);
    let patch = report.patch.unwrap();
    assert!(patch.sections.iter().all(|s| s.kind != hp_pack::SectionKind::DataRelRo), "it has copies of tables");
    // A number that is no line.
    let report = compare(&build("old", "", "line!() + 300"), &build("new", "", "line!() + 301"));
    assert!(variable(&report).iter().all(|level| *level == Level::Error), "{:?}", report.findings);
    assert!(report.patch.is_none() && !report.findings.is_empty(), "{:?}", report.findings);
}

/// Descriptors of a place in C: a variable, and a constant whose users differ in nothing else.
#[test]
fn a_descriptor_of_a_place_differs_in_its_line_only_if_the_number_is_one() {
    let room = tempfile::tempdir().unwrap();
    let source = |edit: &str, number: &str| {
        format!(
            "#define APART __attribute__((noinline, noclone))
            struct site {{ const char *file; const char *format; int line; int hits; }};
            APART int limit(int n) {{
                {edit}
                return n; }}
            APART int report(const struct site *site) {{ return *site->file && *site->format ? site->line : -1; }}
            #define PLACE static struct site here = {{__FILE__, \"it counts\", {number}, 0}}; here.hits += n
            #define CONSTANT static const struct site here = {{__FILE__, \"it stands\", {number}, 0}}; n += report(&here)
            APART int counted(int n) {{
                PLACE;
                return here.hits * n + report(&here); }}
            APART int placed(int n) {{
                CONSTANT;
                return n * 3; }}
            int main(int c, char **v) {{ return limit(c) + counted(c) + placed(c); }}"
        )
    };
    for compiler in ["gcc -O2 -g", "clang -O2 -g", "gcc -O0 -g"] {
        if !on_path(compiler.split(' ').next().unwrap()) {
            continue;
        }
        let old = build(room.path(), "old", &source("", "__LINE__"), compiler);
        let compare = |new: &Path, old: &Path| hp_diff::diff(old, new, &Options::default()).unwrap();
        let report =
            compare(&build(room.path(), "new", &source("if (n > 4)\n return 4;\n", "__LINE__"), compiler), &old);
        // What clang knows of its answers goes into its caller.
        let names = changed(&report);
        let expected = names.contains(&"limit") && names.iter().all(|n| ["limit", "main"].contains(n));
        assert!(expected, "{compiler} {names:?} {:?}", report.findings);
        let variables = report.findings.iter().filter(|f| f.code == Code::InitialValueChanged);
        assert_eq!(variables.map(|f| f.level).collect::<Vec<_>>(), [Level::Note], "{compiler} {:?}", report.findings);
        assert!(report.patch.is_some(), "{compiler} {:?}", report.findings);
        // Numbers that are no lines.
        let old = build(room.path(), "old", &source("", "300"), compiler);
        let report = compare(&build(room.path(), "new", &source("", "303"), compiler), &old);
        assert!(changed(&report).contains(&"placed"), "{compiler} {:?}", report.changes);
        assert!(report.refused() && report.patch.is_none(), "{compiler} {:?}", report.findings);
    }
}

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

/// A boxed value answers with the identity that its type had in the old build.
#[test]
fn other_identities_of_types_are_refused() {
    let room = tempfile::tempdir().unwrap();
    let source = |more: &str| {
        format!(
            "use std::any::Any;
            struct Mine(i64);
            #[inline(never)] fn keep(n: i64) -> Box<dyn Any> {{ Box::new(Mine(n)) }}
            #[inline(never)] fn look(it: &dyn Any) -> i64 {{ it.downcast_ref::<Mine>().map_or(-1, |m| m.0 {more}) }}
            fn main() {{ println!(\"{{}}\", look(&*keep(std::env::args().count() as i64))); }}"
        )
    };
    for names in ["legacy", "v0"] {
        let names = if names == "v0" { " -C symbol-mangling-version=v0" } else { "" };
        let compiler = |version: &str| format!("rustc --edition 2021 -C opt-level=2 -g -C metadata={version}{names}");
        let old = build(room.path(), "old", &source(""), &compiler("one"));
        let refused = |name: &str, version: &str| {
            let report = diff(&old, &build(room.path(), name, &source("+ 1"), &compiler(version)));
            let errors = report.findings.iter().filter(|f| f.code == Code::TypeIdChanged);
            let said: Vec<String> = errors.map(|f| f.message.clone()).collect();
            assert!(!changed(&report).is_empty() && report.refused() != said.is_empty(), "{:?}", report.findings);
            said
        };
        assert_eq!(refused("edited", "one"), Vec::<String>::new());
        let said = refused("other", "two");
        assert!(said.len() == 1 && said[0].contains("type_id answers with another core::any::TypeId"), "{said:?}");
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

/// Which variable is new, and which ones it moved, is said.
#[test]
fn a_new_thread_local_variable_is_named() {
    let room = tempfile::tempdir().unwrap();
    let source = |new: &str, step: &str| {
        format!(
            "static __thread int calls; {new}
            __attribute__((noinline)) int count(int n) {{ {step} return calls += n; }}
            int main(int c, char **v) {{ (void)v; return count(c); }}"
        )
    };
    let compiler = "gcc -O2 -g";
    let old = build(room.path(), "old", &source("", ""), compiler);
    let new = build(room.path(), "new", &source("static __thread int depth[4];", "depth[n & 3]++;"), compiler);
    let report = diff(&old, &new);
    let said = report.findings.iter().find(|f| f.code == Code::ThreadLocalChanged).map(|f| f.message.clone());
    assert!(
        said.as_ref().is_some_and(|m| m.contains("; depth is new: threads that run have no room for it")),
        "{said:?}"
    );
}

/// Zeros behind a text that another function uses are no end of what a changed function has in front of that.
#[test]
fn zeros_behind_a_text_are_no_end() {
    let room = tempfile::tempdir().unwrap();
    let source = |number: u32| {
        format!(
            "int puts(const char *); int look(const void *, const void *);
            static const unsigned char none[16] = {{0}};
            int answer(const char *a, int n) {{ return n ? puts(\"a text of some length\") + {number} : look(a, none); }}
            int other(const char *a, int n) {{ return n ? puts(\"another one, as long\") : look(a + 1, none); }}"
        )
    };
    let of = |name, number| {
        stripped(&build(room.path(), name, &source(number), "gcc -O2 -shared -fPIC -fno-toplevel-reorder"))
    };
    let report = diff(&of("old", 77), &of("new", 79));
    assert_eq!(changed(&report), ["answer"]);
    assert!(report.findings.iter().all(|f| f.code == Code::LayoutUnproven), "{:?}", report.findings);
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

/// A constructor is given a text's end, and calculates the start: nothing else leads to the text.
#[test]
fn a_text_that_code_knows_by_its_end_is_found() {
    let room = tempfile::tempdir().unwrap();
    let source = |first: &str, second: &str| {
        format!(
            "int puts(const char *); __attribute__((noinline)) int count(const char *from, const char *to) {{ int n = 0; while (from != to) n += *from++; return n; }}
            __attribute__((noinline)) int by_end(int unused) {{
                const char *end = \"a first text, {first}\" + 23;
                __asm__(\"\" : \"+r\"(end));
                return count(end - 23, end) + unused;
            }}
            __attribute__((noinline)) int other(void) {{ return puts(\"{second}\"); }}
            __attribute__((noinline)) const char *empty(void) {{ return \"\"; }}
            int main(int c, char **v) {{ (void)v; return by_end(c) + (c > 99 ? other() : 0) + *empty(); }}"
        )
    };
    for compiler in ["gcc -O2", "clang -O2", "gcc -O1", "gcc -O2 -fno-pie -no-pie"] {
        if !on_path(compiler.split(' ').next().unwrap()) {
            continue;
        }
        let old = build(room.path(), "old", &source("with more", "second"), compiler);
        for (first, second, expected) in [
            ("with MORE", "second", &["by_end"][..]),
            ("with more", "second", &[]),
            ("with more", "another second, and far longer than it was", &["other"]),
        ] {
            let new = build(room.path(), "new", &source(first, second), compiler);
            assert_eq!(changed(&diff(&old, &new)), expected, "{compiler} {first} {second}");
        }
    }
}

/// The table of a `switch` is read like a table of distances; numbers beside it are numbers all the same.
#[test]
fn numbers_beside_a_switch_are_no_distances() {
    let room = tempfile::tempdir().unwrap();
    let source = |plus: &str, text: &str| {
        format!(
            "#include <stdio.h>
            const char filler[] = {{ [0 ... 8999] = '{text}', 0 }};
            static const int limits[] = {{ -1000, 1000, 2000, 3000, 4000, 900 }};
            __attribute__((noinline)) long limit(unsigned i, long n) {{
                switch (i) {{ case 1: n += limits[n & 3]; break; case 2: n = n * n; break; case 3: n ^= 7; break;
                    case 4: n = puts(\"four\"); break; case 5: n /= 3; break; case 6: n = limits[n % 6u]; break; default: n = 0; }}
                return n {plus}; }}
            int main(int c, char **v) {{ (void)v; return printf(\"%ld %s\\n\", limit(c, c), filler + c); }}"
        )
    };
    for compiler in ["gcc -O2 -g -fno-toplevel-reorder", "gcc -O2 -g", "clang -O2 -g"] {
        if !on_path(compiler.split(' ').next().unwrap()) {
            continue;
        }
        let old = build(room.path(), "old", &source("", "x"), compiler);
        let report = diff(&old, &build(room.path(), "other", &source("", "y"), compiler));
        assert!(!changed(&report).contains(&"limit"), "{compiler}: {:?}", report.changes);
        let report = diff(&old, &build(room.path(), "new", &source("+ 1", "x"), compiler));
        assert_eq!(changed(&report), ["limit"], "{compiler}: {:?}", report.findings);
        assert!(report.patch.is_some(), "{compiler}: {:?}", report.findings);
    }
}

/// Hand-written assembly has tables beside its code that no symbol covers: part of the function that reads them.
#[test]
fn data_beside_assembly_is_compared_by_its_content() {
    let room = tempfile::tempdir().unwrap();
    let source = |front: &str, text: &str, table: &str| {
        format!(
            "#include <stdio.h>
            {front}
            long look(long n);
            __attribute__((noinline)) int edited(long n) {{ return printf(\"{text} %ld\\n\", look(n)); }}
            __asm__(\".text; .globl look; .type look,@function; .p2align 5; look: movdqu .Lmask(%rip),%xmm0; \"
                \"lea .Ltable(%rip),%rax; mov (%rax,%rdi,8),%rax; ret; .size look,.-look; .p2align 6; \"
                \".Lmask: .quad 1,2; .Ltable: .quad {table}; .p2align 5\");
            int main(int c, char **v) {{ (void)v; return edited(c); }}"
        )
    };
    let front = "__attribute__((noinline)) int added(int n) { return n * 77 + 5; } int (*volatile keep)(int) = added;";
    for compiler in ["gcc -O2", "gcc -O2 -fno-pie -no-pie"] {
        let old = build(room.path(), "old", &source("", "one", "7,8,9,10"), compiler);
        let moved = build(room.path(), "new", &source(front, "two", "7,8,9,10"), compiler);
        let report = diff(&old, &moved);
        assert_eq!(changed(&report), ["edited"], "{compiler}: {:?}", report.findings);
        let table = build(room.path(), "new", &source(front, "one", "7,8,9,11"), compiler);
        assert_eq!(changed(&diff(&old, &table)), ["look"], "{compiler}");
    }
}
