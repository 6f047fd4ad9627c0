//! From a program to its next version: a few edits of many kinds, none of which changes what a running process keeps.

use crate::generator::generate::{any_piece, choices, function, needs, number, object, piece, text};
use crate::generator::program::{ALWAYS_INLINE, Class, Item, Kind, Program, once_in, pick};
use crate::random::Random;

/// Makes one to four edits, or `moves` what lies there; says which.
pub(crate) fn edit(program: &mut Program, moves: bool, r: &mut Random) -> Vec<String> {
    // Once in a while nothing that is seen: what moved only.
    let moves_only = once_in(r, 12) || moves;
    let count = [1, 1, 1, 2, 2, 3, 4][r.below(7)];
    let mut done = Vec::new();
    for _ in 0..40 {
        if done.len() == count {
            break;
        }
        done.extend(one(program, r, moves_only));
    }
    done
}

type Edit = fn(&mut Program, &mut Random) -> Option<String>;

const MOVES: &[Edit] = &[moved, stranger_in_front, swapped];
const EDITS: &[Edit] = &[
    changed_number,
    changed_number,
    changed_number,
    other_object,
    other_object,
    other_object,
    other_object,
    other_callee,
    other_callee,
    changed_text,
    changed_text,
    changed_case,
    changed_case,
    table_entry,
    table_entry,
    table_entry,
    piece_added,
    piece_added,
    piece_added,
    piece_removed,
    pieces_swapped,
    added_function,
    removed_function,
    removed_function,
    moved,
    stranger_in_front,
    swapped,
    new_object,
    new_object,
    new_object,
    new_kind,
    parameter,
    attribute,
    bias,
];

fn one(program: &mut Program, r: &mut Random, moves_only: bool) -> Option<String> {
    let edits = if moves_only { MOVES } else { EDITS };
    edits[r.below(edits.len())](program, r)
}

fn any_function(program: &Program, r: &mut Random) -> Option<usize> {
    let all: Vec<usize> = program.functions.keys().copied().collect();
    pick(r, &all).copied()
}

/// A function and one of its pieces that `fits`.
fn any(program: &Program, r: &mut Random, fits: impl Fn(Kind) -> bool) -> Option<(usize, usize)> {
    let mut all = Vec::new();
    for (id, f) in &program.functions {
        all.extend(f.pieces.iter().enumerate().filter(|(_, p)| fits(p.kind)).map(|(at, _)| (*id, at)));
    }
    pick(r, &all).copied()
}

fn at(program: &mut Program, (id, at): (usize, usize)) -> &mut crate::generator::program::Piece {
    &mut program.functions.get_mut(&id).expect("it is there").pieces[at]
}

fn named(program: &Program, id: usize) -> &str {
    &program.functions[&id].name
}

fn changed_number(program: &mut Program, r: &mut Random) -> Option<String> {
    let place = any(program, r, |_| true)?;
    // A static local's first value is what a running process has made its own from.
    let first = usize::from(at(program, place).kind.keeps());
    let index = first + r.below(3);
    let value = if once_in(r, 2) { number(r) } else { at(program, place).numbers[index.min(3)] + 1 };
    let p = at(program, place);
    *p.numbers.get_mut(index)? = value;
    let kind = p.kind;
    Some(format!("{}: number {index} of {kind:?}", named(program, place.0)))
}

/// The bias of an index, or the constant behind it.
fn bias(program: &mut Program, r: &mut Random) -> Option<String> {
    let place = any(program, r, |kind| matches!(kind, Kind::BackLoop | Kind::Index))?;
    at(program, place).numbers[0] += 1;
    Some(format!("{}: bias", named(program, place.0)))
}

fn other_object(program: &mut Program, r: &mut Random) -> Option<String> {
    let place = any(program, r, |kind| !needs(kind).0.is_empty())?;
    let (kind, file) = (at(program, place).kind, program.functions[&place.0].file);
    let index = r.below(needs(kind).0.len());
    let was = at(program, place).objects[index];
    let others: Vec<usize> = choices(program, file, kind, index).into_iter().filter(|id| *id != was).collect();
    let other = *pick(r, &others)?;
    at(program, place).objects[index] = other;
    let name = |id: usize| program.objects[&id].name.clone();
    Some(format!("{}: {kind:?} of {} for {}", named(program, place.0), name(other), name(was)))
}

fn other_callee(program: &mut Program, r: &mut Random) -> Option<String> {
    let place = any(program, r, |kind| needs(kind).1 > 0)?;
    let (kind, f) = (at(program, place).kind, &program.functions[&place.0]);
    let (file, level) = (f.file, if kind == Kind::Hook { f.level.min(1) } else { f.level });
    let index = r.below(needs(kind).1);
    let was = at(program, place).functions[index];
    let others: Vec<usize> =
        program.callable(file, level, kind == Kind::Hook).into_iter().filter(|id| *id != was).collect();
    let other = *pick(r, &others)?;
    at(program, place).functions[index] = other;
    Some(format!("{}: calls {} for {}", named(program, place.0), named(program, other), named(program, was)))
}

