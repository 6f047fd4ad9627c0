//! The code that patches have brought into a process, for debuggers and profilers: from the process itself,
//! or from the memory that a core dump has kept of it.

use crate::addr::{LiveAddr, LiveRange};
use crate::failure::Failure;
use crate::ledger::{self, Ledger};
use crate::prelude::*;
use crate::session::Session;
use core::ops::Range;

/// What one patch has loaded. Addresses are those in the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedCode {
    /// ID of the patch.
    pub id: String,
    /// Name of the patch.
    pub name: String,
    /// The patch's `.text`.
    pub text: Range<u64>,
    /// The patch's `.text.hpatch.thunks`.
    pub thunks: Range<u64>,
    /// The patch's `.eh_frame`.
    pub eh_frame: Range<u64>,
    /// The bytes of `.eh_frame` as they are in the process; empty where they could not be read.
    pub unwind_rows: Vec<u8>,
    /// What it replaced.
    pub functions: Vec<LoadedFunction>,
}

/// A function that a patch has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedFunction {
    /// Its name.
    pub name: String,
    /// Its address in the process.
    pub address: u64,
    /// Address of the thunk that leads there or to the old function.
    pub thunk: u64,
}

/// The code of all patches of a process.
pub(crate) fn of_process(pid: i32) -> Result<Vec<LoadedCode>, Failure> {
    let session = Session::open_read(pid)?;
    let rows = |range: LiveRange| session.process.mem.bytes(range.start, range.len() as usize).unwrap_or_default();
    Ok(session.ledgers.iter().map(|ledger| loaded(ledger, rows(ledger.eh_frame))).collect())
}

/// The code of all patches whose record lies in these bytes, which were at this address.
pub(crate) fn in_memory(memory: &[u8], at: u64) -> Vec<LoadedCode> {
    let rows = |range: LiveRange| {
        let start = range.start.0.checked_sub(at)? as usize;
        memory.get(start..start.checked_add(range.len() as usize)?).map(<[u8]>::to_vec)
    };
    let ledgers = ledger::find_in(memory, LiveAddr(at));
    ledgers.iter().map(|ledger| loaded(ledger, rows(ledger.eh_frame).unwrap_or_default())).collect()
}

fn loaded(ledger: &Ledger, unwind_rows: Vec<u8>) -> LoadedCode {
    let range = |range: LiveRange| range.start.0..range.end.0;
    let functions = ledger.functions.iter().map(|function| LoadedFunction {
        name: function.name.clone(),
        address: function.new.0,
        thunk: function.thunk.0,
    });
    LoadedCode {
        id: ledger.id.clone(),
        name: ledger.name.clone(),
        text: range(ledger.text),
        thunks: range(ledger.thunks),
        eh_frame: range(ledger.eh_frame),
        unwind_rows,
        functions: functions.collect(),
    }
}
