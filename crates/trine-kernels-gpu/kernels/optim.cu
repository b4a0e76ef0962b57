// Optimizer steps and the numbers that watch over them, on flat ranges.
#include "numbers.cuh"

// Where the weights are not written a second time.
struct Nowhere {};
TRINE_FN void publish(Nowhere, u64, float) {}
template <class T> TRINE_FN void publish(T* compute, u64 i, float weight) { narrow(compute[i], weight); }

struct AdamW {
    float keep, beta1, one_minus_beta1, beta2, one_minus_beta2, step, root_correction2, eps, grad_scale;
};

// One step of AdamW (arXiv 1711.05101).
template <class C>
TRINE_FN void adamw(float* weights, float* m, float* v, const float* grad, C compute, u64 n, const AdamW& by) {
    EACH(i, n) {
        float g = grad[i] * by.grad_scale;
        float mean = by.beta1 * m[i] + by.one_minus_beta1 * g;
        float square = by.beta2 * v[i] + by.one_minus_beta2 * g * g;
        float root = trine_sqrt(square) * by.root_correction2 + by.eps;
        float weight = weights[i] * by.keep - by.step * (mean / root);
        m[i] = mean;
        v[i] = square;
        weights[i] = weight;
        publish(compute, i, weight);
    }
}

struct Sgd {
    float lr, momentum, weight_decay, grad_scale;
};

// One step of SGD with momentum.
template <class C>
TRINE_FN void sgd(float* weights, float* velocity, const float* grad, C compute, u64 n, const Sgd& by) {
    EACH(i, n) {
        float speed = by.momentum * velocity[i] + (grad[i] * by.grad_scale + by.weight_decay * weights[i]);
        float weight = weights[i] - by.lr * speed;
        velocity[i] = speed;
        weights[i] = weight;
        publish(compute, i, weight);
    }
}

// One without.
template <class C> TRINE_FN void plain_sgd(float* weights, const float* grad, C compute, u64 n, const Sgd& by) {
    EACH(i, n) {
        float weight = weights[i] - by.lr * (grad[i] * by.grad_scale + by.weight_decay * weights[i]);
        weights[i] = weight;
        publish(compute, i, weight);
    }
}

TRINE_KERNEL adamw_alone(float* weights, float* m, float* v, const float* grad, u64 n, AdamW by) {
    adamw(weights, m, v, grad, Nowhere(), n, by);
}
TRINE_EXPORT(adamw_alone)
TRINE_KERNEL sgd_alone(float* weights, float* velocity, const float* grad, u64 n, Sgd by) {
    sgd(weights, velocity, grad, Nowhere(), n, by);
}
TRINE_EXPORT(sgd_alone)
TRINE_KERNEL plain_sgd_alone(float* weights, const float* grad, u64 n, Sgd by) {
    plain_sgd(weights, grad, Nowhere(), n, by);
}
TRINE_EXPORT(plain_sgd_alone)

