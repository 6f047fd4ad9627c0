//! Brings a patch into the one order that the format has, so that equal patches give equal files.

use crate::model::{Patch, Place, Role, Symbol};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

impl Patch {
    /// Orders sections by kind, symbols as locals then imports (each in the order in which they were added,
    /// identical imports merged), relocations by place and functions by address, and adjusts all indices.
    ///
    /// An index that leads nowhere becomes `u32::MAX`, which [`Patch::validate`] refuses.
    pub fn canonicalize(&mut self) {
        self.sections.sort_by_key(|s| s.kind);
        let moved = self.order_symbols();
        let symbol = |old: u32| moved.get(old as usize).copied().unwrap_or(u32::MAX);
        for relocation in &mut self.relocations {
            relocation.symbol = symbol(relocation.symbol);
        }
        self.relocations.sort_by_key(|r| (r.section, r.offset));
        for function in &mut self.functions {
            if let Role::Entry(entry) = &mut function.role {
                entry.new_symbol = symbol(entry.new_symbol);
                entry.thunk_symbol = symbol(entry.thunk_symbol);
            }
        }
        self.order_functions();
    }

    /// Reorders the symbols; the result maps old indices to new ones.
    fn order_symbols(&mut self) -> Vec<u32> {
        let old = core::mem::take(&mut self.symbols);
        let locals = old.iter().filter(|s| s.place != Place::Import).count();
        let mut next_local = 0u32;
        let mut imports: Vec<Symbol> = Vec::new();
        let mut by_name: BTreeMap<String, u32> = BTreeMap::new();
        let mut moved = Vec::with_capacity(old.len());
        self.symbols.reserve(old.len());
        for symbol in old {
            if symbol.place != Place::Import {
                moved.push(next_local);
                next_local += 1;
                self.symbols.push(symbol);
                continue;
            }
            let same = by_name.get(&symbol.name).copied().filter(|&i| imports[i as usize] == symbol);
            let import = same.unwrap_or(imports.len() as u32);
            if same.is_none() {
                by_name.insert(symbol.name.clone(), import);
                imports.push(symbol);
            }
            moved.push(locals as u32 + import);
        }
        self.symbols.append(&mut imports);
        moved
    }

    fn order_functions(&mut self) {
        let mut order: Vec<usize> = (0..self.functions.len()).collect();
        order.sort_by_key(|&i| self.functions[i].old_address);
        let mut moved = alloc::vec![0u32; order.len()];
        for (new, &old) in order.iter().enumerate() {
            moved[old] = new as u32;
        }
        self.functions = order.iter().map(|&i| self.functions[i]).collect();
        for function in &mut self.functions {
            if let Role::Fragment(parent) = &mut function.role {
                *parent = moved.get(*parent as usize).copied().unwrap_or(u32::MAX);
            }
        }
    }
}
