//! Code that leaves one stack for another by itself: coroutines switched by a program's own assembly.
//!
//! A switch *keeps* the stack pointer (in memory, or in a register to be handed back) and *takes* another one that it has
//! been given. Compilers and functions that align or extend their frame write the stack pointer, too, but only with
//! what they had from it before: a copy in a register, or a word of their own frame. `longjmp` takes without keeping.
//!
//! Limits: code that keeps in one function and takes in another is not told from `setjmp` and `longjmp`. A copy of the stack
//! pointer counts as one from then on, or in the whole function if it is in a register that calls leave alone.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// Whether an instruction gives the stack pointer a value that does not come from a number or, by the instruction alone,
/// from the frame.
pub(super) fn may_take(instruction: &Instruction) -> bool {
    let first = instruction.op0_kind() == OpKind::Register && instruction.op0_register() == Register::RSP;
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Lea if first => match instruction.op1_kind() {
            OpKind::Register => instruction.op1_register() != Register::RBP,
            OpKind::Memory => !is_own(instruction),
            _ => false,
        },
        Mnemonic::Add => first && instruction.op1_kind() == OpKind::Register,
        Mnemonic::Xchg => {
            first || instruction.op1_kind() == OpKind::Register && instruction.op1_register() == Register::RSP
        }
        _ => false,
    }
}

/// Whether its memory operand is found from the stack or frame pointer.
fn is_own(instruction: &Instruction) -> bool {
    matches!(instruction.memory_base(), Register::RSP | Register::RBP)
}

/// Whether a function keeps the stack pointer and takes another one; its ranges of code.
pub(crate) fn switches_stacks<'b>(ranges: impl Iterator<Item = &'b [u8]>) -> bool {
    let mut moves = Vec::new();
    for bytes in ranges {
        let decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
        moves.extend(decoder.into_iter().take_while(|instruction| !instruction.is_invalid()).filter(gives_a_register));
    }
    if !moves.iter().any(keeps) {
        return false;
    }
    // A loop gives back above what it has kept below, in a register that calls leave alone.
    let mut anywhere = Own::default();
    while moves.iter().any(|instruction| anywhere.learn(instruction)) {}
    let mut own = Own(anywhere.0.into_iter().filter(|register| LASTING.contains(register)).collect());
    moves.iter().any(|instruction| {
        let takes = may_take(instruction) && !own.has_source(instruction);
        own.learn(instruction);
        takes
    })
}

/// The registers that a call leaves alone (psABI for AMD64, figure 3.4).
const LASTING: [Register; 5] = [Register::RBX, Register::R12, Register::R13, Register::R14, Register::R15];

/// Whether it can matter here: it moves, adds or exchanges whole registers.
fn gives_a_register(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Add | Mnemonic::Xchg)
}

/// Whether an instruction keeps the stack pointer somewhere, but for the frame pointer and the function's own frame.
fn keeps(instruction: &Instruction) -> bool {
    let of_stack = instruction.op1_kind() == OpKind::Register && instruction.op1_register() == Register::RSP;
    match (instruction.mnemonic(), instruction.op0_kind()) {
        (Mnemonic::Mov, OpKind::Register) => of_stack && instruction.op0_register() != Register::RBP,
        (Mnemonic::Mov, _) => of_stack && !is_own(instruction),
        (Mnemonic::Xchg, _) => may_take(instruction),
        _ => false,
    }
}

/// Registers that hold, or have held, what comes from the stack pointer: a copy, an address in the frame, or a word of the
/// frame.
#[derive(Default)]
struct Own(Vec<Register>);

impl Own {
    fn has(&self, register: Register) -> bool {
        matches!(register, Register::RSP | Register::RBP) || self.0.contains(&register)
    }

    /// Whether what an instruction moves is the function's own.
    fn has_source(&self, instruction: &Instruction) -> bool {
        match (instruction.mnemonic(), instruction.op1_kind()) {
            (Mnemonic::Xchg, OpKind::Register) if instruction.op1_register() == Register::RSP => {
                instruction.op0_kind() == OpKind::Register && self.has(instruction.op0_register())
            }
            (_, OpKind::Register) => self.has(instruction.op1_register()),
            (Mnemonic::Mov | Mnemonic::Lea, OpKind::Memory) => self.has(instruction.memory_base()),
            _ => false,
        }
    }

