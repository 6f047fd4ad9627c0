//! References to a place before a constant.
//!
//! Of `text[i - 1]` a compiler makes `lea text-1(%rip),r; mov (r,i),c`. Nothing in the image says that the text is meant and
//! not what happens to lie at the address: the end of another text, a byte of padding, or nothing at all where the
//! text is the first of its section. So it is with objects that have a name, where one place that code certainly reaches says which is
//! meant; where none does, see [`Map::within_reach`].
//!
//! [`Map::within_reach`]: crate::entity::Map::within_reach

use rayon::prelude::*;

use crate::arch::{Site, Touched, Use};
use crate::build::Build;
use crate::entity::{FunctionId, ObjectId, Target};
use crate::image::{Section, is_constant_section};
use crate::usage::{is_indexed, range_of, uses};

/// How far behind an address a constant begins at most that is meant by it, in bytes.
const AHEAD: u64 = 64;

/// Letters of a text that is taken for what code means that calculates with its address, in unchanged functions.
pub(crate) const LONG: usize = 8;

/// The constants that begin shortly behind an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// The first byte that may be meant: the address itself, or where its section begins.
    pub start: u64,
    /// Starts and ends of the constants from there on, that at the address first if there is one.
    pub parts: Vec<(u64, u64)>,
    /// Behind the last byte that is not padding.
    pub end: u64,
}

/// What an address means near which constants begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    /// What lies at the address.
    Here,
    /// The constant that begins there.
    There(u64),
    /// The one or the other.
    Unclear,
}

/// Which object is meant by an address before it, or by its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MeantObject {
    Certain(ObjectId),
    /// This one, or the one that the address lies in, which ends where code reaches.
    Perhaps(ObjectId),
}

/// The objects that end shortly before `address` or there, and those that begin shortly behind it.
pub(crate) fn objects<'b>(build: &'b Build<'_>, address: u64) -> impl Iterator<Item = ObjectId> + 'b {
    let near = |id: &ObjectId| build.map.objects[*id].end().abs_diff(address) <= AHEAD;
    let behind = build.map.objects_behind(address);
    build
        .map
        .last_before(address)
        .filter(near)
        .into_iter()
        .chain(behind.take_while(move |id| build.map.objects[*id].address - address <= AHEAD))
}

/// The object that `function` means by an address before it, or behind it: from there loops go on with an index that is negative.
pub(crate) fn meant_object(build: &Build<'_>, site: &Site, touched: Touched) -> Option<MeantObject> {
    let offset = touched.offset.filter(|_| site.usage == Use::Address && touched.calculated)?;
    // From the linker's own symbol a program goes through all objects of a section.
    if !build.map.markers_at(site.target).is_empty() {
        return None;
    }
    let place = site.target.wrapping_add_signed(offset);
    let object = build.map.object_at(place)?;
    let (start, end) = (build.map.objects[object].address, build.map.objects[object].end());
    if end <= site.target {
        return Some(MeantObject::Certain(object));
    }
    if start <= site.target {
        return None;
    }
    // An index that is not used behind the end of an array may all the same have the number of its elements.
    let here = build.map.object_at(site.target).is_some_and(|here| build.map.objects[here].end() == place);
    Some(if here { MeantObject::Perhaps(object) } else { MeantObject::Certain(object) })
}

/// The objects behind an address inside of another one, or where nothing begins, that code may mean which adds to that what nobody knows.
pub(crate) fn perhaps_behind(build: &Build<'_>, function: FunctionId, site: &Site, touched: Touched) -> Vec<ObjectId> {
    let unknown = site.usage == Use::Address && touched.calculated && touched.offset.is_none();
    let inside = match build.map.object_at(site.target) {
        Some(object) => build.map.objects[object].address < site.target,
        None => {
            let nothing = || build.map.literal(&build.image, site.target).iter().all(|b| *b == 0);
            build.map.resolve(&build.image, site) == Target::Literal && nothing()
        }
    };
    if !unknown || !inside || !build.map.markers_at(site.target).is_empty() || build.is_table(site.target) {
        return Vec::new();
    }
    let behind = objects(build, site.target).filter(|id| build.map.objects[*id].address > site.target);
    // A function that has the start of the one object as well, and nothing of the other, means that.
    let has_start = build.map.object_at(site.target).is_some_and(|object| {
        let start = build.map.objects[object].address;
        build.code[function].ranges.iter().any(|code| code.sites.targets().any(|target| target == start))
    });
    behind.filter(|id| !has_start || uses(build, function, *id)).collect()
}

