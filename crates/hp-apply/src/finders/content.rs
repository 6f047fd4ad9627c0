//! The bytes of the finders: their code, its unwind rows, and what they show to an unwinder.
//!
//! Structures and encodings: glibc's `dlfcn.h` and `link.h`; LSB, "Exception Frames"; the
//! psABI for the order of arguments and for what a call may change.

use super::{COUNT, EACH};
use crate::addr::{LiveAddr, LiveRange};
use crate::prelude::*;
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection};

/// Size of the code of one finder.
pub(crate) const SIZE: u64 = 96;
/// Size of the code of all finders.
pub(crate) const CODE_SIZE: u64 = SIZE * COUNT as u64;
/// Size of the words by which they pass on.
pub(crate) const NEXT_SIZE: u64 = 8 * COUNT as u64;
/// Size of the rows for the finders' own code.
pub(crate) const ROWS_SIZE: u64 = CIE.len() as u64 + 40 * FINDER_ROWS;
/// Entries in them.
pub(crate) const FINDER_ROWS: u64 = 1 + EACH as u64;
/// Offset of the index proper (`.eh_frame_hdr`) in what is shown.
const INDEX: u64 = INFO + 2 * HEADER;
/// A `struct dl_phdr_info`, and the address of the base's `struct link_map`.
const INFO: u64 = 72;
const HEADER: u64 = 56;
/// `offsetof(struct dl_phdr_info, dlpi_adds)`: the fields before it are always there.
const INFO_START: u32 = 32;
const PT_LOAD: u32 = 1;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;

/// CFA = rsp + 8, the return address below it. Padded to a multiple of 8.
const CIE: [u8; 24] = [20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0];
/// The rows of a finder that calls: two pushes and eight bytes, and all taken back, each
/// after an advance from instruction to instruction.
const CALLING: [(u8, u8); 6] = [(5, 16), (1, 24), (4, 32), (10, 24), (1, 16), (1, 8)];

/// What is shown takes so many bytes for this number of rows.
pub(crate) const fn index_size(rows: u64) -> u64 {
    INDEX + 12 + 8 * rows
}

/// Entries for code in the unwind rows of a patch, finders not counted.
pub(crate) fn count_rows(eh_frame: &[u8]) -> u64 {
    starts(eh_frame, LiveAddr(0)).len() as u64
}

/// Start of the code and offset of the entry, of each entry in rows that lie at `at`.
fn starts(eh_frame: &[u8], at: LiveAddr) -> Vec<(u64, u64)> {
    let bases = BaseAddresses::default().set_eh_frame(at.0);
    let section = EhFrame::new(eh_frame, LittleEndian);
    let mut found = Vec::new();
    let mut entries = section.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
        {
            found.push((fde.initial_address(), fde.offset() as u64));
        }
    }
    found
}

/// Where everything lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) mapping: LiveRange,
    pub(crate) code: LiveRange,
    /// The finders.
    pub(crate) finders: LiveAddr,
    /// The words by which they pass on.
    pub(crate) nexts: LiveAddr,
    /// What they show.
    pub(crate) index: LiveAddr,
    /// The rows of the finders, directly followed by those of the patch.
    pub(crate) rows: LiveAddr,
    pub(crate) link_map: LiveAddr,
}

impl Content {
    /// The code of all finders; `None` if something is out of reach.
    pub(crate) fn code(&self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        for index in 0..COUNT {
            let at = self.finders.plus(all.len() as u64);
            let next = self.nexts.plus(8 * index as u64);
            let mut code = Assembler { at, code: Vec::new(), fits: true };
            if index < EACH {
                self.find_object(&mut code, next)
            } else {
                self.iterate(&mut code, next)
            };
            code.code.resize(SIZE as usize, 0xcc);
            code.fits.then_some(())?;
            all.extend(code.code);
        }
        Some(all)
    }

