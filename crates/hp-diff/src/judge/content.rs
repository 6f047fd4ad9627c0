//! Are two pieces of data the same?

use std::cell::RefCell;

use super::{Judge, Verdict};
use crate::arch::Use;
use crate::build::Build;
use crate::entity::{Distance, ObjectId};
use crate::image::Word;
use crate::rust;
use crate::usage::is_known;

impl<'j, 'a> Judge<'j, 'a> {
    pub(super) fn same_bytes(&self, a: u64, b: u64, size: u64) -> bool {
        match (self.old.image.bytes(a, size), self.new.image.bytes(b, size)) {
            (Some(x), Some(y)) => self.contents((a, x), (b, y), true) == Verdict::Same,
            _ => false,
        }
    }

    /// Compares two literals by content.
    pub(crate) fn literals(&self, a: u64, b: u64, usage: Use) -> Verdict {
        let (x, y) = match usage {
            Use::Access(n) => {
                let (x, y) = (self.old.image.bytes(a, u64::from(n)), self.new.image.bytes(b, u64::from(n)));
                match (x, y) {
                    (Some(x), Some(y)) => (x, y),
                    _ => return Verdict::Different,
                }
            }
            _ => (self.old.map.literal(&self.old.image, a), self.new.map.literal(&self.new.image, b)),
        };
        let verdict = self.unless_compared((a, b), || self.contents((a, x), (b, y), false));
        if let Verdict::UndecidedFunctions(f, _) = verdict {
            // More may be open behind it, so whatever becomes of it must be noted.
            self.pairs.functions.new_of(f);
        }
        verdict
    }

    /// What comes of comparing two literals that may lead to each other: those that are being compared already count as the same, as
    /// everything else about them decides. Chains that are longer than anybody writes are not followed.
    fn unless_compared(&self, pair: (u64, u64), compare: impl FnOnce() -> Verdict) -> Verdict {
        const LONGEST: usize = 256;
        thread_local! {
            static COMPARED: RefCell<Vec<(usize, u64, u64)>> = const { RefCell::new(Vec::new()) };
        }
        let known = (std::ptr::from_ref(self.old) as usize, pair.0, pair.1);
        let open = COMPARED.with_borrow(|all| (all.contains(&known), all.len()));
        match open {
            (true, _) => Verdict::Same,
            (_, LONGEST..) => Verdict::Different,
            _ => {
                COMPARED.with_borrow_mut(|all| all.push(known));
                let verdict = compare();
                COMPARED.with_borrow_mut(|all| all.pop());
                verdict
            }
        }
    }

    /// True if `size` bytes of the two builds are the same, words that hold addresses by what they lead to.
    pub(crate) fn same_content(&self, a: u64, b: u64, size: u64) -> bool {
        match (self.old.image.bytes(a, size), self.new.image.bytes(b, size)) {
            (Some(x), Some(y)) => self.contents((a, x), (b, y), false) == Verdict::Same,
            _ => false,
        }
    }

    /// Compares two pieces of data: bytes, and words that hold addresses. Undecided only
    /// if everything else is the same. `rust`: only Rust knows of this data.
    fn contents(&self, a: (u64, &[u8]), b: (u64, &[u8]), rust: bool) -> Verdict {
        let mut all = Verdict::Same;
        self.pieces(a, b, rust, &mut |verdict| {
            all = all.and(verdict);
            all != Verdict::Different
        });
        all
    }

    /// The verdicts of all pieces of two pieces of data, until `go_on` has heard enough.
    fn pieces(&self, (a, x): (u64, &[u8]), (b, y): (u64, &[u8]), rust: bool, go_on: &mut dyn FnMut(Verdict) -> bool) {
        if x.len() != y.len() {
            go_on(Verdict::Different);
            return;
        }
        let (mut old_fields, mut new_fields) = (fields(self.old, a, x.len()), fields(self.new, b, y.len()));
        let mut at = 0;
        loop {
            let (end, width, field) = match (old_fields.next(), new_fields.next()) {
                (None, None) => (x.len(), 0, Verdict::Same),
                (Some((i, v)), Some((j, w))) if i == j && i >= at => match (v, w) {
                    (DataField::Word(v), DataField::Word(w)) => {
                        let verdict = self.words(v, w);
                        let texts = verdict == Verdict::Different
                            && self.same_text_words((v, count(x, i)), (w, count(y, i)), rust);
                        (i, 8, if texts { Verdict::Same } else { verdict })
                    }
                    (DataField::Distance(v), DataField::Distance(w)) => {
                        let verdict = self.addresses(None, (v.target, w.target), Use::Address);
                        let text = v.rust && w.rust && verdict == Verdict::Different;
                        (i, 4, if text && self.same_to_next(v.target, w.target) { Verdict::Same } else { verdict })
                    }
                    _ => (i, 0, Verdict::Different),
                },
                _ => (x.len(), 0, Verdict::Different),
            };
            let bytes = if field == Verdict::Different { field } else { self.plain_bytes((a, x), (b, y), at..end) };
            if !go_on(bytes) || !go_on(field) || end == x.len() {
                return;
            }
            at = (end + width).min(x.len());
        }
    }

