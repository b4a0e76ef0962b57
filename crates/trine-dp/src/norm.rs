//! The global gradient norm: every element of the model exactly once.

use crate::DpError;
use crate::shared::SharedBucket;
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Buf, DType, SliceMut};
use trine_comm::{Communicator, Groups, Name, ReduceOp};
use trine_kernels::Ops;
use trine_nn::{GradStore, Numerics};
use trine_spec::{CANONICAL_BLOCKS, LocalParam, RankLayout};

/// The factor on gradients that limits their norm to `max`: `min(1, max / (norm + 1e-6))`, as
/// PyTorch has it. Handed to the optimizer, so that no pass over the gradients is needed.
pub fn clip_scale(norm: f64, max: f64) -> f64 {
    (max / (norm + 1e-6)).min(1.0)
}

/// The norm of the gradients of the whole model, the same on all ranks.
#[derive(Debug, Clone)]
pub struct GlobalNorm {
    names: Arc<[String]>,
    squares: Vec<f64>,
    squared: f64,
}

impl GlobalNorm {
    /// The sum of the squares of all gradients.
    pub fn squared(&self) -> f64 {
        self.squared
    }

    /// The Euclidean norm.
    pub fn norm(&self) -> f64 {
        self.squared.sqrt()
    }

    /// The norm of each parameter, in the model's order. A tied copy has none of its own.
    pub fn by_parameter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.names.iter().map(String::as_str).zip(self.squares.iter().map(|square| square.sqrt()))
    }
}

/// Equally long runs of bucket elements whose squares are added up, run after run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    /// Where in the vector of partial sums it belongs.
    cell: usize,
    bucket: usize,
    /// First element of the first run.
    start: usize,
    /// Elements of a run.
    len: usize,
    /// From one run's start to the next one's.
    stride: usize,
    runs: usize,
}

impl Term {
    fn spans(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.runs).map(|run| self.start + run * self.stride).map(|at| at..at + self.len)
    }
}

/// Which buckets a rank has counted in a step: those that have nothing to count are from the start.
#[derive(Debug, Clone)]
pub struct Counted(Vec<bool>);

/// Measures the global norm. What a rank adds up is decided once, as a list:
///
/// * Among tensor-parallel replicas and tied copies the owner counts ([`LocalParam::owner`]).
/// * Fast numerics: each of the ranks that a bucket is summed over counts its own part of it, whether
///   states are shared out or not: less work, nothing stale is read, and both get the same bits.
/// * Reference numerics: a parameter is summed whole, in blocks that no tensor parallelism cuts, by
///   one of these ranks (all of them have the whole sum then): every layout adds the same
///   numbers in the same order.
///
/// The partial sums are a vector of f64 where the gradients are, [`GradNorm::cells`] of them. Whoever runs a step sums
/// it over all ranks, together with what else they tell each other, and reads it once.
#[derive(Debug)]
pub struct GradNorm {
    names: Arc<[String]>,
    /// Partial sums for each parameter.
    blocks: usize,
    terms: Vec<Term>,
    world: Arc<dyn Communicator>,
}

impl GradNorm {
    /// The norm of a model, of which this rank holds `layout`. `names` are those of all its parameters, in
    /// the model's order, without tied copies; `world` are all ranks of the run.
    ///
    /// # Errors
    /// A parameter that is not in `names`; in reference numerics, one that cannot be cut into canonical
    /// blocks; as [`crate::own_ranges`].
    pub fn new(
        names: Vec<String>,
        layout: &RankLayout,
        groups: &Groups,
        numerics: Numerics,
        world: Arc<dyn Communicator>,
    ) -> Result<Self, DpError> {
        let buckets = SharedBucket::of(layout, groups)?;
        let blocks = numerics.blocks(1);
        let mut terms = Vec::new();
        let counts = |param: &&LocalParam| param.owner && layout.buckets[param.bucket].trainable;
        for param in layout.params.iter().filter(counts) {
            let number = names.iter().position(|name| *name == param.spec.name);
            let unknown = || DpError::Unknown { parameter: param.spec.name.clone() };
            let number = number.ok_or_else(unknown)?;
            let bucket = &buckets[param.bucket];
            match numerics {
                Numerics::Fast => terms.extend(part_of(param, number, &bucket.counted())),
                Numerics::Reference if number % bucket.summed.size() == bucket.summed.rank() => {
                    terms.extend(canonical_blocks(param, number * blocks)?);
                }
                Numerics::Reference => {}
            }
        }
        // In the model's order, so that the first failure found is the model's first.
        terms.sort_by_key(|term| term.cell);
        Ok(Self { names: names.into(), blocks, terms, world })
    }

