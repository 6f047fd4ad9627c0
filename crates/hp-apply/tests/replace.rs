//! A newer patch in the place of older ones of the same base.

mod common;
use common::*;
use hp_apply::{Done, Error, Phase, apply_patch, revert, status};
use hp_pack::Patch;
use std::time::Duration;

/// Answers each line with what three functions give.
const SERVER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#define APART __attribute__((noinline,noclone))
#define NOP __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0")
APART int one(int x) { NOP; return x + 1; }
APART int two(int x) { NOP; return x + 2; }
APART int three(int x) { NOP; return x + 3; }
int main(void) {
    char line[100];
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        int x = atoi(line);
        printf("%d %d %d\n", one(x), two(x), three(x));
        fflush(stdout);
    }
    return 0;
}
"#;

/// Each of these functions gives `x + add`.
fn patch(program: &Program, functions: &[&str], add: u32, counter: u64) -> Patch {
    let source: String = functions.iter().map(|name| format!("int {name}(int x) {{ return x + {add}; }}\n")).collect();
    Patch { counter, ..program.patch(&source, functions) }
}

fn active(target: &Process) -> Vec<String> {
    let entries = status(target.pid()).unwrap();
    for entry in &entries {
        assert_eq!(entry.damage, Vec::<String>::new(), "{}", entry.id);
    }
    entries.into_iter().filter(|entry| entry.phase == Phase::Active).map(|entry| entry.id).collect()
}

#[test]
fn the_same_functions_more_of_them_and_fewer() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    assert_eq!(target.ask("0"), "1 2 3");
    for (id, functions, add, counter, answer) in [
        ("aa", &["one", "two"][..], 10, 1, "10 10 3"),
        ("bb", &["one", "two"], 20, 2, "20 20 3"),
        ("cc", &["one", "two", "three"], 30, 3, "30 30 30"),
        // What it leaves alone is the base's again.
        ("dd", &["three"], 40, 4, "1 2 40"),
        ("ee", &["one", "three"], 50, 5, "50 2 50"),
    ] {
        let patch = patch(&program, functions, add, counter);
        let measured = applied(apply_patch(target.pid(), &patch, id, &options()));
        assert_eq!(measured.kept, Vec::<String>::new(), "{id}");
        assert_eq!((target.ask("0").as_str(), active(&target)), (answer, vec![id.to_owned()]));
        assert_eq!(apply_patch(target.pid(), &patch, id, &options()).result, Ok(Done::AlreadyApplied));
        target.assert_free();
    }
    assert_eq!(revert(target.pid(), Some("aa"), &options()).result, Ok(Done::NotApplied));
    let older = patch(&program, &["two"], 60, 4);
    assert!(refused(apply_patch(target.pid(), &older, "ff", &options())).contains("a newer patch"));
    reverted(revert(target.pid(), Some("ee"), &options()));
    assert_eq!((target.ask("0").as_str(), target.maps()), ("1 2 3", before));
}

#[test]
fn several_older_patches_at_once_and_one_that_is_apart() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    applied(apply_patch(target.pid(), &patch(&program, &["one"], 10, 1), "aa", &options()));
    applied(apply_patch(target.pid(), &patch(&program, &["two"], 20, 1), "bb", &options()));
    let rehearsal = hp_apply::Options { dry_run: true, ..options() };
    let newest = patch(&program, &["one", "two"], 30, 2);
    let Ok(Done::Rehearsed(lines)) = apply_patch(target.pid(), &newest, "cc", &rehearsal).result else { panic!() };
    assert_eq!(lines.iter().filter(|line| line.contains("take the place of patch")).count(), 2, "{lines:?}");
    assert_eq!(target.ask("0"), "10 20 3");
    applied(apply_patch(target.pid(), &newest, "cc", &options()));
    assert_eq!((target.ask("0").as_str(), active(&target)), ("30 30 3", vec!["cc".to_owned()]));
    applied(apply_patch(target.pid(), &patch(&program, &["three"], 40, 2), "dd", &options()));
    assert_eq!(target.ask("0"), "30 30 40");
    // Nobody knows which of two with the same counter is newer.
    let same = patch(&program, &["two", "three"], 50, 2);
    assert!(refused(apply_patch(target.pid(), &same, "ee", &options())).contains("higher counter"));
    reverted(revert(target.pid(), Some("cc"), &options()));
    assert_eq!(target.ask("0"), "1 2 40");
    reverted(revert(target.pid(), None, &options()));
    assert_eq!((target.ask("0").as_str(), target.maps()), ("1 2 3", before));
}

