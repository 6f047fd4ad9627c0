//! Holds what was recovered against what the linker knew.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hp_diff::{EntityKind, Meaning, Reference};

use crate::truth::{Aim, Fact, Truth};

/// How one field turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// One meaning, the right one.
    Bound,
    /// The right one among several.
    Several,
    /// Only wrong ones.
    Invented,
    /// The linker filled it in, and it was not seen.
    Missed,
    /// A number that the linker did not fill in, taken for an address.
    Imagined,
    /// The truth is not known.
    Unknown,
}

/// The counts of one image, and what went wrong.
#[derive(Default)]
pub(crate) struct Score {
    pub(crate) counts: BTreeMap<Outcome, usize>,
    pub(crate) wrong: Vec<String>,
    pub(crate) several: Vec<String>,
    /// Functions with a field of several meanings, and all.
    pub(crate) functions: (usize, usize),
}

impl Score {
    pub(crate) fn count(&self, outcome: Outcome) -> usize {
        self.counts.get(&outcome).copied().unwrap_or(0)
    }
}

/// What a relocation wants, by its type (psABI x86-64, table 4.9).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Address,
    Slot,
    ThreadLocal,
    Nothing,
}

fn want(kind: u32) -> Want {
    match kind {
        1 | 2 | 4 | 10 | 11 | 24 => Want::Address,
        9 | 41 | 42 => Want::Slot,
        16..=23 | 34 | 35 | 36 => Want::ThreadLocal,
        _ => Want::Nothing,
    }
}

/// Judges every fact about `truth`, and every reference that has none.
pub(crate) fn judge(truth: &Truth, references: &[Reference]) -> Score {
    let by_field: HashMap<u64, &Reference> = references.iter().map(|r| (r.field, r)).collect();
    let mut score = Score::default();
    let mut owners: BTreeMap<&str, bool> = BTreeMap::new();
    let mut facts = BTreeSet::new();
    for fact in &truth.facts {
        facts.insert(fact.field);
        let reference = by_field.get(&fact.field).copied();
        let outcome = of_fact(truth, fact, reference);
        *score.counts.entry(outcome).or_default() += 1;
        let shown = reference.map_or("nothing".to_owned(), Reference::to_string);
        let line = format!("{outcome:?}: {} {}: {shown}", fact.place, show(&fact.aim, fact.addend));
        match outcome {
            Outcome::Invented | Outcome::Missed => score.wrong.push(line),
            Outcome::Several => score.several.push(line),
            _ => {}
        }
        if let (Some(r), true) = (reference, fact.executable) {
            *owners.entry(&r.owner).or_default() |= outcome == Outcome::Several;
        }
    }
    for reference in references.iter().filter(|r| !facts.contains(&r.field)) {
        let Some(piece) = piece(truth, reference.field) else { continue };
        // `_init` is put together from pieces.
        let own =
            reference.meanings.first().is_some_and(|m| m.kind == EntityKind::Function && m.name == reference.owner);
        // What never returns may branch to the end.
        let inside = own || (piece.0..=piece.1).contains(&reference.target);
        let number = reference.meanings.iter().any(|m| m.kind == EntityKind::Number);
        let branch_or_number = if reference.base == 0 { number } else { inside };
        let outcome = if branch_or_number { Outcome::Bound } else { Outcome::Imagined };
        *score.counts.entry(outcome).or_default() += 1;
        if outcome == Outcome::Imagined {
            score.wrong.push(format!("{outcome:?}: {reference}"));
        }
    }
    score.functions = (owners.values().filter(|several| **several).count(), owners.len());
    score
}

/// The input section with code that contains `address`.
fn piece(truth: &Truth, address: u64) -> Option<(u64, u64)> {
    let i = truth.code.partition_point(|p| p.0 <= address).checked_sub(1)?;
    Some(truth.code[i]).filter(|p| address < p.1)
}

fn show(aim: &Aim, addend: i64) -> String {
    match aim {
        Aim::Place { start, name, entities } => format!("{name}@{start:#x}{addend:+} of {entities:x?}"),
        Aim::Content { bytes, at, .. } => {
            let text: Vec<u8> = bytes.iter().skip((*at).max(0) as usize).take(24).copied().collect();
            format!("content {:?}", String::from_utf8_lossy(&text))
        }
        Aim::Name(name) | Aim::Elsewhere(name) => format!("{name}{addend:+}"),
    }
}

