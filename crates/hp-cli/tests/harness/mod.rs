//! From a source file with directives to a checked live process.

pub(crate) mod build;
mod directives;
pub(crate) mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use directives::Case;
use directives::Verdict;
use process::{Target, run};
use serde_json::Value;

/// How far the tests go, from `HP_FIXTURES`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Oracle,
    Diff,
    Live,
}

impl Depth {
    fn from_environment() -> Depth {
        match std::env::var("HP_FIXTURES").as_deref() {
            Ok("oracle") => Depth::Oracle,
            Ok("diff") => Depth::Diff,
            _ => Depth::Live,
        }
    }
}

/// Every case under `folder`, ordered by file name.
pub(crate) fn cases(folder: &Path) -> Result<Vec<Case>, String> {
    let folder = folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display()))?;
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "c" || e == "cc" || e == "rs"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        cases.append(&mut directives::parse(&file, &text)?);
    }
    Ok(cases)
}

/// One case, from the compiler to the last revert.
pub(crate) fn check(case: &Case) -> Result<(), String> {
    let mut folder = tempfile::Builder::new().prefix("hp-fixture-").tempdir().map_err(|e| e.to_string())?;
    let keep = std::env::var_os("HP_FIXTURES_KEEP").is_some_and(|v| v == "1");
    folder.disable_cleanup(keep);
    let root = folder.path().canonicalize().map_err(|e| e.to_string())?;
    if keep {
        eprintln!("{}: {}", case.name, root.display());
    }
    let depth = Depth::from_environment();
    let old = case.compile(&root, "old")?;
    let new = case.compile(&root, "new")?;
    let mut targets = start(&old.programs, &case.args)?;
    for target in &mut targets {
        target.probe(&case.before, "before the patch")?;
    }
    if let Some(fresh) = &case.fresh {
        for target in &mut start(&new.programs, &case.args)? {
            target.probe(fresh, "the new build, started fresh")?;
        }
    }
    if depth == Depth::Oracle {
        return Ok(());
    }
    let image =
        |build: &build::Built| if case.patch_library { build.library.clone() } else { build.programs[0].clone() };
    let (old_image, new_image) = (image(&old), image(&new));
    let patch = root.join("fix.hpatch");
    let changed = diff(case, &old_image, &new_image, &patch)?;
    if case.verdict != Verdict::Patch {
        return if patch.exists() { Err("a patch file was written all the same".into()) } else { Ok(()) };
    }
    readable(&patch)?;
    judged(&patch, &old_image, &new_image)?;
    if depth == Depth::Diff { Ok(()) } else { live(case, &changed, &mut targets, &old_image, &patch) }
}

fn start(programs: &[PathBuf], args: &[String]) -> Result<Vec<Target>, String> {
    programs.iter().map(|program| Target::start(program, args)).collect()
}

fn hp() -> Command {
    Command::new(env!("CARGO_BIN_EXE_hp"))
}

/// Runs the diff and compares what it reports with the directives. Gives the changed functions.
fn diff(case: &Case, old: &Path, new: &Path, patch: &Path) -> Result<Vec<String>, String> {
    let (code, what) = match case.verdict {
        Verdict::Patch => (0, "hp diff should make a patch"),
        Verdict::Refuse(_) => (1, "hp diff should refuse"),
        Verdict::Nothing => (3, "hp diff should find nothing to do"),
    };
    let done = run(hp().arg("diff").args([old, new]).arg("-o").arg(patch).arg("--json"))?.expect(code, what)?;
    let report: Value =
        serde_json::from_str(&done.stdout).map_err(|e| format!("hp diff --json: {e}\n{}", done.story()))?;
    let errors = texts(&report["findings"], "code", |f| f["level"] == "error" && f["accepted"] != true);
    if let Verdict::Refuse(code) = &case.verdict {
        same("error-level findings", std::slice::from_ref(code), &errors, &done.story())?;
        return Ok(Vec::new());
    }
    same("error-level findings", &[], &errors, &done.story())?;
    // Another compiler makes other functions of the same source.
    if directives::recast().is_some() {
        return Ok(reported(&report, "changed"));
    }
    for (kind, expected) in [("changed", &case.changed), ("added", &case.added), ("removed", &case.removed)] {
        let names = reported(&report, kind);
        same(&format!("functions reported as {kind}"), expected, &names, &done.story())?;
    }
    Ok(reported(&report, "changed"))
}

fn reported(report: &Value, kind: &str) -> Vec<String> {
    plain(texts(&report["changes"], "name", |c| c["kind"] == kind))
}

/// The sorted distinct `field`s of those members of `array` that `keep` holds true for.
pub(crate) fn texts(array: &Value, field: &str, keep: impl Fn(&Value) -> bool) -> Vec<String> {
    let members = array.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut texts: Vec<String> =
        members.iter().filter(|m| keep(m)).filter_map(|m| Some(m[field].as_str()?.to_owned())).collect();
    texts.sort();
    texts.dedup();
    texts
}

/// Names of Rust as paths: no directive can know their hashes.
fn plain(names: Vec<String>) -> Vec<String> {
    let rust = |name: &String| name.starts_with("_R") || name.starts_with("_ZN") && name.contains("17h");
    let mut names: Vec<String> =
        names.into_iter().map(|name| if rust(&name) { hp_diff::readable(&name) } else { name }).collect();
    names.sort();
    names.dedup();
    names
}

