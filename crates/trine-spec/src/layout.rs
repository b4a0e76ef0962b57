//! What one rank holds: its stages with their pieces, the local shape of each parameter, and the flat buckets.

use crate::{
    BUCKET_ELEMENTS, ModelParts, ModelSpec, ParamSpec, Piece, Shares, SpecError,
    params::TOKEN_EMBEDDING,
};
use std::ops::Range;
use trine_mesh::{AxisSet, Degrees, shard};

/// Parameters start at multiples of this many elements (64 bytes in f32), except fused ones.
const ALIGN_ELEMENTS: usize = 16;

/// Where a parameter begins in a bucket that holds `len` elements.
pub(crate) fn offset(len: usize, fused: bool) -> usize {
    if fused { len } else { len.next_multiple_of(ALIGN_ELEMENTS) }
}

/// The length of a closed bucket: as many ranks as its gradient is summed over have equal, aligned parts of it.
pub(crate) fn padded(len: usize, replicas: usize) -> usize {
    len.next_multiple_of(replicas * ALIGN_ELEMENTS)
}

/// Where the local parts of these parameters end, one behind the other, on the first of `tp` ranks: no other one has
/// more.
pub(crate) fn end<'a>(specs: impl Iterator<Item = &'a ParamSpec>, tp: usize) -> usize {
    specs.fold(0, |len, spec| offset(len, spec.fused) + local_len(spec, tp))
}

/// Elements of a parameter on the first tensor-parallel rank.
fn local_len(spec: &ParamSpec, tp: usize) -> usize {
    let whole = spec.shape.iter().product();
    let Some(dim) = spec.split_dim() else { return whole };
    let shard = shard(spec.shape[dim], spec.placement[dim].units, tp, 0);
    whole / spec.shape[dim] * shard.map_or(spec.shape[dim], |shard| shard.range.len())
}

/// The part of a model that one stage of a pipeline is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePieces {
    /// Its number, from the start of the pipeline.
    pub stage: usize,
    /// Its pieces, in forward order.
    pub pieces: Vec<Piece>,
}

impl StagePieces {
    /// The only stage of a model that is not cut.
    pub fn whole(model: &ModelParts) -> Self {
        Self { stage: 0, pieces: model.pieces.iter().map(|part| part.piece).collect() }
    }
}

/// Which part of the model, and in which layout.
#[derive(Debug, Clone)]
pub struct RankRequest<'a> {
    /// The model, as so many tensor-parallel ranks share it.
    pub model: &'a ModelParts,
    /// The stages of this rank, in forward order.
    pub stages: &'a [StagePieces],
    /// How many ranks each axis has.
    pub degrees: Degrees,
    /// This rank's tensor-parallel index.
    pub tp_index: usize,
    /// Axes over which gradients are summed: ranks that differ on them hold the same weights and see different
    /// samples. Bucket lengths are multiples of the product of their degrees, so that parts are equal.
    pub summed: AxisSet,
    /// Axes over which ranks divide what belongs to a bucket.
    pub shared: Shares,
    /// Keep a tied output layer as a parameter of its own even when the embedding is on this very
    /// rank: always when the two lie on different stages, and in reference numerics, where both
    /// uses must be summed apart as a pipeline would.
    pub tied_apart: bool,
    /// A bucket is closed once it holds this many elements on the first tensor-parallel rank, where
    /// there are most.
    pub bucket_elements: usize,
}

impl<'a> RankRequest<'a> {
    /// Stages on one rank, whose gradients are summed over nothing: where another layout begins.
    pub fn serial(model: &'a ModelParts, stages: &'a [StagePieces]) -> Self {
        Self {
            model,
            stages,
            degrees: Degrees::SERIAL,
            tp_index: 0,
            summed: AxisSet::EMPTY,
            shared: Shares::NONE,
            tied_apart: false,
            bucket_elements: BUCKET_ELEMENTS,
        }
    }
}

/// A parameter as one rank holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalParam {
    /// The global parameter.
    pub spec: ParamSpec,
    /// The piece it belongs to. Its stage is that of its bucket.
    pub piece: Piece,
    /// The slice of each global dimension that is held here.
    pub ranges: Vec<Range<usize>>,
    /// Whether this rank is the one among tensor-parallel replicas (and tied copies) that counts
    /// the elements in global norms and writes them to checkpoints.
    pub owner: bool,
    /// How many tensor-parallel ranks hold this very slice of a dimension that is split.
    pub replicas: usize,
    /// Which of those this rank is.
    pub replica: usize,
    /// The bucket it lies in.
    pub bucket: usize,
    /// First element in the bucket.
    pub offset: usize,
}

