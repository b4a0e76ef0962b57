//! All layers, each with the function that it is.

use super::Sizes;
use super::candle::{Attention, Computes};
use crate::{
    Activation, AttentionCore, AttentionShape, Context, Dropout, GradStore, Layer, Linear, NnError,
    NormLayer, ParamId, ParamStore, Recompute, Rotary, Saved, Stack, WeightWork,
};
use std::sync::Arc;
use trine_buffer::{Act, DType};
use trine_kernels::{Function, rope_frequencies, rope_table};
use trine_spec::{Init, Norm, ParamSpec, RankLayout};

/// One layer.
#[derive(Debug)]
pub struct Case {
    /// What it is called.
    pub name: &'static str,
    /// The layer.
    pub layer: Box<dyn Layer>,
    /// Its parameters.
    pub layout: Arc<RankLayout>,
    /// Features of a token that go in.
    pub inputs: usize,
    /// Features of a token that come out.
    pub outputs: usize,
    /// Whether the samples are cut into documents.
    pub documents: bool,
    /// What it computes.
    pub(super) computes: Computes,
}

/// Dropout as a layer.
#[derive(Debug)]
struct DropoutLayer(Dropout);

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

/// The share that dropout drops.
pub(super) const DROPPED: f64 = 0.3;
/// Of all dropout masks.
pub(super) const SEED: u64 = 9;
pub(super) const HEADS: usize = 4;
/// Global index of the first head, as on the second of two ranks.
pub(super) const FIRST_HEAD: usize = 4;
/// Tokens that one attends to, where there is a window: fewer than the longest documents have.
const WINDOW: usize = 3;
/// The bound of scores, where they have one: about as large as they are.
const SOFTCAP: f64 = 1.5;
/// Base of the rotary frequencies.
pub(super) const THETA: f64 = 100.0;
/// The factor on cosines and sines.
pub(super) const AMPLITUDE: f64 = 1.25;
/// Added to variances.
pub(super) const EPS: f64 = 1e-5;

/// One bucket of parameters that lie directly behind one another, normal with standard deviation 0.7.
pub fn layout(params: &[(&str, &[usize])]) -> Arc<RankLayout> {
    let spec =
        |(name, shape): &(&str, &[usize])| ParamSpec::new(*name, shape, Init::Normal { std: 0.7 });
    let layout = RankLayout::of(params.iter().map(spec).collect(), 1, 0);
    Arc::new(layout.expect("invariant: one rank holds every parameter whole"))
}

/// Every layer for a compute type. Sums over blocks are there in sizes that the blocks divide.
///
/// # Errors
/// A type that kernels do not compute in.
pub fn cases(compute: DType, sizes: Sizes) -> Result<Vec<Case>, NnError> {
    let features = 6 * sizes.wide;
    let mut cases = linears(sizes.wide)?;
    cases.extend(norms(features)?);
    cases.extend(activations(features));
    cases.extend(attentions(compute, sizes)?);
    let layer = Box::new(residual_dropout(features));
    cases.push(case("dropout", layer, layout(&[]), [features; 2], Computes::Dropout));
    cases.extend(wrappers(sizes.wide)?);
    Ok(cases)
}

fn case(
    name: &'static str,
    layer: Box<dyn Layer>,
    layout: Arc<RankLayout>,
    [inputs, outputs]: [usize; 2],
    computes: Computes,
) -> Case {
    Case { name, layer, layout, inputs, outputs, documents: false, computes }
}

fn residual_dropout(cols: usize) -> DropoutLayer {
    DropoutLayer(Dropout::new(DROPPED, SEED, "residual", cols))
}

fn linears(wide: usize) -> Result<Vec<Case>, NnError> {
    let (inputs, outputs) = (8 * wide, 12 * wide);
    let both = layout(&[("w", &[outputs, inputs]), ("b", &[outputs])]);
    let weight = ParamId::find(&both, &["w"])?;
    let bias = ParamId::find(&both, &["b"])?;
    let plain = Linear::new(weight, Some(bias), inputs, outputs);
    let part = |from: usize, to: usize| from * wide..to * wide;
    let blocks = Linear {
        input_blocks: 4,
        output_blocks: [0, 3, 6, 9].map(|from| [part(from, from + 3)].into()).into(),
        ..plain.clone()
    };
    // As a column-parallel layer of two sections has it: each leaf takes a part of both.
    let interleaved = Linear {
        output_blocks: vec![vec![part(0, 4), part(8, 10)], vec![part(4, 8), part(10, 12)]],
        input_blocks: 2,
        ..plain.clone()
    };
    let unbiased = Linear::new(weight, None, inputs, outputs);
    let (size, biased) = ([inputs, outputs], Computes::Linear { bias: true });
    Ok(vec![
        case("linear", Box::new(plain), both.clone(), size, biased),
        case("linear in blocks", Box::new(blocks), both.clone(), size, biased),
        case("linear of sections", Box::new(interleaved), both, size, biased),
        case(
            "linear without bias",
            Box::new(unbiased),
            layout(&[("w", &[outputs, inputs])]),
            size,
            Computes::Linear { bias: false },
        ),
    ])
}

