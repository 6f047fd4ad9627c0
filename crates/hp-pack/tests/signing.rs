//! Signatures: with the keys of the `minisign` tool, inside the file and beside it, and nothing slips through.

mod common;

use hp_pack::*;
use std::process::Command;

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/keys/");
const PASSWORD: &[u8] = b"correct horse";

fn key_file(name: &str) -> String {
    std::fs::read_to_string(format!("{KEYS}{name}")).unwrap()
}

fn plain() -> SecretKey {
    SecretKey::parse(&key_file("plain.key"), None).unwrap()
}

fn signed() -> Vec<u8> {
    let mut file = write(&common::small()).unwrap();
    plain().sign(&mut file).unwrap();
    file
}

#[test]
fn keys_of_the_tool_are_read() {
    let public = PublicKey::parse(&key_file("plain.pub")).unwrap();
    assert_eq!(public, plain().public());
    assert_eq!(public.id().to_string(), "C68757634377D05A");
    let line = key_file("plain.pub").lines().nth(1).unwrap().to_owned();
    assert_eq!(PublicKey::parse(&line).unwrap(), public);
    let locked = key_file("locked.key");
    assert_eq!(SecretKey::is_encrypted(&locked), Ok(true));
    let secret = SecretKey::parse(&locked, Some(PASSWORD)).unwrap();
    assert_eq!(secret.public(), PublicKey::parse(&key_file("locked.pub")).unwrap());
    assert_eq!(SecretKey::parse(&locked, None).unwrap_err(), KeyError::Encrypted);
    assert_eq!(SecretKey::parse(&locked, Some(b"correct house")).unwrap_err(), KeyError::Password);
}

#[test]
fn keys_survive() {
    let secret = SecretKey::generate(&std::array::from_fn(|i| i as u8 * 3));
    let text = secret.to_text(None).unwrap();
    assert_eq!(SecretKey::parse(&text, None).unwrap().public(), secret.public());
    assert_eq!(PublicKey::parse(&secret.public().to_text()).unwrap(), secret.public());
}

#[test]
fn damaged_keys_are_refused() {
    for wrong in ["", "\n", "untrusted comment: x", "untrusted comment: x\nRWQ=", "RWQ=", "<html>"] {
        assert_eq!(PublicKey::parse(wrong).unwrap_err(), KeyError::Malformed, "{wrong}");
        assert_eq!(SecretKey::parse(wrong, None).unwrap_err(), KeyError::Malformed, "{wrong}");
    }
    let text = key_file("plain.pub");
    assert_eq!(PublicKey::parse(&text.replace("RW", "RX")).unwrap_err(), KeyError::Algorithm);
    assert_eq!(PublicKey::parse(&format!("{text}{text}")).unwrap_err(), KeyError::Malformed);
    // The public half of a secret key must be that of its seed, or signatures would give the seed away.
    let mut bytes = key_file("plain.key").into_bytes();
    let at = bytes.len() - 60;
    bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    assert!(SecretKey::parse(&String::from_utf8(bytes).unwrap(), None).is_err());
}

#[test]
fn a_signed_patch_is_accepted_and_reads_as_before() {
    let file = signed();
    let key = plain().public();
    assert_eq!(signed_by(&file), Ok(key.id()));
    assert_eq!(verify(&file, &[key]), Ok(key.id()));
    assert_eq!(read(&file).unwrap(), common::small());
    assert_eq!(file, signed(), "signing is reproducible");
    let mut again = file.clone();
    SecretKey::generate(&[9; 40]).sign(&mut again).unwrap();
    assert_eq!(verify(&again, &[key]), Err(SignatureError::UnknownKey(signed_by(&again).unwrap())));
    plain().sign(&mut again).unwrap();
    assert_eq!(again, file, "a signature is replaced, not signed");
}

#[test]
fn what_is_not_signed_is_refused() {
    let file = write(&common::small()).unwrap();
    let key = plain().public();
    assert_eq!(verify(&file, &[key]), Err(SignatureError::Unsigned));
    assert_eq!(verify(b"", &[key]), Err(SignatureError::NotAPatch));
    assert_eq!(verify(&[0; 4096], &[key]), Err(SignatureError::NotAPatch));
    assert_eq!(verify(&std::fs::read("/bin/true").unwrap(), &[key]), Err(SignatureError::NotAPatch));
    assert!(plain().sign(&mut std::fs::read("/bin/true").unwrap()).is_err());
    // Another key with the same ID.
    let mut random = [5; 40];
    random[32..].copy_from_slice(&0xC68757634377D05Au64.to_le_bytes());
    let forger = SecretKey::generate(&random);
    assert_eq!(forger.public().id(), key.id());
    let mut forged = file.clone();
    forger.sign(&mut forged).unwrap();
    assert_eq!(verify(&forged, &[key]), Err(SignatureError::Wrong(key.id())));
    assert_eq!(verify(&forged, &[key, forger.public()]), Ok(key.id()));
}

