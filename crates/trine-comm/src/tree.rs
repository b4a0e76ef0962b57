//! The order in which numbers of several ranks are combined.

/// Combines `items` along the fixed tree that every reduction uses: a range of n items is split
/// after the largest power of two below n, so four ranks give `(0 + 1) + (2 + 3)` and three give
/// `(0 + 1) + 2`. Floating-point sums depend on the order; whoever wants the bits of a collective,
/// or of a sum over more ranks, uses this one. `None` without items.
///
/// It works like a binary counter, so items may come one by one: at most log₂ n partial results
/// are alive.
///
/// ```
/// let text = trine_comm::tree_fold(["a", "b", "c", "d", "e", "f", "g"].map(String::from), |l, r| {
///     format!("({l}{r})")
/// });
/// assert_eq!(text.as_deref(), Some("(((ab)(cd))((ef)g))"));
/// ```
pub fn tree_fold<T>(
    items: impl IntoIterator<Item = T>,
    mut combine: impl FnMut(T, T) -> T,
) -> Option<T> {
    // Complete subtrees with the number of their leaves, largest first.
    let mut partial: Vec<(usize, T)> = Vec::new();
    for item in items {
        let mut top = (1, item);
        while let Some((leaves, left)) = partial.pop_if(|(leaves, _)| *leaves == top.0) {
            top = (2 * leaves, combine(left, top.1));
        }
        partial.push(top);
    }
    let (_, mut result) = partial.pop()?;
    while let Some((_, left)) = partial.pop() {
        result = combine(left, result);
    }
    Some(result)
}

/// Where [`tree_fold`] splits `n` ≥ 2 items: the largest power of two below `n`.
pub(crate) fn split_at(n: usize) -> usize {
    n.next_power_of_two() / 2
}