fn of_fact(truth: &Truth, fact: &Fact, reference: Option<&Reference>) -> Outcome {
    let want = want(fact.kind);
    if want == Want::Nothing {
        return Outcome::Unknown;
    }
    let Some(reference) = reference else {
        return match (want, &fact.aim) {
            // Relaxed to a number, or to another field.
            (Want::ThreadLocal, _) => Outcome::Unknown,
            (_, Aim::Name(name)) if !in_image(truth, name) => Outcome::Unknown,
            // Slots of unwind tables and the like, which no code of the image reads.
            (Want::Slot, _) if !fact.executable => Outcome::Unknown,
            _ => Outcome::Missed,
        };
    };
    if want == Want::ThreadLocal {
        let slot = reference.meanings.iter().all(|m| m.kind == EntityKind::Slot);
        // A relaxed call to `__tls_get_addr` leaves an instruction there that leads nowhere.
        return if slot { Outcome::Bound } else { Outcome::Invented };
    }
    let tail = if reference.base == 0 { 0 } else { reference.base.wrapping_sub(reference.field) as i64 };
    let relative = matches!(fact.kind, 2 | 4 | 24 | 9 | 41 | 42);
    let addend = if relative && want == Want::Address {
        fact.addend + tail
    } else if relative {
        0
    } else {
        fact.addend
    };
    let right = reference.meanings.iter().filter(|m| fits(truth, fact, addend, tail, reference, m)).count();
    match (right, reference.meanings.len(), &fact.aim) {
        (1, 1, _) => Outcome::Bound,
        (0, _, Aim::Elsewhere(_)) => Outcome::Unknown,
        (0, ..) => Outcome::Invented,
        _ => Outcome::Several,
    }
}

/// False for weak symbols that nothing defines, and absolute ones.
fn in_image(truth: &Truth, name: &str) -> bool {
    truth.names.get(name).is_some_and(|all| all.iter().any(|a| truth.span.contains(a)))
}

fn fits(truth: &Truth, fact: &Fact, addend: i64, tail: i64, reference: &Reference, m: &Meaning) -> bool {
    let plain = |name: &str| name.split('@').next().unwrap_or_default().to_owned();
    match &fact.aim {
        Aim::Place { start, entities, name } => {
            let wanted = start.wrapping_add_signed(addend);
            match m.kind {
                EntityKind::Stub | EntityKind::Slot => {
                    let named = truth.names.get(&m.name).is_some_and(|all| all.contains(&wanted));
                    m.address == wanted || named || m.address == 0 && plain(&m.name) == *name
                }
                EntityKind::Number => false,
                EntityKind::JumpTable => reference.target == wanted,
                EntityKind::Literal => {
                    reference.target == wanted && !entities.iter().any(|e| (e.0..e.0 + e.1).contains(&wanted))
                }
                _ => reference.target == wanted && entity_fits(entities, wanted, m),
            }
        }
        Aim::Content { bytes, at, shift, width, strings } => {
            // Of a section's symbol the addend says which piece; the tail belongs to it.
            let (at, shift) = if *shift == 0 { (at + tail, 0) } else { (*at, shift + tail) };
            let start = reference.target.wrapping_add_signed(-shift);
            content_fits(truth.bytes(start), bytes, at, (*width, *strings))
                && (shift != 0 || compared(bytes, at, (*width, *strings), reference.access, m))
        }
        Aim::Name(name) => {
            let by_name = plain(&m.name) == *name;
            let markers = truth.names.get(name);
            let there =
                if matches!(m.kind, EntityKind::Slot | EntityKind::Stub) { m.address } else { reference.target };
            let by_address = markers.is_some_and(|a| a.iter().any(|a| a.wrapping_add_signed(addend) == there));
            by_name || by_address || there == 0
        }
        Aim::Elsewhere(name) => {
            let here = truth.names.get(name);
            here.is_some_and(|a| a.iter().any(|a| a.wrapping_add_signed(addend) == reference.target))
        }
    }
}

/// With one entity in the section, that is the one, wherever the address lies.
fn entity_fits(entities: &[(u64, u64)], wanted: u64, m: &Meaning) -> bool {
    let start = wanted.wrapping_add_signed(m.addend.wrapping_neg());
    match entities {
        [] => true,
        [one] => start == one.0,
        many => many.iter().any(|e| e.0 == start),
    }
}

fn piece_of(bytes: &[u8], at: i64, (width, strings): (u64, bool)) -> &[u8] {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let terminator = rest.chunks(width as usize).position(|c| c.iter().all(|b| *b == 0));
    let size = if strings { terminator.map_or(rest.len(), |n| (n + 1) * width as usize) } else { width as usize };
    &rest[..size.min(rest.len())]
}

/// The image has this content where the reference leads.
fn content_fits(image: &[u8], bytes: &[u8], at: i64, kind: (u64, bool)) -> bool {
    let piece = piece_of(bytes, at, kind);
    !piece.is_empty() && image.starts_with(piece)
}

/// What is compared is the whole piece, zeros at its end put aside.
fn compared(bytes: &[u8], at: i64, kind: (u64, bool), access: u32, m: &Meaning) -> bool {
    let piece = piece_of(bytes, at, kind);
    let wanted = piece.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
    let size = if access == 0 { wanted } else { wanted.min(access as usize) };
    match m.kind {
        EntityKind::Literal | EntityKind::Object => m.content.get(..size) == Some(&piece[..size]),
        EntityKind::JumpTable => true,
        _ => false,
    }
}
