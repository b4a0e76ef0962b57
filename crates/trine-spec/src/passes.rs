//! What a piece's passes hold of activations, in bytes of one micro-batch on one rank.
//!
//! What is kept is [`Branch::tensors`] but for what is dropped. What a pass needs beside it, and what it leaves for the
//! weight gradients, follows from the order of operations in a branch ([`Step`]): the pairs (input, output gradient) of
//! its two products stay until W. A product that is frozen leaves none: backward lets go of its pair at once.

use crate::{
    Block, Body, Branch, BranchTensor, HeadBody, HeadTensor, Inner, ModelParts, Norm, OUTPUT_LAYER,
    OwnBody, PieceParts, Replay, SavedTensor, Step, Trains,
};

/// How passes are run, as far as their memory depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassShape {
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Which tensor-parallel rank runs them: its share may be smaller than others'.
    pub tp_index: usize,
    /// Whether the residual stream is split by rows over tensor parallelism.
    pub sequence_parallel: bool,
    /// Bytes of an element in the compute type.
    pub compute_bytes: usize,
    /// Bytes of an element in the accumulator type.
    pub sum_bytes: usize,
}

/// One pass of a piece, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// What it needs at its worst moment beyond what is held when it begins.
    pub needs: i64,
    /// What it leaves of that.
    pub leaves: i64,
}

/// The passes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// F. The stream that enters is held already, the one that leaves is held afterwards.
    pub forward: Pass,
    /// B. The gradient that enters is held already, the one that leaves is held afterwards.
    pub backward: Pass,
    /// What B leaves for W, bytes.
    pub work: i64,
}

impl ModelParts {
    /// What the passes of one of its pieces hold.
    pub fn passes(&self, part: &PieceParts, shape: &PassShape) -> Passes {
        let sizes = Sizes::new(self, shape);
        match &part.body {
            Body::Embedding => sizes.embedding(),
            Body::Block(block) => sizes.block(block, part),
            Body::Head(head) => sizes.head(head, part.trains(OUTPUT_LAYER)),
            Body::Own(own) => sizes.own(own, part.params.iter().any(|spec| spec.trainable)),
        }
    }

    /// Bytes of the residual stream on one rank outside of parallel regions: a message between stages.
    pub fn stream_bytes(&self, shape: &PassShape) -> i64 {
        Sizes::new(self, shape).stream
    }
}

/// Bytes of what all pieces handle.
#[derive(Debug)]
struct Sizes<'a> {
    model: &'a ModelParts,
    shape: &'a PassShape,
    /// Whether each rank has rows of its own.
    split_rows: bool,
    /// The residual stream outside of parallel regions.
    stream: i64,
    /// As many elements in the compute type: what a norm gives.
    input: i64,
    /// The same with the rows of all ranks.
    whole: i64,
    /// That where rows have to be gathered for it, else nothing.
    gathered: i64,
    /// What a branch makes of the stream's gradient: a copy if it is masked or of another type.
    copy: i64,
    /// One number a token, in the accumulator type.
    row: i64,
}

impl<'a> Sizes<'a> {
    fn new(model: &'a ModelParts, shape: &'a PassShape) -> Self {
        let split_rows = shape.sequence_parallel && model.tp > 1;
        let rows = if split_rows { shape.tokens / model.tp } else { shape.tokens };
        let masked = model.spec.dropout.residual > 0.0;
        let bytes = |rows: usize, of: usize| (rows * model.spec.hidden * of) as i64;
        let (compute, sum) = (shape.compute_bytes, shape.sum_bytes);
        let (input, whole) = (bytes(rows, compute), bytes(shape.tokens, compute));
        Self {
            model,
            shape,
            split_rows,
            stream: bytes(rows, sum),
            input,
            whole,
            gathered: if split_rows { whole } else { 0 },
            copy: if masked || compute != sum { input } else { 0 },
            row: (shape.tokens * sum) as i64,
        }
    }

    fn of(&self, tensors: &[SavedTensor]) -> i64 {
        let each = tensors.iter().map(|tensor| tensor.bytes(self.model.tp, self.shape));
        each.sum::<usize>() as i64
    }

