//! Faults that are planted between the streams of a run: each is found by its name.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use trine_buffer::{BufferError, DType, Pool, Slice, SliceMut};
use trine_comm::{Communicator, Mark, ReduceOp, SharedDevice};
use trine_kernels::Ops;
use trine_mesh::Degrees;
use trine_nn::Numerics;
use trine_testkit::toy;
use trine_tests::gpu::{Accesses, Machine, small};
use trine_tests::{Mutation, step};
use trine_trainer::TrainError;
use trine_trainer::engine::EngineConfig;
use trine_trainer::run::{DeviceFacts, Devices};
use trine_trainer_gpu::GpuRanks;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// An exchange does not wait for what ranks compute.
    NoEventBefore,
    /// Ranks do not wait for an exchange.
    NoEventBehind,
    /// Ranks wait for the exchange before the one that they mean.
    LastEventBehind,
}

/// The exchanges of ranks that share a GPU, with a fault.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn SharedDevice>,
    fault: Fault,
    last: Mutex<Option<Mark>>,
}

impl SharedDevice for Faulty {
    fn pool(&self) -> &Pool {
        self.inner.pool()
    }

    fn mark(&self, buf: Slice<'_>) -> Result<Mark, BufferError> {
        self.inner.mark(buf)
    }

    fn follow(&self, buf: Slice<'_>, mark: &Mark) -> Result<(), BufferError> {
        if self.fault == Fault::NoEventBehind { Ok(()) } else { self.inner.follow(buf, mark) }
    }

    fn begin(&self, behind: &Mark) -> Result<(), BufferError> {
        if self.fault == Fault::NoEventBefore { Ok(()) } else { self.inner.begin(behind) }
    }

    fn copy(&self, from: Slice<'_>, to: SliceMut<'_>) -> Result<(), BufferError> {
        self.inner.copy(from, to)
    }

    fn reduce(
        &self,
        op: ReduceOp,
        contributions: &[Slice<'_>],
        to: SliceMut<'_>,
    ) -> Result<(), BufferError> {
        self.inner.reduce(op, contributions, to)
    }

    fn end(&self) -> Result<Mark, BufferError> {
        let mark = self.inner.end()?;
        let last = self.last.lock().unwrap().replace(mark.clone());
        Ok(if self.fault == Fault::LastEventBehind { last.unwrap_or(mark) } else { mark })
    }
}

/// Ranks that exchange so.
#[derive(Debug)]
struct FaultyRanks<'a> {
    ranks: &'a GpuRanks,
    fault: Fault,
}

impl Devices for FaultyRanks<'_> {
    fn of_rank(&self, rank: usize) -> usize {
        self.ranks.of_rank(rank)
    }

    fn name(&self, device: usize) -> String {
        self.ranks.name(device)
    }

    fn free_bytes(&self, device: usize) -> Result<u64, TrainError> {
        self.ranks.free_bytes(device)
    }

    fn facts(&self, device: usize) -> DeviceFacts {
        self.ranks.facts(device)
    }

    fn beside_bytes(&self) -> u64 {
        self.ranks.beside_bytes()
    }

    fn ranks_max(&self) -> usize {
        self.ranks.ranks_max()
    }

    fn ops(&self, rank: usize, numerics: Numerics) -> Result<Arc<dyn Ops>, TrainError> {
        self.ranks.ops(rank, numerics)
    }

    fn shared(&self) -> Option<Arc<dyn SharedDevice>> {
        let inner = self.ranks.shared()?;
        Some(Arc::new(Faulty { inner, fault: self.fault, last: Mutex::default() }))
    }

    fn communicator(
        &self,
        host: Arc<dyn Communicator>,
    ) -> Result<Arc<dyn Communicator>, TrainError> {
        self.ranks.communicator(host)
    }
}

/// What a step says whose exchanges have a fault.
fn said(degrees: Degrees, fault: Fault) -> String {
    let config = EngineConfig { degrees, ..small(toy::llama(2), DType::F32) };
    let machine = Machine::new(1, degrees.world(), 1, Accesses::Off).unwrap();
    let ranks = FaultyRanks { ranks: &machine.ranks, fault };
    let error = step(&config, &Mutation { devices: Some(&ranks), ..Mutation::NONE }).unwrap_err();
    assert!(error.contains("and no event orders the two"), "{fault:?}: {error}");
    error
}

#[test]
fn a_reduction_in_a_step_that_does_not_wait_for_its_gradient() {
    let error = said(Degrees { dp: 2, ..Degrees::SERIAL }, Fault::NoEventBefore);
    assert!(error.contains("on stream `exchanges` reads"), "{error}");
}

#[test]
fn a_rank_in_a_step_that_does_not_wait_for_a_sum() {
    for fault in [Fault::NoEventBehind, Fault::LastEventBehind] {
        let error = said(Degrees { tp: 2, ..Degrees::SERIAL }, fault);
        assert!(error.contains("on stream `exchanges` writes"), "{fault:?}: {error}");
    }
}

/// The table of docs/gpu.md names tests that exist, and words that these look for.
#[test]
fn the_list_of_faults_is_that_of_the_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = std::fs::read_to_string(root.join("docs/gpu.md")).unwrap();
    let part = page.split("\n## ").find(|part| part.starts_with("Planted faults\n")).unwrap();
    let mut listed = BTreeSet::new();
    for row in part.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, _, file, test, words, _] = cells[..] else { panic!("not four cells: {row}") };
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let begin = format!("#[test]\nfn {test}() {{");
        assert!(text.contains(&begin) && text.contains(words), "{row}");
        listed.insert(test.to_owned());
    }
    assert!(listed.len() >= 25, "{}", listed.len());
}
