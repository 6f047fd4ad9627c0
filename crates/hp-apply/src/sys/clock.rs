//! Time: the monotonic clock, the date, and waiting.

use super::raw;
use core::ops::{Add, Sub};
use core::time::Duration;
use linux_raw_sys::general::{__NR_clock_gettime, __NR_nanosleep, CLOCK_MONOTONIC, CLOCK_REALTIME};

/// A moment of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Instant {
        Instant(read(CLOCK_MONOTONIC))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Instant::now() - self
    }

    pub(crate) fn checked_add(self, time: Duration) -> Option<Instant> {
        self.0.checked_add(time).map(Instant)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    /// The end of time where the sum is beyond it.
    fn add(self, time: Duration) -> Instant {
        Instant(self.0.saturating_add(time))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now_ns() -> u64 {
    let now = Instant::now().0;
    now.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(now.subsec_nanos()))
}

/// Seconds since the epoch.
pub(crate) fn epoch_seconds() -> u64 {
    read(CLOCK_REALTIME).as_secs()
}

fn read(clock: u32) -> Duration {
    let mut time = [0i64; 2];
    // SAFETY: `time` has the layout of a timespec and is writable.
    let _ = unsafe { raw::call(__NR_clock_gettime, [u64::from(clock), time.as_mut_ptr() as u64, 0, 0, 0, 0]) };
    Duration::new(u64::try_from(time[0]).unwrap_or(0), u32::try_from(time[1]).unwrap_or(0))
}

/// Gives the processor away for about this long, or until a signal comes.
pub(crate) fn sleep(time: Duration) {
    if time.is_zero() {
        return;
    }
    let time = [i64::try_from(time.as_secs()).unwrap_or(i64::MAX), i64::from(time.subsec_nanos())];
    // SAFETY: `time` has the layout of a timespec; a null pointer asks for no remainder.
    let _ = unsafe { raw::call(__NR_nanosleep, [time.as_ptr() as u64, 0, 0, 0, 0, 0]) };
}