    /// The tokens' rows become the stream; a mask makes another one of it.
    fn embedding(&self) -> Passes {
        let ids = (self.shape.tokens * size_of::<u32>()) as i64;
        let masked = self.model.spec.dropout.embedding > 0.0;
        let before = if masked { self.whole.max(self.stream) } else { self.whole };
        let whole_stream = self.row * self.model.spec.hidden as i64;
        let needs = if self.split_rows { whole_stream } else { 0 };
        let masked = if masked { self.stream } else { 0 };
        Passes {
            forward: Pass { needs: ids + before + self.stream, leaves: ids + self.stream },
            backward: Pass { needs: needs + masked, leaves: -(ids + self.stream) },
            work: 0,
        }
    }

    fn head(&self, head: &HeadBody, trains: bool) -> Passes {
        let vocab = self.model.spec.vocab_stored(self.model.tp) / self.model.tp;
        let logits = (self.shape.tokens * vocab * self.shape.compute_bytes) as i64;
        let stats = self.stats(head.norm);
        let all = stats + self.input + logits;
        let bytes = |tensor: &HeadTensor| match tensor {
            HeadTensor::Stats => stats,
            HeadTensor::Input => self.input,
            HeadTensor::Logits => logits,
        };
        let dropped: i64 = head.dropped.iter().map(bytes).sum();
        let kept = all - dropped;
        let pair = if self.split_rows { self.whole } else { self.input } + logits;
        let work = if trains { pair } else { 0 };
        // Maximum, sum and target logit alone and together, loss.
        let loss = self.gathered.max(6 * self.row);
        let replay = if head.again()[1] { loss } else { 0 };
        // What the output layer has read, its rows gathered again where they are split; beside it its gradient and what
        // is gathered, and then the norm's gradient.
        let scattered = if self.split_rows { self.input } else { 0 };
        let norm = if trains {
            self.whole + self.stream
        } else {
            // What the output layer has read is gone by then, and so are the logits.
            self.stream - logits
        };
        let backward = norm.max(self.whole + 2 * scattered);
        Passes {
            forward: Pass { needs: all + loss, leaves: kept },
            backward: Pass { needs: dropped + replay.max(backward), leaves: work - kept },
            work,
        }
    }

    /// Statistics of a norm on the stream.
    fn stats(&self, norm: Norm) -> i64 {
        let rows = if self.split_rows { self.row / self.model.tp as i64 } else { self.row };
        rows * norm.stats() as i64
    }

    fn block(&self, block: &Block, part: &PieceParts) -> Passes {
        let replays = block.replays();
        let pairs = block.branches.iter().zip(&replays).enumerate();
        let sizes: Vec<BranchSizes> = pairs
            .map(|(number, (branch, replay))| {
                let is_shared = block.parallel && number > 0;
                BranchSizes::new(self, (branch, replay), part.trains_of(branch), is_shared)
            })
            .collect();
        let kept: i64 = sizes.iter().map(|branch| branch.kept).sum();
        let mut forward = Moments::default();
        for (number, branch) in sizes.iter().enumerate() {
            let mut held = Vec::new();
            for step in branch.branch.steps() {
                forward.run(self, branch, step, &mut held, &branch.replay.kept);
            }
            // Side by side, the first adds to a copy of what enters.
            let copies = if block.parallel { number == 0 } else { branch.keeps_stream };
            forward.add_to_stream(self, branch, copies);
        }
        let (mut held, mut worst, mut work, mut is_left) = (0, 0, 0, false);
        for (number, branch) in sizes.iter().enumerate().rev() {
            let mut again = Moments { now: held, peak: held };
            for brought in &sizes[Block::chain(&replays, number)] {
                again.bring_back(self, brought);
            }
            (held, worst) = (again.now, worst.max(again.peak));
            let is_last = number + 1 == sizes.len();
            // Side by side: the gradient that enters is read by all, and the first to add to it makes a copy. Without
            // copies of their own, it is then among what is left for the weight gradients.
            let is_own = branch.gradient(self) == 0;
            let beside = if block.parallel && !is_last && !is_left { self.stream } else { 0 };
            let copies = if block.parallel { is_last } else { is_own && branch.trains.row };
            worst = worst.max(held + beside + branch.backward_needs(self, copies));
            let gradient = branch.trains.row && !(block.parallel && is_own && is_left);
            is_left |= is_own && branch.trains.row;
            // Branches may also read the very same tensor: the first has it among what it keeps, until it is the last
            // that leaves it.
            let is_read = block.parallel && branch.is_stream && !self.split_rows;
            let read = match number {
                0 if is_read => sizes.iter().any(|branch| branch.trains.columns),
                _ => branch.trains.columns && !is_read,
            };
            let left = branch.left(self, gradient, read);
            held += left - branch.saved;
            work += left;
        }
        Passes {
            forward: Pass { needs: forward.peak, leaves: kept },
            backward: Pass { needs: worst, leaves: held },
            work,
        }
    }

