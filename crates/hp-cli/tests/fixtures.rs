//! Situations that a hot patcher meets, each one a small program in `testdata/fixtures`.
//!
//! Every program is built twice with ordinary flags, the old build runs, `hp` patches the live
//! process and takes the patch back, and the program itself says at each step what it now does.
//! The expectations are checked against the new build too, started fresh, so that a fixture
//! cannot ask for something that a restart would not give.
//!
//! `HP_FIXTURES=oracle` checks the programs alone and `HP_FIXTURES=diff` stops before the live
//! process; `HP_FIXTURES_KEEP=1` leaves the builds and patches for a look; `HP_FIXTURES_AS='clang -fuse-ld=lld'`
//! builds all of them another way. See `docs/FIXTURES.md`.
//!
//! Not for timing: nothing here fails because a machine is slow, short of a hang.

mod harness;

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fixtures");
    match harness::cases(&folder) {
        Ok(cases) => libtest_mimic::run(&arguments, cases.into_iter().map(trial).collect()).exit_code(),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn trial(case: harness::Case) -> Trial {
    let missing = case.missing();
    let ignored = missing.is_some();
    if let Some(reason) = missing {
        eprintln!("ignored: {}: {reason}", case.name);
    }
    Trial::test(case.name.clone(), move || harness::check(&case).map_err(Into::into)).with_ignored_flag(ignored)
}
