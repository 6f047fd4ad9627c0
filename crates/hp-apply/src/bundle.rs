//! A bundle: the small applier with a patch behind it, in one file that runs.
//!
//! `[hp-apply][patch][length of the patch, 8 bytes, little endian]["HPBUNDLE"]`. The loader of programs does not
//! look at what follows the segments, so nothing of the applier has to be changed.

use crate::bytes::u64_at;
use crate::prelude::*;

const MAGIC: &[u8; 8] = b"HPBUNDLE";
const TRAILER: usize = 16;

/// One file of the small applier and a patch.
pub fn bundle(applier: &[u8], patch: &[u8]) -> Vec<u8> {
    let length = (patch.len() as u64).to_le_bytes();
    [applier, patch, &length, MAGIC].concat()
}

/// The patch in a bundle; `None` for any other file.
pub fn bundled(file: &[u8]) -> Option<&[u8]> {
    let (rest, trailer) = file.split_at_checked(file.len().checked_sub(TRAILER)?)?;
    let length = usize::try_from(u64_at(trailer, 0)?).ok()?;
    if !trailer.ends_with(MAGIC) {
        return None;
    }
    rest.get(rest.len().checked_sub(length)?..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bundled_is_found_and_nothing_else() {
        let file = bundle(b"\x7fELF...", b"patch");
        assert_eq!(bundled(&file), Some(&b"patch"[..]));
        assert_eq!(bundled(&bundle(b"", b"")), Some(&b""[..]));
        for cut in 0..file.len() {
            assert_eq!(bundled(&file[..cut]), None);
        }
        let mut long = file.clone();
        let at = long.len() - 16;
        long[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(bundled(&long), None);
    }
}
