// Dropout: masks that are functions of global coordinates.
#include "numbers.cuh"
#include "philox.cuh"

// y = x · mask · kept; element (token, feature) of a sample is dropped if its word is below `threshold`. A thread draws
// the words of four features that begin at a multiple of four.
template <class T>
TRINE_FN void dropout(T* y, const T* x, u64 rows, u64 cols, u64 to, u64 from, u64 tokens, u64 first_token,
                      u64 first_feature, u64 key, u32 step, u32 first_sample, u64 threshold, float kept) {
    u64 before = first_feature % 4;
    EACH_ROW(r, rows) EACH_COLUMN(q, (before + cols + 3) / 4) {
        u64 token = first_token + r % tokens;
        u64 block = (token << 32 | first_feature) / 4 + q;
        Words words = mask_words(key, step, first_sample + (u32)(r / tokens), block);
        u32 each[4] = {words.x, words.y, words.z, words.w};
        for (u32 w = 0; w < 4; w++) {
            u64 c = 4 * q + w - before;
            if (c >= cols) continue; // also those before the first column: there c has wrapped around
            narrow(y[r * to + c], widened(x[r * from + c]) * (each[w] < threshold ? 0.0f : kept));
        }
    }
}
#define DROPOUT(T) \
    TRINE_KERNEL dropout_##T(T* y, const T* x, u64 rows, u64 cols, u64 to, u64 from, u64 tokens, u64 first_token, \
                             u64 first_feature, u64 key, u32 step, u32 first_sample, u64 threshold, float kept) { \
        dropout(y, x, rows, cols, to, from, tokens, first_token, first_feature, key, step, first_sample, threshold, \
                kept); \
    } \
    TRINE_EXPORT(dropout_##T)
DROPOUT(f32)
DROPOUT(bf16)
