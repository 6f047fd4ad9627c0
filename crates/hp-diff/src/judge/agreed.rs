//! Pairs of addresses that lead to the same, so that this is found out once and not for each of the many sites that lead there.
//!
//! Most references of two builds lead to few places: functions that many call, texts that many use. What is kept are answers of
//! "the same" that nothing can take back: they rest on content and on pairs, and neither the functions that the two sites are in
//! nor anything that was still alone had a part in them. The store is a cache: what falls on the place of another
//! pair takes that, and is found out again.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Judge, Verdict};
use crate::arch::{Encoding, Site, Use};
use crate::entity::FunctionId;

/// Places in the store: half a megabyte.
const SLOTS: usize = 1 << 16;

/// Bits for the distance of an address from the start of its image: larger ones are not kept.
const DISTANCE: u32 = 29;

/// Which pairs of addresses lead to the same.
#[derive(Debug)]
pub(crate) struct Agreed {
    /// A question and whether the answer rests on constants that have not changed; 0 where there is none.
    slots: Box<[AtomicU64]>,
}

/// Two addresses and the way they are used, packed. From the lowest bit: whether the answer rests on constants (not set here), whether both
/// functions are of Rust, use (4), distance of the new and of the old address from the start of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question(u64);

const ON_CONSTANTS: u64 = 1;

impl Question {
    /// `None` if that cannot be kept. `starts` are those of the images.
    fn new((a, b): (u64, u64), starts: (u64, u64), usage: Use, rust: bool) -> Option<Question> {
        let usage = match usage {
            Use::Branch => 0,
            Use::Address => 1,
            Use::Access(bytes) if bytes.is_power_of_two() => 2 + bytes.ilog2(),
            Use::Access(_) => return None,
        };
        let (a, b) = (a.checked_sub(starts.0)?, b.checked_sub(starts.1)?);
        // A question is never 0, for nothing leads to the very start.
        let fits = usage < 16 && a > 0 && a >> DISTANCE == 0 && b >> DISTANCE == 0;
        fits.then(|| Question(a << (DISTANCE + 6) | b << 6 | u64::from(usage) << 2 | u64::from(rust) << 1))
    }

    fn slot(self) -> usize {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.ilog2())) as usize
    }
}

