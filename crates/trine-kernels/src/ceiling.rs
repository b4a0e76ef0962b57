//! What a machine can do at best, for kernels to be measured against.
//!
//! Two ceilings bound a kernel: multiply-adds whose operands stay in registers, and bytes between
//! memory and the cores. They belong to a team of threads and, the first, to an instruction set and
//! a type. Machines are shared and their clocks drift, so each number is the best of several short
//! runs over about [`BUDGET`], and a long measurement takes its ceilings before and after; or it takes
//! [`MultiplyAdds`] in between, again and again, to know what the machine gave on average.

#[cfg(target_arch = "x86_64")]
use crate::gemm::amx::F32_IN_BF16_PRODUCTS;
use crate::isa::vectorised;
use crate::num::Real;
use crate::scratch::Split;
use crate::team::PARTS_PER_THREAD;
use crate::timing::Times;
use crate::{Isa, KernelError, Team, check};
use std::convert::Infallible;
use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};
use trine_buffer::DType;

/// How long one ceiling is measured, apart from finding out how much work fills a run.
pub const BUDGET: Duration = Duration::from_millis(100);

/// A run of multiply-adds is at least so long: waking the threads is then nothing beside it.
const RUN_MIN: Duration = Duration::from_millis(2);

/// Runs of the bandwidth loops that count at least: arrays beyond the caches take long.
const MEMORY_RUNS_MIN: usize = 4;

/// Independent chains of multiply-adds, all in registers.
#[derive(Debug)]
struct Chains {
    /// Does so many steps on the calling thread. The processor must have the features it is for.
    run: unsafe fn(usize),
    /// Floating-point operations of a step, two for each multiply-add.
    flops_per_step: usize,
}

/// Multiply-adds on registers alone: as fast as a product of matrices of a type could be on a team with an instruction
/// set.
///
/// That is `vfmadd` in AVX2 and AVX-512, for bf16 `vdpbf16ps` where the instruction set has it and
/// `tdpbf16ps` on the tiles of AMX, where a product of f32 takes six of them. Elsewhere bf16 is multiplied as f32, and
/// counts like it; the portable loop is the compiler's, with what the target guarantees.
#[derive(Debug)]
pub struct MultiplyAdds<'a> {
    team: &'a Team,
    chains: Chains,
    /// Steps of a part, [`PARTS_PER_THREAD`] a thread.
    steps: usize,
}

impl<'a> MultiplyAdds<'a> {
    /// Finds out how many fill a run.
    ///
    /// # Errors
    /// If the processor lacks `isa`, or kernels do not compute in `dtype`.
    pub fn new(team: &'a Team, isa: Isa, dtype: DType) -> Result<Self, KernelError> {
        let chains = chains(isa.checked()?, dtype)?;
        let mut this = Self { team, chains, steps: 1024 };
        while best_s(Duration::ZERO, 1, || this.run()) < RUN_MIN.as_secs_f64() {
            this.steps *= 2;
        }
        Ok(this)
    }

    fn run(&self) {
        // SAFETY: the processor has the instruction set that the chains were chosen for.
        self.team.run(self.parts(), |_| unsafe { (self.chains.run)(self.steps) });
    }

    fn parts(&self) -> usize {
        self.team.threads() * PARTS_PER_THREAD
    }

    /// Floating-point operations of a run, a multiply-add being two.
    fn flops(&self) -> f64 {
        (self.chains.flops_per_step * self.steps * self.parts()) as f64
    }

    /// The rate in GFLOP/s of the best run in [`BUDGET`].
    pub fn best_gflop_per_s(&self) -> f64 {
        self.flops() / best_s(BUDGET, 1, || self.run()) / 1e9
    }

    /// Runs for as long as `budget`, and once at least: all operations, and the time they took.
    pub fn burst(&self, budget: Duration) -> (f64, Duration) {
        let (start, mut flops) = (Instant::now(), 0.0);
        loop {
            self.run();
            flops += self.flops();
            let took = start.elapsed();
            if took >= budget {
                return (flops, took);
            }
        }
    }
}

