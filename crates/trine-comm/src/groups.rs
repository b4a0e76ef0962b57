//! The groups of a run, by the axes along which their ranks differ.

use crate::{CommError, Communicator, SelfComm};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::panic::Location;
use std::sync::Arc;
use trine_mesh::{AxisSet, Mesh, part};

/// The communicators of one rank, by the axes along which the ranks of each differ. Who exchanges something
/// says over which axes, and finds the group here.
///
/// ```
/// use trine_buffer::Buf;
/// use trine_comm::{CommError, Groups, ReduceOp, threads};
/// use trine_mesh::{AxisSet, Degrees, Mesh};
///
/// let mesh = Mesh::new(Degrees { dp: 2, tp: 2, ..Degrees::SERIAL }, 4)?;
/// let sums = threads::run(4, &Default::default(), |world| {
///     let groups = Groups::new(&mesh, &world, [AxisSet::DP, AxisSet::TP])?;
///     let rank = Buf::from_vec(vec![world.rank() as u64]);
///     let sum = groups.of(AxisSet::DP)?.all_reduce(rank, ReduceOp::Sum, "ranks")?;
///     Ok::<_, CommError>((sum.typed::<u64>()?[0], groups.part(10, AxisSet::TP)?))
/// })?;
/// assert_eq!(sums, [(2, 0..5), (4, 5..10), (2, 0..5), (4, 5..10)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Groups {
    by_axes: BTreeMap<AxisSet, Arc<dyn Communicator>>,
}

impl Groups {
    /// Splits `world`, the ranks of `mesh`, once for each set of axes, in the order given. A group is called by
    /// its axes: `dp`, `dp×cp`. The empty set is this rank alone, and always there. A collective call: all ranks
    /// name the same sets in the same order.
    ///
    /// # Errors
    /// A mesh of another number of ranks, or a failed split.
    #[track_caller]
    pub fn new(
        mesh: &Mesh,
        world: &Arc<dyn Communicator>,
        sets: impl IntoIterator<Item = AxisSet>,
    ) -> Result<Self, CommError> {
        let mesh = Mesh::new(mesh.degrees(), world.size())?;
        let rank = world.rank();
        let alone = SelfComm::within("alone", world.group().world_rank(), Some(world.clone()));
        let mut by_axes = BTreeMap::from([(AxisSet::EMPTY, alone)]);
        for axes in sets {
            if let Entry::Vacant(place) = by_axes.entry(axes) {
                let (colour, name) = (mesh.colour(rank, axes), axes.to_string());
                place.insert(world.subgroup(colour, &name, Location::caller())?);
            }
        }
        Ok(Self { by_axes })
    }

    /// The ranks that differ from this one on `axes` alone.
    ///
    /// # Errors
    /// A set that [`Groups::new`] was not given.
    pub fn of(&self, axes: AxisSet) -> Result<&Arc<dyn Communicator>, CommError> {
        let missing = || CommError::NoGroup { axes, there: self.by_axes.keys().copied().collect() };
        self.by_axes.get(&axes).ok_or_else(missing)
    }

    /// This rank's part of `len` elements or samples that ranks along `axes` share out evenly
    /// ([`trine_mesh::part()`]): all of them where the set is empty.
    ///
    /// # Errors
    /// As [`Groups::of`].
    pub fn part(&self, len: usize, axes: AxisSet) -> Result<Range<usize>, CommError> {
        let group = self.of(axes)?;
        Ok(part(len, group.size(), group.rank()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;
    use trine_buffer::Buf;
    use trine_mesh::{Axis, Degrees};

    #[test]
    fn every_rank_finds_its_group_along_any_axes() {
        let mesh = Mesh::new(Degrees { dp: 2, pp: 2, tp: 2, ..Degrees::SERIAL }, 8).unwrap();
        let both = AxisSet::of(&[Axis::Pp, Axis::Tp]);
        let sets = [AxisSet::PP, AxisSet::DP, AxisSet::TP, both, AxisSet::DP];
        let seen = threads::run(8, &Default::default(), |world| {
            let groups = Groups::new(&mesh, &world, sets)?;
            for axes in sets.into_iter().chain([AxisSet::EMPTY]) {
                let group = groups.of(axes)?;
                let expected = mesh.group(world.rank(), axes);
                assert_eq!(
                    (group.group().ranks(), group.rank()),
                    (&expected.ranks[..], expected.index)
                );
                // The ranks of a group reach one another, and nobody else.
                let mine = Buf::from_vec(vec![world.rank() as u64]);
                let all = Buf::from_vec(vec![0u64; group.size()]);
                let (_, all) = group.all_gather(mine, all, "ranks")?;
                let all = all.typed::<u64>()?.iter().map(|rank| *rank as usize);
                assert_eq!(all.collect::<Vec<_>>(), expected.ranks);
                assert_eq!(groups.part(12, axes)?, part(12, expected.ranks.len(), expected.index));
            }
            let named =
                sets.map(|axes| groups.of(axes).map(|group| group.group().name().to_owned()));
            let missing = groups.of(AxisSet::of(&[Axis::Dp, Axis::Cp])).map(drop).unwrap_err();
            Ok::<_, CommError>((
                named.into_iter().collect::<Result<Vec<_>, _>>()?,
                missing.to_string(),
            ))
        });
        let seen = seen.unwrap();
        assert_eq!(seen.len(), 8);
        for (named, missing) in seen {
            assert_eq!(named, ["pp", "dp", "tp", "pp×tp", "dp"]);
            assert!(missing.contains("along dp×cp"), "{missing}");
            assert!(missing.contains("none, pp, dp, tp, pp×tp"), "{missing}");
        }
    }

    #[test]
    fn a_mesh_of_another_world_is_refused() {
        let mesh = Mesh::new(Degrees { dp: 2, ..Degrees::SERIAL }, 2).unwrap();
        let error = Groups::new(&mesh, &SelfComm::new(), [AxisSet::DP]).unwrap_err().to_string();
        assert!(error.contains("dp 2 × pp 1 × tp 1 needs 2 ranks, but the world has 1"), "{error}");
    }
}
