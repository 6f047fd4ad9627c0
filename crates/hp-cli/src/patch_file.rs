//! Reading a patch file, with messages that name it.

use crate::text::{clean, io_reason};
use anyhow::anyhow;
use hp_pack::Patch;
use std::io::Read;
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
    /// Reads and checks a patch file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<PatchFile> {
        let name = clean(&path.display().to_string());
        let bytes = read_bytes(path).map_err(|e| anyhow!("cannot read the patch {name}: {}", io_reason(&e)))?;
        let patch = hp_pack::read(&bytes).map_err(|e| anyhow!("{name}: {e}"))?;
        Ok(PatchFile { path: path.to_owned(), id: hp_pack::id(&bytes), bytes, patch })
    }

    /// The path as it may be printed.
    pub(crate) fn display(&self) -> String {
        clean(&self.path.display().to_string())
    }
}

fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(std::io::Error::other("it is larger than 1 GiB; is it a patch?"));
    }
    Ok(bytes)
}
