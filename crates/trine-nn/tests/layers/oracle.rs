//! Every layer against candle's autograd of the same function, composed of candle's plain
//! differentiable operations only.

use crate::cases::{self, COUNT, Case, DROPPED, EPS, FIRST_HEAD, HEAD_DIM, HEADS, SEED, THETA};
use crate::support::{Bench, Pass, SEQ, STEP, document_starts, error, pass, values};
use candle_core::{D, Device, Tensor, Var};
use trine_buffer::DType;
use trine_nn::candle_layer::{CandleLayer, Forward};
use trine_nn::{Numerics, ParamId, Rows};
use trine_rng::Stream;
use trine_spec::LocalParam;

type Result<T> = candle_core::Result<T>;

/// Where the tokens of a call stand, and the type to compute in.
#[derive(Debug, Clone)]
struct Place {
    rows: Rows,
    compute: DType,
}

impl Place {
    fn tensor(&self, values: Vec<f64>, shape: &[usize]) -> Tensor {
        let dtype = candle_core::DType::try_from(self.compute).unwrap();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    /// 0, or the factor on what is kept, for each element of a mask.
    fn factors(&self, name: &str, elements: &[u64]) -> Vec<f64> {
        let stream = Stream::new(SEED, name);
        let threshold = (DROPPED * 2f64.powi(32)).round() as u64;
        let factor = |sample: usize, element: u64| {
            let word = stream.keep(STEP as u32, sample as u32, element);
            if u64::from(word) < threshold { 0.0 } else { 1.0 / (1.0 - DROPPED) }
        };
        let of = |sample: usize| elements.iter().map(move |e| factor(sample, *e));
        self.rows.samples.clone().flat_map(of).collect()
    }

    /// The mask of the residual stream: coordinates are (token, feature).
    fn dropout(&self, cols: usize) -> Tensor {
        let token = |t: usize| (0..cols).map(move |f| (t as u64) << 32 | f as u64);
        let elements: Vec<u64> = (0..SEQ).flat_map(token).collect();
        let shape = [self.rows.samples.len(), SEQ, cols];
        self.tensor(self.factors("residual", &elements), &shape)
    }

    /// The mask of attention probabilities: coordinates are (head, query, key).
    fn attention_dropout(&self) -> Tensor {
        let mut elements = Vec::new();
        for head in FIRST_HEAD..FIRST_HEAD + HEADS {
            for query in 0..SEQ {
                elements.extend(
                    (0..SEQ).map(|key| (head as u64) << 48 | (query as u64) << 24 | key as u64),
                );
            }
        }
        let shape = [self.rows.samples.len(), HEADS, SEQ, SEQ];
        self.tensor(self.factors("attention", &elements), &shape)
    }

    /// A large negative number where a query may not look.
    fn hidden(&self, documents: bool) -> Tensor {
        let starts = document_starts(&self.rows);
        let mut values = Vec::new();
        for (row, start) in starts.iter().enumerate() {
            let (query, start) = (row % SEQ, if documents { *start as usize } else { 0 });
            let visible = |key: usize| (start..=query).contains(&key);
            values.extend((0..SEQ).map(|key| if visible(key) { 0.0 } else { -1e9 }));
        }
        self.tensor(values, &[self.rows.samples.len(), 1, SEQ, SEQ])
    }
}

fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(&w.t()?)?;
    bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}

fn layer_norm(x: &Tensor, gain: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(gain)?.broadcast_add(bias)
}

fn rms_norm(x: &Tensor, gain: &Tensor) -> Result<Tensor> {
    let root = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    x.broadcast_div(&root)?.broadcast_mul(gain)
}

