//! Initial values of local arrays.
//!
//! `const char *names[] = {"a", "b"};` in a function is made by copying from data without a symbol, which lies in a
//! writable section if it holds addresses, though nobody ever writes it. It is a constant, with a content and no identity, if *every*
//! reference to it in the whole image copies or reads, and each says how much. A build without symbols has
//! variables of the program without a name too, some of which is only read where somebody looks; there is none taken for
//! a template there.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::arch::{self, Use};
use crate::build::FunctionCode;
use crate::entity::{Map, ObjectId};
use crate::image::{Image, Word};

/// Takes templates out of the objects of `map`: it lists them as such.
pub(crate) fn find(map: &mut Map<'_>, image: &Image<'_>, code: &[FunctionCode]) {
    if map.is_stripped() || image.fixed_address {
        return;
    }
    let candidates: Vec<ObjectId> =
        (0..map.objects.len()).filter(|o| map.objects[*o].unnamed && !map.objects[*o].constant).collect();
    let (Some(first), Some(last)) = (candidates.first(), candidates.last()) else { return };
    let span = map.objects[*first].address..map.objects[*last].end();
    let uses = |f: usize| uses(map, code, f, &span);
    let mut lengths: FxHashMap<ObjectId, Option<u64>> = FxHashMap::default();
    let used: Vec<(ObjectId, Option<u64>)> = (0..code.len()).into_par_iter().flat_map_iter(uses).collect();
    let pointed = image.words.values().filter_map(|w| match w {
        Word::Address(a) if span.contains(a) => map.object_at(*a),
        _ => None,
    });
    for (object, length) in used.into_iter().chain(pointed.map(|object| (object, None))) {
        let known = lengths.entry(object).or_insert(Some(0));
        *known = known.zip(length).map(|(a, b)| a.max(b));
    }
    let mut templates: Vec<(u64, u64)> = Vec::new();
    for id in candidates.into_iter().rev() {
        let object = &map.objects[id];
        let Some(Some(length)) = lengths.get(&id) else { continue };
        let end = object.address + length;
        // One may go on in the next one; nothing else can be a part of it.
        let next = map.objects[id + 1..].iter().find(|o| !templates.iter().any(|t| t.0 == o.address));
        let inside = image.section_at(object.address).is_some_and(|s| end <= s.end());
        if inside && next.is_none_or(|o| end <= o.address) {
            templates.push((object.address, end));
        }
    }
    templates.reverse();
    map.set_templates(templates);
}

/// The objects in `span` that a function refers to, and how much it copies from each; `None` if it does something else.
fn uses(map: &Map<'_>, code: &[FunctionCode], f: usize, span: &std::ops::Range<u64>) -> Vec<(ObjectId, Option<u64>)> {
    let mut found = Vec::new();
    for (range, decoded) in map.functions[f].ranges.iter().zip(&code[f].ranges) {
        let here = || decoded.sites.iter().filter(|s| span.contains(&s.target) && s.usage != Use::Branch);
        if here().next().is_none() {
            continue;
        }
        let branches = code[f].ranges.iter().flat_map(|c| &c.sites).filter(|s| s.usage == Use::Branch);
        let mut labels: Vec<u64> = branches.map(|s| s.target).collect();
        labels.extend(code[f].tables.iter().flat_map(|t| &t.targets));
        labels.sort_unstable();
        let copied = arch::copied(range.address, range.bytes, |a| labels.binary_search(&a).is_ok());
        found.extend(here().filter_map(|site| {
            let object = map.object_at(site.target)?;
            let at = copied.iter().find(|c| c.0 == site.instruction);
            let starts = map.objects[object].address == site.target;
            Some((object, at.filter(|_| starts && code[f].unresolved_jump.is_none()).map(|c| c.1)))
        }));
    }
    found
}
