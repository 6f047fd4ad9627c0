//! Libraries that come and go while they are patched, or are there twice.

mod common;
use common::*;
use hp_apply::{Phase, apply_patch, patched_processes, revert, status, targets_of};
use hp_pack::Patch;
use std::path::PathBuf;

const LIBRARY: &str = r#"
#define NOP __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0")
int calls;
__attribute__((noinline,noclone)) int value(int x) { NOP; calls++; return x + 1; }
"#;

const NEW: &str = "extern int calls; int value(int x) { calls++; return x + 100; }";

/// Opens, closes and calls a library as it is told.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
    char line[100];
    void *library = 0, *second = 0;
    setvbuf(stdout, 0, _IONBF, 0);
    setvbuf(stdin, 0, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "open\n")) { library = dlopen(argv[1], RTLD_NOW); puts(library ? "opened" : dlerror()); }
        else if (!strcmp(line, "twice\n")) { second = dlmopen(LM_ID_NEWLM, argv[1], RTLD_NOW); puts(second ? "opened" : dlerror()); }
        else if (!strcmp(line, "close\n")) puts(dlclose(library) ? dlerror() : "closed");
        else {
            int (*value)(int) = dlsym(library, "value");
            printf("%d\n", value(0));
        }
    }
    return 0;
}
"#;

struct Case {
    _program: Program,
    _library: Program,
    target: Process,
    patch: Patch,
}

fn case() -> Case {
    let program = Program::build(PROGRAM, &["-ldl"]);
    let library = Program::build(LIBRARY, &["-fPIC", "-shared"]);
    // Two programs in one folder have one name; a library has another here.
    let path: PathBuf = library.exe.clone();
    let target = program.spawn(&[path.to_str().unwrap()]);
    let patch = library.patch_with(NEW, &["value"], &["-fPIC"]);
    Case { _program: program, _library: library, target, patch }
}

#[test]
fn closed_while_patched_and_opened_again() {
    let case = &mut case();
    let (target, patch) = (&mut case.target, &case.patch);
    let mut refused_once = false;
    for round in 0..6 {
        assert_eq!(target.ask("open"), "opened");
        assert_eq!(target.ask("call"), "1", "round {round}");
        // What an earlier round left does not count as applied.
        applied(apply_patch(target.pid(), patch, ID, &options()));
        assert_eq!(target.ask("call"), "100", "round {round}");
        assert_eq!(target.ask("close"), "closed");
        let entries = status(target.pid()).unwrap();
        assert!(entries.iter().all(|entry| entry.phase == Phase::Inactive), "{entries:?}");
        refused_once |= entries.iter().any(|entry| entry.damage.iter().any(|line| line.contains("not mapped")));
        if round % 2 == 1 {
            // Nothing is to be reverted, and what is left of it goes.
            revert(target.pid(), None, &options()).result.unwrap();
            assert_eq!(status(target.pid()).unwrap(), []);
        }
    }
    assert!(refused_once);
    target.assert_free();
}

/// Something else lies now where the library was: nothing is written there.
#[test]
fn closed_and_another_one_in_its_place() {
    let case = &mut case();
    let (target, patch) = (&mut case.target, &case.patch);
    assert_eq!(target.ask("open"), "opened");
    applied(apply_patch(target.pid(), patch, ID, &options()));
    assert_eq!(target.ask("close"), "closed");
    assert_eq!(target.ask("twice"), "opened");
    let before = target.maps();
    revert(target.pid(), None, &options()).result.unwrap();
    assert_eq!(status(target.pid()).unwrap(), []);
    let kept = |maps: &str| maps.lines().filter(|line| line.contains("/target")).count();
    assert_eq!(kept(&target.maps()), kept(&before));
    assert_eq!(target.ask("open"), "opened");
    assert_eq!(target.ask("call"), "1");
}

#[test]
fn there_twice_is_refused() {
    let case = &mut case();
    let (target, patch) = (&mut case.target, &case.patch);
    assert_eq!((target.ask("open"), target.ask("twice")), ("opened".into(), "opened".into()));
    let before = target.maps();
    let text = refused(apply_patch(target.pid(), patch, ID, &options()));
    assert!(text.contains("more than once"), "{text}");
    assert_eq!((target.maps(), target.ask("call")), (before, "1".into()));
}

/// The library of a patch is not there yet: told so, nothing is done; it is there later, and then it is patched.
#[test]
fn opened_after_the_first_try() {
    let case = &mut case();
    let (target, patch) = (&mut case.target, &case.patch);
    let before = target.maps();
    assert!(!targets_of(&patch.base.build_id).unwrap().contains(&target.pid()));
    let text = refused(apply_patch(target.pid(), patch, ID, &options()));
    assert!(text.contains("does not run the base"), "{text}");
    assert_eq!(target.maps(), before);
    assert_eq!(target.ask("open"), "opened");
    assert!(targets_of(&patch.base.build_id).unwrap().contains(&target.pid()));
    applied(apply_patch(target.pid(), patch, ID, &options()));
    assert_eq!(target.ask("call"), "100");
    reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!(target.ask("call"), "1");
}

/// Two processes of one program, each with another build of one library: each patch is for the one that has its base.
#[test]
fn another_build_in_another_process() {
    let program = Program::build(PROGRAM, &["-ldl"]);
    let libraries = [1, 5].map(|first| {
        Program::build(
            &LIBRARY.replace("x + 1;", &format!("x + {first};")),
            &["-fPIC", "-shared", "-Wl,-soname,libone.so"],
        )
    });
    let patches = [0, 1].map(|index: usize| {
        let new = NEW.replace("x + 100", &format!("x + {}", 100 + index));
        libraries[index].patch_with(&new, &["value"], &["-fPIC"])
    });
    let mut targets = [0, 1].map(|index: usize| program.spawn(&[libraries[index].exe.to_str().unwrap()]));
    for target in &mut targets {
        assert_eq!(target.ask("open"), "opened");
    }
    for (own, other) in [(0, 1), (1, 0)] {
        assert_eq!(targets_of(&patches[own].base.build_id).unwrap(), [targets[own].pid()]);
        let text = refused(apply_patch(targets[other].pid(), &patches[own], ID, &options()));
        assert!(text.contains("does not run the base"), "{text}");
    }
    let ids = [ID, "fedcba9876543210"];
    applied(apply_patch(targets[0].pid(), &patches[0], ids[0], &options()));
    assert_eq!([targets[0].ask("call"), targets[1].ask("call")], ["100", "5"]);
    assert!(!patched_processes().unwrap().contains(&targets[1].pid()));
    applied(apply_patch(targets[1].pid(), &patches[1], ids[1], &options()));
    assert_eq!([targets[0].ask("call"), targets[1].ask("call")], ["100", "101"]);
    for index in [0, 1] {
        reverted(revert(targets[index].pid(), Some(ids[index]), &options()));
    }
    assert_eq!([targets[0].ask("call"), targets[1].ask("call")], ["1", "5"]);
}
