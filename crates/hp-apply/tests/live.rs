//! Patches applied to and reverted from running programs.

mod common;
use common::*;
use hp_apply::{Done, Error, Phase, apply, apply_patch, patched_processes, revert, status, targets_of};
use std::time::Duration;

/// Answers each line by `answer` of the number in it.
const SERVER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int counter;
__attribute__((noinline,noclone)) int helper(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); counter++; return x * 2; }
__attribute__((noinline,noclone)) int answer(int x) {
    if (x > 100000) { puts("large"); fflush(stdout); }
    int sum = 0;
    for (int i = 0; i < x; i++) sum += helper(i) ^ i;
    return sum + 41;
}
int main(void) {
    char line[100];
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        printf("%d %zu\n", answer(atoi(line)), strlen(line));
        fflush(stdout);
    }
    return 0;
}
"#;

/// Without any reference of its own.
const PLAIN: &str = "int answer(int x) { return x + 1000; }";

fn cycle(flags: &[&str], patch_flags: &[&str]) {
    let program = Program::build(SERVER, flags);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    assert_eq!(target.ask("0"), "41 2");
    let patch = program.patch_with(PLAIN, &["answer"], patch_flags);
    let measured = applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!((measured.functions, measured.threads), (1, 1));
    assert!(measured.flip_pause_ns > 0);
    assert_eq!(target.ask("5"), "1005 2");
    reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!(target.ask("0"), "41 2");
    assert_eq!(target.maps(), before);
    target.assert_free();
}

#[test]
fn a_position_independent_program() {
    cycle(&["-fPIE", "-pie"], &["-fPIE"]);
}

#[test]
fn a_program_at_a_fixed_address() {
    cycle(&["-no-pie", "-fno-pie"], &["-fno-pie"]);
}

#[test]
fn a_program_with_endbr64() {
    cycle(&["-fcf-protection=full"], &["-fPIE", "-fcf-protection=full"]);
}

#[test]
fn a_static_program() {
    cycle(&["-static"], &["-fPIE"]);
}

/// New data, strings, base functions and base data, imports with and without a GOT slot, an ifunc.
const RICH: &str = r#"
#include <stdio.h>
#include <string.h>
extern int counter;
int helper(int);
static int calls = 5;
static int zeroed[1000];
static const char *const words[] = { "zero", "one" };
static int added(const char *text) { return strlen(text); }
__attribute__((noinline)) int answer(int x) {
    char text[100];
    calls++;
    zeroed[calls]++;
    snprintf(text, sizeof text, "%s-%d", words[x & 1], x);
    fputs("patched\n", stdout);
    return helper(x) + added(text) * 100 + counter * 10000 + calls * 1000000 + zeroed[calls] * 100000000;
}
"#;

#[test]
fn references_into_the_base_the_payload_and_libraries() {
    for (flags, patch_flags) in [
        (&["-fPIE", "-pie"][..], &["-fPIE"][..]),
        (&["-fPIE", "-pie"], &["-fPIC", "-fno-plt"]),
        (&["-no-pie", "-fno-pie"], &["-fno-pie", "-mcmodel=small"]),
        (&["-Wl,-z,now", "-Wl,--hash-style=sysv"], &["-fPIE"]),
    ] {
        let program = Program::build(SERVER, flags);
        let mut target = program.spawn(&[]);
        assert_eq!(target.ask("0"), "41 2");
        let patch = program.patch_with(RICH, &["answer"], patch_flags);
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        target.send("3");
        assert_eq!(target.line(), "patched", "{flags:?} {patch_flags:?}");
        // helper(3) + strlen("one-3") * 100 + counter 1, calls 6, zeroed 1
        assert_eq!(target.line(), format!("{} 2", 6 + 500 + 10000 + 6_000_000 + 100_000_000));
        reverted(revert(target.pid(), None, &options()));
        assert_eq!(target.ask("0"), "41 2");
    }
}

