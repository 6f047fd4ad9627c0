//! Pairing what has no name.
//!
//! A function of a stripped build is paired by its content if that occurs once on each side: its
//! bytes without the fields that lead somewhere, and what those lead to where that has content or a name of
//! its own (literals, imports, exports); then by its content and the pairs that it refers to. The rest is left to the votes. All of it can be wrong: `get() { return a; }` that became
//! `return b;` looks the same. So [`audit`] goes through every pair of functions that differ and through all that
//! is left over, and whatever contradicts a pairing is a finding.

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};
use xxhash_rust::xxh3::xxh3_128;

use super::Correlation;
use super::instructions::Versions;
use super::presumed;
use super::votes::Votes;
use crate::arch::{Site, Use};
use crate::build::Build;
use crate::callers::{callers, out_of_use};
use crate::compare::Changes;
use crate::entity::{FunctionId, ObjectId, Target};
use crate::finding::{Code, Finding};
use crate::image::{Evidence, Word};
use crate::judge::{Judge, Verdict};

/// Short functions are alike too easily: they are paired by content only when votes have had their say.
const TELLING: u64 = 64;

/// Content of the functions without a name, of the old and of the new build. Both are empty if no
/// build is stripped.
pub(super) type Contents = (Vec<Content>, Vec<Content>);

type Content = (FunctionId, u128);

/// Pairs functions without a name by content that occurs once.
pub(super) fn join_by_content(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &mut Correlation,
    votes: &mut Votes<'_>,
) -> Contents {
    if !old.map.is_stripped() && !new.map.is_stripped() {
        return Contents::default();
    }
    let before = contents(old, |f| pairs.functions.new_of(f).is_none());
    let now = contents(new, |g| pairs.functions.old_of(g).is_none());
    for smallest in [TELLING, 0] {
        let large = |build: &Build<'_>, all: &[(FunctionId, u128)]| -> Vec<(u128, FunctionId)> {
            let wanted = all.iter().filter(|(f, _)| build.map.functions[*f].size() >= smallest);
            wanted.map(|(f, key)| (*key, *f)).collect()
        };
        let (a, b) = (large(old, &before), large(new, &now));
        loop {
            let known = pairs.functions.log().len();
            pairs.functions.join_by_key(a.iter().copied(), b.iter().copied());
            votes.settle(old, new, pairs);
            if pairs.functions.log().len() == known {
                break;
            }
        }
    }
    refine((old, new), pairs, votes, (before, now))
}

/// Pairs what is still alone by its content and the pairs that it refers to. Gives the contents of all that is alone then.
fn refine(
    (old, new): (&Build<'_>, &Build<'_>),
    pairs: &mut Correlation,
    votes: &mut Votes<'_>,
    contents: Contents,
) -> Contents {
    let (mut before, mut now) = contents;
    loop {
        let known = pairs.functions.log().len();
        let number = |weak: &Weak| match *weak {
            Weak::Function(f) => pairs.functions.new_of(f),
            Weak::Object(o) => pairs.objects.new_of(o),
        };
        before = alone(&before, |f| pairs.functions.new_of(f), |f, text| content(old, f, &number, text));
        let number = |weak: &Weak| match *weak {
            Weak::Function(g) => pairs.functions.old_of(g).map(|_| g),
            Weak::Object(p) => pairs.objects.old_of(p).map(|_| p),
        };
        now = alone(&now, |g| pairs.functions.old_of(g), |g, text| content(new, g, &number, text));
        let keys = |all: &[(FunctionId, u128)]| all.iter().map(|(f, key)| (*key, *f)).collect::<Vec<_>>();
        pairs.functions.join_by_key(keys(&before).into_iter(), keys(&now).into_iter());
        let agreed = common_objects((old, new), pairs, votes, (&before, &now));
        for (o, p) in &agreed {
            pairs.objects.join(*o, *p);
        }
        votes.settle(old, new, pairs);
        if pairs.functions.log().len() == known && agreed.is_empty() {
            return (before, now);
        }
    }
}

