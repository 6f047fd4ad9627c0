//! All that code does to what outlives it: what it calls with what, what it stores, reads, compares and answers.
//!
//! Values are known as far as [`notes`](super::notes) follow them.

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::notes::{ARGUMENTS, Blocks, Known, Loaded, Notes, callee, cell, code, is_immediate, note};
use crate::arch::{Act, Value};

/// All acts of one range of code, in order; the range is a function's `entry`, or a part of it that lies elsewhere.
/// `inside` tells whether an address lies in the same function.
pub(crate) fn acts(address: u64, bytes: &[u8], entry: bool, inside: impl Fn(u64) -> bool) -> Vec<Act> {
    let code = code(address, bytes);
    let mut factory = InstructionInfoFactory::new();
    let mut found = Vec::new();
    let blocks = Blocks::new(&code);
    for (first, mut notes) in blocks.notes(&Notes::at_entry(entry), &mut factory) {
        for instruction in blocks.instructions(first) {
            found.extend(acts_of(instruction, &notes, &mut factory, &inside));
            note(instruction, &mut notes, &mut factory);
        }
    }
    found
}

fn acts_of(
    instruction: &Instruction,
    notes: &Notes,
    factory: &mut InstructionInfoFactory,
    inside: &impl Fn(u64) -> bool,
) -> Vec<Act> {
    let mut found = in_memory(instruction, notes, factory);
    let how = instruction.mnemonic() as u32;
    if matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt) {
        let values = [0, 1].map(|n| operand(instruction, n, notes));
        found.push(Act::Tests { how, values });
    } else if instruction.flow_control() == FlowControl::ConditionalBranch {
        found.push(Act::Branches { how });
    } else if computes(instruction) {
        let number = (0..instruction.op_count()).find(|n| is_immediate(instruction.op_kind(*n)));
        found.push(Act::Computes { how, number: number.map(|n| instruction.immediate(n)) });
    }
    let leaves = match instruction.flow_control() {
        FlowControl::Call | FlowControl::IndirectCall => Some(false),
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
            Some(true).filter(|_| !inside(instruction.near_branch_target()))
        }
        FlowControl::IndirectBranch => Some(true),
        FlowControl::Return => {
            found.push(Act::Answers(value(notes.get(Register::RAX))));
            None
        }
        _ => None,
    };
    if let Some(ends) = leaves {
        let callee = match instruction.flow_control() {
            FlowControl::ConditionalBranch => Some(instruction.near_branch_target()),
            _ => callee(instruction),
        };
        let arguments = ARGUMENTS.map(|register| value(notes.get(register)));
        found.push(Act::Calls { callee, arguments });
        if ends {
            found.push(Act::Answers(Value::Answer(callee)));
        }
    }
    found
}

/// What an instruction reads from lasting memory and stores there, and the numbers and addresses that it puts into the frame.
fn in_memory(instruction: &Instruction, notes: &Notes, factory: &mut InstructionInfoFactory) -> Vec<Act> {
    if matches!(instruction.mnemonic(), Mnemonic::Lea | Mnemonic::Nop | Mnemonic::Call | Mnemonic::Ret) {
        // A call's slot is told with the call.
        return Vec::new();
    }
    let mut found = Vec::new();
    let is_operand = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
    for used in factory.info(instruction).used_memory() {
        let frame = [used.base(), used.index()].iter().any(|r| matches!(notes.get(*r), Known::Frame(_)));
        let place = if is_operand { cell(instruction, notes) } else { None };
        let through = [used.base(), used.index()].map(|register| value(notes.get(register)));
        let width = instruction.memory_size().size() as u32;
        let reads =
            !matches!(used.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::None | OpAccess::NoMemAccess);
        let writes =
            !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess);
        if reads && !frame {
            found.push(Act::Reads { cell: place, through, width });
        }
        if writes {
            let last = instruction.op_count().checked_sub(1).filter(|n| instruction.op_kind(*n) != OpKind::Memory);
            let stored = last.map_or(Value::Unknown, |last| operand(instruction, last, notes));
            let how = instruction.mnemonic() as u32;
            match stored {
                _ if !frame => found.push(Act::Stores { cell: place, through, width, how, value: stored }),
                Value::Number(_) | Value::Address(_) => found.push(Act::Keeps(stored)),
                _ => {}
            }
        }
    }
    found
}