    /// What is open in the content of a pair of objects, if everything else in it is the same.
    pub(crate) fn open_contents(&self, (o, p): (ObjectId, ObjectId)) -> Vec<Verdict> {
        let mut open = Vec::new();
        let mut same = true;
        self.object_pieces((o, p), &mut |verdict| {
            same &= verdict != Verdict::Different;
            open.extend(Some(verdict).filter(|v| *v != Verdict::Same));
            same
        });
        if same { open } else { Vec::new() }
    }

    /// Bytes without dynamic relocations. In a position-dependent image an aligned word
    /// may be an address all the same.
    fn plain_bytes(&self, (a, x): (u64, &[u8]), (b, y): (u64, &[u8]), span: std::ops::Range<usize>) -> Verdict {
        let (p, q) = (&x[span.clone()], &y[span.clone()]);
        let (a, b) = (a + span.start as u64, b + span.start as u64);
        let lead = ((8 - a % 8) % 8).min(p.len() as u64) as usize;
        if !(self.old.image.fixed_address && self.new.image.fixed_address) || a % 8 != b % 8 || p[..lead] != q[..lead] {
            return (p == q).into();
        }
        p[lead..].chunks(8).zip(q[lead..].chunks(8)).fold(Verdict::Same, |verdict, (v, w)| {
            verdict.and(match (v.try_into().map(u64::from_le_bytes), w.try_into().map(u64::from_le_bytes)) {
                (Ok(m), Ok(n)) if is_known(self.old, m) || is_known(self.new, n) => {
                    self.addresses(None, (m, n), Use::Address)
                }
                _ => (v == w).into(),
            })
        })
    }

    /// Compares the content of a pair of objects. References to constants that are known
    /// to have changed count as different.
    pub(crate) fn object_contents(&self, pair: (ObjectId, ObjectId)) -> Verdict {
        let mut all = Verdict::Same;
        self.object_pieces(pair, &mut |verdict| {
            all = all.and(verdict);
            all != Verdict::Different
        });
        all
    }

    fn object_pieces(&self, (o, p): (ObjectId, ObjectId), go_on: &mut dyn FnMut(Verdict) -> bool) {
        let (x, y) = (&self.old.map.objects[o], &self.new.map.objects[p]);
        // Without a symbol an object reaches to the next address that something refers to.
        let shorter = x.size.min(y.size);
        if x.size != y.size && !(x.unnamed && y.unnamed) {
            go_on(Verdict::Different);
            return;
        }
        match (self.old.image.bytes(x.address, shorter), self.new.image.bytes(y.address, shorter)) {
            (Some(p), Some(q)) => {
                let rust = rust::is_mangled(x.name()) && rust::is_mangled(y.name());
                self.pieces((x.address, p), (y.address, q), rust, go_on)
            }
            (None, None) => {}
            // One of them moved between `.bss` and `.data`.
            (Some(bytes), None) | (None, Some(bytes)) => {
                go_on(bytes.iter().all(|b| *b == 0).into());
            }
        }
    }
}

/// The number behind a word: of a text in Rust, its length.
pub(crate) fn count(bytes: &[u8], word: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(word + 8..word + 16)?.try_into().ok()?))
}

/// A field of data that leads somewhere.
enum DataField<'b> {
    Word(&'b Word),
    Distance(&'b Distance),
}

/// The fields of `size` bytes of data, by offset.
fn fields<'b>(build: &'b Build<'_>, start: u64, size: usize) -> impl Iterator<Item = (usize, DataField<'b>)> {
    let span = start..start + size as u64;
    let mut words = build.image.words.range(span.clone()).peekable();
    let mut distances = build.map.distances.range(span).peekable();
    std::iter::from_fn(move || {
        let word_first = match (words.peek(), distances.peek()) {
            (Some(w), Some(d)) => w.0 < d.0,
            (word, _) => word.is_some(),
        };
        let field = if word_first {
            words.next().map(|(at, w)| (at, DataField::Word(w)))
        } else {
            distances.next().map(|(at, d)| (at, DataField::Distance(d)))
        };
        field.map(|(at, f)| ((at - start) as usize, f))
    })
}