    /// Measures the norm of reduced gradients. All ranks call it and get the same.
    ///
    /// # Errors
    /// [`DpError::NonFinite`], the same on all ranks, for the model's first parameter with such a
    /// gradient on any rank; a bucket that is away; a failed operation.
    pub fn measure(&self, grads: &GradStore, ops: &dyn Ops) -> Result<GlobalNorm, DpError> {
        let mut cells = ops.place().zeros(DType::F64, self.cells())?;
        self.count_rest(&mut self.uncounted(), cells.slice_mut(), grads, ops)?;
        let cells = self.world.all_reduce(cells, ReduceOp::Sum, Name::new("gradient norm"))?;
        self.total(cells.slice().to_host()?.typed()?, grads, ops)
    }

    /// Partial sums of a step.
    pub fn cells(&self) -> usize {
        self.names.len() * self.blocks
    }

    /// A step that has counted nothing yet.
    pub fn uncounted(&self) -> Counted {
        let buckets = self.terms.iter().map(|term| term.bucket + 1).max().unwrap_or(0);
        // A bucket of which nothing counts is not read: one that is frozen has no gradient.
        let mut counted = vec![true; buckets];
        self.terms.iter().for_each(|term| counted[term.bucket] = false);
        Counted(counted)
    }

    /// Adds what this rank counts of a bucket to the partial sums, as soon as it is reduced: while other buckets are
    /// still on their way.
    ///
    /// # Errors
    /// The bucket is away.
    pub fn count(
        &self,
        counted: &mut Counted,
        mut cells: SliceMut<'_>,
        bucket: usize,
        grads: &GradStore,
        ops: &dyn Ops,
    ) -> Result<(), DpError> {
        let Some(counted) = counted.0.get_mut(bucket) else { return Ok(()) };
        if std::mem::replace(counted, true) {
            return Ok(());
        }
        let gradient = grads.bucket(bucket)?.slice();
        for term in self.terms.iter().filter(|term| term.bucket == bucket) {
            for span in term.spans() {
                let cell = cells.reborrow().range(term.cell..term.cell + 1)?;
                ops.sum_squares(cell, gradient.range(span)?)?;
            }
        }
        Ok(())
    }

    /// [`GradNorm::count`] for all buckets that have not been counted.
    ///
    /// # Errors
    /// A bucket is away.
    pub fn count_rest(
        &self,
        counted: &mut Counted,
        mut cells: SliceMut<'_>,
        grads: &GradStore,
        ops: &dyn Ops,
    ) -> Result<(), DpError> {
        (0..counted.0.len())
            .try_for_each(|bucket| self.count(counted, cells.reborrow(), bucket, grads, ops))
    }

