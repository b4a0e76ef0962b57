//! Degrees, ranks, coordinates and groups.

use crate::{Axis, AxisSet, MeshError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How many ranks each axis has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Degrees {
    /// Data-parallel replicas.
    pub dp: usize,
    /// Pipeline ranks.
    pub pp: usize,
    /// Tensor-parallel shards.
    pub tp: usize,
    /// Context-parallel shards.
    pub cp: usize,
    /// Expert-parallel shards.
    pub ep: usize,
}

impl Degrees {
    /// One rank.
    pub const SERIAL: Self = Self { dp: 1, pp: 1, tp: 1, cp: 1, ep: 1 };

    /// The degree of one axis.
    pub fn of(&self, axis: Axis) -> usize {
        match axis {
            Axis::Pp => self.pp,
            Axis::Dp => self.dp,
            Axis::Cp => self.cp,
            Axis::Ep => self.ep,
            Axis::Tp => self.tp,
        }
    }

    /// The product of the degrees of some axes: how many ranks differ on these alone. 1 for no axis.
    pub fn product(&self, axes: AxisSet) -> usize {
        axes.iter().map(|axis| self.of(axis)).product()
    }

    /// The number of ranks that the degrees need.
    pub fn world(&self) -> usize {
        self.product(AxisSet::of(&Axis::ORDER))
    }
}

impl fmt::Display for Degrees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dp {} × pp {} × tp {}", self.dp, self.pp, self.tp)?;
        for (name, degree) in [("cp", self.cp), ("ep", self.ep)] {
            if degree != 1 {
                write!(f, " × {name} {degree}")?;
            }
        }
        Ok(())
    }
}

/// A rank's position on every axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Coordinate {
    /// Which replica.
    pub dp: usize,
    /// Which pipeline rank.
    pub pp: usize,
    /// Which tensor shard.
    pub tp: usize,
    /// Which context shard.
    pub cp: usize,
    /// Which expert shard.
    pub ep: usize,
}

impl Coordinate {
    /// The position on one axis.
    pub fn of(&self, axis: Axis) -> usize {
        match axis {
            Axis::Pp => self.pp,
            Axis::Dp => self.dp,
            Axis::Cp => self.cp,
            Axis::Ep => self.ep,
            Axis::Tp => self.tp,
        }
    }

    fn set(&mut self, axis: Axis, index: usize) {
        match axis {
            Axis::Pp => self.pp = index,
            Axis::Dp => self.dp = index,
            Axis::Cp => self.cp = index,
            Axis::Ep => self.ep = index,
            Axis::Tp => self.tp = index,
        }
    }
}

impl fmt::Display for Coordinate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dp {} pp {} tp {}", self.dp, self.pp, self.tp)?;
        for (name, index) in [("cp", self.cp), ("ep", self.ep)] {
            if index != 0 {
                write!(f, " {name} {index}")?;
            }
        }
        Ok(())
    }
}

/// The ranks that share every coordinate except those on some axes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group {
    /// World ranks in mesh order.
    pub ranks: Vec<usize>,
    /// Where the asking rank stands in `ranks`.
    pub index: usize,
}

/// The grid of ranks. Numbered with tensor parallelism fastest and pipeline slowest
/// ([`Axis::ORDER`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mesh {
    degrees: Degrees,
}

impl Mesh {
    /// A mesh of `world` ranks.
    ///
    /// # Errors
    /// A zero degree, or a product that is not `world` (with the nearest layouts that fit).
    pub fn new(degrees: Degrees, world: usize) -> Result<Self, MeshError> {
        if let Some(axis) = Axis::ORDER.into_iter().find(|axis| degrees.of(*axis) == 0) {
            return Err(MeshError::ZeroDegree { asked: degrees, axis });
        }
        let product = degrees.world();
        if product != world {
            let nearest = nearest_layouts(degrees, world);
            return Err(MeshError::Product { asked: degrees, product, world, nearest });
        }
        Ok(Self { degrees })
    }