#[test]
fn two_hundred_patches_one_after_another_under_load() {
    let program = Program::build(VERSIONED, &[]);
    let mut target = program.spawn(&["4"]);
    let versions: Vec<Patch> = (2..6).map(|number| version(&program, number, 0)).collect();
    let before = target.maps().lines().count();
    for counter in 1..=200u64 {
        let number = counter as usize % versions.len();
        let patch = Patch { counter, ..versions[number].clone() };
        let id = format!("{counter:016x}");
        applied(apply_patch(target.pid(), &patch, &id, &options()));
        if counter.is_multiple_of(20) {
            assert_eq!((version_of(&mut target), active(&target)), (number as i64 + 2, vec![id]));
        }
    }
    assert!(target.maps().lines().count() <= before + 40, "{}", target.maps());
    reverted(revert(target.pid(), Some(&format!("{:016x}", 200)), &options()));
    assert_eq!(version_of(&mut target), 1);
    target.assert_free();
}

/// A frame of the *older patch's* function holds the replacement up, and is named.
#[test]
fn a_thread_in_the_older_patch_is_in_the_way() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let source = "unsigned sleep(unsigned); int one(int x) { if (x == 7) sleep(3); return x + 10; }";
    applied(apply_patch(target.pid(), &program.patch(source, &["one"]), "aa", &options()));
    target.send("7");
    target.wait_for_sleep();
    let newer = patch(&program, &["one"], 20, 2);
    let quick = hp_apply::Options { timeout: Duration::from_millis(300), ..options() };
    match apply_patch(target.pid(), &newer, "bb", &quick).result {
        Err(Error::Busy(lines)) => assert!(lines.iter().any(|line| line.contains("in one+")), "{lines:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(active(&target), ["aa"]);
    assert_eq!((target.line().as_str(), target.ask("0").as_str()), ("17 9 10", "10 2 3"));
    applied(apply_patch(target.pid(), &newer, "bb", &options()));
    assert_eq!(target.ask("0"), "20 2 3");
}

/// Says of a variable what it is, as the diff does.
fn identified(mut patch: Patch, name: &str, identity: &str) -> Patch {
    let variable = patch.symbols.iter().find(|symbol| symbol.name == name).unwrap().clone();
    let symbol = hp_pack::Symbol {
        name: format!("hpatch.variable.{identity}"),
        kind: hp_pack::SymbolKind::Other,
        size: 0,
        ..variable
    };
    // Imports come last, and there are none.
    patch.symbols.push(symbol);
    patch
}

fn counting(program: &Program, identity: &str, add: u32, counter: u64) -> Patch {
    let source = format!("int calls = 5; int other; int one(int x) {{ other++; return ++calls * 100 + {add}; }}");
    let patch = Patch { counter, ..program.patch(&source, &["one"]) };
    identified(identified(patch, "calls", identity), "other", "other")
}

#[test]
fn values_of_added_variables_are_kept() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    applied(apply_patch(target.pid(), &counting(&program, "calls int", 1, 1), "aa", &options()));
    assert_eq!((target.ask("0"), target.ask("0")), ("601 2 3".into(), "701 2 3".into()));
    // The first payload stays for its variables, however many patches follow.
    for round in 2..6u64 {
        let newer = counting(&program, "calls int", round as u32, round);
        applied(apply_patch(target.pid(), &newer, &format!("{round:02x}"), &options()));
        assert_eq!(target.ask("0"), format!("{}0{round} 2 3", round + 6));
    }
    // Nobody says that this is the same variable; that one is dropped.
    let other = counting(&program, "calls float", 9, 9);
    let text = refused(apply_patch(target.pid(), &other, "99", &options()));
    assert!(text.contains("variable calls") && text.contains("revert it first"), "{text}");
    assert_eq!(target.ask("0"), "1205 2 3");
    assert_eq!(status(target.pid()).unwrap().len(), 2);
    reverted(revert(target.pid(), Some("05"), &options()));
    assert_eq!((target.ask("0").as_str(), target.maps()), ("1 2 3", before.clone()));

    applied(apply_patch(target.pid(), &counting(&program, "calls int", 1, 1), "aa", &options()));
    assert_eq!(target.ask("0"), "601 2 3");
    applied(apply_patch(target.pid(), &patch(&program, &["one"], 10, 2), "bb", &options()));
    assert_eq!(target.ask("0"), "10 2 3");
    reverted(revert(target.pid(), None, &options()));
    assert_eq!(target.maps(), before);
}

