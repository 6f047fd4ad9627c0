//! Addresses in position-dependent code that mean nothing that lies there.
//!
//! `a[i - 100]` is `a-400(,%rdi,4)` there, and `a-400` may be in the headers, in code or in the middle of a text. No array begins at
//! such a place. What the index leads to is not known, so all that it may lead to has to be the same.

use crate::code::{Field, Use};
use crate::entities::Side;
use crate::ground::{Doubt, Ground};
use crate::report::Kind;

/// How far an index leads from an address, in bytes.
const FAR: u64 = 0x4000;

impl Side<'_> {
    /// The field of the instruction at `here` in range `range` is an address where nothing begins, beside an index that nobody knows.
    pub(crate) fn means_elsewhere(&self, field: &Field, (range, here): (usize, u64)) -> bool {
        let displacement = !field.relative && field.certain && field.usage == Use::Address;
        if !displacement || !self.image.fixed || !self.is_near(field.target) || self.may_begin(field.target) {
            return false;
        }
        let seen = self.ways(range).sight(here);
        seen.calculated && seen.reached.is_none()
    }

    fn is_near(&self, at: u64) -> bool {
        (self.image.start.saturating_sub(FAR)..self.image.span.saturating_add(FAR)).contains(&at)
    }

    /// An object, a table or a constant may begin at an address.
    fn may_begin(&self, at: u64) -> bool {
        if self.object_at(at).is_some() || self.markers.contains_key(&at) || self.is_label_table(at) {
            return true;
        }
        let Some(section) = self.image.section_at(at) else { return false };
        // What the linker makes for the loader no code reads by an index.
        let linkers = [".dyn", ".gnu", ".hash", ".rel", ".interp", ".note", ".eh_frame"];
        let linkers = linkers.iter().any(|start| section.name.starts_with(start));
        let filled = section.is_constant() && !section.code && !section.is_slots() && !linkers;
        let last = self.image.bytes(at.wrapping_sub(1), 1).and_then(|bytes| bytes.first().copied());
        let letter = |b: u8| matches!(b, b'\t'..=b'\r' | b' '..=b'~');
        let rest = self.image.bytes_from(at);
        let letters = rest.iter().take_while(|b| letter(**b)).count();
        let inside_text = last.is_some_and(letter) && letters > 0 && rest.get(letters) == Some(&0);
        let behind = last.is_none_or(|b| matches!(b, 0 | 0xf8..));
        filled && self.is_filled(at, self.literal_span(at)) && (behind || at.is_multiple_of(8) && !inside_text)
    }
}

impl Ground<'_, '_> {
    /// All that an index may lead to from `n` is the same, and lies as far from `a` in the base.
    pub(crate) fn same_around(&self, a: u64, n: u64) -> Result<Kind, Doubt> {
        let (near, apart) = (n.saturating_sub(FAR), n.saturating_add(FAR));
        let objects = self.new.objects.iter().enumerate();
        for (p, object) in objects.filter(|(_, o)| o.end() >= near && o.address <= apart) {
            let old = self.pairs.objects.old_of(p).filter(|o| self.is_unchanged(*o));
            let there = |o: usize| self.old.objects[o].address.wrapping_sub(a) == object.address.wrapping_sub(n);
            let start_files = ["__abi_tag", "_IO_stdin_used", "__GNU_EH_FRAME_HDR", "__FRAME_END__"];
            if !old.is_some_and(there) && !start_files.contains(&object.names[0]) {
                return Err(Doubt::No(format!(
                    "{n:#x} of the new build is nothing that an index could be added to; it may mean {}",
                    object.names[0]
                )));
            }
        }
        // Without symbols constants are known by their bytes alone.
        let unnamed = self.old.ranges.iter().chain(&self.new.ranges).any(|range| range.unnamed);
        let constants = |side: &Side<'_>, at: u64| {
            let plain = side.image.sections.iter().filter(|s| s.is_constant() && !s.code && !s.is_slots() && !s.tls);
            let near = plain.filter_map(|s| {
                let from = s.address.max(at.saturating_sub(FAR));
                let to = s.end().min(at.saturating_add(FAR));
                let bytes = side.image.bytes(from, to.checked_sub(from)?)?;
                Some((from.wrapping_sub(at), bytes.to_vec()))
            });
            near.filter(|(_, bytes)| !bytes.is_empty()).collect::<Vec<_>>()
        };
        if unnamed && constants(self.old, a) != constants(self.new, n) {
            return Err(Doubt::No(format!("{n:#x} of the new build is nothing that an index could be added to")));
        }
        Ok(Kind::Constant)
    }
}
