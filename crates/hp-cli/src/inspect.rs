//! `hp inspect`: a patch as a person reads it.
//!
//! What the patch *does* is taken from its records; names, causes and fixes are what the manifest says.

use crate::args::InspectArgs;
use crate::exit::Exit;
use crate::patch_file::PatchFile;
use crate::side_by_side;
use crate::text::{BOLD, DIM, WARN, clean, count, hex, print_json, readable, verbose};
use hp_diff::PatchedCode;
use hp_pack::manifest::{FunctionInfo, Manifest};
use hp_pack::{Patch, Place, Role};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Shows a patch.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<Exit> {
    let file = PatchFile::read(&args.patch)?;
    let manifest: Option<Manifest> = serde_json::from_slice(&file.patch.manifest).ok();
    let code = code(args, &file)?;
    if args.json {
        let mut value = as_json(&file, manifest.as_ref());
        if let Some(code) = &code {
            value["code"] = json!(code);
        }
        print_json(&value)?;
    } else if let Some(code) = &code {
        print_code(&mut crate::text::out(), code, manifest.as_ref())?;
    } else {
        print(&mut crate::text::out(), &file, manifest.as_ref())?;
    }
    Ok(Exit::Done)
}

fn print(out: &mut impl Write, file: &PatchFile, manifest: Option<&Manifest>) -> io::Result<()> {
    let patch = &file.patch;
    writeln!(out, "{BOLD}{}{BOLD:#}  id {}", clean(&patch.name), file.id)?;
    let mut fact = |name: &str, value: String| writeln!(out, "  {DIM}{name:<8}{DIM:#} {value}");
    let version = format!("format {}.{}", hp_pack::FORMAT_MAJOR, hp_pack::FORMAT_MINOR);
    fact("file", format!("{}, {} bytes, {version}", file.display(), file.bytes.len()))?;
    let base = hex(&patch.base.build_id);
    match manifest {
        Some(m) => {
            fact("base", format!("{}, build ID {base}", clean(&m.old.file)))?;
            fact("becomes", format!("{}, build ID {}", clean(&m.new.file), or_none(&clean(&m.new.build_id))))?;
            fact("fixes", or_none(&clean(&m.fixes.join(", "))))?;
            fact("made by", clean(&m.tool))?;
        }
        None => {
            fact("base", format!("build ID {base}"))?;
            fact("manifest", "unreadable; names and causes are not known".into())?;
        }
    }
    fact("counter", patch.counter.to_string())?;
    fact("imports", or_none(&imports(patch).map(clean).collect::<Vec<_>>().join(", ")))?;
    print_functions(out, patch, manifest)?;
    print_sizes(out, file)?;
    manifest.map_or(Ok(()), |m| print_findings(out, m))?;
    writeln!(out, "\n{DIM}The code of it: objdump -dr {}{DIM:#}", file.display())
}

/// The code of the patch, if it was asked for.
fn code(args: &InspectArgs, file: &PatchFile) -> anyhow::Result<Option<Vec<PatchedCode>>> {
    if !args.asm && !args.source {
        return Ok(None);
    }
    let options = hp_diff::Options { places: hp_diff::DebugPlaces::system(), ..Default::default() };
    let mut code = hp_diff::patched_code(&args.patch, &file.patch, args.old.as_deref(), &options)?;
    if !args.source {
        let sides = code.iter_mut().flat_map(|c| &mut c.rows).flat_map(|r| [&mut r.old, &mut r.new]);
        sides.flatten().for_each(|i| i.place = None);
    }
    Ok(Some(code))
}

fn print_code(out: &mut impl Write, code: &[PatchedCode], manifest: Option<&Manifest>) -> io::Result<()> {
    for (i, function) in code.iter().enumerate() {
        let known = manifest.and_then(|m| m.functions.iter().find(|f| f.name == function.name));
        let cause = known.map_or("", |f| f.cause.as_str());
        if i > 0 {
            writeln!(out)?;
        }
        side_by_side::print(out, &function.name, cause, &function.rows)?;
    }
    Ok(())
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".into() } else { text.into() }
}

fn imports(patch: &Patch) -> impl Iterator<Item = &str> {
    patch.symbols.iter().filter(|s| s.place == Place::Import).map(|s| s.name.as_str())
}

/// The functions as the manifest names them, else as the records do.
fn functions(patch: &Patch, manifest: Option<&Manifest>) -> Vec<FunctionInfo> {
    if let Some(manifest) = manifest {
        return manifest.functions.clone();
    }
    let entries = patch.functions.iter().filter_map(|f| match f.role {
        Role::Entry(entry) => Some((f, patch.symbols.get(entry.new_symbol as usize)?)),
        Role::Fragment(_) => None,
    });
    entries
        .map(|(f, new)| FunctionInfo {
            name: new.name.clone(),
            change: "changed".into(),
            old_address: f.old_address,
            old_size: f.old_size,
            new_size: new.size,
            ..FunctionInfo::default()
        })
        .collect()
}

