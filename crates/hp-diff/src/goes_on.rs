//! Whether a thread that is inside a replaced function may go on there while calls already lead to the new one.
//!
//! A patch takes effect when no thread is in an old function. One that never leaves the stack, a main loop, makes that
//! impossible. `hp apply --relaxed` then leaves such a thread where it is; but from then on old code of one function runs
//! beside new code of all others. That is allowed only where this module gives its word, which stands in the patch.
//!
//! What must hold, and what would go wrong:
//! - *Layouts and values.* No finding about types, variables, constants, numbers or releases, none accepted, and no
//!   variable is added: the new functions may write what the old one reads.
//! - *Locks.* Old and new function make the same calls, system calls and atomic accesses in the same order: else the one
//!   might hold a lock that the other does not know of.
//! - *Entry.* Nothing in the old function leads to its own entry. A loop that begins there would go on in the new function
//!   with the old one's frame.
//! - *Contracts.* Nothing else is replaced. What one function expects of another no tool can see: perhaps a check has
//!   moved from the one to the other. So a person must say that, with `--allow HP0507=FUNCTION`.
//!
//! With that acceptance there is still something to prove of each replaced function that the old one calls, if only through
//! others: the compiler may have shaped a call that it sees both ends of. The callee must be called by the standard
//! convention, and the new one must leave alone all registers that the old one left alone (`gcc -fipa-ra`).
//!
//! Not followed are calls through pointers and through other modules: there the compiler knows nothing of the callee.

use hp_pack::{Patch, Role, SectionKind};
use rustc_hash::FxHashSet;

use crate::Options;
use crate::arch::{self, Use};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, Target};
use crate::explain::{Effects, never_returns};
use crate::finding::{Code, Finding};
use crate::image::Word;

/// Why not, for each replaced function of the old build; nothing where the word is given.
pub(crate) type Words = Vec<(FunctionId, Option<String>)>;

/// What the word is given on.
pub(crate) struct Evidence<'e, 'a> {
    pub old: &'e Build<'a>,
    pub new: &'e Build<'a>,
    pub pairs: &'e Correlation,
    pub changes: &'e Changes,
    pub findings: &'e [Finding],
}

/// Gives the word for functions of `patch`, or says why not; and what the user should know of it.
pub(crate) fn words(evidence: &Evidence<'_, '_>, patch: &mut Patch, options: &Options) -> (Words, Vec<Finding>) {
    let (mut words, mut findings) = (Words::new(), Vec::new());
    let common = evidence.common(patch);
    let effects = Effects::new(evidence.old, evidence.new, evidence.pairs, evidence.changes);
    for &(f, g, _) in &evidence.changes.functions {
        let function = &evidence.old.map.functions[f];
        let subject = function.qualified_name();
        let asked = |(code, of): &(Code, Option<String>)| {
            *code == Code::GoesOn && of.as_ref().is_none_or(|name| *name == subject)
        };
        let accepted = options.allow.iter().any(asked);
        let own = || evidence.own(f, &effects, g);
        let why_not = common.clone().or_else(own).or_else(|| evidence.contract(f, accepted));
        if accepted || never_returns(evidence.old, f) {
            let message = match &why_not {
                None => "a thread that is inside never has to leave it: with --relaxed it goes on in the old code while calls lead to the new".to_owned(),
                Some(why) => format!("a thread that is inside may never leave it, and must not go on in the old code: {why}"),
            };
            let accepted = accepted && why_not.is_none();
            findings.push(Finding { accepted, ..Finding::new(Code::GoesOn, subject, message) });
        }
        let record = patch.functions.iter_mut().find(|record| record.old_address == function.address());
        if let Some(Role::Entry(entry)) = record.map(|record| &mut record.role) {
            entry.may_go_on = why_not.is_none();
            words.push((f, why_not));
        }
    }
    (words, findings)
}

impl Evidence<'_, '_> {
    /// What stands against every function of the patch.
    fn common(&self, patch: &Patch) -> Option<String> {
        // What these say holds in old and new code alike.
        let plain = [Code::CompilersDiffer, Code::FlagsDiffer, Code::ImmediateAddress, Code::LiteralEnd];
        let finding = self.findings.iter().find(|f| f.accepted || !plain.contains(&f.code));
        if let Some(finding) = finding {
            return Some(format!("of {} of {}", finding.code, finding.subject));
        }
        let adds = [SectionKind::Data, SectionKind::Bss].iter().any(|kind| patch.section(*kind).is_some());
        let constants = !self.changes.constants.is_empty() || !self.changes.variables.is_empty();
        match (adds, constants) {
            (true, _) => Some("new code has variables that the old code does not know".to_owned()),
            (_, true) => Some("a named constant or variable changed".to_owned()),
            _ => None,
        }
    }

