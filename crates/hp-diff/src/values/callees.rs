//! Who calls whom, as far as somebody asks: what a function that was called before releases is released in its caller now, if
//! it is inlined there.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use rustc_hash::FxHashMap;

use crate::arch::Use;
use crate::build::Build;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, Target};
use crate::image::Word;

/// Functions that are looked at because they may have been inlined into one.
const INLINED: usize = 64;

/// Functions that old `f` calls and its new version does not, with all that they call: what they release is released in the
/// new version too, if that is because they are inlined there.
pub(super) fn inlined(
    [old, new]: &[Search<'_, '_>; 2],
    pairs: &Correlation,
    (f, g): (FunctionId, FunctionId),
) -> BTreeSet<FunctionId> {
    let kept: BTreeSet<FunctionId> = new.callees(g).iter().filter_map(|id| pairs.functions.old_of(*id)).collect();
    let mut open: Vec<FunctionId> = old.callees(f).iter().copied().filter(|id| !kept.contains(id)).collect();
    let mut found: BTreeSet<FunctionId> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        let next = old.callees(id).iter().copied().filter(|id| found.len() < INLINED && found.insert(*id));
        open.extend(next.collect::<Vec<_>>());
    }
    found
}

/// Who calls whom in one build, as far as somebody asked.
pub(super) struct Search<'s, 'a> {
    build: &'s Build<'a>,
    /// The first function of each name.
    names: OnceLock<FxHashMap<&'s str, FunctionId>>,
    callees: Vec<OnceLock<Vec<FunctionId>>>,
}

impl<'s, 'a> Search<'s, 'a> {
    pub(super) fn new(build: &'s Build<'a>) -> Self {
        let callees = build.map.functions.iter().map(|_| OnceLock::new()).collect();
        Search { build, names: OnceLock::new(), callees }
    }

    /// The functions of the build that one calls or jumps to, ordered.
    fn callees(&self, function: FunctionId) -> &[FunctionId] {
        self.callees[function].get_or_init(|| {
            let build = self.build;
            let sites = build.code[function].ranges.iter().flat_map(|code| code.sites.leaving());
            let branches = sites.filter(|site| site.usage == Use::Branch);
            let called = branches.filter_map(|site| match build.map.resolve(&build.image, &site) {
                Target::Function(id, 0, 0) if id != function => Some(id),
                // A library may call its own functions through a stub.
                Target::Stub(Word::Symbol(name, 0)) => self.names().get(name.as_str()).copied(),
                _ => None,
            });
            called.collect::<BTreeSet<FunctionId>>().into_iter().collect()
        })
    }

    fn names(&self) -> &FxHashMap<&'s str, FunctionId> {
        self.names.get_or_init(|| {
            let functions = self.build.map.functions.iter().enumerate().rev();
            functions.flat_map(|(id, function)| function.names.iter().map(move |name| (*name, id))).collect()
        })
    }
}
