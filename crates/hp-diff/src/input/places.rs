//! Where debug files are looked for, and the proof that one belongs to a build.

use std::path::{Path, PathBuf};

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, SectionFlags, elf};

use super::{DebugFile, map, parse};
use crate::Error;

type Elf<'d> = ElfFile64<'d, Endianness>;

/// Where separate debug files are looked for, beside the build's own directory and `.debug` in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugPlaces {
    /// Trees with `.build-id/xx/yyyy.debug` and with the paths of `.gnu_debuglink`, such as `/usr/lib/debug`.
    pub directories: Vec<PathBuf>,
    /// Caches of debuginfod, with `BUILDID/debuginfo`.
    pub caches: Vec<PathBuf>,
}

impl DebugPlaces {
    /// The places of this system: `/usr/lib/debug`, and the debuginfod cache of this user
    /// (debuginfod_find_debuginfo(3)).
    pub fn system() -> DebugPlaces {
        let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = variable("HOME");
        let caches = [
            variable("DEBUGINFOD_CACHE_PATH"),
            variable("XDG_CACHE_HOME").map(|d| d.join("debuginfod_client")),
            home.as_ref().map(|d| d.join(".cache/debuginfod_client")),
            home.map(|d| d.join(".debuginfod_client_cache")),
        ];
        DebugPlaces { directories: vec!["/usr/lib/debug".into()], caches: caches.into_iter().flatten().collect() }
    }

