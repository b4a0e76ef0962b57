//! The loops around the register tile.

use super::micro::{Feed, Micro};
use super::{Dims, Operand, Target, pack, prefetch_rows};
use crate::Isa;
use crate::isa::vectorised;
use crate::num::Num;
use crate::scratch::Scratch;
use bytemuck::Zeroable;

/// Steps of `k` between two packings: a panel of B then stays in the second-level cache.
const STEPS: usize = 512;
/// Rows of A packed at a time: with a panel of B they fill the second-level cache of a server's core (less than 1 MiB
/// of f32), and B comes from the third-level cache once for all of them.
const MC: usize = 384;
/// Columns of B packed at a time: they stay in the third-level cache, and the packing of A, done
/// once for each such block, is small beside the products.
const NC: usize = 1536;
/// Rows of C whose unfinished sums are kept in f32 when C itself is of a poorer type.
const CARRY_ROWS: usize = 2048;
/// Elements of the largest tile.
const TILE: usize = 512;

/// The product on one thread.
///
/// # Safety
/// As `GemmElement::gemm`, and the processor has the features of `M`.
pub(super) unsafe fn block<M, T, C>(
    isa: Isa,
    scratch: &mut Scratch<'_>,
    dims: Dims,
    a: Operand<'_, T>,
    b: Operand<'_, T>,
    c: Target<'_, C>,
) where
    M: Feed<T> + Micro<Acc = T::Acc>,
    T: Num,
    C: Num<Acc = T::Acc>,
{
    let ks = STEPS * M::GROUP;
    let carries = C::DTYPE != <T::Acc as trine_buffer::Element>::DTYPE && dims.k > ks;
    let steps = dims.k.min(ks).div_ceil(M::GROUP);
    let nc = dims.n.min(NC).next_multiple_of(M::NR);
    let rows = dims.m.min(MC).next_multiple_of(M::MR);
    let carry = if carries { dims.m.min(CARRY_ROWS) * nc } else { 0 };
    // One piece of memory for all three, each part a whole number of cache lines.
    let lines = |elements: usize, size: usize| (elements * size).next_multiple_of(64);
    let a_bytes = lines(rows * steps, size_of::<M::Packed>());
    let b_bytes = lines(nc * steps, size_of::<M::Packed>());
    let carry_bytes = lines(carry, size_of::<M::Acc>());
    let bytes = scratch.slice::<u8>(a_bytes + b_bytes + carry_bytes);
    let (packed_a, rest) = bytes.split_at_mut(a_bytes);
    let (packed_b, carry) = rest.split_at_mut(b_bytes);
    let run = Run::<M, T, C> {
        a,
        b,
        c,
        k: dims.k,
        packed_a: bytemuck::cast_slice_mut(packed_a),
        packed_b: bytemuck::cast_slice_mut(packed_b),
        carry: bytemuck::cast_slice_mut(carry),
        carry_stride: nc,
    };
    loops(isa, run, dims);
}

/// The state of one product.
struct Run<'a, M: Micro, T, C> {
    a: Operand<'a, T>,
    b: Operand<'a, T>,
    c: Target<'a, C>,
    k: usize,
    packed_a: &'a mut [M::Packed],
    packed_b: &'a mut [M::Packed],
    /// Unfinished sums of the rows and columns at work.
    carry: &'a mut [M::Acc],
    carry_stride: usize,
}

/// The block of C at work.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// First row, and the first of those whose sums are carried.
    row: usize,
    carry_row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    k_start: usize,
    ks: usize,
}

vectorised! {
    fn loops<M: Feeding>(run: M, dims: Dims) {
        let mut run = run;
        let ks_max = STEPS * M::GROUP;
        for carry_row in (0..dims.m).step_by(CARRY_ROWS) {
            let row_end = dims.m.min(carry_row + CARRY_ROWS);
            for col in (0..dims.n).step_by(NC) {
                let cols = NC.min(dims.n - col);
                let mut k_start = 0;
                loop {
                    let ks = ks_max.min(dims.k - k_start);
                    run.pack_b(col, cols, k_start, ks);
                    for row in (carry_row..row_end).step_by(MC) {
                        let rows = MC.min(row_end - row);
                        run.tiles(Place { row, carry_row, rows, col, cols, k_start, ks });
                    }
                    k_start += ks;
                    if k_start >= dims.k {
                        break;
                    }
                }
            }
        }
    }
}

/// What the loops need of a run; it keeps their generic parameters to one.
trait Feeding {
    const GROUP: usize;
    fn pack_b(&mut self, col: usize, cols: usize, k_start: usize, ks: usize);
    fn tiles(&mut self, place: Place);
}

