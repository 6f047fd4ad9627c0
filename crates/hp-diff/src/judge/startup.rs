//! The compiler's own code that starts and ends a program, which means the linker's symbols.

use super::Judge;
use crate::arch::{Site, Use};
use crate::build::Build;
use crate::entity::{FunctionId, Target};
use crate::image::{Evidence, Word};

impl<'j, 'a> Judge<'j, 'a> {
    /// The compiler's own start-up code means the linker's symbols, even where an object begins at the same address.
    pub(super) fn same_linker_symbol(&self, function: FunctionId, a: &Site, b: &Site) -> bool {
        let names = self.new.map.markers_at(b.target);
        let shared = self.old.map.markers_at(a.target).iter().any(|n| names.contains(n));
        let both_end = || self.old.image.is_end_of_data(a.target) && self.new.image.is_end_of_data(b.target);
        shared || both_end() && !self.old.map.functions[function].evidence.has_name()
    }

    /// What the compiler's own start-up and exit code asks for if it is there, as `__cxa_finalize`, gets a version as soon as
    /// the image needs the library that has it. The old code goes on as it was linked.
    pub(super) fn same_weak_import(&self, a: &Site, b: &Site) -> bool {
        fn import<'b>(build: &'b Build<'_>, site: &Site) -> Option<&'b str> {
            match build.map.resolve(&build.image, site) {
                Target::Stub(Word::Symbol(name, 0)) | Target::Slot(Word::Symbol(name, 0)) => {
                    build.image.weak.contains(name).then_some(name)
                }
                _ => None,
            }
        }
        match (import(self.old, a), import(self.new, b)) {
            (Some(x), Some(y)) => {
                let versions = (x.split_once('@'), y.split_once('@'));
                matches!(versions, (None, Some((name, _))) if name == x)
                    || matches!(versions, (Some((name, _)), None) if name == y)
            }
            _ => false,
        }
    }

    pub(super) fn is_startup_code(&self, old: FunctionId) -> bool {
        // Without symbols: it begins with the comparison of `__TMC_END__` with itself.
        let compares_itself = || {
            let sites = &self.old.code[old].ranges[0].sites;
            let (Some(s), Some(t)) = (sites.get(0), sites.get(1)) else { return false };
            s.target == t.target && (s.usage, t.usage) == (Use::Address, Use::Address) && t.end < 32
        };
        match self.old.map.functions[old].evidence {
            Evidence::Gap => compares_itself(),
            _ => self.old.map.functions[old].file == "crtstuff.c",
        }
    }
}
