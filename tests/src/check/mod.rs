//! What a machine with a GPU is held against, in parts: `cargo xtask gpu check`.
//!
//! Each part runs in a process of its own, as an error of a GPU ends the context of all that came before. A part that
//! cannot run says why. The same code runs on simulated GPUs, with smaller sizes where these would take long.

mod communicator;
pub mod curve;
mod doctor;
mod kernels;
mod layout;
mod run;
mod sanitizer;

pub use run::{Report, Row, run};

use crate::gpu::{self, Accesses};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Instant;
use trine_gpu::Checks;
use trine_gpu_sim::Simulator;
use trine_gpu_sys::Search;
use trine_trainer_gpu::{GpuRanks, Libraries};

/// What is checked, and where.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Simulated GPUs instead of those of this machine.
    pub simulated: bool,
    /// Where libraries are, and nowhere else; empty: wherever they usually are.
    pub gpu_libraries: Vec<PathBuf>,
    /// The binary `trine`, whose `doctor` is asked.
    pub trine: Option<PathBuf>,
    /// compute-sanitizer, by path or by name.
    pub sanitizer: Option<PathBuf>,
}

/// How a part ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "seen", rename_all = "kebab-case")]
pub enum Outcome {
    /// All was as it should be; what was seen.
    Passed(String),
    /// What was not.
    Failed(String),
    /// Why nothing was checked.
    DidNotRun(String),
}

/// A part: its name, what it is about, and how it is done.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// For `--part`.
    pub name: &'static str,
    /// What it finds out.
    pub about: &'static str,
    run: fn(&Options) -> Result<Outcome, String>,
}

/// All parts, in the order in which they run.
pub const PARTS: [Part; 6] = [
    Part { name: "doctor", about: "the GPUs and their libraries", run: doctor::run },
    Part { name: "kernels", about: "every operation against the CPU's", run: kernels::run },
    Part { name: "communicator", about: "what ranks exchange", run: communicator::run },
    Part { name: "sanitizer", about: "`kernels` under compute-sanitizer", run: sanitizer::run },
    Part { name: "curve", about: "a hundred steps against the CPU's", run: curve::run },
    Part { name: "layout", about: "2 × 2 × 2 ranks against one", run: layout::run },
];

/// Runs one part, in this process.
pub fn alone(part: &Part, options: &Options) -> Row {
    let begun = Instant::now();
    let outcome = (part.run)(options).unwrap_or_else(Outcome::Failed);
    Row { part: part.name.to_owned(), seconds: begun.elapsed().as_secs_f64(), outcome }
}

impl Options {
    fn search(&self) -> Search {
        let folders = self.gpu_libraries.clone();
        if folders.is_empty() { Search::usual(folders) } else { Search::only(folders) }
    }

    /// So many ranks that share the first GPU.
    fn sharing(&self, ranks: usize) -> Result<Machine, String> {
        if self.simulated {
            return Ok(gpu::Machine::new(1, ranks, 1, Accesses::Off)?.into());
        }
        let libraries = Libraries::find(&self.search(), Checks::On).map_err(text)?;
        let ranks = GpuRanks::sharing(libraries, ranks).map_err(text)?;
        Ok(Machine { ranks, sim: None })
    }

    /// A GPU for each of up to `most` ranks; `None` if there are not two.
    fn with_own_gpus(&self, most: usize) -> Result<Option<(Machine, usize)>, String> {
        if self.simulated {
            return Ok(Some((gpu::Machine::new(2, 2, 1, Accesses::Off)?.into(), 2)));
        }
        let libraries = Libraries::find(&self.search(), Checks::On).map_err(text)?;
        let ranks = libraries.count().min(most);
        if ranks < 2 {
            return Ok(None);
        }
        let all = GpuRanks::new(libraries, ranks).map_err(text)?;
        Ok(Some((Machine { ranks: all, sim: None }, ranks)))
    }
}

/// Ranks on GPUs.
#[derive(Debug)]
struct Machine {
    ranks: GpuRanks,
    sim: Option<Simulator>,
}

impl From<gpu::Machine> for Machine {
    fn from(gpu::Machine { sim, ranks }: gpu::Machine) -> Self {
        Self { ranks, sim: Some(sim) }
    }
}

impl Machine {
    /// What a simulated machine has found, if it has found anything.
    fn found(&self) -> Result<(), String> {
        let reports = self.sim.as_ref().map(Simulator::reports).unwrap_or_default();
        if reports.is_empty() { Ok(()) } else { Err(reports.join("\n")) }
    }
}

/// Up to three of what went wrong, and how much there is.
fn shortened(all: &[String]) -> String {
    const SHOWN: usize = 3;
    let more = all.len().saturating_sub(SHOWN);
    let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
    format!("{}{rest}", all[..all.len().min(SHOWN)].join("; "))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
