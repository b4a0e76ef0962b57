// Kernels of the tests: sums, a norm, and column sums in two stages, in f32 and bf16; products of tiles; and two that
// are wrong.
#include "trine.cuh"

TRINE_FN unsigned index_in_grid() { return trine_block() * trine_threads() + trine_thread(); }

struct Line {
    float slope, start, end;
};

// y = 2^(slope · x + start), at most `end`; then the neighbour's logarithm, and one over it.
TRINE_KERNEL_OF(32) line(float* y, const float* x, Line line) {
    unsigned lane = trine_thread();
    float power = trine_exp2(trine_fma(line.slope, x[lane], line.start));
    unsigned next = trine_bits(power < line.end ? power : line.end);
    float other = trine_float(trine_from_lane(next, lane ^ 1));
    y[lane] = power;
    y[32 + lane] = trine_log(other);
    y[64 + lane] = trine_reciprocal(other);
}
TRINE_EXPORT(line)

// y = a + b, element by element.
template <class T> TRINE_FN void add(T* y, const T* a, const T* b, unsigned n) {
    for (unsigned i = index_in_grid(); i < n; i += trine_blocks() * trine_threads())
        narrow(y[i], widened(a[i]) + widened(b[i]));
}
TRINE_KERNEL add_f32(float* y, const float* a, const float* b, unsigned n) { add(y, a, b, n); }
TRINE_EXPORT(add_f32)
TRINE_KERNEL add_bf16(bf16* y, const bf16* a, const bf16* b, unsigned n) { add(y, a, b, n); }
TRINE_EXPORT(add_bf16)

// y = x · rstd · gamma and rstd = 1 / sqrt(mean(x²) + eps), a block a row.
template <class T> TRINE_FN void rms_norm(T* y, float* rstd, const T* x, const T* gamma, unsigned cols, float eps) {
    TRINE_SHARED(float, parts, 32);
    unsigned long long row = trine_block();
    x += row * cols;
    y += row * cols;
    float squares = 0.0f;
    for (unsigned c = trine_thread(); c < cols; c += trine_threads()) squares += widened(x[c]) * widened(x[c]);
    float r = 1.0f / trine_sqrt(trine_block_sum(squares, parts) / float(cols) + eps);
    if (trine_thread() == 0) rstd[row] = r;
    for (unsigned c = trine_thread(); c < cols; c += trine_threads())
        narrow(y[c], widened(x[c]) * r * widened(gamma[c]));
}
TRINE_KERNEL rms_norm_f32(float* y, float* rstd, const float* x, const float* gamma, unsigned cols, float eps) {
    rms_norm(y, rstd, x, gamma, cols, eps);
}
TRINE_EXPORT(rms_norm_f32)
TRINE_KERNEL rms_norm_bf16(bf16* y, float* rstd, const bf16* x, const bf16* gamma, unsigned cols, float eps) {
    rms_norm(y, rstd, x, gamma, cols, eps);
}
TRINE_EXPORT(rms_norm_bf16)

// parts[p, c] = Σ x[r, c] over the rows of part p, in their order; a thread a column, a row of blocks a part.
template <class T>
TRINE_FN void column_parts(float* parts, const T* x, unsigned rows, unsigned cols, unsigned part_rows) {
    unsigned c = index_in_grid(), part = trine_block_y(), end = (part + 1) * part_rows;
    if (c >= cols) return;
    float sum = 0.0f;
    for (unsigned r = part * part_rows; r < end && r < rows; r++) sum += widened(x[(unsigned long long)r * cols + c]);
    parts[(unsigned long long)part * cols + c] = sum;
}
TRINE_KERNEL column_parts_f32(float* parts, const float* x, unsigned rows, unsigned cols, unsigned part_rows) {
    column_parts(parts, x, rows, cols, part_rows);
}
TRINE_EXPORT(column_parts_f32)
TRINE_KERNEL column_parts_bf16(float* parts, const bf16* x, unsigned rows, unsigned cols, unsigned part_rows) {
    column_parts(parts, x, rows, cols, part_rows);
}
TRINE_EXPORT(column_parts_bf16)

