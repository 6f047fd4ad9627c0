//! Which functions were written in Rust, by debug information (DWARF 5, sections 2.17 and 3.1.1).
//!
//! A function that keeps its plain name (`#[no_mangle]`) does not show it by that. It is of Rust if a unit of that language has
//! just its code: where it begins, and where it ends. What the linker left out has no place, and debug information that
//! still speaks of it speaks of other addresses; that these are by chance those of a whole function cannot be.

use std::borrow::Cow;

use gimli::{AttributeValue, EndianSlice, LittleEndian, SectionId, constants as dw};
use object::{Object, ObjectSection};
use rustc_hash::FxHashSet;

use crate::Build;

const WANTED: [SectionId; 6] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
];

/// Start and end of code, link-time addresses.
type Span = (u64, u64);

/// The code of units of Rust, and of all others.
#[derive(Debug, Default)]
pub(crate) struct Languages {
    rust: FxHashSet<Span>,
    /// Ordered, and none touches another one.
    others: Vec<Span>,
}

impl Languages {
    /// Reads the debug information of a build, and of its debug file. If anything of it cannot be read, nothing is known.
    pub(crate) fn read(build: &Build<'_>) -> Languages {
        let mut found = Languages::default();
        for file in [Some(build.image), build.debug].into_iter().flatten() {
            if found.read_file(file).is_none() {
                return Languages::default();
            }
        }
        found.others.sort_unstable();
        found.others.dedup_by(|next, before| {
            let touches = next.0 <= before.1;
            if touches {
                before.1 = before.1.max(next.1);
            }
            touches
        });
        found
    }

    /// A unit of Rust has exactly this code, and no unit of another language has any of it.
    pub(crate) fn is_rust(&self, start: u64, end: u64) -> bool {
        let other = self.others.get(self.others.partition_point(|other| other.1 <= start));
        self.rust.contains(&(start, end)) && other.is_none_or(|other| end <= other.0)
    }

    fn read_file(&mut self, file: &[u8]) -> Option<()> {
        let elf = object::File::parse(file).ok()?;
        let load = |id: SectionId| -> object::Result<Cow<'_, [u8]>> {
            match elf.section_by_name(id.name()).filter(|_| WANTED.contains(&id)) {
                Some(section) => section.uncompressed_data(),
                None => Ok(Cow::default()),
            }
        };
        let sections = gimli::DwarfSections::load(load).ok()?;
        let dwarf = sections.borrow(|data| EndianSlice::new(data, LittleEndian));
        let mut units = dwarf.units();
        while let Some(header) = units.next().ok()? {
            let unit = dwarf.unit(header).ok()?;
            let mut entries = unit.entries();
            let root = entries.next_dfs().ok()??;
            let rust = matches!(root.attr_value(dw::DW_AT_language), Some(AttributeValue::Language(dw::DW_LANG_Rust)));
            let mut ranges = dwarf.die_ranges(&unit, root).ok()?;
            while let Some(range) = ranges.next().ok()? {
                let span = (range.begin, range.end);
                if rust {
                    self.rust.insert(span);
                } else {
                    self.others.push(span);
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::entities::Side;
    use crate::image::Image;

    fn run(folder: &Path, command: &str) {
        let mut words = command.split(' ');
        let status = Command::new(words.next().expect("a program")).args(words).current_dir(folder).status();
        assert!(status.expect("the compiler can be run").success(), "{command}");
    }

    /// By symbol name.
    fn are_rust(file: &Path, names: &[&str]) -> Vec<bool> {
        let file = std::fs::read(file).expect("it was built");
        let image = Image::read(&Build { image: &file, debug: None, mini: None }, "new").expect("it can be read");
        let side = Side::new(image, &Default::default());
        let range = |name: &&str| side.ranges.iter().find(|r| r.names.contains(name)).expect("it is there");
        names.iter().map(|name| range(name).rust).collect()
    }

    #[test]
    fn plain_names_of_rust_are_known_by_their_units() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let folder = folder.path();
        let rust = "#[unsafe(no_mangle)] #[inline(never)] pub extern \"C\" fn plain(n: i32) -> i32 { n * 3 }\n\
            #[inline(never)] fn mangled(n: i32) -> i32 { std::hint::black_box(n) + 1 }\n\
            unsafe extern \"C\" { fn in_c(n: i32) -> i32; fn in_c_too(n: i32) -> i32; }\n\
            fn main() { println!(\"{}\", unsafe { in_c(plain(mangled(1))) + in_c_too(2) }) }\n";
        let c = "int NAME(int n) { return n ^ 77; }\n";
        for (file, text) in
            [("main.rs", rust), ("a.c", &c.replace("NAME", "in_c")), ("b.c", &c.replace("NAME", "in_c_too"))]
        {
            std::fs::write(folder.join(file), text).expect("a file can be written");
        }
        run(folder, "gcc -O2 -g -c a.c");
        run(folder, "gcc -O2 -c b.c");
        let objects = "-C link-arg=a.o -C link-arg=b.o main.rs";
        let names = ["plain", "in_c", "in_c_too", "main"];
        for more in ["", " -C codegen-units=1", " -C lto=fat", " -C dwarf-version=5", " -C opt-level=0"] {
            run(folder, &format!("rustc --edition 2024 -O -g{more} {objects}"));
            assert_eq!(are_rust(&folder.join("main"), &names), [true, false, false, false], "{more}");
        }
        run(folder, &format!("rustc --edition 2024 -O {objects}"));
        assert_eq!(are_rust(&folder.join("main"), &names), [false; 4], "no debug information");
    }

    #[test]
    fn what_another_language_has_too_is_not_of_rust() {
        let languages = Languages {
            rust: [(10, 20), (20, 30), (40, 50), (60, 70)].into_iter().collect(),
            others: vec![(5, 10), (29, 41), (65, 66)],
        };
        let is_rust = |(start, end)| languages.is_rust(start, end);
        assert_eq!([(10, 20), (20, 30), (40, 50), (60, 70)].map(is_rust), [true, false, false, false]);
        assert_eq!([(10, 19), (11, 20), (0, 100)].map(is_rust), [false; 3]);
    }
}
