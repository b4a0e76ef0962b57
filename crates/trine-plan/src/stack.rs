//! Software stacks as data: what a framework keeps, stores and overlaps. What trine itself does is one of them.

use crate::{Attention, PlanError, Precision};
use serde::Deserialize;
use trine_spec::{Features, ModelSpec, SpecError};

/// Bytes of one parameter's training state before sharding.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateBytes {
    /// The weights that kernels read.
    pub weights: f64,
    /// Gradients as backward writes them.
    pub gradients: f64,
    /// A second, wider gradient that the optimizer reads.
    #[serde(default)]
    pub main_gradients: f64,
    /// Whether ZeRO-1 shards it with the optimizer state.
    #[serde(default = "yes")]
    pub main_gradients_sharded: bool,
    /// f32 master weights.
    pub master: f64,
    /// The optimizer's moments.
    pub moments: f64,
}

fn yes() -> bool {
    true
}

/// How layers are shared out over the stages of a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Partition {
    /// Blocks alone, as evenly as possible; the first stages take one more.
    #[default]
    Blocks,
    /// As evenly as possible; the last stage, then the first, then those before the last take one less.
    ShortEnds,
    /// Embedding, blocks, final norm and head are one list that is cut evenly; the first stages take one more.
    AllLayers,
    /// By work, the output layer's included, where a rank has one stage ([`trine_spec::stage_blocks`]); blocks alone
    /// where it has several.
    Work,
}

/// One framework, as far as memory and time are concerned.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// Whose constants it has, if not its own: a version of another stack.
    #[serde(default)]
    pub like: Option<String>,
    /// One line for people.
    pub about: String,
    /// A published run belongs to the first stack one of whose patterns its source contains.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Training state with f16 weights.
    pub f16: StateBytes,
    /// Training state with bf16 weights (and fp8 products).
    pub bf16: StateBytes,
    /// Bytes per element of the gradient reduction: (f16, bf16).
    pub reduce_bytes: [f64; 2],
    /// How attention is computed where a run does not say.
    pub attention: Attention,
    /// ZeRO stage where a run does not say.
    #[serde(default)]
    pub zero: u8,
    /// Whether dropout masks are stored (1 byte an element).
    pub dropout_masks: bool,
    /// Whether the residual stream, its gradient and messages between stages are f32.
    #[serde(default)]
    pub stream_f32: bool,
    /// Extra stored bytes per token and hidden element for norms that keep an upcast copy.
    #[serde(default)]
    pub norm_extra_bytes: f64,
    /// Whether inputs of split products that sequence parallelism gathers are kept whole for backward (DTensor), not
    /// gathered again (Megatron).
    #[serde(default)]
    pub gathered_inputs_kept: bool,
    /// Whether the activation of a gated MLP's gate is stored beside gate, up and product.
    #[serde(default)]
    pub gate_activation: bool,
    /// Whether blocks are computed again by steps, and those that nothing needs are left out: a block's last product.
    #[serde(default)]
    pub replays_steps: bool,
    /// Whether the input of a pipeline stage is kept once more as a 1/tp part (DeepSpeed).
    #[serde(default)]
    pub stage_input_kept: bool,
    /// Whether messages between stages are split over tensor parallelism (scatter/gather).
    #[serde(default)]
    pub split_messages: bool,
    /// Whether a rank sends and receives one message after the other (DeepSpeed's engine and those after it), not a
    /// forward's and a backward's at once (Megatron).
    #[serde(default)]
    pub serial_messages: bool,
    /// Share of messages between stages that hides behind computation.
    #[serde(default)]
    pub message_overlap: f64,
    /// Whether ranks begin the next step one after the other (Qi et al., who check an optimizer step after it was
    /// taken), rather than all after the last has ended this one.
    #[serde(default)]
    pub steps_overlap: bool,
    /// Share of tensor-parallel collectives that hides behind products.
    #[serde(default)]
    pub tensor_overlap: f64,
    /// Whether ZeRO-1 sums whole gradients on every replica, and not each its own part.
    #[serde(default)]
    pub whole_gradients: bool,
    /// Share of the gradient reduction that can hide behind the last micro-batch's backward pass.
    #[serde(default)]
    pub gradient_overlap: f64,
    /// How layers are shared out over stages.
    #[serde(default)]
    pub partition: Partition,
    /// Bytes per logit of the vocabulary loss: the logits, their f32 copy, their gradient.
    pub logit_bytes: f64,
    /// Whether every tensor rank holds the logits of the whole vocabulary for the loss.
    #[serde(default)]
    pub logits_whole: bool,
    /// Bytes of a device's context, communicators and libraries, as the driver's tool counts them.
    pub context_bytes: f64,
    /// Bytes of buckets and workspaces inside the framework's allocator.
    #[serde(default)]
    pub buffer_bytes: f64,
    /// Bytes per element of the gradient that the optimizer casts its own part to, from memory that is not used
    /// again.
    #[serde(default)]
    pub step_gradient_bytes: f64,
    /// Whether the training state lies in buckets that are padded to equal, aligned parts of the replicas, as
    /// [`trine_spec::PieceSizes`] counts them.
    #[serde(default)]
    pub bucketed: bool,
    /// Whether tensor ranks may have unequal numbers of heads and features.
    #[serde(default)]
    pub uneven: bool,
    /// Kernels that a block with two norms launches in forward.
    pub kernels: f64,
}

