//! What happens to an address is asked along the ways that the code can take, by the engine and by the judge: none goes on behind a call
//! that never returns, and each goes on where a jump through a table leads.
//!
//! An empty text lies shortly before an array, in one build nearer than in the other. It is handed on as it is, unless some way
//! leads from there to where an index is added: then it may mean the array, and nothing is certain.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HP: &str = env!("CARGO_BIN_EXE_hp");

/// `WAY`: what lies between the address and the use of another one in the same register, at `2:`. `DIES`: how `die` ends.
const SOURCE: &str = r#"
    #include <stdlib.h>
    volatile long sum;
    __attribute__((noipa)) void hand_on(const char *text, int number) { sum += *text + number; }
    void work(int n);
    int main(int count, char **words) { (void)words; work(count); return (int)sum; }
    asm(".text\n"
        "die: mov $3, %edi\n DIES\n .type die, @function\n .size die, . - die\n"
        ".globl work\n .type work, @function\n"
        "work: push %rbx\n lea table(%rip), %rbx\n mov %edi, %eax\n cmp $1, %edi\n je 2f\n"
        "lea .Lempty(%rip), %rbx\n mov $EDIT, %esi\n mov %rbx, %rdi\n call hand_on\n"
        "WAY\n"
        "2: mov (%rbx,%rax,8), %rdi\n mov %rdi, sum(%rip)\n"
        "3: pop %rbx\n ret\n .size work, . - work\n"
        ".section .rodata\n .balign 64\n .Lempty: .byte 0\n .fill GAP\n"
        ".type table, @object\n table: .quad 1, 2, 3, 4\n .size table, . - table\n"
        ".Ljumps: .long 3b - .Ljumps, TO - .Ljumps\n .section .note.GNU-stack, \"\", @progbits\n .text\n");
    "#;

/// Jumps through a table to `3:` or elsewhere.
const SWITCH: &str = r"mov sum(%rip), %ecx\n and $1, %ecx\n lea .Ljumps(%rip), %rdx\n movslq (%rdx,%rcx,4), %rcx\n add %rdx, %rcx\n jmp *%rcx";

fn build(room: &Path, name: &str, source: &str) -> PathBuf {
    let (file, program) = (room.join("code.c"), room.join(name));
    std::fs::write(&file, source).unwrap();
    let gcc = Command::new("gcc").args(["-O1", "-g", "-Wl,--build-id"]).arg(&file).arg("-o").arg(&program).status();
    assert!(gcc.unwrap().success());
    program
}

/// What `hp diff`, which asks the judge, says where one number changes and the texts lie elsewhere.
fn diff(way: &str, dies: &str, to: &str) -> Output {
    let source = SOURCE.replace("WAY", way).replace("DIES", dies).replace("TO", to);
    let room = tempfile::tempdir().unwrap();
    let old = build(room.path(), "old", &source.replace("EDIT", "7").replace("GAP", "15"));
    let new = build(room.path(), "new", &source.replace("EDIT", "8").replace("GAP", "31"));
    let patch = room.path().join("patch");
    Command::new(HP).args(["diff", "-o"]).arg(&patch).arg(&old).arg(&new).output().unwrap()
}

#[track_caller]
fn is_certain(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn may_mean_the_table(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("error HP0206 work: "), "{said}");
}

#[test]
fn nothing_runs_behind_a_call_that_never_returns() {
    is_certain(&diff("call die", "call exit@plt", "3b"));
    is_certain(&diff("call die", "jmp abort@plt", "3b"));
    is_certain(&diff("call die", "1: jmp 1b", "3b"));
    is_certain(&diff("call exit@plt", "ret", "3b"));
}

#[test]
fn behind_any_other_call_the_code_goes_on() {
    may_mean_the_table(&diff("call die", "ret", "3b"));
    may_mean_the_table(&diff("call die", "jmp rand@plt", "3b"));
    may_mean_the_table(&diff("call die", "jmp *%rdi", "3b"));
    may_mean_the_table(&diff("call die", "call rand@plt\\n ret", "3b"));
    may_mean_the_table(&diff("call rand@plt", "ret", "3b"));
    // It goes on in what happens to lie behind it.
    may_mean_the_table(&diff("call die", "call rand@plt", "3b"));
}

#[test]
fn a_jump_through_a_table_leads_where_the_table_says() {
    is_certain(&diff(SWITCH, "ret", "3b"));
    may_mean_the_table(&diff(SWITCH, "ret", "2b"));
}