    /// What a branch gives: one rank in the stream's type, several sum it in the compute type.
    fn given(&self) -> i64 {
        if self.model.tp == 1 { self.stream } else { self.input }
    }

    /// Whether the stream has the type of products.
    fn is_one_type(&self) -> bool {
        self.shape.compute_bytes == self.shape.sum_bytes
    }

    /// A piece of one's own does not say which of its parameters need what it leaves.
    fn own(&self, own: &OwnBody, trains: bool) -> Passes {
        let worst = |moments: &[Vec<SavedTensor>]| {
            moments.iter().map(|moment| self.of(moment)).fold(self.stream, i64::max)
        };
        let (kept, work) = (self.of(&own.saved), if trains { self.of(&own.work) } else { 0 });
        let input = if own.keeps_input { self.stream } else { 0 };
        let needs = kept + worst(&own.forward);
        let (begun, again, replay) =
            if own.again { (self.stream, kept, needs) } else { (kept + input, 0, 0) };
        Passes {
            forward: Pass { needs, leaves: begun },
            backward: Pass {
                needs: replay.max(again + worst(&own.backward)),
                leaves: work - begun,
            },
            work,
        }
    }
}

/// Bytes of one branch.
#[derive(Debug)]
struct BranchSizes<'a> {
    branch: &'a Branch,
    replay: &'a Replay,
    /// Of each tensor, by its place in [`BranchTensor`]. What the columns read is nothing where it is the stream
    /// itself.
    tensors: [i64; BranchTensor::ALL.len()],
    /// Whether the columns read the stream itself.
    is_stream: bool,
    /// Whether somebody keeps the stream that enters.
    keeps_stream: bool,
    /// Of what it needs for its backward pass. Side by side the stream that enters counts at the first.
    saved: i64,
    /// Of what it keeps for that.
    kept: i64,
    /// Between columns and inner.
    before: i64,
    /// Between inner and row.
    after_inner: i64,
    /// What the norm of what it gives has saved.
    after: i64,
    trains: Trains,
}

impl<'a> BranchSizes<'a> {
    fn new(
        of: &Sizes<'_>,
        (branch, replay): (&'a Branch, &'a Replay),
        trains: Trains,
        is_shared: bool,
    ) -> Self {
        let (tp, hidden) = (of.model.tp, of.model.spec.hidden);
        let is_stream = branch.before.is_none() && of.is_one_type();
        let mut tensors = [0; BranchTensor::ALL.len()];
        for (kind, tensor) in branch.tensors(hidden, tp) {
            tensors[kind as usize] += tensor.bytes(tp, of.shape) as i64;
        }
        tensors[BranchTensor::Entering as usize] = of.stream;
        tensors[BranchTensor::Leaving as usize] =
            if branch.after.is_some() { of.input } else { of.given() };
        if is_stream {
            tensors[BranchTensor::Read as usize] = 0;
        }
        let holds_stream = |kinds: &[BranchTensor]| {
            kinds.contains(&BranchTensor::Entering)
                || (is_stream && kinds.contains(&BranchTensor::Read))
        };
        let bytes = |kinds: &[BranchTensor]| {
            let own = kinds.iter().filter(|kind| **kind != BranchTensor::Entering);
            let stream = if holds_stream(kinds) && !is_shared { of.stream } else { 0 };
            own.map(|kind| tensors[*kind as usize]).sum::<i64>() + stream
        };
        let [before, after_inner, row, row_stats] =
            [BranchTensor::Columns, BranchTensor::Given, BranchTensor::Row, BranchTensor::RowStats]
                .map(|kind| tensors[kind as usize]);
        Self {
            branch,
            replay,
            is_stream,
            keeps_stream: holds_stream(&replay.kept),
            saved: bytes(&replay.needed),
            kept: bytes(&replay.kept),
            tensors,
            before,
            after_inner,
            after: row + row_stats,
            trains,
        }
    }