    /// The norm, from the partial sums of all ranks together. All ranks call it and get the same. Where one rank alone
    /// counts a cell, the others have added zeros: exact in any order.
    ///
    /// # Errors
    /// As [`GradNorm::measure`].
    pub fn total(
        &self,
        cells: &[f64],
        grads: &GradStore,
        ops: &dyn Ops,
    ) -> Result<GlobalNorm, DpError> {
        let by_block = cells.chunks_exact(self.blocks);
        let squares: Vec<f64> = by_block.map(|blocks| blocks.iter().sum()).collect();
        let squared: f64 = squares.iter().sum();
        if !squared.is_finite() {
            // Every rank has the same sum, so every rank comes here.
            self.find_non_finite(grads, ops)?;
            return Err(DpError::NormOverflow { squared });
        }
        Ok(GlobalNorm { names: self.names.clone(), squares, squared })
    }

    /// Finds the first gradient of the model that is not finite, over all ranks.
    fn find_non_finite(&self, grads: &GradStore, ops: &dyn Ops) -> Result<(), DpError> {
        const NONE: [u64; 3] = [u64::MAX; 3];
        let mut mine = NONE;
        'terms: for term in &self.terms {
            let gradient = grads.bucket(term.bucket)?.slice();
            for span in term.spans() {
                let start = span.start;
                if let Some(at) = ops.first_non_finite(gradient.range(span)?)? {
                    mine = [term.cell, term.bucket, start + at].map(|number| number as u64);
                    break 'terms;
                }
            }
        }
        let all = Buf::from_vec(vec![0u64; 3 * self.world.size()]);
        let name = Name::new("gradients that are not finite");
        let (_, all) = self.world.all_gather(Buf::from_vec(mine.to_vec()), all, name)?;
        let found = all.typed::<u64>()?.chunks_exact(3).zip(self.world.group().ranks());
        let first = found.filter(|(place, _)| **place != NONE).min_by_key(|(place, _)| place[0]);
        let Some((place, rank)) = first else { return Ok(()) };
        let [cell, bucket, element] = [place[0], place[1], place[2]].map(|number| number as usize);
        let parameter = self.names[cell / self.blocks].clone();
        Err(DpError::NonFinite { rank: *rank, parameter, bucket, element })
    }
}

/// Looks for an element that is not finite in `range` of a reduced bucket: what an update that does not
/// wait for the norm asks before it reads them. No other rank is asked; `rank` is this one.
///
/// # Errors
/// [`DpError::NonFinite`] for the first such element; a bucket that is away.
pub fn check_finite(
    grads: &GradStore,
    bucket: usize,
    range: Range<usize>,
    rank: usize,
    ops: &dyn Ops,
) -> Result<(), DpError> {
    let start = range.start;
    let found = ops.first_non_finite(grads.bucket(bucket)?.slice().range(range)?)?;
    let Some(element) = found.map(|at| start + at) else { return Ok(()) };
    let mut params = grads.layout().params.iter();
    let holds = |param: &&LocalParam| param.bucket == bucket && param.span().contains(&element);
    let parameter = params.find(holds).map_or("the padding", |param| param.spec.name.as_str());
    Err(DpError::NonFinite { rank, parameter: parameter.to_owned(), bucket, element })
}

/// The elements of a parameter that lie in a part of its bucket.
fn part_of(param: &LocalParam, cell: usize, part: &Range<usize>) -> Option<Term> {
    let span = param.span();
    let (start, end) = (span.start.max(part.start), span.end.min(part.end));
    let len = end.saturating_sub(start);
    (len > 0).then_some(Term { cell, bucket: param.bucket, start, len, stride: len, runs: 1 })
}