/// True for what is no copy, address, zero or move of the stack pointer: those differ with the choice of registers.
fn computes(instruction: &Instruction) -> bool {
    use Mnemonic::{Endbr64, Lea, Leave, Mov, Movsx, Movsxd, Movzx, Nop, Pop, Push, Sub, Xor};
    let own = instruction.op0_kind() == OpKind::Register;
    let zero =
        own && matches!(instruction.mnemonic(), Sub | Xor) && instruction.op0_register() == instruction.op1_register();
    let stack = own && instruction.op0_register() == Register::RSP;
    let copies =
        matches!(instruction.mnemonic(), Endbr64 | Lea | Leave | Mov | Movsx | Movsxd | Movzx | Nop | Pop | Push);
    instruction.flow_control() == FlowControl::Next && !(zero || stack || copies)
}

/// What an operand that is read is.
fn operand(instruction: &Instruction, n: u32, notes: &Notes) -> Value {
    match instruction.op_kind(n) {
        OpKind::Register => value(notes.get(instruction.op_register(n))),
        OpKind::Memory => match (notes.load(instruction), cell(instruction, notes)) {
            (Some(known), _) => value(known),
            (None, Some(cell)) => value(Known::Loaded(Loaded::new(cell, instruction))),
            (None, None) => Value::Unknown,
        },
        kind if is_immediate(kind) => Value::Number(instruction.immediate(n)),
        _ => Value::Unknown,
    }
}

fn value(known: Known) -> Value {
    match known {
        Known::Nothing => Value::Unknown,
        Known::Frame(_) => Value::Frame,
        Known::Number(number) => Value::Number(number),
        Known::Address(address) => Value::Address(address),
        Known::Argument(n) => Value::Argument(n),
        Known::Answer(callee) => Value::Answer(callee),
        Known::Loaded(Loaded { cell, width, plus, shift }) => Value::Loaded { cell, width, plus, shift },
    }
}

#[cfg(test)]
mod tests {
    use super::acts;
    use crate::arch::{Act, Cell, Value};

