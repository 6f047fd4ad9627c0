//! `hp keygen`, `hp sign`, `hp verify`, and what a host with trusted keys takes.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use support::hp::{Answer, HP, run};
use support::target::{NEW, OLD, Pair};

const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/keys/");

/// A folder of its own for each test, with a copy of one patch and its own configuration.
struct Room {
    folder: tempfile::TempDir,
    patch: PathBuf,
}

impl Room {
    fn new() -> Room {
        let folder = tempfile::tempdir().unwrap();
        let patch = folder.path().join("fix.hpatch");
        fs::copy(&pair().patch, &patch).unwrap();
        Room { folder, patch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn hp<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Answer {
        run(Command::new(HP).args(arguments).env("XDG_CONFIG_HOME", self.path("config")))
    }

    /// From now on this configuration trusts that key.
    fn trusts(&self, public: impl AsRef<Path>) {
        let folder = self.path("config/hp/trusted.d");
        fs::create_dir_all(&folder).unwrap();
        let number = fs::read_dir(&folder).unwrap().count();
        fs::copy(public, folder.join(format!("{number}.pub"))).unwrap();
    }

    fn sign(&self, more: &[&str]) -> Answer {
        let key = format!("{KEYS}plain.key");
        let patch = self.patch.to_str().unwrap();
        self.hp([&["sign", patch, "--key", &key][..], more].concat())
    }

    fn verify(&self) -> Answer {
        self.hp([OsStr::new("verify"), self.patch.as_os_str()])
    }

    fn apply(&self, patch: &Path, pid: u32) -> Answer {
        self.hp([OsStr::new("apply"), patch.as_os_str(), OsStr::new("--pid"), OsStr::new(&pid.to_string())])
    }
}

fn pair() -> &'static Pair {
    static PAIR: OnceLock<Pair> = OnceLock::new();
    PAIR.get_or_init(Pair::make)
}

#[test]
fn a_host_with_keys_takes_signed_patches_only() {
    let room = Room::new();
    room.verify().exits(0);
    room.trusts(format!("{KEYS}plain.pub"));
    room.verify().exits(1).says(&["fix.hpatch", "not signed", "signed patches only"]);
    room.sign(&[]).exits(0);
    let answer = room.verify().exits(0);
    assert!(answer.out.contains("signed by trusted key C68757634377D05A"), "{answer}");
    // Another key alone does not do, both do.
    let stranger = Room { folder: tempfile::tempdir().unwrap(), patch: room.patch.clone() };
    stranger.trusts(format!("{KEYS}locked.pub"));
    stranger.verify().exits(1).says(&["key C68757634377D05A", "not trusted"]);
    let trust = format!("{KEYS}plain.pub");
    stranger.hp(["verify", room.patch.to_str().unwrap(), "--trust", &trust]).exits(0);
}

#[test]
fn nothing_is_parsed_before_the_signature_is_checked() {
    let room = Room::new();
    room.trusts(format!("{KEYS}plain.pub"));
    room.sign(&[]).exits(0);
    let good = fs::read(&room.patch).unwrap();
    for at in [0, 20, 90, 140, 150, 190, 240, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&room.patch, &bad).unwrap();
        // The digest is not part of what is signed; it is the reader that notices it.
        room.verify().exits(if at == 90 { 2 } else { 1 });
    }
    for junk in [&b""[..], b"\x7fELF", &[0xff; 5000]] {
        fs::write(&room.patch, junk).unwrap();
        room.verify().exits(1).says(&["not a patch"]);
    }
}

#[test]
fn apply_asks_for_the_signature_and_older_patches_stay_out() {
    let mut target = pair().start();
    let pid = target.pid();
    let room = Room::new();
    room.trusts(format!("{KEYS}plain.pub"));
    room.apply(&room.patch, pid).exits(1).says(&["not signed"]);
    let answer = room.hp(["apply", room.patch.to_str().unwrap(), "--pid", &pid.to_string(), "--json"]).exits(1);
    let json: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(json["exit"], 1);
    assert_eq!(target.ask(), OLD);

    let (older, newer) = (room.path("older.hpatch"), room.path("newer.hpatch"));
    room.sign(&["--counter", "6", "-o", older.to_str().unwrap()]).exits(0);
    room.sign(&["--counter", "7", "-o", newer.to_str().unwrap()]).exits(0);
    room.apply(&newer, pid).exits(0);
    assert_eq!(target.ask(), NEW);
    room.apply(&older, pid).exits(1).says(&["newer patch of the same base"]);
    // Another counter in the file is another file: the signature does not fit.
    let mut forged = fs::read(&older).unwrap();
    forged[240] = 9;
    hp_pack::seal(&mut forged);
    fs::write(&older, forged).unwrap();
    room.apply(&older, pid).exits(1).says(&["altered, or forged"]);
    assert_eq!(target.ask(), NEW);
    room.hp(["revert", "--everything", "--pid", &pid.to_string()]).exits(0);
    assert_eq!(target.ask(), OLD);
}

