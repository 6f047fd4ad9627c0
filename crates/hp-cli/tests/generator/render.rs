//! A program as text of C or C++: `main.c`, which only reads commands, and a file for each of the program's own.

use std::fmt::Write as _;

use crate::generator::cpp;
use crate::generator::program::{ALWAYS_INLINE, Class, Function, HEADER, Item, Kind, Language, Object, Piece, Program};
use crate::generator::tables;

/// What reads commands: `call I A B`, `reset`, `quit`. It stays as it is: a process waits here for its next command.
pub(crate) const MAIN: &str = r#"#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *answer(unsigned long which, unsigned long a, unsigned long b);
void reset(void);

int main(void) {
    static char line[256];
    setvbuf(stdin, NULL, _IONBF, 0);
    setvbuf(stdout, NULL, _IONBF, 0);
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "call ", 5)) {
            char *rest = line + 5;
            unsigned long which = strtoul(rest, &rest, 10);
            unsigned long a = strtoul(rest, &rest, 10);
            unsigned long b = strtoul(rest, &rest, 10);
            puts(answer(which, a, b));
        } else if (!strncmp(line, "reset", 5)) {
            reset();
            puts("ready");
        } else {
            return 0;
        }
    }
    return 0;
}
"#;

const HEAD: &str = r#"#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH(t) (sizeof(t) / sizeof(*(t)))
#define ADD(x, y) ((x) = (__typeof__(x))((unsigned long)(x) + (unsigned long)(y)))
#if defined(__clang__)
#define APART __attribute__((noinline))
#else
#define APART __attribute__((noipa))
#endif
typedef unsigned long fn(unsigned long, unsigned long);
struct ops { fn *run; const char *name; long bias; };
struct node { int id; short kind; char name[6]; long value; const struct node *next; };
extern int resetting;
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
unsigned long hash(const char *text);
unsigned long checked(int right, const char *file, int line);
unsigned long sum(int count, ...);
unsigned long back(const void *end, unsigned long size);
unsigned long span(const void *start, const void *end);

"#;

const RUNTIME: &str = r#"
int resetting;
static char noted[400];
static size_t noted_size;
static volatile int last_line;

void note(const char *format, ...) {
    va_list list;
    int size;
    va_start(list, format);
    size = vsnprintf(noted + noted_size, sizeof noted - noted_size, format, list);
    va_end(list);
    if (size > 0)
        noted_size += (size_t)size;
    if (noted_size > sizeof noted - 1)
        noted_size = sizeof noted - 1;
}

unsigned long hash(const char *text) {
    unsigned long h = 5381;
    while (*text)
        h = h * 33 + (unsigned char)*text++;
    return h & 0xffffff;
}

unsigned long checked(int right, const char *file, int line) {
    if (!right && *file) {
        last_line = line;
#ifdef LINES_SHOWN
        note("%d!", line);
#endif
    }
    return (unsigned long)right;
}

APART unsigned long back(const void *end, unsigned long size) {
    const unsigned char *bytes = (const unsigned char *)end;
    unsigned long all = 0;
    for (unsigned long i = 1; i <= size; i++)
        all = all * 3 + bytes[-(long)i];
    return all;
}

APART unsigned long span(const void *start, const void *end) {
    unsigned long all = 0;
    for (const unsigned char *p = (const unsigned char *)start; p != (const unsigned char *)end; p++)
        all = all * 3 + *p;
    return all;
}

unsigned long sum(int count, ...) {
    va_list list;
    unsigned long all = 0;
    va_start(list, count);
    while (count-- > 0)
        all = all * 3 + va_arg(list, unsigned long);
    va_end(list);
    return all;
}
"#;

