//! Functions and objects, as the symbols of an image have them.

use std::collections::BTreeMap;

use object::SymbolKind;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{CodeRange, DataObject, Function, is_of_start_files};
use crate::image::{Image, Section, Symbol, is_constant_section};
use crate::{arch, names, rust};

/// The name without the fragment suffix `.cold` or `.cold.N`.
pub(crate) fn cold_parent(name: &str) -> Option<&str> {
    let numbered = name.rsplit_once('.').filter(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()));
    numbered.map_or(name, |(stem, _)| stem).strip_suffix(".cold")
}

pub(super) fn functions<'a>(image: &Image<'a>) -> Vec<Function<'a>> {
    let in_code = |s: &&Section<'_>| s.executable && !s.name.starts_with(".plt") && s.name != ".iplt";
    let mut symbols: Vec<&Symbol<'a>> = image.symbols.iter().filter(|s| s.kind == SymbolKind::Text).collect();
    symbols.sort_by_key(|s| s.address);
    let entries = symbols.chunk_by(|a, b| a.address == b.address);
    let entries: Vec<&[&Symbol<'a>]> =
        entries.filter(|e| image.section_at(e[0].address).filter(in_code).is_some()).collect();
    let mut functions = Vec::with_capacity(entries.len());
    let mut end_before = 0;
    for (i, entry) in entries.iter().enumerate() {
        let address = entry[0].address;
        let rest = image.bytes_from(address);
        let next = entries.get(i + 1).map(|e| e[0].address);
        let size = match entry.iter().map(|s| s.size).max().unwrap_or_default() {
            0 => {
                let room = next.map_or(rest.len() as u64, |n| n - address);
                arch::unpadded(&rest[..(room as usize).min(rest.len())])
            }
            n => (n as usize).min(rest.len()),
        };
        let mut function = named(entry);
        function.overlaps = address < end_before || next.is_some_and(|n| address + size as u64 > n);
        end_before = end_before.max(address + size as u64);
        function.ranges.push(CodeRange { address, bytes: &rest[..size], name: function.names[0] });
        functions.push(function);
    }
    attach_fragments(functions)
}

/// A function with all names of its entry: the global ones first, else in their order.
fn named<'a>(entry: &[&Symbol<'a>]) -> Function<'a> {
    let first = entry[0];
    let mut function = Function {
        names: Vec::with_capacity(entry.len()),
        file: first.file,
        local: first.local,
        ranges: Vec::with_capacity(1),
        overlaps: false,
        rust: false,
        evidence: first.evidence,
    };
    for symbol in entry {
        if function.local && !symbol.local {
            (function.local, function.file) = (false, symbol.file);
            function.names.insert(0, symbol.name);
        } else {
            function.names.push(symbol.name);
        }
    }
    function.names.dedup();
    function.rust = rust::is_mangled(function.name());
    function
}

