//! What is computed again, in a plan: each way costs what its steps cost, keeps what it does not drop, and is chosen
//! where memory is short.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_mesh::Degrees;
use trine_plan::{
    Attention, Cluster, Constants, Convention, Estimate, Fixed, Layout, Model, Planner, Precision,
    Recompute, Request, Stack, clusters, find_cluster, find_stack, flops, search, stacks,
};
use trine_schedule::ScheduleKind;
use trine_spec::{Family, presets};

/// Tokens of a micro-batch, of which a step has as many as a replica has sequences.
const SEQ: usize = 1024;
const MICRO_BATCHES: usize = 8;

struct Node {
    cluster: Cluster,
    stack: Stack,
    constants: Constants,
}

impl Node {
    fn new() -> Self {
        let cluster = find_cluster(&clusters(&[]).unwrap(), "h100").unwrap().clone();
        let stack = find_stack(&stacks().unwrap(), "trine").unwrap().clone();
        Self { cluster, stack, constants: Constants::built_in().unwrap() }
    }

    fn planner<'a>(&'a self, model: &'a Model) -> Planner<'a> {
        Planner::new(model, &self.cluster, &self.stack, &self.constants).unwrap()
    }

    fn estimate(&self, model: &Model, tp: usize, recompute: Recompute) -> Estimate {
        self.planner(model).estimate(&layout(model, tp, recompute))
    }
}

fn layout(model: &Model, tp: usize, recompute: Recompute) -> Layout {
    let layout = Layout {
        degrees: Degrees { tp, ..Degrees::SERIAL },
        virtual_stages: 1,
        pipeline: ScheduleKind::OneFOneB,
        micro_batch: 1,
        global_batch: MICRO_BATCHES,
        seq: SEQ,
        sequence_parallel: tp > 1,
        recompute,
        attention: Attention::Flash2,
        zero: 0,
        precision: Precision::Bf16,
    };
    layout.check(model).unwrap();
    layout
}

fn model(preset: &str) -> Model {
    Model::new(&presets::find(preset).unwrap().model).unwrap()
}

fn named(model: &mut Model, names: &[&str]) -> Recompute {
    model.drop_tensors(&trine_spec::Recompute::tensors(names.iter().copied())).unwrap()
}

/// Bytes and matrix elements of GPT-2 for each token of a block, from its widths: the stream in f32, the rest in bf16.
#[test]
fn a_gpt_keeps_and_computes_again_what_its_widths_say() {
    let node = Node::new();
    let mut gpt = model("gpt2-124m");
    let (h, heads) = (768.0, 12.0);
    let cases: [(&[&str], f64, f64); 5] = [
        // Two inputs of norms, queries with keys and values, heads, log-sums, what goes up.
        (&["norms", "mlp.activation"], 8.0 * h + 6.0 * h + 2.0 * h + 4.0 * heads + 8.0 * h, 0.0),
        (
            &["norms", "mlp.activation", "attention.qkv"],
            8.0 * h + 2.0 * h + 4.0 * heads + 8.0 * h,
            3.0 * h * h,
        ),
        // Two outputs of norms, their statistics, what goes up and its function; the stream once.
        (&["norm2.input", "attention.core", "attention.qkv"], 24.0 * h + 16.0, 4.0 * h * h),
        (&["mlp.*"], 8.0 * h + 16.0 + 10.0 * h + 4.0 * heads, 4.0 * h * h),
        (&["*"], 4.0 * h, 8.0 * h * h),
    ];
    let none = node.estimate(&gpt, 1, Recompute::None);
    for (names, bytes, products) in cases {
        let again = named(&mut gpt, names);
        let own = node.estimate(&gpt, 1, again);
        let each = own.memory.activations / gpt.spec.layers as f64 / SEQ as f64;
        assert!((each - bytes).abs() < 1e-6, "{names:?}: {each} instead of {bytes}");
        let count = flops(&gpt, &layout(&gpt, 1, again), Convention::FullAttention);
        let tokens = (SEQ * MICRO_BATCHES * gpt.spec.layers) as f64;
        let attention = [0.0, 4.0 * SEQ as f64 * h]
            [usize::from(names.contains(&"*") || names.contains(&"attention.core"))];
        let expected = 2.0 * products + attention;
        let found = (count.hardware - count.model) / tokens;
        assert!(
            (found - expected).abs() < 1e-6 * expected.max(1.0),
            "{names:?}: {found} {expected}"
        );
        assert!(own.time.recompute > 0.0 && own.time.step > none.time.step, "{names:?}");
        // Made again beside what is kept.
        let dropped = own.memory.working_set - none.memory.working_set;
        assert!(dropped >= 0.0, "{names:?}");
    }
}