/// Each function says how many frames an unwinder sees from it.
const UNWINDING: &str = r#"
#include <execinfo.h>
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline,noclone)) int depth(void) { void *frames[50]; return backtrace(frames, 50); }
__attribute__((noinline,noclone)) int one(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return depth() * 10 + x; }
int main(void) {
    depth();
    puts("ready"); fflush(stdout);
    char line[100];
    while (fgets(line, sizeof line, stdin)) { printf("%d\n", one(atoi(line))); fflush(stdout); }
}
"#;

/// Start, end and rights of each mapping.
fn mappings(maps: &str) -> Vec<(u64, u64, String)> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?, words.next()?.to_owned()))
    };
    maps.lines().filter_map(line).collect()
}

/// Words in memory that can be read but not run, which lead into one of these ranges.
fn words_into(target: &Process, ranges: &[(u64, u64, String)]) -> usize {
    let searched = mappings(&target.maps()).into_iter().filter(|(start, end, rights)| {
        rights.starts_with('r') && !rights.contains('x') && *start < 1 << 47 && end - start < 1 << 24
    });
    let mut found = 0;
    for (start, end, _) in searched.filter(|own| !ranges.contains(own)) {
        let stack =
            target.maps().lines().any(|line| line.starts_with(&format!("{start:x}-")) && line.contains("[stack]"));
        if stack || target.maps().lines().any(|line| line.starts_with(&format!("{start:x}-")) && line.contains("[vvar"))
        {
            continue;
        }
        let memory = target.memory(start, (end - start) as usize);
        let words = memory.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        found += words.filter(|word| ranges.iter().any(|(start, end, _)| start <= word && word < end)).count();
    }
    found
}

/// Unwinders do not ask code that is dead: the older patch's memory goes, or, where its variables are used, nothing
/// leads into its code any more.
#[test]
fn unwinders_forget_the_older_patch() {
    let program = Program::build(UNWINDING, &[]);
    for keeps in [false, true] {
        let mut target = program.spawn(&[]);
        let before = target.ask("1");
        let at_first = mappings(&target.maps());
        let make = |add: u32, counter: u64| {
            let source = format!(
                "int depth(void); int calls = 5; int one(int x) {{ calls++; return depth() * 10 + x + {add}; }}"
            );
            let patch = Patch { counter, ..program.patch(&source, &["one"]) };
            if keeps { identified(patch, "calls", "calls int") } else { patch }
        };
        let source = "int depth(void); int one(int x) { return depth() * 10 + x + 1; }";
        let older = if keeps { make(1, 1) } else { program.patch(source, &["one"]) };
        applied(apply_patch(target.pid(), &older, "aa", &options()));
        let expected = |add: i32| (before.parse::<i32>().unwrap() + add).to_string();
        assert_eq!(target.ask("1"), expected(1));
        let code: Vec<_> = mappings(&target.maps())
            .into_iter()
            .filter(|mapping| mapping.2.contains('x') && !at_first.contains(mapping))
            .collect();
        assert!(!code.is_empty() && words_into(&target, &code) > 0, "no unwinder was led to the patch");
        let measured = applied(apply_patch(target.pid(), &make(2, 2), "bb", &options()));
        assert_eq!((measured.kept.clone(), target.ask("1")), (Vec::new(), expected(2)));
        assert_eq!(mappings(&target.maps()).contains(&code[0]), keeps);
        if keeps {
            assert_eq!(words_into(&target, &code), 0, "something leads into dead code");
        }
        reverted(revert(target.pid(), Some("bb"), &options()));
        assert_eq!((target.ask("1"), mappings(&target.maps())), (before, at_first));
    }
}
