//! What is frozen costs a plan no weight gradients, no state, no reduction and no update.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_mesh::Degrees;
use trine_plan::{
    Attention, Constants, Layout, Model, Planner, Precision, Recompute, SharedStep, clusters,
    find_cluster, find_stack, simulate_step, stacks,
};
use trine_schedule::{ScheduleKind, StageCosts};
use trine_spec::{Pattern, presets};

fn layout(dp: usize, pp: usize) -> Layout {
    Layout {
        degrees: Degrees { dp, pp, ..Degrees::SERIAL },
        virtual_stages: 1,
        pipeline: ScheduleKind::ZbH1,
        micro_batch: 16,
        global_batch: 8 * 16 * dp,
        seq: 1024,
        sequence_parallel: false,
        recompute: Recompute::None,
        attention: Attention::Flash2,
        zero: 1,
        precision: Precision::Bf16,
    }
}

/// A model of which some patterns are frozen.
fn model(preset: &str, frozen: &[String]) -> Model {
    let mut model = Model::new(&presets::find(preset).unwrap().model).unwrap();
    let patterns: Vec<Pattern> = frozen.iter().map(Pattern::new).collect();
    model.freeze(&patterns).unwrap();
    model
}

/// Calls `then` with trine's planner of a model.
fn with_planner<T>(model: &Model, then: impl Fn(&Planner<'_>) -> T) -> T {
    let (machines, all) = (clusters(&[]).unwrap(), stacks().unwrap());
    let (machine, stack) =
        (find_cluster(&machines, "h100").unwrap(), find_stack(&all, "trine").unwrap());
    let constants = Constants::built_in().unwrap();
    then(&Planner::new(model, machine, stack, &constants).unwrap())
}

fn blocks(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|block| format!("block.{block}.*")).collect()
}

/// W of a stage is that of what is trained there; F and B stay.
#[test]
fn weight_gradients_take_the_time_of_what_is_trained() {
    let costs = |frozen: &[String]| -> StageCosts {
        with_planner(&model("gpt2-124m", frozen), |planner| {
            planner.stage_costs(&layout(1, 2), &[0, 1])
        })
    };
    let whole = costs(&[]);
    let first = with_planner(&model("gpt2-124m", &[]), |planner| {
        trine_plan::blocks_of(&planner.model.spec, &layout(1, 2), planner.stack, 0)
    }) as usize;
    let half = costs(&blocks(0..first));
    assert_eq!(half.backward_weight[0], 0.0);
    assert_eq!(half.backward_weight[1], whole.backward_weight[1]);
    assert_eq!(half.forward, whole.forward);
    // The tied output layer follows the embedding: blocks alone are left on the last stage.
    let tied = costs(&["embedding.token".into()]);
    assert_eq!(tied.backward_weight[0], whole.backward_weight[0]);
    let left = tied.backward_weight[1] / whole.backward_weight[1];
    assert!(left > 0.1 && left < 0.9, "{left}");
    // Products of GPT-2's block have 3, 1, 4 and 4 h² elements; small ones take longer for each.
    let saved = |pattern: &str| {
        1.0 - costs(&[pattern.into()]).backward_weight[0] / whole.backward_weight[0]
    };
    let products = ["*.attention.?.*", "*.attention.output.*", "*.mlp.up.*", "*.mlp.down.*"];
    let saved = products.map(saved);
    for (found, elements) in saved.iter().zip([3.0, 1.0, 4.0, 4.0]) {
        assert!((found - elements / 12.0).abs() < 0.12, "{saved:?}");
    }
    assert!((saved.iter().sum::<f64>() - 1.0).abs() < 0.1, "{saved:?}");
}

/// A run that trains one block in twelve: less of everything but weights, F and B.
#[test]
fn a_step_of_which_little_is_trained_is_planned_with_less_of_all_that_is_saved() {
    let most: Vec<String> =
        blocks(0..11).into_iter().chain(["embedding.*".into(), "head.*".into()]).collect();
    let of = |frozen: &[String], dp: usize| {
        with_planner(&model("gpt2-124m", frozen), |planner| {
            let layout = layout(dp, 1);
            let bytes = planner.rank_bytes(&layout, 0).unwrap();
            (bytes, planner.estimate(&layout))
        })
    };
    for dp in [1, 4] {
        let ((whole, all), (own, few)) = (of(&[], dp), of(&most, dp));
        assert_eq!(own.weights, whole.weights);
        // 7.1 of 124 million are trained.
        let share = 7.09 / 124.4;
        for (own, whole) in [
            (own.gradients, whole.gradients),
            (own.master, whole.master),
            (own.moments, whole.moments),
        ] {
            assert!((own as f64 / whole as f64 / share - 1.0).abs() < 0.02, "{own} {whole}");
        }
        assert!(few.memory.buffers <= all.memory.buffers);
        assert_eq!(few.time.forward, all.time.forward);
        assert!(few.time.backward < 0.8 * all.time.backward);
        assert!((few.time.optimizer / all.time.optimizer / share - 1.0).abs() < 0.02);
        assert_eq!(dp > 1, few.time.data < all.time.data);
        assert!(few.time.step < all.time.step);
    }
}

/// Where several stages share a machine, each has the time of what it trains.
#[test]
fn a_shared_step_knows_which_stage_is_frozen() {
    let step = |frozen: &[String], counts: [usize; 2]| -> SharedStep {
        with_planner(&model("gpt2-124m", frozen), |planner| {
            let layout = layout(1, 2);
            planner.shared_step(&layout, &layout.schedule().unwrap(), &counts, 2.0).unwrap()
        })
    };
    // Most of the work is on the last stage, so what is saved there counts.
    let (whole, early, late) =
        (step(&[], [2, 10]), step(&blocks(0..2), [2, 10]), step(&blocks(10..12), [2, 10]));
    assert!(late.step < early.step && early.step <= whole.step, "{late:?} {early:?} {whole:?}");
    with_planner(&model("gpt2-124m", &blocks(0..2)), |planner| {
        let layout = layout(1, 2);
        let step = simulate_step(planner, &layout, &planner.estimate(&layout)).unwrap();
        assert!(step.step > 0.0 && step.step.is_finite());
    });
}

#[test]
fn what_cannot_be_frozen_is_said() {
    let mut model = model("gpt2-124m", &[]);
    let refused = |model: &mut Model, pattern: &str| {
        model.freeze(&[Pattern::new(pattern)]).unwrap_err().to_string()
    };
    assert!(refused(&mut model, "blok.*").contains("names no parameter"));
    assert!(refused(&mut model, "*").contains("nothing is left to train"));
    model.freeze(&[]).unwrap();
    assert_eq!(model, self::model("gpt2-124m", &[]));
}
