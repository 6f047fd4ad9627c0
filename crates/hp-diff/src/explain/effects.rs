//! What a function does that others may wait for: its calls, system calls and atomic accesses, in order.

use super::tokens::{Side, Token};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::FunctionId;

/// Compares functions by their calls.
pub(crate) struct Effects<'c, 'a> {
    old: Side<'c, 'a>,
    new: Side<'c, 'a>,
}

impl<'c, 'a> Effects<'c, 'a> {
    pub(crate) fn new(
        old: &'c Build<'a>,
        new: &'c Build<'a>,
        pairs: &'c Correlation,
        changes: &'c Changes,
    ) -> Effects<'c, 'a> {
        Effects { old: Side::old(old, pairs, changes), new: Side::new(new, pairs) }
    }

    /// Whether both call the same, enter the kernel and access memory atomically in the same order.
    pub(crate) fn are_the_same(&self, (f, g): (FunctionId, FunctionId)) -> bool {
        let keys = |side: &Side<'_, '_>, id| side.tokens(id).iter().filter(|t| is_effect(t)).map(Token::key).collect();
        let (before, now): (Vec<String>, Vec<String>) = (keys(&self.old, f), keys(&self.new, g));
        before == now
    }
}

fn is_effect(token: &Token) -> bool {
    let masked = token.masked.strip_prefix("bnd ").or(token.masked.strip_prefix("notrack ")).unwrap_or(&token.masked);
    let word = masked.split(' ').next().unwrap_or_default();
    match word {
        "call" | "syscall" | "int" | "sysenter" | "lock" | "xacquire" | "xrelease" | "xbegin" | "xend" => true,
        "mfence" | "lfence" | "sfence" => true,
        // With memory it is atomic without saying so.
        "xchg" => masked.contains('['),
        "jmp" => leaves(token, masked),
        word => word.starts_with('j') && leaves(token, masked),
    }
}

/// A jump that is no jump within the function.
fn leaves(token: &Token, masked: &str) -> bool {
    match token.leads.iter().find(|lead| lead.site.usage == crate::arch::Use::Branch) {
        Some(lead) => lead.key != "local",
        None => masked.contains('['),
    }
}

/// Whether nothing in a function returns from it or goes on elsewhere for good.
pub(crate) fn never_returns(build: &Build<'_>, f: FunctionId) -> bool {
    let function = &build.map.functions[f];
    function.ranges.iter().zip(&build.code[f].ranges).all(|(range, code)| {
        let leaves = code.sites.iter().filter(|site| site.usage == crate::arch::Use::Branch).any(|site| {
            let inside = build.map.function_at(site.target).is_some_and(|(id, ..)| id == f);
            !inside && !crate::arch::is_call(range.bytes, site.instruction)
        });
        !leaves && !crate::arch::returns(range.bytes)
    })
}
