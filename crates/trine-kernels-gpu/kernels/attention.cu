// Causal attention of any element type and head size: a block a row. And what all ways of attention share: sums of
// outputs and their gradients, sums over heads, and results that are merged.
//
// Sums are chains of fused multiply-adds in ascending order, of a head's elements, of keys, and of queries.
#include "attention.cuh"

// Threads of a block, and rows that it meets at a time.
constexpr u32 ROWS = 128;

template <class T> TRINE_FN float rounded(float x) {
    T y;
    narrow(y, x);
    return widened(y);
}

template <class T> TRINE_FN float dot(const T* a, const T* b, u32 n) {
    float sum = 0.0f;
    for (u32 i = 0; i < n; i++) sum = trine_fma(widened(a[i]), widened(b[i]), sum);
    return sum;
}

// The largest value of a block's threads, in all of them; `parts` has 32 elements.
TRINE_FN float block_max(float value, float* parts) {
    u32 thread = trine_thread(), lane = thread % TRINE_WARP;
    for (u32 half = TRINE_WARP / 2; half > 0; half /= 2)
        value = larger(trine_from_lane(value, lane ^ half), value);
    if (lane == 0) parts[thread / TRINE_WARP] = value;
    trine_barrier();
    for (u32 warp = 0; warp < trine_threads() / TRINE_WARP; warp++) value = larger(parts[warp], value);
    trine_barrier();
    return value;
}

// sum + Σ weights[r] · x[r], the column of a matrix.
template <class T>
TRINE_FN float add_rows(float sum, const float* weights, const T* x, u64 stride, u32 rows) {
    for (u32 r = 0; r < rows; r++) sum = trine_fma(weights[r], widened(x[r * stride]), sum);
    return sum;
}

template <class T>
TRINE_FN void attention_rows(T* o, float* lse, const T* q, const T* k, const T* v, const u32* document_start,
                             const Attention& a, u32 samples) {
    TRINE_SHARED(float, weights, ROWS);
    TRINE_SHARED(float, parts, 32);
    u32 thread = trine_thread();
    Unit unit = unit_of_block(a, samples);
    u32 query = unit.part;
    Range seen = visible(a, document_start, unit, query);
    u64 row = query_row(a, unit) + query;
    q += row * a.q_stride + query_col(a, unit);
    k += key_row(a, unit) * a.k_stride + key_col(a, unit);
    v += key_row(a, unit) * a.v_stride + key_col(a, unit);
    o += row * a.o_stride + query_col(a, unit);
    // Tiles begin at multiples of their size in the sequence: a row's sum of exponentials depends on its position alone.
    u32 shift = a.key_start % ROWS, first = (shift + seen.from) / ROWS * ROWS;
    float max = LOWEST, sum = 0.0f;
    for (u32 tile = first; tile < shift + seen.end; tile += ROWS) {
        u32 key = tile + thread - shift;
        float score = -infinity();
        if (is_in(seen, key)) score = score_of(a, dot(q, k + (u64)key * a.k_stride, a.head_dim)).bits;
        float top = larger(block_max(score, parts), max);
        sum = sum * trine_exp2(max - top) + trine_block_sum(trine_exp2(score - top), parts);
        max = top;
    }
    if (thread == 0) lse[stat_of(a, unit, query)] = trine_fma(max, LN_2, trine_log(sum));
    float whole = sum == 0.0f ? 1.0f : 1.0f / sum;
    for (u32 col = thread; col - thread < a.head_dim; col += ROWS) {
        float out = 0.0f;
        for (u32 tile = first; tile < shift + seen.end; tile += ROWS) {
            u32 key = tile + thread - shift;
            float p = 0.0f;
            if (is_in(seen, key)) {
                float product = dot(q, k + (u64)key * a.k_stride, a.head_dim);
                p = trine_exp2(score_of(a, product).bits - max);
                if (a.threshold > 0) p = is_kept(a, unit, query, key) ? p * a.kept : 0.0f;
            }
            weights[thread] = rounded<T>(p);
            trine_barrier();
            u32 from = larger(tile, shift + seen.from), rows = smaller(tile + ROWS, shift + seen.end) - from;
            const T* seen_v = v + (u64)(from - shift) * a.v_stride + col;
            if (col < a.head_dim) out = add_rows(out, weights + (from - tile), seen_v, a.v_stride, rows);
            trine_barrier();
        }
        if (col < a.head_dim) narrow(o[col], out * whole);
    }
}
TRINE_KERNEL attention_f32(float* o, float* lse, const float* q, const float* k, const float* v,
                           const u32* document_start, Attention a, u32 samples) {
    attention_rows(o, lse, q, k, v, document_start, a, samples);
}
TRINE_EXPORT(attention_f32)
TRINE_KERNEL attention_bf16(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v,
                            const u32* document_start, Attention a, u32 samples) {
    attention_rows(o, lse, q, k, v, document_start, a, samples);
}
TRINE_EXPORT(attention_bf16)

