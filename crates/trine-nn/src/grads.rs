//! The gradient store: flat accumulators, or in reference numerics a tree over global samples.

use crate::{NnError, Numerics, ParamId, Rows};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Buf, BufferError, DType, Place, SliceMut};
use trine_kernels::Ops;
use trine_spec::{LocalParam, RankLayout};

/// A complete subtree of the sum over samples: `level` 0 is one sample; level l at `index` i sums
/// the samples `i·2^l .. (i+1)·2^l` of the global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// log₂ of the number of samples.
    pub level: u32,
    /// Which of the subtrees of this level.
    pub index: usize,
}

impl Node {
    fn first_sample(self) -> usize {
        self.index << self.level
    }
}

/// The largest complete subtrees that a range of samples consists of, in order: what a binary
/// counter over the global sample index holds after adding them.
pub fn subtrees(samples: Range<usize>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut next = samples.start;
    while next < samples.end {
        let fits =
            |level: &u32| next.is_multiple_of(1 << level) && next + (1 << level) <= samples.end;
        let level = (0..usize::BITS - 1).take_while(fits).last().unwrap_or(0);
        nodes.push(Node { level, index: next >> level });
        next += 1 << level;
    }
    nodes
}

/// A sum over samples in the one order that no layout changes: siblings are added as soon as both
/// are there, whatever the order of arrival.
#[derive(Debug, Default)]
pub struct SampleTree {
    leaves: BTreeMap<usize, Buf>,
    nodes: BTreeMap<Node, Buf>,
}

impl SampleTree {
    fn leaf(
        &mut self,
        sample: usize,
        place: &Place,
        (dtype, len): (DType, usize),
    ) -> Result<&mut Buf, BufferError> {
        Ok(match self.leaves.entry(sample) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(free) => free.insert(place.zeros(dtype, len)?),
        })
    }

    /// Declares the gradients of these samples complete and adds them into the tree.
    fn close(&mut self, samples: Range<usize>, ops: &dyn Ops) -> Result<(), NnError> {
        let complete: Vec<usize> = self.leaves.range(samples).map(|(sample, _)| *sample).collect();
        for sample in complete {
            let leaf = self.leaves.remove(&sample).expect("invariant: listed above");
            self.insert(Node { level: 0, index: sample }, leaf, ops)?;
        }
        Ok(())
    }

    /// Adds a subtree, merging it with its sibling where that is already there.
    ///
    /// # Errors
    /// Lengths or types differ.
    pub fn insert(&mut self, node: Node, sum: Buf, ops: &dyn Ops) -> Result<(), NnError> {
        let (mut node, mut sum) = (node, sum);
        while let Some(sibling) = self.nodes.remove(&Node { index: node.index ^ 1, ..node }) {
            let (mut left, right) =
                if node.index.is_multiple_of(2) { (sum, sibling) } else { (sibling, sum) };
            ops.add_assign(left.slice_mut(), right.slice())?;
            (node, sum) = (Node { level: node.level + 1, index: node.index / 2 }, left);
        }
        self.nodes.insert(node, sum);
        Ok(())
    }

    /// The subtrees in order of their samples.
    pub fn into_nodes(self) -> Vec<(Node, Buf)> {
        let mut nodes: Vec<(Node, Buf)> = self.nodes.into_iter().collect();
        nodes.sort_by_key(|(node, _)| node.first_sample());
        nodes
    }

    /// The whole sum: the subtrees that are left are added from the last to the first.
    ///
    /// # Errors
    /// Lengths or types differ, or nothing was added.
    pub fn finish(self, ops: &dyn Ops) -> Result<Option<Buf>, NnError> {
        let mut sum: Option<Buf> = None;
        for (_, mut node) in self.into_nodes().into_iter().rev() {
            if let Some(right) = sum {
                ops.add_assign(node.slice_mut(), right.slice())?;
            }
            sum = Some(node);
        }
        Ok(sum)
    }
}

/// A sum in place. What an earlier step has left in it is cleared where and when something is added,
/// so that a gradient that is written whole is written once: clearing and reading back would be two
/// more walks over memory.
#[derive(Debug)]
struct Sum {
    values: Buf,
    /// Which parameters of the bucket still hold an earlier step's values.
    stale: Vec<bool>,
}

impl Sum {
    fn new(values: Buf, params: usize) -> Self {
        Self { values, stale: vec![false; params] }
    }

