//! `hp diff`: the report for a person or as JSON, and the patch, which is written whole or not at all.

mod tree;

use crate::args::DiffArgs;
use crate::exit::Exit;
use crate::patch_file::write_file;
use crate::progress::Bar;
use crate::text::{BAD, BOLD, DIM, GOOD, WARN, clean, count, io_reason, notes, print_json, quiet, readable, verbose};
use anyhow::{Context, anyhow, bail};
use hp_diff::{Change, ChangeKind, Code, FileKind, Finding, Level, Options, Report};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Changes that are listed without `-v`.
const SHOWN: usize = 500;

/// The written patch, as reports name it.
#[derive(serde::Serialize)]
struct Written {
    file: Option<PathBuf>,
    name: String,
    id: String,
    size: usize,
}

/// Compares, reports, writes.
pub(crate) fn run(args: &DiffArgs) -> anyhow::Result<Exit> {
    let trees = [&args.old, &args.new].map(|path| is_tree(path));
    if trees[0] != trees[1] && [&args.old, &args.new].iter().all(|p| p.exists()) {
        let (tree, file) = if trees[0] { (&args.old, &args.new) } else { (&args.new, &args.old) };
        let (one, two) =
            if tree.is_dir() { ("a directory", "two directories") } else { ("an archive", "two archives") };
        let [tree, file] = [tree, file].map(|p| clean(&p.display().to_string()));
        bail!("{tree} is {one} and {file} is not; give two files or {two}");
    }
    let is_tree = trees == [true, true];
    if args.output.is_none() && !args.json && !is_tree && args.explain.is_empty() && io::stdout().is_terminal() {
        bail!("refusing to write a patch to a terminal; use -o FILE or > FILE");
    }
    if let Some(output) = &args.output
        && [&args.old, &args.new].into_iter().any(|input| same_file(input, output))
    {
        bail!("{} is one of the builds; write the patch to another file", clean(&output.display().to_string()));
    }
    let name = args.name.clone().unwrap_or_else(|| default_name(&args.old));
    let mut places = hp_diff::DebugPlaces::system();
    places.directories.splice(0..0, args.debug_dir.iter().cloned());
    let options = Options {
        allow: args.allow.clone(),
        name: args.name.clone(),
        fixes: args.fixes.clone(),
        counter: args.counter,
        exact_lines: args.exact_lines,
        strict: args.strict,
        explain: args.explain.clone(),
        old_debug: args.old_debug.clone(),
        new_debug: args.new_debug.clone(),
        places,
        progress: Default::default(),
    };
    if is_tree {
        return tree::run(args, options);
    }
    let report = {
        let (bar, progress) = Bar::of_stages();
        let report = judged(&args.old, &args.new, &Options { progress, ..options });
        drop(bar);
        report?
    };
    let exit = exit_of(&report);
    for name in &args.explain {
        known(name, &report)?;
    }
    if args.json {
        let written = write(&report, exit, args.output.as_deref(), false)?;
        print_json(&json(&report, exit, written.as_ref()))?;
    } else {
        // The patch matters, whether somebody reads the report or not.
        let _ = print_report(&name, &report);
        let explained = !args.explain.is_empty();
        if explained {
            print_explanations(&report)?;
        }
        let written = write(&report, exit, args.output.as_deref(), !explained)?;
        let _ = print_verdict(&report, exit, written.as_ref());
    }
    Ok(exit)
}

/// Directories, and archives: what has several builds in it.
fn is_tree(path: &Path) -> bool {
    path.is_dir() || hp_diff::file_kind(path).is_ok_and(|kind| kind == FileKind::Archive)
}

/// Compares two builds, and has the patch judged by those who did not make it. What they do not prove is not written.
fn judged(old: &Path, new: &Path, options: &Options) -> anyhow::Result<Report> {
    let mut report = hp_diff::diff(old, new, options)?;
    let Some(patch) = &report.patch else { return Ok(report) };
    let debug = [options.old_debug.as_deref(), options.new_debug.as_deref()];
    let judgement = crate::verify::judge(patch, [old, new], debug, &options.places, hp_verify::Scope::Patch)?;
    if !judgement.holds() {
        let finding = |f: &hp_verify::Fault| Finding::new(Code::NotProven, &f.place, format!("{}: {}", f.part, f.what));
        report.findings.splice(0..0, judgement.faults.iter().map(finding));
        report.patch = None;
    }
    Ok(report)
}

