//! What leads to the finders of a payload that is to go.
//!
//! To find it means to read the relocations and symbols of every module: milliseconds for a process with many
//! libraries. So it is read before anything stands, and once more in the stop only if a module or a payload came or
//! went meanwhile.

use super::{COUNT, Holder, QUESTIONS, modules, unreadable};
use crate::addr::{LiveAddr, LiveRange};
use crate::dynamic::Name;
use crate::failure::{Failure, refused};
use crate::image::{images, may_start_an_image};
use crate::ledger::{self, Ledger};
use crate::maps::{Mapping, Maps};
use crate::prelude::*;
use crate::process::Process;
use crate::sys::Mem;

/// Every word that can lead to the finders of a payload.
pub(crate) struct Holders<'l> {
    ledger: &'l Ledger,
    list: Vec<Holder>,
    there: There,
}

/// What modules and payloads there are: the first mappings of the ones, and the places of the others.
#[derive(PartialEq, Eq)]
struct There {
    modules: Vec<Mapping>,
    payloads: Vec<LiveRange>,
}

impl<'l> Holders<'l> {
    pub(crate) fn find(process: &Process, ledger: &'l Ledger) -> Result<Holders<'l>, Failure> {
        Ok(Holders::of(&process.mem, &*process.maps()?, ledger))
    }

    fn of(mem: &Mem, maps: &Maps, ledger: &'l Ledger) -> Holders<'l> {
        let all = ledger::find(mem, maps);
        let list = if ledger.finders.is_empty() { Vec::new() } else { holders(mem, maps, ledger, &all) };
        let there = There::of(maps, &all);
        Holders { ledger, list, there }
    }

    /// Whether any of them does.
    pub(crate) fn lead(&self, process: &Process) -> bool {
        let leads = |holder: &Holder| holder.read(&process.mem).is_ok_and(|value| self.ledger.finders.contains(value));
        self.list.iter().any(leads)
    }

    /// Takes the finders out of all slots and chains. Everything stands, and nobody is in the payload.
    pub(crate) fn take_out(&self, process: &Process, maps: &Maps, tid: i32) -> Result<(), Failure> {
        if self.ledger.finders.is_empty() {
            return Ok(());
        }
        let mem = &process.mem;
        if There::of(maps, &ledger::find(mem, maps)) != self.there {
            return Holders::of(mem, maps, self.ledger).write(process, maps, tid);
        }
        self.write(process, maps, tid)
    }

    fn write(&self, process: &Process, maps: &Maps, tid: i32) -> Result<(), Failure> {
        for holder in &self.list {
            let Ok(value) = holder.read(&process.mem) else { continue };
            if let Some((_, next)) = self.ledger.finder_at(value) {
                let next = process.mem.u64(next).map(LiveAddr).map_err(|e| unreadable(process, &e))?;
                let code = maps.at(next).is_some_and(|map| map.execute);
                if !code {
                    return Err(refused(format_args!("the patch's memory is damaged: {next} is no code")));
                }
                holder.write(process, tid, next)?;
            }
        }
        Ok(())
    }
}

impl There {
    fn of(maps: &Maps, ledgers: &[Ledger]) -> There {
        let modules = maps.iter().filter(|mapping| may_start_an_image(mapping)).cloned().collect();
        There { modules, payloads: ledgers.iter().map(|ledger| ledger.mapping).collect() }
    }
}

fn holders(mem: &Mem, maps: &Maps, ledger: &Ledger, payloads: &[Ledger]) -> Vec<Holder> {
    let mut all = Vec::new();
    for (_, module) in modules(mem, &images(mem, maps)) {
        all.extend(module.references(mem, &QUESTIONS).into_iter().map(|(_, rela)| Holder::pointer(rela.place)));
        let symbols = QUESTIONS.iter().filter_map(|name| module.find(mem, Name { name, version: None }, false));
        all.extend(symbols.map(|found| Holder::Word(found.value_at, module.bias)));
    }
    let others = payloads.iter().filter(|other| other.mapping != ledger.mapping && !other.finders.is_empty());
    all.extend(ledger.calls.iter().map(|&at| Holder::Call(at)));
    all.extend(others.flat_map(|other| (0..COUNT).map(move |index| Holder::pointer(other.next(index)))));
    all
}
