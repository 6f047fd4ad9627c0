//! Variables with static storage: where they are declared, and what type they have.
//!
//! The symbol table has those of functions as `counter.0`, with a number that changes from build to build; DWARF knows
//! the name and the owner. A function that was inlined everywhere has only an abstract description, and GCC puts the
//! addresses there. Of those outside of functions, DWARF knows the source file though they be global.

use super::define::Definer;
use super::parse::{Id, NONE, Tree};
use gimli::constants as dw;

/// A variable with static storage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Variable {
    /// Link-time address.
    pub(crate) address: u64,
    /// Source file of the unit, without directories.
    pub(crate) unit: String,
    /// The function that declares it: linkage name if it has one, else plain name. Empty outside of functions.
    pub(crate) function: String,
    /// Name in the source, or the linkage name. Blocks of one function may have several of one name.
    pub(crate) name: String,
    /// Its type, as [`super`] writes it: named types by name.
    pub(crate) ty: String,
    /// Size in bytes; `None` if its type does not say.
    pub(crate) size: Option<u64>,
}

impl Variable {
    /// True if a function declares it.
    pub(crate) fn is_local(&self) -> bool {
        !self.function.is_empty()
    }
}

/// All of them, by address.
pub(super) fn variables(definer: &Definer<'_, '_>) -> Vec<Variable> {
    let tree = definer.tree;
    let mut found = Vec::new();
    if !tree.placed {
        return found;
    }
    for unit in 0..tree.units.len() {
        for (i, node) in tree.units[unit].nodes.iter().enumerate() {
            if node.tag == dw::DW_TAG_variable {
                found.extend(variable(definer, (unit as u32, i as u32)));
            }
        }
    }
    found.sort();
    // An inline function's variable is described again in each unit that has the function.
    found.dedup_by(|b, a| (a.address, &a.name, &a.function) == (b.address, &b.name, &b.function));
    found
}

fn variable(definer: &Definer<'_, '_>, id: Id) -> Option<Variable> {
    let tree = definer.tree;
    let node = tree.node(id);
    let owner = std::iter::successors(tree.parent(id), |&id| tree.parent(id))
        .take_while(|&id| tree.node(id).tag != dw::DW_TAG_namespace)
        .find(|&id| tree.node(id).tag == dw::DW_TAG_subprogram);
    let (unit, function) = match owner {
        Some(owner) => function_name(tree, owner)?,
        None => (owner_unit(tree, id), String::new()),
    };
    let (name, ty) = match node.origin {
        NONE => (node.name.to_vec(), node.ty),
        origin => declaration(tree, origin)?,
    };
    let ty = if node.ty == NONE { ty } else { node.ty };
    // Namespaces and classes are in the linkage name.
    let name = tree.side(id).filter(|_| owner.is_none()).map_or(name, <[u8]>::to_vec);
    let mut text = Vec::new();
    definer.write_type(ty, &mut text, 0).ok()?;
    Some(Variable {
        address: node.place,
        unit: String::from_utf8_lossy(tree.unit(unit).file()).into_owned(),
        function,
        name: String::from_utf8_lossy(&name).into_owned(),
        ty: String::from_utf8_lossy(&text).into_owned(),
        size: size(tree, ty),
    })
    .filter(|variable| !variable.name.is_empty())
}

/// Follows a concrete function to its abstract one, and a definition to its declaration.
fn function_name(tree: &Tree<'_>, owner: Id) -> Option<(Id, String)> {
    let chain = std::iter::successors(Some(owner), |&id| tree.find(tree.node(id).origin)).take(8);
    let mut plain = None;
    for id in chain {
        let name = tree.node(id).name;
        if let Some(linkage) = tree.side(id) {
            return Some((owner_unit(tree, owner), String::from_utf8_lossy(linkage).into_owned()));
        }
        if plain.is_none() && !name.is_empty() {
            plain = Some(String::from_utf8_lossy(name).into_owned());
        }
    }
    Some((owner_unit(tree, owner), plain?))
}

/// The abstract function's unit is the source file, also where link-time optimisation moved the code elsewhere; but
/// what `dwz` moved into a part that units share has no file.
fn owner_unit(tree: &Tree<'_>, owner: Id) -> Id {
    tree.find(tree.node(owner).origin).filter(|id| !tree.unit(*id).file().is_empty()).unwrap_or(owner)
}

/// Name and type of the variable that a concrete one comes from. It has no address itself, so the tree does not have it.
fn declaration(tree: &Tree<'_>, mut origin: u64) -> Option<(Vec<u8>, u64)> {
    let mut name: Option<Vec<u8>> = None;
    for _ in 0..8 {
        let (unit, offset) = tree.locate(origin)?;
        let entry = unit.die.entry(offset).ok()?;
        name = name.or_else(|| tree.string(unit, entry.attr_value(dw::DW_AT_name)?).map(<[u8]>::to_vec));
        let follow = |at| unit.target(entry.attr_value(at)?);
        if let Some(ty) = follow(dw::DW_AT_type) {
            return Some((name?, ty));
        }
        origin = follow(dw::DW_AT_abstract_origin).or_else(|| follow(dw::DW_AT_specification))?;
    }
    None
}

/// Size in bytes, through typedefs, qualifiers and arrays.
fn size(tree: &Tree<'_>, mut ty: u64) -> Option<u64> {
    let mut count: u64 = 1;
    for _ in 0..32 {
        let id = tree.find(ty)?;
        let node = tree.node(id);
        match node.tag {
            _ if node.size != NONE => return count.checked_mul(node.size),
            dw::DW_TAG_pointer_type | dw::DW_TAG_reference_type | dw::DW_TAG_rvalue_reference_type => {
                return count.checked_mul(u64::from(tree.unit(id).die.header.address_size()));
            }
            dw::DW_TAG_array_type => {
                for (_, bound) in tree.children(id) {
                    count = count.checked_mul(Some(bound.value).filter(|&n| n != NONE)?)?;
                }
            }
            // A declaration in one unit may be defined in another: unknown here.
            _ if node.ty == NONE => return tree.find(node.origin).map(|id| tree.node(id).size).filter(|&s| s != NONE),
            _ => {}
        }
        ty = node.ty;
    }
    None
}