    /// `int finder(void *pc, struct dl_find_object *result)`
    fn find_object(&self, code: &mut Assembler, next: LiveAddr) {
        code.bytes(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64
        code.relative(&[0x48, 0x8d, 0x05], self.code.start); // lea code, %rax
        code.bytes(&[0x48, 0x39, 0xc7, 0x72, 66]); // cmp %rax, %rdi; jb next
        code.relative(&[0x48, 0x8d, 0x05], self.code.end);
        code.bytes(&[0x48, 0x39, 0xc7, 0x73, 54]); // cmp %rax, %rdi; jae next
        code.bytes(&[0x48, 0xc7, 0x06, 0, 0, 0, 0]); // movq $0, (%rsi): dlfo_flags
        // dlfo_map_start, dlfo_map_end, dlfo_link_map, dlfo_eh_frame
        for (offset, place) in [(8, self.mapping.start), (16, self.mapping.end), (32, self.index.plus(INDEX))] {
            code.relative(&[0x48, 0x8d, 0x05], place);
            code.bytes(&[0x48, 0x89, 0x46, offset]); // mov %rax, offset(%rsi)
        }
        code.relative(&[0x48, 0x8b, 0x05], self.index.plus(INFO - 8)); // mov link_map, %rax
        code.bytes(&[0x48, 0x89, 0x46, 24]);
        code.bytes(&[0x31, 0xc0, 0xc3]); // xor %eax, %eax; ret
        code.relative(&[0xff, 0x25], next); // next: jmp *next
    }

    /// `int finder(int (*callback)(struct dl_phdr_info *, size_t, void *), void *data)`
    fn iterate(&self, code: &mut Assembler, next: LiveAddr) {
        code.bytes(&[0xf3, 0x0f, 0x1e, 0xfa]); // endbr64
        code.bytes(&[0x57, 0x56, 0x48, 0x83, 0xec, 8]); // push %rdi; push %rsi; sub $8, %rsp
        code.relative(&[0xff, 0x15], next); // call *next
        code.bytes(&[0x48, 0x83, 0xc4, 8, 0x5e, 0x5f]); // add $8, %rsp; pop %rsi; pop %rdi
        code.bytes(&[0x85, 0xc0, 0x75, 20]); // test %eax, %eax; jne end
        code.bytes(&[0x48, 0x89, 0xf8, 0x48, 0x89, 0xf2]); // mov %rdi, %rax; mov %rsi, %rdx
        code.relative(&[0x48, 0x8d, 0x3d], self.index); // lea info, %rdi
        code.bytes(&[0xbe]); // mov $INFO_START, %esi
        code.bytes(&INFO_START.to_le_bytes());
        code.bytes(&[0xff, 0xe0, 0xc3]); // jmp *%rax; end: ret
    }

    /// The rows of the finders' own code.
    pub(crate) fn rows(&self) -> Option<Vec<u8>> {
        let mut rows = CIE.to_vec();
        let quiet = LiveRange { start: self.finders, end: self.finders.plus(SIZE * EACH as u64) };
        self.row(&mut rows, quiet, &[])?;
        for index in EACH..COUNT {
            let moves = CALLING.iter().flat_map(|&(advance, cfa)| [0x40 | advance, 0x0e, cfa]);
            let start = self.finders.plus(SIZE * index as u64);
            self.row(&mut rows, start.range(SIZE), &moves.collect::<Vec<u8>>())?;
        }
        (rows.len() as u64 == ROWS_SIZE).then_some(rows)
    }

    /// One entry of 40 bytes.
    fn row(&self, rows: &mut Vec<u8>, code: LiveRange, instructions: &[u8]) -> Option<()> {
        let at = rows.len();
        rows.extend(36u32.to_le_bytes());
        rows.extend((at as u32 + 4).to_le_bytes());
        let field = self.rows.plus(at as u64 + 8);
        rows.extend(distance(field, code.start)?.to_le_bytes());
        rows.extend((code.len() as u32).to_le_bytes());
        rows.push(0);
        rows.extend_from_slice(instructions);
        rows.resize(at + 40, 0);
        Some(())
    }

    /// What is shown, made from all rows (the finders' and the patch's) as they lie in the target.
    pub(crate) fn index(&self, rows: &[u8]) -> Option<Vec<u8>> {
        let start = self.mapping.start;
        let mut out = Vec::new();
        // The name is empty, its terminator the second byte of the count. The counts of loaded and unloaded
        // modules are no real ones, so that nobody takes what he has kept for this.
        for word in [start.0, self.index.0 + 25, self.index.0 + INFO, 2, u64::MAX, u64::MAX, 0, 0, self.link_map.0] {
            out.extend(word.to_le_bytes());
        }
        let index = self.index.plus(INDEX);
        let mut table: Vec<(i32, i32)> = Vec::new();
        for (code, entry) in starts(rows, self.rows) {
            table.push((distance(index, LiveAddr(code))?, distance(index, self.rows.plus(entry))?));
        }
        crate::small::sort_by_key(&mut table, |row| *row);
        let size = 12 + 8 * table.len() as u64;
        for (kind, flags, place) in [(PT_LOAD, 5u32, self.code), (PT_GNU_EH_FRAME, 4, index.range(size))] {
            out.extend(kind.to_le_bytes());
            out.extend(flags.to_le_bytes());
            let at = place.start.0.checked_sub(start.0)?;
            for word in [at, at, at, place.len(), place.len(), 4] {
                out.extend(word.to_le_bytes());
            }
        }
        // Version, encodings: pointer PC-relative, count absolute, table relative to this place.
        out.extend([1, 0x1b, 0x03, 0x3b]);
        out.extend(distance(index.plus(4), self.rows)?.to_le_bytes());
        out.extend((table.len() as u32).to_le_bytes());
        for (code, entry) in table {
            out.extend(code.to_le_bytes());
            out.extend(entry.to_le_bytes());
        }
        Some(out)
    }
}

fn distance(from: LiveAddr, to: LiveAddr) -> Option<i32> {
    i32::try_from(to.0.wrapping_sub(from.0) as i64).ok()
}

struct Assembler {
    at: LiveAddr,
    code: Vec<u8>,
    fits: bool,
}

impl Assembler {
    fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// An instruction that ends in a distance to `place`.
    fn relative(&mut self, opcode: &[u8], place: LiveAddr) {
        self.bytes(opcode);
        let end = self.at.plus(self.code.len() as u64 + 4);
        let found = distance(end, place);
        self.fits &= found.is_some();
        self.bytes(&found.unwrap_or(0).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Content {
        let mapping = LiveAddr(0x10_0000).range(0x4000);
        Content {
            mapping,
            code: LiveAddr(0x10_2000).range(0x800),
            finders: LiveAddr(0x10_2600),
            nexts: LiveAddr(0x10_1f00),
            index: LiveAddr(0x10_1800),
            rows: LiveAddr(0x10_1400),
            link_map: LiveAddr(0x7777),
        }
    }

    /// Every short jump ends at an instruction, the last one.
    #[test]
    fn the_jumps_of_the_finders_lead_to_their_ends() {
        let code = sample().code().unwrap();
        let find = &code[..SIZE as usize];
        let next = find.windows(2).position(|w| w == [0xff, 0x25]).unwrap();
        assert_eq!(find[14], 0x72);
        assert_eq!(16 + usize::from(find[15]), next);
        assert_eq!(find[26], 0x73);
        assert_eq!(28 + usize::from(find[27]), next);
        let iterate = &code[SIZE as usize * EACH..][..SIZE as usize];
        let end = iterate.windows(3).position(|w| w == [0xff, 0xe0, 0xc3]).unwrap() + 2;
        let jump = iterate.windows(3).position(|w| w == [0x85, 0xc0, 0x75]).unwrap() + 4;
        assert_eq!(jump + usize::from(iterate[jump - 1]), end);
    }

    #[test]
    fn the_index_lists_all_rows_in_order() {
        let content = sample();
        let rows = content.rows().unwrap();
        let index = content.index(&rows).unwrap();
        assert_eq!(index.len() as u64, index_size(count_rows(&rows)));
        let table = &index[INDEX as usize + 12..];
        let starts: Vec<i32> = table.chunks(8).map(|c| i32::from_le_bytes(c[..4].try_into().unwrap())).collect();
        let at = content.index.plus(INDEX).0 as i64;
        let addresses: Vec<u64> = starts.iter().map(|s| (at + i64::from(*s)) as u64).collect();
        assert_eq!(addresses, [0x10_2600, 0x10_2600 + 2 * SIZE, 0x10_2600 + 3 * SIZE]);
    }
}