    /// The degrees it was made from.
    pub fn degrees(&self) -> Degrees {
        self.degrees
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.degrees.world()
    }

    /// The coordinate of a rank.
    ///
    /// # Panics
    /// If `rank` is not below [`Mesh::world`].
    pub fn coordinate(&self, rank: usize) -> Coordinate {
        assert!(rank < self.world(), "rank {rank} is outside a mesh of {}", self.world());
        let mut rest = rank;
        let mut coordinate = Coordinate { dp: 0, pp: 0, tp: 0, cp: 0, ep: 0 };
        for axis in Axis::ORDER.into_iter().rev() {
            coordinate.set(axis, rest % self.degrees.of(axis));
            rest /= self.degrees.of(axis);
        }
        coordinate
    }

    /// The rank at a coordinate.
    ///
    /// # Panics
    /// If the coordinate lies outside the mesh.
    pub fn rank(&self, coordinate: Coordinate) -> usize {
        Axis::ORDER.into_iter().fold(0, |rank, axis| {
            let (index, degree) = (coordinate.of(axis), self.degrees.of(axis));
            assert!(index < degree, "{axis} {index} is outside a mesh of degree {degree}");
            rank * degree + index
        })
    }

    /// The group of `rank` along `axes`: every rank that differs from it on those axes only.
    pub fn group(&self, rank: usize, axes: AxisSet) -> Group {
        let mine = self.coordinate(rank);
        let shares = |other: &usize| {
            let other = self.coordinate(*other);
            Axis::ORDER.iter().all(|axis| axes.contains(*axis) || other.of(*axis) == mine.of(*axis))
        };
        let ranks: Vec<usize> = (0..self.world()).filter(shares).collect();
        let index = ranks.iter().position(|other| *other == rank).expect("invariant: in own group");
        Group { ranks, index }
    }

    /// A number that the group of `rank` along `axes` has in common and no other such group has:
    /// what a communicator of [`Mesh::world`] ranks is split by, to get the group's.
    pub fn colour(&self, rank: usize, axes: AxisSet) -> u64 {
        self.group(rank, axes).ranks[0] as u64
    }

    /// All groups along `axes`, each rank in exactly one, ordered by their first rank.
    pub fn groups(&self, axes: AxisSet) -> Vec<Vec<usize>> {
        (0..self.world())
            .map(|rank| self.group(rank, axes))
            .filter(|group| group.index == 0)
            .map(|group| group.ranks)
            .collect()
    }

    /// The rank one step along `axis`, if there is one (`forward`: the next, else the previous).
    pub fn neighbour(&self, rank: usize, axis: Axis, forward: bool) -> Option<usize> {
        let mut coordinate = self.coordinate(rank);
        let index = coordinate.of(axis);
        let next = if forward { index + 1 } else { index.checked_sub(1)? };
        if next >= self.degrees.of(axis) {
            return None;
        }
        coordinate.set(axis, next);
        Some(self.rank(coordinate))
    }
}