fn changed_text(program: &mut Program, r: &mut Random) -> Option<String> {
    let uses = |k| {
        matches!(
            k,
            Kind::Cold
                | Kind::Literal
                | Kind::Tail
                | Kind::Choice
                | Kind::Word
                | Kind::Fill
                | Kind::Switch
                | Kind::Library
        )
    };
    let place = any(program, r, uses)?;
    let index = r.below(2);
    let new = other_text(r, &at(program, place).texts[index].clone());
    let was = std::mem::replace(&mut at(program, place).texts[index], new.clone());
    Some(format!("{}: \"{new}\" for \"{was}\"", named(program, place.0)))
}

/// One byte, or all of it.
fn other_text(r: &mut Random, was: &str) -> String {
    if once_in(r, 2) || was.is_empty() {
        return text(r);
    }
    let at = r.below(was.len());
    was.chars().enumerate().map(|(i, c)| if i == at { (b'a' + r.below(26) as u8) as char } else { c }).collect()
}

fn changed_case(program: &mut Program, r: &mut Random) -> Option<String> {
    let place = any(program, r, |kind| matches!(kind, Kind::Switch | Kind::Goto | Kind::LocalArray | Kind::Sum))?;
    let value = number(r);
    let way = r.below(4);
    let index = r.below(at(program, place).cases.len());
    let cases = &mut at(program, place).cases;
    match way {
        0 => cases[index].1 = value,
        1 => {
            let key = cases.last()?.0 + 1;
            cases.push((key, value));
        }
        2 if cases.len() > 2 => {
            cases.remove(index);
        }
        _ => cases.swap(index, 0),
    }
    let kind = at(program, place).kind;
    Some(format!("{}: case {index} of {kind:?}, way {way}", named(program, place.0)))
}

/// An element of a constant table.
fn table_entry(program: &mut Program, r: &mut Random) -> Option<String> {
    let tables: Vec<usize> = program.objects.iter().filter(|(_, o)| o.class.constant()).map(|(id, _)| *id).collect();
    let id = *pick(r, &tables)?;
    let o = program.objects[&id].clone();
    let index = r.below(o.len);
    let leaves = program.callable(o.file, 1, true);
    let changed = program.objects.get_mut(&id)?;
    match o.class {
        Class::ConstInts | Class::Reals | Class::Ops | Class::ConstNode if once_in(r, 2) || o.functions.is_empty() => {
            changed.values[index] = (changed.values[index] + 1 + r.below(50) as i64) % 100;
        }
        Class::Texts => changed.texts[index] = other_text(r, &o.texts[index]),
        Class::Functions | Class::Ops => changed.functions[index] = *pick(r, &leaves)?,
        Class::Pointers => {
            let other = r.below(o.len);
            changed.objects.swap(index, other);
            changed.values.swap(index, other);
        }
        _ => return None,
    }
    Some(format!("{}[{index}] ({:?})", o.name, o.class))
}

fn insert_piece(program: &mut Program, r: &mut Random, id: usize, piece: crate::generator::program::Piece) -> String {
    let pieces = &mut program.functions.get_mut(&id).expect("it is there").pieces;
    let at = r.below(pieces.len() + 1);
    let kind = piece.kind;
    pieces.insert(at, piece);
    format!("{}: {kind:?} added", named(program, id))
}

fn piece_added(program: &mut Program, r: &mut Random) -> Option<String> {
    let id = any_function(program, r)?;
    let piece = any_piece(program, r, id)?;
    Some(insert_piece(program, r, id, piece))
}

/// A new import, a new variable, a new constant: what the old build may not have.
fn new_kind(program: &mut Program, r: &mut Random) -> Option<String> {
    let id = any_function(program, r)?;
    let kinds = [
        Kind::Library,
        Kind::StaticLocal,
        Kind::Real,
        Kind::Literal,
        Kind::Goto,
        Kind::Switch,
        Kind::LocalArray,
        Kind::Vector,
    ];
    let kind = *pick(r, &kinds)?;
    let piece = piece(program, r, id, kind)?;
    Some(insert_piece(program, r, id, piece))
}

fn piece_removed(program: &mut Program, r: &mut Random) -> Option<String> {
    let (id, at) = any(program, r, |kind| !kind.keeps())?;
    let piece = program.functions.get_mut(&id)?.pieces.remove(at);
    Some(format!("{}: {:?} removed", named(program, id), piece.kind))
}

fn pieces_swapped(program: &mut Program, r: &mut Random) -> Option<String> {
    let (id, at) = any(program, r, |_| true)?;
    let pieces = &mut program.functions.get_mut(&id)?.pieces;
    let other = r.below(pieces.len());
    if pieces[at].kind == pieces[other].kind && at == other {
        return None;
    }
    pieces.swap(at, other);
    Some(format!("{}: pieces {at} and {other} swapped", named(program, id)))
}

