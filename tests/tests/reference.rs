//! Every trait of a model beside another implementation: losses, logits and gradients that `tests/reference/traits.py`
//! has computed in PyTorch's f64 from the formulas of the papers. docs/numerics.md says how far they agree.
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]
#![expect(clippy::print_stdout, reason = "how far both agree is to be seen")]

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Pool, Slice};
use trine_comm::SelfComm;
use trine_kernels::{CpuOps, Ops, Team};
use trine_models::{RankParts, StageModel, zoo};
use trine_nn::{Context, Mode, Numerics, Rows};
use trine_spec::assemble::{Tensors, assemble};
use trine_spec::{Family, Init, ModelSpec, ParamSpec, RankLayout};
use trine_testkit::tolerance;
use trine_trainer::RunPlan;
use trine_trainer::engine::{Batch, Engine, EngineConfig, WEIGHTS};
use trine_trainer::parity::{gradients, worst};

/// How far a number in f64 may be from the other implementation's, beside the largest of its tensor. Both err by about
/// 1e-15 to 1e-13, and a trait that is left out shows at 0.1 and more.
const F64_BOUND: f64 = 1e-9;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    model: ModelSpec,
    seq: usize,
    tokens: Vec<u32>,
    targets: Vec<Option<u32>>,
    document_starts: Option<Vec<u32>>,
    loss: f64,
    logits: Vec<f64>,
    gradients: BTreeMap<String, Held>,
}

/// A tensor as the fixture has it.
#[derive(Deserialize)]
struct Held {
    shape: Vec<usize>,
    held: Vec<f64>,
}

fn fixture() -> Fixture {
    let fixture: Fixture = serde_json::from_str(include_str!("../reference/traits.json")).unwrap();
    assert!(!fixture.cases.is_empty(), "a fixture without cases");
    fixture
}

/// A multiple of 2⁻¹⁶ in [-½, ½), the same for everybody: FNV-1a of the name, then SplitMix64.
fn noise(name: &str, index: usize) -> f64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let mixed = hash.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ mixed >> 31) >> 48) as f64 / 65536.0 - 0.5
}

/// The fixture's form of a tensor of this width: a matrix stands as its product with weights in [½, 1½).
fn held(values: &[f64], width: usize) -> Vec<f64> {
    let product = |row: &[f64]| {
        row.iter().zip(0..).map(|(value, at)| value * (1.0 + noise("columns", at))).sum()
    };
    values.chunks_exact(width).map(product).collect()
}

/// What one step of a model gives.
struct Outcome {
    loss: f64,
    /// `[tokens, vocab]`
    logits: Vec<f64>,
    gradients: Tensors,
    /// The parameters behind them.
    params: BTreeMap<String, ParamSpec>,
}

impl Case {
    fn config(&self, compute: DType, numerics: Numerics) -> EngineConfig {
        let global_batch = self.tokens.len() / self.seq;
        let (micro_batch, seq) = (1, self.seq);
        let serial = EngineConfig::serial(self.model.clone());
        EngineConfig { compute, numerics, global_batch, micro_batch, seq, ..serial }
    }

    fn batch(&self) -> Batch {
        Batch {
            inputs: self.tokens.clone(),
            targets: self.targets.iter().map(|target| target.unwrap_or(u32::MAX)).collect(),
            document_start: self.document_starts.clone(),
        }
    }

    fn run(&self, compute: DType, numerics: Numerics) -> Outcome {
        self.run_near(compute, numerics, 0.0)
    }

