//! `hp status`: what each patched process has, read from the process alone.

use crate::args::StatusArgs;
use crate::exit::Exit;
use crate::on_disk::OnDisk;
use crate::targets::{comm, exit_of_error, target, unseen};
use crate::text::{BAD, BOLD, DIM, GOOD, WARN, clean, date, print_json, verbose};
use hp_apply::{Error, LedgerEntry, Phase};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// So many functions of a patch are listed; `-v` lists all.
const SHOWN: usize = 100;

/// Shows the patches of the given processes, or of all.
pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<Exit> {
    let asked = !args.pid.is_empty();
    let pids = if asked { args.pid.clone() } else { hp_apply::patched_processes()? };
    let mut exits = Vec::new();
    let mut entries = Vec::new();
    for pid in pids {
        match hp_apply::status(pid) {
            // It ended after it had been found.
            Err(_) if !asked && !Path::new(&format!("/proc/{pid}")).exists() => {}
            result => {
                exits.push(exit_of(&result));
                if args.json {
                    entries.push(as_json(pid, &result));
                } else {
                    print(pid, &result, asked)?;
                }
            }
        }
    }
    let exit = Exit::of_all(exits.iter().copied());
    if args.json {
        print_json(&json!({ "exit": exit.code(), "processes": entries }))?;
    } else if exits.is_empty() {
        writeln!(crate::text::notes(), "no process is patched{}", unseen())?;
    }
    Ok(exit)
}

fn exit_of(result: &Result<Vec<LedgerEntry>, Error>) -> Exit {
    match result {
        Ok(patches) if patches.is_empty() => Exit::Nothing,
        Ok(_) => Exit::Done,
        Err(error) => exit_of_error(error),
    }
}

fn print(pid: i32, result: &Result<Vec<LedgerEntry>, Error>, asked: bool) -> io::Result<()> {
    let target = format!("{BOLD}{}{BOLD:#}", target(&comm(pid), pid));
    let patches = match result {
        Ok(patches) => patches,
        Err(error) => {
            let _ = writeln!(anstream::stderr(), "{target}: {}", clean(&error.to_string()));
            return Ok(());
        }
    };
    if patches.is_empty() {
        return if asked { writeln!(crate::text::notes(), "{target}: not patched") } else { Ok(()) };
    }
    let mut out = crate::text::out();
    let patched = if patches.len() == 1 { "1 patch".into() } else { format!("{} patches", patches.len()) };
    writeln!(out, "{target}: {patched}")?;
    patches.iter().try_for_each(|patch| print_patch(&mut out, pid, patch))
}

fn print_patch(out: &mut impl Write, pid: i32, patch: &LedgerEntry) -> io::Result<()> {
    let (id, name, base) = (clean(&patch.id), clean(&patch.name), clean(&patch.base_path));
    let (style, phase) = match patch.phase {
        Phase::Active => (GOOD, "in effect"),
        Phase::Inactive => (WARN, "not in effect"),
    };
    let applied = date(Duration::from_secs(patch.applied_at));
    writeln!(out, "  {BOLD}{name}{BOLD:#}  id {id}  {style}{phase}{style:#}  since {applied}, by user {}", patch.uid)?;
    writeln!(out, "    {DIM}base{DIM:#} {base}, build ID {}", clean(&patch.build_id))?;
    if let Some(line) = restart(pid, patch) {
        writeln!(out, "    {DIM}disk{DIM:#} {line}")?;
    }
    let shown = if verbose() { usize::MAX } else { SHOWN };
    for f in patch.functions.iter().take(shown) {
        writeln!(out, "    {} {:#x} → {:#x}", clean(&f.name), f.old_address, f.new_address)?;
    }
    if patch.functions.len() > shown {
        writeln!(out, "    {DIM}and {} more; -v lists all{DIM:#}", patch.functions.len() - shown)?;
    }
    patch.damage.iter().try_for_each(|damage| writeln!(out, "    {BAD}damaged{BAD:#} {}", clean(damage)))
}

/// What a restart would come to.
fn restart(pid: i32, patch: &LedgerEntry) -> Option<String> {
    if patch.base_path.is_empty() {
        return None;
    }
    Some(match OnDisk::of(pid, patch) {
        OnDisk::Old => format!("{WARN}the old build: a restart would lose the fix{WARN:#}"),
        OnDisk::Other(id) => format!("another build, with build ID {}", clean(&id)),
        OnDisk::Gone => "the file is gone: what a restart would run is not known".to_owned(),
        OnDisk::Unknown(why) => format!("cannot be looked at: {why}"),
    })
}

fn as_json(pid: i32, result: &Result<Vec<LedgerEntry>, Error>) -> Value {
    match result {
        Err(error) => json!({ "pid": pid, "comm": comm(pid), "error": error.to_string() }),
        Ok(patches) => {
            let patches: Vec<Value> = patches.iter().map(|patch| patch_json(pid, patch)).collect();
            json!({ "pid": pid, "comm": comm(pid), "patches": patches })
        }
    }
}

fn patch_json(pid: i32, patch: &LedgerEntry) -> Value {
    let function = |f: &hp_apply::PatchedFunction| json!({ "name": f.name, "old_address": f.old_address, "new_address": f.new_address });
    json!({
        "id": patch.id,
        "name": patch.name,
        "build_id": patch.build_id,
        "base_path": patch.base_path,
        "active": patch.phase == Phase::Active,
        "applied_at": patch.applied_at,
        "uid": patch.uid,
        "counter": patch.counter,
        "functions": patch.functions.iter().map(function).collect::<Vec<_>>(),
        "on_disk": OnDisk::of(pid, patch).word(),
        "damage": patch.damage,
    })
}
