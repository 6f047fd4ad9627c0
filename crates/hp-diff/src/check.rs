//! Findings about the builds as a whole and about their data: what no copied function can
//! make right.

use std::collections::BTreeMap;

use object::SymbolKind;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::arch;
use crate::build::Build;
use crate::by_address::Spans;
use crate::compare::Changes;
use crate::correlate::{Correlation, described};
use crate::entity::{FunctionId, Map, ObjectId};
use crate::finding::{Code, Finding, Level};
use crate::image::{Image, Symbol, Word};
use crate::judge::Judge;
use crate::layout::{self, Variable};

/// True for facts about images that leave nothing to compare.
pub(crate) fn is_fatal(finding: &Finding) -> bool {
    matches!(finding.code, Code::NoSymbols | Code::KindDiffers | Code::ForeignRuntime)
}

/// Facts that forbid comparing or patching these images at all.
pub(crate) fn images(old: &Image<'_>, new: &Image<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (image, which) in [(old, "old"), (new, "new")] {
        if image.symbols.iter().all(|s| s.kind != SymbolKind::Text) {
            findings.push(Finding::new(
                Code::NoSymbols,
                which,
                format!("{} has no symbols, and no unwind rows either", image.file_name),
            ));
        }
        if image.text_relocations {
            findings.push(Finding::new(
                Code::TextRelocations,
                which,
                format!("{} has text relocations", image.file_name),
            ));
        }
        if let Some(runtime) = foreign_runtime(image) {
            findings.push(Finding::new(Code::ForeignRuntime, which, format!("{} {runtime}", image.file_name)));
        }
    }
    let stripped = |image: &Image<'_>| image.symbols.iter().any(|s| !s.evidence.has_name());
    if stripped(old) != stripped(new) {
        let (which, image) = if stripped(old) { ("old", old) } else { ("new", new) };
        let message = format!(
            "{} is stripped, the other build is not; give its debug file with --{which}-debug",
            image.file_name
        );
        findings.push(Finding::new(Code::NoSymbols, which, message));
    }
    if old.linked != new.linked {
        let kind = |i: &Image<'_>| if i.linked { "linked" } else { "an object file" };
        let message = format!("the old build is {}, the new one {}", kind(old), kind(new));
        findings.push(Finding::new(Code::KindDiffers, &old.file_name, message));
    }
    if old.fixed_address != new.fixed_address {
        let kind = |i: &Image<'_>| if i.fixed_address { "position-dependent" } else { "position-independent" };
        let message = format!("the old build is {}, the new one {}", kind(old), kind(new));
        findings.push(Finding::new(Code::KindDiffers, &old.file_name, message));
    }
    if old.build_id.is_empty() && old.linked {
        findings.push(Finding::new(Code::NoBuildId, "old", format!("{} has no GNU build ID", old.file_name)));
    }
    if old.compilers != new.compilers {
        let message = format!("old: {}; new: {}", old.compilers.join(", "), new.compilers.join(", "));
        findings.push(Finding::new(Code::CompilersDiffer, &old.file_name, message));
    }
    findings
}

