//! The forward pass in plain loops over f64: written from the papers, slow, and independent of
//! everything it is compared with.

use std::collections::BTreeMap;
use trine_spec::{Activation, ModelSpec, Norm, NormAt, Positions, QkNorm};

/// Rows of numbers.
type Rows = Vec<Vec<f64>>;

pub(crate) struct Plain<'a> {
    pub(crate) model: &'a ModelSpec,
    pub(crate) weights: &'a BTreeMap<String, Vec<f64>>,
}

impl Plain<'_> {
    fn get(&self, name: &str) -> &[f64] {
        self.weights.get(name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The logits of one sequence. Token `t` sees tokens `starts[t]..=t`.
    pub(crate) fn logits(&self, ids: &[u32], starts: &[u32]) -> Rows {
        let hidden = self.model.hidden;
        let embedding = self.get("embedding.token");
        let row = |id: &u32| embedding[*id as usize * hidden..][..hidden].to_vec();
        let mut x: Rows = ids.iter().map(row).collect();
        let scale = self.model.embedding_scale.get().unwrap_or(1.0);
        x.iter_mut().flatten().for_each(|x| *x *= scale);
        if *self.model.positions.of(0) == Positions::Learned {
            let positions = self.get("embedding.position");
            for (t, x) in x.iter_mut().enumerate() {
                for i in 0..hidden {
                    x[i] += positions[t * hidden + i];
                }
            }
        }
        for block in 0..self.model.layers {
            let attention = self.attention(block, &self.before(block, "norm1", &x), starts);
            let attention = self.after(block, "norm1", attention);
            let mut between = x.clone();
            add(&mut between, &attention);
            let read = if *self.model.parallel.of(block) { &x } else { &between };
            let mlp = self.mlp(block, &self.before(block, "norm2", read));
            add(&mut between, &self.after(block, "norm2", mlp));
            x = between;
        }
        let x = self.norm("head.norm", self.model.head_norm(), &x);
        let output = if self.model.tied { "embedding.token" } else { "head.output.weight" };
        let logits = self.product(output, &x, hidden);
        let cap = |logit: &f64| bounded(*logit, self.model.logit_cap.get());
        let row = |row: Vec<f64>| row[..self.model.vocab].iter().map(cap).collect();
        logits.into_iter().map(row).collect()
    }

    fn before(&self, block: usize, name: &str, x: &Rows) -> Rows {
        match self.model.norm_at.of(block) {
            NormAt::After => x.clone(),
            NormAt::Before | NormAt::Both => {
                self.norm(&format!("block.{block}.{name}"), *self.model.norm.of(block), x)
            }
        }
    }

    fn after(&self, block: usize, name: &str, y: Rows) -> Rows {
        match self.model.norm_at.of(block) {
            NormAt::Before => y,
            NormAt::After | NormAt::Both => {
                self.norm(&format!("block.{block}.{name}_after"), *self.model.norm.of(block), &y)
            }
        }
    }

    fn norm(&self, name: &str, kind: Norm, x: &Rows) -> Rows {
        let n = self.model.hidden as f64;
        let gain = self.get(&format!("{name}.weight"));
        let row = |x: &Vec<f64>| -> Vec<f64> {
            match kind {
                Norm::Layer => {
                    let bias = self.get(&format!("{name}.bias"));
                    let mean = x.iter().sum::<f64>() / n;
                    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
                    let deviation = (variance + self.model.norm_eps).sqrt();
                    (0..x.len()).map(|i| (x[i] - mean) / deviation * gain[i] + bias[i]).collect()
                }
                Norm::Rms => self.rms(x, |i| gain[i]),
                Norm::RmsOne => self.rms(x, |i| 1.0 + gain[i]),
            }
        };
        x.iter().map(row).collect()
    }

    fn rms(&self, x: &[f64], gain: impl Fn(usize) -> f64) -> Vec<f64> {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean_square + self.model.norm_eps).sqrt();
        (0..x.len()).map(|i| x[i] / root * gain(i)).collect()
    }

    /// `x · wᵀ`.
    fn product(&self, weight: &str, x: &Rows, inputs: usize) -> Rows {
        let weight = self.get(weight);
        let dot = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        x.iter().map(|x| weight.chunks(inputs).map(|w| dot(w, x)).collect()).collect()
    }

    /// A linear layer, with its bias where it has one.
    fn linear(&self, name: &str, x: &Rows, inputs: usize) -> Rows {
        let mut y = self.product(&format!("{name}.weight"), x, inputs);
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            y.iter_mut().for_each(|y| (0..y.len()).for_each(|i| y[i] += bias[i]));
        }
        y
    }

    /// Norms of the queries or keys of a token.
    fn qk_norm(&self, block: usize, part: &str, x: &mut Rows) {
        let name = format!("block.{block}.attention.{part}_norm.weight");
        for row in x {
            let width = match self.model.qk_norm.of(block) {
                QkNorm::None => return,
                QkNorm::Head => self.model.head_dim,
                QkNorm::All => row.len(),
            };
            let gain = self.get(&name);
            *row = row.chunks(width).flat_map(|x| self.rms(x, |i| gain[i])).collect();
        }
    }

    fn attention(&self, block: usize, x: &Rows, starts: &[u32]) -> Rows {
        let (hidden, d) = (self.model.hidden, self.model.head_dim);
        let project =
            |part: &str| self.linear(&format!("block.{block}.attention.{part}"), x, hidden);
        let (mut q, mut k, v) = (project("q"), project("k"), project("v"));
        self.qk_norm(block, "q", &mut q);
        self.qk_norm(block, "k", &mut k);
        self.rotate(block, &mut q);
        self.rotate(block, &mut k);
        let dim = self.model.score_dim.of(block).get().unwrap_or(d) as f64;
        let cap = self.model.score_cap.of(block).get();
        let window = self.model.window.of(block).get().unwrap_or(usize::MAX);
        let mut o = vec![vec![0.0; self.model.heads * d]; x.len()];
        for head in 0..self.model.heads {
            let of_kv = head / (self.model.heads / self.model.kv_heads) * d;
            let of_q = head * d;
            for t in 0..x.len() {
                let score = |s: usize| -> f64 {
                    let dot = (0..d).map(|i| q[t][of_q + i] * k[s][of_kv + i]).sum::<f64>();
                    bounded(dot / dim.sqrt(), cap)
                };
                let visible = (starts[t] as usize).max((t + 1).saturating_sub(window))..t + 1;
                let sum: f64 = visible.clone().map(|s| score(s).exp()).sum();
                for s in visible {
                    let p = score(s).exp() / sum;
                    (0..d).for_each(|i| o[t][of_q + i] += p * v[s][of_kv + i]);
                }
            }
        }
        self.linear(&format!("block.{block}.attention.output"), &o, self.model.heads * d)
    }

    /// Element `i` of a head turns with element `i + turned / 2`, by position × θ^(−2i / turned) or what that is
    /// stretched to.
    fn rotate(&self, block: usize, x: &mut Rows) {
        let turned = self.model.turned(block);
        let scaling = self.model.rope_scaling;
        let frequencies = scaling.frequencies(self.model.rope_theta, turned);
        for (t, x) in x.iter_mut().enumerate() {
            for head in x.chunks_mut(self.model.head_dim) {
                for (i, frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = (t as f64 * frequency).sin_cos();
                    let (sin, cos) = (sin * scaling.amplitude(), cos * scaling.amplitude());
                    let (a, b) = (head[i], head[i + turned / 2]);
                    (head[i], head[i + turned / 2]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
    }

    fn mlp(&self, block: usize, x: &Rows) -> Rows {
        let name = format!("block.{block}.mlp");
        let function = |x: &f64| match self.model.activation.of(block) {
            Activation::GeluTanh => gelu(*x),
            Activation::Gelu => x * normal(*x),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Relu => x.max(0.0),
        };
        let up = self.linear(&format!("{name}.up"), x, self.model.hidden);
        let inner: Rows = if *self.model.gated.of(block) {
            let gate = self.linear(&format!("{name}.gate"), x, self.model.hidden);
            let row = |(gate, up): (&Vec<f64>, &Vec<f64>)| {
                gate.iter().zip(up).map(|(gate, up)| function(gate) * up).collect()
            };
            gate.iter().zip(&up).map(row).collect()
        } else {
            up.iter().map(|row| row.iter().map(function).collect()).collect()
        };
        self.linear(&format!("{name}.down"), &inner, self.model.ffn)
    }
}

/// `cap · tanh(x / cap)`.
fn bounded(x: f64, cap: Option<f64>) -> f64 {
    cap.map_or(x, |cap| cap * (x / cap).tanh())
}

/// The normal distribution function, by Simpson's rule over its density.
fn normal(x: f64) -> f64 {
    let (parts, width) = (1_000, x / 1_000.0);
    let density = |at: f64| (-at * at / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let part = |part: i32| {
        let at = f64::from(part) * width;
        (density(at) + 4.0 * density(at + width / 2.0) + density(at + width)) / 6.0 * width
    };
    0.5 + (0..parts).map(part).sum::<f64>()
}

fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

fn add(x: &mut Rows, branch: &Rows) {
    for (x, branch) in x.iter_mut().zip(branch) {
        x.iter_mut().zip(branch).for_each(|(x, b)| *x += b);
    }
}
