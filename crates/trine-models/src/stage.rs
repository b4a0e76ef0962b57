//! The stages of a pipeline that one rank holds, in segments that a schedule can run one by one.

use crate::{BuildPiece, Builder, LossLayer, PieceLayer};
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Place};
use trine_comm::Communicator;
use trine_nn::{
    Context, GradStore, Layer, NnError, Numerics, ParamStore, Recompute, Rows, Saved, WeightWork,
    stream_type,
};
use trine_shard::TensorGroup;
use trine_spec::{ModelParts, Piece, RankLayout, StagePieces};

/// What the stages of a rank are built from.
#[derive(Debug)]
pub struct RankParts<'a> {
    /// The model.
    pub model: &'a ModelParts,
    /// What this rank holds of it.
    pub layout: &'a RankLayout,
    /// The tensor-parallel ranks.
    pub comm: Arc<dyn Communicator>,
    /// Split the residual stream by rows over them.
    pub sequence_parallel: bool,
    /// How sums are ordered.
    pub numerics: Numerics,
    /// Type of weights and activations.
    pub compute: DType,
    /// Seed of dropout masks.
    pub seed: u64,
    /// Where weights and activations lie.
    pub place: &'a Place,
}

impl PieceLayer {
    fn layer(&self) -> &dyn Layer {
        match self {
            Self::Inner(layer) => layer.as_ref(),
            Self::Head(head) => head.as_ref(),
        }
    }

    /// Refuses a layer that cannot stand in the place of `piece`.
    fn check(&self, piece: Piece) -> Result<(), NnError> {
        const INNER: &str = "a layer that gives a stream";
        const END: &str = "a layer that gives losses";
        let (found, expected) = match (self, piece) {
            (Self::Inner(_), Piece::Embedding | Piece::Block(_)) | (Self::Head(_), Piece::Head) => {
                return Ok(());
            }
            (Self::Inner(_), Piece::Head) => (INNER, END),
            (Self::Head(_), Piece::Embedding | Piece::Block(_)) => (END, INNER),
        };
        Err(NnError::OtherLayer { piece, found, expected })
    }
}

/// One stage of a rank. Input: token ids on the first stage, else the residual stream. Output: the loss
/// of each token on the last stage, else the residual stream.
#[derive(Debug)]
pub struct StageModel {
    number: usize,
    group: TensorGroup,
    hidden: usize,
    pieces: Vec<(Piece, PieceLayer)>,
    /// The kinds of those that are one's own.
    own: Vec<(Piece, String)>,
    segments: Vec<Range<usize>>,
}

impl StageModel {
    /// Builds the stages of a rank, in forward order, each piece with `build`. A collective call among the
    /// tensor-parallel ranks.
    ///
    /// # Errors
    /// A layout of another model, what `build` returns, a layer of the wrong kind, or a failed collective.
    pub fn of_rank(parts: &RankParts<'_>, build: BuildPiece<'_>) -> Result<Vec<Self>, NnError> {
        let builder = Builder::new(parts)?;
        let stages = parts.layout.stages.iter();
        stages.map(|stage| Self::new(parts, &builder, build, stage)).collect()
    }

    fn new(
        parts: &RankParts<'_>,
        builder: &Builder<'_>,
        build: BuildPiece<'_>,
        stage: &StagePieces,
    ) -> Result<Self, NnError> {
        let mut pieces = Vec::new();
        for &piece in &stage.pieces {
            let part = parts.model.get(piece).ok_or_else(|| NnError::Unknown(piece.to_string()))?;
            let layer = build(builder, part)?;
            layer.check(piece)?;
            let layer = match (layer, piece) {
                (PieceLayer::Inner(layer), _) if part.runs_again() => {
                    PieceLayer::Inner(Box::new(Recompute(layer)))
                }
                (layer, _) => layer,
            };
            pieces.push((piece, layer));
        }
        // A segment is the run of pieces whose gradients share a bucket. The bucket of a tied
        // embedding, at the end, has none of its own: its segment is empty.
        let mut segments: Vec<Range<usize>> = Vec::new();
        for bucket in parts.layout.segments_of(stage.stage) {
            let start = segments.last().map_or(0, |segment| segment.end);
            segments.push(start..start + bucket.pieces.len());
        }
        let (group, hidden) = (builder.group().clone(), builder.model.hidden);
        let own = parts.model.own().map(|(part, kind)| (part.piece, kind.to_owned())).collect();
        Ok(Self { number: stage.stage, group, hidden, pieces, own, segments })
    }

