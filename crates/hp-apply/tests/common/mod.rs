//! Test programs, patches for them made by hand, and processes that never outlive a test.
//!
//! A patch is made from a C file: it is compiled to a relocatable object, whose sections,
//! symbols and relocations are carried over. Names that the base defines lead into the base,
//! unknown ones are imports. Thunks are assembled here. So these patches owe nothing to the diff.
#![allow(dead_code, unreachable_pub)]

use hp_apply::{Done, Error, Options, Outcome};
use hp_pack::{
    Base, EM_X86_64, Entry, FunctionRecord, Patch, Place, Relocation, RelocationKind, Role, Section, SectionKind,
    Symbol, SymbolKind,
};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, RelocationTarget};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A compiled test program.
pub struct Program {
    pub dir: tempfile::TempDir,
    pub exe: PathBuf,
    file: Vec<u8>,
}

pub fn run_tool(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool).args(arguments).output().unwrap_or_else(|e| panic!("{tool}: {e}"));
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Program {
    /// Compiles a program from C.
    pub fn build(source: &str, flags: &[&str]) -> Program {
        Program::build_with("gcc", source, flags)
    }

    /// Compiles a program that tells on stderr where it dies, if it does.
    pub fn build_telling(source: &str, flags: &[&str]) -> Program {
        Program::build(&format!("{TELLS}#line 1 \"target.c\"\n{source}"), flags)
    }

    /// The same with another compiler.
    pub fn build_with(compiler: &str, source: &str, flags: &[&str]) -> Program {
        let dir = tempfile::tempdir().unwrap();
        let c = dir.path().join("target.c");
        let exe = dir.path().join("target");
        std::fs::write(&c, source).unwrap();
        // Without -fno-ipa-ra a caller may keep values in registers of which it knows that the
        // *old* function leaves them alone. Whether a new one may clobber them is the diff's
        // question; patches made by hand do not ask it.
        let mut arguments = vec!["-O2", "-g", "-fno-ipa-ra", "-pthread", "-Wl,--build-id=sha1", "-o"];
        arguments.extend([exe.to_str().unwrap(), c.to_str().unwrap()]);
        arguments.extend(flags);
        run_tool(compiler, &arguments);
        let file = std::fs::read(&exe).unwrap();
        Program { dir, exe, file }
    }

    pub fn build_id(&self) -> Vec<u8> {
        object::File::parse(&*self.file).unwrap().build_id().unwrap().unwrap().to_vec()
    }

    /// Link-time address and size of a symbol.
    pub fn symbol(&self, name: &str) -> Option<(u64, u64)> {
        let object = object::File::parse(&*self.file).unwrap();
        object.symbols().find(|s| s.is_definition() && s.name() == Ok(name)).map(|s| (s.address(), s.size()))
    }

    pub fn bytes(&self, address: u64, size: u64) -> Vec<u8> {
        let object = object::File::parse(&*self.file).unwrap();
        object.segments().find_map(|s| s.data_range(address, size).ok().flatten()).unwrap().to_vec()
    }

    /// A patch that replaces functions by the same-named ones of a C source.
    pub fn patch(&self, source: &str, replaced: &[&str]) -> Patch {
        self.patch_with(source, replaced, &["-fPIE"])
    }

    pub fn patch_with(&self, source: &str, replaced: &[&str], flags: &[&str]) -> Patch {
        let dir = tempfile::tempdir().unwrap();
        let c = dir.path().join("new.c");
        let o = dir.path().join("new.o");
        std::fs::write(&c, source).unwrap();
        let mut arguments = vec!["-O2", "-c", "-fno-common", "-o", o.to_str().unwrap(), c.to_str().unwrap()];
        arguments.extend(flags);
        run_tool("gcc", &arguments);
        Maker::make(self, &std::fs::read(&o).unwrap(), replaced)
    }

    pub fn spawn(&self, arguments: &[&str]) -> Process {
        Process::spawn(Command::new(&self.exe).args(arguments))
    }
}