#[test]
fn a_hundred_cycles_leave_the_maps_as_they_were() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(RICH, &["answer"]);
    let before = target.maps();
    let code_at = target.bias(&program) + program.symbol("answer").unwrap().0;
    let code = target.memory(code_at, 64);
    for round in 0..100 {
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        if round == 50 {
            target.send("3");
            assert_eq!(target.line(), "patched");
            target.line();
        }
        reverted(revert(target.pid(), Some(ID), &options()));
        assert_eq!(target.memory(code_at, 64), code);
        if round < 50 {
            assert_eq!(target.maps(), before, "round {round}");
        } else {
            // The heap may have grown by stdio; nothing else may differ.
            assert_eq!(target.maps().lines().count(), before.lines().count(), "round {round}");
        }
    }
    assert_eq!(target.ask("0"), "41 2");
}

#[test]
fn told_twice_and_told_of_what_is_not_there() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(PLAIN, &["answer"]);
    assert_eq!(revert(target.pid(), None, &options()).result, Ok(Done::NotApplied));
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(apply_patch(target.pid(), &patch, ID, &options()).result, Ok(Done::AlreadyApplied));
    assert_eq!(revert(target.pid(), Some("00"), &options()).result, Ok(Done::NotApplied));
    let text = refused(apply_patch(target.pid(), &patch, "ffffffffffffffff", &options()));
    assert!(text.contains("has already replaced answer"), "{text}");
    assert_eq!(target.ask("5"), "1005 2");
    reverted(revert(target.pid(), None, &options()));
    assert_eq!(revert(target.pid(), None, &options()).result, Ok(Done::NotApplied));
}

#[test]
fn an_older_patch_is_refused_over_a_newer_one() {
    let program = Program::build(SERVER, &[]);
    let target = program.spawn(&[]);
    let mut newer = program.patch("int helper(int x) { return x; }", &["helper"]);
    newer.counter = 9;
    applied(apply_patch(target.pid(), &newer, ID, &options()));
    let older = program.patch(PLAIN, &["answer"]);
    let text = refused(apply_patch(target.pid(), &older, "aa", &options()));
    assert!(text.contains("a newer patch"), "{text}");
}

#[test]
fn two_patches_of_one_base_come_and_go_in_any_order() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let first = program.patch(PLAIN, &["answer"]);
    let second = program.patch("int helper(int x) { return 0; }", &["helper"]);
    applied(apply_patch(target.pid(), &first, "aa", &options()));
    applied(apply_patch(target.pid(), &second, "bb", &options()));
    assert_eq!(status(target.pid()).unwrap().len(), 2);
    reverted(revert(target.pid(), Some("aa"), &options()));
    assert_eq!(target.ask("3"), "44 2");
    reverted(revert(target.pid(), Some("bb"), &options()));
    assert_eq!(target.maps(), before);
}