/// Functions that are all the same, as many on each side: whichever of them is which, what all of them refer to at one place
/// is a pair, if no other place says otherwise.
fn common_objects(
    (old, new): (&Build<'_>, &Build<'_>),
    pairs: &Correlation,
    votes: &Votes<'_>,
    contents: (&[Content], &[Content]),
) -> Vec<(ObjectId, ObjectId)> {
    let judge = Judge::new(old, new, pairs);
    let mut found: FxHashSet<(ObjectId, ObjectId)> = FxHashSet::default();
    for (before, now) in groups(pairs, contents).into_values() {
        let mut of_group: FxHashSet<(ObjectId, ObjectId)> = FxHashSet::default();
        let mut same = |f: FunctionId, g: FunctionId| {
            let difference = judge.difference((f, g), &mut |_, _, verdict| match verdict {
                Verdict::Undecided(o, p) => {
                    of_group.insert((o, p));
                    true
                }
                other => other == Verdict::Same,
            });
            difference.is_none()
        };
        if before.iter().all(|f| now.iter().all(|g| same(*f, *g))) {
            found.extend(of_group);
        }
    }
    let (mut olds, mut news) = (FxHashMap::<_, u32>::default(), FxHashMap::<_, u32>::default());
    for (o, p) in &found {
        *olds.entry(*o).or_insert(0) += 1;
        *news.entry(*p).or_insert(0) += 1;
    }
    found.retain(|(o, p)| olds[o] == 1 && news[p] == 1 && votes.allow_objects(*o, *p));
    let mut agreed: Vec<_> = found.into_iter().collect();
    agreed.sort_unstable();
    agreed
}

/// The functions that are still alone, by their content, where there are as many on each side.
fn groups(
    pairs: &Correlation,
    contents: (&[Content], &[Content]),
) -> FxHashMap<u128, (Vec<FunctionId>, Vec<FunctionId>)> {
    let mut groups: FxHashMap<u128, (Vec<FunctionId>, Vec<FunctionId>)> = FxHashMap::default();
    for (f, key) in contents.0.iter().filter(|(f, _)| pairs.functions.new_of(*f).is_none()) {
        groups.entry(*key).or_default().0.push(*f);
    }
    for (g, key) in contents.1.iter().filter(|(g, _)| pairs.functions.old_of(*g).is_none()) {
        groups.entry(*key).or_default().1.push(*g);
    }
    groups.retain(|_, (before, now)| before.len() == now.len());
    groups
}

/// The new contents of those that have no partner.
fn alone(
    all: &[(FunctionId, u128)],
    partner: impl Fn(FunctionId) -> Option<FunctionId> + Sync,
    content: impl Fn(FunctionId, &mut Vec<u8>) -> u128 + Sync,
) -> Vec<(FunctionId, u128)> {
    let alone = all.par_iter().map(|(f, _)| *f).filter(|f| partner(*f).is_none());
    alone.map_init(Vec::new, |text, f| (f, content(f, text))).collect()
}

/// Finds the functions that are left over because they are all the same.
pub(super) fn set_alike(old: &Build<'_>, new: &Build<'_>, pairs: &mut Correlation, contents: &Contents) {
    let judge = Judge::new(old, new, pairs);
    let same = |f: FunctionId, g: FunctionId| judge.any_difference((f, g)).is_none();
    let groups: Vec<_> = groups(pairs, (&contents.0, &contents.1)).into_values().collect();
    let all_same =
        |(before, now): &&(Vec<FunctionId>, Vec<FunctionId>)| before.iter().all(|f| now.iter().all(|g| same(*f, *g)));
    let groups: Vec<_> = groups.par_iter().filter(all_same).collect();
    let mut alike: (FxHashSet<FunctionId>, FxHashSet<FunctionId>) = Default::default();
    for (before, now) in groups {
        alike.0.extend(before);
        alike.1.extend(now);
    }
    pairs.alike = alike;
}

/// The contents of what has no name and is still alone.
fn contents(build: &Build<'_>, is_alone: impl Fn(FunctionId) -> bool + Sync) -> Vec<Content> {
    let functions = (0..build.map.functions.len()).into_par_iter();
    let unnamed = functions.filter(|f| !build.map.functions[*f].evidence.has_name() && is_alone(*f));
    unnamed.map_init(Vec::new, |text, f| (f, content(build, f, &|_| None, text))).collect()
}

/// What a function contains, apart from what has no name.
pub(super) fn named_content(build: &Build<'_>, id: FunctionId) -> u128 {
    content(build, id, &|_| None, &mut Vec::new())
}

