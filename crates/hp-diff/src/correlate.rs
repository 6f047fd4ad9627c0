//! Pairing entities of the old build with entities of the new one.
//!
//! Only 1:1 matches count, in this order of evidence:
//! 1. the same name in the same file scope;
//! 2. for variables, the same file, function and name in the debug information of both: static locals, and
//!    what became static or global;
//! 3. the same name once the compiler's numbering (`.constprop.0`, `.lto_priv.1`) is put aside;
//!    or, for names of Rust, hashes and disambiguators; instances of one generic function by their content;
//! 4. the references that pairs of otherwise identical functions or objects make at the
//!    same place; they must be unanimous;
//! 5. for static locals without any of these, the only variable of that name in the file,
//!    if one function uses it in both builds.
//!
//! The number in a static local's symbol (`counter.0`) says nothing: one more static in
//! the file renumbers the others. Position is never evidence.

mod instructions;
mod names;
mod pairs;
mod presumed;
mod stripped;
mod votes;

pub(crate) use pairs::{Pairs, Relation, View};
pub(crate) use presumed::presume;
pub(crate) use stripped::audit;

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::build::Build;
use crate::copies::Copies;
use crate::entity::{FunctionId, Map, ObjectId};
use crate::judge::Agreed;
use crate::layout::Variable;
use crate::rust;
use names::Names;
use votes::Votes;

/// Which old entity is which new one.
#[derive(Debug, Default)]
pub(crate) struct Correlation {
    /// Old function to new function.
    pub functions: Pairs,
    /// Old object to new object.
    pub objects: Pairs,
    /// Functions without a name that are identical to several others, as many in the new build as in the
    /// old one: none of them changed, but which is which is not known. Old and new ones.
    pub alike: (FxHashSet<FunctionId>, FxHashSet<FunctionId>),
    /// Old functions whose partner is presumed: see [`presume`].
    pub presumed: FxHashSet<FunctionId>,
    /// Functions that do the same as others of their name.
    pub copies: Copies,
    /// Old and new objects that debug information identifies as a static local of some function, and which.
    pub owners: (FxHashMap<ObjectId, String>, FxHashMap<ObjectId, String>),
    /// What the votes have found out about the code of each old function and its partner.
    pub settled: Vec<Settled>,
    /// Addresses that lead to the same.
    pub agreed: Agreed,
}

/// What is known of the code of a pair when all votes have been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Nothing, or that it differs.
    #[default]
    Open,
    /// It is the same, and leads to the same.
    Same,
    /// So it is if the constants that it leads to have not changed.
    SameButForConstants,
}

/// Pairs the entities of two builds.
pub(crate) fn correlate(old: &Build<'_>, new: &Build<'_>, variables: (&[Variable], &[Variable])) -> Correlation {
    let mut pairs = Correlation {
        functions: Pairs::new(old.map.functions.len(), new.map.functions.len()),
        objects: Pairs::new(old.map.objects.len(), new.map.objects.len()),
        alike: Default::default(),
        presumed: FxHashSet::default(),
        copies: Copies::default(),
        owners: (owners(&old.map, variables.0), owners(&new.map, variables.1)),
        settled: vec![Settled::Open; old.map.functions.len()],
        agreed: Agreed::default(),
    };
    let mut names = Names::new(old, new);
    names.join(&mut pairs);
    pairs.objects.join_by_key(variable_keys(&old.map, variables.0), variable_keys(&new.map, variables.1));
    let mut votes = Votes::new(&pairs, names);
    votes.settle(old, new, &mut pairs);
    join_rust_by_content(old, new, &mut pairs, &mut votes);
    let contents = stripped::join_by_content(old, new, &mut pairs, &mut votes);
    let known = (described(&old.map, variables.0), described(&new.map, variables.1));
    let (before, now) = (only_of_their_name(&old.map, &known.0), only_of_their_name(&new.map, &known.1));
    let (old_users, new_users) = (users(old, before.values()), users(new, now.values()));
    let pairs_by_name: Vec<(ObjectId, ObjectId)> =
        before.iter().filter_map(|(key, o)| Some((*o, *now.get(key)?))).collect();
    for (o, p) in pairs_by_name {
        let same_user = |f: &FunctionId| {
            pairs.functions.new_of(*f).is_some_and(|g| new_users.get(&p).is_some_and(|users| users.contains(&g)))
        };
        if old_users.get(&o).is_some_and(|users| users.iter().any(same_user)) {
            pairs.objects.join(o, p);
        }
    }
    votes.settle(old, new, &mut pairs);
    stripped::set_alike(old, new, &mut pairs, &contents);
    pairs.copies = Copies::find(old, new, &pairs);
    pairs
}