/// [`MultiplyAdds::best_gflop_per_s`] of a team, an instruction set and a type.
///
/// # Errors
/// If the processor lacks `isa`, or kernels do not compute in `dtype`.
pub fn multiply_add_gflop_per_s(team: &Team, isa: Isa, dtype: DType) -> Result<f64, KernelError> {
    Ok(MultiplyAdds::new(team, isa, dtype)?.best_gflop_per_s())
}

/// The rate in GB/s, bytes read and bytes written added up, of copying one array into another on
/// `team`. The two have `bytes` bytes together: with several times the last cache it is the rate of
/// memory, with less that of a cache.
///
/// # Errors
/// If the processor lacks `isa`.
pub fn copy_gb_per_s(team: &Team, isa: Isa, bytes: usize) -> Result<f64, KernelError> {
    let isa = isa.checked()?;
    let len = (bytes / (2 * size_of::<f32>())).max(1);
    let (from, mut to) = (vec![1.0f32; len], vec![0.0f32; len]);
    let to = Split::new(&mut to);
    let seconds = memory_s(team, len, |range| {
        // SAFETY: the ranges are disjoint.
        copy_range(isa, unsafe { to.range(range.clone()) }, &from[range]);
    });
    Ok((2 * len * size_of::<f32>()) as f64 / seconds / 1e9)
}

/// The rate in GB/s, counted as in [`copy_gb_per_s`], of the traffic of an AdamW step: three arrays
/// updated, a fourth read, `bytes` bytes together, with next to no arithmetic.
///
/// # Errors
/// If the processor lacks `isa`.
pub fn triad_gb_per_s(team: &Team, isa: Isa, bytes: usize) -> Result<f64, KernelError> {
    let isa = isa.checked()?;
    let len = (bytes / (4 * size_of::<f32>())).max(1);
    let [mut w, mut m, mut v, grad] = [1.0f32; 4].map(|x| vec![x; len]);
    let (w, m, v) = (Split::new(&mut w), Split::new(&mut m), Split::new(&mut v));
    let seconds = memory_s(team, len, |range| {
        // SAFETY: the ranges are disjoint.
        let (w, m, v) =
            unsafe { (w.range(range.clone()), m.range(range.clone()), v.range(range.clone())) };
        triad_range(isa, w, m, v, &grad[range]);
    });
    Ok((7 * len * size_of::<f32>()) as f64 / seconds / 1e9)
}

vectorised! {
    fn copy_range<A: Real>(to: &mut [A], from: &[A]) {
        to.copy_from_slice(from);
    }

    // The values stay between 0 and 4.
    fn triad_range<A: Real>(w: &mut [A], m: &mut [A], v: &mut [A], grad: &[A]) {
        let half = A::from_f64(0.5);
        for (((w, m), v), &grad) in w.iter_mut().zip(m).zip(v).zip(grad) {
            *m = half * *m + grad;
            *v = half * *v + grad;
            *w = half * *w + *m;
        }
    }
}

/// The shortest time of one call in seconds.
fn best_s(budget: Duration, calls_min: usize, mut call: impl FnMut()) -> f64 {
    let Ok(times) = Times::of(budget, calls_min, || {
        call();
        Ok::<(), Infallible>(())
    });
    times.best.as_secs_f64()
}

/// The shortest time in seconds in which the team goes over `len` elements.
fn memory_s(team: &Team, len: usize, over: impl Fn(Range<usize>) + Sync) -> f64 {
    let parts = team.threads() * PARTS_PER_THREAD;
    best_s(BUDGET, MEMORY_RUNS_MIN, || {
        team.run(parts, |part| over(part * len / parts..(part + 1) * len / parts));
    })
}