    /// A run with each weight changed by up to `change` of itself.
    fn run_near(&self, compute: DType, numerics: Numerics, change: f64) -> Outcome {
        let config = self.config(compute, numerics);
        let plan = Arc::new(RunPlan::new(&config).unwrap());
        let ops = config.cpu_ops().unwrap();
        let mut engine = Engine::with_pieces(plan, SelfComm::new(), ops, &zoo).unwrap();
        let layout = engine.layout().clone();
        for bucket in 0..layout.buckets.len() {
            let weights = weights(&layout, bucket, compute, change);
            engine.load_bucket(WEIGHTS, bucket, &weights).unwrap();
        }
        let loss = engine.backward(0, &self.batch(), &mut |_, _, _| {}).unwrap().mean();
        let named = |param: &ParamSpec| (param.name.clone(), param.clone());
        let params = layout.params.iter().filter(|param| param.spec.tied_to.is_none());
        Outcome {
            loss,
            logits: self.logits(&engine),
            gradients: assemble(&[gradients(&engine).unwrap()]).unwrap(),
            params: params.map(|param| named(&param.spec)).collect(),
        }
    }

    /// The logits of an engine's weights.
    fn logits(&self, engine: &Engine) -> Vec<f64> {
        let (config, batch, pool) = (engine.config(), self.batch(), Pool::new());
        let rank = RankParts {
            model: &engine.plan().parts,
            layout: engine.layout(),
            comm: SelfComm::new(),
            sequence_parallel: config.sequence_parallel,
            numerics: config.numerics,
            compute: config.compute,
            seed: config.seed,
            place: &trine_buffer::Place::Host,
        };
        let stage = StageModel::of_rank(&rank, &zoo).unwrap().remove(0);
        let ops = config.cpu_ops().unwrap();
        let rows = Rows { samples: 0..config.global_batch, seq: self.seq };
        let ctx = Context {
            numerics: config.numerics,
            mode: Mode::Eval,
            document_start: batch.document_start.as_deref().map(Slice::new),
            ..Context::train(&*ops, &pool, config.compute, rows)
        };
        let ids = Act::new(Buf::from_vec(batch.inputs));
        let stored = stage.logits(engine.weights(), ids, &ctx).unwrap().to_f64_vec().unwrap();
        let rows = stored.chunks_exact(stored.len() / self.tokens.len());
        rows.flat_map(|row| row[..self.model.vocab].to_vec()).collect()
    }

    /// The worst difference from the fixture of a run in f64, and where it is.
    fn difference(&self, found: &Outcome) -> (f64, String) {
        let mut all = vec![
            (relative(&[found.loss], &[self.loss], 0.0), "loss".to_string()),
            (relative(&held(&found.logits, self.model.vocab), &self.logits, 0.0), "logits".into()),
        ];
        assert!(found.gradients.keys().eq(self.gradients.keys()), "{}: parameters", self.name);
        let numbers = self.gradients.values().flat_map(|gradient| &gradient.held);
        let share = (numbers.clone().map(|v| v * v).sum::<f64>() / numbers.count() as f64).sqrt();
        for (name, gradient) in &self.gradients {
            let param = &found.params[name];
            let (rows, width) = (param.valid_rows, param.shape[1..].iter().product::<usize>());
            let shape: Vec<usize> = [&[rows][..], &param.shape[1..]].concat();
            assert_eq!(gradient.shape, shape, "{}: {name}", self.name);
            let values = &found.gradients[name][..rows * width];
            let values = if shape.len() == 1 { values.to_vec() } else { held(values, width) };
            all.push((relative(&values, &gradient.held, share), name.clone()));
        }
        all.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    }
}

/// A bucket of weights: noise, around 1 where a parameter starts at 1, each changed by up to `change` of itself.
fn weights(layout: &RankLayout, bucket: usize, compute: DType, change: f64) -> Buf {
    let mut values = vec![0.0; layout.buckets[bucket].len];
    for param in layout.buckets[bucket].params.iter().map(|index| &layout.params[*index]) {
        let spec = &param.spec;
        let name = spec.tied_to.as_ref().unwrap_or(&spec.name);
        let start = if spec.init == Init::Ones { 1.0 } else { 0.0 };
        for (value, index) in values[param.span()].iter_mut().zip(0..spec.unpadded_len()) {
            let changed = 1.0 + 2.0 * change * noise(&format!("change of {name}"), index);
            *value = (start + noise(name, index)) * changed;
        }
    }
    let mut buf = Buf::zeros(compute, values.len());
    CpuOps::new(Team::new(1)).cast(buf.slice_mut(), Slice::new(&values)).unwrap();
    buf
}

