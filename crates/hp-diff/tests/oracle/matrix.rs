//! Compilers, flags and linkers: a fifth of all that is in the matrix, all of it with `HP_ORACLE_ALL`. `SHOW` prints what has
//! several meanings, `KEEP=DIR` keeps what was built.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hp_diff::Options;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::judge::{self, Outcome};
use crate::truth;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/oracle");

/// What is built.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    /// Shapes of references that compilers make of C, and two functions of hand-written assembly with data beside them.
    C,
    /// What C++ adds. The standard library is linked as the flags say.
    Cpp,
    /// What rustc makes, with the standard library in it.
    Rust,
}

/// One way to build a program.
#[derive(Clone)]
struct Build {
    program: Program,
    compiler: &'static str,
    linker: &'static str,
    flags: String,
    link: String,
}

pub(crate) fn run() -> ExitCode {
    let mut trials = Vec::new();
    let everything = std::env::var_os("HP_ORACLE_ALL").is_some();
    for (i, build) in builds().into_iter().enumerate() {
        let name =
            format!("{} {} {} {}", build.compiler, build.linker, build.flags, build.link).trim().replace("  ", " ");
        let there = [build.compiler, &format!("ld.{}", build.linker)].iter().all(|tool| on_path(tool));
        // Coprime to the number of flags, so that each compiler, linker and flag is in the sample.
        let sampled = everything || i % 5 == 0;
        trials.push(Trial::test(name, move || check(&build)).with_ignored_flag(!there || !sampled));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Flags for the compiler and for the linker.
const C_FLAGS: [(&str, &str); 18] = [
    ("-O0", ""),
    ("-O1", ""),
    ("-O2", ""),
    ("-O3", ""),
    ("-Os", ""),
    ("-O2 -fno-plt", ""),
    ("-O2 -fcf-protection", ""),
    ("-O2 -fno-pie", "-no-pie"),
    ("-O0 -fno-pie", "-no-pie"),
    ("-Os -fno-pie", "-no-pie"),
    ("-O2", "-static-pie"),
    ("-O2 -fno-pie", "-static"),
    // The linker relaxes what goes through slots, and sequences for thread-local variables.
    ("-O2 -fPIC", ""),
    ("-O0 -fPIC", "-no-pie"),
    ("-O2 -fPIC -ftls-model=local-dynamic", ""),
    ("-O2 -fPIC -DLIBRARY", "-shared"),
    ("-O2 -fPIC -DLIBRARY -fvisibility=hidden", "-shared"),
    ("-O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong", "-Wl,-z,relro,-z,now"),
];
const CPP_FLAGS: [(&str, &str); 8] = [
    ("-O0", ""),
    ("-O1 -fno-pie", "-no-pie"),
    ("-O2", ""),
    ("-O3", ""),
    ("-Os", ""),
    ("-O2 -fno-pie", "-no-pie"),
    ("-O2 -fno-pie", "-static"),
    ("-O2 -fPIC", "-shared"),
];
const RUST_FLAGS: [&str; 6] = [
    "-C opt-level=0",
    "-C opt-level=2",
    "-C opt-level=3 -C codegen-units=1",
    "-C opt-level=s -C panic=abort",
    "-C opt-level=2 -C relocation-model=static",
    "-C opt-level=2 -C target-feature=+crt-static",
];

fn builds() -> Vec<Build> {
    let mut builds = Vec::new();
    let mut add = |program, compiler, linker, flags: &str, link: &str| {
        builds.push(Build { program, compiler, linker, flags: flags.to_owned(), link: link.to_owned() });
    };
    for compiler in ["gcc", "clang"] {
        for linker in ["bfd", "gold", "lld", "mold"] {
            // gold knows no static PIE.
            for (flags, link) in C_FLAGS.into_iter().filter(|f| linker != "gold" || f.1 != "-static-pie") {
                add(Program::C, compiler, linker, flags, link);
            }
            let retpoline = if compiler == "gcc" { "-O2 -mindirect-branch=thunk" } else { "-O2 -mretpoline" };
            add(Program::C, compiler, linker, retpoline, "");
            if compiler == "gcc" {
                let descriptors = "-O2 -fPIC -mtls-dialect=gnu2";
                add(Program::C, compiler, linker, descriptors, "");
                add(Program::C, compiler, linker, &format!("{descriptors} -DLIBRARY"), "-shared");
            }
            if linker != "bfd" {
                add(Program::C, compiler, linker, "-O2", "-Wl,--icf=all");
            }
        }
    }
    // Code made at link time, kept for the oracle to read. clang's needs a plugin in the other linkers.
    for level in ["-O2", "-O3", "-Os"] {
        for linker in ["bfd", "gold", "mold"] {
            add(Program::C, "gcc", linker, &format!("{level} -flto"), "-save-temps -flto-partition=one");
            add(Program::Cpp, "g++", linker, &format!("{level} -flto"), "-save-temps -flto-partition=one");
        }
        // LLVM 14 crashes on functions that are chosen at start-up.
        add(Program::C, "clang", "lld", &format!("{level} -flto -DNO_IFUNC"), "-Wl,--save-temps");
        add(Program::Cpp, "clang++", "lld", &format!("{level} -flto"), "-Wl,--save-temps");
    }
    for compiler in ["g++", "clang++"] {
        for linker in ["bfd", "gold", "lld", "mold"] {
            for (flags, link) in CPP_FLAGS {
                add(Program::Cpp, compiler, linker, flags, link);
            }
            if linker != "bfd" {
                add(Program::Cpp, compiler, linker, "-O2", "-Wl,--icf=all");
            }
        }
    }
    for linker in ["bfd", "gold", "lld", "mold"] {
        for flags in RUST_FLAGS {
            add(Program::Rust, "rustc", linker, flags, "");
        }
    }
    builds
}

fn check(build: &Build) -> Result<(), Failed> {
    let room = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("KEEP").map(PathBuf::from);
    let room = kept.as_deref().unwrap_or(room.path());
    let linker = format!("-fuse-ld={}", build.linker);
    let sources: &[&str] = match build.program {
        Program::C => &["shapes.c", "main.c", "assembly.S"],
        Program::Cpp => &["shapes.cc", "twin.cc"],
        Program::Rust => {
            let mut command = Command::new(build.compiler);
            command.args(["--edition", "2021", "-C", "save-temps", "-o", "program"]);
            command.args(["-C", "link-arg=-Wl,-Map=map", "-C", &format!("link-arg={linker}")]);
            run_in(room, command.args(build.flags.split_whitespace()).arg(Path::new(SOURCES).join("shapes.rs")))?;
            return report(&room.join("program"), &room.join("map"));
        }
    };
    let mut objects = Vec::new();
    for source in sources {
        let object = format!("{source}.o");
        let mut command = Command::new(build.compiler);
        command.args(["-ffunction-sections", "-fdata-sections", "-w", "-c"]).arg(Path::new(SOURCES).join(source));
        run_in(room, command.args(build.flags.split_whitespace()).args(["-o", &object]))?;
        objects.push(object);
    }
    let mut command = Command::new(build.compiler);
    command.args(&objects).args(["-o", "program", "-Wl,-Map=map", &linker, "-ffunction-sections", "-fdata-sections"]);
    run_in(room, command.args(build.flags.split_whitespace()).args(build.link.split_whitespace()))?;
    // What lld calls so in its map.
    let made = room.join("program.lto.o");
    if made.exists() {
        std::fs::rename(made, room.join("lto.tmp"))?;
    }
    report(&room.join("program"), &room.join("map"))
}

fn report(image: &Path, map: &Path) -> Result<(), Failed> {
    let truth = truth::read(image, map);
    let references = hp_diff::references(image, &Options::default()).unwrap();
    let score = judge::judge(&truth, &references);
    let counts: Vec<String> = score.counts.iter().map(|(o, n)| format!("{n} {o:?}")).collect();
    println!(
        "    {} facts: {}; {} of {} functions with several",
        truth.facts.len(),
        counts.join(", "),
        score.functions.0,
        score.functions.1
    );
    if std::env::var_os("SHOW").is_some() {
        score.several.iter().for_each(|line| println!("{line}"));
    }
    if truth.facts.len() < 100 {
        return Err(format!("only {} facts: the objects were not found", truth.facts.len()).into());
    }
    let wrong = score.count(Outcome::Invented) + score.count(Outcome::Missed) + score.count(Outcome::Imagined);
    if wrong > 0 { Err(format!("{wrong} wrong:\n{}", score.wrong.join("\n")).into()) } else { Ok(()) }
}

fn run_in(room: &Path, command: &mut Command) -> Result<(), Failed> {
    let output = command.current_dir(room).output()?;
    let failed = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(failed().into()) }
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|d| d.join(tool).is_file())
}
