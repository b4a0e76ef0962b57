//! Products on the tiles of AMX: 32 × 32 of C at a time, of bf16 as they are and of f32 in three parts.
//!
//! The order of an element's sum is the instruction's: groups of 32 products, each group summed by
//! itself (pairs apart, `fma` over ascending k, then odd plus even), the groups added one behind the
//! other. Groups begin at multiples of 32, so blocks, strips and threads do not show in the bits.
//! Subnormal numbers count as zero.

mod bf16;
mod block;
mod f32;

use super::packed::{Factor, PackedKernel, Panels, Side};
use super::{Dims, Initial, Operand, Target};
use crate::Isa;
use crate::num::Num;
use block::Strip;
pub(super) use block::{block, narrow_rows};
pub(crate) use f32::F32_IN_BF16_PRODUCTS;
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// Rows and columns of C that one run of the kernel computes: two tiles each way.
const SIDE: usize = 32;
/// Rows of a tile, and words of its rows.
const TILE: usize = 16;
/// Elements of k in a row of a tile: a step.
const STEP: usize = 32;
/// Bytes of a row of a tile.
const LINE: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = TILE * LINE;

/// What `ldtilecfg` reads: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE_TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Tiles switched on in this thread until dropped: an idle unit keeps context switches cheap. Inside the
/// life of another one it leaves them as they are, now and when it is dropped.
#[derive(Debug)]
pub(crate) struct Tiles {
    /// Whether this one has switched them on.
    owns: bool,
    /// They belong to the thread.
    of_thread: PhantomData<*const ()>,
}

impl Tiles {
    /// Switches them on, with contents that are zero, unless they are on.
    ///
    /// # Safety
    /// The processor has AMX, and the system has allowed the process to use it.
    pub(crate) unsafe fn on() -> Self {
        // The processor knows whether they are: the configuration in use has a palette.
        let mut held = MaybeUninit::<TileConfig>::uninit();
        // SAFETY: `sttilecfg` writes the 64 bytes; the caller's promise on the processor.
        let held = unsafe {
            asm!("sttilecfg [{}]", in(reg) held.as_mut_ptr(), options(nostack));
            held.assume_init()
        };
        let owns = held.palette == 0;
        if owns {
            // SAFETY: the configuration is valid for palette 1; the caller's promise.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE_TILES, options(nostack, readonly));
            }
        }
        Self { owns, of_thread: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.owns {
            // SAFETY: made by `on` only; the type keeps it in its thread.
            unsafe { asm!("tilerelease", options(nostack, nomem)) }
        }
    }
}

/// Numbers that tiles multiply.
pub(super) trait TileElement: Num<Acc = f32> {
    /// Numbers of bf16 that stand for one, in tiles of their own.
    const PARTS: usize;
    /// Steps that one row of tiles of C takes from all columns before it goes on along k: 32 rows of A stay in
    /// the first-level cache from column to column, and there is room for what passes of B. Sums leave the
    /// tiles in between.
    const STEPS_CLOSE: usize;
    /// Steps of a part of a longer k at least: between two parts the sums leave the registers.
    const STEPS_LONG_MIN: usize;

