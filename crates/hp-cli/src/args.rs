//! The command line, as plain structs. What a verb does with them is in the verb's own module.

use clap::{Args, Parser, Subcommand};
use hp_diff::Code;
use std::path::PathBuf;
use std::time::Duration;

/// Patches running programs: two builds in, one small file out that brings every running copy of the
/// old build to the behaviour of the new one, and takes it back.
#[derive(Debug, Parser)]
#[command(name = "hp", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// How to talk.
    #[command(flatten)]
    pub(crate) talk: TalkArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags of every verb.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct TalkArgs {
    /// When to use colours: on a terminal only, always or never
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = Color::Auto, hide_possible_values = true)]
    pub(crate) color: Color,
    /// Print errors only; the exit code tells the rest
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print more where there is more to say
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub(crate) verbose: bool,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, and not with `NO_COLOR`.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, for at least one target
  1  refused: nothing was changed
  2  bad usage, unreadable or malformed input, missing rights
  3  nothing to do
  4  no safe point within the timeout; the target is unchanged";

/// The verbs of `hp`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Compare two builds and make a patch from OLD to NEW
    Diff(DiffArgs),
    /// Show what a patch replaces, needs and fixes
    Inspect(InspectArgs),
    /// Check that a patch is whole, who signed it, and that it makes one build of the other
    Verify(VerifyArgs),
    /// Sign a patch
    Sign(SignArgs),
    /// Make one executable of a patch and an applier, for hosts that have nothing installed
    Bundle(BundleArgs),
    /// Make a pair of keys to sign with, as minisign has them
    Keygen(KeygenArgs),
    /// Apply patches to running processes
    Apply(ApplyArgs),
    /// Start a program patched, before its first instruction
    Run(RunArgs),
    /// Show which processes are patched, and with what
    Status(StatusArgs),
    /// Take patches out of running processes
    Revert(RevertArgs),
    /// Keep processes that start later patched, with the patches in a folder
    Watch(WatchArgs),
    /// Name patched code for gdb and perf
    Symbols(SymbolsArgs),
    /// Say what a finding means and what to do about it
    Explain(ExplainArgs),
    /// Print a script that completes hp's command line in a shell
    Completions(CompletionsArgs),
    /// Print the manual page of hp, or of one verb
    Man(ManArgs),
    /// Build, start, patch and revert a small server, to see it all once
    Demo(crate::demo::Args),
}

/// `hp diff`
#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// The build that is running, or a directory tree of builds
    pub(crate) old: PathBuf,
    /// The build with the fix, or a directory tree
    pub(crate) new: PathBuf,
    /// Write the patch to FILE, whole or not at all (default: to standard output); of trees: to files in this directory
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Accept errors of this code, for one subject or for all; see `hp explain`
    #[arg(long, value_name = "CODE[=SUBJECT]", value_parser = parse_allow)]
    pub(crate) allow: Vec<(Code, Option<String>)>,
    /// Name of the patch (default: the file name of OLD)
    #[arg(long, value_parser = parse_name)]
    pub(crate) name: Option<String>,
    /// What the patch fixes, such as CVE-2021-23017
    #[arg(long, value_name = "CVE")]
    pub(crate) fixes: Vec<String>,
    /// A patch with a lower number is refused over one with a higher number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) counter: u64,
    /// Replace functions too that differ only in line numbers, as in assertions and logs
    #[arg(long)]
    pub(crate) exact_lines: bool,
    /// Numbers in lasting memory that may have changed their meaning (HP0403) are errors
    #[arg(long)]
    pub(crate) strict: bool,
    /// Show the old and new code of this changed function side by side, with the reason; the patch is written only with -o
    #[arg(long, value_name = "NAME")]
    pub(crate) explain: Vec<String>,
    /// The debug file of OLD, where it is not found by itself
    #[arg(long, value_name = "FILE")]
    pub(crate) old_debug: Option<PathBuf>,
    /// The debug file of NEW
    #[arg(long, value_name = "FILE")]
    pub(crate) new_debug: Option<PathBuf>,
    /// Look for debug files in this tree, before /usr/lib/debug
    #[arg(long, value_name = "DIR")]
    pub(crate) debug_dir: Vec<PathBuf>,
    /// Print the report as JSON on standard output; the patch is written only with -o
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp inspect`
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The patch file
    pub(crate) patch: PathBuf,
    /// Show the code: new instructions, beside the old ones if OLD is given
    #[arg(long)]
    pub(crate) asm: bool,
    /// The same, with the source lines of OLD above
    #[arg(long, requires = "old")]
    pub(crate) source: bool,
    /// The build that the patch is for
    #[arg(long, value_name = "OLD")]
    pub(crate) old: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp apply`
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// Patch files, applied in this order
    #[arg(required = true, value_name = "PATCH")]
    pub(crate) patches: Vec<PathBuf>,
    /// Which processes.
    #[command(flatten)]
    pub(crate) targets: TargetArgs,
    /// Whose.
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Apply wherever it can be done (default: all or none)
    #[arg(long)]
    pub(crate) each: bool,
    /// Do not wait for threads that never leave an old function: they go on in it, and calls lead to the new one; only
    /// where the patch says that this does no harm (see hp inspect, hp explain HP0507)
    #[arg(long)]
    pub(crate) relaxed: bool,
    /// Run CMD by the shell afterwards; if it fails, or a process ends, take everything back
    #[arg(long, value_name = "CMD")]
    pub(crate) health: Option<String>,
    /// Run it again every second, for so long
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration, requires = "health")]
    pub(crate) health_for: Duration,
    /// How.
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

