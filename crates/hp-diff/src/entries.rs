//! Rehearsal: which functions of a build could be redirected, if a fix changed them?

use std::collections::BTreeMap;
use std::path::Path;

use crate::Error;
use crate::build::Build;
use crate::detour;
use crate::finding::Code;
use crate::image::Image;
use crate::input::{DebugPlaces, Input};
use crate::unwind::Rows;

/// How many functions of a build can be redirected, and what forbids the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// All functions that have unwind rows.
    pub functions: usize,
    /// Names of those that cannot be redirected, by the finding that a patch of them would meet.
    pub refused: BTreeMap<Code, Vec<String>>,
}

/// Plans the redirection of every function of a build. Functions without unwind rows (start-up code and the like)
/// are left out.
///
/// # Errors
/// [`Error`] where the file cannot be read or is no input for this tool.
pub fn entries(path: &Path, places: &DebugPlaces) -> Result<Entries, Error> {
    let input = Input::open(path, None, places)?;
    let build = Build::new(Image::parse(&input)?, None);
    let all = 0..build.map.functions.len();
    let (rows, incoming) = (Rows::read(&build.image), detour::incoming(&build, all.clone()));
    let mut found = Entries::default();
    let has_rows = |f: &usize| build.map.functions[*f].ranges.iter().all(|r| rows.at(r.address).is_some());
    for function in all.filter(has_rows) {
        found.functions += 1;
        let Err(finding) = detour::plan(&build, function, &rows, &incoming) else {
            continue;
        };
        found.refused.entry(finding.code).or_default().push(finding.subject);
    }
    Ok(found)
}