/// The canonical blocks of a parameter that this rank holds, along the dimension that tensor
/// parallelism splits; a parameter that is not split is one block.
fn canonical_blocks(param: &LocalParam, first_cell: usize) -> Result<Vec<Term>, DpError> {
    let (bucket, shape) = (param.bucket, param.shape());
    let Some(dim) = param.spec.split_dim() else {
        let (start, len) = (param.offset, param.len());
        return Ok(vec![Term { cell: first_cell, bucket, start, len, stride: len, runs: 1 }]);
    };
    let (len, held) = (param.spec.shape[dim], &param.ranges[dim]);
    let block = len / CANONICAL_BLOCKS;
    let fits = |n: usize| n.is_multiple_of(block.max(1));
    if !len.is_multiple_of(CANONICAL_BLOCKS) || !fits(held.start) || !fits(held.end) {
        return Err(DpError::Blocks {
            parameter: param.spec.name.clone(),
            blocks: CANONICAL_BLOCKS,
            dim,
            len,
            start: held.start,
            end: held.end,
        });
    }
    let runs: usize = shape[..dim].iter().product();
    let inner: usize = shape[dim + 1..].iter().product();
    let blocks = held.start / block..held.end / block;
    let term = |number: usize| Term {
        cell: first_cell + number,
        bucket,
        start: param.offset + (number * block - held.start) * inner,
        len: block * inner,
        stride: held.len() * inner,
        runs,
    };
    Ok(blocks.map(term).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::{CommError, SelfComm, threads};
    use trine_mesh::{AxisSet, Degrees, Mesh};
    use trine_spec::{ModelSpec, Pattern, Piece, RankRequest, StagePieces, presets, split_layers};

    fn model() -> ModelSpec {
        let mut model = presets::find("llama3-8b").unwrap().model;
        (model.hidden, model.layers, model.ffn, model.vocab) = (16, 2, 24, 70);
        (model.heads, model.kv_heads, model.head_dim) = (4, 2, 4);
        model
    }

    #[test]
    fn the_scale_limits_the_norm_and_never_enlarges() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(0.0, 1.0), 1.0);
        assert!((clip_scale(4.0, 1.0) * 4.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_terms_of_all_ranks_count_every_element_once() {
        let model = model();
        let elements: usize = model
            .pieces()
            .flat_map(|piece| model.params(piece, 1))
            .map(|spec| spec.shape.iter().product::<usize>())
            .sum();
        let mut cases = 0;
        for numerics in [Numerics::Fast, Numerics::Reference] {
            for (tp, dp) in [(1, 1), (1, 3), (2, 2), (4, 1), (4, 2)] {
                let degrees = Degrees { tp, dp, ..Degrees::SERIAL };
                let mesh = Mesh::new(degrees, tp * dp).unwrap();
                let parts = model.parts(tp).unwrap();
                let stages = [StagePieces::whole(&parts)];
                let counted = threads::run(tp * dp, &Default::default(), |world| {
                    let layout = RankLayout::new(&RankRequest {
                        degrees,
                        tp_index: mesh.coordinate(world.rank()).tp,
                        summed: AxisSet::DP,
                        bucket_elements: 1000,
                        ..RankRequest::serial(&parts, &stages)
                    })
                    .unwrap();
                    let groups = Groups::new(&mesh, &world, [AxisSet::DP])?;
                    let norm = GradNorm::new(parts.names(), &layout, &groups, numerics, world);
                    let terms = norm.unwrap().terms;
                    Ok::<_, CommError>(terms.iter().map(|term| term.runs * term.len).sum::<usize>())
                });
                let counted: usize = counted.unwrap().iter().sum();
                assert_eq!(counted, elements, "{numerics:?} tp {tp} dp {dp}");
                cases += 1;
            }
        }
        assert_eq!(cases, 10);
    }

    fn layout_of_block(model: &ModelSpec, bucket_elements: usize) -> RankLayout {
        let stages = [StagePieces { stage: 0, pieces: vec![Piece::Block(1)] }];
        let model = model.parts(1).expect("one rank holds any model");
        let request = RankRequest { bucket_elements, ..RankRequest::serial(&model, &stages) };
        RankLayout::new(&request).expect("a block fits one rank")
    }

    #[test]
    fn blocks_that_a_rank_would_cut_are_refused() {
        let mut model = model();
        model.ffn = 12;
        let layout = layout_of_block(&model, 1000);
        let (world, mesh) = (SelfComm::new(), Mesh::new(Degrees::SERIAL, 1).unwrap());
        let groups = Groups::new(&mesh, &world, []).unwrap();
        let names = model.parts(1).unwrap().names();
        let norm = GradNorm::new(names, &layout, &groups, Numerics::Reference, world);
        let text = norm.unwrap_err().to_string();
        assert!(text.contains("block.1.mlp.gate.weight") && text.contains("12 elements"), "{text}");
    }

    /// Buckets of the second stage lie behind those that are frozen of the first.
    #[test]
    fn a_frozen_bucket_between_others_is_not_read() {
        let mut parts = model().parts(1).unwrap();
        parts.freeze(&[Pattern::new("embedding.*"), Pattern::new("*.attention.*")]).unwrap();
        let stages = split_layers(&parts, 2, None).unwrap();
        let request = RankRequest { bucket_elements: 100, ..RankRequest::serial(&parts, &stages) };
        let layout = Arc::new(RankLayout::new(&request).unwrap());
        let is_between = |index: usize| {
            !layout.buckets[index].trainable
                && layout.buckets[index + 1..].iter().any(|bucket| bucket.trainable)
        };
        assert!((0..layout.buckets.len()).any(is_between));
        let (world, mesh) = (SelfComm::new(), Mesh::new(Degrees::SERIAL, 1).unwrap());
        let groups = Groups::new(&mesh, &world, []).unwrap();
        let ops = trine_kernels::CpuOps::new(trine_kernels::Team::new(1));
        let mut compared = 0;
        for numerics in [Numerics::Fast, Numerics::Reference] {
            // Gradients as they are after a reduction: sums, whatever the numerics.
            let mut grads =
                GradStore::new(layout.clone(), trine_buffer::DType::F64, Numerics::Fast);
            let mut expected = 0.0;
            for param in layout.params.iter().filter(|param| param.spec.trainable) {
                let sum = grads.bucket_mut(param.bucket).unwrap().typed_mut::<f64>().unwrap();
                sum[param.span()].fill(2.0);
                expected += 4.0 * param.len() as f64;
            }
            let names = parts.names();
            let norm = GradNorm::new(names, &layout, &groups, numerics, world.clone()).unwrap();
            let total = norm.measure(&grads, &ops).unwrap();
            assert_eq!(total.squared(), expected, "{numerics:?}");
            let frozen = layout.params.iter().filter(|param| !param.spec.trainable);
            for param in frozen {
                let of = total.by_parameter().find(|(name, _)| *name == param.spec.name);
                assert_eq!(of.map(|(_, norm)| norm), Some(0.0), "{}", param.spec.name);
                compared += 1;
            }
        }
        assert_eq!(compared, 2 * (1 + 2 * 4));
    }

    #[test]
    fn an_element_that_is_not_finite_is_named_where_it_is_read() {
        let model = model();
        let layout = Arc::new(layout_of_block(&model, 100_000));
        let ops = trine_kernels::CpuOps::new(trine_kernels::Team::new(1));
        let mut grads = GradStore::new(layout.clone(), trine_buffer::DType::F32, Numerics::Fast);
        let param = layout.params.iter().find(|param| param.offset > 0).unwrap();
        let (bucket, at) = (param.bucket, param.offset + 1);
        let len = layout.buckets[bucket].len;
        grads.bucket_mut(bucket).unwrap().typed_mut::<f32>().unwrap()[at] = f32::NAN;
        let check = |range| check_finite(&grads, bucket, range, 7, &ops);
        for clean in [0..at, at + 1..len, at..at] {
            check(clean).unwrap();
        }
        for range in [0..len, at..at + 1, 3..at + 1] {
            let Err(DpError::NonFinite { rank, parameter, element, .. }) = check(range) else {
                panic!("not found");
            };
            assert_eq!((rank, parameter.as_str(), element), (7, param.spec.name.as_str(), at));
        }
    }
}
