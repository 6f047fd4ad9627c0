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