/// Each bit of a signed file, as it is and with the digest made right again: a host with keys notices each by the
/// signature alone, but for the digest's own bits, which the reader notices; a host without keys by the digest.
#[test]
fn every_flipped_bit_is_noticed() {
    let file = signed();
    let keys = [plain().public()];
    for bit in 0..file.len() * 8 {
        let mut other = file.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        let place = format!("bit {} of byte {:#x}", bit % 8, bit / 8);
        assert!(read(&other).is_err(), "{place}: not noticed without keys");
        let in_digest = (84..116).contains(&(bit / 8));
        assert_eq!(verify(&other, &keys).is_ok(), in_digest, "{place}: signature");
        seal(&mut other);
        assert!(in_digest || verify(&other, &keys).is_err(), "{place}: signature, digest made right");
    }
}

#[test]
fn signatures_beside_the_file() {
    let file = write(&common::small()).unwrap();
    let key = plain().public();
    let text = plain().sign_detached(&file, "file:small.hpatch\tby a test");
    let detached = Detached::parse(&text).unwrap();
    assert_eq!(detached.signed_by(), key.id());
    assert_eq!(detached.verify(&file, &[key]), Ok(key.id()));
    assert_eq!(detached.verify(&signed(), &[key]), Err(SignatureError::Wrong(key.id())));
    assert_eq!(detached.verify(&file, &[]), Err(SignatureError::UnknownKey(key.id())));
    let comment = text.replace("by a test", "by another");
    assert_eq!(Detached::parse(&comment).unwrap().verify(&file, &[key]), Err(SignatureError::Wrong(key.id())));
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let Ok(other) = String::from_utf8(bytes) else { continue };
        let accepted = Detached::parse(&other).is_ok_and(|d| d.verify(&file, &[key]).is_ok());
        let in_untrusted_comment = at < text.find('\n').unwrap();
        assert!(!accepted || in_untrusted_comment, "byte {at}");
    }
    for end in 0..text.len() - 1 {
        assert!(Detached::parse(&text[..end]).is_err(), "cut off at {end}");
    }
}

/// The tool and we accept each other's signatures. Passed over where the tool is not installed.
#[test]
fn the_tool_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("small.hpatch");
    let signature = dir.path().join("small.hpatch.minisig");
    let bytes = write(&common::small()).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    std::fs::write(&signature, plain().sign_detached(&bytes, "from hp")).unwrap();
    let minisign = |arguments: &[&str]| match Command::new("minisign").args(arguments).arg("-m").arg(&file).output() {
        Ok(output) => {
            assert!(output.status.success(), "minisign {arguments:?}: {output:?}");
            true
        }
        Err(_) => false,
    };
    let (public, secret) = (format!("{KEYS}plain.pub"), format!("{KEYS}plain.key"));
    if !minisign(&["-V", "-p", &public]) {
        eprintln!("minisign is not installed; passed over");
        return;
    }
    for mode in ["-S", "-Sl"] {
        std::fs::remove_file(&signature).unwrap();
        minisign(&[mode, "-W", "-s", &secret]);
        let detached = Detached::parse(&std::fs::read_to_string(&signature).unwrap()).unwrap();
        let key = PublicKey::parse(&key_file("plain.pub")).unwrap();
        assert_eq!(detached.verify(&bytes, &[key]), Ok(key.id()), "{mode}");
    }
    // A key that we have made.
    let (ours, ours_public) = (dir.path().join("ours.key"), dir.path().join("ours.pub"));
    let key = SecretKey::generate(&[11; 40]);
    std::fs::write(&ours, key.to_text(None).unwrap()).unwrap();
    std::fs::write(&ours_public, key.public().to_text()).unwrap();
    minisign(&["-S", "-W", "-s", ours.to_str().unwrap()]);
    minisign(&["-V", "-p", ours_public.to_str().unwrap()]);
}