struct Maker<'a> {
    program: &'a Program,
    object: object::File<'a>,
    /// Where each section of the object goes.
    placed: BTreeMap<usize, (SectionKind, u64)>,
    sections: BTreeMap<SectionKind, Section>,
    symbols: Vec<Symbol>,
    relocations: Vec<Relocation>,
}

impl<'a> Maker<'a> {
    fn make(program: &'a Program, file: &'a [u8], replaced: &[&str]) -> Patch {
        let object = object::File::parse(file).unwrap();
        let mut maker = Maker {
            program,
            object,
            placed: BTreeMap::new(),
            sections: BTreeMap::new(),
            symbols: Vec::new(),
            relocations: Vec::new(),
        };
        maker.place_sections();
        maker.add(SectionKind::State, &[0], 1);
        maker.carry_over();
        let functions = maker.thunks(replaced);
        maker.finish(functions)
    }

    fn place_sections(&mut self) {
        let sections: Vec<_> = self
            .object
            .sections()
            .map(|s| (s.index().0, s.name().unwrap().to_owned(), s.data().unwrap_or(&[]).to_vec(), s.align(), s.size()))
            .collect();
        for (index, name, data, align, size) in sections {
            let kind = match name.as_str() {
                n if n == ".text" || n.starts_with(".text.") => SectionKind::Text,
                n if n.starts_with(".rodata") => SectionKind::Rodata,
                n if n.starts_with(".data.rel.ro") => SectionKind::DataRelRo,
                ".eh_frame" => SectionKind::EhFrame,
                n if n == ".data" || n.starts_with(".data.") => SectionKind::Data,
                ".bss" => SectionKind::Bss,
                _ => continue,
            };
            if size == 0 {
                continue;
            }
            let offset = if kind == SectionKind::Bss {
                self.sections.insert(kind, Section { kind, align: align.max(1), size, data: Vec::new() });
                0
            } else {
                self.add(kind, &data, align.max(1))
            };
            self.placed.insert(index, (kind, offset));
        }
    }

    fn add(&mut self, kind: SectionKind, data: &[u8], align: u64) -> u64 {
        let section = self.sections.entry(kind).or_insert(Section { kind, align: 1, size: 0, data: Vec::new() });
        section.align = section.align.max(align);
        while !(section.data.len() as u64).is_multiple_of(align) {
            section.data.push(0);
        }
        let offset = section.data.len() as u64;
        section.data.extend(data);
        section.size = section.data.len() as u64;
        offset
    }

    fn intern(&mut self, symbol: Symbol) -> u32 {
        if let Some(index) = self.symbols.iter().position(|known| *known == symbol) {
            return index as u32;
        }
        self.symbols.push(symbol);
        (self.symbols.len() - 1) as u32
    }

    fn symbol_of(&mut self, index: object::SymbolIndex) -> u32 {
        let symbol = self.object.symbol_by_index(index).unwrap();
        let name = symbol.name().unwrap_or("").to_owned();
        let variable = symbol.kind() == object::SymbolKind::Data && symbol.is_definition();
        let kind = match symbol.kind() {
            object::SymbolKind::Text => SymbolKind::Function,
            _ if variable => SymbolKind::Object,
            _ => SymbolKind::Other,
        };
        let size = if variable { symbol.size() } else { 0 };
        let (place, value) = match symbol.section_index() {
            Some(section) => {
                let (kind, offset) = self.placed[&section.0];
                (Place::Payload(kind), offset + symbol.address())
            }
            None => match self.program.symbol(&name) {
                Some((address, _)) => (Place::Base, address),
                None => (Place::Import, 0),
            },
        };
        self.intern(Symbol { name, kind, place, value, size, weak: symbol.is_weak() && place == Place::Import })
    }

