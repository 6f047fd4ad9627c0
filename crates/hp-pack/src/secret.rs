//! Secret keys, as `minisign` writes them, and what they are for: signing.
//!
//! No randomness and no I/O here: whoever makes a key brings the random bytes.

use crate::base64;
use crate::key::{KeyError, KeyId, PublicKey, key_line};
use crate::parts::{SIGNATURE_AT, SIGNATURE_END};
use crate::read::read;
use crate::seal::seal;
use crate::signature::signed_bytes;
use crate::{ReadError, elf};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use blake2::digest::consts::U32;
use blake2::{Blake2b, Blake2b512, Digest};

/// Cost of guessing a password, as minisign sets it: 2^20 rounds of scrypt in 1 GiB.
const OPERATIONS: u64 = 1 << 25;
const MEMORY: u64 = 1 << 30;
/// Size of a secret key file's key.
const SIZE: usize = 158;
/// The part of it that a password encrypts: ID, secret key, checksum.
const ENCRYPTED_AT: usize = 54;

/// An Ed25519 secret key with its ID.
#[derive(Clone)]
pub struct SecretKey {
    id: KeyId,
    /// Seed, then public key.
    bytes: [u8; 64],
}

impl SecretKey {
    /// Makes a key of random bytes: 32 for the key and 8 for its ID.
    ///
    /// # Panics
    /// If the first 32 bytes are all zero, which no source of random bytes gives.
    pub fn generate(random: &[u8; 40]) -> SecretKey {
        let (mut seed, mut id) = ([0; 32], [0; 8]);
        seed.copy_from_slice(&random[..32]);
        id.copy_from_slice(&random[32..]);
        let pair = ed25519_compact::KeyPair::from_seed(ed25519_compact::Seed::new(seed));
        SecretKey { id: KeyId(id), bytes: *pair.sk }
    }

    /// True if this secret key file can be read only with a password.
    ///
    /// # Errors
    /// [`KeyError`] if it is no key file.
    pub fn is_encrypted(text: &str) -> Result<bool, KeyError> {
        fields(text).map(|bytes| bytes[2..4] == *b"Sc")
    }

    /// Reads a secret key file of minisign or `hp keygen`. The password is ignored where none is needed.
    ///
    /// # Errors
    /// [`KeyError`]: what is wrong with the file or the password.
    pub fn parse(text: &str, password: Option<&[u8]>) -> Result<SecretKey, KeyError> {
        let mut bytes = fields(text)?;
        let encrypted = bytes[2..4] == *b"Sc";
        if encrypted {
            let number = |at| elf::u64_at(&bytes, at).unwrap_or_default();
            let parameters = scrypt_parameters(number(38), number(46))?;
            let stream = stream(password.ok_or(KeyError::Encrypted)?, &bytes[6..38], &parameters)?;
            bytes[ENCRYPTED_AT..].iter_mut().zip(stream).for_each(|(b, s)| *b ^= s);
        }
        let (mut id, mut key) = ([0; 8], [0; 64]);
        id.copy_from_slice(&bytes[54..62]);
        key.copy_from_slice(&bytes[62..126]);
        let key = SecretKey { id: KeyId(id), bytes: key };
        // minisign writes no checksum into a key without a password.
        if bytes[126..] == key.checksum() || !encrypted && bytes[126..] == [0; 32] {
            key.check().map(|()| key)
        } else {
            Err(if encrypted { KeyError::Password } else { KeyError::Malformed })
        }
    }

    /// The public half in the file must be that of the seed.
    fn check(&self) -> Result<(), KeyError> {
        let mut seed = [0; 32];
        seed.copy_from_slice(&self.bytes[..32]);
        let pair = ed25519_compact::KeyPair::try_from_seed(ed25519_compact::Seed::new(seed));
        if pair.is_ok_and(|pair| *pair.sk == self.bytes) { Ok(()) } else { Err(KeyError::Malformed) }
    }

    /// The secret key file that minisign would write; with a password and a random salt, encrypted.
    ///
    /// # Errors
    /// [`KeyError::TooCostly`] if there is not enough memory to encrypt it.
    pub fn to_text(&self, password: Option<(&[u8], &[u8; 32])>) -> Result<String, KeyError> {
        let mut bytes = [0; SIZE];
        bytes[..6].copy_from_slice(b"Ed\0\0B2");
        bytes[54..62].copy_from_slice(&self.id.0);
        bytes[62..126].copy_from_slice(&self.bytes);
        bytes[126..].copy_from_slice(&self.checksum());
        if let Some((password, salt)) = password {
            bytes[2..4].copy_from_slice(b"Sc");
            bytes[6..38].copy_from_slice(salt);
            bytes[38..46].copy_from_slice(&OPERATIONS.to_le_bytes());
            bytes[46..54].copy_from_slice(&MEMORY.to_le_bytes());
            let stream = stream(password, salt, &scrypt_parameters(OPERATIONS, MEMORY)?)?;
            bytes[ENCRYPTED_AT..].iter_mut().zip(stream).for_each(|(b, s)| *b ^= s);
        }
        Ok(format!("untrusted comment: hp secret key {}\n{}\n", self.id, base64::encode(&bytes)))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut point = [0; 32];
        point.copy_from_slice(&self.bytes[32..]);
        PublicKey { id: self.id, point }
    }

