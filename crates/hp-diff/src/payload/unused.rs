//! Copied constants that nothing came to refer to.
//!
//! A constant that may be a part of the one before it is copied with that one, and has a symbol of its own, so that it is not
//! copied again for who refers to it. Where nobody does, its bytes belong to the one before it.

use hp_pack::{Patch, Role};
use rustc_hash::FxHashSet;

/// Gives the bytes of those of these symbols that no relocation names to the one before, where they lie side by side.
pub(crate) fn fold(patch: &mut Patch, literals: &FxHashSet<u32>) {
    let used: FxHashSet<u32> = patch.relocations.iter().map(|r| r.symbol).collect();
    let mut order: Vec<u32> = literals.iter().copied().collect();
    let place = |id: u32| (patch.symbols[id as usize].place, patch.symbols[id as usize].value);
    order.sort_by_key(|id| (place(*id), *id));
    let mut gone: FxHashSet<u32> = FxHashSet::default();
    let mut last: Option<usize> = None;
    for id in order {
        let (section, value) = (patch.symbols[id as usize].place, patch.symbols[id as usize].value);
        let size = patch.symbols[id as usize].size;
        let before = last.map(|last| &mut patch.symbols[last]).filter(|_| !used.contains(&id));
        match before.filter(|before| (before.place, before.value + before.size) == (section, value)) {
            Some(before) => {
                before.size += size;
                gone.insert(id);
            }
            None => last = Some(id as usize),
        }
    }
    let mut next = 0;
    let mut number = |id: u32| {
        let kept = !gone.contains(&id);
        next += u32::from(kept);
        if kept { next - 1 } else { u32::MAX }
    };
    let moved: Vec<u32> = (0..patch.symbols.len() as u32).map(&mut number).collect();
    let mut kept = moved.iter().map(|n| *n != u32::MAX);
    patch.symbols.retain(|_| kept.next().unwrap_or(true));
    patch.relocations.iter_mut().for_each(|r| r.symbol = moved[r.symbol as usize]);
    for function in &mut patch.functions {
        if let Role::Entry(entry) = &mut function.role {
            entry.new_symbol = moved[entry.new_symbol as usize];
            entry.thunk_symbol = moved[entry.thunk_symbol as usize];
        }
    }
}