    /// Which stage of the pipeline it is.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Whether its output is the loss.
    pub fn has_head(&self) -> bool {
        self.pieces.last().is_some_and(|(piece, _)| *piece == Piece::Head)
    }

    /// The stage's pieces in forward order.
    pub fn pieces(&self) -> Vec<Piece> {
        self.pieces.iter().map(|(piece, _)| *piece).collect()
    }

    /// Number of segments: runs of pieces with one gradient bucket each, in forward order. Which bucket a
    /// segment fills, [`RankLayout::bucket`] says.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Refuses a stream, or a gradient of one, that the next layer or stage could not take.
    fn check_stream(
        &self,
        (piece, what): (Piece, &'static str),
        stream: &Act,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        let elements = self.group.stream_rows(ctx.rows.tokens()).len() * self.hidden;
        check_output((piece, what), stream, (stream_type(ctx.compute), elements))
    }

    /// The failure of a piece of one's own with its kind: the layers inside do not know it. Communication fails for
    /// everybody.
    fn named<T>(&self, piece: Piece, result: Result<T, NnError>) -> Result<T, NnError> {
        result.map_err(|error| match (self.own.iter().find(|(own, _)| *own == piece), error) {
            (None, error) | (Some(_), error @ NnError::Communication(_)) => error,
            (Some((_, kind)), error) => {
                NnError::Piece { piece, kind: kind.clone(), error: Box::new(error) }
            }
        })
    }

    /// Refuses layers that have left out the gradient of a parameter, once their passes have filled a bucket.
    ///
    /// # Errors
    /// [`NnError::NoGradient`], of a piece of one's own in [`NnError::Piece`].
    pub fn check_gradients(&self, grads: &GradStore, bucket: usize) -> Result<(), NnError> {
        let Some(param) = grads.untouched(bucket) else { return Ok(()) };
        self.named(param.piece, Err(NnError::NoGradient(param.spec.name.clone())))
    }

    /// Runs one piece forward.
    fn pass(
        &self,
        (piece, layer): &(Piece, PieceLayer),
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        let (y, saved) = self.named(*piece, layer.layer().forward(weights, x, ctx))?;
        match layer {
            PieceLayer::Inner(_) => self.check_stream((*piece, "a stream"), &y, ctx)?,
            PieceLayer::Head(_) => {
                check_output((*piece, "losses"), &y, (y.dtype(), ctx.rows.tokens()))?;
            }
        }
        Ok((y, saved))
    }

    /// Runs all pieces forward. Returns one saved state a piece.
    ///
    /// # Errors
    /// What a layer returns, or a result that does not fit.
    pub fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Vec<Saved>), NnError> {
        let (mut x, mut states) = (x, Vec::with_capacity(self.pieces.len()));
        for piece in &self.pieces {
            let (y, saved) = self.pass(piece, weights, x, ctx)?;
            states.push(saved);
            x = y;
        }
        Ok((x, states))
    }

    /// Runs the pieces of one segment backward, last to first, taking their states from the end of
    /// `states`. Segments are run from the last to the first. The weight gradients are left for later.
    ///
    /// # Errors
    /// What a layer returns, a gradient that does not fit, or states that do not belong to this segment.
    pub fn backward_input(
        &self,
        segment: usize,
        weights: &ParamStore,
        states: &mut Vec<Saved>,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let mut work = WeightWork::nothing();
        let dx = self.back(segment, (weights, grads), states, dy, ctx, &mut |left, _| {
            work.append(left);
            Ok(())
        })?;
        Ok((dx, work))
    }

