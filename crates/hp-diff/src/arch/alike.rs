//! What is known of decoded code holds for code that is alike: the same bytes but for the fields that say how far away something is.
//!
//! Such a field has no part in how an instruction is read, so nothing has to be decoded again; only where the fields lead is found
//! from the new bytes.

use super::Code;

/// The code of the range `there`, if it is like that of `here`: link-time address and bytes of each. `None` if the bytes have to be
/// decoded: they differ in more than distances. All sites of `code` are such.
pub(crate) fn alike(code: &Code, here: (u64, &[u8]), there: (u64, &[u8])) -> Option<Code> {
    if code.invalid.is_some() || here.1.len() != there.1.len() {
        return None;
    }
    Some(Code {
        sites: code.sites.moved(here.1, there)?,
        invalid: None,
        computed_jumps: code.computed_jumps,
        distances: code.distances,
        jumps: code.jumps.as_ref().map(|jumps| Box::new(jumps.moved(there.0.wrapping_sub(here.0)))),
        steps_back: code.steps_back,
        counts_back: code.counts_back,
        may_return: code.may_return,
        thread_local: code.thread_local,
        takes_stack: code.takes_stack,
    })
}

/// Offset of the first byte from `from` on in which two ranges differ; the shorter one's length if none does.
pub(super) fn first_differing(a: &[u8], b: &[u8], from: usize) -> usize {
    let length = a.len().min(b.len());
    let (mut x, mut y) = (a[..length].get(from..).unwrap_or_default(), b[..length].get(from..).unwrap_or_default());
    while let (Some((v, rest)), Some((w, other))) = (x.split_first_chunk::<8>(), y.split_first_chunk::<8>()) {
        let differing = u64::from_le_bytes(*v) ^ u64::from_le_bytes(*w);
        if differing != 0 {
            return length - x.len() + differing.trailing_zeros() as usize / 8;
        }
        (x, y) = (rest, other);
    }
    length - x.len() + x.iter().zip(y).position(|(v, w)| v != w).unwrap_or(x.len())
}

#[cfg(test)]
mod tests {
    use super::alike;
    use crate::arch::{Code, DecodeRoom, Site, decode};

    fn said(code: &Code) -> String {
        format!("{code:?} {:?}", code.sites.iter().collect::<Vec<Site>>())
    }

    /// Parts of all texts that this test runs with.
    fn parts() -> Vec<Vec<u8>> {
        use object::{Object, ObjectSection};
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut files: Vec<&str> = maps.lines().filter_map(|l| l.split_whitespace().nth(5)).collect();
        files.retain(|f| f.starts_with('/'));
        files.dedup();
        let mut parts = Vec::new();
        for file in files {
            let data = std::fs::read(file).unwrap();
            let Ok(elf) = object::File::parse(&*data) else { continue };
            let text = elf.section_by_name(".text").unwrap();
            parts.extend(text.data().unwrap().chunks(509).map(<[u8]>::to_vec));
        }
        assert!(parts.len() > 1000);
        parts
    }

    #[test]
    fn what_is_derived_is_what_is_decoded() {
        let mut room = DecodeRoom::default();
        let (mut derived, mut moved) = (0, 0);
        for (n, bytes) in parts().iter().enumerate() {
            let (here, there) = (0x40_0000 + n as u64, 0x7_0000_0000 - 3 * n as u64);
            let code = decode(here, bytes, None, &mut room);
            // Every few fields lead somewhere else, some of them far away.
            let mut other = bytes.clone();
            for (i, site) in code.sites.iter().enumerate().filter(|(i, _)| (i + n) % 3 > 0) {
                let field = &mut other[site.offset as usize..][..usize::from(site.width)];
                field[0] = field[0].wrapping_add(n as u8);
                if let (4, [.., high]) = (site.width, &mut *field) {
                    *high = high.wrapping_add((i * n) as u8);
                }
                moved += 1;
            }
            for bytes_there in [bytes, &other] {
                if let Some(found) = alike(&code, (here, bytes), (there, bytes_there)) {
                    derived += 1;
                    assert_eq!(said(&found), said(&decode(there, bytes_there, None, &mut room)), "{bytes:02x?}");
                }
            }
        }
        assert!(derived > 1000 && moved > 10_000, "{derived} {moved}");
    }

    #[test]
    fn one_other_byte_is_not_alike() {
        let mut room = DecodeRoom::default();
        for (n, bytes) in parts().iter().enumerate().step_by(7) {
            let code = decode(0x1000, bytes, None, &mut room);
            if code.invalid.is_some() {
                continue;
            }
            for at in (n % 5..bytes.len()).step_by(5) {
                let mut other = bytes.clone();
                other[at] ^= 1 << (n % 8);
                let in_field = code.sites.at(at).is_some();
                assert_eq!(alike(&code, (0x1000, bytes), (0x2000, &other)).is_some(), in_field, "{at} {bytes:02x?}");
            }
            assert!(alike(&code, (0x1000, bytes), (0x2000, &bytes[1..])).is_none());
        }
    }
}
