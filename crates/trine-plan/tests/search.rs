//! The search, its explanations of what cannot be, scaling and sensitivity.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_plan::{
    Attention, Cluster, Constants, Convention, Fixed, Impossible, Limit, Model, Planner, Precision,
    Recompute, Request, Scaling, SearchError, Stack, clusters, default_global_batch, explain_lead,
    find_cluster, find_stack, flops, items, memory_svg, rank, scale, search, sensitivity, stacks,
};

use trine_schedule::ScheduleKind;
use trine_spec::ModelSpec;

struct Oak {
    model: Model,
    cluster: Cluster,
    stack: Stack,
    constants: Constants,
}

impl Oak {
    fn new(preset: &str) -> Self {
        let model = Model::new(&trine_spec::presets::find(preset).unwrap().model).unwrap();
        let cluster = find_cluster(&clusters(&[]).unwrap(), "frontier").unwrap().clone();
        let stack = find_stack(&stacks().unwrap(), "megatron-deepspeed").unwrap().clone();
        Self { model, cluster, stack, constants: Constants::built_in().unwrap() }
    }

    fn planner(&self) -> Planner<'_> {
        Planner::new(&self.model, &self.cluster, &self.stack, &self.constants).unwrap()
    }
}

fn request(devices: usize, global_batch: usize, fixed: Fixed) -> Request {
    Request {
        devices,
        global_batch,
        seq: 2048,
        headroom: 0.1,
        precision: Precision::Bf16,
        attention: Attention::Flash2,
        fixed,
    }
}

