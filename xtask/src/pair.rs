//! Building the pairs of a recipe: NEW once, then OLD for each fix, all in one tree.

use crate::again::{self, Notes, Variant};
use crate::cache::Cache;
use crate::recipe::{Fix, Recipe, hex};
use crate::{install, source};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Counts up when the procedure below changes, so that kept pairs are built again.
const PROCEDURE: u32 = 2;

/// What became of a recipe.
pub(crate) enum Outcome {
    /// All its pairs are in the cache.
    Ready,
    /// This machine cannot have them; why, in words.
    Unavailable(String),
}

/// Makes sure that the pairs of `recipe` are in the cache.
pub(crate) fn build(cache: &Cache, recipe: &Recipe) -> Result<Outcome> {
    let _lock = cache.lock()?;
    let stamp = stamp(recipe);
    let again = again::folder(&cache.pairs(), recipe);
    let built_again = recipe.again.is_empty() || is_built(&again, &stamp);
    let fixes_built = recipe.fixes.iter().all(|fix| is_built(&cache.pairs().join(&fix.case), &stamp));
    if fixes_built && built_again && have_tools(cache, recipe) {
        return Ok(Outcome::Ready);
    }
    let mut needs = vec!["dpkg-dev", "gcc", "make", "patch", "libc6-dev"];
    needs.extend(recipe.needs.iter().map(String::as_str));
    if let Err(reason) = install::packages(&needs) {
        return Ok(Outcome::Unavailable(reason));
    }
    let start = Instant::now();
    eprintln!("xtask: building {} in {} versions", recipe.package, recipe.fixes.len() + 1);
    let mut tree = Tree::unpack(cache, recipe)?;
    if let Some(fix) = recipe.fixes.iter().find(|fix| !tree.patch_file(fix).exists()) {
        let version = &tree.version;
        return Ok(Outcome::Unavailable(format!("{} {version} carries no {}", recipe.package, fix.patch)));
    }
    let built = tree.root.join(&recipe.binary);
    let notes = Notes::new(cache.folder("trees")?.join(format!("{}.notes", recipe.package)), file_name(&built)?)?;
    tree.put_before_path(notes.folder())?;
    tree.script(&recipe.configure)?;
    tree.script(&recipe.make)?;
    let new = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    for tool in &recipe.tools {
        copy_tool(&tree.root.join(tool), &cache.pairs().join("tools"))?;
    }
    let _ = fs::remove_dir_all(&again);
    if !recipe.again.is_empty() {
        write_program(&again.join("first"), file_name(&built)?, &new)?;
    }
    for variant in recipe.again.iter().filter(|variant| variant.only_links()) {
        let folder = again.join(variant.name());
        fs::create_dir_all(&folder)?;
        notes.link(&tree, *variant, &folder.join(file_name(&built)?))?;
    }
    for fix in &recipe.fixes {
        let folder = cache.pairs().join(&fix.case);
        let _ = fs::remove_dir_all(&folder);
        write_program(&folder.join("new"), file_name(&built)?, &new)?;
        let old = tree.without(fix, || {
            tree.script(&recipe.make)?;
            Ok(fs::read(&built)?)
        })?;
        if old == new {
            bail!("{}: the fix makes no difference to {}", fix.case, recipe.binary);
        }
        write_program(&folder.join("old"), file_name(&built)?, &old)?;
        fs::write(folder.join("stamp"), &stamp)?;
    }
    for variant in recipe.again.iter().filter(|variant| !variant.only_links()) {
        tree.unpack_anew(cache, recipe)?;
        if *variant == Variant::BlankLines {
            again::add_blank_lines(&tree.root)?;
        }
        tree.script(&recipe.configure)?;
        tree.script(&recipe.make)?;
        write_program(&again.join(variant.name()), file_name(&built)?, &fs::read(&built)?)?;
    }
    if !recipe.again.is_empty() {
        fs::write(again.join("stamp"), &stamp)?;
    }
    fs::remove_dir_all(&tree.root)?;
    fs::remove_dir_all(notes.folder())?;
    eprintln!("xtask: {} {} built in {} s", recipe.package, tree.version, start.elapsed().as_secs());
    Ok(Outcome::Ready)
}