    /// What it leaves for its weight gradients: of each product the input, and the gradient of the output. Whether
    /// the `gradient` that enters and what the columns `read` count, the block knows.
    fn left(&self, of: &Sizes<'_>, gradient: bool, read: bool) -> i64 {
        let rows = if of.split_rows { of.whole } else { of.input };
        let if_so = |is: bool, bytes: i64| if is { bytes } else { 0 };
        if_so(self.trains.row, self.after_inner)
            + if_so(self.trains.columns, self.before)
            + if_so(gradient, rows)
            + if_so(read, rows)
    }

    fn bytes(&self, kind: BranchTensor) -> i64 {
        self.tensors[kind as usize]
    }

    /// The gradient of what the row gives beyond the stream's own: a copy if it is masked, of another type, behind a
    /// norm, or gathered.
    fn gradient(&self, of: &Sizes<'_>) -> i64 {
        match (of.split_rows, self.after > 0) {
            (true, _) => of.whole,
            (false, true) => of.input,
            (false, false) => of.copy,
        }
    }

    /// The worst moment of its backward pass beyond what is held when it begins. Where somebody else still needs the
    /// stream's gradient, it adds to a copy of that.
    fn backward_needs(&self, of: &Sizes<'_>, copies: bool) -> i64 {
        let gradient = self.gradient(of);
        // The norm of what it gives reads a copy, and its gradient has the type of what it has read. That is let go of
        // before the gradient gets the type of products.
        let from_norm = if self.after > 0 { of.copy + of.given() } else { 0 };
        let own = if self.after > 0 { of.input } else { of.copy };
        // Frozen, the row lets go of its pair: the gradient is gone, and so is what it has read as soon as the inner
        // part does not need it.
        let [pair, read_by_row] = match (self.trains.row, self.branch.inner) {
            (true, _) => [gradient, gradient],
            (false, Inner::Attention(_)) => [0, -self.after_inner],
            (false, Inner::Mlp { .. }) => [-self.after_inner; 2],
        };
        // Gradients of what the row reads, and of what the inner part reads. Norms of queries and keys work in place.
        let inner = pair + self.after_inner + self.before;
        let scattered = if of.split_rows { of.input } else { 0 };
        let row = own + of.gathered + self.after_inner.max(scattered);
        // Split rows are scattered, and the norm's output is gathered for the columns' weights. Frozen columns let go
        // of their pair before the norm adds to the stream, which is less. What norms of queries and keys have read is
        // gone.
        let added = if copies && self.trains.columns { of.stream } else { 0 };
        let qk = self.bytes(BranchTensor::QkInput) + self.bytes(BranchTensor::QkStats);
        let last = read_by_row + of.whole + added.max(2 * scattered) - qk;
        // What the norm behind the row has saved is gone by then.
        from_norm.max(inner.max(row).max(last) - self.after)
    }
}

/// What is held, and was at most, as steps run.
#[derive(Debug, Default)]
struct Moments {
    now: i64,
    peak: i64,
}

