//! `hp symbols`: names for patched code, so that gdb and perf show it, from a process or from its core dump.
//!
//! The record in the process names each function; the patch file, where it is at hand, gives every symbol with its
//! size, and the new build the source lines. Nothing is written but what was asked for.

mod core_dump;
mod gdb;
mod lines;

use crate::args::SymbolsArgs;
use crate::exit::Exit;
use crate::patch_file::{PatchFile, write_file};
use crate::targets::{comm, target};
use crate::text::{clean, count, io_reason, print_json};
use anyhow::anyhow;
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection};
use hp_apply::LoadedCode;
use hp_diff::{BuildFile, DebugPlaces};
use hp_pack::{Place, SectionKind, SymbolKind};
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// The code of one patch in memory, and the file it came from if that is at hand.
struct Code {
    loaded: LoadedCode,
    file: Option<PatchFile>,
}

/// A range of code with a name.
struct Symbol {
    address: u64,
    size: u64,
    name: String,
}

/// Names the code of the patches in a process or a core dump.
pub(crate) fn run(args: &SymbolsArgs) -> anyhow::Result<Exit> {
    let (loaded, whose) = match (&args.pid, &args.core) {
        (Some(pid), _) => (hp_apply::loaded_code(*pid)?, target(&comm(*pid), *pid)),
        (None, core) => {
            let core = core.as_deref().unwrap_or(Path::new("core"));
            (core_dump::loaded_code(core)?, clean(&core.display().to_string()))
        }
    };
    let mut files = args.patch.iter().map(|path| PatchFile::read(path)).collect::<Result<Vec<_>, _>>()?;
    let mut codes = Vec::new();
    for loaded in loaded {
        let at = files.iter().position(|file| file.id == loaded.id);
        codes.push(Code { loaded, file: at.map(|at| files.swap_remove(at)) });
    }
    if let Some(file) = files.first() {
        anyhow::bail!("{}: patch {} is not in {whose}; `hp status` shows which are", file.display(), file.id);
    }
    let exit = if codes.is_empty() { Exit::Nothing } else { Exit::Done };
    if codes.is_empty() {
        writeln!(crate::text::notes(), "{whose}: not patched")?;
    } else if let Some(script) = &args.gdb {
        let builds = args.new.iter().map(|new| BuildFile::open(new, None, &DebugPlaces::system()));
        gdb::write(&codes, script, &builds.collect::<Result<Vec<_>, _>>()?)?;
        writeln!(crate::text::notes(), "wrote {0}: in gdb, `source {0}`", clean(&script.display().to_string()))?;
    } else if !args.json || args.output.is_some() {
        put_map(&codes, args.output.as_deref())?;
    }
    if args.json {
        let patches: Vec<_> = codes.iter().map(as_json).collect();
        print_json(&json!({ "exit": exit.code(), "patches": patches }))?;
    }
    Ok(exit)
}

/// What `perf` reads from `/tmp/perf-PID.map`: start and size in hexadecimal, name.
fn put_map(codes: &[Code], output: Option<&Path>) -> anyhow::Result<()> {
    let mut symbols: Vec<Symbol> = codes.iter().flat_map(Code::symbols).collect();
    symbols.sort_by_key(|symbol| symbol.address);
    let lines = symbols.iter().map(|s| format!("{:x} {:x} {}\n", s.address, s.size, clean(&s.name)));
    let map: String = lines.collect();
    let Some(path) = output else {
        crate::text::results().write_all(map.as_bytes())?;
        return Ok(());
    };
    let shown = clean(&path.display().to_string());
    write_file(path, map.as_bytes()).map_err(|e| anyhow!("cannot write {shown}: {}", io_reason(&e)))?;
    writeln!(crate::text::notes(), "wrote {shown}: {}", count(symbols.len(), "symbol"))?;
    Ok(())
}

fn as_json(code: &Code) -> serde_json::Value {
    let symbol = |s: Symbol| json!({ "name": s.name, "address": s.address, "size": s.size });
    json!({
        "id": code.loaded.id,
        "name": code.loaded.name,
        "exact": code.file.is_some(),
        "symbols": code.symbols().into_iter().map(symbol).collect::<Vec<_>>(),
    })
}

impl Code {
    /// Every named range of the patch's code, by address.
    fn symbols(&self) -> Vec<Symbol> {
        let mut symbols = match &self.file {
            Some(file) => self.exact(file),
            None => self.recorded(),
        };
        symbols.sort_by_key(|symbol| symbol.address);
        symbols
    }

    fn exact(&self, file: &PatchFile) -> Vec<Symbol> {
        let code = file.patch.symbols.iter().filter(|s| s.kind == SymbolKind::Function && !s.name.is_empty());
        code.filter_map(|s| {
            let section = match s.place {
                Place::Payload(SectionKind::Text) => &self.loaded.text,
                Place::Payload(SectionKind::Thunks) => &self.loaded.thunks,
                _ => return None,
            };
            Some(Symbol { address: section.start + s.value, size: s.size, name: s.name.clone() })
        })
        .collect()
    }

    /// The record has names without sizes; each unwind row says where a function begins and ends, also those that
    /// are not named: new ones, and cold parts.
    fn recorded(&self) -> Vec<Symbol> {
        let LoadedCode { name, text, functions, .. } = &self.loaded;
        let named = |at: u64| {
            functions.iter().find_map(|f| match at {
                at if at == f.address => Some(f.name.clone()),
                at if at == f.thunk => Some(format!("{}.thunk", f.name)),
                _ => None,
            })
        };
        let unnamed = |at: u64| format!("{name}+{:#x}", at.wrapping_sub(text.start));
        let ranges = self.row_ranges().into_iter();
        ranges.map(|(at, size)| Symbol { address: at, size, name: named(at).unwrap_or_else(|| unnamed(at)) }).collect()
    }

    /// Start and size of whatever has unwind rows.
    fn row_ranges(&self) -> Vec<(u64, u64)> {
        let LoadedCode { eh_frame, unwind_rows, .. } = &self.loaded;
        let bases = BaseAddresses::default().set_eh_frame(eh_frame.start);
        let rows = EhFrame::new(unwind_rows, LittleEndian);
        let mut entries = rows.entries(&bases);
        let mut ranges = Vec::new();
        while let Ok(Some(entry)) = entries.next() {
            if let CieOrFde::Fde(partial) = entry
                && let Ok(fde) = partial.parse(|_, bases, offset| rows.cie_from_offset(bases, offset))
            {
                ranges.push((fde.initial_address(), fde.len()));
            }
        }
        ranges
    }
}
