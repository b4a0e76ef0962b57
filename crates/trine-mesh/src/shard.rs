//! Which slice of a tensor dimension a rank owns.

use crate::{AxisSet, MeshError};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How one tensor dimension lies on the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DimPlacement {
    /// The axes it is split over; empty means replicated.
    pub axes: AxisSet,
    /// The indivisible units the dimension consists of (heads for a projection by heads, the
    /// length itself where any split will do).
    pub units: usize,
}

impl DimPlacement {
    /// A dimension that every rank holds whole.
    pub const REPLICATED: Self = Self { axes: AxisSet::EMPTY, units: 1 };

    /// A dimension of `units` indivisible units split over tensor parallelism.
    pub const fn tensor(units: usize) -> Self {
        Self { axes: AxisSet::TP, units }
    }
}

/// One rank's slice of a dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Elements of the global dimension that the rank holds.
    pub range: Range<usize>,
    /// How many ranks hold this very slice.
    pub replicas: usize,
    /// Which of them this rank is; replica 0 *owns* the slice (global norms count it there).
    pub replica: usize,
}

/// Splits a dimension of `len` elements in `units` equal units over `parts` ranks and returns the
/// slice of rank `index`: units that follow one another, and where they do not divide, one more on
/// each of the first `units % parts` ranks. With fewer units than ranks each unit is replicated on
/// `parts / units` neighbouring ranks.
///
/// ```
/// // 25 heads of 64 on 2 tensor-parallel ranks: 13 and 12.
/// assert_eq!(trine_mesh::shard(25 * 64, 25, 2, 0)?.range, 0..13 * 64);
/// assert_eq!(trine_mesh::shard(25 * 64, 25, 2, 1)?.range, 13 * 64..25 * 64);
/// // 2 KV heads of 64 on 4 tensor-parallel ranks: each head on two ranks.
/// let shard = trine_mesh::shard(128, 2, 4, 3)?;
/// assert_eq!((shard.range, shard.replicas, shard.replica), (64..128, 2, 1));
/// # Ok::<(), trine_mesh::MeshError>(())
/// ```
///
/// # Errors
/// `len` not a multiple of `units`, or more `parts` than units that are no multiple of them.
pub fn shard(len: usize, units: usize, parts: usize, index: usize) -> Result<Shard, MeshError> {
    if units == 0 || !len.is_multiple_of(units) {
        return Err(MeshError::Units { len, units });
    }
    let unit = len / units;
    if (1..=units).contains(&parts) {
        let (each, more) = (units / parts, units % parts);
        let start = |index: usize| (index * each + index.min(more)) * unit;
        return Ok(Shard { range: start(index)..start(index + 1), replicas: 1, replica: 0 });
    }
    if parts > 0 && parts.is_multiple_of(units) {
        let replicas = parts / units;
        let start = index / replicas * unit;
        return Ok(Shard { range: start..start + unit, replicas, replica: index % replicas });
    }
    let fits = |n: &usize| *n <= units || n.is_multiple_of(units);
    let below = (1..parts).rev().find(fits);
    let above = (parts + 1..=(parts + 1) * units).find(fits);
    Err(MeshError::Split { units, parts, nearest: below.into_iter().chain(above).collect() })
}

/// The part of `len` elements or samples that rank `index` of `parts` has, where any cut will do: from
/// `index · len / parts` to `(index + 1) · len / parts`. Parts differ by one at most and follow one another.
///
/// ```
/// assert_eq!(trine_mesh::part(64, 4, 1), 16..32);
/// assert_eq!(trine_mesh::part(7, 3, 2), 4..7);
/// ```
pub fn part(len: usize, parts: usize, index: usize) -> Range<usize> {
    index * len / parts..(index + 1) * len / parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_every_element_once_in_order(len in 0usize..5000, parts in 1usize..40) {
            let mut end = 0;
            for index in 0..parts {
                let part = part(len, parts, index);
                prop_assert_eq!(part.start, end);
                prop_assert!(part.len() == len / parts || part.len() == len.div_ceil(parts));
                if len.is_multiple_of(parts) {
                    prop_assert_eq!(part.len(), len / parts);
                }
                end = part.end;
            }
            prop_assert_eq!(end, len);
        }
    }

    #[test]
    fn shards_cover_the_dimension_once_per_replica() {
        let mut cases = 0;
        for units in 1..=12 {
            for parts in 1..=12 {
                let len = units * 6;
                let Ok(first) = shard(len, units, parts, 0) else { continue };
                let mut held = vec![0; len];
                for index in 0..parts {
                    let shard = shard(len, units, parts, index).unwrap();
                    if parts <= units {
                        let more = usize::from(index < units % parts);
                        assert_eq!(shard.range.len(), (units / parts + more) * 6);
                    }
                    assert_eq!(shard.replicas, first.replicas);
                    assert_eq!(shard.replica, index % shard.replicas);
                    shard.range.for_each(|element| held[element] += 1);
                }
                assert!(held.iter().all(|count| *count == first.replicas));
                cases += 1;
            }
        }
        // Every number of ranks up to that of units, and its multiples.
        assert_eq!(cases, 78 + 35 - 12);
    }

    #[test]
    fn an_impossible_split_names_the_nearest_degrees() {
        let error = shard(12, 4, 6, 0).unwrap_err();
        assert_eq!(error, MeshError::Split { units: 4, parts: 6, nearest: vec![4, 8] });
        let error = shard(12, 4, 0, 0).unwrap_err();
        assert_eq!(error, MeshError::Split { units: 4, parts: 0, nearest: vec![1] });
        assert!(matches!(shard(10, 4, 2, 0), Err(MeshError::Units { len: 10, units: 4 })));
    }
}
