//! The sites of a range of code, packed: there are about as many as a third of its instructions, so they are most of what
//! a decoded build takes in memory.

use std::sync::Arc;

use super::alike::first_differing;
use super::{Encoding, Site, Use};

/// Bits of [`Packed::facts`], from the lowest: offset of the field in the instruction (4), length of the instruction (4), width of
/// the field (4), encoding (2), use (2), whether the target is far (1), bytes accessed (15).
const FIELD: u32 = 0xf;
const LENGTH: u32 = 4;
const WIDTH: u32 = 8;
const ENCODING: u32 = 12;
const USE: u32 = 14;
const FAR: u32 = 1 << 16;
const ACCESS: u32 = 17;

/// [`Use::Branch`], packed; [`Encoding::PcRelative`] is 0, too.
const BRANCH: u32 = 0;
/// [`Use::Address`].
const ADDRESS: u32 = 1;

#[derive(Clone, Copy, Debug)]
struct Packed {
    instruction: u32,
    facts: u32,
    /// Distance of the target from the start of the range; for a far one its index.
    target: i32,
}

impl Packed {
    /// Offset of the field in the range.
    fn field(self) -> u32 {
        self.instruction + (self.facts & FIELD)
    }

    /// Width of the field in bytes.
    fn width(self) -> usize {
        (self.facts >> WIDTH & 0xf) as usize
    }

    /// The same with another target, in a range that begins at `start`; `far` gets it if it is too far away.
    fn leading(self, start: u64, target: u64, far: &mut Vec<u64>) -> Packed {
        let distance = i32::try_from(target.wrapping_sub(start) as i64);
        if distance.is_err() {
            far.push(target);
        }
        let facts = self.facts & !FAR | if distance.is_err() { FAR } else { 0 };
        Packed { facts, target: distance.unwrap_or_else(|_| far.len() as i32 - 1), ..self }
    }
}

/// Two sites at the same place in the lists of two ranges.
pub(crate) struct Beside {
    /// Offset and width of the first one's field.
    pub field: usize,
    pub width: usize,
    pub relation: Relation,
}

/// What two such sites are to each other.
pub(crate) enum Relation {
    /// Instructions of different shape, or at different places.
    OtherShape,
    /// Branches that go equally far.
    Step,
    /// It depends on where they lead.
    Sites(Site, Site),
}

/// Sites, ordered by offset.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    /// Code that is the same byte for byte in two builds has them in common.
    packed: Arc<[Packed]>,
    /// Start of the range.
    start: u64,
    /// Size of the range in bytes.
    size: usize,
    /// Targets that are too far away for 32 bits.
    far: Box<[u64]>,
}

impl Sites {
    /// Packs the sites of the range of `size` bytes that starts at `start`.
    pub(crate) fn new(start: u64, size: usize, sites: &[Site]) -> Sites {
        let mut far = Vec::new();
        let packed = sites.iter().map(|site| pack(start, site, &mut far)).collect();
        Sites { packed, start, size, far: far.into() }
    }

    /// Fills the fields of all sites with zeros, in the bytes of their range: what is left does not say where they lead.
    pub(crate) fn blank(&self, bytes: &mut [u8]) {
        for site in self {
            bytes[site.offset as usize..][..usize::from(site.width)].fill(0);
        }
    }

    /// The sites of a range of code that is like this one, whose bytes these are: its start and its bytes, as many. `None` if they differ
    /// in more than fields that hold distances. No field here holds anything else.
    pub(crate) fn moved(&self, bytes: &[u8], (start, there): (u64, &[u8])) -> Option<Sites> {
        let size = self.size;
        let elsewhere = |target: u64| target.wrapping_sub(self.start).wrapping_add(start);
        let mut differs = first_differing(bytes, there, 0);
        if differs == bytes.len() {
            let far = self.far.iter().map(|target| elsewhere(*target)).collect();
            return Some(Sites { packed: self.packed.clone(), start, size, far });
        }
        let mut far = Vec::new();
        let mut packed = Vec::with_capacity(self.packed.len());
        for site in self.packed.iter() {
            let field = site.field() as usize;
            let end = field + site.width();
            let mut target = elsewhere(self.target(*site));
            if differs < field {
                return None;
            }
            if differs < end {
                let behind = site.instruction + (site.facts >> LENGTH & 0xf);
                let leads = |from: u64, bytes: &[u8]| {
                    let distance = match *bytes.get(field..end)? {
                        [distance] => i64::from(distance as i8),
                        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
                        _ => return None,
                    };
                    Some(from.wrapping_add(u64::from(behind)).wrapping_add_signed(distance))
                };
                // It may be no distance after all.
                if leads(self.start, bytes) != Some(self.target(*site)) {
                    return None;
                }
                target = leads(start, there)?;
                differs = first_differing(bytes, there, end);
            }
            packed.push(site.leading(start, target, &mut far));
        }
        (differs == bytes.len()).then(|| Sites { packed: packed.into(), start, size, far: far.into() })
    }

