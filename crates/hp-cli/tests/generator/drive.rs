//! One pair of versions, from the compiler to the last answer.

use std::path::Path;
use std::process::Command;

use crate::generator::assembly::same_code;
use crate::generator::edits::edit;
use crate::generator::generate;
use crate::generator::program::{Language, Program};
use crate::generator::render;
use crate::generator::tables;
use crate::generator::ways::Way;
use crate::harness::process::{Target, run};
use crate::random::Random;
use serde_json::Value;

/// What is made of seeds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sort {
    /// In front of a seed's number.
    pub(crate) name: &'static str,
    pub(crate) language: Language,
    /// What the program is made of, and what its next version has other.
    pub(crate) theme: Theme,
}

/// What a sort of programs is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Theme {
    /// Anything, and any edit.
    Any,
    /// Anything; the next version has the same functions and objects in another order, and perhaps strangers beside them.
    Moves,
    /// Constant tables side by side, of which elements change; with symbols, or without.
    Tables { stripped: bool },
}

/// All of them.
pub(crate) const SORTS: [Sort; 6] = [
    Sort { name: "seed", language: Language::C, theme: Theme::Any },
    Sort { name: "moved", language: Language::C, theme: Theme::Moves },
    Sort { name: "cpp", language: Language::Cpp, theme: Theme::Any },
    Sort { name: "cpp_moved", language: Language::Cpp, theme: Theme::Moves },
    Sort { name: "tables", language: Language::C, theme: Theme::Tables { stripped: false } },
    Sort { name: "tables_stripped", language: Language::C, theme: Theme::Tables { stripped: true } },
];

/// What the generator makes of a seed.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) old: Program,
    pub(crate) new: Program,
    pub(crate) edits: Vec<String>,
    pub(crate) way: Way,
    moves: bool,
    /// Numbers for the questions.
    seed: u64,
}

impl Pair {
    pub(crate) fn of(sort: Sort, seed: u64) -> Pair {
        let r = &mut Random(seed);
        let old = match sort.theme {
            Theme::Tables { .. } => tables::program(r),
            _ => generate::program(sort.language, r),
        };
        let (mut new, mut edits) = (old.clone(), Vec::new());
        // Some edits change nothing.
        while (0..old.files.len()).all(|i| render::file(&old, i) == render::file(&new, i)) {
            edits.extend(match sort.theme {
                Theme::Tables { .. } => tables::edit(&mut new, r),
                _ => edit(&mut new, sort.theme == Theme::Moves, r),
            });
        }
        let mut way = Way::any(sort.language, r);
        if let Theme::Tables { stripped } = sort.theme {
            // The C library's own code says nothing about tables, and takes most of the time.
            while way.is_static() {
                way = Way::any(sort.language, r);
            }
            way.strip = stripped;
        }
        Pair { old, new, edits, way, moves: sort.theme == Theme::Moves, seed }
    }

    /// What to ask: every entry with several arguments, in any order.
    fn questions(&self) -> Vec<String> {
        let r = &mut Random(self.seed ^ 0x5eed);
        let count = self.old.entries.len();
        let mut calls = Vec::new();
        for round in 0..12 {
            for _ in 0..count {
                let which = r.below(count);
                calls.push(question(which, r));
            }
            calls.extend((0..count).map(|which| format!("call {which} {round} {}", r.below(20))));
        }
        calls
    }
}

fn question(which: usize, r: &mut Random) -> String {
    let argument = |r: &mut Random| match r.below(8) {
        0..=4 => r.below(64) as u64,
        5 | 6 => r.below(100_000) as u64,
        _ => r.next(),
    };
    let (a, b) = (argument(r), argument(r));
    format!("call {which} {a} {b}")
}

/// What came of a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// A patch was made, and did what it should.
    Patched,
    /// Nothing to do, and the answers are the same.
    Equivalent,
    /// Findings forbid it: their codes, and what they say.
    Refused(Vec<String>, Vec<String>),
    /// The target was left as it was, exit 4 or 1 of `hp apply`, for this reason.
    NotApplied(String),
}

/// What went wrong, in a word that stays the same while a pair is made smaller, and the whole story.
pub(crate) struct Failure {
    pub(crate) word: &'static str,
    pub(crate) story: String,
}

fn failure(word: &'static str) -> impl Fn(String) -> Failure {
    move |story| Failure { word, story }
}

