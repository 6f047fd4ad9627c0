//! Processes seen from outside, and children that never outlive their test.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A child process. It leads a process group of its own; the whole group ends with this value, and the child
/// also when the thread of the test ends in another way.
pub(crate) struct Running {
    /// The child, for its pipes and its exit status.
    pub(crate) child: Child,
}

impl Running {
    /// Starts `command`.
    pub(crate) fn start(command: &mut Command) -> Running {
        command.process_group(0);
        // SAFETY: between fork and exec only prctl is called, which is safe there (signal-safety(7)).
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Running { child }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True until it has ended. It is not waited for, so its id stays its own.
    pub(crate) fn lives(&self) -> bool {
        let state = status_field(self.pid(), "State");
        !state.is_empty() && !state.starts_with('Z')
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody has waited for the child, so its id, which is its group's too, cannot be another's by now.
        if self.lives() {
            signal_group(self.pid(), libc::SIGTERM);
            let _ = until(Duration::from_secs(3), || !self.lives());
        }
        signal_group(self.pid(), libc::SIGKILL);
        let _ = self.child.wait();
    }
}

fn signal_group(leader: u32, signal: i32) {
    // SAFETY: kill takes numbers only.
    unsafe { libc::kill(-leader.cast_signed(), signal) };
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes numbers only.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

/// Asks again and again until it is so; false if it is not by the deadline.
pub(crate) fn until(limit: Duration, mut so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if so() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `/proc/PID/NAME` as text; empty if it cannot be read.
pub(crate) fn proc_file(pid: u32, name: &str) -> String {
    fs::read(format!("/proc/{pid}/{name}"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The value of a line of `/proc/PID/status`, such as `TracerPid`.
pub(crate) fn status_field(pid: u32, field: &str) -> String {
    let text = proc_file(pid, "status");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or("").trim().to_string()
}

/// The processes whose parent is `pid`, in order.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc can be listed");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = pids.filter(|child| status_field(*child, "PPid") == pid.to_string()).collect();
    found.sort_unstable();
    found
}

/// The executable mappings of a process, one line each, as `/proc/PID/maps` has them.
pub(crate) fn executable_maps(pid: u32) -> Vec<String> {
    let maps = proc_file(pid, "maps");
    maps.lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|p| p.contains('x')))
        .map(String::from)
        .collect()
}

/// The executable mappings that come from no file and are not the kernel's: payloads, and what a compiler at run time
/// makes, which neither redis nor nginx uses in these tests.
pub(crate) fn anonymous_code(pid: u32) -> Vec<String> {
    executable_maps(pid).into_iter().filter(|line| line.split_whitespace().count() == 5).collect()
}

/// The bytes of the program's own code in memory.
pub(crate) fn program_text(pid: u32) -> Vec<u8> {
    let program = fs::read_link(format!("/proc/{pid}/exe")).expect("the process runs").display().to_string();
    let memory = File::open(format!("/proc/{pid}/mem")).expect("our child's memory can be read");
    let mut text = Vec::new();
    for line in executable_maps(pid).iter().filter(|line| line.ends_with(&program)) {
        let (start, end) = line.split_whitespace().next().and_then(|range| range.split_once('-')).expect("a range");
        let number = |digits: &str| u64::from_str_radix(digits, 16).expect("hexadecimal");
        let mut bytes = vec![0; usize::try_from(number(end) - number(start)).expect("a size")];
        memory.read_exact_at(&mut bytes, number(start)).expect("a mapping can be read");
        text.extend(bytes);
    }
    assert!(!text.is_empty(), "process {pid} maps its program");
    text
}

/// What must be the same after a refusal as before: mappings, code, and that nobody holds or has stopped it.
#[derive(PartialEq, Eq)]
pub(crate) struct Snapshot {
    maps: String,
    text: Vec<u8>,
    tracer: String,
}

impl Snapshot {
    /// Takes it of a process that does not map or unmap memory by itself.
    pub(crate) fn of(pid: u32) -> Snapshot {
        Snapshot { maps: proc_file(pid, "maps"), text: program_text(pid), tracer: status_field(pid, "TracerPid") }
    }

    /// Asserts that the process is as it was.
    #[track_caller]
    pub(crate) fn still_holds(&self, pid: u32) {
        let now = Snapshot::of(pid);
        assert_eq!(now.maps, self.maps, "mappings of process {pid}");
        assert!(now.text == self.text, "the code of process {pid} was changed");
        assert_eq!(now.tracer, self.tracer, "tracer of process {pid}");
    }
}
