//! Reading a patch file, with messages that name it.

use crate::text::{clean, io_reason};
use anyhow::anyhow;
use hp_pack::Patch;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Nobody makes a patch larger than this; a file that is, is something else.
const MAX_SIZE: u64 = 1 << 30;

/// A patch and the file that it came from.
pub(crate) struct PatchFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) id: String,
    pub(crate) patch: Patch,
}

impl PatchFile {
    /// Reads and checks a patch file, whoever made it; see `trust` for files that are to be loaded.
    pub(crate) fn read(path: &Path) -> anyhow::Result<PatchFile> {
        let name = clean(&path.display().to_string());
        let bytes = read_bytes(path).map_err(|e| anyhow!("cannot read the patch {name}: {}", io_reason(&e)))?;
        PatchFile::parse(path, bytes)
    }

    /// Checks the content of a patch file.
    pub(crate) fn parse(path: &Path, bytes: Vec<u8>) -> anyhow::Result<PatchFile> {
        let name = clean(&path.display().to_string());
        let patch = hp_pack::read(&bytes).map_err(|e| anyhow!("{name}: {e}"))?;
        Ok(PatchFile { path: path.to_owned(), id: hp_pack::id(&bytes), bytes, patch })
    }

    /// The path as it may be printed.
    pub(crate) fn display(&self) -> String {
        clean(&self.path.display().to_string())
    }
}

/// The whole file. A pipe is read to its end, but not waited for if nobody has opened it for writing.
pub(crate) fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let no_waiting = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(no_waiting).open(path)?;
    rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty())?;
    let metadata = file.metadata()?;
    let is_pipe = metadata.file_type().is_fifo();
    // One more than there should be, so that one read takes all of it and the next one finds its end.
    let mut bytes = Vec::with_capacity(metadata.len().min(MAX_SIZE) as usize + 1);
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.is_empty() && is_pipe {
        return Err(std::io::Error::other("it is a pipe, and nobody has written into it"));
    }
    if bytes.len() as u64 > MAX_SIZE {
        return Err(std::io::Error::other("it is larger than 1 GiB; is it a patch?"));
    }
    Ok(bytes)
}

/// Through a temporary file beside it, so that it appears whole or not at all. A device or pipe is written directly.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return std::fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = std::fs::Permissions::from_mode(0o666); // less the umask
    let mut file = tempfile::Builder::new().prefix(".hp-").permissions(mode).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}
