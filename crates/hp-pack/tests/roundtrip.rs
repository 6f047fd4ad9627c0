//! `read(write(p)) == p` for every valid patch, and equal patches give equal bytes.

mod common;

use hp_pack::{read, write};

#[test]
fn a_patch_with_everything_survives() {
    let patch = common::small();
    let file = write(&patch).unwrap();
    assert_eq!(read(&file).unwrap(), patch);
    assert_eq!(hp_pack::id(&file).len(), 16);
}

#[test]
fn random_patches_survive() {
    for seed in 0..2000 {
        let mut patch = common::random(seed);
        patch.canonicalize();
        let file = write(&patch).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let back = read(&file).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(back, patch, "seed {seed}");
        assert_eq!(write(&back).unwrap(), file, "seed {seed}");
    }
}

/// The order in which a patch was put together does not show in its bytes.
#[test]
fn canonical_form_is_a_fixed_point_and_keeps_references() {
    for seed in 0..500 {
        let original = common::random(seed);
        let mut patch = original.clone();
        patch.canonicalize();
        let once = patch.clone();
        patch.canonicalize();
        assert_eq!(patch, once, "seed {seed}");
        for r in &original.relocations {
            let moved = once.relocations.iter().find(|m| (m.section, m.offset) == (r.section, r.offset)).unwrap();
            assert_eq!(once.symbols[moved.symbol as usize], original.symbols[r.symbol as usize], "seed {seed}");
        }
    }
}

#[test]
fn a_patch_in_another_order_is_not_written() {
    let mut patch = common::small();
    patch.sections.reverse();
    let error = write(&patch).unwrap_err().to_string();
    assert_eq!(error, "cannot write this patch: section .data is there twice or out of order");
}

#[test]
fn an_index_to_nowhere_is_refused_not_followed() {
    let mut patch = common::small();
    patch.relocations[0].symbol = 1000;
    patch.canonicalize();
    assert!(patch.validate().unwrap_err().to_string().ends_with("names a symbol that does not exist"));
}
