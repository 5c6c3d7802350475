//! Sorting with small code. The standard library's sorts are compiled for each type, at five kilobytes of WebAssembly
//! each. Here only moving the items is compiled for each type. All comparisons go through one sort of indices.
//!
//! Sorts for each token and of millions of numbers use the standard library.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Sorts `items` stably, as [`slice::sort_by`].
pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    let mut order = sorted_indices(items.len(), &|a, b| compare(&items[a], &items[b]));
    // `order[at]` is the original position of the item that belongs at `at`. Each cycle is followed once, by swaps.
    for start in 0..items.len() {
        let mut at = start;
        while order[at] != start {
            let from = std::mem::replace(&mut order[at], at);
            items.swap(at, from);
            at = from;
        }
        order[at] = at;
    }
}

/// Sorts `items`.
pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, T::cmp);
}

/// Sorts `items` stably by key.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |a, b| key(a).cmp(&key(b)));
}

/// The indices `0..len`, sorted.
fn sorted_indices(len: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    indices.sort_by(|&a, &b| compare(a, b));
    indices
}

/// A map of `entries`. The last of equal keys wins, as with `collect`, which would compile another sort.
pub fn map<K: Ord, V>(entries: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    for (key, value) in entries {
        map.insert(key, value);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorts_as_the_standard_library_does(
            items in prop::collection::vec((0u8..5, any::<u8>()), 0..70),
        ) {
            let mut expected = items.clone();
            expected.sort_by_key(|item| item.0);
            let mut found = items.clone();
            sort_by_key(&mut found, |item| item.0);
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(map(items.clone()), items.into_iter().collect());
        }
    }
}
