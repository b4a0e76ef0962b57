// Causal attention on tensor cores, in the structure of FlashAttention-2 (arXiv 2307.08691): bf16 with heads of 64, 80,
// 96 or 128 elements. Scores exist one tile at a time. A block has four warps, each with 16 rows of its tile.
//
// Tiles of keys begin at multiples of their size in the sequence, and what a row does not see enters as exact zeros: so
// a row's sums depend on its position alone. There are no atomics: a block meets all tiles that its rows see.
#include "attention.cuh"

constexpr u32 WARPS = 4;
constexpr u32 THREADS = WARPS * TRINE_WARP;
// Rows of a block: of queries, or of keys where their gradients are made.
constexpr u32 ROWS = 16 * WARPS;
// Rows of the tiles that a block meets one after another: forward, and backward.
constexpr u32 COLS = 64;
constexpr u32 COLS_BACK = 32;

// Eight elements.
struct alignas(16) Piece {
    u32 x, y, z, w;
};
constexpr u32 PIECE = 8;

// Pieces from row to row in shared memory, for rows of D elements: eight of them begin in different banks.
template <u32 D> constexpr u32 PITCH = D / PIECE + 1;

// Rows `first..first + count` of x go to shared memory, zeros for those outside of `0..end`. Row numbers may wrap.
template <u32 D>
TRINE_FN void load_rows(Piece* to, const bf16* x, u32 stride, u32 first, u32 count, u32 end) {
    for (u32 i = trine_thread(); i < count * (D / PIECE); i += THREADS) {
        u32 row = i / (D / PIECE), piece = i % (D / PIECE), at = first + row;
        Piece value = {0, 0, 0, 0};
        if (at < end) value = *(const Piece*)(x + (u64)at * stride + piece * PIECE);
        to[row * PITCH<D> + piece] = value;
    }
}

// The lane's part of 16 rows of a tile as left factor, from column 16 · k on.
template <u32 D> TRINE_FN void left_factor(u32 (&a)[4], const Piece* tile, u32 row, u32 k) {
    u32 lane = trine_thread() % TRINE_WARP;
    trine_load_tiles(a, tile + (row + lane % 16) * PITCH<D> + 2 * k + lane / 16);
}

// The transposes of 16 rows of a tile as two right factors of eight columns, from column 16 · k of the rows on.
template <u32 D> TRINE_FN void right_factors(u32 (&b)[4], const Piece* tile, u32 row, u32 k) {
    u32 lane = trine_thread() % TRINE_WARP;
    trine_load_tiles(b, tile + (row + lane % 8 + lane / 16 * 8) * PITCH<D> + 2 * k + lane / 8 % 2);
}

// 16 rows of a tile as two right factors of eight columns, from column 16 · n on.
template <u32 D>
TRINE_FN void right_factors_of_rows(u32 (&b)[4], const Piece* tile, u32 row, u32 n) {
    u32 lane = trine_thread() % TRINE_WARP;
    trine_load_turned_tiles(b, tile + (row + lane % 16) * PITCH<D> + 2 * n + lane / 16);
}

TRINE_FN void multiply_both(float (&c)[4], float (&next)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    trine_mma(c, a, first);
    trine_mma(next, a, second);
}

template <u32 N> TRINE_FN void clear(float (&values)[N][4]) {
#pragma unroll
    for (u32 n = 0; n < N; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) values[n][i] = 0.0f;
    }
}

// products = left · rowsᵀ over D; the left factor is in registers.
template <u32 D, u32 N>
TRINE_FN void multiply(float (&products)[N][4], const u32 (&left)[D / 16][4], const Piece* rows) {
    clear(products);
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
#pragma unroll
        for (u32 n = 0; n < N; n += 2) {
            u32 b[4];
            right_factors<D>(b, rows, n * 8, k);
            multiply_both(products[n], products[n + 1], left[k], b);
        }
    }
}