/// The largest difference beside the largest number. What is zero in exact arithmetic is measured against `share`: of
/// terms that cancel only rounding is left.
fn relative(found: &[f64], exact: &[f64], share: f64) -> f64 {
    assert_eq!(found.len(), exact.len());
    let largest = exact.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let size = if largest > 1e-12 * share { largest } else { share };
    let differences = found.iter().zip(exact).map(|(found, exact)| (found - exact).abs());
    differences.fold(0.0, |worst: f64, difference| match difference.is_nan() {
        true => f64::INFINITY,
        false => worst.max(difference / size),
    })
}

/// `‖found − exact‖ / ‖exact‖`
fn distance(found: &[f64], exact: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let differences = &mut found.iter().zip(exact).map(|(found, exact)| found - exact);
    norm(differences) / norm(&mut exact.iter().copied())
}

/// Prints the worst of `found`, which have a part of what is allowed each, and fails if one is beyond.
fn judge(dtype: DType, found: Vec<(f64, String)>) {
    let beyond: Vec<&str> = found.iter().filter(|f| f.0 > 1.0).map(|f| &*f.1).collect();
    assert!(beyond.is_empty(), "{dtype}, {} are too far off:\n{}", beyond.len(), beyond.join("\n"));
    let (part, place) = found.iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    println!("{dtype}: {place}, {part:.2e} of the bound");
}

#[test]
fn every_trait_computes_in_f64_what_another_implementation_does() {
    let mut found = Vec::new();
    for numerics in [Numerics::Fast, Numerics::Reference] {
        for case in fixture().cases {
            let (error, tensor) = case.difference(&case.run(DType::F64, numerics));
            let place = format!("{} ({numerics:?}): {tensor} is off by {error:.1e}", case.name);
            found.push((error / F64_BOUND, place));
        }
    }
    judge(DType::F64, found);
}

/// How far apart two runs are: gradients (and the name of the worst), loss and logits.
fn distances(run: &Outcome, exact: &Outcome) -> [(f64, String); 3] {
    let (parameter, error) = worst(&run.gradients, &exact.gradients);
    [
        (error, parameter),
        (distance(&[run.loss], &[exact.loss]), "loss".into()),
        (distance(&run.logits, &exact.logits), "logits".into()),
    ]
}

/// A rounding in f32 acts as if a weight were changed by a part of it. The models here are narrow and their weights
/// large, so that such changes grow on the way: by how much, a run in f64 with changed weights tells.
#[test]
fn every_trait_meets_the_bound_in_f32() {
    let change = 1e-7;
    // Changes that are evenly distributed have this size on average.
    let size = change / 3_f64.sqrt();
    let mut found = Vec::new();
    for case in fixture().cases {
        let bound = tolerance::bound(DType::F32, &case.model);
        let exact = case.run(DType::F64, Numerics::Fast);
        let changed = distances(&case.run_near(DType::F64, Numerics::Fast, change), &exact);
        for numerics in [Numerics::Fast, Numerics::Reference] {
            let run = distances(&case.run(DType::F32, numerics), &exact);
            for ((error, tensor), (moved, _)) in run.into_iter().zip(&changed) {
                let bound = bound * (moved / size).max(1.0);
                let place = format!("{} ({numerics:?}): {tensor} is off by {error:.1e}", case.name);
                found.push((error / bound, place));
            }
        }
    }
    judge(DType::F32, found);
}

#[test]
fn every_trait_and_every_family_has_cases() {
    let cases = fixture().cases;
    let mut values: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, value) in cases.iter().flat_map(|case| case.model.traits()) {
        values.entry(name).or_default().insert(value);
    }
    for (name, values) in values {
        assert!(values.len() > 1, "{name} is {values:?} in all cases");
    }
    for family in Family::ALL {
        let name = format!("family {family}");
        assert!(
            cases.iter().any(|case| case.name == name && case.model.family == *family),
            "{name}"
        );
    }
}
