//! Two builds of a program in, a [`Patch`](hp_pack::Patch) or the findings that forbid one out.
//!
//! [`diff`] reads two builds as they come out of a compiler or a distribution package, finds every function that differs and why,
//! and makes the patch that brings a running copy of the old build to the behaviour of the new one. What it
//! cannot prove is a [`Finding`] with a [`Code`]; one of level error means that there is no patch.
//!
//! ```no_run
//! let report = hp_diff::diff("old/server".as_ref(), "new/server".as_ref(), &hp_diff::Options::default())?;
//! for change in &report.changes {
//!     println!("{}: {}", change.name, change.cause);
//! }
//! # Ok::<(), hp_diff::Error>(())
//! ```
//!
//! Two programs in `examples` show more: `changed_functions` lists what differs and what forbids a patch,
//! `explain_function` renders the difference of one function.
//!
//! # How functions are compared
//! By their bytes, with each field that leads somewhere masked, and by *what the fields lead to*: entities that were paired by
//! names, debug information or unanimous references, imports by name and version, constants by content. Where something lies is
//! never evidence. The modules are listed, with what goes in and out, in `ARCHITECTURE.md`.
//!
//! # What to expect
//! - The only input and output is opening the builds and their debug files. Nothing is printed; [`Progress`] tells a caller
//!   how far a comparison has come.
//! - The same two builds give the same report and patch on any number of threads (rayon's pool is used).
//! - Errors are for builds that cannot be read at all. Everything else is a finding.
//! - Cost grows linearly with the code of both builds; see `docs/BENCHMARKS.md`.
//!
//! # Not suitable for
//! - anything but x86-64 ELF files, and programs whose runtime moves code or stacks by itself, such as Go: a finding says so;
//! - the last word on a patch: `hp-verify` judges it independently;
//! - differences in meaning: what a *value* in a live object stands for no tool can prove, so numbers that may
//!   have changed their meaning are searched for and reported.
#![forbid(unsafe_op_in_unsafe_fn)]

mod adjoin;
mod ahead;
mod arch;
mod asks;
mod assemble;
mod before;
mod border;
mod build;
mod by_address;
mod callers;
mod check;
mod code_lines;
mod compare;
mod copies;
mod correlate;
mod describe;
mod descriptors;
mod detour;
mod displaced;
mod dwarf;
mod elsewhere;
mod endless;
mod entity;
mod entries;
mod explain;
mod extents;
mod finding;
mod followed;
mod goes_on;
mod identity;
mod image;
mod input;
mod judge;
mod layout;
mod leftovers;
mod lines;
mod lsda;
mod made_with;
mod names;
mod payload;
mod plain_names;
mod progress;
mod prototypes;
mod references;
mod rust;
mod same;
mod slots;
mod source;
mod templates;
mod type_ids;
mod unwind;
mod usage;
mod values;

pub use code_lines::CodeLines;
pub use entries::{Entries, entries};
pub use explain::{Explanation, First, Instruction, PatchedCode, Reason, Row, RowKind, patched_code};
pub use finding::{Code, Finding, Level};
pub use image::Evidence;
pub use input::{BuildFile, DebugPlaces, FileKind, file_kind, members, same_content};
pub use names::readable;
pub use progress::{Progress, Stage};
pub use references::{EntityKind, Meaning, Reference, references};
pub use source::Place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustc_hash::FxHashSet;

use adjoin::Twins;
use build::Build;
use compare::{Changes, compare};
use correlate::{Correlation, correlate, presume};
use entity::FunctionId;
use explain::Causes;
use image::Image;
use input::Input;
use judge::{Difference, Judge};

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
    /// Changed functions to show side by side, by name.
    pub explain: Vec<String>,
    /// The old build's debug file, if it is not where [`places`](Self::places) says.
    pub old_debug: Option<PathBuf>,
    /// The new build's.
    pub new_debug: Option<PathBuf>,
    /// Where debug files are looked for. The default: beside the builds only.
    pub places: DebugPlaces,
    /// Is told how far the comparison has come.
    pub progress: Progress,
}

