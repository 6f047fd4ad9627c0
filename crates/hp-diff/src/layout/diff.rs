//! From two sets of definitions to findings that say exactly what differs.

use super::define::{Definition, Definitions, Key, Space, line};
use crate::finding::{Code, Finding, Level};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// What two builds define differently.
#[derive(Default)]
pub(super) struct Differing {
    /// One [`Code::LayoutChanged`] finding for each definition that has no equal on the other side.
    pub(super) findings: Vec<Finding>,
    pub(super) moved: Moved,
}

/// Where the members of refused types lie, in bytes from their start: in the old build and in the new one.
pub(crate) type Moved = BTreeSet<(i64, i64)>;

pub(super) fn differing(old: &Definitions, new: &Definitions) -> Differing {
    let mut all = Differing::default();
    for (key, before) in &old.types {
        let Some(after) = new.types.get(key) else { continue };
        if before.len() > 1 || !same(before, after) {
            Pair { key, old, new, before, after }.compare(&mut all);
        }
    }
    all.findings.sort();
    all.findings.dedup();
    all
}

fn same(before: &[Definition], after: &[Definition]) -> bool {
    before.len() == after.len() && before.iter().zip(after).all(|(a, b)| a.text == b.text)
}

/// A name that both builds define.
struct Pair<'a> {
    key: &'a Key,
    old: &'a Definitions,
    new: &'a Definitions,
    before: &'a [Definition],
    after: &'a [Definition],
}

/// A name with more definitions than this is matched by equal texts only.
const MAX_CROSS: usize = 4096;

impl Pair<'_> {
    fn compare(&self, all: &mut Differing) {
        let gone = unmatched(self.before, self.after, |b, a| differences(b, a).is_empty());
        let come = unmatched(self.after, self.before, |a, b| differences(b, a).is_empty());
        // Where the language has one definition rule, several of a name are unnamed types, instances of a
        // template or the like. There, one more is an added type and one less a removed type.
        let in_c = |build: &Definitions, d: &&Definition| d.units.iter().any(|&unit| build.is_c[unit as usize]);
        let strict = gone.iter().any(|d| in_c(self.old, d)) || come.iter().any(|d| in_c(self.new, d));
        all.findings.extend(self.widened());
        if (gone.is_empty() && come.is_empty()) || (!strict && (gone.is_empty() || come.is_empty())) {
            return all.findings.extend(self.swapped());
        }
        let mut come: Vec<Option<&Definition>> = come.into_iter().map(Some).collect();
        for before in gone {
            // The most alike of what is new is what this one became.
            let nearest = (0..come.len().min(16))
                .filter_map(|i| Some((differences(&before.text, &come[i]?.text).len(), i)))
                .min()
                .map(|(_, i)| i);
            let message = match nearest.and_then(|i| come[i].take()).or_else(|| self.now(before)) {
                Some(after) => {
                    all.moved.extend(moved(&before.text, &after.text));
                    self.describe(before, after)
                }
                None => format!("one of its definitions ({}) no longer exists", files(self.old, before)),
            };
            all.findings.push(self.finding(before, &message));
        }
        for after in come.into_iter().flatten() {
            let message = format!("another definition of that name ({}) came into being", files(self.new, after));
            all.findings.push(self.finding(after, &message));
        }
    }

    /// Members whose new type holds every value that the old one can hold, and more: no live object feels that, but
    /// after a revert the old code may meet values that it does not know.
    fn widened(&self) -> Vec<Finding> {
        let ([before], [after]) = (self.before, self.after) else { return Vec::new() };
        let (old, new) = (lines(&before.text), lines(&after.text));
        let wider = old.iter().filter_map(|line| {
            let now = new.iter().find(|n| (n.kind, n.name, n.place) == (line.kind, line.name, line.place))?;
            let is_wider = keeps_values(&text(line.ty), &text(now.ty));
            is_wider.then(|| format!("{} changed type from {} to {}", line.title(), short(line.ty), short(now.ty)))
        });
        let wider: Vec<String> = wider.collect();
        if wider.is_empty() {
            return Vec::new();
        }
        let what =
            format!("{}; values that live objects hold stay the same, but a revert leaves new ones", list(&wider));
        vec![Finding { level: Level::Warning, ..self.finding(before, &what) }]
    }

    /// Both builds have the same definitions, but a file may now have another one than before.
    fn swapped(&self) -> Vec<Finding> {
        if self.before.len() < 2 && self.after.len() < 2 {
            return Vec::new();
        }
        let (old, new) = (by_file(self.old, self.before), by_file(self.new, self.after));
        let mut files: Vec<_> = old.iter().filter_map(|(file, before)| Some((*file, before, new.get(file)?))).collect();
        files.sort_unstable_by_key(|&(file, ..)| file);
        let alike = |b: &Definition, a: &Definition| differences(&b.text, &a.text).is_empty();
        let changed = files.into_iter().filter_map(|(file, before, after)| {
            let before = || before.iter().map(|&i| &self.before[i]);
            let after = || after.iter().map(|&i| &self.after[i]);
            let gone = before().find(|b| !after().any(|a| alike(b, a)))?;
            let come = after().find(|a| !before().any(|b| alike(b, a)))?;
            let what = list(&differences(&gone.text, &come.text));
            Some(self.finding(gone, &format!("in {file}: {what}")))
        });
        changed.collect()
    }

    /// What the files that had this definition have now under its name.
    fn now(&self, before: &Definition) -> Option<&Definition> {
        let after = by_file(self.new, self.after);
        let mut files: Vec<&str> = before.units.iter().map(|&unit| self.old.files[unit as usize].as_str()).collect();
        files.sort_unstable();
        let index = files.into_iter().find_map(|file| after.get(file)?.first().copied())?;
        Some(&self.after[index])
    }

    fn describe(&self, before: &Definition, after: &Definition) -> String {
        let what = list(&differences(&before.text, &after.text));
        if self.before.len() > 1 || self.after.len() > 1 {
            return format!("in {}: {what}", files(self.old, before));
        }
        what
    }

    fn finding(&self, definition: &Definition, message: &str) -> Finding {
        let name = String::from_utf8_lossy(&self.key.1).into_owned();
        let kind = match self.key.0 {
            Space::Enumerator => "enumerator".into(),
            _ => String::from_utf8_lossy(Head::of(&definition.text).kind).into_owned(),
        };
        let message = format!("{kind} {name}: {message}");
        Finding::new(Code::LayoutChanged, name, message)
    }
}

