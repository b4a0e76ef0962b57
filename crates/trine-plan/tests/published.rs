//! The plan against what was published: the targets of docs/planning.md, with what is reached.

use std::collections::BTreeMap;
use trine_mesh::Degrees;
use trine_plan::calibrate::{Fit, fit_rows, fnv1a};
use trine_plan::evaluate::{Compared, World, noise_floor, quantile, summarize};
use trine_plan::published::{PublishedRun, built_in, read};
use trine_plan::{
    Attention, Cluster, Constants, Convention, Layout, Model, Planner, Precision, Recompute,
    Scaling, Stack, clusters, evaluation_svg, find_cluster, find_stack, flops, report, scale,
    scaling_svg, stacks,
};
use trine_schedule::ScheduleKind;
use trine_spec::presets;

struct Known {
    clusters: Vec<Cluster>,
    stacks: Vec<Stack>,
    constants: Constants,
    rows: Vec<PublishedRun>,
}

/// What is built in, without the rows: to read these takes seconds.
fn world() -> (Vec<Cluster>, Vec<Stack>, Constants) {
    (
        clusters(&[]).expect("committed data are in order"),
        stacks().expect("committed data are in order"),
        Constants::built_in().expect("committed data are in order"),
    )
}

fn known() -> Known {
    let (clusters, stacks, constants) = world();
    let rows = built_in(&clusters, &stacks).expect("committed data are in order");
    Known { clusters, stacks, constants, rows }
}

impl Known {
    fn compared(&self) -> Vec<Compared<'_>> {
        let world =
            World { clusters: &self.clusters, stacks: &self.stacks, constants: &self.constants };
        world.compare(&self.rows).expect("committed data are in order")
    }

    fn outside(&self) -> Vec<Compared<'_>> {
        let fit = fit_rows(&self.rows, &self.clusters);
        self.compared().into_iter().zip(fit).filter(|(_, fit)| !fit).map(|(row, _)| row).collect()
    }
}

fn row<'a>(compared: &'a [Compared<'a>], id: &str) -> &'a Compared<'a> {
    compared.iter().find(|row| row.row.row_id == id).expect("committed data are in order")
}

#[test]
fn fit_rows_are_chosen_by_hash_and_equal_layouts_stay_together() {
    // Reference values of FNV-1a, 64 bits.
    assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    let known = known();
    let fit = fit_rows(&known.rows, &known.clusters);
    let count = fit.iter().filter(|fit| **fit).count();
    assert!(count * 4 <= known.rows.len() && count * 6 > known.rows.len(), "{count}");
    let mut sides: BTreeMap<String, bool> = BTreeMap::new();
    for (row, fit) in known.rows.iter().zip(&fit) {
        assert_eq!(*sides.entry(row.layout_key()).or_insert(*fit), *fit, "{}", row.row_id);
        let forbidden = ["FRONTIER-175B", "FRONTIER-1T", "ORNL-CRUSHER"];
        assert!(!*fit || !forbidden.iter().any(|id| row.row_id.starts_with(id)), "{}", row.row_id);
    }
}

#[test]
fn the_committed_constants_are_what_the_fit_gives() {
    let known = known();
    let start = Constants::priors().unwrap();
    let fit = Fit { clusters: &known.clusters, stacks: &known.stacks, start: &start };
    let chosen = fit_rows(&known.rows, &known.clusters);
    let rows: Vec<&PublishedRun> =
        known.rows.iter().zip(&chosen).filter(|(_, fit)| **fit).map(|(row, _)| row).collect();
    let fitted = fit.run(&rows).unwrap();
    for (device, values) in &fitted.device {
        let committed = known.constants.device[device].values();
        for (found, kept) in values.values().into_iter().zip(committed) {
            assert!((found - kept).abs() <= 1e-3 * kept.abs() + 1e-9, "{device}: {found}, {kept}");
        }
    }
    for (stack, values) in &fitted.stack {
        let committed = known.constants.stack[stack].values();
        for (found, kept) in values.values().into_iter().zip(committed) {
            assert!((found - kept).abs() <= 1e-3 * kept.abs() + 1e-9, "{stack}: {found}, {kept}");
        }
    }
    // MI250X has three constants of its own.
    let (own, shared) = (&fitted.device["mi250x"].values(), &fitted.device["a100"].values());
    assert_eq!(own.iter().zip(shared).filter(|(a, b)| a != b).count(), 3);
}

