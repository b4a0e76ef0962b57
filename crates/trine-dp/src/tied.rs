//! The gradient of a tied embedding: the sum of what its two copies collect.
//!
//! The copies lie on the first and the last stage, or, in reference numerics without a pipeline, in
//! two buckets of one rank. Contract C5 puts their sum before the data-parallel one. In reference
//! numerics that order would mix the two copies' trees over samples, which a serial run keeps apart;
//! there each copy's tree is first completed over data parallelism, and then the two totals are
//! added. Addition of two numbers has no order, so it does not matter which rank adds which to
//! which, and one rank with both copies gets the same bits.

use crate::DpError;
use std::sync::Arc;
use trine_buffer::Buf;
use trine_comm::{Communicator, ReduceOp};
use trine_kernels::Ops;
use trine_nn::{GradStore, TakenGrads};
use trine_spec::RankLayout;

/// Where the two copies of a tied embedding are, seen by one stage.
#[derive(Debug)]
pub(crate) enum Tied {
    /// Not on this stage, or both uses share one parameter.
    Nowhere,
    /// In two buckets of this stage.
    Here([usize; 2]),
    /// One is here, the other on another rank.
    There { bucket: usize, peer: Arc<dyn Communicator> },
}

impl Tied {
    pub(crate) fn new(
        layout: &RankLayout,
        peer: Option<&Arc<dyn Communicator>>,
    ) -> Result<Self, DpError> {
        let tied = |index: &usize| layout.buckets[*index].tied;
        let buckets: Vec<usize> = (0..layout.buckets.len()).filter(tied).collect();
        match (&buckets[..], peer) {
            ([], None) => Ok(Self::Nowhere),
            ([first, second], None) => Ok(Self::Here([*first, *second])),
            ([bucket], Some(peer)) if peer.size() == 2 => {
                Ok(Self::There { bucket: *bucket, peer: peer.clone() })
            }
            (_, peer) => Err(DpError::Tied { buckets, peers: peer.map(|peer| peer.size()) }),
        }
    }

    pub(crate) fn buckets(&self) -> Vec<usize> {
        match self {
            Self::Nowhere => vec![],
            Self::Here(both) => both.to_vec(),
            Self::There { bucket, .. } => vec![*bucket],
        }
    }

    /// Gives both copies the sum of the two.
    pub(crate) fn sum(&self, grads: &mut GradStore, ops: &dyn Ops) -> Result<(), DpError> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Here([first, second]) => add_copies(grads, *first, *second, ops),
            Self::There { bucket, peer } => {
                let sum = take_sum(grads, *bucket, ops)?;
                let sum = peer.all_reduce(sum, ReduceOp::Sum, "tied gradient")?;
                Ok(grads.restore(*bucket, sum)?)
            }
        }
    }
}

fn add_copies(
    grads: &mut GradStore,
    first: usize,
    second: usize,
    ops: &dyn Ops,
) -> Result<(), DpError> {
    let mut sum = take_sum(grads, first, ops)?;
    let mut copy = take_sum(grads, second, ops)?;
    ops.add_assign(sum.slice_mut(), copy.slice())?;
    copy.slice_mut().copy_from(sum.slice())?;
    grads.restore(first, sum)?;
    Ok(grads.restore(second, copy)?)
}

fn take_sum(grads: &mut GradStore, bucket: usize, ops: &dyn Ops) -> Result<Buf, DpError> {
    match grads.take(bucket, ops)? {
        TakenGrads::Sum(sum) => Ok(sum),
        TakenGrads::Nodes(_) => Err(DpError::Numerics { bucket }),
    }
}
