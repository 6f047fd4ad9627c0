//! Which functions of a build could be redirected: entries written by hand, and what is said of each.

use std::process::Command;

use hp_diff::{Code, DebugPlaces, entries};

/// Functions with rows of their own, as compilers write them.
fn function(name: &str, body: &str) -> String {
    format!(
        ".globl {name}\n.type {name}, @function\n{name}:\n.cfi_startproc\n{body}\n.cfi_endproc\n.size {name}, . - {name}\n"
    )
}

#[test]
fn each_kind_of_entry_is_judged_by_its_own_finding() {
    let directory = tempfile::tempdir().unwrap();
    let text = [
        function("plain", "xor %eax, %eax\nmov %rdi, %rdx\nret"),
        function("system_call", "mov $39, %eax\nsyscall\nret"),
        function("loop_head_inside", "xor %eax, %eax\n1: inc %eax\ncmp %eax, %edi\njne 1b\nret"),
        function("reads_flags", "setc %al\nmovzbl %al, %eax\nret"),
        ".balign 16".into(),
        function("short", "ret"),
        function("behind_it", "xor %eax, %eax\nmov %rdi, %rdx\nret"),
    ];
    std::fs::write(directory.path().join("code.s"), format!(".text\n{}", text.join("\n"))).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-nostdlib", "code.s", "-o", "code.so"]).current_dir(directory.path());
    assert!(gcc.status().unwrap().success());
    let found = entries(&directory.path().join("code.so"), &DebugPlaces::default()).unwrap();
    let refused: Vec<(Code, Vec<String>)> = found.refused.into_iter().collect();
    assert_eq!(found.functions, 6);
    assert_eq!(
        refused,
        [
            (Code::EntryTooShort, vec!["short".to_owned()]),
            (Code::BranchIntoEntry, vec!["loop_head_inside".to_owned()]),
            (Code::FlagsLive, vec!["reads_flags".to_owned()]),
        ]
    );
}