    pub(crate) fn len(&self) -> usize {
        self.packed.len()
    }

    pub(crate) fn get(&self, index: usize) -> Option<Site> {
        self.packed.get(index).map(|packed| self.unpack(*packed))
    }

    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter { sites: self, packed: self.packed.iter() }
    }

    /// Where all of them lead.
    pub(crate) fn targets(&self) -> impl Iterator<Item = u64> {
        self.packed.iter().map(|packed| self.target(*packed))
    }

    /// Those that do not lead into the range itself.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = Site> {
        self.packed.iter().filter(|p| self.leaves(p)).map(|packed| self.unpack(*packed))
    }

    /// Where those lead.
    pub(crate) fn leaving_targets(&self) -> impl Iterator<Item = u64> {
        self.packed.iter().filter(|p| self.leaves(p)).map(|packed| self.target(*packed))
    }

    /// Those of them that take an address.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Site> {
        let takes = |p: &&Packed| p.facts & 3 << USE == ADDRESS << USE && self.leaves(p);
        self.packed.iter().filter(takes).map(|packed| self.unpack(*packed))
    }

    fn leaves(&self, packed: &Packed) -> bool {
        packed.facts & FAR != 0 || !usize::try_from(packed.target).is_ok_and(|n| n < self.size)
    }

    /// Pairs of sites of two ranges, in order, with what can be said without unpacking them. With `steps`
    /// branches within both ranges are the same if they go equally far.
    pub(crate) fn beside<'s>(&'s self, other: &'s Sites, steps: bool) -> impl Iterator<Item = Beside> {
        let steps = if steps { self.size.min(other.size) } else { 0 };
        self.packed.iter().zip(other.packed.iter()).map(move |(p, q)| {
            let shape = |p: &Packed| (p.instruction, p.facts & !FAR);
            let is_step = p.facts == q.facts
                && p.facts & (FAR | 3 << ENCODING | 3 << USE) == 0
                && p.target == q.target
                && usize::try_from(p.target).is_ok_and(|n| n < steps);
            Beside {
                field: p.field() as usize,
                width: p.width(),
                relation: match shape(p) == shape(q) {
                    false => Relation::OtherShape,
                    true if is_step => Relation::Step,
                    true => Relation::Sites(self.unpack(*p), other.unpack(*q)),
                },
            }
        })
    }

    /// If two ranges are the same byte for byte, and that is known: pairs of their sites, in order. With `steps` without
    /// branches within the ranges.
    pub(crate) fn shared<'s>(&'s self, other: &'s Sites, steps: bool) -> Option<impl Iterator<Item = (Site, Site)>> {
        let steps = if steps { self.size } else { 0 };
        let judged = move |p: &&Packed| {
            p.facts & (FAR | 3 << ENCODING | 3 << USE) != 0 || !usize::try_from(p.target).is_ok_and(|n| n < steps)
        };
        let sites = self.packed.iter().filter(judged).map(|p| (self.unpack(*p), other.unpack(*p)));
        self.are_of_same_bytes(other).then_some(sites)
    }

    /// True if it is known that two ranges are the same byte for byte. Lists that are empty may be one without a reason.
    pub(crate) fn are_of_same_bytes(&self, other: &Sites) -> bool {
        !self.packed.is_empty() && Arc::ptr_eq(&self.packed, &other.packed)
    }

    /// The site whose field has the byte at this offset.
    pub(crate) fn at(&self, offset: usize) -> Option<Site> {
        let next = self.packed.partition_point(|p| p.field() as usize <= offset);
        let site = self.get(next.checked_sub(1)?)?;
        (offset < site.offset as usize + usize::from(site.width)).then_some(site)
    }

    fn unpack(&self, packed: Packed) -> Site {
        let Packed { instruction, facts, .. } = packed;
        Site {
            instruction,
            offset: instruction + (facts & FIELD),
            end: instruction + (facts >> LENGTH & 0xf),
            width: (facts >> WIDTH & 0xf) as u8,
            encoding: match facts >> ENCODING & 3 {
                0 => Encoding::PcRelative,
                1 => Encoding::Absolute32,
                2 => Encoding::Absolute32Signed,
                _ => Encoding::Absolute64,
            },
            usage: match facts >> USE & 3 {
                BRANCH => Use::Branch,
                ADDRESS => Use::Address,
                _ => Use::Access(facts >> ACCESS),
            },
            target: self.target(packed),
        }
    }

    fn target(&self, packed: Packed) -> u64 {
        match packed.facts & FAR {
            0 => self.start.wrapping_add_signed(i64::from(packed.target)),
            _ => self.far[packed.target as usize],
        }
    }
}

