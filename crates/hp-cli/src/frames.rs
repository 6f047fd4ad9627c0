//! Who is in the way of a safe point, for people: the place in the source, and whether `--relaxed` would help.
//!
//! The applier names thread, function and offset. The line comes from the debug information of the file that the process
//! has mapped; it is looked for when the process runs again.

use crate::mapped_file::reachable;
use crate::on_disk::build_id;
use crate::patch_file::PatchFile;
use crate::text::{clean, hex};
use hp_apply::{Done, Error, InTheWay, Outcome};
use hp_diff::{BuildFile, DebugPlaces};
use hp_pack::manifest::Manifest;
use hp_pack::{FunctionRecord, Role};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Adds the places in the source to an outcome; gives what is to be said of `--relaxed`.
pub(crate) fn explain(outcome: &mut Outcome, file: &PatchFile, relaxed: bool) -> Vec<String> {
    let pid = outcome.pid;
    match &mut outcome.result {
        Ok(Done::Applied(measured)) => add_lines(pid, &mut measured.left, file),
        Err(Error::Busy(lines)) => {
            add_lines(pid, lines, file);
            return advice(lines, file, relaxed);
        }
        _ => {}
    }
    Vec::new()
}

fn add_lines(pid: i32, lines: &mut [InTheWay], file: &PatchFile) {
    let wanted: Vec<u64> = lines.iter().filter_map(|line| line.at).collect();
    if wanted.is_empty() {
        return;
    }
    let Some(build) = base(pid, &hex(&file.patch.base.build_id)) else { return };
    let Ok(places) = build.places(&wanted) else { return };
    for line in lines {
        if let Some(place) = line.at.and_then(|at| places.get(&at)) {
            line.add(&format!(", {place}"));
        }
    }
}

/// The file with this build ID, of those that a process has mapped.
fn base(pid: i32, wanted: &str) -> Option<BuildFile> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let paths: BTreeSet<&str> = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).collect();
    let files = paths.iter().filter_map(|path| reachable(pid, path)).chain([format!("/proc/{pid}/exe")]);
    let mut files = files.filter(|path| build_id(path).is_ok_and(|id| id.as_deref() == Some(wanted)));
    BuildFile::open(&PathBuf::from(files.next()?), None, &DebugPlaces::system()).ok()
}

/// The functions in the way: can a relaxed apply leave them to their threads?
fn advice(lines: &[InTheWay], file: &PatchFile, relaxed: bool) -> Vec<String> {
    let entries: BTreeSet<u64> = lines.iter().filter_map(|line| entry(file, line.at?)).map(|e| e.old_address).collect();
    let manifest: Option<Manifest> = serde_json::from_slice(&file.patch.manifest).ok();
    let infos = manifest.iter().flat_map(|manifest| &manifest.functions);
    let infos: Vec<_> = infos.filter(|info| entries.contains(&info.old_address)).collect();
    let names = |infos: &[&hp_pack::manifest::FunctionInfo]| {
        infos.iter().map(|info| clean(&info.name)).collect::<Vec<_>>().join(", ")
    };
    let (may, not): (Vec<_>, Vec<_>) = infos.into_iter().partition(|info| {
        let entry = file.patch.functions.iter().find(|record| record.old_address == info.old_address);
        matches!(entry.map(|entry| entry.role), Some(Role::Entry(entry)) if entry.may_go_on)
    });
    match (may.is_empty(), not.is_empty()) {
        (false, true) if !relaxed => {
            let names = names(&may);
            vec![format!(
                "a thread may go on in the old code of {names}: --relaxed leaves it there, and leads calls to the new code"
            )]
        }
        _ => not
            .iter()
            .filter(|info| !info.goes_on.is_empty())
            .map(|info| format!("--relaxed is not for {}: {}", clean(&info.name), clean(&info.goes_on)))
            .collect(),
    }
}

/// The record of the entry of the function that an address lies in.
fn entry(file: &PatchFile, at: u64) -> Option<&FunctionRecord> {
    let records = &file.patch.functions;
    let record =
        records.iter().find(|record| (record.old_address..record.old_address + record.old_size).contains(&at))?;
    match record.role {
        Role::Entry(_) => Some(record),
        Role::Fragment(parent) => records.get(parent as usize),
    }
}
