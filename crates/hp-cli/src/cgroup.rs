//! The processes of a control group and of those below it, as the kernel lists them (cgroups(7)).

use crate::text::{clean, io_reason};
use anyhow::{anyhow, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";
/// The file that lists a group's processes.
const PROCESSES: &str = "cgroup.procs";
/// Groups deeper than this are a loop of links.
const MAX_DEPTH: u32 = 64;

/// All members. The group is named by its folder, or by its path as `/proc/PID/cgroup` has it.
///
/// # Errors
/// There is no such group, or it cannot be read.
pub(crate) fn members(group: &Path) -> anyhow::Result<BTreeSet<i32>> {
    let below = |mount: &str| Path::new(mount).join(group.strip_prefix("/").unwrap_or(group));
    let unified = format!("{MOUNT}/unified");
    let candidates = [group.to_owned(), below(MOUNT), below(&unified)];
    let Some(folder) = candidates.into_iter().find(|folder| folder.join(PROCESSES).is_file()) else {
        bail!("{} is no control group; give its folder below {MOUNT}", clean(&group.display().to_string()));
    };
    let mut found = BTreeSet::new();
    collect(&folder, 0, &mut found).map_err(|(at, error)| {
        anyhow!("cannot read the control group {}: {}", clean(&at.display().to_string()), io_reason(&error))
    })?;
    Ok(found)
}

fn collect(folder: &Path, depth: u32, found: &mut BTreeSet<i32>) -> Result<(), (PathBuf, std::io::Error)> {
    let failed = |error: std::io::Error| match error.kind() {
        // A group that has just been removed has no processes.
        std::io::ErrorKind::NotFound if depth > 0 => Ok(()),
        _ => Err((folder.to_owned(), error)),
    };
    let listed = match std::fs::read_to_string(folder.join(PROCESSES)) {
        Ok(listed) => listed,
        Err(error) => return failed(error),
    };
    found.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) if depth < MAX_DEPTH => entries,
        Ok(_) => return Ok(()),
        Err(error) => return failed(error),
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&entry.path(), depth + 1, found)?;
    }
    Ok(())
}
