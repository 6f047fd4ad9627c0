//! `hp diff` of two directory trees: every ELF file that both have at the same path, a patch for each that changed.
//! The members of an archive are a tree too.
//!
//! A tree is what a package unpacks to, or an installation. Symbolic links are not followed: what they lead to is in the
//! tree itself. Debug files in a tree are no builds; those of the same build ID are used.

use super::{json, print_report, write};
use crate::args::DiffArgs;
use crate::exit::Exit;
use crate::progress::Bar;
use crate::text::{BAD, BOLD, DIM, GOOD, WARN, clean, count, io_reason, print_json};
use anyhow::{anyhow, bail};
use hp_diff::{ChangeKind, FileKind, Options, Report};
use serde_json::{Value, json as object};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How one path of the trees ended.
enum Outcome {
    OnlyOld,
    OnlyNew,
    /// The files are the same, byte for byte.
    SameFile,
    Compared(Box<Report>, Exit, Option<super::Written>),
    Failed(String),
    /// There is a patch, and it cannot be put where it belongs.
    Unwritten(String),
}

impl Outcome {
    fn exit(&self) -> Exit {
        match self {
            Outcome::OnlyOld | Outcome::OnlyNew | Outcome::SameFile => Exit::Nothing,
            Outcome::Compared(_, exit, _) => *exit,
            Outcome::Failed(_) | Outcome::Unwritten(_) => Exit::Unusable,
        }
    }

    /// Worth a line of its own.
    fn is_notable(&self) -> bool {
        match self {
            Outcome::SameFile => false,
            Outcome::Compared(report, exit, _) => {
                *exit != Exit::Nothing || report.changes.iter().any(|c| c.kind != ChangeKind::LineOnly)
            }
            _ => true,
        }
    }
}

/// Compares the trees of `args`.
pub(super) fn run(args: &DiffArgs, mut options: Options) -> anyhow::Result<Exit> {
    if let Some(flag) = [
        args.name.as_ref().map(|_| "--name"),
        args.old_debug.as_ref().map(|_| "--old-debug"),
        args.new_debug.as_ref().map(|_| "--new-debug"),
        args.explain.first().map(|_| "--explain"),
    ]
    .into_iter()
    .flatten()
    .next()
    {
        bail!(
            "{flag} is for one file, and these are directories; debug files are found by themselves or with --debug-dir"
        );
    }
    if let Some(output) = &args.output
        && output.exists()
        && !output.is_dir()
    {
        bail!("{} is no directory; give one for the patches", clean(&output.display().to_string()));
    }
    let inside = [&args.old, &args.new].map(|tree| tree.join("usr/lib/debug")).into_iter().filter(|d| d.is_dir());
    options.places.directories.splice(0..0, inside);
    let (old, new) = (builds(&args.old)?, builds(&args.new)?);
    let paths: Vec<&PathBuf> = old.union(&new).collect();
    let bar = Bar::new(paths.len() as u64);
    let outcomes = in_parallel(&paths, |path| {
        let outcome = match (old.contains(path), new.contains(path)) {
            (true, true) => compare(args, path, &options),
            (true, false) => Outcome::OnlyOld,
            _ => Outcome::OnlyNew,
        };
        bar.step();
        outcome
    });
    drop(bar);
    let exit = Exit::of_all(outcomes.iter().map(Outcome::exit));
    let files: Vec<(&Path, &Outcome)> = paths.iter().map(|p| p.as_path()).zip(&outcomes).collect();
    if args.json {
        print_json(&object!({ "exit": exit.code(), "files": files.iter().map(row).collect::<Vec<_>>() }))?;
    } else {
        let _ = print(&files, args.output.is_some());
        if crate::text::quiet() {
            print_errors(&files);
        }
    }
    Ok(exit)
}

