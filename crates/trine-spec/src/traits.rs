//! What a block computes beside its sizes: its traits, and how they run over the blocks of a model.

use crate::SpecError;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A normalisation layer's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Mean and variance, with gain and bias (Ba et al., 1607.06450).
    Layer,
    /// Root mean square, with gain (Zhang & Sennrich, 1910.07467).
    Rms,
    /// The same with a gain of 1 more than the weight, which starts at zero (Gemma).
    #[serde(rename = "rms-one")]
    RmsOne,
}

/// Where a branch has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormAt {
    /// Of what it reads: `x + branch(norm(x))`.
    Before,
    /// Of what it gives: `x + norm(branch(x))` (OLMo 2, 2501.00656).
    After,
    /// Of both (Gemma 2, 2408.00118).
    Both,
}

/// How attention knows of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// A learned row for each, added to the token's. All blocks have it or none.
    Learned,
    /// Queries and keys are turned by them (Su et al., 2104.09864).
    Rotary,
    /// By the causal mask alone.
    None,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QkNorm {
    /// There are none.
    None,
    /// Each head by itself, with one gain for all (Qwen 3).
    Head,
    /// All heads of a token together (OLMo 2).
    All,
}

/// The function inside of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// GELU in the form of tanh (Hendrycks & Gimpel, 1606.08415).
    #[serde(rename = "gelu-tanh")]
    GeluTanh,
    /// GELU by the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// `x · σ(x)`.
    #[serde(rename = "silu")]
    Silu,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
}

/// A number, or `"none"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OrNone<T> {
    /// The number.
    Some(T),
    /// There is none.
    None(NoneWord),
}

/// The word for nothing in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoneWord {
    /// `"none"`.
    #[serde(rename = "none")]
    None,
}

impl<T: Copy> OrNone<T> {
    /// There is none.
    pub const NONE: Self = Self::None(NoneWord::None);

    /// The number, if there is one.
    pub fn get(self) -> Option<T> {
        match self {
            Self::Some(value) => Some(value),
            Self::None(_) => None,
        }
    }
}

impl<T> From<Option<T>> for OrNone<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None(NoneWord::None), Self::Some)
    }
}

impl<T: fmt::Display> fmt::Display for OrNone<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Some(value) => value.fmt(f),
            Self::None(_) => f.write_str("none"),
        }
    }
}

/// A trait of the blocks: one value for all, or a list that is repeated over them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    try_from = "OneOrMore<T>",
    into = "OneOrMore<T>",
    bound(serialize = "T: Clone + Serialize")
)]
pub struct Each<T>(Vec<T>);

/// What may be a list.
pub(crate) trait Listed {
    /// Values of the list: one of a trait that is none.
    fn values_listed(&self) -> usize {
        1
    }
}

impl Listed for RopeScaling {}
impl<T> Listed for OrNone<T> {}
impl<T> Listed for Each<T> {
    fn values_listed(&self) -> usize {
        self.0.len()
    }
}

/// As it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

impl<T> Each<T> {
    /// The same for all blocks.
    pub fn all(value: T) -> Self {
        Self(vec![value])
    }

    /// A list that is repeated.
    pub fn repeated(first: T, more: impl IntoIterator<Item = T>) -> Self {
        Self(std::iter::once(first).chain(more).collect())
    }

    /// The same list of something else.
    pub fn map<U>(&self, of: impl FnMut(&T) -> U) -> Each<U> {
        Each(self.0.iter().map(of).collect())
    }

    /// A value for each of a model's blocks, in the shortest list that is repeated over them; `None` if there are none.
    pub fn listed(mut values: Vec<T>) -> Option<Self>
    where
        T: PartialEq,
    {
        let repeats = |len: &usize| values.iter().zip(&values[*len..]).all(|(a, b)| a == b);
        let len = (1..=values.len()).find(repeats)?;
        values.truncate(len);
        Some(Self(values))
    }

    /// That of a block.
    pub fn of(&self, block: usize) -> &T {
        &self.0[block % self.0.len()]
    }

