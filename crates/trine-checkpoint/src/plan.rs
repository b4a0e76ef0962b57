//! What a save does, as data: the same list on every rank.

use crate::table::Table;
use crate::tensors::header;
use crate::{CheckpointError, SaveRequest, WEIGHTS};
use trine_buffer::DType;
use trine_mesh::{Coordinate, Mesh};
use trine_spec::{LocalParam, ModelParts, RankLayout};

/// What the manifest, the configuration and the blocks of the file system may take beside tensors.
const SMALL_FILES_BYTES: u64 = 256 << 10;

/// One bucket of one pipeline rank travels to the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// Index into [`Plan::quantities`].
    pub(crate) quantity: usize,
    pub(crate) pp: usize,
    pub(crate) bucket: usize,
}

/// The whole save.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) table: Table,
    /// The weights first.
    pub(crate) quantities: Vec<&'a str>,
    pub(crate) rounds: Vec<Round>,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(request: &SaveRequest<'a>) -> Result<Self, CheckpointError> {
        check_grid(request.mesh, request.ranks)?;
        let table = Table::new(request.model);
        let quantities = quantities(request.moments)?;
        // Sorted by their first tensor, buckets nearly always fill the files from front to back.
        let mut buckets: Vec<(usize, usize, usize)> = Vec::new();
        let mut elements = vec![0; table.tensors.len()];
        for (pp, ranks) in request.ranks.iter().enumerate() {
            for bucket in 0..ranks[0].buckets.len() {
                let mut first = None;
                for param in ranks.iter().flat_map(|layout| owned(layout, bucket)) {
                    let region = table.region(param).map_err(CheckpointError::Layout)?;
                    elements[region.tensor] += region.len();
                    first = first.into_iter().chain([region.tensor]).min();
                }
                buckets.extend(first.map(|first| (first, pp, bucket)));
            }
        }
        for (tensor, held) in table.tensors.iter().zip(elements) {
            if held != tensor.len() {
                let (name, len) = (&tensor.name, tensor.len());
                let why = format!("the ranks hold {held} of the {len} elements of \"{name}\"");
                return Err(CheckpointError::Layout(why));
            }
        }
        buckets.sort_unstable();
        let rounds = (0..quantities.len()).flat_map(|quantity| {
            buckets.iter().map(move |&(_, pp, bucket)| Round { quantity, pp, bucket })
        });
        let rounds = rounds.collect();
        Ok(Self { table, quantities, rounds })
    }
}

/// The parameters of a bucket that this rank writes.
pub(crate) fn owned(layout: &RankLayout, bucket: usize) -> impl Iterator<Item = &LocalParam> {
    let params = layout.buckets[bucket].params.iter().map(|index| &layout.params[*index]);
    params.filter(|param| param.owner)
}

/// The rank that sends what the ranks at (pipeline, tensor) coordinates hold: the first replica.
pub(crate) fn sender(mesh: &Mesh, pp: usize, tp: usize) -> usize {
    mesh.rank(Coordinate { dp: 0, pp, tp, cp: 0, ep: 0 })
}

/// Weights, then the moments, each once.
pub(crate) fn quantities<'a>(moments: &[&'a str]) -> Result<Vec<&'a str>, CheckpointError> {
    let mut all = vec![WEIGHTS];
    for moment in moments {
        if all.contains(moment) {
            return Err(CheckpointError::Layout(format!("\"{moment}\" is to be saved twice")));
        }
        all.push(moment);
    }
    Ok(all)
}

/// Bytes that a checkpoint will have at most, tokenizer not counted.
///
/// # Errors
/// An element type other than f32 and f64, or the same moment twice.
pub fn estimate_bytes(
    model: &ModelParts,
    dtype: DType,
    moments: &[&str],
) -> Result<u64, CheckpointError> {
    let (table, all) = (Table::new(model), quantities(moments)?);
    let (weights, moments) = all.split_at(1);
    let headers = header(&table, weights, dtype)?.len() + header(&table, moments, dtype)?.len();
    let data = (table.len() * dtype.bytes()) as u64 * all.len() as u64;
    Ok(data + headers as u64 + SMALL_FILES_BYTES)
}

/// One layout for each (pipeline, tensor) coordinate, with buckets of the same parameters along tensor
/// parallelism.
fn check_grid(mesh: &Mesh, grid: &[Vec<RankLayout>]) -> Result<(), CheckpointError> {
    let degrees = mesh.degrees();
    let wrong = |why: String| Err(CheckpointError::Layout(why));
    if grid.len() != degrees.pp || grid.iter().any(|ranks| ranks.len() != degrees.tp) {
        let (pp, tp) = (degrees.pp, degrees.tp);
        return wrong(format!("layouts of {pp} pipeline × {tp} tensor ranks are needed"));
    }
    for (pp, ranks) in grid.iter().enumerate() {
        let params = |layout: &RankLayout| -> Vec<Vec<usize>> {
            layout.buckets.iter().map(|bucket| bucket.params.clone()).collect()
        };
        if ranks.iter().any(|layout| params(layout) != params(&ranks[0])) {
            return wrong(format!("the tensor ranks of pipeline rank {pp} have different buckets"));
        }
    }
    Ok(())
}
