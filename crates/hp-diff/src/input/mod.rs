//! A build as it lies on disk: the file, and the files that hold its symbols and types.
//!
//! Distributions strip programs and ship what was taken away apart from them. A stripped
//! file says where that is: by its build ID, or by the name and checksum in `.gnu_debuglink`
//! (GDB manual, "Debugging Information in Separate Files"); `dwz` moves what several debug files
//! share into one more, named by `.gnu_debugaltlink`; Fedora keeps a compressed symbol table in
//! `.gnu_debugdata` ("MiniDebugInfo"). An [`Input`] opens all of them, so that the rest of the
//! crate sees one build. A file that belongs to another build is never used.
//!
//! A member of an archive has the path `ARCHIVE(MEMBER)`, as linkers write it.

mod archive;
mod mini;
mod places;
mod unlinked;
mod unnamed;

pub use archive::members;
pub use places::DebugPlaces;
pub(crate) use unlinked::{Field, MODULE, Unlinked};
pub(crate) use unnamed::Unnamed;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};

use crate::Error;
use crate::image::{check_header, has_functions};

/// What a file is, as far as comparing builds goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A program or shared object.
    Image,
    /// The symbols and types of an image, without its contents.
    DebugFile,
    /// An object file that was not linked.
    Object,
    /// An archive of object files (`ar`).
    Archive,
    /// None of these.
    Other,
}

/// What the file at `path` is. Reads no more of it than that takes.
///
/// # Errors
/// If it cannot be read.
pub fn file_kind(path: &Path) -> Result<FileKind, Error> {
    let mut head = Vec::new();
    open(path)?.take(64).read_to_end(&mut head).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    if head.starts_with(b"!<arch>\n") || head.starts_with(b"!<thin>\n") {
        return Ok(FileKind::Archive);
    }
    if !head.starts_with(b"\x7fELF") || head.len() < 64 {
        return Ok(FileKind::Other);
    }
    match u16::from_le_bytes([head[16], head[17]]) {
        1 => Ok(FileKind::Object),
        2 | 3 => {
            let data = map(path)?;
            // A debug file has the headers of what is loaded, and nothing behind them.
            let debug = object::File::parse(&data[..]).is_ok_and(|file| {
                let text = file.section_by_name(".text");
                text.is_some_and(|s| s.size() > 0 && s.file_range().is_none())
            });
            Ok(if debug { FileKind::DebugFile } else { FileKind::Image })
        }
        _ => Ok(FileKind::Other),
    }
}

/// True if two files have the same bytes.
///
/// # Errors
/// If one cannot be read.
pub fn same_content(a: &Path, b: &Path) -> Result<bool, Error> {
    Ok(content(a)?[..] == content(b)?[..])
}

/// A build and its debug file, mapped, for whoever else wants to look at them.
#[derive(Debug)]
pub struct BuildFile(pub(crate) Input);

impl BuildFile {
    /// Opens the build at `path`, and its debug file: the `given` one, else the one that is found in `places`.
    ///
    /// # Errors
    /// If a file cannot be read, or belongs to another build.
    pub fn open(path: &Path, given: Option<&Path>, places: &DebugPlaces) -> Result<BuildFile, Error> {
        Input::open(path, given, places).map(BuildFile)
    }

    /// The bytes of the build.
    pub fn image(&self) -> &[u8] {
        &self.0.data
    }

    /// The bytes of its debug file, if there is one.
    pub fn debug(&self) -> Option<&[u8]> {
        self.0.debug.as_ref().map(|file| &file.data[..])
    }

    /// What its `.gnu_debugdata` holds, unpacked, where it is needed.
    pub fn mini(&self) -> Option<&[u8]> {
        self.0.mini.as_deref()
    }
}

/// One build, opened; an image borrows from it.
#[derive(Debug)]
pub(crate) struct Input {
    pub path: PathBuf,
    pub data: Content,
    /// A relocatable object, laid out.
    pub unlinked: Option<Unlinked>,
    /// The separate debug file.
    pub debug: Option<DebugFile>,
    /// What several debug files share.
    pub supplement: Option<DebugFile>,
    /// The content of `.gnu_debugdata`.
    pub mini: Option<Vec<u8>>,
    /// Functions that no symbol names; empty where there is a symbol table.
    pub unnamed: Vec<Unnamed>,
}