/// Every function, alone and as a gate.
fn activations(cols: usize) -> Vec<Case> {
    let named = |function| match function {
        Function::GeluTanh => ["gelu", "gelu as a gate"],
        Function::GeluErf => ["gelu of erf", "gelu of erf as a gate"],
        Function::Silu => ["silu", "swiglu"],
        Function::Relu => ["relu", "relu as a gate"],
    };
    let mut cases = Vec::new();
    for function in Function::ALL {
        for (name, gated) in named(function).into_iter().zip([false, true]) {
            let layer = Activation { function, gated, cols };
            let inputs = if gated { 2 * cols } else { cols };
            let computes = Computes::Activation { function, gated };
            cases.push(case(name, Box::new(layer), layout(&[]), [inputs, cols], computes));
        }
    }
    cases
}

fn norms(cols: usize) -> Result<Vec<Case>, NnError> {
    let both = layout(&[("gain", &[cols]), ("bias", &[cols])]);
    let gain = layout(&[("gain", &[cols])]);
    let norm = |kind, layout: Arc<RankLayout>, name, names: &[&str]| {
        let params = ParamId::find(&layout, names)?;
        let layer = Box::new(NormLayer { kind, params, cols, eps: EPS });
        Ok::<_, NnError>(case(name, layer, layout, [cols; 2], Computes::Norm(kind)))
    };
    Ok(vec![
        norm(Norm::Layer, both, "layer norm", &["gain", "bias"])?,
        norm(Norm::Rms, gain.clone(), "rms norm", &["gain"])?,
        norm(Norm::RmsOne, gain, "rms norm of one more", &["gain"])?,
    ])
}

fn attentions(compute: DType, sizes: Sizes) -> Result<Vec<Case>, NnError> {
    let (head_dim, first_head) = (sizes.head_dim(), FIRST_HEAD);
    let rotary = |turned| {
        let frequencies = rope_frequencies(THETA, turned);
        let table = rope_table(compute.accumulator(), &frequencies, AMPLITUDE, sizes.seq)?;
        Ok::<_, NnError>(Rotary { table: Act::new(table), turned })
    };
    let core = |of: Attention| {
        let kv_heads = of.kv_heads;
        let shape = AttentionShape { heads: HEADS, kv_heads, head_dim, first_head };
        let dropped = if of.dropout { DROPPED } else { 0.0 };
        let dropout = Dropout::new(dropped, SEED, "attention", shape.q_cols());
        let rope = of.turned.map(rotary).transpose()?;
        let Attention { scale, window, softcap, .. } = of;
        Ok::<_, NnError>(AttentionCore { shape, scale, rope, dropout, window, softcap })
    };
    let plain = Attention {
        kv_heads: HEADS,
        head_dim,
        scale: 1.0 / (head_dim as f64).sqrt(),
        turned: None,
        dropout: false,
        documents: false,
        window: None,
        softcap: None,
    };
    let shared = Attention { kv_heads: 2, ..plain };
    let bounded = Attention { window: Some(WINDOW), softcap: Some(SOFTCAP), ..shared };
    let half = Some(head_dim / 2);
    let list = [
        ("attention", plain),
        ("attention with shared kv heads", shared),
        ("attention with rope", Attention { kv_heads: 1, turned: Some(head_dim), ..plain }),
        ("attention with half of a head turned", Attention { turned: half, scale: 0.3, ..shared }),
        ("attention within documents", Attention { documents: true, ..shared }),
        ("attention with dropout", Attention { dropout: true, ..plain }),
        ("attention within a window", Attention { softcap: None, ..bounded }),
        ("attention with bounded scores", Attention { window: None, ..bounded }),
        (
            "attention with everything",
            Attention { turned: half, dropout: true, documents: true, ..bounded },
        ),
    ];
    let case = |(name, of): (_, Attention)| {
        let core = core(of)?;
        let size = [core.shape.qkv_cols(), core.shape.q_cols()];
        let made = case(name, Box::new(core), layout(&[]), size, Computes::Attention(of));
        Ok::<_, NnError>(Case { documents: of.documents, ..made })
    };
    list.into_iter().map(case).collect()
}

/// Linear, norm, GELU, dropout, linear.
fn mlp(layout: &RankLayout, cols: usize, inner: usize) -> Result<Vec<Box<dyn Layer>>, NnError> {
    let find = |names: &[&str]| ParamId::find(layout, names);
    let up = Linear::new(find(&["up"])?, Some(find(&["up.bias"])?), cols, inner);
    let params = find(&["gain", "bias"])?;
    let norm = NormLayer { kind: Norm::Layer, params, cols: inner, eps: EPS };
    let down = Linear::new(find(&["down"])?, None, inner, cols);
    Ok(vec![
        Box::new(up),
        Box::new(norm),
        Box::new(Activation { function: Function::GeluTanh, gated: false, cols: inner }),
        Box::new(residual_dropout(inner)),
        Box::new(down),
    ])
}

fn wrappers(wide: usize) -> Result<Vec<Case>, NnError> {
    let (cols, inner) = (6 * wide, 10 * wide);
    let layout = layout(&[
        ("up", &[inner, cols]),
        ("up.bias", &[inner]),
        ("gain", &[inner]),
        ("bias", &[inner]),
        ("down", &[cols, inner]),
    ]);
    let stack = Stack(mlp(&layout, cols, inner)?);
    let recomputed = Recompute(Stack(mlp(&layout, cols, inner)?));
    Ok(vec![
        case("stack", Box::new(stack), layout.clone(), [cols; 2], Computes::Mlp),
        case("recompute", Box::new(recomputed), layout, [cols; 2], Computes::Mlp),
    ])
}
