//! Programs of constant arrays that lie side by side, and readers of them in as many shapes as compilers make something else of.
//!
//! Where one array ends the next one begins, and a reader may know of its array nothing but the end, an address in front of it, or one element.

use crate::generator::generate::{TYPES, choices, number};
use crate::generator::program::{Class, Function, Item, Kind, Language, Object, Piece, Program, once_in, pick};
use crate::random::Random;

/// How readers read their arrays, in lists to draw from.
macro_rules! shapes {
    ($($(#[$words:meta])* $list:ident { $($shape:ident),+ $(,)? })+) => {
        /// How a reader reads its array.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Shape {
            $($($shape),+),+
        }

        $($(#[$words])* const $list: &[Shape] = &[$(Shape::$shape),+];)+
    };
}

shapes! {
    /// Those that read an array of numbers.
    PLAIN {
        Modulo, Asked, Unknown, Before, FarBefore, Letter, FromEnd, Each, EachBelow, EachIndex, EachSecond,
        Part, EndNegative, EndOne, Down, DownIndex, DownFrom, Until, Element, Last, Either, EndHanded,
        EndsHanded, StartHanded, Search, Halves, Copied, Compared, Chosen, Pairwise, Wide,
    }
    /// Those that read something else.
    OTHERS {
        Field, EachRecord, LastRecord, RecordsDown, Cell, Row, AllCells, Letters, LettersBack, OneLetter,
        Started, Stopped, Spanned,
    }
}

use Shape::{
    AllCells, Asked, Before, Cell, Chosen, Compared, Copied, Down, DownFrom, DownIndex, Each, EachBelow, EachIndex,
    EachRecord, EachSecond, Either, Element, EndHanded, EndNegative, EndOne, EndsHanded, FarBefore, Field, FromEnd,
    Halves, Last, LastRecord, Letter, Letters, LettersBack, Modulo, OneLetter, Pairwise, Part, RecordsDown, Row,
    Search, Spanned, StartHanded, Started, Stopped, Unknown, Until, Wide,
};

impl Shape {
    /// The classes of what it reads, for each object.
    pub(crate) fn needs(self) -> &'static [&'static [Class]] {
        const INTS: &[Class] = &[Class::ConstInts];
        match self {
            Chosen | Pairwise => &[INTS, INTS],
            Field | EachRecord | LastRecord | RecordsDown => &[&[Class::Records]],
            Cell | Row | AllCells => &[&[Class::Grid]],
            Letters | LettersBack | OneLetter => &[&[Class::Letters]],
            Started => &[&[Class::Starts]],
            Stopped => &[&[Class::Stops]],
            Spanned => &[&[Class::Spans]],
            _ => &[INTS],
        }
    }
}

/// Cells in a row of a grid, and numbers in a record.
pub(crate) const WIDTH: usize = 4;
pub(crate) const FIELDS: usize = 3;

/// What every file of such a program declares.
pub(crate) const HEAD: &str = r#"
struct record { int key; short kind; unsigned char flag; };
struct ends { const void *start, *end; };
unsigned long front(const void *start, unsigned long size);
unsigned long limited(unsigned long n, unsigned long limit);

"#;

/// What the first file defines.
pub(crate) const RUNTIME: &str = r#"
APART unsigned long front(const void *start, unsigned long size) {
    const unsigned char *bytes = (const unsigned char *)start;
    unsigned long all = 0;
    for (unsigned long i = 0; i < size; i++)
        all = all * 3 + bytes[i];
    return all;
}

APART unsigned long limited(unsigned long n, unsigned long limit) {
    return n % limit;
}
"#;

/// The program of a seed.
pub(crate) fn program(r: &mut Random) -> Program {
    let files = 1 + r.below(2);
    let mut program = Program::new(Language::C, files);
    program.entries_by_switch = once_in(r, 2);
    program.resets = true;
    program.tables = true;
    // Most of a program's arrays have one type: nothing lies between them.
    let ty = TYPES[r.below(TYPES.len())];
    for file in 0..files {
        for _ in 0..6 + r.below(10) {
            let other = TYPES[r.below(TYPES.len())];
            let class = match r.below(12) {
                0 => Class::Records,
                1 => Class::Grid,
                2 | 3 => Class::Letters,
                _ => Class::ConstInts,
            };
            let ty = if once_in(r, 5) { other } else { ty };
            object(&mut program, r, file, class, ty);
        }
        for class in [Class::Starts, Class::Stops, Class::Spans] {
            if once_in(r, 4) {
                object(&mut program, r, file, class, ty);
            }
        }
    }
    for file in 0..files {
        let mut shapes: Vec<Shape> = (0..8 + r.below(8)).map(|_| PLAIN[r.below(PLAIN.len())]).collect();
        shapes.extend(OTHERS.iter().copied().filter(|_| once_in(r, 2)));
        for shape in shapes {
            reader(&mut program, r, file, shape);
        }
    }
    program.entries = program.functions.keys().copied().collect();
    program
}

fn object(program: &mut Program, r: &mut Random, file: usize, class: Class, ty: &'static str) {
    let id = program.fresh();
    let mut o = Object {
        name: format!("t{id}"),
        file,
        is_static: !once_in(r, 12),
        class,
        ty,
        len: if once_in(r, 6) { [32, 64, 26, 1][r.below(4)] } else { 2 + r.below(15) },
        values: Vec::new(),
        texts: Vec::new(),
        objects: Vec::new(),
        functions: Vec::new(),
        of: 0,
    };
    let numbers = match class {
        Class::Records => o.len * FIELDS,
        Class::Grid => o.len * WIDTH,
        _ => o.len,
    };
    if matches!(class, Class::Starts | Class::Stops | Class::Spans) {
        let arrays = program.visible(file, Class::ConstInts);
        let arrays: Vec<usize> = arrays.into_iter().filter(|id| program.objects[id].ty == ty).collect();
        o.len = 1 + r.below(5);
        o.objects = (0..o.len).filter_map(|_| pick(r, &arrays).copied()).collect();
        let place = |r: &mut Random, len: usize| if once_in(r, 3) { r.below(len) as i64 } else { 0 };
        o.values = o.objects.iter().map(|id| place(r, program.objects[id].len)).collect();
        if o.objects.len() < o.len {
            return;
        }
    } else {
        o.values = (0..numbers).map(|_| r.below(100) as i64).collect();
    }
    program.objects.insert(id, o);
    program.files[file].push(Item::Object(id));
}

/// A function that reads what one in its file can name; none if it reads what is not there.
fn reader(program: &mut Program, r: &mut Random, file: usize, shape: Shape) {
    let kind = Kind::Read(shape);
    let picked = |place| choices(program, file, kind, place);
    let Some(objects) = (0..shape.needs().len()).map(|place| pick(r, &picked(place)).copied()).collect() else {
        return;
    };
    let id = program.fresh();
    let mut pieces = vec![];
    for (kind, objects) in [(kind, objects), (Kind::Arith, vec![])] {
        if kind == Kind::Arith && once_in(r, 2) {
            continue;
        }
        let numbers = (0..4).map(|_| number(r)).collect();
        let uid = program.fresh() as u32;
        pieces.push(Piece { uid, kind, numbers, objects, functions: vec![], texts: vec![], cases: vec![] });
    }
    let attribute = if once_in(r, 3) { "__attribute__((noinline))" } else { "" };
    let name = format!("read_{id}");
    let f = Function { name, file, is_static: false, level: 0, attribute, parameters: 2, pieces, method: None };
    program.functions.insert(id, f);
    let items = &mut program.files[file];
    // Between arrays, or behind all of them.
    let at = if once_in(r, 3) { r.below(items.len() + 1) } else { items.len() };
    items.insert(at, Item::Function(id));
}

/// A few elements of arrays, or the place that a pointer in a table has, and perhaps a number in a reader.
pub(crate) fn edit(program: &mut Program, r: &mut Random) -> Vec<String> {
    let objects: Vec<usize> = program.objects.keys().copied().collect();
    let mut done = Vec::new();
    for _ in 0..[1, 1, 1, 2, 3][r.below(5)] {
        let Some(id) = pick(r, &objects) else { break };
        let Some(o) = program.objects.get_mut(id) else { break };
        let index = r.below(o.values.len());
        if o.objects.is_empty() {
            o.values[index] = (o.values[index] + 1 + r.below(50) as i64) % 100;
        } else {
            let len = program.objects[&program.objects[id].objects[index]].len;
            let place = r.below(len) as i64;
            program.objects.get_mut(id).into_iter().for_each(|o| o.values[index] = place);
        }
        done.push(format!("number {index} of {} ({:?})", program.objects[id].name, program.objects[id].class));
    }
    if once_in(r, 3) {
        let all: Vec<usize> = program.functions.keys().copied().collect();
        if let Some(f) = pick(r, &all).and_then(|id| program.functions.get_mut(id))
            && let Some(p) = f.pieces.iter_mut().find(|p| p.kind == Kind::Arith)
        {
            p.numbers[1] += 1;
            done.push(format!("{}: a number", f.name));
        }
    }
    done
}

/// How an object is declared.
pub(crate) fn declarator(o: &Object) -> String {
    let (name, ty, len) = (&o.name, o.ty, o.len);
    match o.class {
        Class::Records => format!("const struct record {name}[{len}]"),
        Class::Grid => format!("const {ty} {name}[{len}][{WIDTH}]"),
        Class::Letters => format!("const char {name}[{}]", len + 1),
        Class::Spans => format!("const struct ends {name}[{len}]"),
        _ => format!("const {ty} *const {name}[{len}]"),
    }
}

/// The value that an object has from the beginning.
pub(crate) fn expression(program: &Program, o: &Object) -> String {
    let list = |items: &[i64]| items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let rows = |width| o.values.chunks(width).map(|row| format!("{{{}}}", list(row))).collect::<Vec<_>>().join(", ");
    let pointer = |(id, at): (&usize, &i64)| {
        let (name, len) = (&program.objects[id].name, program.objects[id].len);
        match o.class {
            Class::Starts => format!("{name} + {at}"),
            Class::Stops => format!("{name} + {}", len as i64 - at),
            _ => format!("{{{name} + {at}, {name} + {len}}}"),
        }
    };
    match o.class {
        Class::Records => format!("{{{}}}", rows(FIELDS)),
        Class::Grid => format!("{{{}}}", rows(WIDTH)),
        Class::Letters => {
            let letters = o.values.iter().map(|v| char::from(b'a' + v.rem_euclid(26) as u8));
            format!("\"{}\"", letters.collect::<String>())
        }
        _ => format!("{{{}}}", o.objects.iter().zip(&o.values).map(pointer).collect::<Vec<_>>().join(", ")),
    }
}

/// The statement that reads.
pub(crate) fn read(program: &Program, p: &Piece, shape: Shape) -> String {
    let o = &program.objects[&p.objects[0]];
    let (t, ty, n) = (o.name.as_str(), o.ty, o.len as i64);
    let other = p.objects.get(1).map(|id| &program.objects[id]);
    let each = "r = r * 3 + (unsigned long)";
    let small = p.numbers[0].rem_euclid(n);
    let far = 1 + p.numbers[1].rem_euclid(100);
    match shape {
        Modulo => format!("{each}{t}[a % {n}];"),
        Asked => format!("if (a < {n}) {each}{t}[a];"),
        Unknown => format!("{each}{t}[limited(a, {n})];"),
        Before => format!("{{ unsigned long i = 1 + a % {n}; {each}{t}[i - 1]; }}"),
        FarBefore => format!("if (a - {far} < {n}) {each}{t}[a - {far}];"),
        Letter => format!("{{ int c = (int)(a & 127); if (c >= {far} && c < {far} + {n}) {each}{t}[c - {far}]; }}"),
        FromEnd => format!("{each}{t}[{n} - 1 - a % {n}];"),
        Each => format!("for (const {ty} *p = {t}; p != {t} + {n}; p++) {each}*p;"),
        EachBelow => format!("for (const {ty} *p = {t}; p < {t} + {n}; p++) {each}*p ^ b;"),
        EachIndex => format!("for (int i = 0; i < {n}; i++) r += (unsigned long){t}[i] * b;"),
        EachSecond => format!("for (int i = {}; i < {n}; i += 2) {each}{t}[i];", small % 2),
        Part => format!("for (const {ty} *p = {t} + {n} - 1 - b % {n}; p < {t} + {n}; p++) {each}*p;"),
        EndNegative => format!("{{ const {ty} *end = {t} + {n}; for (long i = -{n}; i; i++) {each}end[i]; }}"),
        EndOne => format!("{each}({t} + {n})[-1 - (long)(b % {n})];"),
        Down => format!("for (const {ty} *p = {t} + {n}; p != {t};) {each}*--p;"),
        DownIndex => format!("for (int i = {n}; i-- > 0;) {each}{t}[i];"),
        DownFrom => format!("for (long i = 1 + (long)(a % {n}); i > 0; i--) {each}{t}[i - 1];"),
        Until => format!("for (long i = -1 - (long)(a % {n}); i; i++) {each}({t} + {n})[i];"),
        Element => format!("{each}{t}[{small}];"),
        Last => format!("{each}{t}[{n} - 1] * a;"),
        Either => format!("{each}(a & 1 ? {t}[{small}] : {t}[{}]);", far % n),
        EndHanded => format!("r ^= back({t} + {n}, sizeof {t});"),
        EndsHanded => format!("r ^= span({t}, {t} + {n});"),
        StartHanded => format!("r ^= front({t}, sizeof {t});"),
        Search => format!(
            "{{ const {ty} *p = {t}; while (p != {t} + {n} && (unsigned long)*p != a) p++; r = r * 3 + (unsigned long)(p - {t}); }}"
        ),
        Halves => format!(
            "{{ const {ty} *low = {t}, *high = {t} + {n}; while (low < high) {{ const {ty} *mid = low + (high - low) / 2; {each}*mid; if ((unsigned long)*mid < (a & 127)) low = mid + 1; else high = mid; }} }}"
        ),
        Copied => format!("{{ {ty} v[{n}]; memcpy(v, {t}, sizeof v); v[a % {n}] = 1; r += back(v + {n}, sizeof v); }}"),
        Compared => {
            format!(
                "{{ {ty} v[{n}]; memset(v, (int)(a & 63), sizeof v); r += (unsigned long)(memcmp(v, {t}, sizeof v) > 0); }}"
            )
        }
        Chosen | Pairwise => {
            let u = other.unwrap_or(o);
            let least = o.len.min(u.len);
            if shape == Chosen && u.ty == ty {
                format!("{{ const {ty} *p = a & 1 ? {t} : {}; {each}p[b % {least}]; }}", u.name)
            } else {
                format!("for (int i = 0; i < {least}; i++) {each}{t}[i] * (unsigned long){}[i];", u.name)
            }
        }
        Wide => format!(
            "{{ unsigned long w = 0; memcpy(&w, (const char *){t} + a % (sizeof {t} / 2 + 1), sizeof {t} / 2 < sizeof w ? sizeof {t} / 2 : sizeof w); {each}w; }}"
        ),
        Field => {
            format!("{each}{t}[a % {n}].{};", ["key", "kind", "flag"][p.numbers[2].rem_euclid(FIELDS as i64) as usize])
        }
        EachRecord => {
            format!("for (const struct record *p = {t}; p != {t} + {n}; p++) {each}p->kind + (unsigned long)p->flag;")
        }
        LastRecord => format!("{each}{t}[{n} - 1].flag;"),
        RecordsDown => format!("for (const struct record *p = {t} + {n}; p-- != {t};) {each}p->key;"),
        Cell => format!("{each}{t}[a % {n}][b % {WIDTH}];"),
        Row => format!("for (int i = 0; i < {WIDTH}; i++) {each}{t}[a % {n}][i];"),
        AllCells => format!("for (int i = 0; i < {n}; i++) for (int k = 0; k < {WIDTH}; k++) {each}{t}[i][k];"),
        Letters => format!("{each}hash({t} + a % {n});"),
        LettersBack => format!("for (const char *p = {t} + {n}; p != {t};) {each}*--p;"),
        OneLetter => format!("{each}{t}[a % ({n} + 1)];"),
        Started => format!("{each}*{t}[a % {n}];"),
        Stopped => format!("{each}{t}[a % {n}][-1];"),
        Spanned => format!("r ^= span({t}[a % {n}].start, {t}[a % {n}].end);"),
    }
}
