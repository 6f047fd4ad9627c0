//! The canonical text of every type definition.
//!
//! A text is lines of tab-separated fields. The first is `KIND SIZE ALIGNMENT UNDERLYING`; each further one is
//! `LINE NAME PLACE TYPE`, see [`line`]. Types inside a text are written by name; what has no name is written out.

use super::parse::{Id, NONE, Node, Tree, flag, is_aggregate};
use gimli::constants as dw;
use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

/// The kinds of line in a definition, as its first field.
pub(super) mod line {
    /// A member: name, bit offset (`:` and size for a bit-field), type.
    pub(in crate::layout) const MEMBER: &str = "m";
    /// A base class: type name, bit offset.
    pub(in crate::layout) const BASE: &str = "b";
    /// A virtual function: linkage name, vtable slot.
    pub(in crate::layout) const VIRTUAL: &str = "v";
    /// An enumerator: name, value.
    pub(in crate::layout) const ENUMERATOR: &str = "e";
    /// The discriminant of a Rust enum.
    pub(in crate::layout) const DISCRIMINANT: &str = "d";
    /// One variant of a Rust enum: its name, bit offset, type and discriminant value.
    pub(in crate::layout) const VARIANT: &str = "r";
}

/// What kind of thing a name names, as C has separate name spaces for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Space {
    /// Structure, union, class or enumeration, by tag or by the typedef of an anonymous one.
    Type,
    /// Enumerator of an anonymous enumeration.
    Enumerator,
    /// `typedef` in C.
    Alias,
    /// `int` and the like.
    Base,
}

pub(super) type Key = (Space, Box<[u8]>);

/// One text and the units that have it, ascending, as indices into [`Definitions::files`].
pub(super) struct Definition {
    pub(super) text: Box<[u8]>,
    pub(super) units: Vec<u32>,
}

/// All definitions of one build.
pub(super) struct Definitions {
    /// By name; texts ascending.
    pub(super) types: BTreeMap<Key, Vec<Definition>>,
    /// Each unit's source file, without directories.
    pub(super) files: Vec<String>,
    /// Each unit's language lets files have different types of one name.
    pub(super) is_c: Vec<bool>,
}

type Shard = FxHashMap<Space, FxHashMap<Box<[u8]>, Vec<Definition>>>;
type Names = FxHashMap<Space, FxHashSet<Box<[u8]>>>;
type Types = BTreeMap<Key, Vec<Definition>>;

/// Writes down the definitions of both builds: of each name that a unit defines which is among the `differing` ones. Of all
/// other names both builds have the same definitions.
pub(super) fn definitions(
    (old, new): (&Definer<'_, '_>, &Definer<'_, '_>),
    differing: &[Vec<bool>; 2],
) -> (Result<Definitions, String>, Result<Definitions, String>) {
    let units = |side: usize, differs: bool| -> Vec<u32> {
        let units = differing[side].iter().enumerate().filter(|(_, d)| **d == differs);
        units.map(|(unit, _)| unit as u32).collect()
    };
    let (before, now) = rayon::join(|| old.types(units(0, true), None), || new.types(units(1, true), None));
    let mut names = Names::default();
    for (space, name) in [&before, &now].into_iter().flatten().flat_map(BTreeMap::keys) {
        names.entry(*space).or_default().insert(name.clone());
    }
    let finished = |definer: &Definer<'_, '_>, types: Result<Types, String>, side| {
        types.and_then(|types| definer.finished(types, units(side, false), &names))
    };
    rayon::join(|| finished(old, before, 0), || finished(new, now, 1))
}

/// Writes down all definitions of a build.
pub(super) fn all_definitions(definer: &Definer<'_, '_>) -> Result<Definitions, String> {
    let types = definer.types((0..definer.tree.units.len() as u32).collect(), None)?;
    definer.finished(types, Vec::new(), &Names::default())
}