/// Why two files could not be compared at all (exit code 2).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read {path}")]
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
    /// Why.
    pub reason: Reason,
    /// The same in words.
    pub cause: String,
    /// The inlined function that differs, if the reason is one.
    pub inlined: Option<String>,
    /// The first differing instruction; of an added function the first one.
    pub first: First,
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
    /// The functions that [`Options::explain`] names, in the order of `changes`.
    pub explanations: Vec<Explanation>,
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
    options.progress.tell(Stage::Open);
    if let Some(report) = same::report(old, new, options)? {
        return Ok(report);
    }
    let (old, new) = rayon::join(
        || Input::open(old, options.old_debug.as_deref(), &options.places),
        || Input::open(new, options.new_debug.as_deref(), &options.places),
    );
    let (old, new) = (old?, new?);
    let (old_image, new_image) = rayon::join(|| Image::parse(&old), || Image::parse(&new));
    let (old_image, new_image) = (old_image?, new_image?);
    let mut findings = check::images(&old_image, &new_image);
    if findings.iter().any(check::is_fatal) {
        findings.sort_by(by_weight);
        return Ok(Report {
            identical: 0,
            changes: Vec::new(),
            evidence: Default::default(),
            findings,
            explanations: Vec::new(),
            patch: None,
        });
    }
    findings.extend(made_with::flags(&old_image, &new_image));
    options.progress.tell(Stage::Types);
    let described = layout::read(&old_image.debug, &new_image.debug);
    findings.extend(described.findings);
    let (variables, moved) = (described.variables, described.moved);
    let absolute = |i: &Image<'_>| i.sections.iter().map(|s| s.address).find(|a| *a != 0).unwrap_or(0)..i.span + 1;
    let numbers = (old_image.fixed_address && new_image.fixed_address).then(|| {
        let (a, b) = (absolute(&old_image), absolute(&new_image));
        a.start.min(b.start)..a.end.max(b.end)
    });
    options.progress.tell(Stage::Decode);
    let (old, new) = Build::both(old_image, new_image, numbers);
    let variables = (&variables.0[..], &variables.1[..]);
    options.progress.tell(Stage::Pair);
    let mut pairs = correlate(&old, &new, variables);
    options.progress.tell(Stage::Compare);
    let Compared { changes, descriptors, line_only } = loop {
        let compared = compared((&old, &new), &mut pairs, options);
        if !presume(&old, &new, &mut pairs, &compared.changes) {
            break compared;
        }
    };
    let judge = Judge::new(&old, &new, &pairs).with_changed_constants(changes.constants.clone());
    findings.extend(check::data(&old, &new, &pairs, &changes, &descriptors));
    if !changes.functions.is_empty() {
        findings.extend(check::variable_types(&old, &new, &pairs, variables));
        findings.extend(type_ids::changed(&old, &new));
    }
    findings.extend(values::changed_values(&old, &new, &pairs, &changes, &moved));
    findings.extend(correlate::audit(&old, &new, &pairs, &changes));
    options.progress.tell(Stage::Patch);
    let mut patch = None;
    let mut copied = FxHashSet::default();
    let differs = !changes.is_empty();
    if !differs {
        // Where there is nothing to patch, it does not matter whether layouts could be compared.
        findings.retain(|f| f.code != Code::LayoutUnproven);
        // Nor does a type whose change no code shows.
        findings.iter_mut().filter(|f| f.code == Code::LayoutChanged).for_each(|f| f.level = Level::Warning);
    }
    let twins = Twins::new(&old, &new, &pairs, &changes, variables);
    if old.image.linked {
        findings.extend(adjoin::doubts(&Judge::new(&old, &new, &pairs), &pairs, &changes, &twins));
        findings.extend(extents::doubts(&judge, &pairs, &changes, &twins));
    }
    if !old.image.linked && differs {
        let message = "a patch needs a linked program or shared object with a build ID";
        findings.push(Finding::new(Code::NotLinked, &old.image.file_name, message));
    } else if !changes.functions.is_empty() {
        let made = assemble::patch((&old, &new), (&pairs, &changes, &twins), variables.1, options);
        findings.extend(made.findings);
        if findings.iter().all(|f| f.code != Code::LayoutUnproven) {
            findings.extend(check::undescribed(&old, &new, &changes, &made.copied));
        }
        copied = made.copied;
        patch = Some(made.patch);
    }
    if findings.iter().any(|f| f.code == Code::LayoutUnproven) {
        findings.extend(displaced::findings(&old, &new, &changes));
    }
    options.progress.tell(Stage::Explain);
    let differing: Vec<(FunctionId, FunctionId)> =
        changes.functions.iter().chain(&line_only).map(|c| (c.0, c.1)).collect();
    let alone = Unpaired::new(&old, &new, &pairs);
    let causes = Causes::new(&old, &new, &pairs, &changes, &differing, &alone.added);
    let mut listed = changed(&old, &new, &differing, causes.of(&differing));
    for change in &mut listed[changes.functions.len()..] {
        (change.kind, change.reason) = (ChangeKind::LineOnly, Reason::LineNumbers);
        change.cause = "only line numbers differ".into();
    }
    listed.extend(alone.changes(&old, &new, &copied, &causes));
    let asked = |name: &&str| options.explain.iter().any(|n| n == name || *n == readable(name));
    let explains = !options.explain.is_empty();
    let wanted = differing.iter().filter(|p| explains && old.map.functions[p.0].names.iter().any(&asked));
    let mut explanations: Vec<Explanation> = wanted.map(|pair| causes.explain(*pair)).collect();
    explanations.sort_by(|a, b| a.name.cmp(&b.name));
    listed.sort_by(|a, b| (&a.name, a.old_address, a.new_address).cmp(&(&b.name, b.old_address, b.new_address)));
    if options.strict {
        findings.iter_mut().filter(|f| f.code == Code::NumberChanged).for_each(|f| f.level = Level::Error);
    }
    findings.sort_by(by_weight);
    findings.dedup();
    accept(&mut findings, options);
    let evidence = [evidence(&old.map), evidence(&new.map)];
    let identical = changes.identical + pairs.alike.0.len();
    let mut report = Report { identical, changes: listed, evidence, findings, explanations, patch };
    if report.refused() {
        report.patch = None;
    }
    if let Some(patch) = &mut report.patch {
        let (pairs, changes) = (&pairs, &changes);
        let evidence = goes_on::Evidence { old: &old, new: &new, pairs, changes, findings: &report.findings };
        let (words, more) = goes_on::words(&evidence, patch, options);
        report.findings.extend(more);
        report.findings.sort_by(by_weight);
        let (changes, findings) = (&report.changes, &report.findings);
        patch.manifest = assemble::manifest((&old, &new), changes, &copied, findings, &words, options);
    }
    Ok(report)
}

