//! Addresses that must not mix: link-time addresses of the base, and live addresses of a target.

use core::fmt;

/// An address as the base image was linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkAddr(pub(crate) u64);

/// An address in the target's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LiveAddr(pub(crate) u64);

/// What the loader added to every link-time address of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bias(pub(crate) u64);

impl Bias {
    pub(crate) fn live(self, link: LinkAddr) -> LiveAddr {
        LiveAddr(self.0.wrapping_add(link.0))
    }
}

impl LiveAddr {
    pub(crate) fn plus(self, bytes: u64) -> LiveAddr {
        LiveAddr(self.0.wrapping_add(bytes))
    }

    pub(crate) fn range(self, bytes: u64) -> LiveRange {
        LiveRange { start: self, end: LiveAddr(self.0.saturating_add(bytes)) }
    }
}

impl fmt::Display for LiveAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for LinkAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A half-open range of the target's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LiveRange {
    pub(crate) start: LiveAddr,
    pub(crate) end: LiveAddr,
}

impl LiveRange {
    pub(crate) fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.len() == 0
    }

    pub(crate) fn contains(self, at: LiveAddr) -> bool {
        self.start <= at && at < self.end
    }

    pub(crate) fn covers(self, other: LiveRange) -> bool {
        self.start <= other.start && other.start <= other.end && other.end <= self.end
    }

    pub(crate) fn overlaps(self, other: LiveRange) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Size of a page on x86-64.
pub(crate) const PAGE: u64 = 4096;

/// Rounds down to a page boundary.
pub(crate) fn page_floor(value: u64) -> u64 {
    value & !(PAGE - 1)
}

/// Rounds up to a page boundary; `None` where that leaves the address space.
pub(crate) fn page_ceil(value: u64) -> Option<u64> {
    value.checked_add(PAGE - 1).map(page_floor)
}
