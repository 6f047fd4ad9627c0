//! Descriptors of a place in the source: data that holds a file's name and a line, as `tracing` makes of each use of its macros, or
//! C of `static struct site here = {__FILE__, __LINE__}`. With the text above it the line moves, and nothing else of it changes.
//!
//! A number alone never tells (see [`lines`](crate::lines)). So an old and a new object that are a pair differ in the line only if, in both builds,
//! - all that differs, in them and in what they lead to, is one number, and the same one in texts such as `event src/main.rs:120`;
//! - beside it stands the name of a source file;
//! - the line table (DWARF 5, section 6.2) has that line of that file in a function that refers to them.

use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use crate::build::Build;
use crate::compare::Changes;
use crate::correlate::Correlation;
use crate::entity::{FunctionId, ObjectId};
use crate::image::Word;
use crate::judge::{Judge, Verdict, count};
use crate::lines::is_file_name;
use crate::source::SourceMap;

/// Objects that one descriptor may consist of.
const PARTS: usize = 32;
/// Bytes of a text that may name a place.
const TEXT: u64 = 4096;

/// The old objects that differ from their partners in a line only. `judge` takes into account which constants changed.
pub(crate) fn line_only(judge: &Judge<'_, '_>, pairs: &Correlation, changes: &Changes) -> FxHashSet<ObjectId> {
    let (old, new) = judge.builds();
    let constants = changes.constants.iter().filter_map(|o| Some((*o, pairs.objects.new_of(*o)?)));
    let differing: BTreeSet<(ObjectId, ObjectId)> = changes.variables.iter().copied().chain(constants).collect();
    let found: Vec<Descriptor> = differing.iter().filter_map(|pair| Descriptor::of(judge, &differing, *pair)).collect();
    if found.is_empty() {
        return FxHashSet::default();
    }
    let parts = || found.iter().flat_map(|d| &d.parts);
    let (before, now) = (Lines::new(old, parts().map(|p| p.0)), Lines::new(new, parts().map(|p| p.1)));
    let is_place = |d: &&Descriptor| {
        let (olds, news) = (|| d.parts.iter().map(|p| p.0), || d.parts.iter().map(|p| p.1));
        d.files.iter().any(|file| before.has(file, d.line.0, olds()) && now.has(file, d.line.1, news()))
    };
    found.iter().filter(is_place).map(|d| d.whose).collect()
}

/// A pair of objects of which all that differs is one number.
struct Descriptor {
    /// The old object.
    whose: ObjectId,
    /// The objects that differ: it, and those that it leads to.
    parts: BTreeSet<(ObjectId, ObjectId)>,
    /// The number.
    line: (u32, u32),
    /// Names of source files that it leads to.
    files: BTreeSet<String>,
}

impl Descriptor {
    fn of(
        judge: &Judge<'_, '_>,
        differing: &BTreeSet<(ObjectId, ObjectId)>,
        pair: (ObjectId, ObjectId),
    ) -> Option<Descriptor> {
        let mut walk = Walk { judge, differing, parts: BTreeSet::new(), line: None, files: BTreeSet::new() };
        walk.objects(pair)?;
        let Walk { parts, line, files, .. } = walk;
        Some(Descriptor { whose: pair.0, parts, line: line?, files })
    }
}

/// Goes through a pair of objects and all that differs of what they lead to.
struct Walk<'w, 'a> {
    judge: &'w Judge<'w, 'a>,
    differing: &'w BTreeSet<(ObjectId, ObjectId)>,
    parts: BTreeSet<(ObjectId, ObjectId)>,
    line: Option<(u32, u32)>,
    files: BTreeSet<String>,
}

