//! Sorting, sets and maps in little code: those of the standard library are faster for millions of elements and
//! several times as large, which the small applier cannot afford.

use crate::prelude::*;

/// Sorts a list by keys. Elements with equal keys come in any order.
pub(crate) fn sort_by_key<T, K: Ord>(list: &mut [T], key: impl Fn(&T) -> K) {
    let len = list.len();
    if list.is_sorted_by_key(&key) {
        return;
    }
    // A heap with the largest element first; then that goes to the end, again and again.
    for start in (0..len / 2).rev() {
        sink(list, start, len, &key);
    }
    for end in (1..len).rev() {
        list.swap(0, end);
        sink(list, 0, end, &key);
    }
}

fn sink<T, K: Ord>(list: &mut [T], mut parent: usize, len: usize, key: &impl Fn(&T) -> K) {
    loop {
        let (left, right) = (2 * parent + 1, 2 * parent + 2);
        let mut largest = parent;
        for child in [left, right] {
            if child < len && key(&list[largest]) < key(&list[child]) {
                largest = child;
            }
        }
        if largest == parent {
            return;
        }
        list.swap(parent, largest);
        parent = largest;
    }
}

/// A map, kept as a sorted list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Map<K, V>(Vec<(K, V)>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Map(Vec::new())
    }
}

impl<K: Ord + Copy, V> Map<K, V> {
    fn place(&self, key: K) -> Result<usize, usize> {
        let place = self.0.partition_point(|(known, _)| *known < key);
        if self.0.get(place).is_some_and(|(known, _)| *known == key) { Ok(place) } else { Err(place) }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.place(*key).ok().and_then(|place| self.0.get(place)).map(|(_, value)| value)
    }

    /// Sets the value of a key; true if it had none.
    pub(crate) fn insert(&mut self, key: K, value: V) -> bool {
        match self.place(key) {
            Ok(place) => {
                self.0[place].1 = value;
                false
            }
            Err(place) => {
                self.0.insert(place, (key, value));
                true
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

/// A set, kept as a sorted list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Set<T>(Vec<T>);

impl<T: Ord + Copy> Set<T> {
    pub(crate) fn new() -> Set<T> {
        Set(Vec::new())
    }

    fn place(&self, value: T) -> Result<usize, usize> {
        let place = self.0.partition_point(|known| *known < value);
        if self.0.get(place) == Some(&value) { Ok(place) } else { Err(place) }
    }

    pub(crate) fn contains(&self, value: T) -> bool {
        self.place(value).is_ok()
    }

    /// True if it was not there yet.
    pub(crate) fn insert(&mut self, value: T) -> bool {
        match self.place(value) {
            Ok(_) => false,
            Err(place) => {
                self.0.insert(place, value);
                true
            }
        }
    }

    pub(crate) fn remove(&mut self, value: T) {
        if let Ok(place) = self.place(value) {
            self.0.remove(place);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Leaves out those for which `keep` is false.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        self.0.retain(keep);
    }

    /// All, ascending.
    pub(crate) fn iter(&self) -> core::slice::Iter<'_, T> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random, the same in every run.
    fn numbers(count: usize) -> Vec<u32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 24
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn lists_are_sorted_like_the_standard_library_sorts_them() {
        for count in 0..70 {
            let mut ours = numbers(count);
            let mut theirs = ours.clone();
            sort_by_key(&mut ours, |n| *n);
            theirs.sort();
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn sets_and_maps_are_like_those_of_the_standard_library() {
        let (mut set, mut map) = (Set::new(), Map::default());
        let mut theirs = std::collections::BTreeMap::new();
        for (index, number) in numbers(500).into_iter().enumerate() {
            let fresh = theirs.insert(number, index).is_none();
            assert_eq!((set.insert(number), map.insert(number, index)), (fresh, fresh));
        }
        assert!(set.iter().eq(theirs.keys()));
        assert!(map.iter().eq(theirs.iter()));
        for number in 0..256 {
            assert_eq!((set.contains(number), map.get(&number)), (theirs.contains_key(&number), theirs.get(&number)));
        }
        set.remove(*theirs.keys().next().unwrap());
        assert!(set.iter().eq(theirs.keys().skip(1)));
    }
}
