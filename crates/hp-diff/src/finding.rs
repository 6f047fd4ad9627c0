//! Findings: coded facts about a pair of builds. An error-level finding means no patch.
//!
//! The table below is the one place where codes are defined; `hp explain CODE` prints it
//! and `docs/FINDINGS.md` is generated from it.

use serde::Serialize;

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// A patch is made; a person should look.
    Warning,
    /// No patch, unless the user accepts the code.
    Error,
}

/// One coded fact: what, where, why it matters and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Finding {
    /// The code, such as `HP0101`.
    pub code: Code,
    /// Its level, as [`Code::level`] gives it.
    pub level: Level,
    /// What it is about: a function, type, object or file. `--allow CODE=SUBJECT` matches it.
    pub subject: String,
    /// What was found, where, in one sentence.
    pub message: String,
    /// The user accepted this error.
    pub accepted: bool,
}

impl Finding {
    /// A finding of `code`'s own level, not accepted.
    pub fn new(code: Code, subject: impl Into<String>, message: impl Into<String>) -> Finding {
        Finding { code, level: code.level(), subject: subject.into(), message: message.into(), accepted: false }
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $level:ident, $title:literal, $help:literal;)*) => {
        /// The code of a finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $(#[doc = $title] $name,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];
            /// The code as users write it.
            pub const fn as_str(self) -> &'static str { match self { $(Code::$name => $code),* } }
            /// The level that findings of this code have.
            pub const fn level(self) -> Level { match self { $(Code::$name => Level::$level),* } }
            /// A title of a few words.
            pub const fn title(self) -> &'static str { match self { $(Code::$name => $title),* } }
            /// Why it matters and what to do.
            pub const fn help(self) -> &'static str { match self { $(Code::$name => $help),* } }
        }
    };
}

codes! {
    LayoutChanged = "HP0401", Error, "a type's layout changed",
        "Objects of this type that live in the running process have the old layout; code with the new layout would read and write the wrong bytes. Restart the program, or change the fix so that the type keeps its layout.";
    LayoutUnproven = "HP0402", Error, "layouts could not be compared",
        "At least one build has no debug information, so nothing shows that types kept their layout. Build with -g or give the separate debug files; if you know that no type changed, accept with --allow HP0402.";
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Code {
    type Err = String;
    fn from_str(s: &str) -> Result<Code, String> {
        Code::ALL
            .iter()
            .copied()
            .find(|c| c.as_str().eq_ignore_ascii_case(s))
            .ok_or_else(|| format!("{s} is not a finding code"))
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}
