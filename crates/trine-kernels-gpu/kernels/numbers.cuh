// Numbers: types under short names, functions with the polynomials of the CPU's kernels, sums in a fixed order.
// Nothing is contracted: where a product and a sum are rounded once, the source says so with `trine_fma`.
#pragma once
#include "trine.cuh"

typedef unsigned u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

constexpr float LOG2_E = 1.44269504088896340736f;
TRINE_FN float infinity() { return trine_float(0x7f800000u); }

// A place among all threads of the grid's first direction, and their number.
TRINE_FN u64 trine_index() { return (u64)trine_block() * trine_threads() + trine_thread(); }
TRINE_FN u64 trine_all() { return (u64)trine_blocks() * trine_threads(); }
// All rows of a matrix, and the columns of one: blocks share rows in the second direction, threads columns in the first.
#define EACH_ROW(r, rows) for (u64 r = trine_block_y(); r < rows; r += trine_blocks_y())
#define EACH_COLUMN(c, cols) for (u64 c = trine_index(); c < cols; c += trine_all())
// All elements of a vector.
#define EACH(i, n) EACH_COLUMN(i, n)
// All rows, a block each, and the columns of one among the threads of the block.
#define EACH_ROW_OF_BLOCK(r, rows) for (u64 r = trine_block(); r < rows; r += trine_blocks())
#define EACH_COLUMN_OF_THREAD(c, cols) for (u64 c = trine_thread(); c < cols; c += trine_threads())

// The larger; `other` if x is no number.
TRINE_FN float larger(float x, float other) { return x > other ? x : other; }

TRINE_FN bool is_finite(float x) { return (trine_bits(x) & 0x7f800000u) != 0x7f800000u; }

// e^x by 2^n · e^r, |r| <= ln 2 / 2: below one unit in the last place; 0 where it is below the smallest normal number.
TRINE_FN float exponential(float x) {
    constexpr float MAGIC = 12582912.0f; // 1.5 · 2^23: adding it rounds to an integer
    float bounded = x > 88.7f ? 88.7f : x;
    bounded = bounded < -87.3f ? -87.3f : bounded;
    float shifted = trine_fma(bounded, LOG2_E, MAGIC);
    float n = shifted - MAGIC;
    float r = trine_fma(n, -1.4286068e-6f, trine_fma(n, -0.69314575f, bounded));
    float p = trine_fma(r, 1.0f / 5040.0f, 1.0f / 720.0f);
    p = trine_fma(r, p, 1.0f / 120.0f);
    p = trine_fma(r, p, 1.0f / 24.0f);
    p = trine_fma(r, p, 1.0f / 6.0f);
    p = trine_fma(r, p, 0.5f);
    p = trine_fma(r, p, 1.0f);
    p = trine_fma(r, p, 1.0f);
    // n lies in -126..=128, and 2^128 is beyond the exponents: the last factor of two comes apart.
    u32 low = trine_bits(shifted) - trine_bits(MAGIC) - 1u;
    float y = p * trine_float((low + 127u) << 23) * 2.0f;
    return x < -87.3f ? 0.0f : y;
}

// 2^x for x below 127, exactly 1 of 0; 0 where it is below the smallest normal number.
TRINE_FN float power_of_two(float x) {
    constexpr float MAGIC = 12583039.0f; // 1.5 · 2^23 + 127: the low bits are the biased exponent
    float shifted = x + MAGIC;
    float r = x - (shifted - MAGIC);
    float p = trine_fma(r, 0.00015594678f, 0.0013406643f);
    p = trine_fma(r, p, 0.009617693f);
    p = trine_fma(r, p, 0.055503104f);
    p = trine_fma(r, p, 0.24022652f);
    p = trine_fma(r, p, 0.69314724f);
    p = trine_fma(r, p, 1.0f);
    float y = p * trine_float(trine_bits(shifted) << 23);
    return x < -126.0f ? 0.0f : y;
}

// 1 - 2 / (e^2x + 1); near 0 a polynomial, which keeps the digits that the difference loses.
TRINE_FN float hyperbolic_tangent(float x) {
    float size = x < 0.0f ? -x : x;
    float bounded = size > 10.0f ? 10.0f : size;
    float far = 1.0f - 2.0f / (power_of_two(bounded * (2.0f * LOG2_E)) + 1.0f);
    float square = x * x;
    float p = trine_fma(square, -5.7049887e-3f, 2.0639088e-2f);
    p = trine_fma(square, p, -5.3739716e-2f);
    p = trine_fma(square, p, 1.3331442e-1f);
    p = trine_fma(square, p, -3.333328e-1f);
    float near = trine_fma(p * square, x, x);
    return size < 0.625f ? near : (x < 0.0f ? -far : far);
}

// The error function's complement at x >= 0: an absolute error below 1.5e-7 (Abramowitz and Stegun 7.1.26).
TRINE_FN float complement_of_error(float x) {
    float t = 1.0f / trine_fma(0.3275911f, x, 1.0f);
    float p = trine_fma(t, 1.0614054f, -1.4531521f);
    p = trine_fma(t, p, 1.4214138f);
    p = trine_fma(t, p, -0.28449672f);
    p = trine_fma(t, p, 0.2548296f);
    return t * p * exponential(-x * x);
}

// The sum of a balanced tree that halves the range of `count` numbers, which lie `step` apart and are lost: each
// node's sum is kept where its range begins, from the leaves on.
TRINE_FN float tree_sum(float* x, u64 step, u32 count) {
    if (count == 0) return 0.0f;
    u32 depth = 0;
    while (1u << depth < count) depth++;
    for (u32 level = depth; level-- > 0;)
        for (u32 node = 0; node < 1u << level; node++) {
            u32 start = 0, end = count;
            for (u32 bit = level; bit-- > 0;) {
                u32 middle = start + (end - start) / 2;
                if (node >> bit & 1u) start = middle;
                else end = middle;
            }
            if (end - start >= 2) x[start * step] += x[(start + (end - start) / 2) * step];
        }
    return x[0];
}
// The most blocks that a sum over a row may be cut into.
constexpr u32 BLOCKS_MAX = 64;
