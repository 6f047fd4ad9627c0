//! Pairs of small sources, compiled by the real compilers, and what must or must not be found between them.

use super::{Definer, Definitions, Tree, Variable, define, read};
use crate::dwarf::{DESCRIPTIONS, Sections, Source};
use crate::finding::{Code, Finding};
use std::process::Command;

/// Compiles and links one source file as a shared object.
fn build(language: &str, flags: &str, source: &str) -> Vec<u8> {
    build_files(language, flags, &[("x", source)])
}

/// The same for several files, `(stem, text)`.
fn build_files(language: &str, flags: &str, files: &[(&str, &str)]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let sources: Vec<_> = files.iter().map(|(stem, _)| format!("{stem}.{language}")).collect();
    for (name, (_, text)) in sources.iter().zip(files) {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mut command = match language {
        "rs" => Command::new("rustc"),
        "cc" => Command::new("g++"),
        _ => Command::new("gcc"),
    };
    if language == "rs" {
        command.args(["--edition=2024", "--crate-type=cdylib", "--crate-name=x"]);
    } else if !flags.contains("-c") {
        command.args(["-shared", "-fPIC", "-w"]);
    }
    command.args(flags.split_whitespace()).args(&sources).arg("-o").arg(&out).current_dir(dir.path());
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    std::fs::read(out).unwrap()
}

fn opened(build: &[u8]) -> Source<'_> {
    object::File::parse(build).unwrap().into()
}

fn findings(old: &[u8], new: &[u8]) -> Vec<Finding> {
    let found = read(&opened(old), &opened(new)).findings;
    let all = |build: &[u8]| {
        let sections = Sections::load(&opened(build), DESCRIPTIONS).ok()??;
        let tree = Tree::parse(&sections).ok()?;
        tree.describes_types().then(|| define::all_definitions(&Definer::new(&tree)).ok())?
    };
    if let (Some(old), Some(new)) = (all(old), all(new)) {
        assert_eq!(found, super::diff::differing(&old, &new).findings, "units that were taken for alike matter");
    }
    found
}

/// Many files that share a header, built in some way; `two` is the second of them.
fn project(way: &str, header: &str, two: &str) -> Vec<u8> {
    let with = |text: &str| format!("{header}\n{text}");
    let texts =
        [with("struct s *one(struct s *p) { return p; } t seen;"), with(two), with("int three(t *p) { return p->a; }")];
    let files: Vec<(&str, &str)> = ["one", "two", "three"].into_iter().zip(texts.iter().map(String::as_str)).collect();
    build_files("c", way, &files)
}

#[test]
fn a_unit_that_is_alike_does_not_hide_what_its_neighbour_makes_of_a_name() {
    let header = "struct s { int x; }; typedef struct { int a; } t; extern t seen;";
    let own = "struct own { char c; }; struct own here; t *two(struct s *p) { return p->x ? &seen : 0; }";
    for way in ["-g -O1", "-g -O1 -flto", "-gdwarf-4 -fdebug-types-section", "-g -gz"] {
        let old = project(way, header, own);
        let expected = [
            (own.replace("char c", "char b, c"), "own"),
            (own.replace("p->x", "p->x + 1"), ""),
            (format!("{own}\nvoid inner(void) {{ struct s {{ long y; }} z; __asm__(\"\" :: \"r\"(&z)); }}"), ""),
        ];
        for (two, subject) in expected {
            let found = findings(&old, &project(way, header, &two));
            assert!(found.iter().all(|f| f.subject == subject), "{way}: {found:?}");
            assert_eq!(found.is_empty(), subject.is_empty(), "{way}: {two}");
        }
        let found = findings(&old, &project(way, &header.replace("int a", "int b, a"), own));
        assert_eq!(found.iter().map(|f| f.subject.as_str()).collect::<Vec<_>>(), ["t"], "{way}");
    }
}

fn variables(build: &[u8]) -> Vec<Variable> {
    read(&opened(build), &opened(build)).variables.0
}

fn messages(old: &[u8], new: &[u8]) -> Vec<String> {
    findings(old, new).into_iter().map(|f| format!("{} {} | {}", f.code, f.subject, f.message)).collect()
}