impl<M, T, C> Feeding for Run<'_, M, T, C>
where
    M: Feed<T> + Micro<Acc = T::Acc>,
    T: Num,
    C: Num<Acc = T::Acc>,
{
    const GROUP: usize = M::GROUP;

    #[inline(always)]
    fn pack_b(&mut self, col: usize, cols: usize, k_start: usize, ks: usize) {
        let len = cols.next_multiple_of(M::NR) * ks.div_ceil(M::GROUP);
        let out = &mut self.packed_b[..len];
        pack::panels::<M, T>(self.b.skip(col), M::NR, cols, k_start, ks, out);
    }

    #[inline(always)]
    fn tiles(&mut self, place: Place) {
        let steps = place.ks.div_ceil(M::GROUP);
        let len = place.rows.next_multiple_of(M::MR) * steps;
        let out = &mut self.packed_a[..len];
        let a = self.a.skip(place.row);
        pack::panels::<M, T>(a, M::MR, place.rows, place.k_start, place.ks, out);
        for col in (0..place.cols).step_by(M::NR) {
            for row in (0..place.rows).step_by(M::MR) {
                // SAFETY: the tile lies inside C, by the promise of `block`'s caller.
                unsafe { self.tile(place, steps, row, col) };
            }
        }
    }
}

impl<M, T, C> Run<'_, M, T, C>
where
    M: Feed<T> + Micro<Acc = T::Acc>,
    T: Num,
    C: Num<Acc = T::Acc>,
{
    /// The tile at `row`, `col` of the place.
    #[inline(always)]
    unsafe fn tile(&mut self, place: Place, steps: usize, row: usize, col: usize) {
        let rows = M::MR.min(place.rows - row);
        let cols = M::NR.min(place.cols - col);
        let a = self.packed_a[row * steps..].as_ptr();
        let b = self.packed_b[col * steps..].as_ptr();
        let first = place.k_start == 0;
        let last = place.k_start + place.ks >= self.k;
        let load = !first || !self.c.initial.is_zero();
        let row_of_all =
            self.c.initial.row().filter(|_| first).map(|start| &start[place.col + col..][..cols]);
        let direct = C::DTYPE == <M::Acc as trine_buffer::Element>::DTYPE;
        let tile_at = |row, col| {
            self.c.start.wrapping_add((place.row + row) * self.c.stride + place.col + col)
        };
        let c = tile_at(row, col);
        let next = if row + M::MR < place.rows {
            tile_at(row + M::MR, col)
        } else {
            tile_at(0, col + M::NR)
        };
        prefetch_rows(next, M::MR, M::NR, self.c.stride);
        if direct && rows == M::MR && cols == M::NR {
            // SAFETY: C holds `M::Acc` and the tile is whole, as is its part of the row that all start
            // from; the panels hold `steps` steps.
            unsafe {
                if let Some(start) = row_of_all {
                    for row in 0..rows {
                        c.add(row * self.c.stride).copy_from_nonoverlapping(start.as_ptr(), cols);
                    }
                }
                M::run(steps, a, b, M::NR, c.cast(), self.c.stride, load);
            }
            return;
        }
        const { assert!(M::MR * M::NR <= TILE, "the buffer must hold every kernel's tile") };
        let mut tile = [M::Acc::zeroed(); TILE];
        let carry = (place.row - place.carry_row + row) * self.carry_stride + col;
        for i in 0..rows {
            let tile = &mut tile[i * M::NR..][..cols];
            if !first && !direct {
                tile.copy_from_slice(&self.carry[carry + i * self.carry_stride..][..cols]);
            } else if load {
                // SAFETY: a row of C inside the tile.
                let old = || unsafe { std::slice::from_raw_parts(c.add(i * self.c.stride), cols) };
                let c = row_of_all.unwrap_or_else(old);
                for (tile, c) in tile.iter_mut().zip(c) {
                    *tile = c.widen();
                }
            }
        }
        // SAFETY: the tile is whole, and the panels hold `steps` steps.
        unsafe { M::run(steps, a, b, M::NR, tile.as_mut_ptr(), M::NR, load) };
        for i in 0..rows {
            let tile = &tile[i * M::NR..][..cols];
            if !last && !direct {
                self.carry[carry + i * self.carry_stride..][..cols].copy_from_slice(tile);
                continue;
            }
            // SAFETY: as above.
            let c = unsafe { std::slice::from_raw_parts_mut(c.add(i * self.c.stride), cols) };
            for (c, tile) in c.iter_mut().zip(tile) {
                *c = C::narrow(*tile);
            }
        }
    }
}
