//! A thread of the target calls exec while others are traced: who helps it on.
//!
//! The kernel lets an exec go on when all other threads have ended and whoever traces them has taken note; until then it
//! holds a lock that attaching to any thread of the process waits for (`cred_guard_mutex`, Linux, `fs/exec.c`). So a tracer that is
//! just attaching waits for the exec, and the exec for the tracer. Any thread of the tracer's process can take note of
//! the end of what it traces, so the one that waits for the tracer to finish looks for ended threads meanwhile.

use crate::prelude::*;
use crate::sys;
use core::time::Duration;

/// How long an ended thread is left to the tracer.
pub(crate) const TICK: Duration = Duration::from_millis(40);

/// Looks after the ended threads of one process.
pub(crate) struct Watch {
    pid: i32,
    /// Threads that had ended when it last looked.
    ended: Vec<i32>,
}

impl Watch {
    pub(crate) fn new(pid: i32) -> Watch {
        Watch { pid, ended: Vec::new() }
    }

    /// Takes note of threads that had ended already when it last looked, and stayed unnoticed. The end of the process
    /// itself belongs to its parent.
    pub(crate) fn look(&mut self) {
        let ended = ended_threads(self.pid);
        for tid in ended.iter().filter(|tid| self.ended.contains(tid)) {
            sys::bury(*tid);
        }
        self.ended = ended;
    }
}

/// Without the standard library.
#[cfg(not(feature = "std"))]
fn ended_threads(pid: i32) -> Vec<i32> {
    let mut tids = crate::process::threads(pid);
    tids.retain(|tid| *tid != pid && crate::process::thread_state(pid, *tid) == Some('Z'));
    tids
}

/// Not through `sys`: these calls are none of the engine's, and how many there are is chance, so tests must not count them.
#[cfg(feature = "std")]
fn ended_threads(pid: i32) -> Vec<i32> {
    extern crate std;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let others = tasks.filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok()).filter(|tid| *tid != pid);
    let is_zombie = |tid: &i32| {
        use std::io::Read;
        let mut stat = [0u8; 1024];
        let file = std::fs::File::open(format!("/proc/{pid}/task/{tid}/stat"));
        let Ok(got) = file.and_then(|mut file| file.read(&mut stat)) else { return false };
        let stat = stat.get(..got).unwrap_or_default();
        let name_end = stat.iter().rposition(|b| *b == b')').unwrap_or(stat.len());
        stat.get(name_end + 2) == Some(&b'Z')
    };
    others.filter(is_zombie).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    use std::sync::mpsc::RecvTimeoutError;

    use super::*;

    const PROGRAM: &str = "#include <pthread.h>
        #include <unistd.h>
        static void *sleeps(void *p) { for (;;) pause(); return p; }
        int main(void) {
            pthread_t t; char c;
            pthread_create(&t, 0, sleeps, 0);
            if (write(1, \"1\", 1) == 1 && read(0, &c, 1) == 1) execl(\"/bin/echo\", \"echo\", \"went on\", (char *)0);
            return 1;
        }";

    /// The thread that exec ends stays as it is until its tracer has taken note, and this tracer never does.
    #[test]
    fn an_exec_goes_on_though_the_tracer_of_a_thread_is_busy() {
        let room = tempfile::tempdir().unwrap();
        let (source, program) = (room.path().join("program.c"), room.path().join("program"));
        std::fs::write(&source, PROGRAM).unwrap();
        let built = Command::new("cc").arg(&source).arg("-o").arg(&program).arg("-pthread").status().unwrap();
        assert!(built.success());
        let mut child =
            Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it was just built");
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        output.read_exact(&mut [0]).unwrap();
        let pid = child.id() as i32;
        let tids = crate::process::threads(pid);
        let other = tids.into_iter().find(|tid| *tid != pid).expect("it has two threads");
        let (done, finished) = std::sync::mpsc::channel::<()>();
        let mut text = std::string::String::new();
        std::thread::scope(|scope| {
            sys::seize(other).unwrap();
            scope.spawn(move || {
                let mut watch = Watch::new(pid);
                while let Err(RecvTimeoutError::Timeout) = finished.recv_timeout(TICK) {
                    watch.look();
                }
            });
            input.write_all(b"x").unwrap();
            output.read_to_string(&mut text).unwrap();
            drop(done);
        });
        assert_eq!(text, "went on\n");
        assert!(child.wait().unwrap().success());
    }
}