/// Compiles both with each of the ways that debug information may lie in a file; the answers must be the same.
fn c(old: &str, new: &str) -> Vec<String> {
    let ways = ["-gdwarf-4", "-gdwarf-5 -gz", "-gdwarf-4 -fdebug-types-section", "-gdwarf-5 -c", "-gdwarf-5"];
    let mut answers = ways.map(|way| messages(&build("c", way, old), &build("c", way, new)));
    for (answer, way) in answers.iter().zip(ways) {
        assert_eq!(*answer, answers[ways.len() - 1], "{way}");
    }
    std::mem::take(&mut answers[0])
}

fn cc(old: &str, new: &str) -> Vec<String> {
    let ways = ["-gdwarf-5 -fdebug-types-section", "-gdwarf-4", "-gdwarf-5"];
    let mut answers = ways.map(|way| messages(&build("cc", way, old), &build("cc", way, new)));
    for (answer, way) in answers.iter().zip(ways) {
        assert_eq!(*answer, answers[ways.len() - 1], "{way}");
    }
    std::mem::take(&mut answers[0])
}

fn rust(old: &str, new: &str) -> Vec<String> {
    messages(&build("rs", "-g", old), &build("rs", "-g", new))
}

fn all(build: &[u8]) -> Definitions {
    let sections = Sections::load(&opened(build), DESCRIPTIONS).unwrap().unwrap();
    define::all_definitions(&Definer::new(&Tree::parse(&sections).unwrap())).unwrap()
}

const NOTHING: &[String] = &[];

#[test]
fn a_member_in_the_middle() {
    let found = c(
        "struct ctx { long a; int x; int y; long b, c, d, e; } g;",
        "struct ctx { long a; long n; int x; int y; long b, c, d, e; } g;",
    );
    assert_eq!(
        found,
        ["HP0401 ctx | struct ctx: size 48 → 56 bytes; member 'n' added at 8; 6 members from 'x' on moved by +8 bytes"]
    );
}

#[test]
fn a_member_at_the_end_moves_nothing_but_the_size_tells() {
    let found = c("struct s { int a; } g;", "struct s { int a; int b; } g;");
    assert_eq!(found, ["HP0401 s | struct s: size 4 → 8 bytes; member 'b' added at 4"]);
}

#[test]
fn a_member_in_padding_is_found_though_nothing_moves() {
    let found = c("struct s { char a; long b; } g;", "struct s { char a; int n; long b; } g;");
    assert_eq!(found, ["HP0401 s | struct s: member 'n' added at 4"]);
}

#[test]
fn swapped_and_renamed_members() {
    let found = c("struct s { int a, b; } g;", "struct s { int b, a; } g;");
    assert_eq!(
        found,
        ["HP0401 s | struct s: member 'a' moved from offset 0 to 4; member 'b' moved from offset 4 to 0"]
    );
    let found = c("struct s { int a, b; } g;", "struct s { int a, c; } g;");
    assert_eq!(found, ["HP0401 s | struct s: member 'b' at offset 4 is now called 'c'"]);
}

#[test]
fn member_types_count_through_typedefs_pointers_and_arrays() {
    let found = c("struct s { int a; } g;", "struct s { float a; } g;");
    assert_eq!(found, ["HP0401 s | struct s: member 'a' changed type from int to float"]);
    let found =
        c("struct a; struct b; struct s { struct a *p; } g;", "struct a; struct b; struct s { struct b *p; } g;");
    assert_eq!(found, ["HP0401 s | struct s: member 'p' changed type from struct a * to struct b *"]);
    let found = c("struct s { int (*f)(int); } g;", "struct s { int (*f)(int, char *); } g;");
    assert_eq!(found, ["HP0401 s | struct s: member 'f' changed type from int (*)(int) to int (*)(int, char *)"]);
    let found = c("struct s { short a[4]; } g;", "struct s { short a[2][2]; } g;");
    assert_eq!(found, ["HP0401 s | struct s: member 'a' changed type from short int[4] to short int[2][2]"]);
    let found = c("typedef unsigned u; struct s { u a; } g;", "typedef int u; struct s { u a; } g;");
    assert_eq!(
        found,
        [
            "HP0401 s | struct s: member 'a' changed type from unsigned int to int",
            "HP0401 u | typedef u: stands for unsigned int → int"
        ]
    );
}

