//! Lists the functions that differ between two builds, and what forbids a patch.
//!
//! `cargo run -p hp-diff --example changed_functions OLD NEW`

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(old), Some(new)) = (arguments.next(), arguments.next()) else {
        return Err("give two builds: OLD NEW".into());
    };
    let options = hp_diff::Options { places: hp_diff::DebugPlaces::system(), ..Default::default() };
    let report = hp_diff::diff(old.as_ref(), new.as_ref(), &options)?;
    println!("{} functions are identical", report.identical);
    for change in &report.changes {
        println!(
            "{:?} {} ({} → {} bytes): {}",
            change.kind, change.name, change.old_size, change.new_size, change.cause
        );
    }
    for finding in &report.findings {
        println!("{} {:?} {}: {}", finding.code, finding.level, finding.subject, finding.message);
    }
    Ok(())
}