    /// The mean over a model's blocks of a number of each.
    pub fn mean(&self, blocks: usize, of: impl Fn(&T) -> f64) -> f64 {
        let len = self.0.len();
        let all = self.0.iter().enumerate().map(|(at, value)| {
            let times = blocks.saturating_sub(at).div_ceil(len);
            of(value) * times as f64
        });
        all.sum::<f64>() / blocks.max(1) as f64
    }

    /// What the list holds, once.
    pub fn values(&self) -> &[T] {
        &self.0
    }
}

impl<T> From<T> for Each<T> {
    fn from(value: T) -> Self {
        Self::all(value)
    }
}

impl<T> TryFrom<OneOrMore<T>> for Each<T> {
    type Error = &'static str;

    fn try_from(given: OneOrMore<T>) -> Result<Self, Self::Error> {
        match given {
            OneOrMore::One(value) => Ok(Self::all(value)),
            OneOrMore::More(values) if values.is_empty() => Err("a list without values"),
            OneOrMore::More(values) => Ok(Self(values)),
        }
    }
}

impl<T> From<Each<T>> for OneOrMore<T> {
    fn from(mut each: Each<T>) -> Self {
        match each.0.len() {
            1 => Self::One(each.0.remove(0)),
            _ => Self::More(each.0),
        }
    }
}

/// Dropout probabilities: one number in a file where all are equal, else the three in this order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(from = "Rates", into = "Rates")]
pub struct Dropouts {
    /// Of the embedded tokens.
    pub embedding: f64,
    /// Of attention's probabilities.
    pub attention: f64,
    /// Of what a branch adds to the stream.
    pub residual: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Rates {
    One(f64),
    Three([f64; 3]),
}

impl Dropouts {
    /// None at all.
    pub const NONE: Self = Self::all(0.0);

    /// The same everywhere.
    pub const fn all(rate: f64) -> Self {
        Self { embedding: rate, attention: rate, residual: rate }
    }

    /// In the order of a file.
    pub fn each(self) -> [f64; 3] {
        [self.embedding, self.attention, self.residual]
    }
}

impl From<f64> for Dropouts {
    fn from(rate: f64) -> Self {
        Self::all(rate)
    }
}

impl fmt::Display for Dropouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Rates::from(*self) {
            Rates::One(rate) => rate.fmt(f),
            Rates::Three(rates) => write!(f, "{rates:?}"),
        }
    }
}

impl From<Rates> for Dropouts {
    fn from(rates: Rates) -> Self {
        match rates {
            Rates::One(rate) => Self::all(rate),
            Rates::Three([embedding, attention, residual]) => {
                Self { embedding, attention, residual }
            }
        }
    }
}

impl From<Dropouts> for Rates {
    fn from(rates: Dropouts) -> Self {
        match rates == Dropouts::all(rates.residual) {
            true => Self::One(rates.residual),
            false => Self::Three(rates.each()),
        }
    }
}

/// How rotary frequencies are stretched to sequences longer than a model was first trained on. In a file it is a text:
/// the kind and its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RopeScaling {
    /// They are not: `none`.
    None,
    /// All divided by a factor: `linear FACTOR` (Chen et al., 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Long waves divided by a factor, short ones left, between them a blend: `llama3 FACTOR LOW HIGH ORIGINAL`
    /// (Llama 3.1).
    Llama3 {
        /// The factor of long waves.
        factor: f64,
        /// Waves longer than `original / low` are long.
        low: f64,
        /// Waves shorter than `original / high` are short.
        high: f64,
        /// Positions of the first training.
        original: f64,
    },
    /// By parts, with larger scores: `yarn FACTOR FAST SLOW ORIGINAL` (Peng et al., 2309.00071).
    Yarn {
        /// The factor of slow turns.
        factor: f64,
        /// Turns within the first training from which on a frequency is left.
        fast: f64,
        /// Turns below which it is divided.
        slow: f64,
        /// Positions of the first training.
        original: f64,
    },
}