/// The chains that bound products of `dtype`.
fn chains(isa: Isa, dtype: DType) -> Result<Chains, KernelError> {
    match dtype {
        DType::F64 => Ok(chains_f64(isa)),
        DType::F32 => Ok(chains_f32(isa)),
        DType::Bf16 => Ok(chains_bf16(isa)),
        held @ (DType::F16 | DType::U64 | DType::U32 | DType::U8) => {
            Err(check::not_computable("multiply_add_gflop_per_s", "dtype", held))
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn chains_f64(_: Isa) -> Chains {
    portable::<f64, 2>()
}

#[cfg(not(target_arch = "x86_64"))]
fn chains_f32(_: Isa) -> Chains {
    portable::<f32, 4>()
}

#[cfg(not(target_arch = "x86_64"))]
fn chains_bf16(isa: Isa) -> Chains {
    chains_f32(isa)
}

#[cfg(target_arch = "x86_64")]
fn chains_f64(isa: Isa) -> Chains {
    match isa {
        Isa::Portable | Isa::Neon => portable::<f64, 2>(),
        Isa::Avx2 => Chains { run: x86::avx2_f64, flops_per_step: 2 * 12 * 4 },
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
            Chains { run: x86::avx512_f64, flops_per_step: 2 * 24 * 8 }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn chains_f32(isa: Isa) -> Chains {
    match isa {
        Isa::Portable | Isa::Neon => portable::<f32, 4>(),
        Isa::Avx2 => Chains { run: x86::avx2_f32, flops_per_step: 2 * 12 * 8 },
        Isa::Avx512 | Isa::Avx512Bf16 => {
            Chains { run: x86::avx512_f32, flops_per_step: 2 * 24 * 16 }
        }
        Isa::Amx => {
            Chains { run: x86::amx_bf16, flops_per_step: FLOPS_OF_TILES / F32_IN_BF16_PRODUCTS }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn chains_bf16(isa: Isa) -> Chains {
    match isa {
        Isa::Portable | Isa::Neon | Isa::Avx2 | Isa::Avx512 => chains_f32(isa),
        Isa::Avx512Bf16 => Chains { run: x86::avx512_bf16, flops_per_step: 2 * 24 * 32 },
        Isa::Amx => Chains { run: x86::amx_bf16, flops_per_step: FLOPS_OF_TILES },
    }
}

/// Of a step of the chains on tiles.
#[cfg(target_arch = "x86_64")]
const FLOPS_OF_TILES: usize = 2 * 4 * 16 * 16 * 32;

/// Vectors that the portable loop keeps: with two constants they fit into 16 registers.
const VECTORS: usize = 12;

fn portable<A: Real, const LANES: usize>() -> Chains {
    Chains { run: portable_loop::<A, LANES>, flops_per_step: 2 * VECTORS * LANES }
}

/// Each sum goes to 2 and stays there: no number overflows or becomes subnormal, which would be
/// slow. The compiler does not know where they begin, so it cannot see that they are all the same.
fn portable_loop<A: Real, const LANES: usize>(steps: usize) {
    let (factor, term) = (black_box(A::from_f64(0.5)), black_box(A::ONE));
    let mut sums = [[A::ONE; LANES]; VECTORS];
    black_box(&mut sums);
    for _ in 0..steps {
        for sums in &mut sums {
            for sum in sums {
                // Without the instruction, a fused multiply-add is a call.
                let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
                *sum = if fused { sum.fma(factor, term) } else { *sum * factor + term };
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use crate::gemm::amx::{TILE_BYTES, Tiles};
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Chains `sum = multiply_add(sum)` in as many registers as `$chains`, as in `portable_loop`.
    macro_rules! chains {
        (
            $name:ident, $features:literal, $chains:literal, $set:ident,
            |$sum:ident, $factor:ident, $term:ident| $next:expr
        ) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(steps: usize) {
                let ($factor, $term) = ($set(black_box(0.5)), $set(black_box(1.0)));
                let mut sums = [$set(1.0); $chains];
                black_box(&mut sums);
                for _ in 0..steps {
                    for sum in &mut sums {
                        let $sum = *sum;
                        *sum = $next;
                    }
                }
                black_box(sums);
            }
        };
    }

    chains!(avx2_f32, "avx2,fma", 12, _mm256_set1_ps, |sum, factor, term| _mm256_fmadd_ps(
        sum, factor, term
    ));
    chains!(avx2_f64, "avx2,fma", 12, _mm256_set1_pd, |sum, factor, term| _mm256_fmadd_pd(
        sum, factor, term
    ));
    chains!(avx512_f32, "avx512f", 24, _mm512_set1_ps, |sum, factor, term| _mm512_fmadd_ps(
        sum, factor, term
    ));
    chains!(avx512_f64, "avx512f", 24, _mm512_set1_pd, |sum, factor, term| _mm512_fmadd_pd(
        sum, factor, term
    ));

    /// Pairs of products of ones: the sums grow until 2²⁴ and stay there.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn avx512_bf16(steps: usize) {
        let ones = _mm512_set1_epi32(black_box(0x3f80_3f80));
        // SAFETY: any 64 bytes are a vector of pairs.
        let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
        let mut sums = [_mm512_setzero_ps(); 24];
        black_box(&mut sums);
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
    }

    /// Four tiles of sums, as in the product's kernel, from four tiles of ones.
    ///
    /// # Safety
    /// The processor has AMX, and the system has allowed the process to use it.
    pub(super) unsafe fn amx_bf16(steps: usize) {
        if steps == 0 {
            return;
        }
        let ones = [0x3f80u16; TILE_BYTES / 2];
        // SAFETY: the caller's promise.
        let tiles = unsafe { Tiles::on() };
        // SAFETY: tiles are on; a tile of 16 rows, 64 bytes apart, is read from `ones`. All eight
        // tiles are written before they are used.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tileloadd tmm4, [{ones} + {line}*1]",
                "tileloadd tmm5, [{ones} + {line}*1]",
                "tileloadd tmm6, [{ones} + {line}*1]",
                "tileloadd tmm7, [{ones} + {line}*1]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps}",
                "jnz 2b",
                steps = inout(reg) steps => _,
                ones = in(reg) ones.as_ptr(),
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
        drop(tiles);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isas() -> Vec<Isa> {
        let isas: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.checked().is_ok()).collect();
        assert!(isas.contains(&Isa::Portable));
        isas
    }

    #[test]
    fn every_instruction_set_has_a_rate_of_multiply_adds() {
        let (team, mut cases) = (Team::new(2), 0);
        for isa in isas() {
            for dtype in [DType::F64, DType::F32, DType::Bf16] {
                let rate = multiply_add_gflop_per_s(&team, isa, dtype).unwrap();
                println!("{} {dtype}: {rate:.0} GFLOP/s", isa.name());
                // One multiply-add in 100 cycles of 1 GHz, and more than any processor has.
                assert!(rate > 0.02 && rate < 1e6, "{isa:?} {dtype}: {rate}");
                cases += 1;
            }
        }
        assert_eq!(cases, 3 * isas().len());
    }

    #[test]
    fn a_burst_lasts_as_long_as_it_is_told_to() {
        let team = Team::new(2);
        let adds = MultiplyAdds::new(&team, Isa::Portable, DType::F32).unwrap();
        let (one, took) = adds.burst(Duration::ZERO);
        assert_eq!(one, adds.flops());
        assert!(took > Duration::ZERO);
        let (many, took) = adds.burst(Duration::from_millis(30));
        assert!(took >= Duration::from_millis(30) && many >= one, "{many} in {took:?}");
        assert_eq!(many % one, 0.0);
    }

    #[test]
    fn memory_has_a_rate() {
        let mut cases = 0;
        for threads in [1, 2] {
            let team = Team::new(threads);
            for isa in isas() {
                for bytes in [0, 1 << 20, 32 << 20] {
                    let copy = copy_gb_per_s(&team, isa, bytes).unwrap();
                    let triad = triad_gb_per_s(&team, isa, bytes).unwrap();
                    println!("{} {bytes}: copy {copy:.1}, triad {triad:.1} GB/s", isa.name());
                    assert!(copy > 0.0 && copy.is_finite() && triad > 0.0 && triad.is_finite());
                    if bytes > 0 {
                        assert!(copy > 0.1 && copy < 1e4, "{isa:?} {bytes}: {copy}");
                        assert!(triad > 0.1 && triad < 1e4, "{isa:?} {bytes}: {triad}");
                    }
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 6 * isas().len());
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let team = Team::new(1);
        let error = multiply_add_gflop_per_s(&team, Isa::Portable, DType::U32).unwrap_err();
        assert!(matches!(error, KernelError::NotComputable { held: DType::U32, .. }), "{error}");
        let missing = Isa::ALL.into_iter().find(|isa| isa.checked().is_err());
        if let Some(isa) = missing {
            let error = copy_gb_per_s(&team, isa, 1024).unwrap_err();
            assert!(matches!(error, KernelError::Isa { .. }), "{error}");
        }
    }
}