/// `hp run`
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// Patch files, applied in this order
    #[arg(long, required = true, num_args = 1.., value_name = "PATCH")]
    pub(crate) patch: Vec<PathBuf>,
    /// Whose.
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Whose patches are accepted.
#[derive(Args, Debug, Default)]
pub(crate) struct TrustArgs {
    /// Trust this public key, beside those in /etc/hp/trusted.d and ~/.config/hp/trusted.d
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Vec<PathBuf>,
}

/// `hp symbols`
#[derive(Args, Debug)]
pub(crate) struct SymbolsArgs {
    /// A core dump of a patched process
    #[arg(value_name = "CORE", required_unless_present = "pid")]
    pub(crate) core: Option<PathBuf>,
    /// A patched process
    #[arg(long, value_name = "N", conflicts_with = "core", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: Option<i32>,
    /// The patch file that was applied: it knows every symbol
    #[arg(long, value_name = "PATCH")]
    pub(crate) patch: Vec<PathBuf>,
    /// The build with the fix: it knows the source lines; its debug file is looked for as by `hp diff`
    #[arg(long, value_name = "FILE", requires = "gdb", requires = "patch")]
    pub(crate) new: Vec<PathBuf>,
    /// Write a gdb script to FILE, and beside it what the script loads
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    pub(crate) gdb: Option<PathBuf>,
    /// Write the map for perf to FILE (default: to standard output)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp verify`
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// The patch file
    pub(crate) patch: PathBuf,
    /// Prove that this build with the patch in it ...
    #[arg(long, value_name = "OLD", requires = "new")]
    pub(crate) old: Option<PathBuf>,
    /// ... is this build
    #[arg(long, value_name = "NEW", requires = "old")]
    pub(crate) new: Option<PathBuf>,
    /// The debug file of OLD, where it is not found by itself
    #[arg(long, value_name = "FILE", requires = "old")]
    pub(crate) old_debug: Option<PathBuf>,
    /// The debug file of NEW
    #[arg(long, value_name = "FILE", requires = "new")]
    pub(crate) new_debug: Option<PathBuf>,
    /// Look for debug files in this tree, before /usr/lib/debug
    #[arg(long, value_name = "DIR", requires = "old")]
    pub(crate) debug_dir: Vec<PathBuf>,
    /// Whose.
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp sign`
#[derive(Args, Debug)]
pub(crate) struct SignArgs {
    /// The patch file; the signature is written into it
    pub(crate) patch: PathBuf,
    /// The secret key, of `hp keygen` or minisign
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Read the key's password from the first line of FILE (default: ask)
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Write the signed patch to FILE, and leave PATCH as it is
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write the signature to PATCH.minisig, and leave PATCH as it is
    #[arg(long, conflicts_with_all = ["output", "counter"])]
    pub(crate) detached: bool,
    /// Give the patch this counter first: one with a lower number is refused over it
    #[arg(long, value_name = "N")]
    pub(crate) counter: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp bundle`
#[derive(Args, Debug)]
pub(crate) struct BundleArgs {
    /// The patch file; sign it before, where hosts take signed patches only
    pub(crate) patch: PathBuf,
    /// Write the executable to FILE, whole or not at all
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp keygen`
#[derive(Args, Debug)]
pub(crate) struct KeygenArgs {
    /// The keys are written to NAME.key and NAME.pub
    pub(crate) name: PathBuf,
    /// Make a key that needs no password
    #[arg(long)]
    pub(crate) no_password: bool,
    /// Read the password from the first line of FILE (default: ask)
    #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
    pub(crate) password_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp revert`
#[derive(Args, Debug)]
pub(crate) struct RevertArgs {
    /// A patch file, or the first digits (4 or more) of a patch ID as `hp status` shows it
    #[arg(value_name = "ID|PATCH", required_unless_present = "everything")]
    pub(crate) patch: Option<PathBuf>,
    /// Take out every patch
    #[arg(long, conflicts_with = "patch")]
    pub(crate) everything: bool,
    /// Which processes.
    #[command(flatten)]
    pub(crate) targets: TargetArgs,
    /// How.
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

/// Which processes.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct TargetArgs {
    /// These processes
    #[arg(long, value_name = "N", num_args = 1.., value_delimiter = ',', value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: Vec<i32>,
    /// Every process that has the patch's base loaded
    #[arg(long)]
    pub(crate) all: bool,
    /// Every process that runs this program
    #[arg(long, value_name = "PATH")]
    pub(crate) exe: Option<PathBuf>,
    /// Every process in this control group, or below it, that has the patch's base loaded
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<PathBuf>,
}

/// How to patch.
#[derive(Args, Debug)]
pub(crate) struct HowArgs {
    /// Check everything and say what would be done; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long to look for a safe point
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Give up rather than stop the process longer than this at once
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) max_pause: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl HowArgs {
    /// As the applier takes them.
    pub(crate) fn options(&self) -> hp_apply::Options {
        let HowArgs { timeout, max_pause, dry_run, .. } = *self;
        hp_apply::Options { timeout, max_pause, dry_run, relaxed: false }
    }
}

/// `hp watch`
#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// The folder with the patches: every *.hpatch in it
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Whose.
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// How long to look for a safe point, each time
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Give up rather than stop a process longer than this at once
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) max_pause: Option<Duration>,
    /// Look through /proc at this interval, and do not ask the kernel to tell of programs that start
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    pub(crate) poll: Option<Duration>,
}