impl RopeScaling {
    /// For messages.
    pub(crate) const FORMS: &'static str =
        "none, linear FACTOR, llama3 FACTOR LOW HIGH ORIGINAL or yarn FACTOR FAST SLOW ORIGINAL";

    /// The kind and its numbers.
    fn parts(self) -> (&'static str, Vec<f64>) {
        match self {
            Self::None => ("none", vec![]),
            Self::Linear { factor } => ("linear", vec![factor]),
            Self::Llama3 { factor, low, high, original } => {
                ("llama3", vec![factor, low, high, original])
            }
            Self::Yarn { factor, fast, slow, original } => {
                ("yarn", vec![factor, fast, slow, original])
            }
        }
    }

    /// What is wrong with its numbers, if anything is.
    pub(crate) fn fault(self) -> Option<&'static str> {
        let (_, numbers) = self.parts();
        if !numbers.iter().all(|number| number.is_finite() && *number > 0.0) {
            return Some("its numbers must be positive");
        }
        match self {
            Self::Llama3 { low, high, .. } if low >= high => Some("LOW must be below HIGH"),
            Self::Yarn { fast, slow, .. } if slow >= fast => Some("SLOW must be below FAST"),
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } | Self::Yarn { .. } => None,
        }
    }

    /// The frequencies of `theta^(−2i / turned)`, `i < turned / 2`, stretched.
    pub fn frequencies(self, theta: f64, turned: usize) -> Vec<f64> {
        use std::f64::consts::TAU;
        let plain = (0..turned / 2).map(|i| theta.powf(-2.0 * i as f64 / turned as f64));
        match self {
            Self::None => plain.collect(),
            Self::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            Self::Llama3 { factor, low, high, original } => plain
                .map(|frequency| {
                    let turns = original * frequency / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    blend(frequency, factor, kept)
                })
                .collect(),
            Self::Yarn { factor, fast, slow, original } => {
                // The index at which a frequency makes so many turns in the first training.
                let index = |turns: f64| {
                    turned as f64 * (original / (turns * TAU)).ln() / (2.0 * theta.ln())
                };
                let first = index(fast).floor().max(0.0);
                let last = index(slow).ceil().min(turned as f64 - 1.0).max(first + 0.001);
                plain
                    .zip(0_u32..)
                    .map(|(frequency, i)| {
                        let divided = ((f64::from(i) - first) / (last - first)).clamp(0.0, 1.0);
                        blend(frequency, factor, 1.0 - divided)
                    })
                    .collect()
            }
        }
    }

    /// By how much cosines and sines are larger than 1.
    pub fn amplitude(self) -> f64 {
        match self {
            Self::Yarn { factor, .. } if factor > 1.0 => 0.1 * factor.ln() + 1.0,
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } | Self::Yarn { .. } => 1.0,
        }
    }
}

/// A frequency of which a part is kept and the rest divided.
fn blend(frequency: f64, factor: f64, kept: f64) -> f64 {
    kept * frequency + (1.0 - kept) * frequency / factor
}

impl fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, numbers) = self.parts();
        f.write_str(kind)?;
        numbers.iter().try_for_each(|number| write!(f, " {number}"))
    }
}

impl From<RopeScaling> for String {
    fn from(scaling: RopeScaling) -> Self {
        scaling.to_string()
    }
}

