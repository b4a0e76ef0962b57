//! Compares weights that must be equal, so that silent divergence becomes an error.

use crate::DpError;
use std::collections::BTreeMap;
use std::sync::Arc;
use trine_buffer::{Buf, Slice};
use trine_comm::{Communicator, Groups, Name};
use trine_mesh::AxisSet;
use trine_nn::ParamStore;
use trine_spec::{LocalParam, RankLayout};
use xxhash_rust::xxh3::xxh3_64;

/// Compares the weights of all replicas by 64-bit hashes, one a parameter: 8 bytes each are
/// exchanged and each weight is read once, so it is cheap enough for every few steps. Equal weights
/// always pass; different ones pass with probability 2⁻⁶⁴.
///
/// Weights repeat over the axes that their bucket says ([`trine_spec::Bucket::repeated`]). Over tensor
/// parallelism they repeat where they are not split, and in key and value heads that several ranks
/// share. `tied` are the two ranks that hold a tied embedding's copies, on the stages that have one, trained or
/// frozen.
///
/// # Errors
/// [`DpError::Replicas`] on every rank of a group that disagrees, for its first parameter that
/// differs; a bucket that is away; axes along which `groups` has no group; a failed operation.
pub fn check_replicas(
    params: &ParamStore,
    groups: &Groups,
    tied: Option<&Arc<dyn Communicator>>,
) -> Result<(), DpError> {
    let layout = params.layout();
    let hashes = hash_params(params)?;
    let everything: Vec<usize> = (0..layout.params.len()).collect();
    let mut by_axes: BTreeMap<AxisSet, Vec<usize>> = BTreeMap::new();
    for &index in &everything {
        let bucket = &layout.buckets[layout.params[index].bucket];
        by_axes.entry(bucket.repeated()).or_default().push(index);
    }
    for (axes, repeated) in by_axes {
        compare(layout, &repeated, &hashes, &**groups.of(axes)?, |_, _| 0)?;
    }
    compare(layout, &everything, &hashes, &**groups.of(AxisSet::TP)?, held_slice)?;
    if let Some(peer) = tied {
        let copies: Vec<usize> = layout.tied_copies().collect();
        compare(layout, &copies, &hashes, &**peer, |_, _| 0)?;
    }
    Ok(())
}

fn hash_params(params: &ParamStore) -> Result<Vec<u64>, DpError> {
    let (mut hashes, mut on_host) = (Vec::new(), None);
    for param in &params.layout().params {
        let bucket = params.bucket(param.bucket)?;
        // A bucket of a device is copied once for all its parameters.
        if let Slice::Device(_) = bucket.slice()
            && !matches!(&on_host, Some((held, _)) if *held == param.bucket)
        {
            on_host = Some((param.bucket, bucket.slice().to_host()?));
        }
        let weights = on_host.as_ref().map_or(bucket, |(_, copy)| copy).slice();
        hashes.push(xxh3_64(weights.range(param.span())?.bytes()?));
    }
    Ok(hashes)
}

/// Which slice of a parameter the tensor-parallel rank `index` holds: ranks with the same one must
/// agree.
fn held_slice(param: &LocalParam, index: usize) -> usize {
    if param.spec.split_dim().is_some() { index / param.replicas } else { 0 }
}

/// Compares the hashes of some parameters among the ranks of `comm` that hold the same slice.
fn compare(
    layout: &RankLayout,
    compared: &[usize],
    hashes: &[u64],
    comm: &dyn Communicator,
    slice: impl Fn(&LocalParam, usize) -> usize,
) -> Result<(), DpError> {
    if comm.size() == 1 {
        return Ok(());
    }
    let count = compared.len();
    let mine: Vec<u64> = compared.iter().map(|index| hashes[*index]).collect();
    let all = Buf::from_vec(vec![0u64; comm.size() * count]);
    let (_, all) = comm.all_gather(Buf::from_vec(mine), all, Name::new("replica hashes"))?;
    let all = all.typed::<u64>()?;
    for (place, index) in compared.iter().enumerate() {
        let param = &layout.params[*index];
        // Every rank looks at every slice, so that the whole group stops with the same message.
        let held = |rank: usize| (slice(param, rank), all[rank * count + place]);
        let differs = |rank: usize| {
            (0..rank).any(|other| held(other).0 == held(rank).0 && held(other).1 != held(rank).1)
        };
        let Some(culprit) = (0..comm.size()).find(|rank| differs(*rank)) else { continue };
        let same = (0..comm.size()).filter(|rank| held(*rank).0 == held(culprit).0);
        let world = comm.group().ranks();
        return Err(DpError::Replicas {
            group: comm.group().to_string(),
            bucket: param.bucket,
            parameter: param.spec.name.clone(),
            hashes: same.map(|rank| (held(rank).1, world[rank])).collect(),
        });
    }
    Ok(())
}
