//! What the judge has to say: what it proved, in numbers, or what it could not.

use std::collections::BTreeMap;

/// A reason why the patch is not proven: it is wrong, or nothing shows that it is right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Fault {
    /// Which part of the proof failed: `relocation`, `record`, `code`, `data`, `thunk`, `unwind`, `left-out`, ...
    pub part: &'static str,
    /// Where, as a person finds it: a function or section and an offset.
    pub place: String,
    /// What is wrong or not proven there.
    pub what: String,
}

impl Fault {
    pub(crate) fn new(part: &'static str, place: impl Into<String>, what: impl Into<String>) -> Fault {
        Fault { part, place: place.into(), what: what.into() }
    }
}

/// What was looked at and found right.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Proof {
    /// Load addresses at which the patch was laid over its base.
    pub layouts: usize,
    /// Replaced functions whose new code equals that of the new build.
    pub replaced: usize,
    /// New functions that come along.
    pub added: usize,
    /// Instructions compared one by one.
    pub instructions: usize,
    /// Bytes of code in these.
    pub code_bytes: u64,
    /// Bytes of data that the patch brings, compared.
    pub data_bytes: u64,
    /// References that reach the same entity, by kind of entity.
    pub references: BTreeMap<Kind, usize>,
    /// Thunks whose every instruction is right.
    pub thunks: usize,
    /// Unwind rows compared.
    pub unwind_rows: usize,
    /// Bytes of the base that are redirected; the patch changes no others.
    pub redirected_bytes: u64,
    /// Functions that are the same in both builds; `None` if not asked for.
    pub unchanged: Option<usize>,
    /// Functions that changed and are left out for a reason that the manifest gives.
    pub left_out: usize,
}

impl Proof {
    pub(crate) fn count(&mut self, kind: Kind) {
        *self.references.entry(kind).or_default() += 1;
    }

    /// All references, of every kind.
    pub fn references(&self) -> usize {
        self.references.values().sum()
    }
}

/// What a reference reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A function's entry.
    Function,
    /// A place inside a function: a label, an entry of a jump table.
    Label,
    /// A variable.
    Variable,
    /// A named constant.
    Constant,
    /// A constant without a name: a text, a number, a table.
    Literal,
    /// A function or variable of another module, through a stub, a slot or a copy.
    Import,
    /// A slot of the global offset table that holds an address of this image.
    Slot,
    /// Thread-local storage.
    ThreadLocal,
    /// A symbol of the linker, such as `_end`.
    Marker,
    /// A number in code with a fixed address that is no address.
    Number,
}

/// The judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// What was proven. Complete only if there are no faults.
    pub proof: Proof,
    /// What was not, ordered by place.
    pub faults: Vec<Fault>,
}

impl Report {
    /// True if everything was proven.
    pub fn holds(&self) -> bool {
        self.faults.is_empty()
    }
}