/// Joins fragments with the only function that they can belong to by their names. Functions are ordered.
fn attach_fragments(functions: Vec<Function<'_>>) -> Vec<Function<'_>> {
    let parents = parents(&functions);
    if parents.is_empty() {
        return functions;
    }
    let mut left: Vec<Option<Function<'_>>> = functions.into_iter().map(Some).collect();
    for &(fragment, parent) in &parents {
        // What belongs to a fragment is left as it is.
        if parents.binary_search_by_key(&parent, |p| p.0).is_err()
            && let Some(Some(taken)) = left.get_mut(fragment).map(Option::take)
            && let Some(Some(function)) = left.get_mut(parent)
        {
            function.overlaps |= taken.overlaps;
            function.ranges.extend(taken.ranges);
        }
    }
    left.into_iter().flatten().collect()
}

/// Fragments and the functions that they belong to, by index; ordered.
fn parents(functions: &[Function<'_>]) -> Vec<(usize, usize)> {
    let stems = functions.iter().enumerate().filter_map(|(i, f)| Some((i, cold_parent(f.name())?)));
    let stems: Vec<(usize, &str)> = stems.collect();
    let wanted: FxHashSet<&str> = stems.iter().map(|s| s.1).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut named: FxHashMap<(&str, &str), Vec<usize>> = FxHashMap::default();
    for (i, function) in functions.iter().enumerate() {
        for name in function.names.iter().filter(|name| wanted.contains(**name)) {
            named.entry((function.file, name)).or_default().push(i);
        }
    }
    let parent = |(fragment, stem): (usize, &str)| {
        // The fragment's symbol is local even if its parent is global.
        let same_file = named.get(&(functions[fragment].file, stem));
        match same_file.or_else(|| named.get(&("", stem)))?.as_slice() {
            [one] => Some((fragment, *one)),
            _ => None,
        }
    };
    stems.into_iter().filter_map(parent).collect()
}

/// True for a constant that has no name in its source, and one that LLVM gave it so that parts of a crate that were compiled by
/// themselves can share it (NameAnonGlobalPass): the name changes with anything in that part, and nothing rests on its address.
pub(super) fn is_anonymous(image: &Image<'_>, symbol: &Symbol<'_>) -> bool {
    symbol.local
        && names::is_anonymous(symbol.name)
        && image.section_at(symbol.address).is_some_and(is_constant_section)
}

pub(super) fn objects<'a>(image: &Image<'a>) -> (Vec<DataObject<'a>>, BTreeMap<u64, Vec<&'a str>>) {
    let mut found: Vec<DataObject<'a>> = Vec::new();
    let mut markers: BTreeMap<u64, Vec<&'a str>> = BTreeMap::new();
    for symbol in &image.symbols {
        // What begins with `.L` is the compiler's name for a constant without an identity; mold keeps those.
        let nameless = symbol.name.is_empty() || symbol.name.starts_with(".L") || is_anonymous(image, symbol);
        if !matches!(symbol.kind, SymbolKind::Data | SymbolKind::Unknown) || nameless {
            continue;
        }
        // gold gives sizes to the linker's own tables.
        let linkers = |s: &Section<'_>| s.name == ".dynamic" || s.name.starts_with(".got");
        if symbol.size == 0 || image.section_at(symbol.address).is_some_and(linkers) {
            // Where constants end unwind information begins, and the last array ends: of its names no program knows.
            let start_files = symbol.local && is_of_start_files(symbol.name);
            if !symbol.name.starts_with('.') && !start_files {
                markers.entry(symbol.address).or_default().push(symbol.name);
            }
            continue;
        }
        let Some(section) = image.section_at(symbol.address) else { continue };
        if symbol.kind == SymbolKind::Data && !section.tls {
            found.push(DataObject {
                names: vec![symbol.name],
                file: symbol.file,
                local: symbol.local,
                address: symbol.address,
                size: symbol.size,
                constant: is_constant_section(section),
                unnamed: false,
            });
        }
    }
    for names in markers.values_mut() {
        names.sort_unstable();
    }
    for section in &image.sections {
        if matches!(section.name, ".init_array" | ".fini_array" | ".preinit_array" | ".ctors" | ".dtors") {
            found.push(DataObject {
                names: vec![section.name],
                file: "",
                local: false,
                address: section.address,
                size: section.size,
                constant: true,
                unnamed: false,
            });
        }
    }
    // Outermost first among those that start together; globals before locals.
    found.sort_by(|a, b| {
        (a.address, std::cmp::Reverse(a.size), a.local, a.names[0]).cmp(&(
            b.address,
            std::cmp::Reverse(b.size),
            b.local,
            b.names[0],
        ))
    });
    let mut objects: Vec<DataObject<'a>> = Vec::new();
    for object in found {
        match objects.last_mut() {
            Some(last) if object.address == last.address => last.names.push(object.names[0]),
            // A symbol inside an object: part of it.
            Some(last) if object.end() <= last.end() => {}
            _ => objects.push(object),
        }
    }
    (objects, markers)
}
