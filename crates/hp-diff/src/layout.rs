//! Layout guard: did any type change under the objects that live in the running process?
//!
//! Every definition of a structure, union, class, enumeration, base type or named alias in either build's DWARF is
//! written down as a short canonical text (`define`): its size, and for each member the bit it starts at and the
//! type *by name*. Only units that differ between the builds are written down, and of the others what has the same names
//! (`alike`). Definitions of one qualified name are then compared as sets of texts (`diff`), because C allows each
//! file its own `struct ctx`. Comparing by name keeps texts short and finite: if `struct a` holds a `struct b *`
//! and `b` changed, `b` is found under its own name. The whole text is compared, never a hash of it.
//!
//! What counts:
//! - a type that only one build has is no finding: no live object has it, or no new code uses it;
//! - an enumerator that was *added* is no finding as long as the enumeration keeps its size and all older values:
//!   no live object can hold a value that the old build did not know, and all code that treats it is new code;
//! - a member that kept place and type but got another name *is* a finding: two swapped fields look the same but for names;
//! - an anonymous type goes by the typedef or variable that names it, or is written out inside its owner; enumerators
//!   of an anonymous enumeration go by their own names;
//! - `const`, `volatile` and member order within a union change nothing.
//!
//! Limits: all types are compared, not only those that a patched function can reach; what a value means is out of reach.
//! Code without debug information in a build that otherwise has some is found by `coverage`.

mod alike;
mod coverage;
mod define;
mod diff;
mod parse;
mod statics;
#[cfg(test)]
mod tests;

use crate::dwarf::{DESCRIPTIONS, Sections, Source};
use crate::finding::{Code, Finding};
use define::{Definer, Definitions};
use diff::Differing;
use parse::Tree;

pub(crate) use coverage::{contains, described_code};
pub(crate) use diff::{Moved, keeps_values};
pub(crate) use statics::Variable;

/// What the debug information of two builds says.
pub(crate) struct Described {
    /// All type layouts that differ, sorted.
    pub(crate) findings: Vec<Finding>,
    /// Where the members of types that differ lie.
    pub(crate) moved: Moved,
    /// The variables of the old and of the new build, by address; none where the debug information is missing or cannot be used.
    pub(crate) variables: (Vec<Variable>, Vec<Variable>),
}

type Read<T> = Result<Option<T>, String>;

/// Reads the descriptions of two builds, and compares all type layouts.
pub(crate) fn read(old: &Source<'_>, new: &Source<'_>) -> Described {
    let sections = rayon::join(|| Sections::load(old, DESCRIPTIONS), || Sections::load(new, DESCRIPTIONS));
    let trees = rayon::join(|| tree(&sections.0), || tree(&sections.1));
    let (old, new) = rayon::join(|| definer(&trees.0), || definer(&trees.1));
    let variables = |definer: &Option<Definer<'_, '_>>| definer.as_ref().map_or_else(Vec::new, statics::variables);
    let variables = rayon::join(|| variables(&old), || variables(&new));
    let Differing { findings, moved } = match (typed(old), typed(new)) {
        (Some(old), Some(new)) => {
            let units = alike::differing(old.tree, new.tree);
            let (old, new) = define::definitions((&old, &new), &units);
            differing(old.map(Some), new.map(Some))
        }
        (old, new) => differing(alone(&trees.0, old), alone(&trees.1, new)),
    };
    Described { findings, moved, variables }
}

fn tree<'d>(sections: &'d Read<Sections<'_>>) -> Read<Tree<'d>> {
    match sections {
        Ok(Some(sections)) => Tree::parse(sections).map(Some),
        Ok(None) => Ok(None),
        Err(why) => Err(why.clone()),
    }
}

fn definer<'t, 'd>(tree: &'t Read<Tree<'d>>) -> Option<Definer<'t, 'd>> {
    tree.as_ref().ok()?.as_ref().map(Definer::new)
}

fn typed<'t, 'd>(definer: Option<Definer<'t, 'd>>) -> Option<Definer<'t, 'd>> {
    definer.filter(|d| d.tree.describes_types())
}

/// The definitions of a build whose counterpart has none.
fn alone(tree: &Read<Tree<'_>>, definer: Option<Definer<'_, '_>>) -> Read<Definitions> {
    match (tree, definer) {
        (Err(why), _) => Err(why.clone()),
        (Ok(_), definer) => definer.map(|d| define::all_definitions(&d)).transpose(),
    }
}

fn differing(old: Read<Definitions>, new: Read<Definitions>) -> Differing {
    let findings = match (old, new) {
        (Ok(Some(old)), Ok(Some(new))) => return diff::differing(&old, &new),
        (Ok(None), Ok(None)) => vec![missing("both")],
        (old, new) => {
            [("old", old), ("new", new)].into_iter().filter_map(|(side, read)| unproven(side, read)).collect()
        }
    };
    Differing { findings, ..Differing::default() }
}

fn unproven(side: &str, read: Read<Definitions>) -> Option<Finding> {
    match read {
        Ok(Some(_)) => None,
        Ok(None) => Some(missing(side)),
        Err(why) => Some(Finding::new(
            Code::LayoutUnproven,
            side,
            format!(
                "the {side} build's debug information cannot be used ({why}), so nothing shows that types kept their layout"
            ),
        )),
    }
}

fn missing(side: &str) -> Finding {
    let builds = if side == "both" { "both builds have".into() } else { format!("the {side} build has") };
    Finding::new(
        Code::LayoutUnproven,
        side,
        format!("{builds} no debug information that describes types: build with -g, or give the separate debug files"),
    )
}
