//! `hp verify`: is the patch whole, and who signed it?

use crate::args::VerifyArgs;
use crate::exit::Exit;
use crate::patch_file::PatchFile;
use crate::text::{GOOD, WARN, print_json};
use crate::trust::{Trust, keys, read_patch};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Checks one patch.
pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<Exit> {
    let (file, trust) = read_patch(&args.patch, &keys(&args.trust)?)?;
    if args.json {
        print_json(&json!({
            "exit": Exit::Done.code(),
            "file": file.path,
            "id": file.id,
            "name": file.patch.name,
            "counter": file.patch.counter,
            "signature": signature(trust),
        }))?;
    } else {
        print(&file, trust)?;
    }
    Ok(Exit::Done)
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
    let mut out = anstream::stdout().lock();
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