/// Builds both versions in `root`, patches the running one, and asks.
pub(crate) fn check(pair: &Pair, root: &Path) -> Result<Outcome, Failure> {
    let [old, base] = pair.way.build(&pair.old, root, "old", None).map_err(failure("build"))?;
    let [new, image] = pair.way.build(&pair.new, root, "new", Some("old")).map_err(failure("build"))?;
    let questions = pair.questions();
    let fresh = |program: &Path, what: &'static str| {
        let mut target = Target::start(program, &[]).map_err(failure("build"))?;
        let answers = ask(&mut target, &questions).map_err(failure(what))?;
        if pair.old.resets {
            ask(&mut target, &["reset".to_owned()]).map_err(failure(what))?;
            let again = ask(&mut target, &questions).map_err(failure(what))?;
            same(&questions, &answers, &again).map_err(failure("the program does not set itself back"))?;
        }
        Ok(answers)
    };
    let (was, is) = (fresh(&old, "the old build")?, fresh(&new, "the new build")?);
    let patch = root.join("fix.hpatch");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
    command.arg("diff").args([&base, &image]).arg("-o").arg(&patch).arg("--json");
    // Structures are the same, nothing is renamed, and what is never released is not released twice.
    for code in ["HP0402", "HP0405", "HP0312"] {
        command.args(["--allow", code]);
    }
    if pair.old.lines_shown {
        command.arg("--exact-lines");
    }
    let done = run(&mut command).map_err(failure("hp"))?;
    let story = done.story();
    match done.code {
        // Without names, that something moved can look like a change.
        Some(0) if pair.moves && !pair.way.strip => {
            let of = |program, name| pair.way.assembly(program, &root.join(name)).map_err(failure("build"));
            if let (Some(was), Some(is)) = (of(&pair.old, "old-s")?, of(&pair.new, "new-s")?)
                && same_code(&was, &is)
            {
                return Err(failure("moved")(format!(
                    "the compiler made the same of every function, hp did not\n{story}"
                )));
            }
        }
        Some(0) => {}
        Some(1) => {
            let report: Value =
                serde_json::from_str(&done.stdout).map_err(|e| failure("hp diff")(format!("{e}\n{story}")))?;
            let stands = |f: &Value| f["level"] == "error" && f["accepted"] != true;
            let codes = crate::harness::texts(&report["findings"], "code", stands);
            let findings = report["findings"].as_array().map(Vec::as_slice).unwrap_or_default();
            let tell = |f: &Value| format!("{} {}: {}", f["code"], f["subject"], f["message"]).replace('"', "");
            let told: Vec<String> = findings.iter().filter(|f| stands(f)).map(tell).collect();
            if codes.is_empty() || codes.iter().any(|code| code == "HP0601") {
                return Err(failure("judge")(told.join("\n")));
            }
            return Ok(Outcome::Refused(codes, told));
        }
        Some(3) => {
            same(&questions, &was, &is)
                .map_err(|e| failure("equivalent")(format!("hp diff says that nothing changed; {e}\n{story}")))?;
            return Ok(Outcome::Equivalent);
        }
        _ => return Err(failure("hp diff")(story)),
    }
    let start = || {
        let mut target = Target::start(&old, &[]).map_err(failure("build"))?;
        // It has been loaded, and waits.
        ask(&mut target, &[format!("call {} 0 0", pair.old.entries.len())]).map_err(failure("build"))?;
        Ok::<_, Failure>(target)
    };
    let mut target = start()?;
    let code = target.code(&base).map_err(failure("target"))?;
    let hp = |verb: &str, target: &Target| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
        run(command.arg(verb).arg(&patch).args(["--pid", &target.pid().to_string()])).map_err(failure("hp"))
    };
    let apply = |target: &mut Target| {
        let done = hp("apply", target)?;
        match done.code {
            Some(0) => Ok(None),
            Some(1 | 4) if target.ended().is_none() => Ok(Some(Outcome::NotApplied(done.stderr))),
            _ => Err(failure("hp apply")(done.story() + &target.ended().unwrap_or_default())),
        }
    };
    if let Some(left) = apply(&mut target)? {
        return Ok(left);
    }
    let answers = ask(&mut target, &questions).map_err(failure("patched"))?;
    same(&questions, &is, &answers)
        .map_err(|e| failure("patched")(format!("the patched process is not the new build; {e}\n{story}")))?;
    let revert = |target: &mut Target| {
        let done = hp("revert", target)?.expect(0, "hp revert").map_err(failure("hp revert"))?;
        // What stays of the patch may still have to be found by the program's own unwinder.
        if done.stdout.contains("stay mapped") {
            return Ok(());
        }
        crate::harness::restored(&code, &target.code(&base).map_err(failure("target"))?, 1)
            .map_err(|e| failure("hp revert")(e + &done.story()))
    };
    revert(&mut target)?;
    // What the program cannot set back, another process has never touched.
    if pair.old.resets {
        ask(&mut target, &["reset".to_owned()]).map_err(failure("reverted"))?;
    } else {
        ask(&mut target, &questions).map_err(failure("reverted"))?;
        target = start()?;
        if let Some(left) = apply(&mut target)? {
            return Ok(left);
        }
        revert(&mut target)?;
    }
    let answers = ask(&mut target, &questions).map_err(failure("reverted"))?;
    same(&questions, &was, &answers)
        .map_err(|e| failure("reverted")(format!("the reverted process is not the old build; {e}\n{story}")))?;
    Ok(Outcome::Patched)
}

fn ask(target: &mut Target, questions: &[String]) -> Result<Vec<String>, String> {
    questions.iter().map(|q| target.ask(q).map_err(|e| format!("asked `{q}`: {e}"))).collect()
}

fn same(questions: &[String], expected: &[String], got: &[String]) -> Result<(), String> {
    let unlike: Vec<usize> = (0..questions.len()).filter(|i| expected[*i] != got[*i]).collect();
    match unlike.first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "{} of {} answers differ, first that to `{}` (number {first}):\n  expected: {}\n  got:      {}",
            unlike.len(),
            questions.len(),
            questions[*first],
            expected[*first],
            got[*first]
        )),
    }
}