    /// Whether tiles can be loaded from A's rows as they are.
    fn lies_in_tiles(a: Operand<'_, Self>, k: usize) -> bool;

    /// Rows of A in panels, `[panel][2 tiles][step][part][16 rows][32 elements]`; what does not exist is zero.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW and VL.
    unsafe fn pack_a(a: Operand<'_, Self>, rows: usize, ks: usize, out: &mut [u8]);

    /// B's strip, `[panel of 32 columns][step][part][2 tiles][16 pairs of k][16 columns]`.
    ///
    /// # Safety
    /// As above.
    unsafe fn pack_b(b: Operand<'_, Self>, strip: Strip, out: &mut [u8]);

    /// `C = A · B` of 32 × 32 over `steps`, or `C += A · B` with `load`.
    ///
    /// # Safety
    /// Tiles are on. `a` leads to `steps` steps of 32 rows, `b` to as many of packed tiles, `c` to 32 rows
    /// of 32 numbers, `c_stride` bytes apart.
    unsafe fn kernel(steps: usize, a: Rows, b: *const u8, c: *mut f32, c_stride: usize, load: bool);
}

/// Bytes of a step of a panel.
fn panel_step<T: TileElement>() -> usize {
    2 * T::PARTS * TILE_BYTES
}

/// Visits tiles and steps in the order in which a factor lies in memory.
#[inline]
fn in_order<T>(x: Operand<'_, T>, tiles: usize, steps: usize, mut pack: impl FnMut(usize, usize)) {
    if x.k_stride == 1 {
        return (0..tiles).for_each(|tile| (0..steps).for_each(|step| pack(tile, step)));
    }
    (0..steps).for_each(|step| (0..tiles).for_each(|tile| pack(tile, step)));
}

/// Small products of packed factors.
#[derive(Debug)]
pub(super) struct InTiles;

impl<T: TileElement> PackedKernel<T> for InTiles {
    const PANELS: Panels = Panels { rows: SIDE, cols: SIDE, group: STEP, bytes: LINE * T::PARTS };

    unsafe fn pack(_: Isa, side: Side, x: Operand<'_, T>, outers: usize, k: usize, out: &mut [u8]) {
        let strip = Strip { col: 0, cols: outers, k: 0, ks: k, packed: false };
        // SAFETY: the processor has AVX-512.
        unsafe {
            match side {
                Side::A => T::pack_a(x, outers, k, out),
                Side::B => T::pack_b(x, strip, out),
            }
        }
    }

    unsafe fn multiply(_: Isa, dims: Dims, a: Factor<'_>, b: Factor<'_>, c: Target<'_, f32>) {
        let (steps, load) = (dims.k.div_ceil(STEP), matches!(c.initial, Initial::Old));
        let [a_bytes, b_bytes] = [a, b].map(|x| x.k.div_ceil(STEP) * panel_step::<T>());
        for row in (0..dims.m).step_by(SIDE) {
            let upper = a.panels[row / SIDE * a_bytes..].as_ptr();
            let rows = Rows::packed::<T>(upper, a.k.div_ceil(STEP));
            for col in (0..dims.n).step_by(SIDE) {
                let b = b.panels[col / SIDE * b_bytes..].as_ptr();
                let start = c.start.wrapping_add(row * c.stride + col);
                // SAFETY: tiles are on; C and the panels are whole, by the caller's promise.
                unsafe { T::kernel(steps, rows, b, start, c.stride * 4, load) };
            }
        }
    }
}

/// 32 rows of A along k: where the first row's and the 17th row's elements are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    tiles: [*const u8; 2],
    /// Bytes from row to row.
    stride: usize,
    /// Bytes from step to step.
    step: usize,
}

impl Rows {
    /// Packed rows of `steps` steps.
    fn packed<T: TileElement>(start: *const u8, steps: usize) -> Self {
        let step = T::PARTS * TILE_BYTES;
        Self { tiles: [start, start.wrapping_add(steps * step)], stride: LINE, step }
    }

    /// The same rows from a step on.
    fn skip(self, steps: usize) -> Self {
        Self { tiles: self.tiles.map(|tile| tile.wrapping_add(steps * self.step)), ..self }
    }
}

/// Tiles 0 to 3 from C, upper and lower tiles of its left and right half, or zero.
///
/// # Safety
/// Tiles are on; with `load`, `c` points to 32 rows of 32 numbers, `stride` bytes apart.
#[inline(always)]
unsafe fn start_sums(c: *mut f32, stride: usize, load: bool) {
    // SAFETY: the caller's promise. Tile registers keep the sums from here to `store_sums`: between the statements
    // that name them nothing touches them, since the compiler has no use for them.
    unsafe {
        if load {
            asm!(
                "tileloadd tmm0, [{c} + {stride}*1]",
                "tileloadd tmm1, [{c} + {stride}*1 + 64]",
                "tileloadd tmm2, [{below} + {stride}*1]",
                "tileloadd tmm3, [{below} + {stride}*1 + 64]",
                c = in(reg) c, below = in(reg) c.wrapping_byte_add(TILE * stride), stride = in(reg) stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, readonly),
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem),
            );
        }
    }
}

/// Tiles 0 to 3 to C.
///
/// # Safety
/// Tiles are on; `c` points to 32 rows of 32 numbers, `stride` bytes apart, that nobody else touches.
#[inline(always)]
unsafe fn store_sums(c: *mut f32, stride: usize) {
    // SAFETY: the caller's promise; on the registers see `start_sums`.
    unsafe {
        asm!(
            "tilestored [{c} + {stride}*1], tmm0",
            "tilestored [{c} + {stride}*1 + 64], tmm1",
            "tilestored [{below} + {stride}*1], tmm2",
            "tilestored [{below} + {stride}*1 + 64], tmm3",
            c = in(reg) c, below = in(reg) c.wrapping_byte_add(TILE * stride), stride = in(reg) stride,
            options(nostack),
        );
    }
}

/// The body of a kernel: where sums start, `steps` times the instructions given, where sums go. Every kernel has the
/// registers `upper` and `lower` (A's tiles), `b`, and `line` (bytes of a row); those given come on top.
macro_rules! sum_over_steps {
    (
        ($steps:expr, $a:expr, $b:expr), ($c:expr, $c_stride:expr, $load:expr),
        { $($instructions:expr),+ $(,)? },
        $($registers:tt)*
    ) => {
        start_sums($c, $c_stride, $load);
        asm!(
            "test {steps}, {steps}",
            "jz 3f",
            "2:",
            $($instructions,)+
            "dec {steps}",
            "jnz 2b",
            "3:",
            steps = inout(reg) $steps => _,
            upper = inout(reg) $a.tiles[0] => _,
            lower = inout(reg) $a.tiles[1] => _,
            b = inout(reg) $b => _,
            line = in(reg) LINE,
            $($registers)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
        store_sums($c, $c_stride);
    };
}
use sum_over_steps;

/// Quarter `q` is the 16 bytes of run `runs · q + i`, for each `i`: gathered by loads, so that the
/// shuffles that follow stay inside quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters<const RUNS: usize>(run: impl Fn(usize) -> *const __m128i) -> [__m512i; RUNS] {
    let mut out = [_mm512_setzero_si512(); RUNS];
    for (i, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's runs have 16 bytes.
        let load = |q: usize| unsafe { _mm_loadu_si128(run(RUNS * q + i)) };
        let words = _mm512_castsi128_si512(load(0));
        let words = _mm512_mask_broadcast_i32x4(words, 0x00f0, load(1));
        let words = _mm512_mask_broadcast_i32x4(words, 0x0f00, load(2));
        *out = _mm512_mask_broadcast_i32x4(words, 0xf000, load(3));
    }
    out
}
