//! What each layer computes, composed of candle's plain differentiable operations only, and its gradients by candle's
//! autograd.

use super::cases::{AMPLITUDE, Case, DROPPED, EPS, FIRST_HEAD, HEADS, SEED, THETA};
use super::{Pass, STEP, document_starts};
use crate::candle_layer::{CandleLayer, Forward, candle};
use crate::{NnError, ParamId, Rows};
use candle_core::{D, Device, Tensor, Var};
use trine_buffer::DType;
use trine_kernels::Function;
use trine_rng::Stream;
use trine_spec::{LocalParam, Norm};

type Result<T> = candle_core::Result<T>;

/// What a layer computes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Computes {
    Linear { bias: bool },
    Norm(Norm),
    Activation { function: Function, gated: bool },
    Attention(Attention),
    Dropout,
    Mlp,
}

/// What differs between the attention cases.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f64,
    /// Elements of a head that are turned.
    pub(super) turned: Option<usize>,
    pub(super) dropout: bool,
    pub(super) documents: bool,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f64>,
}

/// Where the tokens of a call stand, and the type to compute in.
#[derive(Debug, Clone)]
struct Place {
    rows: Rows,
    dtype: candle_core::DType,
}

impl Place {
    fn new(rows: &Rows, compute: DType) -> std::result::Result<Self, NnError> {
        Ok(Self { rows: rows.clone(), dtype: compute.try_into()? })
    }

    fn tensor(&self, values: Vec<f64>, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)
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
    fn dropout(&self, cols: usize) -> Result<Tensor> {
        let token = |t: usize| (0..cols).map(move |f| (t as u64) << 32 | f as u64);
        let elements: Vec<u64> = (0..self.rows.seq).flat_map(token).collect();
        let shape = [self.rows.samples.len(), self.rows.seq, cols];
        self.tensor(self.factors("residual", &elements), &shape)
    }

    /// The mask of attention probabilities: coordinates are (head, query, key).
    fn attention_dropout(&self) -> Result<Tensor> {
        let mut elements = Vec::new();
        for head in FIRST_HEAD..FIRST_HEAD + HEADS {
            for query in 0..self.rows.seq {
                elements.extend(
                    (0..self.rows.seq)
                        .map(|key| (head as u64) << 48 | (query as u64) << 24 | key as u64),
                );
            }
        }
        let shape = [self.rows.samples.len(), HEADS, self.rows.seq, self.rows.seq];
        self.tensor(self.factors("attention", &elements), &shape)
    }