// sums[c] += Σ parts[p, c], in the order of the parts.
TRINE_KERNEL column_sums(float* sums, const float* parts, unsigned count, unsigned cols) {
    unsigned c = index_in_grid();
    if (c >= cols) return;
    float sum = 0.0f;
    for (unsigned p = 0; p < count; p++) sum += parts[(unsigned long long)p * cols + c];
    sums[c] += sum;
}
TRINE_EXPORT(column_sums)

TRINE_FN unsigned pair(bf16 low, bf16 high) { return low.bits | unsigned(high.bits) << 16; }

// c[16, 16] += a[16, 16] · b[16, 16], whose factors the lanes read where the dialect says that they belong; b lies by
// columns.
TRINE_KERNEL tiles_by_hand(float* c, const bf16* a, const bf16* b) {
    unsigned lane = trine_thread(), outer = lane / 4, k = lane % 4 * 2;
    unsigned left[4];
    for (unsigned i = 0; i < 4; i++) {
        const bf16* at = a + (outer + i % 2 * 8) * 16 + k + i / 2 * 8;
        left[i] = pair(at[0], at[1]);
    }
    for (unsigned half = 0; half < 16; half += 8) {
        unsigned right[2];
        for (unsigned i = 0; i < 2; i++) {
            const bf16* at = b + (half + outer) * 16 + k + i * 8;
            right[i] = pair(at[0], at[1]);
        }
        float sums[4];
        for (unsigned i = 0; i < 4; i++) sums[i] = c[(outer + i / 2 * 8) * 16 + half + k + i % 2];
        trine_mma(sums, left, right);
        for (unsigned i = 0; i < 4; i++) c[(outer + i / 2 * 8) * 16 + half + k + i % 2] = sums[i];
    }
}
TRINE_EXPORT(tiles_by_hand)

// The same by way of shared memory; b lies by columns, or by rows (turned).
TRINE_KERNEL tiles_of_shared_memory(float* c, const bf16* a, const bf16* b, unsigned is_turned) {
    TRINE_SHARED(bf16, factors, 512);
    unsigned lane = trine_thread(), outer = lane / 4, col = lane % 4 * 2;
    for (unsigned i = lane; i < 256; i += TRINE_WARP) {
        factors[i] = a[i];
        factors[256 + i] = b[i];
    }
    trine_barrier();
    unsigned left[4], right[4];
    trine_load_tiles(left, factors + lane % 16 * 16 + lane / 16 * 8);
    const bf16* second = factors + 256;
    if (is_turned) trine_load_turned_tiles(right, second + lane % 16 * 16 + lane / 16 * 8);
    else trine_load_tiles(right, second + (lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8);
    for (unsigned half = 0; half < 2; half++) {
        unsigned one[2] = {right[2 * half], right[2 * half + 1]};
        float sums[4];
        for (unsigned i = 0; i < 4; i++) sums[i] = c[(outer + i / 2 * 8) * 16 + half * 8 + col + i % 2];
        trine_mma(sums, left, one);
        for (unsigned i = 0; i < 4; i++) c[(outer + i / 2 * 8) * 16 + half * 8 + col + i % 2] = sums[i];
    }
}
TRINE_EXPORT(tiles_of_shared_memory)

// Tiles of memory that is not shared, and whose rows do not begin at multiples of 16 bytes.
TRINE_KERNEL misplaced_tiles(unsigned* y, const unsigned* x) {
    TRINE_SHARED(unsigned, rows, 256);
    for (unsigned i = trine_thread(); i < 256; i += TRINE_WARP) rows[i] = x[i];
    trine_barrier();
    unsigned tiles[4];
    trine_load_tiles(tiles, x);
    y[trine_thread()] = tiles[0];
    trine_load_tiles(tiles, rows + trine_thread() * 4 + 1);
    y[trine_thread()] += tiles[0];
}
TRINE_EXPORT(misplaced_tiles)

// The first barrier of a block's sum is missing.
TRINE_KERNEL sum_without_barrier(float* sum, const float* x) {
    TRINE_SHARED(float, parts, 32);
    unsigned thread = trine_thread();
    if (thread % TRINE_WARP == 0) parts[thread / TRINE_WARP] = x[thread];
    if (thread != 0) return;
    float all = 0.0f;
    for (unsigned warp = 0; warp < trine_threads() / TRINE_WARP; warp++) all += parts[warp];
    sum[0] = all;
}
TRINE_EXPORT(sum_without_barrier)
