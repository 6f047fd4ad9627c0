//! From a seed to a program.

use crate::generator::classes;
use crate::generator::program::{
    ALWAYS_INLINE, Class, Function, HEADER, Item, Kind, Language, Object, Piece, Program, once_in, pick,
};
use crate::random::Random;
const NAMES: &[&str] = &[
    "count", "total", "limit", "state", "level", "depth", "table", "names", "codes", "weights", "links", "marks",
    "first", "last", "cache", "hits", "misses", "slots", "ranks", "steps", "bounds", "flags", "rates", "kinds", "pool",
    "next_id", "seen", "score",
];
const VERBS: &[&str] = &[
    "check", "apply", "update", "visit", "measure", "parse", "merge", "split", "store", "fetch", "grade", "rank",
    "fold", "scan", "price", "admit", "settle", "adjust", "convert", "decide", "collect", "weigh", "match", "route",
    "trim", "expand",
];
const WORDS: &[&str] = &[
    "alpha",
    "pha",
    "beta",
    "eta",
    "gamma",
    "delta",
    "epsilon",
    "on",
    "zeta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "chi",
    "psi",
    "omega",
    "no such entry",
    "entry",
    "try",
    "%",
    "",
];
pub(crate) const TYPES: &[&str] = &[
    "int",
    "int",
    "int",
    "unsigned",
    "long",
    "unsigned long",
    "short",
    "unsigned short",
    "signed char",
    "unsigned char",
];

/// The program of a seed.
pub(crate) fn program(language: Language, r: &mut Random) -> Program {
    let files = 1 + r.below(3);
    let mut program = Program::new(language, files);
    program.entries_by_switch = once_in(r, 2);
    program.resets = once_in(r, 2);
    program.lines_shown = once_in(r, 4);
    // Leaves first: tables name them.
    for _ in 0..3 + r.below(6) {
        let file = r.below(files);
        function(&mut program, r, file, 0);
    }
    if language == Language::Cpp {
        classes::types(&mut program, r);
    }
    for class in [Class::Scalar, Class::Scalar, Class::Ints, Class::Node, Class::Buffer] {
        let file = r.below(files);
        object(&mut program, r, file, class);
    }
    for _ in 0..8 + r.below(22) {
        let (file, class) = (r.below(files), any_class(language, r));
        object(&mut program, r, file, class);
    }
    // Tables side by side, so that where the one ends the next one begins.
    let file = r.below(files);
    for _ in 0..r.below(5) {
        object(&mut program, r, file, Class::ConstInts).into_iter().for_each(|id| {
            program.files[file].retain(|item| *item != Item::Object(id));
            program.files[file].push(Item::Object(id));
        });
    }
    for level in [0, 0, 0, 1, 1, 1, 2, 2, 3] {
        for _ in 0..1 + r.below(3) {
            let file = r.below(files);
            function(&mut program, r, file, level);
        }
        if language == Language::Cpp && once_in(r, 3) {
            function(&mut program, r, HEADER, level);
        }
    }
    let asked = |f: &Function| !f.is_static && f.parameters == 2 && f.method.is_none();
    let global: Vec<usize> = program.functions.iter().filter(|(_, f)| asked(f)).map(|(id, _)| *id).collect();
    program.entries = global;
    // What nothing can reach is made reachable.
    for (id, f) in program.functions.clone() {
        if !program.function_used(id) {
            let callers: Vec<usize> = program
                .functions
                .iter()
                .filter(|(_, c)| c.level > f.level && (c.file == f.file || !f.is_static))
                .map(|(id, _)| *id)
                .collect();
            if let Some(caller) = pick(r, &callers).copied() {
                let mut call = blank(&mut program, Kind::Call);
                call.functions = vec![id];
                call.numbers = (0..4).map(|_| number(r)).collect();
                let pieces = &mut program.functions.get_mut(&caller).expect("it is there").pieces;
                let at = r.below(pieces.len() + 1);
                pieces.insert(at, call);
            }
        }
    }
    program
}

fn any_class(language: Language, r: &mut Random) -> Class {
    if language == Language::Cpp && once_in(r, 5) {
        return Class::Shape;
    }
    use Class::{
        Buffer, ConstInts, ConstNode, Cursor, Functions, Holder, Hook, Ints, Local, Node, Ops, Pointers, Reals, Scalar,
        Texts, Word,
    };
    let classes = [
        Scalar, Scalar, Scalar, Scalar, Ints, Ints, ConstInts, ConstInts, ConstInts, Reals, Texts, Texts, Pointers,
        Functions, Functions, Ops, Node, ConstNode, Buffer, Cursor, Hook, Holder, Word, Local,
    ];
    classes[r.below(classes.len())]
}

