//! Public keys, as `minisign` writes them.

use crate::base64;
use core::fmt;

/// The eight bytes by which a signature names its key. They help to find the key and prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub(crate) [u8; 8]);

impl fmt::Display for KeyId {
    /// As `minisign` prints it: 16 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// An Ed25519 public key with its ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub(crate) id: KeyId,
    pub(crate) point: [u8; 32],
}

impl PublicKey {
    /// Reads a public key file of minisign, or the one line of it that is the key.
    ///
    /// # Errors
    /// [`KeyError`] for any other text.
    pub fn parse(text: &str) -> Result<PublicKey, KeyError> {
        let bytes: [u8; 42] = base64::decode(key_line(text)?).ok_or(KeyError::Malformed)?;
        let [b'E', b'd', rest @ ..] = bytes else { return Err(KeyError::Algorithm) };
        let (mut id, mut point) = ([0; 8], [0; 32]);
        id.copy_from_slice(&rest[..8]);
        point.copy_from_slice(&rest[8..]);
        Ok(PublicKey { id: KeyId(id), point })
    }

    /// The key's ID.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The file that minisign would write.
    #[cfg(feature = "sign")]
    pub fn to_text(&self) -> alloc::string::String {
        let mut bytes = alloc::vec![b'E', b'd'];
        bytes.extend(self.id.0);
        bytes.extend(self.point);
        alloc::format!("untrusted comment: hp public key {}\n{}\n", self.id, base64::encode(&bytes))
    }
}

/// The line that holds the key: the second one after a comment, else the only one.
pub(crate) fn key_line(text: &str) -> Result<&str, KeyError> {
    let mut lines = text.lines().map(str::trim_end);
    let first = lines.next().unwrap_or_default();
    let key = if first.starts_with("untrusted comment:") { lines.next() } else { Some(first) };
    match (key, lines.all(str::is_empty)) {
        (Some(key), true) if !key.is_empty() => Ok(key),
        _ => Err(KeyError::Malformed),
    }
}

/// Why a text is no key that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is no key file.
    Malformed,
    /// A key of another algorithm than Ed25519.
    Algorithm,
    /// The key is encrypted, and no password was given.
    Encrypted,
    /// The password is wrong, or the file is damaged.
    Password,
    /// Decrypting it would take more memory or work than any sensible key asks for.
    TooCostly,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyError::Malformed => "not a key file as minisign or `hp keygen` writes it",
            KeyError::Algorithm => "a key of an unknown algorithm; Ed25519 keys are used here",
            KeyError::Encrypted => "the key is protected by a password; give it",
            KeyError::Password => "wrong password (or the key file is damaged)",
            KeyError::TooCostly => "the key asks for more than 2 GiB of memory, or as much work, to decrypt it",
        })
    }
}

impl core::error::Error for KeyError {}
