//! Who made a patch: Ed25519 signatures with minisign's keys, inside the file or beside it.
//!
//! The signature inside the file lies at a fixed place (`.note.hpatch.signature`), so it is checked
//! before anything else of the file is looked at. What is signed is the BLAKE2b-512 of the whole file with the
//! digest's 32 bytes and the signature's 74 bytes taken as zero; the digest, which covers the signature too, is
//! checked by [`read`](crate::read). So no bit of a signed file can change unnoticed.
//!
//! A signature beside the file (`.minisig`) is minisign's own format, over the file as it is.

use crate::base64;
use crate::key::{KeyId, PublicKey};
use crate::parts::{DIGEST_AT, SIGNATURE_AT, SIGNATURE_END, SIGNATURE_NOTE_AT, is_start_of_patch};
use alloc::string::String;
use alloc::vec::Vec;
use blake2::{Blake2b512, Digest};
use core::fmt;

/// Why a file is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignatureError {
    /// The file does not begin like a patch, so it has no place for a signature.
    NotAPatch,
    /// There is no signature.
    Unsigned,
    /// The signature is not in a known form.
    Malformed,
    /// Signed with a key that is not among the trusted ones.
    UnknownKey(KeyId),
    /// The signature does not belong to this file, or was not made by that key.
    Wrong(KeyId),
}

impl fmt::Display for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SignatureError::NotAPatch => f.write_str("not a patch, so it cannot be signed"),
            SignatureError::Unsigned => f.write_str("not signed"),
            SignatureError::Malformed => f.write_str("its signature has an unknown form"),
            SignatureError::UnknownKey(id) => write!(f, "signed by key {id}, which is not trusted here"),
            SignatureError::Wrong(id) => {
                write!(f, "its signature is not one of key {id} over this file (altered, or forged)")
            }
        }
    }
}

impl core::error::Error for SignatureError {}

/// The key that a patch file names as its signer. Nothing is proven by that; see [`verify`].
///
/// # Errors
/// [`SignatureError`] if the file carries no signature.
pub fn signed_by(file: &[u8]) -> Result<KeyId, SignatureError> {
    embedded(file).map(|(id, _)| id)
}

/// Checks the signature inside a patch file: gives the key that made it.
///
/// # Errors
/// [`SignatureError`]: none of the keys has signed exactly this file.
pub fn verify(file: &[u8], trusted: &[PublicKey]) -> Result<KeyId, SignatureError> {
    let (id, signature) = embedded(file)?;
    check(trusted, id, |key| is_signature(key, &signed_bytes(file), &signature))
}

fn check(keys: &[PublicKey], id: KeyId, proves: impl Fn(&PublicKey) -> bool) -> Result<KeyId, SignatureError> {
    // IDs are short and chosen by whoever makes the key: two keys may have the same one.
    let mut named = keys.iter().filter(|key| key.id == id);
    if named.clone().next().is_none() {
        return Err(SignatureError::UnknownKey(id));
    }
    if named.any(proves) { Ok(id) } else { Err(SignatureError::Wrong(id)) }
}

fn embedded(file: &[u8]) -> Result<(KeyId, [u8; 64]), SignatureError> {
    if !is_start_of_patch(file) {
        return Err(SignatureError::NotAPatch);
    }
    let field = file.get(SIGNATURE_AT..SIGNATURE_END).ok_or(SignatureError::NotAPatch)?;
    if field.iter().all(|&b| b == 0) {
        return Err(SignatureError::Unsigned);
    }
    split(field, &[*b"ED"]).map(|(_, id, signature)| (id, signature)).ok_or(SignatureError::Malformed)
}

/// Algorithm, key ID and signature.
fn split(field: &[u8], algorithms: &[[u8; 2]]) -> Option<([u8; 2], KeyId, [u8; 64])> {
    let algorithm: [u8; 2] = field.get(..2)?.try_into().ok()?;
    let id = field.get(2..10)?.try_into().ok()?;
    let signature = field.get(10..)?.try_into().ok()?;
    algorithms.contains(&algorithm).then_some((algorithm, KeyId(id), signature))
}

/// What the signature inside a file is over.
pub(crate) fn signed_bytes(file: &[u8]) -> [u8; 64] {
    let mut hash = Blake2b512::new();
    hash.update(file.get(..DIGEST_AT).unwrap_or_default());
    hash.update([0; SIGNATURE_NOTE_AT - DIGEST_AT]);
    hash.update(file.get(SIGNATURE_NOTE_AT..SIGNATURE_AT).unwrap_or_default());
    hash.update([0; SIGNATURE_END - SIGNATURE_AT]);
    hash.update(file.get(SIGNATURE_END..).unwrap_or_default());
    hash.finalize().into()
}

pub(crate) fn is_signature(key: &PublicKey, message: &[u8], signature: &[u8; 64]) -> bool {
    let key = ed25519_compact::PublicKey::new(key.point);
    key.verify(message, &ed25519_compact::Signature::new(*signature)).is_ok()
}

/// A signature beside the file, as `minisign -S` makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    id: KeyId,
    /// The signature is over the file's BLAKE2b-512, not over the file.
    hashed: bool,
    signature: [u8; 64],
    trusted_comment: String,
    /// Signature over the signature and the trusted comment.
    global: [u8; 64],
}

impl Detached {
    /// Reads a `.minisig` file.
    ///
    /// # Errors
    /// [`SignatureError::Malformed`] for any other text.
    pub fn parse(text: &str) -> Result<Detached, SignatureError> {
        Detached::lines(text).ok_or(SignatureError::Malformed)
    }

    fn lines(text: &str) -> Option<Detached> {
        let mut lines = text.lines();
        lines.next()?.strip_prefix("untrusted comment:")?;
        let field: [u8; 74] = base64::decode(lines.next()?)?;
        let (algorithm, id, signature) = split(&field, &[*b"ED", *b"Ed"])?;
        let trusted_comment = lines.next()?.strip_prefix("trusted comment: ")?.into();
        let global = base64::decode(lines.next()?)?;
        let end = lines.next().is_none();
        end.then_some(Detached { id, hashed: algorithm == *b"ED", signature, trusted_comment, global })
    }

    /// The key that it names. Nothing is proven by that.
    pub fn signed_by(&self) -> KeyId {
        self.id
    }

    /// Checks it against the file that it is for: gives the key that made it.
    ///
    /// # Errors
    /// [`SignatureError`]: none of the keys has signed exactly this file, with this trusted comment.
    pub fn verify(&self, file: &[u8], trusted: &[PublicKey]) -> Result<KeyId, SignatureError> {
        let mut commented = Vec::from(self.signature);
        commented.extend(self.trusted_comment.as_bytes());
        check(trusted, self.id, |key| {
            let signed = match self.hashed {
                true => is_signature(key, &Blake2b512::digest(file), &self.signature),
                false => is_signature(key, file, &self.signature),
            };
            signed && is_signature(key, &commented, &self.global)
        })
    }
}
