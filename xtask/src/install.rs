//! Packages of the system: which are there, and getting those that are not.

use std::path::Path;
use std::process::{Command, Stdio};

/// Programs that tests run and files that they need, and the package that has each.
const TOOLS: &[(&str, &str)] = &[
    ("/usr/lib/x86_64-linux-gnu/libunwind.so.1", "libunwind-19"),
    ("ab", "apache2-utils"),
    ("bash", "bash"),
    ("clang", "clang"),
    ("dwz", "dwz"),
    ("eu-elflint", "elfutils"),
    ("g++", "g++"),
    ("gcc", "gcc"),
    ("gdb", "gdb"),
    ("ld.lld", "lld"),
    ("ld.mold", "mold"),
    ("make", "make"),
    ("minisign", "minisign"),
    ("musl-gcc", "musl-tools"),
    ("objdump", "binutils"),
    ("perf", "linux-perf"),
    ("python3", "python3"),
    ("tclsh", "tcl"),
    ("xz", "xz-utils"),
];

/// Makes sure of the programs that tests run. The error says in one line what is missing.
pub(crate) fn tools() -> Result<(), String> {
    let missing: Vec<&str> = TOOLS.iter().filter(|(tool, _)| !on_path(tool)).map(|(_, package)| *package).collect();
    install(&missing)
}

/// Makes sure of `packages` by name. The error says in one line what is missing.
pub(crate) fn packages(packages: &[&str]) -> Result<(), String> {
    if !on_path("dpkg-query") {
        return Err("the system has no dpkg; pairs are built from Debian source packages".to_string());
    }
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    install(&missing)
}

/// True if a program of this name is in `PATH`.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn installed(package: &str) -> bool {
    let answer = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}\n", package]).output();
    answer.is_ok_and(|output| output.stdout.starts_with(b"installed"))
}

fn install(missing: &[&str]) -> Result<(), String> {
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !on_path("apt-get") {
        return Err(format!("missing, and there is no apt-get to install them with: {names}"));
    }
    if !is_root() {
        return Err(format!("missing, and only root can install them: apt-get install {names}"));
    }
    eprintln!("xtask: installing {names}");
    if apt_get(&["install"], missing) || (apt_get(&["update"], &[]) && apt_get(&["install"], missing)) {
        return Ok(());
    }
    Err(format!("apt-get could not install: {names}"))
}

fn apt_get(verb: &[&str], packages: &[&str]) -> bool {
    let output = Command::new("apt-get")
        .args(["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"])
        .args(verb)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            // The reasons; on success the same stream only has remarks of the package manager's.
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(_) => false,
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}
