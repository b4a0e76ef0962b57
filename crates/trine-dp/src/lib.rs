//! Data parallelism: ranks that hold the same weights, see different samples, and agree on one
//! gradient.
//!
//! Nothing here decides *when* something happens: the schedule does, and the trainer turns its
//! actions into calls. A step in those calls:
//!
//! 1. [`GradSync::tied`] where a stage holds a tied embedding, then [`GradSync::post`] for each
//!    bucket as soon as its gradient is complete, while the backward pass of earlier layers still
//!    runs; [`GradSync::wait`] at the end.
//! 2. [`GradNorm::measure`]: the global norm, each element of the model counted once; a gradient
//!    that is not finite stops all ranks with one message. [`clip_scale`] turns it into a factor.
//! 3. The optimizer updates the ranges that [`own_ranges`] gives. Where nothing is clipped, it may
//!    update each bucket right after [`GradSync::wait`], if [`check_finite`] finds nothing there.
//! 4. [`WeightSync`] gathers the updated parts (ZeRO-1).
//! 5. Now and then [`check_replicas`] compares what should be equal.
//!
//! Each bucket of the layout says over which axes of the mesh its gradient is summed and what ranks
//! divide of it; the communicators come from [`Groups`](trine_comm::Groups). Whether it is ZeRO-0 or
//! ZeRO-1 is asked nowhere else, so one rank may hold buckets of both.
//!
//! [`planned_bytes`] says beforehand what a rank will hold, and [`measured_bytes`] is compared with what
//! it does hold.
//!
//! Sums come in two kinds (contract C4). `fast`: one collective a bucket. `reference`: the ranks
//! exchange their subtrees over samples, and every rank adds them up in the one order that the
//! serial run has, so the gradients have its bits.
//!
//! ```
//! use std::sync::Arc;
//! use trine_buffer::{Buf, DType, Place};
//! use trine_comm::{Groups, ReduceOp, SelfComm};
//! use trine_dp::{GradNorm, GradSync, GradSyncOptions, clip_scale};
//! use trine_kernels::{CpuOps, Team};
//! use trine_mesh::{AxisSet, Degrees, Mesh};
//! use trine_nn::{GradStore, Numerics};
//! use trine_spec::{Piece, RankLayout, RankRequest, Shares, StagePieces, presets};
//!
//! let model = presets::find("rust-default")?.model.parts(1)?;
//! let stages = [StagePieces { stage: 0, pieces: vec![Piece::Block(0)] }];
//! let layout = Arc::new(RankLayout::new(&RankRequest {
//!     summed: AxisSet::DP,
//!     shared: Shares::zero(1, AxisSet::DP),
//!     ..RankRequest::serial(&model, &stages)
//! })?);
//! let (ops, numerics) = (CpuOps::new(Team::new(1)), Numerics::Fast);
//! let mut grads = GradStore::new(layout.clone(), DType::F32, numerics);
//!
//! // One rank: every collective is over when it is posted.
//! let (mesh, world) = (Mesh::new(Degrees::SERIAL, 1)?, SelfComm::new());
//! let groups = Groups::new(&mesh, &world, [AxisSet::DP])?;
//! let place = Place::Host;
//! let options = GradSyncOptions { numerics, global_batch: 4, tied_peer: None, place };
//! let mut sync = GradSync::new(&layout, options, &groups)?;
//! for bucket in 0..layout.buckets.len() {
//!     sync.post(&mut grads, bucket, &ops)?;
//! }
//! let norm = GradNorm::new(model.names(), &layout, &groups, numerics, world.clone())?;
//! let (mut counted, mut cells) = (norm.uncounted(), Buf::zeros(DType::F64, norm.cells()));
//! for bucket in 0..layout.buckets.len() {
//!     sync.wait(&mut grads, bucket, &ops)?;
//!     norm.count(&mut counted, cells.slice_mut(), bucket, &grads, &ops)?;
//! }
//! let cells = world.all_reduce(cells, ReduceOp::Sum, "gradient norm")?;
//! let norm = norm.total(cells.typed()?, &grads, &ops)?;
//! assert_eq!((norm.norm(), clip_scale(norm.norm(), 1.0)), (0.0, 1.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bytes;
mod error;
mod norm;
mod replicas;
mod shared;
mod sync;
mod tied;
mod trees;
mod weights;

pub use bytes::{element_bytes, measured_bytes, planned_bytes};
pub use error::DpError;
pub use norm::{Counted, GlobalNorm, GradNorm, check_finite, clip_scale};
pub use replicas::check_replicas;
pub use shared::own_ranges;
pub use sync::{GradSync, GradSyncOptions};
pub use weights::WeightSync;
