//! What live memory means to new code: numbers that changed are said, types and identities of variables are kept or refused.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{Code, Finding, Level, Options, Report};

/// Compiles `source` as a shared object, twice: the second time with `NEW` defined.
fn pair(directory: &Path, source: &str, debug: &str) -> (PathBuf, PathBuf) {
    std::fs::write(directory.join("code.c"), source).unwrap();
    let build = |name: &str, version: &str| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", debug, "-fPIC", "-shared", "-Wl,--build-id", version, "code.c", "-o", name]);
        assert!(gcc.current_dir(directory).status().unwrap().success(), "gcc failed");
        directory.join(name)
    };
    (build("old.so", "-DOLD"), build("new.so", "-DNEW"))
}

fn diff(source: &str, options: &Options) -> Report {
    diff_with("-g", source, options)
}

fn diff_with(debug: &str, source: &str, options: &Options) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = pair(directory.path(), source, debug);
    hp_diff::diff(&old, &new, options).unwrap()
}

/// Errors by code and subject.
fn errors(report: &Report) -> Vec<(Code, &str)> {
    let errors = report.findings.iter().filter(|f| f.level == Level::Error && !f.accepted);
    errors.map(|f| (f.code, f.subject.as_str())).collect()
}

fn numbers(report: &Report) -> Vec<&Finding> {
    report.findings.iter().filter(|f| f.code == Code::NumberChanged).collect()
}

const FLAG: &str = r#"
struct session { long id; unsigned flags; };
#ifdef NEW
#define CLOSED 8
#else
#define CLOSED 4
#endif
int is_closed(const struct session *s) { return (s->flags & CLOSED) != 0; }
void open_it(struct session *s) { s->flags = 1; }
"#;

#[test]
fn a_flag_that_moved_to_another_bit_is_a_warning_with_its_place() {
    let report = diff(FLAG, &Options::default());
    let found = numbers(&report);
    assert_eq!(found.len(), 1, "{:?}", report.findings);
    assert_eq!((found[0].level, found[0].subject.as_str()), (Level::Warning, "is_closed"));
    assert!(found[0].message.contains("offset 0x8"), "{}", found[0].message);
    assert!(report.patch.is_some());
}

#[test]
fn under_strict_it_is_an_error_that_can_be_accepted_by_name() {
    let strict = Options { strict: true, ..Options::default() };
    assert!(diff(FLAG, &strict).patch.is_none());
    let accepted = Options { allow: vec![(Code::NumberChanged, Some("is_closed".into()))], ..strict };
    let report = diff(FLAG, &accepted);
    assert!(report.patch.is_some() && numbers(&report)[0].accepted);
}

#[test]
fn states_in_variables_and_bounds_of_members_are_found() {
    let source = r#"
#ifdef NEW
enum { IDLE = 1, BUSY = 3 }; enum { LIMIT = 100 };
#else
enum { IDLE = 1, BUSY = 2 }; enum { LIMIT = 101 };
#endif
struct buffer { unsigned char *start; int used; };
static int state;
void begin(void) { state = BUSY; }
int now(void) { return state; }
int fits(const struct buffer *b) { return b->used <= LIMIT; }
"#;
    let report = diff(source, &Options::default());
    let subjects: Vec<&str> = numbers(&report).iter().map(|f| f.subject.as_str()).collect();
    assert_eq!(subjects, ["begin", "fits"], "{:?}", report.findings);
    assert!(numbers(&report)[0].message.contains("state"), "{:?}", report.findings);
}

#[test]
fn an_added_check_and_numbers_of_the_frame_are_none() {
    let source = r#"
struct buffer { unsigned char *start; int used; };
void fill(int *words, int n);
int sum(const struct buffer *b) {
    int words[4] = {0};
#ifdef NEW
    if (b->used > 3) return -1;
    words[1] = 9;
#else
    words[1] = 7;
#endif
    fill(words, b->used);
    return words[0];
}
"#;
    let report = diff(source, &Options::default());
    assert_eq!(report.changes.len(), 1);
    assert!(numbers(&report).is_empty(), "{:?}", report.findings);
}

