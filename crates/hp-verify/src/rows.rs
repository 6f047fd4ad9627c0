//! The patch's unwind rows: those of new code equal the new build's, those of a thunk the base's at the instructions
//! that it repeats, and nothing else has any.

use std::collections::BTreeMap;

use hp_pack::SectionKind;

use crate::overlay::{Layout, Place};
use crate::report::Fault;
use crate::slotted::Apart;
use crate::thunk::{Piece, Records};
use crate::unwind::{Entries, Rows};
use crate::walk::Walk;

impl Walk<'_, '_, '_> {
    /// Checks the rows of everything that the walk has found.
    pub(crate) fn check_rows(&mut self, records: &Records) {
        let (old, new) = (&self.ground.old.entries, &self.ground.new.entries);
        let mut rows = match self.patch_rows() {
            Ok(rows) => rows,
            Err(fault) => return self.faults.push(fault),
        };
        let mut faults = Vec::new();
        for (start, twin) in self.code.clone() {
            let range = &self.ground.new.ranges[twin.range];
            let place = Place::Payload(SectionKind::Text, start as i64);
            match (rows.remove(&place), new.get(range.address)) {
                (Some(mine), Some(theirs)) => match differ(&mine, &theirs, twin.end - start) {
                    None => self.proof.unwind_rows += mine.rows.len(),
                    Some(what) => faults.push(Fault::new("unwind", range.name(), what)),
                },
                (None, None) => {}
                (None, Some(_)) => {
                    faults.push(Fault::new("unwind", range.name(), "the patch has no unwind rows for it"))
                }
                (Some(_), None) => {
                    faults.push(Fault::new("unwind", range.name(), "the new build has no unwind rows for it"))
                }
            }
        }
        for (at, branches) in self.islands.clone() {
            let place = Place::Payload(SectionKind::Text, at as i64);
            let row = rows.remove(&place).filter(|r| r.size == 5);
            for branch in branches {
                let theirs = self.ground.new.range_at(branch).and_then(|(range, _)| {
                    let range = &self.ground.new.ranges[range];
                    new.get(range.address)?.at(branch - range.address).cloned()
                });
                let mine = row.as_ref().map(|r| r.at(0).filter(|_| r.rows.len() == 1));
                if mine != theirs.as_ref().map(Some) {
                    faults.push(Fault::new(
                        "unwind",
                        format!(".text+{at:#x}"),
                        "its rows are not those of the branch to it",
                    ));
                }
            }
            self.proof.unwind_rows += 1;
        }
        for (at, apart) in &self.apart {
            let row = rows.remove(&Place::Payload(SectionKind::Text, *at as i64));
            match self.apart_rows(row, apart, new) {
                Ok(count) => self.proof.unwind_rows += count,
                Err(what) => faults.push(Fault::new("unwind", format!(".text+{at:#x}"), what)),
            }
        }
        for (start, pieces) in &records.thunks {
            if let Err(what) = self.check_thunk_landings(*start, pieces) {
                faults.push(Fault::new("unwind", format!(".text.hpatch.thunks+{start:#x}"), what));
            }
            let place = Place::Payload(SectionKind::Thunks, *start as i64);
            match self.thunk_rows(rows.remove(&place), old, pieces) {
                Ok(count) => self.proof.unwind_rows += count,
                Err(what) => faults.push(Fault::new("unwind", format!(".text.hpatch.thunks+{start:#x}"), what)),
            }
        }
        let stray = rows
            .keys()
            .map(|place| Fault::new("unwind", format!("{place:?}"), "rows for something that was not proven"));
        faults.extend(stray);
        let left = std::mem::take(&mut self.landings);
        faults.extend(left.keys().map(|place| Fault::new("unwind", format!("{place:?}"), "a stray exception table")));
        self.faults.extend(faults);
    }

    /// The rows of code that stands for an instruction are the instruction's, and the next one's, with the frame as much farther
    /// from the stack pointer as that was lowered.
    fn apart_rows(&self, mine: Option<Rows>, apart: &Apart, new: &Entries<'_>) -> Result<usize, String> {
        let (from, to) = apart.instruction;
        let range = self.ground.new.range_at(from).map(|(range, _)| self.ground.new.ranges[range].address);
        let theirs = range.and_then(|start| Some((start, new.get(start)?)));
        let row = theirs.as_ref().and_then(|(start, rows)| Some((rows, rows.at(from - start)?, rows.at(to - start)?)));
        let (mine, (rows, row, next)) = match (mine, row) {
            (None, None) if range.is_some_and(|start| new.get(start).is_none()) => return Ok(0),
            (Some(mine), Some(rows)) => (mine, rows),
            _ => return Err("there are no unwind rows for it".into()),
        };
        if (mine.size, mine.signal, mine.return_register) != (apart.size, rows.signal, rows.return_register) {
            return Err("its frames are of another kind or size than the instruction's".into());
        }
        for offset in 0..apart.size {
            let lowered = apart.lowered.iter().rev().find(|l| l.0 <= offset).map_or(0, |l| l.1);
            let expected = if apart.lowered.is_empty() { Some(row.clone()) } else { row.lowered(lowered as i64) };
            if row != next || expected.is_none() || mine.at(offset) != expected.as_ref() {
                return Err(format!("its row at offset {offset:#x} is not that of the instruction at {from:#x}"));
            }
        }
        Ok(mine.rows.len())
    }

    /// The rows of the patch, by place: the same at every load address.
    fn patch_rows(&self) -> Result<BTreeMap<Place, Rows>, Fault> {
        let fault = |what: &str| Fault::new("unwind", ".eh_frame", what);
        let read = |layout: &Layout| -> Result<BTreeMap<Place, Rows>, Fault> {
            let data = layout.bytes_from(SectionKind::EhFrame, 0);
            let Some(address) = layout.address(SectionKind::EhFrame) else { return Ok(BTreeMap::new()) };
            if !ends_with_terminator(data) {
                return Err(fault("it does not end in a terminator"));
            }
            let entries = Entries::read(address, data);
            if let Some(what) = entries.unread.first() {
                return Err(fault(what));
            }
            let all = entries.all().map(|(start, rows)| {
                // Exception tables are compared in another place.
                let rows = rows.map_err(|what| fault(&what))?;
                Ok((layout.place(start), Rows { personality: None, exceptions: None, ..rows }))
            });
            all.collect()
        };
        let first = read(&self.layouts[0])?;
        for layout in &self.layouts[1..] {
            if read(layout)? != first {
                return Err(fault("its rows are not for the same code at every load address"));
            }
        }
        Ok(first)
    }

    fn thunk_rows(&self, mine: Option<Rows>, old: &Entries<'_>, pieces: &[Piece]) -> Result<usize, String> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return Err("an empty thunk".into()) };
        let range = self.ground.old.range_at(first.old_address).map(|(f, _)| self.ground.old.ranges[f].address);
        let theirs = range.and_then(|start| Some((start, old.get(start)?)));
        let (mine, theirs) = match (mine, theirs) {
            (None, None) => return Ok(0),
            (Some(mine), Some(theirs)) => (mine, theirs),
            (None, _) => return Err("the patch has no unwind rows for it".into()),
            (_, None) => return Err("the base has no unwind rows for its function".into()),
        };
        if mine.size != last.end - first.start {
            return Err(format!("its rows are for {} bytes, it has {}", mine.size, last.end - first.start));
        }
        if (mine.signal, mine.return_register) != (theirs.1.signal, theirs.1.return_register) {
            return Err("its frames are of another kind than in the base".into());
        }
        for piece in pieces {
            let row = theirs.1.at(piece.old_address - theirs.0);
            for offset in piece.start..piece.end {
                if row.is_none() || mine.at(offset - first.start) != row {
                    return Err(format!(
                        "its row at offset {:#x} is not the base's at {:#x}",
                        offset - first.start,
                        piece.old_address
                    ));
                }
            }
        }
        Ok(mine.rows.len())
    }
}

/// How the rows of a range of the patch differ from those of the new build.
fn differ(mine: &Rows, theirs: &Rows, size: u64) -> Option<String> {
    if mine.size != theirs.size || mine.size < size {
        return Some(format!("its rows are for {} bytes, the new build's for {}", mine.size, theirs.size));
    }
    if (mine.signal, mine.return_register) != (theirs.signal, theirs.return_register) {
        return Some("its frames are of another kind than in the new build".into());
    }
    let first = mine.rows.iter().zip(&theirs.rows).find(|(a, b)| a != b);
    match first {
        Some((a, b)) => Some(format!("its row at {:#x} is `{}`, the new build's at {:#x} is `{}`", a.0, a.1, b.0, b.1)),
        None if mine.rows.len() != theirs.rows.len() => Some("it has more or fewer rows than in the new build".into()),
        None => None,
    }
}

/// Entries follow one another up to a zero length, with which the section ends.
fn ends_with_terminator(data: &[u8]) -> bool {
    let mut at = 0usize;
    loop {
        let Some(length) = data.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])) else {
            return false;
        };
        at += 4;
        match length {
            0 => return data[at..].iter().all(|b| *b == 0),
            u32::MAX => return false,
            n => at = at.saturating_add(n as usize),
        }
    }
}