fn impossible(planner: &Planner<'_>, request: &Request) -> Impossible {
    match search(planner, request) {
        Err(SearchError::Impossible(why)) => *why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hundred_thousand_layouts_are_ranked_and_the_best_simulated() {
    let oak = Oak::new("frontier-1t");
    let planner = oak.planner();
    let asked = request(3072, 9600, Fixed::default());
    let ranked = rank(&planner, &asked).unwrap();
    assert!(ranked.evaluated >= 100_000, "{}", ranked.evaluated);
    assert!(ranked.feasible > 1000 && ranked.feasible < ranked.evaluated);
    assert!(ranked.best.iter().all(|one| one.simulated.is_none()));

    // The same with fewer choices, simulated.
    let fixed = Fixed { tp: Some(8), micro_batch: Some(1), ..Fixed::default() };
    let found = search(&planner, &request(3072, 1536, fixed)).unwrap();
    assert!(found.best.len() >= 20 && found.best.is_sorted_by(|a, b| a.step() <= b.step()));
    for choice in &found.best {
        assert!(choice.estimate.fits(0.1), "{choice:?}");
        let simulated = choice.simulated.unwrap();
        let time = &choice.estimate.time;
        let error = simulated.step / time.step - 1.0;
        // The form takes stages that are all alike; the last one has the head.
        assert!(error.abs() < 0.05, "{error} {choice:?}");
        let sum: f64 = items(time).iter().map(|(_, seconds)| seconds).sum();
        assert!((sum / time.step - 1.0).abs() < 1e-9);
    }
    let best = found.best[0].step();
    assert!(found.near.iter().all(|one| one.step() < best && !one.estimate.fits(0.1)));
}

#[test]
fn a_lead_is_explained_by_the_items_that_differ() {
    let oak = Oak::new("frontier-1t");
    let planner = oak.planner();
    let fixed = |pipeline| Fixed {
        tp: Some(8),
        pp: Some(64),
        pipeline: Some(pipeline),
        virtual_stages: Some(1),
        micro_batch: Some(1),
        zero: Some(1),
        recompute: Some(Recompute::Full { every: 1 }),
        sequence_parallel: Some(false),
        ..Fixed::default()
    };
    let one = |pipeline| search(&planner, &request(3072, 9600, fixed(pipeline))).unwrap().best[0];
    let (h1, plain) = (one(ScheduleKind::ZbH1), one(ScheduleKind::OneFOneB));
    let reasons = explain_lead(&h1, &plain);
    assert_eq!(reasons[0].0, "bubble");
    let saved = plain.estimate.time.bubble - h1.estimate.time.bubble;
    assert!((reasons[0].1 - saved).abs() < 1e-9 && saved > 0.0);
    assert_eq!(explain_lead(&h1, &h1), []);
}

#[test]
fn the_recipes_of_the_paper_are_feasible_and_near_the_first_choice() {
    // Dash et al. (2312.12705): 175B as tp 4 × pp 16, 1T as tp 8 × pp 64, micro-batch 1, fp16, 1F1B, ZeRO-1, full
    // recompute, found on few nodes: 175B with tensor degrees of 4 and 8 and at most 16 stages on 128 dies.
    let any: [Option<usize>; 1] = [None];
    for (preset, devices, batch, tp, pp, tensor, stages) in [
        ("frontier-175b", 128, 1280, 4, 16, &[Some(4), Some(8)][..], &[4, 8, 12, 16].map(Some)[..]),
        ("frontier-1t", 1024, 3200, 8, 64, &any, &any),
    ] {
        let oak = Oak::new(preset);
        let planner = oak.planner();
        let software = Fixed {
            pipeline: Some(ScheduleKind::OneFOneB),
            recompute: Some(Recompute::Full { every: 1 }),
            sequence_parallel: Some(false),
            zero: Some(1),
            ..Fixed::default()
        };
        let first = |fixed: Fixed| {
            let asked = Request { precision: Precision::F16, ..request(devices, batch, fixed) };
            search(&planner, &asked).ok().map(|found| found.best[0].step())
        };
        let space = tensor.iter().flat_map(|&tp| stages.iter().map(move |&pp| (tp, pp)));
        let best = space.filter_map(|(tp, pp)| first(Fixed { tp, pp, ..software }));
        let best = best.fold(f64::INFINITY, f64::min);
        let recipe = Fixed { tp: Some(tp), pp: Some(pp), micro_batch: Some(1), ..software };
        let over = first(recipe).expect("the recipe fits") / best - 1.0;
        assert!((0.0..0.05).contains(&over), "{preset}: {over}");
    }
}

#[test]
fn too_little_memory_is_said_with_what_would_do() {
    let oak = Oak::new("frontier-1t");
    let planner = oak.planner();
    let asked = request(64, 1024, Fixed::default());
    let why = impossible(&planner, &asked);
    let Limit::Memory { leanest } = why.limit else { panic!("{why:?}") };
    // 16 B of state a parameter over 64 dies are 250 GB on each.
    assert!(leanest.memory_share() > 2.0, "{leanest:?}");
    let enough = why.devices.unwrap();
    assert!(enough > 64);
    let more = request(enough, enough * 16, Fixed::default());
    assert!(rank(&planner, &more).unwrap().feasible > 0, "{enough}");

    // Too much headroom is named too.
    let tight = Request { headroom: 0.95, ..request(3072, 6144, Fixed::default()) };
    let why = impossible(&planner, &tight);
    let share = why.headroom.unwrap();
    assert!(share < 0.95);
    let looser = Request { headroom: share - 1e-9, ..tight };
    assert!(rank(&planner, &looser).unwrap().feasible > 0, "{share}");
}

#[test]
fn batches_and_device_counts_that_cannot_be_get_the_nearest() {
    let oak = Oak::new("frontier-175b");
    let planner = oak.planner();
    let fixed = Fixed { tp: Some(4), pp: Some(16), ..Fixed::default() };
    // 16 replicas.
    let why = impossible(&planner, &request(1024, 500, fixed));
    assert_eq!((why.limit, why.global_batch), (Limit::Batch, Some(496)));
    assert!(search(&planner, &request(1024, 496, fixed)).is_ok());
    for (devices, nearest) in [(0, 1), (1_000_000, 75_776)] {
        let why = impossible(&planner, &request(devices, 640, Fixed::default()));
        assert_eq!((why.limit, why.devices), (Limit::Devices, Some(nearest)));
    }
}

#[test]
fn a_degree_that_no_layout_has_is_said_with_the_nearest_that_some_have() {
    let oak = Oak::new("frontier-175b");
    let equal = "tensor ranks of megatron-deepspeed have equal parts, and";
    let says = |devices, (tp, pp): (Option<usize>, Option<usize>)| {
        let fixed = Fixed { tp, pp, ..Fixed::default() };
        match impossible(&oak.planner(), &request(devices, devices, fixed)).limit {
            Limit::Fixed { degree } => degree.unwrap().to_string(),
            other => panic!("{other:?}"),
        }
    };
    // 96 heads, ffn = 49152, 96 blocks.
    let neither = "5 divides neither the 96 heads nor ffn = 49152; nearest valid: 4 or 8";
    assert_eq!(says(640, (Some(5), None)), format!("tp 5: {equal} {neither}"));
    let nine = "9 divides neither the 96 heads nor ffn = 49152; nearest valid: 8 or 12";
    assert_eq!(says(1152, (Some(9), Some(2))), format!("tp 9: {equal} {nine}"));
    let heads = "every rank needs a query head and the model has 96; nearest valid: 32";
    assert_eq!(says(1024, (Some(128), None)), format!("tp 128: {heads}"));
    let over = "tp × pp × cp = 12 does not divide the 1024 devices; nearest valid: 2 or 4";
    assert_eq!(says(1024, (Some(4), Some(3))), format!("pp 3: {over}"));
    let deep = "every stage needs a layer and the model has 96; nearest valid: 64";
    assert_eq!(says(1024, (None, Some(128))), format!("pp 128: {deep}"));
    assert_eq!(
        says(1024, (Some(3), Some(5))),
        "tp 3: 3 does not divide the 1024 devices; nearest valid: 2 or 4"
    );
}

#[test]
fn what_a_stack_cannot_share_out_is_named() {
    let all = stacks().unwrap();
    let named = |name: &str| find_stack(&all, name).unwrap();
    let model = trine_spec::presets::find("gpt2-124m").unwrap().model;
    let of = |heads, kv_heads, ffn| ModelSpec { heads, kv_heads, ffn, ..model.clone() };
    let cases = [
        (of(25, 25, 6400), 2, "2 does not divide the 25 heads; nearest valid: 1 or 5"),
        (of(12, 6, 96), 4, "4 does not divide the 6 KV heads; nearest valid: 3 or 6"),
        (of(12, 1, 96), 8, "8 does not divide the 12 query heads; nearest valid: 6 or 12"),
        (of(12, 12, 34), 4, "4 does not divide ffn = 34; nearest valid: 2"),
    ];
    for (model, tp, says) in cases {
        let said = named("megatron-core").check_degree(&model, tp).unwrap_err().to_string();
        let why = format!("tp {tp}: tensor ranks of megatron-core have equal parts, and {says}");
        assert_eq!(said, why);
        named("trine").check_degree(&model, tp).unwrap();
    }
}

#[test]
fn what_trine_never_runs_is_left_out() {
    let oak = Oak::new("frontier-22b");
    let planner = oak.planner();
    let fixed = Fixed { runnable: true, ..Fixed::default() };
    let found = search(&planner, &request(64, 512, fixed)).unwrap();
    for choice in &found.best {
        let layout = &choice.layout;
        assert!(layout.zero <= 1 && layout.degrees.cp == 1 && layout.is_runnable());
        assert_ne!(layout.recompute, Recompute::Selective);
    }
    assert!(found.best.iter().any(|choice| choice.layout.virtual_stages > 1));
}

#[test]
fn zero_2_reduces_the_gradients_of_every_micro_batch() {
    let oak = Oak::new("frontier-22b");
    let planner = oak.planner();
    let data = |zero: u8, global_batch: usize| {
        let fixed = Fixed {
            tp: Some(2),
            pp: Some(4),
            micro_batch: Some(1),
            pipeline: Some(ScheduleKind::OneFOneB),
            zero: Some(zero),
            ..Fixed::default()
        };
        rank(&planner, &request(128, global_batch, fixed)).unwrap().best[0].estimate.time.data
    };
    // 16 replicas: one micro-batch and eight. The gather of the weights and the tied embedding come once.
    assert_eq!(data(1, 16), data(2, 16));
    assert_eq!(data(1, 16), data(1, 128));
    let (one, more) = (data(2, 16), data(2, 128));
    assert!(more > 4.0 * one && more < 8.0 * one, "{one} {more}");
}

#[test]
fn recomputing_every_second_block_costs_half_as_much() {
    let oak = Oak::new("frontier-22b");
    let planner = oak.planner();
    let with = |recompute| {
        let fixed = Fixed {
            tp: Some(2),
            pp: Some(4),
            micro_batch: Some(1),
            pipeline: Some(ScheduleKind::OneFOneB),
            zero: Some(1),
            recompute: Some(recompute),
            sequence_parallel: Some(false),
            ..Fixed::default()
        };
        let choice = rank(&planner, &request(128, 128, fixed)).unwrap().best[0];
        let work = flops(planner.model, &choice.layout, Convention::FullAttention);
        (choice.estimate, work.hardware - work.model)
    };
    let none = with(Recompute::None);
    let (every, half) = (with(Recompute::Full { every: 1 }), with(Recompute::Full { every: 2 }));
    assert_eq!((none.0.time.recompute, none.1), (0.0, 0.0));
    assert!((half.0.time.recompute / every.0.time.recompute - 0.5).abs() < 1e-9);
    assert!((half.1 / every.1 - 0.5).abs() < 1e-9);
    // Twelve blocks a stage: six keep their input, six everything.
    let kept = [&none, &half, &every].map(|one| one.0.memory.activations);
    assert!((kept[1] / ((kept[0] + kept[2]) / 2.0) - 1.0).abs() < 1e-9, "{kept:?}");
}

#[test]
fn the_default_batch_has_the_odd_part_of_the_devices() {
    for (devices, seq, expected) in
        [(3072, 2048, 6144), (1024, 2048, 8192), (1, 8192, 2048), (7, 1 << 30, 7)]
    {
        assert_eq!(default_global_batch(devices, seq), expected, "{devices} {seq}");
    }
}

#[test]
fn weak_scaling_holds_and_strong_scaling_bends_with_the_bubble() {
    let oak = Oak::new("frontier-1t");
    let planner = oak.planner();
    let fixed = Fixed {
        tp: Some(8),
        pp: Some(64),
        pipeline: Some(ScheduleKind::OneFOneB),
        micro_batch: Some(1),
        ..Fixed::default()
    };
    let base = search(&planner, &request(1024, 3200, fixed)).unwrap().best[0].layout;
    let sizes = [1024, 2048, 3072, 16_384, 65_536, 98_304];
    let weak = scale(&planner, &base, &sizes, Scaling::Weak).unwrap();
    // 98,304 dies are more than Frontier has.
    assert_eq!(weak.len(), 5);
    assert_eq!((weak[0].efficiency, weak[0].bend), (1.0, None));
    assert_eq!(weak[2].layout.global_batch, 9600);
    assert!(weak[2].efficiency >= 0.97, "{:?}", weak[2]);
    assert!(weak.is_sorted_by(|a, b| a.efficiency >= b.efficiency));
    let strong = scale(&planner, &base, &sizes, Scaling::Strong).unwrap();
    assert!(strong.iter().all(|point| point.layout.global_batch == 3200));
    assert!(strong.is_sorted_by(|a, b| a.efficiency > b.efficiency));
    let last = strong.last().unwrap();
    // 3,200 sequences over 128 replicas leave 25 micro-batches to 64 ranks.
    assert_eq!((last.layout.micro_batches(), last.bend.unwrap().0), (25, "bubble"));
}

#[test]
fn sensitivity_ranks_the_choices_of_the_papers_search() {
    let oak = Oak::new("frontier-175b");
    let planner = oak.planner();
    let fixed = Fixed { tp: Some(8), pp: Some(16), ..Fixed::default() };
    let base = search(&planner, &request(128, 640, fixed)).unwrap().best[0].layout;
    let found = sensitivity(&planner, &base, 0.0);
    // 6 micro-batches × tensor {4, 8} × pipeline {1, 2, 4, 8, 12, 16} × {5, 10} × 2 sizes × ZeRO.
    assert!(found.trials == 6 * 2 * 6 * 2 * 2 * 2 && found.feasible > 100, "{found:?}");
    assert_eq!(found.factors.len(), 6);
    assert!(found.factors.is_sorted_by(|a, b| a.weight >= b.weight));
    for factor in &found.factors {
        assert_eq!(factor.values.len(), factor.means.len());
    }
    // Shapley values add up: the mean over the grid is the same from every factor's means.
    let mean = |index: usize| {
        let means = &found.factors[index].means;
        means.iter().sum::<f64>() / means.len() as f64
    };
    assert!((1..6).all(|index| (mean(index) / mean(0) - 1.0).abs() < 1e-9));
}

#[test]
fn the_memory_of_every_rank_is_drawn() {
    let oak = Oak::new("frontier-1t");
    let planner = oak.planner();
    let fixed = Fixed { tp: Some(8), pp: Some(64), ..Fixed::default() };
    let best = search(&planner, &request(512, 1600, fixed)).unwrap().best[0];
    let svg = memory_svg(&planner, &best.layout);
    // A background, nine words of the legend, nine items on each of 64 ranks.
    assert_eq!(svg.matches("<rect").count(), 1 + 9 + 9 * 64);
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    assert!(svg.contains("rank 63: activations") && svg.ends_with("</svg>\n"));
}
