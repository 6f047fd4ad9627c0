//! Recipes: how to build one program in its old and new versions. The fields are explained
//! in `testdata/recipes/README.md`.

use crate::again::Variant;
use anyhow::{Context, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One source package and the fixes of it that make a pair.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) needs: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) configure: Vec<String>,
    pub(crate) make: Vec<String>,
    pub(crate) binary: String,
    pub(crate) tools: Vec<String>,
    pub(crate) fixes: Vec<Fix>,
    /// What is built once more with nothing changed that matters.
    #[serde(default)]
    pub(crate) again: Vec<Variant>,
    /// Digest of the recipe's text.
    #[serde(skip)]
    pub(crate) digest: String,
}

/// One fix, which NEW has and OLD has not.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fix {
    pub(crate) case: String,
    pub(crate) patch: String,
    pub(crate) files: Vec<String>,
}

/// Reads every `*.json` of a folder, ordered by name.
pub(crate) fn load_all(folder: &Path) -> Result<Vec<Recipe>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.iter().map(|path| load(path).with_context(|| format!("recipe {}", path.display()))).collect()
}

fn load(path: &Path) -> Result<Recipe> {
    let text = fs::read(path)?;
    let mut recipe: Recipe = serde_json::from_slice(&text)?;
    recipe.digest = hex(&Sha256::digest(&text));
    Ok(recipe)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
