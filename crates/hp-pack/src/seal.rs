//! The digest that a patch carries of itself, and the ID that people call it by.
//!
//! The digest is unkeyed: it notices accidents (a cut-off download, a flipped bit), not an attacker,
//! who can compute it as well. Authenticity is the signature's work.

use crate::parts::{DIGEST_AT, SIGNATURE_NOTE_AT};
use alloc::format;
use alloc::string::String;
use sha2::{Digest, Sha256};

/// SHA-256 of the file as if the digest's own 32 bytes were zero; `None` if the file is too short to have one.
pub(crate) fn digest(file: &[u8]) -> Option<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(file.get(..DIGEST_AT)?);
    hash.update([0u8; 32]);
    hash.update(file.get(SIGNATURE_NOTE_AT..)?);
    Some(hash.finalize().into())
}

/// Writes the digest into a patch file whose bytes have been edited: for tools and tests.
///
/// A file that is too short to be a patch is left alone.
pub fn seal(file: &mut [u8]) {
    if let Some(digest) = digest(file)
        && let Some(field) = file.get_mut(DIGEST_AT..SIGNATURE_NOTE_AT)
    {
        field.copy_from_slice(&digest);
    }
}

/// ID of a patch file: the first 8 bytes of its SHA-256, as 16 hexadecimal digits.
pub fn id(file: &[u8]) -> String {
    let hash: [u8; 32] = Sha256::digest(file).into();
    let mut first = [0u8; 8];
    first.copy_from_slice(&hash[..8]);
    format!("{:016x}", u64::from_be_bytes(first))
}
