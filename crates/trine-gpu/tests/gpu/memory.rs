//! Memory: pools, pinned memory, copies, and what is refused.

use crate::machine::{Machine, downloaded, uploaded};
use trine_buffer::PoolStats;
use trine_gpu::{Checks, GpuError, Pool, Priority};
use trine_gpu_sim::Settings;

#[test]
fn a_step_allocates_nothing_after_its_first_run() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let pool = Pool::new(&stream);
    let step = || {
        let mut first = pool.alloc("first", 64).unwrap();
        let mut second = pool.alloc("second", 64).unwrap();
        stream.fill(first.span_mut(), 1).unwrap();
        stream.copy(second.span_mut(), first.span()).unwrap();
        drop(first);
        let mut third = pool.alloc("third", 64).unwrap();
        stream.fill(third.span_mut(), 2).unwrap();
        stream.synchronize().unwrap();
    };
    step();
    let after_one = machine.sim.counters();
    for _ in 0..5 {
        step();
    }
    let counters = machine.sim.counters();
    assert_eq!((after_one.allocations, counters.allocations), (2, 2));
    assert_eq!(counters.host_waits, 6, "a step has one wait of the host");
    let expected =
        PoolStats { bytes_in_use: 0, bytes_in_use_max: 128, bytes_idle: 128, allocations: 2 };
    assert_eq!(pool.stats(), expected);
    pool.trim();
    stream.synchronize().unwrap();
    assert_eq!(machine.device.memory_bytes().unwrap(), (1 << 30, 1 << 30));
    machine.is_clean();
}

#[test]
fn memory_from_a_pool_is_used_again_only_after_its_last_use() {
    let machine = Machine::new(1);
    let (stream, other) = (machine.stream("compute"), machine.stream("copies"));
    let pool = Pool::new(&stream);
    let mut x = pool.alloc("activation", 64).unwrap();
    stream.fill(x.span_mut(), 1).unwrap();
    other.wait(&stream.record().unwrap()).unwrap();
    let mut y = other.alloc("y", 64).unwrap();
    other.copy(y.span_mut(), x.span()).unwrap();
    drop(x);
    let mut again = pool.alloc("gradient", 64).unwrap();
    let text = stream.fill(again.span_mut(), 2).unwrap_err().to_string();
    assert!(
        text.contains("writes bytes 0..64 of `gradient`, which `copy` on stream `copies` reads"),
        "{text}"
    );
    stream.wait(&other.record().unwrap()).unwrap();
    stream.fill(again.span_mut(), 2).unwrap();
    stream.synchronize().unwrap();
    machine.is_clean();
}

#[test]
fn too_little_memory_says_for_what_and_how_much() {
    let settings = Settings { memory_bytes: 1000, ..Settings::default() };
    let machine = Machine::with(&settings, Checks::On);
    let stream = machine.stream("compute");
    let held = stream.alloc("weights", 700).unwrap();
    let error = stream.alloc("gradients", 400).unwrap_err();
    assert_eq!(error.to_string(), "GPU 0 has 300 bytes free of 1000, and `gradients` needs 400");
    drop(held);
    stream.alloc("gradients", 400).unwrap();

    machine.sim.refuse_allocation(0);
    let error = stream.alloc("moments", 4).unwrap_err();
    assert!(matches!(error, GpuError::OutOfMemory { bytes: 4, .. }), "{error}");
    // Nothing at all needs no memory.
    assert_eq!(stream.alloc("nothing", 0).unwrap().bytes(), 0);
    stream.synchronize().unwrap();
    machine.is_clean();
}

