//! A block's traits in its plan: norms, what is added to the stream, norms of queries and keys.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_mesh::Degrees;
use trine_plan::{
    Attention, Cluster, Constants, DeviceConstants, Estimate, Layout, Model, Planner, Precision,
    Recompute, Stack, clusters, find_cluster, find_stack, stacks,
};
use trine_schedule::ScheduleKind;
use trine_spec::{Each, ModelSpec, NormAt, QkNorm, presets};

/// Sequences of a step, one a micro-batch, and their tokens.
const MICRO_BATCHES: f64 = 4.0;
const SEQ: usize = 2048;
const TOKENS: f64 = SEQ as f64;

/// Eight devices of a node, on which the host launches kernels in no time: kernels add up.
struct Node {
    cluster: Cluster,
    stack: Stack,
    device: DeviceConstants,
    constants: Constants,
}

impl Node {
    fn new() -> Self {
        let cluster = find_cluster(&clusters(&[]).unwrap(), "h100").unwrap().clone();
        let stack = find_stack(&stacks().unwrap(), "trine").unwrap().clone();
        let constants = Constants::built_in().unwrap();
        let device = constants.device[&cluster.device.constants];
        let device = DeviceConstants { kernel_gap: 0.0, ..device };
        Self { cluster, stack, device, constants }
    }

    fn estimate(&self, spec: &ModelSpec, tp: usize, recompute: Recompute) -> Estimate {
        let model = Model::new(spec).unwrap();
        let planner = Planner::new(&model, &self.cluster, &self.stack, &self.constants).unwrap();
        let planner = Planner { device: &self.device, ..planner };
        let layout = Layout {
            degrees: Degrees { dp: 1, pp: 1, tp, ..Degrees::SERIAL },
            virtual_stages: 1,
            pipeline: ScheduleKind::OneFOneB,
            micro_batch: 1,
            global_batch: MICRO_BATCHES as usize,
            seq: SEQ,
            sequence_parallel: false,
            recompute,
            attention: Attention::Flash2,
            zero: 0,
            precision: Precision::Bf16,
        };
        layout.check(&model).unwrap();
        planner.estimate(&layout)
    }

    /// Seconds of a step to move so many bf16 elements of each token in each of so many blocks.
    fn moved_s(&self, elements: f64, blocks: usize) -> f64 {
        let costs = &self.constants.stack[self.stack.constants()];
        let rate = self.cluster.device.bandwidth * self.device.bandwidth_efficiency;
        let bytes = 2.0 * TOKENS * elements * costs.traffic;
        MICRO_BATCHES * blocks as f64 * bytes / rate * costs.host_overhead
    }

    /// Seconds of an all-reduce inside the node.
    fn all_reduce_s(&self, bytes: f64, tp: f64) -> f64 {
        let level = &self.cluster.levels[0];
        let rate = level.bandwidth * self.device.inside_efficiency / level.contention;
        2.0 * ((tp - 1.0) / tp * bytes / rate + level.latency * (tp - 1.0))
    }
}

/// The same with norms before its branches alone.
fn plain(spec: &ModelSpec) -> ModelSpec {
    ModelSpec { norm_at: NormAt::Before.into(), qk_norm: QkNorm::None.into(), ..spec.clone() }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()) + 1e-12
}

#[test]
fn norms_are_timed_where_a_model_has_them() {
    let node = Node::new();
    for (preset, stream_norms, qk_norms) in
        [("gemma2-2b", 2.0, 0.0), ("olmo2-1b", 0.0, 1.0), ("qwen3-0.6b", 0.0, 1.0)]
    {
        let spec = presets::find(preset).unwrap().model;
        for tp in [1, 2] {
            let of = |spec: &ModelSpec| node.estimate(spec, tp, Recompute::None).time;
            let (own, plain) = (of(&spec), of(&plain(&spec)));
            // Each norm reads and writes; queries and keys are split over the ranks.
            let qk = (spec.q_dim() + spec.kv_dim()) as f64 / tp as f64;
            let elements = 2.0 * (stream_norms * spec.hidden as f64 + qk_norms * qk);
            let more = node.moved_s(elements, spec.layers);
            let found = [own.forward - plain.forward, own.backward - plain.backward];
            assert!(close(found[0], more) && close(found[1], 2.0 * more), "{preset}: {found:?}");
            assert!(more > 0.001 * plain.forward, "{preset}: {more} of {}", plain.forward);
        }
    }
}

#[test]
fn norms_over_all_heads_are_summed_over_the_tensor_ranks_each_way() {
    let node = Node::new();
    let spec = presets::find("olmo2-1b").unwrap().model;
    let with = |qk_norm: Each<QkNorm>| ModelSpec { qk_norm, ..spec.clone() };
    let tensor = |spec: &ModelSpec, tp, recompute| node.estimate(spec, tp, recompute).time.tensor;
    let none = Recompute::None;
    // One number of the queries and one of the keys, in f32.
    let each = MICRO_BATCHES * spec.layers as f64 * node.all_reduce_s(8.0 * TOKENS, 4.0);
    let [all, head, half] =
        [QkNorm::All.into(), QkNorm::Head.into(), Each::repeated(QkNorm::All, [QkNorm::None])]
            .map(with);
    let plain = tensor(&plain(&spec), 4, none);
    assert!(close(tensor(&all, 4, none) - plain, 2.0 * each));
    assert_eq!(tensor(&head, 4, none), plain);
    // Every second block, half as much.
    assert!(close(tensor(&half, 4, none) - plain, each));
    assert_eq!(tensor(&all, 1, none), 0.0);
    // Blocks that are computed again sum again.
    let full = Recompute::Full { every: 1 };
    let again = |spec: &ModelSpec| tensor(spec, 4, full);
    assert!(close(again(&all) - again(&head), 3.0 * each));
}

#[test]
fn what_norms_keep_is_in_the_plan() {
    let node = Node::new();
    let kept = |spec: &ModelSpec, tp| {
        let layers = spec.layers as f64;
        node.estimate(spec, tp, Recompute::None).memory.activations / layers / TOKENS
    };
    let of = |preset: &str| {
        let spec = presets::find(preset).unwrap().model;
        [1, 2].map(|tp| kept(&spec, tp) - kept(&plain(&spec), tp))
    };
    // Two norms behind the branches of 2304 features keep what they read, which is f32 alone and bf16 where it was
    // summed over ranks, and a number in f32.
    assert_eq!(of("gemma2-2b"), [2.0 * (2304.0 * 4.0 + 4.0), 2.0 * (2304.0 * 2.0 + 4.0)]);
    // Eight heads of 128, and each of the two ranks' 16 query heads: in bf16 once more, and a number of each head.
    let heads = 16.0 + 8.0;
    let whole = heads * (128.0 * 2.0 + 4.0);
    assert_eq!(of("qwen3-0.6b"), [whole, whole / 2.0]);
}
