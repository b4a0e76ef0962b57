//! What a plan says that ranks hold is what they hold (contract C10).

use trine_buffer::DType;
use trine_comm::threads;
use trine_mesh::{Axis, Degrees, Mesh};
use trine_plan::{
    Attention, Constants, Ends, Layout, Model, Planner, Precision, blocks_of, clusters,
    find_cluster, find_stack, stacks,
};
use trine_schedule::ScheduleKind;
use trine_spec::{
    BUCKET_ELEMENTS, Family, ModelSpec, Pattern, Piece, RankBytes, Recompute, presets,
};
use trine_testkit::toy;
use trine_tests::search::recompute;
use trine_tests::{ADAMW, batch, serial};
use trine_trainer::RunPlan;
use trine_trainer::engine::{Engine, EngineConfig, ZeroStage};
use trine_trainer::{RankMemory, TrainError};

/// A run of a model as users start one, on one rank.
fn run(model: ModelSpec) -> EngineConfig {
    EngineConfig {
        seq: model.seq_max,
        compute: DType::Bf16,
        zero: ZeroStage::Zero1,
        optimizer: ADAMW,
        bucket_elements: BUCKET_ELEMENTS,
        ..serial(model)
    }
}

/// Planned and measured, of every rank, after a step.
fn memory(config: &EngineConfig) -> Vec<(RankMemory, RankMemory)> {
    let mesh = Mesh::new(config.degrees, config.degrees.world()).expect("a mesh");
    let ranks = threads::run(mesh.world(), &Default::default(), |comm| {
        let batch = batch(config, mesh.coordinate(comm.rank()).of(Axis::Dp));
        let mut engine = Engine::new(config, comm)?;
        let at = engine.coordinate();
        let planned = engine.plan().memory(at.pp, at.tp);
        engine.backward(0, &batch, &mut |_, _, _| {})?;
        engine.update(1, 1e-3)?;
        Ok::<_, TrainError>((planned, RankMemory::measured(&engine)))
    });
    ranks.expect("every rank finishes")
}

/// A GPT whose vocabulary nothing divides, tied, five layers; a Llama with fewer KV heads than shards.
fn awkward() -> [ModelSpec; 2] {
    let wide = |model| ModelSpec { hidden: 64, head_dim: 16, ffn: 4 * 64, seq_max: 64, ..model };
    [wide(ModelSpec { dropout: 0.1.into(), ..toy::gpt() }), wide(toy::llama(2))]
}

fn degrees(dp: usize, pp: usize, tp: usize) -> Degrees {
    Degrees { dp, pp, tp, ..Degrees::SERIAL }
}

/// The same run as `trine plan` has it.
fn layout_of(
    config: &EngineConfig,
    pipeline: ScheduleKind,
    zero: u8,
    precision: Precision,
) -> Layout {
    Layout {
        degrees: config.degrees,
        virtual_stages: config.virtual_stages,
        pipeline,
        micro_batch: config.micro_batch,
        global_batch: config.global_batch,
        seq: config.seq,
        sequence_parallel: false,
        recompute: trine_plan::Recompute::None,
        attention: Attention::Flash2,
        zero,
        precision,
    }
}

fn preset(name: &str) -> ModelSpec {
    presets::find(name).expect("a preset").model
}