fn pack(start: u64, site: &Site, far: &mut Vec<u64>) -> Packed {
    let encoding = match site.encoding {
        Encoding::PcRelative => 0,
        Encoding::Absolute32 => 1,
        Encoding::Absolute32Signed => 2,
        Encoding::Absolute64 => 3,
    };
    let (usage, access) = match site.usage {
        Use::Branch => (BRANCH, 0),
        Use::Address => (ADDRESS, 0),
        // No instruction names more than 512 bytes.
        Use::Access(bytes) => (2, bytes),
    };
    let facts = (site.offset - site.instruction)
        | (site.end - site.instruction) << LENGTH
        | u32::from(site.width) << WIDTH
        | encoding << ENCODING
        | usage << USE
        | access << ACCESS;
    Packed { instruction: site.instruction, facts, target: 0 }.leading(start, site.target, far)
}

/// Goes over sites in order.
#[derive(Clone, Debug)]
pub(crate) struct Iter<'s> {
    sites: &'s Sites,
    packed: std::slice::Iter<'s, Packed>,
}

impl Iterator for Iter<'_> {
    type Item = Site;

    fn next(&mut self) -> Option<Site> {
        self.packed.next().map(|packed| self.sites.unpack(*packed))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.packed.size_hint()
    }
}

impl<'s> IntoIterator for &'s Sites {
    type Item = Site;
    type IntoIter = Iter<'s>;

    fn into_iter(self) -> Iter<'s> {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{Encoding, Site, Sites, Use};

    #[test]
    fn what_is_packed_comes_back() {
        let mut sites = Vec::new();
        let encodings = [Encoding::PcRelative, Encoding::Absolute32, Encoding::Absolute32Signed, Encoding::Absolute64];
        let uses = [Use::Branch, Use::Address, Use::Access(1), Use::Access(512)];
        let targets = [0, 1, 0x4000, 0x7fff_ffff, 0x8000_4000, u64::MAX, 0x7fff_ffff_ffff];
        for (i, encoding) in encodings.into_iter().cycle().take(96).enumerate() {
            let instruction = i as u32 * 15;
            let (offset, end) = (instruction + i as u32 % 12, instruction + 15);
            let (width, usage) = ([1, 2, 4, 8][i / 4 % 4], uses[i / 16 % 4]);
            sites.push(Site { instruction, offset, end, width, encoding, usage, target: targets[i % 7] });
        }
        let packed = Sites::new(0x4000, 0x1000, &sites);
        assert_eq!(packed.len(), sites.len());
        assert!(packed.iter().eq(sites.iter().copied()));
        for site in &sites {
            assert_eq!(packed.at(site.offset as usize), Some(*site));
            assert!(packed.at((site.offset + u32::from(site.width)) as usize).is_none_or(|s| s != *site));
        }
        assert_eq!(size_of::<super::Packed>(), 12);
    }
}