#[test]
fn the_host_gets_at_pinned_memory_after_the_copies() {
    let machine = Machine::new(1);
    let stream = machine.stream("copies");
    let mut memory = stream.alloc("x", 16).unwrap();
    let mut pinned = machine.device.pinned(32).unwrap();
    assert_eq!(pinned.bytes().unwrap(), [0; 32]);
    pinned.elements::<u32>().unwrap()[2..6].copy_from_slice(&[1, 2, 3, 4]);
    stream.upload(memory.span_mut(), &mut pinned, 8..24).unwrap();
    stream.download(&mut pinned, 16..32, memory.span()).unwrap();
    assert_eq!(machine.sim.counters().host_waits, 0);
    assert_eq!(pinned.elements::<u32>().unwrap(), [0, 0, 1, 2, 1, 2, 3, 4]);
    assert_eq!(machine.sim.counters().host_waits, 2);
    assert!(machine.device.pinned(0).unwrap().elements::<f32>().unwrap().is_empty());
    let odd = machine.device.pinned(6).unwrap().elements::<f32>().map(|_| ()).unwrap_err();
    assert_eq!(odd, GpuError::Length { from: 6, to: 4 });
    machine.is_clean();
}

/// The host asks instead of waiting, and knows as much afterwards.
#[test]
fn an_event_says_whether_it_is_done() {
    let machine = Machine::new(1);
    let (stream, other) = (machine.stream("compute"), machine.stream("copies"));
    let mut x = stream.alloc("x", 16).unwrap();
    stream.fill(x.span_mut(), 1).unwrap();
    let event = stream.record().unwrap();
    let mut asked = 0;
    while !event.is_done().unwrap() {
        asked += 1;
        assert!(asked < 100);
    }
    assert!(asked > 0);
    other.fill(x.span_mut(), 2).unwrap();
    other.synchronize().unwrap();
    assert_eq!(machine.sim.counters().host_waits, 1);
    machine.is_clean();
    machine.sim.lose_device(0);
    assert!(event.is_done().is_err());
}

#[test]
fn nothing_is_filled_and_copied_without_a_call() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let (mut x, mut y) = (stream.alloc("x", 0).unwrap(), stream.alloc("y", 16).unwrap());
    let mut pinned = machine.device.pinned(0).unwrap();
    stream.fill(x.span_mut(), 1).unwrap();
    stream.copy(x.span_mut(), y.span().range(8..8).unwrap()).unwrap();
    stream.upload(y.span_mut().range(16..16).unwrap(), &mut pinned, 0..0).unwrap();
    stream.download(&mut pinned, 0..0, x.span()).unwrap();
    assert!(pinned.is_empty() && pinned.bytes().unwrap().is_empty());
    stream.synchronize().unwrap();
    let counters = machine.sim.counters();
    assert_eq!((counters.copies, counters.allocations, counters.host_waits), (0, 1, 1));
    machine.is_clean();
}

#[test]
fn copies_that_do_not_fit_are_refused() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let (mut x, y) = (stream.alloc("x", 16).unwrap(), stream.alloc("y", 8).unwrap());
    let error = stream.copy(x.span_mut(), y.span()).unwrap_err();
    assert_eq!(error.to_string(), "a copy of 8 bytes to 16");
    let error = x.span().range(8..20).unwrap_err();
    assert_eq!(error.to_string(), "bytes 8..20 lie outside `x`, which has 16");
    assert!(x.span_mut().split_at(17).is_err());
    let mut pinned = machine.device.pinned(8).unwrap();
    let error = stream.upload(x.span_mut().range(0..8).unwrap(), &mut pinned, 4..12).unwrap_err();
    assert_eq!(error.to_string(), "bytes 4..12 lie outside `pinned memory`, which has 8");
    let error = stream.download(&mut pinned, 0..4, y.span()).unwrap_err();
    assert_eq!(error, GpuError::Length { from: 4, to: 8 });
}

#[test]
fn memory_goes_between_devices() {
    for seed in 0..8 {
        let machine = Machine::new(seed);
        let (here, peer) = (machine.stream("here"), machine.gpus.device(1).unwrap());
        let there = peer.stream("there", Priority::First).unwrap();
        let x = uploaded(&here, "x", &[5.0f32; 4]);
        let mut y = there.alloc("y", 16).unwrap();
        there.wait(&here.record().unwrap()).unwrap();
        there.copy(y.span_mut(), x.span()).unwrap();
        assert_eq!(downloaded::<f32>(&there, &y), [5.0; 4]);
        let error = here.fill(y.span_mut(), 0).unwrap_err();
        assert_eq!(error.to_string(), "`y` is on GPU 1, and the stream `here` on GPU 0");
        machine.is_clean();
    }
}
