//! NCCL among processes: this program starts itself, once for each process of a world, and counts those that say that
//! they have passed.
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]
#![expect(clippy::print_stdout, reason = "its own harness says what it ran")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "simulator/gpu.rs"]
#[expect(dead_code, reason = "kernels are the other test's")]
mod gpu;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod worlds;

fn main() {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    worlds::main();
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    println!("the simulated GPU runs on Linux on x86-64 only: nothing to run here");
}