    fn carry_over(&mut self) {
        let mut all = Vec::new();
        for section in self.object.sections() {
            let Some(&(kind, base)) = self.placed.get(&section.index().0) else { continue };
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(symbol) = relocation.target() else { panic!("relocation target") };
                let object::RelocationFlags::Elf { r_type } = relocation.flags() else { panic!("not ELF") };
                // The relaxable forms of GOTPCREL are the same to one who does not relax.
                let r_type = if matches!(r_type.0, 41 | 42) { 9 } else { r_type.0 };
                all.push((kind, base + offset, r_type, symbol, relocation.addend()));
            }
        }
        for (section, offset, r_type, symbol, addend) in all {
            let kind = RelocationKind::from_number(r_type).unwrap_or_else(|| panic!("relocation type {r_type}"));
            let symbol = self.symbol_of(symbol);
            self.relocations.push(Relocation { section, offset, kind, symbol, addend });
        }
    }

    fn new_function(&mut self, name: &str) -> u32 {
        let symbol = self.object.symbols().find(|s| s.name() == Ok(name) && s.is_definition()).unwrap();
        let index = symbol.index();
        self.symbol_of(index)
    }

    fn thunks(&mut self, replaced: &[&str]) -> Vec<FunctionRecord> {
        let state = self.intern(Symbol {
            name: "hpatch_state".into(),
            kind: SymbolKind::Object,
            place: Place::Payload(SectionKind::State),
            value: 0,
            size: 1,
            weak: false,
        });
        let mut records = Vec::new();
        for name in replaced {
            let (address, size) = self.program.symbol(name).unwrap();
            let bytes = self.program.bytes(address, size.max(9));
            let site_offset = if bytes.starts_with(&[0xf3, 0x0f, 0x1e, 0xfa]) { 4u8 } else { 0 };
            let site = address + u64::from(site_offset);
            let displaced = displaced(&self.program.exe, site);
            let code = self.program.bytes(site, displaced);
            let new_symbol = self.new_function(name);
            let at = self.add(SectionKind::Thunks, &[], 16);
            let mut thunk = vec![0x80, 0x3d, 0, 0, 0, 0, 0, 0x0f, 0x85, 0, 0, 0, 0];
            thunk.extend(&code);
            thunk.extend([0xe9, 0, 0, 0, 0]);
            self.add(SectionKind::Thunks, &thunk, 1);
            let back = self.intern(Symbol {
                name: format!("{name}.rest"),
                kind: SymbolKind::Other,
                place: Place::Base,
                value: site + displaced,
                size: 0,
                weak: false,
            });
            for (offset, symbol, addend) in [(2, state, -5), (9, new_symbol, -4), (14 + code.len() as u64, back, -4)] {
                self.relocations.push(Relocation {
                    section: SectionKind::Thunks,
                    offset: at + offset,
                    kind: RelocationKind::Pc32,
                    symbol,
                    addend,
                });
            }
            let thunk_symbol = self.intern(Symbol {
                name: format!("{name}.thunk"),
                kind: SymbolKind::Function,
                place: Place::Payload(SectionKind::Thunks),
                value: at,
                size: 0,
                weak: false,
            });
            let site_bytes = self.program.bytes(site, 5).try_into().unwrap();
            let (displaced, may_go_on) = (displaced as u8, false);
            let entry = Entry { new_symbol, thunk_symbol, site_offset, site_bytes, displaced, may_go_on };
            let digest = sha256(&self.program.bytes(address, size));
            records.push(FunctionRecord { old_address: address, old_size: size, digest, role: Role::Entry(entry) });
        }
        records.sort_by_key(|record| record.old_address);
        records
    }

    fn finish(mut self, functions: Vec<FunctionRecord>) -> Patch {
        self.relocations.sort_by_key(|r| (r.section, r.offset));
        // Imports come last.
        let mut order: Vec<usize> = (0..self.symbols.len()).collect();
        order.sort_by_key(|&index| self.symbols[index].place == Place::Import);
        let moved: Vec<u32> =
            (0..order.len()).map(|old| order.iter().position(|&index| index == old).unwrap() as u32).collect();
        let symbols = order.iter().map(|&index| self.symbols[index].clone()).collect();
        for relocation in &mut self.relocations {
            relocation.symbol = moved[relocation.symbol as usize];
        }
        let functions = functions
            .into_iter()
            .map(|mut record| {
                if let Role::Entry(entry) = &mut record.role {
                    entry.new_symbol = moved[entry.new_symbol as usize];
                    entry.thunk_symbol = moved[entry.thunk_symbol as usize];
                }
                record
            })
            .collect();
        let object = object::File::parse(&*self.program.file).unwrap();
        let span = object.segments().map(|s| s.address() + s.size()).max().unwrap();
        Patch {
            name: "test".into(),
            machine: EM_X86_64,
            counter: 1,
            base: Base {
                build_id: self.program.build_id(),
                span,
                fixed_address: object.kind() == object::ObjectKind::Executable,
            },
            sections: self.sections.into_values().collect(),
            symbols,
            relocations: self.relocations,
            functions,
            manifest: b"{}".to_vec(),
        }
    }
}

