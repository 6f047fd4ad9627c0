//! `cargo xtask bench diff`: `hp diff` beside one decode of the same code, `objdump -d` twice with `diff`, and `bsdiff`.
//!
//! All of it in one run, on the same files, so that ratios mean something on any machine. See `docs/BENCHMARKS.md`.

use super::inputs::{self, Pair};
use super::measure::{Cost, best, run as measured};
use crate::cache::Cache;
use crate::{cargo, install, root, succeeds};
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, SectionFlags, elf};
use std::path::Path;
use std::process::Command;

/// The other programs take minutes and gigabytes for more than this, so it is left out unless all is asked for.
const OTHERS_UP_TO: u64 = 12 << 20;
/// Runs of which the cheapest counts.
const RUNS: u32 = 3;

/// Measures the pairs whose names contain one of the words, and prints a table.
pub(crate) fn run(cache: &Cache, words: &[&str]) -> Result<bool> {
    let full = words.contains(&"--full");
    let words: Vec<&str> = words.iter().copied().filter(|w| *w != "--full").collect();
    if let Some(option) = words.iter().find(|w| w.starts_with('-')) {
        bail!("unknown option {option}\nusage: cargo xtask {}", super::USAGE);
    }
    for (tool, package) in [("objdump", "binutils"), ("diff", "diffutils"), ("bsdiff", "bsdiff")] {
        if !install::on_path(tool)
            && let Err(why) = install::packages(&[package])
        {
            eprintln!("xtask: without {tool}: {why}");
        }
    }
    let build = [
        "build",
        "--quiet",
        "--release",
        "-p",
        "hp-cli",
        "-p",
        "hp-diff",
        "--bin",
        "hp",
        "--example",
        "decode",
        "--example",
        "changed_functions",
    ];
    if !succeeds(&mut cargo(&build))? {
        bail!("cargo could not build hp");
    }
    let pairs = inputs::pairs(cache, &words)?;
    println!("{}", HEAD.join(" | "));
    println!("{}", HEAD.map(|h| "-".repeat(h.len())).join("-|-"));
    let mut rows = Vec::new();
    for pair in &pairs {
        match row(cache, pair, full) {
            Ok(row) => {
                println!("{}", row.cells().join(" | "));
                rows.push(row);
            }
            Err(why) => eprintln!("xtask: {}: {why:#}", pair.name),
        }
    }
    println!();
    for pair in &pairs {
        println!("{}: {}", pair.name, pair.what);
    }
    Ok(!rows.is_empty())
}

const HEAD: [&str; 13] = [
    "pair            ",
    "MB each",
    "  D (s)",
    "diff (s)",
    "diff / D",
    "ms per MB",
    "hp (s)",
    "cores",
    "peak (MiB)",
    "of budget",
    "exit",
    "objdump+diff / hp",
    "bsdiff / hp",
];

struct Row {
    name: String,
    /// Loaded bytes of both files.
    loaded: u64,
    decode: Cost,
    /// The comparison alone, without the judge.
    diff: Cost,
    hp: Cost,
    objdump: Option<Cost>,
    bsdiff: Option<Cost>,
}

impl Row {
    fn cells(&self) -> [String; 13] {
        let seconds = |c: &Cost| c.cpu.as_secs_f64();
        let (diff, hp, megabytes) = (seconds(&self.diff), seconds(&self.hp), self.loaded as f64 / 2e6);
        let budget = 2 * self.loaded + (16 << 20);
        let times = |c: &Option<Cost>| c.map_or("-".into(), |c| format!("{:.1}", seconds(&c) / hp));
        let cells = [
            self.name.clone(),
            format!("{megabytes:.1}"),
            format!("{:.2}", seconds(&self.decode)),
            format!("{diff:.2}"),
            format!("{:.2}", diff / seconds(&self.decode)),
            format!("{:.1}", diff * 1e3 / (2.0 * megabytes)),
            format!("{hp:.2}"),
            format!("{:.1}", diff / self.diff.wall.as_secs_f64()),
            (self.hp.peak >> 20).to_string(),
            format!("{:.0} %", self.hp.peak as f64 * 100.0 / budget as f64),
            self.hp.exit.to_string(),
            times(&self.objdump),
            times(&self.bsdiff),
        ];
        let mut padded = cells.into_iter().zip(HEAD).map(|(cell, head)| (cell, head.len()));
        std::array::from_fn(|i| match (i, padded.next()) {
            (0, Some((cell, width))) => format!("{cell:<width$}"),
            (_, Some((cell, width))) => format!("{cell:>width$}"),
            (_, None) => String::new(),
        })
    }
}

fn row(cache: &Cache, pair: &Pair, full: bool) -> Result<Row> {
    let out = cache.folder("bench/out")?;
    let programs = root().join("target/release");
    let both = |program: &Path, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).arg(&pair.old).arg(&pair.new);
        command
    };
    let size = pair.old.metadata()?.len();
    let others = full || size <= OTHERS_UP_TO;
    let decode = best(RUNS, || both(&programs.join("examples/decode"), &[]))?;
    let diff = best(RUNS, || both(&programs.join("examples/changed_functions"), &[]))?;
    let hp = best(RUNS, || {
        // Stripped builds describe no types; that is no reason to measure a refusal.
        let mut hp = both(&programs.join("hp"), &["diff", "--json", "--allow", "HP0402"]);
        hp.arg("-o").arg(out.join("patch"));
        hp
    })?;
    if hp.exit == 2 {
        bail!("hp diff could not read the pair");
    }
    let script =
        "objdump -d \"$1\" > \"$3/a\" && objdump -d \"$2\" > \"$3/b\"; diff \"$3/a\" \"$3/b\"; rm \"$3/a\" \"$3/b\"";
    let objdump = (others && install::on_path("objdump"))
        .then(|| measured(both(Path::new("sh"), &["-c", script, "sh"]).arg(&out)))
        .transpose()?;
    let bsdiff = (others && install::on_path("bsdiff"))
        .then(|| measured(both(Path::new("bsdiff"), &[]).arg(out.join("bsdiff"))))
        .transpose()?;
    let loaded = loaded(&pair.old)? + loaded(&pair.new)?;
    Ok(Row { name: pair.name.clone(), loaded, decode, diff, hp, objdump, bsdiff })
}

/// Bytes of the file's sections that are loaded.
fn loaded(path: &Path) -> Result<u64> {
    let data = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&data[..])?;
    let is_loaded = |flags| matches!(flags, SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(elf::SHF_ALLOC));
    Ok(file.sections().filter(|s| is_loaded(s.flags())).filter_map(|s| s.file_range()).map(|r| r.1).sum())
}
