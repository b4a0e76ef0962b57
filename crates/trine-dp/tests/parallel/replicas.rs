//! Replicas that differ are found and named.

use crate::support::{
    Case, Divided, EMBEDDING, HEAD, Rank, degrees, model, model_with_shared_heads, run, try_run,
};
use trine_buffer::DType;
use trine_dp::{DpError, check_replicas};
use trine_mesh::Degrees;
use trine_nn::{Numerics, ParamStore, initial_weights};
use trine_spec::ModelSpec;

fn case(model: ModelSpec, degrees: Degrees) -> Case {
    Case { model, degrees, divided: Divided::All, numerics: Numerics::Fast, batch: 4, frozen: &[] }
}

fn weights(rank: &Rank) -> ParamStore {
    let mut params = ParamStore::zeros(rank.layout.clone(), DType::Bf16);
    for bucket in 0..rank.layout.buckets.len() {
        let master = initial_weights(&rank.layout, bucket, 3, DType::F32).unwrap();
        params.load(bucket, master.slice(), &rank.ops).unwrap();
    }
    params
}

fn check(rank: &Rank, params: &ParamStore) -> Result<(), DpError> {
    check_replicas(params, &rank.groups, rank.tied.as_ref())
}

#[test]
fn equal_replicas_pass() {
    let mut ranks = 0;
    for layout in [(1, 1, 1), (4, 1, 1), (2, 2, 2), (1, 1, 4), (2, 1, 4)] {
        for model in [model(), model_with_shared_heads()] {
            let case = case(model, degrees(layout.0, layout.1, layout.2));
            ranks += run(&case, |rank| check(&rank, &weights(&rank)).unwrap()).len();
        }
    }
    assert_eq!(ranks, 2 * (1 + 4 + 8 + 4 + 8));
}

/// One bit of one weight of one rank.
fn flip(params: &mut ParamStore, parameter: &str) {
    let layout = params.layout().clone();
    let param = &layout.params[layout.find(parameter).unwrap()];
    let at = param.span().end - 1;
    let values = params.bucket_mut(param.bucket).unwrap().typed_mut::<half::bf16>().unwrap();
    values[at] = half::bf16::from_bits(values[at].to_bits() ^ 1);
}

#[test]
fn one_bit_on_one_rank_is_found_with_its_parameter_bucket_and_ranks() {
    // (model, layout, parameter, culprit, group, ranks that agree)
    let cases = [
        (model(), (4, 1, 1), "block.1.mlp.up.weight", 2, "dp[0,1,2,3]", "ranks 0, 1, 3 hold"),
        (model(), (1, 1, 4), "block.0.norm2.bias", 3, "tp[0,1,2,3]", "ranks 0, 1, 2 hold"),
        // Key heads shared by ranks 2 and 3; 0 and 1 hold another one.
        (
            model_with_shared_heads(),
            (1, 1, 4),
            "block.1.attention.k.weight",
            3,
            "tp[0,1,2,3]",
            "rank 2 holds",
        ),
        (model(), (1, 2, 1), EMBEDDING, 0, "tied[0,1]", "rank 0 holds"),
    ];
    for (model, layout, parameter, culprit, group, agree) in &cases {
        let case = case(model.clone(), degrees(layout.0, layout.1, layout.2));
        let texts = run(&case, |rank| {
            let mut params = weights(&rank);
            if rank.world.rank() == *culprit {
                flip(&mut params, parameter);
            }
            check(&rank, &params).unwrap_err().to_string()
        });
        // Both sides of a tie call it by their own name.
        let named = texts.iter().filter(|text| text.contains(parameter)).count();
        let all = if *parameter == EMBEDDING { 1 } else { texts.len() };
        assert_eq!(named, all, "{texts:?}");
        for text in texts {
            assert!(text.contains(group) && text.contains("bucket"), "{text}");
            assert!(
                text.contains(agree) && text.contains(&format!("rank {culprit} holds")),
                "{text}"
            );
        }
    }
    assert_eq!(cases.len(), 4);
}

/// Copies on two stages that are never updated and never summed are compared all the same, and so are other frozen
/// parameters.
#[test]
fn one_bit_of_what_is_frozen_is_found() {
    let cases = [
        ((1, 2, 1), EMBEDDING, 0, "tied[0,1]", "rank 1 holds"),
        ((1, 2, 2), HEAD, 3, "tied[1,3]", "rank 1 holds"),
        ((3, 1, 1), "block.0.mlp.up.weight", 1, "dp[0,1,2]", "ranks 0, 2 hold"),
        ((1, 1, 2), "block.0.norm1.weight", 1, "tp[0,1]", "rank 0 holds"),
    ];
    for (layout, parameter, culprit, group, agree) in cases {
        let frozen = &["embedding.*", "block.0.*"];
        let case = Case { frozen, ..case(model(), degrees(layout.0, layout.1, layout.2)) };
        run(&case, |rank| {
            let param = rank.layout.find("block.1.mlp.up.weight").map(|at| &rank.layout.params[at]);
            assert!(param.is_none_or(|param| rank.layout.buckets[param.bucket].trainable));
            check(&rank, &weights(&rank)).unwrap();
        });
        let error = try_run(&case, |rank| {
            let mut params = weights(&rank);
            if rank.world.rank() == culprit {
                let layout = params.layout();
                let held = &layout.params[layout.find(parameter).unwrap()];
                assert!(!layout.buckets[held.bucket].trainable, "{parameter}");
                flip(&mut params, parameter);
            }
            check(&rank, &params)
        });
        let text = error.unwrap_err();
        let names = [EMBEDDING, HEAD].contains(&parameter) || text.contains(parameter);
        assert!(names && text.contains(group), "{parameter}: {text}");
        assert!(text.contains(agree) && text.contains(&format!("rank {culprit} holds")), "{text}");
    }
}

#[test]
fn a_split_parameter_may_differ_over_tensor_parallelism_and_errors_stop_the_run() {
    let case = case(model(), degrees(1, 1, 2));
    run(&case, |rank| {
        let mut params = weights(&rank);
        if rank.at.tp == 1 {
            flip(&mut params, "block.0.mlp.up.weight");
        }
        check(&rank, &params).unwrap();
    });
    let error = try_run(&case, |rank| {
        let mut params = weights(&rank);
        if rank.at.tp == 1 {
            flip(&mut params, "head.norm.weight");
        }
        check(&rank, &params)
    });
    let text = error.unwrap_err();
    assert!(text.contains("head.norm.weight") && text.contains("rank 1 holds"), "{text}");
}