/// Length of the whole instructions that a 5-byte jump at `site` touches, from the disassembler.
fn displaced(exe: &Path, site: u64) -> u64 {
    let start = format!("--start-address={site:#x}");
    let stop = format!("--stop-address={:#x}", site + 32);
    let text = run_tool("objdump", &["-dw", &start, &stop, exe.to_str().unwrap()]);
    for line in text.lines() {
        let Some((address, rest)) = line.trim().split_once(":\t") else { continue };
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        if address >= site + 5 {
            return address - site;
        }
        let code = rest.split_once('\t').map_or("", |x| x.1);
        let relative = ["(%rip)", "call", "jmp", "ret"].iter().any(|word| code.contains(word)) || code.starts_with('j');
        assert!(!relative, "the first instructions of a test function cannot be displaced: {line}");
    }
    panic!("no instruction after the site");
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bytes");
    std::fs::write(&file, bytes).unwrap();
    // An implementation that shares nothing with ours.
    let text = run_tool("sha256sum", &[file.to_str().unwrap()]);
    let mut digest = [0; 32];
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).unwrap();
    }
    digest
}

/// A running test program that answers each line with a line; killed when dropped.
pub struct Process {
    child: RefCell<Child>,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = lines(child.stdout.take().unwrap());
        let process = Process { child: RefCell::new(child), input, output };
        assert_eq!(process.line(), "ready");
        process
    }

    pub fn pid(&self) -> i32 {
        self.child.borrow().id() as i32
    }

    #[track_caller]
    pub fn send(&mut self, text: &str) {
        let sent = self.input.write_all(format!("{text}\n").as_bytes());
        sent.unwrap_or_else(|error| panic!("the target reads no more: {error}; {}", self.fate()));
    }

    #[track_caller]
    pub fn line(&self) -> String {
        let line = self.output.recv_timeout(Duration::from_secs(20));
        line.unwrap_or_else(|error| panic!("the target answers no more: {error}; {}", self.fate()))
    }

    /// Whether it lives, or how it ended (`wait(2)`: exit code, signal, core), once it has had the time to.
    pub fn fate(&self) -> String {
        std::thread::sleep(Duration::from_millis(200));
        match self.child.borrow_mut().try_wait() {
            Ok(None) => "it lives".to_owned(),
            Ok(Some(status)) => format!("it ended: {status}"),
            Err(error) => error.to_string(),
        }
    }

    /// Waits until its main thread sleeps (`clock_nanosleep`, number 230).
    pub fn wait_for_sleep(&self) {
        let path = format!("/proc/{}/syscall", self.pid());
        let sleeps = || std::fs::read_to_string(&path).is_ok_and(|call| call.starts_with("230 "));
        let began = std::time::Instant::now();
        while !sleeps() {
            assert!(began.elapsed() < Duration::from_secs(20), "it does not sleep");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.line()
    }

    pub fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).unwrap()
    }

    pub fn memory(&self, address: u64, len: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; len];
        std::fs::File::open(format!("/proc/{}/mem", self.pid())).unwrap().read_exact_at(&mut bytes, address).unwrap();
        bytes
    }

    /// What the loader added to the program's addresses.
    pub fn bias(&self, program: &Program) -> u64 {
        let object = object::File::parse(&*program.file).unwrap();
        if object.kind() == object::ObjectKind::Executable {
            return 0;
        }
        let name = program.exe.to_str().unwrap();
        let maps = self.maps();
        let line = maps.lines().find(|line| line.ends_with(name)).unwrap();
        u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap()
    }

    /// Nobody traces it, and no thread of it stands.
    #[track_caller]
    pub fn assert_free(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut bad = Vec::new();
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
            for task in tasks.unwrap_or_else(|error| panic!("{error}; {}", self.fate())).flatten() {
                let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
                let get = |key: &str| status.lines().find(|l| l.starts_with(key)).unwrap_or("").to_owned();
                let (state, tracer) = (get("State:"), get("TracerPid:"));
                if state.contains('t') && state.contains("tracing") || !tracer.is_empty() && !tracer.ends_with("\t0") {
                    bad.push((state, tracer));
                }
            }
            if bad.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "threads are not free: {bad:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

pub fn options() -> Options {
    Options { timeout: Duration::from_secs(10), max_pause: None, dry_run: false, relaxed: false }
}

pub const ID: &str = "0123456789abcdef";

#[track_caller]
pub fn applied(outcome: Outcome) -> hp_apply::Measured {
    match outcome.result {
        Ok(Done::Applied(measured)) => measured,
        other => panic!("not applied: {other:?}"),
    }
}

#[track_caller]
pub fn reverted(outcome: Outcome) -> hp_apply::Measured {
    match outcome.result {
        Ok(Done::Reverted(measured)) => measured,
        other => panic!("not reverted: {other:?}"),
    }
}

#[track_caller]
pub fn refused(outcome: Outcome) -> String {
    match outcome.result {
        Err(Error::Refused(text)) => text,
        other => panic!("not refused: {other:?}"),
    }
}

/// For the beginning of a program: a signal that would end it tells on stderr where it came, with the registers, the
/// stack and the mappings, before it does.
const TELLS: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
static void tell_of(int number, siginfo_t *info, void *context) {
    static const char *names[] = { "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx",
        "rax", "rcx", "rsp", "rip", "eflags" };
    long long *registers = (long long *)((ucontext_t *)context)->uc_mcontext.gregs;
    dprintf(2, "thread %ld of %d: signal %d, code %d, address %p\n", (long)syscall(SYS_gettid), getpid(), number, info->si_code, info->si_addr);
    for (int i = 0; i < 18; i++) dprintf(2, "%s %#llx\n", names[i], registers[i]);
    int maps = open("/proc/self/maps", O_RDONLY);
    char buffer[4096];
    for (long got; (got = read(maps, buffer, sizeof buffer)) > 0;) if (write(2, buffer, got) < 0) break;
    long words[32];
    int memory = open("/proc/self/mem", O_RDONLY);
    if (pread(memory, words, sizeof words, registers[15] - 128) == sizeof words)
        for (int i = 0; i < 32; i++) dprintf(2, "stack %+d: %#lx\n", i * 8 - 128, words[i]);
    if (pread(memory, words, 32, registers[16] - 16) == 32)
        for (int i = 0; i < 4; i++) dprintf(2, "code %+d: %#lx\n", i * 8 - 16, words[i]);
    syscall(SYS_tgkill, getpid(), (long)syscall(SYS_gettid), number);
}
__attribute__((constructor)) static void tell(void) {
    struct sigaction action = { .sa_sigaction = tell_of, .sa_flags = SA_SIGINFO | SA_RESETHAND };
    int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS };
    for (int i = 0; i < 7; i++) sigaction(signals[i], &action, 0);
}
"#;

