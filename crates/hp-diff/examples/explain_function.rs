//! Renders the difference of one function, old code on the left and new code on the right.
//!
//! `cargo run -p hp-diff --example explain_function OLD NEW FUNCTION`

use hp_diff::{Instruction, Options, RowKind};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [old, new, function] = arguments.as_slice() else {
        return Err("give two builds and a function: OLD NEW FUNCTION".into());
    };
    let places = hp_diff::DebugPlaces::system();
    let options = Options { explain: vec![function.clone()], places, ..Default::default() };
    let report = hp_diff::diff(old.as_ref(), new.as_ref(), &options)?;
    if report.explanations.is_empty() {
        println!("{function} does not differ");
    }
    for explanation in &report.explanations {
        println!("{}: {}", explanation.name, explanation.cause);
        for row in &explanation.rows {
            let mark = match row.kind {
                RowKind::Same => ' ',
                RowKind::Changed => '|',
                RowKind::Removed => '<',
                RowKind::Added => '>',
            };
            let shown = format!("{:<48} {mark} {}", text(row.old.as_ref()), text(row.new.as_ref()));
            println!("{}", shown.trim_end());
        }
    }
    Ok(())
}

fn text(instruction: Option<&Instruction>) -> String {
    instruction.map_or_else(String::new, |i| format!("+{:#x} {}", i.offset, i.text))
}
