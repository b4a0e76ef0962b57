//! What of the activations is computed again instead of kept.

use crate::presets::nearest;
use crate::{
    Block, Body, BranchTensor, HeadBody, HeadTensor, ModelParts, OwnBody, Pattern, Piece, SpecError,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What of the activations is computed again before the backward pass that needs it, instead of kept (Chen et al.,
/// 1604.06174; by parts: Korthikanti et al., 2205.05198).
///
/// In a file it is `false`, `true`, one of [`Recompute::WORDS`], the number of [`Recompute::Blocks`], or a list of
/// names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// Everything but the input of a block, in every `every`-th block from the first.
    Blocks {
        /// 1 means all blocks.
        every: usize,
    },
    /// The tensors that these fit, in all pieces: names of saved tensors, or of several together, such as `norms`. A
    /// piece of one's own is computed again whole if the name of its kind or one of its tensors fits.
    Tensors(Vec<Pattern>),
}

impl Recompute {
    /// All blocks, whole.
    pub const FULL: Self = Self::Blocks { every: 1 };

    /// Words for the usual ways, as `trine plan` has them too: nothing, [`Recompute::ELEMENTWISE`], every second block,
    /// all blocks.
    pub const WORDS: [&'static str; 4] = ["none", "elementwise", "half", "full"];

    /// What costs no product and no sum over ranks: norms, and the function of the MLP. Every block has both.
    pub const ELEMENTWISE: [&str; 2] = ["norms", "mlp.activation"];

    /// What a search tries where memory is short: each leaves less than the one before, and costs more.
    pub fn ladder() -> [Self; 3] {
        [Self::tensors(Self::ELEMENTWISE), Self::Blocks { every: 2 }, Self::FULL]
    }

    /// Tensors by name; no name is nothing.
    pub fn tensors(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let patterns: Vec<Pattern> = names.into_iter().map(Pattern::new).collect();
        if patterns.is_empty() { Self::None } else { Self::Tensors(patterns) }
    }

    /// The same of a model of so many blocks, as the smallest number: every N-th of fewer is the first alone.
    pub fn within(self, layers: usize) -> Self {
        match self {
            Self::Blocks { every } => Self::Blocks { every: every.min(layers) },
            other @ (Self::None | Self::Tensors(_)) => other,
        }
    }

    /// Whether it is the whole of block number `index`.
    fn has_block(&self, index: usize) -> bool {
        matches!(self, Self::Blocks { every } if index.is_multiple_of(*every))
    }

    fn fits_any(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.fits(name))
    }

    /// Whether it names a tensor.
    fn fits(&self, name: &str) -> bool {
        match self {
            Self::None | Self::Blocks { .. } => false,
            Self::Tensors(patterns) => patterns.iter().any(|pattern| pattern.fits(name)),
        }
    }
}

/// `false` is nothing, `true` all blocks.
impl From<bool> for Recompute {
    fn from(all: bool) -> Self {
        if all { Self::FULL } else { Self::None }
    }
}

/// [`Recompute`] as files have it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Text {
    Flag(bool),
    Every(usize),
    Word(String),
    Names(Vec<String>),
}

impl TryFrom<Text> for Recompute {
    type Error = String;

    fn try_from(text: Text) -> Result<Self, String> {
        Ok(match text {
            Text::Flag(all) => all.into(),
            Text::Every(every) => Self::Blocks { every },
            Text::Word(word) => match word.as_str() {
                "none" => Self::None,
                "elementwise" => Self::tensors(Self::ELEMENTWISE),
                "half" => Self::Blocks { every: 2 },
                "full" => Self::FULL,
                _ => return Err(format!("{word:?} is not one of {}", Self::WORDS.join(", "))),
            },
            Text::Names(names) => Self::tensors(names.iter().map(|name| name.trim())),
        })
    }
}

impl From<Recompute> for Text {
    fn from(what: Recompute) -> Self {
        match what {
            Recompute::None => Self::Flag(false),
            Recompute::Blocks { every: 1 } => Self::Flag(true),
            Recompute::Blocks { every } => Self::Every(every),
            Recompute::Tensors(patterns) => {
                Self::Names(patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect())
            }
        }
    }
}

/// As a file has it.
impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Text::from(self.clone()) {
            Text::Flag(flag) => write!(f, "{flag}"),
            Text::Every(every) => write!(f, "{every}"),
            Text::Word(word) => write!(f, "{word:?}"),
            Text::Names(names) => write!(f, "{names:?}"),
        }
    }
}

/// What a piece can drop, with the names that stand for it.
type Droppable<T> = Vec<(T, Vec<String>)>;