impl Default for Agreed {
    fn default() -> Agreed {
        Agreed { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Agreed {
    /// Whether the answer is known to be "the same": then, whether it rests on constants that have not changed.
    fn get(&self, question: Question) -> Option<bool> {
        let found = self.slots[question.slot()].load(Ordering::Relaxed);
        (found & !ON_CONSTANTS == question.0).then_some(found & ON_CONSTANTS != 0)
    }

    /// Keeps that the answer is "the same".
    fn keep(&self, question: Question, on_constants: bool) {
        self.slots[question.slot()].store(question.0 | u64::from(on_constants), Ordering::Relaxed);
    }
}

impl Judge<'_, '_> {
    /// The question whether two sites lead to the same, whichever functions they are in, what code reads before the addresses put
    /// aside; `None` if the answer is not kept.
    pub(super) fn question(&self, pair: (FunctionId, FunctionId), a: &Site, b: &Site) -> Option<Question> {
        if (a.encoding, b.encoding) != (Encoding::PcRelative, Encoding::PcRelative) || a.usage != b.usage {
            return None;
        }
        let rust = a.usage == Use::Address && self.are_rust(pair);
        Question::new((a.target, b.target), (self.old.image.start, self.new.image.start), a.usage, rust)
    }

    /// The answer to a question, if it is known to be "the same", or what `lead` finds. That is kept if it is
    /// "the same" for all who may ask.
    pub(super) fn or_agreed(
        &self,
        question: Option<Question>,
        lead: impl FnOnce() -> ControlFlow<Verdict, Verdict>,
    ) -> ControlFlow<Verdict, Verdict> {
        let same = ControlFlow::Continue(Verdict::Same);
        if question.is_some_and(|question| self.is_agreed(question)) {
            return same;
        }
        let Some(question) = question.filter(|_| self.keeps) else { return lead() };
        let asked = self.pairs.questions();
        let asked_changed = self.asked_changed.swap(false, Ordering::Relaxed);
        self.local.store(false, Ordering::Relaxed);
        let found = lead();
        let on_constants = self.depends_on_constants();
        self.asked_changed.store(on_constants || asked_changed, Ordering::Relaxed);
        if found == same && !self.local.load(Ordering::Relaxed) && self.pairs.questions() == asked {
            self.agreed.keep(question, on_constants);
        }
        found
    }

    /// Notes that a verdict depends on the functions that the sites are in, or is not "the same" at once.
    pub(super) fn note_local(&self) {
        if self.keeps {
            self.local.store(true, Ordering::Relaxed);
        }
    }

    fn is_agreed(&self, question: Question) -> bool {
        let Some(on_constants) = self.agreed.get(question) else { return false };
        if on_constants && !self.depends_on_constants() {
            self.asked_changed.store(true, Ordering::Relaxed);
        }
        !on_constants || self.changed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::{Agreed, DISTANCE, Question};
    use crate::arch::Use;
    use crate::build::Build;
    use crate::compare::changed_objects;
    use crate::correlate::correlate;
    use crate::image::Image;
    use crate::input::Input;
    use crate::judge::Judge;

    /// Functions that share texts, variables, constants, imports and one another; one of them and one constant are edited.
    fn program(number: usize) -> String {
        let mut text = String::from(
            "#include <stdio.h>\n#include <stdlib.h>\n
             static int count; int shared[16]; extern char **environ;\n",
        );
        text += &format!("const int table[] = {{1, 2, {number}, 4}}; const char *const names[] = {{\"a\", \"b\"}};\n");
        text += "int other(int n);\n";
        for f in 0..40 {
            let edited = if f == 7 { number } else { 0 };
            text += &format!(
                "NI int f{f}(int n) {{ static int calls; calls += n + {edited}; count++; if (n > {f} && n % 3) n = f{f}(n - 2);
                 for (int *p = shared; p < shared + 16; p++) n += *p; printf(\"text %d %s\", n, names[n & 1]);
                 if (environ) puts(\"shared text\"); double x = n * 0.{f}5 + 3.25;
                 return other((int)x) + table[n & 3] + shared[n & 15] + (n > 5 ? f{}(n - 1) : 0); }}\n",
                (f + 1) % 40
            );
            if f < 39 {
                text += &format!("int f{}(int n);\n", f + 2);
            }
        }
        let unrelated = "NI int before(int n) { puts(\"another text\"); return n * 77; }\n";
        format!(
            "#define NI __attribute__((noinline))\nint puts(const char *); int f1(int n); {}\n {text} NI int other(int n) {{ return n ? {} : atoi(environ[0]); }}
             int main(int n, char **v) {{ return f0(n); }}\n",
            if number > 3 { unrelated } else { "int before(int n) { return n; }\n" },
            if number > 3 { "before(n)" } else { "before(n) + 1" }
        )
    }

    #[test]
    fn what_is_kept_is_what_is_found_out_anew() {
        let folder = tempfile::tempdir().unwrap();
        let build = |name: &str, number: usize, flags: &[&str]| {
            let (source, program_file) = (folder.path().join(name).with_extension("c"), folder.path().join(name));
            std::fs::write(&source, program(number)).unwrap();
            let mut gcc = Command::new("gcc");
            gcc.args(["-O2", "-w"]).args(flags).arg(&source).arg("-o").arg(&program_file);
            assert!(gcc.status().unwrap().success());
            program_file
        };
        let open = |path: &Path| Input::open(path, None, &Default::default()).unwrap();
        for flags in [&[][..], &["-s"], &["-O1"]] {
            let (old, new) = (open(&build("old", 3, flags)), open(&build("new", 9, flags)));
            let images = (Image::parse(&old).unwrap(), Image::parse(&new).unwrap());
            let (old, new) = Build::both(images.0, images.1, None);
            let pairs = correlate(&old, &new, (&[], &[]));
            let kept = pairs.agreed.slots.iter().filter(|slot| slot.load(super::Ordering::Relaxed) != 0).count();
            assert!(kept > 5, "{kept}");
            let constants = changed_objects(&old, &new, &pairs, &pairs.copies, Default::default()).0;
            let nothing = Agreed::default();
            let (mut asked, mut differing) = (0, 0);
            for changed in [Default::default(), constants] {
                let judge = Judge::new(&old, &new, &pairs).with_changed_constants(changed.clone());
                let mut fresh = Judge::new(&old, &new, &pairs).with_changed_constants(changed);
                fresh.agreed = &nothing;
                for pair in pairs.functions.iter() {
                    let codes = old.code[pair.0].ranges.iter().zip(&new.code[pair.1].ranges);
                    for (a, b) in codes.flat_map(|(x, y)| x.sites.iter().zip(&y.sites)) {
                        let verdict = judge.sites(pair, &a, &b);
                        assert_eq!(verdict, fresh.sites(pair, &a, &b), "{pair:?} {a:x?} {b:x?} {flags:?}");
                        asked += 1;
                        differing += usize::from(verdict != crate::judge::Verdict::Same);
                    }
                }
            }
            assert!(asked > 80 && (differing > 0 || flags == ["-s"]), "{asked} {differing} {flags:?}");
        }
    }

    #[test]
    fn only_what_was_kept_is_known() {
        let start = 0x40_0000;
        let addresses = [1, 2, 0x1000, 0x1001, (1 << DISTANCE) - 1].map(|n| start + n);
        let uses = [Use::Branch, Use::Address, Use::Access(1), Use::Access(8), Use::Access(512)];
        let mut questions = Vec::new();
        for a in addresses {
            for b in addresses {
                for usage in uses {
                    for rust in [false, true] {
                        questions.push(Question::new((a, b), (start, start), usage, rust).unwrap());
                    }
                }
            }
        }
        for (i, question) in questions.iter().enumerate() {
            let agreed = Agreed::default();
            agreed.keep(*question, i % 2 == 0);
            for (j, other) in questions.iter().enumerate() {
                assert_eq!(agreed.get(*other), (i == j).then_some(i % 2 == 0), "{question:?} {other:?}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_not_kept() {
        let new = |a, b, usage| Question::new((a, b), (0x1000, 0x1000), usage, false);
        assert!(new(0x2000, 0x2000, Use::Address).is_some());
        assert!(new(0x1000, 0x2000, Use::Address).is_none());
        assert!(new(0xfff, 0x2000, Use::Address).is_none());
        assert!(new(0x1000 + (1 << DISTANCE), 0x2000, Use::Address).is_none());
        assert!(new(0x2000, 0x1000 + (1 << DISTANCE), Use::Address).is_none());
        assert!(new(0x2000, 0x2000, Use::Access(10)).is_none());
    }
}
