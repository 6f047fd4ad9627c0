//! Decoded ranges of one build that ranges of another one may be like.
//!
//! Which function is which does not matter here, and is not known yet: code that is alike is read alike. Builds put their
//! functions in much the same order, so the range to try first is the one behind the last that fitted; else
//! those of the same size that are not far from there.

use rayon::prelude::*;
use rustc_hash::FxHashSet;

use crate::arch::{self, Code, Use};
use crate::build::{Build, FunctionCode};
use crate::entity::{CodeRange, Function, FunctionId, Map};
use crate::followed::Alike;

/// Ranges of the same size that are tried.
const TRIES: usize = 8;

/// Ranges and what has been decoded of them.
pub(super) struct Models<'m, 'a> {
    all: Vec<(&'m CodeRange<'a>, &'m Code)>,
    /// The place in `all` of each function's first range.
    functions: Vec<usize>,
    /// Size in bytes and place of each range, ordered.
    sizes: Vec<(usize, usize)>,
}

/// Looks for ranges that are alike, in order.
pub(super) struct Seeker<'s, 'm, 'a> {
    models: &'s Models<'m, 'a>,
    /// The place to look at next.
    place: usize,
    /// Starts of ranges and of those that they are like.
    pub found: Vec<(u64, u64)>,
}

impl<'m, 'a> Models<'m, 'a> {
    /// All of `map` and its `code`.
    pub(super) fn new(map: &'m Map<'a>, code: &'m [Vec<Code>]) -> Models<'m, 'a> {
        let (mut all, mut functions) = (Vec::new(), Vec::new());
        for (function, code) in map.functions.iter().zip(code) {
            functions.push(all.len());
            all.extend(function.ranges.iter().zip(code));
        }
        let mut sizes: Vec<(usize, usize)> = all.iter().enumerate().map(|(i, (r, _))| (r.bytes.len(), i)).collect();
        sizes.sort_unstable();
        Models { all, functions, sizes }
    }

    /// Begins at a function.
    pub(super) fn from<'s>(&'s self, function: FunctionId) -> Seeker<'s, 'm, 'a> {
        let place = self.functions.get(function).copied().unwrap_or(self.all.len());
        Seeker { models: self, place, found: Vec::new() }
    }
}

impl Seeker<'_, '_, '_> {
    /// The code of a range, if a model is like it.
    pub(super) fn like(&mut self, range: &CodeRange<'_>) -> Option<Code> {
        let models = self.models;
        let try_at = |place: usize| {
            let (model, code) = models.all.get(place)?;
            arch::alike(code, (model.address, model.bytes), (range.address, range.bytes)).map(|code| (place, code))
        };
        let near = |first: usize| {
            let size = range.bytes.len();
            let at = models.sizes.partition_point(|s| *s < (size, first));
            let same = |s: &&(usize, usize)| s.0 == size;
            let behind = models.sizes[at..].iter().take_while(same).take(TRIES / 2);
            let before = models.sizes[..at].iter().rev().take_while(same).take(TRIES / 2);
            behind.chain(before).find_map(|(_, place)| try_at(*place))
        };
        let found = try_at(self.place).or_else(|| near(self.place));
        self.place = found.as_ref().map_or(self.place, |(place, _)| *place) + 1;
        let (place, code) = found?;
        self.found.push((range.address, models.all[place].0.address));
        Some(code)
    }
}

/// Which functions of `new` do with their addresses what functions of `old` do: each range is `like` one of those (starts of the one and
/// of the other), and branches go from place to place alike.
pub(super) fn alike(old: &Build<'_>, new: &Build<'_>, like: Vec<(u64, u64)>) -> Alike {
    let mut starts = like;
    starts.sort_unstable();
    starts.dedup_by_key(|start| start.0);
    let functions = (0..new.map.functions.len()).into_par_iter().map(|g| function_like(old, new, g, &starts));
    Alike { followed: old.followed.clone(), functions: functions.collect(), starts }
}

fn function_like(old: &Build<'_>, new: &Build<'_>, g: FunctionId, starts: &[(u64, u64)]) -> Option<u32> {
    let here = &new.map.functions[g];
    let start = |address: u64| starts.binary_search_by_key(&address, |s| s.0).ok().map(|i| starts[i].1);
    let (f, ..) = old.map.function_at(start(here.address())?)?;
    let there = &old.map.functions[f];
    let each = || there.ranges.iter().zip(&here.ranges);
    let same_ranges = there.ranges.len() == here.ranges.len()
        && each().all(|(x, y)| start(y.address) == Some(x.address) && x.bytes.len() == y.bytes.len());
    if !(same_ranges && are_apart(&there.ranges) && are_apart(&here.ranges)) {
        return None;
    }
    if !same_jumps(&old.code[f], there, &new.code[g], here) {
        return None;
    }
    if !ends(old, f).eq(ends(new, g)) {
        return None;
    }
    let mut codes = old.code[f].ranges.iter().zip(&new.code[g].ranges);
    if there.ranges.len() == 1 && codes.all(|(x, y)| x.sites.are_of_same_bytes(&y.sites)) {
        return Some(f as u32);
    }
    let mut codes = old.code[f].ranges.iter().zip(&new.code[g].ranges);
    let same_ways = codes.all(|(x, y)| {
        let mut sites = x.sites.iter().zip(&y.sites).filter(|(s, _)| s.usage == Use::Branch);
        sites.all(|(s, t)| place(&there.ranges, s.target) == place(&here.ranges, t.target))
    });
    same_ways.then_some(f as u32)
}