#[test]
fn a_signature_beside_the_file_counts() {
    let room = Room::new();
    let before = fs::read(&room.patch).unwrap();
    room.sign(&["--detached"]).exits(0);
    assert_eq!(fs::read(&room.patch).unwrap(), before);
    room.trusts(format!("{KEYS}plain.pub"));
    let answer = room.verify().exits(0);
    assert!(answer.out.contains("beside the file"), "{answer}");
    // One that belongs to another file does not.
    let mut other = before.clone();
    other[240] ^= 1;
    hp_pack::seal(&mut other);
    fs::write(&room.patch, other).unwrap();
    room.verify().exits(1).says(&["fix.hpatch.minisig", "altered, or forged"]);
    fs::write(room.path("fix.hpatch.minisig"), "junk").unwrap();
    room.verify().exits(1).says(&["unknown form"]);
    // The tool's own.
    fs::write(&room.patch, &before).unwrap();
    fs::remove_file(room.path("fix.hpatch.minisig")).unwrap();
    let key = format!("{KEYS}plain.key");
    match run_tool(Command::new("minisign").args(["-S", "-W", "-s", &key, "-m"]).arg(&room.patch)) {
        Some(()) => drop(room.verify().exits(0)),
        None => eprintln!("minisign is not installed; its signature is passed over"),
    }
}

fn run_tool(command: &mut Command) -> Option<()> {
    let output = command.output().ok()?;
    assert!(output.status.success(), "{output:?}");
    Some(())
}

#[test]
fn keys_are_made_and_used() {
    let room = Room::new();
    let name = room.path("release");
    room.hp(["keygen", name.to_str().unwrap(), "--no-password"]).exits(0);
    let mode = fs::metadata(room.path("release.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    room.hp(["keygen", name.to_str().unwrap(), "--no-password"]).exits(2).says(&["release.key", "exists already"]);
    room.trusts(room.path("release.pub"));
    let (patch, key) = (room.patch.to_str().unwrap(), room.path("release.key"));
    room.hp(["sign", patch, "--key", key.to_str().unwrap()]).exits(0);
    room.verify().exits(0);
    room.hp(["keygen", room.path("x").to_str().unwrap()]).exits(2).says(&["--password-file"]);
    assert!(!room.path("x.key").exists());
}

#[test]
fn keys_with_passwords() {
    let room = Room::new();
    let password = room.path("password");
    let key = format!("{KEYS}locked.key");
    let sign = || {
        let password = password.to_str().unwrap();
        room.hp(["sign", room.patch.to_str().unwrap(), "--key", &key, "--password-file", password])
    };
    fs::write(&password, "wrong\n").unwrap();
    sign().exits(2).says(&["locked.key", "wrong password"]);
    fs::write(&password, "correct horse\n").unwrap();
    sign().exits(0);
    room.trusts(format!("{KEYS}locked.pub"));
    room.verify().exits(0);
}

#[test]
fn a_key_that_cannot_be_read_is_an_error_not_no_key() {
    let room = Room::new();
    room.trusts(&room.patch);
    room.verify().exits(2).says(&["0.pub"]);
    let room = Room::new();
    let missing = room.path("missing.pub");
    room.hp(["verify", room.patch.to_str().unwrap(), "--trust", missing.to_str().unwrap()])
        .exits(2)
        .says(&["missing.pub", "no such file"]);
    room.hp(["sign", room.patch.to_str().unwrap(), "--key", room.patch.to_str().unwrap()]).exits(2);
}

#[test]
fn json() {
    let room = Room::new();
    let verify = || {
        let answer = room.hp(["verify", room.patch.to_str().unwrap(), "--json"]).exits(0);
        serde_json::from_str::<serde_json::Value>(&answer.out).unwrap()
    };
    assert_eq!(verify()["signature"], serde_json::Value::Null);
    let answer = room.sign(&["--json", "--counter", "3"]).exits(0);
    let signed: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((&signed["key"], &signed["counter"]), (&"C68757634377D05A".into(), &3.into()));
    let json = verify();
    assert_eq!((&json["id"], &json["counter"]), (&signed["id"], &3.into()));
    assert_eq!(json["signature"]["trusted"], false);
    room.trusts(format!("{KEYS}plain.pub"));
    let json = verify();
    assert_eq!(json["signature"]["trusted"], true);
    assert_eq!(json["signature"]["place"], "inside");
}
