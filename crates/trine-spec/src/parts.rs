//! A model as a list of pieces: what the crates that reduce, update, save and plan need to know of it, whatever family
//! it is of, and whether the zoo has its pieces or not.

use crate::check::PARAMETERS_MAX;
use crate::hf::{self, HfTensor};
use crate::{
    Block, Branch, Features, Init, ModelSpec, Norm, ParamSpec, Pattern, Piece, SavedTensor,
    SpecError,
};
use std::collections::HashSet;
use trine_mesh::{AxisSet, shard};

/// A model's pieces, as `tp` ranks share them.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelParts {
    /// What the pieces were made from, but for those of one's own.
    pub spec: ModelSpec,
    /// Tensor-parallel degree: the vocabulary is padded for it.
    pub tp: usize,
    /// In forward order. The first takes token ids, the last gives the loss.
    pub pieces: Vec<PieceParts>,
}

/// One piece, as everybody but its layers knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct PieceParts {
    /// Which it is.
    pub piece: Piece,
    /// Its parameters in bucket order. A tied output layer is listed as a copy of the token embedding.
    pub params: Vec<ParamSpec>,
    /// What its passes consist of.
    pub body: Body,
    /// Model FLOPs of a token's forward and backward pass in a sequence of the model's greatest length.
    pub flops_per_token: f64,
    /// How its tensors are called and stored in a checkpoint.
    pub outside: Vec<HfTensor>,
}

/// What a piece's passes consist of.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Token ids to the residual stream.
    Embedding,
    /// Branches beside the residual stream.
    Block(Block),
    /// The stream to the loss: a norm, the output layer, cross-entropy.
    Head(HeadBody),
    /// A piece that the zoo does not have.
    Own(OwnBody),
}

/// The end of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadBody {
    /// Its norm.
    pub norm: Norm,
    /// What it saves is all but these, which are computed again before its backward pass.
    pub dropped: Vec<HeadTensor>,
}

/// What the end of a model can drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeadTensor {
    /// Statistics of its norm.
    Stats,
    /// What the output layer reads.
    Input,
    /// The gradient of the logits, which takes their place.
    Logits,
}

impl HeadTensor {
    /// All of them, in forward order.
    pub const ALL: [Self; 3] = [Self::Stats, Self::Input, Self::Logits];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stats => "head.norm.stats",
            Self::Input => "head.input",
            Self::Logits => "head.logits",
        }
    }
}

impl HeadBody {
    /// What runs again before the backward pass: the norm, and the output layer with its loss.
    pub fn again(&self) -> [bool; 2] {
        let drops = |tensor: HeadTensor| self.dropped.contains(&tensor);
        [drops(HeadTensor::Stats) || drops(HeadTensor::Input), drops(HeadTensor::Logits)]
    }
}

/// The passes of a piece of one's own, as far as memory is concerned. A moment is the list of tensors that are alive
/// then beside what is kept, and beside the stream or gradient that has entered. What a pass takes outside of the pool
/// of activations is in no plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnBody {
    /// What kind of piece it is: it goes into checkpoints and messages.
    pub name: String,
    /// Whether the stream that enters is kept for the backward pass.
    pub keeps_input: bool,
    /// Kept for the backward pass beside it.
    pub saved: Vec<SavedTensor>,
    /// The moments of the forward pass that may be its worst, what leaves included.
    pub forward: Vec<Vec<SavedTensor>>,
    /// Those of the backward pass.
    pub backward: Vec<Vec<SavedTensor>>,
    /// Left for the weight gradients.
    pub work: Vec<SavedTensor>,
    /// Whether it keeps its input alone and runs forward again before its backward pass: set by
    /// [`ModelParts::recompute`].
    pub again: bool,
}

/// Which products of a branch are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trains {
    /// The columns, which are one matrix.
    pub columns: bool,
    /// The row.
    pub row: bool,
}

/// A piece of one's own: it takes the place of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnPiece {
    /// Its parameters in bucket order. In a checkpoint they have these names.
    pub params: Vec<ParamSpec>,
    /// What its passes keep.
    pub body: OwnBody,
    /// Model FLOPs of a token's forward and backward pass.
    pub flops_per_token: f64,
}