/// What differs under a correlation.
struct Compared {
    /// Without those that differ in line numbers only.
    changes: Changes,
    /// Descriptors of a place of which only the line is another one.
    descriptors: FxHashSet<entity::ObjectId>,
    line_only: Vec<(FunctionId, FunctionId, Difference)>,
}

fn compared((old, new): (&Build<'_>, &Build<'_>), pairs: &mut Correlation, options: &Options) -> Compared {
    let mut changes = compare(old, new, pairs);
    let judge = Judge::new(old, new, pairs).with_changed_constants(changes.constants.clone());
    let descriptors = descriptors::line_only(&judge, pairs, &changes);
    let mut line_only = Vec::new();
    if !options.exact_lines {
        let functions = lines::line_only(old, new, pairs, &changes, &descriptors);
        (line_only, changes.functions) = changes.functions.into_iter().partition(|c| functions.contains(&c.0));
    }
    Compared { changes, descriptors, line_only }
}

/// Counts functions by what says where they lie.
fn evidence(map: &entity::Map<'_>) -> BTreeMap<Evidence, usize> {
    let mut counts = BTreeMap::new();
    for function in &map.functions {
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

/// Pairs that differ, with their causes.
fn changed(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &[(FunctionId, FunctionId)],
    causes: Vec<explain::Cause>,
) -> Vec<Change> {
    let change = |(pair, cause): (&(FunctionId, FunctionId), explain::Cause)| {
        let (f, g) = (&old.map.functions[pair.0], &new.map.functions[pair.1]);
        Change {
            name: f.name().to_owned(),
            kind: ChangeKind::Changed,
            reason: cause.reason,
            cause: cause.words,
            inlined: cause.inlined,
            first: cause.first,
            old_address: f.address(),
            old_size: f.size(),
            new_address: g.address(),
            new_size: g.size(),
            evidence: f.evidence,
        }
    };
    pairs.iter().zip(causes).map(change).collect()
}

/// Functions that only one of the builds has.
struct Unpaired {
    removed: Vec<FunctionId>,
    added: Vec<FunctionId>,
}

impl Unpaired {
    fn new(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> Unpaired {
        let alone = |f: FunctionId| pairs.functions.new_of(f).is_none() && !pairs.copies.has_old(f);
        let gone = |f: &FunctionId| alone(*f) && !pairs.alike.0.contains(f);
        let alone = |g: FunctionId| pairs.functions.old_of(g).is_none() && pairs.copies.old_of(g).is_none();
        let come = |g: &FunctionId| alone(*g) && !pairs.alike.1.contains(g);
        Unpaired {
            removed: (0..old.map.functions.len()).filter(gone).collect(),
            added: (0..new.map.functions.len()).filter(come).collect(),
        }
    }

    fn changes(
        &self,
        old: &Build<'_>,
        new: &Build<'_>,
        copied: &FxHashSet<FunctionId>,
        causes: &Causes<'_, '_>,
    ) -> Vec<Change> {
        let of = |function: &entity::Function<'_>, kind, cause: &str| Change {
            name: function.name().to_owned(),
            kind,
            reason: Reason::OneBuild,
            cause: cause.to_owned(),
            inlined: None,
            first: First::default(),
            old_address: 0,
            old_size: 0,
            new_address: 0,
            new_size: 0,
            evidence: function.evidence,
        };
        let removed = self.removed.iter().map(|f| {
            let f = &old.map.functions[*f];
            let change = of(f, ChangeKind::Removed, "not in the new build");
            Change { old_address: f.address(), old_size: f.size(), ..change }
        });
        let added = self.added.iter().map(|g| {
            let why = if copied.contains(g) { "needed by changed code" } else { "no changed code needs it" };
            let (first, g) = (causes.entry(*g), &new.map.functions[*g]);
            let change = of(g, ChangeKind::Added, why);
            Change { first, new_address: g.address(), new_size: g.size(), ..change }
        });
        removed.chain(added).collect()
    }
}