fn merge(types: &mut Types, shard: Shard) {
    for (space, names) in shard {
        for (name, definitions) in names {
            join(types.entry((space, name)).or_default(), definitions);
        }
    }
}

fn join(known: &mut Vec<Definition>, definitions: Vec<Definition>) {
    for definition in definitions {
        match known.iter_mut().find(|k| k.text == definition.text) {
            Some(same) => same.units.extend(definition.units),
            None => known.push(definition),
        }
    }
}

/// For each anonymous type that something names, by reference: the typedef or, failing that, the variable.
fn names(tree: &Tree<'_>) -> FxHashMap<u64, Id> {
    // Direct typedefs win over `typedef struct {…} *T`, and these over variables; within each, the first in the file.
    let found: Vec<(u8, Id, u64)> = (0..tree.units.len() as u32)
        .into_par_iter()
        .flat_map_iter(|unit| {
            let nodes = &tree.units[unit as usize].nodes;
            nodes.iter().enumerate().filter_map(move |(i, node)| {
                let (rank, indirect) = match node.tag {
                    dw::DW_TAG_typedef => (0, false),
                    dw::DW_TAG_variable => (2, true),
                    _ => return None,
                };
                let id = (unit, i as u32);
                let direct = anonymous(tree, node.ty, indirect).map(|at| (rank, id, at));
                direct.or_else(|| anonymous(tree, node.ty, true).map(|at| (1, id, at)))
            })
        })
        .collect();
    let mut names: FxHashMap<u64, (u8, Id)> = FxHashMap::default();
    for (rank, id, at) in found {
        let best = names.entry(at).or_insert((rank, id));
        *best = (*best).min((rank, id));
    }
    names.into_iter().map(|(at, (_, id))| (at, id)).collect()
}

/// The anonymous type that `reference` leads to through qualifiers (and, if `indirect`, pointers and arrays).
fn anonymous(tree: &Tree<'_>, mut reference: u64, indirect: bool) -> Option<u64> {
    for _ in 0..16 {
        let id = tree.find_type(reference)?;
        let node = tree.node(id);
        match node.tag {
            tag if is_aggregate(tag) || tag == dw::DW_TAG_enumeration_type => {
                return (!tree.has_name(id)).then(|| tree.unit(id).reference(id.1));
            }
            tag if is_qualifier(tag) => reference = node.ty,
            dw::DW_TAG_pointer_type | dw::DW_TAG_array_type if indirect => reference = node.ty,
            _ => return None,
        }
    }
    None
}

fn is_qualifier(tag: gimli::DwTag) -> bool {
    matches!(
        tag,
        dw::DW_TAG_const_type
            | dw::DW_TAG_volatile_type
            | dw::DW_TAG_restrict_type
            | dw::DW_TAG_packed_type
            | dw::DW_TAG_immutable_type
            | dw::DW_TAG_shared_type
    )
}

pub(super) struct Definer<'t, 'd> {
    pub(super) tree: &'t Tree<'d>,
    names: FxHashMap<u64, Id>,
}

/// Deeper nesting of unnamed types, or longer texts, do not occur; a malformed file must not make us recurse.
const MAX_DEPTH: u32 = 48;
const MAX_TEXT: usize = 4 << 20;

type Text = Vec<u8>;

fn push_number(out: &mut Text, number: u64) {
    use std::io::Write as _;
    if number == NONE {
        out.push(b'?');
    } else {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{number}");
    }
}

fn line(out: &mut Text, kind: &str) {
    out.push(b'\n');
    out.extend_from_slice(kind.as_bytes());
    out.push(b'\t');
}

impl<'t, 'd> Definer<'t, 'd> {
    pub(super) fn new(tree: &'t Tree<'d>) -> Definer<'t, 'd> {
        Definer { tree, names: names(tree) }
    }

