//! What `/proc` says of a process before it is touched, and the one-line reasons for which it cannot be.

use crate::Stood;
use crate::failure::{Failure, unusable};
use crate::maps::{Maps, MapsFile};
use crate::prelude::*;
use crate::sys::{self, Errno, Mem};
use alloc::rc::Rc;
use core::cell::Cell;

/// A process that the engine may work on.
pub(crate) struct Process {
    pub(crate) pid: i32,
    life: Life,
    pub(crate) mem: Mem,
    maps: MapsFile,
    pub(crate) status: Status,
    /// How long threads of it have stood still for us.
    pub(crate) stood: Cell<Stood>,
    /// Somebody else has changed its patches since they were read.
    pub(crate) changed: Cell<bool>,
}

/// The lines of `/proc/PID/status` that matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub(crate) state: char,
    tracer: i32,
    pub(crate) seccomp: u32,
    pub(crate) uid: u32,
    pub(crate) kernel_thread: bool,
}

impl Status {
    /// Only one process can trace a thread.
    pub(crate) fn check_tracer(&self, pid: i32) -> Result<(), Failure> {
        match self.tracer {
            0 => Ok(()),
            tracer => {
                let name = comm(tracer);
                Err(unusable(format_args!("process {pid} is already traced by process {tracer} ({name})")))
            }
        }
    }
}

/// The command name, or nothing if the process is gone.
pub(crate) fn comm(pid: i32) -> String {
    let text = sys::read_file(&format!("/proc/{pid}/comm")).unwrap_or_default();
    printable(String::from_utf8_lossy(&text).trim_end())
}

/// The name of one thread.
pub(crate) fn thread_comm(pid: i32, tid: i32) -> String {
    let text = sys::read_file(&format!("/proc/{pid}/task/{tid}/comm")).unwrap_or_default();
    printable(String::from_utf8_lossy(&text).trim_end())
}

/// Text that a target chose, without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// All process numbers, ascending.
pub(crate) fn all_pids() -> Result<Vec<i32>, Errno> {
    sys::numbers_in("/proc")
}

/// All thread numbers of a process; empty when it has ended.
pub(crate) fn threads(pid: i32) -> Vec<i32> {
    sys::numbers_in(&format!("/proc/{pid}/task")).unwrap_or_default()
}

/// State letter of one thread (`man 5 proc`); `None` when it has ended.
pub(crate) fn thread_state(pid: i32, tid: i32) -> Option<char> {
    let stat = sys::read_piece(&format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    stat_fields(&stat)?.next()?.chars().next()
}

/// The fields after the command name, which may itself hold anything.
fn stat_fields(stat: &[u8]) -> Option<impl Iterator<Item = &str>> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    Some(core::str::from_utf8(stat.get(name_end + 1..)?).ok()?.split_ascii_whitespace())
}

/// What tells a process and its program from later ones with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    /// Clock ticks from boot to its start.
    start_time: u64,
    /// Addresses of the program's code and stack, which another program does not share.
    program: [u64; 2],
}

/// Of a process that lives; none of one that has ended.
fn life(pid: i32) -> Result<Option<Life>, Errno> {
    Ok(life_and_threads(pid)?.map(|(life, _)| life))
}

