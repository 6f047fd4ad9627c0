//! Programs that nobody thought of: from a seed a program of C or C++, its next version by a few random edits, and a way to build both.
//!
//! The oracle is the new build itself, started fresh: the patched process must give the same answers to the last byte, and after
//! the revert those of the old build. A refusal is counted, an answer that differs is a failure, and so is "nothing changed" where answers differ.
//! Where the next version only has things in another order and the compiler made the same of every function, a patch is a failure.
//!
//! `HP_GENERATED=1000` runs so many seeds, from `HP_GENERATED_FROM` on, of the sort that `HP_GENERATED_SORT` names; `HP_GENERATED_SEED=N` runs one,
//! made as small as it still fails, and leaves its folder. See `docs/TESTING.md`.

mod generator;
#[allow(dead_code, reason = "the processes of fixtures, without the fixtures")]
mod harness;
#[path = "support/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use generator::drive::{Outcome, Pair, SORTS, Sort, check};
use libtest_mimic::{Arguments, Trial};

/// Seeds of an ordinary run, from this one on, and how many of each sort.
const FIRST: u64 = 100;
const SEEDS: [u64; SORTS.len()] = [32, 3, 4, 1, 6, 16];
/// Others whose patch was wrong once: an index that is no more than zero by a subtraction, the end of zeros, and an index below zero where a
/// text begins behind the array.
const WRONG_ONCE: [(&str, u64); 3] = [("tables_stripped", 7), ("tables_stripped", 199), ("cpp", 39)];

/// How often what came of builds of a kind.
type Summary = Arc<Mutex<BTreeMap<(String, String), usize>>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let wanted = std::env::var("HP_GENERATED_SORT").unwrap_or_else(|_| SORTS[0].name.to_owned());
    let Some(sort) = SORTS.into_iter().find(|sort| sort.name == wanted) else {
        eprintln!("HP_GENERATED_SORT is one of {:?}", SORTS.map(|sort| sort.name));
        return ExitCode::FAILURE;
    };
    if let Some(seed) = number("HP_GENERATED_SEED") {
        return look_at(sort, seed);
    }
    let from = number("HP_GENERATED_FROM").unwrap_or(FIRST);
    let seeds: Vec<(Sort, u64)> = match number("HP_GENERATED") {
        Some(count) => (from..from + count).map(|seed| (sort, seed)).collect(),
        None => {
            let usual = SORTS.into_iter().zip(SEEDS).flat_map(|(sort, n)| (from..from + n).map(move |s| (sort, s)));
            let again = SORTS.into_iter().flat_map(|sort| {
                WRONG_ONCE.into_iter().filter(move |(name, _)| *name == sort.name).map(move |(_, seed)| (sort, seed))
            });
            usual.chain(again).collect()
        }
    };
    let summary = Summary::default();
    let trials = seeds.into_iter().map(|(sort, seed)| trial(sort, seed, summary.clone())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    print(&summary);
    conclusion.exit_code()
}

fn trial(sort: Sort, seed: u64, summary: Summary) -> Trial {
    let (pair, name) = (Pair::of(sort, seed), sort.name);
    let missing = pair.way.missing();
    let ignored = missing.is_some();
    if let Some(tool) = missing {
        eprintln!("ignored: {name} {seed}: no {tool} here");
    }
    Trial::test(format!("{name}_{seed}"), move || {
        let folder = tempfile::Builder::new().prefix("hp-generated-").tempdir()?;
        let root = folder.path().canonicalize()?;
        let result = check(&pair, &root);
        let word = match &result {
            Ok(Outcome::Patched) => "patched".to_owned(),
            Ok(Outcome::Equivalent) => "equivalent".to_owned(),
            Ok(Outcome::Refused(codes, _)) => codes.join(" "),
            Ok(Outcome::NotApplied(why)) => format!("not applied: {}", why.lines().next().unwrap_or_default()),
            Err(failure) => format!("FAILED: {}", failure.word),
        };
        if std::env::var_os("HP_GENERATED_LIST").is_some() {
            let story = match &result {
                Ok(Outcome::Refused(_, told)) => told.join("\n    "),
                Err(failure) => failure.story.lines().take(8).collect::<Vec<_>>().join("\n    "),
                _ => String::new(),
            };
            eprintln!("{name} {seed}: {word} | {} | {}\n    {story}", pair.way.line(), pair.edits.join(", "));
        }
        if let Ok(mut summary) = summary.lock() {
            *summary.entry((word, pair.way.kind())).or_default() += 1;
        }
        result.map(|_| ()).map_err(|f| {
            format!("{}\n{name} {seed}: {}\n  {}\n{}", f.word, pair.way.line(), pair.edits.join("\n  "), f.story).into()
        })
    })
    .with_ignored_flag(ignored)
}

/// What came of all, by what and then by kind of build.
fn print(summary: &Summary) {
    let Ok(summary) = summary.lock() else { return };
    let mut words: BTreeMap<&str, (usize, Vec<String>)> = BTreeMap::new();
    for ((word, kind), n) in summary.iter() {
        let entry = words.entry(word).or_default();
        entry.0 += n;
        entry.1.push(format!("{kind}: {n}"));
    }
    println!("{} programs", words.values().map(|(n, _)| n).sum::<usize>());
    for (word, (n, kinds)) in words {
        println!("{n:6} {word}\n         {}", kinds.join(", "));
    }
}

/// One seed, in a folder that stays.
fn look_at(sort: Sort, seed: u64) -> ExitCode {
    let pair = Pair::of(sort, seed);
    let root = std::env::temp_dir().join(format!("hp-generated-{}-{seed}", sort.name));
    let _ = std::fs::remove_dir_all(&root);
    println!("{}: {}\n  {}", root.display(), pair.way.line(), pair.edits.join("\n  "));
    match check(&pair, &root.join("whole")) {
        Ok(outcome) => {
            println!("{outcome:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}: {}", failure.word, failure.story);
            if std::env::var_os("HP_GENERATED_WHOLE").is_none() {
                let (small, failure) = generator::shrink::smaller(pair, failure, &root.join("smaller"));
                let _ = check(&small, &root.join("small"));
                let _ = std::fs::remove_dir_all(root.join("smaller"));
                println!("smaller, in {}/small: {}: {}", root.display(), failure.word, failure.story);
            }
            ExitCode::FAILURE
        }
    }
}