/// The text of one of the program's own files.
pub(crate) fn file(program: &Program, file: usize) -> String {
    let mut text = String::new();
    if program.lines_shown {
        text.push_str("#define LINES_SHOWN\n");
    }
    text.push_str(HEAD);
    if program.tables {
        text.push_str(tables::HEAD);
    }
    if program.language == Language::Cpp {
        text.push_str(cpp::HEAD);
        cpp::types(&mut text, program);
    }
    // Of other files: what is not static.
    for o in program.objects.values().filter(|o| o.file != file && !o.is_static) {
        let _ = writeln!(text, "extern {};", declarator(program, o));
    }
    for f in program.functions.values().filter(|f| f.file != file && !f.is_static && f.method.is_none()) {
        let _ = writeln!(text, "{};", signature(program, f));
    }
    // Of this file: all, so that its items can have any order.
    for item in &program.files[file] {
        let _ = match item {
            Item::Object(id) => {
                let o = &program.objects[id];
                let declared = declarator(program, o);
                match (o.is_static, program.language) {
                    (true, Language::C) => writeln!(text, "static {declared};"),
                    (true, Language::Cpp) => writeln!(text, "namespace {{ extern {declared}; }}"),
                    (false, _) => writeln!(text, "extern {declared};"),
                }
            }
            Item::Function(id) if program.functions[id].method.is_some() => Ok(()),
            Item::Function(id) => {
                let f = &program.functions[id];
                writeln!(text, "{}{};", if f.is_static { "static " } else { "" }, signature(program, f))
            }
        };
    }
    text.push_str(
        "static int by_value(const void *a, const void *b) {\n    int x = *(const int *)a, y = *(const int *)b;\n    return (x > y) - (x < y);\n}\n\
         static int by_bits(const void *a, const void *b) {\n    int x = *(const int *)a & 7, y = *(const int *)b & 7;\n    return x != y ? x - y : by_value(b, a);\n}\n",
    );
    for item in program.header.iter().chain(&program.files[file]) {
        match item {
            Item::Object(id) => {
                let o = &program.objects[id];
                let defined = declarator(program, o) + &initial(program, o);
                let _ = match (o.is_static, program.language) {
                    (true, Language::C) => writeln!(text, "static {defined};"),
                    (true, Language::Cpp) => writeln!(text, "namespace {{ {defined}; }}"),
                    (false, _) => writeln!(text, "{defined};"),
                };
            }
            Item::Function(id) => function(&mut text, program, &program.functions[id]),
        }
    }
    reset(&mut text, program, file);
    if file == 0 {
        text.push_str(RUNTIME);
        if program.tables {
            text.push_str(tables::RUNTIME);
        }
        if program.language == Language::Cpp {
            text.push_str(cpp::RUNTIME);
        }
        asked(&mut text, program);
    }
    text
}

fn declarator(program: &Program, o: &Object) -> String {
    let (name, ty, len) = (&o.name, o.ty, o.len);
    match o.class {
        Class::Scalar => format!("{ty} {name}"),
        Class::Ints => format!("{ty} {name}[{len}]"),
        Class::ConstInts => format!("const {ty} {name}[{len}]"),
        Class::Reals => format!("const double {name}[{len}]"),
        Class::Texts => format!("const char *const {name}[{len}]"),
        Class::Pointers => format!("int *const {name}[{len}]"),
        Class::Functions => format!("fn *const {name}[{len}]"),
        Class::Ops => format!("const struct ops {name}[{len}]"),
        Class::Node => format!("struct node {name}"),
        Class::ConstNode => format!("const struct node {name}"),
        Class::Buffer => format!("char {name}[{len}]"),
        Class::Cursor => format!("int *{name}"),
        Class::Hook => format!("fn *{name}"),
        Class::Holder => format!("const void *{name}"),
        Class::Word => format!("const char *{name}"),
        // That of another file is asked for through a function.
        Class::Local if program.language == Language::Cpp && !o.is_static => format!("thread_local {ty} {name}"),
        Class::Local => format!("__thread {ty} {name}"),
        Class::Shape => format!("{} {name}", program.types[o.of].name),
        Class::Records | Class::Grid | Class::Letters | Class::Starts | Class::Stops | Class::Spans => {
            tables::declarator(o)
        }
    }
}

pub(crate) fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// An initial value with its `=`, or nothing where all is zero.
fn initial(program: &Program, o: &Object) -> String {
    let value = expression(program, o);
    if o.class == Class::Shape {
        return format!("({value})");
    }
    if value.is_empty() { value } else { format!(" = {value}") }
}

