//! Builds layers from a model's spec: parameters are looked up by name.

use crate::{BlockLayer, BranchLayer, InnerLayer, RankParts};
use std::collections::BTreeSet;
use trine_buffer::{Act, DType, Place};
use trine_comm::Name;
use trine_kernels::{Function, rope_table};
use trine_nn::{
    AttentionCore, AttentionShape, Dropout, NnError, NormLayer, Numerics, ParamId, Rotary,
};
use trine_shard::{
    ColumnLinear, QkNorm as Norms, QkNormKind, RowLinear, Section, ShardedAttention, StreamDropout,
    StreamNorm, TensorGroup, VocabEmbedding, VocabHead, VocabShard,
};
use trine_spec::{
    Activation, Attention, Block, Branch, BranchNorm, Inner, LocalParam, ModelSpec, Norm, QkNorm,
    RankLayout,
};

/// Builds sharded layers for one rank by the names of their parameters.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    layout: &'a RankLayout,
    group: TensorGroup,
    numerics: Numerics,
    seed: u64,
    /// For each number of elements that blocks turn.
    rotary: Vec<Rotary>,
}

impl<'a> Builder<'a> {
    /// A builder for one rank's stage.
    ///
    /// # Errors
    /// A compute type without an accumulator to make rotary tables in.
    pub fn new(parts: &RankParts<'a>) -> Result<Self, NnError> {
        let model = &parts.model.spec;
        let group = TensorGroup::new(parts.comm.clone(), parts.sequence_parallel);
        let turned: BTreeSet<usize> = (0..model.layers).map(|block| model.turned(block)).collect();
        let some = turned.into_iter().filter(|turned| *turned > 0);
        let rotary = some
            .map(|turned| rotary(model, turned, parts.compute, parts.place))
            .collect::<Result<_, _>>()?;
        let (numerics, seed) = (parts.numerics, parts.seed);
        Ok(Self { model, layout: parts.layout, group, numerics, seed, rotary })
    }

    /// The tensor-parallel ranks.
    pub fn group(&self) -> &TensorGroup {
        &self.group
    }

    /// The address of a parameter.
    ///
    /// # Errors
    /// No such parameter on this rank.
    pub fn param(&self, name: &str) -> Result<ParamId, NnError> {
        ParamId::find(self.layout, &[name])
    }

    /// What this rank holds of a parameter.
    ///
    /// # Errors
    /// No such parameter on this rank.
    pub fn local(&self, name: &str) -> Result<&LocalParam, NnError> {
        let index = self.layout.find(name).ok_or_else(|| NnError::Unknown(name.into()))?;
        Ok(&self.layout.params[index])
    }

