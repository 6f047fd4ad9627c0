//! The `hp` command: arguments in, one call into the library crates, a report and an exit code out.
//!
//! Each verb is a module. A verb returns how it ended, or an error that is one line for the user: what, where,
//! and what to do; it is printed here and exits with 2.

mod apply;
mod args;
mod bundle;
mod cgroup;
mod demo;
mod diff;
mod exit;
mod explain;
mod frames;
mod health;
mod inspect;
mod keygen;
mod mapped_file;
mod on_disk;
mod patch_file;
mod progress;
mod revert;
mod run;
mod shell;
mod side_by_side;
mod sign;
mod status;
mod symbols;
mod targets;
mod text;
mod trust;
mod verify;
mod watch;

use args::{Cli, Verb};
use clap::Parser;
use exit::Exit;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let Cli { talk, verb } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return say_usage(&said),
    };
    text::talk(talk);
    let json = verb.json();
    let result = match verb {
        Verb::Demo(args) => demo::run(args),
        Verb::Diff(args) => diff::run(&args).map(ExitCode::from),
        Verb::Inspect(args) => inspect::run(&args).map(ExitCode::from),
        Verb::Verify(args) => verify::run(&args).map(ExitCode::from),
        Verb::Sign(args) => sign::run(&args).map(ExitCode::from),
        Verb::Bundle(args) => bundle::run(&args).map(ExitCode::from),
        Verb::Keygen(args) => keygen::run(&args).map(ExitCode::from),
        Verb::Apply(args) => apply::run(&args).map(ExitCode::from),
        Verb::Run(args) => run::run(&args),
        Verb::Watch(args) => watch::run(&args).map(ExitCode::from),
        Verb::Status(args) => status::run(&args).map(ExitCode::from),
        Verb::Revert(args) => revert::run(&args).map(ExitCode::from),
        Verb::Symbols(args) => symbols::run(&args).map(ExitCode::from),
        Verb::Explain(args) => explain::run(&args).map(ExitCode::from),
        Verb::Completions(args) => shell::completions(&args).map(ExitCode::from),
        Verb::Man(args) => shell::man(&args).map(ExitCode::from),
    };
    result.unwrap_or_else(|error| failed(&error, json))
}

/// Prints what was asked for (`--help`, `--version`), or what is wrong with the words of the command.
fn say_usage(said: &clap::Error) -> ExitCode {
    let asked = !said.use_stderr();
    let printed = said.print().and_then(|()| std::io::stdout().flush());
    if let Err(error) = printed
        && asked
    {
        return failed(&text::unwritten(error).into(), false);
    }
    if asked { Exit::Done.into() } else { Exit::Unusable.into() }
}

/// Prints the error; a reader that went away is none.
fn failed(error: &anyhow::Error, json: bool) -> ExitCode {
    let gone = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
    };
    if error.chain().any(gone) {
        return Exit::Done.into();
    }
    let exit = if error.is::<exit::Refusal>() { Exit::Refused } else { Exit::Unusable };
    let message = text::error_chain(error);
    // If stderr is gone as well, the exit code is all that is left to say.
    let _ = writeln!(anstream::stderr(), "{bad}hp:{bad:#} {message}", bad = text::BAD);
    if json {
        let _ = text::print_json(&serde_json::json!({ "exit": exit.code(), "error": message }));
    }
    exit.into()
}
