//! Numbers in memory that outlives a function: what changed its meaning is said, and an error if asked for.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{Code, Finding, Level, Options, Report};

/// Compiles `source` as a shared object, twice: the second time with `NEW` defined.
fn pair(directory: &Path, source: &str) -> (PathBuf, PathBuf) {
    std::fs::write(directory.join("code.c"), source).unwrap();
    let build = |name: &str, version: &str| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-g", "-fPIC", "-shared", "-Wl,--build-id", version, "code.c", "-o", name]);
        assert!(gcc.current_dir(directory).status().unwrap().success(), "gcc failed");
        directory.join(name)
    };
    (build("old.so", "-DOLD"), build("new.so", "-DNEW"))
}

fn diff(source: &str, options: &Options) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = pair(directory.path(), source);
    hp_diff::diff(&old, &new, options).unwrap()
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
