//! Dividing an image into entities.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU8;

use rayon::prelude::*;

use super::literals::KnownLiteral;
use super::symbols::{functions, is_anonymous, objects};
use super::{DataObject, Distance, FunctionId, Map};
use crate::by_address::{ByAddress, Spans, Starts};
use crate::image::{Image, Section, Word, is_constant_section};

impl<'a> Map<'a> {
    pub(crate) fn new(image: &Image<'a>) -> Map<'a> {
        let functions = functions(image);
        let (objects, markers) = objects(image);
        let mut map = Map {
            functions,
            objects,
            markers,
            code_index: Vec::new(),
            code_starts: Starts::default(),
            object_starts: Starts::default(),
            references: Starts::default(),
            distances: ByAddress::default(),
            literals: Vec::new(),
            templates: Vec::new(),
        };
        map.index_code();
        map.index_objects();
        map
    }

    /// To be called when the ranges of functions have changed.
    pub(crate) fn index_code(&mut self) {
        let ranges = self.functions.iter().enumerate();
        self.code_index = ranges
            .flat_map(|(id, f)| f.ranges.iter().enumerate().map(move |(i, r)| (r.address, r.end(), id, i)))
            .collect();
        self.code_index.sort_unstable();
        self.code_starts = Starts::new(self.code_index.iter().map(|e| e.0).collect());
    }

    fn index_objects(&mut self) {
        self.object_starts = Starts::new(self.objects.iter().map(|o| o.address).collect());
    }

    /// Tells the map which addresses are referred to, `from_code` and from data; literals end there. There are none in
    /// code, so what leads into code does not count.
    pub(crate) fn set_references(&mut self, image: &Image<'a>, from_code: impl ParallelIterator<Item = u64>) {
        let code = image.sections.iter().filter(|s| s.executable).map(|s| (s.address, s.end()));
        let code = Spans::new(code.collect());
        let in_data = |address: &u64| !code.contains(*address);
        let mut targets: Vec<u64> = from_code.filter(in_data).collect();
        targets.extend(image.words.values().filter_map(|w| match w {
            Word::Address(a) => Some(*a).filter(in_data),
            _ => None,
        }));
        targets.extend(static_addresses(image));
        targets.par_sort_unstable();
        targets.dedup();
        let mut all = targets.clone();
        all.extend(self.objects.iter().flat_map(|o| [o.address, o.end()]));
        let anonymous = image.symbols.iter().filter(|s| is_anonymous(image, s));
        all.extend(anonymous.flat_map(|s| [s.address, s.address.saturating_add(s.size)]));
        all.extend(image.sections.iter().flat_map(|s| [s.address, s.end()]));
        all.par_sort_unstable();
        all.dedup();
        self.references = Starts::new(all);
        self.add_unnamed_variables(image, &targets);
    }

    /// Finds tables of distances to constant data, which rustc and clang make of arrays of texts, at the places where code that
    /// reads such tables takes addresses. A table reaches to the next address that something refers to; it
    /// is one if all its entries lead to constant data outside of it.
    pub(crate) fn add_distances(&mut self, image: &Image<'a>, starts: &[(u64, FunctionId)]) {
        let mut tables: BTreeMap<u64, bool> = BTreeMap::new();
        for (table, user) in starts {
            *tables.entry(*table).or_insert(true) &= self.functions[*user].rust;
        }
        let mut found = Vec::new();
        for (table, rust) in tables {
            let limit = match self.object_at(table) {
                Some(id) => self.objects[id].end(),
                None => self.next_reference(table),
            };
            let constant = |a: u64| image.section_at(a).is_some_and(|s| is_constant_section(s) && s.content);
            if !constant(table) || self.function_at(table).is_some() {
                continue;
            }
            let bytes = image.bytes(table, limit - table).unwrap_or_default();
            let distances = bytes.chunks_exact(4).map(|c| i32::from_le_bytes(c.try_into().unwrap_or_default()));
            let leads = |d: &i32| {
                let target = table.wrapping_add_signed(i64::from(*d));
                !(table..limit).contains(&target) && constant(target) && self.function_at(target).is_none()
            };
            let run: Vec<i32> = distances.take_while(leads).collect();
            // What follows the last entry is padding at most.
            let padded = bytes[run.len() * 4..].iter().all(|b| *b == 0);
            if run.len() > 1 && padded {
                found.extend(run.iter().enumerate().map(|(i, d)| {
                    (table + 4 * i as u64, Distance { table, target: table.wrapping_add_signed(i64::from(*d)), rust })
                }));
            }
        }
        self.distances = found.into();
        self.add_references(self.distances.values().map(|d| d.target).collect());
        self.forget_literals();
    }

    /// Adds addresses at which something begins that was found later.
    pub(crate) fn add_references(&mut self, found: Vec<u64>) {
        if found.is_empty() {
            return;
        }
        let mut found = found;
        found.sort_unstable();
        found.dedup();
        let before = std::mem::take(&mut self.references).into_vec();
        let mut literals = std::mem::take(&mut self.literals);
        // What nothing new begins in is as it was.
        for (address, known) in before.iter().zip(&mut literals) {
            let end = address.saturating_add(KnownLiteral::get(&known.span).unwrap_or(u64::MAX));
            let next = found.partition_point(|start| start <= address);
            if found.get(next).is_some_and(|start| *start < end) {
                *known = KnownLiteral::default();
            }
            known.alone = AtomicU8::new(0);
        }
        literals.resize_with(before.len(), KnownLiteral::default);
        let mut all: Vec<(u64, KnownLiteral)> = before.into_iter().zip(literals).collect();
        all.extend(found.into_iter().map(|start| (start, KnownLiteral::default())));
        // Stable: of two for one address the one that was there stays.
        all.sort_by_key(|(start, _)| *start);
        all.dedup_by_key(|(start, _)| *start);
        let references;
        (references, self.literals) = all.into_iter().unzip();
        self.references = Starts::new(references);
    }

    /// Initial values of local arrays are no objects.
    pub(crate) fn set_templates(&mut self, templates: Vec<(u64, u64)>) {
        let is_template = |at: u64| templates.binary_search_by_key(&at, |t| t.0).is_ok();
        self.objects.retain(|o| !(o.unnamed && is_template(o.address)));
        self.templates = templates;
        self.index_objects();
        self.forget_literals();
    }

    /// To be called when literals may have other lengths.
    fn forget_literals(&mut self) {
        self.literals = self.references.as_slice().iter().map(|_| KnownLiteral::default()).collect();
    }

    /// Writable data without a symbol, such as the initial value of a local array that the
    /// code copies to the stack: one object for each address that is referred to.
    fn add_unnamed_variables(&mut self, image: &Image<'a>, targets: &[u64]) {
        let mut found = Vec::new();
        // Constants that hold addresses may lead back to themselves, so they need an identity.
        let stripped = self.is_stripped();
        let is_variable = |s: &&Section<'_>| {
            let named_elsewhere = is_constant_section(s) && !(stripped && s.writable);
            !named_elsewhere && s.content && !s.executable && !s.is_got()
        };
        for section in image.sections.iter().filter(is_variable) {
            let inside = |bound: u64| targets.partition_point(|t| *t < bound);
            for &address in &targets[inside(section.address)..inside(section.end())] {
                let known = self.object_at(address).is_some() || self.markers.contains_key(&address);
                let size = self.next_reference(address).min(section.end()) - address;
                let zero = image.bytes(address, size).is_none_or(|b| b.iter().all(|x| *x == 0));
                let empty = zero && image.words.range(address..address + size).next().is_none();
                // The end of an object is not the start of another one, if nothing is there; but where most variables
                // have no symbol, one without an initial value may well be there.
                if !(known || !stripped && empty && self.ending_at(address).is_some()) {
                    found.push((address, size, is_constant_section(section)));
                }
            }
        }
        self.objects.extend(found.into_iter().map(|(address, size, constant)| DataObject {
            names: vec!["(unnamed)"],
            file: "",
            local: true,
            address,
            size,
            constant,
            unnamed: true,
        }));
        self.objects.sort_by_key(|o| o.address);
        self.index_objects();
    }
}

/// In a position-dependent image no relocation marks the words that hold addresses. Those that lead to the start of
/// something constant by all appearances: behind a terminator, or well aligned.
fn static_addresses<'i>(image: &'i Image<'_>) -> impl Iterator<Item = u64> + 'i {
    let data = image.sections.iter().filter(|s| image.fixed_address && s.content && !s.executable);
    let words = data.flat_map(|s| {
        let first = (s.address.next_multiple_of(8) - s.address) as usize;
        s.data.get(first..).unwrap_or_default().chunks_exact(8)
    });
    words.map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default())).filter(|a| {
        (image.start..image.span).contains(a)
            && image.is_constant(*a)
            && image.section_at(*a).is_some_and(|s| !s.executable)
            && (a.is_multiple_of(8) || image.bytes(a - 1, 1) == Some(&[0]))
    })
}