fn gelu(x: &Tensor) -> Result<Tensor> {
    let inner = ((x + (x.powf(3.0)? * 0.044_715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
    (x * 0.5)? * (inner.tanh()? + 1.0)?
}

fn swiglu(x: &Tensor) -> Result<Tensor> {
    let cols = x.dim(D::Minus1)? / 2;
    let (gate, up) = (x.narrow(D::Minus1, 0, cols)?, x.narrow(D::Minus1, cols, cols)?);
    (gate.clone() / (gate.neg()?.exp()? + 1.0)?)? * up
}

/// `[samples, seq, heads · head_dim]` to `[samples, heads, seq, head_dim]`.
fn by_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (samples, seq, _) = x.dims3()?;
    x.reshape((samples, seq, heads, HEAD_DIM))?.transpose(1, 2)?.contiguous()
}

fn rotate(x: &Tensor, place: &Place) -> Result<Tensor> {
    let half = HEAD_DIM / 2;
    let angle =
        |t: usize, i: usize| t as f64 * THETA.powf(-2.0 * (i % half) as f64 / HEAD_DIM as f64);
    let table = |f: fn(f64) -> f64| {
        let values = (0..SEQ).flat_map(|t| (0..HEAD_DIM).map(move |i| f(angle(t, i))));
        place.tensor(values.collect(), &[SEQ, HEAD_DIM])
    };
    let (left, right) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turned = Tensor::cat(&[&right.neg()?, &left], D::Minus1)?;
    x.broadcast_mul(&table(f64::cos))? + turned.broadcast_mul(&table(f64::sin))?
}

/// What differs between the attention cases.
struct Attention {
    kv_heads: usize,
    rope: bool,
    dropout: bool,
    documents: bool,
}

impl Attention {
    fn forward(&self, qkv: &Tensor, place: &Place) -> Result<Tensor> {
        let (samples, seq, _) = qkv.dims3()?;
        let (q_cols, kv_cols) = (HEADS * HEAD_DIM, self.kv_heads * HEAD_DIM);
        let mut q = by_heads(&qkv.narrow(2, 0, q_cols)?, HEADS)?;
        let mut k = by_heads(&qkv.narrow(2, q_cols, kv_cols)?, self.kv_heads)?;
        let v = by_heads(&qkv.narrow(2, q_cols + kv_cols, kv_cols)?, self.kv_heads)?;
        if self.rope {
            (q, k) = (rotate(&q, place)?, rotate(&k, place)?);
        }
        let serves = HEADS / self.kv_heads;
        let of_query: Vec<u32> = (0..HEADS).map(|head| (head / serves) as u32).collect();
        let of_query = Tensor::from_vec(of_query, HEADS, &Device::Cpu)?;
        let (k, v) = (k.index_select(&of_query, 1)?, v.index_select(&of_query, 1)?);
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? / (HEAD_DIM as f64).sqrt())?;
        let scores = scores.broadcast_add(&place.hidden(self.documents))?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let mut p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        if self.dropout {
            p = (p * place.attention_dropout())?;
        }
        p.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((samples, seq, q_cols))
    }
}

/// The function of a case in candle.
fn oracle(name: &str, place: Place) -> Box<Forward> {
    let attention = |kv_heads, rope, dropout, documents| -> Box<Forward> {
        let (of, place) = (Attention { kv_heads, rope, dropout, documents }, place.clone());
        Box::new(move |x, _| of.forward(x, &place))
    };
    match name {
        "linear" | "linear in blocks" | "linear of sections" => {
            Box::new(|x, w| linear(x, &w[0], Some(&w[1])))
        }
        "linear without bias" => Box::new(|x, w| linear(x, &w[0], None)),
        "layer norm" => Box::new(|x, w| layer_norm(x, &w[0], &w[1])),
        "rms norm" => Box::new(|x, w| rms_norm(x, &w[0])),
        "gelu" => Box::new(|x, _| gelu(x)),
        "swiglu" => Box::new(|x, _| swiglu(x)),
        "attention" => attention(4, false, false, false),
        "attention with shared kv heads" => attention(2, false, false, false),
        "attention with rope" => attention(1, true, false, false),
        "attention within documents" => attention(2, false, false, true),
        "attention with dropout" => attention(4, false, true, false),
        "attention with everything" => attention(2, true, true, true),
        "dropout" => Box::new(move |x, _| x * place.dropout(6)),
        "stack" | "recompute" => Box::new(move |x, w| {
            let h = layer_norm(&linear(x, &w[0], Some(&w[1]))?, &w[2], &w[3])?;
            linear(&(gelu(&h)? * place.dropout(10))?, &w[4], None)
        }),
        other => panic!("no oracle for {other}"),
    }
}

/// Output and gradients by candle's autograd of `Σ y · dy`.
fn by_autograd(case: &Case, place: &Place, weights: &[f64], x: &[f64], dy: &[f64]) -> Pass {
    let samples = place.rows.samples.len();
    let leaf = |values: &[f64], shape: &[usize]| {
        Var::from_tensor(&place.tensor(values.to_vec(), shape)).unwrap()
    };
    let x = leaf(x, &[samples, SEQ, case.inputs]);
    let leaf_of = |param: &LocalParam| leaf(&weights[param.span()], &param.shape());
    let leaves: Vec<Var> = case.layout.params.iter().map(leaf_of).collect();
    let tensors: Vec<Tensor> = leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect();
    let y = oracle(case.name, place.clone())(x.as_tensor(), &tensors).unwrap();
    let dy = place.tensor(dy.to_vec(), &[samples, SEQ, case.outputs]);
    let found = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = |leaf: &Var| numbers(found.get(leaf.as_tensor()).expect("candle has it"));
    let grads = leaves.iter().flat_map(gradient).collect();
    Pass { y: numbers(&y), dx: gradient(&x), grads }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let wide = tensor.to_dtype(candle_core::DType::F64).unwrap();
    wide.flatten_all().unwrap().to_vec1().unwrap()
}

/// The same function through the adapter.
fn as_layer(case: &Case, place: &Place) -> CandleLayer {
    let address = |param: &LocalParam| {
        (ParamId::find(&case.layout, &[&param.spec.name]).unwrap(), param.shape())
    };
    let params = case.layout.params.iter().map(address).collect();
    let forward = oracle(case.name, place.clone());
    CandleLayer::new(case.inputs, case.outputs, params, move |x, w| forward(x, w))
}

#[test]
fn every_layer_agrees_with_candles_autograd() {
    let rows = Rows { samples: 3..6, seq: SEQ };
    let starts = document_starts(&rows);
    let mut compared = 0;
    for (compute, bound) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let bench = Bench::new(compute, Numerics::Fast);
        let place = Place { rows: rows.clone(), compute };
        for case in cases::all(compute) {
            let ctx = bench.context(rows.clone(), case.documents.then_some(starts.as_slice()));
            let weights = bench.weights(&case.layout);
            let x = values("x", rows.tokens() * case.inputs);
            let dy = values("dy", rows.tokens() * case.outputs);
            let held = case.layout.buckets.first().map(|_| weights.bucket(0).unwrap());
            let held = held.map(|bucket| bucket.to_f64_vec()).unwrap_or_default();
            let exact = by_autograd(&case, &place, &held, &x, &dy);
            assert!(exact.dx.iter().any(|g| g.abs() > 1e-3), "{}", case.name);
            let own = pass(&*case.layer, &weights, &x, &dy, &ctx);
            let adapted = pass(&as_layer(&case, &place), &weights, &x, &dy, &ctx);
            for (which, got) in [("own", own), ("candle layer", adapted)] {
                for (what, got, exact) in [
                    ("output", &got.y, &exact.y),
                    ("input gradient", &got.dx, &exact.dx),
                    ("parameter gradients", &got.grads, &exact.grads),
                ] {
                    let error = error(got, exact);
                    let name = case.name;
                    assert!(error < bound, "{name} {compute}, {which}: {what} off by {error:e}");
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * 2 * COUNT);
}