impl ModelSpec {
    /// The model as `tp` ranks share it.
    ///
    /// # Errors
    /// A layer that they cannot share.
    pub fn parts(&self, tp: usize) -> Result<ModelParts, SpecError> {
        self.check_layout(tp, 1)?;
        let pieces = self.pieces().map(|piece| self.part(piece, tp)).collect();
        Ok(ModelParts { spec: self.clone(), tp, pieces })
    }

    /// One piece as `tp` ranks share it.
    pub fn part(&self, piece: Piece, tp: usize) -> PieceParts {
        PieceParts {
            piece,
            params: self.params(piece, tp),
            body: match piece {
                Piece::Embedding => Body::Embedding,
                Piece::Block(index) => Body::Block(self.block(index)),
                Piece::Head => Body::Head(HeadBody { norm: self.head_norm(), dropped: Vec::new() }),
            },
            flops_per_token: match piece {
                Piece::Embedding => 0.0,
                Piece::Block(index) => self.block_flops_per_token(index, self.seq_max),
                Piece::Head => self.head_flops_per_token(),
            },
            outside: hf::tensors(self, piece),
        }
    }
}

impl ModelParts {
    /// Puts a piece of one's own in the place of block `index`.
    ///
    /// # Errors
    /// No such block; a piece without a name, or with more elements than a model may have; a parameter without a name
    /// or with one that another parameter or tensor of a checkpoint has, that is neither a vector nor a matrix, has no
    /// elements, or a placement that its ranks cannot have.
    pub fn replace(&mut self, index: usize, own: OwnPiece) -> Result<(), SpecError> {
        let piece = Piece::Block(index);
        let refused = |what: String| SpecError::OwnPiece { piece, what };
        self.check_own(piece, &own).map_err(refused)?;
        let place = self.pieces.iter_mut().find(|part| part.piece == piece);
        *place.ok_or_else(|| refused("the model has no such block".into()))? = own.at(index);
        Ok(())
    }

    /// What is wrong with a piece of one's own beside the others, if anything is.
    fn check_own(&self, piece: Piece, own: &OwnPiece) -> Result<(), String> {
        if own.body.name.trim().is_empty() {
            return Err("it has no name".into());
        }
        let others = || self.pieces.iter().filter(|part| part.piece != piece);
        let params = others().flat_map(|part| &part.params).map(|param| param.name.as_str());
        let tensors = others().flat_map(|part| &part.outside).map(|tensor| tensor.name.as_str());
        let mut names: HashSet<&str> = params.chain(tensors).collect();
        names.insert(hf::METADATA);
        let mut elements = 0_u128;
        for (number, param) in own.params.iter().enumerate() {
            if param.name.trim().is_empty() {
                return Err(format!("parameter {number} has no name"));
            }
            if !names.insert(&param.name) {
                return Err(format!(
                    "another parameter or tensor is called \"{}\" too",
                    param.name
                ));
            }
            self.check_own_param(param).map_err(|what| format!("\"{}\" {what}", param.name))?;
            elements += param.shape.iter().map(|len| *len as u128).product::<u128>();
        }
        if elements > PARAMETERS_MAX {
            return Err(format!("it has {elements} elements, and a model has at most 2⁴²"));
        }
        if !(own.flops_per_token >= 0.0 && own.flops_per_token.is_finite()) {
            return Err(format!("{} FLOPs of a token", own.flops_per_token));
        }
        Ok(())
    }

    /// What is wrong with a parameter of a piece of one's own by itself.
    fn check_own_param(&self, param: &ParamSpec) -> Result<(), String> {
        let (shape, placed) = (&param.shape, &param.placement);
        if !(1..=2).contains(&shape.len()) {
            return Err(format!("of shape {shape:?} is no vector or matrix"));
        }
        if shape.contains(&0) || !(1..=shape[0]).contains(&param.valid_rows) {
            return Err(format!("of shape {shape:?} has {} rows to train", param.valid_rows));
        }
        if placed.len() != shape.len() {
            return Err(format!("of shape {shape:?} has {} placements", placed.len()));
        }
        if param.tied_to.is_some() {
            return Err("is a tied copy, which the head alone may have".into());
        }
        if let Init::Normal { std } = param.init
            && !std.is_finite()
        {
            return Err(format!("starts with a standard deviation of {std}"));
        }
        let split: Vec<usize> =
            (0..placed.len()).filter(|dim| !placed[*dim].axes.is_empty()).collect();
        match split[..] {
            [] => Ok(()),
            [dim] if placed[dim].axes == AxisSet::TP => {
                let parts = shard(shape[dim], placed[dim].units, self.tp, 0);
                parts.map(drop).map_err(|error| format!("of shape {shape:?}: {error}"))
            }
            _ => Err("is split over more than tensor parallelism in one dimension".into()),
        }
    }