    fn neighbours(&self, names: &[String]) -> Result<ParamId, NnError> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        ParamId::find(self.layout, &names)
    }

    /// The layers of block `index`. A collective call where ranks share KV heads.
    ///
    /// # Errors
    /// A parameter that this rank does not hold, or a failed collective.
    pub fn block(&self, index: usize, block: &Block) -> Result<BlockLayer, NnError> {
        let branches = block.branches.iter().map(|branch| self.branch(index, branch));
        Ok(BlockLayer::new(block, branches.collect::<Result<_, _>>()?))
    }

    /// The layers of a branch of block `index`. A collective call where ranks share KV heads.
    ///
    /// # Errors
    /// A parameter that this rank does not hold, or a failed collective.
    pub fn branch(&self, index: usize, branch: &Branch) -> Result<BranchLayer, NnError> {
        let within = |name: &str| format!("block.{index}.{name}");
        let label = |label| Name::new(label).with("block", index as u64);
        let name = within(branch.name);
        let row = format!("{name}.{}", branch.row.name);
        let columns: Vec<&str> = branch.columns.iter().map(|part| part.name).collect();
        let norm = |norm: BranchNorm| self.norm(&within(norm.name), norm.kind, label(norm.name));
        let biased = branch.columns_bias;
        Ok(BranchLayer {
            before: branch.before.map(norm).transpose()?,
            columns: self.column(&name, &columns, biased, label(branch.inner.columns()))?,
            inner: match branch.inner {
                Inner::Attention(traits) => {
                    let layer = self.attention(&name, index, &traits, label(branch.name))?;
                    InnerLayer::Attention(layer)
                }
                Inner::Mlp { activation, gated } => {
                    let cols = self.local(&format!("{row}.weight"))?.shape()[1];
                    let function = function(activation);
                    InnerLayer::Activation(trine_nn::Activation { function, gated, cols })
                }
            },
            row: self.row(&row, branch.row_bias, label(branch.row.name))?,
            after: branch.after.map(norm).transpose()?,
            dropout: self.dropout(&format!("{name}.dropout"), branch.dropout),
        })
    }

    /// A norm whose parameters are `name.weight` and, for LayerNorm, `name.bias`.
    ///
    /// # Errors
    /// No such parameter on this stage.
    pub fn norm(&self, name: &str, kind: Norm, label: Name) -> Result<StreamNorm, NnError> {
        let parts: &[&str] = match kind {
            Norm::Layer => &["weight", "bias"],
            Norm::Rms | Norm::RmsOne => &["weight"],
        };
        let names: Vec<String> = parts.iter().map(|part| format!("{name}.{part}")).collect();
        let params = self.neighbours(&names)?;
        let norm = NormLayer { kind, params, cols: self.model.hidden, eps: self.model.norm_eps };
        Ok(StreamNorm::new(self.group.clone(), norm, label))
    }

    /// Dropout on the residual stream, with a random stream of its own.
    pub fn dropout(&self, name: &str, rate: f64) -> StreamDropout {
        let dropout = Dropout::new(rate, self.seed, name, self.model.hidden);
        StreamDropout::new(self.group.clone(), dropout)
    }

    /// A column-parallel layer from the residual stream to the fused `parts` of `name`.
    ///
    /// # Errors
    /// No such parameters, or parameters that are not neighbours.
    pub fn column(
        &self,
        name: &str,
        parts: &[&str],
        biases: bool,
        label: Name,
    ) -> Result<ColumnLinear, NnError> {
        let names = |kind: &str| -> Vec<String> {
            parts.iter().map(|part| format!("{name}.{part}.{kind}")).collect()
        };
        let mut sections = Vec::new();
        for weight in names("weight") {
            let param = self.local(&weight)?;
            let (cols, replicas, replica) = (param.shape()[0], param.replicas, param.replica);
            sections.push(Section { cols, replicas, replica });
        }
        let weight = self.neighbours(&names("weight"))?;
        let bias = biases.then(|| self.neighbours(&names("bias"))).transpose()?;
        let (group, inputs) = (self.group.clone(), self.model.hidden);
        Ok(ColumnLinear::new(group, (weight, bias), inputs, &sections, self.numerics, label))
    }

    /// A row-parallel layer `name` back to the residual stream.
    ///
    /// # Errors
    /// No such parameter on this stage.
    pub fn row(&self, name: &str, biases: bool, label: Name) -> Result<RowLinear, NnError> {
        let names = |kind: &str| [format!("{name}.{kind}")];
        let inputs = self.local(&names("weight")[0])?.shape()[1];
        let weight = self.neighbours(&names("weight"))?;
        let bias = biases.then(|| self.neighbours(&names("bias"))).transpose()?;
        let (group, outputs) = (self.group.clone(), self.model.hidden);
        Ok(RowLinear::new(group, (weight, bias), inputs, outputs, self.numerics, label))
    }

    /// Attention over this rank's heads, in block `index`. A collective call where ranks share KV
    /// heads.
    ///
    /// # Errors
    /// No such parameters, or a failed split.
    pub fn attention(
        &self,
        name: &str,
        index: usize,
        traits: &Attention,
        label: Name,
    ) -> Result<ShardedAttention, NnError> {
        let q = self.local(&format!("{name}.q.weight"))?;
        let k = self.local(&format!("{name}.k.weight"))?;
        let head_dim = self.model.head_dim;
        let shape = AttentionShape {
            heads: q.shape()[0] / head_dim,
            kv_heads: k.shape()[0] / head_dim,
            head_dim,
            first_head: q.ranges[0].start / head_dim,
        };
        let core = AttentionCore {
            shape,
            scale: traits.scale,
            rope: self.rotary.iter().find(|rotary| rotary.turned == traits.turned).cloned(),
            dropout: Dropout::new(traits.dropout, self.seed, name, shape.q_cols()),
            window: traits.window,
            softcap: traits.cap,
        };
        let attention = ShardedAttention::new(core, &self.group, k.replicas, label)?;
        let attention = attention.at_layer(index);
        Ok(match self.qk_norm(name, index, traits.qk_norm)? {
            Some(norms) => attention.with_norms(norms),
            None => attention,
        })
    }

    /// The norms of attention's queries and keys, if there are any.
    fn qk_norm(&self, name: &str, index: usize, norm: QkNorm) -> Result<Option<Norms>, NnError> {
        let kind = match norm {
            QkNorm::None => return Ok(None),
            QkNorm::Head => QkNormKind::EachHead,
            QkNorm::All => QkNormKind::AllHeads,
        };
        Ok(Some(Norms {
            group: self.group.clone(),
            kind,
            q: self.param(&format!("{name}.q_norm.weight"))?,
            k: self.param(&format!("{name}.k_norm.weight"))?,
            cols: [self.model.q_dim(), self.model.kv_dim()],
            eps: self.model.norm_eps,
            name: Name::new("qk_norm").with("block", index as u64),
        }))
    }

    /// The embedding's tables.
    ///
    /// # Errors
    /// No such parameters on this stage.
    pub fn embedding(&self) -> Result<VocabEmbedding, NnError> {
        let token = "embedding.token";
        let learned = self.model.learned_positions();
        let position = learned.then(|| ParamId::find(self.layout, &["embedding.position"]));
        Ok(VocabEmbedding {
            group: self.group.clone(),
            table: ParamId::find(self.layout, &[token])?,
            positions: position.transpose()?,
            rows: self.local(token)?.ranges[0].clone(),
            hidden: self.model.hidden,
            scale: self.model.embedding_scale.get(),
        })
    }

    /// The output layer: its own weights, or the embedding's where it is tied and the stage keeps no
    /// copy.
    ///
    /// # Errors
    /// No such parameter on this stage.
    pub fn output(&self) -> Result<VocabHead, NnError> {
        let own = self.layout.find("head.output.weight").is_some();
        let name = if own || !self.model.tied { "head.output.weight" } else { "embedding.token" };
        let weight = ParamId::find(self.layout, &[name])?;
        let rows = self.local(name)?.ranges[0].clone();
        let shard = VocabShard { rows, vocab: self.model.vocab };
        let hidden = self.model.hidden;
        let head = VocabHead::new(self.group.clone(), weight, hidden, shard, self.numerics);
        Ok(head.with_softcap(self.model.logit_cap.get()))
    }
}

/// Rotary tables for every position, in the accumulator type.
fn rotary(
    model: &ModelSpec,
    turned: usize,
    compute: DType,
    place: &Place,
) -> Result<Rotary, NnError> {
    let scaling = model.rope_scaling;
    let frequencies = scaling.frequencies(model.rope_theta, turned);
    let (dtype, amplitude) = (compute.accumulator(), scaling.amplitude());
    let table = rope_table(dtype, &frequencies, amplitude, model.seq_max)?;
    Ok(Rotary { table: Act::new(place.hold(table)?), turned })
}

/// The kernels' name of a function.
fn function(activation: Activation) -> Function {
    match activation {
        Activation::GeluTanh => Function::GeluTanh,
        Activation::Gelu => Function::GeluErf,
        Activation::Silu => Function::Silu,
        Activation::Relu => Function::Relu,
    }
}
