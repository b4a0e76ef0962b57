// The dialect of trine's kernels: one source for nvcc, NVRTC and the simulated GPU. No header of a toolkit is included.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)

#define TRINE_KERNEL extern "C" __global__ void
#define TRINE_FN static __device__ __forceinline__
// Memory that the threads of a block share.
#define TRINE_SHARED(T, name, count) __shared__ T name[count]
// Tells the simulated GPU of a kernel; a compiler for GPUs knows it anyway.
#define TRINE_EXPORT(kernel)

TRINE_FN unsigned trine_thread() { return threadIdx.x; }
TRINE_FN unsigned trine_threads() { return blockDim.x; }
TRINE_FN unsigned trine_block() { return blockIdx.x; }
TRINE_FN unsigned trine_block_y() { return blockIdx.y; }
TRINE_FN unsigned trine_blocks() { return gridDim.x; }
TRINE_FN void trine_barrier() { __syncthreads(); }
TRINE_FN float trine_from_lane(float value, unsigned lane) { return __shfl_sync(0xffffffffu, value, lane); }
TRINE_FN float trine_sqrt(float x) { return __fsqrt_rn(x); }
TRINE_FN float trine_float(unsigned bits) { return __uint_as_float(bits); }
TRINE_FN unsigned trine_bits(float value) { return __float_as_uint(value); }

#else

#include "trine_sim.hpp"

TRINE_FN unsigned trine_thread() { return sim_thread(0); }
TRINE_FN unsigned trine_threads() { return sim_threads(0); }
TRINE_FN unsigned trine_block() { return sim_block(0); }
TRINE_FN unsigned trine_block_y() { return sim_block(1); }
TRINE_FN unsigned trine_blocks() { return sim_blocks(0); }
TRINE_FN void trine_barrier() { sim_barrier(); }
TRINE_FN float trine_from_lane(float value, unsigned lane) {
    float other;
    sim_shuffle(&other, &value, sizeof value, lane);
    return other;
}
TRINE_FN float trine_sqrt(float x) { return __builtin_sqrtf(x); }
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

#endif

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
