// What kernels of attention share: the problem, which keys a query sees, scores, and dropout of probabilities.
#pragma once
#include "numbers.cuh"
#include "philox.cuh"

// As `attention.rs` lays it out.
struct Attention {
    u64 dropout_key;
    u64 threshold; // words below it drop; 0: there is no dropout
    u32 queries, keys, heads, group; // `group` heads share a key head
    u32 head_dim, query_start, key_start;
    u32 window; // 0: there is none
    u32 has_documents;
    u32 step, first_sample, first_head; // of dropout
    float kept;                              // the factor of what dropout keeps
    float scale, softcap;                    // a cap of 0: there is none
    u32 q_stride, k_stride, v_stride;
    u32 o_stride; // of o; in the backward pass of its gradient
    float curve; // 1 / (softcap · log₂ e)², 0 without a cap
};

constexpr float LOWEST = -3.40282347e38f;
constexpr float LN_2 = 0.693147181f;

// A part of a head of a sample.
struct Unit {
    u32 part, sample, head;
};

// Parts of all heads of all samples lie side by side in the grid, those of one place together.
TRINE_FN Unit unit_of_block(const Attention& a, u32 samples) {
    u32 heads = a.heads * samples, head = trine_block() % heads;
    return {trine_block() / heads, head / a.heads, head % a.heads};
}

TRINE_FN u64 query_row(const Attention& a, const Unit& unit) {
    return (u64)unit.sample * a.queries;
}
TRINE_FN u64 key_row(const Attention& a, const Unit& unit) {
    return (u64)unit.sample * a.keys;
}
// The first column of the head among those of queries, and of keys.
TRINE_FN u32 query_col(const Attention& a, const Unit& unit) { return unit.head * a.head_dim; }
TRINE_FN u32 key_col(const Attention& a, const Unit& unit) { return unit.head / a.group * a.head_dim; }
// The place of `lse` and of other values of a query.
TRINE_FN u64 stat_of(const Attention& a, const Unit& unit, u32 query) {
    return ((u64)unit.sample * a.heads + unit.head) * a.queries + query;
}

// The row of a key in what one query head gives to gradients of keys: [samples, heads, keys].
TRINE_FN u64 part_row(const Attention& a, const Unit& unit, u32 key) {
    return ((u64)unit.sample * a.heads + unit.head) * a.keys + key;
}

struct Range {
    u32 from, end;
};

TRINE_FN bool is_in(const Range& range, u32 at) { return at - range.from < range.end - range.from; }
TRINE_FN u32 smaller(u32 a, u32 b) { return a < b ? a : b; }
TRINE_FN u32 larger(u32 a, u32 b) { return a > b ? a : b; }

// The keys that a query sees; none for one that is not there. No keys are always the same range.
TRINE_FN Range visible(const Attention& a, const u32* document_start, const Unit& unit, u32 query) {
    if (query >= a.queries) return {0, 0};
    u64 own = (u64)a.query_start + query, first = 0;
    if (a.has_documents) first = document_start[query_row(a, unit) + query];
    if (first > own) first = own;
    if (a.window > 0 && own + 1 > first + a.window) first = own + 1 - a.window;
    u64 end = own + 1 > a.key_start ? own + 1 - a.key_start : 0;
    if (end > a.keys) end = a.keys;
    first = first > a.key_start ? first - a.key_start : 0;
    if (first >= end) return {0, 0};
    return {u32(first), u32(end)};
}

// The queries that may see some of the keys `from..end`.
TRINE_FN Range seeing_queries(const Attention& a, u32 from, u32 end) {
    u64 first = (u64)a.key_start + from;
    u64 last = (u64)a.key_start + end - 1 + a.window;
    first = first > a.query_start ? first - a.query_start : 0;
    last = last > a.query_start ? last - a.query_start : 0;
    if (a.window == 0 || last > a.queries) last = a.queries;
    return {u32(first < last ? first : last), u32(last)};
}

// The smallest range with both in it; an empty one counts for nothing.
TRINE_FN Range joined(const Range& a, const Range& b) {
    if (a.from == a.end) return b;
    if (b.from == b.end) return a;
    return {smaller(a.from, b.from), larger(a.end, b.end)};
}

// The smallest range with those of all lanes in it.
TRINE_FN Range joined_of_warp(Range range) {
    u32 lane = trine_thread() % TRINE_WARP;
    for (u32 half = TRINE_WARP / 2; half > 0; half /= 2) {
        Range other = {trine_from_lane(range.from, lane ^ half), trine_from_lane(range.end, lane ^ half)};
        range = joined(range, other);
    }
    return range;
}

// A score, times log₂ e, and the factor from its gradient to that of the product of query and key.
struct Score {
    float bits, slope;
};

// The error of tanh is about that of 1.
TRINE_FN float quick_tanh(float x) { return 1.0f - 2.0f * trine_reciprocal(1.0f + trine_exp2(2.0f * LOG2_E * x)); }

TRINE_FN Score score_of(const Attention& a, float product) {
    if (a.softcap == 0.0f) return {product * (a.scale * LOG2_E), a.scale};
    float t = quick_tanh(product * (a.scale / a.softcap));
    return {t * (a.softcap * LOG2_E), a.scale * (1.0f - t * t)};
}

// The random words of a probability and its neighbours: the key's own one has the number (key + key_start) % 4. The key
// may lie before the call's first one: its number then wraps.
TRINE_FN Words words_at(const Attention& a, const Unit& unit, u32 query, u32 key) {
    u64 head = (u64)a.first_head + unit.head;
    u64 row = head << 48 | ((u64)a.query_start + query) << 24;
    u64 element = row | u32(a.key_start + key);
    return mask_words(a.dropout_key, a.step, a.first_sample + unit.sample, element / 4);
}

TRINE_FN bool is_kept(const Attention& a, const Unit& unit, u32 query, u32 key) {
    Words words = words_at(a, unit, query, key);
    u32 place = (a.key_start + key) % 4;
    return (place == 0 ? words.x : place == 1 ? words.y : place == 2 ? words.z : words.w) >= a.threshold;
}
