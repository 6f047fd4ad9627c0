//! What programs of C++ have beside those of C: classes with virtual functions, and pieces that use the language.

use crate::generator::generate::body;
use crate::generator::program::{Function, HEADER, Item, Kind, Program, SLOTS, Type, once_in};
use crate::random::Random;

const NAMES: &[&str] = &["shape", "circle", "square", "slab", "cube", "ring", "cone"];

/// Pieces of C++ only.
pub(crate) const KINDS: &[Kind] = &[
    Kind::Virtual,
    Kind::Virtual,
    Kind::Virtual,
    Kind::Cast,
    Kind::Cast,
    Kind::TypeName,
    Kind::Heap,
    Kind::Member,
    Kind::ShapeStore,
    Kind::Throw,
    Kind::Throw,
    Kind::Throw,
    Kind::Try,
    Kind::Try,
    Kind::Try,
    Kind::Cleanup,
    Kind::Cleanup,
    Kind::Template,
    Kind::Template,
    Kind::Lambda,
    Kind::Lambda,
    Kind::Stateless,
    Kind::Guarded,
    Kind::Guarded,
    Kind::GuardedText,
    Kind::Strings,
    Kind::Strings,
    Kind::Numbers,
    Kind::Map,
    Kind::Erased,
    Kind::Listed,
];

/// Two to six classes under one, with functions for some of their slots.
pub(crate) fn types(program: &mut Program, r: &mut Random) {
    let count = 2 + r.below(5);
    for (index, name) in NAMES.iter().enumerate().take(count) {
        let base = (index > 0).then(|| r.below(index));
        let mut above = base;
        let mut mixed_above = false;
        while let Some(at) = above {
            mixed_above |= program.types[at].mixed;
            above = program.types[at].base;
        }
        program.types.push(Type {
            name: (*name).to_owned(),
            base,
            virtually: base.is_some() && once_in(r, 8),
            mixed: base.is_some() && !mixed_above && once_in(r, 3),
            tells: once_in(r, 4),
        });
        let home = if once_in(r, 3) { HEADER } else { r.below(program.files.len()) };
        for slot in 0..SLOTS.len() {
            let there = match slot {
                2 => program.types[index].mixed,
                _ => base.is_none() || !once_in(r, 3),
            };
            if there {
                let file = if once_in(r, 4) { HEADER } else { home };
                method(program, r, (index, slot), file);
            }
        }
    }
}

fn method(program: &mut Program, r: &mut Random, method: (usize, usize), file: usize) {
    let level = r.below(2);
    let id = program.fresh();
    let f = Function {
        name: SLOTS[method.1].to_owned(),
        file,
        is_static: false,
        level,
        attribute: "",
        parameters: 2,
        pieces: Vec::new(),
        method: Some(method),
    };
    program.functions.insert(id, f);
    let items = program.items(file);
    let at = r.below(items.len() + 1);
    items.insert(at, Item::Function(id));
    body(program, r, id);
}
