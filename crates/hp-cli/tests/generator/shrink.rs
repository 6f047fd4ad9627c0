//! A pair that fails, made smaller as long as it fails in the same way.

use std::path::Path;

use crate::generator::drive::{Failure, Pair, check};
use crate::generator::program::{Item, Program};

/// The smallest pair that was found and how it fails. `root` is a folder for builds.
pub(crate) fn smaller(pair: Pair, failure: Failure, root: &Path) -> (Pair, Failure) {
    let (mut best, mut story) = (pair, failure);
    let mut number = 0;
    let mut fails = |pair: &Pair, word: &str| {
        number += 1;
        let root = root.join(number.to_string());
        let failed = check(pair, &root).err().filter(|f| f.word == word);
        if failed.is_none() {
            let _ = std::fs::remove_dir_all(root);
        }
        failed
    };
    // Halves first, then single ones.
    loop {
        let mut smaller = false;
        let pieces: Vec<u32> = uids(&best);
        let mut step = pieces.len().div_ceil(2).max(1);
        let mut left = pieces;
        loop {
            let mut at = 0;
            while at < left.len() {
                let gone = &left[at..(at + step).min(left.len())];
                let mut tried = best.clone();
                for program in [&mut tried.old, &mut tried.new] {
                    without(program, gone);
                }
                if uids(&tried).len() < uids(&best).len()
                    && let Some(f) = fails(&tried, story.word)
                {
                    left.drain(at..(at + step).min(left.len()));
                    (best, story) = (tried, f);
                    smaller = true;
                } else {
                    at += step;
                }
            }
            if step == 1 {
                break;
            }
            step /= 2;
        }
        for entry in (0..best.old.entries.len()).rev() {
            let mut tried = best.clone();
            for program in [&mut tried.old, &mut tried.new] {
                program.entries.remove(entry);
                bare(program);
            }
            if let Some(f) = fails(&tried, story.word) {
                (best, story) = (tried, f);
                smaller = true;
            }
        }
        let mut tried = best.clone();
        bare(&mut tried.old);
        bare(&mut tried.new);
        if count(&tried) < count(&best)
            && let Some(f) = fails(&tried, story.word)
        {
            (best, story) = (tried, f);
            smaller = true;
        }
        if !smaller {
            return (best, story);
        }
    }
}

fn uids(pair: &Pair) -> Vec<u32> {
    let mut all: Vec<u32> = [&pair.old, &pair.new]
        .iter()
        .flat_map(|p| p.functions.values())
        .flat_map(|f| &f.pieces)
        .map(|p| p.uid)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn count(pair: &Pair) -> usize {
    [&pair.old, &pair.new].iter().map(|p| p.functions.len() + p.objects.len()).sum()
}

fn without(program: &mut Program, gone: &[u32]) {
    for f in program.functions.values_mut() {
        f.pieces.retain(|p| !gone.contains(&p.uid));
    }
}

/// Takes away what nothing names.
fn bare(program: &mut Program) {
    loop {
        let functions: Vec<usize> =
            program.functions.keys().copied().filter(|id| !program.function_used(*id)).collect();
        let objects: Vec<usize> = program.objects.keys().copied().filter(|id| !program.object_used(*id)).collect();
        if functions.is_empty() && objects.is_empty() {
            return;
        }
        program.functions.retain(|id, _| !functions.contains(id));
        program.objects.retain(|id, _| !objects.contains(id));
        for file in program.files.iter_mut().chain([&mut program.header]) {
            file.retain(|item| match item {
                Item::Object(id) => !objects.contains(id),
                Item::Function(id) => !functions.contains(id),
            });
        }
    }
}
