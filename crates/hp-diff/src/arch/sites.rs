//! The sites of a range of code, packed: there are about as many as a third of its instructions, so they are most of what
//! a decoded build takes in memory.

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
    packed: Box<[Packed]>,
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
        let leaves = |p: &&Packed| p.facts & FAR != 0 || !usize::try_from(p.target).is_ok_and(|n| n < self.size);
        self.packed.iter().filter(leaves).map(|packed| self.unpack(*packed))
    }

    /// Pairs of sites of two ranges, in order, with what can be said without unpacking them. With `steps`
    /// branches within both ranges are the same if they go equally far.
    pub(crate) fn beside<'s>(&'s self, other: &'s Sites, steps: bool) -> impl Iterator<Item = Beside> {
        let steps = if steps { self.size.min(other.size) } else { 0 };
        self.packed.iter().zip(&other.packed).map(move |(p, q)| {
            let shape = |p: &Packed| (p.instruction, p.facts & !FAR);
            let is_step = p.facts == q.facts
                && p.facts & (FAR | 3 << ENCODING | 3 << USE) == 0
                && p.target == q.target
                && usize::try_from(p.target).is_ok_and(|n| n < steps);
            Beside {
                field: p.field() as usize,
                width: (p.facts >> WIDTH & 0xf) as usize,
                relation: match shape(p) == shape(q) {
                    false => Relation::OtherShape,
                    true if is_step => Relation::Step,
                    true => Relation::Sites(self.unpack(*p), other.unpack(*q)),
                },
            }
        })
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
                1 => Use::Address,
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
        Use::Address => (1, 0),
        // No instruction names more than 512 bytes.
        Use::Access(bytes) => (2, bytes),
    };
    let distance = i32::try_from(site.target.wrapping_sub(start) as i64);
    if distance.is_err() {
        far.push(site.target);
    }
    let facts = (site.offset - site.instruction)
        | (site.end - site.instruction) << LENGTH
        | u32::from(site.width) << WIDTH
        | encoding << ENCODING
        | usage << USE
        | if distance.is_err() { FAR } else { 0 }
        | access << ACCESS;
    Packed { instruction: site.instruction, facts, target: distance.unwrap_or_else(|_| far.len() as i32 - 1) }
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
