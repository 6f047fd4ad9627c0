//! Which keys this host trusts, and reading patches under that rule, as `hp` does it.
//!
//! Where there is at least one key, a patch that none of them has signed is refused before anything of it but the
//! signature is looked at. A key file that cannot be read is an error, never passed over.

use super::{Args, PatchFile, Start, clean, read_patch_bytes};
use crate::failure::{Failure, refused, unusable};
use crate::prelude::*;
use crate::small::sort_by_key;
use crate::sys::{self, Errno};
use hp_pack::{Detached, PublicKey, SignatureError};

/// Keys of the whole host.
const HOST_KEYS: &[u8] = b"/etc/hp/trusted.d";
/// Larger than any text that is read here.
const MAX_TEXT: usize = 64 * 1024;

/// The bundled patch, or those that are named; with trusted keys, only signed ones.
pub(super) fn read_patches(
    start: &Start<'_>,
    args: &Args<'_>,
    bundled: Option<Vec<u8>>,
) -> Result<Vec<PatchFile>, Failure> {
    let keys = keys(start, args)?;
    let read = |name: String, path: Option<&[u8]>, bytes: Vec<u8>| {
        if !keys.is_empty() {
            check(&name, path, &bytes, &keys)?;
        }
        PatchFile::parse(name, &bytes)
    };
    match bundled {
        Some(bytes) => Ok(vec![read("the bundled patch".to_owned(), None, bytes)?]),
        None => args.words.iter().map(|path| read(clean(path), Some(path), read_patch_bytes(path)?)).collect(),
    }
}

/// Every trusted key: of the host, of the user, and those given on the command line.
fn keys(start: &Start<'_>, args: &Args<'_>) -> Result<Vec<PublicKey>, Failure> {
    let mut keys = Vec::new();
    for folder in [Some(HOST_KEYS.to_vec()), user_keys(start)].into_iter().flatten() {
        for file in key_files(&folder)? {
            keys.push(read_key(&file)?);
        }
    }
    for file in &args.trust {
        keys.push(read_key(file)?);
    }
    Ok(keys)
}

fn user_keys(start: &Start<'_>) -> Option<Vec<u8>> {
    let absolute = |name| start.variable(name).filter(|path| path.starts_with(b"/"));
    match (absolute("XDG_CONFIG_HOME"), absolute("HOME")) {
        (Some(config), _) => Some([config, b"/hp/trusted.d"].concat()),
        (None, home) => Some([home?, b"/.config/hp/trusted.d"].concat()),
    }
}

/// The `*.pub` files of a folder, in the order of their names; none if there is no such folder.
fn key_files(folder: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let mut names = match sys::names_in(folder) {
        Ok(names) => names,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
        Err(error) => {
            let (folder, why) = (clean(folder), error.reason());
            return Err(unusable(format_args!("cannot read the trusted keys in {folder}: {why}")));
        }
    };
    // A name that is nothing but the extension has none.
    names.retain(|name| name.ends_with(b".pub") && name.len() > 4);
    sort_by_key(&mut names, Vec::clone);
    Ok(names.into_iter().map(|name| [folder, b"/", &name].concat()).collect())
}

fn read_key(path: &[u8]) -> Result<PublicKey, Failure> {
    let name = clean(path);
    let text = read_text(path).map_err(|why| unusable(format_args!("cannot read the key {name}: {}", why.words())))?;
    PublicKey::parse(&text).map_err(|error| unusable(format_args!("{name}: {error}")))
}

enum Unreadable {
    Errno(Errno),
    TooLarge,
    NotText,
}

impl Unreadable {
    fn words(&self) -> String {
        match self {
            Unreadable::Errno(error) => error.reason(),
            Unreadable::TooLarge => "it is too large".to_owned(),
            Unreadable::NotText => "stream did not contain valid UTF-8".to_owned(),
        }
    }
}

fn read_text(path: &[u8]) -> Result<String, Unreadable> {
    match sys::read_file_up_to(path, MAX_TEXT) {
        Ok(Some(bytes)) => String::from_utf8(bytes).map_err(|_| Unreadable::NotText),
        Ok(None) => Err(Unreadable::TooLarge),
        Err(error) => Err(Unreadable::Errno(error)),
    }
}

/// The signature inside the file, or the one beside it where the file has none of a trusted key.
fn check(name: &str, path: Option<&[u8]>, bytes: &[u8], keys: &[PublicKey]) -> Result<(), Failure> {
    let inside = match hp_pack::verify(bytes, keys) {
        Ok(_) => return Ok(()),
        Err(why) => why,
    };
    let advice = if inside == SignatureError::Unsigned { ", and this host takes signed patches only" } else { "" };
    let refusal = refused(format_args!("{name}: {inside}{advice}"));
    let beside = match (inside, path) {
        (SignatureError::Unsigned | SignatureError::UnknownKey(_), Some(path)) => [path, b".minisig"].concat(),
        _ => return Err(refusal),
    };
    let text = match read_text(&beside) {
        Ok(text) => text,
        Err(Unreadable::Errno(Errno::ENOENT)) => return Err(refusal),
        Err(why) => return Err(unusable(format_args!("cannot read {}: {}", clean(&beside), why.words()))),
    };
    match Detached::parse(&text).and_then(|signature| signature.verify(bytes, keys)) {
        Ok(_) => Ok(()),
        Err(why) => Err(refused(format_args!("{name}: by {}: {why}", clean(&beside)))),
    }
}
