// Products in the order of the CPU's kernels: each element of C is one chain of fused multiply-adds over ascending k,
// started at zero, at its bias or at its old value, and rounded once.
#include "numbers.cuh"

// A block makes [TILE, TILE] elements, a thread [SIDE, SIDE] of them; factors pass through shared memory in steps.
constexpr u32 TILE = 64;
constexpr u32 SIDE = 4;
constexpr u32 STEP = 16;
constexpr u32 THREADS = (TILE / SIDE) * (TILE / SIDE);

enum Start { ZERO, OLD, ROW };

// As `reference.rs` lays it out. Element (outer, k) of a factor lies at outer · outer_stride + k · k_stride, where `outer`
// is a row of A or a column of B.
struct Product {
    u64 a_outer, a_k, b_outer, b_k, c_stride, m, n, k, start;
};

// `STEP` elements of k of `TILE` rows, as [STEP, TILE], zeros outside; neighbours in memory by neighbouring threads.
template <class T>
TRINE_FN void load_step(float* to, const T* x, u64 outer_stride, u64 k_stride, u64 first, u64 outers, u64 k, u64 end) {
    for (u32 i = trine_thread(); i < TILE * STEP; i += THREADS) {
        bool along_k = k_stride == 1;
        u32 outer = along_k ? i / STEP : i % TILE, step = along_k ? i % STEP : i / TILE;
        bool is_there = first + outer < outers && k + step < end;
        u64 at = (first + outer) * outer_stride + (k + step) * k_stride;
        to[step * TILE + outer] = is_there ? widened(x[at]) : 0.0f;
    }
}

template <class T, class C> TRINE_FN void product(C* c, const T* a, const T* b, const T* row, const Product& p) {
    TRINE_SHARED(float, left, STEP * TILE);
    TRINE_SHARED(float, right, STEP * TILE);
    u32 across = u32((p.n + TILE - 1) / TILE);
    u64 first_row = u64(trine_block() / across) * TILE, first_col = u64(trine_block() % across) * TILE;
    u32 own_row = trine_thread() / (TILE / SIDE) * SIDE, own_col = trine_thread() % (TILE / SIDE) * SIDE;
    float sums[SIDE][SIDE];
    for (u32 i = 0; i < SIDE; i++) {
        for (u32 j = 0; j < SIDE; j++) {
            u64 r = first_row + own_row + i, col = first_col + own_col + j;
            sums[i][j] = 0.0f;
            if (r >= p.m || col >= p.n) continue;
            if (p.start == OLD) sums[i][j] = widened(c[r * p.c_stride + col]);
            if (p.start == ROW) sums[i][j] = widened(row[col]);
        }
    }
    for (u64 k = 0; k < p.k; k += STEP) {
        load_step(left, a, p.a_outer, p.a_k, first_row, p.m, k, p.k);
        load_step(right, b, p.b_outer, p.b_k, first_col, p.n, k, p.k);
        trine_barrier();
        // Zeros behind the last element could turn −0 into 0.
        u32 steps = p.k - k < STEP ? u32(p.k - k) : STEP;
        for (u32 step = 0; step < steps; step++) {
            for (u32 i = 0; i < SIDE; i++) {
                for (u32 j = 0; j < SIDE; j++) {
                    float x = left[step * TILE + own_row + i], y = right[step * TILE + own_col + j];
                    sums[i][j] = trine_fma(x, y, sums[i][j]);
                }
            }
        }
        trine_barrier();
    }
    for (u32 i = 0; i < SIDE; i++) {
        for (u32 j = 0; j < SIDE; j++) {
            u64 r = first_row + own_row + i, col = first_col + own_col + j;
            if (r < p.m && col < p.n) narrow(c[r * p.c_stride + col], sums[i][j]);
        }
    }
}

#define PRODUCT(T, C)                                                                                          \
    TRINE_KERNEL_OF(THREADS) product_##T##_##C(C* c, const T* a, const T* b, const T* row, Product p) {        \
        product(c, a, b, row, p);                                                                              \
    }                                                                                                          \
    TRINE_EXPORT(product_##T##_##C)
PRODUCT(f32, f32)
PRODUCT(bf16, bf16)
PRODUCT(bf16, f32)