#[test]
fn time_and_memory_outside_the_fit() {
    let known = known();
    let outside = known.outside();
    let summary = summarize(&outside);
    // Targets: 6 % and 15 %, 5 % and 12 %.
    assert!(summary.time_rows > 450, "{}", summary.time_rows);
    assert!(summary.time_median_abs_err.unwrap() <= 0.05, "{:?}", summary.time_median_abs_err);
    assert!(summary.time_p90_abs_err.unwrap() <= 0.15, "{:?}", summary.time_p90_abs_err);
    assert!(summary.memory_rows > 70, "{}", summary.memory_rows);
    assert!(summary.memory_median_abs_err.unwrap() <= 0.04, "{:?}", summary.memory_median_abs_err);
    assert!(summary.memory_p90_abs_err.unwrap() <= 0.09, "{:?}", summary.memory_p90_abs_err);
    let floor = noise_floor(&known.rows);
    assert!(floor.len() > 20 && quantile(&floor, 0.9).unwrap() > 0.02, "{floor:?}");
}

#[test]
fn the_sweep_fits_or_does_not_as_it_did() {
    let known = known();
    let outside: Vec<Compared<'_>> = known
        .outside()
        .into_iter()
        .filter(|row| row.row.source.starts_with("Aleph Alpha"))
        .collect();
    let summary = summarize(&outside);
    assert!(summary.oom_rows > 500, "{}", summary.oom_rows);
    assert!(summary.oom_accuracy.unwrap() >= 0.95, "{:?}", summary.oom_accuracy);
    assert!(summary.oom_balanced_accuracy.unwrap() >= 0.92, "{:?}", summary.oom_balanced_accuracy);
}

/// The authors' layout of 175B: tensor 4 × pipeline 16, one sequence a micro-batch.
fn frontier(degrees: Degrees, per_replica: usize) -> Layout {
    Layout {
        degrees,
        virtual_stages: 1,
        pipeline: ScheduleKind::OneFOneB,
        micro_batch: 1,
        global_batch: per_replica * degrees.dp,
        seq: 2048,
        sequence_parallel: false,
        recompute: Recompute::Full { every: 1 },
        attention: Attention::Flash2,
        zero: 1,
        precision: Precision::F16,
    }
}

