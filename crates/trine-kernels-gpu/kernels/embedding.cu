// Rows of a table, looked up and added to.
#include "numbers.cuh"

// y[r] = table[ids[r] - first_row], zeros where the table has no such row.
template <class T>
TRINE_FN void embedding(T* y, const u32* ids, const T* table, u64 tokens, u64 cols, u64 first_row, u64 table_rows) {
    EACH_ROW(r, tokens) {
        u64 row = (u64)ids[r] - first_row; // below the first row it wraps around
        EACH_COLUMN(c, cols) {
            if (row < table_rows) y[r * cols + c] = table[row * cols + c];
            else narrow(y[r * cols + c], 0.0f);
        }
    }
}

// The smallest over the threads of a block, the same in all of them.
TRINE_FN u32 block_min(u32 value, u32* parts) {
    u32 thread = trine_thread(), lane = thread % TRINE_WARP;
    for (u32 half = TRINE_WARP / 2; half > 0; half /= 2) {
        u32 other = trine_from_lane(value, lane ^ half);
        value = other < value ? other : value;
    }
    if (lane == 0) parts[thread / TRINE_WARP] = value;
    trine_barrier();
    for (u32 warp = 0; warp < trine_threads() / TRINE_WARP; warp++) value = parts[warp] < value ? parts[warp] : value;
    trine_barrier();
    return value;
}

// Chains the tokens of each row of the table: next[r] is the next token with the id of token r, `tokens` if there is
// none; first[r] is 1 for the first of a chain whose row the table has, else 0. A block a token.
TRINE_KERNEL embedding_chains(u32* next, u32* first, const u32* ids, u32 tokens, u64 first_row, u64 table_rows) {
    TRINE_SHARED(u32, parts, TRINE_WARP);
    EACH_ROW_OF_BLOCK(r, tokens) {
        u32 id = ids[r], found = tokens, earlier = tokens;
        bool has_row = (u64)id - first_row < table_rows;
        for (u64 from = 0; has_row && from < r && earlier == tokens; from += trine_threads()) {
            u64 at = from + trine_thread();
            earlier = block_min(at < r && ids[at] == id ? (u32)at : tokens, parts);
        }
        for (u64 from = r + 1; has_row && from < tokens && found == tokens; from += trine_threads()) {
            u64 at = from + trine_thread();
            found = block_min(at < tokens && ids[at] == id ? (u32)at : tokens, parts);
        }
        if (trine_thread() == 0) {
            next[r] = found;
            first[r] = has_row && earlier == tokens;
        }
    }
}
TRINE_EXPORT(embedding_chains)

// dtable[ids[r] - first_row] += dy[r], tokens in ascending order: whoever has the first of a chain follows it.
template <class T>
TRINE_FN void embedding_backward(float* dtable, const u32* next, const u32* first, const u32* ids, const T* dy,
                                 u64 tokens, u64 cols, u64 first_row) {
    EACH_ROW(r, tokens) {
        if (!first[r]) continue;
        EACH_COLUMN(c, cols) {
            float& d = dtable[(ids[r] - first_row) * cols + c];
            float sum = d;
            for (u64 token = r; token < tokens; token = next[token]) sum += widened(dy[token * cols + c]);
            d = sum;
        }
    }
}
#define EMBEDDING(T) \
    TRINE_KERNEL embedding_##T(T* y, const u32* ids, const T* table, u64 tokens, u64 cols, u64 first_row, \
                               u64 table_rows) { \
        embedding(y, ids, table, tokens, cols, first_row, table_rows); \
    } \
    TRINE_EXPORT(embedding_##T) \
    TRINE_KERNEL embedding_backward_##T(float* dtable, const u32* next, const u32* first, const u32* ids, const T* dy, \
                                        u64 tokens, u64 cols, u64 first_row) { \
        embedding_backward(dtable, next, first, ids, dy, tokens, cols, first_row); \
    } \
    TRINE_EXPORT(embedding_backward_##T)
EMBEDDING(f32)
EMBEDDING(bf16)