    /// Freezes the parameters that one of the patterns names. They keep their weights; they have no gradient and no
    /// state of an optimizer. A tied output layer follows its embedding.
    ///
    /// # Errors
    /// A pattern that names nothing, a part of what is used as one matrix ([`ParamSpec::fused`]), or everything.
    pub fn freeze(&mut self, patterns: &[Pattern]) -> Result<(), SpecError> {
        let names = |pattern: &Pattern, spec: &ParamSpec| pattern.fits(spec.known_as());
        let params = || self.pieces.iter().flat_map(|part| &part.params);
        let unmatched = |pattern: &&Pattern| !params().any(|spec| names(pattern, spec));
        if let Some(pattern) = patterns.iter().find(unmatched) {
            let rule = format!("\"{pattern}\" names no parameter of the model");
            return Err(SpecError::Frozen { rule, nearest: "a parameter's name".into() });
        }
        for spec in self.pieces.iter_mut().flat_map(|part| &mut part.params) {
            spec.trainable = !patterns.iter().any(|pattern| names(pattern, spec));
        }
        self.check_frozen()
    }

    /// Refuses what no layer can train in parts, and a model of which nothing is trained.
    fn check_frozen(&self) -> Result<(), SpecError> {
        let mut params = self.pieces.iter().flat_map(|part| &part.params);
        if !params.any(|spec| spec.trainable) {
            let rule = "nothing is left to train".into();
            return Err(SpecError::Frozen { rule, nearest: "\"embedding.*\"".into() });
        }
        for part in &self.pieces {
            let one_matrix = part.params.chunk_by(|_, next| next.fused);
            let is_parted =
                |run: &&[ParamSpec]| run.iter().any(|s| s.trainable != run[0].trainable);
            if let Some(run) = one_matrix.into_iter().find(is_parted) {
                let names: Vec<String> =
                    run.iter().map(|spec| format!("\"{}\"", spec.name)).collect();
                let nearest = names.join(", ");
                let rule = format!("{nearest} lie together and are frozen together");
                return Err(SpecError::Frozen { rule, nearest });
            }
        }
        Ok(())
    }

    /// A piece.
    pub fn get(&self, piece: Piece) -> Option<&PieceParts> {
        self.pieces.iter().find(|part| part.piece == piece)
    }

    /// The names of all parameters in the model's order. A tied copy has none of its own.
    pub fn names(&self) -> Vec<String> {
        let params = self.pieces.iter().flat_map(|part| &part.params);
        params.filter(|param| param.tied_to.is_none()).map(|param| param.name.clone()).collect()
    }

    /// The pieces that the zoo does not have, with the name of their kind.
    pub fn own(&self) -> impl Iterator<Item = (&PieceParts, &str)> {
        self.pieces.iter().filter_map(|part| Some((part, part.own_name()?)))
    }
}

impl OwnPiece {
    /// The piece as block `index` of a model.
    pub fn at(self, index: usize) -> PieceParts {
        let Self { params, body, flops_per_token } = self;
        let outside = params.iter().map(|param| HfTensor::of(&param.name)).collect();
        let piece = Piece::Block(index);
        PieceParts { piece, params, body: Body::Own(body), flops_per_token, outside }
    }
}

impl PieceParts {
    /// Whether it has a parameter of this name that is trained.
    pub fn trains(&self, name: &str) -> bool {
        self.params.iter().any(|spec| spec.trainable && spec.name == name)
    }