/// The same, and how many threads it has.
fn life_and_threads(pid: i32) -> Result<Option<(Life, usize)>, Errno> {
    match sys::read_piece(&format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(life_in(&stat)),
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// proc(5), `stat`
fn life_in(stat: &[u8]) -> Option<(Life, usize)> {
    let mut fields = stat_fields(stat)?;
    let state = fields.next()?;
    // From field 4 on.
    let mut numbers = fields.map(|field| field.parse::<u64>().ok());
    let threads = numbers.nth(20 - 4)??;
    let start_time = numbers.nth(22 - 21)??;
    let program = [numbers.nth(26 - 23)??, numbers.nth(28 - 27)??];
    (!matches!(state, "Z" | "X")).then_some((Life { start_time, program }, threads as usize))
}

/// What the kernel says of one thread; `None` when it has ended.
pub(crate) fn thread_status(pid: i32, tid: i32) -> Option<Status> {
    read_status(&format!("/proc/{pid}/task/{tid}/status"))
}

fn read_status(path: &str) -> Option<Status> {
    Some(status_in(&sys::read_piece(path).ok()?))
}

/// proc(5), `status`
fn status_in(text: &[u8]) -> Status {
    let mut status = Status::default();
    // The name comes first, and the kernel writes no line feed of it as such.
    for line in text.split(|byte| *byte == b'\n') {
        // Sixty lines, of each thread.
        if !matches!(line.first(), Some(b'S' | b'T' | b'U' | b'K')) {
            continue;
        }
        let mut words = line.split(|byte| *byte == b'\t');
        let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
        let number = || core::str::from_utf8(value).ok()?.parse::<u32>().ok();
        match key {
            b"State:" => status.state = value.first().map_or('?', |byte| char::from(*byte)),
            b"TracerPid:" => status.tracer = number().unwrap_or(0) as i32,
            b"Seccomp:" => status.seccomp = number().unwrap_or(0),
            b"Uid:" => status.uid = number().unwrap_or(u32::MAX),
            b"Kthread:" => status.kernel_thread = value == b"1",
            _ => {}
        }
    }
    status
}

/// That a process is no more, wherever that is noticed.
pub(crate) fn ended(pid: i32) -> Failure {
    unusable(format_args!("process {pid} ended"))
}

impl Process {
    /// Opens a process for patching.
    pub(crate) fn open(pid: i32) -> Result<Process, Failure> {
        Process::open_with(pid, Mem::open)
    }

    /// Opens a process for looking only; also one that another process traces.
    pub(crate) fn open_read(pid: i32) -> Result<Process, Failure> {
        Process::open_with(pid, Mem::open_read)
    }

    fn open_with(pid: i32, open: fn(i32) -> Result<Mem, Errno>) -> Result<Process, Failure> {
        let unusable = |text: String| Err(unusable(format_args!("{text}")));
        let Some(status) = read_status(&format!("/proc/{pid}/status")) else {
            return unusable(format!("no such process: {pid}"));
        };
        if sys::about(format!("/proc/{pid}/task/{pid}")).is_err() {
            return unusable(format!("{pid} is a thread, not a process"));
        }
        match status.state {
            'Z' if threads(pid).len() > 1 => {
                return unusable(format!("process {pid}: its main thread has ended; such a process cannot be patched"));
            }
            'Z' => return unusable(format!("process {pid} is a zombie: it has ended, its parent has not noticed yet")),
            'X' => return Err(ended(pid)),
            _ => {}
        }
        if status.kernel_thread {
            return unusable(format!("process {pid} is a kernel thread"));
        }
        let mem = match open(pid) {
            Ok(mem) => mem,
            Err(error) => return Err(open_error(pid, &status, &error)),
        };
        let maps = match MapsFile::open(pid) {
            Ok(maps) => maps,
            Err(error) => return Err(open_error(pid, &status, &error)),
        };
        let life = match life(pid) {
            Ok(Some(life)) => life,
            Ok(None) => return Err(ended(pid)),
            Err(error) => return unusable(format!("process {pid}: cannot read when it began: {error}")),
        };
        let process = Process { pid, life, mem, maps, status, stood: Cell::default(), changed: Cell::default() };
        process.check_machine()?;
        Ok(process)
    }

    /// What is mapped now.
    ///
    /// # Errors
    /// [`crate::Error::Unusable`] if the process has ended: it has no memory any more.
    pub(crate) fn maps(&self) -> Result<Rc<Maps>, Failure> {
        let maps = self.maps.read().map_err(|error| self.io_error("cannot read its memory map", &error))?;
        self.mem.is_mapped(maps.fingerprint());
        if maps.is_empty() { Err(ended(self.pid)) } else { Ok(maps) }
    }

    /// Only one process can trace a thread. Any thread may have a tracer, not only the first.
    pub(crate) fn check_tracer(&self) -> Result<(), Failure> {
        let mut statuses = threads(self.pid).into_iter().filter_map(|tid| thread_status(self.pid, tid));
        statuses.try_for_each(|status| status.check_tracer(self.pid))
    }

    /// A stop of that length is over.
    pub(crate) fn has_stood(&self, pause_ns: u64) {
        let mut stood = self.stood.get();
        stood.add(Stood { stops: 1, total_ns: pause_ns, longest_ns: pause_ns });
        self.stood.set(stood);
    }

    /// Whether the number still stands for the process that was opened, and it lives and runs the same program.
    pub(crate) fn is_same(&self) -> bool {
        life(self.pid) == Ok(Some(self.life))
    }

    /// How many threads it has, those included that have ended and that their tracer has not noticed yet; `None` if it
    /// is not the same any more.
    pub(crate) fn thread_count(&self) -> Option<usize> {
        let now = life_and_threads(self.pid).ok().flatten();
        now.filter(|(life, _)| *life == self.life).map(|(_, threads)| threads)
    }

    /// What an error is if the process has ended meanwhile: memory that cannot be read any
    /// more looks like a target that does not fit.
    pub(crate) fn explain(&self, error: Failure) -> Failure {
        let pid = self.pid;
        match life(pid) {
            Ok(Some(life)) if life == self.life => error,
            Err(_) => error,
            // On its way out it has no program any more.
            Ok(Some(life)) if life.start_time == self.life.start_time && life.program != [0; 2] => {
                unusable(format_args!("process {pid} has started another program meanwhile"))
            }
            _ => ended(pid),
        }
    }

    /// An error while reading or writing the target, in words.
    pub(crate) fn io_error(&self, what: &str, error: &Errno) -> Failure {
        match *error {
            // The memory of a process that has exited reads as an empty file.
            Errno::ESRCH | Errno::ENDED => ended(self.pid),
            _ if life(self.pid).is_ok_and(|life| life != Some(self.life)) => ended(self.pid),
            _ => unusable(format_args!("process {}: {what}: {error}", self.pid)),
        }
    }

    fn check_machine(&self) -> Result<(), Failure> {
        let mut start = [0u8; 20];
        let exe = format!("/proc/{}/exe", self.pid);
        let read = sys::File::open(&exe).and_then(|file| file.read_exact_at(&mut start, 0));
        // Where the file cannot be had the mapped headers decide later.
        if read.is_err() || !start.starts_with(b"\x7fELF") {
            return Ok(());
        }
        match (start[4], u16::from_le_bytes([start[18], start[19]])) {
            (2, hp_pack::EM_X86_64) => Ok(()),
            (1, _) => Err(unusable(format_args!("process {} is a 32-bit program", self.pid))),
            _ => Err(unusable(format_args!("process {} is not an x86-64 program", self.pid))),
        }
    }
}

fn open_error(pid: i32, status: &Status, error: &Errno) -> Failure {
    let text = match *error {
        Errno::ESRCH | Errno::ENOENT => return ended(pid),
        Errno::EACCES | Errno::EPERM => not_permitted(pid, status),
        _ => format!("process {pid}: cannot open its memory: {error}"),
    };
    unusable(format_args!("{text}"))
}

/// Why ptrace is not allowed, with what would help.
pub(crate) fn not_permitted(pid: i32, status: &Status) -> String {
    let own = sys::user_id();
    if own != 0 && own != status.uid {
        let owner = status.uid;
        return format!(
            "not permitted: process {pid} belongs to uid {owner}; run as that user, as root or with CAP_SYS_PTRACE"
        );
    }
    let scope = sys::read_file("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let own_status = sys::read_file("/proc/self/status").unwrap_or_default();
    if let Some(why) = beside_tracing(capabilities(&own_status), own != status.uid)
        && scope.trim_ascii() != b"3"
    {
        return format!("not permitted: process {pid}: {why}");
    }
    format!("not permitted: process {pid}{}", without_tracing(&scope, own == 0))
}

/// What is in the way of one who has no right to trace, by `kernel.yama.ptrace_scope` where there is one.
fn without_tracing(scope: &[u8], is_root: bool) -> &'static str {
    match scope.trim_ascii() {
        b"1" => ": kernel.yama.ptrace_scope is 1; CAP_SYS_PTRACE is needed",
        b"2" => ": kernel.yama.ptrace_scope is 2; CAP_SYS_PTRACE is needed",
        b"3" => {
            ": kernel.yama.ptrace_scope is 3; CAP_SYS_PTRACE is needed and even that is not enough until it is lowered by a reboot"
        }
        _ if is_root => ": CAP_SYS_PTRACE is missing, or a security module forbids it",
        _ => " is not dumpable or has capabilities that you lack; CAP_SYS_PTRACE is needed",
    }
}

/// The effective capabilities in `/proc/PID/status`.
fn capabilities(status: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

/// What is in the way of one who may trace: the memory file of a process belongs to its user.
fn beside_tracing(capabilities: u64, others: bool) -> Option<&'static str> {
    const DAC_OVERRIDE: u64 = 1 << 1;
    const SYS_PTRACE: u64 = 1 << 19;
    match (capabilities & SYS_PTRACE != 0, capabilities & DAC_OVERRIDE != 0) {
        (true, false) if others => Some("CAP_DAC_OVERRIDE is missing, which opening another user's memory takes"),
        (true, _) => Some("CAP_SYS_PTRACE is there, so a security module or a user namespace forbids it"),
        (false, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all = capabilities(b"Name:\thp\nCapEff:\t000001ffffffffff\n");
        assert!(beside_tracing(all, true).unwrap().contains("security module"));
        assert!(beside_tracing(all & !2, true).unwrap().contains("CAP_DAC_OVERRIDE"));
        assert!(beside_tracing(all & !2, false).unwrap().contains("security module"));
        assert_eq!(beside_tracing(all & !(1 << 19), true), None);
        assert_eq!(capabilities(b"CapEff:\tnonsense\n"), 0);
    }

    #[test]
    fn the_scope_of_tracing_is_named() {
        for (scope, words) in
            [("1\n", "ptrace_scope is 1; CAP_SYS_PTRACE is needed"), ("2\n", "ptrace_scope is 2"), ("3\n", "a reboot")]
        {
            assert!(without_tracing(scope.as_bytes(), false).contains(words), "{scope}");
            assert!(without_tracing(scope.as_bytes(), true).contains(words), "{scope}");
        }
        for none in ["", "0\n"] {
            assert!(without_tracing(none.as_bytes(), false).contains("not dumpable"));
            assert!(without_tracing(none.as_bytes(), true).contains("security module"));
        }
    }

    #[test]
    fn a_command_name_cannot_shift_the_fields() {
        let fields: Vec<&str> = stat_fields(b"7 (a\xff) Z 1) S 2 3").unwrap().collect();
        assert_eq!(fields, ["S", "2", "3"]);
    }

    #[test]
    fn a_life_is_read_from_the_fields_that_the_manual_names() {
        let stat = format!("7 (a) S {}", (4..=52).map(|field| format!("{field} ")).collect::<String>());
        let life = Life { start_time: 22, program: [26, 28] };
        assert_eq!(life_in(stat.as_bytes()), Some((life, 20)));
        assert_eq!(life_in(stat.replace(" S ", " Z ").as_bytes()), None);
        assert_eq!(life_in(b"7 (a) S 4 5"), None);
    }

    #[test]
    fn a_status_is_that_of_a_thread() {
        let status = status_in(b"Name:\tSeccomp: 5\nState:\tt (tracing stop)\nTracerPid:\t17\nUid:\t3\t4\t5\t6\nKthread:\t0\nSeccomp:\t2\n");
        assert_eq!((status.state, status.tracer, status.uid, status.seccomp), ('t', 17, 3, 2));
        assert!(!status.kernel_thread);
    }

    #[test]
    fn own_threads_are_counted() {
        let own = Process::open(std::process::id() as i32).unwrap();
        let (ready, counted) = (std::sync::Barrier::new(4), std::sync::Barrier::new(4));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (ready.wait(), counted.wait()));
            }
            ready.wait();
            assert!(own.thread_count().unwrap() > 3);
            counted.wait();
        });
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = Process::open(i32::MAX).err().unwrap();
        assert_eq!(error, unusable(format_args!("no such process: {}", i32::MAX)));
    }
}
