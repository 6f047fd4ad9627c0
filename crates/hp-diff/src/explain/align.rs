//! Two lists of tokens, side by side.

use std::time::Instant;

use rustc_hash::FxHashMap;
use similar::{Algorithm, DiffOp, capture_diff_slices_deadline};

use super::RowKind;
use super::tokens::{Side, Token};
use crate::entity::FunctionId;

/// One row: indices of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub kind: RowKind,
    pub old: Option<usize>,
    pub new: Option<usize>,
}

/// Both lists in rows, from the first difference on at most `limit` tokens of each.
pub(super) fn align(old: &[Token<'_>], new: &[Token<'_>], limit: usize, deadline: Option<Instant>) -> Vec<Pair> {
    let mut numbers: FxHashMap<String, u32> = FxHashMap::default();
    let mut number = |token: &Token<'_>| {
        let next = numbers.len() as u32;
        *numbers.entry(token.key()).or_insert(next)
    };
    let x: Vec<u32> = old.iter().map(&mut number).collect();
    let y: Vec<u32> = new.iter().map(&mut number).collect();
    let start = x.iter().zip(&y).take_while(|(a, b)| a == b).count();
    let part = |all: &[u32]| start..all.len().min(start.saturating_add(limit));
    let mut rows: Vec<Pair> = (0..start).map(same).collect();
    for op in capture_diff_slices_deadline(Algorithm::Myers, &x[part(&x)], &y[part(&y)], deadline) {
        push(&mut rows, &op, start, old, new);
    }
    rows
}

fn same(i: usize) -> Pair {
    Pair { kind: RowKind::Same, old: Some(i), new: Some(i) }
}

fn push(rows: &mut Vec<Pair>, op: &DiffOp, start: usize, old: &[Token<'_>], new: &[Token<'_>]) {
    let (a, b) = (op.old_range(), op.new_range());
    let (a, b) = (a.start + start..a.end + start, b.start + start..b.end + start);
    let equal = matches!(op, DiffOp::Equal { .. });
    let (mut i, mut j) = (a.start, b.start);
    while i < a.end && j < b.end {
        // Instructions of one kind face each other; what does not fit is removed or added.
        let kind = if equal { RowKind::Same } else { RowKind::Changed };
        if !equal && !alike(&old[i], &new[j]) {
            match ((i..a.end).find(|k| alike(&old[*k], &new[j])), (j..b.end).find(|k| alike(&old[i], &new[*k]))) {
                (Some(k), other) if other.is_none_or(|l| k - i <= l - j) => {
                    rows.extend((i..k).map(removed));
                    i = k;
                    continue;
                }
                (_, Some(l)) => {
                    rows.extend((j..l).map(added));
                    j = l;
                    continue;
                }
                _ if old[i].padding != new[j].padding => {
                    rows.extend([removed(i), added(j)]);
                    (i, j) = (i + 1, j + 1);
                    continue;
                }
                _ => {}
            }
        }
        rows.push(Pair { kind, old: Some(i), new: Some(j) });
        (i, j) = (i + 1, j + 1);
    }
    rows.extend((i..a.end).map(removed));
    rows.extend((j..b.end).map(added));
}

fn removed(i: usize) -> Pair {
    Pair { kind: RowKind::Removed, old: Some(i), new: None }
}

fn added(j: usize) -> Pair {
    Pair { kind: RowKind::Added, old: None, new: Some(j) }
}

/// The same operation, with other operands.
fn alike(a: &Token<'_>, b: &Token<'_>) -> bool {
    let operation = |t: &Token<'_>| t.masked.split_once(' ').map_or(t.masked.len(), |(word, _)| word.len());
    a.masked[..operation(a)] == b.masked[..operation(b)]
}

/// Rows of equal tokens whose branches or jump tables lead to places that are not aligned: they differ all the same.
pub(super) fn misled(
    rows: &[Pair],
    (old, new): (&[Token<'_>], &[Token<'_>]),
    (before, now): (&Side<'_, '_>, &Side<'_, '_>),
    (f, g): (FunctionId, FunctionId),
) -> Vec<usize> {
    let places = Places::new(rows, old, new);
    let is_misled = |row: &Pair| {
        let (Some(i), Some(j), RowKind::Same) = (row.old, row.new, row.kind) else { return false };
        old[i].leads.iter().zip(&new[j].leads).any(|(a, b)| match a.key.as_str() {
            "local" => !places.meet(target(before, f, a.site.target), target(now, g, b.site.target)),
            "table" => {
                let (Some(x), Some(y)) = (before.build.table(f, a.site.target), now.build.table(g, b.site.target))
                else {
                    return true;
                };
                x.targets.len() != y.targets.len()
                    || !x
                        .targets
                        .iter()
                        .zip(&y.targets)
                        .all(|(p, q)| places.meet(target(before, f, *p), target(now, g, *q)))
            }
            _ => false,
        })
    };
    rows.iter().enumerate().filter(|(_, row)| is_misled(row)).map(|(n, _)| n).collect()
}

/// Range and offset in the function.
type Spot = (usize, u32);

fn target(side: &Side<'_, '_>, function: FunctionId, address: u64) -> Option<Spot> {
    let (found, range, offset) = side.build.map.function_at(address)?;
    (found == function).then_some((range, offset as u32))
}

/// Which places of both sides are aligned: those with as many equal rows before them.
struct Places {
    old: FxHashMap<Spot, usize>,
    new: FxHashMap<Spot, usize>,
}

impl Places {
    fn new(rows: &[Pair], old: &[Token<'_>], new: &[Token<'_>]) -> Places {
        let mut places = Places { old: FxHashMap::default(), new: FxHashMap::default() };
        let mut equal_before = 0;
        for row in rows {
            if let Some(i) = row.old {
                places.old.insert((old[i].range, old[i].offset), equal_before);
            }
            if let Some(j) = row.new {
                places.new.insert((new[j].range, new[j].offset), equal_before);
            }
            // Padding may stand on one side only, so it does not count.
            equal_before += usize::from(row.kind == RowKind::Same && row.old.is_none_or(|i| !old[i].padding));
        }
        places
    }

    /// True where both are aligned; where the rows do not reach, nothing is known against it.
    fn meet(&self, a: Option<Spot>, b: Option<Spot>) -> bool {
        match (a.and_then(|a| self.old.get(&a)), b.and_then(|b| self.new.get(&b))) {
            (Some(x), Some(y)) => x == y,
            (None, None) => true,
            _ => false,
        }
    }
}
