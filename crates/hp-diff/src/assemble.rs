//! The last stage: payload, detours, unwind rows and manifest become one patch.

use hp_pack::manifest::{BuildInfo, FindingInfo, FunctionInfo, LeftOut, Manifest};
use hp_pack::{Base, Patch, Place, SectionKind, Symbol, SymbolKind};
use rustc_hash::FxHashSet;

use crate::adjoin::Twins;
use crate::asks;
use crate::build::Build;
use crate::check;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::detour;
use crate::entity::{FunctionId, Target};
use crate::finding::{Finding, Level};
use crate::goes_on::Words;
use crate::identity;
use crate::image::Word;
use crate::judge::Judge;
use crate::layout::Variable;
use crate::payload::{self, Payload};
use crate::unwind::{Rows, Writer};
use crate::{Change, ChangeKind, Options};

/// A patch, and what was found while making it. It must not be used if there are errors.
pub(crate) struct Made {
    pub patch: Patch,
    pub findings: Vec<Finding>,
    /// New functions that it carries.
    pub copied: FxHashSet<FunctionId>,
}

/// Makes the patch of all changed functions.
pub(crate) fn patch(
    (old, new): (&Build<'_>, &Build<'_>),
    (pairs, changes, twins): (&Correlation, &Changes, &Twins),
    variables: &[Variable],
    options: &Options,
) -> Made {
    let mut payload = Payload::new(old, new, pairs, changes, twins);
    payload.close();
    payload.place(SectionKind::State, 1, &[0]);
    let state_symbol = payload.symbol(Symbol {
        name: "hpatch_state".into(),
        kind: SymbolKind::Object,
        place: Place::Payload(SectionKind::State),
        value: 0,
        size: 1,
        weak: false,
    });
    let (old_rows, new_rows) = (Rows::read(&old.image), Rows::read(&new.image));
    let mut writer = Writer::default();
    payload.unwind_rows((&old_rows, &new_rows), &mut writer);
    let incoming = detour::incoming(old, changes.functions.iter().map(|c| c.0));
    let mut context =
        detour::Context { rows: &old_rows, incoming: &incoming, writer: &mut writer, state_symbol, next_record: 0 };
    let mut functions = Vec::new();
    for &(f, g, _) in &changes.functions {
        if let Some(symbol) = payload.entry_symbol(g) {
            functions.extend(detour::redirect(&mut payload, old, f, symbol, &mut context).into_iter().flatten());
        }
    }
    let rows = writer.finish();
    if !rows.is_empty() {
        payload.place(SectionKind::EhFrame, 8, &rows);
    }

    identity::mark(&mut payload, new, variables);
    asks::name_calls(&mut payload, old, changes);

    let copied: FxHashSet<FunctionId> = payload.functions.iter().map(|f| f.0).collect();
    let users: Vec<String> = payload
        .functions
        .iter()
        .filter(|(g, _)| uses_thread_locals(new, *g))
        .map(|(g, _)| new.map.functions[*g].qualified_name())
        .collect();
    let mut findings = std::mem::take(&mut payload.findings);
    findings.extend(check::thread_local_layout(&Judge::new(old, new, pairs), &users));
    let literals = payload.literals();
    let mut patch = Patch {
        name: options.name.clone().unwrap_or_else(|| old.image.file_name.clone()),
        machine: hp_pack::EM_X86_64,
        counter: options.counter,
        base: Base {
            build_id: old.image.build_id.clone(),
            span: old.image.span,
            fixed_address: old.image.fixed_address,
        },
        sections: payload.sections(),
        symbols: payload.symbols,
        relocations: payload.relocations,
        functions,
        manifest: Vec::new(),
    };
    payload::fold(&mut patch, &literals);
    patch.canonicalize();
    Made { patch, findings, copied }
}

fn uses_thread_locals(new: &Build<'_>, g: FunctionId) -> bool {
    new.code[g].ranges.iter().any(|code| {
        code.thread_local
            || code.sites.iter().any(|s| matches!(new.map.resolve(&new.image, &s), Target::Slot(Word::Tls(..))))
    })
}

/// Where a function's first difference comes from: file and line, else the file alone, else nothing.
fn source(new: &Build<'_>, change: &Change) -> String {
    match change.first.new.as_ref().or(change.first.old.as_ref()).and_then(|i| i.place.as_ref()) {
        Some(place) => place.to_string(),
        None => {
            new.map.function_at(change.new_address).map(|f| new.map.functions[f.0].file.to_owned()).unwrap_or_default()
        }
    }
}

/// The manifest, as JSON.
pub(crate) fn manifest(
    (old, new): (&Build<'_>, &Build<'_>),
    changes: &[Change],
    copied: &FxHashSet<FunctionId>,
    findings: &[Finding],
    words: &Words,
    options: &Options,
) -> Vec<u8> {
    let info = |build: &Build<'_>| BuildInfo {
        file: build.image.file_name.clone(),
        build_id: build.image.build_id.iter().map(|b| format!("{b:02x}")).collect(),
    };
    let is_copied = |c: &&Change| {
        c.kind == ChangeKind::Changed
            || new.map.function_at(c.new_address).is_some_and(|(g, _, _)| c.new_size > 0 && copied.contains(&g))
    };
    let goes_on = |c: &Change| {
        let word = words.iter().find(|(f, _)| c.old_size > 0 && old.map.functions[*f].address() == c.old_address);
        word.map_or_else(String::new, |(_, why_not)| why_not.clone().unwrap_or_else(|| "yes".into()))
    };
    let info_of = |c: &Change| FunctionInfo {
        name: c.name.clone(),
        change: match c.kind {
            ChangeKind::Added => "added",
            ChangeKind::LineOnly => "line-only",
            _ => "changed",
        }
        .into(),
        reason: c.reason.as_str().into(),
        cause: c.cause.clone(),
        old_address: c.old_address,
        old_size: c.old_size,
        new_size: c.new_size,
        source: source(new, c),
        goes_on: goes_on(c),
    };
    let left_out = changes.iter().filter(|c| c.kind == ChangeKind::LineOnly && !is_copied(c)).map(|c| LeftOut {
        name: c.name.clone(),
        change: "line-only".into(),
        old_address: c.old_address,
    });
    let findings = findings.iter().map(|f| FindingInfo {
        code: f.code.to_string(),
        level: match f.level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        }
        .into(),
        subject: f.subject.clone(),
        message: f.message.clone(),
        accepted: f.accepted,
    });
    let manifest = Manifest {
        name: options.name.clone().unwrap_or_else(|| old.image.file_name.clone()),
        fixes: options.fixes.clone(),
        old: info(old),
        new: info(new),
        tool: concat!("hp ", env!("CARGO_PKG_VERSION")).into(),
        functions: changes.iter().filter(is_copied).map(info_of).collect(),
        left_out: left_out.collect(),
        findings: findings.collect(),
    };
    // Serialising strings and numbers into memory cannot fail.
    serde_json::to_vec(&manifest).unwrap_or_default()
}
