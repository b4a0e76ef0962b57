//! The global norm in every layout against the exact one.

use crate::support::{Case, Divided, Rank, degrees, exact, model, model_with_shared_heads, run};
use trine_buffer::{Buf, DType};
use trine_comm::ReduceOp;
use trine_dp::GlobalNorm;
use trine_nn::Numerics;
use trine_spec::ModelSpec;

fn measure(rank: &Rank) -> GlobalNorm {
    let (mut grads, mut sync) = (rank.grads(), rank.sync());
    rank.reduce(&mut sync, &mut grads);
    rank.poison_stale(&mut grads);
    let norm = rank.norm();
    let at_once = norm.measure(&grads, &rank.ops).unwrap();
    // Bucket by bucket as they become ready, some of them twice, the rest at the end.
    let (mut counted, mut cells) = (norm.uncounted(), Buf::zeros(DType::F64, norm.cells()));
    for bucket in (0..rank.layout.buckets.len()).rev().step_by(2).chain(0..2) {
        norm.count(&mut counted, cells.slice_mut(), bucket, &grads, &rank.ops).unwrap();
    }
    norm.count_rest(&mut counted, cells.slice_mut(), &grads, &rank.ops).unwrap();
    let cells = rank.world.all_reduce(cells, ReduceOp::Sum, "gradient norm").unwrap();
    let total = norm.total(cells.typed().unwrap(), &grads, &rank.ops).unwrap();
    assert_eq!(total.squared().to_bits(), at_once.squared().to_bits());
    total
}

/// Norms by parameter in f64, each unique element once.
fn exact_norms(model: &ModelSpec, batch: usize) -> Vec<(String, f64)> {
    let params = model.pieces().flat_map(|piece| model.params(piece, 1));
    params
        .filter(|spec| spec.tied_to.is_none())
        .map(|spec| {
            let elements = 0..spec.unpadded_len();
            let squares = elements.map(|at| exact(model, &spec.name, at, batch).0.powi(2));
            let norm = squares.sum::<f64>().sqrt();
            (spec.name, norm)
        })
        .collect()
}

const LAYOUTS: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (2, 1, 1),
    (3, 1, 1),
    (4, 1, 1),
    (1, 1, 2),
    (1, 1, 4),
    (1, 2, 1),
    (2, 2, 2),
    (2, 1, 4),
];

#[test]
fn every_layout_counts_each_element_once() {
    let mut cases = 0;
    for model in [model(), model_with_shared_heads()] {
        let exact = exact_norms(&model, 12);
        let total = exact.iter().map(|(_, norm)| norm * norm).sum::<f64>().sqrt();
        for numerics in [Numerics::Fast, Numerics::Reference] {
            let mut serial = None;
            for layout in LAYOUTS {
                for divided in [Divided::None, Divided::All, Divided::Mixed] {
                    let degrees = degrees(layout.0, layout.1, layout.2);
                    let case = Case {
                        model: model.clone(),
                        degrees,
                        divided,
                        numerics,
                        batch: 12,
                        frozen: &[],
                    };
                    let norms = run(&case, |rank| measure(&rank));
                    for norm in &norms {
                        assert!((norm.norm() / total - 1.0).abs() < 1e-6, "{case:?}");
                        let named = norm.by_parameter().zip(&exact);
                        let close = named.filter(|((name, norm), (expected, exact))| {
                            name == expected && (norm / exact - 1.0).abs() < 1e-6
                        });
                        assert_eq!(close.count(), exact.len(), "{case:?}");
                        assert_eq!(norm.squared().to_bits(), norms[0].squared().to_bits());
                    }
                    // In reference numerics every layout has the serial bits.
                    let bits = norms[0].squared().to_bits();
                    let serial = *serial.get_or_insert(bits);
                    assert!(numerics == Numerics::Fast || serial == bits, "{case:?}");
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 108);
}

#[test]
fn both_zero_stages_and_a_mixture_have_the_same_bits_in_fast_numerics() {
    let mut cases = 0;
    for layout in LAYOUTS {
        let [whole, parts, mixed] = [Divided::None, Divided::All, Divided::Mixed].map(|divided| {
            let degrees = degrees(layout.0, layout.1, layout.2);
            let case = Case {
                model: model(),
                degrees,
                divided,
                numerics: Numerics::Fast,
                batch: 12,
                frozen: &[],
            };
            run(&case, |rank| measure(&rank).squared().to_bits())
        });
        assert_eq!((&whole, &whole), (&parts, &mixed), "{layout:?}");
        cases += 1;
    }
    assert_eq!(cases, 9);
}