#[test]
fn trine_plan_says_to_the_byte_what_ranks_hold() {
    let (all, machines, constants) =
        (stacks().unwrap(), clusters(&[]).unwrap(), Constants::built_in().unwrap());
    let (stack, machine) =
        (find_stack(&all, "trine").unwrap(), find_cluster(&machines, "h100").unwrap());
    let mut cases = 0;
    for spec in awkward() {
        let model = Model::new(&spec).unwrap();
        let planner = Planner::new(&model, machine, stack, &constants).unwrap();
        for (compute, precision) in [(DType::Bf16, Precision::Bf16), (DType::F32, Precision::F32)] {
            for (zero, stage) in [(0, ZeroStage::Zero0), (1, ZeroStage::Zero1)] {
                for degrees in
                    [degrees(1, 1, 1), degrees(3, 2, 1), degrees(2, 2, 4), degrees(2, 4, 2)]
                {
                    let config =
                        EngineConfig { degrees, compute, zero: stage, ..run(spec.clone()) };
                    let layout = layout_of(&config, ScheduleKind::OneFOneB, zero, precision);
                    layout.check(&model).unwrap();
                    let mesh = Mesh::new(degrees, degrees.world()).unwrap();
                    for (rank, (planned, measured)) in memory(&config).into_iter().enumerate() {
                        let pp = mesh.coordinate(rank).pp;
                        let bytes = planner.rank_bytes(&layout, pp).unwrap();
                        assert_eq!(bytes, measured.state, "rank {rank} of {config:?}");
                        assert_eq!((planned.state, planned.buffers), (bytes, measured.buffers));
                        let memory = planner.rank_memory(&layout, pp);
                        assert_eq!(memory.states(), bytes.total() as f64);
                        assert_eq!(
                            memory.buffers - messages(&layout, &spec),
                            planned.buffers.unwrap() as f64
                        );
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 2 * 2 * 2 * (1 + 6 + 16 + 16));
}

/// Ranks with more heads and features than others hold more, and each is planned for itself. The closed form is that of
/// the first, which has most.
#[test]
fn unequal_tensor_ranks_hold_what_is_planned_for_each() {
    let (all, machines, constants) =
        (stacks().unwrap(), clusters(&[]).unwrap(), Constants::built_in().unwrap());
    let (stack, machine) =
        (find_stack(&all, "trine").unwrap(), find_cluster(&machines, "h100").unwrap());
    let (mut cases, mut unequal) = (0, 0);
    for (heads, kv_heads) in [(5, 5), (6, 3), (5, 1)] {
        let narrow = toy::uneven(heads, kv_heads);
        let spec =
            ModelSpec { hidden: 64, head_dim: 16, ffn: 5 * 53, seq_max: 60, layers: 4, ..narrow };
        let model = Model::new(&spec).unwrap();
        let planner = Planner::new(&model, machine, stack, &constants).unwrap();
        for (degrees, recompute) in
            [(degrees(1, 1, 2), false), (degrees(2, 1, 3), true), (degrees(1, 2, 3), false)]
        {
            let sequence_parallel = true;
            let config = EngineConfig {
                degrees,
                recompute: recompute.into(),
                sequence_parallel,
                ..run(spec.clone())
            };
            let layout = layout_of(&config, ScheduleKind::OneFOneB, 1, Precision::Bf16);
            let mesh = Mesh::new(degrees, degrees.world()).unwrap();
            let ranks = memory(&config);
            for (rank, (planned, measured)) in ranks.iter().enumerate() {
                let at = mesh.coordinate(rank);
                assert_eq!(planned.state, measured.state, "rank {rank} of {config:?}");
                assert_eq!(planned.buffers, measured.buffers, "rank {rank} of {config:?}");
                let [plan, held] =
                    [planned, measured].map(|memory| memory.activations.unwrap() as f64);
                assert!((plan / held - 1.0).abs() <= PEAK_TOLERANCE, "{plan} {held} {config:?}");
                let first = &ranks[rank - at.tp].0;
                let most = planner.rank_bytes(&layout, at.pp).unwrap();
                assert_eq!(first.state, most);
                assert!(planned.state.total() <= most.total());
                assert!(planned.activations <= first.activations);
                unequal += usize::from(planned.state.total() < most.total());
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 3 * (2 + 6 + 6));
    assert!(unequal >= 3 * 5, "{unequal}");
}

/// The closed form follows the placement of the stages: held against the layouts and schedules of runs, none of which
/// starts.
#[test]
fn the_closed_form_knows_which_rank_has_the_ends() {
    let (all, machines, constants) =
        (stacks().unwrap(), clusters(&[]).unwrap(), Constants::built_in().unwrap());
    let machine = find_cluster(&machines, "h100").unwrap();
    let (mut cases, mut ends_together) = (0, 0);
    for spec in awkward().into_iter().chain(["gpt2-124m", "llama3-8b"].map(preset)) {
        let spec = ModelSpec { layers: 24, ..spec };
        let model = Model::new(&spec).unwrap();
        for (pipeline, virtual_stages) in [
            (ScheduleKind::OneFOneB, 1),
            (ScheduleKind::Interleaved, 3),
            (ScheduleKind::BreadthFirst, 2),
            (ScheduleKind::ZbV, 2),
            (ScheduleKind::DualPipeV, 2),
        ] {
            for pp in [1, 2, 3, 4, 8] {
                let degrees = degrees(2, pp, 1);
                let config = EngineConfig {
                    degrees,
                    virtual_stages,
                    schedule: pipeline.into(),
                    global_batch: 4 * pp,
                    ..run(spec.clone())
                };
                let plan = RunPlan::new(&config).unwrap();
                let layout = layout_of(&config, pipeline, 1, Precision::Bf16);
                for stack in ["trine", "megatron-core", "aleph-alpha"] {
                    let stack = find_stack(&all, stack).unwrap();
                    let planner = Planner::new(&model, machine, stack, &constants).unwrap();
                    let memory: Vec<_> =
                        (0..pp).map(|rank| planner.rank_memory(&layout, rank)).collect();
                    let most = memory.iter().map(|one| one.total()).fold(0.0, f64::max);
                    assert_eq!(planner.peak_memory(&layout).1.total(), most, "{layout:?}");
                    let blocks: f64 =
                        (0..pp).map(|rank| blocks_of(&spec, &layout, stack, rank)).sum();
                    assert_eq!(blocks, 24.0, "{layout:?}");
                    let with_logits = memory.iter().map(|one| one.working_set).fold(0.0, f64::max);
                    for (rank, memory) in memory.iter().enumerate() {
                        let pieces =
                            plan.ranks[rank][0].stages.iter().flat_map(|held| &held.pieces);
                        let has = |end: Piece| pieces.clone().any(|piece| *piece == end);
                        let ends =
                            Ends { embedding: has(Piece::Embedding), head: has(Piece::Head) };
                        assert_eq!(layout.ends_of(rank), ends, "rank {rank} of {layout:?}");
                        ends_together += usize::from(ends.embedding && ends.head && pp > 1);
                        // Where there are many, logits need more than the work of a block.
                        let most = if ends.head { f64::MAX } else { with_logits };
                        assert!(memory.working_set < most || spec.vocab < 50_000, "{layout:?}");
                        assert!(memory.working_set >= with_logits || !ends.head, "{layout:?}");
                        cases += 1;
                    }
                    if stack.name == "trine" {
                        for rank in 0..pp {
                            let bytes = planner.rank_bytes(&layout, rank).unwrap();
                            assert_eq!(
                                bytes,
                                plan.memory(rank, 0).state,
                                "rank {rank} of {layout:?}"
                            );
                        }
                    }
                }
            }
        }
    }
    assert_eq!((cases, ends_together), (4 * 5 * 3 * (1 + 2 + 3 + 4 + 8), 4 * 2 * 3 * 4));
}

/// Of what is frozen it counts weights alone, on the rank that has it. Buckets are padded otherwise than it has them.
#[test]
fn the_closed_form_knows_which_rank_is_frozen() {
    let (all, machines, constants) =
        (stacks().unwrap(), clusters(&[]).unwrap(), Constants::built_in().unwrap());
    let (stack, machine) =
        (find_stack(&all, "trine").unwrap(), find_cluster(&machines, "h100").unwrap());
    let mut cases = 0;
    for spec in ["gpt2-124m", "llama3-8b"].map(preset) {
        for patterns in FROZEN {
            let frozen = naming(&spec, patterns);
            let mut model = Model::new(&spec).unwrap();
            model.freeze(&frozen).unwrap();
            let planner = Planner::new(&model, machine, stack, &constants).unwrap();
            for degrees in [degrees(1, 1, 2), degrees(2, 2, 1), degrees(2, 4, 1)] {
                let (global_batch, frozen) = (8, frozen.clone());
                let config = EngineConfig { degrees, global_batch, frozen, ..run(spec.clone()) };
                let plan = RunPlan::new(&config).unwrap();
                let layout = layout_of(&config, ScheduleKind::OneFOneB, 1, Precision::Bf16);
                for rank in 0..degrees.pp {
                    let [planned, held] =
                        [planner.rank_bytes(&layout, rank).unwrap(), plan.memory(rank, 0).state];
                    let bytes =
                        |held: RankBytes| [held.weights, held.gradients, held.master, held.moments];
                    for (planned, held) in bytes(planned).into_iter().zip(bytes(held)) {
                        let off = planned.abs_diff(held);
                        assert!(off * 1000 <= held + 1_000_000, "{planned} {held} of {config:?}");
                    }
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 2 * 8 * (1 + 2 + 4));
}

/// The two messages between stages that a plan has among its buffers: the residual stream, in f32.
fn messages(layout: &Layout, spec: &ModelSpec) -> f64 {
    if layout.degrees.pp == 1 { 0.0 } else { 2.0 * 4.0 * layout.tokens() * spec.hidden as f64 }
}

/// Every kind of layout, of both families.
fn layouts() -> Vec<EngineConfig> {
    let mut all = Vec::new();
    for model in awkward() {
        for compute in [DType::F32, DType::Bf16] {
            for recompute in [false, true] {
                for (degrees, sequence_parallel) in [
                    (degrees(1, 1, 1), false),
                    (degrees(1, 4, 1), false),
                    (degrees(2, 2, 2), false),
                    (degrees(1, 2, 4), true),
                ] {
                    for (schedule, virtual_stages) in [
                        (ScheduleKind::OneFOneB, 1),
                        (ScheduleKind::GPipe, 1),
                        (ScheduleKind::ZbH1, 1),
                        (ScheduleKind::Interleaved, 2),
                        (ScheduleKind::ZbV, 2),
                        (ScheduleKind::DualPipeV, 2),
                    ] {
                        // Half of these: they take long.
                        if virtual_stages > 1 && recompute == (compute == DType::F32) {
                            continue;
                        }
                        // Four ranks of several stages need eight blocks.
                        let layers = if degrees.pp * virtual_stages > 4 { 9 } else { model.layers };
                        let model = ModelSpec { layers, ..model.clone() };
                        all.push(EngineConfig {
                            virtual_stages,
                            degrees,
                            sequence_parallel,
                            compute,
                            recompute: recompute.into(),
                            schedule: schedule.into(),
                            // Groups of as many micro-batches as ranks.
                            micro_batch: if virtual_stages == 1 { 2 } else { 1 },
                            ..run(model)
                        });
                    }
                }
            }
        }
    }
    all
}

/// How far a planned peak of activations may be off (contract C10): small buffers, and messages that are taken late.
const PEAK_TOLERANCE: f64 = 0.03;

/// Planned peaks of activations beside those that were held.
#[derive(Default)]
struct Peaks {
    cases: usize,
    worst: f64,
    wrong: Vec<String>,
}

impl Peaks {
    /// Runs a step, and compares every rank.
    fn hold(&mut self, config: &EngineConfig) {
        for (rank, (planned, measured)) in memory(config).into_iter().enumerate() {
            assert_eq!(planned.state, measured.state, "rank {rank} of {config:?}");
            let [plan, held] =
                [planned, measured].map(|memory| memory.activations.expect("fast numerics") as f64);
            let off = plan / held - 1.0;
            if off.abs() > PEAK_TOLERANCE {
                self.wrong.push(format!("rank {rank}: {off}, {held} held in {config:?}"));
            }
            self.worst = self.worst.max(off.abs());
            self.cases += 1;
        }
    }

    /// How many ranks were compared, none of which may be off.
    fn all(self) -> usize {
        let Self { cases, wrong, .. } = self;
        assert!(wrong.is_empty(), "{} of {cases}: {}", wrong.len(), wrong.join("\n"));
        cases
    }
}

#[test]
fn the_peak_of_activations_is_predicted() {
    let mut peaks = Peaks::default();
    layouts().iter().for_each(|config| peaks.hold(config));
    assert_eq!(peaks.all(), 2 * (2 * 2 * 3 + 2 * 3) * (1 + 4 + 8 + 8));
}

/// Ends, whole blocks, and single products of each branch.
const FROZEN: [&[&str]; 8] = [
    &["embedding.*", "block.*"],
    &["block.0.*", "block.1.*"],
    &["embedding.*"],
    &["*.attention.?.*"],
    &["*.output.weight", "head.*"],
    &["*.mlp.up.*", "*.mlp.gate.*"],
    &["*.mlp.down.*", "*norm*"],
    &["block.*.attention.*", "block.1.mlp.down.weight"],
];

/// Those of some patterns that name a parameter of a model.
fn naming(model: &ModelSpec, patterns: &[&str]) -> Vec<Pattern> {
    let names = model.parts(1).expect("a model").names();
    let all = patterns.iter().map(|pattern| Pattern::new(*pattern));
    all.filter(|pattern| names.iter().any(|name| pattern.fits(name))).collect()
}

/// What is frozen leaves nothing for weight gradients.
#[test]
fn the_peak_of_activations_is_predicted_whatever_is_frozen() {
    let models = Family::ALL.iter().map(|family| toy::of(*family)).chain(toy::mixed());
    let layouts = [
        (DType::F32, degrees(1, 1, 1), false, ScheduleKind::OneFOneB),
        (DType::Bf16, degrees(1, 1, 2), true, ScheduleKind::GPipe),
        (DType::F32, degrees(1, 2, 1), false, ScheduleKind::ZbH1),
        (DType::F32, degrees(1, 1, 2), false, ScheduleKind::OneFOneB),
        (DType::Bf16, degrees(1, 2, 1), false, ScheduleKind::OneFOneB),
    ];
    let ways = recompute();
    let mut peaks = Peaks::default();
    for (number, model) in models.enumerate() {
        let narrow = ModelSpec { layers: 3, ..model };
        let model = ModelSpec { hidden: 64, head_dim: 16, ffn: 192, seq_max: 64, ..narrow };
        for (at, patterns) in FROZEN.iter().enumerate() {
            let frozen = naming(&model, patterns);
            // Where the head needs little, a block has the peak.
            let vocab = if at % 4 == 0 { model.vocab } else { 64 };
            let recompute = match at % 2 {
                0 => Recompute::None,
                _ => ways[(number + at) % ways.len()].clone(),
            };
            let (compute, degrees, sequence_parallel, schedule) =
                layouts[(number + at) % layouts.len()];
            let schedule = schedule.into();
            let base = run(ModelSpec { vocab, ..model.clone() });
            let base = EngineConfig { compute, degrees, sequence_parallel, ..base };
            peaks.hold(&EngineConfig { schedule, frozen, recompute, ..base });
        }
    }
    // Long enough for small buffers not to count, as above, and no rank waits for many messages.
    assert!(peaks.worst < 0.01, "{}", peaks.worst);
    assert!(peaks.all() > 120);
}

/// What is computed again, in blocks of all kinds.
#[test]
fn the_peak_of_activations_is_predicted_whatever_is_computed_again() {
    let models = Family::ALL.iter().map(|family| toy::of(*family)).chain(toy::mixed());
    let mut peaks = Peaks::default();
    let ways = recompute();
    let layouts = [
        (DType::F32, degrees(1, 1, 1), false),
        (DType::Bf16, degrees(1, 1, 2), true),
        (DType::Bf16, degrees(1, 2, 1), false),
        (DType::F32, degrees(1, 1, 2), false),
    ];
    for (number, model) in models.enumerate() {
        // Long enough that small buffers do not count.
        let model = ModelSpec { hidden: 64, head_dim: 16, ffn: 192, seq_max: 64, ..model };
        for (at, recompute) in ways.iter().enumerate() {
            // Every way in every layout, over all models.
            let (compute, degrees, sequence_parallel) = layouts[(number + at) % layouts.len()];
            let recompute = recompute.clone();
            let base = run(model.clone());
            peaks.hold(&EngineConfig { compute, degrees, sequence_parallel, recompute, ..base });
        }
    }
    assert!(peaks.all() > 150);
}

/// So few blocks that the embedding's backward pass, which gathers the rows of all ranks, is the peak of its stage.
#[test]
fn the_peak_of_activations_is_predicted_where_the_embedding_has_it() {
    let mut peaks = Peaks::default();
    for heads in [3, 6] {
        let narrow = ModelSpec { heads, kv_heads: heads, layers: 2, ffn: 192, ..toy::gpt() };
        let model = ModelSpec { hidden: 96, head_dim: 16, seq_max: 60, ..narrow };
        for degrees in [degrees(1, 2, 3), degrees(1, 1, 3), degrees(1, 2, 2)] {
            for recompute in [false, true] {
                let base = run(model.clone());
                let recompute = recompute.into();
                peaks.hold(&EngineConfig { degrees, recompute, sequence_parallel: true, ..base });
            }
        }
    }
    assert_eq!(peaks.all(), 2 * 2 * (6 + 3 + 4));
}

/// What is computed again is let go of block by block, also on one rank with several micro-batches: each way down the
/// ladder holds less.
#[test]
fn computing_again_takes_less_memory_in_every_schedule_that_keeps_backward_whole() {
    let model =
        ModelSpec { hidden: 64, head_dim: 16, ffn: 256, seq_max: 64, layers: 12, ..toy::gpt() };
    let ways: Vec<Recompute> =
        std::iter::once(Recompute::None).chain(Recompute::ladder()).collect();
    for (degrees, schedule) in [
        (degrees(1, 1, 1), ScheduleKind::OneFOneB),
        (degrees(1, 1, 2), ScheduleKind::GPipe),
        (degrees(1, 2, 1), ScheduleKind::OneFOneB),
    ] {
        let held = ways.iter().map(|way| {
            let config = EngineConfig {
                degrees,
                schedule: schedule.into(),
                global_batch: 4,
                recompute: way.clone(),
                ..run(model.clone())
            };
            let ranks = memory(&config).into_iter();
            ranks.map(|(_, measured)| measured.activations.unwrap()).max().unwrap()
        });
        let held: Vec<usize> = held.collect();
        assert!(held.is_sorted_by(|more, less| more > less), "{schedule}: {held:?}");
        assert!(2 * held[3] < held[0], "{schedule}: {held:?}");
    }
}

/// Blocks of all kinds, in layouts that share features, tokens and blocks out.
#[test]
fn the_peak_of_activations_is_predicted_for_blocks_of_all_kinds() {
    let others = Family::ALL.iter().filter(|family| !matches!(family, Family::Gpt | Family::Llama));
    let models = others.map(|family| toy::of(*family)).chain(toy::mixed());
    let mut peaks = Peaks::default();
    for model in models {
        // Long enough that small buffers do not count.
        let model = ModelSpec { hidden: 64, head_dim: 16, ffn: 192, seq_max: 64, ..model };
        for (compute, degrees, sequence_parallel, recompute) in [
            (DType::F32, degrees(1, 1, 1), false, false),
            (DType::Bf16, degrees(1, 1, 1), false, true),
            (DType::Bf16, degrees(1, 1, 2), true, false),
            (DType::F32, degrees(1, 2, 2), false, false),
            (DType::Bf16, degrees(1, 2, 1), false, false),
        ] {
            let base = run(model.clone());
            let recompute = recompute.into();
            peaks.hold(&EngineConfig { compute, degrees, sequence_parallel, recompute, ..base });
        }
    }
    assert_eq!(peaks.all(), 9 * (1 + 1 + 2 + 4 + 2));
}

#[test]
fn an_axis_that_nothing_is_split_on_is_refused() {
    let config = run(awkward()[0].clone());
    let asked = [
        ("cp = 2", Degrees { cp: 2, ..Degrees::SERIAL }),
        ("ep = 3", Degrees { ep: 3, ..Degrees::SERIAL }),
        ("cp = 0", Degrees { cp: 0, ..Degrees::SERIAL }),
    ];
    for (said, degrees) in asked {
        let error = RunPlan::new(&EngineConfig { degrees, ..config.clone() }).unwrap_err();
        let (text, axis) = (error.to_string(), &said[..2]);
        let nearest = format!("nearest valid value: {axis} = 1");
        assert!(text.starts_with(said) && text.ends_with(&nearest), "{text}");
    }
    assert!(RunPlan::new(&config).is_ok());
}
