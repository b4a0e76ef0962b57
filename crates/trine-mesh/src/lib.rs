//! The mesh of a parallel training run: axes, ranks, coordinates, groups and shard ranges.
//!
//! Pure integers: no device, no communicator, no clock. A [`Mesh`] is a value made once from
//! [`Degrees`] and handed to whoever needs to know where a rank stands; [`shard()`] says which slice
//! of a tensor dimension a coordinate owns, including dimensions with fewer units than ranks (KV
//! heads under wide tensor parallelism), which are replicated. [`part()`] is the even cut of what has
//! no units.
//!
//! ```
//! use trine_mesh::{Axis, AxisSet, Degrees, Mesh};
//!
//! let mesh = Mesh::new(Degrees { dp: 2, pp: 2, tp: 2, ..Degrees::SERIAL }, 8)?;
//! assert_eq!(mesh.coordinate(5).of(Axis::Pp), 1);
//! // Tensor-parallel ranks are neighbours, so they share a host.
//! assert_eq!(mesh.group(5, AxisSet::TP).ranks, [4, 5]);
//! assert_eq!(mesh.group(5, AxisSet::DP).ranks, [5, 7]);
//!
//! // A product that does not fit is refused with the nearest that do.
//! let error = Mesh::new(Degrees { dp: 3, pp: 2, tp: 2, ..Degrees::SERIAL }, 8).unwrap_err();
//! assert!(error.to_string().contains("dp 2 × pp 2 × tp 2"));
//! # Ok::<(), trine_mesh::MeshError>(())
//! ```

mod axis;
mod mesh;
mod placement;
mod plural;
mod shard;

pub use axis::{Axis, AxisSet};
pub use mesh::{Coordinate, Degrees, Group, Mesh};
pub use placement::Placement;
pub use plural::plural;
pub use shard::{DimPlacement, Shard, part, shard};

/// What can be wrong with a mesh or a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// The degrees' product is not the number of ranks.
    #[error(
        "layout {asked} needs {product} {}, but the world has {world}; nearest that fit: {nearest}",
        plural(*product as u64, "rank")
    )]
    Product {
        /// The degrees as asked.
        asked: Degrees,
        /// Their product.
        product: usize,
        /// The number of ranks given.
        world: usize,
        /// The nearest layouts whose product is `world`, best first.
        nearest: String,
    },
    /// Ranks of one tensor-parallel group would be on two hosts.
    #[error(
        "tp {tp} would cross the hosts {first} and {second}; tensor-parallel ranks exchange too much \
         for that: nearest valid value: layout.tp = {nearest}"
    )]
    CrossesHosts {
        /// The tensor-parallel degree.
        tp: usize,
        /// One host.
        first: String,
        /// The other.
        second: String,
        /// The greatest degree that fits the ranks of all hosts.
        nearest: usize,
    },
    /// A degree is zero.
    #[error("layout {asked}: {axis} is 0; every degree is at least 1")]
    ZeroDegree {
        /// The degrees as asked.
        asked: Degrees,
        /// The axis whose degree is zero.
        axis: Axis,
    },
    /// A dimension cannot be split so.
    #[error(
        "{units} {} cannot be split over {parts} {}: there must be a unit for every rank, or a \
         multiple of them of ranks; nearest degrees that fit: {nearest:?}",
        plural(*units as u64, "unit"), plural(*parts as u64, "rank")
    )]
    Split {
        /// Indivisible units (heads, rows) in the dimension.
        units: usize,
        /// Ranks to split them over.
        parts: usize,
        /// The nearest numbers of ranks that work.
        nearest: Vec<usize>,
    },
    /// A dimension's length is not a multiple of its units.
    #[error("a dimension of length {len} does not consist of {units} equal units")]
    Units {
        /// The dimension's length in elements.
        len: usize,
        /// The units it should consist of.
        units: usize,
    },
}
