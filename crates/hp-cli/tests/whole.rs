//! `hp verify` with both builds proves of each function that the patch leaves alone that it did not change: in builds without
//! debug information, and without symbols, too.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HP: &str = env!("CARGO_BIN_EXE_hp");

fn run(command: &mut Command) -> Output {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {done:?}");
    done
}

fn build(room: &Path, name: &str, source: &str, flags: &str) -> PathBuf {
    let (file, program) = (room.join(format!("{name}.c")), room.join(name));
    std::fs::write(&file, source).unwrap();
    run(Command::new("gcc").args(flags.split(' ')).arg(&file).arg("-o").arg(&program));
    program
}

/// Makes a patch of two versions of a program, of which `EDIT` is the difference, and lets the judge look at all of it. What `hp diff`
/// said.
#[track_caller]
fn proven(source: &str, flags: &str, edit: (&str, &str), stripped: bool) -> String {
    let room = tempfile::tempdir().unwrap();
    let old = build(room.path(), "old", &source.replace("EDIT", edit.0), flags);
    let new = build(room.path(), "new", &source.replace("EDIT", edit.1), flags);
    if stripped {
        run(Command::new("strip").arg("-s").arg(&old).arg(&new));
    }
    let patch = room.path().join("patch");
    let diff = run(Command::new(HP).args(["diff", "--allow", "HP0402", "-o"]).arg(&patch).arg(&old).arg(&new));
    run(Command::new(HP).arg("verify").arg(&patch).arg("--old").arg(&old).arg("--new").arg(&new));
    String::from_utf8(diff.stderr).unwrap()
}

/// A constant table that is a pair leads to static locals, which no code names.
#[test]
fn a_table_says_which_static_locals_are_which() {
    let source = r#"
        unsigned *of(int kind) {
            static unsigned letters[4] = {1, 2, 3, 4}, digits[4] = {5, 6, 7, 8}, signs[4] = {9, 10, 11, 12};
            static unsigned *const map[] = {letters, digits, letters, signs, signs};
            return map[kind];
        }
        int answer(int n) { return n * n % 1000 ^ EDIT; }"#;
    proven(source, "-O2 -shared -fPIC", ("77", "79"), false);
}

/// A thread-local variable without a symbol is the place where it lies.
#[test]
fn thread_local_variables_without_a_name_are_places() {
    let source = r#"
        static __thread int calls, depth;
        int enter(void) { return ++depth; }
        int called(int n) { calls += n; return calls * depth; }
        int answer(int n) { return n * n % 1000 ^ EDIT; }"#;
    proven(source, "-O2 -shared -fPIC", ("77", "79"), true);
}

/// What only changed functions call is replaced with them, though without a name nothing else says which function it became.
#[test]
fn functions_that_only_changed_ones_call_need_no_name() {
    let source = r#"
        #define APART __attribute__((noipa))
        APART static int inner(int n) { return n * 5 ^ EDIT; }
        APART static int weigh(int n) { return inner(n ^ EDIT) * 3 ^ n >> 2; }
        APART int other(int n) { return n * 7; }
        APART int answer(int n) { return weigh(other(n) + 1) + EDIT; }"#;
    let said = proven(source, "-O2 -shared -fPIC", ("77", "79"), true);
    assert_eq!(said.lines().filter(|l| l.trim_start().starts_with("changed")).count(), 3, "{said}");
}

/// But what somebody has the address of is in use as long as that is.
#[test]
fn functions_whose_address_is_taken_need_one() {
    let room = tempfile::tempdir().unwrap();
    let of = |number: &str| {
        let source = r#"
            #define APART __attribute__((noipa))
            APART static int weigh(int n) { return n * EDIT ^ n >> 2; }
            int (*hook)(int);
            APART void set(int n) { hook = n + EDIT ? weigh : 0; }
            APART int answer(int n) { return weigh(n + 1) + EDIT; }"#;
        let program = build(room.path(), number, &source.replace("EDIT", number), "-O2 -shared -fPIC");
        run(Command::new("strip").arg("-s").arg(&program));
        program
    };
    let patch = room.path().join("patch");
    let (old, new) = (of("77"), of("79"));
    let diff =
        Command::new(HP).args(["diff", "--allow", "HP0402", "-o"]).arg(&patch).arg(old).arg(new).output().unwrap();
    let said = String::from_utf8(diff.stderr).unwrap();
    assert!(diff.status.code() == Some(1) && said.contains("HP0213"), "{said}");
}

/// A constant that names a place in the source has another line, and so its users are left out.
#[test]
fn descriptors_of_places_have_other_lines() {
    let source = r#"
#line 1 "server.c"
        struct site { const char *file; const char *place; int line; };
        int report(const struct site *site) { return *site->file && *site->place ? site->line : -1; }
        int answer(int n) { return n * n % 1000 ^ EDIT; }
        #define TEXT(n) #n
        #define AT(n) TEXT(n)
        #define PLACE \
            static const struct site here = {__FILE__, "event " __FILE__ ":" AT(__LINE__), __LINE__}; \
            n += report(&here)
        int placed(int n) { PLACE; return n * 3; }"#;
    let said = proven(source, "-O2 -g -shared -fPIC -fno-inline", ("77", "\n79"), false);
    assert!(said.lines().any(|l| l.split_whitespace().take(2).eq(["lines", "placed"])), "{said}");
}

/// A loop over the last constant ends where the unwinder's tables begin.
#[test]
fn the_last_constant_ends_where_the_unwinder_begins() {
    let source = r#"
        __attribute__((visibility("hidden"))) const int map[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};
        int sum(void);
        int answer(int n) { return EDIT; }
        asm(".globl sum\n .type sum, @function\n sum: .cfi_startproc\n"
            "lea map(%rip), %rdx\n lea map+40(%rip), %rcx\n xor %eax, %eax\n"
            "1: add (%rdx), %eax\n add $4, %rdx\n cmp %rcx, %rdx\n jne 1b\n ret\n .cfi_endproc\n .size sum, . - sum");"#;
    proven(source, "-O2 -g -shared -fPIC", ("n * n", "n > 3 ? sum() * sum() : n * n"), false);
}
