//! References to the end of something: what they mean lies before the address.
//!
//! Of a text that a constructor copies, a compiler makes the end's address and from that the start's; of an array that
//! is gone through backwards, the end's alone. So where code reaches back from an address, that is what has to be
//! the same in both builds, and what a copy of the code has to find there.

use crate::ahead;
use crate::arch::{self, Code, Decoded, Site, Use};
use crate::build::Build;
use crate::entity::{Function, FunctionId, ObjectId, Target};
use crate::image::Image;
use crate::usage::range_of;

/// What lies before an address and is meant by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    /// Where it begins, so far as code reaches there.
    pub start: u64,
    /// The object that it belongs to; else it is a literal.
    pub object: Option<ObjectId>,
    /// What is at the address is meant too.
    pub behind: bool,
}

/// How far one instruction of a function leads back at most, or an index that one makes negative, in bytes; 0 where none does.
pub(crate) fn step(build: &Build<'_>, function: FunctionId) -> u64 {
    let ranges = build.code.get(function).into_iter().flat_map(|code| &code.ranges);
    ranges.map(|c| u64::from(c.steps_back.max(c.counts_back))).max().unwrap_or(0)
}

/// What the site of `function` means that lies before the address; `None` if code does not reach back from there.
pub(crate) fn before(build: &Build<'_>, function: FunctionId, site: &Site) -> Option<Before> {
    let code = step(build, function) == 0 || site.usage != Use::Address || build.map.function_at(site.target).is_some();
    if code {
        return None;
    }
    let range = range_of(build, function, site)?;
    let reach = build.followed.reach(&build.map, function, range.address + u64::from(site.instruction));
    if reach.near == 0 {
        return before_index(build, function, site);
    }
    let (near, far) = (site.target.wrapping_sub(reach.near.into()), site.target.wrapping_sub(reach.far.into()));
    let object = build.map.object_at(near);
    let text = text_start(&build.image, site.target).filter(|start| object.is_none() && *start <= near);
    // A pointer that is only calculated may stand before its own object; but not so in a text, nor is it chance that an object begins
    // there which ends at the address.
    let whole = |id: ObjectId| {
        let object = &build.map.objects[id];
        let size = site.target.wrapping_sub(object.address);
        object.end() == site.target && [reach.near, reach.far].iter().any(|reached| u64::from(*reached) == size)
    };
    let calculated = !reach.accessed && text.is_none() && !object.is_some_and(whole);
    // Without symbols nothing says which: both count.
    if calculated && !(object.is_none() && build.map.is_stripped()) {
        return None;
    }
    let first = match object {
        Some(id) => build.map.objects[id].address,
        None => text.unwrap_or_else(|| {
            let references = build.map.references.as_slice();
            build.map.references.up_to(near).checked_sub(1).map_or(near, |i| references[i])
        }),
    };
    let far = if reach.open { first } else { far };
    Some(Before { start: far.max(first).min(near), object, behind: reach.behind || calculated })
}

/// The literal that ends at the address or goes on there, and that an index leads back into; of objects see [`crate::ahead::meant_object`].
fn before_index(build: &Build<'_>, function: FunctionId, site: &Site) -> Option<Before> {
    let touched = ahead::touched(build, function, std::slice::from_ref(site))[0];
    let place = site.target.wrapping_add_signed(touched.offset.filter(|offset| *offset < 0 && touched.calculated)?);
    let literal = build.map.resolve_address(&build.image, place, Use::Address) == Target::Literal;
    literal.then_some(Before { start: place, object: None, behind: !touched.below })
}

/// The starts of texts that a function knows only by their ends.
pub(crate) fn starts(image: &Image<'_>, function: &Function<'_>, codes: &[Code]) -> Vec<u64> {
    if codes.iter().all(|code| code.steps_back == 0) {
        return Vec::new();
    }
    let sites = codes.iter().zip(&function.ranges).flat_map(|(code, range)| {
        code.sites
            .addresses()
            .filter_map(|s| Some((range.address + u64::from(s.instruction), s.target, text_start(image, s.target)?)))
    });
    let sites: Vec<(u64, u64, u64)> = sites.collect();
    if sites.is_empty() {
        return Vec::new();
    }
    let made: Vec<u64> = sites.iter().map(|site| site.0).collect();
    let reached = arch::reach(&Decoded::new(function.ranges.iter().map(|r| (r.address, r.bytes))), &made);
    let starts = sites.iter().zip(reached).filter(|(_, reach)| reach.near > 0);
    starts.map(|((_, end, text), reach)| end.wrapping_sub(reach.far.into()).max(*text)).collect()
}

/// Where the text begins whose terminator is at `end`; `None` if none ends there.
pub(crate) fn text_start(image: &Image<'_>, end: u64) -> Option<u64> {
    /// Longer texts are not looked for.
    const LONGEST: u64 = 1 << 16;
    if image.bytes(end, 1) != Some(&[0]) || image.bytes(end.checked_sub(1)?, 1).is_none_or(|b| b == [0]) {
        return None;
    }
    let section = image.section_at(end).filter(|section| section.address < end && !section.executable)?;
    let start = section.address.max(end.saturating_sub(LONGEST));
    let text = image.bytes(start, end - start)?;
    Some(end - text.iter().rev().take_while(|b| **b != 0).count() as u64)
}
