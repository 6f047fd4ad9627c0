//! Members of archives (`ar`), as builds of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use object::read::archive::ArchiveFile;

use super::map;
use crate::Error;

/// The names of an archive's object files, in their order.
///
/// # Errors
/// If it cannot be read, or is no archive of object files.
pub fn members(path: &Path) -> Result<Vec<String>, Error> {
    let data = map(path)?;
    let bad = |reason: String| Error::Input { path: path.to_owned(), reason };
    let mut names = Vec::new();
    for (name, content) in contents(&data).map_err(bad)? {
        if content.starts_with(b"\x7fELF") {
            names.push(name);
        }
    }
    Ok(names)
}

/// The archive and the member of a path such as `lib/libx.a(parse.o)`; `None` if there is a file of that name.
pub(super) fn split(path: &Path) -> Option<(PathBuf, String)> {
    let text = path.to_str()?.strip_suffix(')')?;
    let mut openings = text.match_indices('(').map(|(at, _)| (&text[..at], &text[at + 1..]));
    if path.exists() {
        return None;
    }
    let (archive, member) = openings.find(|(archive, _)| Path::new(archive).is_file())?;
    Some((PathBuf::from(archive), member.to_owned()))
}

/// The bytes of one member.
pub(super) fn extract(archive: &Path, member: &str) -> Result<Vec<u8>, Error> {
    let data = map(archive)?;
    let bad = |reason: String| Error::Input { path: archive.to_owned(), reason };
    let found = contents(&data).map_err(bad)?.into_iter().find(|(name, _)| name == member);
    found.map(|(_, bytes)| bytes.to_vec()).ok_or_else(|| bad(format!("has no member {member}")))
}

/// All members with their names. One name may occur twice; then the second is called `NAME:2`.
fn contents(data: &[u8]) -> Result<Vec<(String, &[u8])>, String> {
    let broken = |e: object::Error| format!("malformed archive ({e}); is it complete?");
    let archive = ArchiveFile::parse(data).map_err(broken)?;
    if archive.is_thin() {
        return Err("is a thin archive: it holds no code; compare the object files that it names".into());
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut all = Vec::new();
    for member in archive.members() {
        let member = member.map_err(broken)?;
        let name = String::from_utf8_lossy(member.name()).into_owned();
        let count = seen.entry(name.clone()).or_default();
        *count += 1;
        let name = if *count == 1 { name } else { format!("{name}:{count}") };
        all.push((name, member.data(data).map_err(broken)?));
    }
    Ok(all)
}
