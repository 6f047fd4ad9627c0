//! `hp bundle`: a patch and the small applier in one file, for hosts that have nothing installed.

use crate::args::BundleArgs;
use crate::exit::Exit;
use crate::patch_file::write_file;
use crate::text::{clean, io_reason, print_json};
use anyhow::anyhow;
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

/// The small applier, as `build.rs` has built it.
const APPLIER: &[u8] = include_bytes!(env!("HP_APPLIER"));

/// Writes the bundle.
pub(crate) fn run(args: &BundleArgs) -> anyhow::Result<Exit> {
    let file = crate::patch_file::PatchFile::read(&args.patch)?;
    let name = clean(&args.output.display().to_string());
    let bundle = hp_apply::bundle(APPLIER, &file.bytes);
    let failed = |e: std::io::Error| anyhow!("cannot write {name}: {}", io_reason(&e));
    write_file(&args.output, &bundle).map_err(failed)?;
    let about = std::fs::metadata(&args.output).map_err(failed)?;
    if about.is_file() {
        let mut permissions = about.permissions();
        // Whoever may read it may run it.
        let mode = permissions.mode();
        permissions.set_mode(mode | (mode & 0o444) >> 2);
        std::fs::set_permissions(&args.output, permissions).map_err(failed)?;
    }
    if args.json {
        print_json(&json!({
            "exit": Exit::Done.code(),
            "output": args.output.display().to_string(),
            "bytes": bundle.len(),
            "patch": { "id": file.id, "name": file.patch.name },
        }))?;
    } else {
        let (patch, size) = (clean(&file.patch.name), bundle.len());
        writeln!(crate::text::notes(), "{name}: {patch} (id {}) and the applier, {size} bytes", file.id)?;
    }
    Ok(Exit::Done)
}