/// Four patches, one for each of four functions: in every order that there is, one after another is reverted, and the others
/// stay what they are.
#[test]
fn four_patches_are_reverted_in_every_order() {
    let function = |name: char| {
        format!(
            "__attribute__((noinline,noclone)) int {name}(int x) {{ __asm__ volatile(\".byte 0x0f,0x1f,0x44,0,0\"); return x + 1; }}\n"
        )
    };
    let main = r#"
#include <stdio.h>
int main(void) {
    char line[100];
    puts("ready"); fflush(stdout);
    while (fgets(line, sizeof line, stdin)) { printf("%d%d%d%d\n", a(0), b(0), c(0), d(0)); fflush(stdout); }
    return 0;
}
"#;
    let source = "abcd".chars().map(function).collect::<String>() + main;
    let program = Program::build(&source, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let names = ["a", "b", "c", "d"];
    let patches = names.map(|name| program.patch(&format!("int {name}(int x) {{ return x + 2; }}"), &[name]));
    let mut orders = 0;
    for code in 0..256usize {
        let order = [code / 64, code / 16 % 4, code / 4 % 4, code % 4];
        if (0..4).any(|index| !order.contains(&index)) {
            continue;
        }
        for (name, patch) in names.iter().zip(&patches) {
            applied(apply_patch(target.pid(), patch, name, &options()));
        }
        let mut answer = *b"2222";
        for index in order {
            assert_eq!(target.ask("").as_bytes(), answer, "{order:?}");
            reverted(revert(target.pid(), Some(names[index]), &options()));
            answer[index] = b'1';
            let mut listed: Vec<String> = status(target.pid()).unwrap().into_iter().map(|entry| entry.id).collect();
            listed.sort();
            let expected: Vec<&str> = (0..4).filter(|&i| answer[i] == b'2').map(|i| names[i]).collect();
            assert_eq!(listed, expected, "{order:?}");
        }
        assert_eq!((target.ask("").as_str(), target.maps()), ("1111", before.clone()), "{order:?}");
        orders += 1;
    }
    assert_eq!(orders, 24);
}

/// A record for what is no function of the base: outside of it, in its data, in the middle of another one, empty; or one is
/// left out that others count on. Nothing is written.
#[test]
fn functions_that_are_not_there_are_refused() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let good = program.patch(PLAIN, &["answer"]);
    let address = good.functions[0].old_address;
    let (data, _) = program.symbol("counter").unwrap();
    for old_address in [good.base.span + 0x1000, 0u64.wrapping_sub(64), data, address + 1, address - 16, 0] {
        let mut patch = good.clone();
        patch.functions[0].old_address = old_address;
        let outcome = apply_patch(target.pid(), &patch, ID, &options());
        assert!(matches!(outcome.result, Err(Error::Refused(_) | Error::Unusable(_))), "{old_address:#x}: {outcome:?}");
    }
    for old_size in [0, 1, u64::MAX, good.base.span] {
        let mut patch = good.clone();
        patch.functions[0].old_size = old_size;
        let outcome = apply_patch(target.pid(), &patch, ID, &options());
        assert!(matches!(outcome.result, Err(Error::Refused(_) | Error::Unusable(_))), "{old_size:#x}: {outcome:?}");
    }
    let mut patch = good.clone();
    patch.functions.clear();
    let outcome = apply_patch(target.pid(), &patch, ID, &options());
    assert!(matches!(outcome.result, Err(Error::Refused(_) | Error::Unusable(_))), "{outcome:?}");
    assert_eq!((target.ask("0").as_str(), target.maps()), ("41 2", before));
    target.assert_free();
}

#[test]
fn status_and_lists_tell_the_truth() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(PLAIN, &["answer"]);
    assert!(targets_of(&program.build_id()).unwrap().contains(&target.pid()));
    assert!(!targets_of(&[1, 2, 3]).unwrap().contains(&target.pid()));
    assert!(!patched_processes().unwrap().contains(&target.pid()));
    assert_eq!(status(target.pid()).unwrap(), []);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert!(patched_processes().unwrap().contains(&target.pid()));
    let entries = status(target.pid()).unwrap();
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((entry.id.as_str(), entry.name.as_str(), entry.phase), (ID, "test", Phase::Active));
    assert_eq!(entry.base_path, program.exe.to_str().unwrap());
    assert_eq!(entry.functions[0].name, "answer");
    let (address, _) = program.symbol("answer").unwrap();
    assert_eq!(entry.functions[0].old_address, target.bias(&program) + address);
    assert_eq!(entry.damage, Vec::<String>::new());
    // Somebody scribbles over the new code and over an entry.
    let mem = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", target.pid())).unwrap();
    use std::os::unix::fs::FileExt;
    let old = target.memory(entry.functions[0].old_address, 1);
    mem.write_all_at(&[0x90], entry.functions[0].new_address + 1).unwrap();
    mem.write_all_at(&[0x90], entry.functions[0].old_address).unwrap();
    let damage = status(target.pid()).unwrap()[0].damage.join("; ");
    assert!(damage.contains("entry of answer") && damage.contains("the patch's code"), "{damage}");
    let text = refused(revert(target.pid(), None, &options()));
    assert!(text.contains("somebody else has changed the entry of answer"), "{text}");
    mem.write_all_at(&old, entry.functions[0].old_address).unwrap();
    reverted(revert(target.pid(), None, &options()));
    assert_eq!(target.ask("0"), "41 2");
}