// delta = Σ dO · O of each query of each head: a warp's lanes take every 32nd element, then halves.
template <class T>
TRINE_FN void attention_deltas(float* delta, const T* d_o, const T* o, u32 rows, u32 queries, u32 heads,
                               u32 head_dim, u32 d_o_stride, u32 o_stride) {
    u32 lane = trine_thread() % TRINE_WARP;
    u64 warp = trine_index() / TRINE_WARP;
    if (warp >= (u64)rows * heads) return;
    u64 row = warp / heads, head = warp % heads;
    d_o += row * d_o_stride + head * head_dim;
    o += row * o_stride + head * head_dim;
    float sum = 0.0f;
    for (u32 i = lane; i < head_dim; i += TRINE_WARP) sum = trine_fma(widened(d_o[i]), widened(o[i]), sum);
    for (u32 half = TRINE_WARP / 2; half > 0; half /= 2) sum += trine_from_lane(sum, lane ^ half);
    if (lane == 0) delta[(row / queries * heads + head) * queries + row % queries] = sum;
}
TRINE_KERNEL attention_deltas_f32(float* delta, const float* d_o, const float* o, u32 rows, u32 queries,
                                  u32 heads, u32 head_dim, u32 d_o_stride, u32 o_stride) {
    attention_deltas(delta, d_o, o, rows, queries, heads, head_dim, d_o_stride, o_stride);
}
TRINE_EXPORT(attention_deltas_f32)
TRINE_KERNEL attention_deltas_bf16(float* delta, const bf16* d_o, const bf16* o, u32 rows, u32 queries,
                                   u32 heads, u32 head_dim, u32 d_o_stride, u32 o_stride) {
    attention_deltas(delta, d_o, o, rows, queries, heads, head_dim, d_o_stride, o_stride);
}
TRINE_EXPORT(attention_deltas_bf16)

// A probability, with what dropout makes of it, and the gradient of the product of query and key.
struct Gradient {
    float p, ds;
};

TRINE_FN Gradient gradient_of(const Attention& a, const Unit& unit, u32 query, u32 key, float product,
                              float dp, float lse, float delta) {
    Score score = score_of(a, product);
    float p = trine_exp2(score.bits - lse * LOG2_E);
    float factor = a.threshold == 0 ? 1.0f : is_kept(a, unit, query, key) ? a.kept : 0.0f;
    return {p * factor, p * (dp * factor - delta) * score.slope};
}

// dQ of a row.
template <class T>
TRINE_FN void attention_dq_rows(T* dq, const T* d_o, const float* lse, const float* delta, const T* q, const T* k,
                                const T* v, const u32* document_start, const Attention& a, u32 samples,
                                u32 dq_stride) {
    TRINE_SHARED(float, weights, ROWS);
    u32 thread = trine_thread();
    Unit unit = unit_of_block(a, samples);
    u32 query = unit.part;
    Range seen = visible(a, document_start, unit, query);
    u64 row = query_row(a, unit) + query, stat = stat_of(a, unit, query);
    q += row * a.q_stride + query_col(a, unit);
    d_o += row * a.o_stride + query_col(a, unit);
    dq += row * dq_stride + query_col(a, unit);
    k += key_row(a, unit) * a.k_stride + key_col(a, unit);
    v += key_row(a, unit) * a.v_stride + key_col(a, unit);
    for (u32 col = thread; col - thread < a.head_dim; col += ROWS) {
        float sum = 0.0f;
        for (u32 tile = seen.from; tile < seen.end; tile += ROWS) {
            u32 key = tile + thread;
            if (key < seen.end) {
                float product = dot(q, k + (u64)key * a.k_stride, a.head_dim);
                float dp = dot(d_o, v + (u64)key * a.v_stride, a.head_dim);
                weights[thread] = rounded<T>(gradient_of(a, unit, query, key, product, dp, lse[stat], delta[stat]).ds);
            }
            trine_barrier();
            const T* tile_k = k + (u64)tile * a.k_stride + col;
            u32 rows = smaller(ROWS, seen.end - tile);
            if (col < a.head_dim) sum = add_rows(sum, weights, tile_k, a.k_stride, rows);
            trine_barrier();
        }
        if (col < a.head_dim) narrow(dq[col], sum);
    }
}
TRINE_KERNEL attention_dq_f32(float* dq, const float* d_o, const float* lse, const float* delta, const float* q,
                              const float* k, const float* v, const u32* document_start, Attention a,
                              u32 samples, u32 dq_stride) {
    attention_dq_rows(dq, d_o, lse, delta, q, k, v, document_start, a, samples, dq_stride);
}
TRINE_EXPORT(attention_dq_f32)
TRINE_KERNEL attention_dq_bf16(bf16* dq, const bf16* d_o, const float* lse, const float* delta, const bf16* q,
                               const bf16* k, const bf16* v, const u32* document_start, Attention a,
                               u32 samples, u32 dq_stride) {
    attention_dq_rows(dq, d_o, lse, delta, q, k, v, document_start, a, samples, dq_stride);
}
TRINE_EXPORT(attention_dq_bf16)