/// A number: small, large, the length of something, or one that looks like an address.
pub(crate) fn number(r: &mut Random) -> i64 {
    match r.below(12) {
        0..=5 => r.below(100) as i64,
        6 | 7 => r.below(70_000) as i64,
        8 => (0x40_1000 + r.below(0x4000)) as i64,
        9 => (0x1000 + r.below(0x4000)) as i64,
        10 => (r.next() >> 1) as i64,
        _ => -(r.below(1000) as i64),
    }
}

/// A text, of which some end as others do.
pub(crate) fn text(r: &mut Random) -> String {
    let word = WORDS[r.below(WORDS.len())].to_owned();
    match r.below(5) {
        0 => format!("{word} {}", WORDS[r.below(WORDS.len())]),
        1 => format!("{word}{}", r.below(10)),
        _ => word,
    }
}

fn name(program: &mut Program, r: &mut Random, file: usize, is_static: bool, words: &[&str]) -> String {
    let word = words[r.below(words.len())];
    let taken = |name: &str| {
        let objects = program.objects.values().map(|o| (&o.name, o.file, o.is_static));
        let functions = program.functions.values().map(|f| (&f.name, f.file, f.is_static));
        objects.chain(functions).any(|(n, f, s)| n == name && (f == file || !s || !is_static))
    };
    if is_static && !taken(word) {
        return word.to_owned();
    }
    let number = program.fresh();
    format!("{word}_{number}")
}

/// A new object at a random place of a file; none if what it needs is not there.
pub(crate) fn object(program: &mut Program, r: &mut Random, file: usize, class: Class) -> Option<usize> {
    // Who has it in every file shares it.
    let (is_static, file) = if file == HEADER { (false, 0) } else { (!once_in(r, 4), file) };
    let zero = once_in(r, 2);
    let mut o = Object {
        name: name(program, r, file, is_static, NAMES),
        file,
        is_static,
        class,
        ty: TYPES[r.below(TYPES.len())],
        len: 1,
        values: Vec::new(),
        texts: Vec::new(),
        objects: Vec::new(),
        functions: Vec::new(),
        of: 0,
    };
    let small = |r: &mut Random| r.below(100) as i64;
    match class {
        Class::Scalar | Class::Local => o.values = if zero { vec![] } else { vec![1 + small(r)] },
        Class::Ints => {
            o.ty = if once_in(r, 2) { "int" } else { o.ty };
            o.len = [2, 3, 4, 4, 8, 8, 16, 5][r.below(8)];
            o.values = if zero { vec![] } else { (0..o.len).map(|_| small(r)).collect() };
        }
        Class::ConstInts => {
            o.len = [2, 3, 4, 4, 8, 8, 16, 5][r.below(8)];
            o.values = (0..o.len).map(|_| small(r)).collect();
        }
        Class::Reals => {
            o.len = 2 + r.below(4);
            o.values = (0..o.len).map(|_| small(r)).collect();
        }
        Class::Texts => {
            o.len = 2 + r.below(5);
            o.texts = (0..o.len).map(|_| text(r)).collect();
        }
        Class::Pointers => {
            let ints: Vec<usize> =
                [Class::Scalar, Class::Ints].iter().flat_map(|c| program.visible(file, *c)).collect();
            let ints: Vec<usize> = ints.into_iter().filter(|id| program.objects[id].ty == "int").collect();
            o.len = 2 + r.below(3);
            o.objects = (0..o.len).map(|_| pick(r, &ints).copied()).collect::<Option<_>>()?;
            o.values = o.objects.iter().map(|id| r.below(program.objects[id].len) as i64).collect();
        }
        Class::Functions => {
            let leaves = program.callable(file, 1, true);
            o.len = 2 + r.below(4);
            o.functions = (0..o.len).map(|_| pick(r, &leaves).copied()).collect::<Option<_>>()?;
        }
        Class::Ops => {
            let leaves = program.callable(file, 1, true);
            o.len = 1 + r.below(3);
            o.functions = (0..o.len).map(|_| pick(r, &leaves).copied()).collect::<Option<_>>()?;
            o.texts = (0..o.len).map(|_| text(r)).collect();
            o.values = (0..o.len).map(|_| small(r)).collect();
        }
        Class::Node | Class::ConstNode => {
            o.values = (0..3).map(|_| small(r)).collect();
            o.texts = vec![WORDS[r.below(20)].chars().take(5).collect()];
            let others = program.visible(file, class);
            if once_in(r, 2) {
                o.objects = pick(r, &others).copied().into_iter().collect();
            }
        }
        Class::Buffer => o.len = [16, 24, 32][r.below(3)],
        Class::Cursor => {
            let arrays = program.visible(file, Class::Ints);
            let arrays: Vec<usize> = arrays.into_iter().filter(|id| program.objects[id].ty == "int").collect();
            let array = *pick(r, &arrays)?;
            o.objects = vec![array];
            o.values = vec![1 + r.below(program.objects[&array].len - 1) as i64];
        }
        Class::Hook => o.functions = vec![*pick(r, &program.callable(file, 1, true))?],
        Class::Holder => {
            if !zero {
                o.objects = vec![*pick(r, &program.visible(file, Class::Scalar))?];
            }
        }
        Class::Word => o.texts = vec![text(r)],
        Class::Shape => {
            o.of = r.below(program.types.len());
            o.values = vec![small(r)];
        }
        // These are made in `tables`.
        Class::Records | Class::Grid | Class::Letters | Class::Starts | Class::Stops | Class::Spans => return None,
    }
    let id = program.fresh();
    program.objects.insert(id, o);
    insert(program, r, file, Item::Object(id));
    Some(id)
}