fn expression(program: &Program, o: &Object) -> String {
    let name = |id: &usize| program.objects[id].name.clone();
    let called = |id: &usize| program.functions[id].name.clone();
    let list = |items: Vec<String>| format!("{{{}}}", items.join(", "));
    match o.class {
        Class::Scalar | Class::Local => o.values.first().map(ToString::to_string).unwrap_or_default(),
        Class::Ints if o.values.is_empty() => String::new(),
        Class::Ints | Class::ConstInts => list(o.values.iter().map(ToString::to_string).collect()),
        Class::Reals => list(o.values.iter().map(|v| format!("{v}.{}", v % 10)).collect()),
        Class::Texts => list(o.texts.iter().map(|t| quoted(t)).collect()),
        Class::Pointers => list(o.objects.iter().zip(&o.values).map(|(id, at)| element(program, *id, *at)).collect()),
        Class::Functions => list(o.functions.iter().map(called).collect()),
        Class::Ops => list(
            (0..o.len)
                .map(|i| format!("{{{}, {}, {}}}", called(&o.functions[i]), quoted(&o.texts[i]), o.values[i]))
                .collect(),
        ),
        Class::Node | Class::ConstNode => {
            let next = o.objects.first().map_or("NULL".to_owned(), |id| format!("&{}", name(id)));
            format!("{{{}, {}, {}, {}, {next}}}", o.values[0], o.values[1], quoted(&o.texts[0]), o.values[2])
        }
        Class::Buffer => String::new(),
        Class::Cursor => element(program, o.objects[0], o.values[0]),
        Class::Hook => called(&o.functions[0]),
        Class::Holder => o.objects.first().map(|id| format!("&{}", name(id))).unwrap_or_default(),
        Class::Word => quoted(&o.texts[0]),
        Class::Shape => o.values[0].to_string(),
        Class::Records | Class::Grid | Class::Letters | Class::Starts | Class::Stops | Class::Spans => {
            tables::expression(program, o)
        }
    }
}

fn element(program: &Program, id: usize, at: i64) -> String {
    let o = &program.objects[&id];
    if o.class == Class::Scalar { format!("&{}", o.name) } else { format!("&{}[{at}]", o.name) }
}

const PARAMETERS: &[&str] = &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

fn signature(program: &Program, f: &Function) -> String {
    let parameters: Vec<String> = PARAMETERS[..f.parameters].iter().map(|p| format!("unsigned long {p}")).collect();
    let of = f.method.map(|(of, _)| format!("{}::", program.types[of].name)).unwrap_or_default();
    let inline = if f.file == HEADER { "inline " } else { "" };
    format!("{inline}{} unsigned long {of}{}({})", f.attribute, f.name, parameters.join(", "))
}

fn function(text: &mut String, program: &Program, f: &Function) {
    let _ = writeln!(text, "\n{}{} {{", if f.is_static { "static " } else { "" }, signature(program, f));
    text.push_str("    unsigned long r = a ^ (b << 3);\n");
    let locals: Vec<&Piece> = f.pieces.iter().filter(|p| p.kind.keeps()).collect();
    for p in &locals {
        let ty = if p.kind == Kind::GuardedText { "std::string" } else { "long" };
        let _ = writeln!(text, "    static {ty} kept_{} = {};", p.uid, first(p));
    }
    if program.resets && !locals.is_empty() {
        text.push_str("    if (resetting) {\n");
        for p in &locals {
            let _ = writeln!(text, "        kept_{} = {};", p.uid, first(p));
        }
        text.push_str("        return 0;\n    }\n");
    }
    if let Some(method) = f.method {
        text.push_str(&cpp::method_begins(program, method));
    }
    for (index, parameter) in PARAMETERS[..f.parameters].iter().enumerate().skip(2) {
        let _ = writeln!(text, "    r += {parameter} * {};", 2 * index + 1);
    }
    for p in &f.pieces {
        text.push_str("    ");
        text.push_str(&piece(program, f, p));
        text.push('\n');
    }
    text.push_str("    return r;\n}\n");
}

/// The first value of what a function keeps between its calls.
fn first(p: &Piece) -> String {
    match p.kind {
        Kind::Guarded => format!("seeded({})", p.numbers[0] & 0xff),
        Kind::GuardedText => format!("worded({})", quoted(&p.texts[0])),
        _ => (p.numbers[0] & 0xff).to_string(),
    }
}

pub(crate) fn ul(n: i64) -> String {
    format!("{}UL", n.cast_unsigned())
}

