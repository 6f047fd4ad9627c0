//! Two builds of a program in, a [`Patch`](hp_pack::Patch) or the findings that forbid one out.
#![forbid(unsafe_op_in_unsafe_fn)]

mod adjoin;
mod arch;
mod assemble;
mod build;
mod check;
mod compare;
mod correlate;
mod detour;
mod dwarf;
mod entity;
mod entries;
mod finding;
mod image;
mod input;
mod layout;
mod lines;
mod payload;
mod unwind;
mod values;

pub use entries::{Entries, entries};
pub use finding::{Code, Finding, Level};
pub use image::Evidence;
pub use input::{BuildFile, DebugPlaces, FileKind, file_kind, same_content};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustc_hash::FxHashSet;

use build::Build;
use compare::{Changes, compare};
use correlate::{Correlation, correlate};
use entity::FunctionId;
use image::Image;
use input::Input;

/// What the user asked of a diff.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Errors that the user accepts: a code, and the subject that it is accepted for (`None`: all).
    pub allow: Vec<(Code, Option<String>)>,
    /// Name of the patch; the old file's name if not given.
    pub name: Option<String>,
    /// What it fixes: CVE ids or free words, for the manifest.
    pub fixes: Vec<String>,
    /// Orders patches of one base: an older one is refused over a newer one.
    pub counter: u64,
    /// Functions that differ only in line numbers are changed ones too.
    pub exact_lines: bool,
    /// Numbers that may have changed their meaning ([`Code::NumberChanged`]) are errors.
    pub strict: bool,
    /// The old build's debug file, if it is not where [`places`](Self::places) says.
    pub old_debug: Option<PathBuf>,
    /// The new build's.
    pub new_debug: Option<PathBuf>,
    /// Where debug files are looked for. The default: beside the builds only.
    pub places: DebugPlaces,
}

/// Why two files could not be compared at all (exit code 2).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what this tool reads.
    #[error("{path}: {reason}")]
    Input {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
}

/// How one function differs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Name as in the symbol table.
    pub name: String,
    /// Which kind of change.
    pub kind: ChangeKind,
    /// Why, in words.
    pub cause: String,
    /// Link-time address in the old build, 0 for an added function.
    pub old_address: u64,
    /// Size in the old build in bytes (all fragments), 0 for an added function.
    pub old_size: u64,
    /// Link-time address in the new build, 0 for a removed function.
    pub new_address: u64,
    /// Size in the new build in bytes (all fragments), 0 for a removed function.
    pub new_size: u64,
    /// What says where the function begins and ends: in the old build, for an added function in the new one.
    pub evidence: Evidence,
}

/// The kinds of change (`identical` functions are only counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// In both builds, with other behaviour.
    Changed,
    /// In both builds; they differ in line numbers that calls report, and in nothing else.
    LineOnly,
    /// Only in the new build.
    Added,
    /// Only in the old build.
    Removed,
}

/// What a diff found.
#[derive(Debug)]
pub struct Report {
    /// Functions compared and found identical.
    pub identical: usize,
    /// Functions that differ, ordered by name.
    pub changes: Vec<Change>,
    /// How many functions of the old and of the new build are known by which evidence.
    pub evidence: [BTreeMap<Evidence, usize>; 2],
    /// All findings, errors first.
    pub findings: Vec<Finding>,
    /// The patch; `None` if an error-level finding forbids it or there is nothing to do.
    pub patch: Option<hp_pack::Patch>,
}

impl Report {
    /// True if an error-level finding that the user did not accept forbids the patch.
    pub fn refused(&self) -> bool {
        self.findings.iter().any(|f| f.level == Level::Error && !f.accepted)
    }
}