    /// Marks the parameters inside `span` as written, and clears those that were stale unless all
    /// were and `overwrites`. Says whether the elements must be added to.
    fn begin(
        &mut self,
        layout: &RankLayout,
        bucket: usize,
        span: &Range<usize>,
        overwrites: bool,
    ) -> Result<bool, NnError> {
        let spans = layout.buckets[bucket].params.iter().map(|&index| layout.params[index].span());
        let touched = || spans.clone().zip(0..).filter(|(param, _)| overlap(param, span));
        let overwrites = overwrites && touched().all(|(_, index)| self.stale[index]);
        for (param, index) in touched() {
            if std::mem::take(&mut self.stale[index]) && !overwrites {
                self.values.slice_mut().range(param)?.zero()?;
            }
        }
        Ok(!overwrites)
    }

    /// Clears what nobody has written in this step.
    fn complete(&mut self, layout: &RankLayout, bucket: usize) -> Result<(), NnError> {
        let len = layout.buckets[bucket].len;
        self.begin(layout, bucket, &(0..len), false)?;
        Ok(())
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[derive(Debug)]
enum Bucket {
    Sum(Sum),
    Tree(SampleTree),
    /// Of parameters that are not trained: nothing is added or kept.
    Frozen,
    Away,
}

/// A bucket's gradient, taken out of the store to be reduced.
#[derive(Debug)]
pub enum TakenGrads {
    /// This rank's sum (fast numerics).
    Sum(Buf),
    /// This rank's subtrees over its samples (reference numerics).
    Nodes(Vec<(Node, Buf)>),
}

/// The gradients of one rank's stage, accumulated in place over micro-batches in the accumulator
/// type (contract C3). A bucket that is being reduced is absent: writing to it is an error.
#[derive(Debug)]
pub struct GradStore {
    layout: Arc<RankLayout>,
    place: Place,
    dtype: DType,
    numerics: Numerics,
    buckets: Vec<Bucket>,
    /// Parameters, by their place in the layout, to whose gradients nothing has been added since the store was made.
    untouched: Vec<usize>,
}

impl GradStore {
    /// Gradients of zeros on the host, for weights of type `compute`.
    pub fn new(layout: Arc<RankLayout>, compute: DType, numerics: Numerics) -> Self {
        let made = Self::at(&Place::Host, layout, compute, numerics);
        made.expect("invariant: the host gives memory or ends the process")
    }

    /// Gradients of zeros at `place`, for weights of type `compute`.
    ///
    /// # Errors
    /// If a device has too little memory.
    pub fn at(
        place: &Place,
        layout: Arc<RankLayout>,
        compute: DType,
        numerics: Numerics,
    ) -> Result<Self, BufferError> {
        let dtype = compute.accumulator();
        let empty = |bucket: &trine_spec::Bucket| {
            Ok(match numerics {
                _ if !bucket.trainable => Bucket::Frozen,
                Numerics::Fast => {
                    Bucket::Sum(Sum::new(place.zeros(dtype, bucket.len)?, bucket.params.len()))
                }
                Numerics::Reference => Bucket::Tree(SampleTree::default()),
            })
        };
        let buckets: Result<_, BufferError> = layout.buckets.iter().map(empty).collect();
        let buckets = buckets?;
        let has_gradient =
            |param: &LocalParam| !param.is_empty() && layout.buckets[param.bucket].trainable;
        let params = layout.params.iter().enumerate();
        let untouched = params.filter(|(_, param)| has_gradient(param)).map(|(index, _)| index);
        let untouched = untouched.collect();
        Ok(Self { layout, place: place.clone(), dtype, numerics, buckets, untouched })
    }

    /// The accumulator type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// What is stored where.
    pub fn layout(&self) -> &Arc<RankLayout> {
        &self.layout
    }

    /// A parameter of a bucket to whose gradient nothing has ever been added, not even zeros.
    pub fn untouched(&self, bucket: usize) -> Option<&LocalParam> {
        let mut left = self.untouched.iter().map(|&index| &self.layout.params[index]);
        left.find(|param| param.bucket == bucket)
    }

    /// Bytes of all gradients held.
    pub fn size_bytes(&self) -> usize {
        let bytes = |bucket: &Bucket| match bucket {
            Bucket::Sum(sum) => sum.values.size_bytes(),
            Bucket::Tree(tree) => {
                tree.leaves.values().chain(tree.nodes.values()).map(Buf::size_bytes).sum()
            }
            Bucket::Frozen | Bucket::Away => 0,
        };
        self.buckets.iter().map(bytes).sum()
    }

    /// Starts a step: all gradients count as zero again.
    ///
    /// # Errors
    /// A bucket is still away.
    pub fn clear(&mut self) -> Result<(), NnError> {
        for (index, bucket) in self.buckets.iter_mut().enumerate() {
            match (self.numerics, &mut *bucket) {
                (_, Bucket::Away) => {
                    return Err(NnError::Away { what: "gradients", bucket: index });
                }
                (_, Bucket::Frozen) => {}
                (Numerics::Fast, Bucket::Sum(sum)) => sum.stale.fill(true),
                (_, bucket) => *bucket = Bucket::Tree(SampleTree::default()),
            }
        }
        Ok(())
    }

    /// Whether a parameter is trained. The gradient of one that is not need not be computed: what is added to it is
    /// dropped, `add` uncalled.
    pub fn trains(&self, id: &ParamId) -> bool {
        self.layout.buckets[id.bucket()].trainable
    }

    /// Adds to a parameter's gradient. `add` is called once for each part of the micro-batch whose
    /// gradient is one sum: with all its rows in fast numerics, sample by sample in reference
    /// numerics. It gets the rows and the accumulator, and must add the rows in ascending order.
    ///
    /// # Errors
    /// The bucket is away, or what `add` returns.
    pub fn add(
        &mut self,
        id: &ParamId,
        rows: &Rows,
        mut add: impl FnMut(Range<usize>, SliceMut<'_>) -> Result<(), NnError>,
    ) -> Result<(), NnError> {
        self.accumulate(id, rows, false, |rows, sum, _| add(rows, sum))
    }

    /// [`GradStore::add`] for a gradient that is computed whole, as a matrix product is: `add` is also
    /// told whether to add (`true`) or to overwrite, which it is where nothing has been added in this
    /// step. To overwrite, it must write every element of the parameter.
    ///
    /// # Errors
    /// As [`GradStore::add`].
    pub fn add_or_set(
        &mut self,
        id: &ParamId,
        rows: &Rows,
        add: impl FnMut(Range<usize>, SliceMut<'_>, bool) -> Result<(), NnError>,
    ) -> Result<(), NnError> {
        self.accumulate(id, rows, true, add)
    }

    fn accumulate(
        &mut self,
        id: &ParamId,
        rows: &Rows,
        overwrites: bool,
        mut add: impl FnMut(Range<usize>, SliceMut<'_>, bool) -> Result<(), NnError>,
    ) -> Result<(), NnError> {
        let (bucket, len) = (id.bucket(), self.layout.buckets[id.bucket()].len);
        // Empty after the first micro-batches.
        self.untouched.retain(|&index| {
            let param = &self.layout.params[index];
            param.bucket != bucket || !overlap(&param.span(), &id.span())
        });
        match &mut self.buckets[bucket] {
            Bucket::Away => Err(NnError::Away { what: "gradients", bucket }),
            Bucket::Frozen => Ok(()),
            Bucket::Sum(sum) => {
                let accumulate = sum.begin(&self.layout, bucket, &id.span(), overwrites)?;
                add(0..rows.tokens(), sum.values.slice_mut().range(id.span())?, accumulate)
            }
            Bucket::Tree(tree) => rows.samples.clone().try_for_each(|sample| {
                let leaf = tree.leaf(sample, &self.place, (self.dtype, len))?;
                add(rows.of(sample), leaf.slice_mut().range(id.span())?, true)
            }),
        }
    }

    /// Declares a bucket's gradients of these samples complete, so that reference numerics can add
    /// them up and free their leaves.
    ///
    /// # Errors
    /// The bucket is away.
    pub fn close(
        &mut self,
        bucket: usize,
        samples: Range<usize>,
        ops: &dyn Ops,
    ) -> Result<(), NnError> {
        match &mut self.buckets[bucket] {
            Bucket::Away => Err(NnError::Away { what: "gradients", bucket }),
            Bucket::Sum(_) | Bucket::Frozen => Ok(()),
            Bucket::Tree(tree) => tree.close(samples, ops),
        }
    }

    /// Takes a bucket out to be reduced. Until [`GradStore::restore`], adding to it is an error.
    ///
    /// # Errors
    /// The bucket is already away.
    pub fn take(&mut self, bucket: usize, ops: &dyn Ops) -> Result<TakenGrads, NnError> {
        match std::mem::replace(&mut self.buckets[bucket], Bucket::Away) {
            Bucket::Frozen | Bucket::Away => Err(NnError::Away { what: "gradients", bucket }),
            Bucket::Sum(mut sum) => {
                sum.complete(&self.layout, bucket)?;
                Ok(TakenGrads::Sum(sum.values))
            }
            Bucket::Tree(mut tree) => {
                tree.close(0..usize::MAX, ops)?;
                Ok(TakenGrads::Nodes(tree.into_nodes()))
            }
        }
    }

    /// Puts the reduced gradients of a bucket back.
    ///
    /// # Errors
    /// Another length or type than the bucket's.
    pub fn restore(&mut self, bucket: usize, sum: Buf) -> Result<(), NnError> {
        let len = self.layout.buckets[bucket].len;
        if sum.len() != len || sum.dtype() != self.dtype {
            return Err(NnError::WrongBuffer { what: "gradients", bucket, len, dtype: self.dtype });
        }
        let params = self.layout.buckets[bucket].params.len();
        self.buckets[bucket] = Bucket::Sum(Sum::new(sum, params));
        Ok(())
    }

    /// The gradients of a bucket as one sum.
    ///
    /// # Errors
    /// The bucket is away, still a tree, or not complete (some parameter has got nothing in this step):
    /// take, finish and restore it first.
    pub fn bucket(&self, bucket: usize) -> Result<&Buf, NnError> {
        match &self.buckets[bucket] {
            Bucket::Sum(sum) if !sum.stale.contains(&true) => Ok(&sum.values),
            Bucket::Sum(_) | Bucket::Tree(_) | Bucket::Frozen | Bucket::Away => {
                Err(NnError::Away { what: "gradients", bucket })
            }
        }
    }

    /// The gradients of a bucket, writable, complete.
    ///
    /// # Errors
    /// As [`GradStore::bucket`].
    pub fn bucket_mut(&mut self, bucket: usize) -> Result<&mut Buf, NnError> {
        match &mut self.buckets[bucket] {
            Bucket::Sum(sum) => {
                sum.complete(&self.layout, bucket)?;
                Ok(&mut sum.values)
            }
            Bucket::Tree(_) | Bucket::Frozen | Bucket::Away => {
                Err(NnError::Away { what: "gradients", bucket })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_kernels::CpuOps;

    #[test]
    fn subtrees_cover_a_range_once_and_are_maximal() {
        let mut cases = 0;
        for start in 0..20 {
            for end in start..20 {
                let nodes = subtrees(start..end);
                let samples: Vec<usize> = nodes
                    .iter()
                    .flat_map(|node| node.first_sample()..node.first_sample() + (1 << node.level))
                    .collect();
                assert_eq!(samples, (start..end).collect::<Vec<_>>());
                let siblings = |a: &Node, b: &Node| a.level == b.level && a.index ^ 1 == b.index;
                assert!(nodes.windows(2).all(|pair| !siblings(&pair[0], &pair[1])));
                cases += 1;
            }
        }
        assert_eq!(cases, 210);
    }

    #[test]
    fn any_order_of_arrival_and_any_split_give_the_same_bits() {
        let ops = CpuOps::new(trine_kernels::Team::new(1));
        // Values whose sum depends on the order in f32.
        let value = |sample: usize| {
            Buf::from_vec(vec![1.0f32 + sample as f32 * 1e7, 1e-3 / (sample + 1) as f32])
        };
        let total = |order: &[usize]| {
            let mut tree = SampleTree::default();
            for &sample in order {
                tree.insert(Node { level: 0, index: sample }, value(sample), &ops).unwrap();
            }
            tree.finish(&ops).unwrap().unwrap().to_f64_vec().unwrap()
        };
        let serial = total(&(0..13).collect::<Vec<_>>());
        assert_eq!(serial, total(&[12, 3, 7, 0, 1, 11, 2, 10, 9, 4, 5, 8, 6]));
        // Two ranks, 7 and 6 samples: each sums its own, then the subtrees meet.
        let mut merged = SampleTree::default();
        for samples in [0..7, 7..13] {
            let mut local = SampleTree::default();
            for sample in samples.clone() {
                local.insert(Node { level: 0, index: sample }, value(sample), &ops).unwrap();
            }
            let nodes = local.into_nodes();
            assert_eq!(nodes.iter().map(|(node, _)| *node).collect::<Vec<_>>(), subtrees(samples));
            for (node, sum) in nodes {
                merged.insert(node, sum, &ops).unwrap();
            }
        }
        assert_eq!(serial, merged.finish(&ops).unwrap().unwrap().to_f64_vec().unwrap());
    }
}
