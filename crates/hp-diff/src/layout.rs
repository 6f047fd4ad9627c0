//! Layout guard: did any type change under the objects that live in the running process?
//!
//! Every definition of a structure, union, class, enumeration, base type or named alias in either build's DWARF is
//! written down as a short canonical text (`define`): its size, and for each member the bit it starts at and the
//! type *by name*. Definitions of one qualified name are then compared as sets of texts (`diff`), because C allows each
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

mod coverage;
mod define;
mod diff;
mod parse;
mod statics;
#[cfg(test)]
mod tests;

use crate::dwarf::{DESCRIPTIONS, Sections, Source};
use crate::finding::{Code, Finding};
use define::Definitions;
use parse::Tree;

pub(crate) use coverage::{contains, described_code};
pub(crate) use diff::keeps_values;
pub(crate) use statics::{Variable, variables};

/// Compares all type layouts of two builds. The findings are sorted.
pub(crate) fn compare(old: &Source<'_>, new: &Source<'_>) -> Vec<Finding> {
    let sections = (Sections::load(old, DESCRIPTIONS), Sections::load(new, DESCRIPTIONS));
    if let (Ok(Some(old)), Ok(Some(new))) = &sections
        && old.same_descriptions(new)
        && matches!(definitions(old), Ok(Some(_)))
    {
        return Vec::new();
    }
    let read = |sections: Result<Option<Sections<'_>>, String>| match sections {
        Ok(Some(sections)) => definitions(&sections),
        Ok(None) => Ok(None),
        Err(why) => Err(why),
    };
    match rayon::join(|| read(sections.0), || read(sections.1)) {
        (Ok(Some(old)), Ok(Some(new))) => diff::findings(&old, &new),
        (Ok(None), Ok(None)) => vec![missing("both")],
        (old, new) => {
            [("old", old), ("new", new)].into_iter().filter_map(|(side, read)| unproven(side, read)).collect()
        }
    }
}

/// All definitions of a build; `None` if its DWARF describes no types at all (line tables only).
fn definitions(sections: &Sections<'_>) -> Result<Option<Definitions>, String> {
    let tree = Tree::parse(sections)?;
    if !tree.describes_types() {
        return Ok(None);
    }
    define::definitions(&tree).map(Some)
}

fn unproven(side: &str, read: Result<Option<Definitions>, String>) -> Option<Finding> {
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