/// What moves stacks or code by itself, so that no look at the stacks tells where threads are.
fn foreign_runtime(image: &Image<'_>) -> Option<&'static str> {
    // The linker of Go keeps these also in programs without symbols and in position-independent ones.
    let is_go = |name: &str| matches!(name, ".go.buildinfo" | ".note.go.buildid") || name.ends_with(".gopclntab");
    if image.sections.iter().any(|s| is_go(s.name)) {
        return Some("has the Go runtime in it");
    }
    let splits = |name: &str| name.split('@').next() == Some("__morestack");
    let split_stacks = image.symbols.iter().any(|s| splits(s.name)) || image.imported.iter().any(|n| splits(n));
    split_stacks.then_some("was built with -fsplit-stack: frames lie on stacks that are switched as it runs")
}

/// Facts about data and names that a patch of functions does not bring along. `descriptors` are the old objects that differ in a
/// line of the source only.
pub(crate) fn data(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
    descriptors: &FxHashSet<ObjectId>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for &(o, p) in &changes.variables {
        let (x, y) = (&old.map.objects[o], &new.map.objects[p]);
        let message = if x.size == y.size {
            format!("the initial value of this variable ({} bytes at {:#x}) differs", x.size, x.address)
        } else {
            format!("this variable has {} bytes in the old build and {} in the new one", x.size, y.size)
        };
        let mut finding = Finding::new(Code::InitialValueChanged, x.name(), message);
        if descriptors.contains(&o) {
            finding.level = Level::Note;
            finding.message += " in a line of the source only, and the running one keeps the old line";
        }
        findings.push(finding);
    }
    for &o in &changes.label_variables {
        let message = "this variable holds the address of a label inside a changed function".to_owned();
        findings.push(Finding::new(Code::IntoFunction, old.map.objects[o].name(), message));
    }
    for &o in &changes.constants {
        let object = &old.map.objects[o];
        let name = object.name();
        if object.names.iter().any(|n| n.ends_with("_array") || matches!(*n, ".ctors" | ".dtors")) {
            findings.push(Finding::new(Code::ConstructorsChanged, name, "the functions in this section differ"));
        } else if object.names.iter().any(|n| !object.local && old.image.exported.contains(n))
            || ["_ZTV", "_ZTI", "_ZTS", "_ZTT"].iter().any(|p| name.starts_with(p))
        {
            findings.push(Finding::new(Code::SharedConstantChanged, name, "its content differs between the builds"));
        }
    }
    let has_array = |build: &Build<'_>, name: &str| build.map.objects.iter().any(|o| o.name() == name);
    for section in [".init_array", ".fini_array", ".preinit_array"] {
        if has_array(old, section) != has_array(new, section) {
            findings.push(Finding::new(Code::ConstructorsChanged, section, "only one of the builds has this section"));
        }
    }
    walked_sections(old, new, pairs, &mut findings);
    thread_local_values(&Judge::new(old, new, pairs), &mut findings);
    thread_locals_moved(old, new, pairs, changes, &mut findings);
    aliases(old, new, pairs, &mut findings);
    findings.extend(labels_used_elsewhere(old, changes));
    let changed = |f: &crate::entity::Function<'_>| f.address();
    let resolvers: Vec<u64> = old
        .image
        .words
        .values()
        .filter_map(|w| match w {
            Word::Resolver(a) => Some(*a),
            _ => None,
        })
        .chain(old.image.symbols.iter().filter(|s| s.resolver).map(|s| s.address))
        .collect();
    for (f, _, _) in &changes.functions {
        let function = &old.map.functions[*f];
        if resolvers.contains(&changed(function)) {
            findings.push(Finding::new(
                Code::ResolverChanged,
                function.name(),
                "it chooses an implementation at start-up",
            ));
        }
    }
    if unnamed(old, true) != unnamed(new, true) {
        findings.push(Finding::new(Code::UnnamedData, "data", "writable bytes that belong to no symbol differ"));
    }
    if unnamed(old, false) != unnamed(new, false) {
        findings.push(Finding::new(Code::UnnamedData, "code", "bytes between the functions differ"));
    }
    for name in ["makecontext", "swapcontext"] {
        let is = |n: &&String| n.split('@').next() == Some(name);
        if !changes.functions.is_empty() && old.image.imported.iter().any(|n| is(&n)) {
            findings.push(Finding::new(Code::Coroutines, name, format!("the old build imports {name}")));
        }
    }
    if !changes.functions.is_empty() {
        findings.extend(switchers(old));
    }
    findings
}

/// Functions of a build that switch stacks by themselves, as coroutines in assembly do.
fn switchers(build: &Build<'_>) -> Vec<Finding> {
    let suspects =
        build.code.iter().zip(&build.map.functions).filter(|(code, _)| code.ranges.iter().any(|r| r.takes_stack));
    let switching = suspects.filter(|(_, f)| arch::switches_stacks(f.ranges.iter().map(|r| r.bytes)));
    let message = "its code keeps the stack pointer and takes another one";
    switching.map(|(_, f)| Finding::new(Code::Coroutines, f.name(), message)).collect()
}

/// Variables of the running process whose bytes mean something else to new code: they kept their size, not their type.
pub(crate) fn variable_types(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    variables: (&[Variable], &[Variable]),
) -> Vec<Finding> {
    let (before, now) = (described(&old.map, variables.0), described(&new.map, variables.1));
    let changed = |(o, p): (usize, usize)| {
        let (x, y) = (&old.map.objects[o], &new.map.objects[p]);
        let (was, is) = (&before.get(&o)?.ty, &now.get(&p)?.ty);
        if was == is || x.size != y.size || x.constant && y.constant {
            return None;
        }
        let mut finding = Finding::new(Code::LayoutChanged, x.name(), format!("variable: type {was} → {is}"));
        if layout::keeps_values(was, is) {
            finding.level = Level::Warning;
        }
        Some(finding)
    };
    pairs.objects.iter().filter_map(changed).collect()
}

/// Changed or new functions that the debug information of their build does not describe:
/// the types that they use were not compared.
pub(crate) fn undescribed(
    old: &Build<'_>,
    new: &Build<'_>,
    changes: &Changes,
    copied: &FxHashSet<FunctionId>,
) -> Vec<Finding> {
    let (before, now) = (layout::described_code(&old.image.debug), layout::described_code(&new.image.debug));
    let replaced = changes.functions.iter().map(|c| (&old.map.functions[c.0], &before));
    let functions = replaced.chain(copied.iter().map(|g| (&new.map.functions[*g], &now)));
    let without =
        functions.filter(|(f, described)| !f.is_compiler_runtime() && !layout::contains(described, f.address()));
    let mut names: Vec<String> = without.map(|(f, _)| f.qualified_name()).collect();
    names.sort();
    names.dedup();
    let message = "no debug information describes this function, so the types that it uses were not compared";
    names.into_iter().map(|name| Finding::new(Code::LayoutUnproven, name, message)).collect()
}

/// Unchanged code that leads into the middle of a changed function would go on in its old code.
fn labels_used_elsewhere(old: &Build<'_>, changes: &Changes) -> Vec<Finding> {
    let changed: FxHashSet<FunctionId> = changes.functions.iter().map(|c| c.0).collect();
    let ranges = changed.iter().flat_map(|f| &old.map.functions[*f].ranges);
    let places = Spans::new(ranges.map(|r| (r.address, r.end())).collect());
    let mut found = Vec::new();
    for (f, code) in old.code.iter().enumerate().filter(|(f, _)| !changed.is_empty() && !changed.contains(f)) {
        let sites = code.ranges.iter().flat_map(|c| c.sites.targets());
        let all = sites.chain(code.tables.iter().flat_map(|t| t.targets.iter().copied()));
        for target in all.filter(|target| places.contains(*target)) {
            if let Some((g, range, offset)) = old.map.function_at(target)
                && (range, offset) != (0, 0)
                && changed.contains(&g)
            {
                let message = format!("{} leads to {target:#x}, inside of it", old.map.functions[f].qualified_name());
                found.push(Finding::new(Code::IntoFunction, old.map.functions[g].qualified_name(), message));
            }
        }
    }
    found
}

/// Sections with a `__start_` symbol are lists that the program walks: they must have the
/// same objects in the same order.
fn walked_sections(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation, findings: &mut Vec<Finding>) {
    let walked = |build: &Build<'_>| -> BTreeMap<String, (u64, Vec<usize>)> {
        let started: Vec<&str> = build.image.symbols.iter().filter_map(|s| s.name.strip_prefix("__start_")).collect();
        let sections = build.image.sections.iter().filter(|s| started.contains(&s.name));
        let objects = |start, end| {
            let all = build.map.objects.iter().enumerate();
            all.filter(|(_, o)| (start..end).contains(&o.address)).map(|(id, _)| id).collect()
        };
        sections.map(|s| (s.name.to_owned(), (s.size, objects(s.address, s.end())))).collect()
    };
    let now = walked(new);
    for (name, (size, objects)) in walked(old) {
        let same = now.get(&name).is_none_or(|(new_size, new_objects)| {
            size == *new_size
                && objects.len() == new_objects.len()
                && objects.iter().zip(new_objects).all(|(o, p)| pairs.objects.new_of(*o) == Some(*p))
        });
        if !same {
            let message = "the objects in this section, or their order, differ between the builds";
            findings.push(Finding::new(Code::WalkedSectionChanged, name, message));
        }
    }
}