// The same; the left factor is 16 rows of a tile.
template <u32 D, u32 N>
TRINE_FN void multiply(float (&products)[N][4], const Piece* left, u32 row, const Piece* rows) {
    clear(products);
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
        u32 a[4];
        left_factor<D>(a, left, row, k);
#pragma unroll
        for (u32 n = 0; n < N; n += 2) {
            u32 b[4];
            right_factors<D>(b, rows, n * 8, k);
            multiply_both(products[n], products[n + 1], a, b);
        }
    }
}

// sums += p · rows; p is rounded to bf16.
template <u32 D, u32 N>
TRINE_FN void add_products(float (&sums)[D / 8][4], const float (&p)[N][4], const Piece* rows) {
#pragma unroll
    for (u32 j = 0; j < N; j += 2) {
        u32 left[4] = {trine_bf16_pair(p[j][0], p[j][1]), trine_bf16_pair(p[j][2], p[j][3]),
                            trine_bf16_pair(p[j + 1][0], p[j + 1][1]), trine_bf16_pair(p[j + 1][2], p[j + 1][3])};
#pragma unroll
        for (u32 n = 0; n < D / 8; n += 2) {
            u32 b[4];
            right_factors_of_rows<D>(b, rows, j * 8, n / 2);
            multiply_both(sums[n], sums[n + 1], left, b);
        }
    }
}

// Products of queries and keys become scores, times log₂ e.
template <u32 N> TRINE_FN void make_scores(const Attention& a, float (&s)[N][4]) {
    if (a.softcap > 0.0f) {
        float inner = a.scale / a.softcap, outer = a.softcap * LOG2_E;
#pragma unroll
        for (u32 n = 0; n < N; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) s[n][i] = outer * quick_tanh(s[n][i] * inner);
        }
    } else {
        float factor = a.scale * LOG2_E;
#pragma unroll
        for (u32 n = 0; n < N; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) s[n][i] *= factor;
        }
    }
}

// Which of the lane's elements of a tile dropout keeps, a bit each; the tile's rows are queries. In a loop that is not
// unrolled: the generator stands in the kernel once.
template <u32 N>
TRINE_FN u32 kept_bits(const Attention& a, const Unit& unit, u32 query, u32 key) {
    u32 bits = 0;
#pragma unroll 1
    for (u32 i = 0; i < 2 * N; i++) {
        u32 at = key + i / 2 * 8;
        // The first of the pair is at an even position.
        Words words = words_at(a, unit, query + i % 2 * 8, at);
        bool is_second = (a.key_start + at) % 4 != 0;
        u32 first = (is_second ? words.z : words.x) >= a.threshold;
        u32 second = (is_second ? words.w : words.y) >= a.threshold;
        bits |= (first | second << 1) << 2 * i;
    }
    return bits;
}

// The same; the tile's rows are keys.
template <u32 N>
TRINE_FN u32 kept_bits_by_keys(const Attention& a, const Unit& unit, u32 key, u32 query) {
    u32 bits = 0;
#pragma unroll 1
    for (u32 i = 0; i < 4 * N; i++)
        bits |= u32(is_kept(a, unit, query + i / 4 * 8 + i % 2, key + i / 2 % 2 * 8)) << i;
    return bits;
}

TRINE_FN float kept_factor(const Attention& a, u32 bits, u32 i) { return bits >> i & 1 ? a.kept : 0.0f; }