#[test]
fn bit_fields() {
    let found = c("struct s { unsigned a:3, b:5; } g;", "struct s { unsigned a:4, b:4; } g;");
    assert_eq!(
        found,
        ["HP0401 s | struct s: member 'a' moved from offset 0 bit 0 (3 bits) to 0 bit 0 (4 bits); \
          member 'b' moved from offset 0 bit 3 (5 bits) to 0 bit 4 (4 bits)"]
    );
    let found = c("struct s { unsigned a:3, b:5; } g;", "struct s { unsigned a:3, b:5, c:1; } g;");
    assert_eq!(found, ["HP0401 s | struct s: member 'c' added at 1 bit 0 (1 bits)"]);
}

/// DWARF 4 counts a bit-field's place from the other end of its storage unit than DWARF 5.
#[test]
fn one_source_in_two_versions_of_dwarf_is_the_same() {
    let source =
        "struct s { char c; unsigned a:3, b:15; long l:40; union { int i; float f; }; struct { int q; } in[2]; } g;
        typedef struct { struct s *next; enum { A, B } e; } t; t h; int (*f)(t *, ...); static struct { t x; } v;
        t *use(void) { return &v.x; }";
    let builds = ["-gdwarf-4", "-gdwarf-5", "-gdwarf-5 -gz", "-gdwarf-4 -fdebug-types-section", "-gdwarf-3", "-g -c"];
    let builds = builds.map(|flags| build("c", flags, source));
    for other in &builds {
        assert_eq!(messages(&builds[0], other), NOTHING);
        assert_eq!(messages(other, &builds[0]), NOTHING);
    }
}

#[test]
fn unions_and_unnamed_parts() {
    let found = c("union u { int a; float b; } g;", "union u { float b; int a; } g;");
    assert_eq!(found, NOTHING, "order in a union");
    let found = c(
        "struct s { int t; union { int a; struct { int x, y; } p; }; } g;",
        "struct s { int t; union { int a; struct { int y, x; } p; }; } g;",
    );
    assert_eq!(
        found,
        ["HP0401 s | struct s: member 'p.x' moved from offset 4 to 8; member 'p.y' moved from offset 8 to 4"]
    );
    let found = c("struct s { int t; union { int a, b; }; } g;", "struct s { int t; struct { int a, b; }; } g;");
    assert_eq!(found, ["HP0401 s | struct s: size 8 → 12 bytes; member 'b' moved from offset 4 to 8"]);
}

#[test]
fn anonymous_types_go_by_what_names_them() {
    let found = c("typedef struct { int a; } t; t g;", "typedef struct { long a; } t; t g;");
    assert_eq!(found, ["HP0401 t | struct t: size 4 → 8 bytes; member 'a' changed type from int to long int"]);
    // The same with a tag in one build only.
    let found = c("typedef struct { int a; } t; t g;", "typedef struct t { int b; } t; t g;");
    assert_eq!(found, ["HP0401 t | struct t: member 'a' at offset 0 is now called 'b'"]);
    let found = c("typedef struct { int a; } *h; h g;", "typedef struct { int b; } *h; h g;");
    assert_eq!(found, ["HP0401 h | struct h: member 'a' at offset 0 is now called 'b'"]);
    let found = c(
        "static struct { int a, b; } table[2]; void *f(void) { return table; }",
        "static struct { int b, a; } table[2]; void *f(void) { return table; }",
    );
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("HP0401 table | struct table: member 'a' moved"), "{found:?}");
}

