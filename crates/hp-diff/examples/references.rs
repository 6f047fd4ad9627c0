//! Prints every reference that is recovered from a program: `cargo run --example references -- PROGRAM`.

use std::path::Path;
use std::process::ExitCode;

use hp_diff::{Options, references};

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: references PROGRAM");
        return ExitCode::from(2);
    };
    match references(Path::new(&path), &Options::default()) {
        Ok(found) => {
            found.iter().for_each(|reference| println!("{reference}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
