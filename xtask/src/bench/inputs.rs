//! Pairs of builds: two versions of a distribution's package where its archive has two, and edited copies.
//!
//! Packages are downloaded and unpacked in the cache, never installed.

use super::edit;
use crate::cache::Cache;
use crate::{cargo, succeeds};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Two builds.
pub(crate) struct Pair {
    pub(crate) name: String,
    /// What the two are, in words.
    pub(crate) what: String,
    pub(crate) old: PathBuf,
    pub(crate) new: PathBuf,
}

/// Packages by the beginning of their names, which end in a version on most systems, and the start of the file's name.
const PACKAGES: &[(&str, &str, &str)] = &[
    ("crypto", "libssl", "libcrypto.so"),
    ("postgres", "postgresql-", "postgres"),
    ("jsc", "libjavascriptcoregtk-", "libjavascriptcoregtk"),
    ("node", "libnode", "libnode.so"),
    ("webkit", "libwebkit2gtk-", "libwebkit2gtk"),
];

/// All pairs that this machine can have whose names contain one of `words` (all, if there is none). What is missing is
/// said in one line each.
pub(crate) fn pairs(cache: &Cache, words: &[&str]) -> Result<Vec<Pair>> {
    let wanted = |name: &str| words.is_empty() || words.iter().any(|w| name.contains(w));
    let mut found = Vec::new();
    let mut add = |name: &str, pairs: Result<Vec<Pair>>| match pairs {
        Ok(pairs) => found.extend(pairs),
        Err(why) => eprintln!("xtask: no pair {name}: {why:#}"),
    };
    for (name, package, file) in PACKAGES.iter().filter(|p| wanted(p.0)) {
        add(name, packaged(cache, name, package, file));
    }
    for (case, program) in [("nginx-cve-2026-42945", "nginx"), ("redis-cve-2025-49844", "redis-server")] {
        if wanted(program) {
            add(program, server(cache, case, program));
        }
    }
    if wanted("rust") {
        add("rust", rust(cache));
    }
    Ok(found)
}

fn packaged(cache: &Cache, name: &str, prefix: &str, file: &str) -> Result<Vec<Pair>> {
    let package = newest_package(prefix)?;
    let mut versions = versions(&package)?;
    versions.truncate(2);
    let folder = cache.folder(&format!("bench/{package}"))?;
    let files = versions.iter().filter_map(|v| unpacked(&folder, &package, v, file).ok()).collect::<Vec<_>>();
    let Some(newest) = files.first() else { bail!("{package} cannot be downloaded, or has no {file}") };
    let mut pairs = vec![edited(&folder, name, newest)?];
    if let [new, old] = files.as_slice() {
        let what = format!("{package}, {} → {}", versions[1], versions[0]);
        pairs.push(Pair { name: name.into(), what, old: old.clone(), new: new.clone() });
    }
    Ok(pairs)
}

/// The package that `prefix` and a version make up; the newest one.
fn newest_package(prefix: &str) -> Result<String> {
    let names = output(Command::new("apt-cache").args(["pkgnames", prefix]))?;
    let is_version = |n: &&str| {
        let rest = n.strip_prefix(prefix).unwrap_or_default();
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit() || b".-t".contains(&b))
    };
    let mut names: Vec<&str> = names.lines().filter(is_version).filter(|n| versions(n).is_ok()).collect();
    let number = |n: &str| -> Vec<u32> {
        n[prefix.len()..].split(|c: char| !c.is_ascii_digit()).filter_map(|w| w.parse().ok()).collect()
    };
    names.sort_by_key(|n| number(n));
    Ok(names.last().with_context(|| format!("the system knows no package {prefix}VERSION"))?.to_string())
}

/// The versions of a package that its archive has, newest first.
fn versions(package: &str) -> Result<Vec<String>> {
    let lines = output(Command::new("apt-cache").args(["madison", package]))?;
    let mut versions: Vec<String> =
        lines.lines().filter_map(|l| Some(l.split('|').nth(1)?.trim().to_owned())).collect();
    versions.dedup();
    if versions.is_empty() {
        bail!("no version of {package}");
    }
    Ok(versions)
}

/// The file of a package's version whose name begins with `file`; the largest one.
fn unpacked(folder: &Path, package: &str, version: &str, file: &str) -> Result<PathBuf> {
    let place = folder.join(version.replace([':', '~', '+'], "_"));
    if !place.exists() {
        let part = folder.join("part");
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part)?;
        eprintln!("xtask: downloading {package} {version}");
        output(Command::new("apt-get").args(["-qq", "download", &format!("{package}={version}")]).current_dir(&part))?;
        let archive = files(&part)?.pop().context("nothing was downloaded")?;
        output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
        fs::remove_file(archive)?;
        fs::rename(&part, &place)?;
    }
    let is_it = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(file));
    let mut found: Vec<(u64, PathBuf)> =
        files(&place)?.into_iter().filter(is_it).map(|p| (p.metadata().map_or(0, |m| m.len()), p)).collect();
    found.sort();
    Ok(found.pop().with_context(|| format!("{package} has no {file}"))?.1)
}

/// Regular files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match fs::symlink_metadata(&path)?.file_type() {
            kind if kind.is_dir() => found.extend(files(&path)?),
            kind if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    Ok(found)
}

/// A build and a copy of it in which one function differs.
fn edited(folder: &Path, name: &str, build: &Path) -> Result<Pair> {
    let edited = folder.join(format!("{name}.edited"));
    fs::write(&edited, edit::one_number(&fs::read(build)?)?)?;
    let what = "one build and a copy with one number in its code changed".into();
    Ok(Pair { name: format!("{name}, edited"), what, old: build.to_owned(), new: edited })
}

/// A real server with and without one fix, with debug information and without.
fn server(cache: &Cache, case: &str, program: &str) -> Result<Vec<Pair>> {
    let file = |side: &str| cache.pairs().join(case).join(side).join(program);
    if !file("old").exists() {
        bail!("run `cargo xtask pairs` first");
    }
    let folder = cache.folder(&format!("bench/{program}"))?;
    let bare = |side: &str| -> Result<PathBuf> {
        let path = folder.join(side);
        output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&path).arg(file(side)))?;
        Ok(path)
    };
    let what = |debug: &str| format!("built here with and without one fix, {debug} debug information");
    Ok(vec![
        Pair { name: program.into(), what: what("no"), old: bare("old")?, new: bare("new")? },
        Pair { name: format!("{program}, -g"), what: what("with"), old: file("old"), new: file("new") },
    ])
}

/// `hp` itself, built with all debug information.
fn rust(cache: &Cache) -> Result<Vec<Pair>> {
    let folder = cache.folder("bench/rust")?;
    let mut build = cargo(&["build", "--quiet", "--release", "-p", "hp-cli", "--config", "profile.release.debug=2"]);
    build.arg("--target-dir").arg(folder.join("target"));
    if !succeeds(&mut build)? {
        bail!("cargo could not build it");
    }
    let built = folder.join("target/release/hp");
    let mut with = edited(&folder, "rust, -g", &built)?;
    with.what = "hp itself, and a copy with one number in its code changed, with debug information".into();
    let bare = folder.join("bare");
    output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&bare).arg(&built))?;
    let mut without = edited(&folder, "rust", &bare)?;
    without.what = "the same without debug information".into();
    Ok(vec![without, with])
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
