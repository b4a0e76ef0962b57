//! Whatever happens while a checkpoint is saved, there is one to go on from.

use crate::world::{MOMENTS, Options, World, run_state, save_each, save_step, tiny_gpt};
use std::fs;
use std::io;
use std::path::Path;
use trine_buffer::{Buf, DType};
use trine_checkpoint::{
    BoxError, Check, CheckpointError, Disk, FailingDisk, Keep, SaveRequest, Storage, StorageFile,
    estimate_bytes, latest, prune, save,
};
use trine_comm::threads;

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort_unstable();
    names
}

/// Fails the save of `step` after every possible number of operations, with step 1 saved before.
fn fail_everywhere(step: u64) -> usize {
    let world = World::new(&tiny_gpt(), 1, 2, 1);
    for operations in 0..1000 {
        let dir = tempfile::tempdir().unwrap();
        save_step(&world, dir.path(), &Options::step(1));
        let storage = FailingDisk::after(operations);
        let options = Options { storage: &storage, ..Options::step(step) };
        let mut outcomes = save_each::<f32>(&world, dir.path(), &options);
        let found = latest(dir.path(), Check::Checksums).unwrap();
        let checkpoint = found.checkpoint.expect("there is always a whole one");
        assert!(found.damaged.is_empty(), "{operations}: {:?}", found.damaged);
        let done = outcomes.iter().all(Result::is_ok);
        let reached = checkpoint.manifest().run.step;
        assert!(reached == step || (reached == 1 && !done), "{operations}: step {reached}");
        // The next save works, and clears up.
        let options = Options { keep_last: 1, ..Options::step(3) };
        save_step(&world, dir.path(), &options);
        assert_eq!(names(dir.path()), ["step-3"], "{operations}");
        if done {
            return operations;
        }
        // Every rank knows, and why.
        let others = outcomes.remove(1).unwrap_err().to_string();
        let first = outcomes.remove(0).unwrap_err().to_string();
        assert!(first.contains("injected"), "{first}");
        assert_eq!(others, format!("rank 0 could not save the checkpoint: {first}"));
    }
    panic!("a save ends");
}

#[test]
fn a_save_that_fails_anywhere_leaves_a_whole_checkpoint() {
    let crashes = fail_everywhere(2);
    assert!(crashes > 20, "{crashes}");
}

#[test]
fn a_save_over_the_same_step_that_fails_anywhere_leaves_a_whole_checkpoint() {
    let crashes = fail_everywhere(1);
    assert!(crashes > 20, "{crashes}");
}

#[test]
fn the_last_ones_are_kept_and_foreign_entries_too() {
    let world = World::new(&tiny_gpt(), 1, 1, 1);
    let dir = tempfile::tempdir().unwrap();
    for name in ["notes", "step-x", ".tmp-mine"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    for step in [5, 10, 15, 20] {
        save_step(&world, dir.path(), &Options { keep_last: 2, ..Options::step(step) });
    }
    assert_eq!(names(dir.path()), [".tmp-mine", "notes", "step-15", "step-20", "step-x"]);
    // The new one stays even where it is not the newest: a run that went back to an earlier step.
    save_step(&world, dir.path(), &Options { keep_last: 1, ..Options::step(7) });
    assert_eq!(names(dir.path()), [".tmp-mine", "notes", "step-7", "step-x"]);
}

#[test]
fn the_best_one_stays_beside_the_last_ones() {
    let world = World::new(&tiny_gpt(), 1, 1, 1);
    let dir = tempfile::tempdir().unwrap();
    for step in [5, 10, 15, 20] {
        save_step(&world, dir.path(), &Options::step(step));
    }
    prune(&Disk, dir.path(), Keep { last: 2, step: 20, best: Some(5) }).unwrap();
    assert_eq!(names(dir.path()), ["step-15", "step-20", "step-5"]);
    // One of the last ones is the best: it is not counted twice.
    prune(&Disk, dir.path(), Keep { last: 1, step: 20, best: Some(20) }).unwrap();
    assert_eq!(names(dir.path()), ["step-20"]);
}

#[test]
fn a_prune_that_fails_anywhere_leaves_whole_checkpoints_only() {
    let world = World::new(&tiny_gpt(), 1, 1, 1);
    let mut failures = 0;
    for operations in 0..100 {
        let dir = tempfile::tempdir().unwrap();
        for step in [1, 2, 3] {
            save_step(&world, dir.path(), &Options::step(step));
        }
        let storage = FailingDisk::after(operations);
        let pruned = prune(&storage, dir.path(), Keep { last: 1, step: 3, best: None });
        let found = latest(dir.path(), Check::Checksums).unwrap();
        assert!(found.damaged.is_empty(), "{operations}: {:?}", found.damaged);
        assert_eq!(found.checkpoint.unwrap().manifest().run.step, 3, "{operations}");
        if pruned.is_ok() {
            assert_eq!(names(dir.path()), ["step-3"]);
            break;
        }
        failures += 1;
        save_step(&world, dir.path(), &Options { keep_last: 1, ..Options::step(4) });
        assert_eq!(names(dir.path()), ["step-4"], "{operations}: what was left is cleared up");
    }
    assert_eq!(failures, 4, "two checkpoints, each renamed and removed");
}

/// A disk with this much space.
#[derive(Debug)]
struct Small(u64);

impl Storage for Small {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir(path)
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.0)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        Disk.create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Disk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir(path)
    }
}