    /// Which products of one of its branches are trained.
    pub fn trains_of(&self, branch: &Branch) -> Trains {
        let Piece::Block(index) = self.piece else { return Trains { columns: false, row: false } };
        let is_trained = |part: &Features| self.trains(&branch.weight_name(index, part));
        Trains { columns: branch.columns.iter().any(is_trained), row: is_trained(&branch.row) }
    }

    /// Whether it is a piece of one's own that keeps its input alone. Those of the zoo say by themselves what they
    /// drop.
    pub fn runs_again(&self) -> bool {
        matches!(&self.body, Body::Own(own) if own.again)
    }

    /// What kind of piece of one's own it is, if it is one.
    pub fn own_name(&self) -> Option<&str> {
        match &self.body {
            Body::Embedding | Body::Block(_) | Body::Head(_) => None,
            Body::Own(own) => Some(&own.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presets;

    fn own(name: &str, params: Vec<ParamSpec>) -> OwnPiece {
        let body = OwnBody { name: name.into(), keeps_input: true, ..OwnBody::default() };
        OwnPiece { params, body, flops_per_token: 12.0 }
    }

    #[test]
    fn the_parts_of_a_model_are_its_parameters_and_flops() {
        for name in ["gpt2-124m", "llama3-8b", "mistral-7b", "pythia-160m", "gemma2-2b"] {
            let model = presets::find(name).unwrap().model;
            let parts = model.parts(2).unwrap();
            assert_eq!(parts.pieces.len(), model.layers + 2);
            let specs = model.pieces().flat_map(|piece| model.params(piece, 2));
            let names: Vec<String> =
                specs.filter(|spec| spec.tied_to.is_none()).map(|spec| spec.name).collect();
            assert_eq!(parts.names(), names);
            let flops: f64 = parts.pieces.iter().map(|part| part.flops_per_token).sum();
            assert!((flops / model.flops_per_token(model.seq_max) - 1.0).abs() < 1e-12);
            assert_eq!(parts.own().count(), 0);
        }
        let model = presets::find("gpt2-124m").unwrap().model;
        assert!(model.parts(13).unwrap_err().to_string().contains("nearest valid: tp 12"));
    }

    #[test]
    fn every_piece_has_the_parameters_of_its_spec_each_in_one_tensor_outside() {
        let mut compared = 0;
        for name in ["gpt2-124m", "llama3-8b", "frontier-22b"] {
            let model = presets::find(name).unwrap().model;
            for tp in [1, 2, 4] {
                let parts = model.parts(tp).unwrap();
                for (part, piece) in parts.pieces.iter().zip(model.pieces()) {
                    assert_eq!(part.piece, piece);
                    assert_eq!(part.params, model.params(piece, tp), "{name} tp {tp} {piece}");
                    let mut outside: Vec<&String> =
                        part.outside.iter().flat_map(|tensor| &tensor.parts).collect();
                    let own = part.params.iter().filter(|param| param.tied_to.is_none());
                    let mut inside: Vec<&String> = own.map(|param| &param.name).collect();
                    outside.sort();
                    inside.sort();
                    assert_eq!(outside, inside, "{name} {piece}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 3 * (14 + 34 + 50));
    }

    #[test]
    fn a_piece_of_ones_own_takes_the_place_of_a_block() {
        let mut parts = presets::find("gpt2-124m").unwrap().model.parts(1).unwrap();
        let before = parts.names().len();
        let mix = ParamSpec::new("block.1.mix", &[4, 768], Init::Zeros);
        parts.replace(1, own("convolution", vec![mix])).unwrap();
        assert_eq!(parts.names().len(), before - 16 + 1);
        let own: Vec<(Piece, &str)> = parts.own().map(|(part, name)| (part.piece, name)).collect();
        assert_eq!(own, [(Piece::Block(1), "convolution")]);
        let outside = &parts.get(Piece::Block(1)).unwrap().outside;
        assert_eq!(outside[0].name, "block.1.mix");
    }

    #[test]
    fn what_is_frozen_is_what_patterns_name_and_a_tied_copy_follows() {
        let mut parts = presets::find("gpt2-124m").unwrap().model.parts(1).unwrap();
        let frozen = |parts: &ModelParts| -> Vec<String> {
            let params = parts.pieces.iter().flat_map(|part| &part.params);
            params.filter(|spec| !spec.trainable).map(|spec| spec.name.clone()).collect()
        };
        let mut freeze = |patterns: &[&str]| {
            let patterns: Vec<Pattern> = patterns.iter().map(|text| Pattern::new(*text)).collect();
            parts.freeze(&patterns).map(|()| frozen(&parts)).map_err(|error| error.to_string())
        };
        assert_eq!(
            freeze(&["embedding.token"]).unwrap(),
            ["embedding.token", "head.output.weight"]
        );
        // The copy has no name of its own, and what was frozen before is trained again.
        assert_eq!(freeze(&["head.*"]).unwrap(), ["head.norm.weight", "head.norm.bias"]);
        assert_eq!(freeze(&["block.11.mlp.*"]).unwrap().len(), 4);
        assert_eq!(freeze(&["block.*", "embedding.*"]).unwrap().len(), 12 * 16 + 3);
        assert_eq!(freeze(&[]).unwrap(), [""; 0]);
        for (patterns, says) in [
            (&["blok.*"][..], "\"blok.*\" names no parameter of the model"),
            (&["head.*", "head.output.weight"], "\"head.output.weight\" names no parameter"),
            (&["*"], "nothing is left to train; nearest valid: \"embedding.*\""),
            (
                &["*.attention.q.weight"],
                "lie together and are frozen together; nearest valid: \"block.0.attention.q.weight\", \"block.0.attention.k.weight\", \"block.0.attention.v.weight\"",
            ),
            (&["head.norm.bias"], "nearest valid: \"head.norm.weight\", \"head.norm.bias\""),
        ] {
            let text = freeze(patterns).unwrap_err();
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn an_own_piece_that_lacks_something_is_told_what() {
        let parts = presets::find("gpt2-124m").unwrap().model.parts(1).unwrap();
        let param = |name: &str| ParamSpec::new(name, &[4], Init::Ones);
        let mut unplaced = param("gain");
        unplaced.placement.clear();
        let giant = ParamSpec::new("w", &[1 << 40, 1 << 40], Init::Ones);
        let blank = ParamSpec::new("w", &[4], Init::Normal { std: f64::NAN });
        let matrix = ParamSpec::new("w", &[6, 4], Init::Ones);
        let refused =
            |index, own: OwnPiece| parts.clone().replace(index, own).unwrap_err().to_string();
        for (index, own, says) in [
            (12, own("a", vec![]), "block 12: the model has no such block"),
            (1, own(" ", vec![]), "block 1: it has no name"),
            (1, own("a", vec![param("gain"), param("")]), "parameter 1 has no name"),
            (1, own("a", vec![param("gain"), param("gain")]), "called \"gain\" too"),
            (1, own("a", vec![param("embedding.token")]), "called \"embedding.token\" too"),
            (1, own("a", vec![ParamSpec::new("w", &[3, 0], Init::Ones)]), "\"w\" of shape [3, 0]"),
            (1, own("a", vec![ParamSpec::new("w", &[2, 2, 2], Init::Ones)]), "no vector or matrix"),
            (1, own("a", vec![ParamSpec { valid_rows: 0, ..param("w") }]), "has 0 rows to train"),
            (1, own("a", vec![unplaced]), "has 0 placements"),
            (1, own("a", vec![param("transformer.wte.weight")]), "or tensor is called"),
            (1, own("a", vec![param("__metadata__")]), "or tensor is called"),
            (1, own("a", vec![blank]), "\"w\" starts with a standard deviation of NaN"),
            (1, own("a", vec![giant]), "and a model has at most 2⁴²"),
            (1, own("a", vec![param("gain").split(0, 0)]), "\"gain\" of shape [4]: "),
            (1, own("a", vec![matrix.clone().split(0, 4)]), "\"w\" of shape [6, 4]: "),
            (1, own("a", vec![matrix.split(0, 3).split(1, 4)]), "in one dimension"),
            (1, OwnPiece { flops_per_token: f64::NAN, ..own("a", vec![]) }, "NaN FLOPs"),
        ] {
            let text = refused(index, own);
            assert!(text.contains(says), "{text}");
        }
    }
}