impl TryFrom<String> for RopeScaling {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl FromStr for RopeScaling {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let numbers: Result<Vec<f64>, _> = words.map(str::parse).collect();
        match (kind, numbers.as_deref()) {
            ("none", Ok([])) => Ok(Self::None),
            ("linear", Ok(&[factor])) => Ok(Self::Linear { factor }),
            ("llama3", Ok(&[factor, low, high, original])) => {
                Ok(Self::Llama3 { factor, low, high, original })
            }
            ("yarn", Ok(&[factor, fast, slow, original])) => {
                Ok(Self::Yarn { factor, fast, slow, original })
            }
            _ => Err(SpecError::Field {
                field: "rope_scaling",
                value: format!("\"{text}\""),
                rule: format!("must be {}", Self::FORMS),
                nearest: "\"none\"".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trait_is_one_value_or_a_list_that_is_repeated() {
        let one: Each<OrNone<usize>> = serde_json::from_str("\"none\"").unwrap();
        assert_eq!(one.of(7).get(), None);
        let two: Each<OrNone<usize>> = serde_json::from_str("[4096, \"none\"]").unwrap();
        let windows: Vec<Option<usize>> = (0..5).map(|block| two.of(block).get()).collect();
        assert_eq!(windows, [Some(4096), None, Some(4096), None, Some(4096)]);
        assert_eq!(two.mean(5, |window| window.get().unwrap_or(0) as f64), 3.0 * 4096.0 / 5.0);
        for each in [one, two] {
            let text = serde_json::to_string(&each).unwrap();
            assert_eq!(serde_json::from_str::<Each<OrNone<usize>>>(&text).unwrap(), each);
        }
        for wrong in ["[]", "\"non\"", "-1", "[[1]]"] {
            assert!(serde_json::from_str::<Each<OrNone<usize>>>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn dropout_is_one_rate_or_three() {
        for (text, rates) in [
            ("0.1", Dropouts::all(0.1)),
            ("[0.1,0.0,0.2]", Dropouts { embedding: 0.1, attention: 0.0, residual: 0.2 }),
        ] {
            assert_eq!(serde_json::from_str::<Dropouts>(text).unwrap(), rates);
            assert_eq!(serde_json::to_string(&rates).unwrap(), text);
        }
        assert!(serde_json::from_str::<Dropouts>("[0.1, 0.2]").is_err());
    }

    #[test]
    fn scalings_are_texts_and_say_what_is_wrong_with_them() {
        for text in ["none", "linear 4", "llama3 8 1 4 8192", "yarn 4 32 1 32768"] {
            assert_eq!(text.parse::<RopeScaling>().unwrap().to_string(), text);
        }
        for wrong in ["", "linear", "linear x", "none 1", "llama3 8 1 4", "dynamic 2"] {
            let said = wrong.parse::<RopeScaling>().unwrap_err().to_string();
            assert!(said.contains(wrong) && said.contains("linear FACTOR"), "{said}");
        }
        let fault = |text: &str| text.parse::<RopeScaling>().unwrap().fault();
        assert_eq!(fault("llama3 8 4 1 8192"), Some("LOW must be below HIGH"));
        assert_eq!(fault("yarn 4 1 32 8192"), Some("SLOW must be below FAST"));
        assert_eq!(fault("linear 0"), Some("its numbers must be positive"));
        assert_eq!(fault("linear 2"), None);
    }

    #[test]
    fn stretched_frequencies_are_those_of_the_papers() {
        let plain = RopeScaling::None.frequencies(5e5, 128);
        let halved = RopeScaling::Linear { factor: 2.0 }.frequencies(5e5, 128);
        assert!(plain.iter().zip(&halved).all(|(a, b)| a / b == 2.0));
        let llama = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 };
        let stretched = llama.frequencies(5e5, 128);
        let kept: Vec<f64> = plain.iter().zip(&stretched).map(|(a, b)| b / a).collect();
        // Short waves stay, long ones are divided by 8, those between fall from one to the other.
        assert_eq!((kept[0], kept[28], kept[63]), (1.0, 1.0, 0.125));
        assert!(kept.windows(2).all(|pair| pair[1] <= pair[0]), "{kept:?}");
        assert!(kept[31] < 1.0 && kept[31] > 0.125, "{kept:?}");
        let yarn = RopeScaling::Yarn { factor: 4.0, fast: 32.0, slow: 1.0, original: 32768.0 };
        let stretched = yarn.frequencies(1e6, 128);
        let plain = RopeScaling::None.frequencies(1e6, 128);
        assert_eq!((stretched[0], stretched[63]), (plain[0], plain[63] / 4.0));
        assert!((yarn.amplitude() - 1.138_629_436_111_989).abs() < 1e-12);
        assert_eq!(llama.amplitude(), 1.0);
    }
}
