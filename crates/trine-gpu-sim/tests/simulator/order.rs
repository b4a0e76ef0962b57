//! Streams: what an event orders is ordered, and what none does is found, whatever the order of a seed.

use crate::gpu::{Gpu, one};

const SEEDS: u64 = 12;

/// Two streams: the first fills a buffer, the second uses it. Returns the values and the reports.
fn across(seed: u64, has_event: bool) -> (Vec<f32>, Vec<String>) {
    let gpu = Gpu::new(seed);
    let (first, second) = (gpu.stream(), gpu.stream());
    let (x, y) = (gpu.buffer(&[1.0; 64], first), gpu.buffer(&[3.0; 64], second));
    gpu.sync(first).unwrap();
    gpu.sync(second).unwrap();
    gpu.upload(x, &[2.0; 64], first);
    if has_event {
        gpu.wait(second, gpu.record(first));
    }
    gpu.axpy(y, x, 1.0, 64, second);
    let out = gpu.download(y, 64, second);
    gpu.sync(second).unwrap();
    gpu.sync(first).unwrap();
    (gpu.read(out, 1), gpu.sim.reports())
}

#[test]
fn a_missing_event_is_found_with_every_seed_and_is_wrong_with_some() {
    let mut wrong = 0;
    for seed in 0..SEEDS {
        assert_eq!(across(seed, true), (vec![5.0], Vec::new()), "seed {seed}");
        let (values, reports) = across(seed, false);
        wrong += u32::from(values != [5.0]);
        assert_eq!(reports.len(), 1, "{reports:#?}");
        let found =
            ["`axpy` (stream 1) reads bytes", "it is written by `copy to device` (stream 0)"];
        let after = ["`copy to device` (stream 0) writes bytes", "it is read by `axpy` (stream 1)"];
        let is = |parts: [&str; 2]| parts.iter().all(|part| reports[0].contains(part));
        assert!(is(found) || is(after), "{reports:?}");
    }
    assert!((1..SEEDS as u32).contains(&wrong), "{wrong} of {SEEDS} seeds are wrong");
}

/// The second stream waits for an event that was recorded before the copy.
#[test]
fn an_event_that_was_recorded_too_early_orders_nothing() {
    let gpu = Gpu::new(2);
    let (first, second) = (gpu.stream(), gpu.stream());
    let x = gpu.buffer(&[1.0; 8], first);
    let early = gpu.record(first);
    gpu.upload(x, &[2.0; 8], first);
    gpu.wait(second, early);
    let _ = gpu.download(x, 8, second);
    gpu.sync(first).unwrap();
    gpu.sync(second).unwrap();
    one(&gpu.sim.reports(), &["(32 bytes)", "and no event orders the two"]);
}

/// A chain of events over three streams orders the first and the last; the host's waits do so too.
#[test]
fn order_goes_through_streams_and_through_the_host() {
    for seed in 0..SEEDS {
        let gpu = Gpu::new(seed);
        let streams = [gpu.stream(), gpu.stream(), gpu.stream()];
        let x = gpu.buffer(&[1.0; 8], streams[0]);
        gpu.wait(streams[1], gpu.record(streams[0]));
        gpu.wait(streams[2], gpu.record(streams[1]));
        gpu.upload(x, &[4.0; 8], streams[2]);
        gpu.sync(streams[2]).unwrap();
        let out = gpu.download(x, 8, streams[0]);
        gpu.sync(streams[0]).unwrap();
        assert_eq!((gpu.read(out, 1), gpu.sim.reports()), (vec![4.0], Vec::new()), "seed {seed}");
    }
}

/// Many readers on many streams: a write must come after each.
#[test]
fn a_write_is_held_against_all_readers() {
    for waits in 0..3 {
        let gpu = Gpu::new(5);
        let streams = [gpu.stream(), gpu.stream(), gpu.stream(), gpu.stream()];
        let x = gpu.buffer(&[1.0; 8], streams[0]);
        gpu.sync(streams[0]).unwrap();
        for reader in &streams[1..] {
            let _ = gpu.download(x, 8, *reader);
        }
        for reader in &streams[1..=waits] {
            gpu.wait(streams[0], gpu.record(*reader));
        }
        gpu.upload(x, &[2.0; 8], streams[0]);
        for stream in streams {
            gpu.sync(stream).unwrap();
        }
        let reports = gpu.sim.reports();
        assert!(!reports.is_empty(), "{waits} of 3 readers are waited for");
        for report in reports {
            let late = (waits + 1..4).any(|stream| report.contains(&format!("(stream {stream})")));
            assert!(late && report.contains("copy to host"), "{report}");
        }
    }
}

#[test]
fn nothing_runs_before_the_host_waits_and_then_no_more_than_it_must() {
    let gpu = Gpu::new(1);
    let stream = gpu.stream();
    let x = gpu.buffer(&[7.0; 4], stream);
    let out = gpu.download(x, 4, stream);
    assert_eq!(gpu.read(out, 4), [-1.0; 4]);
    assert_eq!(gpu.sim.counters().host_waits, 0);
    gpu.sync(stream).unwrap();
    assert_eq!(gpu.read(out, 4), [7.0; 4]);
    let counters = gpu.sim.counters();
    assert_eq!((counters.host_waits, counters.copies, counters.launches), (1, 2, 0));
}
