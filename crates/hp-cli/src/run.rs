//! `hp run`: a program that is patched from its first instruction on.
//!
//! It is stopped where its loader hands over to it, patched, and let go. If it cannot be patched it is not run.

use crate::args::RunArgs;
use crate::exit::Exit;
use crate::targets::exit_of_error;
use crate::text::{BAD, clean};
use hp_apply::Options;
use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Nobody else runs in it: a safe point is there at once.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the program; its exit code is ours.
pub(crate) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let patches = crate::trust::read_patches(&args.patch, &args.trust)?;
    let mut words = args.command.iter();
    let Some(program) = words.next() else { return Ok(Exit::Unusable.into()) };
    let started = hp_apply::start(Command::new(program).args(words))?;
    let options = Options { timeout: TIMEOUT, max_pause: None, dry_run: false, relaxed: false };
    for file in &patches {
        if let Err(error) = hp_apply::apply_patch(started.pid(), &file.patch, &file.id, &options).result {
            let (program, patch) = (clean(&program.to_string_lossy()), file.display());
            let _ = writeln!(
                anstream::stderr(),
                "{BAD}hp:{BAD:#} {program} was not run: {patch}: {}",
                clean(&error.to_string())
            );
            return Ok(exit_of_error(&error).into());
        }
    }
    let code = started.run()?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