// o and the logarithms of sums. A block has the queries of a tile of a head; those that see most come first.
template <u32 D>
TRINE_FN void attention_tiles(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v,
                              const u32* document_start, const Attention& a, u32 samples) {
    TRINE_SHARED(Piece, keys, COLS * PITCH<D>);
    TRINE_SHARED(Piece, values, COLS * PITCH<D>);
    u32 lane = trine_thread() % TRINE_WARP, warp = trine_thread() / TRINE_WARP;
    Unit unit = unit_of_block(a, samples);
    u32 query = ((a.queries + ROWS - 1) / ROWS - 1 - unit.part) * ROWS, own = query + warp * 16 + lane / 4;
    q += query_row(a, unit) * a.q_stride + query_col(a, unit);
    k += key_row(a, unit) * a.k_stride + key_col(a, unit);
    v += key_row(a, unit) * a.v_stride + key_col(a, unit);

    load_rows<D>(keys, q, a.q_stride, query, ROWS, a.queries);
    trine_barrier();
    u32 left[D / 16][4];
#pragma unroll
    for (u32 i = 0; i < D / 16; i++) left_factor<D>(left[i], keys, warp * 16, i);

    Range seen[2] = {visible(a, document_start, unit, own), visible(a, document_start, unit, own + 8)};
    Range all = joined_of_warp(joined(visible(a, document_start, unit, query + lane),
                                      visible(a, document_start, unit, query + TRINE_WARP + lane)));
    // The first tile may begin before the call's first key: the number of its first row then wraps.
    u32 shift = a.key_start % COLS;
    float max[2] = {LOWEST, LOWEST}, sum[2] = {0.0f, 0.0f}, out[D / 8][4];
    clear(out);
    for (u32 tile = (shift + all.from) / COLS * COLS; tile < shift + all.end; tile += COLS) {
        trine_barrier();
        load_rows<D>(keys, k, a.k_stride, tile - shift, COLS, a.keys);
        load_rows<D>(values, v, a.v_stride, tile - shift, COLS, a.keys);
        trine_barrier();
        float s[COLS / 8][4];
        multiply<D>(s, left, keys);
        make_scores(a, s);
        u32 key = tile - shift + lane % 4 * 2;
        float top[2] = {max[0], max[1]};
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (!is_in(seen[i / 2], key + n * 8 + i % 2)) s[n][i] = -infinity();
                top[i / 2] = larger(s[n][i], top[i / 2]);
            }
        }
        float shrink[2];
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            top[r] = larger(trine_from_lane(top[r], lane ^ 1), top[r]);
            top[r] = larger(trine_from_lane(top[r], lane ^ 2), top[r]);
            shrink[r] = trine_exp2(max[r] - top[r]);
            max[r] = top[r];
            sum[r] *= shrink[r];
        }
#pragma unroll
        for (u32 n = 0; n < COLS / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                s[n][i] = trine_exp2(s[n][i] - max[i / 2]);
                sum[i / 2] += s[n][i];
            }
        }
        if (a.threshold > 0) {
            u32 bits = kept_bits<COLS / 8>(a, unit, own, key);
#pragma unroll
            for (u32 n = 0; n < COLS / 8; n++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) s[n][i] *= kept_factor(a, bits, 4 * n + i);
            }
        }
#pragma unroll
        for (u32 n = 0; n < D / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) out[n][i] *= shrink[i / 2];
        }
        add_products<D>(out, s, values);
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        sum[r] += trine_from_lane(sum[r], lane ^ 1);
        sum[r] += trine_from_lane(sum[r], lane ^ 2);
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        u32 row = own + 8 * r;
        if (row >= a.queries) continue;
        if (lane % 4 == 0) lse[stat_of(a, unit, row)] = trine_fma(max[r], LN_2, trine_log(sum[r]));
        float whole = sum[r] == 0.0f ? 1.0f : 1.0f / sum[r];
        bf16* to = o + (query_row(a, unit) + row) * a.o_stride + query_col(a, unit) + lane % 4 * 2;
#pragma unroll
        for (u32 n = 0; n < D / 8; n++)
            *(unsigned*)(to + n * 8) = trine_bf16_pair(out[n][2 * r] * whole, out[n][2 * r + 1] * whole);
    }
}