#[test]
fn what_new_code_releases_and_the_old_left_alone_is_refused() {
    let source = r#"
#include <stdlib.h>
struct info { char *palette; }; struct reader { long id; char *palette; char *name; };
void set(struct reader *r, struct info *i, char *p) {
    free(r->name);
    i->palette = p;
#ifdef NEW
    free(r->palette);
    r->palette = malloc(256);
#else
    r->palette = p;
#endif
}
"#;
    let report = diff(source, &Options::default());
    let found: Vec<&Finding> = report.findings.iter().filter(|f| f.code == Code::ReleaseAdded).collect();
    assert_eq!(found.len(), 1, "{:?}", report.findings);
    assert!(found[0].message.contains("free") && found[0].message.contains("offset 0x8"), "{}", found[0].message);
    assert!(!found[0].message.contains("0x10 of an object"), "{}", found[0].message);
    let line = source.lines().position(|line| line.contains("free(r->palette)")).unwrap() + 1;
    assert!(found[0].message.contains(&format!(".c:{line}) free")), "{}", found[0].message);
    assert!(report.patch.is_none());
    let allow = vec![(Code::ReleaseAdded, None)];
    assert!(diff(source, &Options { allow, ..Options::default() }).patch.is_some());
}

/// The compiler inlines a destructor in the one build and calls it in the other.
#[test]
fn a_release_that_was_in_a_callee_before_is_none() {
    let source = r#"
#include <stdlib.h>
#ifdef NEW
#define HOW static inline __attribute__((always_inline))
#else
#define HOW __attribute__((noinline))
#endif
struct reader { long id; char *palette; char *name; };
HOW void clear(struct reader *r) { free(r->palette); free(r->name); }
void destroy(struct reader *r) { clear(r); free(r); }
void (*volatile use)(struct reader *) = destroy;
"#;
    let report = diff(source, &Options::default());
    let found: Vec<&Finding> = report.findings.iter().filter(|f| f.code == Code::ReleaseAdded).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(report.changes.iter().any(|c| c.name == "destroy"), "{:?}", report.changes);
}

/// The releases that are said, with their levels, of a change of a program around an owned text.
fn releases_of(new: &str, other: &str) -> Vec<(Level, String)> {
    let source = format!(
        r#"
#include <stdlib.h>
#include <string.h>
#ifdef NEW
#define NOW(x) x
#define WAS(x)
#else
#define NOW(x)
#define WAS(x) x
#endif
#define APART __attribute__((noinline, noclone))
struct item {{ long id; char *spare[4]; char *text; char *other; long owned; struct item *next; }};
extern char *ref(char *), *name_of(struct item *); extern void put(struct item *, char *, int); extern void unref(char *);
typedef void callback(struct item *);
APART void set(struct item *i, const char *text) {{ free(i->text); i->text = strdup(text); }}
APART void destroy(struct item *i) {{ {new} free(i); }}
{other}
"#
    );
    let report = diff(&source, &Options::default());
    assert!(!report.changes.is_empty(), "{new}{other}");
    let found: Vec<&Finding> = report.findings.iter().filter(|f| f.code == Code::ReleaseAdded).collect();
    let refused = found.iter().any(|f| f.level == Level::Error);
    assert_eq!(report.patch.is_none(), refused, "{new}{other}: {:?}", report.findings);
    found.into_iter().map(|f| (f.level, f.subject.clone())).collect()
}

#[test]
fn a_change_that_only_releases_more_mends_a_leak() {
    let note = |name: &str| (Level::Note, name.to_owned());
    let free = "NOW(free(i->text);)";
    for (new, other) in [
        (free, ""),
        ("NOW(if (i->text) free(i->text);)", ""),
        // Before it is overwritten, and where it is the last that is done.
        ("", "APART void renew(struct item *i, char *t) { NOW(free(i->text);) i->text = t; }"),
        (
            "",
            "APART int clear(struct item *i) { if (i->owned) { put(i, 0, 1); NOW(free(i->text);) i->text = 0; } return 1; }",
        ),
        // Twice, and beside what stays as it is.
        (free, "APART void also(struct item *i) { NOW(free(i->text);) i->text = ref(i->other); }"),
    ] {
        let names: Vec<(Level, String)> = releases_of(new, other);
        assert!(!names.is_empty() && names.iter().all(|(level, _)| *level == Level::Note), "{new}{other}: {names:?}");
    }
    assert_eq!(releases_of(free, ""), [note("destroy")]);
}