impl Block {
    /// What branch `number` can drop: all that it saves but the input of the block.
    fn droppable(&self, number: usize) -> Droppable<BranchTensor> {
        let branch = &self.branches[number];
        let begins = number == 0 || self.parallel;
        let mut all = branch.tensors(1, 1);
        all.dedup_by_key(|(kind, _)| *kind);
        all.retain(|(kind, _)| !begins || *kind != branch.entering());
        let names = |kind: BranchTensor, name: String| [Some(name), kind.group(branch)];
        let rows = all.into_iter();
        rows.map(|(kind, tensor)| (kind, names(kind, tensor.name).into_iter().flatten().collect()))
            .collect()
    }

    /// Says what of block number `index` is computed again. Names of other pieces mean nothing here.
    pub fn recompute(&mut self, index: usize, what: &Recompute) {
        let whole = what.has_block(index);
        for number in 0..self.branches.len() {
            if !whole && !matches!(what, Recompute::Tensors(_)) {
                self.branches[number].dropped.clear();
                continue;
            }
            let all = self.droppable(number).into_iter();
            let dropped = all.filter(|(_, names)| whole || what.fits_any(names));
            self.branches[number].dropped = dropped.map(|(kind, _)| kind).collect();
        }
    }
}

impl HeadBody {
    fn droppable() -> Droppable<HeadTensor> {
        let named = |kind: HeadTensor| {
            let group = (kind != HeadTensor::Logits).then_some("norms");
            (kind, [Some(kind.name()), group].into_iter().flatten().map(String::from).collect())
        };
        HeadTensor::ALL.map(named).into()
    }
}

impl OwnBody {
    fn names(&self) -> Vec<String> {
        let tensors = self.saved.iter().map(|tensor| tensor.name.clone());
        tensors.chain([self.name.clone()]).collect()
    }
}

impl ModelParts {
    /// Says what is computed again instead of kept.
    ///
    /// # Errors
    /// Every 0th block, or a name of nothing that can be dropped.
    pub fn recompute(&mut self, what: &Recompute) -> Result<(), SpecError> {
        if let Some((_, fault)) = self.recompute_faults(what).into_iter().next() {
            return Err(fault);
        }
        for part in &mut self.pieces {
            match (&mut part.body, part.piece) {
                (Body::Block(block), Piece::Block(index)) => block.recompute(index, what),
                (Body::Head(head), _) => {
                    let all = HeadBody::droppable().into_iter();
                    let dropped = all.filter(|(_, names)| what.fits_any(names));
                    head.dropped = dropped.map(|(kind, _)| kind).collect();
                }
                (Body::Own(own), piece) => {
                    let whole = matches!(piece, Piece::Block(index) if what.has_block(index));
                    own.again = whole || what.fits_any(&own.names());
                }
                (Body::Embedding | Body::Block(_), _) => {}
            }
        }
        Ok(())
    }

    /// Everything that is wrong with what is to be computed again, each name by itself. The pieces are looked through
    /// once, however many names there are.
    pub fn recompute_faults(&self, what: &Recompute) -> Vec<(Recompute, SpecError)> {
        match what {
            Recompute::None | Recompute::Blocks { every: 1.. } => Vec::new(),
            Recompute::Blocks { every: 0 } => {
                let (rule, nearest) = ("must be at least 1".into(), "1".into());
                vec![(what.clone(), SpecError::Recompute { rule, nearest })]
            }
            Recompute::Tensors(patterns) => {
                let names = self.recomputable();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let is_nothing = |pattern: &&Pattern| !names.iter().any(|name| pattern.fits(name));
                let fault = |pattern: &Pattern| {
                    let nearest = nearest(pattern.as_str(), &names).unwrap_or("false").into();
                    let rule = format!(
                        "\"{pattern}\" names nothing that can be computed again; there are {}",
                        names.join(", ")
                    );
                    let alone = Recompute::Tensors(vec![pattern.clone()]);
                    (alone, SpecError::Recompute { rule, nearest })
                };
                patterns.iter().filter(is_nothing).map(fault).collect()
            }
        }
    }

    /// The names of all that can be computed again.
    pub fn recomputable(&self) -> BTreeSet<String> {
        let of_part = |body: &Body| -> Vec<String> {
            match body {
                Body::Embedding => Vec::new(),
                Body::Block(block) => {
                    let all = (0..block.branches.len()).flat_map(|number| block.droppable(number));
                    all.flat_map(|(_, names)| names).collect()
                }
                Body::Head(_) => {
                    HeadBody::droppable().into_iter().flat_map(|(_, names)| names).collect()
                }
                Body::Own(own) => own.names(),
            }
        };
        self.pieces.iter().flat_map(|part| of_part(&part.body)).collect()
    }
}
