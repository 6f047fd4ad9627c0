//! `hp verify`: is the patch whole, and who signed it? Given the builds: is OLD with the patch in it NEW?

use crate::args::VerifyArgs;
use crate::exit::Exit;
use crate::patch_file::PatchFile;
use crate::text::{BAD, BOLD, DIM, GOOD, WARN, clean, count, print_json};
use crate::trust::{Trust, keys, read_patch};
use hp_diff::{BuildFile, DebugPlaces};
use hp_verify::{Build, Proof, Report, Scope};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;

/// Checks one patch.
pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<Exit> {
    let (file, trust) = read_patch(&args.patch, &keys(&args.trust)?)?;
    let report = match (&args.old, &args.new) {
        (Some(old), Some(new)) => {
            let mut places = DebugPlaces::system();
            places.directories.splice(0..0, args.debug_dir.iter().cloned());
            let debug = [args.old_debug.as_deref(), args.new_debug.as_deref()];
            Some(judge(&file.patch, [old, new], debug, &places, Scope::Whole)?)
        }
        _ => None,
    };
    let exit = if report.as_ref().is_none_or(Report::holds) { Exit::Done } else { Exit::Refused };
    if args.json {
        let proof =
            report.map_or(Value::Null, |r| json!({ "proven": r.holds(), "proof": r.proof, "faults": r.faults }));
        print_json(&json!({
            "exit": exit.code(),
            "file": file.path,
            "id": file.id,
            "name": file.patch.name,
            "counter": file.patch.counter,
            "signature": signature(trust),
            "builds": proof,
        }))?;
    } else {
        print(&file, trust)?;
        report.as_ref().map_or(Ok(()), print_report)?;
    }
    Ok(exit)
}

/// Judges a patch by its builds, with their debug files.
pub(crate) fn judge(
    patch: &hp_pack::Patch,
    builds: [&Path; 2],
    debug: [Option<&Path>; 2],
    places: &DebugPlaces,
    scope: Scope,
) -> anyhow::Result<Report> {
    let open = |i: usize| BuildFile::open(builds[i], debug[i], places);
    let (old, new) = (open(0)?, open(1)?);
    Ok(hp_verify::verify(patch, &bytes(&old), &bytes(&new), scope)?)
}

fn bytes(file: &BuildFile) -> Build<'_> {
    Build { image: file.image(), debug: file.debug(), mini: file.mini() }
}

fn signature(trust: Trust) -> Value {
    match trust {
        Trust::Proven { by, beside } => {
            json!({ "key": by.to_string(), "trusted": true, "place": if beside { "beside" } else { "inside" } })
        }
        Trust::Claimed(by) => json!({ "key": by.to_string(), "trusted": false, "place": "inside" }),
        Trust::Unsigned => Value::Null,
    }
}

fn print(file: &PatchFile, trust: Trust) -> io::Result<()> {
    let mut out = crate::text::out();
    writeln!(out, "{}: id {}, counter {}, undamaged", file.display(), file.id, file.patch.counter)?;
    match trust {
        Trust::Proven { by, beside } => {
            let place = if beside { ", beside the file" } else { "" };
            writeln!(out, "  {GOOD}signed{GOOD:#} by trusted key {by}{place}")
        }
        Trust::Claimed(by) => {
            writeln!(out, "  {WARN}signature not checked{WARN:#}: names key {by}, and no keys are trusted here")
        }
        Trust::Unsigned => writeln!(out, "  {WARN}not signed{WARN:#}, and no keys are trusted here"),
    }
}

/// How many faults a person is shown.
const SHOWN: usize = 20;

fn print_report(report: &Report) -> io::Result<()> {
    let mut out = crate::text::out();
    if report.holds() {
        writeln!(out, "  {GOOD}proven{GOOD:#}: the old build with this patch in it is the new build")?;
        return print_proof(&mut out, &report.proof);
    }
    for fault in report.faults.iter().take(SHOWN) {
        let (part, place, what) = (fault.part, clean(&fault.place), clean(&fault.what));
        writeln!(out, "  {BAD}{part}{BAD:#} {BOLD}{place}{BOLD:#}: {what}")?;
    }
    if let Some(more) = report.faults.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        writeln!(out, "  {DIM}and {more} more; --json has them all{DIM:#}")?;
    }
    writeln!(out, "  {BAD}not proven{BAD:#}: {}", count(report.faults.len(), "fault"))
}

fn print_proof(out: &mut impl Write, proof: &Proof) -> io::Result<()> {
    let mut line = |text: String| writeln!(out, "    {text}");
    line(format!(
        "{} and {} in {}: {}, {} bytes of code, {} of data",
        count(proof.replaced, "replaced function"),
        count(proof.added, "added function"),
        if proof.layouts == 1 { "1 layout of memory".into() } else { format!("{} layouts of memory", proof.layouts) },
        count(proof.instructions, "instruction"),
        proof.code_bytes,
        proof.data_bytes
    ))?;
    let kinds = proof.references.iter().filter(|(_, n)| **n > 0).map(|(kind, n)| {
        let name = serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
        format!("{n} {name}")
    });
    let kinds: Vec<String> = kinds.collect();
    line(format!("{}: {}", count(proof.references(), "reference"), kinds.join(", ")))?;
    line(format!(
        "{}, {}; {} bytes of the base are redirected, no others change",
        count(proof.thunks, "thunk"),
        count(proof.unwind_rows, "unwind row"),
        proof.redirected_bytes
    ))?;
    match proof.unchanged {
        Some(n) => {
            line(format!("{} of the base unchanged, {} left out as line-only", count(n, "function"), proof.left_out))
        }
        None => Ok(()),
    }
}