/// Those of `these` for which no one of `those` is alike.
fn unmatched<'a>(
    these: &'a [Definition],
    those: &[Definition],
    alike: impl Fn(&[u8], &[u8]) -> bool,
) -> Vec<&'a Definition> {
    let few = these.len().saturating_mul(those.len()) <= MAX_CROSS;
    these
        .iter()
        .filter(|this| those.binary_search_by(|that| that.text.cmp(&this.text)).is_err())
        .filter(|this| !(few && those.iter().any(|that| alike(&this.text, &that.text))))
        .collect()
}

/// Which definitions each source file has, by index.
fn by_file<'a>(build: &'a Definitions, definitions: &[Definition]) -> FxHashMap<&'a str, BTreeSet<usize>> {
    let mut files: FxHashMap<&str, BTreeSet<usize>> = FxHashMap::default();
    for (i, definition) in definitions.iter().enumerate() {
        // Type units have no file.
        for &unit in definition.units.iter().filter(|&&unit| !build.files[unit as usize].is_empty()) {
            files.entry(&build.files[unit as usize]).or_default().insert(i);
        }
    }
    files
}

fn files(build: &Definitions, definition: &Definition) -> String {
    let names: BTreeSet<&str> = definition.units.iter().map(|&unit| build.files[unit as usize].as_str()).collect();
    let shown: Vec<&str> =
        names.iter().map(|name| if name.is_empty() { "a type unit" } else { name }).take(3).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

const SHOWN: usize = 8;

fn list(differences: &[String]) -> String {
    let shown = differences.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match differences.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more differences"),
    }
}

/// First line of a text.
struct Head<'a> {
    kind: &'a [u8],
    size: &'a [u8],
    alignment: &'a [u8],
    underlying: &'a [u8],
}