impl Walk<'_, '_> {
    /// `None` where more than a line differs.
    fn objects(&mut self, pair: (ObjectId, ObjectId)) -> Option<()> {
        if !self.parts.insert(pair) {
            return Some(());
        }
        let (old, new) = self.judge.builds();
        let (x, y) = (&old.map.objects[pair.0], &new.map.objects[pair.1]);
        if self.parts.len() > PARTS || x.size != y.size {
            return None;
        }
        let (p, q) = (old.image.bytes(x.address, x.size)?, new.image.bytes(y.address, y.size)?);
        let words = |build: &Build<'_>, start: u64| -> Vec<(u64, Word)> {
            build.image.words.range(start..start + x.size).map(|(at, w)| (at - start, w.clone())).collect()
        };
        let (words, others) = (words(old, x.address), words(new, y.address));
        if words.len() != others.len() {
            return None;
        }
        let mut at = 0;
        for ((i, v), (j, w)) in words.iter().zip(&others) {
            if i != j || *i < at {
                return None;
            }
            self.plain(p, q, at..*i)?;
            // The length of a text whose number has one digit more is part of the text.
            at = i + if self.word((v, count(p, *i as usize)), (w, count(q, *i as usize)))? { 16 } else { 8 };
        }
        self.plain(p, q, at..x.size)
    }

    /// Whether the words lead to texts whose lengths, behind them, have been compared.
    fn word(&mut self, (v, p): (&Word, Option<u64>), (w, q): (&Word, Option<u64>)) -> Option<bool> {
        let (old, new) = self.judge.builds();
        let (Word::Address(a), Word::Address(b)) = (v, w) else {
            return (self.judge.words(v, w) == Verdict::Same).then_some(false);
        };
        let objects = (old.map.object_at(*a), new.map.object_at(*b));
        if let (Some(o), Some(p)) = objects
            && self.differing.contains(&(o, p))
        {
            let same_place = a - old.map.objects[o].address == b - new.map.objects[p].address;
            return if same_place { self.objects((o, p)).map(|()| false) } else { None };
        }
        let counted = p.and_then(|n| counted_text(old, *a, n)).zip(q.and_then(|n| counted_text(new, *b, n)));
        let terminated = terminated_text(old, *a).zip(terminated_text(new, *b));
        let texts = [(counted, true), (terminated, false)].into_iter().filter_map(|(t, counted)| Some((t?, counted)));
        if self.judge.words(v, w) == Verdict::Same || self.judge.same_text_words((v, p), (w, q), false) {
            let files = texts.filter(|((x, y), _)| x == y && is_file_name(x.as_bytes()));
            self.files.extend(files.map(|((x, _), _)| x.to_owned()));
            return Some(false);
        }
        // A number behind the word may be its text's length, or have nothing to do with it.
        let mut moved = texts.filter_map(|((x, y), counted)| {
            let (x, y) = (number_in(x)?, number_in(y)?);
            ((x.0, x.2) == (y.0, y.2)).then_some((x.1, y.1, counted))
        });
        let (before, now, counted) = moved.next()?;
        self.is_line(before, now)?;
        Some(counted)
    }

    fn plain(&mut self, p: &[u8], q: &[u8], span: std::ops::Range<u64>) -> Option<()> {
        let span = span.start.min(p.len() as u64) as usize..span.end as usize;
        let number = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(u32::from_le_bytes);
        for (x, y) in p[span.clone()].chunks(4).zip(q[span].chunks(4)).filter(|(x, y)| x != y) {
            self.is_line(number(x)?, number(y)?)?;
        }
        Some(())
    }

    fn is_line(&mut self, old: u32, new: u32) -> Option<()> {
        (*self.line.get_or_insert((old, new)) == (old, new) && old > 0 && new > 0).then_some(())
    }
}

/// A text of this length.
fn counted_text<'a>(build: &Build<'a>, at: u64, length: u64) -> Option<&'a str> {
    let bytes = build.image.bytes(at, length).filter(|_| build.image.is_constant(at) && (1..TEXT).contains(&length))?;
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// A text that ends with a terminator.
fn terminated_text<'a>(build: &Build<'a>, at: u64) -> Option<&'a str> {
    let bytes = build.image.is_constant(at).then(|| build.image.bytes_from(at))?;
    let length = bytes.iter().take(TEXT as usize).position(|b| *b == 0)?;
    std::str::from_utf8(&bytes[..length]).ok()
}

/// What stands before and behind the number in `event src/main.rs:120`, and the number.
fn number_in(text: &str) -> Option<(&str, u32, &str)> {
    let digits = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = text[..digits].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |n| n + 1);
    let file = text[..start].strip_suffix(':')?.rsplit([' ', '(', '[']).next()?;
    let number = text[start..digits].parse().ok()?;
    is_file_name(file.as_bytes()).then_some((&text[..start], number, &text[digits..]))
}

/// The lines of the functions of a build that refer to some objects.
struct Lines<'l, 'a> {
    build: &'l Build<'a>,
    users: Vec<(FunctionId, ObjectId)>,
    sources: SourceMap,
}

impl<'l, 'a> Lines<'l, 'a> {
    fn new(build: &'l Build<'a>, objects: impl Iterator<Item = ObjectId>) -> Lines<'l, 'a> {
        let objects: FxHashSet<ObjectId> = objects.collect();
        // Often by way of a slot.
        let object = |at: u64| match build.image.words.get(&at) {
            Some(Word::Address(to)) => build.map.object_at(*to).filter(|o| objects.contains(o)),
            _ => None,
        };
        let object = |at: u64| build.map.object_at(at).filter(|o| objects.contains(o)).or_else(|| object(at));
        let mut users = Vec::new();
        for (id, code) in build.code.iter().enumerate() {
            let led_to = code.ranges.iter().flat_map(|c| c.sites.leaving_targets()).filter_map(object);
            users.extend(led_to.map(|o| (id, o)));
        }
        users.dedup();
        let functions: BTreeSet<FunctionId> = users.iter().map(|u| u.0).collect();
        let ranges = functions.iter().flat_map(|f| build.map.functions[*f].ranges.iter().map(|r| r.address..r.end()));
        Lines { build, users, sources: SourceMap::lines(&build.image.debug, ranges.collect()) }
    }

    /// True if a function that refers to one of these objects has an instruction of this line.
    fn has(&self, file: &str, line: u32, objects: impl Iterator<Item = ObjectId>) -> bool {
        let objects: BTreeSet<ObjectId> = objects.collect();
        let users = self.users.iter().filter(|u| objects.contains(&u.1));
        let mut ranges = users.flat_map(|u| &self.build.map.functions[u.0].ranges);
        ranges.any(|r| self.sources.has(r.address..r.end(), file, line))
    }
}

#[cfg(test)]
mod tests {
    use super::number_in;

    #[test]
    fn the_number_of_a_place_stands_behind_its_file() {
        assert_eq!(number_in("event src/main.rs:120"), Some(("event src/main.rs:", 120, "")));
        assert_eq!(number_in("a.c:7: it failed"), Some(("a.c:", 7, ": it failed")));
        for text in ["event 120", "limit:120", "", "120", "src/main.rs 120", "a.c:99999999999"] {
            assert_eq!(number_in(text), None, "{text}");
        }
    }
}