    /// Learns from an instruction; whether that was new.
    fn learn(&mut self, instruction: &Instruction) -> bool {
        let moves = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea);
        let register = instruction.op0_register();
        let new =
            moves && instruction.op0_kind() == OpKind::Register && self.has_source(instruction) && !self.has(register);
        if new {
            self.0.push(register);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(text: &str) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let [source, object, raw] = ["code.s", "code.o", "code.bin"].map(|name| folder.path().join(name));
        std::fs::write(&source, format!("{text}\n")).unwrap();
        let run = |tool: &str, arguments: &[&std::path::Path]| {
            assert!(std::process::Command::new(tool).args(arguments).status().unwrap().success());
        };
        run("as", &[&source, "-o".as_ref(), &object]);
        run("objcopy", &["-O".as_ref(), "binary".as_ref(), "-j".as_ref(), ".text".as_ref(), &object, &raw]);
        std::fs::read(raw).unwrap()
    }

    fn switches(text: &str) -> bool {
        switches_stacks(std::iter::once(&*assembled(text)))
    }

    #[test]
    fn what_switches() {
        for text in [
            "push %rbp\npush %rbx\nmov %rsp, (%rdi)\nmov (%rsi), %rsp\npop %rbx\npop %rbp\nret",
            "lea -56(%rsp), %rsp\nmov %rbx, (%rsp)\nmov %rsp, %rax\nmov %rdi, %rsp\nmov (%rsp), %rbx\nlea 56(%rsp), %rsp\nret",
            // A copy of the old one is handed on in the register that the new one came in.
            "push %rbp\nmov %rsp, %rax\nmov %rdi, %rsp\npop %rbp\nmov %rax, %rdi\nret",
            "push %rbp\nxchg %rsp, (%rdi)\npop %rbp\nret",
            "push %rbp\nxchg %rsp, %rdi\npop %rbp\nmov %rdi, %rax\nret",
            "mov %rsp, saved(%rip)\nmov other(%rip), %rsp\nret\n.comm saved, 8\n.comm other, 8",
            "mov %rsp, (%rdx)\nadd %rax, %rsp\nadd %rax, %rbp\nret",
        ] {
            assert!(switches(text), "{text}");
        }
    }

    #[test]
    fn what_only_arranges_its_own() {
        for text in [
            // A frame that is aligned, or has room for an array.
            "push %rbp\nmov %rsp, %rbp\nand $-64, %rsp\nsub $128, %rsp\nlea -8(%rbp), %rsp\npop %rbp\nret",
            "push %rbp\nmov %rsp, %rbp\nmov %rsp, %rbx\nsub %rax, %rsp\nmov %rbx, %rsp\nleave\nret",
            "lea 8(%rsp), %r10\nand $-32, %rsp\npush %r10\nmov %rsp, %rbp\nmov -8(%rbp), %r10\nlea -8(%r10), %rsp\nret",
            "mov %rsp, %rax\nsub $64, %rsp\nand $-64, %rsp\nmov %rax, 8(%rsp)\nmov 8(%rsp), %rsp\nret",
            "mov %rsp, %rax\nand $-64, %rsp\nmov %rax, (%rsp)\nmov (%rsp), %rcx\nlea (%rcx), %rsp\nret",
            "push %rbp\nmov %rsp, %rbp\n1: mov %r14, %rsp\nmov %rsp, %r14\nsub %rax, %rsp\njmp 1b",
            "mov %rsp, %rax\nand $-64, %rsp\nmov %rax, (%rsp)\nmov %rsp, %rbp\nmov %rbp, %rsp\npop %rsp\nret",
            "lea -312(%rsp), %r15\nand $-64, %r15\nxchg %rsp, %r15\nmov %r15, 16(%rsp)\nmov 16(%rsp), %rsi\nlea 48(%rsi), %rsp\nret",
            "mov %rsp, %r11\nand $31, %r11\nadd $512, %r11\nsub %r11, %rsp\nadd %r11, %rsp\nret",
            "sub $4096, %rsp\nmov %rsp, %rdi\ncall 1f\n1: add $4096, %rsp\nret",
            // longjmp, and what starts a thread.
            "mov 48(%rdi), %r8\nmov 56(%rdi), %rdx\nmov %esi, %eax\nmov %r8, %rsp\njmp *%rdx",
            "mov %rsp, 48(%rdi)\nxor %eax, %eax\nret",
        ] {
            assert!(!switches(text), "{text}");
        }
    }
}
