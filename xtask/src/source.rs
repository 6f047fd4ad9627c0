//! Source packages, through the system's package manager, with no change to the system.
//!
//! Most machines list only binary packages. So a private list of sources is made from the
//! distribution's entries that the system has, and apt is told to use that list and folders
//! of ours for its state. Neither needs root.

use crate::cache::Cache;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Fetches a source package and returns its `.dsc` file: `version` if the archive still has
/// it, else the newest one.
pub(crate) fn fetch(cache: &Cache, package: &str, version: &str) -> Result<PathBuf> {
    let folder = cache.folder(&format!("sources/{package}"))?;
    let bare = version.split_once(':').map_or(version, |(_, rest)| rest);
    let wanted = folder.join(format!("{package}_{bare}.dsc"));
    if wanted.exists() {
        return Ok(wanted);
    }
    let apt = Apt::prepare(cache)?;
    apt.run(&folder, &["update"])?;
    if apt.run(&folder, &["source", "--download-only", &format!("{package}={version}")]).is_ok() && wanted.exists() {
        return Ok(wanted);
    }
    eprintln!("xtask: {package} {version} is no longer served, taking the newest");
    fs::remove_dir_all(&folder)?;
    fs::create_dir_all(&folder)?;
    apt.run(&folder, &["source", "--download-only", package])?;
    let mut found = fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    found.find(|path| path.extension().is_some_and(|e| e == "dsc")).context("apt-get source brought no .dsc file")
}

/// apt with a list of sources and folders of our own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn prepare(cache: &Cache) -> Result<Apt> {
        let parts = cache.folder("apt/sources.list.d")?;
        write_source_lists(Path::new("/etc/apt"), &parts)?;
        let lists = cache.folder("apt/lists/partial")?;
        let archives = cache.folder("apt/cache/archives/partial")?;
        let up = |path: &Path, levels: usize| path.ancestors().nth(levels).unwrap_or(path).display().to_string();
        Ok(Apt {
            options: vec![
                "Dir::Etc::SourceList=/dev/null".to_string(),
                format!("Dir::Etc::SourceParts={}", parts.display()),
                format!("Dir::State::Lists={}", up(&lists, 1)),
                format!("Dir::Cache={}", up(&archives, 2)),
                // The folders are the caller's own, apt's unprivileged user may not enter them.
                "APT::Sandbox::User=root".to_string(),
                "Acquire::Retries=3".to_string(),
                "Acquire::Languages=none".to_string(),
            ],
        })
    }

    fn run(&self, folder: &Path, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("apt-get");
        command.arg("-qq").args(self.options.iter().flat_map(|option| ["-o", option])).args(arguments);
        let output = command.current_dir(folder).stdin(Stdio::null()).output().context("cannot run apt-get")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("apt-get {}: {}", arguments.join(" "), text.lines().last().unwrap_or("failed").trim());
        }
        Ok(())
    }
}

/// Writes the distribution's entries of `etc`, turned into source entries, to `parts`.
fn write_source_lists(etc: &Path, parts: &Path) -> Result<()> {
    let mut stanzas = String::new();
    let mut lines = String::new();
    let mut paths = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    paths.sort();
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => stanzas.push_str(&source_stanzas(&text)),
            Some("list") => lines.push_str(&source_lines(&text)),
            _ => {}
        }
    }
    if stanzas.is_empty() && lines.is_empty() {
        bail!("no entry of the distribution's archive in {}", etc.display());
    }
    fs::write(parts.join("hp.sources"), stanzas)?;
    fs::write(parts.join("hp.list"), lines)?;
    Ok(())
}

/// The distribution's own archives end in these names, wherever they are mirrored.
fn is_distribution(uri: &str) -> bool {
    let path = uri.trim_end_matches('/');
    ["/debian", "/debian-security", "/ubuntu"].iter().any(|end| path.ends_with(end))
}

/// deb822 format: stanzas of `Key: value` lines, an empty line between them.
fn source_stanzas(text: &str) -> String {
    let mut out = String::new();
    let text: String = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    for stanza in text.split("\n\n") {
        let value = |key: &str| stanza.lines().find_map(|line| line.trim_start().strip_prefix(key)).unwrap_or("");
        let ours = value("URIs:").split_whitespace().any(is_distribution);
        if ours && value("Types:").split_whitespace().any(|kind| kind == "deb") {
            let kept = stanza.lines().filter(|line| !line.is_empty() && !line.starts_with("Types:"));
            out.push_str("Types: deb-src\n");
            kept.for_each(|line| out.push_str(&format!("{line}\n")));
            out.push('\n');
        }
    }
    out
}

/// One-line format: `deb [options] URI suite component...`.
fn source_lines(text: &str) -> String {
    let entries = text.lines().filter_map(|line| line.trim().strip_prefix("deb "));
    let ours = entries.filter(|rest| rest.split_whitespace().any(is_distribution));
    ours.map(|rest| format!("deb-src {rest}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_of_the_distribution_become_sources() {
        let text = "# main\nTypes: deb\n# note\nURIs: http://a.example/debian\nSuites: stable\nSigned-By: /k\n\n\
                    Types: deb\nURIs: https://b.example/other\nSuites: x\n";
        let want = "Types: deb-src\nURIs: http://a.example/debian\nSuites: stable\nSigned-By: /k\n\n";
        assert_eq!(source_stanzas(text), want);
    }

    #[test]
    fn lines_of_the_distribution_become_sources() {
        let text = "deb http://a.example/debian stable main\n#deb http://a.example/debian old main\n\
                    deb-src http://a.example/debian stable main\ndeb [trusted=yes] https://b.example/other x y\n";
        assert_eq!(source_lines(text), "deb-src http://a.example/debian stable main\n");
    }
}