/// Threads call `work` without pause and check what it gives. A line asks for the counts.
pub const HAMMER: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdatomic.h>
static atomic_long old_results, new_results, wrong, births;
static atomic_int stop;
__attribute__((noinline,noclone)) long inner(long x) { __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0"); return x + 1; }
__attribute__((noinline,noclone)) long work(long x) {
    __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0");
    char buffer[64];
    snprintf(buffer, sizeof buffer, "%ld", x);
    long parsed = strtol(buffer, 0, 10);
    // Both functions switch together: old plus old, or new plus new.
    return parsed * 10 + inner(0);
}
static void *hammer(void *arg) {
    long x = (long)arg;
    while (!stop) {
        long result = work(x);
        if (result == x * 10 + 1) old_results++;
        else if (result == x * 20 + 2) new_results++;
        else wrong++;
        x = (x + 1) & 0xffff;
    }
    return 0;
}
static void *nothing(void *arg) { births++; return (void *)work((long)arg); }
static void *breeder(void *arg) {
    while (!stop) {
        pthread_t thread;
        if (pthread_create(&thread, 0, nothing, arg) == 0) pthread_join(thread, 0);
    }
    return 0;
}
int main(int argc, char **argv) {
    int count = atoi(argv[1]), breeders = atoi(argv[2]);
    for (int i = 0; i < count + breeders; i++) {
        pthread_t thread;
        pthread_create(&thread, 0, i < count ? hammer : breeder, (void *)(long)i);
    }
    puts("ready"); fflush(stdout);
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        printf("%ld %ld %ld %ld\n", atomic_exchange(&old_results, 0), atomic_exchange(&new_results, 0), (long)wrong, (long)births);
        fflush(stdout);
    }
    return 0;
}
"#;

