//! The memory that a core dump has kept, searched for the records of patches.

use crate::text::{clean, io_reason};
use anyhow::{anyhow, bail};
use hp_apply::LoadedCode;
use object::ReadCache;
use object::elf::{ET_CORE, FileHeader64, PF_W, PF_X, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use std::fs::File;
use std::path::Path;

/// The code of all patches of the process that left this core dump.
pub(super) fn loaded_code(path: &Path) -> anyhow::Result<Vec<LoadedCode>> {
    let name = clean(&path.display().to_string());
    let file = File::open(path).map_err(|e| anyhow!("cannot read {name}: {}", io_reason(&e)))?;
    // A core dump may be larger than memory: only what is looked at is read.
    let cache = ReadCache::new(file);
    let bytes = &cache;
    let wrong = |e: object::Error| anyhow!("{name}: no core dump that can be read: {e}");
    let header = FileHeader64::<object::Endianness>::parse(bytes).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    if header.e_type(endian) != ET_CORE {
        bail!("{name}: no core dump; give one that the kernel or `gcore` has written, or --pid N");
    }
    let mut found = Vec::new();
    for segment in header.program_headers(endian, bytes).map_err(wrong)? {
        let flags = segment.p_flags(endian);
        // A record lies in memory that is only read.
        if segment.p_type(endian) == PT_LOAD && flags.0 & (PF_W | PF_X).0 == 0 {
            let start = segment.p_vaddr(endian);
            // A dump that was cut off has less than it says.
            let data = segment.data(endian, bytes).unwrap_or_default();
            found.extend(hp_apply::loaded_code_in(data, start));
        }
    }
    Ok(found)
}
