//! A simulated machine and a world of ranks on it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use trine_comm::threads::{self, WorldOptions};
use trine_comm::{CommError, Communicator, Delivery};
use trine_comm_nccl::{NcclOptions, join, open};
use trine_gpu::{Checks, Device, Gpus, Priority, Stream};
use trine_gpu_sim::{self as sim, Settings, Simulator, compile};
use trine_gpu_sys::{Nccl, Search};

pub(crate) struct Machine {
    pub(crate) sim: Simulator,
    pub(crate) gpus: Gpus,
    pub(crate) nccl: Arc<Nccl>,
    pub(crate) options: NcclOptions,
    pub(crate) delivery: Delivery,
}

/// A rank: its communicator, its GPU, and the stream of its buffers.
pub(crate) struct Rank {
    pub(crate) comm: Arc<dyn Communicator>,
    pub(crate) device: Device,
    pub(crate) stream: Stream,
}

impl Machine {
    pub(crate) fn new(devices: usize, seed: u64, checks: Checks) -> Self {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
        let library =
            compile(&kept, &[], sim::Checks::On).unwrap_or_else(|error| panic!("{error}"));
        let settings = Settings {
            devices: devices as u32,
            seed,
            patience_seconds: 20.0,
            ..Settings::default()
        };
        let sim = Simulator::start(&library, &settings).unwrap();
        let search = Search::only(vec![sim.folder().to_owned()]);
        let gpus = Gpus::open(&search, checks).unwrap();
        let nccl = open(&search).unwrap();
        let options = NcclOptions { deadline: Duration::from_secs(60), message_groups: &["world"] };
        Self { sim, gpus, nccl, options, delivery: Delivery::Buffered }
    }

    /// Runs `body` on as many ranks, each a thread with the GPU that `gpu` names.
    pub(crate) fn run<T: Send>(
        &self,
        ranks: usize,
        gpu: impl Fn(usize) -> usize + Sync,
        body: impl Fn(Rank) -> Result<T, CommError> + Sync,
    ) -> Result<Vec<T>, String> {
        let options = WorldOptions { delivery: self.delivery, ..WorldOptions::default() };
        let ran = threads::run(ranks, &options, |host| {
            let failed = |error: trine_gpu::GpuError| CommError::Backend {
                backend: "GPU",
                message: error.to_string(),
            };
            let device = self.gpus.device(gpu(host.rank())).map_err(failed)?;
            let stream = device.stream("compute", Priority::Normal).map_err(failed)?;
            let comm = join(&self.nccl, &device, host, self.options)?;
            body(Rank { comm, device, stream })
        });
        ran.map_err(|error| error.to_string())
    }

    /// Asserts that the simulator has found nothing.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.sim.reports(), Vec::<String>::new());
    }
}