// The lane's part of row `8 · r` of sums.
template <u32 D> TRINE_FN void store_row(bf16* to, const float (&sums)[D / 8][4], u32 r) {
#pragma unroll
    for (u32 n = 0; n < D / 8; n++) *(u32*)(to + n * 8) = trine_bf16_pair(sums[n][2 * r], sums[n][2 * r + 1]);
}
struct alignas(8) Both {
    float first, second;
};
template <u32 D> TRINE_FN void store_row(float* to, const float (&sums)[D / 8][4], u32 r) {
#pragma unroll
    for (u32 n = 0; n < D / 8; n++) *(Both*)(to + n * 8) = {sums[n][2 * r], sums[n][2 * r + 1]};
}

// A score and dP become P (with dropout) and dS.
TRINE_FN void make_gradients(const Attention& a, float& p, float& dp, bool is_seen, float lse_bits, float delta,
                             float factor) {
    float whole = trine_exp2(p - lse_bits), slope = a.scale * (1.0f - p * p * a.curve);
    p = is_seen ? whole * factor : 0.0f;
    dp = is_seen ? whole * (dp * factor - delta) * slope : 0.0f;
}

// dQ. A block has the queries of a tile of a head.
template <u32 D>
TRINE_FN void attention_dq_tiles(bf16* dq, const bf16* d_o, const float* lse, const float* delta, const bf16* q,
                                 const bf16* k, const bf16* v, const u32* document_start, const Attention& a,
                                 u32 samples, u32 dq_stride) {
    TRINE_SHARED(Piece, pieces, 2 * COLS_BACK * PITCH<D>);
    Piece *keys = pieces, *values = pieces + COLS_BACK * PITCH<D>;
    u32 lane = trine_thread() % TRINE_WARP, warp = trine_thread() / TRINE_WARP;
    Unit unit = unit_of_block(a, samples);
    u32 query = ((a.queries + ROWS - 1) / ROWS - 1 - unit.part) * ROWS, own = query + warp * 16 + lane / 4;
    q += query_row(a, unit) * a.q_stride + query_col(a, unit);
    d_o += query_row(a, unit) * a.o_stride + query_col(a, unit);
    k += key_row(a, unit) * a.k_stride + key_col(a, unit);
    v += key_row(a, unit) * a.v_stride + key_col(a, unit);

    u32 left_q[D / 16][4], left_d_o[D / 16][4];
    load_rows<D>(pieces, q, a.q_stride, query, ROWS, a.queries);
    trine_barrier();
#pragma unroll
    for (u32 i = 0; i < D / 16; i++) left_factor<D>(left_q[i], pieces, warp * 16, i);
    trine_barrier();
    load_rows<D>(pieces, d_o, a.o_stride, query, ROWS, a.queries);
    trine_barrier();
#pragma unroll
    for (u32 i = 0; i < D / 16; i++) left_factor<D>(left_d_o[i], pieces, warp * 16, i);

    Range seen[2] = {visible(a, document_start, unit, own), visible(a, document_start, unit, own + 8)};
    Range all = joined_of_warp(joined(visible(a, document_start, unit, query + lane),
                                      visible(a, document_start, unit, query + TRINE_WARP + lane)));
    float lse_bits[2] = {0.0f, 0.0f}, row_delta[2] = {0.0f, 0.0f};
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        if (own + 8 * r >= a.queries) continue;
        lse_bits[r] = lse[stat_of(a, unit, own + 8 * r)] * LOG2_E;
        row_delta[r] = delta[stat_of(a, unit, own + 8 * r)];
    }
    u32 shift = a.key_start % COLS_BACK;
    float sums[D / 8][4];
    clear(sums);
    for (u32 tile = (shift + all.from) / COLS_BACK * COLS_BACK; tile < shift + all.end; tile += COLS_BACK) {
        trine_barrier();
        load_rows<D>(keys, k, a.k_stride, tile - shift, COLS_BACK, a.keys);
        load_rows<D>(values, v, a.v_stride, tile - shift, COLS_BACK, a.keys);
        trine_barrier();
        float p[COLS_BACK / 8][4], ds[COLS_BACK / 8][4];
        multiply<D>(p, left_q, keys);
        multiply<D>(ds, left_d_o, values);
        make_scores(a, p);
        u32 key = tile - shift + lane % 4 * 2;
        u32 bits = a.threshold > 0 ? kept_bits<COLS_BACK / 8>(a, unit, own, key) : 0;
#pragma unroll
        for (u32 n = 0; n < COLS_BACK / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                float factor = a.threshold > 0 ? kept_factor(a, bits, 4 * n + i) : 1.0f;
                bool is_seen = is_in(seen[i / 2], key + n * 8 + i % 2);
                make_gradients(a, p[n][i], ds[n][i], is_seen, lse_bits[i / 2], row_delta[i / 2], factor);
            }
        }
        add_products<D>(sums, ds, keys);
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        if (own + 8 * r >= a.queries) continue;
        bf16* to = dq + (query_row(a, unit) + own + 8 * r) * dq_stride + query_col(a, unit) + lane % 4 * 2;
