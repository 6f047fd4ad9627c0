//! A changed structure, where no debug information tells of it.
//!
//! When a structure grows, code that uses what lies behind reaches further into it and is the same otherwise. A fix
//! that uses another member looks alike, so only the user can tell the two apart; but what can be seen must be said.

use crate::arch;
use crate::build::Build;
use crate::compare::Changes;
use crate::finding::{Code, Finding};

/// Functions that differ only in how far into objects they reach.
pub(crate) fn findings(old: &Build<'_>, new: &Build<'_>, changes: &Changes) -> Vec<Finding> {
    let mut found = Vec::new();
    for (f, g, _) in &changes.functions {
        let (function, twin) = (&old.map.functions[*f], &new.map.functions[*g]);
        if function.ranges.len() != twin.ranges.len() {
            continue;
        }
        let ranges = function.ranges.iter().zip(&twin.ranges).map(|(a, b)| arch::displaced(a.bytes, b.bytes));
        let Some(places) = ranges.collect::<Option<Vec<_>>>().map(|ranges| ranges.concat()) else { continue };
        let Some(first) = places.first() else { continue };
        let more = match places.len() {
            1 => String::new(),
            n => format!(", and {} more", n - 1),
        };
        let signed = |n: i64| format!("{}{:#x}", if n < 0 { "-" } else { "" }, n.unsigned_abs());
        let message = format!(
            "it differs only in how far into objects it reaches, as if a structure had changed: {} became {} at +{:#x}{more}",
            signed(first.old),
            signed(first.new),
            first.at
        );
        found.push(Finding::new(Code::LayoutSuspected, function.name(), message));
    }
    found
}
