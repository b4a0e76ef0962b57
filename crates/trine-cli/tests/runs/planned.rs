//! Planned against measured: what a run says after its first steps.

use crate::common::{ALL_AXES, SERIAL, Scratch, small};
use serde_json::Value;

/// Trains, and returns what was said and the summary.
fn run(scratch: &Scratch, out: &str, args: &[&str]) -> (String, Value) {
    let (_, said) = scratch.ok(&small(out, args));
    (said, scratch.at(out).summary())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn after_ten_steps_the_plan_is_held_against_the_run() {
    let scratch = Scratch::new();
    scratch.ok(&["plan", "--measure", "--precision=f32", "--out=machine.toml"]);
    let mut cases = 0;
    for (layout, ranks) in [(SERIAL, 1), (ALL_AXES, 8)] {
        for (machine, source) in [
            (&["--machine=machine.toml"][..], "machine.toml: "),
            (&[], "measured in f32 at the start"),
        ] {
            let out = format!("{ranks}-{}", machine.len());
            let args = [layout, &["--steps=12"], machine].concat();
            let (said, summary) = run(&scratch, &out, &args);
            let heading =
                format!("planned against measured after 10 steps; machine: this-machine ({source}");
            assert_eq!(said.matches(&heading).count(), 1, "{said}");
            for part in
                ["step (median of 8)", "pipeline bubble", "0 (dp 0 pp 0 tp 0)", "(not planned)"]
            {
                assert!(said.contains(part), "{part} is missing in {said}");
            }
            assert!(!said.contains(" B, not "), "bytes differ: {said}");
            check(&summary["plan"], ranks);
            cases += 1;
        }
    }
    assert_eq!(cases, 4);
}

/// What is promised to the byte is so, activations within contract C10, and there are times.
fn check(plan: &Value, ranks: usize) {
    assert_eq!((&plan["after_steps"], &plan["timed_steps"]), (&10.into(), &8.into()));
    assert!(plan["unplanned"].is_null(), "{plan}");
    for name in ["step_s_planned", "step_s_measured"] {
        let seconds = number(&plan[name]);
        assert!(seconds > 0.0 && seconds < 60.0, "{name}: {seconds}");
    }
    let bubble = number(&plan["bubble_planned"]);
    // Two stages, four micro-batches over two replicas: (2 − 1) / (2 + 2 − 1) if stages were alike.
    let expected = if ranks == 1 { 0.0..=1e-9 } else { 0.2..=0.6 };
    assert!(expected.contains(&bubble), "{bubble}");
    assert!((0.0..1.0).contains(&number(&plan["bubble_measured"])));
    let all = plan["ranks"].as_array().unwrap();
    assert_eq!(all.len(), ranks);
    for rank in all {
        let (planned, measured) = (&rank["planned"], &rank["measured"]);
        assert_eq!(planned["state"], measured["state"]);
        assert_eq!(planned["buffers"], measured["buffers"]);
        assert!((number(&planned["buffers"]) > 0.0) == (ranks > 1), "ZeRO-1 exchanges parts");
        let off = number(&planned["activations"]) / number(&measured["activations"]) - 1.0;
        assert!(off.abs() <= 0.03, "{rank}");
        assert!(
            planned["arena"].is_null()
                && measured["arena"].as_u64() >= measured["activations"].as_u64()
        );
    }
}

#[test]
fn what_cannot_be_planned_is_said() {
    let scratch = Scratch::new();
    let exact = ["--steps=4", "--numerics=reference"];
    let (said, summary) = run(&scratch, "reference", &[SERIAL, &exact].concat());
    assert!(said.contains("after 4 steps"), "{said}");
    let why = "the planner knows no times for reference numerics";
    assert!(said.contains(&format!("time and bubble are not planned: {why}")), "{said}");
    let plan = &summary["plan"];
    assert_eq!(plan["unplanned"], why);
    assert!(plan["step_s_planned"].is_null() && number(&plan["step_s_measured"]) > 0.0);
    let planned = &plan["ranks"][0]["planned"];
    assert!(planned["activations"].is_null() && planned["buffers"].is_null());
    assert_eq!(planned["state"], plan["ranks"][0]["measured"]["state"]);

    let hurried = ["--steps=3", "--set=train.minutes_max=0.9"];
    let (said, summary) = run(&scratch, "hurried", &[SERIAL, &hurried].concat());
    assert!(said.contains("machine: not known\n"), "{said}");
    assert!(said.contains("the time limit is too short to measure the machine first"), "{said}");
    assert!(summary["plan"]["step_s_planned"].is_null(), "{summary}");
}

#[test]
fn too_few_steps_are_no_comparison_and_a_finished_run_keeps_its_own() {
    let scratch = Scratch::new();
    let (said, summary) = run(&scratch, "short", &[SERIAL, &["--steps=2"]].concat());
    assert!(!said.contains("planned against measured") && summary["plan"].is_null(), "{said}");
    let (_, before) = run(&scratch, "long", &[SERIAL, &["--steps=3"]].concat());
    assert_eq!(before["plan"]["timed_steps"], 1);
    assert_eq!(scratch.resume("long", &[]).summary()["plan"], before["plan"]);
}