    /// The definitions of some units, or those of them that have one of the names.
    fn types(&self, units: Vec<u32>, only: Option<&Names>) -> Result<Types, String> {
        let shards: Vec<Result<Shard, (u32, String)>> = units
            .into_par_iter()
            .fold(
                || Ok(Shard::default()),
                |shard, unit| {
                    let mut shard = shard?;
                    self.unit(unit, only, &mut shard).map_err(|what| (unit, what))?;
                    Ok(shard)
                },
            )
            .collect();
        let mut types = Types::new();
        let mut failed: Option<(u32, String)> = None;
        for shard in shards {
            match shard {
                Ok(shard) => merge(&mut types, shard),
                Err(error) => failed = Some(failed.map_or_else(|| error.clone(), |first| first.min(error.clone()))),
            }
        }
        match failed {
            Some((unit, what)) => {
                Err(format!("unit {}: {what}", String::from_utf8_lossy(self.tree.units[unit as usize].file())))
            }
            None => Ok(types),
        }
    }

    /// Adds what `others` have of the same names, and says which source files have each definition.
    fn finished(&self, mut types: Types, others: Vec<u32>, names: &Names) -> Result<Definitions, String> {
        if !names.is_empty() {
            for (key, definitions) in self.types(others, Some(names))? {
                join(types.entry(key).or_default(), definitions);
            }
        }
        let tree = self.tree;
        let importers = tree.importers();
        for definitions in types.values_mut() {
            definitions.sort_by(|a, b| a.text.cmp(&b.text));
            for definition in definitions {
                // A part that no unit imports stays itself.
                let owners = |unit: u32| match importers[unit as usize].as_slice() {
                    [] => vec![unit],
                    owners => owners.to_vec(),
                };
                definition.units = definition.units.iter().flat_map(|unit| owners(*unit)).collect();
                definition.units.sort_unstable();
                definition.units.dedup();
            }
        }
        let files = tree.units.iter().map(|unit| String::from_utf8_lossy(unit.file()).into_owned()).collect();
        Ok(Definitions { types, files, is_c: tree.units.iter().map(|unit| unit.is_c).collect() })
    }

    fn unit(&self, unit: u32, only: Option<&Names>, shard: &mut Shard) -> Result<(), String> {
        let wanted = |space, name: &Text| {
            only.is_none_or(|only| only.get(&space).is_some_and(|names| names.contains(name.as_slice())))
        };
        let (mut name, mut text) = (Text::new(), Text::new());
        for (i, node) in self.tree.units[unit as usize].nodes.iter().enumerate() {
            let id = (unit, i as u32);
            let Some(space) = self.space(id, node) else { continue };
            if space == Space::Enumerator {
                for (child, enumerator) in self.tree.children(id).filter(|(_, n)| n.tag == dw::DW_TAG_enumerator) {
                    name.clear();
                    text.clear();
                    self.scoped(id, &mut name, 0)?;
                    name.extend_from_slice(enumerator.name);
                    if !wanted(space, &name) {
                        continue;
                    }
                    text.extend_from_slice(b"enumerator\t\t\t");
                    self.enumerator(child, enumerator, &mut text);
                    add(shard, space, &name, &text, unit);
                }
                continue;
            }
            name.clear();
            text.clear();
            self.qualified(id, &mut name, 0)?;
            if !wanted(space, &name) {
                continue;
            }
            self.define(id, node, space, &mut text)?;
            // `typedef struct s s;` says nothing.
            if !(space == Space::Alias && text.ends_with(&name)) {
                add(shard, space, &name, &text, unit);
            }
        }
        Ok(())
    }

