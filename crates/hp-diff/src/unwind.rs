//! Unwind rows: read from `.eh_frame` of a build, written for the patch.
//!
//! The format is the one of the LSB core specification, chapter "Exception Frames", with
//! DWARF 5 section 6.4.2 for the instructions. Rows of a new function are the NEW
//! build's, byte for byte, under a common information entry of our own. Rows of a thunk
//! follow the old function's rows over the displaced instructions.

use std::sync::Arc;

use crate::image::Image;

/// Common information entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cie<'a> {
    pub code_align: u64,
    pub data_align: i64,
    pub return_register: u64,
    /// The routine that looks for landing pads, where there is one.
    pub personality: Option<Pointer>,
    pub signal: bool,
    pub instructions: &'a [u8],
}

/// Frame description entry.
#[derive(Clone, Debug)]
pub(crate) struct Fde<'a> {
    pub size: u64,
    pub cie: Arc<Cie<'a>>,
    /// Where its language-specific data area lies, which names the landing pads for exceptions.
    pub lsda: Option<u64>,
    pub instructions: &'a [u8],
}

/// All rows of an image, ordered by start address.
#[derive(Debug, Default)]
pub(crate) struct Rows<'a>(Vec<(u64, Fde<'a>)>);

impl<'a> Rows<'a> {
    /// Reads `.eh_frame`. What cannot be understood is left out: a function without rows
    /// is a finding later.
    pub(crate) fn read(image: &Image<'a>) -> Rows<'a> {
        let section = image.sections.iter().find(|s| s.name == ".eh_frame");
        section.map_or_else(Rows::default, |s| Rows::parse(s.address, s.data))
    }

    /// Reads the content of `.eh_frame`, which lies at `address`.
    pub(crate) fn parse(address: u64, data: &'a [u8]) -> Rows<'a> {
        let mut rows: Vec<(u64, Fde<'a>)> = Vec::new();
        // By offset. Nearly always the one that is used is the last one.
        let mut cies: Vec<(usize, Augmented<'a>)> = Vec::new();
        let mut at = 0;
        while let Some((entry, next)) = entry_at(data, at) {
            let id_at = next - entry.len();
            match u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) {
                0 => {
                    if let Some(cie) = parse_cie(&entry[4..], address + id_at as u64 + 4) {
                        cies.push((at, cie));
                    }
                }
                distance => {
                    let at = id_at.checked_sub(distance as usize);
                    let cie = at.and_then(|at| cies.binary_search_by_key(&at, |c| c.0).ok());
                    let place = address + id_at as u64 + 4;
                    rows.extend(cie.and_then(|c| parse_fde(&entry[4..], place, &cies[c].1)));
                }
            }
            at = next;
        }
        rows.sort_by_key(|row| row.0);
        // Of several for one start the last counts.
        rows.dedup_by(|later, kept| {
            let again = later.0 == kept.0;
            if again {
                std::mem::swap(later, kept);
            }
            again
        });
        Rows(rows)
    }

    /// Start and size in bytes of each range of code that has rows.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(start, fde)| (*start, fde.size))
    }

    /// All of them, by start address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Fde<'a>)> {
        self.0.iter().map(|row| (row.0, &row.1))
    }

    /// The rows that start at `address`.
    pub(crate) fn at(&self, address: u64) -> Option<&Fde<'a>> {
        let i = self.0.binary_search_by_key(&address, |row| row.0).ok()?;
        Some(&self.0[i].1)
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

/// Where an encoded pointer leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pointer {
    /// Link-time address of the thing, or of a word that holds its address.
    pub address: u64,
    pub indirect: bool,
}

/// An encoded pointer, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoded {
    Null,
    To(Pointer),
}

/// How a pointer in the FDE is encoded, and whether it has an LSDA pointer.
#[derive(Clone, Debug)]
struct Augmented<'a> {
    cie: Arc<Cie<'a>>,
    pointer: u8,
    sized: bool,
    lsda: Option<u8>,
}

