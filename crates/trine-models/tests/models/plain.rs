//! GPT-2 and Llama forward in plain loops over f64: written from the papers, slow, and independent of
//! everything it is compared with.

use std::collections::BTreeMap;
use trine_spec::{Family, ModelSpec};

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
        if self.model.family == Family::Gpt {
            let positions = self.get("embedding.position");
            for (t, x) in x.iter_mut().enumerate() {
                for i in 0..hidden {
                    x[i] += positions[t * hidden + i];
                }
            }
        }
        for block in 0..self.model.layers {
            let block = format!("block.{block}");
            let branch = self.attention(&block, &self.norm(&format!("{block}.norm1"), &x), starts);
            add(&mut x, &branch);
            let branch = self.mlp(&block, &self.norm(&format!("{block}.norm2"), &x));
            add(&mut x, &branch);
        }
        let x = self.norm("head.norm", &x);
        let output = if self.model.tied { "embedding.token" } else { "head.output.weight" };
        let logits = self.product(output, &x, hidden);
        logits.into_iter().map(|row| row[..self.model.vocab].to_vec()).collect()
    }

    fn norm(&self, name: &str, x: &Rows) -> Rows {
        let n = self.model.hidden as f64;
        let gain = self.get(&format!("{name}.weight"));
        let row = |x: &Vec<f64>| -> Vec<f64> {
            match self.model.family {
                Family::Gpt => {
                    let bias = self.get(&format!("{name}.bias"));
                    let mean = x.iter().sum::<f64>() / n;
                    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
                    let deviation = (variance + self.model.norm_eps).sqrt();
                    (0..x.len()).map(|i| (x[i] - mean) / deviation * gain[i] + bias[i]).collect()
                }
                Family::Llama => {
                    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / n;
                    let root = (mean_square + self.model.norm_eps).sqrt();
                    (0..x.len()).map(|i| x[i] / root * gain[i]).collect()
                }
            }
        };
        x.iter().map(row).collect()
    }

    /// `x · wᵀ`.
    fn product(&self, weight: &str, x: &Rows, inputs: usize) -> Rows {
        let weight = self.get(weight);
        let dot = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        x.iter().map(|x| weight.chunks(inputs).map(|w| dot(w, x)).collect()).collect()
    }

    /// A linear layer, with its bias where the family has them.
    fn linear(&self, name: &str, x: &Rows, inputs: usize) -> Rows {
        let mut y = self.product(&format!("{name}.weight"), x, inputs);
        if self.model.family == Family::Gpt {
            let bias = self.get(&format!("{name}.bias"));
            y.iter_mut().for_each(|y| (0..y.len()).for_each(|i| y[i] += bias[i]));
        }
        y
    }

    fn attention(&self, block: &str, x: &Rows, starts: &[u32]) -> Rows {
        let (hidden, d) = (self.model.hidden, self.model.head_dim);
        let project = |part: &str| self.linear(&format!("{block}.attention.{part}"), x, hidden);
        let (mut q, mut k, v) = (project("q"), project("k"), project("v"));
        if self.model.family == Family::Llama {
            self.rotate(&mut q);
            self.rotate(&mut k);
        }
        let mut o = vec![vec![0.0; self.model.heads * d]; x.len()];
        for head in 0..self.model.heads {
            let of_kv = head / (self.model.heads / self.model.kv_heads) * d;
            let of_q = head * d;
            for t in 0..x.len() {
                let score = |s: usize| -> f64 {
                    (0..d).map(|i| q[t][of_q + i] * k[s][of_kv + i]).sum::<f64>()
                        / (d as f64).sqrt()
                };
                let visible = starts[t] as usize..t + 1;
                let sum: f64 = visible.clone().map(|s| score(s).exp()).sum();
                for s in visible {
                    let p = score(s).exp() / sum;
                    (0..d).for_each(|i| o[t][of_q + i] += p * v[s][of_kv + i]);
                }
            }
        }
        self.linear(&format!("{block}.attention.output"), &o, self.model.heads * d)
    }

    /// Element `i` of a head turns with element `i + head_dim / 2`, by position × θ^(−2i / head_dim).
    fn rotate(&self, x: &mut Rows) {
        let d = self.model.head_dim;
        for (t, x) in x.iter_mut().enumerate() {
            for head in x.chunks_mut(d) {
                for i in 0..d / 2 {
                    let frequency = self.model.rope_theta.powf(-2.0 * i as f64 / d as f64);
                    let (sin, cos) = (t as f64 * frequency).sin_cos();
                    let (a, b) = (head[i], head[i + d / 2]);
                    (head[i], head[i + d / 2]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
    }

    fn mlp(&self, block: &str, x: &Rows) -> Rows {
        let up = self.linear(&format!("{block}.mlp.up"), x, self.model.hidden);
        let inner: Rows = match self.model.family {
            Family::Gpt => up.iter().map(|row| row.iter().map(|x| gelu(*x)).collect()).collect(),
            Family::Llama => {
                let gate = self.linear(&format!("{block}.mlp.gate"), x, self.model.hidden);
                let silu = |x: f64| x / (1.0 + (-x).exp());
                let row = |(gate, up): (&Vec<f64>, &Vec<f64>)| {
                    gate.iter().zip(up).map(|(gate, up)| silu(*gate) * up).collect()
                };
                gate.iter().zip(&up).map(row).collect()
            }
        };
        self.linear(&format!("{block}.mlp.down"), &inner, self.model.ffn)
    }
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