impl Input {
    /// The file's name without directories; of a member, its own.
    pub(crate) fn file_name(&self) -> String {
        let name = match archive::split(&self.path) {
            Some((_, member)) => member,
            None => self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        name.rsplit('/').next().unwrap_or_default().to_owned()
    }
}

/// The bytes of a build: a file, or a member of an archive.
#[derive(Debug)]
pub(crate) enum Content {
    File(Mmap),
    Member(Vec<u8>),
}

impl std::ops::Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::File(map) => map,
            Content::Member(bytes) => bytes,
        }
    }
}

fn content(path: &Path) -> Result<Content, Error> {
    match archive::split(path) {
        Some((archive, member)) => archive::extract(&archive, &member).map(Content::Member),
        None => map(path).map(Content::File),
    }
}

/// A file with symbols or types of a build.
#[derive(Debug)]
pub(crate) struct DebugFile {
    pub path: PathBuf,
    pub data: Mmap,
}

impl Input {
    /// Opens the build at `path`, and its debug file: the `given` one, else the one that is
    /// found in `places` if anything is missing in the build itself.
    pub(crate) fn open(path: &Path, given: Option<&Path>, places: &DebugPlaces) -> Result<Input, Error> {
        let data = content(path)?;
        let bad = |reason: String| Error::Input { path: path.to_owned(), reason };
        check_header(&data).map_err(bad)?;
        let elf = parse(path, &data)?;
        let is_object = elf.kind() == object::ObjectKind::Relocatable;
        let unlinked = is_object.then(|| Unlinked::new(&elf)).transpose().map_err(bad)?;
        let complete = has_functions(&elf) && has_types(&elf);
        let debug = match given {
            Some(file) => Some(places::given(path, &elf, file)?),
            None if complete || is_object => None,
            None => places::find(path, &elf, places)?,
        };
        let mut symbols_elsewhere = false;
        let mut supplement = None;
        if let Some(file) = &debug {
            let found = parse(&file.path, &file.data)?;
            symbols_elsewhere = has_functions(&found);
            if !has_types(&elf) {
                supplement = places::supplement(&file.path, &found, places)?;
            }
        }
        if has_types(&elf) {
            supplement = places::supplement(path, &elf, places)?;
        }
        let mini = match elf.section_by_name(".gnu_debugdata") {
            Some(section) if !has_functions(&elf) && !symbols_elsewhere => {
                let packed = section.data().map_err(|e| bad(format!("section .gnu_debugdata: {e}")))?;
                Some(mini::unpack(packed).map_err(|why| bad(format!("section .gnu_debugdata cannot be read: {why}")))?)
            }
            _ => None,
        };
        let unnamed = if is_object || has_functions(&elf) || symbols_elsewhere {
            Vec::new()
        } else {
            let mini = mini.as_deref().map(|m| parse(path, m)).transpose()?;
            unnamed::functions(&elf, mini.as_ref())
        };
        drop(elf);
        Ok(Input { path: path.to_owned(), data, unlinked, debug, supplement, mini, unnamed })
    }
}

/// True if the file has debug information of its own.
pub(crate) fn has_types(elf: &ElfFile64<'_, Endianness>) -> bool {
    // A debug file that was made of the sections that are loaded has them without content.
    elf.section_by_name(".debug_info").is_some_and(|s| s.compressed_data().is_ok_and(|d| !d.data.is_empty()))
}

fn parse<'d>(path: &Path, data: &'d [u8]) -> Result<ElfFile64<'d, Endianness>, Error> {
    ElfFile64::parse(data).map_err(|e| Error::Input {
        path: path.to_owned(),
        reason: format!("malformed ELF file ({e}); is it complete?"),
    })
}

/// Opens a regular file; to open a pipe could wait for ever.
fn open(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(failed)?;
    if !kind.is_file() {
        let what = if kind.is_dir() { "a directory" } else { "no regular file" };
        return Err(Error::Input {
            path: path.to_owned(),
            reason: format!("is {what}; give a program, a shared object or an object file"),
        });
    }
    File::open(path).map_err(failed)
}

pub(crate) fn map(path: &Path) -> Result<Mmap, Error> {
    let file = open(path)?;
    // SAFETY: the mapping is private and only read. A file that is changed or truncated
    // while it is compared is outside of what can be defended against here; the patch
    // would be refused by the applier, which checks every old byte.
    unsafe { Mmap::map(&file) }.map_err(|source| Error::Io { path: path.to_owned(), source })
}