#pragma unroll
        for (u32 n = 0; n < D / 8; n++)
            *(unsigned*)(to + n * 8) = trine_bf16_pair(sums[n][2 * r], sums[n][2 * r + 1]);
    }
}

// dK and dV. A block has the keys of a tile for one query head; those that are seen by most come first. Where heads share
// keys, what each gives lies in `parts` until all are there: [2, samples, heads, keys, D].
template <u32 D>
TRINE_FN void attention_dkv_tiles(bf16* dk_rows, bf16* dv_rows, float* parts, const bf16* d_o, const float* lse,
                                  const float* delta, const bf16* q, const bf16* k, const bf16* v,
                                  const u32* document_start, const Attention& a, u32 samples, u32 dk_stride,
                                  u32 dv_stride) {
    TRINE_SHARED(Piece, keys, ROWS * PITCH<D>);
    TRINE_SHARED(Piece, queries, COLS_BACK * PITCH<D>);
    TRINE_SHARED(Piece, d_outs, COLS_BACK * PITCH<D>);
    TRINE_SHARED(Range, seen, COLS_BACK);
    TRINE_SHARED(float, lse_bits, COLS_BACK);
    TRINE_SHARED(float, deltas, COLS_BACK);
    u32 lane = trine_thread() % TRINE_WARP, warp = trine_thread() / TRINE_WARP;
    Unit unit = unit_of_block(a, samples);
    u32 key = unit.part * ROWS, key_end = smaller(key + ROWS, a.keys), own = key + warp * 16 + lane / 4;
    q += query_row(a, unit) * a.q_stride + query_col(a, unit);
    d_o += query_row(a, unit) * a.o_stride + query_col(a, unit);
    k += key_row(a, unit) * a.k_stride + key_col(a, unit);
    v += key_row(a, unit) * a.v_stride + key_col(a, unit);

    u32 values[D / 16][4];
    load_rows<D>(keys, v, a.v_stride, key, ROWS, a.keys);
    trine_barrier();
#pragma unroll
    for (u32 i = 0; i < D / 16; i++) left_factor<D>(values[i], keys, warp * 16, i);
    trine_barrier();
    load_rows<D>(keys, k, a.k_stride, key, ROWS, a.keys);

    Range seeing = seeing_queries(a, key, key_end);
    float dk[D / 8][4], dv[D / 8][4];
    clear(dk);
    clear(dv);
    for (u32 tile = seeing.from / COLS_BACK * COLS_BACK; tile < seeing.end; tile += COLS_BACK) {
        // A lane looks at a query: all warps agree on whether one of them sees a key of the block.
        Range own_seen = visible(a, document_start, unit, tile + lane);
        Range all = joined_of_warp(own_seen);
        if (all.from >= key_end || all.end <= key) continue;
        trine_barrier();
        load_rows<D>(queries, q, a.q_stride, tile, COLS_BACK, a.queries);
        load_rows<D>(d_outs, d_o, a.o_stride, tile, COLS_BACK, a.queries);
        if (warp == 0) {
            bool is_there = tile + lane < a.queries;
            seen[lane] = own_seen;
            lse_bits[lane] = is_there ? lse[stat_of(a, unit, tile + lane)] * LOG2_E : 0.0f;
            deltas[lane] = is_there ? delta[stat_of(a, unit, tile + lane)] : 0.0f;
        }
        trine_barrier();
        float p[COLS_BACK / 8][4], ds[COLS_BACK / 8][4];
        multiply<D>(p, keys, warp * 16, queries);
        multiply<D>(ds, values, d_outs);
        make_scores(a, p);
        u32 col = lane % 4 * 2;
        u32 bits = a.threshold > 0 ? kept_bits_by_keys<COLS_BACK / 8>(a, unit, own, tile + col) : 0;
#pragma unroll
        for (u32 n = 0; n < COLS_BACK / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 at = n * 8 + col + i % 2;
                float factor = a.threshold > 0 ? kept_factor(a, bits, 4 * n + i) : 1.0f;
                bool is_seen = is_in(seen[at], own + i / 2 * 8);
                make_gradients(a, p[n][i], ds[n][i], is_seen, lse_bits[at], deltas[at], factor);
            }
        }
        add_products<D>(dv, p, d_outs);
        add_products<D>(dk, ds, queries);
    }
    float* dv_parts = parts + (u64)samples * a.heads * a.keys * D;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        u32 row = own + 8 * r, col = lane % 4 * 2;
        if (row >= a.keys) continue;
        if (a.group == 1) {
            u64 at = key_row(a, unit) + row;
            store_row<D>(dk_rows + at * dk_stride + key_col(a, unit) + col, dk, r);
            store_row<D>(dv_rows + at * dv_stride + key_col(a, unit) + col, dv, r);
        } else {
            u64 at = part_row(a, unit, row) * D + col;
            store_row<D>(parts + at, dk, r);
            store_row<D>(dv_parts + at, dv, r);
        }
    }
}

