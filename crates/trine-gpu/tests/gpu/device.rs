//! Devices: which there are, and what happens to work on one that is lost.

use crate::machine::{Machine, downloaded, uploaded};
use trine_gpu::{Checks, GpuError, Pool, Priority};
use trine_gpu_sim::Settings;

#[test]
fn devices_are_counted_from_nought() {
    let machine = Machine::with(&Settings { devices: 3, ..Settings::default() }, Checks::On);
    assert_eq!((machine.gpus.list().len(), machine.gpus.driver().1.major), (3, 12));
    assert_eq!(machine.gpus.device(2).unwrap().index(), 2);
    let error = machine.gpus.device(3).unwrap_err();
    assert_eq!(error.to_string(), "there is no GPU 3: this machine has GPUs 0 to 2");
}

#[test]
fn peers_are_reached_once_asked_for() {
    let machine = Machine::new(1);
    let peer = machine.gpus.device(1).unwrap();
    machine.device.reach(&peer).unwrap();
    let error = machine.device.reach(&peer).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot reach GPU 1 from GPU 0: cuCtxEnablePeerAccess failed"),
        "{error}"
    );
}

/// Ranks that are threads: two on each device, each with a stream and a pool of its own.
#[test]
fn threads_work_side_by_side() {
    for seed in 0..4 {
        let machine = Machine::new(seed);
        let work = |rank: usize| {
            let device = machine.gpus.device(rank % 2).unwrap();
            let stream = device.stream(&format!("rank {rank}"), Priority::Normal).unwrap();
            let pool = Pool::new(&stream);
            let x = uploaded(&stream, "x", &[rank as f32; 16]);
            let mut sum = Vec::new();
            for _ in 0..8 {
                let mut y = pool.alloc("y", 64).unwrap();
                stream.copy(y.span_mut(), x.span()).unwrap();
                sum.extend(downloaded::<f32>(&stream, &y));
            }
            (sum, pool.stats().allocations)
        };
        let work = &work;
        let found: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..4).map(|rank| scope.spawn(move || work(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for (rank, (values, allocations)) in found.into_iter().enumerate() {
            assert_eq!((values, allocations), (vec![rank as f32; 128], 1));
        }
        machine.is_clean();
    }
}

/// Time passes on a stream while it works, and is told without a wait where the work is done.
#[test]
fn a_stream_tells_the_time_between_two_points() {
    let machine = Machine::new(5);
    let stream = machine.stream("compute");
    let mut x = stream.alloc("x", 64).unwrap();
    let first = stream.timestamp().unwrap();
    let same = stream.timestamp().unwrap();
    for _ in 0..4 {
        stream.fill(x.span_mut(), 0).unwrap();
    }
    let last = stream.timestamp().unwrap();
    // Both are still to come: the stream is waited for.
    let seconds = last.seconds_since(&first).unwrap();
    let waits = machine.sim.counters().host_waits;
    assert!(waits > 0 && seconds > 0.0, "{seconds}");
    let nothing = same.seconds_since(&first).unwrap();
    assert!((0.0..seconds).contains(&nothing), "{nothing} {seconds}");
    assert_eq!(last.seconds_since(&same).unwrap() + nothing, seconds);
    assert_eq!(machine.sim.counters().host_waits, waits);
    // Points that orders work only are never taken for these.
    drop((first, same));
    stream.record().unwrap().synchronize().unwrap();
    assert!(stream.timestamp().unwrap().seconds_since(&last).unwrap() >= 0.0);
    drop(x);
    machine.is_clean();
}

/// Work of a lost device fails by name, and dropping what is on it does not.
#[test]
fn a_lost_device_fails_by_name() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let mut x = uploaded(&stream, "x", &[1.0f32; 8]);
    machine.sim.lose_device(0);
    let error = stream.synchronize().unwrap_err();
    let text = "cannot record an event on the stream `compute`: cuEventRecord failed with \
                CUDA_ERROR_DEVICE_UNAVAILABLE (46): the device is lost";
    assert_eq!(error.to_string(), text);
    let error = stream.fill(x.span_mut(), 0).unwrap_err();
    assert!(matches!(error, GpuError::Call { source, .. } if source.code == 46));
    drop((x, stream));
}
