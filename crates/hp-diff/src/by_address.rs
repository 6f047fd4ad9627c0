//! Ordered addresses that are looked up far more often than they change.
//!
//! Beside the ordered list stands a table over equal steps of the address range, about one or two addresses to a step: a
//! lookup reads two neighbours in the table and searches between them. What follows one another in memory is
//! packed evenly enough for that; where it is not, the search within a step is still a binary one.

use std::ops::{Bound, Range, RangeBounds};

/// Ordered addresses.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    addresses: Vec<u64>,
    /// The step that an address belongs to: its distance from the first one, shifted right by this.
    shift: u32,
    /// For each step how many addresses lie before it; one more at the end.
    steps: Vec<u32>,
}

impl Starts {
    /// `addresses` are ordered; they may repeat.
    pub(crate) fn new(addresses: Vec<u64>) -> Starts {
        let (Some(first), Some(last)) = (addresses.first(), addresses.last()) else { return Starts::default() };
        let shift = ((last - first) / addresses.len() as u64).checked_ilog2().unwrap_or(0);
        let mut steps = Vec::with_capacity(((last - first) >> shift) as usize + 2);
        for (before, address) in addresses.iter().enumerate() {
            steps.resize(((address - first) >> shift) as usize + 1, before as u32);
        }
        steps.push(addresses.len() as u32);
        Starts { addresses, shift, steps }
    }

    /// How many are at most `address`.
    pub(crate) fn up_to(&self, address: u64) -> usize {
        let Some(distance) = self.addresses.first().and_then(|first| address.checked_sub(*first)) else { return 0 };
        let step = distance >> self.shift;
        if step >= self.steps.len() as u64 - 1 {
            return self.addresses.len();
        }
        let (from, to) = (self.steps[step as usize] as usize, self.steps[step as usize + 1] as usize);
        from + self.addresses[from..to].partition_point(|a| *a <= address)
    }

    /// How many are below `address`.
    pub(crate) fn below(&self, address: u64) -> usize {
        address.checked_sub(1).map_or(0, |before| self.up_to(before))
    }

    pub(crate) fn contains(&self, address: u64) -> bool {
        self.position(address).is_some()
    }

    /// The place of the last one that is `address`.
    pub(crate) fn position(&self, address: u64) -> Option<usize> {
        self.up_to(address).checked_sub(1).filter(|i| self.addresses[*i] == address)
    }

    pub(crate) fn into_vec(self) -> Vec<u64> {
        self.addresses
    }

    pub(crate) fn as_slice(&self) -> &[u64] {
        &self.addresses
    }
}

/// Ranges of addresses that do not touch.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    starts: Starts,
    ends: Vec<u64>,
    /// The largest one, which most addresses lie in.
    largest: Range<u64>,
    /// All of them lie in it.
    all: Range<u64>,
}

impl Spans {
    /// Ranges in any order; they may overlap.
    pub(crate) fn new(mut ranges: Vec<(u64, u64)>) -> Spans {
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        ranges.dedup_by(|next, last| {
            let touches = next.0 <= last.1;
            if touches {
                last.1 = last.1.max(next.1);
            }
            touches
        });
        let largest = ranges.iter().max_by_key(|(start, end)| end - start).map_or(0..0, |(start, end)| *start..*end);
        let (starts, ends): (Vec<u64>, Vec<u64>) = ranges.into_iter().unzip();
        let all = starts.first().copied().unwrap_or(0)..ends.last().copied().unwrap_or(0);
        Spans { starts: Starts::new(starts), ends, largest, all }
    }

    pub(crate) fn contains(&self, address: u64) -> bool {
        let elsewhere = || self.starts.up_to(address).checked_sub(1).is_some_and(|i| address < self.ends[i]);
        self.largest.contains(&address) || self.all.contains(&address) && elsewhere()
    }
}

/// A set of addresses in a span, for which there is a bit each.
pub(crate) struct Marks {
    span: Range<u64>,
    bits: Vec<u64>,
}

impl Marks {
    pub(crate) fn new(span: Range<u64>) -> Marks {
        let size = span.end.saturating_sub(span.start) as usize;
        Marks { span, bits: vec![0; size.div_ceil(64)] }
    }

