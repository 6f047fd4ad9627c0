//! Taking away what appliers left that died: stubs in slack bytes, and mappings whose
//! loading was cut short. Neither does any harm where it is, so this is done on the way of
//! an apply or revert, and only when no thread can be in either.

use crate::failure::Failure;
use crate::remote::Slots;
use crate::safe_point::{Judge, Watch, Watched};
use crate::session::{Session, read_maps};
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
        let maps = read_maps(process)?;
        let judge = Judge { process, unwinder: &stops.unwinder, maps: &maps, gates: &stops.gates };
        if !judge.busy(&stopped.tasks, &watch).is_empty() {
            continue;
        }
        // A stub first: it could still map something over what is unmapped here.
        for stub in &slots.left {
            let _ = stub.wipe(&process.mem, stopped.tid());
        }
        for &range in &session.abandoned {
            stage::unmap(&mut stopped, &slots, helpers, range)?;
        }
        return Ok(());
    }
    Ok(())
}