pub(crate) fn call(program: &Program, p: &Piece, callee: usize) -> String {
    let f = &program.functions[&callee];
    let mut arguments = vec![format!("a + {}", ul(p.numbers[0] & 0xff))];
    arguments.push(if p.numbers[1] % 3 == 0 { ul(p.numbers[1]) } else { "b".into() });
    for index in 2..f.parameters {
        arguments.push(if index % 2 == 0 { ul(7 * index as i64 + 1) } else { "r".into() });
    }
    format!("{}({})", f.name, arguments.join(", "))
}

/// An array read by its end, downwards, by one element, or handed on by its ends: in as many shapes.
fn ends(array: &Object, name: &str, shape: i64) -> String {
    let (ty, len) = (array.ty, array.len);
    let each = "r = r * 3 + (unsigned long)";
    match shape {
        0 => format!("{{ const {ty} *end = {name} + {len}; for (long i = -{len}; i; i++) {each}end[i]; }}"),
        1 => format!("for (const {ty} *p = {name} + {len}; p != {name};) {each}*--p;"),
        2 => format!("for (long i = -1 - (long)(a % {len}); i; i++) {each}({name} + {len})[i];"),
        3 => format!("{each}({name} + {len})[-1 - (long)(b % {len})];"),
        4 => format!("for (const {ty} *p = {name} + {len} - 1 - b % {len}; p < {name} + {len}; p++) {each}*p;"),
        5 => format!("for (long i = 1 + (long)(a % {len}); i > 0; i--) {each}{name}[i - 1];"),
        6 => format!("r ^= back({name} + {len}, sizeof {name});"),
        7 => format!("r ^= span({name}, {name} + {len});"),
        _ => format!("{each}{name}[{}];", len / 2),
    }
}