#[test]
fn enumerators() {
    let found = c("enum e { A, B } g;", "enum e { A, B, C } g;");
    assert_eq!(found, NOTHING, "one more at the end");
    let found = c("enum e { A, B } g;", "enum e { A, C, B } g;");
    assert_eq!(found, ["HP0401 e | enum e: enumerator 'C' added at value 1; enumerator 'B' = 1 → 2"]);
    let found = c("enum e { A, B } g;", "enum e { A } g;");
    assert_eq!(found, ["HP0401 e | enum e: enumerator 'B' = 1 removed"]);
    let found = c("enum e { A = 1 } g;", "enum e { A = 1, B = 0x100000000 } g;");
    assert_eq!(found.len(), 1, "the enumeration grew: {found:?}");
    assert!(found[0].starts_with("HP0401 e | enum e: size 4 → 8 bytes"), "{found:?}");
    let found = c("enum { A, B }; int g[B];", "enum { A, N, B }; int g[A + 1];");
    // An anonymous enumeration is only described where something uses it.
    assert!(found.is_empty() || found == ["HP0401 B | enumerator B: enumerator 'B' = 1 → 2"], "{found:?}");
    let found = c("struct s { enum { A, B } e; } g;", "struct s { enum { A, N, B } e; } g;");
    assert_eq!(found, ["HP0401 B | enumerator B: enumerator 'B' = 1 → 2"]);
}

#[test]
fn types_of_one_build_only_are_no_difference() {
    let old = "struct s { int a; } g; struct gone { int x; } h;";
    let new = "struct s { int a; } g; struct come { long y; } k; struct fwd; struct fwd *p;";
    assert_eq!(c(old, new), NOTHING);
    // A declaration is no definition.
    assert_eq!(c("struct s { int a; } g;", "struct s; struct s *g;"), NOTHING);
}

#[test]
fn qualifiers_names_of_parameters_and_places_in_the_file_do_not_count() {
    let old = "struct s { char *p; int (*f)(int a); int n; } g; int f(void) { return 1; }";
    let new =
        "\n\nstruct s { const char *p; int (*f)(int b); volatile int n; } g;\nint f(void) { int x = g.n; return x; }";
    assert_eq!(c(old, new), NOTHING);
}

#[test]
fn recursive_types() {
    let old =
        "struct a; struct b { struct a *up; struct b *next; }; struct a { struct b in; struct a *(*f)(struct b); } g;";
    assert_eq!(c(old, old), NOTHING);
    let new =
        "struct a; struct b { struct b *next; struct a *up; }; struct a { struct b in; struct a *(*f)(struct b); } g;";
    let found = c(old, new);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("HP0401 b | "));
}

/// Files may each have their own `struct ctx`.
#[test]
fn file_local_types_of_one_name() {
    let first = "struct ctx { int a; }; struct ctx one;";
    let second = "struct ctx { long b, c; }; struct ctx two;";
    let compare = |old: [&str; 2], new: [&str; 2]| {
        let build = |s: [&str; 2]| build_files("c", "-g", &[("one", s[0]), ("two", s[1])]);
        messages(&build(old), &build(new))
    };
    assert_eq!(compare([first, second], [first, second]), NOTHING);
    assert_eq!(
        compare([first, second], [first, "struct ctx { long b, d; }; struct ctx two;"]),
        ["HP0401 ctx | struct ctx: in two.c: member 'c' at offset 8 is now called 'd'"]
    );
    // The same two definitions, but each file has the other's.
    let swapped = compare(
        [first, second],
        ["struct ctx { long b, c; }; struct ctx one;", "struct ctx { int a; }; struct ctx two;"],
    );
    assert_eq!(swapped.len(), 2, "{swapped:?}");
    assert!(swapped.iter().any(|m| m.contains("in one.c: size 4 → 16 bytes")), "{swapped:?}");
    // Both have become one.
    let third = "struct ctx { long b, c, d; }; struct ctx";
    let one = compare([first, second], [&format!("{third} one;"), &format!("{third} two;")]);
    let wanted = ["in one.c: size 4 → 24 bytes", "in two.c: size 16 → 24 bytes; member 'd' added at 16"];
    assert_eq!(one.len(), 2, "{one:?}");
    assert!(wanted.iter().zip(&one).all(|(part, found)| found.contains(part)), "{one:?}");
    // One more, one less.
    let come = compare([first, "int two;"], [first, second]);
    assert_eq!(come, ["HP0401 ctx | struct ctx: another definition of that name (two.c) came into being"]);
    let gone = compare([first, second], [first, "int two;"]);
    assert_eq!(gone, ["HP0401 ctx | struct ctx: one of its definitions (two.c) no longer exists"]);
}