fn added_function(program: &mut Program, r: &mut Random) -> Option<String> {
    let caller = any_function(program, r)?;
    let level = program.functions[&caller].level.checked_sub(1)?;
    let file = program.functions[&caller].file;
    let added = function(program, r, file, level);
    let mut call = piece(program, r, caller, Kind::Call)?;
    call.functions = vec![added];
    insert_piece(program, r, caller, call);
    Some(format!("{} added, called by {}", named(program, added), named(program, caller)))
}

/// A function that nothing kept leads to: its callers call others, or nothing.
fn removed_function(program: &mut Program, r: &mut Random) -> Option<String> {
    let free: Vec<usize> = program.functions.keys().copied().filter(|id| !program.address_taken(*id)).collect();
    let id = *pick(r, &free)?;
    let name = named(program, id).to_owned();
    for caller in program.functions.values_mut() {
        caller.pieces.retain(|p| !p.functions.contains(&id));
    }
    let file = program.functions[&id].file;
    program.functions.remove(&id);
    program.items(file).retain(|item| *item != Item::Function(id));
    Some(format!("{name} removed"))
}

/// Something goes to another place in its file.
fn moved(program: &mut Program, r: &mut Random) -> Option<String> {
    let file = r.below(program.files.len());
    let items = &mut program.files[file];
    let item = items.remove(r.below(items.len()).min(items.len().checked_sub(1)?));
    let at = r.below(items.len() + 1);
    items.insert(at, item);
    Some(format!("{} moved to {at}", item_name(program, item)))
}

fn swapped(program: &mut Program, r: &mut Random) -> Option<String> {
    let file = r.below(program.files.len());
    let objects: Vec<usize> =
        (0..program.files[file].len()).filter(|i| matches!(program.files[file][*i], Item::Object(_))).collect();
    let (one, two) = (*pick(r, &objects)?, *pick(r, &objects)?);
    program.files[file].swap(one, two);
    let [one, two] = [one, two].map(|i| item_name(program, program.files[file][i]).to_owned());
    (one != two).then(|| format!("{one} and {two} swapped"))
}

fn item_name(program: &Program, item: Item) -> &str {
    match item {
        Item::Object(id) => &program.objects[&id].name,
        Item::Function(id) => &program.functions[&id].name,
    }
}

/// A function with nothing to do with the others, in front of a file.
fn stranger_in_front(program: &mut Program, r: &mut Random) -> Option<String> {
    let file = r.below(program.files.len());
    let id = function(program, r, file, 0);
    let f = program.functions.get_mut(&id)?;
    f.is_static = false;
    if f.attribute.contains("inline") {
        f.attribute = "";
    }
    f.name = format!("stranger_{id}");
    f.pieces.retain(|p| !p.kind.keeps());
    program.files[file].retain(|item| *item != Item::Function(id));
    program.files[file].insert(0, Item::Function(id));
    Some(format!("stranger_{id} in front of file {file}"))
}

/// A new object, used by a function.
fn new_object(program: &mut Program, r: &mut Random) -> Option<String> {
    let user = any_function(program, r)?;
    let kinds = [
        Kind::Scalar,
        Kind::Index,
        Kind::EndLoop,
        Kind::Store,
        Kind::TextAt,
        Kind::Deref,
        Kind::CallTable,
        Kind::CallOps,
        Kind::Walk,
        Kind::NodeCopy,
        Kind::NodeStore,
        Kind::Fill,
        Kind::RealAt,
        Kind::Word,
        Kind::Hook,
        Kind::BackLoop,
        Kind::Ends,
    ];
    let kind = kinds[r.below(kinds.len())];
    let mut piece = piece(program, r, user, kind)?;
    let classes = needs(kind).0[0];
    let class = classes[r.below(classes.len())];
    let file = program.functions[&user].file;
    let new = object(program, r, file, class)?;
    piece.objects[0] = new;
    insert_piece(program, r, user, piece);
    Some(format!("{} ({class:?}) added, used by {}", program.objects[&new].name, named(program, user)))
}

/// One parameter more.
fn parameter(program: &mut Program, r: &mut Random) -> Option<String> {
    let free: Vec<usize> = program
        .functions
        .iter()
        .filter(|(id, f)| f.is_static && f.parameters < 9 && !program.address_taken(**id))
        .map(|(id, _)| *id)
        .collect();
    let id = *pick(r, &free)?;
    program.functions.get_mut(&id)?.parameters += 1;
    Some(format!("{} has one parameter more", named(program, id)))
}

fn attribute(program: &mut Program, r: &mut Random) -> Option<String> {
    let id = any_function(program, r)?;
    let taken = program.address_taken(id);
    let f = program.functions.get_mut(&id)?;
    let free = f.is_static && !taken;
    let was = f.attribute;
    f.attribute = match r.below(4) {
        0 if free => ALWAYS_INLINE,
        1 => "__attribute__((cold))",
        2 => "",
        _ => "__attribute__((noinline))",
    };
    (was != f.attribute)
        .then(|| format!("{}: \"{}\" for \"{was}\"", named(program, id), program.functions[&id].attribute))
}