/// The layouts of `world` ranks nearest to `asked` (smallest change of the logarithms), as text.
fn nearest_layouts(asked: Degrees, world: usize) -> String {
    let distance = |a: usize, b: usize| (a.max(1) as f64 / b.max(1) as f64).ln().abs();
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let mut all: Vec<(f64, Degrees)> = Vec::new();
    // cp and ep stay as asked where they divide, else 1.
    let keep =
        |degree: usize, n: usize| if n.is_multiple_of(degree.max(1)) { degree.max(1) } else { 1 };
    let (cp, ep) = (keep(asked.cp, world), keep(asked.ep, world));
    let rest = world / cp / ep;
    for tp in divisors(rest) {
        for pp in divisors(rest / tp) {
            let found = Degrees { dp: rest / tp / pp, pp, tp, cp, ep };
            let far = distance(found.dp, asked.dp)
                + distance(found.pp, asked.pp)
                + distance(found.tp, asked.tp);
            all.push((far, found));
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let texts: Vec<String> = all.iter().take(3).map(|(_, d)| d.to_string()).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_coordinates_are_inverse_and_groups_partition_the_world() {
        let mut cases = 0;
        for (dp, pp, tp) in [(1, 1, 1), (2, 2, 2), (3, 1, 4), (1, 5, 2), (4, 3, 1)] {
            let degrees = Degrees { dp, pp, tp, ..Degrees::SERIAL };
            let mesh = Mesh::new(degrees, dp * pp * tp).unwrap();
            for rank in 0..mesh.world() {
                assert_eq!(mesh.rank(mesh.coordinate(rank)), rank);
                let next = mesh.neighbour(rank, Axis::Pp, true);
                assert_eq!(next.is_none(), mesh.coordinate(rank).pp == pp - 1);
                if let Some(next) = next {
                    assert_eq!(mesh.neighbour(next, Axis::Pp, false), Some(rank));
                }
                cases += 1;
            }
            let both = AxisSet::of(&[Axis::Tp, Axis::Dp]);
            for axes in [AxisSet::TP, AxisSet::DP, AxisSet::PP, both, AxisSet::EMPTY] {
                let (groups, size) = (mesh.groups(axes), degrees.product(axes));
                assert!(groups.iter().all(|group| group.len() == size));
                let colour = |group: &Vec<usize>| mesh.colour(group[size - 1], axes);
                let colours: Vec<u64> = groups.iter().map(colour).collect();
                assert!(colours.is_sorted_by(|a, b| a < b), "{colours:?}");
                let mut seen: Vec<usize> = groups.concat();
                seen.sort_unstable();
                assert_eq!(seen, (0..mesh.world()).collect::<Vec<_>>());
            }
        }
        assert_eq!(cases, 1 + 8 + 12 + 10 + 12);
    }

    #[test]
    fn no_two_ranks_of_a_mesh_are_shown_alike() {
        let mesh = Mesh::new(Degrees { dp: 2, pp: 1, tp: 2, cp: 2, ep: 3 }, 24).unwrap();
        let shown = |rank| mesh.coordinate(rank).to_string();
        assert_eq!(shown(0), "dp 0 pp 0 tp 0");
        assert_eq!(shown(23), "dp 1 pp 0 tp 1 cp 1 ep 2");
        let all: std::collections::BTreeSet<_> = (0..24).map(shown).collect();
        assert_eq!(all.len(), 24);
    }

    #[test]
    fn tensor_neighbours_are_adjacent_and_pipeline_is_outermost() {
        let mesh = Mesh::new(Degrees { dp: 2, pp: 2, tp: 2, ..Degrees::SERIAL }, 8).unwrap();
        assert_eq!(mesh.groups(AxisSet::TP), [[0, 1], [2, 3], [4, 5], [6, 7]]);
        assert_eq!(mesh.groups(AxisSet::DP), [[0, 2], [1, 3], [4, 6], [5, 7]]);
        assert_eq!(mesh.groups(AxisSet::PP), [[0, 4], [1, 5], [2, 6], [3, 7]]);
    }

    #[test]
    fn a_bad_product_names_the_nearest_good_ones() {
        let asked = Degrees { dp: 3, pp: 2, tp: 2, ..Degrees::SERIAL };
        let MeshError::Product { product, nearest, .. } = Mesh::new(asked, 8).unwrap_err() else {
            panic!("a product error was expected")
        };
        assert_eq!(product, 12);
        assert!(nearest.starts_with("dp 2 × pp 2 × tp 2"), "{nearest}");
        let zero = Degrees { dp: 0, ..Degrees::SERIAL };
        assert!(matches!(Mesh::new(zero, 0), Err(MeshError::ZeroDegree { axis: Axis::Dp, .. })));
    }
}