#[test]
fn types_inside_functions() {
    let old = "int f(void) { static struct in { int a; } x; return x.a; } int g(void) { static struct in { int b; } x; return x.b; }";
    let new = "int f(void) { static struct in { int a; } x; return x.a; } int g(void) { static struct in { int c; } x; return x.c; }";
    assert_eq!(c(old, new), ["HP0401 g::in | struct g::in: member 'b' at offset 0 is now called 'c'"]);
}

#[test]
fn classes_in_namespaces_bases_and_templates() {
    let source = |b: &str, t: &str| {
        format!(
            "namespace n {{ struct B {{ int x; {b} }}; struct D : B {{ int y; struct In {{ int z; }} in; }}; }}
             namespace m {{ struct B {{ long other; }}; }}
             template <class T, int N> struct A {{ T t[N]; {t} }};
             n::D d; m::B b; A<int, 3> a; A<char, 1> a1; int n::B::* p;"
        )
    };
    assert_eq!(cc(&source("", ""), &source("", "")), NOTHING);
    assert_eq!(
        cc(&source("", ""), &source("int k;", "")),
        [
            "HP0401 n::B | struct n::B: size 4 → 8 bytes; member 'k' added at 4",
            "HP0401 n::D | struct n::D: size 12 → 16 bytes; member 'y' moved from offset 4 to 8; member 'in' moved from offset 8 to 12"
        ]
    );
    let found = cc(&source("", ""), &source("", "static int s; char c;"));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("HP0401 A<char, 1> | struct A<char, 1>: size 1 → 2 bytes; member 'c' added at 1"));
    let found = cc("struct B { int b; }; struct D { B b; } d;", "struct B { int b; }; struct D : B { } d;");
    assert_eq!(found, ["HP0401 D | struct D: member 'b' at offset 0 removed; base class 'struct B' added at 0"]);
}

#[test]
fn vtables() {
    let source = |body: &str, more: &str| {
        format!("struct V {{ {body} int x; }}; int V::f() {{ return 1; }} int V::g() {{ return 2; }} {more} V v;")
    };
    let (f, g) = ("virtual int f();", "virtual int g();");
    let one = source(&format!("{f}{g}"), "");
    assert_eq!(cc(&one, &one), NOTHING);
    assert_eq!(
        cc(&one, &source(&format!("{g}{f}"), "")),
        ["HP0401 V | struct V: virtual function '_ZN1V1fEv' moved from vtable slot 0 to 1; \
          virtual function '_ZN1V1gEv' moved from vtable slot 1 to 0"]
    );
    let found = cc(&one, &source(&format!("{f}{g} virtual int h();"), "int V::h() { return 3; }"));
    assert_eq!(found, ["HP0401 V | struct V: virtual function '_ZN1V1hEv' added at vtable slot 2"]);
    // One that is not virtual takes no slot.
    assert_eq!(cc(&one, &source(&format!("{f}{g} int h();"), "int V::h() { return 3; }")), NOTHING);
}

/// Every use of an alias template has the same name, and so has every lambda of one signature.
#[test]
fn what_cxx_calls_alike_is_no_difference() {
    let head = "template <class T> struct id { typedef T type; }; template <class T> using id_t = typename id<T>::type;
        template <class F> int run(F f) { return f(1); }";
    let old = format!("{head} id_t<int> a; int f(int n) {{ return run([n](int x) {{ return x + n; }}); }}");
    let new = format!(
        "{head} id_t<int> a; id_t<long> b;
         int f(int n) {{ long m = n; return run([n](int x) {{ return x + n; }}) + run([m](int x) {{ return x + (int)m; }}); }}"
    );
    assert_eq!(cc(&old, &new), NOTHING);
}

