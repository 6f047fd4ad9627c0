//! What the tests on processes share: running `hp`, looking at a process from outside, small
//! targets made on the spot.

#![allow(dead_code, reason = "each test program uses its own part of this")]

pub(crate) mod hp;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod target;

/// A test that this machine can run, or one that is ignored with its reason.
///
/// An ignored test is counted as ignored by the runner, and the reason is printed once.
pub(crate) fn trial(name: &str, missing: Option<String>, body: impl FnOnce() + Send + 'static) -> libtest_mimic::Trial {
    if let Some(reason) = &missing {
        eprintln!("{name} is ignored: {reason}");
    }
    libtest_mimic::Trial::test(name, move || {
        body();
        Ok(())
    })
    .with_ignored_flag(missing.is_some())
}

/// What to say where a program that a test runs is not installed.
pub(crate) fn lacks(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    (!found).then(|| format!("no {program} here"))
}
