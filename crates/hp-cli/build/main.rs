//! Builds the small applier, which `hp bundle` puts in front of patches, and tells `hp` where it is.
//!
//! It is the same engine with other features: neither a standard library nor a C library. So it cannot be part of the
//! same build, where features add up, and is made by a cargo of its own in this script's folder, with the same
//! toolchain and the same versions of everything. Then it is packed: the program that unpacks it is what is used.

mod pack;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    for path in ["crates/hp-apply/src", "crates/hp-apply/applier", "crates/hp-apply/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    for path in ["crates/hp-pack/src", "crates/hp-pack/Cargo.toml", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let program = build(&root, "hp-apply", None)?;
    let packed = pack::pack(&std::fs::read(&program)?).ok_or("the small applier is no program that can be packed")?;
    let image = program.with_extension("packed");
    // Written anew it would be built anew.
    if std::fs::read(&image).ok().as_ref() != Some(&packed) {
        std::fs::write(&image, packed)?;
    }
    let applier = build(&root, "packed", Some(&image))?;
    println!("cargo::rustc-env=HP_APPLIER={}", applier.display());
    Ok(())
}

/// Builds one of the programs of `applier/`.
fn build(root: &Path, program: &str, image: Option<&Path>) -> Result<PathBuf, Failure> {
    let target = env::var("TARGET")?;
    // One folder for all kinds of builds (checks, tests, releases): OUT_DIR is TARGET/PROFILE/build/PACKAGE/out.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let profile = if image.is_some() { "unpacker" } else { "applier" };
    let folder = out.ancestors().nth(4).unwrap_or(&out).join("applier");
    let script = root.join("crates/hp-apply/applier").join(program).with_extension("ld");
    let flags = [
        "-Crelocation-model=static",
        "-Ctarget-feature=+crt-static",
        "-Clink-arg=-nostartfiles",
        "-Clink-arg=-nodefaultlibs",
        // Paths of this machine are nothing that a program should carry.
        &format!("--remap-path-prefix={}=hp", root.display()),
        &format!("-Clink-arg=-Wl,--build-id=none,-z,norelro,-T,{}", script.display()),
    ];
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--profile", profile, "--package", "hp-apply", "--bin", program])
        .args(["--no-default-features", "--features", "applier", "--target", &target, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .envs(image.map(|image| ("HP_APPLIER_PACKED", image)));
    // What the outer build is run with (a checker in place of the compiler, coverage) is not for this one.
    for name in ["RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET", "CLIPPY_ARGS"] {
        cargo.env_remove(name);
    }
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("the small applier cannot be built: {status}").into());
    }
    Ok(folder.join(&target).join(profile).join(program))
}
