//! Programs drawn at random: the ledger and the simulator know nothing of each other and must agree. Ranges are of
//! elements of two bytes, which is what the simulator tells apart whatever the order.

use crate::machine::{Machine, uploaded};
use trine_gpu::{Checks, GpuError, Memory, Stream};
use trine_gpu_sim::Settings;

const PROGRAMS: u64 = 200;
const STEPS: usize = 40;
const STREAMS: usize = 3;
const BUFFERS: usize = 3;
const BYTES: usize = 32;

/// What a host asks for.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    Fill { stream: usize, buffer: usize, from: usize, len: usize },
    Copy { stream: usize, to: usize, from: usize, len: usize },
    Wait { stream: usize, by: usize },
    Synchronize { stream: usize },
}

/// A program; waits are as frequent as work, so that some programs are in order and others are not.
fn program(seed: u64) -> Vec<Step> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    (0..STEPS)
        .map(|_| {
            let (stream, len) = (below(STREAMS), 2 + 2 * below(BYTES / 4));
            match below(16) {
                0..4 => Step::Fill {
                    stream,
                    buffer: below(BUFFERS),
                    from: 2 * below((BYTES - len) / 2),
                    len,
                },
                4..7 => {
                    let to = below(BUFFERS);
                    Step::Copy { stream, to, from: (to + 1 + below(BUFFERS - 1)) % BUFFERS, len }
                }
                7..15 => Step::Wait { stream, by: below(STREAMS) },
                _ => Step::Synchronize { stream },
            }
        })
        .collect()
}

fn run(step: &Step, streams: &[Stream], buffers: &mut [Memory]) -> Result<(), GpuError> {
    match *step {
        Step::Fill { stream, buffer, from, len } => {
            let part = buffers[buffer].span_mut().range(from..from + len)?;
            streams[stream].fill(part, 1)
        }
        Step::Copy { stream, to, from, len } => {
            let [to, from] = buffers.get_disjoint_mut([to, from]).unwrap();
            streams[stream].copy(to.span_mut().range(0..len)?, from.span().range(0..len)?)
        }
        Step::Wait { stream, by } => streams[stream].wait(&streams[by].record()?),
        Step::Synchronize { stream } => streams[stream].synchronize(),
    }
}

/// Runs steps until one is refused; which it is, and what the simulator has seen when all that was queued is done.
fn outcome(seed: u64, steps: &[Step], checks: Checks) -> (Option<usize>, Vec<String>) {
    let machine = Machine::with(&Settings { seed, ..Settings::default() }, checks);
    let streams: Vec<_> = (0..STREAMS).map(|i| machine.stream(&format!("stream {i}"))).collect();
    let mut buffers: Vec<_> = (0..BUFFERS)
        .map(|i| uploaded(&streams[0], &format!("buffer {i}"), &[0u8; BYTES]))
        .collect();
    streams[0].synchronize().unwrap();
    let refused = steps.iter().position(|step| match run(step, &streams, &mut buffers) {
        Ok(()) => false,
        Err(GpuError::Unordered(_)) => true,
        Err(other) => panic!("seed {seed}: {other}"),
    });
    streams.iter().for_each(|stream| stream.synchronize().unwrap());
    (refused, machine.sim.reports())
}

#[test]
fn the_ledger_refuses_what_the_simulator_sees_and_nothing_else() {
    let mut in_order = 0;
    for seed in 0..PROGRAMS {
        // A shorter program is more often in order.
        let steps = &program(seed)[..STEPS / (1 + seed as usize % 4)];
        let (refused, reports) = outcome(seed, steps, Checks::On);
        assert_eq!(reports, Vec::<String>::new(), "seed {seed}: what was not refused was in order");
        in_order += u64::from(refused.is_none());
        let upto = refused.map_or(steps.len(), |index| index + 1);
        let (_, reports) = outcome(seed, &steps[..upto], Checks::Off);
        assert_eq!(
            reports.is_empty(),
            refused.is_none(),
            "seed {seed}, step {refused:?}: {reports:?}"
        );
    }
    let share = in_order as f64 / PROGRAMS as f64;
    assert!((0.1..0.9).contains(&share), "{share} of the programs are in order");
}