/// The builds below `root`, as paths relative to it; members of archives as `ARCHIVE(MEMBER)`.
fn builds(root: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    if !root.is_dir() {
        return Ok(hp_diff::members(root)?.into_iter().map(PathBuf::from).collect());
    }
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |e: io::Error| anyhow!("cannot read {}: {}", clean(&folder.display().to_string()), io_reason(&e));
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (kind, path) = (entry.file_type().map_err(failed)?, entry.path());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.extend(in_file(&path)?.into_iter().map(|p| p.strip_prefix(root).unwrap_or(&p).to_owned()));
            }
        }
    }
    Ok(found)
}

/// The builds that a file holds: itself, or its members.
fn in_file(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    Ok(match hp_diff::file_kind(path)? {
        FileKind::Image | FileKind::Object => vec![path.to_owned()],
        FileKind::Archive => match hp_diff::members(path) {
            Ok(names) => names.iter().map(|name| member(path, Path::new(name))).collect(),
            // Compared as it is, it says what is wrong with it.
            Err(_) => vec![path.to_owned()],
        },
        FileKind::DebugFile | FileKind::Other => Vec::new(),
    })
}

fn member(archive: &Path, name: &Path) -> PathBuf {
    let mut path = archive.as_os_str().to_owned();
    path.push("(");
    path.push(name);
    path.push(")");
    path.into()
}

/// The file at `path` of a tree.
fn at(root: &Path, path: &Path) -> PathBuf {
    if root.is_dir() { root.join(path) } else { member(root, path) }
}

/// Does the work for each path on all cores. The results have the order of the paths.
fn in_parallel(paths: &[&PathBuf], work: impl Fn(&Path) -> Outcome + Sync) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    // One comparison uses all cores in its long stages; a second one fills the rest.
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(paths.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = paths.get(i) else { return };
                    let outcome = work(path);
                    if let Ok(mut done) = done.lock() {
                        done.push((i, outcome));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn compare(args: &DiffArgs, path: &Path, options: &Options) -> Outcome {
    let (old, new) = (at(&args.old, path), at(&args.new, path));
    match hp_diff::same_content(&old, &new) {
        Ok(true) => return Outcome::SameFile,
        Ok(false) => {}
        Err(e) => return Outcome::Failed(e.to_string()),
    }
    let report = match super::judged(&old, &new, options) {
        Ok(report) => report,
        Err(e) => return Outcome::Failed(format!("{e:#}")),
    };
    let exit = exit_of(&report);
    let written = match &args.output {
        Some(folder) => write_below(&report, exit, folder, path),
        None => write(&report, exit, None, false),
    };
    match written {
        Ok(written) => Outcome::Compared(Box::new(report), exit, written),
        Err(e) => Outcome::Unwritten(format!("{e:#}")),
    }
}

/// A tree may hold object files, for which there is never a patch: what changed in them is told, and refuses nothing.
fn exit_of(report: &Report) -> Exit {
    let mut errors = report.findings.iter().filter(|f| f.level == hp_diff::Level::Error && !f.accepted).peekable();
    let is_object = errors.peek().is_some() && errors.all(|f| f.code == hp_diff::Code::NotLinked);
    if is_object { Exit::Nothing } else { super::exit_of(report) }
}

/// The patch of `usr/sbin/nginx` is `FOLDER/usr/sbin/nginx.hpatch`.
fn write_below(report: &Report, exit: Exit, folder: &Path, path: &Path) -> anyhow::Result<Option<super::Written>> {
    if exit != Exit::Done {
        return Ok(None);
    }
    let mut file = folder.join(path).into_os_string();
    file.push(".hpatch");
    let file = PathBuf::from(file);
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|e| anyhow!("cannot make {}: {}", clean(&parent.display().to_string()), io_reason(&e)))?;
    }
    write(report, exit, Some(&file), false)
}

fn shown(path: &Path) -> String {
    clean(&path.display().to_string())
}

fn row((path, outcome): &(&Path, &Outcome)) -> Value {
    let result = word(outcome).0;
    match outcome {
        Outcome::Compared(report, exit, written) => {
            let mut value = json(report, *exit, written.as_ref());
            value["path"] = shown(path).into();
            value["result"] = result.into();
            value
        }
        Outcome::Failed(why) | Outcome::Unwritten(why) => {
            object!({ "path": shown(path), "result": result, "exit": Exit::Unusable.code(), "error": why })
        }
        _ => object!({ "path": shown(path), "result": result, "exit": Exit::Nothing.code() }),
    }
}

