//! Builds with bytes that no linker wrote: there is an answer or an error, never a panic, in the comparison and in the
//! judge. Every change comes from a seed, which a failure names.

#[path = "support/random.rs"]
mod random;

use random::Random;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use hp_diff::Options;
use hp_verify::{Build, Scope};

const ROUNDS: u64 = 1000;

/// Exceptions, virtual calls, a table of jumps, constants, thread-local and static variables, and types.
const SOURCE: &str = r#"
#include <stdexcept>
#include <string>
struct Shape { virtual ~Shape() {} virtual int area(int) = 0; };
struct Square : Shape {
    int side = 3;
    int area(int x) override { if (x > 100) throw std::runtime_error("too large"); return x * side; }
};
static const int table[] = {1, 2, 3, 4, 5};
static int calls;
thread_local int depth = 4;
int measure(Shape *shape, int x) {
    calls++;
    switch (x) {
    case 0: return 5;
    case 1: return 9;
    case 2: return shape->area(7);
    case 3: return 77;
    case 4: return table[x];
    case 5: return depth++;
    default: return shape->area(x) + ADDED;
    }
}
int run(int count) {
    Square square;
    std::string text = "start";
    int sum = 0;
    for (int i = 0; i < count; i++) {
        try { sum += measure(&square, i * 20); } catch (std::exception &error) { text += error.what(); }
    }
    return sum + calls + text.size();
}
"#;

fn u64_at(file: &[u8], at: usize) -> usize {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize
}

/// The headers of the file, and what each section holds.
fn pieces(file: &[u8]) -> (Vec<std::ops::Range<usize>>, Vec<std::ops::Range<usize>>) {
    let (programs, sections) = (u64_at(file, 32), u64_at(file, 40));
    let count = |at: usize| usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
    let headers = vec![0..64, programs..programs + 56 * count(56), sections..sections + 64 * count(60)];
    let contents = (0..count(60)).map(|index| sections + index * 64);
    // Not SHT_NOBITS.
    let contents = contents
        .filter(|at| file[at + 4] != 8)
        .map(|at| u64_at(file, at + 24)..u64_at(file, at + 24) + u64_at(file, at + 32));
    (headers, contents.filter(|range| !range.is_empty()).collect())
}

/// Changes a few bytes to values that are likely to hurt, in headers as often as in what sections hold.
fn damaged(file: &[u8], r: &mut Random) -> Vec<u8> {
    let (headers, contents) = pieces(file);
    let mut other = file.to_vec();
    let places = if r.below(3) == 0 { headers } else { contents };
    for _ in 0..[1, 1, 2, 4, 16][r.below(5)] {
        let range = places[r.below(places.len())].clone();
        let at = range.start + r.below(range.len());
        let values = [0, 1, u64::MAX, 1 << 63, 1 << 31, file.len() as u64, file.len() as u64 - 1, r.next()];
        let (value, width) = (values[r.below(values.len())].to_le_bytes(), [1, 2, 4, 8][r.below(4)]);
        let end = (at + width).min(other.len());
        if r.below(3) == 0 {
            other[at] ^= 1 << r.below(8);
        } else {
            other[at..end].copy_from_slice(&value[..end - at]);
        }
    }
    if r.below(20) == 0 {
        other.truncate(r.below(other.len()));
    }
    other
}

fn build(folder: &Path, name: &str, added: &str) -> PathBuf {
    std::fs::write(folder.join("code.cc"), SOURCE).unwrap();
    let arguments = ["-O2", "-g", "-fPIC", "-shared", "-Wl,--build-id", added, "code.cc", "-o", name];
    assert!(Command::new("g++").current_dir(folder).args(arguments).status().unwrap().success());
    folder.join(name)
}

#[test]
fn damaged_builds_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (build(folder.path(), "old.so", "-DADDED=1"), build(folder.path(), "new.so", "-DADDED=9"));
    let files = [&old, &new].map(|path| std::fs::read(path).unwrap());
    let options = Options::default();
    let patch = hp_diff::diff(&old, &new, &options).unwrap().patch.expect("a patch of what nobody damaged");
    let paths = ["a.so", "b.so"].map(|name| folder.path().join(name));
    let (mut read, mut refused) = (0, 0);
    for seed in 0..ROUNDS {
        let r = &mut Random(seed);
        let which = r.below(3);
        let [a, b] = [0, 1].map(|i| if which == i || which == 2 { damaged(&files[i], r) } else { files[i].clone() });
        std::fs::write(&paths[0], &a).unwrap();
        std::fs::write(&paths[1], &b).unwrap();
        let done = catch_unwind(AssertUnwindSafe(|| {
            let compared = hp_diff::diff(&paths[0], &paths[1], &options);
            let bytes = |image| Build { image, debug: None, mini: None };
            let judged = hp_verify::verify(&patch, &bytes(&a), &bytes(&b), Scope::Whole);
            (compared.is_ok(), judged.is_ok())
        }));
        match done {
            Ok((true, _)) => read += 1,
            Ok((false, _)) => refused += 1,
            Err(_) => panic!("seed {seed}"),
        }
    }
    // Both kinds are there, or nothing is tested.
    assert!(read > ROUNDS / 10 && refused > ROUNDS / 10, "{read} compared, {refused} refused");
}