// With the new weights in a second place and type.
#define PUBLISHED(C) \
    TRINE_KERNEL adamw_##C(float* weights, float* m, float* v, C* compute, const float* grad, u64 n, AdamW by) { \
        adamw(weights, m, v, grad, compute, n, by); \
    } \
    TRINE_EXPORT(adamw_##C) \
    TRINE_KERNEL sgd_##C(float* weights, float* velocity, C* compute, const float* grad, u64 n, Sgd by) { \
        sgd(weights, velocity, grad, compute, n, by); \
    } \
    TRINE_EXPORT(sgd_##C) \
    TRINE_KERNEL plain_sgd_##C(float* weights, C* compute, const float* grad, u64 n, Sgd by) { \
        plain_sgd(weights, grad, compute, n, by); \
    } \
    TRINE_EXPORT(plain_sgd_##C)
PUBLISHED(f32)
PUBLISHED(bf16)

// Lanes of a sum of squares, and elements of a block of it: those of the CPU.
constexpr u32 LANES = 16;
constexpr u32 BLOCK = 4096;

// sums[b] = Σ x² over block b: element i goes to lane i % 16, the lanes are added by halves. A thread a lane.
template <class T> TRINE_FN void block_squares(f64* sums, const T* x, u64 n) {
    u64 lanes = (n + BLOCK - 1) / BLOCK * LANES;
    // Whole warps go on together, as lanes exchange sums.
    for (u64 at = trine_block() * (u64)trine_threads(); at < lanes; at += trine_all()) {
        u64 block = (at + trine_thread()) / LANES, lane = (at + trine_thread()) % LANES;
        f64 sum = 0.0;
        for (u64 i = block * BLOCK + lane; i < n && i < (block + 1) * BLOCK; i += LANES) {
            f64 value = widened(x[i]);
            sum += value * value;
        }
        for (u32 half = LANES / 2; half > 0; half /= 2)
            sum += trine_from_lane(sum, (trine_thread() % TRINE_WARP) ^ half);
        if (lane == 0 && block * BLOCK < n) sums[block] = sum;
    }
}

// The index of the first element that is infinite or no number, of those that a block looks at; else `n`.
template <class T> TRINE_FN void first_non_finite(u64* found, const T* x, u64 n) {
    TRINE_SHARED(u64, of_threads, 256);
    u64 first = n;
    EACH(i, n) if (!is_finite(widened(x[i])) && i < first) first = i;
    of_threads[trine_thread()] = first;
    trine_barrier();
    if (trine_thread() != 0) return;
    for (u32 thread = 1; thread < trine_threads(); thread++)
        first = of_threads[thread] < first ? of_threads[thread] : first;
    found[trine_block()] = first;
}
#define WATCH(T) \
    TRINE_KERNEL block_squares_##T(f64* sums, const T* x, u64 n) { block_squares(sums, x, n); } \
    TRINE_EXPORT(block_squares_##T) \
    TRINE_KERNEL first_non_finite_##T(u64* found, const T* x, u64 n) { first_non_finite(found, x, n); } \
    TRINE_EXPORT(first_non_finite_##T)
WATCH(f32)
WATCH(bf16)

// What a block of `pair_sums` adds.
constexpr u32 PAIRED = 512;

// sums[b] = the sum of values 512 · b to 512 · b + 511 by pairs, pairs of pairs and so on; what is left over goes on.
// With `add` it is added to what is there.
TRINE_KERNEL pair_sums(f64* sums, const f64* values, u64 count, u32 add) {
    TRINE_SHARED(f64, level, PAIRED);
    for (u64 at = trine_block(); at * PAIRED < count; at += trine_blocks()) {
        u64 left = count - at * PAIRED;
        u32 held = left < PAIRED ? (u32)left : PAIRED;
        EACH_COLUMN_OF_THREAD(i, held) level[i] = values[at * PAIRED + i];
        trine_barrier();
        for (; held > 1; held = (held + 1) / 2) {
            u32 i = trine_thread();
            f64 sum = 2 * i < held ? level[2 * i] : 0.0;
            if (2 * i + 1 < held) sum += level[2 * i + 1];
            trine_barrier();
            if (2 * i < held) level[i] = sum;
            trine_barrier();
        }
        if (trine_thread() == 0) sums[at] = add ? sums[at] + level[0] : level[0];
        trine_barrier();
    }
}
TRINE_EXPORT(pair_sums)

// sums[r] = Σ x[r, c], columns in ascending order: a block loads, its first thread adds.
TRINE_KERNEL row_sums(f64* sums, const float* x, u64 rows, u64 cols, u64 stride) {
    TRINE_SHARED(float, tile, 256);
    EACH_ROW_OF_BLOCK(r, rows) {
        f64 sum = 0.0;
        for (u64 from = 0; from < cols; from += trine_threads()) {
            u64 c = from + trine_thread();
            if (c < cols) tile[trine_thread()] = x[r * stride + c];
            trine_barrier();
            if (trine_thread() == 0)
                for (u32 i = 0; i < trine_threads() && from + i < cols; i++) sum += tile[i];
            trine_barrier();
        }
        if (trine_thread() == 0) sums[r] = sum;
    }
}
TRINE_EXPORT(row_sums)
