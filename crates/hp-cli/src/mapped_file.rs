//! Where the file of a mapping can be opened by us.
//!
//! `/proc/PID/maps` gives paths as they are from the *reader's* root, also for a process that has another one (`chroot`); of
//! files in a mount namespace that is not the reader's, from that namespace's root (`d_path` in the kernel).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A path by which we reach what a process reaches by the name of this mapping, if there is any.
pub(crate) fn reachable(pid: i32, path: &str) -> Option<String> {
    let beside = format!("/proc/{pid}/root");
    // Who may not read the link may not go through it either, and is told so when he opens the file.
    let Ok(root) = std::fs::read_link(&beside) else { return Some(format!("{beside}{path}")) };
    match Path::new(path).strip_prefix(&root) {
        Ok(rest) => Some(format!("{beside}/{}", rest.display())),
        // It was mapped before the process went into its root.
        Err(_) => has_our_mounts(pid).then(|| path.to_owned()),
    }
}

fn has_our_mounts(pid: i32) -> bool {
    let namespace = |process: &str| std::fs::metadata(format!("/proc/{process}/ns/mnt")).map(|meta| meta.ino());
    matches!((namespace("self"), namespace(&pid.to_string())), (Ok(ours), Ok(its)) if ours == its)
}
