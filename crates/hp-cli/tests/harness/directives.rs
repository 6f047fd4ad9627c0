//! A situation, read from the comments at the top of its source. `docs/FIXTURES.md` says what
//! each directive means; an unknown one is an error, so that a typing mistake never turns a check off.

use std::path::{Path, PathBuf};

/// What is sent to the program, and the line that must come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) question: String,
    pub(crate) answer: String,
}

/// What must come of the two builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A patch is made and works.
    Patch,
    /// The diff refuses with exactly this code and writes nothing.
    Refuse(String),
    /// The builds are equivalent: exit 3.
    Nothing,
}

/// One situation in one variant of its build.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) source: PathBuf,
    pub(crate) name: String,
    /// Compiler and flags for the program.
    pub(crate) build: Vec<String>,
    /// Compiler and flags for the shared object, if there is one.
    pub(crate) library: Option<Vec<String>>,
    /// The library, not the program, is patched.
    pub(crate) patch_library: bool,
    /// How many translation units the program has.
    pub(crate) parts: u32,
    /// How many different programs run and are patched together.
    pub(crate) programs: u32,
    pub(crate) args: Vec<String>,
    pub(crate) needs: Vec<String>,
    pub(crate) changed: Vec<String>,
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
    pub(crate) before: Vec<Probe>,
    pub(crate) after: Vec<Probe>,
    pub(crate) reverted: Vec<Probe>,
    /// What a fresh new build answers; `None` where the state does not allow to ask.
    pub(crate) fresh: Option<Vec<Probe>>,
    /// The answers depend on what was asked before, so only the first cycle is compared.
    pub(crate) stateful: bool,
    pub(crate) verdict: Verdict,
    /// The patch's memory stays after a revert, which says so in these words.
    pub(crate) kept: Option<String>,
    /// How often the patch is applied and reverted.
    pub(crate) cycles: u32,
}

const KEYS: &[&str] = &[
    "build", "lib", "patch", "parts", "programs", "args", "needs", "changed", "added", "removed", "before", "after",
    "reverted", "fresh", "refuse", "nothing", "kept", "cycles",
];

struct Directive<'a> {
    key: &'a str,
    /// Applies only to builds with this word, and wins over one without.
    selector: Option<&'a str>,
    value: String,
}

/// How all cases are to be built instead, from `HP_FIXTURES_AS`: a compiler and more flags, such as `clang -fuse-ld=lld`, or flags alone.
pub(crate) fn recast() -> Option<String> {
    std::env::var("HP_FIXTURES_AS").ok().filter(|recast| !recast.is_empty())
}

/// A command line of gcc or clang as `recast` has it: the compiler of the same language from the other family, if its first word is
/// one, and more flags at the end.
fn as_built_with(build: &str, recast: &str) -> String {
    let (compiler, flags) = build.split_once(' ').unwrap_or((build, ""));
    if recast.is_empty() || !matches!(compiler, "gcc" | "g++" | "clang" | "clang++") {
        return build.to_owned();
    }
    let (family, more) = match recast.split_once(' ').unwrap_or((recast, "")) {
        (family @ ("gcc" | "clang"), more) => (Some(family), more),
        _ => (None, recast),
    };
    let compiler = match (family, compiler.ends_with("++")) {
        (Some("gcc"), true) => "g++",
        (Some("clang"), true) => "clang++",
        (family, _) => family.unwrap_or(compiler),
    };
    format!("{compiler} {flags} {more}").trim_end().to_owned()
}

/// All cases of one source file, one for each build line.
pub(crate) fn parse(source: &Path, text: &str) -> Result<Vec<Case>, String> {
    let mut directives = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some(body) = line.strip_prefix("//#") else { continue };
        directives.push(directive(body).map_err(|e| format!("{}:{}: {e}", source.display(), index + 1))?);
    }
    if !text.starts_with("//! ") {
        return Err(format!("{}:1: the first line must say what the situation is: //! ...", source.display()));
    }
    let recast = recast().unwrap_or_default();
    for directive in directives.iter_mut().filter(|d| d.key == "build" || d.key == "lib") {
        directive.value = as_built_with(&directive.value, &recast);
    }
    let mut builds: Vec<&str> = directives.iter().filter(|d| d.key == "build").map(|d| d.value.as_str()).collect();
    let default = as_built_with("gcc -O2 -g", &recast);
    if builds.is_empty() {
        builds.push(&default);
    }
    builds.dedup();
    let several = builds.len() > 1;
    builds
        .iter()
        .map(|build| case(source, build, several, &directives).map_err(|e| format!("{}: {e}", source.display())))
        .collect()
}

