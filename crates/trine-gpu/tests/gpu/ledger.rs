//! What no event orders is refused before it is launched, whatever the order of the device; without the ledger the
//! simulator finds the same.

use crate::machine::{Machine, downloaded, uploaded};
use trine_gpu::{Arg, Checks, Event, GpuError, Grid, Memory, Stream, Unordered};
use trine_gpu_sim::Settings;

const SEEDS: u64 = 8;

#[track_caller]
fn unordered(result: Result<(), GpuError>) -> Unordered {
    match result.unwrap_err() {
        GpuError::Unordered(unordered) => *unordered,
        other => panic!("{other}"),
    }
}

/// Two streams of a device, a buffer that both know, and a second one of the second stream.
struct Two {
    machine: Machine,
    first: Stream,
    second: Stream,
    x: Memory,
    y: Memory,
}

impl Two {
    fn new(seed: u64, checks: Checks) -> Self {
        let machine = Machine::with(&Settings { seed, ..Settings::default() }, checks);
        let (first, second) = (machine.stream("compute"), machine.stream("copies"));
        let x = uploaded(&first, "x", &[1.0f32; 8]);
        let y = uploaded(&second, "y", &[2.0f32; 8]);
        first.synchronize().unwrap();
        second.synchronize().unwrap();
        Self { machine, first, second, x, y }
    }

    /// Fills `x` in the first stream and copies it to `y` in the second.
    fn fill_and_copy(
        &mut self,
        event: impl FnOnce(&Stream) -> Option<Event>,
    ) -> Result<(), GpuError> {
        self.first.fill(self.x.span_mut(), 0)?;
        if let Some(event) = event(&self.first) {
            self.second.wait(&event)?;
        }
        self.second.copy(self.y.span_mut(), self.x.span())
    }
}

#[test]
fn an_event_orders_two_streams_and_its_lack_is_named() {
    for seed in 0..SEEDS {
        let mut two = Two::new(seed, Checks::On);
        two.fill_and_copy(|first| Some(first.record().unwrap())).unwrap();
        assert_eq!(downloaded::<f32>(&two.second, &two.y), [0.0; 8]);
        // The first stream does not know that the copy is done; the host does, by its wait above.
        two.first.fill(two.x.span_mut(), 1).unwrap();
        two.machine.is_clean();

        let mut two = Two::new(seed, Checks::On);
        let text = two.fill_and_copy(|_| None).unwrap_err().to_string();
        assert_eq!(
            text,
            "`copy` on stream `copies` reads bytes 0..32 of `x`, which `fill` on stream `compute` writes, and no event \
             orders the two"
        );
        two.first.synchronize().unwrap();
        two.machine.is_clean();
    }
}

#[test]
fn without_the_ledger_the_simulator_finds_the_same() {
    for seed in 0..SEEDS {
        let mut two = Two::new(seed, Checks::Off);
        two.fill_and_copy(|_| None).unwrap();
        two.first.synchronize().unwrap();
        two.second.synchronize().unwrap();
        let reports = two.machine.sim.reports();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(reports[0].contains("and no event orders the two"), "{reports:?}");
        assert!(reports[0].contains("`copy`") && reports[0].contains("`set`"), "{reports:?}");
    }
}

#[test]
fn an_event_that_was_recorded_too_early_is_none() {
    let mut two = Two::new(1, Checks::On);
    let early = two.first.record().unwrap();
    let found = unordered(two.fill_and_copy(|_| Some(early)));
    assert_eq!((&*found.operation, &*found.other, found.other_wrote), ("copy", "fill", true));
}

#[test]
fn a_writer_waits_for_readers_and_readers_do_not_wait_for_each_other() {
    let mut two = Two::new(1, Checks::On);
    let (mut z, third) = (two.first.alloc("z", 32).unwrap(), two.machine.stream("third"));
    two.first.copy(z.span_mut(), two.x.span()).unwrap();
    two.second.copy(two.y.span_mut(), two.x.span()).unwrap();
    let found = unordered(third.fill(two.x.span_mut(), 0));
    assert_eq!((found.writes, found.other_wrote, &*found.memory), (true, false, "x"));
    third.wait(&two.first.record().unwrap()).unwrap();
    let found = unordered(third.fill(two.x.span_mut(), 0));
    assert_eq!((&*found.other_stream, found.bytes), ("copies", 0..32));
    third.wait(&two.second.record().unwrap()).unwrap();
    third.fill(two.x.span_mut(), 0).unwrap();
    third.synchronize().unwrap();
    two.machine.is_clean();
}

#[test]
fn parts_of_a_buffer_have_histories_of_their_own() {
    let mut two = Two::new(1, Checks::On);
    let (first, second) = two.x.span_mut().split_at(12).unwrap();
    two.first.fill(first, 1).unwrap();
    two.second.fill(second, 2).unwrap();
    let found = unordered(two.second.fill(two.x.span_mut().range(8..32).unwrap(), 3));
    assert_eq!((found.bytes, &*found.other_stream), (8..12, "compute"));
    two.first.synchronize().unwrap();
    two.second.synchronize().unwrap();
    two.machine.is_clean();
}

#[test]
fn memory_that_is_freed_while_another_stream_uses_it_is_told_next() {
    let Two { machine, first, second, x, mut y } = Two::new(1, Checks::On);
    second.copy(y.span_mut(), x.span()).unwrap();
    drop(x);
    let found = unordered(first.fill(y.span_mut(), 0));
    let told = (&*found.operation, &*found.stream, &*found.memory, &*found.other);
    assert_eq!(told, ("free", "compute", "x", "copy"));
    // The simulator sees it too.
    first.synchronize().unwrap();
    second.synchronize().unwrap();
    assert!(!machine.sim.reports().is_empty());
}

#[test]
fn memory_of_another_stream_is_not_there_before_its_allocation() {
    let two = Two::new(1, Checks::On);
    let mut z = two.first.alloc("z", 8).unwrap();
    let found = unordered(two.second.fill(z.span_mut(), 0));
    assert_eq!((&*found.other, &*found.other_stream), ("alloc", "compute"));
    two.second.wait(&two.first.record().unwrap()).unwrap();
    two.second.fill(z.span_mut(), 0).unwrap();
    two.first.wait(&two.second.record().unwrap()).unwrap();
    drop(z);
    two.first.synchronize().unwrap();
    two.machine.is_clean();
}

#[test]
fn a_launch_is_held_against_what_it_says_of_its_arguments() {
    let mut two = Two::new(1, Checks::On);
    let (kernel, grid) = (two.machine.kernel("add_f32"), Grid::line(1, 32));
    let mut launch = |stream: &Stream| {
        let (x, n) = (two.x.span(), Arg::U32(8));
        let args = [Arg::Write(two.y.span_mut()), Arg::Read(x), Arg::Read(x), n];
        // SAFETY: the simulator holds every access against its buffers.
        unsafe { stream.launch(&kernel, grid, &args) }
    };
    launch(&two.second).unwrap();
    let found = unordered(launch(&two.first));
    let told = (&*found.operation, &*found.stream, &*found.memory, &*found.other);
    assert_eq!(told, ("add_f32", "compute", "y", "add_f32"));
    two.first.wait(&two.second.record().unwrap()).unwrap();
    launch(&two.first).unwrap();
    let found = unordered(two.second.fill(two.x.span_mut(), 0));
    assert_eq!((&*found.other, found.other_wrote), ("add_f32", false));
    two.first.synchronize().unwrap();
    two.machine.is_clean();
}
