//! A program as the generator holds it: files with objects and functions in an order, and what each function does, in pieces.
//!
//! Whatever is chosen, the program has no undefined behaviour: numbers are unsigned while they are calculated with, every index is
//! taken modulo a length, functions call only those of a lower level, and text has a bound.

use std::collections::BTreeMap;

use crate::generator::tables::Shape;
use crate::random::Random;

/// What an object is for. A reference to it may be turned into one to any other object of its class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// A number that changes.
    Scalar,
    /// Numbers that change.
    Ints,
    /// A table of numbers.
    ConstInts,
    /// A table of floating-point numbers.
    Reals,
    /// A table of texts.
    Texts,
    /// A table of pointers to numbers that change.
    Pointers,
    /// A table of functions.
    Functions,
    /// A table of structures with a function, a text and a number.
    Ops,
    /// A structure that changes; the first of a list.
    Node,
    /// A structure that does not change.
    ConstNode,
    /// Bytes for a text.
    Buffer,
    /// A pointer into an array.
    Cursor,
    /// A pointer to a function.
    Hook,
    /// A pointer that is only compared.
    Holder,
    /// A pointer to a text.
    Word,
    /// A number of each thread.
    Local,
    /// An object of a class with virtual functions; C++.
    Shape,
    // Of tables side by side only, from here on: structures, rows of numbers, a text that is an array.
    Records,
    Grid,
    Letters,
    /// Pointers to elements of tables.
    Starts,
    /// Pointers to what lies behind elements of tables.
    Stops,
    /// Pairs of a start and an end.
    Spans,
}

impl Class {
    /// Nothing writes to it.
    pub(crate) fn constant(self) -> bool {
        use Class::{
            ConstInts, ConstNode, Functions, Grid, Letters, Ops, Pointers, Reals, Records, Spans, Starts, Stops, Texts,
        };
        matches!(
            self,
            ConstInts
                | Reals
                | Texts
                | Pointers
                | Functions
                | Ops
                | ConstNode
                | Records
                | Grid
                | Letters
                | Starts
                | Stops
                | Spans
        )
    }
}

/// A data object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) file: usize,
    pub(crate) is_static: bool,
    pub(crate) class: Class,
    /// The type of its elements, of numbers.
    pub(crate) ty: &'static str,
    pub(crate) len: usize,
    /// One for each element; no element where all are zero.
    pub(crate) values: Vec<i64>,
    pub(crate) texts: Vec<String>,
    pub(crate) objects: Vec<usize>,
    pub(crate) functions: Vec<usize>,
    /// Of a shape: its class, by its place in the program's list.
    pub(crate) of: usize,
}

/// What a piece of a function does. The comments of `render` show each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Arith,
    Guard,
    Cold,
    Scalar,
    Copy,
    Index,
    Store,
    EndLoop,
    StoreLoop,
    BackLoop,
    Ends,
    PairLoop,
    TextAt,
    Literal,
    Tail,
    Choice,
    Deref,
    CallTable,
    CallOps,
    Real,
    RealAt,
    Switch,
    SwitchCall,
    Goto,
    Hook,
    Identity,
    Is,
    Cursor,
    Word,
    Call,
    Again,
    Sort,
    Library,
    Local,
    StaticLocal,
    Line,
    Walk,
    NodeStore,
    NodeCopy,
    LocalArray,
    Sum,
    Fill,
    Vector,
    /// Of tables side by side only.
    Read(Shape),
    // Of C++ only, from here on.
    Virtual,
    Cast,
    TypeName,
    Heap,
    Member,
    ShapeStore,
    Throw,
    Try,
    Cleanup,
    Template,
    Lambda,
    Stateless,
    Guarded,
    GuardedText,
    Strings,
    Numbers,
    Map,
    Erased,
    Listed,
}

/// The language that a program is written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub(crate) enum Language {
    C,
    Cpp,
}

impl Language {
    /// How files' names end.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Language::C => "c",
            Language::Cpp => "cpp",
        }
    }
}

/// A class with virtual functions; C++.
#[derive(Clone, Debug)]
pub(crate) struct Type {
    pub(crate) name: String,
    /// Earlier in the list.
    pub(crate) base: Option<usize>,
    /// The base is a virtual one.
    pub(crate) virtually: bool,
    /// It has a second base, which has a virtual function too.
    pub(crate) mixed: bool,
    /// Its destructor says so.
    pub(crate) tells: bool,
}

/// The virtual functions of classes, in the order of a table.
pub(crate) const SLOTS: [&str; 3] = ["run", "ask", "mix"];

/// In place of a file's number: what every file includes.
pub(crate) const HEADER: usize = usize::MAX;

impl Kind {
    /// It has a variable that stays from call to call, whose first value no edit may change.
    pub(crate) fn keeps(self) -> bool {
        matches!(self, Kind::StaticLocal | Kind::Guarded | Kind::GuardedText)
    }
}

