//! Whole tensors from the shards of all ranks, with every copy checked against every other.

use crate::{LocalParam, RankLayout};
use std::collections::BTreeMap;
use std::ops::Range;

/// One rank's values of all buckets, and which part of each it vouches for (ZeRO: its own).
#[derive(Debug, Clone)]
pub struct Shards {
    /// What the rank holds.
    pub layout: RankLayout,
    /// The buckets.
    pub buckets: Vec<Vec<f64>>,
    /// The valid elements of each bucket.
    pub valid: Vec<Range<usize>>,
}

/// Global tensors by parameter name, row-major, padding included. A tied copy goes under the name of
/// what it is a copy of.
pub type Tensors = BTreeMap<String, Vec<f64>>;

/// Puts all ranks' shards together.
///
/// # Errors
/// Two ranks that hold the same element with different bits, or an element that nobody holds.
pub fn assemble(ranks: &[Shards]) -> Result<Tensors, String> {
    let mut tensors: BTreeMap<String, Vec<Option<f64>>> = BTreeMap::new();
    for (rank, shards) in ranks.iter().enumerate() {
        for param in &shards.layout.params {
            let name = param.spec.tied_to.as_ref().unwrap_or(&param.spec.name);
            let len = param.spec.shape.iter().product();
            let tensor = tensors.entry(name.clone()).or_insert_with(|| vec![None; len]);
            let valid = &shards.valid[param.bucket];
            for (local, global) in global_indices(param).enumerate() {
                let at = param.offset + local;
                if !valid.contains(&at) {
                    continue;
                }
                let value = shards.buckets[param.bucket][at];
                match tensor[global] {
                    Some(held) if held.to_bits() != value.to_bits() => {
                        return Err(format!(
                            "{name}[{global}]: rank {rank} has {value:e}, another rank {held:e}"
                        ));
                    }
                    Some(_) => {}
                    None => tensor[global] = Some(value),
                }
            }
        }
    }
    let complete = |(name, values): (String, Vec<Option<f64>>)| {
        let missing = values.iter().position(Option::is_none);
        match missing {
            Some(index) => Err(format!("{name}[{index}]: no rank holds it")),
            None => Ok((name, values.into_iter().flatten().collect())),
        }
    };
    tensors.into_iter().map(complete).collect()
}

/// The place of each local element in the global tensor.
fn global_indices(param: &LocalParam) -> impl Iterator<Item = usize> {
    let width: usize = param.spec.shape[1..].iter().product();
    let columns = param.ranges.get(1).cloned().unwrap_or(0..1);
    param.ranges[0]
        .clone()
        .flat_map(move |row| columns.clone().map(move |column| row * width + column))
}
