//! The code of a patch beside the code that it replaces, from the patch file and its base.
//!
//! A patch is a relocatable object, so it is laid out like any other. What lies in `.hpatch.base` is at a link-time address of
//! the base: there the base's own entities answer. Without the base only the new code can be shown.

use std::path::Path;

use hp_pack::{Patch, Place, Role};
use rustc_hash::FxHashMap;

use super::cause::{instruction, rows_of};
use super::tokens::{Base, Side, Token};
use super::{Row, RowKind, align, deadline};
use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::FunctionId;
use crate::image::Image;
use crate::input::Input;
use crate::source::SourceMap;
use crate::{Error, Options};

/// The code of one function of a patch.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PatchedCode {
    /// Its name in the patch.
    pub name: String,
    /// The old code, if the base was given, beside the new.
    pub rows: Vec<Row>,
}

/// Shows the code of every function that `patch`, read from `file`, replaces or adds; beside the code of `base`, if given.
///
/// # Errors
/// [`Error`] where a file cannot be read, or `base` is not the build that the patch is for.
pub fn patched_code(
    file: &Path,
    patch: &Patch,
    base: Option<&Path>,
    options: &Options,
) -> Result<Vec<PatchedCode>, Error> {
    let input = Input::open(file, None, &options.places)?;
    let new = Build::new(Image::parse(&input)?, None);
    let Some(base) = base else { return Ok(shown(&new, patch, None)) };
    let old_input = Input::open(base, options.old_debug.as_deref(), &options.places)?;
    let image = Image::parse(&old_input)?;
    if image.build_id != patch.base.build_id {
        let reason = "is not the build that the patch is for: its build ID is another".into();
        return Err(Error::Input { path: base.to_owned(), reason });
    }
    let numbers = image.fixed_address.then_some(image.start..image.span);
    let old = Build::new(image, numbers);
    Ok(shown(&new, patch, Some(&old)))
}

fn shown(new: &Build<'_>, patch: &Patch, old: Option<&Build<'_>>) -> Vec<PatchedCode> {
    let (pairs, changes) = (Correlation::default(), Changes::default());
    let before = old.map(|build| Side::by_name(build, &pairs, &changes));
    let base = new.image.sections.iter().find(|s| s.name == ".hpatch.base").map(|s| s.address..s.end());
    let replaced = replaced(new, patch);
    let names = |f: FunctionId| old.map(|o| o.map.functions[f].name().to_owned());
    let now = Side::of_patch(new, &pairs, base.map(|range| Base { range, side: before.as_ref() }));
    let olds: Vec<FunctionId> = replaced.values().filter_map(|at| Some(old?.map.function_at(*at)?.0)).collect();
    let source = old.map_or_else(SourceMap::default, |o| {
        let ranges = olds.iter().flat_map(|f| o.map.functions[*f].ranges.iter().map(|r| r.address..r.end()));
        SourceMap::read(&o.image.debug, ranges.collect())
    });
    let functions = (0..new.map.functions.len()).filter(|g| {
        let section = new.image.section_at(new.map.functions[*g].address());
        section.is_some_and(|s| s.name == ".text")
    });
    let mut all: Vec<PatchedCode> = functions
        .map(|g| {
            let twin = replaced.get(&g).and_then(|at| Some(old?.map.function_at(*at)?.0));
            let tokens = now.tokens(g);
            let name = twin.and_then(names).unwrap_or_else(|| new.map.functions[g].name().to_owned());
            let rows = match (twin, &before) {
                (Some(f), Some(before)) => beside((before, f, &source), (&now, g, &tokens)),
                _ => tokens.iter().map(|t| added(t, &SourceMap::default())).collect(),
            };
            PatchedCode { name, rows }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Which function of the patch replaces the one at which address of the base.
fn replaced(new: &Build<'_>, patch: &Patch) -> FxHashMap<FunctionId, u64> {
    let text = new.image.sections.iter().find(|s| s.name == ".text").map_or(0, |s| s.address);
    let entries = patch.functions.iter().filter_map(|record| match record.role {
        Role::Entry(entry) => Some((patch.symbols.get(entry.new_symbol as usize)?, record.old_address)),
        Role::Fragment(_) => None,
    });
    let inside = entries.filter(|(symbol, _)| matches!(symbol.place, Place::Payload(_)));
    inside.filter_map(|(symbol, old)| Some((new.map.function_at(text + symbol.value)?.0, old))).collect()
}

fn beside(
    (before, f, source): (&Side<'_, '_>, FunctionId, &SourceMap),
    (now, g, new): (&Side<'_, '_>, FunctionId, &[Token<'_>]),
) -> Vec<Row> {
    let old = before.tokens(f);
    let pairs = align::align(&old, new, usize::MAX, deadline());
    let misled = align::misled(&pairs, (&old, new), (before, now), (f, g));
    rows_of(&pairs, &misled, (&old, source), (new, &SourceMap::default()))
}

fn added(token: &Token<'_>, source: &SourceMap) -> Row {
    Row { kind: RowKind::Added, old: None, new: Some(instruction(token, source)) }
}