impl LocalParam {
    /// Local shape.
    pub fn shape(&self) -> Vec<usize> {
        self.ranges.iter().map(Range::len).collect()
    }

    /// Local elements.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(Range::len).product()
    }

    /// Whether the local part is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its elements in the bucket.
    pub fn span(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// A flat buffer of parameters that is reduced, shared out and updated as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The stage whose gradients it holds.
    pub stage: usize,
    /// Which segment of that stage's backward pass fills it: its place among the stage's buckets.
    pub segment: usize,
    /// Indices into [`RankLayout::params`], by offset.
    pub params: Vec<usize>,
    /// Elements, padding included; a multiple of the number of ranks that its gradient is summed over.
    pub len: usize,
    /// The pieces whose gradients it holds, in forward order. Empty for the bucket of a tied
    /// embedding, which is complete only when the whole backward pass is.
    pub pieces: Vec<Piece>,
    /// Whether its gradient must first be summed with the other copy of a tied embedding.
    pub tied: bool,
    /// Whether its parameters are trained: otherwise it has weights and nothing else, and no segment fills it.
    pub trainable: bool,
    /// Axes over which its gradient is summed; where it has none, those on which ranks hold the same weights.
    pub summed: AxisSet,
    /// Axes over which ranks divide its weights, gradient and state instead of each holding them whole.
    pub shared: Shares,
}

impl Bucket {
    /// One that holds nothing yet, summed over nothing.
    fn open(stage: usize, segment: usize) -> Self {
        Self {
            stage,
            segment,
            params: vec![],
            len: 0,
            pieces: vec![],
            tied: false,
            trainable: true,
            summed: AxisSet::EMPTY,
            shared: Shares::NONE,
        }
    }

    /// The axes on which ranks hold the same weights of it and must agree: it is summed over them, and its weights
    /// are not divided over them.
    pub fn repeated(&self) -> AxisSet {
        self.summed.without(self.shared.weights)
    }
}

/// Everything one rank holds of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct RankLayout {
    /// The parameters in bucket order.
    pub params: Vec<LocalParam>,
    /// The buckets, stage after stage; those of a stage in forward order, then a tied one, then those that are frozen.
    pub buckets: Vec<Bucket>,
    /// The stages, in forward order.
    pub stages: Vec<StagePieces>,
}

impl RankLayout {
    /// Lays out the stages of one tensor-parallel rank.
    ///
    /// # Errors
    /// A dimension that cannot be split over the tensor-parallel degree.
    pub fn new(request: &RankRequest<'_>) -> Result<Self, SpecError> {
        if request.model.tp != request.degrees.tp {
            let (degree, made) = (request.degrees.tp, request.model.tp);
            let rule = format!("its parts were made for tp {made}");
            let nearest = format!("tp {made}");
            return Err(SpecError::Layout { axis: "tp", degree, rule, nearest });
        }
        let mut layout = Self { params: vec![], buckets: vec![], stages: request.stages.to_vec() };
        for stage in request.stages {
            layout.place_stage(stage, request)?;
        }
        let RankRequest { summed, shared, .. } = *request;
        let replicas = request.degrees.product(summed);
        for bucket in &mut layout.buckets {
            bucket.summed = summed;
            // What has no gradient is not divided.
            let parts = if bucket.trainable { replicas } else { 1 };
            bucket.len = padded(bucket.len, parts);
            if bucket.trainable {
                bucket.shared = shared;
            }
        }
        Ok(layout)
    }