#[test]
fn rust_enums() {
    let source = |e: &str, f: &str| {
        format!(
            "{e}
             #[derive(Clone, Copy)] pub enum Plain {{ A = 1, B = 5 }}
             pub struct Held {{ pub e: E, pub p: Plain, pub o: Option<Box<u32>> }}
             #[unsafe(no_mangle)] pub extern \"C\" fn f(h: &Held) -> u64 {{ {f} h.p as u64 }}"
        )
    };
    let old = source("pub enum E { One(u32), Two { a: u64 }, Three }", "");
    assert_eq!(rust(&old, &source("pub enum E { One(u32), Two { a: u64 }, Three }", "let _ = &h.o;")), NOTHING);
    let found = rust(&old, &source("pub enum E { Two { a: u64 }, One(u32), Three }", ""));
    assert!(
        found.contains(
            &"HP0401 x::E | struct x::E: variant 'One' changed type from struct x::E::One if 0 to struct x::E::One if 1; \
              variant 'Two' changed type from struct x::E::Two if 1 to struct x::E::Two if 0"
                .to_string()
        ),
        "{found:?}"
    );
    let found = rust(&old, &source("pub enum E { One(u32), Two { a: i64 }, Three }", ""));
    assert_eq!(found, ["HP0401 x::E::Two | struct x::E::Two: member 'a' changed type from u64 to i64"]);
    let plain = old.replace("A = 1, B = 5", "A = 1, C = 3, B = 6");
    assert_eq!(
        rust(&old, &plain),
        ["HP0401 x::Plain | enum x::Plain: enumerator 'C' added at value 3; enumerator 'B' = 5 → 6"]
    );
    assert_eq!(rust(&old, &old.replace("A = 1, B = 5", "A = 1, B = 5, C = 6")), NOTHING);
}

/// `readelf` and `pahole` agree with the compiler's own idea of the sizes; so must we.
#[test]
fn sizes_are_those_of_the_compiler() {
    let source = "struct a { char c; long l; int i:5, j:9; double d[3]; }; union b { struct a a; char raw[100]; };
        struct c { union b b[2]; short s; } __attribute__((packed)); struct c g;
        const unsigned long sizes[] = { sizeof(struct a), sizeof(union b), sizeof(struct c), __builtin_offsetof(struct c, s) };";
    let all = all(&build("c", "-g", source));
    let text = |name: &str| {
        let key = (super::define::Space::Type, name.as_bytes().into());
        String::from_utf8(all.types[&key][0].text.to_vec()).unwrap()
    };
    assert!(
        text("a").starts_with("struct\t48\t\t\nm\tc\t0\tchar\nm\tl\t64\tlong int\nm\ti\t128:5\tint\nm\tj\t133:9\tint")
    );
    assert!(text("b").starts_with("union\t104\t"));
    assert_eq!(text("c"), "struct\t210\t\t\nm\tb\t0\tunion b[2]\nm\ts\t1664\tshort int");
}

#[test]
fn without_debug_information_nothing_is_proven() {
    let source = "struct s { int a; } g;";
    let (with, without) = (build("c", "-g", source), build("c", "", source));
    let subjects = |old: &[u8], new: &[u8]| -> Vec<(Code, String)> {
        findings(old, new).into_iter().map(|f| (f.code, f.subject)).collect()
    };
    assert_eq!(subjects(&without, &with), [(Code::LayoutUnproven, "old".to_string())]);
    assert_eq!(subjects(&with, &without), [(Code::LayoutUnproven, "new".to_string())]);
    assert_eq!(subjects(&without, &without), [(Code::LayoutUnproven, "both".to_string())]);
    assert_eq!(subjects(&with, &with), []);
    // Line tables alone describe no types.
    assert_eq!(subjects(&with, &build("c", "-g1", source)), [(Code::LayoutUnproven, "new".to_string())]);
    let split = messages(&with, &build("c", "-g -gsplit-dwarf -c", source));
    assert_eq!(split.len(), 1);
    assert!(split[0].contains(".dwo"), "{split:?}");
}