#define TRINE_ATTENTION(D)                                                                                      \
    TRINE_KERNEL_OF(THREADS)                                                                                     \
    attention_##D(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v,                             \
                  const u32* document_start, Attention a, u32 samples) {                              \
        attention_tiles<D>(o, lse, q, k, v, document_start, a, samples);                                        \
    }                                                                                                           \
    TRINE_EXPORT(attention_##D)                                                                                 \
    TRINE_KERNEL_OF(THREADS)                                                                                     \
    attention_dq_##D(bf16* dq, const bf16* d_o, const float* lse, const float* delta, const bf16* q,            \
                     const bf16* k, const bf16* v, const u32* document_start, Attention a,                 \
                     u32 samples, u32 dq_stride) {                                                    \
        attention_dq_tiles<D>(dq, d_o, lse, delta, q, k, v, document_start, a, samples, dq_stride);             \
    }                                                                                                           \
    TRINE_EXPORT(attention_dq_##D)                                                                              \
    TRINE_KERNEL_OF(THREADS)                                                                                     \
    attention_dkv_##D(bf16* dk, bf16* dv, float* parts, const bf16* d_o, const float* lse, const float* delta,  \
                      const bf16* q, const bf16* k, const bf16* v, const u32* document_start, Attention a,      \
                      u32 samples, u32 dk_stride, u32 dv_stride) {                                              \
        attention_dkv_tiles<D>(dk, dv, parts, d_o, lse, delta, q, k, v, document_start, a, samples, dk_stride,  \
                               dv_stride);                                                                      \
    }                                                                                                           \
    TRINE_EXPORT(attention_dkv_##D)

TRINE_ATTENTION(64)
TRINE_ATTENTION(80)
TRINE_ATTENTION(96)
TRINE_ATTENTION(128)