/// A thread that runs has its variables already; one that starts later would get the old
/// initial value.
fn thread_local_values(judge: &Judge<'_, '_>, findings: &mut Vec<Finding>) {
    let (old, new) = judge.builds();
    let now = namesakes(&new.image);
    for (key, before) in namesakes(&old.image) {
        let Some(after) = now.get(&key) else { continue };
        let same = |(x, y): (&&Symbol<'_>, &&Symbol<'_>)| {
            x.size == y.size && same_start(judge, (x.address, y.address), x.size)
        };
        if before.len() != after.len() || !before.iter().zip(after).all(same) {
            let message = "the initial value of this thread-local variable differs";
            findings.push(Finding::new(Code::InitialValueChanged, key.1, message));
        }
    }
}

/// Thread-local variables by source file and name, in the order of the symbol table: several files may have one of a name,
/// and files of one name may lie in several folders.
fn namesakes<'i, 'a>(image: &'i Image<'a>) -> BTreeMap<(&'a str, &'a str), Vec<&'i Symbol<'a>>> {
    let mut all: BTreeMap<_, Vec<&Symbol<'_>>> = BTreeMap::new();
    for symbol in image.symbols.iter().filter(|s| s.kind == SymbolKind::Tls && !s.name.is_empty()) {
        all.entry((symbol.file, symbol.name)).or_default().push(symbol);
    }
    all
}

