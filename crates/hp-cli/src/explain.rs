//! `hp explain`: what a finding means and what to do about it.

use crate::args::ExplainArgs;
use crate::exit::Exit;
use crate::text::{BAD, BOLD, DIM, Style, WARN, clean, print_json};
use anyhow::bail;
use hp_diff::{Code, Level};
use std::io::Write;

/// Explains one code, or lists all.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<Exit> {
    let codes: Vec<Code> = match &args.code {
        Some(text) => vec![find(text)?],
        None => Code::ALL.to_vec(),
    };
    if args.json {
        let all: Vec<_> = codes.iter().map(|&code| json(code)).collect();
        print_json(&serde_json::json!({ "exit": Exit::Done.code(), "codes": all }))?;
        return Ok(Exit::Done);
    }
    let mut out = crate::text::out();
    for &code in &codes {
        let (level, style) = level(code);
        writeln!(out, "{BOLD}{code}{BOLD:#}  {style}{level:<7}{style:#}  {}", code.title())?;
        if args.code.is_some() {
            writeln!(out, "\n{}", code.help())?;
        }
    }
    if args.code.is_none() {
        writeln!(out, "\n{DIM}hp explain CODE says why it matters and what to do.{DIM:#}")?;
    }
    Ok(Exit::Done)
}

fn level(code: Code) -> (&'static str, Style) {
    match code.level() {
        Level::Error => ("error", BAD),
        Level::Warning => ("warning", WARN),
        Level::Note => ("note", DIM),
    }
}

fn json(code: Code) -> serde_json::Value {
    serde_json::json!({ "code": code, "level": code.level(), "title": code.title(), "help": code.help() })
}

fn find(text: &str) -> anyhow::Result<Code> {
    if let Ok(code) = text.parse() {
        return Ok(code);
    }
    let near: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).filter(|code| is_near(code, text)).collect();
    let text = clean(text);
    if near.is_empty() {
        bail!("{text} is not a finding code; `hp explain` lists all of them");
    }
    bail!("{text} is not a finding code; near it: {}", near.join(", "));
}

/// True if both begin alike, as codes of one subject do, or differ in one character.
fn is_near(code: &str, text: &str) -> bool {
    let text = text.to_ascii_uppercase();
    let same_subject = code.get(..4) == text.get(..4);
    let differing = code.bytes().zip(text.bytes()).filter(|(a, b)| a != b).count();
    same_subject || code.len() == text.len() && differing == 1
}