fn with_planner<T>(model: &str, f: impl FnOnce(&Planner<'_>) -> T) -> T {
    let (clusters, stacks, constants) = world();
    let mut spec = presets::find(model).expect("committed data are in order").model;
    spec.vocab = 50688;
    let model = Model::new(&spec).expect("committed data are in order");
    let cluster = find_cluster(&clusters, "frontier").expect("committed data are in order");
    let stack = find_stack(&stacks, "megatron-deepspeed").expect("committed data are in order");
    f(&Planner::new(&model, cluster, stack, &constants).expect("committed data are in order"))
}

#[test]
fn memory_of_each_stage_of_the_log() {
    const MIB: f64 = 1_048_576.0;
    let log = include_str!("../data/published/stage_memory_175b_128gcd.csv");
    let degrees = Degrees { dp: 2, pp: 16, tp: 4, ..Degrees::SERIAL };
    let layout = frontier(degrees, 160);
    with_planner("frontier-175b", |planner| {
        let peak = |stage: usize| planner.rank_memory(&layout, stage).allocated() / MIB;
        let mut stages = 0;
        for line in log.lines().skip(1) {
            let fields: Vec<&str> = line.split(',').collect();
            let stage: usize = fields[0].parse().unwrap();
            let measured: f64 = fields[5].parse().unwrap();
            let error = peak(stage) / measured - 1.0;
            assert!(error.abs() <= 0.05, "stage {stage}: {} against {measured}", peak(stage));
            stages += 1;
        }
        assert_eq!(stages, 16);
        for stage in 1..14 {
            let slope = peak(stage) - peak(stage + 1);
            assert!((slope / 300.0 - 1.0).abs() <= 0.01, "stage {stage}: {slope}");
        }
    });
}

#[test]
fn frontier_is_predicted_without_being_fitted() {
    let share = |model: &str, degrees: Degrees, per_replica: usize| {
        with_planner(model, |planner| {
            let layout = frontier(degrees, per_replica);
            let estimate = planner.estimate(&layout);
            let work = flops(planner.model, &layout, Convention::FullAttention).hardware;
            let peak = planner.cluster.device.peak_bf16;
            work / (estimate.time.step * layout.devices() as f64 * peak)
        })
    };
    let small = |dp| Degrees { dp, pp: 16, tp: 4, ..Degrees::SERIAL };
    let large = |dp| Degrees { dp, pp: 64, tp: 8, ..Degrees::SERIAL };
    // Published: 36.14 % and 31.96 %, weak scaling 100 % to 1024 and 3072 dies.
    let (one, many) =
        (share("frontier-175b", small(1), 640), share("frontier-175b", small(16), 640));
    assert!((one / 0.3614 - 1.0).abs() < 0.06, "{one}");
    assert!((many / 0.3614 - 1.0).abs() < 0.06 && many / one >= 0.97, "{many}, {one}");
    let (one, many) = (share("frontier-1t", large(1), 1600), share("frontier-1t", large(6), 1600));
    assert!((many / 0.3196 - 1.0).abs() < 0.09 && many / one >= 0.97, "{many}, {one}");
}

#[test]
fn zero_bubble_schedules_are_ordered_as_measured() {
    let known = known();
    let compared = known.compared();
    for (model, sizes) in [("1.5B", [24, 32, 64]), ("6.2B", [24, 32, 64])] {
        for m in sizes {
            let seconds = |schedule: &str| {
                let row = row(&compared, &format!("ZB-{model}-{schedule}-m{m}"));
                (row.estimate.as_ref().unwrap().time.step, row.row.time_s.unwrap())
            };
            // By measured time; 1F1B-I and ZB-1p are within a few per cent of each other.
            for (slow, fast) in [("1F1B", "ZB-1p"), ("ZB-1p", "ZB-2p"), ("1F1B", "1F1B-I")] {
                let (slow, fast) = (seconds(slow), seconds(fast));
                assert!(slow.1 > fast.1 && slow.0 > fast.0, "{model} m {m}: {slow:?}, {fast:?}");
            }
        }
    }
}

#[test]
fn rows_that_lack_something_say_what() {
    let known = known();
    let read = |text: &str| read(text, &known.clusters, &known.stacks);
    let head = "row_id,layers,hidden,heads,seq_len,gpus,tp,pp,dp,mbs,gbs_seqs,gpu_type,iter_time_s";
    let reason = |line: &str| {
        let rows = read(&format!("{head}\n{line}\n")).unwrap();
        rows[0].run.as_ref().err().cloned().unwrap_or_default()
    };
    assert_eq!(reason("a,24,2048,16,2048,8,1,1,8,1,64,A100-80GB,1.5"), "");
    assert_eq!(reason("a,24,2048,16,2048,8,1,1,8,,64,A100-80GB,1.5"), "mbs is empty");
    assert!(reason("a,24,2048,16,2048,9,1,1,8,1,64,A100-80GB,1").contains("8 ranks, not 9 gpus"));
    assert!(reason("a,24,2048,16,2048,8,1,1,8,1,64,B300,1.5").contains("B300"));
    assert!(reason("a,x,2048,16,2048,8,1,1,8,1,64,H100,1.5").contains("layers = \"x\""));
    assert!(reason("a,24,2048,16,2048,8,1,1,8,3,64,H100,1.5").contains("multiple of"));
    assert!(read("name\n1\n").unwrap_err().to_string().contains("row_id"));
}

/// The committed picture, or a message that says how to make it.
fn check_picture(name: &str, committed: &str, drawn: &str) {
    let same = committed == drawn;
    assert!(same, "docs/plots/{name} is not what its command gives (docs/planning.md has it)");
}

#[test]
fn the_committed_tables_and_plots_are_what_the_commands_give() {
    let known = known();
    let fit = fit_rows(&known.rows, &known.clusters);
    let drawn = evaluation_svg(&known.compared(), &fit);
    check_picture("evaluate.svg", include_str!("../../../docs/plots/evaluate.svg"), &drawn);
    let (_, rows) =
        include_str!("../../../docs/planning-rows.md").split_once("## By source").unwrap();
    let tables = report::markdown(&known.compared(), &fit);
    let same = tables.strip_prefix("## By source") == Some(rows);
    assert!(same, "docs/planning-rows.md is not what `trine plan evaluate --markdown` prints");
    // A mark for each row outside of the fit, and a word of the legend for each source.
    assert!(drawn.matches("fill-opacity=\"0.6\"").count() > 500);
    for (name, preset, committed, tp, pp, per_replica, devices, most) in [
        (
            "scale-175b.svg",
            "frontier-175b",
            include_str!("../../../docs/plots/scale-175b.svg"),
            4,
            16,
            640,
            128,
            8192,
        ),
        (
            "scale-1t.svg",
            "frontier-1t",
            include_str!("../../../docs/plots/scale-1t.svg"),
            8,
            64,
            1600,
            1024,
            65_536,
        ),
    ] {
        let spec = presets::find(preset).unwrap().model;
        let model = Model::new(&spec).unwrap();
        let cluster = find_cluster(&known.clusters, "frontier").unwrap();
        let stack = find_stack(&known.stacks, "megatron-deepspeed").unwrap();
        let planner = Planner::new(&model, cluster, stack, &known.constants).unwrap();
        let degrees = Degrees { dp: 2, pp, tp, ..Degrees::SERIAL };
        let layout = frontier(degrees, per_replica);
        let sizes: Vec<usize> = std::iter::successors(Some(devices), |size| Some(size * 2))
            .take_while(|size| *size <= most)
            .collect();
        let curves = [Scaling::Weak, Scaling::Strong]
            .map(|scaling| (scaling, scale(&planner, &layout, &sizes, scaling).unwrap()));
        check_picture(name, committed, &scaling_svg(&curves));
    }
}
