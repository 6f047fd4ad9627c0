//! Why a function differs, and its old and new code side by side.
//!
//! Each instruction becomes a token: its text, with every field that leads somewhere replaced by *what it leads to*,
//! named alike in both builds (`tokens`). Addresses never take part, so code that only moved is equal. The two lists of
//! tokens are aligned by Myers' algorithm (`align`). A branch within the function, or a jump table, has no name: it is
//! equal if both lead to places that are aligned with each other.
//!
//! The cause is derived from the rows that differ (`cause`), from the line table and from the inlined functions that the
//! debug information names. It goes into the patch, so it must not depend on time: long functions are aligned around the
//! first difference only. The whole of a function, for people, is aligned with a deadline; what is left then is shown
//! as removed and added.
//!
//! Limits: the cause says where code differs, not what somebody changed in the source; a change in one place moves
//! registers in others.

mod align;
mod cause;
mod effects;
mod patched;
mod tokens;

pub(crate) use cause::{Cause, Causes};
pub(crate) use effects::{Effects, never_returns};
pub use patched::{PatchedCode, patched_code};

use std::time::{Duration, Instant};

use crate::source::Place;

/// How long one function may be aligned for people.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a function differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Instructions of the function itself differ.
    OwnCode,
    /// Instructions that come from a function inlined into it differ.
    InlinedCallee,
    /// The code is the same; data that it reads or refers to differs, or is another.
    ChangedConstant,
    /// The code is the same; it calls or refers to another function.
    CalleeReplaced,
    /// The same instructions, placed, padded or encoded in another way.
    CompilerNoise,
    /// Only line numbers that calls report differ.
    LineNumbers,
    /// Only one of the builds has the function.
    OneBuild,
}

impl Reason {
    /// As reports and manifests have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::OwnCode => "own-code",
            Reason::InlinedCallee => "inlined-callee",
            Reason::ChangedConstant => "changed-constant",
            Reason::CalleeReplaced => "callee-replaced",
            Reason::CompilerNoise => "compiler-noise",
            Reason::LineNumbers => "line-numbers",
            Reason::OneBuild => "one-build",
        }
    }
}

/// An instruction, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Instruction {
    /// Distance from the start of the function, or of its cold part, in bytes.
    pub offset: u32,
    /// Lies in a cold part.
    pub cold: bool,
    /// The instruction with names in the place of addresses.
    pub text: String,
    /// The source line that it comes from, if debug information says.
    pub place: Option<Place>,
    /// The innermost inlined function that it comes from.
    pub inlined: Option<String>,
}

/// The first difference of a function. One side is missing where instructions are only added or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct First {
    /// In the old build.
    pub old: Option<Instruction>,
    /// In the new build.
    pub new: Option<Instruction>,
}

/// Whether both sides of a row are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowKind {
    /// The same instruction, leading to the same.
    Same,
    /// Another instruction in its place, or one that leads elsewhere.
    Changed,
    /// Only in the old build.
    Removed,
    /// Only in the new build.
    Added,
}

/// One row of the side-by-side view.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    /// How the sides compare.
    pub kind: RowKind,
    /// The old build's instruction.
    pub old: Option<Instruction>,
    /// The new build's instruction.
    pub new: Option<Instruction>,
}

/// One function's old and new code, aligned.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Explanation {
    /// Name as in the symbol table.
    pub name: String,
    /// Why it differs.
    pub reason: Reason,
    /// The same in words.
    pub cause: String,
    /// All instructions, in order.
    pub rows: Vec<Row>,
}

/// When to stop aligning.
fn deadline() -> Option<Instant> {
    Instant::now().checked_add(PATIENCE)
}