pub const HAMMER_NEW: &str = r#"
#include <stdio.h>
#include <stdlib.h>
long inner(long x) { return x + 2; }
long work(long x) {
    char buffer[64];
    snprintf(buffer, sizeof buffer, "%ld", x * 2);
    return strtol(buffer, 0, 10) * 10 + inner(0);
}
"#;

/// Old and new results since the last call, wrong ones and threads born so far.
pub fn counts(target: &mut Process) -> [i64; 4] {
    let line = target.ask("");
    let numbers: Vec<i64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// Two functions that must be of one version: `work` gives the thousands, `inner` the rest. Threads call them
/// without pause. A line asks for the wrong results so far and for a result of now; the base is version 1. Arguments: such threads, threads that make short-lived ones, and microseconds
/// that each of the first rests after a call.
pub const VERSIONED: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdatomic.h>
#include <unistd.h>
static int nap;
#define NOP __asm__ volatile(".byte 0x0f,0x1f,0x44,0,0")
static atomic_long wrong;
__attribute__((noinline,noclone)) long inner(long x) { NOP; return x + 1; }
__attribute__((noinline,noclone)) long work(long x) {
    NOP;
    char buffer[64];
    snprintf(buffer, sizeof buffer, "%ld", x);
    return strtol(buffer, 0, 10) + 1000 + inner(0);
}
static void *hammer(void *arg) {
    for (;;) {
        long result = work((long)arg);
        if (result / 1000 != result % 1000) wrong++;
        if (nap > 0) usleep(nap);
    }
    return 0;
}
static void *once(void *arg) {
    long result = work((long)arg);
    if (result / 1000 != result % 1000) wrong++;
    return 0;
}
static void *breeder(void *arg) {
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, 0, once, arg) == 0) pthread_join(thread, 0);
    }
    return 0;
}
int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 0, breeders = argc > 2 ? atoi(argv[2]) : 0;
    nap = argc > 3 ? atoi(argv[3]) : 0;
    for (int i = 0; i < count + breeders; i++) {
        pthread_t thread;
        pthread_create(&thread, 0, i < count ? hammer : breeder, 0);
    }
    puts("ready"); fflush(stdout);
    char line[100];
    while (fgets(line, sizeof line, stdin)) {
        long result = work(0);
        printf("%ld %ld\n", (long)wrong, result);
        fflush(stdout);
    }
    return 0;
}
"#;

/// The same two functions of another version.
pub fn version(program: &Program, version: u32, counter: u64) -> Patch {
    let source = format!(
        r#"
#include <stdio.h>
#include <stdlib.h>
long inner(long x) {{ return x + {version}; }}
long work(long x) {{
    char buffer[64];
    snprintf(buffer, sizeof buffer, "%ld", x);
    return strtol(buffer, 0, 10) + {version}000 + inner(0);
}}
"#
    );
    Patch { counter, ..program.patch(&source, &["work", "inner"]) }
}

/// The version that a [`VERSIONED`] target is of; nothing in it may have been wrong.
#[track_caller]
pub fn version_of(target: &mut Process) -> i64 {
    let line = target.ask("");
    let (wrong, result) = line.split_once(' ').unwrap();
    assert_eq!(wrong, "0");
    let result: i64 = result.parse().unwrap();
    assert_eq!(result / 1000, result % 1000);
    result / 1000
}
