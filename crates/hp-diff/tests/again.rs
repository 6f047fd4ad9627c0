//! Nothing invented: real programs, built or linked again with nothing changed that matters, have no changed function.
//!
//! `cargo xtask test` builds them; see `testdata/recipes`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hp_diff::{Change, ChangeKind, Code, Level, Options, Report};
use libtest_mimic::{Arguments, Failed, Trial};

const PROGRAMS: [(&str, &str); 3] = [("nginx", "nginx"), ("redis", "redis-server"), ("jsonnet", "jsonnet")];

type Judge = fn(&Pair) -> Result<(), Failed>;

/// The folder of a build, and what must come of it and the first one.
const VARIANTS: [(&str, Judge); 5] = [
    ("linked", nothing),
    ("rebuilt", nothing),
    ("reversed", another_order),
    ("in-front", two_more),
    ("blank-lines", lines_at_most),
];

struct Pair {
    first: PathBuf,
    other: PathBuf,
    /// The same, stripped or not.
    old: PathBuf,
    new: PathBuf,
    stripped: bool,
    _folder: tempfile::TempDir,
}

fn main() -> ExitCode {
    let pairs = std::env::var_os("HP_REAL_PAIRS").map(|pairs| PathBuf::from(pairs).join("again"));
    let mut trials = Vec::new();
    for (package, program) in PROGRAMS {
        let folder = pairs.as_ref().map(|pairs| pairs.join(package)).filter(|folder| folder.join("stamp").exists());
        let Some(folder) = folder else {
            println!("{package} is ignored: its builds are not there; `cargo xtask test` makes them");
            trials.push(Trial::test(package, || Ok(())).with_ignored_flag(true));
            continue;
        };
        let first = folder.join("first").join(program);
        let mut add = |name: &str, other: PathBuf, judge: Judge| {
            for stripped in [false, true] {
                let name = format!("{package} {name}{}", if stripped { ", stripped" } else { "" });
                let (first, other) = (first.clone(), other.clone());
                trials.push(Trial::test(name, move || judge(&pair(&first, &other, stripped))));
            }
        };
        add("itself", first.clone(), nothing);
        for (name, judge) in VARIANTS {
            let other = folder.join(name).join(program);
            if other.exists() {
                add(name, other, judge);
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Copies, so that two builds that are one file are not seen to be.
fn pair(first: &Path, other: &Path, stripped: bool) -> Pair {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    for (from, to) in [(first, &old), (other, &new)] {
        if stripped {
            strip(from, to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
    Pair { first: first.to_owned(), other: other.to_owned(), old, new, stripped, _folder: folder }
}

fn strip(from: &Path, to: &Path) {
    assert!(Command::new("strip").arg(from).arg("-o").arg(to).status().unwrap().success());
}

fn diff(pair: &Pair, options: &Options) -> Report {
    hp_diff::diff(&pair.old, &pair.new, options).unwrap()
}

fn only(kind: ChangeKind, changes: &[Change]) -> Vec<&str> {
    changes.iter().filter(|c| c.kind == kind).map(|c| c.name.as_str()).collect()
}

fn fail_unless(good: bool, report: &Report) -> Result<(), Failed> {
    let kinds = [ChangeKind::Changed, ChangeKind::LineOnly, ChangeKind::Added, ChangeKind::Removed];
    let changes: Vec<_> = kinds.iter().map(|kind| (kind, only(*kind, &report.changes))).collect();
    let findings: Vec<_> = report.findings.iter().map(|f| format!("{} {}", f.code, f.subject)).collect();
    if good { Ok(()) } else { Err(format!("{changes:?} {findings:?}").into()) }
}

fn nothing(pair: &Pair) -> Result<(), Failed> {
    let report = diff(pair, &Options::default());
    fail_unless(report.changes.is_empty() && report.findings.is_empty() && report.patch.is_none(), &report)
}

/// Of a function that several objects have, such as an instance of a template, the linker takes the first, and one compiler
/// run may have inlined more into it than another. Those are the weak symbols; everything else must be the same. A static
/// copy that such a function calls comes and goes with it, and constructors run in another order.
fn another_order(pair: &Pair) -> Result<(), Failed> {
    let report = diff(pair, &Options::default());
    let weak = weak_functions(&pair.first);
    if !weak.iter().any(|name| name.starts_with("_Z")) {
        // Without names it is not known how far the constants reach that begin shortly behind a table which code reads
        // through an index: whether the table or one of those is meant stays open in two or three functions.
        let few = if pair.stripped { 3 } else { 0 };
        let changed = only(ChangeKind::Changed, &report.changes).len();
        let good = changed <= few && report.changes.len() == changed && report.patch.is_none();
        return fail_unless(good && (changed > 0 || !report.refused()), &report);
    }
    if pair.stripped {
        // What the linker chose is not to be seen without names; but no patch may come of it.
        return fail_unless(report.refused(), &report);
    }
    let changed = only(ChangeKind::Changed, &report.changes);
    fail_unless(report.identical > 0 && changed.iter().all(|name| weak.contains(*name)), &report)
}

fn weak_functions(program: &Path) -> BTreeSet<String> {
    let names = Command::new("nm").arg(program).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    names.lines().filter_map(|line| line.split_once(" W ")).map(|(_, name)| name.to_owned()).collect()
}

fn two_more(pair: &Pair) -> Result<(), Failed> {
    let report = diff(pair, &Options::default());
    let added = only(ChangeKind::Added, &report.changes);
    let names = pair.stripped || added == ["hp_in_front", "hp_in_front_too"];
    let alone = report.changes.len() == 2 && added.len() == 2 && report.patch.is_none() && !report.refused();
    fail_unless(names && alone, &report)
}

/// Functions may differ in line numbers. A few of them cannot be proven to differ in nothing else: a number that one way hands to
/// a call and another way lets pass through a call that may or may not take it; a number in a structure.
fn lines_at_most(pair: &Pair) -> Result<(), Failed> {
    if pair.stripped {
        return as_with_names(pair);
    }
    let report = diff(pair, &Options::default());
    let (changed, lines) = (only(ChangeKind::Changed, &report.changes), only(ChangeKind::LineOnly, &report.changes));
    let others = report.changes.len() - changed.len() - lines.len();
    fail_unless(others == 0 && changed.len() * 40 <= lines.len(), &report)
}

/// Without names and line tables: what differs is what differs with them, or a finding says of the function that it is not proven.
fn as_with_names(pair: &Pair) -> Result<(), Failed> {
    let options = Options { exact_lines: true, ..Options::default() };
    let whole = hp_diff::diff(&pair.first, &pair.other, &options).unwrap();
    let report = diff(pair, &options);
    let differ = |c: &&Change| c.kind == ChangeKind::Changed;
    let known: BTreeSet<u64> = whole.changes.iter().filter(differ).map(|c| c.old_address).collect();
    let fragments = fragments(&pair.first);
    let doubted: BTreeSet<&str> =
        report.findings.iter().filter(|f| f.level == Level::Error).map(|f| f.subject.as_str()).collect();
    let invented: Vec<&Change> = report
        .changes
        .iter()
        .filter(differ)
        .filter(|c| !known.contains(&c.old_address) && !fragments.contains(&c.old_address))
        .filter(|c| !doubted.contains(c.name.as_str()))
        .collect();
    let found = report.changes.iter().filter(differ).filter(|c| known.contains(&c.old_address)).count();
    let missed = known.len() - found;
    println!("{} of {} found, {} invented", found, known.len(), invented.len());
    let accounted =
        missed == 0 || report.findings.iter().any(|f| f.level == Level::Error && f.code != Code::LayoutUnproven);
    if invented.is_empty() && accounted {
        Ok(())
    } else {
        Err(format!("{missed} missed, invented: {invented:#?}").into())
    }
}

/// Where code lies that a compiler moved out of its function: without names that counts as a function of its own.
fn fragments(program: &Path) -> BTreeSet<u64> {
    let names = Command::new("nm").arg(program).output().unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    let cold = names.lines().filter(|line| line.ends_with(".cold"));
    cold.filter_map(|line| u64::from_str_radix(line.split(' ').next()?, 16).ok()).collect()
}
