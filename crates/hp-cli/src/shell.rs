//! `hp completions` and `hp man`: what packages install beside the program, made from the command line's own description.

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::exit::Exit;
use crate::text::clean;
use anyhow::bail;
use clap::CommandFactory;
use std::io::Write;

/// Prints a shell's completion script.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hp", &mut script);
    write(&script)
}

/// Prints a manual page in roff.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<Exit> {
    let mut command = Cli::command();
    command.build();
    let Some(verb) = &args.verb else {
        return page(command);
    };
    let Some(found) = command.find_subcommand(verb) else {
        bail!("{} is no verb of hp; `hp --help` lists them", clean(verb));
    };
    page(found.clone().disable_help_subcommand(true))
}

fn page(command: clap::Command) -> anyhow::Result<Exit> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    write(&page)
}

fn write(bytes: &[u8]) -> anyhow::Result<Exit> {
    let mut out = crate::text::results();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(Exit::Done)
}