fn exit_of(report: &Report) -> Exit {
    match &report.patch {
        _ if report.refused() => Exit::Refused,
        Some(_) => Exit::Done,
        None => Exit::Nothing,
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn default_name(old: &Path) -> String {
    old.file_name().map(|name| clean(&name.to_string_lossy())).unwrap_or_default()
}

/// Writes the patch to the file, else to stdout if that is what it is for.
fn write(report: &Report, exit: Exit, output: Option<&Path>, stdout: bool) -> anyhow::Result<Option<Written>> {
    let Some(patch) = report.patch.as_ref().filter(|_| exit == Exit::Done) else { return Ok(None) };
    let bytes = hp_pack::write(patch).map_err(|e| anyhow!("{e}; this is a bug in hp, please report it"))?;
    match output {
        Some(path) => {
            write_file(path, &bytes)
                .map_err(|e| anyhow!("cannot write {}: {}", clean(&path.display().to_string()), io_reason(&e)))?;
        }
        None if stdout => {
            let mut out = io::stdout().lock();
            out.write_all(&bytes).and_then(|()| out.flush()).context("cannot write the patch to standard output")?;
        }
        None => {}
    }
    let (name, id) = (patch.name.clone(), hp_pack::id(&bytes));
    Ok(Some(Written { file: output.map(Path::to_owned), name, id, size: bytes.len() }))
}

fn json(report: &Report, exit: Exit, written: Option<&Written>) -> serde_json::Value {
    serde_json::json!({
        "exit": exit.code(),
        "identical": report.identical,
        "evidence": { "old": report.evidence[0], "new": report.evidence[1] },
        "changes": report.changes.iter().map(with_readable_name).collect::<Vec<_>>(),
        "findings": report.findings,
        "explanations": report.explanations,
        "patch": written,
    })
}

/// A change as it is, and its name as the source has it.
fn with_readable_name(change: &Change) -> serde_json::Value {
    let mut value = serde_json::json!(change);
    value["readable"] = hp_diff::readable(&change.name).into();
    value
}

/// A name to be explained must be one of a function that differs.
fn known(name: &str, report: &Report) -> anyhow::Result<()> {
    if report.explanations.iter().any(|e| e.name == name || hp_diff::readable(&e.name) == name) {
        return Ok(());
    }
    let shown = clean(name);
    match report.changes.iter().find(|c| c.name == name || hp_diff::readable(&c.name) == name) {
        Some(change) => bail!("{shown} has nothing to compare with: {}", clean(&change.cause)),
        None => bail!("{shown} is not the name of a function that changed; without --explain all of them are listed"),
    }
}

fn print_explanations(report: &Report) -> io::Result<()> {
    let mut out = crate::text::out();
    for explanation in &report.explanations {
        crate::side_by_side::print(&mut out, &explanation.name, &explanation.cause, &explanation.rows)?;
        writeln!(out)?;
    }
    out.flush()
}

fn print_report(name: &str, report: &Report) -> io::Result<()> {
    let mut err = notes();
    print_findings(&mut err, report.findings.iter().filter(|f| comes_first(f)))?;
    let number = |kind| report.changes.iter().filter(|c| c.kind == kind).count();
    writeln!(
        err,
        "{BOLD}{name}{BOLD:#}: {} changed, {} added, {} removed, {}{} identical functions",
        number(ChangeKind::Changed),
        number(ChangeKind::Added),
        number(ChangeKind::Removed),
        match number(ChangeKind::LineOnly) {
            0 => String::new(),
            lines => format!("{lines} line-only, "),
        },
        report.identical
    )?;
    let width = report.changes.iter().map(|c| readable(&c.name).chars().count()).max().unwrap_or(0).min(40);
    let shown = if verbose() { usize::MAX } else { SHOWN };
    report.changes.iter().take(shown).try_for_each(|change| print_change(&mut err, change, width))?;
    if report.changes.len() > shown {
        writeln!(err, "  {DIM}and {} more; -v lists all{DIM:#}", report.changes.len() - shown)?;
    }
    if verbose() {
        print_evidence(&mut err, report)?;
    }
    drop(err);
    let mut err = anstream::stderr().lock();
    let rest = report.findings.iter().filter(|f| !comes_first(f) && (!quiet() || stands(f)));
    print_findings(&mut err, rest)
}

/// What explains thousands of changes, so it is said before them.
fn comes_first(finding: &Finding) -> bool {
    finding.level != Level::Error && matches!(finding.code, Code::CompilersDiffer | Code::FlagsDiffer)
}

/// An error that forbids the patch.
fn stands(finding: &Finding) -> bool {
    finding.level == Level::Error && !finding.accepted
}

/// What says where the functions of both builds lie.
fn print_evidence(err: &mut impl Write, report: &Report) -> io::Result<()> {
    for (side, counts) in ["old", "new"].into_iter().zip(&report.evidence) {
        let counts: Vec<String> = counts.iter().map(|(what, n)| format!("{n} from {what:?}")).collect();
        writeln!(err, "  {DIM}functions of the {side} build: {}{DIM:#}", counts.join(", "))?;
    }
    Ok(())
}

fn print_change(err: &mut impl Write, change: &Change, width: usize) -> io::Result<()> {
    let (old, new) = (change.old_size, change.new_size);
    let (kind, style, size) = match change.kind {
        ChangeKind::Changed => ("changed", WARN, format!("{old} → {new} bytes")),
        ChangeKind::LineOnly => ("lines", DIM, format!("{new} bytes")),
        ChangeKind::Added => ("added", GOOD, format!("{new} bytes")),
        ChangeKind::Removed => ("removed", BAD, format!("{old} bytes")),
    };
    let (name, cause) = (readable(&change.name), readable(&change.cause));
    let comma = if cause.is_empty() { "" } else { ", " };
    writeln!(err, "  {style}{kind:<8}{style:#} {name:<width$}  {size}{DIM}{comma}{cause}{DIM:#}")
}

/// Subjects of one code that are listed, unless it is an error or `-v` wants each.
const LISTED: usize = 8;

/// One line for all findings of a code about one subject, unless `-v` wants each.
fn print_findings<'f>(err: &mut impl Write, findings: impl Iterator<Item = &'f Finding>) -> io::Result<()> {
    let mut groups: Vec<(&Finding, usize)> = Vec::new();
    for finding in findings {
        // They are ordered by level, code and subject.
        let what = |f: &'f Finding| (f.code, f.level, f.accepted, &f.subject);
        match groups.last_mut().filter(|(first, _)| !verbose() && what(first) == what(finding)) {
            Some((_, more)) => *more += 1,
            None => groups.push((finding, 0)),
        }
    }
    for group in groups.chunk_by(|a, b| (a.0.code, a.0.level) == (b.0.code, b.0.level)) {
        let all = verbose() || group[0].0.level == Level::Error;
        // A line that says how many there are takes as much room as one of them.
        let (listed, left) =
            group.split_at(if all || group.len() == LISTED + 1 { group.len() } else { group.len().min(LISTED) });
        listed.iter().try_for_each(|(finding, more)| print_finding(err, finding, *more))?;
        if !left.is_empty() {
            writeln!(err, "{DIM}and {} more of {}; -v lists them{DIM:#}", left.len(), group[0].0.code)?;
        }
    }
    Ok(())
}

fn print_finding(err: &mut impl Write, finding: &Finding, more: usize) -> io::Result<()> {
    let (word, style) = match finding.level {
        Level::Error if finding.accepted => ("accepted", WARN),
        Level::Error => ("error", BAD),
        Level::Warning => ("warning", WARN),
        Level::Note => ("note", DIM),
    };
    let (code, subject, message) = (finding.code, readable(&finding.subject), readable(&finding.message));
    let more = match more {
        0 => String::new(),
        1 => " (and 1 more place; -v lists it)".into(),
        n => format!(" (and {n} more places; -v lists them)"),
    };
    // What `--allow` takes.
    let name = match clean(&finding.subject) {
        name if name != subject && finding.level == Level::Error && code.acceptable() => format!(" [{name}]"),
        _ => String::new(),
    };
    writeln!(err, "{style}{word} {code}{style:#} {BOLD}{subject}{BOLD:#}{name}: {message}{more}")
}

fn print_verdict(report: &Report, exit: Exit, written: Option<&Written>) -> io::Result<()> {
    let mut err = notes();
    if let Some(Written { file, id, size, .. }) = written {
        let file = file.as_ref().map_or("the patch".into(), |f| clean(&f.display().to_string()));
        return writeln!(err, "{GOOD}wrote{GOOD:#} {file}: {size} bytes, id {id}");
    }
    if exit == Exit::Done {
        return writeln!(err, "a patch can be made; give -o FILE to write it");
    }
    if exit == Exit::Nothing {
        let lines = report.changes.iter().any(|c| c.kind == ChangeKind::LineOnly);
        let why = if lines { "the builds differ only in line numbers" } else { "the builds are equivalent" };
        return writeln!(err, "nothing to do: {why}");
    }
    drop(err);
    let mut err = anstream::stderr().lock();
    let open: Vec<&Finding> = report.findings.iter().filter(|f| f.level == Level::Error && !f.accepted).collect();
    let mut codes: Vec<&str> = open.iter().map(|f| f.code.as_str()).collect();
    codes.dedup();
    writeln!(err, "{BAD}refused{BAD:#}: {}, so no patch was made", count(open.len(), "error"))?;
    codes.iter().try_for_each(|code| writeln!(err, "  {DIM}what it means:{DIM:#} hp explain {code}"))
}