/// Parses what follows the ID of an entry; `place` is its address.
fn parse_cie(entry: &[u8], place: u64) -> Option<Augmented<'_>> {
    let mut r = Reader(entry);
    let version = r.byte()?;
    let end = r.0.iter().position(|b| *b == 0)?;
    let augmentation = &r.0[..end];
    r.0 = &r.0[end + 1..];
    let code_align = r.uleb()?;
    let data_align = r.sleb()?;
    let return_register = if version == 1 { u64::from(r.byte()?) } else { r.uleb()? };
    let mut cie = Cie { code_align, data_align, return_register, personality: None, signal: false, instructions: &[] };
    let sized = augmentation.starts_with(b"z");
    let (mut pointer, mut lsda) = (0, None);
    if sized {
        let length = r.uleb()? as usize;
        let mut data = Reader(r.take(length)?);
        let end = place + (entry.len() - r.0.len()) as u64;
        for letter in &augmentation[1..] {
            match letter {
                b'R' => pointer = data.byte()?,
                b'L' => lsda = Some(data.byte()?),
                b'P' => {
                    let encoding = data.byte()?;
                    let at = end - data.0.len() as u64;
                    let Encoded::To(personality) = data.pointer(encoding, at)? else { return None };
                    cie.personality = Some(personality);
                }
                b'S' => cie.signal = true,
                b'B' => {}
                _ => return None,
            }
        }
    } else if !augmentation.is_empty() {
        return None;
    }
    cie.instructions = r.0;
    Some(Augmented { cie: Arc::new(cie), pointer, sized, lsda })
}

fn parse_fde<'a>(entry: &'a [u8], place: u64, cie: &Augmented<'a>) -> Option<(u64, Fde<'a>)> {
    let mut r = Reader(entry);
    let Encoded::To(Pointer { address: start, indirect: false }) = r.pointer(cie.pointer, place)? else {
        return None;
    };
    let length = r.number(cie.pointer)?;
    let mut lsda = None;
    if cie.sized {
        let augmentation = r.uleb()? as usize;
        let mut data = Reader(r.take(augmentation)?);
        let at = place + (entry.len() - r.0.len() - augmentation) as u64;
        if let Some(encoding) = cie.lsda
            && let Encoded::To(pointer) = data.pointer(encoding, at)?
        {
            lsda = Some(Some(pointer).filter(|p| !p.indirect)?.address);
        }
    }
    // No further than to the last address.
    let size = length.min(!start);
    Some((start, Fde { size, cie: Arc::clone(&cie.cie), lsda, instructions: r.0 }))
}

/// Bytes of a pointer of fixed size (`DW_EH_PE_…`, LSB 10.5.1).
pub(crate) fn pointer_size(encoding: u8) -> Option<usize> {
    match encoding & 0x0f {
        0x00 | 0x04 | 0x0c => Some(8),
        0x02 | 0x0a => Some(2),
        0x03 | 0x0b => Some(4),
        _ => None,
    }
}

pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// A number in the format of an encoded pointer, whatever it counts from.
    pub(crate) fn number(&mut self, encoding: u8) -> Option<u64> {
        match encoding & 0x0f {
            0x01 => return self.uleb(),
            0x09 => return self.sleb().map(|n| n as u64),
            _ => {}
        }
        let raw = self.take(pointer_size(encoding)?)?;
        let mut wide = [0; 8];
        wide[..raw.len()].copy_from_slice(raw);
        let unused = 64 - 8 * raw.len() as u32;
        let value = u64::from_le_bytes(wide);
        Some(if encoding & 0x08 != 0 { ((value << unused) as i64 >> unused) as u64 } else { value })
    }

    /// An encoded pointer that lies at `place`: absolute or PC-relative, direct or indirect.
    pub(crate) fn pointer(&mut self, encoding: u8, place: u64) -> Option<Encoded> {
        let value = self.number(encoding)?;
        if value == 0 {
            return Some(Encoded::Null);
        }
        let address = match encoding & 0x70 {
            0x00 => value,
            0x10 => place.wrapping_add(value),
            _ => return None,
        };
        Some(Encoded::To(Pointer { address, indirect: encoding & 0x80 != 0 }))
    }

    pub(crate) fn uleb(&mut self) -> Option<u64> {
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

    pub(crate) fn sleb(&mut self) -> Option<i64> {
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
    /// CIEs written so far: content, personality and offset.
    cies: Vec<(Vec<u8>, Option<u32>, usize)>,
}

/// Pointers in the FDEs are PC-relative and have 32 bits (`DW_EH_PE_pcrel | DW_EH_PE_sdata4`).
const POINTER: u8 = 0x1b;
/// The personality is looked for in a slot at such a distance.
const THROUGH_SLOT: u8 = 0x9b;

/// What rows are written for.
pub(crate) struct Row<'r> {
    pub cie: &'r Cie<'r>,
    pub size: u64,
    pub instructions: &'r [u8],
    /// The function has an exception table, for this personality (a number of the caller's).
    pub personality: Option<u32>,
}

/// Offsets of the fields that need PC-relative relocations.
pub(crate) struct Fields {
    /// The start of the code.
    pub start: u64,
    /// The exception table.
    pub lsda: Option<u64>,
    /// A slot with the address of the personality: only where the entry was written just now.
    pub personality: Option<u64>,
}

impl Writer {
    /// Adds an FDE.
    pub(crate) fn add(&mut self, row: &Row<'_>) -> Fields {
        let (cie_at, personality) = self.cie(row.cie, row.personality);
        let mut body = Vec::new();
        let at = self.data.len();
        body.extend(((at + 4 - cie_at) as u32).to_le_bytes());
        body.extend([0; 4]);
        body.extend((row.size as u32).to_le_bytes());
        match row.personality {
            Some(_) => body.extend([4, 0, 0, 0, 0]),
            None => body.push(0),
        }
        body.extend_from_slice(row.instructions);
        self.entry(body);
        Fields { start: at as u64 + 8, lsda: row.personality.map(|_| at as u64 + 17), personality }
    }