    /// Where a definition belongs; `None` if the DIE defines nothing that has a name.
    fn space(&self, id: Id, node: &Node<'_>) -> Option<Space> {
        if node.flags & flag::DECLARATION != 0 {
            return None;
        }
        let named = self.is_named(id);
        match node.tag {
            tag if is_aggregate(tag) => named.then_some(Space::Type),
            dw::DW_TAG_enumeration_type => Some(if named { Space::Type } else { Space::Enumerator }),
            dw::DW_TAG_base_type => named.then_some(Space::Base),
            dw::DW_TAG_typedef => {
                let names_its_type = anonymous(self.tree, node.ty, false)
                    .is_some_and(|at| self.names.get(&at).is_some_and(|&by| by == id));
                // The instances of a C++ alias template all have one name.
                let wanted = self.tree.unit(id).is_c && !names_its_type && !self.in_function(id);
                wanted.then_some(Space::Alias)
            }
            _ => None,
        }
    }

    fn is_named(&self, id: Id) -> bool {
        self.tree.has_name(id) || self.names.contains_key(&self.reference(id))
    }

    fn reference(&self, id: Id) -> u64 {
        self.tree.unit(id).reference(id.1)
    }

    fn in_function(&self, id: Id) -> bool {
        std::iter::successors(Some(id), |&id| self.tree.parent(id))
            .any(|id| self.tree.node(id).tag == dw::DW_TAG_subprogram)
    }

    /// The name with its namespaces, classes and function.
    fn qualified(&self, id: Id, out: &mut Text, depth: u32) -> Result<(), String> {
        self.check(out, depth)?;
        let node = self.tree.node(id);
        if let Some(origin) = self.tree.find(node.origin)
            && self.tree.has_name(origin)
        {
            return self.qualified(origin, out, depth + 1);
        }
        if node.name.is_empty()
            && let Some(&by) = self.names.get(&self.reference(id))
        {
            return self.qualified(by, out, depth + 1);
        }
        self.scoped(id, out, depth + 1)?;
        match (node.name, node.tag) {
            (b"", dw::DW_TAG_namespace) => out.extend_from_slice(b"(anonymous namespace)"),
            (b"", tag) => {
                out.extend_from_slice(b"(anonymous ");
                out.extend_from_slice(word(tag).as_bytes());
                out.push(b')');
            }
            (name, _) => out.extend_from_slice(name),
        }
        self.template_arguments(id, out, depth + 1)
    }

    /// The scope that `id` is declared in, with its `::`; nothing at the outermost level.
    fn scoped(&self, id: Id, out: &mut Text, depth: u32) -> Result<(), String> {
        let scope = std::iter::successors(self.tree.parent(id), |&id| self.tree.parent(id)).find(|&id| {
            let tag = self.tree.node(id).tag;
            is_aggregate(tag)
                || matches!(
                    tag,
                    dw::DW_TAG_namespace | dw::DW_TAG_module | dw::DW_TAG_subprogram | dw::DW_TAG_enumeration_type
                )
        });
        let Some(scope) = scope else { return Ok(()) };
        self.qualified(scope, out, depth + 1)?;
        out.extend_from_slice(b"::");
        Ok(())
    }

    /// Arguments that the compiler left out of a template's name (`-gsimple-template-names`).
    fn template_arguments(&self, id: Id, out: &mut Text, depth: u32) -> Result<(), String> {
        let mut separator: &[u8] = b"<";
        for (child, node) in self.tree.children(id) {
            match node.tag {
                dw::DW_TAG_template_type_parameter => {
                    out.extend_from_slice(separator);
                    self.write_type(node.ty, out, depth + 1)?;
                }
                dw::DW_TAG_template_value_parameter => {
                    out.extend_from_slice(separator);
                    self.value(child, node, out);
                }
                _ => continue,
            }
            separator = b", ";
        }
        if separator != b"<" {
            out.push(b'>');
        }
        Ok(())
    }