    /// What stands against one function, whatever else is replaced.
    fn own(&self, f: FunctionId, effects: &Effects<'_, '_>, g: FunctionId) -> Option<String> {
        if self.leads_to_its_entry(f) {
            return Some("it calls itself, or has a loop that begins at its entry".to_owned());
        }
        let differ = !effects.are_the_same((f, g));
        differ.then(|| "its calls, and so perhaps its locks, are not the same as before".to_owned())
    }

    fn leads_to_its_entry(&self, f: FunctionId) -> bool {
        let code = &self.old.code[f];
        let branches = code.ranges.iter().flat_map(|c| &c.sites).filter(|s| s.usage == Use::Branch).map(|s| s.target);
        let mut targets = branches.chain(code.tables.iter().flat_map(|t| t.targets.iter().copied()));
        let start = self.old.map.functions[f].address();
        // The jump lies at the entry, or behind an instruction of four bytes there.
        targets.any(|target| (start..=start + 4).contains(&target))
    }

    /// What stands against running old `f` beside the other new functions.
    fn contract(&self, f: FunctionId, accepted: bool) -> Option<String> {
        let others: FxHashSet<FunctionId> = self.changes.functions.iter().map(|c| c.0).filter(|o| *o != f).collect();
        let name = |id: FunctionId| self.old.map.functions[id].qualified_name();
        let (reached, _) = reached(self.old, f);
        let mut called: Vec<FunctionId> = reached.into_iter().filter(|id| others.contains(id)).collect();
        called.sort_unstable();
        if accepted {
            let shaped = called.into_iter().find_map(|id| Some((id, self.shaped_call(id)?)));
            return shaped.map(|(id, why)| format!("it calls {}, which is replaced too, and {why}", name(id)));
        }
        match (called.first(), others.iter().min()) {
            (Some(callee), _) => Some(format!("it calls {}, which is replaced too (HP0507)", name(*callee))),
            (None, Some(other)) => Some(format!("{} is replaced too (HP0507)", name(*other))),
            (None, None) => None,
        }
    }

    /// Why old callers of a function may not fit its new code, although both take the same arguments.
    fn shaped_call(&self, f: FunctionId) -> Option<&'static str> {
        let g = self.pairs.functions.new_of(f)?;
        if self.old.map.functions[f].local && !is_address_taken(self.old, f) && !is_plain(self.old, f) {
            return Some("the compiler may have changed how it is called");
        }
        let (Some(before), now) = (clobbered(self.old, f), clobbered(self.new, g)) else { return None };
        let kept = now.is_some_and(|now| now.is_subset(&before));
        (!kept).then_some("its new code may change registers that its callers count on")
    }
}

/// GCC makes a local function with another convention a clone with another name; others do not say it.
fn is_plain(build: &Build<'_>, f: FunctionId) -> bool {
    let gnu = build.image.compilers.iter().all(|compiler| compiler.starts_with("GCC") || compiler.starts_with("GNU"));
    gnu && !build.image.compilers.is_empty() && !build.map.functions[f].name().contains('.')
}

fn is_address_taken(build: &Build<'_>, f: FunctionId) -> bool {
    let entry = build.map.functions[f].address();
    let sites = build.code.iter().flat_map(|c| &c.ranges).flat_map(|c| &c.sites);
    let in_code = sites.into_iter().any(|site| site.usage == Use::Address && site.target == entry);
    in_code || build.image.words.values().any(|word| matches!(word, Word::Address(a) if *a == entry))
}

/// The functions that a function calls directly, and those that they call, with itself; and whether nothing else is called.
fn reached(build: &Build<'_>, f: FunctionId) -> (FxHashSet<FunctionId>, bool) {
    let (mut seen, mut closed, mut next) = (FxHashSet::default(), true, vec![f]);
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        let branches = build.code[id].ranges.iter().flat_map(|c| &c.sites).filter(|s| s.usage == Use::Branch);
        for site in branches {
            match build.map.resolve(&build.image, &site) {
                Target::Function(callee, ..) => next.push(callee),
                _ => closed = false,
            }
        }
    }
    (seen, closed)
}

/// The registers that a call of a function may change as far as its code shows; `None`: all that the convention allows.
fn clobbered(build: &Build<'_>, f: FunctionId) -> Option<FxHashSet<u32>> {
    let (functions, closed) = reached(build, f);
    let mut all = FxHashSet::default();
    for range in functions.iter().flat_map(|id| &build.map.functions[*id].ranges) {
        all.extend(arch::changed_registers(range.bytes)?);
    }
    closed.then_some(all)
}
