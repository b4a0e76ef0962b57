//! Weights or moments that are not finite never become a checkpoint.

use crate::world::{MOMENTS, Options, World, bucket, run_state, save_step, tiny_gpt};
use std::fs;
use trine_buffer::{Buf, DType};
use trine_checkpoint::{
    Check, CheckpointError, Disk, Keep, SaveRequest, WEIGHTS, latest, prune, save,
};
use trine_comm::threads;
use trine_spec::Bucket;

/// Saves with `value` in the last parameter that the last pipeline stage owns, of the quantity `ruined`.
fn save_ruined(
    world: &World,
    dir: &std::path::Path,
    ruined: &str,
    value: f32,
) -> Vec<Result<(), CheckpointError>> {
    let run = run_state(2);
    threads::run(world.mesh.world(), &Default::default(), |comm| {
        let request = SaveRequest {
            dir,
            model: &world.model.parts(1).unwrap(),
            mesh: &world.mesh,
            ranks: &world.ranks,
            dtype: DType::F32,
            moments: MOMENTS,
            run: &run,
            tokenizer: None,
            storage: &Disk,
        };
        let layout = world.layout(comm.rank());
        let is_last = world.mesh.coordinate(comm.rank()).pp + 1 == world.ranks.len();
        // The bucket of a tied copy has none of its own, and is not saved.
        let owns = |bucket: &Bucket| bucket.params.iter().any(|param| layout.params[*param].owner);
        let spoiled = layout.buckets.iter().rposition(owns);
        let mut source = |quantity: &str, index| {
            let mut values = bucket::<f32>(layout, quantity, index, 0.0);
            if is_last && quantity == ruined && Some(index) == spoiled {
                let params = &layout.buckets[index].params;
                let mut owned = params.iter().map(|param| &layout.params[*param]);
                let owned = owned.rfind(|param| param.owner).unwrap();
                values[owned.span().start] = value;
            }
            Ok(Buf::from_vec(values))
        };
        let saved = save(&request, &*comm, &mut source).map(drop);
        comm.barrier("after the save")?;
        Ok::<_, CheckpointError>(saved)
    })
    .unwrap()
}

#[test]
fn values_that_are_not_finite_are_not_published_in_any_layout() {
    let mut cases = 0;
    for (dp, pp, tp) in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)] {
        let world = World::new(&tiny_gpt(), dp, pp, tp);
        for (quantity, value) in
            [(WEIGHTS, f32::NAN), (WEIGHTS, f32::INFINITY), ("exp_avg_sq", f32::NEG_INFINITY)]
        {
            let dir = tempfile::tempdir().unwrap();
            save_step(&world, dir.path(), &Options::step(1));
            let mut outcomes = save_ruined(&world, dir.path(), quantity, value);
            let case = format!("dp {dp}, pp {pp}, tp {tp}: {value} in {quantity}");
            let text = outcomes.remove(0).expect_err(&case).to_string();
            let expected = format!("{quantity} of \"transformer.");
            assert!(text.starts_with(&expected) && text.contains("not finite"), "{text}");
            for other in outcomes {
                let other = other.unwrap_err().to_string();
                assert_eq!(other, format!("rank 0 could not save the checkpoint: {text}"));
            }
            let found = latest(dir.path(), Check::Checksums).unwrap();
            assert!(found.damaged.is_empty(), "{:?}", found.damaged);
            assert_eq!(found.checkpoint.unwrap().manifest().run.step, 1);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left of it");
            prune(&Disk, dir.path(), Keep { last: 1, step: 1, best: None }).unwrap();
            cases += 1;
        }
    }
    assert_eq!(cases, 15);
}
