//! Calls that never come back.
//!
//! What lies behind such a call is reached by other ways only. A function comes back if somewhere from its entry on, by its
//! jumps into other functions and by a call that is its last instruction, there is a return, or a jump that leads nobody knows where. Of
//! the functions of other modules those stay away of which the standards of C, C++ and POSIX, and their ABIs, say so.

use iced_x86::{FlowControl, Mnemonic};
use rustc_hash::FxHashSet;

use crate::code::{self, Use};
use crate::entities::Side;
use crate::image::Word;

/// Functions that are looked at for one call; so far go chains of `die` that calls `exit_with` that calls `exit`.
const MOST: usize = 64;

impl Side<'_> {
    /// True if a call that leads there never comes back.
    pub(crate) fn stays_away(&self, target: u64) -> bool {
        let mut known = self.away.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *known.entry(target).or_insert_with(|| self.find_stays_away(target))
    }

    fn find_stays_away(&self, target: u64) -> bool {
        let mut seen = FxHashSet::from_iter([target]);
        let mut open = vec![target];
        while let Some(at) = open.pop() {
            if self.is_known_to_stay_away(at) {
                continue;
            }
            let Some((range, 0)) = self.range_at(at).filter(|_| seen.len() <= MOST) else { return false };
            if self.ranges[range].parent != range {
                return false;
            }
            for part in self.family(range) {
                let Some(further) = self.leaves(*part) else { return false };
                open.extend(further.into_iter().filter(|to| seen.insert(*to)));
            }
        }
        true
    }

    /// Where the code of a range goes for good; `None` if it may come back.
    fn leaves(&self, range: usize) -> Option<Vec<u64>> {
        let this = &self.ranges[range];
        let family = self.family(this.parent);
        let own =
            |at: u64| family.iter().any(|part| (self.ranges[*part].address..self.ranges[*part].end()).contains(&at));
        let (mut found, mut open_end) = (Vec::new(), true);
        for (at, step) in code::steps(this.address, this.bytes, self.image.fixed) {
            let flow = step.instruction.flow_control();
            let target = step.fields.into_iter().find(|field| field.usage == Use::Branch).map(|field| field.target);
            let last = at + step.len() >= this.bytes.len();
            match flow {
                FlowControl::Return | FlowControl::IndirectBranch | FlowControl::XbeginXabortXend => return None,
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    found.extend(Some(target?).filter(|to| !own(*to)));
                }
                FlowControl::Call if last => found.push(target?),
                _ if step.instruction.is_invalid() => return None,
                _ => {}
            }
            let stops = matches!(flow, FlowControl::UnconditionalBranch | FlowControl::Call | FlowControl::Exception);
            open_end = !(stops || step.instruction.mnemonic() == Mnemonic::Hlt);
        }
        (!open_end).then_some(found)
    }

    fn is_known_to_stay_away(&self, stub: u64) -> bool {
        let word = self.image.stubs.get(&stub).and_then(|slot| self.image.words.get(slot));
        let Some(Word::Symbol(name, 0)) = word else { return false };
        matches!(
            name.split('@').next().unwrap_or_default(),
            "exit"
                | "_exit"
                | "_Exit"
                | "quick_exit"
                | "abort"
                | "__assert_fail"
                | "pthread_exit"
                | "__stack_chk_fail"
                | "__chk_fail"
                | "__fortify_fail"
                | "longjmp"
                | "_longjmp"
                | "siglongjmp"
                | "__longjmp_chk"
                | "_ZSt9terminatev"
                | "__cxa_throw"
                | "__cxa_rethrow"
                | "_Unwind_Resume"
        )
    }
}
