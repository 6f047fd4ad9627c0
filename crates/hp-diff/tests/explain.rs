//! Why a function differs: the cause, the first instruction and the place in the source, for one edit at a time.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{Change, ChangeKind, Explanation, Options, Reason, Report, RowKind};

const PROGRAM: &str = r#"#include <stdio.h>
#include <stdlib.h>
static inline __attribute__((always_inline)) int scaled(int x) {
    return x * 3 + 1;
}
__attribute__((noinline)) int one(int x) { return x ^ 0x55; }
__attribute__((noinline)) int two(int x) { return x ^ 0x66; }
__attribute__((noinline)) int pick(int x) {
    if (x > 5)
        return one(x) + 1;
    return abs(x);
}
static const int weights[] = {1, 2, 3, 4, 5, 6, 7, 8};
__attribute__((noinline)) int weigh(int x) { return weights[x & 7]; }
__attribute__((noinline)) int sum(int *all, int n) {
    int total = 0;
    for (int i = 0; i < n; i++)
        total += scaled(all[i]);
    return total;
}
__attribute__((noinline)) int route(int x) {
    switch (x) {
    case 0: return one(x); case 1: return two(x); case 2: return abs(x) + 4; case 3: return rand();
    case 4: return rand() + 1; case 5: puts("five"); return 5; case 6: return puts("six");
    }
    return -1;
}
int main(int argc, char **argv) {
    int all[3] = {argc, argc + 1, argc + 2};
    puts("hello");
    printf("%d %d %d %d %d\n", sum(all, 3), pick(argc), two(argc), weigh(argc), route(argc));
    return argv[0] == 0;
}
"#;

struct Pair {
    folder: tempfile::TempDir,
    flags: Vec<&'static str>,
}

impl Pair {
    fn new(flags: &[&'static str]) -> Pair {
        Pair { folder: tempfile::tempdir().unwrap(), flags: flags.to_vec() }
    }

    fn build(&self, name: &str, source: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("program.c"), source).unwrap();
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-g", "-fno-ipa-icf", "program.c", "-o", "program"]).args(&self.flags).current_dir(&folder);
        assert!(gcc.status().unwrap().success());
        folder.join("program")
    }

    /// Compares the program with itself after one edit, and explains `name`.
    fn edited(&self, from: &str, to: &str, name: &str) -> Report {
        let edited = PROGRAM.replace(from, to);
        assert_ne!(edited, PROGRAM, "nothing was edited");
        explained(&self.build("old", PROGRAM), &self.build("new", &edited), name)
    }
}

fn explained(old: &Path, new: &Path, name: &str) -> Report {
    let options = Options { explain: vec![name.into()], ..Options::default() };
    hp_diff::diff(old, new, &options).unwrap()
}

fn change<'r>(report: &'r Report, name: &str) -> &'r Change {
    let found = report.changes.iter().find(|c| c.name == name && c.kind == ChangeKind::Changed);
    found.unwrap_or_else(|| panic!("{name} is not among {:?}", report.changes))
}

fn explanation(report: &Report) -> &Explanation {
    &report.explanations[0]
}

/// The texts of the rows that differ: old, new.
fn differing(report: &Report) -> Vec<(Option<&str>, Option<&str>)> {
    let rows = explanation(report).rows.iter().filter(|r| r.kind != RowKind::Same);
    rows.map(|r| (r.old.as_ref().map(|i| i.text.as_str()), r.new.as_ref().map(|i| i.text.as_str()))).collect()
}

#[test]
fn own_code_names_the_line_and_both_instructions() {
    let report = Pair::new(&[]).edited("x ^ 0x55", "x ^ 0x77", "one");
    let one = change(&report, "one");
    assert_eq!(one.reason, Reason::OwnCode, "{one:?}");
    let place = one.first.new.as_ref().unwrap().place.as_ref().unwrap();
    assert!(place.file.ends_with("new/program.c"), "{place:?}");
    assert_eq!(place.line, 6);
    assert!(one.cause.contains("(program.c:6)"), "{}", one.cause);
    assert!(one.cause.contains("0x55") && one.cause.contains("0x77"), "{}", one.cause);
    let rows = differing(&report);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert!(rows[0].0.unwrap().ends_with("0x55") && rows[0].1.unwrap().ends_with("0x77"), "{rows:?}");
}

