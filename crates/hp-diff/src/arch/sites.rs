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

#[derive(Clone, Copy, Debug)]
struct Packed {
    instruction: u32,
    facts: u32,
    /// Distance of the target from the start of the range; for a far one its index.
    target: i32,
}

/// Sites, ordered by offset.
#[derive(Debug, Default)]
pub(crate) struct Sites {
    packed: Box<[Packed]>,
    /// Start of the range.
    start: u64,
    /// Targets that are too far away for 32 bits.
    far: Vec<u64>,
}

impl Sites {
    /// Packs the sites of the range that starts at `start`.
    pub(crate) fn new(start: u64, sites: &[Site]) -> Sites {
        let mut far = Vec::new();
        let packed = sites.iter().map(|site| pack(start, site, &mut far)).collect();
        Sites { packed, start, far }
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

    /// The site whose field has the byte at this offset.
    pub(crate) fn at(&self, offset: usize) -> Option<Site> {
        let field = |p: &Packed| p.instruction + (p.facts & FIELD);
        let next = self.packed.partition_point(|p| field(p) as usize <= offset);
        let site = self.get(next.checked_sub(1)?)?;
        (offset < site.offset as usize + usize::from(site.width)).then_some(site)
    }

    fn unpack(&self, packed: Packed) -> Site {
        let Packed { instruction, facts, target } = packed;
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
                0 => Use::Branch,
                1 => Use::Address,
                _ => Use::Access(facts >> ACCESS),
            },
            target: match facts & FAR {
                0 => self.start.wrapping_add_signed(i64::from(target)),
                _ => self.far[target as usize],
            },
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
        Use::Branch => (0, 0),
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
        let packed = Sites::new(0x4000, &sites);
        assert_eq!(packed.len(), sites.len());
        assert!(packed.iter().eq(sites.iter().copied()));
        for site in &sites {
            assert_eq!(packed.at(site.offset as usize), Some(*site));
            assert!(packed.at((site.offset + u32::from(site.width)) as usize).is_none_or(|s| s != *site));
        }
        assert_eq!(size_of::<super::Packed>(), 12);
    }
}
