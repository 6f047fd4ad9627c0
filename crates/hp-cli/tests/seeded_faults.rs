//! Good patches are spoilt in every way that matters, and sealed again, so that the format has nothing to say against
//! them; the judge must find each one.
//!
//! What does not matter is not counted: padding, names that only people read, a relocation of another type with the
//! same value. Whether a changed byte of `.eh_frame` matters, `readelf` says, which computes the rows by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use hp_pack::{Entry, FunctionRecord, Patch, Place, RelocationKind, Role, SectionKind};
use hp_verify::{Build, Scope};

/// Fixtures, the compiler's flags for them, and whether it is a library.
const CASES: &[(&str, &[&str])] = &[
    ("switch_table_new.c", &["-O2", "-g"]),
    ("local_table.c", &["-Os", "-g"]),
    ("switch_table.c", &["-O2", "-g", "-no-pie", "-fno-pie"]),
    ("cold.c", &["-O2", "-g"]),
    ("operations_table_new.c", &["-O2", "-g"]),
    ("new_import.c", &["-O2", "-g"]),
    ("new_import_ifunc.c", &["-O2", "-g"]),
    ("weak_import.c", &["-O2", "-g"]),
    ("new_global.c", &["-O2", "-g"]),
    ("static_local_new.c", &["-O2", "-g"]),
    ("vector_constant.c", &["-O2", "-g"]),
    ("endbr64.c", &["-O2", "-g", "-fcf-protection"]),
    ("no_plt.c", &["-O2", "-g", "-fno-plt"]),
    ("const_table.c", &["-O2", "-g", "-no-pie", "-fno-pie"]),
    ("thread_local.c", &["-O2", "-g"]),
    ("many_arguments.c", &["-O0", "-g"]),
    ("recursion.c", &["-O2", "-g"]),
    ("variable_array.c", &["-O2", "-g"]),
    ("tail_call.c", &["-Os", "-g"]),
];

struct Case {
    name: String,
    old: Vec<u8>,
    new: Vec<u8>,
    patch: Patch,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fixtures")
}

fn make(folder: &Path, source: &str, flags: &[&str]) -> Case {
    let build = |which: &str| {
        let path = folder.join(format!("{source}.{which}"));
        let done = Command::new("gcc")
            .current_dir(fixtures())
            .args(flags)
            .args([&format!("-D{which}"), source, "-o"])
            .arg(&path)
            .status();
        assert!(done.expect("gcc").success(), "{source} does not compile");
        path
    };
    let (old, new) = (build("OLD"), build("NEW"));
    let report = hp_diff::diff(&old, &new, &hp_diff::Options::default()).expect("readable builds");
    let read = |path: &Path| std::fs::read(path).expect("a build");
    let patch = report.patch.unwrap_or_else(|| panic!("{source}: no patch: {:?}", report.findings));
    Case { name: format!("{source} {}", flags.join(" ")), old: read(&old), new: read(&new), patch }
}

/// What became of the mutations of one case.
#[derive(Default)]
struct Tally {
    caught: usize,
    survived: Vec<String>,
}

impl Case {
    fn holds(&self, patch: &Patch, scope: Scope) -> bool {
        let build = |image| Build { image, debug: None, mini: None };
        hp_verify::verify(patch, &build(&self.old), &build(&self.new), scope).expect("readable builds").holds()
    }

    /// Spoils a copy of the patch; counts it if the format still accepts it.
    fn spoil(&self, tally: &mut Tally, scope: Scope, what: String, change: impl FnOnce(&mut Patch)) {
        let mut patch = self.patch.clone();
        change(&mut patch);
        let Ok(file) = hp_pack::write(&patch) else { return };
        let Ok(patch) = hp_pack::read(&file) else { return };
        if patch == self.patch {
            return;
        }
        if self.holds(&patch, scope) {
            tally.survived.push(format!("{}: {what}", self.name));
        } else {
            tally.caught += 1;
        }
    }

