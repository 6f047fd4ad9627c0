//! Other programs read a patch as well: binutils and elfutils without a complaint, and a second reader in
//! Python to the same result. A tool that is not installed is passed over.

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use hp_pack::{Patch, Role, write};

/// Standard output of a tool; `None` if it is not installed. It must succeed and have nothing to say on stderr.
fn run(tool: &str, args: &[&str], file: &Path) -> Option<String> {
    let output = match Command::new(tool).args(args).arg(file).output() {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{tool} is not installed; passed over");
            return None;
        }
        Err(e) => panic!("{tool}: {e}"),
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stderr.is_empty(), "{tool} {args:?}: {}\n{stdout}\n{stderr}", output.status);
    Some(stdout.into_owned())
}

fn saved(patch: &Patch) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.hpatch");
    std::fs::write(&file, write(patch).unwrap()).unwrap();
    (dir, file)
}

#[test]
fn readelf_and_objdump_read_a_patch() {
    let (_dir, file) = saved(&common::small());
    if let Some(text) = run("readelf", &["-aW"], &file) {
        for expected in ["REL (Relocatable file)", "puts@GLIBC_2.2.5 - 4", ".hpatch.base", "hpatch"] {
            assert!(text.contains(expected), "readelf does not show {expected}:\n{text}");
        }
        assert!(!text.to_lowercase().contains("warning"), "{text}");
    }
    run("readelf", &["-wf"], &file);
    if let Some(text) = run("objdump", &["-dr"], &file) {
        for expected in ["<handle>:", "R_X86_64_PLT32\tputs@GLIBC_2.2.5-0x4", ".text.hpatch.thunks"] {
            assert!(text.contains(expected), "objdump does not show {expected}:\n{text}");
        }
    }
    if let Some(text) = run("nm", &[], &file) {
        assert!(text.contains("U puts@GLIBC_2.2.5") && text.contains("w maybe"), "{text}");
    }
}

#[test]
fn elflint_finds_nothing() {
    for gnu in [&["--gnu-ld"][..], &[]] {
        let (_dir, file) = saved(&common::small());
        if let Some(text) = run("eu-elflint", gnu, &file) {
            assert_eq!(text.trim(), "No errors");
        }
    }
}

#[test]
fn the_python_reader_agrees() {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/format/read_hpatch.py");
    for seed in 0..20 {
        let mut patch = if seed == 0 { common::small() } else { common::random(seed) };
        patch.canonicalize();
        let (_dir, file) = saved(&patch);
        let Some(text) = run("python3", &[reader], &file) else { return };
        assert_eq!(text.trim_end(), expected_json(&patch), "seed {seed}");
    }
}

/// What `read_hpatch.py` prints for this patch.
fn expected_json(patch: &Patch) -> String {
    let hex = |bytes: &[u8]| bytes.iter().fold(String::new(), |s, b| s + &format!("{b:02x}"));
    let mut functions = String::new();
    for f in &patch.functions {
        let separator = if functions.is_empty() { "" } else { ", " };
        let (role, name, goes_on) = match f.role {
            Role::Entry(e) => ("entry", patch.symbols[e.new_symbol as usize].name.as_str(), e.may_go_on),
            Role::Fragment(_) => ("fragment", "", false),
        };
        let (address, size, digest) = (f.old_address, f.old_size, hex(&f.digest));
        write!(
            functions,
            r#"{separator}{{"role": "{role}", "name": "{name}", "old_address": {address}, "old_size": {size}, "digest": "{digest}", "may_go_on": {goes_on}}}"#
        )
        .unwrap();
    }
    let (name, build_id, counter) = (&patch.name, hex(&patch.base.build_id), patch.counter);
    let (relocations, symbols) = (patch.relocations.len(), patch.symbols.len());
    format!(
        r#"{{"name": "{name}", "build_id": "{build_id}", "counter": {counter}, "signed_by": null, "symbols": {symbols}, "relocations": {relocations}, "functions": [{functions}]}}"#
    )
}