/// The same initial content at two offsets in the segments of thread-local variables.
fn same_start(judge: &Judge<'_, '_>, (a, b): (u64, u64), size: u64) -> bool {
    let (old, new) = judge.builds();
    let place = |image: &Image<'_>, offset: u64| {
        let (start, file, ..) = image.tls?;
        (offset.checked_add(size)? <= file).then(|| start + offset)
    };
    let zero = |image: &Image<'_>, at: u64| {
        let zeros = image.bytes(at, size).is_some_and(|bytes| bytes.iter().all(|b| *b == 0));
        zeros && image.words.range(at..at + size).next().is_none()
    };
    match (place(&old.image, a), place(&new.image, b)) {
        (None, None) => true,
        (Some(a), Some(b)) => judge.same_content(a, b, size),
        (Some(a), None) => zero(&old.image, a),
        (None, Some(b)) => zero(&new.image, b),
    }
}

/// Code has thread-local variables by their distance from the thread pointer, as a plain number. Where variables changed
/// places, equal code means another one.
fn thread_locals_moved(
    old: &Build<'_>,
    new: &Build<'_>,
    pairs: &Correlation,
    changes: &Changes,
    findings: &mut Vec<Finding>,
) {
    let end = |image: &Image<'_>| image.tls.map_or(0, |(_, _, size, align)| size.next_multiple_of(align.max(1)));
    let places = |image: &Image<'_>, symbols: &[&Symbol<'_>]| -> Vec<i64> {
        symbols.iter().map(|s| s.address.wrapping_sub(end(image)) as i64).collect()
    };
    let now = namesakes(&new.image);
    let before = namesakes(&old.image).into_iter();
    let moved = before.filter(|(key, symbols)| {
        now.get(key).is_some_and(|there| places(&new.image, there) != places(&old.image, symbols))
    });
    let moved: Vec<&str> = moved.map(|((_, name), _)| name).collect();
    let changed: FxHashSet<FunctionId> = changes.functions.iter().map(|c| c.0).collect();
    let uses = |f: FunctionId| old.code[f].ranges.iter().any(|c| c.thread_local);
    let user = pairs.functions.iter().find(|(f, _)| !changed.contains(f) && uses(*f));
    if let (Some(name), Some((f, _))) = (moved.first(), user) {
        let function = old.map.functions[f].qualified_name();
        let message = format!(
            "it uses thread-local variables and has the same code in both builds, but {} of them changed places, such as {name}",
            moved.len()
        );
        findings.push(Finding::new(Code::ThreadLocalChanged, function, message));
    }
}

/// A global name that was part of one function and is now part of another one.
fn aliases(old: &Build<'_>, new: &Build<'_>, pairs: &Correlation, findings: &mut Vec<Finding>) {
    fn by_name<'m>(map: &'m Map<'_>) -> FxHashMap<&'m str, usize> {
        let global = map.functions.iter().enumerate().filter(|(_, f)| !f.local);
        global.flat_map(|(id, f)| f.names.iter().map(move |n| (*n, id))).collect()
    }
    let new_names = by_name(&new.map);
    for (name, f) in by_name(&old.map) {
        if let Some(g) = new_names.get(name)
            && pairs.functions.new_of(f) != Some(*g)
        {
            let other = old.map.functions[f].name();
            findings.push(Finding::new(
                Code::AliasChanged,
                name,
                format!("it shares its code with {other} in only one of the builds"),
            ));
        }
    }
}