fn piece(program: &Program, f: &Function, p: &Piece) -> String {
    let n = |i: usize| ul(p.numbers[i]);
    let small = |i: usize| p.numbers[i].rem_euclid(64);
    let object = |i: usize| &program.objects[&p.objects[i]];
    let o = |i: usize| object(i).name.as_str();
    let called = |i: usize| program.functions[&p.functions[i]].name.as_str();
    let t = |i: usize| quoted(&p.texts[i]);
    let name = &f.name;
    match p.kind {
        Kind::Arith => match p.numbers[0].rem_euclid(5) {
            0 => format!("r = r * {} + a;", n(1)),
            1 => format!("r ^= b + {};", n(1)),
            2 => format!("r += (a & {}) * {};", n(1), n(2)),
            3 => format!("r = (r >> {}) + {};", small(1), n(2)),
            _ => format!("if (a > {}) r += {}; else r -= b;", small(1), n(2)),
        },
        Kind::Guard => format!("if (b == {}) return r ^ {};", small(0), n(1)),
        Kind::Cold => {
            format!("if (__builtin_expect(a == {}, 0)) {{ note(\"%s;\", {}); r += {}; }}", small(0), t(0), n(1))
        }
        Kind::Scalar => match p.numbers[2].rem_euclid(4) {
            0 => format!("ADD({}, {}); r += {};", o(0), n(0), o(0)),
            1 => format!("{} = ({})(a & {}); r ^= b;", o(0), object(0).ty, n(0)),
            2 => format!("r += {} * {};", o(0), n(0)),
            _ => format!("if ({} > {}) {} = 0; else ADD({}, a & 7); r ^= {};", o(0), small(0), o(0), o(0), o(0)),
        },
        Kind::Copy => format!("{} = ({})((unsigned long){} + {}); r ^= {};", o(0), object(0).ty, o(1), small(0), o(0)),
        Kind::Index => format!("r += {}[(a + {}) % LENGTH({})];", o(0), small(0), o(0)),
        Kind::Store => format!("{}[(b + {}) % LENGTH({})] = ({})(a & {});", o(0), small(0), o(0), object(0).ty, n(1)),
        Kind::EndLoop => format!(
            "for (const {} *p = {}; p != {} + LENGTH({}); p++) r = r * {} + *p;",
            object(0).ty,
            o(0),
            o(0),
            o(0),
            small(0) | 1
        ),
        Kind::StoreLoop => {
            format!("for ({} *p = {}; p < {} + LENGTH({}); p++) ADD(*p, {});", object(0).ty, o(0), o(0), o(0), n(0))
        }
        Kind::BackLoop => {
            let bias = 1 + p.numbers[0].rem_euclid(3);
            if p.numbers[2].rem_euclid(4) == 3 {
                return format!("{} r += {}[i - {bias}] * i; }}", from_later(bias, &format!("LENGTH({})", o(0))), o(0));
            }
            format!(
                "for (unsigned long i = {bias}; i <= {bias} + a % LENGTH({}); i++) r += {}[i - {bias}] * i;",
                o(0),
                o(0)
            )
        }
        Kind::Ends => ends(object(0), o(0), p.numbers[2].rem_euclid(9)),
        Kind::PairLoop => {
            let len = object(0).len.min(object(1).len);
            format!("for (int i = 0; i < {len}; i++) r += (unsigned long){}[i] * {}[i] + {};", o(0), o(1), n(0))
        }
        Kind::TextAt => format!("note(\"%s;\", {}[(a + {}) % LENGTH({})]);", o(0), small(0), o(0)),
        Kind::Literal => match p.numbers[0].rem_euclid(3) {
            0 => format!("note({}, r & 255);", quoted(&format!("{} %lu;", p.texts[0].replace('%', "%%")))),
            1 => format!("r += hash({});", t(0)),
            _ => format!("note(\"%s;\", {});", t(0)),
        },
        Kind::Tail if p.numbers[2].rem_euclid(4) == 3 => {
            let bias = 1 + p.numbers[0].rem_euclid(3);
            let length = (p.texts[0].len() + 1).to_string();
            format!("{} r += (unsigned char){}[i - {bias}]; }}", from_later(bias, &length), t(0))
        }
        Kind::Tail => format!("r += hash(&{}[a % {}]);", t(0), p.texts[0].len() + 1),
        Kind::Choice => format!("note(\"%s;\", (a & 31) > {} ? {} : {});", small(0) & 31, t(0), t(1)),
        Kind::Deref => format!(
            "ADD(*{}[a % LENGTH({})], {}); r ^= (unsigned long)*{}[b % LENGTH({})];",
            o(0),
            o(0),
            small(0),
            o(0),
            o(0)
        ),
        Kind::CallTable => format!("r += {}[(a + {}) % LENGTH({})](a ^ {}, b);", o(0), small(0), o(0), small(1)),
        Kind::CallOps => format!(
            "{{ const struct ops *q = &{}[a % LENGTH({})]; r += q->run(a, b + {}) + (unsigned long)q->bias; note(\"%s;\", q->name); }}",
            o(0),
            o(0),
            small(0)
        ),
        Kind::Real => {
            let (x, y) = (p.numbers[0].rem_euclid(1000) as f64 / 8.0, p.numbers[1].rem_euclid(1000) as f64 / 4.0);
            match p.numbers[2].rem_euclid(3) {
                0 => format!("r += (unsigned long)((double)(a & 1023) * {x:?} + {y:?});"),
                1 => format!("r += (unsigned long)((float)(a & 255) * {x:?}f);"),
                _ => format!("note(\"%.3f;\", (double)(b & 1023) / {:?});", x + 0.5),
            }
        }
        Kind::RealAt => format!("r += (unsigned long)({}[a % LENGTH({})] * {}.5);", o(0), o(0), small(0)),
        Kind::Switch => {
            let key = if p.cases.last().is_some_and(|c| c.0 > 15) { "(a + b) % 97" } else { "(a ^ b) & 15" };
            let style = p.numbers[0].rem_euclid(3);
            let mut text = String::new();
            if style == 1 {
                text.push_str(&format!("{{ const char *w = {}; ", t(0)));
            }
            let _ = write!(text, "switch ({key}) {{ ");
            for (key, value) in &p.cases {
                let _ = match (style, value.rem_euclid(3)) {
                    (0, _) => write!(text, "case {key}: r = r * 3 + {}; break; ", ul(*value)),
                    (1, _) => write!(text, "case {key}: w = \"{}{}\"; break; ", p.texts[1], value.rem_euclid(50)),
                    (_, 0) => write!(text, "case {key}: r += {}; break; ", ul(*value)),
                    (_, 1) => write!(text, "case {key}: r ^= a * {}; ", ul(*value)),
                    _ => write!(text, "case {key}: r = b - {}; break; ", ul(*value)),
                };
            }
            let _ = write!(text, "default: r += {}; }}", small(1));
            if style == 1 {
                text.push_str(" note(\"%s;\", w); }");
            }
            text
        }
        Kind::SwitchCall => format!(
            "switch (a % 7) {{ case 0: r += {}; break; case 1: r ^= {}; break; case 2: r -= {}; break; case 3: note(\"%s;\", {}); break; case 4: r += {}; break; default: r ^= b; }}",
            call(program, p, p.functions[0]),
            call(program, p, p.functions[1]),
            call(program, p, p.functions[2]),
            t(0),
            n(2)
        ),
        // A function whose labels are kept cannot be inlined always.
        Kind::Goto if f.attribute == ALWAYS_INLINE => format!("r += {};", n(0)),
        Kind::Goto => {
            let label = |i: usize| format!("label_{}_{i}", p.uid);
            let labels: Vec<String> = (0..p.cases.len()).map(|i| format!("&&{}", label(i))).collect();
            let mut text = format!(
                "{{ static const void *const way[] = {{{}}}; goto *way[(a + {}) % LENGTH(way)]; ",
                labels.join(", "),
                small(0)
            );
            for (i, (key, value)) in p.cases.iter().enumerate() {
                let _ = write!(text, "{}: r = r * {} + {}; goto out_{}; ", label(i), key + 2, ul(*value), p.uid);
            }
            let _ = write!(text, "out_{}:; }}", p.uid);
            text
        }
        Kind::Hook => format!(
            "{{ fn *was = {}; {} = a & 1 ? {} : {}; r += was(a, b + {}); }}",
            o(0),
            o(0),
            called(0),
            called(1),
            small(0)
        ),
        Kind::Identity => format!(
            "{{ const void *p = a % 3 ? (const void *)&{} : (const void *)&{}; r += {} == p; {} = p; }}",
            o(1),
            o(2),
            o(0),
            o(0)
        ),
        Kind::Is => format!("if ({} == (const void *)&{}) r += {}; else {} = &{};", o(0), o(1), n(0), o(0), o(1)),
        Kind::Cursor => format!(
            "r += (unsigned long)*{} + {}[-1]; {} = &{}[1 + a % (LENGTH({}) - 1)]; ADD(*{}, {});",
            o(0),
            o(0),
            o(0),
            o(1),
            o(1),
            o(0),
            small(0)
        ),
        Kind::Word => format!("note(\"%s;\", {}); {} = a & 1 ? {} : {};", o(0), o(0), t(0), t(1)),
        Kind::Call => match p.numbers[1].rem_euclid(3) {
            1 => format!("if (a & 4) r = {};", call(program, p, p.functions[0])),
            2 => format!("r ^= {} * 3;", call(program, p, p.functions[0])),
            _ => format!("r += {};", call(program, p, p.functions[0])),
        },
        Kind::Again if f.attribute == ALWAYS_INLINE => format!("r ^= {};", n(0)),
        Kind::Again => {
            let rest: String = PARAMETERS[2..f.parameters].iter().map(|p| format!(", {p}")).collect();
            format!("if (a - 1 < 48) r ^= {name}(a >> 1, b + {}{rest});", small(0))
        }
        Kind::Sort => format!(
            "{{ int v[6]; for (int i = 0; i < 6; i++) v[i] = (int)((a * {} + b * (unsigned)i) & 63); qsort(v, 6, sizeof *v, {}); r += (unsigned long)(v[1] * 64 + v[4]); }}",
            small(0) | 1,
            if p.numbers[1] % 2 == 0 { "by_value" } else { "by_bits" }
        ),
        Kind::Library => library(p, &t(0), &t(1)),
        Kind::Local => format!("ADD({}, {}); r ^= (unsigned long){};", o(0), small(0), o(0)),
        Kind::StaticLocal => format!("kept_{} += {}; r ^= (unsigned long)kept_{};", p.uid, small(1), p.uid),
        Kind::Line => format!("r += checked((a & 63) != {}, __FILE__, __LINE__);", small(0)),
        Kind::Walk => format!(
            "for (const struct node *s = &{}; s; s = s->next) r = r * 5 + (unsigned long)s->value + (unsigned long)s->id + (unsigned char)s->name[a % 5];",
            o(0)
        ),
        Kind::NodeStore => match p.numbers[0].rem_euclid(3) {
            0 => format!("ADD({}.value, a & {});", o(0), n(1)),
            1 => format!("{}.kind = (short)(a & 255); r += (unsigned long){}.value;", o(0), o(0)),
            _ => format!("{}.id = {}; {}.name[a % 5] = 'a' + {};", o(0), small(1), o(0), small(2) % 26),
        },
        Kind::NodeCopy => format!(
            "{{ struct node copy = {}; copy.name[a % 5] = 'x'; r += (unsigned long)copy.value * {} + hash(copy.name); }}",
            o(0),
            small(0)
        ),
        Kind::LocalArray => {
            let values: Vec<String> = p.cases.iter().map(|c| (c.1 & 0xffff).to_string()).collect();
            format!(
                "{{ int v[] = {{{}}}; v[a % LENGTH(v)] = (int)(b & 15); r += (unsigned long)v[(a + b) % LENGTH(v)]; }}",
                values.join(", ")
            )
        }
        Kind::Sum => {
            let values: Vec<String> = p.cases.iter().map(|c| format!(", {}", ul(c.1))).collect();
            format!("r += sum({}, a{});", p.cases.len() + 1, values.concat())
        }
        Kind::Fill => match p.numbers[0].rem_euclid(3) {
            0 => format!(
                "strcpy({}, {}); note(\"%s;\", {});",
                o(0),
                quoted(&p.texts[0].chars().take(15).collect::<String>()),
                o(0)
            ),
            1 => format!(
                "memset({}, 'a' + (int)(a % 20), {}); r += (unsigned char){}[{}];",
                o(0),
                1 + small(1) % 14,
                o(0),
                small(2) % 15
            ),
            _ => format!("snprintf({}, sizeof {}, \"%lu%s\", a & 99, {}); note(\"%s;\", {});", o(0), o(0), t(0), o(0)),
        },
        Kind::Vector => format!(
            "{{ unsigned v[16]; for (unsigned i = 0; i < 16; i++) v[i] = ((unsigned)a & 255) * i + {}; for (unsigned i = 0; i < 16; i++) r += v[i] ^ {}; }}",
            small(0),
            p.numbers[1] & 0xffff
        ),
        Kind::Read(shape) => tables::read(program, p, shape),
        _ => cpp::piece(program, f, p),
    }
}