impl Stack {
    /// The name of its constants.
    pub fn constants(&self) -> &str {
        self.like.as_ref().unwrap_or(&self.name)
    }

    /// Training state of a precision.
    pub fn states(&self, precision: Precision) -> StateBytes {
        match precision {
            Precision::F16 => self.f16,
            Precision::Bf16 | Precision::Fp8 | Precision::Fp8Rows => self.bf16,
            Precision::F32 => StateBytes { weights: 4.0, gradients: 4.0, master: 0.0, ..self.bf16 },
        }
    }

    /// Checks that `tp` tensor ranks of the framework can share a model's layers.
    ///
    /// # Errors
    /// What of heads and features they cannot share, with the nearest degrees that can.
    pub fn check_degree(&self, model: &ModelSpec, tp: usize) -> Result<(), PlanError> {
        let obstacle = |tp| self.degree_obstacle(model, tp);
        PlanError::unless_degree(("tp", tp), model.heads, obstacle).map_or(Ok(()), Err)
    }

    /// Why `tp` tensor ranks of the framework cannot share a model's layers, if they cannot.
    pub(crate) fn degree_obstacle(&self, model: &ModelSpec, tp: usize) -> Option<String> {
        if let Some(rule) = layout_rule(model, tp, 1) {
            return Some(rule);
        }
        if self.uneven || model.divides_evenly(tp) {
            return None;
        }
        let Features { units, groups, .. } = model.query_features();
        let heads = match (units == groups, tp <= groups) {
            (true, _) => format!("the {units} heads"),
            (false, true) => format!("the {groups} KV heads"),
            (false, false) => format!("the {units} query heads"),
        };
        let features = [(model.query_features(), heads)]
            .into_iter()
            .chain([(model.inner_features(), format!("ffn = {}", model.ffn))]);
        let odd = features.filter(|(features, _)| !features.parts(tp).is_multiple_of(tp));
        let odd: Vec<String> = odd.map(|(_, name)| name).collect();
        let divides = match odd.as_slice() {
            [first, second] => format!("{tp} divides neither {first} nor {second}"),
            some => format!("{tp} does not divide {}", some.concat()),
        };
        Some(format!("tensor ranks of {} have equal parts, and {divides}", self.name))
    }

    /// Bytes per element of the residual stream.
    pub fn stream_bytes(&self, precision: Precision) -> f64 {
        if self.stream_f32 { 4.0 } else { precision.element_bytes() }
    }

    /// Of the messages of one forward or backward: for how long a rank of a pipeline is blocked, and when they arrive
    /// after that. A rank between others receives and sends; serially, that is twice.
    pub fn message_waits(&self, message_s: f64, ranks: usize) -> (f64, f64) {
        let times = if self.serial_messages && ranks > 2 { 2.0 } else { 1.0 };
        (times * message_s * (1.0 - self.message_overlap), message_s * self.message_overlap)
    }

    /// Bytes per element of the gradient reduction.
    pub fn reduce_bytes(&self, precision: Precision) -> f64 {
        match precision {
            Precision::F16 => self.reduce_bytes[0],
            Precision::Bf16 | Precision::Fp8 | Precision::Fp8Rows => self.reduce_bytes[1],
            Precision::F32 => 4.0,
        }
    }
}

/// The rule that degrees break whatever the framework, if they break one.
pub(crate) fn layout_rule(model: &ModelSpec, tp: usize, pp: usize) -> Option<String> {
    match model.check_layout(tp, pp) {
        Ok(()) => None,
        Err(SpecError::Layout { rule, .. }) => Some(rule),
        Err(error) => Some(error.to_string()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    stack: Vec<Stack>,
}

/// Every stack trine knows.
///
/// # Errors
/// Never, unless the committed file is broken.
pub fn stacks() -> Result<Vec<Stack>, PlanError> {
    let bad = |error: toml::de::Error| PlanError::Data {
        what: "built-in stacks".into(),
        why: error.to_string(),
    };
    let file: File = toml::from_str(include_str!("../data/stacks.toml")).map_err(bad)?;
    Ok(file.stack)
}

/// The stack of this name.
///
/// # Errors
/// [`PlanError::Unknown`] with every name there is.
pub fn find<'a>(all: &'a [Stack], name: &str) -> Result<&'a Stack, PlanError> {
    all.iter().find(|stack| stack.name == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|stack| stack.name.as_str()).collect();
        PlanError::unknown("software stack", name, &names)
    })
}
