//! A progress bar on standard error, where that is a terminal and the work takes longer than a second.

use crate::text::quiet;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

/// Work that is over sooner than this has no bar.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

/// A bar; it disappears when it is dropped.
pub(crate) struct Bar {
    bar: ProgressBar,
    /// Ends the thread that shows the bar.
    _end: Option<Sender<()>>,
}

impl Bar {
    /// A bar of `steps`.
    pub(crate) fn new(steps: u64) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:30} {pos}/{len} {wide_msg}") {
            bar.set_style(style);
        }
        let visible = std::io::stderr().is_terminal() && !quiet();
        let end = visible.then(|| {
            let (end, ended) = mpsc::channel();
            let bar = bar.clone();
            std::thread::spawn(move || {
                if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(TICK);
                }
            });
            end
        });
        Bar { bar, _end: end }
    }

    /// A bar that a comparison moves, and what moves it.
    pub(crate) fn of_stages() -> (Bar, hp_diff::Progress) {
        let stages = hp_diff::Stage::ALL;
        let bar = Bar::new(stages.len() as u64);
        let moved = bar.bar.clone();
        let progress = hp_diff::Progress::new(move |stage| {
            moved.set_position(stages.iter().position(|s| *s == stage).unwrap_or(0) as u64);
            moved.set_message(stage.words());
        });
        (bar, progress)
    }

    /// One step is done.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
