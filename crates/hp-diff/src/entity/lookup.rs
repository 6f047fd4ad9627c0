//! Where addresses lead.

use std::ops::Range;

use super::{CodeRange, FunctionId, Map, ObjectId, Target};
use crate::arch::{Site, Use};
use crate::image::{Image, Word, is_constant_section};

/// How far before an object's start the address of `&a[i - n]` usually lies, in bytes.
const BEFORE: u64 = 32;

/// How far it may lie where code calculates with it, in bytes.
pub(crate) const REACH: u64 = 0x4000;

impl<'a> Map<'a> {
    /// True if functions are known that have no name: the build is stripped.
    pub(crate) fn is_stripped(&self) -> bool {
        self.functions.iter().any(|f| !f.evidence.has_name())
    }

    /// True if a table of distances begins there: code adds its start to what it reads, so it means that and nothing else.
    pub(crate) fn is_table_of_distances(&self, address: u64) -> bool {
        self.distances.get(&address).is_some_and(|distance| distance.table == address)
    }

    /// First referenced address above `address`.
    pub(crate) fn next_reference(&self, address: u64) -> u64 {
        self.references.as_slice().get(self.references.up_to(address)).copied().unwrap_or(address)
    }

    pub(crate) fn function_at(&self, address: u64) -> Option<(FunctionId, usize, u64)> {
        let i = self.code_starts.up_to(address);
        let (start, end, id, range) = *self.code_index[..i].last()?;
        (address < end).then_some((id, range, address - start))
    }

    /// True for a place in a range of code, and for its end, if no other begins there: clang without optimisation goes there from
    /// what cannot be reached.
    pub(crate) fn stays_inside(&self, range: &CodeRange<'_>, address: u64) -> bool {
        (range.address..range.end()).contains(&address) || address == range.end() && self.function_at(address).is_none()
    }

    /// Start of the first function range at or after `address`.
    pub(crate) fn next_code(&self, address: u64) -> Option<u64> {
        self.code_index.get(self.code_starts.below(address)).map(|e| e.0)
    }

    /// Data that hand-written code has beside itself: from `address` to the next function, without padding. `None` if the address
    /// is none of code, or of a function.
    pub(crate) fn data_in_code(&self, image: &Image<'a>, address: u64) -> Option<&'a [u8]> {
        let section = image.section_at(address).filter(|s| s.executable && self.function_at(address).is_none())?;
        let behind = self.code_ranges().map(|range| range.0).filter(|start| *start > address).min();
        let end = behind.map_or(section.end(), |start| start.min(section.end()));
        let bytes = image.bytes(address, end - address)?;
        let used = bytes.iter().rposition(|b| ![0, 0x90, 0xcc].contains(b)).map_or(0, |last| last + 1);
        Some(&bytes[..used])
    }

    /// From the first address of code to the last.
    pub(crate) fn code_span(&self) -> Range<u64> {
        let start = self.code_index.first().map_or(0, |entry| entry.0);
        start..self.code_index.iter().map(|entry| entry.1).max().unwrap_or(start)
    }

    /// For which addresses [`Map::function_at`] gives which function.
    pub(crate) fn code_parts(&self) -> impl Iterator<Item = (FunctionId, Range<u64>)> {
        let next = self.code_index.iter().skip(1).map(|entry| entry.0).chain([u64::MAX]);
        self.code_index.iter().zip(next).map(|(entry, next)| (entry.2, entry.0..entry.1.min(next)))
    }

    /// All ranges of code, ordered: start and end.
    pub(crate) fn code_ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.code_index.iter().map(|e| (e.0, e.1))
    }

    /// The object that contains `address`.
    pub(crate) fn object_at(&self, address: u64) -> Option<ObjectId> {
        let i = self.object_starts.up_to(address).checked_sub(1)?;
        (address < self.objects[i].end()).then_some(i)
    }

    /// The objects that begin behind `address`, in their order.
    pub(crate) fn objects_behind(&self, address: u64) -> impl Iterator<Item = ObjectId> {
        self.object_starts.up_to(address)..self.objects.len()
    }