/// Whatever byte is broken, there is an answer and no panic.
#[test]
fn malformed_dwarf_is_a_finding() {
    use object::{Object, ObjectSection};
    let source = "typedef struct s { struct s *n; int a:3; enum { A, B } e; int (*f)(struct s, int[3]); } t; t g;
        int h(int x) { static t st; return st.a + x; }";
    let good = build("c", "-gdwarf-5", source);
    let places: Vec<(usize, usize)> = [".debug_info", ".debug_abbrev", ".debug_str"]
        .into_iter()
        .map(|name| {
            let (start, size) =
                object::File::parse(&*good).unwrap().section_by_name(name).unwrap().file_range().unwrap();
            (start as usize, size as usize)
        })
        .collect();
    let mut unproven = 0;
    for (start, size) in places {
        for at in start..start + size {
            for value in [0xff, good[at] ^ 1] {
                let mut bad = good.clone();
                bad[at] = value;
                let found = findings(&good, &bad);
                unproven += usize::from(found.iter().any(|f| f.code == Code::LayoutUnproven));
                variables(&bad);
            }
        }
    }
    assert!(unproven > 100, "{unproven}");
}

#[test]
fn a_size_that_no_compressed_section_can_have_is_refused() {
    use object::{Object, ObjectSection};
    let source: String = (0..200).map(|i| format!("struct some_long_name_{i} {{ int a; }} a_global_{i};\n")).collect();
    let mut bad = build("c", "-g -gz", &source);
    let section = object::File::parse(&*bad).unwrap().section_by_name(".debug_str").unwrap().file_range().unwrap();
    // ch_size of the ELF compression header.
    bad[section.0 as usize + 8..][..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let found = messages(&bad, &bad);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("HP0402 old") && found[0].contains(".debug_str"), "{found:?}");
}

#[test]
fn the_same_answer_each_time() {
    let file = |extra: &str| -> String {
        (0..200).map(|i| format!("struct s{i} {{ int a{extra}; struct s{} *p; }} g{i};\n", (i * 7) % 200)).collect()
    };
    let (old, new) = (build("c", "-g", &file("")), build("c", "-g", &file(", b")));
    let first = messages(&old, &new);
    assert_eq!(first.len(), 200);
    assert!(first.is_sorted());
    assert!((0..5).all(|_| messages(&old, &new) == first));
}

fn locals(language: &str, flags: &str, source: &str) -> Vec<Variable> {
    let build = build(language, flags, source);
    let mut locals = variables(&build);
    locals.retain(Variable::is_local);
    assert!(locals.is_sorted() && locals.iter().all(|l| l.address != 0));
    locals.sort_by(|a, b| (&a.function, &a.name, a.size).cmp(&(&b.function, &b.name, b.size)));
    locals
}

#[test]
fn static_locals_have_owner_and_size() {
    let source = "#include <stddef.h>
        static inline int f(int a) { static int counter = 3; static const char *names[4]; names[a & 3] = \"x\";
            { static long counter; counter += a; counter++; } return counter++ + (names[1] != NULL); }
        static __attribute__((noinline)) int k(int a, int unused) { static struct { int q, r; } zed; zed.q += a; return zed.q; }
        static int file_local; static __thread int in_thread;
        int g(int a) { static int counter; static __thread int t; t++; in_thread++; file_local++; counter += a; return f(a) + f(t) * counter + k(a, 1); }";
    for flags in ["-g -O2", "-gdwarf-4 -O0", "-gdwarf-5 -O3 -gz", "-g -O2 -flto"] {
        let found: Vec<_> =
            locals("c", flags, source).into_iter().map(|l| (l.unit, l.function, l.name, l.size)).collect();
        let of = |f: &str, n: &str, s| ("x.c".to_string(), f.to_string(), n.to_string(), Some(s));
        let expected = [
            of("f", "counter", 4),
            of("f", "counter", 8),
            of("f", "names", 32),
            of("g", "counter", 4),
            of("k", "zed", 8),
        ];
        assert_eq!(found, expected, "{flags}");
    }
}

#[test]
fn static_locals_of_cxx_members_go_by_linkage_name() {
    let source = "struct S { int m(int); inline int n(int a) { static int z; return z += a; } };
        int S::m(int a) { static int y; return (y += a) + n(a); } int use(S &s) { return s.m(1) + s.n(2); }";
    for flags in ["-g -O2", "-g -O0"] {
        let found: Vec<_> = locals("cc", flags, source).into_iter().map(|l| (l.function, l.name)).collect();
        let of = |f: &str, n: &str| (f.to_string(), n.to_string());
        assert_eq!(found, [of("_ZN1S1mEi", "y"), of("_ZN1S1nEi", "z")], "{flags}");
    }
}