    fn define(&self, id: Id, node: &Node<'_>, space: Space, out: &mut Text) -> Result<(), String> {
        out.extend_from_slice(word(node.tag).as_bytes());
        out.push(b'\t');
        push_number(out, node.size);
        out.push(b'\t');
        if is_aggregate(node.tag) || node.tag == dw::DW_TAG_enumeration_type {
            if node.place != NONE {
                push_number(out, node.place);
            }
            out.push(b'\t');
            if node.tag == dw::DW_TAG_enumeration_type && node.ty != NONE {
                self.write_type(node.ty, out, 0)?;
            }
            return self.contents(id, b"", 0, out, 0);
        }
        out.push(b'\t');
        match space {
            Space::Alias => self.write_type(node.ty, out, 0)?,
            _ => push_number(out, node.value),
        }
        Ok(())
    }

    /// One line for each thing inside a structure, union, class or enumeration. Members of unnamed structures and
    /// unions inside it are written with their place in the whole.
    fn contents(&self, id: Id, prefix: &[u8], start: u64, out: &mut Text, depth: u32) -> Result<(), String> {
        self.check(out, depth)?;
        for (child, node) in self.tree.children(id) {
            match node.tag {
                dw::DW_TAG_member => self.member(child, node, prefix, start, out, depth)?,
                dw::DW_TAG_inheritance => {
                    line(out, line::BASE);
                    self.write_type(node.ty, out, depth + 1)?;
                    out.push(b'\t');
                    self.place(child, node, start, out);
                    out.extend_from_slice(if node.flags & flag::VIRTUAL != 0 { b"\tvirtual" } else { b"\t" });
                }
                dw::DW_TAG_subprogram if node.flags & flag::VIRTUAL != 0 => {
                    line(out, line::VIRTUAL);
                    out.extend_from_slice(self.tree.side(child).unwrap_or(node.name));
                    out.push(b'\t');
                    push_number(out, node.place);
                    out.push(b'\t');
                }
                dw::DW_TAG_enumerator => {
                    line(out, line::ENUMERATOR);
                    out.extend_from_slice(node.name);
                    out.push(b'\t');
                    self.value(child, node, out);
                    out.push(b'\t');
                }
                dw::DW_TAG_variant_part => self.variants(child, start, out, depth)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn member(
        &self,
        id: Id,
        node: &Node<'_>,
        prefix: &[u8],
        start: u64,
        out: &mut Text,
        depth: u32,
    ) -> Result<(), String> {
        if node.flags & (flag::EXTERNAL | flag::DECLARATION) != 0 {
            return Ok(()); // a static member
        }
        let inline = self.tree.find_type(node.ty);
        let inline = inline.filter(|&ty| is_aggregate(self.tree.node(ty).tag) && !self.is_named(ty));
        if inline.is_none() || !node.name.is_empty() {
            line(out, line::MEMBER);
            out.extend_from_slice(prefix);
            out.extend_from_slice(node.name);
            out.push(b'\t');
            self.place(id, node, start, out);
            out.push(b'\t');
        }
        let Some(inline) = inline else { return self.write_type(node.ty, out, depth + 1) };
        let mut prefix = prefix.to_vec();
        if !node.name.is_empty() {
            let target = self.tree.node(inline);
            out.extend_from_slice(word(target.tag).as_bytes());
            out.extend_from_slice(b" of ");
            push_number(out, target.size);
            out.extend_from_slice(b" bytes");
            prefix.extend_from_slice(node.name);
            prefix.push(b'.');
        }
        self.contents(inline, &prefix, start.wrapping_add(node.place), out, depth + 1)
    }

    /// Rust's enums: a discriminant, and for each of its values the fields that are then valid.
    fn variants(&self, part: Id, start: u64, out: &mut Text, depth: u32) -> Result<(), String> {
        for (child, node) in self.tree.children(part) {
            let (kind, fields) = match node.tag {
                dw::DW_TAG_member => (line::DISCRIMINANT, vec![(child, node)]),
                dw::DW_TAG_variant => (line::VARIANT, self.tree.children(child).collect()),
                _ => continue,
            };
            for (id, field) in fields.into_iter().filter(|(_, field)| field.tag == dw::DW_TAG_member) {
                line(out, kind);
                out.extend_from_slice(field.name);
                out.push(b'\t');
                self.place(id, field, start, out);
                out.push(b'\t');
                self.write_type(field.ty, out, depth + 1)?;
                if kind == line::VARIANT {
                    out.extend_from_slice(b" if ");
                    self.value(child, node, out);
                }
            }
        }
        Ok(())
    }

    fn place(&self, id: Id, node: &Node<'_>, start: u64, out: &mut Text) {
        if node.flags & flag::COMPUTED != 0 {
            out.extend_from_slice(b"computed ");
            hex(self.tree.side(id).unwrap_or_default(), out);
            return;
        }
        push_number(out, start.wrapping_add(node.place));
        if node.value != NONE {
            out.push(b':');
            push_number(out, node.value);
        }
    }

    fn enumerator(&self, id: Id, node: &Node<'_>, out: &mut Text) {
        line(out, line::ENUMERATOR);
        out.extend_from_slice(node.name);
        out.push(b'\t');
        self.value(id, node, out);
        out.push(b'\t');
    }

    /// The value of an enumerator or variant, signed as most are.
    fn value(&self, id: Id, node: &Node<'_>, out: &mut Text) {
        use std::io::Write as _;
        // Writing to a vector cannot fail.
        let _ = match (self.tree.side(id), node.size) {
            (Some(bytes), _) => {
                hex(bytes, out);
                Ok(())
            }
            (None, NONE) if node.tag == dw::DW_TAG_variant && node.value == NONE => write!(out, "no other"),
            (None, NONE) => write!(out, "{}", node.value as i64),
            (None, high) => write!(out, "{}", (u128::from(high) << 64) | u128::from(node.value)),
        };
    }

    /// A type as it is mentioned: named ones by name, others spelled out; typedefs and qualifiers are seen through.
    pub(super) fn write_type(&self, reference: u64, out: &mut Text, depth: u32) -> Result<(), String> {
        self.check(out, depth)?;
        if reference == NONE {
            out.extend_from_slice(b"void");
            return Ok(());
        }
        let Some(id) = self.tree.find_type(reference) else {
            return Err(format!("reference to {reference:#x}, where there is no type"));
        };
        let node = self.tree.node(id);
        let depth = depth + 1;
        match node.tag {
            dw::DW_TAG_typedef => self.write_type(node.ty, out, depth),
            tag if is_qualifier(tag) => self.write_type(node.ty, out, depth),
            dw::DW_TAG_atomic_type => {
                out.extend_from_slice(b"_Atomic ");
                self.write_type(node.ty, out, depth)
            }
            dw::DW_TAG_pointer_type => self.pointer(node.ty, b"*", out, depth),
            dw::DW_TAG_reference_type => self.pointer(node.ty, b"&", out, depth),
            dw::DW_TAG_rvalue_reference_type => self.pointer(node.ty, b"&&", out, depth),
            dw::DW_TAG_ptr_to_member_type => {
                self.pointer(node.ty, b"::*", out, depth)?;
                out.extend_from_slice(b" of ");
                self.write_type(node.origin, out, depth)
            }
            dw::DW_TAG_subroutine_type => self.function(id, b"", out, depth),
            dw::DW_TAG_array_type => self.array(id, node, out, depth),
            dw::DW_TAG_base_type | dw::DW_TAG_unspecified_type if !node.name.is_empty() => {
                out.extend_from_slice(node.name);
                Ok(())
            }
            tag if is_aggregate(tag) || tag == dw::DW_TAG_enumeration_type => self.mention(id, node, out, depth),
            tag => {
                // Base types without a name, and what other languages have: by its attributes and name.
                out.extend_from_slice(format!("type {:#x} ", tag.0).as_bytes());
                out.extend_from_slice(node.name);
                for number in [node.size, node.value, node.place] {
                    out.push(b' ');
                    push_number(out, number);
                }
                if node.ty == NONE {
                    return Ok(());
                }
                out.extend_from_slice(b" of ");
                self.write_type(node.ty, out, depth)
            }
        }
    }

    fn mention(&self, id: Id, node: &Node<'_>, out: &mut Text, depth: u32) -> Result<(), String> {
        out.extend_from_slice(word(node.tag).as_bytes());
        out.push(b' ');
        if self.is_named(id) {
            return self.qualified(id, out, depth);
        }
        out.push(b'{');
        push_number(out, node.size);
        if is_aggregate(node.tag) {
            let mut inner = Text::new();
            self.contents(id, b"", 0, &mut inner, depth)?;
            out.extend(inner.into_iter().map(|c| match c {
                b'\n' => b';',
                b'\t' => b' ',
                c => c,
            }));
        }
        out.push(b'}');
        Ok(())
    }

    fn pointer(&self, target: u64, sign: &[u8], out: &mut Text, depth: u32) -> Result<(), String> {
        if let Some(id) = self.tree.find(target)
            && self.tree.node(id).tag == dw::DW_TAG_subroutine_type
        {
            return self.function(id, sign, out, depth);
        }
        self.write_type(target, out, depth)?;
        if !matches!(out.last(), Some(b'*' | b'&')) {
            out.push(b' ');
        }
        out.extend_from_slice(sign);
        Ok(())
    }

    fn function(&self, id: Id, sign: &[u8], out: &mut Text, depth: u32) -> Result<(), String> {
        self.write_type(self.tree.node(id).ty, out, depth)?;
        out.extend_from_slice(b" (");
        out.extend_from_slice(sign);
        out.extend_from_slice(b")(");
        let mut separator: &[u8] = b"";
        for (_, parameter) in self.tree.children(id) {
            out.extend_from_slice(separator);
            separator = b", ";
            match parameter.tag {
                dw::DW_TAG_formal_parameter => self.write_type(parameter.ty, out, depth + 1)?,
                _ => out.extend_from_slice(b"..."),
            }
        }
        out.push(b')');
        Ok(())
    }

    fn array(&self, id: Id, node: &Node<'_>, out: &mut Text, depth: u32) -> Result<(), String> {
        self.write_type(node.ty, out, depth)?;
        if node.flags & flag::VECTOR != 0 {
            out.extend_from_slice(b" vector");
        }
        for (_, bound) in self.tree.children(id) {
            out.push(b'[');
            if bound.value != NONE {
                push_number(out, bound.value);
            }
            out.push(b']');
        }
        Ok(())
    }

    fn check(&self, out: &Text, depth: u32) -> Result<(), String> {
        if depth > MAX_DEPTH || out.len() > MAX_TEXT {
            return Err("types are nested without end".into());
        }
        Ok(())
    }
}

fn add(shard: &mut Shard, space: Space, name: &[u8], text: &[u8], unit: u32) {
    let names = shard.entry(space).or_default();
    if !names.contains_key(name) {
        names.insert(name.into(), Vec::new());
    }
    let Some(definitions) = names.get_mut(name) else { return };
    match definitions.iter_mut().find(|d| *d.text == *text) {
        Some(same) if same.units.last() == Some(&unit) => {}
        Some(same) => same.units.push(unit),
        None => definitions.push(Definition { text: text.into(), units: vec![unit] }),
    }
}

fn hex(bytes: &[u8], out: &mut Text) {
    out.extend_from_slice(b"0x");
    for byte in bytes {
        out.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
}

/// The word for a kind of type. `class` and `struct` differ in nothing that memory shows.
fn word(tag: gimli::DwTag) -> &'static str {
    match tag {
        dw::DW_TAG_union_type => "union",
        dw::DW_TAG_enumeration_type => "enum",
        dw::DW_TAG_typedef => "typedef",
        dw::DW_TAG_base_type => "base type",
        dw::DW_TAG_subprogram => "function",
        _ => "struct",
    }
}
