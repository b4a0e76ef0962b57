//! Heads and features that ranks share unevenly, against the serial run.

use trine_buffer::DType;
use trine_mesh::Degrees;
use trine_schedule::ScheduleKind;
use trine_spec::{ModelSpec, QkNorm};
use trine_testkit::toy;
use trine_tests::compare::{beside, findings};
use trine_tests::layouts::Layout;
use trine_tests::{Mutation, serial, step};
use trine_trainer::engine::{EngineConfig, ZeroStage};

/// Five heads; six query heads of three KV heads; five of one; and 65 features of the MLP in all of them. Two with
/// norms of queries and keys, of each head and over all heads.
fn models() -> [ModelSpec; 5] {
    let normed = |model, norm: QkNorm| ModelSpec { qk_norm: norm.into(), ..model };
    [
        toy::uneven(5, 5),
        toy::uneven(6, 3),
        toy::uneven(5, 1),
        normed(toy::uneven(6, 3), QkNorm::Head),
        normed(toy::uneven(5, 5), QkNorm::All),
    ]
}

/// Sequences of twelve tokens, which two, three and four ranks split evenly.
fn base(model: ModelSpec, compute: DType) -> EngineConfig {
    EngineConfig { compute, seq: 12, ..serial(model) }
}

fn layout(tp: usize, pp: usize, dp: usize, sequence_parallel: bool) -> Layout {
    Layout {
        degrees: Degrees { tp, pp, dp, ..Degrees::SERIAL },
        schedule: ScheduleKind::OneFOneB,
        virtual_stages: 1,
        zero: if dp > 1 { ZeroStage::Zero1 } else { ZeroStage::Zero0 },
        recompute: pp > 1,
        sequence_parallel,
    }
}

fn layouts(model: &ModelSpec) -> Vec<Layout> {
    let all = [
        layout(2, 1, 1, false),
        layout(2, 1, 1, true),
        layout(3, 1, 1, false),
        layout(3, 1, 1, true),
        layout(4, 1, 1, true),
        layout(2, 1, 2, true),
        layout(3, 2, 1, false),
        layout(2, 2, 2, false),
    ];
    // Three KV heads are shared by three ranks or by multiples of three.
    all.into_iter().filter(|layout| model.check_layout(layout.degrees.tp, 1).is_ok()).collect()
}

#[test]
fn uneven_heads_and_features_have_the_serial_gradients() {
    let mut compared = 0;
    for model in models() {
        let serial = |compute| step(&base(model.clone(), compute), &Mutation::NONE).unwrap();
        let (exact, in_bf16) = (serial(DType::F64), serial(DType::Bf16));
        for compute in [DType::F64, DType::F32, DType::Bf16] {
            let base = base(model.clone(), compute);
            for layout in layouts(&model) {
                let got = step(&layout.apply(&base), &Mutation::NONE);
                let (beside, bound) = beside(compute, &model, layout.degrees.tp);
                let serial = if beside == DType::Bf16 { &in_bf16 } else { &exact };
                let found = findings(&got, serial, bound);
                assert!(found.is_empty(), "{compute} {layout:?}: {found:?}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * (8 + 7 + 8 + 7 + 8));
}
