//! Prints for each given program or library how many of its functions could be redirected, and why not the others.
//! `-v` lists them.

fn main() -> Result<(), hp_diff::Error> {
    let (options, files): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|a| a == "-v");
    for file in files {
        let found = hp_diff::entries(file.as_ref(), &hp_diff::DebugPlaces::default())?;
        print!("{file}: {} functions", found.functions);
        for (code, names) in &found.refused {
            print!(", {code} {} ({:.2} %)", names.len(), 100.0 * names.len() as f64 / found.functions as f64);
        }
        println!();
        for (code, names) in found.refused.iter().filter(|_| !options.is_empty()) {
            println!("  {code}: {}", names.join(" "));
        }
    }
    Ok(())
}
