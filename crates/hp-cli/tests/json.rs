//! What `--json` prints is what `docs/hp.schema.json` describes: nothing is missing, nothing is of another type, nothing is undescribed.

mod support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use support::hp::{HP, hp};
use support::process::Running;
use support::target::Pair;
use support::{lacks, trial};

const SCHEMA: &str = include_str!("../../../docs/hp.schema.json");

fn main() -> ExitCode {
    let gcc = || lacks("gcc");
    let trials = vec![
        trial("the_judge_of_schemas_judges", None, the_judge_of_schemas_judges),
        trial("builds_and_patches", gcc(), builds_and_patches),
        trial("trees", gcc(), trees),
        trial("keys_and_codes", gcc(), keys_and_codes),
        trial("processes", gcc(), processes),
        trial("events", gcc(), events),
        trial("failures", None, failures),
    ];
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit_code()
}

/// Asserts that a command exits so, and that what it prints is what the schema says of `name`.
#[track_caller]
fn prints(name: &str, code: i32, arguments: &[&str]) -> Value {
    let answer = hp(arguments.iter().copied().chain(["--json"])).exits(code);
    let value: Value = serde_json::from_str(&answer.out).unwrap_or_else(|e| panic!("{e}: {answer}"));
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    assert_eq!(value["exit"], code, "{answer}");
    if let Err(why) = fits(&value, &schema["$defs"][name], &schema, name) {
        panic!("{why}\n{answer}");
    }
    value
}

