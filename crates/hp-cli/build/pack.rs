//! Packing a static program: its memory as one image, compressed, for `applier/packed.rs` to unpack.
//!
//! Before that the operands of calls and jumps in the code become absolute, so that calls of one function look alike.

#[path = "../../hp-apply/applier/model.rs"]
mod model;

use model::{MEMORY, Model};
use std::ops::Range;

/// `[base, length of the image, length in memory, start of code, end of code, entry, 4 bytes each][code]`; all but
/// the first and the lengths are offsets from the base.
pub(crate) fn pack(program: &[u8]) -> Option<Vec<u8>> {
    let segments: Vec<Segment> = segments(program)?;
    let base = segments.iter().map(|segment| segment.address).min()?;
    let end = segments.iter().map(|segment| segment.address + segment.memory).max()?;
    let mut image = vec![0u8; end.checked_sub(base)? as usize];
    let mut used = 0;
    for segment in &segments {
        let at = (segment.address - base) as usize;
        image.get_mut(at..at + segment.bytes.len())?.copy_from_slice(segment.bytes);
        used = used.max(at + segment.bytes.len());
    }
    image.truncate(used);
    let code = segments.iter().find(|segment| segment.is_code)?;
    let (start, stop) = (code.address - base, code.address - base + code.memory);
    make_absolute(image.get_mut(start as usize..stop as usize)?);
    let entry = u64_at(program, 24)? - base;
    let mut packed = Vec::new();
    for number in [base, used as u64, end - base, start, stop, entry] {
        packed.extend(u32::try_from(number).ok()?.to_le_bytes());
    }
    packed.extend(compress(&image, start as usize..stop as usize));
    Some(packed)
}

struct Segment<'a> {
    address: u64,
    memory: u64,
    bytes: &'a [u8],
    is_code: bool,
}

/// The loadable segments of an ELF file (gABI, "Program Header").
fn segments(program: &[u8]) -> Option<Vec<Segment<'_>>> {
    let (table, count) = (u64_at(program, 32)? as usize, u64_at(program, 56)? as u16);
    let headers = (0..usize::from(count)).map(|index| program.get(table + index * 56..table + index * 56 + 56));
    let headers = headers.collect::<Option<Vec<&[u8]>>>()?;
    let loaded = headers.into_iter().filter(|header| header.starts_with(&[1, 0, 0, 0]));
    loaded
        .map(|header| {
            let (offset, size) = (u64_at(header, 8)? as usize, u64_at(header, 32)? as usize);
            Some(Segment {
                address: u64_at(header, 16)?,
                memory: u64_at(header, 40)?,
                bytes: program.get(offset..offset + size)?,
                is_code: header.get(4)? & 1 != 0,
            })
        })
        .collect()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Distances that stay inside the code become places in it; those that would look like such are moved away, so
/// that it can be undone.
fn make_absolute(code: &mut [u8]) {
    let size = code.len() as i64;
    let mut at = 0;
    while at + 5 <= code.len() {
        let operand: Option<[u8; 4]> = code.get(at + 1..at + 5).and_then(|bytes| bytes.try_into().ok());
        let (0xe8 | 0xe9, Some(operand)) = (code[at], operand) else {
            at += 1;
            continue;
        };
        let (here, distance) = (at as i64, i64::from(i32::from_le_bytes(operand)));
        let changed = match distance {
            near if (-here..size - here).contains(&near) => near + here,
            far if (size - here..size).contains(&far) => far - size,
            other => other,
        };
        code[at + 1..at + 5].copy_from_slice(&(changed as i32).to_le_bytes());
        at += 5;
    }
}

/// An arithmetic code by the probabilities of the model; `code` is where in the image instructions lie.
fn compress(image: &[u8], code: Range<usize>) -> Vec<u8> {
    let mut memory = vec![0; MEMORY];
    let mut model = Model::over(&mut memory, code);
    let (mut low, mut high, mut packed) = (0u32, u32::MAX, Vec::new());
    for (at, byte) in image.iter().enumerate() {
        for index in (0..8).rev() {
            let bit = u32::from(byte >> index & 1);
            let middle = low + ((high - low) >> 12) * model.predict(&image[..at]);
            model.update(bit);
            (low, high) = if bit == 1 { (low, middle) } else { (middle + 1, high) };
            while (low ^ high) >> 24 == 0 {
                packed.push((high >> 24) as u8);
                (low, high) = (low << 8, high << 8 | 255);
            }
        }
        model.next_byte(&image[..=at]);
    }
    packed.extend(low.to_be_bytes());
    packed
}
