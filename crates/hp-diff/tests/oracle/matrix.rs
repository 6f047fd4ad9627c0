//! Compilers, flags and linkers.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use hp_diff::Options;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::judge::{self, Outcome};
use crate::truth;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/oracle");

/// One way to build the sources.
#[derive(Clone)]
struct Build {
    compiler: &'static str,
    linker: &'static str,
    flags: String,
    link: String,
}

pub(crate) fn run() -> ExitCode {
    let mut trials = Vec::new();
    for build in builds() {
        let name =
            format!("{} {} {} {}", build.compiler, build.linker, build.flags, build.link).trim().replace("  ", " ");
        let there = [build.compiler, &format!("ld.{}", build.linker)].iter().all(|tool| on_path(tool));
        trials.push(Trial::test(name, move || check(&build)).with_ignored_flag(!there));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn builds() -> Vec<Build> {
    let flags = [
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
        ("-O2 -fPIC -DLIBRARY", "-shared"),
        ("-O2 -fPIC -DLIBRARY -fvisibility=hidden", "-shared"),
        ("-O2 -g -D_FORTIFY_SOURCE=2 -fstack-protector-strong", "-Wl,-z,relro,-z,now"),
    ];
    let mut builds = Vec::new();
    for compiler in ["gcc", "clang"] {
        for linker in ["bfd", "gold", "lld", "mold"] {
            // gold knows no static PIE.
            for (f, link) in flags.into_iter().filter(|f| linker != "gold" || f.1 != "-static-pie") {
                builds.push(Build { compiler, linker, flags: f.to_owned(), link: link.to_owned() });
            }
            let retpoline = if compiler == "gcc" { "-O2 -mindirect-branch=thunk" } else { "-O2 -mretpoline" };
            builds.push(Build { compiler, linker, flags: retpoline.to_owned(), link: String::new() });
            if linker != "bfd" {
                builds.push(Build { compiler, linker, flags: "-O2".to_owned(), link: "-Wl,--icf=all".to_owned() });
            }
        }
    }
    builds
}

fn check(build: &Build) -> Result<(), Failed> {
    let room = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("KEEP").map(PathBuf::from);
    let room = kept.as_deref().unwrap_or(room.path());
    let mut objects = Vec::new();
    for source in ["shapes.c", "main.c"] {
        let object = format!("{source}.o");
        let mut command = Command::new(build.compiler);
        command.args(["-ffunction-sections", "-fdata-sections", "-w", "-c"]).arg(Path::new(SOURCES).join(source));
        run_in(room, command.args(build.flags.split_whitespace()).args(["-o", &object]))?;
        objects.push(object);
    }
    let mut command = Command::new(build.compiler);
    command.args(&objects).args(["-o", "program", "-Wl,-Map=map"]).arg(format!("-fuse-ld={}", build.linker));
    run_in(room, command.args(build.flags.split_whitespace()).args(build.link.split_whitespace()))?;
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