/// For each branch of a function, whether it leads to where nothing returns from.
fn ends(build: &Build<'_>, id: FunctionId) -> impl Iterator<Item = bool> {
    let sites = build.code[id].ranges.iter().flat_map(|code| &code.sites).filter(|s| s.usage == Use::Branch);
    sites.map(|site| build.followed.is_endless(site.target))
}

/// The range that an address lies in, and how far behind its start.
fn place(ranges: &[CodeRange<'_>], target: u64) -> Option<(usize, u64)> {
    let found = ranges.iter().position(|r| (r.address..r.end()).contains(&target));
    found.map(|i| (i, target - ranges[i].address))
}

/// True if what is known of where the computed jumps lead is the same.
fn same_jumps(f: &FunctionCode, there: &Function<'_>, g: &FunctionCode, here: &Function<'_>) -> bool {
    let targets = |code: &FunctionCode, function: &Function<'_>| {
        let all = code.tables.iter().flat_map(|table| &table.targets);
        all.map(|target| place(&function.ranges, *target)).collect::<FxHashSet<_>>()
    };
    match (f.complete, g.complete) {
        (false, false) => true,
        (true, true) => targets(f, there) == targets(g, here),
        _ => false,
    }
}

/// True if code cannot run from the end of one range into another one, or lie in two.
fn are_apart(ranges: &[CodeRange<'_>]) -> bool {
    let apart =
        |(i, x): (usize, &CodeRange<'_>)| ranges[..i].iter().all(|y| x.end() < y.address || y.end() < x.address);
    ranges.iter().enumerate().all(apart)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use crate::ahead;
    use crate::arch::Use;
    use crate::build::Build;
    use crate::image::Image;
    use crate::input::Input;

    /// One function, `JUMP` being in the middle of what it does with an address, and others around it.
    const CODE: &str = "
        .globl reads; .type reads, @function
        reads: lea table(%rip), %rax; mov $1, %ecx; JUMP
        1: movzbl (%rax,%rcx), %eax; ret
        2: mov 5, %ecx; mov -3(%rax,%rcx), %eax; ret
        .size reads, . - reads
        .globl other; .type other, @function
        other: lea table+8(%rip), %rdx; add %rdi, %rdx; mov (%rdx), %eax; call reads; ret
        .size other, . - other
        .section .rodata
        table: .quad 1, 2, 3, 4
        .section .note.GNU-stack, \"\", @progbits\n";

    fn built(folder: &Path, name: &str, jump: &str, more: &str) -> PathBuf {
        let (source, library) = (folder.join(name).with_extension("s"), folder.join(name));
        std::fs::write(&source, format!("{more}{}", CODE.replace("JUMP", jump))).unwrap();
        let gcc = Command::new("gcc").args(["-shared", "-nostdlib", "-o"]).args([&library, &source]).status().unwrap();
        assert!(gcc.success());
        library
    }

    #[test]
    fn what_is_known_of_code_that_is_alike_is_what_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let more = ".type more, @function\nmore: xor %eax, %eax; ret\n.size more, . - more\n.balign 64\n";
        let old = built(folder.path(), "old", "jmp 1f", "");
        for (name, jump, more, alike) in
            [("moved", "jmp 1f", more, 2), ("same", "jmp 1f", "", 2), ("new", "jmp 2f", more, 1)]
        {
            let new = built(folder.path(), name, jump, more);
            let open = |path: &Path| Input::open(path, None, &Default::default()).unwrap();
            let (old, new) = (open(&old), open(&new));
            let (old, both) = Build::both(Image::parse(&old).unwrap(), Image::parse(&new).unwrap(), None);
            let alone = Build::new(Image::parse(&new).unwrap(), None);
            // So that all is known of the old one.
            let mut asked = 0;
            for (build, compared) in [(&old, &old), (&both, &alone)] {
                for (id, code) in build.code.iter().enumerate() {
                    let sites: Vec<_> = code.ranges.iter().flat_map(|c| c.sites.addresses()).collect();
                    assert_eq!(ahead::touched(build, id, &sites), ahead::touched(compared, id, &sites), "{name}");
                    asked += sites.iter().filter(|site| site.usage == Use::Address).count();
                }
            }
            assert_eq!(asked, 4);
            assert_eq!(both.followed.how_many_alike(), alike, "{name}");
        }
    }
}