    /// Offset of the common entry, and of its field for the personality if it is new.
    fn cie(&mut self, cie: &Cie<'_>, personality: Option<u32>) -> (usize, Option<u64>) {
        let mut body = vec![0, 0, 0, 0, 1];
        body.extend_from_slice(match (personality, cie.signal) {
            (None, false) => b"zR\0",
            (None, true) => b"zRS\0",
            (Some(_), false) => b"zPLR\0",
            (Some(_), true) => b"zPLRS\0",
        });
        uleb(&mut body, cie.code_align);
        sleb(&mut body, cie.data_align);
        body.push(cie.return_register as u8);
        let mut field = None;
        match personality {
            None => body.extend([1, POINTER]),
            Some(_) => {
                body.extend([7, THROUGH_SLOT]);
                field = Some(body.len());
                body.extend([0, 0, 0, 0, POINTER, POINTER]);
            }
        }
        body.extend_from_slice(cie.instructions);
        if let Some((.., at)) = self.cies.iter().find(|(known, whose, _)| *known == body && *whose == personality) {
            return (*at, None);
        }
        let at = self.data.len();
        self.cies.push((body.clone(), personality, at));
        self.entry(body);
        (at, field.map(|field| (at + 4 + field) as u64))
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

pub(crate) fn uleb(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn sleb(out: &mut Vec<u8>, mut value: i64) {
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

/// Instructions for the one row that holds at `offset`: those before it, without the steps from place to place.
/// `None` if there is one that is not understood here.
pub(crate) fn row_at(fde: &Fde<'_>, offset: u64) -> Option<Vec<u8>> {
    let (mut r, mut at, mut out) = (Reader(fde.instructions), 0u64, Vec::new());
    loop {
        let start = r.0;
        let Some(op) = r.byte() else { return Some(out) };
        let advance = match op {
            0x40..=0x7f => u64::from(op & 0x3f),
            0x02 => u64::from(r.byte()?),
            0x03 => u64::from(u16::from_le_bytes(r.take(2)?.try_into().ok()?)),
            0x04 => u64::from(u32::from_le_bytes(r.take(4)?.try_into().ok()?)),
            _ => {
                operands(&mut r, op)?;
                if op != 0 {
                    out.extend_from_slice(&start[..start.len() - r.0.len()]);
                }
                continue;
            }
        };
        at += advance * fde.cie.code_align;
        if at > offset {
            return Some(out);
        }
    }
}

/// Instructions for the rows of code that stands for the instruction from `from` to `to` and lowers the stack pointer by so many
/// bytes from each of these offsets on. `None` if the instruction ends in another row, or if its row is of a kind
/// that is not understood here.
pub(crate) fn lowered_rows(fde: &Fde<'_>, (from, to): (u64, u64), lowered: &[(u32, u32)]) -> Option<Vec<u8>> {
    /// The DWARF number of `%rsp` (psABI for AMD64, figure 3.36).
    const STACK_POINTER: u64 = 7;
    let mut out = row_at(fde, from)?;
    if row_at(fde, to)? != out {
        return None;
    }
    if lowered.is_empty() {
        return Some(out);
    }
    let (register, offset) = frame(fde.cie.instructions, &out)?;
    let mut at = 0;
    for (next, bytes) in lowered.iter().filter(|_| register == STACK_POINTER) {
        // DW_CFA_advance_loc4, DW_CFA_def_cfa_offset
        out.push(0x04);
        out.extend(u32::try_from(u64::from(next - at) / fde.cie.code_align.max(1)).ok()?.to_le_bytes());
        out.push(0x0e);
        uleb(&mut out, offset + u64::from(*bytes));
        at = *next;
    }
    Some(out)
}

/// The register from which the frame is found after these instructions, and the distance. `None` where an expression
/// says where something is: it may count from the stack pointer.
fn frame(initial: &[u8], then: &[u8]) -> Option<(u64, u64)> {
    let (mut now, mut kept) = ((u64::MAX, 0), Vec::new());
    for instructions in [initial, then] {
        let mut r = Reader(instructions);
        while let Some(op) = r.byte() {
            match op {
                0x0a => kept.push(now),
                0x0b => now = kept.pop()?,
                0x0c => now = (r.uleb()?, r.uleb()?),
                0x0d => now.0 = r.uleb()?,
                0x0e => now.1 = r.uleb()?,
                0x0f | 0x10 | 0x12 | 0x13 | 0x16 => return None,
                _ => operands(&mut r, op)?,
            }
        }
    }
    Some(now).filter(|now| now.0 != u64::MAX)
}

/// Passes over the operands of a call frame instruction (DWARF 5, 6.4.2, and GNU's `args_size`).
fn operands(r: &mut Reader<'_>, op: u8) -> Option<()> {
    let (numbers, block) = match op {
        0x00 | 0x0a | 0x0b | 0xc0..=0xff => (0, false),
        0x80..=0xbf | 0x06..=0x08 | 0x0d | 0x0e | 0x13 | 0x2e => (1, false),
        0x05 | 0x09 | 0x0c | 0x11 | 0x12 | 0x14 | 0x15 => (2, false),
        0x0f => (0, true),
        0x10 | 0x16 => (1, true),
        _ => return None,
    };
    for _ in 0..numbers {
        r.uleb()?;
    }
    if block {
        let size = r.uleb()?;
        r.take(usize::try_from(size).ok()?)?;
    }
    Some(())
}