    fn relocations(&self, tally: &mut Tally) {
        use RelocationKind::{Abs32, Abs32Signed, Abs64, GotPcRel, Pc32, Pc64, Plt32};
        let symbols = self.patch.symbols.len() as u32;
        for (i, r) in self.patch.relocations.iter().enumerate() {
            let name = format!("relocation {i} ({}+{:#x})", r.section.name(), r.offset);
            for delta in [1, -1, 16] {
                self.spoil(tally, Scope::Patch, format!("{name}: addend {delta:+}"), |p| {
                    p.relocations[i].addend += delta;
                });
            }
            let mine = &self.patch.symbols[r.symbol as usize];
            let leads = |s: u32| {
                let s = &self.patch.symbols[s as usize];
                (s.place, s.value, if s.place == Place::Import { s.name.clone() } else { String::new() })
            };
            let other = (1..symbols).map(|d| (r.symbol + d) % symbols).find(|s| leads(*s) != leads(r.symbol));
            if let Some(other) = other {
                self.spoil(tally, Scope::Patch, format!("{name}: symbol {other}"), |p| {
                    p.relocations[i].symbol = other;
                });
            }
            let kind = match r.kind {
                Pc32 => GotPcRel,
                Plt32 if mine.place == Place::Import => Pc32,
                Plt32 => GotPcRel,
                GotPcRel => Pc32,
                Abs32 | Abs32Signed => Pc32,
                Abs64 => Pc64,
                Pc64 => Abs64,
            };
            self.spoil(tally, Scope::Patch, format!("{name}: type {kind:?}"), |p| p.relocations[i].kind = kind);
            for offset in [r.offset + 1, r.offset.wrapping_sub(1)] {
                self.spoil(tally, Scope::Patch, format!("{name}: offset {offset:#x}"), |p| {
                    p.relocations[i].offset = offset;
                });
            }
            self.spoil(tally, Scope::Patch, format!("{name}: taken away"), |p| {
                p.relocations.remove(i);
            });
        }
    }

    fn symbols(&self, tally: &mut Tally) {
        for (i, s) in self.patch.symbols.iter().enumerate() {
            let records = self.patch.functions.iter().filter_map(|f| match f.role {
                Role::Entry(e) => Some([e.new_symbol, e.thunk_symbol]),
                Role::Fragment(_) => None,
            });
            let relocated = self.patch.relocations.iter().any(|r| r.symbol as usize == i);
            if !relocated && !records.flatten().any(|n| n as usize == i) {
                continue;
            }
            if s.place == Place::Import {
                for name in [format!("x{}", s.name), s.name.replace("GLIBC_2.2", "GLIBC_2.9"), format!("{}@X", s.name)]
                {
                    self.spoil(tally, Scope::Patch, format!("import {}: {name}", s.name), |p| p.symbols[i].name = name);
                }
                self.spoil(tally, Scope::Patch, format!("import {}: weak", s.name), |p| p.symbols[i].weak ^= true);
                continue;
            }
            for delta in [1, 8, u64::MAX, 64] {
                self.spoil(tally, Scope::Patch, format!("symbol {}: value {:+}", s.name, delta as i64), |p| {
                    p.symbols[i].value = s.value.wrapping_add(delta);
                });
            }
        }
    }

    fn records(&self, tally: &mut Tally) {
        for (i, f) in self.patch.functions.iter().enumerate() {
            let mut spoil = |what: &str, change: &dyn Fn(&mut FunctionRecord)| {
                self.spoil(tally, Scope::Patch, format!("record {i}: {what}"), |p| change(&mut p.functions[i]));
            };
            spoil("address + 1", &|f| f.old_address += 1);
            spoil("address - 16", &|f| f.old_address -= 16);
            spoil("size + 1", &|f| f.old_size += 1);
            spoil("size - 1", &|f| f.old_size -= 1);
            spoil("digest", &|f| f.digest[31] ^= 1);
            spoil("site", &in_entry(move |e| e.site_offset ^= 4));
            spoil("bytes", &in_entry(move |e| e.site_bytes[0] ^= 1));
            spoil("bytes", &in_entry(move |e| e.site_bytes[4] ^= 0x80));
            spoil("displaced + 1", &in_entry(move |e| e.displaced += 1));
            spoil("displaced - 1", &in_entry(move |e| e.displaced -= 1));
            for (s, symbol) in self.patch.symbols.iter().enumerate() {
                let s = s as u32;
                let Role::Entry(now) = f.role else { continue };
                match symbol.place {
                    Place::Payload(SectionKind::Text) if s != now.new_symbol => {
                        spoil("another new function", &in_entry(move |e| e.new_symbol = s));
                    }
                    Place::Payload(SectionKind::Thunks) if s != now.thunk_symbol => {
                        spoil("another thunk", &in_entry(move |e| e.thunk_symbol = s));
                    }
                    _ => {}
                }
            }
            let others = (0..self.patch.functions.len() as u32).filter(|n| *n != i as u32);
            for parent in others {
                spoil("another parent", &|f| {
                    if let Role::Fragment(number) = &mut f.role {
                        *number = parent;
                    }
                });
            }
            let last = self.patch.functions.len() == i + 1;
            let is_parent = self.patch.functions.iter().any(|f| f.role == Role::Fragment(i as u32));
            if !is_parent && (last || !self.patch.functions.iter().any(|f| matches!(f.role, Role::Fragment(_)))) {
                self.spoil(tally, Scope::Whole, format!("record {i}: taken away"), |p| {
                    p.functions.remove(i);
                });
            }
        }
    }

