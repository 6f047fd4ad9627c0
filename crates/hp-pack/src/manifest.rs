//! The typed view of the JSON manifest: what a patch says about itself, for people and CI.
//!
//! Nothing in the manifest decides how a patch is applied.

use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of the patch.
    pub name: String,
    /// What it fixes: CVE ids or free words.
    #[serde(default)]
    pub fixes: Vec<String>,
    /// The old build.
    pub old: BuildInfo,
    /// The new build.
    pub new: BuildInfo,
    /// The tool and its version.
    pub tool: String,
    /// Every replaced or added function.
    pub functions: Vec<FunctionInfo>,
    /// Functions that changed and are not in the patch, each with its reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// Findings of level error that the user accepted, and every warning.
    #[serde(default)]
    pub findings: Vec<FindingInfo>,
}

/// One of the two builds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// File name without directories.
    pub file: String,
    /// GNU build ID in hexadecimal, empty if there is none.
    pub build_id: String,
}

/// One function of the patch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionInfo {
    /// Name as in the symbol table.
    pub name: String,
    /// `changed` or `added`; `line-only` where only line numbers differ and the function was asked for.
    pub change: String,
    /// Why, as one word: `own-code`, `inlined-callee`, `changed-constant`, `callee-replaced`, `compiler-noise`,
    /// `line-numbers`; `one-build` for an added function. Empty if not said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why, in words: `own code at +0x31 (resolve.c:412): ...`, `refers to table, which changed`, ...
    pub cause: String,
    /// Link-time address in the old build, 0 for an added function.
    pub old_address: u64,
    /// Size in the old build in bytes, all fragments; 0 for an added function.
    pub old_size: u64,
    /// Size in the new build in bytes, all fragments.
    pub new_size: u64,
    /// Source file, where known, and the line of the first difference after a colon: `resolve.c:412`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Of a replaced function: `yes` if a thread may go on inside the old one while calls already lead to the new one, else
    /// why not, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub goes_on: String,
}

/// A function that changed and that the patch leaves as it is. There can be hundreds beside a fix of one line, so this says no
/// more than which function and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Name as in the symbol table.
    pub name: String,
    /// Why: `line-only`, nothing but line numbers differs.
    pub change: String,
    /// Link-time address in the old build.
    pub old_address: u64,
}

/// A finding that the patch was made in spite of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingInfo {
    /// `HP0123`.
    pub code: String,
    /// `error` (accepted), `warning` or `note`.
    pub level: String,
    /// The function, type or file that it is about.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// True if it is an error that the user accepted.
    #[serde(default)]
    pub accepted: bool,
}