/// A loop from zero on, with a condition that holds from its round `bias` on.
fn from_later(bias: i64, length: &str) -> String {
    format!("for (unsigned long i = 0; i < {bias} + a % {length}; i++) {{ r = r * 3 + (b >> (i & 7)); if (i >= {bias})")
}

fn library(p: &Piece, one: &str, two: &str) -> String {
    let small = p.numbers[1].rem_euclid(64);
    match p.numbers[0].rem_euclid(16) {
        0 => format!("r += (unsigned long)strtol(\"{small}\", NULL, 0);"),
        1 => format!("{{ char v[40]; snprintf(v, sizeof v, \"%lx-%s\", a & 0xfff, {one}); r += hash(v); }}"),
        2 => {
            format!("{{ char v[40]; sprintf(v, \"%lu\", a & 0xfff); r += (unsigned long)strcmp(v, \"{small}\") > 0; }}")
        }
        3 => format!("r += (unsigned long)abs((int)(a & 127) - {small});"),
        4 => format!("r += (unsigned long)toupper((int)(a & 127)) + {small};"),
        5 => format!("{{ char v[40]; sprintf(v, \"%lu\", a); r += strchr(v, '0' + {}) != NULL; }}", small % 10),
        6 => format!("{{ char v[40]; sprintf(v, \"%lu\", a); r += strspn(v, \"1{small}\"); }}"),
        7 => format!("{{ char v[40]; snprintf(v, sizeof v, \"%s%s\", {one}, {two}); r += strlen(v); }}"),
        8 => format!("r += isalpha((int)(a & 127)) ? {small} : 1;"),
        9 => format!("r += (unsigned long)ldiv((long)(a & 0xffff), {}).rem;", small + 1),
        10 => "{ char v[40]; sprintf(v, \"%lu.5\", a & 0xfff); r += (unsigned long)strtod(v, NULL); }".into(),
        11 => format!("{{ char v[40] = \"\"; strncat(v, {one}, 10); r += hash(v); }}"),
        12 => format!("r += getenv(\"HP_NOT_SET_{small}\") == NULL;"),
        13 => "{ char v[40]; sprintf(v, \"%lu\", a); r += (unsigned long)atoi(v); }".into(),
        14 => format!("{{ char v[40]; sprintf(v, \"%lu\", b); r += strstr(v, \"{}\") != NULL; }}", small % 10),
        _ => format!(
            "{{ unsigned long v[4] = {{a, b, r, {small}}}, w[4]; memmove(w, v, 8 * (a % 4)); r += memcmp(v, w, 8 * (a % 4)) == 0; }}"
        ),
    }
}