/// What a kept pair was made from: recipe, procedure and compiler.
fn stamp(recipe: &Recipe) -> String {
    let compiler = Command::new("gcc").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let mut digest = Sha256::new();
    digest.update(&recipe.digest);
    digest.update(PROCEDURE.to_le_bytes());
    digest.update(&compiler);
    hex(&digest.finalize())
}

fn is_built(folder: &Path, stamp: &str) -> bool {
    // Written last, so a pair that has it is whole.
    fs::read_to_string(folder.join("stamp")).is_ok_and(|kept| kept == stamp)
}

fn have_tools(cache: &Cache, recipe: &Recipe) -> bool {
    let tools = cache.pairs().join("tools");
    recipe.tools.iter().all(|tool| Path::new(tool).file_name().is_some_and(|name| tools.join(name).exists()))
}

/// Copies a program, or a folder with all that is in it.
fn copy_tool(from: &Path, folder: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(folder)?;
        let copied = Command::new("cp").args(["-rT", "--"]).arg(from).arg(folder.join(file_name(from)?)).status();
        return match copied.context("cannot run cp")?.success() {
            true => Ok(()),
            false => bail!("cannot copy {}", from.display()),
        };
    }
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write_program(folder, file_name(from)?, &bytes)
}

/// Writes an executable file; one of that name that runs at the moment stays as it is.
fn write_program(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(folder)?;
    let (path, part) = (folder.join(name), folder.join(format!(".{name}.part")));
    fs::write(&part, bytes)?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
    fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).context("a program needs a name")
}

/// An unpacked source package and the environment that it is built in.
pub(crate) struct Tree {
    root: PathBuf,
    version: String,
    environment: BTreeMap<String, String>,
    log: PathBuf,
}

impl Tree {
    fn unpack(cache: &Cache, recipe: &Recipe) -> Result<Tree> {
        let trees = cache.folder("trees")?;
        let root = trees.join(&recipe.package);
        let log = trees.join(format!("{}.log", recipe.package));
        File::create(&log)?;
        let mut tree = Tree { root, version: String::new(), environment: recipe.environment.clone(), log };
        tree.unpack_anew(cache, recipe)?;
        tree.version = tree.ask("dpkg-parsechangelog", &["-SVersion"])?;
        tree.set_environment(recipe)?;
        Ok(tree)
    }

    /// The source package as it is, whatever has become of the tree.
    fn unpack_anew(&self, cache: &Cache, recipe: &Recipe) -> Result<()> {
        let dsc = source::fetch(cache, &recipe.package, &recipe.version)?;
        let _ = fs::remove_dir_all(&self.root);
        // `/` has no parent, and no tree is there.
        let trees = self.root.parent().unwrap_or(&self.root);
        let mut unpack = Command::new("dpkg-source");
        unpack.args(["--no-check", "-q", "-x"]).arg(&dsc).arg(&self.root).current_dir(trees).stdin(Stdio::null());
        self.logged(&mut unpack, "dpkg-source -x")
    }