    fn checksum(&self) -> [u8; 32] {
        let mut hash = Blake2b::<U32>::new();
        hash.update(b"Ed");
        hash.update(self.id.0);
        hash.update(self.bytes);
        hash.finalize().into()
    }

    fn signature(&self, message: &[u8]) -> [u8; 64] {
        *ed25519_compact::SecretKey::new(self.bytes).sign(message, None)
    }

    /// Algorithm, key ID, signature.
    fn field(&self, signature: &[u8; 64]) -> Vec<u8> {
        let mut field = Vec::from(*b"ED");
        field.extend(self.id.0);
        field.extend(signature);
        field
    }

    /// Signs a patch file in place; a signature that is there already is replaced. The same key and patch give the
    /// same bytes.
    ///
    /// # Errors
    /// [`ReadError`] if the file is no valid patch: such a thing is not signed.
    pub fn sign(&self, file: &mut [u8]) -> Result<(), ReadError> {
        read(file)?;
        let field = self.field(&self.signature(&signed_bytes(file)));
        file[SIGNATURE_AT..SIGNATURE_END].copy_from_slice(&field);
        seal(file);
        Ok(())
    }

    /// The text of a `.minisig` file for any file, as `minisign -S` makes it. The comment is signed too; control
    /// characters in it become spaces.
    pub fn sign_detached(&self, file: &[u8], trusted_comment: &str) -> String {
        let comment: String = trusted_comment.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let signature = self.signature(&Blake2b512::digest(file));
        let mut commented = Vec::from(signature);
        commented.extend(comment.as_bytes());
        let (field, global) = (self.field(&signature), self.signature(&commented));
        format!(
            "untrusted comment: signature from hp secret key {}\n{}\ntrusted comment: {comment}\n{}\n",
            self.id,
            base64::encode(&field),
            base64::encode(&global)
        )
    }
}

impl core::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SecretKey({})", self.id)
    }
}

fn fields(text: &str) -> Result<[u8; SIZE], KeyError> {
    let bytes: [u8; SIZE] = base64::decode(key_line(text)?).ok_or(KeyError::Malformed)?;
    if bytes[..2] != *b"Ed" || !matches!(&bytes[2..4], b"Sc" | b"\0\0") || bytes[4..6] != *b"B2" {
        return Err(KeyError::Algorithm);
    }
    Ok(bytes)
}

/// The key stream that the encrypted part is combined with.
fn stream(password: &[u8], salt: &[u8], parameters: &scrypt::Params) -> Result<Vec<u8>, KeyError> {
    let mut stream = alloc::vec![0; SIZE - ENCRYPTED_AT];
    scrypt::scrypt(password, salt, parameters, &mut stream).map_err(|_| KeyError::TooCostly)?;
    Ok(stream)
}

/// From libsodium's two limits to scrypt's parameters (`pickparams` in libsodium's `crypto_scrypt`).
fn scrypt_parameters(operations: u64, memory: u64) -> Result<scrypt::Params, KeyError> {
    const R: u32 = 8;
    let operations = operations.max(32768);
    let (log_n, p) = if operations < memory / 32 {
        (log_of(operations / u64::from(R * 4)), 1)
    } else {
        let log_n = log_of(memory / u64::from(R * 128));
        let rp = ((operations / 4) >> log_n).min(0x3fff_ffff);
        (log_n, rp as u32 / R)
    };
    if log_n > 21 || p > 8 {
        return Err(KeyError::TooCostly);
    }
    scrypt::Params::new(log_n, R, p, 32).map_err(|_| KeyError::TooCostly)
}

/// The smallest exponent, from 1 on, of a power of two above half of `max`.
fn log_of(max: u64) -> u8 {
    (1..63).find(|&log| 1 << log > max / 2).unwrap_or(63)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from libsodium's `pickparams`; a key file is no way to make the reader use all memory.
    #[test]
    fn costs() {
        let parameters = |operations, memory| scrypt_parameters(operations, memory).map(|p| (p.log_n(), p.r(), p.p()));
        assert_eq!(parameters(OPERATIONS, MEMORY), Ok((20, 8, 1)));
        assert_eq!(parameters(1 << 23, 1 << 28), Ok((18, 8, 1)));
        assert_eq!(parameters(32768, 16 << 20), Ok((10, 8, 1)));
        for (operations, memory) in [(u64::MAX, u64::MAX), (u64::MAX, 1 << 30), (1 << 40, u64::MAX), (u64::MAX, 0)] {
            assert_eq!(parameters(operations, memory), Err(KeyError::TooCostly), "{operations} {memory}");
        }
    }
}
