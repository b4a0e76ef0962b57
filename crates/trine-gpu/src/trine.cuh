// The dialect of trine's kernels: one source for nvcc, NVRTC and the simulated GPU. No header of a toolkit is included.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#define TRINE_KERNEL extern "C" __global__ void
// The same of a kernel that blocks of at most so many threads run: more registers for each.
#define TRINE_KERNEL_OF(threads) extern "C" __global__ void __launch_bounds__(threads)
#define TRINE_FN static __device__ __forceinline__
// The same for a function of a struct.
#define TRINE_METHOD __device__ __forceinline__
// Memory that the threads of a block share.
#define TRINE_SHARED(T, name, count) __shared__ T name[count]
// Tells the simulated GPU of a kernel; a compiler for GPUs knows it anyway.
#define TRINE_EXPORT(kernel)

TRINE_FN unsigned trine_thread() { return threadIdx.x; }
TRINE_FN unsigned trine_threads() { return blockDim.x; }
TRINE_FN unsigned trine_block() { return blockIdx.x; }
TRINE_FN unsigned trine_block_y() { return blockIdx.y; }
TRINE_FN unsigned trine_blocks() { return gridDim.x; }
TRINE_FN unsigned trine_blocks_y() { return gridDim.y; }
TRINE_FN void trine_barrier() { __syncthreads(); }
TRINE_FN float trine_from_lane(float value, unsigned lane) { return __shfl_sync(0xffffffffu, value, lane); }
TRINE_FN unsigned trine_from_lane(unsigned value, unsigned lane) { return __shfl_sync(0xffffffffu, value, lane); }
TRINE_FN double trine_from_lane(double value, unsigned lane) { return __shfl_sync(0xffffffffu, value, lane); }
TRINE_FN float trine_sqrt(float x) { return __fsqrt_rn(x); }
TRINE_FN float trine_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
TRINE_FN float trine_log(float x) { return logf(x); }
// To two units in the last place; results below 2⁻¹²⁶ are 0.
TRINE_FN float trine_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// To one unit in the last place.
TRINE_FN float trine_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Two numbers, each rounded to the nearest bf16, in a word.
TRINE_FN unsigned trine_bf16_pair(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
TRINE_FN float trine_float(unsigned bits) { return __uint_as_float(bits); }
TRINE_FN unsigned trine_bits(float value) { return __float_as_uint(value); }
TRINE_FN void trine_mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
TRINE_FN void trine_load_tiles(unsigned (&tiles)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}
TRINE_FN void trine_load_turned_tiles(unsigned (&tiles)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

#else

#include "trine_sim.hpp"

TRINE_FN unsigned trine_thread() { return sim_thread(0); }
TRINE_FN unsigned trine_threads() { return sim_threads(0); }
TRINE_FN unsigned trine_block() { return sim_block(0); }
TRINE_FN unsigned trine_block_y() { return sim_block(1); }
TRINE_FN unsigned trine_blocks() { return sim_blocks(0); }
TRINE_FN unsigned trine_blocks_y() { return sim_blocks(1); }
TRINE_FN void trine_barrier() { sim_barrier(); }
TRINE_FN float trine_from_lane(float value, unsigned lane) {
    float other;
    sim_shuffle(&other, &value, sizeof value, lane);
    return other;
}
TRINE_FN unsigned trine_from_lane(unsigned value, unsigned lane) {
    unsigned other;
    sim_shuffle(&other, &value, sizeof value, lane);
    return other;
}
TRINE_FN double trine_from_lane(double value, unsigned lane) {
    double other;
    sim_shuffle(&other, &value, sizeof value, lane);
    return other;
}
TRINE_FN float trine_sqrt(float x) { return __builtin_sqrtf(x); }
TRINE_FN float trine_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
TRINE_FN float trine_log(float x) { return __builtin_logf(x); }
TRINE_FN float trine_exp2(float x) { return __builtin_exp2f(x); }
TRINE_FN float trine_reciprocal(float x) { return 1.0f / x; }
TRINE_FN float trine_float(unsigned bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
TRINE_FN unsigned trine_bits(float value) {
    unsigned bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}
TRINE_FN void trine_mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { sim_mma(c, a, b); }
TRINE_FN void trine_load_tiles(unsigned (&tiles)[4], const void* row) { sim_load_tiles(tiles, row, false); }
TRINE_FN void trine_load_turned_tiles(unsigned (&tiles)[4], const void* row) { sim_load_tiles(tiles, row, true); }

#endif

// Products of tiles on tensor cores, in which a warp shares each matrix: `trine_mma` is c[16, 8] += a[16, 16] · b[16, 8]
// with factors of bf16, two in a word. Lane i has of c the elements (i / 4, 2 · (i % 4) + {0, 1}) and the same 8 rows
// further; of a the words (i / 4, 2 · (i % 4) + {0, 1}), the same 8 rows further, and both again 8 columns further; of b
// the pairs of rows 2 · (i % 4) + {0, 1} in column i / 4, and 8 rows further. A device sums in an order of its own; the
// simulated one has a chain of fused multiply-adds over ascending k.
// `trine_load_tiles` gets four tiles of [8, 8] from shared memory: lane i names row i % 8 of tile i / 8, whose 16 bytes
// begin at a multiple of 16, and receives of each tile the word (i / 4, 2 · (i % 4) + {0, 1}). Turned: of its transpose.
constexpr unsigned TRINE_WARP = 32;

struct bf16 {
    unsigned short bits;
};

TRINE_FN float widened(float x) { return x; }
TRINE_FN float widened(bf16 x) { return trine_float(unsigned(x.bits) << 16); }

// To the nearest, ties to even; what is no number stays none.
TRINE_FN void narrow(float& y, float x) { y = x; }
TRINE_FN void narrow(bf16& y, float x) {
    unsigned bits = trine_bits(x);
    unsigned rounded = x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    y.bits = (unsigned short)(rounded >> 16);
}

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
TRINE_FN unsigned trine_bf16_pair(float low, float high) {
    bf16 first, second;
    narrow(first, low);
    narrow(second, high);
    return first.bits | unsigned(second.bits) << 16;
}
#endif

// The sum over the threads of a block, the same in all of them: warps by halves, then the block in order of its warps.
// The block has whole warps, at most 32; `parts` has 32 elements.
TRINE_FN float trine_block_sum(float value, float* parts) {
    unsigned thread = trine_thread(), lane = thread % TRINE_WARP;
    for (unsigned half = TRINE_WARP / 2; half > 0; half /= 2) value += trine_from_lane(value, lane ^ half);
    if (lane == 0) parts[thread / TRINE_WARP] = value;
    trine_barrier();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < trine_threads() / TRINE_WARP; warp++) sum += parts[warp];
    trine_barrier();
    return sum;
}