/// What a function contains, wherever it and what it refers to may lie. What has no name counts by its number if it has one;
/// `text` is room.
fn content(build: &Build<'_>, id: FunctionId, number: &dyn Fn(&Weak) -> Option<usize>, text: &mut Vec<u8>) -> u128 {
    text.clear();
    let function = &build.map.functions[id];
    for (range, code) in function.ranges.iter().zip(&build.code[id].ranges) {
        text.extend((range.bytes.len() as u64).to_le_bytes());
        let start = text.len();
        text.extend(range.bytes);
        code.sites.blank(&mut text[start..]);
        let body = &function.ranges[0];
        let plain = !function.overlaps && !function.evidence.has_name() && build.code[id].tables.is_empty();
        for site in &code.sites {
            text.extend([0xff, site.width]);
            if plain && site.usage == Use::Branch && (body.address..body.end()).contains(&site.target) {
                text.extend([2, 1, 0]);
                text.extend((site.target - body.address).to_le_bytes());
                continue;
            }
            describe(build, id, &site, number, text);
        }
    }
    xxh3_128(text)
}

/// What a reference leads to, as far as names, contents and numbers can say it.
fn describe(
    build: &Build<'_>,
    id: FunctionId,
    site: &Site,
    number: &dyn Fn(&Weak) -> Option<usize>,
    text: &mut Vec<u8>,
) {
    let numbered = |weak: Weak, text: &mut Vec<u8>| {
        text.extend(number(&weak).map_or(u64::MAX, |n| n as u64).to_le_bytes());
    };
    if let Some(table) = build.table(id, site.target) {
        for target in &table.targets {
            let place = build.map.function_at(*target).filter(|f| f.0 == id).map_or((9, 9), |f| (f.1, f.2));
            text.extend([1, place.0 as u8]);
            text.extend(place.1.to_le_bytes());
        }
        return;
    }
    let startup = build.map.functions[id].evidence == Evidence::Gap && site.usage == Use::Address;
    if startup && build.image.is_end_of_data(site.target) {
        text.extend([8]);
        return;
    }
    match build.map.resolve(&build.image, site) {
        Target::Function(f, range, offset) => {
            text.extend([2, u8::from(f == id), range as u8]);
            text.extend(offset.to_le_bytes());
            if build.map.functions[f].evidence.has_name() {
                text.extend(build.map.functions[f].name().bytes());
            } else if f != id {
                numbered(Weak::Function(f), text);
            }
        }
        Target::Object(o, offset) if build.map.objects[o].unnamed => {
            text.extend([3]);
            numbered(Weak::Object(o), text);
            if number(&Weak::Object(o)).is_some() {
                text.extend(offset.to_le_bytes());
            }
        }
        Target::Object(o, offset) => {
            text.extend([4]);
            text.extend(build.map.objects[o].name().bytes());
            text.extend(offset.to_le_bytes());
        }
        Target::Stub(Word::Symbol(name, _)) | Target::Slot(Word::Symbol(name, _)) => {
            text.extend([5]);
            text.extend(name.bytes());
        }
        Target::Literal => {
            let bytes = match site.usage {
                Use::Access(n) => build.image.bytes(site.target, u64::from(n)).unwrap_or_default(),
                _ => build.map.literal(&build.image, site.target),
            };
            text.extend([6]);
            let span = site.target..site.target + bytes.len() as u64;
            if build.image.words.range(span.clone()).next().is_none()
                && build.map.distances.range(span).next().is_none()
                && !build.image.fixed_address
            {
                text.extend(bytes);
            }
        }
        Target::Marker(name) => text.extend(name.bytes()),
        Target::Stub(_) | Target::Slot(_) | Target::Header(_) | Target::Unknown => text.extend([7]),
    }
}

/// What speaks against pairings of code and data without a name.
pub(crate) fn audit(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation, changes: &Changes) -> Vec<Finding> {
    if !old.map.is_stripped() && !new.map.is_stripped() {
        return Vec::new();
    }
    let mut findings = leftovers(old, new, pairs);
    findings.extend(presumed::doubts(old, pairs, changes));
    let judge = Judge::new(old, new, pairs).with_changed_constants(changes.constants.clone());
    let of_pair = |&(f, g, _): &(FunctionId, FunctionId, _)| contradictions(&judge, (old, new), pairs, (f, g));
    findings.par_extend(changes.functions.par_iter().flat_map_iter(of_pair));
    findings
}