/// A function that sets back what the file has.
fn reset(text: &mut String, program: &Program, file: usize) {
    let _ = writeln!(text, "\nvoid reset_{file}(void);\nAPART void reset_{file}(void) {{");
    if program.resets {
        for o in program.objects.values().filter(|o| o.file == file && !o.class.constant()) {
            let (name, ty, value) = (&o.name, o.ty, expression(program, o));
            let _ = match o.class {
                Class::Ints if value.is_empty() => writeln!(text, "    memset({name}, 0, sizeof {name});"),
                Class::Ints => writeln!(
                    text,
                    "    {{ static const {ty} begin_with[] = {value}; memcpy({name}, begin_with, sizeof {name}); }}"
                ),
                Class::Buffer => writeln!(text, "    memset({name}, 0, sizeof {name});"),
                Class::Node if program.language == Language::Cpp => writeln!(text, "    {name} = node{value};"),
                Class::Node => writeln!(text, "    {name} = (struct node){value};"),
                Class::Shape => writeln!(text, "    {name}.id = {value};"),
                _ => writeln!(text, "    {name} = {};", if value.is_empty() { "0" } else { &value }),
            };
        }
        let here = |f: &&Function| f.file == file || f.file == HEADER && file == 0;
        for f in program.functions.values().filter(here) {
            if f.pieces.iter().any(|p| p.kind.keeps()) {
                let _ = writeln!(text, "    {}({});", f.name, vec!["0"; f.parameters].join(", "));
            }
        }
    }
    text.push_str("}\n");
}