/// What the thread-local variables of an image are, if it has any: name, offset, size; and
/// the sizes in file and memory and the alignment of the segment.
type ThreadLocals<'i> = (Vec<(&'i str, u64, u64)>, Option<(u64, u64, u64)>);

fn thread_locals<'i>(image: &'i Image<'_>) -> ThreadLocals<'i> {
    let mut variables: Vec<_> =
        image.symbols.iter().filter(|s| s.kind == SymbolKind::Tls).map(|s| (s.name, s.address, s.size)).collect();
    variables.sort_unstable();
    let segment = image.tls.map(|(_, file, memory, align)| (file, memory, align));
    (variables, segment)
}

/// The thread-local layout must be the same if new code uses it. `users` are the names of
/// payload functions that do.
pub(crate) fn thread_local_layout(judge: &Judge<'_, '_>, users: &[String]) -> Vec<Finding> {
    let (old, new) = judge.builds();
    let (before, now) = (thread_locals(&old.image), thread_locals(&new.image));
    let changed = |v: &&(&str, u64, u64)| !before.0.contains(v) || !same_start(judge, (v.1, v.1), v.2);
    let differing: Vec<&str> = now.0.iter().filter(changed).map(|v| v.0).collect();
    let starts_alike = || now.1.is_none_or(|(file, ..)| same_start(judge, (0, 0), file));
    if users.is_empty() || before == now && starts_alike() {
        return Vec::new();
    }
    let known = |name: &str| before.0.iter().any(|v| v.0 == name);
    let (kept, added): (Vec<&str>, Vec<&str>) = differing.iter().partition(|name| known(name));
    let listed = |names: &[&str], what: &str| match names {
        [] => String::new(),
        [name] => format!("; {name} {what}"),
        names => format!("; {} {what}", names.join(", ")),
    };
    let message = format!(
        "new code uses thread-local variables, and their layout or initial content differs{}{}",
        listed(&added, "is new: threads that run have no room for it"),
        listed(&kept, "changed its place or initial content")
    );
    users.iter().map(|name| Finding::new(Code::ThreadLocalChanged, name, message.clone())).collect()
}

/// Bytes that no entity covers, by content: gaps in writable data, or between functions.
fn unnamed<'b>(build: &'b Build<'_>, writable: bool) -> Vec<&'b [u8]> {
    let image = &build.image;
    let mut gaps = Vec::new();
    for section in image.sections.iter().filter(|s| s.content && !s.tls) {
        let wanted = if writable {
            section.writable && !section.executable && !crate::image::is_constant_section(section)
        } else {
            section.executable && !section.name.starts_with(".plt") && section.name != ".iplt"
        };
        if !wanted || section.name.starts_with(".got") {
            continue;
        }
        let inside = |(start, end): &(u64, u64)| *start < section.end() && *end > section.address;
        let objects = build.map.objects.iter().map(|o| (o.address, o.end()));
        let mut covered: Vec<(u64, u64)> = objects.filter(inside).collect();
        if writable {
            covered.extend(build.map.templates.iter().copied().filter(inside));
            let words = image.words.range(section.address.saturating_sub(7)..section.end());
            covered.extend(words.map(|(a, _)| (*a, a + 8)).filter(inside));
        } else {
            covered.extend(build.map.code_ranges().filter(inside));
        }
        covered.sort_unstable();
        covered.push((section.end(), section.end()));
        let mut at = section.address;
        for (start, end) in covered {
            if start > at {
                let from = (at - section.address) as usize;
                let to = ((start - section.address) as usize).min(section.data.len());
                let gap = section.data.get(from..to).unwrap_or_default();
                let skip = if writable { 0 } else { arch::padding(gap) };
                if gap[skip..].iter().any(|b| *b != 0) {
                    gaps.push(&gap[skip..]);
                }
            }
            at = at.max(end);
        }
    }
    gaps.sort_unstable();
    gaps
}
