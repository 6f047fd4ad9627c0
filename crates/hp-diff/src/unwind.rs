//! Unwind rows: read from `.eh_frame` of a build, written for the patch.
//!
//! The format is the one of the LSB core specification, chapter "Exception Frames", with
//! DWARF 5 section 6.4.2 for the instructions. Rows of a new function are the NEW
//! build's, byte for byte, under a common information entry of our own. Rows of a thunk
//! follow the old function's rows over the displaced instructions.

use std::collections::BTreeMap;

use crate::image::Image;

/// Common information entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cie<'a> {
    pub code_align: u64,
    pub data_align: i64,
    pub return_register: u64,
    pub personality: bool,
    pub signal: bool,
    pub instructions: &'a [u8],
}

/// Frame description entry.
#[derive(Clone, Debug)]
pub(crate) struct Fde<'a> {
    pub size: u64,
    pub cie: Cie<'a>,
    /// It has a language-specific data area: landing pads for exceptions.
    pub exceptions: bool,
    pub instructions: &'a [u8],
}

/// All rows of an image, by start address.
#[derive(Debug, Default)]
pub(crate) struct Rows<'a>(BTreeMap<u64, Fde<'a>>);

impl<'a> Rows<'a> {
    /// Reads `.eh_frame`. What cannot be understood is left out: a function without rows
    /// is a finding later.
    pub(crate) fn read(image: &Image<'a>) -> Rows<'a> {
        let section = image.sections.iter().find(|s| s.name == ".eh_frame");
        section.map_or_else(Rows::default, |s| Rows::parse(s.address, s.data))
    }

    /// Reads the content of `.eh_frame`, which lies at `address`.
    pub(crate) fn parse(address: u64, data: &'a [u8]) -> Rows<'a> {
        let mut rows = BTreeMap::new();
        let mut cies: BTreeMap<usize, Augmented<'a>> = BTreeMap::new();
        let mut at = 0;
        while let Some((entry, next)) = entry_at(data, at) {
            let id_at = next - entry.len();
            match u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) {
                0 => {
                    if let Some(cie) = parse_cie(&entry[4..]) {
                        cies.insert(at, cie);
                    }
                }
                distance => {
                    let cie = id_at.checked_sub(distance as usize).and_then(|at| cies.get(&at));
                    let place = address + id_at as u64 + 4;
                    if let Some((start, fde)) = cie.and_then(|c| parse_fde(&entry[4..], place, c)) {
                        rows.insert(start, fde);
                    }
                }
            }
            at = next;
        }
        Rows(rows)
    }

    /// Start and size in bytes of each range of code that has rows.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(start, fde)| (*start, fde.size))
    }

    /// The rows that start at `address`.
    pub(crate) fn at(&self, address: u64) -> Option<&Fde<'a>> {
        self.0.get(&address)
    }
}

fn entry_at(data: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let length = u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?) as usize;
    // Zero ends the section; the 64-bit form does not occur in images below 4 GiB.
    if length < 4 || length == 0xffff_ffff {
        return None;
    }
    Some((data.get(at + 4..at + 4 + length)?, at + 4 + length))
}

/// How a pointer in the FDE is encoded, and whether it has an LSDA pointer.
#[derive(Clone, Debug)]
struct Augmented<'a> {
    cie: Cie<'a>,
    pointer: u8,
    sized: bool,
    lsda: Option<u8>,
}

fn parse_cie(entry: &[u8]) -> Option<Augmented<'_>> {
    let mut r = Reader(entry);
    let version = r.byte()?;
    let end = r.0.iter().position(|b| *b == 0)?;
    let augmentation = &r.0[..end];
    r.0 = &r.0[end + 1..];
    let code_align = r.uleb()?;
    let data_align = r.sleb()?;
    let return_register = if version == 1 { u64::from(r.byte()?) } else { r.uleb()? };
    let mut found = Augmented {
        cie: Cie { code_align, data_align, return_register, personality: false, signal: false, instructions: &[] },
        pointer: 0,
        sized: augmentation.starts_with(b"z"),
        lsda: None,
    };
    if found.sized {
        let length = r.uleb()? as usize;
        let mut data = Reader(r.take(length)?);
        for letter in &augmentation[1..] {
            match letter {
                b'R' => found.pointer = data.byte()?,
                b'L' => found.lsda = Some(data.byte()?),
                b'P' => {
                    let encoding = data.byte()?;
                    data.take(pointer_size(encoding)?)?;
                    found.cie.personality = true;
                }
                b'S' => found.cie.signal = true,
                b'B' => {}
                _ => return None,
            }
        }
    } else if !augmentation.is_empty() {
        return None;
    }
    found.cie.instructions = r.0;
    Some(found)
}

fn parse_fde<'a>(entry: &'a [u8], place: u64, cie: &Augmented<'a>) -> Option<(u64, Fde<'a>)> {
    let mut r = Reader(entry);
    let size = pointer_size(cie.pointer)?;
    let raw = r.take(size)?;
    let value = match (cie.pointer & 0x0f, size) {
        (0x0b, 4) => i64::from(i32::from_le_bytes(raw.try_into().ok()?)),
        (_, 4) => i64::from(u32::from_le_bytes(raw.try_into().ok()?)),
        (_, 8) => i64::from_le_bytes(raw.try_into().ok()?),
        _ => return None,
    };
    let start = match cie.pointer & 0x70 {
        0x00 => value as u64,
        0x10 => place.wrapping_add_signed(value),
        _ => return None,
    };
    let length = match r.take(size)? {
        b if b.len() == 4 => u64::from(u32::from_le_bytes(b.try_into().ok()?)),
        b => u64::from_le_bytes(b.try_into().ok()?),
    };
    let mut exceptions = false;
    if cie.sized {
        let augmentation = r.uleb()? as usize;
        let data = r.take(augmentation)?;
        exceptions = cie.lsda.is_some() && data.iter().any(|b| *b != 0);
    }
    Some((start, Fde { size: length, cie: cie.cie.clone(), exceptions, instructions: r.0 }))
}

