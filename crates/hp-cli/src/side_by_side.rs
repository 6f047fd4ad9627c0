//! A function's old and new code side by side, in 100 columns.
//!
//! Equal instructions far from a difference are counted, not shown. A line with the source place stands above the
//! instructions that it made. Text that differs is wrapped, never cut; equal text may be cut.

use crate::text::{BAD, BOLD, DIM, GOOD, Style, WARN, clean, readable};
use hp_diff::{Instruction, Row, RowKind};
use std::io::{self, Write};

/// Equal instructions that are shown before and after a difference.
const CONTEXT: usize = 4;
/// Characters of an instruction's text in one of the two columns: 2 × (8 + 40) and what is between them.
const TEXT: usize = 40;

/// Prints all of a function that is worth looking at.
pub(crate) fn print(out: &mut impl Write, name: &str, cause: &str, rows: &[Row]) -> io::Result<()> {
    let colon = if cause.is_empty() { "" } else { ": " };
    writeln!(out, "{BOLD}{}{BOLD:#}{colon}{}", readable(name), readable(cause))?;
    let mut hidden = 0;
    let mut places = (None, None);
    for (i, row) in rows.iter().enumerate() {
        let near = &rows[i.saturating_sub(CONTEXT)..rows.len().min(i + CONTEXT + 1)];
        if near.iter().all(|r| r.kind == RowKind::Same) {
            hidden += 1;
            continue;
        }
        print_hidden(out, &mut hidden)?;
        print_places(out, row, &mut places)?;
        print_row(out, row)?;
    }
    print_hidden(out, &mut hidden)
}

fn print_hidden(out: &mut impl Write, hidden: &mut usize) -> io::Result<()> {
    match std::mem::take(hidden) {
        0 => Ok(()),
        1 => writeln!(out, "{DIM}  ⋮ 1 equal instruction{DIM:#}"),
        n => writeln!(out, "{DIM}  ⋮ {n} equal instructions{DIM:#}"),
    }
}

/// Where an instruction comes from, for people.
fn place(instruction: Option<&Instruction>) -> Option<String> {
    let place = instruction?.place.as_ref()?;
    let inlined = instruction?.inlined.as_ref().map(|name| format!(" in {name}, inlined")).unwrap_or_default();
    Some(clean(&format!("{place}{inlined}")))
}

fn print_places(out: &mut impl Write, row: &Row, last: &mut (Option<String>, Option<String>)) -> io::Result<()> {
    let now = (place(row.old.as_ref()), place(row.new.as_ref()));
    let is_news = |now: &Option<String>, last: &Option<String>| now.is_some() && now != last;
    if is_news(&now.0, &last.0) || is_news(&now.1, &last.1) {
        let text = |place: &Option<String>| cut(place.as_deref().unwrap_or_default(), TEXT + 6);
        writeln!(out, "{DIM}  {:<46} │ {}{DIM:#}", text(&now.0), text(&now.1))?;
    }
    if now.0.is_some() {
        last.0 = now.0;
    }
    if now.1.is_some() {
        last.1 = now.1;
    }
    Ok(())
}

fn print_row(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let (mark, old_style, new_style) = match row.kind {
        RowKind::Same => (' ', Style::new(), Style::new()),
        RowKind::Changed => ('~', WARN, WARN),
        RowKind::Removed => ('-', BAD, Style::new()),
        RowKind::Added => ('+', Style::new(), GOOD),
    };
    let lines = |side: &Option<Instruction>| -> Vec<String> {
        let Some(instruction) = side else { return Vec::new() };
        let text = clean(&instruction.text);
        if row.kind == RowKind::Same { vec![cut(&text, TEXT)] } else { wrap(&text) }
    };
    let offset = |side: &Option<Instruction>| {
        side.as_ref().map_or(String::new(), |i| format!("{}{:x}", if i.cold { "c+" } else { "" }, i.offset))
    };
    let (old, new) = (lines(&row.old), lines(&row.new));
    let empty = String::new();
    for n in 0..old.len().max(new.len()) {
        let (a, b) = (old.get(n).unwrap_or(&empty), new.get(n).unwrap_or(&empty));
        let (mark, p, q) =
            if n == 0 { (mark, offset(&row.old), offset(&row.new)) } else { (' ', empty.clone(), empty.clone()) };
        let (x, y) = (old_style, new_style);
        let line = format!("{x}{mark}{x:#} {DIM}{p:>5}{DIM:#} {x}{a:<TEXT$}{x:#} │ {DIM}{q:>5}{DIM:#} {y}{b}{y:#}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// Pieces of at most one column.
fn wrap(text: &str) -> Vec<String> {
    let all: Vec<char> = text.chars().collect();
    all.chunks(TEXT).map(|piece| piece.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: RowKind, old: Option<&str>, new: Option<&str>) -> Row {
        let side = |text: Option<&str>| {
            text.map(|text| Instruction { offset: 0x1234, cold: false, text: text.into(), place: None, inlined: None })
        };
        Row { kind, old: side(old), new: side(new) }
    }

    fn printed(rows: Vec<Row>) -> String {
        let mut out = anstream::StripStream::new(Vec::new());
        print(&mut out, "f", "own code", &rows).unwrap();
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn no_line_is_wider_than_100_columns_and_nothing_that_differs_is_cut() {
        let long = "call a_very_long_name_of_a_function_that_does_not_fit_into_one_column_at_all_1";
        let text =
            printed(vec![row(RowKind::Same, Some(long), Some(long)), row(RowKind::Changed, Some(long), Some("ret"))]);
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
        let joined: String = text.lines().skip(2).map(|l| l.chars().skip(8).take(TEXT).collect::<String>()).collect();
        assert!(joined.contains(long), "{text}");
        assert!(text.contains('…'), "{text}");
    }

    #[test]
    fn what_is_equal_and_far_away_is_counted() {
        let same = || row(RowKind::Same, Some("nop"), Some("nop"));
        let rows = (0..20).map(|_| same()).chain([row(RowKind::Added, None, Some("ret"))]).collect();
        let text = printed(rows);
        assert!(text.contains("⋮ 16 equal instructions"), "{text}");
        assert_eq!(text.lines().count(), 1 + 1 + 4 + 1, "{text}");
    }
}
