//! `.gnu_debugdata`: an ELF file with a symbol table, compressed with xz.

use std::io::Read;

/// No decoder state larger than this, in KiB: what `xz -9` needs, and the section is made with less.
const MEMORY_KIB: u32 = 68 << 10;

/// Decompresses the section. What it claims about its size is not believed: nothing is allocated
/// ahead, and more than xz can pack into so many bytes is an error.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let limit = (packed.len() as u64).saturating_mul(8 << 10).min(1 << 30);
    let mut content = Vec::new();
    let reader = lzma_rust2::XzReader::new_mem_limit(packed, false, MEMORY_KIB);
    reader.take(limit + 1).read_to_end(&mut content).map_err(|e| e.to_string())?;
    if content.len() as u64 > limit {
        return Err("it unpacks to more than a symbol table can have".into());
    }
    if !content.starts_with(b"\x7fELF") {
        return Err("it does not hold an ELF file".into());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::unpack;

    #[test]
    fn damage_is_an_error() {
        assert!(unpack(b"").is_err());
        assert!(unpack(b"\xfd7zXZ\0\0\x04").is_err());
        assert!(unpack(&[0; 64]).is_err());
    }
}