    /// Lays out a stage behind those that are there.
    fn place_stage(
        &mut self,
        StagePieces { stage, pieces }: &StagePieces,
        request: &RankRequest<'_>,
    ) -> Result<(), SpecError> {
        let apart = request.model.spec.tied && request.tied_apart;
        let here = pieces.contains(&Piece::Embedding);
        let (mut tied, mut frozen) = (Vec::new(), Vec::new());
        for &piece in pieces {
            let part = request.model.get(piece).ok_or(SpecError::NoPiece { piece })?;
            let mut specs = part.params.clone();
            // The output layer uses the embedding itself where both are here and nothing asks for
            // two copies.
            specs.retain(|spec| spec.tied_to.is_none() || apart || !here);
            frozen.extend(specs.extract_if(.., |spec| !spec.trainable).map(|spec| (piece, spec)));
            let is_tied = |spec: &ParamSpec| {
                apart && (spec.tied_to.is_some() || spec.name == TOKEN_EMBEDDING)
            };
            tied.extend(specs.iter().filter(|spec| is_tied(spec)).map(|s| (piece, s.clone())));
            specs.retain(|spec| !is_tied(spec));
            self.place((*stage, piece), specs, request)?;
        }
        for (piece, spec) in tied {
            self.open(*stage).tied = true;
            self.append(piece, spec, (request.degrees.tp, request.tp_index))?;
        }
        for (piece, spec) in frozen {
            self.place_frozen((*stage, piece), spec, request)?;
        }
        Ok(())
    }

    /// Puts a frozen parameter behind the others, or opens a bucket for it: never between fused ones.
    fn place_frozen(
        &mut self,
        (stage, piece): (usize, Piece),
        spec: ParamSpec,
        request: &RankRequest<'_>,
    ) -> Result<(), SpecError> {
        let has_room = |bucket: &Bucket| {
            let is_frozen = bucket.stage == stage && !bucket.trainable;
            is_frozen && (spec.fused || bucket.len < request.bucket_elements)
        };
        if !self.buckets.last().is_some_and(has_room) {
            self.open(stage).trainable = false;
        }
        self.append(piece, spec, (request.degrees.tp, request.tp_index))
    }

    /// The bucket that a segment of a stage fills.
    pub fn bucket(&self, stage: usize, segment: usize) -> Option<usize> {
        let is_it = |bucket: &Bucket| (bucket.stage, bucket.segment) == (stage, segment);
        self.buckets.iter().position(is_it)
    }

    /// The buckets of a stage that its backward pass fills, by segment.
    pub fn segments_of(&self, stage: usize) -> impl Iterator<Item = &Bucket> {
        self.buckets.iter().filter(move |bucket| bucket.stage == stage && bucket.trainable)
    }