/// Whole blocks are the list of all tensors, without the last product; other software runs all.
#[test]
fn whole_blocks_are_a_list_too() {
    let node = Node::new();
    for preset in ["gpt2-124m", "llama3-8b", "gemma2-2b", "olmo2-1b", "pythia-160m"] {
        for tp in [1, 2] {
            let mut model = model(preset);
            let all = named(&mut model, &["*"]);
            let [listed, whole] =
                [all, Recompute::Full { every: 1 }].map(|again| node.estimate(&model, tp, again));
            assert_eq!(listed.time, whole.time, "{preset}");
            let [a, b] = [listed, whole].map(|one| one.memory.activations);
            assert!((a / b - 1.0).abs() < 1e-12, "{preset}, tp {tp}: {a} {b}");
            let mut others = Node::new();
            others.stack.replays_steps = false;
            let by_others = others.estimate(&model, tp, Recompute::Full { every: 1 }).time;
            // The last product runs where a norm behind it needs what it gives.
            let ends =
                (0..model.spec.layers).any(|at| model.spec.block(at).branches[0].after.is_some());
            let share = whole.time.recompute / by_others.recompute;
            let most = if ends { 1.0 } else { 0.9 };
            assert!(share > 0.5 && share < most, "{preset}: {share}");
            assert_eq!(tp > 1 && !ends, whole.time.tensor < by_others.tensor, "{preset}, tp {tp}");
        }
    }
}

/// What a search tries leaves less and less, and costs more and more.
#[test]
fn the_ladder_goes_down() {
    let node = Node::new();
    for family in Family::ALL {
        let preset = presets::all().into_iter().find(|preset| preset.model.family == *family);
        let model = Model::new(&preset.unwrap().model).unwrap();
        let ladder = trine_spec::Recompute::ladder();
        let mut known = model.clone();
        let ways = ladder.each_ref().map(|way| known.drop_tensors(way).unwrap());
        assert_eq!(ways[0], Recompute::ELEMENTWISE);
        assert_eq!(ways.map(|way| model.dropped(way).unwrap()), ladder);
        let all: Vec<Estimate> = std::iter::once(Recompute::None)
            .chain(ways)
            .map(|way| node.estimate(&model, 1, way))
            .collect();
        for pair in all.windows(2) {
            assert!(pair[0].memory.activations > pair[1].memory.activations, "{family:?}");
            assert!(pair[0].time.step < pair[1].time.step, "{family:?}");
        }
    }
}

/// As memory shrinks, the search goes down the ladder, and takes no more than it must.
#[test]
fn short_memory_is_met_with_the_cheapest_way() {
    let mut node = Node::new();
    let model = model("llama3-8b");
    let fixed = Fixed {
        tp: Some(8),
        pp: Some(1),
        micro_batch: Some(2),
        zero: Some(1),
        sequence_parallel: Some(true),
        runnable: true,
        ..Fixed::default()
    };
    let request = Request {
        devices: 8,
        global_batch: 16,
        seq: 8192,
        headroom: 0.0,
        precision: Precision::Bf16,
        attention: Attention::Flash2,
        fixed,
    };
    let mut chosen = Vec::new();
    while let Ok(found) = search(&node.planner(&model), &request) {
        let best = found.best[0];
        chosen.push(best.layout.recompute);
        // Just too little for this one.
        node.cluster.device.memory_bytes = best.estimate.memory.total() as u64 - 1;
    }
    let half = Recompute::Full { every: 2 };
    let full = Recompute::Full { every: 1 };
    assert_eq!(chosen, [Recompute::None, Recompute::ELEMENTWISE, half, full]);
}

#[test]
fn a_list_is_one_of_the_model_that_has_it() {
    let mut gpt = model("gpt2-124m");
    let again = named(&mut gpt, &["mlp.activation"]);
    assert_eq!(named(&mut gpt, &["mlp.activation"]), again);
    let base = layout(&gpt, 1, again);
    let error = base.check(&model("gpt2-124m")).unwrap_err().to_string();
    assert!(error.contains("must be a list of tensors of this model"), "{error}");
    let what = trine_spec::Recompute::tensors(["mlp.activatoin"]);
    let error = gpt.drop_tensors(&what).unwrap_err().to_string();
    assert!(
        error.contains("there are attention.core, ") && error.contains("mlp.activation"),
        "{error}"
    );
    assert_eq!(gpt.dropped(Recompute::Selective), None);
}