/// Old objects may have another owner, or none, if anything else differs.
#[test]
fn a_release_beside_any_other_change_is_refused() {
    let free = "NOW(free(i->text);)";
    for (new, other) in [
        // What is stored has a user more now, is a copy, or something else.
        (free, "APART void take(struct item *i, char *t) { i->text = NOW(ref)(t); }"),
        (free, "APART void take(struct item *i, char *t) { NOW(ref(t);) i->text = t; }"),
        (free, "APART void take(struct item *i, char *t) { i->text = NOW(strdup)(t); }"),
        (free, "APART void take(struct item *i, struct item *j) { i->text = WAS(j->text) NOW(j->other); }"),
        (free, "APART void take(struct item *i, struct item *j, struct item *k) { i->text = WAS(j) NOW(k)->text; }"),
        (free, "APART void take(struct item *i, char **t, long n) { i->text = t[WAS(0) NOW(n)]; }"),
        (free, "APART void take(struct item *i, struct item *j, char *t) { WAS(i) NOW(j)->text = t; }"),
        (free, "APART void take(struct item *i, char *t, char *u) { i->text = WAS(t) NOW(u); }"),
        (free, "APART void take(struct item *i) { i->text = WAS(ref(i->other)) NOW(name_of(i)); }"),
        // The member is set where it was not before, or no longer; somebody gives it away now.
        (free, "APART void begin(struct item *i) { i->id = 7; NOW(i->text = 0;) }"),
        (free, "APART void begin(struct item *i) { i->id = 7; WAS(i->text = 0;) }"),
        (free, "APART char *give(struct item *i) { char *t = i->text; NOW(i->text = 0;) return t; }"),
        (free, "APART char *give(struct item *i) { return WAS(i->text) NOW(i->other); }"),
        (free, "APART char *give(struct item *i) { return WAS(i->text) NOW(0); }"),
        // Somebody else released it before, and does not any more.
        (free, "APART void end(struct item *i) { WAS(free(i->text);) destroy(i); }"),
        (free, "APART void end(struct item *i) { WAS(unref(i->text);) put(i, 0, 1); }"),
        // Another one is asked or told who owns it.
        (free, "APART void keep(struct item *i, char *t) { put(i, t, WAS(0) NOW(1)); }"),
        (free, "APART void keep(struct item *i, char *t) { i->other = t; i->owned = WAS(0) NOW(1); }"),
        (free, "APART void keep(struct item *i) { if (i->owned WAS(== 0) NOW(!= 0)) i->text = 0; else put(i, 0, 1); }"),
        (free, "APART void keep(struct item *i) { if (i->WAS(id) NOW(owned)) i->text = 0; }"),
        (free, "APART void keep(struct item *i) { i->owned--; NOW(if (i->owned)) i->text = 0; }"),
        ("NOW(if (i->owned) free(i->text);)", ""),
        // Functions and tables.
        (
            free,
            "static callback *volatile table; APART void f(struct item *i) { put(i, 0, 1); } \
            APART void g(struct item *i) { put(i, 0, 2); } APART void use(void) { table = WAS(f) NOW(g); }",
        ),
        (
            free,
            "NOW(APART void more(struct item *i) { put(i, 0, 1); }) APART void use(struct item *i) { NOW(more(i);) i->id = 3; }",
        ),
        (
            free,
            "APART void f(struct item *i) { put(i, 0, 1); } APART void g(struct item *i) { put(i, 0, 2); } \
            callback *const table[2] = { f, WAS(f) NOW(g) };",
        ),
        // In the function itself.
        ("NOW(free(i->text); i->text = 0;) put(i, 0, 1);", ""),
        ("NOW(free(i->text);) put(i, i->text, WAS(1) NOW(2));", ""),
        // It goes on being there, for all that its name says.
        (
            "",
            "extern void cleanup(char *); void tidy(struct item *i) { cleanup(i->other); } \
            APART void renew(struct item *i) { NOW(cleanup(i->other);) i->id = 5; }",
        ),
        // Nothing says that the object owns it.
        ("NOW(free(i->other);)", ""),
        ("NOW(unref(i->text);)", ""),
    ] {
        let found = releases_of(new, other);
        assert!(found.iter().any(|(level, _)| *level == Level::Error), "{new}\n{other}: {found:?}");
    }
}

/// The errors about releases, and about types, of two versions of a program of C++.
fn releases_of_cpp(source: &str) -> Vec<(Code, String)> {
    let directory = tempfile::tempdir().unwrap();
    let head = "#include <memory>\n#include <string>\n#include <vector>\n#include <cstdlib>\n\
        #ifdef NEW\n#define NOW(x) x\n#define WAS(x)\n#else\n#define NOW(x)\n#define WAS(x) x\n#endif\n";
    std::fs::write(directory.path().join("code.cc"), format!("{head}{source}")).unwrap();
    let build = |name: &str, version: &str| {
        let mut gcc = Command::new("g++");
        gcc.args(["-O2", "-g", "-fPIC", "-shared", "-Wl,--build-id", version, "code.cc", "-o", name]);
        assert!(gcc.current_dir(&directory).status().unwrap().success(), "g++ failed");
        directory.path().join(name)
    };
    let report = hp_diff::diff(&build("old.so", "-DOLD"), &build("new.so", "-DNEW"), &Options::default()).unwrap();
    assert!(!report.changes.is_empty(), "{source}");
    let known = [Code::ReleaseAdded, Code::LayoutChanged];
    errors(&report)
        .into_iter()
        .filter(|(code, _)| known.contains(code))
        .map(|(code, what)| (code, what.to_owned()))
        .collect()
}