    fn by_build_id(&self, id: &[u8]) -> Vec<PathBuf> {
        let [first, rest @ ..] = id else { return Vec::new() };
        if rest.is_empty() {
            return Vec::new();
        }
        let name = format!(".build-id/{first:02x}/{}.debug", hex(rest));
        let trees = self.directories.iter().map(|d| d.join(&name));
        trees.chain(self.caches.iter().map(|d| d.join(hex(id)).join("debuginfo"))).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Opens the debug file that the user named for a build.
///
/// # Errors
/// If it cannot be read, or is the debug file of another build.
pub(super) fn given(path: &Path, build: &Elf<'_>, file: &Path) -> Result<DebugFile, Error> {
    let found = DebugFile { path: file.to_owned(), data: map(file)? };
    match belongs(build, &found, false)? {
        Ok(()) => Ok(found),
        Err(why) => Err(foreign(&found.path, path, &why)),
    }
}

fn foreign(file: &Path, build: &Path, why: &str) -> Error {
    let build = build.display();
    Error::Input {
        path: file.to_owned(),
        reason: format!(
            "is not the debug file of {build}: {why}; give the one that was made with it, or take this one away"
        ),
    }
}

/// Looks for the debug file of a build. `None` if there is none.
///
/// # Errors
/// If one lies where the build says that it is, but belongs to another build, and none does belong.
pub(super) fn find(path: &Path, build: &Elf<'_>, places: &DebugPlaces) -> Result<Option<DebugFile>, Error> {
    let id = build.build_id().ok().flatten().unwrap_or_default();
    let mut wrong = None;
    let by_id = places.by_build_id(id).into_iter().map(|p| (p, false));
    let by_link = linked(path, build, places).into_iter().map(|p| (p, true));
    for (candidate, through_link) in by_id.chain(by_link) {
        if !candidate.is_file() || same_file(&candidate, path) {
            continue;
        }
        let found = DebugFile { data: map(&candidate)?, path: candidate };
        match belongs(build, &found, through_link)? {
            Ok(()) => return Ok(Some(found)),
            Err(why) => wrong = wrong.or_else(|| Some(foreign(&found.path, path, &why))),
        }
    }
    wrong.map_or(Ok(None), Err)
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Where `.gnu_debuglink` leads: the build's directory, `.debug` in it, and its path below each tree.
fn linked(path: &Path, build: &Elf<'_>, places: &DebugPlaces) -> Vec<PathBuf> {
    let Ok(Some((name, _))) = build.gnu_debuglink() else { return Vec::new() };
    let Ok(name) = std::str::from_utf8(name) else { return Vec::new() };
    // A name with directories is not what the section is for; it could lead anywhere.
    if name.is_empty() || name.contains('/') {
        return Vec::new();
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let below = folder.strip_prefix("/").unwrap_or(folder);
    let near = [folder.join(name), folder.join(".debug").join(name)];
    near.into_iter().chain(places.directories.iter().map(|d| d.join(below).join(name))).collect()
}

/// Does a debug file belong to the build? Same build ID; where the build has none, the checksum of
/// `.gnu_debuglink`; and all sections that are loaded lie at the same place.
fn belongs(build: &Elf<'_>, file: &DebugFile, through_link: bool) -> Result<Result<(), String>, Error> {
    let bad = |reason: String| Error::Input { path: file.path.clone(), reason };
    crate::image::check_header(&file.data).map_err(|why| bad(format!("{why} or its debug file")))?;
    let debug = parse(&file.path, &file.data)?;
    let id = |elf: &Elf<'_>| elf.build_id().ok().flatten().map(hex);
    let (wanted, has) = (id(build), id(&debug));
    if let (Some(wanted), Some(has)) = (&wanted, &has)
        && wanted != has
    {
        return Ok(Err(format!("it has build ID {has}, the build has {wanted}")));
    }
    let named = wanted.is_some() && has.is_some();
    let link = build.gnu_debuglink().ok().flatten();
    if (through_link || !named)
        && let Some((_, wanted)) = link
    {
        let has = crc32fast::hash(&file.data);
        if wanted != has {
            return Ok(Err(format!("its checksum is {has:08x}, .gnu_debuglink of the build says {wanted:08x}")));
        }
    } else if !named {
        return Ok(Err("neither a build ID nor a .gnu_debuglink shows that it is".into()));
    }
    Ok(same_sections(build, &debug))
}

/// Sections that are loaded keep name, address and size in a debug file.
fn same_sections(build: &Elf<'_>, debug: &Elf<'_>) -> Result<(), String> {
    for section in debug.sections() {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
        let Ok(name) = section.name() else { continue };
        if !sh_flags.contains(elf::SHF_ALLOC) {
            continue;
        }
        if let Some(own) = build.section_by_name(name)
            && (own.address(), own.size()) != (section.address(), section.size())
            && build.sections().filter(|s| s.name() == Ok(name)).count() == 1
        {
            return Err(format!("its section {name} lies at another place"));
        }
    }
    Ok(())
}

/// Opens the file that `.gnu_debugaltlink` of a debug file names (DWARF 5, section 7.3.6, "supplementary object files").
/// `None` if there is no link, or nothing where it leads; then types that lie there are missing, which
/// readers of the debug information report.
pub(super) fn supplement(path: &Path, debug: &Elf<'_>, places: &DebugPlaces) -> Result<Option<DebugFile>, Error> {
    let Ok(Some((name, id))) = debug.gnu_debugaltlink() else { return Ok(None) };
    let name = Path::new(std::ffi::OsStr::new(std::str::from_utf8(name).unwrap_or_default()));
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut candidates = vec![folder.join(name)];
    // A debug package that was unpacked elsewhere.
    if let Some(below) = name.strip_prefix("/usr/lib/debug").ok().filter(|_| name.is_absolute()) {
        candidates.extend(places.directories.iter().map(|d| d.join(below)));
        candidates.extend(path.ancestors().filter(|a| a.ends_with("usr/lib/debug")).map(|a| a.join(below)));
    }
    candidates.extend(places.by_build_id(id));
    for candidate in candidates.into_iter().filter(|c| c.is_file()) {
        let found = DebugFile { data: map(&candidate)?, path: candidate };
        let same = parse(&found.path, &found.data)?.build_id().ok().flatten() == Some(id);
        if same {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