/// Static locals without debug information that are alone with their name in their file.
fn only_of_their_name<'m>(
    map: &'m Map<'_>,
    owners: &FxHashMap<ObjectId, &Variable>,
) -> BTreeMap<(&'m str, &'m str), ObjectId> {
    let mut found: BTreeMap<(&str, &str), Vec<ObjectId>> = BTreeMap::new();
    for (id, object) in map.objects.iter().enumerate() {
        if let Some(stem) = numbered_stem(object.name()) {
            found.entry((object.file, stem)).or_default().push(id);
        }
    }
    let single = found.into_iter().filter(|(_, ids)| ids.len() == 1 && !owners.contains_key(&ids[0]));
    single.map(|(key, ids)| (key, ids[0])).collect()
}

/// Which functions refer to these objects.
fn users<'m>(build: &Build<'_>, objects: impl Iterator<Item = &'m ObjectId>) -> FxHashMap<ObjectId, Vec<FunctionId>> {
    let mut users: FxHashMap<ObjectId, Vec<FunctionId>> = objects.map(|o| (*o, Vec::new())).collect();
    if !users.is_empty() {
        for (id, code) in build.code.iter().enumerate() {
            for site in code.ranges.iter().flat_map(|r| &r.sites) {
                if let Some(list) = build.map.object_at(site.target).and_then(|o| users.get_mut(&o)) {
                    list.push(id);
                }
            }
        }
    }
    users
}

/// Instances of one generic function have the same legacy name but for the hash: their content tells them apart.
fn join_rust_by_content(old: &Build<'_>, new: &Build<'_>, pairs: &mut Correlation, votes: &mut Votes<'_>) {
    let keys = |build: &Build<'_>, alone: &dyn Fn(FunctionId) -> bool| {
        let mut found = Vec::new();
        for (id, function) in build.map.functions.iter().enumerate().filter(|(id, _)| alone(*id)) {
            for name in function.names.iter().filter_map(|n| rust::quiet_name(n)) {
                found.push(((name.into_owned(), stripped::named_content(build, id)), id));
            }
        }
        found
    };
    let before = keys(old, &|f| pairs.functions.new_of(f).is_none());
    let now = keys(new, &|g| pairs.functions.old_of(g).is_none());
    if !before.is_empty() && !now.is_empty() {
        pairs.functions.join_by_key(before.into_iter(), now.into_iter());
        votes.settle(old, new, pairs);
    }
}

/// The name without the numbers that the compiler gives to clones.
pub(crate) fn quiet_name(name: &str) -> &str {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    match stem.strip_suffix('.') {
        Some(clone) if stem.len() < name.len() => clone,
        _ => name,
    }
}

/// `counter` of `counter.0`.
pub(crate) fn numbered_stem(name: &str) -> Option<&str> {
    let (stem, number) = name.rsplit_once('.')?;
    (!stem.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(stem)
}

type VariableKey<'m> = (&'m str, &'m str, &'m str);

/// What debug information calls a variable. Outside of functions only names that are alone in the build: two files may
/// have the same name.
fn variable_keys<'m>(map: &'m Map<'_>, variables: &'m [Variable]) -> impl Iterator<Item = (VariableKey<'m>, ObjectId)> {
    let key = |v: &'m Variable| -> VariableKey<'m> { (&v.unit, &v.function, &v.name) };
    let mut times: FxHashMap<VariableKey<'m>, usize> = FxHashMap::default();
    for variable in variables {
        *times.entry(key(variable)).or_default() += 1;
    }
    let sure = variables.iter().filter(move |v| v.is_local() || times[&key(v)] == 1);
    sure.filter_map(move |v| Some((key(v), object_of(map, v)?)))
}

/// The objects that debug information describes.
pub(crate) fn described<'m>(map: &Map<'_>, variables: &'m [Variable]) -> FxHashMap<ObjectId, &'m Variable> {
    variables.iter().filter_map(|v| Some((object_of(map, v)?, v))).collect()
}

fn owners(map: &Map<'_>, variables: &[Variable]) -> FxHashMap<ObjectId, String> {
    let locals = variables.iter().filter(|v| v.is_local());
    locals.filter_map(|v| Some((object_of(map, v)?, v.function.clone()))).collect()
}

fn object_of(map: &Map<'_>, variable: &Variable) -> Option<ObjectId> {
    map.object_at(variable.address).filter(|id| map.objects[*id].address == variable.address)
}
