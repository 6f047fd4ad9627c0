//! Functions of Rust that keep a plain name (`#[no_mangle]`), which does not tell that they are.
//!
//! Debug information does: a unit that rustc made (`DW_AT_producer`; DWARF 5, section 3.1.1) has a range of code that is just the
//! function. rustc gives each function a section, and so a range, of its own; where ranges are joined, nothing is known. A
//! function of which another compiler's unit has any part is left as it is, and all are if anything cannot be read.

use gimli::constants as dw;

use crate::dwarf::{Sections, Source, UNITS};
use crate::entity::Function;

/// Marks them, if any function of the build is known to be of Rust by its name.
pub(crate) fn mark(functions: &mut [Function<'_>], source: &Source<'_>) {
    if !functions.iter().any(|f| f.rust) {
        return;
    }
    let plain = functions.iter().enumerate().filter(|(_, f)| !f.rust && !f.overlaps && f.ranges[0].end() > f.address());
    let plain = plain.map(|(id, f)| Plain {
        id,
        start: f.ranges[0].address,
        end: f.ranges[0].end(),
        made: false,
        other: false,
    });
    let mut plain: Vec<Plain> = plain.collect();
    plain.sort_unstable_by_key(|p| (p.start, p.end));
    match Sections::load(source, UNITS) {
        Ok(Some(sections)) if !sections.relocatable() && read(&sections, &mut plain).is_ok() => {}
        _ => return,
    }
    plain.iter().filter(|p| p.made && !p.other).for_each(|p| functions[p.id].rust = true);
}

/// A function with a plain name.
struct Plain {
    /// Index of the function.
    id: usize,
    start: u64,
    end: u64,
    /// rustc made exactly this.
    made: bool,
    /// Something else made a part of it.
    other: bool,
}

/// `plain` is ordered, and none overlaps another one.
fn read(sections: &Sections<'_>, plain: &mut [Plain]) -> gimli::Result<()> {
    let dwarf = sections.dwarf();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let mut entries = unit.entries();
        let Some(root) = entries.next_dfs()? else { continue };
        let producer = root.attr_value(dw::DW_AT_producer).map(|value| dwarf.attr_string(&unit, value)).transpose()?;
        let rustc = producer.is_some_and(|text| text.to_string_lossy().contains("(rustc version "));
        let mut ranges = dwarf.die_ranges(&unit, root)?;
        while let Some(range) = ranges.next()? {
            let first = plain.partition_point(|p| p.end <= range.begin);
            for function in plain[first..].iter_mut().take_while(|p| p.start < range.end) {
                function.made |= rustc && (function.start, function.end) == (range.begin, range.end);
                function.other |= !rustc;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use crate::build::Build;
    use crate::image::Image;
    use crate::input::Input;

    const RUST: &str = r#"
        #[unsafe(no_mangle)] #[inline(never)]
        pub fn plain(text: &str) -> usize { std::hint::black_box(text).len() }
        unsafe extern "C" { fn known(n: i32) -> i32; fn unknown(n: i32) -> i32; }
        fn main() { println!("{}", plain("text") as i32 + unsafe { known(1) + unknown(2) }) }
    "#;

    fn run(folder: &Path, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert!(Command::new(words[0]).args(&words[1..]).current_dir(folder).status().unwrap().success(), "{command}");
    }

    /// Which of the functions with these names are taken for functions of Rust.
    fn of_rust(program: &Path, names: &[&str]) -> Vec<bool> {
        let input = Input::open(program, None, &Default::default()).unwrap();
        let build = Build::new(Image::parse(&input).unwrap(), None);
        let find = |name: &&str| build.map.functions.iter().find(|f| f.name() == *name).unwrap().rust;
        names.iter().map(find).collect()
    }

    #[test]
    fn what_rustc_made_is_of_rust_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        std::fs::write(folder.join("main.rs"), RUST).unwrap();
        for name in ["known", "unknown"] {
            let text = format!("int {name}(int n) {{ return n * n; }}\n");
            std::fs::write(folder.join(name).with_extension("c"), text).unwrap();
        }
        run(folder, "gcc -O2 -g -c known.c");
        run(folder, "gcc -O2 -c unknown.c");
        let rustc = "rustc --edition 2024 -C link-arg=known.o -C link-arg=unknown.o main.rs";
        for flags in
            ["-g", "-g -O", "-g -O -C lto=fat", "-g -O -C dwarf-version=5", "-g -O -C link-arg=-Wl,--no-gc-sections"]
        {
            run(folder, &format!("{rustc} {flags}"));
            let found = of_rust(&folder.join("main"), &["plain", "known", "unknown", "main"]);
            assert_eq!(found, [true, false, false, false], "{flags}");
        }
        run(folder, &format!("{rustc} -O"));
        assert_eq!(of_rust(&folder.join("main"), &["plain", "known"]), [false, false], "without debug information");
    }
}