/// As in Rust: old objects of these types own what they hold, whatever the program does.
#[test]
fn what_a_class_of_the_library_releases_its_type_says() {
    for source in [
        "struct item { long id; std::vector<int> all; }; void put(item *i, item *j) { NOW(i->all = std::move(j->all);) i->id = 1; }",
        "struct item { long id; std::unique_ptr<int> one; }; void put(item *i, int *n) { NOW(i->one.reset(n);) i->id = 1; }",
        "struct item { long id; std::shared_ptr<int> one; }; void put(item *i) { NOW(i->one.reset();) i->id = 1; }",
        "struct item { long id; std::string text; }; void put(item *i, std::string *t) { NOW(i->text = std::move(*t);) i->id = 1; }",
    ] {
        assert_eq!(releases_of_cpp(source), [], "{source}");
    }
    for source in [
        // The program itself does, be it from within a class of the library, or with its functions.
        "struct item { long id; int *one; }; void put(item *i) { NOW(delete i->one; i->one = 0;) i->id = 1; }",
        "struct item { long id; std::vector<int> *all; }; void put(item *i) { NOW(delete i->all; i->all = 0;) i->id = 1; }",
        "struct item { long id; int *one; }; \
            void put(item *i) { NOW(std::allocator<int>().deallocate(i->one, 1); i->one = 0;) i->id = 1; }",
        "struct part { void *raw; ~part() { NOW(free(raw);) } }; struct item { long id; std::unique_ptr<part> one; }; \
            void put(item *i) { i->one.reset(); i->id = WAS(1) NOW(2); }",
    ] {
        let found = releases_of_cpp(source);
        assert!(found.iter().any(|(code, _)| *code == Code::ReleaseAdded), "{source}: {found:?}");
    }
    // Here the type changed.
    let source = "struct item { long id; WAS(int *) NOW(std::unique_ptr<int>) one; }; \
        void put(item *i, int *n) { WAS(i->one = n) NOW(i->one.reset(n)); i->id = 1; }";
    let found = releases_of_cpp(source);
    assert!(found.iter().any(|(code, _)| *code == Code::LayoutChanged), "{found:?}");
}

/// Registers hold what is left from before, where a function takes fewer arguments.
#[test]
fn what_a_function_does_not_take_is_not_released() {
    let source = |release: &str, prototype: &str| {
        format!(
            r#"
struct item {{ long a, b, c; void *d, *e, *f; }};
extern void {release}({prototype});
void put(struct item *i, void *p) {{
#ifdef NEW
    void *d = i->d, *e = i->e, *f = i->f;
    i->f = d; i->d = e; i->e = f;
#endif
    {release}(p);
}}
"#
        )
    };
    let releases = |source: &str| {
        let report = diff(source, &Options::default());
        assert_eq!(report.changes.len(), 1);
        report.findings.iter().any(|f| f.code == Code::ReleaseAdded)
    };
    assert!(!releases(&source("item_free", "void *")));
    // It may take more, as far as is said; and what is no release is none.
    assert!(releases(&source("item_free", "void *, ...")));
    assert!(releases(&source("item_free", "")));
    assert!(!releases(&source("item_show", "")));
}

const SCOPE: &str = r#"
#ifdef NEW
static int left = 10;
int spend(void) { return left -= 2; }
#else
int left = 10;
int spend(void) { return left -= 1; }
#endif
"#;

#[test]
fn what_moved_with_a_refused_type_is_not_said_once_more() {
    let source = |more: &str| {
        format!(
            r#"
#include <stdlib.h>
struct session {{ long id; char *name; unsigned state; char *other;
#ifdef NEW
 long added;
#endif
 char *text; unsigned flags; }};
void reset(struct session *s) {{ free(s->name); free(s->text); s->state = 5; s->flags = 9; }}
void drop(struct session *s) {{ s->state = 3; free(s->text); {more} }}
"#
        )
    };
    let codes = |more: &str| {
        let report = diff(&source(more), &Options::default());
        report.findings.iter().map(|f| (f.code, f.subject.clone())).collect::<Vec<_>>()
    };
    let layout = (Code::LayoutChanged, "session".to_owned());
    assert_eq!(codes(""), std::slice::from_ref(&layout));
    // What did not only move is said.
    let more = "\n#ifdef NEW\n free(s->other); s->state = 8;\n#else\n s->state = 4;\n#endif\n";
    let drop = |code| (code, "drop".to_owned());
    assert_eq!(codes(more), [layout, drop(Code::ReleaseAdded), drop(Code::NumberChanged)]);
}