#[test]
fn other_code_than_the_diff_saw_is_refused_and_nothing_is_written() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let mut patch = program.patch(PLAIN, &["answer"]);
    patch.functions[0].digest[7] ^= 1;
    let text = refused(apply_patch(target.pid(), &patch, ID, &options()));
    assert!(text.contains("not what the patch was made for: answer"), "{text}");
    let mut patch = program.patch(PLAIN, &["answer"]);
    patch.base.build_id = vec![1; 20];
    let text = refused(apply_patch(target.pid(), &patch, ID, &options()));
    assert!(text.contains("does not run the base"), "{text}");
    let mut patch =
        program.patch("int no_such_import(int); int answer(int x) { return no_such_import(x); }", &["answer"]);
    let text = refused(apply_patch(target.pid(), &patch, ID, &options()));
    assert!(text.contains("no_such_import"), "{text}");
    // A weak one may stay away.
    patch.symbols.iter_mut().filter(|s| s.name == "no_such_import").for_each(|s| s.weak = true);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!(target.maps(), before);
    assert_eq!(target.ask("0"), "41 2");
}

#[test]
fn a_rehearsal_changes_nothing() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let patch = program.patch(PLAIN, &["answer"]);
    let mut dry = options();
    dry.dry_run = true;
    let Ok(Done::Rehearsed(lines)) = apply_patch(target.pid(), &patch, ID, &dry).result else { panic!() };
    assert!(lines.iter().any(|line| line.contains("redirect answer")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("a safe point exists now")), "{lines:?}");
    assert_eq!(target.maps(), before);
    assert_eq!(target.ask("0"), "41 2");
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    let Ok(Done::Rehearsed(lines)) = revert(target.pid(), None, &dry).result else { panic!() };
    assert!(lines.iter().any(|line| line.contains("restore answer")), "{lines:?}");
    assert_eq!(target.ask("5"), "1005 2");
}

#[test]
fn a_patch_file_is_read_from_its_bytes() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let file = hp_pack::write(&program.patch(PLAIN, &["answer"])).unwrap();
    applied(apply(target.pid(), &file, &options()));
    assert_eq!(target.ask("5"), "1005 2");
    assert_eq!(status(target.pid()).unwrap()[0].id, hp_pack::id(&file));
    let mut cut = file.clone();
    cut[100] ^= 1;
    assert!(matches!(apply(target.pid(), &cut, &options()).result, Err(Error::Unusable(_))));
    reverted(revert(target.pid(), Some(&hp_pack::id(&file)), &options()));
}

#[test]
fn a_pause_that_is_not_allowed() {
    let program = Program::build(SERVER, &[]);
    let mut target = program.spawn(&[]);
    let before = target.maps();
    let patch = program.patch(PLAIN, &["answer"]);
    let mut strict = options();
    strict.max_pause = Some(Duration::from_nanos(1));
    let text = refused(apply_patch(target.pid(), &patch, ID, &strict));
    assert!(text.contains("allowed are"), "{text}");
    assert_eq!(target.maps(), before);
    assert_eq!(target.ask("0"), "41 2");
}

/// What a call of a patched function costs more than before: the entry is one jump to the new code, and nothing else.
#[test]
fn a_patched_call_is_one_jump() {
    let program = Program::build(SERVER, &[]);
    let target = program.spawn(&[]);
    let patch = program.patch("int answer(int x) { return x + 100; }", &["answer"]);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    let entry = &status(target.pid()).unwrap()[0];
    assert!(!entry.functions.is_empty());
    for function in &entry.functions {
        let code = target.memory(function.old_address, 5);
        assert_eq!(code[0], 0xe9, "{}: {code:02x?}", function.name);
        let distance = i32::from_le_bytes(code[1..].try_into().unwrap());
        let end = function.old_address.wrapping_add(5);
        assert_eq!(end.wrapping_add_signed(distance.into()), function.new_address, "{}", function.name);
    }
}
