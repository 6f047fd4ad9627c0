//! What is written otherwise in C++, and what only C++ has.

use std::fmt::Write as _;

use crate::generator::program::{Function, Kind, Piece, Program, SLOTS};
use crate::generator::render::{call, quoted, ul};

/// After C's own head.
pub(crate) const HEAD: &str = r#"#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

#undef ADD
#define ADD(x, y) add(x, (unsigned long)(y))
template <class T> inline T &add(T &x, unsigned long y) { return x = (T)((unsigned long)x + y); }
template <class T, int N> unsigned long folded(const T *p, unsigned long n) {
    unsigned long h = N;
    for (unsigned long i = 0; i < n; i++)
        h = i % 3 == N % 3 ? h * 31 + (unsigned long)p[i] : h ^ ((unsigned long)p[i] << (N & 7));
    return h;
}
template <class F> APART unsigned long applied(F f, unsigned long a) { return f(a) + f(a + 1) * 3; }
struct failure {
    long code;
    explicit failure(long n) : code(n) {}
    virtual ~failure();
    virtual long value() const { return code; }
};
struct severe : failure {
    explicit severe(long n) : failure(n) {}
    long value() const override { return code * 2 + 1; }
};
namespace { struct hidden { long code; }; }
struct guard {
    unsigned long &r, n;
    guard(unsigned long &x, unsigned long y) : r(x), n(y) {}
    ~guard() { r ^= n; note("~%lu;", n & 15); }
};
struct mixin {
    long mixed;
    explicit mixin(long n = 2) : mixed(n) {}
    virtual ~mixin() {}
    virtual unsigned long mix(unsigned long a, unsigned long b) { return a + b + (unsigned long)mixed; }
};
long seeded(long n);
std::string worded(const char *text);

"#;

/// With the rest of what the first file has.
pub(crate) const RUNTIME: &str = r#"
failure::~failure() {}
APART long seeded(long n) { return n + (last_line & 0); }
APART std::string worded(const char *text) { return std::string(text) + "-"; }
"#;

/// What an answer is when its function does not return.
pub(crate) const HANDLERS: &str = r#"    } catch (const failure &e) {
        r = (unsigned long)e.value();
        note("!%s;", typeid(e).name());
    } catch (const std::exception &e) {
        r = 1;
        note("!%s;", e.what());
    } catch (int n) {
        r = (unsigned long)n;
        note("!int;");
    } catch (...) {
        r = 3;
        note("!;");
    }
"#;

/// The classes, without their functions.
pub(crate) fn types(text: &mut String, program: &Program) {
    for (index, t) in program.types.iter().enumerate() {
        let name = &t.name;
        let bases = match t.base {
            None => String::new(),
            Some(base) => format!(
                " : {}{}{}",
                if t.virtually { "virtual " } else { "" },
                program.types[base].name,
                if t.mixed { ", mixin" } else { "" }
            ),
        };
        let _ = writeln!(text, "struct {name}{bases} {{");
        let (member, first) = match t.base {
            None => ("id".to_owned(), "id(n)".to_owned()),
            Some(base) => {
                (format!("own_{index}"), format!("{}(n), own_{index}(n * {})", program.types[base].name, index + 2))
            }
        };
        // A virtual base is made by the last class alone, which may not name it.
        let last = if program.types.iter().any(|t| t.virtually) { " id = n; " } else { "" };
        let _ = writeln!(text, "    long {member};\n    explicit {name}(long n = {}) : {first} {{{last}}}", index + 5);
        let tells = if t.tells { format!(" note(\"~{name} %ld;\", {member}); ") } else { String::new() };
        let _ = writeln!(text, "    virtual ~{name}() {{{tells}}}");
        for f in program.functions.values() {
            if let Some((of, slot)) = f.method
                && of == index
            {
                let _ = writeln!(text, "    virtual unsigned long {}(unsigned long a, unsigned long b);", SLOTS[slot]);
            }
        }
        text.push_str("};\n");
    }
}