/// Functions without a name that both builds have left over.
pub(super) fn left_over(
    (old, new): (&Build<'_>, &Build<'_>),
    pairs: &Correlation,
) -> (Vec<FunctionId>, Vec<FunctionId>) {
    let unnamed = |build: &Build<'_>, f: FunctionId| !build.map.functions[f].evidence.has_name();
    let before = (0..old.map.functions.len())
        .filter(|f| pairs.functions.new_of(*f).is_none() && unnamed(old, *f) && !pairs.alike.0.contains(f));
    let now = (0..new.map.functions.len())
        .filter(|g| pairs.functions.old_of(*g).is_none() && unnamed(new, *g) && !pairs.alike.1.contains(g));
    (before.collect(), now.collect())
}

/// One function that is left over may be another one, changed; unless nothing leads to it but others of that kind.
fn leftovers(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation) -> Vec<Finding> {
    let (before, now) = left_over((old, new), pairs);
    if before.is_empty() || now.is_empty() {
        return Vec::new();
    }
    let unused = out_of_use(&callers(old, &before), &FxHashSet::default());
    let message = |n: usize| format!("nothing shows which of {n} functions of the new build it became, if any");
    before
        .into_iter()
        .filter(|f| !unused.contains(f))
        .map(|f| Finding::new(Code::PairingUnproven, old.map.functions[f].name(), message(now.len())))
        .collect()
}

/// Instructions that a changed function has in both builds must lead to pairs; and of those that it has in one
/// of them only, not both may lead to something that the other side does not use.
fn contradictions(
    judge: &Judge<'_, '_>,
    (old, new): (&Build<'_>, &Build<'_>),
    pairs: &Correlation,
    pair: (FunctionId, FunctionId),
) -> Vec<Finding> {
    let versions = Versions::new((old, new), pair);
    let name = old.map.functions[pair.0].name();
    let mut findings = Vec::new();
    for (s, t) in versions.common() {
        if judge.may_mean_more(pair, s, t) {
            let message = format!(
                "the constant at {:#x} of the old build is the same in the new one, but code reads through an index, and what it reads may begin behind it, where something changed",
                s.target
            );
            findings.push(Finding::new(Code::PairingUnproven, name, message));
        }
        let unnamed = weak(old, s).is_some() && weak(new, t).is_some();
        if unnamed && judge.sites(pair, s, t) != Verdict::Same {
            findings.push(Finding::new(
                Code::PairingUnproven,
                name,
                format!(
                    "the same instruction leads to {:#x} in the old build and to {:#x} in the new one, which are not a pair",
                    s.target, t.target
                ),
            ));
        }
    }
    let (left, come) = versions.apart();
    let left: FxHashSet<Weak> = left.into_iter().filter_map(|s| weak(old, s)).collect();
    let come: FxHashSet<Weak> = come.into_iter().filter_map(|s| weak(new, s)).collect();
    if let Some(g) = versions.new.sites.iter().find_map(|s| match weak(new, s) {
        Some(Weak::Function(g)) if pairs.alike.1.contains(&g) => Some(g),
        _ => None,
    }) {
        let message = format!("it uses {}, which has several equals", new.map.functions[g].name());
        findings.push(Finding::new(Code::PairingUnproven, name, message));
    }
    let as_old = |w: &Weak| match w {
        Weak::Function(g) => pairs.functions.old_of(*g).map(Weak::Function),
        Weak::Object(p) => pairs.objects.old_of(*p).map(Weak::Object),
    };
    let now_used: FxHashSet<Weak> = come.iter().filter_map(as_old).collect();
    let gone = left.iter().any(|w| !now_used.contains(w));
    let added = come.iter().any(|w| as_old(w).is_none_or(|w| !left.contains(&w)));
    if gone && added {
        let message = "it no longer uses something without a name and uses something else, which may be the same";
        findings.push(Finding::new(Code::PairingUnproven, name, message));
    }
    findings.truncate(8);
    findings
}

/// An entity whose pairing rests on content and votes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Weak {
    Function(FunctionId),
    Object(usize),
}

fn weak(build: &Build<'_>, site: &Site) -> Option<Weak> {
    match build.map.resolve(&build.image, site) {
        Target::Function(f, _, 0) if !build.map.functions[f].evidence.has_name() => Some(Weak::Function(f)),
        Target::Object(o, _) if build.map.objects[o].unnamed => Some(Weak::Object(o)),
        _ => None,
    }
}