fn pointer_size(encoding: u8) -> Option<usize> {
    match encoding & 0x0f {
        0x00 | 0x04 | 0x0c => Some(8),
        0x03 | 0x0b => Some(4),
        _ => None,
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn sleb(&mut self) -> Option<i64> {
        let mut value = 0i64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let unused = 64 - (shift + 7).min(64);
                return Some(if byte & 0x40 != 0 { value << unused >> unused } else { value });
            }
        }
        None
    }
}

/// Writes `.eh_frame` for the patch.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub data: Vec<u8>,
    /// CIEs written so far: content and offset.
    cies: Vec<(Vec<u8>, usize)>,
}

/// Pointers in the FDEs are PC-relative and have 32 bits (`DW_EH_PE_pcrel | DW_EH_PE_sdata4`).
const POINTER: u8 = 0x1b;

impl Writer {
    /// Adds an FDE and gives the offset of its start field, which needs a PC-relative
    /// relocation to the code.
    pub(crate) fn add(&mut self, cie: &Cie<'_>, size: u64, instructions: &[u8]) -> u64 {
        let cie_at = self.cie(cie);
        let mut body = Vec::new();
        let at = self.data.len();
        body.extend(((at + 4 - cie_at) as u32).to_le_bytes());
        body.extend([0; 4]);
        body.extend((size as u32).to_le_bytes());
        body.push(0);
        body.extend_from_slice(instructions);
        self.entry(body);
        at as u64 + 8
    }

    fn cie(&mut self, cie: &Cie<'_>) -> usize {
        let mut body = vec![0, 0, 0, 0, 1];
        body.extend_from_slice(if cie.signal { b"zRS\0" } else { b"zR\0" });
        uleb(&mut body, cie.code_align);
        sleb(&mut body, cie.data_align);
        body.push(cie.return_register as u8);
        body.extend([1, POINTER]);
        body.extend_from_slice(cie.instructions);
        if let Some((_, at)) = self.cies.iter().find(|(known, _)| *known == body) {
            return *at;
        }
        let at = self.data.len();
        self.cies.push((body.clone(), at));
        self.entry(body);
        at
    }

    /// Length, content, padding with `DW_CFA_nop`.
    fn entry(&mut self, mut body: Vec<u8>) {
        while !(body.len() + 4).is_multiple_of(8) {
            body.push(0);
        }
        self.data.extend((body.len() as u32).to_le_bytes());
        self.data.extend(body);
    }

    /// Ends the section.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if !self.data.is_empty() {
            self.data.extend([0; 4]);
        }
        self.data
    }
}

fn uleb(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn sleb(out: &mut Vec<u8>, mut value: i64) {
    loop {
        let byte = value as u8 & 0x7f;
        value >>= 7;
        if (value == 0 && byte & 0x40 == 0) || (value == -1 && byte & 0x40 != 0) {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

/// The instructions for a thunk, from those of the old function. `boundaries` maps the
/// start of each displaced instruction (and the end) from the function to the thunk.
/// `None` if the function does something in its first instructions that is not
/// understood here.
pub(crate) fn thunk_instructions(fde: &Fde<'_>, boundaries: &[(u32, u32)]) -> Option<Vec<u8>> {
    let end = u64::from(boundaries.last()?.0);
    let mut out = Vec::new();
    let mut r = Reader(fde.instructions);
    let (mut at, mut written) = (0u64, 0u32);
    loop {
        let start = r.0;
        let Some(op) = r.byte() else { return Some(out) };
        let advance = match op {
            0x40..=0x7f => u64::from(op & 0x3f),
            0x02 => u64::from(r.byte()?),
            0x03 => u64::from(u16::from_le_bytes(r.take(2)?.try_into().ok()?)),
            0x04 => u64::from(u32::from_le_bytes(r.take(4)?.try_into().ok()?)),
            // DW_CFA_offset, def_cfa, def_cfa_register, def_cfa_offset, nop
            0x80..=0xbf | 0x0d | 0x0e => {
                r.uleb()?;
                0
            }
            0x0c => {
                r.uleb()?;
                r.uleb()?;
                0
            }
            0x00 => 0,
            _ => return None,
        } * fde.cie.code_align;
        if advance == 0 {
            if op != 0 {
                out.extend_from_slice(&start[..start.len() - r.0.len()]);
            }
            continue;
        }
        at += advance;
        if at > end {
            return Some(out);
        }
        let (_, to) = *boundaries.iter().find(|(from, _)| u64::from(*from) == at).or_else(|| {
            // Rows before the site, such as none after `endbr64`, hold from the thunk's start.
            boundaries.first().filter(|(from, _)| at < u64::from(*from))
        })?;
        let delta = u64::from(to - written) / fde.cie.code_align.max(1);
        out.push(0x04);
        out.extend((delta as u32).to_le_bytes());
        written = to;
    }
}