impl Moments {
    fn add(&mut self, bytes: i64) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }

    /// Runs a step beside what is `held`, and lets go of what is not to be kept, but for what the next step reads.
    fn run(
        &mut self,
        of: &Sizes<'_>,
        branch: &BranchSizes<'_>,
        step: Step,
        held: &mut Vec<BranchTensor>,
        kept: &[BranchTensor],
    ) {
        let given = step.gives(branch.branch.after.is_some());
        self.add(given.iter().map(|kind| branch.bytes(*kind)).sum());
        // The rows of all ranks, as columns read them and the row gives them.
        let gathered = match step {
            Step::Columns | Step::Row => of.gathered,
            Step::Read | Step::Inner | Step::After => 0,
        };
        self.add(gathered);
        self.add(-gathered);
        for kind in given {
            // What is there already is made once more, and not kept twice.
            if held.contains(kind) { self.add(-branch.bytes(*kind)) } else { held.push(*kind) }
        }
        let stays = |kind: &BranchTensor| kept.contains(kind) || given.last() == Some(kind);
        held.retain(|kind| {
            if !stays(kind) {
                self.now -= branch.bytes(*kind);
            }
            stays(kind)
        });
    }

    /// Adds what a branch gives to the stream, or to a copy of it.
    fn add_to_stream(&mut self, of: &Sizes<'_>, branch: &BranchSizes<'_>, copies: bool) {
        self.add(if copies { of.stream } else { 0 });
        self.add(-branch.bytes(BranchTensor::Leaving));
    }

    /// Brings back what a branch has dropped. Where what enters it is not kept, that is there again.
    fn bring_back(&mut self, of: &Sizes<'_>, branch: &BranchSizes<'_>) {
        let replay = branch.replay;
        let mut held = replay.kept.clone();
        if replay.is_chained {
            held.push(BranchTensor::Entering);
        }
        if replay.gives_again || branch.is_stream {
            // The steps do not let go of it: what they give is added to it, or the columns read it.
            held.retain(|kind| *kind != BranchTensor::Entering);
        }
        for step in &replay.again {
            self.run(of, branch, *step, &mut held, &replay.needed);
        }
        if replay.gives_again {
            let is_needed = branch.branch.before.is_some() || branch.is_stream;
            self.add_to_stream(of, branch, is_needed);
        } else if held.contains(&BranchTensor::Leaving) {
            self.add(-branch.bytes(BranchTensor::Leaving));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kept::{Compute, Stream, Sums};
    use crate::{Init, Kept, OwnPiece, ParamSpec, Pattern, Piece, Recompute, Split, presets};

    const TENSOR: Split = Split::Tensor { units: 4 };

    fn tensor(per_token: usize, kept: Kept, split: Split) -> SavedTensor {
        SavedTensor::new("some", per_token, kept, split)
    }

    fn body() -> OwnBody {
        OwnBody {
            name: "own".into(),
            keeps_input: true,
            saved: vec![tensor(12, Compute, TENSOR)],
            forward: vec![
                vec![tensor(2000, Compute, Split::None)],
                vec![tensor(2000, Compute, Split::Gathered), tensor(768, Stream, Split::Sequence)],
            ],
            backward: vec![vec![], vec![tensor(1600, Sums, TENSOR)]],
            work: vec![tensor(768, Compute, Split::Gathered), tensor(40, Compute, TENSOR)],
            again: false,
        }
    }

    /// The passes of 64 tokens in bf16 beside f32, of a block that is an own piece: what F needs and leaves, what B
    /// needs and leaves, and what is left for W.
    fn bytes(body: &OwnBody, tp: usize, sequence_parallel: bool, recompute: bool) -> [i64; 5] {
        bytes_frozen(body, (tp, sequence_parallel, recompute), &[])
    }

    fn bytes_frozen(
        body: &OwnBody,
        (tp, sequence_parallel, recompute): (usize, bool, bool),
        frozen: &[&str],
    ) -> [i64; 5] {
        let mut parts = presets::find("gpt2-124m").unwrap().model.parts(tp).unwrap();
        let params = ["own.gain", "own.matrix"].map(|name| ParamSpec::new(name, &[4], Init::Ones));
        let own = OwnPiece { params: params.into(), body: body.clone(), flops_per_token: 0.0 };
        parts.replace(5, own).unwrap();
        let frozen: Vec<Pattern> = frozen.iter().map(|name| Pattern::new(*name)).collect();
        parts.freeze(&frozen).unwrap();
        let what = if recompute { Recompute::FULL } else { Recompute::None };
        parts.recompute(&what).unwrap();
        let (compute_bytes, sum_bytes) = (2, 4);
        let shape =
            PassShape { tokens: 64, tp_index: 0, sequence_parallel, compute_bytes, sum_bytes };
        let passes = parts.passes(parts.get(Piece::Block(5)).unwrap(), &shape);
        let (f, b) = (passes.forward, passes.backward);
        [f.needs, f.leaves, b.needs, b.leaves, passes.work]
    }

    #[test]
    fn an_own_piece_needs_its_worst_moment_beside_what_it_keeps() {
        // All rows of the stream, and a fourth of them; what is kept beside it.
        let (stream, rows, kept) = (64 * 768 * 4, 16 * 768 * 4, 64 * 12 * 2 / 4);
        // The first moment is the worst where nothing has to be gathered, the second where rows are split.
        let (plain, gathered) = (64 * 2000 * 2, 64 * 2000 * 2 + rows);
        // In B what leaves is more than the tensors of a moment, or less.
        let (split, pairs) = (64 * 1600 * 4 / 4, 64 * 40 * 2 / 4);
        let work = pairs + 64 * 768 * 2;
        let needs = kept + plain;
        let whole = [needs, kept + stream, stream, pairs - kept - stream, pairs];
        assert_eq!(bytes(&body(), 4, false, false), whole);
        let again = [needs, stream, needs, pairs - stream, pairs];
        assert_eq!(bytes(&body(), 4, false, true), again);
        let needs = kept + gathered;
        let parted = [needs, kept + rows, split, work - kept - rows, work];
        assert_eq!(bytes(&body(), 4, true, false), parted);
        let again = [needs, rows, needs, work - rows, work];
        assert_eq!(bytes(&body(), 4, true, true), again);
        // One rank holds all rows either way, and all features.
        assert_eq!(bytes(&body(), 1, true, false), bytes(&body(), 1, false, false));
        assert_eq!(bytes(&body(), 1, false, false)[1], 4 * kept + stream);
    }

    #[test]
    fn an_own_piece_leaves_nothing_for_weight_gradients_if_none_of_it_is_trained() {
        let whole = bytes(&body(), 4, false, false);
        let frozen = |names: &[&str]| bytes_frozen(&body(), (4, false, false), names);
        assert_eq!(frozen(&["own.gain"]), whole);
        let [forward, kept, backward, left, work] = whole;
        assert!(work > 0);
        assert_eq!(frozen(&["own.*"]), [forward, kept, backward, left - work, 0]);
    }

    #[test]
    fn an_own_piece_that_drops_its_input_and_one_whose_worst_moment_is_behind_the_replay() {
        let (stream, kept, pairs) = (64 * 768 * 4, 64 * 12 * 2 / 4, 64 * 40 * 2 / 4);
        let dropped = OwnBody { keeps_input: false, ..body() };
        let needs = kept + 64 * 2000 * 2;
        let whole = [needs, kept, stream, pairs - kept, pairs];
        assert_eq!(bytes(&dropped, 4, false, false), whole);
        // Recompute keeps the input of every block.
        assert_eq!(bytes(&dropped, 4, false, true), bytes(&body(), 4, false, true));
        // Nothing is said of the moments of F: what leaves is there at the end. What F has kept is there in all of B.
        let backward = vec![vec![tensor(8000, Sums, TENSOR)]];
        let late = OwnBody { forward: vec![], backward, work: vec![], ..body() };
        let worst = 64 * 8000 * 4 / 4;
        let whole = [kept + stream, kept + stream, worst, -kept - stream, 0];
        assert_eq!(bytes(&late, 4, false, false), whole);
        let again = [kept + stream, stream, kept + worst, -stream, 0];
        assert_eq!(bytes(&late, 4, false, true), again);
    }
}