/// One piece of a function's body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    /// The same in both versions, for taking programs apart.
    pub(crate) uid: u32,
    pub(crate) kind: Kind,
    pub(crate) numbers: Vec<i64>,
    pub(crate) objects: Vec<usize>,
    pub(crate) functions: Vec<usize>,
    pub(crate) texts: Vec<String>,
    pub(crate) cases: Vec<(i64, i64)>,
}

/// A function of two numbers or more.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) file: usize,
    pub(crate) is_static: bool,
    /// It calls functions of lower levels only.
    pub(crate) level: usize,
    pub(crate) attribute: &'static str,
    pub(crate) parameters: usize,
    pub(crate) pieces: Vec<Piece>,
    /// A virtual function of a class: the class and the place among `SLOTS`.
    pub(crate) method: Option<(usize, usize)>,
}

/// What lies in a file, in its order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    Object(usize),
    Function(usize),
}

/// A whole program.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) language: Language,
    pub(crate) files: Vec<Vec<Item>>,
    /// Functions that every file has.
    pub(crate) header: Vec<Item>,
    pub(crate) types: Vec<Type>,
    pub(crate) objects: BTreeMap<usize, Object>,
    pub(crate) functions: BTreeMap<usize, Function>,
    /// The functions that can be asked for, by number; they stay in every version.
    pub(crate) entries: Vec<usize>,
    /// Asking goes through a `switch`, not through a table.
    pub(crate) entries_by_switch: bool,
    /// The program can set everything back.
    pub(crate) resets: bool,
    /// Line numbers are in the answers.
    pub(crate) lines_shown: bool,
    /// It is made of tables side by side and their readers.
    pub(crate) tables: bool,
    pub(crate) next: usize,
}

impl Program {
    /// With nothing in its files.
    pub(crate) fn new(language: Language, files: usize) -> Program {
        Program {
            language,
            files: vec![Vec::new(); files],
            header: Vec::new(),
            types: Vec::new(),
            objects: BTreeMap::new(),
            functions: BTreeMap::new(),
            entries: Vec::new(),
            entries_by_switch: false,
            resets: false,
            lines_shown: false,
            tables: false,
            next: 0,
        }
    }

    pub(crate) fn fresh(&mut self) -> usize {
        self.next += 1;
        self.next
    }

    /// What lies in a file, or in the header.
    pub(crate) fn items(&mut self, file: usize) -> &mut Vec<Item> {
        if file == HEADER { &mut self.header } else { &mut self.files[file] }
    }

    /// The objects of `class` that code in `file` can name.
    pub(crate) fn visible(&self, file: usize, class: Class) -> Vec<usize> {
        let fits = |o: &Object| o.class == class && (!o.is_static || o.file == file);
        self.objects.iter().filter(|(_, o)| fits(o)).map(|(id, _)| *id).collect()
    }

    /// The functions that code of `level` in `file` can call, those with two parameters only where they are `called_through` a pointer.
    pub(crate) fn callable(&self, file: usize, level: usize, called_through: bool) -> Vec<usize> {
        let fits = |f: &Function| {
            f.method.is_none()
                && f.level < level
                && (!f.is_static || f.file == file)
                && (!called_through || f.parameters == 2 && f.attribute != ALWAYS_INLINE)
        };
        self.functions.iter().filter(|(_, f)| fits(f)).map(|(id, _)| *id).collect()
    }

    /// Its address is in a table or a variable, or taken in code.
    pub(crate) fn address_taken(&self, id: usize) -> bool {
        self.entries.contains(&id)
            || self.functions[&id].method.is_some()
            || self.objects.values().any(|o| o.functions.contains(&id))
            || self
                .functions
                .values()
                .flat_map(|f| &f.pieces)
                .any(|p| matches!(p.kind, Kind::Hook | Kind::Sort) && p.functions.contains(&id))
    }

    /// Something names the object.
    pub(crate) fn object_used(&self, id: usize) -> bool {
        self.objects.values().any(|o| o.objects.contains(&id))
            || self.functions.values().flat_map(|f| &f.pieces).any(|p| p.objects.contains(&id))
    }

    /// Something names the function.
    pub(crate) fn function_used(&self, id: usize) -> bool {
        self.address_taken(id) || self.functions.values().flat_map(|f| &f.pieces).any(|p| p.functions.contains(&id))
    }
}

/// The attribute of functions that have no address.
pub(crate) const ALWAYS_INLINE: &str = "inline __attribute__((always_inline))";

/// One of several.
pub(crate) fn pick<'a, T>(r: &mut Random, from: &'a [T]) -> Option<&'a T> {
    if from.is_empty() { None } else { from.get(r.below(from.len())) }
}

/// True once in `n` times.
pub(crate) fn once_in(r: &mut Random, n: usize) -> bool {
    r.below(n) == 0
}