#[test]
fn a_full_disk_is_noticed_before_anything_is_written() {
    let world = World::new(&tiny_gpt(), 1, 1, 2);
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("checkpoints");
    let needed = estimate_bytes(&world.model.parts(1).unwrap(), DType::F32, MOMENTS).unwrap();
    let mut outcomes = save_each::<f32>(
        &world,
        &home,
        &Options { storage: &Small(needed - 1), ..Options::step(1) },
    );
    assert!(matches!(outcomes.remove(1), Err(CheckpointError::Writer(_))));
    let text = outcomes.remove(0).unwrap_err().to_string();
    assert!(text.contains(&format!("needs {needed} bytes, {} are free in", needed - 1)), "{text}");
    assert!(text.contains("checkpoints; free at least 1 more"), "{text}");
    assert_eq!(names(&home).len(), 0);

    save_step(&world, &home, &Options { storage: &Small(needed), ..Options::step(1) });
    let size = |name: String| fs::metadata(home.join("step-1").join(name)).unwrap().len();
    let total: u64 = names(&home.join("step-1")).into_iter().map(size).sum();
    assert!(total <= needed && total + (256 << 10) >= needed, "{total} of {needed}");
}

#[test]
fn a_rank_that_cannot_hand_out_its_bucket_stops_the_world() {
    let world = World::new(&tiny_gpt(), 2, 2, 2);
    let dir = tempfile::tempdir().unwrap();
    let error = threads::run(8, &Default::default(), |comm| {
        let run = run_state(1);
        let request = SaveRequest {
            dir: dir.path(),
            model: &world.model.parts(1).unwrap(),
            mesh: &world.mesh,
            ranks: &world.ranks,
            dtype: DType::F32,
            moments: &[],
            run: &run,
            tokenizer: None,
            storage: &Disk,
        };
        let layout = world.layout(comm.rank());
        save(&request, &*comm, &mut |_, bucket| match comm.rank() {
            5 => Err(BoxError::from("out of memory")),
            _ => Ok(Buf::zeros(DType::F32, layout.buckets[bucket].len)),
        })
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("rank 5 failed: weights of bucket 0: out of memory"), "{text}");
    assert_eq!(names(dir.path()).len(), 0);
}

#[test]
fn a_folder_that_goes_away_is_an_error_of_all_ranks() {
    let world = World::new(&tiny_gpt(), 1, 1, 2);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for outcome in save_each::<f32>(&world, &dir.path().join("file"), &Options::step(1)) {
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("creating") && text.contains("file"), "{text}");
    }
}