    /// [`StageModel::backward_input`] with the weight gradients of each piece right behind its own backward pass, so
    /// that no other piece keeps what they need.
    ///
    /// # Errors
    /// As [`StageModel::backward_input`].
    pub fn backward(
        &self,
        segment: usize,
        weights: &ParamStore,
        states: &mut Vec<Saved>,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<Act, NnError> {
        let at_once = &mut |left: WeightWork, grads: &mut GradStore| left.run(ctx, grads);
        self.back(segment, (weights, grads), states, dy, ctx, at_once)
    }

    fn back(
        &self,
        segment: usize,
        (weights, grads): (&ParamStore, &mut GradStore),
        states: &mut Vec<Saved>,
        mut dy: Act,
        ctx: &Context<'_>,
        then: &mut dyn FnMut(WeightWork, &mut GradStore) -> Result<(), NnError>,
    ) -> Result<Act, NnError> {
        let pieces = self.segments[segment].clone();
        if states.len() != pieces.end {
            return Err(NnError::Saved { held: (0, states.len()), expected: (0, pieces.end) });
        }
        for (piece, layer) in self.pieces[pieces].iter().rev() {
            let saved = states.pop().expect("invariant: counted above");
            let done = layer.layer().backward_input(weights, saved, dy, ctx, grads);
            let (dx, left) = self.named(*piece, done)?;
            // Token ids have no gradient.
            if *piece != Piece::Embedding {
                self.check_stream((*piece, "a gradient"), &dx, ctx)?;
            }
            then(left, grads)?;
            dy = dx;
        }
        Ok(dy)
    }

    /// Runs the last stage up to the logits, `[tokens, local vocabulary]`: for scoring.
    ///
    /// # Errors
    /// A stage without an output layer, or what a layer returns.
    pub fn logits(&self, weights: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<Buf, NnError> {
        let (head, x) = self.until_head(weights, x, ctx)?;
        head.logits(weights, x, ctx)
    }

    /// The logits of what follows the last token of the micro-batch, `[local vocabulary]`: for
    /// sampling, which needs no other row. Not with sequence parallelism, where one rank alone holds
    /// that row.
    ///
    /// # Errors
    /// As [`StageModel::logits`].
    pub fn next_logits(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<Buf, NnError> {
        if ctx.rows.tokens() == 0 {
            return Err(NnError::Missing { layer: "logits", what: "a token" });
        }
        let (head, x) = self.until_head(weights, x, ctx)?;
        let cols = x.len() / ctx.rows.tokens();
        let mut last = ctx.pool.alloc(x.dtype(), cols)?;
        last.slice_mut().copy_from(x.slice().range(x.len() - cols..x.len())?)?;
        let sample = ctx.rows.samples.end - 1;
        let rows = Rows { samples: sample..ctx.rows.samples.end, seq: 1 };
        head.logits(weights, Act::new(last), &Context { rows, ..ctx.clone() })
    }

    /// Runs the pieces before the output layer.
    fn until_head(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(&dyn LossLayer, Act), NnError> {
        let mut x = x;
        for piece in &self.pieces {
            match &piece.1 {
                PieceLayer::Inner(_) => x = self.pass(piece, weights, x, ctx)?.0,
                PieceLayer::Head(head) => return Ok((&**head, x)),
            }
        }
        Err(NnError::Missing { layer: "logits", what: "an output layer on this stage" })
    }
}

/// Refuses what a piece gives if it has not the type and number of elements that are expected.
fn check_output(
    (piece, what): (Piece, &'static str),
    given: &Act,
    expected: (DType, usize),
) -> Result<(), NnError> {
    let held = (given.dtype(), given.len());
    if held == expected {
        return Ok(());
    }
    Err(NnError::Output { piece, what, held, expected })
}
