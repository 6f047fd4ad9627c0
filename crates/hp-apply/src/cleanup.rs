//! Taking away what appliers left that died: stubs in slack bytes, and mappings whose
//! loading was cut short. Neither does any harm where it is, so this is done on the way of
//! an apply or revert, and only when no thread can be in either.

use crate::failure::Failure;
use crate::ledger;
use crate::remote::Slots;
use crate::safe_point::{Judge, Watch, Watched};
use crate::session::Session;
use crate::stage;
use crate::stops::Stops;
use crate::sys;
use core::time::Duration;

/// How often a moment is looked for at which no thread is in the way.
const TRIES: u64 = 3;

/// Cleans up as far as that is possible now.
pub(crate) fn clean(session: &Session, stops: &mut Stops<'_>, helpers: &[i32]) -> Result<(), Failure> {
    let process = &session.process;
    let slots = Slots::find(&process.mem, &session.images);
    if slots.left.is_empty() && session.abandoned.is_empty() {
        return Ok(());
    }
    let stubs = slots.left.iter().map(|stub| Watched::plain(stub.range, "a stub"));
    let mappings = session.abandoned.iter().map(|&range| Watched::plain(range, "an abandoned mapping"));
    let watch = Watch::new(stubs.chain(mappings).collect());
    for attempt in 0..TRIES {
        sys::sleep(Duration::from_millis(attempt));
        let Ok(mut stopped) = stops.tracer.stop_all()? else { continue };
        let maps = process.maps()?;
        let judge = Judge { process, unwinder: &stops.unwinder, maps: &maps, gates: &stops.gates };
        if !judge.busy(&stopped.tasks, &watch).is_empty() {
            continue;
        }
        // A stub first: it could still map something over what is unmapped here.
        for stub in &slots.left {
            let _ = stub.wipe(&process.mem, stopped.tid());
        }
        // What an applier was just loading when the process was looked at may be in use by now. Who still loads holds a
        // thread, so that not everything could stand.
        let still = ledger::abandoned(&process.mem, &maps, &ledger::find(&process.mem, &maps));
        for &range in session.abandoned.iter().filter(|range| still.contains(range)) {
            stage::unmap(&mut stopped, &slots, helpers, range)?;
        }
        return Ok(());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{LiveAddr, LiveRange};
    use crate::ledger::claim;
    use crate::prelude::*;
    use crate::{Options, maps::Maps};
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    const PROGRAM: &str = "#include <stdio.h>
        #include <sys/mman.h>
        int main(void) {
            char *p = mmap(0, 16384, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            mprotect(p + 4096, 8192, PROT_READ);
            printf(\"%lu\\n\", (unsigned long)p + 4096); fflush(stdout);
            return getchar();
        }";

    /// Another applier is loading while the process is looked at, and has loaded when everything stands.
    #[test]
    fn what_is_being_loaded_is_not_taken_for_what_was_left() {
        let room = tempfile::tempdir().unwrap();
        let (source, program) = (room.path().join("program.c"), room.path().join("program"));
        std::fs::write(&source, PROGRAM).unwrap();
        assert!(Command::new("cc").arg(&source).arg("-o").arg(&program).status().unwrap().success());
        let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let range: LiveRange = LiveAddr(line.trim().parse().unwrap()).range(8192);
        let pid = child.id() as i32;
        let put = |at: LiveAddr, bytes: &[u8]| sys::Mem::open(pid).unwrap().write(pid, at, bytes).unwrap();
        put(range.start.plus(4096 - claim(range).len() as u64), &claim(range));

        let session = Session::open(pid).unwrap();
        assert_eq!(session.abandoned, [range]);
        let options = Options { timeout: Duration::from_secs(5), max_pause: None, dry_run: false, relaxed: false };
        let mut stops = Stops::new(&session, &options).unwrap();
        let is_there = || Maps::of(pid).unwrap().at(range.start).is_some();
        put(range.start, b"HPLEDGER");
        clean(&session, &mut stops, &[pid]).unwrap();
        assert!(is_there());
        put(range.start, &[0; 8]);
        clean(&session, &mut stops, &[pid]).unwrap();
        assert!(!is_there());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
