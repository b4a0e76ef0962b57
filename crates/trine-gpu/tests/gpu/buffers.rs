//! Buffers of `trine-buffer` on a device.

use crate::machine::{Machine, uploaded};
use trine_buffer::{Buf, BufferError, DType, Pool, PoolStats, Slice};
use trine_gpu::{GpuError, Priority, Span, SpanMut};

#[test]
fn values_go_there_and_back_and_the_host_waits_for_the_way_back_only() {
    for seed in 0..3 {
        let machine = Machine::new(seed);
        let place = machine.stream("compute").place();
        let mut x = place.hold(Buf::from_vec(vec![1.0f32, 2.0, 3.0, 4.0])).unwrap();
        let mut y = place.zeros(DType::F32, 4).unwrap();
        y.slice_mut().range(1..3).unwrap().copy_from(x.slice().range(2..4).unwrap()).unwrap();
        x.slice_mut().range(0..1).unwrap().zero().unwrap();
        // A second copy takes other pinned memory while the first is on its way.
        let last = x.slice_mut().range(3..4).unwrap();
        last.copy_from(Slice::new(&[9.0f32])).unwrap();
        assert_eq!(machine.sim.counters().host_waits, 0);
        assert_eq!(x.slice().to_host().unwrap().typed::<f32>().unwrap(), [0.0, 2.0, 3.0, 9.0]);
        assert_eq!(machine.sim.counters().host_waits, 1);
        assert_eq!(y.to_f64_vec().unwrap(), [0.0, 3.0, 4.0, 0.0]);
        machine.is_clean();
    }
}

#[test]
fn the_host_gets_at_no_element_and_is_told_so() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let mut x = stream.place().zeros(DType::Bf16, 3).unwrap();
    let name = "buffer of 3 bf16".to_owned();
    let refused = BufferError::OnDevice { name };
    assert_eq!(x.typed::<half::bf16>().unwrap_err(), refused);
    assert_eq!(x.typed_mut::<half::bf16>().unwrap_err(), refused);
    assert_eq!(x.slice().bytes().unwrap_err(), refused);
    assert_eq!(x.slice_mut().bytes().unwrap_err(), refused);
    // Another type is still another type, and a range still ends somewhere.
    assert!(matches!(x.slice().range(2..4), Err(BufferError::Range { end: 4, len: 3, .. })));
    let mut host = Buf::zeros(DType::Bf16, 3);
    assert_eq!(host.slice_mut().copy_from(x.slice()).unwrap_err(), refused);
    assert_eq!(x.into_vec::<half::bf16>().unwrap_err(), refused);
    let lies = Span::of(host.slice()).unwrap_err();
    assert_eq!(lies, GpuError::OnHost { dtype: DType::Bf16, len: 3 });
    assert_eq!(SpanMut::of(host.slice_mut()).unwrap_err(), lies);
    machine.is_clean();
}

#[test]
fn a_pool_on_a_device_takes_memory_once() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let pool = Pool::on(stream.place());
    pool.reserve(DType::F32, 8, 1).unwrap();
    for _ in 0..3 {
        let first = pool.copy_of(Slice::new(&[1.0f32; 8])).unwrap();
        let second = pool.zeros(DType::F32, 8).unwrap();
        assert_eq!(first.to_f64_vec().unwrap(), [1.0; 8]);
        assert_eq!(second.to_f64_vec().unwrap(), [0.0; 8]);
    }
    let expected =
        PoolStats { bytes_in_use: 0, bytes_in_use_max: 64, bytes_idle: 64, allocations: 2 };
    assert_eq!(pool.stats(), expected);
    // And two pieces of pinned memory, for a copy on its way there while another goes back.
    assert_eq!(machine.sim.counters().allocations, 4);
    machine.is_clean();
}

#[test]
fn work_on_a_buffer_finds_its_bytes_and_the_ledger_its_stream() {
    let machine = Machine::new(1);
    let (stream, other) = (machine.stream("compute"), machine.stream("copies"));
    let mut x = stream.place().hold(Buf::from_vec(vec![1u32, 2, 3])).unwrap();
    let part = Span::of(x.slice().range(1..3).unwrap()).unwrap();
    assert_eq!((part.bytes(), x.slice().len()), (8, 3));
    let error = other.fill(SpanMut::of(x.slice_mut()).unwrap(), 0).unwrap_err().to_string();
    assert!(error.contains("`fill` on stream `copies` writes"), "{error}");
    assert!(error.contains("buffer of 3 u32"), "{error}");
    other.wait(&stream.record().unwrap()).unwrap();
    let half = SpanMut::of(x.slice_mut().range(0..1).unwrap()).unwrap();
    other.copy(half, uploaded(&other, "seven", &[7u32]).span()).unwrap();
    stream.wait(&other.record().unwrap()).unwrap();
    assert_eq!(x.to_f64_vec().unwrap(), [7.0, 2.0, 3.0]);
    machine.is_clean();
}

#[test]
fn what_a_device_refuses_is_the_errors_text() {
    let machine = Machine::new(1);
    let stream = machine.device.stream("compute", Priority::Normal).unwrap();
    machine.sim.refuse_allocation(0);
    let error = stream.place().zeros(DType::F32, 2).unwrap_err().to_string();
    assert!(error.contains("`buffer of 2 f32` needs 8"), "{error}");
    machine.sim.lose_device(0);
    let error = stream.place().zeros(DType::F32, 2).unwrap_err().to_string();
    assert!(error.contains("cannot allocate 8 bytes"), "{error}");
}
