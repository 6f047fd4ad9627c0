//! `hp sign`: puts a signature into a patch, or beside it, and the passwords that keys ask for.

use crate::args::{KeygenArgs, SignArgs};
use crate::exit::Exit;
use crate::patch_file::{PatchFile, write_file};
use crate::text::{GOOD, clean, io_reason, print_json};
use crate::trust::{minisig, read_text};
use anyhow::{anyhow, bail};
use hp_pack::SecretKey;
use std::io::Write;
use std::path::Path;

/// Signs a patch.
pub(crate) fn run(args: &SignArgs) -> anyhow::Result<Exit> {
    let mut file = PatchFile::read(&args.patch)?;
    let key = secret_key(args)?;
    if let Some(counter) = args.counter {
        file.patch.counter = counter;
        file.bytes = hp_pack::write(&file.patch).map_err(|e| anyhow!("{e}"))?;
    }
    let output = if args.detached { minisig(&args.patch) } else { args.output.as_ref().unwrap_or(&args.patch).clone() };
    let content = if args.detached {
        let name = args.patch.file_name().unwrap_or_default().to_string_lossy();
        key.sign_detached(&file.bytes, &format!("hp patch {} counter {} file:{name}", file.id, file.patch.counter))
            .into()
    } else {
        key.sign(&mut file.bytes).map_err(|e| anyhow!("{}: {e}", file.display()))?;
        file.bytes
    };
    let shown = clean(&output.display().to_string());
    write_file(&output, &content).map_err(|e| anyhow!("cannot write {shown}: {}", io_reason(&e)))?;
    let (key, counter) = (key.public().id().to_string(), file.patch.counter);
    let id = if args.detached { file.id } else { hp_pack::id(&content) };
    if args.json {
        print_json(&serde_json::json!({
            "exit": Exit::Done.code(), "file": output, "id": id, "key": key, "counter": counter,
        }))?;
    } else {
        let mut err = crate::text::notes();
        let _ = writeln!(err, "{GOOD}signed{GOOD:#} {shown}: by key {key}, counter {counter}, id {id}");
    }
    Ok(Exit::Done)
}

fn secret_key(args: &SignArgs) -> anyhow::Result<SecretKey> {
    let name = clean(&args.key.display().to_string());
    let text = read_text(&args.key).map_err(|e| anyhow!("cannot read the key {name}: {}", io_reason(&e)))?;
    let encrypted = SecretKey::is_encrypted(&text).map_err(|e| anyhow!("{name}: {e}"))?;
    let password = match &args.password_file {
        _ if !encrypted => None,
        Some(file) => Some(password_in(file)?),
        None => Some(ask(&format!("Password of {name}: "))?),
    };
    SecretKey::parse(&text, password.as_deref().map(str::as_bytes)).map_err(|e| anyhow!("{name}: {e}"))
}

/// The password of a new key; `None` if it is to have none.
pub(crate) fn new_password(args: &KeygenArgs) -> anyhow::Result<Option<String>> {
    if args.no_password {
        return Ok(None);
    }
    let password = match &args.password_file {
        Some(file) => password_in(file)?,
        None => {
            let first = ask("Password of the new key: ")?;
            if ask("The same again: ")? != first {
                bail!("the passwords differ; nothing was written");
            }
            first
        }
    };
    if password.is_empty() {
        bail!("the password is empty; use --no-password if the key is to have none");
    }
    Ok(Some(password))
}

/// The first line of a file.
fn password_in(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path).map_err(|e| {
        anyhow!("cannot read the password in {}: {}", clean(&path.display().to_string()), io_reason(&e))
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn ask(prompt: &str) -> anyhow::Result<String> {
    rpassword::prompt_password(prompt)
        .map_err(|e| anyhow!("cannot ask for a password: {}; use --password-file", io_reason(&e)))
}

/// Random bytes for keys.
pub(crate) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| anyhow!("the system gives no random bytes: {e}"))?;
    Ok(bytes)
}