/// The first lines of a virtual function, which use the object.
pub(crate) fn method_begins(program: &Program, (of, _): (usize, usize)) -> String {
    let member = if program.types[of].base.is_none() { "id".to_owned() } else { format!("own_{of}") };
    format!("    r += (unsigned long){member} * {};\n", 2 * of + 3)
}

/// What a piece of C++ does.
pub(crate) fn piece(program: &Program, f: &Function, p: &Piece) -> String {
    let n = |i: usize| ul(p.numbers[i]);
    let small = |i: usize| p.numbers[i].rem_euclid(64);
    let way = |count: i64| p.numbers[2].rem_euclid(count);
    let object = |i: usize| &program.objects[&p.objects[i]];
    let o = |i: usize| object(i).name.as_str();
    let t = |i: usize| quoted(&p.texts[i]);
    let ty = |i: usize| program.types[p.numbers[i].unsigned_abs() as usize % program.types.len()].name.as_str();
    let root = program.types[0].name.as_str();
    let either = || format!("{root} *p = a % 3 ? static_cast<{root} *>(&{}) : &{};", o(0), o(1));
    let slot = |i: usize| SLOTS[p.numbers[i].unsigned_abs() as usize % 2];
    match p.kind {
        Kind::Virtual => format!("{{ {} r += p->{}(a, b + {}); }}", either(), slot(2), small(0)),
        Kind::Cast if way(4) == 0 => format!(
            "{{ {} if (mixin *d = dynamic_cast<mixin *>(p)) r += (unsigned long)d->mixed * {}; else r ^= {}; }}",
            either(),
            small(0),
            n(1)
        ),
        Kind::Cast => format!(
            "{{ {} if ({} *d = dynamic_cast<{} *>(p)) r += (unsigned long)d->id * {}; else r ^= {}; }}",
            either(),
            ty(0),
            ty(0),
            small(2),
            n(1)
        ),
        Kind::TypeName if way(2) == 0 => format!("{{ {} note(\"%s;\", typeid(*p).name()); }}", either()),
        Kind::TypeName => format!("{{ {} r += typeid(*p) == typeid({}) ? {} : 0; }}", either(), ty(0), n(1)),
        Kind::Heap => format!(
            "{{ std::unique_ptr<{root}> p; if (a & 1) p.reset(new {}({})); else p.reset(new {}((long)(b & 63))); r += p->{}(a, b); }}",
            ty(0),
            small(1),
            ty(1),
            slot(2)
        ),
        Kind::Member => format!(
            "{{ typedef unsigned long ({root}::*member)(unsigned long, unsigned long); static const member way[] = {{&{root}::{}, &{root}::{}}}; \
             r += (a & 2 ? ({}.*way[b % 2])(a, b) : ({}.*way[a % 2])(b, a)); }}",
            slot(0),
            slot(1),
            o(0),
            o(1)
        ),
        Kind::ShapeStore => format!("ADD({}.id, a & {}); r ^= (unsigned long){}.id;", o(0), n(0), o(0)),
        Kind::Throw => {
            let what = match way(6) {
                0 => format!("failure({})", small(1)),
                1 => format!("severe({})", small(1)),
                2 => format!("(int){}", small(1)),
                3 => format!("std::out_of_range({})", t(0)),
                4 => format!("hidden{{{}}}", small(1)),
                _ => format!("std::runtime_error(std::string({}) + {})", t(0), t(1)),
            };
            format!("if (a % 11 == {}) throw {what};", p.numbers[0].rem_euclid(11))
        }
        Kind::Try => {
            let called = call(program, p, p.functions[0]);
            match way(5) {
                0 => format!(
                    "try {{ r += {called}; }} catch (const severe &e) {{ r ^= (unsigned long)e.value() + {}; }} catch (const failure &e) {{ r -= (unsigned long)e.value(); }}",
                    small(0)
                ),
                1 => format!(
                    "try {{ r += {called}; }} catch (const std::exception &e) {{ note(\"%s?;\", e.what()); r += {}; }}",
                    small(0)
                ),
                2 => format!("try {{ r ^= {called}; }} catch (...) {{ r += {}; if (b & 1) throw; }}", n(0)),
                3 => format!(
                    "try {{ r ^= {called}; }} catch (int n) {{ r += (unsigned long)n * {}; }} catch (const hidden &h) {{ r ^= (unsigned long)h.code; }}",
                    small(0)
                ),
                _ => format!(
                    "try {{ r += {called}; }} catch (const failure &) {{ throw severe((long)(a & {})); }}",
                    n(0)
                ),
            }
        }
        Kind::Cleanup => format!("{{ guard g(r, {}); r += {}; }}", small(2), call(program, p, p.functions[0])),
        Kind::Template => format!("r += folded<{}, {}>({}, LENGTH({}));", object(0).ty, small(0), o(0), o(0)),
        Kind::Lambda => {
            format!("{{ auto f = [&](unsigned long x) {{ return x * {} + r; }}; r = applied(f, a) ^ {}; }}", n(0), n(1))
        }
        Kind::Stateless => format!(
            "{{ static fn *const way[] = {{[](unsigned long x, unsigned long y) -> unsigned long {{ return x * {} ^ y; }}, \
             [](unsigned long x, unsigned long y) -> unsigned long {{ return y - x + {}; }}}}; r += way[a % 2](a, b); }}",
            n(0),
            n(1)
        ),
        Kind::Guarded => format!("kept_{} += {}; r ^= (unsigned long)kept_{};", p.uid, small(1), p.uid),
        Kind::GuardedText => format!(
            "kept_{0} += (char)('a' + a % 26); if (kept_{0}.size() > {1}) kept_{0}.resize(3); r += hash(kept_{0}.c_str());",
            p.uid,
            8 + small(1)
        ),
        Kind::Strings => match way(5) {
            0 => format!(
                "{{ std::string v = {}; v += std::to_string(a & 255); v.insert(0, {}); r += hash(v.c_str()); }}",
                t(0),
                t(1)
            ),
            1 => format!("{{ std::string v = {}; r += (unsigned char)v.at(a % {}); }}", t(0), p.texts[0].len() + 2),
            2 => {
                format!("{{ std::string v(a & 3, 'x'); r += v == \"xx\" ? {} : hash((v + {}).c_str()); }}", n(0), t(0))
            }
            3 => format!("r += (unsigned long)std::stol(std::to_string(a & 4095) + \"{}\");", small(0)),
            _ => format!("{{ std::string v = {}; r ^= v.find((char)('a' + a % 26)) + {}; }}", t(0), small(0)),
        },
        Kind::Numbers => format!(
            "{{ std::vector<unsigned long> v; for (unsigned long i = 0; i < 3 + (a & 7); i++) v.push_back((i * {} ^ b) & 1023); \
             std::sort(v.begin(), v.end(), [](unsigned long x, unsigned long y) {{ return (x & {}) != (y & {}) ? (x & {}) < (y & {}) : x < y; }}); \
             r += v[v.size() / 2] + v.at(a % {}); }}",
            n(0),
            small(1),
            small(1),
            small(1),
            small(1),
            if way(2) == 0 { 3 } else { 9 }
        ),
        Kind::Map => format!(
            "{{ std::map<unsigned long, const char *> m; m[a & 7] = {}; m[b & 7] = {}; m[{}] = \"\"; for (const auto &x : m) note(\"%lu=%s;\", x.first, x.second); }}",
            t(0),
            t(1),
            small(0) & 7
        ),
        Kind::Erased => format!(
            "{{ std::function<unsigned long(unsigned long)> f; if (a & 1) f = [r, b](unsigned long x) {{ return x + r * {} + b; }}; \
             else f = [](unsigned long x) {{ return x ^ {}; }}; r = f(a); }}",
            n(0),
            n(1)
        ),
        Kind::Listed => format!("for (unsigned long x : {{{}, {}, {}}}) r = r * 3 + x;", n(0), n(1), n(2)),
        _ => unreachable!("{:?} of {} is C's", p.kind, f.name),
    }
}