fn insert(program: &mut Program, r: &mut Random, file: usize, item: Item) {
    let items = program.items(file);
    let at = r.below(items.len() + 1);
    items.insert(at, item);
}

/// A new function at a random place of a file.
pub(crate) fn function(program: &mut Program, r: &mut Random, file: usize, level: usize) -> usize {
    let is_static = !once_in(r, 3) && file != HEADER;
    let attribute = match r.below(12) {
        0 | 1 => "__attribute__((noinline))",
        2 if is_static => ALWAYS_INLINE,
        3 if is_static => "inline",
        4 => "__attribute__((cold))",
        5 => "__attribute__((hot))",
        _ => "",
    };
    let f = Function {
        name: name(program, r, file, is_static, VERBS),
        file,
        is_static,
        level,
        attribute,
        parameters: if is_static && once_in(r, 3) { 3 + r.below(4) } else { 2 },
        pieces: Vec::new(),
        method: None,
    };
    let id = program.fresh();
    program.functions.insert(id, f);
    insert(program, r, file, Item::Function(id));
    body(program, r, id);
    id
}

/// Pieces for a function that has none.
pub(crate) fn body(program: &mut Program, r: &mut Random, id: usize) {
    let pieces = if once_in(r, 4) { 1 } else { 1 + r.below(5) };
    for _ in 0..pieces {
        if let Some(piece) = any_piece(program, r, id) {
            program.functions.get_mut(&id).expect("it was inserted").pieces.push(piece);
        }
    }
}

fn blank(program: &mut Program, kind: Kind) -> Piece {
    let uid = program.fresh() as u32;
    Piece { uid, kind, numbers: vec![], objects: vec![], functions: vec![], texts: vec![], cases: vec![] }
}

/// What a piece of a kind refers to: objects of any of these classes, for each place, and functions.
pub(crate) fn needs(kind: Kind) -> (&'static [&'static [Class]], usize) {
    const INTS: &[Class] = &[Class::Ints, Class::ConstInts];
    const SCALAR: &[Class] = &[Class::Scalar];
    const MUTABLE: &[Class] = &[Class::Scalar, Class::Ints, Class::Node, Class::Buffer];
    match kind {
        Kind::Scalar => (&[SCALAR], 0),
        Kind::Copy => (&[SCALAR, SCALAR], 0),
        Kind::Index | Kind::EndLoop | Kind::BackLoop | Kind::Ends => (&[INTS], 0),
        Kind::Store | Kind::StoreLoop => (&[&[Class::Ints]], 0),
        Kind::PairLoop => (&[INTS, INTS], 0),
        Kind::TextAt => (&[&[Class::Texts]], 0),
        Kind::Deref => (&[&[Class::Pointers]], 0),
        Kind::CallTable => (&[&[Class::Functions]], 0),
        Kind::CallOps => (&[&[Class::Ops]], 0),
        Kind::RealAt => (&[&[Class::Reals]], 0),
        Kind::SwitchCall => (&[], 3),
        Kind::Hook => (&[&[Class::Hook]], 2),
        Kind::Identity => (&[&[Class::Holder], MUTABLE, MUTABLE], 0),
        Kind::Is => (&[&[Class::Holder], MUTABLE], 0),
        Kind::Cursor => (&[&[Class::Cursor], &[Class::Ints]], 0),
        Kind::Word => (&[&[Class::Word]], 0),
        Kind::Call => (&[], 1),
        Kind::Local => (&[&[Class::Local]], 0),
        Kind::Walk => (&[&[Class::Node, Class::ConstNode]], 0),
        Kind::NodeStore => (&[&[Class::Node]], 0),
        Kind::NodeCopy => (&[&[Class::ConstNode, Class::Node]], 0),
        Kind::Fill => (&[&[Class::Buffer]], 0),
        Kind::Virtual | Kind::Cast | Kind::TypeName | Kind::Member => (&[&[Class::Shape], &[Class::Shape]], 0),
        Kind::ShapeStore => (&[&[Class::Shape]], 0),
        Kind::Template => (&[INTS], 0),
        Kind::Try | Kind::Cleanup => (&[], 1),
        Kind::Read(shape) => (shape.needs(), 0),
        _ => (&[], 0),
    }
}

