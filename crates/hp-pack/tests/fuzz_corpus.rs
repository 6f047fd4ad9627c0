//! Replays what the fuzzer has found interesting (`cargo xtask fuzz`), so that nothing it once saw comes back.

mod common;
mod fuzzed;

use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

fn replay(target: &str, run: fn(&[u8])) {
    let files: Vec<PathBuf> = std::fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 10, "the corpus of {target} is not there");
    for file in &files {
        run(&std::fs::read(file).unwrap());
    }
    println!("{target}: {} inputs", files.len());
}

#[test]
fn patches() {
    replay("read_patch", fuzzed::patch);
}

#[test]
fn keys() {
    replay("read_keys", fuzzed::keys);
}

/// The fuzzer starts from real patches; run with `UPDATE=1` after the format has changed.
#[test]
fn seeds_are_valid_patches() {
    for seed in 0..12 {
        let mut patch = if seed == 0 { common::small() } else { common::random(seed) };
        patch.canonicalize();
        let file = hp_pack::write(&patch).unwrap();
        let path = corpus("read_patch").join(format!("seed-{seed:02}"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &file).unwrap();
        }
        let stored = std::fs::read(&path).unwrap();
        assert!(
            stored == file && hp_pack::read(&stored).is_ok(),
            "{} is out of date: run with UPDATE=1",
            path.display()
        );
    }
}