// dK and dV of a row for one query head. Where heads share keys, what each gives lies in `parts` until all are there:
// [2, samples, heads, keys, head_dim].
template <class T>
TRINE_FN void attention_dkv_rows(T* dk, T* dv, float* parts, const T* d_o, const float* lse, const float* delta,
                                 const T* q, const T* k, const T* v, const u32* document_start, const Attention& a,
                                 u32 samples, u32 dk_stride, u32 dv_stride) {
    TRINE_SHARED(float, probabilities, ROWS);
    TRINE_SHARED(float, slopes, ROWS);
    u32 thread = trine_thread();
    Unit unit = unit_of_block(a, samples);
    u32 key = unit.part;
    Range seeing = seeing_queries(a, key, key + 1);
    q += query_row(a, unit) * a.q_stride + query_col(a, unit);
    d_o += query_row(a, unit) * a.o_stride + query_col(a, unit);
    u64 row = key_row(a, unit) + key;
    k += row * a.k_stride + key_col(a, unit);
    v += row * a.v_stride + key_col(a, unit);
    dk += row * dk_stride + key_col(a, unit);
    dv += row * dv_stride + key_col(a, unit);
    parts += part_row(a, unit, key) * a.head_dim;
    u64 values = (u64)samples * a.heads * a.keys * a.head_dim;
    for (u32 col = thread; col - thread < a.head_dim; col += ROWS) {
        float dk_sum = 0.0f, dv_sum = 0.0f;
        for (u32 tile = seeing.from; tile < seeing.end; tile += ROWS) {
            u32 query = tile + thread;
            Gradient gradient = {0.0f, 0.0f};
            if (query < seeing.end && is_in(visible(a, document_start, unit, query), key)) {
                float product = dot(q + (u64)query * a.q_stride, k, a.head_dim);
                float dp = dot(d_o + (u64)query * a.o_stride, v, a.head_dim);
                u64 stat = stat_of(a, unit, query);
                gradient = gradient_of(a, unit, query, key, product, dp, lse[stat], delta[stat]);
            }
            probabilities[thread] = rounded<T>(gradient.p);
            slopes[thread] = rounded<T>(gradient.ds);
            trine_barrier();
            u32 rows = smaller(ROWS, seeing.end - tile);
            if (col < a.head_dim) {
                dk_sum = add_rows(dk_sum, slopes, q + (u64)tile * a.q_stride + col, a.q_stride, rows);
                const T* tile_d_o = d_o + (u64)tile * a.o_stride + col;
                dv_sum = add_rows(dv_sum, probabilities, tile_d_o, a.o_stride, rows);
            }
            trine_barrier();
        }
        if (col >= a.head_dim) continue;
        if (a.group == 1) {
            narrow(dk[col], dk_sum);
            narrow(dv[col], dv_sum);
        } else {
            parts[col] = dk_sum;
            parts[values + col] = dv_sum;
        }
    }
}
TRINE_KERNEL attention_dkv_f32(float* dk, float* dv, float* parts, const float* d_o, const float* lse,
                               const float* delta, const float* q, const float* k, const float* v,
                               const u32* document_start, Attention a, u32 samples, u32 dk_stride, u32 dv_stride) {
    attention_dkv_rows(dk, dv, parts, d_o, lse, delta, q, k, v, document_start, a, samples, dk_stride, dv_stride);
}
TRINE_EXPORT(attention_dkv_f32)
TRINE_KERNEL attention_dkv_bf16(bf16* dk, bf16* dv, float* parts, const bf16* d_o, const float* lse,
                               const float* delta, const bf16* q, const bf16* k, const bf16* v,
                               const u32* document_start, Attention a, u32 samples, u32 dk_stride, u32 dv_stride) {
    attention_dkv_rows(dk, dv, parts, d_o, lse, delta, q, k, v, document_start, a, samples, dk_stride, dv_stride);
}
TRINE_EXPORT(attention_dkv_bf16)