/// The constants that begin shortly behind `address`, at which none reaches as far itself; `None` if there are none. `rust`: for a
/// function of Rust, whose constants end where the next one begins.
pub(crate) fn ahead(build: &Build<'_>, address: u64, rust: bool) -> Option<Ahead> {
    if build.map.is_alone(address, rust) {
        return None;
    }
    let found = find(build, address, rust);
    if found.is_none() {
        build.map.set_alone(address, rust);
    }
    found
}

fn find(build: &Build<'_>, address: u64, rust: bool) -> Option<Ahead> {
    let (map, image) = (&build.map, &build.image);
    let constant = |s: &&Section<'_>| is_constant_section(s) && s.content && !s.executable && !s.is_got();
    let section = image.section_at(address).filter(constant);
    let behind =
        || image.sections.iter().filter(constant).find(|s| s.address.checked_sub(address).is_some_and(|n| n <= AHEAD));
    let (start, section) = match section {
        Some(section) => (address, section),
        None => behind().map(|section| (section.address, section))?,
    };
    let limit = (address + AHEAD).min(section.end());
    let mut found = Ahead { start, parts: Vec::new(), end: start };
    let (mut at, mut begins) = (start, false);
    while at < limit {
        if let Some(object) = map.object_at(at) {
            at = map.objects[object].end();
        } else if map.template_at(at).is_some() || build.is_table(at) || map.distances.contains_key(&at) {
            // Code adds the start of a table of distances to what it reads, so it has that, not an address before it.
            at = map.next_reference(at).max(at + 1);
        } else {
            let next = if rust { map.next_reference(at).max(at + 1) } else { u64::MAX };
            let end = map.literal_span(image, at).1.min(next);
            let content = (at + map.literal(image, at).len() as u64).min(next);
            if content > at && image.bytes(at, content - at).is_some_and(|bytes| bytes.iter().any(|b| *b != 0)) {
                begins |= at > address;
                found.parts.push((at, end));
                found.end = content;
            }
            at = end.max(at + 1);
        }
    }
    begins.then_some(found)
}

/// What `function` does with the addresses that some of its sites make, in their order.
pub(crate) fn touched(build: &Build<'_>, function: FunctionId, sites: &[Site]) -> Vec<Touched> {
    let made = |site: &Site| range_of(build, function, site).map_or(0, |r| r.address + u64::from(site.instruction));
    let made: Vec<u64> = sites.iter().map(made).collect();
    let mut all = build.followed.touched(&build.map, function, &made);
    for (touched, site) in all.iter_mut().zip(sites).filter(|(touched, _)| touched.lost) {
        touched.calculated |= is_indexed(build, function, site);
    }
    all
}

/// The bytes of the constant that `function` can read by way of the address that a site makes: from, to. `None` if that is not
/// certain.
pub(crate) fn bounded(build: &Build<'_>, function: FunctionId, site: &Site) -> Option<(i64, i64)> {
    let literal = build.map.resolve(&build.image, site) == Target::Literal;
    let range = range_of(build, function, site).filter(|_| literal)?;
    build.followed.bounded(&build.map, function, range.address + u64::from(site.instruction))
}