    /// Those of its parameters that are the token embedding or a tied copy of it, by their place in
    /// [`RankLayout::params`]: trained or frozen, both hold the same weights.
    pub fn tied_copies(&self) -> impl Iterator<Item = usize> + '_ {
        let params = self.params.iter().enumerate();
        params.filter(|(_, param)| param.spec.known_as() == TOKEN_EMBEDDING).map(|(index, _)| index)
    }

    /// Lays out parameters of a layer of one's own for rank `tp_index` of `tp`: one bucket, in which
    /// they lie directly behind one another, so that neighbours can be used as one matrix.
    ///
    /// ```
    /// use trine_spec::{Init, ParamSpec, RankLayout};
    ///
    /// // Eight output features on two ranks.
    /// let weight = ParamSpec::new("up", &[8, 4], Init::Normal { std: 0.02 }).split(0, 8);
    /// let layout = RankLayout::of(vec![weight], 2, 1)?;
    /// assert_eq!(layout.params[0].ranges, [4..8, 0..4]);
    /// # Ok::<(), trine_spec::SpecError>(())
    /// ```
    ///
    /// # Errors
    /// A dimension whose units `tp` ranks cannot share.
    pub fn of(specs: Vec<ParamSpec>, tp: usize, tp_index: usize) -> Result<Self, SpecError> {
        let mut layout = Self { params: vec![], buckets: vec![], stages: vec![] };
        if !specs.is_empty() {
            layout.open(0);
        }
        for (index, spec) in specs.into_iter().enumerate() {
            let spec = ParamSpec { fused: index > 0, ..spec };
            layout.append(Piece::Block(0), spec, (tp, tp_index))?;
        }
        Ok(layout)
    }

    /// Opens the next bucket of a stage.
    fn open(&mut self, stage: usize) -> &mut Bucket {
        let of_stage = self.buckets.iter().filter(|bucket| bucket.stage == stage);
        let segment = of_stage.count();
        self.buckets.push(Bucket::open(stage, segment));
        self.buckets.last_mut().expect("invariant: it has just been pushed")
    }

    /// Puts a piece's parameters into the stage's open bucket, or opens a new one.
    fn place(
        &mut self,
        (stage, piece): (usize, Piece),
        specs: Vec<ParamSpec>,
        request: &RankRequest<'_>,
    ) -> Result<(), SpecError> {
        // By what the first tensor-parallel rank holds, so that all have the same buckets.
        let fullest = |bucket: &Bucket| {
            end(bucket.params.iter().map(|index| &self.params[*index].spec), request.degrees.tp)
        };
        let room =
            |bucket: &Bucket| bucket.stage == stage && fullest(bucket) < request.bucket_elements;
        let has_room = self.buckets.last().is_some_and(room);
        match self.buckets.last_mut().filter(|_| has_room) {
            Some(open) => open.pieces.push(piece),
            None => self.open(stage).pieces.push(piece),
        }
        for spec in specs {
            self.append(piece, spec, (request.degrees.tp, request.tp_index))?;
        }
        Ok(())
    }

    /// Appends one parameter to the last bucket.
    fn append(
        &mut self,
        piece: Piece,
        spec: ParamSpec,
        (tp, tp_index): (usize, usize),
    ) -> Result<(), SpecError> {
        let (mut replicas, mut replica, mut first) = (1, 0, tp_index == 0);
        let mut ranges: Vec<Range<usize>> = spec.shape.iter().map(|len| 0..*len).collect();
        if let Some(dim) = spec.split_dim() {
            let shard = shard(spec.shape[dim], spec.placement[dim].units, tp, tp_index)?;
            (replicas, replica, first) = (shard.replicas, shard.replica, shard.replica == 0);
            ranges[dim] = shard.range;
        }
        let owner = first && spec.tied_to.is_none();
        let bucket = self.buckets.len() - 1;
        let open = &mut self.buckets[bucket];
        let offset = offset(open.len, spec.fused);
        let param = LocalParam { spec, piece, ranges, owner, replicas, replica, bucket, offset };
        open.len = offset + param.len();
        open.params.push(self.params.len());
        self.params.push(param);
        Ok(())
    }

    /// The index of a parameter by name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|param| param.spec.name == name)
    }

    /// Elements of all buckets, padding included.
    pub fn elements(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.len).sum()
    }
}

/// Blocks on stage `stage` of `stages` where a run does not give them: so that the stage with the most work, which sets
/// the pace of a pipeline, has as little as possible. Work is counted in model FLOPs at the model's longest sequence;
/// the last stage also has the output layer, which in a small model is worth several blocks, and takes fewer of them
/// for it. Earlier stages take what is left over, and of splits that are equally good it is the most even one. Every
/// stage has a block.
///
/// `1 ≤ stages ≤ model.layers` and `stage < stages`, as [`ModelSpec::check_layout`] has it.
pub fn stage_blocks(model: &ModelSpec, stages: usize, stage: usize) -> usize {
    let head = model.head_flops_per_token() / model.mean_block_flops_per_token(model.seq_max);
    blocks_by_work((model.layers, head), stages, stage)
}

/// [`stage_blocks`] of so many blocks and a head that is worth so many.
fn blocks_by_work((layers, head): (usize, f64), stages: usize, stage: usize) -> usize {
    let mut last = layers / stages;
    if stages == 1 {
        return last;
    }
    let most = |last: usize| {
        let others = (layers - last).div_ceil(stages - 1);
        (others as f64).max(last as f64 + head)
    };
    while last > 1 && most(last - 1) < most(last) {
        last -= 1;
    }
    if stage == stages - 1 {
        return last;
    }
    let (each, over) = ((layers - last) / (stages - 1), (layers - last) % (stages - 1));
    each + usize::from(stage < over)
}

