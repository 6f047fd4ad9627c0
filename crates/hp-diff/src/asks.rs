//! How the unwinder of a static program finds unwind rows.
//!
//! In a program that is linked with shared libraries the applier leads the unwinder's pointer slots to the rows of the
//! patch. A static program has none: there the unwinder (libgcc's or LLVM's) calls `_dl_find_object` or
//! `dl_iterate_phdr` directly. So the patch names each such call, and the applier leads it.
//!
//! Limits: the functions are known by name, so a stripped static program that raises exceptions is a finding.

use crate::arch::{Encoding, Use};
use crate::build::Build;
use crate::compare::Changes;
use crate::entity::FunctionId;
use crate::finding::{Code, Finding};
use crate::image::Image;
use crate::payload::Payload;
use hp_pack::SymbolKind;

/// What the applier knows a call by: this, and the name of the function that is called.
const PREFIX: &str = "hpatch.asks.";
const QUESTIONS: [&str; 2] = ["_dl_find_object", "dl_iterate_phdr"];
/// What raises exceptions in C++ and Rust.
const PERSONALITIES: [&str; 2] = ["__gxx_personality_v0", "rust_eh_personality"];

/// Names the calls of a static program's unwinder in the patch; a finding if they are not known and may be needed.
pub(crate) fn name_calls(payload: &mut Payload<'_, '_>, old: &Build<'_>, changes: &Changes) {
    if !is_static(&old.image) {
        return;
    }
    match calls(old, changes) {
        Ok(calls) => {
            for (question, at) in calls {
                payload.base_symbol(&format!("{PREFIX}{question}"), SymbolKind::Other, at, 4);
            }
        }
        Err(why) if may_raise(&old.image) => {
            let message = format!("it is linked statically with a runtime that raises exceptions, and {why}");
            payload.findings.push(Finding::new(Code::StaticUnwinder, &old.image.file_name, message));
        }
        Err(_) => {}
    }
}

/// A static program that can lie anywhere still has a table of dynamic symbols: its empty first one, and weak ones.
fn is_static(image: &Image<'_>) -> bool {
    image.imported.iter().all(|name| name.is_empty() || image.weak.contains(name))
}

fn may_raise(image: &Image<'_>) -> bool {
    let tables = image.sections.iter().any(|s| s.name == ".gcc_except_table");
    let named = image.symbols.iter().any(|s| s.evidence.has_name());
    tables && (!named || image.symbols.iter().any(|s| PERSONALITIES.contains(&s.name)))
}

/// Every call of the two functions: which, and where its distance lies. The error says what is not known.
fn calls(old: &Build<'_>, changes: &Changes) -> Result<Vec<(&'static str, u64)>, String> {
    let (mut found, mut asked) = (Vec::new(), false);
    for question in QUESTIONS {
        let Some(id) = old.map.functions.iter().position(|f| f.names.contains(&question)) else { continue };
        let entry = old.map.functions[id].address();
        for (caller, code) in old.code.iter().enumerate().filter(|(caller, _)| *caller != id) {
            for (range, sites) in old.map.functions[caller].ranges.iter().zip(&code.ranges) {
                for site in sites.sites.iter().filter(|site| site.target == entry) {
                    let is_call = site.usage == Use::Branch && site.encoding == Encoding::PcRelative && site.width == 4;
                    let at = range.address + u64::from(site.offset);
                    let opcode = old.image.bytes(at.wrapping_sub(1), 1);
                    let name = old.map.functions[caller].name();
                    let named = is_call && matches!(opcode, Some([0xe8 | 0xe9])) && !changed(changes, caller);
                    match (named, is_unwinder(name)) {
                        (true, unwinds) => {
                            asked |= unwinds;
                            found.push((question, at));
                        }
                        (false, true) => return Err(format!("{name} uses {question} in another way")),
                        // Kept for libraries that a static program may open: they bring an unwinder of their own.
                        (false, false) => {}
                    }
                }
            }
        }
    }
    if asked { Ok(found) } else { Err("no call by which it looks for unwind rows is known".to_owned()) }
}

fn changed(changes: &Changes, function: FunctionId) -> bool {
    changes.functions.iter().any(|change| change.0 == function)
}

/// libgcc's search for rows, or one of the functions of LLVM's library.
fn is_unwinder(name: &str) -> bool {
    name.starts_with("_Unwind_Find_FDE") || name.contains("libunwind")
}
