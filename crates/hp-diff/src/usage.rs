//! What a function does with the addresses that it makes.

use crate::arch::{self, Encoding, Site, Use};
use crate::build::Build;
use crate::entity::{CodeRange, FunctionId, ObjectId, Target};

/// True if a function refers to an object, not only to its end.
pub(crate) fn uses(build: &Build<'_>, function: FunctionId, object: ObjectId) -> bool {
    let object = &build.map.objects[object];
    let mut sites = build.code[function].ranges.iter().flat_map(|c| &c.sites);
    sites.any(|s| (object.address..object.end()).contains(&s.target))
}

/// True if an address that `function` makes is the end of what loops go over, and nothing else.
pub(crate) fn is_limit(build: &Build<'_>, function: FunctionId, address: u64) -> bool {
    let mut limits = limits(build, function, address).peekable();
    limits.peek().is_some() && limits.all(|is_end| is_end)
}

/// True if `function` makes an address twice at least, as the end of what a loop goes over and as something else.
pub(crate) fn means_two(build: &Build<'_>, function: FunctionId, address: u64) -> bool {
    let all: Vec<bool> = limits(build, function, address).collect();
    all.contains(&true) && all.contains(&false)
}

/// For each instruction of `function` that makes an address, whether a loop ends with it.
fn limits(build: &Build<'_>, function: FunctionId, address: u64) -> impl Iterator<Item = bool> {
    let sites = build.code[function].ranges.iter().flat_map(|code| &code.sites);
    let sites = sites.filter(move |site| (site.target, site.usage) == (address, Use::Address));
    sites.map(move |site| {
        let range = range_of(build, function, &site);
        range.is_some_and(|r| build.followed.is_limit(&build.map, function, r.address + u64::from(site.instruction)))
    })
}

/// True if `function` calculates with the address that its site makes.
pub(crate) fn is_indexed(build: &Build<'_>, function: FunctionId, site: &Site) -> bool {
    range_of(build, function, site).is_some_and(|range| arch::is_indexed(range.bytes, site.instruction, site.offset))
}

/// The code that contains a site.
pub(crate) fn range_of<'b, 'a>(build: &'b Build<'a>, function: FunctionId, site: &Site) -> Option<&'b CodeRange<'a>> {
    let same = |s: Site| (s.offset, s.target, s.end) == (site.offset, site.target, site.end);
    let mut codes = build.code[function].ranges.iter().zip(&build.map.functions[function].ranges);
    codes.find(|(code, _)| code.sites.at(site.offset as usize).is_some_and(same)).map(|(_, range)| range)
}

/// True for a field in position-dependent code that is no address though its value lies in
/// the image: it leads nowhere, or into the middle of another function, where no
/// compiler takes addresses.
pub(crate) fn is_number(build: &Build<'_>, function: FunctionId, site: &Site) -> bool {
    if site.encoding == Encoding::PcRelative || build.image.fields.is_some() {
        return false;
    }
    let nowhere = match build.map.resolve(&build.image, site) {
        Target::Unknown => true,
        Target::Function(f, range, offset) => f != function && (range, offset) != (0, 0),
        _ => false,
    };
    // What an index is added to may lie anywhere.
    let displacement =
        |range: &CodeRange<'_>| arch::field(range.bytes, site.instruction, site.offset) == arch::Field::Displacement;
    nowhere && !range_of(build, function, site).is_some_and(displacement)
}

/// True if `address` leads to an entity.
pub(crate) fn is_known(build: &Build<'_>, address: u64) -> bool {
    build.map.resolve_address(&build.image, address, Use::Address) != Target::Unknown
}
