//! Functions that never return to their caller.
//!
//! Behind a call of such a function a compiler puts whatever comes next, which does not run then: a way that is followed must not go on
//! there. What counts is what the code says: nothing in it returns, and where it leaves for another function, that one never
//! returns either. Of other modules only these functions of the C and C++ libraries count, of which their standards say so.

use rustc_hash::FxHashSet;

use crate::arch::{self, Use};
use crate::build::FunctionCode;
use crate::entity::{FunctionId, Map};
use crate::image::{Image, Word};

/// C11, 7.22.4 and 7.13.2; POSIX.1-2017; LSB 5.0, 8.1 and 8.5; Itanium C++ ABI, 2.4.1 and 2.5.
const IMPORTS: [&str; 18] = [
    "abort",
    "exit",
    "_exit",
    "_Exit",
    "quick_exit",
    "longjmp",
    "_longjmp",
    "siglongjmp",
    "__longjmp_chk",
    "pthread_exit",
    "__assert_fail",
    "__stack_chk_fail",
    "__chk_fail",
    "__fortify_fail",
    "__cxa_throw",
    "__cxa_rethrow",
    "_Unwind_Resume",
    "_ZSt9terminatev",
];

/// The addresses, of functions and stubs, whose calls never return.
pub(crate) fn find(map: &Map<'_>, image: &Image<'_>, code: &[FunctionCode]) -> FxHashSet<u64> {
    let imported = image.stubs.iter().filter(|(_, slot)| match image.words.get(slot) {
        Some(Word::Symbol(name, 0)) => IMPORTS.contains(&name.split('@').next().unwrap_or_default()),
        _ => false,
    });
    let mut found: FxHashSet<u64> = imported.map(|(stub, _)| *stub).collect();
    let stays = |id: &FunctionId| code[*id].ranges.iter().all(|code| !code.may_return);
    let mut perhaps: Vec<(FunctionId, Vec<u64>)> =
        (0..code.len()).filter(stays).map(|id| (id, goes_to(map, &code[id], id))).collect();
    // Of those that call one another it is so unless something else speaks against it.
    found.extend(perhaps.iter().map(|(id, _)| map.functions[*id].address()));
    loop {
        let before = perhaps.len();
        perhaps.retain(|(id, targets)| {
            let endless = targets.iter().all(|target| found.contains(target));
            if !endless {
                found.remove(&map.functions[*id].address());
            }
            endless
        });
        if perhaps.len() == before {
            return found;
        }
    }
}

/// Where code goes on for good: by jumps that leave the function, and by calls behind which there is nothing.
fn goes_to(map: &Map<'_>, code: &FunctionCode, id: FunctionId) -> Vec<u64> {
    let function = &map.functions[id];
    let leaves = function.ranges.iter().zip(&code.ranges).flat_map(|(range, code)| {
        let inside = |at: u64| function.ranges.iter().any(|r| (r.address..r.end()).contains(&at));
        code.sites.iter().filter(move |site| site.usage == Use::Branch).filter(move |site| {
            let call = arch::is_call(range.bytes, site.instruction);
            let last = site.end as usize == range.bytes.len();
            if call { last } else { !inside(site.target) }
        })
    });
    leaves.map(|site| site.target).collect()
}
