//! Which units describe their types alike in both builds, so that no type of theirs has to be written down.
//!
//! Units pair by source file, in order. A pair is alike if all that is kept of both is the same: each DIE with its
//! place in the unit, and each reference leading to the same place of the same pair. Addresses of variables may differ.
//! What a unit refers to decides about its texts, and a `typedef` elsewhere may name its types; so a unit counts as
//! differing, too, if references lead from it, or to it, from a unit that differs, over any number of steps.
//!
//! A reference to what is no type is an error that a later stage reports, so such a unit differs.

use super::parse::{NONE, Node, Tree, Unit};
use gimli::constants as dw;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

/// No such unit.
const NO_UNIT: u32 = u32::MAX;

/// For each unit of both builds: true if it may describe something otherwise than its partner.
pub(super) fn differing(old: &Tree<'_>, new: &Tree<'_>) -> [Vec<bool>; 2] {
    let partners = partners(old, new);
    let pairs = Pairs { old, new, partners: &partners[0] };
    let alike: Vec<bool> = (0..old.units.len()).into_par_iter().map(|unit| pairs.alike(unit)).collect();
    let now = partners[1].iter().map(|p| alike.get(*p as usize).is_none_or(|alike| !alike)).collect();
    let mut differing = [alike.iter().map(|alike| !alike).collect(), now];
    spread(&mut differing, &partners, &[links(old), links(new)]);
    differing
}

/// The partner of each unit of both builds.
fn partners(old: &Tree<'_>, new: &Tree<'_>) -> [Vec<u32>; 2] {
    let mut partners = [vec![NO_UNIT; old.units.len()], vec![NO_UNIT; new.units.len()]];
    let mut waiting: FxHashMap<_, Vec<u32>> = FxHashMap::default();
    for (i, unit) in new.units.iter().enumerate().rev() {
        waiting.entry((unit.kind(), unit.file())).or_default().push(i as u32);
    }
    for (i, unit) in old.units.iter().enumerate() {
        if let Some(partner) = waiting.get_mut(&(unit.kind(), unit.file())).and_then(Vec::pop) {
            partners[0][i] = partner;
            partners[1][partner as usize] = i as u32;
        }
    }
    partners
}

/// For each unit those that it refers to, and those that refer to it.
fn links(tree: &Tree<'_>) -> Vec<Vec<u32>> {
    let outside = |i: usize| -> Vec<u32> {
        let unit = &tree.units[i];
        let references = unit.nodes.iter().flat_map(|n| [n.ty, n.origin]).chain(unit.imports.iter().copied());
        let outside = references.filter(|r| *r != NONE && !unit.contains(*r));
        let mut units: Vec<u32> = outside.filter_map(|r| Some(tree.unit_index(r)? as u32)).collect();
        units.sort_unstable();
        units.dedup();
        units
    };
    let mut found: Vec<Vec<u32>> = (0..tree.units.len()).into_par_iter().map(outside).collect();
    for from in 0..found.len() {
        for to in found[from].clone() {
            found[to as usize].push(from as u32);
        }
    }
    found
}

/// What is linked to a unit that differs, differs, and so does its partner.
fn spread(differing: &mut [Vec<bool>; 2], partners: &[Vec<u32>; 2], links: &[Vec<Vec<u32>>; 2]) {
    let all = |side: usize, differing: &[Vec<bool>; 2]| {
        let units = differing[side].iter().enumerate().filter(|(_, d)| **d).map(move |(unit, _)| (side, unit));
        units.collect::<Vec<_>>()
    };
    let mut open = [all(0, differing), all(1, differing)].concat();
    while let Some((side, unit)) = open.pop() {
        let linked = links[side][unit].iter().map(|other| (side, *other));
        for (side, other) in linked.chain([(1 - side, partners[side][unit])]) {
            if let Some(differs) = differing[side].get_mut(other as usize).filter(|d| !**d) {
                *differs = true;
                open.push((side, other as usize));
            }
        }
    }
}

struct Pairs<'t, 'o, 'n> {
    old: &'t Tree<'o>,
    new: &'t Tree<'n>,
    /// Of the old units.
    partners: &'t [u32],
}

impl Pairs<'_, '_, '_> {
    fn alike(&self, unit: usize) -> bool {
        let Some(new) = self.new.units.get(self.partners[unit] as usize) else { return false };
        let old = &self.old.units[unit];
        let known = Offsets::of(old);
        let typed = |r: u64| if old.contains(r) { known.contains(r - old.base) } else { self.old.find(r).is_some() };
        old.nodes.len() == new.nodes.len()
            && old.side == new.side
            && old.imports.len() == new.imports.len()
            && old.imports.iter().zip(&new.imports).all(|(a, b)| self.leads_alike((old, *a), (new, *b)))
            && old.nodes.iter().zip(&new.nodes).all(|(a, b)| {
                facts(a) == facts(b)
                    && self.leads_alike((old, a.ty), (new, b.ty))
                    && self.leads_alike((old, a.origin), (new, b.origin))
                    && (a.ty == NONE || typed(a.ty))
            })
    }

    /// True if two references lead to the same place of the same pair of units.
    fn leads_alike(&self, (old, a): (&Unit<'_>, u64), (new, b): (&Unit<'_>, u64)) -> bool {
        if a == NONE || b == NONE {
            return a == b;
        }
        if old.contains(a) {
            return new.contains(b) && a - old.base == b - new.base;
        }
        let (Some(x), Some(y)) = (self.old.unit_index(a), self.new.unit_index(b)) else { return false };
        self.partners[x] as usize == y && a - self.old.units[x].base == b - self.new.units[y].base
    }
}

/// All of a node but its references.
fn facts<'n>(node: &Node<'n>) -> impl PartialEq + use<'n> {
    let place = if node.tag == dw::DW_TAG_variable { 0 } else { node.place };
    (node.offset, node.parent, node.end, node.tag, node.flags, node.name, node.size, place, node.value)
}

/// The offsets at which a unit's kept DIEs lie.
struct Offsets(Vec<u64>);

impl Offsets {
    fn of(unit: &Unit<'_>) -> Offsets {
        let mut bits = vec![0; unit.nodes.last().map_or(0, |n| n.offset as usize / 64 + 1)];
        for node in &unit.nodes {
            bits[node.offset as usize / 64] |= 1 << (node.offset % 64);
        }
        Offsets(bits)
    }

    fn contains(&self, offset: u64) -> bool {
        self.0.get((offset / 64) as usize).is_some_and(|word| word >> (offset % 64) & 1 == 1)
    }
}