    /// A large negative number where a query may not look.
    fn hidden(&self, documents: bool, window: Option<usize>) -> Result<Tensor> {
        let starts = document_starts(&self.rows);
        let mut values = Vec::new();
        for (row, start) in starts.iter().enumerate() {
            let (query, start) = (row % self.rows.seq, if documents { *start as usize } else { 0 });
            let visible = |key: usize| {
                (start..=query).contains(&key) && window.is_none_or(|window| query - key < window)
            };
            values.extend((0..self.rows.seq).map(|key| if visible(key) { 0.0 } else { -1e9 }));
        }
        self.tensor(values, &[self.rows.samples.len(), 1, self.rows.seq, self.rows.seq])
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

fn activation(function: Function, x: &Tensor) -> Result<Tensor> {
    match function {
        Function::GeluTanh => gelu(x),
        Function::GeluErf => (x * 0.5)? * ((x * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)?,
        Function::Silu => x / (x.neg()?.exp()? + 1.0)?,
        Function::Relu => x.relu(),
    }
}

fn gated(function: Function, x: &Tensor) -> Result<Tensor> {
    let cols = x.dim(D::Minus1)? / 2;
    let (gate, up) = (x.narrow(D::Minus1, 0, cols)?, x.narrow(D::Minus1, cols, cols)?);
    activation(function, &gate)? * up
}

/// `[samples, seq, heads · head_dim]` to `[samples, heads, seq, head_dim]`.
fn by_heads(x: &Tensor, heads: usize, head_dim: usize) -> Result<Tensor> {
    let (samples, seq, _) = x.dims3()?;
    x.reshape((samples, seq, heads, head_dim))?.transpose(1, 2)?.contiguous()
}

/// Heads whose first `turned` elements are turned.
fn rotate(x: &Tensor, turned: usize, place: &Place) -> Result<Tensor> {
    let half = turned / 2;
    let angle =
        |t: usize, i: usize| t as f64 * THETA.powf(-2.0 * (i % half) as f64 / turned as f64);
    let table = |f: fn(f64) -> f64| {
        let entry = move |t: usize| (0..turned).map(move |i| AMPLITUDE * f(angle(t, i)));
        place.tensor((0..place.rows.seq).flat_map(entry).collect(), &[place.rows.seq, turned])
    };
    let (left, right) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let front = x.narrow(D::Minus1, 0, turned)?.broadcast_mul(&table(f64::cos)?)?;
    let across = Tensor::cat(&[&right.neg()?, &left], D::Minus1)?;
    let front = (front + across.broadcast_mul(&table(f64::sin)?)?)?;
    let rest = x.narrow(D::Minus1, turned, x.dim(D::Minus1)? - turned)?;
    Tensor::cat(&[&front, &rest], D::Minus1)?.contiguous()
}

impl Attention {
    fn forward(&self, qkv: &Tensor, place: &Place) -> Result<Tensor> {
        let (samples, seq, _) = qkv.dims3()?;
        let (q_cols, kv_cols) = (HEADS * self.head_dim, self.kv_heads * self.head_dim);
        let mut q = by_heads(&qkv.narrow(2, 0, q_cols)?, HEADS, self.head_dim)?;
        let mut k = by_heads(&qkv.narrow(2, q_cols, kv_cols)?, self.kv_heads, self.head_dim)?;
        let v = by_heads(&qkv.narrow(2, q_cols + kv_cols, kv_cols)?, self.kv_heads, self.head_dim)?;
        if let Some(turned) = self.turned {
            (q, k) = (rotate(&q, turned, place)?, rotate(&k, turned, place)?);
        }
        let serves = HEADS / self.kv_heads;
        let of_query: Vec<u32> = (0..HEADS).map(|head| (head / serves) as u32).collect();
        let of_query = Tensor::from_vec(of_query, HEADS, &Device::Cpu)?;
        let (k, v) = (k.index_select(&of_query, 1)?, v.index_select(&of_query, 1)?);
        let scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * self.scale)?;
        let scores = match self.softcap {
            Some(cap) => ((scores / cap)?.tanh()? * cap)?,
            None => scores,
        };
        let scores = scores.broadcast_add(&place.hidden(self.documents, self.window)?)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let mut p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        if self.dropout {
            p = (p * place.attention_dropout()?)?;
        }
        p.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((samples, seq, q_cols))
    }
}

impl Computes {
    /// The function on tensors, its masks those of `place`.
    fn at(self, place: Place) -> Box<Forward> {
        match self {
            Self::Linear { bias: true } => Box::new(|x, w| linear(x, &w[0], Some(&w[1]))),
            Self::Linear { bias: false } => Box::new(|x, w| linear(x, &w[0], None)),
            Self::Norm(Norm::Layer) => Box::new(|x, w| layer_norm(x, &w[0], &w[1])),
            Self::Norm(Norm::Rms) => Box::new(|x, w| rms_norm(x, &w[0])),
            Self::Norm(Norm::RmsOne) => Box::new(|x, w| rms_norm(x, &(&w[0] + 1.0)?)),
            Self::Activation { function, gated: false } => {
                Box::new(move |x, _| activation(function, x))
            }
            Self::Activation { function, gated: true } => Box::new(move |x, _| gated(function, x)),
            Self::Attention(of) => Box::new(move |x, _| of.forward(x, &place)),
            Self::Dropout => Box::new(move |x, _| x * place.dropout(x.dim(D::Minus1)?)?),
            Self::Mlp => Box::new(move |x, w| {
                let h = gelu(&layer_norm(&linear(x, &w[0], Some(&w[1]))?, &w[2], &w[3])?)?;
                let mask = place.dropout(h.dim(D::Minus1)?)?;
                linear(&(h * mask)?, &w[4], None)
            }),
        }
    }
}

impl Case {
    /// Output and gradients of `Σ y · dy` by candle's autograd in f64.
    ///
    /// # Errors
    /// What candle reports.
    pub fn by_autograd(
        &self,
        rows: &Rows,
        weights: &[f64],
        x: &[f64],
        dy: &[f64],
    ) -> std::result::Result<Pass, NnError> {
        let place = Place::new(rows, DType::F64)?;
        self.differentiate(&place, weights, x, dy).map_err(candle)
    }

    fn differentiate(&self, place: &Place, weights: &[f64], x: &[f64], dy: &[f64]) -> Result<Pass> {
        let Rows { samples, seq } = &place.rows;
        let leaf = |values: &[f64], shape: &[usize]| {
            Var::from_tensor(&place.tensor(values.to_vec(), shape)?)
        };
        let x = leaf(x, &[samples.len(), *seq, self.inputs])?;
        let leaf_of = |param: &LocalParam| leaf(&weights[param.span()], &param.shape());
        let leaves = self.layout.params.iter().map(leaf_of).collect::<Result<Vec<Var>>>()?;
        let tensors: Vec<Tensor> = leaves.iter().map(|leaf| leaf.as_tensor().clone()).collect();
        let y = self.computes.at(place.clone())(x.as_tensor(), &tensors)?;
        let dy = place.tensor(dy.to_vec(), &[samples.len(), *seq, self.outputs])?;
        let found = (&y * dy)?.sum_all()?.backward()?;
        let gradient = |leaf: &Var| match found.get(leaf.as_tensor()) {
            Some(gradient) => numbers(gradient),
            None => Err(candle_core::Error::Msg("an input without a gradient".into())),
        };
        let mut grads = Vec::new();
        for leaf in &leaves {
            grads.extend(gradient(leaf)?);
        }
        Ok(Pass { y: numbers(&y)?, dx: gradient(&x)?, grads })
    }

    /// The same function through the adapter.
    ///
    /// # Errors
    /// A type that candle does not have.
    pub fn in_candle(
        &self,
        rows: &Rows,
        compute: DType,
    ) -> std::result::Result<CandleLayer, NnError> {
        let address = |param: &LocalParam| {
            Ok((ParamId::find(&self.layout, &[&param.spec.name])?, param.shape()))
        };
        let params =
            self.layout.params.iter().map(address).collect::<std::result::Result<_, NnError>>()?;
        let forward = self.computes.at(Place::new(rows, compute)?);
        Ok(CandleLayer::new(self.inputs, self.outputs, params, move |x, w| forward(x, w)))
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1()
}
