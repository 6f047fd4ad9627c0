//! What stays of a patch's memory after a revert: nothing, unless a pointer into it may be
//! left; then the revert says so.

mod common;
use common::*;
use hp_apply::{apply_patch, revert};

/// Waits for lines in a frame that is larger than all that `answer` ever used, and in it
/// whatever `answer` has left; one thread does the same in a handler on another stack.
const LEFTOVERS: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
const char quiet[] = "quiet";
static char line[100];
static int pipe_fds[2];
__attribute__((noinline,noclone)) const char *answer(int x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x > 1000 ? getenv("A") : "old"; }
__attribute__((noinline,noclone)) char *wait_for_line(void) {
    volatile char unused[16384];
    __asm__ volatile("" : : "r"(unused) : "memory");
    char *got = fgets(line, sizeof line, stdin);
    __asm__ volatile("" : : "r"(unused) : "memory");
    return got;
}
static void handler(int signal) {
    char byte; (void)signal;
    if (write(pipe_fds[1], "x", 1) != 1) abort();
    if (read(pipe_fds[0], &byte, 1) != 1) abort();
    for (;;) pause();
}
__attribute__((noinline,noclone)) static void raise_below(void) {
    volatile char unused[16384];
    __asm__ volatile("" : : "r"(unused) : "memory");
    raise(SIGUSR1);
}
static void *elsewhere(void *unused) {
    stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
    sigaltstack(&stack, 0);
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
    sigaction(SIGUSR1, &action, 0);
    answer(1);
    raise_below();
    return unused;
}
int main(void) {
    const char *volatile last = "";
    if (pipe(pipe_fds)) return 1;
    puts("ready"); fflush(stdout);
    while (wait_for_line()) {
        if (line[0] == 'k') last = answer(2);
        else if (line[0] == 'f') last = "forgotten";
        else if (line[0] == 't') { pthread_t thread; pthread_create(&thread, 0, elsewhere, 0); usleep(200000); }
        else if (line[0] == 'l') { printf("%s\n", last); fflush(stdout); continue; }
        puts(answer(3)); fflush(stdout);
    }
    return 0;
}
"#;

/// Gives out a pointer to its own constant.
const GIVING: &str = r#"
#include <unistd.h>
const char *answer(int x) { return getpid() > x ? "new" : "never"; }
"#;

/// Calls others, so that its return addresses stay on the stack, and gives out nothing of its own.
const CALLING: &str = r#"
#include <unistd.h>
static int calls;
extern const char quiet[];
const char *answer(int x) {
    volatile char deeper_than_puts[8192];
    deeper_than_puts[0] = 1;
    calls += getpid() > x;
    return deeper_than_puts[0] ? quiet : 0;
}
"#;

/// The executable mappings that no file is behind.
fn payload_code(target: &Process) -> Vec<(u64, u64)> {
    let maps = target.maps();
    let lines = maps.lines().filter(|line| line.contains(" r-xp 00000000 00:00 0"));
    lines
        .filter(|line| !line.contains('['))
        .map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap())
        })
        .collect()
}

/// How many words of the stack that the main thread uses lead into a range. By the kernel's word for where that is.
fn words_on_stack(target: &Process, range: (u64, u64)) -> usize {
    let call = std::fs::read_to_string(format!("/proc/{}/syscall", target.pid())).unwrap();
    let pointer = call.split_whitespace().rev().nth(1).unwrap().trim_start_matches("0x");
    let pointer = u64::from_str_radix(pointer, 16).unwrap();
    let maps = target.maps();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let end = stack.split(' ').next().unwrap().split_once('-').unwrap().1;
    let bytes = target.memory(pointer, (u64::from_str_radix(end, 16).unwrap() - pointer) as usize);
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    words.filter(|word| range.0 <= *word && *word < range.1).count()
}

/// The mappings without the heap's, which grows by itself.
fn steady(maps: &str) -> Vec<&str> {
    maps.lines().filter(|line| !line.ends_with("[heap]")).collect()
}

