//! References to a place before a constant, or before an object.

use super::literals::AHEAD;
use super::{Bound, Payload, Problem};
use crate::ahead::{Meant, MeantObject, ahead, is_rust, meant, meant_object, objects, perhaps_behind, touched};
use crate::arch::{self, Field, Site, Touched, Use};
use crate::entity::{CodeRange, FunctionId, ObjectId};
use crate::finding::Code;
use crate::usage::range_of;

impl Payload<'_, '_> {
    /// Binds a reference to the constant that begins behind the address, if that may be meant. `None` if what is at the address is
    /// meant, and that alone.
    pub(super) fn ahead(&mut self, id: FunctionId, site: &Site) -> Result<Option<Bound>, Problem> {
        let new = self.new;
        if site.usage != Use::Address {
            return Ok(None);
        }
        if let Some(bound) = self.object_ahead(id, site)? {
            return Ok(Some(bound));
        }
        let Some(ahead) = ahead(new, site.target, is_rust(new, id)) else { return Ok(None) };
        match meant(new, site, self.touched(id, site)) {
            None | Some(Meant::Here) => return Ok(None),
            Some(Meant::There(place)) => {
                let (symbol, offset) = self.literal(Some(id), place, Use::Address)?;
                return Ok(Some((symbol, offset.wrapping_sub_unsigned(place - site.target))));
            }
            Some(Meant::Unclear) => {}
        }
        // A copy of all that may be meant.
        let offset = site.target.wrapping_sub(ahead.start) as i64;
        if let Some(known) = self.literal_symbols.get(&(ahead.start, AHEAD)) {
            return Ok(Some((*known, offset)));
        }
        // Who reads the copy without knowing whose it is takes a text to its terminator.
        let ends = ahead.parts.iter().map(|part| part.1.max(new.map.literal_span(&new.image, part.0).1));
        let end = ends.max().unwrap_or(ahead.end);
        let bytes = |start: u64, end: u64| new.image.bytes(start, end - start).unwrap_or_default();
        for part in &ahead.parts {
            self.check_copyable(Some(id), part.0, bytes(part.0, part.1))?;
        }
        // A table of distances may begin here, which is none of the parts.
        let starts = std::iter::once(ahead.start).chain(ahead.parts.iter().map(|part| part.0));
        let align = starts.map(|start| 1 << start.trailing_zeros().min(5)).max().unwrap_or(1);
        let (symbol, _) = self.copy_literal(&[(ahead.start, end)], bytes(ahead.start, end), align, AHEAD)?;
        Ok(Some((symbol, offset)))
    }

    /// Binds a reference to the object that begins behind the address, or ends before it, if that is meant.
    fn object_ahead(&mut self, id: FunctionId, site: &Site) -> Result<Option<Bound>, Problem> {
        let new = self.new;
        if new.map.function_at(site.target).is_some() || objects(new, site.target).next().is_none() {
            return Ok(None);
        }
        let old = self.old;
        let before = |p: ObjectId, address: u64| {
            let o = self.pairs.objects.old_of(p).filter(|o| !self.changes.constants.contains(o))?;
            Some(old.map.objects[o].address.wrapping_add(address.wrapping_sub(new.map.objects[p].address)))
        };
        let here = new.map.object_at(site.target).and_then(|p| before(p, site.target));
        let touched = self.touched(id, site);
        let (object, certain) = match meant_object(new, site, touched) {
            None => {
                let elsewhere = |p: &ObjectId| before(*p, site.target).is_none_or(|place| Some(place) != here);
                let Some(other) = perhaps_behind(new, id, site, touched).into_iter().find(elsewhere) else {
                    return Ok(None);
                };
                let object = &new.map.objects[other];
                let distance = object.address - site.target;
                let message =
                    format!("code adds an index to it; it may mean {}-{distance:#x} or what lies there", object.name());
                return Err(Problem(Code::AmbiguousReference, message));
            }
            Some(MeantObject::Certain(object)) => (object, true),
            Some(MeantObject::Perhaps(object)) => (object, false),
        };
        let distance = new.map.objects[object].address.wrapping_sub(site.target);
        if !certain {
            // The old build has both of them side by side, or one of the two would be wrong.
            if here.is_none() || here != before(object, site.target) {
                let name = new.map.objects[object].name();
                let message = format!("code adds an index to it; it may mean {name}-{distance:#x} or what ends there");
                return Err(Problem(Code::AmbiguousReference, message));
            }
        }
        let symbol = self.object(object)?;
        Ok(Some((symbol, (distance as i64).wrapping_neg())))
    }

    /// True if an object is meant that ends before the address or there, whatever begins there.
    pub(super) fn means_end(&mut self, id: FunctionId, site: &Site) -> bool {
        let new = self.new;
        let ends = site.usage == Use::Address && objects(new, site.target).next().is_some();
        let meant = if ends { meant_object(new, site, self.touched(id, site)) } else { None };
        matches!(meant, Some(MeantObject::Certain(object)) if new.map.objects[object].address < site.target)
    }

    /// True for a number beside a register that holds an index: then the address is in the number.
    pub(super) fn is_indexed_by_number(&mut self, id: FunctionId, site: &Site) -> bool {
        let field = |range: &CodeRange<'_>| arch::field(range.bytes, site.instruction, site.offset);
        match range_of(self.new, id, site).map(field) {
            Some(Field::Displacement) => true,
            Some(Field::Offset) => self.touched(id, site).counted,
            _ => false,
        }
    }

    /// What a function does with the address that a site makes. The first question answers it for all its sites.
    pub(super) fn touched(&mut self, id: FunctionId, site: &Site) -> Touched {
        let new = self.new;
        if self.touched.0 != Some(id) {
            let sites = new.code[id].ranges.iter().flat_map(|code| &code.sites);
            let near =
                |s: &Site| objects(new, s.target).next().is_some() || ahead(new, s.target, is_rust(new, id)).is_some();
            let sites: Vec<Site> = sites.filter(|s| s.usage == Use::Address && near(s)).collect();
            let found = touched(new, id, &sites);
            self.touched = (Some(id), sites.into_iter().zip(found).collect());
        }
        let known = self.touched.1.iter().find(|(s, _)| s == site).map(|(_, touched)| *touched);
        known.unwrap_or_else(|| touched(new, id, std::slice::from_ref(site))[0])
    }
}