// Σ x[i · stride] over `count` heads in a tree that halves the range.
TRINE_FN float tree_sum(const float* x, u64 stride, u32 count) {
    float sums[32];
    u32 held = 0;
    for (u32 i = 0; i < count; i++) {
        // The way to this leaf: it ends as many sums as the way has turned right last.
        u32 start = 0, len = count, ends = 0;
        while (len > 1) {
            u32 half = len / 2;
            bool is_right = i >= start + half;
            start += is_right ? half : 0;
            len = is_right ? len - half : half;
            ends = is_right ? ends + 1 : 0;
        }
        float sum = x[i * stride];
        for (; ends > 0; ends--) sum = sums[--held] + sum;
        sums[held++] = sum;
    }
    return sums[0];
}

// d[row, kv_head · head_dim + i] = Σ parts over the heads of the group, for one of the two halves of `parts`.
template <class T>
TRINE_FN void attention_sum_heads(T* d, const float* parts, u32 samples, u32 keys, u32 kv_heads,
                                  u32 group, u32 head_dim, u32 stride) {
    u64 head_size = (u64)keys * head_dim;
    for (u64 i = trine_index(); i < samples * kv_heads * head_size; i += trine_all()) {
        u64 unit = i / head_size, row = i % head_size / head_dim, col = i % head_dim;
        float sum = tree_sum(parts + unit * group * head_size + row * head_dim + col, head_size, group);
        narrow(d[(unit / kv_heads * keys + row) * stride + unit % kv_heads * head_dim + col], sum);
    }
}
TRINE_KERNEL attention_sum_heads_f32(float* d, const float* parts, u32 samples, u32 keys, u32 kv_heads,
                                     u32 group, u32 head_dim, u32 stride) {
    attention_sum_heads(d, parts, samples, keys, kv_heads, group, head_dim, stride);
}
TRINE_EXPORT(attention_sum_heads_f32)
TRINE_KERNEL attention_sum_heads_bf16(bf16* d, const float* parts, u32 samples, u32 keys, u32 kv_heads,
                                      u32 group, u32 head_dim, u32 stride) {
    attention_sum_heads(d, parts, samples, keys, kv_heads, group, head_dim, stride);
}
TRINE_EXPORT(attention_sum_heads_bf16)

// (o, lse) and (part_o, part_lse) become one result in place of the first; a warp a row of a head.
template <class T, class S>
TRINE_FN void attention_merge(S* o, float* lse, const T* part_o, const float* part_lse, u32 rows, u32 queries,
                              u32 heads, u32 head_dim, u32 o_stride, u32 part_stride) {
    u32 lane = trine_thread() % TRINE_WARP;
    u64 warp = trine_index() / TRINE_WARP;
    if (warp >= (u64)rows * heads) return;
    u64 row = warp / heads, head = warp % heads;
    u64 stat = (row / queries * heads + head) * queries + row % queries;
    float left = 1.0f, right = 1.0f;
    if (lane == 0) {
        float one = lse[stat], other = part_lse[stat], max = larger(one, other);
        // Neither side has seen a key: −∞ − −∞ would be no number.
        if (one != -infinity() || other != -infinity()) {
            left = trine_exp2((one - max) * LOG2_E);
            right = trine_exp2((other - max) * LOG2_E);
            float sum = left + right;
            lse[stat] = max + trine_log(sum);
            left = left / sum;
            right = right / sum;
        }
    }
    left = trine_from_lane(left, 0);
    right = trine_from_lane(right, 0);
    o += row * o_stride + head * head_dim;
    part_o += row * part_stride + head * head_dim;
    for (u32 i = lane; i < head_dim; i += TRINE_WARP)
        narrow(o[i], widened(o[i]) * left + widened(part_o[i]) * right);
}
TRINE_KERNEL attention_merge_f32_f32(float* o, float* lse, const float* part_o, const float* part_lse, u32 rows,
                                 u32 queries, u32 heads, u32 head_dim, u32 o_stride,
                                 u32 part_stride) {
    attention_merge(o, lse, part_o, part_lse, rows, queries, heads, head_dim, o_stride, part_stride);
}
TRINE_EXPORT(attention_merge_f32_f32)
TRINE_KERNEL attention_merge_bf16_bf16(bf16* o, float* lse, const bf16* part_o, const float* part_lse, u32 rows,
                                  u32 queries, u32 heads, u32 head_dim, u32 o_stride,
                                  u32 part_stride) {
    attention_merge(o, lse, part_o, part_lse, rows, queries, heads, head_dim, o_stride, part_stride);
}
TRINE_EXPORT(attention_merge_bf16_bf16)
TRINE_KERNEL attention_merge_f32_bf16(float* o, float* lse, const bf16* part_o, const float* part_lse, u32 rows,
                                         u32 queries, u32 heads, u32 head_dim, u32 o_stride,
                                         u32 part_stride) {
    attention_merge(o, lse, part_o, part_lse, rows, queries, heads, head_dim, o_stride, part_stride);
}
TRINE_EXPORT(attention_merge_f32_bf16)
