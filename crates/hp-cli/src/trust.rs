//! Which keys this host trusts, and reading patches under that rule.
//!
//! Where there is at least one key, a patch that none of them has signed is refused before anything of it but the
//! signature is looked at. A key file that cannot be read is an error, never passed over: a host that was
//! given keys must not fall back to trusting everything.

use crate::args::TrustArgs;
use crate::exit::Refusal;
use crate::patch_file::{PatchFile, read_bytes};
use crate::text::{clean, io_reason};
use anyhow::{anyhow, bail};
use hp_pack::{Detached, KeyId, PublicKey, SignatureError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Keys of the whole host.
const HOST_KEYS: &str = "/etc/hp/trusted.d";
/// Larger than any text that is read here.
const MAX_TEXT: u64 = 64 * 1024;

/// What a signature has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// A trusted key has signed exactly this file.
    Proven { by: KeyId, beside: bool },
    /// This host trusts no keys, so nothing was checked; the file names this key.
    Claimed(KeyId),
    /// This host trusts no keys, and the file is not signed.
    Unsigned,
}

/// Reads patches; with trusted keys, only signed ones.
pub(crate) fn read_patches(paths: &[PathBuf], args: &TrustArgs) -> anyhow::Result<Vec<PatchFile>> {
    let keys = keys(args)?;
    paths.iter().map(|path| read_patch(path, &keys).map(|(file, _)| file)).collect()
}

/// Reads one patch and says what its signature shows.
pub(crate) fn read_patch(path: &Path, keys: &[PublicKey]) -> anyhow::Result<(PatchFile, Trust)> {
    let name = clean(&path.display().to_string());
    let bytes = read_bytes(path).map_err(|e| anyhow!("cannot read the patch {name}: {}", io_reason(&e)))?;
    let trust = if keys.is_empty() { claimed(&bytes) } else { proven(path, &bytes, keys)? };
    Ok((PatchFile::parse(path, bytes)?, trust))
}

/// Every trusted key: of the host, of the user, and those given on the command line.
pub(crate) fn keys(args: &TrustArgs) -> anyhow::Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for folder in [Some(PathBuf::from(HOST_KEYS)), user_keys()].into_iter().flatten() {
        for file in key_files(&folder)? {
            keys.push(read_key(&file)?);
        }
    }
    for file in &args.trust {
        keys.push(read_key(file)?);
    }
    Ok(keys)
}

fn user_keys() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(config.join("hp/trusted.d"))
}

/// The `*.pub` files of a folder, in the order of their names; none if there is no such folder.
fn key_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let error = |e: std::io::Error| {
        let folder = clean(&folder.display().to_string());
        anyhow!("cannot read the trusted keys in {folder}: {}", io_reason(&e))
    };
    let entries = match std::fs::read_dir(folder) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.map_err(error)?,
    };
    let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(error)?;
    let mut files: Vec<PathBuf> = paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "pub")).collect();
    files.sort();
    Ok(files)
}

fn read_key(path: &Path) -> anyhow::Result<PublicKey> {
    let name = clean(&path.display().to_string());
    let text = read_text(path).map_err(|e| anyhow!("cannot read the key {name}: {}", io_reason(&e)))?;
    PublicKey::parse(&text).map_err(|e| anyhow!("{name}: {e}"))
}

/// Reads a small text file: a key, a signature, a password.
pub(crate) fn read_text(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_TEXT + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(std::io::Error::other("it is too large"));
    }
    Ok(text)
}

fn claimed(bytes: &[u8]) -> Trust {
    hp_pack::signed_by(bytes).map_or(Trust::Unsigned, Trust::Claimed)
}

/// The signature inside the file, or the one beside it where the file has none of a trusted key.
fn proven(path: &Path, bytes: &[u8], keys: &[PublicKey]) -> anyhow::Result<Trust> {
    let name = clean(&path.display().to_string());
    let inside = match hp_pack::verify(bytes, keys) {
        Ok(by) => return Ok(Trust::Proven { by, beside: false }),
        Err(why) => why,
    };
    if !matches!(inside, SignatureError::Unsigned | SignatureError::UnknownKey(_)) {
        bail!(Refusal(format!("{name}: {inside}")));
    }
    let beside = minisig(path);
    let text = match read_text(&beside) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let advice =
                if inside == SignatureError::Unsigned { ", and this host takes signed patches only" } else { "" };
            bail!(Refusal(format!("{name}: {inside}{advice}")));
        }
        Err(e) => bail!("cannot read {}: {}", clean(&beside.display().to_string()), io_reason(&e)),
    };
    match Detached::parse(&text).and_then(|signature| signature.verify(bytes, keys)) {
        Ok(by) => Ok(Trust::Proven { by, beside: true }),
        Err(why) => bail!(Refusal(format!("{name}: by {}: {why}", clean(&beside.display().to_string())))),
    }
}

/// `FILE.minisig`.
pub(crate) fn minisig(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}
