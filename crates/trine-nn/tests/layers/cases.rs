//! All layers with their parameters, as a list that every test goes through.

use crate::support::layout;
use std::sync::Arc;
use trine_buffer::{Act, DType};
use trine_kernels::{rope_frequencies, rope_table};
use trine_nn::{
    Activation, AttentionCore, AttentionShape, Context, Dropout, GradStore, Layer, Linear, NnError,
    NormLayer, ParamId, ParamStore, Recompute, Saved, Stack, WeightWork,
};
use trine_spec::{Norm, StageLayout};

/// One layer.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) layer: Box<dyn Layer>,
    pub(crate) layout: Arc<StageLayout>,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Whether the samples are cut into documents.
    pub(crate) documents: bool,
}

/// Dropout as a layer.
#[derive(Debug)]
pub(crate) struct DropoutLayer(pub Dropout);

impl Layer for DropoutLayer {
    fn forward(&self, _: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        Ok((self.0.apply(x, 0, ctx)?, Saved::nothing()))
    }

    fn backward_input(
        &self,
        _: &ParamStore,
        _: Saved,
        dy: Act,
        ctx: &Context<'_>,
        _: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        Ok((self.0.apply(dy, 0, ctx)?, WeightWork::nothing()))
    }
}

pub(crate) const DROPPED: f64 = 0.3;
pub(crate) const SEED: u64 = 9;
pub(crate) const HEAD_DIM: usize = 4;
pub(crate) const HEADS: usize = 4;
/// Global index of the first head, as on the second of two ranks.
pub(crate) const FIRST_HEAD: usize = 4;
pub(crate) const THETA: f64 = 100.0;
pub(crate) const EPS: f64 = 1e-5;
/// Number of cases.
pub(crate) const COUNT: usize = 17;

/// Every layer for a compute type. Sums over blocks are there in sizes that the blocks divide.
pub(crate) fn all(compute: DType) -> Vec<Case> {
    let mut cases = linears();
    cases.extend(norms());
    for (name, layer, inputs) in
        [("gelu", Activation::Gelu { cols: 6 }, 6), ("swiglu", Activation::SwiGlu { cols: 6 }, 12)]
    {
        cases.push(case(name, Box::new(layer), layout(&[]), inputs, 6));
    }
    cases.extend(attentions(compute));
    let dropout = DropoutLayer(Dropout::new(DROPPED, SEED, "residual", 6));
    cases.push(case("dropout", Box::new(dropout), layout(&[]), 6, 6));
    cases.extend(wrappers());
    assert_eq!(cases.len(), COUNT);
    cases
}

fn case(
    name: &'static str,
    layer: Box<dyn Layer>,
    layout: Arc<StageLayout>,
    inputs: usize,
    outputs: usize,
) -> Case {
    Case { name, layer, layout, inputs, outputs, documents: false }
}

fn linears() -> Vec<Case> {
    let layout = layout(&[("w", &[12, 8]), ("b", &[12])]);
    let weight = ParamId::find(&layout, &["w"]).unwrap();
    let bias = ParamId::find(&layout, &["b"]).unwrap();
    let plain = Linear::new(weight, Some(bias), 8, 12);
    let quarter = |index: usize| 3 * index..3 * (index + 1);
    let blocks = Linear {
        input_blocks: 4,
        output_blocks: (0..4).map(|index| vec![quarter(index)]).collect(),
        ..plain.clone()
    };
    // As a column-parallel layer of two sections has it: each leaf takes a part of both.
    let interleaved = Linear {
        output_blocks: vec![vec![0..4, 8..10], vec![4..8, 10..12]],
        input_blocks: 2,
        ..plain.clone()
    };
    let unbiased = crate::support::layout(&[("w", &[12, 8])]);
    vec![
        case("linear", Box::new(plain), layout.clone(), 8, 12),
        case("linear in blocks", Box::new(blocks), layout.clone(), 8, 12),
        case("linear of sections", Box::new(interleaved), layout, 8, 12),
        case("linear without bias", Box::new(Linear::new(weight, None, 8, 12)), unbiased, 8, 12),
    ]
}

fn norms() -> Vec<Case> {
    let both = layout(&[("gain", &[6]), ("bias", &[6])]);
    let gain = layout(&[("gain", &[6])]);
    let norm = |kind, layout: &StageLayout, names: &[&str]| {
        let params = ParamId::find(layout, names).unwrap();
        Box::new(NormLayer { kind, params, cols: 6, eps: EPS })
    };
    vec![
        case("layer norm", norm(Norm::Layer, &both, &["gain", "bias"]), both, 6, 6),
        case("rms norm", norm(Norm::Rms, &gain, &["gain"]), gain, 6, 6),
    ]
}

fn attentions(compute: DType) -> Vec<Case> {
    let attention = |kv_heads, rope: bool, dropped: f64| {
        let frequencies = rope_frequencies(THETA, HEAD_DIM);
        let table = || rope_table(compute.accumulator(), &frequencies, 16).unwrap();
        let first_head = FIRST_HEAD;
        let shape = AttentionShape { heads: HEADS, kv_heads, head_dim: HEAD_DIM, first_head };
        let dropout = Dropout::new(dropped, SEED, "attention", shape.q_cols());
        AttentionCore { shape, rope: rope.then(|| Act::new(table())), dropout }
    };
    let list: [(_, _, bool, _, _); 6] = [
        ("attention", 4, false, 0.0, false),
        ("attention with shared kv heads", 2, false, 0.0, false),
        ("attention with rope", 1, true, 0.0, false),
        ("attention within documents", 2, false, 0.0, true),
        ("attention with dropout", 4, false, DROPPED, false),
        ("attention with everything", 2, true, DROPPED, true),
    ];
    list.map(|(name, kv_heads, rope, dropped, documents)| {
        let core = attention(kv_heads, rope, dropped);
        let (inputs, outputs) = (core.shape.qkv_cols(), core.shape.q_cols());
        Case { documents, ..case(name, Box::new(core), layout(&[]), inputs, outputs) }
    })
    .into()
}

/// Linear, norm, GELU, dropout, linear.
fn mlp(layout: &StageLayout) -> Vec<Box<dyn Layer>> {
    let find = |names: &[&str]| ParamId::find(layout, names).unwrap();
    let up = Linear::new(find(&["up"]), Some(find(&["up.bias"])), 6, 10);
    let params = find(&["gain", "bias"]);
    let norm = NormLayer { kind: Norm::Layer, params, cols: 10, eps: EPS };
    let dropout = DropoutLayer(Dropout::new(DROPPED, SEED, "residual", 10));
    let down = Linear::new(find(&["down"]), None, 10, 6);
    vec![
        Box::new(up),
        Box::new(norm),
        Box::new(Activation::Gelu { cols: 10 }),
        Box::new(dropout),
        Box::new(down),
    ]
}

fn wrappers() -> Vec<Case> {
    let params: &[(&str, &[usize])] = &[
        ("up", &[10, 6]),
        ("up.bias", &[10]),
        ("gain", &[10]),
        ("bias", &[10]),
        ("down", &[6, 10]),
    ];
    let layout = layout(params);
    let stack = Stack(mlp(&layout));
    let recomputed = Recompute(Stack(mlp(&layout)));
    vec![
        case("stack", Box::new(stack), layout.clone(), 6, 6),
        case("recompute", Box::new(recomputed), layout, 6, 6),
    ]
}
