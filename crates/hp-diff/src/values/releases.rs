//! Calls that release what a function read from lasting memory.

use std::collections::{BTreeMap, BTreeSet};

use super::{Numbers, Place};
use crate::arch::{Deed, Use};
use crate::build::Build;
use crate::entity::Target;
use crate::image::Word;
use crate::prototypes::Prototypes;
use crate::source::SourceMap;

/// One of them: what lies in `place` is the argument of that number, from 0, of a call at `at`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release<'b> {
    pub place: Place,
    pub argument: u8,
    pub callee: &'b str,
    /// Link-time address of the call.
    pub at: u64,
}

/// The releases of one function, by the numbers of its places.
pub(super) fn releases<'b>(build: &'b Build<'_>, numbers: &Numbers) -> Vec<Release<'b>> {
    let calls = numbers.iter().flat_map(|((place, _, deed), callees)| {
        let argument = if let Deed::Passes(argument) = deed { Some(*argument) } else { None };
        callees.iter().filter_map(move |(callee, at)| Some((*place, argument?, *callee, *at)))
    });
    let named = calls.filter_map(|(place, argument, callee, at)| {
        let callee = name(build, callee).filter(|name| is_release(name))?;
        Some(Release { place, argument, callee, at })
    });
    named.collect()
}

/// The name of what a call to an address, or through the table slot there, calls.
pub(super) fn name<'b>(build: &'b Build<'_>, callee: u64) -> Option<&'b str> {
    match build.map.resolve_address(&build.image, callee, Use::Branch) {
        Target::Function(id, 0, 0) => Some(build.map.functions[id].names[0]),
        Target::Stub(Word::Symbol(name, _)) | Target::Slot(Word::Symbol(name, _)) => Some(name),
        _ => None,
    }
}

/// Names that say that what they get is gone afterwards; `_Zd` begins C++'s `operator delete`.
fn is_release(name: &str) -> bool {
    const WORDS: [&str; 5] = ["release", "destroy", "dispose", "close", "cleanup"];
    let lower = name.to_ascii_lowercase();
    is_end(name) || lower.contains("munmap") || WORDS.iter().any(|word| lower.contains(word))
}

/// The same for those that say that nobody can use it any more, or that one user less has it.
pub(super) fn is_end(name: &str) -> bool {
    const WORDS: [&str; 3] = ["free", "delete", "unref"];
    let lower = name.to_ascii_lowercase();
    lower.starts_with("_zd") || WORDS.iter().any(|word| lower.contains(word))
}

/// What a pair of functions releases: the old one and all that may have been inlined, and the new one.
pub(super) type Both<'b> = (Vec<Release<'b>>, Vec<Release<'b>>);

/// Of each pair the releases from places from which the old function releases nothing.
///
/// Registers for arguments that a callee does not take hold what is left from before. So where one of these decides, the
/// debug information is asked how many there are.
pub(super) fn added<'b>(new: &Build<'_>, all: Vec<Both<'b>>) -> Vec<Vec<Release<'b>>> {
    let doubtful = |(was, is): &Both<'b>| {
        let known: BTreeSet<Place> = was.iter().filter(|r| r.argument == 0).map(|r| r.place).collect();
        is.iter().filter(|r| !known.contains(&r.place)).map(|r| r.at).collect::<Vec<u64>>()
    };
    let addresses: BTreeSet<u64> = all.iter().flat_map(doubtful).collect();
    let names = all.iter().flat_map(|(was, is)| was.iter().chain(is)).map(|r| r.callee).collect();
    let prototypes = Prototypes::read(&new.image.debug, &addresses, &names);
    let source = SourceMap::read(&new.image.debug, addresses.iter().map(|at| *at..at + 1).collect());
    let taken = |r: &Release<'_>| prototypes.arguments(r.callee).is_none_or(|n| usize::from(r.argument) < n);
    let of_pair = |(was, is): Both<'b>| {
        let known: BTreeSet<Place> = was.iter().filter(|r| taken(r)).map(|r| r.place).collect();
        let is = is.into_iter().filter(|r| taken(r) && !known.contains(&r.place) && !is_by_type(r, &source));
        // One of each place is enough.
        let is: BTreeMap<Place, Release<'b>> = is.map(|r| (r.place, r)).collect();
        is.into_values().collect()
    };
    all.into_iter().map(of_pair).collect()
}