fn word(outcome: &Outcome) -> (&'static str, anstyle::Style) {
    match outcome {
        Outcome::OnlyOld => ("only-old", WARN),
        Outcome::OnlyNew => ("only-new", WARN),
        Outcome::SameFile => ("identical", DIM),
        Outcome::Compared(_, Exit::Done, _) => ("patch", GOOD),
        Outcome::Compared(report, Exit::Nothing, _) if report.refused() => ("object", WARN),
        Outcome::Compared(_, Exit::Nothing, _) => ("identical", DIM),
        Outcome::Compared(..) => ("refused", BAD),
        Outcome::Failed(_) => ("unreadable", BAD),
        Outcome::Unwritten(_) => ("unwritten", BAD),
    }
}

/// What is said even if nothing else is.
fn print_errors(files: &[(&Path, &Outcome)]) {
    for (path, outcome) in files {
        if let Outcome::Failed(why) | Outcome::Unwritten(why) = outcome {
            let _ = writeln!(anstream::stderr(), "hp: {}: {}", shown(path), clean(why));
        }
    }
}

fn print(files: &[(&Path, &Outcome)], written: bool) -> io::Result<()> {
    for (path, outcome) in files {
        if let Outcome::Compared(report, ..) = outcome
            && outcome.is_notable()
        {
            print_report(&shown(path), report)?;
        }
    }
    let mut err = crate::text::notes();
    let notable: Vec<_> = files.iter().filter(|(_, o)| o.is_notable()).collect();
    let width = notable.iter().map(|(p, _)| shown(p).chars().count()).max().unwrap_or(0).clamp(4, 60);
    if !notable.is_empty() {
        writeln!(err, "\n{BOLD}{:<10} {:<width$}  changed  added  removed{BOLD:#}", "result", "file")?;
    }
    for (path, outcome) in &notable {
        let (result, style) = word(outcome);
        write!(err, "{style}{result:<10}{style:#} {:<width$}", shown(path))?;
        match outcome {
            Outcome::Compared(report, exit, patch) => {
                let number = |kind| report.changes.iter().filter(|c| c.kind == kind).count();
                let [changed, added, removed] =
                    [ChangeKind::Changed, ChangeKind::Added, ChangeKind::Removed].map(number);
                write!(err, "  {changed:>7}  {added:>5}  {removed:>7}")?;
                match patch {
                    Some(patch) => write!(err, "  {DIM}{} bytes, id {}{DIM:#}", patch.size, patch.id)?,
                    None if *exit == Exit::Refused => write!(err, "  {DIM}{}{DIM:#}", codes(report))?,
                    None => {}
                }
            }
            Outcome::Failed(why) | Outcome::Unwritten(why) => write!(err, "  {}", clean(why))?,
            _ => {}
        }
        writeln!(err)?;
    }
    let number = |exit| files.iter().filter(|(_, o)| matches!(o, Outcome::Compared(..)) && o.exit() == exit).count();
    let same = files.iter().filter(|(_, o)| matches!(o, Outcome::SameFile)).count() + number(Exit::Nothing);
    let (made, refused) = (number(Exit::Done), number(Exit::Refused));
    let hint = if made > 0 && !written { "; give -o DIR to write the patches" } else { "" };
    writeln!(
        err,
        "{BOLD}{}{BOLD:#}: {}, {refused} refused, {same} equivalent{hint}",
        count(files.len(), "file"),
        if made == 1 { "1 patch".to_owned() } else { format!("{made} patches") }
    )
}

/// The codes of the errors that stand.
fn codes(report: &Report) -> String {
    let open = report.findings.iter().filter(|f| f.level == hp_diff::Level::Error && !f.accepted);
    let codes: BTreeSet<&str> = open.map(|f| f.code.as_str()).collect();
    codes.into_iter().collect::<Vec<_>>().join(" ")
}