impl<'a> Head<'a> {
    fn of(text: &'a [u8]) -> Head<'a> {
        let mut fields = text.split(|&c| c == b'\n').next().unwrap_or(text).splitn(4, |&c| c == b'\t');
        let mut next = || fields.next().unwrap_or_default();
        Head { kind: next(), size: next(), alignment: next(), underlying: next() }
    }

    fn compare(&self, new: &Head<'_>, out: &mut Vec<String>) {
        let arrow = |old: &[u8], new: &[u8]| format!("{} → {}", text(old), text(new));
        if self.kind != new.kind {
            out.push(arrow(self.kind, new.kind));
        }
        if self.size != new.size {
            out.push(format!("size {} bytes", arrow(self.size, new.size)));
        }
        if self.alignment != new.alignment {
            let natural = |a: &'_ [u8]| if a.is_empty() { "natural".to_string() } else { text(a) };
            out.push(format!("alignment {} → {}", natural(self.alignment), natural(new.alignment)));
        }
        if self.underlying != new.underlying {
            let what = match self.kind {
                b"typedef" => "stands for ",
                b"base type" => "encoding ",
                _ => "underlying type ",
            };
            out.push(format!("{what}{}", arrow(self.underlying, new.underlying)));
        }
    }
}

/// A further line of a text.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Line<'a> {
    kind: &'a str,
    name: &'a [u8],
    place: &'a [u8],
    ty: &'a [u8],
}

fn lines(text: &[u8]) -> Vec<Line<'_>> {
    let line = |line| {
        let mut fields = <[u8]>::splitn(line, 4, |&c| c == b'\t');
        let mut next = || fields.next().unwrap_or_default();
        let kind = std::str::from_utf8(next()).unwrap_or_default();
        Line { kind, name: next(), place: next(), ty: next() }
    };
    text.split(|&c| c == b'\n').skip(1).map(line).collect()
}

/// What differs, in words; empty if old objects and new code agree on everything.
///
/// Only here it is decided that an added enumerator and the order of lines do not matter.
fn differences(old: &[u8], new: &[u8]) -> Vec<String> {
    if old == new {
        return Vec::new();
    }
    let mut out = Vec::new();
    Head::of(old).compare(&Head::of(new), &mut out);
    let (old, new) = (lines(old), lines(new));
    // By kind and name; several of one name (unnamed members, overloads) pair in order.
    let mut waiting: FxHashMap<(&str, &[u8]), Vec<usize>> = FxHashMap::default();
    for (i, line) in new.iter().enumerate().rev() {
        waiting.entry((line.kind, line.name)).or_default().push(i);
    }
    let (mut removed, mut kept) = (Vec::new(), Vec::new());
    let mut added = vec![true; new.len()];
    for line in &old {
        match waiting.get_mut(&(line.kind, line.name)).and_then(Vec::pop) {
            Some(i) => {
                added[i] = false;
                kept.push((line, &new[i]));
            }
            None => removed.push(line),
        }
    }
    let mut added: Vec<&Line<'_>> = new.iter().zip(added).filter_map(|(line, added)| added.then_some(line)).collect();
    for line in removed {
        let successor = added.iter().position(|a| a.kind == line.kind && a.place == line.place);
        match successor.map(|i| added.remove(i)) {
            Some(a) if a.ty == line.ty => {
                out.push(format!("{} is now called '{}'", line.describe(), text(a.name)));
            }
            Some(a) => {
                let now = format!("'{}' of type {}", text(a.name), short(a.ty));
                out.push(format!("{} replaced by {now}", line.describe()));
            }
            None => out.push(format!("{} removed", line.describe())),
        }
    }
    let mut compared = Vec::new();
    changed(&kept, &mut compared);
    if added.iter().any(|line| line.kind != line::ENUMERATOR) || !out.is_empty() || !compared.is_empty() {
        out.extend(
            added.iter().map(|line| format!("{} added at {}", line.title(), line.at().trim_start_matches("offset "))),
        );
    }
    out.append(&mut compared);
    out
}

/// Where members that both have by one name lie, if one of them moved.
fn moved(old: &[u8], new: &[u8]) -> Moved {
    let new: FxHashMap<_, _> = lines(new).into_iter().map(|line| ((line.kind, line.name), line)).collect();
    let both = lines(old).into_iter().filter_map(|line| Some((line, *new.get(&(line.kind, line.name))?)));
    let bytes = both.filter_map(|(line, now)| Some((line.bit()? / 8, now.bit()? / 8)));
    bytes.collect()
}

