//! Ranks as processes: this program starts itself, once for each rank, with a simulated machine in each. They meet by a
//! store of `trine-rendezvous` and by NCCL's unique id.
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]
#![expect(clippy::print_stdout, reason = "its own harness says what it ran")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod world;

fn main() {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    world::main();
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    println!("the simulated GPU runs on Linux on x86-64 only: nothing to run here");
}