#[test]
fn an_inlined_function_is_named() {
    let report = Pair::new(&[]).edited("x * 3 + 1", "x * 7 - 9", "sum");
    let sum = change(&report, "sum");
    assert_eq!(sum.reason, Reason::InlinedCallee, "{sum:?}");
    assert_eq!(sum.inlined.as_deref(), Some("scaled"));
    assert!(sum.cause.starts_with("inlined scaled at"), "{}", sum.cause);
    assert!(sum.cause.contains("program.c:4"), "{}", sum.cause);
}

#[test]
fn another_callee_is_named_with_the_one_before() {
    let report = Pair::new(&[]).edited("return one(x) + 1;", "return two(x) + 1;", "pick");
    let pick = change(&report, "pick");
    assert_eq!(pick.reason, Reason::CalleeReplaced, "{pick:?}");
    assert!(pick.cause.starts_with("calls two instead of one at"), "{}", pick.cause);
    assert_eq!(differing(&report), [(Some("call one"), Some("call two"))]);
}

#[test]
fn changed_texts_and_tables_are_constants() {
    let pair = Pair::new(&[]);
    let report = pair.edited("\"hello\"", "\"jello\"", "main");
    let main = change(&report, "main");
    assert_eq!(main.reason, Reason::ChangedConstant, "{main:?}");
    assert!(main.cause.starts_with("refers to \"jello\" instead of \"hello\""), "{}", main.cause);
    let report = pair.edited("{1, 2, 3, 4,", "{1, 2, 9, 4,", "weigh");
    let weigh = change(&report, "weigh");
    assert_eq!(weigh.reason, Reason::ChangedConstant, "{weigh:?}");
    assert!(weigh.cause.starts_with("refers to weights, which changed"), "{}", weigh.cause);
}

#[test]
fn code_behind_an_insertion_is_equal_though_everything_moved() {
    let report = Pair::new(&[]).edited("case 5: puts(\"five\");", "case 5: puts(\"five\"); puts(\"more\");", "route");
    let rows = &explanation(&report).rows;
    let same = rows.iter().filter(|r| r.kind == RowKind::Same).count();
    let differing = rows.len() - same;
    assert!(differing <= 6 && same >= 20, "{same} equal, {differing} not: {rows:#?}");
    assert!(
        rows.iter()
            .any(|r| { r.kind == RowKind::Added && r.new.as_ref().is_some_and(|i| i.text.contains("\"more\"")) })
    );
}

#[test]
fn swapped_cases_of_a_switch_are_no_noise() {
    let swapped = PROGRAM
        .replace("case 0: return one(x); case 1: return two(x);", "case 1: return one(x); case 0: return two(x);");
    let pair = Pair::new(&[]);
    let report = explained(&pair.build("old", PROGRAM), &pair.build("new", &swapped), "route");
    let route = change(&report, "route");
    assert_ne!(route.reason, Reason::CompilerNoise, "{route:?}");
}

#[test]
fn padding_alone_is_noise() {
    let pair = Pair::new(&[]);
    let old = pair.build("old", PROGRAM);
    let aligned = Pair { flags: vec!["-falign-loops=64"], folder: pair.folder };
    let report = explained(&old, &aligned.build("new", PROGRAM), "sum");
    let sum = change(&report, "sum");
    assert_eq!(sum.reason, Reason::CompilerNoise, "{sum:?} {:#?}", differing(&report));
}

#[test]
fn without_debug_information_there_are_no_places() {
    let report = Pair::new(&["-g0"]).edited("x ^ 0x55", "x ^ 0x77", "one");
    let one = change(&report, "one");
    assert_eq!(one.reason, Reason::OwnCode);
    assert_eq!(one.first.new.as_ref().unwrap().place, None);
    assert!(one.cause.starts_with("own code at +0x"), "{}", one.cause);
}
