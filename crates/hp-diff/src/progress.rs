//! How far a comparison has come.

use std::sync::Arc;

/// The stages of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Both builds are opened, with their debug files.
    Open,
    /// The layouts of all types are compared.
    Types,
    /// All code is decoded.
    Decode,
    /// Old entities are paired with new ones.
    Pair,
    /// Pairs are compared.
    Compare,
    /// The patch is made.
    Patch,
    /// Causes are found.
    Explain,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 7] =
        [Stage::Open, Stage::Types, Stage::Decode, Stage::Pair, Stage::Compare, Stage::Patch, Stage::Explain];

    /// What is being done, in a few words.
    pub const fn words(self) -> &'static str {
        match self {
            Stage::Open => "opening the builds",
            Stage::Types => "comparing types",
            Stage::Decode => "decoding",
            Stage::Pair => "pairing functions and data",
            Stage::Compare => "comparing functions and data",
            Stage::Patch => "making the patch",
            Stage::Explain => "looking for causes",
        }
    }
}

/// Is told when a stage begins. The default tells nobody.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Stage) + Send + Sync>>);

impl Progress {
    /// Calls `tell` at the start of each stage, on the thread that compares.
    pub fn new(tell: impl Fn(Stage) + Send + Sync + 'static) -> Progress {
        Progress(Some(Arc::new(tell)))
    }

    pub(crate) fn tell(&self, stage: Stage) {
        if let Some(tell) = &self.0 {
            tell(stage);
        }
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(told)" } else { "Progress(silent)" })
    }
}