fn directive(body: &str) -> Result<Directive<'_>, String> {
    let (key, value) = body.split_once(':').ok_or("a directive is `//# key: value`")?;
    let (key, selector) = match key.trim().split_once('[') {
        Some((key, rest)) => (key, Some(rest.strip_suffix(']').ok_or("a selector is `key[word]:`")?)),
        None => (key.trim(), None),
    };
    if !KEYS.contains(&key) {
        return Err(format!("no directive `{key}`; there are: {}", KEYS.join(", ")));
    }
    Ok(Directive { key, selector, value: value.trim().to_owned() })
}

fn case(source: &Path, build: &str, several: bool, directives: &[Directive]) -> Result<Case, String> {
    let build_words = words(build);
    let all = |key: &str| -> Vec<&str> {
        let pick = |chosen: bool| {
            directives
                .iter()
                .filter(|d| d.key == key)
                .filter(|d| d.selector.is_some_and(|word| build_words.iter().any(|w| w == word)) == chosen)
                .filter(|d| chosen || d.selector.is_none())
                .map(|d| d.value.as_str())
                .collect::<Vec<_>>()
        };
        let selected = pick(true);
        if selected.is_empty() { pick(false) } else { selected }
    };
    let one = |key: &str| all(key).last().copied();
    let list = |key: &str| -> Vec<String> {
        let mut names: Vec<String> = all(key).iter().flat_map(|v| words(v)).collect();
        names.sort();
        names
    };
    let number = |key: &str, default: u32| match one(key) {
        Some(value) => value.parse().map_err(|_| format!("`{key}: {value}` is not a number")),
        None => Ok(default),
    };
    let probes = |key: &str| -> Vec<Probe> { all(key).into_iter().map(probe).collect() };

    let (before, after) = (probes("before"), probes("after"));
    let reverted = probes("reverted");
    let stateful = !reverted.is_empty();
    let verdict = match (one("refuse"), one("nothing")) {
        (Some(code), None) => Verdict::Refuse(code.into()),
        (None, Some(_)) => Verdict::Nothing,
        (None, None) => Verdict::Patch,
        _ => return Err("`refuse` and `nothing` exclude each other".into()),
    };
    if before.is_empty() {
        return Err("no `before`".into());
    }
    if verdict == Verdict::Patch && after.is_empty() {
        return Err("no `after`".into());
    }
    let fresh = match all("fresh").as_slice() {
        ["no"] => None,
        [] if verdict == Verdict::Nothing => Some(before.clone()),
        [] if matches!(verdict, Verdict::Refuse(_)) => None,
        [] => Some(after.clone()),
        given => Some(given.iter().map(|v| probe(v)).collect()),
    };
    let library = one("lib").map(words);
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Case {
        source: source.to_owned(),
        name: if several { format!("{stem} [{build}]") } else { stem.into_owned() },
        patch_library: library.is_some() && one("patch") != Some("program"),
        library,
        parts: number("parts", 1)?,
        programs: number("programs", 1)?,
        kept: one("kept").map(str::to_owned),
        cycles: number("cycles", 2)?,
        args: one("args").map(words).unwrap_or_default(),
        needs: list("needs"),
        changed: list("changed"),
        added: list("added"),
        removed: list("removed"),
        reverted: if stateful { reverted } else { before.clone() },
        before,
        after,
        fresh,
        stateful,
        verdict,
        build: build_words,
    })
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// `question => answer`, or the answer alone.
fn probe(text: &str) -> Probe {
    let (question, answer) = text.split_once(" => ").unwrap_or(("?", text));
    Probe { question: question.trim().into(), answer: answer.trim().into() }
}