/// `hp status`
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Only these processes
    #[arg(long, value_name = "N", num_args = 1.., value_delimiter = ',', value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: Vec<i32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp explain`
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// Code of the finding, such as HP0401 (default: list all)
    pub(crate) code: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `hp completions`
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// For which shell
    pub(crate) shell: clap_complete::Shell,
}

/// `hp man`
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// The page of this verb
    pub(crate) verb: Option<String>,
}

impl Verb {
    /// True if the user asked for JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Verb::Diff(args) => args.json,
            Verb::Inspect(args) => args.json,
            Verb::Verify(args) => args.json,
            Verb::Sign(args) => args.json,
            Verb::Bundle(args) => args.json,
            Verb::Keygen(args) => args.json,
            Verb::Apply(args) => args.how.json,
            Verb::Revert(args) => args.how.json,
            Verb::Status(args) => args.json,
            Verb::Symbols(args) => args.json,
            Verb::Explain(args) => args.json,
            Verb::Demo(_) | Verb::Run(_) | Verb::Completions(_) | Verb::Man(_) | Verb::Watch(_) => false,
        }
    }
}

/// `CODE` or `CODE=SUBJECT`.
fn parse_allow(text: &str) -> Result<(Code, Option<String>), String> {
    let (code, subject) = match text.split_once('=') {
        Some((_, "")) => return Err("nothing after the equals sign; leave it out to accept the code everywhere".into()),
        Some((code, subject)) => (code, Some(subject.to_owned())),
        None => (text, None),
    };
    let code: Code = code.parse().map_err(|_| format!("{code} is not a finding code; `hp explain` lists them"))?;
    if !code.acceptable() {
        let why = if code.level() == hp_diff::Level::Error { "no patch could be made" } else { "it forbids no patch" };
        return Err(format!("{code} is not for you to accept: {why}; see `hp explain {code}`"));
    }
    Ok((code, subject))
}

fn parse_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 255 || text.chars().any(char::is_control) {
        return Err("a name has 1 to 255 bytes and no control characters".into());
    }
    Ok(text.to_owned())
}

/// `10s`, `5ms`, `500us`, `1.5s`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "give a number and a unit: 10s, 5ms or 500us".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let seconds_per_unit = match &text[digits..] {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..digits].parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|_| wrong())
}

/// A duration that is not nothing.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(10) { Err("10ms is the shortest interval".into()) } else { Ok(interval) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(parse_duration("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "10", "s", "-1s", "1.2.3s", "1h30", "99999999999999999999999s", "µ"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn acceptances() {
        assert_eq!(parse_allow("HP0402"), Ok((Code::LayoutUnproven, None)));
        assert_eq!(parse_allow("hp0401=struct x"), Ok((Code::LayoutChanged, Some("struct x".into()))));
        assert!(parse_allow("HP0402=").is_err());
        assert!(parse_allow("HP9999").is_err());
        assert!(parse_allow("HP0301").is_err());
    }
}