/// Splits a model's blocks over the stages of a pipeline, by [`stage_blocks`] or as `given`; blocks that differ count
/// as their mean. Returns the pieces of each stage: the first also has the embedding, the last the output layer.
///
/// # Errors
/// More stages than layers, or `given` layer counts that do not add up.
pub fn split_layers(
    model: &ModelParts,
    stages: usize,
    given: Option<&[usize]>,
) -> Result<Vec<StagePieces>, SpecError> {
    model.spec.check_layout(1, stages)?;
    let layers = model.spec.layers;
    let flops = |is_head: bool| {
        let parts = model.pieces.iter().filter(|part| (part.piece == Piece::Head) == is_head);
        parts.map(|part| part.flops_per_token).sum::<f64>()
    };
    let head = flops(true) / (flops(false) / layers as f64);
    let by_work = || (0..stages).map(|i| blocks_by_work((layers, head), stages, i)).collect();
    let counts = given.map_or_else(by_work, <[usize]>::to_vec);
    let sum: usize = counts.iter().sum();
    if counts.len() != stages || sum != layers || counts.contains(&0) {
        let rule = format!(
            "layers per stage {counts:?} must be {stages} positive numbers that add up to {layers}"
        );
        let nearest = format!("{:?}", by_work());
        return Err(SpecError::Layout { axis: "pp", degree: stages, rule, nearest });
    }
    let mut next = 0;
    let mut split = Vec::new();
    for (stage, count) in counts.into_iter().enumerate() {
        let pieces = (next..next + count).map(Piece::Block).collect();
        split.push(StagePieces { stage, pieces });
        next += count;
    }
    split[0].pieces.insert(0, Piece::Embedding);
    split[stages - 1].pieces.push(Piece::Head);
    Ok(split)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OwnBody, OwnPiece, Pattern, presets};
    use trine_mesh::Axis;

    fn request<'a>(model: &'a ModelParts, stages: &'a [StagePieces], i: usize) -> RankRequest<'a> {
        RankRequest {
            degrees: Degrees { dp: 2, tp: model.tp, ..Degrees::SERIAL },
            tp_index: i,
            summed: AxisSet::DP,
            bucket_elements: 1 << 16,
            ..RankRequest::serial(model, stages)
        }
    }

    #[test]
    fn stages_are_split_by_the_work_of_their_blocks_own_ones_included() {
        let model = ModelSpec { layers: 8, ..presets::find("gpt2-124m").unwrap().model };
        let counts = |parts: &ModelParts, stages| -> Vec<usize> {
            let split = split_layers(parts, stages, None).unwrap();
            let is_block = |piece: &&Piece| matches!(piece, Piece::Block(_));
            split.iter().map(|stage| stage.pieces.iter().filter(is_block).count()).collect()
        };
        let zoo = model.parts(1).unwrap();
        for stages in 1..=8 {
            let each: Vec<usize> =
                (0..stages).map(|stage| stage_blocks(&model, stages, stage)).collect();
            assert_eq!(counts(&zoo, stages), each);
        }
        let block = model.block_flops_per_token(0, model.seq_max);
        // The head is worth two blocks. Beside an own block that makes the mean twice as large it is worth one.
        for (times, two, four) in
            [(0.0, [5, 3], [3, 2, 2, 1]), (1.0, [5, 3], [3, 2, 2, 1]), (9.0, [4, 4], [2, 2, 2, 2])]
        {
            let mut parts = zoo.clone();
            parts.pieces.last_mut().unwrap().flops_per_token = 2.0 * block;
            let body = OwnBody { name: "own".into(), ..OwnBody::default() };
            let own = OwnPiece { params: vec![], body, flops_per_token: times * block };
            parts.replace(2, own).unwrap();
            assert_eq!(counts(&parts, 2), two, "{times}");
            assert_eq!(counts(&parts, 4), four, "{times}");
        }
    }

    #[test]
    fn every_global_element_is_owned_exactly_once() {
        let mut model = presets::find("llama3-8b").unwrap().model;
        (model.hidden, model.layers, model.ffn, model.vocab) = (64, 3, 96, 1009);
        (model.heads, model.kv_heads, model.head_dim) = (8, 2, 8);
        let mut cases = 0;
        for tp in [1, 2, 4, 8] {
            for pp in [1, 2, 3] {
                let mut owned = 0;
                let parts = model.parts(tp).unwrap();
                for stage in split_layers(&parts, pp, None).unwrap() {
                    for i in 0..tp {
                        let stages = [stage.clone()];
                        let layout = RankLayout::new(&request(&parts, &stages, i)).unwrap();
                        let mine = layout.params.iter().filter(|param| param.owner);
                        owned += mine.map(LocalParam::len).sum::<usize>();
                    }
                }
                let padding = (1024 - 1009) * 64 * 2;
                assert_eq!(owned as u64, model.param_count() + padding, "tp {tp} pp {pp}");
                cases += 1;
            }
        }
        assert_eq!(cases, 12);
    }

    #[test]
    fn buckets_are_padded_fused_parameters_touch_and_spans_do_not_overlap() {
        let model = presets::find("gpt2-124m").unwrap().model.parts(2).unwrap();
        let stages = [StagePieces::whole(&model)];
        let layout = RankLayout::new(&request(&model, &stages, 1)).unwrap();
        assert_eq!(layout.buckets.len(), 14, "one a piece at this bucket size");
        for bucket in &layout.buckets {
            assert!(bucket.len.is_multiple_of(32));
            let mut end = 0;
            for &index in &bucket.params {
                let param = &layout.params[index];
                assert!(param.offset >= end && param.offset - end < ALIGN_ELEMENTS);
                assert!(!param.spec.fused || param.offset == end, "{}", param.spec.name);
                end = param.span().end;
            }
            assert!(end <= bucket.len);
        }
        assert!(layout.find("head.output.weight").is_none(), "the embedding serves");
    }

    #[test]
    fn every_bucket_says_its_axes_and_has_equal_parts_over_those_it_is_summed_over() {
        let model = presets::find("gpt2-124m").unwrap().model.parts(2).unwrap();
        let stages = [StagePieces::whole(&model)];
        let summed = AxisSet::of(&[Axis::Dp, Axis::Cp]);
        let degrees = Degrees { dp: 3, cp: 5, tp: 2, ..Degrees::SERIAL };
        let shared = Shares::zero(1, summed);
        let request = RankRequest { degrees, summed, shared, ..request(&model, &stages, 0) };
        let layout = RankLayout::new(&request).unwrap();
        for bucket in &layout.buckets {
            assert_eq!((bucket.summed, bucket.shared, bucket.repeated()), (summed, shared, summed));
            assert!(bucket.len.is_multiple_of(3 * 5 * ALIGN_ELEMENTS), "{}", bucket.len);
        }
        // Weights shared out over one of the axes repeat on the other alone.
        let parted = Bucket { shared: Shares::zero(3, AxisSet::DP), ..layout.buckets[0].clone() };
        assert_eq!(parted.repeated(), AxisSet::of(&[Axis::Cp]));
    }

    #[test]
    fn tied_copies_get_buckets_of_their_own() {
        let model = presets::find("gpt2-124m").unwrap().model.parts(1).unwrap();
        let stages = split_layers(&model, 2, None).unwrap();
        for (stage, name) in [(0, "embedding.token"), (1, "head.output.weight")] {
            let mut request = request(&model, &stages[stage..=stage], 0);
            request.tied_apart = true;
            let layout = RankLayout::new(&request).unwrap();
            let last = layout.buckets.last().unwrap();
            assert!(last.tied && last.pieces.is_empty());
            let param = &layout.params[last.params[0]];
            assert_eq!((param.spec.name.as_str(), param.owner), (name, stage == 0));
        }
    }

    /// A model of which some parameters are frozen, on two stages of one rank each.
    fn partly_frozen(tp: usize, patterns: &[&str]) -> (ModelParts, Vec<StagePieces>) {
        let mut model = presets::find("gpt2-124m").unwrap().model.parts(tp).unwrap();
        let patterns: Vec<Pattern> = patterns.iter().map(|text| Pattern::new(*text)).collect();
        model.freeze(&patterns).unwrap();
        let stages = split_layers(&model, 2, None).unwrap();
        (model, stages)
    }

    #[test]
    fn frozen_parameters_lie_in_buckets_of_their_own_behind_those_of_their_stage() {
        let (model, stages) =
            partly_frozen(2, &["*.attention.*", "block.1.norm2.*", "head.norm.*"]);
        let whole = model.spec.parts(2).unwrap();
        for bucket_elements in [1, 1 << 16] {
            let of = |model: &ModelParts, held: &[StagePieces]| {
                let summed = AxisSet::of(&[Axis::Dp]);
                let shared = Shares::zero(1, summed);
                let request =
                    RankRequest { summed, shared, bucket_elements, ..request(model, held, 1) };
                RankLayout::new(&request).unwrap()
            };
            let (layout, trained) = (of(&model, &stages), of(&whole, &stages));
            // The same parameters, each once, in a bucket that says whether it is trained.
            let names = |layout: &RankLayout| {
                let mut names: Vec<(String, Vec<Range<usize>>)> = layout
                    .params
                    .iter()
                    .map(|param| (param.spec.name.clone(), param.ranges.clone()))
                    .collect();
                names.sort_by(|a, b| a.0.cmp(&b.0));
                names
            };
            assert_eq!(names(&layout), names(&trained));
            for (index, bucket) in layout.buckets.iter().enumerate() {
                let mut end = 0;
                for param in bucket.params.iter().map(|param| &layout.params[*param]) {
                    assert_eq!((param.bucket, param.spec.trainable), (index, bucket.trainable));
                    assert!(!param.spec.fused || param.offset == end, "{}", param.spec.name);
                    end = param.span().end;
                }
                assert!(end <= bucket.len, "{index}");
                let later = &layout.buckets[index + 1..];
                let behind =
                    later.iter().filter(|later| later.stage == bucket.stage && later.trainable);
                // What is frozen is not divided, filled by no segment, and only weights are held of it.
                if !bucket.trainable {
                    assert_eq!((behind.count(), bucket.pieces.len(), bucket.tied), (0, 0, false));
                    assert_eq!(bucket.shared, Shares::NONE);
                    assert_eq!(bucket.summed, AxisSet::DP, "replicas hold the same");
                }
            }
            // Segments of the backward pass are those of buckets that are trained, without a gap.
            for stage in 0..2 {
                let segments: Vec<usize> =
                    layout.segments_of(stage).map(|bucket| bucket.segment).collect();
                assert_eq!(segments, (0..segments.len()).collect::<Vec<_>>());
                let pieces = |layout: &RankLayout| -> Vec<Piece> {
                    layout.segments_of(stage).flat_map(|bucket| bucket.pieces.clone()).collect()
                };
                assert_eq!(pieces(&layout), pieces(&trained));
            }
            let frozen = layout.buckets.iter().filter(|bucket| !bucket.trainable).count();
            // Every piece's queries, keys and values, their outputs, weights and biases: four runs a block.
            let runs = 12 * 4 + 2;
            assert!(if bucket_elements == 1 { frozen == runs } else { frozen < runs }, "{frozen}");
        }
    }

    #[test]
    fn copies_of_a_frozen_embedding_are_found_and_are_not_summed() {
        for (patterns, tied) in [(&["block.0.*"], true), (&["embedding.token"], false)] {
            let (model, stages) = partly_frozen(1, patterns);
            for (stage, name) in [(0, "embedding.token"), (1, "head.output.weight")] {
                let request =
                    RankRequest { tied_apart: true, ..request(&model, &stages[stage..=stage], 0) };
                let layout = RankLayout::new(&request).unwrap();
                let copies: Vec<usize> = layout.tied_copies().collect();
                let &[copy] = &copies[..] else { panic!("{copies:?}") };
                assert_eq!(layout.params[copy].spec.name, name);
                let bucket = &layout.buckets[layout.params[copy].bucket];
                assert_eq!((bucket.tied, bucket.trainable), (tied, tied));
            }
        }
    }

    #[test]
    fn a_rank_of_several_stages_holds_what_ranks_of_one_each_would() {
        let model = presets::find("gpt2-124m").unwrap().model.parts(2).unwrap();
        let stages = split_layers(&model, 4, None).unwrap();
        let of = |held: &[StagePieces]| {
            let request = RankRequest { tied_apart: true, ..request(&model, held, 1) };
            RankLayout::new(&request).unwrap()
        };
        // As a V: the first rank has both ends, and both copies of the embedding.
        let both = of(&[stages[0].clone(), stages[3].clone()]);
        let apart = [of(&stages[..1]), of(&stages[3..])];
        let alone: Vec<&Bucket> = apart.iter().flat_map(|layout| &layout.buckets).collect();
        assert_eq!(both.buckets.len(), alone.len());
        let mut tied = 0;
        for (index, (bucket, alone)) in both.buckets.iter().zip(alone).enumerate() {
            assert_eq!((bucket.len, &bucket.pieces), (alone.len, &alone.pieces));
            assert_eq!(both.bucket(bucket.stage, bucket.segment), Some(index));
            tied += usize::from(bucket.tied);
        }
        assert_eq!((tied, both.bucket(1, 0), both.bucket(0, 99)), (2, None, None));
        assert_eq!(both.segments_of(0).count(), apart[0].buckets.len());
        let has = |piece| both.stages.iter().any(|stage| stage.pieces.contains(&piece));
        assert!(has(Piece::Head) && has(Piece::Embedding) && !has(Piece::Block(5)));
    }

    /// Every way to write `sum` as `parts` positive numbers.
    fn splits(sum: usize, parts: usize) -> Vec<Vec<usize>> {
        if parts == 1 {
            return if sum > 0 { vec![vec![sum]] } else { vec![] };
        }
        let behind = |first: usize| {
            splits(sum - first, parts - 1).into_iter().map(move |rest| [vec![first], rest].concat())
        };
        (1..sum).flat_map(behind).collect()
    }

    #[test]
    fn no_split_has_less_work_on_its_slowest_stage() {
        let mut model = presets::find("gpt2-124m").unwrap().model;
        let (mut cases, mut uneven) = (0, 0);
        for vocab in [65, 5000, 20_000, 50_257, 200_000] {
            for layers in 1..=10 {
                (model.vocab, model.layers) = (vocab, layers);
                let block = model.block_flops_per_token(0, model.seq_max);
                let most = |blocks: &[usize]| {
                    let (last, others) = blocks.split_last().unwrap();
                    let head = *last as f64 * block + model.head_flops_per_token();
                    others.iter().map(|count| *count as f64 * block).fold(head, f64::max)
                };
                for pp in 1..=layers.min(5) {
                    let ours: Vec<usize> = (0..pp).map(|s| stage_blocks(&model, pp, s)).collect();
                    let all = splits(layers, pp);
                    assert!(all.contains(&ours), "{ours:?}");
                    let least = all.iter().map(|split| most(split)).fold(f64::MAX, f64::min);
                    assert_eq!(most(&ours), least, "vocab {vocab}: {ours:?}");
                    // Of several that are as good, the last stage has as many blocks as in any, up to its even share.
                    let best = all.iter().filter(|split| most(split) == least);
                    let last = best.map(|split| split[pp - 1].min(layers / pp)).max();
                    assert_eq!(last, Some(ours[pp - 1]), "vocab {vocab}: {ours:?}");
                    cases += 1;
                    uneven += usize::from(ours[0] > ours[pp - 1] + 1);
                }
            }
        }
        assert!(cases == 200 && uneven > 40, "{cases} cases, {uneven} uneven");
    }

    #[test]
    fn the_output_layer_counts_as_blocks_and_as_none_where_it_is_small() {
        let blocks = |name: &str, pp: usize| -> Vec<usize> {
            let model = presets::find(name).unwrap().model;
            (0..pp).map(|stage| stage_blocks(&model, pp, stage)).collect()
        };
        // 4.9 blocks at 1,024 tokens.
        assert_eq!(blocks("gpt2-124m", 2), [8, 4]);
        assert_eq!(blocks("gpt2-124m", 4), [4, 4, 3, 1]);
        // 2.1 blocks of Llama 3 8B; a third of one of the 175B model.
        assert_eq!(blocks("llama3-8b", 4), [9, 9, 8, 6]);
        assert_eq!(blocks("frontier-175b", 16), [6; 16]);
        assert_eq!(blocks("frontier-1t", 64), [2; 64]);
    }

    #[test]
    fn layers_split_by_work_or_as_given() {
        let mut model = presets::find("gpt2-124m").unwrap().model;
        model.layers = 5;
        let model = model.parts(1).unwrap();
        let blocks = |stages: Vec<StagePieces>| -> Vec<usize> {
            let count = |stage: &StagePieces| {
                stage.pieces.iter().filter(|piece| matches!(piece, Piece::Block(_))).count()
            };
            stages.iter().map(count).collect()
        };
        assert_eq!(blocks(split_layers(&model, 4, None).unwrap()), [2, 1, 1, 1]);
        assert_eq!(blocks(split_layers(&model, 2, Some(&[1, 4])).unwrap()), [1, 4]);
        assert!(split_layers(&model, 2, Some(&[1, 3])).is_err());
        assert!(split_layers(&model, 6, None).is_err());
    }
}