#[test]
fn thread_local_variables_of_one_name_in_two_files_are_two() {
    let source = r#"
#ifdef FIRST
static __thread long count = 7;
long first(void) { return count += FIXED; }
#else
static __thread char count[64] = "text";
char *second(void) { return count; }
#endif
"#;
    let directory = tempfile::tempdir().unwrap();
    let shell = |command: &str| {
        let mut sh = Command::new("sh");
        assert!(sh.current_dir(&directory).args(["-ec", command]).status().unwrap().success(), "{command}");
    };
    for part in ["first.c", "second.c"] {
        std::fs::write(directory.path().join(part), source).unwrap();
    }
    let build = |name: &str, fixed: &str, text: &str, parts: [&str; 2]| {
        let cc = "gcc -O2 -g -fPIC -c";
        shell(&format!("{cc} -DFIRST -DFIXED={fixed} {} -o a.o", parts[0]));
        shell(&format!("sed s/text/{text}/ {0} > t && cp t {0} && {cc} {0} -o b.o", parts[1]));
        shell(&format!("gcc -shared -Wl,--build-id a.o b.o -o {name}"));
        directory.path().join(name)
    };
    // Files of two names, and of one.
    for parts in [["first.c", "second.c"], ["first.c", "first.c"]] {
        let old = build("old.so", "1", "text", parts);
        let new = build("new.so", "2", "text", parts);
        let other = build("other.so", "2", "next", parts);
        let report = hp_diff::diff(&old, &new, &Options::default()).unwrap();
        assert_eq!(errors(&report), [], "{:?}", report.findings);
        let report = hp_diff::diff(&old, &other, &Options::default()).unwrap();
        assert!(errors(&report).contains(&(Code::InitialValueChanged, "count")), "{:?}", report.findings);
        std::fs::write(directory.path().join("first.c"), source).unwrap();
    }
}

#[test]
fn a_variable_that_became_static_is_still_the_same_one() {
    let report = diff(SCOPE, &Options::default());
    let patch = report.patch.unwrap();
    let copied =
        patch.sections.iter().any(|s| matches!(s.kind, hp_pack::SectionKind::Data | hp_pack::SectionKind::Bss));
    assert!(!copied, "its value would start anew");
}

#[test]
fn without_debug_information_nothing_shows_that_it_is_the_same_one() {
    let accept = Options { allow: vec![(Code::LayoutUnproven, None)], ..Options::default() };
    let report = diff_with("-g0", SCOPE, &accept);
    let mut found = errors(&report);
    found.dedup();
    assert_eq!(found, [(Code::UnpairedVariable, "spend")], "{:?}", report.findings);
}

#[test]
fn a_variable_that_kept_its_size_but_not_its_type_is_refused() {
    let source = r#"
#ifdef NEW
typedef float number;
#else
typedef int number;
#endif
static number total;
void add(int n) { total += n; }
double sum(void) { static number calls; return ++calls + total; }
"#;
    let found = diff(source, &Options::default());
    let refused: Vec<(Code, &str)> = errors(&found).into_iter().filter(|e| e.1 != "number").collect();
    assert_eq!(refused, [(Code::LayoutChanged, "calls.0"), (Code::LayoutChanged, "total")], "{:?}", found.findings);
}

#[test]
fn a_wider_type_for_the_same_values_is_a_warning() {
    let source = r#"
#include <stdbool.h>
#ifdef NEW
#define TIMES unsigned char
#define MORE(x) ((x) + 1)
#else
#define TIMES bool
#define MORE(x) 1
#endif
struct message { long id; TIMES dup; };
TIMES again;
void resend(struct message *m) { m->dup = MORE(m->dup); again = MORE(again); }
"#;
    let report = diff(source, &Options::default());
    assert!(errors(&report).is_empty() && report.patch.is_some(), "{:?}", report.findings);
    let warned: Vec<&str> =
        report.findings.iter().filter(|f| f.code == Code::LayoutChanged).map(|f| f.subject.as_str()).collect();
    assert_eq!(warned, ["again", "message"]);
}
