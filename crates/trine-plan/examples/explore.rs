//! dev
use trine_plan::{calibrate::*, evaluate::*, published::*, *};
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let cl = clusters(&[]).unwrap();
    let st = stacks().unwrap();
    let start = Constants::parse(&std::fs::read_to_string(&args[0]).unwrap()).unwrap();
    let mut rows = read(include_str!("../data/published/runs.csv"), &cl, &st).unwrap();
    let sweep = read(include_str!("../data/published/layout_sweep.csv"), &cl, &st).unwrap();
    let ids: std::collections::BTreeSet<String> = rows.iter().map(|r| r.row_id.clone()).collect();
    let nr = rows.len();
    rows.retain(|r| !r.source.contains("Aleph"));
    rows.extend(sweep);
    let _ = (ids, nr);
    let fit = fit_rows(&rows, &cl);
    let chosen: Vec<&PublishedRun> = rows.iter().zip(&fit).filter(|x| *x.1).map(|x| x.0).collect();
    let f = Fit { clusters: &cl, stacks: &st, start: &start };
    let c = if args.get(1).is_some_and(|a| a == "fit") {
        let c = f.run(&chosen).unwrap();
        std::fs::write("/tmp/fitted.toml", c.to_toml()).unwrap();
        c
    } else {
        start.clone()
    };
    let w = World { clusters: &cl, stacks: &st, constants: &c };
    let cmp = w.compare(&rows).unwrap();
    let show = |name: &str, v: Vec<f64>| {
        let a: Vec<f64> = v.iter().map(|x| x.abs()).collect();
        if !v.is_empty() {
            println!(
                "{name:60} n {:4} med {:5.1} p90 {:5.1} bias {:+5.1}",
                v.len(),
                100. * quantile(&a, 0.5).unwrap(),
                100. * quantile(&a, 0.9).unwrap(),
                100. * quantile(&v, 0.5).unwrap()
            );
        }
    };
    for side in [true, false] {
        let sel = |x: &(usize, &Compared)| fit[x.0] == side;
        println!("== fit {side}");
        show(
            "time all",
            cmp.iter().enumerate().filter(sel).filter_map(|(_, c)| c.time_error()).collect(),
        );
        show(
            "mem all",
            cmp.iter().enumerate().filter(sel).filter_map(|(_, c)| c.memory_error()).collect(),
        );
        let nosweep = |c: &Compared| !c.row.source.contains("Aleph");
        show(
            "time without sweep",
            cmp.iter()
                .enumerate()
                .filter(sel)
                .filter(|(_, c)| nosweep(c))
                .filter_map(|(_, c)| c.time_error())
                .collect(),
        );
    }
    let mut srcs: Vec<String> = rows.iter().map(|r| r.sheet.clone()).collect();
    srcs.sort();
    srcs.dedup();
    for s in &srcs {
        let of: Vec<(usize, &Compared)> =
            cmp.iter().enumerate().filter(|(_, c)| &c.row.sheet == s).collect();
        for k in [false] {
            show(
                &format!("T {s}"),
                of.iter().filter(|x| fit[x.0] == k).filter_map(|(_, c)| c.time_error()).collect(),
            );
            show(
                &format!("   M {s}"),
                of.iter().filter(|x| fit[x.0] == k).filter_map(|(_, c)| c.memory_error()).collect(),
            );
        }
        let o: Vec<bool> = of.iter().filter_map(|(_, c)| c.fits_rightly()).collect();
        if o.len() > 10 {
            println!(
                "   oom {} {:.3}",
                o.len(),
                o.iter().filter(|x| **x).count() as f64 / o.len() as f64
            );
        }
    }
    let s = summarize(
        &cmp.iter().filter(|c| c.row.source.contains("Aleph")).cloned().collect::<Vec<_>>(),
    );
    println!("sweep: oom {:?} bal {:?}", s.oom_accuracy, s.oom_balanced_accuracy);
    for g in &s.spearman_by_group {
        println!("sp {:?}", g);
    }
    for g in &s.best_layout_regret_by_group {
        println!("regret {:?}", g);
    }
    if let Some(pat) = args.get(2) {
        for (i, c) in cmp.iter().enumerate().filter(|(_, c)| c.row.row_id.contains(pat.as_str())) {
            match &c.estimate {
                Ok(e) => {
                    let t = &e.time;
                    let r = c.row.run.as_ref().unwrap();
                    let l = &r.layout;
                    println!(
                        "{} {} tp{} pp{} v{} dp{} b{} m{} | t {:.2} pub {:.2} {:+.1}% | F{:.2} B{:.2} R{:.2} T{:.2} C{:.2} msg{:.2} bub{:.2} dat{:.2} opt{:.2} str{:.2} | mem {:.1} st{:.1} act{:.1} ws{:.1} buf{:.1} (s{}) pub {:?} {:+.1}% {:?}",
                        if fit[i] { "*" } else { " " },
                        c.row.row_id,
                        l.degrees.tp,
                        l.degrees.pp,
                        l.virtual_stages,
                        l.degrees.dp,
                        l.micro_batch,
                        l.micro_batches(),
                        t.step,
                        c.row.time_s.unwrap_or(0.),
                        100. * c.time_error().unwrap_or(0.),
                        t.forward,
                        t.backward,
                        t.recompute,
                        t.tensor,
                        t.context,
                        t.messages,
                        t.bubble,
                        t.data,
                        t.optimizer,
                        t.straggling,
                        e.memory.total() / 1e9,
                        e.memory.states() / 1e9,
                        e.memory.activations / 1e9,
                        e.memory.working_set / 1e9,
                        e.memory.buffers / 1e9,
                        e.stage,
                        c.row.memory.map(|m| m.0 / 1e9),
                        100. * c.memory_error().unwrap_or(0.),
                        c.row.outcome
                    );
                }
                Err(w) => println!("- {} {}", c.row.row_id, w),
            }
        }
    }
}
