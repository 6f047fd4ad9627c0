//! `apply`: every process is looked at before the first is changed, and if one refuses all the same, those that
//! were changed are changed back: all or none, unless `--each` takes each for itself.

use super::report::{Report, Subject, Verb};
use super::{Args, Exit, INTERRUPTED, PatchFile, clean, lives, no_process_of, unseen};
use crate::bytes::hex;
use crate::failure::Failure;
use crate::prelude::*;
use crate::{Done, HeldSignals, Options, Outcome, sys};

/// One patch for one process.
struct Job<'a> {
    pid: i32,
    file: &'a PatchFile,
    subject: Subject,
    /// It was asked for by number.
    is_named: bool,
}

impl Job<'_> {
    fn apply(&self, options: &Options) -> Outcome {
        crate::apply_patch(self.pid, &self.file.patch, &self.file.id, options)
    }

    /// A process that was not asked for by number and has ended is no target any more.
    fn is_gone(&self, outcome: &Outcome) -> bool {
        outcome.result.is_err() && !self.is_named && !lives(self.pid)
    }
}

pub(super) fn run(args: &Args<'_>, patches: &[PatchFile], report: &mut Report) -> Result<Exit, Failure> {
    let named = args.named();
    if let (Some(path), Some([])) = (args.exe, named.as_deref()) {
        report.nothing(&no_process_of(path));
        return Ok(Exit::Nothing);
    }
    let mut jobs = Vec::new();
    for file in patches {
        let pids = match &named {
            Some(pids) => pids.clone(),
            None => crate::targets_of(&file.patch.base.build_id)?,
        };
        if pids.is_empty() {
            let build_id = hex(&file.patch.base.build_id);
            report.nothing(&format!("{}: no process has build ID {build_id} loaded{}", file.name, unseen()));
        }
        let subject = Subject { id: Some(file.id.clone()), name: Some(file.patch.name.clone()) };
        let is_named = named.is_some();
        jobs.extend(pids.into_iter().map(|pid| Job { pid, file, subject: subject.clone(), is_named }));
    }
    let options = args.options();
    let together = !args.each && !options.dry_run;
    let signals = sys::hold_signals();
    if !together || jobs.len() < 2 || rehearsed(&jobs, &options, report) {
        carry_out(&jobs, &options, (together, &signals), report);
    }
    signals.end();
    Ok(report.exit())
}

fn carry_out(jobs: &[Job<'_>], options: &Options, (together, signals): (bool, &HeldSignals), report: &mut Report) {
    let mut applied = Vec::new();
    for job in jobs {
        if sys::interrupted() {
            report.error(INTERRUPTED);
            if together {
                take_back(&applied, options, signals, report);
            }
            return;
        }
        let outcome = job.apply(options);
        if job.is_gone(&outcome) {
            continue;
        }
        report.add(Verb::Apply, &job.subject, &outcome);
        match outcome.result {
            Ok(Done::Applied(measured)) => applied.push((job, measured.replaced)),
            Err(_) if together => return take_back(&applied, options, signals, report),
            _ => {}
        }
    }
}

/// Looks at every target without changing any; false if one of them would refuse.
fn rehearsed(jobs: &[Job<'_>], options: &Options, report: &mut Report) -> bool {
    let rehearsal = Options { dry_run: true, ..options.clone() };
    let mut fine = true;
    for job in jobs {
        if sys::interrupted() {
            report.error(INTERRUPTED);
            return false;
        }
        let outcome = job.apply(&rehearsal);
        if outcome.result.is_err() && !job.is_gone(&outcome) {
            report.add(Verb::Apply, &job.subject, &outcome);
            fine = false;
        }
    }
    if !fine {
        report.error("nothing was applied to the other processes either; --each applies where it can");
    }
    fine
}

/// Reverts what was applied, the last first. Patches whose place it had taken do not come back: their memory is gone.
fn take_back(applied: &[(&Job<'_>, Vec<String>)], options: &Options, signals: &HeldSignals, report: &mut Report) {
    signals.hold_on();
    for (job, replaced) in applied.iter().rev() {
        let outcome = crate::revert(job.pid, Some(&job.file.id), options);
        // One that has ended has nothing left to take back.
        if outcome.result.is_ok() || lives(job.pid) {
            report.taken_back(&job.subject, &outcome);
        }
        // Those that this command has brought itself were to go anyway.
        let ours = |id: &&String| !applied.iter().any(|(other, _)| other.pid == job.pid && other.file.id == **id);
        let lost: Vec<&str> = replaced.iter().filter(ours).map(String::as_str).collect();
        if outcome.result.is_ok() && !lost.is_empty() {
            let (pid, ids) = (job.pid, clean(lost.join(", ").as_bytes()));
            report.error(&format!(
                "process {pid} runs the base's functions now: {ids}, which the patch had replaced, is gone too; apply it again"
            ));
        }
    }
}
