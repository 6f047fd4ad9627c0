//! Symbols and types from elsewhere: stripped builds with a debug file make the very same patch as the
//! builds before they were stripped, wherever the debug file lies; and never one with a debug file of another build.
//!
//! The debug files are made as distributions make them, by `objcopy`, `dwz` and `xz`.

use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::{Code, DebugPlaces, Evidence, Options, Report};

const PROGRAM: &str = r#"
#include <stdio.h>
#include <stdlib.h>
struct state { int round; const char *word; };
static struct state state = {1, "one"};
static int next(int x) { static int calls; return x + ++calls; }
__attribute__((noinline)) static int again(int x) { static int calls = 7; return x - ++calls; }
__attribute__((noinline)) int word(int n) { state.round += n; return puts(state.word) + 3; }
int (*call[])(int) = {next, again};
int main(int argc, char **argv) { return call[argc & 1](word(argc)) + atoi(argv[0]); }
"#;

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Room {
        Room(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// The program before and after the fix, with all symbols.
    fn pair(&self, flags: &[&str]) -> [PathBuf; 2] {
        [("old", PROGRAM.to_owned()), ("new", PROGRAM.replace("+ 3", "+ 4 * state.round"))].map(|(name, source)| {
            let program = self.path(&format!("{name}/program"));
            std::fs::write(self.path(&format!("{name}/program.c")), source).unwrap();
            let folder = program.parent().unwrap();
            run(Command::new("gcc").args(["-O2", "-g", "program.c", "-o", "program"]).args(flags).current_dir(folder));
            program
        })
    }

    /// A copy of a program's debug information.
    fn debug_file(&self, program: &Path, name: &str) -> PathBuf {
        let debug = self.path(name);
        run(Command::new("objcopy").arg("--only-keep-debug").args([program, &debug]));
        debug
    }

    fn strip(&self, program: &Path, name: &str) -> PathBuf {
        let stripped = self.path(name);
        run(Command::new("strip").arg("-s").arg(program).arg("-o").arg(&stripped));
        stripped
    }
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn build_id(program: &Path) -> String {
    let notes = Command::new("readelf").arg("-n").arg(program).output().unwrap();
    let text = String::from_utf8(notes.stdout).unwrap();
    text.split("Build ID: ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn diff(pair: &[PathBuf; 2], options: &Options) -> Report {
    hp_diff::diff(&pair[0], &pair[1], options).unwrap()
}

#[track_caller]
fn patch(report: &Report) -> Vec<u8> {
    hp_pack::write(report.patch.as_ref().unwrap_or_else(|| panic!("{:?}", report.findings))).unwrap()
}

/// Stripped builds with these options make the patch of the whole builds.
#[track_caller]
fn same_patch(whole: &[PathBuf; 2], stripped: &[PathBuf; 2], options: &Options) {
    let (expected, found) = (diff(whole, &Options::default()), diff(stripped, options));
    assert_eq!(expected.changes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["word"]);
    assert!(patch(&expected) == patch(&found), "{:?} {:?}", found.changes, found.findings);
    assert!(expected.evidence.iter().all(|e| e.keys().eq([&Evidence::SymbolTable])));
    assert!(found.evidence.iter().all(|e| e.keys().eq([&Evidence::DebugFile])), "{:?}", found.evidence);
}

#[test]
fn a_debug_file_is_found_wherever_it_may_lie() {
    let room = Room::new();
    let whole = room.pair(&[]);
    let debug = [&whole[0], &whole[1]].map(|p| room.debug_file(p, &format!("{}/d", build_id(p))));
    let stripped = [room.strip(&whole[0], "s/old/program"), room.strip(&whole[1], "s/new/program")];
    let found_nothing = hp_diff::diff(&stripped[0], &stripped[1], &Options::default()).unwrap();
    assert!(found_nothing.refused());

    let explicit =
        Options { old_debug: Some(debug[0].clone()), new_debug: Some(debug[1].clone()), ..Options::default() };
    same_patch(&whole, &stripped, &explicit);

    let (tree, cache) = (room.path("tree"), room.path("cache"));
    for (program, debug) in whole.iter().zip(&debug) {
        let id = build_id(program);
        let by_id = room.path(&format!("tree/.build-id/{}/{}.debug", &id[..2], &id[2..]));
        std::fs::copy(debug, by_id).unwrap();
        std::fs::copy(debug, room.path(&format!("cache/{id}/debuginfo"))).unwrap();
    }
    let places = |directories: &[&PathBuf], caches: &[&PathBuf]| Options {
        places: DebugPlaces {
            directories: directories.iter().map(|d| (*d).clone()).collect(),
            caches: caches.iter().map(|d| (*d).clone()).collect(),
        },
        ..Options::default()
    };
    same_patch(&whole, &stripped, &places(&[&tree], &[]));
    same_patch(&whole, &stripped, &places(&[], &[&cache]));
}

#[test]
fn a_debug_link_is_followed_and_its_checksum_checked() {
    for flags in [&[][..], &["-Wl,--build-id=none"]] {
        let room = Room::new();
        let whole = room.pair(flags);
        let link = |place: &str| {
            ["old", "new"].map(|side| {
                let whole = room.path(&format!("{side}/program"));
                let debug = room.debug_file(&whole, &format!("{place}/link/{side}/program.debug"));
                let stripped = room.strip(&whole, &format!("{place}/s/{side}/program"));
                run(Command::new("objcopy").arg("--add-gnu-debuglink").arg(&debug).arg(&stripped));
                (stripped, debug)
            })
        };
        let move_to = |from: &Path, to: PathBuf| {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::rename(from, to).unwrap();
        };
        let options = |room: &Room| Options {
            places: DebugPlaces { directories: vec![room.path("tree")], caches: Vec::new() },
            ..Options::default()
        };
        for place in ["beside", "below", "tree-path"] {
            let pair = link(place).map(|(stripped, debug)| {
                let folder = stripped.parent().unwrap();
                move_to(
                    &debug,
                    match place {
                        "beside" => folder.join("program.debug"),
                        "below" => folder.join(".debug/program.debug"),
                        _ => {
                            let full = folder.canonicalize().unwrap();
                            room.path("tree").join(full.strip_prefix("/").unwrap()).join("program.debug")
                        }
                    },
                );
                stripped
            });
            if flags.is_empty() {
                same_patch(&whole, &pair, &options(&room));
            } else {
                let report = diff(&pair, &options(&room));
                assert_eq!(report.changes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["word"]);
            }
        }
        // Another build's file under the right name.
        let [(old, debug), (new, other)] = link("wrong");
        move_to(&other, old.parent().unwrap().join("program.debug"));
        let error = hp_diff::diff(&old, &new, &Options::default()).unwrap_err().to_string();
        let why = if flags.is_empty() { "build ID" } else { "checksum" };
        assert!(error.contains("program.debug: is not the debug file of") && error.contains(why), "{error}");
        // One byte of it differs.
        let mut bytes = std::fs::read(&debug).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(old.parent().unwrap().join("program.debug"), bytes).unwrap();
        let error = hp_diff::diff(&old, &new, &Options::default()).unwrap_err().to_string();
        assert!(error.contains("checksum"), "{error}");
    }
}

#[test]
fn a_debug_file_of_another_build_is_an_error() {
    let room = Room::new();
    let whole = room.pair(&[]);
    let debug = [room.debug_file(&whole[0], "old.debug"), room.debug_file(&whole[1], "new.debug")];
    let stripped = [room.strip(&whole[0], "s/old/program"), room.strip(&whole[1], "s/new/program")];
    let error = |old: &Path, new: &Path| {
        let options = Options { old_debug: Some(old.into()), new_debug: Some(new.into()), ..Options::default() };
        hp_diff::diff(&stripped[0], &stripped[1], &options).unwrap_err().to_string()
    };
    let swapped = error(&debug[1], &debug[0]);
    for word in ["new.debug: is not the debug file of", &build_id(&whole[0]), &build_id(&whole[1])] {
        assert!(swapped.contains(word), "{swapped}");
    }
    std::fs::write(room.path("text"), "no debug file").unwrap();
    assert!(error(&debug[0], &room.path("text")).contains("is not an ELF file"));
    assert!(error(&debug[0], &room.path("absent")).contains("cannot read"));
    assert!(error(&debug[0], room.0.path()).contains("is a directory"));
}

#[test]
fn compressed_debug_sections_are_read() {
    let room = Room::new();
    let whole = room.pair(&[]);
    let stripped = [room.strip(&whole[0], "s/old/program"), room.strip(&whole[1], "s/new/program")];
    for format in ["zlib-gabi", "zlib-gnu", "zstd"] {
        let debug = [0, 1].map(|i| {
            let plain = room.debug_file(&whole[i], &format!("{i}.{format}"));
            run(Command::new("objcopy").arg(format!("--compress-debug-sections={format}")).arg(&plain));
            Some(plain)
        });
        let [old_debug, new_debug] = debug;
        same_patch(&whole, &stripped, &Options { old_debug, new_debug, ..Options::default() });
    }
}

#[test]
fn what_dwz_shares_between_debug_files_is_read_or_said_to_be_missing() {
    let room = Room::new();
    let whole = room.pair(&[]);
    let stripped = [room.strip(&whole[0], "s/old/program"), room.strip(&whole[1], "s/new/program")];
    let debug = [0, 1].map(|i| room.debug_file(&whole[i], &format!("tree/{i}.debug")));
    std::fs::create_dir_all(room.path("tree/.dwz")).unwrap();
    run(Command::new("dwz").args(["-m", ".dwz/x", "-r", "0.debug", "1.debug"]).current_dir(room.path("tree")));
    let links = Command::new("readelf").args(["-S"]).arg(&debug[0]).output().unwrap();
    assert!(String::from_utf8_lossy(&links.stdout).contains(".gnu_debugaltlink"), "dwz shared nothing");
    let [old_debug, new_debug] = debug.map(Some);
    let options = Options { old_debug, new_debug, ..Options::default() };
    same_patch(&whole, &stripped, &options);

    std::fs::remove_file(room.path("tree/.dwz/x")).unwrap();
    let report = diff(&stripped, &options);
    let says = |f: &hp_diff::Finding| f.code == Code::LayoutUnproven && f.message.contains(".gnu_debugaltlink");
    assert!(report.refused() && report.findings.iter().any(says), "{:?}", report.findings);
}

#[test]
fn mini_debug_information_names_local_functions() {
    let room = Room::new();
    room.pair(&[]);
    let stripped = ["old", "new"].map(|side| {
        let program = room.path(&format!("{side}/program"));
        let mini = room.path(&format!("{side}/mini"));
        // As Fedora's find-debuginfo does: functions only, without sections, xz.
        run(Command::new("objcopy").args(["-S", "--keep-symbol=again", "--keep-symbol=next"]).args([&program, &mini]));
        run(Command::new("xz").arg(&mini));
        let stripped = room.strip(&program, &format!("s/{side}/program"));
        let section = format!(".gnu_debugdata={}.xz", mini.display());
        run(Command::new("objcopy").arg("--add-section").arg(section).arg(&stripped));
        stripped
    });
    let report = diff(&stripped, &Options::default());
    for counts in &report.evidence {
        assert_eq!(counts.get(&Evidence::MiniDebugInfo), Some(&2), "{counts:?}");
    }
    assert!(report.findings.iter().any(|f| f.code == Code::LayoutUnproven));

    let mut bytes = std::fs::read(&stripped[1]).unwrap();
    let at = bytes.windows(6).position(|w| w == b"\xfd7zXZ\0").unwrap();
    bytes[at + 40] ^= 0xff;
    std::fs::write(&stripped[1], bytes).unwrap();
    let error = hp_diff::diff(&stripped[0], &stripped[1], &Options::default()).unwrap_err().to_string();
    assert!(error.contains(".gnu_debugdata cannot be read"), "{error}");
}