/// True for what a class of C++'s library does, whose objects own what they lead to: there the type says who releases, and types
/// are compared, as far as there is debug information.
///
/// What the class was made to do by an inlined function of the program, as by the destructor of an element, it does not do itself.
fn is_by_type(release: &Release<'_>, source: &SourceMap) -> bool {
    // The counter of shared pointers is handed to functions of its own.
    const COUNTERS: [&str; 2] = ["_Sp_counted_base", "__shared_weak_count"];
    if source.place(release.at).is_none() {
        return false;
    }
    let classes = || source.around(release.at).map_while(|name| of_library(name?));
    of_library(release.callee).is_some_and(|class| COUNTERS.contains(&class)) || classes().any(owns)
}

/// True for the classes whose objects own what they lead to.
fn owns(class: &str) -> bool {
    const CLASSES: [&str; 16] = [
        "_Vector_base",
        "vector",
        "basic_string",
        "unique_ptr",
        "__uniq_ptr_impl",
        "shared_ptr",
        "__shared_ptr",
        "__shared_count",
        "_Sp_counted_base",
        "_Rb_tree",
        "_Hashtable",
        "_List_base",
        "list",
        "_Deque_base",
        "deque",
        "_Function_base",
    ];
    CLASSES.contains(&class)
}

/// The class, or else the function, that the mangled name of a function of C++'s library names first (Itanium C++ ABI, section 5.1.4):
/// a name in `std`, which begins with `St`, or with `Ss` for its strings, or in `__gnu_cxx`.
fn of_library(name: &str) -> Option<&str> {
    let name = name.strip_prefix("_Z")?;
    let nested = name.strip_prefix('N').unwrap_or(name);
    let nested = nested.strip_prefix('K').unwrap_or(nested);
    if nested.starts_with("Ss") {
        return Some("basic_string");
    }
    let mut rest = nested.strip_prefix("St").or_else(|| nested.strip_prefix("9__gnu_cxx"))?;
    // Inline namespaces come before it.
    while let Some((word, behind)) = source_name(rest) {
        if !word.starts_with("__cxx") && !matches!(word, "__1" | "__debug" | "__8") {
            return Some(word);
        }
        rest = behind;
    }
    None
}

/// A name behind its length, and what follows it.
fn source_name(mangled: &str) -> Option<(&str, &str)> {
    let digits = mangled.bytes().take_while(u8::is_ascii_digit).count();
    let (length, rest) = mangled.split_at(digits);
    rest.split_at_checked(length.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::{of_library, owns};

    #[test]
    fn members_of_classes_of_the_library_are_told_by_their_names() {
        let known = |name| of_library(name).map(|class| (class, owns(class)));
        for (name, class, owner) in [
            ("_ZNSt16_Sp_counted_baseILN9__gnu_cxx12_Lock_policyE2EE10_M_releaseEv", "_Sp_counted_base", true),
            ("_ZNSt12_Vector_baseIiSaIiEE13_M_deallocateEPim", "_Vector_base", true),
            ("_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEED1Ev", "basic_string", true),
            ("_ZNSt3__16vectorIiNS_9allocatorIiEEED2Ev", "vector", true),
            ("_ZNSs4_Rep10_M_disposeERKSaIcE", "basic_string", true),
            // These own nothing.
            ("_ZNSt15__new_allocatorIiE10deallocateEPim", "__new_allocator", false),
            ("_ZN9__gnu_cxx13new_allocatorIiE10deallocateEPim", "new_allocator", false),
            ("_ZSt8_DestroyIPiEvT_S1_", "_Destroy", false),
            ("_ZNSt14default_deleteIiEclEPi", "default_delete", false),
        ] {
            assert_eq!(known(name), Some((class, owner)), "{name}");
        }
        for name in
            ["_ZN6vectorD1Ev", "_ZN3foo6vectorIiE5clearEv", "_ZdlPvm", "free", "_ZNSt99vector", "_ZNSt", "_Z", ""]
        {
            assert_eq!(of_library(name), None, "{name}");
        }
    }
}