    /// Alignment that an instruction relies on: of constants that are as large as a vector register.
    fn alignments(&self, tally: &mut Tally) {
        for (i, section) in self.patch.sections.iter().enumerate() {
            if section.kind == SectionKind::Rodata && section.align >= 16 {
                self.spoil(tally, Scope::Patch, format!("{}: alignment", section.kind.name()), |p| {
                    p.sections[i].align = 1;
                });
            }
        }
    }

    /// Bytes of code and data, those of relocated fields and of padding put aside.
    fn bytes(&self, tally: &mut Tally) {
        for symbol in &self.patch.symbols {
            let Place::Payload(kind) = symbol.place else { continue };
            if matches!(kind, SectionKind::Bss | SectionKind::State | SectionKind::EhFrame) {
                continue;
            }
            let step = (symbol.size / 48).max(1) as usize;
            for offset in (symbol.value..symbol.value + symbol.size).step_by(step) {
                let field = |r: &&hp_pack::Relocation| {
                    r.section == kind && (r.offset..r.offset + r.kind.width()).contains(&offset)
                };
                if self.patch.relocations.iter().find(field).is_some() {
                    continue;
                }
                let bit = 1u8 << (offset % 8);
                let what = format!("{}+{offset:#x} in {} ^ {bit:#x}", kind.name(), symbol.name);
                self.spoil(tally, Scope::Patch, what, |p| {
                    if let Some(section) = p.sections.iter_mut().find(|s| s.kind == kind) {
                        section.data[offset as usize] ^= bit;
                    }
                });
            }
        }
    }

    fn unwind_rows(&self, tally: &mut Tally, folder: &Path) {
        let rows = |patch: &Patch| -> Option<String> {
            let file = folder.join("rows.hpatch");
            std::fs::write(&file, hp_pack::write(patch).ok()?).ok()?;
            let done = Command::new("readelf").arg("--debug-dump=frames-interp").arg(&file).output().ok()?;
            let complaints = String::from_utf8_lossy(&done.stderr).into_owned();
            Some(meaning(&String::from_utf8_lossy(&done.stdout)) + &complaints)
        };
        let original = rows(&self.patch).expect("readelf");
        let size = self.patch.section(SectionKind::EhFrame).map_or(0, |s| s.data.len());
        for at in (0..size).step_by((size / 96).max(1)) {
            let field = |r: &&hp_pack::Relocation| {
                r.section == SectionKind::EhFrame && (r.offset..r.offset + 4).contains(&(at as u64))
            };
            if self.patch.relocations.iter().find(field).is_some() {
                continue;
            }
            let change = |p: &mut Patch| {
                if let Some(section) = p.sections.iter_mut().find(|s| s.kind == SectionKind::EhFrame) {
                    section.data[at] ^= 1 << (at % 5);
                }
            };
            let mut spoilt = self.patch.clone();
            change(&mut spoilt);
            if rows(&spoilt).is_some_and(|text| text != original) {
                self.spoil(tally, Scope::Patch, format!(".eh_frame+{at:#x}"), change);
            }
        }
    }
}

/// What `readelf` says of unwind rows, without what makes no difference: how entries are written and padded, rows that
/// repeat the one before, registers that keep their value.
fn meaning(text: &str) -> String {
    let (mut common, mut found) = (BTreeMap::new(), Vec::new());
    let (mut columns, mut rows): (Vec<&str>, Vec<(&str, Vec<String>)>) = Default::default();
    let mut entry: Option<(&str, bool, &str)> = None;
    for line in text.lines().chain(["00000000 end"]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "ZERO", ..] => {}
            ["LOC", rest @ ..] => columns = rest.to_vec(),
            [at, .., "CIE", augmentation, _, _, _] => {
                close(entry.take(), std::mem::take(&mut rows), &mut common, &mut found);
                entry = Some((at, true, augmentation));
            }
            [_, .., cie, range] if cie.starts_with("cie=") => {
                close(entry.take(), std::mem::take(&mut rows), &mut common, &mut found);
                entry = Some((&cie[4..], false, range));
            }
            [_, "end"] => close(entry.take(), std::mem::take(&mut rows), &mut common, &mut found),
            [location, rules @ ..] if rules.len() == columns.len() && entry.is_some() => {
                let rules = columns.iter().zip(rules).filter(|(_, r)| !matches!(**r, "s" | "u"));
                rows.push((location, rules.map(|(c, r)| format!("{c}={r}")).collect()));
            }
            _ => {}
        }
    }
    found.sort();
    found.join("\n")
}

