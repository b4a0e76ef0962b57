//! One file a command.

pub(crate) mod bench;
pub(crate) mod bench_comm;
pub(crate) mod bench_gradients;
pub(crate) mod bench_kernels;
pub(crate) mod bench_layouts;
pub(crate) mod bench_plan;
pub(crate) mod bench_schedules;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod launch;
#[cfg(feature = "mpi")]
mod mpi;
pub(crate) mod plan;
pub(crate) mod presets;
pub(crate) mod schedule;
pub(crate) mod schema;
pub(crate) mod shell;
pub(crate) mod train;
