//! A security module refuses what threads of a target do for us, and nothing says so before: each call in turn, with each
//! errno. The target stays as it was, nothing stays mapped that need not, and the next command does its job.

mod common;
use common::*;
use hp_apply::{Error, apply_patch, calls_in_target, refuse_in_target, revert, status};
use std::sync::{Mutex, MutexGuard, PoisonError};

const EPERM: u16 = 1;
const ENOMEM: u16 = 12;
const EACCES: u16 = 13;

/// Refusals are for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn mapping_is_refused() {
    let _alone = alone();
    let program = Program::build(VERSIONED, &[]);
    let patch = version(&program, 2, 1);
    let mut target = program.spawn(&["2", "0", "50"]);
    let before = target.maps();
    refuse_in_target(1, 0, EPERM);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    let calls = calls_in_target();
    assert!(calls >= 2, "the range, and code in it: {calls}");
    reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!(target.maps(), before);
    for (errno, words) in [(EACCES, "security policy"), (EPERM, "security policy"), (ENOMEM, "no memory left")] {
        for call in 1..=calls {
            refuse_in_target(call, call, errno);
            let outcome = apply_patch(target.pid(), &patch, ID, &options());
            refuse_in_target(1, 0, EPERM);
            let text = refused(outcome);
            assert!(text.contains(words), "call {call}, errno {errno}: {text}");
            assert_eq!(target.maps(), before, "call {call}, errno {errno}");
            assert_eq!(status(target.pid()).unwrap(), []);
            assert_eq!(version_of(&mut target), 1);
        }
    }
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(version_of(&mut target), 2);
    target.assert_free();
}

/// What maps is allowed and what unmaps is not: the patch is out, its memory stays, and that is said.
#[test]
fn unmapping_is_refused() {
    let _alone = alone();
    let program = Program::build(VERSIONED, &[]);
    let patch = version(&program, 2, 1);
    let mut target = program.spawn(&["2", "0", "50"]);
    let before = target.maps();
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    for last in [1, 2, 3, u64::MAX] {
        refuse_in_target(1, last, EACCES);
        let outcome = revert(target.pid(), Some(ID), &options());
        refuse_in_target(1, 0, EPERM);
        let measured = reverted(outcome);
        assert_eq!(version_of(&mut target), 1);
        match last {
            // Another thread is asked, or the same once more.
            1 => assert_eq!((measured.kept, target.maps()), (Vec::new(), before.clone())),
            u64::MAX => {
                assert!(measured.kept[0].contains("no thread can make the call that unmaps it"), "{measured:?}")
            }
            _ => {}
        }
        // The next one takes up what is left.
        applied(apply_patch(target.pid(), &patch, ID, &options()));
        assert_eq!(version_of(&mut target), 2);
    }
    reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!(target.maps(), before);
}

/// The call that takes back what was mapped in part is refused too: what is left is found and taken by the next command.
#[test]
fn nothing_that_was_left_stays() {
    let _alone = alone();
    let program = Program::build(VERSIONED, &[]);
    let patch = version(&program, 2, 1);
    let mut target = program.spawn(&["0"]);
    let before = target.maps();
    refuse_in_target(2, u64::MAX, EACCES);
    let outcome = apply_patch(target.pid(), &patch, ID, &options());
    refuse_in_target(1, 0, EPERM);
    assert!(matches!(outcome.result, Err(Error::Refused(_))), "{outcome:?}");
    assert_ne!(target.maps(), before, "the range is reserved and cannot be given back");
    assert_eq!(version_of(&mut target), 1);
    applied(apply_patch(target.pid(), &patch, ID, &options()));
    assert_eq!(version_of(&mut target), 2);
    reverted(revert(target.pid(), Some(ID), &options()));
    assert_eq!(target.maps(), before);
}
