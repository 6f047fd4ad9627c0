//! The same program once more: built again, or linked again, with nothing changed that matters. Between such builds and the
//! first one no tool may find a changed function.
//!
//! How a program is linked is what its own build says: compilers of ours stand first in `PATH`, write down the command
//! that makes the program, and hand everything on to the real ones.

use crate::pair::Tree;
use crate::recipe::Recipe;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Variant {
    /// The same link.
    Linked,
    /// The objects in the opposite order.
    Reversed,
    /// An object with functions and data of its own before all others.
    InFront,
    /// Everything, in a fresh tree of the same name.
    Rebuilt,
    /// Everything, with three blank lines at the top of every source file.
    BlankLines,
}

impl Variant {
    /// The folder that it is kept in.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::Linked => "linked",
            Variant::Reversed => "reversed",
            Variant::InFront => "in-front",
            Variant::Rebuilt => "rebuilt",
            Variant::BlankLines => "blank-lines",
        }
    }

    /// True if linking is all that it takes.
    pub(crate) fn only_links(self) -> bool {
        matches!(self, Variant::Linked | Variant::Reversed | Variant::InFront)
    }
}

/// The object that [`Variant::InFront`] adds: two functions, and data that moves what follows by odd amounts.
const IN_FRONT: &str = r#"#include <stdio.h>
int hp_in_front_calls = 3;
static const char *const texts[] = {"in front", "in front of all %d\n"};
__attribute__((noinline, used)) int hp_in_front(int n) {
    static int kept;
    kept += n;
    printf(texts[1], kept);
    return puts(texts[n & 1]) + hp_in_front_calls;
}
__attribute__((noinline, used)) long hp_in_front_too(long n) { return n * 77 + hp_in_front((int)n); }
"#;

/// Names that builds call compilers by.
const COMPILERS: [&str; 4] = ["cc", "gcc", "c++", "g++"];

/// A folder with compilers that write down how a program is linked.
pub(crate) struct Notes {
    folder: PathBuf,
    program: String,
}

impl Notes {
    /// `folder` is made anew.
    pub(crate) fn new(folder: PathBuf, program: &str) -> Result<Notes> {
        use std::os::unix::fs::PermissionsExt;
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let notes = Notes { folder, program: program.to_string() };
        // An argument that names the program follows `-o` where it is linked.
        let script = format!(
            "#!/bin/bash\nname=${{0##*/}}; out=; before=\nfor a in \"$@\"; do [ \"$before\" = -o ] && out=${{a##*/}}; before=$a; done\n\
             PATH=${{PATH#*:}}\n[ \"$out\" = '{}' ] && printf '%s\\0' \"$PWD\" \"$name\" \"$@\" > '{}'\nexec \"$name\" \"$@\"\n",
            notes.program,
            notes.file().display()
        );
        for compiler in COMPILERS {
            let path = notes.folder.join(compiler);
            fs::write(&path, &script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(notes)
    }

    /// What goes before the caller's `PATH`.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self) -> PathBuf {
        self.folder.join("link")
    }

    /// Links the program anew, to `out`.
    pub(crate) fn link(&self, tree: &Tree, variant: Variant, out: &Path) -> Result<()> {
        let text = fs::read(self.file()).with_context(|| format!("nothing was seen to link {}", self.program))?;
        let words = String::from_utf8(text)?;
        let mut words: Vec<String> = words.trim_end_matches('\0').split('\0').map(str::to_string).collect();
        let folder = words.remove(0);
        let place = words.iter().position(|word| word == "-o").context("a link without -o")? + 1;
        let is_object = |n: usize| n != place && words[n].ends_with(".o");
        let objects: Vec<usize> = (1..words.len()).filter(|n| is_object(*n)).collect();
        let Some(&first) = objects.first() else { bail!("{} is linked of no objects", self.program) };
        let changed: Vec<String> = match variant {
            Variant::Reversed => {
                let mut changed = words.clone();
                objects.iter().zip(objects.iter().rev()).for_each(|(to, from)| changed[*to] = words[*from].clone());
                changed
            }
            Variant::InFront => {
                let object = self.object(tree)?.display().to_string();
                [&words[..first], &[object], &words[first..]].concat()
            }
            _ => words.clone(),
        };
        let output = |word: &String| if *word == words[place] { out.display().to_string() } else { word.clone() };
        let changed: Vec<String> = changed.iter().map(output).collect();
        let mut command = tree.command(&changed[0]);
        // The real compiler, or the note would be of this link.
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        tree.logged(command.args(&changed[1..]).current_dir(folder), "linking again")
    }

    fn object(&self, tree: &Tree) -> Result<PathBuf> {
        let (source, object) = (self.folder.join("in_front.c"), self.folder.join("in_front.o"));
        fs::write(&source, IN_FRONT)?;
        let mut compile = Command::new("gcc");
        compile.args(["-g", "-O2", "-fPIC", "-c"]).arg(&source).arg("-o").arg(&object);
        tree.logged(&mut compile, "gcc")?;
        Ok(object)
    }
}

/// Puts blank lines at the top of every source file.
pub(crate) fn add_blank_lines(folder: &Path) -> Result<()> {
    const SOURCES: [&str; 7] = ["c", "h", "cc", "hh", "cpp", "hpp", "cxx"];
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            add_blank_lines(&path)?;
        } else if kind.is_file() && path.extension().and_then(|e| e.to_str()).is_some_and(|e| SOURCES.contains(&e)) {
            let text = fs::read(&path)?;
            fs::write(&path, [b"\n\n\n", &text[..]].concat())?;
        }
    }
    Ok(())
}

/// Where the builds of `recipe` that change nothing are kept.
pub(crate) fn folder(pairs: &Path, recipe: &Recipe) -> PathBuf {
    pairs.join("again").join(&recipe.package)
}