    /// Programs in this folder are taken before others of their name.
    fn put_before_path(&mut self, folder: &Path) -> Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let all = std::env::join_paths(std::iter::once(folder.to_path_buf()).chain(std::env::split_paths(&path)))?;
        self.environment.insert("PATH".to_string(), all.into_string().ok().context("PATH is no text")?);
        Ok(())
    }

    /// The distribution's flags for this package, and a fixed date.
    fn set_environment(&mut self, recipe: &Recipe) -> Result<()> {
        let add = |tree: &mut Tree, name: &str, value: String| tree.environment.insert(name.to_string(), value);
        let date = self.ask("dpkg-parsechangelog", &["-STimestamp"])?;
        add(self, "SOURCE_DATE_EPOCH", date);
        let flags = ["CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS"];
        let asked = flags.map(|name| self.ask("dpkg-buildflags", &["--get", name]));
        for (name, value) in flags.iter().zip(asked) {
            let value = value?;
            if !recipe.environment.contains_key(*name) {
                add(self, name, value);
            }
        }
        let jobs = std::thread::available_parallelism().map_or(2, usize::from);
        add(self, "JOBS", jobs.to_string());
        add(self, "LC_ALL", "C.UTF-8".to_string());
        add(self, "TZ", "UTC".to_string());
        Ok(())
    }

    fn patch_file(&self, fix: &Fix) -> PathBuf {
        self.root.join("debian/patches").join(&fix.patch)
    }

    /// Runs `work` while the tree lacks `fix`, and puts the files back, whatever comes of it.
    fn without<T>(&self, fix: &Fix, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let paths: Vec<PathBuf> = fix.files.iter().map(|file| self.root.join(file)).collect();
        let kept = paths.iter().map(|path| Ok(fs::read(path)?)).collect::<Result<Vec<_>>>()?;
        let result = self.reverse(fix).and_then(|()| work());
        for (path, bytes) in paths.iter().zip(&kept) {
            fs::write(path, bytes)?;
        }
        result.with_context(|| fix.case.clone())
    }

    fn reverse(&self, fix: &Fix) -> Result<()> {
        let text = fs::read(self.patch_file(fix))?;
        let part = only_files(&String::from_utf8_lossy(&text), &fix.files);
        let mut patch = self.command("patch");
        patch.args(["-R", "-p1", "--force", "--quiet", "--no-backup-if-mismatch", "-r", "-"]);
        let mut child = patch.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run patch")?;
        child.stdin.take().context("no pipe to patch")?.write_all(part.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("cannot take back {}: {}", fix.patch, String::from_utf8_lossy(&output.stdout).trim());
        }
        Ok(())
    }

    fn script(&self, lines: &[String]) -> Result<()> {
        let mut bash = self.command("bash");
        bash.args(["-e", "-c", &lines.join("\n")]);
        self.logged(&mut bash, lines.last().map_or("", String::as_str))
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        for name in ["MAKEFLAGS", "MFLAGS", "CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS"] {
            command.env_remove(name);
        }
        command.envs(&self.environment);
        command
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
        if !output.status.success() {
            bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_string())
    }

    /// Runs a command with its output in the log; a failure shows the log's end.
    pub(crate) fn logged(&self, command: &mut Command, what: &str) -> Result<()> {
        let log = File::options().append(true).open(&self.log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if !command.status().with_context(|| format!("cannot run {what}"))?.success() {
            let text = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(15)..].join("\n");
            bail!("{what} failed; the end of {}:\n{end}", self.log.display());
        }
        Ok(())
    }
}

/// The parts of a unified diff that are about `files` (paths without their first component).
fn only_files(patch: &str, files: &[String]) -> String {
    let mut out = String::new();
    let mut keep = false;
    let mut lines = patch.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("--- ") && lines.peek().is_some_and(|next| next.starts_with("+++ ")) {
            keep = lines.peek().is_some_and(|next| files.iter().any(|file| is_named(next, file)));
        } else if line.starts_with("diff ") {
            keep = false;
        }
        if keep {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// True if `+++ TOP/PATH[<tab>date]` names `file`.
fn is_named(header: &str, file: &str) -> bool {
    let path = header.trim_start_matches("+++ ").split('\t').next().unwrap_or("").trim();
    path.split_once('/').is_some_and(|(_, rest)| rest == file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_only_the_parts_of_named_files() {
        let patch = "Subject: x\n--- a/one.c\n+++ b/one.c\n@@ -1 +1 @@\n-a\n+b\n\
                     --- a/tests/t\n+++ b/tests/t\n@@ -1 +1 @@\n-c\n+d\n--- a/two.c\t2020\n+++ b/two.c\t2020\n@@ -1 +1 @@\n-e\n+f\n";
        let kept = only_files(patch, &["one.c".to_string(), "two.c".to_string()]);
        assert!(kept.contains("+b") && kept.contains("+f") && !kept.contains("+d"), "{kept}");
    }
}