    #[test]
    fn calls_stores_reads_and_answers() {
        // mov rax,[rdi+8]; mov [rsi+16],rax; lea rdx,[rip+0]; mov rdi,rsi; call 0x2000; mov [rbx],rax; mov eax,1; ret
        let code = [
            0x48, 0x8b, 0x47, 8, 0x48, 0x89, 0x46, 16, 0x48, 0x8d, 0x15, 0, 0, 0, 0, 0x48, 0x89, 0xf7, 0xe8, 0xe9,
            0x0f, 0, 0, 0x48, 0x89, 3, 0xb8, 1, 0, 0, 0, 0xc3,
        ];
        let found: Vec<Act> = acts(0x1000, &code, true, |a| (0x1000..0x1020).contains(&a));
        let how = iced_x86::Mnemonic::Mov as u32;
        let loaded = Value::Loaded { cell: Cell::Field(8), width: 8, plus: 0, shift: 0 };
        let through = |base| [base, Value::Unknown];
        let mut arguments = [0, 1, 2, 3, 4, 5].map(Value::Argument);
        (arguments[0], arguments[2]) = (Value::Argument(1), Value::Address(0x100f));
        let expected = [
            Act::Reads { cell: Some(Cell::Field(8)), through: through(Value::Argument(0)), width: 8 },
            Act::Stores {
                cell: Some(Cell::Field(16)),
                through: through(Value::Argument(1)),
                width: 8,
                how,
                value: loaded,
            },
            Act::Calls { callee: Some(0x2000), arguments },
            Act::Stores {
                cell: Some(Cell::Field(0)),
                through: through(Value::Unknown),
                width: 8,
                how,
                value: Value::Answer(Some(0x2000)),
            },
            Act::Answers(Value::Number(1)),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_jump_out_of_the_function_is_a_call_whose_answer_is_handed_on() {
        // jmp 0x2000
        let code = [0xe9, 0xfb, 0x0f, 0, 0];
        let found: Vec<Act> = acts(0x1000, &code, true, |_| false);
        let arguments = [0, 1, 2, 3, 4, 5].map(Value::Argument);
        let callee = Some(0x2000);
        assert_eq!(found, [Act::Calls { callee, arguments }, Act::Answers(Value::Answer(callee))]);
        let inside = acts(0x1000, &code, true, |_| true);
        assert_eq!(inside, []);
    }

    #[test]
    fn comparisons_are_told_with_both_values() {
        // mov rax,[rdi+8]; test rax,rax; cmp dword [rsi+4],5
        let code = [0x48, 0x8b, 0x47, 8, 0x48, 0x85, 0xc0, 0x83, 0x7e, 4, 5];
        let found: Vec<Act> = acts(0x1000, &code, true, |_| true);
        let loaded = |offset, width| Value::Loaded { cell: Cell::Field(offset), width, plus: 0, shift: 0 };
        let tests: Vec<Act> = found.into_iter().filter(|act| matches!(act, Act::Tests { .. })).collect();
        let [test, cmp] = [iced_x86::Mnemonic::Test, iced_x86::Mnemonic::Cmp].map(|how| how as u32);
        let expected = [
            Act::Tests { how: test, values: [loaded(8, 8); 2] },
            Act::Tests { how: cmp, values: [loaded(4, 4), Value::Number(5)] },
        ];
        assert_eq!(tests, expected);
    }

    #[test]
    fn conditions_and_computations_are_told_and_copies_are_not() {
        // xor eax,eax; add rsp,8; mov rcx,rdx; add rcx,3; sete al; je +0
        let code = [0x31, 0xc0, 0x48, 0x83, 0xc4, 8, 0x48, 0x89, 0xd1, 0x48, 0x83, 0xc1, 3, 0x0f, 0x94, 0xc0, 0x74, 0];
        let [add, sete, je] =
            [iced_x86::Mnemonic::Add, iced_x86::Mnemonic::Sete, iced_x86::Mnemonic::Je].map(|m| m as u32);
        let expected = [
            Act::Computes { how: add, number: Some(3) },
            Act::Computes { how: sete, number: None },
            Act::Branches { how: je },
        ];
        assert_eq!(acts(0x1000, &code, true, |_| true), expected);
    }

    #[test]
    fn numbers_in_the_frame_are_told_and_what_else_is_kept_there_is_not() {
        // mov dword [rsp-8],5; mov [rsp-16],rdi; rep movsb
        let code = [0xc7, 0x44, 0x24, 0xf8, 5, 0, 0, 0, 0x48, 0x89, 0x7c, 0x24, 0xf0, 0xf3, 0xa4];
        let found: Vec<Act> = acts(0x1000, &code, true, |_| true);
        assert_eq!(found[0], Act::Keeps(Value::Number(5)));
        let through = [Value::Argument(1), Value::Unknown];
        assert!(found.contains(&Act::Reads { cell: None, through, width: 1 }), "{found:?}");
        let stores = |act: &&Act| matches!(act, Act::Stores { cell: None, value: Value::Unknown, .. });
        assert_eq!((found.iter().filter(stores).count(), found.len()), (1, 4), "{found:?}");
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for start in (0..program.len()).step_by(1511) {
            acts(0, &program[start..program.len().min(start + 512)], true, |a| a % 2 == 0);
        }
    }
}
