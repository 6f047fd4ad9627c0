//! `hp keygen`: a pair of keys in minisign's format. Nothing that exists is overwritten.

use crate::args::KeygenArgs;
use crate::exit::Exit;
use crate::sign::{new_password, random};
use crate::text::{GOOD, clean, io_reason, print_json};
use anyhow::anyhow;
use hp_pack::SecretKey;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Makes NAME.key and NAME.pub.
pub(crate) fn run(args: &KeygenArgs) -> anyhow::Result<Exit> {
    let file = |extension: &str| {
        let mut name = args.name.clone().into_os_string();
        name.push(extension);
        PathBuf::from(name)
    };
    let (secret_file, public_file) = (file(".key"), file(".pub"));
    for file in [&secret_file, &public_file] {
        if file.symlink_metadata().is_ok() {
            return Err(cannot_write(file, "it exists already; keys are not overwritten"));
        }
    }
    let key = SecretKey::generate(&random()?);
    let salt = random()?;
    let password = new_password(args)?;
    let text = key.to_text(password.as_ref().map(|password| (password.as_bytes(), &salt)))?;
    write_new(&secret_file, 0o600, &text)?;
    if let Err(error) = write_new(&public_file, 0o644, &key.public().to_text()) {
        let _ = std::fs::remove_file(&secret_file);
        return Err(error);
    }
    let id = key.public().id().to_string();
    if args.json {
        print_json(&serde_json::json!({
            "exit": Exit::Done.code(), "key": id, "secret": secret_file, "public": public_file,
        }))?;
    } else {
        let name = |path: &Path| clean(&path.display().to_string());
        let mut err = crate::text::notes();
        let _ = writeln!(err, "{GOOD}made{GOOD:#} key {id}: {} (keep it secret)", name(&secret_file));
        let _ = writeln!(err, "  hosts trust it with {} in /etc/hp/trusted.d", name(&public_file));
    }
    Ok(Exit::Done)
}

fn cannot_write(path: &Path, why: &str) -> anyhow::Error {
    anyhow!("cannot write {}: {why}", clean(&path.display().to_string()))
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| {
        // A part of a key would be in the way of the next try.
        if e.kind() != io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(path);
        }
        cannot_write(path, &io_reason(&e))
    })
}