/// What `main` calls.
fn asked(text: &mut String, program: &Program) {
    let names: Vec<&str> = program.entries.iter().map(|id| program.functions[id].name.as_str()).collect();
    text.push_str("const char *answer(unsigned long which, unsigned long a, unsigned long b);\nvoid reset(void);\n");
    if !program.entries_by_switch {
        let _ = writeln!(text, "static fn *const entries[] = {{{}}};", names.join(", "));
    }
    text.push_str(
        "APART const char *answer(unsigned long which, unsigned long a, unsigned long b) {\n    static char out[500];\n    unsigned long r;\n    noted_size = 0;\n    noted[0] = 0;\n",
    );
    if program.language == Language::Cpp {
        text.push_str("    try {\n");
    }
    if program.entries_by_switch {
        text.push_str("    switch (which) {\n");
        for (index, name) in names.iter().enumerate() {
            let _ = writeln!(text, "    case {index}: r = {name}(a, b); break;");
        }
        text.push_str("    default: r = 0;\n    }\n");
    } else {
        text.push_str("    r = which < LENGTH(entries) ? entries[which](a, b) : 0;\n");
    }
    if program.language == Language::Cpp {
        text.push_str(cpp::HANDLERS);
    }
    text.push_str("    snprintf(out, sizeof out, \"%lu %s\", r, noted);\n    return out;\n}\n");
    for file in 0..program.files.len() {
        let _ = writeln!(text, "void reset_{file}(void);");
    }
    text.push_str("APART void reset(void) {\n    resetting = 1;\n");
    for file in 0..program.files.len() {
        let _ = writeln!(text, "    reset_{file}();");
    }
    text.push_str("    resetting = 0;\n}\n");
}
