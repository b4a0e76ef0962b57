//! Builds layers from a model's spec: parameters are looked up by name.

use crate::{BranchLayer, InnerLayer, RankParts};
use trine_buffer::{Act, DType};
use trine_comm::Name;
use trine_kernels::{Function, rope_frequencies, rope_table};
use trine_nn::{
    Activation, AttentionCore, AttentionShape, Dropout, NnError, NormLayer, Numerics, ParamId,
    Rotary,
};
use trine_shard::{
    ColumnLinear, RowLinear, Section, ShardedAttention, StreamDropout, StreamNorm, TensorGroup,
    VocabEmbedding, VocabHead, VocabShard,
};
use trine_spec::{Branch, Inner, LocalParam, ModelSpec, Norm, RankLayout};

/// Builds sharded layers for one rank by the names of their parameters.
#[derive(Debug)]
pub struct Builder<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    layout: &'a RankLayout,
    group: TensorGroup,
    numerics: Numerics,
    seed: u64,
    rope: Option<Rotary>,
}

impl<'a> Builder<'a> {
    /// A builder for one rank's stage.
    ///
    /// # Errors
    /// A compute type without an accumulator to make rotary tables in.
    pub fn new(parts: &RankParts<'a>) -> Result<Self, NnError> {
        let model = &parts.model.spec;
        let group = TensorGroup::new(parts.comm.clone(), parts.sequence_parallel);
        let rope =
            (!model.learned_positions()).then(|| rotary(model, parts.compute)).transpose()?;
        let (numerics, seed) = (parts.numerics, parts.seed);
        Ok(Self { model, layout: parts.layout, group, numerics, seed, rope })
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

    /// The layers of a branch of block `index`. A collective call where ranks share KV heads.
    ///
    /// # Errors
    /// A parameter that this rank does not hold, or a failed collective.
    pub fn branch(&self, index: usize, branch: &Branch) -> Result<BranchLayer, NnError> {
        let within = |name: &str| format!("block.{index}.{name}");
        let label = |label| Name::new(label).with("block", index as u64);
        let (name, biases) = (within(branch.name), branch.biases);
        let row = format!("{name}.{}", branch.row.name);
        let columns: Vec<&str> = branch.columns.iter().map(|part| part.name).collect();
        let cols = self.local(&format!("{row}.weight"))?.shape()[1];
        Ok(BranchLayer {
            norm: self.norm(&within(branch.norm), branch.norm_kind, label(branch.norm))?,
            columns: self.column(&name, &columns, biases, label(branch.inner.columns()))?,
            inner: match branch.inner {
                Inner::Attention => {
                    InnerLayer::Attention(self.attention(&name, index, label(branch.name))?)
                }
                Inner::Gelu => {
                    let function = Function::GeluTanh;
                    InnerLayer::Activation(Activation { function, gated: false, cols })
                }
                Inner::SwiGlu => {
                    let function = Function::Silu;
                    InnerLayer::Activation(Activation { function, gated: true, cols })
                }
            },
            row: self.row(&row, biases, label(branch.row.name))?,
            dropout: self.dropout(&format!("{name}.dropout")),
        })
    }

    /// A norm whose parameters are `name.weight` and, for LayerNorm, `name.bias`.
    ///
    /// # Errors
    /// No such parameter on this stage.
    pub fn norm(&self, name: &str, kind: Norm, label: Name) -> Result<StreamNorm, NnError> {
        let parts: &[&str] = match kind {
            Norm::Layer => &["weight", "bias"],
            Norm::Rms => &["weight"],
        };
        let names: Vec<String> = parts.iter().map(|part| format!("{name}.{part}")).collect();
        let params = self.neighbours(&names)?;
        let norm = NormLayer { kind, params, cols: self.model.hidden, eps: self.model.norm_eps };
        Ok(StreamNorm::new(self.group.clone(), norm, label))
    }

    /// Dropout on the residual stream, with a random stream of its own.
    pub fn dropout(&self, name: &str) -> StreamDropout {
        let dropout = Dropout::new(self.model.dropout, self.seed, name, self.model.hidden);
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
        let dropout = Dropout::new(self.model.dropout, self.seed, name, shape.q_cols());
        let core = AttentionCore {
            shape,
            scale: shape.scale(),
            rope: self.rope.clone(),
            dropout,
            window: None,
            softcap: None,
        };
        Ok(ShardedAttention::new(core, &self.group, k.replicas, label)?.at_layer(index))
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
            scale: None,
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
        Ok(VocabHead::new(self.group.clone(), weight, self.model.hidden, shard, self.numerics))
    }
}

/// Rotary tables for every position, in the accumulator type.
fn rotary(model: &ModelSpec, compute: DType) -> Result<Rotary, NnError> {
    let frequencies = rope_frequencies(model.rope_theta, model.head_dim);
    let table = rope_table(compute.accumulator(), &frequencies, 1.0, model.seq_max)?;
    Ok(Rotary { table: Act::new(table), turned: model.head_dim })
}