/// Objects that may stand at a place of a piece.
pub(crate) fn choices(program: &Program, file: usize, kind: Kind, place: usize) -> Vec<usize> {
    let classes = needs(kind).0[place];
    let all: Vec<usize> = classes.iter().flat_map(|class| program.visible(file, *class)).collect();
    if kind == Kind::Cursor && place == 1 {
        return all.into_iter().filter(|id| program.objects[id].ty == "int").collect();
    }
    all
}

/// A piece of any kind for a function; none if the kind that was drawn needs what is not there.
pub(crate) fn any_piece(program: &mut Program, r: &mut Random, function: usize) -> Option<Piece> {
    const KINDS: &[Kind] = &[
        Kind::Arith,
        Kind::Arith,
        Kind::Guard,
        Kind::Cold,
        Kind::Scalar,
        Kind::Scalar,
        Kind::Scalar,
        Kind::Copy,
        Kind::Index,
        Kind::Index,
        Kind::Store,
        Kind::EndLoop,
        Kind::EndLoop,
        Kind::StoreLoop,
        Kind::BackLoop,
        Kind::BackLoop,
        Kind::Ends,
        Kind::Ends,
        Kind::Ends,
        Kind::PairLoop,
        Kind::TextAt,
        Kind::TextAt,
        Kind::Literal,
        Kind::Literal,
        Kind::Tail,
        Kind::Choice,
        Kind::Deref,
        Kind::CallTable,
        Kind::CallOps,
        Kind::Real,
        Kind::RealAt,
        Kind::Switch,
        Kind::Switch,
        Kind::SwitchCall,
        Kind::Goto,
        Kind::Hook,
        Kind::Identity,
        Kind::Is,
        Kind::Cursor,
        Kind::Word,
        Kind::Call,
        Kind::Call,
        Kind::Call,
        Kind::Again,
        Kind::Sort,
        Kind::Library,
        Kind::Library,
        Kind::Local,
        Kind::StaticLocal,
        Kind::Line,
        Kind::Walk,
        Kind::NodeStore,
        Kind::NodeCopy,
        Kind::LocalArray,
        Kind::Sum,
        Kind::Fill,
        Kind::Vector,
    ];
    let kind = if program.language == Language::Cpp && once_in(r, 2) {
        classes::KINDS[r.below(classes::KINDS.len())]
    } else {
        KINDS[r.below(KINDS.len())]
    };
    piece(program, r, function, kind)
}

/// A piece of this kind for a function; none if it needs what is not there.
pub(crate) fn piece(program: &mut Program, r: &mut Random, function: usize, kind: Kind) -> Option<Piece> {
    let (file, level) = (program.functions[&function].file, program.functions[&function].level);
    let mut p = blank(program, kind);
    let (objects, functions) = needs(kind);
    for place in 0..objects.len() {
        p.objects.push(*pick(r, &choices(program, file, kind, place))?);
    }
    let level = if kind == Kind::Hook { level.min(1) } else { level };
    let callees = program.callable(file, level, kind == Kind::Hook);
    for _ in 0..functions {
        p.functions.push(*pick(r, &callees)?);
    }
    if matches!(kind, Kind::CallTable | Kind::CallOps) && level == 0 {
        return None;
    }
    // Virtual functions have level 1 at most.
    if matches!(kind, Kind::Virtual | Kind::Heap | Kind::Member) && level < 2 {
        return None;
    }
    // What a method keeps is not set back.
    if kind.keeps() && program.functions[&function].method.is_some() {
        return None;
    }
    // Two files' copies of a function cannot both keep their labels.
    if kind == Kind::Goto && file == HEADER {
        return None;
    }
    p.numbers = (0..4).map(|_| number(r)).collect();
    p.texts = (0..2).map(|_| text(r)).collect();
    if matches!(kind, Kind::Switch | Kind::Goto | Kind::LocalArray | Kind::Sum) {
        let sparse = kind == Kind::Switch && once_in(r, 3);
        let mut key = r.below(4) as i64;
        for _ in 0..3 + r.below(8) {
            p.cases.push((key, number(r)));
            key += if sparse { 1 + r.below(60) as i64 } else { 1 };
        }
    }
    Some(p)
}
