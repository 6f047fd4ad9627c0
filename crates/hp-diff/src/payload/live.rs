//! Data that a patch brings along, and what the running process has of it: values that live in variables, and pointers
//! to constants.

use super::{Payload, Problem};
use crate::arch::{self, Use};
use crate::correlate::numbered_stem;
use crate::entity::{FunctionId, ObjectId};
use crate::finding::{Code, Finding, Level};

impl Payload<'_, '_> {
    /// A writable variable without an old self must be new, not one that lost its partner.
    pub(super) fn check_is_new(&self, p: ObjectId) -> Result<(), Problem> {
        let object = &self.new.map.objects[p];
        if object.constant {
            return Ok(());
        }
        if object.unnamed {
            return Err(Problem(
                Code::UnknownReference,
                "writable data without a symbol, which no unchanged function identifies".into(),
            ));
        }
        let stem = numbered_stem(object.name()).unwrap_or(object.name());
        let lost = self.old.map.objects.iter().enumerate().any(|(o, old)| {
            self.pairs.objects.new_of(o).is_none()
                && !old.constant
                // A variable may have become static or global.
                && (old.file == object.file || old.local != object.local)
                && numbered_stem(old.name()).unwrap_or(old.name()) == stem
        });
        // With debug information on both sides a static local that is still alone is
        // known to belong to another function or to be new.
        if lost && !self.pairs.owners.1.contains_key(&p) {
            return Err(Problem(
                Code::UnpairedVariable,
                "the old build has a variable of this name that was not paired".into(),
            ));
        }
        Ok(())
    }

    /// A constant that is copied has two addresses from then on. Code that asks for the one must not get the other.
    pub(super) fn note_replaced(&mut self, p: ObjectId) {
        let new = self.new;
        let object = &new.map.objects[p];
        let refers = |id: &FunctionId| {
            let mut sites = new.code[*id].ranges.iter().flat_map(|c| &c.sites);
            sites.any(|s| s.usage == Use::Address && (object.address..=object.end()).contains(&s.target))
        };
        let asks = (0..new.code.len()).filter(refers).find_map(|id| {
            let ranges = new.map.functions[id].ranges.iter();
            let mut places = ranges.filter_map(|r| {
                let at = arch::compares_address(r.address, r.bytes, object.address..object.end())?;
                Some(r.address + u64::from(at))
            });
            Some((id, places.next()?))
        });
        let differs = "its content differs between the builds";
        if let Some((id, at)) = asks {
            let name = new.map.functions[id].qualified_name();
            let message =
                format!("{differs}, and {name} of the new build compares pointers with its address at {at:#x}");
            let finding = Finding::new(Code::ConstantReplaced, object.name(), message);
            self.findings.push(Finding { level: Level::Error, ..finding });
        } else if numbered_stem(object.name()).is_none() {
            self.finding(Code::ConstantReplaced, object.name(), differs);
        }
    }

    /// A variable that came, where one of the same size in the same place went, may be that one under another name.
    pub(super) fn note_namesake(&mut self, p: ObjectId) {
        let (old, new) = (self.old, self.new);
        let object = &new.map.objects[p];
        if object.constant {
            return;
        }
        let owners = &self.pairs.owners;
        let gone = old.map.objects.iter().enumerate().find(|(o, was)| {
            self.pairs.objects.new_of(*o).is_none()
                && !(was.constant || was.unnamed)
                && was.size == object.size
                && (was.file == object.file || was.local != object.local)
                && owners.0.get(o) == owners.1.get(&p)
        });
        if let Some((_, was)) = gone {
            let message = format!("it starts anew, but it may be {} of the old build, which is gone", was.name());
            self.finding(Code::VariableRenamed, object.name(), message);
        }
    }
}