fn print_functions(out: &mut impl Write, patch: &Patch, manifest: Option<&Manifest>) -> io::Result<()> {
    let functions = functions(patch, manifest);
    writeln!(out, "\n{BOLD}{}{BOLD:#}", count(functions.len(), "function"))?;
    let width = functions.iter().map(|f| readable(&f.name).chars().count()).max().unwrap_or(0).min(40);
    for f in &functions {
        let (change, name, source) = (clean(&f.change), readable(&f.name), clean(&f.source));
        let old = if f.old_size == 0 { String::new() } else { format!("at {:#x}, {} → ", f.old_address, f.old_size) };
        let notes =
            [readable(&f.cause), source].into_iter().filter(|note| !note.is_empty()).collect::<Vec<_>>().join(", ");
        writeln!(out, "  {change:<8} {name:<width$}  {old}{} bytes  {DIM}{notes}{DIM:#}", f.new_size)?;
        match clean(&f.goes_on).as_str() {
            "" => {}
            "yes" => writeln!(out, "  {:<8} {DIM}--relaxed: a thread may go on in the old code{DIM:#}", "")?,
            why if verbose() => writeln!(out, "  {:<8} {DIM}no --relaxed: {why}{DIM:#}", "")?,
            _ => {}
        }
    }
    Ok(())
}

/// What takes the space, in the file and in the target.
fn sizes(patch: &Patch) -> Vec<(&'static str, u64, u64)> {
    let names: usize = patch.symbols.iter().map(|s| s.name.len() + 1).sum();
    let mut sizes: Vec<_> = patch.sections.iter().map(|s| (s.kind.name(), s.data.len() as u64, s.size)).collect();
    sizes.push(("relocations", 24 * patch.relocations.len() as u64, 0));
    sizes.push(("symbols", (24 * patch.symbols.len() + names) as u64, 0));
    sizes.push(("function records", 72 * patch.functions.len() as u64, 0));
    sizes.push(("manifest", patch.manifest.len() as u64, 0));
    sizes
}

fn print_sizes(out: &mut impl Write, file: &PatchFile) -> io::Result<()> {
    writeln!(out, "\n{BOLD}bytes                  in the file  in the process{BOLD:#}")?;
    let sizes = sizes(&file.patch);
    for (name, in_file, in_process) in &sizes {
        writeln!(out, "  {name:<20} {in_file:>11}  {in_process:>14}")?;
    }
    let known: u64 = sizes.iter().map(|s| s.1).sum();
    writeln!(out, "  {:<20} {:>11}  {:>14}", "headers and padding", file.bytes.len() as u64 - known, 0)
}

fn print_findings(out: &mut impl Write, manifest: &Manifest) -> io::Result<()> {
    if manifest.findings.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{BOLD}made in spite of{BOLD:#}")?;
    for f in &manifest.findings {
        let (code, subject, message) = (clean(&f.code), readable(&f.subject), readable(&f.message));
        let level = if f.accepted { "accepted".into() } else { clean(&f.level) };
        writeln!(out, "  {WARN}{level} {code}{WARN:#} {subject}: {message}")?;
    }
    Ok(())
}

fn as_json(file: &PatchFile, manifest: Option<&Manifest>) -> Value {
    let patch = &file.patch;
    let sections: Vec<Value> = sizes(patch)
        .into_iter()
        .map(|(name, in_file, in_process)| json!({ "name": name, "file_bytes": in_file, "process_bytes": in_process }))
        .collect();
    json!({
        "exit": Exit::Done.code(),
        "file": file.path,
        "id": file.id,
        "size": file.bytes.len(),
        "format": format!("{}.{}", hp_pack::FORMAT_MAJOR, hp_pack::FORMAT_MINOR),
        "name": patch.name,
        "counter": patch.counter,
        "base": {
            "build_id": hex(&patch.base.build_id),
            "span": patch.base.span,
            "fixed_address": patch.base.fixed_address,
        },
        "records": patch.functions.iter().map(|f| record(patch, f)).collect::<Vec<_>>(),
        "imports": imports(patch).collect::<Vec<_>>(),
        "relocations": patch.relocations.len(),
        "sizes": sections,
        "manifest": manifest,
    })
}

fn record(patch: &Patch, f: &hp_pack::FunctionRecord) -> Value {
    let name = |symbol: u32| patch.symbols.get(symbol as usize).map(|s| s.name.as_str());
    let (role, symbol, parent, may_go_on) = match f.role {
        Role::Entry(entry) => ("entry", name(entry.new_symbol), None, entry.may_go_on),
        Role::Fragment(parent) => ("fragment", None, Some(parent), false),
    };
    json!({
        "role": role,
        "name": symbol,
        "parent": parent,
        "old_address": f.old_address,
        "old_size": f.old_size,
        "digest": hex(&f.digest),
        "may_go_on": may_go_on,
    })
}
