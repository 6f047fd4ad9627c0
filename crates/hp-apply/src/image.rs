//! ELF images as they lie mapped in a target, read from its memory alone: this works for
//! deleted and replaced files and inside containers, and it judges what really runs.
//!
//! An image is found by a readable mapping of a file's start that begins with an ELF
//! header, and counts only if its executable segment is mapped executable from the same
//! file (a mere data mapping of an ELF file is no image). Everything is hostile input.

use crate::addr::{Bias, LinkAddr, LiveAddr, LiveRange, PAGE, page_ceil, page_floor};
use crate::bytes::{u16_at, u32_at, u64_at};
use crate::maps::{Mapping, Maps};
use crate::prelude::*;
use crate::sys::Mem;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const NT_GNU_BUILD_ID: u32 = 3;
/// Most program headers that an image may have.
const MAX_HEADERS: usize = 256;
/// Longest note segment that is looked through.
const MAX_NOTES: u64 = 64 * 1024;

/// One loadable segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) memory: LiveRange,
    pub(crate) execute: bool,
}

/// A mapped image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) path: String,
    pub(crate) bias: Bias,
    /// From the first segment's first byte to the last one's last.
    pub(crate) span: LiveRange,
    pub(crate) segments: Vec<Segment>,
    pub(crate) dynamic: Option<LiveRange>,
    pub(crate) eh_frame_hdr: Option<LiveRange>,
    pub(crate) build_id: Option<Vec<u8>>,
}

struct Header {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    memory: u64,
}

/// Every image of a process, in address order.
pub(crate) fn images(mem: &Mem, maps: &Maps) -> Vec<Image> {
    let mut found: Vec<Image> = Vec::new();
    for start in maps.iter().filter(|mapping| may_start_an_image(mapping)) {
        // The first page of a small file may hold the start of several segments, each with its own mapping of it.
        let is_part = |image: &Image| {
            let begins = |s: &Segment| page_floor(s.memory.start.0) == start.range.start.0;
            maps.at(image.span.start).is_some_and(|first| first.file == start.file) && image.segments.iter().any(begins)
        };
        if !found.last().is_some_and(is_part) {
            found.extend(image(mem, maps, start));
        }
    }
    found
}

/// Whether a module may begin with it.
pub(crate) fn may_start_an_image(mapping: &Mapping) -> bool {
    let file = mapping.is_file() && !mapping.path.starts_with("/dev/");
    mapping.read && mapping.offset == 0 && (file || mapping.path == "[vdso]")
}

fn image(mem: &Mem, maps: &Maps, start: &Mapping) -> Option<Image> {
    let headers = program_headers(mem, start.range)?;
    let first = headers.iter().find(|header| header.kind == PT_LOAD && page_floor(header.offset) == 0)?;
    let bias = Bias(start.range.start.0.wrapping_sub(page_floor(first.address)));
    let range = |header: &Header| -> Option<LiveRange> {
        header.address.checked_add(header.memory)?;
        let at = bias.live(LinkAddr(header.address));
        at.0.checked_add(header.memory)?;
        Some(at.range(header.memory))
    };
    let mut segments = Vec::new();
    for header in headers.iter().filter(|header| header.kind == PT_LOAD && header.memory > 0) {
        segments.push(Segment { memory: range(header)?, execute: header.flags & 1 != 0 });
    }
    let mapped = |segment: &Segment| {
        maps.at(segment.memory.start).is_some_and(|mapping| mapping.execute && mapping.file == start.file)
    };
    if !segments.iter().any(|segment| segment.execute && mapped(segment)) {
        return None;
    }
    let lowest = segments.iter().map(|segment| segment.memory.start).min()?;
    let highest = segments.iter().map(|segment| segment.memory.end).max()?;
    let part = |kind| headers.iter().find(|header| header.kind == kind).and_then(range);
    let build_id = headers
        .iter()
        .filter(|header| header.kind == PT_NOTE && header.memory <= MAX_NOTES)
        .filter_map(range)
        .find_map(|range| build_id(&mem.bytes(range.start, range.len() as usize).ok()?));
    Some(Image {
        path: crate::process::printable(&start.path),
        bias,
        span: LiveRange { start: lowest, end: highest },
        segments,
        dynamic: part(PT_DYNAMIC),
        eh_frame_hdr: part(PT_GNU_EH_FRAME),
        build_id,
    })
}

fn program_headers(mem: &Mem, start: LiveRange) -> Option<Vec<Header>> {
    let elf: [u8; 64] = mem.array(start.start).ok()?;
    let is_ours = elf.starts_with(b"\x7fELF\x02\x01") && u16_at(&elf, 18)? == hp_pack::EM_X86_64;
    let (offset, size, count) = (u64_at(&elf, 32)?, u16_at(&elf, 54)?, usize::from(u16_at(&elf, 56)?));
    if !is_ours || size != 56 || count == 0 || count > MAX_HEADERS || offset > start.len() {
        return None;
    }
    let table = mem.bytes(start.start.plus(offset), count * 56).ok()?;
    table
        .chunks_exact(56)
        .map(|entry| {
            Some(Header {
                kind: u32_at(entry, 0)?,
                flags: u32_at(entry, 4)?,
                offset: u64_at(entry, 8)?,
                address: u64_at(entry, 16)?,
                memory: u64_at(entry, 40)?,
            })
        })
        .collect()
}

/// The GNU build ID in the bytes of a note segment (ELF gABI, "Note Section").
fn build_id(notes: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0usize;
    loop {
        let name_size = u32_at(notes, at)? as usize;
        let size = u32_at(notes, at + 4)? as usize;
        let kind = u32_at(notes, at + 8)?;
        let name_at = at + 12;
        let data_at = name_at.checked_add(name_size)?.checked_next_multiple_of(4)?;
        let end = data_at.checked_add(size)?;
        if kind == NT_GNU_BUILD_ID && notes.get(name_at..name_at.checked_add(name_size)?)? == b"GNU\0" {
            return notes.get(data_at..end).filter(|id| (1..=64).contains(&id.len())).map(<[u8]>::to_vec);
        }
        at = end.checked_next_multiple_of(4)?;
    }
}

impl Image {
    /// The unused rest of the last page of each executable segment.
    pub(crate) fn slack(&self) -> impl Iterator<Item = LiveRange> + '_ {
        self.segments.iter().filter(|segment| segment.execute).filter_map(|segment| {
            let start = LiveAddr(segment.memory.end.0.checked_next_multiple_of(16)?);
            let end = LiveAddr(page_ceil(segment.memory.end.0)?);
            (end.0 - segment.memory.end.0 < PAGE && start < end).then_some(LiveRange { start, end })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_found_behind_other_notes_and_a_cut_one_is_not() {
        let mut notes = Vec::new();
        for (kind, data) in [(5u32, [1u8, 2, 3, 4]), (3, [9, 8, 7, 6])] {
            notes.extend([4u32, 4, kind].map(u32::to_le_bytes).concat());
            notes.extend(b"GNU\0");
            notes.extend(data);
        }
        assert_eq!(build_id(&notes), Some(vec![9, 8, 7, 6]));
        assert_eq!(build_id(&notes[..notes.len() - 1]), None);
        assert_eq!(build_id(&[0xff; 40]), None);
    }
}