#[test]
fn stale_return_addresses_in_a_frame_in_use_do_not_keep_it() {
    let program = Program::build(LEFTOVERS, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(CALLING, &["answer"]);
    let before = target.maps();
    for _ in 0..100 {
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        target.ask("ask");
        std::thread::sleep(std::time::Duration::from_millis(2));
        let code = payload_code(&target)[0];
        assert!(words_on_stack(&target, code) > 0, "the situation is there");
        let measured = reverted(revert(target.pid(), Some(ID), &options()));
        assert_eq!((measured.kept, measured.mapped_bytes), (vec![], 0));
        assert_eq!(steady(&target.maps()), steady(&before));
        assert_eq!(target.ask("ask"), "old");
    }
}

#[test]
fn a_pointer_to_its_data_in_a_frame_in_use_keeps_it_and_is_named() {
    let program = Program::build(LEFTOVERS, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(GIVING, &["answer"]);
    let before = target.maps();
    for _ in 0..3 {
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        assert_eq!(target.ask("keep"), "new");
        let measured = reverted(revert(target.pid(), Some(ID), &options()));
        assert!(measured.mapped_bytes > 0 && measured.kept.len() == 1, "{measured:?}");
        assert!(measured.kept[0].contains("([stack]) may be a pointer into it"), "{measured:?}");
        assert_eq!(target.ask("l"), "new");
        assert_eq!(payload_code(&target).len(), 1, "and there is one only");
    }
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    target.ask("forget");
    // `puts` leaves what `answer` gave on the stack until it is called with something else.
    reverted(revert(target.pid(), Some(ID), &options()));
    for _ in 0..3 {
        assert_eq!(target.ask("ask"), "old");
    }
    revert(target.pid(), Some(ID), &options()).result.unwrap();
    assert_eq!(steady(&target.maps()), steady(&before));
}

#[test]
fn a_thread_in_a_handler_on_another_stack_does_not_keep_it() {
    let program = Program::build(LEFTOVERS, &[]);
    let mut target = program.spawn(&[]);
    let patch = program.patch(CALLING, &["answer"]);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    target.ask("thread");
    let measured = reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!((measured.kept, payload_code(&target).len()), (vec![], 0));
    assert_eq!(target.ask("ask"), "old");
}

/// What unwinders ask by is looked for in the tables of all modules, which takes the longer the larger these are:
/// never while the program stands. An apply, which looks before, is the measure.
#[test]
fn a_revert_stops_a_program_with_large_tables_no_longer_than_an_apply() {
    let many: String = (0..60_000).map(|i| format!("int a_name_that_takes_some_room_in_a_table_{i};\n")).collect();
    let work = |add| format!("__attribute__((noinline,noclone)) int work(int x) {{ {NOP} return x + {add}; }}\n");
    let main = "int main(void) { char line[9]; puts(\"ready\"); fflush(stdout);\n\
                while (fgets(line, sizeof line, stdin)) { printf(\"%d\\n\", work(0)); fflush(stdout); } return 0; }\n";
    let program = Program::build(&format!("#include <stdio.h>\n{many}{}{main}", work(1)), &["-rdynamic"]);
    let patch = program.patch(&work(2), &["work"]);
    let mut target = program.spawn(&[]);
    let mut shortest = [u64::MAX; 2];
    for _ in 0..7 {
        let measured = applied(apply_patch(target.pid(), &patch, ID, &options()));
        shortest[0] = shortest[0].min(measured.flip_pause_ns);
        assert_eq!(target.ask(""), "2");
        let measured = reverted(revert(target.pid(), None, &options()));
        shortest[1] = shortest[1].min(measured.flip_pause_ns);
        assert_eq!(target.ask(""), "1");
    }
    eprintln!("an apply {} ns, a revert {} ns", shortest[0], shortest[1]);
    assert!(shortest[1] < 3 * shortest[0] + 500_000, "an apply {} ns, a revert {} ns", shortest[0], shortest[1]);
}

const NOP: &str = "__asm__ volatile(\".byte 0x0f,0x1f,0x44,0,0\");";