/// Does a value fit a schema? Only what our schemas use of JSON Schema is known here; other words are a mistake.
fn fits(value: &Value, schema: &Value, root: &Value, at: &str) -> Result<(), String> {
    let words = schema.as_object().ok_or_else(|| format!("{at}: no schema"))?;
    let mut described = None;
    for (word, of) in words {
        match word.as_str() {
            "description" | "required" => {}
            "$ref" => {
                let name = of.as_str().and_then(|r| r.strip_prefix("#/$defs/")).unwrap_or_default();
                fits(value, &root["$defs"][name], root, at)?;
            }
            "anyOf" => {
                let tried: Vec<_> = of.as_array().into_iter().flatten().map(|s| fits(value, s, root, at)).collect();
                if tried.iter().all(Result::is_err) {
                    return Err(format!("{at}: none of {tried:?}"));
                }
            }
            "enum" if of.as_array().is_some_and(|all| all.contains(value)) => {}
            "enum" => return Err(format!("{at}: {value} is none of {of}")),
            "type" => {
                let one = [of.clone()];
                let types = of.as_array().map_or(&one[..], Vec::as_slice);
                if !types.iter().any(|t| is(value, t.as_str().unwrap_or_default())) {
                    return Err(format!("{at}: {value} is no {of}"));
                }
            }
            "properties" => described = of.as_object(),
            "additionalProperties" => {
                for (key, one) in value.as_object().into_iter().flatten() {
                    fits(one, of, root, &format!("{at}.{key}"))?;
                }
            }
            "items" => {
                for (i, one) in value.as_array().into_iter().flatten().enumerate() {
                    fits(one, of, root, &format!("{at}[{i}]"))?;
                }
            }
            other => return Err(format!("{at}: the schema has {other}")),
        }
    }
    let Some(described) = described else { return Ok(()) };
    for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        value.get(key).ok_or_else(|| format!("{at}: {key} is missing"))?;
    }
    for (key, one) in value.as_object().into_iter().flatten() {
        let of = described.get(key).ok_or_else(|| format!("{at}: {key} is not described"))?;
        fits(one, of, root, &format!("{at}.{key}"))?;
    }
    Ok(())
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn the_judge_of_schemas_judges() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let judge = |text: &str, name: &str| {
        fits(&serde_json::from_str(text).expect("it is JSON"), &schema["$defs"][name], &schema, name)
    };
    assert_eq!(judge(r#"{"exit":0,"key":"a","secret":"b","public":"c"}"#, "keygen"), Ok(()));
    for (text, why) in [
        (r#"{"exit":0,"key":"a","secret":"b"}"#, "public is missing"),
        (r#"{"exit":5,"key":"a","secret":"b","public":"c"}"#, "5 is none of"),
        (r#"{"exit":0,"key":1,"secret":"b","public":"c"}"#, "1 is no"),
        (r#"{"exit":0,"key":"a","secret":"b","public":"c","more":1}"#, "more is not described"),
    ] {
        assert!(judge(text, "keygen").is_err_and(|e| e.contains(why)), "{why}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

fn builds_and_patches() {
    let pair = Pair::make();
    let (old, new) = (path(&pair.old).to_owned(), path(&pair.folder.path().join("new")).to_owned());
    let (patch, bundle) = (path(&pair.patch), path(&pair.folder.path().join("bundle")).to_owned());
    let report = prints("diff", 0, &["diff", &old, &new, "--explain", "answer", "-o", patch]);
    assert!(report["changes"][0]["first"]["old"]["place"]["line"].is_u64(), "{report}");
    assert!(!report["explanations"].as_array().expect("a list").is_empty());
    prints("diff", 0, &["diff", &old, &new]);
    prints("diff", 3, &["diff", &old, &old]);
    // Stripped builds have findings.
    let stripped = ["old", "new"].map(|name| {
        let to = pair.folder.path().join(format!("{name}.stripped"));
        let strip = Command::new("strip").arg(pair.folder.path().join(name)).arg("-o").arg(&to).status();
        assert!(strip.is_ok_and(|s| s.success()));
        path(&to).to_owned()
    });
    let refused = prints("diff", 1, &["diff", &stripped[0], &stripped[1]]);
    assert!(!refused["findings"].as_array().expect("a list").is_empty());
    prints("inspect", 0, &["inspect", patch]);
    let code = prints("inspect", 0, &["inspect", patch, "--asm", "--old", &old]);
    assert!(code["code"][0]["rows"][0].is_object(), "{code}");
    prints("verify", 0, &["verify", patch]);
    let proof = prints("verify", 0, &["verify", patch, "--old", &old, "--new", &new]);
    assert_eq!(proof["builds"]["proven"], true);
    let faults = prints("verify", 1, &["verify", patch, "--old", &old, "--new", &old]);
    assert!(faults["builds"]["faults"][0].is_object(), "{faults}");
    prints("bundle", 0, &["bundle", patch, "-o", &bundle]);
}

fn trees() {
    let pair = Pair::make();
    let folder = |name: &str| {
        let folder = pair.folder.path().join(format!("tree.{name}"));
        std::fs::create_dir(&folder).expect("a folder can be made");
        std::fs::copy(pair.folder.path().join(name), folder.join("changed")).expect("it can be copied");
        std::fs::copy(&pair.old, folder.join("same")).expect("it can be copied");
        std::fs::copy(&pair.old, folder.join(format!("only.{name}"))).expect("it can be copied");
        let whole = std::fs::read(pair.folder.path().join(name)).expect("it can be read");
        std::fs::write(folder.join("broken"), &whole[..whole.len() / 2]).expect("it can be written");
        path(&folder).to_owned()
    };
    let (old, new) = (folder("old"), folder("new"));
    let report = prints("diff-tree", 2, &["diff", &old, &new]);
    let mut results: Vec<&str> =
        report["files"].as_array().expect("a list").iter().filter_map(|f| f["result"].as_str()).collect();
    results.sort_unstable();
    assert_eq!(results, ["identical", "only-new", "only-old", "patch", "unreadable"]);
}

fn keys_and_codes() {
    let pair = Pair::make();
    let key = path(&pair.folder.path().join("key")).to_owned();
    let made = prints("keygen", 0, &["keygen", &key, "--no-password"]);
    let (secret, public) = (made["secret"].as_str().expect("a text"), made["public"].as_str().expect("a text"));
    prints("sign", 0, &["sign", path(&pair.patch), "--key", secret]);
    let signed = prints("verify", 0, &["verify", path(&pair.patch), "--trust", public]);
    assert_eq!(signed["signature"]["trusted"], true);
    prints("explain", 0, &["explain"]);
    prints("explain", 0, &["explain", "HP0402"]);
}

fn processes() {
    let pair = Pair::make();
    let target = pair.start();
    let (pid, patch) = (target.pid().to_string(), path(&pair.patch));
    prints("targets", 0, &["apply", patch, "--pid", &pid, "--dry-run"]);
    let applied = prints("targets", 0, &["apply", patch, "--pid", &pid]);
    assert!(applied["targets"][0]["measured"]["functions"].is_u64(), "{applied}");
    prints("targets", 3, &["apply", patch, "--pid", &pid]);
    let status = prints("status", 0, &["status", "--pid", &pid]);
    assert!(status["processes"][0]["patches"][0]["functions"][0].is_object(), "{status}");
    prints("symbols", 0, &["symbols", "--pid", &pid, "--patch", patch]);
    prints("targets", 0, &["revert", patch, "--pid", &pid]);
    prints("targets", 3, &["revert", patch, "--pid", &pid]);
    prints("status", 3, &["status", "--pid", &pid]);
    let back = prints("targets", 1, &["apply", patch, "--pid", &pid, "--health", "false"]);
    assert_eq!(back["targets"][1]["result"], "taken-back", "{back}");
    let nobody = prints("targets", 3, &["apply", patch, "--exe", "/nowhere/at-all"]);
    assert!(nobody["notes"][0].as_str().is_some_and(|note| note.contains("no process runs")), "{nobody}");
    // A host that trusts keys, and a patch without a signature.
    const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/keys/plain.pub");
    prints("failed", 1, &["apply", patch, "--pid", &pid, "--trust", KEY]);
    prints("failed", 1, &["verify", patch, "--trust", KEY]);
}

/// `hp watch` prints a line for each event.
fn events() {
    let pair = Pair::make();
    let target = pair.start();
    let folder = pair.folder.path().join("watched");
    std::fs::create_dir(&folder).expect("a folder can be made");
    std::fs::copy(&pair.patch, folder.join("fix.hpatch")).expect("it can be copied");
    std::fs::write(folder.join("odd.hpatch"), "no patch").expect("it can be written");
    let watch = ["watch", path(&folder), "--poll", "100ms"];
    let mut watcher = Running::start(Command::new(HP).args(watch).stdout(Stdio::piped()));
    let lines = BufReader::new(watcher.child.stdout.take().expect("stdout is a pipe")).lines();
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let mut wanted = BTreeSet::from(["watching", "file", "file-refused", "process"].map(str::to_owned));
    // The watchdog of the tests ends what waits for ever.
    for line in lines {
        let line = line.expect("it is text");
        let event: Value = serde_json::from_str(&line).expect("it is JSON");
        fits(&event, &schema["$defs"]["event"], &schema, "event").unwrap_or_else(|why| panic!("{why}: {line}"));
        wanted.remove(event["event"].as_str().unwrap_or_default());
        if wanted.is_empty() {
            break;
        }
    }
    assert!(wanted.is_empty() && target.process.lives(), "{wanted:?}");
}

fn failures() {
    prints("failed", 2, &["inspect", "/nowhere/fix.hpatch"]);
    prints("failed", 2, &["diff", "/nowhere/old", "/nowhere/new"]);
    prints("failed", 2, &["explain", "HP9999"]);
}
