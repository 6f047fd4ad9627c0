//! What must hold for any bytes: the fuzz targets and the replay of their corpus share it.
#![allow(dead_code, reason = "each of its users calls some of these")]

use hp_pack::{Detached, FORMAT_MINOR, PublicKey, SecretKey, read, seal, signed_by, write};

/// Where every version of the format has its minor version.
const MINOR_AT: std::ops::Range<usize> = 234..236;

/// The reader never panics, and what it accepts is exactly what the writer makes of it.
pub(crate) fn patch(data: &[u8]) {
    let mut file = data.to_vec();
    seal(&mut file);
    let _ = signed_by(&file);
    if let Ok(patch) = read(&file)
        && file[MINOR_AT] == FORMAT_MINOR.to_le_bytes()
    {
        assert_eq!(write(&patch).as_deref(), Ok(&file[..]), "what was read is not what is written");
    }
}

/// Keys and signatures: no panic, and a key that is read is written as one that reads the same.
pub(crate) fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = PublicKey::parse(text) {
        assert_eq!(PublicKey::parse(&key.to_text()), Ok(key));
    }
    if let Ok(signature) = Detached::parse(text) {
        let _ = signature.signed_by();
    }
    if SecretKey::is_encrypted(text) == Ok(false) {
        let _ = SecretKey::parse(text, None);
    }
}
