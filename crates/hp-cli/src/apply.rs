//! `hp apply`: every patch file is read and checked before the first process is touched, and every process is
//! looked at before the first is changed. If one refuses all the same, those that were changed are changed back:
//! all or none, unless each is to be taken for itself.

use crate::args::ApplyArgs;
use crate::exit::Exit;
use crate::frames;
use crate::health;
use crate::patch_file::PatchFile;
use crate::targets::{Reporter, Subject, Verb, in_group, named, unseen};
use crate::text::{clean, hex};
use hp_apply::{Done, HeldSignals, Options, Outcome};
use std::path::Path;

/// One patch for one process.
struct Job<'a> {
    pid: i32,
    file: &'a PatchFile,
    subject: Subject,
}

impl Job<'_> {
    /// What came of it, and what else is to be said.
    fn apply(&self, options: &Options) -> (Outcome, Vec<String>) {
        let mut outcome = hp_apply::apply_patch(self.pid, &self.file.patch, &self.file.id, options);
        let notes = frames::explain(&mut outcome, self.file, options.relaxed);
        (outcome, notes)
    }
}

/// Applies each patch to each of its targets.
pub(crate) fn run(args: &ApplyArgs) -> anyhow::Result<Exit> {
    let patches = crate::trust::read_patches(&args.patches, &args.trust)?;
    let named = named(&args.targets);
    let mut reporter = Reporter::new(Verb::Apply, args.how.json);
    if let (Some(path), Some([])) = (&args.targets.exe, named.as_deref()) {
        reporter.nothing(&no_process_of(path));
        return reporter.finish();
    }
    let mut jobs = Vec::new();
    for file in &patches {
        let pids = match &named {
            Some(pids) => pids.clone(),
            None => in_group(&args.targets, hp_apply::targets_of(&file.patch.base.build_id)?)?,
        };
        if pids.is_empty() {
            reporter.nothing(&no_process_for(file));
        }
        let subject = Subject { id: Some(file.id.clone()), name: Some(file.patch.name.clone()) };
        jobs.extend(pids.into_iter().map(|pid| Job { pid, file, subject: subject.clone() }));
    }
    // A process that was not asked for by number and has ended is no target any more.
    let gone = |job: &Job, outcome: &Outcome| outcome.result.is_err() && named.is_none() && !health::lives(job.pid);
    let options = Options { relaxed: args.relaxed, ..args.how.options() };
    let signals = hp_apply::hold_signals();
    carry_out(args, &jobs, &options, &signals, &mut reporter, gone);
    let exit = reporter.finish_under(&signals);
    signals.end();
    exit
}

fn carry_out(
    args: &ApplyArgs,
    jobs: &[Job],
    options: &Options,
    signals: &HeldSignals,
    reporter: &mut Reporter,
    gone: impl Fn(&Job, &Outcome) -> bool,
) {
    let together = !args.each && !options.dry_run;
    if together && jobs.len() > 1 && !rehearsed(jobs, options, reporter, &gone) {
        return;
    }
    let mut applied = Vec::new();
    for job in jobs {
        if hp_apply::interrupted() {
            reporter.note(INTERRUPTED);
            if together {
                take_back(&applied, options, signals, reporter);
            }
            return;
        }
        let (outcome, notes) = job.apply(options);
        if gone(job, &outcome) {
            continue;
        }
        reporter.add(&job.subject, &outcome);
        notes.iter().for_each(|note| reporter.note(note));
        match outcome.result {
            Ok(Done::Applied(measured)) => applied.push((job, measured.replaced)),
            Err(_) if together => {
                take_back(&applied, options, signals, reporter);
                return;
            }
            _ => {}
        }
    }
    if let Some(command) = args.health.as_deref().filter(|_| !applied.is_empty()) {
        let pids: Vec<i32> = applied.iter().map(|(job, _)| job.pid).collect();
        if let Err(why) = health::check(command, &pids, args.health_for, signals) {
            reporter.failed(&format!("health check failed: {why}"));
            take_back(&applied, options, signals, reporter);
        }
    }
}

/// Looks at every target without changing any; false if one of them would refuse.
fn rehearsed(jobs: &[Job], options: &Options, reporter: &mut Reporter, gone: impl Fn(&Job, &Outcome) -> bool) -> bool {
    let rehearsal = Options { dry_run: true, ..options.clone() };
    let mut fine = true;
    for job in jobs {
        if hp_apply::interrupted() {
            reporter.note(INTERRUPTED);
            return false;
        }
        let (outcome, _) = job.apply(&rehearsal);
        if outcome.result.is_err() && !gone(job, &outcome) {
            reporter.add(&job.subject, &outcome);
            fine = false;
        }
    }
    if !fine {
        reporter.note("nothing was applied to the other processes either; --each applies where it can");
    }
    fine
}

/// Reverts what was applied, the last first. Patches whose place it had taken do not come back: their memory is gone.
fn take_back(applied: &[(&Job, Vec<String>)], options: &Options, signals: &HeldSignals, reporter: &mut Reporter) {
    signals.hold_on();
    for (job, replaced) in applied.iter().rev() {
        let outcome = hp_apply::revert(job.pid, Some(&job.file.id), &Options { dry_run: false, ..options.clone() });
        // One that has ended has nothing left to take back.
        if outcome.result.is_ok() || health::lives(job.pid) {
            reporter.taken_back(&job.subject, &outcome);
        }
        // Those that this command has brought itself were to go anyway.
        let ours = |id: &&String| !applied.iter().any(|(other, _)| other.pid == job.pid && other.file.id == **id);
        let lost: Vec<&str> = replaced.iter().filter(ours).map(String::as_str).collect();
        if outcome.result.is_ok() && !lost.is_empty() {
            let (pid, ids) = (job.pid, lost.join(", "));
            reporter.note(&format!(
                "process {pid} runs the base's functions now: {ids}, which the patch had replaced, is gone too; apply it again"
            ));
        }
    }
}

/// Why nothing is done to the targets that are left.
pub(crate) const INTERRUPTED: &str = "interrupted; the other processes are as they were";

/// Nothing runs this program.
pub(crate) fn no_process_of(path: &Path) -> String {
    format!("no process runs {}{}", clean(&path.display().to_string()), unseen())
}

fn no_process_for(file: &PatchFile) -> String {
    let build_id = hex(&file.patch.base.build_id);
    format!("{}: no process has build ID {build_id} loaded{}", file.display(), unseen())
}