    /// False if the address is outside of the span.
    pub(crate) fn insert(&mut self, address: u64) -> bool {
        let inside = self.span.contains(&address);
        if inside {
            let bit = address - self.span.start;
            self.bits[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        inside
    }

    /// True if any address of a range is in the set.
    pub(crate) fn any(&self, range: Range<u64>) -> bool {
        let (start, end) = (range.start.max(self.span.start), range.end.min(self.span.end));
        if start >= end {
            return false;
        }
        let (first, last) = (start - self.span.start, end - 1 - self.span.start);
        let words = &self.bits[(first / 64) as usize..=(last / 64) as usize];
        let (low, high) = (u64::MAX << (first % 64), u64::MAX >> (63 - last % 64));
        match words {
            [one] => one & low & high != 0,
            [one, middle @ .., other] => one & low != 0 || other & high != 0 || middle.iter().any(|word| *word != 0),
            [] => false,
        }
    }
}

/// What lies at which address.
#[derive(Debug)]
pub(crate) struct ByAddress<V> {
    starts: Starts,
    values: Vec<V>,
}

impl<V> From<Vec<(u64, V)>> for ByAddress<V> {
    /// Of several values for one address the last counts.
    fn from(mut all: Vec<(u64, V)>) -> Self {
        all.sort_by_key(|(address, _)| *address);
        all.dedup_by(|later, kept| {
            let again = later.0 == kept.0;
            if again {
                std::mem::swap(later, kept);
            }
            again
        });
        let (addresses, values) = all.into_iter().unzip();
        ByAddress { starts: Starts::new(addresses), values }
    }
}

impl<V> Default for ByAddress<V> {
    fn default() -> Self {
        ByAddress { starts: Starts::default(), values: Vec::new() }
    }
}

impl<V> ByAddress<V> {
    pub(crate) fn get(&self, address: &u64) -> Option<&V> {
        self.starts.position(*address).map(|i| &self.values[i])
    }

    pub(crate) fn contains_key(&self, address: &u64) -> bool {
        self.get(address).is_some()
    }

    /// All of a range of addresses, ordered.
    pub(crate) fn range(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = (&u64, &V)> + Clone {
        let from = match range.start_bound() {
            Bound::Included(start) => self.starts.below(*start),
            Bound::Excluded(start) => self.starts.up_to(*start),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(end) => self.starts.up_to(*end),
            Bound::Excluded(end) => self.starts.below(*end),
            Bound::Unbounded => self.values.len(),
        };
        let to = to.max(from);
        self.starts.addresses[from..to].iter().zip(&self.values[from..to])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&u64, &V)> {
        self.starts.addresses.iter().zip(&self.values)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{ByAddress, Marks, Spans, Starts};
    use std::collections::BTreeMap;

    #[test]
    fn starts_answer_as_a_search_does() {
        let clusters = (0..50u64).map(|n| 7 * n).chain([5000, 5000, 5001]).chain((0..9).map(|n| (1 << 40) + (n << 33)));
        for addresses in [vec![], vec![3], vec![u64::MAX - 1, u64::MAX], clusters.collect::<Vec<u64>>()] {
            let starts = Starts::new(addresses.clone());
            let near = addresses.iter().flat_map(|a| [a.saturating_sub(1), *a, a.saturating_add(1)]);
            for address in near.chain([0, 1 << 35, u64::MAX]) {
                assert_eq!(starts.up_to(address), addresses.partition_point(|a| *a <= address), "{address:#x}");
                assert_eq!(starts.below(address), addresses.partition_point(|a| *a < address), "{address:#x}");
            }
        }
    }

    #[test]
    fn spans_contain_what_one_of_the_ranges_does() {
        let ranges = [(50, 60), (10, 20), (15, 30), (30, 31), (40, 40), (8, 11), (100, 400)];
        let spans = Spans::new(ranges.to_vec());
        for address in 0..500 {
            let inside = ranges.iter().any(|(start, end)| (*start..*end).contains(&address));
            assert_eq!(spans.contains(address), inside, "{address}");
        }
        assert!(!Spans::new(Vec::new()).contains(0));
    }

    #[test]
    fn marks_are_those_of_a_set() {
        let mut marks = Marks::new(1000..1300);
        for address in [0, 999, 1300] {
            assert!(!marks.insert(address), "{address}");
        }
        let set = [1000, 1001, 1063, 1064, 1200, 1299];
        for address in set {
            assert!(marks.insert(address), "{address}");
        }
        for start in 990..1310 {
            for end in start..1310 {
                let expected = set.iter().any(|address| (start..end).contains(address));
                assert_eq!(marks.any(start..end), expected, "{start}..{end}");
            }
        }
        assert!(!Marks::new(0..0).any(0..10));
    }

    #[test]
    fn ranges_are_those_of_a_tree() {
        let tree: BTreeMap<u64, u64> = (0..200u64).map(|n| (n * n, n)).collect();
        let twice = tree.keys().map(|n| (*n, u64::MAX)).chain(tree.clone());
        let map = ByAddress::from(twice.collect::<Vec<_>>());
        for start in 0..400 {
            assert_eq!(map.get(&start), tree.get(&start));
            let (end, open) = (start + start % 70, ..start);
            assert!(map.range(start..end).eq(tree.range(start..end)));
            assert!(map.range(start..=end).eq(tree.range(start..=end)));
            assert!(map.range(open).eq(tree.range(open)));
            assert!(map.range(start..).eq(tree.range(start..)));
        }
    }
}