    /// Where a site leads.
    pub(crate) fn resolve<'m>(&'m self, image: &'m Image<'a>, site: &Site) -> Target<'m> {
        self.resolve_address(image, site.target, site.usage)
    }

    /// Where an address leads, if used in this way.
    pub(crate) fn resolve_address<'m>(&'m self, image: &'m Image<'a>, address: u64, usage: Use) -> Target<'m> {
        if let Some((id, range, offset)) = self.function_at(address) {
            return Target::Function(id, range, offset);
        }
        if let Some(slot) = image.stubs.get(&address) {
            return image.words.get(slot).map_or(Target::Unknown, Target::Stub);
        }
        let Some(section) = image.section_at(address) else {
            let first = image.sections.first().map_or(0, |s| s.address);
            return match address.checked_sub(image.start) {
                Some(offset) if address < first => Target::Header(offset),
                _ => self.at_boundary(address),
            };
        };
        if section.is_got() {
            return match image.words.get(&address) {
                // Code takes the address of a slot for thread-local variables only.
                Some(word) if usage != Use::Address || matches!(word, Word::Tls(..)) => Target::Slot(word),
                word => match (self.at_boundary(address), word) {
                    (Target::Unknown, Some(word)) => Target::Slot(word),
                    (boundary, _) => boundary,
                },
            };
        }
        if let Some(id) = self.object_at(address) {
            return Target::Object(id, (address - self.objects[id].address) as i64);
        }
        if self.template_at(address).is_some() {
            return Target::Literal;
        }
        if is_constant_section(section) && section.content && !section.executable {
            if usage != Use::Address || self.is_literal_start(image, address) {
                return Target::Literal;
            }
            // Nothing is there: the end of the object before, or an empty text.
            return match self.ending_at(address).filter(|id| !self.objects[*id].is_runtime_record()) {
                Some(id) => Target::Object(id, self.objects[id].size as i64),
                None => Target::Literal,
            };
        }
        self.at_boundary(address)
    }

    /// The template that contains `address`: start and end.
    pub(crate) fn template_at(&self, address: u64) -> Option<(u64, u64)> {
        let i = self.templates.partition_point(|t| t.0 <= address).checked_sub(1)?;
        Some(self.templates[i]).filter(|t| address < t.1)
    }

    fn at_boundary<'m>(&'m self, address: u64) -> Target<'m> {
        if let Some(name) = self.markers_at(address).first() {
            return Target::Marker(name);
        }
        match self.ending_at(address) {
            Some(id) => Target::Object(id, self.objects[id].size as i64),
            None => Target::Unknown,
        }
    }

    /// True if bytes other than zero follow before the next object.
    fn is_literal_start(&self, image: &Image<'a>, address: u64) -> bool {
        let end = self.next_reference(address);
        let filled = image.words.range(address..end).next().is_some();
        filled || image.bytes(address, end - address).is_some_and(|b| b.iter().any(|x| *x != 0))
    }

    /// The last object that ends at an address or before it.
    pub(crate) fn last_before(&self, address: u64) -> Option<ObjectId> {
        self.object_starts.below(address).checked_sub(1).filter(|id| self.objects[*id].end() <= address)
    }

    pub(crate) fn ending_at(&self, address: u64) -> Option<ObjectId> {
        let i = self.object_starts.below(address).checked_sub(1)?;
        (self.objects[i].end() == address).then_some(i)
    }

    /// Every entity that an *address* (not an access) could mean: the object that contains
    /// it, the one that ends there, and one that starts shortly after, which code reaches
    /// by a positive offset.
    pub(crate) fn candidates(&self, address: u64) -> Vec<(ObjectId, i64)> {
        let after = self.object_starts.up_to(address);
        let mut found: Vec<(ObjectId, i64)> = Vec::new();
        for id in after.saturating_sub(2)..self.objects.len() {
            let object = &self.objects[id];
            if object.address > address + BEFORE {
                break;
            }
            let exact_start = self.objects.get(after.wrapping_sub(1)).is_some_and(|o| o.address == address);
            if object.address > address && exact_start {
                break;
            }
            let inside = (object.address..object.end()).contains(&address);
            let before = address < object.address;
            if inside || address <= object.end() && !object.is_runtime_record() && !(before && object.is_section()) {
                found.push((id, address.wrapping_sub(object.address) as i64));
            }
        }
        found
    }

    /// All that an address may mean, if used in this way: where it leads first, then what else would give the
    /// same number.
    pub(crate) fn meanings<'m>(&'m self, image: &'m Image<'a>, address: u64, usage: Use) -> Vec<Target<'m>> {
        let mut found = vec![self.resolve_address(image, address, usage)];
        let data = matches!(found[0], Target::Object(..) | Target::Literal | Target::Marker(_));
        if usage == Use::Address && data {
            for (id, offset) in self.candidates(address) {
                if !found.contains(&Target::Object(id, offset)) {
                    found.push(Target::Object(id, offset));
                }
            }
            let ends = matches!(found[0], Target::Object(id, offset) if offset == self.objects[id].size as i64);
            if ends && image.is_constant(address) && image.bytes(address, 1).is_some() {
                found.push(Target::Literal);
            }
        }
        found
    }

    /// Every object that an address may belong to which code calculates with: the one that contains it first, then
    /// those that end not far before it or start not far behind it, such as `a` of `&a[i - 100]`.
    pub(crate) fn within_reach(&self, address: u64) -> Vec<(ObjectId, i64)> {
        let containing = self.object_at(address);
        let first = self.objects.partition_point(|o| o.end() + REACH < address);
        let near = (first..self.objects.len()).take_while(|id| self.objects[*id].address <= address + REACH);
        let start = |id: ObjectId| (id, address.wrapping_sub(self.objects[id].address) as i64);
        let near = near.filter(|id| Some(*id) != containing && !self.objects[*id].is_of_start_files());
        containing.into_iter().chain(near).map(start).collect()
    }

    /// True if the address is what it leads to by itself: the start of an entity. Only elsewhere is it in question
    /// whether code reaches something behind it by adding an index.
    pub(crate) fn is_start(&self, target: &Target<'_>) -> bool {
        matches!(
            target,
            Target::Function(_, 0, 0) | Target::Object(_, 0) | Target::Stub(_) | Target::Slot(Word::Tls(..))
        )
    }

    /// Symbols without size at `address`, such as `_end`, ordered by name.
    pub(crate) fn markers_at(&self, address: u64) -> &[&'a str] {
        self.markers.get(&address).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn marker_address(&self, name: &str) -> Option<u64> {
        self.markers.iter().find(|(_, names)| names.contains(&name)).map(|(a, _)| *a)
    }
}