/// Compares two builds and makes the patch from `old` to `new`.
///
/// # Errors
/// [`Error`] where a file cannot be read or is no input for this tool. Everything that
/// forbids a patch of two readable builds is a [`Finding`] in the report instead.
pub fn diff(old: &Path, new: &Path, options: &Options) -> Result<Report, Error> {
    let old = Input::open(old, options.old_debug.as_deref(), &options.places)?;
    let new = Input::open(new, options.new_debug.as_deref(), &options.places)?;
    let (old_image, new_image) = (Image::parse(&old)?, Image::parse(&new)?);
    let mut findings = check::images(&old_image, &new_image);
    let fatal = |f: &Finding| matches!(f.code, Code::NoSymbols | Code::KindDiffers | Code::ForeignRuntime);
    if findings.iter().any(fatal) {
        findings.sort_by(by_weight);
        return Ok(Report { identical: 0, changes: Vec::new(), evidence: Default::default(), findings, patch: None });
    }
    findings.extend(layout::compare(&old_image.debug, &new_image.debug));
    let locals = (layout::static_locals(&old_image.debug), layout::static_locals(&new_image.debug));
    let absolute = |i: &Image<'_>| i.sections.iter().map(|s| s.address).find(|a| *a != 0).unwrap_or(0)..i.span;
    let numbers = (old_image.fixed_address && new_image.fixed_address).then(|| {
        let (a, b) = (absolute(&old_image), absolute(&new_image));
        a.start.min(b.start)..a.end.max(b.end)
    });
    let (old, new) = (Build::new(old_image, numbers.clone()), Build::new(new_image, numbers));
    let pairs = correlate(&old, &new, (&locals.0, &locals.1));
    let mut changes = compare(&old, &new, &pairs);
    let mut line_only = Vec::new();
    if !options.exact_lines {
        let functions = lines::line_only(&old, &new, &pairs, &changes);
        (line_only, changes.functions) = changes.functions.into_iter().partition(|c| functions.contains(&c.0));
    }
    findings.extend(check::data(&old, &new, &pairs, &changes));
    findings.extend(values::changed_numbers(&old, &new, &pairs, &changes));
    findings.extend(correlate::audit(&old, &new, &pairs, &changes));
    let mut listed: Vec<Change> = changes.functions.iter().map(|c| changed(&old, &new, &pairs, &changes, c)).collect();
    let mut patch = None;
    let mut copied = FxHashSet::default();
    if !changes.functions.is_empty() {
        let made = assemble::patch(&old, &new, &pairs, &changes, options);
        findings.extend(made.findings);
        if findings.iter().all(|f| f.code != Code::LayoutUnproven) {
            findings.extend(check::undescribed(&old, &new, &changes, &made.copied));
        }
        copied = made.copied;
        patch = Some(made.patch);
    }
    listed.extend(line_only.iter().map(|c| Change {
        kind: ChangeKind::LineOnly,
        cause: "only line numbers differ".into(),
        ..changed(&old, &new, &pairs, &changes, c)
    }));
    listed.extend(unpaired(&old, &new, &pairs, &copied));
    listed.sort_by(|a, b| (&a.name, a.old_address, a.new_address).cmp(&(&b.name, b.old_address, b.new_address)));
    if options.strict {
        findings.iter_mut().filter(|f| f.code == Code::NumberChanged).for_each(|f| f.level = Level::Error);
    }
    findings.sort_by(by_weight);
    findings.dedup();
    accept(&mut findings, options);
    let evidence = [evidence(&old), evidence(&new)];
    let identical = changes.identical + pairs.alike.0.len();
    let mut report = Report { identical, changes: listed, evidence, findings, patch };
    if report.refused() {
        report.patch = None;
    }
    if let Some(patch) = &mut report.patch {
        patch.manifest = assemble::manifest(&old, &new, &report.changes, &copied, &report.findings, options);
    }
    Ok(report)
}

/// Counts functions by what says where they lie.
fn evidence(build: &Build<'_>) -> BTreeMap<Evidence, usize> {
    let mut counts = BTreeMap::new();
    for function in &build.map.functions {
        *counts.entry(function.evidence).or_default() += 1;
    }
    counts
}

/// Errors first, then by code and subject.
fn by_weight(a: &Finding, b: &Finding) -> std::cmp::Ordering {
    b.level.cmp(&a.level).then_with(|| a.cmp(b))
}

fn accept(findings: &mut [Finding], options: &Options) {
    for finding in findings.iter_mut().filter(|f| f.level == Level::Error && f.code.acceptable()) {
        finding.accepted = options
            .allow
            .iter()
            .any(|(code, subject)| *code == finding.code && subject.as_ref().is_none_or(|s| *s == finding.subject));
    }
}

fn changed(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
    change: &(FunctionId, FunctionId, compare::Difference),
) -> Change {
    let (f, g) = (&old.map.functions[change.0], &new.map.functions[change.1]);
    Change {
        name: f.name().to_owned(),
        kind: ChangeKind::Changed,
        cause: compare::cause(old, new, pairs, changes, change),
        old_address: f.address(),
        old_size: f.size(),
        new_address: g.address(),
        new_size: g.size(),
        evidence: f.evidence,
    }
}

/// Functions that only one of the builds has.
fn unpaired(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation, copied: &FxHashSet<FunctionId>) -> Vec<Change> {
    let gone = |f: FunctionId| pairs.functions.new_of(f).is_none() && !pairs.alike.0.contains(&f);
    let come = |g: FunctionId| pairs.functions.old_of(g).is_none() && !pairs.alike.1.contains(&g);
    let removed = old.map.functions.iter().enumerate().filter(|(f, _)| gone(*f));
    let added = new.map.functions.iter().enumerate().filter(|(g, _)| come(*g));
    let removed = removed.map(|(_, f)| Change {
        name: f.name().to_owned(),
        kind: ChangeKind::Removed,
        cause: "not in the new build".into(),
        old_address: f.address(),
        old_size: f.size(),
        new_address: 0,
        new_size: 0,
        evidence: f.evidence,
    });
    let added = added.map(|(g, f)| Change {
        name: f.name().to_owned(),
        kind: ChangeKind::Added,
        cause: if copied.contains(&g) { "needed by changed code" } else { "no changed code needs it" }.into(),
        old_address: 0,
        old_size: 0,
        new_address: f.address(),
        new_size: f.size(),
        evidence: f.evidence,
    });
    removed.chain(added).collect()
}