fn same(what: &str, expected: &[String], got: &[String], story: &str) -> Result<(), String> {
    if expected == got {
        return Ok(());
    }
    Err(format!("{what}:\n  expected: {}\n  got:      {}\n{story}", expected.join(" "), got.join(" ")))
}

/// The standard tools read the patch without a complaint.
fn readable(patch: &Path) -> Result<(), String> {
    for (tool, flags) in [("readelf", "-aW"), ("objdump", "-dr")] {
        let mut done = run(Command::new(tool).arg(flags).arg(patch))?;
        if done.code != Some(0) || !done.stderr.trim().is_empty() {
            done.stdout.clear();
            return Err(format!("{tool} complains about the patch\n{}", done.story()));
        }
    }
    Ok(())
}

/// The independent judge proves the patch.
fn judged(patch: &Path, old: &Path, new: &Path) -> Result<(), String> {
    run(hp().arg("verify").arg(patch).arg("--old").arg(old).arg("--new").arg(new))?.expect(0, "hp verify")?;
    Ok(())
}

/// Applies and reverts, and asks the programs what they do.
fn live(case: &Case, changed: &[String], targets: &mut [Target], image: &Path, patch: &Path) -> Result<(), String> {
    let code: Vec<Vec<u8>> = targets.iter().map(|t| t.code(image)).collect::<Result<_, _>>()?;
    let mut original: Vec<String> = targets.iter().map(Target::maps).collect::<Result<_, _>>()?;
    for cycle in 1..=case.cycles {
        let compare = cycle == 1 || !case.stateful;
        command("apply", cycle, patch, targets)?;
        for target in &mut *targets {
            if compare {
                target.probe(&case.after, &format!("patched, cycle {cycle}"))?;
            } else {
                target.ask("?").map_err(|e| format!("patched, cycle {cycle}: {e}"))?;
            }
        }
        if cycle == 1 {
            listed(changed, targets)?;
        }
        let report = command("revert", cycle, patch, targets)?;
        if let Some(why) = &case.kept {
            if !report.contains(why.as_str()) {
                return Err(format!("revert {cycle} does not say that memory stays because `{why}`:\n{report}"));
            }
            // It stays from the first revert on, and there is never more of it.
            if cycle == 1 {
                original = targets.iter().map(Target::maps).collect::<Result<_, _>>()?;
            }
        }
        for (index, target) in targets.iter_mut().enumerate() {
            if compare {
                target.probe(&case.reverted, &format!("reverted, cycle {cycle}"))?;
            } else {
                target.ask("?").map_err(|e| format!("reverted, cycle {cycle}: {e}"))?;
            }
            restored(&code[index], &target.code(image)?, cycle)?;
            unmapped(&original[index], &target.maps()?).map_err(|e| format!("revert {cycle}: {e}"))?;
        }
    }
    Ok(())
}

/// The mappings are those of before the first apply, or of after the first revert if memory stays.
fn unmapped(before: &str, now: &str) -> Result<(), String> {
    if before == now { Ok(()) } else { Err(format!("the mappings are not those of before:\n{}", unlike(before, now))) }
}

/// Applies or reverts in the one program, or by `--all` where there are several; gives the report.
fn command(verb: &str, cycle: u32, patch: &Path, targets: &mut [Target]) -> Result<String, String> {
    let mut command = hp();
    command.arg(verb).arg(patch);
    match targets {
        [one] => command.args(["--pid", &one.pid().to_string()]),
        _ => command.arg("--all"),
    };
    run(&mut command)?.expect(0, &format!("hp {verb}, cycle {cycle}")).map(|done| done.stdout).map_err(|error| {
        let ends: Vec<String> = targets.iter_mut().filter_map(Target::ended).collect();
        if ends.is_empty() { error + "  the program runs on\n" } else { error + &ends.join("\n") }
    })
}

/// `hp status` shows the patch in each process, in effect and undamaged, with every changed function.
fn listed(changed: &[String], targets: &[Target]) -> Result<(), String> {
    for target in targets {
        let pid = target.pid().to_string();
        let done = run(hp().args(["status", "--json", "--pid", &pid]))?.expect(0, "hp status of a patched process")?;
        let report: Value =
            serde_json::from_str(&done.stdout).map_err(|e| format!("hp status: {e}\n{}", done.story()))?;
        let patch = &report["processes"][0]["patches"][0];
        if patch["active"] != true || patch["damage"].as_array().is_none_or(|damage| !damage.is_empty()) {
            return Err(format!("hp status does not show a patch in effect, undamaged\n{}", done.story()));
        }
        let names = plain(texts(&patch["functions"], "name", |_| true));
        same("functions that hp status lists", changed, &names, &done.story())?;
    }
    Ok(())
}

pub(crate) fn restored(before: &[u8], now: &[u8], cycle: u32) -> Result<(), String> {
    if before.len() != now.len() {
        return Err(format!("revert {cycle}: the image had {} bytes of code, has {}", before.len(), now.len()));
    }
    match before.iter().zip(now).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => {
            let end = (at + 16).min(now.len());
            Err(format!(
                "revert {cycle}: code not restored at offset {at:#x}: was {:02x?}, is {:02x?}",
                &before[at..end],
                &now[at..end]
            ))
        }
    }
}

/// The lines that only one of two texts has.
fn unlike(first: &str, second: &str) -> String {
    let only = |a: &str, b: &str, mark: &str| -> String {
        a.lines().filter(|line| !b.lines().any(|l| l == *line)).map(|line| format!("  {mark} {line}\n")).collect()
    };
    only(first, second, "-") + &only(second, first, "+")
}