type Rows<'t> = Vec<(&'t str, Vec<String>)>;

fn close<'t>(
    entry: Option<(&'t str, bool, &'t str)>,
    rows: Rows<'t>,
    common: &mut BTreeMap<&'t str, (String, Vec<String>)>,
    found: &mut Vec<String>,
) {
    match entry {
        Some((at, true, augmentation)) => {
            let first = rows.into_iter().next().map(|r| r.1).unwrap_or_default();
            common.insert(at, (augmentation.to_owned(), first));
        }
        Some((cie, false, range)) => {
            let (augmentation, mut now) = common.get(cie).cloned().unwrap_or_default();
            let mut text = format!("{range} {augmentation} {now:?}");
            for (location, rules) in rows {
                if rules != now {
                    text += &format!(" {location}: {rules:?}");
                }
                now = rules;
            }
            found.push(text);
        }
        None => {}
    }
}

/// A change of a record that is an entry.
fn in_entry(change: impl Fn(&mut Entry)) -> impl Fn(&mut FunctionRecord) {
    move |record| {
        if let Role::Entry(entry) = &mut record.role {
            change(entry);
        }
    }
}

#[test]
fn every_fault_that_matters_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut caught, mut survived) = (0, Vec::new());
    for (source, flags) in CASES {
        let case = make(folder.path(), source, flags);
        assert!(case.holds(&case.patch, Scope::Whole), "{}: the good patch is not proven", case.name);
        let mut tally = Tally::default();
        case.relocations(&mut tally);
        case.symbols(&mut tally);
        case.records(&mut tally);
        case.alignments(&mut tally);
        case.bytes(&mut tally);
        case.unwind_rows(&mut tally, folder.path());
        println!("{}: {} found, {} not", case.name, tally.caught, tally.survived.len());
        caught += tally.caught;
        survived.extend(tally.survived);
    }
    println!("{caught} seeded faults found");
    assert!(survived.is_empty(), "{} faults were not found:\n{}", survived.len(), survived.join("\n"));
    assert!(caught >= 500, "only {caught} faults were seeded");
}

/// The command says the same as the library, as text and as JSON, and an exit code.
#[test]
fn the_command_proves_and_refuses() {
    let folder = tempfile::tempdir().expect("a folder");
    let case = make(folder.path(), "switch_table_new.c", &["-O2", "-g"]);
    let [old, new, patch] = ["old", "new", "fix.hpatch"].map(|name| folder.path().join(name));
    std::fs::write(&old, &case.old).expect("a file");
    std::fs::write(&new, &case.new).expect("a file");
    std::fs::write(&patch, hp_pack::write(&case.patch).expect("a patch")).expect("a file");
    let verify = |old: &Path, new: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hp"));
        command.arg("verify").arg(&patch).args(["--json", "--old"]).arg(old).arg("--new").arg(new);
        let done = command.output().expect("hp runs");
        let report: serde_json::Value = serde_json::from_slice(&done.stdout).expect("JSON");
        (done.status.code(), report)
    };
    let (code, report) = verify(&old, &new);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["builds"]["proven"], true);
    assert_eq!(report["builds"]["proof"]["replaced"], 1);
    assert!(report["builds"]["proof"]["unchanged"].as_u64() > Some(10), "{report:#}");
    // The new build in the old one's place is another base.
    let (code, report) = verify(&new, &old);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(report["builds"]["faults"][0]["part"], "identity");
}

/// A function that changed and is not replaced is found, unless the manifest says why.
#[test]
fn what_is_left_out_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut case = make(folder.path(), "line_only.c", &["-O2", "-g"]);
    let mut manifest: hp_pack::manifest::Manifest = serde_json::from_slice(&case.patch.manifest).expect("a manifest");
    let left_out = manifest.left_out.len();
    assert!(left_out > 0, "the fixture leaves functions out");
    assert!(case.holds(&case.patch, Scope::Whole));
    manifest.left_out.pop();
    case.patch.manifest = serde_json::to_vec(&manifest).expect("JSON");
    assert!(!case.holds(&case.patch, Scope::Whole));
    assert!(case.holds(&case.patch, Scope::Patch));
}
