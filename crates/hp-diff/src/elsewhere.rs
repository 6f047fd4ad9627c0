//! Addresses that mean nothing that lies there.
//!
//! In position-dependent code `a[i - 100]` becomes `a-400(,%rdi,4)`, and `a-400` may lie anywhere: in the headers, among
//! functions, in the middle of a text. Where no compiler lets an index begin, code means an object that it reaches from there.

use crate::ahead;
use crate::arch::{self, Encoding, Field, Site, Use};
use crate::build::Build;
use crate::entity::{FunctionId, Target};
use crate::image::is_constant_section;
use crate::usage::range_of;

/// How a constant without a symbol is aligned that has no terminator before it, in bytes.
const ALIGNED: u64 = 8;

/// True if `function` adds an index that nobody knows to an address at which nothing begins that it could mean.
pub(crate) fn means_elsewhere(build: &Build<'_>, function: FunctionId, site: &Site) -> bool {
    if site.encoding == Encoding::PcRelative || site.usage != Use::Address || build.image.fields.is_some() {
        return false;
    }
    let displaced = |r: &&crate::entity::CodeRange<'_>| {
        arch::field(r.bytes, site.instruction, site.offset) == Field::Displacement
            && arch::is_indexed(r.bytes, site.instruction, site.offset)
    };
    range_of(build, function, site).filter(displaced).is_some()
        && !may_begin(build, site.target)
        && ahead::touched(build, function, std::slice::from_ref(site))[0].offset.is_none()
}

/// True if letters lie on both sides.
fn is_inside_text(behind: &[u8], before: &[u8]) -> bool {
    let letter = |b: &&u8| matches!(**b, b'\t'..=b'\r' | b' '..=b'~');
    let letters = behind.iter().take_while(letter).count();
    before.last().is_some_and(|b| letter(&b)) && letters > 0 && behind.get(letters) == Some(&0)
}

/// Something may begin at an address that code adds an index to.
fn may_begin(build: &Build<'_>, address: u64) -> bool {
    let (map, image) = (&build.map, &build.image);
    match map.resolve_address(image, address, Use::Address) {
        Target::Function(..) | Target::Header(_) | Target::Unknown | Target::Stub(_) | Target::Slot(_) => {
            build.is_table(address)
        }
        Target::Literal => {
            let section = image.section_at(address).filter(|s| is_constant_section(s) && s.content);
            let behind = || image.bytes(address.wrapping_sub(1), 1).is_none_or(|b| matches!(b[0], 0 | 0xf8..));
            let before = image.bytes(address.wrapping_sub(1), 1).unwrap_or_default();
            let filled = || map.literal(image, address).iter().any(|b| *b != 0);
            section.is_some()
                && filled()
                && (behind() || address.is_multiple_of(ALIGNED) && !is_inside_text(image.bytes_from(address), before))
        }
        Target::Object(..) | Target::Marker(_) => true,
    }
}