/// What is meant by an address near which constants begin; `None` if the code uses it as it is.
pub(crate) fn meant(build: &Build<'_>, site: &Site, touched: Touched) -> Option<Meant> {
    if site.usage != Use::Address || !touched.calculated {
        return None;
    }
    let place = touched.offset.map(|offset| site.target.wrapping_add_signed(offset));
    if let Some(id) = build.map.object_at(site.target) {
        let end = build.map.objects[id].end();
        let beyond = place.filter(|place| *place > end);
        return Some(
            beyond.map_or(Meant::Here, |place| start_of(build, end, place).map_or(Meant::Unclear, Meant::There)),
        );
    }
    let Some(place) = place else { return Some(Meant::Unclear) };
    let data = |s: &&Section<'_>| !s.executable;
    let from = match build.image.section_at(site.target).filter(data) {
        Some(_) => site.target,
        None => build.image.section_at(place).map_or(place, |s| s.address),
    };
    Some(match start_of(build, from, place) {
        _ if place <= site.target => Meant::Here,
        Some(start) if start == site.target => Meant::Here,
        start => start.map_or(Meant::Unclear, Meant::There),
    })
}

/// Where what is at `place` begins, from `from` on. A table may have zeros in it, but a text has none.
fn start_of(build: &Build<'_>, from: u64, place: u64) -> Option<u64> {
    let before = build.image.bytes(from, place.checked_sub(from)?)?;
    match before.iter().rposition(|b| *b == 0) {
        Some(last) => {
            let start = from + last as u64 + 1;
            (start + letters(build, start) as u64 > place).then_some(start)
        }
        None => Some(from),
    }
}

/// What `function` means by one of its sites.
pub(crate) fn meant_by(build: &Build<'_>, function: FunctionId, site: &Site) -> Option<Meant> {
    meant(build, site, touched(build, function, std::slice::from_ref(site))[0])
}

/// True for an address that is no usual start of a constant, but constants begin shortly behind it.
pub(crate) fn is_odd(build: &Build<'_>, function: FunctionId, site: &Site) -> bool {
    let data = || build.image.is_constant(site.target) && build.map.object_at(site.target).is_none();
    let nothing = || build.image.section_at(site.target).is_none_or(|s| s.executable);
    let at_start = || letters(build, site.target) > 0 || build.is_table(site.target);
    site.usage == Use::Address
        && build.map.function_at(site.target).is_none()
        && (nothing() || data() && !at_start())
        && ahead(build, site.target, is_rust(build, function)).is_some()
}

/// Where the constants begin that code refers to by addresses before them, so far as it is certain which.
pub(crate) fn starts(build: &Build<'_>) -> Vec<u64> {
    let of_function = |id: FunctionId| {
        let sites = build.code[id].ranges.iter().flat_map(|code| code.sites.addresses());
        let sites: Vec<Site> = sites.filter(|site| is_odd(build, id, site)).collect();
        if sites.is_empty() {
            return Vec::new();
        }
        let found = sites.iter().zip(touched(build, id, &sites)).map(|(site, touched)| meant(build, site, touched));
        let starts = found.filter_map(|meant| match meant {
            Some(Meant::There(start)) => Some(start),
            _ => None,
        });
        starts.collect::<Vec<u64>>()
    };
    (0..build.code.len()).into_par_iter().flat_map_iter(of_function).collect()
}

/// True for a function of Rust.
pub(crate) fn is_rust(build: &Build<'_>, function: FunctionId) -> bool {
    build.map.functions[function].rust
}

/// Letters of the text that begins at `place`, behind the terminator of another one or a byte that no text has; 0 if there
/// is none.
pub(crate) fn letters(build: &Build<'_>, place: u64) -> usize {
    let terminated = build.image.bytes(place.wrapping_sub(1), 1).is_some_and(|b| matches!(b[0], 0 | 0xf8..));
    if !terminated {
        return 0;
    }
    let rest = build.image.bytes_from(place);
    let length = rest.iter().position(|b| *b == 0).unwrap_or(0);
    if std::str::from_utf8(&rest[..length]).is_ok() { length } else { 0 }
}
