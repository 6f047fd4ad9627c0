//! Exit codes, and which one wins where there are several targets.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done, for at least one target.
    Done,
    /// 1: refused, nothing changed.
    Refused,
    /// 2: bad usage, unreadable or malformed input, missing rights.
    Unusable,
    /// 3: nothing to do.
    Nothing,
    /// 4: no safe point within the timeout.
    Busy,
}

impl Exit {
    /// The process's exit code.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Unusable => 2,
            Exit::Nothing => 3,
            Exit::Busy => 4,
        }
    }

    /// The exit of a command with several targets: the worst, in the order 2, 1, 4; else done if one was.
    pub(crate) fn of_all(targets: impl IntoIterator<Item = Exit>) -> Exit {
        let order = [Exit::Unusable, Exit::Refused, Exit::Busy, Exit::Done, Exit::Nothing];
        let rank = |exit: &Exit| order.iter().position(|o| o == exit);
        targets.into_iter().min_by_key(rank).unwrap_or(Exit::Nothing)
    }
}

/// An error that exits with 1: something was wrong with what was asked for, not with how.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) String);

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit::{self, *};

    #[test]
    fn the_worst_wins() {
        assert_eq!(Exit::of_all([]), Nothing);
        assert_eq!(Exit::of_all([Nothing, Nothing]), Nothing);
        assert_eq!(Exit::of_all([Nothing, Done, Nothing]), Done);
        assert_eq!(Exit::of_all([Done, Busy, Nothing]), Busy);
        assert_eq!(Exit::of_all([Busy, Refused, Done]), Refused);
        assert_eq!(Exit::of_all([Refused, Busy, Unusable, Done]), Unusable);
    }
}