/// What became of lines that both have. Neighbours that an insertion shifted alike are told in one phrase.
fn changed(kept: &[(&Line<'_>, &Line<'_>)], out: &mut Vec<String>) {
    let mut next = 0;
    while let Some(&(old, new)) = kept.get(next) {
        let shift = old.shift(new);
        let run = kept[next..].iter().take_while(|(old, new)| shift.is_some() && old.shift(new) == shift).count();
        if run > 3 {
            let bytes = shift.unwrap_or_default() / 8;
            out.push(format!("{run} members from '{}' on moved by {bytes:+} bytes", text(old.name)));
        }
        for (old, new) in &kept[next..next + run.max(1)] {
            if old.place != new.place && run <= 3 {
                out.push(old.moved(new));
            }
            if old.ty != new.ty && !keeps_values(&text(old.ty), &text(new.ty)) {
                out.push(format!("{} changed type from {} to {}", old.title(), short(old.ty), short(new.ty)));
            }
        }
        next += run.max(1);
    }
}

impl Line<'_> {
    fn moved(&self, new: &Line<'_>) -> String {
        match self.kind {
            line::ENUMERATOR => format!("{} = {} → {}", self.title(), text(self.place), text(new.place)),
            line::VIRTUAL => format!("{} moved from {} to {}", self.title(), self.at(), text(new.place)),
            _ => {
                let (from, to) = (self.at(), new.at());
                let to = from.split(' ').next().map_or(to.as_str(), |word| to.trim_start_matches(word).trim_start());
                format!("{} moved from {from} to {to}", self.title())
            }
        }
    }

    /// By how many bits a plain member moved; `None` if it did not, or not by whole bytes.
    fn shift(&self, new: &Line<'_>) -> Option<i64> {
        let plain = |line: &Line<'_>| line.bit().filter(|_| !line.place.contains(&b':'));
        let shift = plain(new)?.checked_sub(plain(self)?)?;
        (shift != 0 && shift % 8 == 0).then_some(shift)
    }

    /// The first bit of a member, a bit-field too.
    fn bit(&self) -> Option<i64> {
        let start = self.place.split(|&c| c == b':').next()?;
        std::str::from_utf8(start).ok()?.parse().ok().filter(|_| self.kind == line::MEMBER)
    }

    fn title(&self) -> String {
        let what = match self.kind {
            line::BASE => "base class",
            line::VIRTUAL => "virtual function",
            line::ENUMERATOR => "enumerator",
            line::DISCRIMINANT => return "the discriminant".into(),
            line::VARIANT => "variant",
            _ if self.name.is_empty() => return "an unnamed member".into(),
            _ => "member",
        };
        format!("{what} '{}'", text(self.name))
    }

    fn describe(&self) -> String {
        match self.kind {
            line::ENUMERATOR => format!("{} = {}", self.title(), text(self.place)),
            _ => format!("{} at {}", self.title(), self.at()),
        }
    }

    /// The place in words.
    fn at(&self) -> String {
        let place = text(self.place);
        match self.kind {
            line::ENUMERATOR => return format!("value {place}"),
            line::VIRTUAL => return format!("vtable slot {place}"),
            _ => {}
        }
        let (start, size) = place.split_once(':').map_or((place.as_str(), None), |(start, size)| (start, Some(size)));
        let Ok(start) = start.parse::<u64>() else { return place };
        let bit = if start % 8 != 0 || size.is_some() { format!(" bit {}", start % 8) } else { String::new() };
        let size = size.map_or_else(String::new, |size| format!(" ({size} bits)"));
        format!("offset {}{bit}{size}", start / 8)
    }
}

/// True if every value of the old type is the same number, in the same bits, of the new one.
pub(crate) fn keeps_values(old: &str, new: &str) -> bool {
    matches!(old, "_Bool" | "bool") && matches!(new, "unsigned char" | "signed char" | "char" | "u8")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A type's text, cut where it would drown the message.
fn short(ty: &[u8]) -> String {
    let all = text(ty);
    match all.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &all[..end]),
        None => all,
    }
}
