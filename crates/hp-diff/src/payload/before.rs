//! References to the end of something.

use super::literals::BLOCK;
use super::{Bound, Payload, Problem};
use crate::arch::{Site, Use};
use crate::before::{Before, before, text_start};
use crate::entity::{FunctionId, Target};
use crate::finding::Code;

impl Payload<'_, '_> {
    /// Binds a reference together with what lies before the address, if code means that: because it reaches back, or
    /// because it refers to the text too of which this is the end. `None` if it means what is at the address alone.
    pub(super) fn end(&mut self, id: FunctionId, site: &Site) -> Result<Option<Bound>, Problem> {
        let new = self.new;
        let end = site.target;
        if let Some(Before { start, object, behind }) = before(new, id, site) {
            return match object {
                Some(p) if end < new.map.objects[p].end() => Ok(None),
                Some(p) if !behind && end < new.map.objects[p].end() + GAP => {
                    let offset = end - new.map.objects[p].address;
                    self.object(p).map(|symbol| Some((symbol, offset as i64)))
                }
                None if self.is_literal(end) => self.literal_before(id, start, end).map(Some),
                _ => Err(Problem(
                    Code::AmbiguousReference,
                    format!(
                        "code reaches back from it to {start:#x}, and what lies there may not lie before it in the old build"
                    ),
                )),
            };
        }
        if site.usage != Use::Address || !self.is_literal(end) {
            return Ok(None);
        }
        let Some(text) = text_start(&new.image, end).filter(|_| new.map.object_at(end - 1).is_none()) else {
            return Ok(None);
        };
        let sites = new.code[id].ranges.iter().flat_map(|c| &c.sites).filter(|s| s.usage == Use::Address);
        match sites.map(|s| s.target).filter(|at| (text..end).contains(at)).max() {
            Some(start) => self.literal_before(id, start, end).map(Some),
            None => Ok(None),
        }
    }

    fn is_literal(&self, address: u64) -> bool {
        self.new.map.resolve_address(&self.new.image, address, Use::Address) == Target::Literal
    }

    /// Binds the end of a literal that begins at `start`.
    fn literal_before(&mut self, id: FunctionId, start: u64, end: u64) -> Result<Bound, Problem> {
        let size = end - start;
        let (_, last) = self.new.map.literal_span(&self.new.image, start);
        if start + (self.new.map.literal(&self.new.image, start).len() as u64) > end {
            let (symbol, offset) = self.literal(Some(id), start, Use::Address)?;
            return Ok((symbol, offset + size as i64));
        }
        if let Some(known) = self.literal_symbols.get(&(start, BLOCK)) {
            return Ok((*known, size as i64));
        }
        // No text that reaches to the address: a copy of all that is before it and at it.
        let parts = [(start, end), self.new.map.literal_span(&self.new.image, end)];
        let bytes = self.new.image.bytes(start, parts[1].1.max(last) - start);
        let Some(bytes) = bytes.filter(|_| last <= end) else {
            return Err(Problem(Code::AmbiguousReference, "code reaches back from it, over several constants".into()));
        };
        for part in &parts {
            let bytes = &bytes[(part.0 - start) as usize..(part.1 - start) as usize];
            self.check_copyable(Some(id), part.0, bytes)?;
        }
        let align = parts.iter().map(|p| 1 << p.0.trailing_zeros().min(5)).max().unwrap_or(1);
        let (symbol, offset) = self.copy_literal(&parts, bytes, align, BLOCK)?;
        Ok((symbol, offset + size as i64))
    }
}

/// Padding between an object and the next one, at most.
const GAP: u64 = 64;
